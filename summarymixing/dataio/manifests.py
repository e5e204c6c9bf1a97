"""Manifests: the CSV files that list the utterances of a data set, one row each.

They are SpeechBrain CSVs with the columns ``ID,duration,wav,spk_id,wrd``; ``duration`` is in
seconds at the file's own rate and exact: ``round(duration * rate)`` is the number of samples.
Where utterances are segments of longer files there are two more columns, ``start,stop``, in
seconds and just as exact; both are empty for an utterance that is a whole file.

What the corpora share is here too: noticing unusable audio before training starts, and skipping
the work when it was done before.
"""

import csv
import errno
import functools
import hashlib
import itertools
import json
import logging
import operator
import os
import weakref
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

from summarymixing.dataio import audio
from summarymixing.errors import InputError
from summarymixing.files import write_whole
from summarymixing.machine import cores

logger = logging.getLogger(__name__)

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
SEGMENT_COLUMNS = ("start", "stop")
_NOT_IN_IDS = set("\t\n\r")
_NAMED_IN_LOG = 20
_THREADS = 8  # at least, as they may be waiting for the disk
_CHUNK = 32  # utterances that a thread gets at a time: handing over costs as much as a WAV's header
_TOLERANCE = 0.5  # seconds; times that corpora state are rounded, and coders add some silence
_LONGEST = 1e9  # seconds, about 32 years; numbers of samples of longer ones may be no numbers
_OF_TRAINING = ("train.clean", "train.dropped", "train.findings")  # CSV files beside manifests


@dataclass(frozen=True, slots=True)  # there may be a million
class Utterance:
    """One recorded utterance and what was said.

    Arguments
    ---------
    id : str
        Unique in the data set; without spaces around it, tabs and line breaks.
    wav : str
        Absolute path of the audio file.
    speaker : str
        Who speaks.
    text : str, optional
        The transcript; "" if nothing was said, None if the corpus has no transcript for it.
    start : float, optional
        Where the utterance begins in the file, in seconds; its beginning if left out.
    stop : float, optional
        Where it ends; the file's end if left out, or if it is beyond it by up to half a second.
    duration : float, optional
        What the corpus says, in seconds: the audio must agree with it to half a second.

    Example
    -------
    >>> Utterance("a-1", "/data/a-1.flac", "a", "GOOD MORNING").text
    'GOOD MORNING'
    """

    id: str
    wav: str
    speaker: str
    text: str | None
    start: float | None = None
    stop: float | None = None
    duration: float | None = None


