"""The embedded world: captions mean what they say, solids are where they say, pictures show what is there."""

import functools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from psd.embedded import degrade
from psd.embedded.captions import grammar, lists
from psd.embedded.captions.grammar import Caption, parse
from psd.embedded.objects.assemble import RADIUS, TINY_RADIUS, build_shape
from psd.embedded.objects.solids import OUTLINES, SOLIDS
from psd.embedded.render import ground_truth, render_shapes
from psd.embedded.training import data
from psd.embedded.unknown import UnknownCaption, UnknownWords
from psd.geometry.cameras import Cameras, camera_rays, orbit_cameras, turntable_cameras


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cameras_for(count: int, **angles: float) -> Cameras:
    one = turntable_cameras(4, **angles)
    return Cameras(**{name: value.expand(count, *value.shape[1:]) for name, value in vars(one).items()})


# Captions ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything() -> list[Caption]:
    return list(grammar.all_captions())


def test_every_caption_parses_back(everything):
    assert len({caption.text for caption in everything}) == len(everything)
    for caption in everything[:1300] + everything[1300::29]:
        assert caption.is_valid
        assert parse(caption.text) == caption


def test_the_world_is_as_large_as_promised():
    assert len(grammar.PRIMITIVES) >= 9 and len(grammar.COLOURS) == 10 and len(grammar.THINGS) >= 18
    words = {word for caption in grammar.all_captions() for word in caption.text.split()}
    assert set(grammar.known_words()) == words | set(grammar.LOW_QUALITY.split())


def test_articles_capitals_and_stops_are_forgiven():
    assert Caption("cube", "orange").text == "an orange cube" and Caption("cube", "red").text == "a red cube"
    assert parse("A orange Cube.") == parse("orange cube") == Caption("cube", "orange")
    assert parse("an purple ice cream cone").kind == "ice cream cone"
    for quoted in ('"{}"', "'{}'", "“{}”", "„{}“", "‘{}’", "«{}»", "`{}`"):
        assert parse(quoted.format("a red cube")) == Caption("cube", "red"), quoted


def test_unknown_words_are_named_and_the_nearest_captions_offered():
    with pytest.raises(UnknownWords) as caught:
        parse("a shiny red mushrom")
    assert caught.value.words == ["shiny", "mushrom"]
    assert "a red mushroom" in caught.value.nearest
    assert all(parse(text).is_valid for text in caught.value.nearest)


@pytest.mark.parametrize(
    "text",
    [
        "sphere red a",
        "a sphere",
        "a red burger",
        "a red cube next to a red cone",
        "a glossy red cube",
        "",
        "low quality",
    ],
)
def test_known_words_in_no_known_order_are_refused(text):
    with pytest.raises(UnknownCaption) as caught:
        parse(text)
    assert not isinstance(caught.value, UnknownWords)


def test_training_never_meets_a_held_out_caption():
    chosen = lists.sample_training_captions(4000, seed=3)
    assert not any(grammar.is_held_out(caption) for caption in chosen)
    singles = {(caption.kind, caption.main_colour) for caption in chosen}
    singles |= {(caption.other_kind, caption.other_colour) for caption in chosen if caption.relation}
    assert ("sphere", "yellow") not in singles  # held out alone, so not in a pair either
    assert grammar.is_held_out(Caption("sphere", "yellow", "tiny"))


def test_judges_meet_every_caption_right_and_wrong():
    chosen = lists.sample_training_captions(4000, seed=3, held_out=True)
    assert 0.05 < sum(grammar.is_held_out(caption) for caption in chosen) / 4000 < 0.3
    trained = [caption for caption in chosen if not grammar.is_held_out(caption)][:300]
    assert any(grammar.is_held_out(miss) for c in trained for miss in grammar.near_misses(c, 15, 0, held_out=True))
    assert not any(grammar.is_held_out(miss) for c in trained for miss in grammar.near_misses(c, 15, 0))


