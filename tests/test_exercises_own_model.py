"""The exercises of notebook 08: right answers pass, and each usual slip hears its own words."""

import numpy as np
import pytest
from PIL import Image

from emointerp.errors import InputError
from emointerp.exercises import own_model as exercise
from emointerp.models import expect
from emointerp.pairs import Pair
from emointerp.statistics import Interval


def says(verdict, words: str) -> bool:
    """Whether a verdict is "not yet" and has these words."""
    return not verdict and verdict.message.startswith("Not yet: ") and words in verdict.message


# 1: the cache of a token

TOKEN = 57344  # 2 x 28 layers x 4 key/value heads x 128 numbers x 2 bytes, worked out by hand


@pytest.fixture(scope="module")
def qwen():
    return expect("Qwen/Qwen2-VL-7B-Instruct")


def test_bytes_of_a_token(qwen):
    verdict = exercise.cache_by_hand(TOKEN, qwen)
    assert verdict and "57,344 bytes: 4 key/value heads serve 28 heads. A prompt of 640 tokens takes 37 MB." in verdict.message
    llava = exercise.cache_by_hand(np.int64(524288), expect("llava-hf/llava-1.5-7b-hf"))
    assert llava and "every head has its own. A prompt of 640 tokens takes 336 MB" in llava.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "still None"),
        ("57 kB", "this is a str"),
        (True, "this is a bool"),
        (TOKEN // 2, "a key and a value"),
        (401408, "that is with 28 heads; keys and values are kept of 4 alone"),
        (2048, "that is one layer; there are 28"),
        (458752, "that is bits"),
        (114688, "that is with 4 bytes a number"),
        (TOKEN * 640, "that is a whole prompt of 640 tokens"),
        (57345, "57,345 is not it: 2 x layers"),
    ],
)
def test_each_slip_of_the_cache_is_recognised(answer, words, qwen):
    assert says(exercise.cache_by_hand(answer, qwen), words)


def test_numbers_for_bytes_is_a_slip_of_its_own_in_float32():
    budget = expect("Qwen/Qwen2-VL-7B-Instruct", dtype="float32")
    assert says(exercise.cache_by_hand(28672, budget), "that is how many numbers are kept; each takes 4 bytes")
    assert says(exercise.cache_by_hand(57344, budget), "a key and a value, not one of them")


# 2: what leaks


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


PAIRS = [  # picture, neutral picture, event, split, name
    Pair(picture(0), picture(1), "I came home.", "rain", "selection", "a.png"),
    Pair(picture(2), picture(3), "I left.", "rain", "test", "a.png"),  # only the name is the same
    Pair(picture(0), picture(4), "I sat down.", "rain", "test", "b.png"),  # the picture is
    Pair(picture(5), picture(1), "I stood up.", "rain", "test", "c.png"),  # the neutral one is
    Pair(picture(6), picture(7), " i came HOME.", "rain", "test", "d.png"),  # the event is
    Pair(picture(8), picture(9), "I left.", "rain", "test", "e.png"),  # an event of the same split
    Pair(picture(10), picture(11), "I wrote.", "rain", "test", "f.png", neutral_event="I came home."),
]


def test_what_leaks_is_told_with_the_reason():
    verdict = exercise.leaks([2, 3, 4, 6], PAIRS)
    assert verdict and "2: the picture; 3: the neutral picture; 4: the event; 6: the event" in verdict.message
    assert exercise.leaks(np.array([6, 4, 3, 2]), PAIRS)
    clean = exercise.leaks((), [PAIRS[0], PAIRS[1]])
    assert clean and "Nothing leaks" in clean.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "the answer is None; give a list of the numbers of test pairs"),
        ("2, 3", "the answer is '2, 3'"),
        (3, "the answer is 3"),
        ([2.5], "the answer is [2.5]"),
        ([0, 2, 3, 4, 6], "pair 0 is not of the split 'test'"),
        ([2, 9], "pair 9 is not of the split 'test'"),
        ([1, 2, 3, 4, 6], "pair 1 shares neither a picture nor an event"),
        ([2, 3, 4, 5, 6], "pair 5 shares neither"),
        ([3, 4, 6], "1 are missing. Look at pair 2 again: is its picture its own, whatever the file is called?"),
        ([2, 4, 6], "Look at pair 3 again: its emotional picture is its own, but a pair has two"),
        ([2, 3], "2 are missing. Look at pair 4 again: its pictures are its own, but is its event?"),
    ],
)
def test_each_slip_of_the_splits_is_recognised(answer, words):
    assert says(exercise.leaks(answer, PAIRS), words)