def write(path, utterances, on_bad="drop", description="manifest"):
    """Inspects the audio of some utterances and writes their manifest.

    Arguments
    ---------
    path : str or os.PathLike
        The CSV file to write; its folder is created.
    utterances : iterable of Utterance
        In any order; rows are sorted by id.
    on_bad : str
        What to do about an utterance with unusable audio or no transcript.
        "drop" (training sets): leave it out, name it in the log and in ``<stem>.dropped.csv``;
        so are empty transcripts. "raise" (dev and test sets, whose score would change):
        an error; an empty transcript is kept, as scoring can handle it, and named in the log.
    description : str
        What the progress bar and the messages call the set.

    Returns
    -------
    count : int
        Number of rows written.

    Raises
    ------
    InputError
        On an id that is no id or there twice, on an unusable utterance if ``on_bad="raise"``, if no
        utterance is usable, and if more than half are not, and more than the log names.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> wav = os.path.join(tempfile.mkdtemp(), "a-1.wav")
    >>> soundfile.write(wav, torch.zeros(8000).numpy(), 16000)
    >>> manifest = wav.replace(".wav", ".csv")
    >>> write(manifest, [Utterance("a-1", wav, "a", "GOOD MORNING")], on_bad="raise")
    1
    >>> read(manifest)[0]["duration"]
    0.5
    """
    if on_bad not in ("drop", "raise"):
        raise ValueError(f'on_bad must be "drop" or "raise", got {on_bad!r}')
    path = Path(path)
    utterances = sorted(utterances, key=lambda utterance: utterance.id)
    if not utterances:
        raise InputError(f"{path.name}: {description} has no utterances; at least one is needed")
    for utterance in utterances:
        id_ = utterance.id
        # Files of transcripts would be read with another id.
        if not id_ or id_ != id_.strip() or not _NOT_IN_IDS.isdisjoint(id_):
            raise InputError(
                f"{description}: the utterance id {id_!r} ({utterance.wav!r}) must not be empty,"
                " have spaces around it or hold a tab or line break"
            )
    for one, other in itertools.pairwise(utterances):
        if one.id == other.id:
            raise InputError(
                f"{description}: the utterance id {one.id} is there twice ({one.wav} and"
                f" {other.wav}); ids must be unique"
            )

    inspect = functools.lru_cache(64)(audio.inspect)  # segments of one file follow each other
    firsts = range(0, len(utterances), _CHUNK)
    chunks = [utterances[first : first + _CHUNK] for first in firsts]
    progress = tqdm(desc=f"checking {description}", total=len(utterances), unit="file")
    results = []
    with ThreadPoolExecutor(max(_THREADS, cores())) as pool, progress:
        for checked in pool.map(lambda chunk: [_check(u, on_bad, inspect) for u in chunk], chunks):
            results += checked
            progress.update(len(checked))

    segments = any(_is_segment(utterance) for utterance in utterances)
    rows, bad = [], []
    for utterance, (times, reason) in zip(utterances, results, strict=True):
        if reason is None:
            start, stop, duration = map(repr, times)
            text = " ".join(utterance.text.split())
            row = (utterance.id, duration, utterance.wav, utterance.speaker, text)
            if segments:
                row += (start, stop) if _is_segment(utterance) else ("", "")
            rows.append(row)
        else:
            bad.append((utterance.id, utterance.wav, reason))
    if bad and on_bad == "raise":
        raise InputError(
            f"{description}: {bad[0][2]} (utterance {bad[0][0]}, {len(bad)} of {len(utterances)}"
            " are unusable); leaving any out would change the score, so mend the data"
        )
    if not rows:
        raise InputError(
            f"{description}: none of the {len(utterances)} utterances can be used; the first:"
            f" {bad[0][2]} (utterance {bad[0][0]})"
        )

    dropped = path.with_name(f"{path.stem}.dropped.csv")
    dropped.unlink(missing_ok=True)
    if bad:
        write_csv(dropped, ("ID", "wav", "reason"), bad)
        if len(bad) > max(len(rows), _NAMED_IN_LOG):
            raise InputError(
                f"{description}: {len(bad)} of {len(utterances)} utterances cannot be used, more"
                f" than half: is the corpus whole? The first: {bad[0][2]} (utterance {bad[0][0]});"
                f" all are in {dropped}"
            )
        for id_, wav, reason in bad[:_NAMED_IN_LOG]:
            logger.warning("%s: left out %s (%s): %s", description, id_, wav, reason)
        more = len(bad) - _NAMED_IN_LOG
        logger.warning(
            "%s: %d of %d utterances left out%s; the full list is in %s",
            description,
            len(bad),
            len(utterances),
            f" ({more} more than named above)" if more > 0 else "",
            dropped,
        )
    empty = [row[0] for row in rows if not row[4]]
    if empty:
        logger.warning(
            "%s: %d of %d transcripts are empty, and what is recognised there are errors: %s",
            description,
            len(empty),
            len(rows),
            some(empty),
        )
    write_csv(path, COLUMNS + SEGMENT_COLUMNS if segments else COLUMNS, rows)
    return len(rows)


