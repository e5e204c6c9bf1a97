"""Whether the files of a folder are those that its config.json names."""

import os

from summarymixing.errors import InputError
from summarymixing.files import sha256


def check_files(folder, digests, kind):
    """Reads files, and compares them with their digests.

    Arguments
    ---------
    folder : str or os.PathLike
    digests : dict of str to str
        SHA-256 by name.
    kind : str
        What the folder is, for the message: "package", "model".

    Raises
    ------
    InputError
        If one is missing or another.

    Example
    -------
    >>> check_files("/nowhere", {"a.bin": "e3b0"}, "package")
    Traceback (most recent call last):
    summarymixing.errors.InputError: /nowhere/a.bin: No such file or directory; the package is not \
complete
    """
    for name, digest in digests.items():
        path = os.path.join(folder, os.path.basename(name))
        try:
            found = sha256(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; the {kind} is not complete") from error
        if found != digest:
            raise InputError(
                f"{path}: the file is damaged, or not the {kind}'s own (SHA-256 differs)"
            )
