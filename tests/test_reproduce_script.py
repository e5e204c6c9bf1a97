"""scripts/reproduce.py over a stub recipe, and over a tiny real one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from summarymixing.files import alone_in
from summarymixing.training import tables
from summarymixing.training.preemption import EXIT_STATUS

ROOT = Path(__file__).parents[1]
STUB = """
import json, os, pathlib, shlex, sys, time

options = dict(argument[2:].split("=", 1) for argument in sys.argv[2:] if "=" in argument)
folder = pathlib.Path(options["output_folder"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "seen.txt", "a") as file:
    print(*sys.argv[1:], os.environ.get("WORLD_SIZE", 1), file=file)
if options["width"] == "3" and not os.path.exists(options["data_folder"] + "/mended"):
    sys.exit("error: width: 3 is too narrow")
if options["width"] == "8":
    for piece in ("ValueError: ", "eight is enough", "\\n"):  # as a traceback is written
        sys.stderr.write(piece)
        time.sleep(0.3)
    sys.exit(1)
if options["width"] == "6":
    os.kill(os.getpid(), 9)
if options["width"] == "4":
    (folder / "process").write_text(str(os.getpid()))
    (folder / "curve.csv").write_text("epoch,loss\\n7,1.0\\n")
    time.sleep(60)
path = folder / "results.json"
tests = json.loads(path.read_text())["tests"] if path.exists() else {}
name = "test" + ("_chunk16" if "test_chunk_size" in options else "")
wer = int(options["width"]) + int(options["seed"]) / 10 - float(options.get("lm_weight", 0))
facts = {"command": shlex.join(sys.orig_argv)}
tests[name] = {"wer": wer, **(facts if "--test_only" in sys.argv else {})}
if options["width"] == "9":
    pathlib.Path(options["output_folder"], "../../stub.md").mkdir()
    tests = 5
if os.environ.get("RANK", "0") == "0":
    facts = json.loads(path.read_text()) if path.exists() else facts
    path.write_text(json.dumps(facts | {"tests": tests, "train_seconds": 60}))
"""


@pytest.fixture
def reproduce(tmp_path, load_script, capsys, monkeypatch):
    (tmp_path / "train.py").write_text(STUB)
    (tmp_path / "recipe.yaml").write_text("{}")
    table = {
        "title": "Stub",
        "script": str(tmp_path / "train.py"),
        "recipe": str(tmp_path / "recipe.yaml"),
        "tests": {"test": "test", "test_chunk16": "in chunks"},
        "decode": {"_chunk16": {"test_chunk_size": 16}},
        "seeds": [1, 2],
        "rows": [{"name": f"of {w}", "options": {"width": w}, "published": {"test": w}}
                 for w in (2, 3, 5)],
    }  # fmt: skip

    def command(*options, **changes):
        (tmp_path / "stub.yaml").write_text(json.dumps(table | changes))  # which is YAML, too
        script = str(ROOT / "scripts" / "reproduce.py")
        table_path = str(tmp_path / "stub.yaml")
        out = [] if any(o.startswith("--out=") for o in options) else [f"--out={tmp_path}/out"]
        return [sys.executable, script, table_path, *out, *options]

    script = load_script("reproduce")
    monkeypatch.setattr(script, "WAIT", 0.05)

    def run(*options, **changes):
        capsys.readouterr()
        status = 0
        try:
            script.main(command(*options, **changes)[2:])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    run.command, run.script = command, script
    return run


def seen(folder):
    return (folder / "seen.txt").read_text().splitlines()


def test_a_failing_row_loses_no_others_and_is_tried_again(reproduce, tmp_path):
    status, out, err = reproduce(f"--data_folder={tmp_path}", "--jobs=2", "--lm_file=lm.pt")
    assert status == 1, err
    assert "2 of 6 runs failed" in err
    assert "of 3, seed 1: width: 3 is too narrow" in err
    lines = (tmp_path / "out" / "stub.md").read_text().splitlines()
    assert lines[4].startswith("| of 2 | - | 2.00 | 2.15 ± 0.64 | 2.15 ± 0.64 |")
    assert lines[4].endswith("| 2 |") and lines[5].endswith("| not run |")
    for line in lines[:7]:
        assert line in out
    assert (tmp_path / "out" / "stub.png").exists()
    trained, tested = seen(tmp_path / "out" / "of_5" / "2")
    assert "--width=5 --seed=2" in trained and "--lm_file=lm.pt" in trained
    assert "--test_only --test_chunk_size=16" in tested
    assert "is too narrow" in (tmp_path / "out" / "logs" / "of_3_1.log").read_text()

    (tmp_path / "mended").touch()
    options = [f"--data_folder={tmp_path}", "--lm_file=lm.pt"]
    listed = reproduce(*options, "--commands")[1].splitlines()
    assert len(listed) == 2 and all("--width=3" in line for line in listed)
    status, _, err = reproduce(*options, "--jobs=2")
    assert status == 0, err
    with open(tmp_path / "out" / "stub.csv") as file:
        assert [row["test_wer_values"] for row in csv.DictReader(file)] == [
            "2.1 2.2", "3.1 3.2", "5.1 5.2",
        ]  # fmt: skip
    assert len(seen(tmp_path / "out" / "of_5" / "2")) == 2  # what was done was not done again


def test_the_table_is_whole_whatever_is_chosen_of_it(reproduce, tmp_path):
    options = [f"--data_folder={tmp_path}", "--rows", "of 5", "--seeds", "7"]
    status, out, err = reproduce(*options, tests={"test": "test", "valid": "dev"})
    assert status == 0, err
    assert err.endswith(
        "\nnote: no run has the test set 'valid' of the table; there are test, test_chunk16\n"
    )
    assert len(list((tmp_path / "out").glob("*/*/seen.txt"))) == 1
    status, again, err = reproduce("--collect")
    written = (tmp_path / "out" / "stub.md").read_text()
    for text, seeds in ((out, "1"), (again, "1 of 3"), (written, "1 of 3")):
        rows = [line for line in text.splitlines() if line.startswith("| of ")]
        assert [row.split(" | ")[-1] for row in rows] == ["not run |", "not run |", f"{seeds} |"]


def test_what_is_trained_is_tested_again_with_a_language_model(reproduce, tmp_path):
    def reproduced(*options):
        rows = [{"name": name, "options": {"width": 5}} for name in "AB"]
        return reproduce("--seeds=7", *options, rows=rows, decode={}, tests={"test": "test"})

    corpus, lm = f"--data_folder={tmp_path}", "--lm_weight=2"
    assert reproduced(corpus)[0] == 0
    status, out, err = reproduced(corpus, lm, "--rows", "A")
    assert status == 0, err
    left_out = "note: left out, as tested with another lm_weight: {} then, {} now: {}, seed 7\n"
    assert "| A | - | 3.70 |" in out and "| B | - | - |" in out
    assert err.endswith(left_out.format("not given", 2, "B"))
    trained, tested = seen(tmp_path / "out" / "A" / "7")
    assert "--test_only" not in trained and f"{lm} --test_only" in tested
    status, out, err = reproduced("--collect")
    assert "| A | - | - |" in out and "| B | - | 5.70 |" in out
    assert err == left_out.format(2, "not given", "A")
    assert "| A | - | 3.70 |" in reproduced("--collect", lm)[1]


def test_another_corpus_is_told_of(reproduce, tmp_path):
    def reproduced(*options):
        return reproduce("--seeds=1", *options, rows=rows, decode={}, tests={"test": "test"})

    rows = [{"name": "A", "options": {"width": 2}}]
    assert "note" not in reproduced(f"--data_folder={tmp_path}")[2]
    status, _, err = reproduced("--data_folder=.")
    assert status == 0 and f"note: done with --data_folder={tmp_path}: A, seed 1\n" in err
    assert "note" not in reproduced("--collect")[2]


def test_what_was_trained_with_other_options_is_refused(reproduce, tmp_path):
    def reproduced(*options, width=2):
        rows = [{"name": name, "options": {"width": w}} for name, w in (("A", 5), ("B", width))]
        options = [f"--data_folder={tmp_path}", "--seeds=7", *options]
        return reproduce(*options, rows=rows, decode={}, tests={"test": "test"})

    assert reproduced()[0] == 0
    refused = f"error: {tmp_path}/out/B/7: trained with another width: 2 then, 3 now; choose"
    for options in (["--rows", "A"], ["--commands"], ["--collect"], []):
        status, _, err = reproduced(*options, width=3)
        assert status == 2 and err.startswith(refused) and err.count("\n") == 1
    assert "depth: not given then, 8 now" in reproduced("--depth=8")[2]
    assert len(seen(tmp_path / "out" / "B" / "7")) == 1
    assert reproduced("--device=cpu")[0] == 0


def test_a_failure_is_explained_by_what_it_said_itself(reproduce, tmp_path):
    for width, why in ((3, "width: 3 is too narrow ("), (6, "ended by SIGKILL, without a word (")):
        rows = [{"name": "A", "options": {"width": width}}]
        status, _, err = reproduce(f"--data_folder={tmp_path}", "--seeds=1", rows=rows)
        assert status == 1
        assert f"A, seed 1: {why}" in err.splitlines()[-1]


def test_a_file_that_cannot_be_written_stops_no_other_training(reproduce, tmp_path):
    rows = [{"name": f"of {w}", "options": {"width": w}} for w in (9, 2, 5)]
    (tmp_path / "out" / "logs" / "of_2_1.log").mkdir(parents=True)
    (tmp_path / "out" / "of_5" / "1").mkdir(parents=True)
    (tmp_path / "out" / "of_5" / "1" / "curve.csv").write_bytes(b"epoch\n\xff\n")
    table = {"rows": rows, "decode": {}, "tests": {"test": "test"}}
    status, _, err = reproduce(f"--data_folder={tmp_path}", "--seeds=1", **table)
    assert status == 2
    results = tmp_path / "out" / "of_9" / "1" / "results.json"
    *_, title, first, second, last = err.splitlines()
    assert title == "error: 2 of 3 runs failed:"
    assert first == "  of 9, seed 1: " + last.removeprefix("error: ")
    assert first.startswith(f"  of 9, seed 1: {results}: tests must be names and scores")
    assert second.startswith("  of 2, seed 1: ") and "Is a directory" in second
    assert len(seen(tmp_path / "out" / "of_5" / "1")) == 1

    results.unlink()
    status, _, err = reproduce("--collect", **table)
    assert status == 2 and err == f"error: {tmp_path}/out/stub.md: Is a directory\n"
    (tmp_path / "out" / "stub.md").rmdir()
    assert "| of 5 | - | 5.10 |" in reproduce("--collect", **table)[1]


def test_wrong_hypotheses_are_told_of_before_a_training(reproduce, tmp_path):
    table = {"rows": [{"name": "A", "options": {"width": 2}}], "decode": {}}
    assert reproduce(f"--data_folder={tmp_path}", "--seeds=1", **table)[0] == 0
    folder = tmp_path / "out" / "A" / "1"
    (folder / "manifests").mkdir()
    (folder / "manifests" / "test.csv").write_text("ID,wrd\na,one\n")
    (folder / "hypotheses_test.txt").write_text("a one\n")
    status, _, err = reproduce(f"--data_folder={tmp_path}", "--seeds=2", **table)
    assert status == 2 and "its wer is 0.0, and that of results.json 2.1" in err
    assert not (tmp_path / "out" / "A" / "2").exists()


@pytest.mark.parametrize("content", (b"epoch\n\xff\n", b"epoch\n" + b"1" * 200_000, b"a", None))
def test_a_curve_that_cannot_be_shown(reproduce, tmp_path, content):
    run = tables.Run("A", 1, tmp_path, [], {}, "wer")
    if content is not None:
        (tmp_path / "curve.csv").write_bytes(content)
    assert reproduce.script._where(run) == "A, seed 1"


def test_several_processes(reproduce, tmp_path):
    table = {"rows": [{"name": "A", "options": {"width": 2}}], "decode": {}}
    status, _, err = reproduce(f"--data_folder={tmp_path}", "--gpus=2", "--seeds=7", **table)
    assert status == 0, err
    lines = seen(tmp_path / "out" / "A" / "7")
    assert len(lines) == 2 and all("--seed=7 " in line and line.endswith(" 2") for line in lines)


def test_what_a_process_said_before_torchrun(reproduce, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    table = {"rows": [{"name": "A", "options": {"width": 8}}], "decode": {}}
    status, _, err = reproduce(f"--data_folder={tmp_path}", "--gpus=2", "--seeds=7", **table)
    assert status == 1
    assert "A, seed 7: ValueError: eight is enough (" in err.splitlines()[-1]


def test_results_that_do_not_come(reproduce, tmp_path):
    table = {"rows": [{"name": "A", "options": {"width": 2}}]}
    table["decode"] = {"_left2": {"test_left_context": 2}}
    status, _, err = reproduce(f"--data_folder={tmp_path}", "--seeds=7", **table)
    assert status == 1
    assert "A, seed 7: it ended without the results that it is for" in err


def _as_in_a_terminal():
    """Tests may themselves run behind nohup or in the background, where signals are ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


SLOW = [{"name": "slow", "options": {"width": 4}}]


@pytest.fixture
def slow(reproduce, tmp_path):
    """The command in a process of its own, while its training is on; and the training's number."""
    command = reproduce.command(f"--data_folder={tmp_path}", "--seeds=1", rows=SLOW)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=_as_in_a_terminal
    )
    curve = tmp_path / "out" / "slow" / "1" / "curve.csv"
    limit = time.monotonic() + 60
    while not curve.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    training = int((curve.parent / "process").read_text())
    yield process, training
    process.kill()
    with suppress(ProcessLookupError):
        os.kill(training, signal.SIGKILL)


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
def test_stopped_with_its_trainings(slow, number):
    process, training = slow
    time.sleep(1)  # for a look at it
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == EXIT_STATUS
    assert "slow, seed 1: epoch 7" in errors
    assert "the same command goes on" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)


