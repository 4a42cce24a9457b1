"""Is the circuit that was found a circuit? Three measures on pairs that were not used to find it (Wang et al. 2022), and a fourth.

- `faithfulness`: does it do the work alone, everything beside it mean-ablated? And better than random parts of the same layers?
- `completeness`: does it behave as the model does when some of its parts are taken away, or does the model have others in store?
- `minimality`: does each part count?
- `stability`: would other pairs, or another seed, have found the same?

All are in shares of the gap between the model and the empty circuit, so that 1 is all that heads (and neurons) do there. What MLPs
do at those places, and all that happens at others, stays as it is unless it is asked for: a share says nothing of them.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from emointerp.circuit import Ablation, Circuit, Donors, Key, Part
from emointerp.errors import InputError
from emointerp.lens import Words, metrics_of
from emointerp.loudness import as_loud, write_norms
from emointerp.models import VLM
from emointerp.pairs import Pair
from emointerp.plots import BLUE, INK, PALE, QUIET, ends, new_figure
from emointerp.saved import Saved
from emointerp.statistics import Interval, against_random, benjamini_hochberg, ratio_interval, sign_flips, value_interval
from emointerp.tracing import Metric, sweep


@dataclass(frozen=True, eq=False)
class _Trial:
    """A circuit on held-out pairs: its parts at the donors' spans, all that could be ablated there, and what is measured."""

    vlm: VLM
    pairs: Sequence[Pair]
    metrics: Mapping[str, Metric]
    answer: str
    ablation: Ablation
    parts: dict[Key, Part]
    universe: frozenset[Key]

    @classmethod
    def of(
        cls,
        vlm: VLM,
        circuit: Circuit,
        pairs: Sequence[Pair],
        donors: Donors,
        neurons: bool = False,
        metric: Any = "log mass",
        words: Words = None,
        answer: str = "I felt",
    ) -> "_Trial":
        circuit.check(vlm)
        circuit.check_apart(pairs)
        donors = donors if isinstance(donors, Mapping) else {"last": donors}
        kinds = {"head": vlm.anatomy.n_heads} | ({"neuron": vlm.anatomy.d_mlp} if neurons else {})
        layers = range(vlm.anatomy.n_layers)
        universe = frozenset((span, i, kind, k) for span in donors for i in layers for kind, n in kinds.items() for k in range(n))
        parts = {part.key: part for part in circuit.parts if part.key in universe}
        if not parts:
            raise InputError(f"The circuit has no {' or '.join(kinds)} at {', '.join(donors)}, where everything else is ablated.")
        metrics = metrics_of(vlm, pairs, metric, words)
        return cls(vlm, pairs, metrics, answer, Ablation(donors), parts, universe)

    @property
    def outside(self) -> frozenset[Key]:
        return self.universe - set(self.parts)

    def values(self, removed: Mapping[str, Iterable[Key]]) -> pd.DataFrame:
        """The metric of each pair's emotional picture, [pair, label], with sets of parts removed; "model" is without any."""
        lists = {label: self.ablation.edits(keys) for label, keys in removed.items()}
        found = np.empty((len(self.pairs), len(lists) + 1))
        for emotion, metric in self.metrics.items():
            mine = [i for i, pair in enumerate(self.pairs) if pair.emotion == emotion]
            prompts = [self.vlm.prompt(*self.pairs[i].plus, answer=self.answer) for i in mine]
            swept = sweep(self.vlm, prompts, lists, metric, progress=False)
            found[mine] = torch.cat([swept.baseline[:, None], swept.values], 1).numpy()
        return pd.DataFrame(found, columns=["model", *lists])

    @cached_property
    def norms(self) -> dict[tuple[str, str], Float[np.ndarray, "layer unit"]]:
        """How long heads and neurons write at each span, in the donors' runs; by span and kind."""
        places = {(span, kind) for span, _, kind, _ in self.parts}
        return {(span, kind): write_norms(self.vlm, self.ablation.donors[span], f"{kind}s") for span, kind in places}

    def random(self, rng: np.random.Generator, near: int | None = None) -> frozenset[Key]:
        """As many parts of each span, layer and kind as the circuit has, drawn at random; or each among the `near` as loud."""
        places, drawn = defaultdict(list), []
        for key in self.parts:
            places[key[:3]].append(key[3])
        for place, mine in places.items():
            there = sorted(key for key in self.universe if key[:3] == place)
            if near is None:
                drawn += [there[i] for i in rng.choice(len(there), len(mine), replace=False)]
            else:
                (span, layer, kind), free = place, [key[3] for key in there]
                drawn += [(*place, i) for i in as_loud(mine, free, self.norms[span, kind][layer], near, rng)]
        return frozenset(drawn)


