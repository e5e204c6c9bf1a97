"""Words with times and confidences, from tokens with their frames and probabilities.

A word's confidence is the product of the probabilities of its tokens: the chance, in the model's
own eyes, that all of them are right. The probability of a token is

* with CTC the highest that it has in the frames of its run. CTC takes frames for independent, so
  this is a lower bound of the probability that the token stands somewhere in the run, where
  the probability of the path, a product over frames, would fall with every frame that the speaker
  holds a sound;
* with a transducer that of its emission, given the tokens before it.

It is only as good as the model is calibrated: trained networks are too sure of themselves.

A token is emitted in a frame or two, most often when it is complete: the path knows where words end
better than where they begin. A word therefore begins before its first token by what it takes to say
that token, but not before the end of the word before.
"""

import math
import unicodedata
from dataclasses import dataclass

import numpy as np

from summarymixing.inference.text import Detokeniser

# Seconds that a character of a token takes at most before its emission: 50 ms had the smallest
# errors on synthetic speech with known word boundaries; 30 to 80 ms are almost as good.
_CHARACTER = 0.05


@dataclass(frozen=True)
class Token:
    """A token of a path.

    Arguments
    ---------
    number : int
        In the tokenizer.
    first, last : int
        Encoder frames of its run; with a transducer both are the frame of its emission.
    log_probability : float
        Natural logarithm.
    """

    number: int
    first: int
    last: int
    log_probability: float


@dataclass(frozen=True)
class Word:
    """A word of a transcript.

    Arguments
    ---------
    text : str
        Without spaces.
    start, end : float
        Seconds from the beginning of the recording.
    confidence : float
        From 0 to 1: the product of the probabilities of its tokens.
    spaced : bool
        Whether a space stands before it, unless it is the first.
    """

    text: str
    start: float
    end: float
    confidence: float
    spaced: bool = True


def runs(path, scores, blank):
    """The tokens of a path, one of which stands in every frame, with their highest scores.

    Arguments
    ---------
    path : numpy.ndarray
        (frames,), int.
    scores : numpy.ndarray
        (frames,), the log probability of each frame's token.
    blank : int
        What is no token.

    Returns
    -------
    list of Token

    Example
    -------
    >>> for token in runs(np.array([3, 3, 0, 3]), np.array([-2.0, -1.0, 0.0, -3.0]), blank=0):
    ...     print(token)
    Token(number=3, first=0, last=1, log_probability=-1.0)
    Token(number=3, first=3, last=3, log_probability=-3.0)
    """
    if not len(path):
        return []
    starts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(path))])
    ends = np.append(starts[1:], len(path))
    highest = np.maximum.reduceat(scores, starts)
    return [
        Token(number, start, end - 1, score)
        for number, start, end, score in zip(
            path[starts].tolist(), starts.tolist(), ends.tolist(), highest.tolist()
        )
        if number != blank
    ]


def words_of(tokenizer, tokens, frame_seconds, limit=math.inf):
    """Words from tokens; a character of a script without spaces is a word by itself.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
    tokens : list of Token
    frame_seconds : float
        From one encoder frame to the next.
    limit : float
        Seconds of the recording: no word ends later.

    Returns
    -------
    list of Word

    Example
    -------
    >>> from summarymixing.dataio import tokenizer
    >>> pieces = tokenizer.train_or_load(None, lambda: ["one two"], model_type="char")
    >>> numbers = pieces.encode("to w")
    >>> tokens = [Token(n, 2 * i, 2 * i, math.log(0.5)) for i, n in enumerate(numbers)]
    >>> for word in words_of(pieces, tokens, frame_seconds=0.1):
    ...     print(word.text, round(word.start, 3), round(word.end, 3), round(word.confidence, 3))
    to 0.1 0.45 0.125
    w 0.7 0.85 0.25
    """
    found = []
    group = _Group()
    for text, run in _texts(tokenizer, tokens):
        if not text:
            group.runs.append(run)
        for place, character in enumerate(text):
            if group.text and _begins(character, group.text):
                found.append(group)
                group = _Group()
            group.add(character, run, first=place == 0 or not group.runs)
    if group.text:
        found.append(group)
    words, before = [], 0.0
    for group in found:
        words.append(group.word(frame_seconds, before, limit))
        before = words[-1].end
    return words


class _Group:
    """Characters that become a word, and the tokens that they are from."""

    def __init__(self):
        self.text, self.spaced = "", False
        self.runs = []  # of tokens
        self.spoken = []  # those of them with more than a space
        self.lead = 0  # characters of the first of these

    def add(self, character, run, first):
        if first:
            # A token's uncertainty is also that of a boundary that it stands for.
            self.runs.append(run)
        if character == " ":
            self.spaced = True
        else:
            self.text += character
            if not self.spoken or self.spoken[-1] is not run:
                self.spoken.append(run)
            self.lead += len(self.spoken) == 1

    def word(self, frame_seconds, before, limit):
        # A frame's number times its length is its centre.
        emitted = max(0.0, (self.spoken[0][0].first - 0.5) * frame_seconds)
        start = min(emitted, max(before, emitted - self.lead * _CHARACTER))
        end = min((self.spoken[-1][-1].last + 0.5) * frame_seconds, limit)
        log_probability = sum(token.log_probability for run in self.runs for token in run)
        return Word(self.text, start, end, math.exp(log_probability), self.spaced)


def _texts(tokenizer, tokens):
    """The text that tokens add, and those tokens: several where each is a byte of a character.

    A space that begins the recording adds none.
    """
    detokeniser, waiting = Detokeniser(tokenizer), []
    for token in tokens:
        text = detokeniser.push(token.number)
        waiting.append(token)
        if text or not tokenizer.is_byte(token.number):
            yield text, waiting
            waiting = []
    if text := detokeniser.finish():
        yield text, waiting


def _begins(character, before):
    """Whether a character begins a new word behind what there is of one."""
    if character == " " or alone(character):
        return True
    # What is said by itself takes punctuation and marks behind it, but nothing else.
    category = unicodedata.category(character)
    return alone(before[0]) and category[0] in "LN" and category != "Lm"


def alone(character):
    """Whether it is of a script that puts no spaces between words."""
    return unicodedata.category(character) == "Lo" and (
        unicodedata.east_asian_width(character) in "WF"
    )
