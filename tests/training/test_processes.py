"""Two processes against one: the same data, weights, and word error rate; and how they end."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from summarymixing.errors import InputError
from summarymixing.files import alone_in
from summarymixing.training.experiment import begin, run
from summarymixing.training.preemption import EXIT_STATUS
from summarymixing.training.seq2seq import CTCAttentionBrain

SCRIPT = str(Path(__file__).with_name("two_processes.py"))
OPTIONS = {
    "precision": "fp32",
    "batch_seconds": 4,
    "max_batch_utterances": 2,
    "number_of_epochs": 7,
    "valid_search_interval": 7,
    "lr": 0.01,
    "warmup_steps": 2,
    "dropout": 0.0,
    "threads": 1,
    "test_beam_size": 1,
    # A bias of attention keys has no gradient but rounding, which Adam would make steps of, and how
    # much there is depends on the processor.
    "opt_class": "{eps: 0.01}",
}


@pytest.fixture(scope="module")
def start():
    def start(command, processes, group=False, **environment):
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += [f"--nproc_per_node={processes}"]
        return subprocess.Popen(
            [*launcher, SCRIPT, *command, "--distributed_backend=gloo"],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=group,
        )

    return start


@pytest.fixture(scope="module")
def trained(start, corpus, tiny_command, tmp_path_factory):
    """Folders of the same training on one process and on two."""
    folder = tmp_path_factory.mktemp("processes")
    runs = {}
    for processes in (1, 2):
        options = OPTIONS | {"grad_accumulation_factor": 4 // processes}
        command = tiny_command(corpus, folder / str(processes), **options)
        runs[processes] = start(command, processes)
    for process in runs.values():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return {processes: folder / str(processes) for processes in runs}


def seen(folder):
    notes = [
        json.loads(line)
        for file in folder.glob("seen_*.txt")
        for line in file.read_text().splitlines()
    ]
    return {
        epoch: sorted(name for number, ids in notes if number == epoch for name in ids)
        for epoch in range(1, 8)
    }


def test_every_utterance_once_an_epoch(trained):
    alone, together = seen(trained[1]), seen(trained[2])
    assert alone == together
    for names in together.values():
        assert len(names) == len(set(names)) == 11
    assert (trained[2] / "seen_1.txt").exists()


def test_the_same_weights_after_21_steps(trained):
    parts = [max((trained[n] / "save").glob("CKPT*")) for n in (1, 2)]
    for part in parts:
        assert "optimizer_step: 21\n" in (part / "brain.ckpt").read_text()
    ours, theirs = (torch.load(part / "model.ckpt") for part in parts)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_same_validation_and_word_error_rate(trained):
    results = [json.loads((trained[n] / "results.json").read_text())["tests"] for n in (1, 2)]
    assert results[0] == results[1]
    curves = []
    for processes in (1, 2):
        with open(trained[processes] / "curve.csv") as file:
            curves.append(list(csv.DictReader(file)))
    for alone, together in zip(*curves, strict=True):
        for key in ("valid_loss", "valid_accuracy", "valid_wer", "valid_cer", "step"):
            if alone[key]:
                assert float(alone[key]) == pytest.approx(float(together[key]), rel=1e-5)


@pytest.mark.parametrize(
    ("fails", "expected"),
    [("0", "error: u-17 cannot"), ("1", "error: u-17 cannot"), ("1!", "ZeroDivisionError: a bug")],
)
def test_a_process_that_fails_ends_all_with_its_error(
    start, corpus, tiny_command, tmp_path, fails, expected
):
    command = tiny_command(corpus, tmp_path / "run", **OPTIONS)
    process = start(command, 2, FAILS_ON=fails)
    _, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    assert expected in errors
    assert "Connection closed" not in errors.split(expected)[0]


def wait_for_training(folder, process):
    until = time.monotonic() + 120
    while not (folder / "seen_0.txt").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


def test_sigterm_saves_and_says_so(start, corpus, tiny_command, tmp_path):
    folder = tmp_path / "run"
    command = tiny_command(corpus, folder, **OPTIONS | {"number_of_epochs": 1000})
    process = start(command, 1)
    wait_for_training(folder, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STATUS
    assert "goes on from here" in errors
    newest = max((folder / "save").glob("CKPT*"))
    assert "optimizer_step: 0" not in (newest / "brain.ckpt").read_text()


def test_sigterm_to_one_of_two_ends_both_after_one_save(start, corpus, tiny_command, tmp_path):
    folder = tmp_path / "run"
    command = tiny_command(corpus, folder, **OPTIONS | {"number_of_epochs": 1000})
    process = start(command, 2)
    wait_for_training(folder, process)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to its processes
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list((folder / "save").glob("CKPT*"))
    assert not list((folder / "save").glob(".unfinished*"))


def test_sigterm_to_all_processes_of_a_run_with_data_workers(start, corpus, tiny_command, tmp_path):
    """As `kill -- -GROUP` and some clusters send it: batches still come, and the run saves."""
    folder = tmp_path / "run"
    options = OPTIONS | {"number_of_epochs": 1000, "num_workers": 2}
    process = start(tiny_command(corpus, folder, **options), 1, group=True)
    wait_for_training(folder, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STATUS, errors
    assert (folder / "preempted").exists()
    assert list((folder / "save").glob("CKPT*"))


def test_sigterm_while_it_tests(corpus, tiny, tmp_path, monkeypatch, capsys):
    """All is trained and saved: it ends at once, and is still to be started again."""
    folder = tmp_path / "run"

    def score(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(CTCAttentionBrain, "score", score)
    with pytest.raises(SystemExit) as caught:
        run(CTCAttentionBrain, tiny(corpus, folder, number_of_epochs=1))
    assert caught.value.code == EXIT_STATUS and "goes on from here" in capsys.readouterr().err
    assert (folder / "preempted").exists() and not (folder / "results.json").exists()
    monkeypatch.undo()
    assert run(CTCAttentionBrain, tiny(corpus, folder, number_of_epochs=1))["tests"]
    assert not (folder / "preempted").exists()


def test_two_runs_in_one_folder(start, corpus, tiny, tiny_command, tmp_path):
    folder = tmp_path / "run"
    process = start(tiny_command(corpus, folder, **OPTIONS | {"number_of_epochs": 1000}), 1)
    wait_for_training(folder, process)
    with pytest.raises(
        InputError, match=f"^{folder}: another run is at work in this output_folder"
    ):
        run(CTCAttentionBrain, tiny(corpus, folder, **OPTIONS | {"number_of_epochs": 1000}))
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Nothing of it is left that would keep another from going on, data workers included.
    with alone_in(folder, inherited=False):
        pass


def test_more_processes_than_gpus(tiny_command, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InputError, match="^2 processes, .* 1 GPUs .*--distributed_backend=gloo"):
        begin(tiny_command(corpus, tmp_path / "run"), [], None)
