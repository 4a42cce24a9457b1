"""Emotions as directions in feature space: what the pictures of an emotion have in common, told in features.

An emotion's direction is the mean code over the pictures labelled with it. Such means are nearly the same vector, because all
pictures share much; less their own mean they tell the emotions apart, and that *centred* direction is the default. Whether
features help at all is asked beside it: the same two means of the embeddings, and a linear probe, on the same pictures. These two
read vectors of length 1, whatever the SAE reads, so that tables with other SAEs, or with none, compare.

>>> labels = label_table(["joy", "fear", "joy", "fear"])
>>> S = emotion_directions(torch.tensor([[1.0, 0.2], [0.8, 1.0], [1.0, 0.1], [0.9, 1.0]]), labels)
>>> S.emotions, round(S.mean_cosine(centred=False), 2), round(S.mean_cosine(), 2)
(('fear', 'joy'), 0.75, -1.0)
>>> S.rank(torch.tensor([[1.0, 0.9], [1.0, 0.0]]), "joy").tolist()
[1, 0]

The labels are the seven of the drawn world, the 26 of EMOTIC, or yours.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import normalize

from emointerp.errors import InputError
from emointerp.models import Tower
from emointerp.plots import BLUE, GRAY, INK, ORANGE, SKY, YELLOW, new_figure
from emointerp.sae.coding import sparse_decode, sum_by_feature
from emointerp.sae.reading import PATCHES
from emointerp.sae.value import SAE, Codes
from emointerp.saved import Saved
from emointerp.statistics import Interval
from emointerp.world import Scene, identity

SPARSE, DENSE, PROBE = "SAE", "dense mean", "linear probe"
CENTRED, RAW = ", centred", ", raw"
COLORS = {
    SPARSE + CENTRED: BLUE,
    SPARSE + RAW: SKY,
    DENSE + CENTRED: ORANGE,
    DENSE + RAW: YELLOW,
    PROBE: GRAY,
}
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the probe's logistic regression, of which one is chosen
CHUNK = 8192  # features scored at a time
RESAMPLES_AT_ONCE = 200

Pictures = Codes | Float[Tensor, "n d"]


def label_table(labels: pd.DataFrame | Sequence[str] | Sequence[Iterable[str]]) -> pd.DataFrame:
    """A 0/1 column an emotion, a row a picture: from one word a picture, from several, or from such a table.

    >>> label_table([["joy"], ["joy", "surprise"], []]).to_numpy().tolist()
    [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """
    if not isinstance(labels, pd.DataFrame):
        words = [{some} if isinstance(some, str) else set(some) for some in labels]
        emotions = sorted(set().union(*words))
        labels = pd.DataFrame([[float(e in some) for e in emotions] for some in words], columns=emotions)
    if not labels.shape[1] or not len(labels):
        raise InputError(f"The labels have {len(labels)} rows and {labels.shape[1]} emotions; expected at least one of each.")
    for emotion in labels:
        if strange := sorted(set(labels[emotion].unique()) - {0, 1}, key=str):
            raise InputError(f"The labels of {str(emotion)!r} hold {strange[0]}; expected 0 or 1 for each picture.")
    return labels.astype(float).reset_index(drop=True)


# directions


@dataclass(frozen=True, eq=False)
class EmotionDirections(Saved):
    """The mean code (or embedding) of `n` pictures of each emotion, a row an emotion."""

    emotions: tuple[str, ...]
    means: Float[Tensor, "emotion d"] = field(repr=False)
    n: tuple[int, ...]

    def vectors(self, centred: bool = True) -> Float[Tensor, "emotion d"]:
        """The directions: means less the mean of the means, or the means as they are."""
        if centred and len(self.emotions) < 2:
            raise InputError(f"There is one emotion, {self.emotions[0]}; centring needs two or more. Take centred=False.")
        return self.means - self.means.mean(0) if centred else self.means

    def vector(self, emotion: str, centred: bool = True) -> Float[Tensor, " d"]:
        """One emotion's direction."""
        return self.vectors(centred)[self._index(emotion)]

    def scores(self, pictures: Pictures, centred: bool = True) -> Float[np.ndarray, "n emotion"]:
        """Cosine of each picture's code to each direction; no code is ever made dense. 0 for a picture on which nothing fires."""
        return cosines(pictures, self.vectors(centred))

    def rank(self, pictures: Pictures, emotion: str, most: int | None = None, centred: bool = True) -> Int[np.ndarray, " picture"]:
        """Which pictures lie nearest to an emotion's direction, the nearest first."""
        scores = cosines(pictures, self.vector(emotion, centred)[None])[:, 0]
        return np.argsort(-scores, kind="stable")[:most]

    def top_features(self, emotion: str, most: int = 10, centred: bool = True) -> pd.DataFrame:
        """The features that weigh most in an emotion's direction, a row a feature.

        `weight` is the direction's entry, `share` its part of the direction's squared length, `mean` the mean activation on the
        emotion's pictures, and `elsewhere` the mean over the emotions.
        """
        direction, at = self.vector(emotion, centred), self._index(emotion)
        chosen = direction.topk(min(most, len(direction))).indices
        shares = direction.square() / direction.square().sum()
        columns = {"weight": direction, "share": shares, "mean": self.means[at], "elsewhere": self.means.mean(0)}
        told = {name: values[chosen].numpy() for name, values in columns.items()}
        return pd.DataFrame({"emotion": emotion, "feature": chosen.numpy()} | told)

    def between(self, centred: bool = True) -> pd.DataFrame:
        """Cosines between the emotions' directions."""
        unit = normalize(self.vectors(centred), dim=-1)
        return pd.DataFrame((unit @ unit.T).numpy(), index=list(self.emotions), columns=list(self.emotions))

    def mean_cosine(self, centred: bool = True) -> float:
        """The mean over all pairs of emotions: near 1, the directions have collapsed into one."""
        if len(self.emotions) < 2:
            raise InputError(f"There is one emotion, {self.emotions[0]}; cosines need two or more.")
        return float(self.between(centred).to_numpy()[np.triu_indices(len(self.emotions), 1)].mean())

    def to_frame(self) -> pd.DataFrame:
        """A row an emotion: how many pictures, and the mean cosine of its direction to the others', raw and centred."""
        others = len(self.emotions) - 1
        columns = {f"cosine{kind}": (self.between(kind == CENTRED).sum(axis=1) - 1) / others for kind in (RAW, CENTRED)}
        return pd.DataFrame({"emotion": self.emotions, "n": self.n}).join(pd.DataFrame(columns).reset_index(drop=True))

    def plot(self) -> Figure:
        """Cosines between the directions, raw and centred."""
        side = 2.4 + 0.16 * len(self.emotions)
        figure, axes = new_figure(1, 2, width=2 * side + 1, height=side)
        for axis, centred in zip(axes, (False, True), strict=True):
            drawn = axis.imshow(self.between(centred), cmap="RdBu_r", vmin=-1, vmax=1)
            ticks = range(len(self.emotions))
            axis.set_xticks(ticks, self.emotions, rotation=90, fontsize=8)
            axis.set_yticks(ticks, self.emotions if not centred else [], fontsize=8)
            axis.set_title(f"{'Centred' if centred else 'Raw'}: mean cosine {self.mean_cosine(centred):.2f}")
        figure.colorbar(drawn, ax=axes, label="cosine")
        return figure

    def _index(self, emotion: str) -> int:
        if emotion not in self.emotions:
            raise InputError(f"There is no direction of {emotion!r}; there are {', '.join(map(str, self.emotions))}.")
        return self.emotions.index(emotion)


def emotion_directions(pictures: Pictures, labels: pd.DataFrame | Sequence[str] | Sequence[Iterable[str]]) -> EmotionDirections:
    """The mean of the pictures of each emotion; a picture with several labels counts for each of them.

    >>> codes = Codes(torch.tensor([[2.0], [4.0], [1.0]]), torch.tensor([[7], [7], [3]]), 9)
    >>> emotion_directions(codes, ["joy", "joy", "fear"]).top_features("joy", 1)[["feature", "mean"]].to_numpy().tolist()
    [[7.0, 3.0]]
    """
    labels = label_table(labels)
    _check_rows(pictures, len(labels))
    if empty := [str(e) for e, count in labels.sum().items() if not count]:
        raise InputError(f"No picture is labelled {', '.join(empty)}, so there is no mean of it; leave it out of the labels.")
    there = torch.tensor(labels.to_numpy(np.float32))
    if isinstance(pictures, Codes):
        sums = sum_by_feature(pictures.values.float(), pictures.indices, there, pictures.d_hidden).T
    else:
        sums = there.T @ pictures.float()
    return EmotionDirections(tuple(labels.columns), sums / there.sum(0)[:, None], tuple(int(n) for n in there.sum(0)))


def cosines(pictures: Pictures, directions: Float[Tensor, "direction width"]) -> Float[np.ndarray, "n direction"]:
    """Cosine of each picture to each direction, from the k features that fire; InputError, both named, for other widths."""
    _check_rows(pictures, None)
    width = pictures.d_hidden if isinstance(pictures, Codes) else pictures.shape[1]
    if width != directions.shape[1]:
        raise InputError(f"The pictures have {width} features and the directions {directions.shape[1]}; take both of one SAE.")
    unit = normalize(directions.float(), dim=-1)
    if isinstance(pictures, Codes):
        dots = sparse_decode(pictures.values.float(), pictures.indices, unit.T.contiguous(), None)
        lengths = pictures.values.float().norm(dim=-1, keepdim=True)
    else:
        dots, lengths = pictures.float() @ unit.T, pictures.float().norm(dim=-1, keepdim=True)
    return (dots / lengths.clamp(min=1e-12)).numpy()


def _check_rows(pictures: Pictures, n: int | None) -> None:
    held = pictures.values if isinstance(pictures, Codes) else pictures
    if held.ndim != 2:
        shape = " x ".join(map(str, held.shape))
        raise InputError(f"The codes are {shape}; expected one a picture. Codes of patches have no direction of a picture.")
    if n is not None and len(held) != n:
        raise InputError(f"There are {len(held)} pictures and {n} rows of labels; expected one for each.")


# how well they rank


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pictures as a tower's vectors, and what they show: `labels` as `label_table` makes them.

    `names` say whose picture each is (a file, a person): one name may not be on both sides of a fit, and intervals resample names,
    because pictures of one name are no independent evidence. Without names each picture is its own.
    """

    vectors: Float[Tensor, "n d"] = field(repr=False)
    labels: pd.DataFrame = field(repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", label_table(self.labels))
        _check_rows(self.vectors, len(self.labels))
        if self.names is not None and len(self.names) != len(self.labels):
            raise InputError(f"There are {len(self.names)} names and {len(self.labels)} pictures; give one for each, or none.")

    @classmethod
    def of_scenes(cls, tower: Tower, scenes: Sequence[Scene], progress: bool = True) -> "Labelled":
        """Scenes with their emotions; a name is an identity. All moods at rest are one picture: take `face_scenes`."""
        vectors = tower.embed(scenes, progress=progress)
        return cls(vectors, label_table([scene.emotion for scene in scenes]), tuple(map(identity, scenes)))

    def some(self, rows: Sequence[int] | np.ndarray) -> "Labelled":
        """These rows, by number or by a mask of as many as there are."""
        rows = np.asarray(rows)
        if rows.dtype == bool and len(rows) != len(self.labels):
            raise InputError(f"The mask has {len(rows)} values for {len(self.labels)} pictures; expected one for each.")
        if rows.size and rows.dtype.kind not in "biu":
            raise InputError(f"The rows are {rows.dtype}; expected whole numbers, or a mask of True and False.")
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(int)
        names = None if self.names is None else tuple(self.names[i] for i in rows)
        return Labelled(self.vectors[torch.from_numpy(rows)], self.labels.iloc[rows], names)

    def same_as(self, other: "Labelled") -> list[int]:
        """Rows whose name, or whose vector to the last bit, is also among another's."""
        mine, theirs = (_bytes(side.vectors) for side in (self, other))
        seen, known = set(theirs), set(other.names or ())
        names = self.names or [None] * len(mine)
        return [i for i, (row, name) in enumerate(zip(mine, names, strict=True)) if row in seen or name in known]


def _bytes(vectors: Float[Tensor, "n d"]) -> list[bytes]:
    return [row.tobytes() for row in vectors.float().numpy()]


def check_apart(**parts: Labelled) -> None:
    """InputError where a picture, or a name, is in two of the parts: what is fitted on a picture says nothing about it."""
    listed = list(parts.items())
    for i, (name, part) in enumerate(listed):
        for other, held in listed[:i]:
            if shared := part.same_as(held):
                said = ", ".join(part.names[j] if part.names else f"number {j}" for j in shared[:3])
                raise InputError(
                    f"{len(shared)} of the {len(part.labels)} pictures of {name!r} are also in {other!r} ({said}); keep them apart."
                )


@dataclass(frozen=True, eq=False)
class EmotionScores:
    """How well each method ranks held-out pictures by each emotion.

    `table` has a row an emotion and method: `ap`, its bootstrap interval `low` to `high`, `prevalence` (the AP of chance) and `n`
    pictures that show it. `draws` are the APs in the resamples, which all methods share, so that differences are paired;
    `directions` the two kinds of means behind them; `strength` the probe's C, chosen on the selection part; `left_out` emotions
    that a part had no picture of, or nothing but.
    """

    table: pd.DataFrame
    draws: Float[np.ndarray, "resample method emotion"] = field(repr=False)
    pictures: int
    directions: Mapping[str, EmotionDirections] = field(repr=False)
    strength: float
    left_out: tuple[str, ...] = ()

    @property
    def methods(self) -> list[str]:
        """Names of the methods; the first is what the others are compared with."""
        return list(dict.fromkeys(self.table.method))

    @property
    def emotions(self) -> list[str]:
        """The emotions that were scored."""
        return list(dict.fromkeys(self.table.emotion))

    @property
    def complete(self) -> int:
        """In how many resamples every emotion is shown by some picture; an emotion of few pictures is missing from many."""
        return int(self._whole.sum())

    @property
    def _whole(self) -> np.ndarray:
        return ~np.isnan(self.draws).any((1, 2))

    def to_frame(self) -> pd.DataFrame:
        """A row an emotion and method."""
        return self.table.copy()

    def summary(self) -> pd.DataFrame:
        """A row a method and one for chance: mAP, and its difference to the first method, as paired `Interval`s.

        The intervals are over the `complete` resamples, in which every emotion is shown, so that each is a mean over the same
        emotions; NaN where there is none, which takes many emotions of one or two pictures.
        """
        means, drawn = self.table.groupby("method", sort=False).ap.mean(), self.draws[self._whole].mean(2)
        rows = {}
        for i, method in enumerate(self.methods):
            rows[method] = {"mAP": _interval(means.iloc[i], drawn[:, i], self.pictures)}
            if i:
                less = drawn[:, i] - drawn[:, 0]
                rows[method]["difference"] = _interval(means.iloc[i] - means.iloc[0], less, self.pictures)
        chance = float(self.table.drop_duplicates("emotion").prevalence.mean())
        rows["chance"] = {"mAP": Interval(chance, chance, chance, self.pictures)}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["mAP", "difference"]).rename_axis("method")

    def plot(self) -> Figure:
        """Average precision of each emotion by method, with intervals; a short bar marks chance."""
        emotions = self.table[self.table.method == self.methods[0]].sort_values("ap", ascending=False).emotion.tolist()
        figure, axis = new_figure(width=7.5, height=1.4 + 0.12 * len(self.methods) * len(emotions))
        for i, method in enumerate(self.methods):
            rows = self.table[self.table.method == method].set_index("emotion").loc[emotions]
            y = np.arange(len(emotions)) + 0.72 * ((i + 0.5) / len(self.methods) - 0.5)
            axis.hlines(y, rows.low, rows.high, color=COLORS[method], linewidth=1.2)
            axis.plot(rows.ap, y, "o", color=COLORS[method], markersize=4, label=method)
        rows, y = self.table.drop_duplicates("emotion").set_index("emotion").loc[emotions], np.arange(len(emotions))
        axis.vlines(rows.prevalence, y - 0.42, y + 0.42, color=INK, linewidth=1.2, label="chance")
        axis.set_yticks(y, emotions)
        axis.set(ylim=(len(y) - 0.5, -0.5), xlim=(0, 1), xlabel="average precision")
        axis.set_title(f"Ranking {self.pictures:,} held-out pictures by emotion")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure


