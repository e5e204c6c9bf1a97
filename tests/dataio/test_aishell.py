import logging
import shutil

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import aishell, manifests
from summarymixing.errors import InputError

SPEAKERS = {"train": ("S0002", "S0003"), "dev": ("S0724",), "test": ("S0764",)}
TEXTS = ("而 对 楼市 成交 抑制 作用 最 大 的 限 购", "也 成为 地方 政府 的 眼中 钉")


def id_of(speaker, number):
    return f"BAC009{speaker}W012{number}"


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "data_aishell"
    lines = []
    for split, speakers in SPEAKERS.items():
        for speaker in speakers:
            folder = root / "wav" / split / speaker
            folder.mkdir(parents=True)
            for i, text in enumerate((*TEXTS, None)):  # the last of each has no transcript
                soundfile.write(folder / f"{id_of(speaker, i)}.wav", np.zeros(4000 + i), 16000)
                if text:
                    lines.append(f"{id_of(speaker, i)} {text}\n")
    (root / "transcript").mkdir()
    transcript = root / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.write_text("".join(lines), encoding="utf-8")
    return root


def prepare(folder, tmp_path, **options):
    return aishell.prepare(folder, tmp_path / "manifests", **options)


def wav_of(corpus, split, number):
    speaker = SPEAKERS[split][0]
    return corpus / "wav" / split / speaker / f"{id_of(speaker, number)}.wav"


def edit(corpus, old, new):
    path = corpus / "transcript" / "aishell_transcript_v0.8.txt"
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("keep_spaces", [False, True])
def test_manifests(corpus, tmp_path, keep_spaces):
    paths = prepare(corpus, tmp_path, keep_spaces=keep_spaces)
    assert list(paths) == ["train", "valid", "test"]
    for name, (split, speakers) in zip(paths, SPEAKERS.items()):
        rows = manifests.read(paths[name])
        ids = [(speaker, i) for speaker in speakers for i in range(2)]
        assert [row["ID"] for row in rows] == [id_of(*id_) for id_ in ids]
        assert [row["spk_id"] for row in rows] == [speaker for speaker, _ in ids]
        assert rows[1]["wav"] == str(wav_of(corpus, split, 1))
        assert rows[1]["duration"] == 4001 / 16000
        expected = [text if keep_spaces else text.replace(" ", "") for text in TEXTS]
        assert [row["wrd"] for row in rows] == expected * len(speakers)


def test_folder_above(corpus, tmp_path):
    expected = manifests.read(prepare(corpus, tmp_path)["test"])
    assert manifests.read(prepare(tmp_path, tmp_path)["test"]) == expected


