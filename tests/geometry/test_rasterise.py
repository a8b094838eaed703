"""The differentiable rasteriser: which face is in front, where on it, and how pictures change as vertices move."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from psd.geometry.cameras import Cameras, camera_rays, orbit_cameras, turntable_cameras
from psd.geometry.rasterise import NEAREST, find_edges, rasterise_faces, rasterise_plane, smooth_silhouettes

FACE = torch.tensor([[0, 1, 2]])


def look_from_front(distance: float = 3.0, fovy_deg: float = 40.0) -> Cameras:
    """One camera on +x that looks along -x; on its screen y runs to the right and z upwards."""
    zero = torch.zeros(1, 1)
    return orbit_cameras(zero, zero, zero + distance, zero + fovy_deg)


def random_triangles(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    vertices = torch.rand(3 * count, 3, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return vertices, torch.arange(3 * count).view(-1, 3)


def show_mask(vertices: Tensor, faces: Tensor, cameras: Cameras, size: int) -> Tensor:
    fragments = rasterise_faces(vertices, faces, cameras, size)
    mask = fragments.to_image(torch.ones(len(fragments.pixel), 1))
    return smooth_silhouettes(mask, fragments, find_edges(faces))[..., 0]


def sphere(level: int, radius: float) -> tuple[Tensor, Tensor]:
    ball = trimesh.creation.icosphere(level)
    return torch.tensor(ball.vertices * radius, dtype=torch.float32), torch.tensor(ball.faces)


# ----------------------------------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize("distance", [2.5, 0.9], ids=["whole", "cut off"])
def test_of_a_closed_mesh_no_face_that_turns_away_is_missed(distance: float) -> None:
    """A torus, which hides itself; from within its hole's rim the near part is cut off and the inside is seen."""
    ring = trimesh.creation.torus(0.6, 0.3, major_sections=40, minor_sections=20)
    vertices, faces = torch.tensor(ring.vertices, dtype=torch.float32), torch.tensor(ring.faces)
    azimuth, elevation = torch.tensor([[0.0, 100.0, 200.0]]), torch.tensor([[10.0, 35.0, -50.0]])
    cameras = orbit_cameras(azimuth, elevation, torch.full((1, 3), distance), torch.full((1, 3), 45.0))
    open_one, closed = (rasterise_faces(vertices, faces, cameras, 64, closed=each) for each in (False, True))
    assert (open_one.screen[..., 2] < NEAREST).any() == (distance < 1)
    assert torch.equal(open_one.nearness, closed.nearness) and torch.equal(open_one.face, closed.face)
    inside_out = rasterise_faces(vertices, faces.flip(1), cameras, 64, closed=True)
    assert torch.allclose(inside_out.nearness, open_one.nearness) == (distance < 1), "the promise counts"


def test_faces_weights_and_depth_order_are_those_of_a_loop_over_rays_and_faces() -> None:
    """Moller-Trumbore in float64 over every ray and every face."""
    vertices, faces = random_triangles(12)
    azimuth, elevation = torch.tensor([[10.0, 140.0], [250.0, 333.0]]), torch.tensor([[0.0, 30.0], [80.0, -40.0]])
    cameras = orbit_cameras(azimuth, elevation, torch.full((2, 2), 2.2), torch.full((2, 2), 45.0))
    found = rasterise_faces(vertices, faces, cameras, 20)
    values = torch.rand(len(vertices), 4, generator=torch.Generator().manual_seed(1))
    image = found.to_image(found.interpolate(values)).flatten(0, 2).numpy()
    seen = torch.full((found.nearness.numel(),), -1).index_copy(0, found.pixel, found.face)
    rays = (a.double().numpy().reshape(-1, 3) for a in camera_rays(cameras, 20))
    for pixel, (origin, direction) in enumerate(zip(*rays)):
        best, at = np.inf, -1
        for number, face in enumerate(faces):
            a, b, c = vertices[face].double().numpy()
            across = np.cross(direction, c - a)
            determinant = across @ (b - a)
            second = (origin - a) @ across / determinant
            turned = np.cross(origin - a, b - a)
            third, t = direction @ turned / determinant, (c - a) @ turned / determinant
            if second >= 0 and third >= 0 and second + third <= 1 and t < best:
                best, at = t, number
                expected = np.array([1 - second - third, second, third]) @ values[face].double().numpy()
        assert seen[pixel] == at
        assert np.allclose(image[pixel], expected if at >= 0 else 0, atol=2e-5)


