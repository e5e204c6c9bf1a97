import logging
import shutil

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import manifests, voxpopuli
from summarymixing.errors import InputError

HEADER = "id raw_text normalized_text speaker_id split gender is_gold_transcript accent".split()
# As in the real data: a quotation mark is a character like others, and need not be closed.
TEXTS = (
    ("\"Mr President, it's 50%", "mr president it's fifty percent"),
    ('He said "no", didn\'t he?', "he said no didn't he"),
    ("One\u2028sentence\x85or \u201ctwo\u201d.\xa0", "one sentence or two"),
    ('"', "that is all"),
)


def id_of(split, number, language="en"):
    return f"20180703-0900-PLENARY-15-{language}_20180703-17:15:07_{split}{number}"


def write_audio(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    # An even number has Vorbis, an odd one Opus: both are called .ogg.
    subtype = ("VORBIS", "OPUS")[frames % 2] if path.suffix == ".ogg" else None
    soundfile.write(path, np.zeros(frames), 16000, subtype=subtype)


def make_corpus(folder, language="en", audio="2018/{id}.ogg"):
    for split in ("train", "dev", "test"):
        rows = [HEADER]
        for i, (raw, text) in enumerate(TEXTS):
            id_ = id_of(split, i, language)
            speaker = "None" if i == 3 else f"2{i}"
            rows.append((id_, raw, text, speaker, split, "female", "False", "None"))
            write_audio(folder / audio.format(id=id_, split=split), 8000 + i)
        lines = "".join("\t".join(row) + "\n" for row in rows)
        (folder / f"asr_{split}.tsv").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "root" / "transcribed_data" / "en")


def prepare(folder, tmp_path, language="en"):
    return voxpopuli.prepare(folder, tmp_path / "manifests", language)


def audio_of(corpus, split, number):
    return corpus / "2018" / f"{id_of(split, number)}.ogg"


def edit(corpus, split, old, new):
    path = corpus / f"asr_{split}.tsv"
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    return path


def test_manifests(corpus, tmp_path):
    paths = prepare(corpus, tmp_path)
    assert list(paths) == ["train", "valid", "test"]
    assert paths["valid"] == str(tmp_path / "manifests" / "valid.csv")
    for name, split in zip(paths, ("train", "dev", "test")):
        rows = manifests.read(paths[name])
        assert [row["wrd"] for row in rows] == [text for _, text in TEXTS]
        assert [row["spk_id"] for row in rows] == ["20", "21", "22", "None"]
        assert [row["ID"] for row in rows] == [id_of(split, i) for i in range(4)]
        assert [row["wav"] for row in rows] == [str(audio_of(corpus, split, i)) for i in range(4)]
        assert [row["duration"] for row in rows] == [(8000 + i) / 16000 for i in range(4)]


def test_folders_above(corpus, tmp_path):
    make_corpus(corpus.parent / "de", "de")
    expected = manifests.read(prepare(corpus, tmp_path)["test"])
    for folder in (corpus.parent, corpus.parent.parent):
        assert manifests.read(prepare(folder, tmp_path)["test"]) == expected
    rows = manifests.read(prepare(corpus.parent.parent, tmp_path, "de")["test"])
    assert {row["ID"] for row in rows} == {id_of("test", i, "de") for i in range(4)}


@pytest.mark.parametrize("audio", ["{split}/{split}_part_0/{id}.wav", "{split}_part_0/{id}.flac"])
def test_hugging_face_layout(tmp_path, audio):
    folder = make_corpus(tmp_path / "hf" / "data" / "en", "en", audio)
    rows = manifests.read(prepare(tmp_path / "hf", tmp_path)["valid"])
    assert len(rows) == 4
    assert rows[0]["wav"] == str(folder / audio.format(split="dev", id=id_of("dev", 0)))


def test_other_columns_and_line_ends(corpus, tmp_path):
    for split in ("train", "dev", "test"):
        path = corpus / f"asr_{split}.tsv"
        lines = path.read_text(encoding="utf-8").split("\n")
        # The last two columns need not be there; and somebody's editor may write \r\n.
        lines = ["\t".join(line.split("\t")[:6]) for line in lines]
        path.write_text("\r\n".join(lines), encoding="utf-8", newline="")
    assert [row["wrd"] for row in manifests.read(prepare(corpus, tmp_path)["train"])] == [
        text for _, text in TEXTS
    ]


