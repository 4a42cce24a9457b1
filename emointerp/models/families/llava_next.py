"""LLaVA-NeXT (LLaVA-1.6): LLaVA-1.5 with the whole picture first, then the picture in tiles, a line break after each row."""

from typing import Any

import numpy as np

from emointerp.models.anatomy import Family
from emointerp.models.patches import Size, anyres


def boxes(size: Size, inputs: dict[str, Any], processor: Any, config: Any) -> np.ndarray:
    """Patches of the whole picture, then of its tiles in rows across them."""
    side, patch = inputs["pixel_values"].shape[-1], config.vision_config.patch_size
    return anyres(size, processor.image_processor.image_grid_pinpoints, side, patch, side // patch)


FAMILY = Family("LLaVA-NeXT", ("llava_next",), boxes)
