"""Published checkpoints, made from the published key table, against what their keys say."""

import math

import pytest
import torch
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd as HostFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR as HostASR
from speechbrain.nnet.linear import Linear
from torch import nn
from torch.nn import functional as F

from summarymixing import SummaryMixing
from summarymixing.errors import InputError
from summarymixing.models.frontend import ConvolutionFrontEnd
from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.nnet.cell import MODES
from summarymixing.published import convert_state_dict

LITE, FAST, DECAY = "SummaryMixing-lite", "SummaryMixing-fast", "SummaryMixing-expdecay"
DIM = 24
each_mode = pytest.mark.parametrize("mode", MODES)
each_cell = pytest.mark.parametrize("nhead", (1, 4))
FRONT_END = {
    "input_shape": (None, None, 12),
    "num_blocks": 2,
    "num_layers_per_block": 1,
    "out_channels": (6, 4),
    "kernel_sizes": (3, 3),
    "strides": (2, 2),
    "residuals": (False, False),
}


def _cell_shapes(mode, nhead, dim=DIM, hidden=(32,)):
    """The published key table, for a cell whose local and summary widths are its input's."""
    merging = {
        "summary_local_merging.linear.w.weight": (dim, 2 * dim),
        "summary_local_merging.linear.w.bias": (dim,),
    }
    if mode == FAST:
        return {
            "global_proj.linear.w.weight": (2 * dim, dim),
            "global_proj.linear.w.bias": (2 * dim,),
            **merging,
        }
    shapes = {}
    widths = [dim, *hidden, dim]
    for block in ("summary_proj",) if mode == LITE else ("local_proj", "summary_proj"):
        for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:])):
            layer = f"{block}.linear" + (f"_{i - 1}" if i else "")
            if nhead == 1:
                shapes[f"{layer}.w.weight"] = (fan_out, fan_in)
                shapes[f"{layer}.w.bias"] = (fan_out,)
            else:
                shapes[f"{layer}.weights"] = (nhead, fan_in // nhead, fan_out // nhead)
                shapes[f"{layer}.biases"] = (nhead, fan_out // nhead)
    return shapes if mode == LITE else {**shapes, **merging}


def _random(shapes):
    return {
        name: torch.randn(shape, dtype=torch.float64) / math.sqrt(shape[-1] if shape else 1)
        for name, shape in shapes.items()
    }


def _below(state, prefix):
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _network(x, state, block):
    """An MLP of published keys, GELU after every layer."""
    i = 0
    while True:
        layer = f"{block}.linear" + (f"_{i - 1}" if i else "")
        if f"{layer}.w.weight" in state:
            x = x @ state[f"{layer}.w.weight"].T + state[f"{layer}.w.bias"]
        elif f"{layer}.weights" in state:
            weights, biases = state[f"{layer}.weights"], state[f"{layer}.biases"]
            parts = x.chunk(len(weights), dim=-1)
            x = torch.cat([p @ w + b for p, w, b in zip(parts, weights, biases)], dim=-1)
        else:
            assert i > 0
            return x
        x = F.gelu(x)
        i += 1


def _cell(x, state, mode):
    """One utterance, (time, features), through a cell of published keys."""
    if mode == FAST:
        local, summary = _network(x, state, "global_proj").chunk(2, dim=-1)
    else:
        summary = _network(x, state, "summary_proj")
    t = torch.arange(len(x), dtype=torch.float64)
    decay = 0.995 if mode == DECAY else 1.0
    weights = decay ** (t[:, None] - t[None, :]).abs()
    mean = weights @ summary / weights.sum(1, keepdim=True)
    if mode == LITE:
        return mean
    if mode != FAST:
        local = _network(x, state, "local_proj")
    return _network(torch.cat([local, mean], dim=-1), state, "summary_local_merging")


def _norm(x, state, name, eps=1e-5):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def _dense(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _branchformer_layer(x, state, mode):
    mixed = _cell(_norm(x, state, "norm_mhsa.norm"), _below(state, "mha_layer."), mode)
    branch = "convolution_branch."
    y = F.gelu(_dense(_norm(x, state, "norm_conv.norm"), state, f"{branch}pre_channel_proj"))
    y, gate = y.chunk(2, dim=-1)
    gate = _norm(gate, state, f"{branch}csgu.norm.norm")
    kernel = state[f"{branch}csgu.conv.conv.weight"]
    width = kernel.shape[-1] // 2
    gate = torch.cat([gate[1 : width + 1].flip(0), gate, gate[-width - 1 : -1].flip(0)])
    gate = (gate.unfold(0, kernel.shape[-1], 1) * kernel[:, 0]).sum(-1)
    y = y * (gate + state[f"{branch}csgu.conv.conv.bias"])
    y = _dense(y, state, f"{branch}post_channel_proj")
    return x + _network(torch.cat([mixed, y], dim=-1), state, "merge_proj")


def _conformer_layer(x, state, mode):
    def feed_forward(x, name):
        y = _norm(x, state, f"{name}.0")
        y = F.gelu(_dense(y, state, f"{name}.1.ffn.0"))
        return _dense(y, state, f"{name}.1.ffn.3")

    x = x + 0.5 * feed_forward(x, "ffn_module1")
    x = x + _cell(_norm(x, state, "norm1.norm"), _below(state, "mha_layer."), mode)
    module = "convolution_module."
    y = _norm(x, state, f"{module}layer_norm").T.unsqueeze(0)
    bottleneck = [state[f"{module}bottleneck.0.{kind}"] for kind in ("weight", "bias")]
    y, gate = F.conv1d(y, *bottleneck).chunk(2, dim=1)
    y = y * torch.sigmoid(gate)
    kernel, bias = state[f"{module}conv.weight"], state[f"{module}conv.bias"]
    y = F.conv1d(y, kernel, bias, padding=kernel.shape[-1] // 2, groups=len(kernel))[0].T
    y = F.gelu(_norm(y, state, f"{module}after_conv.0"))
    x = x + _dense(y, state, f"{module}after_conv.2")
    return _norm(x + 0.5 * feed_forward(x, "ffn_module2"), state, "norm2.norm")


LAYERS = {"branchformer": _branchformer_layer, "conformer": _conformer_layer}
each_encoder = pytest.mark.parametrize("encoder", LAYERS)


def _encoder(x, state, encoder, mode):
    """(time, d_model) through all layers of `encoder.*` keys and the last norm."""
    n = 0
    while layer := _below(state, f"encoder.layers.{n}."):
        x = LAYERS[encoder](x, layer, mode)
        n += 1
    assert n == 2
    return _norm(x, state, "encoder.norm.norm", eps=1e-6)


ARGUMENTS = {
    "tgt_vocab": 11,
    "input_size": 12,
    "d_model": DIM,
    "nhead": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "d_ffn": 20,
    "csgu_linear_units": 36,
    "kernel_size": 7,
    "activation": nn.GELU,
    "conformer_activation": nn.GELU,
    "normalize_before": True,
    "causal": False,
}


def _published(encoder, mode, nhead):
    """A published TransformerASR: SpeechBrain's own keys with the cell's and the merge's."""
    # As in the published encoders, sinusoids are there for the decoder alone.
    host = HostASR(**ARGUMENTS, encoder_module=encoder, attention_type="RelPosMHAXL")
    own = {k: tuple(v.shape) for k, v in host.state_dict().items()}
    shapes = {}
    for name, shape in own.items():
        layer, _, rest = name.partition(".mha_layer.")
        if rest:
            cell = _cell_shapes(mode, nhead)
            shapes.update({f"{layer}.mha_layer.{k}": v for k, v in cell.items()})
        elif ".merge_proj." in name:
            layer = name.partition(".merge_proj.")[0]
            shapes[f"{layer}.merge_proj.linear.w.weight"] = (32, 2 * DIM)
            shapes[f"{layer}.merge_proj.linear.w.bias"] = (32,)
            shapes[f"{layer}.merge_proj.linear_0.w.weight"] = (DIM, 32)
            shapes[f"{layer}.merge_proj.linear_0.w.bias"] = (DIM,)
        elif name != "positional_encoding.inv_freq":
            shapes[name] = shape
    shapes["positional_encoding.pe"] = (1, 2500, DIM)
    return _random(shapes)


def _model(encoder, mode, nhead, **changes):
    return TransformerASR(
        **{**ARGUMENTS, **changes},
        encoder_module=encoder,
        attention_type="SummaryMixing",
        encoder_nhead=nhead,
        local_proj_hid_dim=[32],
        summary_hid_dim=[32],
        mode=mode,
    ).eval()


@each_mode
@each_cell
@pytest.mark.parametrize("hidden", ((32,), (), (32, 8)))
def test_cell(mode, nhead, hidden):
    published = _random(_cell_shapes(mode, nhead, hidden=hidden))
    cell = SummaryMixing(DIM, nhead, list(hidden), DIM, list(hidden), DIM, mode=mode)
    cell = cell.double().eval()
    cell.load_state_dict(convert_state_dict(published), strict=True)
    x = torch.randn(13, DIM, dtype=torch.float64)
    found = cell(x.unsqueeze(0))[0][0]
    torch.testing.assert_close(found, _cell(x, published, mode), rtol=0, atol=1e-10)


def test_tensors_are_not_copied():
    published = _random(_cell_shapes("SummaryMixing", 1))
    before = dict(published)
    converted = convert_state_dict(published)
    assert {id(v) for v in converted.values()} == {id(v) for v in published.values()}
    assert list(published) == list(before)


@each_encoder
@each_mode
@each_cell
def test_model(encoder, mode, nhead):
    published = _published(encoder, mode, nhead)
    model = _model(encoder, mode, nhead).double()
    model.load_state_dict(convert_state_dict(published), strict=True)
    source = torch.randn(1, 14, 12, dtype=torch.float64)
    with torch.no_grad():
        found = model.encode(source)[0]
    x = _dense(source[0], published, "custom_src_module.layers.0.w")
    torch.testing.assert_close(found, _encoder(x, published, encoder, mode), rtol=0, atol=1e-9)


@each_encoder
@each_mode
@each_cell
def test_encoder_only(encoder, mode, nhead):
    published = _published(encoder, mode, nhead)
    model = _model(encoder, mode, nhead).double()
    converted = convert_state_dict(_below(published, "encoder."))
    model.encoder.load_state_dict(converted, strict=True)
    x = torch.randn(1, 14, DIM, dtype=torch.float64)
    with torch.no_grad():
        found = model.encoder(x)[0][0]
    torch.testing.assert_close(found, _encoder(x[0], published, encoder, mode), rtol=0, atol=1e-9)


@each_encoder
def test_a_model_without_decoder(encoder):
    published = _published(encoder, "SummaryMixing", 1)
    published = {
        k: v
        for k, v in published.items()
        if not k.startswith(("decoder.", "custom_tgt_module.", "positional_encoding_decoder."))
    }
    model = _model(encoder, "SummaryMixing", 1, num_decoder_layers=0)
    model.load_state_dict(convert_state_dict(published), strict=True)


@each_encoder
@pytest.mark.parametrize("order", ((0, 1, 2, 3), (3, 2, 0, 1)))
def test_list_of_modules(encoder, order):
    """A recipe's `model`: front end, model and output layers under their positions in a list."""
    published = _published(encoder, "SummaryMixing", 4)
    parts = [
        HostFrontEnd(**FRONT_END).double().state_dict(),
        published,
        *(Linear(input_size=DIM, n_neurons=11).double().state_dict() for _ in range(2)),
    ]
    state = {
        f"{i}.{name}": tensor
        for i, part in enumerate(order)
        for name, tensor in parts[part].items()
    }
    ours = [
        ConvolutionFrontEnd(**FRONT_END),
        _model(encoder, "SummaryMixing", 4),
        *(Linear(input_size=DIM, n_neurons=11) for _ in range(2)),
    ]
    model = nn.ModuleList([ours[part] for part in order]).double()
    model.load_state_dict(convert_state_dict(state), strict=True)
    x = torch.randn(1, 14, DIM, dtype=torch.float64)
    with torch.no_grad():
        found = ours[1].encoder(x)[0][0]
    expected = _encoder(x[0], published, encoder, "SummaryMixing")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@each_encoder
def test_sinusoids_are_left_out(encoder):
    published = _published(encoder, "SummaryMixing", 1)
    assert {k for k in published if k.endswith(".pe")} == {
        "positional_encoding.pe",
        "positional_encoding_decoder.pe",
    }
    converted = convert_state_dict(published)
    assert len(converted) == len(published) - 2
    assert not any(k.endswith(".pe") for k in converted)


@pytest.mark.parametrize(
    "encoder, key, misspelt",
    [
        (encoder, key, misspelt)
        for encoder, key, misspelt in (
            ("both", "encoder.layers.1.mha_layer.local_proj.linear.w.weight", "locl_proj"),
            ("both", "encoder.layers.1.mha_layer.local_proj.linear_0.w.weight", "linear_x"),
            ("both", "encoder.layers.1.mha_layer.summary_proj.linear.w.weight", "lineal"),
            ("both", "encoder.layers.1.mha_layer.summary_proj.linear.w.bias", "bais"),
            ("both", "encoder.layers.1.mha_layer.summary_proj.linear.w.bias", "mah_layer"),
            ("both", "encoder.layers.1.mha_layer.summary_proj.linear.w.bias", "layer"),
            (
                "both",
                "encoder.layers.1.mha_layer.summary_local_merging.linear.w.bias",
                "summary_local_merge",
            ),
            ("both", "encoder.norm.norm.weight", "wieght"),
            ("both", "encoder.norm.norm.weight", "nrom"),
            ("both", "custom_src_module.layers.0.w.weight", "custom_src_modul"),
            ("both", "custom_tgt_module.layers.0.emb.Embedding.weight", "embedding"),
            ("both", "decoder.layers.0.self_attn.att.in_proj_weight", "in_proj_wieght"),
            ("both", "decoder.layers.0.norm3.norm.weight", "norm4"),
            ("both", "decoder.norm.norm.bias", "decodr"),
            ("branchformer", "encoder.layers.0.merge_proj.linear.w.weight", "merge"),
            ("branchformer", "encoder.layers.0.merge_proj.linear_0.w.weight", "linear_a"),
            ("branchformer", "encoder.layers.0.norm_mhsa.norm.weight", "norm_mha"),
            (
                "branchformer",
                "encoder.layers.0.convolution_branch.csgu.conv.conv.weight",
                "cgsu",
            ),
            ("conformer", "encoder.layers.0.norm1.norm.weight", "norm0"),
            ("conformer", "encoder.layers.0.ffn_module1.1.ffn.0.weight", "ffn_module3"),
            ("conformer", "encoder.layers.0.convolution_module.conv.bias", "convolution_modul"),
        )
    ],
)
def test_misspelt_keys_are_named(encoder, key, misspelt):
    for name in LAYERS if encoder == "both" else (encoder,):
        published = _published(name, "SummaryMixing", 1)
        parts = key.split(".")
        closest = min(parts, key=lambda part: (_distance(part, misspelt), -len(part)))
        wrong = ".".join(misspelt if part == closest else part for part in parts)
        assert wrong != key
        published[wrong] = published.pop(key)
        with pytest.raises(InputError) as error:
            convert_state_dict(published)
        assert wrong in str(error.value)
        assert str(error.value).startswith("1 of ")


def _distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, previous = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, previous[j] + 1, previous[j - 1] + (x != y)))
    return row[-1]


@pytest.mark.parametrize("key", ("weight", "ctc_lin.w.wieght", "0.convblock_0.convs.conv_0.weight"))
def test_other_misspelt_keys_are_named(key):
    with pytest.raises(InputError, match="1 of 1 keys") as error:
        convert_state_dict({key: torch.zeros(1)})
    assert key in str(error.value)


def test_every_unknown_key_counts_and_ten_are_named():
    with pytest.raises(InputError, match="12 of 12") as error:
        convert_state_dict({f"wrong_{i}": torch.zeros(1) for i in range(12)})
    assert all(f"wrong_{i}" in str(error.value) for i in range(10))
