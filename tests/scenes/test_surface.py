"""A surface as a scene: where it starts, what it shows, what it learns, and that its mesh is what was shown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from psd.config.preset import Preset
from psd.geometry.cameras import turntable_cameras
from psd.geometry.cleanup import MeshError, vertex_normals
from psd.geometry.mesh import Mesh, mesh_statistics
from psd.geometry.smoothness import find_normals, laplacian_length, normal_consistency
from psd.geometry.solid import find_inside, measure_distances
from psd.geometry.tetrahedra import TetrahedralGrid
from psd.scenes.choose import make_scene
from psd.scenes.interfaces import Light, MeshSettings, Render, StartsFromMesh
from psd.scenes.surface import SurfaceScene

WHITE = torch.ones(1, 3)
ALL = MeshSettings(resolution=32, faces=500_000)


def surface(**scene: Any) -> tuple[SurfaceScene, Preset]:
    preset = Preset.make({"scene": {"kind": "surface", "surface_cells": 20, **scene}})
    made = make_scene(preset)
    assert isinstance(made, SurfaceScene) and isinstance(made, StartsFromMesh)
    return made, preset


def show(scene: SurfaceScene, size: int = 48, **keywords: Any) -> Render:
    return scene.render(turntable_cameras(4, elevation_deg=20), size, background=WHITE, **keywords)


def two_coloured(shape: trimesh.Trimesh) -> Mesh:
    """Red above, blue below."""
    vertices, faces = np.asarray(shape.vertices, np.float32), np.asarray(shape.faces, np.int32)
    colours = np.where(vertices[:, 2:] > vertices[:, 2].mean(), [230, 20, 20], [20, 20, 230]).astype(np.uint8)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


def bowl() -> Mesh:
    """A torus that stands off the middle: not convex, with a hole."""
    shape = trimesh.creation.torus(0.4, 0.16, major_sections=64, minor_sections=32)
    shape.apply_translation([0.1, -0.05, 0.2])
    return two_coloured(shape)


# ------------------------------------------------------------------------------------------------------ conversion


def test_points_inside_a_mesh_are_those_inside_the_solid() -> None:
    shape = trimesh.creation.torus(5.0, 2.0, major_sections=96, minor_sections=64)
    shape.apply_translation([8.03, 8.01, 6.02])
    inside = find_inside(torch.tensor(shape.vertices), torch.tensor(shape.faces), 16)
    x, y, z = torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij")
    distance = torch.hypot(torch.hypot(x - 8.03, y - 8.01) - 5, z - 6.02) - 2
    clear = distance.abs() > 0.02  # the mesh's faces are chords
    assert torch.equal(inside[clear], distance[clear] < 0) and clear.float().mean() > 0.95


def test_distances_to_a_ball_are_its_own() -> None:
    ball = two_coloured(trimesh.creation.icosphere(4, 0.6))
    grid = TetrahedralGrid(16)
    distance, nearest = measure_distances(ball, grid, torch.zeros(3), torch.ones(3))
    true = (grid.points.norm(dim=-1) - 0.6) * 8
    assert torch.allclose(distance, true, atol=0.06)
    away = grid.points.norm(dim=-1) > 0.1
    towards = torch.from_numpy(ball.vertices[nearest])[away] / 0.6
    assert ((towards * torch.nn.functional.normalize(grid.points[away], dim=-1)).sum(-1) > 0.99).all()


def test_a_surface_goes_on_from_a_mesh_in_a_tight_box() -> None:
    mesh = bowl()
    scene, _ = surface(surface_cells=32)
    scene.start_from(mesh)
    made = scene.extract_mesh(ALL)
    ours, theirs = mesh_statistics(made), mesh_statistics(mesh)
    assert ours["watertight"] and ours["components"] == 1 and made.threshold is None
    assert ours["volume"] == pytest.approx(theirs["volume"], rel=0.02)
    assert np.allclose(ours["bounds"], theirs["bounds"], atol=0.01)
    assert trimesh.Trimesh(made.vertices, made.faces, process=False).euler_number == 0  # the hole is there
    middle = made.vertices[:, 2].mean()
    red, clear = made.colours[:, 0] > made.colours[:, 2], np.abs(made.vertices[:, 2] - middle) > 0.03
    assert np.array_equal(red[clear], made.vertices[clear, 2] > middle)
    half = scene.half.numpy()
    assert np.allclose(scene.centre.numpy(), [0.1, -0.05, 0.2], atol=1e-3)
    assert 0.56 < half[0] < 0.85 and half[2] == pytest.approx(half[0] / 2)  # flat, but no flatter than half


# ------------------------------------------------------------------------------------------------------- pictures


def test_a_fresh_surface_is_a_grey_ball() -> None:
    scene, _ = surface(surface_cells=32)
    seen = show(scene, 64, normals=True)
    outline = 0.5 / math.sqrt(float(turntable_cameras(1).distance) ** 2 - 0.25) / math.tan(math.radians(20)) * 32
    assert torch.allclose(seen.opacity.sum((2, 3, 4)), torch.tensor(math.pi * outline**2), rtol=0.01)
    middle = (0, 0, slice(None), 32, 32)
    assert torch.allclose(seen.rgb[middle], torch.tensor(0.5)) and torch.equal(seen.rgb[0, 0, :, 0, 0], torch.ones(3))
    assert seen.depth[middle].item() == pytest.approx(float(turntable_cameras(1).distance) - 0.5, abs=0.01)
    towards = turntable_cameras(4, elevation_deg=20).c2w[0, 0, :3, 2]
    assert seen.normal is not None and (seen.normal[middle] * towards).sum() > 0.99
    assert float(seen.depth[0, 0, 0, 0, 0]) == 0 and seen.regularisers == {}


def test_the_mesh_is_what_was_shown() -> None:
    """Its colours and its outline in pictures of it are those of the scene's own render."""
    from psd.geometry.mesh_picture import rasterise_mesh

    scene, _ = surface()
    scene.start_from(bowl())
    with torch.no_grad():
        shown = show(scene, 64).rgb[0]
    picture = rasterise_mesh(scene.extract_mesh(ALL), turntable_cameras(4, elevation_deg=20), 128, lit=False)
    theirs = torch.nn.functional.avg_pool2d(torch.from_numpy(picture.rgb[0]).movedim(-1, 1), 2)
    difference = (shown - theirs).abs()
    assert difference.mean() < 0.004 and (difference.amax(1) > 0.02).float().mean() < 0.08  # smooth outlines alone


