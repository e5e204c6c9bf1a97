"""Language models: perplexities against counting by hand, training, resuming, mistakes."""

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from second_device import second_device
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.dataio.text_lines import TextLines
from summarymixing.decoding import JointBeamSearch
from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.training import config, lm
from summarymixing.training.batches import Batches
from summarymixing.training.results import FACTS

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("recipes/*/LM/hparams/*.yaml"))
SENTENCES = ["A CAB", "BAD CAB", "A DAB", "CAB", "BAD BAD CAB AD", "DAD"]
SIZE = {"d_model": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 0, "d_ffn": 16}


def _write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizers.train(SENTENCES, path, model_type="char")
    return path


@pytest.fixture(scope="module")
def command(tokenizer_file, tmp_path_factory):
    """The demo's recipe as a command line, cut down to a second: command(folder, **changes)."""
    texts = tmp_path_factory.mktemp("texts")
    train = _write(texts / "train.txt", SENTENCES * 4)
    valid = _write(texts / "valid.txt", ["DAD", "", "BAD DAB A CAB", "AD"])

    def line(folder, lm=None, **changes):
        options = {
            "train_text": train,
            "valid_text": valid,
            "tokenizer_file": tokenizer_file,
            "output_folder": folder,
            "output_neurons": tokenizers.load(tokenizer_file).get_piece_size(),
            "number_of_epochs": 2,
            "num_buckets": 2,
            "batch_bytes": 40,
            "lr": 0.01,
            "warmup_steps": 2,
            "avg_checkpoints": 2,
            "avg_metric": "epoch",
            "valid_batch_size": 2,
            "model": json.dumps({"modules": {"lm": SIZE | (lm or {})}}),
            **changes,
        }
        recipe = ROOT / "recipes" / "Mini" / "LM" / "hparams" / "transformer.yaml"
        return [str(recipe), "--noprogressbar", *(f"--{k}={v}" for k, v in options.items())]

    return line


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """The folder of a run, what it returned, and its language model."""
    folder = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    test = _write(folder / "text.txt", ["CAB A", "A", "BAD BAD BAD"])
    results = lm.run(command(folder, test_text=test))
    return folder, results, _load(folder / "lm.pt")


def _load(path):
    weights = torch.load(path)
    vocab = weights["output_proj.layers.2.w.bias"].numel()
    model = TransformerLM(vocab=vocab, activation=torch.nn.GELU, **SIZE)
    model.load_state_dict(weights, strict=True)
    return model.eval()


@torch.no_grad()
def _nats(model, tokenizer, sentence):
    """Of a sentence alone, token by token; and the number of its tokens."""
    ids = tokenizer.encode(sentence)
    total = 0.0
    for i, following in enumerate([*ids, 2]):
        prefix = torch.tensor([[1, *ids[:i]]])
        total -= model(prefix)[0, -1].double().log_softmax(-1)[following].item()
    return total, len(ids) + 1


def test_perplexities_are_those_of_the_sentences_one_by_one(trained, command, tokenizer_file):
    folder, results, model = trained
    tokenizer = tokenizers.load(tokenizer_file)
    for name, text in (
        ("valid", ["DAD", "BAD DAB A CAB", "AD"]),
        ("test", ["CAB A", "A", "BAD BAD BAD"]),
    ):
        nats, tokens = (
            sum(part) for part in zip(*(_nats(model, tokenizer, sentence) for sentence in text))
        )
        words = len(" ".join(text).split())
        found = results["tests"][name]
        assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert found["word_perplexity"] == pytest.approx(math.exp(nats / (words + 3)), rel=1e-5)
        assert (found["sentences"], found["words"], found["tokens"]) == (3, words, tokens - 3)
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["epochs"] == 2 and results["params"] > 1000
    assert set(FACTS) <= results.keys() and results["processes"] == 1
    assert (folder / "curve.png").stat().st_size > 5000
    assert "valid_perplexity" in (folder / "curve.csv").read_text()


