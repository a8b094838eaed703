"""Anti-aliased pictures of meshes with one colour a face: exact spans, a z-buffer, several samples a pixel.

Every face is cut into the rows of samples that it crosses, every row into its span of samples, so that no sample
outside a face is ever tested; the nearest face wins each sample by one scatter.  Light falls on both sides of a face.

Axes: b object, v view, h w image; n vertices and m faces of all objects together, f = m faces of every view,
r (face, row) couples, s samples that faces cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd.embedded.world.assemble import Body
from psd.geometry.cameras import Cameras

AMBIENT, DIFFUSE, SKY = 0.62, 0.38, 0.05  # shares of the colour: always, facing the light, facing up
WRAP = 0.35  # light reaches this far (a cosine) round to the dark side, so that it keeps some relief
SAMPLES = 3  # along a side of a pixel


@dataclass(frozen=True)
class Pictures:
    """What the cameras see of ``b`` objects."""

    rgb: Float[Tensor, "b v 3 h w"]  # sRGB in [0, 1], over the background
    mask: Float[Tensor, "b v h w"]  # share of the pixel that is covered
    background: Float[Tensor, "b 3"]


def render_bodies(
    bodies: Sequence[Body],
    cameras: Cameras,
    size: int,
    *,
    light: Float[Tensor, "b v 3"],
    background: Float[Tensor, "b 3"],
    samples: int = SAMPLES,
) -> Pictures:
    """Images of ``size`` x ``size`` pixels of each object by its group of cameras.

    Objects must be in front of every camera; what lies outside of an image is cut off.
    """
    b, v = cameras.fovy_deg.shape
    fine = size * samples
    corners = [body.vertices[body.faces] for body in bodies]
    owner = torch.repeat_interleave(torch.arange(b), torch.tensor([len(c) for c in corners]))
    corner = torch.cat(corners)  # m 3 3
    screen = torch.stack([_project(corner, cameras.c2w[owner, i], cameras.fovy_deg[owner, i], fine) for i in range(v)])
    shaded = torch.stack([_shade(corner, bodies, cameras.c2w[owner, i, :3, 3], light[owner, i]) for i in range(v)])
    image = owner * v + torch.arange(v)[:, None]  # v m
    nearest = find_nearest_faces(screen.flatten(0, 1), image.flatten(), b * v, fine)
    hit = (nearest >= 0).view(b, v, fine, fine)
    paint = torch.cat([shaded.flatten(0, 1), torch.zeros(1, 3)])  # row -1: no face
    rgb = paint[nearest].view(b, v, size, samples, size, samples, 3).mean((3, 5))
    mask = hit.float().view(b, v, size, samples, size, samples).mean((3, 5))
    rgb = rgb + (1 - mask)[..., None] * background[:, None, None, None]
    return Pictures(rgb.movedim(-1, 2).clamp(0, 1).contiguous(), mask, background)


def _project(
    corner: Float[Tensor, "m 3 3"], c2w: Float[Tensor, "m 4 4"], fovy_deg: Float[Tensor, " m"], size: int
) -> Float[Tensor, "m 3 3"]:
    """Corners in samples (x right, y down, both from the image's corner) and their nearness 1 / distance ahead."""
    local = torch.einsum("mki,mij->mkj", corner - c2w[:, None, :3, 3], c2w[:, :3, :3])
    nearness = -1 / local[..., 2]
    scale = nearness / torch.tan(torch.deg2rad(fovy_deg) / 2)[:, None]
    x, y = (local[..., 0] * scale + 1) * size / 2, (1 - local[..., 1] * scale) * size / 2
    return torch.stack([x, y, nearness], dim=-1)


def _shade(
    corner: Float[Tensor, "m 3 3"], bodies: Sequence[Body], eye: Float[Tensor, "m 3"], light: Float[Tensor, "m 3"]
) -> Float[Tensor, "m 3"]:
    """Each face's colour in soft light, on the side that the eye sees."""
    normal = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal = torch.nn.functional.normalize(normal, dim=-1)
    towards = ((eye - corner.mean(1)) * normal).sum(-1, keepdim=True)
    normal = torch.where(towards < 0, -normal, normal)
    diffuse = ((normal * light).sum(-1) + WRAP).clamp(min=0) / (1 + WRAP)
    strength = AMBIENT + DIFFUSE * diffuse + SKY * normal[:, 2]
    return torch.cat([body.palette[body.face_palette] for body in bodies]) * strength[:, None]


def find_nearest_faces(
    corner: Float[Tensor, "f 3 3"], image: Int[Tensor, " f"], images: int, size: int
) -> Int[Tensor, " samples"]:
    """For each sample (image, row, column flattened) the face that is nearest there, or -1.

    ``corner`` holds x, y in samples and the nearness of each corner; ``image`` the image that a face is drawn into.
    A sample's centre on an edge belongs to the face on its right or below.
    """
    x, y, nearness = corner.unbind(-1)  # f 3
    top, bottom = (torch.ceil(limit - 0.5).clamp(0, size).long() for limit in (y.amin(1), y.amax(1)))
    face, row = _expand(top, bottom)
    # Two of a face's edges cross each of its rows; the span lies between the crossings.
    centre = row + 0.5
    left, right = torch.full_like(centre, torch.inf), torch.full_like(centre, -torch.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        y0, y1, x0, x1 = y[face, i], y[face, j], x[face, i], x[face, j]
        crosses = (y0 <= centre) != (y1 <= centre)
        crossing = x0 + (centre - y0) * (x1 - x0) / (y1 - y0)
        left = torch.where(crosses, torch.minimum(left, crossing), left)
        right = torch.where(crosses, torch.maximum(right, crossing), right)
    start, stop = (torch.ceil(limit - 0.5).clamp(0, size).long() for limit in (left, right))
    couple, column = _expand(start, stop)
    face, row = face[couple], row[couple]
    # 1 / distance is linear on the screen; a face seen edge-on has no slope worth the name, so its corners bound it.
    (ax, bx, cx), (ay, by, cy), (an, bn, cn) = x.unbind(1), y.unbind(1), nearness.unbind(1)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    area = torch.where(area.abs() < 1e-9, 1e-9, area)
    slope_x = ((bn - an) * (cy - ay) - (cn - an) * (by - ay)) / area
    slope_y = ((cn - an) * (bx - ax) - (bn - an) * (cx - ax)) / area
    base = an - slope_x * ax - slope_y * ay
    found = base[face] + slope_x[face] * (column + 0.5) + slope_y[face] * (row + 0.5)
    found = torch.minimum(torch.maximum(found, nearness.amin(1)[face]), nearness.amax(1)[face])
    # The bits of positive floats are ordered as the floats are: one integer holds nearness and face.
    key = (found.view(torch.int32).long() << 32) | face
    buffer = torch.full((images * size * size,), -1, dtype=torch.long)
    buffer.scatter_reduce_(0, (image[face] * size + row) * size + column, key, "amax")
    return torch.where(buffer < 0, -1, buffer & 0xFFFFFFFF)


def _expand(start: Int[Tensor, " k"], stop: Int[Tensor, " k"]) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
    """All (index, value) with start[index] <= value < stop[index]."""
    count = (stop - start).clamp(min=0)
    index = torch.repeat_interleave(torch.arange(len(count)), count)
    offset = count.cumsum(0) - count - start
    return index, torch.arange(len(index)) - offset[index]


def main_colours(body: Body) -> Float[Tensor, "k 3"]:
    """Those of the larger part of the surface: small ones (eyes, buttons) may come close to the background."""
    corner = body.vertices[body.faces]
    area = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).norm(dim=-1)
    share = torch.zeros(len(body.palette)).index_add_(0, body.face_palette, area) / area.sum()
    return body.palette[share > min(0.15, float(share.max()) - 1e-6)]
