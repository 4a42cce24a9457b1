"""Circuit and strengths chosen on two splits that the test never sees."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emointerp.circuit import Circuit, Head
from emointerp.emotions import NEUTRAL, same_answer, score
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.heads import amplification_map, head_map
from emointerp.lens import Words
from emointerp.models import VLM
from emointerp.neurons import state_neurons
from emointerp.pairs import Pair, check_disjoint
from emointerp.plots import band, new_figure
from emointerp.statistics import mean_interval
from emointerp.tracing import Edit, perplexity, sweep
from emointerp.veena.strength import BEGUN
from emointerp.veena.value import Veena

PATCHING, AMPLIFICATION = RULES = "patching", "amplification"
Question = tuple[Any, str, str]  # picture, question, the right answer
_COLORS = ("#8A8F98", "#56B4E9", "#0072B2", "#D55E00", "#CC79A7")


@dataclass(frozen=True, eq=False)
class Fit:
    """What `fit` found: the `veena`, the `circuit` that it is made of, and what was tried.

    `table` has a row a beta and gamma: `exact`, `hit` and `gain` (in exact rate, beside no edit), all `Interval`s over the pairs;
    `false_emotions`, their rate on the neutral sides, and `more_false`, its rise; `right`, the share of plain questions answered
    rightly, and `more_wrong`, its fall (missing where none were asked); `cost`, the perplexity of the stories under
    the unedited model over that of the stories without edits, geometric mean; `allowed`, whether the limits are kept, and `chosen`.
    `stories` has a row a story.
    """

    veena: Veena
    circuit: Circuit = field(repr=False)
    table: pd.DataFrame
    stories: pd.DataFrame = field(repr=False)
    max_false: float

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self) -> Figure:
        """Exact rate and false emotions by beta, a line a gamma, with 95% intervals; a ring around what was chosen."""
        figure, axes = new_figure(1, 2, width=9, height=3.6)
        for i, (gamma, some) in enumerate(self.table.groupby("gamma")):
            color = _COLORS[i % len(_COLORS)]
            band(axes[0], some.beta, some.exact, color, f"γ = {gamma:g}")
            axes[1].plot(some.beta, some.false_emotions, "-o", color=color, markersize=4)
        best, own = self.table[self.table.chosen].iloc[0], self.table.false_emotions - self.table.more_false
        ring = {"marker": "o", "markersize": 12, "color": "#23262d", "markerfacecolor": "none", "linestyle": "none"}
        axes[0].plot(best.beta, best.exact.mean, **ring, label="chosen")
        axes[1].plot(best.beta, best.false_emotions, **ring)
        axes[1].axhline(own.iloc[0] + self.max_false, color="#6b7078", linestyle=":", linewidth=1)
        axes[1].annotate("limit", (1, own.iloc[0] + self.max_false), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                         fontsize=8, color="#6b7078")  # fmt: skip
        betas = self.table.beta.unique()
        for axis, title in zip(axes, ("Exact rate, emotional sides", "False emotions, neutral sides"), strict=True):
            axis.set(xlabel="β", ylim=(-0.03, 1.03), title=title, xscale="log")
            axis.set_xticks(betas, [f"{beta:g}" for beta in betas])
            axis.minorticks_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure


def fit(
    vlm: VLM,
    selection: Sequence[Pair] | Circuit,
    tuning: Sequence[Pair],
    l_emo: int,
    *,
    betas: Sequence[float] = (1, 1.5, 2, 4, 8, 16, 32),
    gammas: Sequence[float] = (1, 1.2, 1.5),
    questions: Sequence[Question] = (),
    max_false: float = 0.02,
    max_cost: float = 1.5,
    max_wrong: float = 0.01,
    by: str = PATCHING,
    heads: int = 10,
    neurons: int = 30,
    words: Words = None,
    wheels: WheelsLike = None,
    answer: str = BEGUN,
    max_new_tokens: int = 64,
    progress: bool = True,
    **options: Any,
) -> Fit:
    """Find the circuit on `selection`, then choose beta and gamma on `tuning`: the largest exact rate within the limits.

    `selection` may be a circuit that was found before (`find_circuit`, which takes `by`, `heads`, `neurons`, `words` and `answer`).
    The tuning pairs should hold what is to be mended, such as an emotional picture beside an event that suggests another emotion,
    and give the neutral picture an event of its own (`Pair.neutral_event`), beside which naming an emotion is wrong.

    Limits: false emotions on the neutral sides rise by at most `max_false`; the stories' perplexity under the unedited model is at
    most `max_cost` times that of the stories without edits (geometric mean); of plain `questions` (picture, question, answer)
    `max_wrong` more are answered wrongly at most. No edit is always among what is tried; of equal exact rates the weakest is taken.
    (Of fewer than 50 neutral sides one false emotion is more than 2 points, so no further one is allowed.) `options` are fields of
    `Veena` (form, prefill_at, …). Greedy; test on a third split.
    """
    circuit = selection
    if not isinstance(selection, Circuit):
        check_disjoint(selection, tuning)
        found = {"by": by, "heads": heads, "neurons": neurons, "words": words, "answer": answer, "progress": progress}
        circuit = find_circuit(vlm, selection, l_emo, **found)
    circuit.check(vlm)
    circuit.check_apart(tuning)
    values = {
        (float(beta), float(gamma)): Veena.from_circuit(circuit, l_emo, beta=beta, gamma=gamma, **options)
        for beta in sorted({1.0, *betas})
        for gamma in sorted({1.0, *gammas})
    }
    lists = {key: value.edits() for key, value in values.items()}
    stories = _told(vlm, tuning, lists, wheels, max_new_tokens, progress)
    right = _answered(vlm, questions, lists, max_new_tokens, progress) if questions else None
    table = _tried(stories, max_false, max_cost, right, max_wrong)
    best = table[table.chosen].iloc[0]
    return Fit(values[best.beta, best.gamma], circuit, table, stories, max_false)


def find_circuit(
    vlm: VLM,
    pairs: Sequence[Pair],
    l_emo: int | None = None,
    *,
    by: str = PATCHING,
    heads: int = 10,
    neurons: int = 30,
    words: Words = None,
    answer: str = BEGUN,
    progress: bool = True,
) -> Circuit:
    """The `heads` best of those that pass their test (`HeadMap.passed`), and the state neurons that exact patching confirms.

    - `by="patching"`: heads that carry the emotion from the picture into its neutral twin's run (`heads.head_map`).
    - `by="amplification"`: heads whose larger look at the picture does most beside an event that contradicts it; those up to
      `l_emo` look from the query (`heads.amplification_map`). The pairs bring a neutral event along.

    Twins are patched beside the neutral event, where pairs have one. Neurons are scanned and patched (`neurons` of them) on the
    same pairs, so that their p is not one of held-out data: halves of a few dozen would confirm none.
    """
    if by not in RULES:
        raise InputError(f"by is {by!r}; expected {' or '.join(map(repr, RULES))}.")
    twins = [p if p.neutral_event is None else replace(p, event=p.neutral_event, neutral_event=None) for p in pairs]
    options: dict[str, Any] = {"words": words, "answer": answer, "progress": progress}
    states = state_neurons(vlm, twins, k=neurons, **options).parts()
    if by == PATCHING:
        found = head_map(vlm, twins, **options).parts(heads)
    else:
        found = _amplified(vlm, pairs, l_emo, heads, options)
    return Circuit.of(vlm, found, states, pairs=pairs, metric="log mass")


def _amplified(vlm: VLM, pairs: Sequence[Pair], l_emo: int | None, k: int, options: dict[str, Any]) -> list[Head]:
    """The k best of the amplification map, each where it looks from."""
    if l_emo is None:
        raise InputError("Heads up to l_emo look from the query, later ones from the current token: name l_emo, such as l_emo=3.")
    found = amplification_map(vlm, pairs, l_emo, **options).parts(k)
    return [replace(head, position="query" if head.layer <= l_emo else "last") for head in found]


def _told(
    vlm: VLM,
    pairs: Sequence[Pair],
    lists: Mapping[tuple[float, float], list[Edit]],
    wheels: WheelsLike,
    max_new_tokens: int,
    progress: bool,
) -> pd.DataFrame:
    """A row a pair, side, beta and gamma: story, exact, hit, false_emotion; `cost`, its perplexity over the unedited story's."""
    sides = [(i, name, side, gold) for i, p in enumerate(pairs) for name, side, gold in _sides_of(p)]
    prompts = [vlm.prompt(*side) for _, _, side, _ in sides]
    found = sweep(vlm, prompts, lists, max_new_tokens=max_new_tokens, names=["beta", "gamma"], progress=progress).to_frame()
    likely = {}
    for i, some in found.groupby("prompt"):
        texts = list(dict.fromkeys([some.baseline_text.iloc[0], *some.text]))
        own, *others = perplexity(vlm, prompts[i], texts)
        likely |= {(i, text): p / own for text, p in zip(texts, (own, *others), strict=True)}
    pair, side, _, gold = zip(*(sides[i] for i in found.prompt), strict=True)
    told = pd.DataFrame(
        {"pair": pair, "side": side, "emotion": gold, "beta": found.beta, "gamma": found.gamma, "story": found.text}
    )
    told["cost"] = [likely[key] for key in zip(found.prompt, found.text, strict=True)]
    return told.join(score(told.story, told.emotion, wheels)[["exact", "hit", "false_emotion"]])


