"""Heads against plain hooks, autograd by hand, TransformerLens, closed forms and simulations of nothing at all."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from scipy.stats import entropy, false_discovery_control, kstest, spearmanr
from tiny_models import picture

from emointerp import heads
from emointerp.directions import Directions
from emointerp.emotions import Concept, hit_rate
from emointerp.errors import InputError, OutputError
from emointerp.heads import (
    HeadMap,
    amplification_map,
    attribution_map,
    check,
    check_heads,
    head_map,
    intention,
    maps,
    matched_sets,
    specificity,
    visual_heads,
)
from emointerp.lens import emotion_tokens, head_writes
from emointerp.models import bridge, load
from emointerp.pairs import Pair, twin_prompts, world_pairs
from emointerp.statistics import sign_flips
from emointerp.tracing import Metric, ScaleAttention, SetHead, collect, logit_mass, projection

EVENT = "The phone rang twice while I was cooking."
WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
LAYERS, HEADS = tiny_families.LAYERS, tiny_families.HEADS
families = pytest.mark.parametrize("family", tiny_families.NAMES)
quiet = {"words": WORDS, "progress": False}


def some_pairs(n: int = 2) -> list[Pair]:
    """Pairs of noise pictures; what they show does not matter to random models."""
    pictures = [picture(seed)[:48, :64] for seed in range(2 * n)]
    events = (EVENT, "My uncle cleaned the old boat again.")
    return [Pair(*pictures[2 * i : 2 * i + 2], events[i % 2], ("up", "down")[i % 2], name=f"pair {i}") for i in range(n)]


def some_directions(vlm, seed: int = 0) -> Directions:
    shape = (len(WORDS), vlm.anatomy.n_layers, vlm.anatomy.d_model)
    return Directions(tuple(WORDS), torch.randn(shape, generator=torch.Generator().manual_seed(seed)), (1, 1))


def log_mass(vlm, logits, emotion: str) -> float:
    table = emotion_tokens(vlm, WORDS)
    return float(sum(logits.double().softmax(-1)[i] for i in table.id[table.emotion == emotion]).log())


def z_of(vlm, kept, layer: int, head: int) -> torch.Tensor:
    """A head's output [token, d_head] in what plain hooks saw."""
    return kept["heads", layer].unflatten(-1, (vlm.anatomy.n_heads, -1))[:, head]


def story_hit(vlm, prompt, edit, emotion: str) -> float:
    return hit_rate(vlm.tokenizer.decode(oracle.tokens(vlm, prompt, [edit], 12), skip_special_tokens=True), emotion)


# the map


