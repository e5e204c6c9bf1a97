"""From encoder output to words with times and confidences.

They are those of the greedy search's path, or for other searches of the best path of CTC with the
tokens that were found.

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

import torch
from torchaudio.functional import forced_align

from summarymixing.decoding.hypotheses import BLANK
from summarymixing.decoding.searches import CTCGreedySearch
from summarymixing.decoding.transducer import TransducerGreedySearch
from summarymixing.errors import InputError
from summarymixing.inference.text import Detokeniser

# Frames whose scores for all tokens are in memory at a time.
_FRAMES = 2000
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


@torch.no_grad()
def align(recogniser, encoded, lengths):
    """The tokens of the recogniser's search, each with its frames and its probability.

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser
    encoded : torch.Tensor
        (batch, time, d_model), the encoder's output.
    lengths : torch.Tensor
        (batch,), int, in frames.

    Returns
    -------
    list of list of Token
        The tokens are those of `recogniser.search`.

    Raises
    ------
    InputError
        For a transducer's beam search, which tells nothing about frames.
    """
    search, modules = recogniser.search, recogniser.modules
    if isinstance(search, TransducerGreedySearch):
        return _align_transducer(recogniser, encoded, lengths)
    if "ctc_lin" not in modules:
        raise InputError("a transducer is transcribed greedily: its beam search has no times")
    if isinstance(search, CTCGreedySearch):
        return _align_ctc(modules["ctc_lin"], encoded, lengths)
    found = search(modules, encoded, lengths)
    return [
        align_tokens(modules["ctc_lin"](frames[:length]).float().log_softmax(-1), tokens)
        for frames, length, tokens in zip(encoded, lengths.tolist(), found)
    ]


def align_tokens(log_probs, numbers):
    """Known tokens along the best path of CTC through all of them.

    Arguments
    ---------
    log_probs : torch.Tensor
        (time, vocabulary), of the CTC head for one utterance.
    numbers : list of int

    Returns
    -------
    list of Token
        If they are too many for the frames, which a decoder does not know, they are spread evenly.

    Example
    -------
    >>> log_probs = torch.eye(5)[[3, 0, 3, 4, 4]].log_softmax(-1)
    >>> [(token.number, token.first, token.last) for token in align_tokens(log_probs, [3, 3, 4])]
    [(3, 0, 0), (3, 2, 2), (4, 3, 4)]
    >>> [(token.number, token.first) for token in align_tokens(log_probs[:2], [3, 3, 4])]
    [(3, 0), (3, 0), (4, 1)]
    """
    if not numbers or not len(log_probs):
        return []
    log_probs = log_probs.cpu()
    repeats = sum(a == b for a, b in zip(numbers, numbers[1:]))
    if len(numbers) + repeats > len(log_probs):
        highest = log_probs.amax(0).tolist()
        places = [i * len(log_probs) // len(numbers) for i in range(len(numbers))]
        return [Token(n, place, place, highest[n]) for n, place in zip(numbers, places)]
    path, scores = forced_align(log_probs[None], torch.tensor([numbers]), blank=BLANK)
    return _runs(path[0], scores[0])


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


def _align_ctc(head, encoded, lengths):
    best, scores = [], []
    for frames in encoded.split(_FRAMES, dim=1):
        logits = head(frames).float()
        top, token = logits.max(-1)
        best.append(token)
        scores.append(top - logits.logsumexp(-1))
    best, scores = torch.cat(best, 1).cpu(), torch.cat(scores, 1).cpu()
    found = []
    for row, score, length in zip(best, scores, lengths.tolist()):
        found.append(_runs(row[:length], score[:length]))
    return found


def _runs(path, scores):
    """The tokens of a path, one of which stands in every frame, and their log probabilities."""
    numbers, run, counts = path.unique_consecutive(return_inverse=True, return_counts=True)
    highest = torch.full((len(numbers),), -math.inf)
    highest = highest.scatter_reduce(0, run, scores, "amax")
    ends = counts.cumsum(0)
    return [
        Token(number, end - count, end - 1, probability)
        for number, count, end, probability in zip(
            numbers.tolist(), counts.tolist(), ends.tolist(), highest.tolist()
        )
        if number != BLANK
    ]


def _align_transducer(recogniser, encoded, lengths):
    modules, search = recogniser.modules, recogniser.search
    state = search.initial_state(modules, len(encoded))
    numbers, places = ([[] for _ in encoded] for _ in range(2))
    for start in range(0, encoded.shape[1], _FRAMES):
        piece = encoded[:, start : start + _FRAMES]
        left = (lengths - start).clamp(0, piece.shape[1])
        tokens, frames, state = search.step(modules, piece, left, state)
        for row in range(len(encoded)):
            numbers[row] += tokens[row]
            places[row] += [start + frame for frame in frames[row]]
    return [_scored(modules, *row) for row in zip(encoded, numbers, places)]


def _scored(modules, encoded, numbers, places):
    found, state = [], None
    history = torch.tensor([BLANK, *numbers], device=encoded.device)
    for start in range(0, len(numbers), _FRAMES):
        part = slice(start, start + _FRAMES)
        emitted = history[1:][part].unsqueeze(1)
        predicted, state = modules["predictor"](history[:-1][part].unsqueeze(0), state)
        logits = modules["joiner"](encoded[places[part]], predicted[0]).float()
        scores = logits.log_softmax(-1).gather(1, emitted).squeeze(1)
        found += map(Token, numbers[part], places[part], places[part], scores.tolist())
    return found
