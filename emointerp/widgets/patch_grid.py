"""A picture with a colour over the box of each visual token, any of which can be clicked; ipywidgets has no part for it."""

from html import escape
from typing import Any

import numpy as np
from PIL import Image
from traitlets import Float, Int, List, Unicode, observe, validate

from emointerp.markup import data_uri, thumbnail
from emointerp.widgets.tinted import GRADIENT, BadTrait, Tinted, nullable, numbers, script, tint

_FILLED = f'<span style="display:block;height:100%;opacity:{{:g}};background:{GRADIENT}"></span>'


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
    them under the mouse. `width` is that of the picture on the page, in CSS pixels; `opacity` that of the colour. Where boxes
    overlap (tiles over a whole image) their colours add up: give values to one kind at a time, and None to the other.

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
    opacity = Float(0.6, min=0, max=1).tag(sync=True)

    @classmethod
    def of(cls, image: Image.Image, boxes: Any, values: Any = (), **traits: Any) -> "PatchGrid":
        """A grid over a picture in memory, with boxes in its pixels, as `vlm.boxes(prompt)` gives them for `prompt.image`."""
        return cls(picture=data_uri(thumbnail(image)), size=image.size, boxes=boxes, values=values, **traits)

    @validate("picture")
    def _inside_the_page(self, proposal: Any) -> str:
        if proposal.value and not proposal.value.startswith("data:image/"):
            raise BadTrait(
                f"`picture` begins with {proposal.value[:20]!r}; expected a data URI, as `PatchGrid.of(image, …)` makes it."
            )
        return proposal.value

    @validate("boxes", "values", "labels", "size")
    def _consistent(self, proposal: Any) -> list:
        self._check_lengths(proposal)
        now = {"boxes": self.boxes, "size": self.size} | {proposal.trait.name: proposal.value}
        _check_inside(now["boxes"], now["size"])
        return proposal.value

    @observe("boxes")
    def _new_boxes(self, _: Any) -> None:
        self._drop_selection()

    def label(self, i: int) -> str:
        """What the token is called under the mouse."""
        return self.labels[i] if self.labels else f"token {i}"

    def static_html(self) -> str:
        """The picture as inline SVG, its boxes in percent of it, with the title above and the colour bar below."""
        title = escape(self.title)
        return (
            f'<figure style="margin:0;width:{self.width}px;max-width:100%;font-size:13px"><figcaption>{title}</figcaption>'
            f'<svg role="img" aria-label="{title}" style="display:block;width:100%;aspect-ratio:{self.size[0]:g}/{self.size[1]:g}">'
            f'<image href="{escape(self.picture)}" width="100%" height="100%" preserveAspectRatio="none"/>'
            f"{''.join(self._rect(i) for i in self._drawn())}{self._outline()}</svg>{self._legend()}</figure>"
        )

    def _drawn(self) -> list[int]:
        """The tokens that have a place, the largest first, so that smaller ones come to lie on top."""
        placed = [i for i, box in enumerate(self.boxes) if box is not None]
        return sorted(placed, key=lambda i: -_area(self.boxes[i]))

    def _rect(self, i: int) -> str:
        color = tint(self.values[i] if self.values else None)
        fill = f'fill="{color[0]}" fill-opacity="{self.opacity:g}"' if color else 'fill="transparent"'
        return f"<rect {self._place(i)} {fill}><title>{escape(self.label(i))}</title></rect>"

    def _outline(self) -> str:
        """The selected box in white on black, which shows on any picture."""
        if self.selected < 0 or self.boxes[self.selected] is None:
            return ""
        return "".join(
            f'<rect {self._place(self.selected)} fill="none" stroke="{color}" stroke-width="{width}"/>'
            for color, width in (("#000", 5), ("#fff", 2))
        )

    def _place(self, i: int) -> str:
        (left, top, right, bottom), (width, height) = self.boxes[i], self.size
        percent = {"x": left / width, "y": top / height, "width": (right - left) / width, "height": (bottom - top) / height}
        return " ".join(f'{name}="{100 * share:g}%"' for name, share in percent.items())

    def _legend(self) -> str:
        """The colour bar and its ends; nothing where there are no colours."""
        if not self.values:
            return ""
        bar = f'<span style="flex:1;height:9px;background:#fff;border:1px solid #8a8f98">{_FILLED.format(self.opacity)}</span>'
        ends = (f"<span>{escape(end)}</span>" for end in (self.low, self.high))
        return f'<div style="display:flex;align-items:center;gap:6px;margin-top:4px">{bar.join(ends)}</div>'


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _check_inside(boxes: list[list[float] | None], size: list[float]) -> None:
    """Boxes lie in their picture, to half a pixel; those in other pixels than the picture's would be drawn at wrong places."""
    width, height = size
    for i, box in enumerate(boxes):
        if box and (min(box) < -0.5 or box[2] > width + 0.5 or box[3] > height + 0.5):
            raise BadTrait(
                f"Box {i} is {box}, outside the picture; expected pixels of the picture's `size`, {width:g} x {height:g}."
            )
