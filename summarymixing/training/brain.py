"""The Brain that every recipe shares: front end, schedule, checkpoints, curves, scoring.

A recipe's objective is a subclass with `compute_forward` and `compute_objectives`.
"""

import importlib.util
import logging
import math
import os
import time
from dataclasses import dataclass, field

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import if_main_process, main_process_only
from speechbrain.utils.seed import seed_everything
from torch.nn.parallel import DistributedDataParallel

from summarymixing.errors import InputError
from summarymixing.files import write_whole
from summarymixing.ops.padding import absolute_lengths
from summarymixing.scoring import metrics
from summarymixing.training import curves, data
from summarymixing.training.batches import Batches
from summarymixing.training.checkpoints import AVERAGED_BY, load_average
from summarymixing.training.normalisation import StepStatistics
from summarymixing.training.preemption import Preemption

logger = logging.getLogger(__name__)

NOTHING = "nothing"  # the id of what stands in for a batch
PREEMPTED = "preempted"  # a file in the output folder, there while a run is to be started again
MAX_UNREAD = 20  # utterances of an epoch that may turn out unreadable, on each process


@dataclass
class Totals:
    """What is summed over the batches of a validation or test set."""

    loss: float = 0.0
    utterances: int = 0
    correct: int = 0
    predicted: int = 0
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


