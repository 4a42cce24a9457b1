"""The exercises of notebook 06 on heads: right answers pass, and each usual slip hears its own words."""

from math import log

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from tiny_models import picture

from emointerp.errors import InputError
from emointerp.exercises import heads as exercise
from emointerp.heads import HeadCheck, HeadMap
from emointerp.lens import emotion_tokens
from emointerp.pairs import Pair
from emointerp.tracing import SetHead

PAIR = Pair(picture(0)[:48, :64], picture(1)[:48, :64], "The phone rang twice while I was cooking.", "up")
WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}


def says(verdict, words: str) -> bool:
    """Whether a verdict is "not yet" and has these words."""
    return not verdict and verdict.message.startswith("Not yet: ") and words in verdict.message


# 1: one head by hand


class Hooked:
    """The pair's two runs by plain hooks."""

    def __init__(self, family: str, begun: str = "I felt"):
        self.vlm = tiny_families.vlm(family)
        self.prompts = [self.vlm.prompt(*side, answer=begun) for side in (PAIR.plus, PAIR.minus)]
        self.kept = [oracle.caches(self.vlm, prompt) for prompt in self.prompts]
        table = emotion_tokens(self.vlm, WORDS)
        self.ids = table.id[table.emotion == "up"].tolist()

    def mass(self, side: int, edits=()) -> float:
        return float(oracle.logits(self.vlm, self.prompts[side], edits).double().softmax(-1)[self.ids].sum())

    def log_mass(self, side: int, edits=()) -> float:
        return log(self.mass(side, edits))

    def edit(self, layer: int, head: int, into: int = 1, everywhere: bool = False) -> SetHead:
        z = self.kept[1 - into]["heads", layer].unflatten(-1, (tiny_families.HEADS, -1))[:, head]
        return SetHead(layer, head, z, list(range(len(z)))) if everywhere else SetHead(layer, head, z[-1])

    def moved(self, layer: int, head: int, **how) -> float:
        into = how.get("into", 1)
        return self.log_mass(into, [self.edit(layer, head, **how)]) - self.log_mass(into)


@pytest.mark.parametrize("family", ["llava_clip", "qwen2_vl", "gemma3"])
def test_a_head_patched_by_plain_hooks_is_right(family):
    by = Hooked(family)
    moved, gap = by.moved(1, 2), by.log_mass(0) - by.log_mass(1)
    verdict = exercise.by_hand(moved, by.vlm, PAIR, 1, 2, words=WORDS)
    assert verdict and f"by {moved:+.2f} nats: {np.exp(moved):.3g} times as likely" in verdict.message
    assert f"{moved / gap:.0%} of the gap of {gap:.2f} between the two runs" in verdict.message
    for same in (torch.tensor([moved]), np.float64(moved), moved * 1.01):
        assert exercise.by_hand(same, by.vlm, PAIR, 1, 2, words=WORDS)
    mass = by.mass(1, [by.edit(1, 2)]) - by.mass(1)
    verdict = exercise.by_hand(mass, by.vlm, PAIR, 1, 2, "mass", words=WORDS)
    assert verdict and f"moves the mass of the words of up by {mass:+.3f}, " in verdict.message


@pytest.mark.parametrize("family", ["llava_clip", "qwen2_vl"])
def test_each_wrong_number_is_recognised(family):
    by, question = Hooked(family), Hooked(family, "")
    moved, gap, noised = by.moved(1, 2), by.log_mass(0) - by.log_mass(1), by.moved(1, 2, into=0)
    for answer, words in (
        (None, "still None"),
        ("0.3", "is one number, and this is a str"),
        (True, "this is a bool"),
        (torch.zeros(2), "this is a Tensor"),
        (by.log_mass(1, [by.edit(1, 2)]), "that is the log mass with the patch"),
        (-moved, "the sign is turned"),
        (moved - gap, "that counts from the emotional picture's run"),
        (noised, "that is noising"),
        (-noised, "that is noising"),
        (gap, "that is the whole gap"),
        (moved / gap, "that is a share of the gap"),
        (100 * moved / gap, "that is a percentage of the gap"),
        (np.exp(moved), "that is how many times as likely"),
        (by.moved(1, 2, everywhere=True), "that is the patch at all tokens"),
        (question.moved(1, 2), "that is read at the end of the question. Begin the answer in both prompts, answer='I felt'"),
        (by.moved(1, 3), "that is head 1.3; asked is 1.2, head 2 of layer 1"),
        (by.moved(0, 2), "that is head 0.2; asked is 1.2"),
        (by.moved(2, 1), "layer and head are swapped: that is head 2.1; asked is 1.2"),
        (moved + 37, f"{moved + 37:.3f} is not it. Put the emotional picture's head"),
        (float("nan"), "nan is not it"),
    ):
        assert says(exercise.by_hand(answer, by.vlm, PAIR, 1, 2, words=WORDS), words), words


