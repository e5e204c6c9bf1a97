"""The plan of an epoch: everything once, within limits, the same for any number of processes."""

import numpy as np
import pytest

from summarymixing.errors import InputError
from summarymixing.training.batches import Batches, accumulation


@pytest.fixture
def durations():
    return np.random.default_rng(1).lognormal(1.0, 0.6, 203)


def plan(durations, epoch=1, **options):
    batches = Batches(durations, 20, 8, num_buckets=4, seed=3, **options)
    batches.set_epoch(epoch)
    return batches


def test_every_utterance_once_within_the_limits(durations):
    durations[7] = 50  # longer than a batch may be: alone
    batches = list(plan(durations))
    assert sorted(i for batch in batches for i in batch) == list(range(203))
    for batch in batches:
        assert len(batch) <= 8
        assert max(durations[batch]) * len(batch) <= 20 or len(batch) == 1
    assert [7] in batches


def test_batches_are_full_and_similar(durations):
    batches = list(plan(durations))
    padded = sum(max(durations[batch]) * len(batch) for batch in batches)
    assert durations.sum() / padded > 0.75
    assert len(batches) < 1.25 * padded / 20 + 4


def test_drawn_anew_every_epoch_and_again_the_same(durations):
    first, second, again = (list(plan(durations, epoch)) for epoch in (1, 2, 1))
    assert first == again
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


def test_begins_where_it_is_told(durations):
    batches = plan(durations)
    whole = list(batches)
    batches.set_epoch(1, start=5)
    assert list(batches) == whole[5:]
    assert len(batches) == len(whole)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [203, 9])
def test_processes_share_the_same_steps(durations, size, count):
    """However a step of 6 or 7 batches is divided, it has the same utterances and gradient."""
    durations = durations[:count]
    per_step = 7 if size == 7 else 6
    alone = plan(durations, accumulation=per_step)
    ranks = [
        plan(durations, accumulation=per_step // size, rank=rank, world_size=size)
        for rank in range(size)
    ]
    assert {len(rank) for rank in ranks} == {len(ranks[0])}
    assert {rank.steps for rank in ranks} == {alone.steps}
    values = np.random.default_rng(2).normal(size=count)

    def steps(processes):
        """Per step: utterances, and the mean of values as weights make it."""
        gradient, seen = 0.0, []
        for number in range(len(processes[0])):
            for process in processes:
                batch = process.batch(number)
                if batch:
                    share = process.weight(number) / len(processes)
                    gradient += share * values[batch].mean()
                else:
                    assert process.weight(number) == 0
                seen += batch
            if processes[0].ends_step(number):
                yield sorted(seen), gradient
                gradient, seen = 0.0, []
        assert not seen  # the epoch's last batches are a step, too

    for (ours, gradient), (theirs, other) in zip(steps(ranks), steps([alone]), strict=True):
        assert ours == theirs
        assert gradient == pytest.approx(values[ours].mean(), rel=1e-12)
        assert gradient == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize(
    ("done", "then", "now", "expected"),
    [
        (6, {}, {}, 6),
        (6, {}, {"accumulation": 3}, 6),
        (6, {}, {"world_size": 2, "rank": 1}, 3),
        (3, {"world_size": 2}, {"accumulation": 6}, 6),
        (6, {}, {"accumulation": 4}, 0),  # would end within a step
        (6, {}, {"max_batch_utterances": 7}, 0),
        (6, {}, {"durations": "others"}, 0),
    ],
)
def test_a_checkpoint_within_an_epoch_is_resumed_where_it_was(
    durations, tmp_path, caplog, done, then, now, expected
):
    options = {"batch_seconds": 20, "max_batch_utterances": 8, "num_buckets": 4, "seed": 3}
    Batches(durations, **options | then).save(tmp_path / "batches.ckpt")
    if now.pop("durations", None):
        durations = durations[:-1]
    batches = Batches(durations, **options | now)
    batches.load(tmp_path / "batches.ckpt")
    assert batches.resumed(done) == expected
    assert ("begins again" in caplog.text) == (expected == 0)


def test_a_checkpoint_after_all_batches_stays_after_all(durations, tmp_path):
    alone = plan(durations)
    alone.save(tmp_path / "batches.ckpt")
    for size in (1, 2, 7):
        batches = plan(durations, world_size=size)
        batches.load(tmp_path / "batches.ckpt")
        assert batches.resumed(len(alone)) == len(batches)


def test_global_batch():
    assert accumulation(400, 100, 1) == 4
    assert accumulation(400, 100, 4) == 1
    with pytest.raises(InputError, match="100 is no multiple .* 100 x 3; 300 is"):
        accumulation(100, 100, 3)
    with pytest.raises(InputError, match="450 is no multiple"):
        accumulation(450, 100, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_seconds", 0), ("max_batch_utterances", -1), ("accumulation", 0), ("num_buckets", 0)],
)
def test_nothing_fits_into_nothing(durations, key, value):
    options = {"batch_seconds": 20, "max_batch_utterances": 8, "num_buckets": 4, "seed": 1}
    with pytest.raises(InputError, match="must be positive"):
        Batches(durations, **options | {key: value})


def test_a_million_utterances_take_seconds():
    """No more than a few Python operations an utterance."""
    import time

    durations = np.random.default_rng(1).lognormal(2.3, 0.5, 100_000)
    start = time.process_time()
    batches = Batches(durations, 500, 100, 200, seed=1)
    assert time.process_time() - start < 1.0
    assert sum(map(len, batches)) == 100_000
