"""Panel of chapter 00: type an event, pick a picture (or bring one), read the answer beside that of the neutral twin."""

import io
from typing import Any

import ipywidgets as widgets
from PIL import Image, UnidentifiedImageError

from emointerp.emotions import BASIC
from emointerp.errors import InputError
from emointerp.models import VLM
from emointerp.start_here import EVENT, TWIN, read
from emointerp.widgets.panel import Panel, clear_scenes
from emointerp.world import Scene, loaded_events
from emointerp.world.scene import with_intensity

EVENTS = (EVENT, *(loaded_events(emotion, "test")[0] for emotion in BASIC))
_WIDE = widgets.Layout(width="46em")


def compute(vlm: VLM, picture: Any, event: str) -> str:
    """The reading of one picture beside an event, as HTML."""
    reading = read(vlm, picture, event)
    parts = [reading.telling._repr_html_()]
    if reading.twin is not None:
        parts.append(f"<b>{TWIN}</b>" + reading.twin._repr_html_())
    if reading.familiarity is not None:
        parts.append(f"<small>This picture is {reading.familiarity}.</small>")
    return "".join(parts)


def start_here(vlm: VLM, scenes: dict[str, Scene] | None = None) -> Panel:
    """A panel to try pictures and events; `scenes` maps names to scenes, by default one clear test picture an emotion.

    Moving `intensity` fades the expression. An uploaded picture takes the place of the chosen one until another is chosen.
    """
    scenes = scenes or clear_scenes()
    controls: dict[str, widgets.Widget] = {
        "emotion": widgets.Dropdown(options=list(scenes), value=next(iter(scenes)), description="picture"),
        "intensity": widgets.FloatSlider(value=0.9, min=0, max=1, step=0.05, continuous_update=False, description="intensity"),
        "event": widgets.Combobox(
            value=EVENT, options=EVENTS, continuous_update=False, description="event", ensure_option=False, layout=_WIDE
        ),
        "own": widgets.FileUpload(accept="image/*", multiple=False, description="own picture"),
    }

    controls["emotion"].observe(lambda _: setattr(controls["own"], "value", ()), names="value")

    def show(emotion: str, intensity: float, event: str, own: tuple) -> str:
        picture = _uploaded(own) if own else with_intensity(scenes[emotion], intensity)
        return compute(vlm, picture, event)

    layout = widgets.VBox([widgets.HBox([controls["emotion"], controls["intensity"], controls["own"]]), controls["event"]])
    return Panel(controls, show, layout)


def _uploaded(own: tuple) -> Image.Image:
    try:
        return Image.open(io.BytesIO(own[0][1]))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{own[0][0]} is not a picture that Pillow can read; upload a PNG, JPEG, GIF or WebP file.") from error
