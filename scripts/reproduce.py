#!/usr/bin/env python3
"""A published table reproduced: its trainings, and a table with the published numbers beside ours.

    python scripts/reproduce.py TABLE --data_folder=... [--seeds 1 2 3] [--gpus N] [--key=value ...]

TABLE is one of hparams/tables, or a YAML file such as these. What is done is not done again, and
what was stopped goes on: the same command may be started any number of times. Trainings with other
options than are asked for are refused, those of the machine aside; where only options of the tests
differ, as --lm_file, what is trained is tested again. Each training writes into a file in OUT/logs.
One that fails leaves the others to their work; it is named at the end, the exit status is 1, and
the next start tries it again. Other options are handed on to every training, as --device=cpu or
--lm_file=lm.pt. OUT gets TABLE.md, TABLE.csv and TABLE.png, of all rows, after each training.
"""

import argparse
import csv
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from summarymixing.errors import InputError, one_line, said_in_one_line
from summarymixing.files import alone_in
from summarymixing.training import curves, tables
from summarymixing.training.preemption import EXIT_STATUS

# Relative, as --out: commands in results are the same wherever the repository is.
ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))
TABLES = ROOT / "hparams" / "tables"
# Options of each training that this command gives, and by which of its own.
GIVEN_BY = {"--seed": "--seeds", "--output_folder": "--out"}
NOT_A_TRAINING = ("--dry_run", "--test_only")
WAIT = 0.5  # seconds between looks at what is running


def table_file(name):
    path = Path(name)
    if path.suffix == ".yaml":
        return path
    known = sorted(file.stem for file in TABLES.glob("*.yaml"))
    if name not in known:
        raise InputError(f"there is no table {name!r}; known are {', '.join(known)}")
    return TABLES / f"{name}.yaml"


def check_corpus(folder):
    """Raises InputError unless there is something there: every training would say so."""
    try:
        if not (os.path.isfile(folder) or os.listdir(folder)):
            raise InputError(f"--data_folder={folder}: there is nothing in it")
    except OSError as error:
        raise InputError(f"--data_folder={folder}: {error.strerror}") from None


def command(arguments, gpus):
    line = [sys.executable, *arguments]
    if gpus == 1:
        return line
    # By itself torchrun adds -u, with which lines of several processes come in pieces.
    options = ["--standalone", f"--nproc_per_node={gpus}", "--no-python"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *line]


