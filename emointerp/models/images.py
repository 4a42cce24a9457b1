"""Pictures in whatever form they come, made into upright RGB: files, PIL images, arrays, scenes of the drawn world."""

import io
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from emointerp.errors import InputError

# What is opened, by content and not by the file's name: Pillow knows forty formats more, of which some are read by starting another
# program (EPS runs Ghostscript) and others have not been looked at for decades.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
OVERSHOOT = 0.2  # how far below 0 a resized picture's numbers may lie, of the largest
BAND = 512  # rows of a picture that are changed together
KINDS = "a path to a picture file, a PIL image, an array [height, width] or [height, width, 3 or 4], or a Scene"


def to_image(picture: Any) -> Image.Image:
    """An RGB picture, turned upright by its EXIF mark.

    Transparency is laid on white, 16-bit and floating-point pictures (0 to 1) are scaled to 8 bits, CMYK and palettes
    are converted, and of an animation the first frame is taken.

    >>> to_image(np.zeros((4, 6), np.uint8)).size
    (6, 4)
    """
    if hasattr(picture, "image") and callable(picture.image):
        return picture.image()
    if isinstance(picture, str | Path):
        return _opened(picture)
    if isinstance(picture, Image.Image):
        return _turned(lambda: _to_rgb(picture))
    if isinstance(picture, np.ndarray) or hasattr(picture, "__array__"):
        return _turned(lambda: _to_rgb(_from_array(np.asarray(picture))))
    raise InputError(f"Cannot read a picture from {type(picture).__name__}; give {KINDS}.")


def as_pictures(given: Any) -> list[Any]:
    """Pictures as a list, read once; one by itself (a path, an image, a scene) is a list of one. An array of four axes is many."""
    alone = isinstance(given, str) or not isinstance(given, Iterable) or getattr(given, "ndim", 4) in (2, 3)
    return [given] if alone else list(given)


def uploaded(name: str, content: bytes | memoryview) -> Image.Image:
    """An RGB picture that came as bytes, say through a browser; errors call it by its name."""
    if not content:
        raise InputError(f"{name} is empty (0 bytes); save the picture again.")
    return _in_words(name, lambda: _decoded(io.BytesIO(content)))


def opened(source: Path | io.IOBase) -> Image.Image:
    """A picture of one of `FORMATS`, its pixels not yet read; raises what Pillow raises."""
    return Image.open(source, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(name: str | Path) -> Image.Image:
    if str(name).startswith(("http:", "https:")):
        raise InputError(f"{name} is an address; emointerp fetches nothing. Save the picture and give its path.")
    return _in_words(Path(name), lambda: _read(Path(name)))


def _in_words(name: str | Path, read: Callable[[], Image.Image]) -> Image.Image:
    """What `read` gives, or in words why it gives nothing."""
    try:
        return read()
    except (InputError, MemoryError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"No such picture: {name}. Check the path; it is looked up from {Path.cwd()}."
        raise InputError(message) from error
    except Image.DecompressionBombError as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise InputError(f"{name} unpacks to too many pixels (limit {2 * limit:,}); make it smaller first.") from error
    except UnidentifiedImageError as error:
        message = f"{name} is not a picture that Pillow can read; give a PNG, JPEG, GIF, WebP or TIFF file."
        raise InputError(message) from error
    except PermissionError as error:
        raise InputError(f"{name} may not be read: no permission. Change its permissions or copy it.") from error
    except Exception as error:  # on a damaged file Pillow's readers raise almost anything
        raise InputError(f"{name} is damaged or cut off ({error}); save or download it again.") from error


def _turned(turn: Callable[[], Image.Image]) -> Image.Image:
    """A picture in memory in RGB; there are kinds that Pillow or numpy cannot turn."""
    try:
        return turn()
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"The picture cannot be turned into RGB ({type(error).__name__}: {error}); give {KINDS}.") from error


def _read(path: Path) -> Image.Image:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a picture; name the files in it one by one.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); save the picture again.")
    return _decoded(path)


def _decoded(source: Path | io.IOBase) -> Image.Image:
    with opened(source) as image:
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright and in RGB; of a large picture no more copies are held at a time than the one that comes out."""
    image.load()
    if 0 in image.size:
        raise InputError(f"A picture of {image.width} x {image.height} pixels shows nothing; give one with a width and a height.")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _from_array(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Transparency laid on white, a band of rows at a time."""
    (width, height), whole = image.size, Image.new("RGB", image.size)
    for top in range(0, height, BAND):
        part = image.crop((0, top, width, min(top + BAND, height))).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        whole.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
    return whole


def _from_array(array: np.ndarray) -> Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape_fits or 0 in array.shape:
        expected = "expected [height, width] or [height, width, 3 or 4]"
        raise InputError(f"An array of shape {array.shape} is not a picture; {expected}.")
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(_to_bytes(array))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Eight bits a channel: booleans and floats in [0, 1] times 255, numbers beyond 255 divided by 257 (16 bits).

    Floats count as [0, 1] up to 2, because resizing overshoots a little; below 0 that is a fifth of the largest number at most.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    expected = "expected numbers from 0 to 1, or integers from 0 to 255"
    if array.dtype.kind not in "iuf":
        raise InputError(f"The array holds {array.dtype} values; {expected}.")
    if not np.isfinite(array).all():
        raise InputError(f"The array holds NaN or infinite values; {expected}.")
    least, largest = float(array.min()), float(array.max())
    lowest, highest = (-OVERSHOOT * max(1.0, largest), np.inf) if array.dtype.kind == "f" else (0, 65535)
    if least < lowest or largest > highest:
        mend = "a picture that was normalised: bring it back, x * std + mean, or (x - x.min()) / (x.max() - x.min())"
        raise InputError(f"The array holds numbers from {least:g} to {largest:g}; {expected}. If it is {mend}.")
    share = array.dtype.kind == "f" and largest < 2.0
    scaled = np.empty(array.shape, np.uint8)
    for top in range(0, len(array), BAND):
        part = array[top : top + BAND]
        part = np.clip(part, 0, 1) * 255 if share else np.clip(part / 257 if largest > 255 else part, 0, 255)
        scaled[top : top + BAND] = part.round()
    return scaled
