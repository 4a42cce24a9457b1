"""Exercises of notebook 06, on heads: one patch by hand, one specificity by hand, and what a function check lets one say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import entropy

from emointerp.exercises.verdict import Verdict, not_yet, one_number, right
from emointerp.heads import HeadCheck, HeadMap
from emointerp.heads.check import MEAN, RESAMPLE, RESTORE
from emointerp.lens import Words, metrics_of
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, check_aligned, twin_prompts
from emointerp.tracing import Activations, Metric, collect, patch, run
from emointerp.tracing.edits import Edit

EMOTIONAL, NEUTRAL = 0, 1  # the sides of a pair, as `twin_prompts` gives them
Slips = list[tuple[str, float]]  # what to say, and the number that calls for it

# 1


def by_hand(
    answer: Any,
    vlm: VLM,
    pair: Pair,
    layer: int,
    head: int,
    metric: str = "log mass",
    words: Words = None,
    begun: str = "I felt",
) -> Verdict:
    """Exercise 1: how far does the emotional picture's output of one head, put into the neutral twin's run, move the metric?

    Patched at the last token, the answer begun with `begun`. `metric` is "log mass", in nats, or "mass" of the words of the pair's
    emotion (`lens.emotion_metrics`).
    """
    if answer is None:
        return not_yet(
            'the answer is still None. Collect "heads" of the emotional prompt, patch the neutral one, run it and subtract.'
        )
    number = one_number(answer)
    if number is None:
        return not_yet(f"how far the {metric} moves is one number, and this is a {type(answer).__name__}.")
    near = {i for i in (layer - 1, layer + 1, head) if 0 <= i < vlm.anatomy.n_layers}
    twins = _Twins.of(vlm, pair, {layer} | near, metric, words, begun)
    moved = twins.moved(layer, head)
    if _close(number, moved, 0.02, 5e-4):
        return right(_read_out(moved, twins.gap(), pair, layer, head, metric))
    slips = _patch_slips(twins, layer, head, metric) + _other_heads(twins, layer, head)
    if begun:
        question = _Twins.of(vlm, pair, {layer}, metric, words, "").moved(layer, head)
        slips.append((f"that is read at the end of the question. Begin the answer in both prompts, answer={begun!r}.", question))
    steps = "the emotional picture's head into the neutral prompt, at its last token; the metric with the patch less without it"
    return not_yet(_nearest(number, slips, 0.02, 5e-4) or f"{number:.3f} is not it. Put {steps}.")


@dataclass(frozen=True)
class _Twins:
    """A pair's two runs, and how far patches of single heads move the metric."""

    vlm: VLM
    prompts: list[Prompt]
    acts: list[Activations]
    metric: Metric

    @classmethod
    def of(cls, vlm: VLM, pair: Pair, layers: set[int], metric: str, words: Words, begun: str) -> "_Twins":
        prompts = twin_prompts(vlm, pair, begun)
        check_aligned(vlm, [pair], [prompts])
        acts = collect(vlm, prompts, ["heads"], layers=sorted(layers))
        return cls(vlm, prompts, acts, metrics_of(vlm, [pair, pair], metric, words)[pair.emotion])

    def value(self, side: int, edits: Sequence[Edit] = ()) -> float:
        return float(self.metric(run(self.vlm, self.prompts[side], edits).logits[None])[0])

    def gap(self) -> float:
        return self.value(EMOTIONAL) - self.value(NEUTRAL)

    def moved(self, layer: int, head: int, span: str = "last", into: int = NEUTRAL) -> float:
        """The metric of one side's run with the other side's head, less the same without."""
        edit = patch(self.acts[1 - into], layer, head=head, positions=self.prompts[into].positions((span,)))
        return self.value(into, [edit]) - self.value(into)


def _read_out(moved: float, gap: float, pair: Pair, layer: int, head: int, metric: str) -> str:
    by = f"{moved:+.2f} nats: {np.exp(moved):.3g} times as likely" if metric == "log mass" else f"{moved:+.3f}"
    share = f"{moved / gap:.0%} of the gap of {gap:.2f} between the two runs" if gap else "and the two runs have no gap"
    said = f"Head {layer}.{head} alone moves the {metric} of the words of {pair.emotion} by {by}, {share}."
    return f"{said} That is one pair; `head_map` does the same for many pairs and all heads."


