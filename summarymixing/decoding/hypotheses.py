"""What a search finds: `search.nbest(modules, encoded, lengths)` gives a list of these for each."""

from typing import NamedTuple

# The tokens that every tokenizer here has; blank is the padding as well.
BLANK, BOS, EOS = 0, 1, 2


class Hypothesis(NamedTuple):
    """Tokens and what they score, in all and by source.

    Arguments
    ---------
    tokens : list of int
        Without the tokens that begin and end a sentence.
    score : float
        What a list of hypotheses is sorted by, the highest first.
    parts : dict of str to float
        Natural log probabilities of the whole hypothesis by source, not weighted: "attention",
        "ctc", "lm", "ngram", "transducer", those that the search used.
    complete : bool
        False: the limit on the length came before the end of the sentence.

    Example
    -------
    >>> best = Hypothesis([4, 7], -1.5, {"attention": -2.0, "ctc": -1.0})
    >>> best.tokens, best.complete
    ([4, 7], True)
    """

    tokens: list
    score: float
    parts: dict
    complete: bool = True


class NBestSearch:
    """A search that has `nbest`: called, it gives the tokens of each utterance's best hypothesis.

    Example
    -------
    >>> class Silence(NBestSearch):
    ...     def nbest(self, modules, encoded, lengths):
    ...         return [[Hypothesis([], 0.0, {})] for _ in lengths]
    >>> Silence()({}, None, [7, 4])
    [[], []]
    """

    def __call__(self, modules, encoded, lengths):
        """encoded (batch, time, d_model), lengths (batch,) in frames → list of lists of int."""
        return [found[0].tokens for found in self.nbest(modules, encoded, lengths)]
