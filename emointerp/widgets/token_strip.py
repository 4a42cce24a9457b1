"""The tokens of a prompt as a strip of buttons, tinted by a value, one of them selected; ipywidgets has no part for it."""

import re
from dataclasses import asdict, dataclass
from html import escape
from itertools import groupby
from typing import Any

from traitlets import Dict, List, Unicode, observe, validate

from emointerp.widgets.tinted import Tinted, script, tint

FOLD = 4  # so many visual tokens in a row become one chip
MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


@dataclass(frozen=True)
class Chip:
    """One button: tokens `first` to `last`, more than one if they are folded, and the span that begins with it, if one does."""

    text: str
    hint: str
    first: int
    last: int
    tag: str = ""


class TokenStrip(Tinted):
    """Tokens in reading order; a click or the arrow keys select one.

    `spans` names the span of each token ("visual", "query", "last", or ""). A run of visual tokens is folded into one chip, which
    selects the first of them; `PatchGrid` shows each. Whitespace is shown as marks.

    >>> [chip.text for chip in chips(["a", " b", "\\n"], [])]
    ['a', '␣b', '⏎']
    """

    _esm = script("token_strip.js")
    _lists = ("tokens", "values", "spans")
    _chips = List(Dict()).tag(sync=True)

    tokens = List(Unicode()).tag(sync=True)
    spans = List(Unicode()).tag(sync=True)

    @validate("tokens", "values", "spans")
    def _consistent(self, proposal: Any) -> list:
        self._check_lengths(proposal)
        return proposal.value

    @observe("tokens", "spans")
    def _new_tokens(self, _: Any) -> None:
        self._drop_selection()
        self._chips = [asdict(chip) for chip in chips(self.tokens, self.spans)]

    def static_html(self) -> str:
        """The strip as a line of words on their colours."""
        inside = "".join(self._static(chip) for chip in chips(self.tokens, self.spans))
        style = "display:flex;flex-wrap:wrap;align-items:center;gap:4px;font:13px/1.5 ui-monospace,monospace"
        return f'<div role="group" aria-label="{escape(self.title or "tokens")}" style="{style}">{inside}</div>'

    def _static(self, chip: Chip) -> str:
        color = tint(self.values[chip.first] if self.values and chip.first == chip.last else None)
        style = (
            f"border:1px solid #8a8f98;border-radius:4px;padding:0 4px;{f'background:{color[0]};color:{color[1]}' if color else ''}"
        )
        if chip.first <= self.selected <= chip.last:
            style += ";outline:3px solid #d55e00"
        parts = re.split(f"([{''.join(MARKS.values())}]+)", chip.text)  # odd ones are marks
        text = "".join(f'<span style="opacity:.75">{p}</span>' if i % 2 else escape(p) for i, p in enumerate(parts))
        tag = f'<small style="opacity:.75;margin:0 4px">{escape(chip.tag)}</small>' if chip.tag else ""
        return f'<div style="white-space:nowrap">{tag}<span title="{escape(chip.hint)}" style="{style}">{text}</span></div>'


def visible(token: str) -> str:
    """A token with marks for whitespace, and codes for what else cannot be seen.

    >>> visible(" a\\n"), visible("\\u202e"), visible("")
    ('␣a⏎', '\\\\u202e', '∅')
    """
    return "".join(MARKS.get(c, c if c.isprintable() else c.encode("unicode_escape").decode()) for c in token) or "∅"


def chips(tokens: list[str], spans: list[str]) -> list[Chip]:
    """The buttons of a strip; `spans` is as long as `tokens`, or empty.

    >>> chips(["<image>"] * 4, ["visual"] * 4)[0].text
    'picture: 4 tokens'
    """
    made: list[Chip] = []
    for span, run in groupby(range(len(tokens)), key=lambda i: spans[i] if spans else ""):
        made += _chips_of_run(tokens, span, list(run))
    return made


def _chips_of_run(tokens: list[str], span: str, run: list[int]) -> list[Chip]:
    if span == "visual" and len(run) >= FOLD:
        return [Chip(f"picture: {len(run)} tokens", f"tokens {run[0]} to {run[-1]}", run[0], run[-1])]
    within = f", {span}" if span else ""
    return [Chip(visible(tokens[i]), f"token {i}{within}", i, i, span if i == run[0] else "") for i in run]
