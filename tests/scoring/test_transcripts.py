"""Files of transcripts: what is read, and what is refused with the line it is in."""

import pytest

from summarymixing.errors import InputError
from summarymixing.scoring import transcripts
from summarymixing.scoring.transcripts import normalise, pair, read, read_speakers, speakers_of

TEXTS = {"a-1": "one two three", "a-2": "", "b-1": "naïve 猫 don't"}
# The same in each format; CTM has no line for an empty one.
FILES = {
    "text": "a-1 one two three\na-2\nb-1 naïve 猫 don't\n",
    "hypotheses_test.txt": "a-1\tone two three\na-2\t\nb-1\tnaïve 猫 don't\n",
    "a.trn": "one two three (a-1)\n;; comment\n (a-2)\nnaïve 猫 don't (b-1)\n",
    "a.jsonl": '{"id": "a-1", "text": "one two three"}\n{"id": "a-2", "text": "", "x": [1]}\n'
    '{"text": "na\\u00efve 猫 don\'t", "id": "b-1"}\n',
    "a.csv": "ID,duration,wav,spk_id,wrd\na-1,1.0,a.wav,a,one two three\na-2,1,b.wav,a,\n"
    'b-1,1,c.wav,b,"naïve 猫 don\'t"\n',
    "a.ctm": ";; comment\na-1 1 0.5 0.25 two 0.9\na-1 1 0.0 0.25 one 0.9\na-1 1 1e0 0 three\n"
    "b-1 A 0.00 0.1 naïve 1.0\nb-1 A 0.10 0.1 猫\nb-1 A 0.20 0.1 don't 1 x y\n",
}