class Manifest(Sequence):
    """The rows of a manifest, read from its file when they are asked for.

    What is kept in memory is an index of 24 bytes a row; `read` makes it. Forked and spawned
    processes can use it as well: none of them has to read the file again.

    Arguments
    ---------
    file : _File
        Where the rows are.
    spans : np.ndarray
        (rows, 2), int64: where each row begins and ends in the file, in bytes.
    durations : np.ndarray
        (rows,), float64, in seconds.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "dev.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("ID,duration,wav,spk_id,wrd\\na-1,0.5,/data/a-1.flac,a,GOOD MORNING\\n")
    ...     _ = file.write("a-2,1.5,/data/a-2.flac,a,GOOD NIGHT\\n")
    >>> manifest = read(path)
    >>> manifest[-1]["wrd"]
    'GOOD NIGHT'
    >>> manifest.durations
    array([0.5, 1.5])
    >>> [row["ID"] for row in manifest.select([1, 0])]
    ['a-2', 'a-1']
    """

    def __init__(self, file, spans, durations):
        self._file = file
        self._spans = spans
        self.durations = durations

    @property
    def path(self):
        """The CSV file (pathlib.Path)."""
        return self._file.path

    @property
    def columns(self):
        """Names of the columns (tuple of str), in the order of the file."""
        return self._file.columns

    def select(self, indices):
        """Some of the rows, in the order given, as a `Manifest`.

        Arguments
        ---------
        indices : slice or sequence of int or np.ndarray
            Which rows; an array of bool, as long as the manifest, says it for each.

        Returns
        -------
        manifest : Manifest

        Raises
        ------
        IndexError
            If there is no such row.
        """
        if not isinstance(indices, slice):
            indices = np.asarray(indices)
            if indices.size == 0 and indices.dtype != bool:  # of an empty list NumPy makes floats
                indices = indices.astype(np.int64)
        return Manifest(self._file, self._spans[indices], self.durations[indices])

    def save(self, path):
        """Writes these rows, as they are, into a manifest of their own.

        Arguments
        ---------
        path : str or os.PathLike
            The CSV file; its folder is created.
        """
        lines = itertools.chain([self._file.content(0, self._file.header)], self._contents())
        try:
            write_whole(path, (line if line[-1:] in b"\r\n" else line + b"\n" for line in lines))
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    def _contents(self):
        for first in range(0, len(self), 1024):  # Python's integers need much memory
            for begin, end in self._spans[first : first + 1024].tolist():
                yield self._file.content(begin, end)

    def __len__(self):
        return len(self._spans)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.select(index)
        begin, end = self._spans[operator.index(index)].tolist()
        return self._file.row(self._file.content(begin, end))

    def __iter__(self):
        return map(self._file.row, self._contents())

    def __eq__(self, other):
        if not isinstance(other, (Manifest, list)):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None

    def __repr__(self):
        return f"<Manifest {str(self.path)!r}: {len(self)} rows>"


