"""scripts/score.py: options, output, and what it refuses."""

import csv
import json
import math
from pathlib import Path

import pytest

from summarymixing.scoring import metrics
from summarymixing.training.results import SCORES, write_results

REFERENCES = {
    "ann-1": "ONE TWO THREE",
    "ann-2": "IT'S FOUR",
    "bob-1": "FIVE SIX SEVEN",
    "bob-2": "",
}
HYPOTHESES = {
    "ann-1": "ONE TOO THREE",
    "ann-2": "IT'S",
    "bob-1": "FIVE SIX SEVEN",
    "bob-2": "OH",
}


@pytest.fixture
def main(load_script):
    return load_script("score").main


@pytest.fixture
def put(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(name, texts):
        lines = texts if isinstance(texts, list) else [f"{i} {t}" for i, t in texts.items()]
        Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return name

    return put


@pytest.fixture
def files(put):
    return [put("ref.txt", REFERENCES), put("hyp.txt", HYPOTHESES)]


@pytest.fixture
def scored(main, capsys):
    """The JSON that a command prints."""

    def scored(*argv):
        main([*argv, "--json"])
        return json.loads(capsys.readouterr().out)

    return scored


@pytest.fixture
def refused(main, capsys):
    """The one line that a command ends with."""

    def refused(*argv):
        with pytest.raises(SystemExit) as caught:
            main(list(argv))
        printed = capsys.readouterr()
        assert caught.value.code == 2 and printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
        return printed.err.removeprefix("error: ").rstrip("\n")

    return refused


def test_figures_are_those_of_a_training(scored, tmp_path):
    """The files as a training leaves them."""
    scores = metrics.score(REFERENCES, HYPOTHESES)
    results = write_results(tmp_path / "results.json", {"test": scores})["tests"]["test"]
    lines = [f"{i}\t{text}\n" for i, text in HYPOTHESES.items()]
    (tmp_path / "hypotheses_test.txt").write_text("".join(lines))
    with open(tmp_path / "test.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        rows.writerows([i, 1.0, "x.wav", i[:3], text] for i, text in REFERENCES.items())
    found = scored(str(tmp_path / "test.csv"), str(tmp_path / "hypotheses_test.txt"))
    assert {key: found["systems"][0][key] for key in SCORES} == results
    assert list(found["systems"][0]["speakers"]) == ["ann", "bob"]
    assert found["bootstrap"]["unit"] == "speaker"
    found = scored(
        str(tmp_path / "test.csv"), str(tmp_path / "hypotheses_test.txt"), "--no_speakers"
    )
    assert found["systems"][0]["speakers"] is None
    assert found["bootstrap"]["unit"] == "utterance"


def test_text(main, files, capsys):
    main(files)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "REF  ref.txt",
        "HYP  hyp.txt",
        "normalisation: none",
        "4 utterances, 8 words, 36 characters; 1 reference empty",
    ]
    assert lines[-1].split()[:1] == ["37.50"] and lines[-1].split()[-3:] == ["1", "1", "1"]


def test_json_is_plain(scored, put):
    found = scored(put("a", ["a"]), put("b", ["a x"]))  # nan would not be JSON
    assert found["systems"][0]["wer"] is None
    assert (found["reference"], found["systems"][0]["file"]) == ("a", "b")


def test_compare(main, scored, files, put, capsys):
    other = put("other.txt", REFERENCES)
    found = scored(*files, "--compare", other, "--resamples=50", "--seed=3")
    alone = [scored(files[0], path, "--resamples=50", "--seed=3") for path in (files[1], other)]
    assert found["systems"] == [one["systems"][0] for one in alone]
    assert found["difference"]["wer"]["difference"] == -37.5
    assert found["bootstrap"]["resamples"] == 50 and found["bootstrap"]["seed"] == 3
    main([*files, "--compare", other])
    printed = capsys.readouterr().out
    assert "A    hyp.txt\nB    other.txt\n" in printed and "P(B < A)" in printed


def test_speakers(scored, files, put):
    utt2spk = put("utt2spk", [f"{i} {i[:3]}" for i in REFERENCES] + ["further x"])
    lines = [json.dumps({"id": i, "text": t, "who": i[:3]}) for i, t in REFERENCES.items()]
    reference = put("ref.jsonl", lines)
    found = [
        scored(*files, "--utt2spk", utt2spk),
        scored(*files, "--speaker_pattern=[a-z]+"),
        scored(reference, files[1], "--speaker_key=who"),
    ]
    assert found[0]["systems"] == found[1]["systems"] == found[2]["systems"]
    speakers = found[0]["systems"][0]["speakers"]
    assert [speakers[name]["words"] for name in ("ann", "bob")] == [5, 3]
    assert scored(*files)["systems"][0]["speakers"] is None


def test_keys_of_json_lines(scored, put):
    """As NeMo has it: both texts in one file."""
    rows = [
        {"audio_filepath": f"{i}.wav", "text": text, "pred_text": HYPOTHESES[i]}
        for i, text in REFERENCES.items()
    ]
    path = put("manifest.json", [json.dumps(row) for row in rows])
    found = scored(path, path, "--id_key=audio_filepath", "--hyp_text_key=pred_text")
    assert found["systems"][0]["wer"] == 37.5


def test_formats_that_suffixes_do_not_tell(scored, put):
    reference = put("ref.v2", [f"{text} ({i})" for i, text in REFERENCES.items()])
    hypothesis = put("hyp.v2", HYPOTHESES)
    found = scored(reference, hypothesis, "--ref_format=trn", "--format=text")
    assert found["systems"][0]["wer"] == 37.5


@pytest.mark.parametrize(
    "options, wer",
    (
        ([], 100),
        (["--lower"], 75),
        (["--no_punctuation"], 75),
        (["--unicode=NFC"], 100),
        (["--unicode=NFC", "--no_punctuation"], 50),
        (["--lower", "--no_punctuation", "--unicode=NFC"], 0),
    ),
)
def test_normalisation_is_of_both_sides_and_said(main, scored, put, options, wer, capsys):
    files = [put("ref.txt", ["a One caf\u00e9, (two) IT'S"])]
    files += [put("hyp.txt", ["a one cafe\u0301 two it\u2019s"])]
    found = scored(*files, *options)
    assert found["systems"][0]["wer"] == wer
    said = found["normalisation"]
    assert said["lower"] == ("--lower" in options)
    assert said["no_punctuation"] == ("--no_punctuation" in options)
    assert said["unicode"] == ("NFC" if "--unicode=NFC" in options else None)
    main([*files, *options])
    line = capsys.readouterr().out.splitlines()[2]
    order = {"--unicode=NFC": "NFC", "--lower": "lower", "--no_punctuation": "no_punctuation"}
    shown = [name for option, name in order.items() if option in options]
    assert line == f"normalisation: {', '.join(shown) or 'none'}"


def test_missing_and_extra_ids(main, scored, refused, files, put, capsys):
    partial = put("part.txt", {"ann-1": "ONE TWO THREE", "zoe-1": "X"})
    message = refused(files[0], partial)
    assert message.startswith("part.txt: none for 3 of 4 references (ann-2, bob-1, bob-2), which ")
    assert "1 of 2 without a reference (zoe-1)" in message
    assert refused(files[0], partial, "--allow_missing").startswith("part.txt: 1 of 2 without")
    assert refused(*files, "--compare", partial, "--ignore_extra").startswith("part.txt: none for")
    found = scored(files[0], partial, "--allow_missing", "--ignore_extra")["systems"][0]
    assert (found["missing"], found["ignored"]) == (3, 1)
    assert (found["deletions"], found["insertions"], found["words"]) == (5, 0, 8)
    main([files[0], partial, "--allow_missing", "--ignore_extra"])
    expected = "HYP  part.txt (3 missing, counted as deleted; 1 without a reference left out)\n"
    assert expected in capsys.readouterr().out


def test_a_ctm_with_a_silent_recording(scored, refused, files, put):
    lines = [
        f"{i} 1 {n} 1 {word}"
        for i, text in HYPOTHESES.items()
        for n, word in enumerate(text.split())
    ]
    silent = [line for line in lines if not line.startswith("bob-2")]
    assert scored(files[0], put("hyp.ctm", lines))["systems"][0]["wer"] == 37.5
    assert "1 of 4 references (bob-2)" in refused(files[0], put("hyp.ctm", silent))
    assert scored(files[0], "hyp.ctm", "--allow_missing")["systems"][0]["wer"] == 25


def test_alignments_are_written_and_never_over_a_file(main, refused, files, put, capsys):
    main([*files, "--alignments=report.txt", "--lower"])
    report = Path("report.txt").read_text()
    lower = [{i: t.lower() for i, t in texts.items()} for texts in (REFERENCES, HYPOTHESES)]
    assert report == metrics.alignment_report(*lower) + "\n"
    capsys.readouterr()
    assert refused(*files, "--alignments=report.txt") == (
        "report.txt is there already; --force overwrites it"
    )
    assert Path("report.txt").read_text() == report
    main([*files, "--alignments=report.txt", "--force"])
    assert "TOO" in Path("report.txt").read_text()
    assert sorted(path.name for path in Path().iterdir()) == ["hyp.txt", "ref.txt", "report.txt"]


def test_a_failing_command_leaves_a_report_alone(refused, files, put):
    Path("report.txt").write_text("mine")
    refused(files[0], put("bad.txt", {"other": "x"}), "--alignments=report.txt", "--force")
    assert Path("report.txt").read_text() == "mine"
    assert "none" in refused(files[0], put("bad.txt", {"other": "x"}), "--alignments=new.txt")
    assert not Path("new.txt").exists()


@pytest.mark.parametrize(
    "argv, message",
    (
        (["nothing.txt", "hyp.txt"], "nothing.txt: No such file or directory"),
        (["ref.txt", "hyp.v2"], "hyp.v2: .v2 does not tell the format"),
        (["ref.txt", "twice.txt"], "twice.txt:3: the utterance id ann-1 is in line 1 already"),
        (["ref.txt", "hyp.txt", "--resamples=0"], "resamples must be positive, got 0"),
        (["ref.txt", "hyp.txt", "--seed=-1"], "--seed must not be negative, got -1"),
        (["ref.txt", "hyp.txt", "--speaker_pattern=x"], "no speaker by the pattern x: ann-1, "),
        (["ref.txt", "hyp.txt", "--speaker_pattern=("], "( is not a regular expression"),
        (["ref.txt", "hyp.txt", "--speaker_key=who"], "--speaker_key is for JSON lines"),
        (["ref.txt", "hyp.txt", "--utt2spk=hyp.txt"], "hyp.txt:1: must be an utterance id and a"),
        (["ref.txt", "hyp.txt", "--alignments=no/such.txt"], "no/such.txt: there is no folder no"),
        (["ref.txt", "hyp.txt", "--alignments=."], ". is a folder"),
        (["ref.txt", "hyp.txt", "--alignments=.", "--force"], ". is a folder"),
        (["ref.txt", "hyp.txt", "--alignments=./ref.txt", "--force"], "ref.txt would be overwritt"),
    ),
)
def test_bad_input_is_one_line(refused, files, put, argv, message):
    put("twice.txt", ["ann-1 ONE", "ann-2 TWO", "ann-1 ONE"])
    put("hyp.v2", HYPOTHESES)
    assert refused(*argv).startswith(message)


def test_help_and_wrong_options(main, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and "--no_punctuation" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["a", "b", "--format=stm"])
    assert caught.value.code == 2


def test_rates_are_percent(scored, files):
    found = scored(*files)["systems"][0]
    assert math.isclose(found["wer"], 100 * 3 / 8) and math.isclose(found["ser"], 100 * 3 / 4)
