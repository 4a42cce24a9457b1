"""Expressions as continuous facial parameters in the manner of FACS, and how the six emotions move them.

An emotion has several *modes* (a smile, a laugh with tears, a grin with crescent eyes …), each a range for some parameters;
what a mode does not name stays at rest. So no single pixel pattern is the emotion, and a tear or a tongue alone decides nothing.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from emointerp.emotions import BASIC, NEUTRAL


@dataclass(frozen=True)
class Expression:
    """Facial parameters; the defaults are a face at rest. Ranges in brackets."""

    brow_inner: float = 0.0  # inner brow, pulled down to raised [-1, 1]
    brow_outer: float = 0.0  # outer brow [-1, 1]
    eye_open: float = 1.0  # lids, closed 0, at rest 1, wide 1.6
    eye_smile: float = 0.0  # eyes pressed to upward crescents [0, 1]
    eye_tight: float = 0.0  # eyes screwed shut [0, 1]
    pupil: float = 1.0  # size of the pupil [0.3, 1]
    gaze: float = 0.0  # looking down [0, 1]
    lid_slant: float = 0.0  # upper lid: -1 inner corner down (glare), 1 outer corner down (droop)
    wink: float = 0.0  # one eye closed [0, 1]
    mouth_curve: float = 0.0  # corners, down to up [-1, 1]
    mouth_open: float = 0.0  # [0, 1]
    mouth_width: float = 0.0  # narrow to wide [-1, 1]
    teeth: float = 0.0  # teeth shown [0, 1]; 1 is clenched
    mouth_wave: float = 0.0  # trembling, wavy lips [0, 1]
    mouth_skew: float = 0.0  # one corner pulled up [0, 1]
    tongue: float = 0.0  # tongue out [0, 1]
    tears: float = 0.0  # drops under the eyes [0, 1]
    stream: float = 0.0  # tears running down [0, 1]
    sweat: float = 0.0  # a drop on the temple [0, 1]
    blush: float = 0.0  # cheeks [0, 1]
    nose_wrinkle: float = 0.0  # [0, 1]
    puff: float = 0.0  # cheeks blown up, lips pressed [0, 1]
    green: float = 0.0  # queasy cheeks [0, 1]
    vomit: float = 0.0  # [0, 1]
    pale: float = 0.0  # shade and lines on the forehead [0, 1]
    steam: float = 0.0  # puffs from the nose or ears [0, 1]
    hands_cheeks: float = 0.0  # both hands on the cheeks [0, 1]
    hand_mouth: float = 0.0  # one hand at the mouth [0, 1]

    def faded(self, intensity: float) -> "Expression":
        """The same expression at a share of its strength: 0 is rest, 1 is all of it."""
        rest = Expression()
        moved = {f.name: getattr(rest, f.name) + intensity * (getattr(self, f.name) - getattr(rest, f.name)) for f in fields(self)}
        return Expression(**moved)


REST = Expression()

_ANGRY = {"brow_inner": (-1.0, -0.6), "brow_outer": (0.1, 0.9), "lid_slant": (-1.0, -0.5)}
_WORRIED = {"brow_inner": (0.6, 1.0), "brow_outer": (-0.5, 0.1)}
_RAISED = {"brow_inner": (0.5, 1.0), "brow_outer": (0.5, 1.0)}

# emotion -> mode -> (weight, {parameter: (low, high)}); the parameters of the first dict are always there, `sometimes` ones below
MODES: dict[str, dict[str, tuple[float, dict[str, tuple[float, float]]]]] = {
    "joy": {
        "smile": (3.0, {"mouth_curve": (0.65, 1.0), "mouth_width": (0.0, 0.7), "brow_inner": (0.0, 0.3), "brow_outer": (0.0, 0.4)}),
        "beam": (3.0, {"mouth_curve": (0.7, 1.0), "mouth_open": (0.4, 1.0), "teeth": (0.0, 0.7), "mouth_width": (0.1, 0.8)}),
        "grin": (2.0, {"mouth_curve": (0.6, 1.0), "mouth_open": (0.35, 0.7), "teeth": (0.85, 1.0), "mouth_width": (0.2, 0.8)}),
        "crescents": (3.0, {"eye_smile": (0.9, 1.0), "mouth_curve": (0.6, 1.0), "mouth_open": (0.0, 0.9), "teeth": (0.0, 1.0), "mouth_width": (0.0, 0.8)}),
        "laugh": (2.0, {"eye_tight": (0.9, 1.0), "mouth_curve": (0.7, 1.0), "mouth_open": (0.6, 1.0), "teeth": (0.0, 0.8), "mouth_width": (0.2, 0.8)}),
        "tears": (1.5, {"eye_smile": (0.9, 1.0), "mouth_curve": (0.7, 1.0), "mouth_open": (0.5, 1.0), "teeth": (0.0, 1.0), "tears": (0.7, 1.0), "mouth_width": (0.2, 0.8)}),
        "cheeky": (1.5, {"mouth_curve": (0.6, 1.0), "mouth_open": (0.1, 0.6), "tongue": (0.6, 1.0), "mouth_width": (0.0, 0.6)}),
        "content": (1.2, {"eye_open": (0.0, 0.05), "mouth_curve": (0.55, 0.9), "mouth_width": (0.0, 0.5)}),
        "wink": (0.8, {"wink": (0.9, 1.0), "mouth_curve": (0.6, 1.0), "mouth_open": (0.0, 0.6), "teeth": (0.0, 0.6)}),
        "peekaboo": (0.6, {"eye_smile": (0.9, 1.0), "mouth_curve": (0.6, 1.0), "hand_mouth": (0.8, 1.0), "blush": (0.4, 1.0)}),
    },
    "sadness": {
        "frown": (3.0, {**_WORRIED, "mouth_curve": (-1.0, -0.6), "eye_open": (0.65, 1.0), "lid_slant": (0.2, 1.0)}),
        "plain_frown": (2.0, {"mouth_curve": (-1.0, -0.6), "eye_open": (0.75, 1.0), "mouth_width": (-0.3, 0.4)}),
        "downcast": (2.0, {"eye_open": (0.0, 0.05), "brow_inner": (0.3, 1.0), "brow_outer": (-0.6, 0.0), "mouth_curve": (-0.9, -0.25)}),
        "looking_down": (1.5, {**_WORRIED, "gaze": (0.6, 1.0), "eye_open": (0.5, 0.8), "mouth_curve": (-0.9, -0.35), "mouth_width": (-0.5, 0.2)}),
        "tear": (3.0, {**_WORRIED, "mouth_curve": (-1.0, -0.4), "tears": (0.7, 1.0), "eye_open": (0.5, 1.0), "lid_slant": (0.2, 1.0)}),
        "closed_tear": (1.5, {"brow_inner": (0.4, 1.0), "brow_outer": (-0.6, 0.0), "eye_open": (0.0, 0.05), "mouth_curve": (-1.0, -0.3), "tears": (0.7, 1.0), "mouth_open": (0.0, 0.3)}),
        "bawl": (2.0, {"brow_inner": (0.3, 1.0), "eye_tight": (0.9, 1.0), "mouth_curve": (-1.0, -0.5), "mouth_open": (0.4, 1.0), "stream": (0.7, 1.0)}),
        "wail": (1.5, {"brow_inner": (0.4, 1.0), "eye_open": (0.0, 0.05), "mouth_curve": (-1.0, -0.5), "mouth_open": (0.4, 0.9), "stream": (0.6, 1.0)}),
    },
    "anger": {
        "glare": (3.0, {**_ANGRY, "mouth_curve": (-0.9, -0.4), "eye_open": (0.6, 1.0)}),
        "clench": (2.0, {**_ANGRY, "mouth_open": (0.25, 0.5), "teeth": (0.95, 1.0), "mouth_curve": (-0.5, 0.0), "eye_open": (0.6, 1.05), "mouth_width": (0.0, 0.7)}),
        "shout": (2.0, {**_ANGRY, "mouth_open": (0.5, 1.0), "mouth_curve": (-0.9, -0.4), "teeth": (0.0, 0.6), "eye_open": (0.7, 1.2)}),
        "fume": (1.5, {**_ANGRY, "steam": (0.7, 1.0), "mouth_curve": (-0.9, -0.2), "eye_open": (0.4, 0.9)}),
        "shut_fume": (0.7, {**_ANGRY, "steam": (0.7, 1.0), "mouth_curve": (-0.9, -0.4), "eye_open": (0.0, 0.1)}),
        "pressed": (1.5, {**_ANGRY, "mouth_curve": (-0.3, -0.05), "mouth_width": (-0.4, 0.3), "eye_open": (0.5, 0.9), "blush": (0.0, 0.8)}),
    },
    "fear": {
        "wide": (2.5, {**_WORRIED, "eye_open": (1.25, 1.6), "pupil": (0.3, 0.6), "mouth_open": (0.25, 0.7), "mouth_curve": (-1.0, -0.5), "mouth_width": (-0.2, 0.5)}),
        "scream": (2.0, {**_WORRIED, "eye_open": (1.1, 1.6), "pupil": (0.3, 0.9), "mouth_open": (0.7, 1.0), "mouth_curve": (-0.4, 0.0), "mouth_width": (-0.7, -0.3), "hands_cheeks": (0.8, 1.0)}),
        "grimace": (1.5, {**_WORRIED, "eye_open": (1.2, 1.6), "pupil": (0.3, 0.6), "mouth_open": (0.2, 0.4), "teeth": (0.95, 1.0), "mouth_wave": (0.0, 0.6), "mouth_curve": (-0.5, 0.0)}),
        "worried": (2.5, {**_WORRIED, "eye_open": (1.05, 1.35), "mouth_curve": (-0.9, -0.4), "mouth_open": (0.12, 0.35), "mouth_width": (-0.7, -0.2)}),
        "tremble": (1.5, {**_WORRIED, "eye_open": (1.2, 1.6), "pupil": (0.3, 0.6), "mouth_wave": (0.6, 1.0), "mouth_curve": (-0.4, 0.0)}),
        "pale": (1.5, {"eye_open": (1.2, 1.6), "pupil": (0.3, 0.5), "pale": (0.7, 1.0), "mouth_open": (0.4, 0.9), "mouth_curve": (-1.0, -0.5), "brow_inner": (0.2, 0.9)}),
        "cold_sweat": (1.5, {**_WORRIED, "eye_open": (1.05, 1.5), "sweat": (0.8, 1.0), "mouth_open": (0.15, 0.6), "mouth_curve": (-0.7, -0.1), "mouth_width": (-0.6, 0.1)}),
    },
    "surprise": {
        "gape": (3.0, {**_RAISED, "eye_open": (1.2, 1.6), "mouth_open": (0.5, 1.0), "mouth_width": (-0.8, -0.4)}),
        "hushed": (2.0, {**_RAISED, "eye_open": (1.05, 1.4), "mouth_open": (0.12, 0.35), "mouth_width": (-1.0, -0.7)}),
        "plain_o": (2.0, {"eye_open": (1.05, 1.5), "mouth_open": (0.3, 0.8), "mouth_width": (-0.9, -0.5)}),
        "rings": (1.5, {"eye_open": (1.35, 1.6), "pupil": (0.3, 0.8), "mouth_open": (0.35, 0.9), "mouth_width": (-0.8, -0.5)}),
        "delight": (1.0, {**_RAISED, "eye_open": (1.2, 1.6), "mouth_open": (0.5, 0.9), "mouth_width": (-0.6, -0.3), "mouth_curve": (0.1, 0.35), "blush": (0.0, 0.8)}),
        "gasp": (1.0, {**_RAISED, "eye_open": (1.2, 1.6), "hand_mouth": (0.8, 1.0), "mouth_open": (0.3, 0.7), "mouth_width": (-0.7, -0.4)}),
    },
    "disgust": {
        "wrinkle": (2.5, {"nose_wrinkle": (0.7, 1.0), "brow_inner": (-0.7, -0.25), "brow_outer": (-0.3, 0.2), "eye_open": (0.35, 0.7), "mouth_curve": (-0.8, -0.3), "mouth_skew": (0.3, 1.0)}),
        "tongue": (2.5, {"tongue": (0.7, 1.0), "mouth_curve": (-0.9, -0.3), "mouth_open": (0.15, 0.5), "brow_inner": (-0.6, 0.1), "eye_open": (0.3, 0.8), "nose_wrinkle": (0.2, 1.0)}),
        "shut_tongue": (1.5, {"tongue": (0.7, 1.0), "mouth_curve": (-0.9, -0.3), "mouth_open": (0.15, 0.5), "eye_tight": (0.9, 1.0)}),
        "queasy": (2.5, {"brow_inner": (0.1, 0.7), "brow_outer": (-0.4, 0.1), "puff": (0.7, 1.0), "green": (0.2, 1.0), "mouth_curve": (-0.5, 0.0), "mouth_width": (-0.7, -0.2), "eye_open": (0.55, 1.0), "mouth_wave": (0.0, 1.0)}),
        "wavy": (1.5, {"green": (0.5, 1.0), "mouth_wave": (0.7, 1.0), "eye_open": (0.35, 0.75), "brow_inner": (-0.5, 0.5), "nose_wrinkle": (0.3, 1.0)}),
        "vomit": (2.0, {"vomit": (0.8, 1.0), "eye_tight": (0.85, 1.0), "mouth_open": (0.4, 0.8), "mouth_curve": (-0.6, 0.0), "green": (0.0, 0.8)}),
        "open_vomit": (0.7, {"vomit": (0.8, 1.0), "brow_inner": (0.1, 0.6), "eye_open": (0.5, 0.9), "mouth_open": (0.4, 0.8), "mouth_curve": (-0.6, 0.0), "green": (0.0, 0.8)}),
        "sneer": (1.5, {"mouth_skew": (0.8, 1.0), "nose_wrinkle": (0.7, 1.0), "brow_inner": (-0.6, -0.2), "eye_open": (0.35, 0.7), "mouth_open": (0.1, 0.4), "teeth": (0.4, 0.9), "mouth_curve": (-0.5, 0.1)}),
    },
    NEUTRAL: {
        "rest": (4.0, {}),
        "relaxed": (2.0, {"eye_open": (0.8, 1.08), "mouth_curve": (-0.1, 0.1), "mouth_width": (-0.5, 0.6), "brow_outer": (-0.1, 0.15)}),
        "blank": (1.0, {"eye_open": (0.0, 0.04), "mouth_width": (-0.5, 0.6)}),
        "half_lids": (0.8, {"eye_open": (0.45, 0.7), "mouth_width": (-0.5, 0.6), "mouth_curve": (-0.05, 0.05)}),
        "level_brows": (1.0, {"brow_inner": (-0.15, 0.2), "brow_outer": (-0.1, 0.2), "mouth_width": (-0.6, 0.6)}),
    },
}  # fmt: skip

# emotion -> parameter -> (probability, low, high): things that may come on top of any mode, and that alone decide nothing
_SOMETIMES: dict[str, dict[str, tuple[float, float, float]]] = {
    "joy": {"blush": (0.35, 0.4, 1.0), "sweat": (0.1, 0.7, 1.0), "brow_outer": (0.2, 0.2, 0.7)},
    "sadness": {"blush": (0.15, 0.3, 0.8), "sweat": (0.08, 0.7, 1.0), "mouth_wave": (0.12, 0.4, 0.9)},
    "anger": {"blush": (0.25, 0.4, 1.0), "sweat": (0.05, 0.7, 1.0), "tears": (0.03, 0.5, 1.0)},
    "fear": {"sweat": (0.35, 0.7, 1.0), "tears": (0.08, 0.5, 1.0), "pale": (0.15, 0.5, 1.0)},
    "surprise": {"blush": (0.2, 0.3, 0.9), "sweat": (0.1, 0.7, 1.0)},
    "disgust": {"sweat": (0.15, 0.6, 1.0), "tears": (0.05, 0.4, 0.8), "green": (0.15, 0.4, 1.0)},
    NEUTRAL: {"blush": (0.15, 0.3, 0.8), "sweat": (0.03, 0.6, 1.0)},
}


def sample(emotion: str, rng: np.random.Generator) -> tuple[str, Expression]:
    """Draw a mode of the emotion and an expression at full strength from it: (mode, expression).

    >>> mode, face = sample("joy", np.random.default_rng(0))
    >>> face.mouth_curve > 0.5
    True
    """
    modes = MODES[emotion]
    weights = np.array([weight for weight, _ in modes.values()])
    mode = list(modes)[rng.choice(len(modes), p=weights / weights.sum())]
    drawn = {name: float(rng.uniform(low, high)) for name, (low, high) in modes[mode][1].items()}
    for name, (chance, low, high) in _SOMETIMES[emotion].items():
        value = float(rng.uniform(low, high))
        if rng.random() < chance:
            drawn.setdefault(name, value)
    return mode, replace(REST, **drawn)


def visible(face: Expression) -> dict[str, str]:
    """What a viewer could name of the expression, part by part; parts at rest or unremarkable are left out.

    The words describe what is drawn, never the feeling.
    """
    seen = {"brows": _brows(face), "eyes": _eyes(face), "mouth": _mouth(face), "extras": _extras(face)}
    return {part: words for part, words in seen.items() if words}


def _brows(f: Expression) -> str:
    if f.brow_inner < -0.25:
        return "brows pulled down in the middle"
    if f.brow_inner > 0.25:
        return "brows raised high" if f.brow_outer > 0.25 else "brows slanted up in the middle"
    return "brows level"


def _eyes(f: Expression) -> str:
    if f.eye_tight > 0.5:
        return "eyes screwed shut"
    if f.eye_smile > 0.5:
        return "eyes like crescents"
    if f.wink > 0.5:
        return "one eye winking"
    if f.eye_open < 0.3:
        return "eyes closed"
    if f.eye_open > 1.15:
        return "eyes wide open"
    if f.gaze > 0.4:
        return "eyes looking down"
    return "eyes narrowed" if f.eye_open < 0.72 else "eyes open"


def _mouth(f: Expression) -> str:
    if f.tongue > 0.4:
        return "tongue sticking out of a " + ("curved up" if f.mouth_curve > 0 else "curved down") + " mouth"
    if f.puff > 0.4:
        return "lips pressed between puffed cheeks"
    if f.mouth_open > 0.08:
        if f.teeth > 0.75:
            return "teeth showing in a " + ("wide smile" if f.mouth_curve > 0.2 else "clenched mouth")
        if f.mouth_curve > 0.4:
            return "mouth open and curved up"
        return "mouth open and curved down" if f.mouth_curve < -0.25 else "mouth open and round"
    if f.mouth_wave > 0.4:
        return "mouth wavy"
    if f.mouth_skew > 0.35:
        return "mouth pulled to one side"
    if abs(f.mouth_curve) > 0.15:
        return "mouth curved " + ("up" if f.mouth_curve > 0 else "down")
    return "mouth straight"


_EXTRAS = {
    "stream": "tears streaming",
    "tears": "teardrops",
    "sweat": "a drop of sweat",
    "blush": "red cheeks",
    "nose_wrinkle": "a wrinkled nose",
    "green": "green cheeks",
    "vomit": "green vomit",
    "pale": "a shaded forehead",
    "steam": "puffs of steam",
    "hands_cheeks": "hands on the cheeks",
    "hand_mouth": "a hand at the mouth",
}


def _extras(f: Expression) -> str:
    return ", ".join(words for name, words in _EXTRAS.items() if getattr(f, name) > 0.35)


assert set(MODES) == {*BASIC, NEUTRAL}
