"""What the tour hands to its chapters, and what they hand back."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """What the user asked for: pictures with their names, and an event."""

    pictures: tuple[tuple[str, Any], ...]
    event: str


@dataclass(frozen=True)
class Chapter:
    """A chapter of the report: blocks of HTML under a title, a summary in plain words, and its numbers.

    `name` is the chapter's module, and the key of its numbers in `results.json`.
    """

    name: str
    title: str
    summary: tuple[str, ...]
    blocks: tuple[tuple[str, str], ...] = field(repr=False)
    results: dict[str, Any] = field(repr=False)
