"""Joint CTC/attention beam search, batched and incremental, with SpeechBrain's hypotheses."""

from typing import NamedTuple

import torch
from speechbrain.decoders.scorer import (
    CTCScorer,
    LengthScorer,
    RNNLMScorer,
    TransformerLMScorer,
)

from summarymixing.decoding.hypotheses import Hypothesis
from summarymixing.decoding.prefix import CTCPrefixScorer
from summarymixing.errors import InputError
from summarymixing.models.incremental import (
    DecoderSteps,
    RNNLMSteps,
    TransformerLMSteps,
    reordered,
)
from summarymixing.ops.padding import absolute_lengths, padding_mask

# Scores below this have a blocked token in them; what is left of the score has no digits.
_BLOCKED = -1e19


class BeamSearcher(torch.nn.Module):
    """SpeechBrain's `S2STransformerBeamSearcher`: same arguments, same hypotheses, sooner.

    Takes the place of SpeechBrain's class in any recipe (one `!new:` line), its scorers with it.
    For every utterance the hypotheses and scores are those that SpeechBrain's searcher finds for
    the utterance alone; an utterance's neighbours have no say in them. Where SpeechBrain fails,
    this has a result: an utterance without frames has the empty hypothesis, one with few frames
    gets one step at least.

    A step of a network costs one token: keys and values are kept, once for tokens that hypotheses
    share (`summarymixing.models.incremental`), and CTC scores have no loop over frames
    (`summarymixing.decoding.prefix`). An utterance that is finished leaves the batch.

    Memory: `bytes_needed` for an utterance, at most. That is, for each hypothesis, with L steps at
    most, T frames and V tokens, 8 × (decoder layers × d_model + LM layers × LM's d_model) × L bytes
    for keys and values if hypotheses shared nothing, twice that for a moment (they share most of
    it: in practice a tenth), 100 × T for CTC and 40 × V for scores; and for an utterance 16 × V × T
    for CTC and 8 × decoder layers × d_model × T for cross-attention.

    Arguments
    ---------
    modules : list of torch.nn.Module
        The model (a `TransformerASR`, SpeechBrain's or ours) and the decoder's output layer.
    bos_index, eos_index : int
    min_decode_ratio, max_decode_ratio : float
        Steps at least and at most, as fractions of the utterance's own frames.
    beam_size : int
    temperature : float
        Of the decoder's softmax.
    scorer : speechbrain.decoders.ScorerBuilder, optional
        Full and partial scorers: CTCScorer (without a window), TransformerLMScorer, RNNLMScorer,
        LengthScorer.
    return_topk : bool
        `forward` gives the `topk` best hypotheses instead of the best.
    topk : int
    using_eos_threshold, eos_threshold, length_normalization, minus_inf
        As in SpeechBrain.
    using_max_attn_shift : bool
        False: with SpeechBrain's Transformer searcher it does not work either.
    max_attn_shift : int
        Of no use.
    carry_ctc_scores : bool
        With a CTC weight of 1, SpeechBrain adds the scores of each step to those of the step
        before, whichever hypotheses had them. False: the score is CTC's (and the language
        model's), which is right.
    max_bytes : int, optional
        Utterances are searched together as long as they need no more than this. None: all of a
        batch; on a GPU, in halves of it where that is too much.

    Raises
    ------
    InputError
        (a ValueError) for a scorer or an argument that it cannot have; when searching, for an
        utterance that does not fit into the memory alone.

    Example
    -------
    >>> from speechbrain.decoders import CTCScorer, ScorerBuilder
    >>> from speechbrain.nnet.linear import Linear
    >>> from summarymixing.models.transformer_asr import TransformerASR
    >>> _ = torch.manual_seed(0)
    >>> model = TransformerASR(12, 16, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, d_ffn=16, csgu_linear_units=16).eval()
    >>> ctc, output = (Linear(input_size=16, n_neurons=12) for _ in range(2))
    >>> searcher = BeamSearcher(modules=[model, output], bos_index=1, eos_index=2, beam_size=4,
    ...     min_decode_ratio=0.0, max_decode_ratio=1.0, scorer=ScorerBuilder(
    ...         full_scorers=[CTCScorer(ctc, blank_index=0, eos_index=2)], weights={"ctc": 0.4}))
    >>> encoded = model.encode(torch.rand(2, 9, 16))
    >>> hypotheses, lengths, scores, log_probs = searcher(encoded, torch.tensor([1.0, 0.4]))
    >>> [found.tokens for found, *others in searcher.nbest(encoded, torch.tensor([9, 4]))]
    [[...], [...]]
    """

    def __init__(
        self,
        modules,
        bos_index,
        eos_index,
        min_decode_ratio,
        max_decode_ratio,
        beam_size,
        temperature=1.0,
        scorer=None,
        return_topk=False,
        topk=1,
        using_eos_threshold=True,
        eos_threshold=1.5,
        length_normalization=True,
        using_max_attn_shift=False,
        max_attn_shift=60,
        minus_inf=-1e20,
        max_bytes=None,
        carry_ctc_scores=True,
    ):
        super().__init__()
        for name, value in (("beam_size", beam_size), ("topk", topk)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a positive integer, got {value!r}")
        if topk > beam_size:
            raise InputError(f"topk must be at most beam_size={beam_size}, got {topk}")
        if not temperature > 0:
            raise InputError(f"temperature must be positive, got {temperature}")
        if not 0 <= min_decode_ratio <= max_decode_ratio:
            raise InputError(
                "0 <= min_decode_ratio <= max_decode_ratio is needed, got "
                f"min_decode_ratio={min_decode_ratio} and max_decode_ratio={max_decode_ratio}"
            )
        if using_max_attn_shift:
            raise InputError("using_max_attn_shift is for recurrent decoders: set it to False")
        if max_bytes is not None and not max_bytes > 0:
            raise InputError(f"max_bytes must be positive, got {max_bytes}")
        self.model, self.fc = modules
        self.temperature = temperature
        self.bos_index, self.eos_index = bos_index, eos_index
        self.min_decode_ratio, self.max_decode_ratio = min_decode_ratio, max_decode_ratio
        self.beam_size = beam_size
        self.scorer = scorer
        self.return_topk, self.topk = return_topk, topk
        self.using_eos_threshold, self.eos_threshold = using_eos_threshold, eos_threshold
        self.length_normalization = length_normalization
        self.minus_inf = minus_inf
        self.max_bytes = max_bytes
        self.carry_ctc_scores = carry_ctc_scores

        self.attn_weight = 1.0
        self.full_scorers, self.partial_scorers = [], []
        if scorer is not None:
            if length_normalization and scorer.weights["length"] > 0:
                raise InputError("length_normalization must be False with a LengthScorer")
            for ours, theirs in (
                (self.full_scorers, scorer.full_scorers),
                (self.partial_scorers, scorer.partial_scorers),
            ):
                for name, one in theirs.items():
                    ours.append(_adapted(name, one, scorer.weights[name]))
            if scorer.weights["ctc"] > 0:
                blank = {**scorer.full_scorers, **scorer.partial_scorers}["ctc"].blank_index
                if len({bos_index, eos_index, blank}) < 3:
                    raise InputError(
                        "blank, bos and eos must be different tokens for CTC, got "
                        f"blank_index={blank}, bos_index={bos_index}, eos_index={eos_index}"
                    )
                self.attn_weight = 1.0 - scorer.weights["ctc"]
        self.decoder = DecoderSteps(self.model) if self.attn_weight > 0 else None

    @torch.no_grad()
    def forward(self, enc_states, wav_len):
        """SpeechBrain's call.

        Arguments
        ---------
        enc_states : torch.Tensor
            (batch, time, d_model).
        wav_len : torch.Tensor
            (batch,): fractions of the time, or frames if integers.

        Returns
        -------
        hypotheses : list of list of int
            The best of each utterance.
        lengths : torch.Tensor
            (batch,), without the end of the sentence, as fractions of the longest hypothesis in
            any beam with it.
        scores : torch.Tensor
            (batch,), divided by the number of tokens with length_normalization.
        log_probs : torch.Tensor
            (batch, tokens), the decoder's alone with its weight.
            With `return_topk` all have a second dimension, and the hypotheses are a padded tensor.
        """
        found = self._found(enc_states, absolute_lengths(wav_len, enc_states.shape[1]))
        device = enc_states.device
        longest = max((len(one.tokens) for ones in found for one in ones), default=1)
        tokens = torch.zeros(len(found), self.topk, longest, dtype=torch.long)
        log_probs = torch.zeros(len(found), self.topk, longest)
        lengths, scores = (torch.zeros(len(found), self.topk) for _ in range(2))
        for row, ones in enumerate(found):
            for place, one in enumerate(_best(ones, self.topk)):
                count = len(one.tokens)
                tokens[row, place, :count] = torch.tensor(one.tokens)
                log_probs[row, place, :count] = torch.tensor(one.log_probs)
                lengths[row, place] = (count - 1) / longest
                scores[row, place] = one.score
        lengths, scores, log_probs = (x.to(device) for x in (lengths, scores, log_probs))
        if self.return_topk:
            return tokens.to(device), lengths, scores, log_probs
        hypotheses = [_best(ones, 1)[0].tokens[:-1] for ones in found]
        return hypotheses, lengths[:, 0], scores[:, 0], log_probs[:, 0]

    @torch.no_grad()
    def nbest(self, encoded, lengths):
        """What was found for each utterance, the best first, tokens and scores as SpeechBrain's.

        Hypotheses that the length limit cut short have lost their last token, as in SpeechBrain;
        scores and parts are with it. What has the same tokens as a better one is left out, and so
        is what no model allows, unless there is nothing else.

        Arguments
        ---------
        encoded : torch.Tensor
            (batch, time, d_model). What stands in the padding does not matter.
        lengths : torch.Tensor
            (batch,), int, frames from 0 on.

        Returns
        -------
        list of list of Hypothesis
            With the parts "attention", "ctc" and "lm" as far as they are used. Their sum, weighted,
            is the score times the number of tokens, with the end of the sentence (the score itself
            without length_normalization), unless there is a LengthScorer.
        """
        parts = self._parts()
        hypotheses = []
        for ones in self._found(encoded, absolute_lengths(lengths, encoded.shape[1])):
            kept = {}
            for one in _best(ones, len(ones)):
                tokens = tuple(one.tokens[:-1])
                if tokens not in kept and (one.score > _BLOCKED or not kept):
                    kept[tokens] = Hypothesis(
                        list(tokens), one.score, dict(zip(parts, one.parts)), one.complete
                    )
            hypotheses.append(list(kept.values()))
        return hypotheses

    def bytes_needed(self, frames):
        """Bytes that the search of an utterance needs at most, beside the models and the encoder.

        Arguments
        ---------
        frames : int

        Returns
        -------
        int
        """
        vocabulary, steps = self._vocabulary(), self._steps(frames)[1]
        widths, encoder = 0, 0
        if self.decoder is not None:
            layers = self.decoder.layers
            width = layers[0].multihead_attn.att.embed_dim
            widths, encoder = len(layers) * width, 8 * len(layers) * width
        for one in (*self.full_scorers, *self.partial_scorers):
            widths += one.width
        each = 16 * widths * steps + 100 * frames + 40 * vocabulary
        return self.beam_size * each + (16 * vocabulary + encoder) * frames

    def _parts(self):
        names = ["attention"] if self.attn_weight > 0 else []
        names += [one.part for one in (*self.full_scorers, *self.partial_scorers) if one.part]
        return names

    def _vocabulary(self):
        return getattr(self.fc, "w", self.fc).out_features

    def _steps(self, frames):
        """Steps at least and at most."""
        limits = (int(frames * r) for r in (self.min_decode_ratio, self.max_decode_ratio))
        least, most = limits
        return least, max(most, 1)

    def _found(self, encoded, lengths):
        """For each utterance `beam_size` of `_Found`."""
        limits = lengths.tolist()
        nothing = _Found([self.eos_index], [0.0], 0.0, [0.0] * len(self._parts()), False)
        found = [[nothing] * self.beam_size for _ in limits]
        # The longest first: those searched together are of similar lengths.
        rows = sorted((i for i, n in enumerate(limits) if n > 0), key=lambda i: -limits[i])
        while rows:
            count = len(rows)
            if self.max_bytes is not None:
                each = self.bytes_needed(limits[rows[0]])
                if each > self.max_bytes:
                    raise InputError(_does_not_fit(limits[rows[0]], each, self.max_bytes))
                count = min(count, self.max_bytes // each)
            for row, ones in zip(rows, self._search_in_halves(encoded, lengths, rows[:count])):
                found[row] = ones
            rows = rows[count:]
        return found

    def _search_in_halves(self, encoded, lengths, rows):
        """The whole at once, or in halves if there is not enough memory."""
        try:
            chosen = torch.tensor(rows, device=encoded.device)
            limits = lengths.to(encoded.device)[chosen]
            return self._search(encoded[chosen, : int(limits[0])], limits)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
        # Not in the except clause: the exception holds on to the tensors.
        if encoded.is_cuda:
            torch.cuda.empty_cache()
        if len(rows) == 1:
            frames = int(lengths[rows[0]])
            raise InputError(_does_not_fit(frames, self.bytes_needed(frames), "the memory"))
        half = len(rows) // 2
        return [
            *self._search_in_halves(encoded, lengths, rows[:half]),
            *self._search_in_halves(encoded, lengths, rows[half:]),
        ]

    def _search(self, encoded, lengths):
        """The search itself, of utterances with one frame or more, the longest first."""
        encoded = encoded.masked_fill(padding_mask(lengths, encoded.shape[1]).unsqueeze(-1), 0)
        beam, device = self.beam_size, encoded.device
        limits = [self._steps(frames) for frames in lengths.tolist()]
        longest = max(most for _, most in limits)
        scorers = (*self.full_scorers, *self.partial_scorers)
        start = (encoded, lengths, beam, longest)
        states = {one: one.start(*start) for one in scorers}
        decoder = self.decoder and self.decoder.start(*start)

        active = list(range(len(limits)))
        found = [[] for _ in limits]
        hypotheses = len(active) * beam
        tokens = torch.full((hypotheses,), self.bos_index, device=device)
        sums = encoded.new_full((len(active), beam), -torch.inf, dtype=torch.float32)
        sums[:, 0] = 0
        sequences = tokens.new_empty(hypotheses, 0)
        history = sums.new_empty(hypotheses, 0)
        parts = torch.zeros(hypotheses, len(self._parts()), dtype=torch.float64, device=device)
        log_probs = sums.new_zeros(hypotheses, self._vocabulary())
        for step in range(longest):
            raw = []
            if decoder is not None:
                hidden, decoder = self.decoder.step(tokens, decoder)
                raw.append((self.fc(hidden).float() / self.temperature).log_softmax(-1))
                log_probs = self.attn_weight * raw[0]
            elif not self.carry_ctc_scores:
                log_probs = torch.zeros_like(log_probs)
            own = log_probs.clone() if decoder is None else None
            early = [step < limits[i][0] for i in active]
            if any(early):
                early = torch.tensor(early, device=device).repeat_interleave(beam)
                log_probs[early, self.eos_index] = self.minus_inf
            if self.using_eos_threshold:
                eos = log_probs[:, self.eos_index]
                eos.masked_fill_(eos <= self.eos_threshold * log_probs.amax(-1), self.minus_inf)
            for one in self.full_scorers:
                one.block(log_probs)
                scores, states[one] = one.step(tokens, states[one], None)
                log_probs += scores * one.weight
                raw += [scores] if one.part else []
            if self.partial_scorers:
                count = int(beam * self.scorer.scorer_beam_scale)
                count = max(1, min(count, log_probs.shape[1]))
                candidates = log_probs.topk(count, dim=-1).indices
            for one in self.partial_scorers:
                scores, states[one] = one.step(tokens, states[one], candidates)
                log_probs += scores * one.weight
                raw += [scores] if one.part else []

            totals = sums.view(-1, 1) + log_probs
            if self.length_normalization:
                totals = totals / (step + 1)
            best, cells = _topk(totals.view(len(active), -1), beam)
            sums = best * (step + 1) if self.length_normalization else best
            tokens = (cells % log_probs.shape[1]).flatten()
            first = torch.arange(len(active), device=device).unsqueeze(1) * beam
            parents = (cells // log_probs.shape[1] + first).flatten()
            chosen = (parents, tokens)
            own = self.attn_weight * raw[0][chosen] if own is None else own[chosen]
            history = torch.cat([history[parents], own.unsqueeze(1)], 1)
            sequences = torch.cat([sequences[parents], tokens.unsqueeze(1)], 1)
            parts = parts[parents]
            for column, scores in enumerate(raw):
                parts[:, column] += scores[chosen]

            def keep(row, places, complete):
                """Adds hypotheses of an utterance to those found, as long as they are wanted."""
                into = found[active[row]]  # noqa: B023
                places = places[: beam - len(into)]
                flat = [row * beam + place for place in places]
                into += map(
                    _Found,
                    sequences[flat].tolist(),  # noqa: B023
                    history[flat].tolist(),  # noqa: B023
                    best[row, places].tolist(),  # noqa: B023
                    parts[flat].tolist(),  # noqa: B023
                    [complete(place) for place in places],
                )

            is_eos = tokens.view(-1, beam) == self.eos_index
            ended = [[] for _ in active]
            for row, place in is_eos.nonzero().tolist():
                ended[row].append(place)
            staying = []
            for row, i in enumerate(active):
                if ended[row]:
                    keep(row, ended[row], lambda place: True)
                if len(found[i]) < beam and step + 1 == limits[i][1]:
                    # As SpeechBrain: with those that have ended in this very step once more.
                    keep(row, list(range(beam)), ended[row].__contains__)
                if len(found[i]) < beam:
                    staying.append(row)
            if not staying:
                break
            sums = sums.masked_fill(is_eos, -torch.inf)
            if len(staying) < len(active):
                active = [active[row] for row in staying]
                rows = torch.tensor(staying, device=device)
                places = (rows.unsqueeze(1) * beam + torch.arange(beam, device=device)).flatten()
                sums, parents = sums[rows], parents[places]
                tokens, sequences, history, parts, log_probs = (
                    x[places] for x in (tokens, sequences, history, parts, log_probs)
                )
            states = {one: reordered(state, parents) for one, state in states.items()}
            decoder = reordered(decoder, parents)
        return found


class _Found(NamedTuple):
    tokens: list  # with the last, which is the end of the sentence or what the limit cut off
    log_probs: list  # of each token, the decoder's
    score: float
    parts: list
    complete: bool


class _CTC:
    part, width = "ctc", 0

    def __init__(self, scorer, weight):
        if scorer.ctc_window_size != 0:
            raise InputError(
                f"ctc_window_size must be 0, the whole utterance, got {scorer.ctc_window_size}"
            )
        self.scorer, self.weight = scorer, weight

    def start(self, encoded, lengths, beam_size, max_steps):
        log_probs = self.scorer.softmax(self.scorer.ctc_fc(encoded).float())
        indices = self.scorer.blank_index, self.scorer.eos_index
        return {"ctc": CTCPrefixScorer(log_probs, lengths, beam_size, *indices), "prefixes": None}

    def block(self, log_probs):
        log_probs[:, self.scorer.blank_index] = -1e20

    def step(self, tokens, state, candidates):
        scores, prefixes = state["ctc"].step(tokens, state["prefixes"], candidates)
        return scores, {**state, "prefixes": prefixes}


class _LanguageModel:
    part = "lm"

    def __init__(self, scorer, weight):
        self.scorer, self.weight = scorer, weight
        self.steps = self.make_steps(scorer.lm)

    def start(self, encoded, lengths, beam_size, max_steps):
        self.scorer.lm.to(encoded.device)
        return self.steps.start(len(lengths), beam_size, max_steps)

    def block(self, log_probs):
        pass

    def step(self, tokens, state, candidates):
        logits, state = self.steps.step(tokens, state)
        return (logits.float() / self.scorer.temperature).log_softmax(-1), state


class _TransformerLM(_LanguageModel):
    make_steps = TransformerLMSteps

    @property
    def width(self):
        return sum(layer.self_att.att.embed_dim for layer in self.steps.layers)


class _RNNLM(_LanguageModel):
    make_steps = RNNLMSteps
    width = 0


class _Length:
    part, width = None, 0

    def __init__(self, scorer, weight):
        self.weight = weight

    def start(self, encoded, lengths, beam_size, max_steps):
        return None

    def block(self, log_probs):
        pass

    def step(self, tokens, state, candidates):
        return torch.ones((), device=tokens.device), state


_SCORERS = {
    CTCScorer: _CTC,
    TransformerLMScorer: _TransformerLM,
    RNNLMScorer: _RNNLM,
    LengthScorer: _Length,
}


def _adapted(name, scorer, weight):
    for theirs, ours in _SCORERS.items():
        if isinstance(scorer, theirs):
            return ours(scorer, weight)
    raise InputError(
        f"scorer {name} ({type(scorer).__name__}) is not supported: "
        f"one of {', '.join(kind.__name__ for kind in _SCORERS)} is"
    )


def _topk(scores, count):
    """The best of each row, in which an utterance's neighbours have no say even about ties.

    Tokens that are blocked, and hypotheses that have ended, tie; if the vocabulary is smaller than
    the beam they are chosen, and which are depends on the size of the whole on a GPU.
    """
    best, cells = scores.topk(count, dim=-1)
    if scores.is_cuda and len(scores) > 1:
        for row in (best[:, -1] < _BLOCKED).nonzero().flatten().tolist():
            best[row], cells[row] = scores[row : row + 1].topk(count, dim=-1)
    return best, cells


def _best(found, count):
    order = torch.tensor([one.score for one in found]).topk(count).indices.tolist()
    return [found[i] for i in order]


def _out_of_memory(error):
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "DefaultCPUAllocator" in str(error)
    )


def _does_not_fit(frames, needed, there):
    there = f"max_bytes={there}" if isinstance(there, int) else there
    return (
        f"an utterance of {frames} frames may need {needed} bytes to be searched alone, more than "
        f"{there}: a smaller beam_size or max_decode_ratio needs less"
    )
