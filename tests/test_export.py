"""Panels as figures and as pages of their own: every view of a grid, each picture once, clear errors, nothing half written."""

import base64
import errno
import io
import itertools
import json
import re
from datetime import UTC, datetime
from html import unescape
from xml.etree import ElementTree

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from tiny_models import LAYERS, WIDTH, picture, random_vlm  # noqa: F401 - random_vlm is a fixture

from emointerp.directions import Directions
from emointerp.emotions import extract
from emointerp.errors import InputError, OutputError
from emointerp.markup import data_uri
from emointerp.models import WEIGHTS
from emointerp.plots import ShownFigure, new_figure
from emointerp.saliency import SaliencyMap
from emointerp.start_here import EVENT
from emointerp.widgets import lens, own_model, steering
from emointerp.widgets.drawing import EDGE, Sheet, image_of
from emointerp.widgets.export import MOST
from emointerp.widgets.panel import Panel
from emointerp.widgets.saliency import draw as draw_saliency

HOSTILE = '</script><script>alert(1)</script>"\'& src="@0@"'
PICTURES = [data_uri(Image.new("RGB", (2, 2), (40 * i, 0, 0))) for i in range(3)]


def panel(show=None, draw=None) -> Panel:
    controls = {
        "layer": widgets.IntSlider(2, 0, 9),
        "alpha": widgets.FloatSlider(value=0.5, min=0, max=2),
        "beta": widgets.FloatLogSlider(value=8, base=2, min=0, max=6),
        "emotion": widgets.Dropdown(options=["fear", HOSTILE]),
        "density": widgets.SelectionSlider(options=[("0.90", 0.1), ("0.50", 0.5)], description="sparsity <b>"),
        "grid": widgets.Checkbox(False),
        "event": widgets.Text("it rained"),
        "own": widgets.FileUpload(description="own picture"),
    }
    overrides = {"own": ("layer", "emotion"), "event": ("grid",)}
    return Panel(controls, show or told, widgets.VBox(list(controls.values())), draw=draw, overrides=overrides)


def told(layer, alpha, beta, emotion, density, grid, event, own) -> str:
    said = [layer, alpha, beta, emotion, density, grid, event]
    escaped = str(said).replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<p>{escaped}</p><img src="{PICTURES[layer % 3]}"/><svg><image href="{PICTURES[0]}"/></svg>'


def data_of(file) -> dict:
    """What the page holds, found as a browser finds it: up to the first end of the element."""
    held = file.read_text(encoding="utf-8").partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    return json.loads(held)


def view_of(data: dict, *at_of_size: tuple[int, int]) -> str:
    """The view for places in the grid, as the page's script puts it together."""
    at = 0
    for place, size in at_of_size:
        at = at * size + place
    return re.sub(r'(src|href)="@(\d+)@"', lambda m: f'{m[1]}="{data["pictures"][int(m[2])]}"', data["views"][data["order"][at]])


def test_a_page_holds_the_view_of_every_combination_and_each_picture_once(tmp_path):
    made, asked = panel(), {"layer": range(4), "emotion": ["fear", HOSTILE], "alpha": [0, 0.5, np.float64(1.5)]}
    file = made.export(tmp_path / "panel.html", **asked)
    text, data = file.read_text(encoding="utf-8"), data_of(file)
    for (i, layer), (j, emotion), (k, alpha) in itertools.product(*map(enumerate, asked.values())):
        expected = told(**{**made.values, "layer": layer, "emotion": emotion, "alpha": float(alpha) if k else 0})
        assert view_of(data, (i, 4), (j, 2), (k, 3)) == expected
    assert len(data["order"]) == 24 and sorted(data["pictures"]) == sorted(PICTURES)
    assert all(text.count(picture) == 1 for picture in PICTURES)
    assert made.values["layer"] == 2 and [f.name for f in tmp_path.iterdir()] == ["panel.html"]


def test_equal_views_are_kept_once(tmp_path):
    data = data_of(panel(lambda layer, **_: f"<p>{layer // 2}</p>").export(tmp_path / "a.html", layer=range(6)))
    assert data["views"] == ["<p>0</p>", "<p>1</p>", "<p>2</p>"] and data["order"] == [0, 0, 1, 1, 2, 2]


