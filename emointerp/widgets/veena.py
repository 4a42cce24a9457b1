"""Panel of chapter 07: turn the strengths of heads and neurons, and read the story before and after, side by side.

Behind it is one `generate` a change: what does not change with the strengths, the story without VEENA and how sure the model is
there, is kept; where it is new, it is shown before the other is told. The case study tells several pictures beside one event, those
of equal strength in one batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from html import escape
from typing import Any, NamedTuple

import ipywidgets as widgets
import pandas as pd

from emointerp.emotions import BASIC, NEUTRAL, extract, named, score, words_for
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.evaluation.methods import Decoding, grouped
from emointerp.heads import HeadMap
from emointerp.lens import Words
from emointerp.markup import data_uri, marked, thumbnail
from emointerp.models import VLM, Prompt
from emointerp.neurons import Neurons
from emointerp.plots import BLUE, GRAY, YELLOW, ShownFigure
from emointerp.start_here import conflict_intensities
from emointerp.tracing import Edit, generate, perplexity
from emointerp.veena import Place, Veena, confidence
from emointerp.widgets.drawing import FAINT, Sheet
from emointerp.widgets.panel import BUSY, SEED, Panel, arranged
from emointerp.widgets.start_here import EVENTS
from emointerp.widgets.streaming import stories_so_far
from emointerp.world import SPLITS, Scene, loaded_events, sample

WARN = ' class="warning"'
BETAS, GAMMAS = (1.0, 64.0), (1.0, 3.0)  # where the sliders end
HEADS = 10  # heads at the start
LIMIT = 1.5  # a story that is so many times as perplexing stands out; the limit of `veena.fit`
TOKENS = 64


class Strengths(NamedTuple):
    """`beta` for the first `heads` of those found and `gamma` for the first `neurons`; `adaptive`: by the model's confidence."""

    beta: float
    gamma: float
    heads: int
    neurons: int
    adaptive: bool = False


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture and an event as the panel holds them: the prompt, and `before`, the story without VEENA.

    `shows` is the picture's emotion (scenes only), `suggests` the event's (loaded events of the world only); None: not known.
    """

    name: str
    event: str
    prompt: Prompt = field(repr=False)
    before: str
    shows: str | None
    suggests: str | None
    picture: str = field(repr=False)


@dataclass(frozen=True)
class Story:
    """A story and the emotions that it `named`.

    `seen`: it names what the picture shows; `exact`: and nothing else (both False where that is not known); `follows`: it names
    what the event suggests, where the picture shows something else.
    """

    text: str
    named: tuple[str, ...]
    seen: bool
    exact: bool
    follows: bool


@dataclass(frozen=True, eq=False)
class Mended:
    """A story before and after. `value` is what was applied (None: nothing), with the strengths that `sure` asked for.

    `cost` is the perplexity of the story after over that of the one before, both for the model without VEENA; `sure` a row of
    `veena.confidence`, None where strengths are fixed.
    """

    shown: Shown
    before: Story
    after: Story
    cost: float
    value: Veena | None
    sure: pd.Series | None = field(default=None, repr=False)


def prepared(vlm: VLM, pictures: Mapping[str, Any], event: str) -> list[Shown]:
    """Pictures beside one event, made ready for `compute`: they are told without VEENA, in one batch."""
    prompts = [vlm.prompt(picture, event) for picture in pictures.values()]
    stories = generate(vlm, prompts, max_new_tokens=TOKENS)
    return [
        Shown(name, event, prompt, story, _emotion(picture), suggested(event), data_uri(thumbnail(prompt.image, 320)))
        for (name, picture), prompt, story in zip(pictures.items(), prompts, stories, strict=True)
    ]


def _emotion(picture: Any) -> str | None:
    return picture.emotion if isinstance(picture, Scene) else None


def suggested(event: str) -> str | None:
    """The emotion that an event of the world suggests; None for neutral events and those of your own.

    >>> suggested("A few hours ago someone scratched my new car with a key on purpose.")
    'anger'
    """
    return _loaded().get(event.strip())


@cache
def _loaded() -> dict[str, str]:
    return {event: emotion for split in SPLITS for emotion in BASIC for event in loaded_events(emotion, split)}


def compute(
    vlm: VLM,
    shown: Sequence[Shown],
    value: Veena | None,
    sure: pd.DataFrame | None = None,
    wheels: WheelsLike = None,
    so_far: Callable[[str], None] | None = None,
) -> list[Mended]:
    """Each picture's story before and after; `value` None leaves it as it is.

    With `sure`, rows of `confidence`, each picture has a strength of its own, as in `veena.adaptive`. `so_far` is called with the
    first words of a single picture's story after (`streaming.stories_so_far`).
    """
    values = [value] * len(shown) if sure is None or value is None else [value.eased(round(share, 1)) for share in sure.share]
    watch = stories_so_far(vlm, 1, lambda texts: so_far(texts[0])) if so_far and len(shown) == 1 else []
    texts = _told(vlm, shown, [[] if one is None else one.edits() for one in values], watch)
    mended = []
    for i, (one, text, applied) in enumerate(zip(shown, texts, values, strict=True)):
        before, after = perplexity(vlm, one.prompt, [one.before, text])
        stories = [_story(one, said, wheels) for said in (one.before, text)]
        mended.append(Mended(one, *stories, after / before, applied, None if sure is None else sure.iloc[i]))
    return mended


def _told(vlm: VLM, shown: Sequence[Shown], edit_lists: Sequence[list[Edit]], watch: list[Callable]) -> list[str]:
    """The stories under each picture's edits; where there are none they are as before."""
    changed = [i for i, edits in enumerate(edit_lists) if edits]
    prompts, edits = [shown[i].prompt for i in changed], [edit_lists[i] for i in changed]
    told = grouped(vlm, prompts, edits, Decoding(TOKENS), logits_processor=watch)
    texts = dict(zip(changed, told, strict=True))
    return [texts.get(i, one.before) for i, one in enumerate(shown)]


