"""What every panel shares: one look, results kept by their arguments, a busy mark, errors in words, a figure and a page of it."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
from traitlets import Unicode

from emointerp.emotions import BASIC
from emointerp.errors import EmointerpError, InputError
from emointerp.plots import ShownFigure
from emointerp.widgets.export import export_page
from emointerp.widgets.tinted import STATIC
from emointerp.world import Scene, sample

SEED = 6  # of the pictures that panels start with
BUSY = "reading …"
CSS = (STATIC / "panel.css").read_text(encoding="utf-8")
_COLUMNS = "repeat(auto-fill, minmax(min(21em, 100%), 1fr))"


class Status(anywidget.AnyWidget):
    """What a panel is doing, in words that screen readers tell too (ipywidgets has no live region); brings the panels' style."""

    _esm = (STATIC / "status.js").read_text(encoding="utf-8")
    _css = CSS
    value = Unicode(help="what is going on; empty: nothing").tag(sync=True)


class Panel(widgets.VBox):
    """Controls above a view. `compute(**values)` gives HTML for the controls' values, which must be hashable.

    It runs once for each new set of values; `refresh()` is called on every change. A test sets a control's value and reads
    `view.value`. Of the same values `first` gives what can be shown until `compute` is done (None: nothing), `draw` the static
    figure, and `still` the HTML that stands in where widgets are dead (by default what `compute` gives). While it runs, `compute`
    may show what there is `so_far`. `overrides` names, by a control, those whose place it takes where it is filled.
    """

    def __init__(
        self,
        controls: dict[str, widgets.Widget],
        compute: Callable[..., str],
        layout: widgets.Widget,
        *,
        first: Callable[..., str | None] | None = None,
        draw: Callable[..., ShownFigure] | None = None,
        still: Callable[..., str] | None = None,
        overrides: Mapping[str, tuple[str, ...]] | None = None,
    ):
        self.controls, self.view, self.busy = controls, widgets.HTML(), Status()
        self._compute = lru_cache(maxsize=256)(compute)
        self._first, self._draws, self._stands = first, draw, still or self._compute
        self._overrides = overrides or {}
        self._asked: set[tuple] = set()
        for control in controls.values():
            control.observe(lambda _: self.refresh(), names="value")
        super().__init__([layout, self.busy, self.view])
        self.add_class("emointerp-panel")
        self.view.add_class("emointerp-view")
        self.refresh()

    @property
    def values(self) -> dict[str, Any]:
        """The present value of each control, by its name."""
        return {name: _hashable(control.value) for name, control in self.controls.items()}

    def refresh(self) -> None:
        """Compute for the present values and show the result, or say in words what is wrong."""
        self.busy.value = BUSY
        self.add_class("emointerp-busy")
        try:
            if self._first is not None and (now := tuple(self.values.values())) not in self._asked:
                self._asked.add(now)
                self.so_far(_or_problem(self._first, self.values))
            self.view.value = _or_problem(self._compute, self.values)
        finally:
            self.remove_class("emointerp-busy")
            self.busy.value = ""

    def so_far(self, html: str | None) -> None:
        """Show a part of a view until the whole is there (None: no part); it does nothing while a page is made."""
        if html is not None and self.busy.value:
            self.view.value = html

    def figure(self) -> ShownFigure:
        """What the panel shows for the present values, as a figure for slides and papers.

        Raises what the panel would say in words: an InputError, say, where the picture cannot be read.
        """
        if self._draws is None:
            raise InputError("This panel has no figure; write a page of it: panel.export('panel.html').")
        return self._draws(**self.values)

    def static_html(self) -> str:
        """What the panel shows now as HTML without a script, in the panels' look."""
        return f'<div class="emointerp-panel"><style>{CSS}</style>{_or_problem(self._stands, self.values)}</div>'

    def export(self, path: str | Path, **grid: Any) -> Path:
        """Write one HTML file with what the panel shows for every combination of the values given, and a control for each of them.

        It needs no kernel and no network. `grid` maps names of `controls` to values, say `layer=range(8), alpha=[0, 0.5, 1]`;
        the other controls stay as they are, and without a grid the page holds the one view that the panel shows now. Raises
        InputError where a control is unknown, gets no value or one that it does not take, or has its place taken by another that is
        filled, and where there are more than 2,000 combinations; OutputError where the file cannot be written. Nothing is left half
        written.
        """
        return export_page(path, self.controls, self.values, grid, self._overrides, self._stands, CSS)

    def _repr_mimebundle_(self, **options: Any) -> dict:
        """The live panel, and beside it what it shows now, for pages where widgets are dead (GitHub, slides)."""
        bundle = super()._repr_mimebundle_(**options)
        return bundle and {**bundle, "text/html": self.static_html()}


def arranged(controls: Mapping[str, widgets.Widget], wide: tuple[str, ...] = ()) -> widgets.VBox:
    """Controls in equal columns, as many as there is room for; below them the `wide` ones, a line each."""
    for control in controls.values():
        control.layout.width = "auto"
    columns = [control for name, control in controls.items() if name not in wide]
    grid = widgets.GridBox(columns, layout=widgets.Layout(grid_template_columns=_COLUMNS))
    box = widgets.VBox([grid, *(controls[name] for name in wide)])
    for part in (box, grid):
        part.add_class("emointerp-controls")
    return box


def clear_scenes() -> dict[str, Scene]:
    """A clear test scene for each emotion: what panels show unless pictures are given."""
    return {e: sample("test", 1, SEED, emotions=(e,))[0].scene for e in BASIC}


def _or_problem(make: Callable[..., str | None], values: Mapping[str, Any]) -> str | None:
    """What is made of values, or in words what is wrong."""
    try:
        return make(**values)
    except EmointerpError as error:
        return _problem(str(error))
    except Exception as error:  # a kernel would swallow it inside a callback, and the panel would look frozen
        return _problem(f"{type(error).__name__}: {error}")


def _hashable(value: Any) -> Any:
    """The value itself; uploads, which are dicts, become pairs of name and bytes."""
    return (
        tuple((v["name"], bytes(v["content"])) if isinstance(v, dict) else v for v in value) if isinstance(value, tuple) else value
    )


def _problem(message: str) -> str:
    return f'<div role="alert" class="problem">{escape(message)}</div>'
