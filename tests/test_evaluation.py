"""The harness on canned answers whose figures are worked by hand, its resuming, its tables; the world's sets; the command line."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_families
import torch
from PIL import Image
from test_likelihood import whole_forward
from test_mer_unibench import write
from tiny_models import picture, random_folder

from emointerp import cli
from emointerp.circuit import revision
from emointerp.emotions import BASIC, wheels
from emointerp.errors import InputError, OutputError
from emointerp.evaluation import Evaluation, Item, Method, edited, evaluate, harness, none, pai, per_prompt, world_items
from emointerp.evaluation import benchmarks as benchmarks_module
from emointerp.evaluation.benchmarks import run_mer_unibench, standard, write_table
from emointerp.evaluation.items import (
    BLANK,
    CALM,
    CONFLICT,
    HARD,
    NEUTRALS,
    OWN,
    QUESTIONS,
    SETS,
    SHUFFLED,
    SWAPPED,
    TWINS,
    WORLD,
)
from emointerp.evaluation.mer_unibench import frame
from emointerp.files import alone
from emointerp.models import to_image
from emointerp.pairs import save_pairs, world_pairs
from emointerp.statistics import Interval
from emointerp.tracing import AddVector
from emointerp.world import Scene, sample

N = 12
GLAD, BOTH, ANGRY, PLAIN = "I was glad.", "I was glad and angry.", "I was angry.", "I sat down."
# by hand: exact (joy and nothing else) 2/8, 8/8 and 4/8; hit 3/8, 8/8 and 5/8
CANNED = {
    CONFLICT: {
        "none": [GLAD, GLAD, ANGRY, ANGRY, ANGRY, BOTH, PLAIN, ANGRY],
        "good": [GLAD] * 8,
        "weak": [GLAD, PLAIN, GLAD, GLAD, GLAD, BOTH, PLAIN, ANGRY],
    },
    NEUTRALS: {"none": [PLAIN] * 4, "good": [GLAD, PLAIN, PLAIN, PLAIN], "weak": [PLAIN] * 4},
    QUESTIONS: {
        "none": ["yes", "No.", "Three.", "Red"],
        "good": ["Yes.", "no", "A cat.", "red."],
        "weak": ["Yes.", "No, none.", "3", "Red"],
    },
}
ANSWERS = ("Yes.", "No.", "Two.", "Red.")
SAID = {"answers": "canned"}  # what a method is made of


def tiny(name="llava_clip"):
    return tiny_families.vlm(name)


def items(name: str, n: int = 8) -> list[Item]:
    small = [picture(seed)[:32, :48] for seed in range(n)]
    if name == QUESTIONS:
        return [Item(name, p, f"What about number {i}?", ANSWERS[i % 4], "") for i, p in enumerate(small)]
    gold, suggested = ("neutral", "") if name == NEUTRALS else ("joy", "anger")
    return [Item(name, p, f"This happened {i} times.", gold, suggested=suggested) for i, p in enumerate(small)]


def canned(
    name: str, calls: list | None = None, fails: tuple = (), settings=None, answers=CANNED, cost: float = 0, **more
) -> Method:
    """A method that answers by set and item; `calls` gets what it was asked, `fails` are (set, error) to raise."""

    def answer(vlm, some, decoding):
        name_of_set, first = some[0].set, int("".join(c for c in some[0].text if c.isdigit()))
        if decoding.max_new_tokens > 2 and calls is not None:
            calls.append((name, name_of_set, decoding.seed))
        for at, error in fails:
            if at == name_of_set:
                raise error
        CLOCK.now += cost
        return answers[name_of_set][name][first : first + len(some)]

    return Method(name, answer, settings or SAID, **more)


CLOCK = SimpleNamespace(now=0.0)


def sets() -> dict[str, list[Item]]:
    return {CONFLICT: items(CONFLICT), NEUTRALS: items(NEUTRALS, 4), QUESTIONS: items(QUESTIONS, 4)}


def three(**more) -> list[Method]:
    return [canned(name, **more) for name in ("none", "good", "weak")]


QUIET = {"perplexity": False, "progress": False}
mer = pytest.mark.filterwarnings("ignore:.*test rows; the benchmark has:UserWarning")


@pytest.fixture(scope="module")
def result() -> Evaluation:
    methods = [*three()[:2], replace(canned("weak"), oracle=True)]
    return evaluate(tiny(), methods, sets(), **QUIET)


# the world's sets


@pytest.fixture(scope="module")
def world() -> dict[str, list[Item]]:
    return {name: world_items(tiny(), name, N) for name in SETS}


def test_the_worlds_sets_ask_for_what_their_pictures_show(world):
    for name in (WORLD, CONFLICT, CALM, *HARD):
        assert [item.gold for item in world[name]] == [item.picture.emotion for item in world[name]] == list(BASIC) * 2
    assert {item.gold for item in world[NEUTRALS]} == {item.picture.emotion for item in world[NEUTRALS]} == {"neutral"}
    assert all(item.set == name and isinstance(item.picture, Scene) for name in (WORLD, QUESTIONS) for item in world[name])
    assert [item.suggested for item in world[CALM]] == [""] * N
    assert all(item.suggested in BASIC and item.suggested != item.gold for item in world[CONFLICT])
    assert len({item.key for item in world[CONFLICT]}) == N


def test_scenes_are_drawn_once_for_all_methods_and_answers_weighed_once(monkeypatch):
    """Two methods and none say the same of three scenes: each scene is drawn once beside its hash, each answer weighed once."""
    drawn, weighed = [], []
    draw, weigh = Scene.image, harness.perplexity_of
    monkeypatch.setattr(Scene, "image", lambda scene: drawn.append(scene) or draw(scene))
    monkeypatch.setattr(harness, "perplexity_of", lambda vlm, prompt, said: weighed.append(said) or weigh(vlm, prompt, said))
    some = [Item("mine", example.scene, "It rained.", "joy") for example in sample("test", 3)]
    methods = [Method(name, lambda vlm, asked, decoding: [GLAD] * len(asked), {}) for name in ("none", "a", "b")]
    found = evaluate(tiny(), methods, {"mine": some}, batch=2, progress=False)
    assert len(drawn) == 2 * 3 and len(weighed) == 3 and found.table.groupby("item").perplexity.nunique().tolist() == [1, 1, 1]


def test_what_shows_that_the_picture_counts_differs_in_the_picture_alone(world):
    plain = world[CONFLICT]
    assert [i.picture for i in world[CALM]] == [i.picture for i in plain]
    assert all(a.text != b.text for a, b in zip(plain, world[CALM], strict=True))
    for name in (BLANK, SHUFFLED, SWAPPED):
        assert [(i.text, i.gold, i.suggested) for i in world[name]] == [(i.text, i.gold, i.suggested) for i in plain]
    pixels = {name: [np.asarray(to_image(i.picture)) for i in world[name]] for name in (CONFLICT, BLANK, SHUFFLED, SWAPPED)}
    for before, blank, shuffled in zip(pixels[CONFLICT], pixels[BLANK], pixels[SHUFFLED], strict=True):
        assert blank.shape == shuffled.shape == before.shape and len(np.unique(blank.reshape(-1, 3), axis=0)) == 1
        np.testing.assert_array_equal(*(np.sort(some.reshape(-1, 3), axis=0) for some in (before, shuffled)))
        assert (before != shuffled).any(-1).mean() > 0.2
    shown = {pixel.tobytes(): item.gold for pixel, item in zip(pixels[CONFLICT], plain, strict=True)}
    assert all(shown[pixel.tobytes()] != item.gold for pixel, item in zip(pixels[SWAPPED], world[SWAPPED], strict=True))


def test_an_instruction_takes_the_place_of_a_storys_and_leaves_questions_alone(world):
    story, question = world[WORLD][0], world[QUESTIONS][0]
    assert story.prompt(tiny()).text == f"{story.text} {tiny().instruction}"
    assert story.prompt(tiny(), "Look closely.").text == f"{story.text} Look closely."
    assert question.prompt(tiny(), "Look closely.").text == question.prompt(tiny()).text == question.text
    assert question.text.endswith("?") and question.gold


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="There is no set 'storm'; there are 'world', 'conflict'"):
        world_items(tiny(), "storm")


# figures by hand


def test_rates_and_paired_differences_are_those_worked_by_hand(result):
    frame = result.to_frame()
    mean = frame.map(lambda v: v.mean if isinstance(v, Interval) else v)
    assert mean.loc[CONFLICT, "exact"].tolist() == [0.25, 1.0, 0.5] and mean.loc[CONFLICT, "hit"].tolist() == [0.375, 1.0, 0.625]
    assert mean.loc[NEUTRALS, "false_emotion"].tolist() == [0, 0.25, 0] and mean.loc[QUESTIONS, "right"].tolist() == [
        0.75,
        0.75,
        0.5,
    ]
    assert frame.loc[CONFLICT, ["false_emotion", "right"]].isna().all(axis=None) and frame.loc[QUESTIONS, "exact"].isna().all()
    differences = mean.difference.unstack("set")
    assert differences.loc["good"].to_dict() == {CONFLICT: 0.75, NEUTRALS: 0.25, QUESTIONS: 0.0}
    assert differences.loc["weak"].to_dict() == {CONFLICT: 0.25, NEUTRALS: 0.0, QUESTIONS: -0.25}
    assert differences.loc["none"].isna().all()
    everything = frame.loc[(CONFLICT, "good"), "exact"]
    assert (everything.low, everything.high, everything.n) == (1 - 3 / 8, 1.0, 8)  # the rule of three
    gain = frame.loc[(CONFLICT, "good"), "difference"]
    assert 0.3 <= gain.low < 0.75 < gain.high <= 1.0  # 6 of 8 items gain
    assert frame.n.unstack("set").loc["none"].to_dict() == {CONFLICT: 8, NEUTRALS: 4, QUESTIONS: 4}
    assert frame.oracle.unstack("set").loc["weak"].all() and not frame.oracle.unstack("set").loc["good"].any()


def test_precision_f_and_emotion_words_stand_beside_the_hit_rate(result):
    """By hand, of "none": precision 1, 1, 0, 0, 0, 1/2, 0, 0, F with 2/3 for the half; eight emotion words in eight stories."""
    frame, shown = result.to_frame(), result.shown()
    row = frame.loc[(CONFLICT, "none")]
    assert [row.precision.mean, row.f.mean, row.n_words.mean] == pytest.approx([2.5 / 8, (2 + 2 / 3) / 8, 8 / 8])
    assert row.precision.low < 2.5 / 8 < row.precision.high and row.n_words.low < 1 < row.n_words.high
    texts = shown[(shown.set == CONFLICT) & (shown.method == "none")].iloc[0]
    assert texts[["precision", "F", "emotion words"]].tolist() == ["31.2", "33.3", "1.00"]
    assert frame.loc[(NEUTRALS, "good"), "n_words"].mean == 0.25 and frame.loc[NEUTRALS, ["precision", "f"]].isna().all(axis=None)
    assert list(result.shown([CONFLICT])) == [c for c in shown if c not in ("false emotions", "right")]
    assert result.shown([]).empty


def test_p_values_are_the_closed_form_of_the_sign_flip(result):
    frame = result.to_frame()
    p, corrected = frame.loc[CONFLICT, "p"], frame.loc[CONFLICT, "p_holm"]
    assert p["good"] == pytest.approx(2 / 2**6, abs=0.007)  # six gain: all signs alike, both ways
    assert p["weak"] == pytest.approx(1 - math.comb(4, 2) / 2**4, abs=0.02)  # three gain, one loses: the sum is not 0
    assert corrected["good"] == 2 * p["good"] and corrected["weak"] == max(2 * p["good"], p["weak"])
    assert np.isnan(p["none"]) and np.isnan(corrected["none"])
    assert frame.loc[(NEUTRALS, "good"), "p"] == 1.0 and frame.loc[(QUESTIONS, "good"), "p"] == 1.0


def test_every_answer_is_a_row_with_its_scores(result):
    table = result.table.set_index(["set", "method", "item"])
    both = table.loc[(CONFLICT, "none", 5)]
    assert both[["gold", "suggested", "answer", "hit", "exact", "precision", "n_words"]].tolist() == [
        "joy", "anger", BOTH, 1, 0, 0.5, 2,
    ]  # fmt: skip
    assert np.isnan(both.right) and (both.words, both.repeats) == (5, 0)
    asked = table.loc[(QUESTIONS, "weak", 1)]
    assert (asked.answer, asked.right) == ("No, none.", 0.0) and np.isnan(asked.hit) and np.isnan(asked.false_emotion)
    assert table.revision.unique().tolist() == [revision(tiny())[:12]] and table.model.unique().tolist() == [tiny().name]
    hashes = {name: harness.digest(some)[:12] for name, some in sets().items()}
    assert table["items"].groupby(level="set").unique().map(list).to_dict() == {name: [h] for name, h in hashes.items()}
    assert result.about["sets"][CONFLICT]["n"] == 8 and set(result.about["versions"]) > {"torch", "emointerp"}
    assert "3 methods on 3 sets, 48 answers" in repr(result)


def test_costs_are_ratios_to_none(monkeypatch):
    monkeypatch.setattr(harness, "perf_counter", lambda: CLOCK.now)
    long = "the sun shone and the sun shone and I was glad"
    said = {CONFLICT: {"none": [GLAD] * 8, "slow": [f"{GLAD} {long}"] * 4 + [GLAD] * 4}}
    methods = [canned("none", answers=said, cost=1.0), canned("slow", answers=said, cost=3.0)]
    found = evaluate(tiny(), methods, {CONFLICT: items(CONFLICT)}, batch=2, **QUIET)
    each = {text: len(tiny().tokenizer(text, add_special_tokens=False).input_ids) + 1 for text in (GLAD, f"{GLAD} {long}")}
    assert found.table[found.table.method == "slow"].tokens.tolist() == [each[f"{GLAD} {long}"]] * 4 + [each[GLAD]] * 4
    seconds = found.table.groupby("method").seconds.unique()
    assert seconds["none"] == pytest.approx([1 / (2 * each[GLAD])])
    assert seconds["slow"] == pytest.approx([3 / (2 * each[f"{GLAD} {long}"]), 3 / (2 * each[GLAD])])
    row = found.to_frame().loc[(CONFLICT, "slow")]
    assert row.time == pytest.approx((3 + 3 * each[GLAD] / each[f"{GLAD} {long}"]) / 2)  # the median of eight is the mean of two
    assert (row.words, row.repeats) == ((4 * (3 + 11) + 4 * 3) / 8, 0.5)
    assert np.isnan(row.perplexity)


def test_seeds_are_averaged_within_items():
    def answers(vlm, some, decoding):
        return [GLAD if decoding.seed % 2 or i else PLAIN for i in range(len(some))]

    methods = [canned("none", answers={CONFLICT: {"none": [PLAIN] * 8}}), Method("odd", answers)]
    found = evaluate(tiny(), methods, {CONFLICT: items(CONFLICT)}, seeds=(1, 2), temperature=0.5, **QUIET)
    assert len(found.table) == 2 * 2 * 8
    row = found.to_frame().loc[(CONFLICT, "odd")]
    assert row.n == row.exact.n == 8 and row.exact.mean == (7 + 0.5) / 8
    assert found.values(CONFLICT, "odd").tolist() == [0.5] + [1.0] * 7
    assert "sampled at temperature 0.5, 2 seeds" in found.note


def test_the_goal_is_a_table_of_yes_and_no(result):
    goal = result.goal("good", baselines=["weak"])
    assert goal.met.tolist() == ["yes", "yes", "yes", "no"]
    assert goal.difference.map(lambda i: i.mean).tolist() == [0.75, 0.5, 0.0, 0.25]
    assert goal.index[0] == "conflict: exact rate, at least 10 points over none"
    assert goal.index[1] == "conflict: exact rate, above weak" and goal.index[3].startswith("neutral pictures: false emotions")
    assert result.goal("weak").met.tolist() == ["yes", "no", "no", "yes"]
    assert len(result.goal("good")) == 3  # an oracle is no baseline
    with pytest.raises(InputError, match="There is no method 'best' here; there are 'none', 'good', 'weak'"):
        result.goal("best")


def test_the_goal_counts_what_just_reaches_it_and_says_what_was_not_measured():
    said = {CONFLICT: {"none": [PLAIN] * 10, "cure": [GLAD, *[PLAIN] * 9]}}
    found = evaluate(tiny(), [canned(m, answers=said) for m in ("none", "cure")], {CONFLICT: items(CONFLICT, 10)}, **QUIET)
    assert found.goal("cure").met.tolist() == ["yes", "not measured", "not measured"]


# tables and figures


def test_markdown_and_latex_say_the_same_and_escape_what_is_theirs():
    odd = "a|b_c & 50%"
    said = {name: some | {odd: some["good"]} for name, some in CANNED.items()}
    methods = [canned("none"), replace(canned(odd, answers=said), oracle=True)]
    found = evaluate(tiny(), methods, sets(), **QUIET)
    lines = found.to_markdown().splitlines()
    assert (
        lines[0].startswith("| set | method | n | exact rate | hit rate |") and lines[1] == "| " + " | ".join(["---"] * 16) + " |"
    )
    assert lines[2].startswith("| conflict | none | 8 | 25.0 [") and lines[3].startswith(
        r"| conflict | a\|b_c & 50% (oracle) | 8 | 100.0 [62.5"
    )
    assert "| +75.0 [+" in lines[3] and len(lines) == 2 + 6 + 2 and found.note == lines[-1]
    assert f"revision {revision(tiny())[:12]}; items " in found.note and "; greedy, at most 64 tokens" in found.note
    latex = found.to_latex([CONFLICT])
    assert latex.startswith("% Model llava") and r"a|b\_c \& 50\% (oracle) & 8 & 100.0 [62.5" in latex and r"repeats, \%" in latex
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3 and all(row.replace(r"\&", "").count("&") == 13 for row in rows)  # no false emotions, no right answers
    with pytest.raises(InputError, match="There is no set 'storm' here; there are 'conflict'"):
        found.to_markdown(["storm"])


def test_the_figures_draw_what_the_tables_say(result):
    axes = result.plot().axes
    drawn = axes[0].containers[0]
    assert drawn.lines[0].get_xdata().tolist() == [75.0, 25.0]
    gain = result.to_frame().loc[(CONFLICT, "good"), "difference"]
    assert drawn.lines[2][0].get_segments()[0][:, 0].tolist() == pytest.approx([100 * gain.low, 100 * gain.high])
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["good", "weak (oracle)"]
    questions, neutrals = (c.lines[0].get_xdata().tolist() for c in axes[-1].containers)
    assert questions == [0.0, -25.0] and neutrals == [25.0, 0.0]
    axis = result.plot_sets().axes[0]
    assert [t.get_text() for t in axis.texts] == ["25", "100", "100", "75", "50", "100"]
    assert [t.get_text() for t in axis.get_xticklabels()] == [CONFLICT, NEUTRALS]
    alone = evaluate(tiny(), [canned("none")], {QUESTIONS: items(QUESTIONS, 4)}, **QUIET)
    for draw, words in ((alone.plot, "There is no method but 'none'"), (alone.plot_sets, "only plain questions")):
        with pytest.raises(InputError, match=words):
            draw()


def test_save_and_load_give_the_same(result, tmp_path):
    result.save(tmp_path / "kept")
    again = Evaluation.load(tmp_path / "kept")
    pd.testing.assert_frame_equal(again.table, result.table, check_dtype=False)
    assert again.to_markdown() == result.to_markdown() and again.about == result.about
    table = tmp_path / "kept" / "table.jsonl"
    table.write_text("\n".join(table.read_text().splitlines()[:-3]))
    with pytest.raises(InputError, match="holds no whole evaluation .48 rows of 'emointerp evaluation', version 1, and 45 came"):
        Evaluation.load(tmp_path / "kept")
    table.unlink()
    with pytest.raises(InputError, match="lacks table.jsonl, .* goes on with the same evaluate"):
        Evaluation.load(tmp_path / "kept")


# going on


def without_time(found: Evaluation) -> pd.DataFrame:
    return found.table.drop(columns="seconds")


def test_a_stopped_run_goes_on_and_loses_one_cell_at_most(tmp_path, result):
    calls: list = []
    broken = [*three(calls=calls)[:2], canned("weak", fails=[(CONFLICT, KeyboardInterrupt())])]
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny(), broken, sets(), folder=tmp_path, **QUIET)
    assert [call[:2] for call in calls] == [("none", CONFLICT), ("good", CONFLICT)]
    assert len(list((tmp_path / "cells").iterdir())) == 2
    with pytest.raises(InputError, match="lacks table.jsonl and about.json"):
        Evaluation.load(tmp_path)
    calls.clear()
    found = evaluate(tiny(), three(calls=calls), sets(), folder=tmp_path, **QUIET)
    left = [("weak", CONFLICT)] + [(m, name) for name in (NEUTRALS, QUESTIONS) for m in ("none", "good", "weak")]
    assert [call[:2] for call in calls] == left
    pd.testing.assert_frame_equal(without_time(found).drop(columns="oracle"), without_time(result).drop(columns="oracle"))
    pd.testing.assert_frame_equal(Evaluation.load(tmp_path).table, found.table, check_dtype=False)
    calls.clear()
    evaluate(tiny(), three(calls=calls), sets(), folder=tmp_path, **QUIET)
    assert not calls


def test_another_extractor_scores_kept_answers_as_its_own(tmp_path, result):
    """The answers are not asked again; every score is the new extractor's, and table and file say whose it is."""
    calls: list = []
    run = {"vlm": tiny(), "methods": three(calls=calls), "sets": sets(), "folder": tmp_path} | QUIET
    before = evaluate(**run)
    calls.clear()
    assert without_time(before)["exact"].equals(result.table.exact) and "words found by" not in before.note

    def always_joy(text, wheels):
        return ["joy"]

    found = evaluate(**run, extractor=always_joy)
    assert not calls and found.table.answer.equals(before.table.answer)
    stories = found.table[found.table.set == CONFLICT]
    assert stories.exact.eq(1).all() and stories.n_words.eq(1).all()
    assert found.table.false_emotion[found.table.set == NEUTRALS].eq(1).all()
    assert found.table.right.equals(before.table.right)  # plain questions have no emotion words
    kept = Evaluation.load(tmp_path)
    assert kept.about["scoring"]["extractor"].endswith("always_joy") and "; words found by test_evaluation." in kept.note
    assert kept.about["scoring"]["wheels"] == [wheel.name for wheel in wheels()]
    pd.testing.assert_frame_equal(without_time(evaluate(**run)), without_time(before))


