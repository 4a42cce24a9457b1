"""What features mean: the pictures on which each fires most, what is in them, what is said of them, and which features go along.

A name for a feature is a guess. So factors are chosen on some pictures and read on others (`held out`), and beside the share of a
feature's pictures that have a factor stands the share among all others.

>>> codes = Codes(torch.tensor([2.0, 3.0, 1.0, 1.0]).repeat(3)[:, None], torch.tensor([7, 7, 4, 4]).repeat(3)[:, None], 9)
>>> factors = pd.DataFrame({"subject: cat": [1, 1, 0, 0] * 3, "tears": [0.0, 0.2, 0.0, 0.1] * 3})
>>> features = feature_meanings(codes, factors=factors)
>>> features.to_frame()[["feature", "fires", "factor", "auroc", "words"]].to_numpy().tolist()
[[4, 0.5, 'tears: high', 0.5, 'nothing named'], [7, 0.5, 'subject: cat', 1.0, 'subject cat']]
>>> features.top(7, 2)["picture"].tolist()
[1, 5]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.sparse import csc_matrix
from torch import Tensor
from torch.nn.functional import normalize

from emointerp.errors import InputError
from emointerp.models import Tower, to_image
from emointerp.plots import ORANGE, new_figure
from emointerp.sae.coding import sum_by_feature
from emointerp.sae.metrics import aurocs, monosemanticity
from emointerp.sae.value import Codes

RARE = 0.02  # a factor that fewer pictures have, or all but so few, is left out
NAMED, SURPLUS = 0.5, 0.3  # words: factors that half of a feature's pictures have, and so many fewer of the others
TOLD = 0.9  # and otherwise the factor of such an AUROC: a feature may fire nearly everywhere, and most where the factor is
FEW = 5  # a feature that fires on fewer pictures has no words: what three pictures have in common is chance
AT_ONCE = 1024  # features whose companions are counted at a time
EMOTION = "emotion: "
MARK = ORANGE

Captions = tuple[Sequence[str], Float[Tensor, "m width"]]  # sentences, and their vectors from the tower's text side


def by_picture(codes: Codes) -> tuple[Codes, Int[Tensor, "n k"] | None]:
    """Codes of patches as codes of pictures: of each feature its largest value, and the patch where it is reached.

    Codes of pictures stay as they are, with no places.

    >>> codes = Codes(torch.tensor([[[2.0, 1.0], [5.0, 0.0]]]), torch.tensor([[[3, 1], [1, 0]]]), 4)
    >>> pictures, places = by_picture(codes)
    >>> pictures.dense().tolist(), places.tolist()
    ([[0.0, 5.0, 0.0, 2.0]], [[1, 0]])
    """
    if codes.values.ndim == 2:
        return codes, None
    if codes.values.ndim != 3:
        raise InputError(f"The codes are {list(codes.values.shape)}; expected [picture, k] or [picture, patch, k].")
    n, patches, k = codes.values.shape
    values, features = codes.values.flatten(1).numpy(), codes.indices.flatten(1).numpy()
    row, column = np.nonzero(values > 0)
    order = np.lexsort((-values[row, column], features[row, column], row))
    row, column = row[order], column[order]
    first = np.ones(len(row), bool)
    first[1:] = (np.diff(row) != 0) | (np.diff(features[row, column]) != 0)
    row, column = row[first], column[first]
    order = np.lexsort((-values[row, column], row))  # the largest of a picture first, as codes have it
    row, column = row[order], column[order]
    counts = np.bincount(row, minlength=n)
    slot = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    shape = (n, max(1, int(counts.max(initial=0))))
    out = [np.zeros(shape, kind) for kind in (values.dtype, np.int64, np.int64)]
    for array, filled in zip(out, (values[row, column], features[row, column], column // k), strict=True):
        array[row, slot] = filled
    strongest, which, places = map(torch.from_numpy, out)
    return Codes(strongest, which, codes.d_hidden), places


def yes_or_no(factors: pd.DataFrame, like: pd.DataFrame | None = None) -> pd.DataFrame:
    """Factors as 0/1 columns: a number becomes "name: high" and "name: low", above and below its median.

    Columns that fewer than 2% of the pictures have, or all but so few, are left out. With `like`, the factors of the pictures that
    choose, medians and the columns that stay are theirs, so that a column means the same on both: give it for held-out pictures,
    where a column may then be all 0 or all 1, and one whose factor is not in `factors` is left out.

    >>> yes_or_no(pd.DataFrame({"glasses": [0, 1, 0, 1], "tears": [0.0, 0.0, 0.0, 0.7]})).columns.tolist()
    ['glasses', 'tears: high']
    >>> yes_or_no(pd.DataFrame({"tears": [0.3, 0.9]}), like=pd.DataFrame({"tears": [0.1, 0.2, 0.6]}))["tears: high"].tolist()
    [1.0, 1.0]
    """
    like = factors if like is None else like
    columns: dict[str, np.ndarray] = {}
    for name in (name for name in like if name in factors):
        chosen, numbers = like[name].to_numpy(float), factors[name].to_numpy(float)
        if np.isin(chosen, (0, 1)).all():
            split = {str(name): (chosen, numbers)}
        else:
            middle = np.median(chosen)
            split = {f"{name}: high": (chosen > middle, numbers > middle), f"{name}: low": (chosen < middle, numbers < middle)}
        columns |= {name: there * 1.0 for name, (kept, there) in split.items() if RARE <= kept.mean() <= 1 - RARE}
    return pd.DataFrame(columns, index=range(len(factors)))


def varying(table: pd.DataFrame) -> list[str]:
    """The 0/1 columns that hold both."""
    return [name for name in table if 0 < table[name].mean() < 1]


def with_emotions(factors: pd.DataFrame, emotions: Sequence[str]) -> pd.DataFrame:
    """Factors and a 0/1 column for each emotion, named "emotion: joy"."""
    told = pd.get_dummies(pd.Series(list(emotions)), dtype=float).add_prefix(EMOTION)
    if len(told) != len(factors):
        raise InputError(f"There are {len(told)} emotions and {len(factors)} rows of factors; expected one for each picture.")
    return factors.reset_index(drop=True).join(told)


@dataclass(frozen=True, eq=False)
class Features:
    """What features fire for, over `n` pictures: `table` has a row for each feature that fires.

    - `fires`: on which share of the pictures; `mean`: the mean activation there.
    - `alike`: monosemanticity, where embeddings were given.
    - `factor`: the factor that it tells best, by `auroc`; `there` and `elsewhere`: which share of the pictures that fire it, and of
      the others, have the factor. `emotion` and `emotion auroc`: the same of emotions, which are kept apart.
    - `held out`, `there, held out`, `emotion, held out`: AUROC and share of these choices on pictures that did not make them.
    - `captions`: the nearest sentences. `with`: the feature that most goes along, -1 where there is none.
    - `words`: up to three factors that most of its pictures have and few of the others; where there is none, the factor that it
      tells by how strongly it fires. Where pictures are held out, it has to be so there too. "nothing named" for features that fire
      on fewer than 5 pictures: with so many factors, some are on any three pictures by chance.
    """

    table: pd.DataFrame
    codes: Codes = field(repr=False)
    places: Int[Tensor, "n k"] | None = field(repr=False)
    pictures: Sequence[Any] | None = field(repr=False)
    tells: "_Told | None" = field(repr=False)
    near: "_Near | None" = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A row a feature that fires."""
        return self.table.copy()

    def top(self, feature: int, most: int = 8) -> pd.DataFrame:
        """The pictures on which a feature fires most: `picture`, `value`, and of patches `patch`."""
        row, column = self._fired(feature)
        values = self.codes.values[row, column]
        order = values.argsort(descending=True, stable=True)[:most]
        columns = {"picture": row[order].numpy(), "value": values[order].numpy()}
        if self.places is not None:
            columns["patch"] = self.places[row, column][order].numpy()
        return pd.DataFrame(columns)

    def factors(self, feature: int, most: int | None = 10) -> pd.DataFrame:
        """The factors that a feature tells, best first: `auroc`, `there`, `elsewhere`, and the first two held out."""
        self._fired(feature)
        if self.tells is None:
            raise InputError("No factors were given when these features were read; give `factors`, a row a picture.")
        return self.tells.of(feature).head(most or len(self.tells.names)).reset_index(drop=True)

    def captions(self, feature: int, most: int = 5) -> pd.DataFrame:
        """The sentences nearest to the mean embedding of a feature's pictures: `caption` and `cosine`, both centred."""
        self._fired(feature)
        if self.near is None:
            raise InputError("No captions were given when these features were read; give `captions` and `embeddings`.")
        return self.near.of(feature, most)

    def together(self, feature: int, most: int = 5) -> pd.DataFrame:
        """Features that fire on the same pictures: on how many, `lift` over independence, and normalised PMI (Bouma 2009).

        Normalised PMI is 0 where two features are independent, and 1 where they fire on the same pictures and no others; unlike
        the lift it is not largest for what is rarest.
        """
        row, _ = self._fired(feature)
        counts = self.codes.fired().numpy()
        held = Codes(self.codes.values[row], self.codes.indices[row], self.codes.d_hidden).fired().numpy()
        held[feature] = 0
        others = held.nonzero()[0]
        lift, npmi = _association(held[others], counts[others], len(row), len(self.codes.values))
        order = np.argsort(-npmi, kind="stable")[:most]
        columns = {"feature": others, "pictures": held[others], "lift": lift, "normalised PMI": npmi}
        return pd.DataFrame({name: values[order] for name, values in columns.items()})

    def plot(self, feature: int, tower: Tower | None = None, most: int = 8, columns: int = 4) -> Figure:
        """A sheet of a feature's top pictures under its words; with the tower, the patch that a value comes from is framed."""
        if self.pictures is None:
            raise InputError("No pictures were given when these features were read; give `pictures`, one for each code.")
        shown = self.top(feature, most)
        rows = -(-len(shown) // columns)
        figure, axes = new_figure(rows, columns, width=1.5 * columns, height=1.6 * rows + 0.9, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, told in zip(axes.flat, shown.itertuples(), strict=False):
            picture = to_image(self.pictures[told.picture])
            axis.imshow(picture)
            axis.set_title(f"{told.value:.2g}", fontsize=8, fontweight="normal")
            if tower is not None and self.places is not None:
                left, top, right, bottom = tower.boxes(picture.size)[told.patch]
                axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=MARK, linewidth=2))
        figure.suptitle(self._heading(feature), fontsize=10, x=0.01, ha="left", parse_math=False)
        return figure

    def _heading(self, feature: int) -> str:
        told = self.table.set_index("feature").loc[feature]
        lines = [f"Feature {feature}: {told.get('words', 'nothing named')}", f"fires on {told['fires']:.1%} of the pictures"]
        if self.tells is not None:
            lines[1] += f"; tells {_plain(told['factor'])} at an AUROC of {told['auroc']:.2f}"
        return "\n".join(line.replace("$", r"\$") for line in lines)

    def _fired(self, feature: int) -> tuple[Tensor, Tensor]:
        """Where a feature fires: rows and columns of the codes."""
        if not 0 <= feature < self.codes.d_hidden:
            raise InputError(f"There is no feature {feature}; this SAE has features 0 to {self.codes.d_hidden - 1}.")
        row, column = ((self.codes.indices == feature) & (self.codes.values > 0)).nonzero(as_tuple=True)
        if not len(row):
            raise InputError(f"Feature {feature} fires on none of these {len(self.codes.values)} pictures, so nothing tells it.")
        return row, column