def test_every_kind_and_colour_gives_up_about_a_tenth(everything):
    plain = [c for c in everything if not c.relation and not c.modifier and c.colour]
    held = [caption for caption in plain if grammar.is_held_out(caption)]
    assert set(Counter(caption.kind for caption in held).values()) == {1}
    assert set(Counter(caption.colour for caption in held).values()) <= {3, 4}
    assert not any(caption.colour == grammar.NOUNS[caption.kind].natural for caption in held)


def test_training_covers_everything_evenly():
    chosen = lists.sample_training_captions(8000, seed=0)
    groups = Counter(caption.group for caption in chosen)
    assert groups == {"primitive": 2000, "pair": 3600, "thing": 2400}
    assert 0.14 < sum(caption.modifier is not None for caption in chosen) / 8000 < 0.19
    things = Counter(caption.kind for caption in chosen if caption.group == "thing")
    assert set(things) == set(grammar.THINGS) and set(things.values()) == {100}
    pairs = Counter((c.kind, c.other_kind, c.relation) for c in chosen if c.relation)
    assert len(pairs) == 200 and {(pair[2], count) for pair, count in pairs.items()} == {
        ("on top of", 12), ("next to", 24)
    }  # fmt: skip
    colours = Counter((c.colour, c.other_colour) for c in chosen if c.relation)
    assert len(colours) == 90 and max(colours.values()) < 2.5 * min(colours.values())
    assert lists.sample_training_captions(500, seed=0) == chosen[:500]
    judged = lists.sample_training_captions(8000, seed=0, held_out=True)
    assert Counter(caption.group for caption in judged) == {"primitive": 2800, "pair": 2800, "thing": 2400}
    assert set(Counter((c.kind, c.other_kind, c.relation) for c in judged if c.relation).values()) == {14}


def test_near_misses_mean_other_pictures_and_start_with_a_swap():
    caption = parse("a red cube on top of a blue cone")
    near = grammar.near_misses(caption, 15, 1)
    assert len({miss.meaning for miss in [*near, caption]}) == 16
    assert all(miss.is_valid for miss in near)
    swaps = {
        "a blue cube on top of a red cone",
        "a red cone on top of a blue cube",
        "a blue cone on top of a red cube",
        "a red cube next to a blue cone",
    }
    assert swaps <= {miss.text for miss in near} and near[0].text in swaps
    assert near != grammar.near_misses(caption, 15, 2)
    assert not any(miss.text == "a white snowman" for miss in grammar.near_misses(parse("a snowman"), 30, 0))


def test_near_misses_of_trained_captions_are_trained():
    for caption in lists.sample_training_captions(200, seed=1):
        assert not any(grammar.is_held_out(miss) for miss in grammar.near_misses(caption, 15, 0))


def test_side_by_side_has_no_order_but_on_top_has_one():
    beside, above = parse("a red cube next to a blue cone"), parse("a red cube on top of a blue cone")
    assert beside.meaning == parse("a blue cone next to a red cube").meaning
    assert beside.meaning != parse("a blue cube next to a red cone").meaning
    assert above.meaning != above.mirror_image.meaning == parse("a blue cone on top of a red cube").meaning


def test_random_captions_differ_in_meaning():
    drawn = grammar.random_captions(2500, 0)  # most of the singles, "a snowman" and "a white snowman" among them
    assert len({caption.meaning for caption in drawn}) == 2500
    assert set(Counter(caption.group for caption in drawn)) == {"primitive", "pair", "thing"}


def test_the_committed_lists_are_held_out_disjoint_and_remade_identically(tmp_path):
    lists.write_lists(tmp_path)
    seen: set[Caption] = set()
    for name, ((primitives, pairs, things), _) in lists.LIST_SIZES.items():
        assert (tmp_path / f"{name}.json").read_text() == (grammar.LISTS / f"{name}.json").read_text()
        chosen = [parse(text) for text in lists.load_list(name)]
        assert Counter(caption.group for caption in chosen) == {"primitive": primitives, "pair": pairs, "thing": things}
        assert all(grammar.is_held_out(caption) for caption in chosen)
        assert all(grammar.is_held_out(caption.mirror_image) for caption in chosen if caption.relation)
        assert seen.isdisjoint(caption.meaning for caption in chosen)
        seen |= {caption.meaning for caption in chosen}
    assert len(lists.load_list("evaluation")) >= 200 and len(lists.load_list("test24")) == 24


