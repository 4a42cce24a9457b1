"""Do heads serve one emotion or all?

A head's scores over n emotions, as shares `p_e = max(score_e, 0) / sum`, give the specificity `1 - entropy(p) / log(n)`: 1, one
emotion only; 0, all alike. Noise makes shares uneven, so any weak head looks specific, and the best of many most of all. Hence:

- heads are chosen on one set of pairs and scored on another;
- each is compared with itself under permuted emotions, which keeps its mean effect and its noise (`null`, `p`);
- what noise adds is taken off as Cohen's kappa takes chance off: `(raw - null) / (1 - null)`, 0 for a head that serves all alike,
  however noisy, and 1 for one that serves one only. (The bootstrap's own correction of a bias fails here: a weak head's shares
  are as uneven as its resampled ones. So it gives the intervals' width, and not their place.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy.stats import permutation_test

from emointerp.errors import InputError
from emointerp.heads.drawing import means
from emointerp.heads.maps import HeadMap
from emointerp.measures import thirds
from emointerp.plots import COLORS, GRAY, INK, PALE, new_figure
from emointerp.saved import Saved
from emointerp.statistics import Interval, benjamini_hochberg

CHUNK = 250  # permutations at a time
SPLITS = ("specific", "uneven", "general", "undecided")


@dataclass(frozen=True, eq=False)
class Specificity(Saved):
    """Specificity of the heads that passed their test.

    `table` has a row a (layer, head): `stage`; each emotion's share `p_e` (columns by emotion); `raw`, the formula as it stands;
    `null`, its mean under permuted emotions; `specificity`, less what noise adds (`Interval` over pairs); `p` that `raw` is not
    more than under permuted emotions, `corrected` for all heads (Benjamini-Hochberg); and `split`:

    - uneven beyond noise (`corrected` up to alpha): "specific" from the specificity of `threshold` on, else "uneven";
    - not shown to be so: "general" if every emotion's score is above 0, else "undecided".

    `stages` has a row a stage: heads, mean `raw` and `specificity` (`Interval` over pairs). `p` tests, by permuting heads between
    them, that the last two stages have the same mean specificity (NaN where one has fewer than two heads).
    """

    table: pd.DataFrame
    stages: pd.DataFrame
    p: float
    emotions: tuple[str, ...]

    @property
    def split(self) -> dict[str, list[tuple[int, int]]]:
        """The (layer, head)s of each kind."""
        return {kind: self.table.index[self.table.split == kind].tolist() for kind in SPLITS}

    def plot(self) -> Figure:
        """Specificity with its interval, beside the formula's and what that gives for noise; and each head's shares."""
        n, labels = len(self.table), [f"{layer}.{head}" for layer, head in self.table.index]
        figure, (left, right) = new_figure(1, 2, width=9, height=1.3 + 0.26 * n)
        for y, row in enumerate(self.table.itertuples()):
            best = max(self.emotions, key=lambda e: self.table[e].iloc[y])
            color = COLORS.get(best, INK) if row.split == "specific" else GRAY
            left.plot([row.specificity.low, row.specificity.high], [y, y], color=color, linewidth=2)
            left.plot(row.specificity.mean, y, "o", color=color, markersize=5)
        left.plot(self.table.raw, range(n), "|", color=INK, markersize=8, label="as the formula has it")
        left.plot(self.table.null, range(n), "x", color=INK, markersize=4, linestyle="", label="emotions permuted")
        left.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        left.set(xlim=(None, 1.03), xlabel="specificity", title="Dots: less what noise adds; gray: not specific")
        left.set_yticks(range(n), labels, fontsize=8)
        left.set_ylabel("layer.head")
        right.imshow(self.table[list(self.emotions)].astype(float), cmap="Blues", vmin=0, aspect="auto", origin="lower")
        right.set_xticks(range(len(self.emotions)), self.emotions, rotation=35, ha="right")
        right.set_yticks(range(n), self.table.stage, fontsize=8)
        right.set_title("Shares of the emotions")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8)
        return figure


def specificity(
    found: HeadMap,
    held: HeadMap,
    *,
    alpha: float = 0.05,
    least: float = 0.02,
    threshold: float = 0.5,
    stages: Mapping[str, Iterable[int]] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Specificity:
    """Specificity, on `held`, of the heads that `found` shows to bring something over: `HeadMap.passed(alpha, least)`.

    The two maps are of different pictures and of the same metric and direction; effects are shares of each emotion's own gap.
    `stages` maps names to layers: by default the thirds (`measures.thirds`). Intervals take the gaps as known. A `threshold` of
    0.5 is about what a head has that serves the square root of n emotions alike, 2 or 3 of 6, and no other.

    >>> import emointerp as ei
    >>> vlm = ei.load()
    >>> found, held = (ei.head_map(vlm, ei.world_pairs(split, 12), layers=[5], progress=False) for split in ("selection", "test"))
    >>> ei.specificity(found, held, alpha=1).table.columns.tolist()
    ['stage', 'anger', 'disgust', 'fear', 'joy', 'sadness', 'surprise', 'raw', 'null', 'specificity', 'p', 'corrected', 'split']
    """
    _check_apart(found, held)
    heads = _passed(found, alpha, least)
    moved = held.shares()[heads]
    emotions, codes = np.unique(held.pairs().emotion, return_inverse=True)
    if len(emotions) < 2 or np.bincount(codes).min() < 2:
        raise InputError("Specificity compares emotions: give two or more of them, with two or more held-out pairs each.")
    x, rng = moved.to_numpy(), np.random.default_rng(seed)
    scores = _scores(x[None], codes[None], len(emotions))[0]
    raw = _specificity(scores)
    null = _in_chunks(draws, lambda n: _specificity(_scores(x[None], rng.permuted(np.tile(codes, (n, 1)), axis=1), len(emotions))))
    again = _in_chunks(draws // 5, lambda n: _specificity(_scores(x[_resampled(codes, n, rng)], codes[None], len(emotions))))
    table = pd.DataFrame(_shares(scores).T, index=heads, columns=emotions)
    p = (1 + (null >= raw - 1e-12).sum(0)) / (draws + 1)
    drawn = (raw - null.mean(0) + again - again.mean(0)) / np.maximum(1 - null.mean(0), 1e-9)
    intervals = [_interval(column, len(x)) for column in drawn.T]
    table = table.assign(raw=raw, null=null.mean(0), specificity=intervals, p=p, corrected=benjamini_hochberg(p))
    even = np.where((scores > 0).all(0), "general", "undecided")
    uneven = np.where(means(table.specificity) >= threshold, "specific", "uneven")
    table["split"] = np.where(table.corrected <= alpha, uneven, even)
    stage_of = _stage_of(held, stages)
    table.insert(0, "stage", [stage_of.get(layer, "") for layer, _ in heads])
    return Specificity(table, *_by_stage(table, drawn, list(dict.fromkeys(stage_of.values())), seed), tuple(emotions.tolist()))


def _check_apart(found: HeadMap, held: HeadMap) -> None:
    if (found.metric, found.direction) != (held.metric, held.direction):
        kinds = " and ".join(f"{one.metric!r}, {one.direction}" for one in (found, held))
        raise InputError(f"The two maps measure different things ({kinds}); make both with the same metric and direction.")
    if shared := set(found.table.picture) & set(held.table.picture):
        raise InputError(
            f"{len(shared)} pictures are in both maps; score heads on pairs that did not choose them, of another split."
        )
    if missing := {*found.differences().columns} - {*held.differences().columns}:
        raise InputError(f"The second map lacks {len(missing)} heads of the first, such as {min(missing)}; map the same layers.")


def _passed(found: HeadMap, alpha: float, least: float) -> pd.MultiIndex:
    passed = found.passed(alpha, least).sort_values()
    if not len(passed):
        best = found.corrected(alpha, least).min()
        raise InputError(
            f"No head passes its test with {least:g} of the gap or more (smallest corrected p of all heads: {best:.3g}); give more "
            "pairs, a larger alpha, or a smaller `least`."
        )
    return passed


def _scores(
    x: Float[np.ndarray, "#draw pair head"], codes: Int[np.ndarray, "#draw pair"], n: int
) -> Float[np.ndarray, "draw emotion head"]:
    """Means over the pairs of each emotion."""
    members = np.eye(n)[codes] / np.bincount(codes[0], minlength=n)
    return members.swapaxes(1, 2) @ x


def _shares(scores: Float[np.ndarray, "*draw emotion head"]) -> Float[np.ndarray, "*draw emotion head"]:
    """`max(score, 0) / sum`; even shares where no score is above 0."""
    positive = np.maximum(scores, 0)
    total = positive.sum(-2, keepdims=True)
    return np.where(total > 0, positive / np.where(total > 0, total, 1), 1 / scores.shape[-2])


def _specificity(scores: Float[np.ndarray, "*draw emotion head"]) -> Float[np.ndarray, "*draw head"]:
    p = _shares(scores)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-2)
    return 1 - entropy / np.log(scores.shape[-2])


def _in_chunks(n: int, draw) -> Float[np.ndarray, "draw head"]:
    return np.concatenate([draw(min(CHUNK, n - start)) for start in range(0, n, CHUNK)])


def _resampled(codes: Int[np.ndarray, " pair"], n: int, rng: np.random.Generator) -> Int[np.ndarray, "draw pair"]:
    """Pairs drawn anew within each emotion."""
    rows = np.empty((n, len(codes)), int)
    for code in np.unique(codes):
        (mine,) = np.nonzero(codes == code)
        rows[:, mine] = rng.choice(mine, (n, len(mine)))
    return rows


def _interval(drawn: Float[np.ndarray, " draw"], n: int) -> Interval:
    return Interval(*(min(1.0, float(value)) for value in (drawn.mean(), *np.quantile(drawn, [0.025, 0.975]))), n)


def _stage_of(held: HeadMap, stages: Mapping[str, Iterable[int]] | None) -> dict[int, str]:
    """The stage of each layer."""
    named = thirds(held.n_layers or int(held.table.layer.max()) + 1) if stages is None else stages
    return {int(layer): name for name, layers in named.items() for layer in layers}


def _by_stage(table: pd.DataFrame, drawn: np.ndarray, stages: list[str], seed: int) -> tuple[pd.DataFrame, float]:
    """Each stage's means, and the test of the last two against each other."""
    rows, groups, n = {}, [], table.specificity.iloc[0].n
    for stage in stages:
        mine = (table.stage == stage).to_numpy()
        groups.append(means(table.specificity[mine]).to_numpy(float))
        if mine.any():
            interval = _interval(drawn[:, mine].mean(1), n)
            rows[stage] = {"heads": int(mine.sum()), "raw": table.raw[mine].mean(), "specificity": interval}
    a, b = groups[-2:] if len(groups) > 1 else ([], [])
    p = _exchanged(a, b, seed) if min(len(a), len(b)) > 1 else np.nan
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage"), p


def _exchanged(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Permutation test of two means; exact where there are no more than scipy's 9999 ways to part the heads."""
    found = permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), vectorized=True, rng=np.random.default_rng(seed)
    )
    return float(found.pvalue)
