"""The signifier audit: does an emotion's direction read the face, or what goes with the emotion: props, weather, clothes, place?

A tower that saw balloons beside joy may call balloons joy. Whether a feature does is asked by changing one thing in a picture and
nothing else, which the drawn world does exactly: every pixel that the change does not cover stays. Directions are learned on the
training mix, where props and weather go with emotions, so that they can pick such signifiers up.

How much of a direction goes with a factor: with m the mean code of an emotion's pictures, m' that of the same pictures with the
factor changed, and c the centred direction, `c . (m - m') / |c|^2`. It is 1 where the change takes the whole direction away, and a
sum over features, `c_j (m_j - m'_j) / |c|^2` each; negative where the change makes the picture more like the emotion.

>>> from emointerp.world import Scene
>>> scene = Scene(emotion="joy", things=("balloons", "cup", "", "", ""), weather="sunny")
>>> [changed(scene, factor, seed=0).things[0] for factor in ("prop", "weather")]
['', 'balloons']

With a tower and an SAE: `audit = signifier_audit(sae, tower)`, `audit.to_frame()`, `audit.ranking`, `audit.plot()`.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from emointerp.emotions import BASIC, NEUTRAL
from emointerp.errors import InputError
from emointerp.models import Tower
from emointerp.plots import BLUE, GRAY, GREEN, ORANGE, PINK, QUIET, SKY, YELLOW, new_figure
from emointerp.sae.emotion import (
    EmotionDirections,
    check_pooled,
    cosines,
    emotion_directions,
    label_table,
    resampled,
    weighted_ap,
)
from emointerp.sae.reading import picture_codes
from emointerp.sae.value import SAE, Codes
from emointerp.saved import Saved
from emointerp.statistics import Interval, against_random, sign_flips
from emointerp.world import Scene, face_scenes, identity, training_example
from emointerp.world.face import ANIMALS, CLOTHES, FUR, HATS, PAINT, PEOPLE, SKIN, SUBJECTS
from emointerp.world.setting import PLACES

FACE, PROP, WEATHER, PLACE, WORN, SUBJECT = FACTORS = ("face", "prop", "weather", "place", "clothes", "subject")
SIGNIFIERS = (PROP, WEATHER, PLACE, WORN)
NONE, UNTESTED = "none", "not tested"
COLORS = {FACE: BLUE, SUBJECT: SKY, PROP: ORANGE, WEATHER: YELLOW, PLACE: GREEN, WORN: PINK}
COLORS |= {NONE: GRAY, UNTESTED: "#dfe1e5"}
MIX, TEST, MEAN = "train mix", "test", "mean"
COVERED, MOST = 0.95, 200  # features are tested until they hold so much of a direction's squared length, at most so many
NEAR = 0.1  # random features hold as much of a direction's squared length as the signifier features, but for this share
FIT, AUDIT, RANKED = "fit", "audit", "ranked"
SHOWN = (*BASIC, NEUTRAL)  # what the faces of the training mix show
PARTS = (FIT, FIT, AUDIT, RANKED)  # what the identities of the training mix are for, a quarter each


def changed(scene: Scene, factor: str, seed: int = 0) -> Scene:
    """The same scene but for one factor, every pixel that it does not cover the same.

    The expression goes to rest; props that go with emotions, and weather, are taken away; the place, what is worn (clothes and hat)
    and the subject (with its skin, fur or paint) become another at random. A scene that lacks the factor comes back as it is.
    """
    if factor not in FACTORS:
        raise InputError(f"There is no factor {factor!r}; there are {', '.join(FACTORS)}.")
    if not scene.has_face:
        raise InputError("This scene is an abstract mood, in which everything is the expression; take one with a face.")
    rng = np.random.default_rng([seed, scene.seed, zlib.crc32(factor.encode())])
    if factor == FACE:
        return scene.neutral(expression=True, props=False)
    if factor == PROP:
        return replace(scene, things=scene.neutral(expression=False, props=True).things)
    if factor == WEATHER:
        return replace(scene, weather="clear")
    if factor == PLACE:
        return replace(scene, place=_another(PLACES, scene.place, rng))
    if factor == WORN:
        dressed = replace(scene, clothes=_another(CLOTHES, scene.clothes, rng), hat=_another(HATS, scene.hat, rng))
        return dressed if scene.subject in PEOPLE else scene
    subject = _another(SUBJECTS, scene.subject, rng)
    skins = SKIN if subject in PEOPLE else FUR if subject in ANIMALS else PAINT
    return replace(scene, subject=subject, skin=scene.skin if scene.skin in skins else str(rng.choice(list(skins))))


def _another(kinds: Iterable[str], present: str, rng: np.random.Generator) -> str:
    return str(rng.choice([kind for kind in kinds if kind != present]))


def mixed_scenes(n: int, seed: int = 0, part: str = FIT, emotion: str | None = None) -> list[Scene]:
    """`n` scenes of the training mix with a face, of all emotions or one; "fit", "audit" and "ranked" share no identity."""
    if part not in PARTS:
        raise InputError(f"There is no part {part!r} of the training mix; there are {', '.join(dict.fromkeys(PARTS))}.")
    if emotion not in (None, *SHOWN):
        raise InputError(f"There is no emotion {emotion!r} in the training mix; there are {', '.join(SHOWN)}.")
    rng, scenes = np.random.default_rng([seed, zlib.crc32(part.encode())]), []
    while len(scenes) < n:
        scene = training_example(rng).scene
        own = PARTS[zlib.crc32(identity(scene).encode()) // 100 % len(PARTS)] == part
        if own and scene.has_face and emotion in (None, scene.emotion):
            scenes.append(scene)
    return scenes


@dataclass(frozen=True, eq=False)
class SignifierAudit(Saved):
    """What an emotion's direction reads.

    - `features`: a row an emotion, feature and factor: `weight` (the direction's entry), `share` of the direction that goes through
      this feature when the factor is changed, its 95% interval over scenes, `p` (corrected for all features and factors of the
      emotion), and the feature's `label`: the factor of the largest share that is above 0 with p < `level`, or "none".
    - `totals`: a row an emotion and factor: the whole `share` (an `Interval`) and on how many `scenes` the factor could change.
    - `ranking`: a row an emotion (and "mean") and set: AP of the direction `whole`, `without` its signifier features (labelled
      prop, weather, place or clothes) and their `difference` (an `Interval`); the `random difference` where random other
      features of as much weight are taken out, the mean and the middle 95% of `draws`; `distinct`, how many different
      sets these were; `p costs more` and `p costs less`, the ranks of the difference among them; the numbers of `features` and
      `random features`, and the shares of the squared length that went with them, `removed` and `random removed`. The ranks are
      NaN where these shares differ by more than a tenth: signifiers that outweigh the other features have no match among them.

    `directions` are what was audited; `draws` the number of random sets.
    """

    features: pd.DataFrame
    totals: pd.DataFrame
    ranking: pd.DataFrame
    directions: EmotionDirections = field(repr=False)
    level: float
    draws: int

    @property
    def emotions(self) -> list[str]:
        """The emotions that were audited."""
        return list(dict.fromkeys(self.features.emotion))

    def to_frame(self) -> pd.DataFrame:
        """A row an emotion and feature: weight, label, and a column a factor with its share."""
        wide = self.features.pivot(index=["emotion", "feature"], columns="factor", values="share")[list(FACTORS)]
        told = self.features.groupby(["emotion", "feature"], sort=False)[["weight", "label"]].first()
        return told.join(wide).reset_index()

    def labels(self, emotion: str) -> dict[str, list[int]]:
        """Label -> the features of an emotion's direction that have it, the heaviest first."""
        if emotion not in self.emotions:
            raise InputError(f"There is no audit of {emotion!r}; there are {', '.join(self.emotions)}.")
        rows = self.features[self.features.emotion == emotion].drop_duplicates("feature")
        return {label: some.feature.tolist() for label, some in rows.groupby("label", sort=False)}

    def composition(self) -> pd.DataFrame:
        """Emotion by label: which share of the direction's squared length lies in features of that label; rows add up to 1."""
        rows = self.features.drop_duplicates(["emotion", "feature"])
        lengths = {e: float(self.directions.vector(e).square().sum()) for e in self.emotions}
        parts = (rows.weight**2 / rows.emotion.map(lengths)).groupby([rows.emotion, rows.label]).sum().unstack(fill_value=0.0)
        parts = parts.reindex(index=self.emotions, columns=[*COLORS], fill_value=0.0)
        return parts.assign(**{UNTESTED: 1 - parts.drop(columns=UNTESTED).sum(axis=1)})

    def plot(self) -> Figure:
        """What the directions are made of, as stacked bars by label; and what goes when each factor is changed."""
        figure, axes = new_figure(1, 2, width=11, height=1.6 + 0.45 * len(self.emotions))
        y, left = np.arange(len(self.emotions)), np.zeros(len(self.emotions))
        for label, parts in self.composition().items():
            axes[0].barh(y, parts, left=left, color=COLORS[label], height=0.65, label=label)
            left = left + parts.to_numpy()
        axes[0].set(xlim=(0, 1), xlabel="share of the direction's squared length, by what its features read")
        axes[0].set_title("What a direction is made of")
        for i, factor in enumerate(FACTORS):
            shares = self.totals[self.totals.factor == factor].set_index("emotion").share.loc[self.emotions]
            at = y + 0.7 * ((i + 0.5) / len(FACTORS) - 0.5)
            axes[1].hlines(at, [s.low for s in shares], [s.high for s in shares], color=COLORS[factor], linewidth=1.5)
            axes[1].plot([s.mean for s in shares], at, "o", color=COLORS[factor], markersize=4)
        axes[1].axvline(0, color=QUIET, linewidth=0.8)
        axes[1].set(xlabel="share of the direction that goes when one factor is changed")
        axes[1].set_title("What changes it")
        for axis in axes:
            axis.set_yticks(y, self.emotions if axis is axes[0] else [])
            axis.set_ylim(len(y) - 0.5, -0.5)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure

    def plot_ranking(self) -> Figure:
        """What taking the signifier features out does to average precision, beside random features of as much weight, by set."""
        names = [*self.emotions, MEAN]
        figure, axes = new_figure(1, 2, width=9, height=1.8 + 0.3 * len(names))
        axes[0].sharex(axes[1])
        for axis, kind in zip(axes, (MIX, TEST), strict=True):
            rows = self.ranking[self.ranking.set == kind].set_index("emotion").loc[names]
            y = np.arange(len(names))
            for column, color, shift in (("difference", ORANGE, -0.12), ("random difference", GRAY, 0.12)):
                axis.hlines(y + shift, [i.low for i in rows[column]], [i.high for i in rows[column]], color=color, linewidth=1.5)
                label = "signifier features" if column == "difference" else f"random features ({self.draws} draws)"
                axis.plot([i.mean for i in rows[column]], y + shift, "o", color=color, markersize=5, label=label)
            axis.axvline(0, color=QUIET, linewidth=0.8)
            axis.set_yticks(y, names if axis is axes[0] else [])
            axis.set(ylim=(len(y) - 0.5, -0.5), xlabel="change of average precision without them")
            axis.locator_params(axis="x", nbins=6)
            axis.set_title("Where signifiers go with emotions" if kind == MIX else "Where they do not")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
        return figure


def signifier_audit(
    sae: SAE,
    tower: Tower,
    emotions: Sequence[str] = BASIC,
    *,
    fit: int = 1500,
    scenes: int = 60,
    ranked: int = 700,
    draws: int = 100,
    level: float = 0.05,
    flips: int = 10_000,
    seed: int = 0,
    progress: bool = True,
) -> SignifierAudit:
    """Audit the emotion directions of an SAE over pooled vectors, on the drawn world.

    Directions are learned on `fit` scenes of the training mix; on `scenes` of each emotion, of the same mix but other identities,
    every factor is changed; and APs are measured on `ranked` scenes of the mix, of yet others, where signifiers go with emotions,
    and on as many of the test split, where they do not. `draws`: random sets of features. InputError where a number is below 1.
    """
    check_pooled(sae)
    for name, count in {"fit": fit, "scenes": scenes, "ranked": ranked, "draws": draws}.items():
        if count < 1:
            raise InputError(f"{name} is {count}; expected 1 or more.")
    told = mixed_scenes(fit, seed)
    labels = label_table([scene.emotion for scene in told])
    if strange := [e for e in emotions if e not in labels]:
        raise InputError(
            f"No scene of the {fit} to fit shows {', '.join(strange)}; they show {', '.join(labels)}. Give more scenes."
        )
    directions = emotion_directions(picture_codes(sae, tower, told, progress=progress), labels)
    audited = [_audited(sae, tower, directions, e, scenes, level, flips, seed, progress) for e in emotions]
    features, totals = (pd.concat(some, ignore_index=True) for some in zip(*audited, strict=True))
    sets = {MIX: mixed_scenes(ranked, seed, RANKED), TEST: face_scenes("test", ranked, seed)}
    removed = _removed(features, directions, draws, seed)
    tables = [
        _ranking(picture_codes(sae, tower, some, progress=progress), some, directions, removed, seed).assign(set=name)
        for name, some in sets.items()
    ]
    return SignifierAudit(features, totals, pd.concat(tables, ignore_index=True), directions, level, draws)


# what goes when a factor is changed


def _audited(
    sae: SAE,
    tower: Tower,
    directions: EmotionDirections,
    emotion: str,
    n: int,
    level: float,
    flips: int,
    seed: int,
    progress: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An emotion's features with the share of each factor, and the factors' whole shares."""
    scenes = mixed_scenes(n, seed, AUDIT, emotion)
    others = [changed(scene, factor, seed) for factor in FACTORS for scene in scenes]
    codes = picture_codes(sae, tower, [*scenes, *others], progress=progress)
    direction = directions.vector(emotion)
    length = direction.square().sum()
    features = _heaviest(direction)
    shares = _activations(codes, features) * (direction[features] / length).numpy()
    shares = _went(shares)  # scene, factor, feature
    whole = _went((_dots(codes, direction) / length).numpy()[:, None])[..., 0]
    low, high = _bootstrapped(shares, seed)
    p = sign_flips(shares.reshape(n, -1), flips, "greater", seed).corrected.reshape(shares.shape[1:])
    label = _label(shares.mean(0), p, level)
    at = np.indices(p.shape)
    columns = {"emotion": emotion, "feature": features.numpy()[at[1]].ravel(), "weight": direction[features].numpy()[at[1]].ravel()}
    columns |= {
        "factor": np.array(FACTORS)[at[0]].ravel(),
        "share": shares.mean(0).ravel(),
        "low": low.ravel(),
        "high": high.ravel(),
    }
    table = pd.DataFrame(columns | {"p": p.ravel(), "label": label[at[1]].ravel()})
    counts = np.array([b != a for b, a in zip(others, scenes * len(FACTORS), strict=True)]).reshape(len(FACTORS), n).sum(1)
    ends = np.stack(_bootstrapped(whole, seed), 1)
    intervals = [Interval(float(mean), float(a), float(b), n) for mean, (a, b) in zip(whole.mean(0), ends, strict=True)]
    return table, pd.DataFrame({"emotion": emotion, "factor": FACTORS, "share": intervals, "scenes": counts})


def _heaviest(direction: Float[torch.Tensor, " d"]) -> Int[torch.Tensor, " feature"]:
    """The features that hold most of a direction's squared length, the heaviest first."""
    squares, order = direction.square().sort(descending=True)
    enough = int((squares.cumsum(0) < COVERED * squares.sum()).sum()) + 1
    return order[: min(enough, MOST, int((squares > 0).sum()))]


def _activations(codes: Codes, features: Int[torch.Tensor, " feature"]) -> Float[np.ndarray, "n feature"]:
    """Activations of some features."""
    place = torch.full((codes.d_hidden,), len(features))
    place[features] = torch.arange(len(features))
    held = codes.values.new_zeros(len(codes.values), len(features) + 1)
    return held.scatter_add(1, place[codes.indices], codes.values)[:, :-1].double().numpy()


def _dots(codes: Codes, direction: Float[torch.Tensor, " d"]) -> Float[torch.Tensor, " n"]:
    return (codes.values * direction[codes.indices]).sum(1).double()


def _went(values: Float[np.ndarray, "n_all column"]) -> Float[np.ndarray, "n factor column"]:
    """What scenes have, less what each has with a factor changed: the scenes come first, then those of each factor."""
    parts = values.reshape(1 + len(FACTORS), -1, values.shape[1])
    return (parts[:1] - parts[1:]).transpose(1, 0, 2)


def _bootstrapped(
    values: Float[np.ndarray, "n ..."], seed: int, resamples: int = 1000
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Ends of the 95% percentile bootstrap interval of each column's mean, all columns in the same resamples."""
    n = len(values)
    drawn = resampled(n, resamples, seed).astype(float) @ values.reshape(n, -1) / n
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def _label(shares: Float[np.ndarray, "factor feature"], p: np.ndarray, level: float) -> np.ndarray:
    """Each feature's factor: that of the largest share among those that pass."""
    passing = np.where((p < level) & (shares > 0), shares, -np.inf)
    return np.where(np.isfinite(passing.max(0)), np.array(FACTORS)[passing.argmax(0)], NONE)


# what is left without the signifiers


def _removed(features: pd.DataFrame, directions: EmotionDirections, draws: int, seed: int) -> dict[str, list[np.ndarray]]:
    """For each emotion its signifier features, and `draws` random sets of the other tested features, of as much weight."""
    sets, rng = {}, np.random.default_rng(seed)
    for emotion, rows in features.drop_duplicates(["emotion", "feature"]).groupby("emotion", sort=False):
        signify = rows.label.isin(SIGNIFIERS).to_numpy()
        tested, squares = np.array(rows.feature, int), rows.weight.to_numpy() ** 2
        pool, wanted = tested[~signify], float(squares[signify].sum())
        sets[emotion] = [tested[signify], *(pool[_matched(squares[~signify], wanted, rng)] for _ in range(draws))]
    return sets


def _matched(squares: Float[np.ndarray, " feature"], wanted: float, rng: np.random.Generator) -> list[int]:
    """Features in random order, of which those are taken that fit, until they hold as much of the squared length."""
    chosen, held = [], 0.0
    for i in rng.permutation(len(squares)):
        if held >= (1 - NEAR) * wanted:
            break
        if held + squares[i] <= (1 + NEAR) * wanted:
            chosen.append(int(i))
            held += squares[i]
    return chosen


def _ranking(
    codes: Codes, scenes: Sequence[Scene], directions: EmotionDirections, removed: dict[str, list[np.ndarray]], seed: int
) -> pd.DataFrame:
    """A row an emotion and their mean: APs with and without features."""
    names, truth = [identity(scene) for scene in scenes], np.array([scene.emotion for scene in scenes])
    weights = np.concatenate([np.ones((1, len(scenes)), np.float32), resampled(names, 1000, seed)])
    rows, found, shares = [], [], []
    for emotion, sets in removed.items():
        labels = (truth == emotion).astype(float)
        if not 0 < labels.sum() < len(labels):
            raise InputError(f"{int(labels.sum())} of the {len(labels)} ranked scenes show {emotion}; give more scenes.")
        direction = directions.vector(emotion)
        found.append(_aps(codes, labels, direction, sets, weights))
        parts = [float(direction[torch.from_numpy(some)].square().sum() / direction.square().sum()) for some in sets]
        shares.append((parts[0], float(np.mean(parts[1:]))))
        taken = {"features": len(sets[0]), "random features": float(np.mean([len(some) for some in sets[1:]]))}
        taken |= {"distinct": _distinct([sets])}
        rows.append({"emotion": emotion} | _compared(*found[-1], len(scenes), *shares[-1]) | taken)
    means = [np.nanmean(some, axis=0) for some in zip(*found, strict=True)]
    mean = _compared(*means, len(scenes), *np.mean(shares, axis=0)) | {"distinct": _distinct(removed.values())}
    return pd.DataFrame([*rows, {"emotion": MEAN} | mean])


def _distinct(removed: Iterable[Sequence[np.ndarray]]) -> int:
    """How many different random sets there are, of all emotions together."""
    return len(set(zip(*([frozenset(some.tolist()) for some in sets[1:]] for sets in removed), strict=True)))


def _aps(
    codes: Codes, labels: np.ndarray, direction: torch.Tensor, sets: Sequence[np.ndarray], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP whole and without the first set, in the sample and each resample; and the change without each random set."""
    cut = direction.repeat(1 + len(sets), 1)
    for row, some in zip(cut[1:], sets, strict=True):
        row[torch.from_numpy(some)] = 0
    scores = cosines(codes, cut)
    drawn = weighted_ap(scores[:, :2], np.stack([labels] * 2, 1), weights)
    aps = weighted_ap(scores, np.repeat(labels[:, None], scores.shape[1], 1), weights[:1])[0]
    return drawn[:, 0], drawn[:, 1], aps[2:] - aps[0]


def _compared(
    whole: np.ndarray, without: np.ndarray, random: np.ndarray, n: int, removed: float, random_removed: float
) -> dict[str, Any]:
    """The change without the features, over resamples of the pictures, beside those without random sets of as much weight."""
    difference = without - whole
    low, high = np.nanquantile(difference[1:], [0.025, 0.975])
    ends = np.quantile(random, [0.025, 0.975])
    matched = abs(random_removed - removed) <= NEAR * removed
    return {
        "whole": float(whole[0]),
        "without": float(without[0]),
        "difference": Interval(float(difference[0]), float(low), float(high), n),
        "random difference": Interval(float(random.mean()), float(ends[0]), float(ends[1]), len(random)),
        "p costs more": against_random(-difference[0], -random) if matched else np.nan,
        "p costs less": against_random(difference[0], random) if matched else np.nan,
        "removed": float(removed),
        "random removed": float(random_removed),
    }
