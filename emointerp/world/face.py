"""Heads and faces: who is drawn, in whose hand, and how an `Expression` shapes brows, eyes, nose and mouth.

Coordinates of a face: the head is about a circle of radius 1 around (0, 0), x to the right, y down.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from emointerp.world.canvas import Canvas, arc, box, ellipse, polygon, polyline, smooth
from emointerp.world.expression import Expression

PEOPLE = ("girl", "boy", "woman", "man", "grandmother", "grandfather")
ANIMALS = ("cat", "dog", "bear", "rabbit")
SUBJECTS = (*PEOPLE, *ANIMALS, "robot", "smiley")
UNSEEN_SUBJECTS = ("frog", "alien")

SKIN = {"light": "#f7d7bd", "tan": "#e0ab82", "brown": "#a9714b", "dark": "#6f4630"}
FUR = {"orange": "#e8a254", "gray": "#a7adb5", "brown": "#a8795a", "white": "#f3efe6", "black": "#5b5560"}
PAINT = {
    "yellow": "#ffd34d", "pink": "#f7b6c8", "blue": "#9cc4ee", "green": "#a8d8a0", "white": "#fdfcf8",
    "purple": "#cbb2ea", "orange": "#f9b678", "red": "#f08a80", "gray": "#c9cdd2",
}  # fmt: skip
HAIR = {"black": "#2c2a33", "brown": "#6b4429", "blond": "#e9c46a", "red": "#b5482a", "gray": "#b9bcc4"}
CLOTHES = {
    "red": "#d9534f",
    "blue": "#3f78c0",
    "green": "#4c9a62",
    "yellow": "#e9bd3e",
    "purple": "#8460b4",
    "white": "#f4f2ee",
}
HATS = ("none", "cap", "beanie", "sun hat")
HAIRCUTS = ("short", "long", "curly", "bun", "bald")


@dataclass(frozen=True)
class Look:
    """The artist's hand: how a face is drawn, whatever it expresses. Lengths in face units (head radius 1)."""

    eye: str = "oval"  # dot, oval, white (with pupil), ring
    brow: str = "moved"  # always, moved (drawn when they move), never
    mouth: str = "dark"  # inside of an open mouth: dark, red, empty (outline only), pink
    nose: str = "dot"  # none, dot, line, triangle
    line: float = 0.06  # width of face lines
    outline: float = 0.05  # width of the head's outline, 0 for none
    ink: str = "#2b2530"
    eye_size: float = 0.13
    eye_gap: float = 0.36
    eye_y: float = -0.12
    eye_tall: float = 1.2
    mouth_y: float = 0.48
    mouth_size: float = 0.36
    mouth_flat: float = 0.5  # upper lip of a smile: 0 curved, 1 flat
    head_tall: float = 1.0
    highlight: bool = True
    teeth_lines: bool = True


@dataclass(frozen=True)
class Brush:
    """Colours and manner of one picture; `fills=False` leaves shapes unfilled (paper-coloured), as line art does."""

    skin: str = "#f7d7bd"
    hair: str = "#6b4429"
    ink: str = "#2b2530"
    paper: str = "#ffffff"
    line: float = 0.0  # width of outlines of things, in canvas units
    fills: bool = True
    shaded: bool = False

    def fill(self, color: str) -> str:
        """The colour itself, or the paper where shapes are left unfilled."""
        return color if self.fills else self.paper

    def shape(self, canvas: Canvas, shape: Path, color: str, line: float | None = None) -> None:
        """Fill a shape and draw its outline; `line` in the units of the current placement."""
        canvas.fill(shape, self.fill(color))
        width = self.line if line is None else line * unit_of(canvas)
        if width:
            canvas.stroke(shape, self.ink, width)


def unit_of(canvas: Canvas) -> float:
    """Length of one unit of the current placement on the canvas: line widths scale with the head."""
    matrix = canvas.transform.get_matrix()
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def draw_head(canvas: Canvas, subject: str, hair: str, look: Look, brush: Brush) -> None:
    """Head without features: ears, skull, shading. Hair in front, glasses and hat come later, above the expression."""
    line = look.outline
    for shape, color in _behind(subject, hair, look, brush):
        brush.shape(canvas, shape, color, line)
    skull = head_shape(subject, look)
    with canvas.tag("face"):
        brush.shape(canvas, skull, brush.skin, line)
    if brush.shaded:
        with canvas.clipped(skull):
            for step in range(5):
                canvas.fill(ellipse(0.55, 0.75, 1.15 - 0.17 * step), "#3a2440", 0.035)
                canvas.fill(ellipse(-0.4, -0.5, 0.75 - 0.14 * step), "#ffffff", 0.06)
    for shape, color in _marks(subject, brush):
        canvas.fill(shape, color)


