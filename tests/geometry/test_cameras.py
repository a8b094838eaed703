"""Cameras: frames, signs and pixel order, against a projection written out in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psd.geometry.cameras import (
    Cameras,
    camera_rays,
    mvdream_condition,
    orbit_cameras,
    sample_orbits,
    turntable_cameras,
)


def one(azimuth: float, elevation: float, distance: float = 3.0, fovy: float = 40.0) -> Cameras:
    return orbit_cameras(*(torch.tensor([[float(value)]]) for value in (azimuth, elevation, distance, fovy)))


def project(c2w: np.ndarray, fovy_deg: float, size: int, point: np.ndarray) -> tuple[float, float, float]:
    """Pixel coordinates (x right, y down, origin at the top left corner) and depth of a world point; float64."""
    x, y, z = np.linalg.inv(c2w) @ np.array([*point, 1.0]) @ np.eye(4)[:, :3]
    focal = size / 2 / math.tan(math.radians(fovy_deg) / 2)
    return size / 2 + focal * x / -z, size / 2 - focal * y / -z, -z


ANGLES = {"azimuth": st.floats(-360, 720), "elevation": st.floats(-89, 89)}


@given(**ANGLES, distance=st.floats(0.1, 20))
def test_poses_are_rigid_right_handed_and_look_at_the_origin(azimuth: float, elevation: float, distance: float) -> None:
    c2w = one(azimuth, elevation, distance).c2w[0, 0].double()
    rotation, eye = c2w[:3, :3], c2w[:3, 3]
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3).double(), atol=1e-6, rtol=0)
    assert torch.linalg.det(rotation) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(eye, rotation[:, 2] * distance, atol=1e-5, rtol=1e-5)  # looks along -z at the origin
    assert rotation[2, 0] == 0 and rotation[2, 1] > 0  # level, and upright
    assert c2w[3].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("azimuth", "elevation", "eye"),
    [(0, 0, (2, 0, 0)), (90, 0, (0, 2, 0)), (180, 0, (-2, 0, 0)), (270, 0, (0, -2, 0)), (0, 30, (3**0.5, 0, 1)),
     (90, -30, (0, 3**0.5, -1))],
)  # fmt: skip
def test_azimuth_starts_at_the_front_and_grows_counter_clockwise(azimuth: float, elevation: float, eye: tuple) -> None:
    position = one(azimuth, elevation, distance=2.0).c2w[0, 0, :3, 3]
    torch.testing.assert_close(position, torch.tensor(eye, dtype=torch.float32), atol=1e-6, rtol=0)


def test_mvdream_condition_is_the_published_matrix() -> None:
    """Elevation 15 degrees, front, from the paper's code: row-major, with the translation on the unit sphere."""
    condition = mvdream_condition(one(0, 15, distance=3.7))[0, 0].view(4, 4)
    expected = [[0, -0.2588, 0.9659, 0.9659], [1, 0, 0, 0], [0, 0.9659, 0.2588, 0.2588], [0, 0, 0, 1]]
    torch.testing.assert_close(condition, torch.tensor(expected), atol=5e-5, rtol=0)


@given(**ANGLES, fovy=st.floats(10, 100), x=st.integers(0, 15), y=st.integers(0, 15), depth=st.floats(0.5, 5))
def test_a_point_on_a_ray_is_seen_in_its_pixel(
    azimuth: float, elevation: float, fovy: float, x: int, y: int, depth: float
) -> None:
    cameras = one(azimuth, elevation, fovy=fovy)
    origins, directions = camera_rays(cameras, 16)
    point = (origins + depth * directions)[0, 0, y, x].double().numpy()
    seen_x, seen_y, seen_depth = project(cameras.c2w[0, 0].double().numpy(), fovy, 16, point)
    assert (seen_x, seen_y) == pytest.approx((x + 0.5, y + 0.5), abs=2e-3)
    assert 0 < seen_depth <= depth * (1 + 1e-5)
    assert directions[0, 0, y, x].norm() == pytest.approx(1, abs=1e-6)


def test_pixel_zero_is_at_the_top_left() -> None:
    """From the front (+x, looking along -x) the top of the image is +z, and its left side is -y."""
    _, directions = camera_rays(one(0, 0), 4)
    top_left, bottom_right = directions[0, 0, 0, 0], directions[0, 0, 3, 3]
    assert top_left[2] > 0 > bottom_right[2]
    assert top_left[1] < 0 < bottom_right[1]


