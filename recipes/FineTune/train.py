#!/usr/bin/env python3
"""A trained model goes on with other speech: python train.py --pretrained=… --train=… --valid=…"""

from pathlib import Path

from summarymixing.adapt import main

if __name__ == "__main__":
    main(Path(__file__).parent)
