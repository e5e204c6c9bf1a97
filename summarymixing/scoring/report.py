"""The scores of one system, or of two against each other, with what makes them uncertain.

Intervals are bootstrap intervals of 95 % over speakers where these are known, and over utterances
otherwise (`bootstrap`). Two systems are compared on the same draws: what is hard for both then does
not count as a difference.
"""

import dataclasses
import math

import numpy as np

from summarymixing.errors import InputError
from summarymixing.scoring import bootstrap, metrics

_RATES = ("wer", "cer", "ser")
_KINDS = {"substitutions": "sub", "deletions": "del", "insertions": "ins"}


def evaluate(
    references: dict[str, str],
    systems: list[dict[str, str]],
    speakers: dict[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """Score one or two systems.

    Arguments
    ---------
    references : dict[str, str]
        Utterance id to text.
    systems : list of dict[str, str], one or two
        Hypotheses of each, for the same ids.
    speakers : dict[str, str], optional
        Utterance id to speaker, for every utterance.
    resamples : int
        Draws of the bootstrap.
    seed : int
        The same seed gives the same figures.

    Returns
    -------
    dict
        As JSON can hold it: None for a rate over nothing and an interval over a single unit.

        utterances, words, characters, empty_references : int
        bootstrap : dict with unit ("utterance" or "speaker"), units, resamples and seed
        systems : list of dict, one a system
            The counts of `metrics.Scores`; wer, cer and ser (sentence error rate) in
            percent, with wer_interval, cer_interval, ser_interval; speakers: the same without
            intervals by speaker, or None.
        difference : dict or None
            For each of wer, cer, ser: difference (second minus first, in percent), interval, and
            probability that the second has the lower rate.

    Raises
    ------
    InputError
        If ids differ or there is none, or `resamples` is not positive.

    Example
    -------
    >>> references = {"a": "one two", "b": "three four"}
    >>> found = evaluate(references, [{"a": "one", "b": "three"}, references])
    >>> found["systems"][0]["wer"], found["systems"][1]["wer"], found["difference"]["wer"]
    (50.0, 0.0, {'difference': -50.0, 'interval': [-50.0, -50.0], 'probability': 1.0})
    """
    counts = [metrics.count(references, hypotheses) for hypotheses in systems]
    ids, words = counts[0].ids, counts[0].words
    by_speaker = None
    if speakers is not None:
        if without := [i for i in ids if i not in speakers]:
            raise InputError(f"no speaker of the utterance {without[0]} is given")
        by_speaker = {}
        for row, i in enumerate(ids):
            by_speaker.setdefault(speakers[i], []).append(row)

    values = np.concatenate([_values(system) for system in counts], axis=1)
    # One speaker alone would always be drawn again.
    blocked = by_speaker is not None and len(by_speaker) > 1
    if blocked:
        values = bootstrap.by_block(values, [speakers[i] for i in ids])
    replicas = [
        _rates(columns)
        for columns in np.split(
            bootstrap.resampled_sums(values, resamples, seed), len(systems), axis=1
        )
    ]
    figures = []
    for system, rates in zip(counts, replicas):
        scores = _figures(system.scores())
        for name in _RATES:
            scores[f"{name}_interval"] = _plain(bootstrap.interval(rates[name]))
        scores["speakers"] = by_speaker and {
            speaker: _figures(system.scores(rows)) for speaker, rows in sorted(by_speaker.items())
        }
        figures.append(scores)
    return {
        "utterances": len(ids),
        "words": int(words.sum()),
        "characters": int(counts[0].characters.sum()),
        "empty_references": int((words == 0).sum()),
        "bootstrap": {
            "unit": "speaker" if blocked else "utterance",
            "units": len(values),
            "resamples": resamples,
            "seed": seed,
        },
        "systems": figures,
        "difference": _difference(counts, replicas) if len(systems) == 2 else None,
    }


def table(found: dict) -> str:
    """What `evaluate` returns, as lines for a terminal.

    Example
    -------
    >>> print(table(evaluate({"a": "one two", "b": "three"}, [{"a": "one", "b": "tree"}])))
    2 utterances, 3 words, 12 characters
    intervals: 95 %, 1000 bootstrap draws of 2 utterances, seed 0
    <BLANKLINE>
      WER %             95 %  CER % ... sentences wrong % ... sub  del  ins
      66.67  50.00 to 100.00  41.67 ...            100.00 ...   1    1    0
    """
    drawn = found["bootstrap"]
    empty = found["empty_references"]
    first = f"{_plural(found['utterances'], 'utterance')}, {_plural(found['words'], 'word')}, "
    first += _plural(found["characters"], "character")
    lines = [
        first + (f"; {_plural(empty, 'reference')} empty" if empty else ""),
        f"intervals: 95 %, {drawn['resamples']} bootstrap draws of "
        f"{_plural(drawn['units'], drawn['unit'])}, seed {drawn['seed']}",
        "",
    ]
    systems, difference = found["systems"], found["difference"]
    names = ("",) if difference is None else ("A", "B")
    rows = [["", "WER %", "95 %", "CER %", "95 %", "sentences wrong %", "95 %", *_KINDS.values()]]
    for name, scores in zip(names, systems):
        row = [name]
        for rate in _RATES:
            row += [_number(scores[rate]), _range(scores[f"{rate}_interval"])]
        rows.append(row + [str(scores[kind]) for kind in _KINDS])
    if difference is not None:
        row, better = ["B - A"], ["P(B < A)"]
        for rate in _RATES:
            compared = difference[rate]
            row += [_number(compared["difference"], "+.2f"), _range(compared["interval"], "+.2f")]
            better += [_number(compared["probability"], ".3f"), ""]
        rows += [row + [""] * len(_KINDS), better + [""] * len(_KINDS)]
    lines += _columns(rows)
    if systems[0]["speakers"] is not None:
        lines += ["", *_columns(_by_speaker(names, systems))]
    return "\n".join(lines)


def _values(counts):
    """What the rates are made of, (utterances, 6)."""
    errors = counts.errors
    columns = (
        *(errors, counts.words),
        *(counts.character_errors, counts.characters),
        *(errors > 0, np.ones_like(errors)),
    )
    return np.stack(columns, axis=1).astype(int)


def _rates(sums):
    return {
        name: bootstrap.percent(sums[:, 2 * i], sums[:, 2 * i + 1]) for i, name in enumerate(_RATES)
    }


def _figures(scores):
    figures = {name: _plain(value) for name, value in dataclasses.asdict(scores).items()}
    return figures | {"ser": 100 * scores.sentence_errors / scores.utterances}


def _difference(counts, replicas):
    rates = [_rates(_values(system).sum(axis=0, keepdims=True)) for system in counts]
    found = {}
    for name in _RATES:
        differences = replicas[1][name] - replicas[0][name]
        found[name] = {
            "difference": _plain(float(rates[1][name][0] - rates[0][name][0])),
            "interval": _plain(bootstrap.interval(differences)),
            "probability": _plain(bootstrap.probability_below_zero(differences)),
        }
    return found


def _by_speaker(names, systems):
    rows = [["speaker", "utterances", "words"]]
    for name in names:
        rows[0] += [f"{name} {title}".strip() for title in ("WER %", "CER %", *_KINDS.values())]
    for speaker, scores in systems[0]["speakers"].items():
        row = [speaker, str(scores["utterances"]), str(scores["words"])]
        for system in systems:
            scores = system["speakers"][speaker]
            row += [_number(scores["wer"]), _number(scores["cer"])]
            row += [str(scores[kind]) for kind in _KINDS]
        rows.append(row)
    return rows


def _columns(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]
        ).rstrip()
        for row in rows
    ]


def _plain(value):
    """None for nan; tuples as JSON has them."""
    if isinstance(value, tuple):
        value = [_plain(item) for item in value]
        return None if None in value else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value, form=".2f"):
    return "-" if value is None else format(value, form)


def _range(interval, form=".2f"):
    return "-" if interval is None else " to ".join(format(value, form) for value in interval)


def _plural(count, noun):
    return f"{count} {noun}" + ("" if count == 1 else "s")
