"""The shared Brain's own steps."""

from types import SimpleNamespace

import pytest
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch import nn

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.errors import InputError
from summarymixing.training import config, data
from summarymixing.training.batches import Batches
from summarymixing.training.seq2seq import CTCAttentionBrain


@pytest.fixture
def brain(tiny, tmp_path):
    recipe, _, *options = tiny("/none", tmp_path)
    hparams = config.load(recipe, "\n".join(o[2:].replace("=", ": ", 1) for o in options))
    brain = CTCAttentionBrain(
        hparams["model"]["modules"], hparams["opt_class"], hparams, {"device": "cpu"}
    )
    brain.init_optimizers()
    return brain


def test_all_groups_are_clipped_together(brain):
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    brain.optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=1.0)
    first.grad, second.grad = torch.full((3,), 30.0), torch.full((4,), 40.0)
    norm = torch.cat([first.grad, second.grad]).norm()
    brain.optimizers_step()
    torch.testing.assert_close(first.data, torch.full((3,), -30.0 * 5 / norm))
    torch.testing.assert_close(second.data, torch.full((4,), -40.0 * 5 / norm))


def test_step_with_an_infinite_gradient_is_skipped_whole_and_counted(brain, caplog):
    good, bad = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    brain.optimizer = torch.optim.SGD([good, bad], lr=1.0)
    good.grad, bad.grad = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    brain.optimizers_step()
    assert good.eq(1).all() and bad.eq(1).all()
    assert good.grad is None and bad.grad is None
    assert brain.skipped_steps == 1
    assert "skipped" in caplog.text


def test_accuracy_counts_valid_tokens_only(brain):
    scores = nn.functional.one_hot(torch.tensor([[1, 2, 3], [1, 0, 0]]), 5).float()
    brain.count_accuracy(scores, torch.tensor([[1, 2, 4], [1, 0, 0]]), torch.tensor([3, 1]))
    assert (brain.totals.correct, brain.totals.predicted) == (3, 4)


def test_normalisation_sees_the_valid_frames_only(brain):
    """The statistics of a batch are those of its utterances one after the other."""
    lengths = torch.tensor([50, 33, 7, 49])
    features = torch.randn(4, 50, 80) * 3 + 2
    brain.modules.train()
    brain.modules.normalize(features, (lengths - 0.5) / 50, epoch=1)
    valid = torch.cat([row[:n] for row, n in zip(features, lengths)])
    torch.testing.assert_close(brain.modules.normalize.glob_mean.flatten(), valid.mean(0))
    assert brain.modules.normalize.count == len(valid)


@pytest.fixture
def fed(brain, tmp_path):
    """The brain in its first epoch, and a batch."""
    brain.tokenizer = tokenizers.train_or_load(None, lambda: ["ONE TWO THREE"], None, "char")
    brain.train_loader = SimpleNamespace(batch_sampler=Batches([1.0, 1.0], 10, 2, 1, seed=1))
    brain.step = 1
    brain.modules.train()
    items = [
        {
            "id": f"u{i}",
            "wrd": "ONE",
            "sig": torch.randn(16000),
            "tokens_bos": torch.tensor([1, 3, 4]),
            "tokens_eos": torch.tensor([3, 4, 2]),
        }
        for i in range(2)
    ]
    batch = PaddedBatch(items)
    brain.statistics.add(*brain._features(batch))
    brain.statistics.begin()
    return brain, batch


def weights(brain):
    return torch.cat([p.detach().flatten().clone() for p in brain.modules.parameters()])


def test_a_process_without_a_batch_adds_nothing(fed):
    brain, batch = fed
    brain.fit_batch((batch, []))  # moments, which move weights without a gradient, too
    brain.optimizer = torch.optim.SGD(brain.modules.parameters(), lr=1.0)
    before = weights(brain)
    loss = brain.fit_batch((None, []))
    assert torch.equal(weights(brain), before)
    assert torch.isnan(loss)  # no part of the mean
    assert brain.optimizer_step == 2


def test_an_unread_utterance_lowers_the_weight_of_its_batch(fed, caplog):
    brain, batch = fed
    gradients = []
    brain.optimizers_step = lambda: gradients.append(
        torch.cat([p.grad.flatten() for p in brain.modules.parameters() if p.grad is not None])
    )
    for unread in ([], [data.Unread("u7", "u7.wav: gone")] * 2):
        brain.modules.zero_grad()
        brain.fit_batch((batch, unread))
    torch.testing.assert_close(gradients[1], gradients[0] / 2)
    assert brain.unread == 2
    assert "u7.wav: gone" in caplog.text


