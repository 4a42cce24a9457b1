"""Panel of chapter 04: push a picture's story towards an emotion, read what it names then, and what the push cost.

Behind it is one `sweep` a change: the story without a push and the pushed ones run as branches behind the same picture, and their
first words are shown while they are told.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple

import ipywidgets as widgets
import torch
from jaxtyping import Float
from torch import Tensor

from emointerp.directions import Directions, last_residuals
from emointerp.emotions import emotion_of, extract, named, score
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.markup import data_uri, marked, thumbnail
from emointerp.models import VLM, Prompt
from emointerp.plots import COLORS, GRAY, INK, ORANGE, ShownFigure
from emointerp.start_here import EVENT
from emointerp.steering import MAX_COST
from emointerp.tracing import Metric, perplexity, sweep
from emointerp.widgets.drawing import FAINT, Sheet, cell_colors
from emointerp.widgets.panel import Panel, arranged, clear_scenes
from emointerp.widgets.start_here import EVENTS
from emointerp.widgets.streaming import stories_so_far

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
NONE = "none"
WARN = ' class="warning"'
LIMIT = 1.5 * MAX_COST  # the emotional picture's own story is about 1.5 times as perplexing as that of its neutral twin
TOKENS = 64


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
    residual stream. Where it is not `whole` yet, there is only its text so far.
    """

    text: str
    named: tuple[str, ...]
    push: Push | None = None
    hit: float = math.nan
    others: tuple[str, ...] = ()
    cost: float = 1.0
    shift: float = 0.0
    whole: bool = True


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture and an event as the panel holds them: the prompt, kept so that it is read once, and what belongs to it.

    `lengths` are those of the residual stream at the prompt's last token, NaN where none was asked for yet (`_length`).
    """

    event: str
    prompt: Prompt
    lengths: Float[Tensor, " layer"] = field(repr=False)
    picture: str = field(repr=False)


def prepared(vlm: VLM, picture: Any, event: str) -> Shown:
    """A picture and an event, made ready for `compute`."""
    prompt = vlm.prompt(picture, event)
    return Shown(event, prompt, torch.full((vlm.anatomy.n_layers,), torch.nan), data_uri(thumbnail(prompt.image, 320)))


def compute(
    vlm: VLM,
    directions: Directions,
    shown: Shown,
    pushes: Sequence[Push],
    wheels: WheelsLike = None,
    so_far: Callable[[list[Story]], None] | None = None,
) -> list[Story]:
    """The story without a push, then one for each push: one sweep, and a forward for what they cost.

    `so_far` is called with the stories as far as they are told, now and then (`streaming.stories_so_far`).
    """

    def begun(texts: list[str]) -> None:
        so_far([Story(text, (), push, whole=False) for text, push in zip(texts, (None, *pushes), strict=True)])

    edits = [directions.edits(*push) for push in pushes]
    watch = stories_so_far(vlm, 1 + len(pushes), begun) if so_far else []
    found = sweep(vlm, shown.prompt, edits, max_new_tokens=TOKENS, logits_processor=watch, progress=False)
    before, texts = found.baseline_texts[0], found.texts[0]
    unpushed, *likely = perplexity(vlm, shown.prompt, [before, *texts])
    scores = score(texts, [push.emotion for push in pushes], wheels)
    stories = [Story(before, named(before, wheels))]
    for push, text, p, hit, names in zip(pushes, texts, likely, scores.hit, scores.named, strict=True):
        others = tuple(name for name in names if name != emotion_of(push.emotion, wheels))
        shift = push.alpha * float(directions[push[:2]].norm()) / _length(vlm, shown, push.layer)
        stories.append(Story(text, names, push, hit, others, p / unpushed, shift))
    return stories


def _length(vlm: VLM, shown: Shown, layer: int) -> float:
    """The length of the residual stream at the last token, read behind the prefix that the stories were told from."""
    if shown.lengths[layer].isnan() and vlm.remote:  # one request for all layers
        shown.lengths.copy_(last_residuals(vlm, [shown.prompt])[0].norm(dim=-1))
    elif shown.lengths[layer].isnan():
        metric = Metric(lambda last: last.norm(dim=-1), layer, "length")
        shown.lengths[layer] = sweep(vlm, shown.prompt, [[]], metric, progress=False).baseline[0]
    return float(shown.lengths[layer])


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
        start: Push,
        alphas: Sequence[float],
        wheels: WheelsLike,
    ):
        shown = lru_cache(maxsize=32)(lambda picture, event: prepared(vlm, pictures[picture], event))

        def tell(picture: str, event: str, pushes: tuple[Push, ...], words: bool = True) -> list[Story]:
            one = shown(picture, event)
            begun = (lambda some: self.so_far(stories_html(one, some, wheels))) if words else None
            return compute(vlm, directions, one, pushes, wheels, begun)

        self._stories = lru_cache(maxsize=256)(tell)
        cells = [(at, a) for at in reversed(range(directions.n_layers)) for a in alphas]

        def found(
            picture: str, emotion: str, versus: str, layer: int, alpha: float, event: str, grid: bool
        ) -> tuple[Shown, list[Story], list[tuple[list[Story], Push]]]:
            pushes = _pushes(emotion, versus, layer, alpha)
            stories = self._stories(picture, event, pushes)
            every = [
                (self._stories(picture, event, tuple(Push(push.emotion, *cell) for cell in cells), words=False)[1:], push)
                for push in pushes * grid
            ]
            return shown(picture, event), stories, every

        def view(**values: Any) -> str:
            one, stories, every = found(**values)
            grids = "".join(grid_html(*grid) for grid in every)
            return stories_html(one, stories, wheels) + grids + (_LEGEND if every else "")

        controls = _controls(pictures, directions, event, start, max(alphas))
        layout = arranged(controls, wide=("event",))
        super().__init__(controls, view, layout, draw=lambda **values: draw(*found(**values), wheels))

    @property
    def stories(self) -> list[Story]:
        """The story without a push, and the pushed ones, for the present values of the controls."""
        now = {name: control.value for name, control in self.controls.items()}
        pushes = _pushes(*(now[name] for name in ("emotion", "versus", "layer", "alpha")))
        return self._stories(now["picture"], now["event"], pushes)


def _controls(
    pictures: Mapping[str, Any], directions: Directions, event: str, start: Push, most: float
) -> dict[str, widgets.Widget]:
    return {
        "picture": widgets.Dropdown(options=list(pictures), description="picture"),
        "emotion": widgets.Dropdown(options=directions.emotions, value=start.emotion, description="emotion"),
        "versus": widgets.Dropdown(options=(NONE, *directions.emotions), description="versus"),
        "layer": widgets.IntSlider(start.layer, 0, directions.n_layers - 1, continuous_update=False, description="layer"),
        "alpha": widgets.FloatSlider(value=start.alpha, min=0, max=most, step=0.05, continuous_update=False, description="alpha"),
        "grid": widgets.Checkbox(value=False, description="grid of all layers and alphas"),
        "event": widgets.Combobox(value=event, options=EVENTS, continuous_update=False, description="event"),
    }


def _pushes(emotion: str, versus: str, layer: int, alpha: float) -> tuple[Push, ...]:
    return tuple(Push(e, layer, alpha) for e in dict.fromkeys((emotion, versus)) if e != NONE)


def stories_html(shown: Shown, stories: Sequence[Story], wheels: WheelsLike = None) -> str:
    """The picture, the event and the stories, emotion words in their colours, each pushed one with its figures."""
    return (
        f'<div class="beside"><img src="{shown.picture}" width="150" alt="the picture"/>'
        f'<div class="rest"><div class="muted">{escape(shown.event)}</div>'
        f"{''.join(_story(story, wheels) for story in stories)}</div></div>"
    )


def _story(story: Story, wheels: WheelsLike) -> str:
    text = marked(story.text, extract(story.text, wheels)) or "<i>nothing was said</i>"
    lead, name, end = _told(story)
    return (
        f'<div class="ruled"><small class="muted">{lead}<b>{escape(name)}</b>{end}</small>'
        f'<div class="columns"><div class="narrow story">{text}</div>{_figures(story)}</div></div>'
    )


def _told(story: Story) -> tuple[str, str, str]:
    """What a story was pushed towards, or what it names; the emotion in the middle."""
    if story.push is None:
        return ("no push: the story names ", ", ".join(story.named) or "no emotion", "") if story.whole else ("no push", "", "")
    return "towards ", story.push.emotion, f", alpha {story.push.alpha:g} after layer {story.push.layer}"


def _figures(story: Story) -> str:
    cells = "".join(
        f"<span>{escape(name)}</span>{_bar(share, color)}<span{WARN * warns}>{escape(said)}</span>"
        for name, share, color, said, warns in _rows(story)
    )
    return cells and f'<div class="figures bars">{cells}</div>'


def _rows(story: Story) -> list[tuple[str, float, str, str, bool]]:
    """Of a pushed story that is whole: a name, a bar's share and colour, words, and whether they are a warning."""
    if story.push is None or not story.whole:
        return []
    own, costly = COLORS.get(story.push.emotion, GRAY), story.cost > LIMIT
    return [
        (f"names {story.push.emotion}", story.hit, own, f"in {story.hit:.0%} of the wheels", False),
        ("names others", float(bool(story.others)), ORANGE, ", ".join(story.others) or "none", False),
        ("perplexity", _share(story.cost), ORANGE if costly else GRAY, _times(story.cost), costly),
        ("length of the push", min(story.shift, 1.0), GRAY, f"{story.shift:.0%} of the residual stream's", False),
    ]


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
    return f'<span class="track"><span style="width:{share:.0%};background:{color}"></span></span>'


