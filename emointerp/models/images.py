"""Pictures in whatever form they come, made into upright RGB: files, PIL images, arrays, scenes of the drawn world."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from emointerp.errors import InputError

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
        return _to_rgb(picture)
    if isinstance(picture, np.ndarray) or hasattr(picture, "__array__"):
        return _to_rgb(_from_array(np.asarray(picture)))
    raise InputError(f"Cannot read a picture from {type(picture).__name__}; give {KINDS}.")


def _opened(name: str | Path) -> Image.Image:
    if str(name).startswith(("http:", "https:")):
        raise InputError(f"{name} is an address; emointerp fetches nothing. Save the picture and give its path.")
    path = Path(name)
    try:
        return _read(path)
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"No such picture: {path}. Check the path; it is looked up from {Path.cwd()}."
        raise InputError(message) from error
    except Image.DecompressionBombError as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise InputError(f"{path} unpacks to too many pixels (limit {2 * limit:,}); make it smaller first.") from error
    except UnidentifiedImageError as error:
        message = f"{path} is not a picture that Pillow can read; give a PNG, JPEG, GIF, WebP or TIFF file."
        raise InputError(message) from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read: no permission. Change its permissions or copy it.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or cut off ({error}); save or download it again.") from error


def _read(path: Path) -> Image.Image:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a picture; name the files in it one by one.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); save the picture again.")
    with Image.open(path) as image:
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _from_array(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape_fits or 0 in array.shape:
        expected = "expected [height, width] or [height, width, 3 or 4]"
        raise InputError(f"An array of shape {array.shape} is not a picture; {expected}.")
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(_to_bytes(array))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Eight bits a channel: booleans and floats in [0, 1] times 255, numbers beyond 255 divided by 257 (16 bits).

    Floats count as [0, 1] up to 2, because resizing overshoots a little.
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
    if array.dtype.kind == "f" and array.max() < 2.0:
        return (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return np.clip(array / 257 if array.max() > 255 else array, 0, 255).round().astype(np.uint8)
