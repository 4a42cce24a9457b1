"""Step 3: the emotional layers, by injection: S added to neutral pictures' runs over layers and strengths, and three stages.

l_emo is chosen on the selection part, where it looks better than it is. What is claimed is what S does on the test part, at l_emo
and in each stage, beside random directions of the same length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from emointerp.emotions.wheels import as_wheels
from emointerp.measures import evenly
from emointerp.pairs import Pair
from emointerp.reproduce.kept import Result
from emointerp.reproduce.sizes import stages
from emointerp.reproduce.task import Task
from emointerp.statistics import holm, with_controls
from emointerp.steering import MAX_COST, S, Steering, steer
from emointerp.tour.chapter import Chapter, figure_html, muted, points, reached, table_html

NAME, TITLE = "layers", "Emotional layers"
NEEDS = ("vectors",)
RANDOM = "random"
MEASURES = {"clean": "name the emotion alone and stay fluent", "hit": "name the emotion"}  # in turn, until one gains somewhere
TOLD = 3  # layers that are told as winning most often


def measure(task: Task) -> Result:
    """Layer and strength from selection pairs; the same strength in every layer on test pairs, beside random directions."""
    directions, layers = task.directions, evenly(task.vlm.anatomy.n_layers, task.sizes.layers)
    tried = _steered(task, "selection", directions, layers, task.sizes.alphas)
    found = Steering(tried, _labels())
    by, alpha, l_emo, won = _chosen(found, layers, task.vlm.anatomy.n_layers)
    drawn = {S: directions, RANDOM: [directions.random(i) for i in range(task.sizes.draws)]}
    tested = _steered(task, "test", drawn, layers, [alpha])
    facts = {"l_emo": l_emo, "alpha": alpha, "measure": by, "won": won, "layers": layers}
    return Result({"tried": tried, "tested": tested}, facts=facts)


def _steered(task: Task, role: str, directions: Any, layers: Sequence[int], alphas: Sequence[float]) -> pd.DataFrame:
    def steered(some: Sequence[Pair]) -> pd.DataFrame:
        options = {"layers": layers, "alphas": alphas, "max_new_tokens": task.sizes.tokens, "progress": False}
        return steer(task.vlm, some, directions, **options).table

    return task.parts.table(f"steered-{role}", task.known(role, task.sizes.swept), steered)


def _labels() -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for wheel in as_wheels(None) for label in wheel.labels))


def _chosen(found: Steering, layers: Sequence[int], n: int) -> tuple[str, float, int, dict[str, float]]:
    """By which measure, at which strength, which layer, and how often each layer wins; the middle one where nothing gains.

    The last layer is no candidate for l_emo: only the unembedding reads a push there, which is but a change of the logits.
    """
    inner = found.table[found.table.layer < n - 1]
    found = found if inner.empty else replace(found, table=inner)
    for by in MEASURES:
        plain = found.effect(by).plain.map(lambda i: i.mean).xs(S)
        if plain.max() > 0:
            alpha = float(plain.groupby(level="alpha").mean().idxmax())
            won = {str(layer): float(share) for layer, share in found.layer_shares(by).items()}
            return by, alpha, found.emotional_layer(by), won
    return "", min(found.table.alpha), min(layers, key=lambda layer: abs(layer - n // 2)), {}


def beside_random(tested: pd.DataFrame, layers: Sequence[int], measure: str = "hit") -> pd.DataFrame:
    """What stories gain under S, on average over layers, beside the gain under random directions: `statistics.with_controls`."""
    rows = tested[tested.layer.isin(layers)]
    gained = (rows[measure] - rows[f"{measure}_before"]).groupby([rows.direction, rows.draw, rows.pair]).mean().unstack("pair")
    return with_controls(gained.loc[S].to_numpy()[0], {RANDOM: gained.loc[RANDOM].to_numpy()})


def stage_gains(tested: pd.DataFrame, n_layers: int) -> dict[str, pd.DataFrame]:
    """Gains in hit rate by stage, as `beside_random` has them; a stage without a tested layer is left out."""
    there = set(tested.layer)
    return {name: beside_random(tested, run) for name, run in stages(n_layers).items() if there & set(run)}


def chapter(task: Task, result: Result) -> Chapter:
    """The sweep, the layer, and what injection does there and in three stages on other pictures."""
    facts, n = result.facts, task.vlm.anatomy.n_layers
    l_emo, by, tested = facts["l_emo"], facts["measure"], result.tables["tested"]
    tried, gains = Steering(result.tables["tried"], _labels()), stage_gains(tested, n)
    at = {measure: beside_random(tested, [l_emo], measure) for measure in MEASURES}
    blocks = (
        ("Strength and layer, on the selection part", figure_html(tried.plot_grid(), _alt(facts))),
        (
            "The share of the gap that is closed, by layer",
            figure_html(tried.plot(by or "hit"), "Effect C by layer, with intervals"),
        ),
        (f"Layer {l_emo}, on the test part", table_html(_layer_rows(at)) + muted(_words(task, facts) + _CLEAN)),
        ("Three stages, on the test part", table_html(_stage_rows(gains, n)) + muted(_STAGES)),
    )
    results = {
        "l_emo": l_emo,
        "alpha": facts["alpha"],
        "won": facts["won"],
        "test": {m: _numbers(table) for m, table in at.items()},
    }
    results["stages"] = {name: _numbers(table) for name, table in gains.items()}
    here: dict[str, Any] = {"l_emo": f"{l_emo} of {n} (from 0)" if by else "none found", "alpha": f"{facts['alpha']:g}"}
    here |= {f"stage {name}": _told(table) for name, table in gains.items()}
    summary = _layer_lines(facts, at[by]) if by else (_NONE.format(layer=l_emo),)
    return Chapter(NAME, TITLE, (*summary, _stage_line(gains)), blocks, results, found=here)


def _told(table: pd.DataFrame) -> str:
    return f"{points(table.value['effect'])}, random directions {points(table.value[RANDOM])}"


def _numbers(table: pd.DataFrame) -> dict[str, Any]:
    random = table.loc[RANDOM]
    return {"S": table.value["effect"], "random": random.value, "less": random.less, "p": float(random.p)}


def _beside(table: pd.DataFrame) -> dict[str, str]:
    """Cells of a row: S, random directions, the difference, and how many of these gain as much."""
    random = table.loc[RANDOM]
    as_much = reached(random.p_draws, random.draws) if random.draws > 1 else int(random.less.mean <= 0)
    return {
        "more with S": points(table.value["effect"]),
        "with random directions": points(random.value),
        "S gains more by": points(random.less),
        "draws that gain as much": f"{as_much} of {random.draws:.0f}",
    }


def _layer_rows(at: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = [{"stories that": MEASURES[m]} | _beside(table) | {"p": f"{table.p[RANDOM]:.4f}"} for m, table in at.items()]
    return pd.DataFrame(rows)


def _stage_rows(gains: Mapping[str, pd.DataFrame], n: int) -> pd.DataFrame:
    runs = stages(n)
    p = holm([table.p[RANDOM] for table in gains.values()])
    return pd.DataFrame(
        [
            {"stage": name, "layers": f"{runs[name][0]} to {runs[name][-1]}"} | _beside(table) | {"p (Holm)": f"{corrected:.4f}"}
            for (name, table), corrected in zip(gains.items(), p, strict=True)
        ]
    )


def _layer_lines(facts: Mapping[str, Any], tested: pd.DataFrame) -> tuple[str, str]:
    """How the layer was chosen, and what the push does there on pictures that did not choose it."""
    l_emo, kind, random = facts["l_emo"], MEASURES[facts["measure"]], tested.loc[RANDOM]
    won = pd.Series(facts["won"]).sort_values(ascending=False, kind="stable")
    often = ", ".join(f"{layer} in {won[layer]:.0%}" for layer in dict.fromkeys([*won.index[:TOLD], str(l_emo)]))
    return (
        f"The emotional layer: {l_emo}, the one after which S makes the most stories of the selection part {kind}, each layer at "
        f"its best strength. When pairs are drawn anew it is layer {often} of the draws. One strength for all layers below: "
        f"{facts['alpha']:g} times S. The last layer, where a push is no more than a change of the logits, was no candidate.",
        f"On the test part, at that strength, S after layer {l_emo} changes the share of stories that {kind} by "
        f"{points(tested.value['effect'])}, random directions of the same length by {points(random.value)}; S by "
        f"{points(random.less)} more than these (p = {random.p:.4f}).",
    )


def _stage_line(gains: Mapping[str, pd.DataFrame]) -> str:
    told = "; ".join(f"{name} {_told(table)}" for name, table in gains.items())
    return f"What S adds to the hit rate on the test part, after a layer of a stage, beside random directions as long: {told}."


def _alt(facts: Mapping[str, Any]) -> str:
    chosen = "no layer gains"
    if facts["measure"]:
        chosen = f"most stories {MEASURES[facts['measure']]}, each layer at its best strength, after layer {facts['l_emo']}"
    return f"Maps over strength and layer: clean stories, other emotions named, perplexity; {chosen}, the last one not counted"


def _words(task: Task, facts: Mapping[str, Any]) -> str:
    n = len(task.known("test", task.sizes.swept))
    return (
        f"{n} neutral pictures, S of the pair's own emotion at {facts['alpha']:g} times its length after one layer at a time, from "
        f"the last token on; {task.sizes.draws} random directions of the same length. p: that S gains no more than these, by sign "
        "flips over pairs, draws averaged. "
    )


_NONE = (
    "No injection made more stories of the selection part name the emotion that was asked for, at any strength and after any layer "
    "but the last: there is no emotional layer to be found, and layer {layer}, in the middle, stands for it below."
)
_CLEAN = (
    f"Fluent: for the model without a push at most {MAX_COST:g} times as perplexing as the emotional picture's own story. A push "
    "that is too strong makes a model stammer the word, which is a hit: the maps above say what it costs."
)
_STAGES = (
    "Gain in hit rate, mean over a stage's layers. The stages are those of the digest, as parts of this model's depth; the deep "
    "one ends in the last layer, where a push is no more than a change of the logits. p as above, corrected for the stages."
)
