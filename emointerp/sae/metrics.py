"""How good an SAE is: how much of the vectors it keeps, how many features live, and whether features mean something.

Explained variance alone says little: an SAE with many features can rebuild vectors from features that nobody can name. So beside it
stand two measures of single features: whether the pictures of a feature are like one another (`monosemanticity`), and whether one
feature tells a factor of the picture that is known because the world was made with it (`best_features`).
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from emointerp.errors import InputError
from emointerp.plots import BLUE, GRAY, PALE, QUIET, new_figure
from emointerp.sae.value import SAE, Codes
from emointerp.saved import Saved


@dataclass(frozen=True)
class Quality(Saved):
    """What an SAE keeps of `n` vectors.

    - `explained_variance`: 1 - FVU, the share of the variance about the mean that is rebuilt; 1 is perfect, 0 is the mean alone.
    - `mse`: mean squared error per number, in the vectors' own units squared.
    - `l0`: mean number of features that fire; at most k.
    - `dead`: share of features that fire on none of these vectors; it depends on n.
    - `firing`: the share of vectors on which each feature fires.
    """

    n: int
    explained_variance: float
    mse: float
    l0: float
    dead: float
    firing: Float[np.ndarray, " d_hidden"] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        names = ["n", "explained_variance", "mse", "l0", "dead"]
        return pd.DataFrame([[getattr(self, name) for name in names]], columns=[name.replace("_", " ") for name in names])

    def plot(self) -> Figure:
        """How often features fire, on a logarithmic axis; the dead ones are counted in the title."""
        figure, axis = new_figure(width=5.5, height=3.2)
        alive = self.firing[self.firing > 0]
        axis.hist(alive, bins=np.geomspace(1 / self.n, 1, 30), color=BLUE)
        axis.set_xscale("log")
        axis.set_xlabel("share of vectors on which a feature fires")
        axis.set_ylabel("features")
        axis.set_title(f"{len(alive)} of {len(self.firing)} features fire; explained variance {self.explained_variance:.2f}")
        return figure


def quality(
    sae: SAE, x: Float[Tensor, "*n d"], batch: int = 1024, chunk: int | None = None, candidates: int | None = None
) -> Quality:
    """Measure an SAE on held-out vectors, those of patches too; `chunk` and `candidates` as in `SAE.encode`.

    InputError where `sae.about["unit"]` says that it reads vectors of length 1, and these are others.

    >>> import emointerp as ei
    >>> from torch.nn.functional import normalize
    >>> x = ei.load_tower().embed([pair.emotional for pair in ei.world_pairs("test", 12)], progress=False)
    >>> ei.sae.quality(ei.load_sae("tiny"), normalize(x, dim=-1)).l0
    32.0
    """
    sae.check(x.shape[-1])
    x = x.reshape(-1, x.shape[-1])
    if sae.about.get("unit") and not 0.9 < (length := float(x.norm(dim=-1).float().mean())) < 1.1:
        raise InputError(f"This SAE reads vectors of length 1; these have {length:.3g} on average. Divide each by its own.")
    mean = x.double().mean(0) if len(x) else x
    variance = sum(float((part.double() - mean).square().sum()) for part in x.split(batch))
    if len(x) < 2 or variance == 0:
        raise InputError(f"Explained variance needs at least two vectors that differ; {len(x)} came, of variance {variance:.3g}.")
    error, fired = 0.0, torch.zeros(sae.d_hidden, dtype=torch.long, device=sae.encoder.device)
    for part in x.split(batch):
        codes = sae.encode(part, chunk=chunk, candidates=candidates)
        error += float((sae.decode(codes).double() - part.to(sae.encoder.device).double()).square().sum())
        fired += codes.fired()
    counts = fired.cpu().numpy()
    return Quality(
        n=len(x),
        explained_variance=1 - error / variance,
        mse=error / x.numel(),
        l0=float(counts.sum() / len(x)),
        dead=float((counts == 0).mean()),
        firing=counts / len(x),
    )


def monosemanticity(codes: Codes, embeddings: Float[Tensor, "n d"], chunk: int = 8192) -> Float[np.ndarray, " d_hidden"]:
    """How alike the pictures of each feature are: the mean cosine of all pairs of them, weighted by the activations' product.

    `(|sum a_i e_i|^2 - sum a_i^2) / ((sum a_i)^2 - sum a_i^2)` for unit embeddings e: the sum over pairs in linear time (Pach et
    al. 2025, whose definition is the sum itself). NaN for features that fire on fewer than two pictures. `chunk` features are done
    at a time. Take embeddings of another model than the SAE's: its own are alike because the feature fires.
    """
    flat = _rows(codes, len(embeddings), "embeddings")
    unit = normalize(embeddings.double(), dim=-1)
    features, order = flat.indices.flatten().sort(stable=True)
    weights, rows = flat.values.double().flatten()[order], order // flat.k
    summed = torch.zeros(flat.d_hidden, dtype=torch.double).index_add(0, features, weights)
    squares = torch.zeros(flat.d_hidden, dtype=torch.double).index_add(0, features, weights.square())
    starts = torch.searchsorted(features, torch.arange(flat.d_hidden + 1))
    lengths = []
    for first in range(0, flat.d_hidden, chunk):
        edges = starts[first : first + chunk + 1]
        here = slice(int(edges[0]), int(edges[-1]))
        offsets = edges[:-1] - edges[0]
        lengths.append(embedding_bag(rows[here], unit, offsets, per_sample_weights=weights[here], mode="sum").square().sum(1))
    score = (torch.cat(lengths) - squares) / (summed.square() - squares)
    return torch.where(flat.fired() >= 2, score, torch.nan).numpy()


def aurocs(codes: Codes, factors: pd.DataFrame) -> Float[np.ndarray, "factor d_hidden"]:
    """How well each feature tells each factor, as the area under its ROC curve; `factors` has a 0/1 column a factor, a row a code.

    1: it fires more wherever the factor is there; 0.5: it tells nothing, as one that never fires. By the rank sum of Mann and
    Whitney over the entries that fired; all others tie at 0. Written out because scikit-learn takes one dense column at a time.
    """
    flat = _rows(codes, len(factors), "rows of factors")
    labels = _checked_factors(factors)
    row, feature, excess, zero_rank = _ranks(flat)
    there = labels.sum(1, keepdims=True)
    above = np.stack([np.bincount(feature, excess * label[row], flat.d_hidden) for label in labels])
    return (there * zero_rank + above - there * (there + 1) / 2) / (there * (len(factors) - there))


def _ranks(codes: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Entries that fired (row, feature) with their rank in the feature less that of the zeros; and the zeros' rank by feature."""
    values, indices = codes.values.detach().cpu().numpy(), codes.indices.cpu().numpy()
    row, column = np.nonzero(values > 0)
    feature, value = indices[row, column], values[row, column]
    order = np.lexsort((value, feature))
    row, feature, value = row[order], feature[order], value[order]
    fired = np.bincount(feature, minlength=codes.d_hidden)
    position = np.arange(len(row)) - (np.cumsum(fired) - fired)[feature] + 1.0
    changes = (np.diff(feature) != 0) | (np.diff(value) != 0)
    tied = np.concatenate([[0], np.cumsum(changes)]) if len(row) else row
    position = (np.bincount(tied, position) / np.bincount(tied))[tied]
    zero_rank = (len(values) - fired + 1) / 2
    return row, feature, (len(values) - fired)[feature] + position - zero_rank[feature], zero_rank