def test_light_falls_as_on_a_lambertian_ball() -> None:
    scene, _ = surface()
    cameras = turntable_cameras(4, elevation_deg=20)
    light = Light(cameras.c2w[..., :3, 3], torch.tensor([0.3]), torch.tensor([0.0]))
    lit, plain = show(scene, light=light).rgb, show(scene).rgb
    assert torch.allclose(lit[0, :, :, 24, 24], plain[0, :, :, 24, 24], atol=0.01)  # the light is at the camera
    assert lit[0, 0, 0, 24, 15] < 0.9 * lit[0, 0, 0, 24, 24]


def test_normals_take_the_place_of_colours_in_training_only() -> None:
    scene, _ = surface(shows="normals")
    training, preview = show(scene, generator=torch.Generator()), show(scene)
    assert torch.allclose(preview.rgb[0, 0, :, 24, 24], torch.tensor(0.5))
    towards = turntable_cameras(4, elevation_deg=20).c2w[0, 0, :3, 2]
    assert torch.allclose(training.rgb[0, 0, :, 24, 24], (towards + 1) / 2, atol=0.03)


# ------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("learns", ["both", "geometry", "texture"])
def test_a_stage_moves_only_what_it_learns(learns: str) -> None:
    scene, preset = surface(learns=learns)
    groups = scene.parameter_groups(preset)
    optimiser = torch.optim.Adam(groups)
    before = scene.state()
    seen = show(scene, generator=torch.Generator())
    (seen.rgb * torch.rand(seen.rgb.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    optimiser.step()
    moved = {name for name, value in scene.state().items() if not torch.equal(value, before[name])}
    shape, paint = {"distance", "offset"}, {"colour"}
    assert moved == {"both": shape | paint, "geometry": shape, "texture": paint}[learns]
    assert set(seen.regularisers) == (set() if learns == "texture" else {"consistency", "laplacian"})


def test_a_ball_becomes_what_it_is_pulled_to() -> None:
    """Shape by outlines, colours by pixels: a larger ball, moved, red above and blue below."""
    target, _ = surface(surface_cells=24)
    shape = trimesh.creation.icosphere(4, 0.6)
    shape.apply_translation([0.0, 0.1, 0.05])
    target.start_from(two_coloured(shape))
    scene, preset = surface(surface_cells=24, shape_lr=0.05, paint_lr=0.1)
    with torch.no_grad():
        wanted = show(target, 32)
        before = (show(scene, 32).opacity - wanted.opacity).abs().mean()
    optimiser = torch.optim.Adam(scene.parameter_groups(preset), betas=(0.9, 0.99), eps=1e-15)
    for _ in range(60):
        seen = show(scene, 32, generator=torch.Generator())
        loss = (seen.rgb - wanted.rgb).square().sum() + (seen.opacity - wanted.opacity).square().sum()
        optimiser.zero_grad()
        (loss + 0.3 * sum(seen.regularisers.values())).backward()
        optimiser.step()
    after = show(scene, 32)
    assert (after.opacity - wanted.opacity).abs().mean() < 0.1 * before
    assert (after.rgb - wanted.rgb).square().mean() < 2e-3
    assert mesh_statistics(scene.extract_mesh(ALL))["watertight"]


def test_smoothness_is_zero_on_a_plane_and_that_of_a_ball() -> None:
    flat = trimesh.creation.box()
    plane = torch.tensor(flat.subdivide().subdivide().vertices).float()
    faces = torch.tensor(flat.subdivide().subdivide().faces)
    plane[:, 2] = 0.0
    edges = torch.tensor(trimesh.Trimesh(plane, faces, process=False).edges_unique)
    up = torch.tensor([0.0, 0.0, 1.0]).expand(len(plane), 3)
    assert normal_consistency(up, edges) == 0
    for level in (3, 4):
        ball = trimesh.creation.icosphere(level)
        vertices, ends = torch.tensor(ball.vertices).float(), torch.tensor(ball.edges_unique)
        normals = find_normals(vertices, torch.tensor(ball.faces))
        assert torch.allclose(normals, vertices, atol=0.02)
        squared = (vertices[ends[:, 0]] - vertices[ends[:, 1]]).square().sum(-1).mean()
        # 1 - cos of an angle whose chord is c is c^2 / 2; uneven neighbours add a part along the surface to the other.
        assert float(normal_consistency(normals, ends)) == pytest.approx(float(squared / 2), rel=0.05)
        square = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
        cross = torch.tensor([[0, 4], [1, 4], [2, 4], [3, 4]])
        raised = torch.cat([square, torch.tensor([[0.0, 0.0, 0.3]])])  # 0.3 off; each corner as far from the middle
        expected = (0.3 + 4 * math.hypot(1, 0.3)) / 5
        assert float(laplacian_length(raised, cross)) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------ mesh, state


def test_too_many_faces_are_decimated_and_floaters_dropped() -> None:
    scene, _ = surface()
    with torch.no_grad():
        points = scene.grid.points
        speck = ((points - 0.75).norm(dim=-1) - 0.12) * (scene.grid.cells / 2)
        scene.distance.copy_(torch.minimum(scene.distance, speck))
    whole = scene.extract_mesh(ALL)
    assert mesh_statistics(whole)["components"] == 1 and np.abs(whole.vertices).max() < 0.55
    fewer = scene.extract_mesh(MeshSettings(resolution=32, faces=500))
    assert len(fewer.faces) <= 500 < len(whole.faces) and mesh_statistics(fewer)["watertight"]
    assert "mesh_faces 500 decimated it" in fewer.notes[0]
    with torch.no_grad():
        scene.distance.fill_(1.0)
    with pytest.raises(MeshError, match="the surface is empty"):
        scene.extract_mesh(ALL)
    assert not show(scene, generator=torch.Generator()).opacity.any()


def test_a_state_makes_the_same_pictures_and_no_other_fits() -> None:
    scene, preset = surface()
    scene.start_from(bowl())
    other = make_scene(preset)
    other.load_state(scene.state())
    assert torch.equal(show(scene).rgb, show(other).rgb)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="distance has shape"):
        surface(surface_cells=8)[0].load_state(scene.state())
    with pytest.raises(RuntimeError, match="has distance, offset, colour, centre, half, not grid"):
        scene.load_state({"grid": torch.zeros(1)})


def test_a_texture_holds_the_colours_of_the_vertices() -> None:
    scene, _ = surface()
    scene.start_from(bowl())
    mesh = scene.extract_mesh(MeshSettings(resolution=32, faces=500_000, texture=True))
    assert mesh.texture is not None and mesh.uv is not None and mesh.texture.shape == (128, 128, 3) and not mesh.notes
    place = np.clip((mesh.uv * [1, -1] + [0, 1]) * 128, 0, 127).astype(int)
    found = mesh.texture[place[:, 1], place[:, 0]].astype(int)
    assert np.median(np.abs(found - mesh.colours)) <= 8 and np.quantile(np.abs(found - mesh.colours), 0.8) < 40
