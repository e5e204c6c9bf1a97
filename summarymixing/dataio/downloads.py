"""Corpora fetched from where they are published, which only ``scripts/download.py`` does.

`CORPORA` is the table of what there is; a corpus more is an entry more. An archive comes into
``NAME.part``, which a broken connection or a stopped command leaves for the next one to go on with
(HTTP ranges, RFC 9110, section 14), is ``NAME`` when it is complete, and ``NAME.bad`` when it turns
out to be another than the published one. What it holds is unpacked aside and renamed, so that a
folder of the corpus is there as a whole or not at all.
"""

import gzip
import hashlib
import http.client
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from summarymixing.errors import InputError, one_line
from summarymixing.files import alone_in, write_whole

WAITS = (1, 2, 4, 8, 16, 32)  # seconds before each attempt after one that brought nothing new
TIMEOUT = 60  # seconds without a byte that end an attempt

_BLOCK = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP errors that may be gone in a moment
_DAMAGED = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)


@dataclass(frozen=True)
class Part:
    """An archive and what it makes.

    Arguments
    ---------
    url : str
        Of a ``.tar.gz``, ``.tgz`` or ``.gz``.
    gigabytes : float
        Size of the archive (1e9 bytes), as rounded by the publisher.
    makes : str
        What is there, relative to the folder of the download, once the archive is unpacked.
    digest : str, optional
        "sha256:" or "md5:" and hexadecimal digits; None where none is published.
    inner : str, optional
        Pattern of the archives in this one, unpacked where they lie.
    """

    url: str
    gigabytes: float
    makes: str
    digest: str | None = None
    inner: str | None = None

    @property
    def archive(self):
        """Name of the archive's file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Corpus:
    """A corpus: its parts by name, or else, in a line, where they are to be had."""

    page: str
    licence: str
    parts: dict = field(default_factory=dict)
    elsewhere: str | None = None


def _librispeech(name, gigabytes, sha256):
    url = f"https://www.openslr.org/resources/12/{name}.tar.gz"
    return Part(url, gigabytes, f"LibriSpeech/{name}", f"sha256:{sha256}")


# Digests of LibriSpeech and TED-LIUM 2 are those that torchaudio 2.11 has, AISHELL-1's is
# PaddlePaddle DeepSpeech2's. Of the others none is known.
CORPORA = {
    "LibriSpeech": Corpus(
        "https://www.openslr.org/12",
        "CC BY 4.0",
        {
            "train-clean-100": _librispeech(
                "train-clean-100",
                6.4,
                "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
            ),
            "train-clean-360": _librispeech(
                "train-clean-360",
                23,
                "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
            ),
            "train-other-500": _librispeech(
                "train-other-500",
                30.6,
                "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
            ),
            "dev-clean": _librispeech(
                "dev-clean",
                0.34,
                "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
            ),
            "dev-other": _librispeech(
                "dev-other",
                0.31,
                "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
            ),
            "test-clean": _librispeech(
                "test-clean",
                0.35,
                "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
            ),
            "test-other": _librispeech(
                "test-other",
                0.33,
                "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
            ),
        },
    ),
    "LibriSpeechLM": Corpus(
        "https://www.openslr.org/11",
        "public domain",
        {
            "text": Part(
                "https://www.openslr.org/resources/11/librispeech-lm-norm.txt.gz",
                1.5,
                "librispeech-lm-norm.txt",
            )
        },
    ),
    "TEDLIUM2": Corpus(
        "https://www.openslr.org/19",
        "CC BY-NC-ND 3.0 (no commercial use, no derivatives)",
        {
            "release2": Part(
                "https://www.openslr.org/resources/19/TEDLIUM_release2.tar.gz",
                35,
                "TEDLIUM_release2",
                "sha256:93281b5fcaaae5c88671c9d000b443cb3c7ea3499ad12010b3934ca41a7b9c58",
            )
        },
    ),
    "AISHELL": Corpus(
        "https://www.openslr.org/33",
        "Apache 2.0",
        {
            "data_aishell": Part(
                "https://www.openslr.org/resources/33/data_aishell.tgz",
                15.6,
                "data_aishell",
                "md5:2f494334227864a8a8fec932999db9d8",
                inner="data_aishell/wav/*.tar.gz",
            )
        },
    ),
    "AN4": Corpus(
        "http://www.speech.cs.cmu.edu/databases/an4",
        "free for any use, with its notice (BSD)",
        {
            "sphere": Part(
                "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz", 0.064, "an4"
            )
        },
    ),
    "VoxPopuli": Corpus(
        "https://github.com/facebookresearch/voxpopuli",
        "CC0",
        elsewhere="its own scripts cut the transcribed part out of whole recordings; cut already it"
        " is on Hugging Face: hf download facebook/voxpopuli --repo-type=dataset"
        " --include='data/en/*' --local-dir=VoxPopuli, then unpack the archives where they lie",
    ),
    "CommonVoice": Corpus(
        "https://commonvoice.mozilla.org/datasets",
        "CC0, and terms of use",
        elsewhere="it is given to who logs in and accepts its terms:"
        " https://commonvoice.mozilla.org/datasets",
    ),
}


def download(corpus, folder, parts=(), delete_archive=False, say=print):
    """Fetches a corpus: says what, of which licence and size, and does it.

    Called again after an interruption it goes on where it was; what is there already is skipped.
    An archive that was put into the folder by other means is checked and used.

    Arguments
    ---------
    corpus : str
        A key of `CORPORA`.
    folder : str or os.PathLike
        Where the archives and the corpus's folder go; created if needed.
    parts : sequence of str
        Names of parts; all if there are none.
    delete_archive : bool
        Whether archives are deleted once they are unpacked.
    say : callable
        Called with each line (str) of what is going on.

    Raises
    ------
    InputError
        If the corpus or a part is unknown or not to be fetched from here, another process is at
        work in the folder, the disk is too small, the server has no such file or cannot be reached,
        or what it sent is not what was published.

    Example
    -------
    >>> download("CommonVoice", "data")
    Traceback (most recent call last):
    summarymixing.errors.InputError: CommonVoice is not fetched from here: it is given to who logs
    in and accepts its terms: https://commonvoice.mozilla.org/datasets
    """
    entry, chosen = CORPORA.get(corpus), {}
    if entry is None:
        raise InputError(f"there is no corpus {corpus}; known are {', '.join(CORPORA)}")
    if entry.elsewhere is not None:
        raise InputError(f"{corpus} is not fetched from here: {entry.elsewhere}")
    for name in parts or entry.parts:
        if name not in entry.parts:
            raise InputError(f"{corpus} has no part {name}; it has {', '.join(entry.parts)}")
        chosen[name] = entry.parts[name]
    if not hasattr(tarfile, "data_filter"):  # added to 3.10 and 3.11 by security releases
        raise InputError("archives are unpacked safely from Python 3.10.12 or 3.11.4 on")
    if not os.fspath(folder):
        raise InputError("the folder to download to must be a path, got ''")
    folder = Path(os.path.abspath(folder))

    say(f"{corpus}, {entry.page}, licence: {entry.licence}")
    for part in chosen.values():
        say(f"{part.gigabytes:g} GB from {part.url} to {folder / part.makes}")
    try:
        with alone_in(folder):
            missing = [part for part in chosen.values() if not _is_there(folder / part.makes)]
            _check_space(folder, sum(_lacking(part, folder) for part in missing))
            for part in chosen.values():
                archive = folder / part.archive
                if part in missing:
                    if not archive.exists():
                        _fetch(part, archive, say)
                    _check(part, archive, say)
                    _unpack(part, archive)
                    say(f"{folder / part.makes}: done")
                else:
                    say(f"{folder / part.makes}: there already")
                if delete_archive:
                    archive.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror or error}") from error


def _is_there(path):
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _beside(path, suffix):
    return path.with_name(path.name + suffix)


def _lacking(part, folder):
    """Bytes that the archive still needs, and, unpacked, at least as many again."""
    archive = folder / part.archive
    size = round(part.gigabytes * 1e9)
    return max(size - _size(archive) - _size(_beside(archive, ".part")), 0) + size


def _check_space(folder, needed):
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: at least {needed / 1e9:.3g} GB of disk are needed, archive and unpacked"
            f" files; {free / 1e9:.3g} GB are free"
        )


def _fetch(part, archive, say):
    """Makes the archive of a part, over as many connections as it takes."""
    _beside(archive, ".bad").unlink(missing_ok=True)
    partial = _beside(archive, ".part")
    failures, most = 0, _size(partial)
    while True:
        try:
            _transfer(part, partial, say)
            break
        except urllib.error.HTTPError as error:
            trouble = f"the server answers {error.code} {error.reason}"
            if error.code not in _PASSING:
                raise InputError(f"{part.url}: {trouble}") from None
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "filename", None) is not None:  # of the disk, not of the network
                raise
            reason = getattr(error, "reason", error)
            trouble = one_line(reason)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError(f"{part.url}: {trouble}") from None
        if _size(partial) > most:
            failures, most = 0, _size(partial)
        if failures == len(WAITS):
            raise InputError(
                f"{part.url}: {trouble}; given up after {failures} attempts that brought nothing;"
                f" the same command goes on after the {_size(partial)} bytes that are there"
            )
        say(f"{part.archive}: {trouble}; next attempt in {WAITS[failures]} s")
        time.sleep(WAITS[failures])
        failures += 1
    os.replace(partial, archive)
    _beside(partial, ".version").unlink(missing_ok=True)


def _transfer(part, partial, say):
    """One connection, which adds to what is there; returns when all is.

    A known digest tells in the end whether the pieces belong together. Without one the server has
    to: what is there is used only if the file's version has stayed the same.
    """
    version_file = _beside(partial, ".version")
    version = version_file.read_text("utf-8") if version_file.exists() else ""
    have = _size(partial) if part.digest or version else 0
    headers = {"User-Agent": "summarymixing"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if not part.digest:
            headers["If-Range"] = version

    def anew(why):
        say(f"{part.archive}: {why}; it is fetched from the beginning")
        partial.unlink()

    try:
        response = urllib.request.urlopen(
            urllib.request.Request(part.url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") != f"bytes */{have}":
            anew("the server has less than is there")
            _transfer(part, partial, say)
        return
    except (ValueError, http.client.InvalidURL) as error:  # of a proxy, say
        raise InputError(f"{part.url}: {error}") from error

    with response:
        start, total = _range(response)
        same = part.digest or _version(response) == version
        if response.status == 206 and (start != have or not same):
            if not have:
                raise InputError(f"{part.url}: the server sent a piece without being asked for one")
            anew("the server sent another piece than asked for, or of another version")
            return _transfer(part, partial, say)
        if response.status not in (200, 206):
            raise InputError(f"{part.url}: the server answers {response.status} {response.reason}")
        if have and response.status == 200:
            anew("the server cannot go on" if same else "it has changed since")
            have = 0
        if total is not None:
            _check_space(partial.parent, 2 * total - have)
        if not have and not part.digest:
            write_whole(version_file, _version(response) or "")
        _write(response, partial, have, total, part.archive)


def _range(response):
    """Where in the file a response begins, and the size of the file (None: not said), in bytes."""
    if response.status != 206:
        return 0, response.length
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    start = int(found[1])
    if found[2] != "*":
        return start, int(found[2])
    return start, None if response.length is None else start + response.length


def _version(response):
    """What If-Range takes: a strong entity tag or a date (RFC 9110, section 13.1.5)."""
    tag = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


def _write(response, partial, have, total, name):
    with (
        open(partial, "ab" if have else "wb") as file,
        tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True) as bar,
    ):
        while have != total and (block := response.read1(_BLOCK)):
            try:
                file.write(block)
                file.flush()
            except OSError as error:  # of the disk: no other connection helps
                raise InputError(f"{partial}: cannot be written ({error.strerror})") from error
            have += len(block)
            bar.update(len(block))
        if total is not None and have < total:
            raise ConnectionError(f"the connection ended after {have} of {total} bytes")
        # The file gets its final name next, which must not happen before it is on the disk.
        os.fsync(file.fileno())


@contextmanager
def _read(path, what):
    """A file to be read, with a progress bar."""
    with (
        open(path, "rb") as file,
        tqdm.wrapattr(file, "read", _size(path), desc=f"{what} {path.name}") as file,
    ):
        yield file


def _check(part, archive, say):
    """Compares the digest with the published one, or says what it is."""
    algorithm, _, published = (part.digest or "sha256:").partition(":")
    digest = hashlib.new(algorithm)
    with _read(archive, "checking") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if not published:
        say(f"{part.archive}: no digest is published; its sha256 is {digest.hexdigest()}")
    elif digest.hexdigest() != published:
        raise _bad(archive, f"its {algorithm} is {digest.hexdigest()}, {published} is published")


def _bad(archive, why):
    """Sets an archive aside, so that the same command fetches it anew; the error that says so."""
    kept = _beside(archive, ".bad")
    os.replace(archive, kept)
    return InputError(f"{archive}: {why}; it is kept as {kept.name}, the next try fetches it anew")


def _unpack(part, archive):
    folder = archive.parent
    aside = folder / f".{archive.name}.unpacked"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        with _read(archive, "unpacking") as file:
            if archive.name.endswith((".tar.gz", ".tgz")):
                _extract(file, aside)
            else:
                with gzip.open(file) as content, open(aside / part.makes, "wb") as output:
                    shutil.copyfileobj(content, output, _BLOCK)
        inner = sorted(aside.glob(part.inner)) if part.inner else []
        for path in tqdm(inner, f"unpacking what was in {archive.name}", disable=not inner):
            with open(path, "rb") as file:
                _extract(file, path.parent)
            path.unlink()
        if not _is_there(aside / part.makes):
            raise _bad(archive, f"there is no {part.makes} in it")
        # Renamed before it is on the disk, it could be there and empty after a power failure.
        os.sync()
        _move(aside, folder, last=aside / part.makes)
    except _DAMAGED as error:
        raise _bad(archive, f"it cannot be unpacked ({' '.join(str(error).split())})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _extract(file, folder):
    with gzip.open(file) as content:
        with tarfile.open(fileobj=content, mode="r|") as archive:
            archive.extractall(folder, filter="data")
        # A tar file ends before its gzip file, whose own end says whether all was there.
        while content.read(_BLOCK):
            pass


def _move(source, target, last):
    """Moves what is in a folder into another, where part of it may be; `last` is the last."""
    for path in sorted(source.iterdir(), key=lambda path: path == last or path in last.parents):
        place = target / path.name
        if path != last and path.is_dir() and place.is_dir():
            _move(path, place, last)
        else:
            os.replace(path, place)
