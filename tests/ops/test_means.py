"""The means against their definitions: outputs, gradients, pieces, padding, precision, memory."""

import functools

import pytest
import torch

from summarymixing.errors import InputError
from summarymixing.ops import means, reference

LENGTHS = (1, 2, 7, 8, 9, 63, 64, 65, 129, 300)
CASES = {}
for _name, _arguments in {
    "chunk": ({},),
    "window": (
        {"left": 3, "right": 2},
        {"left": 0, "right": 0},
        {"left": 70, "right": 0},
        {"left": 0, "right": 1000},
    ),
    "decayed": ({"decay": 0.995}, {"decay": 0.6, "causal": True}, {"decay": 1.0}),
}.items():
    for _own in _arguments:
        CASES[f"{_name} {_own}"] = (f"{_name}_mean", _own)
        for _limits in (
            {"chunk_size": 8, "left_context": 0},
            {"chunk_size": 8, "left_context": 2},
            {"chunk_size": 8, "left_context": None},
            {"chunk_size": 1, "left_context": 5},
            {"chunk_size": 1, "left_context": None},
            {"chunk_size": 70, "left_context": 1},
            {"chunk_size": 1000, "left_context": 1},
            {"chunk_size": 3, "left_context": 500},
        ):
            arguments = {**_own, **_limits}
            CASES[f"{_name} {arguments}"] = (f"{_name}_mean", arguments)
each_case = pytest.mark.parametrize("name", CASES)
# Enough for what does not depend on the sizes of chunks and windows.
FEW = [
    name
    for name in CASES
    if "chunk_size" not in name or ("'chunk_size': 8" in name and "'left_context': 0" not in name)
]
each_of_few = pytest.mark.parametrize("name", FEW)


def _fast(name):
    """The fast mean with one value a frame, as the definition has it."""
    function, arguments = CASES[name]
    operation = functools.partial(getattr(means, function), **arguments)

    def mean(values, padding=None):
        found, _ = operation(values, padding=padding)
        size = arguments.get("chunk_size") or values.shape[1]
        if function == "chunk_mean":
            found = found.repeat_interleave(size, 1)[:, : values.shape[1]]
        return found

    return mean


def _naive(name):
    function, arguments = CASES[name]
    return functools.partial(getattr(reference, function), **arguments)


def _padding(lengths, time):
    return torch.tensor([[t >= length for t in range(time)] for length in lengths])


def _with_gradient(function, values, cotangent, padding):
    values = values.clone().requires_grad_()
    output = function(values, padding=padding)
    if padding is not None:
        # What stands at padded frames has no meaning, and nothing may be asked of it.
        output = output.masked_fill(padding.unsqueeze(-1), 0)
    (output * cotangent).sum().backward()
    return output.detach(), values.grad


