"""Pictures of every form come out as the RGB pixels worked out by hand, and bad ones are named in the error."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from emointerp.errors import InputError
from emointerp.models import to_image
from emointerp.world import sample

UPRIGHT = np.arange(18, dtype=np.uint8).reshape(3, 2, 3) * 10
# what a camera stores for each EXIF orientation, by the standard's "row 0 is ..., column 0 is ..."
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.transpose(1, 0, 2),  # left, top
    6: UPRIGHT.transpose(1, 0, 2)[::-1],  # right, top
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def rgb(picture) -> list:
    image = to_image(picture)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def one_pixel(mode: str, colour) -> Image.Image:
    return Image.new(mode, (1, 1), colour)


@pytest.mark.parametrize("as_path", [str, lambda p: p])
def test_a_path_is_opened(tmp_path, as_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    assert rgb(as_path(tmp_path / "a.png")) == UPRIGHT.tolist()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, [100, 100, 100]),
        ("1", 1, [255, 255, 255]),
        ("1", 0, [0, 0, 0]),
        ("LA", (100, 255), [100, 100, 100]),
        ("LA", (100, 0), [255, 255, 255]),
        ("RGBA", (255, 0, 0, 255), [255, 0, 0]),
        ("RGBA", (255, 0, 0, 51), [255, 204, 204]),  # a fifth of red on white
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("CMYK", (0, 0, 0, 255), [0, 0, 0]),
        ("I;16", 128 * 257, [128, 128, 128]),
        ("I;16", 65535, [255, 255, 255]),
        ("I", 200 * 257, [200, 200, 200]),
        ("F", 0.2, [51, 51, 51]),
        ("F", 1.0, [255, 255, 255]),
    ],
)
def test_pil_modes(mode, colour, expected):
    assert rgb(one_pixel(mode, colour)) == [[expected]]


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert rgb(image) == [[[10, 20, 30], [200, 100, 50]]]
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=1)
        assert rgb(tmp_path / name) == [[[10, 20, 30], [255, 255, 255]]]


def test_a_transparent_colour_of_an_rgb_png_lies_on_white(tmp_path):
    image = Image.fromarray(np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert rgb(tmp_path / "a.png") == [[[9, 8, 7], [255, 255, 255]]]


def test_a_16_bit_png_keeps_its_upper_byte(tmp_path):
    Image.fromarray(np.array([[0, 128 * 257, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert rgb(tmp_path / "deep.png") == [[[0] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(tmp_path / "a.png", exif=exif)
    assert rgb(tmp_path / "a.png") == UPRIGHT.tolist()


def test_exif_orientation_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.kron(STORED[6], np.ones((16, 16, 1), np.uint8))  # whole blocks, so that JPEG keeps them nearly exact
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    got = np.asarray(to_image(tmp_path / "a.jpg"))[8::16, 8::16].astype(int)
    assert np.abs(got - UPRIGHT).max() <= 3


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=10, loop=0)
    assert rgb(tmp_path / "a.gif") == [[[255, 0, 0]] * 4] * 4


def test_a_scene_is_drawn():
    scene = sample("test", 1)[0].scene
    assert np.array_equal(np.asarray(to_image(scene)), scene.pixels())


@settings(deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=6)))
def test_grey_arrays_of_every_type_mean_the_same(grey):
    expected = np.repeat(grey[..., None], 3, axis=2).tolist()
    for array in (grey, grey[..., None], grey / 255, (grey / 255).astype(np.float32), expected):
        assert rgb(np.asarray(array, getattr(array, "dtype", np.uint8))) == expected


@settings(deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))))
def test_colour_arrays_keep_their_values(colours):
    opaque = np.concatenate([colours, np.full_like(colours[..., :1], 255)], axis=2)
    for array in (colours, opaque, colours[::-1][::-1], colours / 255):
        assert rgb(array) == colours.tolist()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[True, False]]), [255, 0]),
        (np.array([[0, 257 * 77, 65535]], np.uint16), [0, 77, 255]),
        (np.array([[0, 77, 255]], np.int64), [0, 77, 255]),
        (np.array([[0.0, 77.0, 255.0]]), [0, 77, 255]),
        (np.array([[-0.02, 0.2, 1.04]]), [0, 51, 255]),  # a resized picture overshoots a little
    ],
)
def test_other_number_types(array, expected):
    assert rgb(array) == [[[v] * 3 for v in expected]]


def test_a_transparent_array_lies_on_white():
    assert rgb(np.array([[[255, 0, 0, 51], [1, 2, 3, 0]]], np.uint8)) == [[[255, 204, 204], [255, 255, 255]]]


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such picture: .*nowhere.png.*looked up from"):
        to_image(tmp_path / "nowhere.png")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="No such picture"):
        to_image(tmp_path / "a.txt" / "b.png")


def test_a_text_given_for_a_path():
    with pytest.raises(InputError, match="x"):
        to_image("x" * 5000)


def test_a_folder(tmp_path):
    with pytest.raises(InputError, match="is a folder, not a picture; name the files"):
        to_image(tmp_path)


def test_an_empty_file(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"empty \(0 bytes\); save the picture again"):
        to_image(tmp_path / "a.png")


def test_a_text_file_with_a_picture_name(tmp_path):
    (tmp_path / "a.png").write_text("once upon a time")
    with pytest.raises(InputError, match="not a picture that Pillow can read; give a PNG"):
        to_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_truncated_file(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged or cut off .*save or download it again"):
        to_image(tmp_path / name)


@pytest.mark.parametrize(("width", "warned"), [(10, False), (15, True), (20, True)])
def test_up_to_twice_pillows_limit_a_picture_is_read_with_a_warning(tmp_path, monkeypatch, recwarn, width, warned):
    Image.new("RGB", (width, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert to_image(tmp_path / "a.png").size == (width, 10)
    assert any(w.category is Image.DecompressionBombWarning for w in recwarn) == warned


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (21, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"unpacks to too many pixels \(limit 200\); make it smaller"):
        to_image(tmp_path / "a.png")


@pytest.mark.parametrize("address", ["https://example.org/a.png", "http://example.org/a.png"])
def test_an_address(address):
    with pytest.raises(InputError, match="is an address; emointerp fetches nothing"):
        to_image(address)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (3, 4, 4, 3), (0, 4), (3, 4, 5)])
def test_a_wrong_array_shape(shape):
    with pytest.raises(InputError, match=r"shape \(.*\) is not a picture; expected \[height, width\]"):
        to_image(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_array_with_holes(bad):
    with pytest.raises(InputError, match="NaN or infinite values; expected numbers from 0 to 1"):
        to_image(np.array([[0.0, bad]]))


def test_a_file_with_holes_is_not_called_damaged(tmp_path):
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match="NaN") as raised:
        to_image(tmp_path / "a.tiff")
    assert "damaged" not in str(raised.value)


def test_an_array_of_words():
    with pytest.raises(InputError, match="The array holds object values"):
        to_image(np.array([["a", "b"]], object))


@pytest.mark.parametrize("thing", [None, 3, [1, 2], b"png"])
def test_a_wrong_type(thing):
    with pytest.raises(InputError, match=f"Cannot read a picture from {type(thing).__name__}; give a path"):
        to_image(thing)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(InputError, match="may not be read: no permission"):
        to_image(tmp_path / "a.png")
