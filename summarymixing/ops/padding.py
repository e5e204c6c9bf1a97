"""Lengths, masks, and reflection at each utterance's own end.

A convolution that pads by reflection sees, in a batch, the padding of the batch instead of the end
of the utterance. Writing the reflected frames behind each utterance's last one makes any
convolution give what it gives for the utterance alone.
"""

import torch
from torch.nn import functional as F


def absolute_lengths(lengths, time):
    """Lengths in frames, from integers (kept) or from SpeechBrain's fractions of the longest.

    Arguments
    ---------
    lengths : torch.Tensor
        (batch,): frames if the type is an integer, fractions of `time` in [0, 1] otherwise.
    time : int
        Frames in the padded batch.

    Returns
    -------
    torch.Tensor
        (batch,), int64.

    Example
    -------
    >>> absolute_lengths(torch.tensor([0.5, 1.0]), 7).tolist()
    [4, 7]
    >>> absolute_lengths(torch.tensor([3, 7]), 7).tolist()
    [3, 7]
    """
    if lengths.is_floating_point():
        lengths = torch.round(lengths.double() * time)
    return lengths.long()


def padding_mask(lengths, time):
    """(batch, time) mask, True = padding.

    Example
    -------
    >>> padding_mask(torch.tensor([1, 3]), 3).tolist()
    [[False, True, True], [False, False, False]]
    """
    return torch.arange(time, device=lengths.device) >= lengths.unsqueeze(1)


def reflect(x, lengths, width):
    """Writes the reflection of each utterance at its own end over the `width` frames behind it.

    Utterances shorter than `width` are reflected as often as it takes (a single frame is
    repeated), so every length of at least one frame works.

    Arguments
    ---------
    x : torch.Tensor
        (batch, time, ...).
    lengths : torch.Tensor
        (batch,), valid frames, at least 1 each.
    width : int
        Frames of reflection.

    Returns
    -------
    torch.Tensor
        (batch, time + width, ...).

    Example
    -------
    >>> x = torch.tensor([[1, 2, 3, 0], [1, 0, 0, 0]])
    >>> reflect(x, torch.tensor([3, 1]), 2)
    tensor([[1, 2, 3, 2, 1, 0],
            [1, 1, 1, 0, 0, 0]])
    """
    shape = x.shape
    x = F.pad(x.reshape(shape[0], shape[1], -1), (0, 0, 0, width))
    lengths = lengths.unsqueeze(1)
    target = lengths + torch.arange(width, device=x.device)
    period = (2 * lengths - 2).clamp(min=1)
    source = target % period
    source = torch.minimum(source, period - source) * (lengths > 1)
    as_index = (-1, -1, x.shape[-1])
    frames = x.gather(1, source.unsqueeze(-1).expand(as_index))
    x = x.scatter(1, target.unsqueeze(-1).expand(as_index), frames)
    return x.view(shape[0], shape[1] + width, *shape[2:])
