"""Circuit and strengths chosen on two splits that the test never sees."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsFloat

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from emointerp.circuit import Circuit, Head
from emointerp.emotions import NEUTRAL, same_answer, score
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.given import number, numbers, tuples, whole_number
from emointerp.heads import HeadMap, amplification_map, head_map
from emointerp.heads.maps import LOOKING
from emointerp.lens import Words, metrics_of
from emointerp.models import VLM, Prompt, to_image
from emointerp.models.vlm import check_model
from emointerp.neurons import state_neurons
from emointerp.pairs import Pair, as_pairs, check_disjoint, fingerprint, twin_prompts
from emointerp.plots import BLUE, GRAY, INK, ORANGE, PINK, QUIET, SKY, band, new_figure
from emointerp.statistics import mean_interval
from emointerp.tracing import Edit, generate, perplexity, run
from emointerp.veena.strength import BEGUN
from emointerp.veena.value import Veena, checked_layer

PATCHING, AMPLIFICATION = RULES = "patching", "amplification"
_METRIC = "log mass"
_CHECKED = 4  # pairs of a map that are measured anew
_KINDS = {"patching": "denoising", "amplifying": LOOKING}  # of maps that are exact, and their direction
_NO_L_EMO = "Heads up to l_emo look from the query, later ones from the current token: name l_emo, such as l_emo=3."
Question = tuple[Any, str, str]  # picture, question, the right answer
_COLORS = (GRAY, SKY, BLUE, ORANGE, PINK)


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
        ring = {"marker": "o", "markersize": 12, "color": INK, "markerfacecolor": "none", "linestyle": "none"}
        axes[0].plot(best.beta, best.exact.mean, **ring, label="chosen")
        axes[1].plot(best.beta, best.false_emotions, **ring)
        axes[1].axhline(own.iloc[0] + self.max_false, color=QUIET, linestyle=":", linewidth=1)
        axes[1].annotate("limit", (0.5, own.iloc[0] + self.max_false), xycoords=("axes fraction", "data"), ha="center", va="bottom",
                         fontsize=8, color=QUIET)  # fmt: skip
        betas = self.table.beta.unique()
        for axis, title in zip(axes, ("Exact rate, emotional sides", "False emotions, neutral sides"), strict=True):
            axis.set(xlabel="β", ylim=(-0.03, 1.03), title=title, xscale="log")
            axis.set_xticks(betas, [f"{beta:g}" for beta in betas])
            axis.minorticks_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure


def fit(
    vlm: VLM,
    selection: Iterable[Pair] | Circuit,
    tuning: Iterable[Pair],
    l_emo: int,
    *,
    betas: Iterable[SupportsFloat] | SupportsFloat = (1, 1.5, 2, 4, 8, 16, 32),
    gammas: Iterable[SupportsFloat] | SupportsFloat = (1, 1.2, 1.5),
    questions: Iterable[Question] = (),
    max_false: float = 0.02,
    max_cost: float = 1.5,
    max_wrong: float = 0.01,
    by: str | HeadMap = PATCHING,
    heads: int = 10,
    neurons: int = 30,
    words: Words = None,
    wheels: WheelsLike = None,
    answer: str = BEGUN,
    max_new_tokens: int = 64,
    batch: int = 32,
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
    (Of fewer than 50 neutral sides one false emotion is more than 2 points, so no further one is allowed.) Stories are told `batch`
    at a time. `options` are fields of `Veena` (form, prefill_at, …). Greedy; test on a third split.
    """
    check_model(vlm)
    betas, gammas = (numbers(some, name, above=0) for name, some in (("betas", betas), ("gammas", gammas)))
    limits = {"max_false": max_false, "max_cost": max_cost, "max_wrong": max_wrong}
    for name, limit in limits.items():
        number(limit, name, least=0, endless=True)
    circuit, tuning = selection, as_pairs(tuning)
    questions = tuples(questions, 3, "question", "a list of (picture, question, answer)")
    l_emo, made = checked_layer(l_emo), {k: v for k, v in options.items() if k not in ("parts", "emotions")}
    Veena([(0, 0)], l_emo=l_emo, **made)  # refuses options that are none before anything is looked for
    if not isinstance(selection, Circuit):
        selection = as_pairs(selection)
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
    how = {"max_new_tokens": max_new_tokens, "batch": batch}
    stories = _told(vlm, tuning, lists, wheels, how, progress)
    right = _answered(vlm, questions, lists, how, progress) if questions else None
    table = _tried(stories, max_false, max_cost, right, max_wrong)
    best = table[table.chosen].iloc[0]
    return Fit(values[best.beta, best.gamma], circuit, table, stories, max_false)