def test_second_run(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        first = prepare(corpus, tmp_path)
        assert "skipped" not in caplog.text
        assert prepare(corpus, tmp_path) == first
        assert caplog.text.count("skipped") == 1
        edit(corpus, "test", "that is all", "changed")
        assert manifests.read(prepare(corpus, tmp_path)["test"])[3]["wrd"] == "changed"
        write_audio(audio_of(corpus, "train", 0), 4000)
        assert manifests.read(prepare(corpus, tmp_path)["train"])[0]["duration"] == 0.25
        assert caplog.text.count("skipped") == 1


@pytest.mark.parametrize("split, name", [("train", "train"), ("dev", "valid"), ("test", "test")])
def test_empty_texts_are_left_out(corpus, tmp_path, caplog, split, name):
    edit(corpus, split, "\tthat is all\t", "\t\t")
    edit(corpus, split, "\the said no didn't he\t", "\t \t")
    with caplog.at_level(logging.WARNING):
        rows = manifests.read(prepare(corpus, tmp_path)[name])
    assert [row["ID"] for row in rows] == [id_of(split, 0), id_of(split, 2)]
    assert all(id_of(split, i) in caplog.text for i in (1, 3))
    assert f"{name}: 2 of 4 utterances left out" in caplog.text


def test_bad_training_audio_is_dropped(corpus, tmp_path):
    audio_of(corpus, "train", 0).unlink()
    audio_of(corpus, "train", 1).write_bytes(b"")
    audio_of(corpus, "train", 2).write_text("not audio")
    assert len(manifests.read(prepare(corpus, tmp_path)["train"])) == 1
    dropped = (tmp_path / "manifests" / "train.dropped.csv").read_text().splitlines()
    for line, reason in zip(dropped[1:], ("{.ogg,.wav,.flac}: there is no", "0 bytes", "readable")):
        assert reason in line


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("content, reason", [(None, "no such audio"), (b"text", "not readable")])
def test_bad_evaluation_audio_raises(corpus, tmp_path, split, content, reason):
    wav = audio_of(corpus, split, 1)
    wav.unlink()
    if content:
        wav.write_bytes(content)
    with pytest.raises(InputError, match=f"{wav.stem}.*{reason}.*1 of 4"):
        prepare(corpus, tmp_path)


def test_no_audio(corpus, tmp_path):
    shutil.rmtree(corpus / "2018")
    with pytest.raises(InputError, match="en: there is no audio .* unpacked"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize("twice_in", ["dev", "test"])
def test_duplicate_ids(corpus, tmp_path, twice_in):
    path = edit(corpus, twice_in, id_of(twice_in, 3), id_of("dev", 1))
    first = corpus / "asr_dev.tsv"
    with pytest.raises(InputError, match=f"{path}, line 5: .*dev1 is there twice.*{first}, line 3"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize("column", ["id", "normalized_text", "speaker_id"])
def test_missing_column(corpus, tmp_path, column):
    edit(corpus, "dev", column, "other")
    with pytest.raises(InputError, match=f"asr_dev.tsv: .* no column {column}; found .*other"):
        prepare(corpus, tmp_path)


def test_bad_tables(corpus, tmp_path):
    edit(corpus, "dev", "he said no", "he\tsaid no")
    with pytest.raises(InputError, match="asr_dev.tsv, line 3: 8 values are expected, got 9"):
        prepare(corpus, tmp_path)
    (corpus / "asr_dev.tsv").write_text("\t".join(HEADER) + "\n\n")
    with pytest.raises(InputError, match="asr_dev.tsv: there is no line"):
        prepare(corpus, tmp_path)
    (corpus / "asr_dev.tsv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="asr_dev.tsv: cannot be read as UTF-8"):
        prepare(corpus, tmp_path)
    (corpus / "asr_dev.tsv").unlink()
    with pytest.raises(InputError, match="asr_dev.tsv: .* found asr_test.tsv, asr_train.tsv"):
        prepare(corpus.parent.parent, tmp_path)


def test_folder_errors(corpus, tmp_path):
    with pytest.raises(InputError, match="nowhere: the data folder does not exist"):
        prepare(tmp_path / "nowhere", tmp_path)
    with pytest.raises(InputError, match="2018: asr_train.tsv, .*transcribed_data/en .*found 2018"):
        prepare(corpus / "2018", tmp_path)
    make_corpus(corpus.parent / "de", "de")
    for folder in (corpus.parent, corpus.parent.parent):
        for language in ("fr", None):
            with pytest.raises(InputError, match=f"no language {language}; found de, en"):
                prepare(folder, tmp_path, language)
    with pytest.raises(InputError, match="de: this folder is of de, not of en"):
        prepare(corpus.parent / "de", tmp_path)
