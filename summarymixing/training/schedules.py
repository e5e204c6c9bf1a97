"""Learning rates as functions of where training stands: nothing to checkpoint, exact on resume.

A schedule is called with the number of the optimizer step (from 1) and the progress of the whole
training in [0, 1], and returns the learning rate of that step.
"""

import math

from summarymixing.errors import InputError


class Noam:
    """Linear warm-up to the peak, then decay with the inverse square root (arXiv 1706.03762).

    SpeechBrain's `NoamScheduler` gives the same rates.

    Arguments
    ---------
    peak : float
        Highest learning rate, reached at the end of the warm-up.
    warmup_steps : int
        Optimizer steps.

    Example
    -------
    >>> schedule = Noam(peak=1.0, warmup_steps=100)
    >>> schedule(50), schedule(100), schedule(400)
    (0.5, 1.0, 0.5)
    """

    def __init__(self, peak, warmup_steps):
        _check(peak, warmup_steps)
        self.peak = peak
        self.warmup_steps = warmup_steps

    def __call__(self, step, progress=None):
        return self.peak * min(step / self.warmup_steps, math.sqrt(self.warmup_steps / step))


class WarmupCosine:
    """Linear warm-up, under half a cosine that ends at zero with the training.

    Arguments
    ---------
    peak : float
        Learning rate that the warm-up leads to.
    warmup_steps : int
        Optimizer steps.

    Example
    -------
    >>> schedule = WarmupCosine(peak=1.0, warmup_steps=100)
    >>> schedule(50, 0.0), schedule(500, 0.5), schedule(1000, 1.0)
    (0.5, 0.5, 0.0)
    """

    def __init__(self, peak, warmup_steps):
        _check(peak, warmup_steps)
        self.peak = peak
        self.warmup_steps = warmup_steps

    def __call__(self, step, progress):
        cosine = round((1 + math.cos(math.pi * progress)) / 2, 12)
        return self.peak * min(step / self.warmup_steps, cosine)


def _check(peak, warmup_steps):
    if peak <= 0:
        raise InputError(f"the peak learning rate must be positive, got {peak}")
    if warmup_steps < 1:
        raise InputError(f"warmup_steps must be at least 1, got {warmup_steps}")
