"""The mixers that an encoder layer can be given: those of `MIXERS`, and any class by its name.

A mixer is called as SpeechBrain calls its attention,
`mixer(x, x, x, attn_mask=, key_padding_mask=, pos_embs=) -> (output, weights)`. Those that can
work chunk by chunk have `stream` and `initial_state` besides, as `summarymixing.nnet.cell` has:
nothing else says so.

One of your own is a file, importable as `window`, say, and `attention_type: window.Window`:

    class Window(torch.nn.Module):
        positions = None  # or another of `Mixer`'s

        def __init__(self, d_model, nhead, dropout): ...

There for its `__init__` to name are `d_model`, `nhead`, `d_ffn` (that of the recipe; in the
Branchformer four times d_model), `dropout`, and of the `SummaryMixing` cell `mode`, `summaries` and
the four widths. What it does not name it is not given.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from speechbrain.lobes.models.transformer.TransformerASR import make_transformer_src_mask
from speechbrain.nnet.attention import MultiheadAttention, RelPosMHAXL, RoPEMHA
from speechbrain.nnet.hypermixing import HyperMixing
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn

from summarymixing.errors import InputError, check_integer, one_line
from summarymixing.nnet.cell import SummaryMixing


class UnlimitedPositionalEncoding(PositionalEncoding):
    """SpeechBrain's sinusoids, for any length instead of at most `max_len` positions.

    Example
    -------
    >>> import torch
    >>> UnlimitedPositionalEncoding(8, max_len=10)(torch.rand(1, 30, 8)).shape
    torch.Size([1, 30, 8])
    """

    def __init__(self, input_size, max_len=2500):
        super().__init__(input_size, max_len)
        # A constant: not saved, and ignored in SpeechBrain's checkpoints, where it is.
        self.register_buffer("pe", self.pe, persistent=False)

    def forward(self, x):
        """(batch, time, features) → (1, time, features)."""
        if x.shape[1] > self.max_len:
            self.max_len = 1 << (x.shape[1] - 1).bit_length()
            self.pe = PositionalEncoding(self.pe.shape[2], self.max_len).pe.to(self.pe)
        return self.pe[:, : x.shape[1]]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(prefix + "pe", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class NoMixer(nn.Module):
    """Adds nothing: a layer with it has only its convolution and feed-forward parts (CNN only)."""

    def forward(self, query, key=None, value=None, **masks_and_positions):
        return query.new_zeros(()), None

    def stream(self, x, chunks, state, padding=None):
        return x.new_zeros(()), {}

    def initial_state(self, batch_size, chunks, device="cpu"):
        return {}


class RoPEAttention(RoPEMHA):
    """SpeechBrain's attention with rotary positions, which streams with a limited left context.

    What it keeps of a stream are its inputs, as SpeechBrain does, a frame of the left context each.
    """

    def stream(self, x, chunks, state, padding=None):
        """(batch, time, d_model), whole chunks → (same, state)."""
        time = x.shape[1]
        there = x.new_ones(*x.shape[:2], 1)
        if padding is not None:
            there = there.masked_fill(padding.unsqueeze(-1), 0)
        joined = torch.cat([x, there], -1)
        if state:
            joined = torch.cat([state["inputs"], joined], 1)
            state = {"inputs": joined[:, time:]}
        x, there = joined[..., :-1], joined[..., -1]
        # SpeechBrain's mask takes memory for the whole of a chunk, however few frames are there.
        size = min(chunks.chunk_size, x.shape[1])
        mask = make_transformer_src_mask(
            x, dynchunktrain_config=DynChunkTrainConfig(size, chunks.left_context_size)
        )
        y, _ = self(x, x, x, attn_mask=mask, key_padding_mask=there == 0)
        return y[:, -time:], state

    def initial_state(self, batch_size, chunks, device="cpu"):
        frames = chunks.left_context_size_frames()
        if frames is None:
            raise InputError(
                "attention_type: RoPEMHA keeps every frame that it may see: it streams with a "
                "limited left context only"
            )
        return {"inputs": torch.zeros(batch_size, frames, self.embed_dim + 1, device=device)}


def _hyper_mixing(d_model, nhead, d_ffn, dropout, **summary):
    mixer = HyperMixing(d_model, d_ffn, tied=False, num_heads=nhead, fix_tm_hidden_size=False)
    mixer.positional_encoding = UnlimitedPositionalEncoding(d_model)
    return mixer


class Mixer(NamedTuple):
    """What the encoder has to know of a mixer that is not there yet.

    Arguments
    ---------
    make : callable
        With the arguments of `make_mixer` → torch.nn.Module.
    positions : str, optional
        The attention of SpeechBrain that is given the positions that this one wants:
        "RelPosMHAXL" (relative ones, as `pos_embs`), "regularMHA" (sinusoids, added to the frames
        before the first layer), "RoPEMHA" (none, it has its own) or "hypermixing" (the same, and
        relative ones do not disturb it). None: what the encoder's other mixers are given; if they
        do not say either, sinusoids in the Transformer and none elsewhere.
    """

    make: Callable
    positions: str | None = None


POSITIONS = ("RelPosMHAXL", "regularMHA", "RoPEMHA", "hypermixing")  # most to least

MIXERS = {
    "SummaryMixing": Mixer(
        lambda d_model, nhead, d_ffn, dropout, **summary: SummaryMixing(
            enc_dim=d_model, nhead=nhead, global_dropout=dropout, **summary
        )
    ),
    "RoPEMHA": Mixer(
        lambda d_model, nhead, d_ffn, dropout, **_: RoPEAttention(d_model, nhead, dropout),
        positions="RoPEMHA",
    ),
    "RelPosMHAXL": Mixer(
        lambda d_model, nhead, d_ffn, dropout, **_: RelPosMHAXL(d_model, nhead, dropout),
        positions="RelPosMHAXL",
    ),
    "regularMHA": Mixer(
        lambda d_model, nhead, d_ffn, dropout, **_: MultiheadAttention(nhead, d_model, dropout),
        positions="regularMHA",
    ),
    "hypermixing": Mixer(_hyper_mixing, positions="hypermixing"),
    "none": Mixer(lambda **_: NoMixer()),
}


def has_chunks(mixer):
    """Whether a mixer can work chunk by chunk."""
    return hasattr(mixer, "stream") and hasattr(mixer, "initial_state")


def with_chunks():
    """Names of the mixers that can work chunk by chunk.

    Example
    -------
    >>> with_chunks()
    ['SummaryMixing', 'RoPEMHA', 'none']
    """
    small = {"d_model": 2, "nhead": 1, "d_ffn": 2, "dropout": 0.0}
    return [name for name in MIXERS if has_chunks(make_mixer(name, **small))]


def check_heads(d_model, nhead):
    """Raises InputError unless a width can be cut into so many heads."""
    check_integer("nhead", nhead)
    if d_model % nhead:
        raise InputError(f"nhead must divide d_model={d_model}, got nhead={nhead}")


def find_mixer(attention_type):
    """What the encoder has to know of a mixer.

    Arguments
    ---------
    attention_type : str
        A key of `MIXERS`, or MODULE.CLASS, a `torch.nn.Module` of yours that can be imported.

    Returns
    -------
    Mixer

    Raises
    ------
    InputError
        If there is none of this name.

    Example
    -------
    >>> find_mixer("RelPosMHAXL").positions
    'RelPosMHAXL'
    >>> find_mixer("windows.Window")
    Traceback (most recent call last):
    summarymixing.errors.InputError: attention_type: windows.Window cannot be imported: No module \
