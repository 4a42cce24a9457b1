"""Panel of chapter 03: choose a feeling and a method, and see where in the picture it comes from, raw beside smoothed.

What hangs on picture and target alone (plain gradient, value, registers) is kept. Before a map of many noisy copies comes one of
the first few of them, and says so.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
from jaxtyping import Bool

from emointerp.emotions import NEUTRAL
from emointerp.markup import data_uri, thumbnail
from emointerp.models import VLM, Tower, load_tower, to_image
from emointerp.plots import ShownFigure
from emointerp.sae.emotion import EmotionDirections, emotion_directions
from emointerp.saliency import METHODS, SaliencyMap, Target, answer, saliency_map, toward
from emointerp.saliency.value import over
from emointerp.start_here import EVENT
from emointerp.widgets.panel import Panel, arranged, clear_scenes
from emointerp.world import Scene, face_scenes

EMBEDDING, ANSWER, BEGUN = "embedding", "answer", "I felt"
COPIES = (1, 4, 9, 16, 25, 50)
FEW, MANY = 4, 16  # copies that are shown first, where so many or more are asked for
FITTED = 210  # scenes of the split "direction" behind the emotions' directions
WIDTH = 256


def mapped(target: Target, plain: SaliencyMap, method: str, **settings: Any) -> SaliencyMap:
    """What `saliency_map` gives of the same target and picture, made of its map by the plain gradient."""
    if method == plain.method:
        return plain
    found = METHODS[method](target, plain.image, **settings)
    if not np.isfinite(found).all() or not found.any():
        return saliency_map(target, plain.image, method, **settings)  # which says what is wrong
    return replace(plain, map=found, method=method, settings=settings)


def compute(found: SaliencyMap, scene: Any = None, of: int | None = None) -> str:
    """The picture, whose map shows under the mouse, beside the plain gradient and the map, as HTML; with the truth of a scene.

    `of` is how many noisy copies there are to be, where the map is a first one of fewer.
    """
    pictures = {"hover: the map": found.hover_html(WIDTH)}
    raw = {} if found.raw is None else {"plain gradient": over(found.image, found.raw)}
    for name, image in (raw | {found.method: found.over()}).items():
        pictures[name] = f'<img src="{data_uri(thumbnail(image))}" width="{WIDTH}" alt="{escape(name)}"/>'
    figures = "".join(
        f'<figure style="margin:0"><figcaption><small>{escape(name)}</small></figcaption>{picture}</figure>'
        for name, picture in pictures.items()
    )
    lead, times, end = _truth(found, scene)
    truth = f"{lead}<b>{times}</b>{end}" if times else ""
    said = f"<p>{escape(found.target)} = <b>{found.value:.3f}</b>. {truth}{_copies(found, of)}</p>"
    return f'{said}<div class="columns">{figures}</div>'


def _copies(found: SaliencyMap, of: int | None) -> str:
    """How many noisy copies a map stands on."""
    n = found.settings.get("n")
    if n is None:
        return ""
    return f" The map is a mean over {n} noisy cop{'y' if n == 1 else 'ies'}{f' so far, of {of}' if of else ''}."


def draw(found: SaliencyMap, scene: Any = None) -> ShownFigure:
    """The same as a figure; the map beside the picture and the plain gradient."""
    figure, truth = found.plot(), "".join(_truth(found, scene))
    figure.set_figheight(3.5)
    said = f"{found.target} = {found.value:.3f}.\n{truth}".strip()
    figure.suptitle(said, fontsize=10, x=0.01, ha="left", parse_math=False)
    return figure


def _truth(found: SaliencyMap, scene: Any) -> tuple[str, str, str]:
    """How much of the map lies on a scene's expression, the number in the middle; empty words where that is not known."""
    if not isinstance(scene, Scene) or not scene.has_face:
        return "", "", ""
    mask = _expression(scene)
    inside, area = found.mass(mask), mask.mean()
    lead = f"{inside:.0%} of the map lies on the expression, which is {area:.0%} of the picture: "
    return lead, f"{inside / area:.1f} times", " as much as on a place of that size on average."


@lru_cache(maxsize=64)
def _expression(scene: Scene) -> Bool[np.ndarray, "row column"]:
    """Where a scene's expression is; it is drawn twice to know that."""
    return scene.masks()["expression"]


def saliency(
    source: VLM | Tower | None = None,
    pictures: Mapping[str, Any] | None = None,
    directions: EmotionDirections | None = None,
    event: str = EVENT,
) -> Panel:
    """A panel over pictures, emotions and methods; `source` is a VLM or a tower, the bundled tower by default.

    What is read is the embedding's cosine to an emotion's direction (`emotion_directions` of drawn scenes, or yours) or, of a VLM,
    the log probability of the emotion's words next after "I felt". Controls: "picture", "read", "emotion", "method", "sigma", "n".
    """
    tower, vlm = load_tower(source or "tiny"), source if isinstance(source, VLM) else None
    pictures = pictures or clear_scenes()
    directions = directions or _fitted(tower)
    emotions = [emotion for emotion in directions.emotions if emotion != NEUTRAL]

    def target(picture: str, read: str, emotion: str) -> Target:
        if read == EMBEDDING or vlm is None:
            return toward(tower, directions.vector(emotion), emotion)
        return answer(vlm, vlm.prompt(pictures[picture], event, answer=BEGUN), emotion)

    @lru_cache(maxsize=32)
    def plain(picture: str, read: str, emotion: str) -> tuple[Target, SaliencyMap]:
        f = target(picture, read, emotion)
        return f, saliency_map(f, to_image(pictures[picture]), "gradient")

    @lru_cache(maxsize=32)
    def shown(picture: str, read: str, emotion: str, method: str, sigma: float, n: int) -> tuple[SaliencyMap, Any]:
        settings = {"sigma": sigma, "n": n} if method == "smoothgrad" else {}
        return mapped(*plain(picture, read, emotion), method, **settings), pictures[picture]

    def early(method: str, n: int, **values: Any) -> str | None:
        if method != "smoothgrad" or n < MANY:
            return None
        return compute(*shown(**values, method=method, n=FEW), of=n)

    controls = _controls(list(pictures), emotions, [EMBEDDING, ANSWER] if vlm else [EMBEDDING])
    return Panel(
        controls,
        lambda **values: compute(*shown(**values)),
        arranged(controls),
        first=early,
        draw=lambda **values: draw(*shown(**values)),
    )


def _controls(pictures: list[str], emotions: list[str], reads: list[str]) -> dict[str, widgets.Widget]:
    return {
        "picture": widgets.Dropdown(options=pictures, description="picture"),
        "read": widgets.Dropdown(options=reads, description="read"),
        "emotion": widgets.Dropdown(
            options=emotions, value=pictures[0] if pictures[0] in emotions else emotions[0], description="emotion"
        ),
        "method": widgets.Dropdown(options=list(METHODS), description="method"),
        "sigma": widgets.FloatSlider(0.15, min=0.0, max=1.0, step=0.05, continuous_update=False, description="sigma"),
        "n": widgets.SelectionSlider(options=COPIES, value=25, continuous_update=False, description="copies"),
    }


def _fitted(tower: Tower) -> EmotionDirections:
    scenes = face_scenes("direction", FITTED)
    return emotion_directions(tower.embed(scenes, progress=False), [scene.emotion for scene in scenes])
