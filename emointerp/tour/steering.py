"""The tour's chapter on steering: is there a direction for each emotion, and does a push along it rewrite neutral stories?

Four splits, none used twice: directions from one, the layer from the next, each emotion's strength from the third, and what is
reported from the last. Sizes are small, so that the chapter takes well under a minute; notebook 04 measures the same on more.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from emointerp.directions import Differences, Directions
from emointerp.errors import InputError
from emointerp.markup import data_uri, marked, thumbnail
from emointerp.models import VLM
from emointerp.pairs import world_pairs
from emointerp.plots import COLORS
from emointerp.start_here import Telling, tell
from emointerp.statistics import mean_interval
from emointerp.steering import MAX_COST, Choice, S, Steering, differences, steer
from emointerp.tour.chapter import Chapter, Job, figure_html, share
from emointerp.tracing import perplexity, sweep

TITLE, BEGUN = "Steering vectors", "I felt"
PAIRS = {"direction": 120, "selection": 12, "tuning": 36, "test": 24}
LAYERS = 12  # of a deeper model so many layers are tried, evenly spaced
ALPHAS = {"selection": (0.5, 1.0), "tuning": (0.5, 0.75, 1.0, 1.25)}
SHARPENED = 2  # how much more the directions stress what tells emotions apart
DRAWS = 8
TOKENS = 48
CONTROLS = {
    "random": "any direction, the push as long as that along S",
    "covariance-matched": "random, but where the differences between pictures and their twins vary",
    "shuffled labels": "from the same pairs with their emotions exchanged",
}


@dataclass(frozen=True, eq=False)
class _Tested:
    """What was measured on the test split: pushed to each pair's own emotion, beside controls, and to every emotion."""

    layer: int
    own: Steering
    each: Steering

    @cached_property
    def controls(self) -> pd.DataFrame:
        """`Steering.controlled`; the chosen strengths are in the directions."""
        return self.own.controlled(self.layer, 1.0)

    def clean(self, when: str) -> Any:
        """Share of clean stories: "" pushed, "_before" the push, "_goal" of the emotional pictures themselves."""
        return mean_interval(self.own.at()[f"clean{when}"])


