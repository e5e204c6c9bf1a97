"""Triton's kernels, interpreted on the CPU, against definitions and PyTorch's operations."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from summarymixing.errors import InputError
from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.ops import kernels, reference
from summarymixing.ops.convolution import chunked_convolution, depthwise_convolution

triton = pytest.importorskip("triton", reason="this torch came without Triton")
KERNELS = ("_sum_taps", "_weight_gradient")


@pytest.fixture
def ran(monkeypatch):
    """With the kernels on; a list of those that ran."""
    names = []

    def noted(name):
        kernel = getattr(kernels, name)

        class Noted:
            def __class_getitem__(cls, grid):
                names.append(name)
                return kernel[grid]

        return Noted

    for name in KERNELS:
        monkeypatch.setattr(kernels, name, noted(name))
    # Several blocks in tensors that are quick to interpret.
    monkeypatch.setattr(kernels, "BLOCK_TIME", 16)
    monkeypatch.setattr(kernels, "BLOCK_CHANNELS", 4)
    monkeypatch.setattr(kernels, "PARTS", 3)
    with kernels.using():
        yield names


def _operands(time, kernel, channels=5, dtype=torch.float32):
    x = torch.randn(2, time, channels).to(dtype)
    weight, bias = torch.randn(channels, 1, kernel), torch.randn(channels)
    return [tensor.requires_grad_() for tensor in (x, weight, bias)]


def _compare(function, definition, operands):
    """Outputs and gradients of a function, and those of its definition in float64."""
    wide = [tensor.detach().double().requires_grad_() for tensor in operands]
    y, expected = function(*operands), definition(*wide)
    cotangent = torch.randn_like(expected).bfloat16().double()
    found = [y, *torch.autograd.grad((y * cotangent).sum(), operands)]
    expected = [expected, *torch.autograd.grad((expected * cotangent).sum(), wide)]
    for a, b, operand in zip(found, expected, [operands[0], *operands], strict=True):
        assert a.dtype == operand.dtype
        # Sums are in float32. Triton's interpreter cuts off what bfloat16 has no place for.
        rtol = 2**-7 if a.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("kernel", (1, 5))
@pytest.mark.parametrize("chunk_size", (1, 3, 16, 50, None))
@pytest.mark.parametrize("time", (1, 37))
def test_equals_definition(time, chunk_size, kernel, ran):
    _compare(
        lambda *operands: chunked_convolution(*operands, chunk_size)[0],
        lambda *operands: reference.chunked_convolution(*operands, chunk_size),
        _operands(time, kernel),
    )
    assert set(ran) == set(KERNELS)


@pytest.mark.parametrize("left, right", ((0, 0), (6, 0), (3, 3)))
def test_equals_torch_with_zeros_around(left, right, ran):
    def convolution(x, weight, bias):
        x = F.pad(x.transpose(1, 2), (left, right))
        return F.conv1d(x, weight, bias, groups=len(weight)).transpose(1, 2)

    _compare(
        lambda *operands: depthwise_convolution(*operands, left, right),
        convolution,
        _operands(19, 7),
    )
    assert set(ran) == set(KERNELS)


def test_bfloat16_sums_in_float32(ran):
    operands = _operands(21, 31, dtype=torch.bfloat16)
    _compare(
        lambda *operands: chunked_convolution(*operands, 8)[0],
        lambda *operands: reference.chunked_convolution(*operands, 8),
        operands,
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_convolution(*_operands(3, 3)).dtype == torch.bfloat16
    assert set(ran) == set(KERNELS)


def test_transposed_and_without_bias(ran):
    x, weight, _ = _operands(5, 3, channels=9)
    _compare(
        lambda x, weight: chunked_convolution(x.transpose(1, 2), weight[:5], chunk_size=4)[0],
        lambda x, weight: reference.chunked_convolution(x.transpose(1, 2), weight[:5], None, 4),
        [x, weight],
    )


def test_as_an_operation_of_torch(ran):
    for bias in (None, torch.randn(5, requires_grad=True)):
        x, weight, _ = _operands(9, 3)
        torch.library.opcheck(kernels._convolution, (x, weight, bias, 1, 9, 4))


@pytest.mark.parametrize("encoder", ("conformer", "branchformer"))
def test_in_an_encoder_without_graph_breaks(encoder, ran):
    model = TransformerASR(
        tgt_vocab=10,
        input_size=8,
        d_model=8,
        nhead=2,
        encoder_nhead=1,
        num_encoder_layers=1,
        num_decoder_layers=0,
        d_ffn=16,
        csgu_linear_units=16,
        kernel_size=5,
        encoder_module=encoder,
        dropout=0.0,
    )
    x, lengths = torch.randn(2, 20, 8), torch.tensor([20, 13])
    compiled = torch.compile(model.encode, fullgraph=True, backend="eager")
    results = []
    for encode, enabled in ((model.encode, False), (model.encode, True), (compiled, True)):
        del ran[:]
        model.zero_grad()
        with kernels.using(enabled):
            y = encode(x, lengths)[1, :13]
            y.square().sum().backward()
        assert bool(ran) == enabled
        results.append([y, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.compiler.reset()
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], atol=1e-5, rtol=1e-4)


def test_compiles_for_gpus(tmp_path):
    """To machine code, for which no GPU is needed."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from summarymixing.ops import kernels

