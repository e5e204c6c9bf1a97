import logging
import shutil

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import librispeech, manifests
from summarymixing.errors import InputError


def add_chapter(split, speaker, chapter, texts):
    folder = split / speaker / chapter
    folder.mkdir(parents=True)
    lines = []
    for i, text in enumerate(texts):
        id_ = f"{speaker}-{chapter}-{i:04}"
        soundfile.write(folder / f"{id_}.flac", np.zeros(8000 + i), 16000)
        lines.append(f"{id_} {text}".strip() + "\n")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "LibriSpeech"
    for split, speaker in (("train-a", "11"), ("train-b", "12"), ("dev", "21"), ("test-x", "31")):
        add_chapter(root / split, speaker, "7", ["ONE TWO", "THREE", "IT'S FOUR"])
        add_chapter(root / split, speaker, "8", ["FIVE"])
    (root / "SPEAKERS.TXT").write_text("")
    return root


def prepare(folder, tmp_path, train=("train-a", "train-b"), valid=("dev",), test=("test-x",)):
    return librispeech.prepare(folder, tmp_path / "manifests", train, valid, test)


def test_manifests(corpus, tmp_path):
    paths = prepare(corpus, tmp_path)
    assert list(paths) == ["train", "valid", "test-x"]
    assert paths["test-x"] == str(tmp_path / "manifests" / "test-x.csv")
    rows = {name: manifests.read(path) for name, path in paths.items()}
    assert {name: len(table) for name, table in rows.items()} == {
        "train": 8,
        "valid": 4,
        "test-x": 4,
    }
    third = rows["test-x"][2]
    assert third == {
        "ID": "31-7-0002",
        "duration": 8002 / 16000,
        "wav": str(corpus / "test-x" / "31" / "7" / "31-7-0002.flac"),
        "spk_id": "31",
        "wrd": "IT'S FOUR",
    }
    assert {row["spk_id"] for row in rows["train"]} == {"11", "12"}


def test_parent_folder_and_one_split_as_str(corpus, tmp_path):
    paths = prepare(corpus.parent, tmp_path, "train-a", "dev", [])
    assert list(paths) == ["train", "valid"]
    assert len(manifests.read(paths["train"])) == 4


def test_second_run(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        first = prepare(corpus, tmp_path)
        assert "skipped" not in caplog.text
        assert prepare(corpus, tmp_path) == first
        assert caplog.text.count("skipped") == 1
        trans = corpus / "train-a" / "11" / "8" / "11-8.trans.txt"
        trans.write_text("11-8-0000 CHANGED\n")
        rows = manifests.read(prepare(corpus, tmp_path)["train"])
        assert caplog.text.count("skipped") == 1
    assert [row["wrd"] for row in rows if row["ID"] == "11-8-0000"] == ["CHANGED"]


def test_audio_changed_under_the_manifests(corpus, tmp_path):
    prepare(corpus, tmp_path)
    wav = corpus / "dev" / "21" / "7" / "21-7-0001.flac"
    wav.write_bytes(wav.read_bytes()[:-3])
    with pytest.raises(InputError, match="21-7-0001.flac: the audio file is truncated"):
        prepare(corpus, tmp_path)


def test_training_drops(corpus, tmp_path):
    folder = corpus / "train-a" / "11" / "7"
    (folder / "11-7-0000.flac").unlink()
    (folder / "11-7-0001.flac").write_bytes(b"")
    shutil.copy(folder / "11-7-0002.flac", folder / "11-7-0009.flac")
    paths = prepare(corpus, tmp_path)
    assert len(manifests.read(paths["train"])) == 6
    dropped = (tmp_path / "manifests" / "train.dropped.csv").read_text()
    for id_, reason in (
        ("0000", "no such"),
        ("0001", "0 bytes"),
        ("0009", "there is no transcript"),
    ):
        assert any(f"11-7-{id_}," in line and reason in line for line in dropped.splitlines())


@pytest.mark.parametrize("split, name", [("dev", "21"), ("test-x", "31")])
@pytest.mark.parametrize("case", ["missing", "no line", "text as audio"])
def test_evaluation_raises(corpus, tmp_path, split, name, case):
    wav = corpus / split / name / "7" / f"{name}-7-0000.flac"
    if case == "missing":
        wav.unlink()
    elif case == "no line":
        wav = shutil.copy(wav, wav.with_name(f"{name}-7-0009.flac"))
    else:
        wav.write_text("not audio")
    with pytest.raises(InputError, match=str(wav)):
        prepare(corpus, tmp_path)


def test_empty_transcripts(corpus, tmp_path):
    for split, speaker in (("train-a", "13"), ("dev", "23")):
        add_chapter(corpus / split, speaker, "1", ["", "WORD"])
    paths = prepare(corpus, tmp_path)
    assert "13-1-0000" not in {row["ID"] for row in manifests.read(paths["train"])}
    texts = {row["ID"]: row["wrd"] for row in manifests.read(paths["valid"])}
    assert texts["23-1-0000"] == ""


def test_folder_errors(corpus, tmp_path):
    with pytest.raises(InputError, match="nowhere: the data folder does not exist"):
        prepare(tmp_path / "nowhere", tmp_path)
    with pytest.raises(InputError, match="SPEAKERS.TXT: the data folder is not a folder"):
        prepare(corpus / "SPEAKERS.TXT", tmp_path)
    with pytest.raises(
        InputError, match="a folder train-c, which is not there; found SPEAKERS.TXT, dev, test-x, t"
    ):
        prepare(corpus, tmp_path, train=["train-a", "train-c"])
    (corpus / "empty").mkdir()
    with pytest.raises(InputError, match="empty: the split has no .trans.txt"):
        prepare(corpus, tmp_path, valid=["empty"])
    with pytest.raises(InputError, match="train_splits is empty"):
        prepare(corpus, tmp_path, train=[])
    with pytest.raises(InputError, match="test set 'valid'"):
        prepare(corpus, tmp_path, test=["valid"])


def test_duplicate_ids(corpus, tmp_path):
    trans = corpus / "dev" / "21" / "7" / "21-7.trans.txt"
    trans.write_text(trans.read_text() + "21-7-0001 AGAIN\n")
    with pytest.raises(InputError, match="21-7-0001 is there twice"):
        prepare(corpus, tmp_path)
    with pytest.raises(InputError, match="11-7-0000 is there twice"):
        prepare(corpus, tmp_path, train=["train-a", "train-a"])


def test_undecodable_transcript(corpus, tmp_path):
    (corpus / "dev" / "21" / "7" / "21-7.trans.txt").write_bytes(b"21-7-0000 \xff\n")
    with pytest.raises(InputError, match="21-7.trans.txt: cannot be read as UTF-8"):
        prepare(corpus, tmp_path)


def test_the_same_utterances_in_two_formats(corpus, tmp_path):
    for flac in corpus.rglob("*.flac"):
        soundfile.write(flac.with_suffix(".wav"), *soundfile.read(flac))
    paths = prepare(corpus, tmp_path)
    assert {name: len(manifests.read(path)) for name, path in paths.items()} == {
        "train": 8,
        "valid": 4,
        "test-x": 4,
    }
