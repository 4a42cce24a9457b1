"""What verbs run and keep: prompts as one padded forward, and a shelf for the activations that are asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nnsight import save
from torch import Tensor

from emointerp.errors import InputError
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.models.prompts import as_prompts
from emointerp.models.vlm import check_model
from emointerp.tracing.activations import Activations
from emointerp.tracing.edits import Edit, as_edits
from emointerp.tracing.interleave import Visit, forward_trace, scaled_after, traced, visiting
from emointerp.tracing.overflow import check_finite
from emointerp.tracing.plan import Plan, Rows, check, plan_prompt

Prompts = Prompt | Iterable[Prompt]


@dataclass(frozen=True)
class Batch:
    """Prompts as one padded forward, each with edits of its own."""

    vlm: VLM
    prompts: list[Prompt]
    edit_lists: Sequence[Sequence[Edit]]
    inputs: dict[str, Any]

    @classmethod
    def of(cls, vlm: VLM, prompts: Prompts, edits: Iterable[Edit]) -> "Batch":
        """Prompts with the same edits, each read once."""
        check_model(vlm)
        prompts, edits = as_prompts(prompts), as_edits(edits)
        if not prompts:
            raise InputError("There are no prompts; make one with vlm.prompt(image, text).")
        inputs = prompts[0].inputs if len(prompts) == 1 else vlm.batched(prompts)
        return cls(vlm, prompts, [edits] * len(prompts), vlm.placed(inputs))

    @property
    def tokens(self) -> int:
        """Length of the padded prompts."""
        return self.inputs["input_ids"].shape[1]

    @property
    def layout(self) -> Rows:
        """Where each prompt's tokens stand."""
        return Rows(tuple(self.tokens - len(p) for p in self.prompts))

    def plan(self) -> Plan:
        """The writes of the edits, which are checked."""
        for prompt, edits in zip(self.prompts, self.edit_lists, strict=True):
            check(edits, self.vlm.anatomy, prompt)
        return plan_prompt(self.edit_lists, self.prompts, self.layout, self.tokens, self.vlm.device)

    def forward(self, visit: Visit, kept: dict | None = None, leaf: bool = False) -> Tensor:
        """Logits of the last tokens, [batch, vocabulary]; with `leaf`, gradients can flow from the first layer's input on.

        `kept` is where the visit puts what it keeps; it is filled here, wherever the model runs.
        """
        model, plan = traced(self.vlm), self.plan()
        first, filled = part(model, f"{self.vlm.anatomy.layers}.0"), {} if kept is None else kept
        with scaled_after(self.vlm, plan):
            with forward_trace(self.vlm, **self.arguments()):
                with torch.set_grad_enabled(leaf):  # also where a server's own setting is another
                    if leaf:
                        first.input = first.input.detach().requires_grad_()
                    visit(model, plan)
                    logits = model.output.logits[:, -1].save()
                filled = save(filled)
        if kept is not None and filled is not kept:  # it was filled on another machine
            kept.update(filled)
        return logits

    def once_more(self) -> Tensor:
        """The forward alone."""
        return self.forward(visiting(self.vlm))

    def arguments(self) -> dict[str, Any]:
        """What the model's forward gets."""
        return {**self.inputs, **self._positions(), "use_cache": False, "logits_to_keep": 1}

    def _positions(self) -> dict[str, Tensor]:
        """Token numbers that do not count the padding; the Qwen families count for themselves, in three axes."""
        if len(self.prompts) == 1 or hasattr(self.vlm.structure.model, "get_rope_index"):
            return {}
        return {"position_ids": (self.inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


class Shelf:
    """Where collected activations are put, one tensor a prompt and site, made when its first layer comes.

    It travels where a `Visit` does, so it knows of the batch only how many tokens each row is padded by.
    """

    def __init__(self, pads: tuple[int, ...], sites: tuple[str, ...], layers: tuple[int, ...], positions: list[tuple[int, ...]]):
        self.pads, self.sites, self.layers, self.positions = pads, sites, layers, positions
        self.kept: dict[tuple[int, str], Tensor] = {}

    def put(self, site: str, layer: int, value: Tensor) -> None:
        """Copy the asked positions of a layer's tensor [batch, …, token, width]."""
        for i, (pad, positions) in enumerate(zip(self.pads, self.positions, strict=True)):
            rows = torch.tensor(positions, device=value.device) + pad
            chosen = value[i].index_select(-2, rows)[..., pad if site == "attention" else 0 :]
            if (i, site) not in self.kept:
                self.kept[i, site] = torch.empty(len(self.layers), *chosen.shape, dtype=value.dtype, device=value.device)
            self.kept[i, site][self.layers.index(layer)] = chosen

    def like(self) -> "Shelf":
        """An empty shelf for the same places."""
        return Shelf(self.pads, self.sites, self.layers, self.positions)


def activations(batch: Batch, shelf: Shelf, logits: Tensor, gradients: list[Activations] | None = None) -> list[Activations]:
    """What was put on a shelf, one value a prompt; refused if a number of it is not finite."""
    found = []
    for i, positions in enumerate(shelf.positions):
        kept = {site: check_finite(batch.vlm, shelf.kept[i, site], batch.once_more) for site in shelf.sites}
        if "heads" in kept:
            kept["heads"] = kept["heads"].unflatten(-1, (batch.vlm.anatomy.n_heads, -1)).transpose(1, 2)
        more = {"gradients": gradients[i]} if gradients else {}
        found.append(Activations(shelf.layers, positions, logits[i].clone(), **kept, **more))
    return found
