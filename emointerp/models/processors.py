"""Processors where a library for video is missing: pictures alone need neither torchvision nor num2words.

transformers builds the processors of several families only with a video processor. Here they are opened without one; the
expansion of image tokens, the chat template and the image processor stay the family's own.
"""

import logging
from typing import Any

from transformers import AutoConfig, AutoProcessor, Idefics3Processor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from emointerp.errors import ModelError

logger = logging.getLogger(__name__)


def open_processor(place: str, **options: Any) -> Any:
    """The processor of a folder or hub id; without its video part where that is what cannot be opened."""
    try:
        return AutoProcessor.from_pretrained(place, **options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        kind = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(place, **options)), None)
        if kind is None or "video_processor" not in kind.get_attributes():
            raise
        logger.info("opening %s without its video processor: %s", kind.__name__, error)
        return pictures_only(kind).from_pretrained(place, **options)


def pictures_only(kind: type) -> type:
    """A processor class without its video processor; for SmolVLM, that of Idefics3, which makes the same inputs.

    >>> from transformers import Qwen2VLProcessor
    >>> pictures_only(Qwen2VLProcessor).get_attributes()
    ['image_processor', 'tokenizer']
    """
    if kind.__name__ == "SmolVLMProcessor":
        return Idefics3Processor
    kept = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: kept)})


def completed(processor: Any, config: Any) -> Any:
    """The processor, with what older checkpoints leave out and the configuration knows: how to count image tokens.

    A tokenizer in its place, which is what transformers opens where there is nothing else, is refused.
    """
    if not hasattr(processor, "image_processor"):
        came = "a tokenizer" if hasattr(processor, "convert_tokens_to_ids") else f"a {type(processor).__name__}"
        raise ModelError(f"A {config.model_type} model came with {came} but no image processor (preprocessor_config.json).")
    vision = getattr(config, "vision_config", None)
    if getattr(processor, "patch_size", 0) is None:
        processor.patch_size = vision.patch_size
        processor.num_additional_image_tokens = int("clip" in vision.model_type)  # CLIP's class token
    if getattr(processor, "vision_feature_select_strategy", "") is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    if getattr(processor, "num_image_tokens", 0) is None:
        processor.num_image_tokens = (vision.image_size // vision.patch_size) ** 2
    return processor
