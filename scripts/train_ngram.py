#!/usr/bin/env python3
"""An n-gram model over a tokenizer's tokens, for the CTC prefix beam search, as an ARPA file.

    python scripts/train_ngram.py RUN/tokenizer.model text.txt tokens.arpa --order=4
    python scripts/train_ngram.py RUN/tokenizer.model RUN/manifests/train.csv \\
        tokens.arpa --valid=RUN/manifests/valid.csv

Text is a file with a sentence on each line, or a manifest, whose transcripts are taken. Smoothing
is interpolated Kneser-Ney. All n-grams are in memory, some hundred bytes each: for texts above some
million words KenLM is the tool, on the numbers of tokens (summarymixing/decoding/ngram.py).
"""

import argparse
from pathlib import Path

from summarymixing.dataio import manifests, tokenizer
from summarymixing.dataio.text_lines import TextLines
from summarymixing.decoding.ngram import NGram, arpa_lines, estimate
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.files import write_whole


def sentences(path, pieces):
    """Tokens of each sentence of a text file or a manifest."""
    if Path(path).suffix == ".csv":
        return [pieces.encode(row["wrd"]) for row in manifests.read(path)]
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    return [pieces.encode(line) for line in TextLines(path)]


def run(options):
    if options.order < 1:
        raise InputError(f"--order must be at least 1, got {options.order}")
    pieces = tokenizer.load(options.tokenizer)
    vocabulary = pieces.get_piece_size()
    text = sentences(options.text, pieces)
    ngrams = estimate(text, options.order, vocabulary)
    try:
        write_whole(options.output, arpa_lines(ngrams))
    except OSError as error:
        raise InputError(f"{options.output}: {error.strerror}") from None
    print(f"{options.output}: {len(ngrams)} n-grams up to order {options.order}")
    for path in options.valid:
        perplexity = NGram(ngrams, vocabulary).perplexity(sentences(path, pieces))
        print(f"{path}: perplexity {perplexity:.2f} per token")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", help="a SentencePiece model, as in the folder of a training")
    parser.add_argument("text")
    parser.add_argument("output")
    parser.add_argument("--order", type=int, default=4, help="tokens (default: 4)")
    parser.add_argument("--valid", nargs="+", default=[], help="texts to give the perplexity of")
    with said_in_one_line():
        run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
