"""How food, plants and animals are put together: one function a noun, +z up, its front towards +x, any size and place.

Each takes the colour of its main parts (the parts that the caption's colour word and stripes mean) and a ``Draw`` for
proportions.  Parts that touch overlap a little, so that no background shines through a joint.  Thin parts are at
least .05 of an object about 1.6 across: three pixels at 64 x 64.
"""

from __future__ import annotations

import math

from psd.embedded.objects.parts import (
    BLACK,
    CREAM,
    DOUGH,
    GLASS,
    GREEN,
    GREY,
    ORANGE,
    RED,
    RGB,
    TAN,
    WHITE,
    WOOD,
    YELLOW,
    Draw,
    Part,
    box,
    capsule,
    cone,
    contrasting_colour,
    ellipsoid,
    ring,
)

# Food ----------------------------------------------------------------------------------------------------------------


def build_mushroom(main: RGB, draw: Draw) -> list[Part]:
    stem, height, cap, dome = (
        draw.between(0.2, 0.28),
        draw.between(0.4, 0.55),
        draw.between(0.68, 0.85),
        draw.between(0.5, 0.65),
    )
    spots = contrasting_colour(main, WHITE, BLACK)
    parts = [
        cone(stem * 1.2, stem, height, (0, 0, 0), contrasting_colour(main, CREAM, TAN), rounding=0.06),
        ellipsoid((cap, cap, dome), (0, 0, height - 0.12), main, above=0.0),
    ]
    start = draw.between(0, 60)
    for i in range(draw.choose((6, 0, 5))):
        azimuth, slope = math.radians(start + 60 * i), math.radians(draw.between(28, 48))
        at = (
            cap * math.cos(slope) * math.cos(azimuth),
            cap * math.cos(slope) * math.sin(azimuth),
            dome * math.sin(slope),
        )
        parts.append(ellipsoid(0.11, (0.96 * at[0], 0.96 * at[1], height - 0.12 + 0.96 * at[2]), spots))
    return parts


def build_ice_cream_cone(main: RGB, draw: Draw) -> list[Part]:
    height, scoop = draw.between(0.55, 0.7), draw.between(0.4, 0.48)
    parts = [
        cone(0.06, scoop * 0.9, height, (0, 0, 0), contrasting_colour(main, TAN, (0.72, 0.45, 0.2)), rounding=0.02),
        ellipsoid(scoop, (0, 0, height + scoop * 0.55), main),
        ring(scoop * 0.85, 0.1, (0, 0, height + 0.03), main),
    ]
    if draw.choose((False, True)):
        parts.append(ellipsoid(scoop * 0.72, (0, 0, height + scoop * 1.7), main))
    return parts


def build_lollipop(main: RGB, draw: Draw) -> list[Part]:
    radius, stick = draw.between(0.42, 0.52), draw.between(0.5, 0.62)
    swirl = contrasting_colour(main, WHITE, RED)
    face = 0.15
    return [
        capsule(0.06, stick, (0, 0, -stick - radius + 0.15), contrasting_colour(main, WHITE, GREY)),
        cone(radius, radius, face, (0, 0, 0), main, rounding=0.08, tilt=("y", 90)),
        ring(radius * 0.5, 0.05, (face - 0.01, 0, 0), swirl, tilt=("y", 90)),
        ring(radius * 0.5, 0.05, (0.01 - face, 0, 0), swirl, tilt=("y", 90)),
    ]


def build_donut(main: RGB, draw: Draw) -> list[Part]:
    thickness = draw.between(0.3, 0.37)
    parts = [
        ring(0.7, thickness, (0, 0, 0), contrasting_colour(main, DOUGH, CREAM)),
        ring(0.7, thickness * 0.97, (0, 0, 0.09), main),
    ]
    start = draw.between(0, 40)
    colours = [colour for colour in (WHITE, RED, YELLOW, GREEN, GLASS) if math.dist(colour, main) > 0.35]
    for i in range(draw.choose((9, 0, 7))):
        azimuth, radius = math.radians(start + 40 * i), draw.between(0.6, 0.8)
        at = (radius * math.cos(azimuth), radius * math.sin(azimuth), thickness * 0.97 + 0.08)
        parts.append(ellipsoid((0.1, 0.06, 0.05), at, colours[i % len(colours)], tilt=("z", 70.0 * i)))
    return parts


