"""What a checkpoint of a run holds, and the average of its best ones."""

import logging

from speechbrain.utils.checkpoints import average_checkpoints
from torch import nn

from summarymixing.errors import InputError

logger = logging.getLogger(__name__)

AVERAGED_BY = {"ACC": "max_key", "epoch": "max_key", "WER": "min_key", "loss": "min_key"}


def recoverable_model(modules):
    """All modules with parameters, as the one entry "model" of a checkpoint."""
    return nn.ModuleDict({k: v for k, v in modules.items() if any(True for _ in v.parameters())})


def load_average(checkpointer, metric, count):
    """Loads the best checkpoint, and the average of the best ones into its "model", strictly.

    Arguments
    ---------
    checkpointer : speechbrain.utils.checkpoints.Checkpointer
        With a recoverable "model".
    metric : str
        A key of `AVERAGED_BY`.
    count : int
        Checkpoints to average, at most.

    Raises
    ------
    InputError
        If there is no checkpoint with that metric.
    """
    checkpoints = checkpointer.find_checkpoints(
        **{AVERAGED_BY[metric]: metric}, max_num_checkpoints=count
    )
    if not checkpoints:
        raise InputError(
            f"no checkpoint with {metric} in {checkpointer.checkpoints_dir}: "
            "train first, without --test_only"
        )
    checkpointer.load_checkpoint(checkpoints[0])
    model = checkpointer.recoverables["model"]
    model.load_state_dict(average_checkpoints(checkpoints, "model"), strict=True)
    logger.info("the average of %d checkpoints (best %s)", len(checkpoints), metric)
