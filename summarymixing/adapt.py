"""Trained models made ready for other work: other tokens, another mixer, other speech.

`main` is the recipe of fine-tuning: it writes a recipe for the model that it is given, with the
weights to begin with, and hands over to `training.experiment`.
"""

import json
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import speechbrain as sb
import torch
from speechbrain.utils.distributed import (
    ddp_init_group,
    if_main_process,
    infer_device,
    run_on_main,
)
from tqdm import tqdm

from summarymixing.dataio import manifests
from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.files import write_whole
from summarymixing.inference import folders, loading, tree
from summarymixing.ops.padding import absolute_lengths
from summarymixing.scoring import metrics
from summarymixing.training import config, data, experiment, finetune, results
from summarymixing.training.checkpoints import recoverable_model
from summarymixing.training.chunks import RandomChunks

logger = logging.getLogger(__name__)

USAGE = """usage: train.py [RECIPE.yaml] --pretrained=MODEL --train=FILE --valid=FILE
                [--test=FILE] [--old=FILE] [--key=value ...] [--dry_run]

MODEL is the output folder of a training, or a package. Without RECIPE.yaml, the one here for its
kind of model is taken. Every key at the top of it, or of its base, is an option. What follows are
SpeechBrain's own.
"""

# A recipe for each kind of model, by the modules that it has.
KINDS = {
    "ctc_attention": ({"ctc_lin", "seq_lin"}, finetune.FineTunedCTCAttention),
    "transducer": ({"predictor", "joiner"}, finetune.FineTunedTransducer),
}
_CHUNKS = "dynchunktrain_config_sampler"
# What is filled into a recipe, besides what a model has of its own.
_FILLED_IN = ("sample_rate", "output_neurons", "initial", "compute_features", "model")
# Arguments of modules that are the number of tokens.
_TOKENS = ("tgt_vocab", "vocabulary", "n_neurons")
# In the names of an encoder's parameters.
_MIXERS = re.compile(r"^Transformer\.encoder\.layers\.\d+\.(mha_layer|self_att)\.")
_TOKENIZERS = ("auto", "keep", "new")


class Pretrained(NamedTuple):
    """A trained model, and what it is built of: trees as `inference.tree` has them.

    Arguments
    ---------
    recogniser : summarymixing.inference.Recogniser
    compute_features : dict
    modules : dict of str to dict
    search, test_search : dict or None
        The greedy one, and that of its test.
    chunks : dict or None
        What draws the chunks that it is trained in.
    """

    recogniser: loading.Recogniser
    compute_features: dict
    modules: dict
    search: dict | None
    test_search: dict | None
    chunks: dict | None

    @property
    def kind(self):
        """A key of `KINDS`."""
        for kind, (needed, _) in KINDS.items():
            if needed <= self.recogniser.modules.keys():
                return kind
        needed = " or ".join(" and ".join(sorted(modules)) for modules, _ in KINDS.values())
        raise InputError(f"the pretrained model cannot be trained on: it needs {needed}")


