"""The chunked convolution against its definition, SpeechBrain's, and itself in pieces."""

import pytest
import torch
from torch.nn import functional as F

from summarymixing.errors import InputError
from summarymixing.ops import reference
from summarymixing.ops.convolution import chunked_convolution


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
