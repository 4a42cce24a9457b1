"""Step 5: the road from the picture (V) by the query (Q) to the last token (L): saliency, cuts, and transplants by stage."""

from functools import partial
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from emointerp.flow import (
    CONTROLS,
    DIRECTIONS,
    OTHER_EMOTION,
    OTHER_PICTURE,
    Flow,
    Knockouts,
    Patching,
    information_flow,
    knockouts,
    patching,
)
from emointerp.measures import HITS
from emointerp.reproduce.kept import Result
from emointerp.reproduce.sizes import stages
from emointerp.reproduce.task import Task, each, lines_left_out, or_why, rate
from emointerp.statistics import Interval
from emointerp.tour.chapter import Chapter, figure_html, muted, points, table_html

NAME, TITLE = "flow", "Information flow"
NEEDS = ("vectors", "layers")
WINDOW = 3  # layers of a cut
SOURCES = {
    "value": "the pair's other picture",
    OTHER_EMOTION: "control: another emotion's",
    OTHER_PICTURE: "control: feeling unchanged",
}


def measure(task: Task) -> Result:
    """All on test pairs: saliency of attention, cuts by window and in all layers, transplants by stage (hit rate) and by layer."""
    vlm, n = task.vlm, task.vlm.anatomy.n_layers
    pairs = task.known("test", task.sizes.flow)
    singles, quiet = {i: (i,) for i in range(n)}, {"others": pairs, "progress": False}
    told = {"stages": stages(n), "max_new_tokens": task.sizes.tokens} | quiet
    made = {
        "saliency": lambda some: information_flow(vlm, some, progress=False).table,
        "windows": lambda some: knockouts(vlm, some, "mass", width=min(WINDOW, n), progress=False).table,
        "cut": lambda some: knockouts(vlm, some, "mass", width=n, progress=False).table,
        "stages": lambda some: patching(vlm, some, HITS, **told).table,
        "layers": lambda some: patching(vlm, some, stages=singles, **quiet).table,
    }
    tables, facts = each({name: partial(task.parts.table, name, pairs, make) for name, make in made.items()})
    return Result(tables, facts=facts)


def chapter(task: Task, result: Result) -> Chapter:
    """Each analysis that this model and these pairs allow, and why the others are not here."""
    t, blocks, results, summary = result.tables, [], {}, []
    if "saliency" in t:
        flow = Flow(t["saliency"])
        blocks.append(("Saliency of attention", figure_html(flow.plot(), "Saliency by road and layer") + muted(_SALIENCY)))
        shares = _road_shares(flow)
        results["saliency"] = shares.to_dict("index")
        summary.append(_saliency_line(shares))
    if "cut" in t:
        falls = Knockouts(t["cut"], "mass").to_frame().droplevel("centre")
        blocks.append(("Cut in all layers, beside other readers", table_html(_cut_rows(falls)) + muted(_CUT)))
        results["cut"] = falls.to_dict("index")
        summary.append(_cut_line(falls))
    if "windows" in t:
        cut = Knockouts(t["windows"], "mass")
        blocks.append((f"Cut in {_width(cut)} layers at a time", figure_html(cut.plot(), _WINDOWS)))
    if "stages" in t:
        told = Patching(t["stages"], HITS)
        blocks.append(("Transplants by stage, hit rate of the story", table_html(_stage_rows(told)) + muted(_STAGES)))
        results["stages"] = {" / ".join(key): interval for key, interval in _changes(told).items()}
        results["stages, controls"] = {
            control: {" / ".join(key): interval for key, interval in _changes(told, control).items()} for control in _controls(told)
        }
    if "layers" in t:
        blocks.append(("Transplants layer by layer", _by_layer(Patching(t["layers"], "log mass"), results)))
    summary += lines_left_out(result.facts)
    return Chapter(NAME, TITLE, tuple(summary), tuple(blocks), results, found={})


def _width(cut: Knockouts) -> int:
    return int((cut.table.stop - cut.table.start).iloc[0]) + 1


def _road_shares(flow: Flow) -> pd.DataFrame:
    """A row a road, beside emotional pictures: its part of all roads' summed saliency, mean over layers, and of their edges."""
    share = flow.to_frame()["share"].loc["emotional"].map(lambda i: i.mean).groupby(level="road", sort=False).mean()
    edges = flow.table[flow.table.picture == "emotional"].groupby("road", sort=False).edges.sum()
    return pd.DataFrame({"saliency": share, "edges": edges / edges.sum()})


