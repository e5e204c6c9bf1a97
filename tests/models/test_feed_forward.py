"""SpeechBrain's feed-forward module without its transposing: same numbers, fewer passes."""

import copy

import pytest
import torch
from speechbrain.nnet.activations import Swish
from speechbrain.nnet.attention import PositionalwiseFeedForward
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from summarymixing.models.feed_forward import FeedForward
from summarymixing.models.transformer_asr import TransformerASR


@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU, Swish])
def test_same_numbers_and_gradients(activation):
    host = PositionalwiseFeedForward(24, input_size=12, activation=activation).double()
    ours = FeedForward(copy.deepcopy(host))
    frames = torch.randn(3, 7, 12, dtype=torch.float64)
    weights = torch.randn_like(frames)
    found = []
    for module in (host, ours):
        x = frames.clone().requires_grad_()
        (module(x) * weights).sum().backward()
        found.append([module(x), x.grad, *(p.grad for p in module.parameters())])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert host.state_dict().keys() == ours.state_dict().keys()


class _Copies(TorchDispatchMode):
    """Counts the copies of whole frames."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.found = elements, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        copies = operation.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_)
        self.found += copies and out.numel() >= self.elements
        return out


@pytest.mark.parametrize("encoder", ["conformer", "transformer"])
@pytest.mark.parametrize("attention_type", ["SummaryMixing", "none"])
def test_frames_are_not_copied(encoder, attention_type):
    model = TransformerASR(
        tgt_vocab=5,
        input_size=16,
        d_model=16,
        nhead=1,
        num_encoder_layers=2,
        num_decoder_layers=1,
        d_ffn=32,
        activation=nn.GELU,
        encoder_module=encoder,
        attention_type=attention_type,
        normalize_before=True,
    ).eval()
    assert not any(type(module) is PositionalwiseFeedForward for module in model.modules())
    frames, lengths = torch.randn(3, 40, 16), torch.tensor([40, 20, 11])
    with torch.no_grad(), _Copies(frames.numel()) as copies:
        model.encode(frames, lengths)
    assert copies.found == 0
