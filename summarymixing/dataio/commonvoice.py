"""Common Voice (https://commonvoice.mozilla.org), one language of any release.

The layout: ``train.tsv``, ``dev.tsv`` and ``test.tsv`` name their columns in the first line, and
``clips/`` has the MP3 file of each line. Releases differ in their columns; ``client_id``, ``path``
and ``sentence`` are in all of them. The paper trains on clips of at most 10 s: that is the
recipe's ``max_seconds``, nothing of the preparation.
"""

import logging
import re
import unicodedata
from functools import partial

from tqdm import tqdm

from summarymixing.dataio import layouts, manifests
from summarymixing.errors import InputError, check_integer

logger = logging.getLogger(__name__)

_TABLES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
_COLUMNS = ("client_id", "path", "sentence")
_CODE = re.compile(r"[a-z]{2,3}(-[A-Z]{2})?")  # of a language: fr, zh-CN
_AUDIO = (".mp3", ".wav", ".flac")  # the first one that is there is used; clips may be converted

_APOSTROPHES = "'\u2019\u2018\u02bc\u00b4`\u2032\uff07"
_NON_JOINER, _JOINER = "\u200c\u200d"  # spelling of Persian and of Indic scripts depends on them
_MIDDLE_DOT = "\u00b7"  # a letter's part in Catalan: col·lecció
_INNER = f"'{_MIDDLE_DOT}{_NON_JOINER}{_JOINER}"  # they are kept inside words only
_OUTSIDE_WORDS = re.compile(  # not after a letter, or not before one; a joiner may end a word
    rf"(?<![^\s{_INNER}])[{_INNER}]|[{_INNER[:-1]}](?![^\s{_INNER}])"
)
# Apostrophes that begin or end a word and belong to it; any other one there is a quotation mark.
_AT_EDGES = {
    "fr": r"(?<![\w'])(?:[cdjlmnst]|\w*qu|aujourd)'(?=\s+\w)",  # l' homme
    "it": r"(?<![\w'])(?:be|ca|da|di|fa|mo|po|sta|to|va|ve)'(?!\w)",  # un po' di
    "nl": r"(?<![\w'])'(?:k|m|n|ns|r|s|t)(?![\w'])",  # 's avonds
}
_DOTTED_I = ("az", "crh", "tr")
# Georgian has capital letters in Unicode, and nobody writes them.
_NOT_CAPITAL = {capital: capital - 0x1C90 + 0x10D0 for capital in range(0x1C90, 0x1CC0)}


def prepare(data_folder, manifest_folder, language, accents=True, min_words=0):
    """Writes the manifests ``train.csv``, ``valid.csv`` (the dev set) and ``test.csv``.

    The text is the sentence as `normalize` gives it. Training utterances whose audio or text is
    missing, empty or broken are left out and named; in the other sets bad audio is an error.
    Nothing is done if the manifests exist and neither arguments nor source files have changed.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds the TSV files and ``clips``, or holds the folder that does: ``<language>`` or
        ``cv-corpus-*/<language>``.
    manifest_folder : str or os.PathLike
        Where the manifests go; created if needed.
    language : str
        Common Voice's code of the language, such as "fr" or "zh-CN".
    accents : bool
        Whether accents are kept; else é becomes E.
    min_words : int
        Sentences with fewer words are left out of every set. SpeechBrain's preparation, with
        which the published results were made, leaves out those under 3 words, test set included;
        0 keeps the official sets whole.

    Returns
    -------
    paths : dict
        Manifest paths (str) by name: "train", "valid" and "test".

    Raises
    ------
    InputError
        If the folder, the language, a TSV file, a column or ``clips`` is missing, a clip is there
        twice, or the audio of a dev or test utterance cannot be used.

    Example
    -------
    >>> import os, soundfile, tempfile, torch
    >>> root = tempfile.mkdtemp()
    >>> os.mkdir(root + "/clips")
    >>> for id_, split in (("a", "train"), ("b", "dev"), ("c", "test")):
    ...     soundfile.write(f"{root}/clips/{id_}.mp3", torch.zeros(48000).numpy(), 48000)
    ...     with open(f"{root}/{split}.tsv", "w") as file:
    ...         _ = file.write("client_id\\tpath\\tsentence\\tup_votes\\n")
    ...         _ = file.write(f"1f0e\\t{id_}.mp3\\tL’été arrive !\\t2\\n")
    >>> paths = prepare(root, root + "/manifests", "fr")
    >>> manifests.read(paths["valid"])[0]["wrd"]
    "L' ÉTÉ ARRIVE"
    """
    if not isinstance(language, str) or not language:
        raise InputError(f'language must be a code such as "fr", got {language!r}')
    if not isinstance(accents, bool):
        raise InputError(f"accents must be true or false, got {accents!r}")
    check_integer("min_words", min_words, least=0)
    folder = layouts.language_folder(
        data_folder, language, _TABLES.values(), ("cv-corpus-*",), "CommonVoice"
    )
    parts = _read_tables(folder, language)
    if not (folder / "clips").is_dir():
        found = manifests.some(entry.name for entry in folder.iterdir())
        raise InputError(
            f"{folder}: Common Voice has a folder clips, which is not there; found {found}"
        )
    sources = manifests.stat_files([folder / name for name in _TABLES.values()], "listing tables")
    sources |= manifests.list_files(folder / "clips", _AUDIO, "listing clips")
    arguments = {
        "corpus": "Common Voice",
        "data_folder": str(folder),
        "language": language,
        "accents": accents,
        "min_words": min_words,
    }
    clean = partial(normalize, language=language, accents=accents)
    loaders = {
        name: partial(_load, name, folder / "clips", rows, sources, clean, min_words)
        for name, rows in parts.items()
    }
    return manifests.prepare(manifest_folder, arguments, sources, loaders)


