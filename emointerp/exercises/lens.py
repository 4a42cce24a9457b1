"""Exercises of notebook 05, on the logit lens."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from emointerp.exercises.verdict import Verdict, not_yet, right
from emointerp.lens import MASS, LogitLens
from emointerp.models import VLM, Prompt
from emointerp.tracing import first_tokens, run
from emointerp.world import Scene


def first_layer(answer: Any, lens: LogitLens, emotion: str) -> Verdict:
    """Exercise 1: the first layer after which the emotion's words have more than half of the probability at the last token."""
    mass = lens.values_at_last(emotion)
    above = np.flatnonzero(mass > 0.5)
    if answer is None:
        return not_yet("the answer is still None. Look at the column of the emotion in lens.to_frame().")
    if not isinstance(answer, int | np.integer) or isinstance(answer, bool):
        return not_yet(f"a layer is a whole number, and this is a {type(answer).__name__}.")
    if not len(above):
        return not_yet(f"with this picture no layer gets there (at most {mass.max():.2f}); take another picture.")
    if answer == above[0]:
        return right(f"After layer {answer} the words of {emotion} have {mass[answer]:.2f} of the probability.")
    if not 0 <= answer < lens.n_layers:
        return not_yet(f"this model has layers 0 to {lens.n_layers - 1}.")
    if answer < above[0]:
        return not_yet(f"too early: after layer {answer} they have {mass[answer]:.2f}.")
    return not_yet(f"after layer {answer} they have {mass[answer]:.2f}, but an earlier layer is there already.")


def over_the_face(answer: Any, lens: LogitLens, scene: Scene) -> Verdict:
    """Exercise 2: mean emotion mass of the patches whose centre lies in the face, divided by that of all others, last layer."""
    truth, mixed_up = (_ratio(lens, scene, swap) for swap in (False, True))
    sums = truth * _odds(lens, scene)
    if answer is None:
        return not_yet("the answer is still None. You need lens.values, vlm.boxes and scene.masks().")
    if not isinstance(answer, int | float | np.number):
        return not_yet(f"a ratio is a number, and this is a {type(answer).__name__}.")
    if abs(answer - truth) < 0.02 * truth:
        return right(f"A patch over the face has {truth:.1f} times the emotion mass of one beside it.")
    if abs(answer * truth - 1) < 0.02:
        return not_yet("that is the ratio the other way round: face above, the rest below.")
    if abs(answer - sums) < 0.02 * sums:
        return not_yet("that is a ratio of sums. Take means, not sums: there are not as many patches in the face as beside it.")
    if abs(answer - mixed_up) < 0.02 * mixed_up:
        return not_yet("columns and rows are mixed up: a mask is read as mask[y, x], a box is left, top, right, bottom.")
    return not_yet(
        f"{float(answer):.2f} is not it. The mean mass of patches whose centre lies in the face, over that of the others."
    )


def _inside(lens: LogitLens, scene: Scene, swap: bool = False) -> Bool[np.ndarray, " patch"]:
    """Which patches have their centre in the face."""
    left, top, right_, bottom = lens.vlm.boxes(lens.prompt).T
    x, y = ((left + right_) / 2).astype(int), ((top + bottom) / 2).astype(int)
    return scene.masks()["face"][(x, y) if swap else (y, x)]


def _odds(lens: LogitLens, scene: Scene) -> float:
    """How many patches lie in the face for one beside it."""
    inside = _inside(lens, scene)
    return float(inside.sum() / (~inside).sum())


def _ratio(lens: LogitLens, scene: Scene, swap: bool = False) -> float:
    inside = _inside(lens, scene, swap)
    mass = lens.values(MASS, lens.n_layers - 1)[list(lens.prompt.visual)]
    return float(mass[inside].mean() / mass[~inside].mean())


def times_likelier(answer: Any, vlm: VLM, prompt: Prompt, word: str, other: str) -> Verdict:
    """Exercise 3: how many times likelier is one word than another as the next token?"""
    logits = run(vlm, prompt).logits
    a, b = (logits[first_tokens(vlm, [w])[0]] for w in (word, other))
    difference, truth = float(a - b), float((a - b).exp())
    if answer is None:
        return not_yet("the answer is still None. Two logits, their difference, and one function of it.")
    if not isinstance(answer, int | float | np.number):
        return not_yet(f"this is a {type(answer).__name__}; turn it into a number with float(...).")
    if abs(answer - truth) < 0.02 * truth:
        return right(f"{difference:.1f} logits: {truth:.0f} times as likely.")
    if abs(answer - difference) < 0.02 * abs(difference):
        return not_yet("that is the difference of the logits. A logit is the logarithm of a probability, up to a constant.")
    if abs(answer * truth - 1) < 0.02:
        return not_yet("that is the other word over this one.")
    return not_yet("subtract the two logits; equal constants fall away; then undo the logarithm.")
