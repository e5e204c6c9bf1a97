"""CTC scores of prefixes, for all hypotheses and tokens at once and without a loop over frames."""

import math

import torch

from summarymixing.models.incremental import PerUtterance

# What SpeechBrain's searcher has for the logarithm of zero.
IMPOSSIBLE = -1e20
# exp() of less than this is on its way to zero in float64, and loses digits.
_SMALLEST = 1e-290
# Sums of logarithms lose no digits that matter above this, and there it is zero anyway.
_LOWEST = -1e5


class CTCPrefixScorer:
    """Log probabilities that a CTC output begins with a prefix: the joint search's CTC score.

    Of a prefix g, r_n(t) and r_b(t) are the probabilities of its alignments with the first t
    frames that end in its last token, and in a blank (algorithm 2 of Watanabe et al. 2017, "Hybrid
    CTC/attention architecture", TR2017-190). The prefix h = g·c has the probability

        psi(h) = sum over t of phi(t) x_t(c),    phi = r_b + r_n, or r_b if c repeats g's last token

    where x_t are the probabilities of frame t after t frames: for all tokens c a product of
    matrices, (hypotheses × time) by (time × vocabulary). r of h itself is needed for the
    hypotheses that survive only, and is a recurrence of the first order: with X the running
    product of x(c),

        r_n(t+1) = (r_n(t) + phi(t)) x_t(c) = X(t+1) · sum over s ≤ t of phi(s) / X(s)

    a cumulative sum, and r_b likewise. All in float64, and logarithms but for the matrix product,
    where what would underflow is computed again with logarithms.

    Where SpeechBrain's numbers are arbitrary they are these: a prefix without an alignment has the
    log probability -1e20, and so has one that ends in a blank.

    Arguments
    ---------
    log_probs : torch.Tensor
        (batch, time, vocabulary), natural logarithms.
    lengths : torch.Tensor
        (batch,), int: frames of each utterance, at least 1.
    beam_size : int
        Hypotheses of each utterance.
    blank_index, eos_index : int

    Example
    -------
    >>> log_probs = torch.tensor([[[0.5, 0.1, 0.1, 0.3], [0.6, 0.1, 0.1, 0.2]]]).log()
    >>> scorer = CTCPrefixScorer(log_probs, torch.tensor([2]), 1, blank_index=0, eos_index=2)
    >>> scores, state = scorer.step(torch.tensor([1]), None)
    >>> scores.exp()                        # of 3: in the first frame, or in the second
    tensor([[0.0000, 0.1500, 0.3000, 0.4000]])
    >>> scores, state = scorer.step(torch.tensor([3]), state)
    >>> (scores[0, 2].exp() * 0.4).item()   # and that is all: 33, -3, 3-
    0.34...
    """

    AT_A_TIME = 4096  # sums that are computed again, which bounds their memory

    def __init__(self, log_probs, lengths, beam_size, blank_index, eos_index):
        self.blank_index, self.eos_index, self.beam_size = blank_index, eos_index, beam_size
        batch, time, self.vocabulary = log_probs.shape
        padding = torch.arange(time, device=log_probs.device) >= lengths.unsqueeze(1)
        logs = log_probs.transpose(1, 2).double().clamp(min=_LOWEST)
        logs = logs.masked_fill(padding.unsqueeze(1), 0)
        self.tables = PerUtterance(
            beam_size,
            logs=logs,
            probabilities=logs.exp().masked_fill(padding.unsqueeze(1), 0),
            padding=padding,
            lengths=lengths,
        )

    def step(self, tokens, state, candidates=None):
        """Scores the next tokens.

        Arguments
        ---------
        tokens : torch.Tensor
            (hypotheses,): what each was extended with since the last step; the beginning of the
            sentence in the first one. Hypotheses of an utterance stand together.
        state : dict or None
            From the step before, reordered with the hypotheses; None in the first one.
        candidates : torch.Tensor, optional
            (hypotheses, candidates): the tokens to be scored, with others -1e20. A hypothesis that
            is extended by one of the others goes on with the alignments of its first candidate,
            as in SpeechBrain.

        Returns
        -------
        scores : torch.Tensor
            (hypotheses, vocabulary), float32: the log probability of a prefix less that of the
            prefix without its last token; at `eos_index` of the sentence that ends here.
        state : dict of str to torch.Tensor
            The hypotheses first.
        """
        state = self._begin(tokens) if state is None else self._extend(tokens, state)
        psi = self._products(torch.logaddexp(state["nonblank"], state["blank"]))
        # A repeated token has to be parted from the one before by a blank.
        repeated = (state["blank"] + self._logs(state["last"])).logsumexp(1)
        psi.scatter_(1, state["last"].unsqueeze(1), repeated.unsqueeze(1))
        if candidates is not None:
            others = torch.ones_like(psi, dtype=torch.bool).scatter_(1, candidates, False)
            psi.masked_fill_(others, -math.inf)
            state["candidates"] = candidates
        psi[:, self.eos_index] = state["total"]
        psi[:, self.blank_index] = -math.inf
        psi.clamp_(min=IMPOSSIBLE)
        return (psi - state["psi"].unsqueeze(1)).float(), state

    def reorder(self, index):
        """For the utterances of the hypotheses `index`, where some others have ended."""
        self.tables.reorder(index)

    def _begin(self, tokens):
        """Of the empty prefix: blanks only."""
        blanks = torch.nn.functional.pad(self._logs(self.blank_index).cumsum(1), (1, 0))
        return self._state(torch.full_like(blanks, -math.inf), blanks, blanks.new_zeros(()), tokens)

    def _extend(self, tokens, state):
        """Of the prefixes with one more token."""
        aligned, possible = tokens, tokens != self.blank_index
        if "candidates" in state:
            scored = (state["candidates"] == tokens.unsqueeze(1)).any(1)
            aligned = torch.where(scored, tokens, state["candidates"][:, 0])
            possible = possible & scored
        repeats = (aligned == state["last"]).unsqueeze(1)
        phi = torch.logaddexp(state["nonblank"].masked_fill(repeats, -math.inf), state["blank"])
        logs = self._logs(aligned)
        psi = (phi + logs).logsumexp(1).masked_fill(~possible, -math.inf)
        # What goes on after the end matters to nobody, but SpeechBrain's CTC-only sums.
        psi = torch.where(tokens == self.eos_index, state["total"], psi).clamp(min=IMPOSSIBLE)
        nonblank = _recurrence(phi, logs)
        blank = _recurrence(nonblank[:, :-1], self._logs(self.blank_index))
        return self._state(nonblank, blank, psi, tokens)

    def _state(self, nonblank, blank, psi, last):
        """From r after 0 to all frames: (hypotheses, time + 1)."""
        ends = self.tables["lengths"].repeat_interleave(self.beam_size).unsqueeze(1)
        padding = self.tables["padding"].repeat_interleave(self.beam_size, 0)
        return {
            # Before each frame; in the padding there is nothing that could go on.
            "nonblank": nonblank[:, :-1].masked_fill(padding, -math.inf),
            "blank": blank[:, :-1].masked_fill(padding, -math.inf),
            "total": torch.logaddexp(nonblank, blank).gather(1, ends).squeeze(1),
            "psi": psi.expand(len(last)),
            "last": last,
        }

    def _products(self, phi):
        """log of the sum over t of exp(phi(t)) x_t(c): (hypotheses, time) → (…, vocabulary)."""
        peak = phi.amax(1, keepdim=True)
        weights = (phi - peak.masked_fill(peak == -math.inf, 0)).exp()
        products = torch.bmm(
            weights.view(-1, self.beam_size, phi.shape[1]),
            self.tables["probabilities"].transpose(1, 2),
        ).view(-1, self.vocabulary)
        lost = (products < _SMALLEST) & (peak > -math.inf)
        psi = products.log_().add_(peak)
        if lost.any():
            rows, columns = lost.nonzero(as_tuple=True)
            for some in torch.arange(len(rows), device=rows.device).split(self.AT_A_TIME):
                row, column = rows[some], columns[some]
                psi[row, column] = (phi[row] + self._logs(column, row)).logsumexp(1)
        return psi

    def _logs(self, tokens, hypotheses=None):
        """Of a token for each hypothesis, or one for all: (…,) → (…, time)."""
        if hypotheses is None:
            count = len(self.tables["logs"]) * self.beam_size
            hypotheses = torch.arange(count, device=self.tables["logs"].device)
        places = hypotheses // self.beam_size * self.vocabulary + tokens
        return self.tables["logs"].flatten(0, 1)[places]


def _recurrence(entering, logs):
    """r(t+1) = (r(t) + entering(t)) x_t and r(0) = 0, in logarithms: (…, time) → (…, time + 1)."""
    products = torch.nn.functional.pad(logs.cumsum(1), (1, 0))
    found = products[:, 1:] + torch.logcumsumexp(entering - products[:, :-1], 1)
    return torch.nn.functional.pad(found, (1, 0), value=-math.inf)
