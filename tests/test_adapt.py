"""Trained models for other tokens, other mixers and other speech."""

import json
from pathlib import Path

import pytest
import torch
from trained import KINDS, make_run

from summarymixing import adapt
from summarymixing.dataio import manifests, table
from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.training import config, finetune
from summarymixing.training.checkpoints import recoverable_model

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "FineTune"


@pytest.fixture(scope="module")
def texts(corpus, tmp_path_factory):
    return [row["wrd"] for row in manifests.read(_prepared(corpus, tmp_path_factory)["train"])]


@pytest.fixture(scope="module")
def sets(corpus, tmp_path_factory):
    """Manifests of the synthetic corpus: a path by name."""
    return _prepared(corpus, tmp_path_factory)


def _prepared(corpus, tmp_path_factory):
    from summarymixing.dataio import librispeech

    folder = tmp_path_factory.getbasetemp() / "adapt_manifests"
    return librispeech.prepare(
        corpus, folder, ["train-synthetic"], ["dev-synthetic"], ["test-synthetic"]
    )


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory, texts):
    folder = make_run(tmp_path_factory.mktemp("trained") / "run", request.param, texts)
    return folder, request.param


# Of what does not depend on the kind of model.
the_same_for_both = pytest.mark.parametrize("trained", ["ctc_attention"], indirect=True)


def options(folder, sets, output, **changes):
    keys = {
        "pretrained": folder,
        "train": sets["train"],
        "valid": sets["valid"],
        "output_folder": output,
        "number_of_epochs": 1,
        "num_workers": 0,
        "precision": "fp32",
        "test_beam_size": 1,
        "lr": 0.0001,
        "device": "cpu",
        **changes,
    }
    return ["--noprogressbar", *(f"--{key}={value}" for key, value in keys.items())]


def weights(modules):
    return recoverable_model(modules).state_dict()


def relabelled(path, sets, change):
    """Manifests with other transcripts."""
    found = {}
    for name, source in sets.items():
        rows = [
            manifests.Utterance(row["ID"], row["wav"], row["spk_id"], change(row["wrd"]))
            for row in manifests.read(source)
        ]
        found[name] = str(path / f"{name}.csv")
        manifests.write(found[name], rows)
    return found


# The recipe for a pretrained model


def test_a_recipe_is_filled_in_and_its_keys_reach_the_model(trained, tmp_path):
    folder, kind = trained
    pretrained = adapt.read(folder)
    assert pretrained.kind == kind
    path = tmp_path / "recipe.yaml"
    path.write_text(adapt.recipe(RECIPES / f"{kind}.yaml", pretrained))
    keys = {"pretrained": str(folder), "train": "a", "valid": "b", "output_folder": str(tmp_path)}
    hparams = config.load(str(path), keys)
    found, expected = (
        weights(m) for m in (hparams["model"]["modules"], pretrained.recogniser.modules)
    )
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    assert hparams["initial"] == str(tmp_path / "initial")
    assert hparams["model"]["modules"]["normalize"].update_until_epoch == 1
    assert (hparams.get("dynchunktrain_config_sampler") is None) == (kind == "ctc_attention")
    changed = config.load(str(path), keys | {"dropout": 0.37, "output_neurons": 50})
    modules = changed["model"]["modules"]
    rates = {
        m.p for part in modules.values() for m in part.modules() if isinstance(m, torch.nn.Dropout)
    }
    assert 0.37 in rates
    assert weights(modules)["ctc_lin.w.weight"].shape == (50, 16)


def test_recipes_have_what_experiments_read(trained, tmp_path):
    from summarymixing.training import experiment

    folder, kind = trained
    path = tmp_path / "recipe.yaml"
    path.write_text(adapt.recipe(RECIPES / f"{kind}.yaml", adapt.read(folder)))
    hparams = config.load(str(path), {"pretrained": "p", "train": "a", "valid": "b"})
    experiment.check(adapt.KINDS[kind][1], str(path), hparams)


def test_a_recipe_with_a_model_of_its_own(trained, tmp_path):
    folder, kind = trained
    pretrained = adapt.read(folder)
    path = tmp_path / "mine.yaml"
    path.write_text("model: 3\n")
    with pytest.raises(InputError, match="'model' is the pretrained model's: remove it"):
        adapt.recipe(path, pretrained)
    with pytest.raises(InputError, match="gone.yaml: No such file or directory; give"):
        adapt.recipe(tmp_path / "gone.yaml", pretrained)


