"""VoxPopuli's transcribed speech (https://github.com/facebookresearch/voxpopuli), one language.

The layout: ``asr_train.tsv``, ``asr_dev.tsv`` and ``asr_test.tsv`` name their columns in the first
line, and below their folder there is ``<year>/<id>.ogg`` for each line. Hugging Face's copy has
``train/train_part_0/<id>.wav`` and the like: audio is found by its name, wherever it is.
"""

from functools import partial
from pathlib import Path

from summarymixing.dataio import layouts, manifests
from summarymixing.errors import InputError

LANGUAGES = "cs de en es et fi fr hr hu it lt nl pl ro sk sl".split()

_TABLES = {"train": "asr_train.tsv", "valid": "asr_dev.tsv", "test": "asr_test.tsv"}
_AUDIO = (".ogg", ".wav", ".flac")  # the first one that is there is used
_COLUMNS = ("id", "normalized_text", "speaker_id")


def prepare(data_folder, manifest_folder, language="en"):
    """Writes the manifests ``train.csv``, ``valid.csv`` (the dev set) and ``test.csv``.

    The text is ``normalized_text``, as it is. Where it is empty the corpus has no transcript,
    which does not mean that nothing was said: such utterances are left out of every set and named.
    Training utterances whose audio is missing, empty or broken are left out and named too; in the
    other sets they are an error. Nothing is done if the manifests exist and neither arguments nor
    source files have changed.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds the TSV files, or holds the folder that does: ``<language>``,
        ``transcribed_data/<language>`` (official) or ``data/<language>`` (Hugging Face).
    manifest_folder : str or os.PathLike
        Where the manifests go; created if needed.
    language : str
        Code of the language, such as "en".

    Returns
    -------
    paths : dict
        Manifest paths (str) by name: "train", "valid" and "test".

    Raises
    ------
    InputError
        If the folder, the language, a TSV file, a column or all audio is missing, an utterance id
        is there twice, or the audio of a dev or test utterance cannot be used.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> root = tempfile.mkdtemp()
    >>> os.makedirs(root + "/2018")
    >>> for id_, split in (("20180703-a", "train"), ("20180703-b", "dev"), ("20180703-c", "test")):
    ...     soundfile.write(f"{root}/2018/{id_}.ogg", torch.zeros(8000).numpy(), 16000)
    ...     with open(f"{root}/asr_{split}.tsv", "w") as file:
    ...         _ = file.write("id\\traw_text\\tnormalized_text\\tspeaker_id\\n")
    ...         _ = file.write(f"{id_}\\tGood morning.\\tgood morning\\t28233\\n")
    >>> paths = prepare(root, root + "/manifests")
    >>> manifests.read(paths["valid"])[0]["wrd"]
    'good morning'
    """
    language = str(language)
    parents = ("transcribed_data", "data")
    folder = layouts.language_folder(data_folder, language, _TABLES.values(), parents, "VoxPopuli")
    if folder.name in LANGUAGES and folder.name != language:
        raise InputError(f"{folder}: this folder is of {folder.name}, not of {language}")
    parts = _read_tables(folder)
    sources = manifests.list_files(folder, (*_AUDIO, ".tsv"), f"listing {folder.name}")
    audio = {}
    for suffix in _AUDIO:
        for path in sorted(path for path in sources if path.endswith(suffix)):
            audio.setdefault(Path(path).stem, path)
    if not audio:
        raise InputError(
            f"{folder}: there is no audio ({', '.join(_AUDIO)}) in it or in the folders below it;"
            " <year>/<id>.ogg is expected (archives must be unpacked)"
        )
    arguments = {"corpus": "VoxPopuli", "data_folder": str(folder)}
    loaders = {name: partial(_load, name, folder, rows, audio) for name, rows in parts.items()}
    return manifests.prepare(manifest_folder, arguments, sources, loaders)


def _read_tables(folder):
    """For each manifest, its rows (id, text, speaker)."""
    parts, places = {}, {}
    for part, name in _TABLES.items():
        path = folder / name
        rows = []
        for number, (id_, text, speaker) in manifests.read_tsv(path, _COLUMNS):
            place = f"{path}, line {number}"
            if id_ in places:
                raise InputError(f"{place}: the id {id_} is there twice, first in {places[id_]}")
            places[id_] = place
            rows.append((id_, text, speaker))
        parts[part] = rows
    return parts


def _load(name, folder, rows, audio):
    if name != "train":  # in "train", the writing of the manifest does this
        empty = [id_ for id_, text, _ in rows if not text.strip()]
        layouts.warn_left_out(name, empty, len(rows), "their normalized_text is empty")
        rows = [row for row in rows if row[1].strip()]
    suffixes = f"{{{','.join(_AUDIO)}}}"
    return [
        manifests.Utterance(id_, audio.get(id_, f"{folder}/**/{id_}{suffixes}"), speaker, text)
        for id_, text, speaker in rows
    ]
