"""Panel of chapter 06: click a head in the map; see where it looks, what it brings over in each emotion, and what wakes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from comm import DummyComm
from jaxtyping import Float
from matplotlib.patches import Rectangle

from emointerp.circuit import head_name, neuron_name
from emointerp.directions import Directions
from emointerp.emotions import BASIC, words_for
from emointerp.errors import EmointerpError, InputError
from emointerp.heads import HeadMap
from emointerp.heads.drawing import means
from emointerp.heads.maps import TITLES
from emointerp.heads.visual import attention_on
from emointerp.lens import MASSES, Words
from emointerp.markup import data_uri, thumbnail
from emointerp.models import VLM, Prompt
from emointerp.neurons import Neurons, trigger_neurons
from emointerp.pairs import Pair
from emointerp.plots import COLORS, GRAY, INK, ShownFigure
from emointerp.sources import checked_places, source_tokens
from emointerp.start_here import EVENT
from emointerp.statistics import Interval
from emointerp.widgets.drawing import FAINT, Sheet, image_of
from emointerp.widgets.panel import BUSY, Panel, arranged, clear_scenes
from emointerp.widgets.patch_grid import PatchGrid
from emointerp.widgets.token_strip import visible
from emointerp.world import Scene

BELOW = "neurons below it, at the picture's tokens"
SHOWN = 6  # neurons; each is patched exactly, which is most of what a click costs
MAP = ("picture", "size", "boxes", "labels", "width")  # what the map and its stand-in share


@dataclass(frozen=True, eq=False)
class Effects:
    """A map as the panel holds it: `heads` is its frame, `emotions` that of each emotion by itself; both are made once."""

    found: HeadMap
    heads: pd.DataFrame = field(repr=False)
    emotions: pd.DataFrame = field(repr=False)

    @classmethod
    def of(cls, found: HeadMap) -> "Effects":
        """The effects in a map."""
        return cls(found, found.to_frame(), found.by_emotion())

    @property
    def ends(self) -> tuple[float, float]:
        """Where bars end, the same for all heads: a little beyond the means of all in every emotion, and zero."""
        effect = means(self.emotions.effect)
        return 1.15 * min(0.0, effect.min()), max(1.15 * effect.max(), 1e-6)

    @property
    def metric(self) -> str:
        """What neurons are scored by: the map's metric, or "log mass" where that is no mass of words."""
        return self.found.metric if self.found.metric in MASSES else "log mass"

    def numbers(self, what: str) -> list[int]:
        """The layers, or heads, that the map has."""
        return sorted(map(int, self.heads.index.unique(what)))


