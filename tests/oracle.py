"""Edits done by plain PyTorch hooks, one prompt at a time: the oracle that the tracing engine is held against.

Written in the slowest and plainest way, with loops over positions and heads, and nothing of `emointerp.tracing` but the edits.
"""

import math
from contextlib import contextmanager

import torch

from emointerp.tracing import AddVector, ScaleAttention, ScaleNeurons, SetHead, SetNeurons, SetResidual


def _layer(vlm, i: int) -> torch.nn.Module:
    return vlm.model.get_submodule(f"{vlm.anatomy.layers}.{i}")


def _where(prompt, listed, tokens: int, first: bool) -> list[int]:
    """Rows of this forward: prompt positions in the first one, the newest token in later ones."""
    if first:
        pad = tokens - prompt.input_ids.shape[1]
        return [pad + p for p in prompt.positions(p for p in listed if p != "answer")]
    return [0] if "answer" in listed else []


@contextmanager
def hooked(vlm, edits, prompt, row: int = 0):
    """While this lasts, forwards of the model do the edits in a batch's `row`: the first forward's prompt, later ones' answer."""
    handles, seen = [], {}

    def first(module) -> bool:
        seen[module] = seen.get(module, 0) + 1
        return seen[module] == 1

    def residual(edit):
        def hook(module, args, out):
            tokens = out.shape[1]
            out = out.clone()
            for k, t in enumerate(_where(prompt, edit.positions, tokens, first((edit, module)))):
                if isinstance(edit, AddVector):
                    out[row, t] += edit.alpha * edit.vector
                else:
                    out[row, t] = edit.value if edit.value.ndim == 1 else edit.value[k]
            return out

        return _layer(vlm, edit.layer).register_forward_hook(hook)

    def inner(edit, module):
        def hook(module, args):
            x = args[0].clone()
            for k, t in enumerate(_where(prompt, edit.positions, x.shape[1], first((edit, module)))):
                if isinstance(edit, SetHead):
                    d = vlm.anatomy.d_head
                    x[row, t, edit.head * d : (edit.head + 1) * d] = edit.value if edit.value.ndim == 1 else edit.value[k]
                elif isinstance(edit, SetNeurons):
                    for j, neuron in enumerate(edit.neurons):
                        x[row, t, neuron] = edit.value[j] if edit.value.ndim == 1 else edit.value[k, j]
                else:
                    for neuron in edit.neurons:
                        x[row, t, neuron] *= edit.factor
            return (x, *args[1:])

        return module.register_forward_pre_hook(hook)

    def attention(edit):
        def hook(module, args, kwargs):
            hidden = kwargs["hidden_states"] if not args else args[0]
            batch, tokens = hidden.shape[:2]
            at_first = first((edit, module))
            mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
            before = 0 if cache is None else cache.get_seq_length(edit.layer)
            keys = before + tokens
            if mask is None:
                mask = torch.full((batch, 1, tokens, keys), 0.0)
                for t in range(tokens):
                    mask[:, :, t, before + t + 1 :] = -math.inf
            elif mask.dtype == torch.bool:
                mask = torch.where(mask, 0.0, -math.inf)
            mask = mask.expand(batch, vlm.anatomy.n_heads, -1, -1).clone()
            if at_first:
                seen["pad", edit] = tokens - prompt.input_ids.shape[1]
            pad = seen["pad", edit] - (keys - mask.shape[-1])  # a sliding cache holds the last keys only
            for t in _where(prompt, edit.query, tokens, at_first):
                for p in (p for p in prompt.positions(edit.key) if pad + p >= 0):
                    for head in range(vlm.anatomy.n_heads) if edit.heads is None else edit.heads:
                        mask[row, head, t, pad + p] += math.log(edit.factor) if edit.factor else -math.inf
            return args, {**kwargs, "attention_mask": mask}

        return _layer(vlm, edit.layer).self_attn.register_forward_pre_hook(hook, with_kwargs=True)

    for edit in edits:
        if isinstance(edit, AddVector | SetResidual):
            handles.append(residual(edit))
        elif isinstance(edit, SetHead):
            handles.append(inner(edit, _layer(vlm, edit.layer).self_attn.o_proj))
        elif isinstance(edit, SetNeurons | ScaleNeurons):
            handles.append(inner(edit, _layer(vlm, edit.layer).mlp.down_proj))
        elif isinstance(edit, ScaleAttention):
            handles.append(attention(edit))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits(vlm, prompt, edits=()) -> torch.Tensor:
    """Last-token logits of one prompt under edits."""
    with hooked(vlm, edits, prompt):
        return vlm.model(**vlm.placed(prompt.inputs), use_cache=False, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def tokens(vlm, prompt, edits=(), n: int = 6, **options) -> list[int]:
    """Greedy token ids generated under edits."""
    with hooked(vlm, edits, prompt):
        out = vlm.model.generate(**vlm.placed(prompt.inputs), max_new_tokens=n, do_sample=False, **options)
    return out[0, prompt.input_ids.shape[1] :].tolist()


@torch.no_grad()
def caches(vlm, prompt) -> dict[tuple[str, int], torch.Tensor]:
    """Every site's activations of one plain forward, by hooks: [token, width]."""
    kept, handles = {}, []

    def keep(site, i, before):
        def hook(module, args, out=None):
            kept[site, i] = (args[0] if before else out)[0].clone()

        return hook

    for i in range(vlm.anatomy.n_layers):
        layer = _layer(vlm, i)
        handles.append(layer.register_forward_hook(keep("residual", i, False)))
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(keep("heads", i, True)))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(keep("neurons", i, True)))
    try:
        vlm.model(**vlm.placed(prompt.inputs), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return kept
