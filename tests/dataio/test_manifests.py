import csv
import logging
import multiprocessing
import os
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import manifests
from summarymixing.dataio.manifests import Utterance
from summarymixing.errors import InputError


@pytest.fixture
def utterances(tmp_path):
    """Five good utterances, not sorted."""
    made = []
    for i in (3, 1, 4, 0, 2):
        wav = tmp_path / f"u{i}.wav"
        soundfile.write(wav, np.zeros(12347 + 1000 * i), 16000)
        made.append(Utterance(f"u{i}", str(wav), f"s{i % 2}", f"WORD, {i}"))
    return made


def test_rows(tmp_path, utterances):
    path = tmp_path / "deep" / "train.csv"
    assert manifests.write(path, utterances) == 5
    assert path.read_text().splitlines()[0] == "ID,duration,wav,spk_id,wrd"
    rows = manifests.read(path)
    assert [row["ID"] for row in rows] == ["u0", "u1", "u2", "u3", "u4"]
    assert [round(row["duration"] * 16000) for row in rows] == [12347 + 1000 * i for i in range(5)]
    assert rows[3]["wav"] == str(tmp_path / "u3.wav")
    assert (rows[3]["spk_id"], rows[3]["wrd"]) == ("s1", "WORD, 3")
    assert sorted(p.name for p in path.parent.iterdir()) == ["train.csv"]


@pytest.mark.parametrize("count", (63, 64, 65, 200))  # threads get some at a time
def test_many(tmp_path, utterances, count, capsys):
    many = [Utterance(f"x{i:03}", utterances[i % 5].wav, "s", f"{i}") for i in range(count)]
    assert manifests.write(tmp_path / "train.csv", many, description="set") == count
    for i, row in enumerate(manifests.read(tmp_path / "train.csv")):
        wav = utterances[i % 5].wav
        assert (row["ID"], row["wav"], row["wrd"]) == (f"x{i:03}", wav, f"{i}")
        assert row["duration"] == soundfile.info(wav).duration
    bar = capsys.readouterr().err
    assert "checking set: 100%" in bar and f"{count}/{count}" in bar


def test_speechbrain_reads_it(tmp_path, utterances):
    from speechbrain.dataio.dataset import DynamicItemDataset

    path = tmp_path / "train.csv"
    manifests.write(path, utterances)
    data = DynamicItemDataset.from_csv(path, output_keys=["id", "duration", "wrd"])
    assert data[1] == {"id": "u1", "duration": 13347 / 16000, "wrd": "WORD, 1"}


class TestSegments:
    """Utterances that are parts of a file."""

    @pytest.fixture(params=[16000, 44100])
    def rate(self, request):
        return request.param

    @pytest.fixture
    def wav(self, tmp_path, rate):
        samples = np.random.default_rng(0).integers(-9999, 9999, 2 * rate, dtype=np.int16)
        soundfile.write(tmp_path / "talk.wav", samples, rate)
        return str(tmp_path / "talk.wav")

    def write(self, tmp_path, wav, *times, on_bad="raise"):
        utterances = [
            Utterance(f"u{i}", wav, "s", "A", *(t if isinstance(t, tuple) else (None, None, t)))
            for i, t in enumerate(times)
        ]
        manifests.write(tmp_path / "out" / "dev.csv", utterances, on_bad)
        return manifests.read(tmp_path / "out" / "dev.csv")

    def test_rows(self, tmp_path, wav, rate):
        times = [(0.1234567, 0.7654321), (None, 1.3), (0.3, None), (None, None), (0, 2.4)]
        rows = self.write(tmp_path, wav, *times)
        assert (
            (tmp_path / "out" / "dev.csv")
            .read_text()
            .startswith("ID,duration,wav,spk_id,wrd,start,stop\n")
        )
        samples, _ = soundfile.read(wav, dtype="float32")
        for row, (start, stop) in zip(rows, times):
            first = 0 if start is None else round(start * rate)
            end = len(samples) if stop is None else min(round(stop * rate), len(samples))
            assert round(row["duration"] * rate) == end - first
            waveform = manifests.read_audio(row, rate).numpy()
            np.testing.assert_array_equal(waveform, samples[first:end])
        assert (rows[3]["start"], rows[3]["stop"]) == (None, None)
        assert rows[4]["stop"] == 2.0  # cut at the file's end

    def test_whole_files_have_no_columns_for_them(self, tmp_path, wav):
        (row,) = self.write(tmp_path, wav, (None, None))
        assert list(row) == list(manifests.COLUMNS)
        assert len(manifests.read_audio(row)) == 32000

    @pytest.mark.parametrize("times", [(0.5, 0.5), (1.5, 1), (-0.1, 1), (0, 2.6), (2, None)])
    def test_outside_the_file(self, tmp_path, wav, times):
        with pytest.raises(InputError, match="talk.wav: the segment from .* which has 2.0 s"):
            self.write(tmp_path, wav, times)
        assert len(self.write(tmp_path, wav, times, (0, 1), on_bad="drop")) == 1

    def test_stated_durations(self, tmp_path, wav):
        assert len(self.write(tmp_path, wav, 1.6, 2.4, (0.5, 1, 0.6))) == 3
        for stated in (1.4, 2000, (0.5, 1, 1.1)):
            with pytest.raises(InputError, match="talk.wav: .* s are stated, the audio has"):
                self.write(tmp_path, wav, stated)

    def test_a_file_is_inspected_once(self, tmp_path, wav, monkeypatch):
        calls = []
        inspect = manifests.audio.inspect
        monkeypatch.setattr(manifests.audio, "inspect", lambda p: calls.append(p) or inspect(p))
        self.write(tmp_path, wav, *[(i / 100, (i + 1) / 100) for i in range(100)])
        assert len(calls) <= 8  # by each thread at most


