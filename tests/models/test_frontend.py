"""Front end and features against SpeechBrain's, and against themselves in batches."""

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd as HostFrontEnd
from torch import nn

from summarymixing.errors import InputError
from summarymixing.models.features import LogMel

SETTINGS = (
    {},
    {"kernel_sizes": (5, 3)},
    {"strides": (1, 2)},
    {"strides": (2, 1), "kernel_sizes": (3, 5)},
    {"strides": (3, 2), "kernel_sizes": (5, 5)},
    {"strides": (1, 1), "dilations": (2, 1)},
    {"num_blocks": 1, "activation": nn.GELU, "norm": None},
)


def _id(value):
    return ",".join(f"{k}={v}" for k, v in value.items()) or "published"


@pytest.mark.parametrize("settings", SETTINGS, ids=_id)
@pytest.mark.parametrize("lengths", (False, True))
def test_equals_speechbrain_for_an_utterance_alone(settings, lengths, make_front_end):
    ours, host = make_front_end(**settings), make_front_end(HostFrontEnd, **settings)
    ours.load_state_dict(host.state_dict(), strict=True)
    host.load_state_dict(ours.state_dict(), strict=True)
    ours, host = ours.double(), host.double()
    for time in (12, 13, 14, 15, 40, 41):
        x = torch.randn(2, time, 12, dtype=torch.float64)
        expected = host(x)
        if lengths:
            found, frames = ours(x, torch.tensor([time, time]))
            assert frames.tolist() == [expected.shape[1]] * 2
        else:
            found = ours(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert ours.frames(time) == expected.shape[1]
        gradients = (
            torch.autograd.grad((y * y).sum(), model.parameters())
            for model, y in ((ours, found), (host, expected))
        )
        for gradient, of_host in zip(*gradients):
            torch.testing.assert_close(gradient, of_host, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", SETTINGS, ids=_id)
@pytest.mark.parametrize("garbage", (30.0, float("nan")))
def test_batch_does_not_matter(settings, garbage, make_front_end, make_batch):
    front_end = make_front_end(**settings)
    lengths = (1, 2, 3, 4, 5, 6, 7, 8, 9, 30)
    utterances, batch, tensor = make_batch(lengths, 12, garbage)
    with torch.no_grad():
        together, frames = front_end(batch, tensor)
        for b, utterance in enumerate(utterances):
            alone = front_end(utterance)[0]
            assert alone.isfinite().all()
            assert len(alone) == frames[b]
            torch.testing.assert_close(together[b, : frames[b]], alone, rtol=0, atol=1e-6)
        _, again = front_end(batch, tensor.float() / max(lengths))
        assert torch.equal(again, frames)


@pytest.mark.parametrize("time", (1, 2, 3, 4))
def test_from_one_frame(time, make_front_end):
    found, frames = make_front_end()(torch.randn(3, time, 12), torch.tensor([time, 1, time]))
    assert found.shape == (3, 1, 3, 4)
    assert frames.tolist() == [1, 1, 1]
    assert found.isfinite().all()


@pytest.mark.parametrize(
    "settings, message",
    (
        ({"num_layers_per_block": 2}, "num_layers_per_block"),
        ({"residuals": (True, False)}, "residuals"),
        # In these, SpeechBrain's own padding is not "same": it gives a frame more or less.
        ({"dilations": (2, 1)}, "dilation.*2"),
        ({"padding": "valid"}, "padding.*valid"),
    ),
    ids=str,
)
def test_blocks_that_have_no_exact_lengths_are_refused(settings, message, make_front_end):
    with pytest.raises(InputError, match=message):
        make_front_end(**settings)


@pytest.mark.parametrize(
    "settings",
    (
        {},
        {"n_fft": 400, "win_length": 25},
        {"sample_rate": 8000, "n_fft": 256},
        {"hop_length": 12.5},
    ),
)
def test_log_mel_equals_speechbrain_and_counts_its_frames(settings):
    ours = LogMel(n_mels=20, **settings)
    defaults = {"n_fft": 512, "win_length": 32, "hop_length": 10, "sample_rate": 16000}
    host = Fbank(n_mels=20, **{**defaults, **settings})
    for samples in (1, 79, 80, 159, 160, 161, 399, 400, 1000, 3200, 3201):
        wav = torch.randn(1, samples)
        features, frames = ours(wav, torch.tensor([samples]))
        expected = host(wav)
        assert frames.tolist() == [ours.frames(samples)] == [expected.shape[1]]
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("garbage", (1.0, 1e6, float("nan")))
def test_log_mel_batch_does_not_matter(garbage, make_batch):
    log_mel = LogMel(n_mels=20)
    samples = (1, 100, 161, 1000, 3999, 8000)
    utterances, batch, lengths = make_batch(samples, 1, garbage)
    scales = torch.tensor([1.0, 0.1, 0.01, 1.0, 10.0, 1e-3])
    batch = batch.squeeze(-1) * scales.unsqueeze(1)
    features, frames = log_mel(batch, lengths)
    for b, utterance in enumerate(utterances):
        alone, count = log_mel(utterance.squeeze(-1) * scales[b], torch.ones(1))
        assert count.item() == frames[b]
        torch.testing.assert_close(features[b, : frames[b]], alone[0], rtol=0, atol=1e-3)
    _, again = log_mel(batch, lengths.float() / max(samples))
    assert torch.equal(again, frames)


def test_log_mel_keeps_no_gradient():
    wav = torch.randn(1, 400, requires_grad=True)
    assert not LogMel(n_mels=20)(wav, torch.ones(1))[0].requires_grad