def read(folder, device="cpu"):
    """A trained model, of the output folder of a training or of a package.

    Raises
    ------
    InputError
        As `summarymixing.inference.load`.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"pretrained: the folder of a trained model is expected, got {folder!r}")
    recogniser = loading.load(folder, device)
    if loading.is_package(folder):
        parts = loading.read_config(folder)
        chunks = parts.get("training", {}).get("chunks")
        if chunks is not None:
            try:
                RandomChunks(**chunks)  # raises for what is no number: it may come from anywhere
            except (TypeError, InputError) as error:
                raise InputError(f"{folder}: the chunks of its training: {error}") from error
            name = "summarymixing.training.chunks.RandomChunks"
            chunks = {"class": name, "arguments": chunks}
    else:
        path = os.path.join(folder, "hyperparams.yaml")
        with open(path, encoding="utf-8") as file:
            parts = tree.read_yaml(file.read())
        parts = {"search": parts["valid_search"], **parts, **parts["model"]}
        chunks = parts.get(_CHUNKS)
    return Pretrained(
        recogniser,
        parts["compute_features"],
        parts["modules"],
        parts["search"],
        parts.get("test_search"),
        chunks,
    )


# A recipe for a pretrained model


def recipe(base, pretrained):
    """The text of a recipe with what a pretrained model has filled in.

    Arguments
    ---------
    base : str or os.PathLike
        The recipe without `sample_rate`, `output_neurons`, `initial`, `compute_features` and
        `model`, but with `dropout` and `update_norm_until_epoch`, in the place of the model's own.
    pretrained : Pretrained

    Returns
    -------
    str
        With absolute paths of what it includes: it may lie anywhere.

    Raises
    ------
    InputError
        If it cannot be read, or has keys that are to be filled in.
    """
    text, place = config.source(base)
    folder = Path(place).absolute().parent
    size = pretrained.recogniser.tokenizer.get_piece_size()
    filled = {
        "sample_rate": pretrained.recogniser.sample_rate,
        "output_neurons": size,
        "compute_features": pretrained.compute_features,
        "model": {"modules": _with_keys(pretrained.modules, size)},
    }
    if pretrained.chunks is not None:
        filled[_CHUNKS] = pretrained.chunks
    for key in ("initial", *filled):
        if re.search(rf"^{key}:", text, re.MULTILINE):
            raise InputError(f"{base}: the key {key!r} is the pretrained model's: remove it")
    text = re.sub(r"!include:(\S+)", lambda found: f"!include:{folder / found[1]}", text)
    initial = "initial: !ref <output_folder>/initial"
    return f"{text}\n# Of the pretrained model\n\n{initial}\n{tree.to_yaml(filled)}"


def _with_keys(node, size):
    """The tree of modules with a recipe's keys in the places of what may change."""
    if isinstance(node, list):
        return [_with_keys(item, size) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {}
    for key, value in node.items():
        if key == "dropout":
            value = tree.Reference("dropout")
        elif key == "update_until_epoch":
            value = tree.Reference("update_norm_until_epoch")
        elif key in _TOKENS and value == size:
            value = tree.Reference("output_neurons")
        changed[key] = _with_keys(value, size)
    return changed


# Weights for other tokens, and for other mixers


def transfer(source, target, rows, resized):
    """Copies what two models have in common; where tokens differ, the rows of the common ones.

    Arguments
    ---------
    source, target : dict of str to torch.nn.Module
        The same but for the number of tokens; `target` is changed.
    rows : list of (int, int)
        A token's number in `target` and in `source`, for each token that both have.
    resized : dict of str to int
        The parameters that have a row for each token, and in which dimension; see `token_layers`.
    """
    theirs = recoverable_model(source).state_dict()
    ours = recoverable_model(target).state_dict()
    to, of = (torch.tensor(ids, dtype=torch.long) for ids in zip(*rows, strict=True))
    with torch.no_grad():
        for name, tensor in ours.items():
            given = theirs[name].to(tensor.device)
            if name in resized:
                tensor.index_copy_(resized[name], to, given.index_select(resized[name], of))
            else:
                tensor.copy_(given)
    _copy_statistics(source["normalize"], target["normalize"])


def token_layers(modules, others):
    """Which parameters have a row for each token, and in which dimension.

    Arguments
    ---------
    modules, others : dict of str to torch.nn.Module
        The same model for two different numbers of tokens.
    """
    shapes = [
        {name: tensor.shape for name, tensor in recoverable_model(parts).state_dict().items()}
        for parts in (modules, others)
    ]
    return {
        name: next(i for i, sizes in enumerate(zip(shape, shapes[1][name])) if len({*sizes}) > 1)
        for name, shape in shapes[0].items()
        if shape != shapes[1][name]
    }


def common_tokens(new, old):
    """The tokens that two tokenizers have, as pairs of numbers.

    Example
    -------
    >>> new, old = (
    ...     tokenizers.train_or_load(None, lambda: [text], model_type="char")
    ...     for text in ("bad", "cab")
    ... )
    >>> sorted(new.id_to_piece(i) for i, _ in common_tokens(new, old))
    ['</s>', '<s>', '<unk>', 'a', 'b', '▁']
    """
    places = {old.id_to_piece(i): i for i in range(old.get_piece_size())}
    pieces = ((i, new.id_to_piece(i)) for i in range(new.get_piece_size()))
    return [(i, places[piece]) for i, piece in pieces if piece in places]


def _copy_statistics(source, target):
    target._load_statistics_dict(source._statistics_dict())


def swap_mixer(pretrained, folder, force=False, **arguments):
    """Writes a model with another mixer in the place of its own: fresh, all other weights kept.

    Arguments
    ---------
    pretrained : Pretrained
    folder : str or os.PathLike
        Is made: like the output folder of a training, as much of it as is needed to load the model
        or to train it on.
    force : bool
        Whether one that this has made may be replaced.
    **arguments
        Of `TransformerASR`: `attention_type`, and `mode`, `encoder_nhead` and widths of the cell.

    Returns
    -------
    list of str
        Names of the parameters that are new.

    Raises
    ------
    InputError
        If an argument is refused, or the folder is there or cannot be written; then nothing is.
    """
    folder = folders.place(folder, "model with other mixers", _own, force)
    recogniser = pretrained.recogniser
    modules = pretrained.modules
    old = modules["Transformer"]
    # SpeechBrain's attention leaves the mixer's heads out where they are those of the decoder.
    modules = modules | {"Transformer": old | {"arguments": old["arguments"] | arguments}}
    content = {
        "sample_rate": recogniser.sample_rate,
        "output_neurons": recogniser.tokenizer.get_piece_size(),
        "tokenizer_file": None,
        "avg_checkpoints": 1,
        "avg_metric": "epoch",
        "compute_features": pretrained.compute_features,
        "model": {"modules": modules},
        "valid_search": pretrained.search,
        "test_search": pretrained.test_search,
    }
    if pretrained.chunks is not None:
        content[_CHUNKS] = pretrained.chunks
    with folders.made_whole(folder) as partial:
        (partial / _SAVE).mkdir()
        path = partial / _HYPERPARAMS
        write_whole(path, tree.to_yaml(content))
        try:
            built = config.load(str(path))["model"]["modules"]
        except InputError as error:
            raise InputError(str(error).removeprefix(f"{path}: ")) from error
        new = _copy_all_but_mixers(recogniser.modules, built)
        finetune.save_initial(partial / _SAVE, built)
        write_whole(partial / _TOKENIZER, recogniser.tokenizer.serialized_model_proto())
    return new


_HYPERPARAMS, _SAVE, _TOKENIZER = "hyperparams.yaml", "save", "tokenizer.model"


def _own(folder):
    """What `swap_mixer` made there. A training's folder has more."""
    if not (folder / _HYPERPARAMS).is_file() or not (folder / _SAVE).is_dir():
        return None
    return {_HYPERPARAMS, _SAVE, _TOKENIZER}


@torch.no_grad()
def _copy_all_but_mixers(source, target):
    theirs = recoverable_model(source).state_dict()
    new = []
    for name, tensor in recoverable_model(target).state_dict().items():
        if not _MIXERS.match(name) and name in theirs and theirs[name].shape == tensor.shape:
            tensor.copy_(theirs[name])
        else:
            new.append(name)
    _copy_statistics(source["normalize"], target["normalize"])
    return new


# Fine-tuning


def main(recipes, argv=None):
    """Fine-tuning from the command line; `USAGE` says how.

    Arguments
    ---------
    recipes : str or os.PathLike
        The folder of the recipes that are taken when none is given: `ctc_attention.yaml` and
        `transducer.yaml`.
    argv : list of str, optional
        The command line without the program's name.
    """
    with said_in_one_line(), experiment.full_disk_said():
        run(recipes, sys.argv[1:] if argv is None else argv)


def run(recipes, argv):
    """As `main`, with `InputError` raised; returns the content of `results.json`."""
    if not argv or not {"-h", "--help"}.isdisjoint(argv):
        print(USAGE)
    given = bool(argv) and not argv[0].startswith("-")
    base, options = (argv[0], argv[1:]) if given else (None, argv)
    # SpeechBrain would take it for an abbreviation of --test_only.
    options = [re.sub(r"^--test(?==|$)", "--test_file", option) for option in options]
    rehearsing = "--dry_run" in options
    _, run_opts, overrides = config.arguments(
        ["none", *(option for option in options if option != "--dry_run")]
    )
    ddp_init_group(run_opts)
    prepared = [None]

    def prepare():
        prepared[0] = _prepare(recipes, base, overrides, run_opts, rehearsing)

    run_on_main(prepare)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(prepared)
    kind, path, before = prepared[0]
    content = experiment.run(KINDS[kind][1], [path, *options])
    return content and _finish(content, os.path.dirname(path), before)


def _prepare(recipes, base, overrides, run_opts, rehearsing):
    """Writes the recipe and what it begins with; kind of model, path of the recipe, WERs before."""
    overrides = config.read_overrides(overrides)
    folder = overrides.get("pretrained")
    if folder is None:
        raise InputError("pretrained is required: give --pretrained=…")
    pretrained = read(folder, run_opts.device or infer_device())
    kind = pretrained.kind
    base = base or os.path.join(recipes, f"{kind}.yaml")
    text = recipe(base, pretrained)
    known = [*experiment.OPTIONAL, *KINDS[kind][1].optional, *_FILLED_IN, _CHUNKS]
    config.check_keys(base, overrides, known)
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, os.path.basename(base))
        write_whole(path, text)
        hparams = config.load(path, overrides, known)
        for key in ("tokenizer", "token_type", "prepare", "output_folder", "test_search"):
            if key not in hparams:
                raise InputError(f"{base}: the key {key!r} is missing")
        if hparams["tokenizer"] not in _TOKENIZERS:
            raise InputError(
                f"tokenizer must be one of {', '.join(_TOKENIZERS)}, got {hparams['tokenizer']!r}"
            )
        experiment.check_numbers(hparams)
        output = hparams["output_folder"]
        final = os.path.join(output, "recipe.yaml")
        if any(Path(output, "save").glob("CKPT*")):
            if not os.path.isfile(final):
                raise InputError(
                    f"output_folder {output} holds another training; choose another --output_folder"
                )
            # Whether it is the same experiment, the experiment says.
            return kind, final, _read_before(output)
        paths = hparams["prepare"](manifest_folder=os.path.join(output, "manifests"))
        tokenizer = _tokenizer(hparams, overrides, pretrained.recogniser.tokenizer, paths["train"])
        size = tokenizer.get_piece_size()
        text = re.sub(r"^output_neurons: \d+$", f"output_neurons: {size}", text, flags=re.MULTILINE)
        write_whole(path, text)
        _write_initial(path, overrides | {"output_neurons": size}, known, pretrained, tokenizer)
    write_whole(final, text)
    before = None
    if hparams["initial"] is not None and not rehearsing and not run_opts.test_only:
        before = _scores(pretrained.recogniser, hparams, paths)
        write_whole(os.path.join(output, "before.json"), json.dumps(before, indent=1))
    return kind, final, before