def emotion_scores(
    fit: Labelled, selection: Labelled, test: Labelled, sae: SAE | None = None, resamples: int = 1000, seed: int = 0
) -> EmotionScores:
    """Fit directions and a probe on one part, choose the probe's strength on another, and rank the pictures of a third.

    Ranked by cosine to the mean code (with an `sae`), to the mean vector, each centred and raw, and by a logistic regression for
    each emotion. Means and probe read vectors at length 1, the SAE what it was trained on. InputError where a picture is in two
    parts.
    """
    check_apart(fit=fit, selection=selection, test=test)
    emotions, left_out = _scored(fit, selection, test)
    codes = [] if sae is None else [_encoded(sae, part) for part in (fit, test)]
    fit, selection, test = (_read(part, emotions) for part in (fit, selection, test))
    directions, held = {DENSE: emotion_directions(fit.vectors, fit.labels)}, {DENSE: test.vectors}
    if sae is not None:
        directions = {SPARSE: emotion_directions(codes[0], fit.labels)} | directions
        held |= {SPARSE: codes[1]}
    kinds = ((CENTRED, True), (RAW, False)) if len(emotions) > 1 else ((RAW, False),)
    scores = {name + kind: S.scores(held[name], centred) for name, S in directions.items() for kind, centred in kinds}
    strength, scores[PROBE] = _probe(fit, selection, test)
    table, draws = _ap_table(scores, test, resamples, seed)
    return EmotionScores(table, draws, len(test.labels), directions, strength, left_out)


