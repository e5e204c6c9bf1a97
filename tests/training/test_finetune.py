"""What a Brain does besides when its model was trained before."""

import importlib.util
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from summarymixing.errors import InputError
from summarymixing.training import config, curves, finetune
from summarymixing.training.batches import Batches
from summarymixing.training.finetune import FineTunedCTCAttention


@pytest.fixture
def make_brain(tiny, tmp_path):
    def make(run_opts=(), **keys):
        recipe, _, *options = tiny("/none", tmp_path, warmup_steps=1, lr=0.01, number_of_epochs=9)
        hparams = config.load(recipe, "\n".join(o[2:].replace("=", ": ", 1) for o in options))
        hparams |= {"avg_metric": "WER"} | keys
        run_opts = {"device": "cpu"} | dict(run_opts)
        brain = FineTunedCTCAttention(
            hparams["model"]["modules"], hparams["opt_class"], hparams, run_opts
        )
        brain.train_loader = SimpleNamespace(batch_sampler=Batches([1.0], 10, 1, 1, seed=1))
        brain.step = hparams["epoch_counter"].current = 1
        return brain

    return make


def step(brain):
    """One with a gradient of ones; the parameters that changed, and by how much at most."""
    parameters = dict(brain._named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    brain.on_fit_batch_start(None, True)
    brain.optimizers_step()
    change = {
        name: (parameter.detach() - before[name]).abs().max()
        for name, parameter in parameters.items()
    }
    return {name: float(largest) for name, largest in change.items() if largest > 0}


def test_every_part_has_its_learning_rate(make_brain):
    scales = {"CNN": 0.5, "Transformer": 0.1, "Transformer.encoder": 0.0}
    brain = make_brain(lr_scale=scales)
    brain.init_optimizers()
    changed = step(brain)
    rate = brain.hparams.lr_schedule(1, brain._progress())
    names = [name for name, _ in brain._named_parameters()]
    assert any(name.startswith("Transformer.encoder.") for name in names)
    for name in names:
        parts = [part for part in scales if name.startswith(part + ".")]
        scale = scales[max(parts, key=len)] if parts else 1.0
        # Adam's first step is the learning rate, but for the decay of the weights.
        assert changed.get(name, 0.0) == pytest.approx(rate * scale, rel=0.03, abs=1e-7), name
    assert brain.optimizer.param_groups[0]["lr"] == rate  # the learning curve shows it


def test_without_scales_it_is_the_plain_optimizer(make_brain):
    brain = make_brain()
    brain.init_optimizers()
    (group,) = brain.optimizer.param_groups
    expected = [id(parameter) for parameter in brain.modules.parameters()]
    assert [id(parameter) for parameter in group["params"]] == expected


def test_vectors_without_decay(make_brain):
    brain = make_brain({"remove_vector_weight_decay": True}, lr_scale={"CNN": 0.5})
    brain.init_optimizers()
    for group in brain.optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0) == (parameter.dim() < 2)


