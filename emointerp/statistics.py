"""Intervals for measured shares and means; scipy does the resampling."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

from emointerp.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A mean over `n` independent values with its bootstrap interval from `low` to `high`."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}] (n = {self.n})"


def mean_interval(values: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` with its percentile bootstrap interval at `level`.

    Where all values are 0 or all are 1, resampling says nothing; then the rule of three bounds the share of what was not seen.

    >>> print(mean_interval([1.0] * 60))
    1.00 [0.95, 1.00] (n = 60)
    """
    data = np.asarray(values, float).ravel()
    if data.size == 0:
        raise InputError("No values to average; the set that was measured is empty.")
    mean = float(data.mean())
    if np.ptp(data) == 0:
        unseen = min(1.0, 3 / data.size)
        return Interval(mean, mean - unseen * (mean == 1), mean + unseen * (mean == 0), data.size)
    result = bootstrap(
        (data,),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high), data.size)
