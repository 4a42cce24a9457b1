"""Steering against plain hooks: directions, pushed stories and their costs, and what the figures say."""

from functools import cache

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
from tiny_families import NAMES, vlm
from tiny_models import picture

import emointerp as ei
from emointerp.directions import Differences, Directions
from emointerp.emotions import Concept, hit_rate
from emointerp.errors import InputError
from emointerp.pairs import Pair, world_pairs
from emointerp.probes import unmodified_pass
from emointerp.steering import Steering, differences, semantic_projection, steer, steering_vectors
from emointerp.tracing import perplexity, run

EVENT = "The phone rang twice while I was cooking."


def made_up_pairs() -> list[Pair]:
    emotions = ("joy", "fear", "joy", "fear")
    return [Pair(picture(i), picture(10 + i), EVENT, e, "direction", f"pair {i}") for i, e in enumerate(emotions)]


@cache
def bundled() -> tuple:
    """The bundled model, what its pairs differ by where the word is due, and a small run over held-out pairs."""
    model = ei.load()
    found = differences(model, world_pairs("direction", 72), answer="I felt", progress=False)
    S = found.directions().sharpened(2)
    controls = {"S": S, "random": [S.random(i) for i in range(3)], "shuffled": found.shuffled().sharpened(2)}
    pairs = world_pairs("test", 12)
    return model, found, S, pairs, steer(model, pairs, controls, layers=[0, 3], alphas=[0, 1], progress=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ["", "I felt"])
