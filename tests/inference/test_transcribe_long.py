"""Encoding in blocks against the plain forward."""

import pytest
import torch

from summarymixing.inference import long
from summarymixing.nnet.summaries import DecayedMean, UtteranceMean, WindowMean


def _plain(recogniser, samples):
    frames, lengths = recogniser.front_end(samples[None], torch.tensor([len(samples)]))
    with torch.no_grad():
        return recogniser.modules["Transformer"].encode(frames, lengths)


@pytest.mark.parametrize("encoder_module", ("conformer", "branchformer"))
@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"mode": "SummaryMixing-lite"},
        {"mode": "SummaryMixing-fast"},
        {"summaries": [UtteranceMean(), WindowMean(3, 9)]},
        {"summaries": [WindowMean(20, 0)]},
        {"attention_type": "none"},
    ),
    ids=str,
)
def test_blocks_are_the_plain_forward(make_recogniser, noise, encoder_module, changes):
    recogniser = make_recogniser(encoder_module, **changes)
    assert long.encodes_in_blocks(recogniser)
    for samples, blocks in ((1, (1,)), (700, (1,)), (33000, (1, 5, 52, 1000))):
        samples = noise(samples)
        expected = _plain(recogniser, samples)
        for block in blocks:
            found = long.encode(recogniser, samples, block)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("top_db", (None, 20.0))
@pytest.mark.parametrize("norm_type", ("global", "sentence"))
def test_features_that_depend_on_the_whole(make_recogniser, noise, top_db, norm_type):
    recogniser = make_recogniser(top_db=top_db)
    recogniser.modules["normalize"].norm_type = norm_type
    samples = noise(33000)
    expected = _plain(recogniser, samples)
    assert (long.encode(recogniser, samples, 7) - expected).abs().max() <= 1e-5
    assert recogniser.compute_features.fbank.compute_fbanks.top_db == (top_db or float("inf"))


def test_the_model_stays_as_it_is(make_recogniser, noise):
    recogniser = make_recogniser()
    samples = noise(16000)
    expected = _plain(recogniser, samples)
    long.encode(recogniser, noise(20000), 7)
    assert _plain(recogniser, samples).equal(expected)


def test_no_operation_sees_all_frames_of_a_wide_layer(make_recogniser, noise):
    class Widest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            output = operation(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                self.numbers = max(self.numbers, output.numel())
            return output

    recogniser = make_recogniser("branchformer", csgu_linear_units=640)
    samples = noise(160000)
    with Widest() as plain:
        _plain(recogniser, samples)
    with Widest() as blocks:
        long.encode(recogniser, samples, 8)
    assert plain.numbers >= 251 * 640
    assert blocks.numbers <= max(len(samples), 8 * (15 + 8) * 640)


@pytest.mark.parametrize(
    "arguments",
    (
        {"encoder_module": "transformer"},
        {"encoder_module": "conformer", "attention_type": "RoPEMHA"},
        {"encoder_module": "conformer", "mode": "SummaryMixing-expdecay"},
        {"encoder_module": "branchformer", "summaries": [UtteranceMean(), DecayedMean()]},
    ),
    ids=str,
)
def test_others_are_refused(make_recogniser, arguments):
    assert not long.encodes_in_blocks(make_recogniser(**arguments))
