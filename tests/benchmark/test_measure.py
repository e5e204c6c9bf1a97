"""Figures that are known: bytes, operations, which steps are counted."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from second_device import second_device

from summarymixing.benchmark import measure, recipe, report
from summarymixing.benchmark.cases import DEPTHS, MIXERS, PARTS, PRODUCTS, Case, Side, there_is
from summarymixing.models.mixers import NoMixer


@pytest.fixture
def make_case():
    def make(encoder="conformer", part="layers", step="training", **changes):
        arguments = {"layers": 1, "seconds": 1, "batch": 2, "padding": 0.8, "d_model": 16}
        return Case(encoder=encoder, part=part, step=step, **{**arguments, **changes})

    return make


@pytest.mark.parametrize(
    "encoder, part, mixer",
    [
        (encoder, part, mixer)
        for encoder, part, mixer in itertools.product(DEPTHS, PARTS, MIXERS)
        if there_is(mixer, encoder, part)
    ],
)
def test_every_side_takes_a_step(encoder, part, mixer, make_case):
    side = Side(make_case(encoder, part), mixer, "cpu")
    assert side().shape == (2, 25, 16)
    assert side.x.grad is not None and all(p.grad is not None for p in side.parameters)
    side.forget()
    assert side.x.grad is None and all(p.grad is None for p in side.parameters)


@pytest.mark.parametrize("encoder", DEPTHS)
def test_every_side_is_on_its_device(encoder, make_case):
    mixers = [m for m in MIXERS if there_is(m, encoder, "encoder") and not MIXERS[m].triton]
    with second_device() as device:
        for mixer in (*mixers, PRODUCTS):
            side = Side(make_case(encoder, "encoder"), mixer, device)
            assert {x.device.type for x in (side(), *side.parameters)} == {device}


@pytest.mark.parametrize("part", ("layers", "encoder"))
@pytest.mark.parametrize("mixer", ("none", "RoPEMHA", "RelPosMHAXL"))
def test_speechbrains_sides_are_its_own_layers(mixer, part, make_case):
    """Of the same sizes; what they give differs at the end of what is padded, and nowhere else."""
    ours, its = (
        Side(make_case(part=part, step="forward", seconds=3), name, "cpu")
        for name in (mixer, f"speechbrain/{mixer}")
    )
    assert not any(
        "summarymixing" in type(m).__module__
        for m in its.model.inner.modules()
        if not isinstance(m, NoMixer)
    )
    ours.x = its.x
    ours.model.load_state_dict(its.model.state_dict())
    torch.testing.assert_close(ours()[0], its()[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours()[1, :44], its()[1, :44], rtol=0, atol=1e-5)
    assert not torch.allclose(ours()[1, 59], its()[1, 59], atol=1e-3)


def test_a_forward_step_is_an_evaluation(make_case):
    side = Side(make_case(step="forward"), "SummaryMixing", "cpu")
    assert torch.equal(side(), side())  # no dropout
    assert not side.x.requires_grad and not side.model.training


def test_utterances_are_padded(make_case):
    padded, full = (
        Side(make_case(step="forward", padding=padding), "SummaryMixing", "cpu")
        for padding in (0.8, 1)
    )
    assert padded.lengths.tolist() == [25, 20] and full.lengths is None
    assert not torch.allclose(padded()[1, :20], full()[1, :20], atol=1e-4)
    assert torch.allclose(padded()[0], full()[0], atol=1e-6)


def test_peak_bytes_are_those_held_at_once():
    def step():
        a = torch.ones(1000)
        b = a + 1
        del a
        return b + torch.ones(500).sum()

    assert measure.peak_bytes(step, "cpu") == pytest.approx(8000, abs=100)


def test_peak_bytes_see_within_operations():
    x = torch.randn(4, 1000)
    # Softmax of a transposed tensor copies it first: the output alone would be 16 000 bytes.
    assert measure.peak_bytes(lambda: (x.t() + 1).softmax(-1), "cpu") >= 32000


def test_flops_of_products_and_depthwise_convolutions(make_case):
    frames, d_model = 2 * 25, 16
    forward = make_case(step="forward")
    products = 2 * frames * 2 * d_model * 4 * d_model
    assert measure.flops(forward, PRODUCTS) == products
    assert measure.flops(make_case(), PRODUCTS) == 3 * products
    # Two feed-forward parts, two pointwise convolutions (one to twice the width, for its gate),
    # and a depthwise one.
    layer = 2 * products + 2 * frames * (2 + 1) * d_model**2 + 2 * frames * d_model * 31
    assert measure.flops(forward, "none") == layer
    assert measure.flops(make_case(), "none") == 3 * layer


def test_sides_take_turns(make_case, monkeypatch):
    steps = []
    call = Side.__call__

    def noted(self):
        steps.append(self)
        return call(self)

    monkeypatch.setattr(Side, "__call__", noted)
    monkeypatch.setattr(measure, "SECONDS_A_TURN", 0.0)
    rows = measure.measure(make_case(), ["none", "SummaryMixing"], repeats=4)
    assert [row["mixer"] for row in rows] == [PRODUCTS, "none", "SummaryMixing"]
    assert all(len(row["times"]) == 4 and min(row["times"]) > 0 for row in rows)
    turns = steps[-12:]
    assert turns == 4 * turns[:3] and len(set(turns)) == 3


@pytest.mark.parametrize(
    "error",
    (
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ),
)
def test_out_of_memory_is_a_row(error, make_case, monkeypatch):
    call = Side.__call__

    def fails(self):
        if any("in_proj_weight" in name for name, _ in self.model.named_parameters()):
            raise error
        return call(self)

    monkeypatch.setattr(Side, "__call__", fails)
    rows = measure.measure(make_case(), ["RoPEMHA", "SummaryMixing"], repeats=2)
    failed = {row["mixer"]: row.get("failed") for row in rows}
    assert failed == {PRODUCTS: None, "RoPEMHA": measure.OUT_OF_MEMORY, "SummaryMixing": None}


def test_one_side_that_fails_leaves_the_others(make_case, monkeypatch):
    call = Side.__call__

    def fails(self):
        if any("in_proj_weight" in name for name, _ in self.model.named_parameters()):
            raise RuntimeError("CUDNN_STATUS\nno engine")
        return call(self)

    monkeypatch.setattr(Side, "__call__", fails)
    rows = measure.measure(make_case(), ["RoPEMHA", "SummaryMixing"], repeats=1)
    failed = {row["mixer"]: row.get("failed") for row in rows}
    said = "RuntimeError: CUDNN_STATUS no engine"
    assert failed == {PRODUCTS: None, "RoPEMHA": said, "SummaryMixing": None}
    lines = list(report.failures({"rows": rows, "recipes": []}))
    assert lines == [f"RoPEMHA, conformer layers training float32 eager 1 s: {said}"]

    def release(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(measure, "_release", release)
    with pytest.raises(measure.DeviceLostError) as caught:
        measure.measure(make_case(), ["RoPEMHA", "SummaryMixing"], repeats=1)
    assert caught.value.row["mixer"] == "RoPEMHA" and caught.value.row["failed"] == said


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_row_in_bf16(mixer, make_case):
    (row,) = (
        row
        for row in measure.measure(make_case(precision="bf16"), [mixer], repeats=1)
        if row["mixer"] == mixer
    )
    assert "failed" not in row and row["peak_bytes"] > 0
    assert row["flops"] == measure.flops(make_case(), mixer) > 0


def test_the_step_whose_memory_is_measured_begins_without_gradients(make_case, monkeypatch):
    held = []

    def peak_bytes(side, device):
        held.append([p.grad for p in (side.x, *side.parameters) if p.grad is not None])
        side()
        return 0

    monkeypatch.setattr(measure, "peak_bytes", peak_bytes)
    measure.measure(make_case(), ["SummaryMixing"], repeats=1)
    assert held == [[], []]


def test_a_batch_is_read_on_one_thread(monkeypatch):
    threads = []
    monkeypatch.setattr(
        recipe.data, "collate", lambda items: threads.append(torch.get_num_threads())
    )
    torch.set_num_threads(2)
    recipe._Training.read(SimpleNamespace(dataset=[]))
    assert threads == [1] and torch.get_num_threads() == 2
