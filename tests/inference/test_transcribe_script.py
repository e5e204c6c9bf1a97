"""scripts/transcribe.py on a tiny model's folder; its formats read back by other means."""

import io
import json
import re
from types import SimpleNamespace

import pytest
import soundfile

from summarymixing.decoding import make_search
from summarymixing.inference import load
from summarymixing.inference.transcribe import transcribe
from summarymixing.scoring import transcripts


@pytest.fixture
def command(load_script, capsys):
    """command(*arguments) → exit status, standard output, lines of the standard error."""
    main = load_script("transcribe").main

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err.splitlines()

    return call


@pytest.fixture
def folder(tmp_path, noise):
    """Recordings, one of them in a folder below, and files that are none."""
    folder = tmp_path / "audio"
    (folder / "b").mkdir(parents=True)
    for name, samples in (("one.wav", 30000), ("b/two two.flac", 50000), ("b/three.OGG", 80000)):
        soundfile.write(folder / name, noise(samples).numpy(), 16000)
    (folder / "notes.txt").write_text("nothing")
    return folder


ORDER = ("b/three.OGG", "b/two two.flac", "one.wav")


@pytest.fixture
def expected(trained, folder):
    """The model's folder, and what it says, by the name of the recording."""
    model, _ = trained()
    results = transcribe(load(model), [folder / name for name in ORDER])
    found = dict(zip(("three", "two_two", "one"), results))
    assert all(result.words for result in found.values())
    return model, found


def _clock(text):
    hours, minutes, seconds = re.split(":", text.replace(",", "."))
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def test_text(expected, folder, command, tmp_path):
    model, results = expected
    texts = {name: result.text for name, result in results.items()}
    status, out, err = command(model, folder)
    assert status == 0
    assert dict(line.split("\t") for line in out.splitlines()) == texts
    assert re.search(r"^3 of 3 files, 0\.2 min of audio, real-time factor \d+\.\d+$", err[-1])
    assert command(model, folder, f"--output={tmp_path}/all.txt") == (0, "", err[:-1] + [AnyLine()])
    assert transcripts.read(tmp_path / "all.txt").texts == texts
    assert list(texts) == [line.split("\t")[0] for line in out.splitlines()]


class AnyLine:
    def __eq__(self, other):
        return isinstance(other, str)


def test_ctm_and_jsonl(expected, folder, command, tmp_path):
    model, results = expected
    assert command(model, folder, f"--output={tmp_path}/a.ctm")[0] == 0
    texts = {name: result.text for name, result in results.items()}
    assert transcripts.read(tmp_path / "a.ctm").texts == texts
    assert command(model, folder, f"--output={tmp_path}/a.json", "--format=jsonl")[0] == 0
    assert transcripts.read(tmp_path / "a.json").texts == texts
    lines = (tmp_path / "a.ctm").read_text().splitlines()
    for line in (tmp_path / "a.json").read_text().splitlines():
        row = json.loads(line)
        result = results[row["id"]]
        assert row["path"] == str(result.path)
        assert row["duration"] == pytest.approx(result.duration, abs=1e-3)
        assert len(row["words"]) == len(result.words)
        for found, word in zip(row["words"], result.words):
            assert found["word"] == word.text
            assert found["start"] == pytest.approx(word.start, abs=1e-3)
            assert found["end"] == pytest.approx(word.end, abs=1e-3)
            assert found["confidence"] == pytest.approx(word.confidence, abs=1e-4)
            recording, channel, start, duration, text, confidence = lines.pop(0).split()
            assert (recording, channel, text) == (row["id"], "1", word.text)
            assert float(start) == pytest.approx(word.start, abs=1e-3)
            assert float(start) + float(duration) == pytest.approx(word.end, abs=2e-3)
            assert float(confidence) == pytest.approx(word.confidence, abs=1e-4)
    assert not lines


@pytest.mark.parametrize("format", ("srt", "vtt"))
def test_subtitles(expected, folder, command, tmp_path, format):
    model, results = expected
    assert command(model, folder, f"--output={tmp_path}/out", f"--format={format}")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}.{format}" for name in ("one", "three", "two_two")
    ]
    for name, result in results.items():
        header, *blocks = (tmp_path / "out" / f"{name}.{format}").read_text().split("\n\n")
        if format == "vtt":
            assert header == "WEBVTT"
        else:
            blocks.insert(0, header)
        words, last = [], 0.0
        for number, block in enumerate(blocks, 1):
            lines = block.strip().split("\n")
            if format == "srt":
                assert lines.pop(0) == str(number)
            times = re.fullmatch(r"(\d\d:\d\d:\d\d.\d{3}) --> (\d\d:\d\d:\d\d.\d{3})", lines.pop(0))
            assert times[1][8] == times[2][8] == {"srt": ",", "vtt": "."}[format]
            start, end = map(_clock, times.groups())
            assert last - 1e-3 <= start < end <= result.duration + 1e-3
            last = end
            assert 1 <= len(lines) <= 2
            assert all(len(line) <= 42 for line in lines)
            words += " ".join(lines).split()
        assert " ".join(words) == result.text


def test_long_subtitles_and_pauses():
    from summarymixing.inference import formats
    from summarymixing.inference.alignment import Word
    from summarymixing.inference.transcribe import Result

    times = [0.0, 0.5, 1.0, 4.0, 3599.5, 3600.5]
    words = [Word(f"<w{i}>", t, t + 0.4, 1.0) for i, t in enumerate(times)]
    words += [Word("&" * 30, 3602 + i / 10, 3602.1 + i / 10, 1.0) for i in range(4)]
    result = Result("a", 4000.0, "", words)
    cues = formats.srt("a", result).split("\n\n")
    assert cues[0] == "1\n00:00:00,000 --> 00:00:01,400\n<w0> <w1> <w2>"
    assert cues[1] == "2\n00:00:04,000 --> 00:00:04,400\n<w3>"
    assert cues[2].split("\n")[1] == "00:59:59,500 --> 01:00:00,900"
    assert [cue.count("\n&") for cue in cues] == [0, 0, 0, 2, 2]
    assert "&lt;w0&gt;" in formats.vtt("a", result) and "&amp;&amp;" in formats.vtt("a", result)