@dataclass(frozen=True, eq=False)
class Shown:
    """A pair as the panel holds it: the prompt of its emotional picture, and the last token's attention in it."""

    pair: Pair
    prompt: Prompt
    attention: Float[np.ndarray, "layer head visual"] = field(repr=False)
    picture: str = field(repr=False)
    boxes: Float[np.ndarray, "visual 4"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class HeadReading:
    """What is known of a head: its `effect` in the map and its p, `corrected` for all heads; `emotions`, both by emotion.

    On one picture: `attention` of the last token to the visual tokens; `source`, the token that it takes most from (-1: not
    known); and the `neurons` that move the metric most through it, or a `note` that says why there are none.
    """

    layer: int
    head: int
    effect: Interval
    corrected: float
    emotions: pd.DataFrame = field(repr=False)
    attention: Float[np.ndarray, " visual"] = field(repr=False)
    source: int = -1
    neurons: Neurons | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The head's name in circuits."""
        return head_name(self.layer, self.head)


def prepared(vlm: VLM, pair: Pair, answer: str = "I felt") -> Shown:
    """A pair, made ready for `compute`."""
    prompt = vlm.prompt(*pair.plus, answer=answer)
    return Shown(pair, prompt, attention_on(vlm, prompt), data_uri(thumbnail(prompt.image)), vlm.boxes(prompt))


def compute(
    vlm: VLM,
    effects: Effects,
    shown: Shown,
    layer: int,
    head: int,
    *,
    directions: Directions | None = None,
    words: Words = None,
    answer: str = "I felt",
) -> HeadReading:
    """A head of a map on one picture.

    Neurons are scored at the picture's tokens, on this pair alone, by `effects.metric`.
    """
    reading = looked(vlm, effects, shown, layer, head, words=words, answer=answer)
    return woken(vlm, effects, shown, reading, directions=directions, words=words, answer=answer)


def looked(
    vlm: VLM, effects: Effects, shown: Shown, layer: int, head: int, *, words: Words = None, answer: str = "I felt"
) -> HeadReading:
    """What is known of a head at once: all but its neurons."""
    if (layer, head) not in effects.heads.index:
        has = "; ".join(f"{what}s {', '.join(map(str, effects.numbers(what)))}" for what in ("layer", "head"))
        raise InputError(f"The map has no head {head_name(layer, head)}; it has {has}.")
    row, emotions = effects.heads.loc[(layer, head)], effects.emotions.xs((layer, head), level=("layer", "head"))
    reading = HeadReading(layer, head, row.effect, float(row.corrected), emotions, shown.attention[layer, head])
    try:
        found = source_tokens(vlm, [shown.pair] * 2, [(layer, head)], **_options(effects, words, answer))
    except EmointerpError as error:
        return replace(reading, note=str(error))
    return replace(reading, source=found.tokens(layer, head)[0])


def woken(
    vlm: VLM,
    effects: Effects,
    shown: Shown,
    reading: HeadReading,
    *,
    directions: Directions | None = None,
    words: Words = None,
    answer: str = "I felt",
) -> HeadReading:
    """The same with the neurons that move the metric most through the head, which take most of the time."""
    if reading.note:
        return reading
    if reading.layer == 0:
        return replace(reading, note=f"{reading.name} is in the first layer; no neurons lie below it.")
    options: dict[str, Any] = {"k": SHOWN, "at": "visual", "flips": 1} | _options(effects, words, answer)
    try:
        below = trigger_neurons(vlm, [shown.pair] * 2, [(reading.layer, reading.head)], directions, **options)
    except EmointerpError as error:
        return replace(reading, note=str(error))
    return replace(reading, neurons=below)


def _options(effects: Effects, words: Words, answer: str) -> dict[str, Any]:
    """What both ask with; of a pair twice, as one pair's values are asked for, not means, for which two pairs are demanded."""
    return {"metric": effects.metric, "words": words, "answer": answer, "progress": False}


def clickable(effects: Effects) -> PatchGrid:
    """The figure of the map with a box over each cell, in the order of `effects.heads`."""
    figure, layers, heads = effects.found.plot(), effects.numbers("layer"), effects.numbers("head")
    picture, (width, height), place = data_uri(figure), figure.get_size_inches(), figure.axes[0].get_position()
    x = np.linspace(place.x0, place.x1, len(heads) + 1) * width
    y = (1 - np.linspace(place.y0, place.y1, len(layers) + 1)) * height
    at = [(layers.index(layer), heads.index(head)) for layer, head in effects.heads.index]
    return PatchGrid(
        picture=picture,
        size=[width, height],
        boxes=[[x[j], y[i + 1], x[j + 1], y[i]] for i, j in at],
        labels=[f"{head_name(*head)}: {_said(row.effect)}\n{_p(row.corrected)}" for head, row in effects.heads.iterrows()],
        width=480,
    )


class HeadsPanel(Panel):
    """The controls, the map whose cells can be clicked, the picture under the chosen head's attention, and what is known of it.

    `controls` are "picture", "layer" and "head"; a click on a cell of `map` sets the last two. `attention` is the picture,
    `reading` what the panel shows, or None where the picture cannot be read.
    """

    def __init__(
        self,
        vlm: VLM,
        found: HeadMap,
        pairs: Mapping[str, Pair],
        directions: Directions | None,
        words: Words,
        answer: str,
    ):
        effects = Effects.of(found)
        checked_places(vlm, effects.heads.index, "head")
        words = words or {emotion: words_for(emotion) for emotion in BASIC}  # else the lexicon is read five times a click
        options: dict[str, Any] = {"directions": directions, "words": words, "answer": answer}
        self._shown = lru_cache(maxsize=32)(lambda picture: prepared(vlm, pairs[picture], answer))
        self._look = lru_cache(maxsize=256)(
            lambda picture, layer, head: looked(vlm, effects, self._shown(picture), layer, head, words=words, answer=answer)
        )
        self._read = lru_cache(maxsize=256)(
            lambda picture, *head: woken(vlm, effects, self._shown(picture), self._look(picture, *head), **options)
        )
        self._vlm, self._places, self.reading = vlm, [tuple(map(int, place)) for place in effects.heads.index], None
        self.map, self.attention, self.controls = clickable(effects), PatchGrid(width=290), _controls(pairs, effects)
        self.map.observe(self._cell_clicked, names="selected")
        self.attention.observe(lambda _: self._outline(), names="selected")
        maps = widgets.HBox([self.map, self.attention], layout=widgets.Layout(flex_flow="row wrap"))

        def view(picture: str, layer: int, head: int) -> str:
            return reading_html(self._read(picture, layer, head), self._shown(picture).pair, effects)

        def first(picture: str, layer: int, head: int) -> str:
            reading = self._look(picture, layer, head)
            self._colour(self._shown(picture), reading)
            return reading_html(replace(reading, note=reading.note or BUSY), self._shown(picture).pair, effects)

        def still(picture: str, layer: int, head: int) -> str:
            cell = {name: getattr(self.map, name) for name in MAP} | {"selected": self._places.index((layer, head))}
            looks = self._looks(self._shown(picture), self._read(picture, layer, head)) | {"width": 290}
            return f'<div class="columns">{_still(cell)}{_still(looks)}</div>{view(picture, layer, head)}'

        def figure(picture: str, layer: int, head: int) -> ShownFigure:
            shown, reading = self._shown(picture), self._read(picture, layer, head)
            return draw(effects, shown, reading, self._title(shown.prompt, reading), self._outlined(shown, reading))

        layout = widgets.VBox([arranged(self.controls), maps])
        super().__init__(self.controls, view, layout, first=first, draw=figure, still=still)

    def refresh(self) -> None:
        """Outline the cell, colour the picture and show what is known at once; then its neurons."""
        now = {name: control.value for name, control in self.controls.items()}
        self.map.selected = self._places.index((now["layer"], now["head"]))
        super().refresh()
        try:
            self.reading = self._read(*now.values())
        except Exception:  # the view says what is wrong
            self.reading, self.attention.values, self.attention.title = None, [], ""
            self._outline()

    def _colour(self, shown: Shown, reading: HeadReading) -> None:
        """The picture under the head's attention, its source token outlined."""
        self.reading = reading
        with self.attention.hold_trait_notifications():
            for name, value in self._looks(shown, reading).items():
                setattr(self.attention, name, value)

    def _looks(self, shown: Shown, reading: HeadReading) -> dict[str, Any]:
        """The picture under the head's attention: traits of a `PatchGrid`."""
        most = float(reading.attention.max())
        return {
            "picture": shown.picture,
            "size": shown.prompt.image.size,
            "boxes": shown.boxes,
            "values": reading.attention / max(most, 1e-6),
            "labels": [f"attention {a:.3f}" for a in reading.attention],
            "high": f"{most:.2g}",
            "title": self._title(shown.prompt, reading),
            "selected": self._outlined(shown, reading),
        }

    def _title(self, prompt: Prompt, reading: HeadReading) -> str:
        looks = f"{reading.name} spends {reading.attention.sum():.0%} of the last token's attention on the picture"
        if reading.source < 0:
            return f"{looks}."
        token = visible(self._vlm.tokenizer.decode([int(prompt.input_ids[0, reading.source])]))
        return f"{looks}; its source token is {'outlined' if reading.source in prompt.visual else f'‘{token}’ in the text'}."

    def _outline(self) -> None:
        """The source token is outlined; a click on the picture changes nothing."""
        shown = self._shown(self.controls["picture"].value) if self.reading else None
        self.attention.selected = self._outlined(shown, self.reading) if shown else -1

    def _outlined(self, shown: Shown, reading: HeadReading) -> int:
        visual = shown.prompt.visual
        return visual.index(reading.source) if reading.source in visual else -1

    def _cell_clicked(self, change: dict) -> None:
        if change["new"] < 0:
            return
        layer, head = self.controls["layer"], self.controls["head"]
        with layer.hold_trait_notifications(), head.hold_trait_notifications():  # both, before either is answered
            layer.value, head.value = self._places[change["new"]]


def _still(traits: Mapping[str, Any]) -> str:
    """A grid as HTML without a script; a page never hears of it."""
    grid = PatchGrid(**traits, comm=DummyComm())
    html = grid.static_html()
    grid.close()
    return html


def _controls(pairs: Mapping[str, Pair], effects: Effects) -> dict[str, widgets.Widget]:
    """They begin at the head of the largest effect, and know only heads that the map has."""
    start = dict(zip(("layer", "head"), means(effects.heads.effect).idxmax(), strict=True))
    sliders = {
        name: widgets.SelectionSlider(
            options=effects.numbers(name), value=int(start[name]), continuous_update=False, description=name
        )
        for name in ("layer", "head")
    }
    return {"picture": widgets.Dropdown(options=list(pairs), description="picture"), **sliders}


# the view


def reading_html(reading: HeadReading, pair: Pair, effects: Effects) -> str:
    """The event, and below it effects and neurons side by side."""
    return (
        f'<p class="muted">beside the picture: {escape(pair.event)}</p>'
        f'<div class="columns"><div class="narrow">{_effects(reading, pair, effects)}</div>'
        f'<div class="wide">{_neurons(reading, pair, effects.metric)}</div></div>'
    )


_HEADING = '<div class="heading"><b>{}</b> <span class="muted">{}</span></div>'
_SMALL = '<small class="muted note">{}</small>'


def _effects(reading: HeadReading, pair: Pair, effects: Effects) -> str:
    found, single = effects.found, reading.emotions
    rows = [("all", reading.effect, reading.corrected), *zip(single.index, single.effect, single.corrected, strict=True)]
    cells = "".join(_row(*row, effects.ends, row[0] == pair.emotion) for row in rows)
    heading = _HEADING.format(f"What {reading.name} does", f"{_share_of(found)} ({escape(found.metric)})")
    return f'{heading}<div class="figures wide">{cells}</div>{_SMALL.format(_about(reading, effects))}'


def _share_of(found: HeadMap) -> str:
    return f"share of the gap {'lost' if found.direction == 'noising' else 'closed'}"


def _about(reading: HeadReading, effects: Effects) -> str:
    """What the bars are, in small print."""
    found = effects.found
    return (
        f"{found.kind.capitalize()}, {TITLES[found.direction]}; 95% intervals over {reading.effect.n} pairs. All: "
        f"{_p(reading.corrected)} among the map's {len(effects.heads)} heads. *: corrected p of at most 0.05. Bold: the picture's "
        "emotion."
    )


def _row(name: str, interval: Interval, p: float, ends: tuple[float, float], bold: bool) -> str:
    return (
        f'<span style="font-weight:{"bold" if bold else "normal"}">{escape(name)}</span>'
        f"{_bar(interval, *ends, COLORS.get(name, GRAY))}<span>{_said(interval)}{'*' if p <= 0.05 else ''}</span>"
    )


def _bar(interval: Interval, low: float, high: float, color: str) -> str:
    """A mean as a bar from zero, and its interval as a line; what lies beyond the ends is cut there."""
    at = [100 * (min(max(x, low), high) - low) / (high - low) for x in (0.0, interval.mean, interval.low, interval.high)]
    if not np.isfinite(at).all():
        return "<span></span>"
    zero, mean, left, right = at
    bar = f'<rect x="{min(zero, mean):.2f}%" y="3" width="{abs(mean - zero):.2f}%" height="9" fill="{color}"/>'
    lines = "".join(
        f'<line x1="{x1:.2f}%" x2="{x2:.2f}%" y1="{y1}" y2="{y2}" stroke="currentColor" stroke-width="{width}"/>'
        for x1, x2, y1, y2, width in ((zero, zero, 0, 15, 0.7), (left, right, 7.5, 7.5, 1.4))
    )
    return f'<svg role="img" aria-label="{_said(interval)}" style="display:block;width:100%;height:15px">{bar}{lines}</svg>'


def _said(interval: Interval) -> str:
    mean, low, high = (f"{round(x, 2) + 0.0:.2f}" for x in (interval.mean, interval.low, interval.high))  # no -0.00
    return f"{mean} [{low}, {high}]"


def _p(p: float) -> str:
    return "corrected p below 0.001" if p < 0.001 else f"corrected p = {p:.2g}"


def _neurons(reading: HeadReading, pair: Pair, metric: str) -> str:
    heading = _HEADING.format(f"What wakes {reading.name} here", BELOW)
    if reading.neurons is None:
        return f"{heading}<div>{escape(reading.note)}</div>"
    table, known = reading.neurons.table, _known(reading.neurons)
    head = "".join(f"<th>{name}</th>" for name in _columns(known))
    body = "".join(_neuron(row, known) for row in table.itertuples())
    about = (
        f"Guess and patched: what the neuron adds through this head to the {metric} of {escape(pair.emotion)}, by the gradient and "
        "exactly, on this picture alone. Writes: what its output makes likelier, read by the unembedding. Of random neurons of "
        f"these layers, {reading.neurons.control:.0%} name an emotion."
    )
    return f'{heading}<div class="scroll"><table class="plain"><tr>{head}</tr>{body}</table></div>{_SMALL.format(about)}'


def _known(neurons: Neurons) -> int:
    """1 where the neurons' length along S is known, else 0."""
    return int(neurons.table.aligned.notna().all())


def _columns(known: int) -> list[str]:
    return ["neuron", "guess", "patched", *["along S"] * known, "writes", "names"]


def _cells(row: Any, known: int) -> list[str]:
    """A neuron in the words of the table; what it names comes last."""
    numbers = [row.score.mean, row.exact.mean, *[row.aligned] * known]
    return [neuron_name(row.layer, row.neuron), *(f"{x:+#.2g}" for x in numbers), visible(row.words).replace("␣", " "), row.names]


def _neuron(row: Any, known: int) -> str:
    *cells, names = _cells(row, known)
    dot = f'<span style="color:{COLORS.get(names, GRAY)}">●</span> {escape(names)}' if names else ""
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in [*map(escape, cells), dot]) + "</tr>"


