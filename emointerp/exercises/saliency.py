"""Exercises of notebook 03, on saliency."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from emointerp.exercises.verdict import Verdict, not_yet, right
from emointerp.saliency import METHODS, MapCheck, SaliencyMap, Target
from emointerp.saliency.check import CONTROLS
from emointerp.world import Scene

COPIES = (1, 2, 4, 8, 16, 32)
ALIKE = 0.95  # correlation of two maps with other noise


def gradient_by_hand(answer: Any, target: Target, image: Image.Image) -> Verdict:
    """Exercise 1: the plain gradient's map, mean over channels of |df/dx|, as an array or tensor [height, width]."""
    if answer is None:
        return not_yet("the answer is still None. torch.autograd.grad(target(x).sum(), x) gives df/dx, [1, 3, height, width].")
    if not isinstance(answer, torch.Tensor | np.ndarray):
        return not_yet(f"the map is an array or a tensor, and this is a {type(answer).__name__}.")
    given = answer.detach().cpu().numpy() if isinstance(answer, torch.Tensor) else answer
    x = target.pixels([image]).requires_grad_()
    slope = torch.autograd.grad(target(x).sum(), x)[0][0].cpu()
    truth = slope.abs().mean(0).numpy()
    if given.squeeze().shape != truth.shape:
        return not_yet(f"the map has the shape {list(truth.shape)}, and yours {list(given.shape)}; which axis is for the channels?")
    slips = {
        "signs cancel between channels: take the size of each before the mean.": slope.mean(0).abs(),
        "that still has signs; take the size of each number first.": slope.mean(0),
        "that is the sum over channels; asked is their mean.": slope.abs().sum(0),
        "that is the largest channel (which is what Simonyan et al. draw); asked is the mean.": slope.abs().amax(0),
    }
    if _near(given, truth):
        return right(f"The largest slope is {truth.max():.4f}, at a pixel beside which the mean, {truth.mean():.5f}, is small.")
    wrong = [said for said, slip in slips.items() if _near(given, slip.numpy())]
    return not_yet(wrong[0] if wrong else "the shape is right, the numbers are not. Is x what target.pixels([image]) gives?")


def _near(given: np.ndarray, truth: np.ndarray) -> bool:
    return bool(np.abs(given.squeeze() - truth).max() < 1e-3 * np.abs(truth).max())


def inside_over_area(answer: Any, found: SaliencyMap, scene: Scene) -> Verdict:
    """Exercise 2: the share of a map's mass on the expression, over the mask's share of the picture."""
    mask = scene.masks()["expression"]
    inside, area = found.mass(mask), float(mask.mean())
    if answer is None:
        return not_yet('the answer is still None. You need found.map and scene.masks()["expression"].')
    if not isinstance(answer, int | float | np.number) or isinstance(answer, bool):
        return not_yet(f"a ratio is a number, and this is a {type(answer).__name__}.")
    slips = {
        "that is the share of the mass alone. A mask over half of the picture would have half of any map.": inside,
        "that is the ratio upside down.": area / inside,
        "columns and rows are mixed up: map and mask are read as [y, x], both.": found.mass(mask.T) / area,
        "that is beside what lies outside the mask; divide by the mask's share of the picture.": inside / (1 - area),
        "that is the whole face; asked is the expression.": found.mass(scene.masks()["face"]) / float(scene.masks()["face"].mean()),
        "that is the sum inside the mask, not its share of the map's whole sum.": float(np.abs(found.map)[mask].sum()) / area,
    }
    if abs(answer - inside / area) < 0.01 * inside / area:
        return right(f"{inside:.1%} of the mass on {area:.1%} of the picture: {inside / area:.2f} times as much as by chance.")
    near = [said for said, slip in slips.items() if abs(answer - slip) < 0.01 * slip]
    return not_yet(near[0] if near else f"{float(answer):.3f} is not it. Two shares, and one over the other.")


def knows_this_picture(answer: Any, check: MapCheck) -> Verdict:
    """Exercise 3: the methods whose map lies on the expression surely more than their map of another picture does."""
    table = check.to_frame(flips=100)
    own, ratio = (
        {method for method, interval in table[column].drop(list(CONTROLS)).items() if interval.low > 1}
        for column in ("own", "ratio")
    )
    if answer is None:
        return not_yet("the answer is still None. Give the names in a set; the column is `own`, and an interval must lie above 1.")
    if isinstance(answer, str) or not isinstance(answer, Sequence | set | frozenset):
        return not_yet(f"give a set or list of names, such as {{'gradient'}}; this is a {type(answer).__name__}.")
    if strange := sorted({str(name) for name in answer} - set(table.index)):
        return not_yet(f"{strange[0]!r} is no row of the table; there are {', '.join(table.index)}.")
    if set(answer) == own:
        listed = ", ".join(sorted(own)) or "None of them"
        return right(f"{listed}. The others may only know that faces are in the middle; `ratio` alone would have praised them.")
    if set(answer) - set(CONTROLS) == ratio - set(CONTROLS):
        return not_yet(
            "that is the column `ratio`. Even the map of another picture is above 1 there, as most faces are in the middle."
        )
    if more := sorted(set(answer) - own):
        why = "is a control; leave the controls out" if more[0] in CONTROLS else f"has {table.own[more[0]]}, which is not above 1"
        return not_yet(f"{more[0]} {why}.")
    return not_yet(f"one is missing, or more: {len(own)} intervals lie above 1, and you name {len(set(answer))}.")


def enough_copies(answer: Any, target: Target, image: Image.Image, sigma: float) -> Verdict:
    """Exercise 4: the least n among 1, 2, 4, 8, 16, 32 at which two maps with other noise correlate above 0.95."""
    if answer is None:
        return not_yet("the answer is still None. Make two maps with seed=0 and seed=1, and correlate them: np.corrcoef.")
    if not isinstance(answer, int | np.integer) or isinstance(answer, bool) or answer not in COPIES:
        return not_yet(f"{answer!r} is none of {', '.join(map(str, COPIES))}.")
    alike = {n: copies_agree(target, image, sigma, n) for n in COPIES if n <= answer}
    if alike[answer] <= ALIKE:
        return not_yet(f"at n = {answer} they correlate with {alike[answer]:.3f}; more copies are needed.")
    if fewer := [n for n in alike if n < answer and alike[n] > ALIKE]:
        return not_yet(f"n = {answer} is enough ({alike[answer]:.3f}), but so is {fewer[0]} ({alike[fewer[0]]:.3f}).")
    return right(f"At n = {answer} two runs correlate with {alike[answer]:.3f}: what is left over is not noise of the sampling.")


def copies_agree(target: Target, image: Image.Image, sigma: float, n: int) -> float:
    """The correlation of SmoothGrad's maps with two seeds."""
    maps = [METHODS["smoothgrad"](target, image, n=n, sigma=sigma, seed=seed).ravel() for seed in (0, 1)]
    return float(np.corrcoef(*maps)[0, 1])
