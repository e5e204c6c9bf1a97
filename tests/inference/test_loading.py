"""A recogniser from a training's folder against the training's own modules."""

import shutil
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch

from summarymixing.errors import InputError
from summarymixing.inference import Stream, load
from summarymixing.training.checkpoints import recoverable_model
from summarymixing.training.seq2seq import CTCAttentionBrain


def test_loaded_is_what_the_test_of_the_training_uses(trained):
    folder, hparams = trained()
    modules = hparams["model"]["modules"]
    last = {k: tensor.clone() for k, tensor in modules["Transformer"].state_dict().items()}
    brain = CTCAttentionBrain(modules, hparams["opt_class"], hparams, {"device": "cpu"})
    brain.checkpointer = sb.utils.checkpoints.Checkpointer(
        folder / "save",
        {"model": recoverable_model(modules), "normalizer": modules["normalize"]},
    )
    brain.on_evaluate_start()
    brain.modules.eval()
    wavs = torch.randn(2, 7000) * 0.1
    batch = SimpleNamespace(sig=(wavs, torch.tensor([1.0, 0.5])))
    expected, expected_lengths = brain.front_end(batch, sb.Stage.TEST)

    recogniser = load(folder)
    frames, lengths = recogniser.front_end(wavs, torch.tensor([7000, 3500]))
    assert lengths.equal(expected_lengths)
    for row, other, length in zip(frames, expected, lengths):
        assert row[:length].equal(other[:length])
    loaded = recogniser.modules["Transformer"].state_dict()
    assert any(not loaded[name].equal(last[name]) for name in last)  # it is an average
    for name, tensor in modules["Transformer"].state_dict().items():
        assert loaded[name].equal(tensor)
    assert not any(module.training for module in recogniser.modules.values())
    assert recogniser.sample_rate == 16000 and recogniser.tokenizer.get_piece_size() == 32


def test_the_recipes_seed_is_not_set(trained):
    folder, _ = trained()
    torch.manual_seed(5)
    load(folder)
    assert torch.initial_seed() == 5


def test_a_folder_can_be_moved(trained, tmp_path):
    folder, _ = trained()
    shutil.move(folder, tmp_path / "moved")
    stream = Stream(load(str(tmp_path / "moved")), chunk_size=4)
    stream.push(torch.randn(16000) * 0.1)
    stream.finish()


def _break(path, change):
    return {
        "remove": lambda: shutil.rmtree(path) if path.is_dir() else path.unlink(),
        "tear": lambda: path.write_bytes(path.read_bytes()[:1000]),
        "empty": lambda: path.write_text(""),
    }[change]()


@pytest.mark.parametrize(
    "part, change, message",
    (
        ("", "remove", "no such folder"),
        ("hyperparams.yaml", "remove", "hyperparams.yaml: no such file"),
        ("hyperparams.yaml", "empty", "hyperparams.yaml"),
        ("tokenizer.model", "remove", "tokenizer.model: no such file"),
        ("save", "remove", "no checkpoints"),
        ("save/CKPT*", "remove", "no checkpoint"),
        ("save/CKPT*/model.ckpt", "tear", "cannot be loaded"),
        ("save/CKPT*/normalizer.ckpt", "remove", "cannot be loaded"),
    ),
)
def test_what_is_missing_is_said(trained, part, change, message):
    folder, _ = trained()
    for path in sorted(folder.glob(part)) if part else [folder]:
        _break(path, change)
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    "line, replacement, message",
    (
        ("sample_rate: 16000", "unread: 1", "the key 'sample_rate' is missing"),
        ("TransformerASR\n", "NoSuchClass\n", "NoSuchClass"),
        ("    d_model: 16", "    d_model: 32", "a checkpoint is of another model"),
        ("output_neurons: 32", "output_neurons: 33", "32 tokens"),
    ),
)
def test_a_file_that_does_not_fit(trained, line, replacement, message):
    folder, _ = trained()
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    assert line in text
    path.write_text(text.replace(line, replacement, 1))
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_there(trained):
    folder, _ = trained()
    with pytest.raises(InputError, match="device nothing"):
        load(folder, device="nothing")


def test_a_model_without_an_output(make_recogniser):
    recogniser = make_recogniser()
    del recogniser.modules["ctc_lin"]
    with pytest.raises(InputError, match="neither predictor and joiner nor ctc_lin"):
        type(recogniser)(recogniser.modules, recogniser.compute_features, recogniser.tokenizer, 1)
