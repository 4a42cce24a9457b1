"""Abstract moods: pictures without a face whose colours and shapes carry the feeling; at intensity 0 all are calm bands."""

import numpy as np
from matplotlib.colors import to_rgb

from emointerp.world.canvas import Canvas, box, ellipse, polygon, smooth

_PALETTES = {
    "joy": [("#ffd54a", "#ff9f43", "#ff7aa8", "#fff3c4"), ("#ffe066", "#7ee0c3", "#ff9ecf", "#fffbe6")],
    "sadness": [("#3d5275", "#5c7391", "#8fa3b8", "#2b3a55"), ("#5a6470", "#7d8894", "#a9b3bd", "#3e4750")],
    "anger": [("#c41f1f", "#1f1416", "#ef5a24", "#7d0f14"), ("#d63b1f", "#33130f", "#f28c1e", "#9c1c1c")],
    "fear": [("#14121f", "#2e2a4a", "#5b5680", "#d8d6ea"), ("#10181b", "#22363b", "#4b6a6a", "#dfe9e4")],
    "surprise": [("#ffffff", "#ff4fa3", "#32c8f0", "#ffe94a"), ("#fffdf2", "#ff7a2f", "#7b5cff", "#45e0a8")],
    "disgust": [("#8a9a2f", "#5d5a2a", "#b7b64a", "#6b4f35"), ("#7c8f4a", "#a08a3c", "#4e5f34", "#c4b96a")],
}
_CALM = ("#e6dfd3", "#d6d2c8", "#cfd3d1", "#dcd8d0")


def draw_mood(canvas: Canvas, emotion: str, intensity: float, rng: np.random.Generator) -> None:
    """Draw the mood of an emotion; the shapes grow and colour with `intensity` in [0, 1]."""
    choice, jitter = int(rng.integers(2)), rng.random((60, 4))
    colors = _CALM if emotion not in _PALETTES else _PALETTES[emotion][choice]
    ground = _mixed(_CALM[0], colors[0], intensity)
    canvas.fill(box(-0.1, -0.1, 1.2, 1.2), ground)
    for i in range(4):
        canvas.fill(box(-0.1, 0.12 + 0.25 * i, 1.2, 0.1), _CALM[1 + i % 3], 0.9 * (1 - intensity))
    if emotion in _SHAPES and intensity > 0.02:
        _SHAPES[emotion](canvas, colors, intensity, jitter)


def _mixed(a: str, b: str, share: float) -> tuple[float, float, float]:
    return tuple((1 - share) * np.array(to_rgb(a)) + share * np.array(to_rgb(b)))


def _joy(canvas: Canvas, colors, k: float, u: np.ndarray) -> None:
    for i, (x, y, r, _) in enumerate(u[:26]):
        canvas.fill(ellipse(x, 1 - y * y, (0.03 + 0.07 * r) * k), colors[1 + i % 3], 0.9)


def _sadness(canvas: Canvas, colors, k: float, u: np.ndarray) -> None:
    for i, (x, y, r, w) in enumerate(u[:16]):
        long = (0.3 + 0.5 * r) * k
        drip = smooth(
            [
                (x - 0.02, -0.1),
                (x + 0.02, -0.1),
                (x + 0.02 + 0.02 * w, y * long),
                (x, y * long + long),
                (x - 0.03, y * long),
            ]
        )
        canvas.fill(drip, colors[1 + i % 3], 0.75)
    canvas.fill(smooth([(-0.2, 0.9), (0.5, 0.8), (1.2, 0.92), (1.2, 1.3), (-0.2, 1.3)]), colors[3], 0.8 * k)


def _anger(canvas: Canvas, colors, k: float, u: np.ndarray) -> None:
    for i, (x, y, r, w) in enumerate(u[:20]):
        angle, long = 2 * np.pi * r, (0.15 + 0.4 * w) * k
        tip = (x + long * np.cos(angle), y + long * np.sin(angle))
        side = (0.06 * k * np.sin(angle), -0.06 * k * np.cos(angle))
        canvas.fill(polygon((x + side[0], y + side[1]), tip, (x - side[0], y - side[1])), colors[1 + i % 3], 0.95)


def _fear(canvas: Canvas, colors, k: float, u: np.ndarray) -> None:
    for i, (x, r, _, _) in enumerate(u[:14]):
        top = 0.1 + 0.5 * r * (1.2 - k)
        lean = 0.5 + 0.55 * (x - 0.5)
        canvas.fill(polygon((x * 1.2 - 0.15, 1.05), (lean, top), (x * 1.2 - 0.03, 1.05)), colors[1 + i % 2], 0.8 * k)
    for x, y in u[20:24, :2]:
        for dx in (-0.03, 0.03):
            canvas.fill(ellipse(0.15 + 0.7 * x + dx, 0.1 + 0.5 * y, 0.018 * k, 0.012 * k), colors[3])
    canvas.fill(ellipse(0.5, 0.9, 0.035), colors[3])


def _surprise(canvas: Canvas, colors, k: float, u: np.ndarray) -> None:
    x0, y0 = 0.4 + 0.2 * u[0, 0], 0.4 + 0.2 * u[0, 1]
    for i in range(18):
        a, b = 2 * np.pi * i / 18, 2 * np.pi * (i + 0.55) / 18
        far = 0.25 + (0.6 + 0.5 * u[i, 2]) * k
        canvas.fill(
            polygon((x0, y0), (x0 + far * np.cos(a), y0 + far * np.sin(a)), (x0 + far * np.cos(b), y0 + far * np.sin(b))),
            colors[1 + i % 3],
        )
    canvas.fill(ellipse(x0, y0, 0.12 * k), colors[0])


def _disgust(canvas: Canvas, colors, k: float, u: np.ndarray) -> None:
    for i, (x, y, r, w) in enumerate(u[:12]):
        s = (0.08 + 0.1 * r) * k
        blob = smooth(
            [
                (x - s, y),
                (x - 0.6 * s, y - s),
                (x + 0.5 * s, y - 0.8 * s),
                (x + s, y + 0.2 * s),
                (x + 0.3 * s, y + s * (1 + 2 * w)),
                (x - 0.5 * s, y + 0.8 * s),
            ]
        )
        canvas.fill(blob, colors[1 + i % 3], 0.9)
    for x, y, r, _ in u[20:50]:
        canvas.fill(ellipse(x, y, 0.008 + 0.012 * r), colors[1 + int(4 * r) % 3], 0.9 * k)


_SHAPES = {"joy": _joy, "sadness": _sadness, "anger": _anger, "fear": _fear, "surprise": _surprise, "disgust": _disgust}