def find_circuit(
    vlm: VLM,
    pairs: Iterable[Pair],
    l_emo: int | None = None,
    *,
    by: str | HeadMap = PATCHING,
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
    - `by` one of these maps, made before: it is not made again. It must be of the same pairs, model, words and answer, and of the
      log mass: of `amplification_map(vlm, pairs, l_emo)` with the same l_emo; or of `head_map(vlm, twins)`, denoising, at the last
      token, where twins are the pairs both sides of which stand beside the neutral event, if they have one (`neutral_event=None`,
      as what contradicts the picture would be patched along). Without its patches a map's first pairs are measured anew, and it is
      refused where that gives other numbers. What it cannot say of itself is not checked: l_emo, positions, beta.

    Twins are patched beside the neutral event, where pairs have one. Neurons are scanned and patched (`neurons` of them, 0 for
    none) on the same pairs, so that their p is not one of held-out data: halves of a few dozen would confirm none.
    """
    if not isinstance(by, HeadMap) and by not in RULES:
        raise InputError(f"by is {by!r}; expected {' or '.join(map(repr, RULES))}, or such a map of the same pairs.")
    check_model(vlm)
    pairs, heads, neurons = as_pairs(pairs), whole_number(heads, "heads", 0), whole_number(neurons, "neurons", 0)
    l_emo = None if l_emo is None else checked_layer(l_emo)
    twins = [p if p.neutral_event is None else replace(p, event=p.neutral_event, neutral_event=None) for p in pairs]
    options: dict[str, Any] = {"words": words, "answer": answer, "progress": progress}
    if isinstance(by, HeadMap):
        found = _checked_map(vlm, by, pairs, twins, words, answer)
    else:
        found = head_map(vlm, twins, **options) if by == PATCHING else _amplification(vlm, pairs, l_emo, options)
    best = _placed(found, heads, l_emo)
    states = state_neurons(vlm, twins, k=neurons, **options).parts() if neurons else []
    if not best and not states:
        what = "no head passes its test" + " and patching confirms no neuron" * bool(neurons)
        raise InputError(f"There is no circuit: with {len(pairs)} pairs {what}; give more pairs, a dozen an emotion or more.")
    return Circuit.of(vlm, best, states, pairs=pairs, metric=_METRIC)


def _amplification(vlm: VLM, pairs: Sequence[Pair], l_emo: int | None, options: dict[str, Any]) -> HeadMap:
    if l_emo is None:
        raise InputError(_NO_L_EMO)
    return amplification_map(vlm, pairs, l_emo, **options)


def _checked_map(vlm: VLM, found: HeadMap, pairs: Sequence[Pair], twins: Sequence[Pair], words: Words, answer: str) -> HeadMap:
    """A map of exact effects on these very pairs and questions."""
    if found.kind not in _KINDS:
        raise InputError(f"This map is one of {found.kind}, a guess; expected a head_map or an amplification_map.")
    if found.pairs().picture.tolist() != [fingerprint(to_image(pair.emotional)) for pair in pairs]:
        raise InputError(
            f"This map is of other pairs ({len(found.pairs())} of them, and {len(pairs)} came): a circuit names the pairs that it "
            "was found on, so give those that the map was made of, in their order."
        )
    if (found.metric, found.direction) != (_METRIC, _KINDS[found.kind]):
        raise InputError(
            f"This map is of {found.metric!r}, {found.direction}; expected {_METRIC!r}, {_KINDS[found.kind]}. Make it with the "
            "default metric and direction."
        )
    _check_questions(vlm, found, pairs if found.direction == LOOKING else twins, words, answer)
    return found


def _check_questions(vlm: VLM, found: HeadMap, pairs: Sequence[Pair], words: Words, answer: str) -> None:
    """Refuse a map whose runs without a patch have another log mass than this model gives beside these events."""
    metrics, near = metrics_of(vlm, pairs, _METRIC, words), 0.01 if vlm.model.dtype == torch.float32 else 0.3
    for pair, known in zip(pairs[:_CHECKED], found.pairs().itertuples(), strict=False):
        both = _looked(vlm, pair, answer) if found.direction == LOOKING else twin_prompts(vlm, pair, answer)
        donor, receiver = (float(metrics[pair.emotion](run(vlm, prompt).logits[None])) for prompt in both)
        if not np.allclose([donor, receiver], [known.donor, known.receiver], rtol=0, atol=near):
            made = "amplification_map of these pairs" if found.direction == LOOKING else "head_map of twins beside neutral events"
            raise InputError(
                f"This map is of other questions: of the pair {pair.name or known.Index} it has log masses without a patch of "
                f"{known.donor:.2f} and {known.receiver:.2f}; this model, with these events, words and this answer, has "
                f"{donor:.2f} and {receiver:.2f}. Expected {made}, with the same words and answer."
            )


def _looked(vlm: VLM, pair: Pair, answer: str) -> list[Prompt]:
    """The picture beside the neutral event, and beside the one that contradicts it."""
    return [vlm.prompt(pair.emotional, event, answer=answer) for event in (pair.minus[1], pair.event)]


def _placed(found: HeadMap, k: int, l_emo: int | None) -> list[Head]:
    """The k best of a map, each where it acts: amplified heads up to l_emo look from the query."""
    best = found.parts(k)
    if found.direction != LOOKING:
        return best
    if l_emo is None:
        raise InputError(_NO_L_EMO)
    return [replace(head, position="query" if head.layer <= l_emo else "last") for head in best]


def _told(
    vlm: VLM,
    pairs: Sequence[Pair],
    lists: Mapping[tuple[float, float], list[Edit]],
    wheels: WheelsLike,
    how: Mapping[str, int],
    progress: bool,
) -> pd.DataFrame:
    """A row a pair, side, beta and gamma: story, exact, hit, false_emotion; `cost`, its perplexity over the unedited story's."""
    sides = [(i, name, side, gold) for i, p in enumerate(pairs) for name, side, gold in _sides_of(p)]
    prompts = [vlm.prompt(*side) for _, _, side, _ in sides]
    found = _answers(vlm, prompts, lists, how, progress)
    rows = []
    for i, (prompt, (pair, side, _, gold)) in enumerate(zip(prompts, sides, strict=True)):
        stories = {key: texts[i] for key, texts in found.items()}
        unique = list(dict.fromkeys([stories[1.0, 1.0], *stories.values()]))
        likely = dict(zip(unique, perplexity(vlm, prompt, unique), strict=True))
        rows += [(pair, side, gold, *key, text, likely[text] / likely[unique[0]]) for key, text in stories.items()]
    told = pd.DataFrame(rows, columns=["pair", "side", "emotion", "beta", "gamma", "story", "cost"])
    return told.join(score(told.story, told.emotion, wheels)[["exact", "hit", "false_emotion"]])


def _answers(
    vlm: VLM, prompts: Sequence[Prompt], lists: Mapping[tuple[float, float], list[Edit]], how: Mapping[str, int], progress: bool
) -> dict[tuple[float, float], list[str]]:
    """Each list's greedy answers, all prompts in batches, which is quicker than a sweep a prompt; equal lists are asked once."""
    told: dict[tuple[Edit, ...], list[str]] = {}
    for edits in tqdm(dict.fromkeys(map(tuple, lists.values())), desc="strengths", disable=not progress):
        told[edits] = generate(vlm, prompts, edits, **how)
    return {key: told[tuple(edits)] for key, edits in lists.items()}


def _answered(
    vlm: VLM, questions: Sequence[Question], lists: Mapping[tuple[float, float], list[Edit]], how: Mapping[str, int], progress: bool
) -> pd.Series:
    """The share of plain questions that are answered rightly, by beta and gamma; case and full stop do not count."""
    prompts = [vlm.prompt(picture, question, instruction="") for picture, question, _ in questions]
    golds = [answer for _, _, answer in questions]
    found = _answers(vlm, prompts, lists, how, progress)
    right = {key: np.mean([same_answer(*both) for both in zip(texts, golds, strict=True)]) for key, texts in found.items()}
    return pd.Series(right)


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
