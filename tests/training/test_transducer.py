"""Training a transducer: the loss beside a naive one, the Brain, and a whole experiment."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from second_device import second_device
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.nnet.linear import Linear

from summarymixing.errors import InputError
from summarymixing.training import config, experiment
from summarymixing.training.batches import Batches
from summarymixing.training.seq2seq import CTCAttentionBrain
from summarymixing.training.transducer import TransducerBrain, transducer_loss

ROOT = Path(__file__).parents[2]


def naive_loss(logits, targets):
    """The forward algorithm in float64, one cell after the other; logits (time, labels + 1, V)."""
    scores = logits.double().log_softmax(-1)
    time, labels = scores.shape[:2]
    forward = {}
    for t in range(time):
        for u in range(labels):
            ways = [scores.new_zeros(())] if t == u == 0 else []
            if t > 0:
                ways.append(forward[t - 1, u] + scores[t - 1, u, 0])
            if u > 0:
                ways.append(forward[t, u - 1] + scores[t, u - 1, targets[u - 1]])
            forward[t, u] = torch.stack(ways).logsumexp(0)
    return -(forward[time - 1, labels - 1] + scores[-1, -1, 0])


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))],
)
def test_loss_and_gradient_are_the_naive_ones(device):
    """With frames and labels of padding, single frames, and no labels at all."""
    lengths, ends = torch.tensor([7, 3, 1, 1]), torch.tensor([4, 0, 4, 0])
    logits = (3 * torch.randn(4, 7, 5, 6)).requires_grad_()
    targets = torch.randint(1, 6, (4, 4))
    expected = torch.stack(
        [
            naive_loss(scores[:time, : end + 1], labels)
            for scores, labels, time, end in zip(logits, targets, lengths, ends)
        ]
    )
    (expected_gradient,) = torch.autograd.grad(expected.mean(), logits)

    ours = logits.detach().clone()
    for row, (time, end) in enumerate(zip(lengths, ends)):
        ours[row, time:] = torch.nan  # what stands in the padding must not matter
        ours[row, :, end + 1 :] = torch.nan
    given = [tensor.to(device) for tensor in (ours, targets, lengths, ends)]
    given[0].requires_grad_()
    each = transducer_loss(*given, reduction="none").cpu()
    torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-5)
    transducer_loss(*given).backward()
    torch.testing.assert_close(given[0].grad.cpu(), expected_gradient, rtol=1e-4, atol=1e-6)


def test_loss_of_a_batch_without_any_label():
    logits = torch.randn(2, 4, 1, 6)
    none = torch.zeros(2, 0, dtype=torch.long)
    loss = transducer_loss(logits, none, torch.tensor([4, 2]), torch.tensor([0, 0]), "none")
    blanks = logits.log_softmax(-1)[..., 0, 0]
    torch.testing.assert_close(loss, -torch.stack([blanks[0].sum(), blanks[1, :2].sum()]))


def test_loss_of_bfloat16_is_computed_in_float32():
    logits = torch.randn(1, 5, 3, 6).bfloat16()
    given = torch.tensor([[1, 2]]), torch.tensor([5]), torch.tensor([2])
    assert transducer_loss(logits, *given) == transducer_loss(logits.float(), *given)


@pytest.fixture
def tiny_transducer():
    """AN4's recipe on the synthetic corpus, cut down to a second or two."""

    def command(data_folder, output_folder, **changes):
        overrides = {
            "data_folder": data_folder,
            "output_folder": output_folder,
            "prepare": "{train_splits: [train-synthetic], valid_splits: [dev-synthetic], "
            "test_splits: [test-synthetic]}",
            "number_of_epochs": 1,
            "output_neurons": 27,
            "d_model": 16,
            "encoder_nhead": 2,
            "num_encoder_layers": 1,
            "d_ffn": 16,
            "predictor_dim": 12,
            "joint_dim": 8,
            "cnn_channels": 4,
            "test_beam_size": 2,
            "max_symbols_per_frame": 2,
            "num_workers": 0,
            "precision": "fp32",
            "global_batch_seconds": "null",
            **changes,
        }
        folder = Path(output_folder)
        folder.mkdir(exist_ok=True)
        recipe = ROOT / "recipes/AN4/hparams/transducer.yaml"
        path = folder.parent / f"{folder.name}.yaml"
        path.write_text(
            f"base: {recipe}\n"
            "prepare: !name:summarymixing.dataio.librispeech.prepare\n"
            "  data_folder: !ref <data_folder>\n"
        )
        options = [f"--{key}={value}" for key, value in overrides.items()]
        return [str(path), "--noprogressbar", *options]

    return command


