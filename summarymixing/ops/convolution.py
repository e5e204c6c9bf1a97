"""Depthwise convolutions over time, and over chunks of it.

By PyTorch's convolutions, or by one kernel where `ops.kernels` are on.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

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
    if left != right or left >= weight.shape[-1]:
        x, left = F.pad(x, (0, 0, left, right)), 0
    on_cpu = x.device.type == "cpu" and x.dtype != torch.float64
    if on_cpu and not torch.compiler.is_compiling():
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return _OnCPU.apply(x, weight, bias, left, dtype)
    x = x.transpose(1, 2)
    return F.conv1d(x, weight, bias, padding=left, groups=len(weight)).transpose(1, 2)


class _OnCPU(torch.autograd.Function):
    """`F.conv1d` as a CPU does it several times as fast: in two dimensions and in float32.

    Frames lie in memory as such a convolution likes them, channels last. It is fastest with time
    as its second dimension, and the weight's gradient with time as the first.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, padding, dtype):
        ctx.save_for_backward(x, weight, bias)
        ctx.padding = padding
        return _sum_taps(x, weight, bias, padding).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        channels, _, kernel = weight.shape
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        dx = dw = db = None
        dy = dy.contiguous()
        if of_bias:
            db = dy.sum((0, 1), dtype=torch.float32).to(bias.dtype)
        if of_x:
            dx = _sum_taps(dy, weight.flip(2), None, kernel - 1 - ctx.padding)
            dx = dx.to(x.dtype)
        if of_weight:
            x, dy = (tensor.float().transpose(1, 2).unsqueeze(3) for tensor in (x, dy))
            shape = (channels, 1, kernel, 1)
            with torch.autocast("cpu", enabled=False):
                dw = conv2d_weight(x, shape, dy, padding=(ctx.padding, 0), groups=channels)
            dw = dw.squeeze(3).to(weight.dtype)
        return dx, dw, db, None, None


def _sum_taps(x, weight, bias, padding):
    with torch.autocast("cpu", enabled=False):
        y = F.conv2d(
            x.float().transpose(1, 2).unsqueeze(2), weight.float().unsqueeze(2),
            None if bias is None else bias.float(), padding=(0, padding), groups=len(weight),
        )  # fmt: skip
    return y.squeeze(2).transpose(1, 2)


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
    y = depthwise_convolution(x, weight[..., : width + 1], bias)
    if width and size > 1:
        chunks = -(-time // size)
        future = F.pad(x[:, width:], (0, 0, 0, chunks * size - time))
        future = future.view(batch * chunks, size, channels)[:, 1:]
        future = depthwise_convolution(future, weight[..., width + 1 :], right=width)
        y = y + future.reshape(batch, chunks * size, channels)[:, :time]
    return y, state
