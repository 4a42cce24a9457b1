"""Three of the four verbs: `collect` activations, `run` with edits, `generate` with edits. The fourth is `sweep`."""

import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emointerp.errors import InputError
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import eager, part
from emointerp.tracing.activations import SITES, Activations
from emointerp.tracing.edits import Edit
from emointerp.tracing.interleave import Visit, scaled_after, traced
from emointerp.tracing.metrics import Metric, as_metric
from emointerp.tracing.plan import Plan, Rows, check, plan_answer, plan_prompt

Prompts = Prompt | Sequence[Prompt]


@dataclass(frozen=True, eq=False)
class Output:
    """What a run gives: the last token's logits."""

    logits: Float[Tensor, " vocabulary"] = field(repr=False)
    vlm: VLM = field(repr=False)

    def top(self, k: int = 10) -> pd.DataFrame:
        """The k likeliest next tokens: token, probability, logit."""
        logits, ids = self.logits.float().topk(k)
        probabilities = self.logits.float().softmax(-1)[ids]
        tokens = [self.vlm.tokenizer.decode([i]) for i in ids.tolist()]
        return pd.DataFrame({"token": tokens, "probability": probabilities.tolist(), "logit": logits.tolist()})


def run(vlm: VLM, prompts: Prompts, edits: Sequence[Edit] = ()) -> Output | list[Output]:
    """One forward with edits; a sequence of prompts runs as one padded batch and gives a list in its order."""
    batch = _Batch.of(vlm, prompts, edits)
    with torch.no_grad():
        outputs = [Output(row, vlm) for row in batch.forward(Visit(vlm))]
    return outputs[0] if isinstance(prompts, Prompt) else outputs


def collect(
    vlm: VLM,
    prompts: Prompts,
    sites: Sequence[str] = ("residual",),
    edits: Sequence[Edit] = (),
    *,
    layers: Iterable[int] | int | None = None,
    positions: Any = "all",
    wrt: Metric | Callable[[Tensor], Tensor] | None = None,
) -> Activations | list[Activations]:
    """Activations of "residual", "heads", "neurons", "attention" at `layers` and `positions`; all of them, where nothing is said.

    Edits are done first: what is collected is what the model went on with. `wrt` is a metric (see `Metric`), whose gradients at
    the same places come along as `gradients`. Attention weights are those of the eager implementation, which this one forward
    then uses. A sequence of prompts runs as one padded batch and gives a list in its order.

    Only what is asked for is kept; with `wrt` all tokens of the sites are, until the gradients are there.
    """
    sites = _checked_sites(sites)
    batch, layers = _Batch.of(vlm, prompts, edits), checked_layers(vlm, layers)
    listed = (positions,) if isinstance(positions, str | int) else tuple(positions)
    if not listed:
        raise InputError("No positions are named; expected token indices or spans such as 'last'.")
    shelf = _Shelf(batch, sites, layers, [p.positions(listed) for p in batch.prompts])
    with eager(part(vlm.model, vlm.anatomy.family.language)) if "attention" in sites else nullcontext():
        if wrt is None:
            with torch.no_grad():
                logits = batch.forward(Visit(vlm, dict.fromkeys(sites, layers), shelf.put))
            found = shelf.activations(logits)
        else:
            found = _with_gradients(batch, shelf, as_metric(wrt))
    return found[0] if isinstance(prompts, Prompt) else found


def generate(vlm: VLM, prompts: Prompts, edits: Sequence[Edit] = (), **options: Any) -> str | list[str]:
    """The model's answer under edits; `options` as in `VLM.generate`, `logits_processor` among them.

    Edits at prompt positions act while the prompt is read; those at "answer" act on every token generated after it.
    """
    if not edits:
        return vlm.generate(prompts, **options)
    if options.get("num_beams", 1) > 1 or options.get("num_return_sequences", 1) > 1:
        raise InputError("Edits go with one answer a prompt; leave num_beams and num_return_sequences at 1.")
    return vlm.generate(prompts, through=partial(_generated, vlm, edits), **options)


def _generated(vlm: VLM, edits: Sequence[Edit], prompts: Sequence[Prompt], inputs: dict, **options: Any) -> Tensor:
    """Token ids of transformers' own `generate`, with edits at every step."""
    batch = _Batch(vlm, list(prompts), edits, inputs)
    prefill = batch.plan()
    step_plan = plan_answer([edits] * len(prompts), prompts, batch.layout, range(len(prompts)), vlm.device)
    options |= {"num_beams": 1, "use_cache": True}  # one answer a prompt, one token a step
    model, answers, visit = traced(vlm), [], Visit(vlm)
    last = part(model, vlm.anatomy.norm)

    def answer(**inputs: Any) -> None:
        answers.append(vlm.model.generate(**inputs, **options))

    with warnings.catch_warnings(), scaled_after(vlm, prefill, step_plan):
        warnings.filterwarnings("ignore", category=UserWarning, module="nnsight")  # that the loop below is ended by the model
        with model.trace(fn=answer, **inputs) as tracer:
            for step in tracer.all():
                visit(prefill if step == 0 else step_plan)
                last.output  # noqa: B018 - waits for the step's end, also where its plan is empty
    return answers[0]


