"""The whole of an experiment on half a minute of synthetic speech: results, resuming, mistakes."""

import csv
import errno
import json
import os
import re
import shutil

import pytest
import soundfile
import torch
from second_device import second_device

from summarymixing.dataio import manifests
from summarymixing.decoding import CTCPrefixBeamSearch
from summarymixing.decoding.ngram import NGram
from summarymixing.inference import load
from summarymixing.ops import dropout
from summarymixing.training import experiment, loop
from summarymixing.training.batches import Batches
from summarymixing.training.seq2seq import CTCAttentionBrain


def run(command):
    return experiment.run(CTCAttentionBrain, command)


def refused(command, capsys, *expected):
    """The command fails with status 2 and one line on the standard error that has these parts."""
    with pytest.raises(SystemExit) as caught:
        experiment.main(CTCAttentionBrain, command)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert caught.value.code == 2
    assert len(lines) == 1
    for part in expected:
        assert part in lines[0], lines[0]


def test_compile_trains_the_same_model_in_few_graphs(corpus, tiny, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):  # no compiler is needed to count what would be compiled
        graphs.append(graph)
        return graph.forward

    def compiled(module, **options):
        plain(module, backend=backend, fullgraph=True, **options)

    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    # On a CPU what is not compiled draws other numbers.
    monkeypatch.setattr(dropout, "dropout", torch.nn.functional.dropout)
    torch.compiler.reset()
    options = {"number_of_epochs": 2, "dropout": 0.1, "batch_seconds": 3}
    options["opt_class"] = "{eps: 0.001}"  # or Adam makes steps of roundings
    for folder, flags in (("eager", []), ("compiled", ["--compile"])):
        run([*tiny(corpus, tmp_path / folder, **options), *flags])
    torch.compiler.reset()
    # Training and evaluation, each with a batch of one, which is always a graph of its own.
    assert 2 <= len(graphs) <= 4
    expected, found = (
        load(tmp_path / name).modules["Transformer"].state_dict() for name in ("eager", "compiled")
    )
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)


def test_activation_checkpointing_trains_the_same_model(corpus, tiny, tmp_path, monkeypatch):
    again = []
    plain = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "summarymixing.models.checkpointing.checkpoint",
        lambda *args, **kwargs: again.append(args) or plain(*args, **kwargs),
    )
    for folder, flags in (("kept", []), ("again", ["--model={activation_checkpointing: true}"])):
        run([*tiny(corpus, tmp_path / folder, dropout=0.1), *flags])
        assert bool(again) == (folder == "again")
    expected, found = (
        load(tmp_path / name).modules["Transformer"].state_dict() for name in ("kept", "again")
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_results_and_what_is_left(corpus, tiny, tmp_path, capsys):
    results = run(tiny(corpus, tmp_path / "run", number_of_epochs=2, tensorboard=True))
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text()) == results
    assert list(results["tests"]) == ["valid", "test-synthetic"]
    for test in results["tests"].values():
        assert test["utterances"] > 0
        errors = test["substitutions"] + test["deletions"] + test["insertions"]
        assert test["wer"] == pytest.approx(100 * errors / test["words"])
    assert results["epochs"] == 2
    assert results["seed"] == 1234
    assert results["train_seconds"] > 0
    assert results["params"] > 1000
    assert results["peak_memory_bytes"] > 1e8
    assert {"torch", "speechbrain", "summarymixing"} <= results["versions"].keys()
    assert (folder / "curve.png").stat().st_size > 5000
    assert (folder / "alignments_test-synthetic.txt").exists()
    assert any((folder / "tensorboard").iterdir())
    hypotheses = (folder / "hypotheses_test-synthetic.txt").read_text().splitlines()
    assert len(hypotheses) == results["tests"]["test-synthetic"]["utterances"]
    assert len((folder / "curve.csv").read_text().splitlines()) == 3
    shown = capsys.readouterr().out
    for part in ("WER", "CER", "params", "minutes", "REF:", "curve.png", "results.json"):
        assert part in shown

    # A second run continues where the first ended: nothing is trained again.
    curve = (folder / "curve.csv").read_text()
    again = run(tiny(corpus, tmp_path / "run", number_of_epochs=2))
    assert (folder / "curve.csv").read_text() == curve
    assert again["tests"] == results["tests"]
    # More epochs go on from the last.
    run(tiny(corpus, tmp_path / "run", number_of_epochs=3))
    assert (folder / "curve.csv").read_text().startswith(curve)
    assert len((folder / "curve.csv").read_text().splitlines()) == 4
    # Another search, named on the command line, for the same weights.
    other = tiny(corpus, tmp_path / "run", number_of_epochs=3, test_search="ctc_beam beam_size=3")
    run([*other, "--test_only"])
    assert isinstance(load(folder).test_search, CTCPrefixBeamSearch)
    # An n-gram model of the training transcripts.
    text = f"joint beam_size=2 max_decode_ratio=0.3 ngram_file={folder}/ngram.arpa"
    other = tiny(corpus, folder, number_of_epochs=3, test_search=text, ngram_order=2)
    run([*other, "--test_only"])
    pieces = load(folder).tokenizer
    sentences = [
        pieces.encode(row["wrd"]) for row in manifests.read(folder / "manifests/train.csv")
    ]
    seen = NGram.read(folder / "ngram.arpa", pieces.get_piece_size())
    assert seen.perplexity(sentences) < pieces.get_piece_size() / 2


