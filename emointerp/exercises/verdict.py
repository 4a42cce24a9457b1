"""What a check answers: right or not, and why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Verdict:
    """`right` and a sentence for the learner, which is what a notebook shows."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return self.message

    def __bool__(self) -> bool:
        return self.right


def not_yet(why: str) -> Verdict:
    """A wrong or missing answer, with the reason."""
    return Verdict(False, f"Not yet: {why}")


def right(why: str) -> Verdict:
    """A right answer, with what it shows."""
    return Verdict(True, f"Right. {why}")


def wrong_control(which: Any, doubts: Mapping[str, str], controls: Mapping[str, tuple[str, str]]) -> str | None:
    """What is wrong with the controls that were named against doubts, the first thing; None where nothing is.

    `doubts` maps a doubt to what it means; `controls` a control to the doubt that it answers, and to what it keeps and changes.
    """
    if which is None or (isinstance(which, Mapping) and any(which.get(doubt) is None for doubt in doubts)):
        return f"a control is still missing; each of {quoted(doubts)} needs one of {quoted(controls)}."
    if not isinstance(which, Mapping):
        return f"give a dict from {quoted(doubts)} to controls; this is a {type(which).__name__}."
    for doubt, means in doubts.items():
        named = which[doubt]
        if named not in controls:
            return f"{named!r} is no control; there are {quoted(controls)}."
        answers, keeps = controls[named]
        if answers != doubt:
            wanted = "Take the control that keeps what the doubter calls enough, and no more."
            return f"“{doubt}” means: {means}. {named!r} {keeps}. {wanted}"
    return None


def one_number(answer: Any) -> float | None:
    """One number, also out of a tensor that holds just one; None for anything else.

    >>> one_number(np.float32(0.5)), one_number("0.5"), one_number([1, 2])
    (0.5, None, None)
    """
    if isinstance(answer, bool | np.bool_ | str):
        return None
    try:
        given = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError):
        return None
    return float(given) if given.numel() == 1 and given.dtype != torch.bool else None


def quoted(names: Iterable[str]) -> str:
    """Names in quotation marks, one after the other."""
    return ", ".join(map(repr, names))