_SAID = (
    f"A cell says what the story names; it is pale where the story is more than {LIMIT:g} times as perplexing as the one without a "
    "push. Outlined: the sliders."
)
_LEGEND = f'<small class="muted note">{_SAID} Its story is under the mouse.</small>'


def _table(
    stories: Sequence[Story], here: Push
) -> tuple[dict[tuple[int, float], Story], list[float], list[int], tuple[int, float]]:
    """Stories by layer and alpha, the alphas, the layers from the last, and the cell nearest to `here`, where there is a push."""
    cells = {story.push[1:]: story for story in stories}
    alphas, layers = sorted({alpha for _, alpha in cells}), sorted({layer for layer, _ in cells}, reverse=True)
    nearest = min(alphas, key=lambda alpha: abs(alpha - here.alpha))
    return cells, alphas, layers, (here.layer if here.alpha > 0 else -1, nearest)


def grid_html(stories: Sequence[Story], here: Push) -> str:
    """A table of stories over alpha and layer, coloured by what they name; the cell nearest to `here` is outlined."""
    cells, alphas, layers, chosen = _table(stories, here)
    rows = "".join(
        f'<tr><th scope="row">layer {at}</th>{"".join(_cell(cells[at, alpha], chosen == (at, alpha)) for alpha in alphas)}</tr>'
        for at in layers
    )
    foot = "".join(f'<th scope="col">{alpha:g}</th>' for alpha in alphas)
    return (
        f'<div class="scroll"><table class="cells"><caption>Stories towards <b>{escape(here.emotion)}</b></caption>'
        f'{rows}<tr><th scope="row">alpha</th>{foot}</tr></table></div>'
    )


