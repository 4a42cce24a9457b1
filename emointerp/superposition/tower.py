"""Superposition in a real tower: how many planted factors can be read from an embedding, and how far their directions interfere.

The drawn world knows what is in each picture, so that what a toy model shows by construction can be asked of a tower that was
trained for something else. A factor counts as *readable* where a line through the embedding tells it on other pictures; the
direction of a factor is how the embedding moves with it, all other factors equal. Beside both stand the same tower before training,
pictures shrunk to as many numbers, exchanged factors, and random directions.

The embedding is the mean of the patches that the language model is shown. `load_tower(vlm).embed` gives other numbers: a tower's
own pooling, or its patches behind the last norm.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from emointerp.errors import InputError
from emointerp.given import listed, texts, whole_number
from emointerp.models import VLM
from emointerp.models.anatomy import part
from emointerp.models.vlm import check_model
from emointerp.plots import BLUE, GRAY, GREEN, INK, ORANGE, QUIET, YELLOW, band, new_figure
from emointerp.saved import Saved
from emointerp.statistics import Interval, against_random, random_directions, value_interval
from emointerp.superposition.toy import dimensionality
from emointerp.world import Scene

READABLE = 0.5  # correlation on other pictures, lower end of its interval: a quarter of a factor's variance
RARE = 0.02  # a factor that fewer pictures have, or all but so few, is left out
# what is not drawn itself (labels, seeds) or in some pictures only (the colour of a hat that may be missing)
NOT_DRAWN = ("emotion", "intensity", "mode", "seed", "noise", "occlusion", "ground", "hat_color", "clothes", "hair", "skin")
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
RIDGES = np.logspace(0, 5, 6)
BATCH = 32  # pictures the tower sees at once


@dataclass(frozen=True, eq=False)
class Embedded(Saved):
    """Pictures as vectors [picture, d], and what was planted in them: a row a picture, a column a factor."""

    vectors: Float[np.ndarray, "picture d"] = field(repr=False)
    factors: pd.DataFrame = field(repr=False)

    def projected(self, d: int, seed: int = 0) -> "Embedded":
        """The vectors in `d` random orthogonal directions; the same ones for the same seed."""
        full = self.vectors.shape[1]
        if not 1 <= d <= full:
            raise InputError(f"A vector of {full} dimensions cannot be projected to {d}; ask for 1 to {full}.")
        drawn = np.random.default_rng(seed).standard_normal((full, d))
        return replace(self, vectors=self.vectors @ np.linalg.qr(drawn)[0])

    def exchanged(self, seed: int = 0) -> "Embedded":
        """The same vectors with the factors of another picture each, at random: nothing can be read but by chance."""
        order = np.random.default_rng(seed).permutation(len(self.factors))
        return replace(self, factors=self.factors.iloc[order].reset_index(drop=True))


def _scenes(given: Iterable[Scene]) -> list[Scene]:
    """Scenes as a list, read once."""
    if scenes := listed(given, Scene, "scene", "scenes of the drawn world: face_scenes('test', 60)"):
        return scenes
    raise InputError("No scenes came; face_scenes('test', 60) draws some.")


def factor_table(scenes: Iterable[Scene]) -> pd.DataFrame:
    """What was planted in scenes and is drawn in them: a row a scene, a column a factor.

    Numbers stay, kinds become a column each ("subject: cat"). Emotion, mode and intensity are left out, which are drawn through the
    expression's parameters alone, and what only some pictures show.

    >>> factor_table([Scene(), Scene(subject="cat")])["subject: cat"].tolist()
    [0.0, 1.0]
    """
    scenes = _scenes(scenes)
    if blank := sum(not scene.has_face for scene in scenes):
        raise InputError(f"{blank} of {len(scenes)} scenes are abstract moods, which have no such factors; leave them out.")
    table = pd.DataFrame([scene.factors() for scene in scenes]).drop(columns=list(NOT_DRAWN))
    return pd.get_dummies(table, prefix_sep=": ", dtype=float).astype(float)


def embed(vlm: VLM, scenes: Iterable[Scene], progress: bool = True) -> Embedded:
    """The mean over the tower's patches after its last layer, for each scene: what the language model is shown, averaged.

    Reads the tower of any family; the language model does not run.
    """
    check_model(vlm)
    scenes = _scenes(scenes)
    starts = tqdm(range(0, len(scenes), BATCH), desc="tower", disable=not progress)
    return Embedded(np.concatenate([_embedding(vlm, scenes[i : i + BATCH]) for i in starts]), factor_table(scenes))


@torch.no_grad()
def _embedding(vlm: VLM, scenes: Sequence[Scene]) -> Float[np.ndarray, "scene d"]:
    """Of some at once: scenes are of one size, so that a processor makes as much of each, whatever the family's tiles."""
    given = [vlm.placed(vlm.prompt(scene, "Look.", instruction="").inputs) for scene in scenes]
    pictures = {name: torch.cat([one[name] for one in given]) for name in given[0] if name not in TEXT_INPUTS}
    seen: list[torch.Tensor] = []
    last = part(vlm.model, vlm.anatomy.family.vision_layers)[-1]
    hook = last.register_forward_hook(lambda module, given, out: seen.append(out[0] if isinstance(out, tuple) else out))
    try:
        vlm.model.get_image_features(**pictures)
    finally:
        hook.remove()
    return seen[0].reshape(len(scenes), -1, seen[0].shape[-1]).mean(1).float().cpu().numpy()


