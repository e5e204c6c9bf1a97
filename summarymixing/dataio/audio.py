"""Reading audio files, and finding out cheaply whether one can be read.

Decoders return what they find: a WAV or SPHERE file whose end is missing loads silently short.
Everything here therefore compares what the header promises with what is there.

Truncation is noticed in WAV, FLAC, SPHERE and (as far as the decoder counts frames) MP3. An OGG
file does not say up front how long it is, and a WAV or SPHERE file that was written into a pipe may
not, so a cut one is simply shorter. Damage in the middle is noticed where the format has check sums
(FLAC).
"""

import os
import re
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import soundfile

from summarymixing.dataio.resampling import resample
from summarymixing.errors import InputError

# Sizes from here on (0xFFFFFFFF, 0x7FFFF000, ...) are what programs that write WAV into a pipe,
# and cannot come back to fill the size in, put into the header.
_STREAMED_WAV_SIZE = 0x7FFFF000
_SPHERE_BLOCK = 1024  # bytes; the last one of a file may be filled up
_RATES = 1000, 768000  # in Hz: others come from damaged headers, and resampling would need too much
_PIECE = 1 << 20  # a header may promise any number of samples: memory is for those that come


class EmptyError(InputError):
    """Raised for an audio file without samples."""


class TruncatedError(InputError):
    """Raised for an audio file whose samples are not all there, or damaged."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Arguments
    ---------
    frames : int
        Samples per channel.
    sample_rate : int
        Samples per second.
    channels : int
        Number of channels.

    Example
    -------
    >>> AudioInfo(frames=8000, sample_rate=16000, channels=1).duration
    0.5
    """

    frames: int
    sample_rate: int
    channels: int

    @property
    def duration(self):
        """Duration in seconds."""
        return self.frames / self.sample_rate


def read(path, sample_rate=16000, start=None, stop=None):
    """Reads an audio file (WAV, FLAC, SPHERE, MP3 or OGG), or a segment of it, as one channel.

    A segment is what a file cut there would give: when it is resampled, too, nothing of its
    surroundings is heard. Only the segment is decoded.

    Arguments
    ---------
    path : str or os.PathLike
        The file.
    sample_rate : int
        Rate in Hz of the result; a file with another rate is resampled, to a millionth exactly.
    start : float, optional
        Where the segment begins, in seconds; the sample nearest to it is the first.
    stop : float, optional
        Where it ends, in seconds; the sample nearest to it is the first one outside.

    Returns
    -------
    waveform : torch.Tensor
        Shape (samples,), float32, within [-1, 1] for integer formats; channels are averaged.

    Raises
    ------
    InputError
        If the file is missing, not audio or cannot be read, or the segment is not inside it;
        `EmptyError` if it has no samples, `TruncatedError` if some are missing or damaged.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.wav")
    >>> soundfile.write(path, np.zeros((8000, 2)), 8000)
    >>> read(path).shape
    torch.Size([16000])
    >>> read(path, start=0.25, stop=0.5).shape
    torch.Size([4000])
    """
    import torch  # what runs exported models has none
    import torchaudio

    waveform, ratio = _decoded(path, sample_rate, start, stop)
    waveform = torch.from_numpy(waveform)
    if ratio == 1:
        return waveform
    return torchaudio.functional.resample(waveform, ratio.numerator, ratio.denominator)


def read_array(path, sample_rate=16000):
    """As `read`, a whole file, without torch.

    Arguments
    ---------
    path : str or os.PathLike
    sample_rate : int
        Hz.

    Returns
    -------
    numpy.ndarray
        (samples,), float32, to rounding what `read` gives.

    Raises
    ------
    InputError
        As `read` does.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.wav")
    >>> soundfile.write(path, np.zeros((8000, 2)), 8000)
    >>> read_array(path).shape
    (16000,)
    """
    waveform, ratio = _decoded(path, sample_rate)
    return waveform if ratio == 1 else resample(waveform, ratio.numerator, ratio.denominator)


def _decoded(path, sample_rate, start=None, stop=None):
    """The mean of the channels, and how many times `sample_rate` the file's is."""
    pieces, rates = zip(*((s.mean(1), rate) for s, rate in decode(path, start, stop)))
    # Exact for all usual rates; of others the filters would need gigabytes.
    return np.concatenate(pieces), Fraction(rates[0], sample_rate).limit_denominator(1000)


def decode(path, start=None, stop=None, frames=None):
    """Decodes an audio file, or a segment of it, as it is: all channels, at its own rate.

    Arguments
    ---------
    path : str or os.PathLike
        The file.
    start : float, optional
        Where the segment begins, in seconds, as for `read`.
    stop : float, optional
        Where it ends.
    frames : int, optional
        Samples per channel and piece; about a million if left out.

    Yields
    ------
    samples : np.ndarray
        Shape (samples, channels), float32, within [-1, 1] for integer formats.
    sample_rate : int
        Of the file, in Hz; the same with every piece.

    Raises
    ------
    InputError
        As `read` does; in the middle of the file if the file is damaged there.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.wav")
    >>> soundfile.write(path, np.zeros((8000, 2)), 8000)
    >>> [(samples.shape, rate) for samples, rate in decode(path, stop=0.5, frames=3000)]
    [((3000, 2), 8000), ((1000, 2), 8000)]
    """
    with _open(path) as file:
        first = 0 if start is None else round(start * file.samplerate)
        end = file.frames if stop is None else round(stop * file.samplerate)
        if not 0 <= first < end <= file.frames:
            raise InputError(
                f"{path}: the segment from {start} s to {stop} s is empty or not inside the file,"
                f" which has {file.frames / file.samplerate} s"
            )
        with _decoding(path):
            if first > 0:
                file.seek(first)
        frames = frames or _PIECE
        for place in range(first, end, frames):
            wanted = min(frames, end - place)
            with _decoding(path):
                samples = file.read(wanted, dtype="float32", always_2d=True)
            if len(samples) < wanted:
                raise _truncated(path, f"{place + len(samples)} of {file.frames} samples are there")
            yield samples, file.samplerate