def test_a_patch_that_cannot_be_asked_for():
    vlm = tiny_families.vlm("llava_clip")
    for layer, head, metric, message in (
        (4, 0, "log mass", "Layer 4 is out of range; this model has layers 0 to 3"),
        (0, 4, "log mass", "Head 4 is out of range"),
        (0, 0, "hit rate", "metric is 'hit rate'; expected 'log mass', 'mass', 'log odds'"),
    ):
        with pytest.raises(InputError, match=message):
            exercise.by_hand(0.1, vlm, PAIR, layer, head, metric, words=WORDS)


# 2: specificity by hand

SCORES = pd.Series({"anger": 2.0, "fear": 1.0, "joy": -1.0, "sadness": 1.0})  # shares 1/2, 1/4, 0, 1/4: 1.5 bits of 2


def test_a_specificity_by_hand():
    for answer in (0.25, np.float32(0.25), torch.tensor(0.252)):
        verdict = exercise.specificity_by_hand(answer, SCORES)
        assert verdict and "0.25: 50% of what the head brings over is anger" in verdict.message
        assert "noise alone looks specific" in verdict.message and "compares with permuted emotions" in verdict.message
    assert exercise.specificity_by_hand(1, pd.Series([0.0, 3.0, -2.0]))
    assert exercise.specificity_by_hand(0, pd.Series([0.5] * 6))


def test_what_noise_alone_gets():
    """Of two scores drawn around 0, above which there is one or both: 1 in two of three cases, else 1 less the entropy in bits.

    Where both are above 0, the second share is 1 / (1 + t) with t = |x| / |y|, whose angle atan(t) is uniform.
    """
    share = 1 / (1 + np.tan((np.arange(100_000) + 0.5) / 100_000 * np.pi / 2))
    both = 1 + (share * np.log2(share) + (1 - share) * np.log2(1 - share)).mean()
    assert exercise._of_noise(2) == pytest.approx((2 + both) / 3, abs=0.02)
    verdict = exercise.specificity_by_hand(1, pd.Series([0.0, 3.0]))
    assert f"around 0 get {exercise._of_noise(2):.2f} on average with 2 emotions" in verdict.message


def nats(*shares: float) -> float:
    return -sum(p * log(p) for p in shares)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "still None"),
        ([0.25, 0.5], "is one number, and this is a list"),
        (1.5 * log(2), "that is the entropy of the shares; the formula"),
        (1.5, "that is the entropy of the shares, in bits"),
        (0.75, "that is how even the shares are"),
        (1 - 1.5 * log(2), "not divided by log(n)"),
        (1 - 1.5 / log(4), "the entropy is in bits, log(n) in nats"),
        (1 - 1.5 * log(2) / 2, "the entropy is in nats, log2(n) in bits"),
        (1 - nats(0.4, 0.2, 0.2, 0.2) / log(4), "that takes negative scores without their sign"),
        (1 - nats(2 / 3, 1 / 3, 1 / 3) / log(4), "these shares do not sum to 1"),
        (1 - 1.5 * log(2) / log(3), "that divides by log(3), the number of emotions above 0; n is the number of all, 4"),
        (25, "that is a percentage"),
        (float("nan"), "nan comes of the logarithm of 0 or less"),
        (0.6, "0.60 is not it"),
    ],
)
def test_another_specificity_hears_why(answer, words):
    assert says(exercise.specificity_by_hand(answer, SCORES), words)


def test_a_head_without_positive_scores_has_no_shares():
    assert says(exercise.specificity_by_hand(0.0, pd.Series([-1.0, 0.0])), "no score of this head is above 0")


# 3: enough or needed

TESTED = ((0, 1), (1, 0))


def checked(mean: float, resample: float, restored: float, random: float = 0.1, sets: int = 99, spread: float = 0.0) -> HeadCheck:
    """Six pairs, own 0 and goal 1, whose effects lie `spread` around these means; each random set does `random`."""
    tested = {"mean-ablation": mean, "resample-ablation": resample, "restoration": restored}
    rows = [
        {"pair": i, "emotion": "joy", "check": name, "set": s, "value": random if s else effect + spread * (-1) ** i}
        for name, effect in tested.items()
        for s in range(sets + 1)
        for i in range(6)
    ]
    heads = [TESTED] + [((0, 0), (1, 1))] * sets
    described = pd.DataFrame({"heads": heads, "overlap": 0.0, "norm": 1.0}).rename_axis("set")
    return HeadCheck(pd.DataFrame(rows).assign(own=0.0, goal=1.0), described, "log mass")


ENOUGH, NEEDED = checked(0.1, 0.2, 0.8), checked(0.3, 0.7, 0.2)
BOTH, NEITHER = checked(0.9, 0.9, 0.8), checked(0.1, 0.1, 0.3)


