"""Word and character error rates, their uncertainty, and a report of what went wrong.

The text is compared as it is given: case, punctuation and Unicode form are the caller's to
normalise. Words are what lies between white space, so that runs of spaces never count as errors.

The number of errors is the least possible; how it splits into substitutions, deletions and
insertions depends on which of the equally short alignments is taken (jiwer's here). NIST's sclite
may split the same total differently. As it weighs a substitution 4 and the others 3, it now and
then also counts an error more: five words wrong as three deleted and three inserted around two
that agree.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass

import jiwer
import numpy as np

from summarymixing.errors import InputError
from summarymixing.scoring import bootstrap

_LINE_WIDTH = 100


@dataclass(frozen=True)
class Scores:
    """Corpus-level error rates (percent) and the counts behind them.

    The rates are the errors of all utterances over the words (characters) of all references: they
    may exceed 100. Where the references hold no word at all they are nan, and the insertions tell
    the rest.

    Attributes
    ----------
    wer, cer : float
        Word and character error rate in percent. Spaces between words count as characters.
    substitutions, deletions, insertions : int
        Word errors.
    words : int
        Words in the references.
    utterances : int
        Utterances scored, those with an empty reference included.
    characters : int
        Characters in the references, with single spaces between words.
    sentence_errors : int
        Utterances with at least one word error.
    """

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    utterances: int
    characters: int
    sentence_errors: int


@dataclass(frozen=True)
class Counts:
    """Errors of each utterance, from which all figures are summed.

    Attributes
    ----------
    ids : list[str]
        Utterance ids, sorted.
    substitutions, deletions, insertions : array of int, (utterances,)
        Word errors.
    words : array of int, (utterances,)
        Words in the reference.
    character_errors, characters : array of int, (utterances,)
        Likewise for characters, with single spaces between words.

    Example
    -------
    >>> counts = count({"a": "one two", "b": "three"}, {"b": "three", "a": "one"})
    >>> counts.ids, counts.errors.tolist(), counts.words.tolist()
    (['a', 'b'], [1, 0], [2, 1])
    >>> counts.scores([0]).wer  # the first utterance's
    50.0
    """

    ids: list[str]
    substitutions: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray
    words: np.ndarray
    character_errors: np.ndarray
    characters: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Word errors of each utterance."""
        return self.substitutions + self.deletions + self.insertions

    def scores(self, rows=slice(None)) -> Scores:
        """Scores of all utterances, or of some: `rows` is an index into the arrays."""
        errors, words = self.errors[rows], self.words[rows]
        characters = self.characters[rows]
        return Scores(
            wer=_percent(errors.sum(), words.sum()),
            cer=_percent(self.character_errors[rows].sum(), characters.sum()),
            substitutions=int(self.substitutions[rows].sum()),
            deletions=int(self.deletions[rows].sum()),
            insertions=int(self.insertions[rows].sum()),
            words=int(words.sum()),
            utterances=len(words),
            characters=int(characters.sum()),
            sentence_errors=int((errors > 0).sum()),
        )


def count(references: dict[str, str], hypotheses: dict[str, str]) -> Counts:
    """Count the errors of each utterance; parameters and errors as in `score`.

    Example
    -------
    >>> count({"a": "one two"}, {"a": "one"}).deletions.tolist()
    [1]
    """
    ids, reference_texts, hypothesis_texts = _paired(references, hypotheses)
    words = jiwer.process_words(reference_texts, hypothesis_texts)
    characters = jiwer.process_characters(reference_texts, hypothesis_texts)
    substitutions, deletions, insertions = _per_utterance(words)
    return Counts(
        ids=ids,
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        words=np.array([len(reference) for reference in words.references]),
        character_errors=_per_utterance(characters).sum(axis=0),
        characters=np.array([len(reference) for reference in characters.references]),
    )


def score(references: dict[str, str], hypotheses: dict[str, str]) -> Scores:
    """Score the hypotheses against the references.

    Arguments
    ---------
    references, hypotheses : dict[str, str]
        Utterance id to text; both may hold empty texts. The ids must be the same, in any order.

    Returns
    -------
    Scores

    Raises
    ------
    InputError
        If the ids differ or there is none.

    Example
    -------
    >>> scores = score({"a": "one two three", "b": ""}, {"a": "one too three", "b": "oh"})
    >>> scores.substitutions, scores.deletions, scores.insertions, scores.words
    (1, 0, 1, 3)
    >>> round(scores.wer, 2)
    66.67
    """
    return count(references, hypotheses).scores()


