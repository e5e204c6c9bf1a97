"""Every YAML in the repository is built, and mistakes in one are said in one line."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from speechbrain import Stage
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn

from summarymixing import SummaryMixing
from summarymixing.decoding.ngram import arpa_lines, estimate
from summarymixing.errors import InputError
from summarymixing.files import write_whole
from summarymixing.models.decoder import CausalSummaryMixing
from summarymixing.training import config, experiment, tables
from summarymixing.training.batches import accumulation
from summarymixing.training.seq2seq import CTCAttentionBrain
from summarymixing.training.transducer import TransducerBrain

ROOT = Path(__file__).parents[1]
# What of another name than its own a mixer is; those that are not here are SpeechBrain's or none.
MODES = {
    "summarymixing": "SummaryMixing",
    "lite": "SummaryMixing-lite",
    "fast": "SummaryMixing-fast",
    "expdecay": "SummaryMixing-expdecay",
}
ATTENTION = {"rope": "RoPEMHA", "relpos": "RelPosMHAXL"}
RECIPES = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))
SMALL = {
    "data_folder": "/none",
    "variant": "branchformer,summarymixing",
    "output_neurons": 30,
    "d_model": 16,
    "nhead": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_ffn": 16,
}
TRANSDUCER = {"predictor_dim": 12, "joint_dim": 8}


AN4 = ROOT / "recipes/AN4/hparams"
RECIPE = AN4 / "ctc_attention.yaml"
ENCODERS = config.variants(RECIPE, "encoder")
MIXERS = config.variants(RECIPE, "mixer")


def _value(path, key):
    """What a recipe or its base has for a key, as it is written; None if they have not."""
    found = re.search(f"^{key}: ?(.*)", config.source(path)[0], re.M)
    return found and found[1]


def _small(path):
    """Of these, the keys that a recipe has."""
    keys = re.findall(r"^(\w+):", config.source(path)[0], re.M)
    return {key: value for key, value in (SMALL | TRANSDUCER).items() if key in keys}


def _load(path, **changes):
    return config.load(str(path), _small(path) | changes)


def _defaults(path):
    """The recipe as it is, and in each of the corpus's own languages."""
    languages = config.variants(path, "language")
    return languages and [f"{name},branchformer,summarymixing" for name in languages] or [None]


def _grid():
    """Every recipe with its defaults; for AN4 every encoder with every mixer."""
    for path in RECIPES:
        for variant in _defaults(path):
            yield pytest.param(path, variant, id=f"{path.parts[-3]}/{path.stem}-{variant}")
    for kind in ("ctc_attention", "transducer"):
        path = AN4 / f"{kind}.yaml"
        for variant in (f"{encoder},{mixer}" for encoder in ENCODERS for mixer in MIXERS):
            yield pytest.param(path, variant, id=f"AN4/{kind}-{variant}")
    yield pytest.param(RECIPE, "conformer,rope,summary_decoder,small", id="AN4/summary_decoder")
    for kind in ("ctc_attention", "transducer"):
        variant = "branchformer,summarymixing,linear_merge"
        yield pytest.param(AN4 / f"{kind}.yaml", variant, id=f"AN4/{kind}-linear_merge")


def _default(path):
    variant = _value(path, "variant")
    return {"variant": variant} if variant else {}


def test_the_grid_is_found():
    assert {"branchformer", "conformer", "transformer"} <= {*ENCODERS}
    assert {*MODES, *ATTENTION, "hypermixing", "none"} <= {*MIXERS}
    assert config.variants(RECIPE, "size") == ["small"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parts[-3]}/{p.stem}")
def test_variants_are_named_where_they_are_described(path):
    described = (ROOT / "recipes/README.md").read_text()
    described += (path.parents[1] / "README.md").read_text()
    for name in config.variants(path):
        assert f"`{name}`" in described, name


@pytest.mark.parametrize(
    ("recipe", "variant", "said"),
    [
        ("AN4", "branchformer,summarymixing,rope", "'summarymixing' and 'rope' both .* mixer"),
        ("AN4", "branchformer,rope,conformer", "'branchformer' and 'conformer' both .* encoder"),
        ("CommonVoice", "fr,it,branchformer,rope", "'fr' and 'it' both name the language"),
    ],
)
def test_variants_that_exclude_each_other(recipe, variant, said):
    path = ROOT / "recipes" / recipe / "hparams/ctc_attention.yaml"
    with pytest.raises(InputError, match=said):
        config.with_variants(str(path), {"variant": variant})


