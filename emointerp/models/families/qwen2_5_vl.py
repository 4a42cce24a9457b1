"""Qwen2.5-VL: Qwen2-VL with attention in windows in the tower; its tokens come out in the same order."""

from dataclasses import replace

from emointerp.models.families import qwen2_vl

FAMILY = replace(qwen2_vl.FAMILY, name="Qwen2.5-VL", model_types=("qwen2_5_vl",))
