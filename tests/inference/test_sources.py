"""Samples from a pipe and from a microphone, as they arrive."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from summarymixing.errors import InputError
from summarymixing.inference import sources


class _Pipe:
    """Gives what has arrived, which may end within a sample."""

    def __init__(self, *arrivals):
        self.arrivals = list(arrivals)

    def read1(self, size):
        if not self.arrivals:
            return b""
        data = self.arrivals.pop(0)
        if len(data) > size:
            self.arrivals.insert(0, data[size:])
        return data[:size]


def test_pcm_in_any_pieces(caplog):
    samples = np.arange(-400, 400, dtype="<i2") * 81
    data = samples.tobytes()
    for cuts in ((0, 1600), (0, 1, 2, 5, 777, 1600), (0, 3, 4, 1599, 1600)):
        arrivals = [data[a:b] for a, b in zip(cuts, cuts[1:])]
        pieces = list(sources.pcm(_Pipe(*arrivals), samples=100))
        assert max(map(len, pieces)) <= 100 and min(map(len, pieces)) > 0
        assert np.concatenate(pieces).tolist() == samples.tolist()
    assert caplog.text == ""
    assert np.concatenate(list(sources.pcm(_Pipe(data[:-1])))).tolist() == samples[:-1].tolist()
    assert "one of its two bytes" in caplog.text
    assert list(sources.pcm(io.BytesIO())) == []


class _FakeDevice(SimpleNamespace):
    """`sounddevice`, with a microphone that hears a ramp."""

    class PortAudioError(Exception):
        pass

    class InputStream:
        def __init__(self, samplerate, blocksize, channels, dtype, callback):
            if samplerate != 16000:
                raise _FakeDevice.PortAudioError("Invalid sample rate")
            self.blocks, self.callback = blocksize, callback

        def __enter__(self):
            block = np.zeros((self.blocks, 1), np.float32)
            for value in range(3):
                block[:] = value  # the device uses its buffer again
                self.callback(block, self.blocks, None, "input overflow" if value == 2 else "")

        def __exit__(self, *error):
            pass


def test_microphone(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sounddevice", _FakeDevice())
    pieces = sources.microphone(16000, seconds=0.1)
    assert [np.unique(next(pieces)).tolist() for _ in range(3)] == [[0.0], [1.0], [2.0]]
    assert "overflow" in caplog.text
    with pytest.raises(InputError, match="Invalid sample rate"):
        next(sources.microphone(7))


def test_microphone_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match="pip install sounddevice"):
        next(sources.microphone(16000))
