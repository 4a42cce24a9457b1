"""Flow, knock-outs and patching against autograd by hand, plain hooks, identities and brute force."""

import itertools
import re
from dataclasses import replace

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from matplotlib.collections import LineCollection
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from tiny_models import picture

from emointerp import measures
from emointerp.directions import Directions
from emointerp.emotions import Concept, hit_rate
from emointerp.errors import InputError
from emointerp.flow import BOTH, CONTROLS, PICTURES, REST, ROADS, Patching, information_flow, knockouts, patching, saliency, thirds
from emointerp.lens import emotion_metrics, emotion_tokens
from emointerp.models import load
from emointerp.pairs import Pair, world_pairs
from emointerp.statistics import change_points
from emointerp.tracing import Metric, ScaleAttention, SetResidual, collect

EVENT = "The phone rang twice while I was cooking."
WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
families = pytest.mark.parametrize("family", tiny_families.NAMES)
quiet = {"words": WORDS, "progress": False}


def some_pairs() -> list[Pair]:
    """Two pairs of noise pictures; what they show does not matter to random models."""
    pictures = [picture(seed)[:48, :64] for seed in range(4)]
    return [Pair(*pictures[:2], EVENT, "up"), Pair(*pictures[2:], "My uncle cleaned the old boat again.", "down", name="boat")]


def prompts_of(vlm, pair: Pair, answer: str = "I felt"):
    return [vlm.prompt(image, pair.event, answer=answer) for image in (pair.emotional, pair.neutral)]


def log_mass(vlm, logits, emotion: str) -> float:
    table = emotion_tokens(vlm, WORDS)
    return float(sum(logits.double().softmax(-1)[i] for i in table.id[table.emotion == emotion]).log())


# saliency


def by_hand(family: str, pair: Pair) -> tuple:
    """The emotional prompt, and attention times its gradient [layer, head, query, key], by autograd on a plain eager forward."""
    vlm = tiny_families.vlm(family, "eager")
    prompt, table = prompts_of(vlm, pair)[0], emotion_tokens(vlm, WORDS)
    weight = vlm.model.get_input_embeddings().weight
    before, weight.requires_grad = weight.requires_grad, True
    try:
        out = vlm.model(**prompt.inputs, use_cache=False, output_attentions=True)
        loss = -out.logits[0, -1].softmax(-1)[table.id[table.emotion == pair.emotion].tolist()].sum().log()
        slopes = torch.autograd.grad(loss, out.attentions)
    finally:
        weight.requires_grad = before
    return prompt, torch.stack([(a * g)[0].detach() for a, g in zip(out.attentions, slopes, strict=True)])


@families
def test_flow_is_attention_times_its_gradient(family):
    pairs = some_pairs()
    found = information_flow(tiny_families.vlm(family), pairs, **quiet)
    each = information_flow(tiny_families.vlm(family), pairs, heads=True, **quiet)
    assert len(found.table) == 2 * 2 * 4 * tiny_families.LAYERS and len(each.table) == len(found.table) * tiny_families.HEADS
    prompt, product = by_hand(family, pairs[1])
    texts = [t for t in range(len(prompt)) if t not in prompt.visual]
    edges = {
        "V->Q": [(t, s) for t in prompt.query for s in prompt.visual],
        "V->L": [(prompt.last, s) for s in prompt.visual],
        "Q->L": [(prompt.last, s) for s in prompt.query],
        REST: [(t, s) for t in prompt.query for s in texts if s < t] + [(prompt.last, s) for s in texts if s < prompt.visual[-1]],
    }
    for table, value, places in ((found.table, product.sum(1).abs(), ["layer"]), (each.table, product.abs(), ["layer", "head"])):
        mine = table[(table.pair == 1) & (table.picture == "emotional")].set_index(["road", *places])
        scale = float(value.max())
        for road, some in edges.items():
            expected = torch.stack([value[..., t, s] for t, s in some]).mean(0).flatten()
            assert mine.loc[road].index.is_monotonic_increasing and (mine.loc[road].edges == len(some)).all()
            np.testing.assert_allclose(mine.loc[road].value, expected, rtol=2e-3, atol=1e-5 * scale)