def _answered(
    vlm: VLM, questions: Sequence[Question], lists: Mapping[tuple[float, float], list[Edit]], max_new_tokens: int, progress: bool
) -> pd.Series:
    """The share of plain questions that are answered rightly, by beta and gamma; case and full stop do not count."""
    prompts = [vlm.prompt(picture, question, instruction="") for picture, question, _ in questions]
    found = sweep(vlm, prompts, lists, max_new_tokens=max_new_tokens, names=["beta", "gamma"], progress=progress).to_frame()
    right = [same_answer(text, questions[i][2]) for text, i in zip(found.text, found.prompt, strict=True)]
    return found.assign(right=right).groupby(["beta", "gamma"]).right.mean()


def _sides_of(pair: Pair) -> list[tuple[str, tuple, str]]:
    return [("emotional", pair.plus, pair.emotion), ("neutral", pair.minus, NEUTRAL)]


def _tried(
    stories: pd.DataFrame, max_false: float, max_cost: float, right: pd.Series | None = None, max_wrong: float = 0.01
) -> pd.DataFrame:
    """`Fit.table`: the largest exact rate that keeps the limits is chosen, the weakest of equal ones."""
    emotional, neutral = (stories[stories.side == side].set_index("pair") for side in ("emotional", "neutral"))
    none = (emotional.beta == 1) & (emotional.gamma == 1)
    rows = []
    for (beta, gamma), some in emotional.groupby(["beta", "gamma"]):
        false = neutral.false_emotion[(neutral.beta == beta) & (neutral.gamma == gamma)].mean()
        row = {"beta": beta, "gamma": gamma, "exact": mean_interval(some.exact), "hit": mean_interval(some.hit)}
        row["gain"] = mean_interval(some.exact - emotional.exact[none], signed=True)
        row |= {"false_emotions": false, "right": math.nan if right is None else right[beta, gamma]}
        rows.append(row | {"cost": math.exp(np.log(some.cost).mean())})
    table = pd.DataFrame(rows)
    own = table[(table.beta == 1) & (table.gamma == 1)].iloc[0]
    table.insert(6, "more_false", table.false_emotions - own.false_emotions)
    table.insert(8, "more_wrong", own.right - table.right)
    table["allowed"] = (table.more_false <= max_false + 1e-9) & (table.cost <= max_cost) & ~(table.more_wrong > max_wrong + 1e-9)
    exact = table.exact.map(lambda i: i.mean).where(table.allowed, -1.0)
    order = pd.DataFrame({"exact": -exact.round(9), "strength": table.beta.map(math.log).abs() + table.gamma.map(math.log).abs()})
    table["chosen"] = table.index == order.sort_values(["exact", "strength"]).index[0]
    return table
