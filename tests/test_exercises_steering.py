"""The exercises of notebook 04 and of the second half of 05: right answers pass, and each usual slip hears its own words."""

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from tiny_models import picture

from emointerp.exercises import flow as flow_exercise
from emointerp.exercises import steering as exercise
from emointerp.flow import Patching
from emointerp.pairs import Pair
from emointerp.statistics import with_controls
from emointerp.steering import Steering

PAIR = Pair(picture(0), picture(1), "The phone rang twice while I was cooking.", "joy")


def says(verdict, words: str) -> bool:
    """Whether a verdict is "not yet" and has these words."""
    return not verdict and verdict.message.startswith("Not yet: ") and words in verdict.message


# 04, 1: a difference by hand


def residual(vlm, side, layer: int, begun: str = "I felt") -> torch.Tensor:
    prompt = vlm.prompt(*side, answer=begun)
    return oracle.caches(vlm, prompt)["residual", layer][prompt.last]


@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_a_difference_from_plain_hooks_is_right(family):
    vlm = tiny_families.vlm(family)
    plus, minus = (residual(vlm, side, 2) for side in (PAIR.plus, PAIR.minus))
    verdict = exercise.by_hand(plus - minus, vlm, PAIR, 2)
    assert verdict and 'S["joy", 2]' in verdict.message
    assert f"{float((plus - minus).norm() / minus.norm()):.2f} times as long" in verdict.message


def test_each_wrong_vector_is_recognised():
    vlm = tiny_families.vlm("llava_clip")
    plus, minus = (residual(vlm, side, 2) for side in (PAIR.plus, PAIR.minus))
    question = [residual(vlm, side, 2, "") for side in (PAIR.plus, PAIR.minus)]
    other = residual(vlm, PAIR.plus, 1) - residual(vlm, PAIR.minus, 1)
    for answer, words in (
        (None, "still None"),
        ("plus", "this is a str"),
        ((plus - minus)[None].expand(4, -1), "its shape is [4, 32]; asked is one layer (2), one token (the last)"),
        (minus - plus, "neutral less emotional"),
        (plus, "the emotional side alone"),
        (minus, "the neutral side alone"),
        (question[0] - question[1], "read at the end of the question"),
        (other, "that is layer 1; asked is layer 2"),
        ((plus - minus) / (plus - minus).norm(), "the direction is right, the length is not: 1.00, expected"),
        (torch.ones(32), "no difference of the two sides"),
    ):
        assert says(exercise.by_hand(answer, vlm, PAIR, 2), words), words
    for same in ((plus - minus)[None], (plus - minus).numpy(), (plus - minus).tolist()):
        assert exercise.by_hand(same, vlm, PAIR, 2)


# 04, 2: the layer by clean stories


def pushed(rates: dict[tuple[int, float], tuple[float, float, float]], n: int = 10) -> Steering:
    """A run over `n` pairs with shares of hit, exact and clean stories by layer and alpha."""
    rows = [
        {"direction": "S", "pair": i, "layer": layer, "alpha": alpha, "story": "glad " * 40 if i >= clean * n else "I was glad."}
        | {"perplexity": 900.0 if i >= clean * n else 2.0}
        | {name: float(i < share * n) for name, share in (("hit", hit), ("exact", exact), ("clean", clean))}
        for (layer, alpha), (hit, exact, clean) in rates.items()
        for i in range(n)
    ]
    return Steering(pd.DataFrame(rows), ("joy",))


RATES = {
    (0, 1.0): (0.2, 0.2, 0.2), (0, 2.0): (0.3, 0.3, 0.2),
    (1, 1.0): (0.6, 0.6, 0.6), (1, 2.0): (0.6, 0.6, 0.6),
    (2, 1.0): (0.7, 0.7, 0.7), (2, 2.0): (0.7, 0.7, 0.0),
    (3, 1.0): (0.9, 0.9, 0.1), (3, 2.0): (0.8, 0.8, 0.0),
    (4, 1.0): (1.0, 0.4, 0.0), (4, 2.0): (1.0, 0.4, 0.0),
}  # fmt: skip


def test_the_layer_where_most_stories_are_clean():
    verdict = exercise.layer_by_clean_stories(1, pushed(RATES))
    assert verdict and "after layer 1, 60% of the stories are clean" in verdict.message
    assert "The hit rate would choose layer 4: of the stories there 100% hit and 0% are clean" in verdict.message
    assert "glad glad" in verdict.message
    assert exercise.layer_by_clean_stories(np.int64(1), pushed(RATES))
    agreeing = {key: rates for key, rates in RATES.items() if key[0] < 2}
    assert "the hit rate chooses the same layer" in exercise.layer_by_clean_stories(1, pushed(agreeing)).message
    equal = pushed({(0, 1.0): (0.5, 0.5, 0.5), (1, 1.0): (0.5, 0.5, 0.5)})
    assert exercise.layer_by_clean_stories(0, equal) and exercise.layer_by_clean_stories(1, equal)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "still None"),
        (0.6, "this is a float"),
        (True, "this is a bool"),
        (9, "in this run layers 0, 1, 2, 3, 4 were pushed"),
        (4, "where most stories hit. But of the stories there 100% hit and 0% are clean"),
        (3, "who stammers one word names no other"),
        (2, "at its best strength this layer is as good as any, but over all strengths only 35%"),
        (0, "after layer 0, 20% of the pushed stories are clean"),
    ],
)
def test_another_layer_hears_why(answer, words):
    assert says(exercise.layer_by_clean_stories(answer, pushed(RATES)), words)


