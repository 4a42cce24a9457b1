"""Panel of chapter 05: move through the layers, click a patch or a token, read what comes next there."""

from collections.abc import Mapping
from functools import lru_cache
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
from comm import DummyComm

from emointerp.errors import EmointerpError
from emointerp.lens import ENTROPY, MASS, LogitLens, Words, logit_lens
from emointerp.markup import data_uri, thumbnail
from emointerp.models import VLM
from emointerp.plots import ShownFigure
from emointerp.start_here import EVENT
from emointerp.widgets.drawing import Sheet
from emointerp.widgets.panel import Panel, arranged, clear_scenes
from emointerp.widgets.patch_grid import PatchGrid
from emointerp.widgets.token_strip import TokenStrip, chips

CHOSEN = ' class="chosen"'
SHOWN = 4  # likeliest tokens a layer


def compute(lens: LogitLens, layer: int, token: int) -> str:
    """What comes next at a token, a row a layer, as HTML; the chosen layer stands out."""
    rows = []
    for i, words in enumerate(lens.words(token, SHOWN).to_numpy()):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in (f"layer {i}", *words))
        rows.append(f"<tr{CHOSEN * (i == layer)}>{cells}</tr>")
    head = f"<p>Next after token {token}, <b>{escape(repr(lens.token(token)))}</b>:</p>"
    return f'{head}<div class="scroll"><table class="plain">{"".join(rows)}</table></div>'


