"""The panel of chapter 07 through its values: what is told is what plain hooks tell, each change once, and said as it is."""

import sys
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from tiny_models import picture

from emointerp import emotions, widgets
from emointerp.errors import InputError
from emointerp.heads import HeadMap
from emointerp.markup import marked
from emointerp.neurons import Neurons
from emointerp.statistics import value_interval
from emointerp.tracing import ScaleAttention, ScaleNeurons
from emointerp.veena import Veena, adaptive
from emointerp.widgets.start_here import EVENTS
from emointerp.widgets.veena import Story, cases_html, compute, mended_html, prepared, suggested
from emointerp.world import loaded_events, neutral_events, sample
from emointerp.world.language import vocabulary_sentences

MODULE = sys.modules["emointerp.widgets.veena"]  # the package has a function of this name
EVENT = "The phone rang twice while I was cooking."
HEADS, NEURONS, L_EMO = [(2, 1), (0, 3), (3, 2), (1, 0)], [(2, 7), (3, 40), (1, 5)], 1
BY_HAND = [  # beta 16 for all heads and gamma 2.5 for the neurons
    ScaleAttention(0, 16.0, ("query",), "visual", [3]), ScaleAttention(1, 16.0, ("query",), "visual", [0]),
    ScaleAttention(2, 16.0, ("last", "answer"), "visual", [1]), ScaleAttention(3, 16.0, ("last", "answer"), "visual", [2]),
    *(ScaleNeurons(layer, [n], 2.5) for layer, n in NEURONS),
]  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"'&"
BLUE, ORANGE, GRAY = "#0072B2", "#E69F00", "#8A8F98"
LISTED = sorted({w for s in vocabulary_sentences(scenes=3) for w in s.split() if w.isalpha() and len(w) > 3})
WORDS = {"up": LISTED[::2], "down": LISTED[1::2]}  # so many that a random model gives them some mass


def panel_of(family="llava_clip", pictures=None, **options) -> "widgets.veena.VeenaPanel":
    pictures = pictures or {"one": picture(1), "two": picture(2)}
    options = {"event": EVENT, "beta": 16.0, "gamma": 2.5, "words": WORDS} | options
    return widgets.veena(tiny_families.vlm(family), HEADS, NEURONS, L_EMO, pictures, **options)


def choose(panel, **values) -> str:
    for name, value in values.items():
        panel.controls[name].value = value
    return panel.view.value


def hooked(vlm, prompt, edits) -> str:
    with oracle.hooked(vlm, edits, prompt):
        return vlm.generate(prompt)


@torch.no_grad()
def loss(vlm, prompt, text: str) -> float:
    """The mean loss of a text after a prompt, by a plain forward of both."""
    text = text if prompt.rendered[-1].isspace() else f" {text}"
    ids = vlm.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    whole = {"input_ids": torch.cat([prompt.input_ids, ids], 1)}
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in prompt.inputs:
            fill = torch.full_like(ids, name == "attention_mask")
            whole[name] = torch.cat([prompt.inputs[name], fill], 1)
    logits = vlm.model(**{**prompt.inputs, **whole}, use_cache=False).logits[0, prompt.last : -1]
    return float(torch.nn.functional.cross_entropy(logits.double(), ids[0]))


def parsed(html: str) -> ElementTree.Element:
    """The view as a tree; markup that slipped out of a text would break it or show up in it."""
    return ElementTree.fromstring(f"<div>{html}</div>")


def text_of(html: str) -> str:
    return "".join(parsed(html).itertext())


# what is told


@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_every_familys_stories_are_those_of_plain_hooks(family):
    vlm, panel = tiny_families.vlm(family), panel_of(family)
    prompt, mended = vlm.prompt(picture(1), EVENT), panel.mended
    before, after = vlm.generate(prompt), hooked(vlm, prompt, BY_HAND)
    assert (mended.before.text, mended.after.text) == (before, after)
    assert before != after or family == "gemma3"  # which says one letter over and over
    assert np.log(mended.cost) == pytest.approx(loss(vlm, prompt, after) - loss(vlm, prompt, before), abs=1e-3)
    assert mended.after.named == emotions.named(after) and (mended.shown.shows, mended.shown.suggests) == (None, None)
    for text in (before, after):
        assert marked(text, emotions.extract(text)) in panel.view.value
    assert "4 heads × 16 (2 in the prompt, 2 in the answer), 3 neurons × 2.5" in panel.view.value


