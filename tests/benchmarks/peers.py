"""The same jobs along other roads: plain PyTorch hooks, TransformerLens, and nnsight with a trace for every cell.

Each road is written as its users write it, with whole-tensor operations. All read the package's edits, and share nothing else of
its tracing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pandas as pd
import torch
from case import Numbers
from subjects import Subject
from torch import Tensor
from transformer_lens import patching
from transformers import DynamicCache

from emointerp.models import Prompt
from emointerp.tracing import AddVector, Edit, SetHead

OPTIONS = {"use_cache": False, "logits_to_keep": 1}


def writer(subject: Subject, edit: Edit) -> Callable[[Tensor], Tensor]:
    """What an edit does to the tensor [batch, token, width] that it touches; a step of generation has its last token only."""
    positions = subject.prompt.positions(p for p in edit.positions if p != "answer")
    tokens = slice(-1, None) if positions == (subject.prompt.last,) else slice(positions[0], positions[-1] + 1)
    d_head = subject.vlm.anatomy.d_head
    columns = slice(edit.head * d_head, (edit.head + 1) * d_head) if isinstance(edit, SetHead) else slice(None)

    def write(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, tokens, columns] = x[:, tokens] + edit.alpha * edit.vector if isinstance(edit, AddVector) else edit.value
        return x

    return write


# plain PyTorch hooks


@torch.no_grad()
def plain_forward(subject: Subject) -> Numbers:
    """The model itself."""
    return {"logits": subject.plain.model(**subject.inputs, **OPTIONS).logits[0, -1]}


@contextmanager
def hooked(subject: Subject, edit: Edit) -> Iterator[None]:
    """A hook that does the edit."""
    layer, write = subject.plain.model.model.language_model.layers[edit.layer], writer(subject, edit)
    if isinstance(edit, SetHead):
        handle = layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: (write(args[0]),))
    else:
        handle = layer.register_forward_hook(lambda module, args, out: write(out))
    try:
        yield
    finally:
        handle.remove()


def hooks_loop(subject: Subject, cells: dict[Any, Edit]) -> Numbers:
    """A hooked forward for each cell."""
    found = {}
    for cell, edit in cells.items():
        with hooked(subject, edit):
            found[cell] = plain_forward(subject)["logits"]
    return found


@torch.no_grad()
def hooks_collect(subject: Subject) -> Numbers:
    """Residual stream and heads of every layer, kept by hooks."""
    residual, heads = [], []
    with ExitStack() as stack:
        for layer in subject.plain.model.model.language_model.layers:
            kept = layer.register_forward_hook(lambda module, args, out: residual.append(out[0].clone()))
            stack.callback(kept.remove)
            kept = layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: heads.append(args[0][0].clone()))
            stack.callback(kept.remove)
        logits = plain_forward(subject)["logits"]
    return {"logits": logits, "residual": torch.stack(residual), "heads": _by_head(subject, torch.stack(heads))}


def _by_head(subject: Subject, heads: Tensor) -> Tensor:
    """[layer, token, heads * d_head] as [layer, head, token, d_head]."""
    return heads.unflatten(-1, (subject.vlm.anatomy.n_heads, -1)).transpose(1, 2)


def hooks_answers(subject: Subject, cells: dict[Any, Edit], **options: Any) -> Numbers:
    """A hooked `generate` for each cell."""
    return hooks_stories(subject, {cell: (subject.prompt, edit) for cell, edit in cells.items()}, **options)


def hooks_stories(subject: Subject, cells: dict[Any, tuple[Prompt, Edit]], **options: Any) -> Numbers:
    """The same, with a prompt for each cell, and edits at the last token and the answer."""
    found = {}
    for cell, (prompt, edit) in cells.items():
        with hooked(subject, edit):
            found[cell] = subject.plain.generate(prompt, **options)
    return found


@torch.no_grad()
def floor(subject: Subject, branches: int) -> Numbers:
    """The least that a sweep must do: the prompt once, and one forward of a token a branch behind it."""
    model, cache = subject.plain.model, DynamicCache()
    logits = model(**subject.inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
    embeds = model.get_input_embeddings()(subject.prompt.input_ids[:, -1:].expand(1, branches))
    hidden = model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state
    model.lm_head(hidden)
    return {"baseline": logits}


# TransformerLens


@torch.no_grad()
def lens_forward(subject: Subject) -> Numbers:
    """The twin under TransformerLens's names."""
    return {"logits": subject.bridge(subject.prompt)[0, -1]}


