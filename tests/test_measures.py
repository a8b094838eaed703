"""The yardsticks: ground truth itself gets the ideal value, and a known fault worsens the measure that is about it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.measure import marching_cubes

from psd.mesh import Mesh
from psd.models import load_judge
from psd.surface import vertex_normals
from psd.tiny import grammar
from psd.tiny.measures import (
    BEST_PSNR,
    against_truth,
    difference,
    has_front,
    mesh_sides,
    symmetries,
    texture,
    true_sides,
    verdict,
)
from psd.tiny.shapes import build

CPU = torch.device("cpu")
ROBOT, PAIR, CUBE = map(grammar.parse, ("a pink robot", "a red cube on top of a blue sphere", "a red cube"))


def true_mesh(caption: grammar.Caption) -> Mesh:
    """The ground truth's own surface in its parts' colours, a little darker than full, as lit pictures are."""
    shape, count = build(caption, None), 96
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
    assert found["iou"] > 0.95 and found["colour_psnr"] > 25 and found["janus"] in (0, None)
    assert found["depth_error"] < 0.02 and found["normal_error_deg"] < 10 and found["texture"] < 2


def test_each_fault_worsens_its_own_measure() -> None:
    sides = true_sides(ROBOT)
    good = against_truth(sides, ROBOT)
    noise = 0.1 * torch.randn(sides.rgb.shape, generator=torch.Generator().manual_seed(0))
    smaller = torch.zeros_like(sides.mask)
    smaller[:, 20:44, 20:44] = sides.mask[:, 20:44, 20:44]
    faults = {
        "iou": replace(sides, mask=smaller),
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


def test_an_object_apart_from_the_truth_has_no_depth_to_compare() -> None:
    nowhere = replace(true_sides(CUBE), mask=torch.zeros(8, 64, 64, dtype=torch.bool))
    found = against_truth(nowhere, CUBE)
    assert found["iou"] == 0 and found["depth_error"] is None and found["normal_error_deg"] is None


def test_a_second_face_is_a_janus_and_a_turned_one_is_elsewhere() -> None:
    sides = true_sides(ROBOT)
    two_faced = replace(sides, rgb=sides.rgb.clone())
    two_faced.rgb[4], two_faced.mask[4] = sides.rgb[0], sides.mask[0]
    assert (against_truth(two_faced, ROBOT)["janus"], against_truth(two_faced, ROBOT)["front_elsewhere"]) == (1, 0)
    turned = against_truth(sides.turned(4), ROBOT)
    assert (turned["janus"], turned["front_elsewhere"]) == (0, 1)


def test_what_looks_the_same_from_several_sides_may_stand_in_any_of_them() -> None:
    assert symmetries(true_sides(CUBE)) == [0, 2, 4, 6] and symmetries(true_sides(ROBOT)) == [0]
    assert against_truth(true_sides(CUBE).turned(2), CUBE)["iou"] > 0.97
    assert against_truth(true_sides(ROBOT).turned(2), ROBOT)["iou"] < 0.9


def test_turning_turns_normals_with_the_object() -> None:
    """A cone looks the same from everywhere: a turned one must be itself, normals in the world frame included."""
    sides = true_sides(grammar.parse("a red cone"))
    turned = sides.turned(3)
    assert (turned.normal - sides.normal).abs().mean() < 0.01 < (sides.normal.roll(3, 0) - sides.normal).abs().mean()
    assert difference(turned, 0, sides, 0) < 2e-3


def test_things_with_a_face_have_a_front() -> None:
    words = {"a pink robot": True, "a snowman": True, "a red cone": False, "a red cube": False, "a pink donut": False}
    assert {text: has_front(grammar.parse(text)) for text in words} == words


def test_texture_grows_with_the_amplitude_of_stripes() -> None:
    sides = true_sides(CUBE)
    stripes = torch.arange(64).remainder(2).sub(0.5)
    energies = [texture(replace(sides, rgb=sides.rgb + a * stripes)) for a in (0.0, 0.05, 0.1)]
    assert energies[0] < energies[1] < energies[2]


def test_a_verdict_on_the_truth_is_ideal_and_on_swapped_colours_is_misbound() -> None:
    judge = load_judge("assets/evidence", CPU)
    others = [grammar.parse(text) for text in ("a yellow torus", "a snowman", "a green tree")]
    true = verdict(judge, true_sides(PAIR), PAIR, others)
    assert true["score"] == pytest.approx(0, abs=1e-4) and true["named"] == 1 and true["misbound"] == 0
    swapped = verdict(judge, true_sides(grammar.parse("a blue cube on top of a red sphere")), PAIR, others)
    assert swapped["score"] < -1 and swapped["misbound"] == 1
    stranger = verdict(judge, true_sides(grammar.parse("a yellow torus")), PAIR, others)
    assert stranger["named"] == 0 and stranger["score"] < -1
    assert verdict(judge, true_sides(CUBE), CUBE, others)["misbound"] is None
