"""scripts/measure_preparation.py: the corpora that it makes, and what it measures."""

import json
import sys
from pathlib import Path

import pytest
import soundfile

from summarymixing.dataio import manifests

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(load_script, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as for a command, which finds its neighbours
    return load_script("measure_preparation")


@pytest.mark.parametrize("files", (3, 60))
def test_every_split_has_files(script, files):
    splits = [script.split_of(number, files) for number in range(files)]
    assert list(dict.fromkeys(splits)) == ["train", "dev", "test"]
    assert splits.count("dev") == splits.count("test") == {3: 1, 60: 2}[files]


@pytest.mark.parametrize("corpus", ("librispeech", "commonvoice", "aishell", "tedlium"))
def test_corpora_are_prepared_and_screened(script, corpus, tmp_path):
    """Each file is prepared whole, a second time nothing is, and nothing of it is odd."""
    script.make(corpus, tmp_path, files=90, payloads=3)
    found = script.run("prepare", corpus, tmp_path, 3)
    assert found["rows"] == 90 and not list(tmp_path.glob("manifests/*.dropped.csv"))
    rows = [row for path in tmp_path.glob("manifests/*.csv") for row in manifests.read(path)]
    assert len({row["ID"] for row in rows}) == 90 and all(row["wrd"] for row in rows)
    if corpus == "tedlium":
        assert len({row["wav"] for row in rows}) == 2 + 1 + 1  # 62 and 24, and the others' 2
    else:
        assert len({row["wav"] for row in rows}) == 90
        assert all(row["duration"] == soundfile.info(row["wav"]).duration for row in rows)
        assert len({row["duration"] for row in rows}) == 3
    hours = sum(row["duration"] for row in rows) / 3600
    assert found["speech_hours"] == pytest.approx(hours)

    train = tmp_path / "manifests" / "train.csv"
    written = train.stat().st_mtime_ns
    again = script.run("again", corpus, tmp_path, 3)
    assert again["rows"] == 90 and train.stat().st_mtime_ns == written
    assert again["read_mb"] < found["read_mb"]

    decoded, known = (
        script.run(stage, corpus, tmp_path, 3) for stage in ("screen", "screen_again")
    )
    assert decoded["rows"] == 3 and known["rows"] == len(manifests.read(train))
    if corpus != "tedlium":  # whose audio takes no space
        sizes = [soundfile.info(row["wav"]).frames for row in manifests.read(train)[:3]]
        assert decoded["read_mb"] > sum(sizes) / 1e6 / 8


def test_what_is_known_of_audio_is_used(script, tmp_path, monkeypatch):
    from summarymixing.dataio import audio

    script.make("aishell", tmp_path, files=9, payloads=3)
    script.run("prepare", "aishell", tmp_path, 3)
    monkeypatch.setattr(audio, "decode", None)  # an error where it is called
    assert script.run("screen_again", "aishell", tmp_path, 3)["rows"] == 7


def test_memory_of_all_processes(script):
    """A command with a child: the peak of both together."""
    child = "import time; kept = bytearray(b'1') * 80_000_000; time.sleep(1.5)"
    parent = "import subprocess, sys; kept = bytearray(b'1') * 80_000_000;"
    parent += f"subprocess.run([sys.executable, '-c', {child!r}]); print('first'); print('{{}}')"
    found = script.watched([sys.executable, "-c", parent])
    assert 160 < found["peak_mb"] < 220


def test_command(script, tmp_path, capfd):
    options = ["--corpus", "aishell", "--files=9", "--payloads=2"]
    script.main([*options, f"--folder={tmp_path}", f"--json={tmp_path}/a.json"])
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["command"] and facts["device"] and facts["versions"]["torch"]
    stages = [facts["aishell"][stage] for stage in ("prepare", "again", "screen", "screen_again")]
    assert [found["rows"] for found in stages] == [9, 9, 2, 7]
    assert all(found["seconds"] > 0 < found["peak_mb"] for found in stages)
    assert facts["aishell"]["load_before"] >= 0 and facts["aishell"]["file_system"]
    assert len(capfd.readouterr().out.splitlines()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]  # nothing is left behind


@pytest.mark.parametrize("options", (["--files=2"], ["--payloads=0"], ["--corpus", "klingon"]))
def test_mistakes(script, options, capsys):
    with pytest.raises(SystemExit):
        script.main(options)
    assert "error: " in capsys.readouterr().err
