"""A streaming filter is the offline function over a sliding slice of its input.

Features, front end and resampling look at a few samples on each side, and move with their input.
So a slice that holds these samples gives the frames in its middle as the whole file would; only
at the file's own ends does a slice end where the file does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
import torchaudio
from speechbrain.utils.filter_analysis import stack_filter_properties
from torch.nn import functional as F

from summarymixing.errors import InputError

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


class FilterStream:
    """One stream through a filter: its state is the few samples that are still needed.

    Which slices are computed depends on the frames that are asked for, and not on how the samples
    arrive: any split of the input gives the same frames, to the bit.

    Example
    -------
    >>> mean_of_three = lambda x: F.avg_pool1d(x[None], 3, 1, 1)[0]
    >>> stream = FilterStream(Filter(mean_of_three, Fraction(1), 1, 1))
    >>> stream.push(torch.tensor([3.0, 6.0, 9.0]))
    >>> stream.pull(2), stream.pull(2)
    (tensor([3., 6.]), None)
    >>> stream.finish()
    tensor([5.])
    """

    def __init__(self, filter):
        self.filter = filter
        self.received = 0  # samples
        self.done = 0  # frames
        self._begin = 0  # of the buffer, in samples
        self._pieces = []

    def push(self, samples):
        """samples (time,), which are copied."""
        self._pieces.append(samples.clone())
        self.received += len(samples)

    def pull(self, frames):
        """The next (frames, ...) frames, None while the samples do not suffice."""
        end = self.filter.span(self.done, self.done + frames)[1]
        return self._next(end, frames) if self.received >= end else None

    def finish(self):
        """The frames that are left, with the stream's end as that of a file; None without any."""
        return self._next(self.received) if self.received else None

    def _next(self, end, frames=None):
        buffer = torch.cat(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
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
    recogniser : summarymixing.inference.loading.Recogniser
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
    features, cnn = recogniser.compute_features, recogniser.modules["CNN"]
    properties = stack_filter_properties([features, cnn])
    stride, context = properties.stride, properties.window_size // 2 + 1

    def encoder_input(samples):
        samples = samples.unsqueeze(0)
        length = torch.tensor([samples.shape[1]], device=samples.device)
        return recogniser.front_end(samples, length)[0][0]

    new = recogniser.sample_rate
    if rate is None or rate == new:
        return Filter(encoder_input, Fraction(stride), context, stride)

    if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
        raise InputError(f"the sample rate must be a positive number of Hz, got {rate!r}")
    common = math.gcd(rate, new)
    old, new = rate // common, new // common
    if old * new > _LARGEST_KERNEL or old > recogniser.sample_rate:
        raise InputError(
            f"a sample rate of {rate} Hz cannot be brought to {recogniser.sample_rate} Hz piece by "
            f"piece: use one with a larger common divisor, as 8000, 44100 or 48000"
        )
    resample = torchaudio.transforms.Resample(rate, recogniser.sample_rate, dtype=torch.float32).to(
        recogniser.device
    )

    def resampled_encoder_input(samples):
        # torchaudio rounds its result's length in float32: given more, it is cut here.
        length = -(-len(samples) * new // old)
        return encoder_input(resample(F.pad(samples, (0, old)))[:length])

    return Filter(
        resampled_encoder_input,
        Fraction(stride * old, new),
        -(-context * old // new) + resample.width + 1,
        math.lcm(stride, new) // new * old,
    )
