"""The main job from the outside: what it writes, and the words and exit codes of what it refuses."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from PIL import Image
from tiny_models import picture, random_vlm  # noqa: F401 - a fixture

from emointerp.circuit import Circuit, Neuron
from emointerp.cli import main
from emointerp.emotions import named, score
from emointerp.errors import EmointerpError, InputError, ModelError, OutputError
from emointerp.evaluation import Evaluation, conflict_pairs, random_like, world_items
from emointerp.evaluation.items import CONFLICT, NEUTRALS
from emointerp.evaluation.methods import LOOK
from emointerp.heads.visual import attention_on
from emointerp.lens import Emergence, emotion_tokens
from emointerp.models import VLM, expect, load
from emointerp.models.budget import GPUS, USABLE
from emointerp.neurons import Neurons
from emointerp.pairs import twin_prompts, world_pairs
from emointerp.start_here import EVENT, Reading, Scores, Telling
from emointerp.statistics import Interval, with_controls
from emointerp.steering import steering_vectors
from emointerp.tour import CHAPTERS, FULL, QUICK, Chapter, Job, Sizes, heads, lens, run, start_here, steering, veena
from emointerp.tour.page import plain
from emointerp.tour.report import QUESTIONS, _chapters, _json, _planned, _too_long
from emointerp.tour.sizes import BATCH, LIMIT, TOKENS, Pace, seconds, stories_together
from emointerp.tracing import AddVector, ScaleAttention, ScaleNeurons, SetHead, SetResidual, generate, perplexity
from emointerp.veena import Veena, fit
from emointerp.world import sample

SMALL = {"direction": 24, "selection": 6, "tuning": 12, "test": 6, "layers": 12, "draws": 2}
FEW = {"selection": 24, "test": 6, "sets": 20, "neurons": 5}
ASKED = {CONFLICT: 12, NEUTRALS: 6}
SIZES = Sizes(
    "small",
    start_here={"test": 21, "conflict": 18},
    superposition={"direction": 60, "test": 30},
    sae={"direction": 98, "selection": 49, "test": 70},
    saliency={"pictures": 4, "copies": 2, "steps": 2, "draws": 1},
    lens={"pictures": 12, "pairs": 3},
    steering=SMALL,
    heads=FEW,
    veena={"tuning": 12, "conflict": 12, "neutrals": 6, "draws": 2},
)


@pytest.fixture(scope="session")
def small_veena():
    """The chapter on VEENA with fewer strengths, and every test story on the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(veena, "SHOWN", ASKED[CONFLICT])
        patch.setattr(veena, "BETAS", (1, 16))
        patch.setattr(veena, "GAMMAS", (1, 1.5))
        yield


def job(name, image, found=(), **sizes):
    """One picture, and sizes other than the small ones."""
    return Job(((name, image),), EVENT, dict(found), replace(SIZES, **{k: getattr(SIZES, k) | v for k, v in sizes.items()}))


@pytest.fixture(scope="session")
def report(tmp_path_factory, small_veena):
    """One tour for several tests: a drawn picture from a file, a photograph, and a name that needs escaping."""
    from skimage import data

    folder = tmp_path_factory.mktemp("tour")
    photo, drawn = folder / "astronaut.png", folder / "<script>alert(1)</script>.png".replace("/", "_")
    Image.fromarray(data.astronaut()).save(photo)
    sample("test", 1, emotions=("joy",))[0].scene.image().save(drawn)
    page = run(
        [photo, drawn, sample("test", 1, emotions=("fear",))[0].scene],
        event="I found a <b>letter</b> on the table.",
        out=folder / "out",
        size=SIZES,
    )
    return page, json.loads((page.parent / "results.json").read_text())


def test_report_is_one_offline_page(report):
    page, _ = report
    html = page.read_text()
    assert sorted(p.name for p in page.parent.iterdir()) == ["index.html", "results.json"]
    assert "http:" not in html and "https:" not in html
    assert html.count("data:image/png;base64,") >= 5
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "<b>letter</b>" not in html and "&lt;b&gt;letter" in html


def test_report_is_unsure_of_a_photograph_and_not_of_its_own_world(report):
    page, results = report
    photo, drawn, scene = results["start_here"]["pictures"]
    assert photo["percentile"] > 95 and photo["times the typical distance"] > 1.2
    assert drawn["percentile"] < 95 and scene["percentile"] < 95
    assert "Unsure: astronaut.png lies far" in page.read_text()


def test_report_reads_the_pictures_layer_by_layer(report):
    _, results = report
    lens = results["lens"]
    assert list(lens["pictures"]) == [p["picture"] for p in results["start_here"]["pictures"]]
    assert [row["layer"] for row in lens["pictures"]["astronaut.png"]["layers"]] == list(range(8))
    last = lens["test split"]["7"]
    assert last["pictured"]["n"] == 12 and last["pictured"]["low"] > lens["test split"]["0"]["pictured"]["high"]
    assert last["pictured"]["low"] > last["twin"]["high"]


def test_report_pushes_the_stories_of_the_pictures(report):
    """Layer and strengths are the report's; the direction and the story are made anew, the story by plain hooks."""
    page, results = report
    steered, vlm = results["steering"], load()
    assert list(steered["pictures"]) == [p["picture"] for p in results["start_here"]["pictures"]]
    assert steered["layer"] == max(range(8), key=lambda i: steered["layers"][str(i)])
    S = steering_vectors(vlm, world_pairs("direction", SMALL["direction"]), answer="I felt", progress=False).sharpened(2)
    scene, told = sample("test", 1, emotions=("fear",))[0].scene, list(steered["pictures"].values())[2]
    prompt = vlm.prompt(scene, "I found a <b>letter</b> on the table.")
    assert {e for e, alpha in steered["alphas"].items() if alpha} == set(told["pushed"]) != set()
    layer, alphas, named_before = steered["layer"], steered["alphas"], named(told["story"])
    for emotion, pushed in list(told["pushed"].items())[:2]:
        vector = alphas[emotion] * S[emotion, layer] - sum(alphas[o] * S[o, layer] for o in named_before if o != emotion)
        ids = oracle.tokens(vlm, prompt, [AddVector(layer, vector)], n=steering.TOKENS)
        assert pushed["story"] == vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert pushed["names"] == list(named(pushed["story"]))
        both = perplexity(vlm, prompt, [pushed["story"], told["story"]])
        assert pushed["times the perplexity"] == pytest.approx(both[0] / both[1], rel=1e-2)
    assert "pushed towards" in page.read_text()