class ASRBrain(sb.Brain):
    """Trains a recogniser, validates it each epoch, and scores its averaged checkpoints.

    Reads from hparams: `compute_features`, `lr_schedule`, `number_of_epochs`, `epoch_counter`,
    `avg_checkpoints`, `avg_metric`, `output_folder`, `valid_search`, `valid_search_interval`,
    `test_search`, `tensorboard`, `seed`, and if they are there `fea_augment` and
    `dynchunktrain_config_sampler`.
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
        self.preemption = Preemption()
        self.skipped_steps = self._skipped_in_a_row = self.unread = self._unread_in_epoch = 0
        self._ids, self._not_finite = [], []  # utterances since the last step, and of broken losses
        self.statistics = StepStatistics(self.modules.normalize)
        self.trained = False
        self.scores = {}
        self.totals = Totals()
        self._averaged = False
        self._train_loss = None
        self._started = None
        self._seconds_before = 0.0

    def _check(self):
        """What would otherwise fail at the end of a training, or of an epoch."""
        metric, count = self.hparams.avg_metric, self.hparams.avg_checkpoints
        if metric not in AVERAGED_BY:
            raise InputError(f"avg_metric must be one of {', '.join(AVERAGED_BY)}, got {metric!r}")
        if not isinstance(count, int) or count < 1:
            raise InputError(f"avg_checkpoints must be a positive integer, got {count!r}")
        if metric == "ACC" and not self.has_accuracy:
            raise InputError("avg_metric: ACC is that of an attention decoder; use WER or loss")
        if metric == "WER" and self.hparams.valid_search_interval != 1:
            raise InputError("avg_metric: WER needs a WER every epoch: valid_search_interval: 1")
        if self.hparams.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise InputError("tensorboard: True needs the package: pip install tensorboard")

    # From audio to the encoder's input

    def front_end(self, batch, stage):
        """Audio to the encoder's input: (batch, time, ...), and lengths (batch,) in frames."""
        features, lengths = self._features(batch)
        if stage == sb.Stage.TRAIN and batch.id != [NOTHING]:
            self.statistics.add(features, lengths)
        # SpeechBrain's normalisation counts frames below fraction x time: half a frame less than
        # the length is counted exactly, where the length itself may gain a frame by rounding.
        # The host itself is to update nothing: see `training.normalisation`.
        features = self.modules.normalize(
            features, (lengths - 0.5) / features.shape[1], epoch=math.inf
        )
        augment = getattr(self.hparams, "fea_augment", None)
        if stage == sb.Stage.TRAIN and augment is not None:
            features, _ = augment(features, lengths / features.shape[1])
        return self.modules.CNN(features, lengths)

    def _features(self, batch):
        wavs, fractions = batch.sig
        return self.hparams.compute_features(wavs, absolute_lengths(fractions, wavs.shape[1]))

    def chunks(self, stage):
        """A `DynChunkTrainConfig` for a batch, drawn anew in training; None: encode offline."""
        sampler = getattr(self.hparams, "dynchunktrain_config_sampler", None)
        return None if sampler is None else sampler(stage)

    @torch.no_grad()
    def search(self, encoded, lengths, stage):
        """Token lists for encoder output (batch, time, d_model) and lengths (batch,) in frames."""
        search = self.hparams.valid_search if stage == sb.Stage.VALID else self.hparams.test_search
        # Searches know nothing of the wrappers of data-parallel training.
        modules = {name: getattr(module, "module", module) for name, module in self.modules.items()}
        return search(modules, encoded.float(), lengths)

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
        if self.statistics.missing:
            self._first_statistics(epoch)
        self._started = time.time()
        before = getattr(self.checkpointer, "recovered", None)
        if before is not None:
            self._seconds_before = before.meta.get("seconds", 0.0)
            self.skipped_steps = before.meta.get("skipped_steps", 0)
            self.unread = before.meta.get("unread", 0)
        if self._optimizer_step_limit_exceeded and self.step == 0:
            # SpeechBrain would begin another epoch and find that it has nothing to do.
            self.hparams.epoch_counter.current = self.hparams.epoch_counter.limit

    @torch.no_grad()
    def _first_statistics(self, epoch):
        """Those of the first step's utterances, read by each process: training begins with them."""
        dataset = self.train_loader.dataset
        dataset.epoch = epoch
        failures = []
        for place in range(self.batches.accumulation * self.batches.world_size):
            batch, unread = data.collate([dataset[i] for i in self.batches.at(place)])
            failures += unread
            if batch is not None:
                features, lengths = self._features(batch.to(self.device))
                self.statistics.add(features, lengths)
        if self.statistics.empty:
            raise InputError(f"nothing of the first step can be read: {failures[-1].reason}")
        self.statistics.begin()

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
            batch, weight = self._nothing(), 0.0
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
            if self.hparams.epoch_counter.current < self.modules.normalize.update_until_epoch:
                self.statistics.take_in()
        else:
            self._skip_step()
        self.statistics.clear()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        self._ids, self._not_finite = [], []

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

    def _nothing(self):
        """A batch for a process that has none: all have to compute their share of a step."""
        noise = torch.randn(self.hparams.sample_rate, generator=torch.Generator().manual_seed(0))
        item = {"id": NOTHING, "wrd": "", "sig": 0.1 * noise}
        item["tokens_bos"] = torch.tensor([self.tokenizer.bos_id()])
        item["tokens_eos"] = torch.tensor([self.tokenizer.eos_id()])
        return PaddedBatch([item])

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
            self._exit()

    def _exit(self):
        if if_main_process():
            write_whole(os.path.join(self.hparams.output_folder, PREEMPTED), "")
        self.preemption.exit()

    def _save_checkpoint(self, meta, end_of_epoch):
        metric, count = self.hparams.avg_metric, self.hparams.avg_checkpoints
        meta |= {"seconds": self._seconds(), "unread": self.unread}
        meta["skipped_steps"] = self.skipped_steps
        self.checkpointer.save_and_keep(metric, count, meta, end_of_epoch)

    def _seconds(self):
        return self._seconds_before + time.time() - self._started

    # Validation

    def evaluate_batch(self, batch, stage):
        """As SpeechBrain's; SIGTERM ends the run here: what was trained is saved."""
        if self.preemption.asked:
            self._exit()
        loss = super().evaluate_batch(batch, stage)
        self.totals.loss += float(loss) * len(batch)
        self.totals.utterances += len(batch)
        return loss

    def count_accuracy(self, log_probabilities, targets, lengths):
        """Adds to the share of tokens predicted right with teacher forcing."""
        valid = torch.arange(targets.shape[1], device=targets.device) < lengths.unsqueeze(1)
        self.totals.correct += ((log_probabilities.argmax(-1) == targets) & valid).sum().item()
        self.totals.predicted += valid.sum().item()

    def count_words(self, batch, encoded, lengths, stage):
        """Searches a batch and keeps its hypotheses beside the references."""
        interval = self.hparams.valid_search_interval
        if stage == sb.Stage.VALID and self.hparams.epoch_counter.current % interval:
            return
        found = self.search(encoded, lengths, stage)
        self.totals.references |= dict(zip(batch.id, batch.wrd))
        texts = (self.tokenizer.decode(ids) for ids in found)
        self.totals.hypotheses |= dict(zip(batch.id, texts))

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
        totals = self.totals
        accuracy = totals.correct / totals.predicted if totals.predicted else None
        wer = None
        if totals.hypotheses:
            wer = metrics.score(totals.references, totals.hypotheses).wer
        valid_loss = totals.loss / totals.utterances
        seconds = self._seconds()
        values = {
            "step": self.optimizer_step,
            "seconds": seconds,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self._train_loss,
            "valid_loss": valid_loss,
            "valid_accuracy": accuracy,
            "valid_wer": wer,
        }
        if if_main_process():
            curves.append(self._curve_file(), epoch, **values)
            folder = self.hparams.output_folder
            title = "/".join(os.path.abspath(folder).split(os.sep)[-3:])
            curves.draw(self._curve_file(), os.path.join(folder, "curve.png"), title)
            self._log_epoch(epoch, values)
        meta = {"ACC": accuracy, "WER": wer, "loss": valid_loss, "epoch": epoch}
        meta = {name: value for name, value in meta.items() if value is not None}
        self._save_checkpoint(meta, end_of_epoch=True)

    def _log_epoch(self, epoch, values):
        epochs = self.hparams.number_of_epochs
        elapsed = values["seconds"]
        left = elapsed / epoch * (epochs - epoch)
        accuracy, wer = values["valid_accuracy"], values["valid_wer"]
        logger.info(
            "epoch %d/%d: train loss %.3f, valid loss %.3f%s%s; %.1f min, %.1f to go",
            epoch,
            epochs,
            values["train_loss"],
            values["valid_loss"],
            "" if accuracy is None else f", accuracy {accuracy:.3f}",
            "" if wer is None else f", WER {wer:.2f} %",
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

    # Evaluation

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Loads the average of the best checkpoints, strictly, once for all test sets."""
        if self._averaged:
            return
        load_average(self.checkpointer, self.hparams.avg_metric, self.hparams.avg_checkpoints)
        self._averaged = True

    def score(self, name, loader):
        """Decodes a test set; its scores. Hypotheses and alignments go into files of their own.

        Encoded in chunks of 16 frames with 2 to the left, "test" becomes "test_chunk16_left2".

        Arguments
        ---------
        name : str
            Of the test set.
        loader : torch.utils.data.DataLoader
            As `data.test_loader` makes it.

        Returns
        -------
        summarymixing.scoring.metrics.Scores
        """
        self.evaluate(loader)
        chunks = self.chunks(sb.Stage.TEST)
        if chunks is not None:
            left = chunks.left_context_size
            name += f"_chunk{chunks.chunk_size}" + ("" if left is None else f"_left{left}")
        self.scores[name] = metrics.score(self.totals.references, self.totals.hypotheses)
        if if_main_process():
            lines = [f"{i}\t{text}" for i, text in sorted(self.totals.hypotheses.items())]
            self._write(f"hypotheses_{name}.txt", "\n".join(lines))
            report = metrics.alignment_report(self.totals.references, self.totals.hypotheses)
            self._write(f"alignments_{name}.txt", report)
        return self.scores[name]

    def _write(self, name, text):
        with open(os.path.join(self.hparams.output_folder, name), "w", encoding="utf-8") as file:
            file.write(text + "\n")
