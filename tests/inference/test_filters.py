"""A front end over a sliding slice against the same front end over the whole recording."""

import pytest
import torch
import torchaudio

from summarymixing.errors import InputError
from summarymixing.inference.filters import FilterStream, front_end_filter


def _offline(recogniser, wav, rate=None):
    if rate is not None:
        wav = torchaudio.functional.resample(wav, rate, recogniser.sample_rate)
    frames, lengths = recogniser.front_end(wav.unsqueeze(0), torch.tensor([len(wav)]))
    assert frames.shape[1] == lengths[0]
    return frames[0]


def _streamed(filter, wav, chunk, split):
    stream, found = FilterStream(filter), []
    for piece in wav.split(split):
        stream.push(piece)
        while (frames := stream.pull(chunk)) is not None:
            assert len(frames) == chunk
            found.append(frames)
    return torch.cat([*found, stream.finish()])


@pytest.mark.parametrize("samples", (1, 100, 639, 640, 641, 1279, 1281, 5121, 20479, 20480, 33333))
@pytest.mark.parametrize("chunk", (1, 3, 16))
def test_streamed_front_end_is_the_offline_one(make_recogniser, noise, samples, chunk):
    recogniser, wav = make_recogniser(), noise(samples)
    whole = _offline(recogniser, wav)
    filter = front_end_filter(recogniser)
    first = _streamed(filter, wav, chunk, 1000)
    torch.testing.assert_close(first, whole, atol=1e-5, rtol=0)
    for split in (160, 777, 10**6):
        assert _streamed(filter, wav, chunk, split).equal(first)


@pytest.mark.parametrize("rate", (8000, 11025, 22050, 32000, 44100, 48000))
@pytest.mark.parametrize("samples", (1, 441, 3001, 44100, 60001))
def test_streamed_resampling_is_torchaudios(make_recogniser, noise, rate, samples):
    recogniser, wav = make_recogniser(), noise(samples)
    whole = _offline(recogniser, wav, rate)
    filter = front_end_filter(recogniser, rate)
    first = _streamed(filter, wav, 5, 1000)
    torch.testing.assert_close(first, whole, atol=1e-5, rtol=0)
    assert _streamed(filter, wav, 5, 333).equal(first)


def test_other_strides(make_recogniser, noise):
    """A hop and a window whose frames do not fit a piece of resampled audio."""
    recogniser, wav = make_recogniser(), noise(30000)
    recogniser.compute_features = type(recogniser.compute_features)(
        n_mels=12, hop_length=7.5, win_length=25, n_fft=400, top_db=None
    )
    for rate in (None, 44100, 12000):
        streamed = _streamed(front_end_filter(recogniser, rate), wav, 4, 1234)
        torch.testing.assert_close(streamed, _offline(recogniser, wav, rate), atol=1e-5, rtol=0)


def test_the_context_is_needed(make_recogniser, noise):
    """What is computed is the least: a little less context changes the frames."""
    from dataclasses import replace

    recogniser, wav = make_recogniser(), noise(30000)
    whole = _offline(recogniser, wav)
    filter = front_end_filter(recogniser)
    narrow = replace(filter, context=filter.context - 160)
    assert (_streamed(narrow, wav, 4, 1000) - whole).abs().max() > 1e-3


def test_memory_is_what_is_needed(make_recogniser):
    filter = front_end_filter(make_recogniser())
    stream, most = FilterStream(filter), 0
    for _ in range(400):
        stream.push(torch.zeros(777))
        while stream.pull(4) is not None:
            pass
        most = max(most, sum(p.untyped_storage().nbytes() for p in stream._pieces))
    assert stream.done > 480
    # What is needed for a chunk, twice: the rest of a buffer may still hold the whole.
    assert most <= 2 * 4 * (4 * 640 + 2 * filter.context + 640 + 777)


def test_no_samples_no_frames(make_recogniser):
    assert FilterStream(front_end_filter(make_recogniser())).finish() is None


@pytest.mark.parametrize("rate", (0, -8000, 8000.5, True, "8000", 44099))
def test_rates_that_cannot_be(make_recogniser, rate):
    with pytest.raises(InputError, match=f"{rate}"):
        front_end_filter(make_recogniser(), rate)


def test_samples_are_copied(make_recogniser, noise):
    filter, wav = front_end_filter(make_recogniser()), noise(9000)
    stream, buffer = FilterStream(filter), torch.zeros(1000)
    for piece in wav.split(1000):
        buffer[:] = piece
        stream.push(buffer)
        buffer[:] = 7
    assert stream.finish().equal(_streamed(filter, wav, 10**6, 9000))
