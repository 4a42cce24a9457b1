"""Panels as figures: text wrapped by its true width, emotion words in their colours, pictures and bars beside it.

Matplotlib wraps no text that is marked in parts, hence `Sheet`, whose one axis counts points from the top left.
"""

import io
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from PIL import Image

from emointerp.emotions import EmotionWord
from emointerp.plots import COLORS, GRAY, INK, ORANGE, ShownFigure, drawable, new_figure
from emointerp.widgets.tinted import RAMP, tint
from emointerp.widgets.token_strip import Chip

FAINT, RULE = "#5b616b", "#d4d7dc"  # small words, and lines between parts
EDGE = 8  # points around everything
OPACITY = 0.6  # of colours over pictures, as in `PatchGrid`
LEADING = 1.45  # height of a line, as a multiple of the letters'
SPACE = 0.32  # width of a space, likewise


class Sheet:
    """A figure under construction: things are put at points from its top left, and each call gives back where the thing ends.

    >>> sheet = Sheet(200)
    >>> round(sheet.text(0, 0, "a story of two lines, as it is too long for one of them", 150, size=10))
    29
    """

    def __init__(self, width: float):
        self.width, self.bottom = width, 0.0
        self._draws: list[Any] = []
        self._late: list[Any] = []  # on top of all the others
        self._said: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        width: float | None = None,
        *,
        marks: Sequence[EmotionWord] = (),
        size: float = 10,
        color: str = INK,
        weight: str = "normal",
    ) -> float:
        """Text in lines of at most `width`, `marks` on their emotions' colours; gives where it ends below."""
        text = drawable(text)
        self._said.append(text)
        for line in _lines(_pieces(text, marks), self.width - x if width is None else width, size, weight):
            middle = y + 0.5 * LEADING * size
            for i, (words, emotion, spaced) in enumerate(line):
                self._draws.append((_draw_words, x, middle, words, emotion, size, color, weight, spaced if i else None))
            y += LEADING * size
        return self._reach(y)

    def picture(self, x: float, y: float, image: Image.Image, width: float) -> float:
        """A picture of a width; gives where it ends below."""
        height = width * image.height / image.width
        self._draws.append((_draw_picture, x, y, np.asarray(image.convert("RGB")), width, height))
        return self._reach(y + height)

    def box(self, x: float, y: float, width: float, height: float, color: Any, edge: Any = "none", line: float = 1.5) -> float:
        """A filled or outlined box; gives where it ends below."""
        self._draws.append((_draw_box, x, y, width, height, color, edge, line))
        return self._reach(y + height)

    def rule(self, x: float, y: float, width: float) -> float:
        """A thin line, with room above and below."""
        return self.box(x, y + 5, width, 0.8, RULE) + 4

    def table(
        self, x: float, y: float, rows: Sequence[Sequence[str]], columns: Sequence[float], size: float = 9, bold: int | None = None
    ) -> float:
        """Rows of cells in columns of these widths; row `bold` stands out."""
        for i, row in enumerate(rows):
            y = self.row(x, y, row, columns, size, weight="bold" if i == bold else "normal")
        return y

    def row(self, x: float, y: float, cells: Sequence[str], columns: Sequence[float], size: float, **looks: str) -> float:
        """Cells beside one another in columns of these widths."""
        ends = []
        for cell, width in zip(cells, columns, strict=True):
            ends.append(self.text(x, y, cell, width - 6, size=size, **looks))
            x += width
        return max(ends) + 1

    def patches(
        self, x: float, y: float, width: float, image: Image.Image, boxes: Any, values: Sequence[float | None], selected: int = -1
    ) -> float:
        """A picture under the colours of its visual tokens, as `PatchGrid` has them, the selected one outlined."""
        scale, bottom = width / image.width, self.picture(x, y, image, width)
        for i, (box, value) in enumerate(zip(boxes, values, strict=True)):
            if value is None or not np.isfinite(box).all():
                continue
            left, top, right, low = (scale * end for end in box)
            place = (x + left, y + top, right - left, low - top)
            self.box(*place, (*to_rgb(tint(value)[0]), OPACITY))
            if i == selected:
                self._late += [(_draw_box, *place, "none", color, line) for color, line in (("black", 3.6), ("white", 1.6))]
        return bottom

    def ramp(self, x: float, y: float, width: float, low: str, high: str) -> float:
        """The colour bar of `patches`, with its ends."""
        bottom = self.text(x, y, low, 40, size=8, color=FAINT)
        self.text(x + width - 28, y, high, 40, size=8, color=FAINT)
        colors = np.array([[(*to_rgb(color), OPACITY) for color, _ in RAMP]])
        self._draws.append((_draw_picture, x + 34, y + 2, colors, width - 68, 7))
        return bottom

    def chips(
        self, x: float, y: float, chips: Sequence[Chip], values: Sequence[float | None], selected: int = -1, size: float = 8
    ) -> float:
        """Tokens as `TokenStrip` has them, in lines as wide as there is room."""
        left, height = x, 1.7 * size
        for chip in chips:
            tag = f"{chip.tag} " if chip.tag else ""
            before, width = _extent(tag, size, "normal"), _extent(chip.text, size, "normal") + 6
            if left > x and left + before + width > self.width:
                left, y = x, y + height + 4
            color, ink = (tint(values[chip.first]) if len(values) and chip.first == chip.last else None) or ("none", INK)
            chosen = chip.first <= selected <= chip.last
            if tag:
                self._draws.append((_draw_words, left, y + height / 2, tag, None, size, FAINT, "normal"))
            left += before
            self.box(left, y, width, height, color, ORANGE if chosen else GRAY, 2.2 if chosen else 0.6)
            self._draws.append((_draw_words, left + 3, y + height / 2, chip.text, None, size, ink, "normal"))
            left += width + 4
        return y + height

    def bar(self, x: float, y: float, width: float, share: float, color: str) -> None:
        """A bar that fills a share of its track."""
        self.box(x, y, width, 6, f"{GRAY}33")
        self.box(x, y, width * share, 6, color)

    def figure(self, title: str = "") -> ShownFigure:
        """The figure, as high as what it holds; its words are its alternative text."""
        width, height = self.width + 2 * EDGE, self.bottom + 2 * EDGE
        figure, axis = new_figure(width=width / 72, height=height / 72)
        figure.set_layout_engine("none")
        axis.set_position([0, 0, 1, 1])
        axis.axis("off")
        for draw, *what in [*self._draws, *self._late]:
            draw(axis, *what)
        axis.set(xlim=(-EDGE, self.width + EDGE), ylim=(self.bottom + EDGE, -EDGE), aspect="auto")
        figure.alt = " ".join(f"{title}: {' | '.join(self._said)}".split())
        return figure

    def _reach(self, y: float) -> float:
        self.bottom = max(self.bottom, y)
        return y


