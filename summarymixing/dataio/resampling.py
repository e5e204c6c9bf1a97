"""Resampling without torch: torchaudio's, a windowed sinc for each phase, in numpy."""

import functools
import math

import numpy as np

_ZEROS, _ROLLOFF = 6, 0.99  # torchaudio's width of the sinc, and its part of the Nyquist frequency
_BLOCK = 1 << 20  # numbers that are multiplied at a time


def resample(samples, old, new):
    """`torchaudio.functional.resample` for one channel.

    Arguments
    ---------
    samples : numpy.ndarray
        (samples,), float32.
    old, new : int
        Rates in Hz, or numbers with their ratio.

    Returns
    -------
    numpy.ndarray
        (ceil(samples x new / old),), float32.

    Example
    -------
    >>> resample(np.ones(300, np.float32), 3, 2)[50:52].round(2).tolist()
    [1.0, 1.0]
    """
    common = math.gcd(old, new)
    old, new = old // common, new // common
    if old == new:
        return samples
    kernel, width = _kernel(old, new)
    padded = np.pad(np.asarray(samples, np.float32), (width, width + old))
    slices = np.lib.stride_tricks.sliding_window_view(padded, len(kernel))[::old]
    rows = max(1, _BLOCK // len(kernel))
    pieces = [
        np.ascontiguousarray(slices[start : start + rows]) @ kernel
        for start in range(0, len(slices), rows)
    ]
    return np.concatenate(pieces).reshape(-1)[: -(-len(samples) * new // old)]


def reach(old, new):
    """Samples at the old rate, on each side, that a sample at the new one depends on."""
    common = math.gcd(old, new)
    old, new = old // common, new // common
    return math.ceil(_ZEROS * old / (min(old, new) * _ROLLOFF))


@functools.lru_cache(maxsize=8)
def _kernel(old, new):
    """(taps, new): a column for each of the samples that `old` samples become."""
    width, cutoff = reach(old, new), min(old, new) * _ROLLOFF
    taps = np.arange(-width, width + old)[:, None] / old
    t = np.clip((taps - np.arange(new) / new) * cutoff, -_ZEROS, _ZEROS)
    window = np.cos(t * math.pi / _ZEROS / 2) ** 2
    return (np.sinc(t) * window * cutoff / old).astype(np.float32), width
