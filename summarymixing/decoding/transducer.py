"""Searches over a transducer: modules "predictor" and "joiner", and frames of its encoder.

Both respect the lengths, and both always end: after `max_symbols_per_frame` tokens the next frame
follows for certain, without a blank.
"""

import math
from typing import NamedTuple

import torch

from summarymixing.decoding.hypotheses import BLANK, Hypothesis, NBestSearch
from summarymixing.decoding.searches import device_of
from summarymixing.errors import InputError, check_integer


class TransducerGreedySearch:
    """The best token of every frame until it is the blank; whole or piece by piece.

    Arguments
    ---------
    max_symbols_per_frame : int
        After as many tokens the next frame follows without a blank.

    Example
    -------
    >>> from summarymixing.models.transducer import Joiner, Predictor
    >>> _ = torch.manual_seed(0)
    >>> modules = {"predictor": Predictor(9, 4, 8), "joiner": Joiner(16, 8, 9, 8)}
    >>> encoded, lengths = torch.rand(2, 6, 16), torch.tensor([6, 3])
    >>> search = TransducerGreedySearch(max_symbols_per_frame=2)
    >>> whole = search(modules, encoded, lengths)
    >>> state = search.initial_state(modules, batch_size=2)
    >>> first, _, state = search.step(modules, encoded[:, :4], torch.tensor([4, 3]), state)
    >>> second, _, state = search.step(modules, encoded[:, 4:], torch.tensor([2, 0]), state)
    >>> [a + b for a, b in zip(first, second)] == whole
    True
    """

    def __init__(self, max_symbols_per_frame=5):
        check_integer("max_symbols_per_frame", max_symbols_per_frame)
        self.max_symbols_per_frame = max_symbols_per_frame

    def __call__(self, modules, encoded, lengths):
        """encoded (batch, time, d_model), lengths (batch,) in frames → list of lists of int."""
        state = self.initial_state(modules, len(encoded))
        return self.step(modules, encoded, lengths, state)[0]

    def initial_state(self, modules, batch_size):
        """State before the first frame, all zeros.

        Arguments
        ---------
        modules : dict
        batch_size : int

        Returns
        -------
        dict
            "token" (batch,), the last token; "hidden" and "cell", the predictor's before it.
        """
        device = device_of(modules["predictor"])
        token = torch.full((batch_size,), BLANK, dtype=torch.long, device=device)
        return {"token": token, **modules["predictor"].initial_state(batch_size)}

    @torch.no_grad()
    def step(self, modules, encoded, lengths, state):
        """Goes on where `state` ends.

        Arguments
        ---------
        modules : dict
            With "predictor" and "joiner".
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
        predictor, joiner = modules["predictor"], modules["joiner"]
        tokens, frames = ([[] for _ in encoded] for _ in range(2))
        ahead = _feed(predictor, state)
        projected = joiner.encoder_proj(encoded)
        for time in range(encoded.shape[1]):
            active = time < lengths.to(encoded.device)
            for _ in range(self.max_symbols_per_frame):
                best = joiner.join(projected[:, time], ahead["predicted"]).argmax(-1)
                active = active & (best != BLANK)
                rows = active.nonzero().flatten().tolist()
                if not rows:
                    break
                for row, token in zip(rows, best[active].tolist()):
                    tokens[row].append(token)
                    frames[row].append(time)
                new = {"token": best, "hidden": ahead["hidden"], "cell": ahead["cell"]}
                state = _where(active, new, state)
                ahead = _where(active, _feed(predictor, new), ahead)
        return tokens, frames, state


class TransducerBeamSearch(NBestSearch):
    """The hypotheses with the highest total probability over their alignments, one beam a frame.

    In every frame each hypothesis may grow by 0 to `max_symbols_per_frame` tokens. Hypotheses with
    the same tokens are one: their probabilities add up. With a beam that holds all hypotheses, and
    no margin, the search is exact. Every utterance is searched alone, so that its neighbours have
    no say.

    Arguments
    ---------
    beam_size : int
        Hypotheses kept; 1 is `TransducerGreedySearch`.
    max_symbols_per_frame : int
    margin : float
        Hypotheses whose log probability is as far below the best one's are given up. Most frames
        have one likely hypothesis only, and this is what makes them cheap.

    Example
    -------
    >>> from summarymixing.models.transducer import Joiner, Predictor
    >>> _ = torch.manual_seed(0)
    >>> modules = {"predictor": Predictor(9, 4, 8), "joiner": Joiner(16, 8, 9, 8)}
    >>> encoded, lengths = torch.rand(2, 6, 16), torch.tensor([6, 3])
    >>> search = TransducerBeamSearch(beam_size=4, max_symbols_per_frame=2)
    >>> best = search(modules, encoded, lengths)
    >>> found = search.nbest(modules, encoded, lengths)[0][0]
    >>> found.tokens == best[0], found.score < 0
    (True, True)
    """

    def __init__(self, beam_size=10, max_symbols_per_frame=5, margin=10.0):
        check_integer("beam_size", beam_size)
        check_integer("max_symbols_per_frame", max_symbols_per_frame)
        if not margin > 0:
            raise InputError(f"margin must be positive (.inf: none), got {margin}")
        self.beam_size = beam_size
        self.max_symbols_per_frame = max_symbols_per_frame
        self.margin = margin

    def __call__(self, modules, encoded, lengths):
        """encoded (batch, time, d_model), lengths (batch,) in frames → list of lists of int."""
        if self.beam_size == 1:
            return TransducerGreedySearch(self.max_symbols_per_frame)(modules, encoded, lengths)
        return super().__call__(modules, encoded, lengths)

    @torch.no_grad()
    def nbest(self, modules, encoded, lengths):
        """The `beam_size` best hypotheses of each utterance, or as many as there are.

        Arguments
        ---------
        modules : dict
            With "predictor" and "joiner".
        encoded : torch.Tensor
            (batch, time, d_model).
        lengths : torch.Tensor
            (batch,), int, in frames.

        Returns
        -------
        list of list of Hypothesis
            The best first; the score is the one part, "transducer".
        """
        return [
            self._search(modules["predictor"], modules["joiner"], frames[:length])
            for frames, length in zip(encoded, lengths.tolist())
        ]

    def _search(self, predictor, joiner, frames):
        start = {"token": torch.full((1,), BLANK, device=frames.device)}
        beam = _Beam([()], [0.0], _feed(predictor, start | predictor.initial_state(1)))
        for frame in frames:
            beam = self._frame(predictor, joiner, frame.unsqueeze(0), beam)
        return [
            Hypothesis(list(tokens), score, {"transducer": score})
            for tokens, score in zip(beam.tokens, beam.scores)
        ]

    def _frame(self, predictor, joiner, frame, beam):
        """The beam after a frame, from the beam before it."""
        tensors = []  # of the beams in this frame, each grown from the one before
        ended = {}  # tokens: (score at the frame's end, row in all these tensors)
        for grown in range(self.max_symbols_per_frame + 1):
            may_grow = grown < self.max_symbols_per_frame
            ends = beam.scores
            if may_grow:
                scores = joiner(frame, beam.tensors["predicted"]).double().log_softmax(-1)
                scores += scores.new_tensor(beam.scores).unsqueeze(1)
                ends = scores[:, BLANK].tolist()
            first = sum(len(one["predicted"]) for one in tensors)
            tensors.append(beam.tensors)
            for row, (tokens, score) in enumerate(zip(beam.tokens, ends)):
                earlier, row = ended.get(tokens, (-math.inf, first + row))
                ended[tokens] = _logaddexp(earlier, score), row
            if may_grow:
                beam = self._grow(predictor, beam, scores, ended)
            if not may_grow or not beam.tokens:
                break
        floor = self._floor(ended)
        best = [item for item in ended.items() if not item[1][0] < floor]  # nan stays
        best = sorted(best, key=lambda item: -item[1][0])[: self.beam_size]
        rows = torch.tensor([row for _, (_, row) in best], device=frame.device)
        return _Beam(
            [tokens for tokens, _ in best],
            [score for _, (score, _) in best],
            {name: torch.cat([one[name] for one in tensors])[rows] for name in tensors[0]},
        )

    def _grow(self, predictor, beam, scores, ended):
        """The best hypotheses with one more token, of those that may still enter the beam.

        Scores only fall, so what is below the beam will stay there.
        """
        floor = self._floor(ended)
        scores = scores[:, BLANK + 1 :]
        best, places = scores.flatten().topk(min(self.beam_size, scores.numel()))
        best, places = best[best > floor], places[best > floor]
        parents = places // scores.shape[1]
        new = {name: beam.tensors[name][parents] for name in ("hidden", "cell")}
        new["token"] = places % scores.shape[1] + BLANK + 1
        tokens = [
            (*beam.tokens[parent], token)
            for parent, token in zip(parents.tolist(), new["token"].tolist())
        ]
        return _Beam(tokens, best.tolist(), _feed(predictor, new) if tokens else {})

    def _floor(self, ended):
        """The lowest score in the beam of these hypotheses."""
        kept = sorted((score for score, _ in ended.values()), reverse=True)[: self.beam_size]
        full = len(kept) == self.beam_size
        return max(kept[0] - self.margin, kept[-1] if full else -math.inf)


class _Beam(NamedTuple):
    tokens: list  # of tuples
    scores: list  # of natural log probabilities
    tensors: dict  # "predicted", "hidden", "cell": (hypotheses, ...)


def _feed(predictor, state):
    """The predictor's output and state after the token of a state."""
    predicted, after = predictor(state["token"].unsqueeze(1), state)
    return {"predicted": predicted.squeeze(1), **after}


def _where(rows, new, old):
    """Tensors of `new` in the rows that a mask (batch,) names, those of `old` in the others."""
    return {
        name: torch.where(rows.view(-1, *[1] * (new[name].ndim - 1)), new[name], old[name])
        for name in old
    }


def _logaddexp(a, b):
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
