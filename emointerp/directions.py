"""Directions: a vector of the residual stream for each emotion (or label of yours) and layer, as a value that chapters share.

`Differences` are what each pair gives; their means are `Directions`; and controls (random, shuffled, of other pairs) are
`Directions` too, so that whatever is done with S is done with them in the same line.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from emointerp.errors import InputError, OutputError
from emointerp.files import whole
from emointerp.given import number, whole_number
from emointerp.models import VLM, Prompt
from emointerp.models.prompts import as_prompts
from emointerp.plots import INK, new_figure
from emointerp.statistics import random_directions
from emointerp.tracing import AddVector, collect
from emointerp.tracing.edits import FROM_LAST, Positions

POOLED = "pooled"


@dataclass(frozen=True, eq=False)
class Directions:
    """`S["fear", 6]` is the direction of fear after layer 6, [d_model]; `S["pooled", 6]` the mean over all pairs.

    `n` counts the pairs behind each emotion; `about` says how they were made (model, splits, tau, …), and travels with the file.
    """

    emotions: tuple[str, ...]
    vectors: Float[Tensor, "emotion layer d_model"] = field(repr=False)
    n: tuple[int, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.vectors.shape[1]

    def __getitem__(self, key: tuple[str, SupportsIndex]) -> Float[Tensor, " d_model"]:
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(f"{key!r} came; a direction is asked for by emotion and layer: S['joy', 6].")
        emotion, layer = key[0], whole_number(key[1], "The layer")
        if not 0 <= layer < self.n_layers:
            raise InputError(f"Layer {layer} is out of range; these directions have layers 0 to {self.n_layers - 1}.")
        if emotion == POOLED:
            weights = torch.tensor(self.n, dtype=self.vectors.dtype)
            return (weights[:, None] * self.vectors[:, layer]).sum(0) / weights.sum()
        if emotion not in self.emotions:
            raise InputError(f"There is no direction of {emotion!r}; there are {', '.join((*self.emotions, POOLED))}.")
        return self.vectors[self.emotions.index(emotion), layer]

    def centred(self) -> "Directions":
        """Each emotion's direction less their mean: which emotion it is, without that it is one."""
        return replace(self, vectors=self.vectors - self.vectors.mean(0), about={**self.about, "centred": True})

    def sharpened(self, k: float) -> "Directions":
        """What emotions share, and `k` times what tells each from the others; 1 is S itself, 0 only what they share."""
        shared, k = self.vectors.mean(0), number(k, "k")
        return replace(self, vectors=shared + k * (self.vectors - shared), about={**self.about, "sharpened": k})

    def scaled(self, strengths: float | Mapping[str, float] | Mapping[int, float]) -> "Directions":
        """Directions times a number, or times one for each emotion or each layer; then alpha 1 is the chosen strength."""
        if not isinstance(strengths, Mapping):
            strengths = dict.fromkeys(self.emotions, number(strengths, "The strength"))
        by_layer = all(isinstance(key, Integral) for key in strengths)
        keys = range(self.n_layers) if by_layer else self.emotions
        if missing := [str(key) for key in keys if key not in strengths]:
            raise InputError(f"Strengths are given for {', '.join(map(str, strengths))}; {', '.join(missing)} lack one.")
        factors = torch.tensor([number(strengths[key], f"The strength of {key}") for key in keys])[:, None]
        factors = factors if by_layer else factors[..., None]
        return replace(self, vectors=self.vectors * factors, about={**self.about, "scaled": factors.flatten().tolist()})

    def matched(self, other: "Directions") -> "Directions":
        """These directions with the lengths of others, emotion by emotion and layer by layer: controls must push as hard."""
        if self.emotions != other.emotions or self.n_layers != other.n_layers:
            raise InputError(
                f"Directions of {', '.join(self.emotions)} in {self.n_layers} layers cannot have the lengths of those of "
                f"{', '.join(other.emotions)} in {other.n_layers}."
            )
        lengths = other.vectors.norm(dim=-1, keepdim=True)
        return replace(self, vectors=normalize(self.vectors, dim=-1) * lengths, about={**self.about, "matched": True})

    def random(self, seed: int = 0, like: Float[Tensor, "sample layer d_model"] | None = None) -> "Directions":
        """Random directions of the same norms, one an emotion and layer: the first control.

        `like` are samples, such as `Differences.vectors`, whose covariance at each layer they then have: the sterner control.
        """
        rng = np.random.default_rng(seed)
        drawn = [
            [
                random_directions(vector, 1, int(rng.integers(2**31)), None if like is None else like[:, layer])[0]
                for layer, vector in enumerate(vectors)
            ]
            for vectors in self.vectors
        ]
        about = {**self.about, "random": seed, "covariance": like is not None}
        return replace(self, vectors=torch.tensor(np.array(drawn), dtype=self.vectors.dtype), about=about)

    def edits(self, emotion: str, layer: SupportsIndex, alpha: float = 1.0, positions: Positions = FROM_LAST) -> list[AddVector]:
        """Steering towards an emotion, as a list of one edit."""
        return [AddVector(layer, self[emotion, layer], alpha, positions)]

    def between_emotions(self, layer: SupportsIndex) -> pd.DataFrame:
        """Cosines between the emotions' directions after a layer."""
        unit = normalize(torch.stack([self[e, layer] for e in self.emotions]), dim=-1)
        return pd.DataFrame((unit @ unit.T).numpy(), index=self.emotions, columns=self.emotions)

    def between_layers(self, emotion: str = POOLED) -> pd.DataFrame:
        """Cosines between one emotion's directions after different layers."""
        unit = normalize(torch.stack([self[emotion, layer] for layer in range(self.n_layers)]), dim=-1)
        return pd.DataFrame((unit @ unit.T).numpy())

    def to_frame(self) -> pd.DataFrame:
        """A row an emotion and layer: its norm and its cosine to the pooled direction."""
        rows = [
            (emotion, layer, float(v.norm()), float(torch.cosine_similarity(v, self[POOLED, layer], 0)))
            for emotion, vectors in zip(self.emotions, self.vectors, strict=True)
            for layer, v in enumerate(vectors)
        ]
        return pd.DataFrame(rows, columns=["emotion", "layer", "norm", "cosine to pooled"])

    def plot(self, layer: SupportsIndex) -> Figure:
        """Cosines between the emotions' directions after a layer, as they are and centred; and between layers, pooled."""
        figure, axes = new_figure(1, 3, width=11.5, height=3.6)
        _cosines(axes[0], self.between_emotions(layer), f"Between emotions, layer {layer}")
        _cosines(axes[1], self.centred().between_emotions(layer), "The same, centred")
        drawn = _cosines(axes[2], self.between_layers(), "Between layers, pooled")
        figure.colorbar(drawn, ax=axes, label="cosine")
        return figure

    def save(self, file: str | Path) -> None:
        """Write a safetensors file, with names and origin in its metadata; OutputError where that cannot be done."""
        about = {"emotions": list(self.emotions), "n": list(self.n), "about": dict(self.about)}
        try:
            with whole(Path(file)) as part:
                save_file({"vectors": self.vectors.contiguous()}, part, metadata={"directions": json.dumps(about)})
        except (OSError, ValueError, SafetensorError) as error:
            raise OutputError(f"Directions cannot be written to {file}: {error}. Choose a place that can be written to.") from error

    @classmethod
    def load(cls, file: str | Path) -> "Directions":
        """Read what `save` wrote; InputError says what is wrong with the file."""
        if not os.path.isfile(file):
            raise InputError(f"There is no file {file}; expected one that Directions.save wrote.")
        try:
            with safe_open(file, "pt") as opened:
                about, vectors = json.loads((opened.metadata() or {})["directions"]), opened.get_tensor("vectors")
            emotions, n = tuple(about["emotions"]), tuple(about["n"])
            if vectors.ndim != 3 or not len(vectors) == len(emotions) == len(n) or not vectors.is_floating_point():
                raise ValueError(f"vectors {list(vectors.shape)} for {len(emotions)} emotions and {len(n)} counts")
            if not all(isinstance(e, str) for e in emotions) or not all(isinstance(k, int) and k >= 0 for k in n):
                raise ValueError(f"emotions {emotions} and counts {n}; expected words and whole numbers")
            return cls(emotions, vectors, n, dict(about["about"]))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{file} holds no directions ({error}); expected a file that Directions.save wrote.") from None


