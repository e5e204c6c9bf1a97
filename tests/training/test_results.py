"""results.json and what is printed from it."""

import json
import math
import resource
import sys

import numpy as np
import pytest
import torch

from summarymixing.errors import InputError
from summarymixing.machine import command, commit, versions
from summarymixing.scoring.metrics import score
from summarymixing.training.results import (
    examples,
    peak_memory_bytes,
    read,
    table,
    write_results,
)

SCORES = score({"a": "one two", "b": "three four"}, {"a": "one", "b": "three for"})


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_file_holds_the_scores_and_the_facts(tmp_path):
    path = tmp_path / "run" / "results.json"
    written = write_results(
        path,
        {"test-clean": SCORES, "test-other": SCORES},
        params=12_345,
        train_seconds=90.5,
        epochs=3,
        seed=7,
        device="cpu",
        mixer="summary",
    )
    read = strict(path.read_text())
    assert read == written
    assert list(read["tests"]) == ["test-clean", "test-other"]
    assert read["tests"]["test-clean"] == {
        "wer": 50.0,
        "cer": SCORES.cer,
        "substitutions": 1,
        "deletions": 1,
        "insertions": 0,
        "words": 4,
        "utterances": 2,
    }
    assert (read["params"], read["train_seconds"], read["epochs"]) == (12_345, 90.5, 3)
    assert (read["seed"], read["device"], read["mixer"]) == (7, "cpu", "summary")
    assert read["threads"] == torch.get_num_threads()
    assert read["versions"] == versions()
    assert read["command"] == command()
    assert read["commit"] == commit()
    assert read["peak_memory_bytes"] > 0
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


def test_scores_of_another_kind_stay_what_they_are(tmp_path):
    tests = {"valid": {"perplexity": 12.5, "words": 7}}
    assert write_results(tmp_path / "r.json", tests)["tests"] == tests


def test_what_a_run_that_only_tests_leaves_as_it_was(tmp_path):
    path = tmp_path / "r.json"
    facts = {"command": "train", "commit": "c0ffee", "peak_memory_bytes": 5, "processes": 4}
    facts |= {"device": "cuda:0", "versions": {"torch": "1"}, "threads": 9, "skipped_steps": 7}
    first = write_results(path, {"16 frames": SCORES, "valid": SCORES}, trained=False, **facts)
    assert first.items() >= facts.items()  # there was none
    perfect = score({"a": "one"}, {"a": "one"})
    tests = {"32 frames": SCORES, "valid": perfect}
    second = write_results(path, tests, trained=False, device="cpu", skipped_steps=0)
    assert strict(path.read_text()) == second
    made_by = {"command": command(), "commit": commit()}
    assert second.pop("tests") == {
        "16 frames": first["tests"]["16 frames"],
        "valid": first["tests"]["valid"] | {"wer": 0.0, "cer": 0.0, "substitutions": 0,
                                            "deletions": 0, "words": 1, "utterances": 1} | made_by,
        "32 frames": first["tests"]["16 frames"] | made_by,
    }  # fmt: skip
    assert second == {key: value for key, value in first.items() if key != "tests"}
    # By the command of the training: its own tests.
    write_results(path, {"valid": SCORES}, command=command())
    again = write_results(path, {"valid": perfect}, trained=False)["tests"]
    assert "command" not in again["valid"] and again["valid"]["wer"] == 0
    # Training that goes on makes other weights.
    assert list(write_results(path, {"valid": SCORES})["tests"]) == ["valid"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tests": None}, "tests must be names and scores, got None"),
        ({"tests": ["test"]}, "tests must be names and scores, got ['test']"),
        ({"tests": {"a": 5}}, "tests: a must be keys and values, got 5"),
        ({"tests": {"a": {"cer": 1}}}, "tests: a: the key 'wer' is missing"),
        ({"tests": {"a": {"wer": "2.1"}}}, "tests: a: wer must be a number, at least 0, got '2.1'"),
        ({"tests": {"a": {"wer": 1, "cer": True}}}, "tests: a: cer must be a number"),
        ({"tests": {"a": {"wer": 1, "command": 5}}}, "tests: a: command must be a command line"),
        ({"train_seconds": "60"}, "train_seconds must be a number, at least 0, got '60'"),
        ({"params": []}, "params must be a number"),
        ({"peak_memory_bytes": -1}, "peak_memory_bytes must be a number"),
        ({"processes": "2"}, "processes must be a number"),
        ({"command": None}, "command must be a command line, got None"),
        ({"command": ["train.py"]}, "command must be a command line, got ['train.py']"),
        ({"command": "train.py 'a"}, "command must be a command line, got"),
        ("[]", "not the results of a run"),
        ('{"tests": {}}', "not the results of a run"),
        ("{", "not JSON (Expecting property name"),
        ("[" * 100_000, "not JSON ("),
        (b"\xff", "not JSON ("),
        ('{"tests": {"a": {"wer": NaN}}, "command": ""}', "not JSON (NaN is none of its numbers)"),
    ],
)
def test_malformed_results(tmp_path, change, message):
    path = tmp_path / "r.json"
    content = {"tests": {"test": {"wer": None}}, "command": "train.py", "processes": None}
    path.write_text(json.dumps(content))
    assert read(path, ("wer",)) == content
    if isinstance(change, dict):
        change = json.dumps(content | change)
    path.write_bytes(change if isinstance(change, bytes) else change.encode())
    with pytest.raises(InputError) as caught:
        read(path, ("wer",))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).endswith("; remove it to have it made anew")
    assert "\n" not in str(caught.value)


