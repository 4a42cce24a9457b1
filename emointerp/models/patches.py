"""Where patches of a resized, cropped or tiled picture lie in the picture's own pixels.

Own code, because transformers cuts pictures into patches but does not say where they came from.
"""

from typing import Any

import numpy as np
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

Size = tuple[int, int]  # width, height
Region = tuple[float, float, float, float]  # left, top, right, bottom
NEWLINE = np.full((1, 1, 4), np.nan)


def whole(size: Size) -> Region:
    """The region of all of a picture."""
    return 0.0, 0.0, float(size[0]), float(size[1])


def cells(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Boxes of a grid from the sides of its columns, [2, columns] (left, right), and rows, [2, rows]; float [rows, columns, 4].

    >>> cells(np.array([[0, 5], [5, 10]]), np.array([[0], [4]])).tolist()
    [[[0.0, 0.0, 5.0, 4.0], [5.0, 0.0, 10.0, 4.0]]]
    """
    (left, top), (right, bottom) = np.meshgrid(x[0], y[0]), np.meshgrid(x[1], y[1])
    return np.stack([left, top, right, bottom], axis=-1).astype(float)


def grid(rows: int, columns: int, region: Region, share: float = 1.0) -> np.ndarray:
    """Boxes of a grid of patches over a region, row by row, float [rows * columns, 4].

    `share`: how much of the region's width and height the patches see, from the left and the top; the last pixels of a picture
    whose side is no multiple of the patch are seen by none.

    >>> grid(1, 2, (0, 0, 10, 4)).tolist()
    [[0.0, 0.0, 5.0, 4.0], [5.0, 0.0, 10.0, 4.0]]
    """
    left, top, right, bottom = region
    x = np.linspace(left, left + share * (right - left), columns + 1)
    y = np.linspace(top, top + share * (bottom - top), rows + 1)
    return cells(np.stack([x[:-1], x[1:]]), np.stack([y[:-1], y[1:]])).reshape(-1, 4)


def inside(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Boxes cut to the picture; NaN where nothing of it is left, as for patches of padding.

    >>> inside(np.array([[-2.0, 0.0, 4.0, 4.0], [-2.0, 0.0, 0.0, 4.0]]), (8, 4)).tolist()
    [[0.0, 0.0, 4.0, 4.0], [nan, nan, nan, nan]]
    """
    cut = np.clip(boxes, 0, [*size, *size])
    empty = (cut[..., 2] <= cut[..., 0]) | (cut[..., 3] <= cut[..., 1])
    return np.where(empty[..., None], np.nan, cut)


def tile(row: int, column: int, rows: int, columns: int, size: Size) -> Region:
    """The region of one of a picture's tiles.

    >>> tile(0, 1, 2, 2, (40, 20))
    (20.0, 0.0, 40.0, 10.0)
    """
    width, height = size[0] / columns, size[1] / rows
    return column * width, row * height, (column + 1) * width, (row + 1) * height


def seen_region(size: Size, image_processor: Any) -> Region:
    """What an image processor keeps of a picture, in its pixels: all of it, or the middle that CLIP crops.

    Beyond the picture's edges where the processor pads.
    """
    width, height = size
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        left, top = (max(size) - width) // 2, (max(size) - height) // 2
        return -left, -top, max(size) - left, max(size) - top
    if not getattr(image_processor, "do_center_crop", False):
        return whole(size)
    across, down = _scale(size, image_processor)
    kept_w, kept_h = across * image_processor.crop_size["width"], down * image_processor.crop_size["height"]
    left, top = (width - kept_w) / 2, (height - kept_h) / 2
    return left, top, left + kept_w, top + kept_h


def _scale(size: Size, image_processor: Any) -> tuple[float, float]:
    """Pixels of the picture to one of the resized picture, across and down."""
    if not image_processor.do_resize:
        return 1.0, 1.0
    target = image_processor.size
    if target.get("shortest_edge"):
        return (min(size) / target["shortest_edge"],) * 2
    return size[0] / target["width"], size[1] / target["height"]


def anyres(size: Size, pinpoints: list[list[int]], side: int, patch: int, per_side: int, most_tiles: float = np.inf) -> np.ndarray:
    """Boxes of LLaVA-NeXT's and OneVision's tokens, float [tokens, 4].

    First the whole picture, `per_side` x `per_side` patches of `patch` pixels in a square of `side`; then the picture in tiles of
    such squares, letterboxed into the best of the `pinpoints` [height, width]: row by row across tiles, without rows or
    columns of padding, each row with a line break (NaN); made coarser where there is more than `most_tiles` hold.
    """
    width, height = size
    canvas = select_best_resolution((height, width), pinpoints)
    resized = get_patch_output_size(np.broadcast_to(np.uint8(0), (1, height, width)), canvas, "channels_first")
    rows, columns = (_sides(length, side, patch, per_side) for length in canvas)
    rows, columns = _unpadded(rows, columns, size)
    rows, columns = _coarser(rows, columns, most_tiles * per_side**2)
    y, x = (
        (sides - (full - kept) // 2) * (length / kept)
        for sides, full, kept, length in zip((rows, columns), canvas, resized, (height, width), strict=True)
    )
    tiles = cells(x, y)
    lines = np.concatenate([tiles, np.repeat(NEWLINE, len(tiles), axis=0)], axis=1).reshape(-1, 4)
    return inside(np.concatenate([grid(per_side, per_side, whole(size), per_side * patch / side), lines]), size)


def _sides(length: int, side: int, patch: int, per_side: int) -> np.ndarray:
    """Where the patches of the tiles along one side of the canvas begin and end, in its pixels, [2, patches]."""
    starts = (np.arange(0, length, side)[:, None] + patch * np.arange(per_side)).ravel()
    return np.stack([starts, starts + patch]).astype(float)


def _unpadded(rows: np.ndarray, columns: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Without the rows or columns that letterboxing filled: `unpad_image` of transformers, counted in patches."""
    (width, height), n_rows, n_columns = size, rows.shape[1], columns.shape[1]
    if width / height > n_columns / n_rows:
        padding = (n_rows - int(round(height * (n_columns / width), 7))) // 2
        return rows[:, padding : n_rows - padding], columns
    padding = (n_columns - int(round(width * (n_rows / height), 7))) // 2
    return rows, columns[:, padding : n_columns - padding]


def _coarser(rows: np.ndarray, columns: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """OneVision's interpolation to about `most` patches, where there are clearly more."""
    ratio = (rows.shape[1] * columns.shape[1] / most) ** 0.5
    return (_merged(rows, ratio), _merged(columns, ratio)) if ratio > 1.1 else (rows, columns)


def _merged(sides: np.ndarray, ratio: float) -> np.ndarray:
    """Fewer patches along one side, each with an equal part of the old ones."""
    before = sides.shape[1]
    after = int(before // ratio)
    edges = np.interp(np.linspace(0, before, after + 1), np.arange(before + 1), [*sides[0], sides[1, -1]])
    return np.stack([edges[:-1], edges[1:]])