def load(command, head=None):
    path, _, *options = command
    hparams = config.load(path, "\n".join(o[2:].replace("=", ": ", 1) for o in options))
    modules = hparams["model"]["modules"]
    if head is not None:
        modules["ce_lin"] = head
    return hparams


def make_brain(hparams):
    brain = TransducerBrain(
        hparams["model"]["modules"], hparams["opt_class"], hparams, {"device": "cpu"}
    )
    brain.init_optimizers()
    brain.step = hparams["epoch_counter"].current = 1
    return brain


def make_batch(labels=((5, 6, 7, 5), (8,))):
    def item(index, ids):
        torch.manual_seed(index)
        return {
            "id": str(index),
            "sig": torch.randn(8000 - 2500 * index),
            "wrd": "",
            "tokens_bos": torch.tensor([1, *ids]),
            "tokens_eos": torch.tensor([*ids, 2]),
        }

    return PaddedBatch([item(index, ids) for index, ids in enumerate(labels)])


def test_brain_learns_a_batch(tiny_transducer, tmp_path):
    options = {"ctc_weight": 0.2, "lr": 0.02, "warmup_steps": 1, "number_of_epochs": 1000}
    hparams = load(tiny_transducer("/none", tmp_path / "run", **options), Linear(27, input_size=12))
    hparams |= {"ce_weight": 0.1, "fea_augment": None}
    brain = make_brain(hparams)
    brain.modules.train()
    batch = make_batch()
    brain.statistics.add(*brain._features(batch))
    brain.statistics.begin()
    brain.train_loader = SimpleNamespace(
        batch_sampler=Batches([1.0] * len(batch), 10, len(batch), 1, seed=1)
    )
    brain.step = 1
    losses = [float(brain.fit_batch((batch, []))) for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0], losses
    for name in ("predictor", "joiner", "ctc_lin", "ce_lin"):
        for parameter in brain.modules[name].parameters():
            assert brain.optimizer.state[parameter]["exp_avg"].any(), name


def test_loss_is_the_weighted_sum_of_three(tiny_transducer, tmp_path):
    """Each from its own utterances alone, with losses that know no padding."""
    command = tiny_transducer("/none", tmp_path / "run", ctc_weight=0.2, chunkwise_prob=0)
    hparams = load(command, Linear(27, input_size=12)) | {"ce_weight": 0.3, "fea_augment": None}
    brain = make_brain(hparams)
    labels = (5, 6, 7, 5), (8,)
    batch = make_batch(labels)
    brain.modules.eval()
    brain.statistics.add(*brain._features(batch))
    brain.statistics.begin()
    heard = []
    brain.modules.predictor.register_forward_hook(lambda _, given, out: heard.append(given[0]))
    logits, lengths, ctc, ce = brain.compute_forward(batch, sb.Stage.TRAIN)
    assert lengths[0] > lengths[1]
    assert heard[0].tolist() == [[0, 5, 6, 7, 5], [0, 8, 0, 0, 0]]
    parts = [[], [], []]
    for row, ids in enumerate(labels):
        time, end = lengths[row], len(ids) + 1
        parts[0].append(naive_loss(logits[row, :time, :end], ids))
        scores = ctc[row, :time].log_softmax(-1)
        parts[1].append(
            torch.nn.functional.ctc_loss(
                scores.unsqueeze(1), torch.tensor([ids]), (int(time),), (len(ids),), reduction="sum"
            )
        )
        expected = torch.tensor([*ids, 2])
        parts[2].append(torch.nn.functional.cross_entropy(ce[row, :end], expected, reduction="sum"))
    transducer, ctc_loss, ce_loss = (sum(part) / 2 for part in parts)
    loss = brain.compute_objectives((logits, lengths, ctc, ce), batch, sb.Stage.TRAIN)
    expected = 0.5 * transducer + 0.2 * ctc_loss + 0.3 * ce_loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_ctc_has_its_epochs_and_none_in_validation(tiny_transducer, tmp_path):
    command = tiny_transducer("/none", tmp_path / "run", ctc_weight=0.25, ctc_epochs=3)
    brain = make_brain(load(command))
    counter = brain.hparams.epoch_counter
    for epoch, weight in ((1, 0.25), (3, 0.25), (4, 0.0)):
        counter.current = epoch
        assert brain._weights(sb.Stage.TRAIN) == (weight, 0.0)
        assert brain._weights(sb.Stage.VALID) == (0.0, 0.0)


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"avg_metric": "ACC"}, "avg_metric: ACC"),
        ({"ctc_epochs": -1}, "ctc_epochs must be an integer of at least 0 or null, got -1"),
        ({"ctc_epochs": True}, "ctc_epochs must be an integer of at least 0 or null, got True"),
        ({"ctc_weight": 1.0}, r"ctc_weight must be in \[0, 1\), got 1.0"),
    ),
)
def test_bad_values_of_a_brain(tiny_transducer, tmp_path, changes, message):
    hparams = load(tiny_transducer("/none", tmp_path / "run", **changes))
    with pytest.raises(InputError, match=message):
        make_brain(hparams)


