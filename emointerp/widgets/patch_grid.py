"""A picture with a colour over the box of each visual token, any of which can be clicked; ipywidgets has no part for it."""

from html import escape
from typing import Any

import numpy as np
from PIL import Image
from traitlets import Int, List, Unicode, observe, validate

from emointerp.markup import data_uri, thumbnail
from emointerp.widgets.tinted import BadTrait, Shares, Tinted, gradient, nullable, numbers, script, tint


class Boxes(List):
    """A trait for left, top, right, bottom of each token. Arrays become lists; None, or NaN, is a token without a place."""

    def validate(self, obj: Any, value: Any) -> list:
        array = numbers(str(self.name), value, width=4)
        for i in np.flatnonzero((array[:, 2] <= array[:, 0]) | (array[:, 3] <= array[:, 1])):
            raise BadTrait(f"Box {i} is {array[i].tolist()}; expected left < right and top < bottom, or None.")
        return super().validate(obj, nullable(array))


class Size(List):
    """A trait for the width and height of a picture in pixels."""

    def validate(self, obj: Any, value: Any) -> list:
        array = numbers(str(self.name), value)
        if array.shape != (2,) or not (np.isfinite(array) & (array > 0)).all():
            raise BadTrait(f"`size` is {value!r}; expected [width, height] of the picture in pixels.")
        return super().validate(obj, array.tolist())


class PatchGrid(Tinted):
    """A picture with a translucent colour over each visual token; a click or the arrow keys select one.

    `boxes` are in pixels of a picture of `size`; smaller boxes lie on top of larger ones. `values` tint them, `labels` tell of
    them under the mouse. `width` is that of the picture on the page, in CSS pixels; `opacity` that of the colour.

    >>> grid = PatchGrid(size=[2, 1], boxes=[[0, 0, 1, 1], [1, 0, 2, 1], None], values=[0.5, 1.0, None])
    >>> grid.selected
    -1
    """

    _esm = script("patch_grid.js")
    _lists = ("boxes", "values", "labels")

    picture = Unicode(help="data URI of the picture; empty: none").tag(sync=True)
    size = Size([1, 1]).tag(sync=True)
    boxes = Boxes().tag(sync=True)
    labels = List(Unicode()).tag(sync=True)
    low = Unicode("0").tag(sync=True)
    high = Unicode("1").tag(sync=True)
    width = Int(320, min=16).tag(sync=True)
    opacity = Shares  # replaced below
