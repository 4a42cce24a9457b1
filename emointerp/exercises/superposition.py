"""Exercises of notebook 01, on superposition."""

from typing import Any

import numpy as np
import torch

from emointerp.exercises.verdict import Verdict, not_yet, right
from emointerp.superposition import Interference, ToyModels, dimensionality

BREAK_EVEN = 4 / 7  # p^2 / 3 = p / 3 - p^2 / 4


def dimensionality_by_hand(answer: Any, toys: ToyModels, density: float, feature: int) -> Verdict:
    """Exercise 1: the dimensionality D_i of one feature of the model at a density."""
    W = toys.W[toys.index(density)]
    truth = float(dimensionality(W)[feature])
    value, wrong = _number(answer, "the answer is still None. D_i = ||W_i||^2 / sum_j (W_i_hat . W_j)^2.")
    if value is None:
        return not_yet(wrong)
    if abs(value - truth) < 0.005:
        return right(f"Feature {feature} has {truth:.2f} of a dimension to itself.")
    column, unit = W[:, feature], W[:, feature] / W[:, feature].norm()
    others = [j for j in range(W.shape[1]) if j != feature]
    slips = {
        "the sum runs over all features, the feature itself too; you left it out.": column.pow(2).sum()
        / (unit @ W[:, others]).pow(2).sum(),
        "in the sum W_i is to have length 1 (that is the hat); you used W_i as it is.": column.pow(2).sum()
        / (column @ W).pow(2).sum(),
        "square each product before you add them up: opposite features must not cancel.": column.pow(2).sum()
        / (unit @ W).sum().pow(2),
        "the length in the numerator is squared.": column.norm() / (unit @ W).pow(2).sum(),
        "that is the fraction upside down.": 1 / torch.tensor(truth),
        "that is D*, the mean over the model; asked is D_i of one feature.": W.shape[0] / W.pow(2).sum(),
    }
    near = [said for said, slip in slips.items() if abs(value - float(slip)) < 0.005]
    return not_yet(" Or: ".join(near) if near else f"{value:.3f} is not it. A column of W is a feature: W[:, {feature}].")


def break_even(answer: Any) -> Verdict:
    """Exercise 2: the density below which an antipodal pair in one dimension loses less than one feature that has it alone."""
    value, wrong = _number(answer, "the answer is still None. Set p^2 / 3 equal to p / 3 - p^2 / 4.")
    if value is None:
        return not_yet(wrong)
    if abs(value - BREAK_EVEN) < 0.005:
        return right(
            "At 4/7 both lose the same; below, two features in one dimension cost less than one. That is before either may "
            "adjust its lengths and biases, which favours sharing a little more."
        )
    if abs(value - 3 / 7) < 0.005:
        return not_yet("that is the sparsity, 1 - p; asked is the density p.")
    if abs(value - 1) < 0.005:
        return not_yet(
            "at density 1 sharing loses 1/3 and not sharing 1/12. Did you forget that the feature that is dropped is "
            "guessed by its mean? Its loss is its variance, p / 3 - p^2 / 4."
        )
    if value == 0:
        return not_yet("at 0 nothing ever happens, and nothing is lost either way; divide by p and look for the other solution.")
    shared, alone = value**2 / 3, value / 3 - value**2 / 4
    return not_yet(f"at {value:.3f} sharing loses {shared:.3f} and not sharing {alone:.3f}; they should be equal.")


def densest_superposition(answer: Any, toys: ToyModels) -> Verdict:
    """Exercise 3: the largest density of those trained at which more features are represented than there are dimensions."""
    features, hidden = toys.summary().features, toys.W.shape[1]
    above = [density for density in toys.densities if features[density] > hidden]
    if not above:
        return not_yet(f"none of these models has more than {hidden} features in {hidden} dimensions; train sparser ones.")
    value, wrong = _number(answer, "the answer is still None. Look at the column `features` of twenty.summary().")
    if value is None:
        return not_yet(wrong)
    if abs(value - max(above)) < 1e-9:
        return right(f"At density {value:g} there are {features[max(above)]} features in {hidden} dimensions.")
    if not any(abs(value - density) < 1e-9 for density in toys.densities):
        return not_yet(f"no model was trained at density {value:g}; there are {', '.join(f'{d:g}' for d in toys.densities)}.")
    count = features[toys.densities[toys.index(value)]]
    if count > hidden:
        return not_yet(
            f"at density {value:g} there are {count} features in {hidden} dimensions, but a denser model has too many already."
        )
    return not_yet(f"at density {value:g} there are {count} features in {hidden} dimensions: one each, nothing is shared.")


def less_than_random(answer: Any, measured: Interference, level: float = 0.05) -> Verdict:
    """Exercise 4: do the tower's directions interfere "less", "more" or "the same" as random ones of the vectors' covariance?"""
    row = measured.to_frame().loc["random, same covariance"]
    truth = "less" if row.p_less < level / 2 else "more" if row.p_more < level / 2 else "the same"
    seen = float(measured.table["mean cosine"].mean())
    numbers = f"mean |cosine| {seen:.3f} against {row.interval.mean:.3f} [{row.interval.low:.3f}, {row.interval.high:.3f}]"
    if answer is None:
        return not_yet('the answer is still None: "less", "more" or "the same"? Read interference.to_frame().')
    if answer not in ("less", "more", "the same"):
        return not_yet(f'{answer!r} is none of "less", "more", "the same".')
    if answer == truth:
        return right(f"{numbers}.")
    plain = measured.to_frame().loc["random"]
    naive = "less" if plain.p_less < level / 2 else "more" if plain.p_more < level / 2 else "the same"
    if answer == naive:
        return not_yet(
            f"so it is beside directions that may point anywhere. Embeddings do not: with their covariance it is {numbers}."
        )
    where = {"less": "below", "more": "above", "the same": "among"}
    return not_yet(
        f"{answer!r} would lie {where[answer]} those of random sets; what was measured lies {where[truth]} them: {numbers}."
    )


def _number(answer: Any, missing: str) -> tuple[float | None, str]:
    """The answer as a number, or None and what is wrong with it."""
    if answer is None:
        return None, missing
    if isinstance(answer, torch.Tensor | np.ndarray) and answer.shape.count(1) == len(answer.shape):
        return float(answer.reshape(())), ""
    if not isinstance(answer, int | float | np.number) or isinstance(answer, bool):
        return None, f"the answer is a number, and this is a {type(answer).__name__}."
    return float(answer), ""
