"""The tour's chapter on VEENA: can a hallucinated emotion be mended without training, by more attention to the picture?

Heads and neurons are those that the chapter before found on the selection split; strengths are chosen on the tuning split, by the
rule of `veena.fit` on a small grid; what is reported comes from the test split, beside controls. Sizes are small, so that the
chapter takes well under a minute; notebook 07 shows the same step by step, beside PAI as a rival.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

import numpy as np
import pandas as pd
from jaxtyping import Float

from emointerp import veena
from emointerp.circuit import Circuit
from emointerp.emotions import exact_rate
from emointerp.evaluation import (
    Evaluation,
    Method,
    amplified,
    conflict_pairs,
    emotion_prompt,
    evaluate,
    none,
    random_like,
    world_items,
)
from emointerp.evaluation.items import CONFLICT, NEUTRALS, Item
from emointerp.evaluation.tables import GAIN, NONE, RISE
from emointerp.markup import data_uri, marked, thumbnail
from emointerp.models import VLM, to_image
from emointerp.start_here import Telling, conflict_intensities, tell_all
from emointerp.statistics import Interval, mean_interval
from emointerp.tour.chapter import (
    BECAME,
    LEFT_OUT,
    RAN,
    Chapter,
    Job,
    figure_html,
    left_out,
    listed,
    muted,
    points,
    scrolling,
    share,
    table_html,
)
from emointerp.veena import Fit, Veena

TITLE = "Mending without training (VEENA)"
MENDED = "Can it be mended?"
BETAS, GAMMAS = (1, 4, 8), (1, 1.5)
MAX_FALSE, MAX_COST = 0.02, 1.5  # limits on the tuning split, as `veena.fit` has them
SHOWN, TOKENS = 6, 64
SETS = {"conflict": CONFLICT, "neutrals": NEUTRALS}  # as `Sizes` calls them, and the harness
MINE, VEE, RANDOM, PROMPTED = "VEENA", "VEE alone", "random heads and neurons", "emotion prompt"


@dataclass(frozen=True)
class _Case:
    """A picture's stories without and with VEENA; `note` says more of it than its name."""

    name: str
    before: Telling
    after: Telling
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Tested:
    """Answers to the test sets; the draws of the random control count as one method, the mean over draws in each item."""

    items: Mapping[str, Sequence[Item]]
    result: Evaluation

    @cached_property
    def methods(self) -> dict[str, list[str]]:
        """The methods of the harness by their names on the page."""
        names: dict[str, list[str]] = {}
        for name in self.result.methods:
            names.setdefault(RANDOM if name.startswith(RANDOM) else name, []).append(name)
        return names

    def values(self, which: str, method: str) -> Float[np.ndarray, " item"]:
        """Exact stories of the conflict set, false emotions of the neutral one."""
        return np.mean([self.result.values(which, name) for name in self.methods[method]], 0)

    def rate(self, which: str, method: str) -> Interval:
        """The share of stories."""
        return mean_interval(self.values(which, method))

    def more(self, which: str, method: str, than: str = NONE) -> Interval:
        """The paired difference to another method."""
        return mean_interval(self.values(which, method) - self.values(which, than), signed=True)

    @cached_property
    def cases(self) -> list[_Case]:
        """The first items of the conflict set, whether their stories changed or not."""
        table = self.result.table.set_index(["set", "method", "item"]).answer[CONFLICT]
        cases = []
        for i, item in enumerate(self.items[CONFLICT][:SHOWN]):
            before, after = (Telling(to_image(item.picture), item.text, table[name, i], item.gold) for name in (NONE, MINE))
            suggests = f", which suggests {item.suggested}" if item.suggested else ""
            cases.append(_Case(f"test picture {i + 1}", before, after, f"beside “{item.text}”{suggests}"))
        return cases

    @cached_property
    def goal(self) -> pd.DataFrame:
        """`Evaluation.goal`; plain questions are not asked here."""
        return self.result.goal(MINE, [PROMPTED])


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Choose strengths for the heads and neurons found before, test them beside controls, tell the job's pictures with them."""
    circuit = job.found.get("heads")
    if circuit is None:
        return left_out("veena", TITLE, _NOTHING, circuit=None)
    sizes = job.sizes.veena
    l_emo = job.found.get("steering")
    fitted = _fitted(vlm, circuit, vlm.anatomy.n_layers // 2 if l_emo is None else l_emo, sizes["tuning"], job.batch)
    blocks = [("The strengths, chosen on the tuning split", _fit_block(vlm, fitted, sizes["tuning"]))]
    results = {"circuit": _parts(fitted.veena), "l_emo": fitted.veena.l_emo, "tuning": _tuning_results(fitted, sizes["tuning"])}
    found = _found_line(fitted.veena, _border(job))
    if not fitted.veena.edits():
        idle = _idle(fitted, sizes["tuning"])
        return Chapter("veena", TITLE, (found, idle), tuple(blocks), results, plain=((MENDED, _not_mended(fitted)),))
    tested, told = _tested(vlm, fitted.veena, sizes, job.batch), _told(vlm, job, fitted.veena)
    blocks += [*_test_blocks(tested), ("This report's pictures, before and after", _stories(told) + muted(_PICTURES))]
    results |= {"test split": _test_results(tested), "pictures": {case.name: _story_results(case) for case in told}}
    summary = (found, _chosen_line(fitted, sizes["tuning"]), *_summary(tested), _picture_line(told))
    return Chapter("veena", TITLE, summary, tuple(blocks), results, plain=((MENDED, _mended(tested)),))


def _fitted(vlm: VLM, circuit: Circuit, l_emo: int, n: int, batch: int) -> Fit:
    gammas = GAMMAS if circuit.neurons else (1,)
    how = {"max_false": MAX_FALSE, "max_cost": MAX_COST, "max_new_tokens": TOKENS, "batch": batch}
    return veena.fit(vlm, circuit, conflict_pairs(vlm, n), l_emo, betas=BETAS, gammas=gammas, **how)


def _tested(vlm: VLM, value: Veena, sizes: Mapping[str, int], batch: int) -> _Tested:
    items = {name: world_items(vlm, name, sizes[short]) for short, name in SETS.items()}
    how = {"max_new_tokens": TOKENS, "batch": batch, "perplexity": False}
    return _Tested(items, evaluate(vlm, _methods(vlm, value, sizes["draws"]), items, **how))


def _methods(vlm: VLM, value: Veena, draws: int) -> list[Method]:
    """VEE by itself only where ENA does something beside it."""
    alone = value.only("vee").edits()
    halves = [amplified(value, VEE, "vee")] if alone and alone != value.edits() else []
    drawn = [amplified(random_like(vlm, value, i), f"{RANDOM}, draw {i + 1}") for i in range(draws)]
    return [none(), emotion_prompt(), *drawn, *halves, amplified(value, MINE)]


def _told(vlm: VLM, job: Job, value: Veena) -> list[_Case]:
    """The stories of the job's pictures without and with VEENA; the first are those of the tour's first chapter."""
    asked, how = [(picture, job.event) for _, picture in job.pictures], {"max_new_tokens": TOKENS, "batch": job.batch}
    known = job.found.get("start_here")
    before = tell_all(vlm, asked, **how) if known is None else [known[name] for name, _ in job.pictures]
    with veena.on(vlm, value):
        after = tell_all(vlm, asked, **how)
    return [_Case(name, one, other) for (name, _), one, other in zip(job.pictures, before, after, strict=True)]


# in plain words


def _mended(tested: _Tested) -> str:
    gain, random, asked = (tested.more(CONFLICT, name) for name in (MINE, RANDOM, PROMPTED))
    verdict = "Yes, partly" if gain.low > 0 else "No" if gain.high < 0 else "Not shown"
    return (
        f"{verdict}: with more attention to the picture (VEENA), {share(tested.rate(CONFLICT, MINE))} of the stories beside "
        f"contradicting events are right, {share(tested.rate(CONFLICT, NONE))} without: {points(gain)}; amplifying random heads "
        f"gives {points(random)}, only asking to look at the picture {points(asked)}."
    )


def _not_mended(fitted: Fit) -> str:
    own = share(_unedited(fitted).exact)
    return f"Not shown: no strength of more attention to the picture gave more right stories than the {own} without it."


# in words

_NOTHING = (
    "The chapter before found no heads that bring a feeling over from the picture. So there is nothing to amplify and nothing to "
    "test, and the pictures' stories were left alone."
)
_PICTURES = (
    "All of them beside the event at the top of this page. VEENA makes the picture count for more; where the event suggests no "
    "feeling, little is to be mended, and a story that changes for the worse is what it costs."
)


def _border(job: Job) -> str:
    """Why the heads part at this layer."""
    if job.found.get("steering") is not None:
        return "where a push works best"
    state = job.states.get("steering", LEFT_OUT)
    why = "no push of the chapter on steering helped" if state == RAN else f"the chapter on steering {BECAME[state]}"
    return f"halfway, as {why}"


def _found_line(value: Veena, border: str) -> str:
    up, down, neurons = (len(getattr(value, name)) for name in Veena.lists)
    ena = f"ENA multiplies by γ what {neurons} neurons do that state a feeling. VEENA is both."
    return (
        f"Amplified is what the chapter before found; nothing is trained. VEE multiplies the attention that {up + down} heads pay "
        f"to the picture by β: {up} up to layer {value.l_emo} ({border}) while the prompt is read, {down} later ones while the "
        f"story is told. {ena if neurons else 'No neuron that states a feeling passed its test there, so ENA has none to amplify.'}"
    )


def _idle(fitted: Fit, n: int) -> str:
    return (
        f"None of {len(fitted.table) - 1} strengths gave more right stories on the {n} tuning pairs within the limits; "
        f"without an edit {share(_unedited(fitted).exact)} are right. So there is nothing to test, and the pictures' stories were "
        "left alone."
    )


def _chosen_line(fitted: Fit, n: int) -> str:
    best, own = _chosen(fitted), _unedited(fitted)
    return (
        f"Chosen on {n} tuning pairs: β = {best.beta:g}, γ = {best.gamma:g}. There, beside events that suggest another "
        f"emotion, {share(best.exact)} of the stories are right: they name the pictured emotion and no other. Without an edit it "
        f"is {share(own.exact)}. What is chosen looks better where it was chosen than it is.{_half(fitted.veena)}"
    )


def _half(value: Veena) -> str:
    """Which half of VEENA is all of it."""
    alone = [part for part in ("vee", "ena") if value.only(part).edits() == value.edits()]
    return f" A factor of 1 changes nothing, so VEENA is {alone[0].upper()} alone here." if alone else ""


def _summary(tested: _Tested) -> tuple[str, ...]:
    gain, others = tested.more(CONFLICT, MINE), [name for name in tested.methods if name not in (NONE, MINE)]
    neutrals = tested.rate(NEUTRALS, MINE).n
    listed = ", ".join(f"{name} {points(tested.more(CONFLICT, name))}" for name in others)
    return (
        f"Test, {gain.n} other pictures beside such events: {share(tested.rate(CONFLICT, MINE))} with VEENA, "
        f"{share(tested.rate(CONFLICT, NONE))} without: {points(gain)}. {_verdict(gain)}",
        f"Beside it, more than without: {listed}. {_rank(tested, others)}",
        f"{neutrals} neutral pictures, beside events in which naming an emotion is wrong: "
        f"{share(tested.rate(NEUTRALS, MINE))} of the stories name one with VEENA, {share(tested.rate(NEUTRALS, NONE))} without: "
        f"{points(tested.more(NEUTRALS, MINE))}. One story is {100 / neutrals:.0f} points here.",
        _goal_line(tested.goal),
    )


def _verdict(gain: Interval) -> str:
    if gain.low > 0:
        return "So it mends some of them, by more than chance."
    if gain.high < 0:
        return "So it does harm, by more than chance."
    return "This could be chance, so no gain is shown."


def _rank(tested: _Tested, others: Sequence[str]) -> str:
    """Above which methods VEENA is, as far as intervals tell."""
    above = [name for name in others if tested.more(CONFLICT, MINE, name).low > 0]
    rest = [name for name in others if name not in above]
    said = [f"clearly above {_rivals(above)}"] * bool(above) + [f"not clearly above {_rivals(rest)}"] * bool(rest)
    too = " Random ones gain too, so a part of the gain does not take just these." * (tested.more(CONFLICT, RANDOM).low > 0)
    return f"VEENA is {', and '.join(said)}.{too}"


def _goal_line(goal: pd.DataFrame) -> str:
    """Whether what a cure should do was done, by the means, and how little so few pictures tell."""
    asked = goal[goal.met != "not measured"]
    missed = [f"“{wish}” is missed ({points(row.difference)})" for wish, row in asked[asked.met == "no"].iterrows()]
    said = f"is not reached, as {', '.join(missed)}" if missed else "is reached as far as it is measured here, by the means"
    wide = max((row.difference.high - row.difference.low) / 2 for _, row in asked.iterrows())
    return (
        f"The goal of a cure is {100 * GAIN:.0f} points over no edit, more than the emotion prompt gives, and false emotions up by "
        f"at most {100 * RISE:.0f} points. It {said}. So few pictures tell little: these intervals reach about {100 * wide:.0f} "
        "points to either side. Notebook 07 asks more of them, and plain questions, which a cure must not spoil."
    )


def _picture_line(told: Sequence[_Case]) -> str:
    other = sum(case.before.story != case.after.story for case in told)
    named = sum(set(case.before.named) != set(case.after.named) for case in told)
    return (
        f"Stories of this report's own pictures, at the end: of {len(told)}, {other} read differently with VEENA, and {named} name "
        "other emotions."
    )


def _rivals(names: Sequence[str]) -> str:
    return listed([f"the {name}" if name == PROMPTED else name for name in names])


# on the page


def _fit_block(vlm: VLM, fitted: Fit, n: int) -> str:
    (low, high), best = conflict_intensities(vlm), _chosen(fitted)
    alt = f"Rates by strength; chosen: β = {best.beta:g}, γ = {best.gamma:g}, {share(best.exact)} right stories there"
    return figure_html(fitted.plot(), alt) + muted(
        f"{n} pairs of the tuning split: a picture (expressions at {low:.0%} to {high:.0%} of their strength) beside an "
        f"event that suggests another emotion, and its neutral twin beside a neutral event. {len(fitted.table)} strengths are "
        "tried on all of them. Chosen is the largest exact rate, the share of right stories, which name the pictured emotion and "
        f"no other, within two limits: {int(MAX_FALSE * n + 1e-9) or 'no'} more neutral stories name an emotion than without "
        f"an edit, and stories are at most {MAX_COST:g} times as perplexing. Heads and neurons were found on the selection split, "
        "so nothing was chosen on the test split."
    )


def _test_blocks(tested: _Tested) -> list[tuple[str, str]]:
    columns = ["method", "right stories", "more than none", "VEENA has more by", "false emotions"]
    rows = pd.DataFrame([_row(tested, name) for name in tested.methods], columns=columns).fillna("")
    first = f"The first {len(tested.cases)} of these test pictures, before and after"
    return [("On the test split, beside controls", table_html(rows) + _row_words(tested)), (first, _stories(tested.cases))]


def _row(tested: _Tested, name: str) -> dict[str, str]:
    row = {"method": name, "right stories": share(tested.rate(CONFLICT, name))}
    row |= {"false emotions": share(tested.rate(NEUTRALS, name))}
    if name != NONE:
        row["more than none"] = points(tested.more(CONFLICT, name))
    if name not in (NONE, MINE):
        row["VEENA has more by"] = points(tested.more(CONFLICT, MINE, name))
    return row


def _row_words(tested: _Tested) -> str:
    conflict, neutrals = (tested.rate(name, NONE).n for name in (CONFLICT, NEUTRALS))
    return muted(
        f"Right stories: those that name the pictured emotion and no other, of {conflict} beside events that suggest another."
        f" False emotions: stories that name one, of {neutrals} neutral pictures beside neutral events. Differences are "
        f"paired. Random: as many other heads and neurons of the same layers at the same strengths, {len(tested.methods[RANDOM])} "
        "draws, their mean in each picture. No method sees what is right."
    )


def _stories(cases: Sequence[_Case]) -> str:
    """Stories side by side; all that comes from outside or from the model is escaped."""
    heads = "".join(f"<th>{head}</th>" for head in ("", "picture", "without VEENA", "with VEENA"))
    return scrolling(f"<table><tr>{heads}</tr>{''.join(map(_story_row, cases))}</table>")


def _story_row(case: _Case) -> str:
    picture = f'<img class="thumb" src="{data_uri(thumbnail(case.before.picture, 160))}" width="72" alt="the picture">'
    shows = f"shows <b>{escape(case.before.emotion)}</b>" if case.before.emotion else "what it shows is not known"
    about = f"{escape(case.note or case.name)}<br><small>{shows}</small>"
    cells = [picture, about, *map(_story, (case.before, case.after))]
    return "<tr>" + "".join(f'<td style="vertical-align:top">{cell}</td>' for cell in cells) + "</tr>"


def _story(told: Telling) -> str:
    text = marked(told.story, told.words) or "<i>nothing was said</i>"
    right = "" if told.emotion is None or not exact_rate(told.story, told.emotion) else ": <b>right</b>"
    return f'{text}<br><small class="muted">names {", ".join(told.named) or "no emotion"}{right}</small>'


# as numbers


def _chosen(fitted: Fit) -> pd.Series:
    return fitted.table[fitted.table.chosen].iloc[0]


def _unedited(fitted: Fit) -> pd.Series:
    return fitted.table[(fitted.table.beta == 1) & (fitted.table.gamma == 1)].iloc[0]


def _parts(value: Veena) -> dict:
    return {name: [f"{layer}.{number}" for layer, number in getattr(value, name)] for name in Veena.lists}


def _tuning_results(fitted: Fit, n: int) -> dict:
    best, columns = _chosen(fitted), ["beta", "gamma", "exact", "more_false", "cost", "allowed"]
    chosen = {"beta": float(best.beta), "gamma": float(best.gamma)}
    return {"pairs": n, "chosen": chosen, "tried": fitted.table[columns].to_dict("records")}


def _test_results(tested: _Tested) -> dict:
    rows = {name: _rates(tested, name) for name in tested.methods}
    goal = tested.goal[["met", "difference"]].astype(object)
    return {"methods": rows, "goal": goal.to_dict("index"), "stories": {case.name: _story_results(case) for case in tested.cases}}


def _rates(tested: _Tested, name: str) -> dict:
    rates = {"exact": tested.rate(CONFLICT, name), "false emotions": tested.rate(NEUTRALS, name)}
    if name == NONE:
        return rates
    return rates | {"exact, more than none": tested.more(CONFLICT, name), "false, more than none": tested.more(NEUTRALS, name)}


def _story_results(case: _Case) -> dict:
    return {"before": case.before.story, "after": case.after.story, "event": case.before.event, "shows": case.before.emotion}
