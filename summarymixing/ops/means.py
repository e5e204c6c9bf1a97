"""Means over time in O(T). Padding never counts, and sums are taken in float32 or wider.

(Those of `decayed_mean` are matrix products: in TF32 where PyTorch is told that a GPU may.)

Every function takes `values` of shape (batch, time, features) and returns means and a state:

* `padding` is a mask of shape (batch, time), True = padding.
* With `chunk_size`, the frames are cut into chunks of that many frames, the last one as short as
  need be, and no frame sees beyond the end of its own chunk. With `left_context`, it sees no
  further back than that many chunks before its own; None is no limit (arXiv 2409.07165).
* `state` is what an earlier call on the frames before these returned, None at the start of an
  utterance. A long input may so be given piece by piece: whole chunks, but for the last piece.
  It is (batch, slots, features + 1), sums beside the number of frames in them, zeros where nothing
  has been seen, and does not grow with the frames seen.

They agree with `summarymixing.ops.reference`, outputs and gradients.
"""

import torch
from torch.nn import functional as F

from summarymixing.errors import InputError

# Frames that `_scan` sums by one small matrix; the cost is time x block, and the best block is a
# few cache lines wide.
BLOCK = 64


def chunk_mean(values, chunk_size=None, left_context=None, padding=None, state=None):
    """Mean over the frames of each chunk and of the chunks before it.

    Without `chunk_size` all frames given are one chunk: the mean over the utterance
    (arXiv 2307.07421, equation 1).

    Arguments
    ---------
    values : torch.Tensor
        (batch, time, features), any float type.
    chunk_size : int, optional
        In frames.
    left_context : int, optional
        In chunks.
    padding : torch.Tensor, optional
        (batch, time).
    state : torch.Tensor, optional
        (batch, left_context, features + 1), or (batch, 1, features + 1) without a limit.

    Returns
    -------
    means : torch.Tensor
        (batch, chunks, features), in the type of `values`; zero where no frame counts.
    state : torch.Tensor

    Example
    -------
    >>> values = torch.tensor([[[1.0], [3.0], [8.0]]])
    >>> chunk_mean(values, padding=torch.tensor([[False, False, True]]))[0].flatten().tolist()
    [2.0]
    >>> chunk_mean(values, chunk_size=2)[0].flatten().tolist()
    [2.0, 4.0]
    >>> chunk_mean(values, chunk_size=2, left_context=0)[0].flatten().tolist()
    [2.0, 8.0]
    """
    size, chunks = _chunks(values, chunk_size, left_context)
    if padding is not None:
        values = values.masked_fill(padding.unsqueeze(-1), 0)
    # Summing float16 in float16 overflows beyond 65504, which a few thousand frames reach.
    sums = _cut(values, size, chunks).sum(2, dtype=_wide(values.dtype))
    sums = torch.cat([sums, _cut(_valid(values, padding), size, chunks).sum(2)], -1)
    sums = sums.to(state_dtype(values.device))
    state = _state(state, sums, 1 if left_context is None else left_context)
    if left_context is None:
        totals = state + sums.cumsum(1)
        state = totals[:, -1:]
    else:
        # From one window to the next a chunk comes in, and one goes: the left context, which may
        # be far longer than the piece, is summed only once.
        window, sums = state.sum(1, keepdim=True), torch.cat([state, sums], 1)
        gone = F.pad(sums[:, :chunks], (0, 0, 1, 0))[:, :chunks]
        totals = window + (sums[:, left_context:] - gone).cumsum(1)
        state = sums[:, chunks:]
    return _divide(totals, values.dtype), state


def window_mean(values, left, right, chunk_size=None, left_context=None, padding=None, state=None):
    """Mean over the frames t - left to t + right, for each frame t.

    In pieces, the result is that of the whole only if no frame sees beyond its piece: with
    `right` 0 or with `chunk_size`.

    Arguments
    ---------
    values : torch.Tensor
        (batch, time, features), any float type.
    left, right : int
        In frames.
    chunk_size, left_context, padding, state
        As in `chunk_mean`; the state has a slot for each of the last `left` frames, or for those
        of the left context if they are fewer.

    Returns
    -------
    means : torch.Tensor
        (batch, time, features), in the type of `values`; zero where no frame counts.
    state : torch.Tensor

    Example
    -------
    >>> values = torch.tensor([[[1.0], [3.0], [8.0]]])
    >>> window_mean(values, left=1, right=0)[0].flatten().tolist()
    [1.0, 2.0, 5.5]
    """
    for name, width in (("left", left), ("right", right)):
        if width < 0:
            raise InputError(f"{name} of a window must not be negative, got {width}")
    size, _ = _chunks(values, chunk_size, left_context)
    time = values.shape[1]
    sums = _counted(values, padding).to(state_dtype(values.device))
    slots = window_slots(left, chunk_size, left_context)
    state = _state(state, sums, slots)
    sums = torch.cat([state, sums], 1)
    before = F.pad(sums.cumsum(1), (0, 0, 1, 0))
    t = torch.arange(time, device=values.device)
    start = t // size * size
    first = (t - left).clamp(min=-slots)
    if left_context is not None:
        first = torch.maximum(first, start - left_context * size)
    end = torch.minimum(t + right + 1, (start + size).clamp(max=time))
    totals = before.index_select(1, end + slots) - before.index_select(1, first + slots)
    return _divide(totals, values.dtype), sums[:, time:]