@dataclass(frozen=True)
class _Pushed:
    """One picture's stories: its own, and pushed towards each emotion; `costs` are perplexities, times that of its own story."""

    own: Telling
    pushed: Mapping[str, Telling]
    costs: Mapping[str, float]


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Find directions, choose layer and strengths, test them on other pictures, push the stories of the job's pictures.

    What it found is the layer, None where no push helps.
    """
    found = differences(vlm, world_pairs("direction", PAIRS["direction"]), answer=BEGUN)
    directions = _directions(found)
    tried = _steered(vlm, "selection", directions, _layers(vlm), ALPHAS["selection"])
    layers = tried.emotional_layer()
    layer = int(layers.idxmax())
    choice = _steered(vlm, "tuning", directions, [layer], ALPHAS["tuning"]).choose(layer)
    towards = [e for e in directions.emotions if choice.alphas[e]]
    results = {"directions": _origin(directions), "layers": {str(i): float(won) for i, won in layers.items()}}
    by_layer = "After which layer a push helps", figure_html(tried.plot(), "Effect of the push by layer") + _explained()
    if not towards:
        return Chapter("steering", TITLE, _nothing(directions), (by_layer,), results | {"layer": None, "alphas": {}})
    chosen = directions.scaled(choice.alphas)
    tested = _tested(vlm, found, chosen, choice.layer, towards)
    pushed = {name: _push(vlm, picture, job.event, chosen, choice.layer, towards) for name, picture in job.pictures}
    blocks = [
        by_layer,
        *_test_blocks(tested, choice, layers[layer]),
        *((name, _picture_block(one)) for name, one in pushed.items()),
    ]
    results |= {"layer": choice.layer, "alphas": dict(choice.alphas), "test split": _test_results(tested)}
    results["pictures"] = {name: _picture_results(one) for name, one in pushed.items()}
    summary = _summary(directions, choice, tested, pushed.values())
    return Chapter("steering", TITLE, summary, tuple(blocks), results, found=choice.layer)


def _directions(found: Differences) -> Directions:
    """Of the pairs whose stories name the emotion; of all pairs, where an emotion has no such story."""
    try:
        return found.directions().sharpened(SHARPENED)
    except InputError:
        return found.directions(tau=-1).sharpened(SHARPENED)


def _layers(vlm: VLM) -> list[int]:
    n = vlm.anatomy.n_layers
    return sorted({round(at) for at in np.linspace(0, n - 1, min(n, LAYERS))})


def _steered(
    vlm: VLM, split: str, directions: Any, layers: Sequence[int], alphas: Sequence[float] = (1.0,), **how: Any
) -> Steering:
    pairs = world_pairs(split, PAIRS[split])
    return steer(vlm, pairs, directions, layers=layers, alphas=alphas, max_new_tokens=TOKENS, **how)


def _tested(vlm: VLM, found: Differences, chosen: Directions, layer: int, towards: Sequence[str]) -> _Tested:
    tau = chosen.about["tau"]
    draws = {
        "random": [chosen.random(i) for i in range(DRAWS)],
        "covariance-matched": [chosen.random(i, like=found.vectors) for i in range(DRAWS)],
        "shuffled labels": [found.shuffled(tau, i).sharpened(SHARPENED).matched(chosen) for i in range(DRAWS)],
    }
    own = _steered(vlm, "test", {S: chosen, **draws}, [layer])
    return _Tested(layer, own, _steered(vlm, "test", chosen, [layer], towards=towards))


def _push(vlm: VLM, picture: Any, event: str, chosen: Directions, layer: int, towards: Sequence[str]) -> _Pushed:
    """Push towards each emotion, and away from what the story names by itself, which outweighs a push where a picture shows it."""
    own, prompt = tell(vlm, picture, event), vlm.prompt(picture, event)
    away = {o: chosen.edits(o, layer, -1.0) for o in own.named if o in chosen.emotions}
    lists = {e: sum((edits for o, edits in away.items() if o != e), chosen.edits(e, layer)) for e in towards}
    texts = sweep(vlm, prompt, lists, max_new_tokens=TOKENS, progress=False).texts[0]
    likely = perplexity(vlm, prompt, [own.story, *texts])
    stories, costs = [Telling(prompt.image, event, text) for text in texts], [p / likely[0] for p in likely[1:]]
    return _Pushed(own, dict(zip(towards, stories, strict=True)), dict(zip(towards, costs, strict=True)))


# in words


def _summary(directions: Directions, choice: Choice, tested: _Tested, pushed: Collection[_Pushed]) -> tuple[str, ...]:
    idle = [e for e, alpha in choice.alphas.items() if not alpha]
    others = mean_interval(tested.each.table.groupby("pair").others.mean())
    new = [e in told.named for one in pushed for e, told in one.pushed.items() if e not in one.own.named]
    lines = [
        *_kept(directions),
        f"Neutral test pictures, pushed after layer {choice.layer}: {share(tested.clean(''))} of the stories name the emotion that "
        f"they are pushed towards, no other, and stay fluent. Without a push it is {share(tested.clean('_before'))}; beside the "
        f"emotional pictures themselves {share(tested.clean('_goal'))}.",
        f"Control: {_verdict(tested.controls)}",
        f"Pushed towards {_listed([e for e in directions.emotions if e not in idle])}, "
        f"{share(others)} of the stories name another emotion.",
    ]
    if new:
        lines.append(
            "The pictures below, pushed towards emotions that their own stories do not name, and away from those that they do: "
            f"{sum(new)} of {len(new)} stories name them then. The strengths were chosen on neutral pictures."
        )
    if idle:
        lines.append(f"Not pushed towards {_listed(idle)}: on the tuning split no strength kept the limits.")
    return tuple(lines)


def _verdict(controls: pd.DataFrame) -> str:
    gain, drawn = controls.value["effect"], controls.drop("effect")
    reached = {name: _reached(row) for name, row in drawn.iterrows() if _reached(row) or row.less.low <= 0}
    under = ", ".join(f"{name} {share(row.value)}" for name, row in drawn.iterrows())
    said = f"the push gains {share(gain)} of the stories; pushes along other directions, {DRAWS} drawn of each kind: {under}. "
    if gain.low <= 0:
        return said + "This gain could be chance: no direction that steers was found."
    if not reached:
        return said + "No drawn direction gains as much, so where the push points is what counts."
    as_much = ", ".join(f"{name} ({n} of {DRAWS} draws gain as much)" for name, n in reached.items())
    return said + f"It is not clearly above {as_much}, so this does not show that it takes just these directions."


def _reached(control: pd.Series) -> int:
    """How many draws of a control gain as much as S."""
    return round(control.p_draws * (control.draws + 1) - 1)


def _nothing(directions: Directions) -> tuple[str, ...]:
    return (
        *_kept(directions),
        "No push along these directions gave a story on the tuning split that names its emotion, names no other, and stays fluent. "
        "So there is nothing to test, and the pictures' stories were left alone.",
    )


def _kept(directions: Directions) -> list[str]:
    """What is to say of the pairs behind the directions: only that the filter failed."""
    if directions.about["tau"] >= 0:
        return []
    return [
        "For at least one emotion no story of its pictures names it. So the directions stand on all pairs, whatever their stories "
        "say, and may be no directions of feeling."
    ]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names)


# on the page


def _explained() -> str:
    return (
        f"<p>{PAIRS['direction']} emotional pictures and their neutral twins give a direction for each emotion and layer: what "
        f"the residual stream at the end of the begun answer “{BEGUN}” has more of beside the first. {PAIRS['selection']} other "
        "neutral pictures are told while it is added after a layer; 1 would be as many clean stories as beside the emotional "
        "pictures themselves. A story is clean if it names the emotion, names no other, and is, for the model without a push, at "
        f"most {MAX_COST:g} times as perplexing as the emotional picture's own. A push too strong makes it stammer.</p>"
    )


def _test_blocks(tested: _Tested, choice: Choice, won: float) -> list[tuple[str, str]]:
    controls = pd.DataFrame([_control_row(name, row) for name, row in tested.controls.iterrows()])
    matrix = figure_html(tested.each.plot_matrix(), "What stories name, by the emotion they are pushed towards")
    return [
        (f"The push on {PAIRS['test']} test pictures, beside controls", _table(controls) + _control_words(choice.layer, won)),
        ("The same pictures, pushed towards every emotion", matrix + _table(_cost_rows(tested, choice)) + _goal_words(tested)),
    ]


def _control_row(name: str, row: pd.Series) -> dict[str, str]:
    along = name if name in CONTROLS else S
    shown = {"pushed along": along, "more clean stories": share(row.value)}
    if name not in CONTROLS:
        return shown | {"S gains more by": "", "p": "", "draws that gain as much": ""}
    less = {"S gains more by": share(row.less), "p": f"{row.p:.4f}"}
    return shown | less | {"draws that gain as much": f"{_reached(row)} of {row.draws:.0f}"}


def _control_words(layer: int, won: float) -> str:
    listed = "; ".join(f"<b>{name}</b>: {what}" for name, what in CONTROLS.items())
    return (
        f'<p class="muted">{listed}. p: sign flips over pictures, each control averaged over its draws. {DRAWS} draws cannot put '
        f"a p-value on the ranks below {1 / (DRAWS + 1):.2f}; notebook 04 draws more. Layer {layer} was chosen on the "
        f"{PAIRS['selection']} pictures above; with these drawn anew at random it is the best layer in {won:.0%} of cases.</p>"
    )


def _cost_rows(tested: _Tested, choice: Choice) -> pd.DataFrame:
    rates = tested.each.rates().droplevel(["direction", "layer", "alpha"])
    return pd.DataFrame(
        {
            "pushed towards": rates.index,
            "strength": [f"{choice.alphas[e]:g}" for e in rates.index],
            "clean": [f"{x:.0%}" for x in rates.clean],
            "names another emotion": [f"{x:.0%}" for x in rates.others],
            "perplexity, times the unpushed story's": [f"{x:.1f}" for x in rates.perplexity_ratio],
        }
    )


def _goal_words(tested: _Tested) -> str:
    ratio = tested.own.rates().goal_ratio.xs(S).median()
    return (
        f'<p class="muted">The emotional pictures\' own stories have {ratio:.1f} times that perplexity beside the neutral ones.</p>'
    )


def _table(frame: pd.DataFrame) -> str:
    return frame.to_html(index=False, border=0, justify="left")


def _picture_block(one: _Pushed) -> str:
    rows = _story_row("not pushed", one.own, 1.0)
    rows += "".join(_story_row(emotion, telling, one.costs[emotion]) for emotion, telling in one.pushed.items())
    heads = "".join(f"<th>{head}</th>" for head in ("pushed towards", "story", "perplexity"))
    picture = f'<img src="{data_uri(thumbnail(one.own.picture, 320))}" width="130" style="border-radius:6px" alt="the picture">'
    said = (
        "Each story is pushed away from what the first one names. Perplexity: times the first one's, for the model without a push."
    )
    table = f'<table><tr>{heads}</tr>{rows}</table><p class="muted">{said}</p>'
    return f'<div style="display:flex;gap:1em;align-items:flex-start">{picture}<div>{table}</div></div>'


def _story_row(emotion: str, telling: Telling, cost: float) -> str:
    edge = f"border-left:4px solid {COLORS.get(emotion, '#c5c9cf')};padding-left:.5em;white-space:nowrap"
    times = f"× {cost:.1f}" if np.isfinite(cost) else ""
    return f'<tr><td style="{edge}">{escape(emotion)}</td><td>{marked(telling.story, telling.words)}</td><td>{times}</td></tr>'


# as numbers


def _origin(directions: Directions) -> dict:
    pairs = dict(zip(directions.emotions, directions.n, strict=True))
    return {"read after": BEGUN, "tau": directions.about["tau"], "pairs": pairs}


def _test_results(tested: _Tested) -> dict:
    drawn = tested.controls.drop("effect").drop(columns="p_holm").astype({"draws": int})
    shares = {"clean": tested.clean(""), "clean without a push": tested.clean("_before"), "clean goal": tested.clean("_goal")}
    rates = tested.each.rates().droplevel(["direction", "layer", "alpha"])
    effect = tested.own.effect("clean").xs(S).iloc[0].to_dict()
    rows = {"controls": drawn, "towards": rates, "names": tested.each.matrix()}
    return shares | effect | {name: frame.to_dict("index") for name, frame in rows.items()}


def _picture_results(one: _Pushed) -> dict:
    pushed = {
        e: {"story": told.story, "names": list(told.named), "times the perplexity": one.costs[e]} for e, told in one.pushed.items()
    }
    return {"story": one.own.story, "pushed": pushed}
