import logging
import shutil

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import manifests, tedlium
from summarymixing.errors import InputError

RATE = 16000
GAP = "inter_segment_gap 0.00 0.10 <o,,unknown> ignore_time_segment_in_scoring"
# As in the release: speaker, start, stop, label, words.
SEGMENTS = (
    ("0.10 0.52 <o,f0,male> i 'm here and it doesn 't", "i'm here and it doesn't"),
    ("0.52 0.905 <o,f0,male> a(2) <unk> of(3) data <sil> {NOISE}", "a of data"),
    ("0.91 2.004 <o,f0,male> 'cause we said so", "'cause we said so"),  # 4 ms beyond the end
)
TALKS = {"train": ("AaronHuey_2010X", "AimeeMullins_2009P"), "dev": ("Al_2006",), "test": ("B_9",)}


def write_sphere(path, samples, coding="pcm"):
    fields = (
        f"sample_count -i {len(samples)}\nsample_n_bytes -i 2\nchannel_count -i 1\n"
        f"sample_byte_format -s2 10\nsample_rate -i {RATE}\n"
        f"sample_coding -s{len(coding)} {coding}\nend_head\n"
    )
    header = f"NIST_1A\n   1024\n{fields}".encode().ljust(1024, b"\0")
    path.write_bytes(header + samples.astype(">i2").tobytes())


def speech(seed):
    return np.random.default_rng(seed).integers(-9999, 9999, 2 * RATE)


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "TEDLIUM_release2"
    for split, talks in TALKS.items():
        (root / split / "sph").mkdir(parents=True)
        (root / split / "stm").mkdir()
        for i, talk in enumerate(talks):
            write_sphere(root / split / "sph" / f"{talk}.sph", speech(i))
            lines = [";; a comment", f"{talk} 1 {GAP}"]
            lines += [f"{talk} 1 {talk} {line} " for line, _ in SEGMENTS]
            (root / split / "stm" / f"{talk}.stm").write_text("\n".join(lines) + "\n")
    return root


def prepare(folder, tmp_path):
    return tedlium.prepare(folder, tmp_path / "manifests")


def sph_of(corpus, split, number=0):
    return corpus / split / "sph" / f"{TALKS[split][number]}.sph"


def edit(corpus, split, old, new):
    path = corpus / split / "stm" / f"{TALKS[split][0]}.stm"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    return path


def test_manifests(corpus, tmp_path):
    paths = prepare(corpus, tmp_path)
    assert list(paths) == ["train", "valid", "test"]
    for name, (split, talks) in zip(paths, TALKS.items()):
        rows = manifests.read(paths[name])
        assert len(rows) == 3 * len(talks)
        for i, talk in enumerate(talks):
            mine = rows[3 * i : 3 * i + 3]
            assert [row["wrd"] for row in mine] == [text for _, text in SEGMENTS]
            assert {row["spk_id"] for row in mine} == {talk}
            assert {row["wav"] for row in mine} == {str(sph_of(corpus, split, i))}
            assert mine[1]["ID"] == f"{talk}-00000520-00000905"
            for row, (first, end) in zip(mine, ((1600, 8320), (8320, 14480), (14560, 32000))):
                assert row["duration"] == (end - first) / RATE
                samples = (manifests.read_audio(row) * 32768).numpy()
                np.testing.assert_array_equal(samples, speech(i)[first:end])


def test_folder_above(corpus, tmp_path):
    expected = manifests.read(prepare(corpus, tmp_path)["test"])
    assert manifests.read(prepare(tmp_path, tmp_path)["test"]) == expected


def test_converted_audio(corpus, tmp_path):
    for split, talks in TALKS.items():
        for i in range(len(talks)):
            sph = sph_of(corpus, split, i)
            soundfile.write(sph.with_suffix(".flac"), speech(i).astype(np.int16), RATE)
            sph.unlink()
    rows = manifests.read(prepare(corpus, tmp_path)["valid"])
    assert rows[0]["wav"] == str(sph_of(corpus, "dev").with_suffix(".flac"))
    samples = (manifests.read_audio(rows[0]) * 32768).numpy()
    np.testing.assert_array_equal(samples, speech(0)[1600:8320])