@dataclass(frozen=True)
class _Batch:
    """Prompts as one padded forward, with the same edits in every row."""

    vlm: VLM
    prompts: list[Prompt]
    edits: Sequence[Edit]
    inputs: dict[str, Any]

    @classmethod
    def of(cls, vlm: VLM, prompts: Prompts, edits: Sequence[Edit]) -> "_Batch":
        prompts = [prompts] if isinstance(prompts, Prompt) else list(prompts)
        if not prompts:
            raise InputError("There are no prompts; make one with vlm.prompt(image, text).")
        return cls(vlm, prompts, edits, vlm.placed(prompts[0].inputs if len(prompts) == 1 else vlm.batched(prompts)))

    @property
    def tokens(self) -> int:
        """Length of the padded prompts."""
        return self.inputs["input_ids"].shape[1]

    @property
    def layout(self) -> Rows:
        return Rows(tuple(self.tokens - len(p) for p in self.prompts))

    def plan(self) -> Plan:
        for prompt in self.prompts:
            check(self.edits, self.vlm.anatomy, prompt)
        return plan_prompt([self.edits] * len(self.prompts), self.prompts, self.layout, self.tokens, self.vlm.device)

    def forward(self, visit: Visit, leaf: bool = False) -> Tensor:
        """Logits of the last tokens, [batch, vocabulary]; with `leaf`, gradients can flow from the first layer's input on."""
        model, plan = traced(self.vlm), self.plan()
        first = part(model, f"{self.vlm.anatomy.layers}.0")
        with scaled_after(self.vlm, plan):
            with model.trace(**self.inputs, **self._positions(), use_cache=False, logits_to_keep=1):
                if leaf:
                    first.input = first.input.detach().requires_grad_()
                visit(plan)
                logits = model.output.logits[:, -1].save()
        return logits

    def _positions(self) -> dict[str, Tensor]:
        """Token numbers that do not count the padding; the Qwen families count for themselves, in three axes."""
        if len(self.prompts) == 1 or hasattr(self.vlm.model.model, "get_rope_index"):
            return {}
        return {"position_ids": (self.inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


class _Shelf:
    """Where collected activations are put, one tensor a prompt and site, made when its first layer comes."""

    def __init__(self, batch: _Batch, sites: tuple[str, ...], layers: tuple[int, ...], positions: list[tuple[int, ...]]):
        self.batch, self.sites, self.layers, self.positions = batch, sites, layers, positions
        self.kept: dict[tuple[int, str], Tensor] = {}

    def put(self, site: str, layer: int, value: Tensor) -> None:
        """Copy the asked positions of a layer's tensor [batch, …, token, width]."""
        for i, (pad, positions) in enumerate(zip(self.batch.layout.pads, self.positions, strict=True)):
            rows = torch.tensor(positions, device=value.device) + pad
            chosen = value[i].index_select(-2, rows)[..., pad if site == "attention" else 0 :]
            if (i, site) not in self.kept:
                self.kept[i, site] = torch.empty(len(self.layers), *chosen.shape, dtype=value.dtype, device=value.device)
            self.kept[i, site][self.layers.index(layer)] = chosen

    def activations(self, logits: Tensor, gradients: list[Activations] | None = None) -> list[Activations]:
        """What was put, one value a prompt."""
        heads = self.batch.vlm.anatomy.n_heads
        found = []
        for i, positions in enumerate(self.positions):
            kept = {site: self.kept[i, site] for site in self.sites}
            if "heads" in kept:
                kept["heads"] = kept["heads"].unflatten(-1, (heads, -1)).transpose(1, 2)
            more = {"gradients": gradients[i]} if gradients else {}
            found.append(Activations(self.layers, positions, logits[i].clone(), **kept, **more))
        return found


def _with_gradients(batch: _Batch, shelf: _Shelf, metric: Metric) -> list[Activations]:
    """Activations and the metric's gradients at the same places."""
    whole: dict[tuple[str, int], Tensor] = {}
    wanted = {site: set(shelf.layers) for site in shelf.sites}
    if metric.layer is not None:
        wanted["residual"] = wanted.get("residual", set()) | set(checked_layers(batch.vlm, [metric.layer]))
    with torch.enable_grad():
        logits = batch.forward(Visit(batch.vlm, wanted, lambda site, layer, value: whole.update({(site, layer): value})), leaf=True)
        last = logits if metric.layer is None else whole["residual", metric.layer][:, -1]
        asked = [(site, layer) for site in shelf.sites for layer in shelf.layers]
        total = _one_each(metric, metric(last)).sum()
        gradients = torch.autograd.grad(total, [whole[key] for key in asked], allow_unused=True, materialize_grads=True)
    slopes = _Shelf(batch, shelf.sites, shelf.layers, shelf.positions)
    for key, gradient in zip(asked, gradients, strict=True):
        shelf.put(*key, whole[key].detach())
        slopes.put(*key, gradient)
    logits = logits.detach()
    return shelf.activations(logits, slopes.activations(logits))


def _one_each(metric: Metric, values: Tensor) -> Tensor:
    if values.ndim != 1:
        raise InputError(f"The metric {metric.name!r} gives {list(values.shape[1:])} values a forward; a gradient needs one.")
    return values


def _checked_sites(sites: Sequence[str]) -> tuple[str, ...]:
    sites = (sites,) if isinstance(sites, str) else tuple(dict.fromkeys(sites))
    for site in sites:
        if site not in SITES:
            raise InputError(f"{site!r} is nothing to collect; expected some of {', '.join(SITES)}.")
    return sites


def checked_layers(vlm: VLM, layers: Iterable[SupportsIndex] | SupportsIndex | None) -> tuple[int, ...]:
    """Layers that the model has, each once; all of them where none are named."""
    n = vlm.anatomy.n_layers
    chosen = range(n) if layers is None else layers if isinstance(layers, Iterable) else (layers,)
    chosen = tuple(dict.fromkeys(operator.index(layer) for layer in chosen))
    if not chosen:
        raise InputError(f"No layers are named; this model has layers 0 to {n - 1}.")
    for layer in chosen:
        if not 0 <= layer < n:
            raise InputError(f"Layer {layer} is out of range; this model has layers 0 to {n - 1}.")
    return chosen
