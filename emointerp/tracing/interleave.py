"""The one place where nnsight meets the model: visiting the sites of each layer in the order in which a forward reaches them.

Where a model runs on another machine (`VLM.remote`), a `Visit` and its `Plan` travel there with the body of the trace. So both hold
tensors and plain values only, are plain classes with source (a dataclass has methods without), and know of no model or prompt.
"""

import copy
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from nnsight import Envoy
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface

from emointerp.errors import InputError, ModelError
from emointerp.models import VLM
from emointerp.models.anatomy import eager, part
from emointerp.tracing.plan import Plan

Keep = Callable[[str, int, Tensor], None]
AFTER = "emointerp_after_softmax"  # how transformers knows attention whose weights are scaled after the softmax


class _Placed(Envoy):
    """nnsight's view of a module whose inputs lie where they should: it would move them to the first weights, even offloaded."""

    device = None


def traced(vlm: VLM) -> Envoy:
    """nnsight's view of a model; the model itself and its results stay as they are."""
    if vlm.remote:
        return vlm.model.served
    kept = vlm.__dict__  # so that it goes when the model does
    if "_traced" not in kept:
        kept["_traced"] = _Placed(vlm.model, envoys=_Placed)
    return kept["_traced"]


def forward_trace(vlm: VLM, **inputs: Any) -> Any:
    """nnsight's context of one forward, where the model runs."""
    return (vlm.model if vlm.remote else traced(vlm)).trace(**inputs)


@contextmanager
def weighing(vlm: VLM) -> Iterator[None]:
    """While this lasts, attention gives its weights."""
    if not vlm.remote:
        with eager(part(vlm.model, vlm.anatomy.family.language)):
            yield
        return
    before = vlm.structure.config._attn_implementation
    vlm.structure.set_attn_implementation("eager")  # the whole model's setting, which goes along with each request
    try:
        yield
    finally:
        vlm.structure.set_attn_implementation(before)


def check_maskable(vlm: VLM) -> None:
    """Refuse attention implementations that take no mask of scores."""
    used = part(vlm.structure, vlm.anatomy.family.language).config._attn_implementation
    if used not in ("eager", "sdpa"):
        raise InputError(
            f"Under attn_implementation={used!r} attention takes no mask of ours; load the model with 'sdpa' or 'eager'."
        )


def visiting(vlm: VLM, wanted: dict[str, Collection[int]] | None = None, keep: Keep | None = None) -> "Visit":
    """A visit of a model's layers."""
    return Visit(vlm.anatomy.layers, vlm.anatomy.n_heads, vlm.anatomy.d_mlp, wanted or {}, keep)


class Visit:
    """A walk through the layers inside a trace: it does a plan's writes, and hands what is `wanted` to `keep`, after the writes.

    `wanted` names layers for a site ("residual", "heads", "neurons", "attention"); `keep(site, layer, tensor)` gets tensors
    [batch, token, width], or [batch, head, query, key] for attention. Call the visit with nnsight's model and a plan inside the
    trace's body.
    """

    def __init__(self, layers: str, n_heads: int, d_mlp: int, wanted: dict[str, Collection[int]], keep: Keep | None):
        self.layers, self.n_heads, self.d_mlp = layers, n_heads, d_mlp
        self.wanted, self.keep = wanted, keep

    def __call__(self, model: Any, plan: Plan) -> None:
        layers = part(model, self.layers)
        for i in sorted(plan.layers.union(*self.wanted.values())):
            layer = layers[i]
            if i in plan.attending:
                layer.self_attn.inputs = _biased(layer.self_attn.inputs, plan, i, self.n_heads)
            self._site(layer.self_attn.o_proj, "input", plan, i, "heads", self.n_heads)
            if i in self.wanted.get("attention", ()):
                self.keep("attention", i, layer.self_attn.output[1])
            self._site(layer.mlp.down_proj, "input", plan, i, "neurons", self.d_mlp)
            self._site(layer, "output", plan, i, "residual", 1)

    def _site(self, module: Any, side: str, plan: Plan, layer: int, site: str, n_units: int) -> None:
        edited, kept = (layer, site) in plan.sites, layer in self.wanted.get(site, ())
        if not edited and not kept:
            return
        value = getattr(module, side)
        if edited:
            value = plan.apply(layer, site, value, n_units)
            setattr(module, side, value)
        if kept:
            self.keep(site, layer, value)


