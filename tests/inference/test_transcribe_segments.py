"""Cuts of long recordings, and what is said in the pieces put together again."""

import pytest
import soundfile
import torch

from summarymixing.errors import InputError
from summarymixing.inference.alignment import Word
from summarymixing.inference.segments import cut
from summarymixing.inference.transcribe import Result, _continued, transcribe

RATE = 16000


def _with_pauses(noise, *pauses, seconds=20):
    samples = noise(seconds * RATE) + 0.05 * torch.randn(seconds * RATE)
    for pause in pauses:
        samples[round((pause - 0.25) * RATE) : round((pause + 0.25) * RATE)] = 0
    return samples


def test_cuts_are_in_the_pauses(noise):
    pieces = cut(_with_pauses(noise, 2, 5, 10.5, 15.5), RATE, 8)
    assert [start for start, _ in pieces][1:] == pytest.approx(
        [2 * RATE, 5 * RATE, 10.5 * RATE, 15.5 * RATE], abs=0.02 * RATE
    )


def test_cuts_without_pauses_are_where_it_is_quiet(noise):
    # 5 is after the last third of the first piece only; 15.5 is the only one before 18.
    pieces = cut(_with_pauses(noise, 5, 10.5, 15.5), RATE, 8, pause=0.6)
    assert [start for start, _ in pieces][1:] == pytest.approx(
        [5 * RATE, 10.5 * RATE, 15.5 * RATE], abs=0.1 * RATE
    )


def test_pauses_are_relative_to_what_is_around(noise):
    samples = _with_pauses(noise, 3, 6, 16)
    samples[5 * RATE : 7 * RATE] += 0.02 * torch.randn(2 * RATE)  # hardly quieter than the rest
    samples[10 * RATE :] *= 0.003  # 50 dB
    starts = [start / RATE for start, _ in cut(samples, RATE, 19)]
    # The third: what follows a loud voice is quiet beside it for some seconds.
    assert starts == pytest.approx([0, 3, 11.5, 16], abs=0.6)


def test_what_is_short_stays_whole(noise):
    samples = _with_pauses(noise, 2, 5, seconds=8)
    assert cut(samples, RATE, 8) == [(0, 8 * RATE)]
    assert len(cut(samples, RATE, 7.9)) == 3
    # Half a second at least: of these pauses the second is too near to the first.
    assert len(cut(_with_pauses(noise, 2, 2.4, 5, 7.7, seconds=8), RATE, 7.9)) == 3


@pytest.mark.parametrize("samples", (1, 15999, 16000, 16001, 47777, 96160, 320000))
@pytest.mark.parametrize("longest", (1, 1.37, 6))
@pytest.mark.parametrize("silent", (True, False))
@pytest.mark.parametrize("pause", (0.3, 99))
def test_pieces_are_the_recording(noise, samples, longest, silent, pause):
    waveform = torch.zeros(samples) if silent else noise(samples)
    pieces = cut(waveform, RATE, longest, pause)
    assert pieces[0][0] == 0 and pieces[-1][1] == samples
    assert all(end == start for (_, end), (start, _) in zip(pieces, pieces[1:]))
    assert all(0 < end - start <= longest * RATE for start, end in pieces)
    least = longest / 3 if pause == 99 else min(longest / 3, 0.5)
    assert all(end - start >= least * RATE for start, end in pieces[:-1])
    assert len(pieces) == 1 or samples - pieces[-1][0] >= 0.45 * RATE


@pytest.mark.parametrize("arguments", ((0.9,), (float("nan"),), (5, 0), (5, float("nan"))))
def test_bad_lengths(arguments):
    with pytest.raises(InputError, match="second"):
        cut(torch.zeros(10), RATE, *arguments)


def test_pieces_are_transcribed_as_files_of_their_own(make_recogniser, noise, tmp_path):
    recogniser = make_recogniser()
    samples = _with_pauses(noise, 4, 9, 13).clamp(-1, 1)
    soundfile.write(tmp_path / "all.wav", samples.numpy(), RATE, "FLOAT")
    texts, words = [], []
    for i, (start, end) in enumerate(cut(samples, RATE, 6)):
        soundfile.write(tmp_path / f"{i}.wav", samples[start:end].numpy(), RATE, "FLOAT")
        (result,) = transcribe(recogniser, [tmp_path / f"{i}.wav"])
        texts.append(result.text)
        words += [(word.text, word.start + start / RATE) for word in result.words]
    assert len(texts) > 3 and len(words) > 10
    (result,) = transcribe(recogniser, [tmp_path / "all.wav"], segment_seconds=6)
    assert result.text == " ".join(filter(None, texts))
    assert [word.text for word in result.words] == [text for text, _ in words]
    assert [word.start for word in result.words] == pytest.approx([start for _, start in words])
    (whole,) = transcribe(recogniser, [tmp_path / "all.wav"], segment_seconds=None)
    assert whole.text != result.text
    with pytest.raises(InputError, match="segment_seconds"):
        list(transcribe(recogniser, [], segment_seconds=0.5))


def test_spaces_where_pieces_meet():
    def joined(*texts):
        result = Result("a", 9.0, "", [])
        for text in texts:
            words = [Word(part, 0, 1, 1.0, i > 0) for i, part in enumerate(text.split())]
            result = _continued(result, text, words, 0)
        from_words = "".join(" " * word.spaced + word.text for word in result.words).strip()
        assert from_words == result.text
        return result.text

    assert joined("one", "two three", "", "four") == "one two three four"
    assert joined("", "one") == "one"
    assert joined("你", "好", "ok") == "你好ok"