@dataclass(frozen=True, eq=False)
class Differences:
    """`vectors[i, l] = h+[i, l, N] - h-[i, l, N]`: what pair i's emotional side adds after layer l, at the prompt's last token N.

    `emotions` names each pair's emotion; `hits` are the hit rates of the emotional side's stories (1 where none was asked for).
    """

    emotions: tuple[str, ...]
    vectors: Float[Tensor, "pair layer d_model"] = field(repr=False)
    hits: Float[np.ndarray, " pair"] = field(repr=False)
    stories: tuple[str, ...] = field(default=(), repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)

    def valid(self, tau: float = 0.5) -> list[int]:
        """Pairs whose story names the emotion, hit rate above `tau`; InputError, where an emotion has none, says who hit what."""
        kept = [i for i, hit in enumerate(self.hits) if hit > tau]
        _check_enough(self.emotions, self.hits, kept, tau)
        return kept

    def directions(self, tau: float = 0.5) -> Directions:
        """`S[e, l]`: the mean over the valid pairs of each emotion."""
        kept = self.valid(tau)
        return self._means(kept, [self.emotions[i] for i in kept], tau=tau)

    def shuffled(self, tau: float = 0.5, seed: int = 0) -> Directions:
        """Directions of the same pairs with their emotions exchanged at random: the control for "which emotion"."""
        kept = self.valid(tau)
        labels = np.random.default_rng(seed).permutation([self.emotions[i] for i in kept])
        return self._means(kept, labels.tolist(), tau=tau, shuffled=seed)

    def _means(self, kept: Sequence[int], labels: Sequence[str], **about: Any) -> Directions:
        rows = {e: [i for i, label in zip(kept, labels, strict=True) if label == e] for e in dict.fromkeys(self.emotions)}
        means = torch.stack([self.vectors[some].mean(0) for some in rows.values()])
        return Directions(tuple(rows), means, tuple(map(len, rows.values())), {**self.about, **about})


