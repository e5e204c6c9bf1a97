"""Any data set that a table lists: a CSV, TSV or JSON-lines file with a row for each utterance.

Which column is what, the caller says. ``.csv`` is read as spreadsheets write it (comma, quotation
marks around values that need them), ``.tsv`` without quoting (a quotation mark is a character like
others); the first line of both names the columns. ``.jsonl`` has a JSON object in each line.
"""

import csv
import json
import logging
import os
from functools import partial
from pathlib import Path

from summarymixing.dataio import manifests
from summarymixing.errors import InputError
from summarymixing.files import write_whole

logger = logging.getLogger(__name__)

_TABLES = (".csv", ".tsv", ".jsonl")
_NEEDED = ("audio", "text")
_NOT_TEXT = {"\0", *map(chr, range(0xD800, 0xE000))}  # but JSON's escapes can write them


def prepare(
    data_folder,
    manifest_folder,
    train_splits,
    valid_splits,
    test_splits,
    audio_column="audio",
    text_column="text",
    id_column=None,
    speaker_column=None,
    duration_column=None,
    start_column=None,
    split_column=None,
):
    """Writes the manifests ``train.csv``, ``valid.csv`` and one ``<split>.csv`` per test split.

    Training utterances whose audio or transcript is missing, empty or broken are left out and
    named; in the other sets they are an error, but for empty transcripts, which are named and
    stay. Transcripts are kept as they are. Nothing is done
    if the manifests exist and neither arguments nor source files have changed.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds a table for each split: ``<split>.csv``, ``<split>.tsv`` or ``<split>.jsonl``. Or the
        one table of all splits, whose `split_column` tells them apart.
    manifest_folder : str or os.PathLike
        Where the manifests go; created if needed.
    train_splits : list of str
        Splits whose utterances, together, are the training set.
    valid_splits : list of str
        Splits whose utterances, together, are the validation set.
    test_splits : list of str, optional
        Splits that are a test set each; may be empty.
    audio_column : str
        Column with the audio file, relative to the folder of the table.
    text_column : str
        Column with the transcript.
    id_column : str, optional
        Column with the id, unique in each set; the audio file without suffix if left out, and the
        beginning of the segment, in ms, if there is a `start_column`.
    speaker_column : str, optional
        Column with the speaker; unknown if left out.
    duration_column : str, optional
        Column with the duration in seconds. The audio must agree with it to half a second; its
        exact duration goes into the manifest.
    start_column : str, optional
        Column with the beginning of the utterance in its audio file, in seconds: it is a segment,
        as long as `duration_column` says or until the file's end. Empty for a whole file.
    split_column : str, optional
        Column with the split, if `data_folder` is one table of all splits; other splits than those
        asked for are left alone.

    Returns
    -------
    paths : dict
        Manifest paths (str) by name: "train", "valid" and the name of each test split.

    Raises
    ------
    InputError
        If a table, a split or a column is missing, a row is broken, an utterance id is there
        twice, or a validation or test utterance cannot be used.

    Example
    -------
    >>> import soundfile, tempfile, torch
    >>> root = tempfile.mkdtemp()
    >>> for name in ("a", "b"):
    ...     soundfile.write(f"{root}/{name}.wav", torch.zeros(8000).numpy(), 16000)
    >>> with open(root + "/all.jsonl", "w") as file:
    ...     _ = file.write('{"file": "a.wav", "said": "good morning", "set": "train"}\\n')
    ...     _ = file.write('{"file": "b.wav", "said": "good night", "set": "dev"}\\n')
    >>> columns = {"audio_column": "file", "text_column": "said", "split_column": "set"}
    >>> paths = prepare(
    ...     root + "/all.jsonl", root + "/manifests", ["train"], ["dev"], [], **columns
    ... )
    >>> manifests.read(paths["valid"])[0]["wrd"]
    'good night'
    """
    parts = manifests.split_parts(train_splits, valid_splits, test_splits)
    splits = list(dict.fromkeys(split for names in parts.values() for split in names))
    columns = _given(
        audio=audio_column,
        text=text_column,
        id=id_column,
        speaker=speaker_column,
        duration=duration_column,
        start=start_column,
        split=split_column,
    )
    data = manifests.data_path(data_folder)
    if split_column is None:
        if os.path.isfile(data):
            raise InputError(f"{data}: one table of all splits needs a split_column")
        folder = manifests.existing_folder(data)
        tables = {split: _table(folder, split) for split in splits}
        rows = {split: _read(path, columns) for split, path in tables.items()}
        tables = list(tables.values())
    else:
        tables = [data]
        rows = _by_split(data, _read(data, columns), splits, split_column)

    utterances = {split: _told_apart(rows[split]) for split in splits}
    files = dict.fromkeys(u.wav for split in splits for u in utterances[split])
    sources = manifests.stat_files([*tables, *files])
    arguments = {
        "corpus": "table",
        "tables": [str(path) for path in tables],
        "parts": parts,
        "columns": columns,
    }
    loaders = {
        name: partial(lambda names: [u for split in names for u in utterances[split]], names)
        for name, names in parts.items()
    }
    return manifests.prepare(manifest_folder, arguments, sources, loaders)


