"""The vocabulary in which objects are written down: coloured solids in world axes, and varied proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

RGB = tuple[float, float, float]  # sRGB in [0, 1]
XYZ = tuple[float, float, float]
Choice = TypeVar("Choice")

# Colours of the parts that no colour word means.
WHITE, BLACK, GREY, DARK = (0.95, 0.95, 0.93), (0.1, 0.1, 0.1), (0.6, 0.62, 0.65), (0.3, 0.3, 0.33)
WOOD, TAN, DOUGH = (0.5, 0.32, 0.16), (0.85, 0.62, 0.35), (0.87, 0.66, 0.38)
RED, ORANGE, YELLOW, GREEN = (0.85, 0.12, 0.1), (0.97, 0.5, 0.08), (0.98, 0.86, 0.25), (0.2, 0.58, 0.2)
GLASS, CREAM = (0.62, 0.84, 0.95), (0.96, 0.9, 0.75)


@dataclass(frozen=True)
class Part:
    """One solid of ``psd.embedded.objects.solids``: scaled in its own frame, tilted about one axis, then moved to
    ``at``.
    """

    solid: str
    size: tuple[float, float, float, float]
    at: XYZ
    colour: RGB
    scale: XYZ = (1.0, 1.0, 1.0)
    tilt: tuple[str, float] = ("z", 0.0)  # axis, degrees

    def linear(self) -> list[list[float]]:
        """The 3x3 matrix from the solid's frame to the world, rotation times scale."""
        axis, angle = self.tilt[0], math.radians(self.tilt[1])
        c, s = math.cos(angle), math.sin(angle)
        rotation = {
            "x": ((1, 0, 0), (0, c, -s), (0, s, c)),
            "y": ((c, 0, s), (0, 1, 0), (-s, 0, c)),
            "z": ((c, -s, 0), (s, c, 0), (0, 0, 1)),
        }[axis]
        return [[entry * scale for entry, scale in zip(row, self.scale, strict=True)] for row in rotation]


@dataclass(frozen=True)
class Draw:
    """Proportions: random from ``generator``, or the canonical ones (middle of each range, first choice) without."""

    generator: torch.Generator | None

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._draw_uniform(0.5)

    def choose(self, options: Sequence[Choice]) -> Choice:
        return options[int(self._draw_uniform(0.0) * len(options))]

    def _draw_uniform(self, canonical: float) -> float:
        return canonical if self.generator is None else torch.rand((), generator=self.generator).item()


def contrasting_colour(main: RGB, *options: RGB) -> RGB:
    """The first of ``options`` that differs from ``main`` at a glance (the last one at worst)."""
    return next((option for option in options if math.dist(option, main) > 0.35), options[-1])


def ellipsoid(
    radii: XYZ | float, at: XYZ, colour: RGB, *, above: float = -1.0, tilt: tuple[str, float] = ("z", 0)
) -> Part:
    """Ellipsoid, or its dome above the height ``above`` (a share of the vertical radius, -1: all of it)."""
    scale = radii if isinstance(radii, tuple) else (radii, radii, radii)
    return Part("ball", (above, 0, 0, 0), at, colour, scale, tilt)


def box(half: XYZ, at: XYZ, colour: RGB, *, rounding: float = 0.0, tilt: tuple[str, float] = ("z", 0)) -> Part:
    """Box of half sides ``half``, its edges rounded inside them."""
    x, y, z = (side - rounding for side in half)
    return Part("box", (x, y, z, rounding), at, colour, tilt=tilt)


def capsule(radius: float, half_height: float, at: XYZ, colour: RGB, *, tilt: tuple[str, float] = ("z", 0)) -> Part:
    """Rod with round ends, upright unless tilted; ``half_height`` includes the ends."""
    return Part("box", (0, 0, half_height - radius, radius), at, colour, tilt=tilt)


def cone(
    bottom: float, top: float, half_height: float, at: XYZ, colour: RGB, *,
    rounding: float = 0.0, tilt: tuple[str, float] = ("z", 0),
) -> Part:  # fmt: skip
    """Cone, frustum or cylinder from radius ``bottom`` up to ``top``; rounding stays inside the given sizes."""
    size = (max(bottom - rounding, 0), max(top - rounding, 0), half_height - rounding, rounding)
    return Part("frustum", size, at, colour, tilt=tilt)


def tube(radius: float, wall: float, half_height: float, at: XYZ, colour: RGB) -> Part:
    """Upright tube of outer radius ``radius``."""
    rounding = wall / 3
    return Part("tube", (radius - wall / 2, wall / 2 - rounding, half_height - rounding, rounding), at, colour)


def ring(
    radius: float, thickness: float, at: XYZ, colour: RGB, *,
    half_angle_deg: float = 180.0, tilt: tuple[str, float] = ("z", 0),
) -> Part:  # fmt: skip
    """Lying ring (middle radius, radius of the wire), or its arc within ``half_angle_deg`` of +y before the tilt."""
    return Part("torus", (radius, thickness, math.radians(half_angle_deg), 0), at, colour, tilt=tilt)
