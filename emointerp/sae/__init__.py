"""Chapter 02: sparse autoencoders. A vector of 1152 numbers, told as the few features that fire.

- `SAE`: a top-k autoencoder as a value, tied or not; `encode` gives `Codes`, (values, indices) of width k, never a dense code.
- `train_sae`: sparse gradients, dead features brought back, and runs that go on where they were cut off.
- `quality`, `monosemanticity`, `best_features`: what is kept, how much alike a feature's pictures are, and which feature tells a
  known factor.
- `load_sae`, `save_sae`: our form, SAELens', sparsify's, and the public release over SigLIP.

>>> import torch
>>> vectors = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
>>> sae = train_sae(vectors, SaeRecipe(d_hidden=64, k=4, steps=3, batch=32))
>>> codes = sae.encode(vectors)
>>> codes.values.shape, codes.mean().shape
(torch.Size([512, 4]), torch.Size([64]))
"""

from emointerp.sae.files import load_sae, save_sae
from emointerp.sae.learning import SaeRecipe, train_sae
from emointerp.sae.metrics import FactorScores, Quality, aurocs, best_features, monosemanticity, quality
from emointerp.sae.reading import picture_codes
from emointerp.sae.value import SAE, Codes

__all__ = [
    "SAE", "Codes", "FactorScores", "Quality", "SaeRecipe", "aurocs", "best_features", "load_sae", "monosemanticity",
    "picture_codes", "quality", "save_sae", "train_sae",
]  # fmt: skip