def untrained(vlm: VLM, seed: int = 0) -> VLM:
    """The control: the same model with a tower as training begins with it, weights drawn as its architecture draws them.

    All other parts are those of `vlm`, which stays as it is; only the tower's vectors mean anything.
    """
    above, name, *_ = vlm.anatomy.family.vision_layers.split(".")
    tower = part(vlm.model, f"{above}.{name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(tower)(copy.deepcopy(tower.config)).to(tower.device, tower.dtype).eval()
    return replace(vlm, name=f"{vlm.name}, tower untrained", model=_with_part(vlm.model, [above, name], fresh))


def _with_part(module: torch.nn.Module, path: list[str], new: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module that shares all but the part at a path."""
    twin, (name, *rest) = copy.copy(module), path
    twin._modules = dict(module._modules) | {name: _with_part(module._modules[name], rest, new) if rest else new}
    return twin


def thumbnails(scenes: Iterable[Scene], side: int = 8) -> Embedded:
    """The control: each picture shrunk to `side` x `side` pixels of three colours; 8 gives 192 numbers."""
    scenes = _scenes(scenes)
    small = [np.asarray(scene.image().resize((side, side), Image.Resampling.BOX), float).ravel() / 255 for scene in scenes]
    return Embedded(np.stack(small), factor_table(scenes))


@dataclass(frozen=True, eq=False)
class Readings(Saved):
    """How well each factor is read from other pictures' vectors: `table` has factor, r (an `Interval`) and readable.

    `d` is the width of the vectors; r the correlation of what a ridge regression says with what was planted.
    """

    table: pd.DataFrame
    d: int

    @property
    def readable(self) -> list[str]:
        """Factors whose correlation lies above 0.5 with its whole interval."""
        return self.table.factor[self.table.readable].tolist()

    def to_frame(self) -> pd.DataFrame:
        """A row a factor, the best first."""
        order = np.argsort([-r.mean for r in self.table.r], kind="stable")
        return self.table.iloc[order].reset_index(drop=True)

    def plot(self, most: int = 40) -> Figure:
        """Correlations with intervals of `most` factors, evenly spread over the ranks; the readable in blue."""
        frame = self.to_frame()
        frame = frame.iloc[np.linspace(0, len(frame) - 1, min(most, len(frame))).round().astype(int)]
        figure, axis = new_figure(width=7.5, height=1.2 + 0.19 * len(frame))
        for row, (r, good) in enumerate(zip(frame.r, frame.readable, strict=True)):
            color = BLUE if good else GRAY
            axis.plot([r.low, r.high], [row, row], color=color, linewidth=1.5)
            axis.plot([r.mean], [row], "o", color=color, markersize=4)
        axis.axvline(READABLE, color=QUIET, linestyle=":", linewidth=1)
        axis.set_yticks(range(len(frame)), frame.factor, fontsize=8)
        axis.set(
            xlim=(min(0.0, *(r.low for r in frame.r)), 1), ylim=(len(frame) - 0.5, -0.5), xlabel="correlation on other pictures"
        )
        axis.set_title(f"{len(self.readable)} of {len(self.table)} factors readable from {self.d} numbers")
        return figure


def read_factors(fit: Embedded, held_out: Embedded, resamples: int = 500, seed: int = 0) -> Readings:
    """Fit a ridge regression for each factor on `fit` and read it from `held_out`; 95% intervals resample the held-out pictures.

    Factors that fewer than 2% of either set's pictures have (or all but so few), or that do not vary, are left out. The strength of
    each factor's ridge is chosen by leave-one-out on `fit`.
    """
    if fit.vectors.shape[1] != held_out.vectors.shape[1]:
        raise InputError(
            f"The vectors to fit have {fit.vectors.shape[1]} numbers, those held out {held_out.vectors.shape[1]}; embed both alike."
        )
    names = _common(fit.factors, held_out.factors)
    model = make_pipeline(StandardScaler(), RidgeCV(RIDGES, alpha_per_target=True))
    said = model.fit(fit.vectors, fit.factors[names].to_numpy()).predict(held_out.vectors).reshape(len(held_out.factors), -1)
    intervals = _correlations(said, held_out.factors[names].to_numpy(), resamples, seed)
    table = pd.DataFrame({"factor": names, "r": intervals, "readable": [r.low > READABLE for r in intervals]})
    return Readings(table, fit.vectors.shape[1])


def _common(*tables: pd.DataFrame) -> list[str]:
    """Factors that vary in all tables."""
    kept = [name for name in tables[0] if all(name in table and _varies(table[name]) for table in tables)]
    if not kept:
        raise InputError(f"Of {tables[0].shape[1]} factors none varies in both sets; give more pictures, or more different ones.")
    return kept


def _varies(values: pd.Series) -> bool:
    commonest = values.value_counts(normalize=True).iloc[0]
    return bool(commonest <= 1 - RARE)


def _correlations(said: np.ndarray, truth: np.ndarray, resamples: int, seed: int) -> list[Interval]:
    """Pearson's r of each column with percentile bootstrap intervals over rows, all columns in the same resamples."""
    n = len(said)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    weights = np.concatenate([np.ones((1, n)), counts]) / n
    a, b = said - said.mean(0), truth - truth.mean(0)
    mean_a, mean_b = weights @ a, weights @ b
    covariance = weights @ (a * b) - mean_a * mean_b
    spread = (weights @ a**2 - mean_a**2) * (weights @ b**2 - mean_b**2)
    r = covariance / np.sqrt(np.maximum(spread, 1e-24))
    ends = np.quantile(r[1:], [0.025, 0.975], axis=0)
    return [Interval(float(mean), float(low), float(high), n) for mean, low, high in zip(r[0], *ends, strict=True)]


def by_dimensions(
    fit: Embedded, held_out: Embedded, dimensions: Iterable[int] | int = (4, 8, 16, 32, 64, 128), draws: int = 3, seed: int = 0
) -> pd.DataFrame:
    """How many factors are readable from so many random directions of the vectors: a row a number of dimensions and draw."""
    rows = []
    listed_dimensions = [dimensions] if not isinstance(dimensions, Iterable) else list(dimensions)
    for d in [whole_number(d, "dimensions", 1) for d in listed_dimensions]:
        for draw in range(draws):
            some = [side.projected(d, seed + draw) for side in (fit, held_out)]
            rows.append({"dimensions": d, "draw": draw, "readable": len(read_factors(*some, resamples=200).readable)})
    return pd.DataFrame(rows)


def plot_by_dimensions(counts: dict[str, pd.DataFrame]) -> Figure:
    """Readable factors by dimensions, a line for each embedding, beside the line of one factor a dimension."""
    figure, axis = new_figure(width=7, height=3.8)
    for (name, table), color in zip(counts.items(), (BLUE, YELLOW, GRAY, GREEN), strict=False):
        means = table.groupby("dimensions").readable.agg(value_interval)
        band(axis, means.index, means, color, name)
    most = max(float(table.readable.max()) for table in counts.values()) * 1.1 + 1
    ticks = sorted({int(d) for table in counts.values() for d in table.dimensions})
    equal = np.geomspace(1, most, 100)  # straight it would be on even axes only
    axis.plot(equal, equal, color=QUIET, linestyle=":", linewidth=1, label="one a dimension")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(d) for d in ticks])
    axis.set(xlim=(0.9 * ticks[0], 1.1 * ticks[-1]), ylim=(0, most), xlabel="dimensions kept", ylabel="factors readable")
    axis.set_title("How many factors so many numbers tell")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    return figure