def _patch_slips(twins: _Twins, layer: int, head: int, metric: str) -> Slips:
    """What other steps give for the same head."""
    moved, gap, noised = twins.moved(layer, head), twins.gap(), twins.moved(layer, head, into=EMOTIONAL)
    noising = "that is noising: the neutral picture's head in the emotional picture's run. Asked is the reverse, denoising."
    slips = [
        (f"that is the {metric} with the patch; take that of the neutral twin's own run off it.", twins.value(NEUTRAL) + moved),
        ("the sign is turned: it is the run with the patch less the one without.", -moved),
        ("that counts from the emotional picture's run; count from that of the neutral twin, which was patched.", moved - gap),
        (noising, noised),
        (noising, -noised),
        ("that is the patch at all tokens; asked is the last one alone.", twins.moved(layer, head, "all")),
        ("that is the whole gap between the two runs; how much of it does this head close?", gap),
    ]
    if gap:
        slips.append((f"that is a share of the gap; asked is how far the {metric} moves, not divided.", moved / gap))
        slips.append((f"that is a percentage of the gap; asked is how far the {metric} moves.", 100 * moved / gap))
    if metric == "log mass":
        slips.append(("that is how many times as likely; asked is the logarithm of it, in nats.", np.exp(moved)))
    return slips


def _other_heads(twins: _Twins, layer: int, head: int) -> Slips:
    """What the same steps give for heads that are easily taken for this one."""
    known, asked = twins.vlm.anatomy, f"asked is {layer}.{head}, head {head} of layer {layer}."
    places = {(layer, h): "" for h in range(known.n_heads)} | {(i, head): "" for i in (layer - 1, layer + 1)}
    places[head, layer] = "layer and head are swapped: "
    return [
        (f"{how}that is head {i}.{h}; {asked}", twins.moved(i, h))
        for (i, h), how in places.items()
        if (i, h) != (layer, head) and 0 <= i < known.n_layers and 0 <= h < known.n_heads
    ]


# 2


def specificity_by_hand(answer: Any, scores: pd.Series) -> Verdict:
    """Exercise 2: the specificity of one head from its `scores` by emotion, such as a column of `HeadMap.scores()`.

    `p_e = max(score_e, 0) / sum`, `1 - entropy(p) / log(n)`, n the number of all emotions.
    """
    if answer is None:
        return not_yet("the answer is still None. Negative scores to 0, divide by the sum, and then how uneven are these shares?")
    number, s = one_number(answer), pd.Series(scores, dtype=float)
    if number is None:
        return not_yet(f"a specificity is one number, and this is a {type(answer).__name__}.")
    if not s.max() > 0:
        return not_yet("no score of this head is above 0, so there are no shares; take a head that brings something over.")
    truth = float(_specificity(s.to_numpy()))
    if _close(number, truth):
        shares = f"{s.max() / s.clip(lower=0).sum():.0%} of what the head brings over is {s.idxmax()}"
        noise = f"scores drawn at random around 0 get {_of_noise(len(s)):.2f} on average with {len(s)} emotions"
        return right(
            f"{truth:.2f}: {shares}. But noise alone looks specific: {noise}. How noisy these scores are, only their pairs can "
            "tell: `specificity` compares with permuted emotions."
        )
    if np.isnan(number):
        return not_yet("nan comes of the logarithm of 0 or less: set negative scores to 0, and count 0 * log(0) as 0.")
    said = f"{number:.2f} is not it: shares of the scores above 0, their entropy over log({len(s)}), and that from 1."
    return not_yet(_nearest(number, _specificity_slips(s.to_numpy())) or said)


def _specificity(scores: Float[np.ndarray, "*draw emotion"]) -> Float[np.ndarray, "*draw"]:
    return np.asarray(1 - entropy(np.maximum(scores, 0), axis=-1) / np.log(scores.shape[-1]))


def _of_noise(n: int) -> float:
    """Mean specificity of scores that are nothing but noise; its size does not matter."""
    drawn = np.random.default_rng(0).standard_normal((4000, n))
    return float(_specificity(drawn[(drawn > 0).any(1)]).mean())


