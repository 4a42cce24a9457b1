"""Idefics3 and SmolVLM: tiles, then the whole picture, each with the same number of tokens by pixel shuffle."""

import re
from typing import Any

import numpy as np

from emointerp.models.anatomy import Family
from emointerp.models.patches import Size, grid, tile, whole


def boxes(size: Size, inputs: dict[str, Any], processor: Any, config: Any) -> np.ndarray:
    """Tiles in the order of their marks `<row_1_col_1>` in the prompt, then the whole picture; merged patches in rows in each."""
    ids = inputs["input_ids"][0]
    before = ids[: int((ids == config.image_token_id).nonzero()[-1])]
    marks = re.findall(r"<row_(\d+)_col_(\d+)>", processor.tokenizer.decode(before))
    places = [(int(row) - 1, int(column) - 1) for row, column in marks]
    rows, columns = max((place[0] + 1 for place in places), default=1), max((place[1] + 1 for place in places), default=1)
    regions = [tile(row, column, rows, columns, size) for row, column in places] + [whole(size)]
    side, patch = inputs["pixel_values"].shape[-1], config.vision_config.patch_size
    per_side = side // patch // config.scale_factor
    return np.concatenate([grid(per_side, per_side, region, side // patch * patch / side) for region in regions])


FAMILY = Family(
    "Idefics3",
    ("idefics3", "smolvlm"),
    boxes,
    language="model.text_model",
    vision_layers="model.vision_model.encoder.layers",
    projector="model.connector",
)