def test_directions_are_differences_of_hooked_means(name, answer):
    model, pairs = vlm(name), made_up_pairs()
    S = steering_vectors(model, pairs, tau=-1, answer=answer, progress=False)
    ends = {}
    for i, pair in enumerate(pairs):
        for side in ("emotional", "neutral"):
            prompt = model.prompt(getattr(pair, side), pair.event, answer=answer)
            kept = oracle.caches(model, prompt)
            ends[i, side] = torch.stack([kept["residual", layer][prompt.last] for layer in range(S.n_layers)])
    for emotion, members in {"joy": (0, 2), "fear": (1, 3)}.items():
        direct = sum(ends[i, "emotional"] for i in members) / 2 - sum(ends[i, "neutral"] for i in members) / 2
        scale = max(float(h.abs().max()) for h in ends.values())
        for layer in range(S.n_layers):
            torch.testing.assert_close(S[emotion, layer], direct[layer], atol=1e-6 * max(1, scale), rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_pushed_stories_are_those_of_plain_hooks(name):
    model, pairs = vlm(name), made_up_pairs()[:2]
    S = steering_vectors(model, made_up_pairs(), tau=-1, progress=False)
    table = steer(model, pairs, S, layers=[1, 3], alphas=[0, 2], max_new_tokens=5, progress=False).table
    assert len(table) == 8
    for row in table.itertuples():
        prompt = model.prompt(*pairs[row.pair].minus)
        ids = oracle.tokens(model, prompt, S.edits(row.towards, row.layer, row.alpha), n=5)
        assert row.story == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        if row.alpha == 0:
            assert row.story == row.story_before


def test_alpha_zero_is_no_edit_bit_for_bit():
    model = vlm("llava_clip")
    prompt = model.prompt(picture(), EVENT)
    S = steering_vectors(model, made_up_pairs(), tau=-1, progress=False)
    assert torch.equal(run(model, prompt, S.edits("joy", 1, alpha=0)).logits, run(model, prompt).logits)


def test_scores_and_costs_of_each_story():
    model, _, S, pairs, steering = bundled()
    table = steering.table
    assert len(table) == 12 * 5 * 2 * 2
    plus = table.drop_duplicates("pair").set_index("pair").story_goal
    for i, pair in enumerate(pairs[:3]):
        assert plus[i] == model.generate(model.prompt(*pair.plus))
    for row in table[table.alpha == 1].sample(8, random_state=0).itertuples():
        prompt, emotion = model.prompt(*pairs[row.pair].minus), pairs[row.pair].emotion
        assert (row.hit, row.hit_before) == (hit_rate(row.story, emotion), hit_rate(row.story_before, emotion))
        assert row.others == float(any(name != emotion for name in ei.emotions.named(row.story)))
        assert [row.perplexity, row.perplexity_goal] == pytest.approx(perplexity(model, prompt, [row.story, row.story_goal]))
        assert row.clean == row.exact * (row.perplexity <= 3 * row.perplexity_goal)
        assert row.words == len(row.story.split())
    row = table[(table.direction == "S") & (table.alpha == 1) & (table.layer == 3)].iloc[0]
    prompt = model.prompt(*pairs[0].minus)
    h = oracle.caches(model, prompt)["residual", 3][prompt.last]
    assert row.length == pytest.approx(float(S[row.emotion, 3].norm() / h.norm()), rel=1e-4)


def test_a_push_names_the_emotion_where_controls_do_not():
    *_, steering = bundled()
    table = steering.controlled(3, 1.0, "exact")
    assert table.value["effect"].mean > 0.4 > table.value["random"].mean + 0.2
    assert table.less["random"].low > 0 and table.less["shuffled"].mean > 0
    assert table.draws.tolist()[1:] == [3, 1] and table.p["random"] < 0.05
    assert steering.effect("exact").C["S", 0, 1.0].mean < steering.effect("exact").C["S", 3, 1.0].mean


def test_towards_each_emotion():
    model, _, S, pairs, _ = bundled()
    steering = steer(model, pairs[:2], S, layers=3, alphas=[1], towards=["joy", "anger"], progress=False)
    assert sorted(steering.table.towards) == ["anger", "anger", "joy", "joy"]
    own = steering.table.towards == steering.table.emotion
    assert steering.table.hit_goal.isna().tolist() == (~own).tolist()
    matrix = steering.matrix()
    assert matrix.index.tolist() == ["anger", "joy"] and matrix.columns[-1] == "nothing"
    assert len(steering.plot_matrix().axes) == 1
    assert steering.effect("exact").C["S", 3, 1.0].n == own.sum()


def test_the_lens_of_a_direction():
    model, found, *_ = bundled()
    S = found.directions()
    table = semantic_projection(model, S).table.set_index(["emotion", "layer"])
    with torch.no_grad():
        p = model.model.lm_head(model.model.model.language_model.norm(S["fear", 6])).softmax(-1)
    ids = ei.lens.emotion_tokens(model)
    for column, chosen in (("mass", ids.emotion == "fear"), ("others", ids.emotion != "fear")):
        assert table.loc[("fear", 6), column] == pytest.approx(float(p[ids.id[chosen].tolist()].sum()), abs=1e-5)
    with pytest.raises(InputError, match="No words were given for anger, disgust"):
        semantic_projection(model, S, {"fear": ["afraid"], "joy": ["glad"], "sadness": ["sad"], "surprise": ["amazed"]})


def test_the_unmodified_pass_reads_held_out_pictures():
    model, found, _, pairs, _ = bundled()
    fit = world_pairs("direction", 48)
    read = unmodified_pass(model, found.directions(), fit, pairs, answer="I felt")
    frame = read.to_frame()
    assert len(read.table) == 12 * model.anatomy.n_layers and read.chance == pytest.approx(1 / 6)
    assert min(frame.probe[7].mean, frame.nearest[7].mean) > 0.5 and frame.further[7].mean > 0.8
    centred, layer = found.directions().centred(), 5

    def at_layer(pair: Pair) -> torch.Tensor:
        prompt = model.prompt(*pair.plus, answer="I felt")
        return oracle.caches(model, prompt)["residual", layer][prompt.last]

    away = torch.stack(list(map(at_layer, pairs))) - torch.stack(list(map(at_layer, fit))).mean(0)
    for i, pair in enumerate(pairs):
        cosines = {e: float(torch.cosine_similarity(away[i], centred[e, layer], 0)) for e in centred.emotions}
        row = read.table[(read.table.pair == i) & (read.table.layer == layer)].iloc[0]
        assert row.nearest == float(max(cosines, key=cosines.get) == pair.emotion)
    with pytest.raises(InputError, match="48 emotional pictures stand in both sets"):
        unmodified_pass(model, found.directions(), fit, fit)


def made_up(gains: dict[tuple, list[float]]) -> Steering:
    """A Steering of four pairs, before 0 and goal 1, with the given clean stories by (direction, draw, layer, alpha)."""
    rows = [
        {"pair": i, "emotion": "joy", "direction": d, "draw": draw, "towards": "joy", "layer": layer, "alpha": alpha, "clean": v,
         "hit": v, "exact": v, "others": 0.0, "clean_before": 0.0, "clean_goal": float(i < 3), "named": ("joy",) if v else (),
         "n_words": v, "length": alpha, "words": 5, "repetition": 0.0, "perplexity": 2 * alpha, "perplexity_before": 2.0,
         "perplexity_goal": 4.0}
        for (d, draw, layer, alpha), values in gains.items()
        for i, v in enumerate(values)
    ]  # fmt: skip
    return Steering(pd.DataFrame(rows), ("joy", "fear"))


def test_effect_is_the_share_of_the_gap():
    random = {("random", 0, 0, 1.0): [0] * 4, ("random", 1, 0, 1.0): [1, 0, 0, 0], ("random", 0, 1, 1.0): [0] * 4}
    random |= {("random", 1, 1, 1.0): [0] * 4}
    steering = made_up({("S", 0, 0, 1.0): [1, 1, 0, 0], ("S", 0, 1, 1.0): [1, 1, 1, 0]} | random)
    effect = steering.effect("clean")
    assert effect.C["S", 0, 1.0].mean == pytest.approx((2 / 4) / (3 / 4)) and effect.plain["S", 0, 1.0].mean == 0.5
    assert effect.C["random", 0, 1.0].mean == pytest.approx((0.5 / 4) / (3 / 4))  # mean over two draws
    assert steering.emotional_layer() == steering.layer_shares().idxmax() == 1
    assert steering.layer_shares().sum() == pytest.approx(1)
    assert steering.best_alphas() == {0: 1.0, 1: 1.0}
    nothing = made_up({("S", 0, 0, a): [0, 0, 0, 0] for a in (1.0, 2.0)})
    assert nothing.best_alphas() == {0: 2.0}  # no strength is too much where none does anything
    c = nothing.effect("clean").C["S", 0, 1.0]
    assert (c.low, c.mean, c.high) == pytest.approx((-1, 0, 1))  # of four pairs, three quarters may be unseen; the gap is as large
    assert steering.controlled(1, 1.0).less["random"].mean == pytest.approx(0.75)
    two = made_up({("S", 0, 0, 1.0): [1, 1, 0, 0], ("S", 1, 0, 1.0): [1] * 4, ("random", 0, 0, 1.0): [0] * 4})
    assert two.controlled(0, 1.0).value["effect"].mean == 0.75  # of both S, not of the first
    rates = steering.rates().loc["S", "joy", 0, 1.0]
    assert (rates.clean, rates.perplexity_ratio, rates.goal_ratio) == (0.5, 1.0, 2.0)
    told = steering.intervals().clean["random", "joy", 0, 1.0]
    assert (told.mean, told.n) == (0.125, 4)  # over pairs, not over pairs and draws
    for figure in (steering.plot(), steering.plot_doses(0), steering.plot_grid()):
        assert figure.axes


def test_effect_counts_only_pairs_pushed_to_their_own_emotion():
    steering = made_up({("S", 0, 0, 1.0): [1, 1, 0, 0]})
    others = steering.table.assign(towards="fear", clean=0.0, clean_goal=np.nan)
    both = Steering(pd.concat([steering.table, others], ignore_index=True), steering.labels).effect("clean")
    assert both.C["S", 0, 1.0] == steering.effect("clean").C["S", 0, 1.0] and both.plain["S", 0, 1.0].mean == 0.25


def test_choosing_alpha_within_limits():
    steering = made_up({("S", 0, 0, a): v for a, v in ((0.5, [1, 0, 0, 0]), (1.0, [1, 1, 0, 0]), (2.0, [1, 1, 0, 0]))})
    assert steering.choose(0).alphas == {"joy": 1.0}  # the smaller of two equal ones
    steering.table.loc[steering.table.alpha >= 1, "others"] = 0.5
    assert steering.choose(0).alphas == {"joy": 0.5}
    assert steering.choose(0, max_others=0.5).alphas == {"joy": 1.0}
    steering.table["clean"] = 0.0
    assert steering.choose(0).alphas == {"joy": 0.0}


def test_a_concept_of_ones_own():
    model = vlm("llava_clip")
    light = Concept("light", ("day", "night"), {"day": ["sunny"], "night": ["dark"]})
    pairs = [Pair(picture(i), picture(5 + i), EVENT, label) for i, label in enumerate(("day", "night"))]
    S = steering_vectors(model, pairs, tau=-1, wheels=light, progress=False)
    steering = steer(model, pairs, S, layers=0, alphas=[1], max_new_tokens=3, wheels=light, progress=False)
    assert S.emotions == ("day", "night") and steering.matrix().columns.tolist() == ["day", "night", "nothing"]


def test_bad_input_is_said_in_words():
    model, S = vlm("llava_clip"), Directions(("joy", "fear"), torch.ones(2, 4, 32), (1, 1))
    pairs = made_up_pairs()
    with pytest.raises(InputError, match="There are no pairs"):
        differences(model, [])
    strange = [Pair(picture(0), picture(1), EVENT, "chair")]
    with pytest.raises(InputError, match="unknown emotion 'chair': it is in none of the wheels"):
        differences(model, strange)
    small = [Pair(picture(0), np.zeros((20, 10, 3), np.uint8), EVENT, "joy", name=name) for name in ("first", "second")]
    with pytest.raises(InputError, match=r"In 2 pairs the two pictures differ in size: first \(.* and 10 x 20\), second"):
        differences(model, small)
    with pytest.raises(InputError, match="is no 'S'; call the one that is tested so"):
        steer(model, pairs, {"mine": S})
    with pytest.raises(InputError, match="Layer 9 is out of range"):
        steer(model, pairs, S, layers=9)
    with pytest.raises(InputError, match="There is no direction of 'rage'"):
        steer(model, pairs, S, towards=["rage"], progress=False)
    with pytest.raises(InputError, match="unknown emotion 'pooled'"):
        steer(model, pairs, S, towards=["pooled"], progress=False)
    with pytest.raises(InputError, match="Nothing was steered with 'S', layer 5"):
        made_up({("S", 0, 0, 1.0): [1, 0, 0, 0]}).choose(5)
    with pytest.raises(InputError, match="'loud' is no measure; expected one of hit, exact, clean, others"):
        made_up({("S", 0, 0, 1.0): [1, 0, 0, 0]}).effect("loud")
    with pytest.raises(InputError, match="Nothing was steered with 'T', layer 0"):
        made_up({("S", 0, 0, 1.0): [1, 0, 0, 0]}).at("T", 0)
    told = Differences(("joy",), torch.zeros(1, 2, 3), np.array([0.2]))
    with pytest.raises(InputError, match="No pair's story names its emotion"):
        told.directions()