def test_report_tests_the_push_beside_controls(report):
    page, results = report
    test, html = results["steering"]["test split"], page.read_text()
    assert test["clean"]["n"] == SMALL["test"] and list(test["controls"]) == list(steering.CONTROLS)
    gain = test["clean"]["mean"] - test["clean without a push"]["mean"]
    gap = test["clean goal"]["mean"] - test["clean without a push"]["mean"]
    assert test["plain"]["mean"] == pytest.approx(gain, abs=1e-3) and test["C"]["mean"] == pytest.approx(gain / gap, abs=1e-3)
    for name, control in test["controls"].items():
        assert control["less"]["mean"] == pytest.approx(gain - control["value"]["mean"], abs=1e-3)
        assert f"{name} {control['value']['mean']:.0%} [" in html
    assert set(test["names"]) == set(test["towards"]) == {e for e, alpha in results["steering"]["alphas"].items() if alpha}


def test_steering_of_a_model_whose_stories_name_nothing(random_vlm):  # noqa: F811
    chapter = steering.chapter(random_vlm, job("noise", picture()))
    assert "no story of its pictures names it" in chapter.summary[0]
    assert chapter.results["directions"]["tau"] == -1 and sum(chapter.results["directions"]["pairs"].values()) == 24
    json.loads(_json(plain(chapter.results)), parse_constant=refuse)


def test_where_no_push_helps_the_chapter_says_so_and_ends(monkeypatch):
    monkeypatch.setattr(steering, "ALPHAS", {"selection": (0.0,), "tuning": (0.0,)})
    chapter = steering.chapter(load(), job("noise", picture()))
    assert chapter.summary[-1].endswith("there is nothing to test, and the pictures' stories were left alone.")
    assert chapter.results["layer"] is None and "test split" not in chapter.results and len(chapter.blocks) == 1


@pytest.mark.parametrize(
    ("effect", "drawn", "words"),
    [
        (1, (0, 0), "No drawn direction gains as much"),
        (1, (1, 0), "not clearly above random (1 of 2 draws gain as much)"),
        (0, (0, 0), "This gain could be chance"),
    ],
)
def test_what_the_controls_leave_of_a_gain(effect, drawn, words):
    table = with_controls(np.full(20, effect), {"random": [np.full(20, x) for x in drawn]})
    assert words in steering._verdict(table)


def masses(vlm):
    """Log probability of an emotion's words, next after a prompt, by plain hooks: a function of prompt, emotion and edits."""
    table = emotion_tokens(vlm)

    def log_mass(prompt, emotion, edits=()):
        ids = table.id[table.emotion == emotion].tolist()
        return float(oracle.logits(vlm, prompt, edits).log_softmax(-1)[ids].logsumexp(-1))

    return log_mass


def place(name):
    """A head by its name in the report."""
    return tuple(map(int, name.split(".")))


def test_report_finds_heads_and_tests_them_on_other_pictures(report):
    """The heads are the report's; what they do on the test split is done anew by plain hooks."""
    page, results = report
    told, vlm, html = results["heads"], load(), page.read_text()
    assert len(told["map"]) == 64 and len(told["heads"]) == heads.MOST and set(told["heads"]) <= set(told["passed"])
    effects = [told["map"][name]["effect"]["mean"] for name in told["heads"]]
    assert effects == sorted(effects, reverse=True) and min(effects) > 0
    assert all(told["map"][name]["corrected"] <= 0.05 for name in told["passed"])
    log_mass, gained, gaps, names = masses(vlm), [], [], told["heads"][:2]
    for pair in world_pairs("test", FEW["test"]):
        emotional, neutral = twin_prompts(vlm, pair, "I felt")
        kept = oracle.caches(vlm, emotional)
        last = {layer: kept["heads", layer][-1].unflatten(-1, (vlm.anatomy.n_heads, -1)) for layer in range(vlm.anatomy.n_layers)}
        put = [SetHead(layer, head, last[layer][head]) for layer, head in map(place, told["heads"])]
        own = log_mass(neutral, pair.emotion)
        gaps.append(log_mass(emotional, pair.emotion) - own)
        gained.append([log_mass(neutral, pair.emotion, edits) - own for edits in (put, put[:1], put[1:2])])
    expected = np.mean(gained, 0) / np.mean(gaps)
    test = told["test split"]
    assert test["together"]["restoration"]["effect"]["mean"] == pytest.approx(expected[0], abs=2e-4)
    assert [test["alone"][name]["effect"]["mean"] for name in names] == pytest.approx(expected[1:].tolist(), abs=2e-4)
    assert test["together"]["restoration"]["sets"] == 20 and "20 sets cannot put p below 0.048; notebook 06 draws 100" in html
    assert "Enough: put together into the neutral twins&#39; runs they close" in html and "Not needed: without them" in html


def test_report_looks_where_the_heads_look(report):
    """Attention of a plain eager forward."""
    page, results = report
    told, vlm = results["heads"]["pictures"], load(attn_implementation="eager")
    assert list(told) == [p["picture"] for p in results["start_here"]["pictures"]]
    scene = sample("test", 1, emotions=("fear",))[0].scene
    prompt = vlm.prompt(scene, "I found a <b>letter</b> on the table.", answer="I felt")
    with torch.no_grad():
        attention = vlm.model(**prompt.inputs, use_cache=False, output_attentions=True).attentions
    shown = list(told.values())[2]
    assert list(shown["on the picture"]) == results["heads"]["heads"]
    for name, on in shown["on the picture"].items():
        layer, head = place(name)
        assert on == pytest.approx(float(attention[layer][0, head, -1, list(prompt.visual)].sum()), abs=1e-3)
    assert shown["even"] == pytest.approx(64 / len(prompt), abs=1e-4)
    assert f"would have {shown['even']:.0%} there" in page.read_text()


def test_report_says_what_neurons_write_beside_random_ones(report):
    page, results = report
    told, vlm = results["heads"]["neurons"], load()
    best = told["strongest"][0]
    assert len(told["strongest"]) == 5 and told["name"]["n"] == 5 and 0 < told["random ones"] < 0.5
    vector = vlm.model.get_submodule(f"{vlm.anatomy.layers}.{best['layer']}.mlp.down_proj").weight[:, best["neuron"]]
    with torch.no_grad():
        likely = [vlm.model.lm_head(vlm.model.model.language_model.norm(sign * vector)).argmax() for sign in (1, -1)]
    assert best["words"].split(" (")[0].strip() in [vlm.tokenizer.decode([i]).strip() for i in likely]
    assert f"{told['random ones']:.0%} of random neurons of the same layers do" in page.read_text()