@dataclass(frozen=True, eq=False)
class Interference(Saved):
    """Directions of factors and how far they share dimensions.

    `cosines` [factor, factor] between the factors' directions, NaN between kinds of one thing ("subject: cat" and "subject: dog"
    exclude each other, so their directions must oppose). `table` has a row a factor: the mean absolute cosine to the others, the
    nearest of them and its cosine, its dimensionality D_i (directions of length 1), and how alike two halves of the pictures give
    it (`reliability`, a cosine). `random` and `matched` are mean absolute cosines of sets of random directions, the second with the
    covariance of the vectors.
    """

    cosines: pd.DataFrame = field(repr=False)
    table: pd.DataFrame
    random: Float[np.ndarray, " draw"] = field(repr=False)
    matched: Float[np.ndarray, " draw"] = field(repr=False)
    d: int
    effective: float

    def to_frame(self) -> pd.DataFrame:
        """Factors, random directions, and random directions with the vectors' covariance: mean absolute cosines.

        `interval`: for the factors a bootstrap over them, for random sets the middle 95% of the draws. `p_less` is the rank of the
        factors' mean among the draws from below (they interfere less than random directions), `p_more` that from above.
        """
        seen = value_interval(self.table["mean cosine"])
        rows = [{"what": "factors", "interval": seen}]
        for name, drawn in (("random", self.random), ("random, same covariance", self.matched)):
            low, high = np.quantile(drawn, [0.025, 0.975])
            row = {"what": name, "interval": Interval(float(drawn.mean()), float(low), float(high), len(drawn))}
            row |= {"p_less": against_random(-seen.mean, -drawn), "p_more": against_random(seen.mean, drawn)}
            rows.append(row)
        return pd.DataFrame(rows).set_index("what")

    def plot(self) -> Figure:
        """How absolute cosines between factors' directions are spread, and the means of random sets."""
        figure, axis = new_figure(width=7, height=3.6)
        values = np.abs(self.cosines.to_numpy()[np.triu_indices(len(self.cosines), 1)])
        axis.hist(
            values[~np.isnan(values)],
            bins=np.linspace(0, 1, 41),
            density=True,
            color=BLUE,
            alpha=0.6,
            label="pairs of factors",
        )
        lines = ((float(self.table["mean cosine"].mean()), BLUE, "-", 4, "their mean"),)
        lines += ((float(self.random.mean()), INK, "--", 1.5, "random directions, mean"),)  # often upon the line before
        lines += ((float(self.matched.mean()), ORANGE, "--", 1.5, "with the same covariance, mean"),)
        for x, color, style, width, label in lines:
            axis.axvline(x, color=color, linestyle=style, linewidth=width, label=label)
        axis.set(xlabel="absolute cosine between two directions", ylabel="density")
        axis.set_title(f"{len(self.table)} directions in {self.d} dimensions ({self.effective:.0f} of them effective)")
        axis.legend(fontsize=9, loc="upper right")
        return figure