# the figure


def draw(effects: Effects, shown: Shown, reading: HeadReading, looks: str, outlined: int) -> ShownFigure:
    """All that the panel shows as a figure: the map, the picture under the head's attention, effects and neurons."""
    sheet, most = Sheet(660), max(float(reading.attention.max()), 1e-6)
    y = _draw_map(sheet, effects, reading)
    below = sheet.text(390, 0, looks, size=9)
    below = sheet.patches(390, below + 4, 200, shown.prompt.image, shown.boxes, (reading.attention / most).tolist(), outlined)
    below = sheet.ramp(390, below + 4, 200, "0", f"{most:.2g}")
    y = sheet.text(0, max(y, below) + 6, f"beside the picture: {shown.pair.event}", size=9, color=FAINT) + 6
    _draw_effects(sheet, y, 260, effects, reading, shown.pair.emotion)
    _draw_neurons(sheet, 284, y, reading)
    return sheet.figure("A head of the map")


def _draw_map(sheet: Sheet, effects: Effects, reading: HeadReading) -> float:
    """The map with the chosen cell outlined."""
    figure = effects.found.plot()
    layers, heads, axis = effects.numbers("layer"), effects.numbers("head"), figure.axes[0]
    x, y = heads.index(reading.head) - 0.5, layers.index(reading.layer) - 0.5
    for color, line in (("black", 4.0), ("white", 1.8)):
        axis.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=color, linewidth=line, zorder=5, clip_on=False))
    return sheet.picture(0, 0, image_of(figure), 370)