def prepare_files(
    manifest_folder,
    train,
    valid,
    tests=(),
    audio_column="audio",
    text_column="text",
    id_column=None,
    speaker_column=None,
    duration_column=None,
    start_column=None,
):
    """As `prepare`, of a file for each set, wherever it lies.

    Arguments
    ---------
    manifest_folder : str or os.PathLike
        Where the manifests go; created if needed.
    train, valid : str or os.PathLike
        A table; one of our manifests, with columns of its own; a folder with a ``metadata.csv`` or
        ``metadata.jsonl`` that lists its audio, as Hugging Face's audio folders have; or a folder
        in which Hugging Face's `datasets` saved a data set (``save_to_disk``; the package is
        needed). A split of such a data set is one of its folders.
    tests : dict, optional
        Name of a test set to such a file, or to None: then it is left out.
    audio_column, text_column, id_column, speaker_column, duration_column, start_column
        As in `prepare`, of all sets that are no manifests.

    Returns
    -------
    paths : dict
        Manifest paths (str): "train", "valid" and the names of the test sets.

    Raises
    ------
    InputError
        As `prepare`.

    Example
    -------
    >>> import soundfile, tempfile, torch
    >>> root = tempfile.mkdtemp()
    >>> for name in ("a", "b"):
    ...     soundfile.write(f"{root}/{name}.wav", torch.zeros(8000).numpy(), 16000)
    ...     with open(f"{root}/{name}.csv", "w") as file:
    ...         _ = file.write(f"audio,text\\n{name}.wav,good morning\\n")
    >>> paths = prepare_files(root + "/manifests", root + "/a.csv", root + "/b.csv")
    >>> manifests.read(paths["valid"])[0]["wrd"]
    'good morning'
    """
    files = {"train": train, "valid": valid}
    for name, path in dict(tests).items():
        manifests.check_test_name(name, files)
        if path is not None:
            files[name] = path
    for name, path in files.items():
        if not isinstance(path, (str, os.PathLike)) or str(path) == "" or "\0" in str(path):
            raise InputError(f"{name}: a table or a folder is expected, got {path!r}")
    files = {name: Path(os.path.abspath(path)) for name, path in files.items()}
    columns = _given(
        audio=audio_column,
        text=text_column,
        id=id_column,
        speaker=speaker_column,
        duration=duration_column,
        start=start_column,
    )
    found = {
        name: _utterances(path, columns, Path(manifest_folder) / f"{name}_audio")
        for name, path in files.items()
    }
    audio = dict.fromkeys(u.wav for utterances in found.values() for u in utterances)
    inside = [entry for path in files.values() if path.is_dir() for entry in path.iterdir()]
    return manifests.prepare(
        manifest_folder,
        {
            "corpus": "files",
            "files": {name: str(path) for name, path in files.items()},
            "columns": columns,
        },
        manifests.stat_files([*files.values(), *inside, *audio]),
        {name: partial(lambda found: found, utterances) for name, utterances in found.items()},
    )