def test_what_is_left_is_the_average_of_checkpoints(trained):
    folder, _, model = trained
    first, second = (torch.load(p / "model.ckpt") for p in (folder / "save").glob("CKPT*"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, tensor in model.state_dict().items():
        mean = (first[f"lm.{name}"] + second[f"lm.{name}"]) / 2
        torch.testing.assert_close(tensor, mean)


def test_the_search_takes_it(trained):
    """With all the weight, hypotheses are the language model's, whatever the recogniser."""
    folder, _, model = trained
    vocab = model.state_dict()["output_proj.layers.2.w.bias"].numel()
    asr = TransformerASR(
        vocab, 16, d_model=16, nhead=2, num_encoder_layers=1, num_decoder_layers=1, d_ffn=16
    ).eval()
    modules = {"Transformer": asr, "seq_lin": Linear(input_size=16, n_neurons=vocab)}
    builder = partial(TransformerLM, vocab=vocab, activation=torch.nn.GELU, **SIZE)
    search = JointBeamSearch(
        beam_size=1, ctc_weight=0.0, lm=builder, lm_file=str(folder / "lm.pt"), lm_weight=1e4
    )
    (found,) = search(modules, torch.rand(1, 5, 16), torch.tensor([5]))
    tokens = [1]
    while len(tokens) < 6 and tokens[-1] != 2:
        tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    assert found == [token for token in tokens[1:] if token != 2][: len(found)]
    assert len(found) >= 1


def test_a_tiny_corpus_is_learnt_to_its_entropy(command, tmp_path):
    """Of four sentences, three are equal: 0.56 nats a sentence, whatever the number of tokens."""
    text = _write(tmp_path / "text.txt", ["A CAB", "A CAB", "A CAB", "A DAB"] * 200)
    found = lm.run(
        command(
            tmp_path / "run",
            train_text=text,
            valid_text=text,
            number_of_epochs=3,
            batch_bytes=96,  # 50 steps an epoch
            avg_checkpoints=1,
            valid_batch_size=100,
        )
    )["tests"]["valid"]
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    nats = math.log(found["perplexity"]) * 7  # tokens in each sentence, and its end
    assert found["tokens"] == 6 * 800
    assert nats > entropy - 1e-6
    assert nats == pytest.approx(entropy, abs=0.03)


def test_on_another_device_as_on_the_cpu(command, tmp_path):
    expected = lm.run(command(tmp_path / "cpu"))["tests"]["valid"]["perplexity"]
    with second_device() as device:
        found = lm.run([*command(tmp_path / "second"), f"--device={device}"])
    assert found["tests"]["valid"]["perplexity"] == pytest.approx(expected, rel=1e-4)


class Stopped(lm.LMBrain):
    def on_stage_start(self, stage, epoch=None):
        if epoch == 2:
            raise KeyboardInterrupt
        super().on_stage_start(stage, epoch)


def test_interrupted_run_ends_like_an_uninterrupted_one(command, tmp_path, monkeypatch):
    options = {"lm": {"dropout": 0.2}, "grad_accumulation_factor": 2}
    whole = lm.run(command(tmp_path / "whole", **options))
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(lm, "LMBrain", Stopped)
        lm.run(command(tmp_path / "parts", **options))
    parts = lm.run(command(tmp_path / "parts", **options))
    assert parts["tests"] == whole["tests"]
    ours, theirs = (torch.load(tmp_path / name / "lm.pt") for name in ("parts", "whole"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    # Once more there is nothing to train, and the text may have moved.
    moved = _write(tmp_path / "moved.txt", SENTENCES * 4)
    again = lm.run(command(tmp_path / "parts", train_text=moved, **options))
    assert again["tests"] == parts["tests"] and again["command"] == parts["command"]


def test_every_byte_of_a_step_weighs_the_same():
    sizes = torch.randint(2, 50, (40,)).numpy()
    plans = [
        lm.TextBatches(sizes, 60, 99, 3, 1, accumulation=3, rank=rank, world_size=2)
        for rank in range(2)
    ]
    for step in range(plans[0].steps):
        numbers = [n for n in range(3 * step, 3 * step + 3) if n < len(plans[0])]
        weights = {
            (rank, n): plan.weight(n) / 2 for rank, plan in enumerate(plans) for n in numbers
        }
        text = {(rank, n): sizes[plans[rank].batch(n)].sum() for rank, n in weights}
        assert sum(weights.values()) == pytest.approx(1)
        assert weights == pytest.approx({k: v / sum(text.values()) for k, v in text.items()})


def test_a_process_without_a_batch_can_compute_its_share(command, tokenizer_file, tmp_path):
    recipe, _, *options = command(tmp_path)
    hparams = config.load(recipe, "\n".join(o[2:].replace("=", ": ", 1) for o in options))
    brain = lm.LMBrain(hparams["model"]["modules"], hparams=hparams, run_opts={"device": "cpu"})
    brain.tokenizer = tokenizers.load(tokenizer_file)
    batch = brain.nothing()
    loss = brain.compute_objectives(brain.compute_forward(batch, None), batch, lm.sb.Stage.TRAIN)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in brain.modules.parameters())


def test_long_sentences_are_cut_in_training(command, tokenizer_file, tmp_path):
    rows = TextLines(_write(tmp_path / "text.txt", ["BAD", "CAB", "BAD CAB", "A CABAD"]))
    tokenizer = tokenizers.load(tokenizer_file)
    sentences = lm.Sentences(rows, tokenizer, max_tokens=4)
    assert sentences.longer() == [2, 3]
    ids = tokenizer.encode("BAD CAB")
    assert sentences[2]["tokens_bos"].tolist() == [1, *ids[:4]]
    assert sentences[2]["tokens_eos"].tolist() == ids[:5]
    ids = tokenizer.encode("BAD")
    assert sentences[0]["tokens_bos"].tolist() == [1, *ids]
    assert sentences[0]["tokens_eos"].tolist() == [*ids, 2]
    lm.run(
        command(
            tmp_path / "run",
            train_text=rows.path,
            max_tokens=4,
            valid_text=_write(tmp_path / "short.txt", ["BAD"]),
        )
    )
    logged = (tmp_path / "run" / "log.txt").read_text()
    assert "2 of 4 sentences have more than max_tokens=4 tokens" in logged


# Mistakes: one line, named, status 2


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train_text": "gone.txt"}, ["gone.txt", "No such file"]),
        ({"train_text": []}, ["text.txt", "no text in it"]),
        ({"train_text": ["CAB", "CÄB", "ÖD"]}, ["text.txt", "2 characters", "'Ä' 'Ö'", "line 2"]),
        ({"valid_text": ["CAB", "", "CAB E"]}, ["text.txt", "'E'", "line 3"]),
        ({"valid_text": ["CAB", "", "CAB " * 99]}, ["text.txt", "line 3", "max_tokens=200"]),
        ({"tokenizer_file": "gone.model"}, ["gone.model", "no such file"]),
        ({"output_neurons": 20}, ["tokenizer.model", "output_neurons is 20", "set output_neurons"]),
        ({"max_tokens": 2500}, ["max_tokens", "max_length=2500", "got 2500"]),
        ({"batch_bytes": 0}, ["batch_bytes", "positive integer"]),
        ({"label_smoothing": 1.0}, ["label_smoothing", "1.0"]),
        ({"avg_metric": "WER"}, ["avg_metric: WER", "recogniser"]),
        ({"avg_metric": "CER"}, ["avg_metric: CER", "recogniser"]),
        ({"bach_bytes": 10}, ["bach_bytes", "did you mean batch_bytes?"]),
    ],
)
def test_mistakes(command, tmp_path, capsys, changes, parts):
    for key, value in changes.items():
        if isinstance(value, list):
            changes = {key: _write(tmp_path / "text.txt", value)}
    with pytest.raises(SystemExit) as caught:
        lm.main(command(tmp_path / "run", **changes))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert caught.value.code == 2
    assert all(part in line for part in parts), line


def test_a_text_is_required(command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        lm.main([part for part in command(tmp_path) if "valid_text" not in part])
    assert "valid_text is required: give --valid_text=" in capsys.readouterr().err


# The recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.parts[-4])
def test_recipe_is_built_and_complete(path):
    given = {"train_text": "t", "valid_text": "v", "tokenizer_file": "m", "output_neurons": 30}
    modules = {"lm": {"num_encoder_layers": 1, "d_ffn": 16}}
    hparams = config.load(str(path), given | {"model": {"modules": modules}})
    lm._check(str(path), hparams)
    model = hparams["model"]["modules"]["lm"].eval()
    assert model(torch.ones(2, 3, dtype=torch.long)).shape == (2, 3, 30)
    assert hparams["lr_schedule"](hparams["warmup_steps"], 0.0) == pytest.approx(hparams["lr"])


def _resolved(path, given):
    return config.ruamel.yaml.YAML().load(config.resolved(str(path), given))


def test_it_is_the_language_model_of_the_recognisers():
    given = {"train_text": "t", "valid_text": "v", "tokenizer_file": "m"}
    ours = _resolved(ROOT / "recipes/LibriSpeech/LM/hparams/transformer.yaml", given)
    ours = dict(ours["model"]["modules"]["lm"])
    assert ours.pop("dropout") == 0.1
    searches = [
        recipe["test_search"]["lm"]
        for path in ROOT.glob("recipes/LibriSpeech/hparams/*.yaml")
        if "lm" in (recipe := _resolved(path, {"data_folder": "/none"}))["test_search"]
    ]
    assert searches
    for theirs in map(dict, searches):
        theirs.pop("dropout")
        assert {k: str(v) for k, v in theirs.items()} == {k: str(v) for k, v in ours.items()}


def test_text_of_the_demo(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(
        "make_text", ROOT / "recipes/Mini/LM/make_text.py"
    )
    make_text = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_text)
    for split, text in (
        ("train", "SET THE ALARM"),
        ("dev", "GO TO LONDON"),
        ("test", "CALL MARIA"),
    ):
        folder = tmp_path / f"{split}-synthetic" / "1" / "2"
        folder.mkdir(parents=True)
        (folder / "1-2.trans.txt").write_text(f"1-2-0000 {text}\n1-2-0001 {text} NOW\n")
    options = [str(tmp_path), str(tmp_path / "text"), "--sentences=50"]
    make_text.main(options)
    texts = {path.stem: path.read_text() for path in (tmp_path / "text").iterdir()}
    assert texts["valid"] == "GO TO LONDON\nGO TO LONDON NOW\n"
    assert texts["test"] == "CALL MARIA\nCALL MARIA NOW\n"
    assert len(texts["train"].splitlines()) == 52
    assert texts["train"].startswith("SET THE ALARM\nSET THE ALARM NOW\n")
    make_text.main(options)
    assert (tmp_path / "text" / "train.txt").read_text() == texts["train"]
    with pytest.raises(SystemExit) as caught:
        make_text.main([str(tmp_path / "text"), str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "train-synthetic: no transcripts" in capsys.readouterr().err


def test_recognisers_still_count_utterances():
    batches = Batches([1.0, 1.0, 1.0], 2, 9, 1, seed=1, accumulation=2)
    sizes = [len(batches.batch(number)) for number in range(2)]
    assert sorted(sizes) == [1, 2]
    assert [batches.weight(number) for number in range(2)] == [size / 3 for size in sizes]