def test_the_captions_of_the_confirmation_are_of_the_evaluation_and_remade_identically(tmp_path):
    lists.write_lists(tmp_path)
    confirmation, evaluation = lists.load_list(lists.CONFIRM), lists.load_list("evaluation")
    assert (tmp_path / "confirm24.json").read_text() == (grammar.LISTS / "confirm24.json").read_text()
    assert Counter(parse(text).group for text in confirmation) == {"primitive": 8, "pair": 8, "thing": 8}
    assert all(evaluation[text] == distractors for text, distractors in confirmation.items())


def test_each_asked_caption_has_59_distractors_that_mean_other_pictures():
    for text, distractors in [*lists.load_list("test24").items(), *lists.load_list("tuning").items()]:
        meanings = {parse(other).meaning for other in [text, *distractors]}
        assert len(meanings) == 60
        assert set(distractors[:20]) <= {miss.text for miss in grammar.find_neighbours(parse(text))}


# Solids --------------------------------------------------------------------------------------------------------------

SIZES = {
    "ball": (0.3, 0, 0, 0),
    "box": (0.5, 0.3, 0.7, 0.0),
    "frustum": (0.7, 0.2, 0.6, 0.0),
    "tube": (0.6, 0.12, 0.5, 0.0),
    "torus": (0.7, 0.25, 2.0, 0.0),
    "octahedron": (0.9, 0, 0, 0),
    "pyramid": (0.7, 0.5, 0.6, 0),
    "wedge": (0.6, 0.5, 0.4, 0),
    "hexagon": (0.6, 0, 0.5, 0),
    "star": (0.9, 0.4, 0.2, 0),
}
EXACT = {"box", "frustum", "tube", "torus", "star"}


def reference_inside(solid: str, point: np.ndarray, s: tuple[float, ...]) -> bool:
    """Membership of one point, straight from each solid's description."""
    x, y, z = (float(value) for value in point)
    radius, level = math.hypot(x, y), (1 - z / s[2]) / 2 if s[2] else 0.0
    if solid == "ball":
        return x * x + y * y + z * z <= 1 and z >= s[0]
    if solid == "box":
        return abs(x) <= s[0] and abs(y) <= s[1] and abs(z) <= s[2]
    if solid == "frustum":
        return abs(z) <= s[2] and radius <= s[1] + (s[0] - s[1]) * level
    if solid == "tube":
        return abs(z) <= s[2] and abs(radius - s[0]) <= s[1]
    if solid == "torus":
        angle = math.copysign(min(abs(math.atan2(x, y)), s[2]), x)
        core = np.array([s[0] * math.sin(angle), s[0] * math.cos(angle), 0])
        return float(np.linalg.norm(point - core)) <= s[1]
    if solid == "octahedron":
        return abs(x) + abs(y) + abs(z) <= s[0]
    if solid == "pyramid":
        return abs(z) <= s[2] and abs(x) <= s[0] * level and abs(y) <= s[1] * level
    if solid == "wedge":
        return abs(z) <= s[2] and abs(x) <= s[0] and abs(y) <= s[1] * level
    if solid == "hexagon":
        sides = [math.radians(60 * i) for i in range(6)]
        return abs(z) <= s[2] and all(x * math.cos(a) + y * math.sin(a) <= s[0] for a in sides)
    corners = [
        ((s[0], s[1])[i % 2] * math.sin(math.pi / 5 * i), (s[0], s[1])[i % 2] * math.cos(math.pi / 5 * i))
        for i in range(10)
    ]
    odd = False
    for (y0, z0), (y1, z1) in zip(corners, corners[1:] + corners[:1]):
        if (z0 > z) != (z1 > z) and y < y0 + (z - z0) / (z1 - z0) * (y1 - y0):
            odd = not odd
    return odd and abs(x) <= s[2]


