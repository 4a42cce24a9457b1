"""A prompt: a picture and a text as a model reads them, with the spans that the methods speak of."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from emointerp.errors import InputError
from emointerp.given import listed
from emointerp.world.events import MAX_LENGTH


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the model reads. Spans are token positions: V (`visual`), Q (`query`) and L (`last`) of the methods.

    `inputs` holds what the processor made: `input_ids` [1, tokens], `attention_mask`, `pixel_values`, ….
    """

    image: Image.Image = field(repr=False)
    text: str
    rendered: str = field(repr=False)
    inputs: dict[str, Any] = field(repr=False)
    visual: tuple[int, ...] = field(repr=False)

    @property
    def input_ids(self) -> torch.Tensor:
        """Token ids, [1, tokens]."""
        return self.inputs["input_ids"]

    @property
    def last(self) -> int:
        """Position N of the last prompt token."""
        return self.input_ids.shape[1] - 1

    @property
    def query(self) -> tuple[int, ...]:
        """Positions of the text after the picture, without the last token."""
        return tuple(range(self.visual[-1] + 1, self.last))

    def __len__(self) -> int:
        """Number of tokens."""
        return self.input_ids.shape[1]

    def span(self, name: str) -> tuple[int, ...]:
        """Positions of a span by its name: "visual", "query", "last" or "all"."""
        if name == "last":
            return (self.last,)
        spans = {"visual": self.visual, "query": self.query, "all": range(len(self))}
        if name not in spans:
            raise InputError(f"A prompt has no span {name!r}; expected one of {', '.join(spans)}, last.")
        if not spans[name]:
            raise InputError(f"This prompt has no {name} tokens.")
        return tuple(spans[name])

    def positions(self, where: Iterable[str | int]) -> tuple[int, ...]:
        """Token indices of spans and indices, in their order; negative indices count from the end."""
        found: list[int] = []
        for p in where:
            if isinstance(p, str):
                found += self.span(p)
            elif -len(self) <= p < len(self):
                found.append(p % len(self))
            else:
                raise InputError(f"Position {p} is outside this prompt of {len(self)} tokens (0 to {self.last}).")
        return tuple(dict.fromkeys(found))


def as_prompts(given: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt or several as a list, read once; what is none is refused."""
    return [given] if isinstance(given, Prompt) else listed(given, Prompt, "prompt", "vlm.prompt(image, text), or a list of such")


def checked_text(text: str, what: str = "event") -> str:
    """The text itself, with single spaces and none at its ends; an empty or endless one is refused.

    >>> checked_text(" The phone  rang. ")
    'The phone rang.'
    """
    example = "a sentence such as 'The phone rang while I was cooking.'"
    if not isinstance(text, str):
        raise InputError(f"The {what} is a {type(text).__name__}; expected {example}")
    if not text.strip():
        raise InputError(f"The {what} is empty; give {example}")
    if len(text) > MAX_LENGTH:
        limit = f"at most {MAX_LENGTH:,} are read. Shorten it to a sentence or two."
        raise InputError(f"The {what} has {len(text):,} characters; {limit}")
    if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"The {what} holds bytes that are no text; give it in UTF-8, such as {example}")
    return " ".join(text.split())


def visual_positions(input_ids: torch.Tensor, image_token_id: int) -> tuple[int, ...]:
    """Where the image tokens stand in [1, tokens] ids."""
    return tuple(torch.nonzero(input_ids[0] == image_token_id).flatten().tolist())
