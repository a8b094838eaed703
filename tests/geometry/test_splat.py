"""Splatting: laws (an integral, order, tiles, sizes of pictures), plain loops in float64, gradients, normals."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from psd.geometry import splat
from psd.geometry.cameras import Cameras, camera_rays, orbit_cameras, turntable_cameras
from psd.geometry.splat import Gaussians, Splats, find_depth_normals, quaternion_matrices, splat_gaussians
from tests.support import reference_splat


def random_gaussians(count: int, *, size: float = 0.08, dtype: torch.dtype = torch.float64) -> Gaussians:
    """Some ellipsoids in the middle; faint ones, dense ones, needles and discs."""
    generator = torch.Generator().manual_seed(count)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rotation = normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    return Gaussians(
        draw(count, 3) * 1.4 - 0.7, size * torch.exp(2 * draw(count, 3) - 1), rotation, draw(count) ** 0.5,
        draw(count, 3),
    )  # fmt: skip


def two_views() -> Cameras:
    return turntable_cameras(2, elevation_deg=25, start_deg=40)


def channels(splats: Splats) -> Tensor:
    return torch.cat([splats.colour, splats.opacity, splats.depth], dim=2)


def test_one_gaussian_is_its_integral_along_rays_and_over_the_pixels_filter() -> None:
    """From far away, where perspective is affine: by sums over points in space."""
    distance, size = 400.0, 16
    fovy = 2 * math.degrees(math.atan(1 / distance))  # the picture is 2 world units wide, a pixel 0.125
    angles = torch.tensor([[35.0]]), torch.tensor([[20.0]])
    camera = orbit_cameras(*angles, torch.tensor([[distance]]), torch.tensor([[fovy]]))
    quaternion = normalize(torch.tensor([[0.9, 0.3, -0.4, 0.2]], dtype=torch.float64), dim=-1)
    deviations = torch.tensor([[0.35, 0.12, 0.2]], dtype=torch.float64)
    place = torch.tensor([[0.1, -0.15, 0.05]], dtype=torch.float64)
    opacity, white = torch.tensor([0.8]).double(), torch.ones(1, 3).double()
    found = splat_gaussians(Gaussians(place, deviations, quaternion, opacity, white), camera, size).opacity[0, 0, 0]
    inverse = np.linalg.inv(reference_splat.covariance(deviations[0].numpy(), quaternion[0].numpy()))
    right, up, back = camera.c2w[0, 0, :3, :3].double().numpy().T
    through = np.linspace(-3, 3, 241)

    def integrate_ray(across: np.ndarray) -> np.ndarray:
        points = across[..., None, :] + through[:, None] * back
        return np.exp(-0.5 * np.einsum("...i,ij,...j->...", points, inverse, points)).sum(-1)

    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    offsets, weights = nodes * math.sqrt(0.3) * 0.125, weights / weights.sum()
    expected = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            x, y = (column + 0.5) * 0.125 - 1, 1 - (row + 0.5) * 0.125
            grid = [[(x + dx) * right + (y + dy) * up for dx in offsets] for dy in offsets]
            middle = place[0].numpy() - (place[0].numpy() @ back) * back
            expected[row, column] = weights @ integrate_ray(np.array(grid) - middle) @ weights
    expected *= 0.8 / integrate_ray(np.zeros(3))
    counted = expected > 1 / 255
    assert 40 < counted.sum() < 200 and np.array_equal(counted, (found > 0).numpy())
    assert np.allclose(found.numpy()[counted], expected[counted], rtol=0.006)  # 1/400 of perspective


def test_a_picture_is_that_of_plain_loops() -> None:
    gaussians, cameras = random_gaussians(24), two_views()
    found = splat_gaussians(gaussians, cameras, 20)
    for view in range(2):
        pose, fovy = cameras.c2w[0, view].double().numpy(), float(cameras.fovy_deg[0, view])
        shown, solid, far = reference_splat.splat(gaussians, pose, fovy, 20)
        assert np.allclose(found.colour[0, view].movedim(0, -1), shown, atol=1e-9)
        assert np.allclose(found.opacity[0, view, 0], solid, atol=1e-9) and solid.max() > 0.9
        assert np.allclose(found.depth[0, view, 0], far, atol=1e-8)


def test_the_order_of_the_gaussians_changes_nothing() -> None:
    gaussians, order = random_gaussians(60), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    ours, theirs = (channels(splat_gaussians(some, two_views(), 32)) for some in (gaussians, gaussians.at(order)))
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_nobody_sees_where_tiles_and_batches_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians = random_gaussians(60)
    ours = channels(splat_gaussians(gaussians, two_views(), 30))
    for tile, batch in ((30, 1 << 14), (7, 1 << 14), (8, 5)):
        monkeypatch.setattr(splat, "TILE", tile)
        monkeypatch.setattr(splat, "BATCH", batch)
        assert torch.allclose(channels(splat_gaussians(gaussians, two_views(), 30)), ours, atol=1e-12)


def test_a_picture_of_another_size_shows_the_same_object() -> None:
    """Small ones keep their light: the filter of a pixel spreads it and adds none."""
    speck = Gaussians(
        torch.zeros(1, 3), torch.full((1, 3), 0.03), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([0.9]),
        torch.ones(1, 3),
    )  # fmt: skip
    light = [float(splat_gaussians(speck, turntable_cameras(1), size).opacity.sum()) / size**2 for size in (32, 256)]
    assert light[0] == pytest.approx(light[1], rel=0.04)
    away = float(turntable_cameras(1).distance)
    expected = 0.9 * 2 * math.pi * (0.03 / (2 * away * math.tan(math.radians(20)))) ** 2
    assert light[1] == pytest.approx(expected, rel=0.02)


def test_gradients_are_those_of_finite_differences() -> None:
    gaussians, pull = random_gaussians(5, size=0.15), torch.Generator().manual_seed(1)
    weights = torch.randn(1, 2, 5, 12, 12, generator=pull, dtype=torch.float64)
    leaves = [getattr(gaussians, field.name).clone().requires_grad_() for field in fields(Gaussians)]

    def measure(*values: Tensor) -> Tensor:
        return (channels(splat_gaussians(Gaussians(*values), two_views(), 12)) * weights).sum()

    assert torch.autograd.gradcheck(measure, leaves, eps=1e-7, atol=1e-5, rtol=1e-4)
    assert all(leaf.grad is None for leaf in leaves)


def test_what_is_behind_a_camera_or_faint_is_not_shown() -> None:
    gaussians = random_gaussians(4)
    behind = Gaussians(**{**vars(gaussians), "position": gaussians.position + 20 * two_views().c2w[0, 0, :3, 2]})
    faint = Gaussians(**{**vars(gaussians), "opacity": gaussians.opacity * 0 + 0.003})
    for none in (behind, faint):
        leaf = none.position.clone().requires_grad_()
        seen = splat_gaussians(Gaussians(**{**vars(none), "position": leaf}), two_views()[:, [0]], 16)
        assert not seen.opacity.any() and not seen.depth.any() and not seen.colour.any()
        seen.colour.sum().backward()
        assert leaf.grad is not None and not leaf.grad.any()


def test_opaque_things_hide_what_lies_behind_from_either_side() -> None:
    place = torch.tensor([[0.4, 0.0, 0.0], [-0.4, 0.0, 0.0]])
    pair = Gaussians(
        place, torch.full((2, 3), 0.15), torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4), torch.ones(2),
        torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]),
    )  # fmt: skip
    cameras = turntable_cameras(2, elevation_deg=0)  # from +x, then from -x
    seen = splat_gaussians(pair, cameras, 33)
    middle = seen.colour[0, :, :, 16, 16]
    assert torch.allclose(middle, torch.tensor([[0.96, 0, 0.04], [0.04, 0, 0.96]]), atol=0.01)  # a pixel's blur
    assert torch.allclose(seen.depth[0, :, 0, 16, 16], cameras.distance[0] - 0.4, atol=0.04)


def test_quaternions_turn_as_rodrigues_formula_does() -> None:
    rotation = random_gaussians(9).rotation
    expected = np.stack([reference_splat.rotation_matrix(row) for row in rotation.numpy()])
    assert np.allclose(quaternion_matrices(rotation), expected, atol=1e-12)


def test_normals_of_depths_are_those_of_a_ball() -> None:
    cameras = two_views()
    origins, directions = camera_rays(cameras, 64)
    along = -(origins * directions).sum(-1)
    half = 0.25 - (origins.square().sum(-1) - along.square())
    hit = half > 0
    depth = torch.where(hit, along - half.clamp_min(0).sqrt(), 0.0)
    normal = find_depth_normals(cameras, depth[:, :, None]).movedim(2, -1)
    true = (origins + directions * depth[..., None]) / 0.5
    agreement = (normal * true).sum(-1)
    assert (normal[~hit] == 0).all() and (agreement[hit] > 0.9).float().mean() > 0.97
    facing = hit & ((true * -directions).sum(-1) > 0.5)
    assert agreement[facing].min() > 0.97


# --------------------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
def test_a_gpu_splats_what_a_cpu_splats(record_property) -> None:
    gaussians, pictures = random_gaussians(200, dtype=torch.float32), []
    for device in ("cpu", "cuda"):
        leaves = {name: value.to(device).requires_grad_() for name, value in vars(gaussians).items()}
        picture = channels(splat_gaussians(Gaussians(**leaves), two_views().to(device), 60))
        slopes = torch.autograd.grad(picture.square().sum(), list(leaves.values()))
        pictures.append((picture.detach().cpu(), torch.cat([slope.flatten().cpu() for slope in slopes])))
    (here, slope), (there, other) = pictures
    record_property("largest difference", f"{(here - there).abs().max().item():.1e}")
    assert torch.allclose(here, there, atol=1e-3) and torch.cosine_similarity(slope, other, dim=0) > 0.999