@dataclass(frozen=True, eq=False)
class Faithfulness(Saved):
    """What the circuit does alone. `table` has a row a pair and a column a set that was kept, all else ablated: "model" (nothing
    ablated), "circuit", "empty" (nothing kept), and "random 0" …: as many parts of the same layers, drawn at random.

    `overlap` is the mean share of the circuit's own parts among the random ones, `distinct` how many different sets were drawn.
    """

    table: pd.DataFrame
    overlap: float
    distinct: int

    def share(self, kept: str = "circuit") -> Interval:
        """How much of the gap between the empty circuit and the model a set keeps: 1 is all, 0 none."""
        return ratio_interval(self.table[kept] - self.table["empty"], self.table["model"] - self.table["empty"])

    @property
    def random(self) -> list[float]:
        """The shares that random sets keep."""
        return [self.share(name).mean for name in self.table if name.startswith("random")]

    @property
    def p(self) -> float:
        """The rank of the circuit's share among theirs, `(1 + #{T_r >= T}) / (R + 1)`; NaN without any."""
        return against_random(self.share().mean, self.random) if self.random else np.nan

    def to_frame(self) -> pd.DataFrame:
        """A row each for model, circuit and empty: the metric's mean and the share of the gap (`Interval`s)."""
        rows = [(name, value_interval(self.table[name]), self.share(name)) for name in ("model", "circuit", "empty")]
        return pd.DataFrame(rows, columns=["kept", "value", "share"]).set_index("kept")

    def plot(self) -> Figure:
        """The circuit's share with its interval, beside those of random sets."""
        figure, axis = new_figure(width=6.5, height=2.6)
        if self.random:
            axis.hist(self.random, bins=20, color=PALE, label=f"{len(self.random)} random sets")
        share = self.share()
        axis.axvspan(share.low, share.high, color=BLUE, alpha=0.15, linewidth=0)
        axis.axvline(share.mean, color=BLUE, linewidth=2, label="circuit")
        axis.set(xlabel="share of the gap that is kept", ylabel="random sets", title="Does the circuit do the work alone?")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure


def faithfulness(
    vlm: VLM,
    circuit: Circuit,
    pairs: Sequence[Pair],
    donors: Donors,
    *,
    draws: int = 100,
    seed: int = 0,
    near: int | None = None,
    **options: Any,
) -> Faithfulness:
    """The circuit alone on pairs that it was not selected on: everything outside it, at the spans of `donors`, is mean-ablated.

    `donors`: a list of activations at the last token, or by span (`collect_donors`). Parts at other spans are in neither side.
    `near`: each part of a random set is one of the `near` of its layer that write about as much in the donors' runs, the circuit's
    own counted (`loudness`); None: any of the layer. One `seed` gives other sets with `near` than without.
    The options are those of all three measures: `neurons` (False: only heads are parts, MLPs stay as they are), `metric` ("log
    mass", "mass" or a `Metric`), `words`, `answer` ("I felt").

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> heads = [ei.circuit.Head(layer, head, score=0.3) for layer, head in ((5, 2), (6, 5), (4, 4))]
    >>> circuit = ei.Circuit(vlm.name, ei.circuit.revision(vlm), heads)
    >>> donors = ei.circuit.collect_donors(vlm, [vlm.prompt(*pair.minus, answer="I felt") for pair in pairs])
    >>> alone = ei.faithfulness.faithfulness(vlm, circuit, pairs, donors, draws=3)
    >>> len(alone.random)
    3
    """
    trial, rng = _Trial.of(vlm, circuit, pairs, donors, **options), np.random.default_rng(seed)
    _check_near(near)
    sets = [trial.random(rng, near) for _ in range(draws)]
    kept = {"circuit": frozenset(trial.parts), "empty": frozenset()} | {f"random {i}": some for i, some in enumerate(sets)}
    table = trial.values({name: trial.universe - some for name, some in kept.items()})
    overlap = float(np.mean([len(some & set(trial.parts)) / len(some) for some in sets])) if sets else np.nan
    return Faithfulness(table, overlap, len(set(sets)))


