"""Panels for the notebooks, one a chapter, each a pure computation and a thin view of it.

>>> from emointerp.widgets import start_here
"""

from emointerp.widgets.start_here import start_here

__all__ = ["start_here"]
