import csv
import multiprocessing
import os
import signal
import time

import pytest
import soundfile
import torch
from speechbrain.augment.time_domain import SpeedPerturb

from summarymixing.dataio import manifests
from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.errors import InputError
from summarymixing.training import data
from summarymixing.training.batches import Batches


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train_or_load(None, lambda: ["ONE TWO THREE AAB"], None, "char")


def _row(name, seconds, text):
    return {"ID": name, "wav": f"/{name}.wav", "duration": seconds, "wrd": text}


def _needed(labels):
    """Fewest frames for which torch's CTC loss is finite."""
    for frames in range(1, 20):
        loss = torch.nn.functional.ctc_loss(
            torch.zeros(frames, 1, 9).log_softmax(-1),
            torch.tensor([labels]),
            torch.tensor([frames]),
            torch.tensor([len(labels)]),
        )
        if torch.isfinite(loss):
            return frames


@pytest.mark.parametrize("text", ["AAB", "THREE", "AAA", "AB AB"])
def test_frames_needed_agree_with_the_loss(tokenizer, text):
    labels = tokenizer.encode(text)
    assert data.frames_needed(labels) == _needed(labels)


def test_what_cannot_be_trained_on_is_named_and_left_out(tokenizer, tmp_path, caplog):
    table = [["ID", "duration", "wav", "spk_id", "wrd"]]
    for name, seconds, text in (
        ("good", 1.0, "ONE"),
        ("long", 3.0, "TWO"),
        ("short", 0.2, "THREE"),
        ("odd", 1.0, "ON€ ÉWO"),
        ("silent", 1.0, "ONE"),
        ("slow", 1.0, "ONE"),
    ):
        rate = 8000 if name == "slow" else 16000
        noise = 0.1 * torch.randn(int(rate * seconds)) * (name != "silent")
        soundfile.write(tmp_path / f"{name}.wav", noise.numpy(), rate)
        table.append([name, seconds, tmp_path / f"{name}.wav", "s", text])
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(table)
    rows, options = manifests.read(tmp_path / "train.csv"), {"max_seconds": 2}
    clean = data.screened(rows, tokenizer, lambda s: int(25 * s), tmp_path / "out", **options)
    assert [row["ID"] for row in manifests.read(clean)] == ["good", "slow"]
    assert "4 of 6 utterances left out (1 too long, " in caplog.text
    assert "); kept, but 1 wrong rate; all are named in" in caplog.text
    for part in ("short", "7 labels, 5 frames", "odd", "É €", "too long", "digital silence"):
        assert part in caplog.text
    again = data.screened(
        rows, tokenizer, lambda s: int(25 * s), tmp_path / "out", decode=False, **options
    )
    assert [row["ID"] for row in manifests.read(again)] == ["good", "silent", "slow"]
    with pytest.raises(InputError, match="no utterance is left .*train.findings.csv"):
        data.screened(rows, tokenizer, lambda s: 0, tmp_path / "out")


def test_segments_are_read_as_such(tokenizer, tmp_path):
    samples = torch.randint(-9999, 9999, (16000,), dtype=torch.int16)
    path = str(tmp_path / "a.wav")
    soundfile.write(path, samples.numpy(), 16000)
    rows = [
        {**_row("part", 0.25, "ONE"), "wav": path, "start": 0.5, "stop": 0.75},
        {**_row("all", 1.0, "TWO"), "wav": path, "start": None, "stop": None},
        {**_row("plain", 1.0, "TWO"), "wav": path},
    ]
    utterances = data.Utterances(rows, tokenizer)
    assert torch.equal(utterances[0]["sig"] * 32768, samples[8000:12000].float())
    for i in (1, 2):
        assert torch.equal(utterances[i]["sig"] * 32768, samples.float())


@pytest.fixture
def rows(tmp_path):
    """A manifest of six utterances of noise, the third one's audio damaged."""
    table = [["ID", "duration", "wav", "spk_id", "wrd"]]
    for i, seconds in enumerate([0.3, 0.5, 0.2, 0.4, 0.1, 0.6]):
        path = tmp_path / f"u{i}.wav"
        soundfile.write(path, 0.1 * torch.randn(int(16000 * seconds)).numpy(), 16000)
        table.append([f"u{i}", seconds, path, "s", "ONE TWO"])
    broken = tmp_path / "u2.wav"
    broken.write_bytes(broken.read_bytes()[:1000])
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(table)
    return manifests.read(tmp_path / "train.csv")


def test_what_is_drawn_depends_on_utterance_and_epoch_alone(rows, tokenizer):
    speed = SpeedPerturb(16000, speeds=[80, 90, 100, 110, 120])

    def epoch(number, workers, start=0):
        dataset = data.Utterances(rows.select([0, 1, 3, 4, 5]), tokenizer, 16000, speed, 7)
        batches = Batches(dataset.rows.durations, 1, 2, 2, seed=1)
        batches.set_epoch(number, start)
        dataset.epoch = number
        torch.manual_seed(workers)
        loader = data.train_loader(dataset, batches, workers)
        return {
            name: sig
            for batch, _ in loader
            for name, sig in zip(batch.id, batch.sig.data, strict=True)
        }

    first, again, later, other = epoch(1, 0), epoch(1, 2), epoch(1, 0, start=1), epoch(2, 0)
    assert first.keys() == again.keys() > later.keys()
    for name in first:
        assert torch.equal(first[name], again[name])
    for name in later:
        assert torch.equal(first[name], later[name])
    assert any(
        len(first[name]) != len(other[name]) or not torch.equal(first[name], other[name])
        for name in first
    )


