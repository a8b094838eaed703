"""Marching tetrahedra: closed, oriented, in the right place, and differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from psd.geometry.cleanup import face_volumes, is_watertight
from psd.geometry.tetrahedra import OFFSET, Crossings, TetrahedralGrid, _mixed_tetrahedra, march_tetrahedra

Distance = Callable[[Tensor], Tensor]


def ball(radius: float) -> Distance:
    return lambda points: points.norm(dim=-1) - radius


def torus(large: float, small: float) -> Distance:
    return lambda points: torch.hypot(torch.hypot(points[:, 0], points[:, 1]) - large, points[:, 2]) - small


def march(distance: Distance, cells: int, offset: Tensor | None = None) -> tuple[Tensor, Crossings]:
    grid = TetrahedralGrid(cells)
    points = grid.points if offset is None else grid.offset_points(offset)
    found = march_tetrahedra(grid, distance(points))
    return found.interpolate(points), found


@pytest.mark.parametrize(
    ("distance", "euler", "volume"),
    [(ball(0.7), 2, 4 / 3 * math.pi * 0.7**3), (torus(0.55, 0.25), 0, 2 * math.pi**2 * 0.55 * 0.25**2)],
)
def test_a_ball_and_a_torus_are_closed_oriented_in_place_and_of_their_genus(
    distance: Distance, euler: int, volume: float
) -> None:
    vertices, found = march(distance, 24)
    faces = found.faces.numpy()
    assert is_watertight(faces)
    assert trimesh.Trimesh(vertices.numpy(), faces, process=False).euler_number == euler
    assert face_volumes(vertices.numpy(), faces).sum() == pytest.approx(volume, rel=0.02)  # positive: outward
    assert distance(vertices).abs().max() < 0.004  # of a cell of .083: a chord's sagitta


def test_a_plane_is_met_exactly() -> None:
    normal = torch.tensor([0.36, -0.48, 0.8])
    vertices, found = march(lambda points: points @ normal - 0.1, 12)
    inside = vertices.abs().amax(1) < 0.65
    assert inside.sum() > 50 and ((vertices @ normal - 0.1).abs()[inside] < 0.003).all()
    assert is_watertight(found.faces.numpy())  # closed beyond, although the plane leaves the grid


@pytest.mark.parametrize("seed", range(3))
def test_any_signs_make_a_closed_surface(seed: int) -> None:
    """Noise of both signs at every vertex: each edge between exactly two faces, once in each direction."""
    grid = TetrahedralGrid(6)
    found = march_tetrahedra(grid, torch.randn(grid.count, generator=torch.Generator().manual_seed(seed)))
    vertices = found.interpolate(grid.points).numpy()
    assert len(found.faces) > 500 and is_watertight(found.faces.numpy())
    assert len(np.unique(vertices, axis=0)) == len(vertices)
    full = march_tetrahedra(grid, -torch.ones(grid.count))
    assert is_watertight(full.faces.numpy()) and len(march_tetrahedra(grid, torch.ones(grid.count)).faces) == 0


def test_the_tetrahedra_fill_the_grid_whatever_the_offsets() -> None:
    grid = TetrahedralGrid(5)
    checkered = torch.zeros(grid.count, dtype=torch.bool)
    checkered[(grid.cells + 1) ** 3 :] = True  # centres in, corners out: all of them are mixed
    tetrahedra = _mixed_tetrahedra(grid, checkered)
    assert len(tetrahedra) == 12 * 5 * 5 * 4
    generator = torch.Generator().manual_seed(0)
    for raw in (torch.zeros(grid.count, 3), 1e3 * torch.randn(grid.count, 3, generator=generator)):
        a, b, c, d = grid.offset_points(raw).double()[tetrahedra].unbind(1)
        volume = (torch.linalg.cross(b - a, c - a) * (d - a)).sum(-1) / 6
        assert (volume > 0).all()
        assert torch.allclose(
            (grid.offset_points(raw) - grid.points).abs().amax(), raw.abs().amax().clamp_max(1) * OFFSET * 0.4
        )
    with pytest.raises(ValueError, match="3 cells along an edge: choose from 4 to 256"):
        TetrahedralGrid(3)


def test_the_gradient_of_a_vertex_is_a_finite_difference() -> None:
    """With respect to the distances and the offsets of the grid's vertices around it, in float64."""
    grid = TetrahedralGrid(6)
    generator = torch.Generator().manual_seed(4)
    distance = (ball(0.63)(grid.points) + 0.02 * torch.randn(grid.count, generator=generator)).double()
    raw = 0.3 * torch.randn(grid.count, 3, generator=generator).double()
    weights: Tensor | None = None

    def total(distance: Tensor, raw: Tensor) -> Tensor:
        nonlocal weights
        found = march_tetrahedra(grid, distance)
        vertices = found.interpolate(grid.offset_points(raw))
        if weights is None:
            weights = torch.randn(vertices.shape, generator=generator).double()
        return (vertices * weights).sum()

    leaves = [distance.clone().requires_grad_(), raw.clone().requires_grad_()]
    gradients = torch.autograd.grad(total(*leaves), leaves)
    for which, (value, gradient) in enumerate(zip((distance, raw), gradients, strict=True)):
        touched = gradient.flatten().abs().topk(40).indices
        for place in touched.tolist():
            step = torch.zeros(value.numel()).double()
            step[place] = 1e-7
            moved = [[distance, raw], [distance, raw]]
            moved[0][which], moved[1][which] = value + step.view_as(value), value - step.view_as(value)
            slope = (total(*moved[0]) - total(*moved[1])) / 2e-7
            assert float(slope) == pytest.approx(float(gradient.flatten()[place]), rel=1e-4)
