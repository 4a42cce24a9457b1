"""The tour's chapter on steering: is there a direction for each emotion, and does a push along it rewrite neutral stories?

Four splits, none used twice: directions from one, the layer from the next, each emotion's strength from the third, and what is
reported from the last. Sizes are small, so that the chapter takes well under a minute; notebook 04 shows the same step by step.
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
from emointerp.measures import evenly
from emointerp.models import VLM
from emointerp.pairs import world_pairs
from emointerp.plots import COLORS
from emointerp.start_here import Telling, tell
from emointerp.statistics import Interval, mean_interval
from emointerp.steering import MAX_COST, Choice, S, Steering, differences, steer
from emointerp.tour.chapter import Chapter, Job, figure_html, listed, muted, number, reached, scrolling, share, table_html
from emointerp.tracing import perplexity, sweep

TITLE, BEGUN = "Steering vectors", "I felt"
PUSHED = "Can it be pushed?"
ALPHAS = {"selection": (0.5, 1.0), "tuning": (0.5, 0.75, 1.0, 1.25)}
SHARPENED = 2  # how much more the directions stress what tells emotions apart
RESAMPLES = 1000
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
    sizes = job.sizes.steering
    found = differences(vlm, world_pairs("direction", sizes["direction"]), answer=BEGUN, batch=job.batch)
    directions = _directions(found)
    tried = _steered(vlm, "selection", sizes, directions, evenly(vlm.anatomy.n_layers, sizes["layers"]), ALPHAS["selection"])
    layer, layers = tried.emotional_layer(), tried.layer_shares()
    choice = _steered(vlm, "tuning", sizes, directions, [layer], ALPHAS["tuning"]).choose(layer)
    towards = [e for e in directions.emotions if choice.alphas[e]]
    results = {"directions": _origin(directions), "layers": {str(i): float(won) for i, won in layers.items()}}
    by_layer = "After which layer a push helps", figure_html(tried.plot(), _layer_alt(layer)) + _explained(sizes)
    if not towards:
        none, plain = (
            results | {"layer": None, "alphas": {}},
            ((PUSHED, "Not shown: no push gave a story that is right and fluent."),),
        )
        return Chapter("steering", TITLE, _nothing(directions), (by_layer,), none, plain=plain)
    chosen = directions.scaled(choice.alphas)
    tested = _tested(vlm, found, chosen, choice.layer, towards, sizes)
    pushed = {name: _push(vlm, picture, job.event, chosen, choice.layer, towards) for name, picture in job.pictures}
    blocks = [
        by_layer,
        *_test_blocks(tested, choice, layers[layer], sizes),
        *((name, _picture_block(one) + muted(_TOLD) * (i == 0)) for i, (name, one) in enumerate(pushed.items())),
    ]
    results |= {"layer": choice.layer, "alphas": dict(choice.alphas), "test split": _test_results(tested)}
    results["pictures"] = {name: _picture_results(one) for name, one in pushed.items()}
    summary = _summary(directions, choice, tested, pushed.values())
    plain = ((PUSHED, _pushed_line(tested, choice)),)
    return Chapter("steering", TITLE, summary, tuple(blocks), results, found=choice.layer, plain=plain)


def _directions(found: Differences) -> Directions:
    """Of the pairs whose stories name the emotion; of all pairs, where an emotion has no such story."""
    try:
        return found.directions().sharpened(SHARPENED)
    except InputError:
        return found.directions(tau=-1).sharpened(SHARPENED)


def _steered(
    vlm: VLM,
    split: str,
    sizes: Mapping[str, int],
    directions: Any,
    layers: Sequence[int],
    alphas: Sequence[float] = (1.0,),
    **how: Any,
) -> Steering:
    pairs = world_pairs(split, sizes[split])
    return steer(vlm, pairs, directions, layers=layers, alphas=alphas, max_new_tokens=TOKENS, **how)


def _tested(
    vlm: VLM, found: Differences, chosen: Directions, layer: int, towards: Sequence[str], sizes: Mapping[str, int]
) -> _Tested:
    tau, draws = chosen.about["tau"], range(sizes["draws"])
    drawn = {
        "random": [chosen.random(i) for i in draws],
        "covariance-matched": [chosen.random(i, like=found.vectors) for i in draws],
        "shuffled labels": [found.shuffled(tau, i).sharpened(SHARPENED).matched(chosen) for i in draws],
    }
    own = _steered(vlm, "test", sizes, {S: chosen, **drawn}, [layer])
    return _Tested(layer, own, _steered(vlm, "test", sizes, chosen, [layer], towards=towards))


def _push(vlm: VLM, picture: Any, event: str, chosen: Directions, layer: int, towards: Sequence[str]) -> _Pushed:
    """Push towards each emotion, and away from what the story names by itself, which outweighs a push where a picture shows it."""
    own, prompt = tell(vlm, picture, event), vlm.prompt(picture, event)
    away = {o: chosen.edits(o, layer, -1.0) for o in own.named if o in chosen.emotions}
    lists = {e: sum((edits for o, edits in away.items() if o != e), chosen.edits(e, layer)) for e in towards}
    texts = sweep(vlm, prompt, lists, max_new_tokens=TOKENS, progress=False).texts[0]
    likely = perplexity(vlm, prompt, [own.story, *texts])
    stories, costs = [Telling(prompt.image, event, text) for text in texts], [p / likely[0] for p in likely[1:]]
    return _Pushed(own, dict(zip(towards, stories, strict=True)), dict(zip(towards, costs, strict=True)))


# in plain words


def _pushed_line(tested: _Tested, choice: Choice) -> str:
    gain, random = (tested.controls.value[name] for name in ("effect", "random"))
    verdict = "Yes" if gain.low > 0 and tested.controls.less["random"].low > 0 else "Not surely"
    return (
        f"{verdict}: a push after layer {choice.layer} makes {share(tested.clean(''))} of the stories of neutral pictures name the "
        f"emotion that was asked for alone, {share(tested.clean('_before'))} without it; random pushes add {share(random)}."
    )


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
        f"Pushed towards {listed([e for e in directions.emotions if e not in idle])}, "
        f"{share(others)} of the stories name another emotion.",
    ]
    if new:
        lines.append(
            "The pictures below, pushed towards emotions that their own stories do not name, and away from those that they do: "
            f"{sum(new)} of {len(new)} stories name them then. The strengths were chosen on neutral pictures."
        )
    if idle:
        lines.append(f"Not pushed towards {listed(idle)}: on the tuning split no strength kept the limits.")
    return tuple(lines)


def _verdict(controls: pd.DataFrame) -> str:
    gain, drawn = controls.value["effect"], controls.drop("effect")
    as_much = {name: _as_much(row) for name, row in drawn.iterrows() if _as_much(row) or row.less.low <= 0}
    under = ", ".join(f"{name} {share(row.value)}" for name, row in drawn.iterrows())
    said = f"the push gains {share(gain)} of the stories; pushes along other directions, {_draws(controls)} of each kind: {under}. "
    if gain.low <= 0:
        return said + "This gain could be chance: no direction that steers was found."
    if not as_much:
        return said + "No drawn direction gains as much, so where the push points is what counts."
    near = ", ".join(f"{name} ({n} of {_draws(controls)} draws gain as much)" for name, n in as_much.items())
    return said + f"It is not clearly above {near}, so this does not show that it takes just these directions."


def _draws(controls: pd.DataFrame) -> int:
    return int(controls.drop("effect").draws.iloc[0])


def _as_much(control: pd.Series) -> int:
    """How many draws of a control gain as much as S."""
    return reached(control.p_draws, control.draws)


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


# on the page


def _layer_alt(layer: int) -> str:
    return f"Lines: effect of the push by layer, for each strength; the best layer is {layer}"


def _explained(sizes: Mapping[str, int]) -> str:
    return muted(
        f"{sizes['direction']} emotional pictures and their neutral twins give a direction for each emotion and layer: what "
        f"the residual stream at the end of the begun answer “{BEGUN}” has more of beside the first. {sizes['selection']} other "
        "neutral pictures are told while it is added after a layer; 1 would be as many clean stories as beside the emotional "
        "pictures themselves. A story is clean if it names the emotion, names no other, and is, for the model without a push, at "
        f"most {MAX_COST:g} times as perplexing as the emotional picture's own. A push too strong makes it stammer."
    )


def _test_blocks(tested: _Tested, choice: Choice, won: float, sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    controls = pd.DataFrame([_control_row(name, row) for name, row in tested.controls.iterrows()])
    alt = "Table of shares: what the stories name, a column an emotion, by the emotion that they are pushed towards, a row each"
    matrix, words = figure_html(tested.each.plot_matrix(), alt), _control_words(choice.layer, won, sizes)
    return [
        (f"The push on {sizes['test']} test pictures, beside controls", table_html(controls) + words),
        ("The same pictures, pushed towards every emotion", matrix + table_html(_cost_rows(tested, choice)) + _goal_words(tested)),
    ]


def _control_row(name: str, row: pd.Series) -> dict[str, str]:
    along = name if name in CONTROLS else S
    shown = {"pushed along": along, "more clean stories": share(row.value)}
    if name not in CONTROLS:
        return shown | {"S gains more by": "", "p": "", "draws that gain as much": ""}
    less = {"S gains more by": share(row.less), "p": f"{row.p:.4f}"}
    return shown | less | {"draws that gain as much": f"{_as_much(row)} of {row.draws:.0f}"}


def _control_words(layer: int, won: float, sizes: Mapping[str, int]) -> str:
    listed = "; ".join(f"<b>{name}</b>: {what}" for name, what in CONTROLS.items())
    return muted(
        f"{listed}. p: sign flips over pictures, each control averaged over its draws. {sizes['draws']} draws cannot put "
        f"a p-value on the ranks below {1 / (sizes['draws'] + 1):.2f}; notebook 04 draws more. Layer {layer} was chosen on the "
        f"{sizes['selection']} pictures above; with these drawn anew at random it is the best layer in {won:.0%} of cases."
    )


def _cost_rows(tested: _Tested, choice: Choice) -> pd.DataFrame:
    table = tested.each.at()
    rows = [
        {
            "pushed towards": emotion,
            "strength": f"{choice.alphas[emotion]:g}",
            "clean": share(mean_interval(some.clean)),
            "names another emotion": share(mean_interval(some.others)),
            "perplexity, times the unpushed story's": number(median_interval(some.perplexity / some.perplexity_before), 1),
        }
        for emotion, some in table.groupby("towards", sort=False)
    ]
    return pd.DataFrame(rows)


def median_interval(values: Any, seed: int = 0) -> Interval:
    """The median and its bootstrap interval; of ratios of perplexities, whose mean a single stammer would carry away.

    >>> print(median_interval([1.0, 1.0, 50.0]))
    1.00 [1.00, 50.00] (n = 3)
    """
    data = np.asarray(values, float)
    drawn = np.median(np.random.default_rng(seed).choice(data, (RESAMPLES, len(data))), 1)
    return Interval(float(np.median(data)), *np.quantile(drawn, [0.025, 0.975]).tolist(), len(data))


def _goal_words(tested: _Tested) -> str:
    own = tested.own.at()
    ratio = median_interval(own.perplexity_goal / own.perplexity_before)
    return muted(
        f"Perplexity: medians over pictures. The emotional pictures' own stories have {number(ratio, 1)} times the unpushed "
        f"story's, beside the neutral ones. A cell of the figure stands for {ratio.n} stories, so its 95% interval reaches up to "
        f"{196 * (0.25 / ratio.n) ** 0.5:.0f} points to either side; the table has those that count."
    )


def _picture_block(one: _Pushed) -> str:
    rows = _story_row("not pushed", one.own, 1.0)
    rows += "".join(_story_row(emotion, telling, one.costs[emotion]) for emotion, telling in one.pushed.items())
    heads = "".join(f"<th>{head}</th>" for head in ("pushed towards", "story", "perplexity"))
    picture = f'<img class="thumb" src="{data_uri(thumbnail(one.own.picture, 320))}" width="130" alt="the picture">'
    return f'<div class="beside">{picture}{scrolling(f"<table><tr>{heads}</tr>{rows}</table>")}</div>'


_TOLD = "Each story is pushed away from what the first one names. Perplexity: times the first one's, for the model without a push."


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
    rates = tested.each.intervals().droplevel(["direction", "layer", "alpha"])
    effect = tested.own.effect("clean").xs(S).iloc[0].to_dict()
    rows = {"controls": drawn, "towards": rates, "names": tested.each.matrix()}
    return shares | effect | {name: frame.to_dict("index") for name, frame in rows.items()}


def _picture_results(one: _Pushed) -> dict:
    pushed = {
        e: {"story": told.story, "names": list(told.named), "times the perplexity": one.costs[e]} for e, told in one.pushed.items()
    }
    return {"story": one.own.story, "pushed": pushed}
