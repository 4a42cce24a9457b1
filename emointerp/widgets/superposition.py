"""Panel of chapter 01: move the sparsity, and see how features share dimensions.

The models are trained once, in seconds, when the panel is made; the slider only chooses among them.
"""

from html import escape

import ipywidgets as widgets

from emointerp.errors import InputError
from emointerp.markup import data_uri
from emointerp.plots import new_figure
from emointerp.superposition import ToyModels, draw_columns, train_toys
from emointerp.superposition.toy import NONE
from emointerp.widgets.panel import Panel

DENSITIES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.03)
_CELL = "text-align:left;padding:.1em .9em .1em 0"


def compute(toys: ToyModels, density: float) -> str:
    """The geometry of the model of a density, and what each feature has of the dimensions, as HTML."""
    at = toys.index(density)
    some = toys.to_frame()
    some = some[some.density == toys.densities[at]]
    figure, axis = new_figure(width=3.6, height=3.6)
    draw_columns(axis, toys.W[at])
    stored = int(some.represented.sum())
    said = (
        f"<p>Each feature is at work in <b>{density:.0%}</b> of the samples (sparsity {1 - density:g}): "
        f"<b>{stored} features in {toys.W.shape[1]} dimensions</b>, {_kinds(some['shape'].tolist())}.</p>"
    )
    rows = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"
        for cells in (
            (row.feature, f"{row.importance:.2f}", f"{row.norm:.2f}", f"{row.dimensionality:.2f}") for row in some.itertuples()
        )
    )
    head = "".join(
        f'<th style="{_CELL};font-weight:normal;opacity:.75">{name}</th>' for name in ("feature", "importance", "length", "D")
    )
    picture = f'<img src="{data_uri(figure)}" width="300" alt="Columns of W as arrows in the plane"/>'
    table = f'<table style="border-collapse:collapse"><tr>{head}</tr>{rows}</table>'
    return f'{said}<div style="display:flex;flex-wrap:wrap;gap:1.5em;align-items:center">{picture}{table}</div>'


def _kinds(shapes: list[str]) -> str:
    """How many features are of which shape.

    >>> _kinds(["pentagon", "pentagon", "not represented"])
    'pentagon: 2'
    """
    kinds = sorted(set(shapes) - {NONE})
    return escape(", ".join(f"{kind}: {shapes.count(kind)}" for kind in kinds)) or "none stored"


def superposition(toys: ToyModels | None = None) -> Panel:
    """A panel with a slider of sparsities; by default five features in two dimensions, trained at nine sparsities.

    `toys` must have two dimensions, to be drawn in the plane.
    """
    toys = train_toys(densities=DENSITIES, progress=False) if toys is None else toys
    if toys.W.shape[1] != 2:
        raise InputError(f"These models have {toys.W.shape[1]} hidden dimensions; the panel draws two: train_toys(hidden=2).")
    options = sorted(((f"{1 - density:.2f}", density) for density in toys.densities), key=lambda option: -option[1])
    slider = widgets.SelectionSlider(options=options, description="sparsity", continuous_update=False)
    return Panel({"density": slider}, lambda density: compute(toys, density), slider)