def last_residuals(vlm: VLM, prompts: Iterable[Prompt], batch: int = 32) -> Tensor:
    """The residual stream of prompts at their last token, `batch` of them a forward: [prompt, layer, d_model], float32, CPU."""
    prompts, batch = as_prompts(prompts), whole_number(batch, "batch", 1)
    starts = range(0, len(prompts), batch)
    acts = [a for i in starts for a in collect(vlm, prompts[i : i + batch], ["residual"], positions="last")]
    return torch.stack([a.residual[:, 0].float().cpu() for a in acts])


def _check_enough(emotions: Sequence[str], hits: np.ndarray, kept: Sequence[int], tau: float) -> None:
    of, left = Counter(emotions), Counter(emotions[i] for i in kept)
    empty = [e for e in of if not left[e]]
    if empty:
        best = {e: max(hit for emotion, hit in zip(emotions, hits, strict=True) if emotion == e) for e in empty}
        said = "; ".join(f"{e}: 0 of {of[e]}, the best hit rate is {best[e]:.2f}" for e in empty)
        rest = ", ".join(f"{e} {left[e]} of {of[e]}" for e in of if left[e]) or "none"
        raise InputError(
            f"No pair's story names its emotion with a hit rate above tau = {tau} for {said}. Enough for: {rest}. "
            "Lower tau (-1 keeps all pairs), or give clearer pictures."
        )


def _cosines(axis: Any, frame: pd.DataFrame, title: str) -> Any:
    drawn = axis.imshow(frame.to_numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    for (i, j), value in np.ndenumerate(frame.to_numpy()) if len(frame) <= 8 else ():
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.6 else INK)
    if len(frame) <= 8:
        axis.set_xticks(range(len(frame)), frame.columns, rotation=35, ha="right", fontsize=8)
        axis.set_yticks(range(len(frame)), frame.index, fontsize=8)
    axis.set_title(title, fontsize=10)
    return drawn
