"""Step 8: VEENA. Strengths chosen on the tuning part, then methods and baselines over three seeds.

Asked are MER-UniBench's sets where a copy is given, else sets of the drawn world, and, where pairs are the reader's own, both sides
of their test part. Answers are sampled, a seed each, as the benchmark figure is "average 3 seeds"; the temperature is not known.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from html import escape
from typing import Any

import pandas as pd

from emointerp import veena
from emointerp.circuit import Circuit, Neuron
from emointerp.errors import InputError
from emointerp.evaluation import (
    Evaluation,
    Item,
    Method,
    amplified,
    conflict_pairs,
    evaluate,
    random_like,
    rivals,
    steering,
    world_items,
)
from emointerp.evaluation.benchmarks import score_mer_unibench, standard
from emointerp.evaluation.clips import NOTE, shown
from emointerp.evaluation.items import CONFLICT, NEUTRALS, OWN, QUESTIONS, TWINS, WORLD, pair_items
from emointerp.evaluation.mer_unibench import compared_table
from emointerp.evaluation.tables import NONE
from emointerp.heads.drawing import means
from emointerp.pairs import Pair
from emointerp.reproduce.kept import Result
from emointerp.reproduce.task import Task
from emointerp.tour.chapter import Chapter, figure_html, muted, points, share, table_html
from emointerp.veena import Fit, Veena

NAME, TITLE = "veena", "VEENA beside its rivals"
NEEDS = ("vectors", "layers", "heads", "neurons")
TEMPERATURE = 0.7
MINE, VEE, ENA, RANDOM = "VEENA", "VEE alone", "ENA alone", "random heads and neurons"
ASKED = (WORLD, CONFLICT, NEUTRALS, QUESTIONS)
TITLES = {
    OWN: "The reader's test pairs, emotional side",
    TWINS: "The reader's test pairs, neutral side",
    WORLD: "Drawn pictures, neutral events",
    CONFLICT: "Drawn pictures, events that contradict them",
    NEUTRALS: "Drawn neutral pictures",
    QUESTIONS: "Plain questions about drawn pictures",
}
MAX_FALSE, MAX_COST = 0.02, 1.5


def measure(task: Task) -> Result:
    """Fit on the tuning part, and all answers."""
    circuit = _circuit(task)
    tuning = _tuning(task)
    tried = task.parts.once("tried", lambda: _fitted(task, circuit, tuning).table)
    value, idle = chosen(circuit, task.l_emo, tried)
    methods = _methods(task, value, tuning, idle)
    facts = {"veena": asdict(value), "idle": idle, "methods": [m.name for m in methods], "tuning": len(tuning)}
    if task.data is not None:
        return Result({"tried": tried} | _benchmark(task, methods), facts=facts)
    items = _items(task)
    asked = {
        "seeds": range(task.sizes.seeds), "temperature": TEMPERATURE, "max_new_tokens": task.sizes.tokens, "batch": task.batch,
        "folder": task.parts.place(f"answers-{task.batch}"), "progress": False,
    }  # fmt: skip
    found = evaluate(task.vlm, methods, items, **asked)
    facts["about"] = _as_json(found.about)
    return Result({"tried": tried, "answers": found.table}, facts=facts)


def _circuit(task: Task) -> Circuit:
    """The heads of the step before, and the state neurons that stand; InputError where there is neither."""
    table, known = task.found["heads"].tables["heads"], task.found["neurons"]
    heads = [(int(r.layer), int(r.head), float(r.effect.mean), float(r.corrected)) for r in table.itertuples()]
    states = _states(known.tables["state"]) if "state" in known.tables else []
    if not heads and not states:
        raise InputError("No head and no neuron was found whose patch brings anything over, so there is nothing to amplify.")
    found = Circuit.of(task.vlm, heads, states, pairs=task.known("selection"), metric="restoration and projection")
    return replace(found, events=()) if task.material.shared_events else found  # the page says that events are shared


def _states(table: pd.DataFrame) -> list[Neuron]:
    """Neurons that name an emotion and pass on the selection part; the exact patches saw the test part."""
    some = table[(table.names != "") & (table.p <= 0.05) & (means(table.score) > 0)]
    return [Neuron(int(r.layer), int(r.neuron), r.score.mean, float(r.p), r.names) for r in some.itertuples()]


def _tuning(task: Task) -> list[Pair]:
    """Of the drawn world pictures beside events that contradict them, as its readers hallucinate there; else the tuning part."""
    n = task.sizes.pairs["tuning"]
    return conflict_pairs(task.vlm, n) if task.material.drawn else task.pairs("tuning")


def _fitted(task: Task, circuit: Circuit, tuning: Sequence[Pair]) -> Fit:
    gammas = task.sizes.gammas if circuit.neurons else (1.0,)
    how = {"max_false": MAX_FALSE, "max_cost": MAX_COST, "max_new_tokens": task.sizes.tokens, "batch": task.batch}
    return veena.fit(task.vlm, circuit, tuning, task.l_emo, betas=task.sizes.betas, gammas=gammas, progress=False, **how)


def chosen(circuit: Circuit, l_emo: int, tried: pd.DataFrame) -> tuple[Veena, bool]:
    """VEENA at the chosen strengths; where these are no edit, at the weakest that was tried, and True."""
    best = tried[tried.chosen].iloc[0]
    idle = best.beta == 1 and best.gamma == 1
    if idle:
        best = pd.Series({name: min((x for x in tried[name] if x > 1), default=1.0) for name in ("beta", "gamma")})
    value = Veena.from_circuit(circuit, l_emo, beta=float(best.beta), gamma=float(best.gamma))
    if not value.edits():
        raise InputError("No strength above 1 was tried, so VEENA is the model as it is.")
    return value, bool(idle)


def _methods(task: Task, value: Veena, tuning: Sequence[Pair], idle: bool) -> list[Method]:
    """No edit, the rivals, VEENA and its halves, and the same strengths on random heads and neurons."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strengths at the end of a grid, and of layers with few other heads
        alpha = task.found["layers"].facts["alpha"]
        pushed = replace(steering(task.directions, task.l_emo, alpha), name="steering")
        others = rivals(task.vlm, task.directions, task.l_emo, tuning) if task.sizes.tuned else [*standard(), pushed]
        drawn = [amplified(random_like(task.vlm, value, i), f"{RANDOM} {i + 1}") for i in range(task.sizes.draws)]
    halves = [amplified(value, name, part) for name, part in ((VEE, "vee"), (ENA, "ena")) if value.only(part).edits()]
    return [*others, amplified(value, MINE), *(halves if len(halves) > 1 else []), *drawn]


def _items(task: Task) -> dict[str, list[Item]]:
    """Sets of the drawn world; of pairs of one's own the two sides of the test part as well."""
    found = {name: world_items(task.vlm, name, task.sizes.items) for name in ASKED}
    if task.material.drawn:
        return found
    return pair_items(task.pairs("test")) | found


def _benchmark(task: Task, methods: Sequence[Method]) -> dict[str, pd.DataFrame]:
    """MER-UniBench's table over all seeds, percents by seed, and the scores of single clips; a seed draws the frames as well.

    Sampled answers depend on those that are told together, so a run that goes on where another number is (on a GPU with other
    memory) asks anew, in another folder.
    """
    how = {"n": task.sizes.clips, "temperature": TEMPERATURE, "progress": False}
    how |= {"max_new_tokens": task.sizes.tokens, "batch": task.batch}
    runs = []
    for seed in range(task.sizes.seeds):
        place = task.parts.place(f"benchmark-{seed}-{task.batch}")
        runs.append(score_mer_unibench(task.vlm, methods, task.data, place, seed=seed, **how))
    table = compared_table({m.name: [run[m.name] for run in runs] for m in methods})
    each = [(seed, name, score) for seed, run in enumerate(runs) for name, some in run.items() for score in some]
    clips = [score.clips.assign(method=name, set=score["set"], seed=seed) for seed, name, score in each]
    seeds = [{"method": name, "set": score["set"], "seed": seed, "percent": score.percent} for seed, name, score in each]
    return {"benchmark": table, "seeds": pd.DataFrame(seeds), "clips": pd.concat(clips, ignore_index=True)}


def _as_json(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name != "methods"} | {"methods": dict(about["methods"])}


def chapter(task: Task, result: Result) -> Chapter:
    """The strengths, and the table."""
    tried, value, facts = result.tables["tried"], Veena(**result.facts["veena"]), result.facts
    fit = figure_html(Fit(value, _circuit(task), tried, pd.DataFrame(), MAX_FALSE).plot(), "Rates by strength, with the chosen one")
    blocks = [("The strengths, on the tuning part", fit + muted(_fit_words(task, facts)))]
    summary = [_strength_line(tried, value, facts["idle"])]
    if "benchmark" in result.tables:
        block, line, results, here = _of_benchmark(result.tables["benchmark"], result.tables["seeds"])
    else:
        block, line, results, here = _of_answers(Evaluation(result.tables["answers"], facts["about"]))
    blocks += block
    here |= {"beta": f"{value.beta:g}", "gamma": f"{value.gamma:g}"}
    results |= {"beta": value.beta, "gamma": value.gamma, "chosen": not facts["idle"]}
    return Chapter(NAME, TITLE, (*summary, *line), tuple(blocks), results, found=here)


def _strength_line(tried: pd.DataFrame, value: Veena, idle: bool) -> str:
    best = tried[tried.chosen].iloc[0]
    parts = f"{len(value.upstream)} upstream and {len(value.downstream)} downstream heads and {len(value.neurons)} neurons"
    if idle:
        return (
            f"No strength of {parts} kept the limits on the tuning part and told more stories right than no edit: VEENA would be "
            f"left off. It is asked all the same, at the weakest strength that was tried, β = {value.beta:g} and γ = "
            f"{value.gamma:g}."
        )
    gain = points(best.gain)
    return f"{parts}, at β = {value.beta:g} and γ = {value.gamma:g}: on the tuning part {gain} of right stories."


def _fit_words(task: Task, facts: Mapping[str, Any]) -> str:
    beside = "events that contradict the picture" if task.material.drawn else "their own events"
    return (
        f"{facts['tuning']} pairs beside {beside}. Chosen is the largest share of right stories as long as false emotions beside "
        f"the neutral twins rise by at most {100 * MAX_FALSE:.0f} points and stories are at most {MAX_COST:g} times as perplexing. "
        "The digest names no β and γ. The heads are chosen as the paper chooses them, by what their patch carries over; "
        "`emointerp evaluate --veena` compares heads chosen by what a larger look at the picture does."
    )


def _of_answers(found: Evaluation) -> tuple[list, list[str], dict, dict]:
    """Tables of the harness: a block a set; the line and the figures of the set on which the gain is claimed."""
    frame, blocks = found.to_frame(), []
    for name in found.sets:
        figure = found.figure_of(name)
        rows = [_answer_row(method, row, figure) for method, row in frame.loc[name].iterrows()]
        blocks.append((TITLES[name], table_html(pd.DataFrame(rows).fillna(""))))
    blocks[-1] = (blocks[-1][0], blocks[-1][1] + muted(_NOTE))
    lines, results = [], {}
    for name in (one for one in (OWN, CONFLICT, WORLD) if one in found.sets):
        hits = {method: row.hit for method, row in frame.loc[name].iterrows()}
        results[name] = hits
        more = frame.loc[name].difference[MINE]
        lines.append(
            f"{TITLES[name]}: hit rate {share(hits[NONE])} as it is, {share(hits[MINE])} with VEENA; right stories {points(more)}."
        )
    first = OWN if OWN in found.sets else CONFLICT
    here = {
        "baseline": f"{share(results[first][NONE])}, {TITLES[first].lower()}",
        MINE: f"{share(results[first][MINE])}, {TITLES[first].lower()}",
    }
    return blocks, lines, {"sets": results}, here


def _answer_row(method: str, row: pd.Series, figure: str) -> dict[str, str]:
    shown = {"method": method}
    if figure == "exact":
        shown |= {"hit rate": share(row.hit)}
    label = {"exact": "right stories", "false_emotion": "false emotions", "right": "right answers"}[figure]
    shown |= {label: share(row[figure])}
    if method != NONE:
        shown |= {"more than none": points(row.difference), "p (Holm)": f"{row.p_holm:.4f}"}
    return shown


def _of_benchmark(table: pd.DataFrame, seeds: pd.DataFrame) -> tuple[list, list[str], dict, dict]:
    """A block a set, their mean first: each method with its interval over clips, beside no edit, and what else it names."""
    texts, last = shown(table), table["set"].iloc[-1]
    order = [last, *(name for name in table["set"].unique() if name != last)]
    blocks = [(f"MER-UniBench: {name}", table_html(texts[table["set"] == name].drop(columns="set"))) for name in order]
    means = seeds.groupby(["method", "seed"], sort=False).percent.mean()
    ranges = {method: _range(some) for method, some in means.groupby(level="method", sort=False)}
    told = "; ".join(f"{method} {of}" for method, of in ranges.items())
    blocks[0] = (blocks[0][0], blocks[0][1] + muted(f"{NOTE} Seeds are averaged within clips; the mean by seed: {escape(told)}."))
    ends = {method: texts.percent[(table["set"] == last) & (table.method == method)].item() for method in (NONE, MINE)}
    more = texts[(table["set"] == last) & (table.method == MINE)].iloc[0]
    line = f"MER-UniBench, {last}: {ends[NONE]} as it is, {ends[MINE]} with VEENA; {more.difference} points, p = {more.p}."
    here = {method: f"{ends[name]} ({ranges[name]}), {last}" for method, name in (("baseline", NONE), (MINE, MINE))}
    results = {method: some.set_index("set").percent.to_dict() for method, some in table.groupby("method", sort=False)}
    gained = table[(table.method == MINE)].set_index("set")[["difference", "difference_low", "difference_high", "p", "p_holm"]]
    return blocks, [line], {"benchmark": results, "gained": _plain(gained)}, here


def _range(percents: pd.Series) -> str:
    return f"{percents.min():.1f} to {percents.max():.1f} over seeds"


def _plain(table: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Rows as JSON has them."""
    return {name: {key: None if pd.isna(value) else value for key, value in row.items()} for name, row in table.iterrows()}


_NOTE = (
    f"Answers sampled at temperature {TEMPERATURE:g}, each item once a seed; items are the unit of intervals and tests. Right "
    "stories name the pictured emotion and no other; a hit is any story that names it. No method sees what is right. On neutral "
    "pictures and plain questions a cure must do no harm."
)
