"""Step 6: heads. Where they point, what they carry up to l_emo and after it, whom they serve, what the set does, and who looks.

The heads are taken as the paper takes them: the best of the upstream map (restoration of S at l_emo) and the best of the downstream
map (projection on S after the last layer), half of the number each, whether or not they pass a test; their p stands beside them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from emointerp.heads import (
    HeadCheck,
    HeadMap,
    Intention,
    Specificity,
    VisualHeads,
    check_heads,
    head_map,
    intention,
    specificity,
    visual_heads,
)
from emointerp.heads.check import MEAN, RESAMPLE, RESTORE
from emointerp.heads.drawing import means
from emointerp.measures import PROJECTION, RESTORATION
from emointerp.pairs import Pair
from emointerp.reproduce.kept import Result, digest
from emointerp.reproduce.sizes import stages
from emointerp.reproduce.task import BEGUN, Task, each, heads_of, named, or_why, why_not
from emointerp.tour.chapter import Chapter, figure_html, muted, no_words, number, share, table_html

NAME, TITLE = "heads", "Heads"
NEEDS = ("vectors", "layers")
MASS, UNIVERSAL = "log mass", 3
KIND = "denoising"
DONE = {MEAN: "the mean over neutral pictures", RESAMPLE: "what one of these gave", RESTORE: "into the twin's run"}


def measure(task: Task) -> Result:
    """All maps, the heads that they choose, and the function check of these on test pairs."""
    vlm, S, n = task.vlm, task.directions, task.vlm.anatomy.n_layers
    selection, test = task.known("selection"), task.known("test")
    metric = PROJECTION if no_words(vlm) else MASS
    maps = {
        "upstream": partial(_map, task, "upstream", selection, RESTORATION, layer=task.l_emo, layers=range(task.l_emo + 1)),
        "found": partial(_map, task, "found", selection, metric),
        "held": partial(_map, task, "held", test, metric),
        "intention": lambda: task.parts.table("intention", selection, lambda some: intention(vlm, some, S, progress=False).table),
        "visual": lambda: task.parts.table("visual", test, lambda some: visual_heads(vlm, some, progress=False).table),
    }
    if task.l_emo < n - 1:
        maps["downstream"] = partial(_map, task, "downstream", selection, PROJECTION, layers=range(task.l_emo + 1, n))
    tables, facts = each(maps)
    tables["heads"] = _best(tables, task.sizes.heads)
    checked, more = each({"check": lambda: _checked(task, test, heads_of(tables["heads"]), metric)})
    tables |= {"check": checked["check"].table, "sets": checked["check"].sets} if checked else {}
    why = {"left out": facts["left out"] | more["left out"], "again": facts["again"] + more["again"]}
    return Result(tables, facts={"metric": metric} | why)


def _map(task: Task, name: str, pairs: Sequence[Pair], metric: str, **where: Any) -> pd.DataFrame:
    return task.parts.table(
        name, pairs, lambda some: head_map(task.vlm, some, task.directions, metric, progress=False, **where).table
    )


def _best(tables: dict[str, pd.DataFrame], k: int) -> pd.DataFrame:
    """The best of both maps with their effects (shares of the gap) and p, corrected over their map."""
    frames = []
    for role, metric, most in (("upstream", RESTORATION, -(-k // 2)), ("downstream", PROJECTION, k // 2)):
        if role in tables:
            frame = HeadMap(tables[role], metric, KIND).to_frame()
            best = frame[means(frame.effect) > 0].loc[lambda some: means(some.effect).sort_values(ascending=False).index]
            frames.append(best.head(most).reset_index().assign(role=role))
    columns = ["role", "layer", "head", "effect", "difference", "p", "corrected"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _checked(task: Task, test: Sequence[Pair], heads: Sequence[tuple[int, int]], metric: str) -> HeadCheck:
    """Kept under the heads' own name: a map that an error left out may choose others when it is made again."""
    file = task.parts.place(f"check-{digest(heads)[:12]}.jsonl")
    options = {"sets": task.sizes.sets, "metric": metric, "directions": task.directions, "progress": False}
    return check_heads(task.vlm, test, heads, file=file, **options)


