"""Methods that say which heads carry the emotion, tried on planted models: these of the package, and yours.

A method is a function from a model and pairs of pictures to a number for each of its heads, larger where the method finds more: a
Series by (layer, head). It gets a model and pairs of its own, so whatever it changes there meets no other method.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from emointerp.errors import InputError
from emointerp.given import expected, said, whole_number
from emointerp.heads import attribution_map, head_map, intention, visual_heads
from emointerp.lens import emotion_metrics, head_writes, lens_logits
from emointerp.models import VLM
from emointerp.pairs import Pair
from emointerp.planted.circuit import COLOURS, HEADS, LAYERS, PLANTED, planted_pairs
from emointerp.planted.model import planted_vlm
from emointerp.planted.scoring import Score, score
from emointerp.plots import BLUE, GREEN, INK, ORANGE, PALE, new_figure
from emointerp.saved import Saved
from emointerp.steering import steering_vectors
from emointerp.tracing import collect

BEGUN, FOLDS = "I felt", 4
MARKERS = {"specific": (BLUE, "o"), "general": (GREEN, "s"), "decoy": (ORANGE, "x")}
PLACES = pd.MultiIndex.from_product([range(LAYERS), range(HEADS)], names=["layer", "head"])
Method = Callable[[VLM, Sequence[Pair]], pd.Series]


def denoising(vlm: VLM, pairs: Sequence[Pair]) -> pd.Series:
    """Head patching: how much of the gap a head's output brings into the neutral picture's run."""
    return head_map(vlm, pairs, progress=False).shares().mean()


def noising(vlm: VLM, pairs: Sequence[Pair]) -> pd.Series:
    """Head patching the other way: how much the neutral picture's output takes from the emotional run."""
    return head_map(vlm, pairs, direction="noising", progress=False).shares().mean()


def attribution(vlm: VLM, pairs: Sequence[Pair]) -> pd.Series:
    """Attribution patching: the first-order guess at `denoising`, by a gradient."""
    return attribution_map(vlm, pairs, progress=False).shares().mean()


def attribution_size(vlm: VLM, pairs: Sequence[Pair]) -> pd.Series:
    """The size of that guess, whichever its sign."""
    return attribution(vlm, pairs).abs()


def direct(vlm: VLM, pairs: Sequence[Pair]) -> pd.Series:
    """Direct logit attribution: what the emotion's words lose, in nats, where a head's write is taken out of the last residual.

    The last norm is asked again; often its scale is held instead. Here it hardly moves.
    """
    metrics, effects = emotion_metrics(vlm), []
    for pair in pairs:
        acts = collect(vlm, vlm.prompt(*pair.plus, answer=BEGUN), ["heads", "residual"], positions="last")
        last, writes = acts.residual[-1], head_writes(vlm, acts.heads)[:, :, 0].flatten(0, 1)
        named = metrics[pair.emotion](lens_logits(vlm, torch.cat([last, last - writes])))
        effects.append((named[0] - named[1:]).detach().cpu().numpy())
    return pd.Series(np.mean(effects, axis=0), PLACES)


def cosine(vlm: VLM, pairs: Sequence[Pair]) -> pd.Series:
    """Emotional intention: the cosine of what a head writes and the emotion's steering vector, which is made of other pairs."""
    S = steering_vectors(vlm, planted_pairs("direction", 60), tau=-1, answer=BEGUN, progress=False)
    return intention(vlm, pairs, S, progress=False).table.groupby(["layer", "head"]).emotional.mean()


def looking(vlm: VLM, pairs: Sequence[Pair]) -> pd.Series:
    """Attention: how much of it the last token gives to the picture."""
    return visual_heads(vlm, pairs, progress=False).table.groupby(["layer", "head"]).share.mean()


def probe(vlm: VLM, pairs: Sequence[Pair]) -> pd.Series:
    """A linear probe: how often the emotion is read off a head's output, of pictures that it was not fitted to (four folds)."""
    read = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=500))
    emotions = pd.Series([pair.emotion for pair in pairs])
    if (fewest := emotions.value_counts().min()) < FOLDS:
        raise InputError(
            f"An emotion has {fewest} pairs; a probe of {FOLDS} folds needs {FOLDS} of each, so {FOLDS * len(COLOURS)}."
        )
    prompts = [vlm.prompt(*pair.plus, answer=BEGUN) for pair in pairs]
    outputs = torch.stack([acts.heads[:, :, 0] for acts in collect(vlm, prompts, ["heads"], positions="last")]).cpu().numpy()
    return pd.Series([cross_val_score(read, outputs[:, layer, head], emotions, cv=FOLDS).mean() for layer, head in PLACES], PLACES)


