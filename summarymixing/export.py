"""Trained models as ONNX graphs: audio to the log probabilities of the CTC head, torch not needed.

The graphs and the files beside them are described in `summarymixing.runtime.exported`. They are
traced by PyTorch's TorchScript exporter, which writes a model of 18 layers in seconds. It follows
tensors, not Python: what stands in the modules here, or in `_traceable`, is what it would otherwise
fix at the sizes of the example. Every export is therefore compared with the model at other sizes
before it is kept.
"""

import contextlib
import copy
import json
import logging
import math
import os
import sys
import warnings

import numpy as np
import torch
from speechbrain.nnet.attention import RoPEMHA
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn
from torch.nn import functional as F

from summarymixing.decoding.hypotheses import BLANK
from summarymixing.errors import InputError, one_line
from summarymixing.files import sha256, write_whole
from summarymixing.inference.chunkwise import Chunkwise
from summarymixing.inference.folders import CONFIG, EXPORTED, made_whole
from summarymixing.inference.loading import load
from summarymixing.inference.streaming import chunk_frames
from summarymixing.models import mixers
from summarymixing.models.streaming import StreamingContext
from summarymixing.nnet.summaries import DecayedMean
from summarymixing.ops.means import BLOCK
from summarymixing.ops.padding import padding_mask, reflect
from summarymixing.runtime.exported import (
    FRONT_END,
    OFFLINE,
    QUANTISED,
    STREAMING,
    TOKENS,
    load_exported,
)

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of log probabilities; ten times that of the front end's frames
_OPSET = 18
# Left of these, (batch, samples of the longest): one sample, an odd number, a long one.
_CHECKED = ((1, 1), (1, 5001), (3, 12345), (2, 100001))


def export(model, out, chunk_ms=640, left_chunks=None, int8=False, force=False):
    """Writes an exported model, and checks that it says what the model says.

    Arguments
    ---------
    model : str, os.PathLike or summarymixing.inference.loading.Recogniser
        The output folder of a training, a package, or what is loaded of one.
    out : str or os.PathLike
        The folder to make.
    chunk_ms : float
        Of the streaming graph: milliseconds that are computed at a time.
    left_chunks : int, optional
        Of the streaming graph: chunks before its own that a frame sees. None: all of them.
    int8 : bool
        Whether to write quantised graphs, too: matrices in 8 bits, features in float32.
    force : bool
        Whether an exported model that is there may be replaced.

    Returns
    -------
    dict
        Its `config.json`.

    Raises
    ------
    InputError
        If the model has no CTC head or cannot be traced, `out` is there or cannot be written, the
        package onnx is missing, or the chunks do not fit. Then nothing is written.
    """
    _check_packages()
    out = EXPORTED.place(out, force)
    recogniser = load(model) if isinstance(model, (str, os.PathLike)) else model
    _check_model(recogniser)
    chunks = _chunks(recogniser, chunk_ms, left_chunks)
    with made_whole(out) as new:
        config = _write(new, recogniser, chunks, int8)
        _check_same(load_exported(new, threads=1), recogniser, chunks)
        if int8:
            _check_runs(load_exported(new, int8=True, threads=1), chunks)
    return config


def _check_packages():
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError("an export needs packages: pip install onnx onnxruntime") from error


def _check_model(recogniser):
    modules = recogniser.modules
    if "ctc_lin" not in modules:
        raise InputError(
            "an export is of the encoder and its CTC head, and this model has no ctc_lin; train "
            "a transducer with ctc_weight above 0"
        )
    if "joiner" in modules:
        logger.warning(
            "of this transducer, the CTC head is exported: predictor, joiner and their search stay "
            "behind"
        )
    norm_type = modules["normalize"].norm_type
    if norm_type not in ("global", "sentence"):
        raise InputError(
            f"norm_type: {norm_type} makes an utterance depend on its batch, which an export does "
            "not; train with norm_type: global"
        )


def _chunks(recogniser, chunk_ms, left_chunks):
    """A `Chunkwise` with what is streamed, or None for a model that cannot."""
    size = chunk_frames(recogniser, chunk_ms)
    try:
        recogniser.modules["Transformer"].make_streaming_context(
            DynChunkTrainConfig(size, 0 if left_chunks is None else left_chunks)
        )
        if recogniser.modules["normalize"].norm_type != "global":
            raise InputError("norm_type: sentence needs the whole recording")
    except InputError as error:
        if "left_context_size" in str(error):
            raise
        logger.warning("there will be no streaming graph: %s", error)
        return None
    return Chunkwise(recogniser, size, left_chunks)


