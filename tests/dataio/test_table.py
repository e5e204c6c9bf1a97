import csv
import json
import logging

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import manifests, table
from summarymixing.errors import InputError

# Texts as they occur: quotation marks, commas, line separators.
TEXTS = ('"Good", she said, morning', "a\u2028b", 'he said "no')
COLUMNS = {"audio_column": "path", "text_column": "said"}


def rows_of(split):
    return [
        {
            "path": f"../audio/{split}-{i}.wav",
            "said": text,
            "utt": f"{split}{i}",
            "who": f"s{i}",
            "seconds": 0.2 + i / 10,
            "set": split,
            "other": 5,
        }
        for i, text in enumerate(TEXTS)
    ]


def write_table(path, rows):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    elif path.suffix == ".tsv":
        lines = [rows[0], *(map(str, row.values()) for row in rows)]
        path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        for i in range(3):
            samples = np.random.default_rng(i).integers(-9999, 9999, 3200 + 1600 * i, np.int16)
            soundfile.write(folder / f"{split}-{i}.wav", samples, 16000)
    return folder


@pytest.fixture(params=[".csv", ".tsv", ".jsonl"])
def suffix(request):
    return request.param


def prepare(path, tmp_path, splits=("train", "dev", "test"), **columns):
    return table.prepare(path, tmp_path / "manifests", *splits, **COLUMNS | columns)


ALL_COLUMNS = {"id_column": "utt", "speaker_column": "who", "duration_column": "seconds"}


@pytest.mark.parametrize("one", [False, True])
def test_manifests(audio, tmp_path, suffix, one, caplog):
    if one:
        path = tmp_path / "tables" / f"all{suffix}"
        rows = [row for split in ("train", "dev", "test", "else") for row in rows_of(split)]
        paths = prepare(write_table(path, rows), tmp_path, split_column="set", **ALL_COLUMNS)
        assert "set puts into no split that is used: 3 of 'else'" in caplog.text
    else:
        for split in ("train", "dev", "test"):
            write_table(tmp_path / "tables" / f"{split}{suffix}", rows_of(split))
        paths = prepare(tmp_path / "tables", tmp_path, **ALL_COLUMNS)
    assert list(paths) == ["train", "valid", "test"]
    for name, split in zip(paths, ("train", "dev", "test")):
        rows = manifests.read(paths[name])
        assert [row["ID"] for row in rows] == [f"{split}{i}" for i in range(3)]
        assert [row["spk_id"] for row in rows] == ["s0", "s1", "s2"]
        assert [row["wav"] for row in rows] == [str(audio / f"{split}-{i}.wav") for i in range(3)]
        assert [row["duration"] for row in rows] == [0.2, 0.3, 0.4]
        assert [row["wrd"] for row in rows] == [" ".join(text.split()) for text in TEXTS]


def test_only_audio_and_text(audio, tmp_path, suffix):
    for split in ("train", "dev"):
        write_table(tmp_path / "tables" / f"{split}{suffix}", rows_of(split))
    rows = manifests.read(prepare(tmp_path / "tables", tmp_path, ("train", "dev", []))["valid"])
    assert rows[2]["ID"] == "../audio/dev-2"
    assert rows[2]["spk_id"] == ""


def test_splits_together_and_absolute_paths(audio, tmp_path):
    for split in ("train", "dev", "test"):
        rows = rows_of(split)
        for row in rows:
            row["path"] = str((audio / row["path"]).resolve())
        write_table(tmp_path / "tables" / f"{split}.csv", rows)
    paths = prepare(tmp_path / "tables", tmp_path, (["train", "dev"], "test", []))
    assert len(manifests.read(paths["train"])) == 6


