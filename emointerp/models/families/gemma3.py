"""Gemma 3: a SigLIP tower, pooled to 16 x 16 tokens that see each other in both directions, sliding and full attention."""

from math import isqrt
from typing import Any

import numpy as np

from emointerp.models.anatomy import Family
from emointerp.models.patches import Size, grid, whole


def boxes(size: Size, inputs: dict[str, Any], processor: Any, config: Any) -> np.ndarray:
    """Pools of patches in rows over the whole picture."""
    side, vision = isqrt(config.mm_tokens_per_image), config.vision_config
    pooled = vision.image_size // vision.patch_size // side * side
    return grid(side, side, whole(size), pooled * vision.patch_size / vision.image_size)


FAMILY = Family("Gemma 3", ("gemma3",), boxes, image_blocks=True)