def test_a_flat_sheet_is_that_of_a_loop_over_pixels_and_faces() -> None:
    """As a texture's charts are drawn: either way round, one of them a point, in float64."""
    corner = torch.rand(9, 3, 2, generator=torch.Generator().manual_seed(4)) * 24 - 2
    corner[3] = corner[3, :1]
    pixel, face, weights = rasterise_plane(corner, 20)
    seen = torch.full((400,), -1).index_copy(0, pixel, face)
    for place in range(400):
        point = np.array([place % 20 + 0.5, place // 20 + 0.5])
        held = [-1]
        for number, (a, b, c) in enumerate(corner.double().numpy()):
            if number != 3:
                second, third = np.linalg.solve(np.stack([b - a, c - a], axis=1), point - a)
                if second >= 0 and third >= 0 and second + third <= 1:
                    held.append(number)
        assert seen[place] == held[-1]
    inside = (corner[face] * weights[:, :, None]).sum(1)
    assert torch.allclose(inside, torch.stack([pixel % 20, pixel // 20], dim=1) + 0.5, atol=1e-4)
    assert 0.3 < len(pixel) / 400 < 0.95 and torch.allclose(weights.sum(1), torch.ones(len(pixel)))


def test_perspective_is_not_linear_on_the_screen() -> None:
    """Half of the way on a slanted edge's image is not its middle."""
    near, far = torch.tensor([1.0, -0.5, 0.0]), torch.tensor([-1.0, 0.5, 0.0])
    vertices = torch.stack([near, far, torch.tensor([0.0, 0.0, 1.0])])
    fragments = rasterise_faces(vertices, FACE, look_from_front(), 64)
    bottom = fragments.pixel.max()  # just above the edge, somewhere in the middle
    row = fragments.pixel // 64 == bottom // 64
    x = (fragments.pixel[row] % 64 + 0.5) / 32 - 1
    base = fragments.weights[row, :2].sum(1)
    share = fragments.weights[row, 1] / base
    # The ray meets base (near + share (far - near)) + (1 - base) apex where y / (3 - x) = slope.
    slope = x * math.tan(math.radians(20))
    expected = (slope * (3 - base) + base / 2) / (base * (1 - 2 * slope))
    assert len(x) > 25 and torch.allclose(share, expected, atol=1e-4)
    assert (share[len(x) // 2] - 0.5).abs() > 0.1


def test_the_nearer_face_wins_whatever_the_order() -> None:
    front = torch.tensor([[0.5, -0.6, -0.6], [0.5, 0.6, -0.6], [0.5, 0.0, 0.6]])
    back = front - torch.tensor([1.0, 0.0, 0.0])
    for order in ([front, back], [back, front]):
        found = rasterise_faces(torch.cat(order), torch.arange(6).view(2, 3), look_from_front(), 32)
        middle = int(found.face[found.pixel == 16 * 32 + 16])
        assert torch.equal(order[middle], front)
        assert found.nearness[0, 16, 16].item() == pytest.approx(1 / 2.5, rel=1e-6)


def test_neighbouring_faces_leave_no_gap() -> None:
    """A fan around a random point in the middle covers every pixel of the square once the square fills the screen."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        rim = torch.tensor([[0.0, -3, -3], [0, 3, -3], [0, 3, 3], [0, -3, 3]])
        centre = torch.cat([torch.zeros(1), torch.rand(2, generator=generator) - 0.5])
        faces = torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
        found = rasterise_faces(torch.cat([rim, centre[None]]), faces, look_from_front(), 33)
        assert len(found.pixel) == 33 * 33


def test_what_is_behind_the_camera_is_not_seen() -> None:
    behind = torch.tensor([[5.0, -1.0, -1.0], [5.0, 1.0, -1.0], [5.0, 0.0, 1.0]], requires_grad=True)
    found = rasterise_faces(behind, FACE, look_from_front(), 16)
    assert len(found.pixel) == 0 and found.to_image(torch.zeros(0, 2)).shape == (1, 16, 16, 2)
    mask = show_mask(behind, FACE, look_from_front(), 16)
    assert not mask.any()
    mask.sum().backward()
    assert behind.grad is None or not behind.grad.any()


@pytest.mark.parametrize("lone", [True, False])
def test_a_face_that_reaches_behind_the_camera_is_cut(lone: bool) -> None:
    """It is seen where the loop over rays sees it in front of the camera."""
    x = (1.0, 4.0, 4.0) if lone else (4.0, 1.0, 0.0)
    vertices = torch.tensor([[x[0], 0.1, -0.3], [x[1], 0.9, -0.4], [x[2], -0.7, 0.8]], requires_grad=True)
    found = rasterise_faces(vertices, FACE, look_from_front(), 24)
    origin, direction = (a[0, 0].reshape(-1, 3).double() for a in camera_rays(look_from_front(), 24))
    a, b, c = vertices.detach().double()
    normal = torch.linalg.cross(b - a, c - a)
    t = ((a - origin) @ normal) / (direction @ normal)
    point = origin + t[:, None] * direction
    weights = torch.linalg.lstsq(torch.stack([a, b, c]).T, point.T).solution.T
    inside = (weights > 0).all(1) & (t > 0) & (3 - point[:, 0] > NEAREST)
    assert inside.any() and torch.equal(inside.nonzero()[:, 0], found.pixel)
    assert torch.allclose(found.weights.double(), weights[inside], atol=1e-4)
    found.weights[:, 0].sum().backward()
    assert torch.isfinite(vertices.grad).all()  # type: ignore[union-attr]


def test_degenerate_and_edge_on_faces_cover_nothing_and_keep_gradients_finite() -> None:
    point = torch.tensor([[0.1, 0.1, 0.1]]).expand(3, 3)
    line = torch.tensor([[0.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    edge_on = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    solid = torch.tensor([[-0.8, -0.6, -0.6], [-0.8, 0.6, -0.6], [-0.8, 0.0, 0.6]])
    vertices = torch.cat([point, line, edge_on, solid]).requires_grad_()
    faces = torch.arange(12).view(4, 3)
    found = rasterise_faces(vertices, faces, look_from_front(), 33)
    assert set(found.face.tolist()) == {3}
    image = smooth_silhouettes(found.to_image(found.interpolate(vertices)), found, find_edges(faces))
    image.square().sum().backward()
    assert torch.isfinite(image).all() and torch.isfinite(vertices.grad).all()  # type: ignore[arg-type]


def test_a_view_of_nothing_is_empty_beside_one_of_something() -> None:
    vertices, faces = sphere(1, 0.2)
    cameras = turntable_cameras(2)
    away = cameras.c2w.clone()
    away[0, 1, :3, 3] += 10 * away[0, 1, :3, 0]  # to the side
    mask = show_mask(vertices, faces, Cameras(**{**vars(cameras), "c2w": away}), 16)
    assert mask[0].any() and not mask[1].any()
    none = rasterise_faces(vertices, faces[:0], cameras, 16)
    assert not none.nearness.any() and len(find_edges(faces[:0]).ends) == 0


# ------------------------------------------------------------------------------------------- edges and outlines


def test_a_closed_surface_has_three_halves_of_its_faces_as_edges() -> None:
    _, faces = sphere(2, 1.0)
    edges = find_edges(faces)
    assert 2 * len(edges.ends) == 3 * len(faces) and (edges.opposite >= 0).all()
    assert (find_edges(faces[1:]).opposite < 0).sum() == 3


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("level", [1, 5])  # 80 faces, and 20,480: far smaller than a pixel
def test_outlines_cover_the_area_that_the_outline_encloses(size: int, level: int) -> None:
    vertices, faces = sphere(level, 0.7)
    cameras = turntable_cameras(4, elevation_deg=20)
    mask = show_mask(vertices, faces, cameras, size)
    assert mask.min() >= 0 and mask.max() <= 1 and ((mask > 0.02) & (mask < 0.98)).any()
    screen = rasterise_faces(vertices, faces, cameras, size).screen[..., :2]
    hulls = [trimesh.points.PointCloud(np.c_[points.numpy(), np.zeros(len(points))]) for points in screen]
    from scipy.spatial import ConvexHull

    areas = [ConvexHull(cloud.vertices[:, :2]).volume for cloud in hulls]
    assert np.allclose(mask.sum((1, 2)), areas, rtol=0.02 if size == 16 else 0.004)


def test_the_gradient_of_an_area_is_that_of_the_triangle() -> None:
    """Of a triangle with slanted sides, against its area's own gradient, of which only a row is sampled a pixel."""
    vertices = torch.tensor([[0.0, -0.61, -0.52], [0.0, 0.57, -0.33], [0.0, 0.08, 0.66]], requires_grad=True)
    size = 256
    show_mask(vertices, FACE, look_from_front(), size).sum().backward()
    scale = size / 2 / math.tan(math.radians(20)) / 3
    flat = vertices.detach().clone().requires_grad_()
    (y, z) = flat[:, 1], flat[:, 2]
    area = ((y[1] - y[0]) * (z[2] - z[0]) - (z[1] - z[0]) * (y[2] - y[0])) / 2 * scale**2
    area.backward()
    assert torch.allclose(vertices.grad[:, 1:], flat.grad[:, 1:], rtol=0.02, atol=0.01 * scale**2)  # type: ignore


def test_silhouette_and_colour_gradients_are_finite_differences() -> None:
    """Of a sum with weights, over a closed mesh, in float64; pixels' faces stay the same within the difference."""
    vertices, faces = sphere(1, 0.7)
    vertices = vertices.double() + 0.05 * torch.rand(vertices.shape, generator=torch.Generator().manual_seed(5))
    cameras = turntable_cameras(2, elevation_deg=25)
    cameras = Cameras(**{name: value.double() for name, value in vars(cameras).items()})
    colours = torch.rand(len(vertices), 3, generator=torch.Generator().manual_seed(6)).double()
    weights = torch.rand(2, 24, 24, 3, generator=torch.Generator().manual_seed(7)).double()
    edges = find_edges(faces)

    def total(moved: Tensor) -> Tensor:
        found = rasterise_faces(moved, faces, cameras, 24)
        return (smooth_silhouettes(found.to_image(found.interpolate(colours)), found, edges) * weights).sum()

    leaf = vertices.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    generator, agreed = torch.Generator().manual_seed(8), 0
    for _ in range(20):  # a direction in which a pixel changes its face within the step is a jump: few of them do
        direction = torch.randn(vertices.shape, generator=generator).double()
        step = 1e-6
        slope = (total(vertices + step * direction) - total(vertices - step * direction)) / (2 * step)
        agreed += abs(float(slope - (gradient * direction).sum())) < 1e-4 * float(slope.abs() + 1)
    assert agreed >= 18


def test_a_hidden_outline_leaves_no_trace() -> None:
    """A small ball behind a large one changes nothing, and gets no gradient."""
    (large, faces), (small, more) = sphere(3, 0.6), sphere(2, 0.2)
    moved = (small - torch.tensor([0.9, 0.0, 0.0])).requires_grad_()
    vertices, both = torch.cat([large, moved]), torch.cat([faces, more + len(large)])
    images = []
    for points, triangles in ((large, faces), (vertices, both)):
        found = rasterise_faces(points, triangles, look_from_front(), 48)
        picture = found.to_image(found.interpolate(torch.cat([points.detach(), torch.ones(len(points), 1)], dim=1)))
        images.append(smooth_silhouettes(picture, found, find_edges(triangles)))
    assert torch.equal(*images)
    (images[1] * torch.rand(48, 48, 4, generator=torch.Generator().manual_seed(9))).sum().backward()
    assert not moved.grad.any()  # type: ignore[union-attr]


def test_an_outline_before_something_else_blends_the_two() -> None:
    """A red square before a blue wall: its upper edge at a third of a pixel gives a mixture of that share."""
    scale = 32 / 2 / math.tan(math.radians(20)) / 2.5  # px a unit at the square
    height = 5.3 / scale  # the edge 5.3 px above the middle: 0.8 px above the centre of the row at 4.5
    square = torch.tensor([[0.5, -0.3, -0.3], [0.5, 0.3, -0.3], [0.5, 0.3, height], [0.5, -0.3, height]])
    wall = torch.tensor([[-0.5, -3.0, -3.0], [-0.5, 3.0, -3.0], [-0.5, 3.0, 3.0], [-0.5, -3.0, 3.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    found = rasterise_faces(torch.cat([square, wall]), faces, look_from_front(), 32)
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    values = torch.cat([red.expand(4, 3), blue.expand(4, 3)])
    image = smooth_silhouettes(found.to_image(found.interpolate(values)), found, find_edges(faces))
    column = image[0, :, 16]
    assert torch.allclose(column[11], red) and torch.allclose(column[9], blue)
    assert torch.allclose(column[10], 0.3 * red + 0.7 * blue, atol=1e-3)


# --------------------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
def test_a_gpu_sees_what_a_cpu_sees(record_property) -> None:
    """Pictures with smooth outlines and their gradients; and how long 20,480 faces in 4 views of 256 px take."""

    def look(level: int, size: int, device: str) -> tuple[Tensor, Tensor]:
        vertices, faces = sphere(level, 0.6)
        leaf, faces = vertices.to(device).requires_grad_(), faces.to(device)
        fragments = rasterise_faces(leaf, faces, turntable_cameras(4, elevation_deg=20).to(device), size)
        picture = smooth_silhouettes(fragments.to_image(fragments.interpolate(leaf)), fragments, find_edges(faces))
        (gradient,) = torch.autograd.grad(picture.square().sum(), leaf)
        return picture.detach().cpu(), gradient.cpu()

    (here, slope), (there, other) = (look(3, 64, device) for device in ("cpu", "cuda"))
    differs = (here - there).abs().amax(-1) > 1e-3  # a centre on an edge may fall to either side
    record_property("pixels that differ", f"{differs.float().mean().item():.1e}")
    assert differs.float().mean() < 1e-3
    assert torch.cosine_similarity(slope.flatten(), other.flatten(), dim=0) > 0.99
    look(5, 256, "cuda")
    torch.cuda.synchronize()
    begun = time.perf_counter()
    look(5, 256, "cuda")
    torch.cuda.synchronize()
    record_property("20,480 faces, 4 views of 256 px, ms", round((time.perf_counter() - begun) * 1e3))
