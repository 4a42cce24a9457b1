"""Exercises of notebook 05, second half: by which road the feeling travels."""

from typing import Any

import numpy as np
import pandas as pd

from emointerp.exercises.verdict import Verdict, not_yet, right
from emointerp.flow import DIRECTIONS, Patching


def normalised_effect(answer: Any, patched: Patching, span: str, stage: Any, direction: str = "denoising") -> Verdict:
    """Exercise 4: which share of the gap between the two runs does a patch close, over all pairs?

    From three columns of the table: `value` with the patch, `receiver` without it, `donor` of the run that the patch comes from.
    """
    if answer is None:
        return not_yet("the answer is still None. How far did the patch move the receiver, and how far is the donor from it?")
    if not isinstance(answer, int | float | np.number) or isinstance(answer, bool):
        return not_yet(f"a share is a number, and this is a {type(answer).__name__}.")
    rows = _rows(patched, span, stage, direction)
    moved, gap = rows.value - rows.receiver, rows.donor - rows.receiver
    if rows.empty:
        return not_yet(f"nothing was patched at {span}, {stage}, {direction}; look at the columns of the table.")
    if not gap.mean():
        return not_yet("the two runs do not differ here, so there is no gap to close; take other pairs.")
    truth = float(moved.mean() / gap.mean())
    if abs(answer - truth) < 0.0051:
        single = f"The mean of single ratios would be {_mean_of_ratios(moved, gap):.2f}; pairs with hardly a gap sway that one."
        return right(f"{span}, {stage}, {direction}: {truth:.0%} of the gap. {single}")
    return not_yet(_slip(float(answer), rows, patched, span, stage, direction))


def _slip(answer: float, rows: pd.DataFrame, patched: Patching, span: str, stage: Any, direction: str) -> str:
    """What a wrong number is instead."""
    moved, gap = rows.value - rows.receiver, rows.donor - rows.receiver
    truth = moved.mean() / gap.mean()
    slips = {
        "that is a percentage; asked is a share.": 100 * truth,
        f"that is how far the {patched.metric} moved. Divide by how far it could have: donor less receiver.": moved.mean(),
        "the sign is turned: the gap is donor less receiver, as the move is value less receiver.": -truth,
        "that counts from the donor. 0 is the receiver's own run, 1 the donor's.": 1 - truth,
        "that is the gap over the move; turn it round.": 1 / truth if truth else np.nan,
        "that forgets where the receiver starts: take its own value off above and below.": rows.value.mean() / rows.donor.mean(),
        "that is the mean of each pair's ratio; a pair with hardly a gap decides it. "
        "Take both means first, then divide.": _mean_of_ratios(moved, gap),
    }
    for other in (name for name in DIRECTIONS if name != direction and name in set(patched.table.direction)):
        there = _rows(patched, span, stage, other)
        slips[f"that is {other}; asked is {direction}."] = (
            (there.value - there.receiver).mean() / (there.donor - there.receiver).mean()
        )  # fmt: skip
    found = next((said for said, value in slips.items() if abs(answer - value) < 0.0051), None)
    return (
        found
        or f"{answer:.2f} is not it. Take the rows of {span}, {stage}, {direction}: (value - receiver) over (donor - receiver)."
    )


def _rows(patched: Patching, span: str, stage: Any, direction: str) -> pd.DataFrame:
    table = patched.table
    return table[(table.span == span) & (table.stage == stage) & (table.direction == direction)]


def _mean_of_ratios(moved: pd.Series, gap: pd.Series) -> float:
    return float((moved / gap).replace([np.inf, -np.inf], np.nan).mean())