# Weights for other tokens

TOKEN_LAYERS = {
    "ctc_attention": {
        "Transformer.custom_tgt_module.layers.0.emb.Embedding.weight",
        *(f"{head}_lin.w.{name}" for head in ("ctc", "seq") for name in ("weight", "bias")),
    },
    "transducer": {
        "predictor.embedding.weight",
        *(
            f"{head}.{name}"
            for head in ("joiner.output", "ctc_lin.w")
            for name in ("weight", "bias")
        ),
    },
}


@pytest.mark.parametrize("letters", ["QR'É", "ЖДИ"])
def test_rows_of_common_tokens_are_carried_over(trained, tmp_path, texts, letters):
    """And all that has nothing to do with tokens; the rest is drawn anew."""
    folder, kind = trained
    pretrained = adapt.read(folder)
    old = pretrained.recogniser.tokenizer
    new = tokenizers.train([letters, "AN"], tmp_path / "new.model", model_type="char")
    path = tmp_path / "recipe.yaml"
    path.write_text(adapt.recipe(RECIPES / f"{kind}.yaml", pretrained))
    keys = {"pretrained": "p", "train": "a", "valid": "b"}
    size = new.get_piece_size()

    def build(size):
        return config.load(str(path), keys | {"output_neurons": size})["model"]["modules"]

    modules, fresh = build(size), weights(build(size))
    layers = adapt.token_layers(modules, build(size + 1))
    assert layers == dict.fromkeys(TOKEN_LAYERS[kind], 0)
    adapt.transfer(pretrained.recogniser.modules, modules, adapt.common_tokens(new, old), layers)
    before, after = weights(pretrained.recogniser.modules), weights(modules)
    places = {old.id_to_piece(i): i for i in range(old.get_piece_size())}
    for name, tensor in after.items():
        if name not in layers:
            assert torch.equal(tensor, before[name]), name
            continue
        for i in range(size):
            place = places.get(new.id_to_piece(i))
            expected = fresh[name][i] if place is None else before[name][place]
            assert torch.equal(tensor[i], expected), (name, new.id_to_piece(i))
    assert {"<unk>", "<s>", "</s>", "▁", "A", "N"} <= places.keys()
    statistics = modules["normalize"], pretrained.recogniser.modules["normalize"]
    assert torch.equal(*(normalize.glob_mean for normalize in statistics))
    assert statistics[0].count == statistics[1].count > 0


# Another mixer


@pytest.fixture(scope="module")
def attentive(tmp_path_factory, texts):
    def make(kind, **changes):
        folder = tmp_path_factory.mktemp("attentive") / "run"
        arguments = {"attention_type": "RoPEMHA", "encoder_nhead": 2} | changes
        return make_run(folder, kind, texts, **arguments)

    return make


@pytest.mark.parametrize(
    "kind, encoder",
    [
        ("ctc_attention", "conformer"),
        ("ctc_attention", "branchformer"),
        ("transducer", "conformer"),
    ],
)
def test_a_mixer_is_swapped_and_all_else_is_kept(
    attentive, load_script, tmp_path, kind, encoder, capsys
):
    more = {"csgu_linear_units": 24} if encoder == "branchformer" else {}
    folder = attentive(kind, **({"encoder_module": encoder} | ({"model": more} if more else {})))
    out = tmp_path / "out"
    load_script("swap_mixer").main([str(folder), str(out), "--mode=SummaryMixing"])
    before, after = adapt.read(folder), adapt.read(out)
    assert after.kind == kind and after.test_search == before.test_search
    cell = after.recogniser.modules["Transformer"].encoder.layers[0].mha_layer
    assert type(cell).__name__ == "SummaryMixing"
    old, new = weights(before.recogniser.modules), weights(after.recogniser.modules)
    fresh = ("mha_layer", "merge_proj") if encoder == "branchformer" else ("mha_layer",)
    kept = {name for name in old if not any(part in name for part in fresh)}
    assert len(kept) > 20
    for name in kept:
        assert torch.equal(old[name], new[name]), name
    assert {name for name in new if name not in kept} == {
        name for name in new if any(part in name for part in fresh)
    }
    normalize = (p.recogniser.modules["normalize"].glob_mean for p in (before, after))
    assert torch.equal(*normalize)
    assert before.recogniser.tokenizer.serialized_model_proto() == (
        after.recogniser.tokenizer.serialized_model_proto()
    )
    # And it can be trained on.
    path = tmp_path / "recipe.yaml"
    path.write_text(adapt.recipe(RECIPES / f"{kind}.yaml", after))
    hparams = config.load(str(path), {"pretrained": "p", "train": "a", "valid": "b"})
    assert weights(hparams["model"]["modules"]).keys() == new.keys()
    assert "mha_layer" not in capsys.readouterr().err


