"""Panel of chapter 01: move the sparsity, and see how features share dimensions.

The models are trained once, in seconds, when the panel is made; the slider only chooses among them.
"""

from functools import partial
from html import escape

import ipywidgets as widgets
import pandas as pd

from emointerp.errors import InputError
from emointerp.markup import data_uri
from emointerp.plots import ShownFigure, new_figure
from emointerp.superposition import ToyModels, draw_columns, train_toys
from emointerp.superposition.toy import NONE
from emointerp.widgets.panel import Panel, arranged

DENSITIES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.03)


def compute(toys: ToyModels, density: float) -> str:
    """The geometry of the model of a density, and what each feature has of the dimensions, as HTML."""
    figure, axis = new_figure(width=3.6, height=3.6)
    draw_columns(axis, toys.W[toys.index(density)])
    picture = f'<img src="{data_uri(figure)}" width="300" alt="Columns of W as arrows in the plane"/>'
    table = "".join(
        f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
        for tag, cells in zip(["th", *["td"] * len(_rows(toys, density))], [COLUMNS, *_rows(toys, density)], strict=True)
    )
    lead, stored = _told(toys, density)
    said = f"<p>{escape(lead)}: <b>{escape(stored)}</b>, {_kinds(_features(toys, density)['shape'].tolist())}.</p>"
    return f'{said}<div class="columns" style="align-items:center">{picture}<table class="plain">{table}</table></div>'


def draw(toys: ToyModels, density: float) -> ShownFigure:
    """The same as a figure: the arrows, and how much of a dimension each feature has to itself."""
    some, (figure, (plane, bars)) = _features(toys, density), new_figure(1, 2, width=7.2, height=3.5)
    draw_columns(plane, toys.W[toys.index(density)])
    drawn = bars.barh(some.feature, some.dimensionality, color=[line.get_color() for line in plane.lines[::2]][::-1])
    bars.bar_label(drawn, [f"{d:.2f}" for d in some.dimensionality], padding=3, fontsize=9)
    bars.set(xlim=(0, 1.15), xlabel="D, its share of a dimension", ylabel="feature", yticks=some.feature)
    bars.invert_yaxis()
    lead, stored = _told(toys, density)
    figure.suptitle(f"{lead}:\n{stored}, {_kinds(some['shape'].tolist())}", fontsize=10, x=0.02, ha="left")
    return figure


COLUMNS = ("feature", "importance", "length", "D")


def _features(toys: ToyModels, density: float) -> pd.DataFrame:
    """A row a feature of the model of a density."""
    frame = toys.to_frame()
    return frame[frame.density == toys.densities[toys.index(density)]]


def _rows(toys: ToyModels, density: float) -> list[tuple[str, ...]]:
    some = _features(toys, density)
    return [
        (f"{row.feature}", f"{row.importance:.2f}", f"{row.norm:.2f}", f"{row.dimensionality:.2f}") for row in some.itertuples()
    ]


def _told(toys: ToyModels, density: float) -> tuple[str, str]:
    """How often a feature is at work, and how many of them the model holds."""
    lead = f"Each feature is at work in {density:.0%} of the samples (sparsity {1 - density:g})"
    return lead, f"{int(_features(toys, density).represented.sum())} features in {toys.W.shape[1]} dimensions"


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
    controls = {"density": slider}
    return Panel(controls, partial(compute, toys), arranged(controls), draw=partial(draw, toys))
