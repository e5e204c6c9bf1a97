"""Error rates against a textbook edit distance and against jiwer."""

import math
import random

import jiwer
import pytest

from summarymixing.errors import InputError
from summarymixing.scoring.metrics import alignment_report, score, wer_interval

WORDS = "a an the cat cats sat mat naïve 猫 кот".split()


def edit_distance(left, right):
    """The whole table, as in a textbook."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in range(len(left) + 1):
        for j in range(len(right) + 1):
            if i == 0 or j == 0:
                table[i][j] = i + j
            else:
                table[i][j] = min(
                    table[i - 1][j] + 1,
                    table[i][j - 1] + 1,
                    table[i - 1][j - 1] + (left[i - 1] != right[j - 1]),
                )
    return table[-1][-1]


def random_corpus(seed, size=12, shortest=0):
    draw = random.Random(seed)

    def texts():
        return {
            f"utterance-{i}": " ".join(draw.choices(WORDS, k=draw.randint(shortest, 8)))
            for i in range(size)
        }

    return texts(), texts()


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_a_textbook_edit_distance(seed):
    references, hypotheses = random_corpus(seed)
    scores = score(references, hypotheses)
    distances = {i: edit_distance(references[i].split(), hypotheses[i].split()) for i in references}
    words = sum(len(text.split()) for text in references.values())
    assert scores.substitutions + scores.deletions + scores.insertions == sum(distances.values())
    # Whatever the alignment, insertions and deletions make up the difference in length.
    hypothesis_words = sum(len(text.split()) for text in hypotheses.values())
    assert scores.insertions - scores.deletions == hypothesis_words - words
    assert scores.words == words
    assert scores.wer == pytest.approx(100 * sum(distances.values()) / words)
    assert scores.sentence_errors == sum(distance > 0 for distance in distances.values())
    assert scores.utterances == len(references)

    characters = sum(len(text) for text in references.values())
    errors = sum(edit_distance(references[i], hypotheses[i]) for i in references)
    assert scores.characters == characters
    assert scores.cer == pytest.approx(100 * errors / characters)


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_jiwer(seed):
    references, hypotheses = random_corpus(seed, shortest=1)
    left, right = list(references.values()), [hypotheses[i] for i in references]
    expected = jiwer.process_words(left, right)
    scores = score(references, hypotheses)
    assert scores.wer == pytest.approx(100 * expected.wer)
    assert scores.cer == pytest.approx(100 * jiwer.cer(left, right))
    for kind in ("substitutions", "deletions", "insertions"):
        assert getattr(scores, kind) == getattr(expected, kind)


def test_order_of_the_ids_does_not_matter():
    references, hypotheses = random_corpus(3)
    turned = dict(reversed(hypotheses.items()))
    assert score(references, turned) == score(references, hypotheses)


def test_empty_reference_is_all_insertions():
    scores = score({"a": "", "b": "one two"}, {"a": "x y z", "b": "one two"})
    assert (scores.substitutions, scores.deletions, scores.insertions) == (0, 0, 3)
    assert (scores.words, scores.utterances, scores.sentence_errors) == (2, 2, 1)
    assert scores.wer == 150
    assert scores.cer == pytest.approx(100 * 5 / 7)


def test_empty_hypothesis_is_all_deletions():
    scores = score({"a": "one two"}, {"a": "  "})
    assert (scores.substitutions, scores.deletions, scores.insertions) == (0, 2, 0)
    assert (scores.wer, scores.cer) == (100, 100)


@pytest.mark.parametrize("hypothesis, insertions", [("", 0), ("one two", 2)])
def test_rates_over_no_reference_word_are_nan(hypothesis, insertions):
    scores = score({"a": ""}, {"a": hypothesis})
    assert math.isnan(scores.wer) and math.isnan(scores.cer)
    assert (scores.insertions, scores.words) == (insertions, 0)
    assert all(map(math.isnan, wer_interval({"a": ""}, {"a": hypothesis})))
    assert "nan" in alignment_report({"a": ""}, {"a": hypothesis})


def test_layout_of_spaces_is_no_error():
    messy, tidy = {"a": " one  two\tthree\n"}, {"a": "one two three"}
    for references, hypotheses in ((messy, tidy), (tidy, messy)):
        scores = score(references, hypotheses)
        assert (scores.wer, scores.cer, scores.characters) == (0, 0, 13)


def test_spaces_count_as_characters():
    assert score({"a": "ab cd"}, {"a": "abcd"}).cer == pytest.approx(100 / 5)


@pytest.mark.parametrize("function", [score, alignment_report, wer_interval])
def test_ids_that_differ_are_named(function):
    references = {f"r{i}": "a" for i in range(6)} | {"same": "a"}
    with pytest.raises(InputError) as caught:
        function(references, {"same": "a", "h0": "a"})
    message = str(caught.value)
    assert "r0, r1, r2 and 3 more without a hypothesis" in message
    assert "h0 without a reference" in message
    assert "same" not in message.replace("the same", "") and "\n" not in message
    with pytest.raises(InputError, match="no utterance"):
        function({}, {})


def test_interval_is_seeded_and_shrinks_with_the_test_set():
    def corpus(size):
        return (
            {str(i): "one two three four" for i in range(size)},
            {str(i): "one two three four" if i % 3 else "one too" for i in range(size)},
        )

    small, large = wer_interval(*corpus(30)), wer_interval(*corpus(3000))
    assert large == wer_interval(*corpus(3000))
    assert large != wer_interval(*corpus(3000), seed=1)
    wer = score(*corpus(3000)).wer
    assert small[0] < large[0] < wer < large[1] < small[1]
    # Three errors in four words for a third of the utterances: binomial, in closed form.
    half = 1.96 * 75 * math.sqrt(1 / 3 * 2 / 3 / 3000)
    assert large[1] - large[0] == pytest.approx(2 * half, rel=0.1)


def test_interval_weighs_utterances_by_their_words():
    references = {"long": "w " * 99, **{str(i): "w" for i in range(9)}}
    hypotheses = {"long": "w " * 99, **{str(i): "x" for i in range(9)}}
    low, high = wer_interval(references, hypotheses)
    # Drawn without the long one every word is wrong; with it, few are.
    assert low < 10 and high == 100


def test_interval_wants_resamples():
    with pytest.raises(InputError, match="resamples must be positive, got 0"):
        wer_interval({"a": "b"}, {"a": "b"}, resamples=0)


def alignments(report):
    """The report's utterances: id to the (reference, hypothesis, operation) lines."""
    found = {}
    for block in report.split("\n\n"):
        lines = block.splitlines()
        if len(lines) > 1 and lines[1].startswith("REF:"):
            found[lines[0].split(":")[0]] = [
                " ".join(line[5:] for line in lines[1:] if line.startswith(label))
                for label in ("REF: ", "HYP: ", "     ")
            ]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_report_spells_out_both_texts_and_every_error(seed):
    references, hypotheses = random_corpus(seed)
    scores = score(references, hypotheses)
    found = alignments(alignment_report(references, hypotheses))
    assert len(found) == scores.sentence_errors
    operations = ""
    errors = []
    for i, (reference, hypothesis, operation) in found.items():
        assert [word for word in reference.split() if set(word) != {"*"}] == references[i].split()
        assert [word for word in hypothesis.split() if set(word) != {"*"}] == hypotheses[i].split()
        operations += operation.replace(" ", "")
        errors.append(len(operation.split()))
    assert errors == sorted(errors, reverse=True)
    assert operations.count("S") == scores.substitutions
    assert operations.count("D") == scores.deletions
    assert operations.count("I") == scores.insertions


