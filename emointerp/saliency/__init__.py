"""Chapter 03: saliency. Where in the picture is the feeling?

A *target* is a number that a picture moves: the cosine of its embedding to an emotion's direction (`toward`), an SAE's `feature`,
the probability of an emotion's words in a language model's `answer`. A map says how much each pixel matters for it.

- `saliency_map(target, picture, method)`: SmoothGrad, plain gradient, input x gradient, integrated gradients, Grad-CAM, attention
  rollout, or a random map; a `SaliencyMap` draws itself raw beside smoothed.
- `check_maps`: deletion and insertion, and the mass on the true expression, always beside random maps.
- `tune_smoothgrad` chooses noise and copies; `find_registers` marks patches that light up for no reason in the picture.

>>> from emointerp.models import load_tower
>>> from emointerp.world import Scene
>>> import torch
>>> tower = load_tower("tiny")
>>> found = saliency_map(toward(tower, torch.ones(tower.d)), Scene(), n=2)
>>> found.map.shape
(128, 128)
"""

from emointerp.saliency.check import MapCheck, Tuning, check_maps, tune_smoothgrad
from emointerp.saliency.methods import METHODS, smoothed_gradient
from emointerp.saliency.registers import Registers, count_registers, find_registers
from emointerp.saliency.targets import AnswerTarget, Target, TowerTarget, answer, feature, toward
from emointerp.saliency.value import SaliencyMap, plot_methods, saliency_map

__all__ = [
    "METHODS", "AnswerTarget", "MapCheck", "Registers", "SaliencyMap", "Target", "TowerTarget", "Tuning", "answer", "check_maps",
    "count_registers", "feature", "find_registers", "plot_methods", "saliency_map", "smoothed_gradient", "toward",
    "tune_smoothgrad",
]  # fmt: skip
