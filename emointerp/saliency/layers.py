"""Inside towers: what their layers hold of a picture's patches, in rows, and how these attend to each other.

CLIP's and SigLIP's layers hold [n, token, d], a class token first or none, and the patches in rows. Qwen's hold the patches of all
pictures in one sequence [n * token, d], 2 x 2 neighbours together, as they are merged into one token after the last layer;
Qwen2.5-VL's window by window besides. Their attention is computed picture by picture or window by window, and gives no weights.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import isqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from emointerp.errors import InputError
from emointerp.models.anatomy import eager
from emointerp.models.patches import Size, grid, whole
from emointerp.models.towers import Tower


class NoMapError(InputError):
    """A method cannot be had for a target or its tower; its words say why and what to take instead."""


def tower_layers(tower: Tower) -> list[nn.Module]:
    """The layers of a CLIP, SigLIP or Qwen tower; NoMapError for others, whose patches stand in an order that is not known."""
    inside = _inside(tower)
    if _merges(tower):
        return list(inside.blocks)
    if not hasattr(inside, "encoder"):
        raise NoMapError(
            f"In which order the layers of {type(inside).__name__} hold patches is not known; take another method, or an `answer`."
        )
    return list(inside.encoder.layers)


def in_rows(tower: Tower, hidden: Float[Tensor, "*sequence d"]) -> Float[Tensor, "n patch d"]:
    """The patches of what a layer holds, or of its gradient, in rows."""
    order = patch_order(tower)
    if isinstance(order, slice):
        return hidden[:, order]
    return hidden.unflatten(0, (-1, len(order)))[:, order]


def patch_order(tower: Tower) -> slice | Int[Tensor, " patch"]:
    """Where a layer holds the patches of a picture, in rows: behind CLIP's class token, or in Qwen's order."""
    merge = _merges(tower)
    if not merge:
        return slice(-tower.n_patches, None)
    inside, side = _inside(tower), merge * isqrt(tower.n_patches)
    window = inside.window_size if hasattr(inside, "window_size") else None
    return _merged_order(side, merge, window, tower.model.config.patch_size)


@cache
def _merged_order(side: int, merge: int, window: int | None, patch: int) -> Int[Tensor, " patch"]:
    """The places of a square of patches in a Qwen tower's sequence, row by row; `window` is in pixels.

    >>> _merged_order(4, 2, None, 8).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    """
    grids = torch.tensor([[1, side, side]])
    row, column = get_vision_position_ids(grids, merge).unbind(1)
    neighbours = (row * side + column).unflatten(0, (-1, merge**2))
    if window:
        neighbours = neighbours[get_vision_window_index(grids, merge, window, patch)[0]]
    return neighbours.flatten().argsort()


def layer_boxes(tower: Tower, size: Size) -> Float[np.ndarray, "patch 4"]:
    """Where the patches that a tower's layers hold lie in a picture of `size`; of Qwen's 2 x 2 for each of `tower.boxes`."""
    merge = _merges(tower)
    if not merge:
        return tower.boxes(size)
    side = merge * isqrt(tower.n_patches)
    return grid(side, side, whole(size))


def attention_weights(tower: Tower, pixels: Float[Tensor, "n *view"]) -> tuple[list[Float[Tensor, "n token token"]], Tensor | None]:
    """The weights of each layer, mean over heads, tokens as the layers hold them; and those of the pooling head, [n, 1, token]."""
    layers = tower_layers(tower)
    if _merges(tower):
        pictures = [_picture_weights(tower, [layer.attn for layer in layers], one) for one in pixels.split(1)]
        return [torch.stack(weights) for weights in zip(*pictures, strict=True)], None
    attention = [layer.self_attn for layer in layers]
    heads = [module for module in tower.model.modules() if isinstance(module, nn.MultiheadAttention)]
    with eager(attention[0]), kept_outputs(attention, 1) as kept, kept_outputs(heads, 1) as pooling:
        tower.pooled(pixels)
    return [weights.float().mean(1) for weights in kept], pooling[0].float()[:, :1] if pooling else None


def _picture_weights(tower: Tower, attention: Sequence[nn.Module], pixels: Tensor) -> list[Float[Tensor, "token token"]]:
    """Of one picture in a Qwen tower; 0 between patches of different windows."""
    with kept_chunks(attention) as kept:
        tower.pooled(pixels)
    return [torch.block_diag(*kept[module]) for module in attention]


@contextmanager
def kept_chunks(attention: Sequence[nn.Module]) -> Iterator[dict[nn.Module, list[Float[Tensor, "token token"]]]]:
    """Collects the weights of Qwen's attention, mean over heads, for each module in the order of its chunks.

    Its modules give none, so their own eager function stands in transformers' registry meanwhile, under a name of its own, behind
    one that keeps the weights.
    """
    plain, config = sys.modules[type(attention[0]).__module__].eager_attention_forward, attention[0].config
    kept: dict[nn.Module, list[Tensor]] = {module: [] for module in attention}
    name, before = f"emointerp_kept_weights_{id(kept)}", config._attn_implementation

    def keeping(module: nn.Module, *given: Any, **more: Any) -> tuple[Tensor, Tensor]:
        out, weights = plain(module, *given, **more)
        kept[module].append(weights[0].float().mean(0))
        return out, weights

    ALL_ATTENTION_FUNCTIONS[name] = keeping
    config._attn_implementation = name
    try:
        yield kept
    finally:
        config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[name]


@contextmanager
def kept_outputs(modules: Sequence[nn.Module], which: int = 0) -> Iterator[list[Tensor]]:
    """Collects what modules put out, in a list; of several things the one that is asked for, such as attention's weights (1)."""
    kept: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, given, out: kept.append(out[which] if isinstance(out, tuple) else out))
        for module in modules
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def kept_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the hidden states that a layer is given, in a list."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple, named: dict[str, Any]) -> None:
        kept.append(given[0] if given else named["hidden_states"])

    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield kept
    finally:
        hook.remove()


def _inside(tower: Tower) -> nn.Module:
    return getattr(tower.model, "vision_model", tower.model)


def _merges(tower: Tower) -> int:
    """How many neighbours a side Qwen's towers keep together and merge; 0 of others."""
    inside = _inside(tower)
    return inside.spatial_merge_size if hasattr(inside, "blocks") and hasattr(inside, "spatial_merge_size") else 0
