"""A trained recogniser, from the folder that its training left or from a package of it.

A package may come from anywhere, and no code of it is run: it is read from JSON and safetensors.
"""

import io
import math
import os

import ruamel.yaml
import speechbrain as sb
import torch
import torchaudio
from hyperpyyaml import load_hyperpyyaml
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from speechbrain.utils.filter_analysis import stack_filter_properties
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.decoding.methods import as_search
from summarymixing.decoding.searches import CTCGreedySearch
from summarymixing.decoding.transducer import TransducerGreedySearch
from summarymixing.errors import InputError, one_line
from summarymixing.inference import long, tree
from summarymixing.inference.alignment import align
from summarymixing.inference.chunkwise import Chunkwise
from summarymixing.inference.folders import CONFIG, PACKAGE
from summarymixing.ops.memory import is_out_of_memory
from summarymixing.training.checkpoints import WholeCheckpointer, load_average, recoverable_model

# Of a recipe: the rest (data, augmentation, optimizer, language models) is for training and tests.
_KEYS = (
    "sample_rate compute_features model tokenizer_file output_neurons avg_checkpoints avg_metric "
    "valid_search"
).split()
CHUNKS = "dynchunktrain_config_sampler"

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.model"  # of a package
_STATISTICS = ("count", "glob_mean", "glob_std")  # of `normalize`, which has them in no state dict


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
    of_test : callable, optional
        Gives the search of the training's test, and the `DynChunkTrainConfig` that it encodes
        with or None. Called once, when they are needed: a language model may be among them.
    """

    def __init__(
        self,
        modules,
        compute_features,
        tokenizer,
        sample_rate,
        device="cpu",
        search=None,
        of_test=None,
    ):
        self.device = torch.device(device)
        # Each module by itself: what ModuleDict.to() does is not enough for InputNormalization.
        self.modules = {k: module.to(self.device).eval() for k, module in modules.items()}
        self.compute_features = compute_features.to(self.device).eval()
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.search = search if hasattr(search, "step") else _greedy_search(modules)
        self._of_test = of_test
        self._tested = None

    @property
    def test_search(self):
        """The search of the training's test."""
        return self._test()[0]

    @property
    def test_chunks(self):
        """The `DynChunkTrainConfig` that the training's test encodes with, or None."""
        return self._test()[1]

    @torch.no_grad()
    def test(self, waveforms, lengths):
        """What the training's test finds, with its search and in its chunks.

        Arguments
        ---------
        waveforms : torch.Tensor
            (batch, samples).
        lengths : torch.Tensor
            (batch,), int, in samples.

        Returns
        -------
        list of list of int
            Tokens.

        Raises
        ------
        InputError
            If the search cannot be built, as without the file of its language model.
        """
        search, chunks = self._test()
        frames, lengths = self.front_end(waveforms, lengths)
        encoded = self.modules["Transformer"].encode(frames, lengths, dynchunktrain_config=chunks)
        return search(self.modules, encoded.float(), lengths)

    def _test(self):
        if self._of_test is None:
            raise InputError("of this recogniser it is not known with what search it was tested")
        if self._tested is None:
            self._tested = self._of_test()
        return self._tested

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
        return front_end(self.compute_features, self.modules, waveforms, lengths)

    @property
    def front_end_window(self):
        """Samples from one encoder frame to the next, and on each side what a frame looks at."""
        properties = stack_filter_properties([self.compute_features, self.modules["CNN"]])
        return properties.stride, properties.window_size // 2 + 1

    def encoder_input(self, samples):
        """`front_end` for one recording: (samples,) → (time, ...)."""
        length = torch.tensor([len(samples)], device=samples.device)
        return self.front_end(samples.unsqueeze(0), length)[0][0]

    def resampler(self, rate):
        """A function from (samples,) at another rate to the model's, and its reach on each side."""
        resample = torchaudio.transforms.Resample(rate, self.sample_rate, dtype=torch.float32)
        resample = resample.to(self.device)
        more = rate // math.gcd(rate, self.sample_rate)

        def resampled(samples):
            # torchaudio rounds its result's length in float32: given more, it is cut here.
            length = -(-len(samples) * self.sample_rate // rate)
            return resample(F.pad(samples, (0, more)))[:length]

        return resampled, resample.width

    @property
    def longest_in_batch(self):
        """Seconds: what is longer, `tokens` takes by itself, in less memory."""
        if not long.encodes_in_blocks(self):
            return float("inf")
        return long.BLOCK * self.front_end_window[0] / self.sample_rate

    @torch.no_grad()
    def tokens(self, waveforms):
        """What the search finds, each token with its frames and its probability.

        Arguments
        ---------
        waveforms : list of numpy.ndarray
            (samples,) each, at the model's rate.

        Returns
        -------
        list of list of summarymixing.inference.words.Token

        Raises
        ------
        MemoryError
            When they are too many.
        """
        samples = [torch.from_numpy(waveform).to(self.device) for waveform in waveforms]
        try:
            if len(samples) == 1 and len(samples[0]) > self.longest_in_batch * self.sample_rate:
                encoded = long.encode(self, samples[0])
                lengths = torch.tensor([encoded.shape[1]], device=self.device)
            else:
                lengths = torch.tensor([len(s) for s in samples], device=self.device)
                frames, lengths = self.front_end(pad_sequence(samples, True), lengths)
                encoded = self.modules["Transformer"].encode(frames, lengths)
            return align(self, encoded, lengths)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise

    def chunkwise(self, chunk_size, left_context):
        """The model chunk by chunk, for `StreamingSession`."""
        return Chunkwise(self, chunk_size, left_context)


def front_end(compute_features, modules, waveforms, lengths):
    """As `Recogniser.front_end`."""
    features, lengths = compute_features(waveforms, lengths)
    features = modules["normalize"](features, (lengths - 0.5) / features.shape[1])
    return modules["CNN"](features, lengths)


def load(folder, device="cpu"):
    """The recogniser that a training left, with its best checkpoints averaged as for its test.

    Arguments
    ---------
    folder : str or os.PathLike
        A recipe's `output_folder`, or a package that scripts/package.py has made of one.
    device : str or torch.device

    Returns
    -------
    Recogniser

    Raises
    ------
    InputError
        If there is no such folder, something is missing in it or damaged, or its parts do not fit.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(
            f"{folder}: no such folder; give the output_folder of a training, or a package"
        )
    parts = _package(folder) if is_package(folder) else _run(folder)
    try:
        return Recogniser(**parts, device=device)
    except (RuntimeError, AssertionError) as error:  # how torch says that there is no such device
        raise InputError(f"device {device}: {_line(error)}") from error


def is_package(folder):
    """Whether a folder is a package rather than the output folder of a training."""
    return os.path.isfile(os.path.join(folder, CONFIG))


def _run(folder):
    """Arguments of `Recogniser`."""
    path = os.path.join(folder, "hyperparams.yaml")
    hparams = _hyperparameters(path, _KEYS)
    modules = hparams["model"]["modules"]
    _load_checkpoints(folder, modules, hparams["avg_metric"], hparams["avg_checkpoints"])

    def of_test():
        test = _hyperparameters(path, ["test_search"], [CHUNKS])
        sampler = test.get(CHUNKS)
        return as_search(test["test_search"], modules), sampler and sampler(sb.Stage.TEST)

    return {
        "modules": modules,
        "compute_features": hparams["compute_features"],
        "tokenizer": _tokenizer(
            hparams["tokenizer_file"] or os.path.join(folder, TOKENIZER), hparams["output_neurons"]
        ),
        "sample_rate": hparams["sample_rate"],
        "search": as_search(hparams["valid_search"], modules),
        "of_test": of_test,
    }


def _tokenizer(path, size):
    tokenizer = tokenizers.load(path)
    tokenizers.check_fits(tokenizer, size, path)
    return tokenizer


def _package(folder):
    """Arguments of `Recogniser`."""
    config = read_config(folder)
    chunks = config["test_chunks"]
    modules = {name: _built(folder, node, nn.Module) for name, node in config["modules"].items()}
    for name in ("normalize", "CNN", "Transformer"):
        if name not in modules:
            raise InputError(f"{os.path.join(folder, CONFIG)}: there is no module {name}")
    if not isinstance(modules["normalize"], InputNormalization):
        raise InputError(f"{os.path.join(folder, CONFIG)}: normalize must be InputNormalization")
    load_weights(os.path.join(folder, WEIGHTS), modules)
    return {
        "modules": modules,
        "compute_features": _built(folder, config["compute_features"], nn.Module),
        "tokenizer": _tokenizer(os.path.join(folder, TOKENIZER), config["output_neurons"]),
        "sample_rate": config["sample_rate"],
        "search": _built(folder, config["search"]),
        "of_test": lambda: (
            _built(folder, config["test_search"]),
            chunks and DynChunkTrainConfig(**chunks),
        ),
    }


def _built(folder, node, kind=object):
    path = os.path.join(folder, CONFIG)
    try:
        found = tree.build(node, folder)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(found, kind):
        raise InputError(f"{path}: {str(node)[:80]} is no {kind.__name__}")
    return found


def read_config(folder):
    """What a package says of itself, checked: `config.json`, and the files that it names.

    Arguments
    ---------
    folder : str or os.PathLike

    Returns
    -------
    dict
        See `summarymixing.inference.packaging`.

    Raises
    ------
    InputError
        If it cannot be read, is of a newer version, names classes that a package may not have, or
        a file is missing or damaged.
    """
    config = PACKAGE.read(folder)
    for key in PACKAGE.types:
        try:
            tree.check(config[key])
        except InputError as error:
            raise InputError(f"{os.path.join(folder, CONFIG)}: {error}") from error
    PACKAGE.check_files(folder, config)
    return config


def weights(modules):
    """All that modules have learnt: parameters, buffers, and the statistics of `normalize`.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module

    Returns
    -------
    dict of str to torch.Tensor
    """
    found = dict(nn.ModuleDict(modules).state_dict())
    for name in _STATISTICS:
        value = getattr(modules["normalize"], name)
        found[f"normalize.{name}"] = torch.as_tensor(value)
    return found


def load_weights(path, modules):
    """Reads a file of safetensors into modules, strictly.

    Raises
    ------
    InputError
        If it cannot be read, or a tensor is missing, surplus or of another shape.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: the weights cannot be read: {_line(error)}") from error
    expected = weights(modules)
    check_same_names(path, found, expected)
    for name, tensor in expected.items():
        # Without data there are no statistics yet, of any shape.
        if tensor.shape != found[name].shape and not name.startswith("normalize.glob_"):
            raise InputError(
                f"{path}: {name} is of shape {[*found[name].shape]}, and the model's is "
                f"{[*tensor.shape]}"
            )
    normalize = modules["normalize"]
    normalize.count = int(found.pop("normalize.count"))
    for name in _STATISTICS[1:]:
        setattr(normalize, name, found.pop(f"normalize.{name}"))
    nn.ModuleDict(modules).load_state_dict(found, strict=True)


def check_same_names(path, found, expected):
    """Raises InputError for the first name that is in one and not in the other."""
    for name in expected:
        if name not in found:
            raise InputError(f"{path}: {name} is missing, which the model has")
    for name in found:
        if name not in expected:
            raise InputError(f"{path}: {name} is surplus: the model has nothing of that name")


def _hyperparameters(path, keys, optional=()):
    if not os.path.isfile(path):
        raise InputError(
            f"{path}: no such file; give the output_folder of a training, or a package"
        )
    try:
        with open(path, encoding="utf-8") as file:
            whole = ruamel.yaml.YAML().load(file)
        keys = [*keys, *(key for key in optional if key in whole)]
        part = io.StringIO()
        ruamel.yaml.YAML().dump({key: whole[key] for key in keys}, part)
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
    return f"{type(error).__name__}: {one_line(error)}"
