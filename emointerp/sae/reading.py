"""What an SAE reads of pictures: the tower's vectors, one a picture or one a patch, at the length that it was trained on."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from emointerp.errors import InputError
from emointerp.models import Tower
from emointerp.models.images import as_pictures
from emointerp.sae.value import SAE, Codes

POOLED, PATCHES = "pooled", "patches"


def inputs(
    sae: SAE, tower: Tower, pixels: Float[Tensor, "n channel height width"]
) -> Float[Tensor, "n d"] | Float[Tensor, "n patch d"]:
    """The vectors of pixels that the SAE encodes; differentiable in `pixels`.

    `sae.about["reads"]` is "pooled" (where nothing is said) or "patches"; `sae.about["unit"]` says that vectors are brought to
    length 1 first, as the public release has them. InputError, both named, where the tower's vectors have another width.
    """
    reads = sae.about.get("reads", POOLED)
    if reads not in (POOLED, PATCHES):
        raise InputError(f"This SAE says that it reads {reads!r}; expected {POOLED!r} or {PATCHES!r} in its `about`.")
    sae.check(tower.d if reads == POOLED else tower.d_patch, tower.name)
    vectors = tower.pooled(pixels) if reads == POOLED else tower.patches(pixels)
    return normalize(vectors, dim=-1) if sae.about.get("unit") else vectors


@torch.no_grad()
def picture_codes(sae: SAE, tower: Tower, pictures: Any, batch: int = 64, progress: bool = True) -> Codes:
    """Codes of pictures, on the CPU: [n, k], or [n, patch, k] of an SAE over patches.

    >>> import emointerp as ei
    >>> pictures = [pair.emotional for pair in ei.world_pairs("test", 3)]
    >>> ei.picture_codes(ei.load_sae("tiny"), ei.load_tower(), pictures, progress=False)
    Codes(3 x 32 of 2048 features)
    """
    pictures = as_pictures(pictures)
    if not pictures:
        raise InputError("No pictures came; give at least one.")
    starts = tqdm(range(0, len(pictures), batch), desc="codes", disable=not progress)
    parts = [sae.encode(inputs(sae, tower, tower.pixels(pictures[i : i + batch])).to(sae.encoder.device)) for i in starts]
    return Codes(*(torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("values", "indices")), sae.d_hidden)
