"""The panel of chapter 06 through its values: a click moves the controls, and what is shown is what plain hooks and pandas say."""

import base64
import io
import re
import sys
from xml.etree import ElementTree

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from matplotlib import colormaps
from PIL import Image
from tiny_models import picture

from emointerp import widgets
from emointerp.directions import Directions
from emointerp.emotions import BASIC
from emointerp.errors import InputError
from emointerp.heads import HeadMap
from emointerp.lens import emotion_tokens
from emointerp.models import load
from emointerp.pairs import Pair, twin_prompts
from emointerp.tracing import SetHead, SetNeurons
from emointerp.widgets.heads import SHOWN, Effects, compute, prepared, reading_html
from emointerp.world import sample

MODULE = sys.modules["emointerp.widgets.heads"]  # the package has a function of this name
WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
HOSTILE = "<script>alert(1)</script>\"'&"
LAYERS, HEADS = tiny_families.LAYERS, tiny_families.HEADS
EVENT, BOAT = "The phone rang twice while I was cooking.", "My uncle cleaned the old boat again."
families = pytest.mark.parametrize("family", tiny_families.NAMES)


def some_pairs(labels=("up", "down")) -> list[Pair]:
    """Two pairs of noise pictures; what they show does not matter to random models."""
    pictures = [picture(seed)[:48, :64] for seed in range(4)]
    return [Pair(*pictures[:2], EVENT, labels[0]), Pair(*pictures[2:], BOAT, labels[1], name="boat")]


def made_map(layers=range(LAYERS), emotions=tuple(WORDS), heads=HEADS, metric="log mass", direction="denoising") -> HeadMap:
    """A map of made numbers, as `head_map` holds them: L1H2 does most, L1H3 undoes it, the others are noise."""
    places = pd.MultiIndex.from_product([range(24), layers, range(heads)], names=["pair", "layer", "head"])
    table, rng = places.to_frame(index=False), np.random.default_rng(0)
    table["emotion"] = [emotions[i % len(emotions)] for i in table.pair]
    table["picture"] = table.pair.astype(str)
    table["receiver"], table["donor"] = -3 + 0.1 * (table.pair % 3), -1 + 0.2 * (table.pair % 5)
    does = 1.0 * ((table.layer == 1) & (table["head"] == 2)) - 0.7 * ((table.layer == 1) & (table["head"] == 3))
    return HeadMap(table.assign(value=table.receiver + does + rng.normal(0, 0.1, len(table))), metric, direction)


def panel_of(family="llava_clip", found=None, pairs=None, **options) -> "widgets.heads.HeadsPanel":
    return widgets.heads(tiny_families.vlm(family), found or made_map(), pairs=pairs or some_pairs(), words=WORDS, **options)


def choose(panel, **values) -> str:
    for name, value in values.items():
        panel.controls[name].value = value
    return panel.view.value


def parsed(html: str) -> ElementTree.Element:
    """The view as a tree; markup that slipped out of a text would break it or show up in it."""
    return ElementTree.fromstring(f"<div>{html}</div>")


def effects_shown(html: str) -> dict[str, tuple[str, ElementTree.Element]]:
    """By the name of each row of the table of effects: what it says, and its bar."""
    cells = next(div for div in parsed(html).iter("div") if div.get("class") == "figures wide")
    return {name.text: (said.text, bar) for name, bar, said in zip(*[iter(cells)] * 3, strict=True)}


def neurons_shown(html: str) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in list(parsed(html).iter("tr"))[1:]]


# the map


def test_boxes_lie_on_the_cells_of_the_figure():
    """The colour at a corner of each box (dots lie in the middle) is the one that the map has for its effect."""
    found = made_map()
    grid, effect = panel_of(found=found).map, [i.mean for i in found.to_frame().effect]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(grid.picture.split(",")[1]))).convert("RGB")) / 255
    for (left, top, right, bottom), mean in zip(grid.boxes, effect, strict=True):
        x, y = np.array([0.9 * left + 0.1 * right, 0.9 * top + 0.1 * bottom]) * np.array(image.shape[1::-1]) / grid.size
        expected = colormaps["RdBu_r"](0.5 + mean / max(map(abs, effect)) / 2)[:3]
        np.testing.assert_allclose(image[int(y), int(x)], expected, atol=0.03)
    corners = np.array(grid.boxes).reshape(LAYERS, HEADS, 4)
    assert (np.diff(corners[:, 0, 1]) < 0).all() and (np.diff(corners[0, :, 0]) > 0).all()  # layers upwards, heads to the right
    assert grid.values == [] and "<span" not in grid.static_html()  # no bar of colours where none are given
    assert (
        grid.labels[HEADS + 2].startswith(f"L1H2: {effect[HEADS + 2]:.2f} [")
        and "corrected p below 0.001" in grid.labels[HEADS + 2]
    )