def chapter(task: Task, result: Result) -> Chapter:
    """The paper's order: intention, up- and downstream, specificity, function check, universal visual heads."""
    t, facts = result.tables, result.facts
    blocks, results, summary, here = [], {}, [], {}
    if "intention" in t:
        blocks.append(("Emotional intention", figure_html(Intention(t["intention"]).plot(), "Maps of cosines, heads by layers")))
    for role, metric in (("upstream", RESTORATION), ("downstream", PROJECTION)):
        if role in t:
            drawn = figure_html(HeadMap(t[role], metric, KIND).plot(), f"Map of what {role} heads bring over")
            blocks.append((f"{role.capitalize()} heads ({metric})", drawn))
    blocks.append(("The heads that were taken", table_html(_rows(t["heads"])) + muted(_TAKEN.format(l_emo=task.l_emo))))
    results["heads"] = [f"{a}.{b}" for a, b in heads_of(t["heads"])]
    summary.append(_taken_line(t["heads"]))
    for part in (_specific, _function, _visual):
        block, line, found, figures = part(task, result)
        blocks += block
        summary.append(line)
        results |= found
        here |= figures
    summary += [f"Left out, {name}: {why_not(facts, name)}" for name in facts["left out"] if name != "check"]
    here["heads"] = f"{len(t['heads'])}"
    return Chapter(NAME, TITLE, tuple(summary), tuple(blocks), results, found=here)


def _rows(heads: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "role": row.role,
            "layer.head": f"{row.layer}.{row.head}",
            "share of the gap": share(row.effect),
            "p, corrected": f"{row.corrected:.4f}",
        }
        for row in heads.itertuples()
    ]
    return pd.DataFrame(rows, columns=["role", "layer.head", "share of the gap", "p, corrected"])


def _taken_line(heads: pd.DataFrame) -> str:
    passed = int((heads.corrected <= 0.05).sum())
    said = "; ".join(f"{role} {named(heads_of(some))}" for role, some in heads.groupby("role", sort=False))
    return f"Heads taken (layer.head): {said or 'none'}. {passed} of {len(heads)} pass their test, corrected for their map."


def _specific(task: Task, result: Result) -> tuple[list, str, dict, dict]:
    """Specificity of heads by stage: chosen on the selection part, scored on the test part."""
    t, metric = result.tables, result.facts["metric"]
    if not {"found", "held"} <= set(t):
        return [], "Specificity was not measured.", {}, {}
    maps = [HeadMap(t[name], metric, KIND) for name in ("found", "held")]
    found, why = or_why(lambda: specificity(*maps, stages=stages(task.vlm.anatomy.n_layers), draws=2000))
    if why:
        return [], f"Specificity was not measured. {why}", {"specificity": why}, {}
    by_stage = found.stages.specificity.to_dict()
    told = "; ".join(f"{stage} {number(i)} ({found.stages.heads[stage]} heads)" for stage, i in by_stage.items())
    line = f"Specificity, less what noise adds, by stage: {told}. {_against(found)}"
    block = [
        ("Do heads serve one emotion or all?", figure_html(found.plot(), "Specificity of heads with intervals") + muted(_SPECIFIC))
    ]
    raw = {stage: float(row.raw) for stage, row in found.stages.iterrows()}
    here = {f"specificity {stage}": f"{number(i)}; {raw[stage]:.2f} as the formula stands" for stage, i in by_stage.items()}
    return block, line, {"specificity": {"stages": by_stage, "raw": raw, "p": _finite(found.p)}}, here


def _against(found: Specificity) -> str:
    if pd.isna(found.p):
        return "The middle and deep stages have too few heads to be compared."
    return f"That middle and deep heads have the same mean: p = {found.p:.3f}."


