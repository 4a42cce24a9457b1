"""The TransformerLens twin of a model: `bridge(vlm)` shares every weight with it, under TransformerLens's hook names.

TransformerLens rebuilds the model that it wraps, so a twin is wrapped: a copy of the modules around the same tensors. And it
runs a prompt without its picture in silence when the pixels are missing, so the image inputs travel with the prompt here, and
image tokens without pixels are refused at the twin's door, by whatever road they come. All private paths of TransformerLens
are in this file and in `qwen2_vl_adapter`.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from emointerp.errors import InputError, ModelError
from emointerp.models.prompts import Prompt
from emointerp.models.vlm import VLM

# Classes that have the parts of another one, under whose name TransformerLens knows them.
SAME_PARTS = {"SmolVLMForConditionalGeneration": "Idefics3ForConditionalGeneration"}
# What is cached if nothing is said: all that the decompositions of `ActivationCache` read. Attention patterns are left out
# (at 2,900 tokens and 32 x 32 heads they alone take 17 GB in 16 bits).
KEPT = re.compile(
    r"blocks\.\d+\.(hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)|attn\.hook_z|mlp\.hook_post|ln[12]\.hook_scale)"
    r"|ln_final\.hook_scale"
)
VISION = "vision_"  # how the names of the vision tower's and the projector's hooks begin
PATTERNS = ("hook_pattern", "hook_attn_scores")
Hooks = Sequence[tuple[str | Callable[[str], bool], Callable]]


@dataclass(frozen=True, eq=False)
class Bridge:
    """A model under TransformerLens's names; `tl` is the TransformerLens bridge itself, and what is not here is looked up there.

    Give it a `Prompt` and its picture comes along. Functions of TransformerLens that take a model and token ids, such as those
    of `transformer_lens.patching`, get `bridge.on(prompt)`, which adds the prompt's picture to the ids. Names chosen by a
    function (`lambda name: name.endswith("hook_z")`) are those of the language part; the vision tower's go by their full names.
    """

    vlm: VLM
    tl: Any = field(repr=False)
    prompt: Prompt | None = field(default=None, repr=False)

    def on(self, prompt: Prompt) -> "Bridge":
        """A view for functions that pass token ids: the image inputs of this prompt come along."""
        return replace(self, prompt=prompt)

    def __call__(self, prompt: Any, **options: Any) -> Any:
        """Logits [1, tokens, vocabulary] of a `Prompt`, or of ids [1, tokens]."""
        ids, inputs = self._inputs(prompt)
        return self.tl(ids, **inputs, **options)

    def run_with_hooks(self, prompt: Any, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), **options: Any) -> Any:
        """Logits of a forward with hooks: pairs of a name, or of a function of names, and `hook(activation, hook)`."""
        ids, inputs = self._inputs(prompt)
        forward, backward = ([(self._target(name), hook) for name, hook in hooks] for hooks in (fwd_hooks, bwd_hooks))
        return self.tl.run_with_hooks(ids, fwd_hooks=forward, bwd_hooks=backward, **inputs, **options)

    def run_with_cache(self, prompt: Any, names_filter: Any = None, **options: Any) -> tuple[Any, Any]:
        """Logits and a TransformerLens `ActivationCache`.

        `names_filter` is a name, a list of names or a function of names. Without one the cache holds the language part's
        residual stream, what attention and MLP write, head outputs z, neurons and norm scales; and its "hook_embed" is what
        enters the first layer, the picture's features in their places (TransformerLens's own comes before they are put there),
        so that `decompose_resid` adds up. On Qwen3-VL it adds up at text tokens only: at visual tokens, features of the vision
        tower come in between the first layers too.
        """
        ids, inputs = self._inputs(prompt)
        inputs["output_attentions"] = False  # TransformerLens would ask for all patterns of all layers at once
        wanted = KEPT.fullmatch if names_filter is None else names_filter
        wanted = _language(wanted) if callable(wanted) else wanted
        logits, cache = self.tl.run_with_cache(ids, names_filter=wanted, **(inputs | options))
        if names_filter is None:
            _set_embed(cache)
        return logits, cache

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "tl":
            raise AttributeError(name)
        return getattr(self.tl, name)

    def _inputs(self, given: Any) -> tuple[Any, dict[str, Any]]:
        """Token ids, and the other inputs that go with them."""
        prompt = given if isinstance(given, Prompt) else self.prompt
        if prompt is None:
            return given.to(self.vlm.device) if torch.is_tensor(given) else given, {}
        inputs = self.vlm.placed(prompt.inputs)
        own = inputs.pop("input_ids")
        return own if given is prompt else self._fitting(given, own), inputs

    def _fitting(self, ids: Any, own: Tensor) -> Tensor:
        """Ids on the model's device, whose image tokens stand where the prompt's do."""
        image = self.vlm.model.config.image_token_id
        if torch.is_tensor(ids) and ids.shape == own.shape and torch.equal(ids.to(own.device) == image, own == image):
            return ids.to(own.device)
        raise InputError(
            f"The bridge is bound to a prompt, whose ids are {_described(own, image)}; given are {_described(ids, image)}. Give "
            "ids of that length with the image tokens in the same places, or bind the bridge to the prompt that they come from: "
            "bridge.on(prompt)."
        )

    def _target(self, name: str | Callable[[str], bool]) -> str | Callable[[str], bool]:
        """The name, or the function of names, at which a hook can do something."""
        chosen = _language(name) if callable(name) else name
        for each in filter(chosen, self.tl.hook_dict) if callable(chosen) else (chosen,):
            if each.endswith(PATTERNS) and self._is_read_only(each):
                raise InputError(
                    f"{each}: TransformerLens only shows attention patterns here, a hook cannot change them. Read them with "
                    f'run_with_cache(prompt, names_filter="{each}"), and change attention with emointerp\'s own edits.'
                )
        return chosen

    def _is_read_only(self, pattern: str) -> bool:
        """Whether a pattern is computed inside the Hugging Face module: in vision towers, and where rotary positions have axes."""
        return pattern.startswith(VISION) or type(self.tl.blocks[0].attn).__name__ == "AttentionBridge"


def bridge(vlm: VLM) -> Bridge:
    """The TransformerLens twin of a model, for TransformerLens's analyses: caches, patching, decompositions, OV and QK circuits.

    No weight is copied, and the model itself stays as it is. The twin's logits are those of the model with eager attention.
    Move the model to its device first: tensors that are moved later are shared no more. A `backward()` through the twin leaves
    its gradients on the shared weights. A family that TransformerLens does not know raises a `ModelError`.

    >>> from emointerp.models import load
    >>> twin = bridge(load())
    >>> twin.W_O.shape == (twin.cfg.n_layers, twin.cfg.n_heads, twin.cfg.d_head, twin.cfg.d_model)
    True
    """
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module, detect_tokenizer_bos_eos

    if vlm.remote:
        raise ModelError(vlm.model.missing("A TransformerLens twin"))
    twin, kind = _twin(vlm.model), type(vlm.model).__name__
    twin.register_forward_pre_hook(_refuse_blind(vlm.model.config.image_token_id), with_kwargs=True)
    try:
        # torchvision, which some families' adapters insist on, is for a loading of pictures that the processor does here
        with patch.object(ArchitectureAdapter, "_check_required_libraries", lambda _: None):
            tl = build_bridge_from_module(twin, SAME_PARTS.get(kind, kind), hf_config=twin.config, model_name=vlm.name)
    except ValueError as error:
        raise ModelError(
            f"TransformerLens cannot wrap {kind} ({error}). emointerp's own verbs (collect, run, generate, sweep) do not need it; "
            "to teach it the family, register an architecture adapter in the entry-point group transformer_lens.architectures."
        ) from error
    tl.tokenizer = vlm.tokenizer  # not through the builder, which looks for another tokenizer on the hub
    tl.cfg.tokenizer_prepends_bos, tl.cfg.tokenizer_appends_eos = detect_tokenizer_bos_eos(vlm.tokenizer)
    return Bridge(vlm, tl)


def activation_cache(bridge: Bridge, activations: Any) -> Any:
    """A TransformerLens `ActivationCache` of what `collect` gave, so that its decompositions need no second forward.

    `activations` carries `layers`, the labels of the first axis, and any of `residual` [layer, token, d_model] (after each
    layer), `heads` [layer, head, token, d_head], `neurons` [layer, token, d_mlp] and `attention` [layer, head, token, key].
    What attention and MLP write comes from heads and neurons through the weights; where one of a layer's input, the two
    writes and its output is missing, it is the difference of the others. So residual, heads and neurons of all layers give
    all that `decompose_resid`, `accumulated_resid`, `stack_head_results` and `stack_neuron_results` read.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> acts = ei.collect(vlm, vlm.prompt(*pair.plus), ["residual", "heads", "neurons"], positions="last")
    >>> cache = ei.activation_cache(ei.bridge(vlm), acts)
    >>> cache.stack_head_results(layer=8).shape
    torch.Size([64, 1, 1, 192])
    """
    from transformer_lens.ActivationCache import ActivationCache

    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for layer in activations.layers:
            named = _layer_tensors(bridge, activations, layer)
            tensors |= {f"blocks.{layer}.{name}": value for name, value in named.items() if value is not None}
    cache = ActivationCache(tensors, bridge.tl)
    _set_embed(cache)
    last = tensors.get(f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post")
    if last is not None:
        tensors["ln_final.hook_scale"] = _scale(last, bridge.cfg.eps)
    return cache


def _twin(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the modules around the same tensors, with the attention that TransformerLens computes, so that bits agree."""
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    twin.set_attn_implementation("eager")
    return twin


