"""The whole model: lengths without limit, initialisation, sizes, and what it refuses."""

import math

import pytest
import torch
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding

from summarymixing.errors import InputError
from summarymixing.models import mixers
from summarymixing.models.mixers import UnlimitedPositionalEncoding
from summarymixing.models.transformer_asr import ENCODERS, TransformerASR
from summarymixing.nnet.cell import MODES
from summarymixing.nnet.mlp import HeadwiseLinear

each_encoder = pytest.mark.parametrize("encoder", ENCODERS)
each_mode = pytest.mark.parametrize("mode", MODES)


def test_sinusoids_for_any_length():
    positions = UnlimitedPositionalEncoding(16)
    expected = PositionalEncoding(16, 6001).pe
    for time in (1, 2500, 2501, 2499, 6001, 3):
        found = positions(torch.zeros(2, time, 16))
        assert torch.equal(found, expected[:, :time])
    found = positions(torch.zeros(1, 6001, 16))
    for t in (0, 1, 2499, 2500, 2501, 6000):
        for i in range(0, 16, 2):
            angle = t / 10000 ** (i / 16)
            assert expected[0, t, i].item() == pytest.approx(math.sin(angle), abs=2e-3)
            assert found[0, t, i + 1].item() == pytest.approx(math.cos(angle), abs=2e-3)


def test_sinusoids_are_not_saved_and_keep_their_type():
    positions = UnlimitedPositionalEncoding(8, max_len=10).to(torch.bfloat16)
    assert not positions.state_dict()
    assert positions(torch.zeros(1, 30, 8)).dtype == torch.bfloat16
    saved = PositionalEncoding(8, 4).state_dict()
    positions.load_state_dict(saved, strict=True)
    assert set(saved) == {"pe"}
    assert positions(torch.zeros(1, 30, 8)).shape == (1, 30, 8)


@pytest.mark.parametrize(
    "encoder, attention",
    (
        ("transformer", "SummaryMixing"),
        ("transformer", "none"),
        ("conformer", "hypermixing"),
        ("conformer", "SummaryMixing"),
        ("branchformer", "SummaryMixing"),
    ),
)
def test_more_than_2500_frames(encoder, attention, make_model):
    model = make_model(encoder, attention, num_encoder_layers=1, kernel_size=3)
    with torch.no_grad():
        encoded = model.encode(torch.randn(1, 3100, 12))
    assert encoded.shape == (1, 3100, 16)
    assert encoded.isfinite().all()


@pytest.mark.parametrize("attention", ("SummaryMixing", "RelPosMHAXL", "regularMHA", "hypermixing"))
def test_more_tokens_than_positions_at_the_start(attention, make_model):
    short = make_model("conformer", attention, max_length=8, kernel_size=3)
    long = make_model("conformer", attention, max_length=200, kernel_size=3)
    long.load_state_dict(short.state_dict(), strict=True)
    source, tokens = torch.randn(1, 50, 12), torch.randint(1, 11, (1, 60))
    with torch.no_grad():
        for found, expected in zip(short(source, tokens), long(source, tokens)):
            assert torch.equal(found, expected)
        memory = torch.randn(1, 5, 16)
        assert torch.equal(short.decode(tokens, memory)[0], long.decode(tokens, memory)[0])


def test_more_than_2500_tokens(make_model):
    model = make_model("conformer", num_encoder_layers=1, nhead=1, encoder_nhead=1)
    with torch.no_grad():
        _, decoded = model(torch.randn(1, 4, 12), torch.ones(1, 2600, dtype=torch.long))
    assert decoded.shape == (1, 2600, 16)
    assert decoded.isfinite().all()


def test_only_the_transformer_knows_the_order_without_convolutions(make_model):
    source = torch.randn(1, 9, 12)
    with torch.no_grad():
        model = make_model("transformer")
        permuted = model.encode(source.flip(1)).flip(1)
        assert not torch.allclose(model.encode(source), permuted, atol=1e-3)
        for encoder in ("conformer", "branchformer"):
            model = make_model(encoder, kernel_size=1)
            permuted = model.encode(source.flip(1)).flip(1)
            torch.testing.assert_close(model.encode(source), permuted)


