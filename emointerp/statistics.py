"""Intervals for measured shares and means, tests and their corrections, matched random controls; scipy where it has the thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, false_discovery_control

from emointerp.errors import InputError


@dataclass(frozen=True, order=True)
class Interval:
    """A mean over `n` independent values with its bootstrap interval from `low` to `high`.

    `float` gives the mean, by which intervals are sorted; `flat` makes numbers of a table of them.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}] (n = {self.n})"

    def __float__(self) -> float:
        return self.mean


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of plain numbers, for queries, files and other programs: of each column of intervals mean, low, high and n.

    The mean keeps the column's name; names of several levels are joined, and what is missing is NaN.

    >>> flat(pd.DataFrame({"effect": [Interval(0.5, 0.25, 0.75, 4)]}, index=["V"]))
       effect  effect_low  effect_high  effect_n
    V     0.5        0.25         0.75         4
    """
    columns: dict[str, Any] = {}
    for name, column in frame.items():
        said = name if isinstance(name, str) else " ".join(map(str, name if isinstance(name, tuple) else (name,)))
        if any(isinstance(cell, Interval) for cell in column):
            for end in ("mean", "low", "high", "n"):
                numbers = [getattr(cell, end) if isinstance(cell, Interval) else np.nan for cell in column]
                columns[said if end == "mean" else f"{said}_{end}"] = numbers
        else:
            columns[said] = column
    return pd.DataFrame(columns, index=frame.index)


def mean_interval(values: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0, signed: bool = False) -> Interval:
    """Mean of `values` with its percentile bootstrap interval at `level`.

    Where all values are 0 or all are 1, resampling says nothing; then the rule of three bounds the share of what was not seen.
    `signed` values, such as gains from -1 to 1, may lie on both sides of what was seen.

    >>> print(mean_interval([1.0] * 60))
    1.00 [0.95, 1.00] (n = 60)
    """
    data = np.asarray(values, float).ravel()
    if data.size == 0:
        raise InputError("No values to average; the set that was measured is empty.")
    mean = float(data.mean())
    if np.ptp(data) == 0:
        unseen = min(1.0, (3 if level == 0.95 else -np.log(1 - level)) / data.size)
        return Interval(mean, mean - unseen * (signed or mean == 1), mean + unseen * (signed or mean == 0), data.size)
    result = bootstrap(
        (data,),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high), data.size)


def ratio_interval(above: ArrayLike, below: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `above` over mean of `below`, two values a pair, with its paired percentile bootstrap interval.

    For effects that are normalised over all pairs, such as the share of a gap that an intervention closes; a mean of single ratios
    explodes where a pair has no gap. NaN where the mean below is 0.

    >>> print(ratio_interval([1.0, 0.0, 1.0, 0.0], [1.0] * 4))
    0.50 [0.00, 1.00] (n = 4)
    """
    a, b = (np.asarray(values, float).ravel() for values in (above, below))
    if a.shape != b.shape or not a.size:
        raise InputError(f"A ratio of means takes two values a pair; {a.size} and {b.size} came.")
    if b.mean() == 0:
        return Interval(np.nan, np.nan, np.nan, a.size)
    drawn = np.random.default_rng(seed).integers(a.size, size=(resamples, a.size))
    low_mean = b[drawn].mean(1)
    ratios = a[drawn].mean(1)[low_mean != 0] / low_mean[low_mean != 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a.mean() / b.mean()), float(low), float(high), a.size)


def value_interval(values: ArrayLike) -> Interval:
    """Mean and bootstrap interval of what is no share, so that no rule of three bounds zeros; NaNs are left out.

    >>> print(value_interval([0.0, 0.0, np.nan]))
    0.00 [0.00, 0.00] (n = 2)
    """
    data = np.asarray(values, float)
    kept = data[~np.isnan(data)]
    return ratio_interval(kept, np.ones(len(kept))) if kept.size else Interval(np.nan, np.nan, np.nan, 0)


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
    `(1 + #{T_r >= T}) / (flips + 1)`. scipy's `permutation_test` knows no max-T and one column at a time. A column with a value
    that is no finite number has nan for p, and is none of those looked at.

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
    known = np.isfinite(x).all(0)
    mean, x = x.mean(0), x[:, known]
    size = np.sqrt((x**2).sum(0))
    statistic = x / np.where(size > 0, size, 1)  # its column sums are t statistics up to a monotone function, under every flip
    fold = np.abs if alternative == "two-sided" else np.asarray
    seen, rng = fold(statistic.sum(0)), np.random.default_rng(seed)
    above, above_max = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for start in range(0, flips, 1000):
        signs = rng.choice([-1.0, 1.0], (min(1000, flips - start), len(x)))
        drawn = fold(signs @ statistic)
        above += (drawn >= seen - 1e-12).sum(0)
        above_max += (drawn.max(1, keepdims=True, initial=-np.inf) >= seen - 1e-12).sum(0)
    p = np.full((2, len(known)), np.nan)
    p[:, known] = (1 + np.stack([above, above_max])) / (flips + 1)
    return SignFlips(mean, *p, flips)


