"""Panels for the notebooks, one a chapter, each a pure computation and a thin view of it; and the parts ipywidgets lacks.

>>> from emointerp.widgets import start_here
"""

from emointerp.widgets.explorer import Explorer, top_pictures
from emointerp.widgets.heads import heads
from emointerp.widgets.lens import lens
from emointerp.widgets.own_model import own_model
from emointerp.widgets.patch_grid import PatchGrid
from emointerp.widgets.sae import sae
from emointerp.widgets.saliency import saliency
from emointerp.widgets.start_here import start_here
from emointerp.widgets.steering import steering
from emointerp.widgets.superposition import superposition
from emointerp.widgets.token_strip import TokenStrip
from emointerp.widgets.veena import veena

__all__ = [
    "Explorer", "PatchGrid", "TokenStrip", "heads", "lens", "own_model", "sae", "saliency", "start_here", "steering",
    "superposition", "top_pictures", "veena",
]  # fmt: skip