def head_shape(subject: str, look: Look) -> Path:
    """Outline of the skull."""
    if subject == "robot":
        return box(-0.92, -0.85 * look.head_tall, 1.84, 1.72 * look.head_tall, 0.28)
    if subject == "alien":
        return smooth([(-1.0, -0.9), (0, -1.15), (1.0, -0.9), (0.85, 0.5), (0.2, 1.05), (-0.2, 1.05), (-0.85, 0.5)])
    wide = {"bear": 1.04, "cat": 1.05, "frog": 1.12}.get(subject, 0.95 if subject in PEOPLE else 1.0)
    return ellipse(0, 0, wide, look.head_tall)


def _behind(subject: str, hair: str, look: Look, c: Brush) -> list[tuple[Path, str]]:
    """Ears and the hair behind the head."""
    skin, fur = c.fill(c.skin), c.fill(c.hair)
    if subject in PEOPLE:
        ears = [(ellipse(side * 0.93, 0.05, 0.16, 0.2), skin) for side in (-1, 1)]
        back = {
            "long": [
                (
                    smooth([(-1.1, -0.9), (0, -1.25), (1.1, -0.9), (1.2, 1.2), (0.7, 1.45), (-0.7, 1.45), (-1.2, 1.2)]),
                    fur,
                )
            ],
            "curly": [(ellipse(x, y, 0.42), fur) for x, y in ((-0.9, -0.2), (0.9, -0.2), (-0.7, -0.75), (0.7, -0.75), (0, -1.0))],
            "bun": [(ellipse(0, -1.12, 0.36), fur)],
        }.get(hair, [])
        return back + ears
    return {
        "cat": [(polygon((s * 0.35, -0.85), (s * 0.8, -1.45), (s * 0.98, -0.4)), skin) for s in (-1, 1)],
        "dog": [(ellipse(s * 0.98, -0.15, 0.3, 0.68, s * -14), fur) for s in (-1, 1)],
        "bear": [(ellipse(s * 0.75, -0.78, 0.36), skin) for s in (-1, 1)],
        "rabbit": [(ellipse(s * 0.42, -1.35, 0.22, 0.68, s * 8), skin) for s in (-1, 1)],
        "robot": [(box(-0.05, -1.3, 0.1, 0.5), c.fill("#8a8f98")), (ellipse(0, -1.32, 0.13), c.fill("#e2574c"))]
        + [(box(s * 1.0 - 0.09, -0.25, 0.18, 0.5, 0.06), c.fill("#8a8f98")) for s in (-1, 1)],
        "frog": [(ellipse(s * 0.5, -0.85, 0.33), skin) for s in (-1, 1)],
        "alien": [(polyline((s * 0.4, -0.9), (s * 0.6, -1.4)), skin) for s in (-1, 1)]
        + [(ellipse(s * 0.6, -1.42, 0.12), skin) for s in (-1, 1)],
    }.get(subject, [])


def _marks(subject: str, c: Brush) -> list[tuple[Path, str]]:
    """Muzzle and inner ears."""
    pale = c.fill("#f6ece2")
    if not c.fills:
        return []
    return {
        "dog": [(ellipse(0, 0.42, 0.5, 0.42), pale)],
        "bear": [(ellipse(0, 0.42, 0.46, 0.4), pale)],
        "cat": [(polygon((s * 0.5, -0.88), (s * 0.76, -1.2), (s * 0.86, -0.65)), "#f2b3ac") for s in (-1, 1)],
        "rabbit": [(ellipse(s * 0.42, -1.35, 0.1, 0.48, s * 8), "#f2b3ac") for s in (-1, 1)],
    }.get(subject, [])


