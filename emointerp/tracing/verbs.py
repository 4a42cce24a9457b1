"""Three of the four verbs: `collect` activations, `run` with edits, `generate` with edits. The fourth is `sweep`."""

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
from emointerp.given import index_of, texts
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.models.prompts import as_prompts
from emointerp.models.vlm import check_model
from emointerp.tracing import remote
from emointerp.tracing.activations import SITES, Activations
from emointerp.tracing.batch import Batch, Prompts, Shelf, activations
from emointerp.tracing.edits import Edit, as_edits
from emointerp.tracing.interleave import scaled_after, traced, visiting, weighing
from emointerp.tracing.metrics import Metric, as_metric
from emointerp.tracing.overflow import Guard, check_finite, overflow
from emointerp.tracing.plan import Plan, plan_answer


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


def run(vlm: VLM, prompts: Prompts, edits: Iterable[Edit] = ()) -> Output | list[Output]:
    """One forward with edits; a sequence of prompts runs as one padded batch and gives a list in its order.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> cut = [ei.block_attention(layer, "last", "visual") for layer in range(8)]
    >>> ei.run(vlm, vlm.prompt(*pair.plus), cut).logits.shape
    torch.Size([2048])
    """
    batch = Batch.of(vlm, prompts, edits)
    with torch.no_grad():
        outputs = [Output(row, vlm) for row in check_finite(vlm, batch.once_more(), batch.once_more)]
    return outputs[0] if isinstance(prompts, Prompt) else outputs


