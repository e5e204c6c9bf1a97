"""Corpora are fetched whole, from a server of the test's own that does what servers do."""

import gzip
import hashlib
import importlib
import io
import os
import re
import shutil
import tarfile
import threading
import urllib.request
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from summarymixing.dataio import downloads
from summarymixing.dataio.downloads import Corpus, Part, download
from summarymixing.errors import InputError
from summarymixing.files import alone_in

ROOT = Path(__file__).parents[2]


class Server:
    """Serves `files`; the other attributes say how badly."""

    def __init__(self):
        self.files = {}
        self.ranges = True  # whether it knows them
        self.version = {"ETag": '"1"'}
        self.honest = True  # whether If-Range is looked at
        self.cuts = []  # bytes after which a connection ends, a connection each
        self.codes = []  # HTTP errors, before anything else
        self.refusal = {}  # their headers
        self.length = True  # whether the length is said
        self.shift = 0  # bytes by which pieces are misplaced
        self.asked = []  # (path, Range, If-Range)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                server.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append((request.path, wanted, condition))
        if self.codes:
            return self.refuse(request, self.codes.pop(0), self.refusal)
        content = self.files.get(request.path.rpartition("/")[2])
        if content is None:
            return self.refuse(request, 404)
        begin = 0
        if wanted and self.ranges:
            if not (condition and self.honest) or condition in self.version.values():
                begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if begin and begin >= len(content):
            return self.refuse(request, 416, {"Content-Range": f"bytes */{len(content)}"})
        request.send_response(206 if begin else 200)
        if begin:
            begin += self.shift
            place = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            request.send_header("Content-Range", place)
        for name, value in self.version.items():
            request.send_header(name, value)
        if self.length:
            request.send_header("Content-Length", str(len(content) - begin))
        request.end_headers()
        end = begin + self.cuts.pop(0) if self.cuts else len(content)
        request.wfile.write(content[begin:end])

    def refuse(self, request, code, headers=()):
        request.send_response(code)
        for name, value in dict(headers).items():
            request.send_header(name, value)
        request.end_headers()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def tar(members, mode="w:gz"):
    """A tar archive: of each member its name and its content, or the TarInfo of a special one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def digest(content, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


SPEECH = os.urandom(100_000)  # does not get smaller in the archive
DEV = tar({"Toy/dev/1.flac": SPEECH, "Toy/README": b"dev"})
TRAIN = tar({"Toy/train/2.flac": SPEECH[::-1], "Toy/README": b"train"})


@pytest.fixture
def toy(server, tmp_path, monkeypatch):
    """A corpus of two parts whose digests are known: toy(*parts, **options) fetches it."""
    monkeypatch.setattr(downloads, "WAITS", (0, 0, 0))
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setenv("no_proxy", "*")
    urllib.request.install_opener(None)  # the next one looks at the environment again
    server.files = {"dev.tar.gz": DEV, "train.tgz": TRAIN}
    parts = {
        "dev": Part(f"{server.url}/a/dev.tar.gz", 1e-4, "Toy/dev", digest(DEV)),
        "train": Part(f"{server.url}/a/train.tgz", 1e-4, "Toy/train", digest(TRAIN, "md5")),
    }
    corpus = Corpus("http://example.org", "CC0", parts)
    monkeypatch.setattr(downloads, "CORPORA", {"Toy": corpus})
    folder = tmp_path / "new" / "data"

    def fetch(*names, **options):
        fetch.said = []
        download("Toy", folder, names, say=fetch.said.append, **options)
        return fetch.said

    def change(name, **changes):
        parts[name] = Part(**(vars(parts[name]) | changes))

    fetch.folder, fetch.change, fetch.said = folder, change, []
    return fetch


def found(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


UNPACKED = {"Toy/dev/1.flac": SPEECH, "Toy/README": b"dev"}


def test_all_parts(toy, server):
    said = toy()
    assert found(toy.folder) == UNPACKED | {
        "Toy/train/2.flac": SPEECH[::-1],
        "Toy/README": b"train",
        "dev.tar.gz": DEV,
        "train.tgz": TRAIN,
    }
    assert said[0] == "Toy, http://example.org, licence: CC0"
    assert said[1] == f"0.0001 GB from {server.url}/a/dev.tar.gz to {toy.folder}/Toy/dev"
    assert len(said) == 5

    server.asked.clear()
    assert toy()[3:] == [f"{toy.folder}/Toy/{part}: there already" for part in ("dev", "train")]
    assert not server.asked


def test_one_part_without_its_archive(toy):
    toy("dev", delete_archive=True)
    assert found(toy.folder) == UNPACKED


def test_an_archive_that_is_there_is_checked_and_unpacked(toy, server):
    toy("dev")
    shutil.rmtree(toy.folder / "Toy")
    (toy.folder / "Toy" / "dev").mkdir(parents=True)  # an empty one is as none
    server.files.clear()
    toy("dev", delete_archive=True)
    assert found(toy.folder) == UNPACKED


def test_a_broken_connection_is_taken_up_where_it_was(toy, server):
    server.cuts = [30_000, 0, 0, 20_000, 0, 0]
    said = toy("dev")
    assert found(toy.folder) == UNPACKED | {"dev.tar.gz": DEV}
    ranges = [None, *["bytes=30000-"] * 3, *["bytes=50000-"] * 3]
    assert server.asked == [("/a/dev.tar.gz", range_, None) for range_ in ranges]
    assert said[2] == (
        f"dev.tar.gz: the connection ended after 30000 of {len(DEV)} bytes; next attempt in 0 s"
    )


def test_it_is_given_up_and_gone_on_with_later(toy, server):
    server.cuts = [40_000, 0, 0, 0, 0]
    with pytest.raises(InputError, match="given up after 3 attempts.*40000 bytes that are there"):
        toy("dev")
    assert found(toy.folder)["dev.tar.gz.part"] == DEV[:40_000]
    server.cuts = []
    toy("dev")
    assert server.asked[-1] == ("/a/dev.tar.gz", "bytes=40000-", None)
    assert found(toy.folder) == UNPACKED | {"dev.tar.gz": DEV}


def test_a_complete_part_needs_no_byte_more(toy, server):
    toy.folder.mkdir(parents=True)
    (toy.folder / "dev.tar.gz.part").write_bytes(DEV)
    toy("dev")
    assert found(toy.folder) == UNPACKED | {"dev.tar.gz": DEV}
    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", ("ranges", "shift", "more"))
def test_a_server_that_cannot_go_on(toy, server, fault):
    """Without ranges, with a wrong piece, or with less than there is already."""
    begun = DEV[:30_000]
    if fault == "ranges":
        server.ranges, server.cuts = False, [30_000, 10_000]
    elif fault == "shift":
        server.shift, server.cuts = -7, [30_000, 10_000]
    else:
        begun = DEV + b"more"
    toy.folder.mkdir(parents=True)
    (toy.folder / "dev.tar.gz.part").write_bytes(begun)
    said = toy("dev")
    assert found(toy.folder) == UNPACKED | {"dev.tar.gz": DEV}
    assert any("fetched from the beginning" in line for line in said)
    if fault == "ranges":
        assert f"dev.tar.gz: the connection ended after 10000 of {len(DEV)} bytes" in "\n".join(
            said
        )


@pytest.mark.parametrize("honest", (True, False))
@pytest.mark.parametrize("version", ("ETag", "Last-Modified"))
def test_without_a_digest_versions_are_not_glued_together(toy, server, version, honest):
    toy.change("dev", digest=None)
    server.version, server.honest = {version: '"1"'}, honest
    server.cuts = [30_000, 0, 0, 0]
    with pytest.raises(InputError):
        toy("dev")
    assert server.asked[-1] == ("/a/dev.tar.gz", "bytes=30000-", '"1"')
    other = tar({"Toy/dev/1.flac": SPEECH[::-1]})
    server.files["dev.tar.gz"], server.version = other, {version: '"2"'}
    said = toy("dev")
    assert any("from the beginning" in line for line in said)
    assert found(toy.folder) == {"Toy/dev/1.flac": SPEECH[::-1], "dev.tar.gz": other}
    assert digest(other)[7:] in said[-2] and "no digest is published" in said[-2]


@pytest.mark.parametrize("version", ({}, {"ETag": 'W/"1"'}))
def test_without_digest_and_version_nothing_is_gone_on_with(toy, server, version):
    toy.change("dev", digest=None)
    server.version, server.cuts = version, [30_000]
    toy("dev")
    assert [range_ for _, range_, _ in server.asked] == [None, None]
    assert found(toy.folder) == UNPACKED | {"dev.tar.gz": DEV}


def test_without_a_length(toy, server):
    server.length = False
    toy("dev")
    assert found(toy.folder) == UNPACKED | {"dev.tar.gz": DEV}


def test_wrong_digest(toy, server):
    server.files["train.tgz"] = DEV
    with pytest.raises(InputError) as caught:
        toy("train")
    assert digest(DEV, "md5")[4:] in str(caught.value) and "\n" not in str(caught.value)
    assert found(toy.folder) == {"train.tgz.bad": DEV}
    server.files["train.tgz"] = TRAIN
    toy("train", delete_archive=True)
    assert set(found(toy.folder)) == {"Toy/train/2.flac", "Toy/README"}


def test_pieces_of_two_versions_have_a_wrong_digest(toy, server):
    toy.folder.mkdir(parents=True)
    (toy.folder / "dev.tar.gz.part").write_bytes(TRAIN[:30_000])
    with pytest.raises(InputError, match="sha256 is"):
        toy("dev")
    toy("dev", delete_archive=True)
    assert found(toy.folder) == UNPACKED


@pytest.mark.parametrize("code, attempts", ((404, 1), (403, 1), (503, 4), (429, 4)))
def test_http_errors(toy, server, code, attempts):
    server.codes = [code] * 10
    with pytest.raises(InputError, match=f"dev.tar.gz: the server answers {code} "):
        toy("dev")
    assert len(server.asked) == attempts


def test_what_passes_is_waited_for(toy, server, monkeypatch):
    waited = []
    monkeypatch.setattr(downloads.time, "sleep", waited.append)
    monkeypatch.setattr(downloads, "WAITS", (1, 2, 4))
    server.codes = [503, 500, 429]
    toy("dev", delete_archive=True)
    assert found(toy.folder) == UNPACKED and waited == [1, 2, 4]


def test_no_server(toy, server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(InputError, match="Connection refused; given up after 3 attempts"):
        toy("dev")


@pytest.mark.parametrize("known", (False, True))
def test_too_small_a_disk(toy, server, monkeypatch, known):
    """By the table's sizes nothing is asked for; by those of the server, nothing is fetched."""
    if not known:
        toy.change("dev", gigabytes=1e-9)
    usage = namedtuple("usage", "total used free")(10**6, 0, 150_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="0.0002.* GB of disk are needed.* 0.00015 GB are free"):
        toy("dev")
    assert len(server.asked) == (not known) and not found(toy.folder)


