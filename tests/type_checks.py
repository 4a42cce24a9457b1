"""What checks types under pytest: beartype, with an int accepted where a float is named (PEP 484), and jaxtyping for shapes.

jaxtyping binds the names of axes to sizes anew in each call, which takes some thirty microseconds. A function that names no shape
has beartype alone: the same checks in one or two.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))  # as jaxtyping raises, and readers expect
with_shapes = jaxtyping.jaxtyped


def names_a_shape(hint: Any) -> bool:
    """Whether one of jaxtyping's types may be in an annotation; a string may hold anything."""
    shape = isinstance(hint, str) or isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return shape or any(map(names_a_shape, get_args(hint)))


def jaxtyped(typechecker: Callable) -> Callable:
    """In place of `jaxtyping.jaxtyped`, by which jaxtyping's import hook decorates each function and each class."""

    def decorated(it: Any) -> Any:
        if not isinstance(it, type):
            shapes = any(map(names_a_shape, it.__annotations__.values()))
            return with_shapes(it, typechecker=typechecker) if shapes else typechecker(it)
        if is_dataclass(it) and "__init__" in vars(it):
            it.__init__ = decorated(it.__init__)
        return it

    return decorated
