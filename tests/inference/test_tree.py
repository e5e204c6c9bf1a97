"""Trees of classes and arguments: from recipes, into objects and YAML."""

import inspect
import pydoc
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from summarymixing.decoding import JointBeamSearch
from summarymixing.errors import InputError
from summarymixing.inference import tree
from summarymixing.training import config

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("recipes/*/hparams/*.yaml"))


def _read(path):
    overrides = {"data_folder": "none", "output_folder": "none"}
    if "\nngram_file:" in config.source(path)[0]:  # a run makes it
        overrides["ngram_file"] = None
    return tree.read_yaml(config.resolved(path, overrides))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.parts[-3::2]))
def test_every_recipe_can_be_a_package(path):
    recipe = _read(path)
    keys = ("compute_features", "valid_search", "test_search")
    parts = {key: recipe[key] for key in keys} | recipe["model"]["modules"]
    parts = tree.allowed(parts)
    with torch.device("meta"):
        built = tree.build({"test_search": parts["test_search"], "CNN": parts["CNN"]})
    maker = pydoc.locate(recipe["test_search"]["class"])
    assert callable(built["test_search"]) and (
        type(built["test_search"]) is maker or not inspect.isclass(maker)
    )


def test_all_that_is_allowed_is_there():
    assert all(pydoc.locate(name) is not None for name in tree.ALLOWED)


TEXT = """\
features: !new:summarymixing.models.features.LogMel
  n_mels: 12
  top_db:
search: !new:summarymixing.decoding.searches.JointBeamSearch
  temperature: 1e-1
  lm_file:
linear: !new:torch.nn.LeakyReLU [0.25]
many:
- !name:torch.nn.GELU
- !name:torch.nn.ELU
  alpha: .inf
- (3, 4)
- yes
- '(3'
"""


def test_there_and_back():
    """What the tree builds, and the YAML made of it, is what HyperPyYAML builds."""
    found = tree.allowed(tree.read_yaml(TEXT))
    assert found["search"]["class"] == "summarymixing.decoding.JointBeamSearch"
    again = tree.allowed(tree.read_yaml(tree.to_yaml(found)))
    assert again == found
    for built in (
        tree.build(found),
        load_hyperpyyaml(TEXT),
        load_hyperpyyaml(tree.to_yaml(found)),
    ):
        assert built["features"].top_db is None and built["features"].frames(1600) == 11
        assert isinstance(built["search"], JointBeamSearch)
        assert built["search"].temperature == 0.1 and built["search"].lm_file is None
        assert built["linear"].negative_slope == 0.25
        gelu, elu, *rest = built["many"]
        assert gelu is torch.nn.GELU and elu().alpha == float("inf")
        assert rest == [(3, 4), "yes", "(3"]


@pytest.mark.parametrize(
    "node, message",
    (
        ({"class": "os.system", "arguments": ["true"]}, "os.system is nothing"),
        ({"name": "builtins.eval"}, "builtins.eval is nothing"),
        ([{"deep": {"class": "torch.load", "arguments": {"f": "x"}}}], "torch.load is nothing"),
        ({"class": "torch.nn.GELU", "arguments": [{"class": "os.getcwd"}]}, "os.getcwd"),
        ({"class": "torch.nn.GELU", "arguments": "tanh"}, "a dictionary or a list"),
        ({"class": "torch.nn.GELU", "arguments": {"no": 1}}, "torch.nn.GELU: TypeError"),
        (
            {"class": "summarymixing.decoding.JointBeamSearch", "arguments": {"beam_size": 0}},
            "beam_size must be",
        ),
        (
            {
                "class": "summarymixing.decoding.JointBeamSearch",
                "arguments": {"lm_file": "/etc/hostname"},
            },
            "lm_file=/etc/hostname is no file of the package",
        ),
        ({"file": "../other"}, "'../other' is no file of the package"),
        ({"file": "/etc/hostname"}, "is no file of the package"),
        ({"file": 3}, "3 is no file of the package"),
        ({"file": "not_there"}, "not_there: no such file"),
    ),
)
def test_what_is_not_built(tmp_path, node, message):
    with pytest.raises(InputError, match=message) as error:
        tree.build(node, tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_is_a_path_in_the_folder(tmp_path):
    (tmp_path / "lm.ckpt").write_text("")
    assert tree.build([{"file": "lm.ckpt"}], tmp_path) == [str(tmp_path / "lm.ckpt")]


@pytest.mark.parametrize(
    "text, message",
    (
        ("a: !new:os.PathLike", "os.PathLike is nothing"),
        ("a: !new:no.such.Class", "no.such.Class is nothing"),
        ("a: !name:os.system", "os.system is nothing"),
        ("a: !apply:os.getcwd", "os.getcwd is nothing"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: !ref <b>", "could not determine a constructor"),
        ("a: [", "expected"),
        ("- a", "not a YAML mapping"),
        ("a: &x !new:torch.nn.ELU\n  alpha: 2\nb: *x", "torch.nn.ELU is in two places"),
    ),
)
def test_yaml_that_is_no_tree(text, message):
    with pytest.raises(InputError, match=message):
        tree.allowed(tree.read_yaml(text))
