"""Panel of chapter 00: type an event, pick a picture (or bring one), read the answer beside that of the neutral twin."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import ipywidgets as widgets

from emointerp.emotions import BASIC
from emointerp.models import VLM, to_image
from emointerp.models.images import uploaded
from emointerp.plots import ShownFigure
from emointerp.start_here import EVENT, TWIN, Reading, Telling, read, with_twin
from emointerp.widgets.drawing import FAINT, Sheet
from emointerp.widgets.panel import Panel, arranged, clear_scenes
from emointerp.widgets.streaming import stories_so_far
from emointerp.world import Scene, loaded_events
from emointerp.world.scene import with_intensity

EVENTS = (EVENT, *(loaded_events(emotion, "test")[0] for emotion in BASIC))


def compute(reading: Reading) -> str:
    """The reading of one picture beside an event, as HTML."""
    parts = [reading.telling._repr_html_()]
    if reading.twin is not None:
        parts.append(f"<b>{TWIN}</b>" + reading.twin._repr_html_())
    if reading.familiarity is not None:
        parts.append(f'<small class="muted">This picture is {reading.familiarity}.</small>')
    return "".join(parts)


def begun_html(pictures: Sequence[Any], event: str, texts: Sequence[str]) -> str:
    """The same while the stories are being told, of the picture and, if it has one, its twin."""
    emotions = [one.emotion if isinstance(one, Scene) else None for one in pictures]
    told = [Telling(to_image(one), event, *rest, whole=False) for one, *rest in zip(pictures, texts, emotions, strict=True)]
    return compute(Reading(told[0], told[1] if told[1:] else None, None))


def draw(reading: Reading) -> ShownFigure:
    """The same as a figure."""
    sheet = Sheet(560)
    y = _draw_telling(sheet, 0, reading.telling)
    if reading.twin is not None:
        y = sheet.text(0, y + 12, TWIN, size=10, weight="bold")
        y = _draw_telling(sheet, y + 6, reading.twin)
    if reading.familiarity is not None:
        sheet.text(0, y + 6, f"This picture is {reading.familiarity}.", size=9, color=FAINT)
    return sheet.figure("A picture, an event and the story told of them")


def _draw_telling(sheet: Sheet, top: float, telling: Telling) -> float:
    """The picture, and beside it the event, the story and what it names."""
    bottom = sheet.picture(0, top, telling.picture, 112)
    known = f"the picture shows {telling.emotion}" if telling.emotion else "what it shows is not known"
    y = sheet.text(128, top + 6, telling.event, size=10, color=FAINT)
    y = sheet.text(128, y + 4, telling.story, marks=telling.words, size=12)
    names = f"{known}; the story names {', '.join(telling.named) or 'no emotion'}"
    return max(bottom, sheet.text(128, y + 4, names, size=9, color=FAINT))


class StartHerePanel(Panel):
    """The controls "picture", "intensity", "own" and "event"; the story beside that of the neutral twin."""

    def __init__(self, vlm: VLM, scenes: dict[str, Scene]):
        @lru_cache(maxsize=64)
        def reading(picture: str, intensity: float, own: tuple, event: str) -> Reading:
            shown = uploaded(*own[0]) if own else with_intensity(scenes[picture], intensity)
            pictures = with_twin(shown)
            watch = stories_so_far(vlm, len(pictures), lambda texts: self.so_far(begun_html(pictures, event, texts)))
            return read(vlm, shown, event, logits_processor=watch)

        controls = _controls(scenes)
        super().__init__(
            controls,
            lambda **values: compute(reading(**values)),
            arranged(controls, wide=("event",)),
            draw=lambda **values: draw(reading(**values)),
            overrides={"own": ("picture", "intensity")},
        )


def _controls(scenes: dict[str, Scene]) -> dict[str, widgets.Widget]:
    controls: dict[str, widgets.Widget] = {
        "picture": widgets.Dropdown(options=list(scenes), value=next(iter(scenes)), description="picture"),
        "intensity": widgets.FloatSlider(value=0.9, min=0, max=1, step=0.05, continuous_update=False, description="intensity"),
        "own": widgets.FileUpload(accept="image/*", multiple=False, description="own picture"),
        "event": widgets.Combobox(value=EVENT, options=EVENTS, continuous_update=False, description="event", ensure_option=False),
    }
    controls["picture"].observe(lambda _: setattr(controls["own"], "value", ()), names="value")
    return controls


def start_here(vlm: VLM, scenes: dict[str, Scene] | None = None) -> StartHerePanel:
    """A panel to try pictures and events; `scenes` maps names to scenes, by default one clear test picture an emotion.

    Moving `intensity` fades the expression. An uploaded picture takes the place of the chosen one until another is chosen. While
    the stories are told, their first words are shown.
    """
    return StartHerePanel(vlm, scenes or clear_scenes())
