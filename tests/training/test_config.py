"""Whether a folder's checkpoints are of the experiment that is asked for."""

import itertools
import shutil

import pytest

from summarymixing.errors import InputError
from summarymixing.training import config

RECIPE = """
d_model: 4
threads: 1
model:
  decoder_mixer: attention
  width: !ref <d_model>
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe, and a folder with a checkpoint of it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    (tmp_path / "save" / "CKPT+now").mkdir(parents=True)
    (tmp_path / "hyperparams.yaml").write_text(config.resolved(path, {}))
    return path


def test_the_same_experiment(recipe, tmp_path):
    config.check_same_experiment(recipe, {}, tmp_path)
    config.check_same_experiment(recipe, {"threads": 2}, tmp_path)


@pytest.mark.parametrize("overrides", ({"d_model": 5}, {"model": {"decoder_mixer": "none"}}))
def test_another_experiment(recipe, tmp_path, overrides):
    with pytest.raises(InputError, match="different experiment.*(d_model|decoder_mixer) was"):
        config.check_same_experiment(recipe, overrides, tmp_path)


def test_a_run_of_before_a_key_was_there_goes_on(recipe, tmp_path):
    saved = tmp_path / "hyperparams.yaml"
    saved.write_text(saved.read_text().replace("  decoder_mixer: attention\n", ""))
    config.check_same_experiment(recipe, {}, tmp_path)
    with pytest.raises(InputError, match="decoder_mixer was attention and is none now"):
        config.check_same_experiment(recipe, {"model": {"decoder_mixer": "none"}}, tmp_path)


@pytest.mark.parametrize(
    ("options", "key"),
    ((["--d_model=5", "--d_model", "6"], "d_model"), (["--model={a: 1, a: 2}"], "a")),
)
def test_an_option_given_twice(options, key):
    _, _, overrides = config.arguments(["recipe.yaml", *options])
    with pytest.raises(InputError, match=f"^command line: {key} is given twice$"):
        config.read_overrides(overrides)


@pytest.mark.parametrize(
    ("content", "said"),
    ((b"", "not a YAML mapping"), (b"# \xe9\nwidth: 1", "not a text in UTF-8"), (None, "Is a dir")),
)
def test_a_variant_that_is_none(grid, content, said):
    file = grid.parents[1] / "shared" / "none.yaml"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(InputError, match=f"none.yaml: .*{said}"):
        config.variants(str(grid), "mixer")
    with pytest.raises(InputError, match=f"none.yaml: .*{said}"):
        _sizes(grid, {"variant": "none"})


# Variants


@pytest.fixture
def grid(tmp_path):
    """A recipe with variants, its own and those that it shares."""
    for name, text in {
        "recipes/recipe.yaml": """
variants: [../shared, own]
variant: tall
output_folder: !ref results/<variant>
width: 1
height: 2
layers: !ref <height> * 2
model: !include:../whole.yaml
  width: !ref <width>
  heads: 1
