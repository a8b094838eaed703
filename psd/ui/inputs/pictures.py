"""Pictures that scripts send, as a viewer shows them."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from psd.config.errors import PresetError

if TYPE_CHECKING:
    from PIL import Image

LARGEST_IMAGE = 4_000_000  # characters of base64
LONGEST_EDGE = 2048  # pixels: judges pad images to squares


def decode_image(image: str) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in base64, with or without the head of a data URL, as a viewer shows it on white.

    Line ends and spaces in the base64 do not count.  Transparency is laid over white, 16 bits become 8, and a camera's
    orientation is applied.  Raises PresetError for anything else.
    """
    from PIL import Image

    if len(image) > LARGEST_IMAGE:
        raise PresetError(f"an image of {len(image)} characters: {LARGEST_IMAGE} at most")
    try:
        data = base64.b64decode("".join(image.rpartition(",")[2].split()), validate=True)
        with Image.open(BytesIO(data), formats=["PNG", "JPEG"]) as opened:
            if max(opened.size) > LONGEST_EDGE:
                raise PresetError(
                    f"an image of {opened.width} x {opened.height} pixels: {LONGEST_EDGE} at most along an edge"
                )
            return flatten_image(opened)
    except PresetError:
        raise
    except (
        ValueError, OSError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError
    ):  # the library's words would name an object of this process  # fmt: skip
        raise PresetError("not a PNG or JPEG in base64: send the bytes of such a file, encoded") from None


def flatten_image(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Upright, 8 bits a channel, transparency over white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey in 16 bits, which Pillow would clip to 255
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
