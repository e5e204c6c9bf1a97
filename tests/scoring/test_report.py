"""Scores against a textbook alignment, jiwer and NIST's sclite; intervals against loops."""

import math
import random
import re
import shutil
import subprocess

import jiwer
import numpy as np
import pytest

from summarymixing.errors import InputError
from summarymixing.scoring import metrics, transcripts
from summarymixing.scoring.report import evaluate, table

# (reference, hypothesis)
ODD_CASES = [
    ("one two three", "one two three"),
    ("", ""),
    ("", "oh no"),
    ("x", ""),
    ("one two three", ""),
    ("one two three", "four five six"),
    ("one two three", "four five six seven eight nine"),
    ("a", "b c d e f"),
    ("a a a b", "a b a a"),
    ("a b a b a b", "b a b a b a"),
    ("a b c d e f", "b c d e f a"),
    ("a b c d e", "f g a b c d e f"),
    ("a b c d e", "d e x y z"),  # five errors; by sclite's weights six are cheaper
    ("a b c d", "c d x y"),
    ("a b c d e f g h", "h g f e d c b a"),
    ("the the the", "the"),
    ("the", "the the the"),
    ("The cat", "the cat"),
    ("don't re-do it", "don't redo it"),
    ("well-known", "well known"),
    ("猫 кот naïve straße", "猫 кит naive strasse"),
    ("caf\u00e9 caf\u00e9", "caf\u00e9 cafe\u0301"),
    ("नमस्ते दुनिया", "नमस्ते दूनिया"),
    ("مرحبا بالعالم", "مرحبا العالم"),
    ("👍 ok 👍🏽", "👍 ok 👍"),
    ("(uh) <unk> [noise] hello", "uh <unk> hello"),
    ("%hes 3.5 & 50% _", "%hes 3,5 & 50 % _"),
    ("o'clock 'tis", "oclock tis"),
    ("word " * 60 + "end", "word " * 57 + "and the end"),
]


def corpus(seed=0, size=40, words="abcd"):
    """Odd cases and random ones, as references and hypotheses by id; ids begin with a speaker."""
    draw = random.Random(seed)

    def text():
        return " ".join(draw.choices(words, k=draw.randint(0, 7)))

    cases = ODD_CASES + [(text(), text()) for _ in range(size)]
    ids = [f"s{draw.randint(0, 5)}-{i:03d}" for i in range(len(cases))]
    return tuple(
        {i: " ".join(case[side].split()) for i, case in zip(ids, cases)} for side in (0, 1)
    )


def best_splits(reference, hypothesis, substitution=1, other=1):
    """All (substitutions, deletions, insertions) of alignments of the least weight."""
    table = {(0, 0): (0, {(0, 0, 0)})}
    for i in range(len(reference) + 1):
        for j in range(len(hypothesis) + 1):
            ways = []
            if i and j:
                wrong = reference[i - 1] != hypothesis[j - 1]
                ways.append((table[i - 1, j - 1], wrong * substitution, (wrong, 0, 0)))
            if i:
                ways.append((table[i - 1, j], other, (0, 1, 0)))
            if j:
                ways.append((table[i, j - 1], other, (0, 0, 1)))
            if ways:
                least = min(cost + more for (cost, _), more, _ in ways)
                table[i, j] = (
                    least,
                    {
                        tuple(map(sum, zip(split, step)))
                        for (cost, splits), more, step in ways
                        if cost + more == least
                        for split in splits
                    },
                )
    return table[len(reference), len(hypothesis)][1]


def splits(counts):
    columns = zip(counts.substitutions, counts.deletions, counts.insertions)
    return {i: tuple(map(int, column)) for i, column in zip(counts.ids, columns)}


