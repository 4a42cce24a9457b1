"""Qwen2-VL for TransformerLens, which knows Qwen2.5-VL and not its elder.

The two share the language part and differ in the vision tower's MLP (two linear layers instead of a gated one).
TransformerLens finds this adapter by the entry-point group `transformer_lens.architectures`.
"""

from typing import Any

from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.qwen2_5_vl import Qwen2_5_VLArchitectureAdapter


class Qwen2VLArchitectureAdapter(Qwen2_5_VLArchitectureAdapter):
    """Canonical names for `Qwen2VLForConditionalGeneration`; no torchvision is needed, since pictures come as pixel values."""

    required_libraries: list[str] = []

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        layers = {"in": LinearBridge(name="fc1"), "out": LinearBridge(name="fc2")}
        blocks = self.component_mapping["vision_encoder"].submodules["blocks"]
        blocks.submodules["mlp"] = GeneralizedComponent(name="mlp", submodules=layers)