def test_results_that_cannot_be_added_to(tmp_path):
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(InputError, match="r.json: not JSON"):
        write_results(tmp_path / "r.json", {"test": SCORES}, trained=False)
    write_results(tmp_path / "r.json", {"test": SCORES})
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path)


def test_unknown_facts_are_null_and_given_ones_win(tmp_path):
    read = write_results(tmp_path / "r.json", {}, peak_memory_bytes=5, command="x", threads=3)
    assert read["params"] is None and read["device"] is None
    assert (read["peak_memory_bytes"], read["command"], read["threads"]) == (5, "x", 3)


def test_values_that_json_cannot_hold(tmp_path):
    path = tmp_path / "r.json"
    silent = score({"a": ""}, {"a": "x"})
    write_results(
        path,
        {"silence": silent},
        params=np.int64(3),
        train_seconds=torch.tensor(1.5),
        device=torch.device("cpu"),
        limits=(1, float("inf")),
    )
    read = strict(path.read_text())
    assert read["tests"]["silence"]["wer"] is None
    assert read["tests"]["silence"]["insertions"] == 1
    assert (read["params"], read["train_seconds"], read["device"]) == (3, 1.5, "cpu")
    assert read["limits"] == [1, None]


def test_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    old = write_results(path, {"test": SCORES})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(path, {"other": SCORES})
    assert strict(path.read_text()) == old
    assert list(tmp_path.iterdir()) == [path]


def test_peak_memory_is_in_bytes():
    before = peak_memory_bytes()
    held = np.ones(before + 2**26, dtype=np.uint8)
    assert peak_memory_bytes() >= held.nbytes
    assert peak_memory_bytes() < 20 * held.nbytes


@pytest.mark.parametrize("platform, unit", [("linux", 1024), ("darwin", 1)])
def test_peak_memory_knows_the_units_of_the_system(monkeypatch, platform, unit):
    class Usage:
        ru_maxrss = 1000

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(resource, "getrusage", lambda _: Usage)
    assert peak_memory_bytes() == 1000 * unit


@pytest.mark.parametrize("used", [True, False])
def test_peak_memory_is_the_gpus_when_one_was_used(monkeypatch, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: [0, 123][device])
    assert (peak_memory_bytes() == 123) == used


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_a_gpu():
    held = torch.ones(2**20, device="cuda")
    assert peak_memory_bytes() == torch.cuda.max_memory_allocated() >= 4 * held.numel()


def test_table_converts_units_and_aligns(tmp_path):
    silent = score({"a": ""}, {"a": "x"})
    read = write_results(
        tmp_path / "r.json",
        {"test-other": SCORES, "dev": silent},
        params=28_850_000,
        train_seconds=5430,
        peak_memory_bytes=13_460_000_000,
    )
    lines = table(read).splitlines()
    assert lines[0] == "test        WER %  CER %  params M  minutes  peak GB"
    assert lines[1].split() == ["test-other", "50.00", f"{SCORES.cer:.2f}", "28.9", "90.5", "13.46"]
    assert lines[2].split() == ["dev", "-", "-", "28.9", "90.5", "13.46"]
    assert len({len(line) for line in lines}) == 1


def test_table_without_facts():
    lines = table({"tests": {"t": {"wer": math.nan, "cer": 1}}}).splitlines()
    assert lines[1].split() == ["t", "-", "1.00", "-", "-", "-"]


def test_examples_are_spread_over_the_ids():
    references = {f"speaker{i // 10}-{i:02}": "one two" for i in reversed(range(30))}
    hypotheses = dict.fromkeys(references, "one")
    shown = examples(references, hypotheses, n=3)
    titles = [line for line in shown.splitlines() if not line.startswith(" ")]
    assert titles == [f"speaker{k}-{k}0: WER 50.0 %" for k in range(3)]
    assert shown.splitlines()[1:3] == ["  REF: one two", "  HYP: one"]


def test_examples_of_few_and_of_empty_utterances():
    shown = examples({"a": "", "b": "x"}, {"a": "y", "b": ""}, n=5)
    assert shown.splitlines() == [
        "a: no reference words",
        "  REF:",
        "  HYP: y",
        "b: WER 100.0 %",
        "  REF: x",
        "  HYP:",
    ]
    with pytest.raises(InputError, match="b without a hypothesis"):
        examples({"b": "x"}, {})