def test_a_set_without_utterances(tmp_path):
    with pytest.raises(InputError, match="dev.csv: valid has no utterances; at least one"):
        manifests.write(tmp_path / "dev.csv", [], description="valid")


def test_drop_names_what_it_drops(tmp_path, utterances, caplog):
    (tmp_path / "u1.wav").write_bytes((tmp_path / "u1.wav").read_bytes()[:-2])
    (tmp_path / "u4.wav").unlink()
    utterances.append(Utterance("u5", str(tmp_path / "u0.wav"), "s", "  "))
    utterances.append(Utterance("u6", str(tmp_path / "u0.wav"), "s", None))
    path = tmp_path / "train.csv"
    with caplog.at_level(logging.WARNING):
        assert manifests.write(path, utterances) == 3
    with open(tmp_path / "train.dropped.csv", newline="") as file:
        dropped = {row["ID"]: row["reason"] for row in csv.DictReader(file)}
    assert list(dropped) == ["u1", "u4", "u5", "u6"]
    for id_, reason in zip(dropped, ("truncated", "no such", "is empty", "there is no transcript")):
        assert reason in dropped[id_]
        assert any(id_ in line and reason in line for line in caplog.messages)
    assert "4 of 7 utterances left out" in caplog.messages[-1]

    # Mended data leave no outdated list behind.
    manifests.write(path, [u for u in utterances if u.id not in dropped])
    assert not (tmp_path / "train.dropped.csv").exists()


def test_long_drop_lists_are_cut_in_the_log(tmp_path, utterances, caplog):
    missing, good = str(tmp_path / "missing.wav"), utterances[0].wav
    utterances += [Utterance(f"x{i:02}", missing, "s", "A") for i in range(25)]
    utterances += [Utterance(f"y{i:02}", good, "s", "A") for i in range(25)]
    with caplog.at_level(logging.WARNING):
        manifests.write(tmp_path / "train.csv", utterances)
    assert len(caplog.messages) == 21
    assert "5 more" in caplog.messages[-1] and "train.dropped.csv" in caplog.messages[-1]
    assert len((tmp_path / "train.dropped.csv").read_text().splitlines()) == 26


def test_a_corpus_of_which_most_is_missing_is_refused(tmp_path, utterances):
    missing = str(tmp_path / "missing.wav")
    utterances += [Utterance(f"x{i:02}", missing, "s", "A") for i in range(25)]
    with pytest.raises(InputError, match="of .* cannot be used, more than half: .* whole") as error:
        manifests.write(tmp_path / "train.csv", utterances)
    assert "\n" not in str(error.value) and not (tmp_path / "train.csv").exists()
    assert len((tmp_path / "train.dropped.csv").read_text().splitlines()) == 26


