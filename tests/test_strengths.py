"""Strengths chosen by one rule, worked by hand on canned answers; the controls; the tuning pairs."""

from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny_families
import torch
from tiny_models import picture

from emointerp.circuit import Circuit, Head
from emointerp.emotions import named
from emointerp.errors import InputError
from emointerp.evaluation import conflict_pairs, harness, strengths
from emointerp.evaluation.items import CONFLICT, Item
from emointerp.evaluation.methods import Decoding, Method
from emointerp.evaluation.strengths import amplified, by_label, by_prediction, contest, random_like, tuned
from emointerp.heads import HeadMap
from emointerp.heads.maps import LOOKING
from emointerp.models import load
from emointerp.pairs import Pair
from emointerp.start_here import conflict_intensities
from emointerp.steering import Steering
from emointerp.tracing import generate
from emointerp.veena import Veena, adaptive, on
from emointerp.veena.strength import Sense
from emointerp.world.splits import split_of

WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
GLAD, PLAIN = "I was glad.", "I sat down."


def some_pairs(n: int = 4) -> list[Pair]:
    small = [picture(seed)[:32, :48] for seed in range(2 * n)]
    return [Pair(small[2 * i], small[2 * i + 1], f"It was number {i}.", "joy", neutral_event="It rained.") for i in range(n)]


def says(name: str, hits: int, false: int) -> Method:
    """A method that names joy beside the first pictures, and beside the first neutral ones."""

    def answers(vlm, items, decoding):
        limit = hits if items[0].set == CONFLICT else false
        return [GLAD if i < limit else PLAIN for i in range(len(items))]

    return Method(name, answers, {"hits": hits, "false": false})


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([(1, 0), (3, 0), (2, 0)], 1),
        ([(1, 0), (3, 1), (2, 0)], 2),  # one false emotion in four is 25 points: the best is not allowed
        ([(2, 0), (2, 0)], 0),  # of equals the first
        ([(4, 2), (3, 1)], None),  # neither is allowed
        ([(0, 0)], None),  # nothing is gained
    ],
)
def test_the_rule_takes_the_most_exact_that_keeps_the_limits(monkeypatch, candidates, chosen):
    monkeypatch.setattr(strengths, "none", lambda: says("none", 0, 0))
    some = [says(f"m{i}", *figures) for i, figures in enumerate(candidates)]
    [found] = tuned(tiny_families.vlm("llava_clip"), {"mine": some}, some_pairs(), max_cost=1e9)
    nothing = {"strength": "none: no candidate gained within the limits"}
    assert found.name == "mine" and found.settings == (nothing if chosen is None else some[chosen].settings)


def test_a_candidate_whose_stories_are_unlikely_is_not_taken(monkeypatch):
    vlm = tiny_families.vlm("llava_clip")
    monkeypatch.setattr(strengths, "none", lambda: says("none", 0, 0))
    some = [says("weak", 1, 0), says("strong", 3, 0)]
    with pytest.warns(UserWarning, match="mine: the last of 2 candidates was chosen"):
        assert tuned(vlm, {"mine": some}, some_pairs(), max_cost=1e9)[0].settings["hits"] == 3
    assert "no candidate gained" in tuned(vlm, {"mine": some}, some_pairs(), max_cost=1e-9)[0].settings["strength"]
    with pytest.raises(InputError, match="There are no candidates for 'mine'"):
        tuned(vlm, {"yours": some, "mine": []}, some_pairs())


def test_several_rivals_are_tuned_beside_one_run_of_no_intervention(monkeypatch):
    """Each grid gets its own best, as alone; "none" answers each item once, and no answer's perplexity is measured twice."""
    vlm, asked, measured = tiny_families.vlm("llava_clip"), [], []
    bare, likely = says("none", 0, 0), harness.perplexity_of

    def counted(vlm, items, decoding):
        asked.extend(items)
        return bare.answers(vlm, items, decoding)

    monkeypatch.setattr(strengths, "none", lambda: replace(bare, answers=counted))
    monkeypatch.setattr(harness, "perplexity_of", lambda vlm, prompt, texts: measured.extend(texts) or likely(vlm, prompt, texts))
    grids = {"a": [says("m", 2, 0), says("m", 3, 0), says("m", 1, 0)], "b": [says("m", 4, 2), says("m", 1, 0), says("m", 0, 0)]}
    found = tuned(vlm, grids, some_pairs(), max_cost=1e9)
    assert [(m.name, m.settings["hits"]) for m in found] == [("a", 3), ("b", 1)]
    assert len(asked) == 8 + 1  # four pairs have two sides; one more item is asked to warm up
    assert len(measured) == 8 + 4 + 2  # PLAIN beside all, GLAD where a method says it


