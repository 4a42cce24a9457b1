"""What a model is asked: a picture, a text, and what would be right; and the sets of the drawn world.

Beside the sets on which a cure should help stand those on which it must not harm (neutral pictures, plain questions), and those
that show whether a gain comes from the picture: with a blank, a shuffled or another picture's content it has to disappear.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from emointerp.emotions import BASIC, NEUTRAL
from emointerp.errors import InputError
from emointerp.models import VLM, Prompt, to_image
from emointerp.pairs import Pair, fingerprint
from emointerp.start_here import conflict_intensities
from emointerp.world import sample
from emointerp.world.language import NON_EMOTIONAL, questions
from emointerp.world.splits import HARD_TESTS

WORLD, CONFLICT, CALM = "world", "conflict", "conflict pictures, neutral event"
NEUTRALS, QUESTIONS = "neutral pictures", "questions"
BLANK, SHUFFLED, SWAPPED = "conflict, blank picture", "conflict, shuffled picture", "conflict, swapped picture"
HARD = tuple(f"hard: {name}" for name in HARD_TESTS if name != "conflict")
SETS = (WORLD, CONFLICT, CALM, *HARD, NEUTRALS, QUESTIONS, BLANK, SHUFFLED, SWAPPED)
OWN, TWINS = "test pairs, emotional side", "test pairs, neutral side"  # of pairs of your own
TILES = 16  # a picture is shuffled by tiles, this many a side: larger ones may hold a mouth


@dataclass(frozen=True)
class Item:
    """A picture and a text, in a `set`; `gold` is the emotion (or "neutral"), or the answer to a plain question.

    `instruction` as in `VLM.prompt`: None asks for a story, "" leaves a question alone. `suggested` is the emotion that the text
    suggests, if any.
    """

    set: str
    picture: Any = field(repr=False)
    text: str
    gold: str
    instruction: str | None = None
    suggested: str = ""

    def prompt(self, vlm: VLM, instruction: str | None = None) -> Prompt:
        """The prompt; an `instruction` takes the place of a story's own, not of a plain question's."""
        return vlm.prompt(self.picture, self.text, instruction=instruction if self.instruction is None else self.instruction)

    @property
    def key(self) -> str:
        """What tells this item from others, for files that are resumed."""
        return json.dumps([fingerprint(to_image(self.picture)), self.text, self.gold, self.instruction])


def world_items(vlm: VLM, name: str, n: int = 120, seed: int = 21, split: str = "test") -> list[Item]:
    """`n` items of one of `SETS`, emotions in turn, from a split of the drawn world.

    The conflict sets use the intensities at which the model reads pictures beside neutral events (`conflict_intensities`), fixed
    on the tuning split when the model was made. All of them hold the same pictures and, but for `CALM`, the same events.

    >>> import emointerp as ei
    >>> [item.gold for item in ei.evaluation.world_items(ei.load(), "conflict", 6)]
    ['anger', 'disgust', 'fear', 'joy', 'sadness', 'surprise']
    """
    if name not in SETS:
        raise InputError(f"There is no set {name!r}; there are {', '.join(map(repr, SETS))}.")
    if n < 2:
        raise InputError(f"n is {n}; expected two items or more, better some of each emotion.")
    if name == QUESTIONS:
        return _questions(n, seed, split)
    if name == NEUTRALS:
        return [Item(name, e.scene, e.event, NEUTRAL) for e in sample(split, n, seed, emotions=(NEUTRAL,))]
    if name == WORLD or name in HARD:
        hard = name.removeprefix("hard: ") if name in HARD else None
        return [Item(name, e.scene, e.event, e.scene.emotion) for e in sample(split, n, seed, hard=hard, emotions=BASIC)]
    band = conflict_intensities(vlm)
    calm = sample(split, n, seed, emotions=BASIC, intensity=band)
    if name == CALM:
        return [Item(name, e.scene, e.event, e.scene.emotion) for e in calm]
    loaded = sample(split, n, seed, emotions=BASIC, intensity=band, events="conflict")
    items = [Item(name, a.scene, b.event, a.scene.emotion, suggested=b.event_emotion) for a, b in zip(calm, loaded, strict=True)]
    return _without_evidence(items, name, np.random.default_rng(seed))


def conflict_pairs(vlm: VLM, n: int = 72, seed: int = 5, split: str = "tuning") -> list[Pair]:
    """The conflict set as pairs, to choose strengths on: beside the picture an event that contradicts it, beside its neutral twin
    a neutral one, where naming an emotion is wrong.
    """
    told, calm = (world_items(vlm, name, n, seed, split) for name in (CONFLICT, NEUTRALS))
    return [
        Pair(item.picture, item.picture.neutral(), item.text, item.gold, split, f"{split} {i}", neutral_event=other.text)
        for i, (item, other) in enumerate(zip(told, calm, strict=True))
    ]


def pair_items(pairs: Sequence[Pair]) -> dict[str, list[Item]]:
    """Both sides of pairs as sets: emotional ones, and neutral ones, where naming an emotion is wrong."""
    return {
        OWN: [Item(OWN, *pair.plus, pair.emotion) for pair in pairs],
        TWINS: [Item(TWINS, *pair.minus, NEUTRAL) for pair in pairs],
    }


def _questions(n: int, seed: int, split: str) -> list[Item]:
    """Questions with no emotion in them, with the one right answer."""
    rng, items = np.random.default_rng(seed), []
    for example in sample(split, n, seed):
        plain = [q for q in questions(example.scene, rng) if q[0] in NON_EMOTIONAL]
        _, question, answer = plain[rng.integers(len(plain))]
        items.append(Item(QUESTIONS, example.scene, question, answer, ""))
    return items


def _without_evidence(items: Sequence[Item], name: str, rng: np.random.Generator) -> list[Item]:
    """The pictures blank, shuffled, or each with the next emotion's picture in its place; or as they are."""
    pictures = [to_image(item.picture) for item in items]
    changed = {
        BLANK: lambda: [Image.new("RGB", picture.size, "#8a8f98") for picture in pictures],
        SHUFFLED: lambda: [_shuffled(picture, rng) for picture in pictures],
        SWAPPED: lambda: [pictures[_other(items, i)] for i in range(len(items))],
    }
    pictures = changed[name]() if name in changed else [item.picture for item in items]
    return [replace(item, picture=picture) for item, picture in zip(items, pictures, strict=True)]


def _other(items: Sequence[Item], i: int) -> int:
    """The next item that shows another emotion."""
    following = (j % len(items) for j in range(i + 1, i + len(items)))
    return next((j for j in following if items[j].gold != items[i].gold), i)


def _shuffled(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture's tiles in another order: the same colours, nothing to read."""
    side = [size // TILES * TILES for size in picture.size]
    a = np.asarray(picture.resize(side)).reshape(TILES, side[1] // TILES, TILES, side[0] // TILES, 3).swapaxes(1, 2)
    tiles = a.reshape(TILES**2, *a.shape[2:])[rng.permutation(TILES**2)].reshape(a.shape)
    return Image.fromarray(tiles.swapaxes(1, 2).reshape(side[1], side[0], 3))