def _story(shown: Shown, text: str, wheels: WheelsLike) -> Story:
    names = named(text, wheels)
    follows = shown.suggests in names and shown.suggests != shown.shows
    if shown.shows is None:
        return Story(text, names, False, False, follows)
    scores = score([text], shown.shows, wheels).iloc[0]
    return Story(text, names, bool(scores.hit > 0.5), bool(scores.exact), follows)


class VeenaPanel(Panel):
    """The controls, and the story before and after; where asked for, beside the same event those of all pictures.

    `controls` are "picture", "event", "beta", "gamma", "heads", "neurons", "adaptive" and "cases"; `mended` is what is shown,
    `cases` the case study, `veena` the value that the sliders stand for, to be kept (None: no heads and no neurons).
    """

    def __init__(
        self,
        vlm: VLM,
        whole: Veena,
        heads: Sequence[Place],
        pictures: Mapping[str, Any],
        event: str,
        start: Strengths,
        words: Words,
        wheels: WheelsLike,
    ):
        self._whole, self._heads, self._pictures = whole, heads, pictures
        words = words or {emotion: words_for(emotion) for emotion in BASIC}  # else the lexicon is read each time
        shown = lru_cache(maxsize=64)(lambda names, event: prepared(vlm, {name: pictures[name] for name in names}, event))
        sure = lru_cache(maxsize=64)(
            lambda names, event: confidence(vlm, [one.prompt for one in shown(names, event)], whole.l_emo, words=words)
        )

        def mended(names: tuple[str, ...], event: str, strengths: Strengths) -> list[Mended]:
            known, some = sure(names, event) if strengths.adaptive else None, shown(names, event)
            return compute(
                vlm, some, self._value(strengths), known, wheels, lambda after: self.so_far(begun_html(some[0], wheels, after))
            )

        self._mended = lru_cache(maxsize=256)(mended)

        def view(picture: str, event: str, cases: bool, **strengths: Any) -> str:
            one, every = self._read(picture, event, cases, Strengths(**strengths))
            return mended_html(one, wheels) + (cases_html(every, wheels) if every else "")

        begun: set[tuple[str, str]] = set()

        def first(picture: str, event: str, cases: bool, **_: Any) -> str | None:
            names, known = tuple(pictures) if cases else (picture,), (picture, event) in begun
            begun.update((name, event) for name in names)
            return None if known else begun_html(shown(names, event)[names.index(picture)], wheels)

        def figure(picture: str, event: str, cases: bool, **strengths: Any) -> ShownFigure:
            return draw(*self._read(picture, event, cases, Strengths(**strengths)), wheels)

        controls = _controls(pictures, event, start, len(heads), len(whole.neurons))
        super().__init__(controls, view, arranged(controls, wide=("event",)), first=first, draw=figure)

    @property
    def mended(self) -> Mended:
        """The story before and after, for the present values of the controls."""
        return self._read(*(self.controls[name].value for name in ("picture", "event", "cases")), self._now)[0]

    @property
    def cases(self) -> list[Mended]:
        """The same of all pictures beside the present event."""
        return self._mended(tuple(self._pictures), self.controls["event"].value, self._now)

    @property
    def veena(self) -> Veena | None:
        """What the sliders stand for, at its full strength."""
        return self._value(self._now)

    @property
    def _now(self) -> Strengths:
        return Strengths(*(self.controls[name].value for name in Strengths._fields))

    def _read(self, picture: str, event: str, cases: bool, strengths: Strengths) -> tuple[Mended, list[Mended]]:
        """The chosen picture, and all of them where these are asked for."""
        names = tuple(self._pictures) if cases else (picture,)
        every = self._mended(names, event, strengths)
        return every[names.index(picture)], every if cases else []

    def _value(self, strengths: Strengths) -> Veena | None:
        heads, neurons = set(self._heads[: strengths.heads]), self._whole.neurons[: strengths.neurons]
        if not (heads or neurons):
            return None
        sides = {side: [at for at in getattr(self._whole, side) if at in heads] for side in ("upstream", "downstream")}
        beta = {"beta": strengths.beta, "beta_decode": strengths.beta}
        return replace(self._whole, **sides, **beta, neurons=neurons, gamma=strengths.gamma)


