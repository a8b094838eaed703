"""The primitives, each of one part: their proportions vary little, so that no modifier is imitated.

One function a noun, as in ``psd.embedded.objects.nature``.
"""

from __future__ import annotations

from psd.embedded.objects.parts import RGB, Draw, Part, box, capsule, cone, ellipsoid, ring


def build_sphere(main: RGB, draw: Draw) -> list[Part]:
    return [ellipsoid(1.0, (0, 0, 0), main)]


def build_cube(main: RGB, draw: Draw) -> list[Part]:
    return [
        box((1, draw.between(0.92, 1.08), draw.between(0.92, 1.08)), (0, 0, 0), main, rounding=draw.between(0.0, 0.12))
    ]


def build_cone(main: RGB, draw: Draw) -> list[Part]:
    return [cone(draw.between(0.75, 0.95), 0.0, 1.0, (0, 0, 0), main, rounding=draw.between(0.0, 0.05))]


def build_cylinder(main: RGB, draw: Draw) -> list[Part]:
    radius = draw.between(0.65, 0.85)
    return [cone(radius, radius, 1.0, (0, 0, 0), main, rounding=draw.between(0.0, 0.1))]


def build_torus(main: RGB, draw: Draw) -> list[Part]:
    # Upright, facing the front: lying down its hole would be hidden from most elevations.
    return [ring(1.0, draw.between(0.3, 0.42), (0, 0, 0), main, tilt=("y", 90))]


def build_pyramid(main: RGB, draw: Draw) -> list[Part]:
    side = draw.between(0.85, 1.05)
    return [Part("pyramid", (side, side, draw.between(0.75, 0.9), 0), (0, 0, 0), main)]


def build_capsule(main: RGB, draw: Draw) -> list[Part]:
    return [capsule(draw.between(0.42, 0.52), 1.0, (0, 0, 0), main)]


def build_diamond(main: RGB, draw: Draw) -> list[Part]:
    wide, high = draw.between(0.72, 0.85), draw.between(1.0, 1.15)
    return [Part("octahedron", (1, 0, 0, 0), (0, 0, 0), main, (wide, wide, high))]


def build_prism(main: RGB, draw: Draw) -> list[Part]:
    return [Part("hexagon", (draw.between(0.62, 0.75), 0, draw.between(0.85, 1.0), 0), (0, 0, 0), main)]


def build_star(main: RGB, draw: Draw) -> list[Part]:
    return [Part("star", (1, draw.between(0.42, 0.5), draw.between(0.2, 0.3), 0), (0, 0, 0), main)]


PRIMITIVES = {
    "sphere": build_sphere,
    "cone": build_cone,
    "cylinder": build_cylinder,
    "torus": build_torus,
    "capsule": build_capsule,
    "cube": build_cube,
    "pyramid": build_pyramid,
    "diamond": build_diamond,
    "prism": build_prism,
    "star": build_star,
}