def test_the_best_checkpoints_are_averaged(corpus, tiny, tmp_path, monkeypatch):
    tested = {}
    finish = experiment._finish

    def keep_brain(brain, hparams):
        model = brain.checkpointer.recoverables["model"]
        tested.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return finish(brain, hparams)

    monkeypatch.setattr(experiment, "_finish", keep_brain)
    options = {"number_of_epochs": 3, "avg_checkpoints": 2, "lr": 0.01, "warmup_steps": 2}
    run(tiny(corpus, tmp_path / "run", **options))
    last = sorted((tmp_path / "run" / "save").glob("CKPT*"))[-2:]
    first, second = (torch.load(folder / "model.ckpt") for folder in last)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, tensor in tested.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)


def test_interrupted_run_ends_like_an_uninterrupted_one(corpus, tiny, tmp_path, monkeypatch):
    """Stopped between epochs, training goes on to the same weights, random draws included.

    What it took is that of both runs.
    """
    options = {"lr": 0.01, "warmup_steps": 2, "avg_checkpoints": 1, "batch_seconds": 8}
    options |= {"number_of_epochs": 2, "dropout": 0.2}
    run(tiny(corpus, tmp_path / "whole", **options))
    parts = tiny(corpus, tmp_path / "parts", **options)
    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr(loop, "peak_memory_bytes", lambda: 10**15)
        experiment.run(StoppedAfterFirstEpoch, parts)
    assert run(parts)["peak_memory_bytes"] == 10**15
    for name in ("model", "optimizer"):
        ours, theirs = (
            torch.load(max((tmp_path / part / "save").glob("CKPT*")) / f"{name}.ckpt")
            for part in ("whole", "parts")
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


class StoppedAfterFirstEpoch(CTCAttentionBrain):
    def on_stage_start(self, stage, epoch=None):
        if epoch == 2:
            raise KeyboardInterrupt
        super().on_stage_start(stage, epoch)


def test_on_another_device_as_on_the_cpu(corpus, tiny, tmp_path, monkeypatch):
    """Trained, gone on with, and tested by the joint search, with nothing left on the CPU."""
    monkeypatch.setattr(dropout, "dropout", torch.nn.functional.dropout)  # as other devices draw

    def tests(name, *options):
        for epochs in (1, 2):
            parts = {"number_of_epochs": epochs, "ngram_order": 2, "dropout": 0.1}
            results = run([*tiny(corpus, tmp_path / name, **parts), *options])
        return results["tests"]

    expected = tests("cpu")
    with second_device() as device:
        assert tests("second", f"--device={device}") == expected
    ours, theirs = (
        load(tmp_path / name).modules["Transformer"].encoder.state_dict()
        for name in ("cpu", "second")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_hypotheses_do_not_depend_on_the_batch(corpus, tiny, tmp_path):
    """Scores of the test set in batches of 1 and of 20, from one model."""
    once = run(tiny(corpus, tmp_path / "run", valid_batch_size=1))
    many = run(tiny(corpus, tmp_path / "run", valid_batch_size=20))
    assert once["tests"] == many["tests"]


def test_gradient_accumulation_schedules_by_optimizer_step(corpus, tiny, tmp_path):
    options = {"batch_seconds": 6, "grad_accumulation_factor": 2, "number_of_epochs": 2}
    run(tiny(corpus, tmp_path / "run", **options))
    with open(tmp_path / "run" / "curve.csv") as file:
        row = next(csv.DictReader(file))
    steps = -(-batches_of(tmp_path / "run") // 2)  # the odd batch at the end is a step, too
    assert int(row["step"]) == steps
    assert float(row["lr"]) == pytest.approx(0.002 * steps / 200, rel=1e-6)


def batches_of(folder):
    durations = manifests.read(folder / "manifests" / "train.csv").durations
    return len(Batches(durations, 6, 16, 10, 1234))


# Mistakes: one line, named, status 2


def test_missing_data_folder(tiny, tmp_path, capsys):
    command = [part for part in tiny("x", tmp_path / "run") if "data_folder" not in part]
    refused(command, capsys, "data_folder is required", "--data_folder=")


def test_wrong_layout(tiny, tmp_path, capsys):
    refused(tiny(tmp_path / "gone", tmp_path / "run"), capsys, "gone")
    (tmp_path / "empty").mkdir()
    refused(tiny(tmp_path / "empty", tmp_path / "run"), capsys, "train-synthetic")


def test_unknown_override(corpus, tiny, tmp_path, capsys):
    refused(tiny(corpus, tmp_path / "run", d_modle=3), capsys, "d_modle", "d_model")


def test_a_search_that_there_is_not(corpus, tiny, tmp_path, capsys):
    command = tiny(corpus, tmp_path / "run", test_search="beam beam_size=3")
    refused(command, capsys, "there is no search 'beam'", "joint")
    command = tiny(corpus, tmp_path / "run", test_search="joint ngram_file=none.arpa")
    refused(command, capsys, "test_search: ngram_file=none.arpa: there is no such file")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option, value",
    (
        ("number_of_epochs", -3), ("valid_batch_size", 0), ("num_workers", "abc"), ("threads", -2),
        ("batch_seconds", 0), ("batch_seconds", "abc"), ("global_batch_seconds", "abc"),
        ("max_batch_utterances", 0), ("num_buckets", 2.5), ("valid_search_interval", 0),
    ),
)  # fmt: skip
def test_a_number_that_cannot_be_is_said_before_anything_is_made(
    corpus, tiny, tmp_path, capsys, option, value
):
    refused(tiny(corpus, tmp_path / "run", **{option: value}), capsys, option, f"got {value!r}")
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_made(corpus, tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder, why in ((tmp_path / "file", "File exists"), ("/proc/run", "No such file")):
        refused(tiny(corpus, folder), capsys, f"--output_folder={folder}: {why}")


def test_heads_that_do_not_divide(corpus, tiny, tmp_path, capsys):
    refused(tiny(corpus, tmp_path / "run", nhead=3), capsys, "nhead", "got nhead=3")


def test_output_folder_of_a_different_experiment(corpus, tiny, tmp_path, capsys):
    run(tiny(corpus, tmp_path / "run"))
    refused(tiny(corpus, tmp_path / "run", d_model=32), capsys, "different experiment", "d_model")


def test_tokenizer_that_does_not_fit(corpus, tiny, tmp_path, capsys):
    run(tiny(corpus, tmp_path / "run"))
    given = tmp_path / "run" / "tokenizer.model"
    command = tiny(corpus, tmp_path / "other", output_neurons=61, tokenizer_file=given)
    refused(command, capsys, "output_neurons", "45", "61", "tokenizer.model")
    missing = tiny(corpus, tmp_path / "third", tokenizer_file=tmp_path / "gone.model")
    refused(missing, capsys, "gone.model")


def test_test_only_without_a_checkpoint(corpus, tiny, tmp_path, capsys):
    command = [*tiny(corpus, tmp_path / "run"), "--test_only"]
    refused(command, capsys, "no checkpoint", "save")
    (tmp_path / "run/results.json").write_text("{")
    refused(command, capsys, "results.json: not JSON")


@pytest.fixture
def dirty(corpus, tmp_path):
    """A copy of the corpus for damaging: (folder, training files, transcript files)."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    (folder / ".complete.json").unlink(missing_ok=True)
    files = sorted((folder / "train-synthetic").rglob("*.flac"))
    return folder, files


def _left_out(folder):
    found = {}
    with open(folder / "manifests" / "train.dropped.csv") as file:
        found |= {row["ID"]: row["reason"] for row in csv.DictReader(file)}
    with open(folder / "manifests" / "train.findings.csv") as file:
        found |= {
            row["ID"]: row["finding"] for row in csv.DictReader(file) if row["dropped"] == "yes"
        }
    return found


def test_bad_training_utterances_are_named_counted_and_left_out(dirty, tiny, tmp_path):
    folder, files = dirty
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:3000])
    files[2].write_text("this is not audio")
    transcripts = next(files[3].parent.glob("*.trans.txt"))
    text = transcripts.read_text().splitlines()
    at = next(i for i, line in enumerate(text) if line.startswith(files[3].stem))
    text[at] = f"{files[3].stem} "
    transcripts.write_text("\n".join(text) + "\n")
    with open(next(files[4].parent.glob("*.trans.txt"))) as file:
        assert files[4].stem in file.read()
    audio, rate = soundfile.read(files[4])
    soundfile.write(files[4], audio[:1600], rate)  # a tenth of a second for a whole sentence

    results = run(tiny(folder, tmp_path / "run"))
    left_out = _left_out(tmp_path / "run")
    assert left_out.keys() == {file.stem for file in files[:5]}
    assert "empty" in left_out[files[0].stem]
    assert "truncated" in left_out[files[1].stem]
    assert "transcript" in left_out[files[3].stem]
    assert left_out[files[4].stem] == "too_many_labels"
    logged = (tmp_path / "run" / "log.txt").read_text()
    assert all(file.stem in logged for file in files[:5])
    assert results["tests"]["test-synthetic"]["utterances"] > 0


def test_bad_test_audio_is_an_error(dirty, tiny, tmp_path, capsys):
    folder, _ = dirty
    victim = sorted((folder / "test-synthetic").rglob("*.flac"))[0]
    victim.write_bytes(victim.read_bytes()[:2000])
    refused(tiny(folder, tmp_path / "run"), capsys, victim.name)


def test_dry_run_says_what_the_run_would_take_and_leaves_no_training(
    corpus, tiny, tmp_path, capsys
):
    folder = tmp_path / "run"
    command = tiny(corpus, folder, number_of_epochs=7, grad_accumulation_factor=2, batch_seconds=6)
    assert run([*command, "--dry_run"]) is None
    shown = capsys.readouterr().out
    steps = -(-batches_of(folder) // 2)
    for part in (f"7 epochs, {7 * steps} steps", "longest batch", "decoding test-synthetic", "MB"):
        assert part in shown
    mean = len(manifests.read(folder / "manifests/train.csv")) / steps
    assert f"{steps} steps an epoch of {mean:.1f} utterances, " in shown
    assert {path.name for path in folder.iterdir()} <= {
        *("manifests", "tokenizer.model", "hyperparams.yaml", "log.txt", "experiment.py", "save"),
    }
    assert not list((folder / "save").glob("*"))
    run(tiny(corpus, folder))  # and the real run finds what was prepared


class StoppedInValidation(CTCAttentionBrain):
    def evaluate_batch(self, batch, stage):
        raise KeyboardInterrupt


def test_a_step_limit_that_was_reached_before_validation_is_validated(corpus, tiny, tmp_path):
    options = {"number_of_epochs": 9, "optimizer_step_limit": 1, "batch_seconds": 6}
    command = tiny(corpus, tmp_path / "run", **options)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(StoppedInValidation, command)
    assert run(command)["epochs"] == 1


def test_hyperparameters_that_cannot_be_read(corpus, tiny, tmp_path, capsys):
    command = tiny(corpus, tmp_path / "run")
    run(command)
    for content in ("", "a: [1,"):
        (tmp_path / "run" / "hyperparams.yaml").write_text(content)
        refused(command, capsys, "hyperparams.yaml", "cannot be read")


# Crashes and full disks, where files other than checkpoints are written


@pytest.fixture
def failing(monkeypatch):
    """failing(name, error): writing a file of this name, or a pattern of it, raises the error."""
    fsync = os.fsync

    def fail(name, error):
        def noted(descriptor):
            # Files are written under a hidden name that has theirs in it.
            written = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
            if re.fullmatch(rf"\.{name}\.\d+", written):
                raise error
            return fsync(descriptor)

        monkeypatch.setattr(os, "fsync", noted)

    return fail


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_there(
    corpus, tiny, tmp_path, capsys, failing
):
    folder = tmp_path / "run"
    command = tiny(corpus, folder)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    files = "hyperparams.yaml train.csv tokenizer.model train.clean.csv curve.png results.json"
    for name in files.split():
        full.filename = None
        failing(re.escape(name), full)
        refused(command, capsys, name, "No space left on device")
        names = {path.name for path in folder.rglob("*")} - {".lock"}
        assert name not in names and not any(path.startswith(".") for path in names)
    failing("nothing", full)
    results = run(command)
    assert results["epochs"] == 1
    assert len((folder / "curve.csv").read_text().splitlines()) == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
def test_a_crash_while_hyperparameters_are_written_leaves_those_before(
    corpus, tiny, tmp_path, failing
):
    saved = tmp_path / "run" / "hyperparams.yaml"
    for width, name, kept in ((8, "train.csv", 8), (16, saved.name, 8), (16, "train.csv", 16)):
        failing(name, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(tiny(corpus, tmp_path / "run", d_model=width))
        assert f"\nd_model: {kept}\n" in saved.read_text()
    assert not list(saved.parent.glob(".*"))