def test_too_many_unread_utterances_end_the_run(fed):
    brain, batch = fed
    brain.hparams.max_unread = 2
    unread = [data.Unread(f"u{i}", f"u{i}.wav: gone") for i in range(3)]
    with pytest.raises(InputError, match=r"3 utterances .*max_unread=2.*u2.wav: gone"):
        brain.fit_batch((batch, unread))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_losses_that_are_not_finite_skip_steps_and_end_the_run(fed, caplog, broken):
    """Also where the gradient is finite: of a constant it is zero."""
    brain, batch = fed
    brain.fit_batch((batch, []))
    before, objectives = weights(brain), brain.compute_objectives
    brain.compute_objectives = lambda *args: 0 * objectives(*args) + broken
    for _ in range(brain.nonfinite_patience):
        brain.fit_batch((batch, []))
    assert torch.equal(weights(brain), before)
    assert brain.skipped_steps == brain.nonfinite_patience
    assert "loss not finite: u0 u1" in caplog.text
    with pytest.raises(InputError, match=r"4 steps in a row .*nonfinite_patience=3.* u0 u1"):
        brain.fit_batch((batch, []))


def test_a_finite_step_ends_the_row_of_skipped_ones(fed):
    brain, batch = fed
    objectives = brain.compute_objectives
    for number in range(9):
        brain.compute_objectives = objectives
        if number % 3:
            brain.compute_objectives = lambda *args: objectives(*args) * torch.nan
        brain.fit_batch((batch, []))
    assert brain.skipped_steps == 6


@pytest.fixture
def half(brain):
    """The brain as with precision: fp16, and a parameter with the gradient of a step."""
    parameter = nn.Parameter(torch.zeros(3))
    brain.optimizer = torch.optim.SGD([parameter], lr=1.0)
    brain.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def step(gradient, broken=()):
        brain._not_finite += broken
        # The scaler knows of an optimizer's steps from its losses.
        brain.scaler.scale((parameter * torch.tensor(gradient)).sum()).backward()
        return brain.optimizers_step()

    return brain, parameter, step


def test_a_step_that_overflows_half_precision_only_lowers_its_scale(half, caplog):
    """More of them than may be broken in a row: they are how the scale is found."""
    brain, parameter, step = half
    for number in range(1, 3 * brain.nonfinite_patience):
        assert not step([torch.inf, 1.0, 1.0])
        assert brain.scaler.get_scale() == 2.0 ** (16 - number)
    assert parameter.eq(0).all() and parameter.grad is None
    assert brain.skipped_steps == 0 and "skipped" not in caplog.text
    assert step([1.0, 1.0, 1.0])
    torch.testing.assert_close(parameter.data, torch.full((3,), -1.0))


def test_what_overflows_whatever_the_scale_is_broken(half, caplog):
    brain, parameter, step = half
    for _ in range(17):  # down to a half
        step([torch.nan, 1.0, 1.0])
    assert brain.scaler.get_scale() == 0.5 and brain.skipped_steps == 0
    for _ in range(brain.nonfinite_patience):
        step([torch.nan, 1.0, 1.0])
    assert brain.skipped_steps == brain.nonfinite_patience
    assert "gradient not finite" in caplog.text
    with pytest.raises(InputError, match="nonfinite_patience"):
        step([torch.nan, 1.0, 1.0])
    assert parameter.eq(0).all()


def test_a_broken_loss_is_broken_in_half_precision_too(half, caplog):
    brain, parameter, step = half
    for number in range(brain.nonfinite_patience):
        step([torch.nan, 1.0, 1.0], broken=["u7"])
        step([torch.inf, 1.0, 1.0])  # no good step between them
        assert brain.skipped_steps == number + 1
    assert "loss not finite: u7" in caplog.text
    with pytest.raises(InputError, match="utterances u7"):
        step([torch.nan, 1.0, 1.0], broken=["u7"])
    assert parameter.eq(0).all()


def test_dropout_of_a_batch_is_the_same_whatever_came_before(fed):
    brain, batch = fed
    drawn = []
    brain.compute_objectives = lambda *args: (
        drawn.append(torch.rand(3)) or torch.zeros((), requires_grad=True)
    )
    brain.optimizers_step = lambda: None
    for seed in (1, 2):
        torch.manual_seed(seed)
        brain.fit_batch((batch, []))
    brain.batches.set_epoch(2)
    brain.fit_batch((batch, []))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
