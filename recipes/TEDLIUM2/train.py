#!/usr/bin/env python3
"""CTC + attention on TED-LIUM 2: python train.py hparams/RECIPE.yaml --data_folder=…"""

from summarymixing.training.experiment import main
from summarymixing.training.seq2seq import CTCAttentionBrain

if __name__ == "__main__":
    main(CTCAttentionBrain)
