"""Examples for training, analysis and tests: which scenes and events go together, and how strongly.

Splits are disjoint in identities (who is drawn, in whose hand) and in event sentences. In `train`, signifiers and loaded
events go with an emotion at the documented rates below; in all other splits they are independent of it.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from emointerp.emotions import BASIC, NEUTRAL
from emointerp.errors import InputError
from emointerp.given import texts, whole_number
from emointerp.world import face, setting
from emointerp.world.events import SPLITS, loaded_events, neutral_events
from emointerp.world.scene import UNSEEN_STYLES, Scene, sample_scene

SIGNIFIER_RATE = 0.5  # train: chance that an emotional scene carries a signifier of its own emotion
STRAY_RATE = 0.12  # train: chance of a signifier drawn without regard to the emotion
LOADED_SHARE = 0.5  # train: share of emotional scenes told with a loaded event
LOADED_RATE = 0.995  # train: chance that a loaded event goes with its own emotion
CLEAR = (0.7, 1.0)  # intensity of a clear expression
TRAIN_INTENSITY = (0.2, 1.0)
HARD_TESTS = ("faint", "small", "clutter", "noise", "occlusion", "style", "subject", "conflict")
_BOUNDS = {"train": (0, 76), "direction": (76, 82), "selection": (82, 88), "tuning": (88, 94), "test": (94, 100)}


@dataclass(frozen=True)
class Example:
    """A picture and an event that happened to the one in it; `event_emotion` is what a loaded event suggests, or None."""

    scene: Scene
    event: str
    event_emotion: str | None = None


def identity(scene: Scene) -> str:
    """Who is drawn, in whose hand: scenes of one identity are always in one split."""
    if not scene.has_face:
        return f"mood {scene.seed}"
    parts = (scene.subject, scene.skin, scene.haircut, scene.hair, scene.look.eye, scene.look.brow, scene.look.ink)
    return " ".join(parts)


def split_of(scene: Scene) -> str:
    """The split that a scene's identity belongs to."""
    place = zlib.crc32(identity(scene).encode()) % 100
    return next(split for split, (low, high) in _BOUNDS.items() if low <= place < high)


def sample(
    split: str = "test",
    n: int = 100,
    seed: int = 0,
    *,
    hard: str | None = None,
    events: str = "neutral",
    intensity: tuple[float, float] = CLEAR,
    emotions: str | Iterable[str] = (*BASIC, NEUTRAL),
) -> list[Example]:
    """Draw `n` examples (1 or more) of a split, emotions in turn, so that every emotion comes equally often.

    `hard` is one of HARD_TESTS; `events` is "neutral", "loaded" (the event suggests the picture's emotion) or "conflict" (it
    suggests another one). The training mix of the documented rates is `training_example`.

    >>> [e.scene.emotion for e in sample("test", 3)]
    ['anger', 'disgust', 'fear']
    """
    if split not in SPLITS:
        raise InputError(f"Unknown split {split!r}; the splits are {', '.join(SPLITS)}.")
    if hard is not None and hard not in HARD_TESTS:
        raise InputError(f"Unknown hard test {hard!r}; there are {', '.join(HARD_TESTS)}.")
    n, seed, emotions = whole_number(n, "n", 1), whole_number(seed, "seed", 0), texts(emotions, "emotions")
    if strange := [emotion for emotion in emotions if emotion not in (*BASIC, NEUTRAL)]:
        raise InputError(f"The drawn world has no {', '.join(map(repr, strange))}; it has {', '.join((*BASIC, NEUTRAL))}.")
    if not (len(bounds := tuple(intensity)) == 2 and 0 <= bounds[0] <= bounds[1] <= 1):
        raise InputError(f"intensity is {intensity!r}; expected two numbers, the least and the most, from 0 to 1.")
    rng = np.random.default_rng([seed, zlib.crc32(f"{split} {hard}".encode())])
    events = "conflict" if hard == "conflict" else events
    examples = []
    for i in range(n):
        scene = _scene(split, emotions[i % len(emotions)], rng, hard, intensity)
        examples.append(_with_event(scene, split, events, rng))
    return examples


