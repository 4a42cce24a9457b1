"""What the tour hands to its chapters, and what they hand back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from emointerp.markup import data_uri
from emointerp.statistics import Interval


@dataclass(frozen=True)
class Job:
    """What the user asked for, pictures with their names and an event; and what earlier chapters `found`, by their names."""

    pictures: tuple[tuple[str, Any], ...]
    event: str
    found: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Chapter:
    """A chapter of the report: blocks of HTML under a title, a summary in plain words, and its numbers.

    `name` is the chapter's module, and the key of its numbers in `results.json`. `found` is what later chapters go on from, so that
    nothing is measured twice; None where there is nothing.
    """

    name: str
    title: str
    summary: tuple[str, ...]
    blocks: tuple[tuple[str, str], ...] = field(repr=False)
    results: dict[str, Any] = field(repr=False)
    found: Any = field(default=None, repr=False)


def figure_html(figure: Figure, alt: str) -> str:
    """A figure inside the page, with a text for those who cannot see it."""
    return f'<figure><img src="{data_uri(figure)}" alt="{escape(alt)}"></figure>'


def table_html(frame: pd.DataFrame) -> str:
    """A table of texts; numbers stay on one line with their intervals."""
    kept = frame.map(lambda cell: cell.replace(" ", "\N{NO-BREAK SPACE}") if "[" in cell else cell)
    return kept.to_html(index=False, border=0, justify="left")


def muted(text: str) -> str:
    """A remark below a table or figure."""
    return f'<p class="muted">{text}</p>'


def share(interval: Interval) -> str:
    """A share and its interval in per cent."""
    return f"{interval.mean:.0%} [{interval.low:.0%}, {interval.high:.0%}]"
