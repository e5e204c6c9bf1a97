#!/usr/bin/env python3
"""The best weights of a search on a development set: decode once, then weigh the scores anew.

    python scripts/tune_search.py MODEL MANIFEST.csv --search "joint beam_size=30"
    python scripts/tune_search.py MODEL MANIFEST.csv --search "ctc_beam beam_size=50 \\
        ngram_file=tokens.arpa ngram_weight=0.5" --confirm

The search gives a list of hypotheses for each utterance, with the scores of its models apart. For
every point of a grid of weights the best one of each list is taken, and the errors are counted.
What is not in the lists cannot be found in this way: the oracle WER, of the hypothesis with the
fewest errors in each list, bounds all of it, and far from the weights of the decoding the lists are
those of another search. --confirm decodes again with the best weights and says what they are worth.
"""

import argparse
import inspect
import itertools
import math

import numpy as np
from tqdm import tqdm

from summarymixing.dataio import manifests
from summarymixing.decoding import JointBeamSearch
from summarymixing.decoding.methods import parse_search
from summarymixing.errors import InputError, said_in_one_line
from summarymixing.inference import load
from summarymixing.inference.evaluation import encoded_batches
from summarymixing.scoring import metrics

# The weights a search may have, where they are tried, and the parts that they need.
GRID = {
    "ctc_weight": (np.linspace(0, 1, 21), {"ctc", "attention"}),
    "lm_weight": (np.linspace(0, 1.5, 16), {"lm"}),
    "ngram_weight": (np.linspace(0, 2, 21), {"ngram"}),
    "length_bonus": (np.linspace(-2, 3, 21), set()),
}
# Of the grid at most: of four weights only every second value fits in.
POINTS = 20000


class Lists:
    """Hypotheses of all utterances as arrays, and the errors of each.

    Arguments
    ---------
    nbest : dict of str to list of summarymixing.decoding.Hypothesis
        By utterance.
    references : dict of str to str
    decode : callable
        Tokens to text.
    normalised : bool
        Whether scores are divided by the number of tokens, the end included.
    """

    def __init__(self, nbest, references, decode, normalised):
        # An utterance without frames may lack some.
        found = (hypothesis for hypotheses in nbest.values() for hypothesis in hypotheses)
        self.parts = sorted({part for hypothesis in found for part in hypothesis.parts})
        utterances, longest = len(nbest), max(map(len, nbest.values()))
        self.scores = np.full((utterances, longest, len(self.parts)), -np.inf)
        self.lengths = np.zeros((utterances, longest))
        self.there = np.zeros((utterances, longest), dtype=bool)
        self.errors = np.zeros((utterances, longest), dtype=int)
        texts, expected = {}, {}
        for row, (name, hypotheses) in enumerate(nbest.items()):
            for place, hypothesis in enumerate(hypotheses):
                self.there[row, place] = True
                self.scores[row, place] = [hypothesis.parts.get(part, 0.0) for part in self.parts]
                self.lengths[row, place] = len(hypothesis.tokens)
                texts[row, place] = decode(hypothesis.tokens)
                expected[row, place] = references[name]
        counts = metrics.count(expected, texts)
        for (row, place), errors in zip(counts.ids, counts.errors):
            self.errors[row, place] = errors
        first = [counts.ids.index((row, 0)) for row in range(utterances)]
        self.words = int(counts.words[first].sum())
        # Of hypotheses that the length limit cut, the token that was cut off counts as well.
        cut = [[not h.complete for h in hypotheses] for hypotheses in nbest.values()]
        self.divisor = np.ones_like(self.lengths)
        if normalised:
            self.divisor = self.lengths + 1
            for row, flags in enumerate(cut):
                self.divisor[row, : len(flags)] += flags

    def best(self, weights):
        """The place of each utterance's best hypothesis, the first of equals."""
        total = weights.get("length_bonus", 0.0) * self.lengths
        for i, part in enumerate(self.parts):
            weight = self._weight(part, weights)
            if weight:  # 0 times minus infinity is nothing
                total = total + weight * self.scores[..., i]
        return np.where(self.there, total / self.divisor, -np.inf).argmax(1)

    def _weight(self, part, weights):
        if part in ("lm", "ngram"):
            return weights.get(f"{part}_weight", 0.0)
        ctc = weights.get("ctc_weight", 1.0) if {"ctc", "attention"} <= set(self.parts) else None
        return 1.0 if ctc is None else ctc if part == "ctc" else 1 - ctc

    def errors_at(self, weights):
        """Word errors of all utterances."""
        return int(np.take_along_axis(self.errors, self.best(weights)[:, None], 1).sum())

    def oracle(self):
        """Word errors of the best choices that there could be."""
        return int(np.where(self.there, self.errors, np.iinfo(int).max).min(1).sum())


def tunable(search, parts):
    """The present weights of those that a rescan can change."""
    present = {name: getattr(search, name, None) for name in GRID}
    return {
        name: value
        for name, value in present.items()
        if value is not None and GRID[name][1] <= set(parts)
    }


