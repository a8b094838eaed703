"""Pictures from outside as they look on a white page: sRGB bytes without transparency, upright.

Two pictures that look the same must score the same, however their files store them.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import UInt8

from psd.config.errors import PresetError, first_line

LARGEST_PICTURE = 4_000_000  # characters of base64
LONGEST_EDGE = 2048  # px; a picture is padded to a square of it, so that the edge and not the area decides its memory
FORMATS = ("PNG", "JPEG")


def decode_image(text: str) -> UInt8[np.ndarray, "h w 3"]:
    """A PNG or JPEG in base64, with line ends or without, with the head of a data URL or without.

    Transparency is laid over white, 16-bit grey scaled to 8 bits, the orientation and the colour profile of a camera
    applied.  Raises `PresetError` for anything else and for a picture that is too large.
    """
    from PIL import Image

    if len(text) > LARGEST_PICTURE:
        raise PresetError(f"an image of {len(text)} characters: {LARGEST_PICTURE} at most")
    try:
        data = base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True)
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            refuse_large_picture(picture.width, picture.height)
            return flatten_picture(picture)
    except Image.UnidentifiedImageError:
        raise PresetError("not a PNG or JPEG in base64: its bytes begin as no such file does") from None
    except (binascii.Error, UnicodeError) as error:
        raise PresetError(f"not a PNG or JPEG in base64: {first_line(error)}") from None
    except (ValueError, OSError, SyntaxError, EOFError, LookupError, TypeError, ZeroDivisionError, OverflowError,
            struct.error, zlib.error, Image.DecompressionBombError) as error:  # fmt: skip
        if isinstance(error, PresetError):
            raise
        raise PresetError(f"not a PNG or JPEG in base64: damaged ({first_line(error)})") from None


def refuse_large_picture(width: int, height: int) -> None:
    """Raises `PresetError` for an edge above `LONGEST_EDGE`, and for a picture without pixels."""
    if not 0 < min(width, height):
        raise PresetError(f"an image of {width} x {height} pixels: it has none")
    if max(width, height) > LONGEST_EDGE:
        raise PresetError(f"an image of {width} x {height} pixels: {LONGEST_EDGE} at most along an edge")


def flatten_picture(picture: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of PIL as it looks on white."""
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # grey in 16 bits, which PIL would clip at 255 instead of scaling
        return _flatten_deep_grey(picture)
    alpha = None
    if picture.has_transparency_data:  # also a single colour or entries of a palette that are meant to be clear
        picture = picture.convert("RGBA")
        alpha = np.asarray(picture.getchannel("A"))
    return lay_on_white(np.asarray(_convert_to_srgb(picture)), alpha)


def _flatten_deep_grey(picture: Any) -> UInt8[np.ndarray, "h w 3"]:
    values = np.asarray(picture).astype(np.int64).clip(0, 65535)
    grey = np.rint(values / 257).astype(np.uint8)
    clear = picture.info.get("transparency")
    alpha = None if not isinstance(clear, int) else np.where(values == clear, 0, 255).astype(np.uint8)
    return lay_on_white(np.repeat(grey[..., None], 3, axis=2), alpha)


def lay_on_white(
    colours: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"] | None
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture with ``alpha`` (255: solid) before white; unchanged without one."""
    if alpha is None:
        return colours
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def _convert_to_srgb(picture: Any) -> Any:
    """In RGB; through the picture's own colour profile where it has another than sRGB, as every viewer does."""
    from PIL import ImageCms

    profile = picture.info.get("icc_profile")
    if not profile:
        return picture.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture.convert("RGB")
        if picture.mode not in ("RGB", "CMYK", "L"):
            picture = picture.convert("RGB")
        found = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise PresetError(
            f"an image with a colour profile that cannot be read ({first_line(error)}): save it as sRGB"
        ) from None
    return found