def _tokenizer(hparams, overrides, old, manifest):
    texts = [row["wrd"] for row in manifests.read(manifest)]
    characters = sorted(set().union(*texts))
    unknown = [c for c in characters if old.unk_id() in old.encode(c)]
    wish = hparams["tokenizer"]
    if wish == "keep" or (wish == "auto" and not unknown):
        logger.info("tokenizer: the pretrained model's, %d tokens", old.get_piece_size())
        return old
    size = overrides.get("output_neurons")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokenizer.model")
        new = tokenizers.train(texts, path, size, hparams["token_type"])
    logger.warning(
        "tokenizer: a new one (%s, %d tokens, %d of them the pretrained model's, too)%s",
        hparams["token_type"],
        new.get_piece_size(),
        len(common_tokens(new, old)),
        f"; that one does not know {' '.join(unknown)}" if unknown else "",
    )
    return new


def _write_initial(path, overrides, known, pretrained, tokenizer):
    """The weights that training begins with, and the tokenizer, in the output folder."""
    hparams = config.load(path, overrides, known)
    modules, output = hparams["model"]["modules"], hparams["output_folder"]
    more = overrides | {"output_neurons": tokenizer.get_piece_size() + 1}
    others = config.load(path, more, known)["model"]["modules"]
    old = pretrained.recogniser.tokenizer
    rows = common_tokens(tokenizer, old)
    transfer(pretrained.recogniser.modules, modules, rows, token_layers(modules, others))
    initial = os.path.join(output, "initial")
    shutil.rmtree(initial, ignore_errors=True)
    finetune.save_initial(initial, modules)
    write_whole(os.path.join(output, "tokenizer.model"), tokenizer.serialized_model_proto())


