"""What is written beside measured numbers."""

import json
import subprocess
import sys

import pytest
import torch

from summarymixing import machine
from summarymixing.machine import describe, versions


def test_device_has_a_name():
    described = describe("cpu")
    assert described["device"] == described["processor"] != ""
    assert described["threads"] == torch.get_num_threads()
    assert describe(torch.device("cpu")) == described
    assert json.loads(json.dumps(described)) == described


def test_name_is_that_of_the_processor(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some CPU\nflags\t: fpu\n")
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    assert describe()["device"] == "Some CPU"


@pytest.mark.parametrize("named, expected", [("a processor", "a processor"), ("", "a machine")])
def test_name_elsewhere_is_that_of_the_platform(monkeypatch, tmp_path, named, expected):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(machine.platform, "processor", lambda: named)
    monkeypatch.setattr(machine.platform, "machine", lambda: "a machine")
    assert describe()["processor"] == expected


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 1)])
def test_gpu_is_named_by_torch(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    described = describe(device)
    assert described["device"] == f"GPU of {device}"
    assert described["processor"] == describe()["device"]


def test_versions_are_the_installed_ones():
    import speechbrain

    found = versions()
    assert found["torch"] == torch.__version__
    assert found["speechbrain"] == speechbrain.__version__
    assert {"python", "torchaudio", "summarymixing", "sentencepiece"} <= found.keys()


def test_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] is None


def test_without_torch():
    # A module of None in sys.modules cannot be imported; the file itself, since the package has
    # its cell from torch.
    program = (
        "import json, runpy, sys\n"
        "sys.modules['torch'] = None\n"
        f"described = runpy.run_path({machine.__file__!r})['describe']()\n"
        "print(json.dumps(described))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    described = json.loads(done.stdout)
    assert described["threads"] is None and described["versions"]["torch"] is None
    assert described["device"] == describe()["device"]