def test_second_run(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        first = prepare(corpus, tmp_path)
        assert "train: 2 segments left out, marked ignore_time_segment_in_scoring" in caplog.text
        assert "train: 2 of 6 segments have the mark <unk>" in caplog.text
        assert prepare(corpus, tmp_path) == first
        assert caplog.text.count("skipped") == 1
        edit(corpus, "test", "we said", "you said")
        assert manifests.read(prepare(corpus, tmp_path)["test"])[2]["wrd"] == "'cause you said so"
        write_sphere(sph_of(corpus, "dev"), speech(0)[:31000])
        assert manifests.read(prepare(corpus, tmp_path)["valid"])[2]["stop"] == 31000 / RATE
        assert caplog.text.count("skipped") == 1


@pytest.mark.parametrize(
    "text, words",
    [
        ("that 's what they 'd have", "that's what they'd have"),
        ("o 'clock  '60s", "o'clock'60s"),  # as in the recipes that results are published with
        ("<o,f0,female> THE(12) END", "THE END"),
        ("<F0_M> {BREATH} so <unk>", "so"),
        ("<unk>", ""),
        ("(2) 's fine", "'s fine"),
    ],
)
def test_clean(text, words):
    assert tedlium.clean(text) == words


def test_bad_training_segments_are_dropped(corpus, tmp_path):
    edit(corpus, "train", "a(2) <unk> of(3) data", "<unk>")
    edit(corpus, "train", "0.10 0.52", "0.52 0.52")
    edit(corpus, "train", "2.004", "2.6")
    edit(corpus, "train", GAP, "AaronHuey_2010X 0.00 0.10 <o,f0,male> words")
    sph_of(corpus, "train", 1).unlink()
    write_sphere(sph_of(corpus, "train").with_name("Nobody.sph"), speech(2))
    assert len(manifests.read(prepare(corpus, tmp_path)["train"])) == 1
    dropped = (tmp_path / "manifests" / "train.dropped.csv").read_text()
    assert "the transcript is empty" in dropped
    assert f"{sph_of(corpus, 'train')}: the segment from 0.91 s to 2.6 s" in dropped
    assert f"{sph_of(corpus, 'train')}: the segment from 0.52 s to 0.52 s is empty" in dropped
    assert dropped.count(f"{sph_of(corpus, 'train', 1)}: there is no such audio file") == 3
    assert "Nobody.sph: there is no transcript of this audio file" in dropped


@pytest.mark.parametrize("split", ["dev", "test"])
def test_bad_evaluation_segments_raise(corpus, tmp_path, split):
    edit(corpus, split, "a(2) <unk> of(3) data", "<unk>")  # a hypothesis of nothing is right
    assert manifests.read(prepare(corpus, tmp_path)[{"dev": "valid"}.get(split, split)])
    path = edit(corpus, split, "2.004", "2.6")
    with pytest.raises(InputError, match=f"{sph_of(corpus, split)}: the segment .* 1 of 3"):
        prepare(corpus, tmp_path)
    path.unlink()
    (path.parent / "Other.stm").write_text(f"Other 1 Other {SEGMENTS[0][0]}\n")
    with pytest.raises(InputError, match="there is no transcript .* 2 of 2 are unusable"):
        prepare(corpus, tmp_path)


def test_cut_audio_and_compressed_audio(corpus, tmp_path):
    sph = sph_of(corpus, "test")
    sph.write_bytes(sph.read_bytes()[:-2])
    with pytest.raises(InputError, match=f"{sph}: the audio file is truncated"):
        prepare(corpus, tmp_path)
    write_sphere(sph, speech(0)[:9999], "pcm,embedded-shorten-v2.00")
    with pytest.raises(InputError, match=f"{sph}: the audio is compressed .*shorten-v2.00"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize(
    "old, new",
    [
        ("0.10 0.52", "0.10"),
        ("0.10 0.52", "0,10 0.52"),
        ("0.10 0.52", "0.10 nan"),
        ("0.10 0.52", "0.10 1e306"),
        ("0.10 0.52", "-1e306 0.52"),
        ("<o,f0,male> i 'm", "i 'm"),
        ("<o,f0,male> i 'm", "<o,f0,male i 'm"),
        (f"1 {GAP}", ""),
    ],
)
def test_bad_lines(corpus, tmp_path, old, new):
    path = edit(corpus, "dev", old, new)
    line = 2 if "inter" in old else 3
    with pytest.raises(InputError, match=f"{path}, line {line}: got .Al_2006.*is expected"):
        prepare(corpus, tmp_path)


def test_a_label_with_spaces(corpus, tmp_path):
    edit(corpus, "dev", "<o,f0,male> i 'm", "<o, f0, male> i 'm")
    assert manifests.read(prepare(corpus, tmp_path)["valid"])[0]["wrd"] == SEGMENTS[0][1]


def test_the_same_talk_in_two_formats(corpus, tmp_path, caplog):
    for split in TALKS:
        sphere = sph_of(corpus, split)
        samples, rate = soundfile.read(sphere)
        soundfile.write(sphere.with_suffix(".wav"), samples, rate)
    paths = prepare(corpus, tmp_path)
    assert {row["wav"] for row in manifests.read(paths["test"])} == {str(sph_of(corpus, "test"))}
    assert "no transcript" not in caplog.text


def test_a_segment_that_is_there_twice(corpus, tmp_path):
    edit(corpus, "dev", "0.52 0.905", "0.10 0.52")
    with pytest.raises(InputError, match="valid: the utterance id Al_2006-00000100-00000520 is"):
        prepare(corpus, tmp_path)


def test_wrong_layout(corpus, tmp_path):
    for path in (corpus / "dev" / "stm").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="dev/stm: there is no STM file"):
        prepare(corpus, tmp_path)
    (corpus / "dev" / "stm").rename(corpus / "dev" / "text")
    with pytest.raises(InputError, match="a folder dev/stm, which is not there; found sph, text"):
        prepare(corpus, tmp_path)
    shutil.rmtree(corpus / "train")
    with pytest.raises(InputError, match="a folder train, which is not there; found dev, test"):
        prepare(corpus, tmp_path)
    with pytest.raises(InputError, match="nowhere: the data folder does not exist"):
        prepare(tmp_path / "nowhere", tmp_path)
