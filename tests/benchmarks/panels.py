"""How long a panel takes to answer: from setting a control to values that were never asked for until its view is there.

    python tests/benchmarks/run.py --panels [NAME ...] [--json FILE]

On the bundled model, inside one process: what a browser needs to paint is not in it. Each row is one kind of change, made
sixteen times with other values each; a "cold" one brings a picture or an event that the panel has not read yet. Where the first
view is a part, its row says which part, and a second row is until all of it is there. The last two rows are of the browser itself:
from a click on a feature of an explorer in a file until its next frame, for 40 and for 160 features.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

import emointerp
from emointerp import widgets
from emointerp.directions import Directions
from emointerp.emotions import BASIC
from emointerp.heads import HeadMap, head_map
from emointerp.models import VLM, WEIGHTS
from emointerp.models.budget import CONFIGS
from emointerp.pairs import world_pairs
from emointerp.steering import steering_vectors
from emointerp.superposition import train_toys
from emointerp.widgets.panel import Panel
from emointerp.world import Scene, loaded_events, sample

CHANGES = 16
WORDS = "its stories' first words"
GOAL, CLICK = 150, 100  # milliseconds: a panel's view; the first paint of a click on the explorer


@dataclass(frozen=True)
class Kind:
    """One kind of change of a panel: what it is called, and the changes, each of one or several controls.

    `part` says what the first view holds, where it is not all of it.
    """

    name: str
    changes: Sequence[dict[str, Any]]
    part: str = ""


Answering = tuple[Panel, list[Kind]]


def milliseconds(panel: Panel, change: dict[str, Any]) -> tuple[float, float]:
    """The time of one change until the first view and until the panel is done, which are one for most panels.

    Raises where the panel had the answer already, or shows a problem in its place.
    """
    before, seen = panel._compute.cache_info().misses, []
    watch = lambda _: seen.append(perf_counter())  # noqa: E731 - the same one is taken off again
    panel.view.observe(watch, names="value")
    start = perf_counter()
    with ExitStack() as together:  # as a click on a cell sets layer and head
        for name, value in change.items():
            together.enter_context(panel.controls[name].hold_trait_notifications())
            panel.controls[name].value = value
    end = perf_counter()
    panel.view.unobserve(watch, names="value")
    if panel._compute.cache_info().misses == before:
        raise ValueError(f"{change} was asked for before.")
    if 'role="alert"' in panel.view.value:
        raise ValueError(f"{change} brought a problem: {panel.view.value}")
    return 1000 * ((seen or [end])[0] - start), 1000 * (end - start)


def row(name: str, change: str, times: Sequence[float], goal: float = GOAL) -> dict[str, Any]:
    """A row of the table, of times in milliseconds."""
    shares = {"median ms": np.median(times), "90% ms": np.quantile(times, 0.9), "slowest ms": max(times)}
    return {"panel": name, "change": change, "changes": len(times)} | {k: float(v) for k, v in shares.items()} | {"goal ms": goal}


def shown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    return pd.DataFrame(rows).to_string(index=False, float_format="{:.0f}".format)


def measured(names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of the panels named, by default of all."""
    for name in names or [*PANELS, EXPLORER]:
        if name == EXPLORER:
            yield from clicks()
            continue
        panel, kinds = PANELS[name](bundled())
        for kind in kinds:
            first, last = zip(*(milliseconds(panel, change) for change in kind.changes), strict=True)
            if kind.part:
                yield row(name, f"{kind.name}: {kind.part}", first)
            yield row(name, f"{kind.name}, all of it" if kind.part else kind.name, last)  # so that no part passes for the whole
        panel.close_all()


# what is changed


