"""Published sizes of well-known models, since no hub may be in reach: what their configurations say, as far as it has a size.

`CONFIGS` are those that the course speaks of, `OTHERS` the rest of `loading.WELL_KNOWN`. They are written down from the models'
config.json files, and held against the parameters that their pages count (tests/test_plan.py).
"""

from typing import Any

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
_TOWER = (*_SIZES[:3], "intermediate_size", "image_size", "patch_size")


def _text(model_type: str, *sizes: int, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type} | dict(zip(_SIZES, sizes, strict=True)) | more


def _tower(model_type: str, *sizes: int, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type} | dict(zip(_TOWER, sizes, strict=True)) | more


_CLIP = _tower("clip_vision_model", 1024, 24, 16, 4096, 336, 14)
_LLAVA = {"model_type": "llava", "image_token_index": 32000, "vision_config": _CLIP}
_SEVEN = _text("llama", 4096, 32, 32, 32, 11008, 32064, max_position_embeddings=4096)
_THIRTEEN = _text("llama", 5120, 40, 40, 40, 13824, 32064, max_position_embeddings=4096)
_QWEN = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584}
_QWEN_2_5 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
_QWEN_3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
_QWEN_3_SMALL = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560}
_SMOL = {"model_type": "idefics3", "scale_factor": 4, "image_token_id": 49190}
_SMOL |= {"vision_config": _tower("idefics3_vision", 768, 12, 12, 3072, 512, 16)}

CONFIGS: dict[str, dict[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": _LLAVA | {"text_config": _SEVEN},
    "llava-hf/llava-1.5-13b-hf": _LLAVA | {"text_config": _THIRTEEN},
    "Qwen/Qwen2-VL-7B-Instruct": {"model_type": "qwen2_vl", "vision_config": _QWEN, "image_token_id": 151655}
    | {"text_config": _text("qwen2_vl_text", 3584, 28, 28, 4, 18944, 152064)},
}
OTHERS: dict[str, dict[str, Any]] = {
    "llava-hf/llava-v1.6-vicuna-13b-hf": _LLAVA | {"model_type": "llava_next", "text_config": _THIRTEEN},
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": {"model_type": "llava_onevision", "image_token_index": 151646}
    | {"vision_config": _tower("siglip_vision_model", 1152, 26, 16, 4304, 384, 14, vision_use_head=False)}
    | {"text_config": _text("qwen2", 3584, 28, 28, 4, 18944, 152000)},
    "Qwen/Qwen2.5-VL-7B-Instruct": {"model_type": "qwen2_5_vl", "vision_config": _QWEN_2_5, "image_token_id": 151655}
    | {"text_config": _text("qwen2_5_vl_text", 3584, 28, 28, 4, 18944, 152064)},
    "Qwen/Qwen3-VL-4B-Instruct": {"model_type": "qwen3_vl", "image_token_id": 151655, "tie_word_embeddings": True}
    | {"vision_config": _QWEN_3_SMALL | {"deepstack_visual_indexes": [5, 11, 17]}}
    | {"text_config": _text("qwen3_vl_text", 2560, 36, 32, 8, 9728, 151936, head_dim=128, tie_word_embeddings=True)},
    "Qwen/Qwen3-VL-8B-Instruct": {"model_type": "qwen3_vl", "vision_config": _QWEN_3, "image_token_id": 151655}
    | {"text_config": _text("qwen3_vl_text", 4096, 36, 32, 8, 12288, 151936, head_dim=128)},
    "HuggingFaceTB/SmolVLM-256M-Instruct": _SMOL | {"text_config": _text("llama", 576, 30, 9, 3, 1536, 49280)},
    "HuggingFaceTB/SmolVLM-500M-Instruct": _SMOL | {"text_config": _text("llama", 960, 32, 15, 5, 2560, 49280)},
    "HuggingFaceM4/Idefics3-8B-Llama3": {"model_type": "idefics3", "scale_factor": 2, "image_token_id": 128257}
    | {"vision_config": _tower("idefics3_vision", 1152, 27, 16, 4304, 364, 14)}
    | {"text_config": _text("llama", 4096, 32, 32, 8, 14336, 128259)},
    "google/gemma-3-4b-it": {"model_type": "gemma3", "image_token_index": 262144, "mm_tokens_per_image": 256}
    | {"vision_config": _tower("siglip_vision_model", 1152, 27, 16, 4304, 896, 14, vision_use_head=False)}
    | {"text_config": _text("gemma3_text", 2560, 34, 8, 4, 10240, 262208, head_dim=256, sliding_window=1024)},
}
