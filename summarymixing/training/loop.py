"""What every training here shares: schedule, steps, checkpoints, preemption, learning curve."""

import importlib.util
import logging
import os
import time
from dataclasses import dataclass, field

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, main_process_only
from speechbrain.utils.seed import seed_everything
from torch.nn.parallel import DistributedDataParallel

from summarymixing.errors import InputError, check_integer
from summarymixing.files import write_whole
from summarymixing.training import curves, data
from summarymixing.training.batches import Batches
from summarymixing.training.checkpoints import AVERAGED_BY, load_average
from summarymixing.training.preemption import Preemption
from summarymixing.training.results import peak_memory_bytes

logger = logging.getLogger(__name__)

PREEMPTED = "preempted"  # a file in the output folder, there while a run is to be started again
MAX_UNREAD = 20  # utterances of an epoch that may turn out unreadable, on each process

# Metrics of checkpoints, and how the log shows an epoch, by the column of the learning curve.
METRIC_COLUMNS = {
    "ACC": "valid_accuracy",
    "WER": "valid_wer",
    "CER": "valid_cer",
    "loss": "valid_loss",
}
_SHOWN = {
    "train_loss": "train loss {:.3f}",
    "valid_loss": "valid loss {:.3f}",
    "valid_accuracy": "accuracy {:.3f}",
    "valid_wer": "WER {:.2f} %",
    "valid_cer": "CER {:.2f} %",
    "valid_perplexity": "perplexity {:.2f}",
}


@dataclass
class Totals:
    """What is summed over the batches of a validation or test set."""

    loss: float = 0.0
    size: int = 0
    correct: int = 0
    predicted: int = 0
    words: int = 0
    sentences: int = 0
    references: dict = field(default_factory=dict)
    hypotheses: dict = field(default_factory=dict)

    def of_all_processes(self):
        """The same over the shares of all processes."""
        parts = gathered(self)
        total = Totals()
        for part in parts:
            for name, value in vars(part).items():
                if isinstance(value, dict):
                    getattr(total, name).update(value)
                else:
                    setattr(total, name, getattr(total, name) + value)
        return total