def test_what_was_saved_before_there_was_an_f_is_read_without(result, tmp_path):
    result.save(tmp_path)
    for name, without in (("table.jsonl", "f"), ("about.json", "scoring")):
        file = tmp_path / name
        held = [json.loads(line) for line in ([file.read_text()] if name == "about.json" else file.read_text().splitlines())]
        for row in held:
            row.get("about", row).pop(without)
        file.write_text("\n".join(map(json.dumps, held)))
    found = Evaluation.load(tmp_path)
    assert "F" not in found.shown() and found.shown().equals(result.shown().drop(columns="F")) and found.note == result.note


def test_later_runs_may_bring_more_methods_and_sets(tmp_path):
    calls: list = []
    some = {CONFLICT: items(CONFLICT)}
    evaluate(tiny(), three(calls=calls)[:2], some, folder=tmp_path, **QUIET)
    calls.clear()
    evaluate(tiny(), [canned("none", calls), canned("weak", calls)], sets(), folder=tmp_path, **QUIET)
    assert sorted({call[:2] for call in calls}) == sorted(
        [("none", NEUTRALS), ("none", QUESTIONS), ("weak", CONFLICT), ("weak", NEUTRALS), ("weak", QUESTIONS)]
    )
    with pytest.raises(InputError, match=r"methods.good.settings.beta was not there, is 2"):  # of the first run, still known
        evaluate(tiny(), [canned("none"), canned("good", settings={"beta": 2})], some, folder=tmp_path, **QUIET)


