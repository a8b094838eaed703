"""The mesh of an analytic field: where its surface lies, that it is closed, and what the files say."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from psd.config.preset import Preset
from psd.geometry import cameras as geometry_cameras
from psd.geometry import texture
from psd.geometry.cameras import Cameras
from psd.geometry.cleanup import (
    MeshError,
    decimate_surface,
    face_volumes,
    is_watertight,
    make_manifold,
    smooth_surface,
    vertex_normals,
)
from psd.geometry.mesh import Mesh, mesh_statistics
from psd.geometry.mesh_picture import rasterise_mesh
from psd.scenes.extract import best_threshold, density_grid, extract_mesh, surface_colour
from psd.scenes.interfaces import Render
from psd.scenes.radiance import RadianceScene

Field = Callable[[Tensor], Tensor]


class AnalyticScene:
    """Density and colour as functions of points, rendered by brute force."""

    def __init__(self, density: Field, colour: Field) -> None:
        self._density, self._colour = density, colour

    def density(self, points: Tensor) -> Tensor:
        return self._density(points)

    def colour(self, points: Tensor) -> Tensor:
        return self._colour(points)

    def render(self, cameras: Cameras, size: int, *, background: Tensor, **_: Any) -> Render:
        origins, directions = geometry_cameras.camera_rays(cameras, size)
        t = torch.linspace(1.2, 4.8, 120)
        points = origins[..., None, :] + directions[..., None, :] * t[:, None]
        held = points.abs().amax(-1) <= 1
        density, colour = torch.zeros(held.shape), torch.zeros(*held.shape, 3)
        density[held], colour[held] = self.density(points[held]), self.colour(points[held])
        optical = density * (t[1] - t[0])
        weights = torch.exp(optical - optical.cumsum(-1)) * (1 - torch.exp(-optical))
        opacity = weights.sum(-1, keepdim=True)
        rgb = (weights[..., None] * colour).sum(-2) + (1 - opacity) * background[:, None, None, None]
        depth = (weights * t).sum(-1, keepdim=True)
        rgb, opacity, depth = (image.permute(0, 1, 4, 2, 3) for image in (rgb, opacity, depth))
        return Render(rgb, opacity, depth)


def analytic(density: Field, colour: Field = lambda points: (points * 0.5 + 0.5).clamp(0, 1)) -> AnalyticScene:
    return AnalyticScene(density, colour)


def ball(radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> Field:
    """Depth below a sphere's surface; negative outside."""
    return lambda points: radius - (points - torch.tensor(centre, dtype=points.dtype)).norm(dim=-1)


LOPSIDED = ball(0.4, (0.3, -0.1, 0.2))


def torus(points: Tensor) -> Tensor:
    return 0.2 - torch.hypot(points[..., :2].norm(dim=-1) - 0.6, points[..., 2])


def rough(points: Tensor) -> Tensor:
    """Four thin legs in rough skin: quadric collapses pinch it together."""
    legs = 0.07 - torch.hypot(points[..., 0].abs() - 0.3, points[..., 1].abs() - 0.3)
    seat = 0.5 - points.abs().amax(-1)
    slab = torch.minimum(seat, 0.12 - points[..., 2].abs())
    waves = points @ points.new_tensor([[41.0, 53.0], [37.0, -47.0], [43.0, 61.0]])
    skin = 0.05 * waves.sin().prod(-1)
    return torch.maximum(torch.minimum(legs, 0.8 - points[..., 2].abs()), slab) + skin


def matter(depth: Field, density: float = 60.0, width: float = 0.02) -> Field:
    return lambda points: density * torch.sigmoid(depth(points) / width)


def made(depth: Field, **given: Any) -> Mesh:
    """At half the density the surface lies where ``depth`` is 0."""
    return extract_mesh(analytic(matter(depth)), **{"resolution": 48, "faces": 20_000, "threshold": 30.0, **given})


def euler(mesh: Mesh) -> int:
    return trimesh.Trimesh(mesh.vertices, mesh.faces).euler_number


