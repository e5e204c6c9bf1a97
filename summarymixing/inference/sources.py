"""Where a stream's samples come from: generators of (samples,), as they arrive."""

import logging
import queue
import sys

import numpy as np

from summarymixing.errors import InputError, one_line

logger = logging.getLogger(__name__)


def standard_input():
    """The bytes of the standard input; InputError if it is closed."""
    if sys.stdin is None:
        raise InputError("the standard input is closed: - needs a pipe with audio")
    return sys.stdin.buffer


def pcm(pipe, samples=1600):
    """Raw 16-bit little-endian samples of one channel, as soon as there are any.

    Arguments
    ---------
    pipe : io.BufferedReader
        As `sys.stdin.buffer`.
    samples : int
        At most so many at a time.

    Yields
    ------
    numpy.ndarray
        (samples,), int16.

    Example
    -------
    >>> import io
    >>> [piece.tolist() for piece in pcm(io.BytesIO(bytes([1, 0, 255, 255, 0, 1])), 2)]
    [[1, -1], [256]]
    """
    rest = b""
    while data := pipe.read1(2 * samples - len(rest)):
        data = rest + data
        even = len(data) // 2 * 2
        data, rest = data[:even], data[even:]
        if data:
            yield np.frombuffer(data, "<i2").astype(np.int16)
    if rest:
        logger.warning("the last sample has only one of its two bytes: it is left out")


def microphone(rate, seconds=0.1):
    """The default microphone, without end.

    Arguments
    ---------
    rate : int
        Hz.
    seconds : float
        Length of a piece.

    Yields
    ------
    numpy.ndarray
        (samples,), float32.

    Raises
    ------
    InputError
        Without the package `sounddevice`, without a microphone, or for a rate that it has not.
    """
    try:
        import sounddevice  # an optional package
    except (ImportError, OSError) as error:  # OSError: without the library PortAudio
        raise InputError(
            f"mic needs a package: pip install sounddevice ({one_line(error)})"
        ) from error
    pieces = queue.Queue()

    def take(data, frames, time, status):
        if status:
            logger.warning("microphone: %s", status)
        pieces.put(data[:, 0].copy())

    try:
        stream = sounddevice.InputStream(
            samplerate=rate,
            blocksize=round(rate * seconds),
            channels=1,
            dtype="float32",
            callback=take,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise InputError(f"microphone: {' '.join(str(error).split())}") from error
    with stream:
        while True:
            yield pieces.get()