def wer_interval(
    references: dict[str, str],
    hypotheses: dict[str, str],
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap 95 % interval of the word error rate, by drawing utterances with replacement.

    It says how far the number would move on another test set of this size, and nothing about
    another training seed. Utterances are taken as independent: with few speakers the truth is
    wider (`summarymixing.scoring.report.evaluate` draws speakers where they are known).

    Arguments
    ---------
    references, hypotheses : dict[str, str]
        As in `score`.
    resamples : int
        Test sets drawn.
    seed : int
        The same seed gives the same interval.

    Returns
    -------
    low, high : float
        Percent; nan where the references hold no word, and for a single utterance.

    Raises
    ------
    InputError
        If the ids differ or there is none, or if `resamples` is not positive.

    Example
    -------
    >>> references = {str(i): "one two three four" for i in range(100)}
    >>> hypotheses = {i: text if int(i) % 4 else "one two" for i, text in references.items()}
    >>> low, high = wer_interval(references, hypotheses)
    >>> 5 < low < 12.5 < high < 20
    True
    """
    return _interval(count(references, hypotheses), resamples, seed)


def alignment_report(references: dict[str, str], hypotheses: dict[str, str]) -> str:
    """Lay out every wrong utterance word under word, the one with most errors first.

    The header holds the totals and the most frequent confusions. Utterances without an error are
    counted there, and not listed.

    Arguments
    ---------
    references, hypotheses : dict[str, str]
        As in `score`.

    Returns
    -------
    str
        Several lines, without a newline at the end. In the alignments `S`, `D` and `I` stand below
        the substituted, deleted and inserted words, and stars where one side has no word.

    Raises
    ------
    InputError
        If the ids differ or there is none.

    Example
    -------
    >>> report = alignment_report({"a": "one two three"}, {"a": "one too"})
    >>> print(report[report.index("a: "):])
    a: 2 errors in 3 words
    REF: one two three
    HYP: one too *****
             S   D
    """
    counts = count(references, hypotheses)
    ids, errors = counts.ids, counts.errors
    worst_first = sorted(
        np.flatnonzero(errors), key=lambda i: (-errors[i], counts.words[i], ids[i])
    )
    words = jiwer.process_words(*_paired(references, hypotheses)[1:])

    lines = _header(counts.scores(), _interval(counts), words)
    for i in worst_first:
        pairs = _pairs(words.references[i], words.hypotheses[i], words.alignments[i])
        title = f"{ids[i]}: {_plural(errors[i], 'error')} in {_plural(counts.words[i], 'word')}"
        lines += ["", title, *_layout(pairs)]
    return "\n".join(lines)


def _paired(references, hypotheses):
    """The ids in order, and both texts of each with single spaces."""
    missing = sorted(references.keys() - hypotheses.keys())
    extra = sorted(hypotheses.keys() - references.keys())
    problems = []
    if missing:
        problems.append(f"{_few(missing)} without a hypothesis")
    if extra:
        problems.append(f"{_few(extra)} without a reference")
    if problems:
        raise InputError(
            "references and hypotheses must have the same utterance ids: " + "; ".join(problems)
        )
    if not references:
        raise InputError("there is no utterance to score")
    ids = sorted(references)
    # jiwer splits words at plain spaces only, and counts every space in the CER.
    return (
        ids,
        [" ".join(references[i].split()) for i in ids],
        [" ".join(hypotheses[i].split()) for i in ids],
    )


def _few(ids, shown=3):
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return ", ".join(map(str, ids[:shown])) + more


def _per_utterance(output):
    """Substitutions, deletions and insertions: an integer array (3, utterances)."""
    counts = np.zeros((3, len(output.alignments)), dtype=int)
    for i, chunks in enumerate(output.alignments):
        for chunk in chunks:
            if chunk.type != "equal":
                kind = ("substitute", "delete", "insert").index(chunk.type)
                # A substitution spans as many on either side; the other two are empty on one.
                counts[kind, i] += max(
                    chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
                )
    return counts


def _interval(counts, resamples=1000, seed=0):
    values = np.stack([counts.errors, counts.words], axis=1)
    errors, words = bootstrap.resampled_sums(values, resamples, seed).T
    return bootstrap.interval(bootstrap.percent(errors, words))


def _percent(errors, total):
    return 100.0 * float(errors) / float(total) if total else float("nan")


def _plural(count, noun):
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _pairs(reference, hypothesis, chunks):
    """(reference word or None, hypothesis word or None) along an alignment."""
    pairs = []
    for chunk in chunks:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        pairs += zip(left or [None] * len(right), right or [None] * len(left))
    return pairs


def _header(scores, interval, words, most=10):
    substituted, deleted, inserted = Counter(), Counter(), Counter()
    for aligned in zip(words.references, words.hypotheses, words.alignments):
        for left, right in _pairs(*aligned):
            if left is None:
                inserted[right] += 1
            elif right is None:
                deleted[left] += 1
            elif left != right:
                substituted[f"{left} -> {right}"] += 1
    lines = [
        f"WER {scores.wer:.2f} % (95 % interval {interval[0]:.2f} to {interval[1]:.2f}), "
        f"CER {scores.cer:.2f} %",
        f"{_plural(scores.words, 'word')}: {scores.substitutions} substituted, "
        f"{scores.deletions} deleted, {scores.insertions} inserted",
        f"{_plural(scores.utterances, 'utterance')}: {scores.sentence_errors} with errors, listed "
        "below, most errors first",
    ]
    for name, counter in (
        ("substituted", substituted),
        ("deleted", deleted),
        ("inserted", inserted),
    ):
        if counter:
            # By count, then by name: the report must not depend on the order of the utterances.
            ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:most]
            lines += ["", f"most often {name}:"]
            lines += [f"{count:6d}  {confusion}" for confusion, count in ranked]
    return lines


def _layout(pairs):
    """REF, HYP and operation lines, folded at `_LINE_WIDTH` columns."""
    lines = []
    rows, used = ([], [], []), 0
    for left, right in pairs:
        width = max(_columns(left or ""), _columns(right or ""))
        if used and used + width > _LINE_WIDTH:
            lines += _fold(rows)
            rows, used = ([], [], []), 0
        operation = "I" if left is None else "D" if right is None else "S" if left != right else ""
        for row, cell in zip(rows, (left, right, operation)):
            cell = "*" * width if cell is None else cell
            row.append(cell + " " * (width - _columns(cell)))
        used += width + 1
    return lines + _fold(rows)


def _fold(rows):
    labels = ("REF: ", "HYP: ", "     ")
    lines = [(label + " ".join(row)).rstrip() for label, row in zip(labels, rows)]
    # Without an error there is no third line: blank ones stand between utterances.
    return [line for line in lines if line]


def _columns(text):
    """Terminal columns of a text: wide characters take two, combining marks none."""
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )
