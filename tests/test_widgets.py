"""The patch grid, the token strip and the steering panel: what they refuse, what they show where widgets are dead, their files.

And what panels show before all is there: parts that are as right as the whole, in words that say what they are.
"""

import re
import sys
from dataclasses import replace
from html import unescape
from importlib.resources import files
from xml.etree import ElementTree

import ipywidgets
import numpy as np
import oracle
import pytest
import torch
from PIL import Image
from tiny_models import LAYERS, WIDTH, picture, random_vlm  # noqa: F401 - random_vlm is a fixture
from traitlets import TraitError

from emointerp import emotions
from emointerp.directions import Directions
from emointerp.errors import InputError
from emointerp.markup import marked
from emointerp.models import load_tower
from emointerp.plots import COLORS
from emointerp.sae.emotion import EmotionDirections
from emointerp.saliency import saliency_map, toward
from emointerp.start_here import EVENT
from emointerp.tracing import AddVector, ScaleAttention, ScaleNeurons, generate, sweep
from emointerp.widgets import PatchGrid, TokenStrip, saliency, start_here, steering, veena
from emointerp.widgets.drawing import cell_colors
from emointerp.widgets.panel import Panel
from emointerp.widgets.steering import ALPHAS, Push, Story, grid_html, prepared, stories_html
from emointerp.widgets.streaming import stories_so_far
from emointerp.widgets.tinted import RAMP
from emointerp.world import sample
from emointerp.world.scene import with_intensity

QUARTERS = [[0, 0, 32, 16], [32, 0, 64, 16], [0, 16, 32, 32], [32, 16, 64, 32]]
HOSTILE = "<script>alert(1)</script>\"'&"
LETTER = "The letter lay on the table when I came home."
STEERING, SALIENCY = (sys.modules[f"emointerp.widgets.{name}"] for name in ("steering", "saliency"))  # the package has functions so


def grid(**traits) -> PatchGrid:
    return PatchGrid(**{"size": [64, 32], "boxes": QUARTERS, "values": [0.0, 0.5, 1.0, None]} | traits)


def strip(**traits) -> TokenStrip:
    tokens = ["USER", ":", *["<image>"] * 5, " Hi", "\n", "A"]
    spans = ["", "", *["visual"] * 5, "query", "query", "last"]
    return TokenStrip(**{"tokens": tokens, "spans": spans} | traits)


def parsed(html: str) -> ElementTree.Element:
    """The stand-in as a tree; markup that slipped out of a text would break it or show up in it."""
    return ElementTree.fromstring(html)


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        ({"values": [0.1] * 3}, "3 `values` came for 4 `boxes`; expected one for each, or none"),
        ({"labels": ["a"] * 5}, "5 `labels` came for 4 `boxes`"),
        ({"values": [0, 0, 0, 1.5]}, "`values` 3 is 1.5; expected 0 to 1, or None"),
        ({"values": [-0.1, 0, 0, 0]}, "`values` 0 is -0.1"),
        ({"values": [0, 0, 0, float("inf")]}, "`values` 3 is inf"),
        ({"values": ["high"] * 4}, "`values` cannot be read as numbers"),
        ({"values": None}, "`values` cannot be read as numbers"),
        ({"values": [[0.5]] * 4}, r"`values` has the shape \[4, 1\]; expected \[4\]"),
        ({"selected": 4}, r"`selected` is 4; expected -1 \(none\) or a token's index, 0 to 3"),
        ({"selected": -2}, "`selected` is -2"),
        ({"selected": 1.5}, "`selected` is 1.5; expected a whole number"),
        ({"size": [64]}, r"`size` is \[64\]; expected \[width, height\]"),
        ({"size": [64, 0]}, "`size` is"),
        ({"size": [32, 64]}, r"Box 1 is \[32.0, 0.0, 64.0, 16.0\], outside the picture; .* 32 x 64"),
        ({"boxes": [[0, 0, 0, 9], *QUARTERS[1:]]}, "Box 0 is .* expected left < right"),
        ({"boxes": [[0, 0, 9], *QUARTERS[1:]]}, "`boxes` cannot be read as numbers"),
        ({"boxes": [[0, 0, 9]] * 4}, r"`boxes` has the shape \[4, 3\]; expected \[4, 4\]"),
        ({"picture": "https://example.org/a.png"}, "`picture` begins with 'https://example.org/'; expected a data URI"),
    ],
)
def test_a_grid_refuses_bad_input_in_words(traits, words):
    with pytest.raises(InputError, match=words):
        grid(**traits)


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        ({"values": [0.1] * 3}, "3 `values` came for 10 `tokens`"),
        ({"spans": ["query"]}, "1 `spans` came for 10 `tokens`"),
        ({"values": [2.0] * 10}, "`values` 0 is 2; expected 0 to 1"),
        ({"selected": 10}, "`selected` is 10; expected -1 .* 0 to 9"),
    ],
)
def test_a_strip_refuses_bad_input_in_words(traits, words):
    with pytest.raises(InputError, match=words):
        strip(**traits)
    with pytest.raises(InputError, match="there are no tokens"):
        TokenStrip(selected=0)


