"""The exercises of notebook 07: right answers pass, and each usual slip hears its own words."""

from math import log

import numpy as np
import pandas as pd
import pytest
import torch

from emointerp.errors import InputError
from emointerp.evaluation.items import SETS
from emointerp.exercises import veena as exercise
from emointerp.statistics import Interval


def says(verdict, words: str) -> bool:
    """Whether a verdict is "not yet" and has these words."""
    return not verdict and verdict.message.startswith("Not yet: ") and words in verdict.message


# 1: attention by hand

ROWS = torch.tensor([[0.1, 0.1, 0.2, 0.6], [0.5, 0.25, 0.25, 0.0]])  # two queries, four keys; 1 and 2 are of the picture
RIGHT = [[0.1 / 1.9, 0.4 / 1.9, 0.8 / 1.9, 0.6 / 1.9], [0.5 / 2.5, 1 / 2.5, 1 / 2.5, 0.0]]  # worked out by hand for beta = 4


def test_log_beta_before_the_softmax_is_right():
    scores = torch.tensor([[1.0, 2.0, -0.5, 0.3, -2.0], [0.0, 0.1, 0.2, 0.3, 3.0]])
    added = scores + torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]) * log(3)
    verdict = exercise.by_hand(added.softmax(-1), scores.softmax(-1), [1, 3], 3)
    assert verdict and "attention goes from 41% to 57%: 1.4 times as much and not 3 times" in verdict.message
    for same in (RIGHT, np.array(RIGHT), torch.tensor(RIGHT, dtype=torch.float32)):
        assert exercise.by_hand(same, ROWS, [2, 1], 4)
    verdict = exercise.by_hand(RIGHT[0], ROWS[0], (1, 2), 4.0)
    assert verdict and "goes from 30% to 63%: 2.1 times as much and not 4 times" in verdict.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "still None"),
        ("0.4", "this is a str"),
        (RIGHT[0], "its shape is [4]; the scaled attention has the shape of the given one, [2, 4]"),
        ([[0.1, 0.4, 0.8, 0.6], [0.5, 1, 1, 0]], "the rows do not sum to 1 any more"),
        ([[0.1 / 0.7017, 1e-4 / 0.7017, 0.0016 / 0.7017, 0.6 / 0.7017], [0.5 / 0.5078125, 0.00390625 / 0.5078125,
          0.00390625 / 0.5078125, 0]], "beta multiplies the scores here"),  # fourth powers
        ([[0.1 / 17.0794, 5.45982 / 17.0794, 10.9196 / 17.0794, 0.6 / 17.0794], [0.5 / 27.7991, 13.6495 / 27.7991,
          13.6495 / 27.7991, 0]], "adds beta itself to the scores"),  # exp(4) = 54.5982
        ([[log(0.1), log(0.4), log(0.8), log(0.6)], [log(0.5), 0.0, 0.0, -np.inf]], "these are scores"),
        ([[0.4 / 3.1, 0.1 / 3.1, 0.2 / 3.1, 2.4 / 3.1], [2 / 2.5, 0.25 / 2.5, 0.25 / 2.5, 0]], "those that are not of it"),
        (ROWS, "the attention as it was. A constant added to all scores of a row changes nothing"),
        ([[0.1 / 0.775, 0.025 / 0.775, 0.05 / 0.775, 0.6 / 0.775], [0.8, 0.1, 0.1, 0]], "or beta is turned round"),
        ([[0.1 / 4.4, 0.4 / 4.4, 0.8 / 4.4, 0.6 / 4.4], [0.5 / 4.4, 1 / 4.4, 1 / 4.4, 0]], "the sum of all rows together"),
        ([[0.1, 1 / 3, 2 / 3, 0.6], [0.5, 0.5, 0.5, 0]], "only the visual columns sum to 1"),
        ([[0.1 / 3.4, 0.1 / 3.4, 0.8 / 3.4, 2.4 / 3.4], [0.5 / 1.75, 0.25 / 1.75, 1 / 1.75, 0]], "one too far to the right"),
        ([[0.4 / 1.6, 0.4 / 1.6, 0.2 / 1.6, 0.6 / 1.6], [2 / 3.25, 1 / 3.25, 0.25 / 3.25, 0]], "one too far to the left"),
        (torch.full((2, 4), 0.25), "these are not the scaled weights"),
        (torch.full((2, 4), torch.nan), "these are not the scaled weights"),
    ],
)  # fmt: skip
def test_each_slip_of_attention_is_recognised(answer, words):
    assert says(exercise.by_hand(answer, ROWS, [1, 2], 4), words)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ((2 * ROWS, [1], 4), r"rows of attention have to sum to 1 over the keys, its last axis; its shape is \[2, 4\]"),
        ((ROWS, [1, 4], 4), r"some of 0 to 3; given are \[1, 4\]"),
        ((ROWS, [], 4), r"given are \[\]"),
        ((ROWS, [1], 1), "beta is 1; expected a number above 0 other than 1"),
        ((ROWS, [1], -2), "beta is -2"),
    ],
)
def test_a_question_without_an_answer_is_refused(question, words):
    with pytest.raises(InputError, match=words):
        exercise.by_hand(None, *question)


