"""Anti-aliased pictures of meshes with one colour a face, several samples a pixel; light falls on both sides of a face.

Axes: b object, v view, h w image; n vertices and m faces of all objects together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psd.embedded.objects.assemble import Body
from psd.geometry.cameras import Cameras
from psd.geometry.rasterise import find_visible_faces

AMBIENT, DIFFUSE, SKY = 0.62, 0.38, 0.05  # shares of the colour: always, facing the light, facing up
WRAP = 0.35  # light reaches this far (a cosine) round to the dark side, so that it keeps some relief
SAMPLES = 3  # along a side of a pixel


@dataclass(frozen=True)
class Pictures:
    """What the cameras see of ``b`` objects."""

    rgb: Float[Tensor, "b v 3 h w"]  # sRGB in [0, 1], over the background
    mask: Float[Tensor, "b v h w"]  # share of the pixel that is covered
    depth: Float[Tensor, "b v h w"]  # distance from the camera along the ray, inf where nothing is covered
    normals: Float[Tensor, "b v 3 h w"]  # unit, world frame, towards the camera; 0 where nothing is covered
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
    normal = torch.stack([_face_normals(corner, cameras.c2w[owner, i, :3, 3]) for i in range(v)])
    shaded = torch.stack([_shade(bodies, normal[i], light[owner, i]) for i in range(v)])
    image = owner * v + torch.arange(v)[:, None]  # v m
    nearest, nearness = find_visible_faces(screen.flatten(0, 1), image.flatten(), b * v, fine)

    def average(values: Float[Tensor, "f c"]) -> Float[Tensor, "b v c h w"]:
        """Means over a pixel's samples."""
        tiles = values.view(b, v, size, samples, size, samples, -1).mean((3, 5))
        return tiles.movedim(-1, 2).contiguous()

    def look_up(faces: Float[Tensor, "f 3"]) -> Float[Tensor, "b v 3 h w"]:
        """What the visible faces have; 0 where there is none."""
        return average(torch.cat([faces, torch.zeros(1, 3)])[nearest])  # row -1: no face

    mask = average((nearest >= 0).float()[:, None])[:, :, 0]
    rgb = look_up(shaded.flatten(0, 1)) + (1 - mask[:, :, None]) * background[:, None, :, None, None]
    ahead = torch.where(nearest >= 0, 1 / nearness, 0.0).view(b, v, fine, fine)
    along = (ahead * _ray_lengths(cameras.fovy_deg, fine)).view(-1, 1)
    return Pictures(
        rgb=rgb.clamp(0, 1),
        mask=mask,
        depth=torch.where(mask > 0, average(along)[:, :, 0] / mask, torch.inf),
        normals=torch.nn.functional.normalize(look_up(normal.flatten(0, 1)), dim=2),
        background=background,
    )


def _ray_lengths(fovy_deg: Float[Tensor, "b v"], size: int) -> Float[Tensor, "b v h w"]:
    """How much longer the way along each sample's ray is than the way straight ahead."""
    reach = torch.tan(torch.deg2rad(fovy_deg) / 2)[..., None, None]
    across = ((torch.arange(size) + 0.5) * 2 / size - 1) * reach
    return torch.sqrt(1 + across.square() + across.mT.square())


def _project(
    corner: Float[Tensor, "m 3 3"], c2w: Float[Tensor, "m 4 4"], fovy_deg: Float[Tensor, " m"], size: int
) -> Float[Tensor, "m 3 3"]:
    """Corners in samples (x right, y down, both from the image's corner) and their nearness 1 / distance ahead."""
    local = torch.einsum("mki,mij->mkj", corner - c2w[:, None, :3, 3], c2w[:, :3, :3])
    nearness = -1 / local[..., 2]
    scale = nearness / torch.tan(torch.deg2rad(fovy_deg) / 2)[:, None]
    x, y = (local[..., 0] * scale + 1) * size / 2, (1 - local[..., 1] * scale) * size / 2
    return torch.stack([x, y, nearness], dim=-1)


def _face_normals(corner: Float[Tensor, "m 3 3"], eye: Float[Tensor, "m 3"]) -> Float[Tensor, "m 3"]:
    """Unit normals on the side that the eye sees; 0 for a face without area."""
    normal = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal = torch.nn.functional.normalize(normal, dim=-1)
    towards = ((eye - corner.mean(1)) * normal).sum(-1, keepdim=True)
    return torch.where(towards < 0, -normal, normal)


def _shade(bodies: Sequence[Body], normal: Float[Tensor, "m 3"], light: Float[Tensor, "m 3"]) -> Float[Tensor, "m 3"]:
    """Each face's colour in soft light."""
    diffuse = ((normal * light).sum(-1) + WRAP).clamp(min=0) / (1 + WRAP)
    strength = AMBIENT + DIFFUSE * diffuse + SKY * normal[:, 2]
    return torch.cat([body.palette[body.face_palette] for body in bodies]) * strength[:, None]


def main_colours(body: Body) -> Float[Tensor, "k 3"]:
    """Those of the larger part of the surface: small ones (eyes, buttons) may come close to the background."""
    corner = body.vertices[body.faces]
    area = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).norm(dim=-1)
    share = torch.zeros(len(body.palette)).index_add_(0, body.face_palette, area) / area.sum()
    return body.palette[share > min(0.15, float(share.max()) - 1e-6)]