class _File:
    """The CSV file behind manifests, which must stay as it was when it was opened."""

    def __init__(self, path, columns, header, status):
        self.path, self.columns = path, columns
        self.header = header  # bytes before the first row
        self._stamp = _stamp(status)
        self._descriptor = None

    def content(self, begin, end):
        """The bytes from `begin` to `end`."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)
            same = _stamp(os.fstat(self._descriptor)) == self._stamp
            # One descriptor serves forked processes as well: pread moves no common position.
            content = os.pread(self._descriptor, end - begin, begin) if same else b""
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        if len(content) < end - begin:
            raise InputError(
                f"{self.path}: the manifest was changed while it was in use; start again with it"
            )
        return content

    def row(self, content):
        """The row (dict) that some bytes are."""
        try:
            values = next(csv.reader([content.decode()], skipinitialspace=True))
        except csv.Error as error:
            raise InputError(f"{self.path}: not a UTF-8 CSV file ({error})") from error
        row = dict(itertools.zip_longest(self.columns, values))
        row["duration"] = float(row["duration"])
        for name in SEGMENT_COLUMNS:
            if name in row:
                row[name] = float(row[name]) if row[name] else None
        return row

    def __getstate__(self):
        return self.__dict__ | {"_descriptor": None}


class _Lines:
    """Iterates over a text file's lines; `number` and `place` (in bytes) are the last one's end."""

    def __init__(self, file):
        self.number = self.place = 0
        self._lines = self._counted(file)

    def _counted(self, file):
        for line in file:
            self.number += 1
            self.place += len(line) if line.isascii() else len(line.encode())
            yield line

    def __iter__(self):
        return self._lines


def _stamp(status):
    return status.st_size, status.st_mtime_ns


def read(path):
    """Opens a manifest: its rows are checked now and read when they are used.

    Arguments
    ---------
    path : str or os.PathLike
        A CSV file with at least the columns ``ID,duration,wav,spk_id,wrd``.

    Returns
    -------
    manifest : Manifest
        A sequence of dicts, one per utterance; ``duration`` is a float in seconds, ``start`` and
        ``stop``, if they are there, are too, or None for a whole file; everything else is a str.

    Raises
    ------
    InputError
        If the file is missing, is no CSV, has no rows or lacks a column or a value; later, when a
        row is used, if the file is not the same any more.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "dev.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("ID,duration,wav,spk_id,wrd\\na-1,0.5,/data/a-1.flac,a,GOOD MORNING\\n")
    >>> read(path)[0]["wrd"]
    'GOOD MORNING'
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise InputError(f"{path}: there is no such manifest (a CSV file is expected)")
    spans, durations = array("q"), array("d")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            opened = os.fstat(file.fileno())
            lines = _Lines(file)
            columns = tuple(next(csv.reader(lines, skipinitialspace=True), ()))
            missing = [name for name in COLUMNS if name not in columns]
            if missing:
                raise InputError(
                    f"{path}: the manifest lacks the column {', '.join(missing)};"
                    f" {','.join(COLUMNS)} are needed"
                )
            places = {name: i for i, name in enumerate(columns)}
            fewest = max(places[name] for name in COLUMNS) + 1
            duration, *optional = (
                places[name] for name in ("duration", *SEGMENT_COLUMNS) if name in places
            )
            begin = header = lines.place
            for line in lines:
                if '"' in line:  # may go on in the lines that follow
                    values = next(csv.reader(itertools.chain([line], lines), skipinitialspace=True))
                else:  # the same, at a third of the time
                    values = line.rstrip("\r\n").split(",")
                if values != [""]:
                    if not fewest <= len(values) <= len(columns):
                        raise InputError(
                            f"{path}, line {lines.number}: {len(columns)} values are expected"
                        )
                    spans.extend((begin, lines.place))
                    durations.append(_seconds(values, duration, columns, path, lines))
                    for i in optional:
                        if i < len(values) and values[i].strip(" "):
                            _seconds(values, i, columns, path, lines)
                begin = lines.place
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 CSV file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not durations:
        raise InputError(f"{path}: the manifest has no rows; at least one utterance is needed")
    spans = np.frombuffer(spans, np.int64).reshape(-1, 2)
    return Manifest(_File(path, columns, header, opened), spans, np.frombuffer(durations))


def read_audio(row, sample_rate=16000):
    """Reads the audio of a manifest's row, be it a whole file or a segment.

    Arguments
    ---------
    row : dict
        As `read` returns it.
    sample_rate : int
        Rate in Hz of the result.

    Returns
    -------
    waveform : torch.Tensor
        Shape (samples,), as `audio.read` returns it.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> wav = os.path.join(tempfile.mkdtemp(), "a.wav")
    >>> soundfile.write(wav, torch.zeros(8000).numpy(), 16000)
    >>> read_audio({"wav": wav, "start": 0.25, "stop": 0.375}).shape
    torch.Size([2000])
    """
    return audio.read(row["wav"], sample_rate, row.get("start"), row.get("stop"))