""",
        "whole.yaml": "width: !PLACEHOLDER\nheads: 2\n",
        "shared/tall.yaml": "height: 20\nwidth: 5",
        "shared/wide.yaml": "width: 10",
        "shared/wide.whole.yaml": "width: 11",
        "shared/wide.part.yaml": "nothing: knows this",
        "shared/heads.yaml": "model: {heads: 4}",
        "shared/of_parts.part.yaml": "nothing: knows this",
        "recipes/own/tall.yaml": "height: 30",
        "shared/thin.yaml": "kind: encoder\nwidth: 2\nheight: 8",
        "shared/thick.yaml": "kind: encoder\nwidth: 9\nheight: 8",
        "recipes/own/thick.yaml": "width: 10",
        "shared/slow.yaml": "kind: mixer\nwidth: 3",
        "shared/fast.whole.yaml": "kind: mixer\nwidth: 4",
        "shared/flat.yaml": "kind: size\nheight: 1",
        "recipes/own/greek.yaml": "kind: language\nheight: 7",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "recipes" / "recipe.yaml"


def _sizes(path, overrides=""):
    loaded = config.load(str(path), overrides)
    return loaded["width"], loaded["height"], loaded["layers"], loaded["model"]["width"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, (5, 30, 60, 5)),  # the default; the recipe's own file after the shared one
        ({"variant": "wide"}, (11, 2, 4, 11)),  # that of the model's kind after the general one
        ({"variant": "wide,tall"}, (5, 30, 60, 5)),
        ({"variant": "tall, wide"}, (11, 30, 60, 11)),
        ({"variant": "tall,wide", "width": 7}, (7, 30, 60, 7)),
        ({"variant": None}, (1, 2, 4, 1)),
        ("variant: tall,wide\nheight: 3", (11, 3, 6, 11)),
    ],
)
def test_variants(grid, overrides, expected):
    assert _sizes(grid, overrides) == expected


def test_variants_reach_into_what_is_included(grid):
    loaded = config.load(str(grid), {"variant": "heads,wide", "model": {"width": 3}})
    assert loaded["model"] == {"heads": 4, "width": 3}
    assert loaded["output_folder"] == "results/heads,wide"
    assert config.variants(grid) == sorted(["heads", "tall", "wide", *KINDS])
    for name in ("encoder", "mixer", "size", "language"):
        assert config.variants(grid, name) == [key for key in sorted(KINDS) if KINDS[key] == name]


# Of the fixture's variants, those with a kind
KINDS = {
    "thin": "encoder",
    "thick": "encoder",
    "slow": "mixer",
    "fast": "mixer",
    "flat": "size",
    "greek": "language",
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("thick", (10, 8)),
        ("thin,slow", (3, 8)),  # a mixer after the encoder
        ("thin,flat", (2, 1)),  # a size after the encoder
        ("thin,flat,greek", (2, 7)),
        ("thin,slow,tall", (5, 30)),  # and then what has no kind
    ],
)
def test_variants_are_applied_in_the_order_of_their_kinds(grid, names, expected):
    for order in itertools.permutations(names.split(",")):
        assert _sizes(grid, {"variant": ",".join(order)})[:2] == expected


@pytest.mark.parametrize("names", list(itertools.permutations(KINDS, 2)), ids=",".join)
def test_two_variants_of_one_kind(grid, names):
    overrides = {"variant": ",".join(names)}
    if KINDS[names[0]] != KINDS[names[1]]:
        config.load(str(grid), overrides)
        return
    expected = f"variant: '{names[0]}' and '{names[1]}' both name the {KINDS[names[0]]}, of which"
    with pytest.raises(InputError, match=expected) as caught:
        config.load(str(grid), overrides | {"variant": f"{names[0]},tall,flat,{names[1]}"})
    assert "\n" not in str(caught.value)


def test_resolved_text_has_its_variants_applied(grid, tmp_path):
    saved = tmp_path / "elsewhere" / "hyperparams.yaml"
    saved.parent.mkdir()
    saved.write_text(config.resolved(grid, {"variant": "tall,wide"}))
    assert _sizes(saved) == (11, 30, 60, 11)
    assert config.load(str(saved))["variant"] == "tall,wide"
    with pytest.raises(InputError, match="its variants are applied already"):
        config.load(str(saved), {"variant": "wide"})


def test_a_missing_key_of_a_recipe_whose_variants_are_applied(tmp_path):
    saved = tmp_path / "hyperparams.yaml"
    saved.write_text("variants: null\nwidth: !PLACEHOLDER\n")
    assert config.variants(saved) == []
    with pytest.raises(InputError, match="width is required: give --width=…$"):
        config.load(str(saved))


def test_variants_are_part_of_the_experiment_by_their_values(grid, tmp_path):
    (tmp_path / "save" / "CKPT+now").mkdir(parents=True)
    (tmp_path / "hyperparams.yaml").write_text(config.resolved(grid, {"variant": "tall,wide"}))
    config.check_same_experiment(grid, {"variant": "wide,tall", "width": 11}, tmp_path)
    with pytest.raises(InputError, match="different experiment: height was 30 and is 2 now"):
        config.check_same_experiment(grid, {"variant": "wide"}, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"variant": "wde"}, "variant: there is no 'wde' for .*did you mean wide"),
        ({"variant": "wide,"}, "variant: there is no '' for .*there are fast, flat, .*wide"),
        ({"variant": "of_parts"}, "there is no 'of_parts'"),
        ({"variant": 3}, "names with commas between them are expected, got 3"),
        ({"variant": "broken"}, "broken.yaml.*line"),
        ({"variant": "typo"}, "typo.yaml: no key 'widht' in .*did you mean width"),
        ({"variant": "thin,thin"}, "'thin' and 'thin' both name the encoder"),
        ({"variant": "odd"}, "odd.yaml: kind is one of encoder, mixer, .*, not 'mixre'"),
        ({"variants": "gone"}, "there is no folder .*gone"),
    ],
)
def test_mistakes_in_variants(grid, overrides, message):
    if overrides.get("variant") == "broken":
        (grid.parent / "own" / "broken.yaml").write_text("a: [1")
    if overrides.get("variant") == "typo":
        (grid.parent / "own" / "typo.yaml").write_text("widht: 3")
    if overrides.get("variant") == "odd":
        (grid.parent / "own" / "odd.yaml").write_text("kind: mixre")
    with pytest.raises(InputError, match=message) as caught:
        config.load(str(grid), overrides)
    assert "\n" not in str(caught.value)


def test_variants_of_a_recipe_without_any(recipe):
    with pytest.raises(InputError, match="no key 'variant'"):
        config.load(str(recipe), {"variant": "wide"})


# A base


def _write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


BASE = """
variants: [../variants]
variant: null
output_folder: !PLACEHOLDER
width: 4                        # features
deep: !new:collections.Counter
  layers: 2
  heads: !ref <width>
