"""Faces that other hands drew: the Symbola font's emoticons, rendered on plain grounds, as a validation set.

Never trained on and never shipped: the font comes from the system (Debian: fonts-symbola). The list was fixed before training:
every code point of the ranges whose Unicode name states an emotion, by these words in the name. Left out by name: people of
whom hardly a face is seen, "anguished" and "disappointed but relieved" (two feelings), "wry smile",
and kissing.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emointerp.errors import InputError

FACES: dict[str, tuple[int, ...]] = {
    # smiling, grinning, joy, laughing
    "joy": (
        0x263A, 0x1F600, 0x1F601, 0x1F602, 0x1F603, 0x1F604, 0x1F605, 0x1F606, 0x1F607, 0x1F608, 0x1F60A, 0x1F60D, 0x1F60E,
        0x1F638, 0x1F639, 0x1F63A, 0x1F63B, 0x1F642, 0x1F923, 0x1F929, 0x1F92A, 0x1F92D,
    ),
    # frowning, disappointed, crying, pensive
    "sadness": (0x2639, 0x1F614, 0x1F61E, 0x1F622, 0x1F626, 0x1F62D, 0x1F63F, 0x1F641),
    # angry, pouting
    "anger": (0x1F620, 0x1F621, 0x1F63E),
    # fearful, fear, worried
    "fear": (0x1F61F, 0x1F628, 0x1F631),
    # astonished, hushed, shocked
    "surprise": (0x1F62F, 0x1F632, 0x1F92F),
    # nauseated, vomiting
    "disgust": (0x1F922, 0x1F92E),
    # neutral, expressionless
    "neutral": (0x1F610, 0x1F611),
}  # fmt: skip
GROUNDS = {
    "dark on white": ("#ffffff", "#111111"),
    "dark on yellow": ("#ffe08a", "#1d1a12"),
    "dark on blue": ("#cfe3f5", "#14202e"),
    "brown on rose": ("#f6dcdc", "#3b1f1a"),
}
_FONTS = (
    Path("/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf"),
    Path("/usr/share/fonts/truetype/ancient-scripts/Symbola.ttf"),
)


def font_file() -> Path:
    """Where the system keeps the Symbola font."""
    for path in _FONTS:
        if path.exists():
            return path
    raise InputError("The Symbola font is not installed; on Debian and Ubuntu: apt install fonts-symbola.")


def drawn(code_point: int, ground: str, share: float = 0.8, size: int = 128) -> Image.Image:
    """One emoticon in the middle of a plain ground, its larger side `share` of the picture."""
    paper, ink = GROUNDS[ground]
    font = ImageFont.truetype(str(font_file()), 256)
    left, top, right, bottom = font.getbbox(chr(code_point))
    mark = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(mark).text((-left, -top), chr(code_point), font=font, fill=255)
    scale = share * size / max(mark.size)
    mark = mark.resize((round(mark.width * scale), round(mark.height * scale)), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (size, size), paper)
    corner = ((size - mark.width) // 2, (size - mark.height) // 2)
    picture.paste(Image.new("RGB", mark.size, ink), corner, mark)
    return picture


def validation_set() -> list[tuple[Image.Image, str, int, str]]:
    """(picture, emotion, code point, ground) for every face on every ground, at two sizes."""
    return [
        (drawn(c, ground, share), emotion, c, ground)
        for emotion, codes in FACES.items()
        for c in codes
        for ground in GROUNDS
        for share in (0.75, 0.92)
    ]
