"""Checkpoints that are there whole or not at all, and the average of the best ones."""

import json
import logging
import os
import shutil
import time
import zlib

import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    Checkpointer,
    average_checkpoints,
)
from speechbrain.utils.distributed import ddp_barrier
from torch import nn

from summarymixing import files
from summarymixing.errors import InputError, one_line

logger = logging.getLogger(__name__)

AVERAGED_BY = {
    "ACC": "max_key",
    "epoch": "max_key",
    "WER": "min_key",
    "CER": "min_key",
    "loss": "min_key",
}
CHECKSUMS = "checksums.json"
_OF_ANOTHER_MODEL = ("size mismatch", "Missing key", "Unexpected key")  # as torch says it
_HIDDEN = ".unfinished-"  # not what SpeechBrain takes for a checkpoint


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, safe from crashes, damage and full disks.

    A checkpoint is written into a hidden folder, with the checksums of its files, and gets its
    name when all of it is on the disk. One that does not agree with its checksums is passed over
    with a warning, so that the newest or best of the good ones is found.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._warned = set()
        self.recovered = None  # the checkpoint that the run goes on from

    def save_and_keep(self, metric, count, meta, end_of_epoch=True):
        """Saves, and keeps of all checkpoints the new one and the best by a metric.

        Arguments
        ---------
        metric : str
            A key of `AVERAGED_BY`.
        count : int
            How many of the best to keep.
        meta : dict
            Kept with the checkpoint, the metric among it if it was measured.
        end_of_epoch : bool

        Raises
        ------
        InputError
            If it cannot be written; earlier checkpoints are as they were.
        """
        # SpeechBrain takes the one with the latest time for the newest, and clocks are set back.
        before = [checkpoint.meta["unixtime"] for checkpoint in self.list_checkpoints()]
        meta = {"unixtime": max([time.time(), *(then + 0.001 for then in before)])} | meta
        saved = self.save_checkpoint(meta, end_of_epoch, verbosity=logging.DEBUG)
        if saved is not None:  # the main process
            self._delete_all_but(saved, metric, count)
        ddp_barrier()  # no process may list what is about to be deleted

    def _delete_all_but(self, saved, metric, count):
        best = super().find_checkpoints(**{AVERAGED_BY[metric]: metric}, max_num_checkpoints=count)
        kept = {saved.path, *(checkpoint.path for checkpoint in best)}
        for checkpoint in self.list_checkpoints():
            if checkpoint.path not in kept:
                # By one rename, as it came: half of it must not pass for a checkpoint.
                hidden = checkpoint.path.with_name(_HIDDEN + checkpoint.path.name)
                os.rename(checkpoint.path, hidden)
                shutil.rmtree(hidden)

    def save_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's.

        Raises
        ------
        InputError
            If it cannot be written; earlier checkpoints are as they were.
        """
        try:
            checkpoint = super().save_checkpoint(*args, **kwargs)
            return checkpoint and self._finish(checkpoint)
        except (OSError, RuntimeError) as error:
            # A file that torch.save cannot write, or cannot close, is a RuntimeError.
            torchs = any(part in str(error) for part in ("inline_container", "iostream"))
            if isinstance(error, OSError) or torchs:
                raise self._not_written(error) from error
            raise

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return path.with_name(_HIDDEN + path.name)

    def _finish(self, checkpoint):
        hidden = checkpoint.path
        sums = {file.name: _checksum(file) for file in sorted(hidden.iterdir())}
        files.write_whole(hidden / CHECKSUMS, json.dumps(sums, indent=1))
        for file in [*hidden.iterdir(), hidden]:
            _to_disk(file)
        whole = hidden.with_name(hidden.name.removeprefix(_HIDDEN))
        os.rename(hidden, whole)
        _to_disk(whole.parent)
        paths = {name: whole / path.name for name, path in checkpoint.paramfiles.items()}
        return checkpoint._replace(path=whole, paramfiles=paths)

    def _not_written(self, error):
        free = shutil.disk_usage(self.checkpoints_dir).free
        self.remove_unfinished()
        newest = self.find_checkpoint()
        return InputError(
            f"{self.checkpoints_dir}: a checkpoint could not be written ({_first_line(error)}; "
            f"{free / 1e6:.0f} MB were free); "
            + (f"{newest.path.name} is the last good one: " if newest else "")
            + "make room and start the same command again"
        )

    def remove_unfinished(self):
        """Removes what a crash left half written or half deleted."""
        for folder in self.checkpoints_dir.glob(f"{_HIDDEN}*"):
            shutil.rmtree(folder)

    def recover_if_possible(self, *args, **kwargs):
        """As SpeechBrain's."""
        self.recovered = super().recover_if_possible(*args, **kwargs)
        return self.recovered

    def load_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's.

        Raises
        ------
        InputError
            If it is of another model.
        """
        try:
            return super().load_checkpoint(*args, **kwargs)
        except RuntimeError as error:
            if not any(part in str(error) for part in _OF_ANOTHER_MODEL):
                raise
            raise InputError(
                f"{self.checkpoints_dir}: a checkpoint is of another model: {one_line(error)}"
            ) from error

    def find_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's, of those that are not damaged."""
        return next(iter(self.find_checkpoints(*args, max_num_checkpoints=1, **kwargs)), None)

    def find_checkpoints(self, *args, max_num_checkpoints=None, **kwargs):
        """As SpeechBrain's, of those that are not damaged."""
        good = []
        for checkpoint in super().find_checkpoints(*args, **kwargs):
            if len(good) == max_num_checkpoints:
                break
            if not self._warn_of_damage(checkpoint.path):
                good.append(checkpoint)
        return good

    def _list_checkpoint_dirs(self):
        folders = sorted(self.checkpoints_dir.glob(f"{CKPT_PREFIX}*"))
        return [folder for folder in folders if not self._warn_of_damage(folder, [METAFNAME])]

    def _warn_of_damage(self, folder, names=None):
        damage = _damage(folder, names)
        if damage is not None and (folder, damage) not in self._warned:
            self._warned.add((folder, damage))
            logger.warning("checkpoint %s is passed over: %s", folder, damage)
        return damage is not None


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
            f"no checkpoint with {metric} in {checkpointer.checkpoints_dir}: train first "
            "(without --test_only)"
        )
    checkpointer.load_checkpoint(checkpoints[0])
    model = checkpointer.recoverables["model"]
    model.load_state_dict(average_checkpoints(checkpoints, "model"), strict=True)
    logger.info("the average of %d checkpoints (best %s)", len(checkpoints), metric)


def _damage(folder, names=None):
    """What is wrong with files of a checkpoint, all or some, or None.

    One without checksums, as SpeechBrain's, is believed if it says when it was made.
    """
    try:
        meta = yaml.safe_load((folder / METAFNAME).read_text(encoding="utf-8"))
        if not {"unixtime", "end-of-epoch"} <= meta.keys():
            return f"{METAFNAME} is damaged"
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        return f"{METAFNAME} cannot be read ({_first_line(error)})"
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        expected = {name: sums[name] for name in names or sums}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{CHECKSUMS} cannot be read ({_first_line(error)})"
    for name, sum_ in expected.items():
        try:
            found = _checksum(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != sum_:
            return f"{name} is damaged ({found[0]} bytes of {sum_[0]}, another checksum)"
    return None


def _checksum(path):
    """Size in bytes and CRC-32 of a file."""
    size, sum_ = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            size += len(block)
            sum_ = zlib.crc32(block, sum_)
    return [size, sum_]


def _to_disk(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error):
    if isinstance(error, OSError):
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