def pyramid() -> Mesh:
    """A red corner to the front (+x), a green one to the left (+y), a blue one up (+z), a dark one at the origin."""
    vertices = np.array([[0, 0, 0], [0.6, 0, 0], [0, 0.4, 0], [0, 0, 0.8]], np.float32)
    faces = np.array([[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]], np.int32)
    colours = np.array([[30, 30, 30], [200, 80, 40], [40, 200, 80], [80, 40, 200]], np.uint8)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


# ------------------------------------------------------------------------------------------------------------ surface


def test_a_sphere_is_closed_outward_and_of_the_right_size() -> None:
    mesh = made(ball(0.6))
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(radius - 0.6).max() < 0.006  # a seventh of a voxel
    measured = mesh_statistics(mesh)
    assert measured["watertight"] and measured["components"] == 1 and euler(mesh) == 2
    assert measured["volume"] == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)  # negative if the faces look inwards
    assert measured["area"] == pytest.approx(4 * np.pi * 0.6**2, rel=0.02)
    assert ((mesh.normals * mesh.vertices).sum(1) / radius).min() > 0.98


def test_a_field_at_the_cubes_sides_is_closed_there() -> None:
    mesh = made(lambda points: 0.3 - points[..., :2].norm(dim=-1))
    assert mesh_statistics(mesh)["watertight"] and np.ptp(mesh.vertices[:, 2]) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("faces", [20_000, 1_500])
def test_a_torus_keeps_its_hole(faces: int) -> None:
    mesh = made(torus, faces=faces)
    assert is_watertight(mesh.faces) and euler(mesh) == 0 and len(mesh.faces) <= faces


def test_floaters_go_and_parts_stay() -> None:
    with_part = made(lambda points: torch.maximum(ball(0.4, (-0.4, 0, 0))(points), ball(0.2, (0.6, 0, 0))(points)))
    assert mesh_statistics(with_part)["components"] == 2  # 11 % of the volume
    with_floater = made(lambda points: torch.maximum(ball(0.4, (-0.4, 0, 0))(points), ball(0.12, (0.6, 0, 0))(points)))
    assert mesh_statistics(with_floater)["components"] == 1 and with_floater.vertices[:, 0].max() < 0.1  # 2.6 %


def test_a_cavity_is_filled_with_all_that_is_in_it() -> None:
    def hollow(points: Tensor) -> Tensor:
        return torch.maximum(0.1 - ball(0.6)(points).sub(0.1).abs(), ball(0.3)(points))

    mesh = made(hollow)
    assert mesh_statistics(mesh)["components"] == 1
    assert mesh_statistics(mesh)["volume"] == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)


def test_smoothing_removes_roughness_and_keeps_the_volume() -> None:
    mesh = made(ball(0.6))
    noise = np.random.default_rng(0).normal(0, 0.005, mesh.vertices.shape).astype(np.float32)
    smoothed = smooth_surface(mesh.vertices + noise, mesh.faces)
    rough_radius, radius = (np.linalg.norm(v, axis=1) for v in (mesh.vertices + noise, smoothed))
    assert radius.std() < 0.6 * rough_radius.std()
    before, after = (face_volumes(v, mesh.faces).sum() for v in (mesh.vertices, smoothed))
    assert after == pytest.approx(before, rel=0.003)  # the shrinking steps alone lose 3 %


@pytest.mark.parametrize("faces", [6_000, 1_500])
def test_decimation_respects_the_limit_and_stays_closed(faces: int) -> None:
    mesh = made(rough, resolution=64, faces=faces)
    assert faces * 0.9 < len(mesh.faces) <= faces
    assert mesh_statistics(mesh)["watertight"]


def test_too_few_faces_are_an_error() -> None:
    full = made(torus)
    with pytest.raises(MeshError, match="3 faces are too few.*allow more faces"):
        decimate_surface(full.vertices, full.faces, 3)