@each_case
@pytest.mark.parametrize("time", LENGTHS)
def test_equals_definition(name, time):
    for padded in (False, True):
        # With padding: a whole utterance, one of a single frame, one in between, an empty one.
        padding = _padding((time, 1, time // 2 + 1, 0), time) if padded else None
        values = torch.randn(4 if padded else 1, time, 2, dtype=torch.float64)
        cotangent = torch.randn_like(values)
        expected = _with_gradient(_naive(name), values, cotangent, padding)
        found = _with_gradient(_fast(name), values, cotangent, padding)
        for f, e in zip(found, expected):
            torch.testing.assert_close(f, e, rtol=0, atol=1e-10)
        found = _with_gradient(_fast(name), values.float(), cotangent.float(), padding)
        for f, e in zip(found, expected):
            assert f.dtype == torch.float32
            torch.testing.assert_close(f.double(), e, rtol=0, atol=2e-6)


@each_case
def test_padding_anywhere(name):
    values = torch.randn(2, 90, 2, dtype=torch.float64)
    padding = torch.rand(2, 90) < 0.4
    valid = ~padding
    torch.testing.assert_close(
        _fast(name)(values, padding=padding)[valid],
        _naive(name)(values, padding=padding)[valid],
        rtol=0,
        atol=1e-10,
    )


@each_of_few
def test_numerical_gradient(name):
    values = torch.randn(3, 67, 1, dtype=torch.float64, requires_grad=True)
    padding = _padding((67, 1, 30), 67)
    valid = ~padding
    mean = _fast(name)
    assert torch.autograd.gradcheck(lambda v: mean(v, padding=padding)[valid], (values,))
    assert torch.autograd.gradcheck(lambda v: mean(v), (values,))


def _streamed(name, values, padding, frames):
    function, arguments = CASES[name]
    operation = getattr(means, function)
    state, shape, pieces = None, None, []
    for piece, mask in zip(values.split(frames, 1), padding.split(frames, 1)):
        found, state = operation(piece, **arguments, padding=mask, state=state)
        assert state.dtype == torch.float64
        assert shape is None or state.shape == shape
        shape = state.shape
        if function == "chunk_mean":
            size = arguments.get("chunk_size") or frames
            found = found.repeat_interleave(size, 1)[:, : piece.shape[1]]
        pieces.append(found)
    return torch.cat(pieces, 1), shape


@pytest.mark.parametrize("name", [n for n in CASES if "chunk_size" in n])
@pytest.mark.parametrize("at_once", (1, 3))
def test_pieces_of_whole_chunks_equal_the_whole(name, at_once):
    arguments = CASES[name][1]
    values = torch.randn(4, 231, 2, dtype=torch.float64)
    padding = _padding((231, 1, 100, 64), 231)
    found, (_, slots, _) = _streamed(name, values, padding, at_once * arguments["chunk_size"])
    expected = _fast(name)(values, padding=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=0, atol=1e-12)
    left_context = arguments["left_context"]
    if left_context is not None:
        assert slots <= max(left_context, left_context * arguments["chunk_size"])
    else:
        assert slots == arguments.get("left", 1)


@pytest.mark.parametrize("name", [n for n in CASES if "chunk_size" not in n])
def test_a_chunk_costs_the_frames_that_are_there(name):
    function, arguments = CASES[name]
    values = torch.randn(2, 70, 2)
    expected, _ = getattr(means, function)(values, **arguments)
    for left in (0, 1, None):
        found, _ = getattr(means, function)(
            values, **arguments, chunk_size=10**12, left_context=left
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "name", [n for n in CASES if "chunk_size" not in n and ("'right': 0" in n or "'causal'" in n)]
)
@pytest.mark.parametrize("frames", (1, 5, 100))
def test_causal_pieces_of_any_size_equal_the_whole(name, frames):
    values = torch.randn(3, 231, 2, dtype=torch.float64)
    padding = _padding((231, 1, 100), 231)
    found, _ = _streamed(name, values, padding, frames)
    expected = _fast(name)(values, padding=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=0, atol=1e-12)


def test_a_long_left_context_is_only_joined_and_cut(square_tensors):
    """Of a piece, no operation but these makes something as long as the left context."""
    state = torch.randn(1, 1000, 3, dtype=torch.float64)
    with square_tensors(108) as long:  # from 108 x 108 / 4 numbers on
        means.chunk_mean(torch.randn(1, 8, 2), 4, 1000, state=state)
    assert {operation for operation, _ in long.found} == {"aten.cat.default", "aten.slice.Tensor"}


def test_an_utterance_in_pieces_ends_with_its_mean():
    values = torch.randn(2, 231, 3, dtype=torch.float64)
    padding = _padding((231, 100), 231)
    state = None
    for piece, mask in zip(values.split(50, 1), padding.split(50, 1)):
        found, state = means.chunk_mean(piece, padding=mask, state=state)
    expected, _ = means.chunk_mean(values, padding=padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_state_of_zeros_is_the_beginning():
    values = torch.randn(2, 20, 3)
    for name in CASES:
        function, arguments = CASES[name]
        operation = functools.partial(getattr(means, function), **arguments)
        expected, state = operation(values)
        found, _ = operation(values, state=torch.zeros_like(state))
        assert torch.equal(found, expected), name


@each_case
@pytest.mark.parametrize("garbage", (float("nan"), float("inf")))
def test_padding_never_leaks(name, garbage):
    lengths, time = (130, 1, 64, 0), 130
    padding = _padding(lengths, time)
    clean = torch.randn(4, time, 2, dtype=torch.float64)
    dirty = clean.masked_fill(padding.unsqueeze(-1), garbage)
    cotangent = torch.randn_like(clean)
    expected = _with_gradient(_fast(name), clean, cotangent, padding)
    found = _with_gradient(_fast(name), dirty, cotangent, padding)
    for f, e in zip(found, expected):
        assert torch.equal(f, e)
    assert not found[1][padding].any()
    assert _fast(name)(dirty, padding=padding).isfinite().all()
    for b, length in enumerate(lengths[:-1]):
        alone = _fast(name)(clean[b : b + 1, :length])
        torch.testing.assert_close(found[0][b : b + 1, :length], alone, rtol=0, atol=1e-12)


@each_case
def test_an_empty_utterance_has_mean_zero(name):
    found = _fast(name)(torch.ones(1, 70, 2), padding=torch.ones(1, 70, dtype=torch.bool))
    assert torch.equal(found, torch.zeros_like(found))


def test_decay_is_seen_from_both_sides():
    values = torch.randn(1, 131, 2, dtype=torch.float64)
    torch.testing.assert_close(
        means.decayed_mean(values.flip(1), 0.9)[0],
        means.decayed_mean(values, 0.9)[0].flip(1),
        rtol=0,
        atol=1e-12,
    )


@each_of_few
@pytest.mark.parametrize("autocast", (False, True))
@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_sums_in_float32(name, dtype, padded, autocast):
    time, valid = 100_000, 99_937
    # Any partial sum of these overflows float16 and has long stopped to grow in bfloat16.
    values = (30_000 + 20_000 * torch.rand(1, time, 1)).to(dtype)
    padding = _padding((valid,), time) if padded else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = _fast(name)(values, padding=padding)
    assert found.dtype == dtype
    expected = _fast(name)(values.double(), padding=padding)
    error = (found.double() / expected - 1).abs()[:, : valid if padded else time]
    assert error.max() <= torch.finfo(dtype).eps


@each_of_few
def test_half_precision_gradient_is_finite(name):
    values = torch.full((1, 70_000, 1), 60_000.0, dtype=torch.float16, requires_grad=True)
    _fast(name)(values, padding=_padding((69_999,), 70_000)).float().mean().backward()
    assert values.grad.isfinite().all()


@each_of_few
def test_autocast_leaves_float32_alone(name):
    values = torch.randn(2, 300, 3)
    padding = _padding((300, 130), 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _fast(name)(values, padding=padding)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, _fast(name)(values, padding=padding), rtol=0, atol=1e-6)


@each_of_few
def test_float32_over_long_utterances(name):
    # Also far from zero, where a difference of two long sums has little left.
    for offset, bound in ((0, 1e-5), (100, 1e-4)):
        values = offset + torch.randn(1, 100_000, 1)
        cotangent = torch.randn_like(values)
        found = _with_gradient(_fast(name), values, cotangent, None)
        expected = _with_gradient(_fast(name), values.double(), cotangent.double(), None)
        for f, e in zip(found, expected):
            assert (f.double() - e).abs().max() < bound


def test_the_check_of_growth_sees_a_square_in_the_backward_pass(square_tensors):
    class Sneaky(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return (torch.ones(101, 101) @ g[0]).unsqueeze(0)

    x = torch.rand(1, 101, 2, requires_grad=True)
    with square_tensors(101) as square:
        y = Sneaky.apply(x).sum()
        assert not square.found
        y.backward()
    assert square.found


@each_case
def test_memory_is_linear(name, square_tensors):
    time = 1511
    values = torch.randn(2, time, 3, requires_grad=True)
    padding = _padding((time, 700), time)
    with square_tensors(time) as square:
        _fast(name)(values, padding=padding).square().sum().backward()
    assert not square.found


@pytest.mark.parametrize(
    "function, arguments, message",
    (
        ("chunk_mean", {"chunk_size": 0}, "chunk_size must be at least 1 frame, got 0"),
        ("chunk_mean", {"chunk_size": -3}, "chunk_size .*-3"),
        ("chunk_mean", {"chunk_size": 2, "left_context": -1}, "left_context .*-1 chunks"),
        ("chunk_mean", {"left_context": 2}, "left_context=2 .*give chunk_size"),
        ("window_mean", {"left": -1, "right": 0}, "left of a window .*-1"),
        ("window_mean", {"left": 0, "right": -2}, "right of a window .*-2"),
        ("decayed_mean", {"decay": 0.0}, r"decay must be in \(0, 1\], got 0.0"),
        ("decayed_mean", {"decay": 1.1}, "decay .*1.1"),
        ("chunk_mean", {"state": torch.zeros(2, 1, 4)}, r"\(2, 1, 4\) .*\(1, 1, 4\)"),
        ("decayed_mean", {"decay": 0.5, "state": torch.zeros(1, 1, 3)}, r"\(1, 1, 3\)"),
        ("window_mean", {"left": 2, "right": 0, "state": torch.zeros(1, 1, 4)}, r"\(1, 2, 4\)"),
    ),
)
def test_bad_arguments(function, arguments, message):
    with pytest.raises(InputError, match=message):
        getattr(means, function)(torch.zeros(1, 5, 3), **arguments)
