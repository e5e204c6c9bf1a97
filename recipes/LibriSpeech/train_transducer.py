#!/usr/bin/env python3
"""Transducers on LibriSpeech: python train_transducer.py hparams/RECIPE.yaml --data_folder=…"""

from summarymixing.training.experiment import main
from summarymixing.training.transducer import TransducerBrain

if __name__ == "__main__":
    main(TransducerBrain)
