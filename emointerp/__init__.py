"""The face of the package: names that import what stands behind them only when they are first used.

``import emointerp`` loads neither torch nor transformers nor matplotlib (PEP 562), so that the command line answers
at once and a notebook pays only for what it touches.

>>> import emointerp as ei
>>> ei.emotions.__name__
'emointerp.emotions'
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emointerp import emotions, exercises, models, plots, start_here, statistics, tour, training, widgets, world
    from emointerp.models import load
    from emointerp.start_here import see_or_guess, tell

__version__ = "0.1.0"

_FUNCTIONS = {"load": "emointerp.models", "see_or_guess": "emointerp.start_here", "tell": "emointerp.start_here"}

__all__ = [
    "__version__",
    "emotions",
    "exercises",
    "load",
    "models",
    "plots",
    "see_or_guess",
    "start_here",
    "statistics",
    "tell",
    "tour",
    "training",
    "widgets",
    "world",
]


def __getattr__(name: str) -> object:
    """Import the submodule or function called ``name`` and keep it, so that this runs once a name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _FUNCTIONS:
        value = getattr(importlib.import_module(_FUNCTIONS[name]), name)
    else:
        value = importlib.import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names to complete on, whether or not they are loaded yet."""
    return sorted({*globals(), *__all__})
