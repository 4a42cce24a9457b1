"""What the patch grid and the token strip share: a colour for each value, traits that refuse bad input in words, a stand-in."""

import operator
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
from traitlets import Int, List, TraitError, Unicode, validate

from emointerp.errors import InputError

STATIC = Path(__file__).parent / "static"
# One hue (290 degrees), in 32 equal steps of OKLab (Ottosson 2020) from pale to dark; black or white ink, whichever reads better.
_COLORS = """
#f1f0ff #ebeafd #e6e3fc #e0ddfa #dad7f8 #d5d1f6 #cfcbf5 #cac5f3 #c4bff1 #bfb9ef #bab2ed #b4aceb
#afa6e9 #aaa0e7 #a59ae5 #a094e3 #9b8ee0 #9688de #9181dc #8c7bda #8775d7 #826fd5 #7e68d3 #7962d0
#755bce #7054cb #6c4dc9 #6846c6 #643fc3 #6037c1 #5c2ebe #5824bb #5418b9
""".split()
RAMP = tuple((color, "#000000" if i < 23 else "#ffffff") for i, color in enumerate(_COLORS))
GRADIENT = f"linear-gradient(to right, {', '.join(_COLORS[::4])})"
SLACK = 1e-4  # probabilities that were summed in float32 or bfloat16 may come out a little above 1


class BadTrait(InputError, TraitError):
    """Bad input to a widget; as traitlets knows it too, changes that were held together are taken back together."""


class Shares(List):
    """A trait for numbers of 0 to 1. Arrays and tensors become lists, NaN becomes None: no value."""

    def validate(self, obj: Any, value: Any) -> list:
        return super().validate(obj, shares(str(self.name), value))


class Index(Int):
    """A trait for a whole number; NumPy's and torch's integers are taken too."""

    def validate(self, obj: Any, value: Any) -> int:
        try:
            return super().validate(obj, operator.index(value))
        except TypeError:
            raise BadTrait(f"`{self.name}` is {value!r}; expected a whole number: a token's index, or -1 for none.") from None


class Tinted(anywidget.AnyWidget):
    """Things that a value tints, one of them selected. Subclasses name the lists that go with the things, the things first."""

    _css = STATIC / "tinted.css"
    _lists: tuple[str, ...] = ("values",)
    _ramp = List([list(pair) for pair in RAMP]).tag(sync=True)

    values = Shares(help="0 to 1, or None, for each token; empty: no token has one").tag(sync=True)
    selected = Index(-1, help="index of the selected token, -1 for none").tag(sync=True)
    title = Unicode().tag(sync=True)

    @validate("selected")
    def _within(self, proposal: Any) -> int:
        count = len(getattr(self, self._lists[0]))
        if not -1 <= proposal.value < count:
            allowed = f"-1 (none) or a token's index, 0 to {count - 1}" if count else "-1, as there are no tokens"
            raise BadTrait(f"`selected` is {proposal.value}; expected {allowed}.")
        return proposal.value

    def _check_lengths(self, proposal: Any) -> None:
        """Every list that goes with the tokens is as long as they are, or empty; `proposal` is the change to be judged."""
        counts = {n: len(proposal.value if n == proposal.trait.name else getattr(self, n)) for n in self._lists}
        things, *others = counts
        for name in others:
            if counts[name] not in (0, counts[things]):
                came = f"{counts[name]} `{name}` came for {counts[things]} `{things}`; expected one for each, or none"
                raise BadTrait(f"{came}. To change both, set them inside `with widget.hold_trait_notifications():`.")

    def _drop_selection(self) -> None:
        """Forget a selection that the new tokens no longer have."""
        if self.selected >= len(getattr(self, self._lists[0])):
            self.selected = -1

    def static_html(self) -> str:
        """The same picture as HTML without a script, for pages where widgets are dead."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict] | None:
        """The live widget, and beside it what it shows now, for pages where widgets are dead (GitHub, slides)."""
        bundle = super()._repr_mimebundle_(**options)
        return bundle and ({**bundle[0], "text/html": self.static_html()}, bundle[1])


def script(name: str) -> str:
    """The JavaScript module of a widget: a browser cannot import one file of the package from another, so they are joined."""
    return "\n".join((STATIC / part).read_text(encoding="utf-8") for part in ("tinted.js", name))


def tint(value: float | None) -> tuple[str, str] | None:
    """The colour of a value of 0 to 1, and black or white, whichever can be read on it.

    >>> tint(0.0), tint(1.0), tint(None)
    (('#f1f0ff', '#000000'), ('#5418b9', '#ffffff'), None)
    """
    return None if value is None else RAMP[round(value * (len(RAMP) - 1))]


def numbers(name: str, value: Any, width: int = 0) -> np.ndarray:
    """Numbers as float [n], or [n, width] where a width is given; None is NaN.

    >>> numbers("boxes", [None, [0, 0, 2, 2]], 4).tolist()
    [[nan, nan, nan, nan], [0.0, 0.0, 2.0, 2.0]]
    """
    expected = f"a list of {f'[{width} numbers]' if width else 'numbers'} or None"
    rows = value.tolist() if hasattr(value, "tolist") else value
    try:
        array = np.array([[np.nan] * width if width and row is None else row for row in rows], dtype=float)
    except (TypeError, ValueError) as error:
        raise BadTrait(f"`{name}` cannot be read as numbers ({error}); expected {expected}.") from error
    shape = (len(array), width) if width else (len(array),)
    if len(array) and array.shape != shape:
        raise BadTrait(f"`{name}` has the shape {list(array.shape)}; expected {list(shape)}: {expected}.")
    return array.reshape(shape)


def shares(name: str, value: Any) -> list[float | None]:
    """Numbers of 0 to 1 as a list, None for NaN.

    >>> shares("values", np.array([0.25, np.nan]))
    [0.25, None]
    """
    array = numbers(name, value)
    for i in np.flatnonzero((array < -SLACK) | (array > 1 + SLACK)):
        raise BadTrait(f"`{name}` {i} is {array[i]:g}; expected 0 to 1, or None. Scale them, say by their largest.")
    return nullable(np.clip(array, 0, 1))


def nullable(array: np.ndarray) -> list:
    """A list of an array's rows, None for those with a NaN, which JSON lacks."""
    missing = np.isnan(array) if array.ndim == 1 else np.isnan(array).any(axis=1)
    return [None if gone else row for gone, row in zip(missing, array.tolist(), strict=True)]
