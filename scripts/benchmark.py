#!/usr/bin/env python3
"""Speed and peak memory of mixers in Conformer and Branchformer: cell, layers or whole encoder.

All mixers of a case take turns in one run, and beside them the bare matrix products of its
feed-forward part. Shown are medians, lowest and highest of the ratios, turn by turn, to
SpeechBrain's RoPE attention in SpeechBrain's own layers (speechbrain/RoPEMHA) and in this package's
(RoPEMHA), to no mixer at all, the floor, in both (speechbrain/none, none), and to the rate of the
products. What is in the --json file already is not measured again, and the file grows case by case:
the same command goes on where it stopped. A mixer that a case does not have yet is measured
together with those that it has.
"""

import argparse
import itertools
import json
import math
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from summarymixing import machine
from summarymixing.benchmark import recipe, report
from summarymixing.benchmark.cases import (
    DEPTHS,
    GRAPHS,
    MIXERS,
    PARTS,
    PRECISIONS,
    STEPS,
    Case,
    there_is,
)
from summarymixing.benchmark.measure import DeviceLostError, limit_memory, measure
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.files import write_whole

RECIPE = Path(__file__).parents[1] / "recipes" / "LibriSpeech" / "hparams" / "ctc_attention.yaml"
ENCODERS = tuple(DEPTHS)
TRITON = [mixer for mixer in MIXERS if MIXERS[mixer].triton]
# Kernels that no GPU has run yet come last: after some errors a process can use the GPU no more.
TRIED = [mixer for mixer in MIXERS if mixer not in TRITON]
IN_FORWARD = [mixer for mixer in TRIED if not MIXERS[mixer].activation_checkpointing]
EVERYTHING = {
    "encoders": ENCODERS, "parts": PARTS, "steps": STEPS, "precisions": PRECISIONS,
    "graphs": tuple(GRAPHS), "mixers": tuple(MIXERS),
}  # fmt: skip
# What is measured without options, in this order.
DEFAULTS = {
    "cpu": [
        {
            "seconds": [5, 10, 40, 120], "encoders": ENCODERS, "parts": ["layers"], "steps": STEPS,
            "precisions": ["float32"], "graphs": ["eager"],
            "mixers": ["none", "SummaryMixing", "SummaryMixing-lite", "SummaryMixing-fast",
                       "RoPEMHA", report.HOST, report.HOST_FLOOR],
        },
        {
            "seconds": [40], "encoders": ["conformer"], "parts": ["layers"],
            "steps": ["training"], "precisions": ["float32"], "graphs": ["eager"],
            "mixers": ["SummaryMixing+checkpointing", "RoPEMHA+checkpointing"],
        },
    ],
    "cuda": [
        {
            "seconds": [10, 40, 100, 5, 20, 300, 1000], "encoders": ["conformer"],
            "parts": ["encoder"], "steps": ["training"], "precisions": ["bf16"],
            "graphs": ["eager"], "mixers": TRIED,
        },
        {
            "seconds": [10, 40, 100], "encoders": ["conformer"], "parts": ["layers"],
            "steps": ["training"], "precisions": ["bf16"], "graphs": ["compile"],
            "mixers": ["none", "SummaryMixing", "RoPEMHA", report.HOST, report.HOST_FLOOR],
        },
        # Twenty minutes in one sample.
        {
            "seconds": [1200], "encoders": ["conformer"], "parts": ["encoder"],
            "steps": ["training"], "precisions": ["bf16"], "graphs": ["eager"],
            "mixers": ["none", "SummaryMixing", "RoPEMHA"],
        },
        {
            "seconds": [5, 10, 20, 40, 100, 300, 1000], "encoders": ["conformer"],
            "parts": ["encoder"], "steps": ["forward"], "precisions": ["bf16"],
            "graphs": ["eager"], "mixers": IN_FORWARD,
        },
        {
            "seconds": [5, 10, 20, 40, 100, 300, 1000], "encoders": ["branchformer"],
            "parts": ["encoder"], "steps": ["training"], "precisions": ["bf16"],
            "graphs": ["eager"], "mixers": TRIED,
        },
        {
            "seconds": [5, 10, 20, 40, 100, 300, 1000], "encoders": ["branchformer"],
            "parts": ["encoder"], "steps": ["forward"], "precisions": ["bf16"],
            "graphs": ["eager"], "mixers": IN_FORWARD,
        },
        {
            "seconds": [10, 100], "encoders": ENCODERS, "parts": PARTS,
            "steps": STEPS, "precisions": PRECISIONS, "graphs": ["eager", "compile"],
            "mixers": ["none", "SummaryMixing", "SummaryMixing-lite", "SummaryMixing-fast",
                       "SummaryMixing-expdecay", "RoPEMHA", *TRITON],
        },
    ],
}  # fmt: skip


