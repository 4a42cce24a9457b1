"""Chapter 02: sparse autoencoders. A vector of 1152 numbers, told as the few features that fire.

- `SAE`: a top-k autoencoder as a value, tied or not; `encode` gives `Codes`, (values, indices) of width k, never a dense code.
- `train_sae`: sparse gradients, dead features brought back, and runs that go on where they were cut off.
- `quality`, `monosemanticity`, `best_features`: what is kept, how much alike a feature's pictures are, and which feature tells a
  known factor.
- `emotion_directions`, `emotion_scores`: emotions as directions in feature space, and how well they rank pictures.
- `signifier_audit`: which of their features read props, weather or clothes and not the face. `feature_tree`: features by kinship.
- `feature_meanings`: what features mean: their pictures, the factors they tell, captions, companions.
- `load_sae`, `save_sae`: our form, SAELens', sparsify's, and the public release over SigLIP.

>>> import torch
>>> vectors = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
>>> sae = train_sae(vectors, SaeRecipe(d_hidden=64, k=4, steps=3, batch=32))
>>> codes = sae.encode(vectors)
>>> codes.values.shape, codes.mean().shape
(torch.Size([512, 4]), torch.Size([64]))
"""

from emointerp.sae.emotion import (
    EmotionDirections,
    EmotionScores,
    Labelled,
    emotion_directions,
    emotion_scores,
    label_table,
)
from emointerp.sae.files import load_sae, save_sae
from emointerp.sae.learning import SaeRecipe, train_sae
from emointerp.sae.meaning import Features, feature_meanings, with_emotions
from emointerp.sae.metrics import FactorScores, Quality, aurocs, best_features, monosemanticity, quality
from emointerp.sae.reading import picture_codes
from emointerp.sae.signifiers import SignifierAudit, changed, mixed_scenes, signifier_audit
from emointerp.sae.tree import FeatureTree, feature_tree
from emointerp.sae.value import SAE, Codes

__all__ = [
    "Codes", "EmotionDirections", "EmotionScores", "FactorScores", "FeatureTree", "Features", "Labelled", "Quality", "SAE",
    "SaeRecipe", "SignifierAudit", "aurocs", "best_features", "changed", "emotion_directions", "emotion_scores",
    "feature_meanings", "feature_tree", "label_table", "load_sae", "mixed_scenes", "monosemanticity", "picture_codes",
    "quality", "save_sae", "signifier_audit", "train_sae", "with_emotions",
]  # fmt: skip