def test_a_click_sets_the_controls_and_is_answered_once(monkeypatch):
    asked, woken = [], MODULE.woken

    def counted(*args, **options):
        asked.append((args[3].layer, args[3].head))
        return woken(*args, **options)

    monkeypatch.setattr(MODULE, "woken", counted)
    panel = panel_of()
    assert (panel.controls["layer"].value, panel.controls["head"].value) == (1, 2) and asked == [(1, 2)]  # the largest effect
    assert panel.map.selected == HEADS + 2
    panel.map.selected = 2 * HEADS + 3
    assert (panel.controls["layer"].value, panel.controls["head"].value) == (2, 3) == (panel.reading.layer, panel.reading.head)
    assert asked[1:] == [(2, 3)] and "What L2H3 does" in panel.view.value and "What wakes L2H3 here" in panel.view.value
    panel.controls["head"].value = 1
    assert panel.map.selected == 2 * HEADS + 1 and asked[2:] == [(2, 1)] and "What L2H1 does" in panel.view.value
    panel.map.selected = 2 * HEADS + 3
    panel.map.selected = -1
    assert len(asked) == 3 and panel.reading.name == "L2H3"


def test_what_a_head_does_is_there_before_its_neurons():
    """The neurons take most of the time, so the view comes twice, and the picture is coloured before them."""
    panel, seen = panel_of(), []
    panel.view.observe(lambda change: seen.append((change["new"], panel.attention.title)), names="value")
    panel.map.selected = 2 * HEADS + 3
    (first, title), (last, same) = seen  # the second of the two controls asks for what is known
    assert "What L2H3 does" in first and "reading …" in first and not neurons_shown(first)
    assert title == same and title.startswith("L2H3 spends") and len(neurons_shown(last)) == SHOWN and "reading …" not in last


def test_a_map_of_some_layers_has_cells_and_controls_for_these():
    panel = panel_of(found=made_map(layers=[1, 3]))
    assert len(panel.map.boxes) == 2 * HEADS and panel.controls["layer"].options == (1, 3)
    panel.map.selected = HEADS
    assert (panel.reading.layer, panel.reading.head) == (3, 0) and panel.controls["layer"].value == 3
    effects, shown = Effects.of(made_map(layers=[1, 3])), prepared(tiny_families.vlm("llava_clip"), some_pairs()[0])
    with pytest.raises(InputError, match=r"The map has no head L2H0; it has layers 1, 3; heads 0, 1, 2, 3\."):
        compute(tiny_families.vlm("llava_clip"), effects, shown, 2, 0, words=WORDS)


# what is shown of a head


@families
def test_every_family_shows_the_attention_of_an_eager_forward_and_neurons(family):
    panel, pairs = panel_of(family), some_pairs()
    choose(panel, layer=2, head=3, picture="1: boat")
    vlm = tiny_families.vlm(family, "eager")
    prompt = vlm.prompt(*pairs[1].plus, answer="I felt")
    with torch.no_grad():
        attention = vlm.model(**prompt.inputs, use_cache=False, output_attentions=True).attentions[2][0, 3, -1].numpy()
    on = attention[list(prompt.visual)]
    # in Gemma 3 the picture is too far for this layer's window
    np.testing.assert_allclose(panel.attention.values, on / max(on.max(), 1e-6), atol=1e-4)
    assert panel.attention.title.startswith(f"L2H3 spends {on.sum():.0%} of the last token's attention on the picture; its source")
    assert panel.attention.labels[3] == f"attention {on[3]:.3f}" and panel.attention.high == f"{on.max():.2g}"
    assert panel.attention.size == [*prompt.image.size] and BOAT in panel.view.value
    assert len(neurons_shown(panel.view.value)) == SHOWN and 'role="alert"' not in panel.view.value


