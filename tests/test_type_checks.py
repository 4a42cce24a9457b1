"""Under pytest the package's annotations hold: plain types, shapes, and one size for one name."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor
from type_checks import names_a_shape

from emointerp.saliency import SaliencyMap, places
from emointerp.saliency.registers import robust_z
from emointerp.statistics import Interval
from emointerp.world import Scene, sample

Vectors = Float[Tensor, "picture d"]


@pytest.mark.parametrize(
    "call", [lambda: sample("test", "three"), lambda: Interval("0.5", 0.4, 0.6, 9), lambda: Scene(things="hat")]
)
def test_a_value_of_another_type_is_refused(call):
    with pytest.raises(TypeError):
        call()


def test_an_int_may_stand_for_a_float():
    assert Interval(1, 0, 2, 9).mean == 1


def test_a_shape_and_a_number_type_are_held_to():
    for wrong in (np.zeros(3), np.zeros((2, 3), int)):
        with pytest.raises(TypeCheckError, match="layer patch"):
            robust_z(wrong)
    with pytest.raises(TypeCheckError, match="height width"):
        SaliencyMap(np.zeros(16), None, "", "", 1.0)


def test_one_name_has_one_size_in_a_call():
    boxes = np.array([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
    assert places.paint(np.array([1.0, 2.0]), boxes, (4, 2)).shape == (2, 4)
    with pytest.raises(TypeCheckError, match="token=3"):
        places.paint(np.array([1.0, 2.0, 3.0]), boxes, (4, 2))


@pytest.mark.parametrize("hint", [Vectors, Vectors | None, "Vectors", tuple[int, Vectors], dict[str, Sequence[Vectors]]])
def test_shapes_are_found_wherever_they_stand(hint):
    assert names_a_shape(hint)


@pytest.mark.parametrize("hint", [int, None, Tensor, torch.dtype | None, dict[str, Sequence[float]], Scene])
def test_other_annotations_name_none(hint):
    assert not names_a_shape(hint)
