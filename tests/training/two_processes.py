"""A training that notes which utterances a process saw, and can fail on one: for torchrun."""

import json
import os
import sys
from pathlib import Path

from summarymixing.errors import InputError
from summarymixing.training.experiment import main
from summarymixing.training.seq2seq import CTCAttentionBrain


class NotingBrain(CTCAttentionBrain):
    def fit_batch(self, read):
        batch, _ = read
        rank = int(os.environ.get("RANK", 0))
        if batch is not None:
            note = [self.hparams.epoch_counter.current, batch.id]
            with open(Path(self.hparams.output_folder, f"seen_{rank}.txt"), "a") as file:
                file.write(json.dumps(note) + "\n")
        fails = os.environ.get("FAILS_ON", "")
        if fails == str(rank) and self.optimizer_step == 1:
            raise InputError("u-17 cannot be trained on")
        if fails == f"{rank}!" and self.optimizer_step == 1:
            raise ZeroDivisionError("a bug on one process")
        return super().fit_batch(read)


if __name__ == "__main__":
    main(NotingBrain, sys.argv[1:])
