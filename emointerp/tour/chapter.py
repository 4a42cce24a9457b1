"""What the tour hands to its chapters, and what they hand back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emointerp.errors import InputError
from emointerp.lens import emotion_tokens
from emointerp.markup import data_uri
from emointerp.models import VLM
from emointerp.statistics import Interval
from emointerp.tour.sizes import BATCH, FULL, Sizes

RAN, LEFT_OUT, STOPPED = "ran", "left out", "stopped"
BECAME = {LEFT_OUT: "was left out", STOPPED: "was stopped by an error"}


@dataclass(frozen=True)
class Job:
    """What the user asked for, pictures with their names and an event; what earlier chapters `found`, and their `states`, by name.

    `sizes`: how much is measured. `batch`: how many stories are told together, as many as memory holds (`sizes.stories_together`).
    """

    pictures: tuple[tuple[str, Any], ...]
    event: str
    found: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sizes: Sizes = field(default=FULL, repr=False)
    states: Mapping[str, str] = field(default_factory=dict, repr=False)
    batch: int = BATCH


@dataclass(frozen=True)
class Chapter:
    """A chapter of the report: blocks of HTML under a title, a summary, and its numbers.

    `name` is the chapter's module, and the key of its numbers in `results.json`. `plain` are the chapter's answers to the questions
    of the first screen, (question, answer in plain words) each. `found` is what later chapters go on from, so that nothing is
    measured twice; None where there is nothing. `state`: "ran"; "left out", which `summary` explains; or "stopped" by an error.
    """

    name: str
    title: str
    summary: tuple[str, ...]
    blocks: tuple[tuple[str, str], ...] = field(repr=False)
    results: dict[str, Any] = field(repr=False)
    found: Any = field(default=None, repr=False)
    plain: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    state: str = RAN


def left_out(name: str, title: str, why: str, **results: Any) -> Chapter:
    """A chapter that cannot be done with this model, and the sentence that says why."""
    return Chapter(name, title, (why,), (), {"left out": why} | results, state=LEFT_OUT)


def no_words(vlm: VLM) -> str | None:
    """Why a chapter that counts an emotion's words by their first tokens cannot be done with this model's tokenizer; else None."""
    try:
        emotion_tokens(vlm)
    except InputError as error:
        return (
            "Left out: this chapter counts the words of an emotion by their first tokens, and this model's tokenizer does not tell "
            f"all six apart by these. {str(error).partition(';')[0].rstrip('.')}."
        )
    return None


def figure_html(figure: Figure, alt: str) -> str:
    """A figure inside the page, with a text for those who cannot see it."""
    return f'<figure><img src="{data_uri(figure)}" alt="{escape(alt)}"></figure>'


def table_html(frame: pd.DataFrame) -> str:
    """A table of texts, which scrolls where it is wider than the page; numbers stay on one line with their intervals."""
    kept = frame.map(lambda cell: cell.replace(" ", "\N{NO-BREAK SPACE}") if "[" in cell else cell)
    return scrolling(kept.to_html(index=False, border=0, justify="left"))


def scrolling(table: str) -> str:
    """A table that scrolls by itself, by keys too, where it is wider than the page."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="table">{table}</div>'


def muted(text: str) -> str:
    """A remark below a table or figure."""
    return f'<p class="muted">{text}</p>'


def listed(names: Sequence[str], word: str = "or") -> str:
    """Names as a sentence has them.

    >>> listed(["joy"]), listed(["joy", "fear", "anger"], "and")
    ('joy', 'joy, fear and anger')
    """
    return f"{', '.join(names[:-1])} {word} {names[-1]}" if len(names) > 1 else "".join(names)


def reached(p: float, draws: float | int | np.integer) -> int:
    """How many of the draws do as much, of a p-value that is the effect's rank among them.

    >>> reached(0.5, 3)
    1
    """
    return round(p * (draws + 1) - 1)


def by_name(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """A table's rows by the names of its index, as results have them; of an index of heads by "layer.head"."""
    names = [".".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in table.index]
    return table.set_axis(names).to_dict("index")


def share(interval: Interval) -> str:
    """A share and its interval in per cent.

    >>> share(Interval(-0.001, -0.1, 0.25, 40))
    '0% [-10%, 25%]'
    """
    return f"{interval.mean:.0%} [{interval.low:.0%}, {interval.high:.0%}]".replace("-0%", "0%")


def number(interval: Interval, digits: int = 2) -> str:
    """A mean and its interval."""
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def points(interval: Interval, lost: bool = False) -> str:
    """A difference of shares; or what was `lost`, which has no sign where it is positive.

    >>> points(Interval(0.1, -0.0001, 0.25, 40))
    '+10 [0, +25] points'
    >>> points(Interval(0.76, 0.67, 0.83, 18), lost=True)
    '76 [67, 83] points'
    """
    sign = "" if lost else "+"
    mean, low, high = (f"{100 * x:{sign}.0f}" for x in (interval.mean, interval.low, interval.high))
    said = f"{mean} [{low}, {high}] points"
    return re.sub(r"[+-]0\b", "0", said).replace("-", "\N{MINUS SIGN}")