def test_sliders_take_the_first_heads_and_neurons_in_their_order():
    vlm, panel = tiny_families.vlm("llava_clip"), panel_of()
    assert panel.veena == Veena.of(vlm, HEADS, NEURONS, l_emo=L_EMO, beta=16.0, gamma=2.5)
    choose(panel, heads=2, neurons=1, beta=4.0, gamma=1.5)
    assert (panel.veena.upstream, panel.veena.downstream, panel.veena.neurons) == (((0, 3),), ((2, 1),), ((2, 7),))
    assert (panel.veena.beta, panel.veena.beta_decode, panel.veena.gamma) == (4.0, 4.0, 1.5)
    assert panel.veena.l_emo == L_EMO and panel.veena.revision  # can be saved, and is known to be this model's
    by_hand = [
        ScaleAttention(0, 4.0, ("query",), "visual", [3]),
        ScaleAttention(2, 4.0, ("last", "answer"), "visual", [1]),
        ScaleNeurons(2, [7], 1.5),
    ]
    assert panel.mended.after.text == hooked(vlm, vlm.prompt(picture(1), EVENT), by_hand)
    assert "2 heads × 4 (1 in the prompt, 1 in the answer), 1 neuron × 1.5" in panel.view.value


def test_where_nothing_is_scaled_the_story_stays():
    panel = panel_of()
    for values in ({"heads": 0, "neurons": 0}, {"heads": 4, "neurons": 3, "beta": 1.0, "gamma": 1.0}):
        html = choose(panel, **values)
        assert panel.mended.after == panel.mended.before and panel.mended.cost == 1 and "<span>nothing</span>" in html
        assert (panel.veena is None) == (values["heads"] == 0)
    assert choose(panel, heads=0, neurons=0, adaptive=True) and panel.mended.after == panel.mended.before


def test_fields_of_veena_go_through():
    panel = panel_of(form="weights", prefill_at="last")
    assert (panel.veena.form, panel.veena.prefill_at) == ("weights", ("last",))


# adaptive strength


def test_adaptive_strengths_are_those_of_the_chapter():
    vlm, panel = tiny_families.vlm("llava_clip"), panel_of(beta=16.0)
    choose(panel, adaptive=True)
    prompts = [vlm.prompt(picture(i), EVENT) for i in (1, 2)]
    edits = adaptive(vlm, prompts, panel.veena, words=WORDS)
    assert any(edits) and [case.value.edits() for case in panel.cases] == edits
    assert panel.mended.value.edits() == edits[0]


def test_each_picture_has_its_own_strength():
    vlm = tiny_families.vlm("llava_clip")
    shown = prepared(vlm, {str(i): picture(i) for i in range(3)}, EVENT)
    sure = pd.DataFrame({"mass": [0.9, 0.5, 1.0], "sure": [1.0, 0.5, 0.0], "share": [0.0, 0.26, 1.0]})
    value = Veena.of(vlm, HEADS, NEURONS, l_emo=L_EMO, beta=16.0, gamma=2.5)
    for one, share, mended in zip(shown, (0, 0.3, 1), compute(vlm, shown, value, sure), strict=True):
        eased = [
            ScaleAttention(e.layer, 16**share, e.query, "visual", e.heads) if isinstance(e, ScaleAttention)
            else ScaleNeurons(e.layer, e.neurons, 2.5**share) for e in BY_HAND
        ]  # fmt: skip
        assert mended.after.text == hooked(vlm, one.prompt, eased)
        html = mended_html(mended)
        assert f"{mended.sure.sure:.2f} (mass of emotion words {mended.sure.mass:.2f}): {share:.0%} of the full strength" in html
    assert "× 2.3 (" in mended_html(compute(vlm, shown, value, sure)[1])  # 16 ** 0.3


# what a change costs


