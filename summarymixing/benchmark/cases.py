"""What is measured: a case is one setting, and its sides are the mixers that take turns in it."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from speechbrain.lobes.models.transformer import TransformerASR as host
from torch import nn
from torch.nn import functional as F

from summarymixing.models.mixers import NoMixer
from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.ops import kernels
from summarymixing.ops.padding import padding_mask

FRAMES_A_SECOND = 25  # behind a front end that takes 10 ms frames and keeps every fourth


class Mixer(NamedTuple):
    """What a side gives `TransformerASR`, and whether Triton's kernels are on.

    With `host` it is SpeechBrain's `TransformerASR`, with its own layers around its own mixer, or
    with that mixer and its normalisation taken out of them.
    """

    arguments: dict
    activation_checkpointing: bool = False
    triton: bool = False
    host: bool = False


# Heads as published.
MIXERS = {
    "none": Mixer({"attention_type": "none"}),
    "SummaryMixing": Mixer({"encoder_nhead": 1}),
    "SummaryMixing-lite": Mixer({"encoder_nhead": 1, "mode": "SummaryMixing-lite"}),
    "SummaryMixing-fast": Mixer({"encoder_nhead": 1, "mode": "SummaryMixing-fast"}),
    "SummaryMixing-expdecay": Mixer({"encoder_nhead": 1, "mode": "SummaryMixing-expdecay"}),
    "RoPEMHA": Mixer({"attention_type": "RoPEMHA"}),
    "RelPosMHAXL": Mixer({"attention_type": "RelPosMHAXL"}),
    "regularMHA": Mixer({"attention_type": "regularMHA"}),
    "hypermixing": Mixer({"attention_type": "hypermixing"}),
}
for _mixer in ("SummaryMixing", "RoPEMHA"):
    MIXERS[f"{_mixer}+checkpointing"] = MIXERS[_mixer]._replace(activation_checkpointing=True)
for _mixer in ("none", "SummaryMixing", "RoPEMHA"):
    MIXERS[f"{_mixer}+triton"] = MIXERS[_mixer]._replace(triton=True)
for _mixer in ("none", "RoPEMHA", "RelPosMHAXL"):
    MIXERS[f"speechbrain/{_mixer}"] = MIXERS[_mixer]._replace(host=True)
HOSTS = [mixer for mixer in MIXERS if MIXERS[mixer].host]
# The bare matrix products of a feed-forward part: the rate that a case is compared with.
PRODUCTS = "products"
DEPTHS = {"conformer": 12, "branchformer": 18}  # as published
PARTS = ("cell", "layers", "encoder")
STEPS = ("forward", "training")
PRECISIONS = ("float32", "bf16")
# As torch.compile's `dynamic`: one graph for every length, or one for this length.
GRAPHS = {"eager": None, "compile": True, "static": False}


def there_is(mixer, encoder, part):
    """Whether a side can be: no mixer is no cell, SpeechBrain's layers have theirs around them.

    Example
    -------
    >>> there_is("none", "conformer", "cell"), there_is("none", "conformer", "layers")
    (False, True)
    """
    if MIXERS[mixer].host:
        # SpeechBrain's Branchformer has no rotary positions, and needs both its branches.
        there = {"conformer": HOSTS, "branchformer": ["speechbrain/RelPosMHAXL"]}[encoder]
        return part != "cell" and mixer in there
    return part != "cell" or not mixer.startswith("none")


@dataclass(frozen=True)
class Case:
    """One setting of a benchmark.

    Arguments
    ---------
    encoder : str
        "conformer" or "branchformer".
    part : str
        "cell": the mixer alone; "layers": `layers` encoder layers; "encoder": as many of them
        with the layer behind the front end.
    layers : int
    seconds : float
        Of the longest utterance.
    batch : int
        Utterances.
    padding : float
        Every second utterance has this share of the length; with 1 no lengths are given.
    step : str
        "forward", in evaluation, or "training", forward and backward.
    precision : str
        "float32" or "bf16" (autocast, as the recipes train).
    graph : str
        "eager", "compile" (one graph for all lengths) or "static" (one for this length).
    d_model : int
    dropout : float

    Example
    -------
    >>> case = Case("conformer", "layers", 2, 10, 3, 0.8)
    >>> case.lengths
    [250, 200, 250]
    >>> case.audio
    28.0
    """

    encoder: str
    part: str
    layers: int
    seconds: float
    batch: int
    padding: float
    step: str = "training"
    precision: str = "float32"
    graph: str = "eager"
    d_model: int = 512
    dropout: float = 0.1

    @property
    def lengths(self):
        """Frames of each utterance."""
        frames = max(1, round(self.seconds * FRAMES_A_SECOND))
        shorter = max(1, round(frames * self.padding))
        return [shorter if i % 2 else frames for i in range(self.batch)]

    @property
    def audio(self):
        """Seconds of audio in the batch, without padding."""
        return sum(self.lengths) / FRAMES_A_SECOND


class _Part(nn.Module):
    """A cell, a stack of layers or an encoder, called with frames and lengths (or None)."""

    def __init__(self, model, part):
        super().__init__()
        self.part = part
        self.host = not isinstance(model, TransformerASR)
        positions = model.attention_type == "RelPosMHAXL"
        self.positions = model.positional_encoding if positions else None
        self.inner = {
            "cell": lambda: model.encoder.layers[0].mha_layer,
            "layers": lambda: model.encoder,
            "encoder": lambda: model,
        }[part]()

    def forward(self, x, lengths):
        if self.part == "encoder":
            if self.host and lengths is not None:
                lengths = lengths / x.shape[1]
            return self.inner.encode(x, lengths)
        padding = None if lengths is None else padding_mask(lengths, x.shape[1])
        positions = None if self.positions is None else self.positions(x)
        if self.part == "layers":
            return self.inner(x, src_key_padding_mask=padding, pos_embs=positions)[0]
        y = self.inner(x, x, x, key_padding_mask=padding, pos_embs=positions)
        return y[0] if isinstance(y, tuple) else y


class _Products(nn.Module):
    """Two products of the size of a feed-forward part's, or of a cell's layers."""

    def __init__(self, narrow, wide, dtype):
        super().__init__()
        self.up = nn.Parameter(torch.randn(wide, narrow, dtype=dtype) / narrow**0.5)
        self.down = nn.Parameter(torch.randn(narrow, wide, dtype=dtype) / wide**0.5)

    def forward(self, x, lengths):
        return F.linear(F.linear(x, self.up), self.down)


class Side:
    """One side of a case, ready to take steps: call it.

    Arguments
    ---------
    case : Case
    mixer : str
        A key of `MIXERS`, or `PRODUCTS`.
    device : str
    seed : int

    Example
    -------
    >>> case = Case("conformer", "layers", 1, 1, 2, 0.8, d_model=16)
    >>> Side(case, "SummaryMixing", "cpu")().shape
    torch.Size([2, 25, 16])
    """

    def __init__(self, case, mixer, device, seed=0):
        torch.manual_seed(seed)
        self.training = case.step == "training"
        d_model = case.d_model
        lengths = case.lengths
        wide = {"conformer": 4 * d_model, "branchformer": 6 * d_model}[case.encoder]
        features = d_model
        half = case.precision == "bf16"
        self.triton = mixer != PRODUCTS and MIXERS[mixer].triton
        with torch.device(device):
            if mixer == PRODUCTS:
                wide = d_model if case.part == "cell" else wide
                model = _Products(d_model, wide, torch.bfloat16 if half else torch.float32)
            else:
                features = d_model * 5 // 4 if case.part == "encoder" else d_model
                chosen = MIXERS[mixer]
                own = dict(chosen.arguments)
                without = chosen.host and own["attention_type"] == "none"
                if chosen.host:
                    build = host.TransformerASR
                    own.update(normalize_before=True, causal=False)
                    if without:
                        own["attention_type"] = "RoPEMHA"
                else:
                    build = TransformerASR
                    own["activation_checkpointing"] = chosen.activation_checkpointing
                model = build(
                    tgt_vocab=10,
                    input_size=features,
                    d_model=d_model,
                    nhead=8,
                    num_encoder_layers=1 if case.part == "cell" else case.layers,
                    num_decoder_layers=0,
                    d_ffn=wide,
                    csgu_linear_units=wide,
                    dropout=case.dropout,
                    activation=nn.GELU,
                    encoder_module=case.encoder,
                    **own,
                )
                for layer in model.encoder.layers if without else ():
                    layer.mha_layer, layer.norm1 = NoMixer(), nn.Identity()
                model = _Part(model, case.part)
            self.x = torch.randn(len(lengths), max(lengths), features)
            self.lengths = None if case.padding == 1 else torch.tensor(lengths)
        cast = mixer == PRODUCTS and half
        self.x = (self.x.bfloat16() if cast else self.x).requires_grad_(self.training)
        self.model = model.train(self.training)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.cotangent = None
        self.call = model
        if case.graph != "eager" and mixer != PRODUCTS:
            self.call = torch.compile(model, dynamic=GRAPHS[case.graph])
        kind = torch.device(device).type
        autocast = half and mixer != PRODUCTS
        self.autocast = (lambda: torch.autocast(kind, torch.bfloat16)) if autocast else nullcontext

    @property
    def parameter_bytes(self):
        """Of all parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def __call__(self):
        """One step: the output (detached)."""
        self.forget()
        with torch.set_grad_enabled(self.training), kernels.using(self.triton):
            with self.autocast():
                y = self.call(self.x, self.lengths)
            if self.training:
                # A loss of its own would be a large part of the bare products' step.
                if self.cotangent is None:
                    self.cotangent = torch.randn_like(y)
                y.backward(self.cotangent)
        return y.detach()

    def forget(self):
        """Frees the gradients."""
        for tensor in (self.x, *self.parameters):
            tensor.grad = None