def test_a_size_in_any_place():
    path = str(ROOT / "recipes/LibriSpeech/hparams/ctc_attention.yaml")
    last = config.with_variants(path, {"variant": "branchformer,rope,small"})
    first = config.with_variants(path, {"variant": "small,branchformer,rope"})
    assert last | {"variant": None} == first | {"variant": None}
    assert first["d_model"] == 192 and first["num_encoder_layers"] == 12


def test_recipes_are_found():
    assert len(RECIPES) >= 7
    sources = [config.source(path) for path in (*RECIPES, *ROOT.glob("recipes/FineTune/*.yaml"))]
    included = {
        name for text, _ in sources for name in re.findall(r"!include:\S*/(\w+.yaml)", text)
    }
    assert included == {path.name for path in ROOT.glob("hparams/*.yaml")}
    bases = {Path(place).resolve() for _, place in sources} - {*RECIPES}
    assert bases == {*ROOT.glob("hparams/recipes/*.yaml")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parts[-3]}/{p.stem}")
def test_a_recipe_repeats_nothing_of_its_base(path):
    _, place = config.source(path)
    ours, base = (config.ruamel.yaml.YAML().load(Path(file)) for file in (path, place))
    if "base" in ours:
        repeated = {
            key for key in ours if key in base and _written(ours[key]) == _written(base[key])
        }
        assert repeated <= {"data_folder"}  # beside which recipes say what it holds
        # What they leave open is by variants.
        open_ = {key for key in base if _written(base[key])[0] == "!PLACEHOLDER"} - ours.keys()
        assert open_ == {"encoder_module", "attention_type", "num_encoder_layers"}


def test_an_experiment_of_ones_own(tmp_path):
    readme = (ROOT / "recipes/README.md").read_text()
    (example,) = re.findall(r"```yaml\n# mine.yaml\n(.*?)```", readme, re.S)
    path = tmp_path / "mine.yaml"
    path.write_text(example.replace("base: ", f"base: {ROOT}/"))
    hparams = _load(path)
    experiment.check(CTCAttentionBrain, str(path), hparams)
    assert hparams["output_folder"] == "results/mine/branchformer,summarymixing/3407"
    assert hparams["speed_perturb"].speeds == [90, 100, 110]
    assert hparams["opt_class"].keywords["weight_decay"] == 0.001
    assert type(hparams["lr_schedule"]).__name__ == "WarmupCosine"
    assert "librispeech" in hparams["prepare"].func.__module__


def _written(value):
    return getattr(getattr(value, "tag", None), "value", None), str(value)


@pytest.mark.parametrize(("path", "variant"), _grid())
def test_recipe_is_built_and_encodes(path, variant, tmp_path):
    changes = _default(path) if variant is None else {"variant": variant}
    if _value(path, "ngram_file"):  # which a run makes
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
    _is_the_variant(modules["Transformer"], hparams, hparams.get("variant"))
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


def _is_the_variant(model, hparams, variant):
    names = (variant or "").split(",")
    encoders = [name for name in names if name in ENCODERS]
    mixers = [name for name in names if name in MIXERS]
    assert [model.encoder_module] == (encoders or [hparams["encoder_module"]])
    for name in mixers:
        cells = [m for m in model.encoder.modules() if isinstance(m, SummaryMixing)]
        if name in MODES:
            assert model.mixer == "SummaryMixing" and hparams["encoder_nhead"] == 1
            assert [cell.mode for cell in cells] == [MODES[name]] * len(model.encoder.layers)
        else:
            assert model.mixer == ATTENTION.get(name, name) and not cells
            assert hparams["encoder_nhead"] > 1
    if model.encoder_module == "branchformer":
        linear = {isinstance(layer.merge_proj, nn.Linear) for layer in model.encoder.layers}
        assert linear == {model.mixer != "SummaryMixing" or "linear_merge" in names}
    if hasattr(model, "decoder"):
        summary = isinstance(model.decoder.layers[0].self_attn, CausalSummaryMixing)
        assert summary == ("summary_decoder" in names)


