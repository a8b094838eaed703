"""How furniture, houses, vehicles and machines are put together, as in ``psd.embedded.objects.nature``."""

from __future__ import annotations

from psd.embedded.objects.parts import (
    BLACK,
    CREAM,
    DARK,
    GLASS,
    GREY,
    RED,
    RGB,
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
    tube,
)

# Furniture and household ---------------------------------------------------------------------------------------------


def build_table(main: RGB, draw: Draw) -> list[Part]:
    long, deep, height, leg = (
        draw.between(0.75, 0.9),
        draw.between(0.6, 0.72),
        draw.between(0.42, 0.55),
        draw.between(0.06, 0.085),
    )
    if draw.choose(("square", "round")) == "round":
        parts, x, y = [cone(long * 0.9, long * 0.9, 0.07, (0, 0, height), main, rounding=0.02)], long * 0.5, long * 0.5
    else:
        parts, x, y = (
            [box((deep, long, 0.07), (0, 0, height), main, rounding=0.02)],
            deep - leg - 0.04,
            long - leg - 0.04,
        )
    return parts + [box((leg, leg, height), (i * x, j * y, 0), main) for i in (1, -1) for j in (1, -1)]


def build_chair(main: RGB, draw: Draw) -> list[Part]:
    seat, leg, rail = draw.between(0.4, 0.48), draw.between(0.055, 0.07), draw.between(0.07, 0.09)
    legs, back = draw.between(0.34, 0.44), draw.between(0.42, 0.54)
    inset = seat - leg
    return [
        box((seat, seat, 0.07), (0, 0, 0), main, rounding=0.02),
        box((rail, seat, back), (rail - seat, 0, back), main, rounding=0.02),
        *[box((leg, leg, legs), (i * inset, j * inset, -legs), main) for i in (1, -1) for j in (1, -1)],
    ]


def build_lamp(main: RGB, draw: Draw) -> list[Part]:
    wide, pole = draw.between(0.45, 0.55), draw.between(0.42, 0.55)
    metal = contrasting_colour(main, GREY, WOOD)
    return [
        cone(wide, wide * draw.between(0.45, 0.6), 0.3, (0, 0, pole + 0.2), main),
        capsule(0.06, pole + 0.05, (0, 0, 0), metal),
        cone(0.32, 0.26, 0.07, (0, 0, -pole), metal, rounding=0.02),
    ]


def build_mug(main: RGB, draw: Draw) -> list[Part]:
    radius, height = draw.between(0.48, 0.56), draw.between(0.5, 0.62)
    drink = contrasting_colour(main, (0.25, 0.13, 0.06), CREAM)
    return [
        tube(radius, 0.12, height, (0, 0, 0), main),
        cone(radius - 0.03, radius - 0.03, height - 0.06, (0, 0, -0.06), main, rounding=0.03),
        cone(radius - 0.08, radius - 0.08, height - 0.06, (0, 0, -0.04), drink),
        ring(0.28, 0.075, (0, radius - 0.02, 0), main, half_angle_deg=105, tilt=("y", 90)),
    ]


def build_candle(main: RGB, draw: Draw) -> list[Part]:
    radius, height = draw.between(0.22, 0.28), draw.between(0.5, 0.62)
    dish = contrasting_colour(main, (0.72, 0.56, 0.25), GREY)
    return [
        cone(radius, radius, height, (0, 0, 0), main, rounding=0.04),
        cone(0.46, 0.5, 0.06, (0, 0, -height), dish, rounding=0.03),
        capsule(0.03, 0.1, (0, 0, height + 0.04), BLACK),
        ellipsoid(
            (0.12, 0.12, 0.22), (0, 0, height + 0.26), contrasting_colour(main, (1.0, 0.62, 0.1), (1.0, 0.85, 0.3))
        ),
        ellipsoid((0.09, 0.09, 0.12), (0.05, 0, height + 0.2), (1.0, 0.93, 0.55)),
    ]


def build_umbrella(main: RGB, draw: Draw) -> list[Part]:
    wide, dome, pole = draw.between(0.75, 0.85), draw.between(0.4, 0.5), draw.between(0.52, 0.6)
    handle = contrasting_colour(main, WOOD, DARK)
    return [
        ellipsoid((wide, wide, dome), (0, 0, 0), main, above=0.05),
        capsule(0.05, pole + 0.05, (0, 0, 0.1 - pole), contrasting_colour(main, GREY, DARK)),
        capsule(0.04, 0.12, (0, 0, dome), handle),
        ring(0.15, 0.06, (0, 0.15, 0.08 - 2 * pole), handle, half_angle_deg=95, tilt=("x", -90)),
    ]