def test_a_pipe(expected, folder, command, monkeypatch):
    model, results = expected
    data = (folder / "one.wav").read_bytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    status, out, _ = command(model, "-", "--format=jsonl")
    assert status == 0
    row = json.loads(out)
    assert (row["id"], row["path"], row["text"]) == ("stdin", "-", results["one"].text)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    status, out, err = command(model, "-")
    assert (status, out) == (1, "")
    assert "error: standard input: the audio file is empty (0 bytes)" in err


def test_names_are_short_and_never_the_same(load_script):
    names = load_script("transcribe").names
    assert names(["/a/b/x.wav", "/a/c/y.x.wav"]) == ["x", "y.x"]
    assert names(["/a/b/x.wav", "/a/c/x.wav"]) == ["b/x", "c/x"]
    assert names(["/a/b/x.wav", "/a/b/x.mp3"]) == ["x.wav", "x.mp3"]
    assert names(["/a/x.wav", "/ab/x.wav"]) == ["a/x", "ab/x"]
    assert names(["/a/b/x y.wav"]) == ["x_y"]


def test_some_cannot_be_read(expected, folder, command, tmp_path):
    model, results = expected
    (folder / "bad.wav").write_text("no audio")
    output = tmp_path / "out"
    status, out, err = command(model, folder, folder / "nowhere.wav", f"--output={output}")
    assert (status, out) == (1, "")
    errors = [line for line in err if line.startswith("error: ")]
    assert len(errors) == 2
    assert f"{folder}/bad.wav: not readable as audio" in errors[0]
    assert f"{folder}/nowhere.wav: there is no such audio file" in errors[1]
    assert err[-1].startswith("3 of 5 files")
    assert sorted(path.name for path in output.iterdir()) == ["one.txt", "three.txt", "two_two.txt"]

    status, out, _ = command(model, folder / "bad.wav", f"--output={tmp_path}/none.txt")
    assert (status, out) == (1, "") and not (tmp_path / "none.txt").exists()


def test_nothing_is_overwritten_without_force(expected, folder, command, tmp_path):
    model, results = expected
    one = folder / "one.wav"
    for target, inside in ((tmp_path / "a.txt", ""), (tmp_path / "out", "one.txt")):
        if inside:
            target.mkdir()
        file = target / inside if inside else target
        file.write_text("precious")
        status, _, err = command(model, one, f"--output={target}")
        assert status == 2 and "is there already; --force" in err[-1]
        assert file.read_text() == "precious"
        assert command(model, one, f"--output={target}", "--force")[0] == 0
        assert file.read_text() == f"one\t{results['one'].text}\n"
    status, _, err = command(model, one, f"--output={one}", "--force")
    assert status == 2 and "and is read" in err[-1]


@pytest.mark.parametrize("search", ("joint beam_size=2 max_decode_ratio=0.2", "recipe"))
def test_another_search(expected, folder, command, search):
    model, greedy = expected
    recogniser = load(model)
    recogniser.search = recogniser.test_search
    if search != "recipe":
        recogniser.search = make_search("joint", beam_size=2, max_decode_ratio=0.2)
    results = transcribe(recogniser, [folder / name for name in ORDER])
    texts = dict(zip(("three", "two_two", "one"), (result.text for result in results)))
    assert texts != {name: result.text for name, result in greedy.items()}
    status, out, _ = command(model, folder, f"--search={search}", "--format=jsonl")
    assert status == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["id"]: row["text"] for row in rows} == texts
    assert all(row["words"] for row in rows if row["text"])


def test_mistakes_are_one_line(expected, folder, command, tmp_path):
    model, _ = expected
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").mkdir()
    for arguments, message in (
        (("nowhere", folder), "no such folder"),
        ((model, tmp_path / "empty"), "no audio file in this folder"),
        ((model, folder, "--format=srt"), "--output a folder"),
        ((model, folder, f"--output={tmp_path}/a.vtt"), "--output a folder"),
        ((model, folder, f"--output={tmp_path}/no/a.txt"), "there is no folder"),
        ((model, folder / "one.wav", f"--output={tmp_path}"), "is a folder"),
        ((model, folder, "--batch_seconds=0"), "batch_seconds"),
        ((model, folder, "--threads=0"), "--threads"),
        ((model, folder, "--search=best"), "no search 'best'"),
        ((model, folder, "--search=transducer_beam"), "not for this model"),
        ((model, folder, "--device=nothing"), "device nothing"),
    ):
        status, out, err = command(*arguments)
        errors = [line for line in err if line.startswith("error: ")]
        assert (status, out, len(errors)) == (2, "", 1), arguments
        assert message in errors[0]


def test_without_audio(trained, command, monkeypatch):
    model, _ = trained()
    monkeypatch.setattr("sys.stdin", None)
    status, _, err = command(model, "-")
    assert status == 2 and err[-1].startswith("error: the standard input is closed")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    status, _, err = command(model, "-")
    assert status == 1 and err[-1] == "0 of 1 files, 0.0 min of audio"
    status, _, err = command(model, "-", "--segment_seconds=abc")
    assert status == 2 and "must be a number or whole, got 'abc'" in err[-1]
