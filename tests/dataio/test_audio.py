import struct

import numpy as np
import pytest
import soundfile
import torch

from summarymixing.dataio import audio
from summarymixing.errors import InputError

RATE = 16000
OPUS = {"format": "OGG", "subtype": "OPUS"}


def noise(samples=RATE, channels=1, seed=0):
    shape = (samples,) if channels == 1 else (samples, channels)
    return (np.random.default_rng(seed).standard_normal(shape) * 3000).astype(np.int16)


def write_sphere(path, samples, rate=RATE, coding="pcm"):
    fields = [
        f"sample_count -i {len(samples)}",
        "sample_n_bytes -i 2",
        "channel_count -i 1",
        "sample_byte_format -s2 01",
        f"sample_rate -i {rate}",
        f"sample_coding -s{len(coding)} {coding}",
        "sample_sig_bits -i 16",
        "end_head",
    ]
    header = "NIST_1A\n   1024\n" + "\n".join(fields) + "\n"
    path.write_bytes(header.encode().ljust(1024, b"\0") + samples.astype("<i2").tobytes())


def write(path, samples, rate=RATE):
    if path.suffix == ".sph":
        write_sphere(path, samples, rate)
    else:
        soundfile.write(path, samples, rate)
    return path


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph"])
def test_reads_exact_samples(tmp_path, suffix):
    samples = noise()
    path = write(tmp_path / f"a{suffix}", samples)
    waveform = audio.read(path)
    assert waveform.dtype == torch.float32
    np.testing.assert_array_equal((waveform * 32768).numpy(), samples)
    assert audio.inspect(str(path)) == audio.AudioInfo(RATE, RATE, 1)


@pytest.mark.parametrize("suffix", [".mp3", ".ogg"])
def test_reads_compressed(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", noise())
    assert audio.inspect(path).frames == RATE
    assert audio.read(path).shape == (RATE,)


@pytest.mark.parametrize("name, options", [("a.opus", OPUS), ("a.ogg", {}), ("a.mp3", {})])
def test_compressed_stereo_at_48_khz(tmp_path, name, options):
    """Another rate, two channels, a lossy coder: what is heard is a tone in one, half as loud."""
    times = np.arange(2 * 48000) / 48000
    tones = np.stack([0.5 * np.sin(2 * np.pi * 440 * times), np.zeros_like(times)], axis=1)
    soundfile.write(tmp_path / name, tones, 48000, **options)
    assert audio.inspect(tmp_path / name) == audio.AudioInfo(2 * 48000, 48000, 2)
    waveform = audio.read(tmp_path / name)
    assert waveform.shape == (2 * RATE,)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    inner = slice(RATE // 4, -RATE // 4)
    np.testing.assert_allclose(waveform[inner].numpy(), expected[inner], atol=0.01)


def test_averages_channels(tmp_path):
    samples = noise(channels=2)
    path = write(tmp_path / "a.wav", samples)
    expected = samples.astype(np.float32).mean(axis=1) / 32768
    np.testing.assert_allclose(audio.read(path).numpy(), expected, atol=1e-6)
    assert audio.inspect(path).channels == 2


@pytest.mark.parametrize("rate", [8000, 44100])
def test_resamples(tmp_path, rate):
    def tone(at):
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(at) / at)

    path = write(tmp_path / "a.wav", tone(rate), rate)
    waveform = audio.read(path)
    assert waveform.shape == (RATE,)
    inner = slice(200, -200)  # the ends differ: silence is assumed beyond them
    np.testing.assert_allclose(waveform[inner].numpy(), tone(RATE)[inner], atol=5e-3)
    assert audio.inspect(path).duration == 1.0
    assert audio.read(path, rate).shape == (rate,)


# Of a second: the whole, one sample, a rounded time, until the end, from the beginning.
SEGMENTS = [(0, 1), (0.5, 0.5 + 1 / RATE), (0.100031, 0.7), (0.25, None), (None, 0.3)]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph"])
@pytest.mark.parametrize("start, stop", SEGMENTS)
def test_reads_exact_segments(tmp_path, suffix, start, stop):
    samples = noise()
    path = write(tmp_path / f"a{suffix}", samples)
    expected = samples[round((start or 0) * RATE) : round((stop or 1) * RATE)]
    waveform = audio.read(path, RATE, start, stop)
    np.testing.assert_array_equal((waveform * 32768).numpy(), expected)


@pytest.mark.parametrize("start, stop", SEGMENTS)
def test_a_resampled_segment_is_that_of_a_file_cut_there(tmp_path, start, stop):
    samples = noise(8000, channels=2)
    path = write(tmp_path / "a.wav", samples, 8000)
    first, end = round((start or 0) * 8000), round((stop or 1) * 8000)
    end = max(end, first + 1)
    cut = write(tmp_path / "cut.wav", samples[first:end], 8000)
    stop = stop and end / 8000
    assert torch.equal(audio.read(path, RATE, start, stop), audio.read(cut, RATE))


@pytest.mark.parametrize("suffix", [".mp3", ".ogg"])
def test_compressed_segments(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", noise(3 * RATE))
    whole = audio.read(path)
    for start, stop in ((0, 0.5), (1.1, 1.6), (2.7, 3)):
        expected = whole[round(start * RATE) : round(stop * RATE)]
        torch.testing.assert_close(audio.read(path, RATE, start, stop), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "start, stop", [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0, 1.001), (2, None)]
)
def test_segments_outside_the_file(tmp_path, start, stop):
    path = write(tmp_path / "a.wav", noise())
    with pytest.raises(InputError, match=f"a.wav: the segment from {start} s to {stop} s .* 1.0 s"):
        audio.read(path, RATE, start, stop)


def test_segment_of_a_truncated_file(tmp_path):
    path = write(tmp_path / "a.flac", noise(3 * RATE))
    path.write_bytes(path.read_bytes()[:-20000])
    assert len(audio.read(path, RATE, 0.5, 1)) == RATE // 2
    with pytest.raises(InputError, match="a.flac: the audio file is truncated"):
        audio.read(path, RATE, 2.5, 3)


@pytest.mark.parametrize("function", [audio.read, audio.inspect])
@pytest.mark.parametrize("keep", [-1, -2, -1000, 0.9, 0.5, 0.1])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph", ".mp3"])
def test_truncated(tmp_path, function, keep, suffix):
    content = write(tmp_path / f"whole{suffix}", noise(3 * RATE)).read_bytes()
    end = keep if keep < 0 else int(len(content) * keep)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[:end])
    with pytest.raises(InputError, match=f"cut{suffix}: the audio file is truncated"):
        function(path)


