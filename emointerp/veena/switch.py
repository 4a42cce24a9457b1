"""A VEENA left on: hooks that put its edits into everything that the model generates, and are gone afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from emointerp.errors import InputError
from emointerp.given import expected
from emointerp.lens import Words
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.models.prompts import visual_positions
from emointerp.tracing import Edit
from emointerp.tracing.interleave import traced, writing
from emointerp.tracing.plan import Plan, Rows, plan_answer, plan_prompt
from emointerp.veena.strength import BEGUN, LeftOn, Sense, layer_of, left_on, tenths
from emointerp.veena.value import GIVE, Veena

PROMPT, STEP = "prompt", "step"


@contextmanager
def on(
    vlm: VLM, value: Veena, parts: str = "both", adaptive: str | None = None, answer: str = BEGUN, words: Words = None
) -> Iterator[Veena]:
    """While this lasts, everything that the model generates is under `value`: `vlm.generate`, `ei.generate`, `vlm.model.generate`.

    In batches, greedy or sampled, and with beams but for "step", whose rows they reorder. Prompts are told by their token ids, so
    they have to come as ids, padded on the left, and with a key/value cache (transformers' default).

    `adaptive` None: fixed strengths. "prompt": each row's own, as the function `adaptive` has them. "step": in the answer, `sure`
    is that of the token before, under the edits that it had, and `mass` stays the prompt's (in a story it is high before a word of
    feeling only). Either costs an unedited forward of each batch of prompts; `answer` and `words` as in `confidence`.

    Afterwards, also after an error, no hook is left. Values that are on at once act together; an adaptive one is on alone. Not for
    sweeps and perplexities, which do not run the model as a whole: give a sweep `value.edits()`.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> looks = ei.Veena(upstream=[(2, 1)], downstream=[(5, 2), (6, 5)], beta=8)
    >>> with ei.veena.on(vlm, looks):
    ...     told = ei.tell(vlm, *pair.plus)
    >>> told.named
    ('anger',)
    """
    if adaptive not in (None, PROMPT, STEP):
        raise InputError(f"adaptive is {adaptive!r}; expected None, {PROMPT!r} or {STEP!r}.")
    expected(value, Veena, GIVE).check(vlm)
    if any(other.sense or adaptive for other in left_on(vlm)):
        raise InputError("An adaptive VEENA reads the model without edits, so nothing else can be on beside it; leave that first.")
    with ExitStack() as stack:
        sense = stack.enter_context(Sense.at(vlm, layer_of(value), answer, words)) if adaptive else None
        switch = Switch(vlm, value.only(parts), sense, adaptive == STEP)
        stack.callback(switch.ended)
        for handle in switch.hooked():
            stack.callback(handle.remove)
        yield value


@dataclass(frozen=True, eq=False)
class _Asked:
    """The prompts that the model read last; `mass` of each row, and `step`, the plan of their answers' next token."""

    ids: Tensor
    prompts: list[Prompt]
    layout: Rows
    mass: Tensor | None
    step: Plan


