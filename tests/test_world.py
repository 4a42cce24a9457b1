"""The drawn world: exact twins, true masks, disjoint splits, documented rates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emointerp.emotions import BASIC, NEUTRAL
from emointerp.errors import InputError
from emointerp.pairs import world_pairs
from emointerp.world import HARD_TESTS, SPLITS, Scene, identity, sample, setting, splits, training_example
from emointerp.world.expression import MODES, REST
from emointerp.world.expression import sample as sample_expression


def changed(a, b):
    return (a.pixels() != b.pixels()).any(-1)


def drawn_at_random(kind, seed):
    """A scene of the training mix, or one of the test split among many things."""
    if kind == "training":
        return training_example(np.random.default_rng(seed)).scene
    return sample("test", 1, seed, hard="clutter", emotions=(BASIC[seed % 6],))[0].scene


@pytest.mark.parametrize("kind", ["training", "clutter"])
@settings(max_examples=500, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_twins_are_equal_outside_the_masks(kind, seed):
    """Expression-only and props-only twins differ inside their masks alone; each scene is drawn once, twins without props too."""
    scene = drawn_at_random(kind, seed)
    twins = scene.neutral(props=False), scene.neutral(expression=False), scene.neutral()
    pixels = {one: one.pixels() for one in {scene, *twins}}
    moved, gone, all_changed = ((pixels[scene] != pixels[twin]).any(-1) for twin in twins)
    masks = scene.masks()
    props = np.zeros_like(masks["expression"])
    for name in scene.signifiers if scene.has_face else ():
        props |= masks[name]
    assert not (moved & ~masks["expression"]).any()
    assert not (gone & ~props).any()
    assert not (all_changed & ~props & ~masks["expression"]).any()


def test_a_picture_does_not_depend_on_what_was_drawn_before():
    """Agg tells clips apart by their address; with clips that die early, about one scene in 150 came out differently."""
    scenes = [e.scene for e in sample("test", 900, seed=9)]
    first = [scene.pixels() for scene in scenes]
    assert not [scene for scene, pixels in zip(scenes, first, strict=True) if (scene.pixels() != pixels).any()]


def test_the_mask_is_not_the_whole_face():
    """The expression's mask is a true one: it leaves most of the picture out, and what it holds does change."""
    scenes = [e.scene for e in sample("test", 60, emotions=BASIC) if e.scene.has_face]
    shares = [s.masks()["expression"].mean() for s in scenes]
    moved = [changed(s, s.neutral(props=False)).sum() / s.masks()["expression"].sum() for s in scenes]
    assert np.median(shares) < 0.25
    assert min(moved) > 0.02 and np.median(moved) > 0.4


def test_a_twin_is_neutral_and_keeps_everything_else():
    for pair in world_pairs("direction", 12):
        emotional, neutral = pair.emotional, pair.neutral
        assert pair.plus[1] == pair.minus[1]
        assert neutral.emotion == NEUTRAL and neutral.expression == REST
        assert not neutral.signifiers
        same = {k: v for k, v in emotional.factors().items() if k in ("subject", "style", "place", "hat", "seed", "tilt")}
        assert same.items() <= neutral.factors().items()


def test_a_picture_depends_on_its_scene_alone():
    a, b = sample("test", 5, seed=3), sample("test", 5, seed=3)
    assert a == b
    assert all((x.scene.pixels() == y.scene.pixels()).all() for x, y in zip(a, b, strict=True))
    assert a != sample("test", 5, seed=4)


def test_splits_share_no_identity_and_no_event():
    drawn = {split: sample(split, 140, events="loaded") for split in SPLITS}
    for one in SPLITS:
        for other in SPLITS:
            if one < other:
                assert not {identity(e.scene) for e in drawn[one]} & {identity(e.scene) for e in drawn[other]}
                assert not {e.event for e in drawn[one]} & {e.event for e in drawn[other]}


