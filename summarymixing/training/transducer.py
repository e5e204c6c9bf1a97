"""Transducers (arXiv 1211.3711), with CTC and cross-entropy beside them where a recipe wants it."""

import speechbrain as sb
from speechbrain.nnet.losses import ctc_loss, kldiv_loss
from torchaudio.functional import rnnt_loss

from summarymixing.decoding.hypotheses import BLANK
from summarymixing.errors import InputError, check_integer
from summarymixing.ops.padding import absolute_lengths
from summarymixing.training.brain import ASRBrain


class TransducerBrain(ASRBrain):
    """loss = ctc_weight x CTC + ce_weight x CE + (1 - ctc_weight - ce_weight) x transducer.

    CTC is that of a linear layer on the encoder, CE the cross-entropy of one on the predictor: the
    next token, from the tokens alone. In validation the loss is the transducer's alone, which can
    be compared between epochs.

    Reads from hparams, besides what `ASRBrain` reads: `ctc_weight`, `ctc_epochs` (the first ones,
    with CTC; null: all) and if it is there `ce_weight`; modules: `normalize`, `CNN`,
    `Transformer` (encoder only), `predictor`, `joiner`, and where they have a weight `ctc_lin`,
    `ce_lin`.
    """

    required = ("ctc_weight", "ctc_epochs")
    optional = ("ce_weight",)
    needs = ("predictor", "joiner")
    has_accuracy = False

    def _check(self):
        super()._check()
        check_integer("ctc_epochs", self.hparams.ctc_epochs, least=0, none="null")
        weights = [getattr(self.hparams, f"{head}_weight", 0.0) for head in ("ctc", "ce")]
        for head, weight in zip(("ctc", "ce"), weights):
            if not 0 <= weight < 1:
                raise InputError(f"{head}_weight must be in [0, 1), got {weight}")
            if weight and f"{head}_lin" not in self.modules:
                raise InputError(f"{head}_weight={weight} needs a module {head}_lin in the model")
        if sum(weights) >= 1:
            raise InputError("ctc_weight + ce_weight must be below 1: the transducer has the rest")

    def _weights(self, stage):
        """Of CTC and CE in this epoch."""
        if stage != sb.Stage.TRAIN:
            return 0.0, 0.0
        epochs = self.hparams.ctc_epochs
        ended = epochs is not None and self.hparams.epoch_counter.current > epochs
        return 0.0 if ended else self.hparams.ctc_weight, getattr(self.hparams, "ce_weight", 0.0)

    def compute_forward(self, batch, stage):
        """Scores of all pairs of frames and labels, lengths in frames, and what heads say."""
        batch = batch.to(self.device)
        frames, lengths = self.front_end(batch, stage)
        encoded = self.modules.Transformer(
            frames, None, lengths, dynchunktrain_config=self.chunks(stage)
        )
        tokens = batch.tokens_bos.data.clone()
        tokens[:, 0] = BLANK  # a transducer has one special token only
        predicted, _ = self.modules.predictor(tokens)
        logits = self.modules.joiner(encoded.unsqueeze(2), predicted.unsqueeze(1))
        # A head without weight is not called: data-parallel training waits for those that are.
        ctc_weight, ce_weight = self._weights(stage)
        ctc = self.modules.ctc_lin(encoded) if ctc_weight else None
        ce = self.modules.ce_lin(predicted) if ce_weight else None
        if stage != sb.Stage.TRAIN:
            self.count_words(batch, encoded, lengths, stage)
        return logits, lengths, ctc, ce

    def compute_objectives(self, predictions, batch, stage):
        """The weighted loss, each part a sum over tokens and a mean over utterances."""
        logits, lengths, ctc, ce = predictions
        tokens, fractions = batch.tokens_bos
        tokens, ends = tokens[:, 1:], absolute_lengths(fractions, tokens.shape[1]) - 1
        loss = transducer_loss(logits, tokens, lengths, ends)
        ctc_weight, ce_weight = self._weights(stage)
        loss = (1 - ctc_weight - ce_weight) * loss
        if ctc is not None:
            loss = loss + ctc_weight * ctc_loss(
                ctc.float().log_softmax(-1),
                tokens,
                lengths / ctc.shape[1],
                ends / max(tokens.shape[1], 1),
                BLANK,
                reduction="batchmean",
            )
        if ce is not None:
            targets, fractions = batch.tokens_eos
            loss = loss + ce_weight * kldiv_loss(
                ce.float().log_softmax(-1), targets, length=fractions, reduction="batchmean"
            )
        return loss


def transducer_loss(logits, targets, lengths, target_lengths, reduction="mean"):
    """-log of the total probability of the targets' alignments; torchaudio's, on CPU and GPU.

    Arguments
    ---------
    logits : torch.Tensor
        (batch, time, labels + 1, vocabulary), before the softmax; any floating-point type, the loss
        is computed in float32. The blank is 0.
    targets : torch.Tensor
        (batch, labels), int.
    lengths : torch.Tensor
        (batch,), int, in frames; the longest is `time`.
    target_lengths : torch.Tensor
        (batch,), int; the longest is `labels`.
    reduction : str
        "mean" or "sum" over the batch, or "none".

    Returns
    -------
    torch.Tensor
        A scalar, or (batch,).

    Example
    -------
    >>> import torch
    >>> logits = torch.zeros(1, 2, 2, 4)  # two frames, one label: two alignments of three symbols
    >>> loss = transducer_loss(logits, torch.tensor([[3]]), torch.tensor([2]), torch.tensor([1]))
    >>> torch.allclose(loss, -torch.tensor(2 / 4**3).log())
    True
    """
    return rnnt_loss(
        logits.float().contiguous(),
        targets.int().contiguous(),
        lengths.int(),
        target_lengths.int(),
        blank=BLANK,
        reduction=reduction,
    )
