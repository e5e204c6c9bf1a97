"""Packages against the trainings that they are made of, in our loader and in SpeechBrain's."""

import hashlib
import json
import pickle
import re
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import soundfile
import torch
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.utils.checkpoints import Checkpointer

from summarymixing.dataio import manifests
from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.errors import InputError
from summarymixing.inference import loading, packaging
from summarymixing.inference.packaging import package
from summarymixing.scoring import metrics, report
from summarymixing.training import config
from summarymixing.training.checkpoints import recoverable_model
from summarymixing.training.results import write_results

ROOT = Path(__file__).parents[2]
TEXTS = ["one two three four five", "six seven eight nine", "zero and ten make a sentence"]
SIZES = {
    "data_folder": "/a/folder/of/this/machine",
    "output_neurons": 32,
    "d_model": 16,
    "encoder_nhead": 1,
    "num_encoder_layers": 1,
    "d_ffn": 16,
    "cnn_channels": 4,
    "test_beam_size": 2,
    "token_type": "unigram",
}
ATTENTION = {"nhead": 2, "num_decoder_layers": 1, "csgu_linear_units": 16}
TRANSDUCER = {
    "predictor_dim": 12,
    "joint_dim": 8,
    "max_symbols_per_frame": 2,
    "test_chunk_size": 4,
    "test_left_context": 2,
}
LM = """\
  lm_file: {file}
  lm_weight: 20.0
  lm: !name:speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
    vocab: 32
    d_model: 8
    nhead: 2
    num_encoder_layers: 1
    num_decoder_layers: 0
    d_ffn: 8
    activation: !name:torch.nn.GELU
    normalize_before: false
"""


def _lm():
    return TransformerLM(
        32, 8, 2, 1, 0, 8, activation=torch.nn.GELU, normalize_before=False, dropout=0.0
    )