def test_unreadable_audio_costs_the_utterance_in_training_and_is_an_error_elsewhere(
    rows, tokenizer
):
    train = data.Utterances(rows, tokenizer, may_fail=True)
    batch, unread = data.collate([train[1], train[2], train[3]])
    assert batch.id == ["u1", "u3"]
    assert [failure.id for failure in unread] == ["u2"]
    assert "u2.wav" in unread[0].reason
    assert data.collate([train[2]])[0] is None
    assert data.collate([]) == (None, [])
    with pytest.raises(InputError, match="u2.wav"):
        data.Utterances(rows, tokenizer)[2]


def test_samples_that_are_no_numbers_are_unreadable(rows, tokenizer, tmp_path):
    samples = torch.zeros(1600)
    samples[800] = torch.nan
    soundfile.write(tmp_path / "u0.wav", samples.numpy(), 16000, subtype="FLOAT")
    assert (
        "u0.wav at 16000 Hz: sample 800 is nan"
        in data.Utterances(rows, tokenizer, may_fail=True)[0].reason
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_a_test_set(rows, tokenizer, size):
    rows = rows.select([0, 1, 3, 4, 5])
    seen = []
    for rank in range(size):
        loader = data.test_loader(data.Utterances(rows, tokenizer), 2, 0, rank, size)
        ids = [batch.id for batch in loader]
        assert all(len(batch) <= 2 for batch in ids)
        seen += [name for batch in ids for name in batch]
    assert sorted(seen) == ["u0", "u1", "u3", "u4", "u5"]
    if size == 1:
        assert seen == ["u5", "u1", "u3", "u0", "u4"]  # longest first


def test_samples_far_beyond_full_scale_are_unreadable(rows, tokenizer, tmp_path):
    samples = torch.zeros(1600)
    samples[800] = 3e30
    soundfile.write(tmp_path / "u0.wav", samples.numpy(), 16000, subtype="FLOAT")
    assert (
        "sample 800 is 3e+30: samples must be floats in [-1, 1]"
        in data.Utterances(rows, tokenizer, may_fail=True)[0].reason
    )


class Waiting(torch.utils.data.Dataset):
    """The numbers from 0 to 7, and for number 4 what `happens`."""

    def __init__(self, happens):
        self.happens = happens

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 4:
            self.happens()
        return index


def _read(happens, monkeypatch, error=None):
    """Reads them with two workers until number 2 came, whereupon `error` is raised."""
    monkeypatch.setattr(data, "_PATIENCE", 1)
    with data.ended_with_its_workers():
        numbers = iter(torch.utils.data.DataLoader(Waiting(happens), 1, **data._workers(2)))
        for number in numbers:
            if number == 2 and error is not None:
                raise error


@pytest.mark.parametrize(
    "happens",
    (
        lambda: time.sleep(600),
        lambda: os._exit(3),
        lambda: os.kill(os.getpid(), signal.SIGKILL),
    ),
    ids=("hangs", "exits", "is killed"),
)
def test_a_data_worker_that_hangs_or_dies_ends_the_run(happens, monkeypatch, capfd):
    iter(torch.utils.data.DataLoader(range(2), num_workers=1))  # torch sets its handler
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(InputError, match="a data worker .*look at the disk") as caught:
        _read(happens, monkeypatch)
    assert len(str(caught.value).splitlines()) == 1
    assert not multiprocessing.active_children()
    assert "Traceback" not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGCHLD) is handler


@pytest.mark.parametrize(
    "error", (ZeroDivisionError("a bug"), SystemExit(75), RuntimeError("CUDA"))
)
def test_an_error_elsewhere_does_not_wait_for_a_worker_that_hangs(error, monkeypatch, capfd):
    with pytest.raises(type(error)) as caught:
        _read(lambda: time.sleep(600), monkeypatch, error)
    assert caught.value is error
    assert not multiprocessing.active_children()
    assert "Traceback" not in capfd.readouterr().err


def test_what_a_worker_raises_is_shown_as_it_is(monkeypatch):
    def happens():
        raise RuntimeError("a bug in reading")

    with pytest.raises(RuntimeError, match="Caught RuntimeError.*\n(.*\n)*.*a bug in reading"):
        _read(happens, monkeypatch)
    assert not multiprocessing.active_children()


def test_a_test_set_of_integers_is_refused_before_the_training(tmp_path):
    soundfile.write(tmp_path / "a.wav", 3000 * torch.randn(8000).numpy(), 16000, subtype="FLOAT")
    (tmp_path / "test.csv").write_text(
        f"ID,duration,wav,spk_id,wrd\nu-1,0.5,{tmp_path}/a.wav,s,ONE\n"
    )
    with pytest.raises(InputError, match=r"u-1: samples up to \d+.*, where full scale is 1 .*mend"):
        data.check_whole(manifests.read(tmp_path / "test.csv"), tmp_path / "facts.sqlite")


def test_what_goes_well_is_left_alone(monkeypatch):
    _read(lambda: None, monkeypatch)
