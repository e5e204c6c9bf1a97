"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file so that a reader, or a run or machine that stops, never meets half of it.

    Parameters
    ----------
    path : path
        The file, new or not; its folder is made when missing.
    content : str or bytes
        All of it; text is written as UTF-8.

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
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            # A file system may do the renaming before the writing: empty after a power failure.
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
