"""Text files with a sentence on each line, read where they lie: millions of lines are no matter."""

import os

import numpy as np

from summarymixing.errors import InputError

_BLOCK = 1 << 24  # bytes that are looked at together
_BLANK = b" \r\n"


class TextLines:
    """The sentences of a text file: its lines, without the blank ones.

    The file is read through once for where its lines begin (12 bytes of memory a sentence), and
    each sentence when it is asked for.

    Arguments
    ---------
    path : str or os.PathLike
        UTF-8, not compressed.

    Raises
    ------
    InputError
        If the file is missing, has no sentence, is compressed or not UTF-8; later, when a sentence
        is used, if the file is not the same any more.

    Example
    -------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "text.txt")
    >>> with open(path, "w") as file:
    ...     _ = file.write("GOOD MORNING\\n\\nGOOD DAY\\n")
    >>> lines = TextLines(path)
    >>> len(lines), lines[1], lines.line_number(1)
    (2, 'GOOD DAY', 3)
    >>> "".join(sorted(lines.characters))
    ' ADGIMNORY'
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        starts, sizes, blanks = [], [], []
        self.characters = set()  # all that occur
        seen = b"\r\n"
        begin = 0
        for lines in self._blocks():
            block = b"".join(lines)
            try:
                text = block.decode()
            except UnicodeDecodeError:
                raise InputError(self._not_utf8()) from None
            # Of what is left of ASCII, a first block has everything and later ones next to nothing.
            rest = text if not starts else block.translate(None, seen).decode()
            self.characters |= set(rest)
            seen = bytes(ord(c) for c in self.characters if c.isascii()) + b"\r\n"
            size = np.fromiter(map(len, lines), np.int64, len(lines))
            start = begin + np.cumsum(size) - size
            begin += len(block)
            blank = np.fromiter((not line.strip(_BLANK) for line in lines), bool, len(lines))
            starts.append(start[~blank])
            sizes.append(size[~blank].astype(np.int32))
            blanks.append(start[blank])
        self.characters -= set("\r\n")
        self._starts = np.concatenate([np.zeros(0, np.int64), *starts])
        self._blanks = np.concatenate([np.zeros(0, np.int64), *blanks])
        #: (sentences,), in bytes: what batches of sentences go by, as those of audio by seconds
        self.durations = np.concatenate([np.zeros(0, np.int32), *sizes])
        if len(self) == 0:
            raise InputError(f"{self.path}: no text in it; a sentence on each line is needed")

    def __len__(self):
        return len(self._starts)

    def __getitem__(self, index):
        size = int(self.durations[index])
        with open(self.path, "rb") as file:
            if _version(file) != self._version:
                raise InputError(f"{self.path}: has changed since it was opened; start again")
            file.seek(self._starts[index])
            return file.read(size).decode().strip(_BLANK.decode())

    def line_number(self, index):
        """The number in the file, from 1, of a sentence's line."""
        return int(index + 1 + np.searchsorted(self._blanks, self._starts[index]))

    def first_with(self, characters):
        """The number, from 1, of the first line with any of some characters."""
        characters = set(characters)
        numbered = enumerate((line for lines in self._blocks() for line in lines), 1)
        return next(number for number, line in numbered if characters & set(line.decode()))

    def _blocks(self):
        """Lists of lines as bytes, some megabytes at a time."""
        try:
            with open(self.path, "rb") as file:
                if file.read(2) == b"\x1f\x8b":
                    raise InputError(f"{self.path}: is compressed; gunzip it first")
                file.seek(0)
                self._version = _version(file)
                while lines := file.readlines(_BLOCK):
                    yield lines
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}; give a text file") from error

    def _not_utf8(self):
        for number, line in enumerate((line for lines in self._blocks() for line in lines), 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{self.path}: line {number} is not UTF-8; convert the file (iconv)"


def _version(file):
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns
