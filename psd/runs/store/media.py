"""Views as picture files and turntables as films.  Axes: v view or frame, h w image."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from psd.runs.store.files import FULL, StoreError

# What Pillow raises for files that are missing or damaged.
BROKEN_PICTURE = (OSError, SyntaxError, ValueError, EOFError, ZeroDivisionError, struct.error, zlib.error)

LAPSE_FRAMES, LAPSE_SIZE, LAPSE_FPS = 60, 384, 10  # of a timelapse, in pixels and frames a second


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


def join_previews(files: Sequence[Path]) -> UInt8[np.ndarray, "v h w 3"] | None:
    """The front of each preview as the frames of a film: the object as it grew, and at its end for a while.

    At most `LAPSE_FRAMES` of them, evenly; damaged ones, and those of another size than the last, are left out.
    """
    from PIL import Image

    chosen = [files[round(i)] for i in np.linspace(0, len(files) - 1, min(len(files), LAPSE_FRAMES))] if files else []
    fronts = []
    for file in chosen:
        try:
            fronts.append(decode_views(file)[0])
        except StoreError:
            continue
    fronts = [front for front in fronts if front.shape == fronts[-1].shape]
    if len(fronts) < 2:
        return None
    large = [
        np.asarray(Image.fromarray(front).resize((LAPSE_SIZE, LAPSE_SIZE), Image.Resampling.LANCZOS))
        for front in fronts
    ]
    return np.stack([*large, *[large[-1]] * LAPSE_FPS])


def write_films(frames: UInt8[np.ndarray, "v h w 3"], folder: Path, name: str = "turntable", fps: int = 20) -> None:
    """Frames as <name>.webp (loops) and <name>.mp4 (h264, even sizes).

    Raises `FilmError` where one cannot be made, leaving no part of it; a full disk stays an OSError.
    """
    height, width = (size // 2 * 2 for size in frames.shape[1:3])
    even = frames[:, :height, :width]
    path = folder / f"{name}.webp"
    try:
        from PIL import Image

        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=1000 // fps, loop=0, quality=85)
        path = folder / f"{name}.mp4"

        import imageio.v3 as imageio

        imageio.imwrite(
            path, even, plugin="FFMPEG", fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2, quality=8
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