def test_any_metric_flows_and_means_are_over_pairs():
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs()
    given = emotion_metrics(vlm, WORDS)["up"]
    flow = information_flow(vlm, pairs, Metric(lambda logits: 3 * given(logits)), progress=False)
    plain = information_flow(vlm, pairs, **quiet)
    first = flow.table.pair == 0
    np.testing.assert_allclose(flow.table.value[first], 3 * plain.table.value[first], rtol=1e-4)
    frame = plain.to_frame()
    t = plain.table[(plain.table.picture == "neutral") & (plain.table.layer == 1)].set_index(["road", "pair"])
    row, total = frame.loc["neutral", "V->L", 1], t.value * t.edges
    assert row["value"].mean == pytest.approx(t.loc["V->L"].value.mean()) and row["value"].n == 2
    assert row.to_rest.mean == pytest.approx(t.loc["V->L"].value.mean() / t.loc[REST].value.mean())
    assert row.share.mean == pytest.approx(total.loc["V->L"].sum() / total.sum())
    shares = frame.share.map(lambda i: i.mean).groupby(["picture", "layer"]).sum()
    assert np.allclose(shares, 1)
    drawn = {line.get_label(): line.get_ydata() for line in plain.plot().axes[1].get_lines()}
    assert drawn["V→L"][1] == pytest.approx(row["value"].mean)
    assert plain.curves("V->L", "neutral")[:, 1] == pytest.approx(t.loc["V->L"].value.tolist())


def test_what_nothing_reads_any_more_has_no_flow():
    vlm = tiny_families.vlm("qwen2_vl")
    flow = information_flow(vlm, some_pairs(), **quiet)
    assert (flow.curves("V->Q")[:, -1] == 0).all() and (flow.curves("V->L")[:, -1] > 0).all()
    assert flow.to_frame().loc["emotional", "V->Q", 3].value.high == 0
    maps = information_flow(vlm, some_pairs(), heads=True, **quiet).plot()
    assert maps.axes[0].images[0].get_array().shape == (4, 4)


# knock-outs


