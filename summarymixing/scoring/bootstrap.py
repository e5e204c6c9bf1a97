"""How far a figure of a test set would move on another one like it: the bootstrap.

Units, utterances or speakers, are drawn with replacement, as many as there are, again and again;
a figure's values over the draws are its replicas (Efron and Tibshirani 1993; for word error rates,
also those of two systems on the same draws, Bisani and Ney 2004). That says nothing about another
training seed. Speakers are the better units where they are known, as the utterances of one speaker
are alike: drawn alone they make intervals too narrow.
"""

import numpy as np

from summarymixing.errors import InputError

_AT_ONCE = 1_000_000  # indices in memory


def resampled_sums(values, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Sums over the drawn units, for each draw.

    Counts that go into one figure, or figures that are to be compared, are columns of one array,
    so that the same units are drawn for all of them.

    Arguments
    ---------
    values : array, (units, columns)
        Counts of each unit.
    resamples : int
        Draws.
    seed : int
        The same seed gives the same draws.

    Returns
    -------
    array, (resamples, columns)
        All nan for fewer than two units: every draw would be the same, which says nothing.

    Raises
    ------
    InputError
        If `resamples` is not positive.

    Example
    -------
    >>> errors, words = [1, 0, 2], [5, 5, 10]
    >>> sums = resampled_sums(np.stack([errors, words], axis=1), resamples=4)
    >>> sums.shape
    (4, 2)
    """
    if resamples < 1:
        raise InputError(f"resamples must be positive, got {resamples}")
    values = np.asarray(values)
    units = len(values)
    if units < 2:
        return np.full((resamples, values.shape[1]), np.nan)
    generator = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // units)
    sums = []
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        drawn = generator.integers(0, units, size=(count, units))
        # Column by column: the same in less memory.
        sums.append(np.stack([column[drawn].sum(axis=1) for column in values.T], axis=1))
    return np.concatenate(sums)


def by_block(values, blocks) -> np.ndarray:
    """Sums of the rows that share a block, such as a speaker, sorted by block.

    Arguments
    ---------
    values : array, (units, columns)
    blocks : sequence of str, (units,)

    Returns
    -------
    array, (blocks, columns)

    Example
    -------
    >>> by_block([[1, 5], [0, 5], [2, 10]], ["ann", "bob", "ann"])
    array([[ 3, 15],
           [ 0,  5]])
    """
    values = np.asarray(values)
    names, rows = np.unique(np.asarray(blocks), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]), dtype=values.dtype)
    np.add.at(sums, rows, values)
    return sums


def percent(errors, total) -> np.ndarray:
    """Rates in percent, nan over nothing.

    Example
    -------
    >>> percent([1, 2], [4, 0])
    array([25., nan])
    """
    errors, total = np.asarray(errors, dtype=float), np.asarray(total, dtype=float)
    return 100 * np.divide(errors, total, out=np.full_like(errors, np.nan), where=total > 0)


def interval(replicas) -> tuple[float, float]:
    """The middle 95 % of the replicas; nan where there is none.

    A draw without a value (nan, such as the rate over no word) is left out: the others still bound
    the figure.

    Example
    -------
    >>> interval(np.arange(101))
    (2.5, 97.5)
    """
    replicas = np.asarray(replicas, dtype=float)
    replicas = replicas[~np.isnan(replicas)]
    if not len(replicas):
        return float("nan"), float("nan")
    low, high = np.percentile(replicas, [2.5, 97.5])
    return float(low), float(high)


def probability_below_zero(replicas) -> float:
    """Share of the replicas below 0, those at 0 counted half; nan where there is none.

    Of the differences between two systems' error rates it is the probability that the first has
    fewer: 0.5 for a system and itself.

    Example
    -------
    >>> probability_below_zero([-1.0, -0.5, 0.0, 2.0])
    0.625
    """
    replicas = np.asarray(replicas, dtype=float)
    replicas = replicas[~np.isnan(replicas)]
    if not len(replicas):
        return float("nan")
    return float(np.mean(replicas < 0) + np.mean(replicas == 0) / 2)
