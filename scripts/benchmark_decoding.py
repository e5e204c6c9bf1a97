#!/usr/bin/env python3
"""The joint beam search beside SpeechBrain's: ratios in one run, flatness, and what batches gain.

Both searchers are given the same encoder output and take turns; that they find the same hypotheses
is checked before, for each utterance alone. Sizes: "small" is that of the AN4
recipe, "published" that of the paper's LibriSpeech tests (arXiv 2307.07421: beam 66, a Transformer
language model), with random weights, which never end a sentence: the steps are given. With --run,
the trained model of a run's folder, its own ends of sentences and the recordings of a manifest.
"""

import argparse
import statistics
import sys
import time

import torch
from speechbrain.decoders import (
    CTCScorer,
    S2STransformerBeamSearcher,
    ScorerBuilder,
    TransformerLMScorer,
)
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear
from torch import nn
from tqdm import tqdm

from summarymixing.dataio import manifests
from summarymixing.decoding import BeamSearcher
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.inference import load
from summarymixing.inference.evaluation import encoded_batches
from summarymixing.machine import check_device, write_figures
from summarymixing.models.transformer_asr import TransformerASR

SIZES = {
    "small": {
        "tokens": 30, "d_model": 144, "nhead": 4, "num_decoder_layers": 2, "d_ffn": 1024,
        "beam": 10, "batch": 8, "frames": 80, "steps": 20, "lm": None,
    },
    "published": {
        "tokens": 5000, "d_model": 512, "nhead": 8, "num_decoder_layers": 6, "d_ffn": 2048,
        "beam": 66, "batch": 1, "frames": 375, "steps": 8,
        "lm": {"d_model": 768, "nhead": 12, "num_encoder_layers": 12, "d_ffn": 3072},
    },
}  # fmt: skip


class Task:
    """Models and encoder output; `search(kind, rows)` is a call that searches some rows of it."""

    def __init__(self, model, output, ctc, lm, encoded, lengths, beam):
        self.model, self.output, self.ctc, self.lm = model, output, ctc, lm
        self.encoded, self.lengths, self.beam = encoded, lengths, beam

    def search(self, kind, steps=None, rows=slice(None)):
        """With `steps`, as many for each utterance, whatever its length."""
        lengths = self.lengths[rows]
        time = int(lengths.max())
        encoded = self.encoded[rows, :time]
        scorers, weights = [CTCScorer(self.ctc, 0, 2)], {"ctc": 0.4}
        if self.lm is not None:
            scorers.append(TransformerLMScorer(self.lm, temperature=1.15))
            weights["transformerlm"] = 0.6
        # Of the utterance's own frames for us, of the longest one's for SpeechBrain.
        ratio = 1.0 if steps is None else (steps + 0.5) / time
        searcher = kind(
            modules=[self.model, self.output],
            temperature=1.15,
            bos_index=1,
            eos_index=2,
            min_decode_ratio=0.0 if steps is None else ratio,
            max_decode_ratio=ratio,
            beam_size=self.beam,
            using_eos_threshold=False,
            length_normalization=True,
            scorer=ScorerBuilder(weights, scorers),
        ).to(encoded.device)
        return lambda: searcher(encoded.clone(), lengths / time)


def random_task(size, device):
    """Random weights and encoder output: utterances of the same length, so that steps are too."""
    torch.manual_seed(0)
    shape = {name: size[name] for name in ("d_model", "nhead", "num_decoder_layers", "d_ffn")}
    model = TransformerASR(
        size["tokens"], 80, num_encoder_layers=1, csgu_linear_units=64, normalize_before=True,
        activation=nn.GELU, **shape,
    )  # fmt: skip
    output, ctc = (Linear(input_size=size["d_model"], n_neurons=size["tokens"]) for _ in range(2))
    lm = size["lm"] and TransformerLM(size["tokens"], num_decoder_layers=0, **size["lm"])
    modules = [m and m.to(device).eval() for m in (model, output, ctc, lm)]
    encoded = torch.randn(size["batch"], size["frames"], size["d_model"], device=device)
    lengths = torch.full((size["batch"],), size["frames"], device=device)
    return Task(*modules, encoded, lengths, size["beam"])


@torch.no_grad()
def trained_task(run, manifest, beam, batch, device):
    """The first `batch` utterances of a manifest through a run's encoder."""
    recogniser = load(run, device=device)
    modules = recogniser.modules
    if "seq_lin" not in modules:
        raise InputError(f"{run} has no attention decoder")
    rows = manifests.read(manifest)[:batch]
    _, encoded, lengths = next(encoded_batches(recogniser, rows, batch))
    names = ("Transformer", "seq_lin", "ctc_lin")
    return Task(*(modules[n] for n in names), None, encoded, lengths, beam)


