"""Screening finds the faults that were made, and nothing else; its sums add up."""

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import audio, manifests, screening
from summarymixing.dataio.screening import Limits, screen
from summarymixing.errors import InputError

RATE = 16000
NAMES = ("ID", "duration", "wav", "spk_id", "wrd", "start", "stop")


def noise(seconds=0.5, level=0.1, seed=0):
    generator = np.random.default_rng(seed)
    return level * generator.uniform(-1, 1, round(seconds * RATE)).astype(np.float32)


@pytest.fixture
def add(tmp_path):
    """add(ID, samples, text, ...) writes audio; add.manifest() the manifest of all of it."""
    rows, seeds = [], itertools.count(1)

    def add(id_, samples=None, text="GOOD MORNING", rate=RATE, suffix=".wav", **row):
        if samples is None:
            samples = noise(seed=next(seeds))
        path = tmp_path / f"{len(rows)}{suffix}"
        soundfile.write(path, samples, rate, subtype="FLOAT" if suffix == ".wav" else None)
        seconds = len(samples) / rate
        row = {"ID": id_, "duration": seconds, "wav": path, "wrd": text, "spk_id": "s"} | row
        rows.append([row.get(name, "") for name in NAMES])
        return path

    def manifest():
        manifests.write_csv(tmp_path / "train.csv", NAMES, rows)
        return manifests.read(tmp_path / "train.csv")

    add.manifest = manifest
    return add


def found(screening):
    """(ID, finding) of everything, in order."""
    return [(screening.manifest[f.index]["ID"], f.name) for f in screening.findings]


def ids(rows):
    return [row["ID"] for row in rows]