def _scored(*parts: Labelled) -> tuple[list[str], tuple[str, ...]]:
    """Emotions that every part both shows and lacks, and the others."""
    columns = [set(part.labels.columns) for part in parts]
    if strange := sorted(set().union(*columns) - set.intersection(*columns), key=str):
        raise InputError(f"The parts have different emotions: {', '.join(map(str, strange))} are not in all of them.")
    emotions = list(parts[0].labels.columns)
    good = [e for e in emotions if all(0 < part.labels[e].mean() < 1 for part in parts)]
    if not good:
        raise InputError("No emotion is shown by some pictures of each part and not by others; give more pictures.")
    return good, tuple(e for e in emotions if e not in good)


def _read(part: Labelled, emotions: list[str]) -> Labelled:
    """A part at length 1, with the labels that are scored."""
    return replace(part, vectors=normalize(part.vectors.float(), dim=-1), labels=part.labels[emotions])


def check_pooled(sae: SAE) -> None:
    """InputError for an SAE over patches."""
    if sae.about.get("reads") == PATCHES:
        raise InputError("This SAE reads patches; emotion directions are of whole pictures. Take one over pooled vectors.")


@torch.no_grad()
def _encoded(sae: SAE, part: Labelled) -> Codes:
    check_pooled(sae)
    sae.check(part.vectors.shape[1])
    vectors = part.vectors.float()
    codes = sae.encode(normalize(vectors, dim=-1) if sae.about.get("unit") else vectors, chunk=CHUNK)
    return Codes(codes.values.cpu(), codes.indices.cpu(), codes.d_hidden)