def distances(solid: str, points: torch.Tensor, size: tuple[float, ...]) -> torch.Tensor:
    sizes = torch.tensor(size, dtype=points.dtype)[:, None].expand(4, len(points))
    return SOLIDS[solid](points.T, sizes)


@functools.cache
def reference_surface(solid: str, size: tuple[float, ...], count: int) -> np.ndarray:
    """Points of the surface, by bisection between an inner and an outer point."""
    draw = np.random.default_rng(0)
    points = draw.uniform(-1.3, 1.3, (5 * count, 3))
    inside = np.array([reference_inside(solid, point, size) for point in points])
    ends = zip(points[inside][np.arange(count) % inside.sum()], points[~inside][:count])
    surface = []
    for inner, outer in ends:
        for _ in range(22):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if reference_inside(solid, middle, size) else (inner, middle)
        surface.append(inner)
    return np.array(surface)


@pytest.mark.parametrize("solid", SOLIDS)
def test_a_solid_is_negative_exactly_inside(solid):
    points = np.random.default_rng(1).uniform(-1.2, 1.2, (2000, 3))
    inside = np.array([reference_inside(solid, point, SIZES[solid]) for point in points])
    assert 20 < inside.sum() < 1800
    found = distances(solid, torch.from_numpy(points), SIZES[solid])
    assert ((found < 0).numpy() == inside).all()


@pytest.mark.parametrize("solid", SOLIDS)
def test_a_distance_never_oversteps_the_surface(solid):
    surface = torch.from_numpy(reference_surface(solid, SIZES[solid], 700))
    points = torch.from_numpy(np.random.default_rng(2).uniform(-2, 2, (800, 3)))
    found = distances(solid, points, SIZES[solid])
    true = torch.cdist(points, surface).amin(-1)  # of a sample of the surface: at least the true distance
    assert (found.abs() <= true + 1e-9).all()
    assert distances(solid, surface, SIZES[solid]).abs().max() < 1e-6
    if solid in EXACT:
        assert (true - found.abs()).max() < 0.25  # the sample's own coarseness, most at the tips of the star


@pytest.mark.parametrize("solid", SOLIDS)
def test_a_distance_grows_at_unit_speed_at_most(solid):
    points = torch.from_numpy(np.random.default_rng(3).uniform(-1.5, 1.5, (2000, 3))).requires_grad_()
    (gradient,) = torch.autograd.grad(distances(solid, points, SIZES[solid]).sum(), points)
    speed = gradient.norm(dim=-1)
    assert speed.max() < 1 + 1e-6
    assert (speed > 1 - 1e-6).float().mean() > (0.999 if solid in EXACT else 0.9)


@pytest.mark.parametrize("solid", SOLIDS)
def test_an_outline_wraps_its_solid_closely(solid):
    surface = torch.from_numpy(reference_surface(solid, SIZES[solid], 700)).float()
    outline = OUTLINES[solid](SIZES[solid])
    towards = torch.nn.functional.normalize(torch.randn(200, 3, generator=seeded()), dim=-1)
    excess = (outline @ towards.T).amax(0) - (surface @ towards.T).amax(0)
    assert excess.min() > -1e-4
    assert excess.max() < 0.2


def test_rounding_adds_a_skin_of_its_thickness():
    points = torch.randn(200, 3, generator=seeded())
    for solid in ("box", "frustum", "tube"):
        sharp, rounded = SIZES[solid], (*SIZES[solid][:3], 0.05)
        assert torch.allclose(distances(solid, points, sharp) - 0.05, distances(solid, points, rounded), atol=1e-6)