def _refuse_blind(image_token: int) -> Callable[[Any, tuple, dict], None]:
    """A hook at a model's door that refuses image tokens without pixels (a single token is a step of generation)."""

    def check(_: Any, args: tuple, given: dict) -> None:
        ids = args[0] if args else given.get("input_ids")
        if ids is None or ids.shape[-1] == 1 or given.get("pixel_values") is not None:
            return
        if count := int((ids == image_token).sum()):
            raise InputError(
                f"The ids hold {count} image tokens, but no pixels came with them; the model would answer without the picture. "
                "Give the bridge the Prompt itself, or, where a function takes ids, bridge.on(prompt) as its model."
            )

    return check


def _described(ids: Any, image_token: int) -> str:
    """What ids are, for an error."""
    if not torch.is_tensor(ids):
        return f"a {type(ids).__name__}"
    return f"{list(ids.shape)} with {int((ids == image_token).sum())} image tokens"


def _language(chosen: Callable[[str], Any]) -> Callable[[str], bool]:
    """A function of names, kept to the language part."""
    return lambda name: not name.startswith(VISION) and bool(chosen(name))


def _set_embed(cache: Any) -> None:
    """What enters the first layer, under the name where decompositions look for it."""
    tensors = cache if isinstance(cache, dict) else cache.cache_dict
    if (first := tensors.get("blocks.0.hook_resid_pre")) is not None:
        tensors["hook_embed"] = first
        if cache is not tensors:
            cache.has_embed = True


