"""Can a map be believed? What it does to the target when its pixels go, and whether it lies where the feeling is drawn.

Deletion takes the pixels that a map calls most important away first, and the target should fall fast; insertion puts them into a
blank first, and it should rise fast (Petsiuk et al. 2018). Common metrics barely tell methods from random maps, so these stand
beside every method. So do the map of *another picture*, since faces are mostly in the middle and a map that always lit up the
middle would look good, and the *picture alone*, since ink is where things are drawn, with or without a model. In the drawn world
the truth is known: `Scene.masks()["expression"]`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from PIL import Image, ImageFilter
from tqdm.auto import tqdm

from emointerp.errors import InputError
from emointerp.models import to_image
from emointerp.models.patches import whole
from emointerp.plots import BLUE, GRAY, GREEN, ORANGE, QUIET, YELLOW, ends, new_figure
from emointerp.saliency.layers import NoMapError
from emointerp.saliency.methods import METHODS, method_named, random_map, smoothgrad
from emointerp.saliency.places import place
from emointerp.saliency.targets import Target
from emointerp.saliency.value import mass
from emointerp.saved import Saved
from emointerp.statistics import Interval, holm, ratio_interval, sign_flips, value_interval
from emointerp.world import Scene

ALONE, OTHER, RANDOM = CONTROLS = ("picture alone", "map of another picture", "random")
TOLD = tuple(name for name in METHODS if name not in CONTROLS)
FILLS = ("blur", "mean")
BLUR = 1 / 10  # of the longer side
MEASURES = ("inside", "elsewhere", "deletion", "insertion")
SHOWN = {  # column: what it says, and where it says nothing
    "ratio": ("mass inside / area", 1.0),
    "own": ("mass inside / another's map", 1.0),
    "deletion gain": ("deletion: below random", 0.0),
    "insertion gain": ("insertion: above random", 0.0),
}
TargetOf = Callable[[Any], Target]


@dataclass(frozen=True, eq=False)
class MapCheck(Saved):
    """Maps of many pictures by several methods. `table` has a row a picture, method and draw (of random maps there are several):

    picture, emotion, method, draw; `deletion` and `insertion`, the mean of the target while pixels go or come; `inside`, the share
    of the map's mass in the true mask, `elsewhere`, that of the same method's map of another picture in the same mask, and `area`,
    the mask's share of the picture (NaN for pictures that are no scenes).
    `curves` [row, deletion or insertion, step] are the target's values on the way. `left_out` says why of methods that cannot be
    had for these targets.
    """

    table: pd.DataFrame
    curves: Float[np.ndarray, "row kind step"] = field(repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_frame(self, flips: int = 10_000) -> pd.DataFrame:
        """A row a method, `Interval`s over pictures (paired bootstrap), draws of random maps averaged first.

        `ratio`: mass inside the mask over its area; 1 is a map that does not know where the mask is. `own`: mass inside over that
        of the same method's map of another picture; 1 is a map that knows where faces are, but not this one. `deletion` and
        `insertion` are means of the target; `deletion gain` is how far below a random map's the deletion stays, `insertion gain`
        how far above the insertion comes. `p ratio`, `p deletion`, `p insertion`: that the method is no better than random maps,
        `p own`: than its map of another picture (sign flips over pictures, one-sided), each corrected for the methods (Holm).
        """
        tables = {name: self._by_picture(name) for name in MEASURES}
        tables["area"] = self._by_picture("area")
        rows = {}
        for method in self.methods:
            deleted, inserted = tables["deletion"][method], tables["insertion"][method]
            rows[method] = {
                "ratio": _ratio(tables["inside"][method], tables["area"][method]),
                "own": _ratio(tables["inside"][method], tables["elsewhere"][method]),
                "deletion": value_interval(deleted),
                "insertion": value_interval(inserted),
                "deletion gain": value_interval(tables["deletion"][RANDOM] - deleted),
                "insertion gain": value_interval(inserted - tables["insertion"][RANDOM]),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").join(self._p(tables, flips))

    @property
    def methods(self) -> list[str]:
        """The methods in their order, random maps last."""
        return list(dict.fromkeys(self.table.method))

    def plot(self) -> Figure:
        """For each method the two ratios of mass and the gains over random maps, with their intervals."""
        table = self.to_frame(flips=100)
        shown = {column: said for column, said in SHOWN.items() if any(one.n for one in table[column])}
        figure, axes = new_figure(1, len(shown), width=1.2 + 2.6 * len(shown), height=0.9 + 0.32 * len(table), squeeze=False)
        for axis, (column, (label, nothing)) in zip(axes[0], shown.items(), strict=True):
            _draw_intervals(axis, table[column], nothing)
            axis.set_xlabel(label)
            if axis is not axes[0, 0]:
                axis.set_yticklabels([])
        return figure

    def plot_curves(self, methods: Sequence[str] = ("smoothgrad", "gradient", RANDOM)) -> Figure:
        """The mean target while pixels are deleted and inserted, in the order of each method's maps, but for those left out."""
        methods = [method for method in methods if method not in self.left_out]
        figure, axes = new_figure(1, 2, width=8.4, height=3.2)
        x = np.linspace(0, 1, self.curves.shape[-1])
        colours = dict(zip([m for m in methods if m != RANDOM], (BLUE, ORANGE, GREEN, YELLOW), strict=False))
        for k, (axis, kind) in enumerate(zip(axes, ("deletion", "insertion"), strict=True)):
            for method in methods:
                mean = self.curves[(self.table.method == method).to_numpy(), k].mean(0)
                axis.plot(x, mean, color=colours.get(method, GRAY), label=method)
            axis.set(title=kind.capitalize(), xlabel=f"share of the picture {'taken away' if k == 0 else 'put in'}")
        axes[0].set_ylabel("mean target")
        axes[1].legend(fontsize=9)
        return figure

    def _by_picture(self, column: str) -> pd.DataFrame:
        return self.table.groupby(["picture", "method"])[column].mean().unstack()

    def _p(self, tables: dict[str, pd.DataFrame], flips: int) -> pd.DataFrame:
        """One-sided tests against random maps and against maps of another picture, corrected for the methods."""
        told = [method for method in self.methods if method not in CONTROLS]
        inside, deletion, insertion = (tables[name] for name in ("inside", "deletion", "insertion"))
        better = {
            "p ratio": inside[told].sub(inside[RANDOM], axis=0),
            "p own": inside[told] - tables["elsewhere"][told],
            "p deletion": -deletion[told].sub(deletion[RANDOM], axis=0),
            "p insertion": insertion[told].sub(insertion[RANDOM], axis=0),
        }
        found = {
            name: holm(sign_flips(some.dropna(), flips, "greater").p) for name, some in better.items() if len(some.dropna()) > 1
        }
        return pd.DataFrame(found, index=pd.Index(told, name="method"))