def build_present(main: RGB, draw: Draw) -> list[Part]:
    half, height = draw.between(0.52, 0.6), draw.between(0.42, 0.55)
    ribbon = contrasting_colour(main, *draw.choose(((YELLOW, WHITE), (WHITE, RED))))
    bow = [
        ellipsoid((0.1, 0.2, 0.13), (0, side * 0.19, height + 0.13), ribbon, tilt=("x", side * 25)) for side in (1, -1)
    ]
    return [
        box((half, half, height), (0, 0, 0), main, rounding=0.02),
        box((half + 0.03, 0.1, height + 0.03), (0, 0, 0), ribbon, rounding=0.02),
        box((0.1, half + 0.03, height + 0.03), (0, 0, 0), ribbon, rounding=0.02),
        *bow,
    ]


# Buildings, vehicles, machines ---------------------------------------------------------------------------------------


def build_house(main: RGB, draw: Draw) -> list[Part]:
    deep, wide, height, roof = (
        draw.between(0.5, 0.58),
        draw.between(0.55, 0.65),
        draw.between(0.38, 0.48),
        draw.between(0.26, 0.36),
    )
    tiles = contrasting_colour(main, *draw.choose((((0.55, 0.13, 0.1), DARK), (DARK, WOOD), (WOOD, DARK))))
    door, pane = contrasting_colour(main, (0.36, 0.2, 0.1), CREAM), contrasting_colour(main, GLASS, (0.3, 0.4, 0.5))
    chimney = (-deep * 0.4, wide * 0.45, height + roof * 1.2)
    return [
        box((deep, wide, height), (0, 0, 0), main),
        Part("wedge", (deep + 0.1, wide + 0.14, roof, 0), (0, 0, height + roof - 0.02), tiles),
        box((0.05, 0.13, 0.26), (deep, 0, 0.26 - height), door),
        *[box((0.05, 0.11, 0.11), (deep, side * wide * 0.62, 0.1), pane) for side in (1, -1)],
        *[box((0.13, 0.05, 0.11), (0, side * wide, 0.08), pane) for side in (1, -1)],
        box((0.09, 0.09, 0.28), chimney, contrasting_colour(main, (0.6, 0.3, 0.22), GREY)),
    ]


def build_rocket(main: RGB, draw: Draw) -> list[Part]:
    radius, body, nose = draw.between(0.24, 0.3), draw.between(0.45, 0.55), draw.between(0.2, 0.27)
    trim = contrasting_colour(main, *draw.choose(((RED, WHITE), (WHITE, DARK), (DARK, WHITE))))
    fins = [
        box((0.26, 0.05, 0.17), (x * radius * 1.1, y * radius * 1.1, -body + 0.05), trim, tilt=("z", turn))
        for x, y, turn in ((1, 0, 0), (-1, 0, 0), (0, 1, 90), (0, -1, 90))
    ]
    return [
        cone(radius, radius, body, (0, 0, 0), main),
        cone(radius, 0.02, nose, (0, 0, body + nose), trim, rounding=0.02),
        cone(radius * 0.55, radius * 0.8, 0.1, (0, 0, -body - 0.08), DARK),
        cone(0.14, 0.14, 0.05, (radius - 0.02, 0, body * 0.4), contrasting_colour(main, GLASS, DARK), tilt=("y", 90)),
        *fins,
    ]


def build_car(main: RGB, draw: Draw) -> list[Part]:
    long, wide, cabin = draw.between(0.8, 0.9), draw.between(0.4, 0.46), draw.between(0.38, 0.46)
    tyre, hub = contrasting_colour(main, BLACK, DARK), contrasting_colour(main, GREY, WHITE)
    glass = contrasting_colour(main, GLASS, (0.35, 0.5, 0.62))
    wheels = [
        part
        for i in (1, -1)
        for j in (1, -1)
        for part in (
            cone(0.2, 0.2, 0.09, (i * long * 0.58, j * wide, -0.16), tyre, rounding=0.03, tilt=("x", 90)),
            cone(0.09, 0.09, 0.1, (i * long * 0.58, j * (wide + 0.01), -0.16), hub, tilt=("x", 90)),
        )
    ]
    return [
        box((long, wide, 0.19), (0, 0, 0.02), main, rounding=0.08),
        box((cabin, wide * 0.88, 0.2), (-0.12, 0, 0.3), main, rounding=0.06),
        box((cabin + 0.02, wide * 0.68, 0.11), (-0.12, 0, 0.32), glass),
        box((cabin * 0.75, wide * 0.9, 0.11), (-0.12, 0, 0.32), glass),
        *[
            ellipsoid((0.06, 0.09, 0.08), (long, side * wide * 0.62, 0.05), contrasting_colour(main, YELLOW, WHITE))
            for side in (1, -1)
        ],
        *wheels,
    ]


