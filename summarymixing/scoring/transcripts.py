"""Files of transcripts, for scoring: read, normalised if asked for, and paired by utterance id.

======  ==========================  ============================================================
format  suffixes                    a line
======  ==========================  ============================================================
text    .txt .text .tsv, or none    ``id words``, as Kaldi's; where every line has a tab, the id
                                    ends there and may hold spaces (``hypotheses_*.txt`` of a
                                    training)
trn     .trn                        ``words (id)``, as NIST's
ctm     .ctm                        ``recording channel start duration word``, and more or not
json    .jsonl .ndjson .json        a JSON object with an id and a text
csv     .csv                        a row of a SpeechBrain manifest: the columns ID, wrd and, if
                                    there, spk_id (``manifests/*.csv`` of a training)
======  ==========================  ============================================================

Files are UTF-8. Blank lines mean nothing; in trn and ctm neither do lines that begin with ``;;``.
Words stand for themselves: of the marks that NIST's sclite interprets, alternatives
(``{ a / b }``, ``<ALT_BEGIN>``) are refused, and others such as ``@`` or ``(uh)`` are words.
"""

import csv
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from summarymixing.errors import InputError

_SUFFIXES = {
    "": "text",
    ".txt": "text",
    ".text": "text",
    ".tsv": "text",
    ".trn": "trn",
    ".ctm": "ctm",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
}
FORMATS = tuple(dict.fromkeys(_SUFFIXES.values()))
UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


@dataclass(frozen=True)
class Transcripts:
    """What was said in each utterance and, if the file says it, by whom.

    Attributes
    ----------
    texts : dict[str, str]
        Utterance id to text, which may be empty.
    speakers : dict[str, str] or None
        Utterance id to speaker.
    """

    texts: dict[str, str]
    speakers: dict[str, str] | None = None


