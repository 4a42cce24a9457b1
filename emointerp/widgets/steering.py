"""Panel of chapter 04: push a picture's story towards an emotion, read what it names then, and what the push cost.

Behind it is one `sweep` a change: the story without a push and the pushed ones run as branches behind the same picture.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple

import ipywidgets as widgets
from jaxtyping import Float
from torch import Tensor

from emointerp.directions import Directions, last_residuals
from emointerp.emotions import emotion_of, extract, named, score
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.markup import data_uri, marked, thumbnail
from emointerp.models import VLM, Prompt
from emointerp.plots import COLORS
from emointerp.start_here import EVENT
from emointerp.steering import MAX_COST
from emointerp.tracing import perplexity, sweep
from emointerp.widgets.panel import Panel, clear_scenes
from emointerp.widgets.start_here import EVENTS

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
NONE = "none"
LIMIT = 1.5 * MAX_COST  # the emotional picture's own story is about 1.5 times as perplexing as that of its neutral twin
_GRAY, _WARNING = "#8A8F98", "#D55E00"


class Push(NamedTuple):
    """Add `alpha` times the direction of an emotion after a layer."""

    emotion: str
    layer: int
    alpha: float


@dataclass(frozen=True)
class Story:
    """A story under a push (None: without one), the emotions that it `named`, and its figures.

    `hit` is the share of wheels in which it names the emotion pushed towards, `others` what else it names; `cost` is its perplexity
    over that of the story without a push, both for the model without a push; `shift` the length of the push over that of the
    residual stream.
    """

    text: str
    named: tuple[str, ...]
    push: Push | None = None
    hit: float = math.nan
    others: tuple[str, ...] = ()
    cost: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture and an event as the panel holds them: the prompt, kept so that it is read once, and what belongs to it."""

    event: str
    prompt: Prompt
    lengths: Float[Tensor, " layer"] = field(repr=False)
    picture: str = field(repr=False)


def prepared(vlm: VLM, picture: Any, event: str) -> Shown:
    """A picture and an event, made ready for `compute`."""
    prompt = vlm.prompt(picture, event)
    return Shown(event, prompt, last_residuals(vlm, [prompt])[0].norm(dim=-1), data_uri(thumbnail(prompt.image, 320)))


def compute(vlm: VLM, directions: Directions, shown: Shown, pushes: Sequence[Push], wheels: WheelsLike = None) -> list[Story]:
    """The story without a push, then one for each push: one sweep, and a forward for what they cost."""
    edits = [directions.edits(*push) for push in pushes]
    found = sweep(vlm, shown.prompt, edits, max_new_tokens=64, progress=False)
    before, texts = found.baseline_texts[0], found.texts[0]
    unpushed, *likely = perplexity(vlm, shown.prompt, [before, *texts])
    scores = score(texts, [push.emotion for push in pushes], wheels)
    stories = [Story(before, named(before, wheels))]
    for push, text, p, hit, names in zip(pushes, texts, likely, scores.hit, scores.named, strict=True):
        others = tuple(name for name in names if name != emotion_of(push.emotion, wheels))
        shift = push.alpha * float(directions[push[:2]].norm() / shown.lengths[push.layer])
        stories.append(Story(text, names, push, hit, others, p / unpushed, shift))
    return stories


class SteeringPanel(Panel):
    """The controls, the story without a push and the pushed ones; and, where asked for, a grid of stories over alpha and layer.

    `controls` are "picture", "emotion", "versus", "layer", "alpha", "event" and "grid"; `stories` are those that are shown.
    """

    def __init__(
        self,
        vlm: VLM,
        directions: Directions,
        pictures: Mapping[str, Any],
        event: str,
        layer: int,
        alpha: float,
        alphas: Sequence[float],
        wheels: WheelsLike,
    ):
        shown = lru_cache(maxsize=32)(lambda picture, event: prepared(vlm, pictures[picture], event))
        self._stories = lru_cache(maxsize=256)(
            lambda picture, event, pushes: compute(vlm, directions, shown(picture, event), pushes, wheels)
        )
        cells = [(at, a) for at in reversed(range(directions.n_layers)) for a in alphas]

        def view(picture: str, emotion: str, versus: str, layer: int, alpha: float, event: str, grid: bool) -> str:
            pushes = _pushes(emotion, versus, layer, alpha)
            html = stories_html(shown(picture, event), self._stories(picture, event, pushes), wheels)
            for push in pushes if grid else ():
                every = self._stories(picture, event, tuple(Push(push.emotion, *cell) for cell in cells))
                html += grid_html(every[1:], push)
            return html + (_LEGEND if grid else "")

        controls = _controls(pictures, directions, event, layer, alpha, max(alphas))
        rows = (("picture", "emotion", "versus"), ("layer", "alpha", "grid"), ("event",))
        layout = widgets.VBox([widgets.HBox([controls[name] for name in row]) for row in rows])
        super().__init__(controls, view, layout)

    @property
    def stories(self) -> list[Story]:
        """The story without a push, and the pushed ones, for the present values of the controls."""
        now = {name: control.value for name, control in self.controls.items()}
        pushes = _pushes(*(now[name] for name in ("emotion", "versus", "layer", "alpha")))
        return self._stories(now["picture"], now["event"], pushes)


