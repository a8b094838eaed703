"""How smooth a triangle surface is, differentiable: normals, their consistency, the Laplacian.

Axes: n vertices, m faces, e edges.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def find_normals(vertices: Float[Tensor, "n 3"], faces: Int[Tensor, "m 3"]) -> Float[Tensor, "n 3"]:
    """Unit normals, the area-weighted mean of the faces around each vertex; 0 where those have no area."""
    first, second, third = vertices.index_select(0, faces.flatten()).view(-1, 3, 3).unbind(1)
    weighted = torch.linalg.cross(second - first, third - first)
    summed = torch.zeros_like(vertices).index_add(0, faces.flatten(), weighted.repeat_interleave(3, dim=0))
    return normalize(summed, dim=-1)


def normal_consistency(normals: Float[Tensor, "n 3"], ends: Int[Tensor, "e 2"]) -> Float[Tensor, ""]:
    """Mean over edges of 1 - cos of the angle between the normals of its ends: 0 on a plane.

    As in ProlificDreamer's and Magic3D's mesh stages (threestudio).
    """
    first, last = (normals.index_select(0, ends[:, end]) for end in (0, 1))
    return (1 - (first * last).sum(-1)).mean()


def laplacian_length(vertices: Float[Tensor, "n 3"], ends: Int[Tensor, "e 2"]) -> Float[Tensor, ""]:
    """Mean over vertices of how far each lies from the mean of its neighbours, in units of ``vertices``."""
    first, last = (vertices.index_select(0, ends[:, end]) for end in (0, 1))
    summed = torch.zeros_like(vertices).index_add(0, ends[:, 0], last).index_add(0, ends[:, 1], first)
    count = torch.bincount(ends.flatten(), minlength=len(vertices)).clamp_min(1)[:, None]
    return (summed / count - vertices).square().sum(-1).clamp_min(1e-12).sqrt().mean()