def _specificity_slips(s: Float[np.ndarray, " emotion"]) -> Slips:
    """What wrong steps give for these scores."""
    n, above = len(s), s[s > 0]
    nats, bits, most = entropy(above), entropy(above, base=2), np.log(n)
    slips = [
        ("that is the entropy of the shares; the formula divides it by log(n) and takes that from 1.", nats),
        ("that is the entropy of the shares, in bits; the formula divides it by log(n) and takes that from 1.", bits),
        ("that is how even the shares are, entropy over log(n). Take it from 1.", nats / most),
        ("the entropy is not divided by log(n), the most that it can be.", 1 - nats),
        ("bits and nats are mixed: the entropy is in bits, log(n) in nats. One logarithm for both.", 1 - bits / most),
        ("bits and nats are mixed: the entropy is in nats, log2(n) in bits. One logarithm for both.", 1 - nats / np.log2(n)),
        ("that takes negative scores without their sign. A head that works against an emotion does not serve it: set them to 0.",
         1 - entropy(np.abs(s)) / most),
        ("that is a percentage; asked is a number from 0 to 1.", 100 * (1 - nats / most)),
    ]  # fmt: skip
    if len(above) > 1:
        few = f"that divides by log({len(above)}), the number of emotions above 0; n is the number of all, {n}."
        slips.append((few, 1 - nats / np.log(len(above))))
    if s.sum() > 0:
        p = above / s.sum()
        slips.append(("negative scores are in the sum, so these shares do not sum to 1. Set them to 0 before you sum.",
                      1 + (p * np.log(p)).sum() / most))  # fmt: skip
    return slips


# 3

SAME = 0.1  # of the gap
SUMS = {
    "larger": "The heads help each other: what one writes another reads, or a push that is too small alone is enough with others.",
    "smaller": "The heads share work: what two of them bring counts once, and of two in a line each alone counts what both do. "
    "Near the end of the gap there is also less left to bring.",
    "same": "To this accuracy the heads' parts add up, as if each brought its own.",
}


def sum_of_parts(answer: Any, found: HeadMap, check: HeadCheck) -> Verdict:
    """Exercise 3: a prediction. Is the set's restoration "larger" or "smaller" than the sum of its heads' single effects?

    Or the "same": apart by up to 0.1 of the gap. `found` is a map of denoising by exact patches, in the check's metric; it is of
    the pairs that chose the heads (selection), the check of others (test).
    """
    if answer is None:
        return not_yet(f"the answer is still None. A guess first: {', '.join(SUMS)}?")
    said = str(answer).strip().lower().removeprefix("about the ").removeprefix("the ")
    if said not in SUMS:
        return not_yet(f"{answer!r} is none of {', '.join(map(repr, SUMS))}.")
    heads, moved, pairs = list(check.sets.heads[0]), found.differences(), found.pairs()
    if problem := _not_comparable(found, check):
        return not_yet(problem)
    single, together = moved[heads].mean() / (pairs.donor - pairs.receiver).mean(), check.effects()[RESTORE][0]
    truth = _compared(together, single.sum())
    parts = ", ".join(f"{layer}.{head} {effect:.2f}" for (layer, head), effect in single.items())
    measured = f"Together the heads close {together:.2f} of the gap, one by one {single.sum():.2f} in sum ({parts})"
    splits = "(Mind the splits: the sum is of the map's pairs, on which chosen heads look larger; the set is of the check's.)"
    if said != truth:
        return not_yet(f"a fair guess, but measured it is {truth!r}. {measured}. {splits} {SUMS[truth]}")
    return right(f"{measured}. {SUMS[truth]} {splits}")


def _compared(together: float, summed: float) -> str:
    if abs(together - summed) <= SAME:
        return "same"
    return "larger" if together > summed else "smaller"


def _not_comparable(found: HeadMap, check: HeadCheck) -> str | None:
    """Why a map's effects cannot be summed beside a check's."""
    if (found.kind, found.direction) != ("patching", "denoising"):
        return f"the map is of {found.kind}, {found.direction}; restoration is denoising by exact patches: head_map(vlm, pairs)."
    if found.metric != check.metric:
        return f"the map is of {found.metric!r}, the check of {check.metric!r}; make both with one metric."
    missing = [f"{layer}.{head}" for layer, head in check.sets.heads[0] if (layer, head) not in found.differences().columns]
    return f"the map lacks {', '.join(missing)} of the checked heads; map their layers too." if missing else None


