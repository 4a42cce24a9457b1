"""A small drawing board on matplotlib's Agg rasteriser: anti-aliased shapes in, pixels and exact masks out.

Agg comes with matplotlib, which the package needs anyway; the few shapes here are ours because pictures in milliseconds
need paths sent straight to the rasteriser, without figures and artists.
"""

from contextlib import contextmanager

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, TransformedPath

SIZE = 128
_CIRCLE = Path.unit_circle()


def ellipse(x: float, y: float, rx: float, ry: float | None = None, angle: float = 0.0) -> Path:
    """Ellipse around (x, y) with the given radii, turned by `angle` degrees."""
    place = Affine2D().scale(rx, rx if ry is None else ry).rotate_deg(angle).translate(x, y)
    return _CIRCLE.transformed(place)


def polygon(*points: tuple[float, float]) -> Path:
    """Closed polygon through the points."""
    return Path([*points, points[0]], closed=True)


def polyline(*points: tuple[float, float]) -> Path:
    """Open line through the points."""
    return Path(list(points))


def box(x: float, y: float, width: float, height: float, radius: float = 0.0) -> Path:
    """Rectangle with its upper left corner at (x, y) and rounded corners."""
    r = min(radius, width / 2, height / 2)
    x1, y1 = x + width, y + height
    corners = [(x + r, y), (x1 - r, y), (x1, y), (x1, y + r), (x1, y1 - r), (x1, y1), (x1 - r, y1)]
    corners += [(x + r, y1), (x, y1), (x, y1 - r), (x, y + r), (x, y), (x + r, y)]
    codes = [1, 2, 3, 3, 2, 3, 3, 2, 3, 3, 2, 3, 3]
    return Path(corners, codes)


def arc(x0: float, y0: float, x1: float, y1: float, bulge: float) -> Path:
    """Curve from (x0, y0) to (x1, y1) whose middle lies `bulge` below the chord (y points down)."""
    middle = ((x0 + x1) / 2, (y0 + y1) / 2 + 2 * bulge)
    return Path([(x0, y0), middle, (x1, y1)], [1, 3, 3])


def smooth(points: list[tuple[float, float]], closed: bool = True) -> Path:
    """Soft outline whose control points are `points`: quadratic segments that meet in the middles of the sides."""
    p = np.asarray(points, float)
    if not closed:
        middles = (p[1:-2] + p[2:-1]) / 2
        verts = [p[0]] + [v for c, m in zip(p[1:-2], middles, strict=True) for v in (c, m)] + [p[-2], p[-1]]
    else:
        middles = (p + np.roll(p, -1, axis=0)) / 2
        verts = [middles[-1]] + [v for c, m in zip(p, middles, strict=True) for v in (c, m)]
    return Path(verts, [1] + [3] * (len(verts) - 1))


class Canvas:
    """Square board with x to the right and y down, both from 0 to 1.

    `tag(name)` marks what is drawn inside it; with `masks=True` the touched pixels of each tag are kept.
    """

    def __init__(self, masks: bool = False, size: int = SIZE):
        self.size = size
        self.transform = Affine2D()
        self._board = RendererAgg(size, size, 72)
        self._pixels = Affine2D().scale(size, -size).translate(0, size)
        self._mask_boards: dict[str, RendererAgg] | None = {} if masks else None
        self._tags: tuple[str, ...] = ()
        self._clip: TransformedPath | None = None
        self._kept: list[TransformedPath] = []  # Agg knows the last clip by its address, so none may die before the board

    @contextmanager
    def tag(self, *names: str):
        """Everything drawn inside belongs to these masks."""
        before, self._tags = self._tags, self._tags + names
        yield
        self._tags = before

    @contextmanager
    def placed(self, transform: Affine2D):
        """Draw in coordinates of one's own, put in place by `transform`."""
        before, self.transform = self.transform, transform + self.transform
        yield
        self.transform = before

    @contextmanager
    def clipped(self, path: Path):
        """Draw inside `path` only."""
        before, self._clip = self._clip, TransformedPath(path, self.transform + self._pixels)
        self._kept.append(self._clip)
        yield
        self._clip = before

    def fill(self, path: Path, color, alpha: float = 1.0) -> None:
        """Fill a path."""
        self._draw(path, color, alpha, 0.0)

    def stroke(self, path: Path, color, width: float, alpha: float = 1.0) -> None:
        """Draw along a path; `width` in the canvas's own unit (1 is the whole side)."""
        self._draw(path, color, alpha, width)

    def _draw(self, path: Path, color, alpha: float, width: float) -> None:
        if alpha <= 0.003:
            return
        rgba = (*to_rgba(color)[:3], float(alpha))
        self._send(self._board, path, rgba, width)
        if self._mask_boards is not None:
            for name in self._tags:
                board = self._mask_boards.setdefault(name, RendererAgg(self.size, self.size, 72))
                self._send(board, path, (1.0, 1.0, 1.0, 1.0), width)

    def _send(self, board: RendererAgg, path: Path, rgba: tuple, width: float) -> None:
        gc = board.new_gc()
        gc.set_linewidth(width * self.size)
        gc.set_foreground(rgba, isRGBA=True)
        gc.set_alpha(rgba[3])
        gc.set_capstyle("round")
        gc.set_joinstyle("round")
        if self._clip is not None:
            gc.set_clip_path(self._clip)
        board.draw_path(gc, path, self.transform + self._pixels, None if width else rgba)

    def pixels(self) -> np.ndarray:
        """The picture so far, uint8 [size, size, 3]."""
        return np.asarray(self._board.buffer_rgba())[..., :3].copy()

    def masks(self) -> dict[str, np.ndarray]:
        """Touched pixels of each tag, bool [size, size]."""
        boards = self._mask_boards or {}
        return {name: np.asarray(board.buffer_rgba())[..., 3] > 0 for name, board in boards.items()}
