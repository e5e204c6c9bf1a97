"""Tiny models, and the same utterances alone and in a batch."""

import pytest
import torch
from torch import nn

from summarymixing.models.frontend import ConvolutionFrontEnd
from summarymixing.models.transformer_asr import TransformerASR

MELS = 12


def _make_model(encoder_module, attention_type="SummaryMixing", **changes):
    """A TransformerASR with biases and scales that are not those of a fresh one, in eval mode."""
    arguments = {
        "tgt_vocab": 11,
        "input_size": MELS // 4 * 4,
        "d_model": 16,
        "nhead": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "d_ffn": 24,
        "csgu_linear_units": 24,
        "kernel_size": 31,
        "encoder_module": encoder_module,
        "attention_type": attention_type,
    }
    model = TransformerASR(**{**arguments, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


class _System(nn.Module):
    """Front end and encoder."""

    def __init__(self, model):
        super().__init__()
        self.front_end = _make_front_end()
        self.model = model

    def forward(self, x, lengths=None):
        if lengths is None:
            return self.model.encode(self.front_end(x))
        return self.model.encode(*self.front_end(x, lengths))


def _make_front_end(kind=ConvolutionFrontEnd, **changes):
    arguments = {
        "input_shape": (None, None, MELS),
        "num_blocks": 2,
        "num_layers_per_block": 1,
        "out_channels": (6, 4),
        "kernel_sizes": (3, 3),
        "strides": (2, 2),
        "residuals": (False, False),
    }
    return kind(**{**arguments, **changes}).eval()


def _make_batch(lengths, width, garbage, dtype=torch.float32):
    """Utterances, and a batch of them with garbage behind: a scale of noise, or nan."""
    utterances = [torch.randn(1, length, width, dtype=dtype) for length in lengths]
    batch = torch.randn(len(lengths), max(lengths), width, dtype=dtype) * garbage
    for row, utterance in zip(batch, utterances):
        row[: utterance.shape[1]] = utterance[0]
    return utterances, batch, torch.tensor(lengths)


@pytest.fixture
def make_model():
    return _make_model


@pytest.fixture
def make_system():
    return lambda *args, **changes: _System(_make_model(*args, **changes)).eval()


@pytest.fixture
def make_front_end():
    return _make_front_end


@pytest.fixture
def make_batch():
    return _make_batch
