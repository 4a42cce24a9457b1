"""Texts from outside (file names, events, labels, vocabularies, errors) are text wherever they are shown, and never markup.

Each string of `hostile.STRINGS` goes through each place where HTML is made; the markup must be what a plain word gets there. Then a
real browser opens the pages and nothing of them runs. Figures are drawn with the same strings as titles, ticks and legends.
"""

import base64
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
import pytest
import test_explorer
import torch
from hostile import HACK, PLAIN, STRINGS, Skeleton
from PIL import Image
from test_heads_panel import WORDS, made_map, some_pairs
from tiny_families import vlm as vlm_of
from tiny_models import picture

from emointerp import widgets
from emointerp.emotions import extract
from emointerp.errors import InputError
from emointerp.gallery import Found
from emointerp.lens import LogitLens
from emointerp.markup import data_uri, marked
from emointerp.models import Prompt
from emointerp.models.familiarity import Familiarity
from emointerp.pairs import Check, Pair
from emointerp.plots import described, new_figure
from emointerp.reproduce import cases
from emointerp.saliency import SaliencyMap
from emointerp.start_here import Reading, Telling
from emointerp.tour.chapter import STOPPED, Chapter, Job, figure_html, left_out, table_html
from emointerp.tour.page import rendered
from emointerp.tour.report import _page
from emointerp.tour.sizes import QUICK
from emointerp.tour.steering import _story_row as tour_push
from emointerp.tour.veena import _Case, _stories
from emointerp.widgets import export
from emointerp.widgets.explorer import Explorer
from emointerp.widgets.explorer import page as explorer_page
from emointerp.widgets.panel import Panel

EXPLORER, HEADS, LENS, SAE, SALIENCY, START, STEERING, VEENA = (
    sys.modules[f"emointerp.widgets.{name}"]  # the package has functions of these names
    for name in ("explorer", "heads", "lens", "sae", "saliency", "start_here", "steering", "veena")
)
STATIC = Path(EXPLORER.__file__).parent / "static"
SMALL = Image.fromarray(picture(1)[:16, :16])
strings = pytest.mark.parametrize("name", STRINGS)


# places where HTML is made


def telling(text: str) -> Telling:
    return Telling(SMALL, text, text, text)


def checks(text: str) -> pd.DataFrame:
    words = dict.fromkeys(("name", "emotion", "split", "problems"), text)
    return pd.DataFrame([words | {"same_size": True, "background": 0.5, "drift": 0.0}])


def checked(text: str) -> str:
    return Check(checks(text), [Pair(SMALL, SMALL, text, text)])._repr_html_()


def saliency(text: str) -> SaliencyMap:
    return SaliencyMap(np.eye(16), SMALL, text, text, 1.0)


def panel(text: str, show: Callable[..., str] | None = None) -> Panel:
    control = ipywidgets.Dropdown(options=[text, PLAIN], description=text)
    return Panel({"choice": control}, show or (lambda choice: f"<p>{escape(choice)}</p>"), control)


def refused(text: str) -> Panel:
    def show(choice: str) -> str:
        raise InputError(text)

    return panel(text, show)


def exported(text: str) -> str:
    fields = [
        export.Field("a", text, [text, text + PLAIN], 0, True),
        export.Field("b", text, [text], 0, False),
    ]
    return export.page(text, fields, text, [f"<p>{escape(text)}</p>"] * 2, "")


def pushed(text: str) -> str:
    shown = STEERING.Shown(text, asked(), torch.zeros(1), data_uri(SMALL))
    stories = [STEERING.Story(text, (text,)), STEERING.Story(text, (text,), STEERING.Push(text, 0, 1.0), 0.5, (text,))]
    return STEERING.stories_html(shown, stories) + STEERING.grid_html(stories[1:], stories[1].push)


def mended(text: str) -> str:
    shown = VEENA.Shown(text, text, asked(), text, text, text, data_uri(SMALL))
    one = VEENA.Mended(shown, *[VEENA.Story(text, (text,), False, False, True)] * 2, 1.0, None)
    return VEENA.mended_html(one) + VEENA.cases_html([one])


@cache
def asked() -> Prompt:
    return vlm_of("llava_clip").prompt(SMALL, "It rained.")


def read_by_layer(text: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogitLens, "words", lambda *_: pd.DataFrame([[text] * 4]))
        patch.setattr(LogitLens, "token", lambda *_: text)
        return LENS.compute(object.__new__(LogitLens), 0, 3)


@cache
def tree(text: str):
    labels = [text] * 20 + ["fear"] * 20 + ["neutral"] * 20
    return test_explorer.feature_tree(
        test_explorer.codes_of(test_explorer.dense()), labels, sae=test_explorer.sae(), n=8, words={i: text for i in range(8)}
    )