@pytest.mark.parametrize("text, reason", [("A", "no such audio file"), (None, "no transcript")])
def test_raise(tmp_path, utterances, text, reason):
    wav = str(tmp_path / ("missing.wav" if text else "u1.wav"))
    utterances.append(Utterance("x", wav, "s", text))
    with pytest.raises(InputError, match=reason) as error:
        manifests.write(tmp_path / "dev.csv", utterances, on_bad="raise")
    assert wav in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "dev.csv").exists()


def test_raise_keeps_empty_transcripts(tmp_path, utterances, caplog):
    utterances.append(Utterance("u5", utterances[0].wav, "s", ""))
    assert manifests.write(tmp_path / "dev.csv", utterances, on_bad="raise") == 6
    assert manifests.read(tmp_path / "dev.csv")[-1]["wrd"] == ""
    assert (
        "1 of 6 transcripts are empty, and what is recognised there are errors: u5" in caplog.text
    )


@pytest.mark.parametrize("on_bad", ["drop", "raise"])
def test_duplicates(tmp_path, utterances, on_bad):
    utterances.append(Utterance("u3", "/elsewhere/u3.wav", "s", "A"))
    with pytest.raises(InputError, match="u3 is there twice .*u3.wav and /elsewhere/u3.wav"):
        manifests.write(tmp_path / "train.csv", utterances, on_bad)


@pytest.mark.parametrize("id_", ["", " x", "x ", "x\ty", "x\ny", "x\ry"])
def test_ids_that_would_be_read_as_others(tmp_path, utterances, id_):
    utterances.append(Utterance(id_, "/elsewhere/x.wav", "s", "A"))
    with pytest.raises(InputError, match="set: the utterance id '.*/x.wav.* must not be ") as error:
        manifests.write(tmp_path / "dev.csv", utterances, description="set")
    assert repr(id_) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "dev.csv").exists()


def test_nothing_usable(tmp_path):
    with pytest.raises(InputError, match="none of the 1 utterances"):
        manifests.write(tmp_path / "train.csv", [Utterance("a", "/no.wav", "s", "A")])
    with pytest.raises(InputError, match="no utterances"):
        manifests.write(tmp_path / "train.csv", [])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such manifest"),
        ("", "lacks the column ID, duration, wav, spk_id, wrd"),
        ("ID,duration,wav,wrd\na,1,b,c\n", "lacks the column spk_id"),
        ("ID,duration,wav,spk_id,wrd\n", "no rows"),
        ("ID,duration,wav,spk_id,wrd\na,1,b\n", "line 2: 5 values"),
        ("ID,duration,wav,spk_id,wrd\na,1,b,c,d,e\n", "line 2: 5 values"),
        ("ID,duration,wav,spk_id,wrd\na,long,b,c,d\n", "duration must be a number .*'long'"),
        ("ID,duration,wav,spk_id,wrd\na,nan,b,c,d\n", "duration must be a number .*'nan'"),
        ("ID,duration,wav,spk_id,wrd\na,inf,b,c,d\n", "duration must be a number .*'inf'"),
        ("ID,duration,wav,spk_id,wrd\na,1e306,b,c,d\n", "duration must be a number .*'1e306'"),
        ("ID,duration,wav,spk_id,wrd\na,-1,b,c,d\n", "duration must be a number .*'-1'"),
        ("ID,duration,wav,spk_id,wrd\na,,b,c,d\n", "duration must be a number .*''"),
        ("ID,duration,wav,spk_id,wrd,start,stop\na,1,b,c,d,0,x\n", "line 2: stop must be .*'x'"),
        ("ID,duration,wav,spk_id,wrd,stop\na,1,b,c,d,0\n\na,1,b,c,d,nan\n", "line 4: stop .*'nan'"),
        (b"\xff\xfe\x00", "not a UTF-8 CSV"),
    ],
)
def test_read_errors(tmp_path, content, message):
    path = tmp_path / "dev.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"dev.csv.*{message}"):
        manifests.read(path)