def test_a_change_generates_once_and_what_was_seen_is_kept(monkeypatch):
    asked = {"prepared": [], "grouped": [], "confidence": []}

    def counted(name):
        plain = getattr(MODULE, name)
        return lambda vlm, some, *args, **options: (asked[name].append(len(some)), plain(vlm, some, *args, **options))[1]

    for name in asked:
        monkeypatch.setattr(MODULE, name, counted(name))
    panel = panel_of()
    for name, value in [("beta", 4.0), ("gamma", 2.0), ("heads", 2), ("neurons", 1), ("beta", 16.0)]:
        choose(panel, **{name: value})
    assert asked == {"prepared": [1], "grouped": [1] * 6, "confidence": []}
    choose(panel, beta=4.0)
    assert len(asked["grouped"]) == 6 and len(asked["prepared"]) == 1
    choose(panel, adaptive=True, gamma=3.0)
    assert asked["confidence"] == [1]
    choose(panel, adaptive=False, picture="two")
    assert asked["prepared"] == [1, 1]
    before = len(asked["grouped"])
    choose(panel, cases=True)
    assert asked["prepared"] == [1, 1, 2] and asked["grouped"][before:] == [2]
    choose(panel, picture="one")
    assert asked["prepared"] == [1, 1, 2] and len(asked["grouped"]) == before + 1


# what is said


@pytest.fixture(scope="module")
def shown():
    """A picture of fear beside an event that suggests joy."""
    scene = sample("test", 1, emotions=("fear",))[0].scene
    return prepared(tiny_families.vlm("llava_clip"), {"fear": scene}, loaded_events("joy", "test")[0])[0]


SAID = [
    ("I was afraid.", {}, (True, True, False), BLUE, "names fear, as the picture shows"),
    ("I was afraid and angry.", {}, (True, False, False), BLUE, "names anger, fear, as the picture shows and more"),
    ("I was afraid and glad.", {}, (True, False, True), ORANGE, "names fear, joy, as the picture shows and as the event suggests"),
    ("I was glad.", {}, (False, False, True), ORANGE, "names joy, as the event suggests"),
    ("I was angry.", {}, (False, False, False), GRAY, "names anger, not what the picture shows"),
    ("I stood there.", {}, (False, False, False), GRAY, "names no emotion, not what the picture shows"),
    ("I was afraid.", {"suggests": "fear"}, (True, True, False), BLUE, "names fear, as the picture shows"),
    ("I stood there.", {"shows": "neutral"}, (True, True, False), BLUE, "names no emotion, as the picture shows none"),
    ("I was glad.", {"shows": "neutral"}, (False, False, True), ORANGE, "names joy, as the event suggests"),
    ("I was glad.", {"shows": None}, (False, False, True), ORANGE, "names joy, as the event suggests"),
    ("I was afraid.", {"shows": None}, (False, False, False), GRAY, "names fear"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "about", "flags", "color", "words"), SAID)
def test_what_a_story_names_and_why(shown, text, about, flags, color, words):
    (mended,) = compute(tiny_families.vlm("llava_clip"), [replace(shown, before=text, **about)], None)
    assert (mended.after.seen, mended.after.exact, mended.after.follows) == flags and mended.before == mended.after
    html = mended_html(mended)
    dots = [span for span in parsed(html).iter("span") if span.text == "●"]
    assert [dot.get("style") for dot in dots] == [f"color:{color}"] * 2 and text_of(html).count(f"● {words}") == 2
    assert ("what the picture shows is not known" in html) == (about.get("shows", "") is None)
    assert marked(text, emotions.extract(text)) in html


def test_events_of_the_world_are_known_by_what_they_suggest():
    assert [suggested(event) for event in EVENTS] == [None, *emotions.BASIC]
    assert suggested(loaded_events("fear", "tuning")[5]) == "fear" and suggested("I met " + HOSTILE) is None
    assert suggested(neutral_events("test")[0]) is None


