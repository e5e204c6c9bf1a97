#!/usr/bin/env python3
"""Word error rates of one trained model, offline and chunk by chunk, as a Markdown table.

    python scripts/evaluate_chunks.py MODEL MANIFEST.csv

MODEL is the output folder of a training or a package of it, MANIFEST.csv one of those in the folder
manifests/ of the training.
Decoding is greedy, as in streaming, whose results these are: a stream gives what its chunk-wise
forward gives. --whole asks where the loss comes from: mixers, or convolutions, see the utterance as
they do offline, and only the others go chunk by chunk.
"""

import argparse
import math
import sys

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from tqdm import tqdm

from summarymixing.dataio import manifests
from summarymixing.errors import check_integer, number_or, said_in_one_line
from summarymixing.inference import load
from summarymixing.inference.evaluation import front_end_batches
from summarymixing.inference.streaming import chunk_frames
from summarymixing.machine import write_figures
from summarymixing.scoring import metrics

WHOLE = DynChunkTrainConfig(10**9, None)  # all in one chunk
PARTS = {"mixers": ("mha_layer",), "convolutions": ("convolution_module", "convolution_branch")}


def see_the_whole(encoder, parts):
    """Takes these parts of every layer out of the chunks."""

    def whole(stream):
        return lambda x, chunks, state, padding=None: stream(x, WHOLE, state, padding)

    for layer in encoder.layers:
        for name in PARTS[parts]:
            if hasattr(layer, name):
                module = getattr(layer, name)
                module.stream = whole(module.stream)


@torch.no_grad()
def decode(recogniser, rows, configurations, batch_size):
    """Hypotheses by configuration and utterance: {config: {id: text}}."""
    hypotheses = [{} for _ in configurations]
    batches = front_end_batches(recogniser, rows, batch_size)
    count = math.ceil(len(rows) / batch_size)
    for batch, frames, lengths in tqdm(batches, total=count, unit="batch", file=sys.stderr):
        for found, chunks in zip(hypotheses, configurations):
            encoded = recogniser.modules["Transformer"].encode(
                frames, lengths, dynchunktrain_config=chunks
            )
            tokens = recogniser.search(recogniser.modules, encoded, lengths)
            texts = (recogniser.tokenizer.decode(ids) for ids in tokens)
            found.update(zip((row["ID"] for row in batch), texts))
    return hypotheses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", metavar="MODEL", help="output folder of a training, or a package of it"
    )
    parser.add_argument("manifest")
    parser.add_argument("--chunk_ms", type=float, nargs="+", default=[320, 640, 1280])
    parser.add_argument(
        "--left_chunks",
        nargs="+",
        type=number_or("unlimited"),
        metavar="N|unlimited",
        default=[2, 16, "unlimited"],
    )
    parser.add_argument("--whole", choices=PARTS, help="what sees more than its chunks")
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="file for the figures")
    with said_in_one_line():
        evaluate(parser.parse_args(argv))


def evaluate(arguments):
    """The table: printed, and written to a file."""
    check_integer("--batch_size", arguments.batch_size)
    lefts = [None if n == "unlimited" else n for n in arguments.left_chunks]
    recogniser = load(arguments.model, arguments.device)
    rows = manifests.read(arguments.manifest)
    if arguments.whole:
        see_the_whole(recogniser.modules["Transformer"].encoder, arguments.whole)
    sizes = [chunk_frames(recogniser, ms) for ms in arguments.chunk_ms]
    chunks = [DynChunkTrainConfig(size, left) for left in lefts for size in sizes]
    references = {row["ID"]: row["wrd"] for row in rows}
    offline, *found = [
        metrics.score(references, hypotheses).wer
        for hypotheses in decode(recogniser, rows, [None, *chunks], arguments.batch_size)
    ]
    print(f"\nWER % of {len(rows)} utterances; offline {offline:.2f}\n")
    print("| left chunks |" + "".join(f" {ms:g} ms |" for ms in arguments.chunk_ms))
    print("|---|" + "---|" * len(sizes))
    for i, left in enumerate(arguments.left_chunks):
        wers = found[i * len(sizes) : (i + 1) * len(sizes)]
        print(f"| {left} |" + "".join(f" {wer:.2f} |" for wer in wers))
    if arguments.json:
        table = [
            {"chunk_size": c.chunk_size, "left_context": c.left_context_size, "wer": wer}
            for c, wer in zip(chunks, found)
        ]
        content = {"offline": offline, "whole": arguments.whole, "chunks": table}
        write_figures(arguments.json, content, recogniser.device)


if __name__ == "__main__":
    main()