def _controls(
    pictures: Mapping[str, Any], directions: Directions, event: str, layer: int, alpha: float, most: float
) -> dict[str, widgets.Widget]:
    return {
        "picture": widgets.Dropdown(options=list(pictures), description="picture"),
        "emotion": widgets.Dropdown(options=directions.emotions, description="emotion"),
        "versus": widgets.Dropdown(options=(NONE, *directions.emotions), description="versus"),
        "layer": widgets.IntSlider(layer, 0, directions.n_layers - 1, continuous_update=False, description="layer"),
        "alpha": widgets.FloatSlider(value=alpha, min=0, max=most, step=0.05, continuous_update=False, description="alpha"),
        "grid": widgets.ToggleButton(value=False, description="grid", tooltip="the stories of all layers and strengths"),
        "event": widgets.Combobox(
            value=event, options=EVENTS, continuous_update=False, description="event", layout=widgets.Layout(width="46em")
        ),
    }


def _pushes(emotion: str, versus: str, layer: int, alpha: float) -> tuple[Push, ...]:
    return tuple(Push(e, layer, alpha) for e in dict.fromkeys((emotion, versus)) if e != NONE)


def stories_html(shown: Shown, stories: Sequence[Story], wheels: WheelsLike = None) -> str:
    """The picture, the event and the stories, emotion words in their colours, each pushed one with its figures."""
    return (
        '<div style="display:flex;gap:1.2em;align-items:flex-start;margin:.4em 0;line-height:1.4">'
        f'<img src="{shown.picture}" width="150" style="border-radius:6px" alt="the picture"/>'
        f'<div style="flex:1;max-width:58em"><div style="opacity:.75">{escape(shown.event)}</div>'
        f"{''.join(_story(story, wheels) for story in stories)}</div></div>"
    )


def _story(story: Story, wheels: WheelsLike) -> str:
    text = marked(story.text, extract(story.text, wheels)) or "<i>nothing was said</i>"
    if story.push is None:
        told = f"no push: the story names <b>{escape(', '.join(story.named) or 'no emotion')}</b>"
    else:
        told = f"towards <b>{escape(story.push.emotion)}</b>, alpha {story.push.alpha:g} after layer {story.push.layer}"
    return (
        '<div style="border-top:1px solid #8a8f9855;margin-top:.5em;padding-top:.4em">'
        f'<small style="opacity:.75">{told}</small>'
        '<div style="display:flex;flex-wrap:wrap;gap:.3em 1.5em;align-items:flex-start">'
        f'<div style="flex:1 1 24em;font-size:1.1em;overflow-wrap:anywhere">{text}</div>{_figures(story)}</div></div>'
    )


def _figures(story: Story) -> str:
    if story.push is None:
        return ""
    own, costly = COLORS.get(story.push.emotion, _GRAY), story.cost > LIMIT
    rows = [
        (f"names {escape(story.push.emotion)}", story.hit, own, f"in {story.hit:.0%} of the wheels"),
        ("names others", float(bool(story.others)), _WARNING, escape(", ".join(story.others)) or "none"),
        ("perplexity", _share(story.cost), _WARNING if costly else _GRAY, _times(story.cost)),
        ("length of the push", min(story.shift, 1.0), _GRAY, f"{story.shift:.0%} of the residual stream's"),
    ]
    cells = "".join(f"<span>{name}</span>{_bar(share, color)}<span>{said}</span>" for name, share, color, said in rows)
    style = "display:grid;grid-template-columns:auto 5em auto;gap:0 .7em;align-items:center;font-size:.85em;white-space:nowrap"
    return f'<div style="{style}">{cells}</div>'


def _share(cost: float) -> float:
    """A bar's length for a cost: none where it is that of the story without a push, full at the limit; by its logarithm."""
    return 0.0 if math.isnan(cost) else min(max(math.log(cost) / math.log(LIMIT), 0.0), 1.0)


