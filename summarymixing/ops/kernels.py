"""Triton kernels for GPUs, beside the plain operations that they stand in for.

They are off until `SUMMARYMIXING_TRITON=1` is in the environment or `using()` is entered, since
they are not measured on a GPU yet; `scripts/benchmark.py --device cuda` lets mixers with them
("+triton") and without take turns. On other devices the plain operations run either way, unless
Triton interprets (`TRITON_INTERPRET=1`): so the tests run them on a CPU.

The depthwise convolution is here because no compiler fuses it: PyTorch's wants channels before
time, for which the encoders' frames are transposed twice, and has no chunks, for which it runs
twice (`ops.convolution`).
"""

import os
from contextlib import contextmanager

import torch

from summarymixing.errors import InputError

try:
    import triton
    from triton import language as tl
except ImportError:  # wheels of torch for CPUs and for macOS come without
    triton = None

SWITCH = "SUMMARYMIXING_TRITON"
# Frames and channels of a program. The weight's gradient sums this many parts of the frames by as
# many programs, and then the parts, in an order that never changes.
BLOCK_TIME, BLOCK_CHANNELS, PARTS = 64, 64, 16

_asked = os.environ.get(SWITCH, "0")
_enabled = _asked == "1"


@contextmanager
def using(enabled=True):
    """Within it, the kernels are on (or off)."""
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def usable(x):
    """Whether the kernels are on, and run where this tensor is.

    Raises
    ------
    InputError
        If they are on without Triton, or the environment says neither 0 nor 1.
    """
    if _asked not in ("0", "1"):
        raise InputError(f"{SWITCH} must be 0 or 1, got {_asked!r}")
    if _enabled and triton is None:
        raise InputError(f"{SWITCH}=1 needs Triton, which is not installed: pip install triton")
    interpreted = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return _enabled and (x.is_cuda or interpreted)


