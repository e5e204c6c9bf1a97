"""Dropout: its distribution, its gradient, and where it is torch's."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.ops.dropout import LEVELS, Dropout, dropout, replace_dropout


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("p", (0.1, 0.5, 0.9, 2 / LEVELS))
def test_share_and_scale(p, dtype):
    y = dropout(torch.ones(1001, 1003, dtype=dtype), p)
    share = (y == 0).double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / y.numel())
    scale = torch.tensor(1 / (1 - p), dtype=dtype)
    torch.testing.assert_close(y[y != 0].unique(), scale.reshape(1), rtol=1e-4, atol=0)


def test_elements_are_independent():
    """Neighbours come from one random number: none tells of the next three, nor of its row's."""
    kept = (dropout(torch.ones(2000, 1000), 0.3) != 0).double() - 0.7
    for distance in (1, 2, 3, 4, 1000):
        first, second = kept.flatten()[:-distance], kept.flatten()[distance:]
        correlation = (first * second).mean().item() / 0.21
        assert abs(correlation) < 5 / math.sqrt(first.numel()), distance
    assert kept.mean(0).abs().max() < 6 * math.sqrt(0.21 / 2000)


def test_gradient_is_the_mask():
    x = torch.randn(3, 17, 5, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)
    assert 0 < (gradient == 0).sum() < gradient.numel()


def test_seeds():
    x = torch.ones(7, 9)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)


@pytest.mark.parametrize("shape", ((), (0,), (2, 0, 3), (1,), (5,)))
def test_shapes(shape):
    assert dropout(torch.ones(shape)).shape == shape


def test_strides_do_not_matter():
    x = torch.arange(1.0, 25).view(4, 6)
    y = dropout(x.t(), 0.5)
    assert torch.equal(y, torch.where(y == 0, 0, 2 * x.t()))


def test_where_it_is_torchs():
    x = torch.randn(50)
    assert dropout(x, 0.5, training=False) is x
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros(50))
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout(x, 1.5)
    torch.manual_seed(0)
    found = torch.compile(dropout, backend="eager", fullgraph=True)(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(found, F.dropout(x, 0.5))


def test_models_have_it_everywhere():
    model = TransformerASR(9, 8, d_model=8, nhead=2, num_encoder_layers=1, num_decoder_layers=1,
                           d_ffn=8, encoder_module="conformer", dropout=0.25)  # fmt: skip
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    assert len(layers) > 5
    assert {type(layer) for layer in layers} == {Dropout}
    assert {layer.p for layer in layers} == {0.25}


def test_replaces_dropout_only():
    model = nn.Sequential(nn.Dropout(0.3), nn.Dropout2d(0.3), nn.Dropout(0.3, inplace=True))
    replace_dropout(model)
    assert [type(layer) for layer in model] == [Dropout, nn.Dropout2d, nn.Dropout]
