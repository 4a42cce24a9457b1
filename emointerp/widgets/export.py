"""A panel as one HTML file: its views for a grid of values, computed beforehand, and a few lines of script to choose with."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from jinja2 import Environment, FileSystemLoader, Template
from tqdm.auto import tqdm

from emointerp.errors import EmointerpError, InputError, OutputError
from emointerp.files import whole
from emointerp.widgets.tinted import STATIC

MOST = 2000  # views of one page
_CHOICES = (widgets.Dropdown, widgets.Select, widgets.SelectionSlider, widgets.ToggleButtons, widgets.RadioButtons)
_PICTURE = re.compile(r'(src|href)="(data:image/[^"]*)"')

Controls = Mapping[str, widgets.Widget]


def export_page(
    path: str | Path,
    controls: Controls,
    now: Mapping[str, Any],
    grid: Mapping[str, Any],
    overrides: Mapping[str, tuple[str, ...]],
    still: Callable[..., str],
    css: str,
) -> Path:
    """Write a page of `still(**values)` for every combination of the grid's values; the other controls stay as they are `now`.

    `overrides` names, by a control, those whose place it takes where it is filled.
    """
    chosen = {name: checked(controls, name, values) for name, values in grid.items()}
    _check_overrides(overrides, now, chosen)
    count = math.prod(map(len, chosen.values()))
    if count > MOST:
        sizes = " x ".join(f"{len(values)} {name}" for name, values in chosen.items())
        raise InputError(f"The grid has {count:,} combinations ({sizes}); a page holds {MOST:,}. Give fewer values.")
    file = _writable(Path(path))
    combinations = [dict(zip(chosen, values, strict=True)) for values in product(*chosen.values())]
    views = [_view(still, now, some) for some in tqdm(combinations, desc="views")]
    fields = [_field(controls[name], name, values, now[name]) for name, values in chosen.items()]
    others = (f"{_said(controls[n], n)}: {labelled(controls[n], value)}" for n, value in now.items() if n not in chosen)
    _write(file, page(file.stem, fields, "; ".join(others), views, css))
    return file


# the grid


def checked(controls: Controls, name: str, values: Any) -> list[Any]:
    """The values of one control of a grid, each once, as the control takes them; InputError for those it does not take."""
    if name not in controls:
        raise InputError(f"This panel has no control {name!r}; it has {', '.join(controls)}.")
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{name} came as {values!r}; expected a list of values, such as [{values!r}].")
    try:
        listed = list(dict.fromkeys(value.item() if isinstance(value, np.generic) else value for value in values))
    except TypeError:
        raise InputError(f"{name} came as {values!r}; expected a list of numbers or texts, with no list inside.") from None
    if not listed:
        raise InputError(f"No value of {name} came; expected one or more.")
    for value in listed:
        if (expected := _refusal(controls[name], value)) is not None:
            raise InputError(f"{name} does not take {value!r}; expected {expected}.")
    return listed


def _refusal(control: widgets.Widget, value: Any) -> str | None:
    """What a control expects in place of a value; None where it takes it."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(control, _CHOICES):
        options = list(_options(control).values())
        return None if value in options else f"one of {', '.join(map(repr, options))}"
    if isinstance(control, widgets.FileUpload):
        return "nothing: uploads stay as they are in a page"
    if isinstance(control.value, bool):
        return None if isinstance(value, bool) else "True or False"
    if isinstance(control.value, str):
        return None if isinstance(value, str) else "a text"
    low, high = _ends(control)
    number = whole or (isinstance(value, float) and not isinstance(control.value, int))
    inside = number and low <= value <= high
    return None if inside else f"{'a whole number' if isinstance(control.value, int) else 'a number'} from {low:g} to {high:g}"


def _options(control: widgets.Widget) -> dict[str, Any]:
    """What a list offers, by the words that it shows."""
    listed = control.options.items() if isinstance(control.options, Mapping) else control.options
    return dict((str(o[0]), o[1]) if isinstance(o, tuple) and len(o) == 2 else (str(o), o) for o in listed)


def _ends(control: widgets.Widget) -> tuple[float, float]:
    if isinstance(control, widgets.FloatLogSlider):
        return control.base**control.min, control.base**control.max
    return getattr(control, "min", -math.inf), getattr(control, "max", math.inf)


def labelled(control: widgets.Widget, value: Any) -> str:
    """A value as the control shows it."""
    if isinstance(control, _CHOICES):
        return next(label for label, option in _options(control).items() if option == value)
    if isinstance(control, widgets.FileUpload):
        return ", ".join(name for name, _ in value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value).strip() or "none"


def _view(still: Callable[..., str], now: Mapping[str, Any], some: Mapping[str, Any]) -> str:
    try:
        return still(**{**now, **some})
    except EmointerpError as error:
        raise type(error)(f"The panel has no view for {_values(some)}: {error}") from error
    except Exception as error:  # none of ours: it stays what it is, and says where
        error.add_note(f"The page was at the panel's view for {_values(some)}.")
        raise


def _values(some: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in some.items()) or "its present values"


def _check_overrides(overrides: Mapping[str, tuple[str, ...]], now: Mapping[str, Any], chosen: Mapping[str, list[Any]]) -> None:
    """InputError where a control of the grid would change nothing, as another is filled and takes its place."""
    for name, others in overrides.items():
        lost = " and ".join(other for other in others if other in chosen)
        if lost and any(map(_is_filled, chosen.get(name, [now[name]]))):
            raise InputError(f"{name} is filled and takes the place of {lost}. Empty {name}, or leave {lost} out of the grid.")


def _is_filled(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


# the page


@dataclass(frozen=True)
class Field:
    """A control of the page, which chooses a place in the grid: a slider if it `slides`, else a list."""

    name: str
    said: str  # what stands beside it
    labels: list[str]  # of its values
    start: int
    slides: bool


def _field(control: widgets.Widget, name: str, values: Sequence[Any], now: Any) -> Field:
    """A slider for two numbers or more, else a list."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    labels, start = [labelled(control, value) for value in values], values.index(now) if now in values else 0
    return Field(name, _said(control, name), labels, start, numbers and len(values) > 1)


def _said(control: widgets.Widget, name: str) -> str:
    """What stands beside a control; its values may be shown in other terms than its name's, as sparsities for a density."""
    return control.description or name


def page(title: str, fields: Sequence[Field], stays: str, views: Sequence[str], css: str) -> str:
    """One HTML file: views and pictures lie inside, each once; no text of them can end its element."""
    pictures: dict[str, int] = {}

    def stored(match: re.Match) -> str:
        return f'{match[1]}="@{pictures.setdefault(match[2], len(pictures))}@"'  # in text, quotes are escaped: no such thing

    small = [_PICTURE.sub(stored, view) for view in views]
    kept = {view: i for i, view in enumerate(dict.fromkeys(small))}
    data = {"views": list(kept), "order": [kept[view] for view in small], "pictures": list(pictures)}
    return _template().render(title=title, fields=fields, stays=stays, data=data, css=css)


@cache
def _template() -> Template:
    environment = Environment(loader=FileSystemLoader(STATIC), autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template("page.html")


def _writable(file: Path) -> Path:
    """The file, after a look at its folder: hours of views are not to be computed for a folder that is not there."""
    if not file.parent.is_dir() or file.is_dir():
        raise OutputError(f"The page cannot be written to {file}; choose a file in a folder that exists.")
    return file


def _write(file: Path, text: str) -> None:
    try:
        with whole(file) as part:
            part.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"The page cannot be written to {file}: {error}. Choose a file in a folder that exists.") from None
