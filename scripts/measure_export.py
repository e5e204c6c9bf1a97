#!/usr/bin/env python3
"""Real-time factors on one core: PyTorch, torch.compile, ONNX, ONNX int8.

    python scripts/measure_export.py MODEL MANIFEST.csv
    python scripts/measure_export.py --recipe recipes/LibriSpeech/hparams/ctc_attention.yaml

Audio to the log probabilities of the CTC head, one recording at a time; the sides take turns. MODEL
is the output folder of a training, or a package, and is measured on utterances of a manifest; a
recipe's model has random weights and hears noise.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from summarymixing.dataio import manifests
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.export import export
from summarymixing.inference import load
from summarymixing.machine import write_figures
from summarymixing.runtime import load_exported


def recordings(options):
    """The recogniser and (samples,) of each recording."""
    if options.recipe is None:
        if options.model is None or options.manifest is None:
            raise InputError("a model and a manifest are expected, or --recipe")
        recogniser = load(options.model)
        rows = list(manifests.read(options.manifest))
        rows = random.Random(0).sample(rows, min(options.recordings, len(rows)))
        return recogniser, [manifests.read_audio(row, recogniser.sample_rate) for row in rows]
    from measure_streaming import build

    recogniser, _ = build(options.recipe)
    draw = torch.Generator().manual_seed(0)
    seconds = round(options.seconds * recogniser.sample_rate)
    return recogniser, [
        0.1 * torch.randn(seconds, generator=draw) for _ in range(min(options.recordings, 3))
    ]


@torch.no_grad()
def sides(recogniser, folder, compiled):
    """Functions from (samples,) to log probabilities."""
    modules = recogniser.modules

    def forward(encode):
        def log_probs(samples):
            lengths = torch.tensor([len(samples)])
            frames, lengths = recogniser.front_end(samples.unsqueeze(0), lengths)
            return modules["ctc_lin"](encode(frames, lengths)).log_softmax(-1)

        return log_probs

    def onnx(int8):
        model = load_exported(folder, int8=int8, threads=1)
        return lambda samples: model.log_probs(
            samples.unsqueeze(0).numpy(), torch.tensor([len(samples)]).numpy()
        )

    export(recogniser, folder, int8=True)
    found = {"PyTorch": forward(modules["Transformer"].encode)}
    if compiled:
        encode = torch.compile(modules["Transformer"].encode, dynamic=True)
        found["torch.compile"] = forward(encode)
    return found | {"ONNX": onnx(False), "ONNX int8": onnx(True)}


@torch.no_grad()
def measure(functions, audio, turns):
    """Seconds of each side over all recordings, a number a turn."""
    taken = {name: [] for name in functions}
    for turn in tqdm(range(turns + 1), unit="turn", file=sys.stderr):
        for name, function in functions.items():
            began = time.perf_counter()
            for samples in audio:
                function(samples)
            if turn > 0:  # the first warms up, and compiles
                taken[name].append(time.perf_counter() - began)
    return taken


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="output folder of a training, or a package of it"
    )
    parser.add_argument("manifest", nargs="?")
    parser.add_argument("--recipe", help="random weights of a recipe's model")
    parser.add_argument("--seconds", type=float, default=15, help="of noise (--recipe)")
    parser.add_argument("--recordings", type=int, default=20)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--no_compile", action="store_true", help="without torch.compile")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with said_in_one_line(), tempfile.TemporaryDirectory() as folder:
        recogniser, audio = recordings(options)
        functions = sides(recogniser, Path(folder) / "exported", not options.no_compile)
        taken = measure(functions, audio, options.turns)
        seconds = sum(len(samples) for samples in audio) / recogniser.sample_rate
        rows = {}
        print("| | real-time factor | times PyTorch (spread) |")
        print("|---|---|---|")
        for name, times in taken.items():
            ratios = [a / b for a, b in zip(taken["PyTorch"], times)]
            rows[name] = {"seconds": times, "real_time_factor": statistics.median(times) / seconds}
            print(
                f"| {name} | {rows[name]['real_time_factor']:.4f} "
                f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |"
            )
        if options.json:
            content = {
                "model": Path(options.recipe or options.model).name,
                "recordings": len(audio),
                "audio_seconds": seconds,
                "sides": rows,
            }
            write_figures(options.json, content, packages=("onnxruntime",))


if __name__ == "__main__":
    main()
