"""The definitions, written to be read: O(T²) in time and memory, and the ground truth of the tests.

SummaryMixing (arXiv 2307.07421, section 3) summarises an utterance by the mean of one vector a
frame; its streaming form (arXiv 2409.07165) summarises what a chunk may see. Every mean here takes
`values` of shape (batch, time, features) and an optional `padding` mask of shape (batch, time),
True = padding, and returns, for each frame, a weighted mean over valid frames of its utterance.
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
        (batch, time, features); zero where no frame counts.

    Example
    -------
    >>> values = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> padding = torch.tensor([[False, False, True]])
    >>> weighted_mean(values, torch.ones(3, 3), padding).flatten().tolist()
    [2.0, 2.0, 2.0]
    """
    weights = weights.to(values.dtype).expand(len(values), -1, -1)
    if padding is not None:
        weights = weights.masked_fill(padding.unsqueeze(1), 0)
        values = values.masked_fill(padding.unsqueeze(-1), 0)
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights @ values / total.where(total > 0, 1.0), 0)


def visible(time, chunk_size=None, left_context=None):
    """(time, time), True where frame t may see frame u.

    Example
    -------
    >>> visible(3, chunk_size=1, left_context=1).int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    chunk = torch.arange(time) // (chunk_size or time)
    behind = chunk[:, None] - chunk
    return (behind >= 0) & (behind <= (time if left_context is None else left_context))


def chunk_mean(values, chunk_size=None, left_context=None, padding=None):
    """Uniform mean over what each frame may see (equation 1 of the paper, without chunks)."""
    weights = visible(values.shape[1], chunk_size, left_context).double()
    return weighted_mean(values, weights, padding)


def window_mean(values, left, right, chunk_size=None, left_context=None, padding=None):
    """Uniform mean over frames t - left to t + right, as far as frame t may see them."""
    t = torch.arange(values.shape[1])
    offset = t - t[:, None]
    near = (offset >= -left) & (offset <= right)
    weights = near & visible(values.shape[1], chunk_size, left_context)
    return weighted_mean(values, weights.double(), padding)


def decayed_mean(values, decay, causal=False, chunk_size=None, left_context=None, padding=None):
    """Mean with weights decay^|t - u| (SummaryMixing-expdecay), as far as frame t may see u."""
    t = torch.arange(values.shape[1], dtype=torch.float64)
    weights = decay ** (t[:, None] - t).abs() * visible(values.shape[1], chunk_size, left_context)
    return weighted_mean(values, weights.tril() if causal else weights, padding)


def chunked_convolution(x, weight, bias=None, chunk_size=None):
    """Depthwise convolution, frame by frame: (batch, time, channels), weight (channels, 1, k)."""
    time, width = x.shape[1], weight.shape[-1] // 2
    chunk_size = chunk_size or time
    y = torch.zeros_like(x)
    for t in range(time):
        end = min((t // chunk_size + 1) * chunk_size, time)
        for u in range(max(t - width, 0), min(t + width + 1, end)):
            y[:, t] = y[:, t] + x[:, u] * weight[:, 0, u - t + width]
    return y if bias is None else y + bias