def _saliency_line(shares: pd.DataFrame) -> str:
    told = ", ".join(f"{road} {row.saliency:.0%} (of the edges {row.edges:.0%})" for road, row in shares.iterrows())
    return (
        "Saliency of attention beside the emotional pictures, summed over a road's edges, as a share of the sum over the edges of "
        f"all four roads in the same layer, mean over layers: {told}. A road with many edges has a large share by that alone."
    )


def _cut_rows(falls: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "road": road,
            "probability lost": points(row.fall, lost=True),
            "other readers cut off": points(row.control, lost=True),
            "p, corrected": f"{row.p:.4f}",
        }
        for road, row in falls.iterrows()
    ]
    return pd.DataFrame(rows)


def _cut_line(falls: pd.DataFrame) -> str:
    told = "; ".join(
        f"{road} {points(row.fall, lost=True)}, control {points(row.control, lost=True)}, p = {row.p:.4f}"
        for road, row in falls.iterrows()
    )
    return (
        "Cut in all layers, a road takes this much probability from the words of the pictured emotion, beside a control that cuts "
        f"as many other readers, drawn at random, off from the same tokens: {told}."
    )


def _stage_rows(told: Patching) -> pd.DataFrame:
    """A row a direction, stage and picture that the transplant comes from, a column a span: the change of the hit rate."""
    frame = told.to_frame()
    found = {"value": _changes(told)} | {control: _changes(told, control) for control in _controls(told)}

    def cell(source: str, place: tuple[str, str, str]) -> str:
        p = f", p = {frame.p[place]:.4f}" if source == "value" and "p" in frame and np.isfinite(frame.p[place]) else ""
        return points(found[source][place]).removesuffix(" points") + p if place in found[source] else "none"

    rows = [
        {"transplant": DIRECTIONS[direction], "stage": stage, "from": SOURCES[source]}
        | {span: cell(source, (direction, span, stage)) for span in told.table.span.unique()}
        for direction in told.table.direction.unique()
        for stage in told.table.stage.unique()
        for source in found
        if any(key[0] == direction for key in found[source])
    ]
    return pd.DataFrame(rows)


def _controls(told: Patching) -> list[str]:
    return [control for control in CONTROLS if control in told.table]


def _changes(told: Patching, source: str = "value") -> dict[tuple[str, str, str], Interval]:
    """The change of the hit rate by direction, span and stage; where no story changed, what that leaves open (rule of three).

    Of the transplant, or of a control, then over the pairs that have it.
    """
    moved = told.table.assign(moved=told.table[source] - told.table.receiver).dropna(subset="moved")
    groups = moved.groupby(["direction", "span", "stage"], sort=False).moved
    return {key: rate(some, signed=True) for key, some in groups}


def _by_layer(patched: Patching, results: dict[str, Any]) -> str:
    """The figure, and where the curves change their level, where there are layers and pairs enough to say."""
    changes, why = or_why(lambda: {d: patched.change_points(d) for d in DIRECTIONS})
    figure = figure_html(patched.plot(changes or None), "Share of the gap closed, by layer and span")
    if why or not np.isfinite(patched.curves()).all():
        return figure + muted(f"Where stages change was not looked for. {escape(why)}")
    results["changes"] = {d: str(found) for d, found in changes.items()}
    return figure + muted(" ".join(f"{d.capitalize()}: {found}" for d, found in changes.items()))


_SALIENCY = (
    "|sum over heads of A · dLoss/dA|, mean over a road's edges (the shares above are of sums): what a small change would do, not "
    "what is needed. Dashed: text to text, the control."
)
_CUT = (
    "Fall of the probability of the pictured emotion's words. Other readers: as many tokens, drawn at random, cut off from the "
    "same sources; a token of the query for V->L and Q->L, tokens of the picture for V->Q and V->Q+L, since no others can read it. "
    "p: that both cuts take the same, by sign flips over pairs, corrected for the roads (max-T)."
)
_WINDOWS = "Fall by window of layers with intervals, a panel a road; gray and dashed: other readers cut off from the same tokens"
_STAGES = (
    "Change of the hit rate of the story, in points, when the residual stream of V, Q or L is put from one side's run into the "
    "other's after every layer of a stage. The stages are those of the digest, as parts of this model's depth. Controls come from "
    "another pair's picture beside the same event: one of another emotion, and one that leaves the feeling as it was (another "
    "neutral one, or another of the same emotion). p: that a control does as much, by sign flips over pairs, one-sided, corrected "
    "for all cells (max-T); of two controls the larger."
)
