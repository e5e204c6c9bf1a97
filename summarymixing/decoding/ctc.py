"""Prefix beam search on the CTC head alone, with or without an n-gram model.

SpeechBrain's CTC searchers find the same, but give text in place of tokens, know n-gram models of
words only, and take one utterance after the other.
"""

import logging
import math
from functools import lru_cache

import torch
from torch.nn import functional as F

from summarymixing.decoding.hypotheses import BLANK, BOS, EOS, Hypothesis, NBestSearch
from summarymixing.decoding.ngram import NGram
from summarymixing.errors import InputError, check_integer, check_number
from summarymixing.ops.padding import padding_mask

logger = logging.getLogger(__name__)

# Tokens that hypotheses may grow by in a frame, at least: the most probable ones.
_CANDIDATES = 40
# Prefixes are told apart by 64-bit numbers, polynomials in this odd number modulo 2**64.
_MULTIPLIER = 6364136223846793005


class CTCPrefixBeamSearch(NBestSearch):
    """The most probable token sequences of the CTC head, each with all of its alignments.

    In every frame a hypothesis stays or grows by one token; hypotheses with the same tokens are
    one, whose probabilities add up. All utterances and hypotheses of a batch go through a frame
    together. The score of a hypothesis is

        log P_ctc(tokens) + ngram_weight * log P_ngram(tokens, end) + length_bonus * len(tokens)

    where the first term is exact in the result, over all alignments, and over those still in the
    beam during the search. Tokens 1 and 2, which begin and end a sentence, are never found.

    A. Graves and N. Jaitly, "Towards end-to-end speech recognition with recurrent neural networks",
    ICML 2014, algorithm 1.

    Arguments
    ---------
    beam_size : int
        Hypotheses kept. With a beam that holds them all, and at most 40 tokens, the search is
        exact.
    ngram_file : str, optional
        An ARPA file over the numbers of tokens (`summarymixing.decoding.ngram`), gzipped or not.
    ngram_weight : float
    length_bonus : float
        Added for every token; an n-gram model makes long hypotheses improbable.

    Raises
    ------
    InputError
        If an argument is out of range, or there is no such file; in a search, for lengths that are
        not those of the frames.

    Example
    -------
    >>> modules = {"ctc_lin": torch.nn.Identity()}
    >>> # Twice 0.6 for the blank against 0.4 for token 3: "3" has three alignments, 0.64.
    >>> frames = torch.tensor([0.6, 0.0, 0.0, 0.4]).log().expand(1, 2, 4)
    >>> search = CTCPrefixBeamSearch(beam_size=3)
    >>> search(modules, frames, torch.tensor([2]))
    [[3]]
    >>> [(h.tokens, round(h.score, 3)) for h in search.nbest(modules, frames, torch.tensor([2]))[0]]
    [([3], -0.446), ([], -1.022)]
    """

    def __init__(self, beam_size=10, ngram_file=None, ngram_weight=0.5, length_bonus=0.0):
        check_integer("beam_size", beam_size)
        check_number("ngram_weight", ngram_weight, "at least 0", lambda x: x >= 0)
        check_number("length_bonus", length_bonus)
        self.beam_size = beam_size
        self.ngram_file = ngram_file
        self.ngram_weight = ngram_weight
        self.length_bonus = length_bonus
        self._read_ngram = lru_cache(1)(NGram.read)  # when first needed, or another one

    @torch.no_grad()
    def nbest(self, modules, encoded, lengths):
        """The best hypotheses of each utterance: `beam_size`, or as many as there are.

        Arguments
        ---------
        modules : dict
            With "ctc_lin".
        encoded : torch.Tensor
            (batch, time, d_model).
        lengths : torch.Tensor
            (batch,), int, in frames, from 0 to the time.

        Returns
        -------
        list of list of Hypothesis
            Best first; their parts are "ctc", and "ngram" if there is such a model. An utterance
            that the head gives NaN for has one without tokens, which is not complete; a
            warning is logged.
        """
        check_lengths(encoded, lengths)
        encoded = as_parameters(encoded, modules["ctc_lin"])
        log_probs = modules["ctc_lin"](encoded).float().log_softmax(-1)
        ngram = self._model(log_probs)
        # An infinite number in a frame makes all of its logits NaN as well.
        valid = ~padding_mask(lengths.to(log_probs.device), log_probs.shape[1])
        broken = (valid & log_probs.isnan().any(-1)).any(1).tolist()
        for row in [row for row, wrong in enumerate(broken) if wrong]:
            logger.warning("row %d: the encoder's output is not finite, nothing is found", row)
        lengths = [0 if wrong else length for wrong, length in zip(broken, lengths.tolist())]
        # The longest first: those that have not ended are the first rows.
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        found = [None] * len(lengths)
        sequences, ngram_scores, alive = self._search(
            log_probs[order], [lengths[row] for row in order], ngram
        )
        for place, row in enumerate(order):
            if broken[row]:
                parts = {"ctc": 0.0} if ngram is None else {"ctc": 0.0, "ngram": 0.0}
                found[row] = [Hypothesis([], 0.0, parts, complete=False)]
                continue
            kept = alive[place].nonzero().flatten().tolist()
            hypotheses = [sequences[place][i] for i in kept]
            ctc = ctc_log_probability(log_probs[row, : lengths[row]], hypotheses)
            scored = []
            for i, tokens, log_probability in zip(kept, hypotheses, ctc.tolist()):
                parts = {"ctc": log_probability}
                score = log_probability + self.length_bonus * len(tokens)
                if ngram is not None:
                    parts["ngram"] = ngram_scores[place][i].item()
                    score += self.ngram_weight * parts["ngram"]
                scored.append(Hypothesis(tokens, score, parts))
            found[row] = sorted(scored, key=lambda hypothesis: -hypothesis.score)
        return found

    def _model(self, log_probs):
        if self.ngram_file is None or self.ngram_weight == 0:
            return None
        return self._read_ngram(self.ngram_file, log_probs.shape[-1]).to(log_probs.device)

    def _search(self, log_probs, lengths, ngram):
        """Token lists, n-gram scores (batch, beam) and what of the beam is there (batch, beam)."""
        beam = _Beam(len(lengths), self.beam_size, log_probs, ngram)
        steps = []
        for time in range(max(lengths, default=0)):
            going = sum(length > time for length in lengths)
            part = {name: value[:going] for name, value in vars(beam).items()}
            origin, token, new = self._frame(log_probs[:going, time].double(), part, ngram)
            for name, value in new.items():
                getattr(beam, name)[:going] = value
            steps.append((origin, token))
        scores = beam.ngram + beam.following[..., EOS]
        alive = torch.logaddexp(beam.ends_blank, beam.ends_token) > -math.inf
        alive[:, 0] |= ~alive.any(1)  # logits of minus infinity make everything impossible
        return _sequences(steps, len(lengths), self.beam_size, log_probs.device), scores, alive

    def _rank(self, ctc, ngram, length):
        # Without a model its scores are 0; 0 times minus infinity would be none.
        ngram = self.ngram_weight * ngram if self.ngram_weight else 0.0
        return ctc + ngram + self.length_bonus * length

    def _frame(self, log_probs, beam, ngram):
        """A frame's log probabilities (batch, vocabulary): the beam after it.

        Returns the place in the old beam (batch, beam) that each hypothesis comes from, the token
        that it has grown by or 0, and the new tensors by name.
        """
        batch, size = beam["last"].shape
        blank, token = beam["ends_blank"], beam["ends_token"]
        total = torch.logaddexp(blank, token)
        of_last = log_probs.gather(1, beam["last"])

        # What stays: a blank or the last token once more, or what a hypothesis one token shorter,
        # when it is in the beam as well, grows into.
        alive = total > -math.inf
        grows_into = beam["name"].unsqueeze(2) == beam["parent"].unsqueeze(1)  # (batch, from, to)
        grows_into &= alive.unsqueeze(2) & alive.unsqueeze(1)
        joined, shorter = grows_into.any(1), grows_into.int().argmax(1)
        repeats = beam["last"].gather(1, shorter) == beam["last"]
        joining = torch.where(repeats, blank.gather(1, shorter), total.gather(1, shorter)) + of_last
        stays_blank = total + log_probs[:, [BLANK]]
        stays_token = token + of_last
        stays_token = torch.where(joined, torch.logaddexp(stays_token, joining), stays_token)

        # What grows. Of each hypothesis no more than the beam's size can enter the beam; one token
        # more, since behind its repetition there must have been a blank.
        choices = log_probs.clone()
        choices[:, [BLANK, *(n for n in (BOS, EOS) if n < choices.shape[1])]] = -math.inf
        count = min(max(_CANDIDATES, size + 1), choices.shape[1])
        choices, candidates = choices.topk(count)
        candidates = candidates.unsqueeze(1).expand(-1, size, -1)
        repeats = candidates == beam["last"].unsqueeze(2)
        before = torch.where(repeats, blank.unsqueeze(2), total.unsqueeze(2))
        grown = before + choices.unsqueeze(1)
        grown = grown.masked_fill(
            _already_there(joined, shorter, beam["last"], candidates), -math.inf
        )
        grown_ngram = beam["ngram"].unsqueeze(2) + beam["following"].gather(2, candidates)

        ranks = torch.cat(
            [
                self._rank(
                    torch.logaddexp(stays_blank, stays_token), beam["ngram"], beam["length"]
                ),
                self._rank(grown, grown_ngram, beam["length"].unsqueeze(2) + 1).flatten(1),
            ],
            dim=1,
        )
        best, places = ranks.topk(size)
        grows = places >= size
        within = (places - size).clamp(min=0)
        origin = torch.where(grows, within // count, places)
        new_token = candidates.flatten(1).gather(1, within)

        def pick(stayed, grew):
            return torch.where(grows, grew, stayed.gather(1, origin))

        never = torch.full_like(total, -math.inf)
        old = {name: beam[name].gather(1, origin) for name in ("last", "name", "length", "state")}
        new = {
            "ends_blank": pick(stays_blank, never),
            "ends_token": pick(stays_token, grown.flatten(1).gather(1, within)),
            "ngram": pick(beam["ngram"], grown_ngram.flatten(1).gather(1, within)),
            "last": torch.where(grows, new_token, old["last"]),
            "name": torch.where(grows, old["name"] * _MULTIPLIER + new_token, old["name"]),
            "parent": pick(beam["parent"], old["name"]),
            "length": old["length"] + grows,
        }
        for name in ("ends_blank", "ends_token"):
            new[name] = new[name].masked_fill(best == -math.inf, -math.inf)
        if ngram is not None:
            rows = origin.unsqueeze(2).expand(-1, -1, beam["following"].shape[2])
            following, state = ngram.step(new["last"].flatten(), old["state"].flatten())
            new["state"] = torch.where(grows, state.view(batch, size), old["state"])
            new["following"] = torch.where(
                grows.unsqueeze(2), following.view(rows.shape), beam["following"].gather(1, rows)
            )
        return origin, new_token * grows, new


class _Beam:
    """Tensors (batch, beam): at first there is the hypothesis without tokens."""

    def __init__(self, batch, size, log_probs, ngram):
        device = log_probs.device

        def full(value, dtype):
            return torch.full((batch, size), value, dtype=dtype, device=device)

        self.ends_blank = full(-math.inf, torch.float64)  # log probability, with a blank behind it
        self.ends_blank[:, 0] = 0.0
        self.ends_token = full(-math.inf, torch.float64)
        self.last = full(BLANK, torch.long)
        self.name = full(1, torch.long)  # of the prefix, and of the one without its last token
        self.parent = full(0, torch.long)
        self.length = full(0, torch.long)
        self.ngram = full(0.0, torch.float64)
        self.state = full(0, torch.long)
        if ngram is None:
            vocabulary = max(log_probs.shape[2], EOS + 1)
            self.following = torch.zeros(1, 1, 1, device=device).expand(batch, size, vocabulary)
        else:
            rows, state = ngram.step(full(BOS, torch.long).flatten(), self.state.flatten())
            self.following, self.state = rows.view(batch, size, -1), state.view(batch, size)


def _already_there(joined, shorter, last, candidates):
    """Mask (batch, beam, candidates) of growth into a hypothesis that is in the beam."""
    batch, size, count = candidates.shape
    is_last = candidates[:, :1] == last.unsqueeze(2)  # (batch, beam, candidates)
    is_last &= joined.unsqueeze(2)
    there = torch.zeros(batch, size, count, dtype=torch.int, device=last.device)
    rows = shorter.unsqueeze(2).expand(-1, -1, count)
    return there.scatter_add(1, rows, is_last.int()) > 0


def _sequences(steps, batch, size, device):
    """Token lists of all hypotheses: [utterance][place in the beam]."""
    place = torch.arange(size, device=device).repeat(batch, 1)
    columns = []
    for origin, token in reversed(steps):
        going = len(origin)
        column = torch.zeros_like(place)
        column[:going] = token.gather(1, place[:going])
        place[:going] = origin.gather(1, place[:going])
        columns.append(column)
    if not columns:
        return [[[] for _ in range(size)] for _ in range(batch)]
    table = torch.stack(columns[::-1], dim=-1).tolist()
    return [[[token for token in row if token] for row in rows] for rows in table]


def check_lengths(encoded, lengths):
    """Raises `InputError` unless there is a length in frames for each utterance.

    Arguments
    ---------
    encoded : torch.Tensor
        (batch, time, d_model).
    lengths : torch.Tensor
        (batch,), int.

    Example
    -------
    >>> check_lengths(torch.rand(1, 4, 8), torch.tensor([5]))
    Traceback (most recent call last):
    summarymixing.errors.InputError: lengths must be 1 integers from 0 to 4 frames, got [5]
    """
    batch, time = encoded.shape[:2]
    values = lengths.tolist()
    fit = lengths.shape == (batch,) and not lengths.is_floating_point()
    if not (fit and all(0 <= value <= time for value in values)):
        raise InputError(f"lengths must be {batch} integers from 0 to {time} frames, got {values}")


def as_parameters(encoded, module):
    """The encoder's output in the type of a head's parameters, if the head has any."""
    return encoded.to(next((p.dtype for p in module.parameters()), encoded.dtype))


def ctc_log_probability(log_probs, hypotheses):
    """Natural log probability of token sequences, summed over all of their alignments.

    Arguments
    ---------
    log_probs : torch.Tensor
        (time, vocabulary), of the CTC head for one utterance.
    hypotheses : list of list of int

    Returns
    -------
    torch.Tensor
        (hypotheses,), float64; minus infinity for those that do not fit into the frames.

    Example
    -------
    >>> log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    >>> ctc_log_probability(log_probs, [[1], [], [1, 1]]).exp()
    tensor([0.6400, 0.3600, 0.0000], dtype=torch.float64)
    """
    device, time = log_probs.device, len(log_probs)
    sizes = torch.tensor([len(tokens) for tokens in hypotheses], device=device)
    if time == 0:
        return torch.where(sizes == 0, 0.0, -math.inf).double()
    width = max(1, int(sizes.max()))
    tokens = torch.tensor(
        [[*tokens, *[BLANK] * (width - len(tokens))] for tokens in hypotheses], device=device
    )
    # The columns of its own tokens are all that a hypothesis needs; equal tokens share the first.
    columns = F.pad(tokens, (1, 0), value=BLANK)
    emissions = log_probs.double().T[columns].permute(2, 0, 1)  # (time, hypotheses, 1 + width)
    targets = 1 + (tokens.unsqueeze(2) == tokens.unsqueeze(1)).int().argmax(2)
    times = torch.full_like(sizes, time)
    return -F.ctc_loss(emissions, targets, times, sizes, reduction="none")