class TestPrepare:
    """Reuse of manifests that are up to date."""

    @pytest.fixture
    def run(self, tmp_path, utterances):
        calls = []

        def load():
            calls.append(1)
            return utterances

        def run(**arguments):
            calls.clear()
            sources = manifests.list_files(tmp_path, (".wav",))
            manifests.prepare(tmp_path / "out", arguments, sources, {"train": load, "dev": load})
            return len(calls)

        return run

    def test_skips(self, run, caplog):
        with caplog.at_level(logging.INFO):
            assert run(a=1) == 2
            assert run(a=1) == 0
        assert sum("skipped" in message for message in caplog.messages) == 1

    def test_other_arguments(self, run):
        assert (run(a=1), run(a=2), run(a=1)) == (2, 2, 2)

    def test_changed_sources(self, run, tmp_path):
        run()
        soundfile.write(tmp_path / "u1.wav", np.zeros(99), 16000)
        assert run() == 2
        soundfile.write(tmp_path / "new.wav", np.zeros(99), 16000)
        assert run() == 2
        (tmp_path / "new.wav").unlink()
        assert run() == 2
        assert run() == 0

    def test_missing_manifest(self, run, tmp_path):
        run()
        (tmp_path / "out" / "dev.csv").unlink()
        assert run() == 2

    def test_failed_run_is_not_reused(self, run, tmp_path, utterances):
        run(a=1)
        utterances.append(Utterance("x", "/no.wav", "s", "A"))
        with pytest.raises(InputError):
            run(a=2)
        utterances.pop()
        assert run(a=1) == 2


@pytest.mark.parametrize("folder", ["file", "file/out", "/proc/out", "json", "dropped"])
def test_a_folder_that_cannot_be_written(tmp_path, utterances, folder):
    (tmp_path / "file").touch()
    (tmp_path / "json" / "prepare.json").mkdir(parents=True)
    (tmp_path / "dropped" / "train.dropped.csv").mkdir(parents=True)
    with pytest.raises(InputError, match="not a folder|cannot be written") as error:
        manifests.prepare(tmp_path / folder, {}, {}, {"train": lambda: utterances})
    assert folder in str(error.value) and "\n" not in str(error.value)


def test_a_source_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="gone.txt: cannot be read .No such file"):
        manifests.prepare(tmp_path, {}, {}, {"train": lambda: open(tmp_path.parent / "gone.txt")})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0", 5, None])
def test_names_of_test_sets_that_are_no_file_names(name):
    with pytest.raises(InputError, match="^test set .*: a plain file name is expected$"):
        manifests.check_test_name(name, ["train", "valid"])


@pytest.mark.parametrize("name", ["valid", "other", "train.clean", "train.findings"])
def test_names_of_test_sets_that_other_files_have(name):
    with pytest.raises(InputError, match=f"^test set '{name}': another file has that name"):
        manifests.check_test_name(name, ["train", "valid", "other"])


@pytest.mark.parametrize(
    "given, names",
    [("a", ["a"]), (5, ["5"]), (["a", 5], ["a", "5"]), (("a",), ["a"]), (None, []), ([], [])],
)
def test_names_of_splits(given, names):
    parts = manifests.split_parts("x", ["x"], given)
    assert parts == {"train": ["x"], "valid": ["x"], **{name: [name] for name in names}}


@pytest.mark.parametrize("given", [True, 1.5, {"a": 1}, [None], [["a"]], ["a", False]])
def test_what_names_no_splits(given):
    for splits in ((given, "x", []), ("x", given, []), ("x", "x", given)):
        with pytest.raises(InputError, match="^(train|valid|test)_splits must be names of splits"):
            manifests.split_parts(*splits)
    with pytest.raises(InputError, match="^test set '/a': a plain file name is expected"):
        manifests.split_parts("x", "x", ["/a"])


def test_folders_that_cannot_be_listed(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match="loop: cannot be listed .*symbolic links"):
        manifests.list_files(tmp_path, (".wav",))


def test_files_that_are_not_there(tmp_path):
    assert manifests.stat_files([tmp_path / "a.wav", "a\0.wav"]) == {}


@pytest.mark.parametrize("folder", [None, ["a"], "", "a\0b"])
def test_what_is_no_data_folder(folder):
    with pytest.raises(InputError, match="the data folder must be a path, got "):
        manifests.existing_folder(folder)


@pytest.mark.parametrize("read", [manifests.read_lines, lambda path: manifests.read_tsv(path, [])])
def test_a_text_file_that_is_a_folder(tmp_path, read):
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be read .Is a directory.$"):
        read(tmp_path)