def test_the_control_has_as_many_others_in_the_same_layers():
    vlm = tiny_families.vlm("llava_clip")
    value = Veena([(0, 1), (1, 0), (1, 3)], [(2, 2), (3, 0)], [(1, 4), (2, 7), (2, 40)], beta=3.0, gamma=2.0, l_emo=1)
    drawn = [random_like(vlm, value, seed) for seed in range(20)]
    for other in drawn:
        for name in ("upstream", "downstream", "neurons"):
            mine, theirs = getattr(value, name), getattr(other, name)
            assert sorted(layer for layer, _ in mine) == sorted(layer for layer, _ in theirs)
            assert set(mine).isdisjoint(theirs) and len(set(theirs)) == len(mine)
        assert (other.beta, other.gamma, other.l_emo) == (3.0, 2.0, 1)
    assert len({other.neurons for other in drawn}) == 20 and drawn[0] == random_like(vlm, value, 0)
    with pytest.warns(UserWarning, match="The control has 2 parts fewer than what it controls"):
        crowded = random_like(vlm, Veena([(0, 0), (0, 1), (0, 2)], [], l_emo=1))
    assert len(crowded.upstream) == vlm.anatomy.n_heads - 3 == 1  # no more are left


def test_amplified_asks_with_the_edits_of_the_value():
    vlm = tiny_families.vlm("qwen2_vl")
    value = Veena([(0, 1)], [(2, 2), (3, 0)], [(1, 4)], beta=5.0, gamma=2.0, l_emo=1)
    some = [Item("test", picture(i)[:48, :64], text, "joy") for i, text in enumerate(("It rained.", "I ate soup at home."))]
    prompts, short = [item.prompt(vlm) for item in some], Decoding(max_new_tokens=5)
    for parts in ("vee", "ena", "both"):
        told = amplified(value, parts=parts).answers(vlm, some, short)
        assert told == generate(vlm, prompts, value.edits(parts), max_new_tokens=5)
    told = amplified(value, adaptive=True, words=WORDS).answers(vlm, some, short)
    each = adaptive(vlm, prompts, value, words=WORDS)
    assert told == [generate(vlm, prompt, edits, max_new_tokens=5) for prompt, edits in zip(prompts, each, strict=True)]


def test_amplified_by_step_asks_while_veena_is_on_and_leaves_nothing_behind(monkeypatch):
    """Rows told together are those of `vlm.generate` one by one under `veena.on`; afterwards the model is as it was.

    A random model is sure of nothing: its shares are written here, by what stands at l_emo, so that rows and steps differ.
    """

    def now(sense):
        return torch.stack([torch.full((len(sense.last),), 0.9), torch.sigmoid(10 * sense.last.float().mean(1))], -1)

    monkeypatch.setattr(Sense, "now", now)
    vlm = tiny_families.vlm("qwen2_vl")
    value = Veena([(0, 1)], [(2, 2), (3, 0)], [(1, 4)], beta=50.0, gamma=8.0, l_emo=1)
    some = [Item("test", picture(i)[:48, :64], text, "joy") for i, text in enumerate(("It rained.", "I ate soup at home."))]
    prompts, short = [item.prompt(vlm) for item in some], Decoding(max_new_tokens=8)
    plain = generate(vlm, prompts, max_new_tokens=8)
    method = amplified(value, adaptive="step", words=WORDS)
    with on(vlm, value, adaptive="step", words=WORDS):
        one_by_one = [vlm.generate(prompt, max_new_tokens=8) for prompt in prompts]
    told = method.answers(vlm, some, short)
    assert told == one_by_one != plain and generate(vlm, prompts, max_new_tokens=8) == plain
    kinds = [amplified(value, adaptive=how, words=WORDS).settings["adaptive"] for how in (False, True, "prompt", "step")]
    assert kinds == [False, True, True, "step"] and method.settings["veena"] == asdict(value) and method.settings["words"] == WORDS
    with pytest.raises(InputError, match=r"adaptive is 'always'; expected False, 'prompt' \(or True\) or 'step'"):
        amplified(value, adaptive="always")


