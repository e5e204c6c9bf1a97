"""Statistics of features for SpeechBrain's global normalisation, a step at a time.

SpeechBrain's `InputNormalization` updates them with each batch, before the batch is normalised. How
a step's batches are shared out then matters, and a batch with a broken loss has already spoilt the
statistics of all later ones. Here a step is normalised by what earlier steps had, and the
statistics take in a step when the weights do.
"""

import torch
from speechbrain.processing.features import (
    combine_gaussian_statistics,
    combine_gaussian_statistics_distributed,
    gaussian_statistics,
    make_padding_mask,
)


class StepStatistics:
    """Counts, means and variances of the features of an optimizer step.

    Arguments
    ---------
    normalize : speechbrain.processing.features.InputNormalization
        Whose running statistics are kept. Those of each sentence or batch need nothing of this.

    Example
    -------
    >>> from speechbrain.processing.features import InputNormalization
    >>> normalize = InputNormalization()
    >>> step = StepStatistics(normalize)
    >>> step.add(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([2]))
    >>> step.take_in()
    >>> normalize.glob_mean, normalize.count
    (tensor([2.]), 2)
    """

    def __init__(self, normalize):
        self.normalize = normalize
        self.active = normalize.norm_type == "global"
        self.clear()

    def clear(self):
        """Forgets the step, as for one that is skipped."""
        self._step = None

    @property
    def empty(self):
        """Whether nothing was added since the last step."""
        return self._step is None

    @property
    def missing(self):
        """Whether there are no running statistics yet."""
        return self.active and self.normalize.glob_mean.numel() == 0

    @torch.no_grad()
    def add(self, features, lengths):
        """Features (batch, time, features) of a batch, and lengths (batch,) in frames."""
        if not self.active:
            return
        mask = make_padding_mask(features, (lengths - 0.5) / features.shape[1])
        batch = gaussian_statistics(features.float(), mask=mask, dim=(0, 1))
        self._step = batch if self._step is None else combine_gaussian_statistics(self._step, batch)

    def begin(self):
        """Normalises by what was added, until the first step has been taken in."""
        _, mean, variance = self._step
        self._keep(0, mean, variance)

    @torch.no_grad()
    def take_in(self):
        """Adds the step, of all processes, to the running statistics."""
        if not self.active:
            return
        normalize, step = self.normalize, self._step
        if step is None:  # this process had no batch
            nothing = torch.zeros_like(normalize.glob_mean)
            step = (0, nothing, nothing)
        try:
            step = combine_gaussian_statistics_distributed(step)
        except ZeroDivisionError:  # no process had one
            return
        if normalize.count:
            now = (normalize.count, normalize.glob_mean, normalize.glob_std.square())
            step = combine_gaussian_statistics(now, step)
        self._keep(*step)

    def _keep(self, count, mean, variance):
        normalize = self.normalize
        normalize.count, normalize.glob_mean = count, mean
        normalize.glob_std = variance.clamp(min=normalize.epsilon).sqrt()
        self.clear()
