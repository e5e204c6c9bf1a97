"""Searches of CTC and attention models, in which an utterance's neighbours play no part.

A search is built from numbers in YAML and called with the model's modules:
`search(modules, encoded, lengths)` gives a list of token lists, and a beam search's `nbest` all
hypotheses with their scores.
"""

from functools import lru_cache

import torch
from speechbrain.decoders import CTCScorer, ScorerBuilder, TransformerLMScorer

from summarymixing.decoding.beam import BeamSearcher
from summarymixing.decoding.hypotheses import BLANK, BOS, EOS, NBestSearch
from summarymixing.decoding.lm import check_lm, load_lm
from summarymixing.decoding.ngram import NGram
from summarymixing.errors import check_integer, check_number


class CTCGreedySearch:
    """The best token of every frame, repetitions and blanks removed; whole or piece by piece.

    Example
    -------
    >>> modules = {"ctc_lin": torch.nn.Identity()}
    >>> frames = torch.eye(5)[[3, 3, 0, 3, 4, 4]].unsqueeze(0)
    >>> search = CTCGreedySearch()
    >>> search(modules, frames, torch.tensor([5]))
    [[3, 3, 4]]
    >>> state = search.initial_state(modules, batch_size=1)
    >>> tokens, times, state = search.step(modules, frames[:, :5], torch.tensor([5]), state)
    >>> tokens, times
    ([[3, 3, 4]], [[0, 3, 4]])
    >>> search.step(modules, frames[:, 5:], torch.tensor([1]), state)[0]
    [[]]
    """

    def __call__(self, modules, encoded, lengths):
        """encoded (batch, time, d_model), lengths (batch,) in frames → list of lists of int."""
        state = self.initial_state(modules, len(encoded))
        return self.step(modules, encoded, lengths, state)[0]

    def initial_state(self, modules, batch_size):
        """State before the first frame, all zeros: "last" (batch,), the last frame's token."""
        device = device_of(modules["ctc_lin"])
        return {"last": torch.zeros(batch_size, dtype=torch.long, device=device)}

    @torch.no_grad()
    def step(self, modules, encoded, lengths, state):
        """Goes on where `state` ends.

        Arguments
        ---------
        modules : dict
            With "ctc_lin".
        encoded : torch.Tensor
            (batch, time, d_model), the next frames of every utterance.
        lengths : torch.Tensor
            (batch,), int: how many of them are valid, from 0 on.
        state : dict
            Tensors, batch first: rows can be joined, dropped and reordered.

        Returns
        -------
        tokens : list of list of int
            Found in these frames.
        frames : list of list of int
            Where each of them was found, counted from the first of these frames.
        state : dict
        """
        best = modules["ctc_lin"](encoded).argmax(-1)
        last = state["last"].to(best.device).unsqueeze(1)
        known = torch.cat([last, best], dim=1)
        lengths = lengths.to(best.device).long()
        valid = torch.arange(best.shape[1], device=best.device) < lengths.unsqueeze(1)
        found = valid & (best != BLANK) & (best != known[:, :-1])
        tokens = [row[mask].tolist() for row, mask in zip(best, found)]
        frames = [mask.nonzero().flatten().tolist() for mask in found]
        return tokens, frames, {"last": known.gather(1, lengths.unsqueeze(1)).squeeze(1)}


