"""Pictures from outside are read as they look, however their files store them, or refused in words."""

from __future__ import annotations

import base64
import random
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from psd.config.errors import PresetError
from psd.runtime.pictures import LONGEST_EDGE, decode_image

RNG = np.random.default_rng(0)
SMOOTH = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
GREY = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
MASK = (RNG.random((48, 64)) < 0.5).astype(np.uint8) * 255
ON_WHITE = np.where(MASK[..., None] > 0, SMOOTH, 255).astype(np.uint8)


def encode(picture: Image.Image, form: str = "PNG", **options: Any) -> str:
    stream = BytesIO()
    picture.save(stream, form, **options)
    return base64.b64encode(stream.getvalue()).decode()


def test_transparency_is_laid_over_white_whatever_it_hides() -> None:
    hidden = Image.fromarray(np.dstack([SMOOTH, MASK]))
    assert (decode_image(encode(hidden)) == ON_WHITE).all()
    clear = Image.new("RGBA", (5, 4), (255, 0, 0, 0))
    assert (decode_image(encode(clear)) == 255).all()
    half = decode_image(encode(Image.new("RGBA", (1, 1), (200, 100, 0, 51))))[0, 0]
    assert half.tolist() == [round(c * 0.2 + 255 * 0.8) for c in (200, 100, 0)]


def test_a_clear_colour_and_clear_entries_of_a_palette_are_white() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    red.putpixel((0, 0), (0, 0, 255))
    found = decode_image(encode(red, transparency=(255, 0, 0)))
    assert found[0, 0].tolist() == [0, 0, 255] and (found[1:] == 255).all()
    palette = red.quantize(2)
    first = palette.getpixel((3, 3))
    assert (decode_image(encode(palette, transparency=first))[1:] == 255).all()
    grey = Image.new("LA", (3, 3), (0, 0))
    assert (decode_image(encode(grey)) == 255).all()


def test_grey_in_16_bits_looks_like_its_8_bits() -> None:
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert deep.mode.startswith("I;16")
    wanted = decode_image(encode(Image.fromarray(GREY)))
    assert (wanted == GREY[..., None]).all() and (decode_image(encode(deep)) == wanted).all()
    clear = decode_image(encode(Image.fromarray(np.full((2, 2), 1000, np.uint16)), transparency=1000))
    assert (clear == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_a_camera_stored_turned_is_upright(orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    picture = Image.fromarray(SMOOTH)
    stored = picture.transpose(turns[orientation]) if orientation in turns else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (decode_image(encode(stored, exif=exif)) == SMOOTH).all()


def test_a_colour_profile_is_applied_and_srgbs_own_changes_nothing() -> None:
    picture = Image.fromarray(SMOOTH)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (decode_image(encode(picture, icc_profile=srgb)) == SMOOTH).all()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # of no picture in RGB
    with pytest.raises(PresetError, match="a colour profile that cannot be read"):
        decode_image(encode(picture, icc_profile=lab))
    with pytest.raises(PresetError, match="a colour profile that cannot be read"):
        decode_image(encode(picture, icc_profile=b"no profile"))


def test_line_ends_and_the_head_of_a_data_url_are_read_over() -> None:
    plain = encode(Image.fromarray(SMOOTH))
    lines = base64.encodebytes(base64.b64decode(plain)).decode()
    assert "\n" in lines
    for text in (plain + "\n", lines, lines.replace("\n", "\r\n"), "data:image/png;base64," + lines, f" {plain} "):
        assert (decode_image(text) == SMOOTH).all()


@pytest.mark.parametrize(("width", "height"), [(14_000, 1), (1, LONGEST_EDGE + 1), (3000, 3000)])
def test_an_edge_that_would_become_too_large_a_square_is_refused(width: int, height: int) -> None:
    text = encode(Image.new("L", (width, height)))
    with pytest.raises(PresetError, match=f"{width} x {height} pixels: 2048 at most along an edge"):
        decode_image(text)
    assert decode_image(encode(Image.new("L", (LONGEST_EDGE, 1)))).shape == (1, LONGEST_EDGE, 3)


@pytest.mark.parametrize("text", ["", "x", "not base64!", "pictüre", base64.b64encode(b"GIF89a...").decode(), "AAA"])
def test_what_is_no_picture_is_refused_without_an_address_of_memory(text: str) -> None:
    with pytest.raises(PresetError, match="not a PNG or JPEG in base64") as caught:
        decode_image(text)
    assert "0x" not in str(caught.value)


def make_pictures() -> list[bytes]:
    """Sound files of every kind that is read."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 300, zip=True)
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (Image.fromarray(SMOOTH), "PNG", {"pnginfo": info}), (Image.fromarray(np.dstack([SMOOTH, MASK])), "PNG", {}),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", {}), (Image.fromarray(SMOOTH).quantize(9), "PNG", {}),
        (Image.fromarray(SMOOTH), "JPEG", {}), (Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", {}),
        (Image.fromarray(GREY), "JPEG", {"progressive": True}), (Image.new("1", (9, 9)), "PNG", {}),
    ]  # fmt: skip
    return [base64.b64decode(encode(picture, form, **options)) for picture, form, options in kinds]


@pytest.mark.slow
def test_damaged_pictures_are_read_or_refused_in_words() -> None:
    """Cut, flipped, doubled and zeroed files: an array of bytes or `PresetError`, and nothing else."""
    rng, sound = random.Random(0), make_pictures()
    refused = 0
    for number in range(400):
        data = bytearray(sound[number % len(sound)])
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[place] ^= 1 << rng.randrange(8)
                case 1:
                    del data[max(place, 8) :]
                case 2:
                    data[place:place] = data[place : place + 20]
                case 3:
                    data[place : place + 4] = b"\xff\xff\xff\xff"[: len(data) - place]
                case 4:
                    data[place : place + 9] = bytes(9)[: len(data) - place]
        try:
            found = decode_image(base64.b64encode(bytes(data)).decode())
        except PresetError:
            refused += 1
        else:
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 and max(found.shape) <= 2048
    assert 100 < refused < 400