def prepare(manifest_folder, arguments, sources, loaders):
    """Writes the manifests of a corpus, or finds that they are there already.

    Beside the manifests, ``prepare.json`` records the arguments and a fingerprint of the source
    files; while both stay the same and all manifests exist, nothing is done.

    Arguments
    ---------
    manifest_folder : str or os.PathLike
        Where the manifests go.
    arguments : dict
        What the manifests depend on besides the source files; anything JSON can hold.
    sources : dict
        Source files, as `list_files` returns them.
    loaders : dict
        For each manifest, its name and a function without arguments that returns its list of
        `Utterance`. Unusable ones are dropped from "train" and are an error in every other.

    Returns
    -------
    paths : dict
        For each manifest, its name and its path (str).

    Raises
    ------
    InputError
        As `write`, and if the folder cannot be written.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> folder = tempfile.mkdtemp()
    >>> wav = os.path.join(folder, "a-1.wav")
    >>> soundfile.write(wav, torch.zeros(8000).numpy(), 16000)
    >>> loaders = {"train": lambda: [Utterance("a-1", wav, "a", "GOOD MORNING")]}
    >>> paths = prepare(folder, {"corpus": "example"}, list_files(folder, (".wav",)), loaders)
    >>> os.path.basename(paths["train"])
    'train.csv'
    """
    folder = Path(manifest_folder).absolute()
    paths = {name: folder / f"{name}.csv" for name in loaders}
    digest = hashlib.sha256()
    for file in sorted(sources):
        digest.update(repr((file, sources[file])).encode())
    state = {"arguments": arguments, "source": digest.hexdigest()}
    record = folder / "prepare.json"

    if _load_json(record) == state and all(path.is_file() for path in paths.values()):
        logger.info("manifests in %s are up to date: preparation skipped", folder)
    else:
        try:
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder}: manifest folder is not a folder")
            folder.mkdir(parents=True, exist_ok=True)
            # Until all manifests are new, they must not pass for those of an earlier run.
            record.unlink(missing_ok=True)
            for name, path in paths.items():
                on_bad = "drop" if name == "train" else "raise"
                count = write(path, loaders[name](), on_bad, name)
                logger.info("%s: %d utterances in %s", name, count, path)
            write_whole(record, json.dumps(state, indent=1))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # an experiment says what to do then
            done = "written" if Path(error.filename or folder).is_relative_to(folder) else "read"
            raise InputError(f"{error.filename}: cannot be {done} ({error.strerror})") from error
    return {name: str(path) for name, path in paths.items()}


def split_parts(train_splits, valid_splits, test_splits):
    """The splits of each manifest, for corpora that leave their choice to the user.

    Arguments
    ---------
    train_splits, valid_splits : str or list of str
        Splits that are the training and the validation set, together.
    test_splits : str or list of str, optional
        Splits that are a test set each; may be empty.

    Returns
    -------
    parts : dict
        For each manifest, its name and the list of its splits.

    Raises
    ------
    InputError
        If there is no training or no validation split, or a test split cannot be called so.

    Example
    -------
    >>> split_parts(["train-a", "train-b"], "dev", ["test"])
    {'train': ['train-a', 'train-b'], 'valid': ['dev'], 'test': ['test']}
    """
    parts = {
        "train": _names("train_splits", train_splits),
        "valid": _names("valid_splits", valid_splits),
    }
    for name, splits in parts.items():
        if not splits:
            raise InputError(f"{name}_splits is empty; name at least one split")
    for split in _names("test_splits", test_splits):
        check_test_name(split, parts)
        parts[split] = [split]
    return parts


def _names(argument, splits):
    names = [splits] if isinstance(splits, str | int) else splits or []
    # YAML reads 2019 as a number, and no as a bool.
    if not isinstance(names, list | tuple) or any(
        not isinstance(name, str | int) or isinstance(name, bool) for name in names
    ):
        raise InputError(f"{argument} must be names of splits, got {splits!r}")
    return [str(name) for name in names]


def check_test_name(name, others):
    """Raises InputError unless a test set's manifest can have a name, beside those of others.

    Example
    -------
    >>> check_test_name("test-clean", ["train", "valid"])
    >>> check_test_name("../test", ["train", "valid"])
    Traceback (most recent call last):
    summarymixing.errors.InputError: test set '../test': a plain file name is expected
    """
    if not isinstance(name, str) or name in ("", ".", "..") or not {"/", "\0"}.isdisjoint(name):
        raise InputError(f"test set {name!r}: a plain file name is expected")
    if name in others or name in _OF_TRAINING:
        raise InputError(f"test set {name!r}: another file has that name; it needs one of its own")