def test_a_refused_change_leaves_the_widget_as_it_was():
    shown = grid(selected=2)
    with pytest.raises(InputError):
        shown.selected = 9
    with pytest.raises(TraitError), shown.hold_trait_notifications():
        shown.boxes, shown.values = QUARTERS[:2], [0.5] * 3
    assert shown.selected == 2 and shown.values == [0.0, 0.5, 1.0, None] and len(shown.boxes) == 4


def test_new_tokens_are_set_together_and_drop_a_selection_they_lack():
    shown = grid(selected=3)
    with pytest.raises(InputError, match="hold_trait_notifications"):
        shown.boxes = QUARTERS[:2]
    with shown.hold_trait_notifications():
        shown.boxes, shown.values = QUARTERS[:2], [1, 0]
    assert shown.selected == -1 and len(rects(shown)) == 2


def test_arrays_and_tensors_come_with_nan_for_nothing():
    boxes = np.array([*QUARTERS, [np.nan] * 4], dtype=np.float32)
    values = torch.tensor([0, 0.25, 1.00002, 0, float("nan")], dtype=torch.float32)
    shown = PatchGrid.of(Image.new("RGB", (64, 32)), boxes, values, selected=values.nan_to_num().argmax())
    assert shown.size == [64, 32] and shown.picture.startswith("data:image/png;base64,")
    assert shown.boxes == [*QUARTERS, None]
    assert shown.values == [0, 0.25, 1, 0, None] and shown.selected == 2


def rects(shown: PatchGrid) -> list[dict[str, str]]:
    """Attributes of the rectangles that carry a label, in the order in which they are drawn."""
    return [r.attrib | {"label": r[0].text} for r in parsed(shown.static_html()).iter("rect") if len(r)]


def test_a_static_grid_has_each_box_in_percent_of_the_picture():
    drawn = rects(grid(labels=["a", "b", "c", "d"], opacity=0.5))
    places = [tuple(r[k] for k in ("x", "y", "width", "height")) for r in drawn]
    assert places == [("0%", "0%", "50%", "50%"), ("50%", "0%", "50%", "50%"), ("0%", "50%", "50%", "50%"), ("50%",) * 4]
    assert [r["fill"] for r in drawn] == [RAMP[0][0], RAMP[16][0], RAMP[32][0], "transparent"]
    assert [r["label"] for r in drawn] == ["a", "b", "c", "d"]
    assert drawn[0]["fill-opacity"] == "0.5"


def test_smaller_boxes_lie_on_top_and_tokens_without_a_place_are_left_out():
    drawn = rects(grid(boxes=[[0, 0, 8, 8], None, [0, 0, 64, 32], [0, 0, 16, 16]]))
    assert [r["label"] for r in drawn] == ["token 2", "token 3", "token 0"]


def test_a_static_grid_outlines_the_selected_box_only():
    def outlines(shown: PatchGrid) -> set[str]:
        return {r.get("x") for r in parsed(shown.static_html()).iter("rect") if r.get("stroke")}

    assert outlines(grid()) == set() and outlines(grid(selected=1)) == {"50%"}
    assert outlines(grid(boxes=[None, *QUARTERS[1:]], selected=0)) == set()