@each_encoder
@each_mode
def test_memory_is_linear(encoder, mode, make_model, square_tensors):
    time = 1511
    model = make_model(encoder, mode=mode, num_encoder_layers=1).train()
    source = torch.randn(1, time, 12)
    with square_tensors(time) as square:
        encoded = model.encode(source, torch.tensor([time - 3]))
        encoded.square().sum().backward()
    assert not square.found


@each_encoder
def test_initial_scale_of_heads(encoder):
    model = TransformerASR(
        5, 8, d_model=128, nhead=4, num_encoder_layers=1, num_decoder_layers=0, d_ffn=16,
        csgu_linear_units=16, encoder_module=encoder, encoder_nhead=4, local_proj_hid_dim=[256],
    )  # fmt: skip
    layers = [m for m in model.modules() if isinstance(m, HeadwiseLinear)]
    assert len(layers) == 4
    for layer in layers:
        _, fan_in, fan_out = layer.weight.shape
        for head in layer.weight:
            expected = math.sqrt(2 / (fan_in + fan_out))
            assert head.std().item() == pytest.approx(expected, rel=0.1)


def test_heads_of_encoder_and_decoder_are_apart(make_model):
    model = make_model("conformer", nhead=4, encoder_nhead=1)
    assert not any(isinstance(m, HeadwiseLinear) for m in model.modules())
    assert model.decoder.layers[0].self_attn.att.num_heads == 4
    model = make_model("conformer", nhead=1, encoder_nhead=4)
    assert model.encoder.layers[0].mha_layer.local[0].weight.shape[0] == 4
    model = make_model("conformer", "RoPEMHA", nhead=1, encoder_nhead=4)
    assert model.encoder.layers[0].mha_layer.num_heads == 4


MIXED = [
    ["SummaryMixing", "SummaryMixing", "SummaryMixing", "RoPEMHA"],
    ["SummaryMixing", "RelPosMHAXL", "none"],
    ["regularMHA", "SummaryMixing", "hypermixing"],
    ["hypermixing", "RoPEMHA", "regularMHA"],
    ["hypermixing", "RelPosMHAXL"],
]


@each_encoder
@pytest.mark.parametrize("mixers", MIXED, ids="-".join)
def test_mixers_in_turn(encoder, mixers, make_model):
    """Layers are those of encoders with one mixer each, which see the same positions."""
    heads = [1 if kind == "SummaryMixing" else 4 for kind in mixers]
    model = make_model(encoder, mixers, encoder_nhead=heads, num_encoder_layers=5, kernel_size=3)
    source, lengths = torch.randn(2, 12, 12), torch.tensor([12, 7])
    x = model.custom_src_module(source)
    positions = model.positional_encoding(x)
    if "regularMHA" in mixers:
        x, positions = x + positions, None
    elif "RelPosMHAXL" not in mixers:
        positions = None
    padding = torch.arange(12) >= lengths[:, None]
    with torch.no_grad():
        for i, layer in enumerate(model.encoder.layers):
            kind = mixers[i % len(mixers)]
            alone = make_model(
                encoder, kind, encoder_nhead=1 if kind == "SummaryMixing" else 4,
                num_encoder_layers=1, kernel_size=3,
            ).encoder.layers[0]  # fmt: skip
            alone.load_state_dict(layer.state_dict())
            x = alone(x, src_key_padding_mask=padding, pos_embs=positions)[0]
        expected = model.encoder.norm(x)
        found = model.encode(source, lengths)
        for b, length in enumerate(lengths):
            torch.testing.assert_close(found[b, :length], expected[b, :length])


def test_mixers_in_turn_on_the_meta_device():
    with torch.device("meta"):
        model = TransformerASR(
            5, 8, d_model=16, nhead=4, num_encoder_layers=8, num_decoder_layers=1, d_ffn=16,
            encoder_module="conformer", attention_type=MIXED[0], encoder_nhead=[1, 1, 1, 8],
            decoder_mixer="SummaryMixing",
        )  # fmt: skip
    heads = [getattr(layer.mha_layer, "num_heads", None) for layer in model.encoder.layers]
    assert heads == [None, None, None, 8] * 2
    assert not any(isinstance(m, HeadwiseLinear) for m in model.decoder.modules())


