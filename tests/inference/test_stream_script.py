"""scripts/stream.py on a tiny model's folder."""

import io
import json
import re
from types import SimpleNamespace

import pytest
import soundfile
import torch

from summarymixing.inference import Stream, load


@pytest.fixture
def stream_main(load_script):
    return load_script("stream").main


@pytest.fixture
def recording(tmp_path, noise):
    """A file of 16 bits, its samples, and what the model says to them."""
    path = tmp_path / "a.wav"
    samples = (noise(40000) * 2**15).clamp(-(2**15), 2**15 - 1).to(torch.int16)
    soundfile.write(path, samples.numpy(), 16000)
    return path, samples


def _expected(folder, samples, left_context=None, rate=None):
    stream = Stream(load(folder), 4, left_context, rate)
    events = stream.push(samples) + stream.finish()
    return [event for event in events if event.stable]


def test_file_pipe_and_json_say_the_same(trained, recording, stream_main, capsys, monkeypatch):
    folder, _ = trained()
    path, samples = recording
    expected = _expected(folder, samples)
    text = "".join(event.text for event in expected)
    assert text
    capsys.readouterr()

    stream_main([str(folder), str(path), "--chunk_ms=160"])
    out, err = capsys.readouterr()
    assert out == text + "\n"
    assert re.search(r"2\.5 s of audio, real-time factor 0?\.?\d+.*latency 2\d\d ms", err)

    stream_main([str(folder), str(path), "--chunk_ms=160", "--json", "--threads=1"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(event["text"] for event in events if event["stable"]) == text
    assert any(not event["stable"] for event in events)
    assert all(event.keys() == {"text", "start", "end", "stable"} for event in events)

    pipe = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(samples.numpy().tobytes())))
    monkeypatch.setattr("sys.stdin", pipe)
    stream_main([str(folder), "-", "--chunk_ms=160"])
    assert capsys.readouterr().out == text + "\n"


def test_rate_and_left_chunks(trained, recording, stream_main, capsys, monkeypatch):
    folder, _ = trained()
    _, samples = recording
    text = "".join(event.text for event in _expected(folder, samples, 1, 8000))
    capsys.readouterr()
    pipe = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(samples.numpy().tobytes())))
    monkeypatch.setattr("sys.stdin", pipe)
    stream_main([str(folder), "-", "--chunk_ms=160", "--left_chunks=1", "--rate=8000"])
    out, err = capsys.readouterr()
    assert out == text + "\n" and "5.0 s of audio" in err


def test_mistakes_are_one_line(trained, recording, stream_main, capsys):
    folder, _ = trained()
    path, _ = recording
    for options, message in (
        (["nowhere", str(path)], "no such folder"),
        ([str(folder), "nothing.wav"], "no such audio file"),
        ([str(folder), str(path), "--chunk_ms=30"], "multiple of 40 ms"),
        ([str(folder), str(path), "--left_chunks=-1"], "left_context_size"),
        ([str(folder), str(path), "--left_chunks=abc"], "an integer or unlimited, got 'abc'"),
        ([str(folder), str(path), "--rate=8000"], "--rate is for"),
        ([str(folder), str(path), "--threads=0"], "--threads"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            stream_main(options)
        error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert stop.value.code == 2
        assert len(error) == 1 and message in error[0]


def test_without_audio(trained, stream_main, capsys, monkeypatch):
    folder, _ = trained()
    empty = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"")))
    for pipe, message in ((None, "input is closed"), (empty, "standard input: there is no audio")):
        monkeypatch.setattr("sys.stdin", pipe)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            stream_main([str(folder), "-"])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == ""
        assert message in err.splitlines()[-1] and "real-time" not in err


def test_less_than_a_chunk_has_no_real_time_factor(trained, stream_main, capsys, monkeypatch):
    folder, _ = trained()
    for samples, shown in ((10239, False), (10240, True)):
        pipe = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(bytes(2 * samples))))
        monkeypatch.setattr("sys.stdin", pipe)
        capsys.readouterr()
        stream_main([str(folder), "-", "--chunk_ms=640"])
        assert ("real-time factor" in capsys.readouterr().err) == shown
