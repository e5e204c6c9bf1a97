"""Recognisers on a device that is not the CPU: nothing is left behind, and the text is the same."""

import pytest
import torch
from second_device import second_device

from summarymixing.inference import Recogniser
from summarymixing.inference.streaming import StreamingSession

SUMMARIES = (
    ("conformer", "ctc", {}),
    ("branchformer", "ctc", {}),
    ("conformer", "ctc", {"mode": "SummaryMixing-expdecay"}),
    ("conformer", "transducer", {"mode": "SummaryMixing-fast"}),
    ("conformer", "transducer", {"attention_type": "RoPEMHA"}),
)
OTHERS = (
    ("transformer", "ctc", {"attention_type": "RoPEMHA"}),
    ("conformer", "ctc", {"attention_type": "RelPosMHAXL"}),
    ("conformer", "ctc", {"attention_type": "hypermixing", "max_length": 500}),
)


def sent(recogniser, device):
    return Recogniser(
        recogniser.modules,
        recogniser.compute_features,
        recogniser.tokenizer,
        recogniser.sample_rate,
        device,
        recogniser.search,
    )


def test_two_devices_do_not_mix():
    """That the device is one: what the others here rest on."""
    with second_device() as device:
        there = torch.nn.Linear(3, 4).to(device)
        x = torch.ones(2, 3)
        assert there(x.to(device)).device.type == device
        with pytest.raises(RuntimeError, match="two devices"):
            there(x)
        y = x.to(device) * 2
        y[0, [0, 2]] = 5
        assert y.cpu().tolist() == [[5, 2, 5], [2, 2, 2]] and type(y.cpu()) is torch.Tensor
        with pytest.raises(RuntimeError, match="two devices"):
            y[:, 0] = torch.ones(2)
        with pytest.raises(TypeError, match="CPU first"):
            y.numpy()
        there(y).sum().backward()
        assert there.weight.grad.device.type == device


@pytest.mark.parametrize("encoder, kind, changes", SUMMARIES + OTHERS)
def test_recordings(make_recogniser, noise, encoder, kind, changes):
    recogniser = make_recogniser(encoder, kind, **changes)
    waveforms = [noise(samples).numpy() for samples in (16000, 9000)]

    def found(recogniser):
        return [
            [(token.number, token.first, token.last) for token in tokens]
            for tokens in recogniser.tokens(waveforms)
        ]

    expected = found(recogniser)
    assert all(expected)
    with second_device() as device:
        assert found(sent(recogniser, device)) == expected


@pytest.mark.parametrize("encoder, kind, changes", SUMMARIES)
def test_streams(make_recogniser, noise, encoder, kind, changes):
    recogniser = make_recogniser(encoder, kind, **changes)
    samples = noise(12000).numpy()

    def heard(recogniser):
        session = StreamingSession(recogniser, chunk_size=4, left_context=2)
        number = session.open(rate=8000)
        events = [e for part in (samples[:7000], samples[7000:])
                  for e in session.push({number: part})[number]]  # fmt: skip
        return [event.text for event in events + session.finish(number)[number]]

    expected = heard(recogniser)
    assert expected
    with second_device() as device:
        assert heard(sent(recogniser, device)) == expected
