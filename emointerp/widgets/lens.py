"""Panel of chapter 05: move through the layers, click a patch or a token, read what comes next there."""

from collections.abc import Mapping
from functools import lru_cache
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np

from emointerp.errors import EmointerpError
from emointerp.lens import ENTROPY, MASS, LogitLens, logit_lens
from emointerp.models import VLM
from emointerp.start_here import EVENT
from emointerp.widgets.panel import Panel, clear_scenes
from emointerp.widgets.patch_grid import PatchGrid
from emointerp.widgets.token_strip import TokenStrip

SHOWN = 4  # likeliest tokens a layer


def compute(lens: LogitLens, layer: int, token: int) -> str:
    """What comes next at a token, a row a layer, as HTML; the chosen layer stands out."""
    rows = []
    for i, words in enumerate(lens.words(token, SHOWN).to_numpy()):
        style = "background:#6842c933;font-weight:bold" if i == layer else ""
        rows.append(f'<tr style="{style}"><td>layer {i}</td>' + "".join(f"<td>{escape(word)}</td>" for word in words) + "</tr>")
    head = f"<p>Next after token {token}, <b>{escape(repr(lens.token(token)))}</b>:</p>"
    return f'{head}<table style="border-spacing:.9em .1em">{"".join(rows)}</table>'


class LensPanel(Panel):
    """The controls, a picture whose patches can be clicked, the prompt's tokens, and what comes next at the chosen one.

    `controls` are "picture", "show", "layer" and "token"; a click on a patch or a token sets "token". `lens` is the reading of the
    chosen picture, or None where it cannot be read.
    """

    def __init__(self, vlm: VLM, pictures: Mapping[str, Any], event: str, answer: str):
        self._read = lru_cache(maxsize=32)(lambda name: logit_lens(vlm, vlm.prompt(pictures[name], event, answer=answer)))
        first = self._read(next(iter(pictures)))
        controls: dict[str, widgets.Widget] = {
            "picture": widgets.Dropdown(options=list(pictures), description="picture"),
            "show": widgets.Dropdown(options=[MASS, *first.emotions, ENTROPY], description="show"),
            "layer": widgets.IntSlider(first.n_layers - 1, 0, first.n_layers - 1, continuous_update=False, description="layer"),
            "token": widgets.BoundedIntText(first.prompt.last, min=0, max=first.prompt.last, description="token"),
        }
        self.controls, self.grid, self.strip = controls, PatchGrid(), TokenStrip()
        self._show_picture()
        self.grid.observe(self._patch_clicked, names="selected")
        self.strip.observe(self._token_clicked, names="selected")
        controls["picture"].observe(self._picture_chosen, names="value")
        for name in ("show", "layer", "token"):
            controls[name].observe(lambda _: self._draw(), names="value")
        row = widgets.HBox([controls[name] for name in ("picture", "show", "layer", "token")])
        layout = widgets.VBox([row, widgets.HBox([self.grid, self.strip])])
        super().__init__(controls, lambda picture, show, layer, token: compute(self._read(picture), layer, token), layout)

    def _picture_chosen(self, _: Any) -> None:
        try:
            self._show_picture()
        except EmointerpError:  # the panel meets the same one when it refreshes, and shows it in words
            self.lens, self.grid.values = None, []

    def _show_picture(self) -> None:
        self.lens: LogitLens | None = self._read(self.controls["picture"].value)
        prompt, boxes = self.lens.prompt, self.lens.vlm.boxes(self.lens.prompt)
        spans = {**dict.fromkeys(prompt.visual, "visual"), **dict.fromkeys(prompt.query, "query"), prompt.last: "last"}
        new = PatchGrid.of(prompt.image, boxes)
        with self.grid.hold_trait_notifications():
            self.grid.selected, self.grid.values, self.grid.labels = -1, [], []
            self.grid.picture, self.grid.size, self.grid.boxes = new.picture, new.size, new.boxes
        with self.strip.hold_trait_notifications():
            self.strip.selected, self.strip.values = -1, []
            self.strip.tokens = [self.lens.token(t) for t in range(len(prompt))]
            self.strip.spans = [spans.get(t, "") for t in range(len(prompt))]
        self.controls["token"].max = prompt.last
        self.controls["token"].value = prompt.last
        self._draw()

    def _draw(self) -> None:
        """Colours of the chosen layer, on one scale for all layers; the chosen token outlined."""
        if self.lens is None:
            return
        lens, show, token = self.lens, self.controls["show"].value, self.controls["token"].value
        every = np.stack([lens.values(show, layer) for layer in range(lens.n_layers)])
        visual, here = list(lens.prompt.visual), every[self.controls["layer"].value]
        # two scales, as a text token may have far more than any patch
        (self.grid.values, low, high), (self.strip.values, _, _) = (
            _scaled(every[:, t], here[t], show) for t in (visual, slice(None))
        )
        self.grid.labels = [f"{show} {v:.3f}" for v in here[visual]]
        self.grid.low, self.grid.high, self.grid.title = (
            f"{low:.2g}",
            f"{high:.2g}",
            f"{show}, layer {self.controls['layer'].value}",
        )
        self.grid.selected = visual.index(token) if token in visual else -1
        self.strip.selected = token

    def _patch_clicked(self, change: dict) -> None:
        if change["new"] >= 0 and self.lens is not None:
            self.controls["token"].value = self.lens.prompt.visual[change["new"]]

    def _token_clicked(self, change: dict) -> None:
        if change["new"] >= 0:
            self.controls["token"].value = change["new"]

    def _repr_mimebundle_(self, **options: Any) -> dict:
        """The live panel, and beside it what it shows now, for pages where widgets are dead (GitHub, slides)."""
        bundle = super()._repr_mimebundle_(**options)
        return bundle and {**bundle, "text/html": self.grid.static_html() + self.view.value}


def _scaled(every: np.ndarray, here: np.ndarray, show: str) -> tuple[np.ndarray, float, float]:
    """Values of a layer on a scale of 0 to 1 that fits all layers, and its ends; mass begins at nothing."""
    low = float(every.min()) if show == ENTROPY else 0.0
    high = max(float(every.max()), low + 1e-6)
    return (here - low) / (high - low), low, high


def lens(vlm: VLM, pictures: Mapping[str, Any] | None = None, event: str = EVENT, answer: str = "I felt") -> LensPanel:
    """A panel to read a model layer by layer; `pictures` maps names to pictures, by default a clear test scene an emotion."""
    return LensPanel(vlm, pictures or clear_scenes(), event, answer)
