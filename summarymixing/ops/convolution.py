"""Depthwise convolutions over time, and over chunks of it.

By PyTorch's convolutions, or by one kernel where `ops.kernels` are on.
"""

import torch
from torch.nn import functional as F

from summarymixing.errors import InputError
from summarymixing.ops import kernels


def depthwise_convolution(x, weight, bias=None, left=0, right=0):
    """Depthwise convolution over time.

    Arguments
    ---------
    x : torch.Tensor
        (batch, time, channels).
    weight : torch.Tensor
        (channels, 1, kernel).
    bias : torch.Tensor, optional
        (channels,).
    left, right : int
        Zeros before the first frame and behind the last.

    Returns
    -------
    torch.Tensor
        (batch, left + time + right - kernel + 1, channels).

    Example
    -------
    >>> x = torch.ones(1, 4, 1)
    >>> depthwise_convolution(x, torch.ones(1, 1, 3), left=2).flatten().tolist()
    [1.0, 2.0, 3.0, 3.0]
    """
    if kernels.usable(x):
        time = left + x.shape[1] + right - weight.shape[-1] + 1
        return kernels.depthwise_convolution(x, weight, bias, left, time)
    x = x.transpose(1, 2)
    if left != right:
        x, left = F.pad(x, (left, right)), 0
    return F.conv1d(x, weight, bias, padding=left, groups=len(weight)).transpose(1, 2)


def chunked_convolution(x, weight, bias=None, chunk_size=None, state=None):
    """Depthwise convolution with zeros in the place of frames beyond the frame's chunk.

    Dynamic Chunk Convolution (Li et al., *Dynamic Chunk Convolution for Unified Streaming and
    Non-Streaming Conformer ASR*, ICASSP 2023): the taps on the past see all earlier frames, the
    taps on the future see the frame's own chunk. Cost and memory are O(time x kernel), whatever
    the chunk size.

    Arguments
    ---------
    x : torch.Tensor
        (batch, time, channels), zero at padded frames.
    weight : torch.Tensor
        (channels, 1, kernel), the kernel odd.
    bias : torch.Tensor, optional
        (channels,).
    chunk_size : int, optional
        In frames; all frames given are one chunk when it is left out.
    state : torch.Tensor, optional
        (batch, kernel // 2, channels): what an earlier call on the frames before these returned.
        None at the start of an utterance, the same as zeros. Pieces are whole chunks, but for the
        last one.

    Returns
    -------
    y : torch.Tensor
        (batch, time, channels).
    state : torch.Tensor

    Example
    -------
    >>> x = torch.ones(1, 4, 1)
    >>> chunked_convolution(x, torch.ones(1, 1, 3), chunk_size=2)[0].flatten().tolist()
    [2.0, 2.0, 3.0, 2.0]
    """
    batch, time, channels = x.shape
    kernel = weight.shape[-1]
    if kernel % 2 == 0:
        raise InputError(f"the kernel of a chunked convolution must be odd, got {kernel}")
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1 frame, got {chunk_size}")
    width = kernel // 2
    size = time if chunk_size is None else min(chunk_size, time)
    if state is None:
        state = x.new_zeros(batch, width, channels)
    elif state.shape != (batch, width, channels):
        raise InputError(
            f"a state of shape {tuple(state.shape)} is of another batch or model: here it is "
            f"{(batch, width, channels)}"
        )
    x = torch.cat([state, x], 1)
    state = x[:, time:]
    if kernels.usable(x):
        return kernels.depthwise_convolution(x, weight, bias, 0, time, size), state
    y = F.conv1d(x.transpose(1, 2), weight[..., : width + 1], bias, groups=channels)
    if width and size > 1:
        chunks = -(-time // size)
        future = F.pad(x[:, width:], (0, 0, 0, chunks * size - time))
        future = future.view(batch * chunks, size, channels)[:, 1:].transpose(1, 2)
        future = F.conv1d(F.pad(future, (0, width)), weight[..., width + 1 :], groups=channels)
        future = future.transpose(1, 2).reshape(batch, chunks * size, channels)[:, :time]
        y = y + future.transpose(1, 2)
    return y.transpose(1, 2), state
