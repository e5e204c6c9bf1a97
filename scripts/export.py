#!/usr/bin/env python3
"""Makes a trained model ONNX graphs: python scripts/export.py MODEL OUT

OUT runs without torch: scripts/transcribe.py and scripts/stream.py take it, with nothing installed
but onnxruntime, numpy and soundfile. What is exported is the encoder with its CTC head.
"""

import argparse
import logging

from summarymixing.errors import number_or, said_in_one_line
from summarymixing.export import export


def arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", metavar="MODEL", help="output folder of a training, or a package of it"
    )
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--chunk_ms", type=float, default=640, help="chunk of the streaming graph (default: 640)"
    )
    parser.add_argument(
        "--left_chunks",
        type=number_or("unlimited"),
        default="unlimited",
        metavar="N|unlimited",
        help="chunks that a frame sees before its own, in the streaming graph (default: unlimited)",
    )
    parser.add_argument(
        "--int8", action="store_true", help="quantised graphs beside those in float32"
    )
    parser.add_argument("--force", action="store_true", help="replace an exported model")
    options = parser.parse_args(argv)
    if options.left_chunks == "unlimited":
        options.left_chunks = None
    return options


def main(argv=None):
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("speechbrain.utils.checkpoints").setLevel(logging.WARNING)
    with said_in_one_line():
        options = arguments(argv)
        config = export(**vars(options))
    streaming = config["streaming"]
    if streaming is None:
        chunks = "no streaming graph"
    else:
        left = streaming["left_context"]
        left = "all" if left is None else left
        chunks = f"streaming with chunks of {options.chunk_ms:g} ms and {left} before each"
    print(f"{options.out}: compared with the model; {chunks}")


if __name__ == "__main__":
    main()