def test_a_disk_that_becomes_full(toy, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(InputError, match="data: No space left on device"):
        toy("dev")
    assert found(toy.folder) == {"dev.tar.gz": DEV}


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    (
        {"../../evil": b"evil"},
        {"Toy/../../../evil": b"evil"},
        {"link": special("Toy/link", tarfile.SYMTYPE, "../../../evil")},
        {"link": special("Toy/link", tarfile.SYMTYPE, "/etc/passwd")},
        {"device": special("Toy/device", tarfile.CHRTYPE)},
    ),
)
def test_unsafe_archives(toy, server, member):
    content = tar({"Toy/dev/1.flac": b"1"} | member)
    server.files["dev.tar.gz"] = content
    toy.change("dev", digest=digest(content))
    with pytest.raises(InputError, match="cannot be unpacked"):
        toy("dev")
    assert found(toy.folder.parents[1]) == {"new/data/dev.tar.gz.bad": content}


@pytest.mark.parametrize(
    "content",
    (
        b"",
        b"<html>Log in, please</html>",
        gzip.compress(b"no tar file"),
        DEV[:-1],
        DEV[:50_000],
        DEV[:50_000] + b"?" + DEV[50_001:],
        tar({"Toy/dev/1.flac": b"1"}) + b"and more",
        tar({"Toy/dev/1.flac": b"1"}, "w:bz2"),
        tar({"Toy/other/1.flac": b"1"}),
        tar({}),
    ),
)
def test_damaged_archives(toy, server, content):
    toy.change("dev", digest=None)
    server.files["dev.tar.gz"] = content
    with pytest.raises(InputError, match="cannot be unpacked|there is no Toy/dev in it"):
        toy("dev")
    assert found(toy.folder) == {"dev.tar.gz.bad": content}