def test_a_cost_that_is_high_or_unknown_stands_out(shown):
    (plain,) = compute(tiny_families.vlm("llava_clip"), [replace(shown, before="I was glad.")], None)
    for cost, said, costly in (
        (1.4, "1.4 × the story's without VEENA", False), (1.6, "1.6 × the", True), (1234.5, "1,234 × the", True),
        (float("nan"), "unknown, as a story is empty", False),
    ):  # fmt: skip
        html = mended_html(replace(plain, cost=cost))
        assert said in text_of(html) and ('class="warning"' in html) == costly


def test_the_case_study_lists_all_pictures_beside_one_event():
    scene = sample("test", 1, emotions=("fear",))[0].scene
    pictures = {"fear": scene, "twin": scene.neutral(), "own": picture(3)}
    panel = panel_of(pictures=pictures, event=loaded_events("joy", "test")[0])
    single = panel.view.value
    html = choose(panel, cases=True)
    vlm, said = tiny_families.vlm("llava_clip"), unescape(html)
    assert html.startswith(single) and [case.shown.shows for case in panel.cases] == ["fear", "neutral", None]
    for image, case in zip(pictures.values(), panel.cases, strict=True):
        prompt = vlm.prompt(image, case.shown.event)
        assert case.after.text == hooked(vlm, prompt, BY_HAND) and case.before.text == vlm.generate(prompt)
        assert marked(case.after.text, emotions.extract(case.after.text)) in html.removeprefix(single)
    assert "the event suggests <b>joy</b>" in said and said.count("<td") == 3 * 5
    assert said.count("<img") == 4 and "examples, not rates" in said
    assert choose(panel, adaptive=True).count("<td") == 3 * 6 and ">strength</th>" in panel.view.value
    assert choose(panel, cases=False, adaptive=False) == single


def told(shown, shows, before: bool, after: bool):
    stories = [Story("I stood there.", (), exact, exact, False) for exact in (before, after)]
    return MODULE.Mended(replace(shown, shows=shows), *stories, 1.0, None)


def test_the_case_study_counts_exact_stories_where_the_truth_is_known(shown):
    cases = [told(shown, "fear", False, True), told(shown, "joy", True, True), told(shown, None, False, False)]
    words = "Stories that name what the picture shows and nothing else: 1 of 2 without VEENA, 2 with it."
    assert words in text_of(cases_html(cases)) and "nothing else" not in text_of(cases_html(cases[2:]))


def test_everything_from_outside_is_escaped(shown):
    hostile = replace(shown, name=HOSTILE, event=HOSTILE, shows=HOSTILE, suggests=HOSTILE)
    mended = MODULE.Mended(hostile, *[Story(HOSTILE, (HOSTILE,), False, False, True)] * 2, 1.0, None)
    for html in (mended_html(mended), cases_html([mended])):
        assert not list(parsed(html).iter("script")) and text_of(html).count(HOSTILE) >= 6
    assert "<script" not in panel_of(pictures={HOSTILE: picture(1)}, event=f"{EVENT} {HOSTILE}")._repr_mimebundle_()["text/html"]


def test_what_is_wrong_is_said_in_the_panel_and_it_lives_on(tmp_path):
    panel = panel_of(pictures={"one": picture(1), "gone": tmp_path / "gone.png"})
    first = panel.view.value
    assert 'role="alert"' in choose(panel, event=" ") and "The event is empty" in panel.view.value
    assert "No such picture" in choose(panel, event=EVENT, picture="gone")
    assert choose(panel, picture="one") == first and first in panel._repr_mimebundle_()["text/html"]
    lost = panel_of(words={"up": ["uncle"]})
    assert "give words of two or more" in choose(lost, adaptive=True) and 'role="alert"' not in choose(lost, adaptive=False)


# how it starts


def made_map() -> HeadMap:
    """24 pairs; of the heads L1H2 does most, then L0H1; L1H3 undoes it, the others are noise."""
    places = pd.MultiIndex.from_product([range(24), range(2), range(4)], names=["pair", "layer", "head"])
    table, rng = places.to_frame(index=False), np.random.default_rng(0)
    does = {(1, 2): 1.0, (0, 1): 0.5, (1, 3): -0.7}
    value = [does.get(at, 0.0) for at in zip(table.layer, table["head"], strict=True)] + rng.normal(0, 0.01, len(table)) - 3
    table = table.assign(emotion=np.where(table.pair % 2, "up", "down"), picture=table.pair.astype(str), value=value)
    return HeadMap(table.assign(receiver=-3.0, donor=-1.0), "log mass", "denoising")


