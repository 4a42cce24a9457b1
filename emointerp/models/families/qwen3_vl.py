"""Qwen3-VL: Qwen2-VL whose visual features are also added into the first language layers (deepstack)."""

from dataclasses import replace

from emointerp.models.families import qwen2_vl

FAMILY = replace(qwen2_vl.FAMILY, name="Qwen3-VL", model_types=("qwen3_vl",))
