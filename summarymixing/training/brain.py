"""The Brain that every recipe shares: front end, schedule, checkpoints, curves, scoring.

A recipe's objective is a subclass with `compute_forward` and `compute_objectives`.
"""

import importlib.util
import logging
import os
import time

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.seed import seed_everything

from summarymixing.errors import InputError
from summarymixing.ops.padding import absolute_lengths
from summarymixing.scoring import metrics
from summarymixing.training import curves
from summarymixing.training.checkpoints import AVERAGED_BY, load_average

logger = logging.getLogger(__name__)


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
        self.skipped_steps = 0
        self.trained = False
        self.scores = {}
        self.references = {}
        self.hypotheses = {}
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
        wavs, fractions = batch.sig
        features, lengths = self.hparams.compute_features(
            wavs, absolute_lengths(fractions, wavs.shape[1])
        )
        # SpeechBrain's normalisation counts frames below fraction x time: half a frame less than
        # the length is counted exactly, where the length itself may gain a frame by rounding.
        epoch = self.hparams.epoch_counter.current
        features = self.modules.normalize(
            features, (lengths - 0.5) / features.shape[1], epoch=epoch
        )
        augment = getattr(self.hparams, "fea_augment", None)
        if stage == sb.Stage.TRAIN and augment is not None:
            features, _ = augment(features, lengths / features.shape[1])
        return self.modules.CNN(features, lengths)

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

    def make_dataloader(self, dataset, stage, **kwargs):
        """As SpeechBrain's, but a batch sampler is told the epoch, so that it reshuffles."""
        sampler = kwargs.get("batch_sampler")
        loader = super().make_dataloader(dataset, stage, **kwargs)
        if stage == sb.Stage.TRAIN and self.train_sampler is None:
            self.train_sampler = sampler
        return loader

    def on_fit_start(self):
        super().on_fit_start()
        self._started = time.time()
        done = [row["seconds"] for row in self._curve() if row["seconds"]]
        self._seconds_before = done[-1] if done else 0.0
        if self._optimizer_step_limit_exceeded:
            # SpeechBrain would begin another epoch and find that it has nothing to do.
            self.hparams.epoch_counter.current = self.hparams.epoch_counter.limit

    def on_fit_batch_start(self, batch, should_step):
        if should_step:
            rate = self.hparams.lr_schedule(self.optimizer_step + 1, self._progress())
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def optimizers_step(self):
        """One step with the gradients of all parameters clipped together, or none if not finite.

        SpeechBrain clips the first parameter group only, and steps with the parameters whose
        gradients happen to be finite.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if torch.isfinite(norm) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        else:
            self.skipped_steps += 1
            logger.warning("step %d skipped: gradient not finite", self.optimizer_step + 1)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def _progress(self):
        epochs = self.hparams.number_of_epochs
        batches = len(self.train_sampler) if self.train_sampler is not None else self.step
        within = min(self.step / batches, 1.0)
        return min((self.hparams.epoch_counter.current - 1 + within) / epochs, 1.0)

    def on_stage_start(self, stage, epoch=None):
        if stage == sb.Stage.TRAIN:
            # A resumed run would otherwise draw the dropout and augmentation of epoch 1 again.
            seed_everything(self.hparams.seed + epoch)
            self.trained = True
        self._correct = self._predicted = 0
        self.references, self.hypotheses = {}, {}

    def count_accuracy(self, log_probabilities, targets, lengths):
        """Adds to the share of tokens predicted right with teacher forcing."""
        valid = torch.arange(targets.shape[1], device=targets.device) < lengths.unsqueeze(1)
        self._correct += ((log_probabilities.argmax(-1) == targets) & valid).sum().item()
        self._predicted += valid.sum().item()

    def count_words(self, batch, encoded, lengths, stage):
        """Searches a batch and keeps its hypotheses beside the references."""
        interval = self.hparams.valid_search_interval
        if stage == sb.Stage.VALID and self.hparams.epoch_counter.current % interval:
            return
        found = self.search(encoded, lengths, stage)
        self.references |= dict(zip(batch.id, batch.wrd))
        self.hypotheses |= {i: self.tokenizer.decode(ids) for i, ids in zip(batch.id, found)}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self._train_loss = stage_loss
        elif stage == sb.Stage.VALID:
            self._end_epoch(epoch, stage_loss)

    def _end_epoch(self, epoch, valid_loss):
        accuracy = self._correct / self._predicted if self._predicted else None
        wer = None
        if self.hypotheses:
            wer = metrics.score(self.references, self.hypotheses).wer
        seconds = self._seconds_before + time.time() - self._started
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
        metric = self.hparams.avg_metric
        higher_is_better = AVERAGED_BY[metric] == "max_key"
        self.checkpointer.save_and_keep_only(
            meta=meta,
            num_to_keep=self.hparams.avg_checkpoints,
            max_keys=[metric] if higher_is_better else [],
            min_keys=[] if higher_is_better else [metric],
            importance_keys=[],  # SpeechBrain's default is one list that grows with every save
            verbosity=logging.DEBUG,
        )

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

        with SummaryWriter(os.path.join(self.hparams.output_folder, "tensorboard")) as writer:
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

    def score(self, name, dataset, loader_kwargs):
        """Decodes a test set; its scores. Hypotheses and alignments go into files of their own.

        Encoded in chunks of 16 frames with 2 to the left, "test" becomes "test_chunk16_left2".

        Arguments
        ---------
        name : str
            Of the test set.
        dataset : DynamicItemDataset
        loader_kwargs : dict

        Returns
        -------
        summarymixing.scoring.metrics.Scores
        """
        self.evaluate(dataset, test_loader_kwargs=loader_kwargs)
        chunks = self.chunks(sb.Stage.TEST)
        if chunks is not None:
            left = chunks.left_context_size
            name += f"_chunk{chunks.chunk_size}" + ("" if left is None else f"_left{left}")
        self.scores[name] = metrics.score(self.references, self.hypotheses)
        if if_main_process():
            lines = [f"{i}\t{text}" for i, text in sorted(self.hypotheses.items())]
            self._write(f"hypotheses_{name}.txt", "\n".join(lines))
            report = metrics.alignment_report(self.references, self.hypotheses)
            self._write(f"alignments_{name}.txt", report)
        return self.scores[name]

    def _write(self, name, text):
        with open(os.path.join(self.hparams.output_folder, name), "w", encoding="utf-8") as file:
            file.write(text + "\n")
