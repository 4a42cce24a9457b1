"""A panel as one HTML file: its views for a grid of values, computed beforehand, and a few lines of script to choose with."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from tqdm.auto import tqdm

from emointerp.errors import EmointerpError, InputError, OutputError

MOST = 2000  # views of one page
_CHOICES = (widgets.Dropdown, widgets.Select, widgets.SelectionSlider, widgets.ToggleButtons, widgets.RadioButtons)
_PICTURE = re.compile(r'(src|href)="(data:image/[^"]*)"')

Controls = Mapping[str, widgets.Widget]


def export_page(
    path: str | Path, controls: Controls, now: Mapping[str, Any], grid: Mapping[str, Any], still: Callable[..., str], css: str
) -> Path:
    """Write a page of `still(**values)` for every combination of the grid's values; the other controls stay as they are `now`."""
    chosen = {name: checked(controls, name, values) for name, values in grid.items()}
    count = math.prod(map(len, chosen.values()))
    if count > MOST:
        sizes = " x ".join(f"{len(values)} {name}" for name, values in chosen.items())
        raise InputError(f"The grid has {count:,} combinations ({sizes}); a page holds {MOST:,}. Give fewer values.")
    file = _writable(Path(path))
    combinations = [dict(zip(chosen, values, strict=True)) for values in product(*chosen.values())]
    views = [_view(still, now, some) for some in tqdm(combinations, desc="views")]
    inside = {name: _field(controls[name], name, values, now[name]) for name, values in chosen.items()}
    others = {name: labelled(controls[name], value) for name, value in now.items() if name not in chosen}
    _write_whole(file, page(file.stem, "".join(inside.values()), others, views, css))
    return file


# the grid


def checked(controls: Controls, name: str, values: Any) -> list[Any]:
    """The values of one control of a grid, each once, as the control takes them; InputError for those it does not take."""
    if name not in controls:
        raise InputError(f"This panel has no control {name!r}; it has {', '.join(controls)}.")
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{name} came as {values!r}; expected a list of values, such as [{values!r}].")
    listed = list(dict.fromkeys(value.item() if isinstance(value, np.generic) else value for value in values))
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
    return f"{value:g}" if isinstance(value, float) else str(value)


def _view(still: Callable[..., str], now: Mapping[str, Any], some: Mapping[str, Any]) -> str:
    try:
        return still(**{**now, **some})
    except EmointerpError as error:
        said = ", ".join(f"{name} = {value!r}" for name, value in some.items())
        raise type(error)(f"The panel has no view for {said or 'its present values'}: {error}") from error


# the page


def _field(control: widgets.Widget, name: str, values: Sequence[Any], now: Any) -> str:
    """A slider for numbers, else a list to choose from, with the values' places in the grid."""
    labels = [labelled(control, value) for value in values]
    start = values.index(now) if now in values else 0
    said, about = escape(name), f'id="field-{escape(name)}" data-size="{len(values)}" autocomplete="off"'
    if len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        told = escape(json.dumps(labels))
        field = (
            f'<input type="range" {about} min="0" max="{len(values) - 1}" step="1" value="{start}" data-labels="{told}">'
            f'<output for="field-{said}">{escape(labels[start])}</output>'
        )
    else:
        options = (f'<option value="{i}"{" selected" * (i == start)}>{escape(label)}</option>' for i, label in enumerate(labels))
        field = f"<select {about}>{''.join(options)}</select>"
    return f'<div><label for="field-{said}">{said}</label>{field}</div>'


def page(title: str, fields: str, others: Mapping[str, str], views: Sequence[str], css: str) -> str:
    """One HTML file: views and pictures lie inside, each once; no text of them can end its element."""
    pictures: dict[str, int] = {}

    def stored(match: re.Match) -> str:
        return f'{match[1]}="@{pictures.setdefault(match[2], len(pictures))}@"'  # in text, quotes are escaped: no such thing

    small = [_PICTURE.sub(stored, view) for view in views]
    kept = {view: i for i, view in enumerate(dict.fromkeys(small))}
    data = {"views": list(kept), "order": [kept[view] for view in small], "pictures": list(pictures)}
    held = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    stays = "; ".join(f"{escape(name)}: {escape(value)}" for name, value in others.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<main class="emointerp-panel emointerp-page">
<h1>{escape(title)}</h1>
{f'<form aria-label="what to show">{fields}</form>' if fields else ""}
{f'<p class="muted"><small>As it was: {stays}</small></p>' if stays else ""}
<div class="emointerp-view" id="view" aria-live="polite"></div>
<noscript>This page chooses among its views with JavaScript, which is switched off here.</noscript>
</main>
<script type="application/json" id="data">{held}</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const fields = [...document.querySelectorAll("[data-size]")];
function show() {{
  let at = 0;
  for (const field of fields) {{
    at = at * Number(field.dataset.size) + Number(field.value);
    if (field.type !== "range") continue;
    const label = JSON.parse(field.dataset.labels)[field.value];
    field.setAttribute("aria-valuetext", label);
    field.nextElementSibling.textContent = label;
  }}
  const view = data.views[data.order[at]];
  document.getElementById("view").innerHTML =
    view.replace(/(src|href)="@(\\d+)@"/g, (_, name, i) => `${{name}}="${{data.pictures[i]}}"`);
}}
for (const field of fields) field.addEventListener("input", show);
show();
</script>
</body>
</html>
"""


def _writable(file: Path) -> Path:
    """The file, after a look at its folder: hours of views are not to be computed for a folder that is not there."""
    if not file.parent.is_dir() or file.is_dir():
        raise OutputError(f"The page cannot be written to {file}; choose a file in a folder that exists.")
    return file


def _write_whole(file: Path, text: str) -> None:
    """The file comes into being whole, or not at all."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        raise OutputError(f"The page cannot be written to {file}: {error}. Choose a file in a folder that exists.") from None
    finally:
        part.unlink(missing_ok=True)
