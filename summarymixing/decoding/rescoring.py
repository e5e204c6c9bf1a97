"""Two passes: hypotheses from the CTC head, one choice by the attention decoder."""

from functools import lru_cache

import torch
from torch.nn.utils.rnn import pad_sequence

from summarymixing.decoding.ctc import CTCPrefixBeamSearch, as_parameters
from summarymixing.decoding.hypotheses import BOS, EOS, Hypothesis, NBestSearch
from summarymixing.decoding.lm import check_lm, load_lm
from summarymixing.errors import InputError, check_number

# Numbers in the output of a network at a time: 128 MiB.
_ROOM = 2**25


class RescoredCTCSearch(NBestSearch):
    """The best hypotheses of the CTC head, scored once more by the attention decoder.

    `CTCPrefixBeamSearch` finds them, and the decoder reads each as a whole, with its known tokens
    (teacher forcing): one pass through the decoder in place of one for each token. The score is

        ctc_weight * log P_ctc + (1 - ctc_weight) * log P_attention + lm_weight * log P_lm
        + ngram_weight * log P_ngram + length_bonus * len(tokens)

    where all but the first include the end of the sentence.

    B. Zhang et al., "Unified streaming and non-streaming two-pass end-to-end model for speech
    recognition", 2020, section 3.3.

    Arguments
    ---------
    beam_size : int
        Of the first pass: as many hypotheses are compared.
    ctc_weight : float
        From 0 to 1.
    ngram_file, ngram_weight, length_bonus
        As in `CTCPrefixBeamSearch`; in both passes.
    lm : callable, optional
        Builds the language model (a SpeechBrain `TransformerLM`), called once if `lm_file` is set.
    lm_file : str, optional
        Its state dict.
    lm_weight : float

    Raises
    ------
    InputError
        If an argument is out of range, or a file is not there; in a search, if the language model
        has another vocabulary.

    Example
    -------
    >>> from speechbrain.nnet.linear import Linear
    >>> from summarymixing.models.transformer_asr import TransformerASR
    >>> model = TransformerASR(12, 16, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, d_ffn=16, csgu_linear_units=16).eval()
    >>> heads = {n: Linear(input_size=16, n_neurons=12) for n in ("ctc_lin", "seq_lin")}
    >>> encoded, lengths = model.encode(torch.rand(2, 9, 16)), torch.tensor([9, 4])
    >>> search = RescoredCTCSearch(beam_size=3)
    >>> best = search.nbest({"Transformer": model, **heads}, encoded, lengths)[1][0]
    >>> sorted(best.parts)
    ['attention', 'ctc']
    """

    def __init__(
        self,
        beam_size=10,
        ctc_weight=0.4,
        ngram_file=None,
        ngram_weight=0.5,
        length_bonus=0.0,
        lm=None,
        lm_file=None,
        lm_weight=0.0,
    ):
        check_number("ctc_weight", ctc_weight, "in [0, 1]", lambda x: 0 <= x <= 1)
        check_number("lm_weight", lm_weight)
        check_lm(lm, lm_file)
        self.first_pass = CTCPrefixBeamSearch(beam_size, ngram_file, ngram_weight, length_bonus)
        self.beam_size = beam_size
        self.ctc_weight = ctc_weight
        self.ngram_file = ngram_file
        self.ngram_weight = ngram_weight
        self.length_bonus = length_bonus
        self.lm = lm
        self.lm_file = lm_file
        self.lm_weight = lm_weight
        self._load_lm = lru_cache(1)(_lm_of_tokens)  # when first needed, or another one

    @torch.no_grad()
    def nbest(self, modules, encoded, lengths):
        """The hypotheses of the first pass in their new order.

        Arguments
        ---------
        modules : dict
            With "ctc_lin", "Transformer" and "seq_lin".
        encoded : torch.Tensor
            (batch, time, d_model).
        lengths : torch.Tensor
            (batch,), int, in frames.

        Returns
        -------
        list of list of Hypothesis
            Best first; their parts are "ctc" and "attention", "ngram" and "lm" where there are
            such models. Where the encoder's output is not finite, as in `CTCPrefixBeamSearch`.
        """
        first = self.first_pass.nbest(modules, encoded, lengths)
        encoded = as_parameters(encoded, modules["seq_lin"])
        lm = None
        if self.lm_file is not None:
            tokens = modules["ctc_lin"](encoded[:1, :1]).shape[-1]
            lm = self._load_lm(self.lm, self.lm_file, encoded.device, tokens)
        return [
            self._rescored(modules, lm, frames[:length], hypotheses)
            for frames, length, hypotheses in zip(encoded, lengths.tolist(), first)
        ]

    def _rescored(self, modules, lm, frames, hypotheses):
        # Nothing for the decoder to look at, or nothing that it could.
        if not len(frames) or not hypotheses[0].complete:
            return hypotheses
        sequences = [hypothesis.tokens for hypothesis in hypotheses]
        parts = {"attention": attention_log_probability(modules, frames, sequences).tolist()}
        if lm is not None:
            parts["lm"] = log_probability(lm, sequences, frames.device).tolist()
        found = []
        for i, hypothesis in enumerate(hypotheses):
            more = {name: values[i] for name, values in parts.items()}
            known = hypothesis.parts | more
            score = self.ctc_weight * known["ctc"] + (1 - self.ctc_weight) * known["attention"]
            score += self.lm_weight * known.get("lm", 0.0)
            score += self.ngram_weight * known.get("ngram", 0.0)
            score += self.length_bonus * len(hypothesis.tokens)
            found.append(Hypothesis(hypothesis.tokens, score, known))
        return sorted(found, key=lambda hypothesis: -hypothesis.score)


