"""Views as picture files and turntables as films.  Axes: v view or frame, h w image."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from psd.runs.store.files import FULL, StoreError

# What Pillow raises for files that are missing or damaged.
BROKEN_PICTURE = (OSError, SyntaxError, ValueError, EOFError, ZeroDivisionError, struct.error, zlib.error)


class FilmError(RuntimeError):
    """A film was not made; what it shows is as good as before."""


def encode_views(images: UInt8[np.ndarray, "v h w 3"], *, lossless: bool) -> bytes:
    """Square views side by side as one JPEG or PNG; the proportions tell how many there are."""
    from PIL import Image

    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"previews are uint8 (v, size, size, 3), not {images.dtype} {images.shape}")
    row = np.concatenate(list(images), axis=1)
    stream = BytesIO()
    if lossless:
        Image.fromarray(row).save(stream, "PNG")
    else:
        Image.fromarray(row).save(stream, "JPEG", quality=92, subsampling=0)
    return stream.getvalue()


def decode_views(path: Path) -> UInt8[np.ndarray, "v h w 3"]:
    """The inverse of `encode_views`, up to JPEG's losses; raises StoreError for what is no such picture."""
    from PIL import Image

    try:
        with Image.open(path, formats=["JPEG", "PNG"]) as picture:
            row = np.asarray(picture.convert("RGB"))
        return np.stack(np.split(row, row.shape[1] // row.shape[0], axis=1))
    except BROKEN_PICTURE as error:
        raise StoreError(f"{path.name} is no picture of views ({type(error).__name__})", "restore it") from None
    except Image.DecompressionBombError:
        raise StoreError(f"{path.name} is far too large for a picture of views", "restore it") from None


def write_films(frames: UInt8[np.ndarray, "v h w 3"], folder: Path) -> None:
    """A turntable as turntable.webp (loops) and turntable.mp4 (h264, even sizes), 20 frames a second.

    Raises `FilmError` where one cannot be made, leaving no part of it; a full disk stays an OSError.
    """
    height, width = (size // 2 * 2 for size in frames.shape[1:3])
    even = frames[:, :height, :width]
    path = folder / "turntable.webp"
    try:
        from PIL import Image

        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=50, loop=0, quality=85)
        path = folder / "turntable.mp4"

        import imageio.v3 as imageio

        imageio.imwrite(
            path, even, plugin="FFMPEG", fps=20, codec="libx264", pixelformat="yuv420p", macro_block_size=2, quality=8
        )
        if not path.is_file():  # nobody asked ffmpeg how it ended
            raise RuntimeError("ffmpeg wrote nothing")
    except Exception as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        cure = "install imageio-ffmpeg again, or name an ffmpeg with libx264 in IMAGEIO_FFMPEG_EXE"
        raise FilmError(f"{path.name} was not made ({said}): {cure}") from error