@torch.no_grad()
def _scores(recogniser, hparams, paths):
    """Word error rates of the pretrained model as it is, by test set; with the recipe's search."""
    found = {}
    sampler = hparams.get(_CHUNKS)
    chunks = sampler and sampler(sb.Stage.TEST)
    for name, path in paths.items():
        if name == "train":
            continue
        rows = data.Utterances(manifests.read(path), recogniser.tokenizer, recogniser.sample_rate)
        loader = data.test_loader(rows, hparams["valid_batch_size"], hparams["num_workers"])
        references, hypotheses = {}, {}
        for batch in tqdm(loader, f"{name}, before training"):
            batch = batch.to(recogniser.device)
            waveforms, fractions = batch.sig
            lengths = absolute_lengths(fractions, waveforms.shape[1])
            frames, lengths = recogniser.front_end(waveforms, lengths)
            encoded = recogniser.modules["Transformer"].encode(
                frames, lengths, dynchunktrain_config=chunks
            )
            tokens = hparams["test_search"](recogniser.modules, encoded.float(), lengths)
            references |= dict(zip(batch.id, batch.wrd))
            hypotheses |= dict(zip(batch.id, map(recogniser.tokenizer.decode, tokens)))
        scores = metrics.score(references, hypotheses)
        found[name] = {key: getattr(scores, key) for key in results.SCORES}
    return found


def _read_before(folder):
    path = os.path.join(folder, "before.json")
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _finish(content, folder, before):
    """Adds the scores before training to `results.json`, and shows them beside those after it."""
    if before is None or not if_main_process():
        return content
    content = content | {"before": before}
    path = os.path.join(folder, "results.json")
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    width = max(map(len, before))
    print(f"\n{'WER %':{width}}  before   after")
    for name, scores in before.items():
        # A test in chunks has them in its name.
        names = (test for test in content["tests"] if re.fullmatch(f"{name}(_chunk.*)?", test))
        wers = (scores["wer"], *(content["tests"][test]["wer"] for test in names))
        cells = ("-" if wer is None else f"{wer:.2f}" for wer in wers)
        print(f"{name:{width}}  " + "  ".join(f"{cell:>6}" for cell in cells))
    return content