def _function(task: Task, result: Result) -> tuple[list, str, dict, dict]:
    """The set silenced and restored, beside random sets."""
    if "check" not in result.tables:
        return [], f"The function check was left out. {why_not(result.facts, 'check')}", {}, {}
    found = HeadCheck(result.tables["check"], result.tables["sets"], result.facts["metric"])
    frame = found.to_frame()
    rows = [
        {
            "check": f"{check}: {DONE[check]}",
            "share of the gap": f"{'closed' if check == RESTORE else 'lost'}: {share(row.effect)}",
            "random sets": f"{row.random:.0%}",
            "95% of these up to": f"{row.random_95:.0%}",
            "p": f"{row.p:.3f}",
        }
        for check, row in frame.iterrows()
    ]
    block = table_html(pd.DataFrame(rows)) + figure_html(found.plot(), "Histograms of random sets, the tested set as a line")
    block += muted(_set_words(frame.loc[RESTORE], task.sizes.sets))
    numbers = ["random", "random_95", "p", "sets", "overlap", "norm"]
    results = {check: {"effect": row.effect} | {n: float(row[n]) for n in numbers} for check, row in frame.iterrows()}
    here = {"function": "; ".join(f"{check} {share(row.effect)}, random heads {row.random:.0%}" for check, row in frame.iterrows())}
    return [("Function check, beside random heads", block)], _function_line(frame, found.metric), {"check": results}, here


def _function_line(frame: pd.DataFrame, metric: str) -> str:
    mean, resample, put = (
        f"{share(row.effect)} (random sets {row.random:.0%} on average, p = {row.p:.3f})"
        for row in (frame.loc[check] for check in (MEAN, RESAMPLE, RESTORE))
    )
    return (
        f"Function check on the test part, of the gap in {metric} between a picture and its twin. Silenced together the heads lose "
        f"{mean} where each gives its mean over other pairs' neutral pictures, {resample} where all give what they gave at one of "
        f"these. Restored together at the twin they close {put}."
    )


def _set_words(row: pd.Series, asked: int) -> str:
    """How like the tested set the random ones are; the same for all checks."""
    few = f" There are no more than {row.sets:.0f} such sets." if row.sets < asked else ""
    return (
        "Random sets: as many heads of the same layers, of those whose writes at the last token are most like theirs in length. "
        f"They hold {row.overlap:.0%} of the tested heads on average, and what they write is {row.norm:.2f} times as long: where "
        f"that is far below 1, length may be all that p shows. p: the rank among {row.sets:.0f} sets, which cannot put it below "
        f"{1 / (row.sets + 1):.2g}.{few}"
    )


def _visual(task: Task, result: Result) -> tuple[list, str, dict, dict]:
    """The heads that look at the picture whatever it shows."""
    if "visual" not in result.tables:
        return [], "Visual heads were left out.", {}, {}
    looks = VisualHeads(result.tables["visual"])
    best = looks.universal(UNIVERSAL)
    places = [(int(a), int(b)) for a, b in best.index]
    told = ", ".join(f"{a}.{b} {share(best.share[a, b])}" for a, b in places)
    block = [("Universal visual heads", figure_html(looks.plot(), "Maps of attention on the picture"))]
    line = f"The heads that look at the picture most, whatever it shows: {told} of their attention at the end of “{BEGUN}”."
    return block, line, {"universal": [f"{a}.{b}" for a, b in places]}, {"universal": named(places)}


def universal(result: Result, k: int = UNIVERSAL) -> list[tuple[int, int]]:
    """The heads that look at the picture most, whatever it shows."""
    if "visual" not in result.tables:
        return []
    return [(int(a), int(b)) for a, b in VisualHeads(result.tables["visual"]).universal(k).index]


def _finite(p: float) -> float | None:
    return None if pd.isna(p) else float(p)


_TAKEN = (
    "Upstream: layers up to {l_emo}, what the head alone brings over of the direction of h towards S there. Downstream: later "
    "layers, of the last layer's projection on S. Both on the selection part; p by sign flips over pairs, corrected for the map."
)
_SPECIFIC = (
    "Of heads that bring a part of the gap over, chosen on the selection part: how unevenly they serve the emotions of the test "
    "part, 1 one only, 0 all alike. Noise alone looks specific, so what emotions exchanged at random give is taken off."
)
