"""A package: a folder that stands alone, made of what a training left.

Its `config.json` has

* `format_version`, `name`, `language`, `license`, `dataset`, `speechbrain_interface`;
* `sample_rate`, `output_neurons`, and as trees (`summarymixing.inference.tree`) `compute_features`,
  `modules` by name, `search` (the greedy one, null: the usual one) and `test_search`;
* `test_chunks`: chunk size and left context of the test, null for none;
* `tests`: what the training's `results.json` says of each test set, and intervals;
* `training`: the recipe's other hyperparameters, without paths; `chunks`, the arguments of the
  `RandomChunks` that it was trained in, null for none;
* `files`: SHA-256 of what `summarymixing.inference.loading.load` reads beside it.
"""

import json
import os
import pydoc
import re
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import soundfile
import torch
from speechbrain.inference.ASR import EncoderDecoderASR
from torch import nn

from summarymixing.dataio import audio, manifests
from summarymixing.decoding.methods import split_search
from summarymixing.errors import InputError
from summarymixing.files import sha256, write_whole
from summarymixing.inference import tree
from summarymixing.inference.card import mixers, write_card
from summarymixing.inference.folders import CONFIG, PACKAGE, made_whole
from summarymixing.inference.loading import (
    CHUNKS,
    TOKENIZER,
    WEIGHTS,
    load,
    weights,
)
from summarymixing.scoring import report, transcripts
from summarymixing.training.loop import PREEMPTED
from summarymixing.training.results import SCORES

_ADAPTERS = "summarymixing.inference.pretrained"
_EXAMPLE = "example.wav"
_USUAL, _LONGEST = 4.0, 60  # seconds of an example


def package(run, out, example=None, force=False, name=None, language=None, license=None):
    """Writes a package, and checks that it does what the training's recogniser does.

    Arguments
    ---------
    run : str or os.PathLike
        The output folder of a training that has ended.
    out : str or os.PathLike
        The folder to make.
    example : str or os.PathLike, optional
        An audio file; an utterance of the first test set if left out.
    force : bool
        Whether a package that is there may be replaced.
    name : str, optional
        Of the model; by default of encoder, mixer and corpus.
    language : str, optional
        ISO 639; by default what the recipe says, or "en".
    license : str, optional
        Of the weights, as the Hugging Face Hub names licences; "unknown" by default.

    Returns
    -------
    str
        What the test's search finds in the example.

    Raises
    ------
    InputError
        If `run` is no finished training, `out` is there or cannot be written, or the model has
        parts that a package cannot have. Then nothing is written.
    """
    run, out = Path(run), PACKAGE.place(out, force)
    results = _results(run)
    recogniser = load(run)
    config = _config(run, recogniser, results)
    config["name"] = name or _name(config)
    config["language"] = language or config["training"].get("language") or "en"
    config["license"] = license or "unknown"
    sound = _example(run, results, recogniser.sample_rate, example)

    with made_whole(out) as new:
        _write(new, config, recogniser, sound)
        text = _checked(new, recogniser)
        write_whole(new / "README.md", write_card(config, results, text))
    return text


def _results(run):
    if not (run / "hyperparams.yaml").is_file():
        raise InputError(f"{run}: no output folder of a training (there is no hyperparams.yaml)")
    path = run / "results.json"
    if not path.is_file() or (run / PREEMPTED).exists():
        raise InputError(f"{run}: this training has not ended: start its command again, and then")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not results["tests"]:
            raise InputError(f"{path}: there is no test set in it")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: no results of a training: {type(error).__name__}") from error
    return results


def _search(node):
    if not isinstance(node, str):
        return node
    method, arguments = split_search(node)
    name = "summarymixing.decoding.make_search"
    return {"class": name, "arguments": {"method": method, **arguments}}