def format_of(path) -> str:
    """The format that a file's suffix stands for.

    Raises
    ------
    InputError
        If it stands for none.

    Example
    -------
    >>> format_of("hypotheses_test.txt"), format_of("data/test/text"), format_of("a.ctm")
    ('text', 'text', 'ctm')
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(
            f"{path}: {suffix} does not tell the format, which must be given: {', '.join(FORMATS)}"
        )
    return _SUFFIXES[suffix]


def read(
    path,
    format: str | None = None,
    id_key: str = "id",
    text_key: str = "text",
    speaker_key: str | None = None,
) -> Transcripts:
    """Read a file of transcripts.

    A CTM file is one utterance a recording, its words in the order of their start. Channel 1 (or A)
    has the recording's id; any other has its name appended (``recording-B``). The file says nothing
    of a recording without a word.

    Arguments
    ---------
    path : path
    format : str, optional
        One of `FORMATS`; by default the suffix tells.
    id_key, text_key, speaker_key : str
        Keys of the JSON objects; without `speaker_key` nothing is read of speakers.

    Returns
    -------
    Transcripts

    Raises
    ------
    InputError
        If the file cannot be read, holds no utterance or one twice, or a line is not of the format;
        then the message begins with the file and the line (``hyp.txt:12: ...``).

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "hyp.trn")
    >>> _ = path.write_text("good morning (a-1)\\n(a-2)\\n")
    >>> read(path).texts
    {'a-1': 'good morning', 'a-2': ''}
    """
    format = format or format_of(path)
    lines = _lines(path)
    if format == "text":
        found = _text(lines)
    elif format == "trn":
        found = _trn(lines)
    elif format == "ctm":
        found = _ctm(lines)
    elif format == "json":
        found = _json(lines, id_key, text_key, speaker_key)
    elif format == "csv":
        found = _csv(lines)
    else:
        raise InputError(f"the format must be one of {', '.join(FORMATS)}, got {format}")
    texts, speakers = {}, {}
    for where, utterance, text, speaker in _unique(found):
        if not utterance:
            raise InputError(f"{where}: no utterance id")
        texts[utterance] = " ".join(text.split())
        if speaker:
            speakers[utterance] = speaker
    if not texts:
        raise InputError(f"{path}: there is no utterance in it")
    # Some without a speaker: better none than a table of some.
    return Transcripts(texts, speakers if len(speakers) == len(texts) else None)


def read_speakers(path) -> dict[str, str]:
    """Read a Kaldi utt2spk file, ``id speaker`` a line.

    Raises
    ------
    InputError
        As of `read`.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "utt2spk")
    >>> _ = path.write_text("a-1 ann\\na-2 ann\\n")
    >>> read_speakers(path)
    {'a-1': 'ann', 'a-2': 'ann'}
    """
    found = []
    for where, line in _lines(path):
        fields = line.split()
        if len(fields) != 2:
            raise InputError(f"{where}: must be an utterance id and a speaker, got {_short(line)}")
        found.append((where, *fields, None))
    return {utterance: speaker for _, utterance, speaker, _ in _unique(found)}


def speakers_of(ids, speakers: dict[str, str] | str) -> dict[str, str]:
    """The speaker of every id, out of a dictionary or by a pattern.

    Arguments
    ---------
    ids : iterable of str
    speakers : dict[str, str] or str
        Id to speaker, of these and perhaps other ids; or a regular expression that matches the
        beginning of an id: the speaker is its first group, or all that it matches.

    Raises
    ------
    InputError
        If an id has no speaker, or the pattern is not a regular expression.

    Example
    -------
    >>> speakers_of(["84-121-0001", "174-50-0000"], "[0-9]+")
    {'84-121-0001': '84', '174-50-0000': '174'}
    >>> speakers_of(["an391-mjwl-b"], "[^-]*-([^-]*)")
    {'an391-mjwl-b': 'mjwl'}
    """
    if isinstance(speakers, str):
        pattern = speakers
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise InputError(f"{pattern} is not a regular expression: {error}") from None
        matches = {i: compiled.match(i) for i in ids}
        found = {
            i: match[1 if compiled.groups else 0]
            for i, match in matches.items()
            if match is not None
        }
        problem = f"no speaker by the pattern {pattern}"
    else:
        found = {i: speakers[i] for i in ids if i in speakers}
        problem = "no speaker given"
    without = [i for i in ids if not found.get(i)]
    if without:
        raise InputError(f"{problem}: {_few(without)}")
    return found


def normalise(
    text: str, unicode: str | None = None, lower: bool = False, punctuation: bool = True
) -> str:
    """Change what is asked for, in this order, and nothing else.

    Arguments
    ---------
    text : str
    unicode : str, optional
        One of `UNICODE_FORMS`.
    lower : bool
        To lower case.
    punctuation : bool
        False: every character of Unicode's punctuation (category P) becomes a space, but for
        apostrophes inside a word, which become ``'``.

    Raises
    ------
    InputError
        For another Unicode form.

    Example
    -------
    >>> normalise("Well-known, isn\u2019t it?", lower=True, punctuation=False)
    "well known isn't it"
    """
    if unicode is not None:
        if unicode not in UNICODE_FORMS:
            raise InputError(f"unicode must be one of {', '.join(UNICODE_FORMS)}, got {unicode}")
        text = unicodedata.normalize(unicode, text)
    if lower:
        text = text.lower()
    if not punctuation:
        padded = f" {text} "
        text = "".join(map(_unpunctuated, padded, padded[1:], padded[2:]))
    return " ".join(text.split())


def pair(
    references: dict[str, str],
    hypotheses: dict[str, str],
    name: str = "the hypotheses",
    allow_missing: bool = False,
    ignore_extra: bool = False,
) -> tuple[dict[str, str], int, int]:
    """Hypotheses for exactly the references.

    Arguments
    ---------
    references, hypotheses : dict[str, str]
        Utterance id to text.
    name : str
        Of the hypotheses, for messages.
    allow_missing : bool
        A reference without a hypothesis gets an empty one: all its words are deletions.
    ignore_extra : bool
        A hypothesis without a reference is left out.

    Returns
    -------
    hypotheses : dict[str, str]
    missing, extra : int
        How many were filled in and left out.

    Raises
    ------
    InputError
        If ids differ in a way that is not allowed, or if no id is on both sides.

    Example
    -------
    >>> pair({"a": "one", "b": "two"}, {"a": "one", "c": "three"}, "hyp.txt", True, True)
    ({'a': 'one', 'b': ''}, 1, 1)
    """
    missing = [i for i in references if i not in hypotheses]
    extra = [i for i in hypotheses if i not in references]
    problems = []
    if missing and not allow_missing:
        problems.append(
            f"none for {len(missing)} of {len(references)} references ({_few(missing)}), which "
            "allow_missing would count as deleted"
        )
    if extra and not ignore_extra:
        problems.append(
            f"{len(extra)} of {len(hypotheses)} without a reference ({_few(extra)}), which "
            "ignore_extra would leave out"
        )
    if problems:
        raise InputError(f"{name}: " + "; ".join(problems))
    if len(missing) == len(references):
        raise InputError(
            f"{name}: none of the ids ({_few(extra)}) is a reference's ({_few(missing)})"
        )
    return {i: hypotheses.get(i, "") for i in references}, len(missing), len(extra)


def _unpunctuated(before, character, after):
    if not _is_punctuation(character):
        return character
    inside = not any(c.isspace() or _is_punctuation(c) for c in (before, after))
    return "'" if character in "'\u2019" and inside else " "


def _is_punctuation(character):
    return unicodedata.category(character)[0] == "P"


def _lines(path):
    """(file:line, text) of the lines that are not blank."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    found = []
    # Not splitlines: it also splits at characters that may stand in a text.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{path}:{number}"
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise InputError(f"{where}: not UTF-8") from None
        if "\x00" in text:
            raise InputError(f"{where}: not text: there is a zero byte in it")
        if text.strip():
            found.append((where, text.removesuffix("\r")))
    return found