def _cell(story: Story, chosen: bool) -> str:
    """What a story names on its colours: over white, so that black reads well on them in every theme; pale ones over the page."""
    full = bool(story.named) and not story.cost > LIMIT
    colors = cell_colors(story.named) if full else [f"{COLORS.get(name, GRAY)}26" for name in story.named] or [f"{GRAY}1a"]
    ends = [f"{color} {100 * i / len(colors):.0f}% {100 * (i + 1) / len(colors):.0f}%" for i, color in enumerate(colors)]
    classes = " ".join(["full" if full else "pale"] + ["here"] * chosen)
    said = f"layer {story.push.layer}, alpha {story.push.alpha:g}, perplexity {_times(story.cost)}: {story.text}"
    background = f"background:linear-gradient(90deg,{','.join(ends)})"
    return f'<td class="{classes}" style="{background}" title="{escape(said)}"><span>{escape(_first(story))}</span></td>'


def _first(story: Story) -> str:
    """What a story names first, and how much more."""
    more = f" +{len(story.named) - 1}" if len(story.named) > 1 else ""
    return f"{story.named[0]}{more}" if story.named else "·"


# the figure


def draw(
    shown: Shown, stories: Sequence[Story], grids: Sequence[tuple[Sequence[Story], Push]], wheels: WheelsLike = None
) -> ShownFigure:
    """All that the panel shows as a figure."""
    sheet = Sheet(660)
    bottom = sheet.picture(0, 0, shown.prompt.image, 116)
    y = sheet.text(132, 0, shown.event, size=10, color=FAINT)
    for story in stories:
        y = _draw_story(sheet, 132, y, story, wheels)
    y = max(y, bottom)
    for grid, here in grids:
        y = _draw_grid(sheet, y + 12, grid, here)
    if grids:
        sheet.text(0, y + 4, _SAID, size=8, color=FAINT)
    return sheet.figure("A story and what pushes make of it")