# Shapes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", grammar.NOUNS)
def test_every_thing_fills_its_ball_and_stays_in_it(kind):
    colour = grammar.NOUNS[kind].colours[-1]
    skin = torch.nn.functional.normalize(torch.randn(3000, 3, generator=seeded(1)), dim=-1)
    radii = {None: RADIUS, "tiny": TINY_RADIUS, "tall": RADIUS}
    for modifier in set(grammar.NOUNS[kind].modifiers) & {"tiny", "tall"} | {None}:
        shape = build_shape(Caption(kind, colour, modifier), seeded(2))
        radius = radii[modifier]
        assert shape.distance(skin * radius * 1.001).min() > 0
        assert any((shape.distance(skin * radius * share) < 0).any() for share in (0.98, 0.94, 0.9, 0.86, 0.82))
        assert (shape.bound_centre.norm(dim=-1) + shape.bound_radius).min() <= 1.8 * radius


def test_proportions_vary_with_the_seed_and_the_canonical_ones_do_not():
    caption = parse("a red chair")
    one, other = build_shape(caption, seeded(1)), build_shape(caption, seeded(2))
    assert not torch.equal(one.size, other.size)
    assert torch.equal(one.size, build_shape(caption, seeded(1)).size)
    assert torch.equal(build_shape(caption, seeded(1), canonical=True).centre, build_shape(caption, None).centre)


def test_tall_things_are_taller_and_tiny_ones_smaller():
    def heights(text: str) -> tuple[float, float]:
        mask = ground_truth([parse(text)], turntable_cameras(1, elevation_deg=0.0), 64).mask[0, 0] > 0.5
        return float(mask.any(1).sum()), float(mask.any(0).sum())

    (high, wide), (tall_high, tall_wide) = heights("a red cone"), heights("a tall red cone")
    assert tall_high / tall_wide == pytest.approx(1.6 * high / wide, rel=0.08)
    assert heights("a tiny red cube")[0] == pytest.approx(heights("a red cube")[0] * TINY_RADIUS / RADIUS, abs=2)


def test_parts_of_a_pair_are_where_the_caption_says():
    views = ground_truth([parse("a red sphere next to a blue cube"), parse("a red sphere on top of a blue cube")],
                         cameras_for(2, elevation_deg=0.0), 64)  # fmt: skip
    red, blue = (
        (views.rgb[:, :, 0] - views.rgb[:, :, 2] > 0.3).float(),
        (views.rgb[:, :, 2] - views.rgb[:, :, 0] > 0.3).float(),
    )
    at = torch.arange(64.0)

    def middle(weight: torch.Tensor, axis: int) -> float:
        return float((weight.sum(1 - axis) * at).sum() / weight.sum())

    assert middle(red[0, 0], 1) < middle(blue[0, 0], 1) - 10  # seen from the front the first is on the left
    assert middle(red[0, 2], 1) > middle(blue[0, 2], 1) + 10  # and from the back on the right
    assert middle(red[1, 0], 0) < middle(blue[1, 0], 0) - 10