LONG = "AddVector(layer=3, vector=a long description of a vector that goes on for a while, alpha={})"
CHANGES = {
    "method": ({"methods": [canned("none"), canned("good", settings={"beta": 2.0, "layers": [1, 5]})]},
               r"methods.good.settings.beta was 1.5, is 2.0; methods.good.settings.layers\[1\] was 2, is 5"),
    "long": ({"methods": [canned("none"), canned("good", settings={"beta": 1.5, "layers": [1, 2], "edits": [LONG.format(2)]})]},
             r'methods.good.settings.edits\[0\] was … for a while, alpha=1\)", is … for a while, alpha=2\)"'),
    "oracle": ({"methods": [canned("none"), canned("good", settings={"beta": 1.5, "layers": [1, 2]}, oracle=True)]},
               "methods.good.oracle was false, is true"),
    "items": ({"sets": {CONFLICT: items(CONFLICT)[::-1]}}, r"sets.conflict.items was .*, is "),
    "number": ({"sets": {CONFLICT: items(CONFLICT)[:5]}}, "sets.conflict.n was 8, is 5"),
    "temperature": ({"temperature": 0.7}, "decoding.temperature was 0.0, is 0.7"),
    "tokens": ({"max_new_tokens": 20}, "decoding.max_new_tokens was 64, is 20"),
    "perplexity": ({"perplexity": True}, "perplexity was false, is true"),
    "model": ({"vlm": "llava_siglip"}, 'model.revision was "{revision}'),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_a_run_with_other_settings_is_refused_with_the_difference(case, tmp_path):
    settings = {"beta": 1.5, "layers": [1, 2]} | ({"edits": [LONG.format(1)]} if case == "long" else {})
    asked = {"vlm": "llava_clip", "methods": [canned("none"), canned("good", settings=settings)], "folder": tmp_path}
    asked |= {"sets": {CONFLICT: items(CONFLICT)}} | QUIET
    evaluate(tiny(asked.pop("vlm")), **asked)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    changes, words = CHANGES[case]
    asked |= changes
    with pytest.raises(InputError, match=words.replace("{revision}", revision(tiny())[:20])) as raised:
        evaluate(tiny(asked.pop("vlm", "llava_clip")), **asked)
    assert "Nothing was changed there" in str(raised.value) and len(str(raised.value)) < 600
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_other_versions_are_noted_and_not_refused(tmp_path):
    evaluate(tiny(), [canned("none")], sets(), folder=tmp_path, **QUIET)
    file = tmp_path / "settings.json"
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | {"versions": {"torch": "0.1"}}))
    evaluate(tiny(), [canned("none")], sets(), folder=tmp_path, **QUIET)
    assert json.loads(file.read_text())["versions"]["torch"] != "0.1"


