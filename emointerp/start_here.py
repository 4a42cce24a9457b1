"""Chapter 00: does the model see the feeling, or guess it from the words?

One picture and one event make a `Telling`. `see_or_guess` asks the chapter's question with its controls: the same pictures
beside a neutral event, an agreeing one, a contradicting one; their neutral twins; and a gray picture beside the same words.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from emointerp.emotions import BASIC, NEUTRAL, EmotionWord, extract, named, score
from emointerp.errors import InputError
from emointerp.given import tuples, whole_number
from emointerp.markup import data_uri, marked, thumbnail
from emointerp.models import VLM, to_image
from emointerp.models.familiarity import Familiarity, familiarity
from emointerp.models.vlm import check_model
from emointerp.plots import BLUE, COLORS, INK, QUIET, YELLOW, new_figure
from emointerp.saved import Saved
from emointerp.statistics import Interval, mean_interval
from emointerp.tracing import generate
from emointerp.world import Example, Scene, sample
from emointerp.world.splits import CLEAR

EVENT = "The phone rang twice while I was cooking."
TWIN = "Its neutral twin: the face at rest, emotional things gone"
CONDITIONS = ("neutral event", "agreeing event", "conflicting event", "neutral twin", "gray picture")
EMPTY = ("neutral twin", "gray picture")  # conditions whose picture shows no emotion
NAMED = ("the picture's emotion", "the event's emotion", "another emotion", "no emotion")


@dataclass(frozen=True)
class Telling:
    """The story that a model tells of a picture and an event, with the emotion words in it.

    `emotion` is what the picture is known to show (a `Scene`), or None; `whole` is False while the story is being told.
    """

    picture: Image.Image = field(repr=False)
    event: str
    story: str
    emotion: str | None = None
    whole: bool = field(default=True, repr=False)

    @cached_property
    def words(self) -> tuple[EmotionWord, ...]:
        """Emotion words of the story, in order."""
        return tuple(extract(self.story))

    @property
    def named(self) -> tuple[str, ...]:
        """The emotions that the story names."""
        return named(self.story)

    def _repr_html_(self) -> str:
        picture = data_uri(thumbnail(self.picture, 320))
        known = f"the picture shows <b>{escape(self.emotion)}</b>" if self.emotion else "what it shows is not known"
        names = f"; the story names <b>{', '.join(self.named) or 'no emotion'}</b>" if self.whole else ""
        return (
            '<div style="display:flex;gap:1em;align-items:center;margin:.4em 0;max-width:46em">'
            f'<img src="{picture}" width="150" style="border-radius:6px;flex:none" alt="the picture">'
            f'<div><div style="opacity:.75">{marked(self.event, ())}</div><div style="font-size:1.15em;margin:.3em 0">'
            f"{marked(self.story, self.words)}</div>"
            f'<small style="opacity:.75">{known}{names}</small></div></div>'
        )


def tell(vlm: VLM, picture: Any, event: str = EVENT, **options: Any) -> Telling:
    """The story that the model tells of a picture (path, PIL image, array or `Scene`) and an event; `options` as in `generate`.

    >>> import emointerp as ei
    >>> told = ei.tell(ei.load(), ei.world_pairs("test", 1)[0].emotional)
    >>> told.emotion, told.named
    ('anger', ('anger',))
    """
    return tell_all(vlm, [(picture, event)], progress=False, **options)[0]


def tell_all(vlm: VLM, told: Iterable[tuple[Any, str]], progress: bool = True, batch: int = 32, **options: Any) -> list[Telling]:
    """The stories of many (picture, event) pairs, in batches."""
    check_model(vlm)
    told, batch = tuples(told, 2, "pair of picture and event", "a list of (picture, event)"), whole_number(batch, "batch", 1)
    tellings: list[Telling] = []
    for start in tqdm(range(0, len(told), batch), desc="stories", disable=not progress):
        some = told[start : start + batch]
        prompts = [vlm.prompt(picture, event) for picture, event in some]
        for (picture, event), prompt, answer in zip(some, prompts, generate(vlm, prompts, batch=batch, **options), strict=True):
            emotion = picture.emotion if isinstance(picture, Scene) else None
            tellings.append(Telling(prompt.image, event, answer, emotion))
    return tellings


@dataclass(frozen=True)
class Reading:
    """What the model makes of one picture: its story, its neutral twin's story where one exists, and how familiar it is."""

    telling: Telling
    twin: Telling | None
    familiarity: Familiarity | None