def test_weights_that_do_not_go_together(tiny_transducer, tmp_path):
    command = tiny_transducer("/none", tmp_path / "run", ctc_weight=0.5)
    with pytest.raises(InputError, match="ce_weight=0.1 needs a module ce_lin"):
        make_brain(load(command) | {"ce_weight": 0.1})
    with pytest.raises(InputError, match="ctc_weight . ce_weight must be below 1"):
        make_brain(load(command, Linear(27, input_size=12)) | {"ce_weight": 0.5})


def test_a_model_without_chunks_is_refused_before_anything_is_prepared(tiny_transducer, tmp_path):
    def refused(**changes):
        changes |= {"attention_type": "RelPosMHAXL", "encoder_nhead": 2}
        with pytest.raises(InputError) as caught:
            experiment.run(TransducerBrain, tiny_transducer("/none", tmp_path / "run", **changes))
        return str(caught.value)

    said = refused(chunkwise_prob=0.5)
    assert said.startswith("chunks are for encoder_module conformer or branchformer with")
    assert said.endswith("RelPosMHAXL; --chunkwise_prob=0.0 trains on whole utterances")
    assert refused(chunkwise_prob=0.0, test_chunk_size=4).endswith("with RelPosMHAXL")
    assert "/none" in refused(chunkwise_prob=0.0)
    assert not (tmp_path / "run" / "manifests").exists()


@pytest.mark.parametrize("attention_type", ["SummaryMixing", "RoPEMHA"])
def test_experiment_offline_and_chunk_by_chunk(corpus, tiny_transducer, tmp_path, attention_type):
    def command(**changes):
        changes["attention_type"] = attention_type
        return tiny_transducer(corpus, tmp_path / "run", **changes)

    folder = tmp_path / "run"
    offline = experiment.run(TransducerBrain, command(number_of_epochs=2))
    assert list(offline["tests"]) == ["valid", "test-synthetic"]
    rows = (folder / "curve.csv").read_text().splitlines()
    accuracy = rows[0].split(",").index("valid_accuracy")
    assert [row.split(",")[accuracy] for row in rows[1:]] == ["", ""]  # a transducer has none
    assert "accuracy" not in (folder / "log.txt").read_text()

    test = [*command(test_chunk_size=8, test_left_context=2), "--test_only"]
    chunkwise = experiment.run(TransducerBrain, test)
    names = ["valid_chunk8_left2", "test-synthetic_chunk8_left2"]
    assert list(chunkwise["tests"]) == [*offline["tests"], *names]
    assert chunkwise["tests"].items() >= offline["tests"].items()
    assert json.loads((folder / "results.json").read_text()) == chunkwise
    for name in names:
        found = (folder / f"hypotheses_{name}.txt").read_text().splitlines()
        assert len(found) == chunkwise["tests"][name]["utterances"] > 0

    test = [*command(test_chunk_size=8, test_beam_size=1), "--test_only"]
    assert "valid_chunk8" in experiment.run(TransducerBrain, test)["tests"]
    # Training that goes on makes new weights: their tests stand alone.
    assert experiment.run(TransducerBrain, command(number_of_epochs=3))["tests"].keys() == {
        "valid",
        "test-synthetic",
    }