def feature_meanings(
    codes: Codes,
    pictures: Sequence[Any] | None = None,
    *,
    factors: pd.DataFrame | None = None,
    held_out: tuple[Codes, pd.DataFrame] | None = None,
    embeddings: Float[Tensor, "n d"] | None = None,
    captions: Captions | None = None,
) -> Features:
    """Read features from the codes of pictures, [n k], or of their patches, [n patch k], where the strongest patch counts.

    `factors` has a row a picture, of 0/1 or of numbers (`superposition.factor_table` of scenes; `with_emotions` adds emotions);
    `held_out` are codes and factors of other pictures. `embeddings` are the pictures' vectors from a dual encoder, and `captions`
    sentences with their vectors, `(sentences, tower.texts(sentences))`.
    """
    codes, places = by_picture(Codes(codes.values.detach().cpu(), codes.indices.cpu(), codes.d_hidden))
    n = len(codes.values)
    for what, given in {"pictures": pictures, "rows of factors": factors, "embeddings": embeddings}.items():
        if given is not None and len(given) != n:
            raise InputError(f"There are codes of {n} pictures and {len(given)} {what}; expected one for each.")
    if captions is not None and embeddings is None:
        raise InputError("Captions are compared to the pictures' vectors; give `embeddings` too (tower.embed(pictures)).")
    told = None if factors is None else _told(codes, factors, held_out)
    near = None if captions is None else _near(codes, embeddings, captions)
    table = _activity(codes, embeddings)
    alive = table["feature"].tolist()
    best: dict[str, Any] = {"with": _companions(codes)[alive]}
    if near is not None:
        best["captions"] = ["; ".join(near.of(i, 3)["caption"]) for i in alive]
    if told is not None:
        best |= told.best(np.array(alive, int))
    return Features(table.assign(**best), codes, places, pictures, told, near)


