"""TED-LIUM 2 (https://www.openslr.org/19): talks, of which utterances are segments.

The layout: in each of ``train``, ``dev`` and ``test`` there is ``sph/<talk>.sph`` and, for each
talk, ``stm/<talk>.stm`` with a line ``<talk> <channel> <speaker> <start> <stop> <label> <words>``
for each segment, times in seconds. The manifests have the columns ``start`` and ``stop``.

What a transcript holds besides words:

* ``ignore_time_segment_in_scoring`` in the place of words: the segment is left out of every set.
* ``i 'm``, ``doesn 't``: apostrophes are joined to the word before them, as in published recipes
  (and, like there, in ``get 'em`` too).
* ``<unk>``, a word that nobody wrote down: the mark is deleted, also from training transcripts,
  and the log says how many segments had one.
* ``a(2)``, the second of a word's pronunciations in the dictionary, ``<sil>``, ``{NOISE}`` and the
  like: deleted.
"""

import logging
import re
from functools import partial
from pathlib import Path

from summarymixing.dataio import layouts, manifests
from summarymixing.errors import InputError

logger = logging.getLogger(__name__)

_SPLITS = {"train": "train", "valid": "dev", "test": "test"}
_AUDIO = (".sph", ".wav", ".flac")  # the first one that is there is used
_NOT_SCORED = "ignore_time_segment_in_scoring"
_UNKNOWN = "<unk>"
_LABEL = re.compile(r"<[^<>]*>(\s+|$)")  # some have spaces: <o, f0, male>
_MARKS = re.compile(r"<[^<>\s]*>|\{\w+\}|\(\d+\)")


def prepare(data_folder, manifest_folder):
    """Writes the manifests ``train.csv``, ``valid.csv`` (the dev set) and ``test.csv``.

    Training utterances whose audio or transcript is missing, empty or broken are left out and
    named; in the other sets they are an error (a transcript may be empty there). Transcripts are
    in lower case, as they are. Nothing is done if the manifests exist and no source file has
    changed.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``train``, ``dev`` and ``test``, or holds the folder ``TEDLIUM_release2`` that does.
    manifest_folder : str or os.PathLike
        Where the manifests go; created if needed.

    Returns
    -------
    paths : dict
        Manifest paths (str) by name: "train", "valid" and "test".

    Raises
    ------
    InputError
        If a folder is missing, a line of an STM file is not a segment, a segment is there twice,
        or a dev or test utterance cannot be used.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> root = tempfile.mkdtemp()
    >>> for split in ("train", "dev", "test"):
    ...     os.makedirs(f"{root}/{split}/sph")
    ...     os.makedirs(f"{root}/{split}/stm")
    ...     soundfile.write(f"{root}/{split}/sph/A_{split}.wav", torch.zeros(32000).numpy(), 16000)
    ...     with open(f"{root}/{split}/stm/A_{split}.stm", "w") as file:
    ...         _ = file.write(f"A_{split} 1 A_{split} 0.5 1.25 <o,f0,male> i 'm here\\n")
    >>> paths = prepare(root, root + "/manifests")
    >>> row = manifests.read(paths["valid"])[0]
    >>> row["wrd"], row["start"], row["stop"], row["duration"]
    ("i'm here", 0.5, 1.25, 0.75)
    """
    folder = layouts.corpus_folder(
        data_folder,
        "TEDLIUM2",
        [name for split in _SPLITS.values() for name in (split, f"{split}/sph", f"{split}/stm")],
        inner="TEDLIUM_release2",
    )
    sources, loaders = {}, {}
    for name, split in _SPLITS.items():
        audio = manifests.list_files(folder / split / "sph", _AUDIO, f"listing {split}")
        stm = manifests.list_files(folder / split / "stm", (".stm",), f"listing {split}")
        if not stm:
            raise InputError(f"{folder / split / 'stm'}: there is no STM file; <talk>.stm expected")
        sources |= audio | stm
        loaders[name] = partial(_load, name, folder / split / "sph", sorted(stm), audio)
    arguments = {"corpus": "TED-LIUM 2", "data_folder": str(folder)}
    return manifests.prepare(manifest_folder, arguments, sources, loaders)


def clean(text):
    """The words of a transcript: without marks, apostrophes joined to the word before them.

    Example
    -------
    >>> clean("<sil> i 'm(2) not <unk> sure {NOISE} it wasn 't")
    "i'm not sure it wasn't"
    """
    words = " ".join(_MARKS.sub(lambda match: "" if match[0][0] == "(" else " ", text).split())
    return words.replace(" '", "'")


def _load(name, sph, paths, audio):
    utterances, ignored, unknown = [], 0, 0
    unclaimed = set(audio)
    for path in paths:
        for number, line in enumerate(manifests.read_lines(path), 1):
            if not line.strip() or line.startswith(";;"):
                continue
            talk, speaker, start, stop, text = _parse(line, f"{path}, line {number}")
            names = [f"{sph}/{talk}{suffix}" for suffix in _AUDIO]
            wav = next((name for name in names if name in audio), names[0])
            unclaimed.difference_update(names)
            if _NOT_SCORED in text:
                ignored += 1
                continue
            unknown += _UNKNOWN in text
            id_ = f"{talk}-{round(start * 1000):08d}-{round(stop * 1000):08d}"
            utterances.append(manifests.Utterance(id_, wav, speaker, clean(text), start, stop))
    for wav in unclaimed:
        utterances.append(manifests.Utterance(Path(wav).stem, wav, "", None))
    if ignored:
        logger.info("%s: %d segments left out, marked %s", name, ignored, _NOT_SCORED)
    if unknown:
        logger.warning(
            "%s: %d of %d segments have the mark %s for words that are not in the transcript;"
            " it is deleted",
            *(name, unknown, len(utterances), _UNKNOWN),
        )
    return utterances


def _parse(line, place):
    """Talk, speaker, start, stop and words of an STM line."""
    try:
        talk, _, speaker, start, stop, rest = line.split(maxsplit=5)
        start, stop = manifests.to_seconds(start), manifests.to_seconds(stop)
        label = _LABEL.match(rest)
        if label is None:
            raise ValueError
    except ValueError:
        raise InputError(
            f"{place}: got {line.strip()[:80]!r}; <talk> <channel> <speaker> <start> <stop> <label>"
            " <words> is expected, times in seconds"
        ) from None
    return talk, speaker, start, stop, rest[label.end() :]