def test_a_static_grid_names_the_ends_of_its_colours():
    tree = parsed(grid(title="Layer 5", low="none", high="all").static_html())
    assert tree.find("figcaption").text == "Layer 5"
    ends = [span.text for span in tree.findall("div/span") if span.text]
    assert ends == ["none", "all"]


def words(shown: TokenStrip) -> list[str]:
    """Text of each chip of the static strip, tags of spans left out."""
    return ["".join(chip.itertext()) for chip in parsed(shown.static_html()).findall("div/span")]


def test_a_strip_folds_the_picture_and_shows_whitespace():
    assert words(strip()) == ["USER", ":", "picture: 5 tokens", "␣Hi", "⏎", "A"]
    assert [tag.text for tag in parsed(strip().static_html()).iter("small")] == ["query", "last"]
    assert [(chip["first"], chip["last"]) for chip in strip()._chips] == [(0, 0), (1, 1), (2, 6), (7, 7), (8, 8), (9, 9)]


def test_short_runs_of_visual_tokens_and_texts_without_spans_stay_whole():
    assert words(TokenStrip(tokens=["a"] * 9)) == ["a"] * 9
    short = TokenStrip(tokens=["<image>"] * 3, spans=["visual"] * 3)
    assert words(short) == ["<image>"] * 3


def test_what_cannot_be_seen_is_spelled_out():
    assert words(TokenStrip(tokens=["\u202e", "\xa0", "", "\t", "é"])) == ["\\u202e", "\\xa0", "∅", "⇥", "é"]


def test_a_static_strip_tints_and_outlines():
    values = [0.0, 1.0, *[0.5] * 5, None, None, None]
    styles = [c.get("style") for c in parsed(strip(values=values, selected=4).static_html()).findall("div/span")]
    assert [re.findall(r"background:(#\w+);color:(#\w+)", s) for s in styles] == [[RAMP[0]], [RAMP[32]], [], [], [], []]
    assert ["outline" in s for s in styles] == [False, False, True, False, False, False]


def test_what_comes_from_outside_is_escaped():
    shown = grid(labels=[HOSTILE] * 4, title=HOSTILE, low=HOSTILE, high=HOSTILE, picture=f"data:image/{HOSTILE}")
    told = strip(tokens=[HOSTILE] * 10, spans=[HOSTILE] * 10, title=HOSTILE)
    for html in (shown.static_html(), told.static_html()):
        assert "<script" not in html and not list(parsed(html).iter("script"))
    assert [r["label"] for r in rects(shown)] == [HOSTILE] * 4
    assert parsed(shown.static_html()).find("svg").get("aria-label") == HOSTILE
    assert words(told)[0] == HOSTILE and parsed(told.static_html()).get("aria-label") == HOSTILE


@pytest.mark.parametrize("make", [grid, strip])
def test_a_stand_in_lies_beside_the_live_widget(make):
    data, _ = make()._repr_mimebundle_()
    assert data["text/html"] == make().static_html()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]


def test_files_of_the_widgets_are_in_the_package_and_ask_nothing_of_the_network():
    folder = files("emointerp.widgets") / "static"
    texts = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name.endswith((".js", ".css"))}
    assert texts.keys() == {"page.js", "panel.css", "patch_grid.js", "status.js", "tinted.css", "tinted.js", "token_strip.js"}
    for name, text in texts.items():
        assert not re.search(r"https?://|@import|\bimport\b.*\bfrom\b|url\(", text), name
        made = r"outerHTML|insertAdjacentHTML|\beval\b" + ("" if name == "page.js" else "|innerHTML")
        assert not re.search(made, text), name  # page.js shows whole views, which are escaped where they are made (test_export)
    assert texts["patch_grid.js"] in grid()._esm and texts["token_strip.js"] in strip()._esm


