"""What a caller gives, looked at once where it comes in: lists read, numbers and kinds checked, refused in words before any work.

A generator is empty after it has been walked through, and a text is a sequence of letters. So whatever takes several things reads
them here into a list; nothing behind it has to ask again.

>>> texts("afraid", "words"), numbers(x / 2 for x in range(3))
(['afraid'], [0.0, 0.5, 1.0])
"""

import math
import operator
from collections.abc import Iterable
from numbers import Real
from types import UnionType
from typing import Any

from emointerp.errors import InputError

Kind = type | UnionType
SHOWN = 60  # characters of a value that an error shows


def expected(given: Any, kind: Kind, make: str) -> Any:
    """The value itself, refused where it is of another kind; `make` is what was expected, and how to get it."""
    if not isinstance(given, kind):
        what = said(given)
        raise InputError(f"{what[0].upper()}{what[1:]} came; expected {make}.")
    return given


def listed(given: Any, kind: Kind, name: str, make: str) -> list[Any]:
    """Things of a kind as a list, read once; a lone one, and what is none (`name`), are refused. `make` says how to get one."""
    if isinstance(given, kind):
        raise InputError(f"{given!r} stands where a list of {name}s is expected; write [{type(given).__name__}(...)].")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InputError(f"{said(given)} is no list of {name}s; expected {make}.")
    items = list(given)
    for item in items:
        if not isinstance(item, kind):
            raise InputError(f"{said(item)} is no {name}; expected {make}.")
    return items


def tuples(given: Any, parts: int, name: str, make: str) -> list[tuple]:
    """Tuples of so many parts as a list, read once; what is none (`name`) is refused."""
    items = list(expected(given, Iterable, make))
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != parts:
            raise InputError(f"{said(item)} is no {name}; expected {make}.")
    return [tuple(item) for item in items]


def texts(given: Any, name: str, some: bool = True) -> list[str]:
    """Texts as a list, read once: a lone one is one text, not its letters. With `some`, none at all is refused."""
    items = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    for item in items:
        if not isinstance(item, str):
            raise InputError(f"Among the {name} is {said(item)}; expected a list of texts, such as ['one', 'two'].")
    if some and not items:
        raise InputError(f"The {name} are an empty list; give one or more.")
    return items


def numbers(given: Any, name: str = "numbers", *, least: float = -math.inf, above: float = -math.inf) -> list[float]:
    """Finite numbers as a list, read once: a lone one is a list of one; none at all is refused."""
    many = isinstance(given, Iterable) and not isinstance(given, str) and getattr(given, "ndim", 1) != 0
    items = list(given) if many else [given]
    if not items:
        raise InputError(f"The {name} are an empty list; give one number or more.")
    return [number(item, name, least=least, above=above) for item in items]


def number(
    given: Any, name: str, *, least: float = -math.inf, above: float = -math.inf, why: str = "", endless: bool = False
) -> float:
    """A finite number of whatever type, tensors and arrays of no axes among them; truth values and texts are none.

    With `endless`, infinity may be given too: no limit.
    """
    value = given.item() if getattr(given, "ndim", None) == 0 and hasattr(given, "item") else given
    try:
        found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of more than 308 digits
        found = math.inf
    if math.isnan(found) or (math.isinf(found) and not endless) or found < least or found <= above:
        bound = f" above {above:g}" if above > -math.inf else f" from {least:g} up" if least > -math.inf else ""
        raise InputError(f"{name} is {said(given)}; expected a {'finite ' * (not endless)}number{bound}{why}.")
    return found


def whole_number(given: Any, name: str, least: int | None = None) -> int:
    """A whole number of whatever type, `least` or more."""
    if (found := index_of(given)) is None or (least is not None and found < least):
        raise InputError(f"{name} is {said(given)}; expected a whole number{'' if least is None else f' from {least} up'}.")
    return found


def index_of(given: Any) -> int | None:
    """A whole number, of whatever type; None for what is none."""
    try:
        masked = str(getattr(given, "dtype", None)) == "torch.bool"  # one of a mask's, which is no place to take
        return None if isinstance(given, bool) or masked else operator.index(given)
    except TypeError:  # arrays of several numbers have an __index__ too, which raises
        return None


def said(given: Any) -> str:
    """A value in a few words: texts and numbers as they are written, of other things the kind.

    >>> said("hi"), said(None), said([1, 2])
    ("'hi'", 'None', 'a list')
    """
    plain = given is None or isinstance(given, str | bytes | Real | complex) or getattr(given, "ndim", None) == 0
    if plain:
        text = repr(given)
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    kind = type(given).__name__
    return f"{'an' if kind[0] in 'aeiouAEIO' else 'a'} {kind}"