def _write(folder, recogniser, chunks, int8):
    front_end, encoder = _FrontEnd(recogniser), _Encoder(recogniser)
    lengths = torch.tensor([16000, 12001])
    audio = (torch.randn(2, 16000) * 0.1, lengths)
    time = {0: "batch", 1: "samples"}
    graphs = {
        OFFLINE: (
            _Offline(front_end, encoder),
            audio,
            {"samples": time, "lengths": {0: "batch"}},
            {"log_probs": {0: "batch", 1: "time"}, "frames": {0: "batch"}},
        )
    }
    with torch.no_grad():
        features = front_end(*audio)[0].shape[-1]
    config = {
        EXPORTED.version: EXPORTED.newest,
        "sample_rate": recogniser.sample_rate,
        "tokens": len(recogniser.tokenizer),
        "blank": BLANK,
        "unknown": recogniser.tokenizer.decode([recogniser.tokenizer.unk_id()]),
        "front_end": {
            **dict(zip(("stride", "context"), recogniser.front_end_window)),
            "features": features,
        },
        "streaming": None,
        "int8": int8,
    }
    if chunks is not None:
        graphs[FRONT_END] = (
            front_end,
            audio,
            {"samples": time, "lengths": {0: "batch"}},
            {"frames": {0: "batch", 1: "time"}, "frame_lengths": {0: "batch"}},
        )
        state = chunks.encoder_state
        size = chunks.config.chunk_size
        example = [value.expand(2, *value.shape[1:]).clone() for value in state.values()]
        batch = {0: "batch"}
        graphs[STREAMING] = (
            _Step(recogniser, chunks.config),
            (torch.randn(2, size, features), torch.tensor([size, 1]), *example),
            {"frames": batch, "lengths": batch} | dict.fromkeys(state, batch),
            {"log_probs": batch} | {f"next.{name}": batch for name in state},
        )
        config["streaming"] = {
            "chunk_size": size,
            "left_context": chunks.config.left_context_size,
            "state": [
                {
                    "name": name,
                    "shape": list(value.shape[1:]),
                    "dtype": str(value.dtype).removeprefix("torch."),
                }
                for name, value in state.items()
            ],
        }
    for name, graph in graphs.items():
        _trace(folder / f"{name}.onnx", *graph)
        if int8 and name != FRONT_END:
            _quantise(folder / f"{name}.onnx", folder / f"{name}{QUANTISED}.onnx")
    write_whole(folder / TOKENS, "".join(_lines(recogniser.tokenizer)))
    files = sorted(path.name for path in folder.iterdir())
    config["files"] = {name: sha256(folder / name) for name in files}
    write_whole(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return config


def _lines(tokenizer):
    for token in range(len(tokenizer)):
        kinds = (
            ("byte", tokenizer.is_byte),
            ("control", tokenizer.is_control),
            ("unknown", tokenizer.is_unknown),
        )
        kind = next((name for name, holds in kinds if holds(token)), "normal")
        yield f"{tokenizer.id_to_piece(token)}\t{kind}\n"


def _trace(path, module, example, inputs, outputs):
    try:
        with torch.no_grad(), _traceable(), warnings.catch_warnings():
            # That it is the older of two exporters, and of every size that it takes for fixed.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                example,
                str(path),
                dynamo=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes=inputs | outputs,
                opset_version=_OPSET,
            )
    except OSError:
        raise
    except Exception as error:  # of torch's many
        line = one_line(error, 200)
        raise InputError(
            f"the {path.stem} graph of this model cannot be exported: "
            f"{type(error).__name__}: {line}"
        ) from error


