"""Lengths, masks and reflection against plain Python."""

import pytest
import torch
from torch.nn import functional as F

from summarymixing.ops.padding import absolute_lengths, padding_mask, reflect


def _bounce(length, width):
    """Indices of the frames that a walk past the end of `length` frames meets, one step each."""
    position, step, visited = length - 1, 1, []
    for _ in range(width):
        if length > 1:
            if not 0 <= position + step < length:
                step = -step
            position += step
        visited.append(position)
    return visited


@pytest.mark.parametrize("width", (0, 1, 2, 3, 15, 40))
def test_reflect_equals_plain_python(width):
    lengths = [1, 2, 3, 4, 5, 9, 15, 16, 17, 20]
    x = torch.randn(len(lengths), 20, 3)
    found = reflect(x, torch.tensor(lengths), width)
    assert found.shape == (len(lengths), 20 + width, 3)
    for row, source, length in zip(found, x, lengths):
        expected = torch.cat([source[:length], source[_bounce(length, width)]])
        assert torch.equal(row[: length + width], expected)


def test_reflect_equals_torch_where_torch_can():
    x = torch.randn(2, 16, 3)
    found = reflect(x, torch.tensor([16, 16]), 15)
    expected = F.pad(x.transpose(1, 2), (0, 15), mode="reflect").transpose(1, 2)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", ((3, 7), (3, 7, 2), (3, 7, 2, 5)))
def test_reflect_takes_any_trailing_shape(shape):
    x = torch.randn(shape)
    lengths = torch.tensor([7, 1, 4])
    found = reflect(x, lengths, 2)
    flat = reflect(x.reshape(3, 7, -1), lengths, 2)
    assert torch.equal(found, flat.reshape(3, 9, *shape[2:]))


@pytest.mark.parametrize("garbage", (5.0, float("nan"), float("inf")))
def test_reflect_keeps_padding_out_of_values_and_gradients(garbage):
    lengths, width = [6, 1, 3], 4
    x = torch.randn(3, 6, 2, dtype=torch.float64)
    padding = padding_mask(torch.tensor(lengths), 6)
    x = x.masked_fill(padding.unsqueeze(-1), garbage).requires_grad_()
    y = reflect(x, torch.tensor(lengths), width)
    cotangent = torch.randn_like(y)
    loss = sum((y[b, : n + width] * cotangent[b, : n + width]).sum() for b, n in enumerate(lengths))
    loss.backward()
    expected = torch.zeros_like(x)
    for b, n in enumerate(lengths):
        for target, source in enumerate([*range(n), *_bounce(n, width)]):
            expected[b, source] += cotangent[b, target]
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-12)


def test_reflect_leaves_its_input_alone():
    x = torch.randn(2, 5, 2)
    before = x.clone()
    reflect(x, torch.tensor([5, 2]), 0)
    reflect(x, torch.tensor([5, 2]), 3)
    assert torch.equal(x, before)


@pytest.mark.parametrize("time", (*range(1, 60), 997, 1511, 60_000, 480_017))
def test_fractions_come_back_as_the_frames_they_were_made_of(time):
    frames = torch.arange(0, time + 1) if time < 2000 else torch.randint(0, time + 1, (1000,))
    found = absolute_lengths(frames.float() / time, time)
    assert found.dtype == torch.int64
    assert torch.equal(found, frames)
    assert torch.equal(absolute_lengths(frames.double() / time, time), frames)


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64))
def test_integer_lengths_are_kept(dtype):
    found = absolute_lengths(torch.tensor([0, 1, 5], dtype=dtype), 7)
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 1, 5]


def test_padding_mask():
    mask = padding_mask(torch.tensor([0, 1, 3, 4]), 4)
    assert mask.dtype == torch.bool
    assert (~mask).sum(1).tolist() == [0, 1, 3, 4]
    assert mask[1].tolist() == [False, True, True, True]
