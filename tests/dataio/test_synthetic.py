import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import audio, librispeech, manifests, synthetic
from summarymixing.errors import InputError

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed")

SIZES = {"train_minutes": 0.6, "valid_minutes": 0.05, "test_minutes": 0.05}


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.make_corpus(folder, **SIZES, workers=1)
    return folder


def test_contents(corpus, tmp_path):
    made = synthetic.make_corpus(corpus, **SIZES)
    assert made["complete"]
    splits = synthetic.SPLITS
    paths = librispeech.prepare(
        corpus, tmp_path, [splits["train"]], [splits["valid"]], [splits["test"]]
    )
    for name, split in zip(paths, splits.values()):
        rows = manifests.read(paths[name])
        assert len(rows) == made["splits"][split]["utterances"]
        seconds = sum(row["duration"] for row in rows)
        wanted = 60 * made["parameters"]["minutes"]["test" if "test" in name else name]
        assert wanted <= seconds < wanted + 20
    rows = manifests.read(paths["train"])
    assert {row["spk_id"] for row in rows} == {"1000", "1001"}
    for row in rows:
        signal = audio.read(row["wav"])
        assert signal.abs().max() < 1
        assert 10 ** (-36 / 20) < signal.std() < 10 ** (-21 / 20)
        # Speech takes time, and longer sentences take longer.
        assert 0.15 < row["duration"] / len(row["wrd"].split()) < 0.9
    assert soundfile.info(rows[0]["wav"]).samplerate == 16000
    lengths = np.array([(row["duration"], len(row["wrd"])) for row in rows])
    assert np.corrcoef(lengths.T)[0, 1] > 0.8


def test_same_bytes_whatever_the_workers(corpus, tmp_path):
    time.sleep(1.1)  # espeak seeds its noise with the time in seconds
    synthetic.make_corpus(tmp_path, **SIZES, workers=3)
    assert content(tmp_path) == content(corpus)


def test_completes_what_was_interrupted(corpus, tmp_path, monkeypatch):
    speak = synthetic._speak_apart

    def interrupted(job):
        if job["speaker"]["id"] == "1001":
            raise KeyboardInterrupt
        return speak(job)

    monkeypatch.setattr(synthetic, "_speak_apart", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.make_corpus(tmp_path, **SIZES, workers=1)
    left = tmp_path / ".partial" / "1001" / "1"  # as a killed process leaves it
    left.mkdir(parents=True)
    (left / "1001-1-0000.flac").touch()

    spoken = []
    monkeypatch.setattr(synthetic, "_speak_apart", lambda job: (spoken.append(job), speak(job)))
    synthetic.make_corpus(tmp_path, **SIZES)
    assert "1000" not in {job["speaker"]["id"] for job in spoken}
    assert content(tmp_path) == content(corpus)


def test_completed_corpus_is_reused(corpus, monkeypatch):
    monkeypatch.setattr(synthetic, "_speak_apart", None)
    before = (corpus / "corpus.json").stat().st_mtime_ns
    synthetic.make_corpus(corpus, **SIZES)
    assert (corpus / "corpus.json").stat().st_mtime_ns == before


def test_other_parameters_need_another_folder(corpus):
    before = content(corpus)
    with pytest.raises(InputError, match="choose another folder"):
        synthetic.make_corpus(corpus, seed=5, **SIZES)
    assert content(corpus) == before


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "train-synthetic").mkdir()
    with pytest.raises(InputError, match="train-synthetic: is there without corpus.json"):
        synthetic.make_corpus(tmp_path, **SIZES)
    (tmp_path / "corpus.json").write_text("[]")
    with pytest.raises(InputError, match="corpus.json: not from make_corpus"):
        synthetic.make_corpus(tmp_path, **SIZES)
    with pytest.raises(InputError, match="is not a folder"):
        synthetic.make_corpus(tmp_path / "corpus.json", **SIZES)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_bad_length(tmp_path, value):
    with pytest.raises(InputError, match=f"valid_minutes must be positive, got {value}"):
        synthetic.make_corpus(tmp_path / "new", valid_minutes=value)
    assert not (tmp_path / "new").exists()


def test_failed_synthesis_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(synthetic.VOICES, "train", ("nobody",))
    with pytest.raises(RuntimeError, match="speaker 1000 failed.*no voice variant nobody"):
        synthetic.make_corpus(tmp_path, **SIZES, workers=1)
    assert not (tmp_path / "train-synthetic").exists()


def test_voices_are_not_shared():
    voices = [voice for part in synthetic.VOICES.values() for voice in part]
    assert len(set(voices)) == len(voices)
    for part in synthetic.SPLITS:
        for speaker in synthetic._speakers(part, 1234, 3600):
            assert speaker.voice in synthetic.VOICES[part]


def test_all_voices_speak(tmp_path):
    """Every accent and voice of the lists exists (espeak falls back silently)."""
    import espeakng_loader

    data = Path(espeakng_loader.get_data_path())
    for accent in synthetic.ACCENTS:
        assert (data / "lang" / "gmw" / accent).is_file()
    for voices in synthetic.VOICES.values():
        for voice in voices:
            assert (data / "voices" / "!v" / voice).is_file()


def test_sentences():
    rng = random.Random(0)
    drawn = [synthetic.sentence(rng) for _ in range(2000)]
    assert all(3 <= len(text.split()) <= 18 for text in drawn)
    assert all(word.isalpha() and word.isupper() for text in drawn for word in text.split())
    assert len(set(drawn)) > 1500
    assert 100 < len({word for text in drawn for word in text.split()}) <= 160
    rng = random.Random(0)
    assert drawn == [synthetic.sentence(rng) for _ in range(2000)]


def test_command(tmp_path, corpus):
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "scripts" / "make_synthetic_corpus.py")]
    options = [f"--{name}={value}" for name, value in SIZES.items()]
    environment = {"PYTHONPATH": str(root), "PATH": ""}
    done = subprocess.run(
        [*command, str(corpus), *options], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "train-synthetic: " in done.stdout
    done = subprocess.run(
        [*command, str(corpus), "--seed=5"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