def tinted(lens: LogitLens, show: str, layer: int, token: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the picture's patches and the prompt's tokens look like: traits of a `PatchGrid` and of a `TokenStrip`.

    Colours are on one scale for all layers, of patches and of tokens each, as a text token may have far more than any patch.
    """
    every = np.stack([lens.values(show, at) for at in range(lens.n_layers)])
    visual, here = list(lens.prompt.visual), every[layer]
    patches, low, high = _scaled(every[:, visual], here[visual], show)
    patch = {
        "values": patches.tolist(),
        "labels": [f"{show} {v:.3f}" for v in here[visual]],
        "low": f"{low:.2g}",
        "high": f"{high:.2g}",
        "title": f"{show}, layer {layer}",
        "selected": visual.index(token) if token in visual else -1,
    }
    return patch, {"values": _scaled(every, here, show)[0].tolist(), "selected": token}


def tokens(lens: LogitLens) -> dict[str, list[str]]:
    """A prompt's tokens and the span that each lies in: traits of a `TokenStrip`."""
    prompt = lens.prompt
    spans = {**dict.fromkeys(prompt.visual, "visual"), **dict.fromkeys(prompt.query, "query"), prompt.last: "last"}
    return {"tokens": [lens.token(t) for t in range(len(prompt))], "spans": [spans.get(t, "") for t in range(len(prompt))]}


def still(lens: LogitLens, show: str, layer: int, token: int) -> str:
    """All that the panel shows as HTML without a script; a page never hears of the parts that it is made of."""
    (patch, strip), boxes = tinted(lens, show, layer, token), lens.vlm.boxes(lens.prompt)
    grid = PatchGrid.of(lens.prompt.image, boxes, **patch, comm=DummyComm())
    line = TokenStrip(**tokens(lens), **strip, comm=DummyComm())
    html = f'<div class="columns">{grid.static_html()}<div class="narrow">{line.static_html()}</div></div>'
    grid.close()
    line.close()
    return html + compute(lens, layer, token)


def draw(lens: LogitLens, show: str, layer: int, token: int) -> ShownFigure:
    """The same as a figure: the picture under its colours, the prompt's tokens, and what comes next at the chosen one."""
    (patch, strip), sheet = tinted(lens, show, layer, token), Sheet(620)
    y = sheet.text(0, 0, patch["title"], size=11, weight="bold")
    boxes = lens.vlm.boxes(lens.prompt)
    below = sheet.patches(0, y + 4, 210, lens.prompt.image, boxes, patch["values"], patch["selected"])
    sheet.ramp(0, below + 6, 210, patch["low"], patch["high"])
    beside = sheet.chips(228, y + 4, chips(**tokens(lens)), strip["values"], token)
    beside = sheet.text(228, beside + 8, f"Next after token {token}, {lens.token(token)!r}:", size=10)
    rows = [(f"layer {i}", *words) for i, words in enumerate(lens.words(token, SHOWN).to_numpy())]
    sheet.table(228, beside + 2, rows, [50, *[342 / SHOWN] * SHOWN], size=8, bold=layer)
    return sheet.figure("The logit lens")


class LensPanel(Panel):
    """The controls, a picture whose patches can be clicked, the prompt's tokens, and what comes next at the chosen one.

    `controls` are "picture", "show", "layer" and "token"; a click on a patch or a token sets "token". `lens` is the reading of the
    chosen picture, or None where it cannot be read.
    """

    def __init__(self, vlm: VLM, pictures: Mapping[str, Any], event: str, answer: str, words: Words = None):
        words = words and {label: tuple(some) for label, some in words.items()}  # read anew for each picture
        self._read = lru_cache(maxsize=32)(lambda name: logit_lens(vlm, vlm.prompt(pictures[name], event, answer=answer), words))
        first = self._read(next(iter(pictures)))
        controls: dict[str, widgets.Widget] = {
            "picture": widgets.Dropdown(options=list(pictures), description="picture"),
            "show": widgets.Dropdown(options=[MASS, *first.emotions, ENTROPY], description="show"),
            "layer": widgets.IntSlider(first.n_layers - 1, 0, first.n_layers - 1, continuous_update=False, description="layer"),
            "token": widgets.BoundedIntText(first.prompt.last, min=0, max=first.prompt.last, description="token"),
        }
        self.controls, self.grid = controls, PatchGrid(layout=widgets.Layout(flex="none"))
        self.strip = TokenStrip(layout=widgets.Layout(flex="1 1 22em", min_width="0"))
        self._show_picture()
        self.grid.observe(self._patch_clicked, names="selected")
        self.strip.observe(self._token_clicked, names="selected")
        controls["picture"].observe(self._picture_chosen, names="value")
        for name in ("show", "layer", "token"):
            controls[name].observe(lambda _: self._draw(), names="value")
        shown = widgets.HBox([self.grid, self.strip], layout=widgets.Layout(align_items="flex-start"))
        super().__init__(
            controls,
            lambda picture, show, layer, token: compute(self._read(picture), layer, token),
            widgets.VBox([arranged(controls), shown]),
            draw=lambda picture, **values: draw(self._read(picture), **values),
            still=lambda picture, **values: still(self._read(picture), **values),
        )

    def _picture_chosen(self, _: Any) -> None:
        try:
            self._show_picture()
        except EmointerpError:  # the panel meets the same one when it refreshes, and shows it in words
            self.lens, self.grid.values = None, []

    def _show_picture(self) -> None:
        self.lens: LogitLens | None = self._read(self.controls["picture"].value)
        prompt, boxes = self.lens.prompt, self.lens.vlm.boxes(self.lens.prompt)
        with self.grid.hold_trait_notifications():
            self.grid.selected, self.grid.values, self.grid.labels = -1, [], []
            self.grid.picture, self.grid.size, self.grid.boxes = data_uri(thumbnail(prompt.image)), prompt.image.size, boxes
        with self.strip.hold_trait_notifications():
            self.strip.selected, self.strip.values = -1, []
            for name, value in tokens(self.lens).items():
                setattr(self.strip, name, value)
        self.controls["token"].max = prompt.last
        self.controls["token"].value = prompt.last
        self._draw()

    def _draw(self) -> None:
        """Colours of the chosen layer, the chosen token outlined."""
        if self.lens is None:
            return
        patch, strip = tinted(self.lens, *(self.controls[name].value for name in ("show", "layer", "token")))
        for widget, traits in ((self.grid, patch), (self.strip, strip)):
            for name, value in traits.items():
                setattr(widget, name, value)

    def _patch_clicked(self, change: dict) -> None:
        if change["new"] >= 0 and self.lens is not None:
            self.controls["token"].value = self.lens.prompt.visual[change["new"]]

    def _token_clicked(self, change: dict) -> None:
        if change["new"] >= 0:
            self.controls["token"].value = change["new"]


def _scaled(every: np.ndarray, here: np.ndarray, show: str) -> tuple[np.ndarray, float, float]:
    """Values of a layer on a scale of 0 to 1 that fits all layers, and its ends; mass begins at nothing."""
    low = float(every.min()) if show == ENTROPY else 0.0
    high = max(float(every.max()), low + 1e-6)
    return (here - low) / (high - low), low, high


def lens(
    vlm: VLM,
    pictures: Mapping[str, Any] | None = None,
    event: str = EVENT,
    answer: str = "I felt",
    words: Words = None,
) -> LensPanel:
    """A panel to read a model layer by layer; `pictures` maps names to pictures, by default a clear test scene an emotion.

    `words` maps emotions, or the labels of a concept of yours, to words (`emotion_tokens`); by default those of the lexicon.
    """
    return LensPanel(vlm, pictures or clear_scenes(), event, answer, words)