METHODS: dict[str, Method] = {
    "head patching": denoising,
    "head patching, noising": noising,
    "attribution patching": attribution,
    "attribution, either sign": attribution_size,
    "direct logit attribution": direct,
    "emotional intention": cosine,
    "linear probe": probe,
    "attention to the picture": looking,
}


@dataclass(frozen=True, eq=False)
class Comparison(Saved):
    """Methods on planted models. `table` has a row a method, seed, and planted head, decoy or backup (as in `Score.table`).

    `scores` has a row a method and seed: recall (how many of the seven are among the first seven) and average_precision.
    """

    table: pd.DataFrame
    scores: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a method, the best first: means over seeds, the `lowest` average precision, and the decoy's mean rank."""
        by_method = self.scores.groupby("method", sort=False)
        frame = by_method[["recall", "average_precision"]].mean().assign(lowest=by_method.average_precision.min())
        decoys = self.table[self.table.role == "decoy"].groupby("method")["rank"].mean()
        return frame.assign(decoy_rank=decoys).sort_values("average_precision", ascending=False, kind="stable")

    def plot(self) -> Figure:
        """Where each method ranks the planted heads and the decoy, of all heads; to the left of the line stands what it takes."""
        frame, seeds = self.to_frame(), list(self.scores.seed.unique())
        figure, axis = new_figure(width=8.5, height=1.5 + 0.42 * len(frame))
        for role, (color, marker) in MARKERS.items():
            some = self.table[self.table.role == role]
            if some.empty:  # a model without a decoy
                continue
            y = some.method.map(frame.index.get_loc) + some.seed.map(lambda seed: (seeds.index(seed) + 0.5) / len(seeds) / 2 - 0.25)
            edge = {"linewidths": 1.8} if marker == "x" else {"edgecolors": "white", "linewidths": 0.6}
            axis.scatter(some["rank"], y, 45, color, marker=marker, label=role, zorder=3, **edge)
        axis.axvline(len(PLANTED["heads"]) + 0.5, color=INK, linewidth=1, linestyle=":")
        axis.set_yticks(range(len(frame)), [f"{m}  {p:.2f}" for m, p in frame.average_precision.items()])
        axis.set(xscale="log", xlim=(0.9, 70), ylim=(len(frame) - 0.5, -0.5), xlabel="rank among the heads")
        axis.set_xticks([1, 2, 4, 7, 15, 30, 63], [1, 2, 4, 7, 15, 30, 63])
        axis.minorticks_off()
        axis.set_title("What methods put first, and their average precision")
        axis.grid(axis="y", color=PALE)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(MARKERS), fontsize=9)
        return figure


def compare(
    methods: Any = None,
    seeds: Any = (0,),
    n: int = 72,
    decoy: bool = True,
    progress: bool = True,
) -> Comparison:
    """For each seed, ask every method of n pairs on the planted model of that seed, and score its ranking.

    `methods` by name, by default `METHODS`; `METHODS | {"mine": mine}` sets yours beside them. Pairs are of the selection split,
    emotions in turn. Those of `METHODS` take about half a minute a seed, and want 24 pairs or more. Raises InputError, with the
    method's name, where one gives no ranking of all heads.
    """
    methods, n = _checked_methods(methods), whole_number(n, "n", len(COLOURS))
    seeds = [whole_number(seed, "a seed", 0) for seed in expected(seeds, Iterable, "seeds, such as range(3)")]
    if not seeds:
        raise InputError("There are no seeds; expected some, such as range(3).")
    tables, scores = [], []
    for seed, name in tqdm([(seed, name) for seed in seeds for name in methods], desc="methods", disable=not progress):
        found = _asked(name, methods[name], planted_vlm(seed, decoy), planted_pairs("selection", n, seed))
        tables.append(found.table.assign(method=name, seed=seed))
        scores.append({"method": name, "seed": seed, "recall": found.recall, "average_precision": found.average_precision})
    table = pd.concat(tables, ignore_index=True)
    return Comparison(table if decoy else table[table.role != "decoy"], pd.DataFrame(scores))


def _asked(name: str, method: Method, vlm: VLM, pairs: Sequence[Pair]) -> Score:
    try:
        found = score(method(vlm, pairs))
    except InputError as error:
        raise InputError(f"The method {name!r}: {error}") from error
    if math.isnan(found.average_precision):
        raise InputError(f"The method {name!r} gave a set; expected a ranking, a Series with a number for each head.")
    return found


def _checked_methods(methods: Any) -> dict[str, Method]:
    methods = dict(METHODS if methods is None else expected(methods, Mapping, "methods by name, such as METHODS | {'mine': mine}"))
    for name, method in methods.items():
        if not callable(method):
            raise InputError(f"The method {name!r} is {said(method)}; expected a function of a model and pairs.")
    if not methods:
        raise InputError("There are no methods; expected some, such as METHODS.")
    return methods
