"""A saliency map as a value: it draws itself, and says how much of its mass lies where."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from PIL import Image

from emointerp.errors import InputError
from emointerp.markup import data_uri, thumbnail
from emointerp.models import load_tower, to_image
from emointerp.plots import new_figure
from emointerp.saliency.layers import NoMapError
from emointerp.saliency.methods import METHODS, gradient, method_named
from emointerp.saliency.registers import find_registers, frame
from emointerp.saliency.targets import Target, TowerTarget

TOP = 99.5  # percentile of a map that is drawn as its largest value: a few pixels would darken all others
COLOURS = "inferno"
SMALL = 160  # pixels a side, up to which they are drawn as squares


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """How much each pixel of a picture matters for a target: `map` [height, width] in the picture's own pixels.

    `value` is f of the picture. `raw` is the plain gradient of the same target. `registers` are the boxes of patches that look like
    registers: left, top, right, bottom. Maps of signed methods may be negative; what is drawn and weighed is their size.
    """

    map: Float[np.ndarray, "height width"] = field(repr=False)
    image: Image.Image = field(repr=False)
    method: str
    target: str
    value: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    raw: Float[np.ndarray, "height width"] | None = field(default=None, repr=False)
    registers: Float[np.ndarray, "register 4"] = field(default_factory=lambda: np.zeros((0, 4)), repr=False)

    @property
    def heat(self) -> Float[np.ndarray, "height width"]:
        """The map's size from 0 to 1, cut at its 99.5th percentile, as it is drawn."""
        return heat(self.map)

    def mass(self, mask: Shaped[np.ndarray, "row column"]) -> float:
        """The share of the map's mass inside a mask of the picture's pixels; of a mask in numbers 0 is outside."""
        return mass(self.map, mask)

    def without_registers(self) -> "SaliencyMap":
        """The same map, 0 at the marked patches."""
        kept = self.map.copy()
        for left, top, right, bottom in self.registers.round().astype(int):
            kept[top:bottom, left:right] = 0
        return replace(self, map=kept, settings={**self.settings, "without registers": len(self.registers)})

    def to_frame(self) -> pd.DataFrame:
        """A row a pixel: x, y, value."""
        y, x = np.indices(self.map.shape)
        return pd.DataFrame({"x": x.ravel(), "y": y.ravel(), "value": self.map.ravel()})

    def over(self, share: float = 0.62) -> Image.Image:
        """The heat over the picture in grey, as one picture; `share` of it is the heat's colour."""
        return over(self.image, self.map, share)

    def plot(self) -> Figure:
        """The picture, the plain gradient, and the map, both over the picture in grey; registers are framed."""
        shown = [("the picture", None)] + [("plain gradient", self.raw)] * (self.raw is not None) + [(self.method, self.map)]
        figure, axes = new_figure(1, len(shown), width=2.7 * len(shown), height=3.0)
        for axis, (title, values) in zip(axes, shown, strict=True):
            _show(axis, self.image if values is None else over(self.image, values))
            axis.set_title(title, fontsize=10)
            axis.axis("off")
            if values is not None:
                frame(axis, self.registers)
        figure.suptitle(f"{self.target} = {self.value:.3f}", fontsize=10, x=0.01, ha="left", parse_math=False)
        return figure

    def hover_html(self, width: int = 256) -> str:
        """The picture as HTML that shows the heat while the mouse is over it, or while it has the focus; no script, no kernel.

        Where a page forbids styles, picture and heat stand one after the other.
        """
        label = escape(f"{self.method}, {self.target}")
        picture, hot = (f'src="{data_uri(thumbnail(image))}" width="{width}"' for image in (self.image, self.over()))
        style = (
            "<style>.emointerp-hover{position:relative;display:inline-block;line-height:0}"
            ".emointerp-hover .heat{position:absolute;left:0;top:0;opacity:0;transition:opacity .15s}"
            ".emointerp-hover:hover .heat,.emointerp-hover:focus .heat{opacity:1}</style>"
        )
        both = f'<img {picture} alt="the picture"/><img class="heat" {hot} alt="{label}"/>'
        return f'{style}<span class="emointerp-hover" tabindex="0" title="{label}">{both}</span>'

    def _repr_html_(self) -> str:
        said = escape(f"{self.target} = {self.value:.3f}; {self.method}. Hover for the map.")
        return f'<figure style="margin:0">{self.hover_html()}<figcaption style="font-size:13px">{said}</figcaption></figure>'


