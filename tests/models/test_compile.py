"""Encoders under torch.compile: one graph each, and few of them for all batches and lengths."""

import random

import pytest
import torch
from torch.nn import functional as F

from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.ops import dropout
from summarymixing.ops.padding import padding_mask


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _model(encoder, mode):
    return TransformerASR(
        tgt_vocab=10,
        input_size=8,
        d_model=8,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=0,
        d_ffn=16,
        csgu_linear_units=16,
        encoder_module=encoder,
        mode=mode,
        dropout=0.1,
    )


@pytest.mark.parametrize(
    ("encoder", "mode"),
    (
        ("conformer", "SummaryMixing"),
        ("conformer", "SummaryMixing-lite"),
        ("conformer", "SummaryMixing-fast"),
        ("conformer", "SummaryMixing-expdecay"),
        ("branchformer", "SummaryMixing"),
    ),
)
def test_one_graph_for_batches_of_all_shapes(encoder, mode, monkeypatch):
    model = _model(encoder, mode)
    graphs = []

    def backend(graph, inputs):  # no compiler is needed to count what would be compiled
        graphs.append(graph)
        return graph.forward

    # `fullgraph`: a graph break would be an error.
    compiled = torch.compile(model.encode, dynamic=True, fullgraph=True, backend=backend)
    generator = random.Random(0)
    for turn in range(200):
        batch, time = generator.randint(1, 20), generator.randint(2, 50)
        lengths = torch.tensor([time, *(generator.randint(1, time) for _ in range(batch - 1))])
        frames = torch.randn(batch, time, 8)
        torch.manual_seed(turn)  # for dropout
        encoded = compiled(frames, lengths)
        if turn % 20 == 0:
            torch.manual_seed(turn)
            valid = ~padding_mask(lengths, time)
            with monkeypatch.context() as patch:  # what is not compiled draws others, on a CPU
                patch.setattr(dropout, "dropout", F.dropout)
                expected = model.encode(frames, lengths)
            torch.testing.assert_close(encoded[valid], expected[valid], atol=1e-5, rtol=1e-5)
    assert len(graphs) <= 1 + 3  # recompiled at most three times