def build_boat(main: RGB, draw: Draw) -> list[Part]:
    long, wide, mast = draw.between(0.72, 0.82), draw.between(0.3, 0.36), draw.between(0.55, 0.65)
    sail = contrasting_colour(main, WHITE, (0.9, 0.75, 0.5))
    return [
        ellipsoid((long, wide, 0.42), (0, 0, 0), main, above=0.0, tilt=("y", 180)),
        box((long * 0.6, wide * 0.55, 0.05), (0, 0, 0.0), contrasting_colour(main, WOOD, CREAM)),
        capsule(0.05, mast, (0.06, 0, mast - 0.05), contrasting_colour(main, WOOD, DARK)),
        Part("pyramid", (long * 0.55, 0.05, mast * 0.75, 0), (-0.22, 0, mast * 0.95), sail),
        Part("pyramid", (long * 0.26, 0.05, mast * 0.55, 0), (0.36, 0, mast * 0.75), sail),
    ]


def build_robot(main: RGB, draw: Draw) -> list[Part]:
    body, head, arm = draw.between(0.3, 0.36), draw.between(0.2, 0.25), draw.between(0.24, 0.3)
    joint, eyes = contrasting_colour(main, GREY, DARK), contrasting_colour(main, YELLOW, GLASS)
    top = 0.36 + head
    return [
        box((0.22, body, 0.36), (0, 0, 0), main, rounding=0.04),
        box((0.22, head + 0.04, head), (0, 0, top + 0.06), main, rounding=0.04),
        cone(0.1, 0.1, 0.1, (0, 0, 0.4), joint),
        *[ellipsoid(0.075, (0.22, side * head * 0.5, top + 0.12), eyes) for side in (1, -1)],
        box((0.03, head * 0.55, 0.04), (0.22, 0, top - 0.06), contrasting_colour(main, DARK, WHITE)),
        box((0.03, body * 0.55, 0.14), (0.22, 0, 0.08), joint),
        capsule(0.03, 0.14, (0, 0, top + head + 0.14), joint),
        ellipsoid(0.08, (0, 0, top + head + 0.26), contrasting_colour(main, RED, YELLOW)),
        *[capsule(0.09, arm, (0, side * (body + 0.11), 0.28 - arm), joint) for side in (1, -1)],
        *[box((0.12, 0.11, 0.22), (0.02, side * body * 0.55, -0.52), main, rounding=0.03) for side in (1, -1)],
    ]


def build_traffic_light(main: RGB, draw: Draw) -> list[Part]:
    wide, height, lamp_radius = draw.between(0.26, 0.3), draw.between(0.6, 0.68), draw.between(0.16, 0.19)
    lights = [(0.95, 0.1, 0.08), (1.0, 0.8, 0.1), (0.1, 0.8, 0.25)]
    return [
        box((0.2, wide, height), (0, 0, 0), draw.choose((DARK, (0.2, 0.2, 0.22))), rounding=0.05),
        capsule(0.09, 0.35, (0, 0, -height - 0.25), GREY),
        cone(0.26, 0.22, 0.05, (0, 0, -height - 0.58), GREY),
        *[ellipsoid((0.1, lamp_radius, lamp_radius), (0.2, 0, height * 0.62 * i), lights[1 - i]) for i in (1, 0, -1)],
    ]


ARTEFACTS = {
    "table": build_table,
    "chair": build_chair,
    "lamp": build_lamp,
    "mug": build_mug,
    "candle": build_candle,
    "umbrella": build_umbrella,
    "present": build_present,
    "house": build_house,
    "rocket": build_rocket,
    "car": build_car,
    "boat": build_boat,
    "robot": build_robot,
    "traffic light": build_traffic_light,
}
