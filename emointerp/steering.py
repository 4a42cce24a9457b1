"""Chapter 04: steering vectors. Is there a direction for an emotion, which layers carry it, and can it push a neutral story?

`s[i, l] = h+[i, l, N] - h-[i, l, N]` is what an emotional picture adds to the residual stream of the last prompt token, beside
its neutral twin; `S[e, l]` is the mean over the pairs of emotion e whose story names it (hit rate above tau). The layer test adds
`alpha * S[l]` to the run on the neutral picture and asks what the story names now: the effect `C = (H_injected - H-) / (H+ - H-)`
is the share of the gap between neutral and emotional picture that the push closes (arXiv 2605.21980). Three things stand beside
it: what the push costs, controls that should do nothing, and (in `probes`) what the directions say where nothing is pushed.

A push that is too strong makes a model stammer the word ("glad glad glad"), which is a hit. So `clean` counts a story only if it
names the emotion and no other, and is about as likely, for the model without a push, as the story of a real emotional picture.

>>> S = steering_vectors(vlm, world_pairs("direction", 120))                                  # doctest: +SKIP
>>> steer(vlm, world_pairs("selection", 36), S, alphas=[1, 2, 4]).plot()                      # doctest: +SKIP
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from emointerp.directions import Differences, Directions, last_residuals
from emointerp.emotions import emotion_of, score
from emointerp.emotions.tokens import words_of as words_in
from emointerp.emotions.wheels import WheelsLike, as_wheels
from emointerp.errors import InputError
from emointerp.given import expected, listed, number, numbers, texts, whole_number
from emointerp.lens import emotion_tokens, lens_logits
from emointerp.lens import words_of as words_of_vectors
from emointerp.models import VLM, Prompt, to_image
from emointerp.models.vlm import check_model
from emointerp.pairs import Pair, as_pairs, check_sides
from emointerp.plots import BLUE, COLORS, GRAY, INK, PINK, QUIET, SKY, YELLOW, band, new_figure
from emointerp.saved import Saved
from emointerp.start_here import tell_all
from emointerp.statistics import Interval, mean_interval, ratio_interval, with_controls
from emointerp.tracing import perplexity, sweep
from emointerp.tracing.edits import FROM_LAST, Positions
from emointerp.tracing.verbs import checked_layers

ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
S, OWN, NOTHING = "S", "own", "nothing"
MAX_COST = 3.0  # times the perplexity of the emotional picture's own story, up to which a story is clean
MEASURES = ("hit", "exact", "clean", "others")


def differences(
    vlm: VLM,
    pairs: Iterable[Pair],
    *,
    answer: str = "",
    tell: bool = True,
    wheels: WheelsLike = None,
    batch: int = 32,
    progress: bool = True,
) -> Differences:
    """`s[i, l]` of each pair, and whether the story of its emotional side names the emotion (`tell=False` leaves that out).

    `answer` begins the answer, and then N is its last token: at the end of "I felt" the emotion word is due, which often says more
    of the emotion than the last token of the question. `wheels` may be a `Concept` of your own. Raises InputError for emotions that
    no wheel knows, and for twins of different sizes.

    >>> import emointerp as ei
    >>> found = ei.steering.differences(ei.load(), ei.world_pairs("direction", 6), tell=False, progress=False)
    >>> found.vectors.shape, found.directions(tau=-1).emotions
    (torch.Size([6, 8, 192]), ('anger', 'disgust', 'fear', 'joy', 'sadness', 'surprise'))
    """
    check_model(vlm)
    pairs = _checked_pairs(pairs, wheels)
    told = [t.story for t in tell_all(vlm, [p.plus for p in pairs], progress, batch)] if tell else []
    emotions = tuple(p.emotion for p in pairs)
    hits = score(told, emotions, wheels).hit.to_numpy(float) if tell else np.ones(len(pairs))
    batch = whole_number(batch, "batch", 1)
    vectors = torch.cat([_differences(vlm, pairs[start : start + batch], answer) for start in range(0, len(pairs), batch)])
    about = {"model": vlm.name, "answer": answer, "splits": sorted({p.split for p in pairs}), "pairs": len(pairs)}
    return Differences(emotions, vectors, hits, tuple(told), about)


def steering_vectors(vlm: VLM, pairs: Iterable[Pair], tau: float = 0.5, **options: Any) -> Directions:
    """`S[emotion, layer]` of pairs whose emotional story has a hit rate above `tau` (-1: all); `options` as in `differences`.

    >>> import emointerp as ei
    >>> vlm = ei.load()
    >>> S = ei.steering_vectors(vlm, ei.world_pairs("direction", 6), tau=-1, progress=False)
    >>> S.vectors.shape, S["fear", 3].shape
    (torch.Size([6, 8, 192]), torch.Size([192]))
    """
    tau = number(tau, "tau")
    return differences(vlm, pairs, tell=tau >= 0, **options).directions(tau)


def _differences(vlm: VLM, pairs: Sequence[Pair], answer: str) -> Tensor:
    prompts = [vlm.prompt(*side, answer=answer) for pair in pairs for side in (pair.plus, pair.minus)]
    plus, minus = last_residuals(vlm, prompts).unflatten(0, (-1, 2)).unbind(1)
    return plus - minus


def _checked_pairs(given: Iterable[Pair], wheels: WheelsLike) -> list[Pair]:
    """Pairs as a list, read once, refused where they have nothing to steer by."""
    if not (pairs := as_pairs(given)):
        raise InputError("There are no pairs; world_pairs('direction') makes some, read_pairs(file) reads your own.")
    score([""] * len(pairs), [p.emotion for p in pairs], wheels)  # refuses what no wheel knows, with the nearest words
    sizes = {p.name or i: (to_image(p.emotional).size, to_image(p.neutral).size) for i, p in enumerate(pairs) if p.aligned}
    wrong = [f"{name} ({a[0]} x {a[1]} and {b[0]} x {b[1]})" for name, (a, b) in sizes.items() if a != b]
    if wrong:
        raise InputError(f"In {len(wrong)} pairs the two pictures differ in size: {', '.join(wrong)}. Give twins of one size.")
    check_sides(pairs)
    return pairs


@dataclass(frozen=True, eq=False)
class Steering(Saved):
    """Stories under a push. `table` has a row a pair, direction, draw, emotion pushed `towards`, layer and alpha:

    - `story`, and what it names of `towards`: `hit`, `exact`, `clean` (exact, and its perplexity at most `max_cost` times that of
      the emotional side's own story), `others` (1 if it names another emotion), `named`, `n_words`;
    - costs: `length` (of the push over that of the residual stream at the last token), `perplexity` (of the story, for the model
      without a push), `words`, `repetition` (share of word pairs that came before);
    - `hit_before` … `perplexity_before`: the same of the story without a push; `hit_goal` … of the emotional side's own story
      (its perplexity is measured beside the neutral picture too), missing where `towards` is not what it shows.
    """

    table: pd.DataFrame
    labels: tuple[str, ...]

    def at(self, direction: str = S, layer: SupportsIndex | None = None, alpha: float | None = None) -> pd.DataFrame:
        """Rows of a direction, and of a layer and alpha where they are named."""
        rows = self.table[self.table.direction == direction]
        rows = rows if layer is None else rows[rows.layer == layer]
        rows = rows if alpha is None else rows[rows.alpha == alpha]
        if rows.empty:
            had = {name: sorted(self.table[name].unique().tolist()) for name in ("direction", "layer", "alpha")}
            raise InputError(f"Nothing was steered with {direction!r}, layer {layer}, alpha {alpha}; there are {had}.")
        return rows

    def effect(self, measure: str = "hit") -> pd.DataFrame:
        """`C` and the `plain` difference with intervals over pairs, draws averaged first: a row a direction, layer and alpha.

        `C` is over the pairs pushed towards their own emotion, the only ones with a gap to close; NaN where there are none.
        """
        _check_measure(measure)
        keys = ["direction", "layer", "alpha"]
        ends = self.table[["pair", *keys]].assign(
            gained=self.table[measure] - self.table[f"{measure}_before"],
            gap=self.table[f"{measure}_goal"] - self.table[f"{measure}_before"],
        )
        plain, own = (some.groupby([*keys, "pair"], sort=False).mean() for some in (ends, ends.dropna()))
        rows = {key: {"plain": mean_interval(some.gained, signed=True)} for key, some in plain.groupby(level=keys, sort=False)}
        for key, some in own.groupby(level=keys, sort=False):
            rows[key]["C"] = _share_of_gap(some.gained, some.gap)
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(keys)
        return frame.reindex(columns=["C", "plain"])

    def rates(self) -> pd.DataFrame:
        """What the stories name and what it cost: a row a direction, emotion pushed towards, layer and alpha.

        `perplexity_ratio` is the median over pairs of the story's perplexity over that of the story without a push; `goal_ratio`
        the same of the emotional side's own story: what saying it costs where nothing is pushed.
        """
        table = self.table.assign(
            perplexity_ratio=self.table.perplexity / self.table.perplexity_before,
            goal_ratio=self.table.perplexity_goal / self.table.perplexity_before,
        )
        groups = table.groupby(["direction", "towards", "layer", "alpha"], sort=False)
        return pd.concat(
            [groups[["hit", "exact", "clean", "others", "n_words", "length", "words", "repetition"]].mean(),
             groups[["perplexity_ratio", "goal_ratio"]].median()], axis=1,
        )  # fmt: skip

    def intervals(self) -> pd.DataFrame:
        """`rates` with 95% intervals over pairs for hit, clean and others, draws averaged first: what to quote on a test split."""
        keys = ["direction", "towards", "layer", "alpha"]
        pairs = self.table.groupby([*keys, "pair"], sort=False)[["hit", "clean", "others"]].mean()
        groups = pairs.groupby(level=keys, sort=False)
        return groups.agg(lambda values: mean_interval(values)).join(self.rates()[["perplexity_ratio", "goal_ratio"]])

    def emotional_layer(self, measure: str = "clean") -> int:
        """l_emo: the layer where S gains most, each layer at its best alpha; of equal ones the first.

        The gap is the same in all layers, so the largest gain has the largest C. Give alphas closely enough that no layer's window
        falls between two of them. `layer_shares` says how sure it is.
        """
        return int(self._gains_by_pair(measure).mean().groupby(level="layer").max().idxmax())

    def layer_shares(self, measure: str = "clean", resamples: int = 2000, seed: int = 0) -> pd.Series:
        """How often each layer is `emotional_layer` when pairs are drawn anew with replacement: its share of the `resamples`."""
        gained = self._gains_by_pair(measure)
        drawn = np.random.default_rng(seed).integers(len(gained), size=(resamples, len(gained)))
        means = pd.DataFrame(np.stack([gained.to_numpy()[some].mean(0) for some in drawn]), columns=gained.columns)
        best = means.T.groupby(level="layer").max().idxmax()
        layers = gained.columns.get_level_values("layer").unique()
        return best.value_counts(normalize=True).reindex(layers, fill_value=0.0).rename("share")

    def _gains_by_pair(self, measure: str) -> pd.DataFrame:
        """Gain under S: a row a pair, draws averaged, a column a layer and alpha."""
        _check_measure(measure)
        rows = self.at(S).assign(gained=lambda t: t[measure] - t[f"{measure}_before"])
        return rows.pivot_table("gained", "pair", ["layer", "alpha"])

    def choose(self, layer: SupportsIndex, max_others: float = 0.2) -> "Choice":
        """The strength for each emotion at a layer: the alpha with the largest share of clean stories, the smaller of equal ones.

        The limits on its cost are `max_cost` of `steer`, which says what is clean, and `max_others`, the share of stories that may
        name another emotion. Where no alpha keeps them, alpha is 0: no push. Choose on one split, report on another.
        """
        self.at(S, layer)
        rates = self.rates().xs(S).xs(layer, level="layer").reset_index()
        allowed = rates[(rates.others <= max_others) & (rates.clean > 0)]
        best = (
            allowed.sort_values(["clean", "alpha"], ascending=[False, True]).drop_duplicates("towards").set_index("towards").alpha
        )
        return Choice(int(layer), {e: float(best.get(e, 0.0)) for e in rates.towards.unique()}, max_others, rates)

    def matrix(self, direction: str = S, layer: SupportsIndex | None = None, alpha: float | None = None) -> pd.DataFrame:
        """Share of stories that name each emotion (a column) when pushed towards one (a row); the off-diagonal is wrong.

        Where no layer or no alpha is named, the share is over the stories of all of them, and of all draws and pairs.
        """
        rows = self.at(direction, layer, alpha)
        says = {label: rows.named.map(lambda named, label=label: label in named) for label in self.labels}
        says[NOTHING] = rows.named.map(len) == 0
        order = dict.fromkeys(label for label in (*self.labels, *rows.towards) if label in set(rows.towards))
        return pd.DataFrame(says).astype(float).groupby(rows.towards).mean().reindex(list(order))

    def controlled(self, layer: SupportsIndex, alpha: float, measure: str = "clean") -> pd.DataFrame:
        """The gain under S beside that under every other direction of this run: `statistics.with_controls`."""
        _check_measure(measure)
        gains = {name: self._gains(name, layer, alpha, measure) for name in self.table.direction.unique()}
        return with_controls(gains.pop(S).mean(0), gains)

    def _gains(self, direction: str, layer: SupportsIndex, alpha: float, measure: str) -> np.ndarray:
        """Gain of each draw and pair, [draw, pair]."""
        rows = self.at(direction, layer, alpha).assign(gained=lambda t: t[measure] - t[f"{measure}_before"])
        return rows.pivot_table("gained", "draw", "pair").to_numpy()

    def best_alphas(self, measure: str = "clean") -> dict[int, float]:
        """For each layer the alpha under which S gains most, the largest of equal ones; choose on one split, report on another."""
        plain = self.effect(measure).xs(S).plain.map(lambda i: i.mean).unstack().sort_index(axis=1, ascending=False)
        return {int(layer): float(alpha) for layer, alpha in plain.idxmax(axis=1).items()}

    def plot(self, measure: str = "clean", alphas: Mapping[int, float] | None = None) -> Figure:
        """Effect by layer with 95% intervals, a line a direction; each layer at its alpha, by default S's best (`best_alphas`)."""
        alphas = self.best_alphas(measure) if alphas is None else alphas
        frame, (figure, axis) = self.effect(measure), new_figure(width=7.5, height=3.6)
        no_gap = frame.C.map(lambda c: np.isnan(c.mean)).any()
        column = frame["plain" if no_gap else "C"]
        for i, name in enumerate(self.table.direction.unique()):
            some = pd.Series({layer: column[name, layer, alpha] for layer, alpha in alphas.items()})
            color = BLUE if name == S else _GRAYS[i % len(_GRAYS)]
            band(axis, some.index, some, color, name, "-" if name == S else "--")
        axis.axhline(0, color=QUIET, linewidth=0.8)
        strengths = [f"{layer}\nα = {alpha:g}" if self.table.alpha.nunique() > 1 else layer for layer, alpha in alphas.items()]
        axis.set_xticks(list(alphas), strengths, fontsize=9)
        axis.set(xlabel="layer", ylabel="gain" if no_gap else "share of the gap closed, C")
        axis.set_title(f"Where a push changes the story ({measure})")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure

    def plot_doses(self, layer: SupportsIndex) -> Figure:
        """Share of clean stories of each emotion against alpha, and what it costs: other emotions named, perplexity ratio."""
        self.at(S, layer)
        figure, axes = new_figure(1, 3, width=11, height=3.4)
        rates = self.rates().xs(S).xs(layer, level="layer")
        titles = ("Clean: names it alone, and is fluent", "Names another emotion", "Perplexity, times the unpushed story's")
        for axis, column, title in zip(axes, ("clean", "others", "perplexity_ratio"), titles, strict=True):
            for emotion, some in rates[column].groupby(level="towards", sort=False):
                axis.plot(some.droplevel("towards"), color=COLORS.get(emotion), marker="o", markersize=3, label=emotion)
            axis.set(xlabel="alpha")
            axis.set_title(title, fontsize=10)
        axes[0].set_ylim(0, 1.02)
        axes[1].set_ylim(0, 1.02)
        goal = rates.goal_ratio.median()
        axes[2].set_yscale("log")
        axes[2].axhline(goal, color=QUIET, linestyle=":", linewidth=1)
        axes[2].annotate("emotional picture's own story", (0.02, goal), xycoords=("axes fraction", "data"), **_NOTE)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure

    def plot_grid(self) -> Figure:
        """Clean stories, other emotions named and perplexity ratio over alpha and layer, all emotions together."""
        figure, axes = new_figure(1, 3, width=11, height=3.4)
        frame = self.rates().xs(S).groupby(level=["layer", "alpha"]).mean()
        titles = ("clean: names it alone, and is fluent", "names another emotion", "perplexity ratio")
        for axis, column, title in zip(axes, ("clean", "others", "perplexity_ratio"), titles, strict=True):
            grid = frame[column].unstack()
            scale = LogNorm(1, max(2.0, grid.max().max())) if column == "perplexity_ratio" else Normalize(0, 1)
            drawn = axis.imshow(grid, cmap="Blues", norm=scale, origin="lower", aspect="auto")
            axis.set_xticks(range(grid.shape[1]), [f"{a:g}" for a in grid.columns], fontsize=8)
            axis.set_yticks(range(grid.shape[0]), grid.index, fontsize=8)
            axis.set(xlabel="alpha", ylabel="layer")
            axis.set_title(title, fontsize=10)
            figure.colorbar(drawn, ax=axis)
        return figure

    def plot_matrix(self, direction: str = S, layer: SupportsIndex | None = None, alpha: float | None = None) -> Figure:
        """The matrix of what is pushed towards and what is named; the title says over how many layers and strengths."""
        frame, (figure, axis) = self.matrix(direction, layer, alpha), new_figure(width=5.6, height=3.9)
        title = f"Neutral pictures, pushed{_pooled(self.at(direction, layer, alpha))}"
        axis.imshow(frame, cmap="Blues", vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(frame.to_numpy()):
            axis.text(j, i, f"{value:.0%}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else INK)
        axis.set_xticks(range(frame.shape[1]), frame.columns, rotation=35, ha="right")
        axis.set_yticks(range(len(frame)), frame.index)
        axis.set(xlabel="the story names", ylabel="pushed towards", title=title)
        return figure


@dataclass(frozen=True)
class Choice(Saved):
    """A layer, each emotion's strength there, and the limit that it was chosen under; `table` shows what there was to choose."""

    layer: int
    alphas: Mapping[str, float]
    max_others: float
    table: pd.DataFrame = field(repr=False)


def steer(
    vlm: VLM,
    pairs: Iterable[Pair],
    directions: Directions | Mapping[str, Directions | Iterable[Directions]],
    *,
    layers: Iterable[SupportsIndex] | SupportsIndex | None = None,
    alphas: Iterable[SupportsFloat] | SupportsFloat = ALPHAS,
    towards: str | Iterable[str] | None = None,
    positions: Positions = FROM_LAST,
    max_new_tokens: int = 64,
    max_cost: float = MAX_COST,
    wheels: WheelsLike = None,
    progress: bool = True,
) -> Steering:
    """Tell the neutral side of each pair while `alpha * S` is added after a layer, for every alpha and layer.

    `directions` is S, or names several: {"S": S, "random": [S.random(i) for i in range(20)], …}; "S" is the one that others are
    controls of. Each pair is pushed towards its own emotion, or `towards` each of those named (labels of the directions; "pooled"
    is none). `layers` None: all. `max_cost` says which stories are clean (`Steering`). Pairs that were used to find a direction are
    no test of it: take another split.

    >>> import emointerp as ei
    >>> vlm = ei.load()
    >>> S = ei.steering_vectors(vlm, ei.world_pairs("direction", 6), tau=-1, progress=False)
    >>> told = ei.steer(vlm, ei.world_pairs("selection", 2), S, layers=[3], alphas=[0, 1], max_new_tokens=16, progress=False)
    >>> told.table[["layer", "alpha"]].value_counts().sort_index().to_dict()
    {(3, 0.0): 2, (3, 1.0): 2}
    """
    check_model(vlm)
    pairs, drawn, layers = _checked_pairs(pairs, wheels), _drawn(directions), checked_layers(vlm, layers)
    alphas, max_cost = numbers(alphas, "alphas"), number(max_cost, "max_cost", above=0, endless=True)
    positions = tuple(positions) if isinstance(positions, Iterable) and not isinstance(positions, str) else positions
    targets = [OWN] if towards is None else texts(towards, "towards")
    if towards is not None:
        score([""] * len(targets), targets, wheels)  # refuses, before anything is generated, what no wheel knows
    prompts = [vlm.prompt(*pair.minus) for pair in pairs]

    def edits(i: int) -> dict:
        return {
            (*key, target, layer, float(alpha)): d.edits(pairs[i].emotion if target == OWN else target, layer, alpha, positions)
            for key, d in drawn.items()
            for target in targets
            for layer in layers
            for alpha in alphas
        }

    names = ["direction", "draw", "towards", "layer", "alpha"]
    found = sweep(vlm, prompts, edits, max_new_tokens=max_new_tokens, names=names, progress=progress).to_frame()
    table = found.rename(columns={"prompt": "pair", "text": "story", "baseline_text": "story_before"})
    table.insert(1, "emotion", table.pair.map(lambda i: pairs[i].emotion))
    table["towards"] = table.towards.where(table.towards != OWN, table.emotion)
    goals = [t.story for t in tell_all(vlm, [p.plus for p in pairs], progress=False, max_new_tokens=max_new_tokens)]
    table["story_goal"] = table.pair.map(dict(enumerate(goals)))
    labels = tuple(dict.fromkeys(label for wheel in as_wheels(wheels) for label in wheel.labels))
    return Steering(_with_scores(_with_costs(table, vlm, prompts, drawn), wheels, max_cost), labels)


def _drawn(given: Directions | Mapping[str, Directions | Iterable[Directions]]) -> dict[tuple[str, int], Directions]:
    """Directions by name and draw, read once; "S" must be among them."""
    make = "S = steering_vectors(vlm, pairs), or several by name: {'S': S, 'random': [S.random(0)]}"
    named = {S: given} if isinstance(given, Directions) else expected(given, Mapping, make)
    if S not in named:
        raise InputError(f"Among the directions {', '.join(map(repr, named))} is no 'S'; call the one that is tested so.")
    several = {name: [some] if isinstance(some, Directions) else some for name, some in named.items()}
    return {(name, i): d for name, some in several.items() for i, d in enumerate(listed(some, Directions, "direction", make))}


def _with_costs(table: pd.DataFrame, vlm: VLM, prompts: Sequence[Prompt], drawn: Mapping[tuple, Directions]) -> pd.DataFrame:
    """Perplexities of all stories beside the neutral picture, and how long the push is beside the residual stream."""
    likely = {
        (i, story): p
        for i, some in table.groupby("pair")
        for stories in [pd.unique(some[["story", "story_before", "story_goal"]].to_numpy().ravel())]
        for story, p in zip(stories, perplexity(vlm, prompts[i], list(stories)), strict=True)
    }
    costs = {
        name.replace("story", "perplexity"): [likely[key] for key in zip(table.pair, table[name], strict=True)]
        for name in ("story", "story_before", "story_goal")
    }
    lengths = last_residuals(vlm, prompts).norm(dim=-1)
    layers = table.layer.unique()
    push = {(*key, e, layer): float(d[e, layer].norm()) for key, d in drawn.items() for e in d.emotions for layer in layers}
    where = table[["direction", "draw", "towards", "layer"]].itertuples(index=False, name=None)
    length = table.alpha.abs() * [push[key] for key in where] / lengths.numpy()[table.pair, table.layer]
    return table.assign(length=length, **costs)


def _with_scores(table: pd.DataFrame, wheels: WheelsLike, max_cost: float) -> pd.DataFrame:
    """Scores of each story against the emotion that was pushed towards, and of the stories before and at the goal."""
    for end in ("", "_before", "_goal"):
        asked = table[[f"story{end}", "towards"]].set_axis(["story", "towards"], axis=1)
        each = asked.drop_duplicates().reset_index(drop=True)
        scores = each.join(score(each.story, each.towards, wheels)[["hit", "exact", "named", "n_words"]])
        scores["others"] = [
            float(bool(set(n) - {emotion_of(t, wheels)})) for n, t in zip(scores.named, scores.towards, strict=True)
        ]
        kept = ["hit", "exact", "others", *(["named", "n_words"] if not end else [])]
        found = asked.merge(scores, on=["story", "towards"], how="left")[kept].set_index(table.index)
        found["clean"] = found.exact * (table[f"perplexity{end}"] <= max_cost * table.perplexity_goal)
        table = table.join(found.add_suffix(end))
    goal = [f"{measure}_goal" for measure in MEASURES]
    table[goal] = table[goal].where(table.towards == table.emotion, axis=0)
    length = {story: _length(story) for story in table.story.unique()}
    return table.assign(words=[length[s][0] for s in table.story], repetition=[length[s][1] for s in table.story])


def _share_of_gap(gained: pd.Series, gap: pd.Series) -> Interval:
    """C with its interval; where all pairs gain alike, so that resampling cannot judge, by the rule of three."""
    found = ratio_interval(gained, gap)
    if np.ptp(gained) > 0 or not gap.mean():
        return found
    unseen = abs(min(1.0, 3 / len(gained)) / gap.mean())
    return Interval(found.mean, found.mean - unseen, found.mean + unseen, found.n)


def _length(story: str) -> tuple[int, float]:
    """Number of words, and the share of pairs of neighbours that came before."""
    words = [word.lower() for word in words_in(story)]
    neighbours = list(zip(words, words[1:], strict=False))
    return len(words), 1 - len(set(neighbours)) / len(neighbours) if neighbours else 0.0


@dataclass(frozen=True)
class Projection(Saved):
    """What directions say: `table` has a row an emotion and layer, the `mass` of its own words, `others`, the likeliest `words`."""

    table: pd.DataFrame

    def plot(self, effect: pd.DataFrame | None = None) -> Figure:
        """Mass of each emotion's own words in its direction, by layer; with `effect`, C at each alpha's best, beside it."""
        figure, axis = new_figure(width=7.5, height=3.4)
        for emotion, some in self.table.groupby("emotion", sort=False):
            axis.plot(some.layer, some.mass, color=COLORS.get(emotion), marker="o", markersize=3, label=emotion)
        if effect is not None:
            means = effect.xs(S).C.map(lambda c: c.mean).groupby(level="layer").max()
            axis.plot(means, color=INK, linestyle="--", linewidth=2, label="effect C, best alpha")
        axis.set(ylim=(-0.02, 1.05), xlabel="layer", ylabel="mass of its own words")
        axis.set_title("What the directions say" + ", and what they do" * (effect is not None))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure


def semantic_projection(
    vlm: VLM, directions: Directions, words: Mapping[str, Sequence[str]] | None = None, k: int = 5
) -> Projection:
    """The logit lens of `S[e, l]`: which words a direction makes likely if the model stopped after its layer.

    `words` maps the directions' labels to words, by default the lexicon's.

    >>> import emointerp as ei
    >>> vlm = ei.load()
    >>> S = ei.steering_vectors(vlm, ei.world_pairs("direction", 6), tau=-1, progress=False)
    >>> read = ei.semantic_projection(vlm, S, k=2)
    >>> read.table[["layer", "emotion"]].nunique().to_dict()
    {'layer': 8, 'emotion': 6}
    """
    tokens = emotion_tokens(vlm, words)
    ids = {e: torch.tensor(some.id.tolist()) for e, some in tokens.groupby("emotion", sort=False)}
    if missing := [e for e in directions.emotions if e not in ids]:
        raise InputError(f"No words were given for {', '.join(missing)}; there are words for {', '.join(ids)}.")
    rows = []
    for emotion, vectors in zip(directions.emotions, directions.vectors, strict=True):
        p = lens_logits(vlm, vectors).softmax(-1).cpu()
        mass = {e: p[:, some].sum(-1) for e, some in ids.items()}
        others = sum((m for e, m in mass.items() if e != emotion), torch.zeros(len(p)))
        likely = words_of_vectors(vlm, vectors, k)
        rows += [
            (emotion, layer, float(mass[emotion][layer]), float(others[layer]), ", ".join(likely.iloc[layer]))
            for layer in range(directions.n_layers)
        ]
    return Projection(pd.DataFrame(rows, columns=["emotion", "layer", "mass", "others", "words"]))


_NOTE = {"fontsize": 8, "ha": "left", "va": "bottom", "color": QUIET}
_GRAYS = (GRAY, YELLOW, PINK, SKY, QUIET)


def _pooled(rows: pd.DataFrame) -> str:
    """Over how many layers and strengths rows are, in words; "" where it is one of each."""
    counts = {"layer": rows.layer.nunique(), "strength": rows.alpha.nunique()}
    several = [f"{n} {name}s" for name, n in counts.items() if n > 1]
    return f"\nmean over {', '.join(several)}" if several else ""


def _check_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise InputError(f"{measure!r} is no measure; expected one of {', '.join(MEASURES)}.")