def test_an_interrupted_unpacking_is_done_anew(toy, monkeypatch):
    extract = tarfile.TarFile.extractall

    def stop(*arguments, **options):
        extract(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", stop)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if it were killed
        with pytest.raises(KeyboardInterrupt):
            toy("dev")
    assert not (toy.folder / "Toy").exists()
    toy("dev", delete_archive=True)
    assert found(toy.folder) == UNPACKED


def test_the_part_comes_last(toy, monkeypatch):
    """Nothing of an archive is missing when its part is there."""
    replaced = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (replaced.append(paths[1]), replace(*paths)))
    toy("dev")
    replaced.clear()
    toy("train")
    assert [path.name for path in replaced] == ["train.tgz", "README", "train"]


def test_archives_in_the_archive(toy, server):
    """As AISHELL-1 has them, one a speaker."""
    speakers = {f"Toy/wav/S{n}.tar.gz": tar({f"train/S{n}/a.wav": b"%d" % n}) for n in (1, 2)}
    content = tar(speakers | {"Toy/other.tar.gz": b"left alone"})
    server.files["dev.tar.gz"] = content
    toy.change("dev", makes="Toy", digest=digest(content), inner="Toy/wav/*.tar.gz")
    toy("dev", delete_archive=True)
    assert found(toy.folder) == {
        "Toy/wav/train/S1/a.wav": b"1",
        "Toy/wav/train/S2/a.wav": b"2",
        "Toy/other.tar.gz": b"left alone",
    }