def image_of(figure: Figure, dpi: int = 250) -> Image.Image:
    """A figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return Image.open(buffer)


def cell_colors(names: Iterable[str], pale: bool = False) -> list[str]:
    """The colours of a cell that names emotions: mixed with white, which black reads well on; paler where `pale`."""
    share = 0.2 if pale else 0.6
    return [_mixed(COLORS.get(name, GRAY), share) for name in names] or [_mixed(GRAY, 0.12)]


def _mixed(color: str, share: float) -> str:
    """A colour over white.

    >>> _mixed("#000000", 0.5)
    '#808080'
    """
    return "#" + "".join(f"{round(255 * (1 - share + share * c)):02x}" for c in to_rgb(color))


def _pieces(text: str, marks: Sequence[EmotionWord]) -> list[tuple[str, str | None]]:
    """Words of a text in order, each with the emotion of the mark it lies in ("" for a feeling beyond the six), None for none."""
    pieces, at = [], 0
    for mark in marks:
        pieces += [(word, None) for word in _words(text[at : mark.start])]
        pieces += [(word, mark.emotion or "") for word in _words(text[mark.start : mark.end])]
        at = mark.end
    return pieces + [(word, None) for word in _words(text[at:])]


def _words(text: str) -> list[str]:
    """Words, each with the space that follows it.

    >>> _words(" two  words.")
    [' ', 'two ', 'words.']
    """
    words, tail = text.split(), " " if text[-1:].isspace() else ""
    spaced = [f"{word} " for word in words[:-1]] + [words[-1] + tail] if words else []
    return [" "] * bool(text[:1].isspace()) + spaced if text else []


def _lines(
    pieces: Sequence[tuple[str, str | None]], width: float, size: float, weight: str
) -> list[list[tuple[str, str | None, bool]]]:
    """Lines that fit a width, as runs of words of one look; what has no space between stays together."""
    lines: list[list[tuple[str, str | None]]] = [[]]
    at = 0.0
    for part in _unbroken(pieces):
        whole = sum(_extent(word, size, weight) for word, _ in part) - _extent(" ", size, weight) * part[-1][0].endswith(" ")
        if lines[-1] and at + whole > width:
            lines.append([])
            at = 0.0
        lines[-1] += [piece for piece in part if piece[0].strip() or lines[-1]]
        at += sum(_extent(word, size, weight) for word, _ in part) if lines[-1] else 0.0
    return [_runs(line) for line in lines]


def _runs(line: Sequence[tuple[str, str | None]]) -> list[tuple[str, str | None, bool]]:
    """Words of one look that follow one another: as one text, its emotion, and whether a space stands before it."""
    runs: list[tuple[str, str | None]] = []
    for word, emotion in line:
        if runs and emotion == runs[-1][1]:
            runs[-1] = (runs[-1][0] + word, emotion)
        else:
            runs.append((word, emotion))
    texts = ["", *(text for text, _ in runs)]
    return [
        (text.strip(), emotion, before.endswith(" ") or text.startswith(" "))
        for before, (text, emotion) in zip(texts, runs, strict=False)
    ]


def _unbroken(pieces: Sequence[tuple[str, str | None]]) -> list[list[tuple[str, str | None]]]:
    """Pieces joined where no space lies between them, as between a word and its full stop."""
    parts: list[list[tuple[str, str | None]]] = []
    for piece in pieces:
        if parts and not parts[-1][-1][0].endswith(" "):
            parts[-1].append(piece)
        else:
            parts.append([piece])
    return parts


def _extent(word: str, size: float, weight: str) -> float:
    """The width of a word with its last space, in points."""
    font = _font(weight)
    space = 0.37 * word.endswith(" ")  # a little more than there is: renderers round letters up, and lines must not run over
    return size * (space + (text_to_path.get_text_width_height_descent(word.rstrip(), font, False)[0] if word.strip() else 0.0))


@cache
def _font(weight: str) -> FontProperties:
    return FontProperties(size=1, weight=weight)


def _draw_words(
    axis: Any, x: float, y: float, words: str, emotion: str | None, size: float, color: str, weight: str, spaced: bool | None = None
) -> None:
    """Words at `x`, or, with `spaced`, right behind those drawn last, with a space between or none: they know where they end."""
    looks = {"fontsize": size, "color": color, "weight": weight, "va": "center_baseline", "parse_math": False}
    if emotion is not None:
        tint = COLORS.get(emotion, GRAY)
        box = {"boxstyle": "round,pad=0.12,rounding_size=0.2", "linewidth": 0.8}
        looks["bbox"] = box | {"facecolor": f"{tint}33", "edgecolor": tint}
    if spaced is None:
        axis.text(x, y, words, **looks)
    else:
        place = {"xy": (1, y), "xycoords": (axis.texts[-1], axis.transData), "textcoords": "offset points"}
        axis.annotate(words, xytext=(SPACE * size * spaced, 0), **place, **looks)


def _draw_picture(axis: Any, x: float, y: float, pixels: np.ndarray, width: float, height: float) -> None:
    axis.imshow(pixels, extent=(x, x + width, y + height, y), interpolation="lanczos", aspect="auto")


def _draw_box(axis: Any, x: float, y: float, width: float, height: float, color: Any, edge: Any, line: float) -> None:
    axis.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=edge, linewidth=line))