def _draw_effects(sheet: Sheet, y: float, width: float, effects: Effects, reading: HeadReading, bold: str) -> float:
    """Bars of the share of the gap, all and by emotion, with their intervals as lines."""
    y = sheet.text(0, y, f"What {reading.name} does", size=10, weight="bold")
    y = sheet.text(0, y, f"{_share_of(effects.found)} ({effects.found.metric}), 95% intervals", size=8, color=FAINT) + 2
    low, high = effects.ends
    rows = [("all", reading.effect), *zip(reading.emotions.index, reading.emotions.effect, strict=True)]
    for name, interval in rows:
        at = [60 + 110 * (min(max(v, low), high) - low) / (high - low) for v in (0.0, interval.mean, interval.low, interval.high)]
        if np.isfinite(at).all():
            zero, mean, left, right = at
            sheet.box(min(zero, mean), y + 3, abs(mean - zero), 8, COLORS.get(name, GRAY))
            sheet.box(left, y + 6.6, right - left, 0.8, INK)
            sheet.box(zero, y, 0.5, 14, INK)
        sheet.text(0, y, name, 58, size=9, weight="bold" if name == bold else "normal")
        y = sheet.text(176, y, _said(interval), width - 176, size=8) + 2
    return y


def _draw_neurons(sheet: Sheet, x: float, y: float, reading: HeadReading) -> float:
    """The neurons' table, or why there is none."""
    y = sheet.text(x, y, f"What wakes {reading.name} here", size=10, weight="bold")
    y = sheet.text(x, y, BELOW, size=8, color=FAINT) + 2
    if reading.neurons is None:
        return sheet.text(x, y, reading.note, size=9)
    known = _known(reading.neurons)
    widths = [58, 48, 48, *[48] * known, 160 - 48 * known, 62]
    y = sheet.row(x, y, _columns(known), widths, 8, color=FAINT)
    return sheet.table(x, y, [_cells(row, known) for row in reading.neurons.table.itertuples()], widths, size=8)