# numbers


def _close(number: float, other: float, share: float = 0.0, plain: float = 0.0051) -> bool:
    return bool(np.isclose(number, other, share, plain))


def _nearest(number: float, slips: Slips, *tolerance: float) -> str | None:
    """What the slip is that gives this number, if any does."""
    near = [(abs(number - value), said) for said, value in slips if _close(number, value, *tolerance)]
    return min(near)[1] if near else None


# 4

HALF, LEVEL = 0.5, 0.05
CLAIMS = {"enough": (RESTORE,), "needed": (MEAN, RESAMPLE)}
CONCLUSIONS = {"enough": ("enough",), "needed": ("needed",), "both": ("enough", "needed"), "neither": ()}
MEANINGS = {
    "enough": "The set alone brings at least half back; taken away, it is not shown to be missed as much: others may do the same.",
    "needed": "Without the set at least half is lost, but the set alone is not shown to bring half back: other heads must join in.",
    "both": "The set alone brings at least half back, and without it at least half is lost: other heads do not take over.",
    "neither": "That does not say that these heads do nothing, only that this set is not shown to carry half of the gap.",
}


def enough_or_needed(answer: Any, check: HeadCheck) -> Verdict:
    """Exercise 4: are the tested heads "enough" for the emotion, "needed" for it, "both" or "neither"?

    A claim stands on a row of `check.to_frame()` where the low end of `effect` is at least half of the gap and `p`, the rank among
    the random sets, is at most 0.05: "enough" on restoration, "needed" on mean-ablation or resample-ablation, one of the two.
    """
    if answer is None:
        return not_yet(
            "the answer is still None. Read check.to_frame(): which rows close at least half of the gap, beyond random sets?"
        )
    said = str(answer).strip().lower()
    if said not in CONCLUSIONS:
        return not_yet(f"{answer!r} is none of {', '.join(map(repr, CONCLUSIONS))}.")
    frame = check.to_frame()
    rows = {claim: _strongest(frame.loc[list(some)]) for claim, some in CLAIMS.items()}
    true = tuple(claim for claim, row in rows.items() if _stands(row))
    wrong = [claim for claim in CLAIMS if (claim in true) != (claim in CONCLUSIONS[said])]
    if wrong:
        return not_yet(" ".join(_contradiction(claim, rows[claim]) for claim in wrong))
    truth = next(name for name, claims in CONCLUSIONS.items() if claims == true)
    return right(f"{truth.capitalize()}: {_read_row(rows['enough'])}; {_read_row(rows['needed'])}. {MEANINGS[truth]}")


def _strongest(rows: pd.DataFrame) -> pd.Series:
    """The row that speaks most for a claim: one on which it stands, else the largest effect."""
    return max((row for _, row in rows.iterrows()), key=lambda row: (_stands(row), row.effect.mean))


def _stands(row: pd.Series) -> bool:
    return bool(row.effect.low >= HALF and row.p <= LEVEL)


def _contradiction(claim: str, row: pd.Series) -> str:
    """The row that speaks against the answer's yes or no to a claim."""
    if _stands(row):
        return f"{_read_row(row)}: half of the gap or more, and beyond random sets. So they are {claim}."
    whys = []
    if not row.effect.low >= HALF:
        whys.append("less than half" if row.effect.mean < HALF else "half is not sure, as the interval begins below it")
    if not row.p <= LEVEL:
        whys.append(f"too many random sets do as much (95% of them up to {row.random_95:.2f}){_too_few(int(row.sets))}")
    return f"{_read_row(row)}: {', and '.join(whys)}. That does not show that they are {claim}."


def _too_few(sets: int) -> str:
    """A remark where no effect could have had a small p."""
    return f"; with {sets} of them p is at least 1 / {sets + 1}, so draw more" if 1 / (sets + 1) > LEVEL else ""


def _read_row(row: pd.Series) -> str:
    return f"{row.name} {row.effect.mean:.2f} [{row.effect.low:.2f}, {row.effect.high:.2f}] of the gap, p = {row.p:.3f}"