def _chunks_reach_the_encoder(hparams, encoder, frames):
    """What training draws, the encoder can use; a test's chunks are offline unless given."""
    sampler = hparams["dynchunktrain_config_sampler"]
    drawn = [sampler(Stage.TRAIN) for _ in range(50)]
    try:
        encoder.make_streaming_context(DynChunkTrainConfig(8, 1))
    except InputError:  # it has no chunks
        assert drawn == [None] * 50
        return
    sizes = [chunks.chunk_size for chunks in drawn if chunks is not None]
    assert 10 < len(sizes) < 50
    assert min(sizes) >= 8 and max(sizes) <= 32
    chunks = next(chunks for chunks in drawn if chunks is not None)
    assert encoder(frames, None, dynchunktrain_config=chunks).shape[1] == frames.shape[1]
    assert sampler(Stage.VALID) is None and sampler(Stage.TEST) is None


@pytest.mark.parametrize("name", ["ctc_attention", "transducer"])
def test_modules_are_built_once(name):
    path = next(path for path in RECIPES if f"/{name}.yaml" in _value(path, "model"))
    model = _load(path)["model"]
    for name, module in model["modules"].items():
        assert isinstance(module, nn.Module)
        assert module is model[name]


# Published sizes and settings


def _meta(path, variant, **changes):
    """What a recipe says, and its model without memory for its weights."""
    overrides = {"data_folder": "/none", "speed_perturb": None, "variant": variant} | changes
    with torch.device("meta"):
        return config.load(str(ROOT / "recipes" / path), overrides)


def _millions(*modules):
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


# M parameters of the Transformer part, and of its encoder's layers
LIBRISPEECH_SIZES = {
    "branchformer,summarymixing": (114.2, 86.0),  # published
    "branchformer,rope": (100.0, 71.8),
    "branchformer,relpos": (104.7, 76.6),
    "branchformer,hypermixing": (87.1, 59.0),
    "branchformer,lite": (95.3, 67.1),
    "branchformer,fast": (104.7, 76.6),
    "branchformer,expdecay": (114.2, 86.0),
    "branchformer,none": (76.3, 48.2),
    "conformer,summarymixing": (107.1, 79.0),
    "conformer,relpos": (104.0, 75.9),
    "conformer,rope": (100.8, 72.7),
    "conformer,hypermixing": (92.2, 64.1),
    "conformer,lite": (94.5, 66.4),
    "conformer,fast": (100.8, 72.7),
    "conformer,expdecay": (107.1, 79.0),
    "conformer,none": (88.2, 60.1),
    "transformer,rope": (65.9, 37.8),
    "transformer": (65.9, 37.8),
    "branchformer,summarymixing,summary_decoder": (117.3, 86.0),
    "branchformer,summarymixing,linear_merge": (109.4, 81.3),
}
# M parameters of all modules: with CTC + attention LibriSpeech's, a token adds its embedding and
# two rows
SIZES = {
    "LibriSpeech/hparams/transducer.yaml": {"conformer,fast": 77.5, "conformer,rope": 77.5},
    "VoxPopuli/hparams/transducer.yaml": {"conformer,fast": 71.2, "conformer,rope": 77.5},
    "AISHELL/hparams/ctc_attention.yaml": {
        "branchformer,summarymixing": 118.1,
        "branchformer,lite": 99.2,
        "branchformer,rope": 103.9,
        "transformer": 69.9,
    },
    "CommonVoice/hparams/ctc_attention.yaml": {
        f"{language},{variant}": millions
        for variant, sizes in {
            "branchformer,summarymixing": {"fr": 113.2, "it": 113.2, "nl": 112.2, "en": 119.3},
            "branchformer,rope": {"fr": 99.0, "it": 99.0, "nl": 98.0, "en": 105.1},
            "branchformer,relpos": {"nl": 102.7},
            "conformer,relpos": {"fr": 103.0, "it": 103.0, "en": 109.1},
            "conformer,rope": {"en": 106.0},
        }.items()
        for language, millions in sizes.items()
    },
    "TEDLIUM2/hparams/ctc_attention.yaml": {
        "branchformer,summarymixing": 113.2,
        "branchformer,rope": 99.0,
        "branchformer,relpos": 103.7,
        "conformer,rope": 99.8,
    },
}


