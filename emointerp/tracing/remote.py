"""Verbs where the model runs on another machine, as far as they differ: answers, gradients, sweeps and likelihoods by requests.

What stands in the body of a trace here runs over there, on copies: it holds tensors, plain values, and objects that are made of
these, and gives back what it saves. A metric stays on this machine; of a gradient only the metric's slope travels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nnsight import save
from torch import Tensor

from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.tracing.activations import Activations
from emointerp.tracing.batch import Batch, Shelf, activations
from emointerp.tracing.edits import Edit
from emointerp.tracing.interleave import forward_trace, scaled_after, traced, visiting
from emointerp.tracing.metrics import Metric
from emointerp.tracing.plan import Plan

TOKENS = 8192  # tokens of one request of a sweep: some ten whole prompts


def answered(vlm: VLM, prefill: Plan, step_plan: Plan, inputs: dict, options: dict) -> Tensor:
    """Token ids of the model's own `generate` with one plan's writes while prompts are read, and another's at each token after."""
    model, visit, seed = traced(vlm), visiting(vlm), options.pop("seed", None)
    last = part(model, vlm.anatomy.norm)
    with vlm.model.generation(**options) as tracer:
        with tracer.invoke(**inputs):
            if seed is not None:
                torch.manual_seed(seed)
            for step in tracer.all():
                visit(model, prefill if step == 0 else step_plan)
                last.output  # noqa: B018 - waits for the step's end, also where its plan is empty
        with tracer.invoke():  # what comes after an open loop is never reached, so this stands beside it
            tokens = tracer.result.save()
    return tokens


def with_gradients(batch: Batch, shelf: Shelf, wanted: dict[str, set[int]], metric: Metric) -> list[Activations]:
    """Activations and a metric's gradients at the same places, in two requests.

    The first gives what the metric reads. Its slope there is found on this machine, and the second carries that back through the
    model, by the chain rule.
    """
    vlm, model, plan, carrier = batch.vlm, traced(batch.vlm), batch.plan(), Carrier(shelf, metric.layer, _slope(batch, metric))
    first, visit = part(model, f"{vlm.anatomy.layers}.0"), visiting(vlm, wanted, carrier.keep)
    with scaled_after(vlm, plan):
        with forward_trace(vlm, **batch.arguments()):
            with torch.enable_grad():
                first.input = first.input.detach().requires_grad_()
                visit(model, plan)
                logits = model.output.logits[:, -1]
                carrier.back(logits)
            logits = save(logits.detach())
            kept = save([carrier.shelf.kept, carrier.slopes.kept])
    slopes = shelf.like()
    shelf.kept, slopes.kept = kept
    return activations(batch, shelf, logits, activations(batch, slopes, logits))


def _slope(batch: Batch, metric: Metric) -> Tensor:
    """The gradient of a batch's summed metric with respect to what it reads, [batch, width]."""
    at = metric.layer
    shelf = Shelf(batch.layout.pads, ("residual",), () if at is None else (at,), [(p.last,) for p in batch.prompts])
    with torch.no_grad():
        read = batch.forward(visiting(batch.vlm, {} if at is None else {"residual": [at]}, shelf.put), shelf.kept)
    if at is not None:
        read = torch.cat([shelf.kept[i, "residual"][0] for i in range(len(batch.prompts))])
    with torch.enable_grad():
        read = read.detach().requires_grad_()
        return torch.autograd.grad(metric.one_each(read).sum(), read)[0]


class Carrier:
    """Carries a metric's slope back to the sites of a shelf, inside the forward."""

    def __init__(self, shelf: Shelf, layer: int | None, slope: Tensor):
        self.shelf, self.slopes, self.layer, self.slope = shelf, shelf.like(), layer, slope
        self.whole: dict[tuple[str, int], Tensor] = {}

    def keep(self, site: str, layer: int, value: Tensor) -> None:
        """Keep a layer's whole tensor."""
        self.whole[site, layer] = value

    def back(self, logits: Tensor) -> None:
        """Put activations and their gradients on the shelves."""
        last = logits if self.layer is None else self.whole["residual", self.layer][:, -1]
        asked = [(site, layer) for site in self.shelf.sites for layer in self.shelf.layers]
        tensors = [self.whole[key] for key in asked]
        gradients = torch.autograd.grad(last, tensors, self.slope.to(last), allow_unused=True, materialize_grads=True)
        for key, gradient in zip(asked, gradients, strict=True):
            self.shelf.put(*key, self.whole[key].detach())
            self.slopes.put(*key, gradient)


@dataclass(frozen=True, eq=False)
class Forwards:
    """Interventions on one prompt as rows of a batch of whole prompts: what `Branches` are where the model is here."""

    vlm: VLM
    prompt: Prompt
    edit_lists: Sequence[Sequence[Edit]]

    @staticmethod
    def chunk(prompt: Prompt) -> int:
        """Interventions of one request."""
        return max(1, TOKENS // len(prompt))

    @property
    def batch(self) -> Batch:
        """The prompt once for each intervention."""
        n = len(self.edit_lists)
        return Batch(self.vlm, [self.prompt] * n, self.edit_lists, repeated(self.vlm.placed(self.prompt.inputs), n))

    @torch.no_grad()
    def last(self, metric: Metric) -> Tensor:
        """What the metric reads of each row's last token."""
        batch, at = self.batch, metric.layer
        if at is None:
            return batch.once_more()
        shelf = Shelf(batch.layout.pads, ("residual",), (at,), [(self.prompt.last,)] * len(self.edit_lists))
        batch.forward(visiting(self.vlm, {"residual": [at]}, shelf.put), shelf.kept)
        return torch.cat([shelf.kept[i, "residual"][0] for i in range(len(self.edit_lists))])


def repeated(inputs: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """Model inputs of one prompt, for n rows of it; pictures, their sizes and patches stand behind one another in all families."""
    return {name: value.repeat(n, *[1] * (value.ndim - 1)) for name, value in inputs.items()}


@torch.no_grad()
def following(vlm: VLM, prompt: Prompt, answers: Tensor) -> Tensor:
    """Log-probabilities of the tokens of answers [answers, tokens] after a prompt, in nats."""
    n, length = answers.shape
    inputs = repeated(vlm.placed(prompt.inputs), n)
    kinds = {name: torch.zeros_like(answers) for name in inputs if name.endswith("token_type_ids")}
    new = {"input_ids": answers, "attention_mask": torch.ones_like(answers)} | kinds
    inputs |= {name: torch.cat([inputs[name], value.to(inputs[name])], 1) for name, value in new.items()}
    model = traced(vlm)
    with forward_trace(vlm, **inputs, use_cache=False, logits_to_keep=length + 1):
        with torch.no_grad():
            log_p = model.output.logits[:, :-1].float().log_softmax(-1)
            found = log_p.gather(-1, answers[..., None].to(log_p.device))[..., 0].save()
    return found


@torch.no_grad()
def values_of(vlm: VLM, prompt: Prompt, layer: int) -> Tensor:
    """A layer's value vectors of a prompt, as they stand in the model's cache: [kv heads, token, d_head]."""
    projection = part(traced(vlm), f"{vlm.anatomy.layers}.{layer}.self_attn.v_proj")
    with forward_trace(vlm, **vlm.placed(prompt.inputs), use_cache=False, logits_to_keep=1) as tracer:
        with torch.no_grad():
            values = projection.output.detach().save()
        tracer.stop()
    return values[0].unflatten(-1, (vlm.anatomy.n_kv_heads, -1)).transpose(0, 1)
