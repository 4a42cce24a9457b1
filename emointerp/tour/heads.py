"""The tour's chapter on heads: which bring the feeling over from the picture, and is the set of them enough, or needed?

Found on the selection split, tested on the test split, where a head that was lucky in the search has no luck left. The metric is
the log probability of the emotion's words next after the begun answer; what is to be explained is its gap between picture and
twin. Sizes are small, so that the chapter takes well under a minute; notebook 06 shows the same step by step. All layers are
mapped, in deep models too: a head patched at the last token is one short branch of a sweep.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from emointerp.circuit import Circuit, Neuron
from emointerp.errors import InputError
from emointerp.heads import HeadCheck, HeadMap, check_heads, head_map, plot_attention, visual_heads
from emointerp.heads.check import MEAN, RESAMPLE, RESTORE
from emointerp.heads.drawing import means
from emointerp.heads.visual import attention_on
from emointerp.models import VLM, Prompt
from emointerp.neurons import Neurons, state_neurons
from emointerp.pairs import world_pairs
from emointerp.statistics import Interval, mean_interval, value_interval
from emointerp.tour.chapter import (
    Chapter,
    Job,
    by_name,
    figure_html,
    left_out,
    listed,
    muted,
    no_words,
    number,
    reached,
    share,
    table_html,
)

TITLE, BEGUN = "Heads and neurons", "I felt"
PARTS = "Which parts carry it?"
MOST = 6  # heads in the set
SHOWN = 10  # neurons in the table
NOTEBOOK = 100  # random sets in notebook 06
ALPHA, HALF = 0.05, 0.5
DONE = {
    RESTORE: "put into the neutral twin's run",
    MEAN: "taken away: their mean over neutral pictures instead",
    RESAMPLE: "taken away: what they give at one of these instead",
}
Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Tested:
    """What the found heads do on the test split: each alone, all together beside random sets; and what heads look at there."""

    heads: Sequence[Head]
    alone: pd.DataFrame
    together: HeadCheck
    looks: pd.DataFrame


@dataclass(frozen=True, eq=False)
class _Look:
    """A picture's prompt, and the part of each head's attention at its last token that is on the picture."""

    prompt: Prompt
    shares: Float[np.ndarray, "layer head"]

    @property
    def even(self) -> float:
        """What attention that is even over the prompt would have there."""
        return len(self.prompt.visual) / len(self.prompt)


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Map all heads, check the best as a set on other pictures, ask what neurons write, look where the heads look.

    What it found is the `Circuit` of the set and of the neurons that state a feeling, None where no head passes.
    """
    if why := no_words(vlm):
        return left_out("heads", TITLE, why)
    sizes = job.sizes.heads
    selection, test = (world_pairs(split, sizes[split]) for split in ("selection", "test"))
    found = head_map(vlm, selection, answer=BEGUN)
    gap, frame = _gap(found), found.to_frame()
    passed = _passed(frame) if gap.low > 0 else frame.index[:0]
    heads = _with_room(passed, vlm.anatomy.n_heads)
    looks = {name: _look(vlm, picture, job.event) for name, picture in tqdm(job.pictures, desc="attention")}
    results = {"gap": gap, "map": by_name(frame), "passed": [*map(_name, passed)], "heads": [*map(_name, heads)]}
    blocks = [("What each head brings over alone", _map_block(vlm, found, sizes["selection"]))] * (gap.low > 0)
    if not heads:
        shown = _lookers(looks.values())
        blocks += _picture_blocks(vlm, looks, shown)
        results["pictures"] = _picture_results(looks, shown)
        plain = ((PARTS, _none_carries(gap, len(frame))),)
        return Chapter("heads", TITLE, _nothing(gap, len(frame)), tuple(blocks), results, plain=plain)
    tested = _tested(vlm, test, heads, sizes["sets"])
    neurons = _neurons(vlm, selection, test, sizes["neurons"])
    summary = (_found_line(gap, passed, heads, len(frame)), *_summary(tested), _neuron_line(neurons))
    blocks += [*_test_blocks(frame, tested), *_neuron_blocks(neurons), *_picture_blocks(vlm, looks, heads)]
    results |= {"test split": _test_results(tested), "neurons": _neuron_results(neurons)}
    results["pictures"] = _picture_results(looks, heads)
    circuit, plain = _circuit(vlm, selection, heads, frame, neurons), ((PARTS, _carried(tested, len(frame))),)
    return Chapter("heads", TITLE, summary, tuple(blocks), results, circuit, plain)


def _gap(found: HeadMap) -> Interval:
    """In nats, between pictures and their twins."""
    pairs = found.pairs()
    return value_interval(pairs.donor - pairs.receiver)