def explorer(text: str) -> Explorer:
    return Explorer(tree(text), lambda _: [(SMALL, np.eye(4), text)], title=text, selected=5, search=text)


def tour(text: str) -> str:
    blocks = ((text, figure_html(figure(PLAIN), text)), (text, table_html(pd.DataFrame([{text: text}]))))
    told = Chapter("lens", text, (text,), blocks, {}, plain=(("When does the emotion come up?", text),))
    job, model = Job(((text, SMALL),), text, sizes=QUICK), replace(vlm_of("llava_clip"), name=text)
    chapters = [told, left_out("sae", text, text), Chapter("heads", text, (text,), (), {"error": text}, state=STOPPED)]
    return _page(model, job, chapters, 1.0)


def reproduction(text: str) -> str:
    claim = dict.fromkeys(("what", "source", "says", "of", "here", "comparable"), text)
    told = dict.fromkeys(("model", "version", "verdict", "pairs", "data", "command", "size", "where"), text)
    chapters = [
        Chapter("roads", text, (text,), ((text, table_html(pd.DataFrame([{text: text}]))),), {}),
        left_out("cases", text, text),
    ]
    packages = ("emointerp.reproduce", "emointerp.tour")
    shown = {"chapters": chapters, "missing": chapters[1:], "heads": (text,), "claims": [claim], "drawn": False}
    return rendered("reproduction.html", packages, **told, **shown)


def reproduced_stories(text: str) -> str:
    pair = Pair(SMALL, SMALL, text, "joy", name=text)
    stories = {(0, side, method): text for side in cases.SIDES for method in (cases.PLAIN, cases.WITH, cases.PUSHED)}
    return f"<table>{cases._rows(0, pair, pd.Series(stories, dtype=object))}</table>"


@cache
def figure(text: str):
    made, axis = new_figure(width=2, height=2)
    axis.set_title(text)
    return made


@cache
def known_head() -> tuple:
    """A head of a random model, read on a pair, with its neurons."""
    vlm, (pair, _), effects = vlm_of("llava_clip"), some_pairs(), HEADS.Effects.of(made_map())
    return effects, pair, HEADS.compute(vlm, effects, HEADS.prepared(vlm, pair), 1, 2, words=WORDS)


def head(text: str) -> str:
    effects, pair, known = known_head()
    neurons = replace(known.neurons, table=known.neurons.table.assign(words=text, names=text))
    told = replace(known, neurons=neurons, emotions=known.emotions.rename(index={"up": text}), note=text)
    pair = replace(pair, event=text, emotion=text, name=text)
    return "".join(HEADS.reading_html(one, pair, effects) for one in (told, replace(told, neurons=None)))


def grid(text: str) -> "widgets.PatchGrid":
    boxes = [[0, 0, 8, 8], [8, 8, 16, 16]]
    return widgets.PatchGrid.of(SMALL, boxes, [0.1, 0.9], labels=[text] * 2, title=text, low=text, high=text)


def strip(text: str) -> "widgets.TokenStrip":
    return widgets.TokenStrip(tokens=[text] * 2, spans=[text] * 2, values=[0.1, 0.9], title=text)


PLACES: dict[str, Callable[[str], str]] = {
    "a story's marks": lambda text: marked(f"I was glad. {text}", extract(f"I was glad. {text}")),
    "a telling": lambda text: telling(text)._repr_html_(),
    "pairs that were checked": checked,
    "a saliency map": lambda text: saliency(text)._repr_html_(),
    "a panel": lambda text: panel(text).static_html(),
    "a panel's error": lambda text: refused(text).static_html(),
    "an exported page": exported,
    "the explorer's stand-in": lambda text: explorer(text).static_html(),
    "the explorer's page": lambda text: explorer_page({"a": text}, text),
    "the panel start_here": lambda text: START.compute(Reading(telling(text), telling(text), Familiarity(1.0, 2.0, 3.0))),
    "the panel sae": lambda text: SAE.summary_html(tree(text), text),
    "the panel saliency": lambda text: SALIENCY.compute(saliency(text)),
    "the panel steering": pushed,
    "the panel lens": read_by_layer,
    "the panel veena": mended,
    "the panel heads": head,
    "the patch grid": lambda text: grid(text).static_html(),
    "the token strip": lambda text: strip(text).static_html(),
    "the tour": tour,
    "the tour's pushes": lambda text: f"<table>{tour_push(text, telling(text), 1.0)}</table>",
    "the reproduction": reproduction,
    "the reproduction's stories": reproduced_stories,
    "the tour's stories": lambda text: _stories([_Case(text, *[replace(telling(text), emotion=None)] * 2, text)]),
}
SAID_OTHERWISE = {"the token strip", "the panel lens", "the panel heads"}  # what cannot be seen is told by its code
NOT_SAID = {"the panel sae", "the explorer's page"}  # only what stands out is named; the page's data is JSON
LINES = {"pairs that were checked", "the tour", "the reproduction"}  # pandas writes lines in its own way
FRAMES = LINES | {"the explorer's stand-in", "the panel sae", "the panel lens", "the panel heads"}  # it holds no halves of a pair