def _given(**columns):
    columns = {r: name for r, name in columns.items() if name is not None or r in _NEEDED}
    for role, column in columns.items():
        if not isinstance(column, str):
            raise InputError(f"{role}_column must be the name of a column, got {column!r}")
    return columns


def _utterances(path, columns, folder):
    """Those of a table, a manifest or a folder; audio that is inside a table goes into `folder`."""
    if path.is_dir():
        if (path / "state.json").is_file():
            return _saved_dataset(path, columns, folder)
        lists = [path / f"metadata{suffix}" for suffix in (".csv", ".jsonl")]
        found = [file for file in lists if file.is_file()]
        if not found:
            raise InputError(
                f"{path}: neither a metadata.csv or metadata.jsonl of an audio folder, nor a data "
                "set that was saved to disk (a state.json; of several splits, name one's folder)"
            )
        path = found[0]
        columns = columns | {"audio": "file_name"}
    elif path.suffix == ".csv" and _is_manifest(path):
        return [
            manifests.Utterance(
                row["ID"],
                os.path.abspath(path.parent / row["wav"]),
                row["spk_id"],
                row["wrd"],
                row.get("start"),
                row.get("stop"),
            )
            for row in manifests.read(path)
        ]
    return _told_apart(_read(path, columns))


def _is_manifest(path):
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return set(manifests.COLUMNS) <= set(next(csv.reader(file), ()))
    except (OSError, ValueError):  # for the reading of tables to say
        return False


def _saved_dataset(path, columns, folder):
    try:
        import datasets  # an optional package
    except ImportError:
        raise InputError(
            f"{path}: a saved data set is read by Hugging Face's package: pip install datasets"
        ) from None
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # of whatever kind; damaged files are the user's
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    manifests.check_columns(path, columns.values(), rows.column_names)
    if isinstance(rows.features[columns["audio"]], datasets.Audio):
        rows = rows.cast_column(columns["audio"], datasets.Audio(decode=False))
    rows = rows.select_columns(list(columns.values()))
    return [_utterance(path, n, _row(row, columns, folder, n)) for n, row in enumerate(rows)]


def _row(row, columns, folder, number):
    """A row by role, its audio in a file: as it was, or written into `folder`."""
    row = {"id": f"{number:08d}"} | {role: row[column] for role, column in columns.items()}
    audio = row["audio"]
    if isinstance(audio, dict):
        name, content = audio["path"], audio["bytes"]
        if content is not None:
            file = folder / f"{number:08d}{os.path.splitext(name or '')[1] or '.wav'}"
            if not file.is_file() or file.stat().st_size != len(content):
                write_whole(file, content)
            name = str(file.absolute())
        row["audio"] = name
    return row


def _table(folder, split):
    """The file of a split."""
    paths = [folder / f"{split}{suffix}" for suffix in _TABLES]
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        raise InputError(
            f"{folder}: more than one table for {split}: {', '.join(path.name for path in found)}"
        )
    if not found:
        there = manifests.some(entry.name for entry in folder.iterdir() if entry.is_file())
        raise InputError(
            f"{folder}: there is no table {' or '.join(path.name for path in paths)}; found {there}"
        )
    return found[0]


def _by_split(path, rows, splits, column):
    found = {}
    for row in rows:
        found.setdefault(_name("split", *row), []).append(row)
    for split in splits:
        if split not in found:
            names = manifests.some(str(name) for name in found)
            raise InputError(f"{path}: the column {column} has no {split}; found {names}")
    others = [f"{len(found[name])} of {name!r}" for name in found if name not in splits]
    if others:
        logger.warning(
            "%s: rows that the column %s puts into no split that is used: %s",
            *(path, column, manifests.some(others)),
        )
    return found