def decayed_mean(
    values, decay, causal=False, chunk_size=None, left_context=None, padding=None, state=None
):
    """Mean with weights decay^|t - u| over the frames u, for each frame t.

    Arguments
    ---------
    values : torch.Tensor
        (batch, time, features), any float type.
    decay : float
        In (0, 1]; the published SummaryMixing-expdecay has 0.995.
    causal : bool
        Over the frames u <= t only. In pieces, the result is that of the whole only with it or
        with `chunk_size`.
    chunk_size, left_context, padding, state
        As in `chunk_mean`.

    Returns
    -------
    means : torch.Tensor
        (batch, time, features), in the type of `values`; what stands at padded frames is finite
        and without meaning.
    state : torch.Tensor

    Example
    -------
    >>> values = torch.tensor([[[1.0], [4.0]]])
    >>> decayed_mean(values, 0.5)[0].flatten().tolist()
    [2.0, 3.0]
    >>> decayed_mean(values, 0.5, causal=True)[0].flatten().tolist()
    [1.0, 3.0]
    """
    if not 0 < decay <= 1:
        raise InputError(f"decay must be in (0, 1], got {decay}")
    size, chunks = _chunks(values, chunk_size, left_context)
    batch, time, _ = values.shape
    kind = values.device.type
    with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
        sums = _cut(_counted(values, padding), size, chunks).flatten(0, 1)
        past = _scan(sums, decay)
        within = past if causal else past + _scan(sums.flip(1), decay).flip(1) - sums
        # What each chunk hands on, weighted as its own last frame sees it.
        ends = past[:, -1].unflatten(0, (batch, chunks)).to(state_dtype(values.device))
        state = _state(state, ends, 1 if left_context is None else left_context)
        ends = torch.cat([state, ends], 1)
        before = _scan(ends, decay, size)
        if left_context is None:
            before, state = before[:, :-1], before[:, -1:]
        else:
            before = F.pad(before, (0, 0, 1, 0))
            out_of_sight = decay ** (size * left_context) * before[:, :chunks]
            before = before[:, left_context : left_context + chunks] - out_of_sight
            state = ends[:, chunks:]
        sums = within.unflatten(0, (batch, chunks))
        since = torch.arange(1, sums.shape[2] + 1, device=values.device, dtype=sums.dtype)
        sums = sums + (decay**since).unsqueeze(-1) * before.unsqueeze(2).to(sums.dtype)
        sums = sums.flatten(1, 2)[:, :time]
        weight = sums[..., -1:].clamp(min=torch.finfo(sums.dtype).tiny)
        return (sums[..., :-1] / weight).to(values.dtype), state


def window_slots(left, chunk_size=None, left_context=None):
    """Slots in the state of `window_mean`."""
    return left if left_context is None else min(left, (chunk_size or 0) * left_context)


def state_dtype(device):
    """Of a state on this device.

    A window's sum is a difference of two sums over everything before: in float64 nothing is lost.
    Apple's GPUs have none.
    """
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def _wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(values, chunk_size, left_context):
    """Frames in a chunk, and chunks."""
    time = values.shape[1]
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1 frame, got {chunk_size}")
    if left_context is not None and left_context < 0:
        raise InputError(f"left_context must not be negative, got {left_context} chunks")
    if left_context is not None and chunk_size is None:
        raise InputError(f"left_context={left_context} is a number of chunks: give chunk_size")
    size = time if chunk_size is None else chunk_size
    return size, -(-time // size)


def _cut(x, size, chunks):
    """(batch, time, features) → (batch, chunks, size, features), zeros behind the last frame.

    A single chunk has as many frames as there are: its size may be far more.
    """
    if chunks == 1:
        return x.unsqueeze(1)
    missing = chunks * size - x.shape[1]
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return x.unflatten(1, (chunks, size))


def _valid(values, padding):
    """(batch, time, 1), 1 where a frame counts."""
    valid = values.new_ones((*values.shape[:2], 1), dtype=_wide(values.dtype))
    return valid if padding is None else valid.masked_fill(padding.unsqueeze(-1), 0)


def _counted(values, padding):
    """Values in a wide type, zero at padding, with a last column that counts the frames."""
    if padding is not None:
        values = values.masked_fill(padding.unsqueeze(-1), 0)
    return torch.cat([values.to(_wide(values.dtype)), _valid(values, padding)], -1)


def _state(state, like, slots):
    shape = (like.shape[0], slots, like.shape[2])
    if state is None:
        return like.new_zeros(shape)
    if state.shape != shape:
        raise InputError(
            f"a state of shape {tuple(state.shape)} is of another batch, model or chunk "
            f"configuration: here it is {shape}"
        )
    return state


def _divide(totals, dtype):
    return (totals[..., :-1] / totals[..., -1:].clamp(min=1)).to(dtype)


def _scan(x, decay, step=1):
    """y_t = sum over u <= t of decay^(step (t - u)) x_u, along dimension 1 of three."""
    time = x.shape[1]
    size = min(time, BLOCK)
    i = torch.arange(size, device=x.device, dtype=x.dtype)
    within = (decay ** (step * (i[:, None] - i).clamp(min=0))).tril()
    if time == size:
        return within @ x
    blocks = -(-time // size)
    y = within @ _cut(x, size, blocks)
    before = F.pad(_scan(y[:, :, -1], decay, step * size), (0, 0, 1, -1))
    y = y + (decay ** (step * (i + 1))).unsqueeze(-1) * before.unsqueeze(2)
    return y.flatten(1, 2)[:, :time]