def _of_full_size(path, variant):
    return _meta(path, variant, **({} if "," in variant else {"attention_type": "regularMHA"}))


@pytest.mark.parametrize("variant", LIBRISPEECH_SIZES)
def test_sizes_of_librispeech(variant):
    hparams = _of_full_size("LibriSpeech/hparams/ctc_attention.yaml", variant)
    _encodes_at_size(hparams)
    model = hparams["model"]["Transformer"]
    total, in_encoder = LIBRISPEECH_SIZES[variant]
    assert _millions(model) == pytest.approx(total, abs=0.05)
    assert _millions(model.encoder) == pytest.approx(in_encoder, abs=0.05)


def _encodes_at_size(hparams):
    """Two seconds and one second, without memory for what is computed."""
    modules = {name: module.eval() for name, module in hparams["model"]["modules"].items()}
    tokens = hparams["output_neurons"]
    with torch.device("meta"):
        features, lengths = torch.zeros(2, 200, hparams["n_mels"]), torch.tensor([200, 100])
        said = torch.ones(2, 3, dtype=torch.long)
        frames, lengths = modules["CNN"](features, lengths)
        if _brain(hparams) is CTCAttentionBrain:
            encoded, decoded = modules["Transformer"](frames, said, lengths)
            assert modules["seq_lin"](decoded).shape == (2, 3, tokens)
        else:
            encoded = modules["Transformer"](frames, None, lengths)
            predicted, _ = modules["predictor"](said)
            joint = modules["joiner"](encoded.unsqueeze(2), predicted.unsqueeze(1))
            assert joint.shape == (2, 50, 3, tokens)
        assert encoded.shape == (2, 50, 512)
        assert modules["ctc_lin"](encoded).shape == (2, 50, tokens)


@pytest.mark.parametrize(
    ("path", "variant"), [(path, variant) for path, sizes in SIZES.items() for variant in sizes]
)
def test_sizes_of_other_corpora(path, variant):
    hparams = _of_full_size(path, variant)
    _encodes_at_size(hparams)
    millions = _millions(*hparams["model"]["modules"].values())
    assert millions == pytest.approx(SIZES[path][variant], abs=0.05)


def test_the_whole_grid_has_its_sizes():
    grid = {f"{encoder},{mixer}" for encoder in ("conformer", "branchformer") for mixer in MIXERS}
    assert grid <= {*LIBRISPEECH_SIZES}


def test_every_row_of_a_published_table_has_its_size():
    known = SIZES | {"LibriSpeech/hparams/ctc_attention.yaml": LIBRISPEECH_SIZES}
    for path in (ROOT / "hparams/tables").glob("*.yaml"):
        for row in [] if path.stem.startswith("an4") else tables.read(path)["rows"]:
            sizes = known[row["recipe"].removeprefix("recipes/")]
            assert row["options"]["variant"] in sizes, path


def _small_size(path, variant):
    modules = _meta(path, f"small,{variant}")["model"]["modules"]
    return _millions(*modules.values())


@pytest.mark.parametrize("mixer", ["summarymixing", "rope"])
@pytest.mark.parametrize("encoder", ["conformer", "branchformer"])
@pytest.mark.parametrize("path", ["LibriSpeech", "CommonVoice", "AISHELL", "TEDLIUM2", "AN4"])
def test_small_is_of_10_to_15_million(path, encoder, mixer):
    language = "nl," if path == "CommonVoice" else ""  # of the fewest tokens
    size = _small_size(f"{path}/hparams/ctc_attention.yaml", f"{language}{encoder},{mixer}")
    assert 10 < size < 15


@pytest.mark.parametrize(
    ("path", "variant", "low", "high"),
    [
        # The largest and the smallest of each of recipes/README.md's ranges
        ("LibriSpeech/hparams/ctc_attention.yaml", "branchformer,expdecay", 14, 15),
        ("AN4/hparams/ctc_attention.yaml", "branchformer,none", 7, 8.5),
        ("LibriSpeech/hparams/transducer.yaml", "branchformer,summarymixing", 12, 15),
        ("VoxPopuli/hparams/transducer.yaml", "branchformer,summarymixing", 11, 15),
        ("AN4/hparams/transducer.yaml", "branchformer,none", 7, 8),
        ("LibriSpeech/hparams/ctc_attention.yaml", "transformer,summarymixing", 9, 10),
        ("AN4/hparams/transducer.yaml", "transformer,none", 3, 4),
    ],
)
def test_other_small_sizes(path, variant, low, high):
    assert low < _small_size(path, variant) < high


