"""The map of heads: each head's output put from a picture's run into its twin's, exactly; and the gradient's guess at the same.

A cell says what one head alone brings over. Heads that do the same work hide each other in noising (another one steps in) and share
the credit in denoising, so both directions are worth a look, and a set of heads is checked as a set (`check_heads`).

Attribution patching (Nanda 2023; Syed et al. 2023) is the first-order guess `(z+ - z-) . dm/dz`, one backward pass for all heads:
cheap where models are large, blind to softmaxes and norms that saturate, and no evidence by itself.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

from emointerp.circuit import Head
from emointerp.directions import Directions
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.heads.drawing import draw_map, means
from emointerp.heads.kept import Kept, kept_of
from emointerp.heads.measures import checked_positions, patched_head
from emointerp.lens import Words
from emointerp.measures import HITS, Measure, Measured, measure_of
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, asked_of, check_aligned, fingerprint, twin_prompts
from emointerp.plots import new_figure
from emointerp.saved import Saved
from emointerp.statistics import Interval, benjamini_hochberg, flips_by_group, ratio_interval, sign_flips, value_interval
from emointerp.tracing import Activations, collect
from emointerp.tracing.verbs import checked_layers

DIRECTIONS = {"denoising": "emotional into neutral", "noising": "neutral into emotional"}
LOOKING = "looking"  # what `amplification_map` does instead
TITLES = DIRECTIONS | {LOOKING: "what they see of the picture"}
PLACE = ["layer", "head"]


@dataclass(frozen=True, eq=False)
class HeadMap(Saved):
    """What each head's patch does. `table` has a row a pair, layer and head:

    pair, emotion, `picture` (fingerprint of the emotional one), layer, head; `value`, the metric with the head patched;
    `receiver`, without; `donor`, that of the run that the patch comes from. `kind` is "patching"; or "attribution": then `value` is
    the receiver's plus the gradient's guess; or "amplifying" (`amplification_map`). `n_layers` are the model's, where known.
    """

    table: pd.DataFrame
    metric: str
    direction: str
    kind: str = "patching"
    n_layers: int | None = None

    def of(self, *emotions: str) -> "HeadMap":
        """The map of the pairs of some emotions."""
        if strange := set(emotions) - set(self.table.emotion):
            raise InputError(f"No pair shows {', '.join(strange)}; there are {', '.join(self.table.emotion.unique())}.")
        return replace(self, table=self.table[self.table.emotion.isin(emotions)])

    def differences(self) -> pd.DataFrame:
        """`value - receiver`: a row a pair, a column a (layer, head)."""
        moved = self.table.assign(difference=self.table.value - self.table.receiver)
        return moved.pivot(index="pair", columns=PLACE, values="difference")

    def pairs(self) -> pd.DataFrame:
        """A row a pair: emotion, picture, receiver, donor."""
        return self.table.drop_duplicates("pair").set_index("pair")[["emotion", "picture", "receiver", "donor"]].sort_index()

    def shares(self) -> pd.DataFrame:
        """Differences over the mean gap of the pairs of the same emotion, so that emotions count alike: [pairs, (layer, head)]."""
        pairs = self.pairs()
        gap = (pairs.donor - pairs.receiver).groupby(pairs.emotion).transform("mean")
        return self.differences().div(gap, axis=0)

    def scores(self) -> pd.DataFrame:
        """Mean effect of each head in each emotion: a row an emotion, a column a (layer, head)."""
        return self.shares().groupby(self.pairs().emotion).mean()

    def to_frame(self, flips: int = 10_000) -> pd.DataFrame:
        """A row a layer and head: normalised `effect` and plain `difference` (`Interval`s over pairs), `p`, and `corrected`.

        `effect = (value - receiver) / (donor - receiver)`, means over pairs: 0 is the receiver's own run, 1 the donor's; for
        noising this is the share of the feeling that is lost. `p` by sign flips over pairs, `corrected` for all heads (max-T).
        """
        differences, pairs = self.differences(), self.pairs()
        gap, test = pairs.donor - pairs.receiver, sign_flips(differences, flips)
        rows = [{"effect": ratio_interval(moved, gap), "difference": value_interval(moved)} for _, moved in differences.items()]
        return pd.DataFrame(rows, index=differences.columns).assign(p=test.p, corrected=test.corrected)

    def by_emotion(self, flips: int = 10_000) -> pd.DataFrame:
        """A row an emotion, layer and head: `effect` in its pairs (`Interval`), `p`, and `corrected` for all of these rows.

        Sign flips, Benjamini-Hochberg; with n pairs of an emotion no p-value is below `2 / 2**n` before that.
        """
        frames = {}
        for emotion in self.pairs().emotion.unique():
            mine = self.of(emotion)
            differences, pairs = mine.differences(), mine.pairs()
            effect = [ratio_interval(moved, pairs.donor - pairs.receiver) for _, moved in differences.items()]
            p = sign_flips(differences, flips).p if len(pairs) > 1 else 1.0
            frames[emotion] = pd.DataFrame({"effect": effect, "p": p}, differences.columns)
        table = pd.concat(frames, names=["emotion"])
        return table.assign(corrected=benjamini_hochberg(table.p))

    def passed(self, alpha: float = 0.05, least: float = 0.02) -> pd.MultiIndex:
        """Heads that bring over `least` or more of the gap, in all pairs or in an emotion's; those that bring most over all first.

        Tested there (`corrected`). A steady effect of a thousandth is left out by `least`.
        """
        effect = self._effects().loc["all"]
        return effect[self.corrected(alpha, least) <= alpha].sort_values(ascending=False).index

    def corrected(self, alpha: float = 0.05, least: float = 0.02) -> pd.Series:
        """Each head's p that it brings nothing over, neither in all pairs nor in an emotion's, corrected for all heads.

        The smallest of the tests of all pairs and of each emotion's (`flips_by_group`, one-sided; one of all overlooks a head that
        serves one emotion of six), among those with an effect of `least` or more; then Benjamini-Hochberg. Give a dozen pairs an
        emotion or more: with n, its p is at least `1 / 2**n` times the tests.
        """
        pairs, effects = self.pairs(), self._effects()
        towards = self.differences() * np.sign((pairs.donor - pairs.receiver).mean())
        flips = int(min(300_000, max(10_000, 10 * effects.size / alpha)))  # so that the floor of p is no bar where heads are many
        p = flips_by_group(towards, pairs.emotion, flips, "greater").set_axis(towards.columns, axis=1)
        large = (effects >= least).reindex(p.index, fill_value=False)
        return pd.Series(benjamini_hochberg(p.where(large, 1.0).min()), towards.columns)

    def parts(self, k: int = 10, alpha: float = 0.05, least: float = 0.02) -> list[Head]:
        """Parts for a `Circuit`: the k of those that pass that bring most over, with their effect and corrected p."""
        effect, p = self._effects().loc["all"], self.corrected(alpha, least)
        return [Head(*at, float(effect[at]), float(p[at])) for at in self.passed(alpha, least)[:k]]

    def _effects(self) -> pd.DataFrame:
        """Shares of the gap that heads bring over: a row for "all", and one an emotion whose gap is of the same sign."""
        pairs = self.pairs()
        gap = pairs.donor - pairs.receiver
        alike = gap.groupby(pairs.emotion).mean() * np.sign(gap.mean()) > 0
        return pd.concat([(self.differences().mean() / gap.mean()).to_frame("all").T, self.scores()[alike]])

    def top(self, k: int = 10) -> pd.DataFrame:
        """The k heads that bring the most over, the largest first; `.top(k).index` names them."""
        frame = self.to_frame()
        return frame.loc[means(frame.effect).sort_values(ascending=False).index[:k]]

    def agreement(self, other: "HeadMap", resamples: int = 1000, seed: int = 0) -> Interval:
        """Spearman's rank correlation of two maps' effects over the heads that both have; the interval resamples pairs.

        Maps of the same pictures are resampled together, others each by itself.
        """
        a, b = (one.differences() / (one.pairs().donor - one.pairs().receiver).mean() for one in (self, other))
        both = a.columns.intersection(b.columns)
        if len(both) < 3:
            raise InputError(f"The two maps share {len(both)} heads; a rank correlation needs three or more.")
        x, y, same = a[both].to_numpy(), b[both].to_numpy(), self.pairs().picture.tolist() == other.pairs().picture.tolist()
        rng, drawn = np.random.default_rng(seed), []
        for _ in range(resamples):
            i = rng.integers(len(x), size=len(x))
            j = i if same else rng.integers(len(y), size=len(y))
            drawn.append(spearmanr(x[i].mean(0), y[j].mean(0)).statistic)
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        return Interval(float(spearmanr(x.mean(0), y.mean(0)).statistic), float(low), float(high), len(x))

    def plot(self, alpha: float = 0.05) -> Figure:
        """The map of effects; dots on heads whose corrected p is `alpha` or less."""
        frame, (figure, axis) = self.to_frame(), new_figure(width=5.6, height=4)
        effect = means(frame.effect)
        limit = max(1e-6, effect.abs().max())
        drawn = draw_map(axis, effect, None if self.kind == "attribution" else frame.corrected <= alpha, vmin=-limit, vmax=limit)
        axis.set_title(f"{self.kind.capitalize()} heads, {TITLES[self.direction]}")
        axis.set_xlabel("head" if self.kind == "attribution" else f"head (dots: corrected p at most {alpha:g})")
        figure.colorbar(drawn, ax=axis, label=f"share of the gap closed ({self.metric})")
        return figure

    def plot_emotions(self) -> Figure:
        """A map for each emotion, on one scale."""
        scores = self.scores()
        columns = min(3, len(scores))
        rows, limit = -(-len(scores) // columns), max(1e-6, float(scores.abs().max(axis=None)))
        figure, axes = new_figure(rows, columns, width=2.9 * columns + 0.8, height=2.5 * rows + 0.3, squeeze=False)
        for axis in axes.flat[len(scores) :]:
            axis.axis("off")
        for axis, (emotion, score) in zip(axes.flat, scores.iterrows(), strict=False):
            drawn = draw_map(axis, score, vmin=-limit, vmax=limit)
            axis.set_title(emotion)
        figure.colorbar(drawn, ax=axes, label=f"share of the gap closed ({self.metric})")
        return figure


def head_map(
    vlm: VLM,
    pairs: Sequence[Pair],
    directions: Directions | None = None,
    metric: Measured = "log mass",
    direction: str = "denoising",
    *,
    layer: int | None = None,
    layers: Iterable[int] | int | None = None,
    positions: Any = "last",
    words: Words = None,
    wheels: WheelsLike = None,
    answer: str = "I felt",
    max_new_tokens: int = 64,
    file: str | Path | None = None,
    progress: bool = True,
) -> HeadMap:
    """Patch every head of every layer, one at a time, at `positions` of each pair's prompt, through one sweep a prompt.

    "denoising" puts the emotional picture's heads into its neutral twin's run, "noising" the other way round. `metric` is one of
    the names in `measures.measure_of`, or a `Metric`; "restoration" and "projection" need `directions`, the first also l_emo as
    `layer`. `layers`: by default all that come before what is measured (upstream heads for restoration). For "hit rate", no
    answer is begun, and what a head gives at the last token of the donor's prompt stays while the story is told. For a concept
    of your own give its `words` as in `emotion_tokens`, or, for the hit rate, `wheels=Concept(…)`.

    With a `file` (JSON lines) each finished pair is kept, and a later call goes on from there; one with other settings is refused.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> found = ei.head_map(vlm, pairs, layers=[5, 6], progress=False)
    >>> found.shares().shape
    (2, 16)
    """
    pairs = asked_of(vlm, pairs)
    where = checked_positions(positions, metric)
    measure = measure_of(vlm, pairs, metric, directions, layer, words, max_new_tokens, wheels)
    chosen, sites = _layers(measure, layers), ["heads", "residual"]
    lasts = measure.metrics is None

    def values(prompts: list[Prompt], emotion: str) -> tuple[float, float, np.ndarray]:
        acts = collect(vlm, prompts[1], sites, positions=(*where, "last"))
        at = prompts[0].positions(where)
        cells = [(i, head) for i in chosen for head in range(vlm.anatomy.n_heads)]
        own, found = measure.under(prompts[0], {cell: [patched_head(acts, *cell, at, lasts)] for cell in cells}, emotion)
        return own, measure.own(prompts[1], acts, emotion), found

    answer = "" if lasts else answer
    both = _aligned(vlm, pairs, direction, answer)
    asked = {"direction": direction, "layer": layer, "layers": list(chosen), "positions": list(where), "answer": answer}
    asked |= {"max_new_tokens": max_new_tokens}
    kept = kept_of(file, measure, pairs, both, words, wheels, directions, asked)
    return _mapped(pairs, both, measure, direction, chosen, values, kept, "patching", progress)


def attribution_map(
    vlm: VLM,
    pairs: Sequence[Pair],
    directions: Directions | None = None,
    metric: Measured = "log mass",
    direction: str = "denoising",
    *,
    layer: int | None = None,
    layers: Iterable[int] | int | None = None,
    positions: Any = "last",
    words: Words = None,
    answer: str = "I felt",
    progress: bool = True,
) -> HeadMap:
    """The quick look at `head_map`: `(z_donor - z_receiver) . dm/dz`, the gradient that of the receiver's run.

    Arguments as there; the hit rate has no gradient. `head_map(…).agreement(attribution_map(…))` says how far to trust it.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> ei.attribution_map(vlm, pairs, layers=[5, 6], progress=False).shares().shape
    (2, 16)
    """
    pairs = asked_of(vlm, pairs)
    if metric == HITS:
        raise InputError("The hit rate has no gradient; take 'log mass', or patch exactly: head_map(metric='hit rate').")
    measure = measure_of(vlm, pairs, metric, directions, layer, words)
    where, chosen = checked_positions(positions, metric), _layers(measure, layers)

    def values(prompts: list[Prompt], emotion: str) -> tuple[float, float, np.ndarray]:
        wrt, at = measure.metrics[emotion], (*where, "last")
        acts = collect(vlm, prompts, ["heads", "residual"], positions=at, wrt=wrt)
        receiver, donor = (measure.own(prompt, one, emotion) for prompt, one in zip(prompts, acts, strict=True))
        guess = _first_order(*acts, prompts[0].positions(where))[list(chosen)]
        return receiver, donor, receiver + guess.flatten().double().cpu().numpy()

    both = _aligned(vlm, pairs, direction, answer)
    return _mapped(pairs, both, measure, direction, chosen, values, Kept(None, {}), "attribution", progress)


def _first_order(receiver: Activations, donor: Activations, at: tuple[int, ...]) -> Tensor:
    """`(z_donor - z_receiver) . dm/dz` summed over positions: [layer, head]."""
    product = (donor.heads.float() - receiver.heads.float()) * receiver.gradients.heads.float()
    return product[:, :, [receiver.positions.index(p) for p in at]].sum((-1, -2))


def _layers(measure: Measure, layers: Iterable[int] | int | None) -> tuple[int, ...]:
    """The layers asked for, by default all whose heads can matter; later ones are refused."""
    chosen = checked_layers(measure.vlm, range(measure.last_layer + 1) if layers is None else layers)
    if late := [layer for layer in chosen if layer > measure.last_layer]:
        raise InputError(f"{measure.name!r} is read after layer {measure.last_layer}; heads of layer {late[0]} come later.")
    return chosen


def _aligned(vlm: VLM, pairs: Sequence[Pair], direction: str, answer: str) -> list[list[Prompt]]:
    """Both prompts of each pair, token for token alike but for the picture."""
    if direction not in DIRECTIONS:
        raise InputError(f"direction is {direction!r}; expected {' or '.join(map(repr, DIRECTIONS))}.")
    both = [twin_prompts(vlm, pair, answer) for pair in pairs]
    check_aligned(vlm, pairs, both)
    return both


def _mapped(
    pairs: Sequence[Pair],
    both: Sequence[list[Prompt]],
    measure: Measure,
    direction: str,
    layers: Sequence[int],
    values: Callable[[list[Prompt], str], tuple[float, float, np.ndarray]],
    kept: Kept,
    kind: str,
    progress: bool,
) -> HeadMap:
    """A map of what `values` gives of each pair's receiver and donor: the receiver's own, the donor's own, one a head."""
    for i in tqdm(range(len(kept.rows), len(pairs)), desc=kind, initial=len(kept.rows), total=len(pairs), disable=not progress):
        receiver, donor, found = values(both[i][::-1] if direction == "denoising" else both[i], pairs[i].emotion)
        kept.add({"value": found.tolist(), "receiver": receiver, "donor": donor})
    places = pd.MultiIndex.from_product([layers, range(measure.vlm.anatomy.n_heads)], names=PLACE).to_frame(index=False)
    frames = [
        places.assign(pair=i, emotion=pair.emotion, picture=fingerprint(prompts[0].image), **row)
        for i, (pair, prompts, row) in enumerate(zip(pairs, both, kept.rows, strict=True))
    ]
    return HeadMap(pd.concat(frames, ignore_index=True), measure.name, direction, kind, measure.vlm.anatomy.n_layers)
