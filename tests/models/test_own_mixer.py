"""A mixer that is a file of its own: `attention_type: MODULE.CLASS`."""

import re
import sys
from pathlib import Path

import pytest
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.errors import InputError
from summarymixing.inference import load, tree
from summarymixing.inference.packaging import package
from summarymixing.models.mixers import RoPEAttention, make_mixer
from summarymixing.training.experiment import main
from summarymixing.training.seq2seq import CTCAttentionBrain

README = Path(__file__).parents[2] / "recipes" / "README.md"

FILE = """
import torch
from speechbrain.nnet.attention import RelPosMHAXL
from summarymixing.models.mixers import RoPEAttention

class Rotary(RoPEAttention):
    positions = "RoPEMHA"

    def __init__(self, d_model, nhead, dropout):
        super().__init__(d_model, nhead, dropout)

class Relative(RelPosMHAXL):
    positions = "RelPosMHAXL"

    def __init__(self, d_model, nhead, **others):
        super().__init__(d_model, nhead, others["dropout"])
        self.others = others

class Widths(torch.nn.Module):
    def __init__(self, d_model, depth): ...

class Half(torch.nn.Module):
    def stream(self, x, chunks, state, padding=None): ...

class Lost(torch.nn.Module):
    positions = "sinusoids"

def function(d_model): ...
"""
SIZE = {"d_model": 16, "nhead": 4, "d_ffn": 24, "dropout": 0.1}


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    (tmp_path / "own_mixers.py").write_text(FILE)
    (tmp_path / "broken_mixers.py").write_text("1 / 0")
    (tmp_path / "lacking_mixers.py").write_text("import none_of_them")
    (tmp_path / "ended_mixers.py").write_text("raise SystemExit('bye')")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_mixers", None)


@pytest.mark.parametrize("encoder", ("conformer", "branchformer", "transformer"))
@pytest.mark.parametrize("own, ours", (("Rotary", "RoPEMHA"), ("Relative", "RelPosMHAXL")))
def test_it_is_as_one_of_ours(encoder, own, ours, make_model, on_path):
    frames, lengths = torch.randn(2, 9, 12), torch.tensor([9, 5])
    model, expected = make_model(encoder, f"own_mixers.{own}"), make_model(encoder, ours)
    model.load_state_dict(expected.state_dict())
    assert torch.equal(model.encode(frames, lengths), expected.encode(frames, lengths))


def test_layers_in_turn(make_model, on_path):
    model = make_model("conformer", ["none", "own_mixers.Rotary"])
    assert isinstance(model.encoder.layers[1].mha_layer, RoPEAttention)
    with pytest.raises(InputError, match="positions of another kind"):
        make_model("conformer", ["own_mixers.Rotary", "own_mixers.Relative"])


def test_half_a_stream_is_none(on_path, make_model):
    model = make_model("conformer", "own_mixers.Half")
    with pytest.raises(InputError, match="or a class with stream and initial_state; this is conf"):
        model.check_chunks(DynChunkTrainConfig(4, 1))


def test_it_is_given_what_it_names(on_path):
    mixer = make_mixer("own_mixers.Relative", **SIZE, mode="SummaryMixing-lite")
    assert mixer.others == {"d_ffn": 24, "dropout": 0.1, "mode": "SummaryMixing-lite"}


@pytest.mark.parametrize(
    "name, line",
    (
        ("no_mixers.Rotary", "Rotary cannot be imported: No module named 'no_mixers'; is"),
        ("own_mixers.Rotatory", "Rotatory cannot be imported: .*no attribute 'Rotatory'$"),
        ("broken_mixers.Rotary", "broken_mixers.Rotary cannot be imported: division by zero$"),
        ("lacking_mixers.Rotary", "Rotary cannot be imported: No module named 'none_of_them'$"),
        ("ended_mixers.Rotary", "ended_mixers.Rotary cannot be imported: bye$"),
        (".Rotary", ".Rotary cannot be imported"),
        ("own_mixers.", "own_mixers. cannot be imported"),
        ("own_mixers.function", "own_mixers.function is no torch.nn.Module"),
        ("own_mixers.Widths", "Widths: missing a required argument: 'depth'; there are d_model"),
        ("own_mixers.Lost", "Lost.positions must be None or one of RelPosMHAXL, .*got 'sinusoids'"),
        ("rotary", "attention_type must be one of .*MODULE.CLASS of your own.*got 'rotary'"),
    ),
)
def test_what_is_wrong_is_said(name, line, on_path):
    with pytest.raises(InputError, match=line) as found:
        make_mixer(name, **SIZE)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "kinds",
    (
        "own_mixers.Rotary",
        ["none", "own_mixers.Rotary"],
        {"class": "builtins.tuple", "arguments": [["own_mixers.Rotary"]]},
        # A tuple of a dictionary is one of its keys.
        {"class": "builtins.tuple", "arguments": [{"own_mixers.Rotary": "none", "none": "none"}]},
        {"class": "builtins.tuple", "arguments": [[["own_mixers.Rotary"]]]},
        [{"class": "builtins.tuple", "arguments": ["own_mixers.Rotary"]}],
        {"own_mixers.Rotary": "none"},
    ),
)
@pytest.mark.parametrize("by_name", (True, False))
def test_a_package_does_not_import_it(kinds, by_name, on_path):
    arguments = {"tgt_vocab": 11, "input_size": 12, "attention_type": kinds}
    if not by_name:  # its 17th
        d_model, head, layers, mlp = 16, 4, 1, 24
        arguments = [
            *(11, 12, d_model, head, layers, layers, mlp, 0.0, None, "fixed_abs_sine", True, 31),
            *(True, "conformer", None, None, kinds),
        ]
    node = {
        "class": "summarymixing.models.transformer_asr.TransformerASR",
        "arguments": arguments,
    }
    for refuses in (tree.build, tree.check, tree.allowed):
        with pytest.raises(InputError, match="own_mixers.Rotary.* is nothing that a package may"):
            refuses({"Transformer": node})
    assert "own_mixers" not in sys.modules


@pytest.fixture
def of_the_readme(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(# local_mean.py\n.*?)```", README.read_text(), re.S)
    (tmp_path / "local_mean.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "local_mean.LocalMean"
    sys.modules.pop("local_mean", None)


def test_the_example_is_a_mean_over_a_window(of_the_readme):
    mixer = make_mixer(of_the_readme, **SIZE)
    x, padding = torch.randn(1, 50, 16), torch.arange(50)[None] >= 41
    found, _ = mixer(x, x, x, key_padding_mask=padding)
    expected = torch.stack([x[0, max(0, t - 16) : min(t + 17, 41)].mean(0) for t in range(41)])
    torch.testing.assert_close(found[0, :41], mixer.projection(expected))
    assert found.isfinite().all()


def test_the_example_is_trained_and_loaded_but_no_package(
    of_the_readme, corpus, tiny, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    main(CTCAttentionBrain, tiny(corpus, out, attention_type=of_the_readme))
    mixer = load(out).modules["Transformer"].encoder.layers[0].mha_layer
    assert type(mixer).__name__ == "LocalMean"
    with pytest.raises(InputError, match="attention_type: local_mean.LocalMean is nothing that a"):
        package(out, tmp_path / "package")
    monkeypatch.undo()
    sys.modules.pop("local_mean")
    with pytest.raises(InputError, match="local_mean.LocalMean cannot be imported.*PYTHONPATH"):
        load(out)