def _ratio(above: pd.Series, below: pd.Series) -> Interval:
    """Of pictures that have both; NaN where none has."""
    both = pd.concat([above, below], axis=1).dropna().to_numpy()
    return ratio_interval(*both.T) if len(both) else Interval(np.nan, np.nan, np.nan, 0)


def _draw_intervals(axis: Any, intervals: pd.Series, nothing: float) -> None:
    """Means and intervals, one above the other; controls in grey, and a line where there is no effect."""
    mean, low, high = ends(intervals)
    y = np.arange(len(intervals))[::-1]
    colours = [GRAY if method in CONTROLS else BLUE for method in intervals.index]
    axis.axvline(nothing, color=QUIET, linewidth=0.8, linestyle=":")
    axis.hlines(y, low, high, color=colours)
    axis.scatter(mean, y, color=colours, s=28, zorder=3)
    axis.set_yticks(y, intervals.index)
    axis.set_ylim(-0.6, len(intervals) - 0.4)


def check_maps(
    target_of: TargetOf,
    pictures: Sequence[Any],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = TOLD,
    *,
    draws: int = 3,
    cells: int = 16,
    steps: int = 10,
    fill: str = "blur",
    seed: int = 0,
    batch: int = 64,
    progress: bool = True,
) -> MapCheck:
    """Maps of pictures by several methods, beside the picture alone, the first method's map of another picture, and random maps.

    `target_of(picture)` gives each picture's target, such as the cosine to the direction of its own emotion. `methods` are names in
    `METHODS`, or a mapping from names to settings: `{"smoothgrad": {"n": 50}}`. There are `draws` random maps a picture. Deletion
    and insertion go in `steps` over `cells` x `cells` cells of the picture, in the order of the map's values, signs and all: a
    method with signs can put last what speaks against the target. What is taken away is blurred, or filled with the mean colour
    (`fill`). A method that cannot be had for these targets, as rollout for answers, is left out with a warning; InputError where
    none is left.
    """
    settings = dict(methods) if isinstance(methods, Mapping) else {name: {} for name in methods}
    _check_asked(settings, pictures, fill, (draws, cells, steps))
    images, targets = [to_image(picture) for picture in pictures], [target_of(picture) for picture in pictures]
    found, left_out = _maps(targets, images, settings, progress)
    rows, curves = [], []
    for i, image in enumerate(tqdm(images, desc="deletion", disable=not progress)):
        other = _resized(next(iter(found[i - 1].values())), image.size)
        maps = [(name, 0, values) for name, values in found[i].items()] + [(OTHER, 0, other)]
        maps += [(RANDOM, draw, random_map(targets[i], image, seed=seed + draws * i + draw)) for draw in range(draws)]
        blank, mask = _blank(image, fill), _expression(pictures[i], image.size)
        for name, draw, values in maps:
            ranks = _ranks(values, cells, seed)
            curves.append(_curves(targets[i], image, blank, ranks, steps, batch))
            deletion, insertion = (float(np.trapezoid(curve, dx=1 / steps)) for curve in curves[-1])
            own, others = (None, None) if mask is None else (values, found[i - 1].get(name))
            known = [np.nan if some is None else mass(_resized(some, image.size), mask) for some in (own, others)]
            area = np.nan if mask is None else float(mask.mean())
            rows.append((i, getattr(pictures[i], "emotion", ""), name, draw, deletion, insertion, *known, area))
    columns = ["picture", "emotion", "method", "draw", "deletion", "insertion", "inside", "elsewhere", "area"]
    return MapCheck(pd.DataFrame(rows, columns=columns), np.array(curves), left_out)


