"""How far a picture lies from those a model was trained on, measured in the vision tower's embedding.

Mahalanobis distance from the training pictures (Lee et al. 2018), beside the distances of held-out pictures of the same
world. Taken halfway up the tower: the pooled embedding at its end keeps only what training asked for, and holds noise for
an ordinary drawing (measured: percentile 43).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from emointerp.errors import ModelError
from emointerp.models.images import to_image
from emointerp.models.vlm import VLM

FILE = "familiarity.safetensors"


@dataclass(frozen=True)
class Familiarity:
    """`distance` in standard deviations of the training pictures, `percentile` (0-100) among held-out pictures.

    `typical` is the median distance of the held-out pictures.
    """

    distance: float
    percentile: float
    typical: float

    @property
    def far(self) -> bool:
        """True where fewer than one held-out picture in twenty lies as far out."""
        return self.percentile > 95.0

    def __str__(self) -> str:
        ratio = f"{self.distance / self.typical:.1f} times the median distance of the drawn world's own pictures"
        place = f"farther out than {self.percentile:.0f}% of them"
        return f"{'far from' if self.far else 'like'} the training pictures: {ratio}, {place}"


@torch.no_grad()
def embeddings(vlm: VLM, pictures: list[Any], batch: int = 64) -> np.ndarray:
    """Mean and standard deviation over the patches halfway up the vision tower, float32 [pictures, 2 * d_model]."""
    rows = []
    for start in range(0, len(pictures), batch):
        images = [to_image(p) for p in pictures[start : start + batch]]
        pixels = vlm.processor.image_processor(images=images, return_tensors="pt")
        layers = vlm.model.model.vision_tower(**vlm.placed(dict(pixels)), output_hidden_states=True).hidden_states
        middle = layers[len(layers) // 2].float()
        rows.append(torch.cat([middle.mean(1), middle.std(1)], dim=1).cpu().numpy())
    return np.concatenate(rows)


def fit(train: np.ndarray, held_out: np.ndarray, folder: Path, shrinkage: float = 1e-3) -> None:
    """Keep mean, whitening matrix and the sorted distances of held-out embeddings beside the weights."""
    mean, covariance = train.mean(0), np.cov(train.T)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(mean) * np.eye(len(mean))
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    distances = np.sort(np.linalg.norm((held_out - mean) @ whiten, axis=1))
    tensors = {"mean": mean, "whiten": whiten, "distances": distances}
    save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in tensors.items()}, folder / FILE)


def familiarity(vlm: VLM, picture: Any) -> Familiarity | None:
    """How familiar a picture is to the model; None for a model that carries no statistics of its training pictures."""
    if vlm.folder is None or not (Path(vlm.folder) / FILE).exists():
        return None
    kept = _kept(Path(vlm.folder) / FILE)
    distance = float(np.linalg.norm((embeddings(vlm, [picture])[0] - kept["mean"]) @ kept["whiten"]))
    percentile = 100.0 * float(np.searchsorted(kept["distances"], distance)) / len(kept["distances"])
    return Familiarity(distance, percentile, float(np.median(kept["distances"])))


def _kept(file: Path) -> dict[str, np.ndarray]:
    """What `fit` wrote."""
    try:
        kept = load_file(file)
        return {name: kept[name] for name in ("mean", "whiten", "distances")}
    except (SafetensorError, KeyError) as error:
        raise ModelError(
            f"{file} is damaged or of something else ({error}). Copy the model again, or take this file away."
        ) from None