def with_twin(picture: Any) -> list[Any]:
    """The picture, and its neutral twin if it is a scene of the drawn world."""
    return [picture, picture.neutral()] if isinstance(picture, Scene) else [picture]


def read(vlm: VLM, picture: Any, event: str = EVENT, **options: Any) -> Reading:
    """Tell a picture's story, and that of its neutral twin if it has one; `options` as in `generate`."""
    telling, *twin = tell_all(vlm, [(one, event) for one in with_twin(picture)], progress=False, **options)
    return Reading(telling, twin[0] if twin else None, familiarity(vlm, to_image(picture)))


@dataclass(frozen=True)
class SeeOrGuess(Saved):
    """Stories under each condition. `table` has a row a story: condition, emotion, event_emotion, story, named, hit, exact, …"""

    table: pd.DataFrame
    intensities: tuple[float, float]

    def to_frame(self) -> pd.DataFrame:
        """Share of stories that name the picture's emotion, the event's, another, or none: one row a condition."""
        shares = pd.crosstab(self.table["condition"], self.table["names"], normalize="index")
        return shares.reindex(index=CONDITIONS, columns=NAMED, fill_value=0.0)

    def intervals(self) -> dict[str, Interval]:
        """Hit rate of the picture's emotion per condition; false-emotion rate for the neutral twins."""
        groups = dict(tuple(self.table.groupby("condition")))
        column = {"neutral twin": "false_emotion"}
        return {c: mean_interval(groups[c][column.get(c, "hit")]) for c in CONDITIONS if c != "gray picture"}

    def sway(self) -> Interval:
        """How much a conflicting event costs: hit rate beside a neutral event less that beside a conflicting one, by picture."""
        hits = {c: self.table.hit[self.table.condition == c].to_numpy() for c in CONDITIONS}
        return mean_interval(hits["neutral event"] - hits["conflicting event"])

    def plot(self) -> Figure:
        """What the stories name, one bar a condition."""
        frame, (figure, axis) = self.to_frame(), new_figure(width=8, height=3.2)
        colors, left = (BLUE, YELLOW, "#b9bec6", "#eceef1"), pd.Series(0.0, index=frame.index)
        for name, color in zip(NAMED, colors, strict=True):
            bars = axis.barh(frame.index, frame[name], left=left, color=color, edgecolor="white", label=name)
            axis.bar_label(
                bars,
                [f"{v:.0%}" if v >= 0.06 else "" for v in frame[name]],
                label_type="center",
                fontsize=9,
                color="white" if color == colors[0] else INK,
            )
            left = left + frame[name]
        axis.invert_yaxis()
        axis.set(xlim=(0, 1), title="What the stories name")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
        return figure


def see_or_guess(
    vlm: VLM,
    n: int = 120,
    seed: int = 0,
    split: str = "test",
    intensities: tuple[float, float] | None = None,
    progress: bool = True,
    batch: int = 32,
) -> SeeOrGuess:
    """Tell `n` pictures of a split under every condition; `intensities` default to those of `conflict_intensities`.

    The pictures are the same in all conditions but the gray one, which shows nothing, so that only the words can speak.

    >>> import emointerp as ei
    >>> ei.see_or_guess(ei.load(), n=7, progress=False).to_frame().index.tolist()
    ['neutral event', 'agreeing event', 'conflicting event', 'neutral twin', 'gray picture']
    """
    check_model(vlm)
    if whole_number(n, "n") < len(BASIC):
        raise InputError(f"n is {n}; at least {len(BASIC)} pictures are needed, one an emotion.")
    band = intensities or conflict_intensities(vlm)
    drawn = {e: sample(split, n, seed, emotions=BASIC, intensity=band, events=e) for e in ("neutral", "loaded", "conflict")}
    scenes = [e.scene for e in drawn["neutral"]]
    # emotions come in turn in all three, so an event drawn for an emotion stays one for it beside another scene
    conflict = [replace(e, scene=s) for s, e in zip(scenes, drawn["conflict"], strict=True)]
    agreeing = [replace(e, scene=s) for s, e in zip(scenes, drawn["loaded"], strict=True)]
    gray = Image.new("RGB", (128, 128), "#8a8f98")
    told = {
        "neutral event": [(e.scene, e) for e in drawn["neutral"]],
        "agreeing event": [(e.scene, e) for e in agreeing],
        "conflicting event": [(e.scene, e) for e in conflict],
        "neutral twin": [(e.scene.neutral(), e) for e in drawn["neutral"]],
        "gray picture": [(gray, e) for e in conflict],
    }
    rows = []
    for condition, items in told.items():
        tellings = tell_all(vlm, [(picture, e.event) for picture, e in items], progress, batch)
        rows += [_row(condition, e, t) for (_, e), t in zip(items, tellings, strict=True)]
    table = pd.DataFrame(rows)
    scores = score(list(table["story"]), list(table["shown"])).drop(columns=["emotion", "named"])
    return SeeOrGuess(table.join(scores), band)


