"""Reading checkpoints in the published format.

The published SummaryMixing models name the cell's parameters differently and are SpeechBrain's
own otherwise; `convert_state_dict` renames them.
"""

import functools
import re

import torch

from summarymixing.errors import InputError
from summarymixing.models.frontend import ConvolutionFrontEnd
from summarymixing.models.transformer_asr import ENCODERS, TransformerASR

_LAYER = r"(?:(?:[\w]+\.)*layers\.\d+\.)"
_CELL = re.compile(
    rf"(?P<prefix>(?:{_LAYER}(?:mha_layer|self_att)\.)?)"
    r"(?P<block>local_proj|summary_proj|global_proj|summary_local_merging)\."
    r"linear(?:_(?P<index>\d+))?\.(?P<kind>w\.weight|w\.bias|weights|biases)"
)
_MERGE = re.compile(
    rf"(?P<prefix>{_LAYER})(?P<block>merge_proj)\."
    r"linear(?:_(?P<index>\d+))?\.(?P<kind>w\.weight|w\.bias)"
)
_BLOCKS = {
    "local_proj": "local",
    "summary_proj": "summary",
    "global_proj": "shared",
    "merge_proj": "merge_proj",
}
_KINDS = {"w.weight": "weight", "w.bias": "bias", "weights": "weight", "biases": "bias"}


def convert_state_dict(state_dict):
    """Renames the parameters of a published-format checkpoint to ours.

    Works for a cell, an encoder, a `TransformerASR`, or a recipe's list of modules; the tensors
    are not copied. Sinusoidal positions are constants that our models do not save, and are left
    out.

    Arguments
    ---------
    state_dict : dict
        Name → tensor.

    Returns
    -------
    dict
        For `load_state_dict` of the same model built from `summarymixing`, strictly.

    Raises
    ------
    InputError
        (a ValueError) naming every key that belongs to no published model.

    Example
    -------
    >>> from summarymixing import SummaryMixing
    >>> published = {
    ...     "global_proj.linear.w.weight": torch.rand(48, 24),
    ...     "global_proj.linear.w.bias": torch.rand(48),
    ...     "summary_local_merging.linear.w.weight": torch.rand(24, 48),
    ...     "summary_local_merging.linear.w.bias": torch.rand(24),
    ... }
    >>> cell = SummaryMixing(24, 1, [32], 24, [32], 24, mode="SummaryMixing-fast")
    >>> cell.load_state_dict(convert_state_dict(published))
    <All keys matched successfully>
    """
    converted, unknown = {}, []
    for key, tensor in state_dict.items():
        name = _rename(key)
        if name is None:
            unknown.append(key)
        elif not name.endswith(".pe"):
            converted[name] = tensor
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(state_dict)} keys belong to no published SummaryMixing "
            f"model: {', '.join(unknown[:10])}{', …' if len(unknown) > 10 else ''}"
        )
    return converted


def _rename(key):
    match = _CELL.fullmatch(key) or _MERGE.fullmatch(key)
    if match is None:
        return key if _is_host_key(key) else None
    kind = _KINDS[match["kind"]]
    if match["block"] == "summary_local_merging":
        return None if match["index"] else f"{match['prefix']}combine.{kind}"
    # The layers are called linear, linear_0, linear_1, …; ours have activations between them.
    position = 0 if match["index"] is None else 2 * (int(match["index"]) + 1)
    return f"{match['prefix']}{_BLOCKS[match['block']]}.{position}.{kind}"


def _is_host_key(key):
    pattern = _pattern(key)
    # A whole model, under any name; or its encoder or decoder alone.
    return any(
        pattern == known
        or (pattern.endswith("." + known) and not known.startswith("#"))
        or known in (f"encoder.{pattern}", f"decoder.{pattern}")
        for known in _host_patterns()
    )


def _pattern(key):
    return re.sub(r"(?<![\w])\d+(?![\w])", "#", key)


@functools.lru_cache(maxsize=1)
def _host_patterns():
    """The names of all parameters that are SpeechBrain's own, layer numbers as #."""
    patterns = {
        "positional_encoding.pe",
        "positional_encoding_decoder.pe",
        *(f"{head}.w.{kind}" for head in ("ctc_lin", "seq_lin", "#") for kind in _KINDS.values()),
    }
    with torch.device("meta"):
        for encoder in ENCODERS:
            model = TransformerASR(
                8, 8, 8, 1, 1, 1, 8, encoder_module=encoder, attention_type="none",
                csgu_linear_units=8, use_linear_after_conv=True,
            )  # fmt: skip
            patterns |= {_pattern(key) for key in model.state_dict()}
    front_end = ConvolutionFrontEnd(
        (None, None, 8), num_blocks=2, num_layers_per_block=1, out_channels=(4, 4),
        kernel_sizes=(3, 3), strides=(2, 2), residuals=(False, False),
    )  # fmt: skip
    patterns |= {_pattern(key) for key in front_end.state_dict()}
    # What "none" leaves out of a layer: the norm before the mixer.
    layer = "encoder.layers.#."
    patterns |= {
        f"{layer}{norm}.norm.{kind}"
        for norm in ("norm1", "norm_mhsa")
        for kind in ("weight", "bias")
    }
    return frozenset(patterns)
