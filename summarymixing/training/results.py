"""What a finished run leaves behind for people and scripts: `results.json` and its table."""

import json
import math
import os
import resource
import shlex
import sys
from contextlib import suppress

import torch

from summarymixing.errors import InputError, check_number, one_line
from summarymixing.files import write_whole
from summarymixing.machine import command, commit, versions
from summarymixing.scoring.metrics import Scores, score

# In this order in the file; a run that does not know one leaves it null.
FACTS = (
    "params",
    "train_seconds",
    "epochs",
    "peak_memory_bytes",
    "seed",
    "versions",
    "command",
    "commit",
    "device",
    "threads",
    "processes",
)
SCORES = ("wer", "cer", "substitutions", "deletions", "insertions", "words", "utterances")


def write_results(
    path: str | os.PathLike, tests: dict[str, Scores | dict], trained: bool = True, **facts
) -> dict:
    """Write the results of a run, whole or not at all.

    Arguments
    ---------
    path : path
        The JSON file; its folder is made when missing.
    tests : dict[str, Scores or dict]
        Test set to its word errors, or to what else it is scored by.
    trained : bool
        Whether this run has trained. If not, what an earlier file says of the training stays, and
        so do the tests that are not done again; those that are have the command and commit of
        theirs, if it is another command.
    **facts
        `params`, `train_seconds`, `epochs`, `seed`, `device` and anything else worth keeping.
        `versions`, `command`, `commit`, `peak_memory_bytes`, `threads` and `processes` (of a
        training on several GPUs) are found out when not given.

    Returns
    -------
    dict
        What was written. JSON has no nan: such a rate becomes None.

    Raises
    ------
    InputError
        If it has not trained, and the earlier file is not as `read` wants it.

    Example
    -------
    >>> import tempfile
    >>> scores = score({"a": "one two"}, {"a": "one"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = write_results(f"{folder}/results.json", {"test": scores}, params=1000, seed=1)
    >>> results["tests"]["test"]["wer"], results["params"], results["epochs"]
    (50.0, 1000, None)
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    found = {
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "command": command(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if distributed else 1,
    }
    scored = {}
    for name, scores in tests.items():
        if isinstance(scores, Scores):
            scores = {key: getattr(scores, key) for key in SCORES}
        scored[name] = scores
    results = None if trained else read(path)
    if results is None:
        results = {"tests": scored, **dict.fromkeys(FACTS), **found, **facts}
    else:
        tested_by = {key: found[key] for key in ("command", "commit")}
        if tested_by["command"] == results["command"]:
            tested_by = {}
        results["tests"] |= {name: scores | tested_by for name, scores in scored.items()}
    results = _plain(results)
    write_whole(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def read(path: str | os.PathLike, metrics: tuple[str, ...] = ()) -> dict | None:
    """The content of a `results.json`, checked, or None where there is none.

    Arguments
    ---------
    path : path
    metrics : tuple of str
        What every test has to be scored by.

    Raises
    ------
    InputError
        If it cannot be read, is not JSON, or a key that is made use of is missing or malformed.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/results.json"
    ...     _ = write_results(path, {"test": score({"a": "one two"}, {"a": "one"})})
    ...     read(path, ("wer",))["tests"]["test"]["wer"], read(f"{folder}/none.json")
    (50.0, None)
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, parse_constant=_refuse)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        problem = f"not JSON ({one_line(error)})"
    else:
        try:
            _check(content, metrics)
            return content
        except InputError as error:
            problem = str(error)
    raise InputError(f"{path}: {problem}; remove it to have it made anew")


def _refuse(constant):
    raise ValueError(f"{constant} is none of its numbers")


def _check(content, metrics):
    if not isinstance(content, dict) or not {"tests", "command"} <= content.keys():
        raise InputError("not the results of a run")
    _check_command("command", content)
    for key in ("params", "train_seconds", "peak_memory_bytes", "processes"):
        _check_number(key, content.get(key))
    if not isinstance(content["tests"], dict):
        raise InputError(f"tests must be names and scores, got {content['tests']!r}")
    for name, scores in content["tests"].items():
        test = f"tests: {name}"
        if not isinstance(scores, dict):
            raise InputError(f"{test} must be keys and values, got {scores!r}")
        _check_command(f"{test}: command", scores)
        for key in metrics:
            if key not in scores:
                raise InputError(f"{test}: the key {key!r} is missing")
        for key in ("wer", "cer"):
            _check_number(f"{test}: {key}", scores.get(key))


def _check_command(name, content):
    command = content.get("command", "")
    with suppress(ValueError):  # a quote that is open
        if isinstance(command, str):
            shlex.split(command)
            return
    raise InputError(f"{name} must be a command line, got {command!r}")


def _check_number(name, value):
    if value is not None:
        check_number(name, value, "at least 0", lambda number: number >= 0)


def peak_memory_bytes() -> int:
    """Most memory held so far: tensors on the GPU if one was used, else the resident process.

    The two are not comparable: the second holds Python and its libraries, too.

    Example
    -------
    >>> peak_memory_bytes() > 10e6
    True
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        peak = max(torch.cuda.max_memory_allocated(device) for device in devices)
        if peak > 0:
            return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kibibytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def table(results: dict) -> str:
    """A results dictionary as lines for a terminal, one a test set.

    Arguments
    ---------
    results : dict
        As `write_results` returns it, or as read from its file.

    Returns
    -------
    str
        Several lines, without a newline at the end. Units are in the titles; GB are 10^9 bytes.
        What is not known is a dash.

    Example
    -------
    >>> print(table({"tests": {"test": {"wer": 7.5, "cer": 3.25}}, "params": 12e6}))
    test  WER %  CER %  params M  minutes  peak GB
    test   7.50   3.25      12.0        -        -
    """
    shared = [
        _number(results.get("params"), 1e6, 1),
        _number(results.get("train_seconds"), 60, 1),
        _number(results.get("peak_memory_bytes"), 1e9, 2),
    ]
    rows = [["test", "WER %", "CER %", "params M", "minutes", "peak GB"]]
    for name, scores in results["tests"].items():
        rates = [_number(scores.get(key), 1, 2) for key in ("wer", "cer")]
        rows.append([name, *rates, *shared])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for name, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def examples(references: dict[str, str], hypotheses: dict[str, str], n: int = 3) -> str:
    """A few references above their hypotheses, spread evenly over the sorted ids.

    Sorted ids put a speaker's utterances together, so that the first few would be of one speaker.

    Raises
    ------
    InputError
        If the ids differ or there is none.

    Example
    -------
    >>> print(examples({"a": "one two"}, {"a": "one too"}))
    a: WER 50.0 %
      REF: one two
      HYP: one too
    """
    score(references, hypotheses)  # for its checks
    ids = sorted(references)
    n = min(n, len(ids))
    lines = []
    for i in (ids[k * len(ids) // n] for k in range(n)):
        rate = score({i: references[i]}, {i: hypotheses[i]}).wer
        shown = "no reference words" if math.isnan(rate) else f"WER {rate:.1f} %"
        for line in (f"{i}: {shown}", f"  REF: {references[i]}", f"  HYP: {hypotheses[i]}"):
            lines.append(line.rstrip())
    return "\n".join(lines)


def _number(value, unit, digits):
    return "-" if value is None or math.isnan(value) else f"{value / unit:.{digits}f}"


def _plain(value):
    """What JSON can hold: numbers out of arrays and tensors, None for nan, text for the rest."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
