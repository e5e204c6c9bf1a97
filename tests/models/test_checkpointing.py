"""Activation checkpointing: the same outputs and gradients, and less memory."""

import pytest
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.benchmark.measure import peak_bytes


@pytest.fixture
def step(make_model):
    """step(encoder, checkpointing, frames) → output and gradients of a training step."""

    def take(encoder, frames, checkpointing, **changes):
        torch.manual_seed(0)
        arguments = {"num_decoder_layers": 0, "dropout": 0.3, **changes}
        model = make_model(encoder, activation_checkpointing=checkpointing, **arguments).train()
        lengths = torch.tensor([frames, max(1, frames // 2)])
        x = torch.randn(2, frames, 12, requires_grad=True)

        def run(**options):
            y = model.encode(x, lengths, **options)
            y.square().sum().backward()
            return y

        run.model, run.x = model, x
        return run

    return take


@pytest.mark.parametrize("encoder", ("conformer", "branchformer", "transformer"))
@pytest.mark.parametrize("chunks", (None, DynChunkTrainConfig(4, 1)), ids=("offline", "chunks"))
def test_outputs_and_gradients_are_the_same(encoder, chunks, step):
    if encoder == "transformer" and chunks is not None:
        pytest.skip("a Transformer encodes offline only")
    found = []
    for checkpointing in (False, True):
        run = step(encoder, 17, checkpointing)
        torch.manual_seed(1)  # for dropout
        y = run(dynchunktrain_config=chunks)
        found.append([y, run.x.grad, *(p.grad for p in run.model.parameters())])
    assert len(found[0]) > 10
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoder", ("conformer", "branchformer"))
def test_it_takes_less_memory(encoder, step):
    plain, less = (
        peak_bytes(step(encoder, 400, checkpointing, num_encoder_layers=6), "cpu")
        for checkpointing in (False, True)
    )
    assert less < 0.5 * plain