def build_burger(main: RGB, draw: Draw) -> list[Part]:
    radius, patty = draw.between(0.72, 0.8), draw.between(0.1, 0.14)
    seeds = [
        ellipsoid((0.07, 0.05, 0.05), (0.42 * math.cos(a), 0.42 * math.sin(a), 0.17 + 0.46 * 0.83), CREAM)
        for a in [math.tau / 6 * i for i in range(6)]
    ]
    return [
        cone(radius, radius, 0.15, (0, 0, -0.42), DOUGH, rounding=0.1),
        cone(radius * 1.05, radius * 1.05, patty, (0, 0, -0.2), (0.36, 0.18, 0.09), rounding=0.08),
        box((radius * 0.78, radius * 0.78, 0.04), (0, 0, -0.06), (0.99, 0.78, 0.15), tilt=("z", draw.between(0, 40))),
        cone(radius * 1.1, radius * 1.1, 0.06, (0, 0, 0.04), (0.45, 0.75, 0.2), rounding=0.05),
        cone(radius * 0.95, radius * 0.95, 0.05, (0, 0, 0.13), RED, rounding=0.03),
        ellipsoid((radius, radius, draw.between(0.42, 0.5)), (0, 0, 0.16), (0.82, 0.54, 0.24), above=0.0),
        *seeds,
    ]


def build_cupcake(main: RGB, draw: Draw) -> list[Part]:
    base, wide = draw.between(0.36, 0.42), draw.between(0.52, 0.6)
    cup = contrasting_colour(main, (0.62, 0.4, 0.24), CREAM)
    return [
        cone(base, wide, 0.36, (0, 0, -0.36), cup, rounding=0.03),
        ellipsoid((wide * 1.08, wide * 1.08, 0.3), (0, 0, 0.08), main),
        ellipsoid((wide * 0.8, wide * 0.8, 0.26), (0, 0, 0.3), main),
        ellipsoid((wide * 0.5, wide * 0.5, 0.26), (0, 0, 0.5), main),
        ellipsoid(0.13, (0, 0, 0.78), contrasting_colour(main, RED, YELLOW)),
    ]


# Plants and animals --------------------------------------------------------------------------------------------------


def build_tree(main: RGB, draw: Draw) -> list[Part]:
    trunk, height = draw.between(0.11, 0.16), draw.between(0.35, 0.5)
    parts = [cone(trunk * 1.25, trunk, height, (0, 0, 0), contrasting_colour(main, WOOD, (0.28, 0.16, 0.08), GREY))]
    if draw.choose(("round", "fir")) == "fir":
        for i in range(3):
            parts.append(cone(0.62 - 0.13 * i, 0.06, 0.32, (0, 0, height + 0.12 + 0.32 * i), main, rounding=0.03))
        return parts
    crown = draw.between(0.48, 0.58)
    parts.append(ellipsoid((crown, crown, crown * 1.05), (0, 0, height + crown * 0.75), main))
    start = draw.between(0, 90)
    for i in range(4):
        azimuth = math.radians(start + 90 * i)
        at = (crown * 0.6 * math.cos(azimuth), crown * 0.6 * math.sin(azimuth), height + crown * (0.5 + 0.25 * (i % 2)))
        parts.append(ellipsoid(crown * 0.6, at, main))
    return parts


def build_cactus(main: RGB, draw: Draw) -> list[Part]:
    body, tall = draw.between(0.17, 0.22), draw.between(0.62, 0.75)
    parts = [
        cone(0.26, 0.36, 0.22, (0, 0, -tall - 0.05), contrasting_colour(main, (0.8, 0.42, 0.25), GREY), rounding=0.02),
        capsule(body, tall, (0, 0, 0), main),
    ]
    for side in (1, -1):
        height, reach, arm = draw.between(-0.15, 0.15), draw.between(0.38, 0.44), draw.between(0.2, 0.28)
        parts.append(capsule(0.1, reach / 2 + 0.1, (0, side * reach / 2, height), main, tilt=("x", 90)))
        parts.append(capsule(0.1, arm + 0.1, (0, side * reach, height + arm), main))
    return parts


