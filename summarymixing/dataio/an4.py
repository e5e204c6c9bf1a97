"""AN4, the CMU census database (https://github.com/cmusphinx/an4): 948 training utterances.

The layout: ``etc/an4_train.fileids`` has one path per line, relative to ``wav/`` and without
extension; ``etc/an4_train.transcription`` has lines ``<s> WORDS </s> (utterance-id)``. The test
part (``etc/an4_test.*``, no ``<s> </s>``) is used when it is there. Audio may be FLAC, WAV or
SPHERE, whichever is found.
"""

import logging
import re
from functools import partial
from pathlib import Path

from summarymixing.dataio import layouts, manifests
from summarymixing.errors import InputError

logger = logging.getLogger(__name__)

# Every ninth of the 74 training speakers in alphabetical order, from the first, eight in all:
# a rule that looks at neither audio nor text. It gives 100 utterances, 35 of them by the three
# female speakers (names in f; 28 % of all training speakers are female).
VALID_SPEAKERS = ("fash", "fkdo", "ftal", "mcrt", "mema", "mjhp", "mmsh", "msct")

_AUDIO = (".flac", ".wav", ".sph")
_LINE = re.compile(r"(?:<s>\s)?\s*(?P<text>.*?)\s*(?:</s>)?\s*\((?P<id>[^()\s]+)\)\s*")


def prepare(data_folder, manifest_folder, valid_speakers=VALID_SPEAKERS):
    """Writes ``train.csv``, ``valid.csv`` and, if the test part is there, ``test.csv``.

    Training utterances whose audio or transcript is missing, empty or broken are left out and
    named; in the other sets they are an error. Nothing is done if the manifests exist and neither
    arguments nor source files have changed.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``etc`` and ``wav``, or holds the folder ``an4`` that does.
    manifest_folder : str or os.PathLike
        Where the manifests go; created if needed.
    valid_speakers : list of str
        Speakers (folder names) of the training part that are held out as the validation set.

    Returns
    -------
    paths : dict
        Manifest paths (str) by name: "train", "valid" and, if the test part is there, "test".

    Raises
    ------
    InputError
        If a folder or file is missing, the lists of files and of transcripts disagree, a
        validation speaker is unknown, or a validation or test utterance cannot be used.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> root = tempfile.mkdtemp()
    >>> os.makedirs(root + "/etc")
    >>> with open(root + "/etc/an4_train.fileids", "w") as file:
    ...     _ = file.write("an4_clstk/fash/an251-fash-b\\nan4_clstk/mblb/cen1-mblb-b\\n")
    >>> with open(root + "/etc/an4_train.transcription", "w") as file:
    ...     _ = file.write("<s> YES </s> (an251-fash-b)\\n<s> NO </s> (cen1-mblb-b)\\n")
    >>> for name in ("fash/an251-fash-b", "mblb/cen1-mblb-b"):
    ...     os.makedirs(root + "/wav/an4_clstk/" + name[:4])
    ...     silence = torch.zeros(8000).numpy()
    ...     soundfile.write(root + "/wav/an4_clstk/" + name + ".wav", silence, 16000)
    >>> paths = prepare(root, root + "/manifests", ["fash"])
    >>> manifests.read(paths["valid"])[0]["wrd"]
    'YES'
    """
    folder = layouts.corpus_folder(data_folder, "AN4", ["etc", "wav"], inner="an4")
    valid_speakers = [valid_speakers] if isinstance(valid_speakers, str) else list(valid_speakers)
    if not valid_speakers:
        raise InputError("valid_speakers is empty; name at least one speaker of the training part")

    sources = manifests.list_files(folder / "etc", (".fileids", ".transcription"), "listing etc")
    sources |= manifests.list_files(folder / "wav", _AUDIO, "listing wav")
    texts = _read_part(folder, "an4_train")
    speakers = {Path(fileid).parent.name for fileid in texts}
    for speaker in valid_speakers:
        if speaker not in speakers:
            raise InputError(
                f"valid speaker {speaker} is not in {folder}/etc/an4_train.fileids; its"
                f" {len(speakers)} speakers are {manifests.some(speakers, len(speakers))}"
            )
    held_out = {fileid for fileid in texts if Path(fileid).parent.name in valid_speakers}
    parts = {
        "train": {fileid: text for fileid, text in texts.items() if fileid not in held_out},
        "valid": {fileid: text for fileid, text in texts.items() if fileid in held_out},
    }
    if not parts["train"]:
        raise InputError("valid_speakers holds out every speaker; leave some for training")
    if (folder / "etc" / "an4_test.fileids").exists():
        parts["test"] = _read_part(folder, "an4_test")
    else:
        logger.info("%s has no test part (etc/an4_test.fileids): no test.csv", folder)

    arguments = {
        "corpus": "AN4",
        "data_folder": str(folder),
        "valid_speakers": sorted(valid_speakers),
        "parts": list(parts),
    }
    loaders = {name: partial(_load, folder, texts, sources) for name, texts in parts.items()}
    return manifests.prepare(manifest_folder, arguments, sources, loaders)


def _read_part(folder, part):
    """Transcripts by file id, in the order of the list of files."""
    fileids_path = folder / "etc" / f"{part}.fileids"
    transcription_path = folder / "etc" / f"{part}.transcription"
    fileids = [line.strip() for line in manifests.read_lines(fileids_path) if line.strip()]
    texts = {}
    for number, line in enumerate(manifests.read_lines(transcription_path), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"{transcription_path}, line {number}: got {line.strip()!r};"
                " <s> WORDS </s> (utterance-id) is expected"
            )
        if match["id"] in texts:
            raise InputError(f"{transcription_path}, line {number}: {match['id']} is there twice")
        texts[match["id"]] = match["text"]

    names = [Path(fileid).name for fileid in fileids]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{fileids_path}: there twice: {manifests.some(twice)}")
    unspoken, unlisted = set(names) - set(texts), set(texts) - set(names)
    if unspoken:
        raise InputError(f"{transcription_path}: no line for {manifests.some(unspoken)}")
    if unlisted:
        raise InputError(f"{fileids_path}: no line for {manifests.some(unlisted)}")
    return {fileid: texts[name] for fileid, name in zip(fileids, names, strict=True)}


def _load(folder, texts, sources):
    utterances = []
    for fileid, text in texts.items():
        stem = str(folder / "wav" / fileid)
        candidates = [stem + suffix for suffix in _AUDIO if stem + suffix in sources]
        wav = candidates[0] if candidates else f"{stem}{{{','.join(_AUDIO)}}}"
        path = Path(fileid)
        utterances.append(manifests.Utterance(path.name, wav, path.parent.name, text))
    return utterances