def _config(run, recogniser, results):
    path = run / "hyperparams.yaml"
    try:
        recipe = tree.read_yaml(path.read_text(encoding="utf-8"))
        greedy, search = (_search(recipe[name]) for name in ("valid_search", "test_search"))
        built = pydoc.locate(greedy.get("class", "")) is type(recogniser.search)
        parts = {
            "sample_rate": recipe["sample_rate"],
            "output_neurons": recipe["output_neurons"],
            "compute_features": recipe["compute_features"],
            "modules": recipe["model"]["modules"],
            "search": greedy if built else None,
            "test_search": search,
            "training": {key: value for key, value in recipe.items() if _is_plain(key, value)},
        }
        parts = tree.allowed(parts)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    sampler = recipe.get(CHUNKS)
    parts["training"]["chunks"] = sampler.get("arguments", {}) if sampler else None
    chunks = recogniser.test_chunks
    return {
        PACKAGE.version: PACKAGE.newest,
        "speechbrain_interface": "EncoderDecoderASR",
        "dataset": _corpus(run, recipe),
        **parts,
        "test_chunks": chunks
        and {"chunk_size": chunks.chunk_size, "left_context_size": chunks.left_context_size},
        "tests": {name: _scores(run, name, found) for name, found in results["tests"].items()},
    }


def _is_plain(key, value):
    """Whether it is a number or a word, and no path of this machine."""
    if isinstance(value, str) and (os.sep in value or key.endswith(("_folder", "_file"))):
        return False
    return not key.startswith("__") and isinstance(value, (str, int, float, type(None)))


def _corpus(run, recipe):
    path = run / "manifests" / "prepare.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["arguments"]["corpus"]
    except (OSError, ValueError, KeyError, TypeError):
        # A recipe may prepare in its own way; then its module has a name.
        prepare = recipe.get("prepare")
        return prepare["name"].split(".")[-2] if isinstance(prepare, dict) else "unknown"


def _name(config):
    arguments = config["modules"]["Transformer"].get("arguments", {})
    kind = "transducer" if "joiner" in config["modules"] else "ctc"
    words = [arguments.get("encoder_module", ""), mixers(arguments, ""), kind]
    return "-".join(filter(None, ["asr", *words, config["dataset"]])).lower()


def _manifest(run, name):
    """Of a test set; a test in chunks has the utterances of the same without."""
    return run / "manifests" / (re.sub(r"_chunk\d+(_left\d+)?$", "", name) + ".csv")


def _scores(run, name, found):
    """Of a test set, with intervals if its hypotheses are there."""
    scores = {key: found.get(key) for key in SCORES}
    scores |= {"wer_interval": None, "cer_interval": None, "interval_unit": None}
    path, manifest = run / f"hypotheses_{name}.txt", _manifest(run, name)
    if not path.is_file() or not manifest.is_file():
        return scores
    references = transcripts.read(manifest, "csv")
    hypotheses = transcripts.read(path, "text").texts
    evaluated = report.evaluate(references.texts, [hypotheses], references.speakers)
    (system,) = evaluated["systems"]
    if abs((system["wer"] or 0.0) - (scores["wer"] or 0.0)) > 1e-6:
        raise InputError(
            f"{path}: its word error rate is {system['wer']}, and that of results.json "
            f"{scores['wer']}: they are of two trainings; test again (--test_only)"
        )
    intervals = {key: system[key] for key in ("wer_interval", "cer_interval")}
    return scores | intervals | {"interval_unit": evaluated["bootstrap"]["unit"]}


def _example(run, results, rate, path):
    if path is not None:
        samples = audio.read(path, rate)
    else:
        manifest = _manifest(run, next(iter(results["tests"])))
        try:
            rows = manifests.read(manifest)
            row = min(rows, key=lambda row: abs(float(row["duration"]) - _USUAL))
            samples = manifests.read_audio(row, rate)
        except InputError as error:
            raise InputError(f"{error}; give another recording with --example") from error
    if len(samples) > _LONGEST * rate:
        raise InputError(f"{path}: an example has at most {_LONGEST} seconds")
    return samples