def scan(lists, present):
    """Weights with the fewest errors, the nearest of equals to the present ones; the errors.

    Returns
    -------
    dict of str to float
    int
    dict of str to list of (float, int)
        For each weight its values and the errors with the others at their best.
    """
    for step in itertools.count(1):
        axes = {
            name: sorted({*GRID[name][0][::step].round(4).tolist(), present[name]})
            for name in present
        }
        if math.prod(map(len, axes.values())) <= POINTS:
            break

    def cost(weights):
        far = sum(
            ((weights[name] - present[name]) / (axes[name][-1] - axes[name][0])) ** 2
            for name in weights
        )
        return lists.errors_at(weights), far

    points = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    best = min(tqdm(points, unit=" points", disable=None), key=cost)
    curves = {
        name: [(value, lists.errors_at(best | {name: value})) for value in values]
        for name, values in axes.items()
    }
    return best, lists.errors_at(best), curves


def changed(search, weights):
    """A search with other weights."""
    arguments = {name: getattr(search, name) for name in inspect.signature(type(search)).parameters}
    return type(search)(**arguments | weights)


def decode(recogniser, search, rows, batch_size):
    """Lists of hypotheses by utterance."""
    found = {}
    with tqdm(total=len(rows), unit=" utterances", disable=None) as bar:
        for batch, encoded, lengths in encoded_batches(recogniser, rows, batch_size):
            lists = search.nbest(recogniser.modules, encoded, lengths)
            found.update(zip((row["ID"] for row in batch), lists))
            bar.update(len(batch))
    return found


def run(options):
    if options.batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {options.batch_size}")
    recogniser = load(options.model, options.device)
    rows = manifests.read(options.manifest)
    if options.search:
        search = parse_search(options.search, recogniser.modules, lambda: recogniser.test_search)
    else:
        search = recogniser.test_search
    if not hasattr(search, "nbest") or not tunable(
        search, set.union(*(g[1] for g in GRID.values()))
    ):
        raise InputError(f"the search {options.search or 'of the run'} has no weights to tune")
    references = {row["ID"]: row["wrd"] for row in rows}
    text = recogniser.tokenizer.decode
    nbest = decode(recogniser, search, rows, options.batch_size)
    lists = Lists(nbest, references, text, isinstance(search, JointBeamSearch))
    present = tunable(search, lists.parts)
    if not present:
        raise InputError(
            f"the lists have the part {' and '.join(lists.parts)} only, which leaves nothing to "
            "weigh: decode with another weight or model"
        )

    def wer(errors):
        return f"WER {100 * errors / max(lists.words, 1):.2f} % ({errors} errors)"

    best, errors, curves = scan(lists, present)
    sizes = lists.there.sum(1)
    same = int((lists.best(present) == 0).sum())
    print(
        f"{len(rows)} utterances, {lists.words} words; lists of {sizes.min()} to {sizes.max()} "
        f"hypotheses, {same} of which begin with what the present weights choose"
    )
    print(f"present  {_shown(present)}: {wer(lists.errors_at(present))}")
    points = math.prod(map(len, curves.values()))
    print(f"best     {_shown(best)}: {wer(errors)}, of {points} points")
    print(f"oracle   {wer(lists.oracle())}: no weights can do better with these lists\n")
    for name, curve in curves.items():
        others = _shown({k: v for k, v in best.items() if k != name})
        print(f"errors by {name}" + (f" ({others})" if others else "") + ":")
        print("  " + "  ".join(f"{value:g}: {count}" for value, count in curve))
    values = ", ".join(f"{name}: {value:g}" for name, value in best.items())
    print(f"\nin the recipe: --test_search='{{{values}}}', with keys that its search has")
    if options.search:
        words = [w for w in options.search.split() if w.partition("=")[0] not in best]
        print(f'elsewhere: --search "{" ".join([*words, *_shown(best).split()])}"')
    if options.confirm:
        again = decode(recogniser, changed(search, best), rows, options.batch_size)
        found = {name: text(hypotheses[0].tokens) for name, hypotheses in again.items()}
        print(f"decoded again: {wer(int(metrics.count(references, found).errors.sum()))}")


def _shown(weights):
    return " ".join(f"{name}={value:g}" for name, value in weights.items())


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", metavar="MODEL", help="output folder of a training, or a package of it"
    )
    parser.add_argument("manifest", help="of a development set: not of a test set")
    parser.add_argument(
        "--search",
        metavar="METHOD",
        help="as in evaluate_searches.py, with a wide beam (default: what the run was tested with)",
    )
    parser.add_argument("--confirm", action="store_true", help="decode again with the best weights")
    parser.add_argument("--batch_size", type=int, default=8, help="utterances (default: 8)")
    parser.add_argument("--device", default="cpu")
    with said_in_one_line():
        run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
