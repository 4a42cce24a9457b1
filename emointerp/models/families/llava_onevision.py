"""LLaVA-OneVision: the tiles of LLaVA-NeXT, made coarser for large pictures, before a Qwen2."""

from typing import Any

import numpy as np

from emointerp.models.anatomy import Family
from emointerp.models.patches import Size, anyres


def boxes(size: Size, inputs: dict[str, Any], processor: Any, config: Any) -> np.ndarray:
    """Patches of the whole picture, then of its tiles in rows across them, interpolated beyond "anyres_max_9" tiles' worth."""
    side, patch = inputs["pixel_values"].shape[-1], config.vision_config.patch_size
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    return anyres(size, processor.image_processor.image_grid_pinpoints, side, patch, side // patch, most)


FAMILY = Family("LLaVA-OneVision", ("llava_onevision",), boxes)