def collect(
    vlm: VLM,
    prompts: Prompts,
    sites: str | Iterable[str] = ("residual",),
    edits: Iterable[Edit] = (),
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

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> acts = ei.collect(vlm, vlm.prompt(*pair.plus), ["residual", "heads"], layers=[2, 5], positions="last")
    >>> acts.residual.shape, acts.heads.shape
    (torch.Size([2, 1, 192]), torch.Size([2, 8, 1, 24]))
    """
    sites = _checked_sites(sites)
    batch, layers = Batch.of(vlm, prompts, edits), checked_layers(vlm, layers)
    listed = tuple(positions) if isinstance(positions, Iterable) and not isinstance(positions, str) else (positions,)
    strange = [p for p in listed if not isinstance(p, str) and index_of(p) is None]
    if not listed or strange:
        what = f"{strange[0]!r} is no position" if strange else "No positions are named"
        raise InputError(f"{what}; expected token indices or spans such as 'last'.")
    shelf = Shelf(batch.layout.pads, sites, layers, [p.positions(listed) for p in batch.prompts])
    with weighing(vlm) if "attention" in sites else nullcontext():
        if wrt is None:
            with torch.no_grad():
                logits = batch.forward(visiting(vlm, dict.fromkeys(sites, layers), shelf.put), shelf.kept)
            found = activations(batch, shelf, check_finite(vlm, logits, batch.once_more))
        else:
            found = _with_gradients(batch, shelf, as_metric(wrt))
    return found[0] if isinstance(prompts, Prompt) else found


def generate(vlm: VLM, prompts: Prompts, edits: Iterable[Edit] = (), **options: Any) -> str | list[str]:
    """The model's answer under edits; `options` as in `VLM.generate`, `logits_processor` among them.

    Edits at prompt positions act while the prompt is read; those at "answer" act on every token generated after it.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> ei.generate(vlm, vlm.prompt(*pair.plus), max_new_tokens=6)
    'I stood outside at night.'
    """
    check_model(vlm)
    prompts, edits = prompts if isinstance(prompts, Prompt) else as_prompts(prompts), as_edits(edits)
    if edits and (options.get("num_beams", 1) > 1 or options.get("num_return_sequences", 1) > 1):
        raise InputError("Edits go with one answer a prompt; leave num_beams and num_return_sequences at 1.")
    through = {"through": partial(_generated, vlm, edits)} if edits else {}
    guard = Guard()
    if not vlm.remote:  # where nothing of ours runs between tokens
        options |= {"logits_processor": [guard, *(options.get("logits_processor") or ())]}
    try:
        return vlm.generate(prompts, **through, **options)
    except Exception:
        if not guard.noticed:
            raise
    raise overflow(vlm, partial(vlm.generate, prompts, **through, **options))


def _generated(vlm: VLM, edits: Sequence[Edit], prompts: Sequence[Prompt], inputs: dict, **options: Any) -> Tensor:
    """Token ids of transformers' own `generate`, with the same edits in every row."""
    return generated(Batch(vlm, list(prompts), [edits] * len(prompts), inputs), **options)


def generated(batch: Batch, **options: Any) -> Tensor:
    """Token ids of prompts and answers by transformers' own `generate`, with a batch's edits at every step."""
    vlm, prefill = batch.vlm, batch.plan()
    step_plan = plan_answer(batch.edit_lists, batch.prompts, batch.layout, range(len(batch.prompts)), vlm.device)
    options |= {"num_beams": 1, "use_cache": True}  # one answer a prompt, one token a step
    with warnings.catch_warnings(), scaled_after(vlm, prefill, step_plan):
        warnings.filterwarnings("ignore", category=UserWarning, module="nnsight")  # that a loop over steps is ended by the model
        return (remote.answered if vlm.remote else _answered)(vlm, prefill, step_plan, batch.inputs, options)


def _answered(vlm: VLM, prefill: Plan, step_plan: Plan, inputs: dict, options: dict) -> Tensor:
    model, answers, visit = traced(vlm), [], visiting(vlm)
    last = part(model, vlm.anatomy.norm)

    def answer(**inputs: Any) -> None:
        answers.append(vlm.model.generate(**inputs, **options))

    with model.trace(fn=answer, **inputs) as tracer:
        for step in tracer.all():
            visit(model, prefill if step == 0 else step_plan)
            last.output  # noqa: B018 - waits for the step's end, also where its plan is empty
    return answers[0]


def _with_gradients(batch: Batch, shelf: Shelf, metric: Metric) -> list[Activations]:
    """Activations and the metric's gradients at the same places."""
    vlm, whole = batch.vlm, {}
    wanted = {site: set(shelf.layers) for site in shelf.sites}
    if metric.layer is not None:
        wanted["residual"] = wanted.get("residual", set()) | set(checked_layers(vlm, [metric.layer]))
    if vlm.remote:
        return remote.with_gradients(batch, shelf, wanted, metric)
    with torch.enable_grad():
        visit = visiting(vlm, wanted, lambda site, layer, value: whole.update({(site, layer): value}))
        logits = batch.forward(visit, leaf=True)
        check_finite(vlm, logits, batch.once_more)
        last = check_finite(vlm, logits if metric.layer is None else whole["residual", metric.layer][:, -1], batch.once_more)
        asked = [(site, layer) for site in shelf.sites for layer in shelf.layers]
        total = metric.one_each(last).sum()
        gradients = torch.autograd.grad(total, [whole[key] for key in asked], allow_unused=True, materialize_grads=True)
    slopes = shelf.like()
    for key, gradient in zip(asked, gradients, strict=True):
        shelf.put(*key, whole[key].detach())
        slopes.put(*key, gradient)
    logits = logits.detach()
    return activations(batch, shelf, logits, activations(batch, slopes, logits))


def _checked_sites(sites: str | Iterable[str]) -> tuple[str, ...]:
    sites = tuple(dict.fromkeys(texts(sites, "sites")))
    for site in sites:
        if site not in SITES:
            raise InputError(f"{site!r} is nothing to collect; expected some of {', '.join(SITES)}.")
    return sites


def checked_layers(vlm: VLM, layers: Iterable[SupportsIndex] | SupportsIndex | None) -> tuple[int, ...]:
    """Layers that the model has, each once; all of them where none are named."""
    n = vlm.anatomy.n_layers
    several = isinstance(layers, Iterable) and not isinstance(layers, str) and getattr(layers, "ndim", 1) != 0
    chosen = range(n) if layers is None else list(layers) if several else [layers]
    if not len(chosen):
        raise InputError(f"No layers are named; this model has layers 0 to {n - 1}.")
    for layer in chosen:
        if (number := index_of(layer)) is None:
            raise InputError(f"Layer {layer!r} is no whole number; this model has layers 0 to {n - 1}.")
        if not 0 <= number < n:
            raise InputError(f"Layer {number} is out of range; this model has layers 0 to {n - 1}.")
    return tuple(dict.fromkeys(index_of(layer) for layer in chosen))
