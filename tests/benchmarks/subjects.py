"""What is measured: a model in hand, a prompt, and a donor's activations to patch with.

Two models: the bundled one, and a LLaVA with random weights whose language part is as wide as a small real one and reads as many
visual tokens as LLaVA-1.5 does, behind a tower too small to count. What is timed does not depend on the weights.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from nnsight import NNsight
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import emointerp
from emointerp.directions import Directions
from emointerp.models import VLM, Bridge, Prompt, bridge
from emointerp.pairs import Pair, world_pairs
from emointerp.steering import steering_vectors
from emointerp.tracing import Activations, AddVector, collect

EVENT = "The phone rang twice while I was cooking."


@dataclass(frozen=True)
class Subject:
    """A model and what is asked of it: `answers` edited answers of `tokens` tokens, `many` interventions at the last token.

    `pairs` pictures are steered over all layers and `alphas` strengths, each story of at most `story` tokens.
    """

    name: str
    vlm: VLM
    side: int = 128
    answers: int = 96
    tokens: int = 20
    many: int = 4096
    sampled: int = 4
    pairs: int = 1
    alphas: int = 12
    story: int = 64

    @cached_property
    def prompt(self) -> Prompt:
        """A picture of noise and an event."""
        return self._prompt(0)

    @cached_property
    def donor(self) -> Activations:
        """Residual stream and heads of the same event with another picture."""
        return collect(self.vlm, self._prompt(1), ["residual", "heads"])

    @cached_property
    def plain(self) -> VLM:
        """The same weights in a model of its own, which nnsight has not wrapped: what hooks and TransformerLens are timed on."""
        model = type(self.vlm.model)(self.vlm.model.config)
        model.load_state_dict(self.vlm.model.state_dict(), assign=True)
        model.generation_config = self.vlm.model.generation_config
        return replace(self.vlm, model=model.eval())

    @cached_property
    def bridge(self) -> Bridge:
        """The TransformerLens twin."""
        return bridge(self.plain)

    @cached_property
    def view(self) -> NNsight:
        """nnsight's view of the model, made once as its users do."""
        return NNsight(self.vlm.model)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The prompt's inputs for the model."""
        return self.vlm.placed(self.prompt.inputs)

    @cached_property
    def directions(self) -> Directions:
        """Steering vectors of the six emotions, of a few pairs each."""
        return steering_vectors(self.vlm, world_pairs("direction", 24), tau=-1, progress=False)

    @cached_property
    def steered(self) -> list[Pair]:
        """Test pairs, whose neutral sides are steered towards the emotions of the others."""
        return world_pairs("test", self.pairs)

    def steering(self, i: int, layer: int, alpha: float) -> AddVector:
        """The i-th random vector, a third as long as the residual stream there."""
        noise = torch.randn(self.vlm.anatomy.d_model, generator=torch.Generator().manual_seed(i))
        length = self.donor.residual[layer, -1].norm() / 3
        return AddVector(layer, noise / noise.norm() * length, alpha)

    def _prompt(self, seed: int) -> Prompt:
        picture = np.random.default_rng(seed).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return self.vlm.prompt(picture, EVENT)


def bundled() -> Subject:
    """The model that comes with the package."""
    return Subject("bundled", emointerp.load())


def wide() -> Subject:
    """A random LLaVA: d_model 512, 8 layers, 16 heads, 576 visual tokens, float32, the bundled model's tokenizer."""
    small = emointerp.load().processor
    tokenizer = small.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=16, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id)
    model = LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in (p for p in model.parameters() if p.ndim > 1):
            weights.normal_(std=weights[0].numel() ** -0.5, generator=generator)
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2, do_sample=False)
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=small.chat_template,
    )  # fmt: skip
    return Subject("d=512, 576 visual tokens", emointerp.load(model, processor=processor), side=336)


SUBJECTS = {"bundled": bundled, "wide": wide}