def test_segments(audio, tmp_path, suffix):
    samples, _ = soundfile.read(audio / "train-2.wav", dtype="float32")
    # The last one ends half a second behind the file, and begins between two samples.
    times = ((0.05, 0.1), (0.15, ""), ("", ""), ("", 0.45), (0.19998, 0.70002))
    ends = ((800, 2400), (2400, 6400), (0, 6400), (0, 6400), (3200, 6400))
    rows = [
        {"path": "../audio/train-2.wav", "said": "a", "from": start, "long": long, "n": i}
        for i, (start, long) in enumerate(times)
    ]
    for split in ("train", "dev"):
        write_table(tmp_path / "tables" / f"{split}{suffix}", rows)
    columns = {"start_column": "from", "duration_column": "long", "id_column": "n"}
    splits = ("train", "dev", [])
    rows = manifests.read(prepare(tmp_path / "tables", tmp_path, splits, **columns)["train"])
    for row, (first, end) in zip(rows, ends, strict=True):
        np.testing.assert_array_equal(manifests.read_audio(row).numpy(), samples[first:end])
    del columns["id_column"]
    same = r"train\..*, line (5|4): .* ../audio/train-2, made of the audio's name, is that of line"
    with pytest.raises(InputError, match=f"{same} .* id_column names a column with ids"):
        prepare(tmp_path / "tables", tmp_path, splits, **columns)


def test_segments_need_no_id(audio, tmp_path):
    rows = [{"path": "../audio/dev-2.wav", "said": "a", "from": i / 10} for i in range(4)]
    path = write_table(tmp_path / "tables" / "dev.jsonl", rows)
    splits = ("dev", "dev", [])
    paths = prepare(path.parent, tmp_path, splits, start_column="from")
    assert manifests.read(paths["valid"])[3]["ID"] == "../audio/dev-2-00000300"


def test_second_run(audio, tmp_path, caplog):
    path = write_table(tmp_path / "tables" / "all.tsv", rows_of("train") + rows_of("dev"))
    run = {"splits": ("train", "dev", []), "split_column": "set"}
    with caplog.at_level(logging.INFO):
        first = prepare(path, tmp_path, **run)
        assert prepare(path, tmp_path, **run) == first
        assert caplog.text.count("skipped") == 1
        path.write_text(path.read_text(encoding="utf-8").replace("morning", "night"), "utf-8")
        assert "night" in manifests.read(prepare(path, tmp_path, **run)["valid"])[0]["wrd"]
        soundfile.write(audio / "dev-0.wav", np.zeros(1600), 16000)
        assert manifests.read(prepare(path, tmp_path, **run)["valid"])[0]["duration"] == 0.1
        other = run | {"splits": (["train", "dev"], "dev", [])}
        assert len(manifests.read(prepare(path, tmp_path, **other)["train"])) == 6
        prepare(path, tmp_path, speaker_column="who", **run)
        assert caplog.text.count("skipped") == 1


def test_bad_training_utterances_are_dropped(audio, tmp_path):
    rows = rows_of("train") + [{**rows_of("train")[0], "utt": f"x{i}"} for i in range(3)]
    (audio / "train-1.wav").unlink()
    rows[3]["said"] = None
    rows[4]["said"] = " "
    rows[5]["seconds"] = 200
    write_table(tmp_path / "tables" / "train.jsonl", rows)
    write_table(tmp_path / "tables" / "dev.jsonl", rows_of("dev"))
    splits = ("train", "dev", [])
    paths = prepare(tmp_path / "tables", tmp_path, splits, **ALL_COLUMNS)
    assert [row["ID"] for row in manifests.read(paths["train"])] == ["train0", "train2"]
    dropped = (tmp_path / "manifests" / "train.dropped.csv").read_text().splitlines()[1:]
    reasons = ("no such audio", "no transcript", "is empty", "200.0 s are stated, the audio has")
    for line, reason in zip(dropped, reasons, strict=True):
        assert reason in line
    rows_dev = rows_of("dev")
    rows_dev[1]["seconds"] = 200
    write_table(tmp_path / "tables" / "dev.jsonl", rows_dev)
    with pytest.raises(InputError, match="dev-1.wav: 200.0 s are stated, .* 1 of 3"):
        prepare(tmp_path / "tables", tmp_path, splits, **ALL_COLUMNS)