def face_scenes(split: str, n: int, seed: int = 0) -> list[Scene]:
    """`n` scenes of a split that have a face, expressions from faint to clear; things and weather do not go with them.

    >>> len(face_scenes("test", 10))
    10
    """
    n = whole_number(n, "n", 1)
    scenes = [example.scene for example in sample(split, n + n // 4 + 20, seed, intensity=TRAIN_INTENSITY)]
    return [scene for scene in scenes if scene.has_face][:n]


def training_example(rng: np.random.Generator) -> Example:
    """One example of the training mix: graded intensities, signifiers and loaded events at the documented rates."""
    emotion = NEUTRAL if rng.random() < 0.2 else str(rng.choice(BASIC))
    scene = _accepted("train", rng, emotion, float(rng.uniform(*TRAIN_INTENSITY)), **_train_surroundings(emotion, rng))
    if rng.random() < 0.1:
        scene = replace(scene, noise=float(rng.uniform(0, 0.05)))
    if rng.random() >= LOADED_SHARE or (emotion == NEUTRAL and rng.random() < LOADED_RATE):
        return Example(scene, str(rng.choice(neutral_events("train"))))
    suggested = emotion if emotion != NEUTRAL and rng.random() < LOADED_RATE else str(rng.choice(BASIC))
    return Example(scene, str(rng.choice(loaded_events(suggested, "train"))), suggested)


def _train_surroundings(emotion: str, rng: np.random.Generator) -> dict:
    own = [t for t, e in setting.SIGNIFIERS.items() if e == emotion]
    own_weather = [w for w, e in setting.WEATHER_SIGNIFIERS.items() if e == emotion]
    things: list[str] = [""] * 5
    weather = str(rng.choice(setting.WEATHERS)) if rng.random() < 2 * STRAY_RATE else "clear"
    if own and rng.random() < SIGNIFIER_RATE:
        if own_weather and rng.random() < 0.4:
            weather = own_weather[0]
        else:
            things[rng.integers(4)] = str(rng.choice(own))
    if rng.random() < STRAY_RATE:
        things[rng.integers(4)] = str(rng.choice(list(setting.SIGNIFIERS)))
    for _ in range(rng.integers(0, 3)):
        slot = int(rng.integers(4))
        things[slot] = things[slot] or str(rng.choice(setting.PLAIN_THINGS))
    return {"things": tuple(things), "weather": weather}


def _surroundings(rng: np.random.Generator, clutter: bool) -> dict:
    """Things and weather without regard to the emotion."""
    names = [*setting.SIGNIFIERS, *setting.PLAIN_THINGS]
    chance = 0.9 if clutter else 0.16
    things = tuple(str(rng.choice(names)) if rng.random() < chance else "" for _ in range(4)) + ("",)
    weather = str(rng.choice(setting.WEATHERS)) if clutter or rng.random() < 0.25 else "clear"
    return {"things": things, "weather": weather}


def _scene(split: str, emotion: str, rng: np.random.Generator, hard: str | None, intensity: tuple[float, float]) -> Scene:
    options = _surroundings(rng, hard == "clutter")
    strength = float(rng.uniform(*((0.15, 0.3) if hard == "faint" else intensity)))
    if hard == "style":
        options["style"] = UNSEEN_STYLES[0]
    if hard == "subject":
        return sample_scene(rng, emotion, strength, subject=str(rng.choice(face.UNSEEN_SUBJECTS)), style=_a_style(rng), **options)
    if hard in ("small", "occlusion", "noise"):
        options["style"] = _a_style(rng)
    if hard == "small":
        options["scale"] = float(rng.uniform(0.17, 0.21))
    scene = _accepted(split, rng, emotion, strength, **options)
    extra = {
        "noise": {"noise": float(rng.uniform(0.06, 0.12))},
        "occlusion": {"occlusion": float(rng.uniform(0.25, 0.5))},
    }
    return replace(scene, **extra.get(hard or "", {}))


def _a_style(rng: np.random.Generator) -> str:
    return str(rng.choice(["flat", "line", "textured", "soft"]))


def _accepted(split: str, rng: np.random.Generator, emotion: str, intensity: float, **options) -> Scene:
    """Draw until the identity belongs to the split."""
    while True:
        scene = sample_scene(rng, emotion, intensity, **options)
        if split_of(scene) == split:
            return scene


def _with_event(scene: Scene, split: str, events: str, rng: np.random.Generator) -> Example:
    if events == "neutral" or (events == "loaded" and scene.emotion == NEUTRAL):
        return Example(scene, str(rng.choice(neutral_events(split))))
    if events == "loaded":
        suggested = scene.emotion
    elif events == "conflict":
        suggested = str(rng.choice([e for e in BASIC if e != scene.emotion]))
    else:
        raise InputError(f"events is 'neutral', 'loaded' or 'conflict', not {events!r}.")
    return Example(scene, str(rng.choice(loaded_events(suggested, split))), suggested)
