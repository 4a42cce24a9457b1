"""Methods side by side: how a model is asked, each as a value that the harness runs on every set.

No method sees what is right. One that does, to show how far a cure could go, says so (`oracle`) and is marked in every table.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emointerp.directions import POOLED, Directions
from emointerp.errors import InputError
from emointerp.evaluation.items import Item
from emointerp.models import VLM, Prompt
from emointerp.tracing import AddVector, Edit, generate
from emointerp.tracing.edits import as_edits

LOOK = "Look closely at my face and at the whole picture, and say what I feel."


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn: greedy at temperature 0, else sampled with a seed."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int | None = None
    batch: int = 32

    def options(self) -> dict[str, Any]:
        """As `VLM.generate` takes them."""
        return {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "seed": self.seed, "batch": self.batch}


@dataclass(frozen=True)
class Method:
    """A way to ask. `answers(vlm, items, decoding)` gives an answer for each item, in order.

    `settings` holds what it is made of as plain values, so that a table says it and an interrupted run with others is refused.
    """

    name: str
    answers: Callable[[VLM, Sequence[Item], Decoding], list[str]] = field(repr=False, compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    oracle: bool = False


def none() -> Method:
    """The model as it is."""
    return edited("none", ())


def edited(name: str, edits: Iterable[Edit], settings: Mapping[str, Any] | None = None) -> Method:
    """The same edits for every item."""
    edits = as_edits(edits)

    def answers(vlm: VLM, items: Sequence[Item], decoding: Decoding) -> list[str]:
        return generate(vlm, [item.prompt(vlm) for item in items], edits, **decoding.options())

    return Method(name, answers, settings or {"edits": [_described(edit) for edit in edits]})


def _described(edit: Edit) -> str:
    """An edit in words, and a hash of its tensors, of which the words give only the size."""
    tensors = [value for value in vars(edit).values() if torch.is_tensor(value)]
    digests = [hashlib.blake2b(t.float().cpu().numpy().tobytes(), digest_size=6).hexdigest() for t in tensors]
    return " ".join([repr(edit), *digests])


def per_prompt(
    name: str, edits_of: Callable[[VLM, list[Prompt]], Sequence[Sequence[Edit]]], settings: Mapping[str, Any] | None = None
) -> Method:
    """Edits that differ from prompt to prompt: a strength that follows the model's confidence, heads of its own prediction.

    `edits_of(vlm, prompts)` gives the edits of each prompt, in order. It sees prompts alone, so no label; what it costs is part of
    the method's time. Prompts with equal edits are answered together, in batches; sampled answers therefore depend on the company.
    """

    def answers(vlm: VLM, items: Sequence[Item], decoding: Decoding) -> list[str]:
        prompts = [item.prompt(vlm) for item in items]
        return grouped(vlm, prompts, edits_of(vlm, prompts), decoding)

    return Method(name, answers, settings or {})


def emotion_prompt(text: str = LOOK) -> Method:
    """A sentence before the story's instruction asks to look for the feeling; plain questions stay as they are.

    It stands before, not behind, because a model trained on one instruction (the bundled one) expects it at the end.
    """
    if not text.strip():
        raise InputError(f"The emotion prompt is empty; give a sentence such as {LOOK!r}")

    def answers(vlm: VLM, items: Sequence[Item], decoding: Decoding) -> list[str]:
        instruction = f"{text.strip()} {vlm.instruction}"
        return generate(vlm, [item.prompt(vlm, instruction) for item in items], **decoding.options())

    return Method("emotion prompt", answers, {"text": text.strip()})


def steering(directions: Directions | Float[Tensor, " d_model"], layer: int, alpha: float = 1.0) -> Method:
    """`alpha` times the pooled S, the mean over emotions, added after a layer from the last prompt token on: no label is seen.

    Takes directions, of which the pooled one is used, or a vector [d_model] of your own.
    """
    vector = directions[POOLED, layer] if isinstance(directions, Directions) else directions
    return edited("steering", [AddVector(layer, vector, alpha)])


def oracle_steering(directions: Directions, layer: int, alpha: float = 1.0) -> Method:
    """`alpha` times the gold emotion's own S: it sees the label, so it is an oracle.

    Items whose gold answer has no direction (neutral pictures, plain questions) are left alone.
    """
    edits = {emotion: directions.edits(emotion, layer, alpha) for emotion in directions.emotions}

    def answers(vlm: VLM, items: Sequence[Item], decoding: Decoding) -> list[str]:
        return grouped(vlm, [item.prompt(vlm) for item in items], [edits.get(item.gold, []) for item in items], decoding)

    settings = {emotion: [_described(edit) for edit in some] for emotion, some in edits.items()}
    return Method("steering with the gold emotion", answers, settings, oracle=True)


def grouped(
    vlm: VLM, prompts: Sequence[Prompt], edit_lists: Sequence[Sequence[Edit]], decoding: Decoding, **options: Any
) -> list[str]:
    """Each prompt's answer under its own edits, those with equal edits together; other `options` as in `generate`."""
    if len(edit_lists) != len(prompts):
        raise InputError(f"{len(prompts)} prompts, but edits for {len(edit_lists)}; give a list of edits for each, [] for none.")
    groups: dict[tuple[Edit, ...], list[int]] = {}
    for i, edits in enumerate(edit_lists):
        groups.setdefault(tuple(edits), []).append(i)
    found: dict[int, str] = {}
    for edits, rows in groups.items():
        told = generate(vlm, [prompts[i] for i in rows], edits, **decoding.options(), **options)
        found |= dict(zip(rows, told, strict=True))
    return [found[i] for i in range(len(prompts))]
