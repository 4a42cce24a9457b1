"""How much the tour measures: all of it, or less where a model is slow; and what that will take, from two speeds of this model.

The estimate counts what each chapter has the model do (pictures embedded, prompts read, with and without gradients, stories told)
and multiplies by the seconds of one: measured on this machine (`Pace.measured`), or computed for a GPU (`Pace.expected`). It is
good to a factor of about two, enough to tell minutes from hours.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from emointerp.models import VLM
from emointerp.models.anatomy import Anatomy
from emointerp.models.budget import GPU, Budget
from emointerp.tracing import collect

LIMIT = 15 * 60  # seconds, beyond which the tour of a slow model is cut down
GRADIENT = 3.0  # a forward and its gradients, beside a forward
BRANCHES = 150  # interventions at the last token that take as long as reading a prompt
TOKENS, BATCH = 48, 8  # of a story; stories told together


@dataclass(frozen=True)
class Sizes:
    """Numbers of pictures, pairs, draws (2 or more, but of random maps) and layers at most, by chapter; the page says `name`."""

    name: str = "full"
    start_here: Mapping[str, int] = field(default_factory=lambda: {"test": 140, "conflict": 90})
    superposition: Mapping[str, int] = field(default_factory=lambda: {"direction": 200, "test": 100})
    sae: Mapping[str, int] = field(default_factory=lambda: {"direction": 490, "selection": 140, "test": 350})
    saliency: Mapping[str, int] = field(default_factory=lambda: {"pictures": 18, "copies": 9, "steps": 5, "draws": 2})
    lens: Mapping[str, int] = field(default_factory=lambda: {"pictures": 60, "pairs": 18})
    steering: Mapping[str, int] = field(
        default_factory=lambda: {"direction": 120, "selection": 12, "tuning": 36, "test": 24, "layers": 12, "draws": 6}
    )
    heads: Mapping[str, int] = field(default_factory=lambda: {"selection": 24, "test": 24, "sets": 100, "neurons": 30})
    veena: Mapping[str, int] = field(default_factory=lambda: {"tuning": 18, "conflict": 36, "neutrals": 24, "draws": 2})


FULL = Sizes()
QUICK = Sizes(
    "quick",
    start_here={"test": 42, "conflict": 24},
    superposition={"direction": 200, "test": 100},
    sae={"direction": 245, "selection": 70, "test": 210},
    saliency={"pictures": 6, "copies": 6, "steps": 4, "draws": 1},
    lens={"pictures": 24, "pairs": 8},
    steering={"direction": 60, "selection": 6, "tuning": 12, "test": 12, "layers": 6, "draws": 3},
    heads={"selection": 18, "test": 12, "sets": 40, "neurons": 10},
    veena={"tuning": 12, "conflict": 18, "neutrals": 12, "draws": 2},
)
NAMED = {some.name: some for some in (FULL, QUICK)}


@dataclass(frozen=True)
class Pace:
    """Seconds of reading one prompt, and of telling one story where several are told together."""

    read: float
    story: float

    @classmethod
    def measured(cls, vlm: VLM, picture: Any, event: str) -> "Pace":
        """Of this model on this machine; the quicker of two readings, as the first warms up. A slow model tells few words."""
        prompt = vlm.prompt(picture, event)
        read = min(_seconds(lambda: collect(vlm, prompt, ["residual"], positions="last")) for _ in range(2))
        few = _seconds(lambda: vlm.generate(prompt, max_new_tokens=4))
        if few > 2:
            return cls(read, read + max(0.0, few - read) / 3 * TOKENS)
        return cls(read, _seconds(lambda: vlm.generate([prompt] * BATCH, batch=BATCH, max_new_tokens=TOKENS)) / BATCH)

    @classmethod
    def expected(cls, budget: Budget, gpu: GPU) -> "Pace":
        """Of a model that was never loaded, by the formulas of `emointerp.models.expect`."""
        batch = min(BATCH, budget.batch(gpu))
        read = budget.prompt_seconds(gpu)
        return cls(read, read + TOKENS * budget.step_seconds(gpu, batch) / batch)


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds(sizes: Sizes, pace: Pace, anatomy: Anatomy, pictures: int, sae: bool = False) -> dict[str, float]:
    """What each chapter will take, by its name; `pictures` of the user's own, `sae`: whether one comes with the model."""
    s, m, h, v = sizes.steering, sizes.saliency, sizes.heads, sizes.veena
    layers, emotions = anatomy.n_layers, 6
    gradients = m["copies"] + 3
    seen = gradients * GRADIENT + (m["draws"] + 6) * 2 * (m["steps"] + 1)  # maps, and what deletion and insertion read
    roads = 2 * GRADIENT + 2 * 3 * (layers + 3) / 2 + 8  # flow; patches of V, Q and L, from half-way on average; cuts
    tried = s["selection"] * min(layers, s["layers"]) * 2 + s["tuning"] * 4
    pushed = tried + s["test"] * (1 + 3 * s["draws"] + emotions) + pictures * emotions
    mapped = (h["selection"] + h["test"]) * (2 + layers * anatomy.n_heads / BRANCHES)
    checked = h["test"] * (5 + 3 * h["sets"] / BRANCHES * 2) + (h["selection"] + h["test"]) * (2 * GRADIENT + 2)
    strengths = 2 * v["tuning"] * 6 + (v["conflict"] + v["neutrals"]) * (4 + v["draws"]) + pictures
    told = sizes.start_here["test"] + 5 * sizes.start_here["conflict"] + 2 * pictures
    reads = {
        "superposition": 2 * sum(sizes.superposition.values()),
        "sae": sum(sizes.sae.values()) if sae else 0,
        "saliency": m["pictures"] * seen + pictures * m["copies"] * GRADIENT,
        "lens": 2 * sizes.lens["pictures"] + sizes.lens["pairs"] * roads + pictures,
        "steering": 2 * s["direction"] + 2 * pushed,
        "heads": mapped + checked + 2 * pictures,
        "veena": 2 * v["tuning"] * 6,
    }
    stories = {"start_here": told, "steering": pushed, "veena": strengths}
    return {name: reads.get(name, 0) * pace.read + stories.get(name, 0) * pace.story for name in ("start_here", *reads)}


def spoken(n: float) -> str:
    """Seconds as people say them.

    >>> spoken(0.034), spoken(7.2), spoken(200), spoken(9000)
    ('0.03 s', '7 s', '3 minutes', '2.5 hours')
    """
    if n < 1:
        return f"{n:.2f} s"
    if n < 90:
        return f"{n:.0f} s"
    return f"{n / 60:.0f} minutes" if n < 5400 else f"{n / 3600:.1f} hours"