def _probe(fit: Labelled, selection: Labelled, test: Labelled) -> tuple[float, Float[np.ndarray, "n emotion"]]:
    """Logistic regressions, one an emotion, of the strength that has the best mAP on `selection`; what they say of `test`."""
    scaler = StandardScaler().fit(fit.vectors.numpy())
    x, chosen_on, asked = (scaler.transform(part.vectors.numpy()) for part in (fit, selection, test))
    best, best_map = [], -1.0
    for strength in STRENGTHS:
        models = [_logistic(x, label, strength) for label in fit.labels.to_numpy().T]
        said = np.stack([model.decision_function(chosen_on) for model in models], 1)
        found = float(np.mean([average_precision_score(y, s) for y, s in zip(selection.labels.to_numpy().T, said.T, strict=True)]))
        if found > best_map:
            best, best_map, chosen = models, found, strength
    return chosen, np.stack([model.decision_function(asked) for model in best], 1)


def _logistic(x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one that stops early is judged like the others, on other pictures
        return LogisticRegression(C=strength, max_iter=300).fit(x, y)


def _ap_table(
    scores: Mapping[str, np.ndarray], test: Labelled, resamples: int, seed: int
) -> tuple[pd.DataFrame, Float[np.ndarray, "resample method emotion"]]:
    """A row an emotion and method, and the APs of all resamples."""
    labels, weights = test.labels.to_numpy(), resampled(test.names or len(test.labels), resamples, seed)
    draws = np.stack([weighted_ap(said, labels, weights) for said in scores.values()], 1)
    rows = []
    for j, emotion in enumerate(test.labels.columns):
        for i, (method, said) in enumerate(scores.items()):
            row: dict[str, Any] = {"emotion": emotion, "method": method}
            row["ap"] = float(average_precision_score(labels[:, j], said[:, j]))
            row["low"], row["high"] = _ends(draws[:, i, j])
            rows.append(row | {"prevalence": float(labels[:, j].mean()), "n": int(labels[:, j].sum())})
    return pd.DataFrame(rows), draws


def resampled(names: Sequence[str] | int, resamples: int, seed: int) -> Float[np.ndarray, "resample n"]:
    """How often each picture comes in each bootstrap resample; pictures of one name come together."""
    rows = np.arange(names) if isinstance(names, int) else np.unique(np.asarray(names), return_inverse=True)[1]
    groups = int(rows.max()) + 1
    counts = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples)
    return counts[:, rows].astype(np.float32)