def test_a_page_asks_nothing_of_the_network_and_nothing_from_outside_is_markup(tmp_path):
    text = panel().export(tmp_path / f"{'<b>'}.html", emotion=["fear", HOSTILE], layer=[0, 1]).read_text(encoding="utf-8")
    head, _, body = text.partition("<body>")
    assert not re.search(r"https?://|//cdn|@import|url\(", head + body.partition("<script")[0])
    assert text.count("<script") == 2 and text.count("alert(1)") == 1 + len(data_of(tmp_path / "<b>.html")["views"]) // 2
    assert "<b>" not in text and f"<title>{'&lt;b&gt;'}</title>" in text


def test_fields_begin_where_the_panel_is_and_say_their_values(tmp_path):
    grid = {"layer": [5, 2], "density": [0.1, 0.5], "grid": [False, True], "emotion": ["fear", HOSTILE], "beta": [1, 8]}
    made = panel()
    made.controls["event"].value = ""
    text = made.export(tmp_path / "a.html", **grid).read_text(encoding="utf-8")
    sliders = {name: (value, json.loads(labels)) for name, value, labels in re.findall(SLIDER, text)}
    assert sliders == {"layer": ("1", ["5", "2"]), "density": ("0", ["0.90", "0.50"]), "beta": ("1", ["1", "8"])}
    assert '<option value="0" selected>off</option>\n<option value="1">on</option>' in text
    assert HOSTILE in map(unescape, re.findall("<option[^>]*>(.*)</option>", text))
    assert "As it was: alpha: 0.5; event: none; own picture: none" in text
    said = {name: "sparsity &lt;b&gt;" if name == "density" else name for name in grid}  # as beside the panel's own controls
    assert all(f'<label for="field-{name}">{words}</label>' in text for name, words in said.items())


SLIDER = r"""<input type="range" id="field-(\w+)" [^>]* value="(\d)" data-labels='([^']*)'>"""


def test_without_a_grid_the_page_holds_the_one_view_of_now(tmp_path):
    made = panel()
    file = made.export(tmp_path / "a.html")
    assert view_of(data_of(file)) == told(**made.values) and "<form" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"depth": [1]}, "no control 'depth'; it has layer, alpha, beta"),
        ({"layer": 3}, r"layer came as 3; expected a list of values, such as \[3\]"),
        ({"emotion": "fear"}, r"emotion came as 'fear'; expected a list"),
        ({"layer": []}, "No value of layer came"),
        ({"layer": [10]}, "layer does not take 10; expected a whole number from 0 to 9"),
        ({"layer": [1.5]}, "layer does not take 1.5; expected a whole number"),
        ({"layer": [True]}, "layer does not take True"),
        ({"alpha": [-1]}, "alpha does not take -1; expected a number from 0 to 2"),
        ({"alpha": [float("nan")]}, "alpha does not take nan"),
        ({"beta": [0.5]}, "beta does not take 0.5; expected a number from 1 to 64"),
        ({"emotion": ["rage"]}, "emotion does not take 'rage'; expected one of 'fear', "),
        ({"density": ["0.90"]}, "density does not take '0.90'; expected one of 0.1, 0.5"),
        ({"grid": [1]}, "grid does not take 1; expected True or False"),
        ({"event": [3]}, "event does not take 3; expected a text"),
        ({"own": [()]}, "uploads stay as they are"),
        ({"density": [[0.1]]}, r"density came as \[\[0.1\]\]; expected a list of numbers or texts, with no list inside"),
        ({"alpha": np.ones((2, 2))}, "expected a list of numbers or texts"),
        ({"grid": [True, False]}, "event is filled and takes the place of grid. Empty event, or leave grid out of the grid"),
        ({"event": ["", "it rained"], "grid": [True, False]}, "event is filled"),
        ({"layer": range(9), "alpha": np.linspace(0, 2, 300)}, r"2,700 combinations \(9 layer x 300 alpha\); a page holds 2,000"),
    ],
)
def test_what_a_grid_refuses(tmp_path, grid, words):
    with pytest.raises(InputError, match=words):
        panel().export(tmp_path / "a.html", **grid)
    assert MOST == 2000 and not list(tmp_path.iterdir())