def test_each_fault_is_found_and_nothing_else(add, tmp_path):
    add("good")
    add("missing").unlink()
    add("words").write_text("GOOD MORNING " * 100)
    add("folder", wav=tmp_path)
    cut = add("cut")
    cut.write_bytes(cut.read_bytes()[:-1])
    cut = add("cut-flac", suffix=".flac")
    cut.write_bytes(cut.read_bytes()[:-100])
    damaged = add("damaged-flac", noise(2, seed=99), suffix=".flac")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    add("no-bytes").write_bytes(b"")
    add("no-samples", np.zeros(0), duration=0.5)
    add("nan", np.append(noise(), np.nan))
    add("infinite", np.append(noise(), -np.inf))
    add("all-nan", np.full(8000, np.nan))
    add("integers", 3000 * noise(seed=95))
    add("silent", np.zeros(8000))
    add("constant", np.full(8000, 0.3))
    add("clipped", np.clip(noise(level=2), -1, 1))
    add("8-khz", noise(0.25, seed=98), rate=8000)
    add("stereo", np.stack([noise(seed=97), noise(seed=96)], axis=1))
    add("misstated", duration=0.61)
    add("short", noise(0.19))
    add("long", noise(2.1))
    add("nothing", text="")
    add("space", text=" \t")
    add("digits", text="AT 10")
    add("many", text="A" * 51)
    add("fast", text="ABCDEFGHIJ KLMNOPQRSTU")
    add("slow", noise(1.9), text="A")
    add("good")
    add("twin", noise(seed=1))
    add("fine", suffix=".flac")

    limits = Limits(
        min_seconds=0.2,
        max_seconds=2.05,
        max_characters_per_second=41,
        min_characters_per_second=0.6,
    )
    screened = screen(
        add.manifest(),
        limits=limits,
        characters=set("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        labels=lambda row: len(row["wrd"]),
        frames=lambda seconds: int(100 * seconds),
        jobs=1,
    )
    assert found(screened) == [
        ("missing", "unreadable"),
        ("words", "unreadable"),
        ("folder", "unreadable"),
        ("cut", "truncated"),
        ("cut-flac", "truncated"),
        ("damaged-flac", "truncated"),
        ("no-bytes", "empty"),
        ("no-samples", "empty"),
        ("nan", "nan"),
        ("infinite", "nan"),
        ("all-nan", "nan"),
        ("integers", "not_scaled"),
        ("integers", "clipped"),
        ("silent", "silent"),
        ("constant", "silent"),
        ("clipped", "clipped"),
        ("8-khz", "wrong_rate"),
        ("stereo", "stereo"),
        ("misstated", "wrong_duration"),
        ("short", "too_short"),
        ("short", "speech_rate"),
        ("long", "too_long"),
        ("nothing", "empty_text"),
        ("space", "empty_text"),
        ("digits", "unknown_characters"),
        ("many", "too_many_labels"),
        ("many", "speech_rate"),
        ("fast", "speech_rate"),
        ("slow", "speech_rate"),
        ("good", "duplicate_id"),
        ("twin", "duplicate_audio"),
    ]
    assert ids(screened.clean) == [
        *("good", "clipped", "8-khz", "stereo", "misstated", "fast", "slow", "twin", "fine")
    ]
    details = {row["ID"]: finding.detail for row, finding in zip(
        screened.manifest.select([finding.index for finding in screened.findings]),
        screened.findings,
    )}  # fmt: skip
    assert {id_: details[id_] for id_ in ("8-khz", "stereo", "misstated", "long", "digits")} == {
        "8-khz": "8000 Hz",
        "stereo": "2 channels",
        "misstated": "0.500 s, stated as 0.610 s",
        "long": "2.100 s",
        "digits": "0 1",
    }
    assert details["many"] == "102.0 characters a second" and details["silent"] == "digital silence"
    assert details["good"] == f"that of {tmp_path / '0.wav'}" and details["twin"] == "that of good"
    for id_ in ("missing", "words", "cut", "damaged-flac", "no-bytes"):
        assert details[id_].startswith(str(tmp_path)) and "\n" not in details[id_]


class TestLimits:
    """What is at a limit is still as it should be."""

    @pytest.mark.parametrize("db, silent", [(-40, True), (-40.1, False), (None, False)])
    def test_silence(self, add, db, silent):
        add("a", np.tile(np.float32([0.5 + 0.00999, 0.5 - 0.00999]), 4000))  # 0.00999: -40.01 dB
        screened = screen(add.manifest(), limits=Limits(silence_db=db), jobs=1)
        assert found(screened) == [("a", "silent")] * silent

    @pytest.mark.parametrize("count, clipped", [(80, False), (81, True)])
    @pytest.mark.parametrize("level", [1, -1, 1.5, 0.9991])
    def test_clipping(self, add, monkeypatch, count, clipped, level):
        monkeypatch.setattr(audio, "_PIECE", 999)  # they are not all in one piece
        samples = np.stack([noise(), noise(seed=1)], axis=1)
        samples[100 : 100 + 97 * count : 97, 0] = level
        add("a", samples)
        limits = Limits(clipped_share=80 / 16000)
        names = [name for _, name in found(screen(add.manifest(), limits=limits, jobs=1))]
        assert names == ["clipped"] * clipped + ["stereo"]

    @pytest.mark.parametrize("rate", [16000, 8000, None])
    def test_rate(self, add, rate):
        add("a")
        screened = screen(add.manifest(), limits=Limits(sample_rate=rate), jobs=1)
        assert found(screened) == [("a", "wrong_rate")] * (rate == 8000)

    def test_seconds_and_rates_of_speech(self, add):
        add("a", noise(0.5), text="A B\tCD\u3000E")  # five characters
        manifest = add.manifest()
        for limits, names in (
            (Limits(min_seconds=0.5, max_seconds=0.5), []),
            (Limits(min_seconds=0.501), ["too_short"]),
            (Limits(max_seconds=0.499), ["too_long"]),
            (Limits(min_characters_per_second=10, max_characters_per_second=10), []),
            (Limits(min_characters_per_second=10.1), ["speech_rate"]),
            (Limits(max_characters_per_second=9.9), ["speech_rate"]),
            (Limits(min_characters_per_second=50, max_characters_per_second=None), ["speech_rate"]),
            (Limits(min_characters_per_second=None, max_characters_per_second=None), []),
        ):
            assert [name for _, name in found(screen(manifest, limits=limits, jobs=1))] == names

    @pytest.mark.parametrize("decode", [False, True])
    def test_durations_that_count(self, add, decode):
        """Those of the audio if it is decoded, or else the manifest's."""
        add("a", noise(1), duration=3)
        limits = Limits(max_seconds=2)
        screened = screen(add.manifest(), limits=limits, decode=decode, jobs=1)
        assert found(screened) == [("a", "wrong_duration" if decode else "too_long")]

    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"min_seconds": "1"}, "min_seconds must be a number, got '1'"),
            ({"sample_rate": True}, "sample_rate must be a number, got True"),
            ({"max_seconds": float("nan")}, "max_seconds must be a number, got nan"),
            ({"clipped_share": -1}, "clipped_share must not be negative, got -1"),
            (
                {"min_characters_per_second": 50},
                "min_characters_per_second=50 is more than max_characters_per_second=40",
            ),
        ],
    )
    def test_errors(self, wrong, message):
        with pytest.raises(InputError) as error:
            Limits(**wrong)
        assert str(error.value) == message


