"""Pictures in order, as a gallery finds them: a frame to compute with, a sheet to look at."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emointerp.errors import InputError
from emointerp.models import Tower
from emointerp.models.images import to_image
from emointerp.plots import COLORS, QUIET, new_figure

MARK = COLORS["anger"]
SIDE = 256  # pixels of a picture on a sheet


@dataclass(frozen=True)
class Found:
    """`table` has a row a picture, the first the best: `path` below the folder `pictures`, `value`, and of patches `patch`."""

    title: str
    table: pd.DataFrame = field(repr=False)
    pictures: Path = field(repr=False)

    def __len__(self) -> int:
        return len(self.table)

    def to_frame(self) -> pd.DataFrame:
        """A row a picture."""
        return self.table.copy()

    @property
    def files(self) -> list[Path]:
        """Where the pictures lie."""
        return [self.pictures / path for path in self.table["path"]]

    def plot(self, columns: int = 8, most: int = 48, tower: Tower | None = None) -> Figure:
        """A sheet of the first pictures, each with its value; with the tower, the patch that a value comes from is framed.

        A picture that is no longer there, or cannot be read, leaves its place empty.
        """
        if not len(self):
            raise InputError(f"{self.title}: no picture was found, so there is none to draw.")
        shown = self.table.head(most)
        columns = min(columns, len(shown))
        rows = -(-len(shown) // columns)
        figure, axes = new_figure(rows, columns, width=1.25 * columns, height=1.4 * rows + 0.3, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, row, file in zip(axes.flat, shown.itertuples(), self.files, strict=False):
            self._draw(axis, file, tower, getattr(row, "patch", None))
            axis.set_title(f"{row.value:.2f}", fontsize=8, fontweight="normal", loc="center", pad=2)
        figure.suptitle(self.title, x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)
        return figure

    def _draw(self, axis: Any, file: Path, tower: Tower | None, patch: int | None) -> None:
        try:
            picture = to_image(file)
        except InputError:
            axis.text(0.5, 0.5, "cannot\nbe read", ha="center", va="center", fontsize=7, color=QUIET, transform=axis.transAxes)
            return
        width, height = picture.size
        small = picture.copy()
        small.thumbnail((SIDE, SIDE))
        axis.imshow(small, extent=(0, width, height, 0), interpolation="lanczos")
        if tower is not None and patch is not None:
            left, top, right, bottom = tower.boxes(picture.size)[patch]
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=MARK, linewidth=1.5))
