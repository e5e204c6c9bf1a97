"""The summary decoder: causal, exact with padding, and one step at a time the same."""

import pytest
import torch
from speechbrain.nnet.attention import MultiheadAttention
from speechbrain.nnet.linear import Linear

from summarymixing import SummaryMixing
from summarymixing.decoding import JointBeamSearch
from summarymixing.errors import InputError
from summarymixing.models.decoder import CausalSummaryMixing
from summarymixing.nnet.cell import MODES
from summarymixing.nnet.summaries import UtteranceMean, WindowMean

each_mode = pytest.mark.parametrize("mode", MODES)
each_nhead = pytest.mark.parametrize("nhead", (1, 4))


def _cell(mode="SummaryMixing", nhead=1, kind=CausalSummaryMixing, **changes):
    return kind(16, nhead, [20], 16, [24], 16, mode=mode, **changes).eval()


def _summary_model(make_model, **changes):
    """With so much dependence between tokens that its loss could not be overlooked."""
    model = make_model("conformer", decoder_mixer="SummaryMixing", num_decoder_layers=2, **changes)
    with torch.no_grad():
        for layer in model.decoder.layers:
            for parameter in layer.self_attn.parameters():
                parameter *= 2
    return model


@torch.no_grad()
@each_mode
@each_nhead
def test_a_token_is_mixed_as_the_last_of_those_up_to_it(mode, nhead):
    cell, offline = _cell(mode, nhead), _cell(mode, nhead, SummaryMixing)
    offline.load_state_dict(cell.state_dict(), strict=True)
    x = torch.randn(3, 13, 16)
    found, weights = cell(x, x, x, attn_mask=torch.zeros(13, 13))
    assert weights is None
    for i in range(13):
        expected = offline(x[:, : i + 1])[0][:, -1]
        torch.testing.assert_close(found[:, i], expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@each_mode
@each_nhead
def test_steps_are_the_whole(mode, nhead):
    cell = _cell(mode, nhead)
    x = torch.randn(2, 70, 16)
    whole, state, shapes = cell(x)[0], None, set()
    for i in range(70):
        found, state = cell.step(x[:, i], state)
        torch.testing.assert_close(found, whole[:, i], atol=1e-5, rtol=0)
        shapes.add(tuple((name, *tensor.shape) for name, tensor in state.items()))
    assert shapes == {(("0", 2, 1, 17),)}


@torch.no_grad()
def test_several_summaries_step_too():
    cell = CausalSummaryMixing(16, 1, [], 16, [], 16, summaries=[UtteranceMean(), WindowMean(3, 5)])
    cell.eval()
    x, state = torch.randn(2, 9, 16), None
    for i in range(9):
        found, state = cell.step(x[:, i], state)
        torch.testing.assert_close(found, cell(x)[0][:, i], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_state_goes_with_its_hypothesis():
    cell = _cell()
    prefixes, last = torch.randn(4, 6, 16), torch.randn(5, 16)
    state = None
    for i in range(6):
        _, state = cell.step(prefixes[:, i], state)
    beams = torch.tensor([2, 0, 2, 3, 2])
    kept = {name: tensor[beams] for name, tensor in state.items()}
    found, _ = cell.step(last, kept)
    expected, _ = cell(torch.cat([prefixes[beams], last.unsqueeze(1)], 1))
    torch.testing.assert_close(found, expected[:, -1], atol=1e-5, rtol=0)
    # A step leaves the state that it was given as it was.
    again, _ = cell.step(last, kept)
    assert torch.equal(found, again)


@each_mode
def test_no_token_knows_the_future(mode, make_model):
    model = _summary_model(make_model, mode=mode)
    source, tokens = torch.randn(1, 20, 12), torch.randint(1, 11, (1, 9))
    with torch.no_grad():
        _, expected = model(source, tokens)
        for i in range(9):
            changed = tokens.clone()
            changed[0, i] = tokens[0, i] % 10 + 1
            difference = (model(source, changed)[1] - expected).abs().amax((0, 2))
            assert (difference[:i] == 0).all()
            assert (difference[i:] > 1e-4).all()


@each_mode
def test_padded_targets(mode, make_model):
    model = _summary_model(make_model, mode=mode)
    source, lengths = torch.randn(3, 20, 12), torch.tensor([20, 11, 3])
    sizes = (8, 5, 1)
    tokens = torch.zeros(3, 8, dtype=torch.long)
    for row, size in zip(tokens, sizes):
        row[:size] = torch.randint(1, 11, (size,))
    _, batched = model(source, tokens, lengths)
    for i, (size, length) in enumerate(zip(sizes, lengths)):
        _, alone = model(source[i : i + 1, :length], tokens[i : i + 1, :size])
        torch.testing.assert_close(batched[i : i + 1, :size], alone, atol=1e-5, rtol=0)
    loss = sum(row[:size].square().sum() for row, size in zip(batched, sizes))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if "self_attn" in name:
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_decode_is_forward(make_model):
    model = _summary_model(make_model)
    source, tokens = torch.randn(2, 20, 12), torch.randint(1, 11, (2, 9))
    tokens[1, 3] = 0  # the unknown token, which is the padding's number, too
    encoded, expected = model(source, tokens)
    for size in (1, 4, 9):
        found, _ = model.decode(tokens[:, :size], encoded)
        torch.testing.assert_close(found, expected[:, :size], atol=1e-5, rtol=0)


def test_its_order_is_known_by_positions(make_model):
    """A mean has no order: without sinusoids the last of three tokens would miss a swap."""
    model = _summary_model(make_model)
    source = torch.randn(1, 20, 12)
    with torch.no_grad():
        one, other = (model(source, torch.tensor([row]))[1] for row in ([3, 5, 7], [5, 3, 7]))
    assert (one - other)[0, 2].abs().max() > 1e-3


def test_it_can_be_searched(make_model):
    model = _summary_model(make_model)
    modules = {"Transformer": model}
    for head in ("ctc_lin", "seq_lin"):
        modules[head] = Linear(input_size=16, n_neurons=11)
    with torch.no_grad():
        encoded = model.encode(torch.randn(2, 14, 12))
        found = JointBeamSearch(beam_size=3)(modules, encoded, torch.tensor([14, 6]))
    assert [all(2 < token < 11 for token in tokens) for tokens in found] == [True, True]


@pytest.mark.parametrize("precision", (torch.bfloat16, torch.float16))
def test_half_precision_is_close(precision):
    cell, x = _cell(), torch.randn(2, 300, 16)
    expected, _ = cell(x)
    with torch.autocast("cpu", dtype=precision):
        found, _ = cell(x)
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_memory_is_linear_in_tokens(square_tensors):
    cell, time = _cell().train(), 1511
    x = torch.randn(1, time, 16)
    with square_tensors(time) as square:
        cell(x, key_padding_mask=torch.zeros(1, time, dtype=torch.bool))[0].sum().backward()
    assert not square.found


def test_parameters_have_the_documented_names(make_model):
    attention, summary = (
        set(make_model("conformer", decoder_mixer=mixer).state_dict())
        for mixer in ("attention", "SummaryMixing")
    )
    prefix = "decoder.layers.0.self_attn."
    assert all(name.startswith(prefix) for name in attention ^ summary)
    assert {name.removeprefix(prefix) for name in summary - attention} == {
        f"{part}.{kind}"
        for part in ("local.0", "local.2", "summary.0", "summary.2", "combine")
        for kind in ("weight", "bias")
    }


def test_attention_is_the_default(make_model):
    torch.manual_seed(0)
    default = make_model("branchformer")
    torch.manual_seed(0)
    asked = make_model("branchformer", decoder_mixer="attention")
    assert type(default.decoder.layers[0].self_attn) is MultiheadAttention
    for name, parameter in asked.state_dict().items():
        assert torch.equal(default.state_dict()[name], parameter)


def test_the_cell_has_the_widths_and_heads_of_the_encoders(make_model):
    model = make_model(
        "conformer",
        nhead=2,
        encoder_nhead=4,
        local_proj_hid_dim=[20],
        summary_hid_dim=[24],
        summary_out_dim=8,
        decoder_mixer="SummaryMixing",
    )
    ours, encoders = model.decoder.layers[0].self_attn, model.encoder.layers[0].mha_layer
    shapes = [{n: p.shape for n, p in cell.named_parameters()} for cell in (ours, encoders)]
    assert shapes[0] == shapes[1]
    assert model.decoder.layers[0].multihead_attn.att.num_heads == 2


@pytest.mark.parametrize("value", ("RoPEMHA", None, "summarymixing"))
def test_unknown_mixer_of_the_decoder(value, make_model):
    with pytest.raises(InputError, match=f"decoder_mixer.*attention, SummaryMixing.*{value}"):
        make_model("conformer", decoder_mixer=value)


def test_no_decoder_at_all(make_model):
    model = make_model("conformer", decoder_mixer="SummaryMixing", num_decoder_layers=0)
    assert not hasattr(model, "decoder")
