"""The tour's chapter on features: a picture's vector as the few features that fire, and where emotions lie among them.

Directions are learned on one split, the probe beside them is chosen on another, and what is reported comes from a third. Sizes are
small, so that the chapter takes well under half a minute; notebook 02 shows the same step by step. An SAE belongs to one tower: for
a model that none comes with the chapter says so, and measures nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from emointerp.markup import data_uri, thumbnail
from emointerp.models import VLM, Tower, load_tower, to_image
from emointerp.sae import SAE, Codes, Quality, load_sae, quality
from emointerp.sae.emotion import CENTRED, DENSE, PROBE, SPARSE, EmotionDirections, EmotionScores, Labelled, emotion_scores
from emointerp.sae.files import BUNDLED
from emointerp.sae.meaning import Features, feature_meanings, yes_or_no
from emointerp.sae.tree import FeatureTree, feature_tree
from emointerp.statistics import Interval, ratio_interval
from emointerp.superposition import factor_table
from emointerp.tour.chapter import Chapter, Job, figure_html, left_out, muted, number, share, table_html
from emointerp.world import face_scenes

TITLE, MADE_OF = "Features of the picture", "What is a feeling made of?"
SHOWN, LEAVES = 8, 60
RESAMPLES = 500
UNUSUAL = 0.05
UNNAMED = "nothing named"  # as `feature_meanings` says it
METHODS = (SPARSE + CENTRED, DENSE + CENTRED, PROBE, "chance")

Vectors = Float[Tensor, "n d"]


@dataclass(frozen=True, eq=False)
class _World:
    """What drawn scenes say of the SAE: vectors as it reads them, how well emotions rank the test split, and what features mean.

    `factors`: what the test pictures show, 0 or 1, a row a picture.
    """

    sae: SAE
    fit: Float[Tensor, "n_fit d"]
    test: Float[Tensor, "n_test d"]
    factors: pd.DataFrame
    fit_labels: list[str]
    test_labels: list[str]
    scores: EmotionScores
    features: Features

    @property
    def directions(self) -> EmotionDirections:
        """Of the emotions, in feature space."""
        return self.scores.directions[SPARSE]

    @cached_property
    def words(self) -> Mapping[int, str]:
        """What is in the pictures on which a feature fires, where that has a name."""
        told = self.features.to_frame()
        return {i: words for i, words in zip(told.feature, told.words, strict=True) if words != UNNAMED}

    @cached_property
    def quality(self) -> Quality:
        """Of the SAE on the test split."""
        return quality(self.sae, self.test)

    @cached_property
    def tree(self) -> FeatureTree:
        """The features that stand out most for each emotion, on the scenes that directions come from; a word or two for each."""
        short = {feature: words.partition(",")[0] for feature, words in self.words.items()}
        return feature_tree(self.sae.encode(self.fit), self.fit_labels, sae=self.sae, n=LEAVES, words=short)

    @cached_property
    def explained(self) -> Interval:
        """`Quality.explained_variance` with its interval over test pictures."""
        missed = ratio_interval(*self._distances(self.test))
        return Interval(1 - missed.mean, 1 - missed.high, 1 - missed.low, missed.n)

    def _distances(self, vectors: Vectors) -> tuple[np.ndarray, np.ndarray]:
        """Squared, of each vector: to what its code rebuilds, and to the mean test vector."""
        both = self.sae(vectors) - vectors, vectors - self.test.mean(0)
        missed, far = (some.double().square().sum(1).numpy() for some in both)
        return missed, far

    def kept(self, vectors: Vectors) -> Float[np.ndarray, " n"]:
        """Which share of each vector's squared distance from the mean test vector its code rebuilds."""
        missed, far = self._distances(vectors)
        return 1 - missed / far

    def told(self, factor: str, auroc: float) -> Interval:
        """An AUROC on the test split with its interval; NaN where the factor or its opposite is not there."""
        there = int(self.factors[factor].sum()) if factor in self.factors else 0
        return auroc_interval(auroc, there, len(self.factors) - there)

    @cached_property
    def ranks(self) -> Float[np.ndarray, "n emotion"]:
        """Cosine of each test picture to each emotion's direction."""
        return self.directions.scores(self.sae.encode(self.test))


@dataclass(frozen=True, eq=False)
class _Told:
    """A picture: its features that fire most, its cosine to each emotion's direction, and how much of its vector the code keeps.

    `percentile`: the share of test pictures of which the code keeps less.
    """

    features: pd.DataFrame
    emotions: pd.DataFrame
    kept: float
    percentile: float


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Tell the job's pictures in features, and say how far features can be trusted; nothing where no SAE comes with the model."""
    if vlm.name not in BUNDLED:
        return left_out("sae", TITLE, _none_for(vlm), sae=None)
    tower = load_tower(vlm)
    world = _measured(tower, load_sae(vlm.name), job.sizes.sae)
    told = {name: _tell(world, tower, picture) for name, picture in job.pictures}
    blocks = [*_world_blocks(world), *((name, _picture_block(told[name], picture)) for name, picture in job.pictures)]
    plain = ((MADE_OF, _made_of(world)),)
    return Chapter("sae", TITLE, _summary(world, told), tuple(blocks), _results(world, told), plain=plain)


