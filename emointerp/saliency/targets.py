"""Targets: the number whose rise a map explains, as a value `f(pixels) -> [n]` that knows where its pixels lie in the picture.

Three kinds of numbers. `toward`: how far the picture's embedding, or its sparse code, points along an emotion's direction.
`feature`: how strongly one feature of an SAE fires. `answer`: how likely a language model is to say an emotion's words next.

>>> from emointerp.models import load_tower
>>> from emointerp.world import Scene
>>> tower = load_tower("tiny")
>>> target = toward(tower, torch.ones(tower.d), "all ones")
>>> target(target.pixels([Scene(), Scene(subject="boy")])).shape
torch.Size([2])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from emointerp.errors import InputError
from emointerp.lens import emotion_metrics
from emointerp.models import VLM, Prompt, to_image
from emointerp.models.anatomy import part
from emointerp.models.patches import Size
from emointerp.models.towers import Tower, flattened, unflattened
from emointerp.sae import SAE
from emointerp.sae.reading import inputs
from emointerp.saliency.layers import in_rows, kept_inputs, kept_outputs, layer_boxes, tower_layers
from emointerp.saliency.places import place, tile_regions, tower_region
from emointerp.tracing import Metric
from emointerp.tracing.metrics import as_metric

Pick = Callable[[Tensor], Float[Tensor, "n token d"]]
OVER = {"max": lambda fired: fired.amax(1), "sum": lambda fired: fired.sum(1)}


@dataclass(frozen=True, eq=False)
class TowerTarget:
    """A number read from a tower's vectors; `function` maps pixels [n, channel, height, width] to [n]."""

    name: str
    tower: Tower
    function: Callable[[Tensor], Tensor] = field(repr=False)
    image: Image.Image | None = field(default=None, repr=False)

    def __call__(self, pixels: Float[Tensor, "n *view"]) -> Float[Tensor, " n"]:
        """f of each picture, in float32; differentiable in `pixels`."""
        return self.function(pixels.to(_first_weight(self.tower).dtype)).float()

    def pixels(self, pictures: Sequence[Any]) -> Float[Tensor, "n *view"]:
        """What the tower reads of pictures, in float32, on its device."""
        return self.tower.pixels(pictures).float()

    def onto(self, values: Float[np.ndarray, "*tile h w"], size: Size) -> Float[np.ndarray, "height width"]:
        """A value for each pixel that is read, laid onto a picture of `size`."""
        side = values.shape[-1]
        return place(values.reshape(-1, *values.shape[-2:]), [tower_region(self.tower, size, side)], size)

    def boxes(self, size: Size) -> Float[np.ndarray, "token 4"]:
        """Where the patches that the tower's layers hold lie in a picture of `size`."""
        return layer_boxes(self.tower, size)

    def tokens(self, pixels: Float[Tensor, "n *view"]) -> tuple[Tensor, Pick, Float[Tensor, " n"]]:
        """Tokens after the tower's last layer but one, what picks patches in rows of them, and f, which hangs on them."""
        with kept_outputs(tower_layers(self.tower)[-2:-1]) as kept:
            value = self(pixels)
        return kept[0], partial(in_rows, self.tower), value


@dataclass(frozen=True, eq=False)
class AnswerTarget:
    """A number read from the logits that follow a prompt; pixels are those of the prompt's picture, or of others of its size.

    Qwen's rows of patches are a picture [n, channel, height, width] here; pictures cut into tiles are [n, tile, channel, h, w].
    """

    name: str
    vlm: VLM
    prompt: Prompt
    metric: Metric = field(repr=False)

    @property
    def image(self) -> Image.Image:
        """The prompt's picture."""
        return self.prompt.image

    def __call__(self, pixels: Float[Tensor, "n *view"]) -> Float[Tensor, " n"]:
        """f of each picture with the prompt's text, in one batch; differentiable in `pixels`."""
        given = self.vlm.placed(self.prompt.inputs)
        given = {k: v.repeat(len(pixels), *[1] * (v.ndim - 1)) if torch.is_tensor(v) else v for k, v in given.items()}
        given["pixel_values"] = self._as_read(pixels.to(self.vlm.model.dtype))
        value = self.metric(self.vlm.model(**given, logits_to_keep=1).logits[:, -1])
        if value.ndim != 1:
            raise InputError(f"The metric {self.name!r} gives {list(value.shape[1:])} numbers a picture; a map explains one.")
        return value

    def pixels(self, pictures: Sequence[Any]) -> Float[Tensor, "n *view"]:
        """What the model reads of pictures in the place of the prompt's, in float32, on its device."""
        images = [to_image(picture) for picture in pictures]
        if strange := [image.size for image in images if image.size != self.image.size]:
            raise InputError(f"A picture of {strange[0]} pixels came; this target's prompt has one of {self.image.size}.")
        read = [self._view(self.vlm.batched([replace(self.prompt, image=image)])) for image in images]
        return torch.cat(read).to(self.vlm.device, torch.float32)

    def onto(self, values: Float[np.ndarray, "*tile h w"], size: Size) -> Float[np.ndarray, "height width"]:
        """A value for each pixel that is read, laid onto the picture; tiles that look at the same place add up."""
        return place(values.reshape(-1, *values.shape[-2:]), tile_regions(self.vlm, self.prompt), size)

    def boxes(self, size: Size) -> Float[np.ndarray, "token 4"]:
        """Where the visual tokens look."""
        return self.vlm.boxes(self.prompt)

    def tokens(self, pixels: Float[Tensor, "n *view"]) -> tuple[Tensor, Pick, Float[Tensor, " n"]]:
        """Tokens as they enter the language model, what picks the picture's of them, and f, which hangs on them."""
        first = part(self.vlm.model, self.vlm.anatomy.layers)[0]
        with kept_inputs(first) as kept:
            value = self(pixels)
        return kept[0], lambda tokens: tokens[:, list(self.prompt.visual)], value

    def _view(self, given: dict[str, Any]) -> Tensor:
        if "image_grid_thw" not in given:
            return given["pixel_values"]
        images = self.vlm.processor.image_processor
        sizes = images.patch_size, images.merge_size, images.temporal_patch_size
        return unflattened(given["pixel_values"], given["image_grid_thw"], *sizes)

    def _as_read(self, pixels: Tensor) -> Tensor:
        if "image_grid_thw" not in self.prompt.inputs:
            return pixels
        images = self.vlm.processor.image_processor
        return flattened(pixels, images.patch_size, images.merge_size, images.temporal_patch_size)[0]


