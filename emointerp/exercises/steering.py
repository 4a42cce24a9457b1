"""Exercises of notebook 04, on steering vectors."""

from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emointerp.directions import last_residuals
from emointerp.exercises.verdict import Verdict, not_yet, quoted, right, wrong_control
from emointerp.models import VLM
from emointerp.pairs import Pair
from emointerp.steering import S, Steering

CLOSE = 0.02  # of a vector's length
DOUBTS = {
    "any push": "any push of this length would do it, wherever it points",
    "any real difference": "any push would do it that points where pictures and their twins really differ",
    "any emotion": "any push would do it that points to emotional pictures, whichever emotion it is named after",
}
CONTROLS = {
    "random": ("any push", "keeps the length of the push and nothing else"),
    "covariance-matched": ("any real difference", "keeps the length, and points where the twins differ, this way or that"),
    "shuffled labels": ("any emotion", "keeps the pairs, so it points to emotional pictures; only the names are exchanged"),
}


def by_hand(answer: Any, vlm: VLM, pair: Pair, layer: int, begun: str = "I felt") -> Verdict:
    """Exercise 1: what a pair's emotional picture adds after a layer at the last token, the answer begun with `begun`."""
    if answer is None:
        return not_yet('the answer is still None. Collect the residual stream of both prompts at positions="last" and subtract.')
    vector = _vector(answer)
    if vector is None:
        return not_yet(f"a vector is a tensor of numbers, and this is a {type(answer).__name__}.")
    plus, minus = _sides(vlm, pair, begun)
    truth = (plus - minus)[layer]
    if vector.shape != truth.shape:
        asked = f"one layer ({layer}), one token (the last): a vector of {len(truth)} numbers"
        return not_yet(f"its shape is {list(vector.shape)}; asked is {asked}.")
    if _close(vector, truth):
        ratio = float(truth.norm() / minus[layer].norm())
        return right(
            f"The picture of {pair.emotion} adds a vector {ratio:.2f} times as long as the residual stream of its twin. The mean "
            f'of such vectors over many pairs is S["{pair.emotion}", {layer}].'
        )
    return not_yet(_slip(vector, vlm, pair, layer, begun))


def _slip(vector: Tensor, vlm: VLM, pair: Pair, layer: int, begun: str) -> str:
    """What a wrong vector is instead."""
    plus, minus = _sides(vlm, pair, begun)
    all_layers = plus - minus
    slips = {
        "that is neutral less emotional; the direction goes the other way.": -all_layers[layer],
        "that is the emotional side alone. Most of it the neutral twin has too; subtract that.": plus[layer],
        "that is the neutral side alone; it is what is to be subtracted.": minus[layer],
        "that is read at the end of the question. Begin the answer in both prompts, "
        f"answer={begun!r}: there the emotion word is due.": torch.sub(*_sides(vlm, pair, ""))[layer],
    } | {f"that is layer {i}; asked is layer {layer}.": v for i, v in enumerate(all_layers) if i != layer}
    said, nearest = min(slips.items(), key=lambda item: float((vector - item[1]).norm()))
    if _close(vector, nearest):
        return said
    truth = all_layers[layer]
    if torch.cosine_similarity(vector, truth, 0) > 1 - CLOSE**2 / 2:
        return f"the direction is right, the length is not: {vector.norm():.2f}, expected {truth.norm():.2f}. Leave it as it is."
    return (
        "this is no difference of the two sides at the last token. Take .residual[layer, 0] of each, the same layer, and subtract."
    )


def _sides(vlm: VLM, pair: Pair, begun: str) -> tuple[Tensor, Tensor]:
    """Both sides' residual streams at the last token, [layer, d_model]."""
    plus, minus = last_residuals(vlm, [vlm.prompt(*side, answer=begun) for side in (pair.plus, pair.minus)])
    return plus, minus


def _vector(answer: Any) -> Tensor | None:
    try:
        return torch.as_tensor(answer).detach().float().cpu().squeeze()
    except (TypeError, ValueError, RuntimeError):
        return None


def _close(vector: Tensor, other: Tensor) -> bool:
    return bool((vector - other).norm() < CLOSE * other.norm())


def layer_by_clean_stories(answer: Any, steering: Steering) -> Verdict:
    """Exercise 2: the layer at which most pushed stories are clean, mean over the strengths, and not merely hits."""
    rows = steering.at(S)
    means = rows.groupby("layer")[["clean", "exact", "hit"]].mean()
    if answer is None:
        return not_yet("the answer is still None. Group the rows of steering.at() by layer; which column also sees stammering?")
    if not isinstance(answer, int | np.integer) or isinstance(answer, bool):
        return not_yet(f"a layer is a whole number, and this is a {type(answer).__name__}.")
    if answer not in means.index:
        return not_yet(f"in this run layers {', '.join(map(str, means.index))} were pushed.")
    if not means.clean.max():
        return not_yet("no push of this run gave a clean story, so no layer is the best; try smaller strengths.")
    if answer in _best(means.clean):
        return right(_what_hits_would_say(int(answer), rows, means))
    return not_yet(_why_another(int(answer), rows, means))


