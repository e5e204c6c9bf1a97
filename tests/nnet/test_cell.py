"""The cell against an implementation that reads like the paper, frame by frame."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from summarymixing import SummaryMixing
from summarymixing.errors import InputError
from summarymixing.nnet.cell import MODES
from summarymixing.nnet.summaries import DecayedMean, UtteranceMean, WindowMean

LITE, FAST, DECAY = "SummaryMixing-lite", "SummaryMixing-fast", "SummaryMixing-expdecay"
each_mode = pytest.mark.parametrize("mode", MODES)
each_cell = pytest.mark.parametrize("nhead", (1, 4))
each_chunks = pytest.mark.parametrize(
    "chunks",
    (None, *(SimpleNamespace(chunk_size=8, left_context_size=left) for left in (0, 2, None))),
    ids=str,
)
LENGTHS = (9, 1, 5, 2)


def _cell(mode, nhead=1, hidden=(32,), **changes):
    arguments = {
        "enc_dim": 16,
        "nhead": nhead,
        "local_proj_hid_dim": list(hidden),
        "local_proj_out_dim": 12,
        "summary_hid_dim": list(hidden),
        "summary_out_dim": 16 if mode == LITE else 20,
        "global_dropout": 0.1,
        "mode": mode,
    }
    return SummaryMixing(**{**arguments, **changes})


def _padding(lengths):
    return torch.tensor([[t >= length for t in range(max(lengths))] for length in lengths])


def _gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _linear(x, weight, bias):
    """One frame; a weight with three dimensions is (head, input, output)."""
    if weight.dim() == 2:
        return weight @ x + bias
    parts = x.chunk(len(weight))
    return torch.cat([w.T @ part + b for w, b, part in zip(weight, bias, parts)])


def _network(name, x, state):
    for layer in sorted({int(k.split(".")[1]) for k in state if k.startswith(name + ".")}):
        x = _gelu(_linear(x, state[f"{name}.{layer}.weight"], state[f"{name}.{layer}.bias"]))
    return x


def _naive(x, state, mode, decay=0.995):
    """One utterance, (time, features), from the definition."""
    if mode == FAST:
        halves = [_network("shared", frame, state).chunk(2) for frame in x]
        local, summaries = [h[0] for h in halves], [h[1] for h in halves]
    else:
        summaries = [_network("summary", frame, state) for frame in x]
    output = []
    for t, frame in enumerate(x):
        weights = [decay ** abs(t - u) if mode == DECAY else 1.0 for u in range(len(x))]
        mean = sum(w * s for w, s in zip(weights, summaries)) / sum(weights)
        if mode == LITE:
            output.append(mean)
            continue
        f = local[t] if mode == FAST else _network("local", frame, state)
        joined = torch.cat([f, mean])
        output.append(_gelu(state["combine.weight"] @ joined + state["combine.bias"]))
    return torch.stack(output)


@each_mode
@each_cell
@pytest.mark.parametrize("hidden", ((32,), (), (8, 24)))
def test_equals_definition(mode, nhead, hidden):
    cell = _cell(mode, nhead, hidden).double().eval()
    x = torch.randn(len(LENGTHS), max(LENGTHS), 16, dtype=torch.float64, requires_grad=True)
    padding = _padding(LENGTHS)
    cotangent = torch.randn_like(x).masked_fill(padding.unsqueeze(-1), 0)

    output, weights = cell(x, x, x, key_padding_mask=padding)
    assert output.shape == x.shape
    assert weights is None
    (output * cotangent).sum().backward()
    found = {name: p.grad for name, p in cell.named_parameters()}

    state = {k: v.clone().requires_grad_() for k, v in cell.state_dict().items()}
    y = x.detach().clone().requires_grad_()
    loss = 0
    for b, length in enumerate(LENGTHS):
        expected = _naive(y[b, :length], state, mode)
        torch.testing.assert_close(output[b, :length], expected, rtol=0, atol=1e-10)
        loss = loss + (expected * cotangent[b, :length]).sum()
    loss.backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-10)
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, state[name].grad, rtol=0, atol=1e-9)


def test_decay_is_an_argument():
    cell = _cell(DECAY, decay=0.5).double().eval()
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    expected = _naive(x[0], cell.state_dict(), DECAY, decay=0.5)
    torch.testing.assert_close(cell(x)[0][0], expected, rtol=0, atol=1e-10)
    assert _cell(DECAY).summaries == [DecayedMean(0.995)]


@each_mode
@pytest.mark.parametrize("garbage", (1e4, float("nan"), float("inf")))
def test_batch_does_not_matter(mode, garbage):
    cell = _cell(mode).eval()
    x = torch.randn(len(LENGTHS), max(LENGTHS), 16)
    padding = _padding(LENGTHS)
    dirty = x.masked_fill(padding.unsqueeze(-1), garbage).requires_grad_()
    output, _ = cell(dirty, dirty, dirty, key_padding_mask=padding)
    for b, length in enumerate(LENGTHS):
        alone = x[b : b + 1, :length].clone().requires_grad_()
        expected, _ = cell(alone, alone, alone)
        torch.testing.assert_close(output[b : b + 1, :length], expected, rtol=0, atol=1e-6)
        if not math.isfinite(garbage):
            continue  # zero times that is not zero: a linear layer's gradient has it in any case
        expected.sum().backward()
        (gradient,) = torch.autograd.grad(output[b, :length].sum(), dirty, retain_graph=True)
        torch.testing.assert_close(gradient[b, :length], alone.grad[0], rtol=0, atol=1e-5)


@each_mode
@each_cell
def test_training_without_dropout_is_evaluation(mode, nhead):
    cell = _cell(mode, nhead, global_dropout=0.0).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    padding = _padding((9, 4))
    trained = cell.train()(x, key_padding_mask=padding)[0]
    expected = cell.eval()(x, key_padding_mask=padding)[0]
    torch.testing.assert_close(trained[~padding], expected[~padding], rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", (0.125, 0.5))
@pytest.mark.parametrize("mode", ("SummaryMixing", FAST, DECAY))
def test_dropout_falls_on_the_concatenation(mode, p):
    time = 4000
    cell = SummaryMixing(
        16, 1, [8], 8, [8], 8, activation=nn.Identity, global_dropout=p, mode=mode
    ).double()
    with torch.no_grad():  # the combiner shows what it was given
        cell.combine.weight.copy_(torch.eye(16))
        cell.combine.bias.zero_()
    x = torch.randn(1, 1, 16, dtype=torch.float64).expand(1, time, 16)
    joined = cell.eval()(x)[0][0, 0]
    assert joined.abs().min() > 1e-4
    output = cell.train()(x)[0][0]
    dropped = output == 0
    expected = (joined / (1 - p)).expand_as(output)
    torch.testing.assert_close(output[~dropped], expected[~dropped], rtol=0, atol=1e-9)
    # Every element of every frame on its own: rates, then correlations along time and across.
    spread = 5 * math.sqrt(p * (1 - p) / time)
    assert (dropped.double().mean(0) - p).abs().max() < spread
    noise = (dropped.double() - p) / math.sqrt(p * (1 - p))
    bound = 5 / math.sqrt(time)
    assert (noise[1:] * noise[:-1]).mean(0).abs().max() < bound
    across = noise.T @ noise / time - torch.eye(16, dtype=torch.float64)
    across.fill_diagonal_(0)
    assert across.abs().max() < bound


def test_lite_has_no_concatenation_to_drop_from():
    cell = _cell(LITE, global_dropout=0.9)
    x = torch.randn(1, 5, 16)
    assert torch.equal(cell.train()(x)[0], cell.eval()(x)[0])


@each_mode
@each_cell
def test_parameters(mode, nhead):
    cell = SummaryMixing(24, nhead, [32], 24, [32], 24, mode=mode)
    if nhead == 1:
        network = {"0.weight": (32, 24), "0.bias": (32,), "2.weight": (24, 32), "2.bias": (24,)}
    else:
        network = {
            "0.weight": (4, 6, 8),
            "0.bias": (4, 8),
            "2.weight": (4, 8, 6),
            "2.bias": (4, 6),
        }
    combiner = {"combine.weight": (24, 48), "combine.bias": (24,)}
    expected = {
        LITE: {f"summary.{k}": v for k, v in network.items()},
        FAST: {"shared.0.weight": (48, 24), "shared.0.bias": (48,), **combiner},
    }.get(mode)
    if expected is None:
        both = {f"{n}.{k}": v for n in ("local", "summary") for k, v in network.items()}
        expected = {**both, **combiner}
    assert {k: tuple(v.shape) for k, v in cell.state_dict().items()} == expected


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"mode": "SummaryMixing-slow"}, "mode.*SummaryMixing-fast.*'SummaryMixing-slow'"),
        ({"mode": None}, "mode.*None"),
        ({"nhead": 0}, "nhead.*0"),
        ({"nhead": -2}, "nhead.*-2"),
        ({"nhead": True}, "nhead.*True"),
        ({"nhead": 1.0}, "nhead.*1.0"),
        ({"nhead": "4"}, "nhead.*'4'"),
        ({"nhead": 3}, "nhead=3.*16"),
        ({"nhead": 4, "local_proj_out_dim": 10}, "nhead=4.*10"),
        ({"nhead": 4, "summary_hid_dim": [30]}, "nhead=4.*30"),
        ({"enc_dim": 0}, "positive.*0"),
        ({"enc_dim": 16.0}, "positive.*16.0"),
        ({"local_proj_hid_dim": [32, -1]}, "positive.*-1"),
        ({"summary_hid_dim": ["32"]}, "positive.*'32'"),
        ({"local_proj_hid_dim": [True]}, "positive.*True"),
        ({"local_proj_hid_dim": 33}, "33"),
        ({"summary_hid_dim": 34}, "34"),
        ({"local_proj_out_dim": None}, "positive.*None"),
        ({"summary_out_dim": 0}, "positive.*0"),
        ({"decay": 0.0, "mode": DECAY}, "decay.*0.0"),
        ({"decay": 1.5, "mode": DECAY}, "decay.*1.5"),
        ({"mode": LITE, "summary_out_dim": 20}, "summary_out_dim.*16.*20"),
    ),
)
def test_bad_arguments(changes, message):
    with pytest.raises(InputError, match=message):
        _cell(**{"mode": "SummaryMixing", **changes})


def test_fast_has_no_heads():
    assert _cell(FAST, nhead=3)(torch.rand(1, 2, 16))[0].shape == (1, 2, 16)


@each_mode
def test_attention_mask_is_refused(mode):
    x = torch.rand(1, 3, 16)
    with pytest.raises(InputError, match="attn_mask"):
        _cell(mode)(x, x, x, attn_mask=torch.zeros(3, 3, dtype=torch.bool))


@each_mode
def test_called_as_attention(mode):
    cell = _cell(mode).eval()
    x = torch.randn(2, 6, 16)
    padding = _padding((6, 3))
    expected, _ = cell(x, key_padding_mask=padding)
    positions = torch.rand(1, 11, 16)
    result = cell(x, x, x, attn_mask=None, key_padding_mask=padding, pos_embs=positions)
    assert isinstance(result, tuple)
    assert len(result) == 2
    assert result[1] is None
    assert torch.equal(result[0], expected)


@each_mode
@each_cell
@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize("dtype, bound", ((torch.bfloat16, 0.02), (torch.float16, 0.003)))
def test_autocast_is_close_to_float32(mode, nhead, training, dtype, bound):
    cell = _cell(mode, nhead, global_dropout=0.0).train(training)
    x = torch.randn(2, 200, 16)
    padding = _padding((200, 70))
    expected = cell(x, key_padding_mask=padding)[0]
    with torch.autocast("cpu", dtype=dtype):
        found = cell(x, key_padding_mask=padding)[0]
    error = (found.float() - expected)[~padding].abs().max()
    assert error < bound * expected.abs().max()
    found.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in cell.parameters())


@each_mode
@each_cell
@pytest.mark.parametrize("dtype, bound", ((torch.bfloat16, 0.04), (torch.float16, 0.005)))
def test_a_model_in_half_precision(mode, nhead, dtype, bound):
    cell = _cell(mode, nhead).eval()
    x = torch.randn(2, 200, 16)
    padding = _padding((200, 70))
    expected = cell(x, key_padding_mask=padding)[0]
    found = cell.to(dtype)(x.to(dtype), key_padding_mask=padding)[0]
    assert found.dtype == dtype
    error = (found.float() - expected)[~padding].abs().max()
    assert error < bound * expected.abs().max()


@each_mode
@each_cell
@each_chunks
@pytest.mark.parametrize("training", (False, True))
def test_memory_is_linear(mode, nhead, chunks, training, square_tensors):
    time = 1511
    cell = _cell(mode, nhead).train(training)
    x = torch.randn(2, time, 16, requires_grad=True)
    padding = torch.arange(time) >= torch.tensor([[time], [700]])
    with square_tensors(time) as square:
        cell(x, attn_mask=chunks, key_padding_mask=padding)[0].square().sum().backward()
    assert x.grad is not None
    assert not square.found


def test_growth_check_sees_attention(square_tensors):
    x = torch.randn(1, 151, 16)
    with square_tensors(151) as square:
        torch.softmax(x @ x.transpose(1, 2), -1) @ x
    assert square.found


def _naive_chunks(x, state, cell, chunks):
    """One utterance; the frames that each frame may see, weighted by the cell's summaries."""
    size, left = chunks.chunk_size, chunks.left_context_size
    summaries = [_network("summary", frame, state) for frame in x]
    output = []
    for t, frame in enumerate(x):
        first = 0 if left is None else max(0, t // size - left) * size
        end = min((t // size + 1) * size, len(x))
        joined = [_network("local", frame, state)]
        for summary in cell.summaries:
            weights = [0.0] * len(x)
            for u in range(first, end):
                if isinstance(summary, UtteranceMean):
                    weights[u] = 1.0
                elif isinstance(summary, WindowMean):
                    weights[u] = float(-summary.left <= u - t <= summary.right)
                else:
                    weights[u] = summary.decay ** abs(t - u) * (u <= t or not summary.causal)
            joined.append(sum(w * s for w, s in zip(weights, summaries)) / sum(weights))
        joined = torch.cat(joined)
        output.append(_gelu(state["combine.weight"] @ joined + state["combine.bias"]))
    return torch.stack(output)


SEVERAL = [UtteranceMean(), WindowMean(3, 1), DecayedMean(0.7), DecayedMean(0.9, causal=True)]


@each_cell
@each_chunks
@pytest.mark.parametrize("summaries", (SEVERAL, SEVERAL[1:2], SEVERAL[2:]), ids=len)
def test_summaries_side_by_side_equal_their_definition(nhead, chunks, summaries):
    cell = _cell("SummaryMixing", nhead, summaries=summaries).double().eval()
    assert cell.combine.in_features == 12 + 20 * len(summaries)
    lengths = (23, 1, 8, 9)
    x = torch.randn(len(lengths), max(lengths), 16, dtype=torch.float64)
    output, _ = cell(x, attn_mask=chunks, key_padding_mask=_padding(lengths))
    state = cell.state_dict()
    if chunks is None:
        chunks = SimpleNamespace(chunk_size=max(lengths), left_context_size=None)
    for b, length in enumerate(lengths):
        expected = _naive_chunks(x[b, :length], state, cell, chunks)
        torch.testing.assert_close(output[b, :length], expected, rtol=0, atol=1e-10)


@each_mode
@each_chunks
def test_training_without_dropout_is_evaluation_with_chunks(mode, chunks):
    cell = _cell(mode, global_dropout=0.1).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    expected = cell.eval()(x, attn_mask=chunks)[0]
    cell.train()
    for module in cell.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1e-300  # drops nothing, and takes the path of training
    torch.testing.assert_close(cell(x, attn_mask=chunks)[0], expected, rtol=0, atol=1e-12)


@each_mode
@each_chunks
@pytest.mark.parametrize("at_once", (1, 3))
def test_streams_as_it_was_trained(mode, chunks, at_once):
    if chunks is None:
        chunks = SimpleNamespace(chunk_size=50, left_context_size=None)
    summaries = None if mode == LITE else SEVERAL
    cell = _cell(mode, summaries=summaries).eval()
    lengths = (41, 7, 24, 32)
    x = torch.randn(len(lengths), max(lengths), 16)
    padding = _padding(lengths)
    expected, _ = cell(x, attn_mask=chunks, key_padding_mask=padding)
    state = cell.initial_state(len(lengths), chunks)
    shapes = {name: t.shape for name, t in state.items()}
    assert not any(t.any() for t in state.values())
    pieces = []
    for piece, mask in zip(
        x.split(at_once * chunks.chunk_size, 1), padding.split(at_once * chunks.chunk_size, 1)
    ):
        output, state = cell.stream(piece, chunks, state, mask)
        assert {name: t.shape for name, t in state.items()} == shapes
        pieces.append(output)
    found = torch.cat(pieces, 1)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"summaries": []}, "summaries.*one or more"),
        ({"summaries": UtteranceMean()}, "summaries must be a list"),
        ({"summaries": ["utterance"]}, "summarymixing.nnet.summaries.*'utterance'"),
        ({"summaries": SEVERAL, "mode": LITE}, "SummaryMixing-lite.*one only.*4"),
    ),
)
def test_bad_summaries(changes, message):
    with pytest.raises(InputError, match=message):
        _cell(**{"mode": "SummaryMixing", "summary_out_dim": 16, **changes})


@pytest.mark.parametrize("width", (-1, 2.0, True))
def test_bad_windows(width):
    with pytest.raises(InputError, match=f"right of a WindowMean must be .* 0, got {width}"):
        WindowMean(0, width)


def test_state_of_another_batch_or_model():
    chunks = SimpleNamespace(chunk_size=4, left_context_size=2)
    cell = _cell("SummaryMixing")
    x = torch.randn(2, 4, 16)
    for state in (
        cell.initial_state(3, chunks),
        _cell("SummaryMixing", summary_out_dim=8).initial_state(2, chunks),
        cell.initial_state(2, SimpleNamespace(chunk_size=4, left_context_size=3)),
    ):
        with pytest.raises(InputError, match="state of shape .* here it is"):
            cell.stream(x, chunks, state)
