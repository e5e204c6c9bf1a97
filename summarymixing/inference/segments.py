"""Cutting long recordings where they are quiet.

A model that was trained on utterances hears the best in pieces like them: its summary of an hour
is of another kind than those that it has learnt from.
"""

import math

from torch.nn import functional as F

from summarymixing.errors import InputError

_FRAME = 0.02  # seconds
_QUIET = 0.3  # seconds over which it must be quiet


def cut(samples, sample_rate, longest):
    """Where to cut a recording, so that no piece is longer than asked for.

    Each cut is in the quietest third of a second between a third of `longest` and all of it.

    Arguments
    ---------
    samples : torch.Tensor
        (samples,).
    sample_rate : int
        Hz.
    longest : float
        Seconds, one at least.

    Returns
    -------
    list of (int, int)
        Beginning and end of each piece, in samples; together they are the recording.

    Example
    -------
    >>> import torch
    >>> samples = torch.ones(3000)
    >>> samples[1200:1600] = 0
    >>> cut(samples, sample_rate=1000, longest=2)
    [(0, 1400), (1400, 3000)]
    """
    if not longest >= 1:
        raise InputError(f"pieces of a recording must be of a second or more, got {longest}")
    total, frame = len(samples), max(1, round(sample_rate * _FRAME))
    most = longest * sample_rate
    if total <= most:
        return [(0, total)]
    energy = F.avg_pool1d(samples[None].square(), frame, ceil_mode=True)
    width = round(_QUIET / _FRAME) // 2
    energy = F.avg_pool1d(energy, 2 * width + 1, 1, width)[0]
    ends, start = [], 0
    while total - start > most:
        first, last = (math.ceil((start + part) / frame) for part in (most / 3, most - frame))
        quietest = first + _middle_of_lowest(energy[first : last + 1])
        start = quietest * frame
        ends.append(start)
    return list(zip([0, *ends], [*ends, total]))


def _middle_of_lowest(energy):
    lowest = (energy <= energy.min() * 1.001).nonzero().flatten()
    return int(lowest[len(lowest) // 2])
