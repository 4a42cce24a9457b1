"""How much the tour measures: all of it, or less where a model is slow; and what that will take, from two speeds of this model.

The estimate counts what each chapter has the model do (pictures embedded, prompts read, with and without gradients, stories told)
and multiplies by the seconds of one, measured with this model on this machine (`Pace.measured`). It is good to a factor of about
two, enough to tell minutes from hours.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from emointerp.errors import InputError
from emointerp.models import VLM, expect
from emointerp.models.anatomy import Anatomy
from emointerp.models.budget import GPU
from emointerp.tracing import collect
from emointerp.world import sample

LIMIT = 15 * 60  # seconds, beyond which the tour of a slow model is cut down
GRADIENT = 3.0  # a forward and its gradients, beside a forward
BRANCHES = 150  # interventions at the last token that take as long as reading a prompt
TOKENS, BATCH = 48, 32  # of a story; stories told together where memory does not bind
PATIENCE = 20  # seconds of telling a few words, times the stories told together, beyond which one story's pace is worked out


@dataclass(frozen=True)
class Sizes:
    """Numbers of pictures, pairs, draws (of steering 2 or more) and layers at most, by chapter; the page says `name`.

    A chapter takes all of its numbers: `Sizes("mine", saliency={**FULL.saliency, "pictures": 6})`. InputError for others.
    """

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

    def __post_init__(self) -> None:
        for one in fields(self)[1:]:
            _check_numbers(one.name, getattr(self, one.name), one.default_factory())


def _check_numbers(chapter: str, given: Mapping[str, int], full: Mapping[str, int]) -> None:
    """Refuse names that a chapter does not know, missing ones, and numbers below the least."""
    least = {name: 2 if (chapter, name) == ("steering", "draws") else 1 for name in full}
    wrong = [f"{name} is missing" for name in full if name not in given]
    wrong += [f"{name} is not known" for name in given if name not in full]
    wrong += [
        f"{name} is {n!r}, expected {least[name]} or more"
        for name, n in given.items()
        if name in full and (isinstance(n, bool) or not isinstance(n, int) or n < least[name])
    ]
    if wrong:
        raise InputError(f"Sizes of the chapter {chapter}: {'; '.join(wrong)}. Expected whole numbers for {', '.join(full)}.")


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
    def measured(cls, vlm: VLM, picture: Any, event: str, batch: int = BATCH) -> "Pace":
        """Of this model on this machine; the quicker of two readings, as the first warms up. A slow model tells few words."""
        prompt = vlm.prompt(picture, event)
        read = min(_seconds(lambda: collect(vlm, prompt, ["residual"], positions="last")) for _ in range(2))
        few = _seconds(lambda: vlm.generate(prompt, max_new_tokens=4))
        if few * batch > PATIENCE:
            return cls(read, read + max(0.0, few - read) / 3 * TOKENS)
        return cls(read, _seconds(lambda: vlm.generate([prompt] * batch, batch=batch, max_new_tokens=TOKENS)) / batch)


def stories_together(vlm: VLM, pictures: Sequence[Any], event: str) -> int:
    """How many stories to tell at a time: on a GPU as many as its memory holds (`Budget.batch`) with the largest picture."""
    if vlm.device.type != "cuda":
        return BATCH
    prompts = [vlm.prompt(picture, event) for picture in (*pictures, sample("test", 1)[0].scene)]
    longest = max(prompts, key=len)
    visual, bits = len(longest.visual), next((n for n in (4, 8) if getattr(vlm.model, f"is_loaded_in_{n}bit", False)), None)
    devices = {vlm.device} | {p.device for p in vlm.model.parameters() if p.device.type == "cuda"}
    memory = sum(torch.cuda.mem_get_info(device)[1] for device in devices)
    budget = expect(vlm, visual=visual, text=len(longest) - visual, bits=bits)
    return max(1, budget.batch(GPU(memory, math.inf, math.inf)))


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds(sizes: Sizes, pace: Pace, anatomy: Anatomy, pictures: int, sae: bool = False) -> dict[str, float]:
    """What each chapter will take, by its name, in the order of the page.

    `pictures`: how many of the user's own; `sae`: whether one comes with the model.
    """
    s, m, h, v = sizes.steering, sizes.saliency, sizes.heads, sizes.veena
    layers, emotions = anatomy.n_layers, 6
    gradients = m["copies"] + 3
    seen = gradients * GRADIENT + (m["draws"] + 6) * 2 * (m["steps"] + 1)  # maps, and what deletion and insertion read
    roads = 2 * GRADIENT + 2 * 3 * (layers + 3) / 2 + 8  # flow; patches of V, Q and L, from half-way on average; cuts
    roads += 5 * 3 * 3 / 2 + 3  # thirds of the layers beside controls
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
        "steering": 2 * s["direction"] + 2 * pushed,
        "lens": 2 * sizes.lens["pictures"] + sizes.lens["pairs"] * roads + pictures,
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
