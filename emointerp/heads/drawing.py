"""How maps of heads look: layers upwards, heads to the right, a dot on what passed its test."""

from typing import Any

import pandas as pd

from emointerp.plots import INK


def means(column: pd.Series) -> pd.Series:
    """The means of a column of intervals."""
    return column.map(lambda interval: interval.mean)


def draw_map(axis: Any, values: pd.Series, marked: pd.Series | None = None, **options: Any) -> Any:
    """Values by (layer, head) as a picture; dots on the cells that are `marked`."""
    grid = values.unstack("head").sort_index().sort_index(axis=1)
    drawn = axis.imshow(grid, origin="lower", aspect="auto", **{"cmap": "RdBu_r"} | options)
    axis.set_xticks(range(grid.shape[1])[:: _step(grid.shape[1])], grid.columns[:: _step(grid.shape[1])])
    axis.set_yticks(range(len(grid))[:: _step(len(grid))], grid.index[:: _step(len(grid))])
    axis.set(xlabel="head", ylabel="layer")
    passed = [] if marked is None else [(grid.columns.get_loc(head), grid.index.get_loc(i)) for i, head in marked.index[marked]]
    for x, y in passed:
        axis.plot(x, y, "o", color=INK, markeredgecolor="white", markersize=5)
    return drawn


def _step(n: int) -> int:
    """Every how many cells a number stands on an axis."""
    return -(-n // 16)