def test_every_split_is_one_of_a_textbook_s_shortest():
    references, hypotheses = corpus(size=150)
    counts = metrics.count(references, hypotheses)
    for i, split in splits(counts).items():
        assert split in best_splits(references[i].split(), hypotheses[i].split()), i
    for row, i in enumerate(counts.ids):
        expected = best_splits(references[i], hypotheses[i])
        assert counts.character_errors[row] == sum(min(expected)), i
        assert counts.words[row] == len(references[i].split())
        assert counts.characters[row] == len(references[i])


def test_odd_cases_against_sclite(tmp_path):
    """NIST's own program reads the same two files."""
    if shutil.which("sclite"):
        sclite = ["sclite"]
    elif shutil.which("sctk"):  # Debian's name for all of NIST's programs
        sclite = ["sctk", "sclite"]
    else:
        pytest.skip("sclite is not on the PATH (Debian's package sctk)")
    files = []
    for name, texts in zip(("ref", "hyp"), corpus(size=300)):
        files.append(tmp_path / f"{name}.trn")
        lines = (f"{text} ({i})\n" for i, text in texts.items())
        files[-1].write_text("".join(lines), encoding="utf-8")
    ref, hyp = files
    printed = subprocess.run(
        [*sclite, "-r", ref, "trn", "-h", hyp, "trn", "-i", "spu_id", "-s", "-e", "utf-8"]
        + ["-o", "pra", "stdout"],
        capture_output=True,
        check=True,
    ).stdout.decode()
    pattern = r"id: \((.*)\)\nScores: \(#C #S #D #I\) \d+ (\d+) (\d+) (\d+)"
    theirs = {found[0]: tuple(map(int, found[1:])) for found in re.findall(pattern, printed)}

    references, hypotheses = transcripts.read(ref).texts, transcripts.read(hyp).texts
    ours = splits(metrics.count(references, hypotheses))
    assert theirs.keys() == ours.keys()
    same_total = same_split = 0
    for i in ours:
        words = references[i].split(), hypotheses[i].split()
        weighed = best_splits(*words, substitution=4, other=3)
        assert theirs[i] in weighed, i
        # Where its weights allow as few errors, ours are its.
        if sum(ours[i]) in map(sum, weighed):
            assert sum(theirs[i]) == sum(ours[i]), i
        assert sum(theirs[i]) >= sum(ours[i]), i
        same_total += sum(theirs[i]) == sum(ours[i])
        same_split += theirs[i] == ours[i]
    assert len(ours) > same_total > 0.97 * len(ours)
    assert same_split > 0.5 * len(ours)


def test_figures_are_jiwer_s():
    references, hypotheses = corpus(1)
    found = evaluate(references, [hypotheses])
    scores = found["systems"][0]
    left, right = list(references.values()), list(hypotheses.values())
    words = jiwer.process_words(left, right)
    assert scores["wer"] == pytest.approx(100 * words.wer)
    assert scores["cer"] == pytest.approx(100 * jiwer.cer(left, right))
    for kind in ("substitutions", "deletions", "insertions"):
        assert scores[kind] == getattr(words, kind)
    assert found["words"] == words.hits + words.substitutions + words.deletions
    wrong = sum(left != right for left, right in zip(left, right))
    assert (scores["sentence_errors"], scores["ser"]) == (wrong, 100 * wrong / len(left))
    assert found["empty_references"] == left.count("")
    assert found["characters"] == sum(map(len, left))


def test_interval_is_that_of_the_training_s_report():
    references, hypotheses = corpus(2)
    found = evaluate(references, [hypotheses])
    assert tuple(found["systems"][0]["wer_interval"]) == metrics.wer_interval(
        references, hypotheses
    )
    assert found["bootstrap"] == {
        "unit": "utterance",
        "units": len(references),
        "resamples": 1000,
        "seed": 0,
    }


def _speakers(ids):
    return {i: i.split("-")[0] for i in ids}