def _text(lines):
    tabs = all("\t" in line for _, line in lines)
    for where, line in lines:
        if line[0].isspace():
            raise InputError(f"{where}: no utterance id where the line begins: {_short(line)}")
        # Only the first: further white space is the text's.
        utterance, *text = line.split("\t" if tabs else None, 1)
        yield where, utterance.strip(), "".join(text), None


def _trn(lines):
    for where, line in lines:
        if line.startswith(";;"):
            continue
        match = re.fullmatch(r"(.*)\(([^()]+)\)\s*", line)
        if match is None:
            raise InputError(f"{where}: must end with the utterance id in (): {_short(line)}")
        if "{" in match[1] or "}" in match[1]:
            raise InputError(f"{where}: alternatives in {{}} cannot be scored: {_short(line)}")
        yield where, match[2].strip(), match[1], None


def _ctm(lines):
    words = {}
    for where, line in lines:
        if line.startswith(";;"):
            continue
        fields = line.split()
        if any(field.startswith("<ALT") for field in fields):
            raise InputError(f"{where}: alternatives cannot be scored: {_short(line)}")
        start, duration = map(_seconds, (fields + 4 * [""])[2:4])
        if len(fields) < 5 or start is None or duration is None:
            raise InputError(
                f"{where}: must be recording, channel, start and duration in seconds, word: "
                f"{_short(line)}"
            )
        recording, channel = fields[:2]
        name = recording if channel in ("1", "A") else f"{recording}-{channel}"
        words.setdefault(name, (where, []))[1].append((start, fields[4]))
    for name, (where, timed) in words.items():
        timed.sort(key=lambda item: item[0])
        yield where, name, " ".join(word for _, word in timed), None


def _json(lines, id_key, text_key, speaker_key):
    for where, line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{where}: must be one JSON object a line, got {_short(line)}")
        found = []
        for key in (id_key, text_key, speaker_key):
            if key is None:
                found.append(None)
                continue
            if key not in row:
                raise InputError(f"{where}: no key {key}, only {', '.join(row) or 'none'}")
            value = row[key]
            if key != text_key and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str) or (key == speaker_key and value == ""):
                raise InputError(f"{where}: {key} must be text, got {_short(json.dumps(value))}")
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise InputError(f"{where}: {key} is not Unicode: it has half a surrogate pair")
            found.append(value)
        yield where, *found


def _csv(lines):
    rows = csv.reader((line + "\n" for _, line in lines), skipinitialspace=True)
    columns = next(rows, [])
    for column in ("ID", "wrd"):
        if lines and column not in columns:
            raise InputError(f"{lines[0][0]}: no column {column}, only {', '.join(columns)}")
    try:
        for values in rows:
            where = lines[rows.line_num - 1][0]
            if len(values) != len(columns):
                raise InputError(f"{where}: {len(values)} values for {len(columns)} columns")
            row = dict(zip(columns, values))
            yield where, row["ID"], row["wrd"], row.get("spk_id")
    except csv.Error as error:
        raise InputError(f"{lines[rows.line_num - 1][0]}: {error}") from None


def _unique(found):
    """The same tuples, (where, id, ...), checked for ids that come twice."""
    first = {}
    for where, utterance, *rest in found:
        if utterance in first:
            line = first[utterance].rpartition(":")[2]
            raise InputError(f"{where}: the utterance id {utterance} is in line {line} already")
        first[utterance] = where
        yield where, utterance, *rest


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _short(line, most=60):
    line = line.strip()
    return line if len(line) <= most else line[:most] + " ..."


def _few(ids, shown=3):
    ids = sorted(ids)
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return ", ".join(ids[:shown]) + more