def test_a_compressed_text(toy, server):
    server.files["text.gz"] = gzip.compress(b"GOOD MORNING\n")
    toy.change("dev", url=f"{server.url}/text.gz", makes="text.txt", digest=None)
    toy("dev", delete_archive=True)
    assert found(toy.folder) == {"text.txt": b"GOOD MORNING\n"}


def test_proxy(toy, server, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.url)
    toy.change("dev", url="http://elsewhere.invalid/dev.tar.gz")
    toy("dev")
    assert server.asked[0][0] == "http://elsewhere.invalid/dev.tar.gz"


def test_one_at_a_time(toy):
    with alone_in(toy.folder):
        with pytest.raises(InputError, match="another process is at work"):
            toy("dev")
    toy("dev")


def test_a_file_in_place_of_the_folder(toy):
    toy.folder.parent.mkdir()
    toy.folder.write_text("")
    with pytest.raises(InputError, match="new/data: File exists"):
        toy("dev")


def test_no_folder():
    with pytest.raises(InputError, match="must be a path, got ''"):
        download("LibriSpeech", "")


@pytest.mark.parametrize("name", ("dev.tar.gz.part", "dev.tar.gz"))
def test_a_folder_in_place_of_a_file(toy, server, name):
    """Of the disk, so that another connection does not help."""
    (toy.folder / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"{name}: Is a directory"):
        toy("dev")
    assert len(server.asked) == name.endswith("part")