def test_where_pictures_make_no_sure_difference_no_heads_are_tested(random_vlm):  # noqa: F811
    chapter = heads.chapter(random_vlm, job("noise", picture()))
    assert "no sure difference that heads could bring over, and none were tested" in chapter.summary[0]
    assert chapter.results["heads"] == [] and [title for title, _ in chapter.blocks] == ["noise"]
    on = attention_on(random_vlm, random_vlm.prompt(picture(), EVENT, answer="I felt")).sum(-1)
    shown = chapter.results["pictures"]["noise"]["on the picture"]
    assert list(shown.values()) == pytest.approx(sorted(on.flatten(), reverse=True)[: heads.MOST])
    assert all(on[place(name)] == share for name, share in shown.items())
    json.loads(_json(plain(chapter.results)), parse_constant=refuse)


def test_where_no_head_passes_the_chapter_says_so_and_ends(monkeypatch):
    monkeypatch.setattr(heads, "ALPHA", 0.0)
    chapter = heads.chapter(load(), job("noise", picture()))
    assert "None of 64 heads, put alone" in chapter.summary[0] and "no set to check" in chapter.summary[0]
    assert len(chapter.blocks) == 2 and "test split" not in chapter.results and len(chapter.results["map"]) == 64


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ([(0.8, 0.6, 0.9, 0.01)], "Enough"),
        ([(0.8, 0.6, 0.9, 0.2)], "No more enough than random heads of these layers"),
        ([(0.3, 0.2, 0.4, 0.01)], "Not enough"),
        ([(0.6, 0.4, 0.8, 0.01)], "Not surely enough"),
        ([(0.8, 0.6, 0.9, 0.01), (0.2, 0.1, 0.3, 0.01)], "Not surely enough"),
    ],
)
def test_what_effects_and_random_sets_say_of_a_set(effects, words):
    rows = [pd.Series({"effect": Interval(*effect, 9), "p": p}) for *effect, p in effects]
    assert heads._verdict("enough", rows) == words


def test_a_set_of_heads_leaves_others_of_its_layers_for_random_sets():
    passed = pd.MultiIndex.from_tuples([(2, 1), (2, 0), (2, 3), (0, 2), (1, 0)], names=["layer", "head"])
    assert heads._with_room(passed, 4) == [(2, 1), (2, 0), (0, 2), (1, 0)]


def test_where_weights_cannot_be_read_neurons_are_left_out(random_vlm, monkeypatch):  # noqa: F811
    def refused(*_, **__):
        raise InputError("Quantised weights cannot be read as vectors; load the model without `bits`.")

    monkeypatch.setattr(heads, "state_neurons", refused)
    neurons = heads._neurons(random_vlm, [], [], 5)
    assert heads._neuron_line(neurons).startswith("Neurons were left out. Quantised weights cannot be read")
    assert heads._neuron_blocks(neurons) == [] and set(heads._neuron_results(neurons)) == {"left out"}


def amplified(told):
    """The report's VEENA, made anew of its numbers."""
    heads_and_neurons = {name: [place(at) for at in places] for name, places in told["circuit"].items()}
    chosen = told["tuning"]["chosen"]
    return Veena(**heads_and_neurons, beta=chosen["beta"], gamma=chosen["gamma"], l_emo=told["l_emo"])


def edits_of(value):
    """As the method's definition has them, a head and a neuron each."""
    edits = [ScaleAttention(layer, value.beta, ("query",), "visual", [head]) for layer, head in value.upstream]
    edits += [ScaleAttention(layer, value.beta, ("last", "answer"), "visual", [head]) for layer, head in value.downstream]
    return edits + [ScaleNeurons(layer, [neuron], value.gamma) for layer, neuron in value.neurons]


def test_report_amplifies_what_was_found_at_the_best_strength(report):
    _, results = report
    told, found = results["veena"], results["heads"]
    assert told["l_emo"] == results["steering"]["layer"]
    assert sorted(told["circuit"]["upstream"] + told["circuit"]["downstream"]) == sorted(found["heads"])
    assert all(place(at)[0] <= told["l_emo"] for at in told["circuit"]["upstream"])
    assert all(place(at)[0] > told["l_emo"] for at in told["circuit"]["downstream"])
    strongest = {f"{row['layer']}.{row['neuron']}": row for row in found["neurons"]["strongest"]}
    assert set(told["circuit"]["neurons"]) <= {at for at, row in strongest.items() if row["names"]}
    tried = [row for row in told["tuning"]["tried"] if row["allowed"]]
    best = max(tried, key=lambda row: (row["exact"]["mean"], -row["beta"], -row["gamma"]))
    assert told["tuning"]["chosen"] == {"beta": best["beta"], "gamma": best["gamma"]}
    pairs, vlm = conflict_pairs(load(), 12), load()
    stories = vlm.generate([vlm.prompt(*pair.plus) for pair in pairs])
    own = next(row for row in told["tuning"]["tried"] if row["beta"] == row["gamma"] == 1)
    assert own["exact"]["mean"] == pytest.approx(score(stories, [pair.emotion for pair in pairs]).exact.mean(), abs=1e-4)


def test_report_tells_stories_before_and_after(report):
    """By plain hooks; the stories before are those of the first chapter."""
    page, results = report
    told, vlm = results["veena"], load()
    edits, scene = edits_of(amplified(told)), sample("test", 1, emotions=("fear",))[0].scene
    assert list(told["pictures"]) == [p["picture"] for p in results["start_here"]["pictures"]]
    assert [p["before"] for p in told["pictures"].values()] == [p["story"] for p in results["start_here"]["pictures"]]
    item = world_items(vlm, CONFLICT, ASKED[CONFLICT])[0]
    event = "I found a <b>letter</b> on the table."
    cases = [(vlm.prompt(scene, event), list(told["pictures"].values())[2])]
    cases += [(item.prompt(vlm), list(told["test split"]["stories"].values())[0])]
    for prompt, case in cases:
        for when, some in (("before", ()), ("after", edits)):
            ids = oracle.tokens(vlm, prompt, some, n=64)
            assert case[when] == vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert f"beside “{item.text}”, which suggests {item.suggested}" in page.read_text()