@pytest.mark.parametrize("pairs", [PAIRS[1:], PAIRS[:1], []])
def test_one_split_alone_is_no_question(pairs):
    with pytest.raises(InputError, match=f"Of these {len(pairs)} pairs some have to be of split 'test', and some of another"):
        exercise.leaks([], pairs)


def many(split: str, start: int) -> list[Pair]:
    return [
        Pair(picture(start + 2 * i), picture(start + 2 * i + 1), f"{split} {i}", "rain", split, f"{split}{i}") for i in range(6)
    ]


def test_a_spoilt_list_leaks_in_three_ways_and_a_name_is_no_leak():
    selection, test = many("selection", 0), many("test", 100)
    for seed in range(5):
        pairs = exercise.spoilt(selection, test, seed)
        assert pairs[:6] == selection and [pair.split for pair in pairs[6:]] == ["test"] * 6
        changed = [6 + i for i, pair in enumerate(test) if pairs[6 + i] != pair]
        named = [i for i in changed if pairs[i].name != test[i - 6].name]
        assert len(changed) == 4 and len(named) == 1
        verdict = exercise.leaks([i for i in changed if i not in named], pairs)
        assert verdict and all(words in verdict.message for words in (": the event", ": the picture", ": the neutral picture"))
    with pytest.raises(InputError, match="6 and 3 pairs came; four or more of each"):
        exercise.spoilt(selection, test[:3])


# 3: what a table lets one say

UNSURE, GOOD, BAD = Interval(0.022, -0.01, 0.0645, 46), Interval(0.2, 0.12, 0.28, 46), Interval(-0.1, -0.15, -0.04, 46)


def test_claims_that_the_interval_allows():
    verdict = exercise.what_to_say("not shown", 6.45, UNSURE)
    words = "+2.2 [-1.0, +6.5] points: no difference is shown, and a gain of more than 6.5 points is ruled out"
    assert verdict and words.replace("+6.5]", f"{6.45:+.1f}]").replace("6.5 points is", f"{6.45:.1f} points is") in verdict.message
    assert exercise.what_to_say("helps", 28, GOOD) and exercise.what_to_say("harms", np.float64(-4.05), BAD)


@pytest.mark.parametrize(
    ("claim", "largest", "difference", "words"),
    [
        (None, None, UNSURE, "`claim` is None and `largest` is None; claims are 'helps', 'harms', 'not shown'"),
        ("not shown", None, UNSURE, "`largest` is None"),
        ("no difference", 6.5, UNSURE, "'no difference' is no claim"),
        ("helps", 6.45, UNSURE, "one cannot say that it helps. Where does 0 lie?"),
        ("not shown", 28, GOOD, "one cannot say that no difference is shown"),
        ("helps", -4, BAD, "one cannot say that it helps"),
        ("not shown", "6.5", UNSURE, "this is a str"),
        ("not shown", 0.0645, UNSURE, "that is a share"),
        ("not shown", 2.2, UNSURE, "that is the mean"),
        ("not shown", 7.45, UNSURE, "that is the width"),
        ("not shown", -1.0, UNSURE, "that is the lower end"),
        ("helps", 25, GOOD, "the interval's upper end is not 25"),
    ],
)
def test_claims_beyond_the_interval_are_refused(claim, largest, difference, words):
    assert says(exercise.what_to_say(claim, largest, difference), words)