# 2: a cure without harm


def interval(mean: float, spread: float = 0.05) -> Interval:
    return Interval(mean, mean - spread, mean + spread, 120)


def table(**methods: tuple) -> pd.DataFrame:
    """Differences to "none" on conflict, questions and neutral pictures, as `Evaluation.to_frame` lists them; a row "none" too."""
    rows = {
        (name, method): {"difference": value if isinstance(value, Interval) else interval(value), "oracle": method == "gold"}
        for i, name in enumerate(("conflict", "questions", "neutral pictures"))
        for method, values in methods.items()
        for value in values[i : i + 1]
    }
    none = {(name, "none"): {"difference": np.nan, "oracle": False} for name in ("conflict", "questions", "neutral pictures")}
    return pd.DataFrame.from_dict(none | rows, orient="index").rename_axis(["set", "method"])


METHODS = {
    "good": (0.23, 0.0, 0.0), "just": (interval(0.1 - 1e-17, 0.01), -0.01, 0.02), "small": (interval(0.05, 0.01), 0, 0),
    "unsure": (interval(0.2, 0.21), 0, 0), "dulled": (0.3, -0.02, 0), "dramatic": (0.3, 0, 0.03), "gold": (0.4, 0, 0),
}  # fmt: skip


def test_methods_that_mended_without_harm():
    frame = table(**METHODS)
    verdict = exercise.what_it_costs(["just", "good"], frame)
    assert verdict and "good: exact on conflict +23.0 [+18.0, +28.0] points, right answers +0.0" in verdict.message
    assert exercise.what_it_costs("good", table(good=METHODS["good"]))
    nobody = exercise.what_it_costs([], table(small=METHODS["small"]))
    assert nobody and "small: exact rate on conflict +5.0 [+4.0, +6.0] points" in nobody.message
    assert "No method mended without harm" in nobody.message
    unmarked = exercise.what_it_costs(["gold"], table(gold=METHODS["gold"])[["difference"]])  # who saw the gold, nobody says
    assert unmarked


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "still None. Give a list of methods, [] for none; there are 'good', 'just', 'small'"),
        (True, "still True"),
        (3, "this is a int"),
        (["better"], "the table has no 'better'"),
        (["none"], "the table has no 'none'"),
        (["good"], "'just' keeps the rule too: exact on conflict +10.0"),
        ([], "'good' keeps the rule too"),
        (["good", "just", "small"], "+5.0 [+4.0, +6.0] points; asked are 10 or more. Sure, but small"),
        (["unsure"], "large, but not sure, as the interval does not lie above 0"),
        (["dulled"], "right answers to questions -2.0 [-7.0, +3.0] points; at most 1 down is no harm"),
        (["dramatic"], "false emotions on neutral pictures +3.0 [-2.0, +8.0] points; at most 2 up is no harm"),
        (["gold"], "it saw the gold emotion"),
    ],
)
def test_a_method_too_many_or_too_few_hears_why(answer, words):
    assert says(exercise.what_it_costs(answer, table(**METHODS)), words)


def test_tables_that_cannot_be_judged_by():
    frame = table(good=(0.2, 0.0, 0.0))
    for lacking, words in (
        (frame.drop("questions", level="set"), "the table lacks the sets 'questions'"),
        (frame.drop(("questions", "good")), "no difference for 'good' on 'questions'"),
        (frame.drop(columns="difference"), "a column `difference`"),
        (frame.loc["conflict"], "rows (set, method)"),
    ):
        assert says(exercise.what_it_costs(["good"], lacking), words), words


