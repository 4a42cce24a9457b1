"""LLaVA-1.5 and the bundled model: a CLIP or SigLIP tower, a two-layer projector, a Llama."""

from typing import Any

import numpy as np

from emointerp.models.anatomy import Family
from emointerp.models.patches import Size, grid, inside, seen_region


def boxes(size: Size, inputs: dict[str, Any], processor: Any, config: Any) -> np.ndarray:
    """Patches in rows over what the image processor shows of the picture (CLIP crops its middle)."""
    side = inputs["pixel_values"].shape[-1]
    patch = config.vision_config.patch_size
    per_side = side // patch
    region = seen_region(size, processor.image_processor)
    return inside(grid(per_side, per_side, region, per_side * patch / side), size)


FAMILY = Family("LLaVA-1.5", ("llava",), boxes)
