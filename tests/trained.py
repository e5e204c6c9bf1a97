"""Trained models, as far as tests need them: with random weights."""

from pathlib import Path

import torch
from speechbrain.utils.checkpoints import Checkpointer

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.files import write_whole
from summarymixing.training import config
from summarymixing.training.checkpoints import recoverable_model

RECIPES = Path(__file__).parents[1] / "recipes" / "AN4" / "hparams"
SMALL = {
    "data_folder": "/none",
    "variant": "conformer,summarymixing",
    "d_model": 16,
    "encoder_nhead": 1,
    "num_encoder_layers": 2,
    "d_ffn": 16,
    "cnn_channels": 4,
    "dropout": 0.0,
    "avg_metric": "epoch",
}
KINDS = {
    "ctc_attention": {"nhead": 2, "num_decoder_layers": 1},
    "transducer": {"predictor_dim": 12, "joint_dim": 8},
}


def make_run(folder, kind, texts, **changes):
    """What a training leaves, with random weights."""
    recipe = RECIPES / f"{kind}.yaml"
    folder.mkdir(parents=True)
    tokenizer = tokenizers.train(texts, folder / "tokenizer.model", model_type="char")
    overrides = SMALL | KINDS[kind] | {"output_neurons": tokenizer.get_piece_size()} | changes
    hparams = config.load(str(recipe), overrides)
    write_whole(folder / "hyperparams.yaml", config.resolved(str(recipe), overrides))
    modules = hparams["model"]["modules"]
    features, _ = hparams["compute_features"](torch.randn(3, 8000) * 0.1, torch.ones(3))
    modules["normalize"](features, torch.ones(3), epoch=0)
    recoverables = {"model": recoverable_model(modules), "normalizer": modules["normalize"]}
    with torch.no_grad():
        for parameter in recoverables["model"].parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    Checkpointer(folder / "save", recoverables).save_checkpoint(meta={"epoch": 1})
    return folder