@pytest.mark.parametrize("brain_class", [CTCAttentionBrain, TransducerBrain])
def test_chunks_reach_the_encoder_in_every_stage(
    corpus, tiny, tiny_transducer, tmp_path, monkeypatch, brain_class
):
    """In both Brains: drawn for each training batch, and as given in validation and tests."""
    make = tiny if brain_class is CTCAttentionBrain else tiny_transducer
    command = make(corpus, tmp_path / "run", batch_seconds=6)
    encoded, load_recipe = [], config.load

    def load_with_chunks(path, overrides="", optional=()):
        from summarymixing.training.chunks import RandomChunks

        hparams = load_recipe(path, overrides, optional)
        hparams["dynchunktrain_config_sampler"] = RandomChunks(
            valid_chunk_size=5, test_chunk_size=7, test_left_context=3
        )
        encoder = hparams["model"]["modules"]["Transformer"]
        encode = encoder.encode

        def spy(*args, **kwargs):
            chunks = args[3] if len(args) > 3 else kwargs.get("dynchunktrain_config")
            encoded.append((encoder.training, chunks))
            return encode(*args, **kwargs)

        encoder.encode = spy
        return hparams

    monkeypatch.setattr(config, "load", load_with_chunks)
    results = experiment.run(brain_class, command)
    assert list(results["tests"]) == ["valid_chunk7_left3", "test-synthetic_chunk7_left3"]
    drawn = [chunks for training, chunks in encoded if training]
    assert 0 < sum(chunks is None for chunks in drawn) < len(drawn)
    sizes = [chunks.chunk_size for chunks in drawn if chunks is not None]
    assert all(8 <= size <= 32 for size in sizes) and len(set(sizes)) > 1
    used = {(c.chunk_size, c.left_context_size) for training, c in encoded if not training}
    assert used == {(5, None), (7, 3)}


def test_bad_chunks_stop_before_anything_is_done(corpus, tiny_transducer, tmp_path, capsys):
    for changes, message in (
        ({"test_chunk_size": 0}, "test_chunk_size must be a positive integer, got 0"),
        ({"chunk_size_min": 40}, "chunk_size_min=40 must not be above chunk_size_max=32"),
        ({"chunkwise_prob": 2}, "chunkwise_prob must be in [0, 1], got 2"),
        ({"test_left_context": 2}, "give test_chunk_size, too"),
    ):
        with pytest.raises(SystemExit) as caught:
            experiment.main(TransducerBrain, tiny_transducer(corpus, tmp_path / "run", **changes))
        assert caught.value.code == 2
        (line,) = (
            line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")
        )
        assert message in line
    assert not any((tmp_path / "run").iterdir())


def test_limit_of_steps_ends_the_training_once(corpus, tiny_transducer, tmp_path):
    command = tiny_transducer(
        corpus, tmp_path / "run", number_of_epochs=9, optimizer_step_limit=3, batch_seconds=10
    )
    results = experiment.run(TransducerBrain, command)
    curve = (tmp_path / "run" / "curve.csv").read_text()
    assert curve.splitlines()[-1].split(",")[1] == "3"
    again = experiment.run(TransducerBrain, command)
    assert (tmp_path / "run" / "curve.csv").read_text() == curve
    assert again["tests"] == results["tests"] and again["epochs"] == results["epochs"] < 9


def test_on_another_device(corpus, tiny_transducer, tmp_path):
    """Trained, and tested by the beam search and in chunks, with nothing left on the CPU."""
    command = tiny_transducer(corpus, tmp_path / "run", test_chunk_size=8, test_left_context=2)
    with second_device() as device:
        tests = experiment.run(TransducerBrain, [*command, f"--device={device}"])["tests"]
    assert len(tests) == 2 and all(scores["words"] for scores in tests.values())
