"""Means over time in O(T). Padding never counts, and sums are taken in float32 or wider.

All functions take `values` of shape (batch, time, features) and an optional `padding` mask of
shape (batch, time) with True = padding, and agree with `summarymixing.ops.reference`.
"""

import torch
from torch.nn import functional as F

# Frames of one block of `decayed_mean`: within a block the weights are a small matrix, between
# blocks one vector is carried. The cost is time x block, the best block a few cache lines wide.
BLOCK = 64


def _wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def utterance_mean(values, padding=None):
    """Mean over the valid frames of each utterance (arXiv 2307.07421, equation 1).

    Arguments
    ---------
    values : torch.Tensor
        (batch, time, features), any float type.
    padding : torch.Tensor, optional
        (batch, time), True = padding.

    Returns
    -------
    torch.Tensor
        (batch, 1, features), in the type of `values`; zero for an utterance without a valid frame.

    Example
    -------
    >>> values = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> utterance_mean(values, torch.tensor([[False, False, True]])).item()
    2.0
    """
    # Summing float16 in float16 overflows beyond 65504, which a few thousand frames reach.
    wide = _wide(values.dtype)
    if padding is None:
        return values.mean(1, keepdim=True, dtype=wide).to(values.dtype)
    total = values.masked_fill(padding.unsqueeze(-1), 0).sum(1, keepdim=True, dtype=wide)
    count = (~padding).sum(1).clamp(min=1).view(-1, 1, 1)
    return (total / count).to(values.dtype)


def decayed_mean(values, decay, padding=None):
    """Mean with weights decay^|t - u| over the valid frames u, for each frame t.

    Arguments
    ---------
    values : torch.Tensor
        (batch, time, features), any float type.
    decay : float
        In (0, 1]; the published SummaryMixing-expdecay has 0.995.
    padding : torch.Tensor, optional
        (batch, time), True = padding.

    Returns
    -------
    torch.Tensor
        (batch, time, features), in the type of `values`; what stands at padded frames is finite
        and without meaning.

    Example
    -------
    >>> values = torch.tensor([[[1.0], [4.0]]])
    >>> decayed_mean(values, 0.5).flatten().tolist()
    [2.0, 3.0]
    """
    wide = _wide(values.dtype)
    batch, time, _ = values.shape
    valid = values.new_ones(batch, time, 1, dtype=wide)
    if padding is not None:
        valid = valid.masked_fill(padding.unsqueeze(-1), 0)
        values = values.masked_fill(padding.unsqueeze(-1), 0)
    # The weights' sum is the same operation on a column of ones: append it as one more feature.
    with torch.autocast(values.device.type, enabled=False):
        sums = _decayed_sum(torch.cat([values.to(wide), valid], dim=-1), decay)
    total, weight = sums[..., :-1], sums[..., -1:]
    return (total / weight.clamp(min=torch.finfo(wide).tiny)).to(values.dtype)


def _decayed_sum(x, decay):
    """Bidirectional sum_u decay^|t - u| x_u of (batch, time, features), block by block."""
    batch, time, features = x.shape
    blocks = -(-time // BLOCK)
    x = F.pad(x, (0, 0, 0, blocks * BLOCK - time)).view(batch, blocks, BLOCK, features)
    i = torch.arange(BLOCK, device=x.device, dtype=x.dtype)
    within = torch.einsum("ij,bnjd->bnid", decay ** (i[:, None] - i[None, :]).abs(), x)
    # What a block hands on, seen from the first frame after it and from the last before it.
    to_right = torch.einsum("j,bnjd->bnd", decay ** (BLOCK - i), x)
    to_left = torch.einsum("j,bnjd->bnd", decay ** (i + 1), x)
    step = decay**BLOCK
    from_left, from_right = [torch.zeros_like(x[:, 0, 0])], [torch.zeros_like(x[:, 0, 0])]
    for n in range(blocks - 1):
        from_left.append(from_left[-1] * step + to_right[:, n])
        from_right.append(from_right[-1] * step + to_left[:, blocks - 1 - n])
    from_left = torch.stack(from_left, 1)
    from_right = torch.stack(from_right[::-1], 1)
    sums = (
        within
        + torch.einsum("i,bnd->bnid", decay**i, from_left)
        + torch.einsum("i,bnd->bnid", decay ** (BLOCK - 1 - i), from_right)
    )
    return sums.reshape(batch, blocks * BLOCK, features)[:, :time]