def draw_hair(canvas: Canvas, hair: str, look: Look, brush: Brush) -> None:
    """Hair in front of the forehead."""
    if hair == "bald":
        return
    tall = look.head_tall
    # outlines from the left temple over the top to the right one, and back along the forehead
    fringe = {
        "short": [(-0.98, -0.25), (-0.95, -0.95), (0, -1.25), (0.95, -0.95), (0.98, -0.25),
                  (0.7, -0.62), (0, -0.72), (-0.7, -0.62)],
        "long": [(-1.02, 0.2), (-1.05, -0.95), (0, -1.28), (1.05, -0.95), (1.02, 0.2), (0.8, -0.5), (0.1, -0.8), (-0.8, -0.5)],
        "curly": [(-1.0, -0.3), (-1.0, -0.95), (0, -1.3), (1.0, -0.95), (1.0, -0.3),
                  (0.6, -0.66), (0.2, -0.6), (-0.2, -0.68), (-0.6, -0.6)],
        "bun": [(-0.98, -0.2), (-0.92, -0.95), (0, -1.15), (0.92, -0.95), (0.98, -0.2), (0.6, -0.68), (0, -0.8), (-0.6, -0.68)],
    }[hair]  # fmt: skip
    brush.shape(canvas, smooth([(x, y * tall) for x, y in fringe]), brush.hair, look.outline * 0.8)


def draw_glasses(canvas: Canvas, look: Look, brush: Brush) -> None:
    """Round glasses."""
    width = 0.05 * unit_of(canvas)
    for side in (-1, 1):
        canvas.stroke(ellipse(side * look.eye_gap, look.eye_y, 0.29), "#30343f", width)
    canvas.stroke(arc(-look.eye_gap + 0.29, look.eye_y, look.eye_gap - 0.29, look.eye_y, -0.04), "#30343f", width)


def draw_hat(canvas: Canvas, hat: str, color: str, look: Look, brush: Brush) -> None:
    """Cap, beanie or sun hat."""
    line, top = max(look.outline * 0.8, 0.02), -0.62 * look.head_tall
    crown = smooth([(-1.03, top + 0.1), (-1.0, top - 0.65), (0, top - 0.9), (1.0, top - 0.65), (1.03, top + 0.1)])
    parts = {
        "sun hat": [
            (smooth([(-0.75, top), (-0.7, top - 0.7), (0.7, top - 0.7), (0.75, top)]), color),
            (ellipse(0, top, 1.45, 0.2), color),
        ],
        "beanie": [
            (crown, color),
            (box(-1.0, top - 0.15, 2.0, 0.28, 0.12), color),
            (ellipse(0, top - 0.78, 0.17), "#ffffff"),
        ],
        "cap": [(crown, color), (ellipse(0.75, top + 0.06, 0.72, 0.13, 6), color)],
    }
    for shape, fill in parts[hat]:
        brush.shape(canvas, shape, fill, line)


def draw_nose(canvas: Canvas, subject: str, look: Look, brush: Brush) -> None:
    """The nose at rest; wrinkles belong to the expression."""
    y = (look.eye_y + look.mouth_y) / 2 + 0.04
    if subject in ("cat", "dog", "bear", "rabbit"):
        canvas.fill(
            smooth([(-0.17, y - 0.07), (0, y - 0.1), (0.17, y - 0.07), (0, y + 0.14)]),
            look.ink if brush.fills else brush.ink,
        )
    elif look.nose == "dot":
        canvas.fill(ellipse(0, y, 0.05), look.ink, 0.55)
    elif look.nose == "line":
        canvas.stroke(arc(-0.02, y - 0.12, -0.02, y + 0.08, 0), look.ink, look.line * 0.7 * unit_of(canvas), 0.7)
    elif look.nose == "triangle":
        canvas.stroke(
            polyline((0.0, y - 0.12), (-0.09, y + 0.07), (0.06, y + 0.07)),
            look.ink,
            look.line * 0.7 * unit_of(canvas),
            0.7,
        )


def draw_expression(canvas: Canvas, face: Expression, look: Look, brush: Brush, head: Path) -> None:
    """Everything that an expression moves; drawn in one go so that one mask holds it all."""
    unit = unit_of(canvas)
    _skin_signs(canvas, face, look, head, unit)
    for side in (-1, 1):
        _eye(canvas, face, look, side, unit)
        _brow(canvas, face, look, side, unit)
    _nose_wrinkle(canvas, face, look, unit)
    _mouth(canvas, face, look, brush, unit)
    _fluids(canvas, face, look, unit)


