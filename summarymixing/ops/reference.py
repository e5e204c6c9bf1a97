"""The definitions, written to be read: O(T²) in time and memory, and the ground truth of the tests.

SummaryMixing (arXiv 2307.07421, section 3) summarises an utterance by the mean of one vector a
frame. Every function here takes `values` of shape (batch, time, features) and an optional
`padding` mask of shape (batch, time), True = padding, and returns, for each frame, the weighted
mean over the valid frames of its utterance.
"""

import torch


def weighted_mean(values, weights, padding=None):
    """Mean of `values` with one weight for each pair of frames, over valid frames only.

    Arguments
    ---------
    values : torch.Tensor
        (batch, time, features).
    weights : torch.Tensor
        (time, time): weights[t, u] is the weight of frame u in the mean of frame t.
    padding : torch.Tensor, optional
        (batch, time), True = padding.

    Returns
    -------
    torch.Tensor
        (batch, time, features); zero for an utterance without a valid frame.

    Example
    -------
    >>> values = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> padding = torch.tensor([[False, False, True]])
    >>> weighted_mean(values, torch.ones(3, 3), padding).flatten().tolist()
    [2.0, 2.0, 2.0]
    """
    valid = torch.ones(values.shape[:2], dtype=torch.bool) if padding is None else ~padding
    result = torch.zeros_like(values)
    for b in range(values.shape[0]):
        frames = valid[b].nonzero().flatten()
        if len(frames) == 0:
            continue
        for t in range(values.shape[1]):
            w = weights[t, frames].unsqueeze(-1).to(values.dtype)
            result[b, t] = (w * values[b, frames]).sum(0) / w.sum()
    return result


def utterance_mean(values, padding=None):
    """Uniform mean over the valid frames (equation 1 of the paper), repeated for every frame."""
    time = values.shape[1]
    return weighted_mean(values, torch.ones(time, time), padding)


def decayed_mean(values, decay, padding=None):
    """Mean with weights decay^|t - u| (SummaryMixing-expdecay)."""
    t = torch.arange(values.shape[1], dtype=torch.float64)
    return weighted_mean(values, decay ** (t[:, None] - t[None, :]).abs(), padding)
