"""What is planted where, and the pictures that it is about. Places are (layer, head) and (layer, neuron), from 0."""

import zlib

import numpy as np
import pandas as pd
from PIL import Image

from emointerp.emotions import BASIC, NEUTRAL
from emointerp.errors import InputError
from emointerp.given import whole_number
from emointerp.pairs import Pair
from emointerp.world import SPLITS, sample

LAYERS, HEADS, WIDTH, D_HEAD, NEURONS = 8, 8, 128, 16, 48
SIDE, PATCH = 64, 16  # pixels of a picture and of a patch
WORDS = {
    "anger": ("angry", "furious", "enraged", "annoyed"),
    "disgust": ("disgusted", "nauseated", "revolted", "repelled"),
    "fear": ("afraid", "scared", "terrified", "frightened"),
    "joy": ("happy", "joyful", "delighted", "glad"),
    "sadness": ("sad", "gloomy", "sorrowful", "unhappy"),
    "surprise": ("surprised", "amazed", "astonished", "stunned"),
}
COLOURS = dict(zip(BASIC, ((1, -1, -1), (-1, 1, -1), (1, -1, 1), (1, 1, -1), (-1, -1, 1), (-1, 1, 1)), strict=True))
FULL = 0.9  # how far an emotion's colour goes from gray (0) to pure (1)

SPECIFIC = {"anger": (3, 1), "disgust": (4, 6), "fear": (3, 4), "joy": (4, 3), "sadness": (3, 6), "surprise": (4, 0)}
GENERAL, DECOY, BACKUP = (6, 2), (4, 5), (5, 7)
TRIGGERS = {e: ((1, 5 + 7 * i), (1, 8 + 7 * i)) for i, e in enumerate(BASIC)}
STATES = {e: ((7, 2 + 7 * i), (7, 4 + 7 * i)) for i, e in enumerate(BASIC)}
ROLES = {
    "specific": {at: emotion for emotion, at in SPECIFIC.items()},
    "general": {GENERAL: ""},
    "trigger": {at: emotion for emotion, some in TRIGGERS.items() for at in some},
    "state": {at: emotion for emotion, some in STATES.items() for at in some},
}
PARTS = {"heads": ("specific", "general"), "neurons": ("trigger", "state"), "triggers": ("trigger",), "states": ("state",)}
PLANTED = {parts: [at for role in roles for at in ROLES[role]] for parts, roles in PARTS.items()}
RANDOM_HEADS = [(i, h) for i in range(LAYERS) for h in range(HEADS) if (i, h) not in {*PLANTED["heads"], DECOY, BACKUP}]
RANDOM_NEURONS = [(i, n) for i in range(LAYERS) for n in range(NEURONS) if (i, n) not in PLANTED["neurons"]]


def truth(parts: str = "heads") -> pd.DataFrame:
    """What is planted of the "heads" or "neurons", or of these the "triggers" or "states": `role` and `emotion` by place.

    The general head, which serves all emotions, has "" for an emotion. Beside the heads stand two that are none of the circuit's
    though they look like it: the "decoy", and the "backup" that speaks only where fear's own head is silent.

    >>> truth().role.value_counts().to_dict()
    {'specific': 6, 'general': 1, 'decoy': 1, 'backup': 1}
    >>> truth("states").head(2).to_dict("index")
    {(7, 2): {'role': 'state', 'emotion': 'anger'}, (7, 4): {'role': 'state', 'emotion': 'anger'}}
    """
    if parts not in PARTS:
        raise InputError(f"parts is {parts!r}; expected one of {', '.join(PARTS)}.")
    rows = {at: (role, emotion) for role in PARTS[parts] for at, emotion in ROLES[role].items()}
    if parts == "heads":
        rows |= {DECOY: ("decoy", ""), BACKUP: ("backup", "fear")}
    places = pd.MultiIndex.from_tuples(rows, names=["layer", "head" if parts == "heads" else "neuron"])
    return pd.DataFrame([*rows.values()], places, ["role", "emotion"])


def planted_pairs(split: str = "direction", n: int = 60, seed: int = 0) -> list[Pair]:
    """n pairs that differ in one patch, emotions in turn; pictures and events (the drawn world's) differ between splits."""
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    n, seed = whole_number(n, "n", 1), whole_number(seed, "seed", 0)
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    events = [example.event for example in sample(split, n, seed, emotions=(NEUTRAL,))]
    return [_pair(BASIC[i % len(BASIC)], event, split, f"{split} {i}", rng) for i, event in enumerate(events)]


def _pair(emotion: str, event: str, split: str, name: str, rng: np.random.Generator) -> Pair:
    """Patches of grayish colours with grain; one of them has the emotion's colour."""
    per_side = SIDE // PATCH
    tints = rng.uniform(-0.25, 0.25, (per_side, per_side, 3))
    grain, coloured = rng.uniform(-0.1, 0.1, (SIDE, SIDE, 3)), tints.copy()
    coloured[tuple(rng.integers(per_side, size=2))] = FULL * np.array(COLOURS[emotion])
    return Pair(_picture(coloured, grain), _picture(tints, grain), event, emotion, split, name)


def _picture(tints: np.ndarray, grain: np.ndarray) -> Image.Image:
    values = tints.repeat(PATCH, 0).repeat(PATCH, 1) + grain
    return Image.fromarray(np.clip((values + 1) * 127.5, 0, 255).astype(np.uint8))