@pytest.mark.parametrize("blocked", (False, True))
def test_intervals_and_differences_are_those_of_a_loop(blocked):
    """Test sets are put together from drawn utterances and scored anew, both systems on each."""
    references, first = corpus(3, size=10)
    second = {
        i: text + " x" if n % 3 else references[i] for n, (i, text) in enumerate(first.items())
    }
    speakers = _speakers(references) if blocked else None
    found = evaluate(references, [first, second], speakers, resamples=40, seed=6)

    units = {}
    for i in sorted(references):
        units.setdefault(speakers[i] if blocked else i, []).append(i)
    units = [units[name] for name in sorted(units)]
    generator = np.random.default_rng(6)
    replicas = {"wer": [], "cer": [], "ser": []}
    for _ in range(40):
        drawn = generator.integers(0, len(units), size=len(units))
        ids = [i for unit in drawn for i in units[unit]]
        rates = []
        for hypotheses in (first, second):
            sides = [
                {f"{n}": texts[i] for n, i in enumerate(ids)} for texts in (references, hypotheses)
            ]
            scores = metrics.score(*sides)
            rates.append((scores.wer, scores.cer, 100 * scores.sentence_errors / len(ids)))
        for name, pair in zip(replicas, zip(*rates)):
            replicas[name].append(pair)
    for name, pairs in replicas.items():
        pairs = np.array(pairs)
        for system, rates in zip(found["systems"], pairs.T):
            assert system[f"{name}_interval"] == pytest.approx(np.percentile(rates, [2.5, 97.5]))
        differences = pairs[:, 1] - pairs[:, 0]
        compared = found["difference"][name]
        assert compared["interval"] == pytest.approx(np.percentile(differences, [2.5, 97.5]))
        below = np.mean(differences < -1e-9) + np.mean(abs(differences) < 1e-9) / 2
        assert compared["probability"] == pytest.approx(below)
        whole = [system[name] for system in found["systems"]]
        assert compared["difference"] == pytest.approx(whole[1] - whole[0])
    assert found["bootstrap"]["units"] == len(units)
    assert found["bootstrap"]["unit"] == ("speaker" if blocked else "utterance")


def test_pairing_sees_a_small_difference_that_intervals_hide():
    draw = random.Random(0)
    references = {f"{i:03d}": "a b c d e f g h" for i in range(200)}
    # Half of the utterances are right, half mostly wrong; B has a tenth right besides.
    random_words = {i: " ".join(draw.choices("abcdefgh", k=4)) for i in references}
    first = {i: text if int(i) % 2 else references[i] for i, text in random_words.items()}
    second = {i: references[i] if int(i) % 20 == 1 else text for i, text in first.items()}
    found = evaluate(references, [first, second])
    a, b = (system["wer_interval"] for system in found["systems"])
    assert a[0] < b[1]  # they overlap
    assert found["difference"]["wer"]["interval"][1] < 0
    assert found["difference"]["wer"]["probability"] == 1
    turned = evaluate(references, [second, first])["difference"]["wer"]
    assert turned["probability"] == 0
    assert turned["difference"] == -found["difference"]["wer"]["difference"]


def test_a_system_does_not_differ_from_itself():
    references, hypotheses = corpus(4)
    found = evaluate(references, [hypotheses, dict(reversed(hypotheses.items()))])
    for compared in found["difference"].values():
        assert compared == {"difference": 0, "interval": [0, 0], "probability": 0.5}