@pytest.mark.parametrize(("text", "sign"), [("a snowman", (0.97, 0.5, 0.08)), ("a traffic light", (0.1, 0.8, 0.25))])
def test_faces_look_to_the_front(text, sign):
    views = ground_truth([parse(text)], turntable_cameras(4, elevation_deg=0.0), 64)
    hue = torch.tensor(sign)[None, :, None, None]
    shown = ((views.rgb[0] - hue).abs().amax(1) < 0.2).sum((-1, -2))
    assert shown[0] >= 2 and shown[2] == 0


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
def test_a_sphere_covers_the_disc_that_geometry_says(size):
    cameras = turntable_cameras(4, elevation_deg=20.0)
    views = ground_truth([parse("a red sphere")], cameras, size)
    distance = float(cameras.distance[0, 0])
    world_radius = float(build_shape(parse("a red sphere"), None).linear[0, 0, 0])
    assert 0.94 * RADIUS < world_radius <= RADIUS
    radius = math.tan(math.asin(world_radius / distance)) / math.tan(math.radians(20)) * size / 2
    covered = views.mask[0].sum((-1, -2))
    assert ((covered / math.pi).sqrt() / radius - 1).abs().max() < 0.004
    assert views.mask[0, :, size // 2 - 5 : size // 2 + 5, size // 2 - 5 : size // 2 + 5].min() > 0.995
    assert ((views.mask > 0.02) & (views.mask < 0.98)).sum() > 4 * size  # a soft edge, all round
    middle = size // 2
    assert views.depth[0, :, middle, middle] == pytest.approx(torch.full((4,), distance - world_radius), abs=0.003)
    facing = (views.normals[0, :, :, middle, middle] * cameras.c2w[0, :, :3, 2]).sum(-1)
    assert facing.min() > 0.995
    assert torch.isinf(views.depth[0, :, 0, 0]).all() and (views.normals[0, :, :, 0, 0] == 0).all()


def test_pictures_agree_with_marching_the_whole_object():
    """Parts traced one by one give the depth that plain sphere tracing of the union's distance gives."""
    shapes = [build_shape(parse(text), seeded(5)) for text in ("a red chair", "a tall blue mug", "a striped red cone")]
    cameras = cameras_for(3, elevation_deg=25.0, start_deg=30.0)[:, :1]
    light = cameras.c2w[..., :3, 2]
    size, pixel = 40, 2.2 / 40
    views = render_shapes(shapes, cameras, size, light=light, background=torch.ones(3, 3))
    origins, directions = camera_rays(cameras, size)
    for i, shape in enumerate(shapes):
        origin, direction = origins[i].reshape(-1, 3), directions[i].reshape(-1, 3)
        t = torch.full((len(origin),), 1.5)
        for _ in range(120):
            t = t + shape.distance(origin + t[:, None] * direction).clamp(min=0)
        true = torch.where(t < 8, t, torch.inf).reshape(size, size)
        sure = (views.mask[i, 0] > 0.98) | (views.mask[i, 0] == 0)
        assert (torch.isfinite(true) == (views.mask[i, 0] > 0.5))[sure].float().mean() > 0.999
        both = (views.mask[i, 0] > 0.98) & torch.isfinite(true)
        error = (views.depth[i, 0] - true)[both].abs()
        assert both.sum() > 100 and error.median() < 0.002
        assert (error < pixel).float().mean() > 0.95  # the rest: edges within the picture, shared by two parts


def test_light_leaves_no_side_darker_and_the_hue_alone():
    views = ground_truth([parse("a blue sphere")] * 60, cameras_for(60), 16, generator=seeded(3))
    inside = (views.mask > 0.99).float()
    brightness = ((views.rgb[:, :, 2] * inside).sum((-1, -2)) / inside.sum((-1, -2))).mean(0)
    assert brightness.max() / brightness.min() < 1.06
    pixels = views.rgb.movedim(2, -1)[views.mask > 0.99]
    assert torch.allclose(pixels[:, 0] / pixels[:, 2], torch.tensor(0.10 / 0.88), atol=0.02)


def test_stripes_and_gloss_show():
    plain, striped, glossy = (ground_truth([parse(t)], turntable_cameras(1), 64) for t in
                              ("a red sphere", "a striped red sphere", "a glossy red sphere"))  # fmt: skip
    green = [views.rgb[0, 0, 1][views.mask[0, 0] > 0.99] for views in (plain, striped, glossy)]
    assert green[0].max() < 0.2
    assert 0.3 < (green[1] > 0.5).float().mean() < 0.6
    assert 0.005 < (green[2] > 0.5).float().mean() < 0.25


def test_objects_stand_out_from_their_backgrounds():
    chosen = lists.sample_training_captions(40, seed=5)
    views = ground_truth(chosen, cameras_for(40), 8, generator=seeded(6))
    for caption, background in zip(chosen, views.background):
        colour = torch.tensor(grammar.COLOURS[caption.main_colour or "red"])
        assert (colour - background).norm() > 0.2, caption.text


# Degradations --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mushroom():
    return ground_truth([parse("a red mushroom")], turntable_cameras(4), 48, generator=seeded(1))


@pytest.mark.parametrize("kind", degrade.IMAGE_KINDS)
def test_degradations_grow_with_their_strength_from_nothing(kind, mushroom):
    images, mask, background = mushroom.rgb[0], mushroom.mask[0], mushroom.background[0]

    def spoilt(strength: float) -> torch.Tensor:
        return degrade.degrade_views(kind, strength, images, mask, background, seeded(4))

    assert torch.allclose(spoilt(0.0), images, atol=1e-5)
    errors = [float((spoilt(strength) - images).abs().mean()) for strength in (0.25, 0.5, 1.0)]
    assert 0.0003 < errors[0] < errors[1] < errors[2]
    assert spoilt(1.0).min() >= 0 and spoilt(1.0).max() <= 1
    assert torch.equal(spoilt(0.7), spoilt(0.7))


def test_holes_show_the_background_and_are_in_the_object_of_every_view(mushroom):
    images, mask, background = mushroom.rgb[0], mushroom.mask[0], mushroom.background[0]
    for seed in range(8):
        after = degrade.degrade_views("holes", 0.6, images, mask, background, seeded(seed))
        erased = (after - background[:, None, None]).abs().amax(1) < 0.02
        assert (erased & (mask > 0.99)).flatten(1).any(1).all()
        outside = (mask == 0)[:, None].expand_as(after)
        assert torch.allclose(after[outside], images[outside])


def test_fog_gathers_around_the_object(mushroom):
    images, mask, background = mushroom.rgb[0], mushroom.mask[0], mushroom.background[0]
    after = degrade.degrade_views("fog", 1.0, images, mask, background, seeded(2))
    changed = (after - images).abs().amax(1)
    near = torch.nn.functional.max_pool2d(mask, 7, 1, 3)
    assert changed[(near > 0.5) & (mask == 0)].mean() > 3 * changed[:, 0, :].mean()


@pytest.mark.parametrize("kind", ["dark", "oversaturated", "stained"])
def test_faults_of_the_paint_leave_the_background_alone(kind, mushroom):
    images, mask, background = mushroom.rgb[0], mushroom.mask[0], mushroom.background[0]
    after = degrade.degrade_views(kind, 1.0, images, mask, background, seeded(5))
    outside = (mask == 0)[:, None].expand_as(after)
    assert torch.equal(after[outside], images[outside])
    inside = (mask > 0.99)[:, None].expand_as(after)
    if kind == "dark":
        assert torch.allclose(after[inside], images[inside] / 4, atol=0.01)
    if kind == "oversaturated":
        before, now = ((x.amax(1) - x.amin(1))[mask > 0.99].mean() for x in (images, after))
        assert now > before


def test_mistakes_change_what_they_say():
    for text in ("a red cube on top of a blue cone", "a striped red mug", "a green tree"):
        caption = parse(text)
        for seed in range(6):
            recoloured = degrade.make_mistake("wrong_colour", caption, seeded(seed))
            rebuilt = degrade.make_mistake("wrong_part", caption, seeded(seed))
            assert recoloured and rebuilt
            assert (recoloured.kind, recoloured.other_kind) == (caption.kind, caption.other_kind)
            assert (rebuilt.colour, rebuilt.other_colour) == (caption.colour, caption.other_colour)
            assert recoloured.meaning != caption.meaning and rebuilt.meaning != caption.meaning
    assert degrade.make_mistake("wrong_colour", parse("a burger"), seeded()) is None


def test_degradations_refuse_what_they_cannot_do(mushroom):
    arguments = (mushroom.rgb[0], mushroom.mask[0], mushroom.background[0], seeded())
    with pytest.raises(ValueError, match="outside"):
        degrade.degrade_views("blur", 1.5, *arguments)
    with pytest.raises(ValueError, match="known are blur"):
        degrade.degrade_views("smudge", 0.5, *arguments)
    with pytest.raises(ValueError, match="mistake"):
        degrade.degrade_views("wrong_part", 0.5, *arguments)
    half = degrade.degrade_views("wrong_part", 0.5, *arguments, mistaken=torch.ones_like(mushroom.rgb[0]))
    assert torch.allclose(half, (mushroom.rgb[0] + 1) / 2)


# Data set ------------------------------------------------------------------------------------------------------------


def test_an_object_depends_on_the_seed_and_its_index_alone():
    chosen = lists.sample_training_captions(6, seed=9)
    together = data.render_samples(chosen, range(6), 16, seed=9)
    alone = data.render_samples(chosen[4:5], [4], 16, seed=9)[0]
    assert (together[4].rgb.int() - alone.rgb.int()).abs().max() <= 1  # vectorised rounding may differ by one level
    assert torch.equal(together[4].camera, alone.camera) and together[4].text == alone.text
    other = data.render_samples(chosen, range(6), 16, seed=10)
    assert not torch.equal(together[4].camera, other[4].camera)


def test_a_data_set_is_written_whole_resumed_and_loaded(tmp_path):
    settings = {"shard_objects": 10, "size": 16, "seed": 2, "held_out": False}
    for number in (0, 1):
        data.write_shard(tmp_path, number, **settings)
    loaded = data.load_shards(tmp_path)
    assert loaded.rgb.shape == (20, 4, 16, 16, 3) and loaded.mask.shape == (20, 4, 16, 16)
    assert loaded.camera.shape == (20, 4, 16) and loaded.background.shape == (20, 3)
    assert loaded.rgb.dtype == loaded.mask.dtype == torch.uint8
    records = [
        json.loads(line)
        for number in (0, 1)
        for line in data._shard_path(tmp_path, number).with_suffix(".jsonl").open()
    ]
    assert [record["caption"] for record in records] == loaded.captions
    assert [record["meant"] for record in records] == [c.text for c in lists.sample_training_captions(20, seed=2)]
    assert not list(tmp_path.glob("*.draft"))

    before = data._shard_path(tmp_path, 1).read_bytes()
    data._shard_path(tmp_path, 1).unlink()
    data.write_shard(tmp_path, 1, **settings)
    assert data._shard_path(tmp_path, 1).read_bytes() == before
    second = data.load_shards(tmp_path, [1], fields=("camera",))
    assert torch.equal(second.camera, loaded.camera[10:]) and second.rgb.numel() == 0


def test_a_data_set_with_other_settings_is_not_added_to(tmp_path):
    settings = {"shard_objects": 25, "size": 32, "seed": 0, "held_out": False}
    (tmp_path / "dataset.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="another --out"):
        data.build_dataset(tmp_path, objects=25, size=16, seed=0, processes=1, shard_objects=25)


def test_the_loader_says_how_to_make_missing_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m psd embedded data"):
        data.load_shards(tmp_path)


def test_low_quality_objects_are_spoilt_and_called_so(monkeypatch):
    chosen = lists.sample_training_captions(4, seed=9)
    clean = data.render_samples(chosen, range(4), 16, seed=9)
    monkeypatch.setattr(data, "DEGRADED_SHARE", 1.1)
    spoilt = data.render_samples(chosen, range(4), 16, seed=9)
    for before, after in zip(clean, spoilt):
        assert after.text == grammar.LOW_QUALITY and after.fault in data.LOW_QUALITY_KINDS
        assert before.fault is None and not torch.equal(before.rgb, after.rgb)
        assert torch.equal(before.mask, after.mask)


def test_the_cameras_of_a_data_set_are_orbits_in_the_project_s_frame():
    sample = data.render_samples([parse("a red cube")], [0], 16, seed=0)[0]
    c2w = sample.camera.reshape(4, 4, 4)
    azimuth = torch.rad2deg(torch.atan2(c2w[:, 1, 3], c2w[:, 0, 3]))
    elevation = torch.rad2deg(torch.asin(c2w[:, 2, 3]))
    again = orbit_cameras(azimuth[None], elevation[None], torch.ones(1, 4), torch.full((1, 4), 40.0))
    assert torch.allclose(again.c2w[0], c2w, atol=1e-5)
    assert ((azimuth.roll(-1) - azimuth) % 360 - 90).abs().max() < 1e-3
