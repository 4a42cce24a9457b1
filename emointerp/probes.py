"""The unmodified pass: what can be read off the residual stream of held-out pictures where nothing is pushed.

A push can make a model say what it never would by itself. So beside every causal curve stands this one: whether the same
directions tell the emotion of pictures that were not used to find them, in a plain forward, and how well a linear probe does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import normalize

from emointerp.directions import POOLED, Directions, last_residuals
from emointerp.errors import InputError
from emointerp.models import VLM
from emointerp.pairs import Pair, check_disjoint
from emointerp.plots import BLUE, GRAY, ORANGE, QUIET, band, new_figure
from emointerp.saved import Saved
from emointerp.statistics import mean_interval

SHOWN = {
    "probe": ("which emotion, linear probe", BLUE),
    "nearest": ("which emotion, nearest direction", ORANGE),
    "further": ("emotional or not: further along S than its twin", GRAY),
}


@dataclass(frozen=True)
class UnmodifiedPass(Saved):
    """`table` has a row a held-out pair and layer: pair, emotion, layer, and three times right (1) or wrong (0).

    - `nearest`: the picture's own emotion has the direction nearest to its residual stream, both less their means;
    - `probe`: a logistic regression, fitted to other pairs, tells its emotion;
    - `further`: it lies further along the pooled direction than its neutral twin (by cosine).
    """

    table: pd.DataFrame
    chance: float

    def to_frame(self) -> pd.DataFrame:
        """Shares that are right with their 95% bootstrap intervals: a row a layer, an `Interval` a column."""
        return self.table.groupby("layer")[list(SHOWN)].agg(lambda values: mean_interval(values))

    def plot(self) -> Figure:
        """Shares by layer; chance for "which emotion" is dotted (for "emotional or not" it is one half)."""
        frame, (figure, axis) = self.to_frame(), new_figure(width=7.5, height=3.6)
        for column, (label, color) in SHOWN.items():
            band(axis, frame.index, frame[column], color, label)
        axis.axhline(self.chance, color=QUIET, linestyle=":", linewidth=1, label="chance of the emotion")
        axis.set(ylim=(0, 1.03), xlabel="layer", ylabel="share of pictures", xticks=frame.index)
        axis.set_title("Read off the residual stream, nothing pushed")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
        return figure


def unmodified_pass(
    vlm: VLM, directions: Directions, fit: Sequence[Pair], held_out: Sequence[Pair], answer: str = ""
) -> UnmodifiedPass:
    """Tell the emotions of `held_out` pairs from plain forwards; means and probes are those of the `fit` pairs.

    `answer` begins the answer, as in `steering.differences`: read where the directions were found.

    >>> import emointerp as ei
    >>> vlm, fit = ei.load(), ei.world_pairs("direction", 12)
    >>> S = ei.steering_vectors(vlm, fit, tau=-1, progress=False)
    >>> ei.unmodified_pass(vlm, S, fit, ei.world_pairs("test", 12)).to_frame().shape
    (8, 3)
    """
    check_disjoint(fit, held_out)
    unknown = {p.emotion for p in (*fit, *held_out)} - set(directions.emotions)
    if unknown:
        raise InputError(f"There are no directions of {', '.join(sorted(unknown))}; there are {', '.join(directions.emotions)}.")
    fitted, seen, twins = (
        last_residuals(vlm, [vlm.prompt(*side, answer=answer) for side in sides])
        for sides in ([p.plus for p in fit], [p.plus for p in held_out], [p.minus for p in held_out])
    )
    truth = np.array([p.emotion for p in held_out])
    frames = []
    for layer in range(directions.n_layers):
        h, twin, train = seen[:, layer], twins[:, layer], fitted[:, layer]
        right = {
            "nearest": _nearest(directions.centred(), layer, h - train.mean(0)) == truth,
            "probe": _probe(train, [p.emotion for p in fit], h) == truth,
            "further": (_along(h, directions[POOLED, layer]) > _along(twin, directions[POOLED, layer])).numpy(),
        }
        columns = {name: values.astype(float) for name, values in right.items()}
        frames.append(pd.DataFrame({"pair": range(len(truth)), "emotion": truth, "layer": layer, **columns}))
    return UnmodifiedPass(pd.concat(frames, ignore_index=True), 1 / len(directions.emotions))


def _nearest(centred: Directions, layer: int, h: Tensor) -> np.ndarray:
    """The emotion whose centred direction has the largest cosine to each vector."""
    unit = normalize(torch.stack([centred[e, layer] for e in centred.emotions]), dim=-1)
    return np.array(centred.emotions)[(h @ unit.T).argmax(-1).numpy()]


def _probe(train: Tensor, labels: Sequence[str], h: Tensor) -> Any:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    return model.fit(train.numpy(), labels).predict(h.numpy())


def _along(h: Tensor, direction: Tensor) -> Tensor:
    return torch.cosine_similarity(h, direction[None], -1)