def changes(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Sixteen changes: each control goes through its values side by side with the others."""
    return [dict(zip(values, some, strict=True)) for some in islice(zip(*values.values(), strict=False), CHANGES)]


def every(panel: Panel, **values: Sequence[Any]) -> list[dict[str, Any]]:
    """Sixteen of all combinations of the controls' values but the present one, in an order that changes all of them."""
    combinations = [dict(zip(values, some, strict=True)) for some in product(*values.values())]
    combinations.remove({name: panel.controls[name].value for name in values})
    order = np.random.default_rng(0).permutation(len(combinations))
    return [combinations[i] for i in order[:CHANGES]]


def events() -> list[str]:
    """Events that no panel starts with or offers."""
    return [event for some in zip(*(loaded_events(emotion, "tuning") for emotion in BASIC), strict=False) for event in some]


def scenes() -> dict[str, Scene]:
    """Clear scenes, one more than there are changes, as a panel starts with the first."""
    return {f"scene {i}": one.scene for i, one in enumerate(sample("test", CHANGES + 1, 23, emotions=BASIC))}


@cache
def bundled() -> VLM:
    """The model that comes with the package."""
    return emointerp.load()


@cache
def directions() -> Directions:
    """Steering vectors of a few pairs; how long a story takes does not hang on how good they are."""
    return steering_vectors(bundled(), world_pairs("direction", 24), answer="I felt", progress=False)


@cache
def patched() -> HeadMap:
    """A map of a few pairs."""
    return head_map(bundled(), world_pairs("selection", 12), progress=False)


def start_here(vlm: VLM) -> Answering:
    """Both changes are of a prompt that was never read, told for the picture and for its twin."""
    fade = [0.9 - 0.05 * k for k in range(1, CHANGES + 1)]
    return widgets.start_here(vlm), [
        Kind("event (cold)", changes(event=events()), WORDS),
        Kind("intensity (cold)", changes(intensity=fade), WORDS),
    ]


def superposition(_: VLM) -> Answering:
    """The models are trained before; a slider of as many as there are changes, and the one it starts at."""
    densities = np.geomspace(1, 0.03, CHANGES + 1).round(3).tolist()
    panel = widgets.superposition(train_toys(densities=densities, steps=500, progress=False))
    return panel, [Kind("sparsity", [{"density": d} for d in densities if d != panel.controls["density"].value])]


def sae(_: VLM) -> Answering:
    """A circle of features, built anew, with the pictures of the first."""
    panel = widgets.sae()
    options = {name: panel.controls[name].options for name in ("reads", "emotion", "n")}
    return panel, [Kind("emotion, features and SAE", every(panel, **options))]


def saliency(vlm: VLM) -> Answering:
    """Smoothed gradients of 25 copies, after a first one of fewer; and the plain gradient of pictures that were never read."""
    panel, pictures = widgets.saliency(vlm, scenes()), list(scenes())[1:]
    sigmas = [round(0.2 + 0.05 * k, 2) for k in range(CHANGES)]
    cold = [{"method": "gradient", "picture": name} for name in pictures]
    return panel, [Kind("sigma, 25 copies", changes(sigma=sigmas), "the first 4"), Kind("picture, plain gradient (cold)", cold)]


def steering(vlm: VLM) -> Answering:
    """Strengths up to half the slider, as beyond it a model stammers up to the limit of its tokens; then other events."""
    panel = widgets.steering(vlm, directions(), alpha=0)
    alphas = [k * 7 % 60 * 0.025 for k in range(1, CHANGES + 1)]  # 7 and 60 share no factor: each strength comes once
    return panel, [Kind("alpha", changes(alpha=alphas), WORDS), Kind("event (cold)", changes(event=events()), WORDS)]


def lens(vlm: VLM) -> Answering:
    """Layers and tokens of a prompt that was read; then other pictures."""
    panel = widgets.lens(vlm, scenes())
    read = every(panel, layer=range(vlm.anatomy.n_layers), token=range(panel.controls["token"].max + 1))
    return panel, [Kind("layer and token", read), Kind("picture (cold)", changes(picture=list(scenes())[1:]))]


def heads(vlm: VLM) -> Answering:
    """A click on a cell of the map sets layer and head."""
    panel, anatomy = widgets.heads(vlm, patched(), scenes()), vlm.anatomy
    cells = every(panel, layer=range(anatomy.n_layers), head=range(anatomy.n_heads))
    pictures = changes(picture=list(scenes())[1:])
    return panel, [Kind("head", cells, "all but its neurons"), Kind("picture (cold)", pictures, "all but the head's neurons")]


def veena(vlm: VLM) -> Answering:
    """Heads as a map orders them, and neurons of the last layer: how long a story takes hangs on its length alone."""
    places = [(int(layer), int(head)) for layer, head in patched().top(10).index]
    neurons = [(vlm.anatomy.n_layers - 1, k) for k in range(20)]
    panel = widgets.veena(vlm, places, neurons, l_emo=3)
    return panel, [
        Kind("beta", changes(beta=[2 ** (0.25 * k) for k in range(CHANGES + 8) if k != 12]), WORDS),
        Kind("event (cold)", changes(event=events()), "the story without VEENA"),
    ]


def own_model(_: VLM) -> Answering:
    """Sizes from configurations, known ones and one in a folder, whose name is written in sixteen ways; no model is loaded."""
    panel = widgets.own_model()
    known = every(panel, model=["tiny", *CONFIGS], bits=[16, 8, 4])
    folders = [f"{WEIGHTS / 'tiny'}{'/.' * k}" for k in range(CHANGES)]
    return panel, [Kind("model and bits", known), Kind("folder", changes(own=folders))]


PANELS: dict[str, Callable[[VLM], Answering]] = {
    "start_here": start_here,
    "superposition": superposition,
    "sae": sae,
    "saliency": saliency,
    "steering": steering,
    "lens": lens,
    "heads": heads,
    "veena": veena,
    "own_model": own_model,
}
EXPLORER = "explorer"


# the explorer, in a browser

# The time of the mouse's own event to the frame that follows the change of the page; the frame is painted right after.
_PAINT = """() => { window.painted = new Promise((done) => {
  let clicked = 0;
  addEventListener("click", (event) => { clicked = event.timeStamp; }, { capture: true, once: true });
  new MutationObserver((_, observer) => {
    if (!clicked) return;
    observer.disconnect();
    requestAnimationFrame(() => done(performance.now() - clicked));
  }).observe(document.querySelector(".right"), { childList: true, subtree: true });
}); }"""


def clicks() -> Iterator[dict[str, Any]]:
    """From a click on a feature to the frame that shows its name and pictures; nothing where there is no browser."""
    sys.path.append(str(Path(__file__).parents[1]))
    try:
        from browser import CHROMIUM, chromium, watched
    except ImportError:
        CHROMIUM = None
    if CHROMIUM is None:
        print("The explorer's clicks are left out: they need Chromium and Playwright (pip install playwright).", file=sys.stderr)
        return
    panel = widgets.sae()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for n in (40, 160):
            panel.controls["n"].value = n
            page = panel.explorer.save(Path(folder) / f"{n}.html", progress=False)
            with watched(browser, page.as_uri()) as seen:
                seen.page.goto(page.as_uri())
                yield row(EXPLORER, f"click, {n} features, to the next frame", _clicked(seen.page), CLICK)


def _clicked(page: Any) -> list[float]:
    spots = page.locator(".leaf:not(.selected) .spot")
    times = []
    for i in range(CHANGES):
        page.evaluate(_PAINT)
        spots.nth(2 * i).click()
        times.append(page.evaluate("() => window.painted"))
    return times


def main(names: Sequence[str] | None, file: Path | None) -> None:
    """Measure, print the table, and write the rows where a file is given."""
    rows = list(measured(names))
    print(shown(rows))
    if file:
        file.write_text(json.dumps(rows, indent=1) + "\n")
