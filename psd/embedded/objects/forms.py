"""The ten primitives as meshes, in proportions that vary a little: solids of revolution, prisms and a star.

Each function takes a generator (None: the middle of every range) and gives vertices ``n 3`` and faces ``m 3``,
standing upright, of any size: `psd.embedded.objects.assemble` centres and scales them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd.embedded.objects.draws import draw_between

Surface = tuple[Float[Tensor, "n 3"], Int[Tensor, "m 3"]]
ROUND = 40  # corners of a circle
PROFILE = 20  # steps along half a circle


def make_sphere(generator: torch.Generator | None) -> Surface:
    return revolve(arc((0, 0), 1, -90, 90))


def make_cone(generator: torch.Generator | None) -> Surface:
    return revolve([(0, -1), (draw_between(0.75, 0.95, generator), -1), (0, 1)])


def make_cylinder(generator: torch.Generator | None) -> Surface:
    radius = draw_between(0.65, 0.85, generator)
    return revolve([(0, -1), (radius, -1), (radius, 1), (0, 1)])


def make_torus(generator: torch.Generator | None) -> Surface:
    """Upright, its hole facing the front: lying down its hole would be hidden from most elevations."""
    vertices, faces = revolve(arc((1, 0), draw_between(0.3, 0.42, generator), 0, 360))
    return vertices[:, [2, 1, 0]] * torch.tensor([1, 1, -1]), faces


def make_capsule(generator: torch.Generator | None) -> Surface:
    radius = draw_between(0.42, 0.52, generator)
    return revolve([*arc((0, radius - 1), radius, -90, 0), *arc((0, 1 - radius), radius, 0, 90)])


def make_cube(generator: torch.Generator | None) -> Surface:
    vertices, faces = revolve([(0, -1), (math.sqrt(2), -1), (math.sqrt(2), 1), (0, 1)], corners=4)
    return vertices * torch.tensor([1, draw_between(0.92, 1.08, generator), draw_between(0.92, 1.08, generator)]), faces


def make_pyramid(generator: torch.Generator | None) -> Surface:
    side, half_height = draw_between(0.85, 1.05, generator), draw_between(0.75, 0.9, generator)
    return revolve([(0, -half_height), (side * math.sqrt(2), -half_height), (0, half_height)], corners=4)


def make_diamond(generator: torch.Generator | None) -> Surface:
    """An octahedron, higher than wide."""
    wide, high = draw_between(0.72, 0.85, generator), draw_between(1.0, 1.15, generator)
    return revolve([(0, -high), (wide, 0), (0, high)], corners=4, turn_deg=0)


def make_prism(generator: torch.Generator | None) -> Surface:
    """Six-sided, standing on its base."""
    radius, half_height = draw_between(0.72, 0.87, generator), draw_between(0.85, 1.0, generator)
    return revolve([(0, -half_height), (radius, -half_height), (radius, half_height), (0, half_height)], corners=6)


def make_star(generator: torch.Generator | None) -> Surface:
    """Five points, upright, facing the front; its middle is thicker than its points."""
    inner, thick = draw_between(0.42, 0.5, generator), draw_between(0.2, 0.3, generator)
    angles = torch.arange(10) * math.pi / 5
    radii = torch.tensor([1.0, inner] * 5)
    outline = torch.stack([torch.zeros(10), radii * angles.sin(), radii * angles.cos()], dim=1)
    edge = torch.tensor([0.35 * thick, 0, 0])
    tips = torch.tensor([[thick, 0.0, 0.0], [-thick, 0.0, 0.0]])
    faces = []
    for i in range(10):
        j = (i + 1) % 10
        faces += [(j, i, 20), (10 + i, 10 + j, 21), (10 + i, i, j), (10 + i, j, 10 + j)]
    return torch.cat([outline + edge, outline - edge, tips]), torch.tensor(faces)


def arc(centre: tuple[float, float], radius: float, start_deg: float, stop_deg: float) -> list[tuple[float, float]]:
    """Points (distance from the axis, height) on a circle, from the lower angle to the upper; 0 points outwards."""
    steps = max(2, round(PROFILE * abs(stop_deg - start_deg) / 180))
    angles = [math.radians(start_deg + (stop_deg - start_deg) * i / steps) for i in range(steps + 1)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def revolve(profile: Sequence[tuple[float, float]], *, corners: int = ROUND, turn_deg: float | None = None) -> Surface:
    """The surface that a profile (distance from the axis, height) sweeps round +z; few corners make a prism.

    ``turn_deg`` is the azimuth of the first corner; left out, a flat side faces the front.  Faces without area stay
    in: they cover no pixel.
    """
    turn = math.pi / corners if turn_deg is None else math.radians(turn_deg)
    angle = turn + torch.arange(corners) * 2 * math.pi / corners
    radius, height = torch.tensor(profile, dtype=torch.float32).T
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    vertices = torch.cat([radius[:, None, None] * ring, height[:, None, None].expand(-1, corners, 1)], dim=2).reshape(
        -1, 3
    )
    row, column = torch.meshgrid(torch.arange(len(profile) - 1), torch.arange(corners), indexing="ij")
    low, next_low = row * corners + column, row * corners + (column + 1) % corners
    high, next_high = low + corners, next_low + corners
    faces = torch.stack([torch.stack([low, next_low, next_high], -1), torch.stack([low, next_high, high], -1)])
    return vertices, faces.reshape(-1, 3)


FORMS: dict[str, Callable[[torch.Generator | None], Surface]] = {
    "sphere": make_sphere,
    "cone": make_cone,
    "cylinder": make_cylinder,
    "torus": make_torus,
    "capsule": make_capsule,
    "cube": make_cube,
    "pyramid": make_pyramid,
    "diamond": make_diamond,
    "prism": make_prism,
    "star": make_star,
}
