"""scripts/screen.py: options, output, and what it refuses."""

import csv
import os

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import manifests


@pytest.fixture
def main(load_script):
    return load_script("screen").main


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """Two good utterances, a silent one, a clipped one of 8 kHz, and one with a digit."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    rows = []
    for name, level, text, rate in (
        ("a", 0.1, "GOOD MORNING", 16000),
        ("b", 0.1, "IT'S FOUR", 16000),
        ("c", 0.0, "GOOD", 16000),
        ("d", 3.0, "GOOD", 8000),
        ("e", 0.1, "4", 16000),
    ):
        samples = np.clip(level * generator.uniform(-1, 1, rate), -1, 1)
        soundfile.write(tmp_path / f"{name}.flac", samples, rate)
        rows.append((name, 1.0, f"{name}.flac", "s", text))
    manifests.write_csv("dev.csv", manifests.COLUMNS, rows)
    return "dev.csv"


def table(text):
    """{finding: [count, hours, dropped]} of what was printed."""
    lines = text.split("clean manifest")[0].splitlines()[1:]
    return {line[:20].strip(): line[20:].split() for line in lines}


def test_table(main, manifest, capsys):
    main([manifest, "--jobs=1"])
    found = table(capsys.readouterr().out)
    assert {name for name, values in found.items() if values[0] != "0"} == {
        *("silent", "clipped", "wrong_rate", "dropped, in all", "kept", "utterances")
    }
    assert found["silent"] == ["1", "0.00", "yes"] and found["clipped"] == ["1", "0.00", "no"]
    assert [found[name][0] for name in ("dropped, in all", "kept", "utterances")] == ["1", "4", "5"]
    assert "too_long" not in found and "unknown_characters" not in found
    assert set(os.listdir()) == {*(f"{name}.flac" for name in "abcde"), "dev.csv"}


def test_options(main, manifest, capsys):
    options = ["--min_seconds=0.5", "--max_seconds=0.99", "--sample_rate=8000", "--jobs=2"]
    options += ["--drop=clipped, stereo", "--note=silent,too_long", "--characters=GODMRNIT'SFU"]
    main([manifest, *options])
    found = table(capsys.readouterr().out)
    assert [found[name] for name in ("silent", "clipped", "too_long", "too_short")] == [
        *(["1", "0.00", "no"], ["1", "0.00", "yes"], ["5", "0.00", "no"], ["0", "0.00", "yes"])
    ]
    assert found["unknown_characters"][0] == "1" and found["wrong_rate"][0] == "4"
    assert found["kept"][0] == "3"


def test_output(main, manifest, capsys, tmp_path):
    for _ in range(2):
        main([manifest, "--output=out/deep", "--jobs=1"])
        out = capsys.readouterr().out
        assert f"clean manifest: {tmp_path}/out/deep/dev.clean.csv" in out
        assert [row["ID"] for row in manifests.read("out/deep/dev.clean.csv")] == list("abde")
        assert sorted(os.listdir("out/deep")) == [
            *("dev.clean.csv", "dev.findings.csv", "dev.summary.txt", "facts.sqlite")
        ]
        with open("out/deep/dev.findings.csv", newline="") as file:
            rows = [(row["ID"], row["finding"], row["dropped"]) for row in csv.DictReader(file)]
        assert rows == [("c", "silent", "yes"), ("d", "clipped", "no"), ("d", "wrong_rate", "no")]
    main([manifest, "--facts=mine", "--output=out2", "--jobs=1"])
    assert os.path.isfile("mine") and "facts.sqlite" not in os.listdir("out2")


def test_characters_of_a_file(main, manifest, capsys):
    with open("alphabet.txt", "w") as file:
        file.write("GODMRN\nITSFU")
    main([manifest, "--characters=alphabet.txt", "--text_only", "--jobs=1"])
    found = table(capsys.readouterr().out)
    assert found["unknown_characters"][0] == "2" and "silent" not in found


@pytest.mark.parametrize(
    "options, message",
    [
        (["missing.csv"], "missing.csv: there is no such manifest"),
        (["dev.csv", "--drop=loud"], "there is no finding 'loud'; there are unreadable, "),
        (["dev.csv", "--drop=nan", "--note=nan"], "nan cannot both be dropped and only noted"),
        (["dev.csv", "--min_seconds=3", "--max_seconds=2"], "min_seconds=3.0 is more than max"),
        (["dev.csv", "--sample_rate=-1"], "sample_rate must not be negative, got -1"),
        (["dev.csv", "--jobs=0"], "jobs must be a positive integer, got 0"),
        (["dev.csv", "--characters=letters.txt"], "--characters: there is no file letters.txt"),
        (["dev.csv", "--characters= "], "--characters: there are none"),
        (["dev.csv", "--characters=a.flac"], "a.flac: cannot be read as UTF-8 text"),
        (["dev.csv", "--output=a.flac"], "a.flac"),
        (["dev.csv", "--facts=dev.csv"], "dev.csv: what is known of the audio cannot be kept in"),
    ],
)
def test_mistakes_are_said_in_one_line(main, manifest, capsys, options, message):
    before = open("dev.csv").read()
    with pytest.raises(SystemExit) as exit_:
        main([*options, *([] if "--jobs=0" in options else ["--jobs=1"])])
    printed = capsys.readouterr()
    (line,) = (line for line in printed.err.splitlines() if line.startswith("error: "))
    assert exit_.value.code == 2 and message in line and printed.out == ""
    assert open("dev.csv").read() == before