def _maps(
    targets: Sequence[Target], images: Sequence[Image.Image], settings: Mapping[str, Mapping[str, Any]], progress: bool
) -> tuple[list[dict[str, np.ndarray]], dict[str, str]]:
    """Each picture's maps by the methods that all targets have, and the picture alone; and why others are left out."""
    found, left_out = [], {}
    for target, image in zip(tqdm(targets, desc="maps", disable=not progress), images, strict=True):
        maps = {}
        for name, given in settings.items():
            try:
                maps[name] = method_named(name)(target, image, **given)
            except NoMapError as why:
                left_out[name] = str(why)
        found.append(maps | {ALONE: METHODS[ALONE](target, image)})
    if left_out:
        _say_left_out(left_out, settings)
    return [{name: one for name, one in maps.items() if name not in left_out} for maps in found], left_out


def _say_left_out(left_out: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    said = " ".join(f"{name} is left out: {why}" for name, why in left_out.items())
    if set(settings) <= set(left_out):
        raise InputError(f"No method is left to check. {said}")
    warnings.warn(said, stacklevel=4)


@torch.no_grad()
def _curves(
    target: Target, image: Image.Image, blank: Image.Image, ranks: np.ndarray, steps: int, batch: int
) -> Float[np.ndarray, "kind step"]:
    """The target while cells go in the order of their ranks, and while they come."""
    counts = np.linspace(0, ranks.size, steps + 1).round()
    gone = [ranks < count for count in counts] + [ranks >= count for count in counts]
    made = [_mixed(image, blank, mask) for mask in gone]
    values = [target(target.pixels(made[i : i + batch])) for i in range(0, len(made), batch)]
    return torch.cat(values).cpu().numpy().astype(float).reshape(2, -1)


def _mixed(image: Image.Image, blank: Image.Image, gone: Bool[np.ndarray, "row column"]) -> Image.Image:
    """The picture with the blank in the cells that are gone."""
    return Image.composite(blank, image, Image.fromarray(gone.astype(np.uint8) * 255).resize(image.size, Image.Resampling.NEAREST))


def _ranks(values: Float[np.ndarray, "height width"], cells: int, seed: int) -> np.ndarray:
    """Ranks of the cells by what the map has there, 0 the most; ties in a random order."""
    mean = np.asarray(Image.fromarray(values.astype(np.float32)).resize((cells, cells), Image.Resampling.BOX)).ravel()
    order = np.lexsort((np.random.default_rng(seed).random(mean.size), -mean))
    return np.argsort(order).reshape(cells, cells)


def _blank(image: Image.Image, fill: str) -> Image.Image:
    if fill == "blur":
        return image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))
    return Image.new("RGB", image.size, tuple(np.asarray(image).reshape(-1, 3).mean(0).round().astype(int).tolist()))


