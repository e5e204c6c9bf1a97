import csv
import os

import pytest
import soundfile
import torch

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.errors import InputError
from summarymixing.training import data


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train_or_load(None, lambda: ["ONE TWO THREE AAB"], None, "char")


def _row(name, seconds, text):
    return {"ID": name, "wav": f"/{name}.wav", "duration": seconds, "wrd": text}


def test_untrainable_rows_are_named(tokenizer, tmp_path, caplog):
    rows = [
        _row("good", 1.0, "ONE"),
        _row("long", 9.0, "TWO"),
        _row("short", 0.2, "THREE"),
        _row("odd", 1.0, "ON€ ÉWO"),
    ]
    report = tmp_path / "left_out.csv"
    kept = data.trainable(rows, tokenizer, lambda s: int(25 * s), str(report), max_seconds=5)
    assert [row["ID"] for row in kept] == ["good"]
    with open(report) as file:
        reasons = {row["ID"]: row["reason"] for row in csv.DictReader(file)}
    assert "max_seconds=5" in reasons["long"]
    assert reasons["short"].startswith("7 labels and only 5 frames")  # ▁ T H R E (blank) E
    assert "€ É" in reasons["odd"]
    assert "3 of 4" in caplog.text
    for name in reasons:
        assert name in caplog.text


def test_frames_are_counted_as_ctc_needs_them(tokenizer, tmp_path):
    report = str(tmp_path / "report.csv")
    rows = [_row("a", 1.0, "AAB")]  # ▁ A (blank) A B: five frames
    assert data.trainable(rows, tokenizer, lambda s: 5, report) == rows
    assert not os.path.exists(report)
    with pytest.raises(InputError, match="no utterance is left"):
        data.trainable(rows, tokenizer, lambda s: 4, report)


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
def test_frames_needed_agree_with_the_loss(tokenizer, tmp_path, text):
    needed = _needed(tokenizer.encode(text))
    rows, report = [_row("a", 1.0, text)], str(tmp_path / "report.csv")
    assert data.trainable(rows, tokenizer, lambda s: needed, report)
    with pytest.raises(InputError):
        data.trainable(rows, tokenizer, lambda s: needed - 1, report)


def test_batches_are_drawn_anew_every_epoch():
    rows = [_row(str(i), 1 + i % 7, "ONE") for i in range(200)]
    sampler = data.train_loader(rows, 20, 8, 4, 0, seed=1)["batch_sampler"]
    epochs = []
    for epoch in (1, 2, 1):
        sampler.set_epoch(epoch)
        epochs.append([tuple(batch) for batch in sampler])
        assert sorted(i for batch in epochs[-1] for i in batch) == list(range(200))
    assert epochs[0] == epochs[2]
    assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}
    durations = [1 + i % 7 for i in range(200)]
    for batch in epochs[0]:
        assert len(batch) <= 8
        assert max(durations[i] for i in batch) * len(batch) <= 20 or len(batch) == 1


def test_segments_are_read_as_such(tokenizer, tmp_path):
    samples = torch.randint(-9999, 9999, (16000,), dtype=torch.int16)
    path = str(tmp_path / "a.wav")
    soundfile.write(path, samples.numpy(), 16000)
    rows = [
        {**_row("part", 0.25, "ONE"), "wav": path, "start": 0.5, "stop": 0.75},
        {**_row("all", 1.0, "TWO"), "wav": path, "start": None, "stop": None},
        {**_row("plain", 1.0, "TWO"), "wav": path},
    ]
    utterances = data.dataset(rows, tokenizer)
    assert torch.equal(utterances[0]["sig"] * 32768, samples[8000:12000].float())
    for i in (1, 2):
        assert torch.equal(utterances[i]["sig"] * 32768, samples.float())