def _recipe(kind, folder):
    """The resolved YAML of a tiny recipe, as a training leaves it."""
    if kind == "transducer":
        path, sizes = "AN4/hparams/transducer.yaml", TRANSDUCER
    else:
        path, sizes = "Mini/hparams/branchformer_summarymixing.yaml", ATTENTION
    overrides = {**SIZES, **sizes, "output_folder": str(folder)}
    text = config.resolved(ROOT / "recipes" / path, overrides)
    # An untrained decoder never ends.
    text = re.sub(
        r"(!new:summarymixing.decoding.JointBeamSearch\n)", r"\1  max_decode_ratio: 0.1\n", text
    )
    if kind == "ctc":
        text = re.sub(r"\n    seq_lin: \*\w+", "", text)
        text = text[: text.index("\ntest_search:")]
        text += "\ntest_search: !new:summarymixing.decoding.CTCGreedySearch\n"
    if kind == "lm":
        # Weights that make up the decoder's mind.
        weights = {name: 5 * tensor for name, tensor in _lm().state_dict().items()}
        torch.save(weights, folder / "some_lm.pt")
        start = text.index("\ntest_search:")
        body = text[start:].rstrip("\n") + "\n" + LM.format(file=folder / "some_lm.pt")
        text = text[:start] + body
    return text


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """make_run(kind): the folder of a training that has ended, its results those of its search."""
    made = {}

    def make(kind):
        if kind not in made:
            torch.manual_seed(len(made))
            made[kind] = _train(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return make


def _train(kind, folder):
    text = _recipe(kind, folder)
    (folder / "hyperparams.yaml").write_text(text)
    hparams = config.load(str(folder / "hyperparams.yaml"))
    tokenizers.train(TEXTS, folder / "tokenizer.model", 32)
    modules = hparams["model"]["modules"]
    model = recoverable_model(modules)
    checkpointer = Checkpointer(
        folder / "save",
        {"model": model, "normalizer": modules["normalize"], "counter": hparams["epoch_counter"]},
    )
    for epoch in range(2):
        modules["normalize"](hparams["compute_features"](_noise(48000)[None], torch.ones(1))[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        checkpointer.save_checkpoint(meta={"epoch": epoch, "ACC": 0.5, "loss": 1.0, "WER": 9.0})

    (folder / "audio").mkdir()
    utterances = []
    for number in range(6):
        path = folder / "audio" / f"{number}.wav"
        soundfile.write(path, _noise(16000 + 4000 * number).numpy(), 16000)
        speaker = f"speaker{number % 3}"
        utterances.append(manifests.Utterance(f"u{number}", str(path), speaker, TEXTS[number % 3]))
    manifests.write(folder / "manifests" / "test.csv", utterances)
    (folder / "manifests" / "prepare.json").write_text('{"arguments": {"corpus": "LibriSpeech"}}')

    rows, waveforms, lengths = _batch(folder)
    recogniser = loading.load(folder)
    found = recogniser.test(waveforms, lengths)
    hypotheses = {row["ID"]: recogniser.tokenizer.decode(ids) for row, ids in zip(rows, found)}
    assert len(set(hypotheses.values())) > 1
    name = "test_chunk4_left2" if kind == "transducer" else "test"
    lines = [f"{utterance}\t{text}\n" for utterance, text in hypotheses.items()]
    (folder / f"hypotheses_{name}.txt").write_text("".join(lines))
    references = {row["ID"]: row["wrd"] for row in rows}
    scores = metrics.score(references, hypotheses)
    write_results(folder / "results.json", {name: scores}, params=1234, epochs=2, seed=1)
    return folder


def _noise(samples):
    loud = torch.rand(-(-samples // 1000)).repeat_interleave(1000)[:samples]
    return (0.1 * torch.randn(samples) * loud**4).clamp(-1, 1)


def _batch(run):
    rows = list(manifests.read(run / "manifests" / "test.csv"))
    waveforms = [manifests.read_audio(row) for row in rows]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    return rows, torch.nn.utils.rnn.pad_sequence(waveforms, True), lengths


def _hypotheses(run):
    (path,) = run.glob("hypotheses_*.txt")
    lines = path.read_text().rstrip("\n").split("\n")
    return dict(line.split("\t") for line in lines)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def no_code(monkeypatch):
    """Whatever could run code of a folder fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("code of a folder could run")

    for where in (
        "torch.load",
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "yaml.load",
        "ruamel.yaml.YAML",
        "summarymixing.inference.loading.load_hyperpyyaml",
    ):
        monkeypatch.setattr(where, refuse)


KINDS = ("ctc_attention", "transducer", "ctc", "lm")


@pytest.mark.parametrize("kind", KINDS)
def test_it_stands_alone_and_finds_what_the_training_found(
    make_run, kind, tmp_path, no_network, request
):
    """After the training's folder has gone, but for its audio."""
    run = tmp_path / "run"
    shutil.copytree(make_run(kind), run, symlinks=True)
    if kind == "lm":  # its path is the recipe's
        text = (run / "hyperparams.yaml").read_text()
        (run / "hyperparams.yaml").write_text(text.replace(str(make_run(kind)), str(run)))
    expected, before = _hypotheses(run), loading.weights(loading.load(run).modules)
    text = package(run, tmp_path / "out")
    rows, waveforms, lengths = _batch(run)
    shutil.rmtree(run)
    shutil.move(tmp_path / "out", tmp_path / "moved")

    asr = EncoderDecoderASR.from_hparams(
        source=str(tmp_path / "moved"), savedir=tmp_path / "links", run_opts={"device": "cpu"}
    )
    found, _ = asr.transcribe_batch(waveforms, lengths / lengths.max())
    assert found == list(expected.values())
    alone = [
        asr.transcribe_batch(w[None, :n], torch.ones(1))[0][0] for w, n in zip(waveforms, lengths)
    ]
    assert alone == found
    assert asr.transcribe_file(str(tmp_path / "moved" / "example.wav")) == text

    if kind != "lm":  # the language model is for the search to read
        request.getfixturevalue("no_code")
    recogniser = loading.load(tmp_path / "moved")
    after = loading.weights(recogniser.modules)
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    found = [recogniser.tokenizer.decode(ids) for ids in recogniser.test(waveforms, lengths)]
    assert found == list(expected.values())
    assert not any(module.training for module in recogniser.modules.values())
    chunks = recogniser.test_chunks
    assert (
        chunks is None
        if kind != "transducer"
        else (chunks.chunk_size, chunks.left_context_size) == (4, 2)
    )


def test_the_language_model_counts(make_run):
    """Else the test above would say nothing of it."""
    run = make_run("lm")
    _, waveforms, lengths = _batch(run)
    recogniser = loading.load(run)
    recogniser.test_search.lm_weight = 0.0
    found = [recogniser.tokenizer.decode(ids) for ids in recogniser.test(waveforms, lengths)]
    assert found != list(_hypotheses(run).values())


@pytest.fixture(scope="module")
def made(make_run, tmp_path_factory):
    """A training's folder and a package of it, to be read only."""
    out = tmp_path_factory.mktemp("made") / "package"
    package(make_run("ctc_attention"), out)
    return make_run("ctc_attention"), out


@pytest.fixture
def copied(made, tmp_path):
    """The same package to be damaged."""
    return Path(shutil.copytree(made[1], tmp_path / "package"))


def test_our_commands_take_it_for_the_training(made, load_script, capsys):
    run, out = made
    for script in ("transcribe", "stream"):
        said = []
        for model in (run, out):
            try:
                load_script(script).main([str(model), str(out / "example.wav")])
            except SystemExit as stop:
                assert stop.code == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1] and said[0].strip()


def test_card(made):
    run, out = made
    card = huggingface_hub.ModelCard.load(out / "README.md")
    scores, hypotheses = json.loads((run / "results.json").read_text()), _hypotheses(run)
    rows = manifests.read(run / "manifests" / "test.csv")
    expected = report.evaluate(
        {row["ID"]: row["wrd"] for row in rows},
        [hypotheses],
        {row["ID"]: row["spk_id"] for row in rows},
    )["systems"][0]
    wer, cer = card.data.eval_results
    assert (wer.metric_type, cer.metric_type) == ("wer", "cer")
    assert wer.metric_value == round(scores["tests"]["test"]["wer"], 2)
    interval = wer.metric_args["bootstrap_interval_95"]
    assert interval == [round(bound, 2) for bound in expected["wer_interval"]]
    assert (wer.dataset_name, wer.dataset_type) == ("LibriSpeech", "openslr/librispeech_asr")
    assert (wer.dataset_split, card.data.language, card.data.license) == ("test", "en", "unknown")
    assert card.data.model_name == "asr-branchformer-summarymixing-ctc-librispeech"
    assert {"automatic-speech-recognition", "CTC", "Attention"} <= set(card.data.tags)
    assert card.data.datasets == ["openslr/librispeech_asr"]


def test_nothing_of_this_machine_is_in_it(made):
    run, out = made
    for path in out.iterdir():
        content = path.read_bytes()
        assert str(run).encode() not in content and b"/a/folder/of/this" not in content, path


@pytest.mark.parametrize("block", range(2))
def test_the_cards_examples_run(made, monkeypatch, capsys, tmp_path, block):
    _, out = made
    text = (out / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.S)[block].replace("FOLDER", str(out))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    found = capsys.readouterr().out
    assert found.strip()
    if block == 1:
        assert found.strip() in text


def test_own_words_and_example(make_run, tmp_path):
    soundfile.write(tmp_path / "a.flac", torch.stack([_noise(8000)] * 2, 1).numpy(), 8000)
    options = {"name": "my-model", "language": "pl", "license": "cc0-1.0"}
    package(make_run("ctc"), tmp_path / "out", tmp_path / "a.flac", **options)
    info = soundfile.info(tmp_path / "out" / "example.wav")
    assert (info.samplerate, info.channels, info.frames) == (16000, 1, 16000)
    data = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.model_name, data.language, data.license) == tuple(options.values())
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: content[key] for key in options} == options


def _change_config(out, change):
    path = out / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _change_weights(out, change):
    tensors = safetensors.torch.load_file(out / "model.safetensors")
    change(tensors)
    data = safetensors.torch.save(tensors)
    (out / "model.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    _change_config(out, lambda c: c["files"].update({"model.safetensors": digest}))


KEY = "Transformer.encoder.norm.norm.weight"


@pytest.mark.parametrize(
    "change, message",
    (
        (lambda t: t.pop(KEY), f"{KEY} is missing"),
        (lambda t: t.pop("normalize.glob_mean"), "normalize.glob_mean is missing"),
        (lambda t: t.update(more=torch.ones(2)), "more is surplus"),
        (lambda t: t.update({KEY: torch.ones(3)}), rf"{KEY} is of shape \[3\].* is \[16\]"),
    ),
)
def test_weights_fit_strictly(copied, change, message):
    out = copied
    _change_weights(out, change)
    with pytest.raises(InputError, match=message) as error:
        loading.load(out)
    assert "\n" not in str(error.value) and str(out) in str(error.value)


@pytest.mark.parametrize(
    "name, change, message",
    (
        ("model.ckpt", lambda t: t.pop(KEY), f"{KEY} is missing"),
        ("model.ckpt", lambda t: t.update(more=torch.ones(2)), "more is surplus"),
        ("model.ckpt", lambda t: t.update({KEY: torch.ones(3)}), "size mismatch"),
        ("normalizer.ckpt", lambda t: t.pop("count"), "count is missing"),
    ),
)
def test_speechbrain_loads_strictly(copied, tmp_path, name, change, message):
    out = copied
    found = torch.load(out / name)
    change(found)
    torch.save(found, out / name)
    with pytest.raises(InputError, match=message) as error:
        EncoderDecoderASR.from_hparams(source=str(out), savedir=tmp_path / "links")
    assert "\n" not in str(error.value)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _tear(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "damage, message",
    (
        (lambda out: _flip(out / "model.safetensors"), "model.safetensors: the file is damaged"),
        (lambda out: _flip(out / "tokenizer.model"), "tokenizer.model: the file is damaged"),
        (lambda out: (out / "model.safetensors").unlink(), "model.safetensors: No such file"),
        (lambda out: (out / "tokenizer.model").unlink(), "tokenizer.model: No such file"),
        (lambda out: _tear(out / "config.json"), "config.json: it is no JSON"),
        (lambda out: (out / "config.json").write_text("[" * 100000), "it is no JSON"),
        (lambda out: (out / "config.json").write_text("{}"), "wanted: package of"),
        (lambda out: (out / "config.json").write_text("[]"), "no format_version"),
        (lambda out: _change_config(out, lambda c: c.update(format_version=99)), "newer one"),
        (lambda out: _change_config(out, lambda c: c.update(format_version="1")), "newer one"),
        (lambda out: _change_config(out, lambda c: c.pop("modules")), "'modules' is missing"),
        (lambda out: _change_config(out, lambda c: c.update(modules=[])), "modules cannot be"),
        (lambda out: _change_config(out, lambda c: c.update(sample_rate=None)), "sample_rate"),
        (lambda out: _change_config(out, lambda c: c.update(output_neurons=33)), "32 tokens"),
        (
            lambda out: _change_config(
                out, lambda c: c.update(test_search={"class": "os.system", "arguments": ["true"]})
            ),
            "os.system is nothing that a package may build",
        ),
        (
            lambda out: _change_config(
                out, lambda c: c["modules"].update(CNN={"name": "torch.nn.GELU"})
            ),
            "is no Module",
        ),
        (lambda out: _change_config(out, lambda c: c["modules"].pop("normalize")), "normalize"),
    ),
)
def test_what_is_wrong_with_a_package_is_said(copied, damage, message):
    out = copied
    damage(out)
    with pytest.raises(InputError, match=message) as error:
        loading.load(out)
    assert "\n" not in str(error.value) and str(out) in str(error.value)


def test_weights_that_are_no_safetensors(copied):
    """With the right digest: a pickle is not read."""
    out = copied
    data = pickle.dumps({"a": 1})
    (out / "model.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    _change_config(out, lambda c: c["files"].update({"model.safetensors": digest}))
    with pytest.raises(InputError, match="the weights cannot be read"):
        loading.load(out)


@pytest.fixture
def command(load_script, capsys):
    """command(*arguments) → exit status, standard output, standard error."""
    main = load_script("package").main

    def call(*arguments):
        capsys.readouterr()
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


def test_command(make_run, command, tmp_path):
    status, out, _ = command(make_run("ctc"), tmp_path / "new" / "out")
    assert status == 0 and str(tmp_path / "new" / "out") in out
    assert loading.is_package(tmp_path / "new" / "out")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize(
    "change, message",
    (
        (lambda run: shutil.rmtree(run), "no output folder of a training"),
        (lambda run: (run / "hyperparams.yaml").unlink(), "no output folder of a training"),
        (lambda run: (run / "results.json").unlink(), "has not ended"),
        (lambda run: (run / "preempted").write_text(""), "has not ended"),
        (lambda run: (run / "results.json").write_text('{"tests"'), "no results of a training"),
        (lambda run: (run / "results.json").write_text('{"tests": {}}'), "no test set"),
        (lambda run: shutil.rmtree(run / "save"), "no checkpoints"),
        (lambda run: (run / "tokenizer.model").unlink(), "tokenizer.model: no such file"),
        (
            lambda run: (run / "hypotheses_test.txt").write_text(
                "".join(f"u{i} {TEXTS[i % 3]}\n" for i in range(6))
            ),
            "two trainings",
        ),
        (lambda run: (run / "manifests" / "test.csv").unlink(), "--example"),
        (
            lambda run: (run / "hyperparams.yaml").write_text(
                (run / "hyperparams.yaml")
                .read_text()
                .replace("!name:torch.nn.GELU", "!name:torch.nn.Softmax")
            ),
            "torch.nn.Softmax is nothing that a package may build",
        ),
    ),
)
def test_runs_that_are_no_packages(make_run, command, tmp_path, change, message):
    run = tmp_path / "run"
    shutil.copytree(make_run("ctc"), run)
    change(run)
    status, _, err = command(run, tmp_path / "out")
    assert status == 2 and err.count("\n") == 1 and message in err
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}


def test_what_is_there_stays(make_run, copied, command):
    run, out = make_run("ctc"), copied
    before = (out / "config.json").read_text()
    status, _, err = command(run, out, "--name=other")
    assert status == 2 and "--force" in err and (out / "config.json").read_text() == before
    status, _, err = command(run, out, "--name=other", "--force")
    assert status == 0 and "other" in (out / "config.json").read_text()
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    # What is not the package's own is not ours to remove.
    (out / "notes.txt").write_text("mine")
    status, _, err = command(run, out, "--force")
    assert status == 2 and "notes.txt, not of the package" in err and err.count("\n") == 1
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    (out / "config.json").unlink()
    status, _, err = command(run, out, "--force")
    assert status == 2 and "is no package" in err and (out / "README.md").exists()


@pytest.mark.parametrize("error", (OSError(28, "No space left on device"), KeyboardInterrupt()))
def test_nothing_is_left_of_a_package_that_fails(make_run, tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(packaging, "write_card", fail)
    with pytest.raises((InputError, KeyboardInterrupt)) as raised:
        package(make_run("ctc"), tmp_path / "out")
    if isinstance(error, OSError):
        assert str(raised.value) == f"{tmp_path / 'out'}: it cannot be written: {error.strerror}"
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_would_differ_is_not_made(make_run, tmp_path, monkeypatch):
    def other(folder):
        recogniser = loading.load(folder)
        if folder.name.startswith("."):
            recogniser.modules["ctc_lin"].w.bias.data += 1
        return recogniser

    monkeypatch.setattr(packaging, "load", other)
    with pytest.raises(RuntimeError, match="1 tensors"):
        package(make_run("ctc"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_example_is_short(make_run, tmp_path):
    soundfile.write(tmp_path / "long.wav", torch.zeros(61 * 8000).numpy(), 8000)
    with pytest.raises(InputError, match="at most 60 seconds"):
        package(make_run("ctc"), tmp_path / "out", tmp_path / "long.wav")