def visible_gpus():
    """What CUDA_VISIBLE_DEVICES may name of this machine's."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


def gpus_of(slot, gpus, there):
    """Those of one of the trainings at a time, from the first; shared if there are too few."""
    return [there[(slot * gpus + number) % len(there)] for number in range(gpus)]


@contextmanager
def only_one(out):
    """Trainings have the lock as well: one that is left behind by a killed command keeps it."""
    entered = False
    try:
        with alone_in(out) as lock:
            entered = True
            yield lock
    except OSError as error:
        if entered:
            raise
        hint = ""
        if isinstance(error, BlockingIOError):
            hint = ", this command or a training left by one; fuser names the process of its .lock"
        raise InputError(f"{error.filename or out}: {error.strerror}{hint}") from None


@contextmanager
def ended_by_signals():
    """Within this, SIGTERM and a closed terminal are as a Ctrl-C, but for what nohup started."""
    numbers = [signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def train(runs, out, jobs, gpus, lock, finished):
    """Runs what is missing; returns what failed, {title: why}.

    Arguments
    ---------
    runs : list of summarymixing.training.tables.Run
    out : pathlib.Path
    jobs : int
        Trainings at the same time.
    gpus : int
        Processes of each.
    lock : int
        File descriptor that they inherit, see `only_one`.
    finished : callable
        Called after each training that ended well.
    """
    waiting = [run for run in runs if run.missing() is not None]
    failures, running, slots, begun = {}, {}, {}, []
    total, shown = len(runs), ""
    there = visible_gpus()

    def begin(run, arguments):
        begun.append(arguments)
        environment = dict(os.environ)
        environment.pop("PYTHONUNBUFFERED", None)  # as -u, see `command`
        slots[run] = min({*range(jobs)} - {slots[other] for other in running})
        if jobs > 1 and len(there) >= gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_of(slots[run], gpus, there))
        log = out / "logs" / f"{run.folder.parent.name}_{run.seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        line = command([*arguments, "--noprogressbar"], gpus)  # bars are for terminals
        with open(log, "a", encoding="utf-8") as file:
            print(shlex.join(line), file=file, flush=True)
            start = file.tell()
            # In a session of its own: a Ctrl-C reaches it as SIGTERM only, upon which it saves.
            running[run] = subprocess.Popen(
                line, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                pass_fds=[lock], env=environment,
            ), log, start  # fmt: skip

    @contextmanager
    def on_its_own(run):
        """A file of a training's that cannot be read or written is no failure of the others."""
        try:
            yield
        except (InputError, OSError) as error:
            failures[run.title] = one_line(error)
            bar.update()

    with tqdm(total=total, initial=total - len(waiting), unit="run", file=sys.stderr) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    with on_its_own(run):
                        begin(run, run.missing())
                where = "; ".join(map(_where, running))
                if where != shown:  # in a file, every one is a line
                    bar.set_postfix_str(where)
                    shown = where
                time.sleep(WAIT)
                for run, (process, log, start) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[run]
                    if process.returncode in (EXIT_STATUS, -signal.SIGTERM):
                        raise KeyboardInterrupt
                    with on_its_own(run):
                        left = run.missing() if process.returncode == 0 else None
                        if process.returncode:
                            why = _why(process.returncode, log, start)
                            failures[run.title] = f"{why} ({log})"
                        elif left in begun:
                            why = "it ended without the results that it is for"
                            failures[run.title] = f"{why} ({log})"
                        elif left is not None:
                            begin(run, left)
                            continue
                        else:
                            finished()
                        bar.update()
        except BaseException as error:
            for number in (signal.SIGTERM, signal.SIGHUP):  # they come in numbers
                signal.signal(number, signal.SIG_IGN)
            for process, *_ in running.values():
                process.terminate()
            for process, *_ in running.values():
                process.wait()
            if not isinstance(error, KeyboardInterrupt):
                raise
            with suppress(OSError):  # the terminal may be gone
                bar.close()
                print("stopped: the same command goes on from here", file=sys.stderr)
            sys.exit(EXIT_STATUS)
    return failures


def _where(run):
    """How far a training is."""
    try:
        epochs = curves.read(run.folder / "curve.csv")
    except (ValueError, csv.Error, OSError):  # it is only to be shown
        epochs = []
    return run.title + (f": epoch {epochs[-1]['epoch']}" if epochs else "")