def test_damaged_files_are_asked_again_or_refused(tmp_path, result):
    evaluate(tiny(), three(), sets(), folder=tmp_path, **QUIET)
    cells = sorted((tmp_path / "cells").iterdir())
    cells[0].write_bytes(cells[0].read_bytes()[:-30])
    shutil.copy(cells[1], cells[2])  # another cell's rows
    calls: list = []
    with pytest.warns(UserWarning, match="is damaged .*; this cell is asked again") as warned:
        found = evaluate(tiny(), three(calls=calls), sets(), folder=tmp_path, **QUIET)
    assert len(calls) == 2 == len([w for w in warned if "is damaged" in str(w.message)])
    pd.testing.assert_frame_equal(without_time(found).drop(columns="oracle"), without_time(result).drop(columns="oracle"))
    (tmp_path / "settings.json").write_text('{"format": "other"')
    with pytest.raises(InputError, match="settings.json is damaged or of something else"):
        evaluate(tiny(), three(), sets(), folder=tmp_path, **QUIET)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(InputError, match="holds cells but no settings.json"):
        evaluate(tiny(), three(), sets(), folder=tmp_path, **QUIET)


def test_errors_inside_a_cell_name_it(tmp_path):
    for error, kind in ((InputError("the beta is odd"), InputError), (RuntimeError("out of memory"), RuntimeError)):
        with pytest.raises(kind) as raised:
            evaluate(tiny(), [canned("none"), canned("good", fails=[(NEUTRALS, error)])], sets(), **QUIET)
        said = str(raised.value) + " ".join(getattr(raised.value, "__notes__", []))
        assert "'good' on 'neutral pictures', seed 0" in said and str(error) in said
    short = Method("short", lambda vlm, some, decoding: [GLAD])
    with pytest.raises(InputError, match="'short' on 'conflict', seed 0: the method gave 1 answers to 8 items"):
        evaluate(tiny(), [canned("none"), short], sets(), **QUIET)


