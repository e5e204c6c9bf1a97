"""Files are written whole or not at all."""

import errno
import os
import subprocess
import sys

import pytest

from summarymixing.files import alone_in, write_whole


@pytest.mark.parametrize("content", ("çà\n\r\n", b"\xff\x00\r\n", ""))
def test_content_is_written_as_it_is(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("what was there before, and longer")
    write_whole(str(path), content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_content_in_pieces(tmp_path):
    write_whole(tmp_path / "file", (piece for piece in ("ç", "", "à\r\n")))
    assert (tmp_path / "file").read_bytes() == "çà\r\n".encode()

    def failing():
        yield "half"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "file", failing())
    assert (tmp_path / "file").read_bytes() == "çà\r\n".encode()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("interrupted", ("write", "fsync", "replace"))
def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch, interrupted):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def interrupt(*_):
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    if interrupted == "write":
        content = type("Content", (str,), {"encode": interrupt})("new")
    else:
        content = b"new"
        monkeypatch.setattr(os, interrupted, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, content)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    done, path = [], tmp_path / "file"
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        done.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def noted_replace(source, target):
        # A rename is one step only inside a folder: elsewhere may be another file system.
        done.append(("replace", os.path.dirname(source) == os.path.dirname(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_whole(path, b"content")
    assert done == [("fsync", 7), ("replace", True)]


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        write_whole(tmp_path / "file" / "file", b"")


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*table.csv") as caught:
        write_whole(tmp_path / "table.csv", "text")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_lock_is_held_by_a_child_that_inherits_it(tmp_path):
    folder = tmp_path / "new"

    def locked():
        try:
            with alone_in(folder):
                return False
        except BlockingIOError as error:
            assert error.filename == str(folder)
            return True

    with alone_in(folder) as lock:
        assert locked()
        waits = [sys.executable, "-c", "input()"]
        heir = subprocess.Popen(waits, stdin=subprocess.PIPE, pass_fds=[lock])
        other = subprocess.Popen(waits, stdin=subprocess.PIPE)
    assert locked()
    heir.communicate(b"\n")
    assert not locked()
    other.communicate(b"\n")


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