def _why(status, log, start):
    """What a training that ended with `status` has said last, in its log from byte `start` on."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    # What torchrun says of a process that failed comes after what the process said.
    lines = itertools.takewhile(lambda line: "torch/distributed/elastic/" not in line, lines)
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    how = f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
    if status > 0 and lines:
        return (errors or lines)[-1].removeprefix("error: ")
    return f"{how}, after: {lines[-1]}" if lines else f"{how}, without a word"


class Once(argparse.Action):
    """Of an option that is given twice one would be lost."""

    def __call__(self, parser, namespace, value, option=None):
        seen = f"{self.dest} was given"
        if hasattr(namespace, seen):
            parser.error(f"{option} is given twice")
        setattr(namespace, seen, True)
        setattr(namespace, self.dest, value)


def check_given(given, rows):
    """Raises InputError for an option in which the rows differ, by their variants as well."""
    if not given:
        return
    from summarymixing.training import config  # imports SpeechBrain, which takes seconds

    values = [config.with_variants(str(ROOT / row["recipe"]), row["options"]) for row in rows]
    for option in given:
        of_rows = [of_row.get(option.removeprefix("--")) for of_row in values]
        if any(value != of_rows[0] for value in of_rows):
            raise InputError(f"{option} is what the rows of this table differ in: leave it out")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("table")
    parser.add_argument(
        "--data_folder", action=Once, help="of the corpus; required but for --collect"
    )
    parser.add_argument("--out", type=Path, action=Once, help="default: results/reproduce/TABLE")
    parser.add_argument(
        "--seeds", type=int, nargs="+", action="extend", help="to train, in place of the table's"
    )
    parser.add_argument(
        "--rows", nargs="+", action="extend", metavar="NAME", help="train only these rows"
    )
    parser.add_argument(
        "--gpus", type=int, default=1, action=Once, help="of each training, through torchrun"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        action=Once,
        help="trainings at the same time, on GPUs of their own",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--collect", action="store_true", help="only make the table of what is done")
    only.add_argument("--commands", action="store_true", help="only print what is left to run")
    arguments, options = parser.parse_known_args(argv)
    with said_in_one_line():
        path = table_file(arguments.table)
        table = tables.read(path)
        out = arguments.out or Path("results") / "reproduce" / path.stem
        for name in ("gpus", "jobs"):
            if getattr(arguments, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
        if arguments.data_folder is None and not arguments.collect:
            raise InputError("--data_folder is required: the folder of the corpus")
        if options and not options[0].startswith("--"):
            raise InputError(f"{options[0]}: one table at a time, and options as --key=value")
        given = [option.partition("=")[0] for option in options if option.startswith("--")]
        for option in given:
            if option in NOT_A_TRAINING:
                raise InputError(f"{option} is for one training: --commands prints them")
            if given.count(option) > 1:
                raise InputError(f"{option} is given twice")
        for option, ours in GIVEN_BY.items():
            if option in given:
                raise InputError(f"{option} is of each training: give {ours}")
        for key in itertools.chain(*table["decode"].values()):
            if f"--{key}" in given:
                raise InputError(f"--{key} is what the tests of this table differ in: leave it out")
        names = [row["name"] for row in table["rows"]]
        for name in arguments.rows or ():
            if name not in names:
                raise InputError(f"--rows: no row {name!r}; known are {'; '.join(names)}")
        chosen = [row for row in table["rows"] if row["name"] in (arguments.rows or names)]
        if arguments.data_folder is not None:
            options = [f"--data_folder={arguments.data_folder}", *options]
        runs = tables.runs(table | {"rows": chosen}, ROOT, out, arguments.seeds, options)
        check_given(given, table["rows"])
        rows = [
            row | {"seeds": arguments.seeds} if arguments.seeds and row in chosen else row
            for row in table["rows"]
        ]

        def whole():
            """The whole table's, whatever was chosen of it."""
            return tables.runs(table | {"rows": rows}, ROOT, out, None, options)

        for line in tables.other_corpora(whole()):
            print(f"note: {line}", file=sys.stderr)
        if arguments.commands:
            for run in runs:
                if (missing := run.missing()) is not None:
                    print(shlex.join(command(missing, arguments.gpus)))
            return

        def written():
            try:
                return tables.write(table, tables.collect(table, whole()), out / path.stem)
            except OSError as error:
                name = error.filename2 or error.filename or out
                raise InputError(f"{name}: {error.strerror}") from None

        def finished():
            with suppress(Exception):  # said below, where the table is written once more
                written()

        failures = {}
        if not arguments.collect:
            check_corpus(arguments.data_folder)
            # What is wrong with earlier results is said before hours of training.
            tables.collect(table, whole())
            with only_one(out) as lock, ended_by_signals():
                failures = train(runs, out, arguments.jobs, arguments.gpus, lock, finished)
        try:
            print(f"\n{written()}\n{out / path.stem}.md, .csv and .png")
            for line in tables.notes(table, whole()):
                print(f"note: {line}", file=sys.stderr)
        finally:
            tell(failures, len(runs))
    if failures:
        sys.exit(1)


def tell(failures, total):
    """Names what failed, if anything did."""
    if failures:
        print(f"\nerror: {len(failures)} of {total} runs failed:", file=sys.stderr)
    for title, why in failures.items():
        print(f"  {title}: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
