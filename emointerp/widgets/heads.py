"""Panel of chapter 06: click a head in the map; see where it looks, what it brings over in each emotion, and what wakes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from jaxtyping import Float

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
from emointerp.plots import COLORS
from emointerp.sources import checked_places, source_tokens
from emointerp.start_here import EVENT
from emointerp.statistics import Interval
from emointerp.widgets.panel import Panel, clear_scenes
from emointerp.widgets.patch_grid import PatchGrid
from emointerp.widgets.token_strip import visible
from emointerp.world import Scene

SHOWN = 6  # neurons; each is patched exactly, which is most of what a click costs
_GRAY = "#8A8F98"


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
    if (layer, head) not in effects.heads.index:
        has = "; ".join(f"{what}s {', '.join(map(str, effects.numbers(what)))}" for what in ("layer", "head"))
        raise InputError(f"The map has no head {head_name(layer, head)}; it has {has}.")
    row, emotions = effects.heads.loc[(layer, head)], effects.emotions.xs((layer, head), level=("layer", "head"))
    reading = HeadReading(layer, head, row.effect, float(row.corrected), emotions, shown.attention[layer, head])
    twice = [shown.pair] * 2  # one pair's values are asked for; means over pairs, for which two are demanded, are not
    options: dict[str, Any] = {"metric": effects.metric, "words": words, "answer": answer, "progress": False}
    try:
        reading = replace(reading, source=source_tokens(vlm, twice, [(layer, head)], **options).tokens(layer, head)[0])
        if layer == 0:
            return replace(reading, note=f"{reading.name} is in the first layer; no neurons lie below it.")
        below = trigger_neurons(vlm, twice, [(layer, head)], directions, k=SHOWN, at="visual", flips=1, **options)
    except EmointerpError as error:
        return replace(reading, note=str(error))
    return replace(reading, neurons=below)


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
        self._read = lru_cache(maxsize=256)(
            lambda picture, layer, head: compute(vlm, effects, self._shown(picture), layer, head, **options)
        )
        self._vlm, self._places, self.reading = vlm, [tuple(map(int, place)) for place in effects.heads.index], None
        self.map, self.attention, self.controls = clickable(effects), PatchGrid(width=290), _controls(pairs, effects)
        self.map.observe(self._cell_clicked, names="selected")
        self.attention.observe(lambda _: self._outline(), names="selected")
        maps = widgets.HBox([self.map, self.attention], layout=widgets.Layout(flex_flow="row wrap"))

        def view(picture: str, layer: int, head: int) -> str:
            return reading_html(self._read(picture, layer, head), self._shown(picture).pair, effects)

        super().__init__(self.controls, view, widgets.VBox([widgets.HBox([*self.controls.values()]), maps]))

    def refresh(self) -> None:
        """Compute for the present values, then colour the picture and outline the cell."""
        super().refresh()
        now = {name: control.value for name, control in self.controls.items()}
        self.map.selected = self._places.index((now["layer"], now["head"]))
        try:
            self.reading = self._read(*now.values())
        except Exception:  # the view says what is wrong
            self.reading, self.attention.values, self.attention.title = None, [], ""
            self._outline()
        else:
            self._draw(self._shown(now["picture"]), self.reading)

    def _draw(self, shown: Shown, reading: HeadReading) -> None:
        most = float(reading.attention.max())
        with self.attention.hold_trait_notifications():
            self.attention.picture, self.attention.size, self.attention.boxes = shown.picture, shown.prompt.image.size, shown.boxes
            self.attention.values = reading.attention / max(most, 1e-6)
            self.attention.labels = [f"attention {a:.3f}" for a in reading.attention]
            self.attention.high, self.attention.title = f"{most:.2g}", self._title(shown.prompt, reading)
        self._outline()

    def _title(self, prompt: Prompt, reading: HeadReading) -> str:
        looks = f"{reading.name} spends {reading.attention.sum():.0%} of the last token's attention on the picture"
        if reading.source < 0:
            return f"{looks}."
        token = visible(self._vlm.tokenizer.decode([int(prompt.input_ids[0, reading.source])]))
        return f"{looks}; its source token is {'outlined' if reading.source in prompt.visual else f'‘{token}’ in the text'}."

    def _outline(self) -> None:
        """The source token is outlined; a click on the picture changes nothing."""
        visual = self._shown(self.controls["picture"].value).prompt.visual if self.reading else ()
        self.attention.selected = visual.index(self.reading.source) if self.reading and self.reading.source in visual else -1

    def _cell_clicked(self, change: dict) -> None:
        if change["new"] < 0:
            return
        layer, head = self.controls["layer"], self.controls["head"]
        with layer.hold_trait_notifications(), head.hold_trait_notifications():  # both, before either is answered
            layer.value, head.value = self._places[change["new"]]

    def _repr_mimebundle_(self, **options: Any) -> dict:
        """The live panel, and beside it what it shows now, for pages where widgets are dead (GitHub, slides)."""
        bundle = super()._repr_mimebundle_(**options)
        maps = f'<div style="display:flex;flex-wrap:wrap;gap:1em">{self.map.static_html()}{self.attention.static_html()}</div>'
        return bundle and {**bundle, "text/html": maps + self.view.value}


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
        f'<div style="opacity:.75">beside the picture: {escape(pair.event)}</div>'
        '<div style="display:flex;flex-wrap:wrap;gap:.6em 2.5em;line-height:1.45;margin:.3em 0">'
        f'<div style="flex:1 1 24em;max-width:34em">{_effects(reading, pair, effects)}</div>'
        f'<div style="flex:1 1 30em;max-width:52em">{_neurons(reading, pair, effects.metric)}</div></div>'
    )


_HEADING = '<div style="border-bottom:1px solid #8a8f9855;margin-bottom:.4em"><b>{}</b> <span style="opacity:.75">{}</span></div>'
_SMALL = '<small style="display:block;opacity:.75;margin-top:.5em">{}</small>'


def _effects(reading: HeadReading, pair: Pair, effects: Effects) -> str:
    found, single = effects.found, reading.emotions
    rows = [("all", reading.effect, reading.corrected), *zip(single.index, single.effect, single.corrected, strict=True)]
    cells = "".join(_row(*row, effects.ends, row[0] == pair.emotion) for row in rows)
    about = (
        f"{found.kind.capitalize()}, {TITLES[found.direction]}; 95% intervals over {reading.effect.n} pairs. All: "
        f"{_p(reading.corrected)} among the map's {len(effects.heads)} heads. *: corrected p of at most 0.05. Bold: the picture's "
        "emotion."
    )
    grid = "display:grid;grid-template-columns:auto 1fr auto;gap:.15em .8em;align-items:center;font-variant-numeric:tabular-nums"
    told = "lost" if found.direction == "noising" else "closed"
    heading = _HEADING.format(f"What {reading.name} does", f"share of the gap {told} ({escape(found.metric)})")
    return f'{heading}<div style="{grid}">{cells}</div>{_SMALL.format(about)}'


def _row(name: str, interval: Interval, p: float, ends: tuple[float, float], bold: bool) -> str:
    return (
        f'<span style="font-weight:{"bold" if bold else "normal"}">{escape(name)}</span>'
        f"{_bar(interval, *ends, COLORS.get(name, _GRAY))}<span>{_said(interval)}{'*' if p <= 0.05 else ''}</span>"
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
    heading = _HEADING.format(f"What wakes {reading.name} here", "neurons below it, at the picture's tokens")
    if reading.neurons is None:
        return f"{heading}<div>{escape(reading.note)}</div>"
    table, known = reading.neurons.table, int(reading.neurons.table.aligned.notna().all())
    columns = ["neuron", "guess", "patched", *["along S"] * known, "writes", "names"]
    head = "".join(f'<th style="{_CELL};font-weight:normal;opacity:.75">{name}</th>' for name in columns)
    body = "".join(_neuron(row, known) for row in table.itertuples())
    about = (
        f"Guess and patched: what the neuron adds through this head to the {metric} of {escape(pair.emotion)}, by the gradient and "
        "exactly, on this picture alone. Writes: what its output makes likelier, read by the unembedding. Of random neurons of "
        f"these layers, {reading.neurons.control:.0%} name an emotion."
    )
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.95em"
    return f'{heading}<table style="{style}"><tr>{head}</tr>{body}</table>{_SMALL.format(about)}'


_CELL = "text-align:left;padding:.1em .9em .1em 0;vertical-align:top;background:none"


def _neuron(row: Any, known: int) -> str:
    numbers = [row.score.mean, row.exact.mean, *[row.aligned] * known]
    dot = f'<span style="color:{COLORS.get(row.names, _GRAY)}">●</span> {escape(row.names)}' if row.names else ""
    words = escape(visible(row.words).replace("␣", " "))
    cells = [neuron_name(row.layer, row.neuron), *(f"{x:+#.2g}" for x in numbers), words, dot]
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


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
