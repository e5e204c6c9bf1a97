"""A streaming filter is the offline function over a sliding slice of its input.

Features, front end and resampling look at a few samples on each side, and move with their input.
So a slice that holds these samples gives the frames in its middle as the whole file would; only
at the file's own ends does a slice end where the file does.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from summarymixing.errors import InputError, check_integer

# Of a resampling kernel: 64 MiB.
_LARGEST_KERNEL = 2**24


@dataclass(frozen=True)
class Filter:
    """An offline function of samples, and how far it looks.

    Arguments
    ---------
    function : callable
        Takes samples (time,), at least one; returns frames (frames, ...).
    stride : Fraction
        Samples from one frame to the next.
    context : int
        Samples on each side of its centre, number x stride, that a frame depends on.
    period : int
        Samples: to drop so many, or a multiple, at the beginning drops whole frames, and changes
        none but those with less than `context` before them.
    """

    function: Callable
    stride: Fraction
    context: int
    period: int

    def span(self, first, last):
        """Samples [begin, end) that give frames [first, last)."""
        begin = math.floor(first * self.stride) - self.context
        end = math.floor((last - 1) * self.stride) + self.context + 1
        return max(0, begin // self.period * self.period), end

    def __deepcopy__(self, memo):
        return self  # a copy of a stream has the same model


class FilterStream:
    """One stream through a filter: its state is the few samples that are still needed.

    Which slices are computed depends on the frames that are asked for, and not on how the samples
    arrive: any split of the input gives the same frames, to the bit.

    Example
    -------
    >>> sum_of_three = lambda x: np.convolve(x, np.ones(3))[1:-1]
    >>> stream = FilterStream(Filter(sum_of_three, Fraction(1), 1, 1))
    >>> stream.push(np.array([3.0, 6.0, 9.0]))
    >>> stream.pull(2), stream.pull(2)
    (array([ 9., 18.]), None)
    >>> stream.finish()
    array([15.])
    """

    def __init__(self, filter):
        self.filter = filter
        self.received = 0  # samples
        self.done = 0  # frames
        self._begin = 0  # of the buffer, in samples
        self._pieces = []

    def push(self, samples):
        """samples (time,), of numpy or torch, which are copied."""
        self._pieces.append(copy.deepcopy(samples))
        self.received += len(samples)

    def pull(self, frames):
        """The next (frames, ...) frames, None while the samples do not suffice."""
        end = self.filter.span(self.done, self.done + frames)[1]
        return self._next(end, frames) if self.received >= end else None

    def finish(self):
        """The frames that are left, with the stream's end as that of a file; None without any."""
        return self._next(self.received) if self.received else None

    def _next(self, end, frames=None):
        buffer = _joined(self._pieces)
        output = self.filter.function(buffer[: end - self._begin])
        output = output[self.done - round(self._begin / self.filter.stride) :][:frames]
        self.done += len(output)
        begin = self.filter.span(self.done, self.done + 1)[0]
        self._pieces = [buffer[begin - self._begin :]]
        self._begin = begin
        return output


def front_end_filter(recogniser, rate=None):
    """The filter from audio to the encoder's input.

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser or summarymixing.runtime.Exported
    rate : int, optional
        Of the audio in Hz, if it is not the model's: then it is resampled as
        `torchaudio.functional.resample` does.

    Returns
    -------
    Filter

    Raises
    ------
    InputError
        For a rate that cannot be resampled piece by piece.
    """
    stride, context = recogniser.front_end_window
    new = recogniser.sample_rate
    if rate is None or rate == new:
        return Filter(recogniser.encoder_input, Fraction(stride), context, stride)

    check_integer("the sample rate in Hz", rate)
    common = math.gcd(rate, new)
    old, new = rate // common, new // common
    if old * new > _LARGEST_KERNEL or old > recogniser.sample_rate:
        raise InputError(
            f"a sample rate of {rate} Hz cannot be brought to {recogniser.sample_rate} Hz piece by "
            f"piece: use one with a larger common divisor, as 8000, 44100 or 48000"
        )
    resample, reach = recogniser.resampler(rate)
    return Filter(
        lambda samples: recogniser.encoder_input(resample(samples)),
        Fraction(stride * old, new),
        -(-context * old // new) + reach + 1,
        math.lcm(stride, new) // new * old,
    )


def _joined(pieces):
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces)
    import torch  # there, if its tensors are

    return torch.cat(pieces)