def structure(page: Skeleton, place: str) -> list[tuple]:
    """The markup, without the marks for blanks that a token strip has."""
    return [part for part in page.markup if place != "the token strip" or part[0].strip("/") != "span"]


@strings
@pytest.mark.parametrize("place", PLACES)
def test_a_text_from_outside_is_no_markup(place, name, record_property):
    if place in FRAMES and name == "half a pair":
        record_property("tried", 0)
        return
    text = STRINGS[name]
    plain, found = Skeleton(PLACES[place](PLAIN)), Skeleton(PLACES[place](text))
    assert structure(found, place) == structure(plain, place) and not found.dangers()
    if place not in SAID_OTHERWISE | NOT_SAID and not (place in LINES and name == "lines"):
        assert text in found.said or text.replace(" ", "\N{NO-BREAK SPACE}") in found.said


def test_views_are_put_into_pages_in_one_place():
    """By `innerHTML`, of HTML that Python escaped; all other scripts make elements and set their text."""
    markup = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|\beval\b|new Function")
    found = {file.name: len(markup.findall(file.read_text(encoding="utf-8"))) for file in STATIC.glob("*.js")}
    assert found.pop("page.js") == 1 and set(found.values()) == {0} and len(found) == 4


# figures


def ticked(text: str):
    """A figure with the text wherever words may stand."""
    made, (bars, line) = new_figure(1, 2, width=6, height=3)
    tick = PLAIN if text in (STRINGS["half a pair"], STRINGS["control"]) else text  # which come from UTF-8, in which neither is
    bars.bar_label(bars.bar([tick, "other"], [1, 2], label=text), [text, PLAIN])
    bars.set(title=text, xlabel=text, ylabel=text)
    line.plot([1, 1000], [1, 2], label=text)
    line.set_xscale("log")
    line.set_yticks([1, 2], [tick, PLAIN])
    line.annotate(text, (1, 1))
    line.legend(title=text)
    made.suptitle(text)
    return made