def _controls(pictures: Mapping[str, Any], event: str, start: Strengths, n_heads: int, n_neurons: int) -> dict[str, widgets.Widget]:
    low, high = (math.log2(end) for end in BETAS)
    late: dict[str, Any] = {"continuous_update": False}
    return {
        "picture": widgets.Dropdown(options=list(pictures), description="picture"),
        "heads": widgets.IntSlider(start.heads, 0, n_heads, description="heads", **late),
        "beta": widgets.FloatLogSlider(
            value=start.beta, base=2, min=low, max=high, step=0.25, readout_format=".3g", description="beta", **late
        ),
        "neurons": widgets.IntSlider(start.neurons, 0, n_neurons, description="neurons", **late),
        "gamma": widgets.FloatSlider(value=start.gamma, min=GAMMAS[0], max=GAMMAS[1], step=0.1, description="gamma", **late),
        "adaptive": widgets.Checkbox(
            value=False,
            description="adaptive strengths",
            tooltip="strengths by the model's confidence in each picture",
        ),
        "cases": widgets.Checkbox(
            value=False, description="case study: all pictures", tooltip="the same event beside all pictures"
        ),
        "event": widgets.Combobox(value=event, options=EVENTS, description="event", **late),
    }


# the view


def mended_html(mended: Mended, wheels: WheelsLike = None) -> str:
    """The picture and the event, the two stories side by side with emotion words in their colours, and what the second one cost."""
    sides = (("without VEENA", mended.before, ""), ("with VEENA", mended.after, _figures(mended)))
    return _beside(mended.shown, [_side(*side, wheels, mended.shown) for side in sides])


def begun_html(shown: Shown, wheels: WheelsLike = None, after: str = "") -> str:
    """The same while the second story is being told, of which `after` is there."""
    words = f'<div class="muted">{BUSY}</div>' if not after else f'<div class="story">{marked(after, extract(after, wheels))}</div>'
    later = f'<div class="narrow ruled"><small class="muted">with VEENA</small>{words}</div>'
    return _beside(shown, [_side("without VEENA", _story(shown, shown.before, wheels), "", wheels, shown), later])