def draw_hands(canvas: Canvas, face: Expression, look: Look, brush: Brush) -> None:
    """Hands on the cheeks or at the mouth, and puffs of steam: above hair and glasses."""
    unit, skin = unit_of(canvas), brush.fill(brush.skin)
    if face.hands_cheeks > 0.05:
        for side in (-1, 1):
            drop = 0.5 * (1 - face.hands_cheeks)
            palm = [(0.62, 0.05), (0.95, -0.1), (1.05, 0.5), (0.95, 1.25), (0.62, 1.25), (0.72, 0.7)]
            with canvas.placed(Affine2D().scale(side, 1).translate(0, drop)):
                canvas.fill(smooth(palm), skin)
                canvas.stroke(smooth(palm), brush.ink, max(look.outline, 0.035) * unit)
    if face.hand_mouth > 0.05:
        drop = 0.6 * (1 - face.hand_mouth)
        hand = [(-0.05, 0.5), (0.15, 0.32), (0.6, 0.42), (0.75, 0.75), (0.7, 1.25), (0.3, 1.25), (0.05, 0.85)]
        with canvas.placed(Affine2D().translate(-0.12, drop)):
            canvas.fill(smooth(hand), skin)
            canvas.stroke(smooth(hand), brush.ink, max(look.outline, 0.035) * unit)
            for y in (0.55, 0.68):
                canvas.stroke(arc(0.12, y, 0.42, y + 0.02, 0.0), brush.ink, 0.03 * unit, 0.7)
    for side in (-1, 1) if face.steam > 0.05 else ():
        for x, y, r in ((1.15, -0.35, 0.13), (1.34, -0.5, 0.16), (1.2, -0.62, 0.12)):
            puff = ellipse(side * x, y, r * (0.5 + 0.5 * face.steam))
            canvas.fill(puff, "#f4f4f6", face.steam)
            canvas.stroke(puff, "#8a8790", 0.03 * unit, face.steam * 0.9)


def _skin_signs(canvas: Canvas, f: Expression, look: Look, head: Path, unit: float) -> None:
    with canvas.clipped(head):
        for side in (-1, 1):
            canvas.fill(ellipse(side * 0.6, 0.28, 0.25, 0.18), "#e8504f", 0.5 * f.blush)
            canvas.fill(ellipse(side * 0.5, 0.42, 0.42, 0.4), "#5c9a3c", 0.5 * f.green)
        if f.pale > 0.02:
            canvas.fill(box(-1.3, -1.3, 2.6, 0.85), "#41539a", 0.4 * f.pale)
            for x in np.linspace(-0.75, 0.75, 7):
                canvas.stroke(polyline((x, -1.1), (x, -0.52)), look.ink, 0.03 * unit, 0.7 * f.pale)
    if f.puff > 0.05:
        for side in (-1, 1):
            x, y = side * 0.5, look.mouth_y
            canvas.stroke(
                arc(x, y - 0.24, x, y + 0.24, 0).transformed(_bulge(side * 0.2 * f.puff, x, y)),
                look.ink,
                look.line * 0.8 * unit,
                f.puff,
            )


def _bulge(amount: float, x: float, y: float) -> Affine2D:
    """Turns a vertical line into the outline of a puffed cheek by leaning its ends inwards."""
    return Affine2D().translate(-x, -y).skew(0, 0).rotate(amount).translate(x + amount, y)


def _eye(canvas: Canvas, f: Expression, look: Look, side: int, unit: float) -> None:
    x, y, r = side * look.eye_gap, look.eye_y, look.eye_size
    wide, line = r * 1.15, look.line * unit
    shut = f.wink if side > 0 else 0.0
    if f.eye_tight > 0.5:
        tip, out = x - side * wide * 0.75, x + side * wide * 0.95
        canvas.stroke(polyline((out, y - 0.11), (tip, y), (out, y + 0.11)), look.ink, line)
    elif f.eye_smile > 0.5 or shut > 0.5:
        canvas.stroke(arc(x - wide * 1.15, y + 0.06, x + wide * 1.15, y + 0.06, -0.16 * max(f.eye_smile, shut)), look.ink, line)
    elif f.eye_open * (1 - 0.9 * max(f.eye_tight, f.eye_smile, shut)) < 0.3:
        sag = 0.1 if f.mouth_curve or f.brow_inner or f.tears else 0.0
        canvas.stroke(arc(x - wide * 1.1, y, x + wide * 1.1, y, sag), look.ink, line)
    else:
        _open_eye(canvas, f, look, side, x, y, r, unit)


