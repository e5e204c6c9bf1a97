"""What is written beside measured numbers."""

import functools
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from summarymixing import machine
from summarymixing.errors import InputError
from summarymixing.machine import check_device, command, describe, versions, write_figures

SCRIPTS = Path(__file__).parents[1] / "scripts"


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


def test_figures_have_what_they_were_measured_by_and_on(tmp_path, monkeypatch):
    typed = ["scripts/evaluate_searches.py", "RUN", "--methods", "ctc_beam beam_size=3"]
    monkeypatch.setattr(sys, "orig_argv", ["/here/.venv/bin/python", *typed])
    write_figures(tmp_path / "new" / "a.json", {"seconds": 1.5}, packages=["pip"])
    content = json.loads((tmp_path / "new" / "a.json").read_text())
    assert content.pop("seconds") == 1.5
    assert shlex.split(content.pop("command")) == ["python", *typed]
    assert content.pop("commit") == machine.commit()
    assert content == describe(packages=["pip"])


@pytest.mark.parametrize(
    "script",
    [p for p in sorted(SCRIPTS.glob("*.py")) if "file for the figures" in p.read_text("utf-8")],
    ids=lambda path: path.stem,
)
def test_every_script_writes_its_figures_so(script):
    assert "write_figures(" in script.read_text("utf-8")


def test_command_runs_the_same_again(monkeypatch):
    line = ["python", "train.py", "hparams/a b.yaml", "--note=it's $HOME", "--x", ""]
    monkeypatch.setattr(sys, "orig_argv", line)
    echo = f"import sys; print(sys.argv[1:] == {line[1:]!r})"
    shell = command().replace("python", f"{shlex.quote(sys.executable)} -c {shlex.quote(echo)}", 1)
    shown = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True)
    assert shown.stdout == "True\n"


def test_command_keeps_the_options_of_the_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/here/bin/python", "-m", "package.train", "a.yaml"])
    assert command() == "python -m package.train a.yaml"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in which this package seems to lie, and git in it."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    monkeypatch.setattr(machine, "_CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(machine, "commit", machine.commit.__wrapped__)
    (tmp_path / "checkout").mkdir()

    def git(*arguments, folder=tmp_path / "checkout"):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", folder, *name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return git


def test_commit_is_the_checkouts(checkout):
    checkout("init")
    assert machine.commit() is None  # there is none yet
    file = machine._CHECKOUT / "file"
    file.write_text("one")
    figures = machine._CHECKOUT / "benchmarks" / "results" / "figures.json"
    figures.parent.mkdir(parents=True)
    figures.write_text("1")
    checkout("add", ".")
    assert machine.commit() is None
    checkout("commit", "-m", "a message")
    checkout("tag", "v1")
    head = checkout("rev-parse", "HEAD")
    assert machine.commit() == head[:12]
    (machine._CHECKOUT / "results").touch()  # not git's
    assert machine.commit() == head[:12]
    figures.write_text("2")
    assert machine.commit() == head[:12]
    file.write_text("two")
    assert machine.commit() == f"{head[:12]}-dirty"


def test_commit_is_that_of_the_first_call(checkout, monkeypatch):
    monkeypatch.setattr(machine, "commit", functools.cache(machine.commit))
    checkout("init")
    checkout("commit", "--allow-empty", "-m", "first")
    first = machine.commit()
    checkout("commit", "--allow-empty", "-m", "second")
    assert machine.commit() == first == checkout("rev-parse", "HEAD~")[:12]


def test_no_commit_of_others(checkout, monkeypatch, tmp_path):
    """Of a repository above, in which the package is installed, or without git."""
    checkout("init", folder=tmp_path)
    checkout("commit", "--allow-empty", "-m", "a message", folder=tmp_path)
    assert machine.commit() is None
    checkout("init")
    checkout("commit", "--allow-empty", "-m", "a message")
    assert machine.commit()
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None


@pytest.mark.parametrize("name", ["none", "cuda:99"])
def test_device_of_no_use(name):
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=f"^--device {name} is of no use here: .") as caught:
        check_device(name)
    assert "\n" not in str(caught.value)