def _quantise(path, quantised):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends what is of no use here
    try:
        quantize_dynamic(
            path,
            quantised,
            # Features are convolutions in the graph, and so stay in float32.
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.root.setLevel(level)


@torch.no_grad()
def _check_same(exported, recogniser, chunks):
    """Raises InputError unless the graphs say what the model says, at sizes not traced."""
    draw = torch.Generator().manual_seed(0)
    for batch, longest in _CHECKED:
        samples = 0.1 * torch.randn(batch, longest, generator=draw)
        lengths = torch.tensor([longest - i * longest // 3 for i in range(batch)])
        frames, valid = recogniser.front_end(samples, lengths)
        encoded = recogniser.modules["Transformer"].encode(frames, valid)
        _compare(
            "offline",
            recogniser.modules["ctc_lin"](encoded).log_softmax(-1),
            valid,
            exported,
            lambda: exported.log_probs(samples.numpy(), lengths.numpy())[0],  # noqa: B023
        )
    if chunks is None:
        return
    frames, valid = recogniser.front_end(samples, lengths)
    _compare(
        "front_end",
        frames.flatten(2),
        valid,
        exported,
        lambda: exported.run(FRONT_END, {"samples": samples.numpy(), "lengths": lengths.numpy()})[
            0
        ],
        10 * TOLERANCE,
    )
    size = chunks.config.chunk_size
    frames, valid = frames[:, : 3 * size + 1], valid.clamp(max=3 * size + 1)
    encoded = recogniser.modules["Transformer"].encode(
        frames, valid, dynchunktrain_config=chunks.config
    )
    _compare(
        "streaming",
        recogniser.modules["ctc_lin"](encoded).log_softmax(-1),
        valid,
        exported,
        lambda: streamed(exported, frames.flatten(2).numpy(), valid.numpy()),
    )


def _check_runs(exported, chunks):
    """Raises InputError unless quantised graphs give numbers: near to others they need not be."""
    samples, lengths = np.ones((2, 12345), np.float32), np.array([12345, 4321])
    found = [exported.log_probs(samples, lengths)[0]]
    if chunks is not None:
        frames, lengths = exported.run(FRONT_END, {"samples": samples, "lengths": lengths})
        found.append(streamed(exported, frames, lengths))
    if not all(np.isfinite(values).all() for values in found):
        raise InputError("the int8 graphs of this model give no numbers; export it without --int8")


def streamed(exported, frames, lengths):
    """The streaming graph over whole recordings' frames, for comparisons.

    Arguments
    ---------
    exported : summarymixing.runtime.Exported
    frames : numpy.ndarray
        (batch, time, features), from the front end.
    lengths : numpy.ndarray
        (batch,).

    Returns
    -------
    numpy.ndarray
        (batch, time, tokens), log probabilities.
    """
    made = exported.config["streaming"]
    size, batch = made["chunk_size"], len(frames)
    state = {
        tensor["name"]: np.zeros((batch, *tensor["shape"]), tensor["dtype"])
        for tensor in made["state"]
    }
    found = []
    for start in range(0, frames.shape[1], size):
        chunk = frames[:, start : start + size]
        chunk = np.pad(chunk, ((0, 0), (0, size - chunk.shape[1]), (0, 0)))
        left = np.clip(lengths - start, 0, size)
        inputs = {"frames": chunk, "lengths": left, **state}
        log_probs, *after = exported.run(STREAMING, inputs)
        state = dict(zip(state, after))
        found.append(log_probs)
    return np.concatenate(found, 1)[:, : frames.shape[1]]


def _compare(name, expected, valid, exported, compute, tolerance=TOLERANCE):
    try:
        found = torch.from_numpy(compute())
        wrong = [
            (a[:length] - b[:length]).abs().max().item()
            for a, b, length in zip(found, expected, valid)
        ]
        difference = max(wrong)
    except InputError:
        raise
    except Exception as error:  # of onnxruntime's many
        line = one_line(error, 200)
        raise InputError(
            f"the {name} graph of this model does not run at every size: {line}"
        ) from error
    if not difference <= tolerance:
        raise InputError(
            f"the {name} graph of this model differs from it by {difference:.2g}, where at most "
            f"{tolerance:g} is right: it cannot be exported"
        )


class _FrontEnd(nn.Module):
    """`Recogniser.front_end` with no operation that ONNX has not, or has in other ways.

    The Fourier transform is a convolution with windowed sines and cosines, the Mel filters one of
    width 1: neither is then quantised.
    """

    def __init__(self, recogniser):
        super().__init__()
        extractor = recogniser.compute_features
        transform, mel = extractor.fbank.compute_STFT, extractor.fbank.compute_fbanks
        self.hop, self.points = transform.hop_length, transform.n_fft
        self.mel, self.top_db = mel, extractor.top_db
        self.register_buffer("waves", _waves(transform))
        linear = copy.copy(mel)
        linear.log_mel = False
        bands = linear(torch.eye(self.points // 2 + 1).unsqueeze(0))[0]
        self.register_buffer("bands", bands.T.unsqueeze(-1).contiguous())
        normalize = recogniser.modules["normalize"]
        self.normalize = normalize
        self.blocks = nn.ModuleList(block.convs for block in recogniser.modules["CNN"].values())
        self.sizes = [block.filter_properties[0] for block in recogniser.modules["CNN"].values()]

    def forward(self, samples, lengths):
        """samples (batch, samples), lengths → frames (batch, time, features), lengths."""
        x, lengths = self._features(samples, lengths)
        x = self._normalised(x, lengths)
        x = x.unsqueeze(-1)
        for block, size in zip(self.blocks, self.sizes):
            width = (size.window_size - 1) // 2 * size.dilation
            x = reflect(x, lengths, width)
            # On the other side, and in frequency.
            x = torch.cat([x[:, 1 : width + 1].flip(1), x], 1)
            x = torch.cat([x[:, :, 1 : width + 1].flip(2), x, x[:, :, -width - 1 : -1].flip(2)], 2)
            convolution, *rest = block.values()
            x = convolution.conv(x.transpose(1, -1)).transpose(1, -1)
            for layer in rest:
                x = layer(x)
            # No negative number is divided: ONNX rounds towards zero, and Python does not.
            lengths = (lengths - 1) // size.stride + 1
        return x.flatten(2), lengths

    def _features(self, samples, lengths):
        samples = samples.masked_fill(padding_mask(lengths, samples.shape[1]), 0)
        samples = F.pad(samples, (self.points // 2, self.points // 2))
        real, imaginary = F.conv1d(samples.unsqueeze(1), self.waves, stride=self.hop).chunk(2, 1)
        power = real.square() + imaginary.square()
        x = F.conv1d(power, self.bands).transpose(1, 2)
        x = self.mel.multiplier * x.clamp(min=self.mel.amin).log10()
        x = x - self.mel.multiplier * self.mel.db_multiplier
        if self.top_db is not None:
            x = torch.maximum(x, x.amax((1, 2), keepdim=True) - self.top_db)
        return x, lengths // self.hop + 1

    def _normalised(self, x, lengths):
        normalize = self.normalize
        if normalize.norm_type == "global":
            mean, deviation = normalize.glob_mean, normalize.glob_std
        else:
            valid = (~padding_mask(lengths, x.shape[1])).unsqueeze(-1)
            count = lengths.view(-1, 1, 1)
            mean = (x * valid).sum(1, keepdim=True) / count
            deviation = (((x - mean) * valid).square().sum(1, keepdim=True) / count).sqrt()
        if normalize.std_norm is False:
            return x - mean
        return (x - mean) / deviation.clamp(min=normalize.epsilon)


def _waves(transform):
    """(2 bins, 1, points): windowed cosines, then sines; in float64 until they are complete."""
    points = transform.n_fft
    left = (points - transform.win_length) // 2
    window = torch.zeros(points, dtype=torch.float64)
    window[left : left + transform.win_length] = transform.window.double()
    bins = torch.arange(points // 2 + 1)
    # The remainder is exact, which the sine of a large angle is not.
    turns = (torch.outer(bins, torch.arange(points)) % points).double() / points
    waves = torch.cat([(2 * math.pi * turns).cos(), -(2 * math.pi * turns).sin()])
    return (waves * window).float().unsqueeze(1)


class _Encoder(nn.Module):
    """Encoder and CTC head over whole recordings."""

    def __init__(self, recogniser):
        super().__init__()
        self.model = copy.deepcopy(recogniser.modules["Transformer"])
        self.head = recogniser.modules["ctc_lin"]
        for module in self.model.encoder.modules():
            if hasattr(module, "summaries"):
                module.summaries = [
                    _DecayedMean(summary) if isinstance(summary, DecayedMean) else summary
                    for summary in module.summaries
                ]

    def forward(self, frames, lengths):
        return self.head(self.model.encode(frames, lengths)).log_softmax(-1)


class _Offline(nn.Module):
    def __init__(self, front_end, encoder):
        super().__init__()
        self.front_end, self.encoder = front_end, encoder

    def forward(self, samples, lengths):
        frames, lengths = self.front_end(samples, lengths)
        return self.encoder(frames, lengths), lengths


class _Step(nn.Module):
    """Encoder and CTC head over a chunk of some streams."""

    def __init__(self, recogniser, chunks):
        super().__init__()
        self.model, self.head = recogniser.modules["Transformer"], recogniser.modules["ctc_lin"]
        self.chunks = chunks
        self.names = list(self.model.make_streaming_context(chunks).state)

    def forward(self, frames, lengths, *state):
        context = StreamingContext(self.chunks, dict(zip(self.names, state)))
        encoded = self.model.encode_streaming(frames, context, lengths)
        log_probs = self.head(encoded).log_softmax(-1)
        return log_probs, *(context.state[name] for name in self.names)


class _DecayedMean:
    """`DecayedMean` over whole utterances: of two levels, where the original has as many as needed.

    Blocks of frames are summed by one matrix, and what each hands on by another, whose size is the
    square of their number: a 64th of the frames'.
    """

    def __init__(self, summary):
        self.decay, self.causal = summary.decay, summary.causal

    def slots(self, chunks):
        return 1

    def __call__(self, values, padding=None, chunks=None, state=None):
        x = torch.cat([values, torch.ones_like(values[..., :1])], -1)
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0)
        sums = self._scan(x)
        if not self.causal:
            sums = sums + self._scan(x.flip(1)).flip(1) - x
        weight = sums[..., -1:].clamp(min=torch.finfo(x.dtype).tiny)
        return sums[..., :-1] / weight, None

    def _scan(self, x):
        time = x.shape[1]
        blocks = (time + BLOCK - 1) // BLOCK
        i, j = torch.arange(BLOCK), torch.arange(blocks)
        within = (self.decay ** (i[:, None] - i).clamp(min=0)).tril()
        x = F.pad(x, (0, 0, 0, BLOCK))[:, : blocks * BLOCK]
        y = within @ x.reshape(x.shape[0], -1, BLOCK, x.shape[-1])
        since = j[:, None] - j
        between = torch.where(since > 0, self.decay ** (BLOCK * (since - 1).clamp(min=0)), 0.0)
        before = (between @ y[:, :, -1]).unsqueeze(2)
        y = y + (self.decay ** (i + 1)).unsqueeze(-1) * before
        return y.flatten(1, 2)[:, :time]


@contextlib.contextmanager
def _traceable():
    """While it lasts, functions that tracing would fix at the example's sizes are others."""
    attention = sys.modules[RoPEMHA.__module__]
    places = (
        (torch.Tensor, "unflatten", _unflatten),
        (attention, "_rope_rotate", _rope_rotate),
        (mixers, "make_transformer_src_mask", _chunk_mask),
        # It would print the whole graph before the one line that is said of an error.
        (torch._C, "_jit_onnx_log", lambda *parts: None),
    )
    before = [getattr(owner, name) for owner, name, _ in places]
    for owner, name, function in places:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name, _), function in zip(places, before):
            setattr(owner, name, function)


def _unflatten(x, dim, sizes):
    dim = dim % x.dim()
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def _rope_rotate(x):
    """(batch, time, heads, width), rotated (arXiv 2104.09864): SpeechBrain's has a table."""
    time, width = x.shape[1], x.shape[-1]
    speeds = torch.exp(torch.arange(0, width, 2) * (-math.log(10000) / width))
    angles = (torch.arange(time).unsqueeze(1) * speeds).unsqueeze(1)
    even, odd = x[..., ::2], x[..., 1::2]
    cosine, sine = angles.cos(), angles.sin()
    pairs = [even * cosine - odd * sine, odd * cosine + even * sine]
    return torch.stack(pairs, -1).flatten(-2)


def _chunk_mask(src, dynchunktrain_config):
    """(time, time), True = out of sight: SpeechBrain's adds Booleans, which ONNX cannot."""
    chunk = torch.arange(src.shape[1]) // dynchunktrain_config.chunk_size
    later = chunk - chunk.unsqueeze(1)
    return (later > 0) | (later < -dynchunktrain_config.left_context_size)
