"""Chapter 02's exercises, panel and page of the tour: right answers pass, usual slips hear their own words, views show the numbers."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from emointerp.errors import InputError
from emointerp.exercises import sae as exercise
from emointerp.sae import SAE, Codes
from emointerp.sae.emotion import EmotionDirections
from emointerp.sae.signifiers import MEAN, MIX, TEST, SignifierAudit
from emointerp.statistics import Interval


def says(verdict, words: str) -> bool:
    """Whether a verdict is "not yet" and has these words."""
    return not verdict and verdict.message.startswith("Not yet: ") and words in verdict.message


# 1: scores of X are 0.5, 2, -3, 1.5, 1, 0.2, with the biases 0.5, 2, -3, 1.2, 1.4, 0.2; k is 3

ROWS = torch.tensor([[0.5, 0.0], [2.0, 0.0], [-3.0, 0.0], [1.5, 0.0], [1.0, 0.0], [0.2, 0.0]])
BIAS = torch.tensor([0.0, 0.0, 0.0, -0.3, 0.4, 0.0])
ONE = SAE(ROWS, 3, None, BIAS, torch.tensor([0.2, 0.1]))
X = torch.tensor([1.0, 0.0])


def test_a_code_by_hand():
    truth = [0.0, 2.0, 0.0, 1.2, 1.4, 0.0]
    for answer in (truth, np.array(truth), torch.tensor([truth])):
        verdict = exercise.code_by_hand(answer, ONE, X)
        assert verdict and verdict.message.startswith("Right. 3 of 6 features fire") and "is 1.00." in verdict.message
    for answer, words in (
        (None, "still None"),
        ("2", "this is a str"),
        ([1, [2, 3]], "this is a list"),
        ([2.0, 1.4, 1.2], "yours is 3; expected 6 numbers, one for each of the features: their values alone"),
        (torch.zeros(6, 2), "yours is 6 x 2; expected 6 numbers"),
        ([0.5, 2.0, 0.0, 1.2, 1.4, 0.2], "relu without the top k"),
        ([0.0, 2.0, 0.0, 0.0, 1.4, 0.0], "a strict > the k-th largest score"),
        ([0.5, 2.0, -3.0, 1.2, 1.4, 0.2], "negative ones too"),
        ([0.0, 2.0, -3.0, 0.0, 1.4, 0.0], "by their size without sign"),
        ([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], "its score as its value, not 1"),
        ([0.0, 2.0, 0.0, 1.5, 1.0, 0.0], "b_enc is left out"),
        ([0.0, 1.6, 0.0, 0.9, 1.2, 0.0], "b_dec was taken off"),
        ([0.0, 9.0, 0.0, 0.0, 0.0, 0.0], "that is another code; 1 numbers of yours are not 0, and k is 3"),
    ):
        assert says(exercise.code_by_hand(answer, ONE, X), words), words


def test_a_code_by_hand_without_biases_and_with_fewer_than_k_that_fire():
    plain = SAE(ROWS[:3] * torch.tensor([[1.0], [-1.0], [1.0]]), 2)
    assert exercise.code_by_hand([0.5, 0.0, 0.0], plain, X).message.startswith("Right. 1 of 3 features fire")


# 2: codes of five pictures, two of joy, two of fear, one of anger

LABELS = ["joy", "joy", "fear", "fear", "anger"]
CODES = Codes(
    torch.tensor([[4.0, 1.0], [3.0, 2.0], [3.0, 2.0], [1.0, 1.0], [6.0, 1.0]]),
    torch.tensor([[0, 3], [3, 1], [2, 3], [3, 0], [1, 2]]),
    5,
)
DENSE = np.array([[4, 0, 0, 1, 0], [0, 2, 0, 3, 0], [0, 0, 3, 2, 0], [1, 0, 0, 1, 0], [0, 6, 1, 0, 0]], float)
JOY, FEAR, ANGER = DENSE[:2].mean(0), DENSE[2:4].mean(0), DENSE[4]
ALL = (JOY + FEAR + ANGER) / 3


def test_a_direction_by_hand():
    for answer in (JOY - ALL, torch.tensor(3 * (JOY - ALL)), JOY - (FEAR + ANGER) / 2):
        verdict = exercise.direction_by_hand(answer, CODES, LABELS, "joy")
        assert verdict and verdict.message.startswith("Right. Feature 0 weighs most; the first five features hold 100%")
    for answer, words in (
        (None, "still None"),
        (3, "this is a int"),
        (np.zeros((3, 5)), "yours is 3 x 5; expected 5 numbers, one for each of the features: give one emotion's direction"),
        (JOY, "that is the raw mean code"),
        (ALL - JOY, "the sign is turned"),
        (DENSE[:2].sum(0) - (DENSE[:2].sum(0) + DENSE[2:4].sum(0) + DENSE[4]) / 3, "those are sums"),
        ([4, 2, 0, 2, 0], "and nothing is taken off yet"),
        (np.array([4, 2, 0, 2, 0]) - ALL, "Silence counts"),
        (FEAR - ALL, "that is the direction of fear; asked is joy"),
        (np.eye(5)[4], "its cosine to the direction of joy is 0.00"),
    ):
        assert says(exercise.direction_by_hand(answer, CODES, LABELS, "joy"), words), words


# 3


@pytest.fixture(scope="module")
def noise():
    """Codes of 240 pictures, and of 240 others, on which 300 features fire at random."""
    drawn = torch.Generator().manual_seed(0)
    values, indices = torch.rand(480, 12, generator=drawn), torch.rand(480, 300, generator=drawn).argsort(1)[:, :12]
    return Codes(values[:240], indices[:240], 300), Codes(values[240:], indices[240:], 300)


def test_the_best_of_many_features_for_labels_without_meaning(noise):
    codes, others = noise
    labels = np.arange(240) < 34
    shuffled = np.random.default_rng(7).permutation(labels)
    best = max(roc_auc_score(shuffled, column) for column in codes.dense().T.numpy())
    assert 0.55 < best < 0.65
    verdict = exercise.best_by_chance(best, 0.5, codes, others, labels)
    assert verdict and "The best of 300 features has 0." in verdict.message and " and 0.50 on other pictures" in verdict.message
    for chosen, elsewhere, words in (
        (None, 0.5, "`chosen` is None"),
        (best, "no", "these are a float64 and a str"),
        (True, 0.5, "these are a bool"),
        (60, 0.5, "between 0 and 1; 60 and 0.5 came"),
        (0.5, 0.5, "so good would one feature be"),
        (0.545, 0.5, "the luckiest had 0.5"),
        (0.9, 0.5, "Were labels shuffled?"),
        (best, best, "on pictures that did not choose, what is left?"),
    ):
        assert says(exercise.best_by_chance(chosen, elsewhere, codes, others, labels), words), words


# 4


def audited(mix: tuple[float, float, float], test: tuple[float, float, float]) -> SignifierAudit:
    """An audit whose mean row has, by set: the change, p that it costs more than random sets, p that it costs less."""
    rows = []
    for name, (change, more, less) in {MIX: mix, TEST: test}.items():
        numbers = {"difference": Interval(change, change - 0.02, change + 0.02, 700), "p costs more": more, "p costs less": less}
        rows.append({"emotion": MEAN, "set": name, "random difference": Interval(-0.03, -0.05, -0.01, 100)} | numbers)
    features = pd.DataFrame({"emotion": ["joy"], "feature": [0], "label": ["prop"], "weight": [1.0]})
    directions = EmotionDirections(("joy",), torch.ones(1, 1), (1,))
    return SignifierAudit(features, pd.DataFrame(), pd.DataFrame(rows), directions, 0.05, 100)


def test_what_it_costs_to_leave_signifiers_out():
    audit = audited((-0.2, 0.01, 1.0), (0.01, 1.0, 0.01))
    verdict = exercise.what_it_costs({MIX: "more", TEST: "less"}, audit)
    assert verdict and "train mix: more (AP -0.200 without them, -0.030 without random ones)" in verdict.message
    for answer, words in (
        (None, "give a word for each of 'train mix', 'test'"),
        ({MIX: "more"}, "give a word for each"),
        ({MIX: "much", TEST: "less"}, "'much' is none of 'more', 'the same', 'less'"),
        ({MIX: "less", TEST: "less"}, "train mix: AP -0.200 without them, -0.030 without random ones"),
        ({MIX: "more", TEST: "more"}, "test: AP +0.010 without them"),
    ):
        assert says(exercise.what_it_costs(answer, audit), words), words


def test_a_loss_that_random_features_cost_too_is_no_finding():
    audit = audited((-0.04, 0.2, 0.8), (-0.04, 0.03, 0.97))  # 0.03 is one side of two
    assert exercise.what_it_costs({MIX: "the same", TEST: "the same"}, audit)
    assert says(exercise.what_it_costs({MIX: "more", TEST: "more"}, audit), "the loss is real, but is it more than random")
    assert says(exercise.what_it_costs({MIX: "the same", TEST: "less"}, audit), "neither is below 0.025")
    with pytest.raises(InputError, match="There is no audit of 'fear'; there are joy, mean"):
        exercise.what_it_costs({MIX: "more", TEST: "more"}, audit, "fear")