def test_controls_that_another_takes_the_place_of_are_refused_while_it_is_filled(tmp_path):
    made = panel()
    made.controls["own"].value = ({"name": "a.png", "type": "", "size": 1, "content": b"a", "last_modified": datetime.now(UTC)},)
    with pytest.raises(InputError, match="own is filled and takes the place of layer and emotion. Empty own, or leave layer and"):
        made.export(tmp_path / "a.html", layer=[1, 2], emotion=["fear"], alpha=[0, 1])
    assert "own picture: a.png" in made.export(tmp_path / "a.html", alpha=[0, 1]).read_text(encoding="utf-8")
    made.controls["event"].value = "  "
    made.controls["own"].value = ()
    assert len(data_of(made.export(tmp_path / "b.html", layer=[1, 2], grid=[True, False]))["order"]) == 4


def test_the_panels_say_which_control_takes_the_place_of_which(tmp_path):
    made = own_model()
    made.controls["own"].value = str(WEIGHTS / "tiny")
    with pytest.raises(InputError, match="own is filled and takes the place of model. Empty own"):
        made.export(tmp_path / "a.html", model=["tiny"])
    made.controls["own"].value = " "
    assert made.export(tmp_path / "a.html", model=["tiny"]).is_file()


def test_an_error_that_nobody_expected_says_where_it_came(tmp_path):
    def broken(layer, alpha, **_):
        return "<p></p>" if (layer, alpha) != (3, 1.5) else [][0]

    with pytest.raises(IndexError) as raised:
        panel(broken).export(tmp_path / "a.html", layer=range(5), alpha=[0, 1.5])
    assert raised.value.__notes__ == ["The page was at the panel's view for layer = 3, alpha = 1.5."]
    assert not list(tmp_path.iterdir())


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="gone/a.html; choose a file in a folder that exists"):
        panel().export(tmp_path / "gone" / "a.html", layer=[1])
    with pytest.raises(OutputError, match="choose a file"):
        panel().export(tmp_path, layer=[1])

    def sometimes(layer, **_):
        if layer == 3:
            raise InputError("There is no such layer.")
        return "<p></p>"

    kept = tmp_path / "a.html"
    kept.write_text("before", encoding="utf-8")
    with pytest.raises(InputError, match="The panel has no view for layer = 3: There is no such layer"):
        panel(sometimes).export(kept, layer=range(5))
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match="a.html: .*No space left.* Choose a file in a folder that exists"):
        panel().export(kept, layer=range(5))
    assert kept.read_text(encoding="utf-8") == "before" and len(list(tmp_path.iterdir())) == 1


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


# what a panel shows while it works, and its figure


def test_a_panel_says_that_it_is_at_work_and_what_went_wrong():
    seen = []

    def show(layer, **_):
        seen.append((made.busy.value, "emointerp-busy" in made._dom_classes) if layer == 4 else None)
        if layer == 5:
            raise KeyError("<b>lost")
        return "<p></p>"

    made = panel(show)
    made.controls["layer"].value = 4
    assert seen[-1] == ("reading …", True) and made.busy.value == "" and "emointerp-busy" not in made._dom_classes
    made.controls["layer"].value = 5
    assert made.view.value == '<div role="alert" class="problem">KeyError: &#x27;&lt;b&gt;lost&#x27;</div>'
    assert made.view.value in made.static_html() and all(
        said in made.busy._esm for said in ('"role", "status"', '"aria-live", "polite"')
    )


def test_a_figure_is_of_the_present_values_or_says_why_there_is_none():
    made = panel(draw=lambda layer, **_: new_figure(width=1 + layer)[0])
    made.controls["layer"].value = 6
    assert isinstance(made.figure(), ShownFigure) and made.figure().get_figwidth() == 7
    with pytest.raises(InputError, match="has no figure"):
        panel().figure()


