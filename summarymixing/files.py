"""Files that are written whole or not at all, digests to know them by, folders with one writer."""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: str | os.PathLike, content: str | bytes | Iterable[str]) -> None:
    """Write a file so that a reader, or a run or machine that stops, never meets half of it.

    Arguments
    ---------
    path : path
        The file, new or not; its folder is made when missing.
    content : str, bytes or iterable of str
        All of it, in pieces if it is large; text is written as UTF-8.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is unchanged.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/new/file", "text")
    ...     Path(folder, "new", "file").read_text()
    'text'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            for piece in [content] if isinstance(content, (str, bytes)) else content:
                file.write(piece.encode() if isinstance(piece, str) else piece)
            file.flush()
            # A file system may do the renaming before the writing: empty after a power failure.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        # A full disk is met by a file's number, and told of by its name.
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: str | os.PathLike, inherited: bool = True) -> Iterator[int]:
    """Within this, nobody else is within this for the same folder.

    What is locked is the file `.lock` in it, which stays. Where a file system has no locks, nothing
    is held.

    Arguments
    ---------
    folder : path
        Made when missing.
    inherited : bool
        Whether a child process that inherits the descriptor (`pass_fds`, or a fork) holds the lock
        as well, until it ends. If not, the lock is of no effect within one process.

    Yields
    ------
    int
        The lock's file descriptor.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.
    OSError
        If the file cannot be made.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, alone_in(folder):
    ...     try:
    ...         with alone_in(folder):
    ...             pass
    ...     except BlockingIOError as error:
    ...         print(error.strerror)
    another process is at work in this folder
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    # Not the folder itself: network file systems lock only what is open for writing.
    descriptor = os.open(Path(folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            lock = fcntl.flock if inherited else fcntl.lockf
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            said = "another process is at work in this folder"
            raise BlockingIOError(error.errno, said, str(folder)) from None
        except OSError:
            pass
        yield descriptor
    finally:
        os.close(descriptor)


def sha256(path: str | os.PathLike) -> str:
    """The digest of a file, in hexadecimal.

    Raises
    ------
    OSError
        If it cannot be read.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     sha256(file.name)[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