def build_flower(main: RGB, draw: Draw) -> list[Part]:
    petals, radius, stem = draw.choose((6, 5, 7)), draw.between(0.3, 0.36), draw.between(0.5, 0.62)
    parts = [
        ellipsoid((0.14, 0.2, 0.2), (0.08, 0, 0), contrasting_colour(main, YELLOW, WOOD)),
        capsule(0.06, stem, (-0.05, 0, -stem), contrasting_colour(main, GREEN, (0.1, 0.35, 0.12))),
        ellipsoid(
            (0.06, 0.26, 0.12),
            (-0.05, 0.22, -stem * 1.2),
            contrasting_colour(main, GREEN, (0.1, 0.35, 0.12)),
            tilt=("x", 35),
        ),
    ]
    for i in range(petals):
        angle = 360 / petals * i
        y, z = radius * math.sin(math.radians(-angle)), radius * math.cos(math.radians(-angle))
        parts.append(ellipsoid((0.1, 0.16, 0.24), (0, y, z), main, tilt=("x", angle)))
    return parts


def build_duck(main: RGB, draw: Draw) -> list[Part]:
    head, neck = draw.between(0.27, 0.33), draw.between(0.48, 0.56)
    front = 0.28
    eyes = contrasting_colour(main, BLACK, WHITE)
    return [
        ellipsoid((0.62, 0.42, 0.36), (0, 0, 0), main),
        ellipsoid((0.26, 0.2, 0.12), (-0.55, 0, 0.18), main, tilt=("y", 40)),
        ellipsoid((0.22, 0.2, 0.3), (front, 0, neck * 0.6), main),
        ellipsoid(head, (front, 0, neck), main),
        ellipsoid((0.2, 0.15, 0.08), (front + head + 0.05, 0, neck - 0.04), contrasting_colour(main, ORANGE, YELLOW)),
        *[ellipsoid(0.07, (front + head * 0.78, side * head * 0.55, neck + head * 0.35), eyes) for side in (1, -1)],
    ]


def build_snowman(main: RGB, draw: Draw) -> list[Part]:
    low, middle, top = draw.between(0.4, 0.46), draw.between(0.29, 0.34), draw.between(0.21, 0.25)
    waist, neck = low + middle * 0.72, low + middle * 1.5 + top * 0.7
    coal, hat = contrasting_colour(main, BLACK, WHITE), contrasting_colour(main, BLACK, RED)
    return [
        ellipsoid(low, (0, 0, 0), main),
        ellipsoid(middle, (0, 0, waist), main),
        ellipsoid(top, (0, 0, neck), main),
        cone(0.07, 0.01, 0.14, (top + 0.08, 0, neck), contrasting_colour(main, ORANGE, YELLOW), tilt=("y", 90)),
        *[ellipsoid(0.05, (top * 0.84, side * top * 0.42, neck + top * 0.38), coal) for side in (1, -1)],
        *[ellipsoid(0.05, (middle * 0.97, 0, waist + offset), coal) for offset in (-0.1, 0.08)],
        cone(top * 1.15, top * 1.15, 0.04, (0, 0, neck + top * 0.75), hat, rounding=0.02),
        cone(top * 0.75, top * 0.75, 0.16, (0, 0, neck + top * 0.75 + 0.15), hat, rounding=0.02),
    ]


NATURE = {
    "mushroom": build_mushroom,
    "ice cream cone": build_ice_cream_cone,
    "lollipop": build_lollipop,
    "donut": build_donut,
    "burger": build_burger,
    "cupcake": build_cupcake,
    "tree": build_tree,
    "cactus": build_cactus,
    "flower": build_flower,
    "duck": build_duck,
    "snowman": build_snowman,
}