def _passed(frame: pd.DataFrame) -> pd.MultiIndex:
    """Heads whose corrected test shows that they bring something over, the largest effect first."""
    effect = means(frame.effect)
    return effect[(frame.corrected <= ALPHA) & (effect > 0)].sort_values(ascending=False).index


def _with_room(passed: pd.MultiIndex, n_heads: int) -> list[Head]:
    """The best, at most half of a layer's heads: random sets of the same layers need others to draw from."""
    nth = pd.Series(0, passed).groupby("layer").cumcount()
    return nth.index[nth < max(1, n_heads // 2)][:MOST].tolist()


def _look(vlm: VLM, picture: object, event: str) -> _Look:
    prompt = vlm.prompt(picture, event, answer=BEGUN)
    return _Look(prompt, attention_on(vlm, prompt).sum(-1))


def _lookers(looks: Collection[_Look]) -> list[Head]:
    """The heads that look at the pictures most."""
    mean = np.mean([look.shares for look in looks], 0)
    best = np.argsort(-mean, axis=None, kind="stable")[:MOST]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(best, mean.shape), strict=True)]


def _tested(vlm: VLM, test: Sequence, heads: Sequence[Head], sets: int) -> _Tested:
    alone = head_map(vlm, test, layers=sorted({layer for layer, _ in heads}), answer=BEGUN)
    together = check_heads(vlm, test, heads, sets=sets, answer=BEGUN)
    return _Tested(heads, alone.to_frame(), together, visual_heads(vlm, test, answer=BEGUN).to_frame())


def _neurons(vlm: VLM, selection: Sequence, test: Sequence, k: int) -> Neurons | str:
    """Those that do most at the last token; or, where weights cannot be read (quantised ones), why not."""
    try:
        return state_neurons(vlm, selection, k=k, held_out=test, answer=BEGUN)
    except InputError as error:
        return str(error)


def _circuit(vlm: VLM, selection: Sequence, heads: Sequence[Head], frame: pd.DataFrame, neurons: Neurons | str) -> Circuit:
    """The set, and the neurons that name an emotion and pass on the selection split: the exact patches saw the test split."""
    parts, states = [(*at, frame.effect[at].mean, float(frame.corrected[at])) for at in heads], []
    if not isinstance(neurons, str):
        table = neurons.table
        passed = table[(table.names != "") & (table.p <= ALPHA) & (means(table.score) > 0)]
        states = [Neuron(row.layer, row.neuron, row.score.mean, row.p, row.names) for row in passed.itertuples()]
    return Circuit.of(vlm, parts, states, pairs=selection, metric="log mass")


def _name(head: Head) -> str:
    return "{}.{}".format(*head)


# in plain words


def _carried(tested: _Tested, n: int) -> str:
    put = tested.together.to_frame().loc[RESTORE]
    verdict = "A few heads" if put.effect.low > 0 and put.p <= ALPHA else "Not surely a few heads"
    return (
        f"{verdict}: {len(tested.heads)} of {n}, put from the run with the feeling into the one without, bring over "
        f"{share(put.effect)} of the difference; random ones {put.random:.0%}, 95% of such sets up to {put.random_95:.0%}."
    )


def _none_carries(gap: Interval, n: int) -> str:
    if gap.low <= 0:
        return "Not shown: pictures make no sure difference to the words of their emotion that any part could carry."
    return f"Not shown: none of {n} attention heads alone brings a sure part of the feeling over."


# in words


def _nothing(gap: Interval, n: int) -> tuple[str, ...]:
    looking = "Below: the heads that look at the pictures most, whatever they take from there."
    said = f"Beside the emotional pictures the words of their emotion are {_times(gap)} as likely as beside the neutral twins. "
    if gap.low <= 0:
        return said + "So there is no sure difference that heads could bring over, and none were tested.", looking
    none = f"None of {n} heads, put alone from the picture's run into its twin's, passes its test (corrected for all of them). "
    return said + none + "So there is no set to check; that may say more of the number of pictures than of the heads.", looking


def _times(gap: Interval) -> str:
    return f"{exp(gap.mean):.3g} times [{exp(gap.low):.3g}, {exp(gap.high):.3g}]"


def _found_line(gap: Interval, passed: pd.MultiIndex, heads: Sequence[Head], n: int) -> str:
    return (
        f"Beside the emotional pictures the words of their emotion are {_times(gap)} as likely as beside the neutral twins. "
        f"{len(passed)} of {n} heads pass the test that they alone bring a part of this gap over (corrected for all heads). "
        f"The strongest, tested below on other pictures: {_names(heads)} (layer.head)."
    )