def test_report_puts_words_below_words():
    report = alignment_report({"x": "a bb c d"}, {"x": "a b c d eee"})
    assert report.endswith("REF: a bb c d ***\nHYP: a b  c d eee\n       S      I")


def test_report_aligns_wide_and_combining_characters():
    # Two columns each for 猫 and 犬; none for the accent of its own.
    report = alignment_report({"x": "猫 cafe\u0301 x"}, {"x": "犬 cafe\u0301 y"})
    assert report.endswith("REF: 猫 cafe\u0301 x\nHYP: 犬 cafe\u0301 y\n     S       S")


def test_report_folds_long_utterances():
    words = " ".join(f"word{i}" for i in range(100))
    report = alignment_report({"x": words}, {"x": words.replace("word70", "other")})
    assert max(map(len, report.splitlines())) <= 110
    reference, hypothesis, operation = alignments(report)["x"]
    assert reference.split() == words.split()
    assert operation.split() == ["S"] and "other" in hypothesis


def test_report_begins_with_totals_and_frequent_confusions():
    references = {str(i): "the cat sat" for i in range(5)} | {"z": "right"}
    hypotheses = {str(i): "a cat" for i in range(5)} | {"z": "right"}
    header = alignment_report(references, hypotheses).split("REF:")[0]
    assert "WER 62.50 %" in header
    assert "16 words: 5 substituted, 5 deleted, 0 inserted" in header
    assert "6 utterances: 5 with errors" in header
    assert "     5  the -> a\n" in header
    assert "most often deleted:\n     5  sat" in header
    assert "most often inserted" not in header
