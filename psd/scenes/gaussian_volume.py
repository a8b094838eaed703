"""Gaussians as a density on a grid, from which a surface is cut as from any other density.

A Gaussian of opacity o absorbs -log(1 - o) along the ray through its middle, seen along its shortest axis; spread over
its ellipsoid, that is a density.  The grid's own blur keeps what each absorbs in all, however thin it is.
Axes: n Gaussians, e pairs of a Gaussian and a point of the grid, x y z the grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from psd.geometry.cameras import Cameras
from psd.geometry.splat import DENSEST, Gaussians
from psd.scenes.interfaces import Render, Scene

BLUR = 0.5  # standard deviation of the grid's own blur, in cells
EXTENT = 3.0  # standard deviations beyond which a Gaussian holds nothing
PAIRS = 1 << 21  # looked at together: about 0.2 GB


class GaussianVolume:
    """What `psd.scenes.extract.extract_mesh` asks of a scene, for Gaussians: density and colour between grid points."""

    def __init__(self, scene: Scene, gaussians: Gaussians, resolution: int) -> None:
        self.scene = scene
        self.values = fill_grid(gaussians, resolution)

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Per world unit, interpolated; 0 outside [-1, 1]^3."""
        return self._sample(points)[0]

    def colour(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """sRGB in [0, 1], the mean of what is around; black where nothing is."""
        density, *colour = self._sample(points)
        return torch.stack(colour, dim=-1) / density.clamp_min(1e-12)[:, None]

    def render(self, cameras: Cameras, size: int, *, background: Float[Tensor, "b 3"]) -> Render:
        """The Gaussians themselves."""
        return self.scene.render(cameras, size, background=background)

    def _sample(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "4 n"]:
        # grid_sample's last coordinate runs along the first axis of the grid.
        places = points.to(self.values).flip(-1)[None, None, None]
        return F.grid_sample(self.values[None], places, align_corners=True)[0, :, 0, 0]


@torch.no_grad()
def fill_grid(gaussians: Gaussians, resolution: int) -> Float[Tensor, "4 x y z"]:
    """Density, then density times colour, at ``resolution``^3 points that span [-1, 1]^3, corners included."""
    spacing, axes = 2 / (resolution - 1), gaussians.axes()
    blurred = axes @ axes.mT + (BLUR * spacing) ** 2 * torch.eye(3, device=axes.device)
    inverse = torch.linalg.inv(blurred)
    # What one absorbs, summed over the plane across its shortest axis, and its share of the blurred volume.
    in_all = -torch.log1p(-gaussians.opacity.clamp_max(DENSEST)) * 2 * math.pi
    in_all = in_all * gaussians.size.prod(-1) / gaussians.size.amin(-1)
    peak = in_all / ((2 * math.pi) ** 1.5 * torch.linalg.det(blurred).sqrt())
    reach = EXTENT * blurred.diagonal(dim1=1, dim2=2).sqrt()
    low = ((gaussians.position - reach + 1) / spacing).ceil().clamp(0, resolution).long()
    high = ((gaussians.position + reach + 1) / spacing).floor().clamp(-1, resolution - 1).long() + 1
    span = (high - low).clamp_min(0)
    counts = span.prod(-1)
    shown = torch.cat([torch.ones_like(peak)[:, None], gaussians.colour], dim=1) * peak[:, None]
    grid = shown.new_zeros(resolution**3, 4)
    ends, start = counts.cumsum(0), 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, before + PAIRS, right=True)))
        rows = torch.arange(start, stop, device=grid.device).repeat_interleave(counts[start:stop])
        within = torch.arange(len(rows), device=grid.device) - (ends - counts)[rows] + before
        across, along = span[rows, 2], span[rows, 1] * span[rows, 2]
        place = torch.stack([within // along, within % along // across, within % across], dim=-1) + low[rows]
        away = place * spacing - 1 - gaussians.position[rows]
        share = (-0.5 * torch.einsum("ei,eij,ej->e", away, inverse[rows], away)).exp()
        flat = (place[:, 0] * resolution + place[:, 1]) * resolution + place[:, 2]
        grid.index_add_(0, flat, share[:, None] * shown[rows])
        start = stop
    return grid.T.reshape(4, resolution, resolution, resolution)