class TestTexts:
    """Without decoding; there need not be any audio."""

    @pytest.fixture
    def texts(self, add):
        def texts(*texts):
            for i, text in enumerate(texts):
                add(f"u{i}", text=text, wav="/nowhere/a.wav", duration=1)
            return add.manifest()

        return texts

    def test_a_set(self, texts):
        manifest = texts("ab a", "abc", "d\u200bé\u3000a", "ab\na")
        screened = screen(manifest, characters="ab", decode=False, jobs=1)
        assert [(f.index, f.detail) for f in screened.findings] == [(1, "c"), (2, "d é \\u200b")]

    def test_a_callable(self, texts):
        def unknown(text):
            return [c for c in text if c == "c"] * 3

        screened = screen(texts("ab", "abc"), characters=unknown, decode=False, jobs=1)
        assert [(f.index, f.name, f.detail) for f in screened.findings] == [
            (1, "unknown_characters", "c")
        ]

    def test_labels(self, texts):
        screened = screen(
            texts("A" * 10, "A" * 11),
            labels=lambda row: len(row["wrd"]),
            frames=lambda seconds: int(10 * seconds),
            decode=False,
            jobs=1,
        )
        assert [(f.index, f.name) for f in screened.findings] == [(1, "too_many_labels")]
        assert screened.findings[0].detail == "11 labels, 10 frames in 1.000 s"
        with pytest.raises(ValueError, match="labels and frames"):
            screen(screened.manifest, labels=len)

    def test_what_is_looked_for(self, texts):
        screened = screen(texts("A"), decode=False, jobs=1)
        assert list(screened.counts) == ["empty", "empty_text", "speech_rate", "duplicate_id"]
        screened = screen(
            screened.manifest,
            limits=Limits(min_seconds=1, max_seconds=2),
            characters="A",
            labels=lambda row: 1,
            frames=lambda seconds: 1,
            jobs=1,
        )
        assert list(screened.counts) == list(screening.FINDINGS)

    def test_nothing_is_read(self, texts, tmp_path, monkeypatch):
        monkeypatch.setattr(screening, "measure", None)
        facts = tmp_path / "facts.sqlite"
        assert not screen(texts("A"), facts, decode=False, jobs=1).findings
        assert not facts.exists()

    def test_no_duration(self, add):
        add("a", duration=0, wav="/nowhere")
        assert found(screen(add.manifest(), decode=False, jobs=1)) == [("a", "empty")]


class TestDuplicates:
    """The first that is kept for all else is no duplicate."""

    def test_the_first_is_dropped(self, add):
        add("a", text="")
        add("a")
        add("a").unlink()
        add("a")
        screened = screen(add.manifest(), jobs=1)
        assert [(f.index, f.name) for f in screened.findings] == [
            *((0, "empty_text"), (2, "unreadable"), (3, "duplicate_id"))
        ]
        assert screened.kept.tolist() == [1]

    def test_samples(self, add):
        """Whatever the format; of stereo, whatever the file's name; but not of another length."""
        samples = (noise() * 32767).astype(np.int16)
        add("a", samples, suffix=".flac")
        add("b", samples, suffix=".ogg")
        add("c", samples / np.float32(32768))
        add("d", samples[:-1], suffix=".flac")
        add("e", samples, text="GOOD NIGHT", suffix=".flac")
        screened = screen(add.manifest(), drop=["duplicate_audio"], jobs=1)
        assert [(f.index, f.name, f.detail) for f in screened.findings] == [
            (2, "duplicate_audio", "that of a"),
            (4, "duplicate_audio", "that of a, with another text"),
        ]
        assert screened.kept.tolist() == [0, 1, 3]

    def test_segments(self, add):
        wav = add("a", np.tile(noise(1), 2))
        for id_, start, stop in (("b", 0, 1), ("c", 1, 2), ("d", 0.5, 1.5), ("e", 1, 2.5)):
            add(id_, wav=wav, start=start, stop=stop, duration=stop - start)
        screened = screen(add.manifest(), jobs=1)
        assert found(screened) == [("c", "duplicate_audio"), ("e", "unreadable")]

    def test_unreadable_audio_that_is_kept_is_not_the_same(self, add):
        add("a").unlink()
        add("b").unlink()
        screened = screen(add.manifest(), note=["unreadable"], jobs=1)
        assert found(screened) == [("a", "unreadable"), ("b", "unreadable")]
        assert screened.kept.tolist() == [0, 1]

    def test_many(self, add):
        """Against a loop."""
        drawn = np.random.default_rng(0).integers(0, 30, 200)
        for number in drawn:
            add(f"u{number}", wav="/nowhere", duration=1)
        seen, expected = set(), []
        for index, number in enumerate(drawn):
            expected += [index] * (number in seen)
            seen.add(number)
        screened = screen(add.manifest(), decode=False, jobs=1)
        assert [finding.index for finding in screened.findings] == expected