def cases(arguments, device):
    """[(case, its mixers)], in the order in which they are measured.

    With options, what they leave open is as in the first of the defaults. A case is there a second
    time for Triton's kernels, with which all its mixers are measured again.
    """
    given = {name: getattr(arguments, name) for name in ("seconds", *EVERYTHING)}
    given = {name: values for name, values in given.items() if values}
    found, crashing = [], set()
    for chosen in [DEFAULTS[device][0] | given] if given else DEFAULTS[device]:
        for seconds, encoder, part, step, precision, graph in itertools.product(
            *(chosen[name] for name in
              ("seconds", "encoders", "parts", "steps", "precisions", "graphs"))
        ):  # fmt: skip
            layers = {"cell": 1, "layers": arguments.layers, "encoder": DEPTHS[encoder]}[part]
            batch = arguments.batch or (
                2
                if device == "cpu" and arguments.batch_seconds is None
                else max(1, round((arguments.batch_seconds or 1000) / seconds))
            )
            case = Case(
                encoder, part, layers, seconds, batch, arguments.padding, step, precision, graph,
                arguments.d_model, arguments.dropout,
            )  # fmt: skip
            wanted = {*chosen["mixers"], *report.BASELINES}
            if device == "cpu" and graph != "eager" and step == "training":
                # Compiled by torch 2.11, its backward corrupts memory: the process would crash.
                crashing |= {mixer for mixer in wanted if "RoPE" in mixer}
                wanted -= crashing
            sides = [m for m in MIXERS if m in wanted and there_is(m, encoder, part)]
            earlier = next((others for other, others in found if other == case), None)
            if earlier is None or not set(sides).isdisjoint(TRITON):
                found.append((case, sides))
            else:
                earlier[:] = [m for m in MIXERS if m in {*earlier, *sides}]
    nowhere = {*(arguments.mixers or ())}.difference(crashing, *(sides for _, sides in found))
    if nowhere:
        raise InputError(f"--mixers {' '.join(sorted(nowhere))}: in no case that is asked for")
    if crashing:
        print(
            f"left out of compiled training, which crashes on a CPU: {', '.join(sorted(crashing))}",
            file=sys.stderr,
        )
    return found


def check(arguments):
    """The device, and `InputError` for what cannot be."""
    for name in (
        "threads",
        "repeats",
        "layers",
        "batch",
        "batch_seconds",
        "d_model",
        "minutes",
        "recipe_seconds",
    ):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} must be more than 0 and finite, got {value}")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, got {arguments.seed}")
    if any(not 0 < seconds < math.inf for seconds in arguments.seconds or ()):
        raise InputError(f"--seconds must be more than 0, got {arguments.seconds}")
    if arguments.plot:  # said before anything is measured
        plot = Path(arguments.plot)
        if plot.suffix not in (".png", ".pdf", ".svg") or not plot.absolute().parent.is_dir():
            raise InputError(f"--plot must be a .png, .pdf or .svg in a folder, got {plot}")
    if not 0 < arguments.padding <= 1:
        raise InputError(f"--padding must be in (0, 1], got {arguments.padding}")
    if not 0 <= arguments.dropout < 1:
        raise InputError(f"--dropout must be in [0, 1), got {arguments.dropout}")
    if arguments.d_model % 16:
        raise InputError(f"--d_model must be a multiple of 16, got {arguments.d_model}")
    device = machine.check_device(arguments.device)
    if device.type not in DEFAULTS:
        raise InputError(f"--device must be {' or '.join(DEFAULTS)}, got {arguments.device}")
    for mixer in arguments.mixers or ():
        if mixer in TRITON and device.type != "cuda":
            raise InputError(f"--mixers {mixer}: kernels run on a GPU only, --device cuda")
    return device