def test_speakers_that_differ_widen_the_interval():
    """Closed form: k speakers of equal size, each with its own rate."""
    wrong = range(0, 100, 10)
    references = {f"{s}-{i}": "a" for s in range(10) for i in range(100)}
    hypotheses = {i: "b" if int(i[2:]) < wrong[int(i[0])] else "a" for i in references}
    found = evaluate(references, [hypotheses], _speakers(references), resamples=4000)
    low, high = found["systems"][0]["wer_interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(wrong) / math.sqrt(10), rel=0.06)
    low_, high_ = evaluate(references, [hypotheses])["systems"][0]["wer_interval"]
    assert high_ - low_ < (high - low) / 3


def test_figures_by_speaker_add_up():
    references, hypotheses = corpus(5)
    found = evaluate(references, [hypotheses, references], _speakers(references))
    scores = found["systems"][0]
    by_speaker = scores["speakers"]
    assert list(by_speaker) == sorted(set(_speakers(references).values()))
    kinds = ("substitutions", "deletions", "insertions", "words", "utterances", "characters")
    for key in (*kinds, "sentence_errors"):
        assert sum(speaker[key] for speaker in by_speaker.values()) == scores[key]
    ids = [i for i in references if i.startswith("s2-")]
    alone = metrics.score({i: references[i] for i in ids}, {i: hypotheses[i] for i in ids})
    assert (by_speaker["s2"]["wer"], by_speaker["s2"]["cer"]) == (alone.wer, alone.cer)
    assert {speaker["wer"] for speaker in found["systems"][1]["speakers"].values()} == {0}


def test_one_speaker_is_no_block():
    references, hypotheses = corpus(6)
    one = dict.fromkeys(references, "ann")
    found = evaluate(references, [hypotheses], one)
    assert found["bootstrap"] == evaluate(references, [hypotheses])["bootstrap"]
    assert found["systems"][0]["speakers"]["ann"]["wer"] == found["systems"][0]["wer"]


def test_what_has_no_value_is_none():
    found = evaluate({"a": ""}, [{"a": "x"}, {"a": ""}], {"a": "ann"})
    first = found["systems"][0]
    assert first["wer"] is None and first["cer_interval"] is None and first["ser"] == 100
    assert first["speakers"]["ann"]["wer"] is None
    assert found["difference"]["wer"] == dict.fromkeys(("difference", "interval", "probability"))
    assert "nan" not in table(found)


def test_bad_input():
    with pytest.raises(InputError, match="no speaker of the utterance b"):
        evaluate({"a": "x", "b": "y"}, [{"a": "x", "b": "y"}], {"a": "ann"})
    with pytest.raises(InputError, match="resamples must be positive, got 0"):
        evaluate({"a": "x"}, [{"a": "x"}], resamples=0)
    with pytest.raises(InputError, match="b without a reference"):
        evaluate({"a": "x"}, [{"a": "x"}, {"a": "x", "b": "y"}])


def test_table():
    references = {f"{s}-{i}": "a b c d" for s in ("ann", "bob") for i in range(4)} | {"bob-9": ""}
    first = {i: "a b" if i < "b" else "a b c x d" if i < "bob-9" else "" for i in references}
    found = evaluate(references, [first, references], _speakers(references))
    # Drawn: ann twice, bob twice, or both; the middle 95 % are all of it.
    assert table(found).splitlines() == [
        "9 utterances, 32 words, 56 characters; 1 reference empty",
        "intervals: 95 %, 1000 bootstrap draws of 2 speakers, seed 0",
        "",
        "           WER %              95 %   CER %              95 %  sentences wrong %"
        "               95 %  sub  del  ins",
        "A          37.50    25.00 to 50.00   42.86    28.57 to 57.14              88.89"
        "    80.00 to 100.00    0    8    4",
        "B           0.00      0.00 to 0.00    0.00      0.00 to 0.00               0.00"
        "       0.00 to 0.00    0    0    0",
        "B - A     -37.50  -50.00 to -25.00  -42.86  -57.14 to -28.57             -88.89"
        "  -100.00 to -80.00",
        "P(B < A)   1.000                     1.000                                1.000",
        "",
        "speaker  utterances  words  A WER %  A CER %  A sub  A del  A ins"
        "  B WER %  B CER %  B sub  B del  B ins",
        "ann               4     16    50.00    57.14      0      8      0"
        "     0.00     0.00      0      0      0",
        "bob               5     16    25.00    28.57      0      0      4"
        "     0.00     0.00      0      0      0",
    ]