def test_recordings_without_transcript_are_named(corpus, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        prepare(corpus, tmp_path)
    for name, split in (("valid", "dev"), ("test", "test")):
        id_ = id_of(SPEAKERS[split][0], 2)
        assert f"{name}: 1 of 3 utterances left out, they have no transcript: {id_}" in caplog.text
    assert "train: 2 of 6 utterances left out" in caplog.text
    dropped = (tmp_path / "manifests" / "train.dropped.csv").read_text()
    for speaker in SPEAKERS["train"]:
        assert id_of(speaker, 2) in dropped


def test_a_transcript_that_is_cut(corpus, tmp_path):
    for i in range(3, 8):
        shutil.copy(wav_of(corpus, "test", 0), wav_of(corpus, "test", i))
    with pytest.raises(
        InputError, match="^test: 6 of 8 recordings have no transcript in .*not whole"
    ):
        prepare(corpus, tmp_path)


def test_one_in_a_hundred_may_lack_a_transcript(corpus, tmp_path, caplog):
    wav, speaker = wav_of(corpus, "test", 0), SPEAKERS["test"][0]
    for i in range(597):  # besides the three that are there, one of which has none
        wav.with_stem(f"BAC009{speaker}X{i:03}").hardlink_to(wav)
    with open(corpus / "transcript" / "aishell_transcript_v0.8.txt", "a") as file:
        file.writelines(f"BAC009{speaker}X{i:03} 好\n" for i in range(5, 597))
    with caplog.at_level(logging.WARNING):
        assert len(manifests.read(prepare(corpus, tmp_path)["test"])) == 594
    assert "test: 6 of 600 utterances left out" in caplog.text
    wav.with_stem(f"BAC009{speaker}Y").hardlink_to(wav)
    with pytest.raises(InputError, match="^test: 7 of 601 recordings have no transcript in"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize("split, speaker", [("test", "S0002"), ("train", "S0003")])
def test_an_id_in_two_folders(corpus, tmp_path, split, speaker):
    first = wav_of(corpus, "train", 0)
    second = corpus / "wav" / split / speaker / first.name
    second.parent.mkdir(exist_ok=True)
    shutil.copy(first, second)
    with pytest.raises(InputError, match=f"{second}: .*{first.stem} is .* twice, first in {first}"):
        prepare(corpus, tmp_path)


def test_converted_audio(corpus, tmp_path):
    wav = wav_of(corpus, "test", 1)
    soundfile.write(wav.with_suffix(".flac"), np.zeros(4001), 16000)
    assert manifests.read(prepare(corpus, tmp_path)["test"])[1]["wav"] == str(wav)
    wav.unlink()
    row = manifests.read(prepare(corpus, tmp_path)["test"])[1]
    assert row["wav"] == str(wav.with_suffix(".flac"))


def test_second_run(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        first = prepare(corpus, tmp_path)
        assert prepare(corpus, tmp_path) == first
        assert caplog.text.count("skipped") == 1
        edit(corpus, "BAC009S0764W0120 而 对", "BAC009S0764W0120 面 对")
        assert manifests.read(prepare(corpus, tmp_path)["test"])[0]["wrd"].startswith("面对")
        soundfile.write(wav_of(corpus, "dev", 0), np.zeros(8000), 16000)
        assert manifests.read(prepare(corpus, tmp_path)["valid"])[0]["duration"] == 0.5
        spaced = manifests.read(prepare(corpus, tmp_path, keep_spaces=True)["test"])
        assert spaced[0]["wrd"].startswith("面 对")
        assert caplog.text.count("skipped") == 1


def test_bad_training_audio_is_dropped(corpus, tmp_path):
    wav_of(corpus, "train", 0).unlink()
    wav_of(corpus, "train", 1).write_bytes(wav_of(corpus, "train", 1).read_bytes()[:-2])
    assert len(manifests.read(prepare(corpus, tmp_path)["train"])) == 2
    dropped = (tmp_path / "manifests" / "train.dropped.csv").read_text()
    assert f"{wav_of(corpus, 'train', 0)}: there is no such" in dropped
    assert f"{wav_of(corpus, 'train', 1)}: the audio file is truncated" in dropped


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("content, reason", [(None, "no such audio"), (b"text", "not readable")])
def test_bad_evaluation_audio_raises(corpus, tmp_path, split, content, reason):
    wav = wav_of(corpus, split, 1)
    wav.unlink()
    if content:
        wav.write_bytes(content)
    with pytest.raises(InputError, match=f"{wav}: .*{reason}.*1 of 2"):
        prepare(corpus, tmp_path)


def test_speakers_that_are_not_unpacked(corpus, tmp_path):
    shutil.rmtree(wav_of(corpus, "train", 0).parent)
    with pytest.raises(InputError, match="without a folder .*: S0002 .*unpacked"):
        prepare(corpus, tmp_path)
    shutil.rmtree(wav_of(corpus, "dev", 0).parent)
    with pytest.raises(InputError, match="wav/dev: there is no audio; .*unpacked"):
        prepare(corpus, tmp_path)


def test_wrong_layout(corpus, tmp_path):
    with pytest.raises(InputError, match="keep_spaces must be true or false, got 'no'"):
        prepare(corpus, tmp_path, keep_spaces="no")
    edit(corpus, id_of("S0002", 1), id_of("S0002", 0))
    with pytest.raises(InputError, match="v0.8.txt, line 2: BAC009S0002W0120 is there twice"):
        prepare(corpus, tmp_path)
    (corpus / "transcript" / "aishell_transcript_v0.8.txt").write_text("\n")
    with pytest.raises(InputError, match="transcript_v0.8.txt: the file is empty; lines <id> <w"):
        prepare(corpus, tmp_path)
    (corpus / "transcript" / "aishell_transcript_v0.8.txt").unlink()
    with pytest.raises(InputError, match="aishell_transcript_v0.8.txt: there is no such file"):
        prepare(corpus, tmp_path)
    (corpus / "wav" / "dev").rename(corpus / "wav" / "valid")
    with pytest.raises(InputError, match="wav/dev, which is not there; found test, train, valid"):
        prepare(corpus, tmp_path)
    (corpus / "transcript").rmdir()
    with pytest.raises(InputError, match="a folder transcript, which is not there; found wav"):
        prepare(corpus, tmp_path)
    with pytest.raises(InputError, match="nowhere: the data folder does not exist"):
        prepare(tmp_path / "nowhere", tmp_path)