model: !include:../model.yaml
  width: !ref <width>
parts: !include:../parts.yaml {}
folder: !ref <deep[layers]>
"""


@pytest.fixture
def based(tmp_path):
    """A recipe on top of another, each in its folder, as recipes of corpora are."""
    _write(
        tmp_path,
        hparams__recipes__base=BASE,
        hparams__model="width: !PLACEHOLDER\nheads: 2\n",
        hparams__parts="low: 1\nhigh: 2\n",
        hparams__variants__wide="width: 40\n",
        mine__variants__heads="model: {heads: 5}\n",
        mine__recipe="""
base: ../hparams/recipes/base.yaml
variants: [../hparams/variants, variants]
output_folder: !ref results/<width>
width: 6
name: !ref <output_folder>/name
deep:
  layers: 3
  name: !ref <name>
parts: {high: 9}
double: !ref <width> * 2
half: !ref <double> // 4
""",
        mine__deeper__recipe="""
base: ../recipe.yaml
variant: wide,heads
deep: !new:dict {layers: 1}
""",
    )
    return tmp_path / "mine" / "recipe.yaml"


def test_a_base(based):
    loaded = config.load(str(based))
    assert loaded["deep"] == {"layers": 3, "heads": 6, "name": "results/6/name"}
    assert type(loaded["deep"]).__name__ == "Counter"
    assert loaded["model"] == {"width": 6, "heads": 2} and loaded["parts"] == {"low": 1, "high": 9}
    assert (loaded["double"], loaded["half"]) == (12, 3) and "base" not in loaded
    # New keys come last, but for a reference that is referred to.
    keys = "variants variant output_folder width name deep model parts folder double half"
    assert [*loaded] == keys.split()


def test_a_key_of_the_base_refers_to_a_new_one(based):
    _write(
        based.parent,
        after="base: recipe.yaml\nwidth: !ref <more>\nmore: !ref <least> + 2\nleast: 1\n",
    )
    loaded = config.load(str(based.parent / "after.yaml"))
    assert loaded["width"] == 3 and loaded["deep"]["heads"] == 3 and loaded["half"] == 1
    _write(based.parent, round="base: recipe.yaml\nwidth: !ref <more>\nmore: !ref <width>\n")
    with pytest.raises(InputError, match="round.yaml"):
        config.load(str(based.parent / "round.yaml"))


def test_a_base_with_variants_and_options(based):
    assert config.variants(based) == ["heads", "wide"]
    loaded = config.load(str(based), {"variant": "wide,heads", "deep": {"layers": 7}})
    assert loaded["deep"]["layers"] == 7 and loaded["model"] == {"width": 40, "heads": 5}
    assert loaded["name"] == "results/40/name"
    saved = based.parent / "hyperparams.yaml"
    saved.write_text(config.resolved(based, {"variant": "wide"}))
    assert config.load(str(saved)) == config.load(str(based), {"variant": "wide"})
    with pytest.raises(InputError, match="command line: model: no key 'head' in .*model.yaml"):
        config.load(str(based), {"model": {"head": 1}})


def test_a_base_of_a_base(based, monkeypatch):
    path = based.parent / "deeper" / "recipe.yaml"
    for folder, given in ((based.parent, "deeper/recipe.yaml"), (path.parent, "recipe.yaml")):
        monkeypatch.chdir(folder)
        loaded = config.load(given)
        assert loaded["deep"] == {"layers": 1}  # a tag of its own: nothing of the base's
        assert loaded["model"] == {"width": 40, "heads": 5} and loaded["parts"]["high"] == 9


@pytest.mark.parametrize("name", ["ä ö", "实验", "a}b", "a%20b", "a#b", "a!b", "a'b", 'a"b'])
def test_a_base_and_a_recipe_in_any_folder(based, tmp_path, name):
    moved = tmp_path / name
    shutil.copytree(based.parents[1] / "hparams", moved / "hparams")
    shutil.copytree(based.parent, moved / f"mine {name}")
    expected = config.load(str(based), {"variant": "wide,heads"})
    path = moved / f"mine {name}" / "recipe.yaml"
    assert config.load(str(path), {"variant": "wide,heads"}) == expected
    link = tmp_path / "link"
    link.symlink_to(moved, target_is_directory=True)
    (tmp_path / "recipe.yaml").symlink_to(path)
    for given in (link / f"mine {name}" / "recipe.yaml", tmp_path / "recipe.yaml"):
        assert config.load(str(given), {"variant": "wide,heads"}) == expected


def test_folders_of_variants_by_option_are_relative_to_the_recipe(based):
    _write(based.parent, own__tall="width: 9\n")
    assert config.load(str(based), {"variants": "own", "variant": "tall"})["width"] == 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: gone.yaml", "recipe.yaml: base: there is no file .*gone.yaml"),
        ("base: recipe.yaml", "recipe.yaml: base: .*recipe.yaml would be its own base"),
        ("base: other.yaml", "other.yaml: base: .*recipe.yaml would be its own base"),
        ("base: broken.yaml", "broken.yaml: .*line 2"),
        (
            "base: [a, b]",
            "recipe.yaml: base: the file of another recipe is expected, got .'a', 'b'",
        ),
        ("base:", "recipe.yaml: base: the file of another recipe is expected, got None"),
        ("base: .", "recipe.yaml: base: there is no file"),
        ("base: noise.yaml", "noise.yaml: not a text in UTF-8"),
        ("base: left.yaml\na: 2", "left.yaml is what a run has left.*give the recipe of that run"),
        ("base: fine.yaml\nbase: fine.yaml", "recipe.yaml: base is given twice"),
        ("base: fine.yaml\na: 1\na: 2", "recipe.yaml: a is given twice"),
        ("base: twice.yaml", "twice.yaml: a is given twice"),
        ("base: fine.yaml\n7: 2", "recipe.yaml: keys are names, got 7"),
        ("base: fine.yaml\na: &x 1", "recipe.yaml: .* no anchor .x.: use !ref"),
        ("base: anchor.yaml", "anchor.yaml: .* no anchor .x.: use !ref"),
        (
            "base: fine.yaml\nmore:\n- !include:x.yaml",
            "recipe.yaml: .*cannot include a file .!include:x",
        ),
        (
            "base: fine.yaml\nvariants: 7",
            "recipe.yaml: variants: a list of folders is expected, got 7",
        ),
        (
            "base: fine.yaml\nvariants: [[a]]",
            "recipe.yaml: variants: a list of folders is expected",
        ),
        ("base: fine.yaml\nvariants: own", "recipe.yaml: variants: there is no folder .*own"),
        ("base: fine.yaml\na: {b: 1}", "recipe.yaml: a: fine.yaml has no mapping there"),
        (
            "base: fine.yaml\ndeep: {inner: {b: 1}}",
            "recipe.yaml: deep: inner: fine.yaml has no mapping there.*give it a tag",
        ),
        ("base: fine.yaml\nnew: {b: 1}", "recipe.yaml: no key 'new' in fine.yaml; known are"),
        (
            "base: ../hparams/recipes/base.yaml\npart: {high: 1}",
            "recipe.yaml: no key 'part' in .*base.yaml; did you mean parts?",
        ),
        (
            "base: ../hparams/recipes/base.yaml\noutput_folder: o\nparts: {hihg: 1}",
            "recipe.yaml: parts: no key 'hihg' in .*parts.yaml; did you mean high?",
        ),
    ],
)
def test_a_base_that_is_none(based, text, said, monkeypatch):
    _write(
        based.parent,
        other="base: recipe.yaml\n",
        broken="a: 1\nb: }\n",
        left="variants:\na: 1\n",
        fine="a: 1\ndeep: !new:dict {inner: !new:dict }\n",
        twice="a: 1\na: 2\n",
        anchor="a: &x 1\nb: *x\n",
    )
    (based.parent / "noise.yaml").write_bytes(bytes(range(256)))
    based.write_text(text + "\n")
    monkeypatch.chdir(based.parent)
    with pytest.raises(InputError, match=said) as caught:
        config.load(str(based))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