def test_report_measures_the_cure_beside_controls(report):
    """All answers asked anew, method by method, and scored."""
    page, results = report
    told, vlm, html = results["veena"]["test split"], load(), page.read_text()
    value, asked = amplified(results["veena"]), {}
    lists = {"none": [()], "VEENA": [edits_of(value)]}
    lists[veena.RANDOM] = [edits_of(random_like(vlm, value, seed)) for seed in range(SIZES.veena["draws"])]
    for name, column in ((CONFLICT, "exact"), (NEUTRALS, "false_emotion")):
        items = world_items(vlm, name, ASKED[name])
        prompts, golds = [item.prompt(vlm) for item in items], [item.gold for item in items]

        def rate(prompts, edits=(), golds=golds, column=column):
            stories = generate(vlm, prompts, edits)
            return score(stories, golds)[column].to_numpy(float)

        asked[name] = {method: np.mean([rate(prompts, some) for some in several], 0) for method, several in lists.items()}
        asked[name]["emotion prompt"] = rate([item.prompt(vlm, f"{LOOK} {vlm.instruction}") for item in items])
    assert set(asked[CONFLICT]) | {veena.VEE} >= set(told["methods"]) >= set(asked[CONFLICT])
    for method, exact in asked[CONFLICT].items():
        row, false = told["methods"][method], asked[NEUTRALS][method]
        assert row["exact"]["mean"] == pytest.approx(exact.mean(), abs=1e-4) and row["exact"]["n"] == ASKED[CONFLICT]
        assert row["false emotions"]["mean"] == pytest.approx(false.mean(), abs=1e-4)
        if method != "none":
            gain, rise = exact - asked[CONFLICT]["none"], false - asked[NEUTRALS]["none"]
            assert row["exact, more than none"]["mean"] == pytest.approx(gain.mean(), abs=1e-4)
            assert row["false, more than none"]["mean"] == pytest.approx(rise.mean(), abs=1e-4)
            assert f"{gain.mean() * 100:+.0f}".replace("-", "\N{MINUS SIGN}").replace("+0", "0") + " [" in html
    wishes = {wish: row["met"] for wish, row in told["goal"].items()}
    gain = np.mean(asked[CONFLICT]["VEENA"] - asked[CONFLICT]["none"])
    assert wishes["conflict: exact rate, at least 10 points over none"] == ("yes" if gain >= 0.1 else "no")
    assert wishes["questions: right, at most 1 point down"] == "not measured" and len(wishes) == 4


def test_the_mean_of_the_draws_is_one_method():
    """Two draws, by hand: right in one of two and in both of two, beside a method that is never right."""
    rows = [("none", 0, 0), ("none", 1, 0), ("VEENA", 0, 1), ("VEENA", 1, 0)]
    rows += [(f"{veena.RANDOM}, draw {i}", item, right) for i, item, right in ((1, 0, 1), (1, 1, 0), (2, 0, 1), (2, 1, 1))]
    table = pd.DataFrame(rows, columns=["method", "item", "exact"]).assign(set=CONFLICT, gold="joy", right=np.nan)
    tested = veena._Tested({}, Evaluation(table, {}))
    assert list(tested.methods) == ["none", "VEENA", veena.RANDOM]
    assert tested.values(CONFLICT, veena.RANDOM).tolist() == [1.0, 0.5]
    assert tested.more(CONFLICT, "VEENA", veena.RANDOM).mean == -0.25 and tested.rate(CONFLICT, "VEENA").mean == 0.5


def test_where_nothing_was_found_there_is_nothing_to_mend_with(random_vlm):  # noqa: F811
    for found in ({}, {"heads": None, "steering": 1}):
        chapter = veena.chapter(random_vlm, job("noise", picture(), found))
        assert "found no heads that bring a feeling over from the picture" in chapter.summary[0] and len(chapter.summary) == 1
        assert chapter.blocks == () and chapter.results["circuit"] is None and chapter.state == "left out"


def small_circuit(vlm, neurons=True):
    """Two heads and a neuron, whatever they do."""
    some = [Neuron(2, 7, 0.2, 0.01, "fear")] if neurons else []
    return Circuit.of(vlm, [(1, 2, 0.5, 0.01), (3, 1, 0.4, 0.02)], some, pairs=world_pairs("selection", 2), metric="log mass")


def strengthened(*arguments, **options):
    """`fit`, and a strength whatever it found."""
    fitted = fit(*arguments, **options)
    table = fitted.table.assign(chosen=fitted.table.index == fitted.table.index[-1])
    best = table.iloc[-1]
    return replace(fitted, table=table, veena=replace(fitted.veena, beta=best.beta, beta_decode=best.beta, gamma=best.gamma))


@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_random_models_of_all_families_gain_nothing_and_it_is_said(family, small_veena, monkeypatch):
    monkeypatch.setattr(veena, "TOKENS", 6)
    monkeypatch.setattr(veena.veena, "fit", strengthened)
    vlm = tiny_families.vlm(family)
    found = {"heads": small_circuit(vlm), "steering": None}
    few = {"tuning": 2, "conflict": 4, "neutrals": 2}
    chapter = veena.chapter(vlm, replace(job("<noise>", picture(), found, veena=few), states={"steering": "ran"}))
    assert "halfway, as no push of the chapter on steering helped" in chapter.summary[0] and chapter.results["l_emo"] == 2
    assert "β = 16, γ = 1.5." in chapter.summary[1] and len(chapter.summary) == 7
    assert chapter.results["test split"]["methods"]["VEENA"]["exact, more than none"] == Interval(0.0, -0.75, 0.75, 4)
    assert "0 [\N{MINUS SIGN}75, +75] points. This could be chance, so no gain is shown." in chapter.summary[2]
    assert "not reached, as “conflict: exact rate, at least 10 points over none” is missed" in chapter.summary[5]
    told, prompt = chapter.results["pictures"]["<noise>"], vlm.prompt(picture(), EVENT)
    edits = edits_of(Veena(upstream=[(1, 2)], downstream=[(3, 1)], neurons=[(2, 7)], beta=16.0, gamma=1.5))
    expected = [generate(vlm, prompt, some, max_new_tokens=6) for some in ((), edits)]
    assert [told["before"], told["after"]] == expected
    assert "&lt;noise&gt;" in chapter.blocks[-1][1] and "<noise>" not in chapter.blocks[-1][1]
    json.loads(_json(plain(chapter.results)), parse_constant=refuse)