def gathered(value):
    """The values that all processes have here, in a list."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


class TrainingBrain(sb.Brain):
    """Trains, validates each epoch, and loads the average of the best checkpoints to test.

    A subclass has `compute_forward` and `compute_objectives`, and `nothing`, the batch of a process
    that has none. Reads from hparams: `lr_schedule`, `number_of_epochs`, `epoch_counter`,
    `avg_checkpoints`, `avg_metric`, `output_folder`, `tensorboard`, `seed`, and if it is there
    `max_unread`.
    """

    tokenizer = None  # set by the experiment

    # What a subclass says
    required, optional = (), ()  # keys of the recipe that it reads besides
    needs = ()  # modules
    has_accuracy = True  # whether it calls count_accuracy

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.optimizer_step_limit is not None:
            self.optimizer_step_limit = int(self.optimizer_step_limit)  # text, on a command line
        self._check()
        self.preemption = Preemption(self._mark_preempted)
        self.skipped_steps = self._skipped_in_a_row = self.unread = self._unread_in_epoch = 0
        self._ids, self._not_finite = [], []  # utterances since the last step, and of broken losses
        self.trained = False
        self.scores = {}
        self.totals = Totals()
        self._averaged = False
        self._train_loss = None
        self._started = None
        self._seconds_before = 0.0
        self._peak_before = 0

    def _check(self):
        """What would otherwise fail at the end of a training, or of an epoch."""
        metric, count = self.hparams.avg_metric, self.hparams.avg_checkpoints
        if metric not in AVERAGED_BY:
            raise InputError(f"avg_metric must be one of {', '.join(AVERAGED_BY)}, got {metric!r}")
        check_integer("avg_checkpoints", count)
        if metric == "ACC" and not self.has_accuracy:
            raise InputError(
                "avg_metric: ACC is that of an attention decoder; use WER, CER or loss"
            )
        if self.hparams.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise InputError("tensorboard: True needs the package: pip install tensorboard")

    def size(self, batch):
        """What the loss of a batch is a mean over: its utterances."""
        return len(batch)

    def nothing(self):
        """A batch for a process that has none: all have to compute their share of a step."""
        raise NotImplementedError

    # Training loop

    @property
    def batches(self):
        """The plan of the current epoch."""
        return self.train_loader.batch_sampler

    def fit(self, epoch_counter, train_set, valid_set=None, **kwargs):
        """As SpeechBrain's; `train_set` is a loader over `Batches`, see `training.data`."""
        self.train_loader = train_set
        with self.preemption.deferred():
            super().fit(epoch_counter, train_set, valid_set, **kwargs)

    def _wrap_distributed(self):
        super()._wrap_distributed()
        for module in self.modules.values():
            # Buffers are constants here. Were they sent around, processes that have unequal
            # numbers of batches to validate would wait for each other forever.
            if isinstance(module, DistributedDataParallel):
                module.broadcast_buffers = False

    def on_fit_start(self):
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable(
                "batches",
                self.batches,
                custom_load_hook=Batches.load,
                custom_save_hook=main_process_only(Batches.save),
                optional_load=True,
            )
            if if_main_process():
                self.checkpointer.remove_unfinished()
        super().on_fit_start()
        # The plan of the epoch that is resumed, whose batches are counted.
        epoch = self.hparams.epoch_counter.current + 1
        self.batches.set_epoch(epoch)
        self.step = self.batches.resumed(self.step)
        if self.step == 0:
            self.avg_train_loss = 0.0
        self._started = time.time()
        before = getattr(self.checkpointer, "recovered", None)
        if before is not None:
            self._seconds_before = before.meta.get("seconds", 0.0)
            self.skipped_steps = before.meta.get("skipped_steps", 0)
            self.unread = before.meta.get("unread", 0)
            if before.meta.get("device") == self._device_kind():  # or they are no comparison
                self._peak_before = before.meta.get("peak_memory_bytes", 0)
        if self._optimizer_step_limit_exceeded and self.step == 0:
            # SpeechBrain would begin another epoch and find that it has nothing to do.
            self.hparams.epoch_counter.current = self.hparams.epoch_counter.limit

    def on_stage_start(self, stage, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.batches.set_epoch(epoch, start=self.step)
            self.train_loader.dataset.epoch = epoch
            self.trained = True
            self._unread_in_epoch = 0
        self.totals = Totals()

    def fit_batch(self, read):
        """One batch forward and backward, and a step if it is the step's last.

        Arguments
        ---------
        read : (PaddedBatch or None, list of Unread)
            As `data.train_loader` gives it. Without a batch, the gradient is zero.
        """
        batch, unread = read
        number = self.step - 1
        self._count_unread(unread)
        weight = self.batches.weight(number)
        if batch is None:
            batch, weight = self.nothing(), 0.0
        else:
            weight *= len(batch) / (len(batch) + len(unread))
            self._ids += batch.id
        last = self.batches.ends_step(number)
        self.on_fit_batch_start(batch, last)
        # Dropout and augmentation of a batch are the same whatever came before, and whichever
        # process has it.
        seed_everything(data.seed_of(self.hparams.seed, *self.batches.place(number)), verbose=False)
        with self.no_sync(not last):
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            if not torch.isfinite(loss):
                self._not_finite += batch.id
                weight = torch.nan  # for all processes to see, even if the gradient is finite
            self.scaler.scale(loss * weight).backward()
        if last:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, last)
        return loss.detach().cpu() if weight else torch.tensor(torch.nan)

    def on_fit_batch_start(self, batch, should_step):
        if should_step:
            rate = self.hparams.lr_schedule(self.optimizer_step + 1, self._progress())
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def optimizers_step(self):
        """One step with the gradients of all parameters clipped together, or none if not finite.

        SpeechBrain clips the first parameter group only, and steps with the parameters whose
        gradients happen to be finite.

        Returns
        -------
        bool
            Whether there was one.

        Raises
        ------
        InputError
            After more than `nonfinite_patience` steps in a row that were not finite.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if torch.isfinite(norm):
            self.scaler.step(self.optimizer)
            self._skipped_in_a_row = 0
        else:
            self._skip_step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        self._ids, self._not_finite = [], []
        return bool(torch.isfinite(norm))

    def _skip_step(self):
        # All processes are here: the gradient that is not finite is that of all.
        noted = gathered((self._ids, self._not_finite))
        ids, broken = (sum(part, []) for part in zip(*noted, strict=True))
        if not broken and self.scaler.is_enabled() and self.scaler.get_scale() >= 1:
            return  # half precision finds its scale by steps that overflow
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        what = "loss" if broken else "gradient"
        names = " ".join(broken or ids)
        logger.warning("step %d skipped: %s not finite: %s", self.optimizer_step + 1, what, names)
        if self._skipped_in_a_row > self.nonfinite_patience:
            raise InputError(
                f"training ends: {self._skipped_in_a_row} steps in a row had a {what} that is not "
                f"finite (nonfinite_patience={self.nonfinite_patience}), the last with utterances "
                f"{names}; the weights are as before them"
            )

    def _count_unread(self, unread):
        for failure in unread:
            self.unread += 1
            self._unread_in_epoch += 1
            logger.warning("epoch %d without %s: %s", self.batches.epoch, *failure)
        limit = getattr(self.hparams, "max_unread", MAX_UNREAD)
        if self._unread_in_epoch > limit:
            raise InputError(
                f"training ends: {self._unread_in_epoch} utterances of this epoch could not be "
                f"read (max_unread={limit}), the last: {unread[-1].reason}"
            )

    def _progress(self):
        epochs = self.hparams.number_of_epochs
        within = min(self.step / len(self.batches), 1.0)
        return min((self.hparams.epoch_counter.current - 1 + within) / epochs, 1.0)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """At the end of a step, when it is time to or a process was told to end."""
        if self.checkpointer is None or not self.batches.ends_step(self.step - 1):
            return False
        due = 0 < self.ckpt_interval_minutes * 60 < time.time() - last_ckpt_time
        due = due or 0 < self.ckpt_interval_steps <= steps_since_ckpt
        if not self.distributed_launch:
            self._ending = self.preemption.asked
            return due or self._ending
        # Clocks and signals differ between processes, which have to save and to end together.
        votes = torch.tensor([due, self.preemption.asked], dtype=torch.int, device=self.device)
        torch.distributed.all_reduce(votes)
        self._ending = bool(votes[1])
        return bool(votes.any())

    def _save_intra_epoch_ckpt(self):
        self._save_checkpoint({}, end_of_epoch=False)
        if self._ending:
            self.preemption.exit()

    def _mark_preempted(self):
        if if_main_process():
            write_whole(os.path.join(self.hparams.output_folder, PREEMPTED), "")

    def _save_checkpoint(self, meta, end_of_epoch):
        metric, count = self.hparams.avg_metric, self.hparams.avg_checkpoints
        meta |= {
            "seconds": self._seconds(),
            "unread": self.unread,
            "skipped_steps": self.skipped_steps,
            "device": self._device_kind(),
            "peak_memory_bytes": self.peak_memory(),
        }
        self.checkpointer.save_and_keep(metric, count, meta, end_of_epoch)

    def _seconds(self):
        return self._seconds_before + time.time() - self._started

    # Validation

    def evaluate_batch(self, batch, stage):
        """As SpeechBrain's; SIGTERM ends the run here: what was trained is saved."""
        if self.preemption.asked:
            self.preemption.exit()
        loss = super().evaluate_batch(batch, stage)
        self.totals.loss += float(loss) * self.size(batch)
        self.totals.size += self.size(batch)
        return loss

    def count_accuracy(self, log_probabilities, targets, lengths):
        """Adds to the share of tokens predicted right with teacher forcing."""
        valid = torch.arange(targets.shape[1], device=targets.device) < lengths.unsqueeze(1)
        self.totals.correct += ((log_probabilities.argmax(-1) == targets) & valid).sum().item()
        self.totals.predicted += valid.sum().item()

    def validated(self):
        """What validation found: columns of the learning curve, None for what was not measured."""
        totals = self.totals
        accuracy = totals.correct / totals.predicted if totals.predicted else None
        return {"valid_loss": totals.loss / totals.size, "valid_accuracy": accuracy}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self._train_loss = stage_loss
            # Validation may take long, and fail.
            self._save_checkpoint({}, end_of_epoch=False)
            return
        self.totals = self.totals.of_all_processes()
        if stage == sb.Stage.VALID:
            self._end_epoch(epoch)

    def _end_epoch(self, epoch):
        values = {
            "step": self.optimizer_step,
            "seconds": self._seconds(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self._train_loss,
            **self.validated(),
        }
        if if_main_process():
            curves.append(self._curve_file(), epoch, **values)
            folder = self.hparams.output_folder
            title = "/".join(os.path.abspath(folder).split(os.sep)[-3:])
            curves.draw(self._curve_file(), os.path.join(folder, "curve.png"), title)
            self._log_epoch(epoch, values)
        meta = {name: values.get(column) for name, column in METRIC_COLUMNS.items()} | {
            "epoch": epoch
        }
        meta = {name: value for name, value in meta.items() if value is not None}
        self._save_checkpoint(meta, end_of_epoch=True)

    def _log_epoch(self, epoch, values):
        epochs = self.hparams.number_of_epochs
        elapsed = values["seconds"]
        left = elapsed / epoch * (epochs - epoch)
        found = [
            shown.format(values[name])
            for name, shown in _SHOWN.items()
            if values.get(name) is not None
        ]
        logger.info(
            "epoch %d/%d: %s; %.1f min, %.1f to go",
            epoch,
            epochs,
            ", ".join(found),
            elapsed / 60,
            left / 60,
        )
        if self.hparams.tensorboard:
            self._log_tensorboard(epoch, values)

    def _log_tensorboard(self, epoch, values):
        from torch.utils.tensorboard import SummaryWriter  # an optional package

        folder = os.path.join(self.hparams.output_folder, "tensorboard")
        # A resumed run logs an epoch again.
        with SummaryWriter(folder, purge_step=epoch) as writer:
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(name, value, epoch)

    def _curve_file(self):
        return os.path.join(self.hparams.output_folder, "curve.csv")

    def _curve(self):
        return curves.read(self._curve_file()) if os.path.exists(self._curve_file()) else []

    def training(self):
        """Epochs, and seconds of training and validating, in all runs of this experiment."""
        rows = self._curve()
        return (rows[-1]["epoch"], rows[-1]["seconds"]) if rows else (0, 0.0)

    def _device_kind(self):
        return torch.device(self.device).type

    def peak_memory(self):
        """In bytes, of all runs of this experiment; see `results.peak_memory_bytes`."""
        return max(self._peak_before, peak_memory_bytes())

    # Evaluation

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Loads the average of the best checkpoints, strictly, once for all test sets."""
        if self._averaged:
            return
        load_average(self.checkpointer, self.hparams.avg_metric, self.hparams.avg_checkpoints)
        self._averaged = True