def _what_hits_would_say(answer: int, rows: pd.DataFrame, means: pd.DataFrame) -> str:
    said = f"Pushed after layer {answer}, {means.clean[answer]:.0%} of the stories are clean."
    loud = [layer for layer in _best(means.hit) if layer != answer]
    if not loud:
        return f"{said} Here the hit rate chooses the same layer, but it need not: a stammered word is a hit too."
    return f"{said} The hit rate would choose layer {loud[-1]}: {_stammer(loud[-1], rows, means)}"


def _why_another(answer: int, rows: pd.DataFrame, means: pd.DataFrame) -> str:
    if answer in _best(means.hit):
        return f"that is where most stories hit. But {_stammer(answer, rows, means)} Is that a story?"
    if answer in _best(means.exact):
        return "`exact` asks that no other emotion is named; who stammers one word names no other. The column `clean` hears it."
    by_strength = rows.groupby(["layer", "alpha"]).clean.mean()
    if answer in {layer for layer, _ in _best(by_strength)}:
        return (
            f"at its best strength this layer is as good as any, but over all strengths only {means.clean[answer]:.0%} are clean."
        )
    return f"after layer {answer}, {means.clean[answer]:.0%} of the pushed stories are clean; another layer has more."


def _best(means: pd.Series) -> list:
    """Where the largest of these means is; several where they are equal."""
    return means.index[np.isclose(means, means.max())].tolist()


def _stammer(layer: int, rows: pd.DataFrame, means: pd.DataFrame) -> str:
    """What the hits of a layer are worth, with an example of one that is no clean story."""
    some = rows[(rows.layer == layer) & (rows.hit > 0) & (rows.clean == 0)]
    said = f"of the stories there {means.hit[layer]:.0%} hit and {means.clean[layer]:.0%} are clean."
    if some.empty:
        return said
    worst = some.loc[some.perplexity.fillna(0).idxmax()]
    return f"{said} One of the others: “{shorten(worst.story, 70)}”"


def controls(which: Any, stands: Any, table: pd.DataFrame, level: float = 0.05) -> Verdict:
    """Exercise 3: which control answers which doubt, and whether "this is a direction of the emotion" stands beside all of them.

    `which` maps each of DOUBTS to a row of `table` (`Steering.controlled`), `stands` is True or False.
    """
    if missing := [name for name in CONTROLS if name not in table.index]:
        return not_yet(f"the table lacks {quoted(missing)}; it has {quoted(table.index)}. Name the controls so in `steer`.")
    if problem := wrong_control(which, DOUBTS, CONTROLS):
        return not_yet(problem)
    p = table.p_holm[list(CONTROLS)]
    lost = p[~(p < level)]
    if stands is None:
        return not_yet("the controls are right; `stands` is still None. Read p_holm: does the effect beat every control?")
    if not isinstance(stands, bool | np.bool_):
        return not_yet(f"the controls are right; `stands` is True or False, and this is {stands!r}.")
    if stands and len(lost):
        return not_yet(f"p_holm is {_listed_p(lost)}, not below {level:g}{_too_few(table, lost, level)}. One doubt left is enough.")
    if not stands and lost.empty:
        return not_yet(f"p_holm is {_listed_p(p)}, all below {level:g}: the effect beats every control.")
    beaten = "Every doubt is answered" if lost.empty else f"The doubt “{_doubt(lost.index[0])}” remains"
    return right(f"{beaten} (p_holm: {_listed_p(p)}){_too_few(table, lost, level)}.")


def _doubt(control: str) -> str:
    return DOUBTS[CONTROLS[control][0]]


def _too_few(table: pd.DataFrame, lost: pd.Series, level: float) -> str:
    """A remark where a control was drawn too rarely for any p-value on its ranks to be small."""
    few = [name for name in lost.index if table.draws[name] > 1 and len(CONTROLS) / (table.draws[name] + 1) >= level]
    if not few:
        return ""
    drawn = int(table.draws[few].min())
    return f" (with {drawn} draws it can hardly be: p_draws is at least 1 / {drawn + 1}, and Holm's correction comes on top)"


def _listed_p(p: pd.Series) -> str:
    return ", ".join(f"{value:.3f} ({name})" for name, value in p.items())