def _lm_of_tokens(lm, lm_file, device, tokens):
    """The language model, if it has as many tokens."""
    model = load_lm(lm, lm_file, device)
    known = model(torch.tensor([[BOS]], device=device)).shape[-1]
    if known != tokens:
        raise InputError(
            f"lm_file={lm_file} is of {known} tokens, but the model has {tokens}: "
            "it was trained with another tokenizer"
        )
    return model


def attention_log_probability(modules, frames, hypotheses):
    """What the attention decoder makes of token sequences, their ends included.

    Arguments
    ---------
    modules : dict
        With "Transformer" and "seq_lin".
    frames : torch.Tensor
        (time, d_model), the encoder's output for one utterance, time at least 1.
    hypotheses : list of list of int

    Returns
    -------
    torch.Tensor
        (hypotheses,), natural log probabilities, float64.
    """

    def logits(tokens):
        decoded, _ = modules["Transformer"].decode(tokens, frames.expand(len(tokens), -1, -1))
        return modules["seq_lin"](decoded)

    return log_probability(logits, hypotheses, frames.device)


def log_probability(network, hypotheses, device):
    """Of token sequences, from a network's outputs for all of their beginnings.

    Arguments
    ---------
    network : callable
        Takes tokens (hypotheses, length), the first of which begins the sentence; gives logits
        (hypotheses, length, vocabulary) of the token after each. What comes behind a token must
        not matter to it.
    hypotheses : list of list of int
    device : torch.device

    Returns
    -------
    torch.Tensor
        (hypotheses,), natural log probabilities with the end of the sentence, float64.

    Example
    -------
    >>> def uniform(tokens):
    ...     return torch.zeros(*tokens.shape, 8)
    >>> log_probability(uniform, [[3, 4], []], torch.device("cpu")) / torch.tensor(8).log()
    tensor([-3., -1.], dtype=torch.float64)
    """
    inputs = [torch.tensor([BOS, *tokens], device=device) for tokens in hypotheses]
    outputs = [torch.tensor([*tokens, EOS], device=device) for tokens in hypotheses]
    # Padding is not 0, which networks mask, but a token like others: it comes behind all of them.
    inputs = pad_sequence(inputs, batch_first=True, padding_value=EOS)
    outputs = pad_sequence(outputs, batch_first=True, padding_value=-1)
    found, first, count = [], 0, 1
    while first < len(inputs):
        wanted = outputs[first : first + count]
        scores = network(inputs[first : first + count]).float().log_softmax(-1)
        each = scores.gather(2, wanted.clamp(min=0).unsqueeze(2)).squeeze(2).double()
        found.append(each.masked_fill(wanted < 0, 0.0).sum(1))
        first, count = first + count, max(1, _ROOM // scores[0].numel())
    return torch.cat(found)
