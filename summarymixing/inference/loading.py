"""A trained recogniser, from the folder that its training left."""

import io
import os

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.decoding.searches import CTCGreedySearch
from summarymixing.decoding.transducer import TransducerGreedySearch
from summarymixing.errors import InputError
from summarymixing.training.checkpoints import WholeCheckpointer, load_average, recoverable_model

# Of a recipe: the rest (data, augmentation, optimizer, language models) is for training and tests.
_KEYS = (
    "sample_rate compute_features model tokenizer_file output_neurons avg_checkpoints avg_metric "
    "valid_search"
).split()


class Recogniser:
    """The modules of a recogniser in eval mode, with what they need from audio to text.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        `normalize`, `CNN`, `Transformer`; with `predictor` and `joiner`, or `ctc_lin`.
    compute_features : callable
        (waveforms, lengths) → (features, lengths), as `LogMel`.
    tokenizer : sentencepiece.SentencePieceProcessor
    sample_rate : int
        Hz.
    device : str or torch.device
    search : callable, optional
        A greedy one (with `step`), as in a recipe. Left out: a transducer's if the modules are
        there, CTC's otherwise.
    """

    def __init__(
        self, modules, compute_features, tokenizer, sample_rate, device="cpu", search=None
    ):
        self.device = torch.device(device)
        # Each module by itself: what ModuleDict.to() does is not enough for InputNormalization.
        self.modules = {k: module.to(self.device).eval() for k, module in modules.items()}
        self.compute_features = compute_features.to(self.device).eval()
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.search = search if hasattr(search, "step") else _greedy_search(modules)

    @torch.no_grad()
    def front_end(self, waveforms, lengths):
        """Audio to the encoder's input, as in a test during training.

        Arguments
        ---------
        waveforms : torch.Tensor
            (batch, samples).
        lengths : torch.Tensor
            (batch,), int, in samples.

        Returns
        -------
        frames : torch.Tensor
            (batch, time, ...).
        lengths : torch.Tensor
            (batch,), int64, in frames.
        """
        features, lengths = self.compute_features(waveforms, lengths)
        features = self.modules["normalize"](features, (lengths - 0.5) / features.shape[1])
        return self.modules["CNN"](features, lengths)


def load(folder, device="cpu"):
    """The recogniser that a training left, with its best checkpoints averaged as for its test.

    Arguments
    ---------
    folder : str or os.PathLike
        A recipe's `output_folder`.
    device : str or torch.device

    Returns
    -------
    Recogniser

    Raises
    ------
    InputError
        If there is no such folder, something is missing in it, or its parts do not fit.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; give the output_folder of a training")
    hparams = _hyperparameters(os.path.join(folder, "hyperparams.yaml"))
    path = hparams["tokenizer_file"] or os.path.join(folder, "tokenizer.model")
    tokenizer = tokenizers.load(path)
    tokenizers.check_fits(tokenizer, hparams["output_neurons"], path)
    modules = hparams["model"]["modules"]
    _load_checkpoints(folder, modules, hparams["avg_metric"], hparams["avg_checkpoints"])
    try:
        return Recogniser(
            modules,
            hparams["compute_features"],
            tokenizer,
            hparams["sample_rate"],
            device,
            hparams["valid_search"],
        )
    except (RuntimeError, AssertionError) as error:  # how torch says that there is no such device
        raise InputError(f"device {device}: {_line(error)}") from error


def _hyperparameters(path):
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; give the output_folder of a training")
    try:
        with open(path, encoding="utf-8") as file:
            whole = ruamel.yaml.YAML().load(file)
        part = io.StringIO()
        ruamel.yaml.YAML().dump({key: whole[key] for key in _KEYS}, part)
        return load_hyperpyyaml(part.getvalue())
    except KeyError as error:
        raise InputError(f"{path}: the key {error} is missing") from error
    except Exception as error:  # YAML runs constructors of any kind
        raise InputError(f"{path}: {_line(error)}") from error


def _load_checkpoints(folder, modules, metric, count):
    saved = os.path.join(folder, "save")
    if not os.path.isdir(saved):  # SpeechBrain's checkpointer would make it
        raise InputError(f"{folder}: there are no checkpoints (no folder save); train first")
    recoverables = {"model": recoverable_model(modules), "normalizer": modules["normalize"]}
    try:
        load_average(WholeCheckpointer(saved, recoverables), metric, count)
    except InputError:
        raise
    except Exception as error:  # a torn file, other shapes, ...
        raise InputError(f"{saved}: a checkpoint cannot be loaded: {_line(error)}") from error


def _greedy_search(modules):
    if {"predictor", "joiner"} <= modules.keys():
        return TransducerGreedySearch()
    if "ctc_lin" in modules:
        return CTCGreedySearch()
    raise InputError(
        "the model has no output for a greedy search: neither predictor and joiner nor ctc_lin"
    )


def _line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
