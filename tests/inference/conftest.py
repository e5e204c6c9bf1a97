"""Tiny recognisers with random weights."""

import pytest
import torch
from speechbrain.nnet.linear import Linear
from speechbrain.processing.features import InputNormalization

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.inference import Recogniser
from summarymixing.models.features import LogMel
from summarymixing.models.frontend import ConvolutionFrontEnd
from summarymixing.models.transducer import Joiner, Predictor
from summarymixing.models.transformer_asr import TransformerASR

MELS, WIDTH = 12, 16


@pytest.fixture(scope="session")
def tokenizer():
    texts = ["one two three four five", "six seven eight nine", "zero and ten make a sentence"]
    return tokenizers.train_or_load(None, lambda: texts, 32, "unigram")


@pytest.fixture
def make_recogniser(tokenizer):
    def make(encoder_module="conformer", kind="ctc", top_db=None, **changes):
        size = tokenizer.get_piece_size()
        arguments = {
            "tgt_vocab": size,
            "input_size": MELS // 4 * 4,
            "d_model": WIDTH,
            "nhead": 4,
            "num_encoder_layers": 2,
            "num_decoder_layers": 0,
            "d_ffn": 24,
            "csgu_linear_units": 24,
            "kernel_size": 15,
            "encoder_module": encoder_module,
        }
        features = LogMel(n_mels=MELS, top_db=top_db)
        normalize = InputNormalization(norm_type="global")
        normalize(features(torch.randn(3, 8000) * 0.1, torch.ones(3))[0])
        modules = {
            "normalize": normalize,
            "CNN": ConvolutionFrontEnd(
                (None, None, MELS),
                num_blocks=2,
                num_layers_per_block=1,
                out_channels=(6, 4),
                kernel_sizes=(3, 3),
                strides=(2, 2),
                residuals=(False, False),
            ),
            "Transformer": TransformerASR(**{**arguments, **changes}),
        }
        if kind == "ctc":
            modules["ctc_lin"] = Linear(input_size=WIDTH, n_neurons=size)
        else:
            modules["predictor"] = Predictor(size, 8, 12)
            modules["joiner"] = Joiner(WIDTH, 12, size, 16)
        with torch.no_grad():
            for module in modules.values():
                for parameter in module.parameters():
                    # Biases and scales that are not those of a fresh model.
                    parameter += 0.2 * torch.randn_like(parameter) * (parameter.dim() == 1)
        recogniser = Recogniser(modules, features, tokenizer, 16000)
        if kind == "ctc":
            _centre(recogniser)
        return recogniser

    return make


def _noise(samples):
    x = torch.randn(samples) * 0.1
    return x * torch.rand(-(-samples // 1000)).repeat_interleave(1000)[:samples] ** 4


@torch.no_grad()
def _centre(recogniser):
    """Makes no token more probable than the others: random weights would always say the same."""
    frames, lengths = recogniser.front_end(_noise(80000)[None], torch.tensor([80000]))
    encoded = recogniser.modules["Transformer"].encode(frames, lengths)
    linear = recogniser.modules["ctc_lin"].w
    linear.bias.copy_(-(linear.weight @ encoded.mean((0, 1))))


@pytest.fixture
def noise():
    """Samples that are loud and quiet by turns."""
    return _noise
