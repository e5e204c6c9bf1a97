"""The Brain that every recogniser shares: front end, normalisation, search, scoring.

A recipe's objective is a subclass with `compute_forward` and `compute_objectives`.
"""

import math
import os

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import if_main_process

from summarymixing.errors import InputError
from summarymixing.files import write_whole
from summarymixing.ops.padding import absolute_lengths
from summarymixing.scoring import metrics
from summarymixing.training import data
from summarymixing.training.loop import TrainingBrain
from summarymixing.training.normalisation import StepStatistics

NOTHING = "nothing"  # the id of what stands in for a batch


class ASRBrain(TrainingBrain):
    """Trains a recogniser, validates it each epoch, and scores its averaged checkpoints.

    Reads from hparams: `sample_rate`, `compute_features`, `lr_schedule`, `number_of_epochs`,
    `epoch_counter`, `avg_checkpoints`, `avg_metric`, `output_folder`, `valid_search`,
    `valid_search_interval`, `test_search`, `tensorboard`, `seed`, and if they are there
    `fea_augment`, `dynchunktrain_config_sampler` and `max_unread`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.statistics = StepStatistics(self.modules.normalize)

    def _check(self):
        super()._check()
        metric = self.hparams.avg_metric
        if metric in ("WER", "CER") and self.hparams.valid_search_interval != 1:
            raise InputError(
                f"avg_metric: {metric} needs a {metric} every epoch: valid_search_interval: 1"
            )

    def _compile(self):
        # SpeechBrain compiles whole modules, anew for each length: minutes, and then gives up. The
        # encoder in place is one graph for all lengths, and checkpoints keep their names.
        if self.compile and self.compile_module_keys is None:
            # Training, evaluation, and chunks of three kinds are graphs of their own.
            torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
            self.modules["Transformer"].encoder.compile(dynamic=True)
        else:
            super()._compile()

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

    # Training

    def on_fit_start(self):
        super().on_fit_start()
        if self.statistics.missing:
            self._first_statistics(self.hparams.epoch_counter.current + 1)

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

    def optimizers_step(self):
        """As its parent's; the normalisation takes in a step when the weights do."""
        done = super().optimizers_step()
        if done and self.hparams.epoch_counter.current < self.modules.normalize.update_until_epoch:
            self.statistics.take_in()
        self.statistics.clear()
        return done

    def nothing(self):
        """A batch for a process that has none: all have to compute their share of a step."""
        noise = torch.randn(self.hparams.sample_rate, generator=torch.Generator().manual_seed(0))
        item = {"id": NOTHING, "wrd": "", "sig": 0.1 * noise}
        item["tokens_bos"] = torch.tensor([self.tokenizer.bos_id()])
        item["tokens_eos"] = torch.tensor([self.tokenizer.eos_id()])
        return PaddedBatch([item])

    # Evaluation

    def count_words(self, batch, encoded, lengths, stage):
        """Searches a batch and keeps its hypotheses beside the references."""
        interval = self.hparams.valid_search_interval
        if stage == sb.Stage.VALID and self.hparams.epoch_counter.current % interval:
            return
        found = self.search(encoded, lengths, stage)
        self.totals.references |= dict(zip(batch.id, batch.wrd))
        texts = (self.tokenizer.decode(ids) for ids in found)
        self.totals.hypotheses |= dict(zip(batch.id, texts))

    def validated(self):
        rates = {"valid_wer": None, "valid_cer": None}
        if self.totals.hypotheses:
            scores = metrics.score(self.totals.references, self.totals.hypotheses)
            rates = {"valid_wer": scores.wer, "valid_cer": scores.cer}
        return super().validated() | rates

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
        write_whole(os.path.join(self.hparams.output_folder, name), text + "\n")