named 'windows'; is its folder on PYTHONPATH?
    """
    if isinstance(attention_type, str):
        if attention_type in MIXERS:
            return MIXERS[attention_type]
        if "." in attention_type:
            return _own(attention_type)
    raise InputError(
        f"attention_type must be one of {', '.join(MIXERS)}, MODULE.CLASS of your own, or a list "
        f"of them, got {attention_type!r}"
    )


def _own(name):
    module, _, kind = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), kind)
    except (Exception, SystemExit) as error:  # its code may do anything
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(
            f"{error.name}."
        )
        hint = "; is its folder on PYTHONPATH?" if missing else ""
        raise InputError(
            f"attention_type: {name} cannot be imported: {one_line(error)}{hint}"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise InputError(f"attention_type: {name} is no torch.nn.Module")
    positions = getattr(found, "positions", None)
    if positions not in (None, *POSITIONS):
        raise InputError(
            f"attention_type: {name}.positions must be None or one of {', '.join(POSITIONS)}, "
            f"got {positions!r}"
        )
    signature = inspect.signature(found)
    # torch's, of a class that has no other, only seems to take them all.
    named = {} if found.__init__ is nn.Module.__init__ else signature.parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values())

    def make(**arguments):
        given = {key: arguments[key] for key in arguments if takes_all or key in named}
        try:
            signature.bind(**given)
        except TypeError as error:
            raise InputError(
                f"attention_type: {name}: {error}; there are {', '.join(arguments)}"
            ) from error
        return found(**given)

    return Mixer(make, positions)


def make_mixer(attention_type, d_model, nhead, d_ffn, dropout, **summary):
    """A new mixer.

    Arguments
    ---------
    attention_type : str
        "SummaryMixing", one of SpeechBrain's, "none" or MODULE.CLASS: see `find_mixer`.
    d_model : int
    nhead : int
    d_ffn : int
        Width of HyperMixing's networks.
    dropout : float
    **summary
        Arguments of the `SummaryMixing` cell; SpeechBrain's mixers have no use for them.

    Returns
    -------
    torch.nn.Module

    Example
    -------
    >>> import torch
    >>> mixer = make_mixer("RoPEMHA", d_model=16, nhead=4, d_ffn=32, dropout=0.0)
    >>> x = torch.rand(2, 5, 16)
    >>> mixer(x, x, x)[0].shape
    torch.Size([2, 5, 16])
    """
    make = find_mixer(attention_type).make
    check_heads(d_model, nhead)
    return make(d_model=d_model, nhead=nhead, d_ffn=d_ffn, dropout=dropout, **summary)
