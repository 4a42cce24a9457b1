"""Vision towers by themselves: pictures in, vectors out, whether the tower is a VLM's or half of a dual encoder.

>>> tower = load_tower("tiny")
>>> tower
Tower(tiny, 64 patches, d 192, text side)
>>> from emointerp.world import Scene
>>> tower.embed([Scene(), Scene(place="beach")], progress=False).shape
torch.Size([2, 192])

A tower is asked for pixels first and for vectors of pixels then, so that a gradient can go from the one to the other. It sees a
picture whole and once: the tiles that some families cut from large pictures are not for it.
"""

import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, SiglipTextModel

from emointerp.errors import InputError, ModelError
from emointerp.given import texts, whole_number
from emointerp.models.images import as_pictures, to_image
from emointerp.models.loading import BUNDLED, HUB_OPTIONS, WEIGHTS, load, opening, unpicklable
from emointerp.models.patches import Size, grid, inside, seen_region, whole
from emointerp.models.vlm import VLM

DUAL = ("siglip", "clip")
ALONE = ("siglip_vision_model", "clip_vision_model")
QWEN_SIDE = 16  # tokens a side: Qwen's towers take pictures of any size, and are given squares of one
TEXT = "text side"

Pixels = Float[Tensor, "n channel height width"]


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower: `pixels` of pictures, and their vectors, `pooled` to one a picture or one for each of the `patches`.

    `d` is the width of pooled vectors and `d_patch` that of patches (CLIP's differ). `name` says whose tower it is, and travels
    with an SAE trained on it.
    """

    name: str
    d: int
    d_patch: int
    n_patches: int
    model: nn.Module = field(repr=False)
    _pixels: Callable[[Any], Pixels] = field(repr=False)
    _pooled: Callable[[Pixels], Float[Tensor, "n d"]] = field(repr=False)
    _patches: Callable[[Pixels], Float[Tensor, "n patch d"]] = field(repr=False)
    _boxes: Callable[[Size], Float[np.ndarray, "patch 4"]] = field(repr=False)
    _texts: Callable[[list[str]], Float[Tensor, "n d"]] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Tower({self.name}, {self.n_patches} patches, d {self.d}{', ' + TEXT if self._texts else ''})"

    def pixels(self, pictures: Sequence[Any]) -> Pixels:
        """Pictures (files, PIL images, arrays, scenes) as the tower's processor resizes and normalises them."""
        pictures = [pictures] if not isinstance(pictures, list | tuple) else pictures
        if not pictures:
            raise InputError("No pictures came; give at least one.")
        weights = next(self.model.parameters())
        return torch.cat([self._pixels(to_image(picture)) for picture in pictures]).to(weights)

    def pooled(self, pixels: Pixels) -> Float[Tensor, "n d"]:
        """One vector a picture: by the tower's own pooling (a dual encoder's, which its texts are compared to), or the mean."""
        return self._pooled(pixels)

    def patches(self, pixels: Pixels) -> Float[Tensor, "n patch d_patch"]:
        """A vector for each patch after the last layer, in rows; Qwen's are merged 2 x 2, as its language model reads them."""
        return self._patches(pixels)

    def boxes(self, size: Size) -> Float[np.ndarray, "patch 4"]:
        """Where patches lie in a picture of `size` (width, height): left, top, right, bottom in its pixels; NaN beyond it."""
        return self._boxes(size)

    @torch.no_grad()
    def embed(
        self, pictures: Iterable[Any], patches: bool = False, batch: int = 64, progress: bool = True
    ) -> Float[Tensor, "n d"] | Float[Tensor, "n patch d_patch"]:
        """Vectors of pictures, float32 on the CPU; one a picture, or one for each of its `patches`."""
        whole_number(batch, "batch", 1)
        read, pictures = self.patches if patches else self.pooled, as_pictures(pictures)
        starts = tqdm(range(0, len(pictures), batch), desc="tower", disable=not progress)
        parts = [read(self.pixels(list(pictures[i : i + batch]))).float().cpu() for i in starts]
        if not parts:
            raise InputError("No pictures came; give at least one.")
        return torch.cat(parts)

    def texts(self, sentences: Iterable[str]) -> Float[Tensor, "n d"]:
        """Sentences in the space of the pooled vectors, of length 1; InputError for a tower that no text encoder goes with."""
        if self._texts is None:
            raise InputError(f"The tower of {self.name!r} has no text encoder; 'tiny' and dual encoders (SigLIP, CLIP) have one.")
        with torch.no_grad():
            return normalize(self._texts(texts(sentences, "sentences")).float().cpu(), dim=-1)


def load_tower(source: str | Path | VLM | Tower = "tiny", **options: Any) -> Tower:
    """The tower of the bundled model, of a VLM in hand, or of a folder or hub id of a VLM or dual encoder (SigLIP, CLIP).

    `options` go to `load` or to transformers' `from_pretrained`. ModelError says what cannot be opened.

    >>> import emointerp as ei
    >>> tower = ei.load_tower()
    >>> tower.embed([ei.world_pairs("test", 1)[0].emotional]).shape
    torch.Size([1, 192])
    """
    if isinstance(source, Tower):
        return source
    if isinstance(source, VLM):
        return _of_vlm(source)
    name = str(source)
    kind = None if name in BUNDLED else _kind(name, _place(options))
    return _of_dual(name, **options) if kind in DUAL + ALONE else _of_vlm(load(name, **options))


def _kind(name: str, place: dict[str, Any]) -> str | None:
    """The type of a model, from its configuration; None where there is none to read, which `load` says in words."""
    try:
        return AutoConfig.from_pretrained(name, **place).model_type
    except (OSError, ValueError):
        return None


def _place(options: dict[str, Any]) -> dict[str, Any]:
    """The options that say which files are meant, for all that is opened beside the weights; remote code is never run."""
    return {name: options[name] for name in HUB_OPTIONS if name in options} | {"trust_remote_code": False}


# towers of VLMs


def _of_vlm(vlm: VLM) -> Tower:
    """The tower of any family."""
    inner, images = vlm.model.model, vlm.processor.image_processor
    if hasattr(inner, "visual"):
        return _qwen(vlm, inner.visual, images)
    vision = getattr(inner, "vision_tower", None) or inner.vision_model
    kind = vlm.model.config.model_type
    tiles = {"llava_next": 0, "llava_onevision": 0, "idefics3": -1, "smolvlm": -1}.get(kind)  # where the whole picture is
    region = partial(seen_region, image_processor=images) if kind == "llava" else whole
    tower = _square(vlm.name, vision, images, region, tiles)
    if vlm.name in BUNDLED:
        texts = SiglipTextModel.from_pretrained(WEIGHTS / f"{vlm.name}-text", dtype=torch.float32).to(vlm.device)
        return replace(tower, _texts=_text_side(texts, lambda: vlm.tokenizer))
    return tower


def _square(name: str, vision: nn.Module, images: Any, region: Callable[[Size], tuple], tiles: int | None = None) -> Tower:
    """A CLIP or SigLIP tower, which sees squares of one size; `tiles` says which of a picture's tiles shows all of it."""
    side, patch = vision.config.image_size, vision.config.patch_size
    per_side = side // patch

    def pixels(picture: Any) -> Pixels:
        values = images(images=[[picture]] if tiles is not None else [picture], return_tensors="pt")["pixel_values"]
        return values if tiles is None else values[:, tiles]

    def patches(values: Pixels) -> Tensor:
        return vision(pixel_values=values).last_hidden_state[:, -(per_side**2) :]  # CLIP's class token comes first

    def boxes(size: Size) -> np.ndarray:
        return inside(grid(per_side, per_side, region(size), per_side * patch / side), size)

    def pooled(values: Pixels) -> Tensor:
        out = vision(pixel_values=values)
        own = getattr(out, "pooler_output", None)
        return out.last_hidden_state.mean(1) if own is None else own

    width = vision.config.hidden_size
    return Tower(name, width, width, per_side**2, vision, pixels, pooled, patches, boxes)


def _qwen(vlm: VLM, visual: nn.Module, images: Any) -> Tower:
    """Qwen's towers: pictures as squares, [channel, height, width] in place of the rows of patches that their processor makes."""
    merge, patch, frames = visual.spatial_merge_size, images.patch_size, images.temporal_patch_size
    wanted = QWEN_SIDE * merge * patch

    def pixels(picture: Any) -> Pixels:
        made = images(images=[picture.resize((wanted, wanted))], return_tensors="pt")
        return unflattened(made["pixel_values"], made["image_grid_thw"], patch, merge, frames)

    def patches(values: Pixels) -> Tensor:
        rows, thw = flattened(values, patch, merge, frames)
        return visual(rows, grid_thw=thw.to(values.device)).pooler_output.unflatten(0, (len(values), -1))

    with torch.no_grad():
        found = patches(pixels(to_image(np.zeros((8, 8), np.uint8))).to(next(visual.parameters())))
    n, d = found.shape[1:]
    side = isqrt(n)

    def pooled(values: Pixels) -> Tensor:
        return patches(values).mean(1)

    return Tower(vlm.name, d, d, n, visual, pixels, pooled, patches, lambda size: grid(side, side, whole(size)))


def flattened(pixels: Pixels, patch: int, merge: int, frames: int = 2) -> tuple[Float[Tensor, "row values"], Tensor]:
    """Pictures as Qwen's towers read them: a row a patch, `merge` x `merge` neighbours together, a still picture `frames` times.

    Also the grid of each picture, [n, 3]: times, rows, columns.

    >>> rows, thw = flattened(torch.zeros(1, 3, 8, 16), patch=2, merge=2)
    >>> rows.shape, thw.tolist()
    (torch.Size([32, 24]), [[1, 4, 8]])
    """
    n, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    x = pixels.reshape(n, channels, rows // merge, merge, patch, columns // merge, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # n, row, column, row and column within, channel, pixel
    x = x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    return x.reshape(n * rows * columns, -1), torch.tensor([[1, rows, columns]] * n)


def unflattened(rows: Float[Tensor, "row values"], thw: Tensor, patch: int, merge: int, frames: int = 2) -> Pixels:
    """The reverse, of pictures of one size: what a processor made, or a gradient on it, as [n, channel, height, width].

    Of a still picture's equal frames the first is taken.
    """
    _, high, wide = thw[0].tolist()
    x = rows.reshape(len(thw), high // merge, wide // merge, merge, merge, -1, frames, patch, patch)[:, :, :, :, :, :, 0]
    return x.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(thw), -1, high * patch, wide * patch)


# dual encoders and towers that come alone


def _of_dual(name: str, device: str | torch.device | None = None, **options: Any) -> Tower:
    """A SigLIP or CLIP of transformers; the pooled vectors are those that texts are compared to."""
    place = _place(options)
    try:
        model = AutoModel.from_pretrained(name, **opening(options | place)).eval()
        images = AutoImageProcessor.from_pretrained(name, **place)
    except pickle.UnpicklingError as error:
        raise ModelError(unpicklable("tower", name)) from error
    except (OSError, ValueError, ImportError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"Cannot open the tower {name!r}: {str(error).splitlines()[0][:200]}") from error
    model = model.to(device) if device else model
    vision = getattr(model, "vision_model", model)
    tower = _square(name, vision, images, partial(seen_region, image_processor=images))
    if not hasattr(model, "get_image_features"):
        return tower

    def pooled(values: Pixels) -> Tensor:
        return model.get_image_features(pixel_values=values).pooler_output

    width = getattr(model.config, "projection_dim", None) or tower.d
    texts = _text_side(model, lambda: AutoTokenizer.from_pretrained(name, **place))
    return replace(tower, d=width, model=model, _pooled=pooled, _texts=texts)


def _text_side(model: nn.Module, tokenizer: Callable[[], Any]) -> Callable[[list[str]], Float[Tensor, "n d"]]:
    """Sentences as the text half of a dual encoder pools them; SigLIP is used to texts padded to its full length.

    The tokenizer is opened when a text is read: pictures need none.
    """
    config = getattr(model.config, "text_config", model.config)
    read = getattr(model, "get_text_features", model)
    padded = {"padding": "max_length" if "siglip" in config.model_type else True, "padding_side": "right"}

    def texts(sentences: list[str]) -> Tensor:
        length = config.max_position_embeddings
        made = tokenizer()(sentences, truncation=True, max_length=length, return_tensors="pt", **padded)
        given = {"input_ids": made["input_ids"].to(next(model.parameters()).device)}
        if "siglip" not in config.model_type:
            given["attention_mask"] = made["attention_mask"].to(given["input_ids"].device)
        return read(**given).pooler_output

    return texts