def test_jitter_moves_rays_inside_their_pixels() -> None:
    cameras = turntable_cameras(3)
    generator = torch.Generator().manual_seed(0)
    half = torch.full((1, 3, 8, 8, 2), 0.5)
    torch.testing.assert_close(camera_rays(cameras, 8, jitter=half)[1], camera_rays(cameras, 8)[1], atol=0, rtol=0)
    jitter = torch.rand(1, 3, 8, 8, 2, generator=generator)
    origins, directions = camera_rays(cameras, 8, jitter=jitter)
    for view, y, x in [(0, 0, 0), (1, 7, 2), (2, 3, 7)]:
        point = (origins + 2 * directions)[0, view, y, x].double().numpy()
        seen = project(cameras.c2w[0, view].double().numpy(), float(cameras.fovy_deg[0, view]), 8, point)
        expected = jitter[0, view, y, x] + torch.tensor([x, y])
        assert seen[:2] == pytest.approx(expected.tolist(), abs=1e-3)


def test_the_turntable_starts_at_the_front_and_goes_round_once() -> None:
    cameras = turntable_cameras(8, elevation_deg=0)
    assert (cameras.groups, cameras.views) == (1, 8)
    torch.testing.assert_close(cameras.azimuth_deg, torch.arange(0, 360, 45.0)[None])
    assert cameras.c2w[0, 0, 0, 3] == cameras.distance[0, 0] > 0  # on +x
    assert turntable_cameras(4, start_deg=90).azimuth_deg[0].tolist() == [90, 180, 270, 360]


@given(factor=st.floats(0.2, 3), fovy=st.floats(5, 120))
def test_the_distance_factor_is_half_of_the_width_covered_at_the_origin(factor: float, fovy: float) -> None:
    cameras = turntable_cameras(1, elevation_deg=0, fovy_deg=fovy, distance_factor=factor)
    edge = np.array([0.0, 0.0, factor])
    assert project(cameras.c2w[0, 0].double().numpy(), fovy, 32, edge)[1] == pytest.approx(0, abs=1e-3)


ORBITS = {"elevation_deg": (5.0, 25.0), "fovy_deg": (30.0, 50.0), "distance_factor": (0.9, 1.2)}


@given(seed=st.integers(0, 2**31), groups=st.integers(1, 5), views=st.integers(1, 6))
def test_orbits_are_evenly_spaced_level_and_in_range(seed: int, groups: int, views: int) -> None:
    cameras = sample_orbits(groups, views, **ORBITS, generator=torch.Generator().manual_seed(seed))
    assert cameras.c2w.shape == (groups, views, 4, 4)
    torch.testing.assert_close(cameras.azimuth_deg.diff(dim=1), torch.full((groups, views - 1), 360 / views), atol=1e-3,
                               rtol=0)  # fmt: skip
    assert (cameras.azimuth_deg[:, 0] < 360 / views + 1e-3).all() and (cameras.azimuth_deg >= 0).all()
    width = cameras.distance * torch.tan(torch.deg2rad(cameras.fovy_deg) / 2)
    for value, (low, high) in (
        (cameras.elevation_deg, ORBITS["elevation_deg"]),
        (cameras.fovy_deg, ORBITS["fovy_deg"]),
        (width, ORBITS["distance_factor"]),
    ):
        assert (value >= low - 1e-4).all() and (value <= high + 1e-4).all()
        assert (value == value[:, :1]).all() or torch.allclose(value, value[:, :1])  # one draw for each orbit
    again = sample_orbits(groups, views, **ORBITS, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(cameras.c2w, again.c2w)


def test_orbits_reach_both_ends_of_every_range() -> None:
    cameras = sample_orbits(500, 4, **ORBITS, generator=torch.Generator().manual_seed(0))
    for value, (low, high) in (
        (cameras.elevation_deg, ORBITS["elevation_deg"]),
        (cameras.fovy_deg, ORBITS["fovy_deg"]),
        (cameras.azimuth_deg, (0, 360)),
    ):
        margin = 0.02 * (high - low)
        assert value.min() < low + margin and value.max() > high - margin


def test_permuting_views_permutes_everything() -> None:
    cameras = sample_orbits(2, 4, **ORBITS, generator=torch.Generator().manual_seed(1))
    order = [2, 0, 3, 1]
    permuted = cameras[:, order]
    assert (permuted.groups, permuted.views) == (2, 4)
    for name, value in vars(cameras).items():
        assert torch.equal(getattr(permuted, name), value[:, order]), name
    assert torch.equal(mvdream_condition(permuted), mvdream_condition(cameras)[:, order])
    assert torch.equal(camera_rays(permuted, 4)[1], camera_rays(cameras, 4)[1][:, order])


def test_moving_to_a_device_and_type_keeps_every_field() -> None:
    cameras = turntable_cameras(2)
    moved = cameras.to("meta")
    assert {value.device.type for value in vars(moved).values()} == {"meta"}
    assert moved.c2w.shape == cameras.c2w.shape
