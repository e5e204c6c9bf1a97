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


class WarmupExponential:
    """Linear warm-up to the peak, exponential decay to a fraction of it, then constant.

    Arguments
    ---------
    peak : float
        Highest learning rate, reached at the end of the warm-up.
    warmup_steps : int
        Optimizer steps.
    total_steps : int
        Optimizer steps until the decay ends, the warm-up included.
    final_fraction : float
        Of the peak, in (0, 1].

    Example
    -------
    >>> schedule = WarmupExponential(1.0, 100, total_steps=300, final_fraction=0.25)
    >>> schedule(50), schedule(100), schedule(200), schedule(300), schedule(999)
    (0.5, 1.0, 0.5, 0.25, 0.25)
    """

    def __init__(self, peak, warmup_steps, total_steps, final_fraction=0.05):
        _check(peak, warmup_steps)
        if total_steps <= warmup_steps:
            raise InputError(
                f"total_steps must be above warmup_steps={warmup_steps}, got {total_steps}"
            )
        if not 0 < final_fraction <= 1:
            raise InputError(f"final_fraction must be in (0, 1], got {final_fraction}")
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.final_fraction = final_fraction

    def __call__(self, step, progress=None):
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        decay = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.peak * self.final_fraction ** min(decay, 1.0)


def _check(peak, warmup_steps):
    if peak <= 0:
        raise InputError(f"the peak learning rate must be positive, got {peak}")
    if warmup_steps < 1:
        raise InputError(f"warmup_steps must be at least 1, got {warmup_steps}")