def read(path):
    """The content of a file of results."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        _ = content["machine"]["versions"], content["kind"], content["seed"], content["commands"]
        for row in content["rows"]:
            report.case_of(row)
        for row in content["recipes"]:
            report.recipe_of(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of results of benchmark.py: {error}") from error
    return content


def measure_all(arguments, device, path):
    """Measures what is not in the file of results yet; its content."""
    end = time.monotonic() + 60 * arguments.minutes
    facts = {
        "machine": machine.describe(arguments.device), "kind": device, "seed": arguments.seed
    }  # fmt: skip
    content = {**facts, "commands": [], "rows": [], "recipes": []}
    if path.exists():
        content = read(path)
        for name, value in facts.items():
            if content[name] != value:
                raise InputError(
                    f"{path} was measured with another {name}: give another --json, or remove it"
                )
    there = report.by_case(content["rows"])
    todo = [
        (case, mixers)
        for case, mixers in cases(arguments, device)
        if arguments.again or not set(mixers) <= set(there.get(case, ()))
    ]
    try:
        save(content, path)  # where nothing can be written, nothing is measured
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror}") from error
    if arguments.recipe or todo:
        content["commands"].append(shlex.join(["scripts/benchmark.py", *arguments.argv]))
    lost = None  # the side after which the GPU is of no use to this process
    if arguments.recipe:
        lost = measure_recipe(arguments, content, path)
    left = len(todo)
    for case, mixers in tqdm(todo, unit="case", file=sys.stderr):
        if lost or time.monotonic() > end:
            break
        known = there.setdefault(case, {})
        sides = sides_of(mixers, known, arguments.again)
        try:
            rows = measure(case, sides, arguments.device, arguments.repeats, arguments.seed)
        except DeviceLostError as error:
            lost, rows = error, [error.row]
        known |= {row["mixer"]: row | {"commit": machine.commit()} for row in rows}
        content["rows"] = [row for sides in there.values() for row in sides.values()]
        save(content, path)
        left -= lost is None
    if lost:
        print(f"the device takes no more work after {lost}", file=sys.stderr)
    if left:
        without = " without --again" * arguments.again
        print(f"{left} cases are left: the same command{without} goes on", file=sys.stderr)
    return content


def sides_of(mixers, known, again):
    """Those asked for and those known, but what failed: its error may end the others as well."""
    failed = [] if again else [mixer for mixer in known if "failed" in known[mixer]]
    return [m for m in MIXERS if m in {*mixers, *known} and m not in failed]


def save(content, path):
    write_whole(path, json.dumps(content, indent=1) + "\n")


def measure_recipe(arguments, content, path):
    """Adds the rows of the recipe to the content of a file of results, unless they are there.

    The `DeviceLostError` is returned, if there was one.
    """
    mixers = [
        mixer
        for mixer in MIXERS
        if mixer in (arguments.mixers or ("SummaryMixing",)) or mixer == "RoPEMHA"
        if not MIXERS[mixer].host  # the recipes' model is ours
    ]
    seconds = arguments.recipe_seconds or (30 if content["kind"] == "cpu" else 500)
    overrides = [f"--{override}" for override in arguments.override]
    one = recipe.identity(arguments.recipe, overrides, seconds)
    kept = [row for row in content["recipes"] if report.recipe_of(row) != report.recipe_of(one)]
    known = {row["mixer"]: row for row in content["recipes"] if row not in kept}
    if not arguments.again and set(mixers) <= set(known):
        return None
    lost, sides = None, sides_of(mixers, known, arguments.again)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = recipe.measure_recipe(
                arguments.recipe, sides, folder, seconds, arguments.device, arguments.repeats,
                arguments.seed, overrides,
            )  # fmt: skip
    except DeviceLostError as error:
        lost, rows = error, [error.row]
    known |= {row["mixer"]: row | {"commit": machine.commit()} for row in rows}
    content["recipes"] = kept + list(known.values())
    save(content, path)
    return lost


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seconds", nargs="+", type=float, help="of audio")
    for name, values in EVERYTHING.items():
        parser.add_argument(f"--{name}", nargs="+", choices=values)
    parser.add_argument("--batch", type=int, help="utterances; on the CPU 2")
    parser.add_argument("--batch_seconds", type=float, help="if there is no --batch; on a GPU 1000")
    parser.add_argument(
        "--padding",
        type=float,
        default=0.8,
        help="length of every second utterance; 1: no lengths are given",
    )
    parser.add_argument("--layers", type=int, default=2, help="of the part layers")
    parser.add_argument("--d_model", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--minutes", type=float, default=10.0, help="no case begins after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="default: benchmarks/results/speed_DEVICE.json")
    parser.add_argument(
        "--recipe",
        nargs="?",
        const=str(RECIPE),
        metavar="YAML",
        help="a training step of a recipe as well, by default LibriSpeech's",
    )
    parser.add_argument(
        "--recipe_seconds", type=float, help="of audio in its batch; by default 500, on the CPU 30"
    )
    parser.add_argument(
        "--override", nargs="*", default=[], metavar="KEY=VALUE", help="for the recipe"
    )
    parser.add_argument(
        "--again", action="store_true", help="measures what is named anew if it is in the file"
    )
    parser.add_argument("--report", nargs="+", metavar="JSON", help="measures nothing: shows these")
    parser.add_argument("--plot", metavar="PNG", help="draws time and memory against length")
    arguments = parser.parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else argv
    with said_in_one_line():
        device = check(arguments).type
        if device == "cpu":
            limit_memory()
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        if arguments.report:
            contents = {path: read(path) for path in arguments.report}
        else:
            path = Path(arguments.json or f"benchmarks/results/speed_{device}.json")
            contents = {path: measure_all(arguments, device, path)}
    for path, content in contents.items():
        facts = content["machine"]
        versions = ", ".join(
            f"{name} {facts['versions'][name]}" for name in ("torch", "speechbrain")
        )
        print(f"## {Path(path).name}: {facts['device']}, {facts['threads']} threads, {versions}\n")
        print(report.table(content["rows"]), "\n")
        if against_length := report.by_length(content["rows"]):
            print(against_length, "\n")
        if content["recipes"]:
            print(report.recipe_table(content["recipes"]), "\n")
        print(*report.targets(content["rows"], content["kind"]), "", sep="\n")
    if arguments.plot:
        with said_in_one_line():
            try:
                report.plot(contents.values(), arguments.plot)
            except OSError as error:
                raise InputError(f"--plot {arguments.plot}: {error.strerror}") from error
    failures = [line for content in contents.values() for line in report.failures(content)]
    if failures:
        print(
            "\nerror: failed, and not for lack of memory:", *failures, sep="\n  ", file=sys.stderr
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