def list_files(folder, suffixes, description="listing"):
    """Lists the files under a folder, with what tells whether they were changed.

    Arguments
    ---------
    folder : str or os.PathLike
        Searched with everything below it.
    suffixes : tuple of str
        Endings of the file names to list.
    description : str
        Of the progress bar, which counts the folder's own entries.

    Returns
    -------
    files : dict
        For each absolute path (str), its size in bytes and its modification time in ns.

    Raises
    ------
    InputError
        If a folder cannot be listed.

    Example
    -------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with open(os.path.join(folder, "a.txt"), "w") as file:
    ...     _ = file.write("GOOD MORNING")
    >>> [size for size, _ in list_files(folder, (".txt",)).values()]
    [12]
    """
    files = {}

    def note(entry):
        if entry.name.endswith(suffixes) and entry.is_file():
            status = entry.stat()
            files[entry.path] = (status.st_size, status.st_mtime_ns)

    def visit(entry):
        if entry.is_dir():
            with os.scandir(entry.path) as children:
                for child in children:
                    visit(child)
        else:
            note(entry)

    try:
        with os.scandir(os.path.abspath(folder)) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
        for entry in tqdm(entries, description, unit="entry"):
            visit(entry)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from error
    return files


def stat_files(paths, description="listing"):
    """Of some files what `list_files` tells of those in a folder; missing ones are not in it.

    Arguments
    ---------
    paths : list of str or os.PathLike
        The files.
    description : str
        Of the progress bar.

    Returns
    -------
    files : dict
        As from `list_files`, for each path as it was given (str).

    Example
    -------
    >>> stat_files(["/nowhere/a.wav"])
    {}
    """
    files = {}
    for path in tqdm(paths, description, unit="file"):
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # what it means is for the writing of the manifest to say
            continue
        files[os.fspath(path)] = (status.st_size, status.st_mtime_ns)
    return files


def data_path(folder):
    """Returns what was given as the data folder as an absolute Path, or says that it is no path.

    Example
    -------
    >>> data_path("/data/..").as_posix()
    '/'
    """
    if not isinstance(folder, (str, os.PathLike)) or str(folder) == "" or "\0" in str(folder):
        raise InputError(f"the data folder must be a path, got {folder!r}")
    return Path(os.path.abspath(folder))  # without "..", as list_files returns paths


def existing_folder(folder, corpus=None):
    """Returns a data folder as an absolute Path, or says why not, and how to get the corpus.

    Example
    -------
    >>> existing_folder("/").is_absolute()
    True
    """
    path = data_path(folder)
    if not os.path.exists(path):
        hint = f"; scripts/download.py {corpus} FOLDER fetches it, or says where it is"
        raise InputError(f"{path}: the data folder does not exist{hint if corpus else ''}")
    if not path.is_dir():
        raise InputError(f"{path}: the data folder is not a folder")
    return path


