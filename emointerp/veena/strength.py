"""Adaptive strength: how confident the model is of an emotion, and a VEENA eased by it, prompt by prompt."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from emointerp.errors import InputError
from emointerp.given import expected
from emointerp.lens import Words, emotion_tokens, lens_logits
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.models.prompts import as_prompts
from emointerp.models.vlm import check_model
from emointerp.tracing import Edit
from emointerp.tracing.verbs import checked_layers
from emointerp.veena.value import GIVE, Veena

BEGUN = "I felt"  # how an answer begins, after which an emotion word is due


def confidence(vlm: VLM, prompts: Prompt | Iterable[Prompt], layer: int, answer: str = BEGUN, words: Words = None) -> pd.DataFrame:
    """What the unedited model makes of each prompt after a layer, and the `share` of the full strength that this asks for.

    A row a prompt, numbers from 0 to 1: `mass`, the lens's probability of all emotion words; `sure`, how far one emotion stands out
    among them, `1 - H(p) / log(number of emotions)`, with p their masses brought to a sum of 1; `share = mass * (1 - sure)`.

    So the strength grows with the mass and falls with the confidence: most is done where an emotion is due and undecided, nothing
    where one is decided, and little beside a neutral picture. Entropy alone would do the contrary there: no emotion stands out
    where there is none (bundled model, layer 3, tuning split, medians: `sure` 0.25 in conflict, 0.08 for neutral twins; `mass` 0.78
    and 0.13).

    It is read at the end of `answer`, which begins an answer: at the end of a question no emotion word is due (masses of 0.003),
    and how these are divided tells nothing. "": at the prompt's own last token, for prompts that have begun their answer.
    """
    check_model(vlm)
    if not (prompts := as_prompts(prompts)):
        raise InputError("There are no prompts; make one with vlm.prompt(image, text).")
    if left_on(vlm):
        raise InputError("Confidence is that of the model without edits; leave what is on first.")
    with Sense.at(vlm, layer, answer, words) as sense:
        rows = [sense.read(vlm.model, vlm.placed(prompt.inputs)) for prompt in prompts]
    table = pd.DataFrame(torch.cat(rows).tolist(), columns=["mass", "sure"])
    return table.assign(share=table.mass * (1 - table.sure))


def adaptive(
    vlm: VLM, prompts: Prompt | Iterable[Prompt], value: Veena, parts: str = "both", answer: str = BEGUN, words: Words = None
) -> list[list[Edit]]:
    """Edits for each prompt with strengths `beta ** share`, the shares those of `confidence` at `value.l_emo`, in tenths.

    The added score rises in a straight line from nothing to `log beta`. The cost is a forward of each prompt. No label is seen.
    """
    expected(value, Veena, GIVE).check(vlm)
    return [value.eased(s).edits(parts) for s in tenths(confidence(vlm, prompts, layer_of(value), answer, words).share.tolist())]


def predicted(vlm: VLM, prompts: Prompt | Iterable[Prompt], answer: str = BEGUN, words: Words = None) -> list[str]:
    """The emotion whose words the unedited model holds likeliest after `answer`, for each prompt; no label is seen."""
    check_model(vlm)
    prompts = as_prompts(prompts)
    if left_on(vlm):
        raise InputError("A prediction is that of the model without edits; leave what is on first.")
    with Sense.at(vlm, vlm.anatomy.n_layers - 1, answer, words) as sense:
        emotions, found = list(sense.ids), []
        for prompt in prompts:
            sense.read(vlm.model, vlm.placed(prompt.inputs))
            found.append(emotions[int(sense.masses().argmax())])
    return found


def layer_of(value: Veena) -> int:
    """Where adaptive strength is read."""
    if value.l_emo is None:
        raise InputError("Adaptive strength is read at l_emo; name it: Veena(…, l_emo=3) (`Steering.emotional_layer` finds it).")
    return value.l_emo


def tenths(shares: Iterable[float]) -> list[float]:
    """Strengths in tenths of the way, so that prompts of equal strength can share a batch."""
    return [round(float(share), 1) for share in shares]


class LeftOn:
    """What `on` leaves on in a model, the owner of hooks there; `sense` is None where strengths are fixed."""

    sense: "Sense | None"


def left_on(vlm: VLM) -> list[LeftOn]:
    """What is on in a model now."""
    owners = (getattr(hook, "__self__", None) for hook in vlm.model._forward_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, LeftOn)]


@dataclass(eq=False)
class Sense:
    """Reads mass and sureness after a layer at the newest token of each row, by a hook on the layer."""

    vlm: VLM
    layer: int
    answer: str
    ids: dict[str, list[int]]
    last: Tensor | None = None  # of the forward before, [row, d_model]

    @classmethod
    @contextmanager
    def at(cls, vlm: VLM, layer: int, answer: str, words: Words) -> Iterator["Sense"]:
        """One whose hook is taken away at the end."""
        ids = {emotion: some.id.tolist() for emotion, some in emotion_tokens(vlm, words).groupby("emotion", sort=False)}
        if len(ids) < 2:
            raise InputError("Confidence is how one emotion stands out among others; give words of two or more.")
        sense = cls(vlm, checked_layers(vlm, layer)[0], answer, ids)
        handle = part(vlm.model, f"{vlm.anatomy.layers}.{sense.layer}").register_forward_hook(sense.keep)
        try:
            yield sense
        finally:
            handle.remove()

    def keep(self, _layer: Any, _args: tuple, out: Tensor) -> None:
        """The hook."""
        self.last = out[:, -1].detach()

    @torch.no_grad()
    def read(self, model: Callable, inputs: Mapping[str, Any]) -> Float[Tensor, "row 2"]:
        """Mass and sureness of prompts with a begun answer, by a forward of their own."""
        alone = {"past_key_values": None, "use_cache": False, "logits_to_keep": 1}
        model(**{**_begun(self.vlm, inputs, self.answer), **alone})
        return self.now()

    def masses(self) -> Float[Tensor, "row emotion"]:
        """Logarithm of each emotion's mass at the newest token of the forward before."""
        log_p = lens_logits(self.vlm, self.last).log_softmax(-1)
        return torch.stack([log_p[:, some].logsumexp(-1) for some in self.ids.values()], -1)

    def now(self) -> Float[Tensor, "row 2"]:
        """Mass and sureness there."""
        mass = self.masses()
        p = mass.softmax(-1)
        sure = 1 + torch.special.xlogy(p, p).sum(-1) / math.log(len(self.ids))
        return torch.stack([mass.exp().sum(-1), sure.clamp(0, 1)], -1).cpu()


def _begun(vlm: VLM, inputs: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Inputs of the model with the beginning of an answer after each row's prompt."""
    ids, longer = inputs["input_ids"], dict(inputs)
    spaced = vlm.tokenizer.decode(ids[0, -1:])[-1:].isspace()
    added = vlm.tokenizer(answer if spaced else f" {answer}", add_special_tokens=False).input_ids if answer else []
    longer["input_ids"] = torch.cat([ids, torch.tensor(added, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)], -1)
    for name, fill in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
        if inputs.get(name) is not None:
            longer[name] = pad(inputs[name], (0, len(added)), value=fill)
    if (at := inputs.get("position_ids")) is not None:
        longer["position_ids"] = torch.cat([at, at[..., -1:] + torch.arange(1, len(added) + 1, device=at.device)], -1)
    return longer
