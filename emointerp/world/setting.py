"""Places, weather and things: everything around the subject.

Coordinates are the canvas's own: x to the right and y down, both from 0 to 1.
"""

from collections.abc import Callable

import numpy as np
from matplotlib.transforms import Affine2D

from emointerp.world.canvas import Canvas, arc, box, ellipse, polygon, polyline, smooth
from emointerp.world.face import Brush

PLACES = ("plain", "room", "street", "beach", "forest", "night")
WEATHERS = ("clear", "sunny", "rain", "snow")
PLAIN_THINGS = ("cup", "ball", "book", "plant")
SIGNIFIERS = {  # things that go with an emotion in the training split (see splits.SIGNIFIER_RATE)
    "balloons": "joy",
    "confetti": "joy",
    "wilted flower": "sadness",
    "storm cloud": "anger",
    "broken cup": "anger",
    "spider": "fear",
    "ghost": "fear",
    "gift": "surprise",
    "rotten apple": "disgust",
    "trash can": "disgust",
}
WEATHER_SIGNIFIERS = {"sunny": "joy", "rain": "sadness"}
GROUNDS = ("#f4ecd8", "#e3eef6", "#f7dfe0", "#e4f0dc", "#efe6f5", "#fdfdfb", "#dfe3e8", "#cfe0d8", "#f9e6c8", "#ffffff")


def draw_place(canvas: Canvas, place: str, brush: Brush, rng: np.random.Generator) -> None:
    """The background, with small variations from `rng`."""
    canvas.fill(box(-0.1, -0.1, 1.2, 1.2), brush.paper)
    {"plain": lambda *_: None, "room": _room, "street": _street, "beach": _beach, "forest": _forest, "night": _night}[place](
        canvas, brush, rng
    )