def _draw_story(sheet: Sheet, x: float, y: float, story: Story, wheels: WheelsLike) -> float:
    """A story, and beside it its figures."""
    y = sheet.text(x, sheet.rule(x, y, sheet.width - x), "".join(_told(story)), size=9, color=FAINT) + 2
    words = extract(story.text, wheels)
    below = sheet.text(x, y, story.text or "nothing was said", 250 if story.push else None, marks=words, size=11)
    for name, share, color, said, warns in _rows(story):
        sheet.text(x + 266, y, name, size=8)
        sheet.bar(x + 350, y + 3, 40, share, color)
        y = sheet.text(x + 396, y, said, size=8, weight="bold" if warns else "normal")
    return max(below, y)


def _draw_grid(sheet: Sheet, y: float, stories: Sequence[Story], here: Push) -> float:
    """The table of stories over alpha and layer."""
    cells, alphas, layers, chosen = _table(stories, here)
    wide, y = min(78.0, (sheet.width - 60) / len(alphas)), sheet.text(0, y, f"Stories towards {here.emotion}", weight="bold") + 3
    for layer in layers:
        sheet.text(0, y + 1, f"layer {layer}", size=8, color=FAINT)
        for i, alpha in enumerate(alphas):
            _draw_cell(sheet, 50 + i * wide, y, wide - 2, cells[layer, alpha], chosen == (layer, alpha))
        y += 17
    for i, alpha in enumerate(alphas):
        sheet.text(50 + i * wide + 4, y, f"{alpha:g}", size=8, color=FAINT)
    return sheet.text(0, y, "alpha", size=8, color=FAINT)


def _draw_cell(sheet: Sheet, x: float, y: float, width: float, story: Story, chosen: bool) -> None:
    pale = story.cost > LIMIT
    colors = cell_colors(story.named, pale)
    for i, color in enumerate(colors):
        sheet.box(x + i * width / len(colors), y, width / len(colors), 15, color)
    if chosen:
        sheet.box(x, y, width, 15, "none", INK, 1.6)
    sheet.text(x + 4, y + 1.5, _first(story), width, size=8, color=FAINT if pale else INK)


# how it is called


def steering(
    vlm: VLM,
    directions: Directions,
    pictures: Mapping[str, Any] | None = None,
    event: str = EVENT,
    *,
    emotion: str | None = None,
    layer: int | None = None,
    alpha: float = 1.0,
    alphas: Sequence[float] = ALPHAS,
    wheels: WheelsLike = None,
) -> SteeringPanel:
    """A panel to push stories with; `pictures` maps names to pictures, by default clear test scenes and their neutral twins.

    `emotion` (None: the first), `layer` (None: the middle one) and `alpha` are where the controls start; `alphas` are the columns
    of the grid, and the largest is as far as the slider goes. Raises InputError where one of them is out of range or unknown.
    """
    layer = directions.n_layers // 2 if layer is None else layer
    alphas = sorted(set(map(float, alphas)))
    if not alphas or alphas[0] <= 0 or not 0 <= alpha <= alphas[-1] or not 0 <= layer < directions.n_layers:
        raise InputError(
            f"The panel was to start at alpha {alpha:g} after layer {layer}, with alphas {alphas} in its grid; expected alphas "
            f"above 0 in the grid, a start from 0 to the largest, and a layer from 0 to {directions.n_layers - 1}."
        )
    if emotion not in (None, *directions.emotions):
        raise InputError(f"emotion is {emotion!r}; these directions are of {', '.join(directions.emotions)}.")
    start = Push(emotion or directions.emotions[0], layer, alpha)
    return SteeringPanel(vlm, directions, pictures or _pictures(), event, start, alphas, wheels)


def _pictures() -> dict[str, Any]:
    scenes = clear_scenes()
    return {f"neutral twin of {e}": scene.neutral() for e, scene in scenes.items()} | scenes