@pytest.fixture
def put(tmp_path):
    def put(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


@pytest.mark.parametrize("mangle", (str, lambda text: "\ufeff" + text.replace("\n", "\r\n\r\n")))
@pytest.mark.parametrize("name", FILES)
def test_all_formats_say_the_same(put, name, mangle):
    found = read(put(name, mangle(FILES[name])))
    assert found.texts == {i: text for i, text in TEXTS.items() if text or name != "a.ctm"}
    assert found.speakers == ({"a-1": "a", "a-2": "a", "b-1": "b"} if name == "a.csv" else None)


def test_a_format_that_is_given_counts(put):
    assert read(put("odd.name", FILES["a.trn"]), "trn").texts == TEXTS
    assert read(put("odd.txt", FILES["a.trn"]), "trn").texts == TEXTS
    with pytest.raises(InputError, match="must be one of text, trn, ctm, json, csv, got stm"):
        read(put("a.txt", "a b\n"), "stm")
    with pytest.raises(InputError, match=r"odd.name: .name does not tell the format"):
        read(put("odd.name", FILES["a.trn"]))


def test_ids_before_a_tab_may_hold_spaces(put):
    content = "my file 1.wav\tone two\nmy file 2.wav\tthree\tfour\n"
    expected = {"my file 1.wav": "one two", "my file 2.wav": "three four"}
    assert read(put("a.txt", content)).texts == expected
    # Without a tab in every line, the id ends at the first white space.
    assert read(put("b.txt", "a one\ttwo\nb\n")).texts == {"a": "one two", "b": ""}


def test_line_ends_are_newlines_only(put):
    # Characters that Python's splitlines takes for ends of lines.
    assert read(put("a.txt", "a one\x0btwo\u2028three\x85four\n")).texts == {
        "a": "one two three four"
    }


def test_marks_of_a_trn_are_words(put):
    content = "(uh) %hes <unk> @ re-do d- (a-1)\n"
    assert read(put("a.trn", content)).texts == {"a-1": "(uh) %hes <unk> @ re-do d-"}


def test_channels_of_a_ctm_stay_apart(put):
    content = "r A 0 1 one\nr B 0.5 1 two\nr A 2 1 three\nq 2 0 1 four\n"
    assert read(put("a.ctm", content)).texts == {"r": "one three", "r-B": "two", "q-2": "four"}


def test_ctm_words_that_start_together_keep_their_order(put):
    content = "".join(f"r 1 0 0 {word}\n" for word in "dcba")
    assert read(put("a.ctm", content)).texts == {"r": "d c b a"}


def test_json_keys(put):
    content = '{"file": 7, "pred": "one", "who": "ann"}\n{"file": "x", "pred": "two", "who": 3}\n'
    found = read(put("a.json", content), None, "file", "pred", "who")
    assert found.texts == {"7": "one", "x": "two"}
    assert found.speakers == {"7": "ann", "x": "3"}


def test_csv_rows_of_several_lines_and_without_speakers(put):
    content = 'ID, wrd\na,"one\ntwo"\nb,three\n'
    assert read(put("a.csv", content)) == transcripts.Transcripts({"a": "one two", "b": "three"})
    content = "ID,wrd,spk_id\na,one,ann\nb,two,\n"
    assert read(put("b.csv", content)).speakers is None


@pytest.mark.parametrize(
    "name, content, message",
    (
        ("a.txt", b"a one\nb caf\xe9\n", r":2: not UTF-8"),
        ("a.wav.txt", b"RIFF\x00\x00", r":1: not text: there is a zero byte"),
        ("a.txt", "", r"a.txt: there is no utterance in it"),
        ("a.txt", " \n\n", r"a.txt: there is no utterance in it"),
        ("a.txt", "a one\n\n two\n", r":3: no utterance id where the line begins: two"),
        ("a.txt", "\tone\n", r":1: no utterance id"),
        ("a.txt", "a one\nb two\n\na three\n", r":4: the utterance id a is in line 1 already"),
        ("a.trn", "one (a)\ntwo (a)\n", r":2: the utterance id a is in line 1 already"),
        ("a.trn", "one (a)\ntwo b\n", r":2: must end with the utterance id in \(\): two b"),
        ("a.trn", "one ( )\n", r":1: no utterance id"),
        ("a.trn", "one ()\n", r":1: must end with"),
        ("a.trn", "one { two / @ } (a)\n", r":1: alternatives in {} cannot be scored"),
        ("a.ctm", "a 1 0.0 0.1\n", r":1: must be recording, channel, start and duration"),
        ("a.ctm", "a 1 zero 0.1 one\n", r":1: must be recording, channel"),
        ("a.ctm", "a 1 0 -0.1 one\n", r":1: must be recording, channel"),
        ("a.ctm", "a 1 nan 0.1 one\n", r":1: must be recording, channel"),
        ("a.ctm", "a 1 0 1 b\na 1 * * <ALT_BEGIN>\n", r":2: alternatives cannot be scored"),
        ("a.jsonl", '{"id": "a", "text": "b"}\n{"id": \n', r":2: must be one JSON object a line"),
        ("a.json", '[{"id": "a", "text": "b"}]\n', r":1: must be one JSON object a line"),
        ("a.jsonl", '{"ID": "a", "wrd": "b"}\n', r":1: no key id, only ID, wrd"),
        ("a.jsonl", "{}\n", r":1: no key id, only none"),
        ("a.jsonl", '{"id": "a", "text": null}\n', r":1: text must be text, got null"),
        ("a.jsonl", '{"id": "a", "text": 3}\n', r":1: text must be text, got 3"),
        ("a.jsonl", '{"id": true, "text": "b"}\n', r":1: id must be text, got true"),
        ("a.jsonl", '{"id": "", "text": "b"}\n', r":1: no utterance id"),
        ("a.jsonl", '{"id": "a", "text": "\\ud800"}\n', r":1: text is not Unicode"),
        ("a.csv", "", r"a.csv: there is no utterance in it"),
        ("a.csv", "a,b\n1,2\n", r":1: no column ID, only a, b"),
        ("a.csv", "ID,wrd\na,b\n\nc\n", r":4: 1 values for 2 columns"),
        ("a.csv", "ID,wrd\na,b\na,c\n", r":3: the utterance id a is in line 2 already"),
        ("a.csv", "ID,wrd\na," + "b" * 200000 + "\n", r":2: field larger than field limit"),
    ),
)
def test_lines_that_are_refused(put, name, content, message):
    path = put(name, content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_speaker_key_must_be_there_and_say_something(put):
    with pytest.raises(InputError, match=r":1: no key who, only id, text"):
        read(put("a.jsonl", '{"id": "a", "text": "b"}\n'), speaker_key="who")
    with pytest.raises(InputError, match=r':1: who must be text, got ""'):
        read(put("a.jsonl", '{"id": "a", "text": "b", "who": ""}\n'), speaker_key="who")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="nothing.txt: No such file"):
        read(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path, "text")


def test_speakers_of_a_file(put):
    assert read_speakers(put("utt2spk", "a-1 a\na-2\ta\nb-1 b\n")) == {
        "a-1": "a",
        "a-2": "a",
        "b-1": "b",
    }
    with pytest.raises(InputError, match=r"utt2spk:2: must be an utterance id and a speaker"):
        read_speakers(put("utt2spk", "a-1 a\na-2\n"))
    with pytest.raises(InputError, match=r"utt2spk:3: the utterance id a-1 is in line 1 already"):
        read_speakers(put("utt2spk", "a-1 a\nb b\na-1 b\n"))


def test_every_id_needs_a_speaker():
    assert speakers_of(["a"], {"a": "x", "other": "y"}) == {"a": "x"}
    assert speakers_of(["x-ann-1"], "[^-]*-([^-]*)") == {"x-ann-1": "ann"}
    with pytest.raises(InputError, match="by the pattern x-.z.[?]: x-a"):  # no such group
        speakers_of(["x-a"], "x-(z)?")
    with pytest.raises(InputError, match="no speaker given: b, c"):
        speakers_of(["a", "b", "c"], {"a": "x"})
    with pytest.raises(InputError, match=r"no speaker by the pattern \[0-9\]\+: ann"):
        speakers_of(["1-2", "ann-1"], "[0-9]+")
    with pytest.raises(InputError, match="ann"):  # nothing matched is no speaker
        speakers_of(["ann-1"], "[0-9]*")
    with pytest.raises(InputError, match=r"\( is not a regular expression"):
        speakers_of(["a"], "(")


@pytest.mark.parametrize(
    "options, text, expected",
    (
        ({}, "It\u2019s  A-B, caf\u00e9.", "It\u2019s A-B, caf\u00e9."),
        ({"lower": True}, "It's CAFÉ", "it's café"),
        ({"unicode": "NFC"}, "cafe\u0301 \ufb01", "caf\u00e9 \ufb01"),
        ({"unicode": "NFKC"}, "cafe\u0301 \ufb01", "caf\u00e9 fi"),
        ({"unicode": "NFD"}, "caf\u00e9", "cafe\u0301"),
        ({"punctuation": False}, "It\u2019s 'so' A-B, dogs' c.", "It's so A B dogs c"),
        ({"punctuation": False}, "cafe\u0301's '' ... \u00bfqu\u00e9?", "cafe\u0301's qu\u00e9"),
        ({"punctuation": False}, "\u3002\u732b\u300c\u72ac\u300d $5 + 3", "\u732b \u72ac $5 + 3"),
        ({"punctuation": False}, ". , -", ""),
    ),
)
def test_normalisation_changes_what_is_asked_for(options, text, expected):
    assert normalise(text, **options) == expected


def test_normalisation_knows_four_forms():
    with pytest.raises(InputError, match="must be one of NFC, NFD, NFKC, NFKD, got nfc"):
        normalise("a", unicode="nfc")


def test_ids_that_differ_are_counted_and_named():
    references = {f"r{i}": "a" for i in range(6)} | {"same": "b"}
    hypotheses = {"same": "c", "h0": "d"}
    with pytest.raises(InputError) as caught:
        pair(references, hypotheses, "hyp.txt")
    assert str(caught.value) == (
        "hyp.txt: none for 6 of 7 references (r0, r1, r2 and 3 more), which allow_missing would "
        "count as deleted; 1 of 2 without a reference (h0), which ignore_extra would leave out"
    )
    with pytest.raises(InputError, match="^hyp.txt: 1 of 2 without"):
        pair(references, hypotheses, "hyp.txt", allow_missing=True)
    with pytest.raises(InputError, match="^hyp.txt: none for 6 of 7"):
        pair(references, hypotheses, "hyp.txt", ignore_extra=True)
    paired, missing, extra = pair(references, hypotheses, "hyp.txt", True, True)
    assert paired == dict.fromkeys(references, "") | {"same": "c"}
    assert list(paired) == list(references) and (missing, extra) == (6, 1)


def test_nothing_in_common_is_never_a_score():
    with pytest.raises(InputError, match=r"none of the ids \(b\) is a reference's \(a\)"):
        pair({"a": "x"}, {"b": "x"}, "hyp.txt", True, True)
