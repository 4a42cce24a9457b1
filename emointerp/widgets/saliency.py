"""Panel of chapter 03: choose a feeling and a method, and see where in the picture it comes from, raw beside smoothed."""

from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets as widgets

from emointerp.emotions import NEUTRAL
from emointerp.markup import data_uri, thumbnail
from emointerp.models import VLM, Tower, load_tower, to_image
from emointerp.sae.emotion import EmotionDirections, emotion_directions
from emointerp.saliency import METHODS, SaliencyMap, Target, answer, saliency_map, toward
from emointerp.saliency.value import over
from emointerp.start_here import EVENT
from emointerp.widgets.panel import Panel, clear_scenes
from emointerp.world import Scene, face_scenes

EMBEDDING, ANSWER, BEGUN = "embedding", "answer", "I felt"
COPIES = (1, 4, 9, 16, 25, 50)
FITTED = 210  # scenes of the split "direction" behind the emotions' directions
WIDTH = 256


def compute(found: SaliencyMap, scene: Any = None) -> str:
    """The picture, whose map shows under the mouse, beside the plain gradient and the map, as HTML; with the truth of a scene."""
    pictures = {"hover: the map": found.hover_html(WIDTH)}
    raw = {} if found.raw is None else {"plain gradient": over(found.image, found.raw)}
    for name, image in (raw | {found.method: found.over()}).items():
        pictures[name] = f'<img src="{data_uri(thumbnail(image))}" width="{WIDTH}" alt="{escape(name)}"/>'
    figures = "".join(
        f'<figure style="margin:0"><figcaption style="font-size:13px">{escape(name)}</figcaption>{picture}</figure>'
        for name, picture in pictures.items()
    )
    said = f"<p>{escape(found.target)} = <b>{found.value:.3f}</b>. {_truth(found, scene)}</p>"
    return f'{said}<div style="display:flex;flex-wrap:wrap;gap:1em">{figures}</div>'


def _truth(found: SaliencyMap, scene: Any) -> str:
    """How much of the map lies on a scene's expression."""
    if not isinstance(scene, Scene) or not scene.has_face:
        return ""
    mask = scene.masks()["expression"]
    inside, area = found.mass(mask), mask.mean()
    return (
        f"{inside:.0%} of the map lies on the expression, which is {area:.0%} of the picture: <b>{inside / area:.1f} times</b> "
        "as much as on any place."
    )


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

    def shown(picture: str, read: str, emotion: str, method: str, sigma: float, n: int) -> str:
        settings = {"sigma": sigma, "n": n} if method == "smoothgrad" else {}
        found = saliency_map(target(picture, read, emotion), to_image(pictures[picture]), method, **settings)
        return compute(found, pictures[picture])

    first = next(iter(pictures))
    controls: dict[str, widgets.Widget] = {
        "picture": widgets.Dropdown(options=list(pictures), description="picture"),
        "read": widgets.Dropdown(options=[EMBEDDING, ANSWER] if vlm else [EMBEDDING], description="read"),
        "emotion": widgets.Dropdown(options=emotions, value=first if first in emotions else emotions[0], description="emotion"),
        "method": widgets.Dropdown(options=list(METHODS), description="method"),
        "sigma": widgets.FloatSlider(0.15, min=0.0, max=1.0, step=0.05, continuous_update=False, description="sigma"),
        "n": widgets.SelectionSlider(options=COPIES, value=25, continuous_update=False, description="n"),
    }
    names = list(controls)
    rows = [widgets.HBox([controls[name] for name in some]) for some in (names[:3], names[3:])]
    return Panel(controls, shown, widgets.VBox(rows))


def _fitted(tower: Tower) -> EmotionDirections:
    scenes = face_scenes("direction", FITTED)
    return emotion_directions(tower.embed(scenes, progress=False), [scene.emotion for scene in scenes])