def linear(color: str) -> np.ndarray:
    """Linear sRGB of a hex colour (IEC 61966-2-1)."""
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def test_colours_keep_one_hue_and_step_evenly():
    """In OKLab, by the matrices of Ottosson (2020)."""
    to_cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_cones = np.array([*to_cones, [0.0883024619, 0.2817188376, 0.6299787005]])
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab = np.array([*to_lab, [0.0259040371, 0.7827717662, -0.8086757660]])
    lab = np.array([to_lab @ np.cbrt(to_cones @ linear(color)) for color, _ in RAMP])
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert (np.abs(hue[3:] - 290) < 2).all()  # paler ones have too little colour for their 8 bits to tell a hue
    assert steps.max() / steps.min() < 1.3 and (np.diff(lab[:, 0]) < 0).all()


def test_ink_can_be_read_on_every_colour():
    """Contrast of at least 4.5, as WCAG 2.2 asks for text."""
    for color, ink in RAMP:
        light, dark = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (color, ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color


# the steering panel


def directions(*emotions, width=WIDTH, seed=0) -> Directions:
    """Random directions, about as long as the residual stream of the small model."""
    vectors = torch.randn(len(emotions), LAYERS, width, generator=torch.Generator().manual_seed(seed))
    return Directions(emotions, vectors, (1,) * len(emotions))


@pytest.fixture
def panel(random_vlm):  # noqa: F811
    return steering(random_vlm, directions("fear", "joy"), {"one": picture(1), "two": picture(2)}, layer=1, alpha=0.5)


@torch.no_grad()
def log_perplexity(vlm, prompt, text: str) -> float:
    """The mean loss of a text after a prompt, as transformers counts it."""
    ids = vlm.tokenizer(
        text if prompt.rendered[-1].isspace() else f" {text}", add_special_tokens=False, return_tensors="pt"
    ).input_ids
    whole = torch.cat([prompt.input_ids, ids], 1)
    labels = torch.cat([torch.full_like(prompt.input_ids, -100), ids], 1)
    inputs = prompt.inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    return float(vlm.model(**inputs, labels=labels).loss)


def test_stories_and_figures_are_those_of_plain_hooks(panel, random_vlm):  # noqa: F811
    panel.controls["versus"].value = "joy"
    prompt, lengths = random_vlm.prompt(picture(1), EVENT), []
    layer = random_vlm.model.get_submodule(random_vlm.anatomy.layers)[1]
    keep = layer.register_forward_hook(lambda module, args, out: lengths.append(float(out[0, -1].norm())))
    before = random_vlm.generate(prompt)
    keep.remove()
    assert [s.push for s in panel.stories] == [None, ("fear", 1, 0.5), ("joy", 1, 0.5)]
    assert panel.stories[0].text == before and len({s.text for s in panel.stories}) == 3
    for story in panel.stories[1:]:
        push = directions("fear", "joy")[story.push[:2]]
        with oracle.hooked(random_vlm, [AddVector(1, push, 0.5)], prompt):
            assert story.text == random_vlm.generate(prompt)
        cost = log_perplexity(random_vlm, prompt, story.text) - log_perplexity(random_vlm, prompt, before)
        assert np.log(story.cost) == pytest.approx(cost, abs=1e-4)
        assert story.shift == pytest.approx(0.5 * float(push.norm()) / lengths[0], rel=1e-5)
        assert story.named == emotions.named(story.text) and story.hit == emotions.hit_rate(story.text, story.push.emotion)
        assert set(story.others) == set(story.named) - {story.push.emotion}
        assert marked(story.text, emotions.extract(story.text)) in panel.view.value
        assert f"{story.shift:.0%} of the residual stream" in panel.view.value


def test_no_push_leaves_the_story_as_it_is(panel):
    panel.controls["alpha"].value = 0
    before, pushed = panel.stories
    assert pushed.text == before.text and pushed.cost == 1 and pushed.shift == 0
    panel.controls["versus"].value = "fear"
    assert len(panel.stories) == 2 and panel.view.value.count("towards <b>") == 1


def test_a_change_costs_one_sweep_of_a_prompt_that_was_read(panel, monkeypatch):
    asked, lengths = [], []

    def counted(vlm, prompt, edits, metric=None, **options):
        (asked if metric is None else lengths).append((prompt, len(edits)))
        return sweep(vlm, prompt, edits, metric, **options)

    monkeypatch.setattr(STEERING, "sweep", counted)
    for name, value in [("alpha", 0.7), ("layer", 2), ("versus", "joy"), ("grid", True), ("alpha", 0.9), ("picture", "two")]:
        panel.controls[name].value = value
    cells = LAYERS * len(ALPHAS)
    assert [n for _, n in asked] == [1, 1, 2, cells, cells, 2, 2, cells, cells]
    assert len({id(prompt) for prompt, _ in asked[:6]}) == 1 and asked[6][0] is not asked[5][0]
    panel.controls["picture"].value = "one"
    panel.controls["grid"].value = False
    assert len(asked) == 9 and len(lengths) == 2 + 3  # of each layer once: the other layers of "one", then all of "two"


def test_the_grid_holds_the_stories_of_all_layers_and_alphas(panel, random_vlm):  # noqa: F811
    panel.controls["alpha"].value = 1.4
    panel.controls["grid"].value = True
    cells = re.findall(
        '<td class="([^"]*)" style="[^"]*" title="([^"]*)"', panel.view.value
    )  # no tree: bytes of random stories are not all XML
    said = [unescape(title) for _, title in cells]
    assert [title.split(", perplexity")[0] for title in said] == [
        f"layer {layer}, alpha {alpha:g}" for layer in (2, 1, 0) for alpha in ALPHAS
    ]
    prompt = random_vlm.prompt(picture(1), EVENT)
    for layer, i in ((0, 7), (2, 3)):
        with oracle.hooked(random_vlm, directions("fear", "joy").edits("fear", layer, ALPHAS[i]), prompt):
            assert said[(LAYERS - 1 - layer) * len(ALPHAS) + i].endswith(f": {random_vlm.generate(prompt)}")
    (outlined,) = (title for kind, title in cells if "here" in kind)
    assert outlined.startswith("layer 1, alpha 1.5, ")


def told(alpha: float, text: str, named=(), cost=1.0, push="fear") -> Story:
    return Story(text, named, Push(push, 0, alpha), cost=cost)


def test_a_cell_shows_what_is_named_and_pales_where_it_costs_too_much():
    stories = [told(1.0, "a", ("fear",)), told(2.0, "b", ("joy", "sadness"), 4.4), told(3.0, "c", ("fear",), 4.6), told(4.0, "d")]
    cells = list(parsed(grid_html(stories, Push("fear", 0, 0.0))).iter("td"))
    assert ["".join(cell.itertext()) for cell in cells] == ["fear", "joy +1", "fear", "·"]
    colors = [re.findall(r"#\w+", cell.get("style").lower()) for cell in cells]
    mixed = [
        ["#" + "".join(f"{round(102 + 0.6 * c):02x}" for c in rgb(e)) for e in some] for some in (["fear"], ["joy", "sadness"])
    ]
    assert colors == [*mixed, [f"{COLORS['fear'].lower()}26"], ["#8a8f981a"]]  # 60% of the colour over white; 15% over the page
    assert [cell.get("class") for cell in cells] == ["full", "full", "pale", "pale"]  # no push is no cell: none is outlined


def rgb(emotion: str) -> list[int]:
    return [int(COLORS[emotion][i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.parametrize("emotion", [*COLORS])
def test_words_and_cells_can_be_read_in_both_themes(emotion):
    """Contrast of at least 4.5, as WCAG 2.2 asks: black on full cells; JupyterLab's ink on marks and pale cells."""

    def luminance(levels) -> float:
        return float(linear("#" + "".join(f"{round(c):02x}" for c in levels)) @ [0.2126, 0.7152, 0.0722])

    def contrast(one, other) -> float:
        low, high = sorted([luminance(one), luminance(other)])
        return (high + 0.05) / (low + 0.05)

    def over(color, share: float, page) -> list[float]:
        return [share * c + (1 - share) * p for c, p in zip(color, page, strict=True)]

    full = [int(cell_colors([emotion])[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert contrast([0, 0, 0], full) >= 4.5
    for page, ink in (([255] * 3, [0] * 3), ([17] * 3, [255] * 3)):
        for share in (0x33 / 255, 0x26 / 255):
            tinted = over(rgb(emotion), share, page)
            assert contrast(over(ink, 0.87, tinted), tinted) >= 4.5


def test_stories_and_labels_are_escaped(random_vlm):  # noqa: F811
    shown = prepared(random_vlm, picture(), HOSTILE)
    stories = [Story(HOSTILE, (HOSTILE,)), Story(HOSTILE, (HOSTILE,), Push(HOSTILE, 0, 1.0), 0.0, (HOSTILE,), float("nan"))]
    for html in (stories_html(shown, stories), grid_html(stories[1:], stories[1].push)):
        tree = parsed(html)
        assert not list(tree.iter("script")) and HOSTILE in "".join(tree.itertext())
        assert "unknown, as a story is empty" in "".join(tree.itertext()) + "".join(td.get("title") for td in tree.iter("td"))


def test_the_panel_says_what_is_wrong_and_lives_on(panel, random_vlm):  # noqa: F811
    first = panel.view.value
    panel.controls["event"].value = " "
    assert 'role="alert"' in panel.view.value and "The event is empty" in panel.view.value
    panel.controls["event"].value = EVENT
    assert panel.view.value == first and first in panel._repr_mimebundle_()["text/html"]
    wide = steering(random_vlm, directions("fear", width=8), {"one": picture()})
    assert "vector has width 8" in wide.view.value
    own = directions("day", "xyzzy")
    assert "unknown emotion &#x27;xyzzy&#x27;" in steering(random_vlm, directions("xyzzy"), {"one": picture()}).view.value
    words = emotions.Concept("own", ("day", "xyzzy"), {"day": ["sunny"], "xyzzy": ["dark"]})
    assert 'role="alert"' not in steering(random_vlm, own, {"one": picture()}, wheels=words).view.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": LAYERS}, "after layer 3, .* a layer from 0 to 2"),
        ({"alpha": 3.5}, "start at alpha 3.5"),
        ({"alphas": (0, 1)}, r"alphas \[0.0, 1.0\] in its grid; expected alphas above 0"),
        ({"emotion": "joy"}, "emotion is 'joy'; these directions are of fear."),
        ({"alphas": ()}, r"alphas \[\] in its grid"),
    ],
)
def test_a_panel_that_cannot_start_says_so(random_vlm, options, words):  # noqa: F811
    with pytest.raises(InputError, match=words):
        steering(random_vlm, directions("fear"), {"one": picture()}, **options)


def test_pictures_are_neutral_twins_and_their_scenes_where_none_are_given(random_vlm):  # noqa: F811
    panel = steering(random_vlm, directions("fear"))
    assert set(panel.controls["picture"].options) == {*emotions.BASIC, *(f"neutral twin of {e}" for e in emotions.BASIC)}
    scene = sample("test", 1, seed=6, emotions=("fear",))[0].scene
    panel.controls["picture"].value = "neutral twin of fear"
    twin = panel.stories[0].text
    panel.controls["picture"].value = "fear"
    texts = [random_vlm.generate(random_vlm.prompt(s, EVENT)) for s in (scene.neutral(), scene)]
    assert [twin, panel.stories[0].text] == texts


# what is there before all is


def views(panel, **values) -> list[str]:
    """All that the panel shows, one after the other, while its controls are set."""
    seen = []
    panel.view.observe(lambda change: seen.append(change["new"]), names="value")
    for name, value in values.items():
        panel.controls[name].value = value
    panel.view.unobserve_all("value")
    return seen


def story(text: str) -> str:
    """A whole story, or a whole part of one, as a view has it."""
    return f'story">{marked(text, emotions.extract(text))}</div>'


def test_a_part_is_shown_until_the_whole_is_there_and_never_while_a_page_is_made():
    made = []

    def compute(a: int) -> str:
        for panel in made:
            panel.so_far(f"half of {a}")
        return f"all of {a}"

    controls = {"a": ipywidgets.IntSlider(0, 0, 9)}
    panel = Panel(controls, compute, ipywidgets.VBox(), first=lambda a: f"first of {a}" if a % 2 else None)
    made.append(panel)
    assert views(panel, a=3) == ["first of 3", "half of 3", "all of 3"] and views(panel, a=4) == ["half of 4", "all of 4"]
    assert views(panel, a=3) == ["all of 3"]
    assert panel._stands(5) == "all of 5" and panel.view.value == "all of 3"


def test_a_new_event_shows_the_first_words_of_both_stories(panel, random_vlm):  # noqa: F811
    prompt, edits = random_vlm.prompt(picture(1), LETTER), directions("fear", "joy").edits("fear", 1, 0.5)
    *parts, whole = views(panel, event=LETTER)
    assert len(parts) == 5  # after 12, 24, …, 60 tokens
    for i, html in enumerate(parts):
        before = random_vlm.generate(prompt, max_new_tokens=12 * (i + 1))
        with oracle.hooked(random_vlm, edits, prompt):
            after = random_vlm.generate(prompt, max_new_tokens=12 * (i + 1))
        assert story(f"{before} …") in html and story(f"{after} …") in html and html.count('story">') == 2
        assert "no push<b></b>" in html and "towards <b>fear</b>, alpha 0.5 after layer 1" in html
        assert "the story names" not in html and "perplexity" not in html
    assert story(generate(random_vlm, prompt)) in whole and story(generate(random_vlm, prompt, edits)) in whole
    assert "the story names" in whole and "of the residual stream" in whole and panel.view.value == whole


def test_a_panel_starts_with_the_emotion_that_is_asked_for(random_vlm):  # noqa: F811
    begun = steering(random_vlm, directions("fear", "joy"), {"one": picture(1)}, emotion="joy")
    assert [story.push.emotion for story in begun.stories[1:]] == ["joy"] and "towards <b>joy</b>" in begun.view.value


def test_a_story_is_shown_in_parts_once_and_a_grid_is_not(panel):
    assert len(views(panel, alpha=0.7)) == len(views(panel, layer=2)) == len(views(panel, versus="joy")) == 6
    assert len(views(panel, grid=True)) == 1 and len(views(panel, grid=False, picture="two")) == 1 + 6
    assert len(views(panel, picture="one")) == len(views(panel, versus="none", layer=1, alpha=0.5)[-1:]) == 1


def test_stories_of_which_one_has_ended_wait_for_the_whole_view(random_vlm):  # noqa: F811
    """A logits processor sees those that go on, and not which they are."""
    seen, ids, logits = [], torch.full((2, 9 + 12), 5), torch.zeros(2, 7)
    (watch,) = stories_so_far(random_vlm, 2, seen.append)
    assert watch(ids[:, :9], logits) is logits and watch(ids[:1], logits[:1]).shape == (1, 7)
    assert watch(ids[:, :-1], logits) is logits and seen == []
    assert watch(ids, logits) is logits and seen == [[f"{random_vlm.tokenizer.decode([5] * 12).strip()} …"] * 2]


def test_both_stories_of_a_picture_and_its_twin_are_shown_while_they_are_told(random_vlm):  # noqa: F811
    scene = sample("test", 1, seed=6, emotions=("fear",))[0].scene
    *parts, whole = views(start_here(random_vlm, {"one": scene}), event=LETTER)
    assert len(parts) == 5 and "the story names" in whole
    for i, html in enumerate(parts):
        told = [
            random_vlm.generate(random_vlm.prompt(with_intensity(one, 0.9), LETTER), max_new_tokens=12 * (i + 1))
            for one in (scene, scene.neutral())
        ]
        assert all(marked(f"{text} …", emotions.extract(text)) in html for text in told) and "the story names" not in html


HEADS, NEURONS = [(2, 1), (0, 3), (1, 0)], [(2, 7), (1, 5)]
BY_HAND = [
    ScaleAttention(0, 16.0, ("query",), "visual", [3]), ScaleAttention(1, 16.0, ("query",), "visual", [0]),
    ScaleAttention(2, 16.0, ("last", "answer"), "visual", [1]), ScaleNeurons(2, [7], 2.5), ScaleNeurons(1, [5], 2.5),
]  # fmt: skip


def test_the_story_without_veena_is_shown_before_the_other_is_told(random_vlm):  # noqa: F811
    panel = veena(random_vlm, HEADS, NEURONS, 1, {"one": picture(1), "two": picture(2)}, EVENT, beta=16.0, gamma=2.5)
    first, *parts, whole = views(panel, event=LETTER)
    prompt = random_vlm.prompt(picture(1), LETTER)
    before, after = generate(random_vlm, prompt), generate(random_vlm, prompt, BY_HAND)
    with oracle.hooked(random_vlm, BY_HAND, prompt):
        assert after == random_vlm.generate(prompt) != before
    assert story(before) in first and first.count('story">') == first.count("reading …") == 1 and "perplexity" not in first
    assert story(before) in whole and story(after) in whole and "reading …" not in whole and "perplexity" in whole
    assert len(parts) == 5 and all(story(before) in html and "perplexity" not in html for html in parts)
    with oracle.hooked(random_vlm, BY_HAND, prompt):
        assert story(f"{random_vlm.generate(prompt, max_new_tokens=24)} …") in parts[1]
    assert len(views(panel, beta=4.0)) == 6 and len(views(panel, event=EVENT)) == 6 and len(views(panel, cases=True)) == 1
    assert len(views(panel, picture="two")) == 1  # told for the case study


def test_a_map_of_many_copies_comes_after_one_of_the_first_few_of_them():
    """These few by a loop over the noise of all."""
    tower, scene = load_tower("tiny"), next(e.scene for e in sample("test", 9, 3, emotions=("joy",)) if e.scene.has_face)
    known = EmotionDirections(("fear", "joy"), torch.randn(2, tower.d, generator=torch.Generator().manual_seed(0)), (1, 1))
    panel, f = saliency(tower, {"joy": scene}, known), toward(tower, known.vector("joy"), "joy")
    few, whole = views(panel, sigma=0.4)
    assert whole == SALIENCY.compute(saliency_map(f, scene, n=25, sigma=0.4), scene)
    assert "The map is a mean over 25 noisy copies.</p>" in whole and "over 4 noisy copies so far, of 25.</p>" in few
    x, noise, slopes = f.pixels([scene]), torch.randn(25, 3, 128, 128, generator=torch.Generator().manual_seed(0)), []
    for eps in noise[:4]:
        noisy = (x + 0.4 * x.std() * eps).requires_grad_()
        slopes.append(torch.autograd.grad(f(noisy).sum(), noisy)[0][0].abs().mean(0))
    first = saliency_map(f, scene, n=4, sigma=0.4)
    assert np.allclose(first.map, torch.stack(slopes).mean(0).numpy(), rtol=1e-3, atol=1e-6 * first.map.max())
    assert few == SALIENCY.compute(first, scene, 25)
    assert len(views(panel, n=16)) == 2 and len(views(panel, n=9)) == len(views(panel, method="gradient")) == 1
    assert "over 1 noisy copy.</p>" in views(panel, n=1, method="smoothgrad")[-1]


def test_a_map_made_of_a_known_gradient_is_the_chapters_own():
    tower, scene = load_tower("tiny"), sample("test", 1, 3)[0].scene
    f = toward(tower, torch.ones(tower.d), "all ones")
    plain = saliency_map(f, scene, "gradient")
    for method, settings in (("smoothgrad", {"n": 2, "sigma": 0.1}), ("grad-cam", {}), ("gradient", {}), ("random", {})):
        one, other = SALIENCY.mapped(f, plain, method, **settings), saliency_map(f, scene, method, **settings)
        assert (one.map == other.map).all() and (one.raw == other.raw).all() and (one.registers == other.registers).all()
        assert (one.method, one.target, one.value, one.settings) == (other.method, other.target, other.value, other.settings)
    still = replace(f, function=lambda pixels: 0 * pixels.sum((1, 2, 3)))
    with pytest.raises(InputError, match="moves with none of its pixels"):
        SALIENCY.mapped(still, plain, "smoothgrad", n=2)
