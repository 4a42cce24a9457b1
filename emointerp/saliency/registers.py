"""Registers: patches of the background whose vectors are far longer than others'.

Towers that were trained long on much data keep notes about the whole picture in patches that show nothing (Darcet et al. 2024).
Maps light up there for no reason in the picture, so such patches are found, framed in figures, and may be left out.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from tqdm.auto import tqdm

from emointerp.models import to_image
from emointerp.models.images import as_pictures
from emointerp.models.towers import Tower
from emointerp.plots import new_figure
from emointerp.saliency.layers import NoMapError, in_rows, kept_outputs, layer_boxes, tower_layers

LAYERS = 2  # the last ones of a tower, all of which must show it
THRESHOLD = 6.0  # robust standard deviations
TIMES = 2.0  # the median length; lengths that hardly differ have large z-scores too
PLAIN = 0.25  # the share of a picture's patches, those that show least, that counts as background
NORMAL = 1.4826  # median absolute deviations to a standard deviation, of a normal distribution


@dataclass(frozen=True, eq=False)
class Registers:
    """Lengths of a picture's patches in a tower's last layers.

    `z` are robust z-scores, `(norm - median) / (1.4826 MAD)`, in each layer; `spread` is the standard deviation of the picture's
    grey levels inside each patch. A patch is `high` where z is above the threshold and the length twice the median or more, in each
    of these layers; it is `marked` where it also is background, one of the quarter of patches that show least.
    """

    image: Image.Image = field(repr=False)
    boxes: Float[np.ndarray, "patch 4"] = field(repr=False)
    norms: Float[np.ndarray, "layer patch"] = field(repr=False)
    spread: Float[np.ndarray, " patch"] = field(repr=False)
    threshold: float = THRESHOLD

    @property
    def z(self) -> Float[np.ndarray, "layer patch"]:
        """Robust z-scores of the norms."""
        return robust_z(self.norms)

    @property
    def high(self) -> Bool[np.ndarray, " patch"]:
        """Patches that are far longer than others, whatever they show."""
        return ((self.z > self.threshold) & (self.norms >= TIMES * np.median(self.norms, 1, keepdims=True))).all(0)

    @property
    def background(self) -> Bool[np.ndarray, " patch"]:
        """The quarter of the patches that show least, and those that show as little."""
        return self.spread <= np.nanquantile(self.spread, PLAIN)

    @property
    def marked(self) -> Bool[np.ndarray, " patch"]:
        """Long patches of the background."""
        return self.high & self.background

    @property
    def marked_boxes(self) -> Float[np.ndarray, "register 4"]:
        """Where the marked patches lie in the picture."""
        return self.boxes[self.marked & ~np.isnan(self.boxes).any(1)]

    def to_frame(self) -> pd.DataFrame:
        """A row a patch: norm and z in the last layer, spread, high, background, marked."""
        columns = {"norm": self.norms[-1], "z": self.z[-1], "spread": self.spread}
        return pd.DataFrame({**columns, "high": self.high, "background": self.background, "marked": self.marked})

    def plot(self) -> Figure:
        """The picture with the marked patches framed, and the norms of the last layer, patch by patch."""
        figure, axes = new_figure(1, 2, width=6.4, height=3.0)
        side = round(len(self.boxes) ** 0.5)
        axes[0].imshow(self.image)
        frame(axes[0], self.marked_boxes)
        drawn = axes[1].imshow(self.norms[-1].reshape(side, -1), cmap="viridis", vmin=0)
        figure.colorbar(drawn, ax=axes[1], label="length of the patch's vector")
        for axis, title in zip(axes, (f"{self.marked.sum()} marked", "last layer"), strict=True):
            axis.set_title(title, fontsize=10)
            axis.axis("off")
        return figure


def robust_z(values: Float[np.ndarray, "layer patch"]) -> Float[np.ndarray, "layer patch"]:
    """Distances from the median of each layer, in robust standard deviations; 0 where all are equal.

    >>> robust_z(np.array([[1.0, 2.0, 3.0, 4.0, 100.0]])).round(1).tolist()
    [[-1.3, -0.7, 0.0, 0.7, 65.4]]
    """
    off = values - np.median(values, 1, keepdims=True)
    scale = NORMAL * np.median(np.abs(off), 1, keepdims=True)
    return np.divide(off, scale, out=np.zeros_like(off), where=scale > 0)


def find_registers(tower: Tower, picture: Any, layers: int = LAYERS, threshold: float = THRESHOLD) -> Registers:
    """Lengths of a picture's patches in the last `layers` layers of a tower, and which of them look like registers."""
    image = to_image(picture)
    boxes, norms = _lengths(tower, image, layers)
    return Registers(image, boxes, norms, _spread(image, boxes), threshold)


def count_registers(tower: Tower, pictures: Any, progress: bool = True, **settings: Any) -> pd.DataFrame:
    """A row a picture: how many patches are `high`, how many of these `marked`, of how many `patches`; and in the last layer the

    `largest z`, and the `longest` patch in median lengths.
    """
    shown = tqdm(as_pictures(pictures), desc="registers", disable=not progress)
    found = [find_registers(tower, picture, **settings) for picture in shown]
    rows = [
        (
            int(f.high.sum()),
            int(f.marked.sum()),
            len(f.boxes),
            float(f.z[-1].max()),
            float(f.norms[-1].max() / np.median(f.norms[-1])),
        )
        for f in found
    ]
    return pd.DataFrame(rows, columns=["high", "marked", "patches", "largest z", "longest"])


def frame(axis: Any, boxes: Float[np.ndarray, "box 4"]) -> None:
    """Boxes framed in white on black, which shows on any picture."""
    for left, top, right, bottom in boxes - 0.5:
        for colour, width in (("black", 3.0), ("white", 1.2)):
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width))


@torch.no_grad()
def _lengths(
    tower: Tower, image: Image.Image, layers: int
) -> tuple[Float[np.ndarray, "patch 4"], Float[np.ndarray, "layer patch"]]:
    """Where patches lie and how long they are in the last layers; after the last only, of towers whose order is not known."""
    pixels = tower.pixels([image])
    try:
        last = tower_layers(tower)[-layers:]
    except NoMapError:
        return tower.boxes(image.size), tower.patches(pixels).float().norm(dim=-1).cpu().numpy()
    with kept_outputs(last) as kept:
        tower.patches(pixels)
    norms = [in_rows(tower, hidden)[0].float().norm(dim=-1).cpu().numpy() for hidden in kept]
    return layer_boxes(tower, image.size), np.stack(norms).astype(float)


def _spread(image: Image.Image, boxes: Float[np.ndarray, "patch 4"]) -> Float[np.ndarray, " patch"]:
    grey = np.asarray(image.convert("L"), float)

    def inside(box: np.ndarray) -> float:
        if np.isnan(box).any():
            return np.nan
        left, top, right, bottom = box.round().astype(int)
        return float(grey[top : max(bottom, top + 1), left : max(right, left + 1)].std())

    return np.array([inside(box) for box in boxes])
