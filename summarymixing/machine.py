"""What a measurement was made on: the device and the versions, for the files that hold figures."""

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = (
    "torchaudio",
    "speechbrain",
    "summarymixing",
    "sentencepiece",
    "jiwer",
    "numpy",
)
_CPUINFO = Path("/proc/cpuinfo")  # of Linux


def describe(device="cpu", packages: tuple[str, ...] = ()) -> dict:
    """What to write beside a measured number, so that it can be compared with others.

    Parameters
    ----------
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

    Parameters
    ----------
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
