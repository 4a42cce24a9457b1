"""Features as a tree: which are alike, which emotion each goes with, and how strongly it fires. The explorer shows it.

A list of features ranked by one emotion hides that "tears", "rain" and "umbrella" are neighbours, or that a branch belongs to no
emotion at all. Hierarchical clustering of what features write (or of when they fire) puts them around a circle, the nearest side by
side; the branches' colours tell how far meaning and emotion go together.

A feature's emotion is the one whose mean code exceeds the mean over emotions most, where a test over all features and emotions
bears it out; else the feature has none. It says what a feature goes with in these pictures, not what it is about: see the
signifiers' audit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import pdist
from scipy.stats import ttest_ind_from_stats

from emointerp.errors import InputError
from emointerp.plots import COLORS, new_figure
from emointerp.sae.value import SAE, Codes
from emointerp.saved import Saved
from emointerp.statistics import benjamini_hochberg

NONE = "none"  # the emotion of a feature that goes with no emotion more than with the others
GRAY = "#b9bdc4"
LOWEST = 0.92  # where the closest two leaves join, as a share of the circle's radius
BEND = 0.7  # a power that gives the many joins near the middle more room; their order stays
REACH = 1.75  # of the static figure, in radii of its circle: room for labels
CHOICES, DISTANCES = ("emotion", "activation"), ("decoder", "activity")


@dataclass(frozen=True, eq=False)
class FeatureTree(Saved):
    """Features in the order in which they stand around the circle, and how they join.

    - `leaves`: a row a feature: `feature` (its number), `emotion` (`NONE` where none stands out), `activation` (mean over the
      pictures of its emotion, or over all where it has none), `difference` (its emotion's mean less the mean over emotions),
      `p` (of that difference, corrected for all features and emotions), `words`.
    - `linkage`: scipy's, whose leaf i is row i of `leaves`: two parts, their distance, how many leaves they have together.
    - `means`: each feature's mean activation by emotion, in the order of `emotions`.
    - `by`: what the distances are between, "decoder" or "activity".
    """

    leaves: pd.DataFrame = field(repr=False)
    linkage: Float[np.ndarray, "merge 4"] = field(repr=False)
    means: Float[np.ndarray, "leaf emotion"] = field(repr=False)
    emotions: tuple[str, ...]
    by: str

    def __len__(self) -> int:
        return len(self.leaves)

    def to_frame(self) -> pd.DataFrame:
        """A row a feature, in the order around the circle."""
        return self.leaves.copy()

    @property
    def colors(self) -> dict[str, str]:
        """A colour for each emotion, and a lighter grey for none."""
        return emotion_colors(self.emotions)

    @property
    def radii(self) -> Float[np.ndarray, " merge"]:
        """How far from the middle each join lies, 0 to 1 (the circle): the larger its distance, the nearer to the middle."""
        heights = self.linkage[:, 2]
        spread = heights.max() - heights.min()
        return LOWEST * ((heights.max() - heights) / spread) ** BEND if spread > 0 else np.zeros(len(heights))

    @property
    def shares(self) -> Float[np.ndarray, "merge emotion"]:
        """Of the features below each join, the share that goes with each emotion."""
        n = len(self)
        counts = np.zeros((2 * n - 1, len(self.emotions)))
        counts[:n] = self.leaves.emotion.to_numpy()[:, None] == np.array(self.emotions)
        for i, (left, right, _, _) in enumerate(self.linkage):
            counts[n + i] = counts[int(left)] + counts[int(right)]
        return counts[n:] / self.linkage[:, 3:]

    def nested(self) -> dict[str, Any]:
        """The tree as nested dicts, as d3 takes them: `children` and `distance` of joins, the columns of `leaves` at the ends.

        The tree of a thousand features may be deeper than `json.dumps` goes; the explorer sends `linkage` for that reason.
        """
        parts: list[dict[str, Any]] = self.leaves.to_dict("records")
        for left, right, distance, _ in self.linkage:
            parts.append({"distance": float(distance), "children": [parts[int(left)], parts[int(right)]]})
        return parts[-1]

    def plot(self, width: float = 9.0) -> Figure:
        """The radial dendrogram: dots sized by activation, dots and branches in the colours of emotions, words around."""
        figure, axis = new_figure(width=width, height=width)
        axis.set(aspect="equal", xlim=(-REACH, REACH), ylim=(-REACH, REACH))
        axis.axis("off")
        angles = _angles(self)
        _draw_branches(axis, self, angles)
        _draw_leaves(axis, self, angles, width)
        _draw_legend(axis, self)
        return figure


def feature_tree(
    codes: Codes,
    labels: Sequence[str] | pd.DataFrame | None = None,
    *,
    sae: SAE | None = None,
    n: int = 200,
    choose: str | Sequence[int] = "emotion",
    by: str = "decoder",
    words: Mapping[int, str] | None = None,
    alpha: float = 0.05,
) -> FeatureTree:
    """Cluster features of an SAE by average linkage, and tell the emotion of each.

    `codes` are of pictures, [n k], or of their patches, [n patch k], where a picture counts by its strongest patch. `labels` give
    each picture's emotion, or a column an emotion of 0 and 1 where pictures show several; without them no feature has one.

    `choose`: "emotion" takes the features that exceed the mean most for each emotion, in turn, until there are `n`; "activation"
    the `n` of the largest `activation`; or give the features' numbers. Features that never fire are left out. `by`: "decoder"
    clusters by the cosine distance between what features write (give `sae`), "activity" by that between their activations over
    the pictures.
    `words` names features by their numbers.

    `difference` is the centred mean code of `methods.md`, `mean_e - mean over e' of mean_e'`; its p-value is Welch's one-sided t
    test of the emotion's pictures against all others, corrected after Benjamini and Hochberg for all features that fire times all
    emotions, and compared with `alpha`.
    """
    active = _activity(codes)
    members = _members(labels, active.shape[0])
    alive = np.flatnonzero(_column_means(active) > 0)
    table, means = _associations(active, members, alive, alpha)
    kept = _chosen(table, means, choose, n, codes.d_hidden)
    joined = linkage(_distances(by, sae, active, table.feature.to_numpy()[kept]), "average", optimal_ordering=True)
    order = leaves_list(joined)
    joined[:, :2] = _renumbered(joined[:, :2], order)
    leaves = table.iloc[kept[order]].reset_index(drop=True)
    leaves["words"] = [str((words or {}).get(int(i), "")) for i in leaves.feature]
    return FeatureTree(leaves, joined, means[kept[order]], tuple(members.columns), by)


def emotion_colors(emotions: Sequence[str]) -> dict[str, str]:
    """The package's colour of each emotion; others, such as EMOTIC's 26, are spaced evenly in hue; a lighter grey for none.

    >>> emotion_colors(["joy"]), len(emotion_colors(["peace", "yearning"]))
    ({'joy': '#E69F00', 'none': '#b9bdc4'}, 3)
    """
    from seaborn import husl_palette

    others = [name for name in emotions if name not in COLORS]
    spaced = dict(zip(others, husl_palette(len(others), s=0.75, l=0.6).as_hex(), strict=True)) if others else {}
    return {name: COLORS.get(name) or spaced[name] for name in emotions} | {NONE: GRAY}


def initials(emotions: Sequence[str]) -> dict[str, str]:
    """The shortest beginnings that tell emotions apart, for readers who cannot go by colour; none for "neutral".

    >>> initials(["joy", "sadness", "surprise", "neutral"])
    {'joy': 'J', 'sadness': 'Sa', 'surprise': 'Su', 'neutral': ''}
    """
    named = [name for name in emotions if name != "neutral"]

    def shortest(name: str) -> str:
        lengths = range(1, len(name) + 1)
        alone = (i for i in lengths if not any(o != name and o.lower().startswith(name[:i].lower()) for o in named))
        return name[: next(alone, len(name))].capitalize()

    return {name: shortest(name) if name in named else "" for name in emotions}


# what the tree is made of


def _activity(codes: Codes) -> csr_array:
    """Activations as a sparse [picture, d_hidden]; of patches, the strongest of each picture."""
    values, indices = codes.values.detach().double().cpu().numpy(), codes.indices.cpu().numpy()
    if values.ndim not in (2, 3):
        raise InputError(f"Codes of shape {list(values.shape)} came; expected [picture, k] or [picture, patch, k].")
    if values.ndim == 2:
        return _sparse(values, indices, codes.d_hidden)
    parts = (_sparse(values[:, p], indices[:, p], codes.d_hidden) for p in range(values.shape[1]))
    return reduce(lambda a, b: csr_array(a.maximum(b)), parts)


def _sparse(values: np.ndarray, indices: np.ndarray, d_hidden: int) -> csr_array:
    n, k = values.shape
    entries = values.flatten(), indices.flatten()  # copies: what follows sorts them in place
    made = csr_array((*entries, np.arange(n + 1) * k), shape=(n, d_hidden))
    made.sum_duplicates()  # entries of value 0 carry features that mean nothing, perhaps one twice
    return made


def _members(labels: Sequence[str] | pd.DataFrame | None, n: int) -> pd.DataFrame:
    """Which pictures show which emotion: a row a picture, a column an emotion."""
    if labels is None:
        return pd.DataFrame(index=range(n))
    if len(labels) != n:
        raise InputError(f"{len(labels)} labels came for the codes of {n} pictures; expected one for each.")
    table = labels if isinstance(labels, pd.DataFrame) else pd.get_dummies(pd.Series(list(labels), dtype=str))
    if NONE in table or not table.isin([0, 1]).all(axis=None):
        raise InputError(f"Labels are emotions' names, not {NONE!r}, or a table of 0 and 1 with a column for each emotion.")
    counts = table.astype(bool).sum()
    for name, count in counts.items():
        if not 2 <= count <= n - 2:
            raise InputError(f"{count} of {n} pictures show {name!r}; a test needs two with it and two without, or no such label.")
    order = [name for name in COLORS if name in table] + sorted(str(name) for name in table if name not in COLORS)
    return table[order].astype(bool).reset_index(drop=True)


def _column_means(active: csr_array) -> Float[np.ndarray, " d_hidden"]:
    return np.asarray(active.mean(axis=0)).ravel()


def _associations(active: csr_array, members: pd.DataFrame, alive: np.ndarray, alpha: float) -> tuple[pd.DataFrame, np.ndarray]:
    """A row for each feature that fires, without words; and its means by emotion [feature, emotion]."""
    shown = active[:, alive]
    overall = _column_means(shown)
    table = pd.DataFrame({"feature": alive, "emotion": NONE, "activation": overall, "difference": np.nan, "p": np.nan})
    if members.empty:
        return table, np.empty((len(alive), 0))
    means, p = _tested(shown, members)
    centred = means - means.mean(1, keepdims=True)
    best, each = centred.argmax(1), np.arange(len(alive))
    table["difference"], table["p"] = centred[each, best], p[each, best]
    stands_out = (table.p <= alpha) & (table.difference > 0)
    table["emotion"] = np.where(stands_out, members.columns.to_numpy()[best], NONE)
    table["activation"] = np.where(stands_out, means[each, best], overall)
    return table, means


def _tested(active: csr_array, members: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Means by emotion and corrected p-values, both [feature, emotion]."""
    squares, means, p = active.power(2), [], []
    for name in members:
        there = members[name].to_numpy()
        (mean, std), others = _moments(active, squares, there), _moments(active, squares, ~there)
        with np.errstate(divide="ignore", invalid="ignore"):
            test = ttest_ind_from_stats(
                mean, std, there.sum(), *others, (~there).sum(), equal_var=False, alternative="greater"
            ).pvalue
        means.append(mean)
        p.append(np.where(np.isnan(test), mean <= others[0], test))  # NaN: nothing varies within either group
    return np.stack(means, 1), benjamini_hochberg(np.stack(p, 1).ravel()).reshape(len(means[0]), -1)


def _moments(active: csr_array, squares: csr_array, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column over some rows."""
    n, mean, square = rows.sum(), _column_means(active[rows]), _column_means(squares[rows])
    return mean, np.sqrt(np.maximum(square - mean**2, 0) * n / (n - 1))


def _chosen(table: pd.DataFrame, means: np.ndarray, choose: str | Sequence[int], n: int, d_hidden: int) -> np.ndarray:
    """Rows of the table to be shown, at least two."""
    if not isinstance(choose, str):
        kept = _asked_for(table, choose, d_hidden)
    elif choose not in CHOICES:
        raise InputError(f"choose is {choose!r}; expected {' or '.join(map(repr, CHOICES))}, or the features' numbers.")
    elif choose == "activation" or not means.shape[1]:
        kept = np.argsort(-table.activation.to_numpy(), kind="stable")[: max(n, 0)]
    else:
        ranked = np.argsort(means.mean(1, keepdims=True) - means, axis=0, kind="stable")
        kept = pd.unique(ranked.ravel())[: max(n, 0)]  # the first of every emotion, the second of every emotion, …
    if len(kept) < 2:
        raise InputError(f"{len(kept)} features are left of n = {n}, of {len(table)} that fire; a tree needs two at least.")
    return kept


def _asked_for(table: pd.DataFrame, features: Sequence[int], d_hidden: int) -> np.ndarray:
    asked = pd.unique(np.asarray(features, int))
    if beyond := [int(i) for i in asked if not 0 <= i < d_hidden]:
        raise InputError(f"There is no feature {beyond[0]}; this SAE has features 0 to {d_hidden - 1}.")
    return np.flatnonzero(table.feature.isin(asked))


def _distances(by: str, sae: SAE | None, active: csr_array, features: np.ndarray) -> np.ndarray:
    """Cosine distances between features, condensed as scipy takes them; a feature that writes nothing is at 1 from all."""
    if by not in DISTANCES:
        raise InputError(f"by is {by!r}; expected {' or '.join(map(repr, DISTANCES))}.")
    if by == "activity":
        vectors = active[:, features].toarray().T
    elif sae is None:
        raise InputError("by='decoder' clusters what features write; give sae=, or take by='activity'.")
    elif sae.d_hidden != active.shape[1]:
        raise InputError(f"The SAE has {sae.d_hidden} features and the codes are of one with {active.shape[1]}; give the same SAE.")
    else:
        vectors = sae.features[features.tolist()].detach().float().cpu().numpy()
    return np.nan_to_num(pdist(vectors.astype(float), "cosine"), nan=1.0).clip(min=0)


def _renumbered(parts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Parts of a linkage whose leaves are numbered by their places around the circle."""
    places = np.arange(2 * len(order) - 1)
    places[order] = np.arange(len(order))
    return places[parts.astype(int)]


# the static figure


def _angles(tree: FeatureTree) -> Float[np.ndarray, " node"]:
    """Of leaves, evenly clockwise from the top with a gap of one leaf; of joins, the middle of their two parts."""
    n = len(tree)
    angles = np.empty(2 * n - 1)
    angles[:n] = np.pi / 2 - 2 * np.pi * (np.arange(n) + 1) / (n + 1)
    for i, parts in enumerate(tree.linkage[:, :2].astype(int)):
        angles[n + i] = angles[parts].mean()
    return angles


def _draw_branches(axis: Any, tree: FeatureTree, angles: np.ndarray) -> None:
    """Each part's line runs along its join's circle and then outward; coloured where more than half of its leaves agree."""
    from matplotlib.collections import LineCollection

    n = len(tree)
    radii = np.concatenate([np.ones(n), tree.radii])
    colors = _branch_colors(tree)
    lines, inks = [], []
    for i, parts in enumerate(tree.linkage[:, :2].astype(int)):
        for part in parts:
            arc = np.linspace(angles[n + i], angles[part], 2 + int(40 * abs(angles[part] - angles[n + i])))
            around = radii[n + i] * np.column_stack([np.cos(arc), np.sin(arc)])
            outward = radii[part] * np.array([[np.cos(angles[part]), np.sin(angles[part])]])
            lines.append(np.concatenate([around, outward]))
            inks.append(colors[part])
    axis.add_collection(LineCollection(lines, colors=inks, linewidths=min(1.3, 0.5 + 60 / n), capstyle="round", zorder=1))


def _branch_colors(tree: FeatureTree) -> list[str]:
    """The colour of every part: a leaf's emotion, a branch's where more than half of its leaves have it, else grey."""
    names = np.array(tree.emotions)
    leading = [names[share.argmax()] if len(share) and share.max() > 0.5 else NONE for share in tree.shares]
    return [tree.colors[name] for name in (*tree.leaves.emotion, *leading)]


def _draw_leaves(axis: Any, tree: FeatureTree, angles: np.ndarray, width: float) -> None:
    """Dots of an area that grows with activation, hollow where there is no emotion; as many labels as can be read."""
    n, colors, leaves = len(tree), tree.colors, tree.leaves
    x, y = np.cos(angles[:n]), np.sin(angles[:n])
    inks = [colors[name] for name in leaves.emotion]
    fills = ["white" if name == NONE else ink for name, ink in zip(leaves.emotion, inks, strict=True)]
    spacing = 2 * np.pi * 72 * width / (2 * REACH) / n  # between leaves, in points
    largest = np.clip(0.9 * spacing, 5.0, 16.0) ** 2
    strength = (leaves.activation / leaves.activation.max()).to_numpy()
    axis.scatter(x, y, s=largest * np.maximum(strength, 0.04), c=fills, edgecolors=inks, linewidths=0.8, zorder=2)
    size = float(np.clip(0.8 * spacing, 4.5, 9.0))
    away = 1 + (0.5 * np.sqrt(largest) + 3) * 2 * REACH / (72 * width)
    for i in spaced(strength, int(np.ceil(size / spacing))):
        _draw_label(axis, tree, i, float(angles[i]), away, size)


def spaced(strength: np.ndarray, step: int) -> list[int]:
    """Places around the circle whose labels do not touch: the strongest first, none within `step` places of another.

    >>> spaced(np.array([0.5, 0.9, 0.4, 0.1]), 2)
    [1, 3]
    """
    taken, kept = np.zeros(len(strength), bool), []
    for i in np.argsort(-strength, kind="stable"):
        around = np.arange(i - step + 1, i + step) % len(strength)
        if not taken[around].any():
            taken[i] = True
            kept.append(int(i))
    return sorted(kept)


def _draw_label(axis: Any, tree: FeatureTree, i: int, angle: float, away: float, size: float) -> None:
    row, degrees = tree.leaves.iloc[i], np.degrees(angle) % 360
    flipped = 90 < degrees < 270
    parts = [initials(tree.emotions).get(row.emotion, ""), str(row.feature), shortened(row.words)]
    axis.text(
        away * np.cos(angle), away * np.sin(angle), " ".join(part for part in (parts[::-1] if flipped else parts) if part),
        rotation=degrees - 180 * flipped, rotation_mode="anchor", ha="right" if flipped else "left", va="center",
        fontsize=size, color="#2b2f36", parse_math=False, in_layout=False,
    )  # fmt: skip


def shortened(text: str, longest: int = 18) -> str:
    """A text that ends in "…" where it is too long for the rim.

    >>> shortened("balloons, beach", 9)
    'balloons…'
    """
    return text if len(text) <= longest else text[: longest - 1].rstrip(" ,;") + "…"


def _draw_legend(axis: Any, tree: FeatureTree) -> None:
    """Emotions with their initials and how many features each has; what sizes and distances mean."""
    counts, letters = tree.leaves.emotion.value_counts(), initials(tree.emotions)
    for name in (*tree.emotions, NONE):
        if not counts.get(name):
            continue
        said = f"{letters[name]}  {name}" if letters.get(name) else "no one emotion" if name == NONE else name
        face = "white" if name == NONE else tree.colors[name]
        axis.scatter([], [], s=40, c=face, edgecolors=tree.colors[name], label=f"{said} ({counts[name]})")
    axis.figure.legend(loc="outside lower center", ncols=4, fontsize=8.5, handletextpad=0.3, columnspacing=1.2, frameon=False)
    told = "what they write" if tree.by == "decoder" else "when they fire"
    axis.set_title(
        f"{len(tree)} features, joined by {told}: the farther out, the more alike. Dots: mean activation.", fontsize=9, pad=16
    )
