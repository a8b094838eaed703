"""Which points a closed mesh holds, and how far they are from its surface.

Axes: n points, k samples of the surface, m faces.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from torch import Tensor

from psd.geometry.mesh import Mesh
from psd.geometry.rasterise import cover_samples, interpolate_planes
from psd.geometry.tetrahedra import TetrahedralGrid
from psd.runtime import lanes

FLAT = 1.5  # edges of a cell: up to here the distance is that to the tangent plane, which sees between the samples
LEAF = 48  # samples: scipy's 10 take 2.5 times as long for the same answer


def find_inside(vertices: Float[Tensor, "v 3"], faces: Tensor, size: int) -> Bool[Tensor, "size size size"]:
    """Which points (x, y, z), whole numbers from 0 on, lie inside a closed, outward mesh: where it winds around them.

    Winding numbers add up the faces above each point, so that parts may overlap.
    """
    corner = vertices[faces.long()].float() + torch.tensor([0.5, 0.5, 0.0])  # samples lie at halves there
    face, row, column = cover_samples(corner[:, :, :2], size)
    height = interpolate_planes(corner, face, row, column)
    (ax, bx, cx), (ay, by, cy) = (corner[:, :, axis].unbind(1) for axis in (0, 1))
    up = ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)).sign()[face]  # faces whose outside is above count as one
    level = height.ceil().clamp(0, size).long()  # the points below it have the face above them
    winding = torch.zeros(size, size, size + 1).index_put_((column, row, level), up, accumulate=True)
    return (winding.flip(2).cumsum(2).flip(2)[:, :, 1:] > 0.5).contiguous()


def measure_distances(
    mesh: Mesh, grid: TetrahedralGrid, centre: Float[Tensor, " 3"], half: Float[Tensor, " 3"]
) -> tuple[Float[Tensor, " n"], np.ndarray]:
    """Signed distances of a grid's points to a closed mesh, in edges of a cell, negative inside; the nearest vertices.

    The grid fills the box ``centre`` +- ``half``, whose cells may be longer along some axes: distances are those of
    the box drawn as a cube.
    """
    corners = grid.cells + 1
    places = ((torch.from_numpy(mesh.vertices) - centre.cpu()) / half.cpu() + 1) * (grid.cells / 2)
    faces = torch.from_numpy(mesh.faces)
    inside = torch.cat(
        [find_inside(places - shift, faces, size).flatten() for shift, size in ((0.0, corners), (0.5, grid.cells))]
    )
    triangles = places[faces.long()]
    normals = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    at_vertices = torch.zeros_like(places).index_add_(0, faces.long().flatten(), normals.repeat_interleave(3, dim=0))
    samples = torch.cat([places, triangles.mean(1)])
    facing = torch.nn.functional.normalize(torch.cat([at_vertices, normals]), dim=-1)
    points = (grid.points.cpu() + 1) * (grid.cells / 2)
    threads = max(lanes.count_lanes(), torch.get_num_threads())
    far, nearest = KDTree(samples.numpy(), leafsize=LEAF).query(points.numpy(), workers=threads)
    nearest, far = torch.from_numpy(nearest), torch.from_numpy(far).float()
    flat = ((points - samples[nearest]) * facing[nearest]).sum(-1).abs()
    distance = torch.where(far < FLAT, flat, far).clamp_min(1e-3)
    vertex = torch.where(nearest < len(places), nearest, faces[(nearest - len(places)).clamp_min(0), 0].long())
    return torch.where(inside, -distance, distance), vertex.numpy()
