"""What the layouts of several corpora have in common: their folders, left-out utterances."""

import logging

from summarymixing.dataio import manifests
from summarymixing.errors import InputError

logger = logging.getLogger(__name__)


def corpus_folder(data_folder, corpus, folders, inner=None):
    """Finds the folder that holds a corpus, with the folders which it must have.

    Arguments
    ---------
    data_folder : str or os.PathLike
    corpus : str
        As scripts/download.py calls it.
    folders : iterable of str
        Relative paths.
    inner : str, optional
        Name of the folder in the data folder where they may be instead: an archive's own.

    Returns
    -------
    folder : pathlib.Path

    Raises
    ------
    InputError
        If the data folder or one of them does not exist.

    Example
    -------
    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> os.makedirs(root + "/an4/etc")
    >>> corpus_folder(root, "AN4", ["etc"], inner="an4").name
    'an4'
    """
    folders = list(folders)
    folder = manifests.existing_folder(data_folder, corpus)
    if inner and (folder / inner).is_dir() and not (folder / folders[0]).is_dir():
        folder = folder / inner
    for name in folders:
        if not (folder / name).is_dir():
            parent = (folder / name).parent
            found = [entry.name for entry in parent.glob("*")]
            packed = any(entry.endswith((".tar.gz", ".tgz", ".tar", ".zip")) for entry in found)
            raise InputError(
                f"{folder}: {corpus} has a folder {name}, which is not there; found "
                + manifests.some(found)
                + ("; archives have to be unpacked" if packed else "")
            )
    return folder


def language_folder(data_folder, language, tables, parents=(), corpus=None):
    """Finds the folder that holds the tables of a language.

    That is the data folder itself if it holds any of them, whatever its language, or else the
    folder named like the language in it or in one of ``parents``.

    Arguments
    ---------
    data_folder : str or os.PathLike
    language : str
        Code of the language.
    tables : iterable of str
        File names; a folder that has any of them will do.
    parents : tuple of str
        Names of folders in the data folder, as patterns; an earlier one goes before a later one.
    corpus : str, optional
        As scripts/download.py calls it.

    Returns
    -------
    folder : pathlib.Path

    Raises
    ------
    InputError
        If the data folder does not exist, there is no such language, or it is in several folders
        of one pattern.

    Example
    -------
    >>> import os, tempfile
    >>> root = tempfile.mkdtemp()
    >>> os.makedirs(root + "/release-1/fr")
    >>> open(root + "/release-1/fr/train.tsv", "w").close()
    >>> language_folder(root, "fr", ["train.tsv"], ("release-*",)).relative_to(root).as_posix()
    'release-1/fr'
    """
    folder = manifests.existing_folder(data_folder, corpus)
    if _has_any(folder, tables):
        return folder
    levels = [[folder], *(sorted(folder.glob(parent)) for parent in parents)]
    for level in levels:
        found = [parent for parent in level if _has_any(parent / language, tables)]
        if len(found) > 1:
            raise InputError(
                f"{folder}: more than one release has the language {language}; give the folder of"
                f" one: {', '.join(parent.name for parent in found)}"
            )
        if found:
            return found[0] / language
    languages = {
        path.parent.name
        for level in levels
        for parent in level
        for table in tables
        for path in parent.glob(f"*/{table}")
    }
    if languages:
        raise InputError(
            f"{folder}: there is no language {language}; found"
            f" {manifests.some(languages, len(languages))}"
        )
    *places, last = (f"in {place}{language}" for place in ("", *(f"{name}/" for name in parents)))
    found = manifests.some(entry.name for entry in folder.iterdir())
    raise InputError(
        f"{folder}: {', '.join(tables)} are expected {', '.join(['here', *places])} or {last};"
        f" found {found}"
    )


def _has_any(folder, names):
    return any((folder / name).is_file() for name in names)


def warn_left_out(name, ids, total, reason):
    """Logs which utterances of a set the preparation left out.

    Arguments
    ---------
    name : str
        Of the set.
    ids : list of str
        Of the utterances, the first of which are named; nothing is logged if there is none.
    total : int
        How many the set had with them.
    reason : str
        Why, as the end of a sentence.

    Example
    -------
    >>> warn_left_out("test", ["a-1"], 2, "they have no transcript")
    """
    if ids:
        logger.warning(
            "%s: %d of %d utterances left out, %s: %s",
            *(name, len(ids), total, reason, manifests.some(ids, 20)),
        )
