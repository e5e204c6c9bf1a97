"""AISHELL-1 (https://www.openslr.org/33), Mandarin.

The layout: ``wav/{train,dev,test}/<speaker>/<id>.wav`` and, for all of them together,
``transcript/aishell_transcript_v0.8.txt`` with lines ``<id> <words>``.
"""

import os
import re
from functools import partial
from pathlib import Path

from summarymixing.dataio import layouts, manifests
from summarymixing.errors import InputError

_SPLITS = {"train": "train", "valid": "dev", "test": "test"}
_AUDIO = (".wav", ".flac")  # the first one that is there is used; the official corpus has WAV
_TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"
_SPEAKER = re.compile(r"S\d{4}")  # in BAC009S0002W0122


def prepare(data_folder, manifest_folder, keep_spaces=False):
    """Writes the manifests ``train.csv``, ``valid.csv`` (the dev set) and ``test.csv``.

    Some recordings of AISHELL-1 have no transcript (in the official corpus 320 of train, 5 of
    dev): they are left out of every set and named, and more than five and one in a hundred of an
    evaluation set are an error. Training utterances whose audio is missing,
    empty or broken are left out and named too; in the other sets they are an error. Nothing is
    done if the manifests exist and neither arguments nor source files have changed.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``wav`` and ``transcript``, or holds the folder ``data_aishell`` that does.
    manifest_folder : str or os.PathLike
        Where the manifests go; created if needed.
    keep_spaces : bool
        Whether the spaces that the transcripts have between words are kept. Mandarin is written
        without, and scored by characters.

    Returns
    -------
    paths : dict
        Manifest paths (str) by name: "train", "valid" and "test".

    Raises
    ------
    InputError
        If a folder, the transcript file or a speaker's folder is missing, an utterance id is
        there twice, or the audio of a dev or test utterance cannot be used.

    Example
    -------
    >>> import soundfile, tempfile, torch
    >>> root = tempfile.mkdtemp()
    >>> os.mkdir(root + "/transcript")
    >>> with open(root + "/transcript/aishell_transcript_v0.8.txt", "w") as file:
    ...     for split, id_ in zip(_SPLITS.values(), ("S0002W1", "S0724W1", "S0764W1")):
    ...         os.makedirs(f"{root}/wav/{split}/{id_[:5]}")
    ...         path = f"{root}/wav/{split}/{id_[:5]}/{id_}.wav"
    ...         soundfile.write(path, torch.zeros(8000).numpy(), 16000)
    ...         _ = file.write(f"{id_} 早上 好\\n")
    >>> paths = prepare(root, root + "/manifests")
    >>> manifests.read(paths["valid"])[0]["wrd"]
    '早上好'
    """
    if not isinstance(keep_spaces, bool):
        raise InputError(f"keep_spaces must be true or false, got {keep_spaces!r}")
    folder = layouts.corpus_folder(
        data_folder,
        "AISHELL",
        ["wav", "transcript", *(f"wav/{x}" for x in _SPLITS.values())],
        inner="data_aishell",
    )
    transcript = folder / _TRANSCRIPT
    texts = _read_transcript(transcript)
    audio, speakers, places = {}, {}, {}
    sources = manifests.stat_files([transcript], "listing transcript")
    for name, split in _SPLITS.items():
        listed = manifests.list_files(folder / "wav" / split, _AUDIO, f"listing {split}")
        if not listed:
            raise InputError(
                f"{folder / 'wav' / split}: there is no audio; <speaker>/<id>.wav is expected"
                " (archives, one per speaker, must be unpacked)"
            )
        sources |= listed
        audio[name] = _by_id(listed, places)
        speakers |= {Path(path).parent.name: name for path in listed}
    _add_missing_audio(folder, texts, audio, speakers)

    arguments = {"corpus": "AISHELL-1", "data_folder": str(folder), "keep_spaces": keep_spaces}
    loaders = {
        name: partial(_load, name, files, texts, keep_spaces) for name, files in audio.items()
    }
    return manifests.prepare(manifest_folder, arguments, sources, loaders)


def _read_transcript(path):
    """Transcripts by utterance id."""
    texts = {}
    for number, line in enumerate(manifests.read_lines(path), 1):
        if line.strip():
            id_, *words = line.split()
            if id_ in texts:
                raise InputError(f"{path}, line {number}: {id_} is there twice")
            texts[id_] = " ".join(words)
    if not texts:
        raise InputError(f"{path}: the file is empty; lines <id> <words> are expected")
    return texts


def _by_id(paths, places):
    """Audio by utterance id; `places` has that of all sets, as no id may be in two folders."""
    files = {}
    for suffix in _AUDIO:
        for path in sorted(path for path in paths if path.endswith(suffix)):
            id_ = Path(path).stem
            first = places.setdefault(id_, path)
            if os.path.dirname(first) != os.path.dirname(path):
                raise InputError(f"{path}: the utterance id {id_} is there twice, first in {first}")
            files.setdefault(id_, path)
    return files


def _add_missing_audio(folder, texts, audio, speakers):
    """Gives each transcript without audio the place where it should be: its speaker's folder."""
    found = {id_ for files in audio.values() for id_ in files}
    homeless = set()
    for id_ in texts.keys() - found:
        match = _SPEAKER.search(id_)
        speaker = match[0] if match else id_
        if speaker in speakers:
            name = speakers[speaker]
            wav = folder / "wav" / _SPLITS[name] / speaker / f"{id_}.wav"
            audio[name][id_] = os.fspath(wav)
        else:
            homeless.add(speaker)
    if homeless:
        raise InputError(
            f"{folder / 'wav'}: the transcript has speakers without a folder in train, dev or test:"
            f" {manifests.some(homeless)} (archives, one per speaker, must be unpacked)"
        )


def _load(name, files, texts, keep_spaces):
    if name != "train":  # in "train", the writing of the manifest does this
        silent = [id_ for id_ in files if id_ not in texts]
        if len(silent) > max(5, len(files) // 100):
            raise InputError(
                f"{name}: {len(silent)} of {len(files)} recordings have no transcript in"
                f" {_TRANSCRIPT}, which is not whole; first {manifests.some(silent)}"
            )
        layouts.warn_left_out(name, silent, len(files), "they have no transcript")
        files = {id_: wav for id_, wav in files.items() if id_ in texts}
    separator = " " if keep_spaces else ""
    utterances = []
    for id_, wav in files.items():
        text = separator.join(texts[id_].split()) if id_ in texts else None
        utterances.append(manifests.Utterance(id_, wav, Path(wav).parent.name, text))
    return utterances