def _expression(picture: Any, size: tuple[int, int]) -> Bool[np.ndarray, "height width"] | None:
    """The true mask of a scene's expression; None for other pictures, for moods, and where nothing of the expression is seen."""
    if not isinstance(picture, Scene) or not picture.has_face:
        return None
    mask = picture.masks()["expression"]
    return mask if mask.any() else None


def _resized(values: Float[np.ndarray, "height width"], size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    return place(values[None], [whole(size)], size)


def _check_asked(settings: Mapping[str, Any], pictures: Sequence[Any], fill: str, numbers: tuple[int, ...]) -> None:
    if not settings or set(settings) & set(CONTROLS):
        raise InputError(f"methods are {', '.join(settings) or 'none'}; name some of {', '.join(TOLD)} (controls always come).")
    if len(pictures) < 2:
        raise InputError(f"{len(pictures)} pictures came; a check needs two or more, better thirty.")
    if fill not in FILLS:
        raise InputError(f"fill is {fill!r}; expected {' or '.join(map(repr, FILLS))}.")
    if min(numbers) < 1:
        raise InputError(f"draws, cells and steps are {', '.join(map(str, numbers))}; each must be 1 or more.")


# settings


@dataclass(frozen=True, eq=False)
class Tuning(Saved):
    """SmoothGrad under several settings. `table` has a row a picture, sigma and n: picture, sigma, n, inside, area."""

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a sigma and n: `ratio`, mass inside the true mask over its area (`Interval` over pictures)."""
        groups = self.table.groupby(["sigma", "n"])
        rows = {at: ratio_interval(some.inside, some.area) for at, some in groups}
        return pd.DataFrame({"ratio": pd.Series(rows)}).rename_axis(["sigma", "n"])

    @property
    def best(self) -> dict[str, Any]:
        """The settings with the largest ratio, as `smoothgrad` takes them."""
        ratio = self.to_frame().ratio
        sigma, n = max(ratio.index, key=lambda at: ratio[at].mean)
        return {"sigma": float(sigma), "n": int(n)}

    def plot(self) -> Figure:
        """The ratio by sigma, a line for each n."""
        figure, axis = new_figure(width=6.0, height=3.2)
        for (n, some), colour in zip(self.to_frame().groupby("n"), (GRAY, YELLOW, BLUE, GREEN), strict=False):
            mean, low, high = ends(some.ratio)
            sigmas = some.index.get_level_values("sigma")
            axis.plot(sigmas, mean, color=colour, marker="o", markersize=4, label=f"n = {n}")
            axis.fill_between(sigmas, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.axhline(1, color=QUIET, linewidth=0.8, linestyle=":")
        axis.set(xlabel="sigma, in standard deviations of the picture", ylabel="mass inside / area")
        axis.legend(fontsize=9)
        return figure


def tune_smoothgrad(
    target_of: TargetOf,
    scenes: Sequence[Scene],
    sigmas: Sequence[float] = (0.05, 0.15, 0.3, 0.6),
    ns: Sequence[int] = (4, 16),
    seed: int = 0,
    progress: bool = True,
) -> Tuning:
    """How much of SmoothGrad's mass lies on the expression under several settings; to be chosen on the split "tuning"."""
    rows = []
    for i, scene in enumerate(tqdm(scenes, desc="settings", disable=not progress)):
        mask = _expression(scene, scene.image().size)
        if mask is None:
            continue
        target, image = target_of(scene), scene.image()
        for sigma in sigmas:
            for n in ns:
                inside = mass(smoothgrad(target, image, n, sigma, seed=seed + i), mask)
                rows.append((i, sigma, n, inside, float(mask.mean())))
    if not rows:
        raise InputError("None of these scenes shows an expression; give scenes with faces.")
    return Tuning(pd.DataFrame(rows, columns=["picture", "sigma", "n", "inside", "area"]))