def _times(cost: float) -> str:
    """A cost in words.

    >>> _times(1.234), _times(2345.6)
    ("1.2 × the unpushed story's", "2,346 × the unpushed story's")
    """
    return "unknown, as a story is empty" if math.isnan(cost) else f"{cost:,.{int(cost < 10)}f} × the unpushed story's"


def _bar(share: float, color: str) -> str:
    return (
        f'<span style="height:.6em;background:{_GRAY}33;border-radius:3px;overflow:hidden">'
        f'<span style="display:block;width:{share:.0%};height:100%;background:{color}"></span></span>'
    )


_LEGEND = (
    '<small style="display:block;line-height:1.4;opacity:.75">A cell says what the story names; it is pale where the story is more '
    f"than {LIMIT:g} times as perplexing as the one without a push. Outlined: the sliders. Its story is under the mouse.</small>"
)


def grid_html(stories: Sequence[Story], here: Push) -> str:
    """A table of stories over alpha and layer, coloured by what they name; the cell nearest to `here` is outlined."""
    cells = {story.push[1:]: story for story in stories}
    alphas = sorted({alpha for _, alpha in cells})
    nearest = min(alphas, key=lambda alpha: abs(alpha - here.alpha))
    rows = "".join(
        f'<tr><th style="{_HEAD}">layer {layer}</th>'
        + "".join(_cell(cells[layer, alpha], here.alpha > 0 and (here.layer, nearest) == (layer, alpha)) for alpha in alphas)
        + "</tr>"
        for layer in sorted({layer for layer, _ in cells}, reverse=True)
    )
    foot = "".join(f'<th style="{_HEAD}">{alpha:g}</th>' for alpha in alphas)
    return (
        '<table style="border-collapse:separate;border-spacing:2px;margin:.6em 0;font-size:.85em;line-height:1.5">'
        f'<caption style="text-align:left">Stories towards <b>{escape(here.emotion)}</b></caption>'
        f'{rows}<tr><th style="{_HEAD}">alpha</th>{foot}</tr></table>'
    )


_HEAD = "font-weight:normal;opacity:.75;text-align:center;padding:0 .5em;white-space:nowrap"


def _cell(story: Story, chosen: bool) -> str:
    pale = story.cost > LIMIT
    colors = [f"{COLORS.get(name, _GRAY)}{'26' if pale else '99'}" for name in story.named] or [f"{_GRAY}1a"]
    ends = [f"{color} {100 * i / len(colors):.0f}% {100 * (i + 1) / len(colors):.0f}%" for i, color in enumerate(colors)]
    style = f"background:linear-gradient(90deg,{','.join(ends)});min-width:5.2em;text-align:center;padding:0 .3em;border-radius:3px"
    style += ";outline:2px solid currentColor" if chosen else ""
    first = escape(story.named[0]) + (f" +{len(story.named) - 1}" if len(story.named) > 1 else "") if story.named else "·"
    said = f"layer {story.push.layer}, alpha {story.push.alpha:g}, perplexity {_times(story.cost)}: {story.text}"
    return f'<td style="{style}" title="{escape(said)}"><span style="opacity:{0.5 if pale else 1}">{first}</span></td>'


def steering(
    vlm: VLM,
    directions: Directions,
    pictures: Mapping[str, Any] | None = None,
    event: str = EVENT,
    *,
    layer: int | None = None,
    alpha: float = 1.0,
    alphas: Sequence[float] = ALPHAS,
    wheels: WheelsLike = None,
) -> SteeringPanel:
    """A panel to push stories with; `pictures` maps names to pictures, by default clear test scenes and their neutral twins.

    `layer` (None: the middle one) and `alpha` are where the sliders start; `alphas` are the columns of the grid, and the largest is
    as far as the slider goes. Raises InputError where an alpha or the layer is out of range.
    """
    layer = directions.n_layers // 2 if layer is None else layer
    alphas = sorted(set(map(float, alphas)))
    if not alphas or alphas[0] <= 0 or not 0 <= alpha <= alphas[-1] or not 0 <= layer < directions.n_layers:
        raise InputError(
            f"The panel was to start at alpha {alpha:g} after layer {layer}, with alphas {alphas} in its grid; expected alphas "
            f"above 0 in the grid, a start from 0 to the largest, and a layer from 0 to {directions.n_layers - 1}."
        )
    return SteeringPanel(vlm, directions, pictures or _pictures(), event, layer, alpha, alphas, wheels)


def _pictures() -> dict[str, Any]:
    scenes = clear_scenes()
    return {f"neutral twin of {e}": scene.neutral() for e, scene in scenes.items()} | scenes
