"""The anatomy of a model: where its layers, heads, neurons and visual tokens are, the same words for every family.

A `Family` says where the parts lie; it is one short file in `emointerp.models.families`. An `Anatomy` is a family found in one
model, with its sizes, checked when the model is loaded. Parts are named by their paths, because plain PyTorch, nnsight and
TransformerLens all walk the same ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from emointerp.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where the parts of a family's models lie, as paths from the model, and where its visual tokens look.

    `boxes(size, inputs, processor, config)` gives, for each visual token of a prompt, the part of the picture that it stands
    for: float [visual tokens, 4] of left, top, right, bottom in the picture's own pixels (`size` is width, height); NaN where a
    token stands for no place (a line break between rows of patches).
    `image_blocks`: tokens of one image see each other in both directions.
    """

    name: str
    model_types: tuple[str, ...]
    boxes: Callable[[tuple[int, int], dict[str, Any], Any, Any], np.ndarray] = field(repr=False)
    language: str = "model.language_model"
    vision_layers: str = "model.vision_tower.encoder.layers"
    projector: str = "model.multi_modal_projector"
    unembedding: str = "lm_head"
    image_blocks: bool = False


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model and their sizes.

    `context` is how many tokens the model reads at most; `window` is that of sliding attention, which either some layers have
    (`mixed_windows`) or all.

    Paths: `layers`, `norm` (the final one), `unembedding`, `vision_layers`, `projector`; inside a layer `self_attn.o_proj`
    and `mlp.down_proj`.
    """

    family: Family
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocabulary: int
    image_token: int
    context: int
    window: int | None = None
    mixed_windows: bool = False

    @property
    def layers(self) -> str:
        """Path of the language layers."""
        return f"{self.family.language}.layers"

    @property
    def norm(self) -> str:
        """Path of the final norm."""
        return f"{self.family.language}.norm"


def part(root: Any, path: str) -> Any:
    """The part of a model, or of nnsight's view of it, at a path.

    >>> part(torch.nn.Sequential(torch.nn.Linear(2, 3)), "0").out_features
    3
    """
    return reduce(lambda here, name: here[int(name)] if name.isdigit() else getattr(here, name), path.split("."), root)


@contextmanager
def eager(module: torch.nn.Module) -> Iterator[None]:
    """Eager attention in a model's language part, tower or layer, which alone gives weights; the setting before comes back."""
    config = module.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def anatomy_of(model: torch.nn.Module) -> Anatomy:
    """Find a model's parts and check that they are what their family says; fails fast where they are not."""
    family = family_of(model.config)
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    layer_types = getattr(text, "layer_types", None) or ("sliding_attention",)  # Mistral names none: all or no layers slide
    anatomy = Anatomy(
        family,
        n_layers=text.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        d_model=text.hidden_size,
        d_head=getattr(text, "head_dim", None) or text.hidden_size // heads,
        d_mlp=text.intermediate_size,
        vocabulary=text.vocab_size,
        image_token=model.config.image_token_id,
        context=text.max_position_embeddings,
        window=getattr(text, "sliding_window", None) if "sliding_attention" in layer_types else None,
        mixed_windows=len(layer_types) > 1,
    )
    _check_parts(model, anatomy)
    return anatomy


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model, from its configuration alone; an error that says what is known where there is none."""
    from emointerp.models.families import FAMILIES  # a family's file imports this module

    kind = config.model_type
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    if getattr(config, "vision_config", None) is None:
        raise ModelError(f"A model of type {kind!r} has no vision part; emointerp reads vision-language models such as {_known()}.")
    raise ModelError(
        f"Models of type {kind!r} are not known yet; known are {_known()}. To add a family, copy "
        "emointerp/models/families/llava.py, say where its parts lie, and name it in emointerp/models/families/__init__.py."
    )


def _known() -> str:
    from emointerp.models.families import FAMILIES

    return ", ".join(kind for family in FAMILIES for kind in family.model_types)


def _check_parts(model: torch.nn.Module, anatomy: Anatomy) -> None:
    """Every path leads somewhere, and widths agree with the configuration."""
    family = anatomy.family
    paths = [family.vision_layers, family.projector, anatomy.norm, family.unembedding]
    paths += [f"{anatomy.layers}.{i}.{name}" for i in (0, anatomy.n_layers - 1) for name in ("self_attn.o_proj", "mlp.down_proj")]
    for path in paths:
        try:
            part(model, path)
        except (AttributeError, IndexError, KeyError):
            raise ModelError(f"{type(model).__name__} has no part {path!r}, where {family.name} models have one.") from None
    first = part(model, f"{anatomy.layers}.0")
    for name, module, width in (
        ("heads x d_head", first.self_attn.o_proj, anatomy.n_heads * anatomy.d_head),
        ("d_mlp", first.mlp.down_proj, anatomy.d_mlp),
    ):
        found = getattr(module, "in_features", width)
        if found != width:
            raise ModelError(f"{type(model).__name__}: {name} is {width} in the configuration, but the weights have {found}.")