@dataclass(eq=False)
class Switch(LeftOn):
    """The hooks of `on`. Before each forward of the whole model they set those of its plan, where these are not set already."""

    vlm: VLM
    value: Veena
    sense: Sense | None = None
    per_step: bool = False
    running: ExitStack = field(default_factory=ExitStack)  # the hooks of `plan`
    plan: Plan | None = None
    asked: _Asked | None = None
    inside: bool = False  # a forward of the whole model runs
    reading: bool = False  # the unedited one

    def hooked(self) -> Iterator[Any]:
        """Handles of the hooks, set one by one."""
        language = part(self.vlm.model, self.vlm.anatomy.family.language)
        yield self.vlm.model.register_forward_pre_hook(self.before, with_kwargs=True)
        yield self.vlm.model.register_forward_hook(self.after, always_call=True)
        yield language.register_forward_pre_hook(self.guard)

    def before(self, _model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a forward of the whole model."""
        if self.reading:
            return
        inputs = kwargs | ({"input_ids": args[0]} if args else {})
        if inputs.get("input_ids") is None:
            raise InputError("VEENA tells the picture's tokens by their ids; call the model with input_ids, not inputs_embeds.")
        cache = inputs.get("past_key_values")
        answering = cache is not None and cache.get_seq_length() > 0
        plan = self._step(inputs["input_ids"]) if answering else self._prompt(inputs)
        if plan is not self.plan:  # an answer's steps share one
            self.ended()
            self.running.enter_context(writing(self.vlm, plan))
            self.plan = plan
        self.inside = True

    def after(self, *_: Any) -> None:
        """After it, also if it failed."""
        self.inside = self.inside and self.reading

    def ended(self) -> None:
        """No plan is written any more."""
        self.inside, self.plan = False, None
        self.running.close()

    def guard(self, *_: Any) -> None:
        """Refuses forwards of the language model alone, of which half would be under VEENA and half not."""
        if not (self.inside or self.reading):
            raise InputError("Sweeps and perplexities cannot be had while VEENA is on; leave it, and give a sweep value.edits().")

    def _prompt(self, inputs: dict[str, Any]) -> Plan:
        ids = inputs["input_ids"]
        if self.asked is not None and _goes_on(ids, self.asked.ids):
            raise InputError("This forward takes the last prompts one token further without a cache; generate with use_cache=True.")
        pads = _pads(ids, inputs.get("attention_mask"))
        prompts = [_as_prompt(self.vlm, row[None, left:]) for row, left in zip(ids, pads, strict=True)]
        sensed, layout = self._sensed(inputs), Rows(pads)
        lists = self._lists(sensed, len(ids))
        step = plan_answer(lists, prompts, layout, range(len(ids)), self.vlm.device)
        self.asked = _Asked(ids, prompts, layout, None if sensed is None else sensed[:, 0], step)
        return plan_prompt(lists, prompts, layout, ids.shape[1], self.vlm.device)

    def _step(self, ids: Tensor) -> Plan:
        asked = self.asked
        if asked is None or ids.shape != (len(asked.prompts), 1):
            came = f"{list(ids.shape)} tokens came on a cache"
            raise InputError(f"{came}; under VEENA an answer goes on by one token a row, from prompts that were read under it.")
        if not self.per_step:
            return asked.step
        lists = self._lists(torch.stack([asked.mass, self.sense.now()[:, 1]], -1), len(ids))
        return plan_answer(lists, asked.prompts, asked.layout, range(len(ids)), self.vlm.device)

    def _sensed(self, inputs: dict[str, Any]) -> Tensor | None:
        """Mass and sureness of each row by an unedited forward, which a trace that runs does not count among its own."""
        if self.sense is None:
            return None
        self.ended()
        self.reading = True
        try:
            return self.sense.read(traced(self.vlm), inputs)
        finally:
            self.reading = False

    def _lists(self, sensed: Tensor | None, rows: int) -> list[list[Edit]]:
        """Each row's edits."""
        if sensed is None:
            return [self.value.edits()] * rows
        return [self.value.eased(share).edits() for share in tenths((sensed[:, 0] * (1 - sensed[:, 1])).tolist())]


def _goes_on(ids: Tensor, before: Tensor) -> bool:
    """Whether these are the same rows with one more token each."""
    n, tokens = before.shape
    return ids.shape == (n, tokens + 1) and torch.equal(ids[:, :-1], before)


def _pads(ids: Tensor, mask: Tensor | None) -> tuple[int, ...]:
    """How many tokens each row is padded by, on the left."""
    if mask is None:
        return (0,) * len(ids)
    if mask.ndim != 2 or not (mask[:, -1] == 1).all() or (mask.diff(dim=-1) < 0).any():
        raise InputError("Under VEENA prompts are padded on the left; set the tokenizer's padding_side to 'left'.")
    return tuple((mask.shape[1] - mask.sum(-1)).tolist())


def _as_prompt(vlm: VLM, ids: Tensor) -> Prompt:
    """Token ids as a prompt: plans ask for its spans alone, so picture and text stay empty."""
    return Prompt(Image.new("L", (1, 1)), "", "", {"input_ids": ids}, visual_positions(ids, vlm.anatomy.image_token))
