"""Chapter 01's panel and exercises: the slider shows the model it names, right answers pass, usual slips hear their own words."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from emointerp.errors import InputError
from emointerp.exercises import superposition as exercise
from emointerp.superposition import Interference, ToyModels
from emointerp.widgets import superposition

ANGLES = torch.arange(5) * 2 * math.pi / 5
PENTAGON = torch.stack([ANGLES.cos(), ANGLES.sin()])
TWO = torch.zeros(2, 5)
TWO[0, 0], TWO[1, 1] = 1.0, 1.0
UNEVEN = torch.tensor([[1.2, -0.6, 0.0, 0.0, 0.0], [0.0, 0.3, 0.0, 0.8, 0.0]])
TOYS = ToyModels(
    (1.0, 0.2, 0.05), 0.9 ** torch.arange(5), torch.stack([TWO, UNEVEN, PENTAGON]), torch.zeros(3, 5), torch.zeros(3, 2)
)


def says(verdict, words: str) -> bool:
    """Whether a verdict is "not yet" and has these words."""
    return not verdict and verdict.message.startswith("Not yet: ") and words in verdict.message


# the panel


def test_the_slider_goes_from_dense_to_sparse_and_shows_the_model_it_names():
    panel = superposition(TOYS)
    slider = panel.controls["density"]
    assert [label for label, _ in slider.options] == ["0.00", "0.80", "0.95"] and slider.value == 1.0
    assert "<b>2 features in 2 dimensions</b>, own dimension: 2." in panel.view.value
    first = panel.view.value
    slider.value = 0.05
    assert "in 5% of the samples" in panel.view.value and "<b>5 features in 2 dimensions</b>, pentagon: 5." in panel.view.value
    assert panel.view.value.count(">0.40</td>") == 5 and "data:image/png" in panel.view.value
    slider.value = 1.0
    assert panel.view.value == first and 'role="alert"' not in first


def test_models_that_cannot_be_drawn_in_the_plane_are_refused():
    deep = ToyModels((1.0,), torch.ones(3), torch.eye(3)[None], torch.zeros(1, 3), torch.zeros(1, 1))
    with pytest.raises(InputError, match="3 hidden dimensions; the panel draws two"):
        superposition(deep)


# 1


def test_a_dimensionality_by_hand():
    W = UNEVEN.tolist()
    length = math.hypot(W[0][1], W[1][1])
    products = [(W[0][1] * W[0][j] + W[1][1] * W[1][j]) / length for j in range(5)]
    truth = length**2 / sum(p**2 for p in products)
    for answer in (truth, np.float64(truth), torch.tensor(truth)):
        assert f"Feature 1 has {truth:.2f} of a dimension" in exercise.dimensionality_by_hand(answer, TOYS, 0.2, 1).message
    others = sum(p**2 for j, p in enumerate(products) if j != 1)
    for answer, words in (
        (None, "still None"),
        ("half", "this is a str"),
        (True, "this is a bool"),
        (length**2 / others, "the feature itself too"),
        (length**2 / sum((p * length) ** 2 for p in products), "W_i is to have length 1"),
        (length**2 / sum(products) ** 2, "square each product before"),
        (length / sum(p**2 for p in products), "the length in the numerator is squared"),
        (1 / truth, "upside down"),
        (2 / sum(x**2 for row in W for x in row), "that is D*"),
        (7.0, "7.000 is not it"),
    ):
        assert says(exercise.dimensionality_by_hand(answer, TOYS, 0.2, 1), words), words


# 2


def test_where_sharing_begins_to_pay():
    assert exercise.break_even(4 / 7) and exercise.break_even(0.571)
    for answer, words in (
        (None, "still None"),
        ([0.5], "this is a list"),
        (3 / 7, "that is the sparsity"),
        (1, "Its loss is its variance"),
        (0, "divide by p"),
        (0.5, "at 0.500 sharing loses 0.083 and not sharing 0.104"),
    ):
        assert says(exercise.break_even(answer), words), words


# 3


def test_the_densest_model_with_more_features_than_dimensions():
    assert exercise.densest_superposition(0.2, TOYS)
    for answer, words in (
        (None, "still None"),
        (0.3, "no model was trained at density 0.3; there are 1, 0.2, 0.05"),
        (0.05, "5 features in 2 dimensions, but a denser model"),
        (1.0, "one each, nothing is shared"),
    ):
        assert says(exercise.densest_superposition(answer, TOYS), words), words
    dense = ToyModels((1.0,), TOYS.importance, TWO[None], torch.zeros(1, 5), torch.zeros(1, 1))
    assert says(exercise.densest_superposition(1.0, dense), "none of these models")


# 4


def measured(mean: float, random: float, matched: float) -> Interference:
    """Factors with this mean absolute cosine; random sets around theirs."""
    near = np.linspace(-0.01, 0.01, 199)
    table = pd.DataFrame({"factor": ["a", "b"], "mean cosine": [mean, mean]})
    return Interference(pd.DataFrame(), table, random + near, matched + near, 8, 4.0)


@pytest.mark.parametrize(("mean", "truth"), [(0.1, "less"), (0.3, "the same"), (0.5, "more")])
def test_interference_beside_directions_of_the_same_covariance(mean, truth):
    found = measured(mean, 0.3, 0.3)
    assert exercise.less_than_random(truth, found)
    for wrong in {"less", "more", "the same"} - {truth}:
        assert says(exercise.less_than_random(wrong, found), f"mean |cosine| {mean:.3f} against 0.300 [0.29")


def test_the_easier_control_is_not_enough():
    found = measured(0.3, 0.1, 0.5)  # more than anywhere, less than where embeddings are
    assert says(exercise.less_than_random("more", found), "beside directions that may point anywhere")
    assert exercise.less_than_random("less", found)
    assert says(exercise.less_than_random(None, found), "still None")
    assert says(exercise.less_than_random("no", found), "'no' is none of")
