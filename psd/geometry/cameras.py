"""Cameras on orbits, their rays, and the one frame convention of this project.

World: right-handed, +z up, the object inside the unit ball.  Cameras: OpenGL (x right, y up, looking along -z).
Azimuth 0 looks at the object's front: the camera stands on +x.  Azimuth grows counter-clockwise seen from above.
Axes: b group (one orbit), v view, h w image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psd.runtime.devices import to_device


@dataclass(frozen=True)
class Cameras:
    """Posed pinhole cameras, ``b`` groups of ``v`` views; angles in degrees, distance in world units."""

    c2w: Float[Tensor, "b v 4 4"]
    fovy_deg: Float[Tensor, "b v"]
    azimuth_deg: Float[Tensor, "b v"]
    elevation_deg: Float[Tensor, "b v"]
    distance: Float[Tensor, "b v"]

    @property
    def groups(self) -> int:
        return self.c2w.shape[0]

    @property
    def views(self) -> int:
        return self.c2w.shape[1]

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(**{name: to_device(value, device) for name, value in vars(self).items()})

    def __getitem__(self, index: tuple | slice | Tensor) -> Cameras:
        """Index groups and views together, as a tensor: ``cameras[:, [0, 2]]``; both axes must survive."""
        return Cameras(**{name: value[index] for name, value in vars(self).items()})


def orbit_cameras(
    azimuth_deg: Float[Tensor, "b v"],
    elevation_deg: Float[Tensor, "b v"],
    distance: Float[Tensor, "b v"],
    fovy_deg: Float[Tensor, "b v"],
) -> Cameras:
    """Cameras on spheres around the origin, looking at it, upright."""
    azimuth, elevation = torch.deg2rad(azimuth_deg.double()), torch.deg2rad(elevation_deg.double())
    back = torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )  # from the origin to the camera
    right = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], dim=-1)
    up = torch.linalg.cross(back, right)
    c2w = torch.zeros(*azimuth.shape, 4, 4, dtype=torch.float64, device=azimuth.device)
    c2w[..., :3, 0], c2w[..., :3, 1], c2w[..., :3, 2] = right, up, back
    c2w[..., :3, 3] = back * distance.double()[..., None]
    c2w[..., 3, 3] = 1
    return Cameras(c2w.float(), fovy_deg.float(), azimuth_deg.float(), elevation_deg.float(), distance.float())


def sample_orbits(
    groups: int,
    views: int,
    *,
    elevation_deg: tuple[float, float],
    fovy_deg: tuple[float, float],
    distance_factor: tuple[float, float],
    generator: torch.Generator,
) -> Cameras:
    """Random orbits: each group has ``views`` equally spaced azimuths from a random start, at one elevation.

    ``distance_factor`` f sets the distance f / tan(fovy / 2): the field of view then covers 2 f world units at the
    origin (MVDream: U[0.8, 1.0]).  All draws come from ``generator`` (CPU).
    """

    def sample_between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(groups, 1, generator=generator)

    start = torch.rand(groups, 1, generator=generator)
    azimuth = (start + torch.arange(views)) / views * 360
    elevation, fovy, factor = (
        sample_between(*elevation_deg),
        sample_between(*fovy_deg),
        sample_between(*distance_factor),
    )
    distance = factor / torch.tan(torch.deg2rad(fovy) / 2)
    return orbit_cameras(azimuth, elevation.expand_as(azimuth), distance.expand_as(azimuth), fovy.expand_as(azimuth))


def turntable_cameras(
    views: int,
    *,
    elevation_deg: float = 15.0,
    fovy_deg: float = 40.0,
    distance_factor: float = 1.1,
    start_deg: float = 0.0,
) -> Cameras:
    """One group of ``views`` equally spaced cameras; view 0 sees the front when ``start_deg`` is 0."""
    azimuth = (start_deg + torch.arange(views) / views * 360)[None]
    fovy = torch.full_like(azimuth, fovy_deg)
    distance = distance_factor / torch.tan(torch.deg2rad(fovy) / 2)
    return orbit_cameras(azimuth, torch.full_like(azimuth, elevation_deg), distance, fovy)


def camera_rays(
    cameras: Cameras, size: int, *, jitter: Float[Tensor, "b v h w 2"] | None = None
) -> tuple[Float[Tensor, "b v h w 3"], Float[Tensor, "b v h w 3"]]:
    """Ray origins and unit directions through the pixels of a ``size`` x ``size`` image, row 0 at the top.

    ``jitter`` in [0, 1) moves each ray inside its pixel (x, y); without it rays pass through pixel centres.
    """
    device = cameras.c2w.device
    offset = jitter if jitter is not None else torch.full((2,), 0.5, device=device)
    y, x = torch.meshgrid(torch.arange(size, device=device), torch.arange(size, device=device), indexing="ij")
    pixel = torch.stack([x, y], dim=-1) + offset  # (b v) h w 2, in pixels
    ndc = pixel / size * 2 - 1
    ndc[..., 1].neg_()  # y up; a factor [1, -1] would be copied to a GPU at each call, which waits
    scale = torch.tan(torch.deg2rad(cameras.fovy_deg) / 2)[..., None, None, None]
    plane = (ndc * scale).expand(*cameras.fovy_deg.shape, size, size, 2)
    local = torch.cat([plane, -torch.ones_like(plane[..., :1])], dim=-1)
    directions = torch.einsum("bvij,bvhwj->bvhwi", cameras.c2w[..., :3, :3], local)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    origins = cameras.c2w[..., None, None, :3, 3].expand_as(directions)
    return origins, directions


def mvdream_condition(cameras: Cameras) -> Float[Tensor, "b v 16"]:
    """The camera condition of MVDream: row-major c2w with the translation divided by its norm."""
    c2w = cameras.c2w.clone()
    c2w[..., :3, 3] = torch.nn.functional.normalize(c2w[..., :3, 3], dim=-1)
    return c2w.flatten(-2)