def test_training_rates_are_the_documented_ones():
    """Signifiers and loaded events co-occur with their emotion at the stated rates (binomial, four standard errors)."""
    rng = np.random.default_rng(0)
    examples = [training_example(rng) for _ in range(4000)]
    loaded = [e for e in examples if e.event_emotion]
    agree = np.mean([e.event_emotion == e.scene.emotion for e in loaded])
    emotional = [e for e in examples if e.scene.emotion != NEUTRAL]
    share = np.mean([e.event_emotion is not None for e in emotional])
    of = {**setting.SIGNIFIERS, **setting.WEATHER_SIGNIFIERS}
    own = np.mean([any(of[s] == e.scene.emotion for s in e.scene.signifiers) for e in emotional])
    other = np.mean([any(of[s] != e.scene.emotion for s in e.scene.signifiers) for e in emotional])
    assert agree == pytest.approx(splits.LOADED_RATE, abs=0.01)
    assert share == pytest.approx(splits.LOADED_SHARE, abs=0.04)
    assert own == pytest.approx(splits.SIGNIFIER_RATE, abs=0.06)
    assert other < 0.25


def test_signifiers_are_independent_of_the_emotion_in_the_test_split():
    examples = sample("test", 1400, emotions=BASIC, seed=5)
    of = setting.SIGNIFIERS
    with_prop = [e for e in examples if any(t in of for t in e.scene.things)]
    own = np.mean([any(of.get(t) == e.scene.emotion for t in e.scene.things) for e in with_prop])
    assert own < 0.3  # chance: about one in six a thing, with sometimes two things


@pytest.mark.parametrize("hard", HARD_TESTS)
def test_hard_tests_are_hard_in_the_way_they_say(hard):
    scenes = [e.scene for e in sample("test", 12, hard=hard, emotions=BASIC)]
    truth = {
        "faint": lambda s: s.intensity <= 0.3,
        "small": lambda s: s.scale < 0.22,
        "clutter": lambda s: sum(map(bool, s.things)) >= 2,
        "noise": lambda s: s.noise > 0.05,
        "occlusion": lambda s: s.occlusion > 0.2,
        "style": lambda s: s.style == "chalk",
        "subject": lambda s: s.subject in ("frog", "alien"),
        "conflict": lambda s: True,
    }[hard]
    assert all(truth(s) for s in scenes)
    if hard == "conflict":
        assert all(e.event_emotion not in (None, e.scene.emotion) for e in sample("test", 30, hard=hard))


def test_an_expression_fades_to_rest():
    _, face = sample_expression("fear", np.random.default_rng(1))
    assert face.faded(0.0) == REST and face.faded(1.0) == face
    assert face.faded(0.5).eye_open == pytest.approx((1 + face.eye_open) / 2)


def test_every_emotion_has_several_modes():
    assert set(MODES) == {*BASIC, NEUTRAL}
    assert all(len(modes) >= 5 for modes in MODES.values())


def test_bad_names_are_named():
    with pytest.raises(InputError, match="Unknown split 'training'; the splits are train, direction"):
        sample("training", 1)
    with pytest.raises(InputError, match="Unknown hard test 'tiny'"):
        sample("test", 1, hard="tiny")
    with pytest.raises(InputError, match="'neutral', 'loaded' or 'conflict', not 'sad'"):
        sample("test", 1, events="sad")


def test_what_the_drawn_world_has_not_is_refused():
    for wrong in ((70, 100), (-1, 0), (1, 0.5)):
        with pytest.raises(InputError, match="expected two numbers, the least and the most, from 0 to 1"):
            sample("test", 2, intensity=wrong)
    with pytest.raises(InputError, match="weather is 'rainy'; the drawn world has clear, sunny, rain, snow"):
        Scene(weather="rainy")
    with pytest.raises(InputError, match="emotion is 'afraid'; the drawn world has anger, .*neutral"):
        Scene(emotion="afraid")
