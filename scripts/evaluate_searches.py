#!/usr/bin/env python3
"""Word error rates and times of searches over one trained model, as a Markdown table.

    python scripts/evaluate_searches.py MODEL MANIFEST.csv
    python scripts/evaluate_searches.py MODEL MANIFEST.csv \\
        --methods recipe "joint beam_size=20 ctc_weight=0.3" "ctc_beam ngram_file=tokens.arpa"

MODEL is the output folder of a training or a package of it, MANIFEST.csv one of those in its
folder manifests/. A method is the name of a search and its arguments, as in
summarymixing.decoding.make_search; "recipe" is the search that it was tested with. All of them
search the same encoder output, batch by batch in turn, after a batch whose time is not counted.
"""

import argparse
import time

from tqdm import tqdm

from summarymixing.dataio import manifests
from summarymixing.decoding.methods import parse_search
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.inference import load
from summarymixing.inference.evaluation import encoded_batches
from summarymixing.machine import write_figures
from summarymixing.scoring import metrics

DEFAULT = {
    "ctc_lin": ["ctc_greedy", "ctc_beam", "rescore", "attention", "joint", "recipe"],
    "joiner": ["transducer_greedy", "transducer_beam", "recipe"],
}


def evaluate(recogniser, rows, searches, batch_size):
    """Texts of each search by utterance, and seconds: of each search, and of the encoder."""
    texts, seconds = [{} for _ in searches], [0.0] * len(searches)
    # A batch that does not count: searches load their models when they are first called.
    _, encoded, lengths = next(encoded_batches(recogniser, rows, batch_size))
    for search in searches:
        search(recogniser.modules, encoded, lengths)
    batches = encoded_batches(recogniser, rows, batch_size)
    encoding = 0.0
    with tqdm(total=len(rows), unit=" utterances", disable=None) as bar:
        while True:
            started = time.perf_counter()
            batch, encoded, lengths = next(batches, (None, None, None))
            if batch is None:
                return texts, seconds, encoding
            encoding += time.perf_counter() - started
            for i, search in enumerate(searches):
                started = time.perf_counter()
                found = search(recogniser.modules, encoded, lengths)
                seconds[i] += time.perf_counter() - started
                for row, tokens in zip(batch, found):
                    texts[i][row["ID"]] = recogniser.tokenizer.decode(tokens)
            bar.update(len(batch))


def run(options):
    if options.batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {options.batch_size}")
    recogniser = load(options.model, options.device)
    rows = manifests.read(options.manifest)
    names = options.methods
    if names is None:
        names = next(names for head, names in DEFAULT.items() if head in recogniser.modules)
    searches = [
        recogniser.test_search
        if name == "recipe"
        else parse_search(name, recogniser.modules, lambda: recogniser.test_search)
        for name in names
    ]
    texts, seconds, encoding = evaluate(recogniser, rows, searches, options.batch_size)
    references = {row["ID"]: row["wrd"] for row in rows}
    audio = sum(float(row["duration"]) for row in rows)
    table = []
    for name, found, taken in zip(names, texts, seconds):
        scores = metrics.score(references, found)
        factor = (encoding + taken) / audio
        table.append(
            {"search": name, "wer": scores.wer, "cer": scores.cer, "seconds": taken, "rtf": factor}
        )
    print(
        f"\n{len(rows)} utterances, {audio / 60:.1f} min of audio, {options.batch_size} at a time; "
        f"encoding takes {encoding:.1f} s, which the real-time factor includes\n"
    )
    print("| search | WER % | CER % | seconds | real-time factor |\n|---|---|---|---|---|")
    for row in table:
        print(
            f"| {row['search']} | {row['wer']:.2f} | {row['cer']:.2f} | {row['seconds']:.1f} "
            f"| {row['rtf']:.4f} |"
        )
    if options.json:
        content = {
            "utterances": len(rows),
            "audio_seconds": audio,
            "batch_size": options.batch_size,
            "encoding_seconds": encoding,
            "searches": table,
        }
        write_figures(options.json, content, recogniser.device)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", metavar="MODEL", help="output folder of a training, or a package of it"
    )
    parser.add_argument("manifest")
    parser.add_argument("--methods", nargs="+", metavar="METHOD")
    parser.add_argument("--batch_size", type=int, default=8, help="utterances (default: 8)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="file for the figures")
    with said_in_one_line():
        run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