WRONG = {
    "two names": ({"methods": [canned("none"), canned("none")]}, "there is 'none' more than once"),
    "no methods": ({"methods": []}, "there is none at all"),
    "no none": ({"methods": [canned("good")]}, "Among the methods good is no 'none'"),
    "seeds": ({"seeds": (0, 1, 2)}, "At temperature 0 every seed gives the same answers, and 3 seeds came"),
    "the same seed": ({"seeds": (1, 1), "temperature": 1.0}, r"The seeds are \[1, 1\]; expected one or more, each once"),
    "no seeds": ({"seeds": ()}, r"The seeds are \[\]"),
    "no sets": ({"sets": {}}, "nothing to ask: no sets"),
    "no items": ({"sets": {WORLD: []}}, r"nothing to ask: no items in \['world'\]"),
    "gold": ({"sets": {WORLD: [replace(items(WORLD)[0], gold="jou")]}}, "Set 'world': .*jou"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_refused_before_anything_is_asked(case):
    calls: list = []
    changes, words = WRONG[case]
    with pytest.raises(InputError, match=words):
        evaluate(tiny(), **({"methods": three(calls=calls), "sets": sets()} | QUIET | changes))
    assert not calls


# real answers


@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_models_answer_as_they_do_alone(family, tmp_path):
    vlm = tiny(family)
    push = edited("push", [AddVector(1, torch.linspace(-3, 3, vlm.anatomy.d_model), 1.0)])
    asked = {CONFLICT: items(CONFLICT, 3), QUESTIONS: items(QUESTIONS, 2)}
    found = evaluate(vlm, [none(), push], asked, max_new_tokens=6, batch=2, folder=tmp_path, progress=False)
    plain = found.table[found.table.method == "none"]
    for name, some in asked.items():
        prompts = [vlm.prompt(item.picture, item.text, instruction=item.instruction) for item in some]
        mine = plain[plain.set == name]
        assert mine.answer.tolist() == [vlm.generate(p, max_new_tokens=6) for p in prompts]
        for prompt, row in zip(prompts, mine.itertuples(), strict=True):
            if row.answer.strip():
                assert row.perplexity == pytest.approx(math.exp(-whole_forward(vlm, prompt, row.answer).mean()), rel=1e-4)
    pushed = found.table[found.table.method == "push"]
    assert pushed.answer.tolist() != plain.answer.tolist() and (found.table.seconds > 0).all()
    ratios = (pushed.set_index(["set", "item"]).perplexity / plain.set_index(["set", "item"]).perplexity)[CONFLICT].dropna()
    assert found.to_frame().loc[(CONFLICT, "push"), "perplexity"] == pytest.approx(np.prod(ratios) ** (1 / len(ratios)))
    row = pushed[pushed.answer.str.strip() != ""].iloc[0]
    prompt = asked[row.set][row["item"]].prompt(vlm)
    assert row.perplexity == pytest.approx(math.exp(-whole_forward(vlm, prompt, row.answer).mean()), rel=1e-4)


def test_batches_of_a_cell_draw_with_seeds_of_their_own():
    vlm, some = tiny(), items(CONFLICT, 4)
    found = evaluate(vlm, [none()], {CONFLICT: some}, seeds=(5,), temperature=1.0, max_new_tokens=6, batch=2, **QUIET)
    prompts = [item.prompt(vlm) for item in some]
    first, second = (
        vlm.generate(p, temperature=1.0, seed=s, max_new_tokens=6) for p, s in ((prompts[:2], 5), (prompts[2:], 1_000_008))
    )
    assert found.table.answer.tolist() == first + second


# the command line


def run_cli(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["emointerp", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    said = capsys.readouterr()
    return done.value.code, said.out, said.err


@pytest.fixture
def short_answers(monkeypatch):
    """A random model's answers never end: eight tokens, not 64, where the command line is what is looked at."""
    monkeypatch.setattr(benchmarks_module, "evaluate", partial(evaluate, max_new_tokens=8))


def test_the_command_line_runs_the_world(short_answers, monkeypatch, capsys, tmp_path):
    out = tmp_path / "out"
    arguments = ["--model", random_folder(), "--out", out, "--n", 6, "--method", "none"]
    code, said, err = run_cli(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert {"table.md", "table.tex", "sets.png", "table.jsonl", "settings.json"} <= {file.name for file in out.iterdir()}
    found = Evaluation.load(out)
    assert found.sets == list(SETS) and found.methods == ["none"] and len(found.table) == 6 * len(SETS)
    assert "conflict, swapped picture" in said and found.note in said and f"Kept in: {out}" in said
    code, said, err = run_cli(monkeypatch, capsys, *arguments[:-4], "--n", 7, "--method", "none")
    assert code == 2 and err.splitlines()[-1].startswith("emointerp: ") and "sets.world.n was 6, is 7" in err


def test_the_command_line_fits_first_where_asked(short_answers, monkeypatch, capsys, tmp_path):
    """After "none" was asked, so that a wrong number is refused before the fit; with the layer that was named."""
    fitted = []
    monkeypatch.setattr("emointerp.evaluation.contest", lambda vlm, l_emo, **own: fitted.append(l_emo) or [none(), pai()])
    arguments = ["--model", random_folder(), "--out", tmp_path / "out", "--veena", "--l-emo", 1]
    code, said, err = run_cli(monkeypatch, capsys, *arguments, "--n", 2)
    assert code == 2 and "n is 2; at least 6 items" in err and not fitted
    code, said, err = run_cli(monkeypatch, capsys, *arguments, "--n", 6)
    assert code == 0, err
    assert fitted == [1] and Evaluation.load(tmp_path / "out").methods == ["none", "PAI"]


@pytest.fixture(scope="module")
def own_pairs(tmp_path_factory):
    """Pairs of two emotions in four splits, as a folder."""
    folder = tmp_path_factory.mktemp("pairs")
    some = [pair for split in ("direction", "selection", "tuning", "test") for pair in world_pairs(split, 2)]
    save_pairs(some, folder)
    return folder


def recorded(monkeypatch, found: int = 1) -> list:
    """What `contest` and `emotional_layer` are asked, in their place."""
    asked: list = []

    def contest(vlm, l_emo, **own):
        asked.append((l_emo, {role: [pair.split for pair in pairs] for role, pairs in own.items()}))
        return [none(), pai(), replace(none(), name="sees", oracle=True)]

    def layer(vlm, direction, selection):
        asked.append([None if some is None else {pair.split for pair in some} for some in (direction, selection)])
        return found

    monkeypatch.setattr("emointerp.evaluation.contest", contest)
    monkeypatch.setattr("emointerp.evaluation.emotional_layer", layer)
    return asked


def test_the_command_line_fits_on_pairs_of_ones_own(own_pairs, short_answers, monkeypatch, capsys, tmp_path):
    """Each part is handed on as its own; both sides of the test part are asked, beside four drawn sets; l_emo is found first."""
    asked = recorded(monkeypatch)
    arguments = ["--model", random_folder(), "--out", tmp_path / "out", "--veena", "--pairs", own_pairs, "--n", 6]
    code, said, err = run_cli(monkeypatch, capsys, *arguments)
    assert code == 0, err
    parts = {role: [role] * 2 for role in ("direction", "selection", "tuning")}
    assert asked == [[{"direction"}, {"selection"}], (1, parts)] and "l_emo is 1, found on the selection pairs" in said
    kept = Evaluation.load(tmp_path / "out")
    assert kept.sets == [OWN, TWINS, WORLD, CONFLICT, NEUTRALS, QUESTIONS] and kept.methods == ["none", "PAI", "sees"]
    assert kept.figure_of(OWN) == "exact" and kept.figure_of(TWINS) == "false_emotion" and len(kept.values(OWN, "none")) == 2


@mer
def test_the_command_line_asks_the_benchmark_of_what_was_fitted(own_pairs, monkeypatch, capsys, tmp_path):
    """Without methods that see labels, which are of another form there; an l_emo that is named is taken, else it is found."""
    write(tmp_path / "data", "MER2024")
    asked = recorded(monkeypatch)
    arguments = ["--benchmark", "mer-unibench", "--data", tmp_path / "data", "--veena", "--model", random_folder(), "--n", 1]
    code, said, err = run_cli(monkeypatch, capsys, *arguments, "--out", tmp_path / "a", "--pairs", own_pairs, "--l-emo", 2)
    assert code == 0, err
    assert asked[0][0] == 2 and len(asked) == 1 and "sees" not in said and "PAI" in said
    table = pd.read_csv(tmp_path / "a" / "scores.csv")
    assert table.method.unique().tolist() == ["none", "PAI"] and table.difference.notna().tolist() == [False, False, True, True]
    code, said, err = run_cli(monkeypatch, capsys, *arguments, "--out", tmp_path / "b")  # the drawn world's pairs
    assert code == 0 and asked[1:] == [[None, None], (1, {})], err


def test_only_the_bundled_models_l_emo_is_known(monkeypatch, capsys):
    asked = recorded(monkeypatch, found=5)
    assert [m.name for m in cli._fitted("a model", None, None, known=True, oracles=False)] == ["none", "PAI"]
    assert [m.name for m in cli._fitted("a model", None, None, known=False, oracles=True)][-1] == "sees"
    assert asked == [(3, {}), [None, None], (5, {})] and "l_emo is 3.\n" in capsys.readouterr().out


def test_the_standard_methods_need_no_fitting():
    names = [method.name for method in standard()]
    assert names[0] == "none" and len(names) > 1 and len(set(names)) == len(names)
    assert [method.name for method in standard([names[-1]])] == ["none", names[-1]]
    assert not any(method.oracle for method in standard())
    with pytest.raises(InputError, match="There is no method 'magic' that needs no fitting; there are none, "):
        standard(["magic"])


@mer
def test_mer_unibench_is_asked_and_scored_set_by_set(tmp_path, monkeypatch):
    for name in ("MER2023", "CMU-MOSI", "OV-MERD+"):
        write(tmp_path / "data", name)
    asked = []

    def answers(vlm, some, decoding):
        asked.extend(some)
        return [{"happy": GLAD, "worried": ANGRY, "1.5": GLAD, "-2.0": ANGRY}.get(item.gold, "I was happy.") for item in some]

    methods = [Method("none", answers, SAID), Method("angry", lambda vlm, some, decoding: [ANGRY] * len(some), SAID)]
    table = run_mer_unibench(tiny(), methods, tmp_path / "data", tmp_path / "out", progress=False)
    assert table.method.tolist() == ["none"] * 4 + ["angry"] * 4
    assert table.set.tolist()[:4] == ["MER2023", "CMU-MOSI", "OV-MERD+", "mean of 3 of 9 sets"]
    found = table.set_index(["method", "set"]).percent
    assert found["none", "MER2023"] == 50.0 and found["none", "CMU-MOSI"] == 100.0  # glad is happy, angry is not worried
    # gold positive and negative, both called negative: F1 of the negative 2/3, of the positive 0, half the rows each
    assert found["angry", "CMU-MOSI"] == pytest.approx(100 / 3) and found["angry", "MER2023"] == 0.0
    assert found["angry", "mean of 3 of 9 sets"] == pytest.approx(found["angry"].iloc[:3].mean())
    assert asked[0].text in ('I said: "None of them, \u201cfine\u201d"', "I said nothing.")
    assert {item.text for item in asked} == {'I said: "None of them, \u201cfine\u201d"', "I said nothing."}
    assert "MER2023" in write_table(table, tmp_path / "out")
    read_back = pd.read_csv(tmp_path / "out" / "scores.csv", na_filter=True).assign(metric=table.metric)  # "" of the mean's
    pd.testing.assert_frame_equal(read_back, table, check_dtype=False)
    clips = pd.read_csv(tmp_path / "out" / "clips.csv").set_index(["method", "set", "clip"])
    assert clips.loc[("none", "MER2023", "a"), ["gold", "answer", "score"]].tolist() == ["happy", GLAD, 1.0]
    assert clips.score.groupby(level=["method", "set"]).mean()["angry", "MER2023"] == 0.0 and len(clips) == 2 * (2 + 2 + 2)
    gains = table.set_index(["method", "set"]).loc["angry"]
    assert gains.difference["CMU-MOSI"] == pytest.approx(100 / 3 - 100) and gains.low["MER2023"] <= 0 <= gains.high["MER2023"]
    with pytest.raises(InputError, match="Among the methods angry is no 'none', which all are compared with; add it"):
        run_mer_unibench(tiny(), methods[1:], tmp_path / "data", tmp_path / "out", progress=False)

    def always_joy(text, wheels):
        return ["joy"]

    asked.clear()
    again = run_mer_unibench(tiny(), methods, tmp_path / "data", tmp_path / "out", extractor=always_joy, progress=False)
    again = again.set_index(["method", "set"])  # kept answers, scored anew
    assert not asked and again.percent["angry", "MER2023"] == 50.0 and again.n_words["angry", "OV-MERD+"] == 1


@mer
def test_mer_unibench_is_asked_in_batches_for_answers_of_the_length_that_was_named(tmp_path):
    """The two clips come as the first item, which warms up, and then one at a time; or both together, at the lengths of before."""
    write(tmp_path / "data", "MER2023")
    asked = []

    def answers(vlm, some, decoding):
        asked.append((len(some), decoding.max_new_tokens))
        return [GLAD] * len(some)

    method = Method("none", answers, SAID)
    run = {"vlm": tiny(), "methods": [method], "data": tmp_path / "data", "progress": False}
    run_mer_unibench(**run, folder=tmp_path / "one", max_new_tokens=7, batch=1)
    assert asked == [(1, 2), (1, 7), (1, 7)]
    asked.clear()
    run_mer_unibench(**run, folder=tmp_path / "all")
    assert asked == [(1, 2), (2, 64)]
    with pytest.raises(InputError, match="decoding.max_new_tokens was 7, is 8"):
        run_mer_unibench(**run, folder=tmp_path / "one", max_new_tokens=8, batch=1)


@mer
def test_mer_unibench_in_a_folder_that_is_in_use_draws_no_frame(tmp_path, monkeypatch):
    write(tmp_path / "data", "MER2023")
    monkeypatch.setattr("emointerp.evaluation.benchmarks._item", pytest.fail)
    with alone(tmp_path / "out"), pytest.raises(OutputError, match="Another run is at work in .*out"):
        run_mer_unibench(tiny(), [canned("none")], tmp_path / "data", tmp_path / "out", progress=False)


@mer
def test_frames_of_clips_are_drawn_once_and_kept(tmp_path, monkeypatch):
    own = write(tmp_path / "data", "MER2023", clips=[])
    for clip in "ab":
        (own / "video" / clip).mkdir()
        for i in range(6):
            Image.new("RGB", (16, 12), (40 * i, 90, 10 * ord(clip) % 256)).save(own / "video" / clip / f"{i}.png")
    seen = []
    method = Method("none", lambda vlm, some, decoding: [seen.append(item.picture) or GLAD for item in some], SAID)
    run = {"vlm": tiny(), "methods": [method], "data": tmp_path / "data", "folder": tmp_path / "out", "progress": False}
    run_mer_unibench(**run, seed=3)
    kept = {path.stem: path for path in seen}
    assert {path.parent for path in seen} == {tmp_path / "out" / "frames" / "seed-3" / "MER2023"}
    for clip in "ab":
        drawn = np.asarray(frame(own / "video" / clip, 3, clip), float)
        assert np.abs(np.asarray(to_image(kept[clip]), float) - drawn).max() <= 3  # JPEG
    monkeypatch.setattr(benchmarks_module.Row, "picture", lambda *_: pytest.fail("a frame was drawn again"))
    run_mer_unibench(**run, seed=3)


@mer
def test_the_command_line_runs_mer_unibench(monkeypatch, capsys, tmp_path):
    write(tmp_path / "data", "MER2024")
    arguments = ["--benchmark", "mer-unibench", "--data", tmp_path / "data", "--model", random_folder(), "--out", tmp_path / "out"]
    code, said, err = run_cli(monkeypatch, capsys, *arguments, "--method", "none", "--n", 2)
    assert code == 0, err
    assert "MER2024" in said and "hit rate" in said and "mean of 1 of 9 sets" in said and "bootstrap intervals over clips" in said
    assert (tmp_path / "out" / "scores.csv").is_file()


BAD = {
    "no data": (["--benchmark", "mer-unibench"], "--data goes with --benchmark mer-unibench, and is needed there"),
    "data of the world": (["--data", "."], "the world brings its own items"),
    "no sets": (["--benchmark", "mer-unibench", "--data", "."], "holds no set of MER-UniBench"),
    "seeds": (["--benchmark", "mer-unibench", "--data", ".", "--seeds", "1", "--seeds", "2"], "takes one seed"),
    "greedy seeds": (["--model", "MODEL", "--n", "6", "--seeds", "1", "--seeds", "2"], "At temperature 0 every seed"),
    "fitted and named": (["--veena", "--method", "vaf"], "--veena fits its methods and asks all of them: give it without --method"),
    "l_emo alone": (["--l-emo", "3"], "--l-emo goes with --veena"),
    "pairs alone": (["--pairs", "pairs"], "--pairs goes with --veena"),
    "no pairs": (["--veena", "--pairs", "gone"], "No table of pairs at gone; expected a CSV file with the columns emotional"),
    "ranked with pairs": (["--benchmark", "emotic", "--data", ".", "--pairs", "x"], "by a tower in float32: --pairs cannot be"),
    "method": (["--method", "magic"], "There is no method 'magic' that needs no fitting"),
    "number": (["--model", "MODEL", "--n", "0"], "n is 0; at least 6 items"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_line_and_an_exit_code(case, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[case]
    arguments = [random_folder() if a == "MODEL" else a for a in arguments]
    capsys.readouterr()  # what making that folder said
    code, _, err = run_cli(monkeypatch, capsys, *arguments)
    said = [line for line in err.splitlines() if line and "Loading weights" not in line]
    assert code == 2 and len(said) == 1 and said[0].startswith("emointerp: ") and words in said[0]
    assert not list(tmp_path.iterdir())


def test_kept_answers_are_not_those_of_another_instruction_or_of_a_method_that_says_nothing(tmp_path):
    evaluate(tiny(), [canned("none")], sets(), folder=tmp_path / "kept", **QUIET)
    with pytest.raises(InputError, match="holds a run with other settings: .*instruction"):
        evaluate(replace(tiny(), instruction="Name a thing."), [canned("none")], sets(), folder=tmp_path / "kept", **QUIET)
    silent = per_prompt("mine", lambda vlm, prompts: [[] for _ in prompts])
    with pytest.raises(InputError, match="The method 'mine' does not say what it is made of.* Give it settings: Method"):
        evaluate(tiny(), [canned("none"), silent], sets(), folder=tmp_path / "other", **QUIET)