@contextmanager
def writing(vlm: VLM, plan: Plan) -> Iterator[None]:
    """While this lasts, plain hooks do a plan's writes: 0.4 ms a forward quicker than a trace, where nothing is collected."""
    anatomy = vlm.anatomy
    with ExitStack() as stack:
        stack.enter_context(scaled_after(vlm, plan))
        for i in sorted(plan.attending):
            layer = part(vlm.model, f"{anatomy.layers}.{i}")
            bias = partial(_bias_hook, plan, i, anatomy.n_heads)
            stack.callback(layer.self_attn.register_forward_pre_hook(bias, with_kwargs=True).remove)
        for i, site in sorted(plan.sites):
            layer = part(vlm.model, f"{anatomy.layers}.{i}")
            module, units = {
                "residual": (layer, 1),
                "heads": (layer.self_attn.o_proj, anatomy.n_heads),
                "neurons": (layer.mlp.down_proj, anatomy.d_mlp),
            }[site]
            stack.callback(_written(module, plan, i, site, units).remove)
        yield


def _written(module: Module, plan: Plan, layer: int, site: str, n_units: int) -> RemovableHandle:
    if site == "residual":
        return module.register_forward_hook(lambda _module, _args, out: plan.apply(layer, site, out, n_units))
    return module.register_forward_pre_hook(lambda _module, args: (plan.apply(layer, site, args[0], n_units),))


def _bias_hook(plan: Plan, layer: int, n_heads: int, _module: Any, args: tuple, kwargs: dict) -> tuple:
    return _biased((args, kwargs), plan, layer, n_heads)


def _biased(inputs: tuple, plan: Plan, layer: int, n_heads: int) -> tuple:
    """The inputs of an attention layer with the plan's scores added to its mask, and what scales its weights after the softmax."""
    args, kwargs = inputs
    hidden, cache = args[0] if args else kwargs["hidden_states"], kwargs.get("past_key_values")
    plan.check_shape(hidden)
    seen = hidden.shape[1] + (cache.get_seq_length(layer) if cache is not None else 0)
    mask = _additive(kwargs.get("attention_mask"), hidden, seen)
    shape, gone = (hidden.shape[0], n_heads, hidden.shape[1], seen), seen - mask.shape[-1]  # a sliding cache drops the first keys
    both = mask + plan.bias(layer, shape, mask)[..., gone:]
    if plan.blocks(layer) and (_blind(both) & ~_blind(mask)).any():
        raise InputError(
            f"ScaleAttention in layer {layer} leaves a token nothing to attend to; leave it at least its own position."
        )
    after = {}
    if layer in plan.after:
        after[AFTER] = plan.bias(layer, shape, mask, after=True)[..., gone:].exp() * kwargs.get(AFTER, 1.0)
    return args, {**kwargs, "attention_mask": both, **after}


def _blind(mask: Tensor) -> Tensor:
    """Which queries may attend to nothing; a mask of transformers' own blocks with the lowest number, not with -inf."""
    return (mask <= torch.finfo(mask.dtype).min / 2).all(-1)


def _additive(mask: Tensor | None, hidden: Tensor, keys: int) -> Tensor:
    """An attention mask as scores to add, 0 or -inf, [batch or 1, 1, queries, keys]; without one, the causal mask."""
    queries = hidden.shape[1]
    if mask is None and queries == 1:
        return hidden.new_zeros(1, 1, 1, keys)
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=hidden.device).tril(keys - queries)[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~mask, -torch.inf)


# weights scaled after the softmax


@contextmanager
def scaled_after(vlm: VLM, *plans: Plan) -> Iterator[None]:
    """While this lasts, the layers in which plans scale weights after the softmax go through `_scaled_attention`.

    No mask can do that. So these layers' attention gets a copy of its configuration, which names another attention function.
    """
    layers = set().union(*(plan.after for plan in plans))
    if layers and vlm.remote:
        raise ModelError(
            "ScaleAttention with renormalise=False needs an attention function of ours where the model runs; a server has none, so "
            "use renormalise=True, or load the model without remote."
        )
    if any(plan.attending for plan in plans):
        check_maskable(vlm)
    modules = [part(vlm.model, f"{vlm.anatomy.layers}.{i}").self_attn for i in layers]
    kept = [(module, module.config) for module in modules if module.config._attn_implementation != AFTER]
    try:
        for module, config in kept:
            module.config = copy.copy(config)
            module.config.before, module.config._attn_implementation = config._attn_implementation, AFTER
        yield
    finally:
        for module, config in kept:
            module.config = config


def _scaled_attention(
    module: Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple:
    """The model's own eager attention with its weights scaled; where nothing is to be scaled, the attention that was set."""
    factors, eager = kwargs.pop(AFTER, None), sys.modules[type(module).__module__].eager_attention_forward
    if factors is None:
        return AttentionInterface().get_interface(module.config.before, eager)(module, query, key, value, attention_mask, **kwargs)
    # padding sees nothing, of which an eager softmax would make NaN
    mask = attention_mask.clamp(min=torch.finfo(attention_mask.dtype).min)
    weights = eager(module, query, key, value, mask, **kwargs)[1] * factors
    values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)  # heads that share their keys and values
    return (weights @ values).transpose(1, 2).contiguous(), weights


AttentionInterface.register(AFTER, _scaled_attention)