def test_a_byte_order_mark(audio, tmp_path, suffix):
    path = write_table(tmp_path / "tables" / f"dev{suffix}", rows_of("dev"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(manifests.read(prepare(path.parent, tmp_path, ("dev", "dev", []))["train"])) == 3


def test_splits_that_are_numbers(audio, tmp_path, suffix):
    rows = [row | {"set": n} for n, row in enumerate(rows_of("dev"))]
    path = write_table(tmp_path / "tables" / f"a{suffix}", rows)
    paths = prepare(path, tmp_path, (0, ["1"], [2]), split_column="set")
    assert [len(manifests.read(paths[name])) for name in ("train", "valid", "2")] == [1, 1, 1]


def test_a_test_split_is_no_path(audio, tmp_path):
    """Its manifest would take the place of the table."""
    for folder in ("tables", "other"):
        path = write_table(tmp_path / folder / "dev.csv", rows_of("dev"))
    content = path.read_bytes()
    for split in (path.with_suffix(""), "../other/dev"):
        with pytest.raises(InputError, match="^test set .*other/dev': a plain file name is expec"):
            prepare(tmp_path / "tables", tmp_path, ("dev", "dev", [str(split)]))
        with pytest.raises(InputError, match="^test set .*other/dev': a plain file name is expec"):
            prepare_files(tmp_path, path, path, {str(split): path})
    assert path.read_bytes() == content


@pytest.mark.parametrize("column", [None, 0, ["path"]])
@pytest.mark.parametrize("role", ["audio", "text"])
def test_what_is_no_column(audio, tmp_path, role, column):
    path = write_table(tmp_path / "tables" / "dev.jsonl", rows_of("dev"))
    with pytest.raises(InputError, match=f"{role}_column must be the name of a column, got "):
        prepare(path.parent, tmp_path, ("dev", "dev", []), **{f"{role}_column": column})


@pytest.mark.parametrize("split_column", [None, "set"])
@pytest.mark.parametrize("folder", [None, ["a"], "", "a\0b.csv"])
def test_what_is_no_data_folder(tmp_path, folder, split_column):
    with pytest.raises(InputError, match="the data folder must be a path, got "):
        prepare(folder, tmp_path, split_column=split_column)


@pytest.mark.parametrize("value", [["a"], {"a": 1}, True])
@pytest.mark.parametrize("role", ["id", "speaker", "split"])
def test_what_is_no_name(audio, tmp_path, role, value):
    rows = [row | {"x": value} for row in rows_of("dev")]
    path = write_table(tmp_path / "tables" / "dev.jsonl", rows)
    with pytest.raises(InputError, match=f"line 1: {role} must be a string or number, got "):
        prepare(
            path if role == "split" else path.parent,
            tmp_path,
            ("dev", "dev", []),
            **{f"{role}_column": "x"},
        )


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "path,text\nb,c\n", "a.csv: there is no column said; found path, text"),
        ("a.csv", "", "a.csv: there is no column path; found nothing"),
        ("a.csv", "path,said\nb\n", "a.csv, line 2: 2 values are expected"),
        ("a.csv", "path,said\nb,c,d\n", "a.csv, line 2: 2 values are expected"),
        ("a.csv", 'path,said\nb,c\nd,"e\n', "a.csv, line 3: quotation marks .* in pairs"),
        ("a.csv", 'path,"said\n', "a.csv, line 1: quotation marks"),
        ("a.csv", "path,said,said\nb,c,d\n", "a.csv: the column said is there more than once"),
        ("a.csv", "path,said\n", "a.csv: there are no rows"),
        ("a.tsv", "path\tsaid\tsaid\nb\tc\td\n", "a.tsv: the column said is there more than once"),
        ("a.jsonl", "\n", "a.jsonl: none of the objects"),
        ("a.csv", "path,said\n,c\n", "a.csv, line 2: an audio file is expected, got ''"),
        ("a.tsv", "path\ttext\nb\tc\n", "a.tsv: there is no column said; found path, text"),
        ("a.tsv", "path\tsaid\nb\n", "a.tsv, line 2: 2 values are expected, got 1"),
        ("a.jsonl", '{"path": "b"}\n', "a.jsonl: none of the objects has the key said"),
        ("a.jsonl", "\n[1]\n", "a.jsonl, line 2: a JSON object is expected, got '.1.'"),
        ("a.jsonl", '{"path": \n', "a.jsonl, line 1: a JSON object is expected"),
        ("a.jsonl", '{"path": 1, "said": "c"}\n', "line 1: an audio file is expected, got 1"),
        ("a.jsonl", '{"path": "b", "said": 1}\n', "line 1: the text must be a string, got 1"),
        (
            "a.jsonl",
            '{"path": "b\\u0000.wav", "said": "c"}\n',
            r"line 1: a value has .* 'b.x00.wav'",
        ),
        ("a.csv", "path,said\nb\0,c\n", r"a.csv, line 2: a value has .* 'b.x00'"),
        ("a.tsv", "path\tsaid\n\nb\tc\0\n", r"a.tsv, line 3: a value has .* 'c.x00'"),
        ("a.csv", f"path,said\nb,{'c' * 200_000}\n", "line 2: .* has more than 131072 characters"),
        ("a.jsonl", '{"path": "b", "said": "\\ud800"}\n', "line 1: a value has a character"),
        ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl, line 1: a JSON object is expected"),
        ("a.jsonl", b"\xff\n", "a.jsonl: cannot be read as UTF-8"),
    ],
)
def test_bad_tables(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, tmp_path, ("a", "a", []))