def test_two_bodies_that_share_an_edge_come_apart() -> None:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
    box = trimesh.convex.convex_hull(corners)
    vertices = np.concatenate([box.vertices, box.vertices + [1, 1, 0]]).astype(np.float32)
    faces = np.concatenate([box.faces, box.faces + len(box.vertices)])
    vertices, index = np.unique(vertices, axis=0, return_inverse=True)
    faces = index.reshape(-1)[faces].astype(np.int32)
    assert len(vertices) == 14 and not is_watertight(faces)
    apart, cut = make_manifold(vertices, faces)
    mesh = Mesh(apart, cut, vertex_normals(apart, cut), np.zeros((len(apart), 3), np.uint8))
    measured = mesh_statistics(mesh)
    assert measured["watertight"] and measured["components"] == 2 and measured["vertices"] == 16
    assert face_volumes(apart, cut).sum() == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize(
    "density, cure",
    [
        (lambda points: torch.zeros(len(points)), "field is empty.*run more steps"),
        (lambda points: torch.full((len(points),), 0.1), "field is empty.*run more steps"),
        (lambda points: torch.full((len(points),), 50.0), "field is full.*weight_opacity"),
        (lambda points: torch.where(points[:, 0] > 0.9, torch.nan, 1.0), "not finite.*checkpoint"),
    ],
    ids=["nothing", "fog", "full", "nan"],
)
def test_a_field_without_a_surface_is_an_error(density: Field, cure: str) -> None:
    with pytest.raises(MeshError, match=cure):
        extract_mesh(analytic(density), resolution=24, faces=1000)


def test_fog_that_fills_a_scene_is_no_ball() -> None:
    scene = RadianceScene(Preset.make({"scene.grid_size": 16}))
    state = scene.state()
    state["density_levels.0"].fill_(9.0)
    scene.load_state(state)
    with pytest.raises(MeshError, match="field is full: 100%.*weight_opacity"):
        extract_mesh(scene, resolution=24, faces=1000)


@pytest.mark.parametrize("bad", [{"resolution": 4}, {"faces": 3}, {"threshold": 0.0}, {"threshold": float("nan")}])
def test_impossible_wishes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(MeshError, match=f"{next(iter(bad))}={next(iter(bad.values()))}"):
        made(ball(0.5), **bad)


def test_a_threshold_above_the_field_is_an_error() -> None:
    with pytest.raises(MeshError, match="lower the threshold"):
        made(ball(0.5), threshold=61.0)


# ---------------------------------------------------------------------------------------------------------- threshold


@pytest.mark.parametrize(
    "density", [matter(LOPSIDED, 10, 0.1), matter(LOPSIDED, 60, 0.02), matter(LOPSIDED, 5000, 0.01)],
    ids=["soft", "firm", "hard"],
)  # fmt: skip
def test_the_threshold_reproduces_the_rendered_silhouette(density: Field) -> None:
    """In fog of a tenth of what is opaque, from cameras that the choice did not see."""
    scene = analytic(lambda points: density(points) + 0.15)
    mesh = extract_mesh(scene, resolution=64, faces=20_000)
    cameras = geometry_cameras.turntable_cameras(2, start_deg=20)
    opaque = scene.render(cameras, 64, background=torch.ones(1, 3)).opacity[:, :, 0].numpy() > 0.5
    mask = rasterise_mesh(mesh, cameras, 64).mask
    assert (mask & opaque).sum() / (mask | opaque).sum() > 0.96


def test_of_thresholds_that_do_equally_well_the_middle_is_taken() -> None:
    scene = analytic(lambda points: torch.full(points.shape[:-1], 50.0))  # a full cube: each of 1e-4 .. 1 times 50
    assert best_threshold(scene, density_grid(scene, 16)) == pytest.approx(0.5, rel=0.1)


# ------------------------------------------------------------------------------------------------------------- colour