def _none_for(vlm: VLM) -> str:
    return (
        f"No sparse autoencoder comes with the vision tower of {vlm.name}, and one of another tower would not fit, so this chapter "
        "measured nothing. `emointerp.sae.load_sae` reads one from a file, `train_sae` makes one."
    )


# what is measured


def _measured(tower: Tower, sae: SAE, sizes: Mapping[str, int]) -> _World:
    scenes = {split: face_scenes(split, n) for split, n in sizes.items()}
    parts = {split: Labelled.of_scenes(tower, some) for split, some in scenes.items()}
    scores = emotion_scores(parts["direction"], parts["selection"], parts["test"], sae, resamples=RESAMPLES)
    fit, test = (_as_read(sae, parts[split].vectors) for split in ("direction", "test"))
    factors = {split: factor_table(scenes[split]) for split in ("direction", "test")}
    features = feature_meanings(sae.encode(fit), factors=factors["direction"], held_out=(sae.encode(test), factors["test"]))
    labels = ([scene.emotion for scene in scenes[split]] for split in ("direction", "test"))
    return _World(sae, fit, test, yes_or_no(factors["test"], factors["direction"]), *labels, scores, features)


def auroc_interval(auroc: float, there: int, elsewhere: int) -> Interval:
    """The 95% interval of an area under the ROC curve by Hanley and McNeil (1982), from the two numbers of pictures.

    A formula, as nothing at hand has it and a bootstrap of every feature would take longer than all the rest of the chapter. Where
    no pair of pictures is out of order the formula says nothing; then the rule of three on the smaller number bounds it.

    >>> print(auroc_interval(0.9, 50, 300))
    0.90 [0.84, 0.96] (n = 350)
    """
    if not there or not elsewhere or np.isnan(auroc):
        return Interval(np.nan, np.nan, np.nan, there + elsewhere)
    one, other = auroc / (2 - auroc) - auroc**2, 2 * auroc**2 / (1 + auroc) - auroc**2
    error = np.sqrt((auroc * (1 - auroc) + (there - 1) * one + (elsewhere - 1) * other) / (there * elsewhere))
    reach = 1.96 * error if error > 0 else 3 / min(there, elsewhere)
    return Interval(auroc, max(0.0, auroc - reach), min(1.0, auroc + reach), there + elsewhere)


def _as_read(sae: SAE, vectors: Vectors) -> Vectors:
    return normalize(vectors, dim=-1) if sae.about.get("unit") else vectors


def _tell(world: _World, tower: Tower, picture: Any) -> _Told:
    vector = _as_read(world.sae, tower.embed([picture], progress=False))
    codes = world.sae.encode(vector)
    kept = float(world.kept(vector)[0])
    return _Told(_features(world, codes), _emotions(world, codes), kept, float((world.kept(world.test) < kept).mean()))


def _features(world: _World, codes: Codes) -> pd.DataFrame:
    """The features that fire most, with their words and the factor they tell best, as well as they do on other pictures."""
    fired = [(int(i), float(v)) for i, v in zip(codes.indices[0], codes.values[0], strict=True) if v > 0][:SHOWN]
    known = world.features.to_frame().set_index("feature")
    rows = []
    for feature, activation in fired:
        told = known.loc[feature] if feature in known.index else {"factor": "", "held out": np.nan}
        row = {"feature": feature, "activation": activation, "words": world.words.get(feature, UNNAMED)}
        rows.append(row | {"tells best": told["factor"], "AUROC, held out": world.told(told["factor"], float(told["held out"]))})
    return pd.DataFrame(rows)


def _emotions(world: _World, codes: Codes) -> pd.DataFrame:
    """Cosine to each direction, the nearest first, and the share of the test pictures that lie less near."""
    said = world.directions.scores(codes)[0]
    rows = pd.DataFrame({"emotion": world.directions.emotions, "cosine": said, "nearer than": (world.ranks < said).mean(0)})
    return rows.sort_values("cosine", ascending=False, ignore_index=True)


# in plain words


def _made_of(world: _World) -> str:
    table = world.scores.summary()
    ours, chance = table.mAP[SPARSE + CENTRED], table.mAP["chance"]
    verdict = "Of a few features" if ours.low > chance.high else "Not shown"
    return (
        f"{verdict}: with at most {world.sae.k} of {world.sae.d_hidden:,} for each picture, pictures of a feeling are found with a "
        f"mean average precision of {_number(ours)}; chance {_number(chance)}."
    )


# in words


