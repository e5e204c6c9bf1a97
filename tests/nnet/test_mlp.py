"""Head-wise layers against dense ones."""

import math

import pytest
import torch
from torch import nn

from summarymixing.errors import InputError
from summarymixing.nnet.mlp import HeadwiseLinear, mlp


def _dense(layer):
    """The same map as one nn.Linear with a block-diagonal weight."""
    dense = nn.Linear(layer.weight.shape[0] * layer.weight.shape[1], layer.bias.numel())
    with torch.no_grad():
        dense.weight.copy_(torch.block_diag(*layer.weight.transpose(1, 2)))
        dense.bias.copy_(layer.bias.flatten())
    return dense.to(layer.weight.dtype)


@pytest.mark.parametrize("sizes", ((8, 12, 4), (12, 8, 2), (6, 6, 6), (5, 7, 1)))
def test_headwise_linear_is_block_diagonal(sizes):
    layer = HeadwiseLinear(*sizes).double()
    dense = _dense(layer)
    x = torch.randn(2, 5, sizes[0], dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    cotangent = torch.randn(2, 5, sizes[1], dtype=torch.float64)
    found, expected = layer(x), dense(y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.bias.grad.flatten(), dense.bias.grad, rtol=0, atol=1e-12)
    nhead, i, o = layer.weight.shape
    for head in range(nhead):
        block = dense.weight.grad[head * o : (head + 1) * o, head * i : (head + 1) * i]
        torch.testing.assert_close(layer.weight.grad[head], block.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", ((8,), (3, 8), (2, 3, 4, 8)))
def test_headwise_linear_takes_any_leading_shape(shape):
    layer = HeadwiseLinear(8, 4, 2)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), _dense(layer)(x))


def test_xavier_takes_the_fans_of_one_head():
    layer = HeadwiseLinear(256, 512, 4)
    layer.xavier_normal_()
    expected = math.sqrt(2 / (64 + 128))
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
    for head in layer.weight:
        assert head.std().item() == pytest.approx(expected, rel=0.06)
        assert abs(head.mean().item()) < 0.05 * expected


def test_default_initialisation_is_that_of_linear():
    layer = HeadwiseLinear(256, 512, 4)
    bound = 1 / math.sqrt(64)
    for parameter in (layer.weight, layer.bias):
        assert 0.95 * bound < parameter.abs().max().item() <= bound


@pytest.mark.parametrize("sizes, width", (((10, 8, 4), "10"), ((8, 10, 4), "10")))
def test_heads_must_divide_the_widths(sizes, width):
    with pytest.raises(InputError, match=f"nhead=4.*{width}"):
        HeadwiseLinear(*sizes)


@pytest.mark.parametrize("nhead", (1, 2))
def test_mlp_ends_in_its_activation(nhead):
    net = mlp([4, 8, 6], nn.ReLU, nhead)
    assert [type(layer) for layer in net[1::2]] == [nn.ReLU, nn.ReLU]
    assert {type(layer) for layer in net[::2]} == {nn.Linear if nhead == 1 else HeadwiseLinear}
    assert (net(torch.randn(50, 4)) >= 0).all()
