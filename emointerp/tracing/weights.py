"""Weights of single parts on this machine, for what reads them outside a forward: the logit lens, what heads and neurons write.

Where they lie here, they are used as they are. Those of a model that runs elsewhere (`remote`) are fetched once by a request, and
those that a `device_map` keeps off the devices (`offload_folder`) are read for as long as they are used.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from nnsight import save
from torch.nn import Module

from emointerp.models import VLM
from emointerp.models.anatomy import part
from emointerp.tracing.interleave import forward_trace, traced

TOKEN = torch.zeros(1, 1, dtype=torch.long)  # what a request is made with that ends before the model runs


def part_here(vlm: VLM, path: str) -> Module:
    """The part of a model at a path, one that holds weights itself, with these on this machine."""
    if vlm.remote:
        kept = vlm.__dict__.setdefault("_fetched", {})  # so that it goes when the model does
        if path not in kept:
            kept[path] = _filled(part(vlm.structure, path), asked(vlm, _held, path))
        return kept[path]
    module = part(vlm.model, path)
    return _filled(module, _held(module)) if any(p.is_meta for p in module.parameters(recurse=False)) else module


def named_weights(model: Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and weights of a model in the order of the names, each once; offloaded ones are read one part at a time."""
    tied = getattr(model, "all_tied_weights_keys", {})  # offloaded, they are no longer the same tensor
    for name, weights in sorted(model.named_parameters(), key=lambda item: item[0]):
        if name in tied:
            continue
        path, _, own = name.rpartition(".")
        yield name, _held(part(model, path))[own] if weights.is_meta else weights


def asked(vlm: VLM, function: Callable[[Any], Any], path: str | None = None) -> Any:
    """What a function of plain values gives for a part, or for the whole of a model that runs elsewhere, where it runs."""
    model = traced(vlm)
    module = model if path is None else part(model, path)
    with forward_trace(vlm, input_ids=TOKEN) as tracer:
        found = save(function(module._module))
        tracer.stop()
    return found


def _held(module: Module) -> dict[str, torch.Tensor]:
    """A part's own weights, those that are offloaded as they are brought for a forward."""
    if not hasattr(module, "_hf_hook"):
        return {name: weights.detach() for name, weights in module.named_parameters(recurse=False)}
    from accelerate.utils import align_module_device

    with align_module_device(module):
        return {name: weights.detach() for name, weights in module.named_parameters(recurse=False)}


def _filled(module: Module, weights: dict[str, Any]) -> Module:
    """A module with other weights; whatever has been hung on its forward stays behind."""
    new = type(module).__new__(type(module))
    new.__dict__ = {name: value for name, value in module.__dict__.items() if name != "forward"}
    new._parameters = module._parameters | {name: torch.nn.Parameter(value, requires_grad=False) for name, value in weights.items()}
    return new
