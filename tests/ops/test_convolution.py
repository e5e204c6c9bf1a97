"""The chunked convolution against its definition, SpeechBrain's, and itself in pieces."""

import pytest
import torch
from torch.nn import functional as F

from summarymixing.errors import InputError
from summarymixing.ops import reference
from summarymixing.ops.convolution import chunked_convolution, depthwise_convolution


def _operands(time, kernel, dtype=torch.float64):
    x = torch.randn(2, time, 3, dtype=dtype)
    return x, torch.randn(3, 1, kernel, dtype=dtype), torch.randn(3, dtype=dtype)


@pytest.mark.parametrize("kernel", (1, 3, 31))
@pytest.mark.parametrize("chunk_size", (1, 2, 8, 50, None))
@pytest.mark.parametrize("time", (1, 7, 8, 41))
def test_equals_definition(time, chunk_size, kernel):
    operands = [tensor.requires_grad_() for tensor in _operands(time, kernel)]
    cotangent = torch.randn(2, time, 3, dtype=torch.float64)
    results = []
    for function in (
        lambda *operands: chunked_convolution(*operands, chunk_size)[0],
        lambda *operands: reference.chunked_convolution(*operands, chunk_size),
    ):
        y = function(*operands)
        results.append((y, *torch.autograd.grad((y * cotangent).sum(), operands)))
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def _with_gradients(function, operands, cotangent):
    y = function(*operands)
    return y, *torch.autograd.grad((y * cotangent).sum(), operands)


@pytest.mark.parametrize("left, right", ((3, 3), (6, 0), (0, 6), (0, 0), (9, 9)))
@pytest.mark.parametrize("batch, time, channels", ((1, 7, 1), (2, 41, 3), (3, 300, 48)))
@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize(
    "dtype, autocast, tolerance",
    ((torch.float32, False, 1e-5), (torch.bfloat16, False, 0.02), (torch.float32, True, 0.02)),
)
def test_equals_conv1d_in_float64(
    left, right, batch, time, channels, transposed, dtype, autocast, tolerance
):
    x = torch.randn(batch, channels, time).mT if transposed else torch.randn(batch, time, channels)
    operands = x, torch.randn(channels, 1, 7), torch.randn(channels)
    operands = [tensor.to(dtype).requires_grad_() for tensor in operands]
    cotangent = torch.randn(batch, left + time + right - 6, channels).bfloat16()

    def plain(x, weight, bias):
        return F.conv1d(F.pad(x.mT, (left, right)), weight, bias, groups=channels).mT

    expected = _with_gradients(plain, [o.detach().double().requires_grad_() for o in operands],
                               cotangent.double())  # fmt: skip
    with torch.autocast("cpu", enabled=autocast):
        found = _with_gradients(
            lambda *operands: depthwise_convolution(*operands, left, right), operands,
            cotangent.to(torch.bfloat16 if autocast else dtype),
        )  # fmt: skip
    assert found[0].dtype == (torch.bfloat16 if autocast else dtype)
    for ours, theirs in zip(found, expected):
        scale = theirs.abs().max().clamp(min=1).item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * scale)
    for operand, gradient in zip(operands, found[1:]):
        assert gradient.dtype == operand.dtype


def test_without_bias_and_of_some_operands_only():
    x, weight, _ = _operands(20, 5, torch.float32)
    y = depthwise_convolution(x.requires_grad_(), weight, None, 2, 2)
    y.sum().backward()
    torch.testing.assert_close(y, F.conv1d(x.mT, weight, padding=2, groups=3).mT)
    assert weight.grad is None
    inside = x.grad[:, 4:-4]
    torch.testing.assert_close(inside, weight.sum((1, 2)).expand_as(inside))


def test_one_chunk_is_a_convolution():
    x, weight, bias = _operands(40, 7)
    expected = F.conv1d(x.transpose(1, 2), weight, bias, padding=3, groups=3).transpose(1, 2)
    torch.testing.assert_close(chunked_convolution(x, weight, bias)[0], expected)


@pytest.mark.parametrize("chunk_size", (1, 4, 20))
@pytest.mark.parametrize("at_once", (1, 2))
def test_pieces_equal_the_whole(chunk_size, at_once):
    x, weight, bias = _operands(43, 15)
    expected, _ = chunked_convolution(x, weight, bias, chunk_size)
    state, pieces = torch.zeros(2, 7, 3, dtype=torch.float64), []
    for piece in x.split(at_once * chunk_size, 1):
        y, state = chunked_convolution(piece, weight, bias, chunk_size, state)
        assert state.shape == (2, 7, 3)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=0, atol=1e-12)


def test_bad_arguments():
    x, weight, bias = _operands(9, 3)
    with pytest.raises(InputError, match="odd, got 2"):
        chunked_convolution(x, weight[..., :2])
    with pytest.raises(InputError, match="chunk_size .*got 0"):
        chunked_convolution(x, weight, bias, 0)
    with pytest.raises(InputError, match=r"\(1, 1, 3\) .*\(2, 1, 3\)"):
        chunked_convolution(x, weight, bias, 4, x[:1, :1])