def test_what_nohup_started_outlives_its_terminal(reproduce, tmp_path):
    script, before = reproduce.script, signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with script.ended_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_training_that_is_left_behind_keeps_others_out(reproduce, slow, tmp_path):
    process, training = slow
    refused = f"error: {tmp_path}/out: another process is at work in this folder, this command or a"
    status, _, err = reproduce(f"--data_folder={tmp_path}", "--seeds=1")
    assert status == 2 and err.startswith(refused) and err.count("\n") == 1
    process.kill()
    process.communicate()
    status, _, err = reproduce(f"--data_folder={tmp_path}", "--seeds=1")
    assert status == 2 and err.startswith(refused)
    assert reproduce("--collect")[0] == 0  # looks only
    os.kill(training, signal.SIGKILL)
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        with suppress(BlockingIOError), alone_in(tmp_path / "out"):
            break
        time.sleep(0.05)
    rows = [{"name": "of 2", "options": {"width": 2}}]
    status, _, err = reproduce(f"--data_folder={tmp_path}", "--seeds=1", rows=rows)
    assert status == 0, err


def test_no_folder_for_results(reproduce, tmp_path):
    (tmp_path / "out" / ".lock").mkdir(parents=True)
    status, _, err = reproduce(f"--data_folder={tmp_path}")
    assert status == 2 and err == f"error: {tmp_path}/out/.lock: Is a directory\n"
    (tmp_path / "out" / ".lock").rmdir()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("")
    status, _, err = reproduce(f"--data_folder={tmp_path}")
    assert status == 2 and err == f"error: {tmp_path}/out/of_2/1/results.json: Not a directory\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--data_folder is required"),
        (["--data_folder=x", "--gpus=0"], "--gpus must be at least 1"),
        (["--data_folder=x", "--rows", "of 9"], "no row 'of 9'; known are of 2; of 3; of 5"),
        (["--data_folder=x", "second"], "second: one table at a time"),
        (["--data_folder=x", "--seed=7"], "--seed is of each training: give --seeds"),
        (["--data_folder=x", "--output_folder", "y"], "--output_folder is of each training: give"),
        (["--data_folder=x", "--lr=1", "--lr", "2"], "--lr is given twice"),
        (["--data_folder=x", "--data_folder=y"], "--data_folder is given twice"),
        (["--data_folder=x", "--jobs=1", "--jobs", "2"], "--jobs is given twice"),
        (["--data_folder=x", "--width=5"], "--width is what the rows of this table differ in"),
        (["--data_folder=x", "--dry_run"], "--dry_run is for one training: --commands prints them"),
        (["--data_folder=x", "--test_only"], "--test_only is for one training"),
        (
            ["--data_folder=x", "--test_chunk_size=8"],
            "--test_chunk_size is what the tests of this table differ in",
        ),
        (["--data_folder=/none"], "--data_folder=/none: No such file or directory"),
        (["--data_folder="], "--data_folder=: No such file or directory"),
        (["--data_folder=empty"], "--data_folder=empty: there is nothing in it"),
        (["--collect", "--commands"], "not allowed with argument"),
        (["--collect", "--out=/proc/none"], "error: /proc/none"),
    ],
)
def test_mistakes(reproduce, tmp_path, monkeypatch, options, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    status, _, err = reproduce(*options)
    assert status == 2
    assert message in err.splitlines()[-1]


def test_lists_may_be_given_in_parts(reproduce, tmp_path):
    options = ["--rows", "of 2", "--rows=of 5", "--seeds=3", "--seeds", "4", "--commands"]
    lines = reproduce(f"--data_folder={tmp_path}", *options)[1].splitlines()
    wanted = [(width, seed) for seed in (3, 4) for width in (2, 5)]
    assert len(lines) == 4
    for line, (width, seed) in zip(lines, wanted):
        assert f"--width={width}" in line and f"--seed={seed}" in line


def test_a_corpus_may_be_one_table(reproduce, tmp_path):
    (tmp_path / "all.csv").touch()
    assert reproduce(f"--data_folder={tmp_path}/all.csv", "--rows=of 2", "--seeds=1")[0] == 0


@pytest.mark.parametrize("option", ("attention_type=none", "mode=SummaryMixing", "variant=rope"))
def test_what_variants_of_rows_differ_in(load_script, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        load_script("reproduce").main(["an4", f"--data_folder={tmp_path}", f"--{option}"])
    name = option.partition("=")[0]
    assert f"error: --{name} is what the rows of this table differ in" in capsys.readouterr().err


def test_no_such_table(load_script, capsys):
    with pytest.raises(SystemExit):
        load_script("reproduce").main(["an5", "--data_folder=x"])
    assert "there is no table 'an5'; known are" in capsys.readouterr().err


def test_a_real_recipe(tiny, corpus, tmp_path, reproduce):
    recipe, *options = tiny(corpus, tmp_path / "unused", threads=1)
    options = [o for o in options if "folder" not in o and "beam_size" not in o]
    rows = [{"name": "tiny", "published": {"test-synthetic": 8.47}}]
    changes = {"recipe": recipe, "script": str(ROOT / "recipes" / "Mini" / "train.py")}
    changes |= {"rows": rows, "tests": {"test-synthetic": "test"}, "decode": {}, "seeds": [5]}
    status, _, err = reproduce(f"--data_folder={corpus}", *options, **changes)
    assert status == 0, err
    results = json.loads((tmp_path / "out" / "tiny" / "5" / "results.json").read_text())
    assert (results["seed"], results["processes"]) == (5, 1)
    with open(tmp_path / "out" / "stub.csv") as file:
        (row,) = csv.DictReader(file)
    scores = results["tests"]["test-synthetic"]
    assert float(row["test-synthetic_wer"]) == scores["wer"]
    low, high = (float(row[f"test-synthetic_wer_speakers_{end}"]) for end in ("low", "high"))
    assert low <= scores["wer"] <= high
    assert float(row["minutes"]) * 60 == pytest.approx(results["train_seconds"])
    assert os.path.getsize(tmp_path / "out" / "stub.png") > 1000

    options += [f"--data_folder={corpus}", "--test_beam_size=2"]
    status, _, err = reproduce(*options, **changes)
    assert status == 0, err
    again = json.loads((tmp_path / "out" / "tiny" / "5" / "results.json").read_text())
    tested = again.pop("tests")["test-synthetic"]["command"]
    assert "--test_only" in tested and "--test_beam_size=2" in tested
    assert again.items() <= results.items()  # not trained again
    assert reproduce(*options, "--commands", **changes)[1] == ""


@pytest.mark.parametrize(
    ("visible", "jobs", "gpus", "expected"),
    [
        (None, 2, 1, ["0", "1"]),
        (None, 2, 2, ["0,1", "2,3"]),
        ("5,7", 2, 1, ["5", "7"]),
        ("5", 2, 1, ["5", "5"]),  # shared
        (None, 1, 2, [None]),
        ("5", 2, 2, ["5"]),  # torchrun says that there are too few
    ],
)
def test_trainings_at_the_same_time_have_gpus_of_their_own(
    reproduce, tmp_path, monkeypatch, visible, jobs, gpus, expected
):
    count = len(visible.split(",")) if visible else 4
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen, begin = [], subprocess.Popen

    def popen(line, **options):
        seen.append(options["env"].get("CUDA_VISIBLE_DEVICES"))
        return begin([sys.executable, *line[line.index(str(tmp_path / "train.py")) :]], **options)

    monkeypatch.setattr("subprocess.Popen", popen)
    options = [f"--data_folder={tmp_path}", f"--jobs={jobs}", f"--gpus={gpus}"]
    status, _, err = reproduce(*options, "--rows", "of 2")
    assert status == 0, err
    assert set(seen) == set(expected)