def test_colour_is_what_a_camera_sees() -> None:
    """The field is magenta where it is too thin to be seen, green where light is absorbed."""
    depth, edge = ball(0.5), -0.04
    green, magenta = torch.tensor([0.1, 0.8, 0.2]), torch.tensor([1.0, 0.0, 1.0])
    scene = analytic(matter(depth, 40, 0.02), lambda p: torch.where(depth(p)[..., None] > edge, green, magenta))
    mesh = extract_mesh(scene, resolution=48, faces=20_000, threshold=2.0)
    at_surface = scene.colour(torch.from_numpy(mesh.vertices)) * 255
    assert at_surface[:, 1].max() < 1  # the naive choice is all magenta
    passed = np.exp(-40 * 0.02 * np.log1p(np.exp(edge / 0.02)))  # the integral of the density down to the edge
    seen = 255 * (passed * green + (1 - passed) * magenta).numpy()
    assert np.abs(mesh.colours - seen).max() < 8


def test_colour_does_not_depend_on_the_batch() -> None:
    scene = analytic(matter(ball(0.5)))
    points = np.random.default_rng(0).normal(size=(30_000, 3)).astype(np.float32)
    points *= 0.5 / np.linalg.norm(points, axis=1, keepdims=True)
    whole = surface_colour(scene, points, points * 2, 0.04)
    assert np.array_equal(whole[-100:], surface_colour(scene, points[-100:], points[-100:] * 2, 0.04))


def test_a_texture_shows_the_vertex_colours() -> None:
    mesh = made(ball(0.6), resolution=16, faces=400, texture=True)
    assert mesh.notes == () and mesh.texture is not None and mesh.uv is not None
    assert mesh.texture.shape == (64, 64, 3) and len(mesh.uv) == len(mesh.vertices) > len(
        np.unique(mesh.vertices, axis=0)
    )
    column = np.clip((mesh.uv[:, 0] * 64).astype(int), 0, 63)
    row = np.clip(((1 - mesh.uv[:, 1]) * 64).astype(int), 0, 63)
    difference = np.abs(mesh.texture[row, column].astype(int) - mesh.colours)
    assert np.median(difference) <= 4 and difference.max() < 40  # a texel is 3 % of the object
    assert mesh_statistics(mesh)["watertight"] and mesh_statistics(mesh)["textured"]


def test_without_time_for_a_texture_the_mesh_says_so() -> None:
    mesh = made(ball(0.6), resolution=16, faces=400, texture=True, texture_timeout_s=0.01)
    assert mesh.texture is None and mesh.uv is None and len(mesh.colours) == len(mesh.vertices)
    assert len(mesh.notes) == 1 and "vertex colours" in mesh.notes[0] and "0.01 s" in mesh.notes[0]


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
def test_ctrl_c_does_not_reach_the_unwrapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unwrap.py").write_text(
        "import os, sys, numpy\n"
        "numpy.savez(sys.stdout.buffer, origin=[os.getpgrp()], faces=[[0, 0, 0]], uv=[[0.0, 0.0]])\n"
    )
    monkeypatch.setattr(texture, "__file__", str(tmp_path / "texture.py"))
    (group,), _, _ = texture.unwrap_mesh(pyramid(), 64, timeout_s=20)
    assert group != os.getpgrp()


# -------------------------------------------------------------------------------------------------------------- files


def test_statistics_are_json_and_weld_seams() -> None:
    mesh = pyramid()
    corners = mesh.faces.ravel()
    flat = replace(
        mesh, vertices=mesh.vertices[corners], normals=mesh.normals[corners], colours=mesh.colours[corners],
        faces=np.arange(12, dtype=np.int32).reshape(4, 3),
    )  # fmt: skip
    for given in (mesh, flat):
        measured = json.loads(json.dumps(mesh_statistics(given), allow_nan=False))
        assert measured["vertices"] == measured["faces"] == 4 and measured["watertight"]
        assert measured["volume"] == pytest.approx(0.6 * 0.4 * 0.8 / 6)
        assert np.allclose(measured["bounds"], [[0, 0, 0], [0.6, 0.4, 0.8]])
    assert not mesh_statistics(replace(mesh, faces=mesh.faces[:3]))["watertight"]
    assert not mesh_statistics(replace(mesh, faces=np.vstack([mesh.faces[:3], mesh.faces[3:, ::-1]])))["watertight"]