def interference(embedded: Embedded, factors: Iterable[str], draws: int = 200, seed: int = 0) -> Interference:
    """Directions of `factors` (as `Readings.readable` names them) and their cosines, beside random directions.

    A direction is a factor's row in the least-squares regression of the vectors on all factors that vary: how the embedding moves
    with a standard deviation of the factor, the others held. The effective dimension is `(sum of eigenvalues)^2 / sum of squares`
    of the vectors' covariance.
    """
    factors = texts(factors, "factors")
    if unknown := [name for name in factors if name not in embedded.factors or not _varies(embedded.factors[name])]:
        raise InputError(f"These pictures do not vary in {', '.join(unknown)}; take factors that `read_factors` names.")
    if len(factors) < 2:
        raise InputError(f"{len(factors)} factors came; interference needs two or more.")
    apart = _apart(factors)
    if not apart.any(1).all():
        raise InputError(f"{', '.join(factors)} are kinds of one thing, which exclude each other; add a factor of another kind.")
    W, halves = _directions(embedded, factors), np.random.default_rng(seed).permutation(len(embedded.factors))
    first, second = (_directions(_some(embedded, rows), factors) for rows in np.array_split(halves, 2))
    cosines = np.where(apart, W @ W.T, np.nan)
    np.fill_diagonal(cosines, np.nan)
    rng, centred = np.random.default_rng(seed), embedded.vectors - embedded.vectors.mean(0)
    drawn = [_mean_cosines(W, rng, draws, apart, like) for like in (None, centred)]
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    table = _per_factor(factors, cosines, W, (first * second).sum(1))
    frame = pd.DataFrame(cosines, index=list(factors), columns=list(factors))
    return Interference(frame, table, *drawn, W.shape[1], float(values.sum() ** 2 / (values**2).sum()))


