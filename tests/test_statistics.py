"""Intervals against closed forms."""

import numpy as np
import pytest

from emointerp.errors import InputError
from emointerp.statistics import mean_interval


def test_interval_of_a_share_is_the_binomial_one():
    """For 300 of 400 the percentile bootstrap comes within a point of the normal interval 0.75 +- 1.96 sqrt(pq/n)."""
    interval = mean_interval([1.0] * 300 + [0.0] * 100)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.mean == 0.75 and interval.n == 400
    assert interval.low == pytest.approx(0.75 - half, abs=0.01)
    assert interval.high == pytest.approx(0.75 + half, abs=0.01)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Of 200 samples of 80 draws with a known mean of 0.3, about 95% of intervals hold it (binomial, four standard errors)."""
    rng = np.random.default_rng(0)
    covered = [(i := mean_interval(rng.random(80) < 0.3, resamples=500)).low <= 0.3 <= i.high for _ in range(200)]
    assert np.mean(covered) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 200)


def test_all_equal_values_leave_room_for_what_was_not_seen():
    """Rule of three: none in 60 bounds the share by 3/60."""
    none, everything = mean_interval([0] * 60), mean_interval([1] * 60)
    assert (none.low, none.mean, none.high) == (0.0, 0.0, 0.05)
    assert (everything.low, everything.mean, everything.high) == (0.95, 1.0, 1.0)


def test_same_seed_same_interval():
    values = np.random.default_rng(1).random(50)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)


def test_nothing_to_average_is_said():
    with pytest.raises(InputError, match="No values to average"):
        mean_interval([])
