"""Whether a folder's checkpoints are of the experiment that is asked for."""

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