def _activity(codes: Codes, embeddings: Tensor | None) -> pd.DataFrame:
    """How often and how strongly each living feature fires, and how alike its pictures are."""
    counts = codes.fired()
    alive = counts.nonzero().flatten()
    sums = codes.mean() * len(codes.values)
    columns = {"feature": alive, "fires": counts[alive] / len(codes.values), "mean": sums[alive] / counts[alive]}
    table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    if embeddings is not None:
        table["alike"] = monosemanticity(codes, embeddings)[alive.numpy()]
    return table


# companions


def _association(both: np.ndarray, one: Any, other: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lift and normalised PMI of features that fire on `one` and on `other` of `n` pictures, and on `both` together."""
    share = both / n
    lift = share / (one / n) / (other / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        return lift, np.where(share < 1, np.log(lift) / -np.log(share), 1.0)


def _companions(codes: Codes) -> Int[np.ndarray, " d_hidden"]:
    """Of each feature the one that `Features.together` names first, -1 where there is none, from a sparse product of the codes."""
    row, column = (codes.values > 0).nonzero(as_tuple=True)
    n, counts, best = len(codes.values), codes.fired().numpy(), np.full(codes.d_hidden, -1)
    entries = (np.ones(len(row)), (row.numpy(), codes.indices[row, column].numpy()))
    fired = csc_matrix(entries, (n, codes.d_hidden))
    for first in range(0, codes.d_hidden, AT_ONCE):
        both = (fired[:, first : first + AT_ONCE].T @ fired).tocoo()
        apart = both.row + first != both.col
        one, other, held = both.row[apart] + first, both.col[apart], both.data[apart]
        npmi = _association(held, counts[one], counts[other], n)[1]
        order = np.lexsort((other, -npmi, one))
        features, at = np.unique(one[order], return_index=True)
        best[features] = other[order][at]
    return best


# factors


@dataclass(frozen=True, eq=False)
class _Held:
    """The same on other pictures, [factor, d_hidden]; NaN for factors that do not vary there."""

    auroc: np.ndarray
    there: np.ndarray
    elsewhere: np.ndarray


@dataclass(frozen=True, eq=False)
class _Told:
    """How each feature tells each factor, [factor, d_hidden], and on how many pictures it fires."""

    names: list[str]
    fired: Int[np.ndarray, " d_hidden"]
    auroc: np.ndarray
    there: np.ndarray
    elsewhere: np.ndarray
    held: _Held | None

    def of(self, feature: int) -> pd.DataFrame:
        """A row a factor, the best first."""
        table = pd.DataFrame({"factor": self.names} | {name: values[:, feature] for name, values in self._parts().items()})
        return table.sort_values("auroc", ascending=False, kind="stable")

    def best(self, alive: Int[np.ndarray, " alive"]) -> dict[str, Any]:
        """Columns of the table: the best factor and the best emotion of each living feature, and its words."""
        felt = np.array([name.startswith(EMOTION) for name in self.names])
        columns = self._chosen(alive, ~felt, "") if (~felt).any() else {}
        if felt.any():
            chosen = self._chosen(alive, felt, "emotion ")
            columns["emotion"] = [name.removeprefix(EMOTION) for name in chosen["emotion factor"]]
            columns |= {"emotion auroc": chosen["emotion auroc"], "emotion, held out": chosen["emotion held out"]}
        return columns | {"words": [self._words(i) for i in alive.tolist()]}

    def _chosen(self, alive: np.ndarray, among: np.ndarray, prefix: str) -> dict[str, Any]:
        """The best of some factors for each living feature."""
        at = np.flatnonzero(among)[self.auroc[among][:, alive].argmax(0)]
        names = {f"{prefix}factor": [self.names[i] for i in at]}
        return names | {f"{prefix}{name}": values[at, alive] for name, values in self._parts().items()}

    def _parts(self) -> dict[str, np.ndarray]:
        unknown = np.full_like(self.auroc, np.nan)
        held = (unknown, unknown) if self.held is None else (self.held.auroc, self.held.there)
        parts = {"auroc": self.auroc, "there": self.there, "elsewhere": self.elsewhere}
        return parts | dict(zip(("held out", "there, held out"), held, strict=True))

    def _words(self, feature: int) -> str:
        """Factors that half of the feature's pictures have and far fewer of the others; or the one that its strength tells.

        Both on held-out pictures too, where there are such; what is NaN there is not so.
        """
        if self.fired[feature] < FEW:
            return "nothing named"
        surplus, auroc = self.there[:, feature] - self.elsewhere[:, feature], self.auroc[:, feature]
        lasting = surplus, auroc
        if self.held is not None:
            lasting = self.held.there[:, feature] - self.held.elsewhere[:, feature], self.held.auroc[:, feature]
        often = (surplus >= SURPLUS) & (lasting[0] >= SURPLUS) & (self.there[:, feature] >= NAMED)
        best = int(auroc.argmax())
        told = [best] if auroc[best] >= TOLD and lasting[1][best] >= TOLD else []
        named = [i for i in np.argsort(-surplus) if often[i]][:3] or told
        return ", ".join(_plain(self.names[i]) for i in named) or "nothing named"


def _plain(factor: str) -> str:
    return factor.removeprefix(EMOTION).replace(": ", " ").replace("_", " ")


def _told(codes: Codes, factors: pd.DataFrame, held_out: tuple[Codes, pd.DataFrame] | None) -> _Told:
    table = yes_or_no(factors)
    if not table.shape[1]:
        raise InputError(f"None of the {factors.shape[1]} factors varies over these {len(factors)} pictures; give others, or more.")
    there, elsewhere = _shares(codes, table)
    held = None if held_out is None else _held_out(held_out, factors, list(table), codes.d_hidden)
    return _Told(list(table), codes.fired().numpy(), aurocs(codes, table), there, elsewhere, held)


def _held_out(held_out: tuple[Codes, pd.DataFrame], like: pd.DataFrame, names: list[str], d_hidden: int) -> _Held:
    """AUROC and shares on other pictures, of factors cut where those that chose were cut."""
    codes, _ = by_picture(Codes(held_out[0].values.detach().cpu(), held_out[0].indices.cpu(), held_out[0].d_hidden))
    if codes.d_hidden != d_hidden:
        raise InputError(f"The held-out codes have {codes.d_hidden} features and the others {d_hidden}: two SAEs.")
    table = yes_or_no(held_out[1], like)
    scores = np.full((3, len(names), d_hidden), np.nan)
    if both := varying(table):
        scores[:, [names.index(name) for name in both]] = np.stack([aurocs(codes, table[both]), *_shares(codes, table[both])])
    return _Held(*scores)


def _shares(codes: Codes, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which share of the pictures that fire a feature have a factor, and which of the others; NaN where there are none."""
    labels = torch.tensor(table.to_numpy(np.float64))
    fired = codes.fired().double()[:, None]
    held = sum_by_feature((codes.values > 0).double(), codes.indices, labels, codes.d_hidden)
    return (held / fired).T.numpy(), ((labels.sum(0) - held) / (len(labels) - fired)).T.numpy()


# captions


@dataclass(frozen=True, eq=False)
class _Near:
    """Cosines of each feature's mean picture to each sentence, from unit vectors that are made as they are asked for."""

    sentences: list[str]
    texts: Tensor
    means: Tensor

    def of(self, feature: int, most: int) -> pd.DataFrame:
        """The nearest sentences, the nearest first."""
        cosine, at = (self.texts @ self.means[feature]).topk(min(most, len(self.sentences)))
        return pd.DataFrame({"caption": [self.sentences[i] for i in at.tolist()], "cosine": cosine.numpy()})


def _near(codes: Codes, embeddings: Float[Tensor, "n d"], captions: Captions) -> _Near:
    """Pictures and texts lie apart in a dual encoder, so each side is taken from its own mean before they are compared."""
    sentences, texts = list(captions[0]), captions[1]
    if texts.shape != (len(sentences), embeddings.shape[1]) or not sentences:
        raise InputError(
            f"{len(sentences)} captions came with vectors of shape {list(texts.shape)}, for pictures' vectors of width "
            f"{embeddings.shape[1]}; expected a vector of that width for each caption."
        )
    unit = normalize(embeddings.float(), dim=-1)
    sums = sum_by_feature((codes.values > 0).float(), codes.indices, unit - unit.mean(0), codes.d_hidden)
    told = normalize(texts.float(), dim=-1)
    return _Near(sentences, normalize(told - told.mean(0), dim=-1), normalize(sums, dim=-1))