def _summary(world: _World, told: Mapping[str, _Told]) -> tuple[str, ...]:
    held, sae = world.quality, world.sae
    lines = [
        f"The tower tells a picture in {sae.d_in} numbers; the autoencoder tells it as at most {sae.k} of {sae.d_hidden:,} "
        f"features, and keeps {share(world.explained)} of the variance of {held.n} test pictures. On any of them "
        f"{round((1 - held.dead) * sae.d_hidden):,} of the features fire.",
        _ranked_line(world.scores.summary()),
        f"Mean codes of two emotions are much alike: cosine {world.directions.mean_cosine(centred=False):.2f} on average. Less "
        f"their own mean it is {world.directions.mean_cosine():.2f}, and these are the directions used here.",
    ]
    lines += [f"{name} lies nearest to the direction of {one.emotions.emotion[0]}{_doubt(one)}." for name, one in told.items()]
    return tuple(lines)


def _ranked_line(scores: pd.DataFrame) -> str:
    """Whether features rank better or worse than vectors, as far as the paired interval tells."""
    said = {name: _number(scores.mAP[name]) for name in METHODS}
    dense = scores.difference[DENSE + CENTRED]
    verdict = "better" if dense.high < 0 else "worse" if dense.low > 0 else "no better and no worse, as far as can be told,"
    return (
        f"Ranking test pictures by emotion, directions in feature space reach a mean AP of {said[SPARSE + CENTRED]} (chance "
        f"{said['chance']}): {verdict} than directions in the tower's own vectors ({said[DENSE + CENTRED]}). A linear probe, which "
        f"cannot be taken apart, reaches {said[PROBE]}."
    )


def _doubt(one: _Told) -> str:
    if one.percentile >= UNUSUAL:
        return ""
    return f", but its code keeps only {one.kept:.0%} of its vector, less than that of nearly all test pictures: do not rely on it"


# on the page


def _world_blocks(world: _World) -> list[tuple[str, str]]:
    rows = world.scores.summary().loc[list(METHODS)].reset_index()
    shown = pd.DataFrame({"ranked by": rows.method, "mean AP": rows.mAP.map(_number), "less SAE": rows.difference.map(_number)})
    said = muted(
        f"{world.quality.n} test pictures, {len(world.directions.emotions)} emotions, expressions from faint to clear; identities "
        "that neither directions nor probe were fitted on. Differences are paired. Cosines between directions have no interval: "
        "drawing the pictures anew would make each direction noisier, and all cosines smaller."
    )
    tree = figure_html(world.tree.plot(width=8), _tree_alt(world)) + muted(
        "A feature has an emotion's colour if it fires more on its pictures than on others, corrected for all features. That is "
        "what it goes with, not what it is about: props and weather may go with an emotion too (notebook 02)."
    )
    return [("How well features rank emotions", table_html(shown) + said), ("What emotions are made of", tree)]


def _tree_alt(world: _World) -> str:
    return (
        f"Radial dendrogram: {LEAVES} features that stand out for {', '.join(world.directions.emotions)}, alike ones side by side"
    )


def _number(interval: Interval | float) -> str:
    if not isinstance(interval, Interval):
        return ""
    return number(interval) if interval.low < interval.high else f"{interval.mean:.2f}"


def _picture_block(one: _Told, picture: Any) -> str:
    image = f'<img class="thumb" src="{data_uri(thumbnail(to_image(picture), 192))}" width="130" alt="the picture">'
    features = one.features.copy()
    features["activation"] = features.activation.map("{:.2f}".format)
    features["AUROC, held out"] = features["AUROC, held out"].map(lambda x: number(x) if np.isfinite(x.mean) else "not known")
    emotions = one.emotions.assign(cosine=one.emotions.cosine.map("{:+.2f}".format))
    emotions["nearer than"] = emotions["nearer than"].map("{:.0%} of test pictures".format)
    return (
        f'<div class="beside">{image}<div>{table_html(features.astype(str))}{table_html(emotions.astype(str))}</div></div>'
        + muted(
            f"The features that fire most, and the emotions by cosine. The code keeps {one.kept:.0%} of what sets this "
            f"picture's vector apart from the mean; it keeps less of {one.percentile:.0%} of the test pictures."
        )
    )


def _results(world: _World, told: Mapping[str, _Told]) -> dict:
    directions, held = world.directions, world.quality
    return {
        "sae": repr(world.sae),
        "quality": held.to_frame().to_dict("records")[0] | {"explained variance": world.explained},
        "mean AP": world.scores.summary().mAP.to_dict(),
        "by emotion": world.scores.to_frame().to_dict("records"),
        "mean cosine of directions": {"raw": directions.mean_cosine(centred=False), "centred": directions.mean_cosine()},
        "pictures": {name: _picture_results(one) for name, one in told.items()},
    }


def _picture_results(one: _Told) -> dict:
    return {
        "kept": one.kept,
        "keeps less of": one.percentile,
        "features": one.features.to_dict("records"),
        "emotions": one.emotions.to_dict("records"),
    }
