"""CTC + attention: the objective of the paper's offline recipes."""

import speechbrain as sb
from speechbrain.nnet.losses import ctc_loss, kldiv_loss

from summarymixing.decoding.hypotheses import BLANK
from summarymixing.ops.padding import absolute_lengths
from summarymixing.training.brain import ASRBrain


class CTCAttentionBrain(ASRBrain):
    """loss = ctc_weight x CTC + (1 - ctc_weight) x cross-entropy of the decoder.

    Reads from hparams, besides what `ASRBrain` reads: `ctc_weight`, `label_smoothing`; modules:
    `normalize`, `CNN`, `Transformer`, `ctc_lin`, `seq_lin`.
    """

    required = ("ctc_weight", "label_smoothing")
    needs = ("ctc_lin", "seq_lin")

    def compute_forward(self, batch, stage):
        """Encoder output, its lengths in frames, and log probabilities of both heads."""
        batch = batch.to(self.device)
        frames, lengths = self.front_end(batch, stage)
        encoded, decoded = self.modules.Transformer(
            frames,
            batch.tokens_bos.data,
            lengths,
            pad_idx=BLANK,
            dynchunktrain_config=self.chunks(stage),
        )
        ctc = self.modules.ctc_lin(encoded).float().log_softmax(-1)
        attention = self.modules.seq_lin(decoded).float().log_softmax(-1)
        if stage != sb.Stage.TRAIN:
            self.count_words(batch, encoded, lengths, stage)
        return ctc, attention, lengths

    def compute_objectives(self, predictions, batch, stage):
        """The joint loss, each part a sum over tokens and a mean over utterances."""
        ctc, attention, lengths = predictions
        tokens_eos, eos_fractions = batch.tokens_eos
        ends = absolute_lengths(eos_fractions, tokens_eos.shape[1])
        # The labels of CTC are the same without the eos at each end.
        loss_ctc = ctc_loss(
            ctc,
            tokens_eos,
            lengths / ctc.shape[1],
            (ends - 1) / tokens_eos.shape[1],
            BLANK,
            reduction="batchmean",
        )
        loss_attention = kldiv_loss(
            attention,
            tokens_eos,
            length=eos_fractions,
            label_smoothing=self.hparams.label_smoothing,
            reduction="batchmean",
        )
        if stage != sb.Stage.TRAIN:
            self.count_accuracy(attention, tokens_eos, ends)
        weight = self.hparams.ctc_weight
        return weight * loss_ctc + (1 - weight) * loss_attention