def test_branchformer_keeps_its_merge_when_asked(attentive, load_script, tmp_path):
    folder = attentive("ctc_attention", encoder_module="branchformer")
    out = tmp_path / "out"
    load_script("swap_mixer").main([str(folder), str(out), "--branch_merge=linear"])
    old, new = (weights(adapt.read(path).recogniser.modules) for path in (folder, out))
    merges = [name for name in new if "merge_proj" in name]
    assert merges and all(torch.equal(old[name], new[name]) for name in merges)
    mixers = [name for name in new if "mha_layer" in name]
    assert mixers and old.keys().isdisjoint(mixers)


def test_what_cannot_be_swapped(attentive, load_script, tmp_path, capsys):
    folder, out = attentive("ctc_attention"), tmp_path / "out"
    main = load_script("swap_mixer").main

    def refused(*command):
        with pytest.raises(SystemExit) as caught:
            main([str(part) for part in command])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    line = refused(folder, out, "--attention_type=many")
    assert line.startswith("error: ") and "attention_type must be one of" in line
    assert ".swap" not in line and str(out) not in line
    assert not out.exists()
    assert "nhead must divide" in refused(folder, out, "--encoder_nhead=3")
    assert "command line: " in refused(folder, out, "--encoder_nhead=[1")
    assert "nhead must be a positive integer, got 'x'" in refused(folder, out, "--encoder_nhead=x")
    assert "no such folder" in refused(tmp_path / "gone", out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "--force replaces" in refused(folder, out)
    assert "no model with other mixers" in refused(folder, out, "--force")
    (out / "notes.txt").unlink()
    assert "that is the model itself" in refused(folder, folder, "--force")
    main([str(folder), str(out)])
    assert adapt.read(out).kind == "ctc_attention"
    # What is there stays until there is another, and so does what is not of it.
    assert "nhead must divide" in refused(folder, out, "--force", "--encoder_nhead=3")
    (out / "notes.txt").write_text("mine")
    assert "notes.txt, not of the model" in refused(folder, out, "--force")
    (out / "notes.txt").unlink()
    main([str(folder), str(out), "--force", "--attention_type=[SummaryMixing, RoPEMHA]"])
    assert adapt.read(out).modules["Transformer"]["arguments"]["attention_type"] == [
        "SummaryMixing",
        "RoPEMHA",
    ]
    main([str(folder), str(out), "--force", "--mode=SummaryMixing-lite"])
    assert "SummaryMixing-lite" in (out / "hyperparams.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "chunks",
    (
        {"chunkwise_prob": {"class": "os.system", "arguments": ["touch run"]}},
        {"test_chunk_size": {"class": "os.system", "arguments": ["touch run"]}},
        {"valid_left_context": {"name": "os.system"}},
        {"chunk_size": 4},
        "os.system",
    ),
)
def test_a_package_runs_nothing_as_the_chunks_of_its_training(tmp_path, monkeypatch, chunks):
    monkeypatch.chdir(tmp_path)
    config = {"training": {"chunks": chunks}, "compute_features": {}, "modules": {}, "search": None}
    monkeypatch.setattr(adapt.loading, "is_package", lambda folder: True)
    monkeypatch.setattr(adapt.loading, "read_config", lambda folder: config)
    recogniser = object()
    monkeypatch.setattr(adapt.loading, "load", lambda folder, device: recogniser)
    with pytest.raises(InputError, match="^a: the chunks of its training: "):
        adapt.read("a")
    config["training"]["chunks"] = {"chunkwise_prob": 0.5, "test_chunk_size": 4}
    assert adapt.read("a").chunks["arguments"] == config["training"]["chunks"]
    assert not [*tmp_path.iterdir()]


# Fine-tuning


def test_fine_tuning_keeps_the_tokenizer_and_says_what_changed(trained, sets, tmp_path, capsys):
    folder, kind = trained
    output = tmp_path / "out"
    command = options(folder, sets, output, test=sets["test-synthetic"], old=sets["valid"])
    command += ["--max_symbols_per_frame=1"] if kind == "transducer" else []
    content = adapt.run(RECIPES, command)
    written = json.loads((output / "results.json").read_text())
    assert written["before"] == content["before"]
    assert list(content["before"]) == list(content["tests"]) == ["valid", "test", "old"]
    assert content["before"]["valid"] == content["before"]["old"]
    assert content["before"]["test"]["words"] == content["tests"]["test"]["words"] > 0
    shown = capsys.readouterr().out.splitlines()[-3:]
    wers = (content[when]["test"]["wer"] for when in ("before", "tests"))
    assert shown[1].split() == ["test", *(f"{wer:.2f}" for wer in wers)]
    # Training began with the weights of the trained model.
    pretrained = adapt.read(folder)
    tuned = adapt.read(output)
    begun = next((output / "initial").glob("CKPT*")) / "model.ckpt"
    old = weights(pretrained.recogniser.modules)
    for name, tensor in torch.load(begun).items():
        assert torch.equal(tensor, old[name]), name
    moved = weights(tuned.recogniser.modules)
    assert any(not torch.equal(moved[name], old[name]) for name in old)
    # At such a learning rate, they cannot be far.
    assert all((moved[name] - old[name]).abs().max() < 0.02 for name in old)
    assert torch.equal(*(p.recogniser.modules["normalize"].glob_mean for p in (pretrained, tuned)))
    # The same command again has nothing to do, and one of another training is refused.
    curve = (output / "curve.csv").read_bytes()
    again = adapt.run(RECIPES, command)
    assert (again["tests"], again["before"]) == (content["tests"], content["before"])
    assert (output / "curve.csv").read_bytes() == curve
    with pytest.raises(InputError, match="different experiment: lr was"):
        adapt.run(RECIPES, [part.replace("--lr=0.0001", "--lr=0.5") for part in command])


def test_a_new_alphabet_gets_a_new_tokenizer(trained, sets, tmp_path, caplog):
    folder, kind = trained
    cyrillic = str.maketrans("AEOTNIS", "АЕОТНИС")
    new = relabelled(tmp_path / "new", sets, lambda text: text.translate(cyrillic))
    output = tmp_path / "out"
    command = options(folder, new, output, old=sets["valid"])
    command += ["--max_symbols_per_frame=1"] if kind == "transducer" else []
    content = adapt.run(RECIPES, command)
    assert "a new one (char" in caplog.text and "does not know А Е И" in caplog.text
    tokenizer = tokenizers.load(output / "tokenizer.model")
    letters = {tokenizer.id_to_piece(i) for i in range(tokenizer.get_piece_size())}
    assert set("АЕОТНИС") <= letters and not letters & set("AEOTNIS")
    assert adapt.read(output).recogniser.modules["ctc_lin"].w.weight.shape[0] == len(letters)
    assert content["tests"].keys() == {"valid", "old"}
    # Before training, the model writes with its own letters.
    assert content["before"]["old"]["words"] == content["before"]["valid"]["words"] > 0


@the_same_for_both
def test_a_tokenizer_that_is_wished(trained, sets, tmp_path):
    folder, _ = trained

    def size(**changes):
        adapt.run(RECIPES, [*options(folder, sets, tmp_path / "out", **changes), "--dry_run"])
        return tokenizers.load(tmp_path / "out" / "tokenizer.model").get_piece_size()

    assert size(tokenizer="new", token_type="bpe", output_neurons=40) == 40


class Stopped(finetune.FineTunedCTCAttention):
    def on_stage_start(self, stage, epoch=None):
        if epoch == 2:
            raise KeyboardInterrupt
        super().on_stage_start(stage, epoch)


@the_same_for_both
def test_an_interrupted_fine_tuning_ends_like_an_uninterrupted_one(
    trained, sets, tmp_path, monkeypatch
):
    """Bit by bit, parts with their own learning rates and frozen parts included."""
    folder, kind = trained
    changes = {"number_of_epochs": 2, "dropout": 0.2, "freeze_steps": 3, "lr": 0.01}
    changes |= {"lr_scale": "{CNN: 0.5}", "batch_seconds": 8, "avg_checkpoints": 1}
    adapt.run(RECIPES, options(folder, sets, tmp_path / "whole", **changes))
    parts = options(folder, sets, tmp_path / "parts", **changes)
    with monkeypatch.context() as patch:
        needed = adapt.KINDS[kind][0]
        patch.setitem(adapt.KINDS, kind, (needed, Stopped))
        with pytest.raises(KeyboardInterrupt):
            adapt.run(RECIPES, parts)
    adapt.run(RECIPES, parts)
    for name in ("model", "optimizer"):
        ours, theirs = (
            torch.load(max((tmp_path / part / "save").glob("CKPT*")) / f"{name}.ckpt")
            for part in ("whole", "parts")
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# Mistakes: one line


@pytest.fixture
def refused(capsys):
    def check(command, message):
        with pytest.raises(SystemExit) as caught, said_in_one_line():
            adapt.run(RECIPES, [str(part) for part in command])
        assert caught.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(lines) == 1 and message in lines[0], lines

    return check


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"pretrained": "/gone"}, "/gone: no such folder"),
        ({"train": "/gone.csv"}, "/gone.csv: there is no such table"),
        ({"tokenizer": "best"}, "tokenizer must be one of auto, keep, new, got 'best'"),
        ({"lrr": 3}, "did you mean lr?"),
        ({"valid_batch_size": 0}, "valid_batch_size must be a positive integer, got 0"),
        ({"lr_scale": "{Transformer.encodr: 1}"}, "no part 'Transformer.encodr'"),
        ({"tokenizer": "new", "token_type": "bpe"}, "vocab_size must be given"),
        ({"output_neurons": 99}, "output_neurons is 99: set output_neurons to"),
    ),
)
def test_mistakes(trained, sets, tmp_path, refused, changes, message):
    folder, kind = trained
    if kind == "ctc_attention":
        refused(options(folder, sets, tmp_path / "out", **changes), message)