class JointBeamSearch(NBestSearch):
    """SpeechBrain's joint CTC/attention beam search, with a language model if there is one.

    The search is `BeamSearcher`: for each utterance, whatever the batch, the hypotheses are those
    that SpeechBrain's searcher finds for the utterance alone.

    Arguments
    ---------
    beam_size : int
    ctc_weight : float
        Weight of the CTC prefix score; the attention decoder's is 1 - ctc_weight.
    temperature : float
        Of the attention decoder's softmax.
    max_decode_ratio : float
        Steps at most, as a fraction of the encoder's frames.
    lm : callable, optional
        Builds the language model (a SpeechBrain `TransformerLM`), called once if `lm_file` is set.
    lm_file : str, optional
        Its state dict.
    lm_weight : float
    lm_temperature : float
    ngram_file : str, optional
        An ARPA file over the numbers of tokens (`summarymixing.decoding.ngram`), read when it is
        first needed.
    ngram_weight : float
        0: there is none.
    max_bytes : int, optional
        As in `BeamSearcher`: utterances that need more together are not searched together.

    Raises
    ------
    InputError
        If an argument is out of range, or a file is not there; when searching, for files that do
        not fit.

    Example
    -------
    >>> from summarymixing.models.transformer_asr import TransformerASR
    >>> model = TransformerASR(12, 16, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, d_ffn=16, csgu_linear_units=16).eval()
    >>> from speechbrain.nnet.linear import Linear
    >>> heads = {n: Linear(input_size=16, n_neurons=12) for n in ("ctc_lin", "seq_lin")}
    >>> encoded = model.encode(torch.rand(2, 9, 16))
    >>> hypotheses = JointBeamSearch(beam_size=2)({"Transformer": model, **heads}, encoded,
    ...     torch.tensor([9, 4]))
    >>> len(hypotheses)
    2
    """

    def __init__(
        self,
        beam_size=10,
        ctc_weight=0.4,
        temperature=1.15,
        max_decode_ratio=1.0,
        lm=None,
        lm_file=None,
        lm_weight=0.0,
        lm_temperature=1.15,
        ngram_file=None,
        ngram_weight=0.5,
        max_bytes=None,
    ):
        check_lm(lm, lm_file)
        self.beam_size = beam_size
        self.ctc_weight = ctc_weight
        self.temperature = temperature
        self.max_decode_ratio = max_decode_ratio
        self.lm = lm
        self.lm_file = lm_file
        self.lm_weight = lm_weight
        self.lm_temperature = lm_temperature
        self.ngram_file = ngram_file
        self.ngram_weight = ngram_weight
        self.max_bytes = max_bytes
        self._check()
        # Read when they are first needed, and others when the settings are.
        self._load_lm, self._read_ngram = (lru_cache(1)(load) for load in (load_lm, NGram.read))

    def _check(self):
        check_integer("beam_size", self.beam_size)
        check_number("ctc_weight", self.ctc_weight, "in [0, 1]", lambda x: 0 <= x <= 1)
        check_number("max_decode_ratio", self.max_decode_ratio, "in (0, 1]", lambda x: 0 < x <= 1)
        for name in ("temperature", "lm_temperature"):
            check_number(name, getattr(self, name), "positive", lambda x: x > 0)
        for name in ("lm_weight", "ngram_weight"):
            check_number(name, getattr(self, name))
        if self.max_bytes is not None:
            check_number("max_bytes", self.max_bytes, "positive", lambda x: x > 0)

    def nbest(self, modules, encoded, lengths):
        """The hypotheses of each utterance, the best first; see `BeamSearcher.nbest`.

        Arguments
        ---------
        modules : dict
            With "Transformer", "seq_lin" and, for CTC, "ctc_lin".
        encoded : torch.Tensor
            (batch, time, d_model).
        lengths : torch.Tensor
            (batch,), int, in frames.

        Returns
        -------
        list of list of Hypothesis
            At most `beam_size` each, with the parts "attention", "ctc", "lm" and "ngram".
        """
        return self._build(modules, encoded.device).nbest(encoded, lengths)

    def _build(self, modules, device):
        """A searcher, which costs nothing: settings and modules may be others at every call."""
        self._check()
        scorers, weights = [], {}
        if self.lm_file is not None:
            lm = self._load_lm(self.lm, self.lm_file, device)
            scorers.append(TransformerLMScorer(lm, temperature=self.lm_temperature))
            weights["transformerlm"] = self.lm_weight
        ngram = None
        # The logarithm of zero is among its scores, which a weight of 0 would make NaN.
        if self.ngram_file is not None and self.ngram_weight:
            ngram = self._read_ngram(self.ngram_file, modules["seq_lin"].w.out_features)
        if self.ctc_weight > 0:
            scorers.append(CTCScorer(modules["ctc_lin"], blank_index=BLANK, eos_index=EOS))
            weights["ctc"] = self.ctc_weight
        return BeamSearcher(
            modules=[modules["Transformer"], modules["seq_lin"]],
            temperature=self.temperature,
            bos_index=BOS,
            eos_index=EOS,
            min_decode_ratio=0.0,
            max_decode_ratio=self.max_decode_ratio,
            beam_size=self.beam_size,
            using_eos_threshold=False,
            length_normalization=True,
            scorer=ScorerBuilder(full_scorers=scorers, weights=weights) if scorers else None,
            max_bytes=self.max_bytes,
            carry_ctc_scores=False,
            ngram=ngram,
            ngram_weight=self.ngram_weight,
        )


def device_of(module):
    """Where a module's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
