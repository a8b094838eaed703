"""Marching tetrahedra: the surface where a signed distance changes its sign, differentiable in torch.

The grid is made in code: the corners and the centres of cubic cells (a body-centred lattice), each pair of
neighbouring centres with each edge of the face between them a tetrahedron.  All tetrahedra are alike, and none of the
axes and diagonals is preferred, unlike in cubes that are cut.  Every sign pattern gives a closed, oriented surface
(Doi and Koide 1991), and there is nothing ambiguous to decide.  Axes: n grid vertices, k surface vertices, m faces, t
tetrahedra.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import permutations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The farthest that a grid vertex may move along an axis, in edges of a cell: about half of what two neighbours have.
OFFSET = 0.2
# A surface vertex keeps this share of its edge from the edge's ends: neighbours that met would make faces of no area.
MARGIN = 0.01


@dataclass(frozen=True)
class TetrahedralGrid:
    """The lattice over [-1, 1]^3: (cells + 1)^3 corners, then cells^3 centres; x changes slowest in both."""

    cells: int
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if not 4 <= self.cells <= 256:
            raise ValueError(f"a tetrahedral grid of {self.cells} cells along an edge: choose from 4 to 256")

    @property
    def count(self) -> int:
        """n."""
        return (self.cells + 1) ** 3 + self.cells**3

    @cached_property
    def points(self) -> Float[Tensor, "n 3"]:
        axis = torch.linspace(-1, 1, self.cells + 1, device=self.device)
        middle = (axis[1:] + axis[:-1]) / 2
        return torch.cat([torch.cartesian_prod(line, line, line) for line in (axis, middle)])

    @cached_property
    def rim(self) -> Bool[Tensor, " n"]:
        """The outermost vertices: those of tetrahedra that are missing; a surface closes where they are outside."""
        parts = []
        for size in (self.cells + 1, self.cells):
            line = torch.zeros(size, dtype=torch.bool, device=self.device)
            line[0] = line[-1] = True
            parts.append((line[:, None, None] | line[:, None] | line).flatten())
        return torch.cat(parts)

    def offset_points(self, raw: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """The grid with each vertex moved by tanh(raw), at most `OFFSET` edges of a cell along each axis."""
        return self.points + raw.tanh() * (OFFSET * 2 / self.cells)


@dataclass(frozen=True, eq=False)
class Crossings:
    """A surface and where its vertices lie on the grid's edges: at ``ends[0] + share (ends[1] - ends[0])``."""

    faces: Int[Tensor, "m 3"]  # counter-clockwise seen from outside
    ends: Int[Tensor, "k 2"]
    share: Float[Tensor, " k"]  # differentiable

    def interpolate(self, values: Float[Tensor, "n c"]) -> Float[Tensor, "k c"]:
        """Values of the grid's vertices on the surface, linear along the edges."""
        first, last = (values.index_select(0, self.ends[:, end]) for end in (0, 1))
        return first + self.share[:, None] * (last - first)


def march_tetrahedra(grid: TetrahedralGrid, distance: Float[Tensor, " n"]) -> Crossings:
    """The surface of where ``distance``, in edges of a cell, is negative; no vertices where it never is.

    Beyond the rim nothing is inside: a surface that would cross it is closed there.
    """
    distance = torch.where(grid.rim, 1.0, distance)
    with torch.no_grad():
        inside = distance < 0
        corners = _mixed_tetrahedra(grid, inside)  # t 4
        code = (inside[corners].long() << torch.arange(4, device=corners.device)).sum(1)
        table = _make_table().to(corners.device)[code]  # t 2 3 2
        tetrahedron, which = (table[:, :, 0, 0] >= 0).nonzero().unbind(1)
        pairs = corners[tetrahedron].gather(1, table[tetrahedron, which].flatten(1)).view(-1, 2)
        one, other = pairs.unbind(1)
        low, high = torch.minimum(one, other), torch.maximum(one, other)  # a reduction takes 20 times as long
        key, number = torch.unique(low * grid.count + high, return_inverse=True)
        ends = torch.stack([key // grid.count, key % grid.count], dim=1)
    first, last = distance.index_select(0, ends[:, 0]), distance.index_select(0, ends[:, 1])
    share = first / (first - last)
    share = share + (share.clamp(MARGIN, 1 - MARGIN) - share).detach()  # a vertex at the margin still learns
    return Crossings(number.view(-1, 3), ends, share)


def _mixed_tetrahedra(grid: TetrahedralGrid, inside: Bool[Tensor, " n"]) -> Int[Tensor, "t 4"]:
    """The tetrahedra of those pairs of cells around which signs differ, positively oriented."""
    size, corners = grid.cells, (grid.cells + 1) ** 3
    at_corner, at_centre = inside[:corners].view((size + 1,) * 3), inside[corners:].view((size,) * 3)
    found = []
    for axis in range(3):
        around = ((0, 0), (1, 0), (1, 1), (0, 1))  # counter-clockwise about the axis
        others = ((axis + 1) % 3, (axis + 2) % 3)
        signs = [at_centre.narrow(axis, start, size - 1) for start in (0, 1)]
        for shift in around:
            part = at_corner.narrow(axis, 1, size - 1)
            for other, begin in zip(others, shift, strict=True):
                part = part.narrow(other, begin, size)
            signs.append(part)
        some, every = signs[0], signs[0]
        for sign in signs[1:]:
            some, every = some | sign, every & sign
        place = (some & ~every).nonzero()
        step = torch.eye(3, dtype=torch.long, device=place.device)
        centres = [corners + _flat_index(place + move, size) for move in (0 * step[axis], step[axis])]
        ring = [
            _flat_index(place + step[axis] + a * step[others[0]] + b * step[others[1]], size + 1) for a, b in around
        ]
        found += [torch.stack([*centres, ring[i], ring[(i + 1) % 4]], dim=1) for i in range(4)]
    return torch.cat(found)


def _flat_index(place: Int[Tensor, "t 3"], size: int) -> Int[Tensor, " t"]:
    return (place[:, 0] * size + place[:, 1]) * size + place[:, 2]


@cache
def _make_table() -> Int[Tensor, "16 2 3 2"]:
    """For each pattern of inside corners (bit i: corner i) up to two faces of three edges, each a pair of corners.

    Of a positively oriented tetrahedron; -1 where there is no face.
    """
    table = torch.full((16, 2, 3, 2), -1)
    for i, j, k, l in permutations(range(4)):  # noqa: E741
        if sum(a > b for at, a in enumerate((i, j, k, l)) for b in (i, j, k, l)[at + 1 :]) % 2:
            continue  # only turns of the tetrahedron, no mirror images
        table[1 << i] = -1
        table[1 << i, 0] = torch.tensor([(i, j), (i, k), (i, l)])
        table[15 - (1 << i)] = -1
        table[15 - (1 << i), 0] = torch.tensor([(i, j), (i, l), (i, k)])
        table[(1 << i) | (1 << j), 0] = torch.tensor([(i, k), (i, l), (j, l)])
        table[(1 << i) | (1 << j), 1] = torch.tensor([(i, k), (j, l), (j, k)])
    return table