def test_small_ranges_are_the_readmes():
    text = " ".join((ROOT / "recipes/README.md").read_text().split())
    assert "10 to 15 M parameters" in text and "7 to 15 M with other mixers" in text
    assert "3 to 10 M with a Transformer encoder" in text


def test_halves_of_the_fast_cell_follow_the_width():
    path = "VoxPopuli/hparams/transducer.yaml"
    assert _meta(path, "conformer,fast")["local_proj_out_dim"] == 256  # published
    assert _meta(path, "conformer,fast,small")["local_proj_out_dim"] == 96


SETTINGS = {
    # peak, warm-up, seconds and utterances of a GPU's batch, seconds of a step, epochs, tokens:
    # published but for the Conformer's warm-up and the steps of all but LibriSpeech
    "LibriSpeech/ctc_attention branchformer,summarymixing": (
        5e-4, 30000, 500, 128, 2000, 120, 5000, "ctc_weight: 0.3, label_smoothing: 0.0",
    ),
    "LibriSpeech/ctc_attention conformer,rope": (
        8e-4, 25000, 500, 256, 2000, 120, 5000, "label_smoothing: 0.1, lm_weight: 0.66",
    ),
    "LibriSpeech/transducer conformer,fast": (
        8e-4, 25000, 150, 128, 2400, 100, 1000, "ctc_epochs: 60, total_steps: 210000",
    ),
    "VoxPopuli/transducer conformer,fast": (
        8e-4, 15000, 150, 128, 2400, 100, 1000, "ctc_weight: 0.4, total_steps: 70000",
    ),
    "CommonVoice/ctc_attention fr,branchformer,summarymixing": (
        8e-4, 25000, 500, 128, 1000, 120, 1000, "max_seconds: 10.0, test_ctc_weight: 0.3",
    ),
    "CommonVoice/ctc_attention it,branchformer,rope": (
        5e-4, 25000, 500, 128, 1000, 100, 1000, "language: it, test_beam_size: 80",
    ),
    "CommonVoice/ctc_attention nl,branchformer,lite": (
        8e-4, 25000, 500, 128, 1000, 100, 350, "language: nl, label_smoothing: 0.0",
    ),
    # not published: Common Voice's English and TED-LIUM 2
    "CommonVoice/ctc_attention en,branchformer,summarymixing": (
        8e-4, 25000, 500, 128, 1000, 120, 5000, "language: en, accents: False",
    ),
    "TEDLIUM2/ctc_attention branchformer,summarymixing": (
        8e-4, 25000, 500, 256, 1000, 120, 1000, "label_smoothing: 0.1, test_ctc_weight: 0.4",
    ),
    "AISHELL/ctc_attention branchformer,summarymixing": (
        8e-4, 25000, 500, 128, 1000, 200, 4230, "test_beam_size: 10, label_smoothing: 0.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_published_settings(name):
    peak, warmup, seconds, utterances, step, epochs, tokens, more = SETTINGS[name]
    recipe, variant = name.split()
    hparams = _meta(recipe.replace("/", "/hparams/") + ".yaml", variant)
    schedule = hparams["lr_schedule"]
    rates = [schedule(n, n / 1e6) for n in (warmup // 2, warmup, 2 * warmup)]
    assert rates[0] == pytest.approx(peak / 2)
    assert rates[1] == pytest.approx(peak) == max(rates)
    assert rates[2] < peak
    for processes in (1, 2, step // seconds):
        batches = accumulation(hparams["global_batch_seconds"], seconds, processes)
        assert batches * processes * seconds == step
    sizes = ("batch_seconds", "max_batch_utterances", "number_of_epochs", "output_neurons")
    assert [hparams[key] for key in sizes] == [seconds, utterances, epochs, tokens]
    for setting in more.split(", "):
        key, value = setting.split(": ")
        assert str(hparams[key]) == value, key
    assert hparams["opt_class"].keywords | {"lr": 0} == {
        "lr": 0,
        "fused": True,
        "betas": [0.9, 0.98],
        "weight_decay": 0.01,
    }


def _refused(overrides, *expected, path=RECIPE):
    with pytest.raises(InputError) as caught:
        config.load(str(path), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_missing_data_folder():
    _refused({}, "data_folder is required", "--data_folder=")


def test_missing_variant():
    path = ROOT / "recipes" / "CommonVoice" / "hparams" / "ctc_attention.yaml"
    expected = "encoder_module is required: add one of branchformer, conformer, transformer to "
    _refused({"data_folder": "x", "variant": "it"}, expected + "--variant, or give", path=path)


def test_unknown_override():
    _refused(SMALL | {"d_modle": 3}, "d_modle", "did you mean d_model?")
    _refused(SMALL | {"xyz": 3}, "xyz", "known are")


def test_no_augmentation():
    no = SMALL | {"spec_augment": None}
    _refused(no, "fea_augment is a part of spec_augment", "give --fea_augment=")
    assert config.load(str(RECIPE), no | {"fea_augment": None})["fea_augment"] is None


def test_unknown_key_on_the_way_into_a_fragment():
    _refused(SMALL | {"model": {"dropuot": 0.2}}, "dropuot", "did you mean dropout?")


def test_misspelt_key_inside_a_recipes_include(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_elsewhere().replace("  d_model: !ref", "  d_modell: !ref"))
    _refused(SMALL, "d_modell", "ctc_attention.yaml", "did you mean d_model?", path=recipe)


def test_misspelt_argument_inside_a_fragment(tmp_path):
    fragment = (ROOT / "hparams" / "ctc_attention.yaml").read_text()
    (tmp_path / "fragment.yaml").write_text(fragment.replace("  csgu_linear", "  csg_linear"))
    text = re.sub(r"!include:\S*/ctc_attention", "!include:fragment", _elsewhere())
    (tmp_path / "recipe.yaml").write_text(text)
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


def _elsewhere():
    """The text of a recipe and its base, for a file in any folder."""
    text, place = config.source(RECIPE)
    folder = Path(place).parent
    text = re.sub(r"^- (\S+/variants)$", lambda found: f"- {folder / found[1]}", text, flags=re.M)
    return re.sub(r"!include:(\S+)", lambda found: f"!include:{folder / found[1]}", text)


def _changed(tmp_path, before, after):
    recipe = tmp_path / "recipe.yaml"
    text = _elsewhere()
    assert before in text
    recipe.write_text(text.replace(before, after))
    hparams = config.load(str(recipe), SMALL)
    experiment.check(CTCAttentionBrain, str(recipe), hparams)


def test_keys_of_a_recipe_that_are_missing_or_misspelt(tmp_path):
    _changed(tmp_path, "seed", "seed")
    with pytest.raises(InputError, match="the key 'valid_batch_size' is missing"):
        _changed(tmp_path, "\nvalid_batch_size: 20\n", "\n")
    with pytest.raises(InputError, match="nothing reads the key .precison"):
        _changed(tmp_path, "precision:", "precison:")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parts[-3]}/{p.stem}")
def test_recipe_is_complete(path):
    hparams = _load(path, **_default(path))
    experiment.check(_brain(hparams), str(path), hparams)


def test_recipe_of_another_script():
    for brain, name, missing in (
        (CTCAttentionBrain, "transducer", "seq_lin"),
        (TransducerBrain, "ctc_attention", "predictor"),
    ):
        path = AN4 / f"{name}.yaml"
        with pytest.raises(InputError, match=f"no {missing}, which {brain.__name__} trains"):
            experiment.check(brain, str(path), _load(path))


def test_fixed_parts_of_an_experiment(tmp_path):
    path = str(RECIPE)
    saved = tmp_path / "hyperparams.yaml"
    saved.write_text(config.resolved(path, SMALL))
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    check = config.check_same_experiment
    check(path, SMALL, str(tmp_path))
    check(path, SMALL | {"number_of_epochs": 99, "data_folder": "/moved"}, str(tmp_path))
    check(path, SMALL | {"model": {"activation_checkpointing": True}}, str(tmp_path))
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