def test_effects_are_those_of_the_table_by_pandas():
    found = made_map()
    panel = panel_of(found=found)
    for layer, head in ((1, 2), (1, 3), (2, 0)):
        shown, mine = effects_shown(choose(panel, layer=layer, head=head)), found.table.query("layer == @layer and head == @head")
        moved = mine.assign(value=mine.value - mine.receiver, gap=mine.donor - mine.receiver)
        every = moved.groupby("emotion")[["value", "gap"]].mean()
        expected = {"all": moved.value.mean() / moved.gap.mean(), **(every.value / every.gap).to_dict()}
        assert shown.keys() == expected.keys()
        for name, mean in expected.items():
            said, bar = shown[name]
            low, high = map(float, re.findall(r"\[(.*), (.*)\]", said)[0])
            assert float(said.split()[0]) == pytest.approx(mean, abs=0.0051) and low <= mean + 0.005 and high >= mean - 0.005
            assert said.endswith("*") == (head in (2, 3) and layer == 1)
            zero, rect = float(bar[1].get("x1")[:-1]), bar[0]
            left, width = (float(rect.get(side)[:-1]) for side in ("x", "width"))
            assert (left + width if mean < 0 else left) == pytest.approx(zero, abs=0.02) and width > 0
    lengths = {at: float(effects_shown(choose(panel, layer=1, head=at))["all"][1][0].get("width")[:-1]) for at in (2, 3)}
    means = {at: abs(found.to_frame().effect[1, at].mean) for at in (2, 3)}
    assert lengths[2] / lengths[3] == pytest.approx(means[2] / means[3], rel=1e-3)  # one scale for all heads


def test_neurons_are_those_that_plain_hooks_confirm_through_the_head():
    vlm, pair = tiny_families.vlm("llava_clip"), some_pairs()[1]
    panel = panel_of()
    html = choose(panel, layer=2, head=3, picture="1: boat")
    plus, minus = twin_prompts(vlm, pair, "I felt")
    given, own, d = oracle.caches(vlm, plus), oracle.caches(vlm, minus), vlm.anatomy.d_head
    table = emotion_tokens(vlm, WORDS)
    ids = table.id[table.emotion == "down"].tolist()

    def value(*edits):
        return float(oracle.logits(vlm, minus, edits).double().softmax(-1)[ids].sum().log())

    held, visual = SetHead(2, 3, own["heads", 2][-1, 3 * d : 4 * d], "last"), list(minus.visual)
    effects = []
    for name, _, exact, *_ in neurons_shown(html):
        layer, n = map(int, re.findall(r"\d+", name))
        edit = SetNeurons(layer, [n], given["neurons", layer][visual][:, [n]], "visual")
        effects.append(value(edit) - value(edit, held))
        assert layer < 2 and float(exact) == pytest.approx(effects[-1], abs=3e-4, rel=0.06)
    assert max(map(abs, effects)) > 1e-3


def test_the_source_token_is_outlined_and_a_click_on_the_picture_changes_nothing():
    panel = panel_of()
    prompt = twin_prompts(tiny_families.vlm("llava_clip"), some_pairs()[0], "I felt")[0]
    seen = []
    for layer, head in ((2, 1), (1, 2)):
        choose(panel, layer=layer, head=head)
        seen.append(panel.reading.source in prompt.visual)
        outlined = prompt.visual.index(panel.reading.source) if seen[-1] else -1
        assert panel.attention.selected == outlined and panel.attention.title.endswith(
            "outlined." if seen[-1] else "’ in the text."
        )
        panel.attention.selected = 0
        assert panel.attention.selected == outlined
    assert seen == [True, False]


def test_below_the_first_layer_there_is_nothing():
    panel = panel_of()
    html = choose(panel, layer=0, head=1)
    assert "L0H1 is in the first layer; no neurons lie below it." in html and "<table" not in html
    assert effects_shown(html)["all"] and panel.reading.neurons is None and panel.reading.source >= 0
    assert len(neurons_shown(choose(panel, layer=1))) == SHOWN


def test_with_directions_the_length_along_s_stands_in_the_table():
    vlm = tiny_families.vlm("llava_clip")
    vectors = torch.randn(2, LAYERS, tiny_families.WIDTH, generator=torch.Generator().manual_seed(3))
    panel = panel_of(directions=Directions(tuple(WORDS), vectors, (1, 1)))
    html = choose(panel, layer=2, head=3)
    assert ["".join(cell.itertext()) for cell in parsed(html).iter("th")][3] == "along S"
    name, _, _, along, *_ = neurons_shown(html)[0]
    layer, n = map(int, re.findall(r"\d+", name))
    prompt = twin_prompts(vlm, some_pairs()[0], "I felt")[0]
    m = oracle.caches(vlm, prompt)["neurons", layer][list(prompt.visual), n].mean()
    v = vlm.model.get_submodule(f"{vlm.anatomy.layers}.{layer}").mlp.down_proj.weight.detach()[:, n]
    s = vectors[0, layer] / vectors[0, layer].norm()
    assert float(along) == pytest.approx(float(m * (v @ s)), rel=0.06)


@pytest.mark.parametrize(
    ("metric", "direction", "said", "scored"),
    [("log mass", "denoising", "closed (log mass)", "log mass"), ("hit rate", "noising", "lost (hit rate)", "log mass")],
)
def test_the_view_names_what_the_map_measured(metric, direction, said, scored):
    html = panel_of(found=made_map(metric=metric, direction=direction)).view.value
    assert f"share of the gap {said}" in html and f"through this head to the {scored} of up" in html


