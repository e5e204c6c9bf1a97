"""Sentences of a text file, against reading it plainly."""

import random

import numpy as np
import pytest

from summarymixing.dataio import text_lines
from summarymixing.dataio.text_lines import TextLines
from summarymixing.errors import InputError


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "text.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("block", [1, 40, 1 << 24])
def test_lines_are_those_of_a_plain_reader(written, monkeypatch, block):
    monkeypatch.setattr(text_lines, "_BLOCK", block)
    rng = random.Random(0)
    alphabet = ["a", "b", " ", "é", "漢", "\n", "\n", "\r\n"]
    path = written("".join(rng.choices(alphabet, k=400)) + " last")
    text = path.read_bytes().decode()
    plain = [line.strip(" \r") for line in text.split("\n")]
    numbered = [(number, line) for number, line in enumerate(plain, 1) if line]
    lines = TextLines(path)
    assert len(lines) == len(numbered) > 50
    assert [lines[i] for i in range(len(lines))] == [line for _, line in numbered]
    assert [lines.line_number(i) for i in range(len(lines))] == [n for n, _ in numbered]
    assert lines.characters == set(text) - set("\r\n")
    sizes = [len(line.encode()) for _, line in numbered]
    assert (lines.durations >= sizes).all() and (lines.durations <= np.array(sizes) + 20).all()


def test_first_line_with_a_character(written):
    lines = TextLines(written("one\n\ntwö\nthreë\n"))
    assert lines.first_with("ö") == 3
    assert lines.first_with("ëö") == 3
    assert lines.first_with("ë") == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text in it"),
        (b"\n \r\n\n", "no text in it"),
        (b"\x1f\x8b\x08\x00rest", "is compressed; gunzip it"),
        # Half a character on each side of ASCII makes a whole one of what is left without it.
        (b"ab\nfine\nb\xc3a\xa9\n", "line 3 is not UTF-8"),
    ],
)
def test_files_that_will_not_do(written, content, message, monkeypatch):
    monkeypatch.setattr(text_lines, "_BLOCK", 1)
    with pytest.raises(InputError, match=f"text.txt: .*{message}"):
        TextLines(written(content))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"gone.txt: No such file"):
        TextLines(tmp_path / "gone.txt")
    with pytest.raises(InputError, match="Is a directory"):
        TextLines(tmp_path)


def test_a_file_that_changed(written):
    lines = TextLines(written("one\nthe second\n"))
    assert lines[1] == "the second"
    written("one longer than it was\ntwo\n")
    with pytest.raises(InputError, match="text.txt: has changed"):
        lines[0]