@pytest.mark.parametrize("value", ["long", "nan", [1], True, False, 1e306, 1e308, 10**400])
@pytest.mark.parametrize("role", ["duration", "start"])
def test_bad_times(audio, tmp_path, role, value):
    rows = [{**rows_of("dev")[0], "seconds": value}]
    write_table(tmp_path / "tables" / "dev.jsonl", rows)
    with pytest.raises(InputError, match=f"line 1: {role} must be a number of seconds, got "):
        columns = {f"{role}_column": "seconds", "id_column": "utt"}
        prepare(tmp_path / "tables", tmp_path, ("dev", "dev", []), **columns)


def test_missing_tables(tmp_path):
    path = write_table(tmp_path / "tables" / "dev.csv", rows_of("dev"))
    for splits in (("train", "dev", []), ("dev", "train", []), ("dev", "dev", ["train-b"])):
        with pytest.raises(
            InputError, match="no table train.*.csv or train.*.jsonl; found dev.csv"
        ):
            prepare(path.parent, tmp_path, splits)
    with pytest.raises(InputError, match="dev.csv: one table of all splits needs a split_column"):
        prepare(path, tmp_path)
    with pytest.raises(InputError, match="the column set has no train; found dev"):
        prepare(path, tmp_path, split_column="set")
    with pytest.raises(InputError, match="tables: a table .* is expected"):
        prepare(path.parent, tmp_path, split_column="set")
    with pytest.raises(InputError, match="no.csv: there is no such table"):
        prepare(path.with_name("no.csv"), tmp_path, split_column="set")
    write_table(path.with_suffix(".jsonl"), rows_of("dev"))
    with pytest.raises(InputError, match="more than one table for dev: dev.csv, dev.jsonl"):
        prepare(path.parent, tmp_path, ("dev", "dev", []))


# A file for each set, wherever it lies


def prepare_files(tmp_path, train, valid, tests=(), **columns):
    return table.prepare_files(tmp_path / "manifests", train, valid, tests, **COLUMNS | columns)


