"""What a measurement was made by and on, for the files that hold figures."""

import functools
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from summarymixing.errors import InputError, one_line
from summarymixing.files import write_whole

PACKAGES = (
    "torchaudio",
    "speechbrain",
    "summarymixing",
    "sentencepiece",
    "jiwer",
    "numpy",
)
_CPUINFO = Path("/proc/cpuinfo")  # of Linux
_CHECKOUT = Path(__file__).parents[1]


def write_figures(
    path: str | os.PathLike, figures: dict, device="cpu", packages: tuple[str, ...] = ()
) -> None:
    """Write measured numbers as JSON, with what they were measured by and on.

    Arguments
    ---------
    path : path
        The file, which is written whole or not at all; its folder is made when missing.
    figures : dict
        The numbers. Beside them go "command", "commit" and what `describe` returns.
    device : str or torch.device
        Where the measurement ran.
    packages : tuple of str
        As for `describe`.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_figures(f"{folder}/a.json", {"seconds": 1.5})
    ...     list(json.loads(Path(folder, "a.json").read_text()))
    ['command', 'commit', 'device', 'processor', 'cores', 'threads', 'versions', 'seconds']
    """
    made = {"command": command(), "commit": commit()}
    content = {**made, **describe(device, packages), **figures}
    write_whole(path, json.dumps(content, indent=1) + "\n")


def command() -> str:
    """The command line of this process, quoted so that it can be typed again.

    The interpreter is without its folder, which is nobody else's. Environment variables, and a
    launcher such as torchrun, are not part of it.

    Example
    -------
    >>> shlex.split(command())[1:] == sys.orig_argv[1:]
    True
    """
    interpreter, *arguments = sys.orig_argv
    return shlex.join([Path(interpreter).name, *arguments])


@functools.cache
def commit() -> str | None:
    """The git commit that this package is imported from, with "-dirty" if files have changed since.

    Files of figures, which measurements themselves write, may have changed. It is that of the first
    call: a later one may be of files that this process did not read. None for a package that does
    not lie in a checkout of its own, as one installed from a wheel.

    Example
    -------
    >>> commit() is None or len(commit().split("-")[0]) == 12
    True
    """
    if not (_CHECKOUT / ".git").exists():
        return None
    try:
        head = _git("describe", "--always", "--exclude=*", "--abbrev=12")
        changed = _git("status", "--porcelain", "-uno", "--", ".", ":(exclude)benchmarks/results")
    except OSError:  # there is no git
        return None
    if not head:
        return None
    return f"{head}-dirty" if changed else head


def _git(*arguments):
    """What git prints of this package's checkout."""
    # Without the lock that would make a commit beside it fail.
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True)
    return done.stdout.strip()


def describe(device="cpu", packages: tuple[str, ...] = ()) -> dict:
    """What to write beside a measured number, so that it can be compared with others.

    Arguments
    ---------
    device : str or torch.device
        Where the measurement ran.
    packages : tuple of str
        Installed packages whose versions matter beside the usual ones.

    Returns
    -------
    dict
        "device", the name of a GPU or of the processor; "processor"; "cores" that this process may
        use; "threads" of torch, None without it; "versions".

    Example
    -------
    >>> sorted(describe())
    ['cores', 'device', 'processor', 'threads', 'versions']
    >>> describe(packages=["pip"])["versions"]["pip"] == importlib.metadata.version("pip")
    True
    """
    processor = _processor()
    torch = _torch()
    return {
        "device": torch.cuda.get_device_name(device) if "cuda" in str(device) else processor,
        "processor": processor,
        "cores": cores(),
        "threads": torch and torch.get_num_threads(),
        "versions": versions(packages),
    }


def versions(packages: tuple[str, ...] = ()) -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None for one not installed.

    Arguments
    ---------
    packages : tuple of str
        More of them.

    Example
    -------
    >>> versions()["python"] == platform.python_version()
    True
    """
    torch = _torch()
    # Torch's own has the build in it, as in 2.11.0+cu130, which that of its package has not.
    found = {"python": platform.python_version(), "torch": torch and str(torch.__version__)}
    for package in (*PACKAGES, *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def check_device(name: str):
    """The device that a command's --device names.

    Arguments
    ---------
    name : str
        As torch names it.

    Returns
    -------
    torch.device

    Raises
    ------
    InputError
        If there is none of the name, or nothing can be computed on it.

    Example
    -------
    >>> check_device("cpu")
    device(type='cpu')
    """
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # "meta" has tensors without content
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        raise InputError(f"--device {name} is of no use here: {one_line(error, 150)}") from error
    return device


def cores() -> int:
    """Processor cores that this process may use: in a container, fewer than there are.

    Example
    -------
    >>> cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor():
    """Its name; what `platform.processor()` gives on Linux is empty or the instruction set's."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _torch():
    """The module, or None: programs without torch are measured as well."""
    try:
        import torch
    except ImportError:
        return None
    return torch
