"""LibriSpeech (https://www.openslr.org/12), and any corpus in its layout.

The layout: ``<split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac``, and in each chapter
folder ``<speaker>-<chapter>.trans.txt`` with lines ``<utterance id> <WORDS>``.
"""

import os
from functools import partial
from pathlib import Path

from tqdm import tqdm

from summarymixing.dataio import layouts, manifests
from summarymixing.errors import InputError

_AUDIO = (".flac", ".wav", ".sph")  # LibriSpeech has FLAC; corpora in its layout may differ
_TRANSCRIPT = ".trans.txt"


def prepare(data_folder, manifest_folder, train_splits, valid_splits, test_splits):
    """Writes the manifests ``train.csv``, ``valid.csv`` and one ``<split>.csv`` per test split.

    Training utterances whose audio or transcript is missing, empty or broken are left out and
    named; in the other sets they are an error. Transcripts are kept as they are (upper case).
    Nothing is done if the manifests exist and neither arguments nor source files have changed.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds the split folders, or holds the folder ``LibriSpeech`` that does.
    manifest_folder : str or os.PathLike
        Where the manifests go; created if needed.
    train_splits : list of str
        Split folders whose utterances, together, are the training set.
    valid_splits : list of str
        Split folders whose utterances, together, are the validation set.
    test_splits : list of str
        Split folders that are a test set each; may be empty.

    Returns
    -------
    paths : dict
        Manifest paths (str) by name: "train", "valid" and the name of each test split.

    Raises
    ------
    InputError
        If a folder or split is missing, a split has no transcripts, an utterance id is there
        twice, or a validation or test utterance cannot be used.

    Example
    -------
    >>> import soundfile, tempfile, torch
    >>> root = tempfile.mkdtemp()
    >>> for split in ("train-tiny", "dev-tiny"):
    ...     chapter = os.path.join(root, split, "1", "2")
    ...     os.makedirs(chapter)
    ...     soundfile.write(chapter + "/1-2-0000.flac", torch.zeros(8000).numpy(), 16000)
    ...     with open(chapter + "/1-2.trans.txt", "w") as file:
    ...         _ = file.write("1-2-0000 GOOD MORNING\\n")
    >>> paths = prepare(root, root + "/manifests", ["train-tiny"], ["dev-tiny"], [])
    >>> manifests.read(paths["valid"])[0]["wrd"]
    'GOOD MORNING'
    """
    parts = manifests.split_parts(train_splits, valid_splits, test_splits)
    splits = list(dict.fromkeys(split for splits in parts.values() for split in splits))
    folder = layouts.corpus_folder(data_folder, "LibriSpeech", splits, inner="LibriSpeech")
    files = {}
    for split in splits:
        listed = manifests.list_files(folder / split, (*_AUDIO, _TRANSCRIPT), f"listing {split}")
        if not any(path.endswith(_TRANSCRIPT) for path in listed):
            raise InputError(
                f"{folder / split}: the split has no {_TRANSCRIPT} file;"
                f" <speaker>/<chapter>/<speaker>-<chapter>{_TRANSCRIPT} is expected"
            )
        files[split] = listed

    arguments = {"corpus": "LibriSpeech", "data_folder": str(folder), "parts": parts}
    sources = {path: status for listed in files.values() for path, status in listed.items()}
    loaders = {
        name: partial(_load, [path for split in splits for path in files[split]])
        for name, splits in parts.items()
    }
    return manifests.prepare(manifest_folder, arguments, sources, loaders)


def _load(paths):
    """Utterances of all transcript lines, and of all audio files without one."""
    audio = {path for path in paths if path.endswith(_AUDIO)}
    unclaimed = set(audio)
    utterances = []
    transcripts = [path for path in paths if path.endswith(_TRANSCRIPT)]
    for path in tqdm(transcripts, "reading transcripts", unit="file"):
        chapter = os.path.dirname(path)
        for line in manifests.read_lines(path):
            if line.strip():
                id_, _, text = line.strip().partition(" ")
                stem = os.path.join(chapter, id_)
                names = [stem + suffix for suffix in _AUDIO]
                wav = next((name for name in names if name in audio), names[0])
                unclaimed.difference_update(names)
                utterances.append(manifests.Utterance(id_, wav, _speaker(wav), text))
    for wav in unclaimed:
        utterances.append(manifests.Utterance(Path(wav).stem, wav, _speaker(wav), None))
    return utterances


def _speaker(wav):
    return wav.split(os.sep)[-3]
