#!/usr/bin/env python3
"""Puts fresh mixers into a trained model, in the place of its attention, to be trained on.

    python scripts/swap_mixer.py MODEL OUT --attention_type=SummaryMixing --mode=SummaryMixing
    python recipes/FineTune/train.py --pretrained=OUT --train=… --valid=…

MODEL is the output folder of a training, or a package. OUT gets what is needed to load the model
and to train it on. All weights but those of the mixers are kept. Branchformer merges its branches
in another way with SummaryMixing, so that these weights are new, too; with --branch_merge=linear
it keeps its own.
"""

import argparse
import os
from collections import Counter

from summarymixing import adapt
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.models.transformer_asr import BRANCH_MERGES
from summarymixing.training import config


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", metavar="MODEL", help="output folder of a training, or a package of it"
    )
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--attention_type",
        default="SummaryMixing",
        help="'[SummaryMixing, RoPEMHA]': in turn",
    )
    parser.add_argument("--mode", default="SummaryMixing", help="of the cell")
    parser.add_argument(
        "--encoder_nhead", default="1", help="heads of the mixer; '[1, 8]': of each"
    )
    for name in ("local_proj_hid_dim", "summary_hid_dim"):
        parser.add_argument(f"--{name}", type=int, nargs="+", help="hidden widths of the cell")
    for name in ("local_proj_out_dim", "summary_out_dim"):
        parser.add_argument(f"--{name}", type=int, help="of the cell; its default is d_model")
    parser.add_argument(
        "--branch_merge", choices=BRANCH_MERGES, help="of Branchformer; by default the mixer's"
    )
    parser.add_argument("--force", action="store_true", help="replace what this made of OUT before")
    arguments = vars(parser.parse_args(argv))
    model, out, force = (arguments.pop(name) for name in ("model", "out", "force"))
    with said_in_one_line():
        for name in ("attention_type", "encoder_nhead"):
            arguments |= config.read_overrides(f"{name}: {arguments[name]}")
        if os.path.realpath(out) == os.path.realpath(model):
            raise InputError(f"{out}: that is the model itself; give another folder")
        new = adapt.swap_mixer(adapt.read(model), out, force, **arguments)
    counts = Counter(name.split(".layers.")[0] for name in new)
    for part, count in counts.items():
        print(f"{part}: {count} new parameters")
    print(f"{out}: all other weights are kept; next: train.py --pretrained={out}")


if __name__ == "__main__":
    main()
