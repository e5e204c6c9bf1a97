"""Every YAML in the repository is built, and mistakes in one are said in one line."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from speechbrain import Stage
from torch import nn

from summarymixing.decoding.ngram import arpa_lines, estimate
from summarymixing.errors import InputError
from summarymixing.files import write_whole
from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.training import config, experiment
from summarymixing.training.seq2seq import CTCAttentionBrain
from summarymixing.training.transducer import TransducerBrain

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))
SMALL = {
    "data_folder": "/none",
    "output_neurons": 30,
    "d_model": 16,
    "nhead": 2,
    "encoder_nhead": 1,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_ffn": 16,
}
TRANSDUCER = {"predictor_dim": 12, "joint_dim": 8}


def _small(path):
    """Of these, the keys that a recipe has."""
    keys = re.findall(r"^(\w+):", path.read_text(), re.M)
    return {key: value for key, value in (SMALL | TRANSDUCER).items() if key in keys}


def _load(path, **changes):
    return config.load(str(path), _small(path) | changes)


def test_recipes_are_found():
    assert len(RECIPES) >= 7
    included = {
        name
        for path in RECIPES
        for name in re.findall(r"!include:\S*/(\w+\.yaml)", path.read_text())
    }
    assert included == {path.name for path in ROOT.glob("hparams/*.yaml")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parts[-3]}/{p.stem}")
def test_recipe_is_built_and_encodes(path, tmp_path):
    changes = {}
    if re.search("^ngram_file:", path.read_text(), re.M):  # which a run makes
        changes["ngram_file"] = str(tmp_path / "ngram.arpa")
        lines = arpa_lines(estimate([[3, 4], [5]], order=2, vocabulary=30))
        write_whole(changes["ngram_file"], lines)
    hparams = _load(path, **changes)
    modules = {name: module.eval() for name, module in hparams["model"]["modules"].items()}
    wavs, lengths = torch.randn(2, 8000), torch.tensor([8000, 4321])
    features, lengths = hparams["compute_features"](wavs, lengths)
    frames, lengths = modules["CNN"](features, lengths)
    tokens = torch.ones(2, 3, dtype=torch.long)
    if _brain(hparams) is CTCAttentionBrain:
        encoded, decoded = modules["Transformer"](frames, tokens, lengths)
        assert modules["seq_lin"](decoded).shape == (2, 3, 30)
    else:
        encoded = modules["Transformer"](frames, None, lengths)
        predicted, _ = modules["predictor"](tokens)
        joint = modules["joiner"](encoded.unsqueeze(2), predicted.unsqueeze(1))
        assert joint.shape == (2, lengths[0], 3, 30)
        _chunks_reach_the_encoder(hparams, modules["Transformer"], frames)
    hop = hparams.get("hop_length", 10) * 16
    assert lengths.tolist() == [-(-(samples // hop + 1) // 4) for samples in (8000, 4321)]
    assert modules["ctc_lin"](encoded).shape == (2, lengths[0], 30)
    for name in ("valid_search", "test_search"):
        assert len(hparams[name](modules, encoded, lengths)) == 2
    augmentations = hparams["fea_augment"]
    assert augmentations.min_augmentations == len(augmentations.augmentations) == 3
    assert augmentations(features, lengths / features.shape[1])[0].shape == features.shape
    assert hparams["lr_schedule"](hparams["warmup_steps"], 0.0) == pytest.approx(hparams["lr"])
    optimizer = hparams["opt_class"](modules["ctc_lin"].parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)


def _brain(hparams):
    return TransducerBrain if "joiner" in hparams["model"]["modules"] else CTCAttentionBrain


def _chunks_reach_the_encoder(hparams, encoder, frames):
    """What training draws, the encoder can use; a test's chunks are offline unless given."""
    sampler = hparams["dynchunktrain_config_sampler"]
    drawn = [sampler(Stage.TRAIN) for _ in range(50)]
    sizes = [chunks.chunk_size for chunks in drawn if chunks is not None]
    assert 10 < len(sizes) < 50
    assert min(sizes) >= 8 and max(sizes) <= 32
    chunks = next(chunks for chunks in drawn if chunks is not None)
    assert encoder(frames, None, dynchunktrain_config=chunks).shape[1] == frames.shape[1]
    assert sampler(Stage.VALID) is None and sampler(Stage.TEST) is None


@pytest.mark.parametrize("name", ["ctc_attention", "transducer"])
def test_modules_are_built_once(name):
    path = next(path for path in RECIPES if f"hparams/{name}.yaml" in path.read_text())
    model = _load(path)["model"]
    for name, module in model["modules"].items():
        assert isinstance(module, nn.Module)
        assert module is model[name]


@pytest.mark.parametrize(
    ("encoder", "total", "in_encoder"), [("branchformer", 114.2, 86.0), ("conformer", 107.1, 79.0)]
)
def test_published_size(encoder, total, in_encoder):
    path = ROOT / f"recipes/LibriSpeech/hparams/{encoder}_summarymixing.yaml"
    with open(path) as file:
        text = config.resolve_references(file, {"data_folder": "/none"})
    arguments = config.ruamel.yaml.YAML().load(text)["model"]["Transformer"]
    with torch.device("meta"):
        model = TransformerASR(**{k: v for k, v in arguments.items() if k != "activation"})
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(total, abs=0.05)
    counted = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    assert counted == pytest.approx(in_encoder, abs=0.05)