def test_where_nothing_is_clean_there_is_no_best_layer():
    nothing = pushed({(0, 1.0): (1.0, 1.0, 0.0)})
    assert says(exercise.layer_by_clean_stories(0, nothing), "no push of this run gave a clean story")


# 04, 3: controls

WHICH = {"any push": "random", "any real difference": "covariance-matched", "any emotion": "shuffled labels"}


def controlled(draws: int = 99, shuffled: float = 0.0) -> pd.DataFrame:
    """An effect over 20 pairs beside three controls; of the shuffled labels' draws so many gain as much."""
    effect, none = np.ones(20), np.zeros((draws, 20))
    some = np.array([np.full(20, float(i < shuffled * draws)) for i in range(draws)])
    return with_controls(effect, {"random": none, "covariance-matched": none, "shuffled labels": some})


def test_controls_and_what_they_leave_standing():
    clear, unclear = controlled(), controlled(shuffled=0.5)
    assert "Every doubt is answered" in exercise.controls(WHICH, True, clear).message
    verdict = exercise.controls(WHICH, False, unclear)
    assert verdict and "The doubt “any push would do it that points to emotional pictures" in verdict.message
    assert says(exercise.controls(WHICH, False, clear), "all below 0.05: the effect beats every control")
    assert says(exercise.controls(WHICH, True, unclear), "(shuffled labels), not below 0.05. One doubt left is enough")


def test_too_few_draws_are_named():
    few = controlled(draws=20)
    assert says(exercise.controls(WHICH, True, few), "with 20 draws it can hardly be: p_draws is at least 1 / 21")
    assert exercise.controls(WHICH, False, few)


@pytest.mark.parametrize(
    ("which", "stands", "words"),
    [
        (None, None, "a control is still missing"),
        (WHICH | {"any push": None}, True, "a control is still missing"),
        (["random"], True, "this is a list"),
        (WHICH | {"any push": "noise"}, True, "'noise' is no control; there are 'random', 'covariance-matched', 'shuffled labels'"),
        (WHICH | {"any emotion": "random"}, True, "'random' keeps the length of the push and nothing else"),
        (WHICH | {"any push": "shuffled labels"}, True, "'shuffled labels' keeps the pairs, so it points to emotional pictures"),
        (WHICH, None, "`stands` is still None"),
        (WHICH, "yes", "`stands` is True or False, and this is 'yes'"),
    ],
)
def test_controls_that_are_mixed_up(which, stands, words):
    assert says(exercise.controls(which, stands, controlled()), words)


def test_a_table_without_the_controls_is_refused():
    assert says(exercise.controls(WHICH, True, controlled().drop("random")), "the table lacks 'random'; it has 'effect'")


# 05, 4


def patched() -> Patching:
    """Three pairs, the last with hardly a gap; noising closes less."""
    values = {"denoising": [(-2.0, -5.0, -1.0), (-3.0, -4.0, -2.0), (-2.0, -3.0, -2.9)], "noising": [(-2.0, -1.0, -5.0)] * 3}
    rows = [
        {"pair": i, "direction": direction, "span": "L", "stage": "late", "value": value, "receiver": receiver, "donor": donor}
        for direction, some in values.items()
        for i, (value, receiver, donor) in enumerate(some)
    ]
    return Patching(pd.DataFrame(rows), "log mass")


def test_a_normalised_effect_is_a_ratio_of_means():
    """Moves 3, 1, 1 and gaps 4, 2, 0.1: 5 / 6.1; noising -1 / -4."""
    verdict = flow_exercise.normalised_effect(5 / 6.1, patched(), "L", "late")
    assert verdict and "82% of the gap" in verdict.message and "3.75" in verdict.message
    assert flow_exercise.normalised_effect(0.25, patched(), "L", "late", "noising")
    for answer, words in (
        (None, "still None"),
        ("0.8", "this is a str"),
        (500 / 6.1, "that is a percentage"),
        (5 / 3, "how far the log mass moved"),
        (-5 / 6.1, "the sign is turned"),
        (1.1 / 6.1, "counts from the donor"),
        (6.1 / 5, "the gap over the move"),
        (7 / 5.9, "forgets where the receiver starts"),
        ((3 / 4 + 1 / 2 + 10) / 3, "the mean of each pair's ratio"),
        (0.25, "that is noising; asked is denoising"),
        (0.4, "0.40 is not it"),
    ):
        assert says(flow_exercise.normalised_effect(answer, patched(), "L", "late"), words), words
    assert says(flow_exercise.normalised_effect(0.5, patched(), "V", "late"), "nothing was patched at V, late, denoising")