def _check_near(near: int | None) -> None:
    if near is not None and near < 2:
        raise InputError(f"near is {near}; expected 2 or more, the circuit's own part among them, or None for any of a layer.")


@dataclass(frozen=True, eq=False)
class Completeness(Saved):
    """Circuit and model with the same parts taken away. `table` has a row a pair and subset: `without` (names of the parts, or
    "all"), the metric of `circuit` and of `model` then, of the `empty` circuit, and the `gap` between that and the whole model.
    """

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a subset: what `circuit` and `model` keep of the gap, and the `difference`, circuit less model (`Interval`s)."""
        rows = {
            without: {side: ratio_interval(some[side] - some["empty"], some.gap) for side in ("circuit", "model")}
            | {"difference": ratio_interval(some.circuit - some.model, some.gap)}
            for without, some in self.table.groupby("without", sort=False)
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("without")

    @property
    def incompleteness(self) -> float:
        """Mean over subsets of |circuit - model|, as a share of the gap: 0 is complete."""
        return float(np.mean([abs(interval.mean) for interval in self.to_frame().difference]))

    def plot(self) -> Figure:
        """Each subset: model across, circuit upwards; on the dotted line they agree."""
        frame, (figure, axis) = self.to_frame().map(lambda i: i.mean), new_figure(width=4.6, height=4.2)
        ends = [frame[["circuit", "model"]].min().min(), frame[["circuit", "model"]].max().max()]
        axis.plot(ends, ends, color=QUIET, linestyle=":", linewidth=1)
        axis.scatter(frame.model, frame.circuit, color=BLUE, s=18)
        axis.set(xlabel="model without them", ylabel="circuit without them", title="Share of the gap, parts removed")
        return figure


def completeness(
    vlm: VLM, circuit: Circuit, pairs: Sequence[Pair], donors: Donors, *, subsets: int = 20, seed: int = 0, **options: Any
) -> Completeness:
    """Does the circuit behave as the model does when parts of it are ablated: each alone, `subsets` drawn at random, and all?

    Where the model stays well and the circuit falls, the model has something in store that the circuit lacks (Wang et al. 2022).
    """
    trial, rng = _Trial.of(vlm, circuit, pairs, donors, **options), np.random.default_rng(seed)
    chosen = [(key,) for key in trial.parts] + [tuple(key for key in trial.parts if rng.random() < 0.5) for _ in range(subsets)]
    names = {" ".join(trial.parts[key].name for key in some): frozenset(some) for some in chosen if some}
    names["all"] = frozenset(trial.parts)
    values = trial.values(
        {f"circuit {name}": trial.outside | some for name, some in names.items()}
        | {f"model {name}": some for name, some in names.items()}
        | {"empty": trial.universe}
    )
    same = {"pair": values.index, "empty": values["empty"], "gap": values["model"] - values["empty"]}
    frames = [
        pd.DataFrame({"without": name} | same | {side: values[f"{side} {name}"] for side in ("circuit", "model")}) for name in names
    ]
    return Completeness(pd.concat(frames, ignore_index=True))


@dataclass(frozen=True, eq=False)
class Minimality(Saved):
    """`table` has a row a pair and part: `fall` of the circuit's metric when the part is ablated too, and the pair's `gap`."""

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a part: `contribution`, the fall as a share of the gap (`Interval`), and `p` (sign flips, Benjamini-Hochberg)."""
        frame = pd.DataFrame(
            {part: [ratio_interval(some.fall, some.gap)] for part, some in self.table.groupby("part", sort=False)},
            index=["contribution"],
        ).T
        falls = self.table.pivot(index="pair", columns="part", values="fall")[list(frame.index)]
        return frame.assign(p=benjamini_hochberg(sign_flips(falls).p)).rename_axis("part")

    def plot(self) -> Figure:
        """Contributions with 95% intervals."""
        frame = self.to_frame().iloc[::-1]
        figure, axis = new_figure(width=6, height=0.9 + 0.24 * len(frame))
        mean, low, high = ends(frame.contribution)
        axis.barh(frame.index, mean, xerr=np.maximum(0, (mean - low, high - mean)), color=BLUE, ecolor=INK)
        axis.axvline(0, color=QUIET, linewidth=0.8)
        axis.set(xlabel="share of the gap that is lost without it", title="Does each part count?")
        return figure


