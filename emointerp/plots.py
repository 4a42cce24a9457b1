"""One style for all figures: quiet, colour-blind safe, a colour per emotion everywhere."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

# Okabe and Ito's palette (2008), one colour an emotion
COLORS = {
    "anger": "#D55E00",
    "disgust": "#009E73",
    "fear": "#7B4FA3",
    "joy": "#E69F00",
    "sadness": "#0072B2",
    "surprise": "#CC79A7",
    "neutral": "#8A8F98",
}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6b7078",
    "axes.prop_cycle": cycler(color=list(COLORS.values())),
    "figure.facecolor": "white",
    "legend.frameon": False,
}


class ShownFigure(Figure):
    """A figure that notebooks show by itself: it belongs to no window and no global list, so it is shown once and nothing leaks."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=85)
        return buffer.getvalue()


def new_figure(rows: int = 1, columns: int = 1, width: float = 7.0, height: float = 4.0, squeeze: bool = True):
    """A figure in the package's style and its axes, `width` and `height` in inches."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(width, height), layout="constrained", dpi=110)
        return figure, figure.subplots(rows, columns, squeeze=squeeze)


def ends(intervals: Iterable[Any]) -> np.ndarray:
    """Means, lower and upper ends of intervals, one row each: [3, n]."""
    return np.array([(i.mean, i.low, i.high) for i in intervals]).T


def band(axis: Any, x: Any, intervals: Iterable[Any], color: str, label: str, style: str = "-") -> None:
    """Means as a line, with their intervals as a band."""
    mean, low, high = ends(intervals)
    axis.plot(x, mean, style, color=color, marker="o", markersize=4, label=label)
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