def weighted_ap(
    scores: Float[np.ndarray, "n column"], labels: np.ndarray, weights: Float[np.ndarray, "resample n"]
) -> Float[np.ndarray, "resample column"]:
    """Average precision of each column under each row of weights; NaN where no weight lies on a positive.

    scikit-learn's `average_precision_score(sample_weight=...)` for thousands of weightings, for each of which it would sort anew.
    """
    out = np.empty((len(weights), scores.shape[1]))
    for j, (said, there) in enumerate(zip(scores.T, labels.T, strict=True)):
        order = np.argsort(-said, kind="stable")
        last = np.append(np.flatnonzero(np.diff(said[order])), len(said) - 1)  # ties share a threshold
        for start in range(0, len(weights), RESAMPLES_AT_ONCE):
            some = weights[start : start + RESAMPLES_AT_ONCE, order].astype(float)
            hits, seen = np.cumsum(some * there[order], 1)[:, last], np.cumsum(some, 1)[:, last]
            precision = hits / np.maximum(seen, 1e-12)
            gained = np.diff(hits, axis=1, prepend=0)
            with np.errstate(invalid="ignore"):
                out[start : start + len(some), j] = (gained * precision).sum(1) / hits[:, -1]
    return out


def _ends(drawn: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    if np.isnan(drawn).all():
        return np.nan, np.nan
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _interval(mean: float, drawn: Float[np.ndarray, " resample"], n: int) -> Interval:
    return Interval(float(mean), *_ends(drawn), n)