def _summary(tested: _Tested) -> tuple[str, ...]:
    frame = tested.together.to_frame()
    put, mean, resample = (frame.loc[check] for check in (RESTORE, MEAN, RESAMPLE))
    alone = means(tested.alone.effect.loc[tested.heads])
    return (
        f"{_verdict('enough', [put])}: put together into the neutral twins' runs they close {share(put.effect)} of the gap; each "
        f"alone closes {alone.min():.0%} to {alone.max():.0%}. Control: random heads of the same layers close {put.random:.0%} on "
        f"average, 95% of such sets up to {put.random_95:.0%}; {reached(put.p, put.sets)} of {put.sets} close as much "
        f"(p = {put.p:.2g}).",
        f"{_verdict('needed', [mean, resample])}: without them {share(mean.effect)} of the gap is lost where they give their mean "
        f"over neutral pictures, {share(resample.effect)} where they give what they gave at one of these. Control: without random "
        f"heads of the same layers it is {mean.random:.0%} (95% up to {mean.random_95:.0%}) and {resample.random:.0%} (up to "
        f"{resample.random_95:.0%}).{_beside(put, mean, resample)}",
        _looking_line(tested),
    )


def _verdict(word: str, rows: Sequence[pd.Series]) -> str:
    """Of effects as wholes: from half of the gap on, and where random sets seldom do as much."""
    if all(row.effect.high < HALF for row in rows):
        return f"Not {word}"
    if not all(row.effect.low >= HALF for row in rows):
        return f"Not surely {word}"
    return word.capitalize() if all(row.p <= ALPHA for row in rows) else f"No more {word} than random heads of these layers"


def _beside(put: pd.Series, *away: pd.Series) -> str:
    """What it means that a set brings much over and is little missed."""
    if put.effect.low >= HALF and all(row.effect.high < HALF for row in away):
        return " So what they bring over reaches the answer by other ways as well."
    return ""


def _looking_line(tested: _Tested) -> str:
    looks = tested.looks.share
    most = sum(looks[head].low > HALF for head in tested.heads)
    listed = ", ".join(f"{_name(head)} {share(looks[head])}" for head in tested.heads)
    return (
        f"Of these {len(tested.heads)} heads {most or 'none'} put over half of their attention at the last token on the picture: "
        f"{listed}. Control: the average head of this model has {means(looks).mean():.0%} there (no interval: all heads were "
        "measured)."
    )


def _neuron_line(neurons: Neurons | str) -> str:
    if isinstance(neurons, str):
        return f"Neurons were left out. {neurons}"
    named, n, stand = _named(neurons), len(neurons.table), (neurons.table.p_exact <= ALPHA) & (means(neurons.table.exact) > 0)
    more = "so many of them state a feeling" if named.low > neurons.control else "which is not surely less"
    return (
        f"Of the {n} neurons that seem to do most at the last token, {share(named)} write words of an emotion. Control: "
        f"{neurons.control:.0%} of random neurons of the same layers do (20 for each of them, so good to about "
        f"{196 * (0.25 / (20 * n)) ** 0.5:.0f} points), {more}. Patched exactly, one by one, on the test "
        f"pictures, {stand.sum()} of the {n} pass their test."
    )


def _named(neurons: Neurons) -> Interval:
    return mean_interval(neurons.table.names != "")


def _names(heads: Sequence[Head]) -> str:
    return listed([*map(_name, heads)], "and")


# on the page


def _map_block(vlm: VLM, found: HeadMap, n: int) -> str:
    a, effects = vlm.anatomy, found.to_frame().effect
    best = effects.index.tolist()[int(means(effects).argmax())]
    alt = (
        f"Map of {a.n_layers} layers by {a.n_heads} heads, what each brings over alone: {_name(best)} most, {share(effects[best])}"
    )
    return figure_html(found.plot(), alt) + muted(
        f"{n} emotional pictures of the selection split and their neutral twins, each with the begun answer “{BEGUN}”. What a "
        "head gives at the last token beside the picture is put into the twin's run, one head at a time "
        f"({a.n_layers} layers × {a.n_heads} heads × {n} pairs: {a.n_layers * a.n_heads * n:,} patched runs, all exact). "
        "The gap is that of the log probability of the emotion's words, a mean over pairs. 0: the twin's own run; 1: the "
        "picture's. Dots: effects, of either sign, that pass their test (sign flips over pairs, corrected for all heads). "
        "Heads that do the same work share the credit, so a small number is no proof that a head does nothing."
    )


def _test_blocks(frame: pd.DataFrame, tested: _Tested) -> list[tuple[str, str]]:
    singles = pd.DataFrame([_head_row(head, frame, tested) for head in tested.heads])
    checks = tested.together.to_frame()
    together = pd.DataFrame([_check_row(check, checks.loc[check]) for check in DONE])
    figure = figure_html(
        tested.together.plot(), "Histograms of what random sets of heads do, and the tested set as a line; see the table"
    )
    n = tested.together.table.pair.nunique()
    return [
        (f"The strongest heads, one by one, on {n} test pictures", table_html(singles) + _single_words()),
        ("All of them together, beside random sets", table_html(together) + figure + _check_words(checks.loc[RESTORE])),
    ]