def test_where_no_strength_helps_the_chapter_says_so_and_ends(small_veena):
    vlm = tiny_families.vlm("llava_clip")
    found = {"heads": small_circuit(vlm), "steering": 1}
    chapter = veena.chapter(vlm, job("noise", picture(), found, veena={"tuning": 2}))
    assert "up to layer 1 (where a push works best)" in chapter.summary[0] and len(chapter.blocks) == 1
    assert chapter.summary[-1].startswith("None of 3 strengths gave more right stories on the 2 tuning pairs within the limits")
    assert chapter.summary[-1].endswith("nothing to test, and the pictures' stories were left alone.")
    assert chapter.results["tuning"]["chosen"] == {"beta": 1.0, "gamma": 1.0} and "test split" not in chapter.results


def test_without_neurons_only_heads_are_amplified(random_vlm, small_veena):  # noqa: F811
    circuit = Circuit.of(random_vlm, [(1, 2, 0.5), (2, 1, 0.4)], pairs=world_pairs("selection", 2), metric="log mass")
    fitted = veena._fitted(random_vlm, circuit, 1, 2, BATCH)
    assert sorted(set(fitted.table.gamma)) == [1.0] and sorted(set(fitted.table.beta)) == [1.0, 16.0]
    assert "ENA has none to amplify" in veena._found_line(fitted.veena, "halfway")
    value = replace(fitted.veena, beta=16.0, beta_decode=16.0)
    both = replace(value, neurons=[(1, 2)], gamma=1.5)
    assert "VEENA is VEE alone here" in veena._half(value) and "is ENA alone" in veena._half(both.only("ena"))
    assert veena._half(both) == ""
    asked = [[method.name for method in veena._methods(random_vlm, some, 2)] for some in (value, both.only("ena"), both)]
    assert [names.count(veena.VEE) for names in asked] == [0, 0, 1]


def test_stories_in_the_table_are_escaped():
    told = [Telling(Image.fromarray(picture()), "<i>now</i>", story, None) for story in ("<script>a</script>", "")]
    html = veena._stories([veena._Case("<b>", *told)])
    assert "<script" not in html and "&lt;script&gt;" in html and "<b>" not in html and "nothing was said" in html
    assert "<i>now" not in veena._stories([veena._Case("a", *told, note="<i>now</i>")])


@pytest.mark.parametrize(("shows", "right"), [("joy", True), ("fear", False), (None, False)])
def test_right_stories_are_marked(shows, right):
    html = veena._story(Telling(Image.fromarray(picture()), EVENT, "I felt glad.", shows))
    assert "names joy" in html and ("names joy: <b>right</b>" in html) is right


@pytest.mark.parametrize(
    ("gain", "words"),
    [((0.2, 0.1, 0.3), "mends some of them"), ((0.1, 0.0, 0.2), "could be chance"), ((-0.2, -0.3, -0.1), "does harm")],
)
def test_what_a_gain_says(gain, words):
    assert words in veena._verdict(Interval(*gain, 9))


def test_goals_that_were_missed_are_named():
    rows = {
        "one": ("yes", Interval(0.2, 0.1, 0.4, 9)),
        "two": ("no", Interval(0.05, -0.002, 0.1, 9)),
        "three": ("not measured", np.nan),
    }
    goal = pd.DataFrame.from_dict(rows, orient="index", columns=["met", "difference"])
    assert "It is not reached, as “two” is missed (+5 [0, +10] points)." in veena._goal_line(goal)
    assert "reach about 15 points to either side" in veena._goal_line(goal)
    assert "It is reached as far as it is measured here, by the means." in veena._goal_line(goal.drop("two"))


def test_neurons_are_passed_on_by_what_the_selection_split_says(random_vlm):  # noqa: F811
    """What the test split confirmed (`exact`) chooses nothing."""
    rows = [("fear", 0.01, 0.5), ("", 0.01, 0.5), ("fear", 0.2, 0.5), ("joy", 0.01, -0.5), ("joy", 0.05, 0.1)]
    table = pd.DataFrame(rows, columns=["names", "p", "score"]).assign(layer=1, neuron=range(5), p_exact=1.0)
    table["score"] = [Interval(x, x, x, 9) for x in table.score]
    frame = pd.DataFrame({"effect": [Interval(0.3, 0.2, 0.4, 9)], "corrected": 0.01}, pd.MultiIndex.from_tuples([(2, 1)]))
    pairs = world_pairs("selection", 2)
    circuit = heads._circuit(random_vlm, pairs, [(2, 1)], frame, Neurons(table))
    assert [(n.neuron, n.emotion) for n in circuit.neurons] == [(0, "fear"), (4, "joy")]
    assert circuit.splits == ("selection",) and [(h.layer, h.head, h.score, h.p) for h in circuit.heads] == [(2, 1, 0.3, 0.01)]
    assert heads._circuit(random_vlm, pairs, [(2, 1)], frame, "left out").neurons == ()


def chapters_of(name, chapter):
    """A chapter's module."""
    module = ModuleType(f"emointerp.tour.{name}")
    module.TITLE, module.chapter = f"On {name}", chapter
    return module


def made(name, **more):
    """A chapter that says its name."""
    return Chapter(name, f"On {name}", (f"{name} ran",), (), {}, **more)


def test_chapters_are_told_what_those_before_them_found(random_vlm, monkeypatch):  # noqa: F811
    told = []

    def fake(name):
        return chapters_of(name, lambda vlm, job: told.append(dict(job.found)) or made(name, found=f"found by {name}"))

    monkeypatch.setattr("emointerp.tour.report.CHAPTERS", tuple(map(fake, "abc")))
    assert [chapter.name for chapter in _chapters(random_vlm, Job((), EVENT), {})] == ["a", "b", "c"]
    assert told == [{}, {"a": "found by a"}, {"a": "found by a", "b": "found by b"}]


def test_without_a_layer_of_steering_it_is_said_why(random_vlm, monkeypatch):  # noqa: F811
    """That no push helped is said only where pushes were tried."""
    said = []
    for chapter in (lambda *_: made("steering"), refused, broken):
        fakes = (
            chapters_of("steering", chapter),
            chapters_of("last", lambda vlm, job: said.append(veena._border(job)) or made("last")),
        )
        monkeypatch.setattr("emointerp.tour.report.CHAPTERS", fakes)
        _chapters(random_vlm, Job((), EVENT), {})
    _chapters(random_vlm, Job((), EVENT), {"steering": "takes too long"})
    left = "halfway, as the chapter on steering was left out"
    stopped = "halfway, as the chapter on steering was stopped by an error"
    assert said == ["halfway, as no push of the chapter on steering helped", left, stopped, left]
    assert veena._border(Job((), EVENT, {"steering": 0}, states={"steering": "ran"})) == "where a push works best"


