"""Signed distances of a few solids, in their own frame (+z up): each exact, or a lower bound that never oversteps.

Every function takes points ``p`` (3 n: rows x, y, z) and per-point sizes ``s`` (4 n), and returns n distances,
negative inside.  ``OUTLINES`` holds, for the same sizes, points whose convex hull contains the solid.
Exact formulas after Inigo Quilez, "Distance functions".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "3 n"]
Sizes = Float[Tensor, "4 n"]
Distances = Float[Tensor, " n"]


def ball(p: Points, s: Sizes) -> Distances:
    """Unit ball, only its part above z = s0 (s0 = -1: all of it). Ellipsoids and domes are its linear images."""
    return torch.maximum(_vector_length(p[0], p[1], p[2]) - 1, s[0] - p[2])


def box(p: Points, s: Sizes) -> Distances:
    """Box of half sides s0, s1, s2 with edges rounded by s3 outwards; (0, 0, h, r) is a capsule."""
    x, y, z = p[0].abs() - s[0], p[1].abs() - s[1], p[2].abs() - s[2]
    outside = _vector_length(x.clamp(min=0), y.clamp(min=0), z.clamp(min=0))
    return outside + torch.maximum(x, torch.maximum(y, z)).clamp(max=0) - s[3]


def frustum(p: Points, s: Sizes) -> Distances:
    """Cone between z = -s2 (radius s0) and z = s2 (radius s1), rounded by s3; equal radii make a cylinder."""
    r, z = torch.hypot(p[0], p[1]), p[2]
    cap_r = r - torch.minimum(r, torch.where(z < 0, s[0], s[1]))
    cap_z = z.abs() - s[2]
    along_r, along_z = s[1] - s[0], 2 * s[2]
    share = (((s[1] - r) * along_r + (s[2] - z) * along_z) / (along_r * along_r + along_z * along_z)).clamp(0, 1)
    side_r, side_z = r - s[1] + along_r * share, z - s[2] + along_z * share
    inside = (side_r < 0) & (cap_z < 0)
    distance = torch.minimum(cap_r * cap_r + cap_z * cap_z, side_r * side_r + side_z * side_z).sqrt()
    return torch.where(inside, -distance, distance) - s[3]


def tube(p: Points, s: Sizes) -> Distances:
    """Upright open tube: middle radius s0, half thickness s1, half height s2, rounded by s3."""
    x, z = (torch.hypot(p[0], p[1]) - s[0]).abs() - s[1], p[2].abs() - s[2]
    return torch.hypot(x.clamp(min=0), z.clamp(min=0)) + torch.maximum(x, z).clamp(max=0) - s[3]


def torus(p: Points, s: Sizes) -> Distances:
    """Ring of radius s0 and thickness radius s1 in the xy plane, cut to the angle s2 (radians) either side of +y."""
    x, y = p[0].abs(), p[1]
    sine, cosine = s[2].sin(), s[2].cos()
    reach = torch.where(cosine * x > sine * y, x * sine + y * cosine, torch.hypot(x, y))
    squared = x * x + y * y + p[2] * p[2] + s[0] * s[0] - 2 * s[0] * reach
    return squared.clamp(min=0).sqrt() - s[1]


def octahedron(p: Points, s: Sizes) -> Distances:
    """Octahedron with corners at distance s0 on the axes (lower bound beyond edges and corners)."""
    return (p[0].abs() + p[1].abs() + p[2].abs() - s[0]) * 3**-0.5


def pyramid(p: Points, s: Sizes) -> Distances:
    """Square pyramid: base of half sides s0 (x) and s1 (y) at z = -s2, apex at z = s2 (lower bound beyond edges)."""
    height = s[2] - p[2]
    x = (2 * s[2] * p[0].abs() - s[0] * height) / torch.hypot(2 * s[2], s[0])
    y = (2 * s[2] * p[1].abs() - s[1] * height) / torch.hypot(2 * s[2], s[1])
    return torch.maximum(torch.maximum(x, y), -s[2] - p[2])


def wedge(p: Points, s: Sizes) -> Distances:
    """Gable roof: half length s0 (x), half width s1 (y) at z = -s2, ridge at z = s2 (lower bound beyond edges)."""
    y = (2 * s[2] * p[1].abs() - s[1] * (s[2] - p[2])) / torch.hypot(2 * s[2], s[1])
    return torch.maximum(torch.maximum(y, -s[2] - p[2]), p[0].abs() - s[0])


def hexagon(p: Points, s: Sizes) -> Distances:
    """Upright hexagonal prism: inner radius s0, half height s2 (lower bound beyond edges)."""
    x, y = p[0].abs(), p[1].abs()
    return torch.maximum(torch.maximum(x, 0.5 * x + 0.75**0.5 * y) - s[0], p[2].abs() - s[2])


def star(p: Points, s: Sizes) -> Distances:
    """Five-pointed star in the yz plane, one point up: outer radius s0, inner radius s1, half thickness s2."""
    angle = torch.atan2(p[1], p[2])
    angle = (torch.remainder(angle + math.pi / 5, 2 * math.pi / 5) - math.pi / 5).abs()  # from the nearest point's axis
    radius = torch.hypot(p[1], p[2])
    along, across = radius * angle.cos(), radius * angle.sin()
    tip_to_notch = s[1] * math.cos(math.pi / 5) - s[0], s[1] * math.sin(math.pi / 5)
    dx, dy = along - s[0], across
    length2 = tip_to_notch[0] ** 2 + tip_to_notch[1] ** 2
    share = ((dx * tip_to_notch[0] + dy * tip_to_notch[1]) / length2).clamp(0, 1)
    edge = torch.hypot(dx - share * tip_to_notch[0], dy - share * tip_to_notch[1])
    outline = torch.where(dx * tip_to_notch[1] - dy * tip_to_notch[0] > 0, edge, -edge)
    flat = p[0].abs() - s[2]
    outside = torch.hypot(outline.clamp(min=0), flat.clamp(min=0))
    return outside + torch.maximum(outline, flat).clamp(max=0)


def _vector_length(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * x + y * y + z * z).sqrt()


SOLIDS: dict[str, Callable[[Points, Sizes], Distances]] = {
    solid.__name__: solid for solid in (ball, box, frustum, tube, torus, octahedron, pyramid, wedge, hexagon, star)
}

_CORNERS = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
_TURN = torch.arange(16) * (math.tau / 16)
_CIRCLE = torch.stack([_TURN.cos(), _TURN.sin()], dim=-1) / math.cos(math.pi / 16)  # a polygon around the unit circle


def _ring_points(*radius_and_z: tuple[float, float]) -> Float[Tensor, "n 3"]:
    return torch.cat([torch.cat([_CIRCLE * r, torch.full((16, 1), z)], dim=-1) for r, z in radius_and_z])


def _sphere_points(bottom: float) -> Float[Tensor, "n 3"]:
    """Points around the unit ball above z = ``bottom``: rings of a coarse latitude grid, pushed out to contain it."""
    lowest = math.asin(max(bottom, -1.0))
    step = (math.pi / 2 - lowest) / 8
    latitudes = [lowest + step * i for i in range(9)]
    push = 1 / math.cos(step / 2)
    lowest_z = bottom if bottom > -1 else -push  # a dome ends flat, a ball does not
    return _ring_points(*[(math.cos(a) * push, max(math.sin(a) * push, lowest_z)) for a in latitudes])


def _arc_points(radius: float, thickness: float, angle: float) -> Float[Tensor, "n 3"]:
    """Points around the part of a ring within ``angle`` of +y, its cross section an octagon."""
    corner = thickness * math.tan(math.pi / 8)
    points = _ring_points(
        *[
            (radius + r, z)
            for r, z in ((corner, -thickness), (thickness, -corner), (thickness, corner), (corner, thickness))
        ],
        *[
            (radius - r, z)
            for r, z in ((corner, -thickness), (thickness, -corner), (thickness, corner), (corner, thickness))
        ],
    )
    return points[torch.atan2(points[:, 0].abs(), points[:, 1]) <= angle + thickness / radius]


OUTLINES: dict[str, Callable[[tuple[float, ...]], Float[Tensor, "n 3"]]] = {
    "ball": lambda s: _sphere_points(s[0]),
    "box": lambda s: _CORNERS * torch.tensor([s[0] + s[3], s[1] + s[3], s[2] + s[3]]),
    "frustum": lambda s: _ring_points((s[0] + s[3], -s[2] - s[3]), (s[1] + s[3], s[2] + s[3])),
    "tube": lambda s: _ring_points((s[0] + s[1] + s[3], -s[2] - s[3]), (s[0] + s[1] + s[3], s[2] + s[3])),
    "torus": lambda s: _arc_points(s[0], s[1], s[2]),
    "octahedron": lambda s: torch.cat([torch.eye(3), -torch.eye(3)]) * s[0],
    "pyramid": lambda s: torch.cat(
        [_CORNERS[::2] * torch.tensor([s[0], s[1], s[2]]), torch.tensor([[0.0, 0.0, s[2]]])]
    ),
    "wedge": lambda s: torch.tensor(
        [[x * s[0], y * s[1], z] for x in (-1, 1) for y, z in ((1, -s[2]), (-1, -s[2]), (0, s[2]))]
    ),
    "hexagon": lambda s: _ring_points((s[0] / 0.75**0.5, -s[2]), (s[0] / 0.75**0.5, s[2])),
    "star": lambda s: torch.tensor(
        [
            [x * s[2], s[0] * math.sin(a), s[0] * math.cos(a)]
            for x in (-1, 1)
            for a in [math.tau / 5 * i for i in range(5)]
        ]
    ),
}
