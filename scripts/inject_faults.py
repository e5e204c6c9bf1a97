#!/usr/bin/env python3
"""Kills a small real training over and over, and compares what it ends with, bit by bit.

    python scripts/inject_faults.py --kills=30 --processes=1

One training runs undisturbed. The same one, in another folder, is killed (SIGKILL, all of its
processes) at random moments; a third is killed at every operation on a file of its checkpoints,
one after the other. Each goes on from what it finds. In the end the weights, the optimizer, the
normalisation, the counters, the learning curve and the hypotheses have to be the same. The
training has dropout, SpecAugment, speed perturbation, dynamic batches in two data workers,
accumulation of gradients over 4 batches, and a checkpoint every step. (What torch writes from C++
is no operation that is noticed: its files are opened and finished between two that are.)
"""

import argparse
import csv
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from summarymixing.dataio import synthetic
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.training import experiment
from summarymixing.training.seq2seq import CTCAttentionBrain

RECIPE = Path(__file__).parents[1] / "recipes/Mini/hparams/branchformer_summarymixing.yaml"
OPTIONS = {
    "number_of_epochs": 3,
    "output_neurons": 45,
    "d_model": 16,
    "nhead": 2,
    "encoder_nhead": 1,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_ffn": 16,
    "csgu_linear_units": 16,
    "cnn_channels": 4,
    "dropout": 0.2,
    "warmup_steps": 2,
    "lr": 0.01,
    "batch_seconds": 4,
    "max_batch_utterances": 2,
    "num_workers": 2,
    "grad_accumulation_factor": 4,
    "ckpt_interval_steps": 1,
    "avg_checkpoints": 2,
    "hop_length": 10,
    "test_beam_size": 2,
    "test_search": "{max_decode_ratio: 0.1}",
    "threads": 1,
    "precision": "bf16",
}


class Training:
    """A training in forked processes: torch is imported once, not at every start."""

    def __init__(self, corpus, folder, processes):
        self.folder, self.processes = folder, processes
        options = OPTIONS | {"data_folder": corpus, "output_folder": folder}
        self.command = [str(RECIPE), "--noprogressbar", "--distributed_backend=gloo"]
        self.command += [f"--{key}={value}" for key, value in options.items()]

    def start(self, kill_at=None):
        """Process ids; `kill_at`: the main one kills itself at this operation on its files."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [self._fork(rank, port, kill_at) for rank in range(self.processes)]

    def _fork(self, rank, port, kill_at):
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            os.setpgid(0, 0)  # its data workers can be killed with it
            log = os.open(f"{self.folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if self.processes > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self.processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            if kill_at is not None and rank == 0:
                self._kill_at(kill_at)
            with said_in_one_line():
                experiment.run(CTCAttentionBrain, self.command)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(status)

    def _kill_at(self, count):
        saved, seen = str(self.folder / "save"), 0

        def watch(event, arguments):
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                if str(arguments[0]).startswith(saved) and os.getpid() == os.getpgrp():
                    seen += 1
                    if seen == count:
                        os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)

    @staticmethod
    def kill(processes):
        for process in processes:
            try:
                os.killpg(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    def wait(self, processes, seconds=None):
        """Exit statuses of those that ended by themselves; None if all go on after some seconds."""
        left, statuses, until = set(processes), [], time.monotonic() + (seconds or 3600)
        while left:
            for process in list(left):
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    left.remove(process)
                    statuses.append(os.waitstatus_to_exitcode(status))
            if left and any(statuses):
                time.sleep(0.5)
                self.kill(left)  # they wait for the one that is gone
                for process in left:
                    os.waitpid(process, 0)
                return statuses
            if left and time.monotonic() > until:
                return None
            time.sleep(0.005)
        return statuses

    def failure(self):
        log = Path(f"{self.folder}.log").read_text().splitlines()
        return InputError(f"{self.folder}: a training failed: {log[-1] if log else 'no output'}")

    def end(self, processes):
        self.kill(processes)
        self.wait(processes)


def undisturbed(training):
    """Runs a training to its end; its seconds."""
    began = time.monotonic()
    if any(training.wait(training.start())):
        raise training.failure()
    return time.monotonic() - began


def training_time(folder, began):
    """When the first and the last checkpoint of an undisturbed training came, in seconds."""
    times = [path.stat().st_mtime - began for path in (folder / "save").glob("CKPT*/CKPT.yaml")]
    return (folder / "manifests").stat().st_mtime - began, max(times)


def killed_at_random(training, kills, first, last, reference):
    """Kills a training at random moments, and lets it end; what then differs from the reference."""
    done, found = 0, []
    with tqdm(desc="kills at random moments", total=kills, unit="kill") as bar:
        while done < kills:
            processes = training.start()
            statuses = training.wait(processes, random.uniform(first, last))
            if statuses is None:
                training.end(processes)
                done += 1
                bar.update()
            elif any(statuses):
                raise training.failure()
            else:  # it had ended: once more from the beginning
                found += differences(reference, training.folder)
                shutil.rmtree(training.folder)
    undisturbed(training)
    return done, found + differences(reference, training.folder)


def killed_at_operations(training, limit, stride, reference):
    """The same, killed at an operation on a checkpoint's files, the first one, then later ones."""
    done = 0
    with tqdm(desc="kills at file operations", unit="kill") as bar:
        while done != limit:
            processes = training.start(kill_at=1 + done * stride)
            statuses = training.wait(processes)
            if not any(statuses):  # fewer operations than that were left
                return done, differences(reference, training.folder)
            if -signal.SIGKILL not in statuses:
                raise training.failure()
            done += 1
            bar.update()
    undisturbed(training)
    return done, differences(reference, training.folder)