# ----------------------------------------------------------------------------------------------------------- pictures


def test_a_rasterised_sphere_has_its_projected_radius_and_depth() -> None:
    mesh = made(ball(0.6))
    cameras = geometry_cameras.turntable_cameras(2, elevation_deg=20)
    seen = rasterise_mesh(mesh, cameras, 128)
    distance, half = float(cameras.distance[0, 0]), np.tan(np.deg2rad(20))
    outline = 0.6 / np.sqrt(distance**2 - 0.6**2) / half * 64  # px: the cone that touches the sphere
    assert np.allclose(np.sqrt(seen.mask.sum((2, 3)) / np.pi), outline, rtol=0.01)
    assert seen.depth[0, 0, 64, 64] == pytest.approx(distance - 0.6, abs=0.01)
    towards = cameras.c2w[0, 0, :3, 2].numpy()
    assert seen.normal[0, 0, 64, 64] @ towards > 0.99
    assert (seen.rgb[~seen.mask] == 1).all() and (seen.depth[~seen.mask] == 0).all()


def test_the_rasteriser_agrees_with_ray_casting() -> None:
    """Moller-Trumbore in float64 over every ray and face, from random cameras."""
    generator = np.random.default_rng(3)
    vertices = generator.uniform(-0.8, 0.8, (24, 3)).astype(np.float32)
    faces = np.arange(24, dtype=np.int32).reshape(8, 3)
    colours = generator.integers(0, 256, (24, 3)).astype(np.uint8)
    mesh = Mesh(vertices, faces, vertex_normals(vertices, faces), colours)
    azimuth, elevation = torch.tensor([[10.0, 140.0], [250.0, 333.0]]), torch.tensor([[0.0, 30.0], [80.0, -40.0]])
    cameras = geometry_cameras.orbit_cameras(azimuth, elevation, torch.full((2, 2), 2.5), torch.full((2, 2), 45.0))
    seen = rasterise_mesh(mesh, cameras, 24, lit=False)
    origins, directions = (rays.double().numpy() for rays in geometry_cameras.camera_rays(cameras, 24))
    depth, rgb = np.full(seen.depth.shape, np.inf), np.ones(seen.rgb.shape)
    for face in faces:
        a, b, c = vertices[face].astype(np.float64)
        across = np.cross(directions, c - a)
        determinant = across @ (b - a)
        second = ((origins - a) * across).sum(-1) / determinant
        turned = np.cross(origins - a, b - a)
        third = (directions * turned).sum(-1) / determinant
        t = turned @ (c - a) / determinant
        nearer = (second >= 0) & (third >= 0) & (second + third <= 1) & (t < depth)
        weights = np.stack([1 - second - third, second, third], axis=-1)
        depth[nearer], rgb[nearer] = t[nearer], (weights @ (colours[face] / 255))[nearer]
    hit = np.isfinite(depth)
    assert 0.1 < hit.mean() < 0.9 and np.array_equal(hit, seen.mask)
    assert np.allclose(seen.depth[hit], depth[hit], atol=1e-5) and np.allclose(seen.rgb, rgb, atol=1e-4)


def test_light_comes_from_the_camera() -> None:
    mesh = made(ball(0.6))
    grey = replace(mesh, colours=np.full_like(mesh.colours, 128))
    cameras = geometry_cameras.turntable_cameras(1)
    lit, plain = (rasterise_mesh(grey, cameras, 64, lit=lit) for lit in (True, False))
    assert np.allclose(plain.rgb[plain.mask], 128 / 255, atol=1e-6)
    assert lit.rgb[0, 0, 32, 32, 0] == pytest.approx(128 / 255, abs=0.01)
    assert lit.rgb[lit.mask].min() < 0.42 and lit.rgb[lit.mask].max() <= 128 / 255 + 1e-6


def test_a_camera_inside_the_mesh_is_refused() -> None:
    with pytest.raises(ValueError, match="move the camera away"):
        rasterise_mesh(pyramid(), geometry_cameras.turntable_cameras(1, distance_factor=0.1), 8)
