"""Scenes: frozen values that say everything about a picture, and the exact picture of each.

A picture is a function of its scene alone. Every part draws its random details from the scene's seed and the part's own
name, so that taking the expression or a thing away leaves every other pixel as it was.
"""

import zlib
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from matplotlib.transforms import Affine2D
from PIL import Image

from emointerp.emotions import BASIC, NEUTRAL
from emointerp.errors import InputError
from emointerp.world import expression as expressions
from emointerp.world import face as faces
from emointerp.world import setting
from emointerp.world.canvas import SIZE, Canvas, ellipse, smooth
from emointerp.world.expression import REST, Expression
from emointerp.world.face import Brush, Look
from emointerp.world.mood import draw_mood

STYLES = ("flat", "line", "textured", "soft", "mood")
UNSEEN_STYLES = ("chalk",)


@dataclass(frozen=True)
class Scene:
    """One picture, as a value. `emotion` and `intensity` are the truth about its expression (or mood).

    Units: `scale` is the head's radius, `x` and `y` its middle, as shares of the picture's side; `tilt` in degrees.
    """

    subject: str = "girl"
    style: str = "flat"
    place: str = "plain"
    weather: str = "clear"
    things: tuple[str, ...] = ()
    emotion: str = NEUTRAL
    intensity: float = 1.0
    mode: str = "rest"
    expression: Expression = REST
    skin: str = "light"
    hair: str = "brown"
    haircut: str = "short"
    clothes: str = "blue"
    hat: str = "none"
    hat_color: str = "red"
    glasses: bool = False
    scale: float = 0.3
    x: float = 0.5
    y: float = 0.5
    tilt: float = 0.0
    ground: str = "#fdfdfb"
    look: Look = field(default_factory=Look)
    noise: float = 0.0
    occlusion: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("emotion", (*BASIC, NEUTRAL)), ("weather", setting.WEATHERS)):
            if (given := getattr(self, name)) not in known:
                raise InputError(f"{name} is {given!r}; the drawn world has {', '.join(known)}.")

    @property
    def has_face(self) -> bool:
        """False for an abstract mood."""
        return self.style != "mood"

    @property
    def signifiers(self) -> tuple[str, ...]:
        """Things and weather that go with an emotion in the training split."""
        weather = (self.weather,) if self.weather in setting.WEATHER_SIGNIFIERS else ()
        return tuple(t for t in self.things if t in setting.SIGNIFIERS) + weather

    def image(self) -> Image.Image:
        """The picture, RGB, 128 x 128 pixels."""
        return Image.fromarray(self.pixels())

    def pixels(self) -> np.ndarray:
        """The picture as uint8 [128, 128, 3]."""
        return _finish(self, _draw(self, Canvas()).pixels())

    def masks(self) -> dict[str, np.ndarray]:
        """Where things are: bool [128, 128] for `face`, `expression`, and each of `signifiers` and `things`.

        `expression` holds every pixel that the expression or its twin at rest touches, so outside it the two are equal.
        """
        if not self.has_face:
            return {"expression": np.ones((SIZE, SIZE), bool)}
        here, rest = (_draw(scene, Canvas(masks=True)).masks() for scene in (self, self.neutral(props=False)))
        none = np.zeros((SIZE, SIZE), bool)
        expression = here.get("expression", none) | rest.get("expression", none)
        return {**{k: v for k, v in here.items() if k != "expression"}, "expression": expression}

    def neutral(self, expression: bool = True, props: bool = True) -> "Scene":
        """The aligned twin: expression at rest, or the emotional props gone, or both; every other pixel is the same."""
        twin = self
        if expression:
            twin = replace(twin, expression=REST, emotion=NEUTRAL, mode="rest", intensity=0.0 if not self.has_face else 1.0)
        if props:
            weather = "clear" if twin.weather in setting.WEATHER_SIGNIFIERS else twin.weather
            twin = replace(twin, things=tuple(t if t in setting.PLAIN_THINGS else "" for t in twin.things), weather=weather)
        return twin

    def factors(self) -> dict[str, str | float | bool]:
        """All planted factors in one flat mapping: scene, look and expression parameters."""
        flat = {k: v for k, v in asdict(self).items() if k not in ("expression", "look", "things")}
        flat |= {f"thing: {t}": t in self.things for t in (*setting.PLAIN_THINGS, *setting.SIGNIFIERS)}
        return flat | asdict(self.expression) | {f"look: {k}": v for k, v in asdict(self.look).items()}

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        alt = f"A drawn scene: {self.subject}, {self.emotion}, {self.place}."
        return self.image().resize((256, 256), Image.Resampling.LANCZOS)._repr_png_(), {"alt": alt}


