#!/usr/bin/env python3
"""Long recordings: word errors of utterances joined, and memory against length.

    python scripts/measure_long.py wer MODEL MANIFEST.csv [--minutes=60]
    python scripts/measure_long.py memory MODEL [MODEL ...] [--minutes 10 30 60 120]

wer: the utterances of a manifest one by one, and joined in random orders into recordings that are
together so long, as scripts/transcribe.py writes them down. memory: one offline pass over noise in
a process of its own, what it needs besides the loaded model.
"""

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from summarymixing.dataio import manifests
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.inference import load
from summarymixing.inference.transcribe import transcribe
from summarymixing.machine import write_figures
from summarymixing.scoring import metrics


def word_errors(options):
    recogniser = load(options.model)
    rows = [dict(row) for row in manifests.read(options.manifest)]
    rate = recogniser.sample_rate
    audio = {row["ID"]: manifests.read_audio(row, rate).numpy() for row in rows}
    seconds = sum(len(samples) for samples in audio.values()) / rate
    orders = max(1, round(60 * options.minutes / seconds))
    with tempfile.TemporaryDirectory() as folder:

        def errors(references, recordings):
            """Word errors of {id: samples}, and the number of words."""
            paths = [os.path.join(folder, f"{number}.wav") for number in range(len(recordings))]
            for path, samples in zip(paths, recordings.values()):
                soundfile.write(path, samples, rate, "FLOAT")
            results = transcribe(recogniser, paths)
            count = metrics.count(references, dict(zip(recordings, (r.text for r in results))))
            return int(count.errors.sum()), int(count.words.sum())

        references = {row["ID"]: row["wrd"] for row in rows}
        alone, words = errors(references, audio)
        joined = []
        for order in tqdm(range(orders), unit="recording", file=sys.stderr):
            random.Random(options.seed + order).shuffle(rows)
            text = " ".join(row["wrd"] for row in rows)
            samples = np.concatenate([audio[row["ID"]] for row in rows])
            joined.append(errors({"joined": text}, {"joined": samples})[0])
    mean = sum(joined) / orders
    print(f"one by one: WER {100 * alone / words:.2f} % ({alone} of {words} words)")
    print(
        f"joined, {orders} recordings of {seconds / 60:.1f} minutes: {100 * mean / words:.2f} % "
        f"({mean:.1f}; {min(joined)} to {max(joined)}), {100 * (mean / alone - 1):+.1f} % relative"
    )
    return {
        "model": Path(options.model).name,
        "seed": options.seed,
        "seconds": seconds,
        "words": words,
        "errors_alone": alone,
        "errors_joined": joined,
    }


def memory(options):
    rows = []
    print("| model | minutes | MB besides the model | seconds | real-time factor |")
    print("|---|---|---|---|---|")
    for model, minutes in itertools.product(options.models, options.minutes):
        command = [sys.executable, __file__, "one", model, str(minutes)]
        command += ["--threads", str(options.threads), "--max_gb", str(options.max_gb)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            error = (process.stderr.strip().splitlines() or ["killed"])[-1]
            found = {"error": error[:200]}
            print(f"| {model} | {minutes:g} | {error[:200]} | | |", flush=True)
        else:
            found = json.loads(process.stdout)
            print(
                f"| {model} | {minutes:g} | {found['bytes'] / 1e6:.0f} | {found['seconds']:.1f} "
                f"| {found['seconds'] / 60 / minutes:.4f} |",
                flush=True,
            )
        rows.append({"model": Path(model).name, "minutes": minutes, **found})
    return {"rows": rows}


def one(options):
    """What one offline pass over noise needs."""
    limit = round(options.max_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    recogniser = load(options.model)
    rate = recogniser.sample_rate
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "noise.wav")
        generator = np.random.default_rng(0)
        with soundfile.SoundFile(path, "w", rate, 1) as file:
            for _ in range(round(options.minutes * 60)):
                file.write(0.1 * generator.standard_normal(rate))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        (result,) = transcribe(recogniser, [path], segment_seconds=None)
        seconds = time.perf_counter() - started
    if result.error:
        raise InputError(result.error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"bytes": (peak - before) * 1024, "seconds": seconds}
    print(json.dumps(found))
    return found


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="wer|memory")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--threads", type=int, default=1)
    shared.add_argument("--json", help="file for the figures")
    shared.add_argument("--max_gb", type=float, default=16, help="of address space (memory)")
    wer = commands.add_parser("wer", parents=[shared])
    wer.add_argument("model")
    wer.add_argument("manifest")
    wer.add_argument("--minutes", type=float, default=60)
    wer.add_argument("--seed", type=int, default=0)
    wer.set_defaults(run=word_errors)
    sizes = commands.add_parser("memory", parents=[shared])
    sizes.add_argument("models", nargs="+")
    sizes.add_argument("--minutes", type=float, nargs="+", default=[10, 30, 60, 120])
    sizes.set_defaults(run=memory)
    single = commands.add_parser("one", parents=[shared])
    single.add_argument("model")
    single.add_argument("minutes", type=float)
    single.set_defaults(run=one)
    return parser.parse_args(argv)


def main(argv=None):
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    with said_in_one_line():
        found = options.run(options)
        if options.json:
            write_figures(options.json, found)


if __name__ == "__main__":
    main()