def normalize(sentence, language, accents=True):
    """A sentence as a recogniser is to write it: upper case, no punctuation, NFC.

    Letters, marks and digits of any script are kept; everything else is a space. Apostrophes, all
    written as ', are kept inside words (DON'T, DELL'ARTE, ZO'N); at the edge of a word they are
    quotation marks, except in words that are written so (Italian PO', Dutch 'S). In French a space
    follows them (L' HOMME), and œ and æ are OE and AE, as in SpeechBrain's preparation.

    Arguments
    ---------
    sentence : str
    language : str
        Common Voice's code of the language.
    accents : bool
        Whether accents are kept. Without them Latin, Greek and Cyrillic letters lose every mark
        above or below (é, ñ, й); other scripts, whose marks are vowels, stay as they are.

    Returns
    -------
    str

    Example
    -------
    >>> normalize("«Qu’est-ce que l'œuvre d’art?»", "fr")
    "QU' EST CE QUE L' OEUVRE D' ART"
    >>> normalize("'Perché no?', disse l'altro.", "it", accents=False)
    "PERCHE NO DISSE L'ALTRO"
    """
    text = unicodedata.normalize("NFC", sentence).translate(_KEPT)
    if language == "fr":
        text = text.replace("œ", "oe").replace("Œ", "OE").replace("æ", "ae").replace("Æ", "AE")
    if language in _AT_EDGES:
        text = re.sub(
            _AT_EDGES[language],
            lambda match: match[0].replace("'", "\0"),
            text,
            flags=re.IGNORECASE,
        )
    text = _OUTSIDE_WORDS.sub(" ", text).replace("\0", "'")
    if language == "fr":
        text = text.replace("'", "' ")
    if language in _DOTTED_I:
        text = text.replace("i", "İ")
    # Python's upper() would write SS.
    text = text.replace("ß", "ẞ").upper().translate(_NOT_CAPITAL)
    if not accents:
        letters = unicodedata.normalize("NFD", text)
        text = "".join(letter for letter in letters if not "\u0300" <= letter <= "\u036f")
    return " ".join(unicodedata.normalize("NFC", text).split())


class _Kept(dict):
    """What `str.translate` makes of a character: itself, ' for an apostrophe, or a space."""

    def __missing__(self, code):
        letter = chr(code)
        category = unicodedata.category(letter)
        if letter in _APOSTROPHES:
            self[code] = "'"
        elif category[0] in "LMN" or letter in (_MIDDLE_DOT, _NON_JOINER, _JOINER):
            self[code] = letter
        else:  # invisible ones (soft hyphen, direction marks) do not part words
            self[code] = "" if category == "Cf" else " "
        return self[code]


_KEPT = _Kept()


def _read_tables(folder, language):
    """For each manifest, its rows (id, sentence, speaker)."""
    parts, places, locales = {}, {}, set()
    for part, name in _TABLES.items():
        path = folder / name
        rows = []
        for number, values in manifests.read_tsv(path, _COLUMNS, ("locale",)):
            speaker, clip, sentence, locale = values
            if locale and locale != language:
                raise InputError(f"{path}, line {number}: language {language}, locale {locale}")
            locales.add(locale)
            if not clip:
                raise InputError(f"{path}, line {number}: the path of the clip is empty")
            id_ = clip.removesuffix(".mp3")  # some releases leave it out
            if id_ in places:
                first = "{}, line {}".format(*places[id_])
                raise InputError(
                    f"{path}, line {number}: the clip {clip} is there twice, first in {first}"
                )
            places[id_] = path, number
            rows.append((id_, sentence, speaker))
        parts[part] = rows
    if not any(locales) and folder.name != language and _CODE.fullmatch(folder.name):
        logger.warning(
            "%s: the tables do not say their language and are taken for %s, but the folder is"
            " named %s",
            *(folder, language, folder.name),
        )
    return parts


def _load(name, clips, rows, sources, clean, min_words):
    utterances, short = [], []
    for id_, sentence, speaker in tqdm(rows, f"reading {name}", unit="row"):
        text = clean(sentence)
        if len(text.split()) < min_words:
            short.append(id_)
            continue
        names = [f"{clips}/{id_}{suffix}" for suffix in _AUDIO]
        clip = next((path for path in names if path in sources), names[0])
        utterances.append(manifests.Utterance(id_, clip, speaker, text))
    reason = f"they have fewer than min_words={min_words} words"
    layouts.warn_left_out(name, short, len(rows), reason)
    return utterances