def broken(vlm, job):
    raise RuntimeError("the <b>third</b> wheel came off")


def refused(vlm, job):
    raise ModelError("This tower has no layers.")


def test_where_a_chapter_stops_the_others_stand_and_it_is_said(random_vlm, tmp_path, monkeypatch, capsys):  # noqa: F811
    fakes = [chapters_of("heads", broken), chapters_of("lens", refused), chapters_of("sae", lambda *_: made("sae"))]
    fakes.append(chapters_of("veena", lambda *_: pytest.fail("goes on from heads, which were not found")))
    monkeypatch.setattr("emointerp.tour.report.CHAPTERS", tuple(fakes))
    with pytest.raises(
        EmointerpError, match=r"Stopped by an error: On heads \(RuntimeError: the <b>third</b> wheel came off\)"
    ) as raised:
        run([picture()], model=random_vlm, out=tmp_path / "out", size="quick")
    page = tmp_path / "out" / "index.html"
    assert f"Report: {page}" in str(raised.value) and raised.value.exit_code == 1
    html, results = page.read_text(), json.loads((page.parent / "results.json").read_text())
    assert "stopped by an error, so nothing of it stands. RuntimeError: the &lt;b&gt;third&lt;/b&gt; wheel" in html
    assert "cannot be read in the way that this chapter needs. This tower has no layers." in html and "sae ran" in html
    assert "goes on from what the chapter “On heads” finds, and that one was stopped by an error." in html
    assert results["chapters"] == {"heads": "stopped", "lens": "left out", "sae": "ran", "veena": "left out"}
    *_, last = results["heads"]["traceback"]
    assert re.fullmatch(r"test_tour\.py, line \d+, in broken", last) and not any(
        "/" in one for one in results["heads"]["traceback"]
    )
    assert f'File "{__file__}"' in capsys.readouterr().err  # the whole traceback is for who ran it
    assert results["sae"]["seconds"] >= 0 and results["sizes"]["name"] == "quick" and results["batch"] == BATCH


def test_the_exit_code_says_whether_a_chapter_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("emointerp.tour.report._planned", lambda vlm, job: (FULL, {}))
    said = []
    for chapter, code in ((broken, 1), (refused, 0)):
        monkeypatch.setattr("emointerp.tour.report.CHAPTERS", (chapters_of("lens", chapter),))
        monkeypatch.setattr(sys, "argv", ["emointerp", "tour", "--out", str(tmp_path / str(code))])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code and (tmp_path / str(code) / "index.html").exists()
        said.append(capsys.readouterr().err)
    assert "emointerp: Stopped by an error: On lens" in said[0] and said[0].count("Traceback") == 1 and "Traceback" not in said[1]


def test_a_slow_model_is_measured_less_and_what_takes_too_long_is_left_out(random_vlm, monkeypatch):  # noqa: F811
    """Speeds at which all fits, at which only the quick size does, at which little does, and at which nothing does."""

    def at(read, story):
        monkeypatch.setattr(Pace, "measured", lambda *_: Pace(read, story))
        return _planned(random_vlm, job("noise", picture()))

    assert at(0.01, 0.05) == (FULL, {}) and at(0.1, 0.2) == (QUICK, {})
    sizes, omitted = at(1.0, 4.0)
    takes = seconds(QUICK, Pace(1.0, 4.0), random_vlm.anatomy, 1)
    assert sizes == QUICK and "start_here" not in omitted and {"superposition", "steering"} <= set(omitted)
    assert "heads" in omitted and sum(takes[name] for name in takes if name not in omitted and name != "veena") <= LIMIT
    assert "at the speed of this model here (1 s to read a prompt, 4 s a story) it would take about" in omitted["steering"]
    with pytest.raises(
        InputError, match="takes about 60 s for a story here, so the first chapter alone would take about 2.7 hours"
    ):
        at(20.0, 60.0)
    monkeypatch.setattr(Pace, "measured", lambda *_: pytest.fail("the bundled model is always measured in full"))
    assert _planned(load(), job("noise", picture())) == (FULL, {})


def test_the_estimate_counts_what_the_first_chapter_tells():
    """A story for each test picture, five for each of conflict, and two for each of the user's: its own and its twin's."""
    takes = seconds(SIZES, Pace(1.0, 2.0), load().anatomy, 3)
    assert takes["start_here"] == 2.0 * (21 + 5 * 18 + 2 * 3) and takes["sae"] == 0


def test_time_is_given_out_in_the_order_of_the_page():
    """And none to VEENA where the chapter that it goes on from gets none."""
    pace = Pace(1.0, 4.0)
    assert [*seconds(QUICK, pace, load().anatomy, 1)] == [module.__name__.rpartition(".")[2] for module in CHAPTERS]
    expected = {"steering": LIMIT - 2.0, "lens": 3.0, "heads": 3.0, "veena": 1.0, "later": 1.5}
    assert [*_too_long(expected, pace)] == ["lens", "heads"]


def test_speeds_are_those_of_the_model_in_hand(random_vlm):  # noqa: F811
    pace = Pace.measured(random_vlm, picture(), EVENT)
    assert 0 < pace.read < pace.story * 50 and pace.story < 5


def test_on_a_gpu_as_many_stories_are_told_together_as_fit(random_vlm, monkeypatch):  # noqa: F811
    """A card that is just large enough for so many prompts with the larger of the pictures; on the CPU the number is fixed."""
    assert stories_together(random_vlm, [picture()], EVENT) == BATCH == Job((), EVENT).batch
    prompts = [random_vlm.prompt(image, EVENT) for image in (picture(), sample("test", 1)[0].scene)]
    tokens, visual = max((len(prompt), len(prompt.visual)) for prompt in prompts)
    budget = expect(random_vlm, visual=visual, text=tokens - visual)
    monkeypatch.setattr(VLM, "device", torch.device("cuda", 0))
    monkeypatch.setattr("emointerp.models.budget.SWEEP", 0)  # all of a tiny model's prompts are smaller than a sweep
    for fit_together in (1, 4, 16):
        memory = budget.peak(fit_together) / USABLE + 1
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, memory=memory: (0, memory))
        assert stories_together(random_vlm, [picture()], EVENT) == fit_together


