"""One step further up: which heads feed a neuron?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from emointerp.circuit import Edge, head_name, neuron_name
from emointerp.lens import Words, metrics_of
from emointerp.models import VLM
from emointerp.neurons.scores import FLIPS, Tokens, attribution, corrected, tokens_of, twins_of
from emointerp.pairs import Pair
from emointerp.plots import new_figure
from emointerp.saved import Saved
from emointerp.sources import Place, checked_places
from emointerp.statistics import value_interval
from emointerp.tracing import collect, patch


@dataclass(frozen=True, eq=False)
class Feeders(Saved):
    """What heads up to a neuron's layer give it at its token: `scores`, attribution through the neuron alone."""

    scores: Float[np.ndarray, "pair layer head"] = field(repr=False)
    neuron: Place

    def to_frame(self, flips: int = FLIPS) -> pd.DataFrame:
        """A row a head, the strongest first: `score` (`Interval`), `p` (sign flips, Benjamini-Hochberg over all these heads)."""
        flat = self.scores.reshape(len(self.scores), -1)
        places = pd.MultiIndex.from_product([range(n) for n in self.scores.shape[1:]], names=["layer", "head"])
        frame = pd.DataFrame({"score": [value_interval(x) for x in flat.T], "p": corrected(flat, flips)}, places)
        return frame.iloc[np.argsort(-flat.mean(0), kind="stable")]

    def edges(self, heads: Iterable[Place]) -> list[Edge]:
        """From those of `heads` that lie below, to the neuron."""
        mean = self.scores.mean(0)
        return [Edge(head_name(*at), neuron_name(*self.neuron), float(mean[at])) for at in map(tuple, heads) if at[0] < len(mean)]

    def plot(self) -> Figure:
        """A map of layers and heads."""
        figure, axis = new_figure(width=5, height=1.6 + 0.3 * self.scores.shape[1])
        mean = self.scores.mean(0)
        limit = np.abs(mean).max() or 1.0
        drawn = axis.imshow(mean, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect="auto")
        axis.set(xlabel="head", ylabel="layer", yticks=range(len(mean)), title=f"What feeds {neuron_name(*self.neuron)}")
        figure.colorbar(drawn, label="attribution through it")
        return figure


def feeders(
    vlm: VLM,
    pairs: Sequence[Pair],
    neuron: Place,
    tokens: Tokens = None,
    metric: Any = "log mass",
    *,
    slope: str = "both",
    words: Words = None,
    answer: str = "I felt",
    progress: bool = True,
) -> Feeders:
    """Which heads, at the same token, make a neuron what it is beside the emotional picture and not beside its twin?

    `(z+ - z-)[l, h, t] * dM/dz[l, h, t]` of heads up to the neuron's layer, through the neuron alone: the gradient less that with
    the neuron held at its own value; `slope` as in `neuron_scores`. At the last token, or at `tokens` as in `patched`
    (`Sources.tokens`). What a token brings along by itself (a patch's own embedding) is in no head, and not in here.
    """
    layer, n = checked_places(vlm, [neuron], "neuron")[0]
    both, metrics, found = twins_of(vlm, pairs, answer), metrics_of(vlm, pairs, metric, words), []
    for pair, prompts, where in zip(tqdm(pairs, desc="feeders", disable=not progress), both, tokens_of(tokens, both), strict=True):
        own = collect(vlm, prompts, ["neurons"], layers=layer, positions=where)
        held = [patch(one, layer, neurons=[n], positions=where) for one in own]
        scores, _ = attribution(vlm, prompts, metrics[pair.emotion], "heads", range(layer + 1), where, held, slope)
        found.append(scores.sum(-1))
    return Feeders(np.stack(found), (layer, n))
