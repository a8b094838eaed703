"""Views as picture files and turntables as films.  Axes: v view or frame, h w image."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


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
    """The inverse of `encode_views`, up to JPEG's losses."""
    from PIL import Image

    with Image.open(path) as picture:
        row = np.asarray(picture.convert("RGB"))
    return np.stack(np.split(row, row.shape[1] // row.shape[0], axis=1))


def write_films(frames: UInt8[np.ndarray, "v h w 3"], folder: Path) -> None:
    """A turntable as turntable.mp4 (h264, even sizes) and turntable.webp (loops), 20 frames a second."""
    import imageio.v3 as imageio
    from PIL import Image

    height, width = (size // 2 * 2 for size in frames.shape[1:3])
    even = frames[:, :height, :width]
    imageio.imwrite(
        folder / "turntable.mp4", even, fps=20, codec="libx264", pixelformat="yuv420p", macro_block_size=2, quality=8
    )
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(folder / "turntable.webp", save_all=True, append_images=rest, duration=50, loop=0, quality=85)
