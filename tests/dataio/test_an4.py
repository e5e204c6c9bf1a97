import logging

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import an4, manifests
from summarymixing.errors import InputError

SPEAKERS = {"fash": ".flac", "mblb": ".wav", "mema": ".sph"}


def write_audio(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".sph":
        header = (
            f"NIST_1A\n   1024\nsample_count -i {len(samples)}\nsample_n_bytes -i 2\n"
            "channel_count -i 1\nsample_byte_format -s2 01\nsample_rate -i 16000\nend_head\n"
        )
        path.write_bytes(header.encode().ljust(1024, b"\0") + samples.astype("<i2").tobytes())
    else:
        soundfile.write(path, samples, 16000)


def add_part(root, part, speakers, line="<s> {} </s> ({})"):
    (root / "etc").mkdir(parents=True, exist_ok=True)
    folder = "an4_clstk" if part == "train" else "an4test_clstk"
    fileids, lines = [], []
    for speaker, suffix in speakers.items():
        for i, text in enumerate(("YES", "U M N Y H SIX", "RUBOUT")):
            name = f"an{i}-{speaker}-b"
            fileids.append(f"{folder}/{speaker}/{name}\n")
            lines.append(line.format(text, name) + "\n")
            write_audio(root / "wav" / folder / speaker / (name + suffix), np.zeros(4000 + i))
    (root / "etc" / f"an4_{part}.fileids").write_text("".join(fileids))
    (root / "etc" / f"an4_{part}.transcription").write_text("".join(lines))


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "an4"
    add_part(root, "train", SPEAKERS)
    return root


def prepare(folder, tmp_path, valid_speakers=("mema",)):
    return an4.prepare(folder, tmp_path / "manifests", valid_speakers)


def edit(path, old, new):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


def test_without_test_part(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        paths = prepare(corpus, tmp_path)
    assert list(paths) == ["train", "valid"]
    assert sum("no test part" in message for message in caplog.messages) == 1
    train, valid = (manifests.read(path) for path in paths.values())
    assert {row["spk_id"] for row in train} == {"fash", "mblb"}
    assert valid[1] == {
        "ID": "an1-mema-b",
        "duration": 4001 / 16000,
        "wav": str(corpus / "wav" / "an4_clstk" / "mema" / "an1-mema-b.sph"),
        "spk_id": "mema",
        "wrd": "U M N Y H SIX",
    }


@pytest.mark.parametrize("line", ["{} ({})", " {}  ({})", "<s> {} </s> ({})"])
def test_with_test_part(corpus, tmp_path, line):
    add_part(corpus, "test", {"fcaw": ".wav"}, line)
    paths = prepare(corpus.parent, tmp_path)  # the extra an4/ folder is accepted
    assert list(paths) == ["train", "valid", "test"]
    rows = manifests.read(paths["test"])
    assert [row["wrd"] for row in rows] == ["YES", "U M N Y H SIX", "RUBOUT"]


def test_test_part_added_later(corpus, tmp_path):
    assert "test" not in prepare(corpus, tmp_path)
    add_part(corpus, "test", {"fcaw": ".wav"})
    assert len(manifests.read(prepare(corpus, tmp_path)["test"])) == 3


def test_second_run(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert prepare(corpus, tmp_path) == prepare(corpus, tmp_path)
        assert caplog.text.count("skipped") == 1
        valid = manifests.read(prepare(corpus, tmp_path, ["fash"])["valid"])
    assert {row["spk_id"] for row in valid} == {"fash"}


def test_bad_training_audio_is_dropped(corpus, tmp_path):
    wav = corpus / "wav" / "an4_clstk"
    (wav / "fash" / "an0-fash-b.flac").unlink()
    cut = wav / "mblb" / "an1-mblb-b.wav"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert len(manifests.read(prepare(corpus, tmp_path)["train"])) == 4
    dropped = (tmp_path / "manifests" / "train.dropped.csv").read_text()
    assert "an0-fash-b{.flac,.wav,.sph}: there is no such" in dropped
    assert "an1-mblb-b.wav: the audio file is truncated" in dropped


@pytest.mark.parametrize("part, speaker", [("an4_clstk", "mema"), ("an4test_clstk", "fcaw")])
def test_bad_evaluation_audio_raises(corpus, tmp_path, part, speaker):
    add_part(corpus, "test", {"fcaw": ".sph"})
    wav = corpus / "wav" / part / speaker / f"an1-{speaker}-b.sph"
    wav.write_bytes(wav.read_bytes()[:-2])
    with pytest.raises(InputError, match=f"{wav}: the audio file is truncated"):
        prepare(corpus, tmp_path)


def test_lists_that_disagree(corpus, tmp_path):
    transcription = corpus / "etc" / "an4_train.transcription"
    edit(transcription, "<s> YES </s> (an0-mblb-b)\n", "")
    with pytest.raises(InputError, match="an4_train.transcription: no line for an0-mblb-b"):
        prepare(corpus, tmp_path)
    edit(corpus / "etc" / "an4_train.fileids", "an4_clstk/mblb/an0-mblb-b\n", "")
    prepare(corpus, tmp_path)
    edit(corpus / "etc" / "an4_train.fileids", "an4_clstk/mblb/an1-mblb-b\n", "")
    with pytest.raises(InputError, match="an4_train.fileids: no line for an1-mblb-b"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("an4_train.transcription", "(an0-mblb-b)", "", "line 4: got .*is expected"),
        ("an4_train.transcription", "(an0-mblb-b)", "(an1-mblb-b)", "line 5: an1-mblb-b is there"),
        ("an4_train.fileids", "an0-mblb-b", "an1-mblb-b", "there twice: an1-mblb-b"),
    ],
)
def test_bad_lines(corpus, tmp_path, name, old, new, message):
    edit(corpus / "etc" / name, old, new)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        prepare(corpus, tmp_path)


def test_speaker_errors(corpus, tmp_path):
    with pytest.raises(InputError, match="valid speaker nobody .*speakers are fash, mblb, mema"):
        prepare(corpus, tmp_path, ["mema", "nobody"])
    with pytest.raises(InputError, match="every speaker"):
        prepare(corpus, tmp_path, list(SPEAKERS))
    with pytest.raises(InputError, match="valid_speakers is empty"):
        prepare(corpus, tmp_path, [])


def test_folder_errors(corpus, tmp_path):
    with pytest.raises(InputError, match="nowhere: the data folder does not exist"):
        prepare(tmp_path / "nowhere", tmp_path)
    (corpus / "wav").rename(corpus / "audio")
    with pytest.raises(InputError, match="a folder wav, which is not there; found audio, etc"):
        prepare(corpus, tmp_path)
    (corpus / "audio").rename(corpus / "wav")
    (corpus / "etc" / "an4_train.transcription").unlink()
    with pytest.raises(InputError, match="an4_train.transcription: there is no such file"):
        prepare(corpus, tmp_path)


def test_public_corpus(an4_folder, tmp_path):
    paths = an4.prepare(an4_folder, tmp_path)
    train, valid = manifests.read(paths["train"]), manifests.read(paths["valid"])
    assert (len(train), len(valid)) == (848, 100)
    speakers = {row["spk_id"] for row in [*train, *valid]}
    assert len(speakers) == 74
    assert sorted(speakers)[:65:9] == list(an4.VALID_SPEAKERS)
    assert {row["spk_id"] for row in valid} == set(an4.VALID_SPEAKERS)
    assert all(row["wrd"] and "<" not in row["wrd"] for row in [*train, *valid])
    assert not (tmp_path / "train.dropped.csv").exists()
    assert ("test" in paths) == (an4_folder / "etc" / "an4_test.fileids").exists()
