"""Pictures of a finished mesh, for evaluation, turntables and comparisons: coloured, lit as a viewer would.

Axes: b group, v view, h w image, p covered pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn.functional import normalize

from psd.geometry.cameras import Cameras, camera_rays
from psd.geometry.rasterise import NEAREST, rasterise_faces
from psd.geometry.srgb import decode_srgb, encode_srgb

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh

AMBIENT, HEADLIGHT = 0.55, 0.45  # shares of the light, linear


@dataclass(frozen=True, eq=False)
class Raster:
    """What cameras see of a mesh; where nothing is hit depth and normal are 0."""

    rgb: Float32[np.ndarray, "b v h w 3"]  # sRGB in [0, 1], on the background
    mask: Bool[np.ndarray, "b v h w"]
    depth: Float32[np.ndarray, "b v h w"]  # distance along the ray, world units
    normal: Float32[np.ndarray, "b v h w 3"]  # world frame, unit length


@torch.no_grad()
def rasterise_mesh(
    mesh: Mesh,
    cameras: Cameras,
    size: int,
    *,
    lit: bool = True,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Raster:
    """The mesh's vertex colours from ``cameras``, ``size`` x ``size`` pixels, one sample at each pixel's centre.

    ``lit`` adds what a viewer would: ambient light and a light at the camera, in linear light; otherwise the colours
    are those of the mesh.  Raises `ValueError` where the mesh reaches behind a camera.
    """
    cameras = cameras.to("cpu")
    vertices = torch.from_numpy(mesh.vertices)
    seen = rasterise_faces(vertices, torch.from_numpy(mesh.faces).long(), cameras, size)
    ahead = seen.screen[..., 2].amin(1)
    if ahead.min() < NEAREST:
        b, v = divmod(int(ahead.argmin()), cameras.views)
        raise ValueError(
            f"the mesh comes within {float(ahead.min()):.3g} of the plane of camera ({b}, {v}), nearer than {NEAREST}:"
            " move the camera away"
        )
    painted = torch.from_numpy(mesh.colours).float() / 255
    position, facing, colour = seen.interpolate(
        torch.cat([vertices, torch.from_numpy(mesh.normals), painted], dim=1)
    ).split(3, dim=1)
    facing = normalize(facing, dim=1)
    ray = position - camera_rays(cameras, size)[0].flatten(0, -2).index_select(0, seen.pixel)
    distance = ray.norm(dim=1, keepdim=True)
    if lit:
        towards = (-(facing * ray / distance).sum(1, keepdim=True)).clamp(0, 1)
        linear = decode_srgb(colour.numpy()) * (AMBIENT + HEADLIGHT * towards.numpy())
        colour = torch.from_numpy(encode_srgb(linear))
    shape = (cameras.groups, cameras.views, size, size)

    def spread(values: Tensor) -> np.ndarray:
        return seen.to_image(values).view(*shape, -1).numpy()

    mask = spread(torch.ones_like(distance))[..., 0] > 0
    rgb = np.where(mask[..., None], spread(colour), np.asarray(background, np.float32))
    return Raster(rgb, mask, spread(distance)[..., 0], spread(facing))