def _layer_tensors(bridge: Bridge, activations: Any, layer: int) -> dict[str, Tensor | None]:
    """One layer's tensors under TransformerLens's names, [1, token, …]; None for what the activations do not tell."""
    block, row = bridge.blocks[layer], activations.layers.index(layer)

    def of(site: str) -> Tensor | None:
        values = getattr(activations, site, None)
        return None if values is None else values[row].to(bridge.vlm.device)[None]

    heads, neurons, dtype = of("heads"), of("neurons"), bridge.vlm.model.dtype
    z = None if heads is None else heads.transpose(1, 2)
    before, attention, mlp, after = _completed(
        _input(bridge, activations, layer),
        _written(z if z is None else z.flatten(2), dtype, block.attn.o, getattr(block, "ln1_post", None)),
        _written(neurons, dtype, block.mlp.out, getattr(block, "ln2_post", None)),
        of("residual"),
    )
    middle = None if before is None or attention is None else before + attention
    return {
        "hook_resid_pre": before,
        "hook_resid_mid": middle,
        "hook_resid_post": after,
        "hook_attn_out": attention,
        "hook_mlp_out": mlp,
        "attn.hook_z": z,
        "attn.hook_pattern": of("attention"),
        "mlp.hook_post": neurons,
        "ln1.hook_scale": _scale(before, bridge.cfg.eps),
        "ln2.hook_scale": _scale(middle, bridge.cfg.eps),
    }


def _input(bridge: Bridge, activations: Any, layer: int) -> Tensor | None:
    """What enters a layer: what left the one before, unless features of the vision tower come in between (Qwen3-VL)."""
    residual = getattr(activations, "residual", None)
    injections = getattr(bridge.vlm.model.config.vision_config, "deepstack_visual_indexes", None) or ()
    if residual is None or layer - 1 not in activations.layers or layer <= len(injections):
        return None
    return residual[activations.layers.index(layer - 1)].to(bridge.vlm.device)[None]


def _written(value: Tensor | None, dtype: torch.dtype, projection: Any, norm: Any) -> Tensor | None:
    """What a sublayer writes to the residual stream: its last projection, and on Gemma 3 the norm after it."""
    if value is None:
        return None
    out = projection.original_component(value.to(dtype))
    return (out if norm is None else norm.original_component(out)).to(value.dtype)


def _completed(before: Any, attention: Any, mlp: Any, after: Any) -> tuple[Any, Any, Any, Any]:
    """before + attention + mlp = after, with the one term that is missing filled in."""
    if sum(term is None for term in (before, attention, mlp, after)) != 1:
        return before, attention, mlp, after
    if after is None:
        return before, attention, mlp, before + attention + mlp
    missing = after - sum(term for term in (before, attention, mlp) if term is not None)
    return tuple(missing if term is None else term for term in (before, attention, mlp)) + (after,)


def _scale(residual: Tensor | None, eps: float) -> Tensor | None:
    """What an RMS norm divides by, [1, token, 1]; the language parts of all families have RMS norms."""
    return None if residual is None else (residual.float().pow(2).mean(-1, keepdim=True) + eps).sqrt()
