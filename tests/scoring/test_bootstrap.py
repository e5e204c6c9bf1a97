"""The bootstrap against a loop, and against closed forms."""

import math
import time

import numpy as np
import pytest

from summarymixing.errors import InputError
from summarymixing.scoring import bootstrap


def test_sums_are_those_of_a_loop(monkeypatch):
    values = np.random.default_rng(1).integers(0, 9, size=(7, 3))
    generator = np.random.default_rng(5)
    expected = []
    for _ in range(11):
        total = np.zeros(3, dtype=int)
        for unit in generator.integers(0, 7, size=7):
            total += values[unit]
        expected.append(total)
    assert (bootstrap.resampled_sums(values, 11, seed=5) == expected).all()
    # In pieces, the last one ragged.
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 30)
    assert (bootstrap.resampled_sums(values, 11, seed=5) == expected).all()


def test_seed_is_what_the_draws_depend_on():
    values = np.arange(40).reshape(20, 2)
    first = bootstrap.resampled_sums(values, 50, seed=3)
    assert (first == bootstrap.resampled_sums(values, 50, seed=3)).all()
    assert (first != bootstrap.resampled_sums(values, 50, seed=4)).any()


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(5, 2, size=(400, 1))
    means = bootstrap.resampled_sums(values, 4000)[:, 0] / 400
    low, high = bootstrap.interval(means)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("units", [0, 1])
def test_fewer_than_two_units_have_no_interval(units):
    sums = bootstrap.resampled_sums(np.ones((units, 2)), 10)
    assert sums.shape == (10, 2)
    assert all(map(math.isnan, bootstrap.interval(bootstrap.percent(*sums.T))))
    assert math.isnan(bootstrap.probability_below_zero(sums[:, 0]))


def test_draws_without_a_value_are_left_out():
    assert bootstrap.interval([math.nan, 3.0, math.nan]) == (3.0, 3.0)
    assert bootstrap.probability_below_zero([math.nan, -1.0]) == 1
    assert np.isnan(bootstrap.percent([0, 3], [0, 0])).all()


def test_blocks_are_summed_in_the_order_of_their_names():
    values = np.arange(12).reshape(6, 2)
    sums = bootstrap.by_block(values, ["b", "a", "b", "c", "a", "b"])
    assert sums.tolist() == [[2 + 8, 3 + 9], [0 + 4 + 10, 1 + 5 + 11], [6, 7]]


@pytest.mark.parametrize("resamples", [0, -3])
def test_no_draws_are_refused(resamples):
    with pytest.raises(InputError, match=f"resamples must be positive, got {resamples}"):
        bootstrap.resampled_sums(np.ones((3, 1)), resamples)


def test_a_thousand_draws_of_a_thousand_take_no_time():
    values = np.ones((1000, 12), dtype=int)
    started = time.process_time()
    bootstrap.resampled_sums(values)
    assert time.process_time() - started < 0.5