def test_heads_in_turn_without_a_decoder():
    """As hparams/transducer.yaml has it, which hands the encoder's heads on as `nhead`."""
    with torch.device("meta"):
        model = TransformerASR(
            5, 8, d_model=16, nhead=[1, 8], num_encoder_layers=2, num_decoder_layers=0, d_ffn=16,
            encoder_module="conformer", attention_type=["SummaryMixing", "RoPEMHA"],
        )  # fmt: skip
    assert model.encoder.layers[1].mha_layer.num_heads == 8
    with pytest.raises(InputError, match=r"nhead must be .*\[1, 8\]"):
        TransformerASR(5, 8, d_model=16, nhead=[1, 8], encoder_nhead=1, num_decoder_layers=1)


def widths(network):
    linear = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    return [(layer.in_features, layer.out_features) for layer in linear]


def test_widths_of_the_cell(make_model):
    cell = make_model("conformer", encoder_nhead=1).encoder.layers[0].mha_layer
    assert widths(cell.local) == widths(cell.summary) == [(16, 16), (16, 16)]
    model = make_model(
        "branchformer",
        encoder_nhead=1,
        local_proj_hid_dim=[20, 24],
        local_proj_out_dim=28,
        summary_hid_dim=[18],
        summary_out_dim=22,
    )
    layer = model.encoder.layers[0]
    assert widths(layer.mha_layer.local) == [(16, 20), (20, 24), (24, 28)]
    assert widths(layer.mha_layer.summary) == [(16, 18), (18, 22)]
    assert layer.mha_layer.combine.in_features == 50
    assert widths(layer.merge_proj) == [(32, 18), (18, 16)]


def test_no_hidden_layer_is_a_choice(make_model):
    model = make_model("branchformer", local_proj_hid_dim=[], summary_hid_dim=[])
    layer = model.encoder.layers[0]
    assert len(layer.mha_layer.local) == len(layer.mha_layer.summary) == 2
    assert len(layer.merge_proj) == 2


@pytest.mark.parametrize("attention", ("SummaryMixing", "RoPEMHA"))
def test_each_merge_goes_with_each_mixer(attention, make_model):
    def merge(kind, **changes):
        model = make_model("branchformer", attention_type=attention, branch_merge=kind, **changes)
        return model.encoder.layers[-1].merge_proj

    assert type(merge("linear")) is torch.nn.Linear
    assert widths(merge("mlp", summary_hid_dim=[20])) == [(32, 20), (20, 16)]
    own = "mlp" if attention == "SummaryMixing" else "linear"
    assert widths(merge(None)) == widths(merge(own))


def test_constructor_keeps_what_it_is_given(make_model):
    hidden = [16]
    make_model("branchformer", local_proj_hid_dim=hidden, summary_hid_dim=hidden)
    assert hidden == [16]


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"encoder_module": "rnn"}, "encoder_module.*branchformer.*'rnn'"),
        ({"attention_type": "SummaryMixin"}, "attention_type.*SummaryMixing.*'SummaryMixin'"),
        ({"attention_type": None}, "attention_type.*None"),
        ({"attention_type": []}, r"attention_type.*\[\]"),
        ({"attention_type": ["none", "rope"]}, "attention_type.*a list of them.*'rope'"),
        (
            {"attention_type": ["RoPEMHA", "RoPEMHA"], "encoder_nhead": [1]},
            "encoder_nhead.* 2, got",
        ),
        ({"attention_type": ["RelPosMHAXL", "regularMHA"]}, "positions of another kind"),
        ({"attention_type": ["RoPEMHA", "RelPosMHAXL"]}, "positions of another kind"),
        ({"attention_type": ["RoPEMHA", "SummaryMixing"], "causal": True}, "causal.*SummaryMixing"),
        ({"mode": "fast"}, "mode.*SummaryMixing-fast.*'fast'"),
        ({"d_model": True, "nhead": 1}, "d_model.*True"),
        ({"nhead": 3}, "d_model=16.*nhead=3"),
        ({"nhead": 0}, "nhead.*0"),
        ({"nhead": True}, "nhead.*True"),
        ({"encoder_nhead": True, "attention_type": "RoPEMHA"}, "nhead.*True"),
        ({"encoder_nhead": 3}, "d_model=16.*nhead=3"),
        ({"encoder_nhead": -4}, "nhead.*-4"),
        ({"encoder_nhead": 0}, "nhead.*0"),
        ({"encoder_nhead": 4, "local_proj_hid_dim": [18]}, "nhead=4.*18"),
        ({"summary_out_dim": 0}, "0"),
        ({"local_proj_hid_dim": 64}, "64"),
        ({"causal": True}, "causal.*SummaryMixing"),
        ({"causal": True, "attention_type": "hypermixing"}, "causal.*hypermixing"),
        ({"branch_merge": "MLP"}, "branch_merge.*linear, mlp.*'MLP'"),
        ({"mode": "SummaryMixing-lite", "summary_out_dim": 20}, "summary_out_dim.*16.*20"),
    ),
    ids=str,
)
@each_encoder
def test_bad_arguments(encoder, changes, message, make_model):
    with pytest.raises(InputError, match=message):
        make_model(**{"encoder_module": encoder, **changes})


