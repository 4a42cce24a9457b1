"""The patch grid and the token strip: what they refuse, what they show where widgets are dead, and their files."""

import re
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from traitlets import TraitError

from emointerp.errors import InputError
from emointerp.widgets import PatchGrid, TokenStrip
from emointerp.widgets.tinted import RAMP

QUARTERS = [[0, 0, 32, 16], [32, 0, 64, 16], [0, 16, 32, 32], [32, 16, 64, 32]]
HOSTILE = "<script>alert(1)</script>\"'&"


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
    assert texts.keys() == {"tinted.js", "tinted.css", "patch_grid.js", "token_strip.js"}
    for name, text in texts.items():
        assert not re.search(r"https?://|@import|\bimport\b.*\bfrom\b|url\(", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\b", text), name
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
