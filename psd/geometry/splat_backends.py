"""Choose who lays ellipses over one another: gsplat's CUDA kernels where they compile, or plain torch.

gsplat (Apache-2.0) gets our own ellipses, so filter, order and cut-off stay ours.  It differs from `composite_ellipses`
where an alpha is above 0.99 (it takes up to 0.999), and leaves out what lies behind a pixel through which less than
1e-4 of the light passes.  Axes: as in `psd.geometry.splat`.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from psd.geometry.splat import Composite, Ellipses, composite_ellipses
from psd.runtime import diagnosis

GSPLAT_TILE = 16  # pixels along a side, which its kernels are made for


def splat_backend(device: torch.device) -> tuple[Composite, str]:
    """What lays ellipses over one another on ``device``, and why."""
    if device.type != "cuda":
        return composite_ellipses, f"plain torch: kernels are for NVIDIA GPUs, this is {device.type}"
    if importlib.util.find_spec("gsplat") is None:
        return composite_ellipses, "plain torch: gsplat is not installed (requirements-cuda.txt has it)"
    if problem := gsplat_problem(device):
        return composite_ellipses, f"plain torch: gsplat cannot be used here ({problem})"
    return composite_with_gsplat, "gsplat, which is installed and compiled"


@cache
def gsplat_problem(device: torch.device) -> str:
    """Why gsplat's kernels cannot run on a GPU; "" where they did.  Its first use compiles them, for minutes."""
    places = torch.full((1, 2), 4.0, device=device)
    one = places[:, 0] / 4
    speck = Ellipses(places, torch.tensor([[1.0, 0, 1]], device=device), one.log(), one, places / 2)
    try:
        shown = composite_with_gsplat(speck, one[:, None], 1, 8)
    except Exception as error:  # noqa: BLE001 - no nvcc (its module is None then), a compiler that fails, a driver
        return f"{diagnosis.first_line(error)}; its kernels need CUDA's nvcc and ninja"
    return "" if shown.max() > 0.5 else "its kernels show nothing"


def composite_with_gsplat(
    ellipses: Ellipses, values: Float[Tensor, "p c"], images: int, size: int
) -> Float[Tensor, "i h w c"]:
    """`composite_ellipses` by gsplat's kernels: float32, on an NVIDIA GPU, with gradients."""
    import gsplat  # pyright: ignore[reportMissingImports]

    def by_image(value: Tensor) -> Tensor:
        return value.unflatten(0, (images, len(values) // images))

    centre, across = by_image(ellipses.centre), -(-size // GSPLAT_TILE)
    with torch.no_grad():
        reach = by_image(ellipses.reach).ceil().int()  # one that is not above 0 is left out
        _, keys, order = gsplat.isect_tiles(centre, reach, by_image(ellipses.depth), GSPLAT_TILE, across, across)
        first = gsplat.isect_offset_encode(keys, images, across, across)
    picture, _ = gsplat.rasterize_to_pixels(
        centre, by_image(ellipses.inverse), by_image(values), by_image(ellipses.log_opacity.exp()), size, size,
        GSPLAT_TILE, first, order,
    )  # fmt: skip
    return picture
