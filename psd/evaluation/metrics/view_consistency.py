"""Do the four views show one object?  Reprojected colour error through the visual hull.

The views' silhouettes carve a grid of voxels; each visible surface voxel takes the colour that the *other* views give
it and is compared with the view's own pixel.  The ground truth's own error on the same measure is the yardstick.
Axes: v view, h w image, n voxels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd.geometry.cameras import Cameras

GRID = 64  # voxels along an edge of [-1, 1]^3
BACKGROUND_DISTANCE = 0.12  # a pixel this far (largest channel) from the border's median colour is foreground


def find_foreground(images: Float[Tensor, "v 3 h w"]) -> Bool[Tensor, "v h w"]:
    """Pixels that differ from the plain background, whose colour is the median of the border."""
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1)
    background = border.movedim(1, 0).flatten(1).median(dim=1).values
    return (images - background[:, None, None]).abs().amax(1) > BACKGROUND_DISTANCE


def reprojection_error(images: Float[Tensor, "v 3 h w"], cameras: Cameras) -> float:
    """Mean absolute colour difference over the foreground between a pixel and what the other views say of its point.

    Foreground that no point of the hull explains counts as different by 0.5: silhouettes that disagree are no object.
    ``cameras`` is one group.  nan if there is no foreground at all.
    """
    views, _, size, _ = images.shape
    mask = find_foreground(images)
    axis = (torch.arange(GRID) + 0.5) / GRID * 2 - 1
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    pixel, depth = project_points(points, cameras, size)
    column, row = pixel.round().long().clamp(0, size - 1).unbind(-1)
    view = torch.arange(views)[:, None]
    inside = mask[view, row, column].all(0)
    points, depth, row, column = points[inside], depth[:, inside], row[:, inside], column[:, inside]
    if not mask.any():
        return float("nan")
    nearest = torch.full((views, size * size), float("inf"))
    nearest.scatter_reduce_(1, row * size + column, depth, "amin")
    margin = 2 * (2 / GRID)  # a voxel is visible if nothing stands clearly in front of it
    visible = depth <= nearest.gather(1, row * size + column) + margin
    colour = images[view, :, row, column]  # v n 3
    weight = visible.float()[..., None]
    others = (colour * weight).sum(0) - colour * weight
    seen = visible.sum(0) - visible.float()
    compared = visible & (seen > 0)
    difference = (colour - others / seen.clamp(min=1)[..., None]).abs().mean(-1)
    explained = torch.zeros(views, size * size).scatter_reduce_(1, row * size + column, visible.float(), "amax")
    covered = torch.nn.functional.max_pool2d(explained.view(views, 1, size, size), 3, 1, 1)[:, 0] > 0
    unexplained = (mask & ~covered).sum() / mask.sum()
    return ((1 - unexplained) * difference[compared].mean() + 0.5 * unexplained).item()


def project_points(
    points: Float[Tensor, "n 3"], cameras: Cameras, size: int
) -> tuple[Float[Tensor, "v n 2"], Float[Tensor, "v n"]]:
    """Pixel coordinates (x, y; pixel centres at integers) and distances along the viewing axis, for one group."""
    c2w = cameras.c2w[0]
    local = torch.einsum("vji,vnj->vni", c2w[:, :3, :3], points[None] - c2w[:, None, :3, 3])
    depth = -local[..., 2]
    scale = 1 / torch.tan(torch.deg2rad(cameras.fovy_deg[0]) / 2)
    ndc = local[..., :2] / depth[..., None] * scale[:, None, None] * torch.tensor([1.0, -1.0])
    return (ndc + 1) / 2 * size - 0.5, depth