def test_a_file_for_each_set(audio, tmp_path):
    train = write_table(
        tmp_path / "a" / "mine.tsv", [row | {"said": "ja"} for row in rows_of("train")]
    )
    valid = write_table(tmp_path / "b" / "mine.jsonl", rows_of("dev"))
    tests = {"test": write_table(tmp_path / "b" / "t.csv", rows_of("test")), "old": None}
    paths = prepare_files(tmp_path, train, valid, tests, id_column="utt")
    assert list(paths) == ["train", "valid", "test"]
    assert [row["wrd"] for row in manifests.read(paths["train"])] == ["ja"] * 3
    assert [row["ID"] for row in manifests.read(paths["valid"])] == ["dev0", "dev1", "dev2"]
    # A manifest says itself what its columns are, and where its segments begin.
    again = table.prepare_files(tmp_path / "again", paths["train"], paths["valid"])
    assert [*manifests.read(again["valid"])] == [*manifests.read(paths["valid"])]


def test_segments_of_a_manifest_stay(audio, tmp_path):
    rows = [row | {"from": 0.05} for row in rows_of("train")]
    path = write_table(tmp_path / "a" / "t.csv", rows)
    paths = prepare_files(tmp_path, path, path, start_column="from")
    again = table.prepare_files(tmp_path / "again", paths["train"], paths["valid"])
    first, second = (manifests.read(found["train"]) for found in (paths, again))
    assert [*first] == [*second]
    assert first[0]["start"] == pytest.approx(0.05)


def test_a_file_that_changed_is_prepared_again(audio, tmp_path):
    path = write_table(tmp_path / "a" / "t.csv", rows_of("train"))
    prepare_files(tmp_path, path, path)
    write_table(path, [row | {"said": "new words here"} for row in rows_of("train")])
    paths = prepare_files(tmp_path, path, path)
    assert manifests.read(paths["train"])[0]["wrd"] == "new words here"


def test_an_audio_folder(audio, tmp_path):
    rows = [{"file_name": f"train-{i}.wav", "said": text} for i, text in enumerate(TEXTS)]
    write_table(audio / "metadata.csv", rows)
    paths = prepare_files(tmp_path, audio, audio)
    found = manifests.read(paths["train"])
    assert [row["wav"] for row in found] == [str(audio / f"train-{i}.wav") for i in range(3)]


def test_a_saved_data_set(audio, tmp_path):
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    files = [str(audio / f"train-{i}.wav") for i in range(3)]
    content = [{"bytes": open(file, "rb").read(), "path": "x.wav"} for file in files]
    columns = {"path": content, "said": ["eins", "zwei", "drei"]}
    inside = datasets.Dataset.from_dict(columns).cast_column("path", datasets.Audio())
    inside.save_to_disk(tmp_path / "inside")
    columns = {"path": files, "said": ["eins", "zwei", "drei"]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "beside")
    paths = prepare_files(tmp_path, tmp_path / "inside", tmp_path / "beside")
    for inside, beside, file in zip(
        manifests.read(paths["train"]), manifests.read(paths["valid"]), files, strict=True
    ):
        assert inside["wrd"] == beside["wrd"]
        assert beside["wav"] == file != inside["wav"]
        audio_inside = manifests.read_audio(inside, 16000)
        assert (audio_inside == manifests.read_audio(beside, 16000)).all()
    with pytest.raises(InputError, match="no column nothing; found path, said"):
        prepare_files(tmp_path, tmp_path / "inside", tmp_path / "beside", text_column="nothing")


@pytest.mark.parametrize(
    "train, said",
    (
        ("gone.csv", "gone.csv: there is no such table"),
        ("notes.txt", "notes.txt: a table"),
        ("folder", "neither a metadata.csv"),
        (None, "train: a table or a folder is expected, got None"),
        ("a\0.csv", "train: a table or a folder is expected, got "),
    ),
)
def test_what_is_no_table(audio, tmp_path, train, said):
    (tmp_path / "notes.txt").write_text("path,said\n")
    (tmp_path / "folder").mkdir()
    valid = write_table(tmp_path / "a" / "t.csv", rows_of("dev"))
    with pytest.raises(InputError, match=said) as caught:
        prepare_files(tmp_path, train and tmp_path / train, valid)
    assert "\n" not in str(caught.value)
