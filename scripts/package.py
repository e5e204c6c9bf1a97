#!/usr/bin/env python3
"""Makes a trained model a folder that stands alone: python scripts/package.py RUN OUT

OUT has the averaged weights, the tokenizer, a model card with the results, and a recording to try
it on. It loads here (scripts/transcribe.py, scripts/stream.py, `summarymixing.inference.load`) and
in SpeechBrain (`EncoderDecoderASR.from_hparams`), and finds what the test of the training found.
"""

import argparse
import logging

from summarymixing.errors import said_in_one_line
from summarymixing.inference.packaging import package


def arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="output folder of a training")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--example", metavar="AUDIO", help="a recording (default: an utterance of the test set)"
    )
    parser.add_argument("--force", action="store_true", help="replace a package that is there")
    parser.add_argument("--name", help="of the model (default: encoder, mixer and corpus)")
    parser.add_argument("--language", help="ISO 639 (default: what the recipe says, or en)")
    parser.add_argument(
        "--license", help="of the weights, as the Hugging Face Hub names it (default: unknown)"
    )
    return parser.parse_args(argv)


def main(argv=None):
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("checkpoints", "parameter_transfer"):
        logging.getLogger(f"speechbrain.utils.{name}").setLevel(logging.WARNING)
    with said_in_one_line():
        options = arguments(argv)
        text = package(**vars(options))
    print(f"{options.out}: checked with both loaders; the example says: {text}")


if __name__ == "__main__":
    main()
