"""What every panel shares: results kept by their arguments, a busy mark, and errors in words instead of swallowed."""

from collections.abc import Callable
from functools import lru_cache
from html import escape
from typing import Any

import ipywidgets as widgets

from emointerp.emotions import BASIC
from emointerp.errors import EmointerpError
from emointerp.world import Scene, sample

SEED = 6  # of the pictures that panels start with
BUSY = '<span style="opacity:.6">reading …</span>'


class Panel(widgets.VBox):
    """Controls above a view. `compute(**values)` gives HTML for the controls' values, which must be hashable.

    It runs once for each new set of values; `refresh()` is called on every change. A test sets a control's value and reads
    `view.value`.
    """

    def __init__(self, controls: dict[str, widgets.Widget], compute: Callable[..., str], layout: widgets.Widget):
        self.controls, self.view, self.busy = controls, widgets.HTML(), widgets.HTML()
        self._compute = lru_cache(maxsize=256)(compute)
        for control in controls.values():
            control.observe(lambda _: self.refresh(), names="value")
        super().__init__([layout, self.busy, self.view])
        self.refresh()

    def refresh(self) -> None:
        """Compute for the present values and show the result, or say in words what is wrong."""
        self.busy.value = BUSY
        try:
            self.view.value = self._compute(**{name: _hashable(control.value) for name, control in self.controls.items()})
        except EmointerpError as error:
            self.view.value = _problem(str(error))
        except Exception as error:  # a kernel would swallow it inside a callback, and the panel would look frozen
            self.view.value = _problem(f"{type(error).__name__}: {error}")
        finally:
            self.busy.value = ""

    def _repr_mimebundle_(self, **options) -> dict:
        """The live panel, and beside it what it shows now, for pages where widgets are dead (GitHub, slides)."""
        bundle = super()._repr_mimebundle_(**options)
        return bundle and {**bundle, "text/html": self.view.value}


def clear_scenes() -> dict[str, Scene]:
    """A clear test scene for each emotion: what panels show unless pictures are given."""
    return {e: sample("test", 1, SEED, emotions=(e,))[0].scene for e in BASIC}


def _hashable(value: Any) -> Any:
    """The value itself; uploads, which are dicts, become pairs of name and bytes."""
    return (
        tuple((v["name"], bytes(v["content"])) if isinstance(v, dict) else v for v in value) if isinstance(value, tuple) else value
    )


def _problem(message: str) -> str:
    return f'<div role="alert" style="border-left:4px solid #D55E00;padding:.4em .8em;max-width:46em">{escape(message)}</div>'