def _rng(scene: Scene, part: str) -> np.random.Generator:
    return np.random.default_rng([scene.seed, zlib.crc32(part.encode())])


def _draw(scene: Scene, canvas: Canvas) -> Canvas:
    if not scene.has_face:
        draw_mood(canvas, scene.emotion, scene.intensity if scene.emotion != NEUTRAL else 0.0, _rng(scene, "mood"))
        return canvas
    brush = _brush(scene)
    setting.draw_place(canvas, scene.place, brush, _rng(scene, "place"))
    behind, front = _thing_places(scene)
    _draw_things(scene, canvas, brush, behind)
    _draw_subject(scene, canvas, brush)
    _draw_things(scene, canvas, brush, front)
    with canvas.tag(scene.weather):
        setting.draw_weather(canvas, scene.weather, brush, _rng(scene, "weather"))
    return canvas


def _brush(scene: Scene) -> Brush:
    people = scene.subject in faces.PEOPLE
    skins = faces.SKIN if people else faces.FUR if scene.subject in faces.ANIMALS else faces.PAINT
    skin, hair = skins[scene.skin], faces.HAIR.get(scene.hair, "#6b4429") if people else skins[scene.skin]
    if scene.style == "line":
        return Brush(skin=scene.ground, hair=scene.ground, ink=scene.look.ink, paper=scene.ground, line=0.012, fills=False)
    if scene.style == "chalk":
        return Brush(skin="#2f4a43", hair="#2f4a43", ink="#eef2e6", paper="#2f4a43", line=0.014, fills=False)
    line = {"flat": 0.0, "textured": 0.008, "soft": 0.0}[scene.style]
    return Brush(skin=skin, hair=hair, ink=scene.look.ink, paper=scene.ground, line=line, shaded=scene.style == "soft")


_CORNERS = ((0.14, 0.84), (0.86, 0.84), (0.87, 0.2), (0.13, 0.24), (0.5, 0.9))