# how it is called


def heads(
    vlm: VLM,
    found: HeadMap,
    pictures: Mapping[str, Any] | None = None,
    event: str = EVENT,
    *,
    pairs: Sequence[Pair] | None = None,
    directions: Directions | None = None,
    words: Words = None,
    answer: str = "I felt",
) -> HeadsPanel:
    """A panel to click through the heads of a map; `pictures` maps names to scenes, by default a clear test scene an emotion.

    `pairs`, in place of `pictures` and `event`: pictures with twins of your own. With `directions` the neurons' length along S
    stands in their table. `words` and `answer` as in `head_map`. Raises InputError where the map is of a larger model, or a
    picture has no twin.
    """
    if pairs is None:
        named = {name: _twins(name, scene, event) for name, scene in (pictures or clear_scenes()).items()}
    else:
        named = {f"{i}: {pair.name or pair.emotion}": pair for i, pair in enumerate(pairs)}
    if not named:
        raise InputError("There are no pairs to show; give pairs=world_pairs('test', 6), or none for scenes of the drawn world.")
    return HeadsPanel(vlm, found, named, directions, words, answer)


def _twins(name: str, scene: Any, event: str) -> Pair:
    if not isinstance(scene, Scene):
        raise InputError(
            f"{name!r} is no scene, so its neutral twin is not known; give pairs=[Pair(picture, twin, event, emotion)]."
        )
    return Pair(scene, scene.neutral(), event, scene.emotion, name=name)
