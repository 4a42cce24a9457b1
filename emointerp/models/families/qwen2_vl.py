"""Qwen2-VL: a tower for pictures of any size, 2 x 2 patches a token, rotary positions in three axes."""

from typing import Any

import numpy as np

from emointerp.models.anatomy import Family
from emointerp.models.patches import Size, grid, whole


def boxes(size: Size, inputs: dict[str, Any], processor: Any, config: Any) -> np.ndarray:
    """Merged patches in rows over the whole picture, which is stretched to whole patches."""
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    merge = config.vision_config.spatial_merge_size
    return grid(rows // merge, columns // merge, whole(size))


FAMILY = Family("Qwen2-VL", ("qwen2_vl",), boxes, vision_layers="model.visual.blocks", projector="model.visual.merger")
