"""Folders of languages, and what is said of left-out utterances; more in the corpora's tests."""

import logging

import pytest

from summarymixing.dataio.layouts import corpus_folder, language_folder, warn_left_out
from summarymixing.errors import InputError

TABLES = ("a.tsv", "b.tsv")


def make(root, *folders, table="b.tsv"):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / table).touch()


def find(root, language="fr"):
    return (
        language_folder(root, language, TABLES, ("release-*", "data")).relative_to(root).as_posix()
    )


def test_nearer_folders_go_first(tmp_path):
    make(tmp_path, "data/fr")
    assert find(tmp_path) == "data/fr"
    make(tmp_path, "release-2/fr", "release-1/de")
    assert find(tmp_path) == "release-2/fr"
    make(tmp_path, "release-1/fr", table="other.tsv")
    assert find(tmp_path) == "release-2/fr"
    make(tmp_path, "fr")
    assert find(tmp_path) == "fr"
    make(tmp_path, ".", table="a.tsv")
    assert find(tmp_path) == find(tmp_path, "de") == "."


def test_the_outer_folder_goes_first(tmp_path):
    (tmp_path / "corpus" / "wav").mkdir(parents=True)
    assert corpus_folder(tmp_path, "AN4", ["wav"], inner="corpus") == tmp_path / "corpus"
    (tmp_path / "wav").mkdir()
    assert corpus_folder(tmp_path, "AN4", ["wav"], inner="corpus") == tmp_path


def test_archives_have_to_be_unpacked(tmp_path):
    (tmp_path / "wav").mkdir()
    (tmp_path / "readme.txt").touch()
    with pytest.raises(InputError, match="a folder etc, .* not there; found readme.txt, wav$"):
        corpus_folder(tmp_path, "AN4", ["etc"])
    (tmp_path / "wav" / "S0002.tar.gz").touch()
    expected = "a folder wav/train, .* found S0002.tar.gz; archives have to be unpacked$"
    with pytest.raises(InputError, match=expected):
        corpus_folder(tmp_path, "AISHELL", ["wav/train"])


def test_languages_that_are_not_there(tmp_path):
    (tmp_path / "music").mkdir()
    with pytest.raises(InputError) as caught:
        find(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: a.tsv, b.tsv are expected here, in fr, in release-*/fr or in data/fr; found"
        " music"
    )
    make(tmp_path, "nl", "data/de", "release-1/en", "release-2/en")
    with pytest.raises(InputError, match="no language fr; found de, en, nl$"):
        find(tmp_path)
    with pytest.raises(InputError, match="language en; .* of one: release-1, release-2$"):
        find(tmp_path, "en")


def test_left_out_utterances_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        warn_left_out("test", [], 30, "they are short")
        assert not caplog.messages
        warn_left_out("test", [f"{i:02d}" for i in range(22)], 30, "they are short")
    (message,) = caplog.messages
    assert message.startswith("test: 22 of 30 utterances left out, they are short: 00, 01, 02")
    assert message.endswith("18, 19 and 2 more")