def _directions(embedded: Embedded, factors: Sequence[str]) -> Float[np.ndarray, "factor d"]:
    """Unit directions of some factors, from a regression on all that vary; `lstsq` takes the shortest where kinds add up to one."""
    names = [name for name in embedded.factors if _varies(embedded.factors[name]) or name in factors]
    z = StandardScaler().fit_transform(embedded.factors[names])
    W = np.linalg.lstsq(z, embedded.vectors - embedded.vectors.mean(0), rcond=1e-6)[0]
    W = W[[names.index(name) for name in factors]]
    return W / np.linalg.norm(W, axis=1, keepdims=True)


def _some(embedded: Embedded, rows: np.ndarray) -> Embedded:
    return Embedded(embedded.vectors[rows], embedded.factors.iloc[rows])


def _apart(factors: Sequence[str]) -> np.ndarray:
    """Which pairs of factors are not kinds of one thing, [factor, factor]; things in the picture do not exclude each other."""
    prefixes = [name.rsplit(": ", 1)[0] for name in factors]
    kinds = [name if prefix in ("thing", "look") else prefix for name, prefix in zip(factors, prefixes, strict=True)]
    return np.array([[a != b for b in kinds] for a in kinds])


def _mean_cosines(W: np.ndarray, rng: np.random.Generator, draws: int, apart: np.ndarray, like: np.ndarray | None) -> np.ndarray:
    """The same mean of the same pairs as for the factors, for `draws` sets of as many random directions."""
    means = []
    for _ in range(draws):
        drawn = random_directions(W[0], len(W), int(rng.integers(2**31)), like)
        means.append(_mean_cosine(np.where(apart, drawn @ drawn.T, np.nan)))
    return np.array(means)


def _mean_cosine(cosines: np.ndarray) -> float:
    """The mean over factors of what each has with the others."""
    return float(np.nanmean(np.nanmean(np.abs(cosines), axis=1)))


def _per_factor(factors: Sequence[str], cosines: np.ndarray, W: np.ndarray, reliability: np.ndarray) -> pd.DataFrame:
    size = np.nan_to_num(np.abs(cosines))
    nearest = size.argmax(1)
    columns = {
        "factor": list(factors),
        "mean cosine": np.nanmean(np.abs(cosines), axis=1),
        "nearest": [factors[i] for i in nearest],
        "cosine": cosines[np.arange(len(factors)), nearest],
        "dimensionality": dimensionality(torch.from_numpy(W.T.copy()).float()).numpy(),
        "reliability": reliability,
    }
    return pd.DataFrame(columns)