settings = dict(KERNEL=31, CHUNKED=True, BACKWARD=False, BIAS=True, BLOCK_TIME=kernels.BLOCK_TIME,
                BLOCK_CHANNELS=kernels.BLOCK_CHANNELS)
types = dict(x="*bf16", y="*bf16", dy="*bf16", weight="*fp32", bias="*fp32", dw="*fp32")
for kernel in (kernels._sum_taps, kernels._weight_gradient):
    names = kernel.arg_names
    constants = {name: settings[name] for name in names if name in settings}
    signature = {name: types.get(name, "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    for capability in (80, 90):
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        print(len(compiled.asm["cubin"]) > 1000)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True"] * 4, done.stderr


def test_off_unless_asked_for(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.randn(1, 3, 2)
    assert not kernels.usable(x)
    with kernels.using():
        assert kernels.usable(x)
        monkeypatch.delenv("TRITON_INTERPRET")
        assert not kernels.usable(x)  # the plain operations, on a CPU


def test_without_triton(monkeypatch):
    monkeypatch.setattr(kernels, "triton", None)
    assert not kernels.usable(torch.randn(1, 3, 2))
    with kernels.using(), pytest.raises(InputError, match="needs Triton, which is not installed"):
        kernels.usable(torch.randn(1, 3, 2))


def test_the_switch_in_the_environment():
    code = "import torch; from summarymixing.ops import kernels; kernels.usable(torch.ones(1))"
    for value, said in (("1", ""), ("yes", "SUMMARYMIXING_TRITON must be 0 or 1, got 'yes'")):
        environment = {**os.environ, kernels.SWITCH: value, "TRITON_INTERPRET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; print(kernels._enabled)"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert said in done.stderr and ("True" in done.stdout) == (value == "1")


@pytest.mark.parametrize("transposed", (False, True))
def test_what_is_said_of_results_is_true(transposed, ran):
    """The compiler is told how a result lies in memory, and relies on it."""
    x, weight, bias = (tensor.detach() for tensor in _operands(9, 3))
    x = x.mT.contiguous().mT if transposed else x
    convolution = kernels._convolution, (x, weight, bias, 1, 9, 0)
    for operator, operands in (convolution, (kernels._convolution_backward, (x, x, weight, 1, 0))):
        real = operator(*operands)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = operator(*operands)
        for a, b in zip(*([y] if torch.is_tensor(y) else y for y in (real, fake))):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