def inspect(path):
    """Checks an audio file without decoding it: its header, its size and its last sample.

    Arguments
    ---------
    path : str or os.PathLike
        The file.

    Returns
    -------
    info : AudioInfo
        Length, rate and channels.

    Raises
    ------
    InputError
        If the file is missing, empty, truncated or not audio.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.flac")
    >>> soundfile.write(path, np.zeros(8000), 16000)
    >>> inspect(path)
    AudioInfo(frames=8000, sample_rate=16000, channels=1)
    """
    with _open(path) as file:
        with _decoding(path):
            file.seek(file.frames - 1)
            last = file.read(1)
        if len(last) == 0:
            raise _truncated(path)
        return AudioInfo(file.frames, file.samplerate, file.channels)


def blocks(path, frames=1600):
    """Reads an audio file of any length piece by piece, at its own rate.

    Arguments
    ---------
    path : str or os.PathLike
        The file.
    frames : int
        Samples per channel and piece.

    Yields
    ------
    numpy.ndarray
        (samples,), float32; channels are averaged.

    Raises
    ------
    InputError
        If the file is missing, empty, truncated or not audio.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.wav")
    >>> soundfile.write(path, np.zeros((8000, 2)), 8000)
    >>> [len(piece) for piece in blocks(path, 3000)]
    [3000, 3000, 2000]
    """
    for samples, _ in decode(path, frames=frames):
        yield samples.mean(1)


@contextmanager
def _decoding(path):
    try:
        yield
    except soundfile.SoundFileError as error:
        raise _truncated(path) from error


@contextmanager
def _open(path):
    """Opens an audio file whose size agrees with its header."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: there is no such audio file")
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as raw:
            promised = _promised_size(raw)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise EmptyError(f"{path}: the audio file is empty (0 bytes)")
    if promised is not None and size not in promised:
        raise _truncated(path, f"its header promises {promised.start} bytes, there are {size}")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw
        with open(path, "rb") as raw:
            coding = _sphere_header(raw)[1].get("sample_coding", "pcm")
        if "," in coding:
            raise InputError(
                f"{path}: the audio is compressed inside its SPHERE file ({coding}), which cannot"
                " be read; uncompressed SPHERE is expected (sph2pipe -p IN OUT decompresses it)"
            ) from error
        raise InputError(
            f"{path}: not readable as audio (WAV, FLAC, uncompressed SPHERE, MP3 or OGG expected)"
        ) from error
    with file:
        if not _RATES[0] <= file.samplerate <= _RATES[1]:
            raise InputError(
                f"{path}: its header says {file.samplerate} samples a second; {_RATES[0]} to"
                f" {_RATES[1]} are expected"
            )
        if file.frames == 0:
            raise EmptyError(f"{path}: the audio file is empty (its header says 0 samples)")
        if file.frames >= 2**62:  # libsndfile's way to say "unknown"
            raise InputError(
                f"{path}: its header does not say how long it is (it was written into a pipe);"
                " convert it again, into a file"
            )
        yield file


def _truncated(path, detail="its samples cannot be decoded to their end"):
    return TruncatedError(f"{path}: the audio file is truncated or damaged ({detail})")


def _promised_size(raw):
    """Bytes (range) that the file may have by its WAV or SPHERE header, None if it does not say."""
    start = raw.read(16)
    if start[:4] in (b"RIFF", b"RIFX", b"RF64") and start[8:12] == b"WAVE":
        return _promised_wav_size(raw, ">" if start[:4] == b"RIFX" else "<")
    if start[:8] == b"NIST_1A\n":
        return _promised_sphere_size(raw)
    return None


def _promised_wav_size(raw, order):
    raw.seek(12)
    long_size = None
    while len(head := raw.read(8)) == 8:
        name, size = struct.unpack(order + "4sI", head)
        if name == b"data":
            if long_size is None and (size == 0 or size >= _STREAMED_WAV_SIZE):
                return None
            end = raw.tell() + (size if long_size is None else long_size)
            return range(end, max(end, 2**63))  # other chunks may follow
        if name == b"ds64" and len(sizes := raw.read(16)) == 16:  # RF64: 64-bit sizes
            long_size = struct.unpack("<QQ", sizes)[1]
            raw.seek(-16, os.SEEK_CUR)
        raw.seek(size + size % 2, os.SEEK_CUR)
    return None


def _promised_sphere_size(raw):
    header_size, fields = _sphere_header(raw)
    if "," in fields.get("sample_coding", "pcm"):  # compressed, e.g. "pcm,embedded-shorten-v2.00"
        return None
    try:
        counts = [int(fields[key]) for key in ("sample_count", "sample_n_bytes")]
        channels = int(fields.get("channel_count", 1))
    except (KeyError, ValueError):
        return None
    end = header_size + counts[0] * counts[1] * channels
    return range(end, end + _SPHERE_BLOCK)  # libsndfile would read whatever follows as samples


def _sphere_header(raw):
    """Size in bytes and fields of a SPHERE file's header; no fields if it has none."""
    raw.seek(0)
    magic, size = raw.readline(16), raw.readline(16).strip()
    if magic != b"NIST_1A\n" or not size.isdigit():
        return 0, {}
    raw.seek(0)
    header = raw.read(int(size)).decode("latin-1")
    return int(size), dict(re.findall(r"^(\w+) -\w+ (.*)$", header, re.MULTILINE))
