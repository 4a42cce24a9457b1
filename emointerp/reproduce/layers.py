"""Step 3: the emotional layers, by injection: S added to neutral pictures' runs over layers and strengths, and three stages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from emointerp.emotions.wheels import as_wheels
from emointerp.pairs import Pair
from emointerp.reproduce.kept import Result
from emointerp.reproduce.sizes import evenly, stages
from emointerp.reproduce.task import Task, gain, rate
from emointerp.statistics import Interval
from emointerp.steering import S, Steering, steer
from emointerp.tour.chapter import Chapter, figure_html, muted, points, table_html

NAME, TITLE = "layers", "Emotional layers"
NEEDS = ("vectors",)
RANDOM = "random"
MEASURES = ("clean", "hit")  # by which the layer is chosen: the second, where the first gains nowhere


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

    The last layer is no candidate: only the unembedding reads a push there, so it is no more than a change of the logits.
    """
    inner = found.table[found.table.layer < n - 1]
    found = found if inner.empty else replace(found, table=inner)
    for by in MEASURES:
        plain = found.effect(by).plain.map(lambda i: i.mean).xs(S)
        if plain.max() > 0:
            won = found.emotional_layer(by)
            alpha = float(plain.groupby(level="alpha").mean().idxmax())
            return by, alpha, int(won.idxmax()), {str(layer): float(share) for layer, share in won.items()}
    return "", min(found.table.alpha), min(layers, key=lambda layer: abs(layer - n // 2)), {}


def stage_gains(tested: pd.DataFrame, n_layers: int, which: str = S) -> dict[str, Interval]:
    """Gain in hit rate by stage, mean over its layers and draws, with its interval over pairs."""
    rows = tested[tested.direction == which]
    some = {name: rows[rows.layer.isin(run)] for name, run in stages(n_layers).items()}
    return {name: rate(gain(mine, "hit"), signed=True) for name, mine in some.items() if len(mine)}


def chapter(task: Task, result: Result) -> Chapter:
    """The sweep, the layer, and what injection does in three stages on other pictures."""
    facts, n = result.facts, task.vlm.anatomy.n_layers
    tried, tested = Steering(result.tables["tried"], _labels()), Steering(result.tables["tested"], _labels())
    mine, random = (stage_gains(tested.table, n, which) for which in (S, RANDOM))
    runs = stages(n)
    rows = pd.DataFrame(
        [
            {
                "stage": name,
                "layers": f"{runs[name][0]} to {runs[name][-1]}",
                "hit rate, more with S": points(mine[name]),
                "with a random direction": points(random[name]),
            }
            for name in mine
        ]
    )
    blocks = (
        ("Strength and layer, on the selection part", figure_html(tried.plot_grid(), _alt(facts))),
        ("The share of the gap that is closed, by layer", figure_html(tried.plot("hit"), "Effect C by layer, with intervals")),
        ("Three stages, on the test part", table_html(rows) + muted(_words(task, facts))),
    )
    results = {"l_emo": facts["l_emo"], "alpha": facts["alpha"], "won": facts["won"], "stages": mine, "random": random}
    here: dict[str, Any] = {"l_emo": f"{facts['l_emo']} of {n} (from 0)", "alpha": f"{facts['alpha']:g}"}
    here |= {f"stage {name}": points(interval) for name, interval in mine.items()}
    if not facts["measure"]:
        here["l_emo"] = "none found"
    return Chapter(NAME, TITLE, _summary(facts, mine, random), blocks, results, found=here)


def _summary(facts: Mapping[str, Any], mine: Mapping[str, Interval], random: Mapping[str, Interval]) -> tuple[str, ...]:
    best = max(mine, key=lambda name: mine[name].mean)
    stage = (
        f"On the test part injection changes the hit rate most in the {best} layers: {points(mine[best])}; random directions of "
        f"the same length {points(random[best])} there."
    )
    if not facts["measure"]:
        return (
            "No injection made a story name the emotion that was asked for, at any layer and strength: there is no emotional layer "
            f"to be found, and layer {facts['l_emo']}, in the middle, stands for it below.",
            stage,
        )
    won = facts["won"].get(str(facts["l_emo"]), 0.0)
    kind = "name the emotion alone and stay fluent" if facts["measure"] == "clean" else "name the emotion"
    return (
        f"The emotional layer, where injected stories most often {kind}: layer {facts['l_emo']}, which is the best in {won:.0%} of "
        f"resamples of the pairs. One strength for all layers: {facts['alpha']:g} times S. The last layer, where a push is no more "
        "than a change of the logits, was no candidate.",
        stage,
    )


def _alt(facts: Mapping[str, Any]) -> str:
    return f"Maps over strength and layer: clean stories, other emotions named, perplexity; chosen: layer {facts['l_emo']}"


def _words(task: Task, facts: Mapping[str, Any]) -> str:
    n = len(task.known("test", task.sizes.swept))
    return (
        f"{n} neutral pictures, S of the pair's own emotion at {facts['alpha']:g} times its length after one layer at a time, from "
        f"the last token on; {task.sizes.draws} random directions of the same length. The stages are those of the digest, as parts "
        "of this model's depth. A push that is too strong makes a model stammer the word, which is a hit: the maps above say what "
        "it costs."
    )