def _refused(overrides, *expected, path=RECIPES[0]):
    with pytest.raises(InputError) as caught:
        config.load(str(path), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_missing_data_folder():
    _refused({}, "data_folder is required", "--data_folder=")


def test_unknown_override():
    _refused(SMALL | {"d_modle": 3}, "d_modle", "did you mean d_model?")
    _refused(SMALL | {"xyz": 3}, "xyz", "known are")


def test_unknown_key_on_the_way_into_a_fragment():
    _refused(SMALL | {"model": {"dropuot": 0.2}}, "dropuot", "did you mean dropout?")


def test_misspelt_key_inside_a_recipes_include(tmp_path):
    text = RECIPES[0].read_text().replace("  d_model: !ref", "  d_modell: !ref")
    text = text.replace("../../../hparams", str(ROOT / "hparams"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    _refused(SMALL, "d_modell", "ctc_attention.yaml", "did you mean d_model?", path=recipe)


def test_misspelt_argument_inside_a_fragment(tmp_path):
    fragment = (ROOT / "hparams" / "ctc_attention.yaml").read_text()
    (tmp_path / "fragment.yaml").write_text(fragment.replace("  csgu_linear", "  csg_linear"))
    text = RECIPES[0].read_text().replace("../../../hparams/ctc_attention", "fragment")
    (tmp_path / "recipe.yaml").write_text(
        text.replace("../../../hparams/spec", str(ROOT / "hparams/spec"))
    )
    _refused(SMALL, "TransformerASR", "csg_linear_units", path=tmp_path / "recipe.yaml")


def test_class_that_does_not_exist(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("thing: !new:summarymixing.NoSuchClass\n")
    _refused({}, "summarymixing.NoSuchClass", path=recipe)


def test_missing_and_malformed_files(tmp_path):
    _refused({}, "no_such.yaml", "No such file", path=tmp_path / "no_such.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2\nb: }")
    _refused({}, "broken.yaml", "line", path=broken)
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    _refused({}, "not a YAML mapping", path=tmp_path / "list.yaml")
    (tmp_path / "include.yaml").write_text("model: !include:gone.yaml\n  a: 1\n")
    _refused({}, "gone.yaml", path=tmp_path / "include.yaml")


def test_heads_that_do_not_divide():
    _refused(SMALL | {"nhead": 3}, "nhead", "16", "3")
    _refused(SMALL | {"encoder_nhead": 3}, "nhead", "16", "3")


def _written(tmp_path, before, after):
    recipe = tmp_path / "recipe.yaml"
    text = RECIPES[0].read_text().replace("../../../hparams", str(ROOT / "hparams"))
    assert before in text
    recipe.write_text(text.replace(before, after))
    hparams = config.load(str(recipe), SMALL)
    experiment.check(CTCAttentionBrain, str(recipe), hparams)


def test_keys_of_a_recipe_that_are_missing_or_misspelt(tmp_path):
    _written(tmp_path, "seed", "seed")
    with pytest.raises(InputError, match="the key 'valid_batch_size' is missing"):
        _written(tmp_path, "valid_batch_size: 20\n", "")
    with pytest.raises(InputError, match="nothing reads the key .precison"):
        _written(tmp_path, "precision:", "precison:")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parts[-3]}/{p.stem}")
def test_recipe_is_complete(path):
    hparams = _load(path)
    experiment.check(_brain(hparams), str(path), hparams)


def test_recipe_of_another_script():
    for brain, name, missing in (
        (CTCAttentionBrain, "conformer_transducer_summarymixing", "seq_lin"),
        (TransducerBrain, "conformer_summarymixing", "predictor"),
    ):
        path = ROOT / f"recipes/AN4/hparams/{name}.yaml"
        with pytest.raises(InputError, match=f"no {missing}, which {brain.__name__} trains"):
            experiment.check(brain, str(path), _load(path))


def test_fixed_parts_of_an_experiment(tmp_path):
    path = str(RECIPES[0])
    saved = tmp_path / "hyperparams.yaml"
    with open(path) as file:
        saved.write_text(config.resolve_references(file, SMALL).read())
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    check = config.check_same_experiment
    check(path, SMALL, str(tmp_path))
    check(path, SMALL | {"number_of_epochs": 99, "data_folder": "/moved"}, str(tmp_path))
    for change in (
        {"d_model": 32},
        {"seed": 4},
        {"output_neurons": 31},
        {"token_type": "bpe"},
        {"lr": 1.0},
        {"tokenizer_file": "other.model"},
        {"n_mels": 40},
    ):
        with pytest.raises(InputError, match=f"different experiment: .*{next(iter(change))}"):
            check(path, SMALL | change, str(tmp_path))
    shutil.rmtree(tmp_path / "save")
    check(path, SMALL | {"d_model": 32}, str(tmp_path))  # nothing was trained there yet
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    other = ROOT / "recipes/Mini/hparams/branchformer_summarymixing.yaml"
    with pytest.raises(InputError, match="different experiment"):
        check(str(other), SMALL, str(tmp_path))