def _row(condition: str, example: Example, telling: Telling) -> dict:
    names, shown = telling.named, NEUTRAL if condition in EMPTY else example.scene.emotion
    if not names:
        what = "no emotion"
    elif shown in names:
        what = "the picture's emotion"
    else:
        what = "the event's emotion" if example.event_emotion in names else "another emotion"
    row = {"condition": condition, "scene": example.scene.seed, "emotion": example.scene.emotion, "shown": shown}
    row |= {"event_emotion": example.event_emotion, "event": telling.event, "story": telling.story}
    return row | {"named": names, "names": what}


def conflict_intensities(vlm: VLM) -> tuple[float, float]:
    """The faintest intensities at which the model reads a picture right beside a neutral event; from its card, else clear ones."""
    card = Path(vlm.folder) / "card.json" if vlm.folder else None
    return tuple(json.loads(card.read_text())["conflict"]["intensities"]) if card and card.exists() else CLEAR


@dataclass(frozen=True)
class Scores:
    """How well stories name what test pictures show; `table` has a row a story, neutral pictures included."""

    table: pd.DataFrame

    def intervals(self) -> dict[str, Interval]:
        """Hit and exact rate over the six emotions, precision, emotion words a story; false-emotion rate on neutral pictures."""
        emotional, neutral = self.table[self.table.emotion != NEUTRAL], self.table[self.table.emotion == NEUTRAL]
        rows = {"hit rate": "hit", "exact rate": "exact", "precision": "precision", "emotion words a story": "n_words"}
        return {name: mean_interval(emotional[column]) for name, column in rows.items()} | {
            "false-emotion rate": mean_interval(neutral["false_emotion"])
        }

    def plot(self) -> Figure:
        """Hit rate per emotion with its interval, and the share of neutral pictures told without an emotion."""
        figure, axis = new_figure(width=7, height=3)
        for i, emotion in enumerate((*BASIC, NEUTRAL)):
            rate = mean_interval(self.table.hit[self.table.emotion == emotion])
            axis.bar(i, rate.mean, color=COLORS[emotion], width=0.7)
            axis.errorbar(i, rate.mean, [[rate.mean - rate.low], [rate.high - rate.mean]], color="#30343f", capsize=3)
        axis.set_xticks(range(7), (*BASIC, NEUTRAL))
        axis.set(xlim=(-0.6, 8.0), ylim=(0, 1.05), ylabel="share", title="Stories that name what the picture shows")
        axis.axhline(1 / 7, color=QUIET, linestyle=":", linewidth=1)
        axis.annotate("chance,\nseven ways", (6.45, 1 / 7), ha="left", va="bottom", fontsize=8, color=QUIET)
        return figure


def scores(vlm: VLM, n: int = 140, seed: int = 0, split: str = "test", progress: bool = True, batch: int = 32) -> Scores:
    """Tell `n` clear pictures of a split, each beside a neutral event, and score the stories."""
    examples = sample(split, n, seed)
    tellings = tell_all(vlm, [(e.scene, e.event) for e in examples], progress, batch)
    return Scores(score([t.story for t in tellings], [e.scene.emotion for e in examples]).assign(story=[t.story for t in tellings]))
