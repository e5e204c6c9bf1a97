"""Folders that hold a model: what their `config.json` must have, how they are made and replaced."""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from summarymixing.errors import InputError, one_line
from summarymixing.files import sha256

CONFIG = "config.json"


@dataclass(frozen=True)
class Kind:
    """One kind of folder. Its `config.json` has a version, and in `files` the others' SHA-256.

    Arguments
    ---------
    name : str
        For messages.
    script : str
        That makes it.
    version : str
        The key that only this kind has.
    newest : int
        The version that this code writes, and the last that it reads.
    types : dict of str to type or tuple of types
        Of what stands at other keys.
    beside : tuple of str
        Files that are made with it, and that `files` does not name.

    Example
    -------
    >>> kind = Kind("toy", "scripts/toy.py", "toy_version", 1, {"size": int})
    >>> kind.read("/nowhere")
    Traceback (most recent call last):
    summarymixing.errors.InputError: /nowhere/config.json: No such file or directory; wanted: toy \
of scripts/toy.py
    """

    name: str
    script: str
    version: str
    newest: int
    types: dict
    beside: tuple = ()

    def read(self, folder):
        """The content of `config.json`, of the right types; `check_files` looks at the others.

        Raises
        ------
        InputError
            If it cannot be read, is of another kind or a newer version, or not complete.
        """
        path = os.path.join(folder, CONFIG)
        wanted = f"wanted: {self.name} of {self.script}"
        try:
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
            version = config[self.version]
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; {wanted}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: it is no JSON, or damaged: {one_line(error, 200)}"
            ) from error
        except (KeyError, TypeError) as error:
            others = [kind for kind in KINDS if isinstance(config, dict) and kind.version in config]
            what = f"it is of {others[0].script}" if others else f"it has no {self.version}"
            raise InputError(f"{path}: {what}; {wanted}") from error
        if not isinstance(version, int) or version > self.newest:
            raise InputError(
                f"{path}: it is of format {version}, and this version of summarymixing reads up "
                f"to {self.newest}: install a newer one"
            )
        for key, types in {"files": dict, **self.types}.items():
            if key not in config:
                raise InputError(f"{path}: the key {key!r} is missing: it is damaged")
            if not isinstance(config[key], types):
                raise InputError(f"{path}: {key} cannot be {str(config[key])[:80]!r}")
        return config

    def check_files(self, folder, config):
        """Compares files with their digests.

        Raises
        ------
        InputError
            If one is missing or another.
        """
        for name, digest in config["files"].items():
            path = os.path.join(folder, os.path.basename(name))
            try:
                found = sha256(path)
            except OSError as error:
                raise InputError(
                    f"{path}: {error.strerror}; the {self.name} is not complete"
                ) from error
            if found != digest:
                raise InputError(
                    f"{path}: the file is damaged, or not the {self.name}'s own (SHA-256 differs)"
                )

    def place(self, out, force=False):
        """As `place`, for a folder of this kind."""
        return place(out, self.name, self._own, force)

    def _own(self, folder):
        try:
            return {CONFIG, *self.beside, *self.read(folder)["files"]}
        except InputError:
            return None


def place(out, name, own, force=False):
    """Where a folder is to be made, if nothing is lost by that.

    Arguments
    ---------
    out : str or os.PathLike
    name : str
        What it will be, for messages.
    own : callable
        Given a folder, the names in it that are its own, or None if it is something else.
    force : bool
        Whether one that is there may be replaced.

    Returns
    -------
    pathlib.Path
        What `out` leads to, if it is a link.

    Raises
    ------
    InputError
        If something is there: without `force`, something else, or with files of others.

    Example
    -------
    >>> place("/", "package", lambda folder: None, force=True)
    Traceback (most recent call last):
    summarymixing.errors.InputError: / is no package, and is not replaced; give another name
    """
    out = Path(os.path.realpath(out))
    if not os.path.lexists(out) or out.is_dir() and not os.listdir(out):
        return out
    if not force:
        raise InputError(f"{out} is there already; --force replaces the {name} there")
    names = own(out)
    if names is None:
        raise InputError(f"{out} is no {name}, and is not replaced; give another name")
    if others := sorted({*os.listdir(out)} - names):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise InputError(
            f"{out} is not replaced: {', '.join(others[:3])}{more}, not of the {name}, would be "
            "lost; move what you need, or give another name"
        )
    return out


PACKAGE = Kind(
    "package",
    "scripts/package.py",
    "format_version",
    1,
    {
        "sample_rate": int,
        "output_neurons": int,
        "compute_features": dict,
        "modules": dict,
        "search": (dict, type(None)),
        "test_search": dict,
        "test_chunks": (dict, type(None)),
    },
    beside=(
        "README.md",
        "example.wav",
        "hyperparams.yaml",
        "model.ckpt",
        "normalizer.ckpt",
        "tokenizer.ckpt",
    ),
)
EXPORTED = Kind(
    "exported model",
    "scripts/export.py",
    "export_version",
    1,
    {
        "sample_rate": int,
        "tokens": int,
        "blank": int,
        "unknown": str,
        "front_end": dict,
        "streaming": (dict, type(None)),
        "int8": bool,
    },
)
KINDS = (PACKAGE, EXPORTED)


@contextmanager
def made_whole(out):
    """Within this, a new folder beside `out` to fill; it stands at `out` when this ends well.

    Arguments
    ---------
    out : pathlib.Path
        From `place`.

    Raises
    ------
    InputError
        If it cannot be written.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with made_whole(Path(folder, "model")) as new:
    ...         _ = (new / "config.json").write_text("{}")
    ...     os.listdir(os.path.join(folder, "model"))
    ['config.json']
    """
    new = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        new.mkdir(parents=True)
        yield new
        old = out.with_name(f"{new.name}.old")
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{out}: it cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