def test_conclusions_from_a_check():
    for answer, check in {"enough": ENOUGH, "needed": NEEDED, "both": BOTH, " Neither": NEITHER}.items():
        verdict = exercise.enough_or_needed(answer, check)
        assert verdict and verdict.message.startswith(f"Right. {answer.strip().capitalize()}: restoration "), answer
    assert "restoration 0.80 [0.80, 0.80] of the gap, p = 0.010" in exercise.enough_or_needed("enough", ENOUGH).message
    assert "resample-ablation 0.70 [" in exercise.enough_or_needed("needed", NEEDED).message
    assert "others may do the same" in exercise.enough_or_needed("enough", ENOUGH).message


@pytest.mark.parametrize(
    ("answer", "check", "words"),
    [
        (None, ENOUGH, "still None"),
        ("sufficient", ENOUGH, "'sufficient' is none of 'enough', 'needed', 'both', 'neither'"),
        (
            "both",
            ENOUGH,
            "resample-ablation 0.20 [0.20, 0.20] of the gap, p = 0.010: less than half. That does not show that they are",
        ),
        ("neither", ENOUGH, "restoration 0.80 [0.80, 0.80] of the gap, p = 0.010: half of the gap or more, and beyond random sets"),
        ("enough", NEEDED, "restoration 0.20"),
        ("enough", NEEDED, "resample-ablation 0.70 [0.70, 0.70] of the gap, p = 0.010: half of the gap or more"),
        ("enough", BOTH, "mean-ablation 0.90"),
        ("needed", NEITHER, "mean-ablation 0.10"),
        (
            "enough",
            checked(0.1, 0.1, 0.8, random=0.9),
            "p = 1.000: too many random sets do as much (95% of them up to 0.90). That does not",
        ),
        ("enough", checked(0.1, 0.1, 0.8, sets=9), "with 9 of them p is at least 1 / 10, so draw more"),
        ("enough", checked(0.1, 0.1, 0.6, spread=0.5), "half is not sure, as the interval begins below it"),
        ("enough", checked(0.1, 0.1, 0.3, random=0.9), "less than half, and too many random sets do as much"),
    ],
)
def test_another_conclusion_hears_the_row_against_it(answer, check, words):
    assert says(exercise.enough_or_needed(answer, check), words)


# 4: the sum of the parts


def mapped(**about) -> HeadMap:
    """Two pairs with gaps of 4 and 6; heads 0.1 and 1.0 close 0.3 and 0.5 of them, and 0.0 another 0.6."""
    moves = {(0, 0): (3, 3), (0, 1): (1, 2), (1, 0): (2, 3)}
    rows = [
        {"pair": i, "emotion": "joy", "picture": str(i), "layer": layer, "head": head, "value": some[i] - 9.0}
        | {"receiver": -9.0, "donor": (-5.0, -3.0)[i]}
        for (layer, head), some in moves.items()
        for i in range(2)
    ]
    return HeadMap(pd.DataFrame(rows), **{"metric": "log mass", "direction": "denoising"} | about)


def test_a_set_beside_the_sum_of_its_heads():
    for restored, truth, meaning in (
        (0.95, "larger", "The heads help each other"),
        (0.89, "same", "the heads' parts add up"),
        (0.71, "same", "the heads' parts add up"),
        (0.65, "smaller", "The heads share work"),
    ):
        check = checked(0, 0, restored)
        verdict = exercise.sum_of_parts(truth, mapped(), check)
        measured = f"Together the heads close {restored:.2f} of the gap, one by one 0.80 in sum (0.1 0.30, 1.0 0.50)"
        assert verdict and measured in verdict.message and meaning in verdict.message
        for other in {"larger", "smaller", "same"} - {truth}:
            wrong = exercise.sum_of_parts(other, mapped(), check)
            assert says(wrong, f"measured it is {truth!r}. {measured}. (Mind the splits: the sum is of the map's pairs")
    assert exercise.sum_of_parts("about the same", mapped(), checked(0, 0, 0.8))


def test_sums_that_cannot_be_compared():
    check = checked(0, 0, 0.8)
    for answer, found, words in (
        (None, mapped(), "still None"),
        ("more", mapped(), "'more' is none of 'larger', 'smaller', 'same'"),
        ("same", mapped(direction="noising"), "the map is of patching, noising; restoration is denoising by exact patches"),
        ("same", mapped(kind="attribution"), "the map is of attribution, denoising"),
        ("same", mapped(metric="mass"), "the map is of 'mass', the check of 'log mass'"),
    ):
        assert says(exercise.sum_of_parts(answer, found, check), words), words
    table = mapped().table
    lacking = HeadMap(table[table.layer == 0], "log mass", "denoising")
    assert says(exercise.sum_of_parts("same", lacking, check), "the map lacks 1.0 of the checked heads")