def _room(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    wall, floor = (
        rng.choice(["#f2dcc0", "#d8e4ea", "#e9d9e6", "#dfe8cf"]),
        rng.choice(["#b98a5e", "#a57a52", "#8f7a6a"]),
    )
    brush.shape(canvas, box(-0.1, -0.1, 1.2, 0.85), wall)
    brush.shape(canvas, box(-0.1, 0.75, 1.2, 0.4), floor)
    x = 0.08 + 0.06 * rng.random()
    brush.shape(canvas, box(x, 0.12, 0.26, 0.3), "#bfe1f2")
    canvas.stroke(polyline((x + 0.13, 0.12), (x + 0.13, 0.42)), brush.ink, 0.01, 0.6)
    canvas.stroke(polyline((x, 0.27), (x + 0.26, 0.27)), brush.ink, 0.01, 0.6)
    brush.shape(canvas, box(0.72, 0.16 + 0.05 * rng.random(), 0.18, 0.15), "#cfa85f")


def _street(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    brush.shape(canvas, box(-0.1, -0.1, 1.2, 0.9), "#cfe3ef")
    x = -0.05
    while x < 1.0:
        width, top = 0.17 + 0.12 * rng.random(), 0.1 + 0.3 * rng.random()
        brush.shape(canvas, box(x, top, width, 0.8), rng.choice(["#c98d74", "#a9a4b8", "#d8b987", "#8fa3ad"]))
        for wx in (0.25, 0.65):
            for wy in np.arange(top + 0.07, 0.7, 0.13):
                canvas.fill(box(x + wx * width - 0.02, wy, 0.045, 0.06), brush.fill("#f5e9b8"), 0.9)
        x += width + 0.01
    brush.shape(canvas, box(-0.1, 0.8, 1.2, 0.3), "#7d828c")
    for i in range(4):
        canvas.fill(box(0.05 + 0.27 * i, 0.89, 0.13, 0.02), brush.fill("#f2f2ea"))


def _beach(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    horizon = 0.45 + 0.1 * rng.random()
    brush.shape(canvas, box(-0.1, -0.1, 1.2, horizon + 0.1), "#bfe6f5")
    brush.shape(canvas, box(-0.1, horizon, 1.2, 0.3), "#4fa3c7")
    brush.shape(canvas, smooth([(-0.2, 0.74), (0.3, 0.68), (0.7, 0.76), (1.2, 0.7), (1.3, 1.3), (-0.3, 1.3)]), "#f0d9a3")
    for i in range(3):
        x, y = rng.random(), horizon + 0.05 + 0.06 * i
        canvas.stroke(arc(x - 0.08, y, x + 0.08, y, 0.015), brush.fill("#e8f6fb") if brush.fills else brush.ink, 0.012)
    sail = 0.15 + 0.6 * rng.random()
    brush.shape(canvas, polygon((sail, horizon - 0.12), (sail, horizon), (sail + 0.08, horizon)), "#ffffff")


def _forest(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    brush.shape(canvas, box(-0.1, -0.1, 1.2, 1.2), "#d9ecd2")
    brush.shape(canvas, box(-0.1, 0.78, 1.2, 0.4), "#7fae6a")
    for x in np.linspace(0.02, 0.98, 6) + rng.uniform(-0.05, 0.05, 6):
        top, green = 0.05 + 0.22 * rng.random(), rng.choice(["#4c8a55", "#5f9a4e", "#3f7a5a"])
        brush.shape(canvas, box(x - 0.018, 0.5, 0.036, 0.34), "#7a5638")
        for k in range(3):
            y = top + 0.15 * k
            brush.shape(canvas, polygon((x, y), (x - 0.07 - 0.02 * k, y + 0.22), (x + 0.07 + 0.02 * k, y + 0.22)), green)


def _night(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    sky = "#27335c" if brush.fills else brush.paper
    canvas.fill(box(-0.1, -0.1, 1.2, 1.2), sky)
    light = "#fdf3c4" if brush.fills else brush.ink
    moon_x, moon_y = 0.78 + 0.08 * rng.random(), 0.14
    canvas.fill(ellipse(moon_x, moon_y, 0.085), light)
    canvas.fill(ellipse(moon_x + 0.04, moon_y - 0.02, 0.075), sky)
    for x, y in rng.uniform((0, 0), (1, 0.6), (14, 2)):
        canvas.fill(ellipse(x, y, 0.006 + 0.006 * rng.random()), light)
    brush.shape(canvas, smooth([(-0.2, 0.85), (0.2, 0.72), (0.6, 0.82), (1.2, 0.7), (1.3, 1.3), (-0.3, 1.3)]), "#1c2442")


def draw_weather(canvas: Canvas, weather: str, brush: Brush, rng: np.random.Generator) -> None:
    """Sun, rain or snow in front of everything but the face's own features."""
    if weather == "sunny":
        x, y = 0.13, 0.13
        for a in np.linspace(0, 2 * np.pi, 10, endpoint=False):
            ray = polyline((x + 0.11 * np.cos(a), y + 0.11 * np.sin(a)), (x + 0.15 * np.cos(a), y + 0.15 * np.sin(a)))
            canvas.stroke(ray, "#f4b52e" if brush.fills else brush.ink, 0.018)
        brush.shape(canvas, ellipse(x, y, 0.085), "#ffd84d")
    elif weather == "rain":
        for x, y in rng.uniform((-0.05, -0.05), (1.05, 1.0), (46, 2)):
            canvas.stroke(polyline((x, y), (x - 0.018, y + 0.06)), "#5b8fc4" if brush.fills else brush.ink, 0.009, 0.75)
    elif weather == "snow":
        for x, y in rng.uniform(0, 1, (40, 2)):
            flake = ellipse(x, y, 0.011 + 0.006 * rng.random())
            canvas.fill(flake, "#ffffff")
            canvas.stroke(flake, "#9db4c8" if brush.fills else brush.ink, 0.004, 0.8)


def draw_thing(canvas: Canvas, name: str, place: tuple[float, float], size: float, brush: Brush, rng: np.random.Generator) -> None:
    """One thing with its middle at `place`; a thing of size 1 is about a quarter of the picture."""
    with canvas.placed(Affine2D().scale(0.13 * size).translate(*place)):
        _THINGS[name](canvas, brush, rng)


Parts = list[tuple[object, str]]


def _shapes(canvas: Canvas, brush: Brush, parts: Parts) -> None:
    for path, color in parts:
        brush.shape(canvas, path, color, max(brush.line / 0.13, 0.07))


def _cup(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    canvas.stroke(ellipse(0.62, 0.1, 0.3, 0.32), brush.ink, 0.02)
    _shapes(canvas, brush, [(box(-0.6, -0.5, 1.15, 1.2, 0.2), "#5aa0d8"), (ellipse(-0.02, -0.48, 0.57, 0.14), "#6b4429")])


def _broken_cup(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    left = polygon((-0.9, -0.4), (-0.35, -0.5), (-0.15, -0.1), (-0.3, 0.2), (-0.1, 0.6), (-0.75, 0.6))
    right = polygon((0.25, -0.35), (0.85, -0.15), (0.75, 0.65), (0.2, 0.7), (0.4, 0.3), (0.15, 0.05))
    _shapes(
        canvas,
        brush,
        [(left, "#d06a5a"), (right, "#d06a5a"), (polygon((0.0, 0.75), (0.25, 0.85), (-0.1, 0.95)), "#d06a5a")],
    )


def _ball(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    _shapes(canvas, brush, [(ellipse(0, 0.1, 0.75), "#e5733a")])
    for bulge in (-0.35, 0.35):
        canvas.stroke(arc(-0.6, -0.3, 0.6, -0.3, bulge + 0.3), "#ffffff" if brush.fills else brush.ink, 0.014)


def _book(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    _shapes(canvas, brush, [(box(-0.8, -0.55, 0.8, 1.1, 0.08), "#4d7f5f"), (box(0, -0.55, 0.8, 1.1, 0.08), "#5f9572")])
    for y in (-0.25, 0.0, 0.25):
        canvas.stroke(polyline((0.15, y), (0.62, y)), "#f2efe0" if brush.fills else brush.ink, 0.008)


def _plant(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    leaves = [(ellipse(0.32 * s, -0.45 - 0.2 * k, 0.22, 0.42, s * (40 - 25 * k)), "#4f9a58") for k in (0, 1) for s in (-1, 1)]
    _shapes(canvas, brush, [*leaves, (polygon((-0.5, 0.1), (0.5, 0.1), (0.36, 0.9), (-0.36, 0.9)), "#c4703f")])


def _balloons(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    for x, y, color in ((-0.55, -0.5, "#e4574f"), (0.5, -0.65, "#4f8fe0"), (0.0, -0.95, "#f2c33d")):
        canvas.stroke(arc(x, y + 0.5, 0.0, 1.1, 0.04), brush.ink, 0.007, 0.8)
        _shapes(canvas, brush, [(ellipse(x, y, 0.42, 0.52), color)])
        canvas.fill(ellipse(x - 0.14, y - 0.18, 0.09, 0.14, 20), "#ffffff", 0.7)


def _confetti(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    for x, y in rng.uniform(-1.3, 1.3, (16, 2)):
        bit = box(x, y, 0.2, 0.12).transformed(Affine2D().rotate_deg_around(x, y, rng.uniform(0, 180)))
        canvas.fill(bit, rng.choice(["#e4574f", "#4f8fe0", "#f2c33d", "#57b36a", "#b56bd0"]) if brush.fills else brush.ink)


def _wilted_flower(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    stem = smooth([(0.1, 1.0), (0.1, 0.6), (0.05, -0.7), (-0.5, -0.8), (-0.6, -0.1), (-0.6, 0.0)], closed=False)
    canvas.stroke(stem, "#7b8a4a" if brush.fills else brush.ink, 0.014)
    petals = [(ellipse(-0.6 + 0.22 * dx, 0.15 + 0.1 * abs(dx), 0.14, 0.32, -25 * dx), "#a77f98") for dx in (-1, 0, 1)]
    _shapes(canvas, brush, [*petals, (ellipse(0.34, 0.45, 0.12, 0.3, 50), "#8f9a5e")])


def _storm_cloud(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    cloud = smooth([(-1.0, 0.1), (-1.0, -0.5), (-0.3, -0.9), (0.4, -0.9), (1.0, -0.5), (1.0, 0.1), (0.0, 0.2)])
    bolt = polygon((0.05, 0.0), (-0.3, 0.55), (-0.02, 0.55), (-0.2, 1.1), (0.4, 0.4), (0.1, 0.4), (0.35, 0.0))
    _shapes(canvas, brush, [(bolt, "#f7d13d"), (cloud, "#565b6b")])


def _spider(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    ink = "#2a2230" if brush.fills else brush.ink
    canvas.stroke(polyline((0, -1.6), (0, -0.3)), ink, 0.006)
    for side in (-1, 1):
        for k, y in enumerate((-0.25, -0.05, 0.15, 0.35)):
            canvas.stroke(polyline((0, y), (side * 0.6, y - 0.3 + 0.12 * k), (side * 0.9, y + 0.2 + 0.1 * k)), ink, 0.012)
    canvas.fill(ellipse(0, 0.12, 0.4, 0.46), ink)
    canvas.fill(ellipse(0, -0.35, 0.24), ink)


def _ghost(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    sheet = [(-0.65, 0.9), (-0.7, -0.6), (0, -1.2), (0.7, -0.6), (0.65, 0.9), (0.35, 0.65), (0.1, 0.95), (-0.15, 0.65)]
    _shapes(canvas, brush, [(smooth(sheet), "#eef1fb")])
    for x in (-0.22, 0.22):
        canvas.fill(ellipse(x, -0.35, 0.1, 0.15), "#2a2230")


def _gift(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    ribbon = "#f7d24d"
    bow = [(ellipse(s * 0.26, -0.62, 0.28, 0.16, s * -25), ribbon) for s in (-1, 1)]
    _shapes(canvas, brush, [(box(-0.75, -0.45, 1.5, 1.3, 0.05), "#9b59c4"), (box(-0.13, -0.45, 0.26, 1.3), ribbon), *bow])


def _rotten_apple(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    apple = [(-0.7, -0.3), (-0.3, -0.6), (0, -0.4), (0.3, -0.6), (0.7, -0.3), (0.55, 0.6), (0, 0.7), (-0.55, 0.6)]
    _shapes(canvas, brush, [(smooth(apple), "#8a8f3c")])
    canvas.stroke(polyline((0, -0.35), (0.08, -0.75)), brush.ink, 0.014)
    for x, y in ((-0.25, 0.1), (0.25, 0.3), (0.1, -0.1)):
        canvas.fill(ellipse(x, y, 0.13, 0.1), "#4f4a24" if brush.fills else brush.ink)
    for x, y in ((-0.6, -0.85), (0.55, -0.9), (0.85, -0.4)):
        canvas.fill(ellipse(x, y, 0.07), "#2a2230")
        canvas.stroke(arc(x - 0.13, y - 0.07, x + 0.13, y - 0.07, -0.05), "#2a2230", 0.005)


def _trash_can(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    can = polygon((-0.6, -0.35), (0.6, -0.35), (0.45, 0.9), (-0.45, 0.9))
    peel = smooth([(0.2, -0.4), (0.6, -0.8), (0.95, -0.3), (0.75, -0.2), (0.55, -0.5)])
    _shapes(canvas, brush, [(peel, "#d9cf4a"), (can, "#7f8a80"), (box(-0.7, -0.45, 1.4, 0.16, 0.05), "#69736b")])
    for x in (-0.25, 0.0, 0.25):
        canvas.stroke(polyline((x, -0.15), (x * 0.85, 0.75)), brush.ink, 0.008, 0.7)
    for x in (-0.45, -0.15):
        canvas.stroke(smooth([(x, -0.6), (x - 0.1, -0.8), (x + 0.1, -1.0), (x, -1.2)], closed=False), "#7f9a3c", 0.011)


_THINGS: dict[str, Callable[[Canvas, Brush, np.random.Generator], None]] = {
    "cup": _cup,
    "ball": _ball,
    "book": _book,
    "plant": _plant,
    "balloons": _balloons,
    "confetti": _confetti,
    "wilted flower": _wilted_flower,
    "storm cloud": _storm_cloud,
    "broken cup": _broken_cup,
    "spider": _spider,
    "ghost": _ghost,
    "gift": _gift,
    "rotten apple": _rotten_apple,
    "trash can": _trash_can,
}