def _beside(shown: Shown, sides: Sequence[str]) -> str:
    return (
        f'<div class="beside"><img src="{shown.picture}" width="150" alt="the picture"/>'
        f'<div class="rest">{_asked(shown)}<div class="columns">{"".join(sides)}</div></div></div>'
    )


def _asked(shown: Shown) -> str:
    shows = f"the picture shows <b>{escape(shown.shows)}</b>" if shown.shows else "what the picture shows is not known"
    return f'<div>{escape(shown.event)}</div><small class="muted">{shows}{_hint(shown, "; ")}</small>'


def _hint(shown: Shown, before: str) -> str:
    return f"{before}the event suggests <b>{escape(shown.suggests)}</b>" if shown.suggests else ""


def _side(title: str, story: Story, figures: str, wheels: WheelsLike, shown: Shown) -> str:
    return (
        f'<div class="narrow ruled"><small class="muted">{title}</small>'
        f'<div class="story">{_text(story, wheels)}</div>'
        f"<div>{_names(story, shown)}</div>{figures}</div>"
    )


def _text(story: Story, wheels: WheelsLike) -> str:
    return marked(story.text, extract(story.text, wheels)) or "<i>nothing was said</i>"


def _names(story: Story, shown: Shown) -> str:
    """What a story names, and whether picture or event explain it."""
    (color, why), said = _outcome(story, shown), escape(_said(story))
    return f'<span style="color:{color}">●</span> names <b>{said}</b>{why and f", {why}"}'


def _said(story: Story) -> str:
    return ", ".join(story.named) or "no emotion"


def _outcome(story: Story, shown: Shown) -> tuple[str, str]:
    """A colour and a reason: what the picture shows, what the event suggests, both or neither."""
    reasons = [f"as the picture shows{' none' if shown.shows == NEUTRAL else ''}"] * story.seen
    reasons += ["as the event suggests"] * story.follows + ["more"] * (story.seen and not (story.exact or story.follows))
    color = YELLOW if story.follows else BLUE if story.seen else GRAY
    return color, " and ".join(reasons) or ("not what the picture shows" if shown.shows else "")


def _figures(mended: Mended) -> str:
    """Perplexity and strengths; the model's confidence where they follow it."""
    cells = "".join(f'<span class="muted">{name}</span><span{WARN * costly}>{said}</span>' for name, said, costly in _rows(mended))
    return f'<div class="figures">{cells}</div>'


def _rows(mended: Mended) -> list[tuple[str, str, bool]]:
    """What a story cost: a name, words, and whether they are a warning."""
    rows = [("perplexity", _times(mended.cost), mended.cost > LIMIT), ("scaled", _scaled(mended.value), False)]
    if mended.sure is not None:
        said = f"{mended.sure.sure:.2f} (mass of emotion words {mended.sure.mass:.2f}): {_share(mended):.0%} of the full strength"
        rows.insert(1, ("confidence", said, False))
    return rows


def _share(mended: Mended) -> float:
    return round(float(mended.sure.share), 1)


def _times(cost: float) -> str:
    """A cost in words.

    >>> _times(1.234), _times(2345.6)
    ("1.2 × the story's without VEENA", "2,346 × the story's without VEENA")
    """
    return "unknown, as a story is empty" if math.isnan(cost) else f"{cost:,.{int(cost < 10)}f} × the story's without VEENA"