@torch.no_grad()
def lens_collect(subject: Subject) -> Numbers:
    """Residual stream and heads of every layer from `run_with_cache`."""
    logits, cache = subject.bridge.run_with_cache(subject.prompt, lambda name: name.endswith(("hook_resid_post", "hook_z")))
    layers = range(subject.vlm.anatomy.n_layers)
    residual = torch.stack([cache[f"blocks.{i}.hook_resid_post"][0] for i in layers])
    heads = torch.stack([cache[f"blocks.{i}.attn.hook_z"][0] for i in layers])
    return {"logits": logits[0, -1], "residual": residual, "heads": heads.transpose(1, 2)}


@torch.no_grad()
def lens_loop(subject: Subject, cells: dict[Any, Edit]) -> Numbers:
    """A hooked forward of TransformerLens for each cell."""
    found = {}
    for cell, edit in cells.items():
        write, site = writer(subject, edit), "attn.hook_z" if isinstance(edit, SetHead) else "hook_resid_post"
        hook = lambda x, hook, write=write: write(x.flatten(2)).view_as(x)  # noqa: E731
        found[cell] = subject.bridge.run_with_hooks(subject.prompt, [(f"blocks.{edit.layer}.{site}", hook)])[0, -1]
    return found


@torch.no_grad()
def lens_head_map(subject: Subject, cells: dict[tuple[int, int], Edit]) -> Numbers:
    """TransformerLens's own patching of heads, cell by cell."""
    rows = [(layer, subject.prompt.last, head) for layer, head in cells]
    names = [f"blocks.{layer}.attn.hook_z" for layer in {layer for layer, _ in cells}]
    clean = dict(zip(names, (subject.donor.heads[int(n.split(".")[1])].transpose(0, 1)[None] for n in names), strict=True))
    kept: list[Tensor] = []

    def metric(logits: Tensor) -> Tensor:
        kept.append(logits[0, -1])
        return logits[0, -1, 0]

    patching.get_act_patch_attn_head_out_by_pos(
        subject.bridge.on(subject.prompt), subject.prompt.input_ids, clean, metric,
        index_axis_names=None, index_df=pd.DataFrame(rows, columns=["layer", "pos", "head"]),
    )  # fmt: skip
    return dict(zip(cells, kept, strict=True))


# nnsight, one trace a cell


@torch.no_grad()
def nnsight_collect(subject: Subject) -> Numbers:
    """Residual stream and heads of every layer, saved in a trace."""
    view = subject.view
    with view.trace(**subject.inputs, **OPTIONS):
        residual, heads = [].save(), [].save()
        for layer in view.model.language_model.layers:
            heads.append(layer.self_attn.o_proj.input[0].clone())
            residual.append(layer.output[0].clone())
        logits = view.output.logits[0, -1].save()
    return {"logits": logits, "residual": torch.stack(residual), "heads": _by_head(subject, torch.stack(heads))}


@torch.no_grad()
def nnsight_forward(subject: Subject) -> Numbers:
    """A trace that only reads the logits."""
    view = subject.view
    with view.trace(**subject.inputs, **OPTIONS):
        logits = view.output.logits[0, -1].save()
    return {"logits": logits}


@torch.no_grad()
def nnsight_loop(subject: Subject, cells: dict[Any, Edit]) -> Numbers:
    """A trace for each cell."""
    view, found = subject.view, {}
    for cell, edit in cells.items():
        layer, write, is_head = (
            subject.view.model.language_model.layers[edit.layer],
            writer(subject, edit),
            isinstance(edit, SetHead),
        )
        with view.trace(**subject.inputs, **OPTIONS):
            if is_head:
                layer.self_attn.o_proj.input = write(layer.self_attn.o_proj.input)
            else:
                layer.output = write(layer.output)
            logits = view.output.logits[0, -1].save()
        found[cell] = logits
    return found


def sample(cells: dict[Any, Edit], n: int) -> dict[Any, Edit]:
    """About n of the cells, evenly spread."""
    chosen: Sequence[Any] = list(cells)[:: max(1, len(cells) // n)][:n]
    return {cell: cells[cell] for cell in chosen}
