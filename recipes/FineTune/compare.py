#!/usr/bin/env python3
"""A trained model adapted to 5, 15 and 35 minutes of AN4 beside training on the same from scratch.

    python recipes/FineTune/compare.py MODEL AN4 OUT [--swap=ATTENTION_MODEL] [--key=value ...]

MODEL is the output folder of a training, or a package; AN4 the corpus' folder. Each row is a run of
train.py in a folder of its own in OUT; runs that ended are not done again, and one that was stopped
goes on. What train.py has for options is handed on to every run. `--swap` adds a row, for the most
minutes: a model that gets SummaryMixing cells in the place of attention (scripts/swap_mixer.py).
Of MODEL's size, it can be compared with the one from scratch.

Speakers of the test (the validation set of AN4's recipe) are in no training set. Checkpoints are
chosen by utterances that are in none, and the sets of fewer minutes are parts of the larger ones.
OUT gets comparison.md and comparison.png.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

from summarymixing.dataio import an4, manifests
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.files import write_whole
from summarymixing.training import tables

HERE = Path(__file__).resolve().parent
LARGEST = 35
# Of 80 ms frames, as the demo's, there are fewer than letters in a quickly spoken word.
TOKENS = ["--tokenizer=new", "--token_type=bpe", "--output_neurons=60"]
SCRATCH = ["--initial=null", "--update_norm_until_epoch=4", "--lr=0.001", "--warmup_steps=1000"]


def sets(folder, out, minutes):
    """Manifests: one for each number of minutes, "select" and "test"."""
    paths = an4.prepare(folder, out / "manifests")
    rows = list(manifests.read(paths["train"]))
    random.Random(1).shuffle(rows)
    found = {"test": Path(paths["valid"])}
    seconds, chosen = 0.0, {}
    for place, row in enumerate(rows):
        seconds += row["duration"]
        for wanted in (*minutes, LARGEST):
            if seconds >= 60 * wanted:
                chosen.setdefault(wanted, rows[: place + 1])
    if LARGEST not in chosen:
        raise InputError(f"{folder}: {LARGEST} minutes of training speech are expected")
    # Those after the largest set.
    chosen["select"] = rows[len(chosen[LARGEST]) :]
    for name, part in chosen.items():
        found[name] = out / "manifests" / f"part_{name}.csv"
        utterances = (
            manifests.Utterance(row["ID"], row["wav"], row["spk_id"], row["wrd"]) for row in part
        )
        manifests.write(found[name], utterances, description=str(name))
    return found


def run(out, paths, minutes, pretrained, more, options):
    """A row's results; trains unless they are there."""
    results = out / "results.json"
    # As many steps for each number of minutes.
    epochs = round(60 * LARGEST / minutes)
    command = [
        str(HERE / "train.py"),
        f"--pretrained={pretrained}",
        f"--train={paths[minutes]}",
        f"--valid={paths['select']}",
        f"--test={paths['test']}",
        f"--output_folder={out}",
    ]
    keys = {"number_of_epochs": epochs, "patience": max(epochs // 4, 1)}
    keys |= dict(option.removeprefix("--").split("=", 1) for option in [*TOKENS, *more])
    flags = [option for option in options if "=" not in option]
    keys |= dict(option.removeprefix("--").split("=", 1) for option in options if "=" in option)
    command += [*(f"--{key}={value}" for key, value in keys.items()), *flags]
    if not results.exists():
        print(shlex.join([sys.executable, *command]), flush=True)
        if subprocess.run([sys.executable, *command]).returncode:
            raise InputError(f"{out}: the training of this row failed; the lines above say why")
    content = json.loads(results.read_text())
    if difference := tables.difference(content["command"], command):
        raise InputError(
            f"{out}: trained with another {difference}; choose another OUT, or delete this folder "
            "to have it trained anew"
        )
    return content


def table(rows):
    """Markdown."""
    lines = ["| minutes | model | before % | WER % | S / D / I | words | epochs |"]
    lines.append("|---|---|---|---|---|---|---|")
    for minutes, name, content in rows:
        test = content["tests"]["test"]
        before = content.get("before", {}).get("test", {}).get("wer")
        before = "" if before is None else f"{before:.1f}"
        errors = " / ".join(
            str(test[kind]) for kind in ("substitutions", "deletions", "insertions")
        )
        lines.append(
            f"| {minutes:g} | {name} | {before} | {test['wer']:.1f} | {errors} | {test['words']} "
            f"| {content['epochs']} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows, path):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row[1] for row in rows):
        points = [(minutes, c["tests"]["test"]["wer"]) for minutes, n, c in rows if n == name]
        axes.plot(*zip(*points), marker="o", label=name)
    axes.set(xlabel="minutes of training speech", ylabel="WER % (speakers not in training)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("an4")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 15, LARGEST])
    parser.add_argument("--swap", help="a model with attention, for a row with its mixers swapped")
    arguments, options = parser.parse_known_args(argv)
    with said_in_one_line():
        if max(arguments.minutes) > LARGEST or min(arguments.minutes) <= 0:
            raise InputError(f"--minutes: numbers up to {LARGEST} are expected")
        paths = sets(arguments.an4, arguments.out, arguments.minutes)
        rows = [
            (minutes, name, arguments.model, more)
            for name, more in (("adapted", []), ("from scratch", SCRATCH))
            for minutes in arguments.minutes
        ]
        if arguments.swap:
            swapped = arguments.out / "swapped_model"
            if not swapped.exists():
                script = HERE.parents[1] / "scripts" / "swap_mixer.py"
                command = [sys.executable, str(script), arguments.swap, str(swapped)]
                if subprocess.run(command).returncode:
                    raise InputError(f"{arguments.swap}: its mixers could not be swapped")
            rows.append((max(arguments.minutes), "swapped", swapped, []))
        done = []
        for minutes, name, model, more in rows:
            out = arguments.out / f"{name.replace(' ', '_')}_{minutes:g}"
            done.append((minutes, name, run(out, paths, minutes, model, more, options)))
    write_whole(arguments.out / "comparison.md", table(done))
    draw(done, arguments.out / "comparison.png")
    print(table(done))


if __name__ == "__main__":
    main()
