"""Gaussians as a scene: where they start, what they show, how they learn and move, and the mesh that they make."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch.nn.functional import normalize

from psd.config.preset import Preset
from psd.geometry.cameras import turntable_cameras
from psd.geometry.cleanup import MeshError, vertex_normals
from psd.geometry.export import encode_mesh, list_formats
from psd.geometry.mesh import Mesh, mesh_statistics
from psd.geometry.splat import Gaussians, quaternion_matrices
from psd.scenes import gaussian_volume, gaussians
from psd.scenes.choose import make_scene
from psd.scenes.gaussian_volume import GaussianVolume, fill_grid
from psd.scenes.gaussians import GaussianScene, turn_up_to
from psd.scenes.interfaces import Light, MeshSettings, Render, StartsFromMesh, Thresholded
from psd.scenes.relocation import choose_hosts, share_opacity

WHITE = torch.ones(1, 3)
FINE = MeshSettings(resolution=64, faces=500_000)


def cloud(**scene: Any) -> tuple[GaussianScene, Preset]:
    preset = Preset.make({"scene": {"kind": "gaussians", "gaussians": 600, **scene}})
    made = make_scene(preset)
    assert isinstance(made, GaussianScene) and isinstance(made, StartsFromMesh) and isinstance(made, Thresholded)
    return made, preset


def show(scene: GaussianScene, size: int = 48, **keywords: Any) -> Render:
    return scene.render(turntable_cameras(4, elevation_deg=20), size, background=WHITE, **keywords)


def bowl() -> Mesh:
    """A torus that stands off the middle, red above and blue below."""
    shape = trimesh.creation.torus(0.4, 0.18, major_sections=64, minor_sections=32)
    shape.apply_translation([0.1, -0.05, 0.2])
    vertices, faces = np.asarray(shape.vertices, np.float32), np.asarray(shape.faces, np.int32)
    colours = np.where(vertices[:, 2:] > 0.2, [230, 20, 20], [20, 20, 230]).astype(np.uint8)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_adam(scene: GaussianScene, preset: Preset) -> torch.optim.Adam:
    return torch.optim.Adam(scene.parameter_groups(preset), betas=(0.9, 0.99), eps=1e-15)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_a_fresh_scene_is_a_soft_grey_ball() -> None:
    scene, _ = cloud(gaussians=2000)
    seen = show(scene, 64, normals=True)
    inside = seen.opacity[0, 0, 0] > 0.5
    outline = 0.5 / math.sqrt(float(turntable_cameras(1).distance) ** 2 - 0.25) / math.tan(math.radians(20)) * 32
    assert int(inside.sum()) == pytest.approx(math.pi * outline**2, rel=0.15) and seen.regularisers == {}
    assert torch.allclose(seen.rgb[0, 0, :, 32, 32], 0.5 + 0.5 * (1 - seen.opacity[0, 0, :, 32, 32]), atol=1e-5)
    towards = turntable_cameras(4, elevation_deg=20).c2w[0, 0, :3, 2]
    assert seen.normal is not None
    mean = normalize(seen.normal[0, 0, :, 26:38, 26:38].mean((1, 2)), dim=0)
    assert (mean * towards).sum() > 0.95
    assert float(scene.state()["position"].norm(dim=-1).max()) <= 0.5


def test_light_falls_from_where_it_stands() -> None:
    scene, _ = cloud()
    scene.start_from(bowl())
    above = torch.tensor([0.0, 0.0, 4.0]).expand(1, 4, 3)
    dark, white = (Light(above, torch.tensor([0.2]), torch.tensor([colour])) for colour in (0.0, 1.0))
    plain, lit, shape = show(scene), show(scene, light=dark), show(scene, light=white)
    assert torch.equal(lit.opacity, plain.opacity) and (lit.rgb <= plain.rgb + 1e-5).all()
    solid = plain.opacity[:, :, 0] > 0.95
    grey = shape.rgb.movedim(2, -1)[solid]
    assert torch.allclose(grey.amin(-1), grey.amax(-1), atol=1e-5) and grey.std() > 0.1  # white, more or less lit


def test_only_terms_with_a_weight_are_measured_and_only_in_training() -> None:
    scene, _ = cloud(weight_cover=0)
    assert set(show(scene, generator=torch.Generator()).regularisers) == {"haze", "alpha"}


# ------------------------------------------------------------------------------------------------------- relocation


@pytest.mark.parametrize("opacity", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("sharers", [1, 2, 3, 20])
def test_those_that_share_a_place_look_like_the_one_that_had_it(opacity: float, sharers: int) -> None:
    """In the middle, and summed along a line across."""
    each, factor = share_opacity(torch.tensor([opacity]).double(), torch.tensor([sharers]))
    assert float(1 - (1 - each) ** sharers) == pytest.approx(opacity, rel=1e-5)
    across = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    one = opacity * torch.exp(-(across**2) / 2)
    many = 1 - (1 - each * torch.exp(-((across / factor) ** 2) / 2)) ** sharers
    assert float(many.sum()) == pytest.approx(float(one.sum()), rel=1e-4)
    assert float(factor) == pytest.approx(1.0) if sharers == 1 else float(factor) < 1


def test_hosts_live_and_are_drawn_by_opacity() -> None:
    opacity, is_dead = torch.tensor([0.001, 0.2, 0.6, 0.001] + [0.001] * 4000), torch.ones(4004, dtype=torch.bool)
    is_dead[1:3] = False
    host = choose_hosts(opacity, is_dead, seeded())
    assert len(host) == 4002 and set(host.tolist()) == {1, 2}
    assert float((host == 2).float().mean()) == pytest.approx(0.75, abs=0.03)
    assert torch.equal(host, choose_hosts(opacity, is_dead, seeded()))


def test_the_dead_move_onto_the_living_and_the_picture_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, preset = cloud()
    scene.start_from(bowl())
    optimiser = make_adam(scene, preset)
    show(scene, generator=torch.Generator()).rgb.square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        scene.values["logit_opacity"][:40] = -6.0  # faded
        scene.values["logit_opacity"][40:60] = -3.0
        scene.values["position"][40:60, 0] += 3.0  # out of the ball and of the pictures
        scene.values["logit_opacity"][60:] = 0.5
        before, kept = show(scene).rgb, scene.state()
    monkeypatch.setattr(gaussians, "PARTED", 0.0)
    dead = scene.relocate_dead(optimiser, seeded())
    assert dead.tolist() == list(range(60))
    with torch.no_grad():
        assert (show(scene).rgb - before).abs().mean() < 0.004 and not torch.equal(show(scene).rgb, before)
    place = scene.values["position"]
    hosts = torch.cdist(place[:60], place[60:]).argmin(1) + 60
    assert torch.equal(place[:60], place[hosts]) and (scene.gaussians().opacity > gaussians.DEAD).all()
    chosen, sharers = hosts.unique(return_counts=True)
    _, factor = share_opacity(kept["logit_opacity"][chosen].sigmoid(), sharers + 1)
    shrunk = scene.state()["log_size"][chosen] - kept["log_size"][chosen]
    assert torch.allclose(shrunk, factor.log()[:, None].expand_as(shrunk), atol=1e-5) and (factor < 1).all()
    touched = torch.zeros(600, dtype=torch.bool)
    touched[:60] = touched[hosts] = True
    for name, value in scene.values.items():
        means = optimiser.state[value]["exp_avg"]
        assert not means[touched].any(), name
        assert name == "rotation" or means[~touched].any(), name  # discs: some turns change nothing
        assert torch.equal(value[~touched], kept[name][~touched]), name
    monkeypatch.setattr(gaussians, "PARTED", 0.5)
    with torch.no_grad():
        scene.values["logit_opacity"][:5] = -6.0
    scene.relocate_dead(optimiser, seeded())
    assert float(torch.cdist(place[:5], place[5:]).detach().min()) > 0  # parted, or they would move as one for ever


def test_nothing_moves_where_none_or_all_are_dead() -> None:
    scene, preset = cloud()
    for logit in (0.0, -9.0):
        with torch.no_grad():
            scene.values["logit_opacity"].fill_(logit)
        before = scene.state()
        assert not len(scene.relocate_dead(make_adam(scene, preset), seeded()))
        assert all(torch.equal(value, before[name]) for name, value in scene.state().items())


def test_sizes_stay_within_their_bounds_and_moves_come_in_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, preset = cloud(relocate_every=3)
    optimiser, moved = make_adam(scene, preset), []
    monkeypatch.setattr(scene, "relocate_dead", lambda *given: moved.append(int(scene.steps)))
    with torch.no_grad():
        scene.values["log_size"][0], scene.values["log_size"][1] = -20.0, 5.0
    for _ in range(7):
        scene.after_step(optimiser)
    low, high = gaussians.SIZES
    size = scene.gaussians().size
    assert moved == [3, 6] and torch.allclose(size[:2, 0], torch.tensor([low, high]))


# --------------------------------------------------------------------------------------------------------- learning


def test_a_ball_becomes_what_it_is_pulled_to() -> None:
    target, _ = cloud(gaussians=800)
    target.start_from(bowl())
    scene, preset = cloud(gaussians=400, relocate_every=10, position_lr=0.02)
    with torch.no_grad():
        wanted, before = show(target, 24), show(scene, 24)
    optimiser, moved = make_adam(scene, preset), 0
    for _ in range(50):
        seen = show(scene, 24, generator=torch.Generator())
        loss = (seen.rgb - wanted.rgb).square().sum() + (seen.opacity - wanted.opacity).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        held = scene.state()["position"]
        scene.after_step(optimiser)
        moved += int((scene.state()["position"] != held).any(-1).sum())
    with torch.no_grad():
        after = show(scene, 24)
    assert moved > 20
    assert (after.opacity - wanted.opacity).abs().mean() < 0.15 * (before.opacity - wanted.opacity).abs().mean()
    assert (after.rgb - wanted.rgb).square().mean() < 4e-3


# ------------------------------------------------------------------------------------------------------------ meshes


def test_gaussians_go_on_from_a_mesh_and_make_it_again() -> None:
    mesh = bowl()
    scene, _ = cloud(gaussians=2000)
    scene.start_from(mesh)
    made = scene.extract_mesh(FINE)
    ours, theirs = mesh_statistics(made), mesh_statistics(mesh)
    assert ours["watertight"] and ours["components"] == 1 and ours["threshold"] > 0
    # Silhouettes of 64 px are soft: the surface lies up to half a pixel, 0.017, farther out.
    assert theirs["volume"] < ours["volume"] < 1.2 * theirs["volume"]
    assert np.allclose(ours["bounds"], theirs["bounds"], atol=0.03)
    assert trimesh.Trimesh(made.vertices, made.faces, process=False).euler_number == 0
    red, clear = made.colours[:, 0] > made.colours[:, 2], np.abs(made.vertices[:, 2] - 0.2) > 0.05
    assert np.array_equal(red[clear], made.vertices[clear, 2] > 0.2)
    count = scene.face_counter(64)
    assert count(made.threshold or 0) == pytest.approx(len(made.faces), abs=2)
    fewer = scene.extract_mesh(MeshSettings(64, 900))
    assert fewer.faces.shape[0] <= 900 and fewer.splats is not None
    for suffix in list_formats(fewer):
        assert encode_mesh(fewer, f"mesh.{suffix}", provenance={})[f"mesh.{suffix}"]
    with torch.no_grad():
        scene.values["position"].zero_()
    assert fewer.splats.position.any()


def test_discs_lie_on_the_surface() -> None:
    up = normalize(torch.randn(50, 3, generator=seeded()), dim=-1)
    up[0], up[1] = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 1.0])
    assert torch.allclose(quaternion_matrices(turn_up_to(up))[:, :, 2], up, atol=1e-5)
    scene, _ = cloud()
    scene.start_from(bowl())
    place = scene.values["position"].detach() - torch.tensor([0.1, -0.05, 0.2])
    ring = torch.stack([torch.hypot(place[:, 0], place[:, 1]) - 0.4, place[:, 2]], dim=-1)
    below = gaussians.BELOW * float(scene.gaussians().size[0, 2])
    assert torch.allclose(ring.norm(dim=-1), torch.tensor(0.18 - below), atol=0.003)
    thin = scene.gaussians().axes()[:, :, 2] / scene.gaussians().size[:, 2:]
    outward = torch.cat([normalize(place[:, :2], dim=-1) * ring[:, :1], ring[:, 1:]], dim=-1)
    assert (thin * normalize(outward, dim=-1)).sum(-1).min() > 0.97


def test_a_density_absorbs_what_its_gaussian_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    opacity = torch.tensor([0.7, 0.7])
    size = torch.tensor([[0.08, 0.08, 0.08], [0.12, 0.1, 0.002]])  # the second thinner than a cell
    both = Gaussians(
        torch.tensor([[0.013, -0.021, 0.3], [0.0, 0.0, -0.4]]), size, torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4),
        opacity, torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]]),
    )  # fmt: skip
    grid = fill_grid(both, 65)
    absorbed = grid[0].sum(2) * (2 / 64)  # along z, at grid points
    assert float(absorbed[32, 32]) == pytest.approx(-2 * math.log(0.3), rel=0.08)
    in_all = -math.log(0.3) * 2 * math.pi * (0.08**2 + 0.12 * 0.1)
    assert float(grid[0].sum()) * (2 / 64) ** 3 == pytest.approx(in_all, rel=0.02)
    scene, _ = cloud()
    volume = GaussianVolume(scene, both, 65)
    found = volume.colour(torch.tensor([[0.0, 0.0, 0.3], [0.0, 0.0, -0.4]]))
    assert torch.allclose(found, both.colour, atol=1e-4)
    assert volume.density(torch.tensor([[0.9, 0.9, 0.9]])) == 0
    monkeypatch.setattr(gaussian_volume, "PAIRS", 100)
    assert torch.allclose(fill_grid(both, 65), grid, atol=1e-4)


def test_gaussians_that_show_nothing_make_no_mesh() -> None:
    scene, _ = cloud()
    with torch.no_grad():
        scene.values["logit_opacity"].fill_(-9.0)
    with pytest.raises(MeshError, match="the field is empty"):
        scene.extract_mesh(FINE)


# ------------------------------------------------------------------------------------------------------------- state


def test_a_state_makes_the_same_pictures_and_no_other_fits() -> None:
    scene, preset = cloud()
    scene.start_from(bowl())
    scene.steps += 7
    other = make_scene(preset)
    other.load_state(scene.state())
    assert torch.equal(show(scene).rgb, other.render(turntable_cameras(4, elevation_deg=20), 48, background=WHITE).rgb)
    assert isinstance(other, GaussianScene) and int(other.steps) == 7
    with pytest.raises(RuntimeError, match="position has shape"):
        cloud(gaussians=100)[0].load_state(scene.state())
    with pytest.raises(RuntimeError, match="has position, log_size, .*steps, not grid"):
        scene.load_state({"grid": torch.zeros(1)})
