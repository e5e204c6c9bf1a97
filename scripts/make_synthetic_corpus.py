#!/usr/bin/env python3
"""Synthesises a small English corpus in LibriSpeech's layout (needs espeakng-loader)."""

import argparse

from summarymixing.dataio import synthetic
from summarymixing.errors import said_in_one_line


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", help="where the corpus goes")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--train_minutes", type=float, default=40.0)
    parser.add_argument("--valid_minutes", type=float, default=3.0)
    parser.add_argument("--test_minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, help="speakers at a time (default: one per CPU)")
    with said_in_one_line():
        corpus = synthetic.make_corpus(**vars(parser.parse_args()))
    for split, content in corpus["splits"].items():
        print(
            f"{split}: {content['utterances']} utterances, {content['minutes']} minutes,"
            f" {len(content['speakers'])} speakers"
        )


if __name__ == "__main__":
    main()
