"""Joint CTC/attention beam search, batched and incremental, with SpeechBrain's hypotheses."""

import logging
import math
from typing import NamedTuple

import torch

from summarymixing.decoding.hypotheses import Hypothesis
from summarymixing.decoding.prefix import CTCPrefixScorer
from summarymixing.decoding.scorers import NGramScorer, adapted, size_of
from summarymixing.errors import InputError, check_integer, check_number
from summarymixing.models.incremental import DecoderSteps, reordered
from summarymixing.ops.memory import is_out_of_memory
from summarymixing.ops.padding import absolute_lengths, padding_mask

logger = logging.getLogger(__name__)

# Scores below this have a blocked token in them; what is left of the score has no digits.
_BLOCKED = -1e19


class BeamSearcher(torch.nn.Module):
    """SpeechBrain's `S2STransformerBeamSearcher`: same arguments, same hypotheses, sooner.

    Takes the place of SpeechBrain's class in any recipe (one `!new:` line), its scorers with it.
    For every utterance the hypotheses and scores are those that SpeechBrain's searcher finds for
    the utterance alone; an utterance's neighbours have no say in them. Where SpeechBrain fails,
    this has a result: an utterance with few frames gets one step at least, and one without frames,
    with encoder output that is not finite, or for which the memory does not suffice has the empty
    hypothesis, which is not complete; the last two are logged as warnings.

    A step of a network costs one token: keys and values are kept, once for tokens that hypotheses
    share (`summarymixing.models.incremental`), and CTC scores have no loop over frames
    (`summarymixing.decoding.prefix`). An utterance that is finished leaves the batch.

    Memory: `bytes_needed` for an utterance, at most. That is, for each hypothesis, with L steps at
    most, T frames and V tokens, 8 × (decoder layers × d_model + LM layers × LM's d_model) × L bytes
    for keys and values if hypotheses shared nothing, twice that for a moment (they share most of
    it: in practice a tenth), 100 × T for CTC, 100 × V for scores, and 12 × heads × beam_size × L
    for attention; and for an utterance 40 × V × T for CTC, 24 × T for each of at most 4096 tokens
    whose probabilities underflow, and 8 × decoder layers × d_model × T for cross-attention.

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
    ngram : NGram, optional
        A language model over tokens, one more full scorer.
    ngram_weight : float
        0: there is none.
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
        (a ValueError) for a scorer or an argument that it cannot have; when searching, for lengths
        that are not the batch's, and models with another number of tokens.

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
        ngram=None,
        ngram_weight=0.0,
    ):
        super().__init__()
        check_integer("beam_size", beam_size)
        check_integer("topk", topk)
        if topk > beam_size:
            raise InputError(f"topk must be at most beam_size={beam_size}, got {topk}")
        check_number("temperature", temperature, "positive", lambda x: x > 0)
        check_number("min_decode_ratio", min_decode_ratio)
        check_number("max_decode_ratio", max_decode_ratio)
        check_number("eos_threshold", eos_threshold)
        check_number("ngram_weight", ngram_weight)
        if not 0 <= min_decode_ratio <= max_decode_ratio:
            raise InputError(
                "0 <= min_decode_ratio <= max_decode_ratio is needed, got "
                f"min_decode_ratio={min_decode_ratio} and max_decode_ratio={max_decode_ratio}"
            )
        if using_max_attn_shift:
            raise InputError("using_max_attn_shift is for recurrent decoders: set it to False")
        if max_bytes is not None:
            check_number("max_bytes", max_bytes, "positive", lambda x: x > 0)
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
                    ours.append(adapted(name, one, scorer.weights[name]))
            if scorer.weights["ctc"] > 0:
                blank = {**scorer.full_scorers, **scorer.partial_scorers}["ctc"].blank_index
                if len({bos_index, eos_index, blank}) < 3:
                    raise InputError(
                        "blank, bos and eos must be different tokens for CTC, got "
                        f"blank_index={blank}, bos_index={bos_index}, eos_index={eos_index}"
                    )
                self.attn_weight = 1.0 - scorer.weights["ctc"]
        # The logarithm of zero is among its scores, which a weight of 0 would make NaN.
        if ngram is not None and ngram_weight:
            self.full_scorers.append(NGramScorer(ngram, ngram_weight))
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
            With the parts "attention", "ctc", "lm" and "ngram" as far as they are used (of two
            language models the sum). Their sum, weighted, is the score times the number of tokens,
            the end of the sentence included (the score itself without length_normalization),
            unless there is a LengthScorer.
        """
        names = self._parts()
        hypotheses = []
        for ones in self._found(encoded, absolute_lengths(lengths, encoded.shape[1])):
            kept = {}
            for one in _best(ones, len(ones)):
                tokens = tuple(one.tokens[:-1])
                if tokens not in kept and (one.score > _BLOCKED or not kept):
                    parts = dict.fromkeys(names, 0.0)
                    for name, part in zip(names, one.parts):
                        parts[name] += part  # there may be two language models
                    kept[tokens] = Hypothesis(list(tokens), one.score, parts, one.complete)
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
        beam, vocabulary, steps = self.beam_size, self._vocabulary(), self._steps(frames)[1]
        scorers = (*self.full_scorers, *self.partial_scorers)
        networks = [one.size for one in scorers if one.size is not None]
        if self.decoder is not None:
            networks.append(size_of([layer.multihead_attn.att for layer in self.decoder.layers]))
        each, tree = 100 * frames + 100 * vocabulary + 40 * steps, 0
        encoder = 40 * vocabulary
        for layers, width, heads in networks:
            each += (16 * layers + 12) * width * steps + 200 * width
            # Masks, and what attention makes of them: of each hypothesis for the tokens of all.
            tree += 8 + 12 * heads
        if self.decoder is not None:
            encoder += (8 * layers + 24) * width
            each += 12 * heads * frames
        each += sum(one.state for one in scorers)
        # Where probabilities underflow, CTC's sums are over logarithms, for so many at a time.
        underflow = 24 * min(beam * vocabulary, CTCPrefixScorer.AT_A_TIME) * frames
        return beam * each + beam**2 * steps * tree + encoder * frames + underflow

    def _parts(self):
        names = ["attention"] if self.attn_weight > 0 else []
        names += [one.part for one in (*self.full_scorers, *self.partial_scorers) if one.part]
        return names

    def _vocabulary(self):
        return getattr(self.fc, "w", self.fc).out_features

    def _steps(self, frames):
        """Steps at least and at most."""
        return int(frames * self.min_decode_ratio), max(int(frames * self.max_decode_ratio), 1)

    def _found(self, encoded, lengths):
        """For each utterance `beam_size` of `_Found`."""
        limits, time = lengths.tolist(), encoded.shape[1]
        if len(limits) != len(encoded) or not all(0 <= frames <= time for frames in limits):
            raise InputError(
                f"lengths must be {len(encoded)} numbers from 0 to {time}, those of the encoder's "
                f"output, got {limits}"
            )
        found = [self._nothing() for _ in limits]
        lengths = lengths.to(encoded.device)
        finite = encoded.isfinite().all(-1) | padding_mask(lengths, time)
        for row in (~finite.all(1)).nonzero().flatten().tolist():
            logger.warning("row %d: the encoder's output is not finite, nothing is found", row)
            limits[row] = 0
        # The longest first: those searched together are of similar lengths.
        rows = sorted((i for i, n in enumerate(limits) if n > 0), key=lambda i: -limits[i])
        while rows:
            count = len(rows)
            if self.max_bytes is not None:
                each = self.bytes_needed(limits[rows[0]])
                if each > self.max_bytes:
                    self._does_not_fit(rows[0], limits[rows[0]], f"max_bytes={self.max_bytes}")
                    rows = rows[1:]
                    continue
                count = min(count, int(self.max_bytes // each))
            for row, ones in zip(rows, self._search_in_halves(encoded, lengths, rows[:count])):
                found[row] = ones
            rows = rows[count:]
        return found

    def _search_in_halves(self, encoded, lengths, rows):
        """The whole at once, or in halves if there is not enough memory."""
        try:
            chosen = torch.tensor(rows, device=encoded.device)
            limits = lengths[chosen]
            return self._search(encoded[chosen, : int(limits[0])], limits)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the except clause: the exception holds on to the tensors.
        if encoded.is_cuda:
            torch.cuda.empty_cache()
        if len(rows) == 1:
            self._does_not_fit(rows[0], int(lengths[rows[0]]), "the memory has")
            return [self._nothing()]
        half = len(rows) // 2
        return [
            *self._search_in_halves(encoded, lengths, rows[:half]),
            *self._search_in_halves(encoded, lengths, rows[half:]),
        ]

    def _nothing(self):
        nothing = _Found([self.eos_index], [0.0], 0.0, [0.0] * len(self._parts()), False)
        return [nothing] * self.beam_size

    def _does_not_fit(self, row, frames, there):
        logger.warning(
            "row %d: an utterance of %d frames may need %d bytes to be searched alone, more than "
            "%s: nothing is found, a smaller beam_size or max_decode_ratio needs less",
            *(row, frames, self.bytes_needed(frames), there),
        )

    def _search(self, encoded, lengths):
        """The search itself, of utterances with one frame or more: a list of `_Found` for each."""
        encoded = encoded.to(next(self.fc.parameters(), encoded).dtype)
        encoded = encoded.masked_fill(padding_mask(lengths, encoded.shape[1]).unsqueeze(-1), 0)
        batch = _Batch(self, encoded, lengths)
        while batch.active:
            batch.step()
        return batch.found


class _Found(NamedTuple):
    tokens: list  # with the last, which is the end of the sentence or what the limit cut off
    log_probs: list  # of each token, the decoder's
    score: float
    parts: list
    complete: bool


class _Batch:
    """The beams of utterances that are searched together; those of each stand side by side.

    Scores are float32 and computed in SpeechBrain's order, so that what ties there ties here.
    """

    def __init__(self, searcher, encoded, lengths):
        self.searcher, self.beam = searcher, searcher.beam_size
        self.limits = [searcher._steps(frames) for frames in lengths.tolist()]
        self.active = list(range(len(self.limits)))  # the utterance of each row
        self.found = [[] for _ in self.limits]
        self.done = 0  # steps
        start = (encoded, lengths, self.beam, max(most for _, most in self.limits))
        self.decoder = searcher.decoder and searcher.decoder.start(*start)
        self.scorers = (*searcher.full_scorers, *searcher.partial_scorers)
        self.states = [one.start(*start) for one in self.scorers]

        hypotheses = len(self.active) * self.beam
        self.tokens = torch.full((hypotheses,), searcher.bos_index, device=encoded.device)
        sums = torch.full((len(self.active), self.beam), -torch.inf, device=encoded.device)
        sums[:, 0] = 0  # the others are the same hypothesis
        self.sums = sums.flatten()
        self.sequences = self.tokens.new_empty(hypotheses, 0)
        self.history = sums.new_empty(hypotheses, 0)
        self.parts = sums.new_zeros(hypotheses, len(searcher._parts()), dtype=torch.float64)
        self.log_probs = sums.new_zeros(hypotheses, searcher._vocabulary())

    def step(self):
        """One more token for every hypothesis."""
        decoders, raw = self._score()
        scores, parents = self._choose(decoders, raw)
        staying = self._collect(scores.tolist())
        self.done += 1
        self.active = [self.active[row] for row in staying]
        if self.active:
            self._reorder(parents, staying)

    def _score(self):
        """Leaves the scores of the next tokens in `log_probs`, (hypotheses, vocabulary).

        Returns what the decoder has to say alone, with its weight, and the log probabilities by
        source.
        """
        searcher, raw = self.searcher, []
        if self.decoder is not None:
            hidden, self.decoder = searcher.decoder.step(self.tokens, self.decoder)
            raw.append((searcher.fc(hidden).float() / searcher.temperature).log_softmax(-1))
            self.log_probs = searcher.attn_weight * raw[0]
        elif not searcher.carry_ctc_scores:
            self.log_probs.zero_()
        log_probs, eos = self.log_probs, searcher.eos_index
        decoders = log_probs.clone()
        early = [self.done < self.limits[i][0] for i in self.active]
        if any(early):
            early = torch.tensor(early, device=log_probs.device).repeat_interleave(self.beam)
            log_probs[early, eos] = searcher.minus_inf
        if searcher.using_eos_threshold:
            low = log_probs[:, eos] <= searcher.eos_threshold * log_probs.amax(-1)
            log_probs[low, eos] = searcher.minus_inf
        candidates = None
        for place, one in enumerate(self.scorers):
            if place < len(searcher.full_scorers):
                one.block(log_probs)
            elif candidates is None:
                count = max(1, int(self.beam * searcher.scorer.scorer_beam_scale))
                candidates = log_probs.topk(min(count, log_probs.shape[1])).indices
            scores, self.states[place] = one.step(self.tokens, self.states[place], candidates)
            if one.part and scores.shape[1] != log_probs.shape[1]:
                raise InputError(
                    f'"{one.part}" has scores of {scores.shape[1]} tokens, and the output layer of '
                    f"{log_probs.shape[1]}: they must be of the same tokenizer"
                )
            log_probs += scores * one.weight
            raw += [scores] if one.part else []
        return decoders, raw

    def _choose(self, decoders, raw):
        """The best hypotheses of each utterance: their scores and where they come from."""
        totals = self.sums.unsqueeze(1) + self.log_probs
        length = self.done + 1 if self.searcher.length_normalization else 1
        scores, cells = _topk((totals / length).view(len(self.active), -1), self.beam)
        self.sums = (scores * length).flatten()
        vocabulary = self.log_probs.shape[1]
        first = torch.arange(0, len(totals), self.beam, device=cells.device)
        parents = (cells // vocabulary + first.unsqueeze(1)).flatten()
        self.tokens = (cells % vocabulary).flatten()
        self.sequences = torch.cat([self.sequences[parents], self.tokens.unsqueeze(1)], 1)
        own = decoders[parents, self.tokens]
        self.history = torch.cat([self.history[parents], own.unsqueeze(1)], 1)
        self.parts = self.parts[parents]
        for column, log_probs in enumerate(raw):
            self.parts[:, column] += log_probs[parents, self.tokens]
        return scores, parents

    def _collect(self, scores):
        """Adds what has ended to what is found; the rows of utterances that are not finished."""
        is_eos = self.tokens == self.searcher.eos_index
        ended = [[] for _ in self.active]
        for place in is_eos.nonzero().flatten().tolist():
            ended[place // self.beam].append(place % self.beam)
        staying = []
        for row, i in enumerate(self.active):
            self._keep(row, ended[row], ended[row], scores[row])
            if self.done + 1 == self.limits[i][1]:
                # As in SpeechBrain: with those that have ended in this very step once more, whose
                # scores are lost there if they are the very sums that the search goes on with.
                again = scores[row]
                if not self.searcher.length_normalization:
                    again = [
                        -math.inf if place in ended[row] else score
                        for place, score in enumerate(again)
                    ]
                self._keep(row, range(self.beam), ended[row], again)
            if len(self.found[i]) < self.beam:
                staying.append(row)
        self.sums = self.sums.masked_fill(is_eos, -torch.inf)
        return staying

    def _keep(self, row, places, ended, scores):
        """Adds hypotheses of a row to what is found, until there are `beam_size`."""
        found = self.found[self.active[row]]
        places = list(places)[: self.beam - len(found)]
        if places:
            flat = [row * self.beam + place for place in places]
            found += map(
                _Found,
                self.sequences[flat].tolist(),
                self.history[flat].tolist(),
                [scores[place] for place in places],
                self.parts[flat].tolist(),
                [place in ended for place in places],
            )

    def _reorder(self, parents, staying):
        """Brings the states into the order of the hypotheses, without those of finished ones."""
        if len(staying) * self.beam < len(parents):
            rows = torch.tensor(staying, device=parents.device).unsqueeze(1) * self.beam
            places = (rows + torch.arange(self.beam, device=parents.device)).flatten()
            for name in ("tokens", "sums", "sequences", "history", "parts", "log_probs"):
                setattr(self, name, getattr(self, name)[places])
            parents = parents[places]
        self.decoder = reordered(self.decoder, parents)
        self.states = reordered(self.states, parents)


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