def minimality(vlm: VLM, circuit: Circuit, pairs: Sequence[Pair], donors: Donors, **options: Any) -> Minimality:
    """What each part adds to the circuit: the fall of the metric when it is ablated beside all that lies outside."""
    trial = _Trial.of(vlm, circuit, pairs, donors, **options)
    sets = {part.name: trial.outside | {key} for key, part in trial.parts.items()}
    values = trial.values(sets | {"circuit": trial.outside, "empty": trial.universe})
    gap = values["model"] - values["empty"]
    falls = [pd.DataFrame({"pair": gap.index, "part": name, "fall": values["circuit"] - values[name], "gap": gap}) for name in sets]
    return Minimality(pd.concat(falls, ignore_index=True))


@dataclass(frozen=True)
class Stability(Saved):
    """How alike scores of two halves or runs are: `rank` correlations (Spearman) and `overlap` of the top `k`, one a comparison.

    `chance` is the overlap of two sets drawn at random.
    """

    rank: tuple[float, ...] = field(repr=False)
    overlap: tuple[float, ...] = field(repr=False)
    k: int
    chance: float

    def to_frame(self) -> pd.DataFrame:
        """Mean, and 2.5% and 97.5% quantiles over comparisons, of rank and overlap."""
        rows = {name: [np.mean(v), *np.quantile(v, [0.025, 0.975])] for name, v in (("rank", self.rank), ("overlap", self.overlap))}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])

    def __str__(self) -> str:
        rank, overlap = (f"{r['mean']:.2f} [{r.low:.2f}, {r.high:.2f}]" for _, r in self.to_frame().iterrows())
        return f"rank correlation {rank}; overlap of the top {self.k}: {overlap}, by chance {self.chance:.2f}"


def stability(runs: Float[np.ndarray, "run unit"], k: int = 10) -> Stability:
    """Scores of several runs (seeds, splits, sets of pairs) compared two by two."""
    return _compared(list(itertools.combinations(np.asarray(runs), 2)), k)


def stability_of_halves(scores: ArrayLike, k: int = 10, splits: int = 100, seed: int = 0) -> Stability:
    """Scores of each pair, [pair, unit], averaged over two random halves of the pairs, which are compared; `splits` times."""
    scores = np.asarray(scores, float)
    rng, n = np.random.default_rng(seed), len(scores)
    orders = [rng.permutation(n) for _ in range(splits)]
    return _compared([(scores[order[: n // 2]].mean(0), scores[order[n // 2 :]].mean(0)) for order in orders], k)


def _compared(both: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> Stability:
    if not both or not 1 <= k <= (n := both[0][0].size):
        raise InputError(f"{len(both)} comparisons of {k} top units; expected two runs or more, and k of 1 to the number of units.")
    rank = tuple(float(spearmanr(a, b).statistic) for a, b in both)
    top = [[set(np.argsort(-x, kind="stable")[:k]) for x in ab] for ab in both]
    return Stability(rank, tuple(len(a & b) / k for a, b in top), k, k / n)
