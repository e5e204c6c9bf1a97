"""Files to words: the same alone and in any batch, whatever the format."""

import pytest
import soundfile
import torch

from summarymixing.errors import InputError
from summarymixing.inference import long
from summarymixing.inference import transcribe as module
from summarymixing.inference.transcribe import transcribe


@pytest.fixture
def files(tmp_path, noise):
    """Eight files of several formats, rates and channels."""
    made = []
    for i, (suffix, rate, channels, samples) in enumerate(
        (
            ("wav", 16000, 1, 30000),
            ("flac", 16000, 1, 9000),
            ("wav", 8000, 2, 20000),
            ("ogg", 48000, 2, 100000),
            ("mp3", 44100, 1, 90000),
            ("wav", 16000, 1, 1),
            ("wav", 22050, 3, 40000),
            ("aiff", 16000, 1, 50000),
        )
    ):
        path = tmp_path / f"{i}.{suffix}"
        soundfile.write(path, noise(samples)[:, None].repeat(1, channels).numpy(), rate)
        made.append(str(path))
    return made


def _same(found, expected):
    assert (found.path, found.duration, found.error) == (expected.path, expected.duration, None)
    assert found.text == expected.text
    assert [word.text for word in found.words] == [word.text for word in expected.words]
    for word, other in zip(found.words, expected.words):
        assert (word.start, word.end) == (other.start, other.end)
        assert word.confidence == pytest.approx(other.confidence, rel=1e-3)


@pytest.mark.parametrize("kind", ("ctc", "transducer"))
def test_alone_and_in_any_batch(make_recogniser, files, kind, monkeypatch):
    recogniser = make_recogniser(kind=kind)
    alone = [next(transcribe(recogniser, [path])) for path in files]
    assert sum(len(result.words) for result in alone) > 5
    for batch_seconds, window in ((1e-3, 256), (4, 256), (1000, 256), (1000, 3)):
        monkeypatch.setattr(module, "_WINDOW", window)
        found = list(transcribe(recogniser, iter(files), batch_seconds))
        assert len(found) == len(files)
        for result, expected in zip(found, alone):
            _same(result, expected)
    for result, path in zip(alone, files):
        info = soundfile.info(path)
        assert result.duration == pytest.approx(info.frames / info.samplerate, abs=1e-4)
        assert result.text == " ".join(result.text.split())
        for word in result.words:
            assert 0 <= word.start < word.end <= result.duration and 0 <= word.confidence <= 1


def test_the_text_is_that_of_the_search(make_recogniser, files):
    recogniser = make_recogniser()
    samples = torch.from_numpy(soundfile.read(files[0], dtype="float32")[0])
    frames, lengths = recogniser.front_end(samples[None], torch.tensor([len(samples)]))
    with torch.no_grad():
        encoded = recogniser.modules["Transformer"].encode(frames, lengths)
    tokens = recogniser.search(recogniser.modules, encoded, lengths)[0]
    (result,) = transcribe(recogniser, files[:1])
    assert result.text == " ".join(recogniser.tokenizer.decode(tokens).split()) != ""


def test_long_files_are_encoded_in_blocks(make_recogniser, files, monkeypatch):
    recogniser = make_recogniser()
    expected = list(transcribe(recogniser, files))
    calls, encode = [], long.encode
    monkeypatch.setattr(long, "BLOCK", 40)  # 1.6 s
    monkeypatch.setattr(long, "encode", lambda r, s: calls.append(len(s)) or encode(r, s, block=40))
    for result, other in zip(transcribe(recogniser, files), expected):
        _same(result, other)
    assert len(calls) == sum(result.duration > 1.6 for result in expected) > 3


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(make_recogniser, files, tmp_path):
    recogniser = make_recogniser()
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no audio")
    whole = open(files[0], "rb").read()
    (tmp_path / "cut.wav").write_bytes(whole[:-1000])
    soundfile.write(tmp_path / "nan.wav", torch.full((900,), float("nan")).numpy(), 16000, "FLOAT")
    soundfile.write(tmp_path / "huge.wav", torch.full((900,), 1e30).numpy(), 16000, "FLOAT")
    names = "empty", "text", "cut", "nan", "huge", "nowhere"
    bad = [str(tmp_path / f"{name}.wav") for name in names]
    paths = [bad[0], files[0], *bad[1:5], files[1], bad[5]]
    found = list(transcribe(recogniser, paths))
    assert [result.path for result in found] == paths
    for result, path in zip(found, paths):
        if path in files:
            _same(result, next(transcribe(recogniser, [path])))
        else:
            assert result.error.startswith(path) and "\n" not in result.error
            assert ("[-1, 1]" in result.error) == ("nan" in path or "huge" in path)
            assert result.text == "" and result.words == []


def test_no_files_and_wrong_numbers(make_recogniser):
    recogniser = make_recogniser()
    assert list(transcribe(recogniser, [])) == []
    for wrong in (0, -1, float("nan")):
        with pytest.raises(InputError, match="batch_seconds"):
            list(transcribe(recogniser, ["a.wav"], wrong))


def test_too_little_memory_is_said(make_recogniser, files, monkeypatch):
    recogniser = make_recogniser()

    expected = [result.text for result in transcribe(recogniser, files)]
    front_end = recogniser.front_end
    longest = []

    def fails(samples, lengths):
        longest.append(samples.shape[1])
        if len(samples) > 1 or samples.shape[1] == max(longest):
            torch.empty(2**60)  # as a model that needs more than there is
        return front_end(samples, lengths)

    monkeypatch.setattr(recogniser, "front_end", fails)
    results = list(transcribe(recogniser, files))
    failed = [result for result in results if result.error]
    assert len(failed) == 1 and "out of memory" in failed[0].error
    assert failed[0].error.startswith(str(failed[0].path))
    for result, text in zip(results, expected):
        assert result.error or result.text == text
