"""The shared Brain's own steps."""

import pytest
import torch
from torch import nn

from summarymixing.training import config
from summarymixing.training.seq2seq import CTCAttentionBrain


@pytest.fixture
def brain(tiny, tmp_path):
    recipe, _, *options = tiny("/none", tmp_path)
    hparams = config.load(recipe, "\n".join(o[2:].replace("=", ": ", 1) for o in options))
    brain = CTCAttentionBrain(
        hparams["model"]["modules"], hparams["opt_class"], hparams, {"device": "cpu"}
    )
    brain.init_optimizers()
    return brain


def test_all_groups_are_clipped_together(brain):
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    brain.optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=1.0)
    first.grad, second.grad = torch.full((3,), 30.0), torch.full((4,), 40.0)
    norm = torch.cat([first.grad, second.grad]).norm()
    brain.optimizers_step()
    torch.testing.assert_close(first.data, torch.full((3,), -30.0 * 5 / norm))
    torch.testing.assert_close(second.data, torch.full((4,), -40.0 * 5 / norm))


def test_step_with_an_infinite_gradient_is_skipped_whole_and_counted(brain, caplog):
    good, bad = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    brain.optimizer = torch.optim.SGD([good, bad], lr=1.0)
    good.grad, bad.grad = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    brain.optimizers_step()
    assert good.eq(1).all() and bad.eq(1).all()
    assert good.grad is None and bad.grad is None
    assert brain.skipped_steps == 1
    assert "skipped" in caplog.text


def test_accuracy_counts_valid_tokens_only(brain):
    brain._correct = brain._predicted = 0
    scores = nn.functional.one_hot(torch.tensor([[1, 2, 3], [1, 0, 0]]), 5).float()
    brain.count_accuracy(scores, torch.tensor([[1, 2, 4], [1, 0, 0]]), torch.tensor([3, 1]))
    assert (brain._correct, brain._predicted) == (3, 4)


def test_normalisation_sees_the_valid_frames_only(brain):
    """The statistics of a batch are those of its utterances one after the other."""
    lengths = torch.tensor([50, 33, 7, 49])
    features = torch.randn(4, 50, 80) * 3 + 2
    brain.modules.train()
    brain.modules.normalize(features, (lengths - 0.5) / 50, epoch=1)
    valid = torch.cat([row[:n] for row, n in zip(features, lengths)])
    torch.testing.assert_close(brain.modules.normalize.glob_mean.flatten(), valid.mean(0))
    assert brain.modules.normalize.count == len(valid)