def _scaled(value: Veena | None) -> str:
    """How many parts are scaled by what.

    >>> _scaled(Veena(upstream=[(2, 0)], downstream=[(5, 2)], neurons=[(6, 117)], beta=8.0, gamma=1.4))
    '2 heads × 8 (1 in the prompt, 1 in the answer), 1 neuron × 1.4'
    """
    if value is None or not value.edits():
        return "nothing"
    up, down, neurons = (len(getattr(value, name)) for name in Veena.lists)
    where = f"({up} in the prompt, {down} in the answer)"
    heads = [f"{_counted(up + down, 'head')} × {value.beta:.3g} {where}"] * (up + down > 0 and value.beta != 1)
    return ", ".join(heads + [f"{_counted(neurons, 'neuron')} × {value.gamma:.3g}"] * (neurons > 0 and value.gamma != 1))


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def cases_html(cases: Sequence[Mended], wheels: WheelsLike = None) -> str:
    """A table of all pictures beside one event: what each shows, and the stories before and after."""
    adapted = any(case.sure is not None for case in cases)
    head = "".join(f'<th scope="col">{name}</th>' for name in _columns(adapted))
    return (
        f'<div class="heading" style="margin-top:.8em"><b>{CASES}</b> '
        f'<span class="muted">{escape(cases[0].shown.event)}{_hint(cases[0].shown, " – ")}</span></div>'
        f'<div class="scroll"><table class="plain"><tr>{head}</tr>{"".join(_case(case, adapted, wheels) for case in cases)}</table>'
        f'</div><small class="muted note">{_count(cases)}{FEW}</small>'
    )


CASES, FEW = "One event, several pictures", "So few pictures are examples, not rates."


def _columns(adapted: bool) -> list[str]:
    return ["", "shows", "without VEENA", "with VEENA", "perplexity", *["strength"] * adapted]


def _count(cases: Sequence[Mended]) -> str:
    known = [case for case in cases if case.shown.shows]
    before, after = (sum(getattr(case, side).exact for case in known) for side in ("before", "after"))
    said = "Stories that name what the picture shows and nothing else"
    return f"{said}: {before} of {len(known)} without VEENA, {after} with it. " if known else ""