def test_a_veena_for_each_emotion_by_prediction_and_by_label(monkeypatch):
    """Answers are those of the edits that the prediction or the label names; with a shift those of the next emotion."""
    vlm = tiny_families.vlm("llava_clip")
    values = {e: Veena(downstream=[(2, i), (3, i)], beta=30.0) for i, e in enumerate(("joy", "fear", "anger"))}
    golds, said = ["fear", "neutral", "anger"], ["joy", "sadness", "joy"]
    items = [Item("mine", picture(i)[:48, :64], f"It was number {i}.", gold) for i, gold in enumerate(golds)]
    monkeypatch.setattr(strengths.veena, "predicted", lambda vlm, prompts, words: said)

    def told(named: list) -> list[str]:
        lists = [values[e].edits() if e in values else [] for e in named]
        return [generate(vlm, i.prompt(vlm), some, max_new_tokens=6) for i, some in zip(items, lists, strict=True)]

    how = Decoding(max_new_tokens=6)
    assert by_prediction(values).answers(vlm, items, how) == told(said)
    gold, other = by_label(values, "gold"), by_label(values, "another", 1)
    assert gold.oracle and other.oracle and not by_prediction(values).oracle and gold.settings != other.settings
    assert gold.answers(vlm, items, how) == told(golds)
    assert other.answers(vlm, items, how) == told(["anger", "neutral", "joy"]) != told(golds)


def test_words_are_part_of_a_methods_settings():
    values = {"up": Veena(downstream=[(2, 1)])}
    assert by_prediction(values, words=WORDS).settings["words"] == WORDS != by_prediction(values).settings["words"]
    with pytest.raises(InputError, match=r"gammas are \[1.0\]; expected one above 1"):
        contest(tiny_families.vlm("llava_clip"), 1, gammas=(1.0,))


def test_tuning_pairs_contradict_the_picture_and_leave_the_twin_alone():
    vlm = load()
    pairs = conflict_pairs(vlm, 12)
    low, high = conflict_intensities(vlm)
    assert len(pairs) == 12 and {pair.split for pair in pairs} == {"tuning"} == {split_of(pair.emotional) for pair in pairs}
    for pair in pairs:
        assert pair.emotion == pair.emotional.emotion and low <= pair.emotional.intensity <= high
        assert pair.neutral == pair.emotional.neutral() and pair.minus[1] == pair.neutral_event != pair.event
        assert not named(pair.event) and not named(pair.neutral_event)


def test_the_contest_takes_pairs_of_ones_own_for_each_part(monkeypatch):
    """Each part goes where it belongs: by what heads are chosen, on what strengths, on what S; the drawn world's by default."""
    asked = {}

    def noted(name, give):
        return lambda vlm, pairs, *rest, **options: asked.setdefault(name, []).append(list(pairs)) or give

    found = Circuit("m", "r", (Head(2, 1, 0.5, 0.01),), pairs=(), events=("It was number 0.", "Other."))
    monkeypatch.setattr(
        strengths, "amplification_map", noted("amplified", HeadMap(pd.DataFrame(), "log mass", LOOKING, "amplifying"))
    )
    monkeypatch.setattr(strengths, "head_map", noted("patched", HeadMap(pd.DataFrame(), "log mass", "denoising")))
    monkeypatch.setattr(strengths.veena, "find_circuit", noted("circuit", found))
    monkeypatch.setattr(strengths, "steering_vectors", noted("S", None))
    monkeypatch.setattr(strengths, "_by_emotion", lambda *_: {})
    monkeypatch.setattr(strengths, "world_pairs", lambda split, n: [split] * n)
    monkeypatch.setattr(strengths, "conflict_pairs", lambda vlm, n, seed=5, split="tuning": some_pairs(n))
    monkeypatch.setattr(
        strengths, "rivals", lambda vlm, S, l_emo, tuning: asked.setdefault("rivals", []).append(list(tuning)) or []
    )
    fits = []
    value = Veena(downstream=[(2, 1)], beta=2.0, l_emo=1)
    fitted = SimpleNamespace(veena=value)
    monkeypatch.setattr(strengths.veena, "fit", lambda vlm, c, tuning, *_, **__: fits.append((c, list(tuning))) or fitted)
    monkeypatch.setattr(strengths, "oracle_steering", lambda *_: says("oracle", 0, 0))
    monkeypatch.setattr(strengths, "check_disjoint", lambda a, b: None)
    vlm, mine, others = tiny_families.vlm("llava_clip"), some_pairs(3), some_pairs(5)[3:]
    plain = [replace(pair, neutral_event=None) for pair in mine]

    with pytest.warns(UserWarning, match=r"1 events stand in selection and in tuning pairs \('It was number 0.', …\)"):
        names = [m.name for m in contest(vlm, 1, selection=mine, tuning=[*others, mine[0]], progress=False)]
    assert asked["amplified"] == asked["S"] == [mine] and asked["circuit"] == [mine] * 2 and "VEENA, heads by patching" in names
    assert asked["rivals"] == [[*others, mine[0]]] and [t for _, t in fits] == [[*others, mine[0]]] * 2
    assert all(c.events == () and c.heads == found.heads for c, _ in fits)

    asked.clear(), fits.clear()
    names = [m.name for m in contest(vlm, 1, selection=plain, tuning=others, direction=mine, progress=False)]
    assert asked["patched"] == [plain] and asked["S"] == [mine] and "amplified" not in asked and len(fits) == 1
    assert "VEENA, heads by patching" not in names and fits[0][0] is found  # no events are shared

    asked.clear(), fits.clear()
    with pytest.warns(UserWarning, match="events stand in selection"):
        contest(vlm, 1, n=4, progress=False)
    assert asked["S"] == [["direction"] * 120] and len(asked["amplified"][0]) == len(fits[0][1]) == 4