def test_mistakes_of_folders(trained, sets, tmp_path, refused):
    folder, kind = trained
    refused([], "pretrained is required: give --pretrained=")
    refused([f"--pretrained={folder}", "--train=a.csv"], "valid is required: give --valid=")
    before = sorted(path.name for path in folder.iterdir())
    refused(options(folder, sets, folder), "holds another training; choose another")
    assert sorted(path.name for path in folder.iterdir()) == before
    rows = tmp_path / "t.csv"
    rows.write_text("path,said\na.wav,ONE\n")
    refused(
        options(folder, sets | {"train": rows}, tmp_path / "out"), "no column audio; found path"
    )


def test_a_model_that_no_recipe_is_for(trained, tmp_path):
    folder, kind = trained
    pretrained = adapt.read(folder)
    for name in ("seq_lin", "joiner"):
        pretrained.recogniser.modules.pop(name, None)
    with pytest.raises(InputError, match="needs ctc_lin and seq_lin or joiner and predictor"):
        _ = pretrained.kind


@the_same_for_both
def test_tables_of_any_columns_do(trained, sets, tmp_path):
    """What the command says of its data reaches the manifests."""
    folder, _ = trained
    table_ = tmp_path / "mine.tsv"
    rows = [row for row in manifests.read(sets["train"])][:4]
    lines = ["clip\tsaid", *(f"{row['wav']}\t{row['wrd']}" for row in rows)]
    table_.write_text("\n".join(lines) + "\n")
    paths = table.prepare_files(tmp_path / "m", table_, table_, {}, "clip", "said")
    assert len(manifests.read(paths["train"])) == 4
    command = options(folder, sets | {"train": table_, "valid": table_}, tmp_path / "out")
    adapt.run(RECIPES, [*command, "--audio_column=clip", "--text_column=said", "--dry_run"])
    assert len(manifests.read(tmp_path / "out" / "manifests" / "train.csv")) == 4
