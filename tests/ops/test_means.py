"""The means against their definitions: outputs, gradients, padding, precision and memory."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from summarymixing.ops import means, reference

LENGTHS = (1, 2, 63, 64, 65, 127, 129, 300)
MEANS = {
    "utterance": (means.utterance_mean, reference.utterance_mean),
    "decay 0.995": (
        functools.partial(means.decayed_mean, decay=0.995),
        functools.partial(reference.decayed_mean, decay=0.995),
    ),
    "decay 0.6": (
        functools.partial(means.decayed_mean, decay=0.6),
        functools.partial(reference.decayed_mean, decay=0.6),
    ),
}
each_mean = pytest.mark.parametrize("name", MEANS)


def _padding(lengths, time):
    return torch.tensor([[t >= length for t in range(time)] for length in lengths])


def _with_gradient(function, values, cotangent, padding):
    values = values.clone().requires_grad_()
    output = function(values, padding=padding).expand_as(cotangent)
    if padding is not None:
        # What stands at padded frames has no meaning, and nothing may be asked of it.
        output = output.masked_fill(padding.unsqueeze(-1), 0)
    (output * cotangent).sum().backward()
    return output.detach(), values.grad


@each_mean
@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("time", LENGTHS)
def test_equals_definition(name, time, padded):
    fast, naive = MEANS[name]
    # With padding: a whole utterance, one of a single frame, one in between, and an empty one.
    padding = _padding((time, 1, time // 2 + 1, 0), time) if padded else None
    values = torch.randn(4 if padded else 2, time, 3, dtype=torch.float64)
    cotangent = torch.randn_like(values)
    expected = _with_gradient(naive, values, cotangent, padding)
    found = _with_gradient(fast, values, cotangent, padding)
    for f, e in zip(found, expected):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-10)
    found = _with_gradient(fast, values.float(), cotangent.float(), padding)
    for f, e in zip(found, expected):
        assert f.dtype == torch.float32
        torch.testing.assert_close(f.double(), e, rtol=0, atol=2e-6)


@each_mean
def test_padding_anywhere(name):
    fast, naive = MEANS[name]
    values = torch.randn(3, 150, 2, dtype=torch.float64)
    padding = torch.rand(3, 150) < 0.4
    valid = ~padding
    torch.testing.assert_close(
        fast(values, padding=padding).expand_as(values)[valid],
        naive(values, padding=padding)[valid],
        rtol=0,
        atol=1e-10,
    )


@each_mean
def test_numerical_gradient(name):
    fast, _ = MEANS[name]
    values = torch.randn(3, 67, 1, dtype=torch.float64, requires_grad=True)
    padding = _padding((67, 1, 30), 67)
    assert torch.autograd.gradcheck(lambda v: fast(v, padding=padding), (values,))
    assert torch.autograd.gradcheck(lambda v: fast(v), (values,))


@each_mean
@pytest.mark.parametrize("garbage", (float("nan"), float("inf"), -float("inf")))
def test_padding_never_leaks(name, garbage):
    fast, _ = MEANS[name]
    lengths, time = (130, 1, 64, 0), 130
    padding = _padding(lengths, time)
    clean = torch.randn(4, time, 2, dtype=torch.float64)
    dirty = clean.masked_fill(padding.unsqueeze(-1), garbage)
    cotangent = torch.randn_like(clean)
    expected = _with_gradient(fast, clean, cotangent, padding)
    found = _with_gradient(fast, dirty, cotangent, padding)
    for f, e in zip(found, expected):
        assert torch.equal(f, e)
    assert not found[1][padding].any()
    assert fast(dirty, padding=padding).isfinite().all()
    for b, length in enumerate(lengths[:-1]):
        alone = fast(clean[b : b + 1, :length]).expand(1, length, -1)
        torch.testing.assert_close(found[0][b : b + 1, :length], alone, rtol=0, atol=1e-12)


@each_mean
def test_an_empty_utterance_has_mean_zero(name):
    fast, _ = MEANS[name]
    found = fast(torch.ones(1, 70, 2), padding=torch.ones(1, 70, dtype=torch.bool))
    assert torch.equal(found, torch.zeros_like(found))


def test_decay_one_is_the_uniform_mean():
    values = torch.randn(2, 200, 3, dtype=torch.float64)
    padding = _padding((200, 77), 200)
    found = means.decayed_mean(values, 1.0, padding)
    expected = means.utterance_mean(values, padding).expand_as(values)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=0, atol=1e-12)


def test_decay_is_seen_from_both_sides():
    values = torch.randn(1, 131, 2, dtype=torch.float64)
    torch.testing.assert_close(
        means.decayed_mean(values.flip(1), 0.9),
        means.decayed_mean(values, 0.9).flip(1),
        rtol=0,
        atol=1e-12,
    )


@each_mean
@pytest.mark.parametrize("autocast", (False, True))
@pytest.mark.parametrize("padded", (False, True))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_sums_in_float32(name, dtype, padded, autocast):
    fast, _ = MEANS[name]
    time, valid = 100_000, 99_937
    # Any partial sum of these overflows float16 and has long stopped to grow in bfloat16.
    values = (30_000 + 20_000 * torch.rand(1, time, 1)).to(dtype)
    padding = _padding((valid,), time) if padded else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = fast(values, padding=padding)
    assert found.dtype == dtype
    expected = fast(values.double(), padding=padding)
    error = (found.double() / expected - 1).abs()
    if padded and found.shape[1] > 1:
        error = error[:, :valid]
    assert error.max() <= torch.finfo(dtype).eps


@each_mean
def test_half_precision_gradient_is_finite(name):
    fast, _ = MEANS[name]
    values = torch.full((1, 70_000, 1), 60_000.0, dtype=torch.float16, requires_grad=True)
    fast(values, padding=_padding((69_999,), 70_000)).float().mean().backward()
    assert values.grad.isfinite().all()


@each_mean
def test_autocast_leaves_float32_alone(name):
    fast, _ = MEANS[name]
    values = torch.randn(2, 300, 3)
    padding = _padding((300, 130), 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fast(values, padding=padding)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fast(values, padding=padding), rtol=0, atol=1e-6)


@each_mean
def test_float32_over_long_utterances(name):
    fast, _ = MEANS[name]
    values = 100 + torch.randn(1, 50_000, 1)
    error = fast(values).double() - fast(values.double())
    assert error.abs().max() < 1e-4


class _Shapes(TorchDispatchMode):
    """Notes every tensor that any operation makes, in the backward pass, too."""

    def __init__(self, time):
        super().__init__()
        self.time, self.square = time, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            if isinstance(output, torch.Tensor) and (
                sum(size >= self.time for size in output.shape) > 1
                or output.numel() >= self.time**2 // 4
            ):
                self.square.append((str(operation), tuple(output.shape)))
        return outputs


def test_growth_check_sees_a_square_in_the_backward_pass():
    class Sneaky(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return (torch.ones(101, 101) @ g[0]).unsqueeze(0)

    x = torch.rand(1, 101, 2, requires_grad=True)
    with _Shapes(101) as shapes:
        y = Sneaky.apply(x).sum()
        assert not shapes.square
        y.backward()
    assert shapes.square


@each_mean
def test_memory_is_linear(name):
    fast, _ = MEANS[name]
    time = 1511
    values = torch.randn(2, time, 3, requires_grad=True)
    padding = _padding((time, 700), time)
    with _Shapes(time) as shapes:
        fast(values, padding=padding).square().sum().backward()
    assert not shapes.square
