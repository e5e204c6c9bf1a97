"""Tokens as text: what of a SentencePiece tokenizer is needed to put words together.

`tokens.txt` has a token a line, its piece and after a tab its kind: "normal", "byte", "control" or
"unknown".
"""

from summarymixing.errors import InputError
from summarymixing.inference.text import Detokeniser

KINDS = ("normal", "byte", "control", "unknown")


class Pieces:
    """Answers as `sentencepiece.SentencePieceProcessor` does, for `Detokeniser` and `words_of`.

    Arguments
    ---------
    lines : list of (str, str)
        Piece and kind.
    unknown : str
        What an unknown token is shown as.

    Example
    -------
    >>> pieces = Pieces([("<unk>", "unknown"), ("▁one", "normal"), ("▁t", "normal")], " ⁇ ")
    >>> pieces.decode([1, 2, 0])
    'one t ⁇ '
    """

    def __init__(self, lines, unknown):
        self._lines = lines
        self._unknown = unknown

    @classmethod
    def read(cls, path, unknown):
        """From a `tokens.txt`."""
        with open(path, encoding="utf-8", newline="\n") as file:
            lines = [tuple(line.split("\t")) for line in file.read().rstrip("\n").split("\n")]
        for number, line in enumerate(lines, 1):
            if len(line) != 2 or line[1] not in KINDS:
                raise InputError(f"{path}: line {number} is no piece and kind, with a tab between")
        return cls(lines, unknown)

    def __len__(self):
        return len(self._lines)

    def id_to_piece(self, token):
        return self._lines[token][0]

    def is_byte(self, token):
        return self._lines[token][1] == "byte"

    def is_control(self, token):
        return self._lines[token][1] == "control"

    def is_unknown(self, token):
        return self._lines[token][1] == "unknown"

    def decode(self, tokens):
        """Numbers of tokens → text."""
        if len(tokens) == 1 and self.is_unknown(tokens[0]):
            return self._unknown
        detokeniser = Detokeniser(self)
        return "".join(detokeniser.push(token) for token in tokens) + detokeniser.finish()
