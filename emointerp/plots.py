"""One style for all figures: quiet, colour-blind safe, a colour per emotion everywhere, and words for those who cannot see them."""

import io
import re
from collections.abc import Iterable
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

# One colour an emotion, from Okabe and Ito's palette (2008), moved until no two come close for colour-blind readers either; the
# style has the same cycle
COLORS = {
    "anger": "#D55E00",
    "disgust": "#009E73",
    "fear": "#7B4FA3",
    "joy": "#E69F00",
    "sadness": "#2E8BCB",
    "surprise": "#CC79A7",
    "neutral": "#757A82",
}
# of series that are no emotion: the palette as it was published, and grays for text, lines and what is beside the point
BLUE, SKY, GREEN, YELLOW, ORANGE, PINK = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
INK, QUIET, GRAY, PALE = "#23262d", "#6b7078", "#8A8F98", "#c9ccd1"
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # no font has them, and no SVG may
STYLE = "emointerp.plots"  # plots.mplstyle, by the name that matplotlib.style.use takes


class ShownFigure(Figure):
    """A figure that notebooks show by itself: it belongs to no window and no global list, so it is shown once and nothing leaks.

    `alt` says in words what it shows; unless it is set, it is made of titles, axes and legends. Words are drawn as they are: a `$`
    in a file's name, an event or a token begins no formula, and what no font can be asked for becomes a question mark.
    """

    _alt: str | None = None

    @property
    def alt(self) -> str:
        """What the figure shows, in words; goes with the picture into stored notebooks, pages and the site."""
        return self._alt or described(self)

    @alt.setter
    def alt(self, words: str) -> None:
        self._alt = words

    def draw(self, renderer: Any) -> None:
        """As matplotlib draws, but for formulas, of which only numbers on axes are some (powers of ten)."""
        numbers = {text for axis in self.axes for text in _numbers(axis)}
        for text in self.findobj(Text):
            if text not in numbers:
                text.set(parse_math=False, text=drawable(text.get_text()))
        super().draw(renderer)

    def __repr__(self) -> str:
        return self.alt

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=85)
        return buffer.getvalue(), {"alt": self.alt}


def new_figure(rows: int = 1, columns: int = 1, width: float = 7.0, height: float = 4.0, squeeze: bool = True):
    """A figure in the package's style and its axes, `width` and `height` in inches."""
    from matplotlib import style

    with style.context(STYLE):
        figure = ShownFigure(figsize=(width, height), layout="constrained", dpi=110)
        return figure, figure.subplots(rows, columns, squeeze=squeeze)


def described(figure: Figure) -> str:
    """A figure in words: its titles, what is on its axes, and its legends; panels that would read alike are named once.

    >>> figure, axis = new_figure()
    >>> _ = axis.plot([0, 1], label="fear"), axis.set(title="Lens", xlabel="layer", ylabel="probability")
    >>> described(figure)
    'Figure: Lens: probability by layer; fear.'
    """
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    parts = [figure.get_suptitle(), *map(_panel, figure.axes), ", ".join(legends)]
    told = ". ".join(dict.fromkeys(" ".join(part.split()) for part in parts if part.strip()))
    return shorten(f"Figure: {told or 'without titles'}.", 600, placeholder=" …")


def drawable(text: str) -> str:
    """A text that can be drawn: controls and halves of surrogate pairs (of file names that are not UTF-8) become question marks.

    >>> drawable("caf\\udce9.png")
    'caf?.png'
    """
    return CONTROLS.sub("?", text.encode("utf-8", "replace").decode())


def _numbers(axis: Axes) -> list[Text]:
    """What is written on ticks by matplotlib's own formatters of numbers."""
    return [
        text
        for of in (axis.xaxis, axis.yaxis)
        for minor, formatter in ((False, of.get_major_formatter()), (True, of.get_minor_formatter()))
        if isinstance(formatter, ScalarFormatter | LogFormatter)
        for text in of.get_ticklabels(minor=minor)
    ]


def _panel(axis: Axes) -> str:
    """One panel in words: its title, y by x, its legend or its named ticks."""
    title = next((t for t in map(axis.get_title, ("left", "center", "right")) if t), "")
    if not axis.axison:
        return title
    x, y = axis.get_xlabel(), axis.get_ylabel()
    plotted = f"{y} by {x}" if x and y else x or y
    _, labels = axis.get_legend_handles_labels()
    named = ", ".join(dict.fromkeys(labels)) or _ticks(axis)
    return ": ".join(filter(None, (title, "; ".join(filter(None, (plotted, named))))))


def _ticks(axis: Axes, most: int = 10) -> str:
    """Names on the ticks, where they are words and few."""
    numbers = set(_numbers(axis))
    labels = [label for of in (axis.yaxis, axis.xaxis) for label in of.get_ticklabels() if label not in numbers]
    words = [name for name in dict.fromkeys(label.get_text() for label in labels) if any(map(str.isalpha, name))]
    return ", ".join(words) if len(words) <= most else ""


def ends(intervals: Iterable[Any]) -> np.ndarray:
    """Means, lower and upper ends of intervals, one row each: [3, n]."""
    return np.array([(i.mean, i.low, i.high) for i in intervals]).T


def band(axis: Any, x: Any, intervals: Iterable[Any], color: str, label: str, style: str = "-") -> None:
    """Means as a line, with their intervals as a band."""
    mean, low, high = ends(intervals)
    axis.plot(x, mean, style, color=color, marker="o", markersize=4, label=label)
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