def _open_eye(canvas: Canvas, f: Expression, look: Look, side: int, x: float, y: float, r: float, unit: float) -> None:
    opened = f.eye_open * (1 - 0.5 * max(f.eye_tight, f.eye_smile))
    grow = 1 + 0.35 * max(opened - 1, 0)
    tall = r * look.eye_tall * opened
    look_down = 0.35 * f.gaze * r
    ball = ellipse(x, y, r * grow * (0.8 if look.eye in ("dot", "oval") else 1.25), tall * (1.0 if look.eye != "dot" else 0.8))
    staring = f.pupil < 0.85 or opened > 1.15
    if look.eye in ("white", "ring") or staring and look.eye == "oval":
        white = ellipse(x, y, r * grow * 1.3, r * 1.25 * opened)
        canvas.fill(white, "#ffffff")
        canvas.stroke(white, look.ink, look.line * 0.75 * unit)
        with canvas.clipped(white):
            canvas.fill(ellipse(x, y + 2 * look_down, r * (0.12 + 0.65 * f.pupil)), look.ink)
            if look.highlight:
                canvas.fill(ellipse(x + 0.2 * r, y + 2 * look_down - 0.25 * r, 0.18 * r), "#ffffff")
        ball = white
    else:
        canvas.fill(ball.transformed(Affine2D().translate(0, look_down)), look.ink)
        if look.highlight and look.eye == "oval":
            canvas.fill(ellipse(x + 0.25 * r, y + look_down - 0.35 * tall, 0.26 * r), "#ffffff")
    if abs(f.lid_slant) > 0.1 and (look.eye in ("white", "ring") or look.brow == "never"):
        inner, outer = (
            y - tall * (0.95 + 0.75 * min(f.lid_slant, 0.4)),
            y - tall * (0.95 - 0.75 * max(f.lid_slant, -0.4)),
        )
        lid = polyline((x - side * r * 1.45, inner), (x + side * r * 1.45, outer))
        canvas.stroke(lid, look.ink, look.line * 1.15 * unit)


def _brow(canvas: Canvas, f: Expression, look: Look, side: int, unit: float) -> None:
    moved = abs(f.brow_inner) + abs(f.brow_outer)
    if look.brow == "never" or look.brow == "moved" and moved < 0.12:
        return
    lift = 0.16 * max(f.eye_open - 1, 0)
    base = look.eye_y - look.eye_size * look.eye_tall - 0.17 - lift
    x0, x1 = side * (look.eye_gap - 0.19), side * (look.eye_gap + 0.2)
    inner, outer = base - 0.2 * f.brow_inner, base - 0.17 * f.brow_outer
    if f.mouth_skew > 0.6 and side > 0:
        outer -= 0.12
    canvas.stroke(arc(x0, inner, x1, outer, -0.045), look.ink, look.line * 1.1 * unit)


def _nose_wrinkle(canvas: Canvas, f: Expression, look: Look, unit: float) -> None:
    if f.nose_wrinkle < 0.05:
        return
    y = look.eye_y + 0.04
    for side in (-1, 1):
        canvas.stroke(polyline((side * 0.05, y + 0.06), (side * 0.14, y - 0.06)), look.ink, 0.7 * look.line * unit, f.nose_wrinkle)
        canvas.stroke(polyline((side * 0.04, y + 0.17), (side * 0.15, y + 0.06)), look.ink, 0.7 * look.line * unit, f.nose_wrinkle)
        canvas.stroke(arc(side * 0.16, y + 0.3, side * 0.34, y + 0.52, -0.05), look.ink, 0.7 * look.line * unit, f.nose_wrinkle)