# 3: whose gain it is

WHICH = {"no picture": "blank", "any colours": "shuffled", "any emotion": "swapped", "any heads": "random heads"}


def gains(own: float = 0.23, blank=0.0, shuffled=0.0, swapped=-0.1, random=0.01) -> pd.DataFrame:
    rows = {
        ("conflict", "VEENA"): own, ("conflict", "random heads"): random, ("conflict, blank picture", "VEENA"): blank,
        ("conflict, shuffled picture", "VEENA"): shuffled, ("conflict, swapped picture", "VEENA"): swapped,
    }  # fmt: skip
    return pd.Series({key: interval(mean) for key, mean in rows.items()}).to_frame("difference")


def test_the_sets_of_the_controls_are_those_of_the_harness():
    assert set(exercise.SETS.values()) <= set(SETS) and exercise.SETS.keys() == exercise.CONTROLS.keys()
    assert {doubt for doubt, _ in exercise.CONTROLS.values()} == set(exercise.DOUBTS) == set(WHICH)


def test_a_gain_that_goes_away_in_every_control_is_the_pictures():
    verdict = exercise.whose_gain(WHICH, True, gains())
    assert (
        verdict and "control wins for sure (with the picture and these heads +23.0 [+18.0, +28.0] points; blank" in verdict.message
    )
    assert says(exercise.whose_gain(WHICH, False, gains()), "no control wins anything that is sure")
    assert exercise.whose_gain(WHICH, True, gains(blank=0.05)), "an interval that begins at 0 is not above it"
    renamed = gains().rename(index={"VEENA": "VEE, β = 8", "random heads": "VEE, random"})
    assert exercise.whose_gain(WHICH, np.bool_(True), renamed, "VEE, β = 8", "VEE, random")


@pytest.mark.parametrize(
    ("frame", "doubt"),
    [
        (gains(blank=0.2), "needs no picture"),
        (gains(shuffled=0.14), "needs the picture's colours"),
        (gains(swapped=0.3), "whatever this one shows"),
        (gains(random=0.13), "as much attention from any heads"),
        (gains(own=0.5, random=0.1), "as much attention from any heads"),  # less than its own for sure, and not nothing
    ],
)
def test_one_doubt_left_is_enough(frame, doubt):
    verdict = exercise.whose_gain(WHICH, False, frame)
    assert verdict and "The claim falls: a part of the gain" in verdict.message and doubt in verdict.message
    assert says(exercise.whose_gain(WHICH, True, frame), "a control wins, its whole interval above 0. One is enough")


def test_without_a_sure_gain_there_is_nothing_to_claim():
    frame = gains(own=0.04, blank=-0.3, shuffled=-0.3, swapped=-0.3, random=-0.3)
    assert "no sure gain to claim" in exercise.whose_gain(WHICH, False, frame).message and exercise.whose_gain(WHICH, False, frame)
    assert says(exercise.whose_gain(WHICH, True, frame), "no sure gain to claim")


@pytest.mark.parametrize(
    ("which", "stands", "words"),
    [
        (None, None, "a control is still missing; each of 'no picture', 'any colours', 'any emotion', 'any heads' needs one"),
        (WHICH | {"any heads": None}, True, "a control is still missing"),
        (list(WHICH), True, "this is a list"),
        (WHICH | {"any heads": "noise"}, True, "'noise' is no control; there are 'blank', 'shuffled', 'swapped', 'random heads'"),
        (WHICH | {"no picture": "swapped"}, True, "'swapped' keeps a whole picture, but it is that of another item"),
        (WHICH | {"any heads": "blank"}, True, "“any heads” means: a part of the gain comes with as much attention from any heads"),
        (WHICH, None, "`stands` is still None"),
        (WHICH, "yes", "`stands` is True or False, and this is 'yes'"),
    ],
)
def test_controls_that_are_mixed_up(which, stands, words):
    assert says(exercise.whose_gain(which, stands, gains()), words)


def test_a_table_without_the_controls_is_refused():
    lacking = gains().drop(("conflict, blank picture", "VEENA"))
    assert says(exercise.whose_gain(WHICH, True, lacking), "the table has no gain of 'blank'. Name the rows by method= and random=")
    assert says(exercise.whose_gain(WHICH, True, gains(), method="VEE"), "no gain of 'VEE', 'blank', 'shuffled', 'swapped'")