def _read(path, columns):
    """Rows of a table: its path, the line and the values by role, None where there are none."""
    readers = {".csv": _read_csv, ".tsv": manifests.read_tsv, ".jsonl": _read_jsonl}
    if path.suffix not in readers or path.is_dir():
        raise InputError(f"{path}: a table ({', '.join(_TABLES)}) is expected")
    try:
        rows = list(readers[path.suffix](path, list(columns.values())))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such table") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not rows:
        raise InputError(f"{path}: there are no rows in it")
    for line, values in rows:
        for value in values:
            if isinstance(value, str) and not _NOT_TEXT.isdisjoint(value):
                raise InputError(
                    f"{path}, line {line}: a value has a character that no text has (\\0, or half"
                    f" of a surrogate pair): {value[:80]!a}"
                )
    return [(path, line, dict(zip(columns, values))) for line, values in rows]


def _read_csv(path, columns):
    begun = 1
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, strict=True)
        try:
            header = table.fieldnames or []
            manifests.check_columns(path, columns, header)
            begun = table.line_num + 1
            for row in table:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {table.line_num}: {len(header)} values are expected"
                    )
                yield table.line_num, [row[column] for column in columns]
                begun = table.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path}, line {begun}: quotation marks stand around a value, in pairs, and are "
                f"doubled within it, and no value has more than {csv.field_size_limit()} characters"
                f" ({error})"
            ) from error


def _read_jsonl(path, columns):
    missing = set(columns)
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(
                    f"{path}, line {number}: a JSON object is expected, got {line.strip()[:80]!r}"
                )
            missing -= row.keys()
            yield number, [row.get(column) for column in columns]
    # Objects may leave keys out, but a key that none of them has is a mistake.
    if missing:
        raise InputError(f"{path}: none of the objects has the key {', '.join(sorted(missing))}")


def _told_apart(rows):
    """Their utterances, unless two without an id are of the same audio and beginning."""
    lines, utterances = {}, []
    for path, line, row in rows:
        utterance = _utterance(path, line, row)
        if row.get("id") in (None, ""):
            before = lines.setdefault(utterance.id, line)
            if before != line:
                raise InputError(
                    f"{path}, line {line}: the utterance id {utterance.id}, made of the audio's"
                    f" name, is that of line {before} as well; id_column names a column with ids,"
                    " or start_column where segments begin"
                )
        utterances.append(utterance)
    return utterances


def _utterance(path, line, row):
    wav = row["audio"]
    if not isinstance(wav, str) or not wav:
        raise InputError(f"{path}, line {line}: an audio file is expected, got {wav!r}")
    if not isinstance(row["text"], str | None):
        raise InputError(f"{path}, line {line}: the text must be a string, got {row['text']!r}")
    start, duration = (_number(role, path, line, row) for role in ("start", "duration"))
    stop = start + duration if start is not None and duration is not None else None
    id_ = _name("id", path, line, row)
    if id_ in (None, ""):
        id_ = os.path.splitext(wav)[0] + ("" if start is None else f"-{round(start * 1000):08d}")
    return manifests.Utterance(
        id_,
        os.path.abspath(path.parent / wav),
        _name("speaker", path, line, row) or "",
        row["text"],
        start,
        stop,
        duration if start is None else None,
    )


def _name(role, path, line, row):
    value = row.get(role)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{path}, line {line}: {role} must be a string or number, got {value!r}")
    return str(value)


def _number(role, path, line, row):
    value = row.get(role)
    if value is None or value == "":
        return None
    try:
        return manifests.to_seconds(value)
    except ValueError:
        raise InputError(
            f"{path}, line {line}: {role} must be a number of seconds, got {value!r:.80}"
        ) from None
