"""Scores of single clips of MER-UniBench, and what stands on them: intervals, paired differences, and what else answers name.

No set but those of the hit rate is scored by a mean over clips. Yet each metric is a function of sums over clips: WAF of how often
which sign was told, F_s of precision and recall in each wheel. So clips are drawn anew by weighing them in these sums (bootstrap),
and two methods are told apart by exchanging their answers clip by clip (approximate randomisation, Noreen 1989), which for a mean
over clips is the sign-flip test. The same draws serve all methods of a set, so that differences are paired; the mean over sets is
drawn within each set. Our own few lines: scipy's `bootstrap` and `permutation_test` would do each set and method alone.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from emointerp.emotions import NEUTRAL, EmotionWord, Extractor, emotion_words, false_emotion, score, sentiment_sign
from emointerp.emotions.extraction import read_words
from emointerp.emotions.wheels import Wheel, WheelsLike
from emointerp.errors import InputError
from emointerp.statistics import holm

HIT, WAF, F_S = "hit rate", "WAF", "F_s"
PERCENT, PRECISION, F, WORDS, FALSE = range(5)  # the figures of a set, in this order
LEVEL, RESAMPLES, FLIPS, AT_ONCE = 0.95, 2000, 10_000, 500
OFFICIAL = ["set", "metric", "percent", "n", "skipped"]  # as in the benchmark's tables
INTERVAL = ["low", "high"]
GAIN = ["difference", "difference_low", "difference_high", "p", "p_holm"]
BESIDE = ["precision", "f", "n_words", "neutral", "false_emotion", "false_low", "false_high"]
HARM = ["more_false", "more_false_low", "more_false_high", "p_false"]


# single clips


def once(extractor: Extractor) -> Extractor:
    """An extractor that is asked once a text and wheels, as one that stands for a language model costs something."""

    @cache
    def kept(text: str, wheels: WheelsLike) -> tuple[EmotionWord | str, ...]:
        return tuple(extractor(text, wheels))

    return kept


def clip_scores(
    metric: str, answers: Sequence[str], gold: Sequence[Any], wheels: Sequence[Wheel], extractor: Extractor, neutral: bool
) -> pd.DataFrame:
    """A row a clip: gold, answer, `counted`, `neutral`, score, precision, f, n_words, false_emotion, and `parts` of the metric.

    `score`: hit rate; whether the sign is right (WAF); F of its words, mean over the wheels that know a gold word (F_s). `neutral`:
    its gold is no emotion, and `false_emotion` an error; a valence of 0 is not called so, as feelings may cancel out. `parts`:
    numbers whose sums over the clips that count give the set's figures.
    """
    make: Callable = {HIT: _hits, WAF: _signs, F_S: _open}[metric]
    table = make(answers, gold, wheels, extractor)
    table.insert(0, "gold", list(map(str, gold)))
    table.insert(1, "answer", list(answers))
    if metric == HIT:
        table["counted"] = ~table.neutral | neutral
    return table[["gold", "answer", "counted", "neutral", "score", "precision", "f", "n_words", "false_emotion", "parts"]]


def _hits(answers: Sequence[str], gold: Sequence[str], wheels: Sequence[Wheel], extractor: Extractor) -> pd.DataFrame:
    table = score(answers, gold, wheels, extractor).rename(columns={"hit": "score"})
    table["neutral"] = [_is_neutral(one) for one in gold]
    return table.assign(parts=list(table[["score", "precision", "f"]].itertuples(index=False, name=None)))


def _is_neutral(word: Any) -> bool:
    return str(word).strip().lower() == NEUTRAL


def _signs(answers: Sequence[str], gold: Sequence[float], wheels: Sequence[Wheel], extractor: Extractor) -> pd.DataFrame:
    """Parts: gold above 0 and told so, above 0 and not, below 0 and told to be above, below 0 and not."""
    told = [sentiment_sign(answer, extractor) > 0 for answer in answers]
    parts = [tuple(float(cell == (g > 0, t)) for cell in _CELLS) for g, t in zip(gold, told, strict=True)]
    right = [float((g > 0) == t) for g, t in zip(gold, told, strict=True)]
    table = pd.DataFrame({"counted": [g != 0 for g in gold], "score": right, "parts": parts})
    return table.assign(neutral=False, precision=np.nan, f=np.nan, **_named(answers, wheels, extractor))


_CELLS = ((True, True), (True, False), (False, True), (False, False))


def _open(answers: Sequence[str], gold: Sequence[Sequence[str]], wheels: Sequence[Wheel], extractor: Extractor) -> pd.DataFrame:
    """Parts: for each wheel precision, recall, and whether it knows a gold word."""
    told = [[word.lemma for word in read_words(answer, wheels, extractor)] for answer in answers]
    each = np.array([[_in_wheel(t, g, wheel) for wheel in wheels] for t, g in zip(told, gold, strict=True)]).reshape(-1, 3)
    both = each[:, 0] + each[:, 1]
    f = 2 * each[:, 0] * each[:, 1] / np.where(both > 0, both, 1)
    clips = np.column_stack([each, f]).reshape(len(answers), -1, 4)
    known = clips[:, :, 2].sum(1)
    precision, f = (clips[:, :, i].sum(1) / np.maximum(known, 1) for i in (0, 3))
    table = pd.DataFrame({"counted": known > 0, "score": f, "precision": precision, "f": f})
    table["neutral"] = [len(words) == 1 and _is_neutral(words[0]) for words in gold]
    return table.assign(
        parts=[tuple(row) for row in clips[:, :, :3].reshape(len(answers), -1)], **_named(answers, wheels, extractor)
    )


def _in_wheel(told: Sequence[str], gold: Sequence[str], wheel: Wheel) -> tuple[float, float, float]:
    a, b = ({wheel.cluster(word) for word in words} - {None} for words in (told, gold))
    return len(a & b) / len(a) if a and b else 0.0, len(a & b) / len(b) if b else 0.0, float(bool(b))


def _named(answers: Sequence[str], wheels: Sequence[Wheel], extractor: Extractor) -> dict[str, list[int]]:
    """How many words name an emotion, and whether any does."""
    return {
        "n_words": [emotion_words(answer, wheels, extractor) for answer in answers],
        "false_emotion": [false_emotion(answer, wheels, extractor) for answer in answers],
    }


# figures of sums over clips


def _sums(clips: pd.DataFrame) -> np.ndarray:
    """What is summed of clips, [clip, part]: of those that count 1, emotion words and parts; of neutral ones 1, false emotions."""
    counted, neutral = (clips[name].to_numpy(float)[:, None] for name in ("counted", "neutral"))
    words, false = (clips[name].to_numpy(float)[:, None] for name in ("n_words", "false_emotion"))
    parts = np.array(clips.parts.tolist(), float).reshape(len(clips), -1)
    return np.hstack([counted, counted * words, neutral, neutral * false, counted * parts])


def figures(metric: str, sums: np.ndarray) -> np.ndarray:
    """The five figures of sums [..., part]; rates in percent, NaN where no clip stands behind one.

    >>> figures(WAF, np.array([[4, 4, 0, 0, 1, 1, 0, 2.0]]))[0, PERCENT:F].round(1).tolist()  # F of 2/3 and of 4/5
    [73.3, 83.3]
    """
    n, words, neutral, false = np.moveaxis(sums[..., :4], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = {HIT: _hit_rates, WAF: _waf_rates, F_S: _open_rates}[metric](sums[..., 4:], n)
        return np.stack([*(100 * rate for rate in rates), words / n, 100 * false / neutral], -1)


def _hit_rates(parts: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.moveaxis(parts / n[..., None], -1, 0))


def _waf_rates(parts: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, ...]:
    """WAF, precision weighted by support, and WAF again, which is an F."""
    both, missed, wrong, neither = np.moveaxis(parts, -1, 0)
    support = np.stack([both + missed, wrong + neither])
    hits = np.stack([both, neither])
    told = np.stack([both + wrong, missed + neither])
    precision, f = np.nan_to_num(hits / told), np.nan_to_num(2 * hits / (told + support))
    waf = (support * f).sum(0) / n
    return waf, (support * precision).sum(0) / n, waf


def _open_rates(parts: np.ndarray, _n: np.ndarray) -> tuple[np.ndarray, ...]:
    """F_s, precision, and F_s again; means over the wheels that know a gold word."""
    wheels = parts.reshape(*parts.shape[:-1], -1, 3)
    p, r = (wheels[..., i] / wheels[..., 2] for i in (0, 1))
    f = np.where(p + r == 0, 0, 2 * p * r / (p + r))
    share = _mean(f, -1)
    return share, _mean(p, -1), share


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is no NaN; NaN where nothing is left."""
    there = ~np.isnan(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(there, values, 0).sum(axis) / there.sum(axis)


# methods beside each other


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A set's (or their mean's) figures: seen [method, 5], under resampled clips [resample, method, 5], and differences to the
    baseline under exchanged answers [flip, method, 5]. Of rates that no resample moves the ends are widened by `unseen` [5], the
    rule of three; of a mean they are the mean of those `of` its sets.
    """

    seen: np.ndarray
    draws: np.ndarray
    null: np.ndarray
    unseen: np.ndarray
    counts: Mapping[str, int]
    metric: str = ""
    of: Sequence["_Drawn"] = ()

    def ends(self, method: int, figure: int, other: int | None = None) -> tuple[float, float]:
        """The interval of a figure, or of its difference to another method's."""
        draws, seen = self.draws[:, method, figure], self.seen[method, figure]
        if other is not None:
            draws, seen = draws - self.draws[:, other, figure], seen - self.seen[other, figure]
        draws = draws[~np.isnan(draws)]
        if not draws.size:
            return np.nan, np.nan
        if np.ptp(draws) > 1e-9:
            return tuple(np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())
        if self.of:
            return tuple(_mean(np.array([one.ends(method, figure, other) for one in self.of]), 0).tolist())
        down, up = (True, True) if other is not None else (seen >= 100 - 1e-9, seen <= 1e-9)
        return max(-100.0, seen - down * self.unseen[figure]), min(100.0, seen + up * self.unseen[figure])

    def p(self, method: int, figure: int, other: int) -> float:
        """Two-sided p-value of a difference."""
        seen = self.seen[method, figure] - self.seen[other, figure]
        more = np.abs(self.null[:, method, figure]) >= abs(seen) - 1e-9
        return np.nan if np.isnan(seen) else float((1 + more.sum()) / (len(more) + 1))


