"""Stories and pictures as HTML that works anywhere: everything from outside is escaped, pictures travel inside the page."""

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure
from PIL import Image

from emointerp.emotions import EmotionWord
from emointerp.plots import COLORS


def marked(text: str, words: Sequence[EmotionWord]) -> str:
    """The text as HTML with its emotion words in the colours of their emotions.

    >>> marked("a <b> day", ())
    'a &lt;b&gt; day'
    """
    parts, at = [], 0
    for word in words:
        style = f"background:{COLORS.get(word.emotion, '#8A8F98')}33;border-bottom:2px solid {COLORS.get(word.emotion, '#8A8F98')}"
        title = escape(word.emotion or "a feeling beyond the six")
        parts += [
            escape(text[at : word.start]),
            f'<mark style="{style};color:inherit" title="{title}">{escape(word.text)}</mark>',
        ]
        at = word.end
    return "".join([*parts, escape(text[at:])])


def data_uri(picture: Image.Image | Figure) -> str:
    """A picture or figure as a PNG data URI."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=150)
    else:
        picture.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(picture: Image.Image, side: int = 512) -> Image.Image:
    """A copy no larger than `side`, so that a page of photographs stays light."""
    small = picture.copy()
    small.thumbnail((side, side))
    return small