def holm(p: ArrayLike) -> np.ndarray:
    """p-values of planned tests, corrected after Holm (1979); a few lines that scipy lacks. One that is nan stays so.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))  # nans come last in the order
    return np.minimum(1.0, stepped)[np.argsort(order)]


def benjamini_hochberg(p: ArrayLike) -> np.ndarray:
    """p-values of a scan, corrected for the false discovery rate (Benjamini and Hochberg 1995; scipy's); nans are left out."""
    p = np.asarray(p, float)
    corrected, known = p.copy(), ~np.isnan(p)
    corrected[known] = false_discovery_control(p[known], method="bh")
    return corrected


def flips_by_group(
    differences: ArrayLike, groups: ArrayLike, flips: int = 10_000, alternative: str = "two-sided", seed: int = 0
) -> pd.DataFrame:
    """Are columns of paired differences zero in all pairs, and in those of each group? p-values by sign flips, times the tests.

    A row for "all" and one a group, a column a column; the number of rows is what each p is multiplied by (Bonferroni), so the
    smallest of a column is its p-value for "somewhere". What works in one group of six is noise to a test of all. With n pairs
    of a group its p is at least `2 / 2**n` before that, or half of it one-sided; `1 / flips` is a floor too.

    >>> works_in_a = np.r_[np.ones((12, 1)), np.zeros((60, 1))]
    >>> flips_by_group(works_in_a, list("a" * 12 + "b" * 60)).min().round(2).tolist()
    [0.0]
    """
    x, groups = np.asarray(differences, float), np.asarray(groups)
    sets = {"all": x} | {group: x[groups == group] for group in np.unique(groups) if (groups == group).sum() > 1}
    p = {name: np.minimum(1.0, len(sets) * sign_flips(some, flips, alternative, seed).p) for name, some in sets.items()}
    return pd.DataFrame.from_dict(p, orient="index")


def against_random(observed: float, random: ArrayLike) -> float:
    """p-value of an effect among those of matched random controls: `(1 + #{T_r >= T}) / (R + 1)`; nan where one is no number.

    >>> against_random(3.0, [0.0] * 99)
    0.01
    """
    drawn = np.asarray(random, float)
    if not drawn.size:
        raise InputError("There are no random controls to compare with.")
    if np.isnan(observed) or np.isnan(drawn).any():
        return np.nan
    return float((1 + (drawn >= observed).sum()) / (drawn.size + 1))


def with_controls(effect: ArrayLike, controls: Mapping[str, ArrayLike], flips: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """An effect [pairs] beside its controls, each [pairs] or, where a control was drawn R times, [R, pairs]: a row each.

    `value` is the mean with its bootstrap interval over pairs (draws are averaged first). For a control, `less` is the effect less
    the control, paired; `p` tests that it is above 0, by sign flips over pairs; where there are draws, `p_draws` is the rank of the
    effect among them, `(1 + #{T_r >= T}) / (R + 1)`. `p_holm` is the larger of the two, corrected over the controls. A claim stands
    if the effect beats every control.

    >>> with_controls([1, 1, 1, 1, 0, 1, 1, 1], {"random": [0, 0, 0, 1, 0, 0, 0, 0]}).p_holm.round(2).tolist()
    [nan, 0.02]
    """
    x = np.asarray(effect, float)
    drawn = {name: np.atleast_2d(np.asarray(values, float)) for name, values in controls.items()}
    if wrong := [f"{name} {list(np.shape(controls[name]))}" for name, values in drawn.items() if values.shape[1:] != x.shape]:
        raise InputError(f"The effect has shape {list(x.shape)}; controls with other pairs: {', '.join(wrong)}.")
    rows = [{"what": "effect", "value": mean_interval(x, signed=True)}]
    for name, values in drawn.items():
        less = x - values.mean(0)
        means = [mean_interval(some, signed=True) for some in (values.mean(0), less)]
        row = {"what": name, "value": means[0], "draws": len(values), "less": means[1]}
        row["p"] = sign_flips(less, flips, "greater", seed).p[0]
        row["p_draws"] = against_random(x.mean(), values.mean(1)) if len(values) > 1 else np.nan
        rows.append(row)
    table = pd.DataFrame(rows, columns=["what", "value", "draws", "less", "p", "p_draws"]).set_index("what")
    return table.assign(p_holm=[np.nan, *holm(table[["p", "p_draws"]].max(axis=1)[1:])])


def random_directions(direction: ArrayLike, n: int = 100, seed: int = 0, like: ArrayLike | None = None) -> np.ndarray:
    """`n` random directions of the same length as one, [n, d]; with `like` [samples, d] they have the samples' covariance.

    Random directions of equal length lie mostly where activations never go. Those with the covariance of real activations, or of
    differences between them, are the sterner control.

    >>> import emointerp as ei
    >>> ei.statistics.random_directions([3.0, 4.0], 5).shape
    (5, 2)
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


@dataclass(frozen=True, eq=False)
class ChangePoints:
    """Where curves over layers change their level. `locations`: the first layer of each new level; none where the curves are flat.

    `low` and `high` bound the locations (bootstrap over pairs); `won` [change, layer] is the share of resamples in which a layer
    was the place of that change. `explained` is the share of the mean curve's variance that the levels explain, `line` the share
    that a straight line would: where that is as large, "stages" is a manner of speaking. `p` tests that the mean curve is flat.
    """

    locations: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    won: np.ndarray
    explained: float
    line: float
    p: float

    def to_frame(self) -> pd.DataFrame:
        """A row a change: location, low, high, and how often this location won."""
        won = [self.won[i, location] for i, location in enumerate(self.locations)]
        return pd.DataFrame({"location": self.locations, "low": self.low, "high": self.high, "won": won})

    def __str__(self) -> str:
        if not self.locations:
            return f"No changes: the mean curve does not differ from a flat one (p = {self.p:.3f})."
        places = [f"layer {at} [{a}, {b}]" for at, a, b in zip(self.locations, self.low, self.high, strict=True)]
        fit = f"{len(places) + 1} levels explain {self.explained:.0%} of the variance over layers, a straight line {self.line:.0%}"
        return f"Changes at {' and '.join(places)}; {fit}; flat: p = {self.p:.3f}."


def change_points(
    curves: ArrayLike, n: int = 2, level: float = 0.95, resamples: int = 1000, seed: int = 0, flat: float = 0.05
) -> ChangePoints:
    """The `n` layers at which curves [pairs, layers], or several at once [pairs, layers, curves], change their level.

    Levels fit the mean curve by least squares, found by exact search (`ruptures.Dynp`); intervals resample the pairs. Any curve can
    be cut into levels, so flatness is tested first: each pair's deviations from its own mean over layers are flipped in sign at
    random, which keeps how neighbouring layers hang together; `p` is the chance of levels that explain as much. From `flat` on
    there are no locations.

    >>> change_points([[0, 0, 1, 1, 3], [0, 0, 1, 1, 4]] * 6).locations
    (2, 4)
    """
    x = _checked_curves(curves, n)
    rng, deviations = np.random.default_rng(seed), x - x.mean(1, keepdims=True)
    mean, layer = deviations.mean(0), np.arange(x.shape[1]) - (x.shape[1] - 1) / 2
    places, seen = _levels(mean, n)
    signs = rng.choice([-1.0, 1.0], (resamples, len(x)))
    flipped = [_levels(curve, n)[1] for curve in np.einsum("rp,plc->rlc", signs, deviations) / len(x)]
    p = float((1 + (np.array(flipped) >= seen * (1 - 1e-9)).sum()) / (resamples + 1))
    drawn = np.array([_levels(x[rng.integers(len(x), size=len(x))].mean(0), n)[0] for _ in range(resamples)])
    won = np.stack([np.bincount(at, minlength=x.shape[1]) for at in drawn.T]) / resamples
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf").astype(int)
    total, sloped = (mean**2).sum() or 1.0, ((layer @ mean) ** 2).sum() / (layer @ layer)
    found = (places, *ends.tolist()) if p < flat else ((), (), ())
    return ChangePoints(*map(tuple, found), won, float(seen / total), float(sloped / total), p)


def _checked_curves(curves: ArrayLike, n: int) -> np.ndarray:
    """Curves as [pairs, layers, curves]."""
    x = np.asarray(curves, float)
    if x.ndim not in (2, 3) or len(x) < 2 or not np.isfinite(x).all():
        shape = f"Curves have shape {list(x.shape)}{'' if np.isfinite(x).all() else ' and hold NaN or infinity'}"
        raise InputError(f"{shape}; expected numbers [pairs, layers] or [pairs, layers, curves], 2 pairs or more.")
    if not 1 <= n < x.shape[1]:
        asked = f"{x.shape[1]} layers cannot be cut at {n} places into {n + 1} stages"
        raise InputError(f"{asked}; ask for 1 to {x.shape[1] - 1} changes.")
    return x.reshape(*x.shape[:2], -1)


def _levels(curve: np.ndarray, n: int) -> tuple[list[int], float]:
    """The best `n` places to cut a curve [layers, curves], and the sum of squares that the levels between them explain."""
    from ruptures import Dynp  # takes half a second to import

    places = Dynp(model="l2", min_size=1, jump=1).fit_predict(curve, n)[:-1]
    parts = np.split(curve, places)
    return places, float(sum(len(part) * ((part.mean(0) - curve.mean(0)) ** 2).sum() for part in parts))