def read_lines(path):
    """Lines of a text file (list of str), with an error that names it.

    Only line ends end a line: transcripts hold other separators (U+2028), too.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.txt")
    >>> with open(path, "w") as file:
    ...     _ = file.write("GOOD\\nMORNING\\n")
    >>> read_lines(path)
    ['GOOD', 'MORNING']
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.removesuffix("\n") for line in file]
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; it belongs to the corpus") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_tsv(path, columns, optional=()):
    """Rows of a tab-separated file whose first line names its columns.

    Quotation marks are characters like others, and only a line feed ends a line: in the texts
    that corpora collect, marks are not paired, and other line separators (U+2028) occur.

    Arguments
    ---------
    path : str or os.PathLike
        The file, UTF-8.
    columns : list of str
        The columns that are wanted, in this order; the file may have others.
    optional : list of str
        Columns that follow them, with None in each row where the file does not have them.

    Returns
    -------
    rows : list of (int, tuple of str)
        Line number and values of each line that is not blank.

    Raises
    ------
    InputError
        If the file cannot be read, a column is missing, or a line has another number of values
        than the first.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.tsv")
    >>> with open(path, "w") as file:
    ...     _ = file.write('id\\tage\\ttext\\na-1\\t\\t"Good" morning\\n')
    >>> read_tsv(path, ["text", "id"])
    [(2, ('"Good" morning', 'a-1'))]
    """
    path = Path(path)
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            header = file.readline().rstrip("\r\n").split("\t")
            check_columns(path, columns, header)
            places = [header.index(column) for column in columns]
            places += [header.index(name) if name in header else None for name in optional]
            for number, line in enumerate(file, 2):
                if not line.strip():
                    continue
                values = line.rstrip("\r\n").split("\t")
                if len(values) != len(header):
                    raise InputError(
                        f"{path}, line {number}: {len(header)} values are expected,"
                        f" got {len(values)}"
                    )
                wanted = (None if place is None else values[place] for place in places)
                rows.append((number, tuple(wanted)))
    except FileNotFoundError:
        found = some(entry.name for entry in path.parent.glob("*.tsv*"))
        raise InputError(f"{path}: there is no such file; found {found}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not rows:
        raise InputError(f"{path}: there is no line behind the names of its columns")
    return rows


def check_columns(path, columns, header):
    """Raises InputError for a wanted column that a table does not have, or has more than once.

    Example
    -------
    >>> check_columns("a.csv", ["text"], ["audio", "words"])
    Traceback (most recent call last):
    summarymixing.errors.InputError: a.csv: there is no column text; found audio, words
    """
    for column in columns:
        if column not in header:
            found = ", ".join(header) or "nothing"
            raise InputError(f"{path}: there is no column {column}; found {found}")
        if header.count(column) > 1:
            raise InputError(f"{path}: the column {column} is there more than once")


def some(names, limit=8):
    """Names for an error message, the first few of them.

    Example
    -------
    >>> some(["c", "a", "b"], limit=2)
    'a, b and 1 more'
    """
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def _check(utterance, on_bad, inspect):
    """Start, stop and duration in seconds and None, or None and why an utterance is unusable."""
    try:
        info = inspect(utterance.wav)
    except InputError as error:
        return None, str(error)
    if utterance.text is None:
        return None, f"{utterance.wav}: there is no transcript of this audio file"
    if on_bad == "drop" and not utterance.text.strip():
        return None, "the transcript is empty"
    stop = info.duration if utterance.stop is None else utterance.stop
    first = round((utterance.start or 0) * info.sample_rate)
    end = min(round(stop * info.sample_rate), info.frames)
    if not 0 <= first < end or stop > info.duration + _TOLERANCE:
        return None, (
            f"{utterance.wav}: the segment from {utterance.start} s to {utterance.stop} s is empty"
            f" or not inside the file, which has {info.duration} s"
        )
    start, stop, duration = (count / info.sample_rate for count in (first, end, end - first))
    if utterance.duration is not None and abs(utterance.duration - duration) > _TOLERANCE:
        return None, (
            f"{utterance.wav}: {utterance.duration} s are stated, the audio has {duration} s"
        )
    return (start, stop, duration), None


def _is_segment(utterance):
    return utterance.start is not None or utterance.stop is not None


def to_seconds(value):
    """The number of seconds (float) that somebody wrote; ValueError if it is none.

    Example
    -------
    >>> to_seconds("1.5")
    1.5
    >>> to_seconds("1e300")
    Traceback (most recent call last):
    ValueError: no number of seconds: '1e300'
    """
    try:
        seconds = float(value)
        if abs(seconds) < _LONGEST and not isinstance(value, bool):
            return seconds
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"no number of seconds: {value!r}")


def _seconds(values, i, columns, path, lines):
    try:
        seconds = to_seconds(values[i])
        if seconds >= 0:
            return seconds
    except ValueError:
        pass
    raise InputError(
        f"{path}, line {lines.number}: {columns[i]} must be a number of seconds, got {values[i]!r}"
    )


def write_csv(path, columns, rows):
    """Writes a CSV file, whole or not at all.

    Arguments
    ---------
    path : str or os.PathLike
        The file; its folder is created.
    columns : sequence of str
        The first line.
    rows : iterable of sequence
        The others.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.csv")
    >>> write_csv(path, ("ID", "wrd"), [("a-1", "GOOD, MORNING")])
    >>> print(Path(path).read_text())
    ID,wrd
    a-1,"GOOD, MORNING"
    """
    line = csv.writer(SimpleNamespace(write=str), lineterminator="\n").writerow
    try:
        write_whole(path, map(line, itertools.chain([columns], rows)))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _load_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