def test_findings_can_be_moved(add):
    add("a", np.zeros(8000), text="")
    add("b", np.clip(noise(level=2), -1, 1))
    manifest = add.manifest()
    screened = screen(manifest, drop="clipped", note=["silent", "empty_text"], jobs=1)
    assert [(f.index, f.name, f.dropped) for f in screened.findings] == [
        *((0, "silent", False), (0, "empty_text", False), (1, "clipped", True))
    ]
    assert screened.kept.tolist() == [0]
    assert screen(manifest, note=["silent"], jobs=1).kept.tolist() == [1]
    for options, message in (
        ({"drop": ["loud"]}, "there is no finding 'loud'; there are unreadable, truncated, "),
        ({"drop": ["nan", "silent"], "note": "nan"}, "nan cannot both be dropped and only noted"),
        ({"jobs": 0}, "jobs must be a positive integer, got 0"),
        ({"jobs": 2.0}, "jobs must be a positive integer, got 2.0"),
        ({"jobs": True}, "jobs must be a positive integer, got True"),
    ):
        with pytest.raises(InputError, match=message):
            screen(manifest, **options)


@pytest.fixture
def dirty(add):
    """70 utterances, a third of them with some fault or other."""
    draw = np.random.default_rng(0)
    for i in range(70):
        fault = draw.integers(0, 24)
        path = add(
            f"u{i if fault != 0 else i - 1}",
            {1: np.zeros(8000), 2: np.clip(noise(level=2), -1, 1), 3: noise(0.1)}.get(fault),
            {4: "", 5: "É", 6: "", 7: "A"}.get(fault, "GOOD MORNING"),
            RATE if fault != 8 else 8000,
        )
        if fault in (6, 7):
            path.write_bytes(path.read_bytes()[:-9])
    return add.manifest()


def options():
    return {"limits": Limits(min_seconds=0.2), "characters": "GOD MRNIA"}