def saliency_map(target: Target, picture: Any = None, method: str = "smoothgrad", **settings: Any) -> SaliencyMap:
    """Where in a picture a target's value comes from, by a method of `METHODS` with its settings.

    The picture may be left out for a target of an answer, which has its prompt's. InputError where the target does not move with
    any pixel, as an SAE feature that does not fire, and where the map is 0 everywhere.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> named = ei.saliency.answer(vlm, vlm.prompt(*pair.plus, answer="I felt"), pair.emotion)
    >>> found = ei.saliency_map(named, n=2)
    >>> found.map.shape
    (128, 128)
    """
    if picture is None and target.image is None:
        raise InputError("No picture came; a target of a tower needs one: saliency_map(target, picture).")
    image = target.image if picture is None else to_image(picture)
    found, value = method_named(method)(target, image, **settings), _value(target, image)
    raw = found if method == "gradient" else gradient(target, image)
    _check_moves(found, raw, target, value, method)
    tower = target.tower if isinstance(target, TowerTarget) else load_tower(target.vlm)
    return SaliencyMap(found, image, method, target.name, value, settings, raw, find_registers(tower, image).marked_boxes)


def plot_methods(target: Target, picture: Any, methods: Iterable[str] = tuple(METHODS)) -> Figure:
    """One picture by several methods, each on its own scale over the picture in grey.

    In the place of a method that cannot be had for this target, as rollout for an answer, stands why.
    """
    image, names = to_image(picture), list(methods)
    columns = min(5, len(names) + 1)
    rows = -(-(len(names) + 1) // columns)
    figure, axes = new_figure(rows, columns, width=2.2 * columns, height=2.4 * rows, squeeze=False)
    shown = {"the picture": image} | {name: _drawn(name, target, image) for name in names}
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, drawn) in zip(axes.flat, shown.items(), strict=False):
        if isinstance(drawn, str):
            axis.text(0.5, 0.5, fill(drawn, 26), ha="center", va="center", fontsize=8)
        else:
            _show(axis, drawn)
        axis.set_title(name if isinstance(drawn, Image.Image) else f"{name}: left out", fontsize=10)
    return figure


def _drawn(name: str, target: Target, image: Image.Image) -> Image.Image | str:
    """A method's map over the picture, or why there is none."""
    try:
        return over(image, method_named(name)(target, image))
    except NoMapError as why:
        return str(why)


def _show(axis: Any, image: Image.Image) -> None:
    """A picture; of a small one the pixels are seen, as they are what the map tells of."""
    axis.imshow(image, interpolation="nearest" if max(image.size) <= SMALL else "antialiased")


def mass(values: Float[np.ndarray, "height width"], mask: Shaped[np.ndarray, "row column"]) -> float:
    """The share of a map's mass, signs left out, inside a mask (0 is outside); a map of zeros counts as an even one."""
    mask = np.asarray(mask) != 0
    if mask.shape != values.shape:
        raise InputError(f"The mask has shape {list(mask.shape)}, the map {list(values.shape)}; they must be of one picture.")
    size = np.abs(values)
    return float(size[mask].sum() / size.sum()) if size.any() else float(mask.mean())


def heat(values: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """A map's size from 0 to 1, cut at its 99.5th percentile.

    >>> heat(np.array([[0.0, -2.0], [1.0, 2.0]])).tolist()
    [[0.0, 1.0], [0.5, 1.0]]
    """
    size = np.abs(values)
    top = np.percentile(size, TOP) or size.max() or 1.0
    return np.minimum(size / top, 1.0)


def over(image: Image.Image, values: Float[np.ndarray, "height width"], share: float = 0.62) -> Image.Image:
    """A map's heat over the picture in grey."""
    colour = matplotlib.colormaps[COLOURS](heat(values))[..., :3]
    grey = np.asarray(image.convert("L"), float)[..., None] / 255
    return Image.fromarray((255 * (share * colour + (1 - share) * grey)).round().astype(np.uint8))


@torch.no_grad()
def _value(target: Target, image: Image.Image) -> float:
    return float(target(target.pixels([image])))


def _check_moves(found: np.ndarray, raw: np.ndarray, target: Target, value: float, method: str) -> None:
    if not np.isfinite(found).all():
        raise InputError(f"The map of {target.name!r} holds NaN or infinity; in 16 bits gradients overflow, load in float32.")
    if not raw.any():
        raise InputError(
            f"{target.name!r} is {value:.3g} in this picture and moves with none of its pixels, so there is nothing to show. "
            "A feature that does not fire has no gradient; choose one that fires here."
        )
    if not found.any():
        raise InputError(
            f"{target.name!r} is {value:.3g} in this picture and moves with its pixels, but the map by {method!r} is 0 everywhere "
            "(Grad-CAM keeps only what speaks for a target). Choose another method."
        )