def test_no_more_stories_are_told_together_than_asked(small_veena, monkeypatch):
    """By every chapter that tells stories, whose answers do not depend on it."""
    vlm, lengths, whole = tiny_families.vlm("llava_clip"), [], VLM.batched
    monkeypatch.setattr(VLM, "batched", lambda self, prompts: lengths.append(len(prompts)) or whole(self, prompts))
    monkeypatch.setattr(veena, "TOKENS", 6)
    monkeypatch.setattr(veena.veena, "fit", strengthened)
    few = {"start_here": {"test": 7, "conflict": 6}, "veena": {"tuning": 2, "conflict": 6, "neutrals": 4}}
    asked, found = job("noise", picture(), {"heads": small_circuit(vlm)}, **few), []
    for batch in (3, 32):
        lengths.clear()
        some = [module.chapter(vlm, replace(asked, batch=batch)) for module in (start_here, veena)]
        assert max(lengths) == {3: 3, 32: 7}[batch]  # a picture of each emotion and of none
        found.append([_json(plain(chapter.results)) for chapter in some])
    assert found[0] == found[1]


def test_a_7b_model_is_measured_in_full_on_a_large_gpu_and_in_time_on_others():
    budget = expect("llava-hf/llava-1.5-7b-hf")

    def takes(sizes, name):
        gpu, batch = GPUS[name], budget.batch(GPUS[name])
        read = budget.prompt_seconds(gpu)
        pace = Pace(read, read + TOKENS * budget.step_seconds(gpu, batch) / batch)
        return sum(seconds(sizes, pace, budget.anatomy, 6).values())

    assert takes(FULL, "H100 80 GB") < LIMIT < takes(FULL, "A100 40 GB")
    assert max(takes(QUICK, gpu) for gpu in ("A100 40 GB", "RTX 4090 24 GB")) < LIMIT


def test_a_size_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="size is 'huge'; expected auto, full or quick"):
        run(size="huge", out=tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("chapter", "numbers", "words"),
    [
        (
            "saliency",
            {"pictures": 2},
            "the chapter saliency: copies is missing; steps is missing; draws is missing. Expected whole",
        ),
        ("lens", {"pictures": 6, "pairs": 0}, "the chapter lens: pairs is 0, expected 1 or more. .* numbers for pictures, pairs"),
        ("lens", {"pictures": 6, "pairs": 2, "pears": 2}, "pears is not known"),
        ("heads", FULL.heads | {"sets": True}, "sets is True"),
        ("steering", FULL.steering | {"draws": 1}, "the chapter steering: draws is 1, expected 2 or more"),
    ],
)
def test_sizes_that_a_chapter_cannot_use_are_refused(chapter, numbers, words):
    with pytest.raises(InputError, match=words):
        Sizes("mine", **{chapter: numbers})


def test_notebook_06_is_named_only_where_it_draws_more_sets():
    row = pd.Series({"overlap": 0.1, "norm": 1.0, "sets": 99, "p": 0.01}, dtype=object)
    assert "99 sets cannot put p below 0.01; notebook 06 draws 100." in heads._check_words(row)
    assert "100 sets cannot put p below 0.0099." in heads._check_words(row.replace(99, 100))


def test_of_photographs_alone_the_first_screen_says_what_was_counted():
    """No drawing was told there that a later sentence could refer to."""
    photo = Telling(Image.fromarray(picture()), EVENT, "I felt glad.")
    golds, stories = ["joy", "fear", "neutral"], ["I felt glad.", "I felt glad.", "I felt sad."]
    measured = start_here._measured_line(Scores(score(stories, golds)))
    assert start_here._said([("photo.jpg", Reading(photo, None, None))]) == "Named in the stories of photo.jpg: joy."
    assert re.fullmatch(
        r"In the test split 50% \[.*\] of the stories of 2 drawings name the drawn emotion; "
        r"of 1 stories of drawings without feeling 100% \[.*\] name one all the same\.",
        measured,
    )


def test_first_screen_answers_each_question_and_leads_to_its_chapter(report):
    page, _ = report
    html = page.read_text()
    first = html[html.index('id="in-short"') : html.index('id="start_here"')]
    asked = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", first, re.DOTALL)
    linked = [re.fullmatch(r'<a href="#(\w+)">(.*)</a>', question) for question, _ in asked[:-1]]
    assert [found[2] for found in linked] == list(QUESTIONS) and [found[1] for found in linked][:4] == ["start_here"] * 3 + [
        "saliency"
    ]
    assert "What a person feels" in asked[-1][1] and "The numbers of this page are in" in html
    for _, answer in asked[1:-1]:
        assert re.search(r"\[.+?, .+?\]", answer), answer
    ids, links = re.findall(r' id="(.*?)"', html), re.findall(r'href="#(.*?)"', html)
    assert len(ids) == len(set(ids)) and set(links) <= set(ids) and set(ids) - {"main"} <= set(links) | {"main"}


def test_every_picture_on_the_page_is_told_in_words(report):
    html = report[0].read_text()
    alts = re.findall(r'<img[^>]*?alt="([^"]*)"', html)
    assert len(alts) == html.count("<img ") and all(len(alt) > 8 for alt in alts)


def test_report_says_by_which_road(report):
    """All attention from the picture to the last token is cut by a mask made here; transplants are done by plain hooks."""
    _, results = report
    roads, vlm = results["lens"]["roads"], load(attn_implementation="eager")
    log_mass, lost, moved, gaps = masses(vlm), [], [], []
    for pair in world_pairs("test", SIZES.lens["pairs"], seed=11):
        emotional, neutral = twin_prompts(vlm, pair, "I felt")
        lost.append(np.exp(log_mass(emotional, pair.emotion)) - np.exp(without_picture(vlm, emotional, pair.emotion)))
        kept = oracle.caches(vlm, emotional)["residual", 5]
        own = log_mass(neutral, pair.emotion)
        moved.append(log_mass(neutral, pair.emotion, [SetResidual(5, kept[-1])]) - own)
        gaps.append(log_mass(emotional, pair.emotion) - own)
    assert roads["cut in all layers"]["V->L"]["fall"]["mean"] == pytest.approx(np.mean(lost), abs=2e-3)
    assert roads["transplants"]["denoising"]["L"]["5"]["mean"] == pytest.approx(np.mean(moved) / np.mean(gaps), abs=2e-3)
    assert "No road alone is surely needed" in report[0].read_text()  # three pairs make no p below 0.25