def made_neurons() -> Neurons:
    rows = [
        (2, 7, "state", 0.1, 0.01), (1, 5, "trigger", 0.9, 0.01), (3, 40, "state", 0.3, 0.01), (3, 41, "state", 0.8, 0.5),
        (0, 2, "unnamed", 0.7, 0.01), (2, 9, "state", -0.2, 0.01),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["layer", "neuron", "kind", "effect", "p_exact"])
    table["exact"] = [value_interval(effect + 0.01 * np.arange(3)) for effect in table.effect]
    return Neurons(table.assign(span="last", emotion="up", head=None))


def test_maps_and_neurons_give_what_passed_its_test_the_largest_effect_first():
    panel = widgets.veena(
        tiny_families.vlm("llava_clip"), made_map(), made_neurons(), L_EMO, {"one": picture(1)}, EVENT, words=WORDS
    )
    assert (panel.controls["heads"].max, panel.controls["neurons"].max) == (2, 2)
    choose(panel, heads=1, neurons=1)
    assert (panel.veena.upstream, panel.veena.downstream, panel.veena.neurons) == (((1, 2),), (), ((3, 40),))


def test_without_neurons_or_heads_there_is_a_panel():
    vlm = tiny_families.vlm("llava_clip")
    panels = [widgets.veena(vlm, *parts, L_EMO, {"one": picture(1)}, EVENT) for parts in ((HEADS, ()), ((), NEURONS))]
    for panel, n in zip(panels, ((4, 0), (0, 3)), strict=True):
        assert (panel.controls["heads"].max, panel.controls["neurons"].max) == n and 'role="alert"' not in panel.view.value


def test_of_many_heads_ten_are_on_at_the_start():
    many = [(layer, head) for layer in range(4) for head in range(4)]
    panel = widgets.veena(tiny_families.vlm("llava_clip"), many, (), L_EMO, {"one": picture(1)}, EVENT)
    assert (panel.controls["heads"].value, panel.controls["heads"].max) == (10, 16)


def test_scenes_and_an_event_that_contradicts_the_first_where_none_are_given():
    panel = widgets.veena(tiny_families.vlm("llava_clip"), HEADS, NEURONS, L_EMO, words=WORDS)
    assert panel.controls["picture"].options == (*emotions.BASIC, "neutral twin of anger")
    assert panel.controls["event"].value == loaded_events("disgust", "test")[0] in panel.controls["event"].options
    assert [case.shown.shows for case in panel.cases] == [*emotions.BASIC, "neutral"]
    assert (panel.mended.shown.shows, panel.mended.shown.suggests) == ("anger", "disgust")
    surprise = sample("test", 1, emotions=("surprise",))[0].scene
    other = widgets.veena(tiny_families.vlm("llava_clip"), HEADS, (), L_EMO, {"s": surprise}, words=WORDS)
    assert other.mended.shown.suggests == "anger"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0.5}, "beta is to start at 0.5; its slider goes from 1 to 64"),
        ({"gamma": 4.0}, "gamma is to start at 4.0; its slider goes from 1 to 3"),
        ({"found": (), "neurons": ()}, "This VEENA is empty"),
        ({"found": [(4, 0)]}, "There is no L4H0 in this model"),
        ({"found": [(2, 1), (2, 1)]}, "more than once"),
        ({"neurons": [(0, 48)]}, "in this model of 4 layers of 4 heads and 48 neurons"),
        ({"l_emo": 4}, "layer"),
        ({"pictures": {}}, "There are no pictures to show"),
        ({"form": "neither"}, "form is 'neither'"),
    ],
)
def test_a_panel_that_cannot_start_says_so(options, words):
    options = {"found": HEADS, "neurons": NEURONS, "l_emo": L_EMO, "pictures": {"one": picture(1)}} | options
    with pytest.raises(InputError, match=words):
        widgets.veena(tiny_families.vlm("llava_clip"), **options)