def test_frozen_parts_stay_for_the_first_steps_and_play_no_part_in_clipping(make_brain):
    brain = make_brain(frozen=["CNN", "Transformer.encoder"], freeze_steps=2)
    brain.init_optimizers()
    parts = ("CNN.", "Transformer.encoder.")
    clipped, clip = [], torch.nn.utils.clip_grad_norm_

    def spy(parameters, *args, **kwargs):
        clipped.append(sum(p.grad is not None for p in parameters))
        return clip(parameters, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        changes = [step(brain) for _ in range(3)]
    names = [name for name, _ in brain._named_parameters()]
    free = {name for name in names if not name.startswith(parts)}
    assert 0 < len(free) < len(names)
    assert [set(changed) for changed in changes] == [free, free, set(names)]
    assert clipped == [len(free), len(free), len(names)]
    # Adam begins with them when they do: their first step is a whole one.
    assert changes[2]["CNN.convblock_0.convs.conv_0.conv.weight"] > 0.5 * 0.01


@pytest.mark.parametrize(
    "keys, message",
    (
        ({"lr_scale": {"Transformer.encode": 0.1}}, "lr_scale: .*no part 'Transformer.encode'"),
        ({"lr_scale": {"CNN": "much"}}, "lr_scale must give parts"),
        ({"lr_scale": 0.3}, "lr_scale must give parts"),
        ({"frozen": ["head"]}, "frozen: .*no part 'head'; parts are CNN"),
        ({"frozen": "CNN"}, "frozen must be a list"),
        (
            {"frozen": ["CNN", "Transformer", "ctc_lin", "seq_lin"], "freeze_steps": 1},
            "nothing of the model would be left",
        ),
        ({"freeze_steps": -1}, "freeze_steps must be an integer of at least 0, got -1"),
        ({"freeze_steps": True}, "freeze_steps must be an integer of at least 0, got True"),
        ({"patience": 0}, "patience must be a positive integer or null, got 0"),
        ({"patience": True}, "patience must be a positive integer or null, got True"),
        ({"patience": 3, "avg_metric": "epoch"}, "patience needs avg_metric"),
    ),
)
def test_bad_values(make_brain, keys, message):
    with pytest.raises(InputError, match=message) as caught:
        make_brain(**keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wers, ends",
    (
        ([50, 40, 41, 41, 41], 5),  # best in epoch 2, three epochs without a better one
        ([50, 40, 41, 41, 39, 40, 40], None),
        ([50, 40, 40, 40, 40], 5),  # as good is not better
        ([50, None, None, 49, None], None),
        ([None] * 8, None),  # nothing was measured
    ),
)
def test_training_ends_when_nothing_gets_better(make_brain, wers, ends, tmp_path):
    brain = make_brain(patience=3)
    counter, left = brain.hparams.epoch_counter, None
    for epoch, wer in enumerate(wers, 1):
        curves.append(tmp_path / "curve.csv", epoch, valid_wer=wer)
        counter.current = epoch
        brain._end_if_it_is_time()
        if counter.limit == epoch:
            left = epoch
    assert left == ends
    # The same is found by a run that is started again; rows beyond its checkpoint do not count.
    again = make_brain(patience=3)
    again.hparams.epoch_counter.current = len(wers)
    again._end_if_it_is_time()
    assert again.hparams.epoch_counter.limit == (ends or 9)
    again = make_brain(patience=3)
    again.hparams.epoch_counter.current = len(wers) - 1
    again._end_if_it_is_time()
    assert again.hparams.epoch_counter.limit == 9


def test_initial_weights_there_and_back(make_brain, tmp_path):
    one, other = make_brain(), make_brain()
    one.modules["normalize"](torch.randn(2, 9, 80), torch.ones(2), epoch=0)
    finetune.save_initial(tmp_path / "initial", one.modules)
    with torch.no_grad():
        next(other.modules["ctc_lin"].parameters()).zero_()
    finetune.load_initial(tmp_path / "initial", other.modules)
    for ours, theirs in zip(one.modules.parameters(), other.modules.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(one.modules["normalize"].glob_mean, other.modules["normalize"].glob_mean)


def test_initial_weights_that_cannot_be_loaded(make_brain, tmp_path):
    brain = make_brain()
    with pytest.raises(InputError, match="gone: no such folder"):
        finetune.load_initial(tmp_path / "gone", brain.modules)
    finetune.save_initial(tmp_path / "initial", brain.modules)
    others = dict(brain.modules)
    others["ctc_lin"] = torch.nn.Linear(3, 4)
    with pytest.raises(InputError, match="not the weights of this model") as caught:
        finetune.load_initial(tmp_path / "initial", others)
    assert "\n" not in str(caught.value)
    (weights,) = (tmp_path / "initial").glob("CKPT*/model.ckpt")
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(InputError, match="no weights, or they are damaged"):
        finetune.load_initial(tmp_path / "initial", brain.modules)


def test_comparison_refuses_results_of_another_command(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "compare", Path(__file__).parents[2] / "recipes" / "FineTune" / "compare.py"
    )
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    paths = {5: tmp_path / "part_5.csv", "select": "select.csv", "test": "test.csv"}
    commands = []

    def train(command):
        commands.append(command)
        content = {"command": shlex.join(command), "tests": {}}
        (tmp_path / "results.json").write_text(json.dumps(content))
        return SimpleNamespace(returncode=0)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("subprocess.run", train)
        for _ in range(2):
            compare.run(tmp_path, paths, 5, "model", compare.SCRATCH, ["--threads=1"])
        assert len(commands) == 1 and f"--train={tmp_path}/part_5.csv" in commands[0]
        for model, options, said in (
            ("model", ["--lr=9"], "lr: 0.001 then, 9 now"),
            ("another", [], "pretrained: model then, another now"),
        ):
            with pytest.raises(
                InputError, match=f"{tmp_path}: trained with another {said}; choose"
            ):
                compare.run(tmp_path, paths, 5, model, compare.SCRATCH, options)
