"""The yardsticks: ground truth itself gets the ideal value, and a known fault worsens the measure that is about it."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from psd.embedded.captions import grammar
from psd.embedded.captions.lists import load_list
from psd.embedded.objects.assemble import RADIUS, assemble_object, count_choices
from psd.embedded.objects.collection import Collection
from psd.embedded.objects.truth import render_truth
from psd.evaluation.metrics import ground_truth as metrics_ground_truth
from psd.evaluation.metrics.ground_truth import (
    BEST_PSNR,
    FRONT,
    GREY,
    JUDGED,
    SIDES,
    SIZE,
    EightViews,
    against_truth,
    closest_truth,
    colour_difference,
    colour_psnr,
    empty_sides,
    erode_mask,
    find_symmetries,
    floater_share,
    fog_share,
    has_front,
    judge_against_truth,
    judge_spread,
    mesh_sides,
    silhouette_iou,
    statistics_over_truth,
    texture_energy,
    true_sides,
    true_views,
)
from psd.geometry.cameras import turntable_cameras
from psd.geometry.cleanup import vertex_normals
from psd.geometry.mesh import Mesh
from psd.models.load import load_judge

pytestmark = pytest.mark.usefixtures("collection")
CPU = torch.device("cpu")
FOX, HORSE, PAIR, CUBE, BESIDE = map(
    grammar.parse,
    ("a fox", "a horse", "a red sphere on top of a blue cube", "a red cube", "a red cube next to a blue cone"),
)


def drawn_sides(caption: grammar.Caption, seed: int, collection: Collection) -> EightViews:
    """The truth in the proportions of a seed, with the mesh that goes with it."""
    return true_sides(caption, seed, seed % count_choices(caption, collection))


def true_mesh(caption: grammar.Caption, collection: Collection) -> Mesh:
    """The canonical object's own triangles, each with corners of its own, a little darker than full, as lit pictures
    are."""
    body = assemble_object(caption, collection)
    corners = body.vertices[body.faces]  # m 3 3
    vertices = corners.flatten(0, 1).numpy().astype(np.float32)
    faces = np.arange(len(vertices), dtype=np.int32).reshape(-1, 3)
    colours = (0.95 * body.palette[body.face_palette].repeat_interleave(3, 0).numpy() * 255).round().astype(np.uint8)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


@pytest.mark.parametrize("caption", [FOX, HORSE, PAIR, CUBE], ids=lambda caption: caption.text)
def test_the_truths_own_pictures_are_ideal(caption: grammar.Caption, collection: Collection) -> None:
    found = against_truth(drawn_sides(caption, 3, collection), caption)
    assert found["iou"] == 1 and found["colour_psnr"] == BEST_PSNR and found["depth_error"] == 0
    assert found["normal_error_deg"] == pytest.approx(0, abs=0.1) and found["texture"] == 1
    assert found["janus"] in (0, None) and found["front_elsewhere"] in (0, None)


@pytest.mark.parametrize("caption", [FOX, PAIR], ids=lambda caption: caption.text)
def test_the_truths_own_mesh_is_close_to_ideal(caption: grammar.Caption, collection: Collection) -> None:
    found = against_truth(mesh_sides(true_mesh(caption, collection)), caption)
    assert found["iou"] > 0.95 and found["colour_psnr"] == BEST_PSNR and found["janus"] in (0, None)
    assert found["depth_error"] < 0.02 and found["normal_error_deg"] < 10 and found["texture"] < 2


def test_any_mesh_of_a_kind_is_its_truth(collection: Collection) -> None:
    """No shark of three is like another; asked about, each is a shark.  Of two horses only the colours differ."""
    caption = grammar.parse("a shark")
    sharks = [true_sides(caption, None, choice) for choice in range(count_choices(caption, collection))]
    assert len(sharks) == 3 and all(silhouette_iou(one, other) < 0.7 for one, other in pairwise(sharks))
    for sides in sharks:
        found = against_truth(sides, caption)
        assert (found["iou"], found["colour_psnr"], found["depth_error"]) == (1, BEST_PSNR, 0)
        assert (found["janus"], found["front_elsewhere"]) == (0, 0)
    assert against_truth(true_sides(FOX), caption)["iou"] < 0.7
    bay, grey = (true_sides(HORSE, None, choice) for choice in (0, 1))
    assert bay.mask.equal(grey.mask) and colour_psnr(bay, grey) < 15
    assert {against_truth(sides, HORSE)["colour_psnr"] for sides in (bay, grey)} == {BEST_PSNR}


def test_a_sphere_is_seen_as_its_formula_says() -> None:
    """Depth along each ray and normals in the world frame, of a ball around the origin, away from its outline."""
    sides, cameras = true_sides(grammar.parse("a red sphere")), turntable_cameras(SIDES)
    reach = math.tan(math.radians(float(cameras.fovy_deg[0, 0])) / 2)
    place = ((torch.arange(SIZE) + 0.5) * 2 / SIZE - 1) * reach
    x, y = place.expand(SIZE, SIZE), -place[:, None].expand(SIZE, SIZE)
    local = torch.nn.functional.normalize(torch.stack([x, y, -torch.ones_like(x)], -1), dim=-1)
    inside = erode_mask(sides.mask, 3)
    for view in range(SIDES):
        c2w = cameras.c2w[0, view]
        ray, eye = local @ c2w[:3, :3].T, c2w[:3, 3]
        along = -(ray @ eye)
        depth = along - (along.square() - eye.square().sum() + RADIUS**2).clamp(min=0).sqrt()
        normal = (eye + depth[..., None] * ray) / RADIUS
        area = inside[view]
        assert area.sum() > 500 and (sides.depth[view] - depth)[area].abs().max() < 0.02
        found = torch.nn.functional.normalize(sides.normal[view], dim=0).movedim(0, -1)
        assert torch.rad2deg(torch.acos((found * normal).sum(-1)[area].clamp(-1, 1))).mean() < 4
    radius = (sides.mask[0].sum() / math.pi).sqrt() * 2 / SIZE * reach  # of the outline, as a tangent
    assert radius == pytest.approx(math.tan(math.asin(RADIUS / float(eye.norm()))), rel=0.01)


def test_each_fault_worsens_its_own_measure() -> None:
    sides = true_sides(FOX)
    good = against_truth(sides, FOX)
    noise = 0.2 * torch.randn(sides.rgb.shape, generator=torch.Generator().manual_seed(0))
    smaller = torch.zeros_like(sides.cover)
    smaller[:, 20:44, 20:44] = sides.cover[:, 20:44, 20:44]
    faults = {
        "iou": replace(sides, cover=smaller),
        "colour_psnr": replace(sides, rgb=sides.rgb.flip(1)),
        "depth_error": replace(sides, depth=sides.depth + 0.3),
        "normal_error_deg": replace(sides, normal=sides.normal.roll(1, 1)),
        "texture": replace(sides, rgb=(sides.rgb + noise).clamp(0, 1)),
    }
    assert against_truth(faults["iou"], FOX)["iou"] < 0.9 * good["iou"]
    assert against_truth(faults["colour_psnr"], FOX)["colour_psnr"] < 20
    assert against_truth(faults["depth_error"], FOX)["depth_error"] == pytest.approx(0.3, abs=1e-4)
    assert against_truth(faults["normal_error_deg"], FOX)["normal_error_deg"] > 30
    assert against_truth(faults["texture"], FOX)["texture"] > 3


def test_colours_count_against_the_proportions_that_they_fit(collection: Collection) -> None:
    """The canonical outline, painted as in another pose: a patch ends elsewhere, which is no fault of colour."""
    caption = grammar.parse("a cow")
    canonical = true_sides(caption)
    painted = replace(canonical, rgb=drawn_sides(caption, 3, collection).rgb)
    assert closest_truth(painted, caption).mask.equal(canonical.mask)
    assert colour_psnr(painted, canonical) < 20 and against_truth(painted, caption)["colour_psnr"] == BEST_PSNR


def test_an_object_apart_from_the_truth_has_no_depth_to_compare() -> None:
    nowhere = replace(true_sides(CUBE), cover=torch.zeros(8, 64, 64))
    found = against_truth(nowhere, CUBE)
    assert found["iou"] == 0 and found["depth_error"] is None and found["normal_error_deg"] is None


def test_nothing_is_told_of_nothing_but_how_little_it_is() -> None:
    found = against_truth(empty_sides(), FOX)
    assert found["iou"] == 0 and 0 < found["colour_psnr"] < 20
    assert {found[name] for name in ("texture", "depth_error", "normal_error_deg", "janus", "front_elsewhere")} == {
        None
    }


@pytest.mark.parametrize(
    "text", [BESIDE.text, "a red sphere next to a blue sphere", "a white prism next to a red star"]
)
def test_a_pair_side_by_side_may_stand_either_way_round(text: str, collection: Collection) -> None:
    """Turned by half; told in the other order; and two of one shape, whose outlines cannot tell who stands where."""
    caption = grammar.parse(text)
    drawn = drawn_sides(caption, 3, collection)
    for sides in (drawn, drawn.turn(4), true_sides(caption.mirror_image)):
        found = against_truth(sides, caption)
        assert found["iou"] > 0.95 and found["colour_psnr"] == BEST_PSNR
    swapped = replace(caption, colour=caption.other_colour, other_colour=caption.colour)
    if caption.kind != caption.other_kind:
        assert against_truth(drawn_sides(swapped, 3, collection), caption)["colour_psnr"] < 20
    stacked = grammar.parse("a red cylinder on top of a blue cube")
    assert against_truth(true_sides(stacked.mirror_image), stacked)["colour_psnr"] < 15


@pytest.mark.parametrize("text", ["a fox", "a cow", "a frog", "a taxi", "a horse"])
def test_a_second_face_is_a_janus_and_a_turned_one_is_elsewhere(text: str, collection: Collection) -> None:
    """The truth itself, in proportions that no option has, is neither; a face on any other side is."""
    caption = grammar.parse(text)
    sides = drawn_sides(caption, 100, collection)
    own = against_truth(sides, caption)
    assert (own["janus"], own["front_elsewhere"]) == (0, 0)
    for place in (2, 4, 6):
        two_faced = replace(sides, rgb=sides.rgb.clone(), cover=sides.cover.clone())
        two_faced.rgb[place], two_faced.cover[place] = sides.rgb[0], sides.cover[0]
        found = against_truth(two_faced, caption)
        assert (found["janus"], found["front_elsewhere"]) == (1, 0), place
    turned = against_truth(sides.turn(4), caption)
    assert (turned["janus"], turned["front_elsewhere"]) == (0, 1)


def test_what_looks_the_same_from_several_sides_may_stand_in_any_of_them() -> None:
    assert find_symmetries(true_sides(CUBE)) == [0, 2, 4, 6] and find_symmetries(true_sides(FOX)) == [0]
    assert against_truth(true_sides(CUBE).turn(2), CUBE)["iou"] > 0.97
    assert against_truth(true_sides(FOX).turn(2), FOX)["iou"] < 0.9


def test_turning_turns_normals_with_the_object() -> None:
    """A cone looks the same from everywhere: a turned one must be itself, normals in the world frame included."""
    sides = true_sides(grammar.parse("a red cone"))
    turned = sides.turn(3)
    assert (turned.normal - sides.normal).abs().mean() < 0.01 < (sides.normal.roll(3, 0) - sides.normal).abs().mean()
    assert colour_difference(turned, 0, sides, 0) < 2e-3


def test_things_with_a_face_have_a_front() -> None:
    words = {"a fox": True, "a horse": True, "a red cone": False, "a red cube": False, "a pink donut": False}
    words |= {BESIDE.text: False, "a red star next to a blue prism": False, PAIR.text: False}
    assert {text: has_front(grammar.parse(text)) for text in words} == words


def test_a_kind_has_a_front_only_where_every_mesh_has_one(collection: Collection) -> None:
    """One mushroom of six differs from the front and from behind."""
    caption = grammar.parse("a mushroom")
    drawn = [true_sides(caption, None, choice) for choice in range(count_choices(caption, collection))]
    facing = [colour_difference(sides, 0, sides, SIDES // 2) > FRONT for sides in drawn]
    assert any(facing) and not all(facing) and not has_front(caption)


def test_texture_grows_with_the_amplitude_of_stripes() -> None:
    sides = true_sides(CUBE)
    stripes = torch.arange(64).remainder(2).sub(0.5)
    energies = [texture_energy(replace(sides, rgb=sides.rgb + a * stripes)) for a in (0.0, 0.05, 0.1)]
    assert all(one < other for one, other in pairwise(energies))


def blob(opacity: torch.Tensor, row: int, column: int) -> torch.Tensor:
    found = opacity.clone()
    found[1, row : row + 6, column : column + 6] = 0.9
    return found


@pytest.mark.parametrize("text", [FOX.text, BESIDE.text, "a pink lollipop", "a floor lamp"])
def test_what_floats_is_what_touches_neither_the_object_nor_its_place(text: str, collection: Collection) -> None:
    caption = grammar.parse(text)
    choice = 100 % count_choices(caption, collection)
    for views, sides in (
        (true_views(caption), true_sides(caption)),
        (true_views(caption, 100, choice), true_sides(caption, 100, choice)),
    ):
        opacity = views.mask[0, JUDGED]
        true = closest_truth(sides, caption)
        assert floater_share(opacity, true) == 0
        apart = blob(opacity, 1, 1)
        assert floater_share(apart, true) == pytest.approx(float(36 * 0.9 / apart.sum()), rel=1e-5)
        assert floater_share(blob(opacity, 30, 30), true) == 0
    haze = opacity.clamp(min=0.1)  # is fog, and hides no piece
    assert floater_share(haze, true) == 0 and floater_share(blob(haze, 1, 1), true) > 0 and fog_share(haze, true) > 0.1
    assert floater_share(torch.zeros_like(opacity), true) == 0


def test_fog_without_a_mesh_is_all_that_there_is() -> None:
    opacity = torch.zeros(4, SIZE, SIZE)
    assert fog_share(opacity, empty_sides()) == 0 and fog_share(opacity + 0.01, empty_sides()) == pytest.approx(1)


def test_image_statistics_are_over_the_truths_own_and_none_where_it_has_no_colour() -> None:
    views = true_views(FOX)
    rgb, opacity = views.rgb[0, JUDGED], views.mask[0, JUDGED]
    own = statistics_over_truth(rgb, opacity, FOX)
    assert set(own.values()) == {1.0} and len(own) == 4
    grey = statistics_over_truth((rgb + rgb.mean(1, keepdim=True)) / 2, opacity, FOX)
    assert grey["image/saturation_over_truth"] == pytest.approx(0.5, abs=1e-5)
    assert statistics_over_truth(rgb, opacity, grammar.parse("a black cone"))["image/saturation_over_truth"] is None


def test_judges_see_the_object_before_grey(collection: Collection) -> None:
    """As rendered there; and darker paint is worse for a white object too, which on white they cannot see."""
    caption = grammar.parse("a white cone on top of an orange prism")
    sides = true_sides(caption)
    cameras = turntable_cameras(SIDES)
    rendered = render_truth(
        [caption], cameras, SIZE, collection=collection, light=cameras.c2w[..., :3, 2],
        background=torch.full((1, 3), GREY),
    )  # fmt: skip
    assert torch.allclose(sides.shown, rendered.rgb[0, JUDGED], atol=1e-5)
    assert torch.equal(empty_sides().shown, torch.full((4, 3, SIZE, SIZE), GREY))
    darker = replace(sides, rgb=torch.lerp(sides.rgb, 0.7 * sides.rgb, sides.cover[:, None]))
    assert judge_against_truth(load_judge("assets/evidence", device=CPU), darker, caption, [CUBE])["score"] < -0.2


def test_a_verdict_on_the_truth_is_ideal_and_on_swapped_colours_is_misbound() -> None:
    judge = load_judge("assets/evidence", device=CPU)
    others = [grammar.parse(text) for text in ("a yellow torus", "a burger", "a green tree")]
    true = judge_against_truth(judge, true_sides(PAIR), PAIR, others)
    assert true["score"] == pytest.approx(0, abs=1e-4) and true["named"] == 1 and true["misbound"] == 0
    assert true["truth_named"] == 1 and judge_against_truth(judge, true_sides(CUBE), PAIR, [CUBE])["truth_named"] == 1
    assert judge_against_truth(judge, true_sides(PAIR), PAIR, [PAIR])["truth_named"] == 0  # nothing is above itself
    exchanged = true_sides(grammar.parse("a blue sphere on top of a red cube"))
    swapped = judge_against_truth(judge, exchanged, PAIR, others)
    assert swapped["raw"] < -1 and swapped["misbound"] == 1
    stranger = judge_against_truth(judge, true_sides(grammar.parse("a yellow torus")), PAIR, others)
    assert stranger["named"] == 0 and stranger["raw"] < -1
    assert judge_against_truth(judge, true_sides(CUBE), CUBE, others)["misbound"] is None


def test_a_score_is_in_spreads_and_no_caption_decides_alone() -> None:
    judge = load_judge("assets/evidence", device=CPU)
    worse = replace(true_sides(PAIR), rgb=0.96 * true_sides(PAIR).rgb)
    found = judge_against_truth(judge, worse, PAIR, [CUBE])
    assert -1 < found["score"] < 0 and found["score"] == pytest.approx(found["raw"] / judge_spread(judge), rel=1e-6)
    nothing = judge_against_truth(judge, empty_sides(), PAIR, [CUBE])
    assert nothing["raw"] < -judge_spread(judge) and nothing["score"] == -1
    assert nothing["named"] == 0 and nothing["misbound"] is None and nothing["truth_named"] == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            metrics_ground_truth, "true_sides", lambda caption: empty_sides()
        )  # a truth that the judge dislikes
        found = judge_against_truth(judge, true_sides(PAIR), PAIR, [CUBE])
    assert found["raw"] > judge_spread(judge) and found["score"] == 1


def test_a_judges_spread_is_that_of_the_tuning_captions_truths() -> None:
    judge = load_judge("assets/evidence", device=CPU)
    asked = list(load_list("tuning"))
    own = [float(judge(true_sides(grammar.parse(text)).shown[None], text).mean()) for text in asked]
    assert len(asked) == 24 and judge_spread(judge) == pytest.approx(np.std(own, ddof=1), rel=1e-4)