Target = TowerTarget | AnswerTarget


def toward(tower: Tower, direction: Float[Tensor, " d"], name: str = "direction", sae: SAE | None = None) -> TowerTarget:
    """Cosine of a picture's embedding to a direction [d]; with an `sae`, of its sparse code to a direction in feature space.

    `emotion_directions` of `emointerp.sae.emotion` makes such directions. The code of an SAE over patches is the mean of theirs.

    >>> import emointerp as ei
    >>> import torch
    >>> ei.saliency.toward(ei.load_tower(), torch.ones(192), "all alike")
    TowerTarget(name='cosine to all alike', tower=Tower(tiny, 64 patches, d 192, text side))
    """
    width = tower.d if sae is None else sae.d_hidden
    if direction.shape != (width,):
        what = f"embeddings of {tower.name}" if sae is None else "codes of this SAE"
        raise InputError(f"The direction has shape {list(direction.shape)}; {what} have {width} numbers.")
    if not direction.any():
        raise InputError("The direction is all zeros; it points nowhere.")
    way = direction.detach().to(_first_weight(tower).device, torch.float32)[None]
    read = tower.pooled if sae is None else lambda pixels: _mean_code(sae, tower, pixels)
    return TowerTarget(f"cosine to {name}", tower, lambda pixels: cosine_similarity(read(pixels).float(), way))


def feature(tower: Tower, sae: SAE, i: int, over: str = "max") -> TowerTarget:
    """How strongly feature `i` of an SAE fires; of an SAE over patches the "max" or "sum" over them.

    A feature that is not among the k largest has no gradient: ask for one that fires.

    >>> import emointerp as ei
    >>> ei.saliency.feature(ei.load_tower(), ei.load_sae("tiny"), 859)
    TowerTarget(name='feature 859', tower=Tower(tiny, 64 patches, d 192, text side))
    """
    if over not in OVER:
        raise InputError(f"over is {over!r}; expected {' or '.join(map(repr, OVER))}.")
    if not 0 <= i < sae.d_hidden:
        raise InputError(f"There is no feature {i}; this SAE has features 0 to {sae.d_hidden - 1}.")

    def fired(pixels: Tensor) -> Tensor:
        found = sae.encode(inputs(sae, tower, pixels)).feature(i)
        return found if found.ndim == 1 else OVER[over](found)

    return TowerTarget(f"feature {i}", tower, fired)


def answer(vlm: VLM, prompt: Prompt, metric: Any, against: str | None = None) -> AnswerTarget:
    """What follows a prompt: the log of the summed probability of an emotion's words, in nats, or any `Metric` of logits.

    `against` another emotion: the difference of the two. Begin the answer in the prompt, so that the word is due:
    `vlm.prompt(picture, event, answer="I felt")`.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> ei.saliency.answer(vlm, vlm.prompt(*pair.plus, answer="I felt"), "anger").name
    'log p(anger)'
    """
    if not isinstance(metric, str):
        made = as_metric(metric)
    else:
        known = emotion_metrics(vlm)
        if strange := [e for e in (metric, against) if e is not None and e not in known]:
            raise InputError(f"There are no words of {strange[0]!r}; expected one of {', '.join(known)}, or a Metric.")
        made = known[metric] if against is None else _difference(known[metric], known[against])
    if made.layer is not None:
        raise InputError(f"The metric {made.name!r} reads the residual stream of layer {made.layer}; a target reads logits.")
    return AnswerTarget(made.name, vlm, prompt, made)


def _difference(a: Metric, b: Metric) -> Metric:
    return Metric(lambda logits: a.function(logits) - b.function(logits), name=f"{a.name} - {b.name}")


def _mean_code(sae: SAE, tower: Tower, pixels: Tensor) -> Float[Tensor, "n d_hidden"]:
    codes = sae.encode(inputs(sae, tower, pixels)).dense()
    return codes if codes.ndim == 2 else codes.mean(1)


def _first_weight(tower: Tower) -> Tensor:
    return next(tower.model.parameters())