@pytest.mark.parametrize(
    "encoder, new, relative, added",
    (
        ("transformer", None, False, True),
        ("conformer", None, False, False),
        ("transformer", "RoPEMHA", False, False),
        ("conformer", "regularMHA", False, True),
        ("conformer", "RelPosMHAXL", True, False),
        ("transformer", "hypermixing", False, False),
    ),
)
def test_a_new_mixer_has_the_positions_it_wants(
    encoder, new, relative, added, make_model, monkeypatch
):
    given = []

    class Told(mixers.NoMixer):
        def forward(self, query, key=None, value=None, pos_embs=None, **masks):
            given.append(pos_embs)
            return query.new_zeros(()), None

    monkeypatch.setitem(mixers.MIXERS, "new", mixers.Mixer(lambda **_: Told(), positions=new))
    model, frames = make_model(encoder, "new"), torch.randn(1, 9, 12)
    before = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
    model.encode(frames)
    assert all((positions is not None) == relative for positions in given) and len(given) == 2
    assert (not torch.equal(before[0], model.custom_src_module(frames))) == added
    if new == "RelPosMHAXL":
        with pytest.raises(InputError, match="positions of another kind"):
            make_model(encoder, ["new", "RoPEMHA"])
        make_model(encoder, ["new", "hypermixing"]).encode(frames)


@each_encoder
@each_mode
@pytest.mark.parametrize("training", (False, True))
def test_bfloat16_is_close_to_float32(encoder, mode, training, make_system):
    system = make_system(encoder, mode=mode, dropout=0.0).train(training)
    for module in system.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x, lengths = torch.randn(2, 200, 12), torch.tensor([200, 77])
    expected = system(x, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = system(x, lengths)
    error = (found.float() - expected)[:, :19].abs()
    assert error.mean() < 0.01 * expected.abs().max()
    assert error.max() < 0.08 * expected.abs().max()
    found.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in system.model.encoder.parameters())


def test_published_size():
    """LibriSpeech Branchformer: 86.0 M in the encoder's layers, 114.2 M with the decoder."""
    with torch.device("meta"):
        model = TransformerASR(
            tgt_vocab=5000, input_size=640, d_model=512, nhead=4, num_encoder_layers=18,
            num_decoder_layers=6, d_ffn=2048, csgu_linear_units=3072, kernel_size=31,
            encoder_module="branchformer", attention_type="SummaryMixing", encoder_nhead=1,
            local_proj_hid_dim=[512], local_proj_out_dim=512, summary_hid_dim=[512],
            summary_out_dim=512,
        )  # fmt: skip
    encoder = sum(p.numel() for p in model.encoder.parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert f"{encoder / 1e6:.1f} {whole / 1e6:.1f}" == "86.0 114.2"


def test_no_such_mixer():
    with pytest.raises(InputError, match="attention_type must be one of .*, got 'many'"):
        mixers.make_mixer("many", d_model=16, nhead=1, d_ffn=16, dropout=0.0)