def mouth_lips(f: Expression, look: Look) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower lip as points [21, 2] from the left corner to the right one."""
    half = look.mouth_size * (1 + (0.45 if f.mouth_width > 0 else 0.58) * f.mouth_width)
    t = np.linspace(-1, 1, 21)
    corner, middle = -0.17 * f.mouth_curve, 0.17 * f.mouth_curve
    line = corner + (middle - corner) * (1 - t**2)
    upper, lower = line.copy(), line.copy()
    if f.mouth_open > 0.02:
        depth = 0.55 * f.mouth_open * (1 - t**2) ** 0.6
        share = 0.5 + 0.5 * np.clip(f.mouth_curve * 1.3, -1, 1)
        upper, lower = line - (1 - share) * depth, line + share * depth
        flat = look.mouth_flat * min(abs(f.mouth_curve) * 1.3, 1)
        if f.mouth_curve > 0:
            upper = (1 - flat) * upper + flat * corner
        else:
            lower = (1 - flat) * lower + flat * corner
    wave = 0.07 * f.mouth_wave * np.sin(t * np.pi * 3)
    skew = -0.16 * f.mouth_skew * np.clip(t, 0, 1)
    x = t * half
    move = look.mouth_y + wave + skew
    return np.stack([x, upper + move], 1), np.stack([x, lower + move], 1)


def _mouth(canvas: Canvas, f: Expression, look: Look, c: Brush, unit: float) -> None:
    upper, lower = mouth_lips(f, look)
    line = look.line * unit
    middle = (upper[10] + lower[10]) / 2
    if f.mouth_open <= 0.05:
        canvas.stroke(Path((upper + lower) / 2), look.ink, line)
    else:
        _open_mouth(canvas, f, look, c, upper, lower, line)
    if f.tongue > 0.1:
        top = middle[1] + (0.02 if f.mouth_open <= 0.05 else 0.25 * (lower[10, 1] - upper[10, 1]))
        long, wide = 0.1 + 0.3 * f.tongue, 0.15 + 0.04 * f.tongue
        shape = smooth([(-wide, top), (-wide, top + long), (0, top + long * 1.25), (wide, top + long), (wide, top)])
        canvas.fill(shape, "#e8747c" if c.fills else c.paper)
        canvas.stroke(shape, look.ink, line * 0.8)
        canvas.stroke(polyline((0, top + 0.03), (0, top + long * 0.6)), look.ink, line * 0.5)
    if f.vomit > 0.05:
        top, long = middle[1], 0.75 * f.vomit
        flow = smooth(
            [
                (-0.17, top),
                (-0.24, top + long),
                (-0.05, top + long * 1.05),
                (0.1, top + long * 0.95),
                (0.27, top + long),
                (0.17, top),
            ]
        )
        canvas.fill(flow, "#7fb03c" if c.fills else c.paper)
        canvas.stroke(flow, look.ink, line * 0.8)


def _open_mouth(canvas: Canvas, f: Expression, look: Look, c: Brush, upper: np.ndarray, lower: np.ndarray, line: float) -> None:
    outline = Path(np.concatenate([upper, lower[::-1], upper[:1]]), closed=True)
    inside = {"dark": look.ink, "red": "#9c2f37", "pink": "#d8636b", "empty": c.paper if not c.fills else c.skin}[look.mouth]
    canvas.fill(outline, inside)
    with canvas.clipped(outline):
        if look.mouth in ("red", "pink") and f.teeth < 0.75 and f.mouth_open > 0.3:
            canvas.fill(ellipse(0, lower[10, 1] + 0.04, look.mouth_size * 0.6, 0.17), "#e8747c")
        if f.teeth > 0.08:
            share = 1.0 if f.teeth > 0.75 else 0.45 * f.teeth + 0.1
            edge = upper + share * (lower - upper)
            band = Path(np.concatenate([upper, edge[::-1], upper[:1]]), closed=True)
            canvas.fill(band, "#ffffff")
            if f.teeth > 0.75 and look.teeth_lines:
                for x in upper[3:-2:3, 0]:
                    canvas.stroke(polyline((x, upper[:, 1].min()), (x, lower[:, 1].max())), look.ink, line * 0.5)
                between = (upper + lower) / 2
                canvas.stroke(Path(between), look.ink, line * 0.5)
    canvas.stroke(outline, look.ink, line * 0.85)


def _drop(x: float, y: float, r: float) -> Path:
    return smooth(
        [
            (x, y - 1.9 * r),
            (x + 0.35 * r, y - 0.9 * r),
            (x + 1.1 * r, y + 0.2 * r),
            (x, y + 1.3 * r),
            (x - 1.1 * r, y + 0.2 * r),
            (x - 0.35 * r, y - 0.9 * r),
        ]
    )


def _fluids(canvas: Canvas, f: Expression, look: Look, unit: float) -> None:
    thin, water, edge = 0.025 * unit, "#7cc5f2", "#2f6fa8"
    for side in (-1, 1):
        if f.stream > 0.05:
            x, y = side * look.eye_gap, look.eye_y + 0.08
            run = box(x - 0.1, y, 0.2, 0.95 * f.stream, 0.06)
            canvas.fill(run, water, 0.9)
            canvas.stroke(run, edge, thin)
        elif f.tears > 0.05 and (side > 0 or f.tears > 0.82):
            outer = f.eye_smile > 0.5
            drop = _drop(
                side * (look.eye_gap + (0.28 if outer else 0.08)),
                look.eye_y + (0.16 if outer else 0.3),
                0.055 + 0.08 * f.tears,
            )
            canvas.fill(drop, water, 0.95)
            canvas.stroke(drop, edge, thin)
    if f.sweat > 0.05:
        drop = _drop(0.72, -0.42, 0.05 + 0.1 * f.sweat)
        canvas.fill(drop, water, 0.95)
        canvas.stroke(drop, edge, thin)
