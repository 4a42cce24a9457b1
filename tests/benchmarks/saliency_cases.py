"""SmoothGrad against Captum's NoiseTunnel and the blog's loop, all with the same noise."""

from functools import partial
from unittest.mock import patch

import torch
from captum.attr import NoiseTunnel, Saliency
from case import Case, Numbers, Peer, Section
from subjects import SUBJECTS, Subject

from emointerp.models import load_tower
from emointerp.saliency import TowerTarget, smoothed_gradient, toward

COPIES, SIGMA = 25, 0.15


def _noise(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(COPIES, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)


def _captum(target: TowerTarget, x: torch.Tensor) -> Numbers:
    """Captum draws its noise with `torch.normal`; here it is given ours."""
    with patch.object(torch, "normal", lambda mean, deviations: deviations * _noise(x)):
        tunnel, asked = NoiseTunnel(Saliency(target)), {"nt_samples": COPIES, "stdevs": float(SIGMA * x.std())}
        found = tunnel.attribute(x.clone().requires_grad_(), nt_type="smoothgrad", abs=True, **asked)
    return {"map": found[0].mean(0)}


def _loop(target: TowerTarget, x: torch.Tensor) -> Numbers:
    """The blog's: a noisy copy after the other."""
    total = torch.zeros_like(x[0, 0])
    for eps in _noise(x):
        noisy = (x + eps * SIGMA * x.std()).requires_grad_(True)
        (found,) = torch.autograd.grad(target(noisy).sum(), noisy)
        total += found[0].abs().mean(0)
    return {"map": total / COPIES}


def smoothgrad(subject: Subject) -> Case:
    """A map of 25 noisy copies of a picture of noise, for a cosine to a direction of the tower's pooled vectors."""
    tower = load_tower(subject.vlm)
    target = toward(tower, torch.ones(tower.d))
    x = target.pixels([subject.prompt.image])
    return Case(
        lambda: {"map": smoothed_gradient(target, x, COPIES, SIGMA).mean(0)},
        {"Captum": Peer(partial(_captum, target, x)), "loop": Peer(partial(_loop, target, x))},
    )


SECTION = Section(SUBJECTS, {"smoothgrad": smoothgrad})