@pytest.mark.parametrize("jobs", [1, 3])
def test_sums_add_up_and_nothing_is_dropped_unnamed(dirty, tmp_path, jobs):
    screened = screen(dirty, jobs=jobs, **options())
    clean = screened.write_report(tmp_path / "out", "train")
    assert clean == tmp_path / "out" / "train.clean.csv"
    assert len(os.listdir(tmp_path / "out")) == 3

    with open(tmp_path / "out" / "train.findings.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["ID", "wav", "finding", "detail", "dropped"]
    named = {line["wav"] for line in lines if line["dropped"] == "yes"}
    kept = manifests.read(clean)
    assert kept == screened.clean == [row for row in dirty if row["wav"] not in named]
    assert 0 < len(kept) < 70 and len(named) + len(kept) == 70
    assert len(lines) == len(screened.findings) == sum(screened.counts.values())
    assert len({line["finding"] for line in lines}) >= 6

    table = (tmp_path / "out" / "train.summary.txt").read_text()
    assert table == screened.table() + "\n"
    head, *rows = table.splitlines()
    rows = [(row[:20].strip(), *row[20:].split()) for row in rows]
    seconds = {row["wav"]: row["duration"] for row in dirty}
    for name, count, hours, *dropped in rows[:-3]:
        its = [line for line in lines if line["finding"] == name]
        assert int(count) == len(its)
        assert hours == f"{sum(seconds[line['wav']] for line in its) / 3600:.2f}"
        assert {line["dropped"] for line in its} <= set(dropped)
    (_, lost, _), (_, left, _), (_, total, _) = rows[-3:]
    assert (int(lost), int(left), int(total)) == (len(named), len(kept), 70)


def test_the_number_of_processes_does_not_matter(dirty):
    one, three = (screen(dirty, jobs=jobs, **options()) for jobs in (1, 3))
    assert one.findings == three.findings and one.findings
    assert one.kept.tolist() == three.kept.tolist()


def test_report_errors(dirty, tmp_path):
    screened = screen(dirty, decode=False, jobs=1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/train.findings.csv: cannot be written"):
        screened.write_report(tmp_path / "file", "train")
    clean = manifests.read(screened.write_report(tmp_path, "train"))
    before = clean.path.read_bytes()
    with pytest.raises(InputError, match="train.clean.csv was screened and would be overwritten"):
        screen(clean, decode=False, jobs=1).write_report(tmp_path, "train")
    assert clean.path.read_bytes() == before


def test_nothing_is_kept(add, tmp_path):
    add("a", text="")
    screened = screen(add.manifest(), jobs=1)
    assert len(screened.clean) == 0 and "kept                           0" in screened.table()
    assert len(screened.write_report(tmp_path, "a").read_text().splitlines()) == 1


class TestFacts:
    """What was measured once is not decoded again, as long as the file is the same."""

    @pytest.fixture
    def decoded(self, monkeypatch):
        decoded, decode = [], audio.decode

        def noted(path, *rest):
            decoded.append(Path(path).name)
            return decode(path, *rest)

        monkeypatch.setattr(audio, "decode", noted)
        return decoded

    @pytest.fixture
    def facts(self, tmp_path):
        return tmp_path / "deep" / "facts.sqlite"

    def test_second_time(self, dirty, facts, decoded):
        first = screen(dirty, facts, jobs=1, **options())
        assert len(decoded) == 70
        decoded.clear()
        second = screen(dirty, facts, jobs=1, **options())
        assert second.findings == first.findings
        # Failures are tried again: the disk may have failed, not the file.
        failed = {f.index for f in first.findings if f.name == "truncated"}
        assert 0 < len(failed) == len(decoded) < 10
        assert screen(dirty, facts, jobs=2, **options()).findings == first.findings

    def test_facts_of_several_processes(self, dirty, facts, decoded):
        expected = screen(dirty, facts, jobs=3, **options()).findings
        assert screen(dirty, facts, jobs=1, **options()).findings == expected
        assert len(decoded) < 10

    def test_nan_is_remembered(self, add, facts, decoded):
        add("a", np.append(noise(), np.nan))
        for _ in range(2):
            assert found(screen(add.manifest(), facts, jobs=1)) == [("a", "nan")]
        assert len(decoded) == 1

    def test_changed_files(self, add, facts, decoded):
        paths = [add(name) for name in "abc"]
        manifest = add.manifest()
        assert not screen(manifest, facts, jobs=1).findings
        decoded.clear()
        status = paths[0].stat()
        soundfile.write(paths[0], np.zeros(8000), RATE, subtype="FLOAT")  # of the same size
        os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert paths[0].stat().st_size == status.st_size
        status = paths[1].stat()
        soundfile.write(paths[1], np.zeros(7990), RATE, subtype="FLOAT")
        os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
        assert found(screen(manifest, facts, jobs=1)) == [("a", "silent"), ("b", "silent")]
        assert decoded == ["0.wav", "1.wav"]
        paths[2].unlink()
        assert ("c", "unreadable") in found(screen(manifest, facts, jobs=1))

    def test_segments(self, add, facts, decoded):
        wav = add("a", np.append(noise(1), np.zeros(RATE)))
        add("b", wav=wav, start=0, stop=1, duration=1)
        add("c", wav=wav, start=1, stop=2, duration=1)
        for _ in range(2):
            assert found(screen(add.manifest(), facts, jobs=1)) == [("c", "silent")]
        assert len(decoded) == 3

    def test_relative_paths(self, add, facts, tmp_path, monkeypatch):
        """A name is no file: it depends on the folder."""
        add("a", wav="a.wav")
        manifest = add.manifest()
        for name, samples in (("x", noise()), ("y", np.zeros(8000))):
            (tmp_path / name).mkdir()
            soundfile.write(tmp_path / name / "a.wav", samples, RATE)
            os.utime(tmp_path / name / "a.wav", ns=(1, 1))
            monkeypatch.chdir(tmp_path / name)
            assert len(screen(manifest, facts, jobs=1).findings) == (name == "y")

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_unusable_files(self, dirty, tmp_path, jobs):
        (tmp_path / "a.txt").write_text("ID,duration,wav\n" * 100)
        for path in (tmp_path / "a.txt", tmp_path, tmp_path / "a.txt" / "facts"):
            with pytest.raises(InputError) as error:
                screen(dirty, path, jobs=jobs)
            assert str(error.value).startswith(f"{path}: what is known of the audio cannot be kept")
            assert "\n" not in str(error.value)
        assert (tmp_path / "a.txt").read_text() == "ID,duration,wav\n" * 100


# Screens with a callable that meets a text "KILL …": this process or its parent is killed then.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from summarymixing.dataio import manifests, screening

def killer(text):
    if text.startswith("KILL"):
        time.sleep(0.5)
        os.kill(os.getpid() if text == "KILL THIS" else os.getppid(), signal.SIGKILL)
        time.sleep(3600 if text == "KILL PARENT" else 0)
    return ()

def noted(checker):
    Path(sys.argv[3], f"{os.getpid()}.pid").touch()
    start(checker)

start, screening._start = screening._start, noted
screening._REMEMBER_SECONDS = 0
path, facts, folder, jobs = sys.argv[1:]
try:
    screening.screen(manifests.read(path), facts, characters=killer, jobs=int(jobs))
except Exception as error:
    print(type(error).__name__, error)
"""


class TestKilled:
    """At any time: what was done is kept, nothing hangs, no process is left."""

    def run(self, add, tmp_path, text, jobs):
        for i in range(100):
            add(f"u{i}", text=text if i == 80 else "A")
        manifest, facts = add.manifest(), tmp_path / "facts.sqlite"
        command = [sys.executable, "-c", KILLED, manifest.path, facts, tmp_path, str(jobs)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done, manifest, facts

    def check_kept(self, manifest, facts, monkeypatch):
        measured, measure = [], screening.measure
        monkeypatch.setattr(
            screening, "measure", lambda *args: measured.append(1) or measure(*args)
        )
        assert not screen(manifest, facts, jobs=1).findings
        assert 0 < len(measured) <= 100 - 64  # two times 32 were done for sure

    def test_this_process(self, add, tmp_path, monkeypatch):
        done, manifest, facts = self.run(add, tmp_path, "KILL THIS", 1)
        assert done.returncode == -signal.SIGKILL
        self.check_kept(manifest, facts, monkeypatch)

    def test_a_worker(self, add, tmp_path, monkeypatch):
        done, manifest, facts = self.run(add, tmp_path, "KILL THIS", 2)
        (line,) = done.stdout.splitlines()
        assert line.startswith(
            f"InputError {manifest.path}: a screening process ended unexpectedly"
        )
        assert "at utterance u64 or soon after it" in line
        self.check_kept(manifest, facts, monkeypatch)

    def test_the_parent_of_workers(self, add, tmp_path):
        done, *_ = self.run(add, tmp_path, "KILL PARENT", 2)
        assert done.returncode == -signal.SIGKILL
        workers = [path.stem for path in tmp_path.glob("*.pid")]
        assert workers
        end = time.monotonic() + 20
        while any(Path("/proc", worker).exists() for worker in workers):
            assert time.monotonic() < end, "a worker has outlived its parent"
            time.sleep(0.05)


def test_an_error_of_a_callable_is_not_hidden(dirty):
    def failing(text):
        raise ZeroDivisionError(text)

    for jobs in (1, 2):
        with pytest.raises(ZeroDivisionError):
            screen(dirty, characters=failing, jobs=jobs)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("decode", [True, False])
def test_no_rows(dirty, jobs, decode):
    screened = screen(dirty[:0], jobs=jobs, decode=decode)
    assert screened.findings == [] and len(screened.kept) == 0
    assert screened.table().splitlines()[-1].split() == ["utterances", "0", "0.00"]


def test_progress(dirty, capsys):
    screen(dirty, jobs=1)
    printed = capsys.readouterr().err
    assert "screening train.csv" in printed and "70/70" in printed and "row/s" in printed