def without_picture(vlm, prompt, emotion):
    """The log mass where the last token cannot see the picture in any layer: a mask of its own, added to eager attention."""
    n, table = len(prompt), emotion_tokens(vlm)
    mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)
    mask[-1, list(prompt.visual)] = torch.finfo(torch.float32).min
    given = vlm.placed(prompt.inputs) | {"attention_mask": mask[None, None]}
    with torch.no_grad():
        logits = vlm.model(**given, use_cache=False).logits[0, -1]
    return float(logits.log_softmax(-1)[table.id[table.emotion == emotion].tolist()].logsumexp(-1))


def test_half_of_the_mass_is_reached_where_the_mean_curve_says():
    """Two pictures, by hand: means 0.1, 0.5, 0.8; one alone would have reached half in layer 0, the other in layer 2."""
    curves = [(0.2, 0.9, 0.4), (0.0, 0.1, 1.2)]
    rows = [(i, layer, value) for i, curve in enumerate(curves) for layer, value in enumerate(curve)]
    half = lens._half(Emergence(pd.DataFrame(rows, columns=["picture", "layer", "pictured"])))
    assert half == Interval(1.0, 1.0, 2.0, 2)


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        ([], "No road alone"),
        (["V->L"], "Straight from"),
        (["V->L", "Q->L"], "Straight from"),
        (["V->L", "V->Q"], "Mostly straight"),
        (["V->Q", "V->L"], "Both straight"),
        (["V->Q", "Q->L"], "By way of the words"),
        (["Q->L"], "Needed is the road from these words"),
    ],
)
def test_what_cuts_say_of_the_road(needed, words):
    assert lens._road_verdict(needed).startswith(words)


def test_results_are_json_for_strict_readers():
    assert plain({"a": [float("nan"), 0.12345], "b": float("inf")}) == {"a": [None, 0.1235], "b": None}


def test_report_has_twins_of_scenes_only_and_intervals(report):
    _, results = report
    photo, _, scene = results["start_here"]["pictures"]
    assert photo["twin's story"] is None and scene["twin's story"]
    rate = results["start_here"]["test split"]["hit rate"]
    assert rate["low"] <= rate["mean"] <= rate["high"] and rate["n"] == 18
    shares = results["start_here"]["see or guess"]["named"]
    assert all(abs(sum(one["mean"] for one in row.values()) - 1) < 1e-3 for row in shares.values())


BAD = {
    "missing": (["--image", "nowhere.png"], 2, "No such picture: nowhere.png"),
    "not an image": (["--image", "text.png"], 2, "not a picture that Pillow can read"),
    "empty file": (["--image", "empty.png"], 2, "is empty (0 bytes)"),
    "truncated": (["--image", "cut.png"], 2, "damaged or cut off"),
    "bomb": (["--image", "bomb.png"], 2, "unpacks to too many pixels"),
    "empty event": (["--event", "  "], 2, "The event is empty"),
    "endless event": (["--event", "a " * 50_000], 2, "at most 2,000 are read"),
    "unknown model": (["--model", "tinny"], 3, "Nearest known names: tiny"),
    "out is taken": (["--out", "taken"], 4, "exists and is not empty"),
    "out is a file": (["--out", "text.png"], 4, "is a file; --out expects a folder"),
}


def png_of_size(width, height):
    """A PNG that says it is that large, without the pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"few"), b"IEND"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.fixture
def bad_files(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.effect_noise((200, 200), 60).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    (tmp_path / "bomb.png").write_bytes(png_of_size(20_000, 20_000))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep me")
    return tmp_path


def command(*arguments, folder, **options):
    return subprocess.run(
        [sys.executable, "-m", "emointerp.cli", *arguments], cwd=folder, capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case, bad_files, monkeypatch, capsys):
    arguments, code, words = BAD[case]
    before = sorted(bad_files.rglob("*"))
    monkeypatch.chdir(bad_files)
    monkeypatch.setattr(sys, "argv", ["emointerp", "tour", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    assert words in said and "Traceback" not in said
    assert sorted(bad_files.rglob("*")) == before


def test_a_refusal_in_a_process_of_its_own(bad_files):
    """As a shell has it: the code that the process ends with, one line, and nothing written."""
    before = sorted(bad_files.rglob("*"))
    done = command("tour", "--image", "cut.png", folder=bad_files)
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(r"emointerp: .*cut\.png .*damaged or cut off.*\n", done.stderr)
    assert sorted(bad_files.rglob("*")) == before


def test_no_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    """Root may write anywhere, so the question to the system is answered for it here."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="No permission to write in"):
        run(out=tmp_path / "report")
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(OutputError, match="No permission to write in"):
        run(out=tmp_path / "report")


def refuse(*_):
    raise PermissionError


def test_the_same_refusals_in_python(tmp_path):
    with pytest.raises(InputError, match="No such picture"):
        run([tmp_path / "no.png"])
    with pytest.raises(ModelError, match="Cannot open the model 'llava-1.5-7b'"):
        run(model="llava-1.5-7b", out=tmp_path / "a")


def test_force_replaces_the_report_and_nothing_else(bad_files, monkeypatch):
    monkeypatch.setattr("emointerp.tour.report.CHAPTERS", ())
    page = bad_files / "taken" / "index.html"
    page.write_text("an old report")
    with pytest.raises(OutputError, match="exists and is not empty"):
        run(out=bad_files / "taken")
    assert page.read_text() == "an old report"
    run(out=bad_files / "taken", force=True)
    assert (bad_files / "taken" / "mine.txt").read_text() == "keep me"
    assert "an old report" not in page.read_text()


def test_equal_names_are_numbered(bad_files):
    from emointerp.tour.report import _named

    assert [name for name, _ in _named(["a/x.png", "b/x.png", "y.png"])] == ["x.png (1)", "x.png (2)", "y.png"]


def test_interrupt_leaves_nothing_behind(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "emointerp.cli", "tour", "--out", "report"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell would have it ignored
    )
    said = ""
    while "stories" not in said and process.poll() is None:  # a progress bar ends no line
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    words = process.communicate(timeout=60)[1]
    assert process.returncode == 130, words
    assert "emointerp: Stopped." in words
    assert not list(Path(tmp_path).iterdir())
