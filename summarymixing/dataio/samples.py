"""What samples are, wherever they come in: floats in [-1, 1], or int16."""

import numpy as np

from summarymixing.errors import InputError

# Resampling and mixing overshoot 1 by far less; integers that were not divided go far beyond.
LOUDEST = 100


def check_samples(samples, name, first=0):
    """Raises InputError for samples that are no numbers, or far beyond 1.

    One of them would stay in a stream's state, or in a model's weights, for good.

    Arguments
    ---------
    samples : numpy.ndarray
        (samples,), of a float type.
    name : str
        Of what they are.
    first : int
        The number of the first.

    Example
    -------
    >>> check_samples(np.array([0.5, -1.2]), "a.wav")
    >>> check_samples(np.array([0.5, 3000.0]), "a.wav")
    Traceback (most recent call last):
    summarymixing.errors.InputError: a.wav: sample 1 is 3000: samples must be floats in [-1, 1],\
 and integers are divided by 32768 first
    """
    # Of a NaN neither is true.
    if samples.min(initial=0) >= -LOUDEST and samples.max(initial=0) <= LOUDEST:
        return
    place = int(np.argmax(~(np.abs(samples) <= LOUDEST)))
    raise InputError(
        f"{name}: sample {first + place} is {samples[place]:g}: samples must be floats in "
        "[-1, 1], and integers are divided by 32768 first"
    )


def as_samples(samples, name, first=0):
    """What a caller gave as samples, checked.

    Arguments
    ---------
    samples : numpy.ndarray or torch.Tensor
        (samples,) of one channel: floats in [-1, 1], or int16.
    name, first
        As of `check_samples`.

    Returns
    -------
    numpy.ndarray
        (samples,), float32, a copy.

    Raises
    ------
    InputError
        For anything else.

    Example
    -------
    >>> as_samples(np.array([16384, -32768], np.int16), "stream 1")
    array([ 0.5, -1. ], dtype=float32)
    """
    if not isinstance(samples, np.ndarray):
        if type(samples).__module__.split(".")[0] != "torch":
            raise InputError(
                f"samples must be a torch.Tensor or numpy.ndarray, got {type(samples).__name__}"
            )
        samples = samples.detach().cpu()
    if samples.ndim != 1:
        raise InputError(
            "samples must be of one channel, with shape (samples,), "
            f"got shape {tuple(samples.shape)}"
        )
    kind = getattr(samples.dtype, "name", str(samples.dtype).removeprefix("torch."))
    if "float" not in kind and kind != "int16":
        raise InputError(f"samples must be floats in [-1, 1] or int16, got {samples.dtype}")
    if not isinstance(samples, np.ndarray):
        samples = samples.float().numpy()
    samples = samples.astype(np.float32) / np.float32(2**15 if kind == "int16" else 1)
    check_samples(samples, name, first)
    return samples