def _head_row(head: Head, frame: pd.DataFrame, tested: _Tested) -> dict[str, str]:
    looks = tested.looks.loc[head]
    return {
        "head": _name(head),
        "closes alone": share(tested.alone.effect[head]),
        "where it was found": share(frame.effect[head]),
        "p there": f"{frame.corrected[head]:.2g}",
        "attention on the picture": share(looks.share),
        "of it on the expression": f"× {number(looks.expression)}",
    }


def _check_row(check: str, row: pd.Series) -> dict[str, str]:
    return {
        "the set is": DONE[check],
        "share of the gap": f"{'closed' if check == RESTORE else 'lost'}: {share(row.effect)}",
        "random sets": f"{row.random:.0%}",
        "95% of them up to": f"{row.random_95:.0%}",
        "do as much": f"{reached(row.p, row.sets)} of {row.sets}",
        "p": f"{row.p:.2g}",
    }


def _single_words() -> str:
    return muted(
        "Closes: of the gap. What a head closes where it was found tends to look larger than it is, for it was chosen there. "
        "Attention: that of the last token, at the emotional pictures. On the expression: × 1 would be attention that is even over "
        "the picture."
    )


def _check_words(row: pd.Series) -> str:
    more = f"; notebook 06 draws {NOTEBOOK}" if row.sets < NOTEBOOK else ""
    return muted(
        f"Enough, or needed: at least half of the gap, as far as the interval tells, and at most {ALPHA:.0%} of random sets do as "
        "much. A set may be enough and not needed, where others do the same work. In the figure, what is lost counts as closed "
        "towards the twin's run. Random sets: as many heads in the same layers, of those that write vectors of the most similar "
        f"length; they hold {row.overlap:.0%} of the tested heads on average, and what they write is {row.norm:.2f} times as long, "
        f"which may be a part of the difference. {row.sets} sets cannot put p below {1 / (row.sets + 1):.2g}{more}."
    )


def _neuron_blocks(neurons: Neurons | str) -> list[tuple[str, str]]:
    if isinstance(neurons, str):
        return []
    rows = pd.DataFrame([_neuron_row(row) for row in neurons.table.iloc[:SHOWN].itertuples()])
    said = muted(
        f"The {len(rows)} neurons (layer.neuron) of the largest attribution on the selection split. Writes: the words that its "
        "value vector alone makes likeliest; it names an emotion if a word of it is among the first ten. Effect: patched exactly "
        "on the test split, from the picture's run into its twin's, in nats; p corrected for all that were patched."
    )
    return [("What the neurons write that do most at the last token", table_html(rows) + said)]


def _neuron_row(row: Any) -> dict[str, str]:
    return {
        "neuron": f"{row.layer}.{row.neuron}",
        "writes": " ".join(re.sub(r"\(\d\.\d+\)", "", row.words).split()).replace(" ,", ","),
        "names": row.names,
        "effect alone": number(row.exact),
        "p": f"{row.p_exact:.2g}",
    }


def _picture_blocks(vlm: VLM, looks: Mapping[str, _Look], heads: Sequence[Head]) -> list[tuple[str, str]]:
    alt = f"Maps of {_names(heads)}: where each looks on the picture"
    return [
        (name, figure_html(plot_attention(vlm, look.prompt, heads), alt) + muted(_even(look) + _LOOKS * (i == 0)))
        for i, (name, look) in enumerate(looks.items())
    ]


def _even(look: _Look) -> str:
    return f"Attention even over the prompt would have {look.even:.0%} there. "


_LOOKS = (
    "Above each panel: the head, and the share of its attention at the last token that is on the picture. Each panel has its own "
    "scale, so what has a small share looks as bright. To look is not yet to read."
)


# as numbers


def _test_results(tested: _Tested) -> dict:
    alone, looks = (by_name(frame.loc[tested.heads]) for frame in (tested.alone, tested.looks))
    return {"alone": alone, "together": tested.together.to_frame().to_dict("index"), "attention": looks}


def _neuron_results(neurons: Neurons | str) -> dict:
    if isinstance(neurons, str):
        return {"left out": neurons}
    columns = ["layer", "neuron", "names", "words", "score", "exact", "p_exact"]
    return {"name": _named(neurons), "random ones": neurons.control, "strongest": neurons.table[columns].to_dict("records")}


def _picture_results(looks: Mapping[str, _Look], heads: Sequence[Head]) -> dict:
    return {
        name: {"even": look.even, "on the picture": {_name(head): float(look.shares[head]) for head in heads}}
        for name, look in looks.items()
    }
