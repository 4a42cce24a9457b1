"""Overflow noticed: numbers that left the range of 16 bits are refused, with the layer and the remedy, before they reach a table.

float16 ends at 65,504. An activation beyond it becomes infinite, the next norm makes NaN of it, and an answer, a direction or a
mean is made of that without a word from PyTorch. So each verb looks at what it is about to give, which costs little beside a
forward: logits, collected activations and their gradients, the metric's input. Only where a number is not finite is the forward
done once more, to see after which layer it began.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from emointerp.errors import ModelError
from emointerp.models import VLM
from emointerp.models.anatomy import part

REMEDY = {
    torch.float16: "Load the model in another precision, load(name, dtype='bfloat16') or 'float32' (--dtype)",
    torch.bfloat16: "Load the model in float32, load(name, dtype='float32') (--dtype), or look for NaN in its weights",
}


class Overflow(ModelError):
    """Numbers of a forward are not finite; no verb gives such numbers. `rows`: which interventions of a sweep's forward."""

    rows: tuple[int, ...] = ()


def finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite; NaN goes through the extremes, so that no memory is taken."""
    return not values.numel() or all(bool(end.isfinite()) for end in values.detach().aminmax())


def check_finite(vlm: VLM, values: Tensor, again: Callable[[], Any]) -> Tensor:
    """`values` as they are; Overflow, which names where it began, if one is NaN or infinite. `again` does the forward once more."""
    if finite(values):
        return values
    raise overflow(vlm, again)


def overflow(vlm: VLM, again: Callable[[], Any]) -> Overflow:
    """The error for a forward whose numbers are not finite."""
    dtype = vlm.model.dtype
    remedy = REMEDY.get(dtype, "Look for NaN or damage in its weights")
    said = f"{vlm.name!r} gives numbers that are not finite in {str(dtype)[6:]}: {_where(vlm, again)}"
    return Overflow(f"{said}. {remedy}; if edits push here, make their values smaller.")


def _where(vlm: VLM, again: Callable[[], Any]) -> str:
    """After which layer numbers are first not finite."""
    if vlm.remote:
        return "a model that runs elsewhere does not say in which layer"
    with _watched(vlm) as broken, torch.no_grad(), suppress(Exception):  # it failed before; how is told here
        again()
    after = min(broken, default=None)
    if after is None:
        return "what layers give is finite, and what is made of it is not"
    return f"from the output of layer {after} on" if after >= 0 else "from the embeddings of picture and text on, before layer 0"


@contextmanager
def _watched(vlm: VLM) -> Iterator[set[int]]:
    """Layers after which something is not finite, -1 for the embeddings; seen in the inputs of what follows, so after all edits."""
    anatomy, broken = vlm.anatomy, set()
    readers = [part(vlm.model, f"{anatomy.layers}.{i}") for i in range(anatomy.n_layers)] + [part(vlm.model, anatomy.norm)]

    def look(before: int, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not bool(hidden.isfinite().all()):
            broken.add(before)

    with ExitStack() as stack:
        for i, module in enumerate(readers, -1):
            hook = module.register_forward_pre_hook(lambda _module, args, kwargs, i=i: look(i, args, kwargs), with_kwargs=True)
            stack.callback(hook.remove)
        yield broken


class Guard:
    """A logits processor that ends an answer at the first token whose logits are NaN or above all bounds.

    -inf is no fault there: transformers' own processors, which come first, forbid tokens so.
    """

    noticed = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        if bool((scores.isnan() | scores.isposinf()).any()):
            self.noticed = True
            raise Overflow("The logits are not finite.")
        return scores