def _thing_places(scene: Scene) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Things at the lower corners stand in front of the subject, those above behind it."""
    numbered = [(i, t) for i, t in enumerate(scene.things[: len(_CORNERS)]) if t]
    return [p for p in numbered if p[0] in (2, 3)], [p for p in numbered if p[0] not in (2, 3)]


def _draw_things(scene: Scene, canvas: Canvas, brush: Brush, things: list[tuple[int, str]]) -> None:
    for i, name in things:
        rng = _rng(scene, f"thing {i}")
        dx, dy, size = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03), rng.uniform(0.8, 1.05)
        with canvas.tag(name):
            setting.draw_thing(canvas, name, (_CORNERS[i][0] + dx, _CORNERS[i][1] + dy), size, brush, rng)


def _draw_subject(scene: Scene, canvas: Canvas, brush: Brush) -> None:
    look, face = scene.look, scene.expression
    if scene.style == "chalk":
        look = replace(look, ink=brush.ink, mouth="empty", highlight=False)
    with canvas.placed(Affine2D().scale(scene.scale).rotate_deg(scene.tilt).translate(scene.x, scene.y)):
        if scene.subject != "smiley":
            _draw_body(scene, canvas, brush, look)
        haircut = scene.haircut if scene.subject in faces.PEOPLE else "bald"
        faces.draw_head(canvas, scene.subject, haircut, look, brush)
        faces.draw_nose(canvas, scene.subject, look, brush)
        with canvas.tag("expression"):
            faces.draw_expression(canvas, face, look, brush, faces.head_shape(scene.subject, look))
        faces.draw_hair(canvas, haircut, look, brush)
        if scene.glasses:
            faces.draw_glasses(canvas, look, brush)
        if scene.hat != "none":
            faces.draw_hat(canvas, scene.hat, faces.CLOTHES[scene.hat_color], look, brush)
        with canvas.tag("expression"):
            faces.draw_hands(canvas, face, look, brush)
        _draw_occlusion(scene, canvas)


def _draw_body(scene: Scene, canvas: Canvas, brush: Brush, look: Look) -> None:
    color = faces.CLOTHES[scene.clothes] if scene.subject in faces.PEOPLE else brush.skin
    if scene.subject == "robot":
        color = "#8a8f98"
    shoulders = smooth([(-0.35, 0.75), (0.35, 0.75), (1.15, 1.25), (1.45, 2.6), (-1.45, 2.6), (-1.15, 1.25)])
    brush.shape(canvas, shoulders, color, look.outline)


def _draw_occlusion(scene: Scene, canvas: Canvas) -> None:
    if scene.occlusion <= 0:
        return
    rng = _rng(scene, "occlusion")
    x, y = rng.uniform(-0.6, 0.6), rng.uniform(-0.3, 0.7)
    canvas.fill(ellipse(x, y, 0.9 * scene.occlusion, 0.7 * scene.occlusion, rng.uniform(0, 180)), "#7a8288")


def _finish(scene: Scene, pixels: np.ndarray) -> np.ndarray:
    """Paper texture and sensor noise: each output pixel depends on its own input pixel and the seed only."""
    if scene.style not in ("textured", "chalk") and scene.noise == 0:
        return pixels
    rng, out = _rng(scene, "paper"), pixels.astype(np.float32)
    if scene.style in ("textured", "chalk"):
        grain = rng.normal(0, 1, (SIZE, SIZE, 1)).astype(np.float32)
        weave = np.sin(np.arange(SIZE) * 0.9)[:, None] + np.sin(np.arange(SIZE) * 1.1 + 1)[None, :]
        out = out * (1 + 0.035 * grain + 0.018 * weave[..., None])
    if scene.noise:
        out = out + rng.normal(0, 255 * scene.noise, out.shape)
    return np.clip(out, 0, 255).astype(np.uint8)


def sample_look(rng: np.random.Generator, subject: str = "smiley", style: str = "flat") -> Look:
    """An artist's hand at random."""
    outline = float(rng.uniform(0.04, 0.13)) if style == "line" or rng.random() < 0.55 else 0.0
    eye = str(rng.choice(["dot", "oval", "white", "ring"], p=[0.28, 0.32, 0.28, 0.12]))
    return Look(
        eye=eye,
        brow=str(rng.choice(["always", "moved", "never"], p=[0.35, 0.57, 0.08] if eye in ("white", "ring") else [0.4, 0.6, 0.0])),
        mouth=str(
            rng.choice(
                ["dark", "red", "pink", "empty"],
                p=[0.35, 0.25, 0.1, 0.3] if style == "line" else [0.4, 0.35, 0.15, 0.1],
            )
        ),
        nose=str(
            rng.choice(
                ["none", "dot", "line", "triangle"],
                p=[0.75, 0.1, 0.1, 0.05] if subject == "smiley" else [0.3, 0.3, 0.2, 0.2],
            )
        ),
        line=float(rng.uniform(0.045, 0.13)),
        outline=outline,
        ink=str(rng.choice(["#1c1a20", "#2b2530", "#3b2a22", "#26324a", "#000000", "#4a2a3a"])),
        eye_size=float(rng.uniform(0.09, 0.19)),
        eye_gap=float(rng.uniform(0.27, 0.44)),
        eye_y=float(rng.uniform(-0.28, 0.02)),
        eye_tall=float(rng.uniform(0.9, 1.6)),
        mouth_y=float(rng.uniform(0.38, 0.56)),
        mouth_size=float(rng.uniform(0.26, 0.52)),
        mouth_flat=float(rng.uniform(0, 1)),
        head_tall=float(rng.uniform(0.9, 1.15)) if subject != "smiley" else 1.0,
        highlight=bool(rng.random() < 0.5),
        teeth_lines=bool(rng.random() < 0.6),
    )