# what comes from outside, and what goes wrong


def test_labels_events_words_and_notes_are_escaped():
    vlm, labels = tiny_families.vlm("llava_clip"), (HOSTILE, "down")
    found, words = made_map(emotions=labels), {HOSTILE: WORDS["up"], "down": WORDS["down"]}
    pair = Pair(picture(0)[:48, :64], picture(1)[:48, :64], f"{EVENT} {HOSTILE}", HOSTILE, name=HOSTILE)
    panel = widgets.heads(vlm, found, pairs=[pair], words=words)
    effects, shown = Effects.of(found), prepared(vlm, pair)
    known = compute(vlm, effects, shown, 1, 2, words=words)
    said = known.neurons.table.assign(words=HOSTILE + "\u202e", names=HOSTILE)
    told = MODULE.replace(known, neurons=MODULE.replace(known.neurons, table=said))
    untold = MODULE.replace(known, neurons=None, note=HOSTILE)
    for html in (panel.view.value, reading_html(told, pair, effects), reading_html(untold, pair, effects)):
        tree = parsed(html)
        assert not list(tree.iter("script")) and HOSTILE in "".join(tree.itertext()) and "\u202e" not in html
    assert panel.view.value in (whole := panel._repr_mimebundle_()["text/html"]) and "<script" not in whole
    assert panel.map.static_html() in whole and panel.attention.static_html() in whole


def test_what_is_wrong_is_said_in_the_panel_and_it_lives_on(tmp_path):
    pairs = [*some_pairs(), Pair(tmp_path / "gone.png", tmp_path / "gone.png", EVENT, "up", name="gone")]
    pairs += [Pair(picture(0)[:48, :64], picture(1)[:48, :64], EVENT, "left", name="strange")]
    panel = panel_of(pairs=pairs)
    first = panel.view.value
    choose(panel, picture="2: gone")
    assert 'role="alert"' in panel.view.value and "No such picture" in panel.view.value
    assert panel.reading is None and panel.attention.values == [] and panel.attention.selected == -1
    panel.map.selected = 0
    assert "No such picture" in choose(panel, layer=2)
    html = choose(panel, picture="3: strange", head=3)
    assert "Pairs show left; there are words of down, up." in html and effects_shown(html)["all"]
    assert panel.reading.source == -1 and panel.attention.title.endswith("of the last token's attention on the picture.")
    assert choose(panel, layer=1, head=2, picture="0: up") == first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"found": made_map(heads=HEADS + 1)}, r"There is no head \(0, 4\); a layer of this model has heads 0 to 3"),
        ({"found": made_map(layers=[1, LAYERS])}, "Layer 4 is out of range"),
        ({"pictures": {"own": "own.png"}}, r"'own' is no scene, .*; give pairs=\[Pair\(picture, twin, event, emotion\)\]"),
        ({"pairs": []}, "There are no pairs to show"),
    ],
)
def test_a_panel_that_cannot_start_says_so(options, words):
    with pytest.raises(InputError, match=words):
        widgets.heads(tiny_families.vlm("llava_clip"), **{"found": made_map(), "words": WORDS} | options)


def test_the_bundled_model_shows_its_clear_scenes_beside_their_twins():
    vlm = load()
    panel = widgets.heads(vlm, made_map(layers=[0, 5], emotions=BASIC, heads=8))
    html = choose(panel, picture="fear", layer=5, head=7)
    scene = sample("test", 1, seed=6, emotions=("fear",))[0].scene
    assert panel.attention.size == [*scene.image().size] and EVENT in html and "log mass of fear" in html
    pair = Pair(scene, scene.neutral(), EVENT, "fear")
    plus, minus = twin_prompts(vlm, pair, "I felt")
    given, own = oracle.caches(vlm, plus), oracle.caches(vlm, minus)
    table = emotion_tokens(vlm)
    ids, d, visual = table.id[table.emotion == "fear"].tolist(), vlm.anatomy.d_head, list(minus.visual)
    held = SetHead(5, 7, own["heads", 5][-1, 7 * d : 8 * d], "last")
    name, _, exact, *_ = neurons_shown(html)[0]
    layer, n = map(int, re.findall(r"\d+", name))
    edit = SetNeurons(layer, [n], given["neurons", layer][visual][:, [n]], "visual")
    with_, without = (oracle.logits(vlm, minus, e).double().softmax(-1)[ids].sum().log() for e in ([edit], [edit, held]))
    assert float(exact) == pytest.approx(float(with_ - without), abs=2e-4, rel=0.1)