def differences(folder, other):
    """What two trainings do not have in common."""
    found = []
    ours, theirs = (max((path / "save").glob("CKPT*")) for path in (folder, other))
    for file in ("model", "optimizer", "normalizer"):
        pair = [torch.load(path / f"{file}.ckpt") for path in (ours, theirs)]
        try:
            torch.testing.assert_close(*pair, rtol=0, atol=0)
        except AssertionError as error:
            found.append(f"{file}: {' '.join(str(error).split())[:200]}")
    for file in ("brain", "counter"):
        pair = [(path / f"{file}.ckpt").read_text() for path in (ours, theirs)]
        if pair[0] != pair[1]:
            found.append(f"{file}: {pair[0]!r} and {pair[1]!r}")
    curves = []
    for path in (folder, other):
        with open(path / "curve.csv") as file:
            curves.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    if curves[0] != curves[1]:
        found.append("curve.csv")
    for path in sorted(folder.glob("hypotheses_*.txt")):
        if path.read_bytes() != (other / path.name).read_bytes():
            found.append(path.name)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="at random moments")
    parser.add_argument("--operations", type=int, help="file operations; all if not given")
    parser.add_argument("--stride", type=int, default=1, help="kill at each so many-th of them")
    parser.add_argument("--processes", type=int, default=1, help="of the training, over gloo")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--folder", type=Path, help="to work in; a temporary one if not given")
    arguments = parser.parse_args(argv)
    random.seed(arguments.seed)
    torch.set_num_threads(1)  # threads do not survive a fork
    folder = arguments.folder or Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    synthetic.make_corpus(corpus, train_minutes=0.4, valid_minutes=0.1, test_minutes=0.1, workers=2)
    trainings = [
        Training(corpus, folder / name, arguments.processes)
        for name in ("undisturbed", "killed", "killed_while_saving")
    ]
    began = time.time()
    seconds = undisturbed(trainings[0])
    first, last = training_time(trainings[0].folder, began)
    print(f"undisturbed: {seconds:.1f} s, of which it trained from {first:.1f} to {last:.1f}")
    reference, killed, while_saving = trainings
    done = {
        "at random moments": killed_at_random(
            killed, arguments.kills, first, last, reference.folder
        ),
        "at file operations": killed_at_operations(
            while_saving, arguments.operations, arguments.stride, reference.folder
        ),
    }
    failed = False
    for where, (count, found) in done.items():
        failed = failed or bool(found)
        result = "DIFFERENT: " + "; ".join(found) if found else "the same, bit by bit"
        print(f"killed {count} times {where}: {result}")
    if arguments.folder is None and not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    with said_in_one_line():
        sys.exit(main())