def test_text_is_wrapped_by_its_true_width():
    sheet = Sheet(200)
    bottom = sheet.text(10, 5, "I stood where I was and felt a little <glad>, $x$ and so on, for a while.", 120, size=10)
    figure = sheet.figure("Title")
    figure.canvas.draw()
    ends = [text.get_window_extent().transformed(figure.axes[0].transData.inverted()) for text in figure.axes[0].texts]
    assert len(ends) >= 4 and bottom == pytest.approx(5 + 14.5 * len(ends))
    assert all(9.9 <= end.x0 and end.x1 <= 132 for end in ends)
    assert " ".join(text.get_text() for text in figure.axes[0].texts) == sheet._said[0]
    assert figure.get_size_inches() == pytest.approx([(200 + 2 * EDGE) / 72, (bottom + 2 * EDGE) / 72])
    assert figure.alt.startswith("Title: I stood")


def test_marks_are_coloured_and_keep_their_full_stop():
    story, sheet = "I felt glad. It was over.", Sheet(300)
    sheet.text(0, 0, story, marks=extract(story))
    axis = sheet.figure().axes[0]
    assert [text.get_text() for text in axis.texts] == ["I felt", "glad", ". It was over."]
    boxes = [text.get_bbox_patch() for text in axis.texts]
    assert [box is not None for box in boxes] == [False, True, False] and to_hex(boxes[1].get_edgecolor()) == "#e69f00"
    axis.figure.canvas.draw()
    places = [text.get_window_extent() for text in axis.texts]
    points = 72 / axis.figure.dpi
    assert (places[1].x0 - places[0].x1) * points == pytest.approx(3.2, abs=1)  # a space, and none before the full stop
    assert (places[2].x0 - places[1].x1) * points == pytest.approx(0, abs=1)


def test_a_label_with_dollars_is_no_formula(tmp_path):
    """As one of a reader's own directions may be called."""
    found = SaliencyMap(np.eye(8), Image.new("RGB", (8, 8)), "gradient", r"cosine to $\nothing{$", 0.5)
    figure = draw_saliency(found)
    figure.savefig(tmp_path / "a.png")
    assert figure.get_suptitle() == r"cosine to $\nothing{$ = 0.500."


def words_of(figure: ShownFigure) -> str:
    return " ".join(text.get_text() for axis in figure.axes for text in axis.texts)


def test_the_figure_of_the_steering_panel_tells_its_stories(random_vlm):  # noqa: F811
    vectors = torch.randn(2, LAYERS, WIDTH, generator=torch.Generator().manual_seed(0))
    made = steering(random_vlm, Directions(("fear", "joy"), vectors, (1, 1)), {"one": picture(1)}, layer=1, alpha=0.5)
    plain = made.figure()
    assert f"{made.stories[1].shift:.0%} of the residual stream's" in words_of(plain)
    assert "".join(made.stories[1].text.split()) in "".join(plain.alt.split())
    made.controls["grid"].value = True
    assert made.figure().get_figheight() > plain.get_figheight() + 1 and "Stories towards fear" in words_of(made.figure())


def test_the_page_of_the_lens_has_the_patches_of_each_layer(random_vlm, tmp_path):  # noqa: F811
    made = lens(random_vlm, {"one": picture(1)}, EVENT)
    data, shown = data_of(made.export(tmp_path / "a.html", layer=range(LAYERS))), []
    for layer in range(LAYERS):
        made.controls["layer"].value = layer
        view = view_of(data, (layer, LAYERS))
        assert made.grid.static_html() in view and made.strip.static_html() in view and made.view.value in view
        assert view in made.static_html()
        shown.append(np.asarray(image_of(made.figure(), 60).convert("RGB"), float))
    assert len(data["pictures"]) == 1 and np.abs(shown[0] - shown[-1]).mean() > 0.1
    assert Image.open(io.BytesIO(base64.b64decode(data["pictures"][0].partition(",")[2]))).size == picture(1).shape[1::-1]


def test_a_stand_in_is_well_formed_and_has_the_panels_look(random_vlm):  # noqa: F811
    html = lens(random_vlm, {HOSTILE: picture(1)}, EVENT).static_html()
    tree = ElementTree.fromstring(html)
    assert tree.get("class") == "emointerp-panel" and ".emointerp-panel" in tree[0].text and not list(tree.iter("script"))