def _case(case: Mended, adapted: bool, wheels: WheelsLike) -> str:
    image = f'<img src="{case.shown.picture}" width="56" alt="{escape(case.shown.name)}"/>'
    stories = [
        f'<div style="max-width:26em" class="story">{_text(story, wheels)}</div><small>{_names(story, case.shown)}</small>'
        for story in (case.before, case.after)
    ]
    cells = [image, escape(case.shown.shows or "not known"), *stories, *_costs(case, adapted)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _costs(case: Mended, adapted: bool) -> list[str]:
    """The cost of a case and, where strengths are adapted, its share of the full strength."""
    cost = "" if math.isnan(case.cost) else f"{case.cost:,.1f} ×"
    return [cost, *[f"{_share(case):.0%}" if case.sure is not None else ""] * adapted]


# the figure


def draw(mended: Mended, cases: Sequence[Mended], wheels: WheelsLike = None) -> ShownFigure:
    """All that the panel shows as a figure."""
    sheet, shown = Sheet(660), mended.shown
    bottom = sheet.picture(0, 0, shown.prompt.image, 116)
    known = f"the picture shows {shown.shows}" if shown.shows else "what the picture shows is not known"
    y = sheet.text(132, 0, shown.event, size=10)
    y = sheet.text(132, y, known + (f"; the event suggests {shown.suggests}" if shown.suggests else ""), size=9, color=FAINT)
    left = _draw_side(sheet, 132, y, 250, "without VEENA", mended.before, shown, wheels)
    right = _draw_side(sheet, 400, y, 258, "with VEENA", mended.after, shown, wheels)
    for name, said, costly in _rows(mended):
        sheet.text(400, right, name, size=8, color=FAINT)
        right = sheet.text(456, right, said, 200, size=8, weight="bold" if costly else "normal")
    if cases:
        _draw_cases(sheet, max(bottom, left, right) + 14, cases, wheels)
    return sheet.figure("A story before and after VEENA")


def _draw_side(
    sheet: Sheet, x: float, y: float, width: float, title: str, story: Story, shown: Shown, wheels: WheelsLike, size: float = 11
) -> float:
    """A story and what it names."""
    if title:
        y = sheet.text(x, sheet.rule(x, y, width), title, size=9, color=FAINT) + 2
    y = sheet.text(x, y, story.text or "nothing was said", width, marks=extract(story.text, wheels), size=size) + 2
    color, why = _outcome(story, shown)
    sheet.text(x, y, "●", size=8, color=color)
    return sheet.text(x + 11, y, f"names {_said(story)}{why and f', {why}'}", width - 11, size=8) + 2


def _draw_cases(sheet: Sheet, y: float, cases: Sequence[Mended], wheels: WheelsLike) -> float:
    """The table of all pictures beside one event."""
    adapted, places = any(case.sure is not None for case in cases), (0, 54, 120, 342, 566, 622)
    y = sheet.text(0, y, CASES, weight="bold")
    y = sheet.text(0, y, cases[0].shown.event, size=9, color=FAINT) + 2
    for x, name in zip(places, _columns(adapted), strict=False):
        sheet.text(x, y, name, size=8, color=FAINT)
    y += 16
    for case in cases:
        ends = [sheet.picture(0, y, case.shown.prompt.image, 44), sheet.text(54, y, case.shown.shows or "not known", 62, size=9)]
        for x, story in ((120, case.before), (342, case.after)):
            ends.append(_draw_side(sheet, x, y, 208, "", story, case.shown, wheels, size=9))
        for x, said in zip(places[4:], _costs(case, adapted), strict=False):
            sheet.text(x, y, said, size=9)
        y = max(ends) + 6
    return sheet.text(0, y, f"{_count(cases)}{FEW}", size=8, color=FAINT)


# how it is called


def veena(
    vlm: VLM,
    found: HeadMap | Sequence[Place],
    neurons: Neurons | Sequence[Place],
    l_emo: int,
    pictures: Mapping[str, Any] | None = None,
    event: str | None = None,
    *,
    beta: float = 8.0,
    gamma: float = 1.4,
    words: Words = None,
    wheels: WheelsLike = None,
    **options: Any,
) -> VeenaPanel:
    """A panel to mend stories with, without a label: heads and neurons serve all emotions.

    `found` and `neurons` are places in order of effect, or a map of heads, of which those count that pass their test, and neurons,
    of which those are taken that name an emotion and that exact patching confirms. `pictures` maps names to pictures, by default a
    test scene an emotion, as faint as in the conflict set, and a neutral twin; `event` is by default one that contradicts the first
    of them.

    `beta` and `gamma` are where the sliders start. `options` are fields of `Veena` (form, prefill_at); `words` those of
    `veena.confidence`. Raises InputError where nothing was found, or this model has no such place, or a slider cannot start there.
    """
    for name, value, (low, high) in (("beta", beta, BETAS), ("gamma", gamma, GAMMAS)):
        if not low <= value <= high:
            raise InputError(f"{name} is to start at {value}; its slider goes from {low:g} to {high:g}.")
    heads, states = _heads(found), _states(neurons)
    whole = Veena.of(vlm, heads, states, l_emo=l_emo, **options)
    pictures = _pictures(vlm) if pictures is None else dict(pictures)
    if not pictures:
        raise InputError("There are no pictures to show; give names and pictures, or none for scenes of the drawn world.")
    event = _contradicting(next(iter(pictures.values()))) if event is None else event
    start = Strengths(beta, gamma, min(HEADS, len(heads)), len(states))
    return VeenaPanel(vlm, whole, heads, pictures, event, start, words, wheels)


def _heads(found: HeadMap | Sequence[Place]) -> list[Place]:
    return [(int(layer), int(head)) for layer, head in (found.passed() if isinstance(found, HeadMap) else found)]


def _states(neurons: Neurons | Sequence[Place]) -> list[Place]:
    if not isinstance(neurons, Neurons):
        return list(neurons)
    states = [part for part in neurons.parts() if part.kind == "state"]
    return [(part.layer, part.neuron) for part in sorted(states, key=lambda part: -part.score)]


def _pictures(vlm: VLM) -> dict[str, Any]:
    band = conflict_intensities(vlm)
    scenes = {e: sample("test", 1, SEED, emotions=(e,), intensity=band)[0].scene for e in BASIC}
    return scenes | {f"neutral twin of {BASIC[0]}": scenes[BASIC[0]].neutral()}


def _contradicting(picture: Any) -> str:
    """An event that suggests the emotion after the picture's in the list of six; for other pictures, the first."""
    shows = _emotion(picture)
    i = BASIC.index(shows) + 1 if shows in BASIC else 0
    return loaded_events(BASIC[i % len(BASIC)], "test")[0]
