"""The yardsticks: ground truth itself gets the ideal value, and a known fault worsens the measure that is about it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.measure import marching_cubes

from psd.embedded.captions import grammar
from psd.embedded.objects.assemble import build_shape
from psd.embedded.render import ground_truth
from psd.evaluation.experiments.suite import SUITES, Suite, read_caption_list
from psd.evaluation.metrics import ground_truth as metrics_ground_truth
from psd.evaluation.metrics.ground_truth import (
    BEST_PSNR,
    GREY,
    JUDGED,
    SIDES,
    SIZE,
    against_truth,
    closest_truth,
    colour_difference,
    colour_psnr,
    empty_sides,
    find_symmetries,
    floater_share,
    fog_share,
    has_front,
    judge_against_truth,
    judge_spread,
    mesh_sides,
    statistics_over_truth,
    texture_energy,
    true_sides,
    true_views,
)
from psd.geometry.cameras import turntable_cameras
from psd.geometry.cleanup import vertex_normals
from psd.geometry.mesh import Mesh
from psd.models.load import load_judge

CPU = torch.device("cpu")
ROBOT, PAIR, CUBE, BESIDE = map(
    grammar.parse,
    ("a pink robot", "a red cube on top of a blue sphere", "a red cube", "a red cube next to a blue cone"),
)
FRONTS = Suite.load(SUITES / "fronts.yaml")
FACING = FRONTS.prompts(FRONTS.main)


def true_mesh(caption: grammar.Caption) -> Mesh:
    """The ground truth's own surface in its parts' colours, a little darker than full, as lit pictures are."""
    shape, count = build_shape(caption, None), 96
    axis = torch.linspace(-1, 1, count)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    distance = shape.distance(points).reshape(count, count, count).numpy()
    vertices, faces, _, _ = marching_cubes(-distance, 0.0, gradient_direction="ascent")
    vertices = (vertices * 2 / (count - 1) - 1).astype(np.float32)
    part = shape.distances(torch.from_numpy(vertices)).argmin(0)
    colours = (0.95 * shape.colour[part].numpy() * 255).round().astype(np.uint8)
    faces = faces.astype(np.int32)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


@pytest.mark.parametrize("caption", [ROBOT, PAIR, CUBE], ids=lambda caption: caption.text)
def test_the_truths_own_pictures_are_ideal(caption: grammar.Caption) -> None:
    found = against_truth(true_sides(caption, 3), caption)
    assert found["iou"] == 1 and found["colour_psnr"] == BEST_PSNR and found["depth_error"] == 0
    assert found["normal_error_deg"] == pytest.approx(0, abs=0.1) and found["texture"] == 1
    assert found["janus"] in (0, None) and found["front_elsewhere"] in (0, None)


@pytest.mark.parametrize("caption", [ROBOT, PAIR], ids=lambda caption: caption.text)
def test_the_truths_own_mesh_is_close_to_ideal(caption: grammar.Caption) -> None:
    found = against_truth(mesh_sides(true_mesh(caption)), caption)
    assert found["iou"] > 0.95 and found["colour_psnr"] == BEST_PSNR and found["janus"] in (0, None)
    assert found["depth_error"] < 0.02 and found["normal_error_deg"] < 10 and found["texture"] < 2


def test_each_fault_worsens_its_own_measure() -> None:
    sides = true_sides(ROBOT)
    good = against_truth(sides, ROBOT)
    noise = 0.1 * torch.randn(sides.rgb.shape, generator=torch.Generator().manual_seed(0))
    smaller = torch.zeros_like(sides.cover)
    smaller[:, 20:44, 20:44] = sides.cover[:, 20:44, 20:44]
    faults = {
        "iou": replace(sides, cover=smaller),
        "colour_psnr": replace(sides, rgb=sides.rgb.flip(1)),
        "depth_error": replace(sides, depth=sides.depth + 0.3),
        "normal_error_deg": replace(sides, normal=sides.normal.roll(1, 1)),
        "texture": replace(sides, rgb=(sides.rgb + noise).clamp(0, 1)),
    }
    assert against_truth(faults["iou"], ROBOT)["iou"] < 0.9 * good["iou"]
    assert against_truth(faults["colour_psnr"], ROBOT)["colour_psnr"] < 20
    assert against_truth(faults["depth_error"], ROBOT)["depth_error"] == pytest.approx(0.3, abs=1e-4)
    assert against_truth(faults["normal_error_deg"], ROBOT)["normal_error_deg"] > 30
    assert against_truth(faults["texture"], ROBOT)["texture"] > 3


def test_colours_count_against_the_proportions_that_they_fit() -> None:
    """The canonical outline, painted as in other proportions: the cap ends elsewhere, which is no fault of colour."""
    caption = grammar.parse("a red mushroom")
    canonical = true_sides(caption)
    painted = replace(canonical, rgb=true_sides(caption, 3).rgb)
    assert closest_truth(painted, caption).mask.equal(canonical.mask)
    assert colour_psnr(painted, canonical) < 15 and against_truth(painted, caption)["colour_psnr"] == BEST_PSNR


def test_an_object_apart_from_the_truth_has_no_depth_to_compare() -> None:
    nowhere = replace(true_sides(CUBE), cover=torch.zeros(8, 64, 64))
    found = against_truth(nowhere, CUBE)
    assert found["iou"] == 0 and found["depth_error"] is None and found["normal_error_deg"] is None


def test_nothing_is_told_of_nothing_but_how_little_it_is() -> None:
    found = against_truth(empty_sides(), ROBOT)
    assert found["iou"] == 0 and 0 < found["colour_psnr"] < 20
    assert {found[name] for name in ("texture", "depth_error", "normal_error_deg", "janus", "front_elsewhere")} == {
        None
    }


@pytest.mark.parametrize(
    "text", [BESIDE.text, "a red sphere next to a blue sphere", "a white prism next to a red star"]
)
def test_a_pair_side_by_side_may_stand_either_way_round(text: str) -> None:
    """Turned by half; told in the other order; and two of one shape, whose outlines cannot tell who stands where."""
    caption = grammar.parse(text)
    for sides in (true_sides(caption, 3), true_sides(caption, 3).turn(4), true_sides(caption.mirror_image)):
        found = against_truth(sides, caption)
        assert found["iou"] > 0.95 and found["colour_psnr"] == BEST_PSNR
    swapped = replace(caption, colour=caption.other_colour, other_colour=caption.colour)
    if caption.kind != caption.other_kind:
        assert against_truth(true_sides(swapped, 3), caption)["colour_psnr"] < 20
    stacked = grammar.parse(PAIR.text.replace("sphere", "cone"))
    assert against_truth(true_sides(stacked.mirror_image), stacked)["colour_psnr"] < 15


@pytest.mark.parametrize("text", ["a pink robot", "a red mug", "a traffic light", *FACING[::2]])
def test_a_second_face_is_a_janus_and_a_turned_one_is_elsewhere(text: str) -> None:
    """The truth itself, in proportions that no option has, is neither; a face on any other side is."""
    caption = grammar.parse(text)
    sides = true_sides(caption, 100)
    own = against_truth(sides, caption)
    assert (own["janus"], own["front_elsewhere"]) == (0, 0)
    for place in (2, 4, 6):
        two_faced = replace(sides, rgb=sides.rgb.clone(), cover=sides.cover.clone())
        two_faced.rgb[place], two_faced.cover[place] = sides.rgb[0], sides.cover[0]
        found = against_truth(two_faced, caption)
        assert (found["janus"], found["front_elsewhere"]) == (1, 0), place
    turned = against_truth(sides.turn(4), caption)
    assert (turned["janus"], turned["front_elsewhere"]) == (0, 1)


def test_the_suite_of_fronts_has_eight() -> None:
    asked = [grammar.parse(text) for text in FACING]
    assert len(set(asked)) == 8 and all(map(has_front, asked))


def test_what_looks_the_same_from_several_sides_may_stand_in_any_of_them() -> None:
    assert find_symmetries(true_sides(CUBE)) == [0, 2, 4, 6] and find_symmetries(true_sides(ROBOT)) == [0]
    assert against_truth(true_sides(CUBE).turn(2), CUBE)["iou"] > 0.97
    assert against_truth(true_sides(ROBOT).turn(2), ROBOT)["iou"] < 0.9


def test_turning_turns_normals_with_the_object() -> None:
    """A cone looks the same from everywhere: a turned one must be itself, normals in the world frame included."""
    sides = true_sides(grammar.parse("a red cone"))
    turned = sides.turn(3)
    assert (turned.normal - sides.normal).abs().mean() < 0.01 < (sides.normal.roll(3, 0) - sides.normal).abs().mean()
    assert colour_difference(turned, 0, sides, 0) < 2e-3


def test_things_with_a_face_have_a_front() -> None:
    words = {"a pink robot": True, "a red mug": True, "a red cone": False, "a red cube": False, "a pink donut": False}
    words |= {BESIDE.text: False, "a red star next to a blue prism": False, PAIR.text: False}
    assert {text: has_front(grammar.parse(text)) for text in words} == words


def test_texture_grows_with_the_amplitude_of_stripes() -> None:
    sides = true_sides(CUBE)
    stripes = torch.arange(64).remainder(2).sub(0.5)
    energies = [texture_energy(replace(sides, rgb=sides.rgb + a * stripes)) for a in (0.0, 0.05, 0.1)]
    assert energies[0] < energies[1] < energies[2]


def blob(opacity: torch.Tensor, row: int, column: int) -> torch.Tensor:
    found = opacity.clone()
    found[1, row : row + 6, column : column + 6] = 0.9
    return found


@pytest.mark.parametrize("text", [ROBOT.text, BESIDE.text, "a pink lollipop", "an orange umbrella", "a red flower"])
def test_what_floats_is_what_touches_neither_the_object_nor_its_place(text: str) -> None:
    caption = grammar.parse(text)
    for seed in (None, 100):
        opacity = true_views(caption, seed).mask[0, JUDGED]
        true = closest_truth(true_sides(caption, seed), caption)
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
    views = true_views(ROBOT)
    rgb, opacity = views.rgb[0, JUDGED], views.mask[0, JUDGED]
    own = statistics_over_truth(rgb, opacity, ROBOT)
    assert set(own.values()) == {1.0} and len(own) == 4
    grey = statistics_over_truth((rgb + rgb.mean(1, keepdim=True)) / 2, opacity, ROBOT)
    assert grey["image/saturation_over_truth"] == pytest.approx(0.5, abs=1e-5)
    assert statistics_over_truth(rgb, opacity, grammar.parse("a black cone"))["image/saturation_over_truth"] is None


def test_judges_see_the_object_before_grey() -> None:
    """As rendered there; and darker paint is worse for a white object too, which on white they cannot see."""
    caption = grammar.parse("a white prism on top of an orange cone")
    sides = true_sides(caption)
    cameras = turntable_cameras(SIDES)
    rendered = ground_truth(
        [caption], cameras, SIZE, light=cameras.c2w[..., :3, 2], background=torch.full((1, 3), GREY)
    )
    assert torch.allclose(sides.shown, rendered.rgb[0, JUDGED], atol=1e-5)
    assert torch.equal(empty_sides().shown, torch.full((4, 3, SIZE, SIZE), GREY))
    darker = replace(sides, rgb=torch.lerp(sides.rgb, 0.7 * sides.rgb, sides.cover[:, None]))
    assert judge_against_truth(load_judge("assets/evidence", device=CPU), darker, caption, [CUBE])["score"] < -0.2


def test_a_verdict_on_the_truth_is_ideal_and_on_swapped_colours_is_misbound() -> None:
    judge = load_judge("assets/evidence", device=CPU)
    others = [grammar.parse(text) for text in ("a yellow torus", "a snowman", "a green tree")]
    true = judge_against_truth(judge, true_sides(PAIR), PAIR, others)
    assert true["score"] == pytest.approx(0, abs=1e-4) and true["named"] == 1 and true["misbound"] == 0
    assert true["truth_named"] == 1 and judge_against_truth(judge, true_sides(CUBE), PAIR, [CUBE])["truth_named"] == 1
    assert judge_against_truth(judge, true_sides(PAIR), PAIR, [PAIR])["truth_named"] == 0  # nothing is above itself
    swapped = judge_against_truth(judge, true_sides(grammar.parse("a blue cube on top of a red sphere")), PAIR, others)
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
    asked = list(read_caption_list("tuning"))
    own = [float(judge(true_sides(grammar.parse(text)).shown[None], text).mean()) for text in asked]
    assert len(asked) == 16 and judge_spread(judge) == pytest.approx(np.std(own, ddof=1), rel=1e-4)
