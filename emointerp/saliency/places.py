"""Where what a model reads lies in the picture: values of tiles of pixels, or of tokens, laid onto the picture's own pixels.

Own code, because image processors resize, crop, pad and cut pictures and no library takes a gradient the way back. Mass is kept: a
tile's values are spread over its place, so that what several tiles say of the same place adds up.
"""

from math import ceil, floor
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

from emointerp.errors import InputError
from emointerp.models import VLM, Prompt
from emointerp.models.patches import Region, Size, seen_region, whole
from emointerp.models.towers import Tower

NEAR = 1e-6  # regions end on whole pixels but for rounding


def place(tiles: Float[np.ndarray, "tile h w"], regions: list[Region], size: Size) -> Float[np.ndarray, "height width"]:
    """Tiles of pixels at their regions of a picture of `size` (width, height), summed; 0 where no tile looks.

    Resized by Pillow, bilinear; a tile as large as its region stays as it is.

    >>> place(np.ones((1, 4, 4)), [(2.0, 0.0, 4.0, 2.0)], (4, 2)).tolist()
    [[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]]
    """
    if len(tiles) != len(regions):
        raise InputError(f"{len(tiles)} tiles of pixels came for {len(regions)} regions of the picture.")
    total = np.zeros(size[::-1])
    for tile, region in zip(tiles, regions, strict=True):
        _add(total, tile, region)
    return total


def _add(total: np.ndarray, tile: np.ndarray, region: Region) -> None:
    """One tile's values, onto the whole pixels of its region that lie in the picture."""
    left, top, right, bottom = region
    x0, x1 = max(0, ceil(left - NEAR)), min(total.shape[1], floor(right + NEAR))
    y0, y1 = max(0, ceil(top - NEAR)), min(total.shape[0], floor(bottom + NEAR))
    if x1 <= x0 or y1 <= y0:
        return
    across, down = tile.shape[1] / (right - left), tile.shape[0] / (bottom - top)
    box = np.array([x0 - left, y0 - top, x1 - left, y1 - top]) * [across, down, across, down]
    box = np.clip(box, 0, [tile.shape[1], tile.shape[0]] * 2)
    resized = Image.fromarray(tile.astype(np.float32)).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, tuple(box))
    total[y0:y1, x0:x1] += np.asarray(resized, float) * across * down


def paint(
    values: Float[np.ndarray, " token"], boxes: Float[np.ndarray, "token 4"], size: Size
) -> Float[np.ndarray, "height width"]:
    """Values of tokens, each spread evenly over its box; overlapping boxes add up, tokens without a box (NaN) are left out.

    >>> paint(np.array([8.0]), np.array([[0.0, 0.0, 2.0, 2.0]]), (3, 2)).tolist()
    [[2.0, 2.0, 0.0], [2.0, 2.0, 0.0]]
    """
    known = ~np.isnan(boxes).any(1)
    total = np.zeros(size[::-1])
    for value, (left, top, right, bottom) in zip(values[known], boxes[known].round().astype(int), strict=True):
        area = max(1, (right - left) * (bottom - top))
        total[top : max(bottom, top + 1), left : max(right, left + 1)] += value / area
    return total


def tower_region(tower: Tower, size: Size, side: int) -> Region:
    """The part of a picture that a tower's pixels, `side` a side, show.

    Told by its patches, the widest of which is a whole one; those of some towers leave the last pixels of a side out.
    """
    boxes = tower.boxes(size).reshape(round(tower.n_patches**0.5), -1, 4)
    config = getattr(tower.model.config, "vision_config", tower.model.config)
    share = side // config.patch_size * config.patch_size / side
    left, right = _span(boxes[..., 0], boxes[..., 2], 0, share)
    top, bottom = _span(boxes[..., 1], boxes[..., 3], 1, share)
    return left, top, right, bottom


def _span(low: np.ndarray, high: np.ndarray, axis: int, share: float) -> tuple[float, float]:
    """Where the pixels begin and end along an axis, of which patches that begin at `low` and end at `high` see a `share`."""
    low, high = np.nanmin(low, axis), np.nanmax(high, axis)
    i = int(np.nanargmax(high - low))
    step = float(high[i] - low[i])
    start = float(low[i]) - i * step
    return start, start + len(low) * step / share


def tile_regions(vlm: VLM, prompt: Prompt) -> list[Region]:
    """The part of a prompt's picture that each of its tiles of pixels shows, in the order of `pixel_values`.

    InputError for a family whose tiles nobody has placed yet.
    """
    size, images, kind = prompt.image.size, vlm.processor.image_processor, vlm.model.config.model_type
    n = prompt.inputs["pixel_values"].shape[1] if prompt.inputs["pixel_values"].ndim == 5 else 1
    if "image_grid_thw" in prompt.inputs or kind == "gemma3" and n == 1:
        return [whole(size)]
    if kind == "llava":
        return [seen_region(size, images)]
    if kind in ("llava_next", "llava_onevision"):
        return [whole(size), *_anyres_regions(size, images.image_grid_pinpoints, prompt.inputs["pixel_values"].shape[-1])]
    if kind in ("idefics3", "smolvlm"):
        return _shuffled_regions(vlm, prompt, n)
    raise InputError(f"Where pixels of {kind!r} models lie in a picture is not known; take a target of its tower (`toward`).")


def _anyres_regions(size: Size, pinpoints: list[list[int]], side: int) -> list[Region]:
    """Tiles of LLaVA-NeXT's and OneVision's letterboxed canvas, row by row; those at the edges reach beyond the picture."""
    canvas = select_best_resolution(size[::-1], pinpoints)
    resized = get_patch_output_size(np.broadcast_to(np.uint8(0), (1, *size[::-1])), canvas, "channels_first")
    (y, x) = (
        ((np.arange(0, full + 1, side) - (full - kept) // 2) * length / kept).tolist()
        for full, kept, length in zip(canvas, resized, size[::-1], strict=True)
    )
    return [(x[j], y[i], x[j + 1], y[i + 1]) for i in range(len(y) - 1) for j in range(len(x) - 1)]


def _shuffled_regions(vlm: VLM, prompt: Prompt, n: int) -> list[Region]:
    """Tiles of Idefics3 and SmolVLM, told by the boxes of their tokens, as many a tile."""
    boxes: Any = vlm.boxes(prompt).reshape(n, -1, 4)
    side, patch = prompt.inputs["pixel_values"].shape[-1], vlm.model.config.vision_config.patch_size
    share = side // patch * patch / side
    ends = [(*some[:, :2].min(0), *some[:, 2:].max(0)) for some in boxes]
    return [(x0, y0, x0 + (x1 - x0) / share, y0 + (y1 - y0) / share) for x0, y0, x1, y1 in ends]