def method_table(
    runs: Mapping[str, Sequence[Sequence[pd.Series]]], baseline: str | None, mean: str = "mean", seed: int = 0
) -> pd.DataFrame:
    """The rows of each method: its sets in the order of its scores, and `mean`, their plain mean.

    `runs` has a list a seed for each method, of scores as `mer_unibench.score_set` gives them, the same sets in each. Clips are the
    unit: seeds are averaged within a resample, and may have asked different clips. Without a baseline nothing is compared.
    """
    names = _same_sets(runs)
    if baseline is not None and baseline not in runs:
        raise InputError(f"Among the methods {', '.join(runs)} is no {baseline!r}, which all are compared with.")
    base = None if baseline is None else list(runs).index(baseline)
    sets = {name: _drawn([[run[i] for run in some] for some in runs.values()], base, seed) for i, name in enumerate(names)}
    sets[mean] = _mean_of(list(sets.values()))
    rows = [{"method": m, "set": name} | _row(one, i, base) for i, m in enumerate(runs) for name, one in sets.items()]
    table = pd.DataFrame(rows)
    tests = table.p.notna() & (table["set"] != mean)
    table["p_holm"] = table.p[tests].groupby(table.method).transform(lambda p: holm(p.to_numpy()))
    return table[["method", *OFFICIAL, *INTERVAL, *GAIN, *BESIDE, *HARM]]