def test_what_a_contest_cannot_be_fitted_on_is_refused():
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs(6)
    with pytest.raises(InputError, match="Layer 4 is out of range; this model has layers 0 to 3"):
        contest(vlm, 4, selection=pairs[:3], tuning=pairs[3:])
    with pytest.raises(InputError, match="tuning has 1 pairs; two or more are needed"):
        contest(vlm, 1, selection=pairs[:3], tuning=pairs[3:4])
    with pytest.raises(InputError, match="2 emotional pictures stand in both sets; take pairs of different splits"):
        contest(vlm, 1, selection=pairs[:4], tuning=pairs[2:])


@pytest.mark.parametrize(("clean", "hit", "found"), [({1: 0.5, 2: 0.25}, {}, 1), ({}, {2: 0.25}, 2), ({}, {}, None)])
def test_l_emo_is_the_layer_whose_push_gains_most_by_clean_stories_or_else_by_hits(monkeypatch, clean, hit, found):
    """Of all layers but the last; on pairs whose emotion has a direction; what gains is written by hand."""
    asked = []

    def steered(vlm, pairs, directions, layers, alphas, **options):
        asked.append(([pair.emotion for pair in pairs], layers))
        cells = [(i, layer, alpha) for i in range(len(pairs)) for layer in layers for alpha in alphas]
        table = pd.DataFrame(cells, columns=["pair", "layer", "alpha"]).assign(direction="S", draw=0)
        for name, gains in (("clean", clean), ("hit", hit)):
            table[name] = table.layer.map(gains).fillna(0.0)
            table[f"{name}_before"], table[f"{name}_goal"] = 0.0, 1.0
        return Steering(table, ("joy",))

    monkeypatch.setattr(strengths, "steer", steered)
    monkeypatch.setattr(strengths, "steering_vectors", lambda *_, **__: SimpleNamespace(emotions=("joy",)))
    pairs = [*some_pairs(2), replace(some_pairs(1)[0], emotion="fear"), *some_pairs(2)]
    ask = partial(strengths.emotional_layer, tiny_families.vlm("llava_clip"), pairs, pairs, most=3)
    if found is None:
        with pytest.raises(
            InputError, match=r"No push after layers 0, 1, 2 makes stories of 3 neutral pictures .* \(l_emo=…, --l-emo"
        ):
            ask()
    else:
        assert ask() == found
    assert asked == [(["joy"] * 3, [0, 1, 2])]


def test_the_contest_has_the_cure_its_rivals_and_its_controls(monkeypatch):
    """On the bundled model, small: names, oracles, whose heads and neurons the methods have, and that halves are halves."""
    for name, grid in (("ALPHAS", (0.5,)), ("VAF", (4.0,)), ("PAI", (0.5,)), ("VCD", (0.25,))):
        monkeypatch.setattr(strengths, name, grid)
    found = {m.name: m for m in contest(load(), 3, n=24, betas=(1.0, 8.0), gammas=(1.0, 1.25), progress=False)}
    assert list(found)[:2] == ["none", "emotion prompt"] and {"steering", "VAF", "PAI", "VCD"} < set(found)
    oracles = {"another emotion's VEENA", "gold emotion's VEENA", "steering with the gold emotion"}
    assert {name for name, method in found.items() if method.oracle} == oracles
    made = {name: method.settings["veena"] for name, method in found.items() if "veena" in method.settings}
    best, louder = made["VEENA"], made["ENA"]
    assert (5, 2) in best["downstream"] and best["l_emo"] == 3 and louder["gamma"] > 1
    assert {name: found[name].settings["parts"] for name in ("VEE", "ENA")} == {"VEE": "vee", "ENA": "ena"}
    mine = {*best["upstream"], *best["downstream"]}
    draws = [made[f"random heads {seed}"] for seed in range(3)]
    assert len({tuple(d["upstream"] + d["downstream"]) for d in draws}) == 3
    assert all(mine.isdisjoint(d["upstream"] + d["downstream"]) for d in draws)
    assert set(made["random neurons"]["neurons"]).isdisjoint(louder["neurons"])
    assert found["VEENA, adaptive"].settings["adaptive"] and made["VEENA, heads by patching"]["gamma"] == 1