@families
def test_a_knockout_is_a_forward_with_the_mask_written_by_hand(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    found = knockouts(vlm, pairs, width=3, **quiet)
    assert len(found.table) == 2 * 4 * 2 and set(found.table.road) == {*ROADS, BOTH}
    prompt = prompts_of(vlm, pairs[1])[0]
    v, q, last = list(prompt.visual), list(prompt.query), [prompt.last]
    mine = found.table[found.table.pair == 1].set_index(["road", "start"])
    assert mine.baseline.iloc[0] == pytest.approx(log_mass(vlm, oracle.logits(vlm, prompt), "down"), abs=1e-4)
    roads = {"V->Q": (q, v), "V->L": (last, v), "Q->L": (last, q)} | ({BOTH: (q + last, v)} if family == "llava_clip" else {})
    for road, (readers, sources) in roads.items():
        edits = [ScaleAttention(layer, 0.0, readers, sources) for layer in (1, 2, 3)]
        expected = log_mass(vlm, oracle.logits(vlm, prompt, edits), "down")
        assert mine.value[road, 1] == pytest.approx(expected, abs=2e-4)
        assert (mine.stop[road, 1], mine.centre[road, 1]) == (3, 2)


def test_the_control_cuts_another_reader_off_from_the_same_sources():
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs()
    control = knockouts(vlm, pairs, width=1, **quiet).table.query("pair == 0").set_index(["road", "start"]).control
    prompt = prompts_of(vlm, pairs[0])[0]

    def possible(readers, sources):
        cuts = [ScaleAttention(2, 0.0, t, [s for s in sources if s != t]) for t in readers]
        return np.array([log_mass(vlm, oracle.logits(vlm, prompt, [cut]), "up") for cut in cuts])

    for road, sources in (("V->L", prompt.visual), ("Q->L", prompt.query)):
        values = possible(prompt.query[1:] if road == "Q->L" else prompt.query, sources)
        assert np.abs(values - control[road, 2]).min() < 1e-4 and np.ptp(values) > 1e-3
    cuts = [ScaleAttention(2, 0.0, t, [s for s in prompt.visual if s != t]) for t in prompt.visual[1:]]
    everyone = log_mass(vlm, oracle.logits(vlm, prompt, cuts), "up")  # the query is as long as the picture
    assert len(prompt.query) >= len(cuts) and control["V->Q", 2] == pytest.approx(everyone, abs=2e-4)


def test_falls_and_their_test():
    vlm, pairs = tiny_families.vlm("llava_siglip"), some_pairs() * 4
    found = knockouts(vlm, pairs, "mass", width=4, **quiet)
    t = found.table.set_index("road").loc["V->L"]
    row = found.to_frame().loc["V->L", 1.5]
    assert row.fall.mean == pytest.approx((t.baseline - t.value).mean()) and row.fall.n == 8
    assert row.control.mean == pytest.approx((t.baseline - t.control).mean()) and 0 < row.p <= 1
    assert found.curves("V->L").ravel() == pytest.approx((t.baseline - t.value).tolist())
    logs = knockouts(vlm, pairs[:2], width=4, **quiet).table
    np.testing.assert_allclose(found.table.value[:4], np.exp(logs.value[:4]), rtol=1e-4)
    bars = found.plot().axes[0].containers
    assert bars[1].get_label() == "cut" and bars[1].patches[1].get_height() == pytest.approx(row.fall.mean)
    curves = knockouts(vlm, pairs[:2], width=3, **quiet)
    axes = curves.plot().axes
    assert [axis.get_title() for axis in axes] == ["V→Q cut", "V→L cut", "Q→L cut", "V→Q+L cut"]
    assert axes[1].get_lines()[1].get_ydata() == pytest.approx(curves.curves("V->L").mean(0).tolist())


# patching


@families
def test_a_patch_is_plain_hooks_and_the_whole_is_the_donors_run(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    spans = {"V": "visual", "Q": "query", "L": "last", "whole": "all"}
    found = patching(vlm, pairs, stages={"middle": (1, 2), 2: (2,), 3: [3]}, spans=spans, **quiet)
    emotional, neutral = prompts_of(vlm, pairs[0])
    kept = oracle.caches(vlm, emotional)
    mine = found.table.query("pair == 0 and direction == 'denoising'").set_index(["span", "stage"])
    assert mine.donor.iloc[0] == pytest.approx(log_mass(vlm, oracle.logits(vlm, emotional), "up"), abs=1e-4)
    assert mine.receiver.iloc[0] == pytest.approx(log_mass(vlm, oracle.logits(vlm, neutral), "up"), abs=1e-4)
    for span in ("V", "Q", "L"):
        where = list(neutral.positions([spans[span]]))
        edits = [SetResidual(layer, kept["residual", layer][where], where) for layer in (1, 2)]
        assert mine.value[span, "middle"] == pytest.approx(log_mass(vlm, oracle.logits(vlm, neutral, edits), "up"), abs=5e-4)
    effect = found.to_frame().effect.map(lambda interval: interval.mean)
    for direction in ("denoising", "noising"):
        assert effect[direction, "whole"].loc[[2, 3]].tolist() == pytest.approx([1, 1], abs=1e-2)
        assert effect[direction, "L", 3] == pytest.approx(1, abs=1e-2)
        assert [effect[direction, span, 3] for span in "VQ"] == pytest.approx([0, 0], abs=1e-2)


def test_picture_query_and_last_token_together_are_the_donors_run():
    vlm = tiny_families.vlm("llava_clip")
    spans = {"VQL": ("visual", "query", "last"), "VQ": ("visual", "query")}
    found = patching(vlm, some_pairs(), "mass", spans=spans, **quiet)
    frame = found.to_frame()
    effect = frame.effect.map(lambda interval: interval.mean)
    assert np.allclose(effect[effect.index.get_level_values("span") == "VQL"], 1, atol=1e-3)
    assert list(effect["noising", "VQ"].index) == ["shallow", "middle", "deep", 0, 1, 2, 3]
    assert not np.allclose(effect["noising", "VQ"].loc[[1, 2]], 1, atol=1e-2)
    t = found.table.query("direction == 'noising' and span == 'VQ' and stage == 'middle'")
    assert frame.difference["noising", "VQ", "middle"].mean == pytest.approx((t.value - t.receiver).mean())
    ratio = (t.value - t.receiver).mean() / (t.donor - t.receiver).mean()
    assert effect["noising", "VQ", "middle"] == pytest.approx(ratio)
    curves = found.curves("noising", ["VQ"])
    assert curves.shape == (2, 4, 1) and curves[..., 0].mean(0) == pytest.approx(effect["noising", "VQ"].loc[[0, 1, 2, 3]].tolist())


def test_figures_of_patching_draw_the_effects():
    vlm = tiny_families.vlm("gemma3")
    found = patching(vlm, some_pairs(), **quiet)
    effect = found.to_frame().effect.map(lambda interval: interval.mean)
    changes = change_points([[0, 0, 1, 2], [0, 0, 1.1, 2]] * 5)
    figure = found.plot({"noising": changes})
    bars, lines = figure.axes[2], figure.axes[3].get_lines()
    assert [bar.get_height() for bar in bars.containers[5]] == pytest.approx(effect["noising", "L"].iloc[:3].tolist())
    assert lines[1].get_ydata() == pytest.approx(effect["noising", "Q"].loc[[0, 1, 2, 3]].tolist())
    assert [line.get_xdata()[0] for line in lines[-2:]] == [1.5, 2.5]
    only = patching(vlm, some_pairs(), stages={"all": range(4)}, **quiet)
    assert len(only.plot().axes) == 2
    assert found.change_points("noising", flat=2).locations and found.table.layers.unique().tolist() == [
        "0-1", "2", "3", "0", "1",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no stages of single layers here; name them by their numbers"):
        only.curves()


def test_thirds_cover_the_layers():
    assert thirds(load()) == {"shallow": (0, 1, 2), "middle": (3, 4, 5), "deep": (6, 7)}
    assert thirds(tiny_families.vlm("qwen2_vl")) == {"shallow": (0, 1), "middle": (2,), "deep": (3,)}
    assert measures.thirds(2) == {"shallow": (0,), "middle": (1,)}


# controls of patching


def with_patch(vlm, receiver, donor, layers, span: str, emotion: str) -> float:
    """The log mass at a prompt's end with another prompt's residual stream at a span, by plain hooks."""
    kept, where = oracle.caches(vlm, donor), list(receiver.positions([span]))
    edits = [SetResidual(layer, kept["residual", layer][where], where) for layer in layers]
    return log_mass(vlm, oracle.logits(vlm, receiver, edits), emotion)


@families
def test_controls_are_transplants_from_other_pictures_beside_this_event(family):
    """Of three pairs of two emotions, pair 1's only other emotions are 0 and 2, and pairs 0 and 2 are each other's same one."""
    vlm, (first, second) = tiny_families.vlm(family), some_pairs()
    pairs = [first, second, Pair(*(picture(seed)[:48, :64] for seed in (8, 9)), first.event, "up")]
    found = patching(vlm, pairs, stages={"middle": (1, 2), 3: [3]}, **quiet)
    rows = found.table.set_index(["pair", "direction", "span", "stage"])
    emotional, neutral = prompts_of(vlm, first)

    def beside(image, pair=first):
        return vlm.prompt(image, pair.event, answer="I felt")

    for span, name in (("V", "visual"), ("L", "last")):
        at = (0, "denoising", span, "middle")
        expected = with_patch(vlm, neutral, beside(second.emotional), (1, 2), name, "up")
        assert rows.other_emotion[at] == pytest.approx(expected, abs=5e-4)
        calm = [with_patch(vlm, neutral, beside(p.neutral), (1, 2), name, "up") for p in pairs[1:]]
        assert np.abs(np.array(calm) - rows.other_picture[at]).min() < 5e-4
        expected = with_patch(vlm, emotional, beside(pairs[2].emotional), (1, 2), name, "up")
        assert rows.other_picture[0, "noising", span, "middle"] == pytest.approx(expected, abs=5e-4)
        own = (rows.value[at], rows.receiver[at])
        assert min(abs(rows.other_emotion[at] - value) for value in own) > 1e-3  # it is neither the transplant nor nothing
    assert rows.xs("noising", level="direction").other_emotion.isna().all()
    assert rows.loc[1].xs("noising").other_picture.isna().all()  # no other picture of this emotion
    left = found.to_frame().loc["denoising", "L", 3]
    values = rows.xs(("denoising", "L", 3), level=("direction", "span", "stage"))
    moved = (values.other_emotion - values.receiver).mean() / (values.donor - values.receiver).mean()
    assert left.other_emotion.mean == pytest.approx(moved) and left.other_emotion.n == 3


def made(gap: float, values: dict[str, list[list[float]]], direction: str = "denoising") -> pd.DataFrame:
    """A table of pairs from 0 to `gap`, with the metric [stage, pair] of the transplant and of each control."""
    frames = [
        pd.DataFrame(
            {"pair": range(len(some)), "stage": stage, "value": some, "layers": "0"} | {c: v[stage] for c, v in values.items()}
        )
        for stage, some in enumerate(values["value"])
    ]
    return pd.concat(frames, ignore_index=True).assign(direction=direction, span="L", receiver=0.0, donor=gap)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_transplant_is_held_against_the_control_that_does_more(sign):
    rng = np.random.default_rng(0)
    value, weak, strong = rng.normal([[4.0], [0.9]], 1, (2, 10)), rng.normal(0, 1, (2, 10)), rng.normal([[1.5], [1.2]], 1, (2, 10))
    weak[:, 7] = np.nan
    values = {name: (sign * some).tolist() for name, some in (("value", value), ("other_emotion", weak), ("other_picture", strong))}
    frame = Patching(made(4.0 * sign, values), "mass").to_frame().loc["denoising", "L"]
    kept = [i for i in range(10) if i != 7]
    assert [i.mean for i in frame.other_emotion] == pytest.approx((weak[:, kept].mean(1) / 4).tolist())
    assert [i.n for i in frame.other_emotion] == [9, 9] and [i.n for i in frame.beyond] == [10, 10]
    assert [i.mean for i in frame.beyond] == pytest.approx(((value - strong).mean(1) / 4).tolist())
    assert frame.beyond[0].low > 0 > frame.beyond[1].low

    def exact(less):
        """max-T over all 2 ** 10 flips, written out."""
        t = np.array([np.array(signs) @ less.T for signs in itertools.product((1, -1), repeat=10)]) / np.sqrt((less**2).sum(1))
        return (t.max(1)[:, None] >= t[0] - 1e-12).mean(0)

    both = [exact(np.nan_to_num(value - control)) for control in (weak, strong)]
    np.testing.assert_allclose(frame.p, np.max(both, 0), atol=0.015)
    assert frame.p[0] < 0.05 < frame.p[1]


def test_where_there_is_no_control_nothing_is_said_of_one():
    values = {"value": [[1.0, 2.0, 3.0]], "other_picture": [[np.nan, np.nan, 0.5]], "other_emotion": [[np.nan] * 3]}
    row = Patching(made(4.0, values), "mass").to_frame().iloc[0]
    assert row.effect.mean == pytest.approx(0.5) and row.other_emotion.n == 0 and np.isnan(row.p)
    assert row.beyond.mean == pytest.approx(2.5 / 4) and row.beyond.n == 1


def test_controls_can_be_left_out_or_chosen():
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs()
    options = {"stages": {3: [3]}, **quiet}
    whole, bare = patching(vlm, pairs, **options), patching(vlm, pairs, controls=(), **options)
    assert list(bare.to_frame()) == ["effect", "difference"] and "other_picture" not in bare.table
    pd.testing.assert_frame_equal(bare.table, whole.table[list(bare.table)], atol=1e-5)
    one = patching(vlm, pairs, controls=["other_emotion"], **options).table
    pd.testing.assert_frame_equal(one, whole.table[list(one)], atol=1e-5)
    assert "other_picture" not in one and len(bare.plot().axes) == 2
    with pytest.raises(InputError, match="controls name 'random'; expected some of 'other_emotion', 'other_picture'"):
        patching(vlm, pairs, controls=["random"], **options)


def test_a_control_is_the_same_in_a_smaller_batch_of_the_same_pairs():
    vlm = tiny_families.vlm("llava_clip")
    pairs = [Pair(*(picture(2 * i + k)[:48, :64] for k in range(2)), EVENT, ("up", "down")[i % 2]) for i in range(6)]
    options = {"stages": {2: [2]}, "spans": {"L": "last"}, **quiet}
    whole, few = (patching(vlm, some, others=pairs, **options).table for some in (pairs, pairs[2:4]))
    pd.testing.assert_frame_equal(few.assign(pair=few.pair + 2), whole[whole.pair.isin([2, 3])].reset_index(drop=True), atol=1e-5)
    seeds = [patching(vlm, pairs, seed=seed, **options).table.other_picture.tolist() for seed in range(3)]
    assert seeds[0] != seeds[1] or seeds[0] != seeds[2]


def test_pictures_that_are_the_same_or_lie_elsewhere_are_no_controls():
    vlm, (first, second) = tiny_families.vlm("qwen2_vl"), some_pairs()
    elsewhere = Pair(picture(5)[:32, :96], picture(6)[:32, :96], second.event, "down")
    assert len(vlm.prompt(elsewhere.emotional, EVENT)) == len(vlm.prompt(first.emotional, EVENT))
    same = Pair(first.neutral, first.emotional, EVENT, "down")
    found = patching(vlm, [first, second], stages={1: [1]}, others=[first, elsewhere, same], **quiet).table
    assert found[found.pair == 0][["other_emotion", "other_picture"]].isna().all(axis=None)
    assert found[(found.pair == 1) & (found.direction == "denoising")].notna().all(axis=None)


def test_where_the_event_says_the_emotion_another_picture_is_no_other_emotion():
    vlm, (first, second) = tiny_families.vlm("llava_clip"), some_pairs()
    told = Pair(
        first.emotional,
        first.neutral,
        "My uncle cleaned the old boat again.",
        "up",
        neutral_event="My friend cleaned the old boat again.",
    )
    found = patching(vlm, [told, second], stages={1: [1], 3: [3]}, **quiet).table.query("pair == 0 and direction == 'denoising'")
    assert found.other_emotion.isna().all()
    neutral, other = (vlm.prompt(p.neutral, told.neutral_event, answer="I felt") for p in (told, second))
    expected = with_patch(vlm, neutral, other, [1], "visual", "up")
    assert found.set_index(["span", "stage"]).other_picture["V", 1] == pytest.approx(expected, abs=5e-4)


def test_figures_of_patching_draw_the_controls():
    vlm = tiny_families.vlm("llava_clip")
    found = patching(vlm, some_pairs(), **quiet)
    figure, frame = found.plot(), found.to_frame()
    across = [some for some in figure.axes[0].collections if isinstance(some, LineCollection) and some.get_linestyle()[0][1]]
    heights = [[line[0][1] for line in some.get_segments()] for some in across]
    expected = [
        [i.mean for i in frame.loc["denoising", span][c].iloc[:3]] for span in "VQL" for c in ("other_emotion", "other_picture")
    ]
    np.testing.assert_allclose(heights, expected)
    dashed = [line.get_ydata() for line in figure.axes[1].get_lines() if line.get_linestyle() in ("--", ":")]
    singles = [
        [i.mean for i in frame.loc["denoising", span][c].loc[[0, 1, 2, 3]]]
        for span in "VQL"
        for c in ("other_emotion", "other_picture")
    ]
    np.testing.assert_allclose(dashed, singles)
    assert [text.get_text() for text in figure.legends[0].get_texts()][-2:] == list(CONTROLS.values())


# restoration and concepts of one's own


def test_restoration_is_the_cosine_at_l_emo():
    vlm, pairs = tiny_families.vlm("qwen2_vl"), some_pairs()
    vectors = torch.randn((2, 4, vlm.anatomy.d_model), generator=torch.Generator().manual_seed(0))
    S, options = Directions(("up", "down"), vectors, (1, 1)), {"layer": 2, "progress": False}
    found = patching(vlm, pairs, "restoration", directions=S, **options)
    assert found.metric == "restoration" and found.table.stage.unique().tolist() == ["shallow", "middle", 0, 1, 2]
    emotional, neutral = prompts_of(vlm, pairs[1])
    kept = oracle.caches(vlm, emotional)

    def cosine(prompt, edits=()):
        with oracle.hooked(vlm, edits, prompt):
            h, s = oracle.caches(vlm, prompt)["residual", 2][-1].double(), S["down", 2].double()
        return float(h @ s / h.norm() / s.norm())

    mine = found.table.query("pair == 1 and direction == 'denoising'").set_index(["span", "stage"])
    for span, name, layers, stage in (("V", "visual", (0, 1), "shallow"), ("Q", "query", [1], 1), ("L", "last", [2], 2)):
        where = list(neutral.positions([name]))
        edits = [SetResidual(layer, kept["residual", layer][where], where) for layer in layers]
        assert mine.value[span, stage] == pytest.approx(cosine(neutral, edits), abs=1e-4)
    assert (mine.donor.iloc[0], mine.receiver.iloc[0]) == pytest.approx((cosine(emotional), cosine(neutral)), abs=1e-5)
    assert mine.value["L", 2] == pytest.approx(mine.donor.iloc[0], abs=1e-5)
    with pytest.raises(InputError, match="'restoration' is read after layer 2; stage 'deep' begins at layer 3"):
        patching(vlm, pairs, "restoration", directions=S, stages={"deep": [3]}, **options)

    cut = knockouts(vlm, pairs, "restoration", width=1, directions=S, **options).table
    edits = [ScaleAttention(1, 0.0, [emotional.last], list(emotional.visual))]
    cut = cut[cut.pair == 1].set_index(["road", "start"])
    assert cut.value["V->L", 1] == pytest.approx(cosine(emotional, edits), abs=1e-4)
    assert abs(cut.value["V->L", 1] - cut.baseline["V->L", 1]) > 1e-3
    assert cut.value["V->L", 3] == pytest.approx(cut.baseline["V->L", 3], abs=1e-6)  # nothing later is read


WEATHER = {"sharp": ("spike", "anxious"), "plain": ("day", "exactly")}
CONCEPT = Concept("ends", tuple(WEATHER), WEATHER)


def counted(story: str, label: str) -> float:
    """By hand: does the story hold one of the label's words, in the singular or plural?"""
    words = re.findall("[a-z]+", story.lower())
    return float(any(word in words or f"{word}s" in words for word in WEATHER[label]))


def test_stories_are_counted_by_the_words_of_ones_own():
    vlm, options = load(), {"wheels": CONCEPT, "max_new_tokens": 40, "progress": False}
    pairs = [replace(p, emotion=label) for p, label in zip(world_pairs("test", 2, seed=3), WEATHER, strict=True)]
    told = [[vlm.generate(p, max_new_tokens=40) for p in prompts_of(vlm, pair, "")] for pair in pairs]
    hits = [[counted(story, pair.emotion) for story in stories] for pair, stories in zip(pairs, told, strict=True)]
    assert hits == [[1, 0], [0, 1]]  # the words are such that both sides of both pairs are told apart
    found = patching(vlm, pairs, "hit rate", stages={0: [0]}, spans={"all": "all"}, controls=(), **options).table
    for i, (emotional, neutral) in enumerate(hits):
        mine = found[found.pair == i].set_index("direction")
        assert (mine.receiver["denoising"], mine.value["denoising"]) == (neutral, emotional)
        assert (mine.receiver["noising"], mine.value["noising"]) == (emotional, neutral)
    cut = knockouts(vlm, pairs, "hit rate", width=8, **options).table.set_index(["pair", "road"])
    assert [cut.baseline[i, "V->L"] for i in range(2)] == [emotional for emotional, _ in hits]
    for i, pair in enumerate(pairs):
        prompt = prompts_of(vlm, pair, "")[0]
        edits = [ScaleAttention(layer, 0.0, ("last", "answer"), "visual") for layer in range(8)]
        blind = vlm.tokenizer.decode(oracle.tokens(vlm, prompt, edits, 40), skip_special_tokens=True)
        assert cut.value[i, "V->L"] == counted(blind, pair.emotion)
    with pytest.raises(InputError, match=r"unknown emotion 'sharp'.*give wheels=Concept\(name, labels, words\)"):
        knockouts(vlm, pairs, "hit rate", width=8, progress=False)


# the bundled model


@pytest.fixture(scope="module")
def pairs():
    return world_pairs("test", 3, seed=3)


def test_a_story_of_the_donors_activations_is_the_donors(pairs):
    vlm, few = load(), pairs[:2]
    found = patching(vlm, few, "hit rate", stages={0: [0]}, spans={"all": "all", "L": "last"}, max_new_tokens=40, progress=False)
    for i, pair in enumerate(few):
        hits = [hit_rate(vlm.generate(p, max_new_tokens=40), pair.emotion) for p in prompts_of(vlm, pair, "")]
        mine = found.table[found.table.pair == i].set_index(["direction", "span"])
        assert [mine.receiver[d, "L"] for d in ("noising", "denoising")] == hits
        assert [mine.value[d, "all"] for d in ("denoising", "noising")] == hits
    assert found.metric == "hit rate"


def test_a_story_told_blind_is_cut_off_in_the_answer_too(pairs):
    vlm, few = load(), pairs[:2]
    found = knockouts(vlm, few, "hit rate", width=8, max_new_tokens=10, progress=False).table.set_index(["pair", "road"])
    for i, pair in enumerate(few[:1]):
        prompt = prompts_of(vlm, pair, "")[0]
        edits = [ScaleAttention(layer, 0.0, ("last", "answer"), "visual") for layer in range(8)]
        told = vlm.tokenizer.decode(oracle.tokens(vlm, prompt, edits, 10), skip_special_tokens=True)
        assert found.value[i, "V->L"] == hit_rate(told, pair.emotion)


def test_the_picture_is_read_and_the_last_token_says_it(pairs):
    vlm, pairs = load(), pairs[:2]
    cut = knockouts(vlm, pairs, "mass", width=8, progress=False).to_frame().fall.map(lambda i: i.mean)
    assert cut[BOTH, 3.5] > 0.3 and cut[BOTH, 3.5] > cut["V->Q", 3.5] - 1e-6
    moved = patching(vlm, pairs, stages={0: [0], 7: [7]}, progress=False)
    effect = moved.to_frame().effect.map(lambda interval: interval.mean)
    for direction in ("denoising", "noising"):
        assert effect[direction, "V", 0] > 0.7 and abs(effect[direction, "V", 7]) < 1e-3
        assert effect[direction, "L", 0] < 0.3 and effect[direction, "L", 7] == pytest.approx(1, abs=1e-3)


# change points


def planted(n: int = 20, noise: float = 0.3, levels=(0, 0, 0, 1, 1, 3, 3, 3), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array(levels) + rng.normal(0, 1, (n, 1)) + rng.normal(0, noise, (n, len(levels)))


@pytest.mark.parametrize("seed", range(6))
def test_the_search_is_exact(seed):
    curves = np.random.default_rng(seed).normal(0, 1, (10, 7, 2)) + 10 * np.arange(7)[:, None] ** 1.5

    def left_over(places, mean):
        parts = np.split(mean, places)
        return sum(((part - part.mean(0)) ** 2).sum() for part in parts)

    mean = curves.mean(0)
    best = min(itertools.combinations(range(1, 7), 2), key=lambda places: left_over(places, mean))
    found = change_points(curves, resamples=200)
    total = ((mean - mean.mean(0)) ** 2).sum()
    assert found.locations == best and found.explained == pytest.approx(1 - left_over(best, mean) / total)
    layer = np.arange(7)[:, None]
    line = LinearRegression().fit(layer, mean).predict(layer)
    assert found.line == pytest.approx(r2_score(mean, line, multioutput="variance_weighted"))


def test_planted_changes_are_found_with_their_intervals():
    found = change_points(planted())
    assert found.locations == (3, 5) and found.low == found.high == (3, 5) and found.p < 0.01
    assert found.to_frame().won.tolist() == [1, 1] and np.allclose(found.won.sum(1), 1)
    assert found.explained > 0.95 > found.line
    unsure = change_points(planted(8, 1.5))
    assert any(a < b for a, b in zip(unsure.low, unsure.high, strict=True))
    assert all(a <= at <= b for a, at, b in zip(unsure.low, unsure.locations, unsure.high, strict=True))
    assert str(found).startswith("Changes at layer 3 [3, 3] and layer 5 [5, 5]; 3 levels explain ")
    assert change_points(planted(levels=(0, 0, 2, 2)), n=1).locations == (2,)


def test_flat_curves_have_no_changes():
    assert change_points(np.ones((5, 8))).p == 1
    found = change_points(planted(levels=[0] * 8))
    assert found.locations == () and found.to_frame().empty and "No changes: the mean curve does not differ" in str(found)
    p = []
    for seed in range(30):  # noise that hangs together over layers is no change either
        walks = np.random.default_rng(seed).normal(0, 1, (12, 8)).cumsum(1)
        p.append(change_points(walks, resamples=49).p)
    assert 0 < np.mean(np.array(p) <= 0.2) < 0.4


def test_as_few_layers_as_stages():
    found = change_points(planted(levels=(0, 1, 5)))
    assert found.locations == (1, 2) and found.explained == pytest.approx(1)
    assert change_points(planted(levels=(0, 0, 1, 5))).locations == (2, 3)


@pytest.mark.parametrize(
    ("curves", "n", "message"),
    [
        (np.zeros((5, 2)), 2, "2 layers cannot be cut at 2 places into 3 stages; ask for 1 to 1 changes"),
        (np.zeros((5, 4)), 0, "4 layers cannot be cut at 0 places"),
        (np.zeros((1, 4)), 1, r"Curves have shape \[1, 4\]; expected numbers \[pairs, layers\]"),
        (np.zeros(4), 1, r"Curves have shape \[4\]"),
        (np.full((3, 4), np.nan), 1, r"shape \[3, 4\] and hold NaN"),
    ],
)
def test_curves_that_cannot_be_cut(curves, n, message):
    with pytest.raises(InputError, match=message):
        change_points(curves, n)


# what is refused


def three_values(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, :3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vlm, pairs: information_flow(vlm, pairs[:1], **quiet), "1 pairs came; two or more are needed"),
        (lambda vlm, pairs: knockouts(vlm, [], "hit rate", **quiet), "0 pairs came"),
        (
            lambda vlm, pairs: information_flow(vlm, pairs, "hit rate"),
            "metric is 'hit rate'; expected 'log mass', 'mass', 'log odds'",
        ),
        (lambda vlm, pairs: patching(vlm, pairs, words={"up": ["uncle"]}), "Pairs show down; there are words of up"),
        (lambda vlm, pairs: knockouts(vlm, pairs, width=5, **quiet), "5 layers wide; this model has 4, so expected 1 to 4"),
        (lambda vlm, pairs: patching(vlm, pairs, stages={"deep": [3, 4]}, **quiet), "Layer 4 is out of range"),
        (lambda vlm, pairs: patching(vlm, pairs, stages={"none": []}, **quiet), "No layers are named"),
        (lambda vlm, pairs: patching(vlm, pairs, "restoration", layer=2), "For restoration, directions S are needed"),
        (lambda vlm, pairs: knockouts(vlm, pairs, "sadness"), "metric is 'sadness'; expected 'log mass', .*'restoration'"),
        (lambda vlm, pairs: knockouts(vlm, pairs, three_values), r"'three_values' gives \[3\] values a run; expected one"),
    ],
)
def test_requests_that_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(tiny_families.vlm("llava_clip"), some_pairs())


def test_pairs_whose_prompts_do_not_match_are_all_named():
    vlm, good = tiny_families.vlm("qwen2_vl"), some_pairs()
    wide, large = picture()[:32, :96], picture()[:64, :96]
    assert len(vlm.prompt(wide, EVENT)) == len(vlm.prompt(good[0].emotional, EVENT))  # as many tokens, which look elsewhere
    bad = [Pair(good[0].emotional, wide, EVENT, "up"), good[1], Pair(large, good[1].neutral, EVENT, "down", name="pier")]
    message = (
        r"differ in their tokens: 0 \((\d+) tokens, picture 64 x 48; \1 tokens, picture 96 x 32\), pier \(.*pictures to one size"
    )
    with pytest.raises(InputError, match=message):
        patching(vlm, bad, **quiet)


def test_saliency_of_one_prompt():
    vlm = tiny_families.vlm("llava_clip")
    prompt = prompts_of(vlm, some_pairs()[0])[0]
    acts = collect(vlm, prompt, ["attention"], positions="last", wrt=emotion_metrics(vlm, WORDS)["up"])
    assert saliency(acts).shape == (4, 1, len(prompt)) and saliency(acts, heads=True).shape == (4, 4, 1, len(prompt))
    assert PICTURES == ("emotional", "neutral")