@families
def test_the_map_is_a_loop_of_hook_patched_forwards(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    for direction, where, layers in (("denoising", ("last",), range(LAYERS)), ("noising", ("query", "last"), [1])):
        found = head_map(vlm, pairs, direction=direction, positions=where, layers=layers, **quiet)
        assert len(found.table) == 2 * len(layers) * HEADS
        mine, emotion = found.table[found.table.pair == 1].set_index(["layer", "head"]), pairs[1].emotion
        donor, receiver = twin_prompts(vlm, pairs[1], "I felt")[:: 1 if direction == "denoising" else -1]
        kept, at = oracle.caches(vlm, donor), list(receiver.positions(where))
        assert mine.donor.iloc[0] == pytest.approx(log_mass(vlm, oracle.logits(vlm, donor), emotion), abs=1e-5)
        assert mine.receiver.iloc[0] == pytest.approx(log_mass(vlm, oracle.logits(vlm, receiver), emotion), abs=1e-5)
        expected = [
            log_mass(vlm, oracle.logits(vlm, receiver, [SetHead(layer, head, z_of(vlm, kept, layer, head)[at], at)]), emotion)
            for layer, head in mine.index
        ]
        np.testing.assert_allclose(mine.value, expected, atol=1e-5)
        assert np.ptp(expected) > 1e-3


@pytest.mark.parametrize("family", ["llava_clip", "qwen2_vl", "gemma3"])
def test_restoration_and_projection_read_the_residual_stream(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    S = some_directions(vlm)
    restored = head_map(vlm, pairs, S, "restoration", layer=2, progress=False)
    projected = head_map(vlm, pairs, S, "projection", layers=[1, 3], progress=False)
    assert sorted(restored.table.layer.unique()) == [0, 1, 2] and restored.metric == "restoration"
    emotional, neutral = twin_prompts(vlm, pairs[0], "I felt")
    kept = oracle.caches(vlm, emotional)

    def residual(layer, edits=()):
        with oracle.hooked(vlm, edits, neutral):
            return oracle.caches(vlm, neutral)["residual", layer][-1].double()

    for layer, head in ((0, 1), (1, 3), (2, 2)):
        edits = [SetHead(layer, head, z_of(vlm, kept, layer, head)[-1])]
        h, s = residual(2, edits), S["up", 2].double()
        value = restored.table.query(f"pair == 0 and layer == {layer} and head == {head}").value.item()
        assert value == pytest.approx(float(h @ s / h.norm() / s.norm()), abs=1e-5)
    edits, s = [SetHead(3, 0, z_of(vlm, kept, 3, 0)[-1])], S["up", 3].double()
    value = projected.table.query("pair == 0 and layer == 3 and head == 0").value.item()
    assert value == pytest.approx(float(residual(3, edits) @ s / s.norm()), abs=1e-4)
    h, s = kept["residual", 2][-1].double(), S["up", 2].double()
    assert restored.table.donor[0] == pytest.approx(float(h @ s / h.norm() / s.norm()), abs=1e-5)


@families
def test_attribution_is_the_difference_times_a_gradient_by_hand(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    found = attribution_map(vlm, pairs, direction="noising", positions=("query", "last"), **quiet)
    mine = found.table[found.table.pair == 0].set_index(["layer", "head"])
    receiver, donor = twin_prompts(vlm, pairs[0], "I felt")
    kept, leaves, hooks = oracle.caches(vlm, donor), {}, []
    for layer in range(LAYERS):

        def keep(module, args, layer=layer):
            leaves[layer] = args[0].detach().requires_grad_()
            return (leaves[layer] + args[0] - args[0].detach(), *args[1:])

        o_proj = vlm.model.get_submodule(f"{vlm.anatomy.layers}.{layer}.self_attn.o_proj")
        hooks.append(o_proj.register_forward_pre_hook(keep))
    try:
        logits = vlm.model(**receiver.inputs, use_cache=False).logits[0, -1]
    finally:
        [hook.remove() for hook in hooks]
    table = emotion_tokens(vlm, WORDS)
    loss = logits.softmax(-1)[table.id[table.emotion == "up"].tolist()].sum().log()
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    at = list(receiver.positions(("query", "last")))
    for layer, head in mine.index:
        product = ((kept["heads", layer] - leaves[layer].detach()[0]) * slopes[layer][0])[at]
        guess = product.unflatten(-1, (HEADS, -1))[:, head].sum()
        assert mine.value[layer, head] - mine.receiver[layer, head] == pytest.approx(float(guess), abs=1e-4, rel=1e-3)
    assert found.kind == "attribution" and mine.donor.iloc[0] == pytest.approx(
        log_mass(vlm, oracle.logits(vlm, donor), "up"), abs=1e-5
    )


def test_attribution_is_exact_where_the_metric_is_linear():
    vlm, pairs = tiny_families.vlm("qwen2_vl"), some_pairs()
    S = some_directions(vlm)
    unit = S["up", 0] / S["up", 0].norm()
    attention = Metric(lambda h: h @ unit, 0, "into layer 0's end")
    exact, guess = (made(vlm, pairs, metric=attention, layers=[0], progress=False) for made in (head_map, attribution_map))
    assert set(exact.table.layer) == {0}
    assert spearmanr(exact.table.value, guess.table.value).statistic > 0.5  # only the MLP bends it


def test_a_story_is_told_with_the_donors_head_from_the_last_token_on():
    vlm, pairs = load(), world_pairs("test", 2, seed=3)
    found = head_map(vlm, pairs, metric="hit rate", layers=[6], max_new_tokens=12, progress=False)
    for i, pair in enumerate(pairs):
        emotional, neutral = twin_prompts(vlm, pair)
        mine = found.table[found.table.pair == i].set_index(["layer", "head"])
        z = z_of(vlm, oracle.caches(vlm, emotional), 6, 5)[-1]
        told = vlm.tokenizer.decode(
            oracle.tokens(vlm, neutral, [SetHead(6, 5, z, ("last", "answer"))], 12), skip_special_tokens=True
        )
        assert mine.value[6, 5] == hit_rate(told, pair.emotion)
        own = [hit_rate(vlm.generate(p, max_new_tokens=12), pair.emotion) for p in (neutral, emotional)]
        assert [mine.receiver.iloc[0], mine.donor.iloc[0]] == own


OWN = {"sharp": ("spike", "anxious"), "plain": ("day", "exactly")}
CONCEPT = Concept("ends", tuple(OWN), OWN)


def counted(story: str, label: str) -> float:
    """By hand: does the story hold one of the label's words, in the singular or plural?"""
    words = re.findall("[a-z]+", story.lower())
    return float(any(word in words or f"{word}s" in words for word in OWN[label]))


def test_stories_are_counted_by_the_words_of_ones_own():
    vlm, options = load(), {"metric": "hit rate", "max_new_tokens": 40, "wheels": CONCEPT, "progress": False}
    pairs = [replace(p, emotion=label) for p, label in zip(world_pairs("test", 2, seed=3), OWN, strict=True)]
    mapped, checked = head_map(vlm, pairs, layers=[6], **options).table, check_heads(vlm, pairs, [(6, 5)], sets=1, **options).table
    for i, pair in enumerate(pairs):
        emotional, neutral = twin_prompts(vlm, pair)
        own = [counted(vlm.generate(p, max_new_tokens=40), pair.emotion) for p in (emotional, neutral)]
        assert own == [[1, 0], [0, 1]][i]  # the words are such that both sides of both pairs are told apart
        mine = mapped[mapped.pair == i].set_index(["layer", "head"])
        assert [mine.donor.iloc[0], mine.receiver.iloc[0]] == own
        z = z_of(vlm, oracle.caches(vlm, emotional), 6, 5)[-1]
        edits = [SetHead(6, 5, z, ("last", "answer"))]
        told = counted(vlm.tokenizer.decode(oracle.tokens(vlm, neutral, edits, 40), skip_special_tokens=True), pair.emotion)
        rows = checked[(checked.pair == i) & (checked.set == 0)].set_index("check")
        assert mine.value[6, 5] == rows.value["restoration"] == told
        assert [rows.own["mean-ablation"], rows.own["restoration"]] == own == [rows.goal["restoration"], rows.goal["mean-ablation"]]
    for method in (head_map, lambda *args, **named: check_heads(*args, [(6, 5)], **named)):
        with pytest.raises(InputError, match=r"unknown emotion 'sharp'.*give wheels=Concept\(name, labels, words\)"):
            method(vlm, pairs, metric="hit rate", progress=False)


def test_a_check_is_not_gone_on_with_by_other_wheels(tmp_path):
    vlm, file, runs = tiny_families.vlm("llava_clip"), tmp_path / "check.jsonl", []
    options = {"heads": [(2, 3)], "sets": 1, "metric": "hit rate", "max_new_tokens": 2, "file": file, "progress": False}
    pairs = [replace(pair, emotion=label) for pair, label in zip(some_pairs(), OWN, strict=True)]
    runs = [check_heads(vlm, pairs, wheels=wheels, **options) for wheels in (CONCEPT, [CONCEPT])]
    pd.testing.assert_frame_equal(runs[0].table, runs[1].table)
    other = Concept("ends", tuple(OWN), OWN | {"plain": ("night",)})
    with pytest.raises(InputError, match=r'begun with other settings: wheels was \[\["ends", .*Name another file'):
        check_heads(vlm, pairs, wheels=other, **options)


# what a map says


@families
def test_amplification_is_a_loop_of_hook_edited_forwards(family):
    """Early heads look from the question's query, later ones from its last token on; the donor is the neutral event's own run."""
    vlm = tiny_families.vlm(family)
    pairs = [Pair(p.emotional, p.neutral, p.event, p.emotion, neutral_event="It rained.") for p in some_pairs()]
    found = amplification_map(vlm, pairs, 1, 5.0, **quiet)
    assert found.kind == "amplifying" and len(found.table) == 2 * LAYERS * HEADS
    table = found.table.set_index(["pair", "layer", "head"])
    for i, pair in enumerate(pairs):
        question, begun = (vlm.prompt(pair.emotional, pair.event, answer=answer) for answer in ("", "I felt"))
        calm = vlm.prompt(pair.emotional, "It rained.", answer="I felt")
        assert table.receiver[i, 0, 0] == pytest.approx(log_mass(vlm, oracle.logits(vlm, begun), pair.emotion), abs=1e-4)
        assert table.donor[i, 0, 0] == pytest.approx(log_mass(vlm, oracle.logits(vlm, calm), pair.emotion), abs=1e-4)
        for layer, head in ((0, 1), (1, 0), (2, 2), (LAYERS - 1, 0)):
            start = question.last if layer > 1 else question.last - len(question.query)
            where = range(start, len(begun) if layer > 1 else question.last)
            edit = ScaleAttention(layer, 5.0, tuple(where), "visual", [head])
            expected = log_mass(vlm, oracle.logits(vlm, begun, [edit]), pair.emotion)
            assert table.value[i, layer, head] == pytest.approx(expected, abs=1e-4)
    assert found.plot().axes[0].get_title() == "Amplifying heads, what they see of the picture"


def test_amplification_is_refused_without_a_neutral_event():
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs()
    with pytest.raises(InputError, match=r"2 pairs have none \(the first: pair 0\); give Pair\(neutral_event"):
        amplification_map(vlm, pairs, 1, **quiet)
    calm = [Pair(p.emotional, p.neutral, p.event, p.emotion, neutral_event="It rained.") for p in pairs]
    with pytest.raises(InputError, match="'hit rate'; an amplification map reads a begun answer"):
        amplification_map(vlm, calm, 1, metric="hit rate", **quiet)
    with pytest.raises(InputError, match="9"):
        amplification_map(vlm, calm, 9, **quiet)


def map_of(moved: np.ndarray, emotions=None, gap=1.0, shape=None, seed: int = 0, **about) -> HeadMap:
    """A map whose heads move the metric by `moved` [pairs, heads], towards a donor `gap` (or one a pair) away."""
    n, k = moved.shape
    layers, width = shape or (1, k)
    gaps = np.broadcast_to(gap, n)
    rows = [
        {"pair": i, "emotion": (emotions or ["joy"] * n)[i], "picture": f"{seed} {i}", "layer": j // width, "head": j % width,
         "value": 2 + moved[i, j], "receiver": 2.0, "donor": 2 + gaps[i]}
        for i in range(n) for j in range(k)
    ]  # fmt: skip
    return HeadMap(pd.DataFrame(rows), **{"metric": "log mass", "direction": "denoising"} | about)


def test_effects_are_ratios_of_means_and_the_top_comes_first():
    rng = np.random.default_rng(0)
    moved, gap = rng.normal([0, 3, 1, -2], 0.2, (12, 4)), rng.uniform(2, 6, 12)
    found = map_of(moved, ["joy", "fear"] * 6, gap, (2, 2))
    frame = found.to_frame()
    assert [i.mean for i in frame.effect] == pytest.approx((moved.mean(0) / gap.mean()).tolist())
    assert [i.mean for i in frame.difference] == pytest.approx(moved.mean(0).tolist())
    assert found.top(2).index.tolist() == [(0, 1), (1, 0)] and (frame.corrected >= frame.p).all()
    assert frame.corrected.iloc[1] < 0.01 and frame.corrected.iloc[0] > 0.05
    scores = found.scores()
    assert scores.loc["fear", (0, 1)] == pytest.approx(moved[1::2, 1].mean() / gap[1::2].mean())
    assert found.of("fear").to_frame().effect[0, 1].mean == pytest.approx(scores.loc["fear", (0, 1)])
    with pytest.raises(InputError, match="No pair shows disgust; there are joy, fear"):
        found.of("disgust")


def test_agreement_is_a_rank_correlation_over_shared_heads():
    rng = np.random.default_rng(1)
    moved = rng.normal(np.arange(6), 0.5, (10, 6))
    one, other = map_of(moved), map_of(moved**3)
    found = one.agreement(other)
    assert found.mean == pytest.approx(spearmanr(moved.mean(0), (moved**3).mean(0)).statistic) and found.low <= found.mean
    assert one.agreement(map_of(-moved)).mean == pytest.approx(-1) and one.agreement(map_of(moved[:7], seed=1)).n == 10
    with pytest.raises(InputError, match="share 2 heads; a rank correlation needs three"):
        one.agreement(map_of(moved[:, :2]))


def test_p_values_of_the_map_are_uniform_where_there_is_nothing():
    rng = np.random.default_rng(2)
    frame = map_of(rng.normal(0, 1, (14, 300)) * rng.exponential(1, (14, 1))).to_frame(flips=2000)
    assert kstest(frame.p, "uniform").pvalue > 0.01
    wrong = [map_of(rng.normal(0, 1, (12, 16))).to_frame(flips=500).corrected.min() <= 0.1 for _ in range(60)]
    assert 0.01 <= np.mean(wrong) <= 0.22  # one false head or more, in a tenth of the maps


def test_figures_of_maps_draw_the_effects():
    rng = np.random.default_rng(3)
    found = map_of(rng.normal([5, 0, 0, 0, 0, 1], 0.3, (12, 6)), ["joy", "fear"] * 6, 4.0, (2, 3))
    axis = found.plot().axes[0]
    assert axis.images[0].get_array()[0, 0] == pytest.approx(found.to_frame().effect[0, 0].mean)
    assert [tuple(line.get_xydata()[0]) for line in axis.get_lines()] == [(0, 0), (2, 1)]
    axes = found.plot_emotions().axes
    assert [a.get_title() for a in axes[:2]] == ["fear", "joy"]
    assert axes[1].images[0].get_array()[1, 2] == pytest.approx(found.scores().loc["joy", (1, 2)])


# specificity

SIX = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]


def scored(means: np.ndarray, noise: float, per: int = 6, seed: int = 0, shape=None) -> HeadMap:
    """A map of heads whose mean effect in each emotion is `means` [emotion, head]."""
    moved = np.repeat(means, per, 0) + np.random.default_rng(seed).normal(0, noise, (len(means) * per, means.shape[1]))
    return map_of(moved, [e for e in SIX[: len(means)] for _ in range(per)], 1.0, shape, seed)


def test_specificity_is_one_less_the_entropy_of_shares():
    means = np.array([[6, 1, 2], [0, 1, 1], [0, 1, 0.5], [-1, 1, 0], [0, 1, 0], [0, 1, 0]], float)
    found = specificity(scored(np.ones((6, 3)), 0.1, seed=1), scored(means, 1e-6), draws=999)
    shares = np.maximum(means, 0) / np.maximum(means, 0).sum(0)
    np.testing.assert_allclose(found.table[SIX], shares.T, atol=1e-5)
    np.testing.assert_allclose(found.table.raw, 1 - entropy(shares) / np.log(6), atol=1e-5)
    assert found.split["specific"] == [(0, 0)] and found.split["uneven"] == [(0, 2)] and found.split["general"] == [(0, 1)]
    assert found.table.specificity[0, 0].low > 0.99 and found.emotions == tuple(SIX)


def test_noise_alone_looks_specific_and_is_not_called_so():
    weak = specificity(scored(np.ones((6, 40)), 0.1, seed=1), scored(np.full((6, 40), 0.3), 1.5), draws=999)
    assert weak.table.raw.mean() > 0.2 and not weak.split["specific"] and not weak.split["uneven"]
    assert abs(np.mean([i.mean for i in weak.table.specificity])) < 0.05
    assert np.mean([i.low < 0 < i.high for i in weak.table.specificity]) >= 0.9
    assert set(weak.table.split) == {"general", "undecided"}


def test_p_values_of_specificity_are_uniform_where_emotions_are_alike():
    rng = np.random.default_rng(5)
    held = scored(np.tile(rng.uniform(0.3, 3, 250), (6, 1)), 1.0, seed=2)
    found = specificity(scored(np.ones((6, 250)), 0.05, seed=3), held, draws=400)
    assert kstest(found.table.p, "uniform").pvalue > 0.01


def test_middle_against_deep_by_exchanging_heads():
    one, all_alike = np.eye(6)[:, [0, 1, 2, 3]] * 3, np.ones((6, 4))
    means = np.hstack([all_alike, one, all_alike])
    picked = scored(np.ones((6, 12)), 0.1, seed=1, shape=(3, 4))
    found = specificity(picked, scored(means, 0.3, shape=(3, 4)), draws=999)
    assert found.stages.index.tolist() == ["shallow", "middle", "deep"] and found.stages.heads.tolist() == [4, 4, 4]
    assert found.stages.specificity["middle"].low > 0.5 > 0.1 > found.stages.specificity["deep"].high
    assert found.p == pytest.approx(2 / 70, abs=1e-3)  # of the 70 ways to part eight heads, two are as far apart
    assert [found.table.stage[layer, 0] for layer in range(3)] == ["shallow", "middle", "deep"]
    named = specificity(picked, scored(means, 0.3, shape=(3, 4)), draws=200, stages={"low": [0, 1], "top": [2]})
    assert named.stages.heads.tolist() == [8, 4]
    left, right = found.plot().axes
    assert right.images[0].get_array().shape == (12, 6) and left.get_yticklabels()[5].get_text() == "1.1"


def test_a_head_of_one_emotion_is_found_by_the_pairs_of_that_emotion():
    """40 heads: one serves all, one joy alone, one always brings a thousandth over; the rest is noise."""
    means, noise = np.zeros((6, 40)), np.full(40, 0.2)
    means[:, 3], means[3, 7], means[:, 11], noise[11] = 0.5, 0.3, 0.001, 1e-4
    found = scored(means, noise, per=20, seed=3)
    assert found.to_frame().corrected[0, 7] > 0.05  # the test of all pairs overlooks it
    assert found.passed().tolist() == [(0, 3), (0, 7)] and found.passed(alpha=1e-5).empty
    parts = found.parts(1)
    assert [(part.layer, part.head, part.position) for part in parts] == [(0, 3, "last")] and parts[0].p < 0.01
    assert parts[0].score == pytest.approx(found.to_frame().effect[0, 3].mean)
    assert set(found.passed(least=0.0)) == {(0, 3), (0, 7), (0, 11)} and found.passed(least=0.4).tolist() == [(0, 3)]


def test_effects_and_p_values_of_each_emotion():
    found = scored(np.array([[0.2, 0.0, 0.5], [0.0, 0.3, 0.5]]), 0.3, per=9)
    table, mine = found.by_emotion(), found.of("disgust")
    gap, p = mine.pairs().donor - mine.pairs().receiver, sign_flips(mine.differences()).p
    assert table.loc["disgust"].p.tolist() == pytest.approx(p.tolist())
    assert [i.mean for i in table.loc["disgust"].effect] == pytest.approx((mine.differences().mean() / gap.mean()).tolist())
    assert table.corrected.tolist() == pytest.approx(false_discovery_control(table.p).tolist())


def test_specificity_is_refused_on_the_data_that_chose():
    found = scored(np.ones((6, 3)), 0.1)
    held = scored(np.ones((6, 3)), 0.1, seed=1)
    with pytest.raises(InputError, match="36 pictures are in both maps; score heads on pairs that did not choose them"):
        specificity(found, found)
    with pytest.raises(InputError, match=r"different things \('log mass', denoising and 'mass', denoising\)"):
        specificity(found, HeadMap(held.table, "mass", "denoising"))
    with pytest.raises(InputError, match=r"lacks 1 heads of the first, such as \(0, 2\)"):
        specificity(found, scored(np.ones((6, 2)), 0.1, seed=1))
    with pytest.raises(
        InputError, match=r"No head passes its test with 0.02 of the gap or more \(smallest corrected p of all heads: "
    ):
        specificity(scored(np.zeros((6, 3)), 1), held)
    with pytest.raises(InputError, match="give two or more of them, with two or more held-out pairs each"):
        specificity(found, scored(np.ones((6, 3)), 0.1, per=1, seed=1))


# intention, beside TransformerLens


@families
def test_intention_is_the_cosine_of_what_transformer_lens_says_heads_write(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    S = some_directions(vlm)
    if family == "gemma3":
        with pytest.raises(InputError, match="In Gemma models a norm follows the heads' sum"):
            intention(vlm, pairs, S, progress=False)
        return
    found = intention(vlm, pairs, S, progress=False).table
    twin, prompts = bridge(vlm), twin_prompts(vlm, pairs[1], "I felt")
    for column, prompt in zip(("emotional", "neutral"), prompts, strict=True):
        _, cache = twin.run_with_cache(prompt)
        stacked = cache.stack_head_results(layer=LAYERS)[:, 0, -1]  # [layer and head, d_model]
        towards = torch.stack([S["down", layer] for layer in range(LAYERS)]).repeat_interleave(HEADS, 0)
        np.testing.assert_allclose(found[found.pair == 1][column], torch.cosine_similarity(stacked, towards).detach(), atol=1e-4)


def test_decompositions_of_transformer_lens_sum_to_our_residual_stream():
    vlm = tiny_families.vlm("llava_clip")
    prompt = twin_prompts(vlm, some_pairs()[0], "I felt")[0]
    acts, (_, cache) = collect(vlm, prompt, ["residual", "heads"]), bridge(vlm).run_with_cache(prompt)
    torch.testing.assert_close(cache.decompose_resid()[:, 0].sum(0), acts.residual[-1], atol=1e-4, rtol=1e-4)
    written = head_writes(vlm, acts.heads)
    torch.testing.assert_close(cache.stack_head_results(layer=LAYERS)[:, 0], written.flatten(0, 1), atol=1e-4, rtol=1e-4)
    attention = torch.stack([cache[f"blocks.{layer}.hook_attn_out"][0] for layer in range(LAYERS)])
    torch.testing.assert_close(written.sum(1), attention, atol=1e-4, rtol=1e-4)


def test_intention_is_tested_against_the_neutral_twin():
    vlm, pairs = tiny_families.vlm("qwen2_vl"), some_pairs(6)
    found = intention(vlm, pairs, some_directions(vlm), progress=False)
    frame, one = found.to_frame(), found.table.query("layer == 2 and head == 1")
    assert frame.difference[2, 1].mean == pytest.approx((one.emotional - one.neutral).mean()) and len(frame) == LAYERS * HEADS
    assert frame.emotional[2, 1].mean == pytest.approx(one.emotional.mean())
    drawn = found.plot().axes[1].images[0].get_array()
    assert drawn[2, 1] == pytest.approx(frame.difference[2, 1].mean)


# visual heads


def test_attention_on_the_picture_is_that_of_a_plain_eager_forward():
    vlm, pairs = tiny_families.vlm("qwen2_5_vl", "eager"), some_pairs()
    found = visual_heads(vlm, pairs, progress=False).table
    prompt = twin_prompts(vlm, pairs[1], "I felt")[0]
    with torch.no_grad():
        out = vlm.model(**prompt.inputs, use_cache=False, output_attentions=True)
    on = torch.stack(out.attentions)[:, 0, :, -1][..., list(prompt.visual)].flatten(0, 1).numpy()
    mine = found[found.pair == 1]
    np.testing.assert_allclose(mine.share, on.sum(-1), atol=1e-5)
    np.testing.assert_allclose(mine.entropy, entropy(on, axis=-1) / np.log(len(prompt.visual)), atol=1e-4)
    assert mine.face.isna().all() and "expression" not in visual_heads(vlm, pairs, progress=False).to_frame()


def test_attention_inside_the_masks_pixel_by_pixel():
    vlm, pairs = load(), [p for p in world_pairs("test", 12) if p.emotional.has_face][:3]
    found = visual_heads(vlm, pairs, progress=False)
    prompt = twin_prompts(vlm, pairs[2], "I felt")[0]
    on = heads.visual.attention_on(vlm, prompt)[5, 7]
    paint, mask = np.zeros((128, 128)), pairs[2].emotional.masks()["expression"]
    for value, (left, top, right, bottom) in zip(on, vlm.boxes(prompt).astype(int), strict=True):
        paint[top:bottom, left:right] = value / ((bottom - top) * (right - left))
    mine = found.table.query("pair == 2 and layer == 5 and head == 7").iloc[0]
    assert mine.expression == pytest.approx(paint[mask].sum() / paint.sum(), abs=1e-5)
    assert mine.expression_area == pytest.approx(mask.mean(), abs=1e-6)
    frame, one = found.to_frame(), found.table.query("layer == 5 and head == 7")
    assert frame.expression[5, 7].mean == pytest.approx(one.expression.mean() / one.expression_area.mean())
    assert frame.least[5, 7] == pytest.approx(one.groupby("emotion").share.mean().min())
    assert found.universal(3).index[0] == frame.least.idxmax() and len(found.plot().axes) == 6


def test_a_picture_of_where_heads_look():
    vlm, pair = load(), world_pairs("test", 2)[1]
    prompt = twin_prompts(vlm, pair, "I felt")[0]
    figure, on = heads.plot_attention(vlm, prompt, [(5, 7), (2, 0)]), heads.visual.attention_on(vlm, prompt)
    assert figure.axes[1].get_title() == f"2.0: {on[2, 0].sum():.0%}"
    np.testing.assert_allclose(np.sort(figure.axes[0].collections[0].get_array()), np.sort(on[5, 7]))
    with pytest.raises(InputError, match=r"Heads \[\(8, 0\)\] are out of range; this model has 8 layers of 8 heads"):
        heads.plot_attention(vlm, prompt, [(8, 0)])


# the function check


@pytest.mark.parametrize("family", ["llava_clip", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("donors", ["neutral", "others"])
def test_the_check_is_ablation_and_restoration_by_plain_hooks(family, donors):
    vlm, pairs, tested = tiny_families.vlm(family), some_pairs(4), [(2, 3), (1, 0)]
    found = check_heads(vlm, pairs, tested, sets=5, donors=donors, near=HEADS, **quiet)
    prompts = [twin_prompts(vlm, pair, "I felt") for pair in pairs]
    kept = [[oracle.caches(vlm, prompt) for prompt in both] for both in prompts]
    pool = [kept[j][1] for j in range(1, 4)] if donors == "neutral" else [kept[j][0] for j in (1, 3)]
    mine = found.table[found.table.pair == 0].set_index(["check", "set"])
    for i in (0, 2):
        some = found.sets.heads[i]
        outputs = [{(layer, head): z_of(vlm, run, layer, head)[-1] for layer, head in some} for run in pool]

        def value(prompt, given, some=some):
            return log_mass(vlm, oracle.logits(vlm, prompt, [SetHead(*head, given[head]) for head in some]), "up")

        mean = {head: torch.stack([out[head] for out in outputs]).mean(0) for head in some}
        own = {(layer, head): z_of(vlm, kept[0][0], layer, head)[-1] for layer, head in some}
        assert mine.value["mean-ablation", i] == pytest.approx(value(prompts[0][0], mean), abs=1e-5)
        assert mine.value["restoration", i] == pytest.approx(value(prompts[0][1], own), abs=1e-5)
        possible = [value(prompts[0][0], out) for out in outputs]  # of one donor all heads, not of each another
        assert np.abs(np.array(possible) - mine.value["resample-ablation", i]).min() < 1e-5
    ends = [log_mass(vlm, oracle.logits(vlm, prompt), "up") for prompt in prompts[0]]
    assert mine.loc["restoration", ["goal", "own"]].iloc[0].tolist() == pytest.approx(ends, abs=1e-5)
    assert found.sets.heads[0] == ((1, 0), (2, 3)) and len(found.sets) == 6


def test_the_check_at_several_spans_takes_each_spans_own_donors():
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs(3)
    found = check_heads(vlm, pairs, [(1, 2)], sets=2, positions=("query", "last"), **quiet)
    prompts = [twin_prompts(vlm, pair, "I felt") for pair in pairs]
    z = [z_of(vlm, oracle.caches(vlm, both[1]), 1, 2) for both in prompts]
    query = torch.cat([z[j][list(prompts[j][1].query)] for j in (1, 2)]).mean(0)
    last = torch.stack([z[j][-1] for j in (1, 2)]).mean(0)
    edits = [SetHead(1, 2, query, "query"), SetHead(1, 2, last, "last")]
    expected = log_mass(vlm, oracle.logits(vlm, prompts[0][0], edits), "up")
    value = found.table.query("pair == 0 and check == 'mean-ablation' and set == 0").value.item()
    assert value == pytest.approx(expected, abs=1e-5)


def test_effects_and_ranks_of_a_check():
    rng = np.random.default_rng(0)
    moved = {0: 3.0, 1: 1.0, 2: 2.0, 3: 3.5}
    gaps = rng.uniform(3, 5, 4)
    rows = [
        {"pair": i, "emotion": "joy", "check": name, "set": s, "value": 1 + moved[s], "own": 1.0, "goal": 1 + gaps[i]}
        for i in range(4) for name in check.CHECKS for s in moved
    ]  # fmt: skip
    sets = pd.DataFrame({"heads": [()] * 4, "overlap": [1, 0.5, 0, 0.1], "norm": [2.0, 1, 1, 1]})
    found = heads.HeadCheck(pd.DataFrame(rows), sets, "log mass")
    frame = found.to_frame()
    assert frame.effect["restoration"].mean == pytest.approx(3 / gaps.mean())
    assert frame.random["restoration"] == pytest.approx(np.mean([1, 2, 3.5]) / gaps.mean())
    assert frame.p.tolist() == [2 / 4] * 3 and frame.sets.tolist() == [3] * 3
    assert frame.overlap.iloc[0] == pytest.approx(0.2) and frame.norm.iloc[0] == 0.5
    assert found.plot().axes[2].get_lines()[0].get_xdata()[0] == pytest.approx(3 / gaps.mean())


def test_matched_sets_have_the_same_layers_and_the_nearest_norms():
    norms = np.random.default_rng(0).uniform(1, 5, (4, 8))
    tested = [(1, 3), (1, 5), (3, 0)]
    sets = matched_sets(tested, norms, 30, near=4)
    assert len(set(sets)) == len(sets) == 30 and tuple(tested) not in sets
    for some in sets:
        assert [layer for layer, _ in some] == [1, 1, 3] and len(set(some)) == 3
    nearest = np.argsort(np.abs(norms[3] - norms[3, 0]))[:4]
    assert {some[2][1] for some in sets} == set(nearest.tolist())
    assert matched_sets(tested, norms, 30, near=4) == sets != matched_sets(tested, norms, 30, near=4, seed=1)
    assert all(not set(some) & set(tested) for some in matched_sets(tested, norms, 30, apart=True))
    assert len(matched_sets([(0, 1)], norms, 100, near=8)) == 7  # there are no more
    with pytest.raises(InputError, match=r"no other set like \[\(0, 1\)\] among the 1 nearest heads; raise `near`"):
        matched_sets([(0, 1)], norms, near=1)
    with pytest.raises(InputError, match="Layer 0 has too few heads besides the tested ones"):
        matched_sets([(0, head) for head in range(5)], norms, apart=True)


def test_p_values_of_the_check_are_uniform_where_all_heads_do_alike():
    rng, p = np.random.default_rng(4), []
    for seed in range(150):
        norms, does = rng.uniform(1, 2, (3, 8)), rng.normal(0, 1, (3, 8))
        tested = [(layer, int(head)) for layer in range(3) for head in rng.choice(8, 2, replace=False)]
        drawn = (tuple(sorted(tested)), *matched_sets(tested, norms, 49, near=8, seed=seed))
        values = [sum(does[head] for head in some) for some in drawn]
        rows = [
            {"pair": 0, "emotion": "joy", "check": name, "set": s, "value": value, "own": 0.0, "goal": 1.0}
            for name in check.CHECKS for s, value in enumerate(values)
        ]  # fmt: skip
        sets = pd.DataFrame({"heads": drawn, "overlap": 0.0, "norm": 1.0})
        p.append(heads.HeadCheck(pd.DataFrame(rows), sets, "").to_frame().p["restoration"])
    assert kstest(np.array(p) - np.random.default_rng(0).uniform(0, 1 / 50, 150), "uniform").pvalue > 0.01


def test_a_check_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    vlm, pairs, file = tiny_families.vlm("llava_clip"), some_pairs(4), tmp_path / "check.jsonl"
    options = {"sets": 3, "heads": [(2, 3), (1, 0)], "words": WORDS, "progress": False}
    whole, one_pair, done = check_heads(vlm, pairs, **options), check._one_pair, []

    def stopped(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args)
        return one_pair(*args)

    monkeypatch.setattr(check, "_one_pair", stopped)
    with pytest.raises(KeyboardInterrupt):
        check_heads(vlm, pairs, file=file, **options)
    with file.open("a") as opened:
        opened.write('{"check": ["mean-abl')  # as an interruption may leave it
    done.clear()
    found = check_heads(vlm, pairs, file=file, **options)
    assert len(done) == 2 and len(file.read_text().splitlines()) == 5
    pd.testing.assert_frame_equal(found.table, whole.table)
    pd.testing.assert_frame_equal(check_heads(vlm, pairs, file=file, **options).table, whole.table)
    message = r'begun with other settings: metric was "log mass", now "mass"; seed was 0, now 1; sets was .*Name another file'
    with pytest.raises(InputError, match=message):
        check_heads(vlm, pairs, metric="mass", seed=1, file=file, **options)
    with pytest.raises(InputError, match='begun with other settings: donors was "neutral", now "others"'):
        check_heads(vlm, pairs, donors="others", file=file, **options)
    with pytest.raises(InputError, match=r"settings: pairs was .*; emotions was .*; events was "):
        check_heads(vlm, pairs[:3], file=file, **options)
    for other in ("no json\n", json.dumps({"model": "x"}) + "\n", ""):
        file.write_text(other)
        with pytest.raises(InputError, match="holds no finished pairs of such a run; name another file"):
            check_heads(vlm, pairs, file=file, **options)


def test_a_map_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Each pair is asked once; what else was asked is refused, a check's file too."""
    vlm, pairs, file, asked = tiny_families.vlm("llava_clip"), some_pairs(4), tmp_path / "map.jsonl", []
    options = {"words": WORDS, "progress": False}
    whole, gather = head_map(vlm, pairs, **options), maps.collect

    def stopped(vlm, prompt, *args, **kwargs):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(prompt)
        return gather(vlm, prompt, *args, **kwargs)

    monkeypatch.setattr(maps, "collect", stopped)
    with pytest.raises(KeyboardInterrupt):
        head_map(vlm, pairs, file=file, **options)
    asked.clear()
    pd.testing.assert_frame_equal(head_map(vlm, pairs, file=file, **options).table, whole.table)
    assert len(asked) == 2 and len(file.read_text().splitlines()) == 5
    pd.testing.assert_frame_equal(head_map(vlm, pairs, file=file, **options).table, whole.table)
    other = replace(pairs[0], neutral=pairs[1].neutral)
    for given, changed, said in (
        (pairs, {"direction": "noising"}, 'direction was "denoising", now "noising"'),
        (pairs, {"layers": [0, 2], "positions": ("query", "last")}, r"layers was .* now \[0, 2\]; positions was"),
        (pairs, {"words": {**WORDS, "up": ["uncle"]}}, "words was"),
        ([other, *pairs[1:]], {}, "settings: pairs was"),
        ([replace(pairs[0], event=pairs[1].event), *pairs[1:]], {}, "settings: events was .*prompts was"),
        ([replace(pairs[0], emotion="down"), *pairs[1:]], {}, "settings: emotions was"),
        (pairs, {"answer": "It is"}, 'answer was "I felt", now "It is"; prompts was'),
        (pairs, {"metric": logit_mass(vlm, "sad")}, r"metric was .* now \"log p\(sad\)\"; metric's values was"),
    ):
        with pytest.raises(InputError, match=f"begun with other .*{said}"):
            head_map(vlm, given, file=file, **options | changed)
    with pytest.raises(InputError, match="begun with other settings: prompts was"):
        head_map(replace(vlm, instruction="Say how you felt."), pairs, file=file, **options)
    with torch.no_grad():
        other = copy.deepcopy(vlm.model)
        other.lm_head.weight[5] += 1
    with pytest.raises(InputError, match='begun with other settings: weights was "'):
        head_map(replace(vlm, model=other), pairs, file=file, **options)
    again = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*again, again[-1]]))
    with pytest.raises(InputError, match="has the pairs of two runs at once; delete it"):
        head_map(vlm, pairs, file=file, **options)
    with pytest.raises(InputError, match="holds no finished pairs of such a run; name another file"):
        check_heads(vlm, pairs, [(1, 0)], sets=2, file=file, **options)


def test_stages_are_those_of_the_model_not_of_the_map():
    """A map of a few layers took its last for the model's, and called the middle deep."""
    means = np.eye(6, 2) + 0.1
    held = scored(means, 0.3, shape=(2, 1))
    assert set(specificity(scored(np.ones((6, 2)), 0.1, shape=(2, 1), seed=1), held, draws=200).table.stage) == {
        "shallow",
        "middle",
    }
    found = [replace(one, n_layers=8) for one in (scored(np.ones((6, 2)), 0.1, shape=(2, 1), seed=1), held)]
    assert set(specificity(*found, draws=200).table.stage) == {"shallow"}
    vlm = tiny_families.vlm("llava_clip")
    assert head_map(vlm, some_pairs(), layers=[0], **quiet).n_layers == LAYERS


def test_a_map_is_not_gone_on_with_by_another_metric_of_the_same_name(tmp_path):
    """Names that the package gives: two sets of words, two directions; then directions, and how long a story may be."""
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs(2)
    one, other = some_directions(vlm), some_directions(vlm, 1)
    wheel = Concept("ends", ("up", "down"), {"up": ("up",), "down": ("down",)})
    for k, (before, after, said) in enumerate((
        ({"metric": logit_mass(vlm, ["afraid", "sad"])}, {"metric": logit_mass(vlm, ["afraid", "glad"])}, "metric's values was"),
        ({"metric": projection(one["up", 2], 2)}, {"metric": projection(one["down", 2], 2)}, "metric's values was"),
        ({"metric": lambda x: x[:, 3]}, {"metric": lambda x: x[:, 4]}, "metric's values was"),
        ({"metric": "restoration", "directions": one, "layer": 2}, {"directions": other}, "directions was .*; metric's values was"),
        ({"metric": "restoration", "directions": one, "layer": 2}, {"layer": 1}, "layer was 2, now 1"),
        ({"metric": "hit rate", "wheels": wheel, "max_new_tokens": 2}, {"max_new_tokens": 3}, "max_new_tokens was 2, now 3"),
    )):  # fmt: skip
        options = {"file": tmp_path / f"{k}.jsonl", "layers": [1], "progress": False} | before
        first = head_map(vlm, pairs, **options)
        pd.testing.assert_frame_equal(head_map(vlm, pairs, **options).table, first.table)
        with pytest.raises(InputError, match=f"begun with other settings: {said}"):
            head_map(vlm, pairs, **options | after)


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path):
    vlm, pairs, options = tiny_families.vlm("llava_clip"), some_pairs(2), {"words": WORDS, "progress": False}
    with pytest.raises(OutputError, match=f"Cannot write in {tmp_path / 'none' / 'map.jsonl'}: No such file or directory"):
        head_map(vlm, pairs, file=tmp_path / "none" / "map.jsonl", **options)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    for file in (tmp_path, tmp_path / "bytes"):
        with pytest.raises(InputError, match=f"{file} holds no finished pairs of such a run; name another file"):
            head_map(vlm, pairs, file=file, **options)


def test_the_check_of_a_story():
    vlm, pairs = load(), world_pairs("test", 2, seed=3)
    found = check_heads(vlm, pairs, [(6, 5)], sets=1, metric="hit rate", max_new_tokens=12, progress=False)
    emotional, neutral = twin_prompts(vlm, pairs[0])
    other = z_of(vlm, oracle.caches(vlm, twin_prompts(vlm, pairs[1])[1]), 6, 5)[-1]
    mine = found.table.query("pair == 0 and set == 0").set_index("check").value
    held = ("last", "answer")
    assert mine["mean-ablation"] == story_hit(vlm, emotional, SetHead(6, 5, other, held), pairs[0].emotion)
    own = z_of(vlm, oracle.caches(vlm, emotional), 6, 5)[-1]
    assert mine["restoration"] == story_hit(vlm, neutral, SetHead(6, 5, own, held), pairs[0].emotion)


# the bundled model


def test_few_heads_of_the_bundled_model_restore_the_feeling():
    vlm = load()
    found = head_map(vlm, world_pairs("selection", 12), progress=False)
    guess = attribution_map(vlm, world_pairs("selection", 12), progress=False)
    assert found.agreement(guess).mean > 0.8
    checked = check_heads(vlm, world_pairs("test", 6), found.top(6).index, sets=30, progress=False).to_frame()
    assert checked.effect["restoration"].mean > 0.4 and checked.p["restoration"] < 0.1


# what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vlm, pairs: head_map(vlm, pairs[:1], **quiet), "1 pairs came; two or more are needed"),
        (
            lambda vlm, pairs: head_map(vlm, pairs, metric="cosine"),
            "metric is 'cosine'; expected 'log mass', 'mass', 'log odds', 'restoration', ",
        ),
        (
            lambda vlm, pairs: head_map(vlm, pairs, direction="both", **quiet),
            "direction is 'both'; expected 'denoising' or 'noising'",
        ),
        (lambda vlm, pairs: head_map(vlm, pairs, metric="projection"), "For projection, directions S are needed"),
        (lambda vlm, pairs: head_map(vlm, pairs, some_directions(vlm), "restoration"), "measured at l_emo; name it: layer=3"),
        (
            lambda vlm, pairs: head_map(vlm, pairs, some_directions(vlm), "restoration", layer=1, layers=[0, 2]),
            "'restoration' is read after layer 1; heads of layer 2 come later",
        ),
        (
            lambda vlm, pairs: head_map(vlm, pairs, Directions(("up",), torch.ones(1, 8, 192), (1,)), "projection"),
            "The directions have 8 layers of width 192; this model has 4 of 32. Make them with this model",
        ),
        (lambda vlm, pairs: head_map(vlm, pairs, words={"up": ["uncle"]}), "Pairs show down; there are words of up"),
        (
            lambda vlm, pairs: head_map(vlm, pairs, metric=lambda x: x[:, :3], progress=False),
            r"gives \[3\] values a run; expected one",
        ),
        (
            lambda vlm, pairs: head_map(vlm, pairs, metric="hit rate", positions="query"),
            "patched from the last token on: positions='last', not 'query'",
        ),
        (lambda vlm, pairs: attribution_map(vlm, pairs, metric="hit rate"), "The hit rate has no gradient; take 'log mass'"),
        (lambda vlm, pairs: check_heads(vlm, pairs, []), r"Heads are \[\]; expected different \(layer, head\)s"),
        (
            lambda vlm, pairs: check_heads(vlm, pairs, [(0, 4)]),
            r"Heads \[\(0, 4\)\] are out of range; this model has 4 layers of 4",
        ),
        (
            lambda vlm, pairs: check_heads(vlm, pairs, [(0, 1)], donors="all", **quiet),
            "donors is 'all'; expected 'neutral' or 'others'",
        ),
        (
            lambda vlm, pairs: check_heads(vlm, [pairs[0], pairs[0]], [(0, 1)], donors="others", **quiet),
            "All pairs show up; there are no other emotions' pictures",
        ),
    ],
)
def test_requests_that_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(tiny_families.vlm("llava_clip"), some_pairs())
