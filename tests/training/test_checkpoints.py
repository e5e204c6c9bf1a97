"""Checkpoints through crashes, damage and full disks."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from summarymixing.errors import InputError
from summarymixing.training.checkpoints import CHECKSUMS, WholeCheckpointer, load_average


@pytest.fixture
def model():
    return nn.Linear(3, 2)


@pytest.fixture
def saver(tmp_path, model):
    return WholeCheckpointer(tmp_path, {"model": model})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(saver, model, value, **meta):
    nn.init.constant_(model.weight, value)
    saver.save_and_keep("WER", 2, {"WER": value, **meta})
    return saver.find_checkpoint().path


def test_the_newest_and_the_best_are_kept(saver, model, tmp_path):
    paths = [save(saver, model, value) for value in (5.0, 1.0, 3.0, 2.0, 4.0)]
    assert set(tmp_path.iterdir()) == {paths[1], paths[3], paths[4]}
    saver.save_and_keep("WER", 2, {}, end_of_epoch=False)
    within = saver.find_checkpoint().path
    assert set(tmp_path.iterdir()) == {paths[1], paths[3], within}
    assert CHECKSUMS in names(within)


def test_the_newest_is_the_last_one_saved_though_the_clock_is_set_back(saver, model, monkeypatch):
    save(saver, model, 1.0)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    second = save(saver, model, 2.0)
    assert saver.find_checkpoint().path == second
    assert save(saver, model, 3.0) != second
    saver.recover_if_possible()
    assert (model.weight == 3).all()


def test_half_a_checkpoint_has_no_name(saver, model, tmp_path, monkeypatch):
    first = save(saver, model, 1.0)
    seen = []

    def crash(self, checkpoint):
        seen.extend(names(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(WholeCheckpointer, "_finish", crash)
    with pytest.raises(KeyboardInterrupt):
        save(saver, model, 2.0)
    assert len(seen) == 2
    again = WholeCheckpointer(tmp_path, {"model": model})
    assert again.recover_if_possible().path == first
    assert model.weight.eq(1).all()
    again.remove_unfinished()
    assert names(tmp_path) == [first.name]


def damage_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.ckpt", "CKPT.yaml", CHECKSUMS])
@pytest.mark.parametrize("how", ["cut", "emptied", "removed", "bit"])
def test_a_damaged_checkpoint_is_named_and_passed_over(saver, model, caplog, file, how):
    good, bad = save(saver, model, 1.0), save(saver, model, 2.0)
    path = bad / file
    if how == "removed":
        if file == CHECKSUMS:
            pytest.skip("older checkpoints have none")
        path.unlink()
    elif how == "bit":
        damage_bit(path)
    else:
        path.write_bytes(b"" if how == "emptied" else path.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING):
        assert saver.recover_if_possible().path == good
    assert model.weight.eq(1).all()
    assert caplog.text.count("passed over") == 1 and bad.name in caplog.text and file in caplog.text


def test_nothing_good_is_left(saver, model):
    shutil.copy(__file__, save(saver, model, 1.0) / "model.ckpt")
    assert saver.recover_if_possible() is None


def test_a_checkpoint_of_another_model(saver, model, tmp_path):
    save(saver, model, 1.0)
    other = WholeCheckpointer(tmp_path, {"model": nn.Linear(3, 5)})
    with pytest.raises(InputError, match="of another model: .*size mismatch for weight") as found:
        other.recover_if_possible()
    assert "\n" not in str(found.value)
    with pytest.raises(InputError, match="of another model: .*size mismatch for weight"):
        load_average(other, "WER", 1)


def test_what_goes_wrong_in_copying_is_no_other_model(saver, model, monkeypatch):
    def copy(state, strict):
        raise RuntimeError("Error(s) in loading state_dict for Linear:\n\tWhile copying: no memory")

    save(saver, model, 1.0)
    monkeypatch.setattr(model, "load_state_dict", copy)
    with pytest.raises(RuntimeError, match="no memory"):
        saver.recover_if_possible()


def test_checkpoints_without_checksums_are_believed(saver, model):
    path = save(saver, model, 1.0)
    (path / CHECKSUMS).unlink()
    assert saver.find_checkpoint().path == path


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_full_disk_keeps_what_is_there(saver, model, tmp_path, monkeypatch, error):
    good = save(saver, model, 1.0)

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=f"{tmp_path}.*MB were free") as caught:
        save(saver, model, 2.0)
    assert f"{good.name} is the last good one: make room" in str(caught.value)
    assert names(tmp_path) == [good.name]
    assert saver.recover_if_possible().path == good


def test_other_errors_are_not_called_a_full_disk(saver, model, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="CUDA"):
        save(saver, model, 1.0)


def test_files_that_may_not_grow(tmp_path):
    """The real thing: a limit of the system on the size of files, met by torch's own writer."""
    script = """
import resource, signal, sys, torch
from summarymixing.errors import InputError
from summarymixing.training.checkpoints import WholeCheckpointer
model = torch.nn.Linear(1000, 100)
saver = WholeCheckpointer(sys.argv[1], {"model": model})
saver.save_and_keep("WER", 2, {"WER": 1.0})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    saver.save_and_keep("WER", 2, {"WER": 0.5})
except InputError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert "could not be written" in done.stdout
    (left,) = tmp_path.iterdir()
    assert left.name in done.stdout


def test_the_hundredth_save_does_as_much_as_the_third(saver, model, monkeypatch):
    calls = 0
    find = WholeCheckpointer.list_checkpoints

    def count(self):
        nonlocal calls
        calls += 1
        return find(self)

    monkeypatch.setattr(WholeCheckpointer, "list_checkpoints", count)
    done = []
    for number in range(100):
        calls = 0
        saver.save_and_keep("WER", 2, {"WER": float(number)})
        done.append(calls)
    assert set(done) == {done[2]}
