#!/usr/bin/env python3
"""The demo's language model: python train.py hparams/transformer.yaml --train_text=… …"""

from summarymixing.training.lm import main

if __name__ == "__main__":
    main()