def depthwise_convolution(x, weight, bias, left, time, chunk_size=None):
    """y_t = bias + sum over k of weight_k x_(t + k - left), with zeros where there is no x.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, channels). Under autocast it is taken in autocast's type.
    weight : torch.Tensor
        (channels, 1, kernel).
    bias : torch.Tensor or None
        (channels,).
    left : int
        The tap that falls on x_t.
    time : int
        Frames of y.
    chunk_size : int, optional
        Taps behind the middle one see no further than the end of the frame's own chunk.

    Returns
    -------
    torch.Tensor
        (batch, time, channels), in the type of x; sums are in float32.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _convolution(x, weight, bias, left, time, chunk_size or 0)


if triton is not None:

    @triton.jit
    def _sum_taps(
        x, weight, bias, y, others, rows, channels, left, chunk,
        KERNEL: tl.constexpr, CHUNKED: tl.constexpr, BACKWARD: tl.constexpr,
        BIAS: tl.constexpr, BLOCK_TIME: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """A block of y from x; backwards, of the gradient of x from that of y."""
        batch = tl.program_id(0).to(tl.int64)
        row = tl.program_id(1) * BLOCK_TIME + tl.arange(0, BLOCK_TIME)
        channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        inside = channel < channels
        total = tl.zeros((BLOCK_TIME, BLOCK_CHANNELS), tl.float32)
        if BIAS:
            total += tl.load(bias + channel, mask=inside, other=0).to(tl.float32)[None, :]
        for k in range(KERNEL):
            other = row - k + left if BACKWARD else row + k - left
            seen = (other >= 0) & (other < others)
            if CHUNKED:
                t = other if BACKWARD else row
                seen = seen & (t % chunk + k - KERNEL // 2 < chunk)
            there = (batch * others + other)[:, None] * channels + channel[None, :]
            frames = tl.load(x + there, mask=seen[:, None] & inside[None, :], other=0)
            taps = tl.load(weight + k * channels + channel, mask=inside, other=0)
            total += frames.to(tl.float32) * taps.to(tl.float32)[None, :]
        here = (batch * rows + row)[:, None] * channels + channel[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        tl.store(y + here, total.to(y.dtype.element_ty), mask=mask)

    @triton.jit
    def _weight_gradient(
        x, dy, dw, blocks, frames, time, channels, left, chunk,
        KERNEL: tl.constexpr, CHUNKED: tl.constexpr, BLOCK_TIME: tl.constexpr,
        BLOCK_CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """One tap of a block of channels, over one part of all blocks of frames."""
        k = tl.program_id(0)
        channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        inside = channel < channels
        part = tl.program_id(2)
        block = part
        blocks_each = tl.cdiv(time, BLOCK_TIME)
        total = tl.zeros((BLOCK_TIME, BLOCK_CHANNELS), tl.float32)
        while block < blocks:  # Triton's interpreter takes no range() of what it is given
            batch = (block // blocks_each).to(tl.int64)
            t = block % blocks_each * BLOCK_TIME + tl.arange(0, BLOCK_TIME)
            other = t + k - left
            seen = (t < time) & (other >= 0) & (other < frames)
            if CHUNKED:
                seen = seen & (t % chunk + k - KERNEL // 2 < chunk)
            mask = seen[:, None] & inside[None, :]
            here = (batch * time + t)[:, None] * channels + channel[None, :]
            there = (batch * frames + other)[:, None] * channels + channel[None, :]
            total += tl.load(dy + here, mask=mask, other=0).to(tl.float32) * tl.load(
                x + there, mask=mask, other=0
            ).to(tl.float32)
            block += tl.num_programs(2)
        to = dw + (part * KERNEL + k) * channels + channel
        tl.store(to, tl.sum(total, 0), mask=inside)


def _launch(x, weight, bias, y, left, chunk, backward):
    batch, rows, channels = y.shape
    grid = (batch, triton.cdiv(rows, BLOCK_TIME), triton.cdiv(channels, BLOCK_CHANNELS))
    _sum_taps[grid](
        x, weight.squeeze(1).t().contiguous(), bias, y, x.shape[1], rows, channels, left, chunk,
        KERNEL=weight.shape[-1], CHUNKED=chunk > 0, BACKWARD=backward, BIAS=bias is not None,
        BLOCK_TIME=BLOCK_TIME, BLOCK_CHANNELS=BLOCK_CHANNELS,
    )  # fmt: skip
    return y


@torch.library.custom_op("summarymixing::depthwise_convolution", mutates_args=())
def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    left: int,
    time: int,
    chunk: int,
) -> torch.Tensor:
    y = x.new_empty(x.shape[0], time, x.shape[2])
    return _launch(x.contiguous(), weight, bias, y, left, chunk, backward=False)


@_convolution.register_fake
def _(x, weight, bias, left, time, chunk):
    return x.new_empty(x.shape[0], time, x.shape[2])  # contiguous, whatever x is


@torch.library.custom_op("summarymixing::depthwise_convolution_backward", mutates_args=())
def _convolution_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, left: int, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    x, dy = x.contiguous(), dy.contiguous()
    dx = _launch(dy, weight, None, torch.empty_like(x), left, chunk, backward=True)
    (batch, time, channels), kernel = dy.shape, weight.shape[-1]
    blocks = batch * triton.cdiv(time, BLOCK_TIME)
    parts = min(PARTS, blocks)
    dw = x.new_empty(parts, kernel, channels, dtype=torch.float32)
    _weight_gradient[kernel, triton.cdiv(channels, BLOCK_CHANNELS), parts](
        x, dy, dw, blocks, x.shape[1], time, channels, left, chunk, KERNEL=kernel,
        CHUNKED=chunk > 0, BLOCK_TIME=BLOCK_TIME, BLOCK_CHANNELS=BLOCK_CHANNELS,
    )  # fmt: skip
    return dx, dw.sum(0).t().unsqueeze(1).to(weight.dtype, copy=True).contiguous()


@_convolution_backward.register_fake
def _(dy, x, weight, left, chunk):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx, inputs, output):
    x, weight, bias, ctx.left, _, ctx.chunk = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias = None if bias is None else bias.dtype


def _backward(ctx, dy):
    dx, dw = _convolution_backward(dy, *ctx.saved_tensors, ctx.left, ctx.chunk)
    db = None if ctx.bias is None else dy.sum((0, 1), dtype=torch.float32).to(ctx.bias)
    return dx, dw, db, None, None, None


_convolution.register_autograd(_backward, setup_context=_keep)
