#!/usr/bin/env python3
"""Text for the demo's language model: python make_text.py CORPUS FOLDER.

CORPUS is what scripts/make_synthetic_corpus.py made. FOLDER gets train.txt, with the training
transcripts and sentences of the same grammar, and valid.txt and test.txt, the other transcripts.
"""

import argparse
import random
from pathlib import Path

from summarymixing.dataio.synthetic import SPLITS, sentence
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.files import write_whole


def main(argv=None):
    """Runs the command; `argv` is the command line without the program's name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sentences", type=int, default=20000, help="of the grammar (20000)")
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args(argv)
    with said_in_one_line():
        rng = random.Random(f"{options.seed} text")
        for name, split in SPLITS.items():
            lines = _transcripts(options.corpus / split)
            if name == "train":
                lines += [sentence(rng) for _ in range(options.sentences)]
            path = options.folder / f"{name}.txt"
            write_whole(path, "".join(f"{line}\n" for line in lines))
            print(f"{path}: {len(lines)} sentences")


def _transcripts(split):
    files = sorted(split.rglob("*.trans.txt"))
    if not files:
        raise InputError(
            f"{split}: no transcripts; give the folder that scripts/make_synthetic_corpus.py made"
        )
    rows = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return [row.split(" ", 1)[1] for row in rows]


if __name__ == "__main__":
    main()
