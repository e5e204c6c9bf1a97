"""From tokens, one after the other, to words with times."""

import math
import re
from dataclasses import dataclass, replace

_SPACE = "▁"


class Detokeniser:
    """A SentencePiece tokenizer's `decode`, token by token, in constant time for each.

    Example
    -------
    >>> from summarymixing.dataio import tokenizer
    >>> pieces = tokenizer.train_or_load(None, lambda: ["one two"], model_type="char")
    >>> detokeniser = Detokeniser(pieces)
    >>> [detokeniser.push(token) for token in pieces.encode("two one")]
    ['', 't', 'w', 'o', ' ', 'o', 'n', 'e']
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._begun = False
        self._bytes = b""

    def push(self, token):
        """The text that a token adds: a byte of a character adds nothing until it is complete."""
        tokenizer = self.tokenizer
        if tokenizer.is_byte(token):
            self._bytes += bytes([int(tokenizer.id_to_piece(token)[1:-1], 16)])
            text = self._characters(last=False)
        else:
            text = self.finish()
            if tokenizer.is_unknown(token):
                text += tokenizer.decode([token])
            elif not tokenizer.is_control(token):
                piece = tokenizer.id_to_piece(token).replace(_SPACE, " ")
                text += piece if self._begun or text else piece.lstrip(" ")
        self._begun = self._begun or text != ""
        return text

    def finish(self):
        """What is left of an incomplete character, as SentencePiece shows it."""
        return self._characters(last=True)

    def _characters(self, last):
        text = ""
        while self._bytes:
            first = self._bytes[0]
            size = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
            if len(self._bytes) < size and not last:
                break
            try:
                text += self._bytes[:size].decode()
            except UnicodeDecodeError:
                text, size = text + "\ufffd", 1
            self._bytes = self._bytes[size:]
        return text


@dataclass(frozen=True)
class Event:
    """A word.

    Arguments
    ---------
    text : str
        With the space before it, if there is one: joined, the texts of the stable events are the
        stream's text, without spaces at its end.
    start, end : float
        Seconds from the beginning of the stream.
    stable : bool
        False for the last word while it may still grow: an event with the same start and a longer
        text, or the same, takes its place later.
    """

    text: str
    start: float
    end: float
    stable: bool


class Transcript:
    """Words from tokens: only the last, unfinished one is kept.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
    frame_seconds : float
        From one encoder frame to the next.
    longest : int
        Characters after which a word is taken for stable, whatever follows: in scripts without
        spaces the whole text would be one.

    Example
    -------
    >>> from summarymixing.dataio import tokenizer
    >>> pieces = tokenizer.train_or_load(None, lambda: ["one two"], model_type="char")
    >>> transcript = Transcript(pieces, frame_seconds=0.5)
    >>> transcript.add(pieces.encode("to w"), [0, 1, 2, 3, 7])
    >>> for event in transcript.events():
    ...     print(event)
    Event(text='to', start=0.5, end=1.5, stable=True)
    Event(text=' w', start=3.5, end=4.0, stable=False)
    """

    def __init__(self, tokenizer, frame_seconds, longest=40):
        self.frame_seconds = frame_seconds
        self.longest = longest
        self._detokeniser = Detokeniser(tokenizer)
        self._text, self._first, self._last = "", 0, 0
        self._stable = []
        self._shown = ""

    def add(self, tokens, frames):
        """Tokens, and the encoder frame of each, counted from the beginning of the stream."""
        for token, frame in zip(tokens, frames):
            self._add(self._detokeniser.push(token), frame)

    def finish(self):
        """The last word is complete; spaces behind it are no word."""
        self._add(self._detokeniser.finish(), self._last)
        if not self._text.strip():
            self._text = ""
        self._close()

    def events(self, limit=math.inf):
        """The words since the last call, none of which ends after `limit` seconds."""
        found, self._stable = self._stable, []
        if self._text != self._shown and self._text.strip():
            found.append(self._event(stable=False))
        self._shown = self._text
        return [replace(event, end=min(event.end, limit)) for event in found]

    def _add(self, text, frame):
        # Spaces and what follows them are a new word.
        for part in re.findall(r" *[^ ]+| +", text):
            if part[0] == " " and self._text.strip() or len(self._text) >= self.longest:
                self._close()
            if not self._text.strip():
                self._first = frame
            self._text += part
            if part.strip():
                self._last = frame

    def _close(self):
        if self._text:
            self._stable.append(self._event(stable=True))
        self._text = self._shown = ""

    def _event(self, stable):
        start, end = self._first * self.frame_seconds, (self._last + 1) * self.frame_seconds
        return Event(self._text, start, end, stable)
