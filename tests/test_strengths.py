"""Strengths chosen by one rule, worked by hand on canned answers; the controls; the tuning pairs."""

from dataclasses import replace

import pytest
import tiny_families
from tiny_models import picture

from emointerp.emotions import named
from emointerp.errors import InputError
from emointerp.evaluation import conflict_pairs, harness, strengths
from emointerp.evaluation.items import CONFLICT, Item
from emointerp.evaluation.methods import Decoding, Method
from emointerp.evaluation.strengths import amplified, by_label, by_prediction, contest, random_like, tuned
from emointerp.models import load
from emointerp.pairs import Pair
from emointerp.start_here import conflict_intensities
from emointerp.tracing import generate
from emointerp.veena import Veena, adaptive
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