@torch.no_grad()
def turns(sides, repeats, device):
    """Seconds of each side, which take turns; the first turn, which warms up, is not counted."""
    seconds = {name: [] for name in sides}
    for turn in tqdm(range(repeats + 1), file=sys.stderr):
        for name, call in sides.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def report(title, seconds, slow, fast):
    """Prints and returns the ratio of two sides, turn by turn."""
    ratios = sorted(a / b for a, b in zip(seconds[slow], seconds[fast]))
    row = {
        "seconds": seconds,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio": statistics.median(ratios),
        "lowest_ratio": ratios[0],
        "highest_ratio": ratios[-1],
    }
    times = ", ".join(f"{name} {middle:.3f} s" for name, middle in row["median_seconds"].items())
    print(f"{title}: {times}; {row['ratio']:.2f} times ({ratios[0]:.2f}–{ratios[-1]:.2f})")
    return row


def check_same(title, slow, fast):
    """Says that two sides find the same hypotheses, or raises `InputError`.

    Each is a list of (tokens, scores) of single utterances or batches.
    """
    sides = [
        [(list(map(int, one)), float(score)) for hypotheses, scores in side
         for one, score in zip(hypotheses, scores)]
        for side in (slow, fast)
    ]  # fmt: skip
    for row, ((tokens, score), (others, other)) in enumerate(zip(*sides, strict=True)):
        # Hypotheses that tie may be either; their scores are the same.
        if abs(score - other) > 1e-3 * max(1, abs(score)):
            raise InputError(
                f"{title}: utterance {row} has other hypotheses on the two sides: "
                f"{tokens[:10]}… with {score:.4f} and {others[:10]}… with {other:.4f}"
            )
    same = sum(a[0] == b[0] for a, b in zip(*sides))
    print(f"{title}: {same} of {len(sides[0])} hypotheses are the same, and all scores")
    return {"hypotheses": len(sides[0]), "same": same}


def same_task(task, size):
    """What both sides find, each utterance alone: in a batch SpeechBrain's depends on the others.

    As (hypotheses, scores) of each utterance.
    """
    found = []
    for kind in (S2STransformerBeamSearcher, BeamSearcher):
        searches = (task.search(kind, size["steps"], slice(i, i + 1)) for i in range(size["batch"]))
        with torch.no_grad():
            results = [search() for search in searches]
        found.append([(hypotheses, scores) for hypotheses, _, scores, _ in results])
    return found


def check(arguments):
    """The device, and `InputError` for what cannot be."""
    for name in ("threads", "repeats", "beam", "batch", "steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if any(length < 1 for length in arguments.lengths):
        raise InputError(f"--lengths must be at least 1, got {arguments.lengths}")
    if arguments.run and not arguments.manifest:
        raise InputError("--run needs --manifest, a manifest of recordings")
    return check_device(arguments.device)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--run", help="folder of a trained model with an attention decoder")
    parser.add_argument("--manifest", help="with --run: whose recordings are searched")
    parser.add_argument("--beam", type=int, help="instead of the size's; with --run 10")
    parser.add_argument("--batch", type=int, help="instead of the size's; with --run 8")
    parser.add_argument("--steps", type=int, help="instead of the size's")
    parser.add_argument("--lengths", nargs="*", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    with said_in_one_line():
        measure(arguments)


def measure(arguments):
    """All that is asked for: printed, and written to a file."""
    device = check(arguments)
    torch.set_num_threads(arguments.threads)
    figures = {}
    tasks = {}
    if arguments.run:
        beam, batch = arguments.beam or 10, arguments.batch or 8
        task = trained_task(arguments.run, arguments.manifest, beam, batch, device)
        batch = len(task.lengths)  # a manifest may have fewer
        tasks["run"] = {"beam": beam, "batch": batch, "steps": None}, task
    for name in () if arguments.run else arguments.sizes:
        size = dict(SIZES[name])
        for key in ("beam", "batch", "steps"):
            size[key] = getattr(arguments, key) or size[key]
        tasks[name] = size, random_task(size, device)
    for name, (size, task) in tasks.items():
        print(f"{name}: beam {size['beam']}, batch {size['batch']}, steps {size['steps']}")
        rows = figures[name] = dict(size)

        def ours(steps, task=task, size=size):
            """All at once, and one by one."""
            alone = [
                task.search(BeamSearcher, steps, slice(i, i + 1)) for i in range(size["batch"])
            ]
            return {
                "batch": task.search(BeamSearcher, steps),
                "one by one": lambda: [call() for call in alone],
            }

        sides = {
            "SpeechBrain": task.search(S2STransformerBeamSearcher, size["steps"]),
            "ours": task.search(BeamSearcher, size["steps"]),
        }
        rows["hypotheses"] = check_same("  results", *same_task(task, size))
        seconds = turns(sides, arguments.repeats, device)
        rows["beside_speechbrain"] = report("  search", seconds, "SpeechBrain", "ours")
        if size["batch"] > 1:
            seconds = turns(ours(size["steps"]), arguments.repeats, device)
            rows["batched"] = report("  batched", seconds, "one by one", "batch")
        if size["steps"] is not None:
            rows["seconds_a_token"] = {}
            for steps in arguments.lengths:
                seconds = turns({"ours": task.search(BeamSearcher, steps)}, 1, device)["ours"]
                a_token = rows["seconds_a_token"][steps] = statistics.median(seconds) / steps
                print(f"  {steps} tokens: {1000 * a_token:.2f} ms a token")
    if arguments.json:
        write_figures(arguments.json, {"sizes": figures}, device)


if __name__ == "__main__":
    main()