@dataclass(frozen=True)
class FactorScores(Saved):
    """`table` has a row a factor: `feature` that tells it best, its `auroc`, `prevalence`, and `held out`, its AUROC elsewhere.

    The best of thousands of features looks good by chance alone, so `held out` is the number to believe; NaN where none was given.
    """

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a factor."""
        return self.table.copy()

    def share(self, above: float = 0.9) -> float:
        """The share of the factors that have a feature of an AUROC above some value.

        Held out, where that was given, and then of the factors that have such a number; otherwise where the features were chosen.
        """
        held = self.table["held out"].dropna()
        told = held if len(held) else self.table["auroc"]
        return float((told > above).mean())

    def plot(self) -> Figure:
        """A row a factor, the best told on top; a line marks chance."""
        table = self.table.sort_values("auroc")
        figure, axis = new_figure(width=6.5, height=1 + 0.25 * len(table))
        axis.hlines(range(len(table)), 0.5, table["auroc"], color=PALE, linewidth=1)
        axis.plot(table["auroc"], range(len(table)), "o", color=GRAY, label="where it was chosen")
        axis.plot(table["held out"], range(len(table)), "o", color=BLUE, label="held out")
        axis.axvline(0.5, color=QUIET, linestyle=":")
        axis.set_yticks(
            range(len(table)), [f"{f} · {i}" for f, i in zip(table["factor"], table["feature"], strict=True)], fontsize=8
        )
        axis.set_xlabel("AUROC of the best feature (factor · feature); 0.5 is chance")
        axis.legend(loc="lower right", fontsize=8)
        return figure


def best_features(codes: Codes, factors: pd.DataFrame, held_out: tuple[Codes, pd.DataFrame] | None = None) -> FactorScores:
    """The feature that tells each factor best, and how well it does on codes and factors that did not choose it."""
    scores = aurocs(codes, factors)
    best = scores.argmax(1)
    each = np.arange(len(best))
    elsewhere = np.full(len(best), np.nan)
    if held_out is not None:
        _check_same_factors(codes, factors, held_out)
        elsewhere = aurocs(held_out[0], held_out[1][factors.columns])[each, best]
    prevalence = factors.to_numpy(float).mean(0)
    columns = {"factor": factors.columns, "feature": best, "auroc": scores[each, best], "held out": elsewhere}
    return FactorScores(pd.DataFrame(columns | {"prevalence": prevalence}))


def _check_same_factors(codes: Codes, factors: pd.DataFrame, held_out: tuple[Codes, pd.DataFrame]) -> None:
    if missing := [str(name) for name in factors.columns if name not in held_out[1].columns]:
        raise InputError(f"The held-out factors lack {', '.join(missing)}; give the same columns as where features are chosen.")
    if held_out[0].d_hidden != codes.d_hidden:
        raise InputError(f"The held-out codes have {held_out[0].d_hidden} features and the others {codes.d_hidden}: two SAEs.")


def _rows(codes: Codes, n: int, what: str) -> Codes:
    """Codes as [n, k], one for each row of something else."""
    flat = codes.flat()
    if len(flat.values) != n:
        raise InputError(f"There are {len(flat.values)} codes and {n} {what}; expected one for each.")
    return Codes(flat.values.detach().cpu(), flat.indices.cpu(), flat.d_hidden)


def _checked_factors(factors: pd.DataFrame) -> Float[np.ndarray, "factor n"]:
    labels = factors.to_numpy(float).T
    for name, label in zip(factors.columns, labels, strict=True):
        if not np.isin(label, (0, 1)).all() or label.min() == label.max():
            held = ", ".join(f"{value:g}" for value in np.unique(label)[:4])
            raise InputError(f"Factor {name!r} holds {held} in all {len(label)} rows; AUROC needs both 0 and 1, and nothing else.")
    return labels