def _same_sets(runs: Mapping[str, Sequence[Sequence[pd.Series]]]) -> list[str]:
    asked = {method: [[score["set"] for score in run] for run in some] for method, some in runs.items()}
    first = next((some[0] for some in asked.values() if some), [])
    if not first or any(not some or any(run != first for run in some) for some in asked.values()):
        raise InputError(f"Every method needs scores of the same sets, in one order, a list a seed; got {asked}.")
    return first


def _drawn(scores: Sequence[Sequence[pd.Series]], base: int | None, seed: int) -> _Drawn:
    """One set's scores [method][seed]."""
    first = scores[0][0]
    sums, counted, neutral = _stacked(scores)
    totals, metric = sums.sum(2), first.metric
    rng = np.random.default_rng([seed, zlib.crc32(first["set"].encode())])
    seen = _mean(figures(metric, totals), 1)
    seen[:, PERCENT] = [np.mean([score.percent for score in some]) for some in scores]  # the official ones, to the last digit
    draws = [_mean(figures(metric, some), 2) for some in _weighed(sums, _weights([counted, neutral & ~counted], rng))]
    null = np.zeros((0, *seen.shape))
    if base is not None:
        swaps = (rng.integers(2, size=(AT_ONCE, len(counted))).astype(float) for _ in range(FLIPS // AT_ONCE))
        moved = _weighed(sums[[base]] - sums, swaps)
        null = np.concatenate([_mean(figures(metric, totals + some) - figures(metric, totals[base] - some), 2) for some in moved])
    n, none = int(counted.sum()), int(neutral.sum())
    unseen = np.array([100 * min(1, 3 / n), 0, 0, 0, 100 * min(1, 3 / none) if none else np.nan])
    counts = {"n": n, "skipped": len(counted) - n, "neutral": none}
    return _Drawn(seen, np.concatenate(draws), null, unseen, counts, metric)


def _stacked(scores: Sequence[Sequence[pd.Series]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums [method, seed, clip, part] of all clips that a seed asked, zeros where one did not; which count, which are neutral."""
    each = [[score.clips.set_index("clip") for score in some] for some in scores]
    clips = pd.concat(each[0])
    clips = clips[~clips.index.duplicated()]
    for some in each[1:]:
        if len(some) != len(each[0]) or any(not a.index.equals(b.index) for a, b in zip(some, each[0], strict=True)):
            raise InputError(f"{scores[0][0]['set']}: the methods were asked about different clips, so nothing can be paired.")
    width = _sums(clips).shape[1]
    sums = np.zeros((len(each), len(each[0]), len(clips), width))
    for i, some in enumerate(each):
        for j, table in enumerate(some):
            sums[i, j, clips.index.get_indexer(table.index)] = _sums(table)
    return sums, clips.counted.to_numpy(bool), clips.neutral.to_numpy(bool)


def _weights(groups: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each clip is drawn, [resample, clip], some resamples at a time; within each group as many as it has."""
    for _ in range(RESAMPLES // AT_ONCE):
        counts = np.zeros((AT_ONCE, len(groups[0])))
        for members in map(np.flatnonzero, groups):
            drawn = rng.integers(len(members), size=(AT_ONCE, len(members))) if len(members) else np.zeros((AT_ONCE, 0), int)
            flat = drawn + len(members) * np.arange(AT_ONCE)[:, None]
            counts[:, members] = np.bincount(flat.ravel(), minlength=AT_ONCE * len(members)).reshape(AT_ONCE, -1)
        yield counts


def _weighed(sums: np.ndarray, weights: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Sums over clips under weights, [resample, method, seed, part]."""
    methods, seeds, clips, parts = sums.shape
    flat = sums.transpose(2, 0, 1, 3).reshape(clips, -1)
    return ((some @ flat).reshape(-1, methods, seeds, parts) for some in weights)


def _mean_of(sets: Sequence[_Drawn]) -> _Drawn:
    """The mean over sets, resampled within each; false emotions over those that have neutral clips."""
    means = [_mean(np.stack([getattr(one, name) for one in sets]), 0) for name in ("seen", "draws", "null", "unseen")]
    counts = {name: sum(one.counts[name] for one in sets) for name in sets[0].counts}
    return _Drawn(*means, counts, of=sets)


def _row(found: _Drawn, method: int, base: int | None) -> dict[str, Any]:
    seen = found.seen[method]
    row = {"metric": found.metric, "percent": seen[PERCENT]} | dict(found.counts)
    row |= dict(zip(INTERVAL, found.ends(method, PERCENT), strict=True))
    row |= {"precision": seen[PRECISION], "f": seen[F], "n_words": seen[WORDS], "false_emotion": seen[FALSE]}
    row |= dict(zip(["false_low", "false_high"], found.ends(method, FALSE), strict=True))
    if base in (None, method):
        return row | dict.fromkeys([*GAIN, *HARM], np.nan)
    for figure, names in ((PERCENT, [*GAIN[:4]]), (FALSE, HARM)):
        difference = seen[figure] - found.seen[base, figure]
        values = [difference, *found.ends(method, figure, base), found.p(method, figure, base)]
        row |= dict(zip(names, values, strict=True))
    return row


# for readers

NOTE = (
    "Rates in percent, differences in points to the method that has none, with 95% bootstrap intervals over clips (for the mean "
    "within sets); p of answers exchanged clip by clip, corrected after Holm over a method's sets. Of WAF and F_s, F is the metric "
    "itself. Emotion words are those of an answer, false emotions of clips whose gold is no emotion."
)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `method_table` as texts: rates in percent, differences in points, with their intervals in brackets."""

    def ranged(row: pd.Series, names: Sequence[str], sign: str = "") -> str:
        mean, low, high = (row[name] for name in names)
        return "" if np.isnan(mean) else f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"

    def plain(value: float, form: str = ".1f") -> str:
        return "" if np.isnan(value) else f"{value:{form}}"

    rows = [
        {"method": row.method, "set": row["set"], "metric": row.metric, "percent": ranged(row, ["percent", "low", "high"])}
        | {
            "n": str(row.n),
            "difference": ranged(row, GAIN[:3], "+"),
            "p": plain(row.p, ".4f"),
            "p (Holm)": plain(row.p_holm, ".4f"),
        }
        | {"precision": plain(row.precision), "F": plain(row.f), "emotion words": plain(row.n_words, ".2f")}
        | {"false emotions": ranged(row, BESIDE[4:]), "more of them": ranged(row, HARM[:3], "+")}
        for _, row in table.iterrows()
    ]
    return pd.DataFrame(rows)
