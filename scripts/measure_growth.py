#!/usr/bin/env python3
"""Time and peak memory of encoders against the length of the input, and their slopes.

A slope of 1 in log-log is linear, of 2 quadratic. One training step (forward and backward) of one
layer each, on the CPU or `--device cuda`; what is timed alternates, and medians are shown. Memory
is the peak of live tensors, counted at every operation.
"""

import argparse
import statistics
import sys
import time

import numpy
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch.distributed._tools.mem_tracker import MemTracker
from tqdm import tqdm

from summarymixing.errors import InputError, check_integer, said_in_one_line
from summarymixing.machine import check_device, write_figures
from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.nnet.cell import MODES
from summarymixing.nnet.summaries import DecayedMean, UtteranceMean, WindowMean

# Of the cell, and of the chunks.
CASES = {
    "utterance": ({}, None),
    "chunks, 2 left": ({}, DynChunkTrainConfig(16, 2)),
    "chunks, all left": ({}, DynChunkTrainConfig(16, None)),
    "window": ({"summaries": [WindowMean(50, 50)]}, None),
    "window in chunks": ({"summaries": [WindowMean(50, 50)]}, DynChunkTrainConfig(16, 2)),
    "decayed": ({"summaries": [DecayedMean()]}, None),
    "decayed in chunks": ({"summaries": [DecayedMean()]}, DynChunkTrainConfig(16, 2)),
    "causal decayed": ({"summaries": [DecayedMean(causal=True)]}, None),
    "utterance + window": ({"summaries": [UtteranceMean(), WindowMean(50, 50)]}, None),
}
for _mode in MODES[1:]:  # the first is what the others are without one
    _name = _mode.removeprefix("SummaryMixing")
    CASES[_name] = ({"mode": _mode}, None)
    CASES[f"{_name}, all left"] = ({"mode": _mode}, DynChunkTrainConfig(16, None))


def build(encoder, cell, d_model):
    """One layer."""
    return TransformerASR(
        tgt_vocab=10,
        input_size=d_model,
        d_model=d_model,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=0,
        d_ffn=4 * d_model,
        csgu_linear_units=4 * d_model,
        encoder_module=encoder,
        encoder_nhead=1,
        **cell,
    )


def check(arguments):
    """`InputError` for what cannot be."""
    for name in ("d_model", "repeats", "threads"):
        check_integer(f"--{name}", getattr(arguments, name))
    for frames in arguments.frames:
        check_integer("--frames", frames)
    if len(set(arguments.frames)) < 2:
        raise InputError(f"--frames must be two lengths or more, got {arguments.frames}")
    check_device(arguments.device)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, 4000, 16000, 64000])
    parser.add_argument("--d_model", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="file for the figures")
    with said_in_one_line():
        measure(parser.parse_args(argv))


def measure(arguments):
    """All cases: printed, and written to a file."""
    check(arguments)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    def step(model, chunks, frames):
        frames = torch.randn(1, frames, arguments.d_model, device=arguments.device)
        began = time.perf_counter()
        model.encode(frames, dynchunktrain_config=chunks).square().mean().backward()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    rows = {}
    runs = [(e, name) for e in ("conformer", "branchformer") for name in CASES]
    models = {
        (e, name): build(e, CASES[name][0], arguments.d_model).to(arguments.device)
        for e, name in runs
    }
    total = len(runs) * len(arguments.frames)
    with tqdm(total=total, unit="case", file=sys.stderr) as bar:
        for frames in arguments.frames:
            times = {run: [] for run in runs}
            for repeat in range(arguments.repeats + 1):
                for run in runs:
                    seconds = step(models[run], CASES[run[1]][1], frames)
                    if repeat:  # the first is a warm-up
                        times[run].append(seconds)
            for run in runs:
                tracker = MemTracker()
                tracker.track_external(models[run])
                with tracker:
                    step(models[run], CASES[run[1]][1], frames)
                peak = tracker.get_tracker_snapshot("peak")[torch.device(arguments.device)]
                rows.setdefault(run, []).append((statistics.median(times[run]), peak["Total"]))
                bar.update()

    def slope(values):
        return float(numpy.polyfit(numpy.log(arguments.frames), numpy.log(values), 1)[0])

    content = []
    print(f"{'encoder':13} {'summary':19} {'slope of time':>13} {'of memory':>9}", end="")
    print(f"  at {arguments.frames[-1]} frames")
    for (encoder, name), figures in rows.items():
        seconds, peaks = zip(*figures)
        row = {
            "encoder": encoder,
            "summary": name,
            "frames": arguments.frames,
            "seconds": seconds,
            "peak_bytes": peaks,
            "time_slope": slope(seconds),
            "memory_slope": slope(peaks),
        }
        content.append(row)
        print(
            f"{encoder:13} {name:19} {row['time_slope']:13.2f} {row['memory_slope']:9.2f}  "
            f"{seconds[-1]:.2f} s, {peaks[-1] / 2**20:.0f} MiB"
        )
    if arguments.json:
        facts = {"d_model": arguments.d_model, "repeats": arguments.repeats, "rows": content}
        write_figures(arguments.json, facts, arguments.device)


if __name__ == "__main__":
    main()
