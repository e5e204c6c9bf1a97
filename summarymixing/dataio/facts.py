"""What is measured of audio for its screening, and the file in which that is remembered."""

import hashlib
import json
import math
import os
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from summarymixing.dataio import audio
from summarymixing.errors import InputError

DIGEST = 16  # bytes
_FULL_SCALE = 0.999
_TABLE = "facts_1"  # to be renamed when what is measured changes: old facts are then not used


class Facts(NamedTuple):
    """What was measured of the samples of an utterance.

    Arguments
    ---------
    frames : int
        Samples per channel.
    sample_rate : int
        In Hz.
    channels : int
        Number of channels.
    low, high : float
        The extreme samples, of those that are numbers.
    finite : bool
        Whether all samples are numbers.
    clipped : int
        Samples of all channels that are at full scale.
    digest : bytes
        Equal for equal samples, whatever the file format.
    """

    frames: int
    sample_rate: int
    channels: int
    low: float
    high: float
    finite: bool
    clipped: int
    digest: bytes


def measure(path, start=None, stop=None):
    """Decodes an audio file, or a segment of it, and measures it.

    Arguments
    ---------
    path : str or os.PathLike
        The file.
    start, stop : float, optional
        The segment, in seconds, as for `audio.read`.

    Returns
    -------
    facts : Facts

    Raises
    ------
    InputError
        As `audio.read` does.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> path = os.path.join(tempfile.mkdtemp(), "a.wav")
    >>> soundfile.write(path, torch.tensor([0.5, -0.25, 0]).numpy(), 16000)
    >>> measure(path)[:7]
    (3, 16000, 1, -0.25, 0.5, True, 0)
    """
    digest = hashlib.blake2b(digest_size=DIGEST)
    low, high, finite, clipped, frames = math.inf, -math.inf, True, 0, 0
    for samples, rate in audio.decode(path, start, stop):
        digest.update(samples)
        sample_rate, channels = rate, samples.shape[1]
        frames += len(samples)
        least, most = float(samples.min()), float(samples.max())
        if not math.isfinite(least) or not math.isfinite(most):
            finite = False
            samples = samples[np.isfinite(samples)]
            least, most = float(samples.min(initial=0)), float(samples.max(initial=0))
        if max(-least, most) >= _FULL_SCALE:
            clipped += int(np.count_nonzero(np.abs(samples) >= _FULL_SCALE))
        low, high = min(low, least), max(high, most)
    return Facts(frames, sample_rate, channels, low, high, finite, clipped, digest.digest())


def stamp_of(row):
    """What identifies a row's audio, so that it is known again and a changed one is not.

    Arguments
    ---------
    row : dict
        Of a manifest.

    Returns
    -------
    key : str
        Path and segment.
    size : int
        Bytes.
    mtime_ns : int
        When the file was changed last, in nanoseconds.
        None in place of all three for a file that cannot be read.

    Example
    -------
    >>> stamp_of({"wav": "/nowhere/a.wav"}) is None
    True
    """
    path = os.path.abspath(row["wav"])
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    key = json.dumps([path, row.get("start"), row.get("stop")])
    return key, status.st_size, status.st_mtime_ns


class FactsFile:
    """Facts that outlive the process, in an SQLite file, by what identifies the audio.

    Arguments
    ---------
    path : str or os.PathLike, optional
        Created if needed; several processes may use it at once. None: nothing is remembered.

    Raises
    ------
    InputError
        When it is used, if it cannot be.

    Example
    -------
    >>> import tempfile
    >>> facts = FactsFile(os.path.join(tempfile.mkdtemp(), "facts.sqlite"))
    >>> facts.add([("a.wav", 32044, 1, *Facts(16000, 16000, 1, -0.5, 0.5, True, 0, bytes(16)))])
    >>> facts.look_up("a.wav", 32044, 1).frames, facts.look_up("a.wav", 32044, 2)
    (16000, None)
    """

    def __init__(self, path):
        self.path = None if path is None else Path(path).absolute()
        self._connection = None

    def look_up(self, key, size, mtime_ns):
        """What is known of the audio, if it was not changed since."""
        if self.path is None:
            return None
        select = f"SELECT {','.join(Facts._fields)} FROM {_TABLE}"
        with self._used() as connection:
            found = connection.execute(
                f"{select} WHERE key = ? AND size = ? AND mtime_ns = ?", (key, size, mtime_ns)
            ).fetchone()
        return None if found is None else Facts(*found)

    def add(self, learnt):
        """Notes (key, size, mtime_ns, *facts) of several files, at once on the disk."""
        if learnt and self.path is not None:
            places = ",".join("?" * len(learnt[0]))
            with self._used() as connection, connection:
                connection.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES ({places})", learnt)

    @contextmanager
    def _used(self):
        try:
            if self._connection is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Longer than any other process writes.
                self._connection = sqlite3.connect(self.path, timeout=60)
                with self._connection:
                    self._connection.execute(
                        f"CREATE TABLE IF NOT EXISTS {_TABLE} (key TEXT PRIMARY KEY,"
                        f" size, mtime_ns, {','.join(Facts._fields)}) WITHOUT ROWID"
                    )
            yield self._connection
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"{self.path}: what is known of the audio cannot be kept in this file ({error});"
                " name another one"
            ) from error

    def __getstate__(self):
        return self.__dict__ | {"_connection": None}
