"""Toy models of superposition (Elhage et al. 2022): features squeezed through fewer dimensions than there are features.

`x_hat = relu(W^T W x + b)` has `n` features in `m` dimensions. A feature is at work with a chance, the *density* (1 less its
sparsity S), and is then uniform in [0, 1]; the loss is the squared error, weighted by each feature's importance. How much is
stored, and in what shape, turns on the sparsity. Own code, because no library trains many such models as one tensor program.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import SupportsFloat

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from emointerp.errors import InputError
from emointerp.given import number, numbers, whole_number
from emointerp.plots import BLUE, QUIET, YELLOW, new_figure
from emointerp.saved import Saved

REPRESENTED = 0.5  # length of a column of W from which a feature counts as represented
APART = 0.2  # absolute cosine below which two features do not belong to one shape
SHAPES = {
    (1, 1): "own dimension",
    (2, 1): "antipodal pair",
    (3, 2): "triangle",
    (5, 2): "pentagon",
    (4, 3): "tetrahedron",
    (8, 3): "square antiprism",
}
NONE = "not represented"


def dimensions_per_feature(W: Float[Tensor, "*models hidden feature"]) -> Float[Tensor, "*models"]:
    """`D* = m / ||W||_F^2`: how many dimensions each represented feature has; `||W||_F^2` is about how many are represented.

    >>> float(dimensions_per_feature(torch.tensor([[1.0, -1.0]])))
    0.5
    """
    return W.shape[-2] / W.pow(2).sum((-2, -1))


def dimensionality(W: Float[Tensor, "*models hidden feature"]) -> Float[Tensor, "*models feature"]:
    """`D_i = ||W_i||^2 / sum_j (W_i_hat . W_j)^2`: the share of a dimension that each feature has; 0 where it is not stored.

    >>> dimensionality(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
    [0.5, 0.5, 1.0]
    """
    shared = (normalize(W, dim=-2).mT @ W).pow(2).sum(-1)
    return W.pow(2).sum(-2) / shared.clamp(min=1e-12)


def shapes(W: Float[Tensor, "hidden feature"], least: float = REPRESENTED) -> list[str]:
    """What shape each feature is a corner of, by the features that share dimensions with it.

    Represented features (columns longer than `least`) are linked where their absolute cosine is above 0.2; k linked features in r
    dimensions are a known shape, or "k features in r dimensions".

    >>> shapes(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.2]]))
    ['antipodal pair', 'antipodal pair', 'not represented']
    """
    kept = torch.where(W.norm(dim=0) > least)[0]
    unit = normalize(W[:, kept], dim=0)
    n, labels = connected_components(((unit.T @ unit).abs() > APART).numpy(), directed=False)
    said = [NONE] * W.shape[1]
    for group in range(n):
        inside = np.flatnonzero(labels == group)
        corners = (len(inside), int(torch.linalg.matrix_rank(unit[:, inside], rtol=0.3)))
        for i in inside:
            said[int(kept[i])] = SHAPES.get(corners, f"{corners[0]} features in {corners[1]} dimensions")
    return said


@dataclass(frozen=True, eq=False)
class ToyModels(Saved):
    """The best of several trained toy models for each density: `W` [density, hidden, feature] and `b`.

    `losses` [density, seed] are those of all that were trained, on the same data; the lowest was kept. `relu` is False for linear
    models.
    """

    densities: tuple[float, ...]
    importance: Float[Tensor, " feature"] = field(repr=False)
    W: Float[Tensor, "density hidden feature"] = field(repr=False)
    b: Float[Tensor, "density feature"] = field(repr=False)
    losses: Float[Tensor, "density seed"] = field(repr=False)
    relu: bool = True

    def index(self, density: float) -> int:
        """Where a density lies; InputError where no model was trained at it."""
        near = [i for i, known in enumerate(self.densities) if abs(known - density) < 1e-9]
        if not near:
            raise InputError(
                f"No model was trained at density {density:g}; there are {', '.join(f'{d:g}' for d in self.densities)}."
            )
        return near[0]

    def to_frame(self, least: float = REPRESENTED) -> pd.DataFrame:
        """A row a density and feature: sparsity, importance, length of its column, represented or not, D_i, and its shape."""
        frames = []
        importance = self.importance.numpy()
        for density, W, D in zip(self.densities, self.W, dimensionality(self.W).numpy(), strict=True):
            columns = {"density": density, "sparsity": 1 - density, "feature": range(W.shape[1]), "importance": importance}
            norm = W.norm(dim=0).numpy()
            measured = {"norm": norm, "represented": norm > least, "dimensionality": D, "shape": shapes(W, least)}
            frames.append(pd.DataFrame(columns | measured))
        return pd.concat(frames, ignore_index=True)

    def summary(self, least: float = REPRESENTED) -> pd.DataFrame:
        """A row a density: 1 / (1 - S), features represented, ||W||_F^2, D*, the sum of D_i, and the loss of the model kept."""
        frame = self.to_frame(least).groupby("density", sort=False)
        table = frame.agg(features=("represented", "sum"), sum_D=("dimensionality", "sum"))
        squares = {"squared norm": self.W.pow(2).sum((1, 2)), "D*": dimensions_per_feature(self.W)}
        values = {name: column.numpy() for name, column in squares.items()}
        return table.assign(**{"1 / (1 - S)": 1 / table.index, **values, "loss": self.losses.min(1).values.numpy()})

    def plot(self) -> Figure:
        """Where there are two dimensions, the columns of W as arrows; else W^T W; a picture a density."""
        figure, axes = new_figure(1, len(self.densities), width=max(4.0, 2.3 * len(self.densities)), height=2.8, squeeze=False)
        draw = draw_columns if self.W.shape[1] == 2 else _draw_gram
        for axis, density, W in zip(axes[0], self.densities, self.W, strict=True):
            draw(axis, W)
            axis.set_title(f"density {density:g}", fontsize=10)
        if draw is _draw_gram:
            figure.colorbar(axes[0, -1].images[0], ax=axes, label="W^T W", shrink=0.8)
        return figure

    def plot_features(self) -> Figure:
        """How long each feature's column is, features in rows of importance, densities in columns."""
        figure, axis = new_figure(width=1.8 + 0.75 * len(self.densities), height=1.3 + 0.17 * self.W.shape[2])
        drawn = axis.imshow(self.W.norm(dim=1).T.numpy(), cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
        axis.set_xticks(range(len(self.densities)), [f"{d:g}" for d in self.densities])
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel="density", ylabel="feature, the most important on top", title="Features by sparsity")
        figure.colorbar(drawn, label="length of its column of W")
        return figure

    def plot_dimensions(self) -> Figure:
        """D* by 1 / (1 - S), and each represented feature's own D_i; lines where shapes with a name lie."""
        figure, axis = new_figure(width=7, height=3.8)
        frame, summary = self.to_frame(), self.summary()
        for level, name in ((1, "own dimension"), (3 / 4, "tetrahedron"), (1 / 2, "antipodal pair"), (2 / 5, "pentagon")):
            axis.axhline(level, color="#c9cdd2", linewidth=0.8, zorder=0)
            axis.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color=QUIET)
        some = frame[frame.represented]
        axis.scatter(1 / some.density, some.dimensionality, s=9, color=YELLOW, alpha=0.5, label="D of each feature")
        axis.plot(summary["1 / (1 - S)"], summary["D*"], color=BLUE, marker="o", markersize=4, label="D*")
        axis.set(xscale="log", ylim=(0, 1.1), xlabel="1 / (1 - S)", ylabel="dimensions a feature")
        axis.set_xticks(summary["1 / (1 - S)"], [f"{x:.2g}" for x in summary["1 / (1 - S)"]], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_title("Sparser features share dimensions")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure


def draw_columns(axis: object, W: Float[Tensor, "2 feature"]) -> None:
    """Columns of W as arrows in the plane, the most important darkest; features that are not represented are small dots."""
    for i in reversed(range(W.shape[1])):
        x, y = W[:, i].tolist()
        shade = 0.15 + 0.65 * i / max(1, W.shape[1] - 1)
        color = (0.0 + 0.7 * shade, 0.25 + 0.5 * shade, 0.6 + 0.3 * shade)
        axis.plot([0, x], [0, y], color=color, linewidth=2)
        axis.plot([x], [y], "o", color=color, markersize=5)
        if np.hypot(x, y) > REPRESENTED:
            axis.annotate(str(i), (1.16 * x, 1.16 * y), ha="center", va="center", fontsize=8)
    axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[])