def words_of(made) -> list[str]:
    """The words of a figure as it is drawn, in SVG, which has them as text."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        made.savefig(file, format="svg")
    texts = ElementTree.fromstring(file.getvalue()).iter("{http://www.w3.org/2000/svg}text")
    return [" ".join("".join(text.itertext()).split()) for text in texts]


@strings
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning", "ignore:constrained_layout:UserWarning")
def test_a_figure_is_drawn_whatever_its_words(name):
    text, made = STRINGS[name], ticked(STRINGS[name])
    words = words_of(made)
    assert not any("mathdefault" in word for word in words if "cost" not in word)
    assert {"1 0 0", "1 0 3"} <= set(words)  # powers of ten, the exponent set higher
    if name not in ("lines", "control", "half a pair", "directions"):
        assert words.count(" ".join(text.split())) == 10
    assert len(described(made)) <= 600


FIGURES: dict[str, Callable[[str], object]] = {
    "pictures that were found": lambda text: Found(text, pd.DataFrame({"path": ["a"], "value": [1.0]}), Path("nowhere")).plot(),
    "a saliency map": lambda text: saliency(text).plot(),
    "the panel start_here": lambda text: START.draw(Reading(telling(text), None, None)),
}
FRAMED: dict[str, Callable[[str], object]] = {
    "a tree of features": lambda text: tree(text).plot(width=5),
    "pairs that were checked": lambda text: Check(checks(text), [Pair(SMALL, SMALL, text, text)]).contact_sheet(),
}


@pytest.mark.parametrize("name", ["formula", "control", "half a pair"])
@pytest.mark.parametrize("which", FIGURES | FRAMED)
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning", "ignore:constrained_layout:UserWarning")
def test_figures_of_the_package_are_drawn_whatever_their_words(which, name, record_property):
    if which in FRAMED and name == "half a pair":
        record_property("tried", 0)
        return
    made = (FIGURES | FRAMED)[which](STRINGS[name])
    made.savefig(io.BytesIO(), format="png")
    assert made.alt


# in a browser

HEAD = '<meta charset="utf-8"><link rel="icon" href="data:,">'
ALL = " ".join(text for name, text in STRINGS.items() if name != "half a pair")
MODEL = """
const traits = JSON.parse(document.getElementById("data").textContent), told = {};
const model = {
  get: (name) => traits[name],
  set: (name, value) => { traits[name] = value; (told[`change:${name}`] ?? []).forEach((tell) => tell()); },
  on: (name, tell) => (told[name] ??= []).push(tell),
  off: () => {},
  save_changes: () => {},
};
const { default: widget } = await import(`data:text/javascript;base64,${document.getElementById("script").textContent}`);
widget.render({ model, el: document.getElementById("root") });
document.body.dataset.ready = "yes";
"""


def live(widget) -> str:
    """A page with a widget that lives as it does in a notebook: its own script, and traits behind a model."""
    traits = {name: value for name, value in widget.get_state().items() if not name.startswith(("_esm", "_css", "layout", "comm"))}
    data = json.dumps(traits).replace("<", "\\u003c")
    script = base64.b64encode(widget._esm.encode()).decode()
    return (
        f'{HEAD}<div id="root"></div><script type="application/json" id="data">{data}</script>'
        f'<script type="text/plain" id="script">{script}</script><script type="module">{MODEL}</script>'
    )


@pytest.fixture(scope="module")
def browser() -> Iterator:
    pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    import browser as tools

    if tools.CHROMIUM is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    with tools.chromium() as opened:
        yield opened


def opened(browser, file: Path, use: Callable) -> None:
    """Open a page, use it, and see that nothing of what came from outside was run, and nothing asked for."""
    from browser import watched

    with watched(browser, file.as_uri()) as seen:
        dialogs = []
        seen.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        seen.page.goto(file.as_uri())
        use(seen.page)
        assert not dialogs and seen.page.evaluate("() => window.hacked === undefined")
        seen.calm()


def write(folder: Path, html: str) -> Path:
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8", errors="replace")
    return file


def test_the_browser_would_tell(browser, tmp_path):
    """The oracle of the tests below: strings that are not escaped do run."""
    for name in ("script", "attribute", "end of title"):
        with pytest.raises(AssertionError):
            opened(browser, write(tmp_path, f"<body>{STRINGS[name]}"), lambda page: page.wait_for_timeout(100))


def test_nothing_runs_in_what_is_shown(browser, tmp_path):
    shown = "".join(
        f"<section>{make(ALL)}</section>" for place, make in PLACES.items() if "page" not in place and place != "the tour"
    )
    opened(browser, write(tmp_path, f"{HEAD}<body>{shown}"), hover)


def test_nothing_runs_in_the_tour_and_the_reproduction(browser, tmp_path, record_property):
    for html in (tour(ALL), reproduction(ALL)):
        opened(browser, write(tmp_path, html), hover)
        record_property("tried", 1)


def hover(page) -> None:
    page.evaluate("""() => document.querySelectorAll("*").forEach((node) => {
        for (const kind of ["mouseover", "focus", "click"]) node.dispatchEvent(new Event(kind));
    })""")


def test_nothing_runs_in_an_exported_page(browser, tmp_path):
    values = [*STRINGS.values()]
    control = ipywidgets.Dropdown(options=values, description=ALL)
    made = Panel({"choice": control}, lambda choice: f"<p>{escape(choice)}</p>", control)

    def use(page) -> None:
        for i, text in enumerate(values):
            page.locator("select").select_option(str(i))
            shown = page.locator("#view").text_content()
            assert shown == written(text)

    opened(browser, made.export(tmp_path / "<b>page.html", choice=values), use)


def written(text: str) -> str:
    """A text as it comes back from a file in UTF-8, through JSON and a browser."""
    return text.encode("utf-8", "replace").decode().replace("\0", "").replace("\r\n", "\n")


def test_nothing_runs_in_the_explorer(browser, tmp_path, record_property):
    def use(page) -> None:
        for spot in page.locator(".leaf .target").all()[:3]:
            spot.dispatch_event("click")
        page.locator("input[type=search], input").first.fill(STRINGS["script"])

    for file in (explorer(ALL).save(tmp_path / "explorer.html", progress=False), write(tmp_path, live(explorer(ALL)))):
        opened(browser, file, use)
        record_property("tried", 1)


@pytest.mark.parametrize("make", [grid, strip])
def test_nothing_runs_in_live_widgets(browser, tmp_path, make):
    def use(page) -> None:
        page.wait_for_selector("[data-ready]")
        for node in page.locator("[role=option], button").all():
            node.dispatch_event("pointerover")
            node.dispatch_event("click")
        assert HACK in page.locator("#root").inner_text()

    opened(browser, write(tmp_path, live(make(ALL))), use)