def _write(folder, config, recogniser, sound):
    files = {}

    def put(argument, source):
        # A language model, say. SpeechBrain's Pretrainer wants this suffix.
        files[argument] = f"{argument}.ckpt"
        if not os.path.isfile(source):
            raise InputError(
                f"{argument}={source}: there is no such file, and the test's search has it"
            )
        shutil.copyfile(source, folder / files[argument])
        return {"file": files[argument]}

    config["test_search"] = tree.with_files(config["test_search"], put)
    modules = recogniser.modules
    tensors = {name: value.cpu().clone() for name, value in weights(modules).items()}
    # Bytes, written by Python: what fails then is an OSError.
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    trained = nn.ModuleDict({name: modules[name] for name in modules if name != "normalize"})
    torch.save(trained.state_dict(), folder / "model.ckpt")
    torch.save(modules["normalize"]._statistics_dict(), folder / "normalizer.ckpt")
    for name in (TOKENIZER, "tokenizer.ckpt"):
        (folder / name).write_bytes(recogniser.tokenizer.serialized_model_proto())
    soundfile.write(folder / _EXAMPLE, sound.numpy(), recogniser.sample_rate, subtype="PCM_16")
    names = (WEIGHTS, TOKENIZER, *files.values())
    config["files"] = {name: sha256(folder / name) for name in names}
    write_whole(folder / CONFIG, json.dumps(config, indent=2, allow_nan=False) + "\n")
    write_whole(folder / "hyperparams.yaml", _SPEECHBRAIN + tree.to_yaml(_yaml(config, files)))


_SPEECHBRAIN = """\
# For SpeechBrain, made by scripts/package.py:
# EncoderDecoderASR.from_hparams(source=<this folder>, savedir=<a folder for links>)

"""


def _yaml(config, files):
    """The same for SpeechBrain's inference classes."""
    parts = {name: tree.Reference(f"parts[{name}]") for name in config["modules"]}
    trained = {name: part for name, part in parts.items() if name != "normalize"}
    loadables = {
        "model": tree.Reference("model"),
        "normalizer": parts["normalize"],
        "tokenizer": tree.Reference("tokenizer"),
        **dict.fromkeys(files, tree.Reference("search")),
    }
    hooks = {
        "model": {"name": f"{_ADAPTERS}.load_model"},
        "normalizer": {"name": f"{_ADAPTERS}.load_normalizer"},
    }
    for argument in files:
        hooks[argument] = {
            "name": f"{_ADAPTERS}.give_file",
            "arguments": {"argument": argument},
        }
    parts_of = tree.Reference("parts")
    return {
        "sample_rate": config["sample_rate"],
        "compute_features": config["compute_features"],
        "parts": config["modules"],
        "search": tree.with_files(config["test_search"], lambda key, value: None),
        "model": {"class": "torch.nn.ModuleDict", "arguments": {"modules": trained}},
        "tokenizer": {"class": "sentencepiece.SentencePieceProcessor"},
        "audio_normalizer": {
            "class": "speechbrain.dataio.preprocess.AudioNormalizer",
            "arguments": {"sample_rate": tree.Reference("sample_rate")},
        },
        "encoder": {
            "class": f"{_ADAPTERS}.Encoder",
            "arguments": {
                "compute_features": tree.Reference("compute_features"),
                "parts": parts_of,
                **(config["test_chunks"] or {}),
            },
        },
        "decoder": {
            "class": f"{_ADAPTERS}.Decoder",
            "arguments": {"search": tree.Reference("search"), "parts": parts_of},
        },
        "modules": {name: tree.Reference(name) for name in ("encoder", "decoder")},
        "pretrainer": {
            "class": "speechbrain.utils.parameter_transfer.Pretrainer",
            "arguments": {"loadables": loadables, "custom_hooks": hooks},
        },
    }


def _checked(folder, recogniser):
    """What the package makes of its example, by both loaders, as the training's recogniser does."""
    packaged = load(folder)
    before, after = weights(recogniser.modules), weights(packaged.modules)
    same = [torch.equal(tensor, after[name]) for name, tensor in before.items()]
    samples = audio.read(folder / _EXAMPLE, recogniser.sample_rate)
    length = torch.tensor([len(samples)])
    expected, found = (r.test(samples[None], length) for r in (recogniser, packaged))
    text = recogniser.tokenizer.decode(expected[0])
    with tempfile.TemporaryDirectory() as links:
        host = EncoderDecoderASR.from_hparams(
            source=str(folder), savedir=links, run_opts={"device": "cpu"}
        )
        hosted = host.transcribe_file(str(folder / _EXAMPLE))
    if not all(same) or (found, hosted) != (expected, text):
        raise RuntimeError(
            f"the package differs from the training: {same.count(False)} tensors, and the example "
            f"says {text!r} there, {packaged.tokenizer.decode(found[0])!r} here and {hosted!r} in "
            "SpeechBrain"
        )
    return text