def test_lines_end_at_line_ends_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\u2028two\r\n\nthree\x85four".encode())
    assert manifests.read_lines(path) == ["one\u2028two", "", "three\x85four"]


def test_tsv(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes('\ufeffid\ta\tb\r\n1\t"x\t\r\n\n2\ty\u2028\x85z\t\rw\n'.encode())
    assert manifests.read_tsv(path, ["b", "id"]) == [(2, ("", "1")), (4, ("\rw", "2"))]
    expected = [(2, ('"x', None, "")), (4, ("y\u2028\x85z", None, "\rw"))]
    assert manifests.read_tsv(path, ["a"], ["c", "b"]) == expected


def test_tsv_errors(tmp_path):
    path = tmp_path / "a.tsv"
    for content, reason in (
        (b"", "no column id; found "),
        (b"a\tb\n", "no column id; found a, b"),
        (b"id\tb\n1\t2\n1\n", "a.tsv, line 3: 2 values are expected, got 1"),
        (b"id\n\xff", "cannot be read as UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason):
            manifests.read_tsv(path, ["id"])
    with pytest.raises(InputError, match="b.tsv: there is no such file; found a.tsv"):
        manifests.read_tsv(tmp_path / "b.tsv", ["id"])


class TestManifest:
    """What is read when it is used is what the file says."""

    @pytest.fixture
    def path(self, tmp_path):
        """Quotes, line breaks, blank lines, letters of many bytes, columns missing at the end."""
        path = tmp_path / "dev.csv"
        content = (
            "wav,ID,wrd,duration,spk_id,start,stop,note\r\n"
            'é.wav,a-1,"GOOD, ""MORNING""",0.5,s,,,\r\n'
            "\r\n"
            'b.wav, a-2, "TWO\r\nLINES\n\nOR FOUR",1.5,s,0.25,1.75,x\r\n'
            "c.wav,a-3,早\u2028上\u0085好 😀,2,s\n"
            "\n"
            "d.wav,a-4, ,1e1,s,,3,"
        )
        path.write_bytes(content.encode())
        return path

    @pytest.fixture
    def expected(self, path):
        """By the csv module, of the whole file."""
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
        for row in rows:
            for name in ("duration", "start", "stop"):
                row[name] = float(row[name]) if row[name] else None
        assert [len(rows), rows[1]["wrd"]] == [4, "TWO\r\nLINES\n\nOR FOUR"]
        return rows

    def test_rows(self, path, expected):
        manifest = manifests.read(path)
        assert len(manifest) == 4 and list(manifest) == expected
        assert [manifest[i] for i in (2, -4, 1, np.int64(-1))] == [
            expected[i] for i in (2, 0, 1, 3)
        ]
        assert manifest.durations.tolist() == [0.5, 1.5, 2, 10]
        assert manifest.columns == tuple(expected[0]) and manifest.path == path
        for i in (4, -5):
            with pytest.raises(IndexError):
                manifest[i]

    def test_equal(self, path, expected):
        manifest = manifests.read(path)
        assert manifest == manifests.read(path) == expected
        assert manifest != expected[:-1] and manifest != "dev.csv"
        expected[2]["spk_id"] = "t"
        assert manifest != expected

    @pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
    def test_line_ends(self, tmp_path, ends):
        path = tmp_path / "dev.csv"
        lines = ["ID,duration,wav,spk_id,wrd", "a,1,é,c,d", '"b",2,b,c,"d', 'e"', "c,3,b,c,d", ""]
        path.write_bytes(ends.join(lines).encode())
        manifest = manifests.read(path)
        assert [(row["ID"], row["wrd"]) for row in manifest] == [
            *(("a", "d"), ("b", f"d{ends}e"), ("c", "d"))
        ]

    def test_any_rows(self, tmp_path):
        """Of random text, what is read at places in the file is what the csv module reads of it."""
        path, draw = tmp_path / "dev.csv", random.Random(0)
        for number in range(200):
            texts = ["".join(draw.choices('ab ,"\n\ré😀', k=draw.randrange(9))) for _ in range(5)]
            with open(path, "w", newline="", encoding="utf-8") as file:
                file.write("ID,wrd,duration,wav,spk_id" + draw.choice(["\n", "\r\n", "\n\n"]))
                quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
                # With "\r\n" at the ends of lines, the csv module quotes both kinds of line breaks.
                table = csv.writer(SimpleNamespace(write=str), quoting=quoting)
                for text in texts:
                    line = table.writerow(["a", text, 0.5, text, "s"])
                    file.write(line[:-2] + draw.choice(["\n", "\r\n", "\r", "\n\n"]))
            with open(path, newline="", encoding="utf-8") as file:
                expected = list(csv.DictReader(file, skipinitialspace=True))
            found = [row | {"duration": str(row["duration"])} for row in manifests.read(path)]
            assert found == expected, number

    @pytest.mark.parametrize(
        "wanted, indices",
        [
            ([2, 0, 2], [2, 0, 2]),
            (np.array([-1]), [3]),
            ([], []),
            (slice(None, None, -1), [3, 2, 1, 0]),
            (np.array([True, False, False, True]), [0, 3]),
            (np.zeros(4, bool), []),
        ],
    )
    def test_select(self, path, expected, wanted, indices):
        manifest = manifests.read(path).select(wanted)
        assert manifest == [expected[i] for i in indices]
        assert manifest.durations.tolist() == [expected[i]["duration"] for i in indices]
        assert len(manifest) == len(indices)

    def test_slices_of_slices(self, path, expected):
        assert manifests.read(path)[1:][::-1][1:] == expected[2:0:-1]

    def test_save(self, path, expected, tmp_path):
        manifest = manifests.read(path).select([3, 1, 0])
        manifest.save(tmp_path / "new" / "some.csv")
        assert manifests.read(tmp_path / "new" / "some.csv") == [expected[i] for i in (3, 1, 0)]
        content = path.read_bytes()
        manifests.read(path)[:2].save(tmp_path / "new" / "some.csv")
        first_two = content[: content.index(b"c.wav")].replace(b"\r\n\r\n", b"\r\n")
        assert (tmp_path / "new" / "some.csv").read_bytes() == first_two
        with pytest.raises(InputError, match="dev.csv/a.csv: cannot be written"):
            manifest.save(path / "a.csv")

    def test_save_on_itself(self, path, expected):
        manifest = manifests.read(path)
        manifest[1:].save(path)
        assert manifests.read(path) == expected[1:] and manifest == expected

    @pytest.mark.parametrize("context", ["fork", "spawn"])
    @pytest.mark.parametrize("touched", [False, True])
    def test_other_processes(self, path, expected, context, touched):
        manifest = manifests.read(path)[1:]
        if touched:
            manifest[0]
        with ProcessPoolExecutor(2, multiprocessing.get_context(context)) as pool:
            assert list(pool.map(manifest.__getitem__, [0, 1, 2, 0])) == [
                *expected[1:],
                expected[1],
            ]

    def test_pickle_is_small(self, path, expected):
        manifest = manifests.read(path)
        content = pickle.dumps(manifest)
        assert b"a-2" not in content and b"GOOD" not in content
        assert pickle.loads(content) == expected

    def test_closes_its_file(self, path):
        manifest = manifests.read(path)
        parts = [manifest[i:] for i in range(3)]
        opened = len(os.listdir("/proc/self/fd"))
        for part in parts:
            part[0]
        assert len(os.listdir("/proc/self/fd")) == opened + 1
        del manifest, parts, part
        assert len(os.listdir("/proc/self/fd")) == opened

    @pytest.mark.parametrize("touched", [False, True])
    @pytest.mark.parametrize("change", ["grow", "shrink", "touch", "remove", "replace"])
    def test_changed_file(self, path, expected, touched, change):
        manifest = manifests.read(path)
        if touched:
            manifest[0]
        status, content = path.stat(), path.read_bytes()
        if change in ("grow", "shrink"):
            path.write_bytes(content + b"x" if change == "grow" else content[:-1])
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif change == "touch":
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        else:
            path.unlink()
            if change == "replace":
                path.write_bytes(content[::-1])
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        if touched and change in ("remove", "replace"):  # the file that was opened is unharmed
            assert manifest == expected
            return
        with pytest.raises(InputError, match="dev.csv: ") as error:
            manifest[1]
        assert ("changed while it was in use" in str(error.value)) == (change != "remove")
        assert "\n" not in str(error.value)

    def test_another_working_directory(self, path, expected, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        manifest = manifests.read("dev.csv")
        monkeypatch.chdir("/")
        assert manifest == expected