@pytest.mark.parametrize("where", ("file:///etc/passwd", "/a/dev.tar.gz"))
def test_redirections_that_lead_nowhere(toy, server, where):
    server.refusal = {"Location": where}
    server.codes = [302] * 20
    with pytest.raises(InputError, match="the server answers 302"):
        toy("dev")


@pytest.mark.parametrize(
    "corpus, parts, message",
    (
        ("librispeech", (), "no corpus librispeech; known are LibriSpeech, "),
        ("LibriSpeech", ("dev",), "LibriSpeech has no part dev; it has train-clean-100, "),
        ("CommonVoice", (), "logs in and accepts its terms"),
        ("VoxPopuli", (), "Hugging Face"),
    ),
)
def test_what_is_not_there(tmp_path, corpus, parts, message):
    with pytest.raises(InputError, match=message) as caught:
        download(corpus, tmp_path / "data", parts)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_table():
    lengths = {"sha256": 64, "md5": 32}
    for name, corpus in downloads.CORPORA.items():
        assert corpus.licence and corpus.page.startswith("http")
        assert bool(corpus.parts) != bool(corpus.elsewhere), name
        for part in corpus.parts.values():
            assert re.fullmatch(r"https?://.*(\.tar\.gz|\.tgz|\.txt\.gz)", part.url)
            assert part.gigabytes > 0 and not part.makes.startswith("/")
            if part.digest is None:
                continue
            algorithm, _, digits = part.digest.partition(":")
            assert re.fullmatch("[0-9a-f]+", digits) and len(digits) == lengths[algorithm]
    parts = [part for corpus in downloads.CORPORA.values() for part in corpus.parts.values()]
    for one in ("archive", "makes", "digest"):
        values = [getattr(part, one) for part in parts if getattr(part, one)]
        assert len(set(values)) == len(values)


def test_readmes_and_table_agree():
    """Every corpus that a README says how to fetch can be fetched, and the other way round."""
    offered = {}
    for readme in (ROOT / "recipes").rglob("README.md"):
        for corpus, parts in re.findall(
            r"scripts/download\.py (\w+) data((?: [\w-]+)*)", readme.read_text()
        ):
            entry = downloads.CORPORA[corpus]
            assert entry.parts and set(parts.split()) <= set(entry.parts), readme
            offered[corpus] = readme
    assert set(offered) == {name for name, corpus in downloads.CORPORA.items() if corpus.parts}


def test_nothing_else_downloads():
    """Only this module knows the network, and only its command knows this module."""
    pattern = r"\b(urllib\.request|http\.client|requests|huggingface_hub|downloads)\b"
    users = {}
    for folder in ("summarymixing", "scripts", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                if re.match(r"\s*(import|from) ", line):
                    for name in re.findall(pattern, line):
                        users.setdefault(path.relative_to(ROOT).as_posix(), set()).add(name)
    assert users == {
        "summarymixing/dataio/downloads.py": {"http.client", "urllib.request"},
        "scripts/download.py": {"downloads"},
    }


@pytest.mark.parametrize(
    "module, arguments",
    (
        ("librispeech", (["train-clean-100"], ["dev-clean"], ["test-clean"])),
        ("an4", ()),
        ("aishell", ()),
        ("tedlium", ()),
        ("voxpopuli", ()),
        ("commonvoice", ("fr",)),
    ),
)
def test_where_a_corpus_is_missing_its_download_is_named(tmp_path, module, arguments):
    prepare = importlib.import_module(f"summarymixing.dataio.{module}").prepare
    with pytest.raises(InputError) as error:
        prepare(tmp_path / "nowhere", tmp_path / "manifests", *arguments)
    named = re.search(r"scripts/download\.py (\w+) FOLDER", str(error.value))
    assert named[1] in downloads.CORPORA and named[1].lower().startswith(module)