def _draw_gram(axis: object, W: Tensor) -> None:
    axis.imshow((W.T @ W).numpy(), cmap="PuOr", vmin=-1, vmax=1)
    axis.set(xticks=[], yticks=[])


def train_toys(
    features: int = 5,
    hidden: int = 2,
    densities: Iterable[SupportsFloat] | SupportsFloat = (1.0, 0.2, 0.05),
    importance: Iterable[SupportsFloat] | SupportsFloat = 0.9,
    *,
    seeds: int = 12,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 0.02,
    relu: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> ToyModels:
    """Train `seeds` toy models at each density, all in one tensor program, and keep the one of lowest loss at each.

    `importance` is a number, whose i-th power is the importance of feature i (1 makes all equal), or one number a feature. Models
    of one seed begin alike and see the same numbers at every density, so what differs is the density; losses are means over the
    last tenth of the steps. Adam, with a learning rate that falls to nothing. torch runs on one thread meanwhile, the quickest at
    this size.

    >>> import emointerp as ei
    >>> toys = ei.train_toys(densities=(1, 0.1), seeds=2, steps=50, progress=False)
    >>> toys.W.shape
    torch.Size([2, 2, 5])
    """
    counts = {"features": features, "hidden": hidden, "seeds": seeds, "steps": steps, "batch": batch}
    for name, count in counts.items():
        whole_number(count, name, 1)
    densities, lr = numbers(densities, "densities"), number(lr, "lr", above=0)
    weight = _checked(features, hidden, densities, importance)
    rng, chance = torch.Generator().manual_seed(seed), torch.tensor(densities)[:, None, None]
    start = torch.randn(seeds, hidden, features, generator=rng) * (2 / (features + hidden)) ** 0.5
    W = start.expand(len(densities), -1, -1, -1).clone().requires_grad_()
    b = torch.zeros(len(densities), seeds, 1, features, requires_grad=True)
    optimizer = torch.optim.Adam([W, b], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    last, total = max(1, steps // 10), torch.zeros(len(densities), seeds)
    with _one_thread():
        for step in tqdm(range(steps), desc="toy models", disable=not progress):
            x = torch.rand(batch, features, generator=rng) * (torch.rand(batch, features, generator=rng) < chance)
            losses = _losses(W, b, x, weight, relu)
            optimizer.zero_grad(set_to_none=True)
            (losses / chance[..., 0]).sum().backward()
            optimizer.step()
            schedule.step()
            total += losses.detach() * (step >= steps - last)
    rows, best = torch.arange(len(densities)), total.argmin(1)
    return ToyModels(tuple(densities), weight, W.detach()[rows, best], b.detach()[rows, best, 0], total / last, relu)


def toy_loss(toys: ToyModels, samples: int = 100_000, seed: int = 0) -> Float[Tensor, " density"]:
    """The loss of each model on new data: squared errors times importance, summed over features, mean over samples."""
    rng, chance = torch.Generator().manual_seed(seed), torch.tensor(toys.densities)[:, None, None]
    shape = (samples, toys.W.shape[2])
    x = torch.rand(shape, generator=rng) * (torch.rand(shape, generator=rng) < chance)
    return _losses(toys.W[:, None], toys.b[:, None, None], x, toys.importance, toys.relu)[:, 0]


def _losses(W: Tensor, b: Tensor, x: Tensor, weight: Tensor, relu: bool) -> Tensor:
    """Losses [density, seed] of models [density, seed, hidden, feature] on samples [density, sample, feature]."""
    squeezed = x[:, None] @ W.mT
    guess = squeezed @ W + b
    error = x[:, None] - (guess.relu() if relu else guess)
    return (error.pow(2) * weight).sum(-1).mean(-1)


def _checked(features: int, hidden: int, densities: list[float], importance: Iterable[SupportsFloat] | SupportsFloat) -> Tensor:
    """The importance of each feature, after what was asked for has been looked at."""
    if not 1 <= hidden <= features:
        raise InputError(
            f"{features} features in {hidden} dimensions: give 1 dimension or more, and no more than there are features."
        )
    if not all(0 < d <= 1 for d in densities):
        raise InputError(f"Densities are {densities}; expected chances above 0, up to 1.")
    given = torch.tensor(numbers(importance, "importance"))
    alone = not isinstance(importance, Iterable) or getattr(importance, "ndim", 1) == 0
    weight = given ** torch.arange(features) if alone else given
    if len(weight) != features or not bool((weight > 0).all()):
        raise InputError(f"Importances are {weight.tolist()}; expected {features} numbers above 0, one a feature.")
    return weight.float()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
