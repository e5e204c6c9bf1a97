"""Cutting long recordings into pieces like the utterances that a model has learnt from.

A model hears the best in pieces like them: its summary of an hour, or of two speakers' sentences,
is of another kind than those of its training.
"""

import math

import numpy as np

from summarymixing.errors import InputError

PAUSE_SECONDS = 0.3
_FRAME = 0.02  # seconds
_DECIBELS = 30  # that a pause is below the loudest of the seconds around it
_AROUND = 3  # seconds on each side
_QUIET = 0.3  # seconds over which it must be quiet where there is no pause
_LEAST = 0.5  # seconds between pauses that are cut


def cut(samples, sample_rate, longest, pause=PAUSE_SECONDS):
    """Where to cut a recording that is longer than asked for.

    It is cut in the middle of every pause; what is then still too long is cut in the quietest third
    of a second between a third of `longest` and all of it. A shorter recording stays whole.

    Arguments
    ---------
    samples : numpy.ndarray or torch.Tensor
        (samples,), on the CPU.
    sample_rate : int
        Hz.
    longest : float
        Seconds, one at least.
    pause : float
        Seconds: a pause is a stretch so long, or longer, whose energy stays 30 dB below the
        loudest 20 ms of the seconds around it.

    Returns
    -------
    list of (int, int)
        Beginning and end of each piece, in samples; together they are the recording.

    Raises
    ------
    InputError
        For a `longest` below 1 or a `pause` that is not positive.

    Example
    -------
    >>> samples = np.ones(3000)
    >>> samples[1200:1600] = 0
    >>> cut(samples, sample_rate=1000, longest=2)
    [(0, 1400), (1400, 3000)]
    """
    if not longest >= 1:
        raise InputError(f"pieces of a recording must be of a second or more, got {longest}")
    if not pause > 0:
        raise InputError(f"a pause must be of more than 0 seconds, got {pause}")
    samples = np.asarray(samples)
    total, frame = len(samples), max(1, round(sample_rate * _FRAME))
    most = longest * sample_rate
    if total <= most:
        return [(0, total)]
    frames = -(-total // frame)
    energy = np.zeros(frames * frame)
    energy[:total] = np.square(samples, dtype=np.float64)
    energy = energy.reshape(frames, frame).mean(1)
    places = _pauses(energy, pause)
    least = round(_LEAST / _FRAME)
    starts = [0]
    for place in places:
        if place - starts[-1] >= least and frames - place >= least:
            starts.append(place)
    smooth = _averages(energy, 2 * (round(_QUIET / _FRAME) // 2) + 1)
    ends = []
    for start, end in zip([s * frame for s in starts], [*(s * frame for s in starts[1:]), total]):
        while end - start > most:
            latest = min(most, end - start - least * frame) - frame  # so that no rest is tiny
            first, last = (math.ceil((start + part) / frame) for part in (most / 3, latest))
            start = (first + _middle_of_lowest(smooth[first : last + 1])) * frame
            ends.append(start)
        ends.append(end)
    return list(zip([0, *ends], ends))


def _pauses(energy, seconds):
    """The frames in the middle of pauses."""
    second = round(1 / _FRAME)
    loudest = np.maximum.reduceat(energy, range(0, len(energy), second))
    around = np.pad(loudest, _AROUND, mode="edge")
    loudest = np.lib.stride_tricks.sliding_window_view(around, 2 * _AROUND + 1).max(1)
    quiet = energy < np.repeat(loudest, second)[: len(energy)] * 10 ** (-_DECIBELS / 10)
    steps = np.diff(np.concatenate([[False], quiet, [False]]).astype(int))
    begin, end = (steps == 1).nonzero()[0], (steps == -1).nonzero()[0]
    return ((begin + end) // 2)[end - begin >= seconds / _FRAME].tolist()


def _averages(energy, width):
    """Means over `width` frames around each, nothing beyond the ends."""
    sums = np.concatenate([[0.0], np.cumsum(np.pad(energy, width // 2))])
    return (sums[width:] - sums[:-width]) / width


def _middle_of_lowest(energy):
    lowest = (energy <= energy.min() * 1.001).nonzero()[0]
    return int(lowest[len(lowest) // 2])
