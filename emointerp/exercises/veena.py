"""Exercises of notebook 07, on VEENA: what more attention is, whether a cure does harm, and where its gain comes from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emointerp.errors import InputError
from emointerp.evaluation.items import BLANK, CONFLICT, NEUTRALS, QUESTIONS, SHUFFLED, SWAPPED
from emointerp.evaluation.tables import FALL, GAIN, NONE, RISE
from emointerp.exercises.verdict import Verdict, not_yet, quoted, right, wrong_control
from emointerp.statistics import Interval

CLOSE = 1e-4  # of a weight

# 1


def by_hand(answer: Any, attention: Float[Tensor, "*query key"], columns: Sequence[int], beta: float) -> Verdict:
    """Exercise 1: attention weights when `log beta` is added to the scores of the visual `columns` before the softmax.

    That is the weights of these columns times `beta`, and each row divided by its new sum. `attention` holds rows that sum to 1.
    Raises InputError where it does not, or a column is out of range, or beta changes nothing.
    """
    a, columns = _checked(attention, columns, beta)
    if answer is None:
        return not_yet("the answer is still None. Multiply the visual columns by beta; what is the sum of a row then?")
    given = _weights(answer)
    if given is None:
        return not_yet(f"attention is a tensor of numbers, and this is a {type(answer).__name__}.")
    if given.shape != a.shape:
        return not_yet(f"its shape is {list(given.shape)}; the scaled attention has the shape of the given one, {list(a.shape)}.")
    if _close(given, _scaled(a, columns, beta)):
        return right(_read_out(a, columns, beta))
    said = [words for words, slip in _slips(a, columns, beta) if _close(given, slip)]
    return not_yet(said[0] if said else "these are not the scaled weights. Columns times beta, then each row divided by its sum.")


def _checked(attention: Any, columns: Sequence[int], beta: float) -> tuple[Tensor, list[int]]:
    a, columns = torch.as_tensor(attention).detach().double().cpu(), sorted({int(i) for i in columns})
    if not a.ndim or not torch.allclose(a.sum(-1), torch.ones(a.shape[:-1], dtype=a.dtype), atol=1e-3):
        raise InputError(f"The rows of attention have to sum to 1 over the keys, its last axis; its shape is {list(a.shape)}.")
    if not columns or columns[0] < 0 or columns[-1] >= a.shape[-1]:
        raise InputError(f"columns are the keys of the picture, some of 0 to {a.shape[-1] - 1}; given are {columns}.")
    if not 0 < beta < np.inf or beta == 1:
        raise InputError(f"beta is {beta!r}; expected a number above 0 other than 1, which changes nothing.")
    return a, columns


def _scaled(a: Tensor, columns: Iterable[int], factor: float, renormalise: bool = True) -> Tensor:
    weights = a.clone()
    weights[..., list(columns)] *= factor
    return weights / weights.sum(-1, keepdim=True) if renormalise else weights


def _read_out(a: Tensor, columns: list[int], beta: float) -> str:
    before, after = (float(w[..., columns].sum(-1).mean()) for w in (a, _scaled(a, columns, beta)))
    return (
        f"The picture's share of the attention goes from {before:.0%} to {after:.0%}: {after / before:.1f} times as much and not "
        f"{beta:g} times, as each row is divided by its sum. How strong a beta is depends on how much a head looks at the picture."
    )


def _slips(a: Tensor, columns: list[int], beta: float) -> list[tuple[str, Tensor]]:
    """What wrong steps give: the words for each."""
    sides = [(side, [i + by for i in columns if 0 <= i + by < a.shape[-1]]) for side, by in (("right", 1), ("left", -1))]
    powered, raised = a.log(), a.log()
    powered[..., columns] *= beta
    raised[..., columns] += float(np.log(beta))
    whole, picture = _scaled(a, columns, beta, renormalise=False), _scaled(a, columns, beta)[..., columns]
    alone = a.clone()
    alone[..., columns] = picture / picture.sum(-1, keepdim=True)
    return [
        ("the rows do not sum to 1 any more. The softmax would see to that; divide each row by its new sum.", whole),
        ("beta multiplies the scores here. To multiply weights, add log beta to the scores: a score of 0 times beta stays 0, and a "
         "negative one would fall.", powered.softmax(-1)),
        ("that adds beta itself to the scores, which multiplies weights by exp(beta). Add log beta.",
         _scaled(a, columns, float(np.exp(beta)))),
        ("these are scores; the softmax of them is asked, weights that sum to 1.", raised),
        ("that is the attention as it was. A constant added to all scores of a row changes nothing; scale the visual columns "
         "alone.", a),
        ("that is less attention to the picture: either the columns are those that are not of it, or beta is turned round, which "
         "comes to the same.", _scaled(a, columns, 1 / beta)),
        ("that divides by the sum of all rows together; each row has a softmax of its own.", whole / whole.sum()),
        ("only the visual columns sum to 1 here; divide the whole row by its sum.", alone),
        *((f"the columns are the wrong ones, one too far to the {side}.", _scaled(a, moved, beta)) for side, moved in sides),
    ]  # fmt: skip


def _weights(answer: Any) -> Tensor | None:
    try:
        return torch.as_tensor(answer).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None


def _close(weights: Tensor, other: Tensor) -> bool:
    return torch.allclose(weights, other, rtol=1e-3, atol=CLOSE)


# 2


def what_it_costs(answer: Any, frame: pd.DataFrame) -> Verdict:
    """Exercise 2: the methods that mended without harm, a list of names; [] where none did.

    By this rule, means over items beside "none": exact rate on "conflict" up by at least 10 points, and the interval above 0; right
    answers to "questions" down by at most 1 point; false emotions on "neutral pictures" up by at most 2 points.

    `frame` is as `Evaluation.to_frame()`: a row a (set, method), with `difference`, an `Interval` of the set's own figure less that
    of "none", as a share (0.1 is 10 points). Where it has a column `oracle`, methods that saw the gold emotion are out of the
    question.
    """
    if problem := _lacking(frame, (CONFLICT, QUESTIONS, NEUTRALS)):
        return not_yet(problem)
    methods = [method for method in dict.fromkeys(frame.loc[CONFLICT].index) if method != NONE]
    if answer is None or isinstance(answer, bool):
        return not_yet(f"the answer is still {answer}. Give a list of methods, [] for none; there are {quoted(methods)}.")
    if not isinstance(answer, str | Iterable):
        return not_yet(f"give a list of methods; this is a {type(answer).__name__}.")
    named = [answer] if isinstance(answer, str) else list(answer)
    if strange := [name for name in named if name not in methods]:
        return not_yet(f"the table has no {quoted(strange)}; its methods are {quoted(methods)}.")
    faults = {method: _fault(frame, method) for method in methods}
    for method in named:
        if faults[method]:
            return not_yet(f"{method!r}: {faults[method]}")
    if missing := [method for method in methods if not faults[method] and method not in named]:
        return not_yet(f"{missing[0]!r} keeps the rule too: {_told(frame, missing[0])}.")
    return right("; ".join(f"{m}: {_told(frame, m)}" for m in named) + "." if named else _nobody(faults))


def _lacking(frame: Any, sets: Sequence[str]) -> str | None:
    """What a table lacks to be judged by."""
    if not isinstance(frame, pd.DataFrame) or frame.index.nlevels != 2 or "difference" not in frame:
        return "the table is to be Evaluation.to_frame(): rows (set, method), a column `difference`."
    known = frame.index.get_level_values(0)
    if missing := [name for name in sets if name not in known]:
        return f"the table lacks the sets {quoted(missing)}; evaluate on them too, else nobody knows."
    gaps = [(name, m) for name in sets for m in frame.loc[sets[0]].index if m != NONE and _difference(frame, name, m) is None]
    return f"the table has no difference for {gaps[0][1]!r} on {gaps[0][0]!r}." if gaps else None


def _difference(frame: pd.DataFrame, name: str, method: str) -> Interval | None:
    if (name, method) not in frame.index:
        return None
    found = frame.loc[(name, method), "difference"]
    return found if isinstance(found, Interval) else None


def _fault(frame: pd.DataFrame, method: str) -> str | None:
    """Why a method did not mend without harm, the first reason; None where it did."""
    gain, asked, false = (_difference(frame, name, method) for name in (CONFLICT, QUESTIONS, NEUTRALS))
    if "oracle" in frame and frame.oracle[CONFLICT, method]:
        return "it saw the gold emotion, so it is no cure; it shows how far one could go."
    if _rounded(gain) < GAIN:
        sure = " Sure, but small: a small p-value is no large effect." if gain.low > 0 else ""
        return f"exact rate on conflict {_points(gain)}; asked are {100 * GAIN:.0f} or more.{sure}"
    if not gain.low > 0:
        return f"exact rate on conflict {_points(gain)}: large, but not sure, as the interval does not lie above 0."
    if _rounded(asked) < FALL:
        return f"it mends, but right answers to questions {_points(asked)}; at most {-100 * FALL:.0f} down is no harm."
    if _rounded(false) > RISE:
        return f"it mends, but false emotions on neutral pictures {_points(false)}; at most {100 * RISE:.0f} up is no harm."
    return None


def _told(frame: pd.DataFrame, method: str) -> str:
    said = {CONFLICT: "exact on conflict", QUESTIONS: "right answers", NEUTRALS: "false emotions"}
    return ", ".join(f"{what} {_points(_difference(frame, name, method))}" for name, what in said.items())


def _nobody(faults: Mapping[str, str | None]) -> str:
    return " ".join(f"{method}: {fault}" for method, fault in faults.items()) + " No method mended without harm."


def _rounded(interval: Interval) -> float:
    """The mean, where 0.1 may have come out as 0.09999999999999999."""
    return round(interval.mean, 9)


def _points(interval: Interval) -> str:
    mean, low, high = (f"{100 * value + 0.0:+.1f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}] points"


# 3

DOUBTS = {
    "no picture": "a part of the gain needs no picture; the edits make emotion words likelier whatever is seen",
    "any colours": "a part of the gain needs the picture's colours, with nothing in it that can be read",
    "any emotion": "a part of the gain comes with any emotional picture, whatever this one shows",
    "any heads": "a part of the gain comes with as much attention from any heads, wherever they lie",
}
CONTROLS = {
    "blank": ("no picture", "keeps the event and the edits, and leaves nothing to be seen"),
    "shuffled": ("any colours", "keeps the colours of the picture, its tiles in another order"),
    "swapped": ("any emotion", "keeps a whole picture, but it is that of another item and shows another emotion"),
    "random heads": ("any heads", "keeps the picture and the strength, and takes other heads"),
}
SETS = {"blank": BLANK, "shuffled": SHUFFLED, "swapped": SWAPPED, "random heads": CONFLICT}


def whose_gain(which: Any, stands: Any, frame: pd.DataFrame, method: str = "VEENA", random: str = "random heads") -> Verdict:
    """Exercise 3: which control answers which doubt, and whether "all of the gain comes from this picture and these heads" stands.

    `which` maps each of DOUBTS to one of CONTROLS, `stands` is True or False. The claim stands where the method's own gain on
    "conflict" is sure, its whole interval above 0, and that of no control is. One control that wins is enough for it to fall.

    `frame` as in `what_it_costs`, with the sets "conflict" and, for the pictures, "conflict, blank picture" (… shuffled, swapped);
    `random` is the row of the method with random heads on "conflict".
    """
    gains = {control: _difference(frame, SETS[control], random if control == "random heads" else method) for control in CONTROLS}
    own, missing = _difference(frame, CONFLICT, method), [name for name, gain in gains.items() if gain is None]
    if own is None or missing:
        lacks = quoted([method] * (own is None) + missing)
        return not_yet(
            f"the table has no gain of {lacks}. Name the rows by method= and random=, and evaluate on {quoted(SETS.values())}."
        )
    if problem := wrong_control(which, DOUBTS, CONTROLS):
        return not_yet(problem)
    if stands is None:
        return not_yet("the controls are right; `stands` is still None. Is the whole interval of any control above 0?")
    if not isinstance(stands, bool | np.bool_):
        return not_yet(f"the controls are right; `stands` is True or False, and this is {stands!r}.")
    return _claimed(bool(stands), own, gains)


def _claimed(stands: bool, own: Interval, gains: Mapping[str, Interval]) -> Verdict:
    """Whether the claim stands, by the method's own gain and those of the controls."""
    left = {control: gain for control, gain in gains.items() if gain.low > 0}
    shown = f"with the picture and these heads {_points(own)}; {_listed(left or gains)}"
    if own.low <= 0:
        return not_yet(f"{shown}: no sure gain to claim.") if stands else right(f"There is no sure gain to claim ({shown}).")
    if stands != (not left):
        why = "a control wins, its whole interval above 0. One is enough" if left else "no control wins anything that is sure"
        return not_yet(f"{shown}: {why}.")
    if not left:
        return right(f"No doubter's control wins for sure ({shown}). What lies below the upper ends is not ruled out.")
    doubt = DOUBTS[CONTROLS[next(iter(left))][0]]
    return right(f"The claim falls: {doubt} ({shown}). Whether the method wins more than the control is asked item by item.")


def _listed(gains: Mapping[str, Interval]) -> str:
    return ", ".join(f"{name} {_points(gain)}" for name, gain in gains.items())
