"""Intervals for measured shares and means, tests and their corrections, matched random controls; scipy where it has the thing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, false_discovery_control

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


@dataclass(frozen=True)
class SignFlips:
    """Sign-flip tests of the means of m columns of paired differences, each of shape [m].

    `p` is each column's own p-value; `corrected` is corrected for looking at all of them (max-T).
    """

    mean: np.ndarray
    p: np.ndarray
    corrected: np.ndarray
    flips: int


def sign_flips(differences: ArrayLike, flips: int = 10_000, alternative: str = "two-sided", seed: int = 0) -> SignFlips:
    """Are paired differences [pairs] or [pairs, columns] zero on average? Each pair's sign is flipped at random.

    `alternative` is "two-sided" or "greater". Under max-T (Westfall and Young 1993) a column's corrected p-value is the chance that
    the largest of all columns' statistics is as large; flips are shared by the columns, so their dependence is kept. p-values are
    `(1 + #{T_r >= T}) / (flips + 1)`. scipy's `permutation_test` knows no max-T and one column at a time.

    >>> sign_flips([1.0, 2.0, 1.5, 0.5, 1.0, 2.5, 1.0, 1.2]).p.round(2).tolist()
    [0.01]
    """
    x = np.asarray(differences, float)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) < 2:
        raise InputError(
            f"Differences have shape {list(np.shape(differences))}; expected [pairs] or [pairs, columns], 2 pairs or more."
        )
    if alternative not in ("two-sided", "greater"):
        raise InputError(f"alternative is {alternative!r}; expected 'two-sided' or 'greater'.")
    size = np.sqrt((x**2).sum(0))
    statistic = x / np.where(size > 0, size, 1)  # its column sums are t statistics up to a monotone function, under every flip
    fold = np.abs if alternative == "two-sided" else np.asarray
    seen, rng = fold(statistic.sum(0)), np.random.default_rng(seed)
    above, above_max = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for start in range(0, flips, 1000):
        signs = rng.choice([-1.0, 1.0], (min(1000, flips - start), len(x)))
        drawn = fold(signs @ statistic)
        above += (drawn >= seen - 1e-12).sum(0)
        above_max += (drawn.max(1, keepdims=True) >= seen - 1e-12).sum(0)
    return SignFlips(x.mean(0), (1 + above) / (flips + 1), (1 + above_max) / (flips + 1), flips)


def holm(p: ArrayLike) -> np.ndarray:
    """p-values of planned tests, corrected after Holm (1979); a few lines that scipy lacks.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(1.0, stepped)[np.argsort(order)]


def benjamini_hochberg(p: ArrayLike) -> np.ndarray:
    """p-values of a scan, corrected for the false discovery rate (Benjamini and Hochberg 1995; scipy's)."""
    return false_discovery_control(np.asarray(p, float), method="bh")


def against_random(observed: float, random: ArrayLike) -> float:
    """p-value of an effect among those of matched random controls: `(1 + #{T_r >= T}) / (R + 1)`.

    >>> against_random(3.0, [0.0] * 99)
    0.01
    """
    drawn = np.asarray(random, float)
    if not drawn.size:
        raise InputError("There are no random controls to compare with.")
    return float((1 + (drawn >= observed).sum()) / (drawn.size + 1))


def random_directions(direction: ArrayLike, n: int = 100, seed: int = 0, like: ArrayLike | None = None) -> np.ndarray:
    """`n` random directions of the same length as one, [n, d]; with `like` [samples, d] they have the samples' covariance.

    Random directions of equal length lie mostly where activations never go. Those with the covariance of real activations, or of
    differences between them, are the sterner control.
    """
    direction, rng = np.asarray(direction, float), np.random.default_rng(seed)
    if like is None:
        drawn = rng.standard_normal((n, direction.size))
    else:
        samples = np.asarray(like, float)
        if samples.ndim != 2 or samples.shape[1] != direction.size:
            raise InputError(f"Samples have shape {list(samples.shape)}; expected [samples, {direction.size}].")
        drawn = rng.standard_normal((n, len(samples))) @ (samples - samples.mean(0))
    return drawn * np.linalg.norm(direction) / np.linalg.norm(drawn, axis=1, keepdims=True)
