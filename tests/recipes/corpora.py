"""The same few utterances in the layout of each recipe's corpus."""

import json
import shutil

import numpy as np
import soundfile
from trained import KINDS, make_run

from summarymixing.dataio import tokenizer
from summarymixing.dataio.an4 import VALID_SPEAKERS

RATE = 16000


def _audio(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


def _lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def texts(folder, sets):
    """What a language model is trained on, and a tokenizer of a recogniser's."""
    said = {split: [text for _, text in utterances] for split, utterances in sets.items()}
    _lines(folder / "train.txt", said["train"])
    _lines(folder / "valid.txt", said["dev"])
    tokenizer.train(said["train"], folder / "tokenizer.model", 45)


def an4(folder, sets):
    """Each of the speakers that are held out says all of the validation set."""
    held_out = [(speaker, u) for speaker in VALID_SPEAKERS for u in sets["dev"]]
    train = [("menk", utterance) for utterance in sets["train"]]
    test = [("mmxg", utterance) for utterance in sets["test"]]
    for part, clips, said in (
        ("train", "an4_clstk", train + held_out),
        ("test", "an4test_clstk", test),
    ):
        places, texts = [], []
        for i, (speaker, (samples, text)) in enumerate(said):
            id_ = f"an{i}-{speaker}-b"
            places.append(f"{clips}/{speaker}/{id_}")
            texts.append(f"<s> {text} </s> ({id_})")
            _audio(folder / "wav" / f"{places[-1]}.flac", samples)
        _lines(folder / f"etc/an4_{part}.fileids", places)
        _lines(folder / f"etc/an4_{part}.transcription", texts)


def librispeech(folder, sets, splits=("train-clean-100", "dev-clean", "test-clean", "test-other")):
    for split in splits:
        name = split.split("-")[0]
        chapter = folder / split / "7" / "8"
        ids = [f"7-8-{i:04}" for i in range(len(sets[name]))]
        _lines(
            chapter / "7-8.trans.txt",
            [f"{id_} {text}" for id_, (_, text) in zip(ids, sets[name])],
        )
        for id_, (samples, _) in zip(ids, sets[name]):
            _audio(chapter / f"{id_}.flac", samples)


def mini(folder, sets):
    librispeech(folder, sets, ("train-synthetic", "dev-synthetic", "test-synthetic"))


def voxpopuli(folder, sets):
    for name, utterances in sets.items():
        rows = ["id raw_text normalized_text speaker_id split gender".split()]
        for i, (samples, text) in enumerate(utterances):
            _audio(folder / "2018" / f"2018_{name}{i}.ogg", samples)
            rows.append([f"2018_{name}{i}", text, text.lower(), f"{i}", name, "female"])
        _lines(folder / f"asr_{name}.tsv", map("\t".join, rows))


def common_voice(folder, sets):
    """MP3 at 48 kHz; other languages are the same."""
    languages = [folder / "cv-corpus-18.0-2024-06-14" / name for name in ("fr", "it", "nl", "en")]
    home = languages[0]
    for name, utterances in sets.items():
        rows = ["client_id path sentence_id sentence up_votes".split()]
        for i, (samples, text) in enumerate(utterances):
            clip = f"common_voice_{name}{i}.mp3"
            _audio(home / "clips" / clip, np.repeat(samples, 3), 3 * RATE)
            rows.append([f"{i}f", clip, f"{i}", f"« {text.capitalize()} ! »", "2"])
        _lines(home / f"{name}.tsv", map("\t".join, rows))
    for other in languages[1:]:
        shutil.copytree(home, other)


def aishell(folder, sets):
    texts = []
    for name, utterances in sets.items():
        for i, (samples, text) in enumerate(utterances):
            id_ = f"BAC009S{name}W{i:04}"
            _audio(folder / f"data_aishell/wav/{name}/S{name}/{id_}.wav", samples)
            texts.append(f"{id_} {text}")
    _lines(folder / "data_aishell/transcript/aishell_transcript_v0.8.txt", texts)


def tedlium(folder, sets):
    """Each set is one talk."""
    for name, utterances in sets.items():
        home, begin, lines = folder / "TEDLIUM_release2" / name, 0, []
        for samples, text in utterances:
            end = begin + len(samples) / RATE
            lines.append(f"Talk_{name} 1 Talk_{name} {begin:.3f} {end:.3f} <o,f0,male> {text}")
            begin = end
        talk = np.concatenate([samples for samples, _ in utterances])
        path = home / "sph" / f"Talk_{name}.sph"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            soundfile.write(file, talk, RATE, format="NIST", subtype="PCM_16")
        _lines(home / "stm" / f"Talk_{name}.stm", lines)


def table(folder, sets):
    for name, utterances in sets.items():
        rows = []
        for i, (samples, text) in enumerate(utterances):
            _audio(folder / "audio" / f"{name}{i}.wav", samples)
            rows.append({"audio": f"audio/{name}{i}.wav", "text": text, "speaker": f"s{i}"})
        split = "valid" if name == "dev" else name
        _lines(folder / f"{split}.jsonl", map(json.dumps, rows))


def fine_tune(folder, sets):
    """A user's speech, and what it may be given to."""
    table(folder, sets)
    for kind in KINDS:
        make_run(folder / kind, kind, [text for _, text in sets["train"]])


LAYOUTS = {
    "AISHELL": aishell,
    "AN4": an4,
    "CommonVoice": common_voice,
    "FineTune": fine_tune,
    "LibriSpeech": librispeech,
    "Mini": mini,
    "TEDLIUM2": tedlium,
    "Table": table,
    "VoxPopuli": voxpopuli,
}