def with_intensity(scene: Scene, intensity: float) -> Scene:
    """The same scene with its expression (or mood) faded to `intensity` in [0, 1]; everything else stays.

    >>> with_intensity(Scene(emotion="joy", expression=Expression(mouth_curve=0.8)), 0.5).expression.mouth_curve
    0.4
    """
    if scene.emotion == NEUTRAL or scene.intensity == 0:
        return scene
    return replace(scene, expression=scene.expression.faded(intensity / scene.intensity), intensity=intensity)


def _skins(subject: str) -> dict[str, str]:
    return faces.SKIN if subject in faces.PEOPLE else faces.FUR if subject in faces.ANIMALS else faces.PAINT


def _haircut(subject: str, rng: np.random.Generator) -> tuple[str, str]:
    cuts = {"girl": ("long", "curly", "bun"), "woman": ("long", "curly", "bun", "short"), "boy": ("short", "curly")}
    cuts |= {"man": ("short", "bald", "curly"), "grandmother": ("bun", "curly"), "grandfather": ("bald", "short")}
    old = subject in ("grandmother", "grandfather")
    colors = ("gray",) if old else tuple(c for c in faces.HAIR if c != "gray")
    return str(rng.choice(cuts.get(subject, ("bald",)))), str(rng.choice(colors))


def sample_scene(
    rng: np.random.Generator,
    emotion: str,
    intensity: float,
    *,
    subject: str | None = None,
    style: str | None = None,
    things: tuple[str, ...] = (),
    weather: str = "clear",
    scale: float | None = None,
) -> Scene:
    """A random scene with the given emotion at the given intensity; whatever is not named is drawn from `rng`."""
    if subject is None:
        subject = "smiley" if rng.random() < 0.3 else str(rng.choice([s for s in faces.SUBJECTS if s != "smiley"]))
    style = style or str(rng.choice(STYLES, p=[0.29, 0.26, 0.16, 0.22, 0.07]))
    mode, full = expressions.sample(emotion, rng)
    close = subject == "smiley" or rng.random() < 0.4
    size = scale or float(rng.uniform(0.34, 0.48) if close else rng.uniform(0.27, 0.36))
    room = max(0.0, 0.47 - size)
    cut, hair = _haircut(subject, rng)
    hats = faces.HATS if subject in faces.PEOPLE else ("none",)
    place = "plain" if rng.random() < (0.6 if subject == "smiley" else 0.25) else str(rng.choice(setting.PLACES[1:]))
    return Scene(
        subject=subject,
        style=style,
        place="street" if place == "night" and weather == "sunny" else place,
        weather=weather,
        things=things,
        emotion=emotion,
        intensity=round(float(intensity), 3) if emotion != NEUTRAL else 1.0,
        mode=mode,
        expression=full.faded(intensity) if emotion != NEUTRAL else full,
        skin=str(rng.choice(list(_skins(subject)))),
        hair=hair,
        haircut=cut,
        clothes=str(rng.choice(list(faces.CLOTHES))),
        hat=str(rng.choice(hats, p=[0.6, 0.15, 0.12, 0.13] if len(hats) > 1 else [1.0])),
        hat_color=str(rng.choice(list(faces.CLOTHES))),
        glasses=bool(subject in faces.PEOPLE and rng.random() < 0.2),
        scale=size,
        x=float(0.5 + rng.uniform(-1, 1) * min(room, 0.12)),
        y=float(0.5 + (rng.uniform(-1, 1) * min(room, 0.06) if subject == "smiley" else rng.uniform(-0.02, 0.08))),
        tilt=float(rng.normal(0, 5)),
        ground=str(rng.choice(setting.GROUNDS)),
        look=sample_look(rng, subject, style),
        seed=int(rng.integers(2**31)),
    )