def everything(path):
    return list(audio.blocks(path))


@pytest.mark.parametrize("function", [audio.read, everything])
@pytest.mark.parametrize("damage", ["bit", "zeros", "gap"])
@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_flac_damaged_in_its_middle(tmp_path, function, damage, place):
    """The length in the header and the last sample may be right all the same."""
    content = bytearray(write(tmp_path / "whole.flac", noise(3 * RATE)).read_bytes())
    at = int(len(content) * place)
    if damage == "bit":
        content[at] ^= 1
    elif damage == "zeros":
        content[at : at + 2000] = bytes(2000)
    else:
        del content[at : at + 2000]
    path = tmp_path / "a.flac"
    path.write_bytes(content)
    with pytest.raises(audio.TruncatedError, match="a.flac: .* truncated or damaged") as error:
        function(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, options", [("a.opus", OPUS), ("a.ogg", {}), ("a.mp3", {})])
def test_compressed_audio_damaged_in_its_middle(tmp_path, name, options):
    soundfile.write(tmp_path / name, noise(3 * 48000), 48000, **options)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 5000] = bytes(5000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(audio.TruncatedError, match=f"{name}: .* truncated or damaged"):
        audio.read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph"])
def test_decode(tmp_path, suffix):
    samples = noise(channels=1 if suffix == ".sph" else 2).reshape(RATE, -1)
    path = write(tmp_path / f"a{suffix}", samples if suffix != ".sph" else samples[:, 0], 8000)
    for start, stop, frames in ((None, None, None), (0.25, 1.5, 999), (None, 1, 8000), (0, 1, 1e9)):
        pieces = list(audio.decode(path, start, stop, frames and int(frames)))
        assert {rate for _, rate in pieces} == {8000}
        assert {len(piece) for piece, _ in pieces[:-1]} <= {frames}
        joined = np.concatenate([piece for piece, _ in pieces])
        assert joined.dtype == np.float32
        expected = samples[round((start or 0) * 8000) : round((stop or 2) * 8000)]
        np.testing.assert_array_equal(joined * 32768, expected)


@pytest.mark.parametrize("function", [audio.read, audio.inspect])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph"])
def test_cut_in_the_header(tmp_path, function, suffix):
    path = write(tmp_path / f"a{suffix}", noise())
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(InputError, match=f"a{suffix}"):
        function(path)


@pytest.mark.parametrize("function", [audio.read, audio.inspect])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph", ".raw"])
def test_not_audio(tmp_path, function, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("GOOD MORNING " * 100)
    with pytest.raises(InputError, match=f"a{suffix}: not readable as audio"):
        function(path)


@pytest.mark.parametrize("function", [audio.read, audio.inspect])
def test_empty_and_missing(tmp_path, function):
    with pytest.raises(InputError, match="a.wav: there is no such audio file"):
        function(tmp_path / "a.wav")
    with pytest.raises(InputError, match="there is no such audio file"):
        function(tmp_path)
    (tmp_path / "a.wav").touch()
    with pytest.raises(audio.EmptyError, match="a.wav: the audio file is empty .0 bytes"):
        function(tmp_path / "a.wav")
    for suffix in (".wav", ".sph"):
        path = write(tmp_path / f"b{suffix}", noise(0))
        with pytest.raises(
            InputError, match=f"b{suffix}: the audio file is empty .its header says 0"
        ):
            function(path)


@pytest.mark.parametrize("riff, size", [(8, 0), (36, 0x7FFFF000), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_wav_from_a_pipe(tmp_path, riff, size):
    path = write(tmp_path / "a.wav", noise())
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", riff)
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(content)
    assert audio.inspect(path).frames == RATE
    assert audio.read(path).shape == (RATE,)


@pytest.mark.parametrize("function", [audio.read, audio.inspect])
@pytest.mark.parametrize("count", [-5, RATE // 2, RATE - 512])
def test_sphere_with_more_samples_than_it_promises(tmp_path, function, count):
    path = write(tmp_path / "a.sph", noise())
    content = path.read_bytes()
    old = f"sample_count -i {RATE}".encode()
    path.write_bytes(content.replace(old, f"sample_count -i {count}".encode().ljust(len(old))))
    promised = 1024 + 2 * count
    with pytest.raises(InputError, match=f"a.sph: .* promises {promised} bytes, there are 33024"):
        function(path)
    path.write_bytes(content + bytes(1023))  # a last block that is filled up
    function(path)
    path.write_bytes(content.replace(old, b"x".ljust(len(old))))  # from a pipe
    function(path)


@pytest.mark.parametrize("rate", [11127, 22051, 44099])
def test_resamples_from_any_rate(tmp_path, rate):
    """Rates without a common divisor: neither memory nor length runs away."""
    times = np.arange(3 * rate) / rate
    path = write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * times), rate)
    waveform = audio.read(path)
    assert abs(len(waveform) - 3 * RATE) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(waveform)) / RATE)
    inner = slice(200, -200)
    np.testing.assert_allclose(waveform[inner].numpy(), expected[inner], atol=5e-3)


@pytest.mark.parametrize("rate", [1, 999, 768001, 2**31 - 1])
def test_rates_that_no_audio_has(tmp_path, rate):
    path = write(tmp_path / "a.wav", noise())
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    for function in (audio.inspect, audio.read):
        with pytest.raises(InputError, match=f"a.wav: its header says {rate} samples a second"):
            function(path)


def test_a_flac_that_promises_too_much(tmp_path):
    """Memory is needed for what is there, not for what the header says."""
    path = write(tmp_path / "a.flac", noise(channels=2))
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # STREAMINFO's 36 bits for the number of samples
    path.write_bytes(content)
    for function in (audio.inspect, audio.read, everything):
        with pytest.raises(audio.TruncatedError, match="a.flac: "):
            function(path)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_long_files_are_read_in_pieces(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a{suffix}", noise(channels=2), 48000)
    whole = audio.read(path), audio.read(path, start=0.1, stop=0.3)
    monkeypatch.setattr(audio, "_PIECE", 777)
    pieces = audio.read(path), audio.read(path, start=0.1, stop=0.3)
    assert torch.equal(whole[0], pieces[0]) and torch.equal(whole[1], pieces[1])


def test_flac_from_a_pipe(tmp_path):
    path = write(tmp_path / "a.flac", noise())
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's 36 bits for the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not say how long"):
        audio.inspect(path)


@pytest.mark.parametrize("cut", [0, 1])
def test_wav_with_other_chunks(tmp_path, cut):
    """Chunks before and after the samples do not confuse the comparison of sizes."""
    path = write(tmp_path / "a.wav", noise())
    content = path.read_bytes()
    at = content.index(b"data")
    odd = b"junk" + struct.pack("<I", 3) + b"abc\0"
    path.write_bytes(content[:at] + odd + (content[at:-1] if cut else content[at:] + odd))
    if cut:
        with pytest.raises(InputError, match="truncated"):
            audio.inspect(path)
    else:
        assert audio.inspect(path).frames == RATE


def test_rf64(tmp_path):
    path = tmp_path / "a.rf64"
    soundfile.write(path, noise(), RATE, format="RF64")
    assert audio.inspect(path).frames == RATE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        audio.inspect(path)


def test_compressed_sphere_is_named(tmp_path):
    path = tmp_path / "a.sph"
    write_sphere(path, noise(), coding="pcm,embedded-shorten-v2.00")
    path.write_bytes(path.read_bytes()[:-20000])  # compressed: smaller than its samples
    for function in (audio.inspect, audio.read):
        with pytest.raises(InputError, match="a.sph: .*shorten-v2.00.*uncompressed SPHERE"):
            function(path)


def test_inspect_does_not_decode_everything(tmp_path, monkeypatch):
    path = write(tmp_path / "a.flac", noise())
    wanted = []
    original = soundfile.SoundFile.read

    def read(self, frames=-1, **options):
        wanted.append(frames)
        return original(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    audio.inspect(path)
    assert wanted == [1]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_blocks_joined_are_the_file(tmp_path, name):
    path = write(tmp_path / name, np.stack([noise(), noise()], axis=1))
    pieces = list(audio.blocks(path, 999))
    assert {len(piece) for piece in pieces[:-1]} == {999}
    torch.testing.assert_close(
        torch.from_numpy(np.concatenate(pieces)), audio.read(path, RATE), atol=1e-6, rtol=0
    )


def test_blocks_of_a_truncated_file(tmp_path):
    path = write(tmp_path / "a.flac", noise())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="truncated"):
        list(audio.blocks(path))
