"""Tiny recognisers with random weights."""

import pytest
import torch
from hyperpyyaml import resolve_references
from speechbrain.nnet.linear import Linear
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.inference import Recogniser
from summarymixing.models.features import LogMel
from summarymixing.models.frontend import ConvolutionFrontEnd
from summarymixing.models.transducer import Joiner, Predictor
from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.training import config
from summarymixing.training.checkpoints import recoverable_model

MELS, WIDTH = 12, 16
TEXTS = ["one two three four five", "six seven eight nine", "zero and ten make a sentence"]
TOKENS = 32


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizers.train_or_load(None, lambda: TEXTS, TOKENS, "unigram")


@pytest.fixture
def make_recogniser(tokenizer):
    def make(encoder_module="conformer", kind="ctc", top_db=None, **changes):
        arguments = {
            "tgt_vocab": TOKENS,
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
            modules["ctc_lin"] = Linear(input_size=WIDTH, n_neurons=TOKENS)
        else:
            modules["predictor"] = Predictor(TOKENS, 8, 12)
            modules["joiner"] = Joiner(WIDTH, 12, TOKENS, 16)
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


@pytest.fixture
def trained(tiny, tmp_path):
    """The folder of a training that made two checkpoints: trained(**changes), and its hparams."""

    def make(**changes):
        folder = tmp_path / "run"
        recipe, _, *options = tiny("/none", folder, **{"output_neurons": TOKENS, **changes})
        overrides = "\n".join(option[2:].replace("=", ": ", 1) for option in options)
        hparams = config.load(recipe, overrides)
        folder.mkdir()
        with open(recipe) as file:  # what SpeechBrain leaves in the folder of a training
            resolved = resolve_references(file, overrides)
        (folder / "hyperparams.yaml").write_text(resolved.getvalue())
        tokenizers.train(TEXTS, folder / "tokenizer.model", TOKENS)
        modules = hparams["model"]["modules"]
        features = hparams["compute_features"](torch.randn(3, 8000) * 0.1, torch.ones(3))[0]
        recoverables = {
            "model": recoverable_model(modules),
            "normalizer": modules["normalize"],
            "counter": hparams["epoch_counter"],
        }
        checkpointer = Checkpointer(folder / "save", recoverables)
        for epoch in range(2):
            modules["normalize"](features + epoch)
            with torch.no_grad():
                for parameter in recoverables["model"].parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
            checkpointer.save_checkpoint(meta={"epoch": epoch, "ACC": 0.5, "loss": 1.0})
        return folder, hparams

    return make
