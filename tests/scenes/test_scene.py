"""Volume rendering, fields and the scene: laws, then plain loops in float64, then one fit."""

import math
from collections.abc import Callable
from typing import Any, cast

import nerfacc
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from psd.config.preset import Preset
from psd.config.settings import SCENES
from psd.distillation import sampling
from psd.geometry.cameras import Cameras, camera_rays, orbit_cameras, sample_orbits, turntable_cameras
from psd.runtime import devices
from psd.scenes import volume_rendering
from psd.scenes.choose import KINDS
from psd.scenes.fields.grid import GridField
from psd.scenes.fields.hash import HashField
from psd.scenes.fields.hash_encoding import HashEncoding
from psd.scenes.fields.interpolation import (
    WeightedRows,
    grid_variation,
    interpolation_matrix,
    trilinear_corners,
    upsample_grid,
)
from psd.scenes.radiance import RadianceScene, masked_indices, occupied_radius, pack_samples
from tests.support import reference_volrend

WHITE = torch.ones(1, 3)
ALL_TERMS: dict[str, Any] = {
    "weight_tv": 1.0, "weight_opacity": 1.0, "weight_entropy": 1.0, "weight_orientation": (1.0, 1.0)
}  # fmt: skip
FIELDS = {"grid": {"kind": "grid", "grid_size": 12, "ray_samples": 16}, "hash": {"kind": "hash", "ray_samples": 16}}


def preset_of(scene: dict[str, Any], **values: Any) -> Preset:
    return Preset.make({"scene": scene, **values})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def grid_of(scene: RadianceScene) -> GridField:
    assert isinstance(scene.field, GridField)
    return scene.field


def random_rays(n: int = 5, s: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Density, t_starts, t_ends in float64; some densities zero, some intervals empty."""
    generator = seeded(1)
    density = torch.rand(n, s, generator=generator, dtype=torch.float64) * 6
    density[0, 2:5] = 0
    lengths = torch.rand(n, s, generator=generator, dtype=torch.float64)
    lengths[1, ::3] = 0
    edges = F.pad(lengths.cumsum(-1), (1, 0)) + 0.5
    return density, edges[:, :-1], edges[:, 1:]


def small_scene(**changes) -> RadianceScene:
    """A lumpy coloured object on a small grid, everything faded in."""
    scene = RadianceScene(preset_of({"grid_size": 12, "ray_samples": 24, **changes}))
    scene.advance(1.0)
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(3)) * 0.7)
    return scene


def ball(radius: float, cells: int = 32, **changes) -> RadianceScene:
    """A hard ball: raw density +6 inside, -12 outside, linear over one cell."""
    scene = RadianceScene(preset_of({"grid_size": cells, "ray_samples": 64, **changes}))
    scene.advance(1.0)
    axis = torch.linspace(-1, 1, cells + 1)
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    raw = ((radius - distance) * cells * 9).clamp(-12, 6)
    with torch.no_grad():
        field = grid_of(scene)
        field.density_levels[2].copy_(raw - field.start)
    return scene


# ---------------------------------------------------------------------------------------------------- volume rendering


def test_weights_and_what_is_left_sum_to_one() -> None:
    density, t_starts, t_ends = random_rays()
    weights, transmittance = volume_rendering.render_weights(density, t_starts, t_ends)
    left = transmittance[:, -1] * torch.exp(-density[:, -1] * (t_ends - t_starts)[:, -1])
    torch.testing.assert_close(weights.sum(-1) + left, torch.ones_like(left), rtol=0, atol=1e-14)


def test_splitting_an_interval_changes_nothing() -> None:
    density, t_starts, t_ends = random_rays()
    cut = t_starts + 0.3 * (t_ends - t_starts)
    weights, _ = volume_rendering.render_weights(density, t_starts, t_ends)
    halves, _ = volume_rendering.render_weights(
        density.repeat_interleave(2, 1),
        torch.stack([t_starts, cut], 2).flatten(1),
        torch.stack([cut, t_ends], 2).flatten(1),
    )
    torch.testing.assert_close(halves.view(*density.shape, 2).sum(-1), weights, rtol=0, atol=1e-14)


@pytest.mark.parametrize("twin", ["loop", "nerfacc"])
def test_weights_agree_with_twins_in_value_and_gradient(twin: str) -> None:
    density, t_starts, t_ends = random_rays()
    pull = torch.randn(density.shape, generator=seeded(2), dtype=torch.float64)
    results = []
    for ours in (True, False):
        leaf = density.clone().requires_grad_()
        if ours:
            weights, transmittance = volume_rendering.render_weights(leaf, t_starts, t_ends)
        elif twin == "loop":
            weights, transmittance = reference_volrend.composite(leaf, t_starts, t_ends)
        else:
            weights, transmittance, _ = nerfacc.render_weight_from_density(t_starts, t_ends, leaf)
        ((weights * pull).sum() + transmittance.square().sum()).backward()
        results.append((weights.detach(), transmittance.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-13)


def test_colour_and_depth_are_weighted_sums() -> None:
    density, t_starts, t_ends = random_rays()
    colour = torch.rand(*density.shape, 3, generator=seeded(5), dtype=torch.float64)
    weights, _ = volume_rendering.render_weights(density, t_starts, t_ends)
    expected = torch.einsum("ns,nsc->nc", weights, colour)
    torch.testing.assert_close(volume_rendering.composite_values(weights, colour), expected, rtol=1e-12, atol=0)
    middle = torch.einsum("ns,ns->n", weights, (t_starts + t_ends) / 2)
    depth = volume_rendering.expected_depth(weights, t_starts, t_ends)
    torch.testing.assert_close(depth * weights.sum(-1), middle, rtol=1e-12, atol=0)
    assert volume_rendering.expected_depth(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2)).item() == 0


def test_entropy_and_orientation() -> None:
    entropy = volume_rendering.binary_entropy(torch.tensor([0.0, 0.5, 1.0]))
    assert entropy[1].item() == pytest.approx(math.log(2))
    assert entropy[0].item() == pytest.approx(entropy[2].item(), rel=1e-3) and entropy[0] < 0.01
    weights, forward = torch.tensor([[0.25, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    normals = torch.tensor([[[-1.0, 0, 0], [0.6, 0.8, 0]]])  # the first faces the camera, the second turns away
    assert volume_rendering.orientation_loss(weights, normals, forward).item() == pytest.approx(0.5 * 0.36)


def test_rays_enter_and_leave_on_the_sphere() -> None:
    origins, directions = (x.flatten(0, -2).double() for x in camera_rays(turntable_cameras(3), 9))
    middle, closest = volume_rendering.closest_approach(origins, directions)
    near, far = volume_rendering.intersect_ball(middle, closest, 0.8)
    hit = far > near
    assert 0.2 < hit.float().mean() < 0.8
    for t in (near, far):
        radius = (origins + t[:, None] * directions)[hit].norm(dim=-1)
        torch.testing.assert_close(radius, torch.full_like(radius, 0.8), rtol=0, atol=1e-6)
    assert (closest[~hit] >= 0.8).all()
    inside = volume_rendering.intersect_ball(torch.tensor([0.3, -2.0]), torch.tensor([0.0, 0.0]), 0.8)
    torch.testing.assert_close(inside[0], torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(inside[1], torch.tensor([1.1, 0.0]))  # starts inside; lies behind


@pytest.mark.parametrize("shift", [0.0, 0.5, 0.999])
def test_intervals_cover_the_chord_once(shift: float) -> None:
    near, far = torch.tensor([1.0, 1.7], dtype=torch.float64), torch.tensor([3.0, 2.3], dtype=torch.float64)
    moved = torch.full_like(near, shift)
    t_starts, t_ends = volume_rendering.ray_intervals((near + far) / 2, near, far, 2 / 14, 16, moved)
    torch.testing.assert_close((t_ends - t_starts).sum(-1), far - near, rtol=0, atol=1e-12)
    torch.testing.assert_close(t_starts[:, 1:], t_ends[:, :-1], rtol=0, atol=0)
    assert (t_ends - t_starts).max() <= 2 / 14 + 1e-12


@pytest.mark.parametrize("density", [0.1, 1.0, 7.0])
def test_constant_ball_absorbs_what_beer_and_lambert_say(density: float) -> None:
    origins, directions = torch.tensor([[3.0, 0, 0], [3.0, 0.5, 0]]).double(), torch.tensor([[-1.0, 0, 0]] * 2).double()
    middle, closest = volume_rendering.closest_approach(origins, directions)
    near, far = volume_rendering.intersect_ball(middle, closest, 1.0)
    t_starts, t_ends = volume_rendering.ray_intervals(middle, near, far, 2 / 46, 48, torch.full_like(near, 0.3))
    weights, _ = volume_rendering.render_weights(torch.full_like(t_starts, density), t_starts, t_ends)
    chord = torch.tensor([2.0, 2 * math.sqrt(0.75)]).double()
    torch.testing.assert_close(weights.sum(-1), 1 - torch.exp(-density * chord), rtol=1e-7, atol=0)


# --------------------------------------------------------------------------------------------------------------- fields


def test_gather_is_trilinear_interpolation_with_its_gradient() -> None:
    grid = torch.randn(3, 7, 7, 7, generator=seeded(), dtype=torch.float64, requires_grad=True)
    points = torch.rand(200, 3, generator=seeded(1), dtype=torch.float64) * 2 - 1
    points[0], points[1] = 1.0, -1.0
    ours = WeightedRows.apply(grid.flatten(1).T.contiguous(), *trilinear_corners(points, 7))
    theirs = F.grid_sample(grid[None], points.flip(-1)[None, None, None], align_corners=True)[0, :, 0, 0].T
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    pull = torch.randn(ours.shape, generator=seeded(2), dtype=torch.float64)
    expected = torch.autograd.grad(theirs, grid, pull)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, grid, pull)[0], expected, rtol=1e-12, atol=1e-12)


def test_upsampling_is_trilinear_interpolation() -> None:
    grid = torch.randn(2, 4, 4, 4, generator=seeded(), dtype=torch.float64)
    expected = F.interpolate(grid[None], size=(9, 9, 9), mode="trilinear", align_corners=True)[0]
    torch.testing.assert_close(
        upsample_grid(grid, interpolation_matrix(9, 4, torch.float64)), expected, rtol=0, atol=1e-12
    )


def test_variation_has_its_own_right_gradient_and_no_unit_of_cells() -> None:
    grid = torch.randn(2, 5, 5, 5, generator=seeded(), dtype=torch.float64, requires_grad=True)
    plain = cast(torch.Tensor, sum(grid.diff(dim=axis).abs().sum() for axis in (1, 2, 3))) * 2 / 125
    torch.testing.assert_close(grid_variation(grid), plain, rtol=1e-12, atol=0)
    turned = grid_variation(grid.permute(0, 3, 1, 2))  # another order in memory
    torch.testing.assert_close(turned, plain, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(x, grid, retain_graph=True)[0] for x in (grid_variation(grid), turned, plain)]
    for gradient in gradients[:2]:
        torch.testing.assert_close(gradient, gradients[2])
    ramps = [torch.linspace(-1, 1, n)[None, :, None, None].expand(1, n, n, n) for n in (65, 129)]
    torch.testing.assert_close(grid_variation(ramps[0]), grid_variation(ramps[1]), rtol=0.02, atol=0)


def test_grid_field_starts_as_the_blob_in_grey() -> None:
    field = GridField(24, 10.0)
    points = torch.tensor([[0.0, 0, 0], [0.25, 0, 0], [0, 0.5, 0], [0, 0, 1.01]])
    found = field.sample(points)
    expected = F.softplus(10 * (1 - points.norm(dim=-1) / 0.5)) * torch.tensor([1.0, 1, 1, 0])
    torch.testing.assert_close(found.density, expected, rtol=0.02, atol=0)
    assert (found.colour == 0.5).all()


def test_empty_cells_hold_nothing() -> None:
    field = small_scene().field
    occupied = field.occupied_cells(0.5)
    assert 0.05 < occupied.float().mean() < 0.95
    points = torch.rand(4000, 3, generator=seeded()) * 2 - 1
    cell = ((points + 1) / 2 * 12).long()
    empty = ~occupied[cell[:, 0], cell[:, 1], cell[:, 2]]
    assert field.sample(points).density[empty].max() <= 0.5 + 1e-5


def test_hash_encoding_agrees_with_loops() -> None:
    encoding = HashEncoding(seeded())
    with torch.no_grad():
        encoding.params.mul_(1e4)
    points = torch.rand(6, 3, generator=seeded(1))
    points[0], points[1] = 0.0, 1.0
    found = encoding(points)
    for point, features in zip(points, found, strict=True):
        expected = reference_volrend.hash_features(encoding.params.detach(), point.tolist(), 16, 19, 16, encoding.SCALE)
        # float32 places on the finest level (size 3914) are good to 2e-4 of a cell
        torch.testing.assert_close(features, torch.tensor(expected), rtol=0, atol=2e-3)
    found.sum().backward()
    weight = known(encoding.params.grad).sum().item()  # trilinear weights sum to one per point, level and feature
    assert weight == pytest.approx(6 * 32, rel=1e-4)


def test_hash_field_renders_its_blob_and_looks_only_when_due() -> None:
    scene = RadianceScene(preset_of({"kind": "hash", "ray_samples": 16}, seed=4))
    field = cast(HashField, scene.field)
    before = scene.render(turntable_cameras(1), 8, background=WHITE)
    scene.advance(0.0)
    seen = scene.state()["seen"]
    field.blob_density = 1.0
    scene.advance(0.0)  # as a resumed run does, after the field has moved
    assert torch.equal(scene.state()["seen"], seen)
    field.blob_density = 10.0
    scene.advance(0.5)
    assert field.looks == 129 and not field.occupied_cells(1e-3).all()
    after = scene.render(turntable_cameras(1), 8, background=WHITE, normals=True)
    torch.testing.assert_close(after.rgb, before.rgb, rtol=0, atol=3e-3)
    assert before.opacity[0, 0, 0, 4, 4] > 0.9 and before.opacity[0, 0, 0, 0, 0] < 0.05
    origins, directions = (x[0, 0, 4, 4] for x in camera_rays(turntable_cameras(1), 8))
    outward = F.normalize(origins + after.depth[0, 0, 0, 4, 4] * directions, dim=0)
    assert (F.normalize(known(after.normal)[0, 0, :, 4, 4], dim=0) * outward).sum() > 0.95
    cast(torch.Tensor, sum(scene.regularisers().values())).backward()
    assert known(field.encoding.get_parameter("params").grad).abs().max() > 0


def test_a_look_that_memory_was_too_short_for_is_still_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a run that resumes from there."""
    whole, scene = (RadianceScene(preset_of({"kind": "hash", "ray_samples": 16}, seed=4)) for _ in range(2))
    plain, short = HashField.look_ahead, [True]

    def look_ahead(field: HashField, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if short:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.2 GiB")
        return plain(field, points)

    monkeypatch.setattr(HashField, "look_ahead", look_ahead)
    with pytest.raises(torch.OutOfMemoryError):
        scene.advance(0.25)
    resumed = RadianceScene(preset_of({"kind": "hash", "ray_samples": 16}, seed=4))
    resumed.load_state(scene.state())
    short.clear()
    for each in (whole, scene, resumed):
        each.advance(0.25)
    for each in (scene, resumed):
        assert all(torch.equal(value, whole.state()[name]) for name, value in each.state().items())


def test_cells_that_hold_something_are_the_same_tensor_until_they_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = RadianceScene(preset_of({"kind": "hash", "ray_samples": 16}))
    field = cast(HashField, scene.field)
    known = [field.occupied_cells(0.5)]
    for progress, size in ((0.0, 0.8), (0.5, 1.0)):
        monkeypatch.setattr(field, "look_ahead", lambda points, size=size: (size / (1 + points.norm(dim=-1)), None))
        scene.advance(progress)
        known.append(field.occupied_cells(0.5))
        scene.advance(progress)
        assert field.occupied_cells(0.5) is known[-1]
        assert torch.equal(known[-1], (F.max_pool3d(field.seen[None], 3, stride=1, padding=1) > 0.5)[0])
    assert known[0].all() and 0 < known[1].sum() < known[2].sum() < 32**3
    assert field.occupied_cells(0.6).sum() < known[2].sum() and torch.equal(field.occupied_cells(0.5), known[2])
    scene.load_state(scene.state() | {"seen": torch.zeros(32, 32, 32)})
    assert not field.occupied_cells(0.5).any()


# ------------------------------------------------------------------------------------------- what a GPU is waited for


def waits(function: Callable[[], object]) -> int:
    """How often a GPU would be waited for: values that Python reads, sizes that depend on values, lists that are sent.

    Counted on a CPU, where transfers between devices cannot be seen.
    """
    found = []

    class Calls(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            listed = function is torch.tensor and (kwargs or {}).get("device") is not None
            if listed or function in (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy):
                found.append(function)
            return function(*args, **(kwargs or {}))

    class Kernels(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            aten, kwargs = torch.ops.aten, kwargs or {}
            masked = function is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
            unsized = function is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
            reads = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
            if masked or unsized or function in reads:
                found.append(function)
            return function(*args, **kwargs)

    with Kernels(), Calls():
        function()
    return len(found)


def test_waits_are_seen() -> None:
    x = torch.arange(4.0)
    for function in (
        lambda: x.max().item(), lambda: bool(x.any()), lambda: x.tolist(), lambda: x[x > 1], lambda: x.nonzero(),
        lambda: torch.repeat_interleave(x.long()), lambda: torch.tensor([1.0], device=x.device), lambda: x.cpu(),
    ):  # fmt: skip
        assert waits(function) == 1
    assert waits(lambda: torch.nonzero_static(x, size=3)[:, 0] + torch.full((3,), 0.5) + x[x.long()[:3]]) == 0


def static(mask: torch.Tensor, count: int) -> torch.Tensor:
    """`masked_indices` as a GPU finds them."""
    return torch.nonzero_static(mask, size=count)[:, 0]


def test_a_gpu_is_waited_for_as_often_as_the_scene_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times a training step, twice a look, once more after a refresh; with a light, normals and a background."""
    monkeypatch.setattr("psd.scenes.radiance.masked_indices", static)
    scene = RadianceScene(preset_of({"kind": "hash", "ray_samples": 32, "background": "network", **ALL_TERMS}))
    scene.advance(0.0)

    def step() -> None:
        cameras, learned = turntable_cameras(2), torch.tensor([True])
        light = sampling.draw_light(cameras, seeded())
        scene.render(
            cameras, 8, background=WHITE, generator=seeded(), normals=True, learned=learned, light=light
        )  # fmt: skip

    assert [waits(step) for _ in range(3)] == [4, 3, 3]
    assert waits(torch.no_grad()(step)) == 2
    assert waits(lambda: scene.advance(0.001)) == 0  # not due yet
    assert waits(lambda: scene.advance(0.5)) == 0
    assert [waits(step) for _ in range(2)] == [4, 3]


@pytest.mark.parametrize("found", [masked_indices, static])
@pytest.mark.parametrize("kept", ["some", "none", "no rays"])
def test_packing_keeps_what_is_kept_in_order(found: Callable, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psd.scenes.radiance.masked_indices", found)
    _, t_starts, t_ends = (x[: 0 if kept == "no rays" else 6] for x in random_rays(6, 9))
    mask = torch.rand(t_starts.shape, generator=seeded(2)) < (0.4 if kept == "some" else 0)
    mask[2:4] = False
    origins, directions = (torch.randn(len(mask), 3, generator=seeded(i), dtype=torch.float64) for i in (3, 4))
    march = pack_samples(mask, torch.arange(len(mask)) * 7, origins, directions, t_starts, t_ends)
    rows = [[(i, j) for j in range(9) if mask[i, j]] for i in range(len(mask))]
    rows = [row for row in rows if row]
    width = max(map(len, rows), default=0)
    assert march.ray.tolist() == [7 * row[0][0] for row in rows] and march.t_starts.shape == (len(rows), width)
    assert march.slot.tolist() == [place * width + k for place, row in enumerate(rows) for k in range(len(row))]
    assert march.sample_ray.tolist() == [7 * i for row in rows for i, _ in row]
    for laid, times in ((march.t_starts, t_starts), (march.t_ends, t_ends)):
        wanted = [[times[i, j].item() for i, j in row] + [0.0] * (width - len(row)) for row in rows]
        assert laid.tolist() == wanted
    points = [origins[i] + (t_starts[i, j] + t_ends[i, j]) / 2 * directions[i] for row in rows for i, j in row]
    torch.testing.assert_close(march.points, torch.stack(points) if points else torch.zeros(0, 3, dtype=torch.float64))


def test_cells_are_measured_again_only_when_they_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid's follow its parameters at every step, and a hash field's are the same between refreshes."""
    measured = []
    monkeypatch.setattr(
        "psd.scenes.radiance.occupied_radius", lambda cells: measured.append(occupied_radius(cells)) or measured[-1]
    )
    for field, times in (("grid", 2), ("hash", 1)):
        measured.clear()
        scene = RadianceScene(preset_of(FIELDS[field]))
        for _ in range(2):
            scene.render(turntable_cameras(1), 4, background=WHITE)
        assert len(measured) == times
    scene = ball(0.5)
    scene.render(turntable_cameras(1), 4, background=WHITE)
    with torch.no_grad():
        grid_of(scene).density_levels[2].fill_(-40)
    scene.render(turntable_cameras(1), 4, background=WHITE)
    assert measured[-1] == 0 < measured[-2] < 0.7


class Sent(torch.Tensor):
    """A tensor of a CPU that notes how it is sent to a GPU, and stays."""

    notes: list[tuple] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.pin_memory:
            cls.notes.append(("pinned", args[0].is_contiguous()))
            return args[0]
        if function is torch.Tensor.to:
            cls.notes.append(("sent", *map(str, args[1:]), kwargs))
            return args[0]
        return super().__torch_function__(function, types, args, kwargs or {})


def test_what_is_sent_to_a_gpu_is_pinned_whole_and_not_waited_for() -> None:
    """Cameras share one elevation a group, as an expanded tensor: it can neither be pinned nor sent at once."""
    cameras = sample_orbits(
        1, 4, elevation_deg=(0, 30), fovy_deg=(40, 40), distance_factor=(1.1, 1.1), generator=seeded()
    )
    assert not cameras.elevation_deg.is_contiguous()
    Sent.notes = []
    given = Cameras(**{name: value.as_subclass(Sent) for name, value in vars(cameras).items()})
    there = given.to("cuda")
    assert Sent.notes == [("pinned", True), ("sent", "cuda", {"non_blocking": True})] * 5
    assert all(torch.equal(getattr(there, name), value) for name, value in vars(cameras).items())
    Sent.notes = []
    given.to("cpu")
    assert Sent.notes == [("sent", "cpu", None)] * 5


def test_a_cpu_jitters_by_the_generator_and_a_gpu_by_one_seeded_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, cpu = seeded(), torch.device("cpu")
    drawn = devices.draw_uniform((2, 3, 2), generator, cpu), devices.draw_uniform((2, 3), generator, cpu)
    again = seeded()
    assert torch.equal(drawn[0], torch.rand(2, 3, 2, generator=again))
    assert torch.equal(drawn[1], torch.rand(2, 3, generator=again))

    there, seeds = [], [seeded(0), seeded(0), seeded(1)]

    class Other:
        def __init__(self, device: torch.device) -> None:
            there.append(str(device))

        def manual_seed(self, seed: int) -> "Other":
            there.append(seed)
            return self

    monkeypatch.setattr("psd.distillation.sampling.torch.Generator", Other)
    monkeypatch.setattr(
        "psd.distillation.sampling.torch.rand", lambda shape, **given: there.append(str(given["device"]))
    )
    for generator in seeds:
        devices.draw_uniform((2,), generator, torch.device("cuda"))
    assert there[::3] == there[2::3] == ["cuda"] * 3
    assert there[1] == there[4] != there[7]


# ---------------------------------------------------------------------------------------------------------------- scene


def test_a_hard_ball_is_seen_as_one() -> None:
    scene = ball(0.6)
    render = scene.render(turntable_cameras(2), 32, background=WHITE, normals=True)
    assert render.rgb.shape == (1, 2, 3, 32, 32) and render.opacity.shape == render.depth.shape == (1, 2, 1, 32, 32)
    origins, directions = camera_rays(turntable_cameras(2), 32)
    middle, closest = volume_rendering.closest_approach(origins.reshape(-1, 3), directions.reshape(-1, 3))
    closest, opacity = closest.view(1, 2, 32, 32), render.opacity[:, :, 0]
    assert opacity[closest < 0.54].min() > 0.999  # no fog inside, none outside, one soft cell between
    assert opacity[closest > 0.66].max() < 1e-3
    near, _ = volume_rendering.intersect_ball(middle, closest.flatten(), 0.6)
    solid = closest < 0.45
    torch.testing.assert_close(render.depth[:, :, 0][solid], near.view_as(closest)[solid], rtol=0, atol=0.06)
    assert (render.depth[:, :, 0][closest > 0.7] == 0).all()
    outward = F.normalize(origins + near.view_as(closest)[..., None] * directions, dim=-1)
    normal = known(render.normal)
    agreement = (normal.movedim(2, -1) * outward).sum(-1)[solid]
    assert agreement.min() > 0.97
    torch.testing.assert_close(normal.norm(dim=2)[solid], torch.ones(int(solid.sum())), rtol=0, atol=2e-3)


@pytest.mark.parametrize("normals", [False, True])
def test_skipping_empty_cells_changes_nothing(monkeypatch: pytest.MonkeyPatch, normals: bool) -> None:
    scene = ball(0.5, **ALL_TERMS)

    def look() -> tuple:
        render = scene.render(turntable_cameras(2), 24, background=WHITE, generator=seeded(), normals=normals)
        scene.field.zero_grad()
        (render.rgb.square().sum() + sum(render.regularisers.values())).backward()
        return render, [known(p.grad).clone() for p in grid_of(scene).density_levels]

    skipped, skipped_gradients = look()
    everything = torch.ones(32, 32, 32, dtype=torch.bool)
    assert scene.field.occupied_cells(1e-3).float().mean() < 0.2
    monkeypatch.setattr(scene.field, "occupied_cells", lambda density: everything)
    whole, whole_gradients = look()
    for name in ("rgb", "opacity", *(["normal"] if normals else [])):
        torch.testing.assert_close(getattr(skipped, name), getattr(whole, name), rtol=0, atol=2e-3, msg=name)
    solid = whole.opacity > 0.1
    torch.testing.assert_close(skipped.depth[solid], whole.depth[solid], rtol=0, atol=5e-3)
    for name, value in skipped.regularisers.items():
        torch.testing.assert_close(value, whole.regularisers[name], rtol=5e-3, atol=1e-5)
    for ours, theirs in zip(skipped_gradients, whole_gradients, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_what_a_surface_hides_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hard ball: a training step keeps less than a quarter of its samples, and the same picture and gradient."""
    scene = RadianceScene(preset_of({"kind": "hash", "ray_samples": 256}))
    cast(HashField, scene.field).blob_density = 300.0
    scene.advance(0.0)
    counts, sample = [], scene.field.sample

    def counted(points: torch.Tensor, **keywords):
        counts.append(len(points))
        return sample(points, **keywords)

    monkeypatch.setattr(scene.field, "sample", counted)

    def look() -> tuple[torch.Tensor, list[torch.Tensor]]:
        rgb = scene.render(turntable_cameras(2), 16, background=WHITE, generator=seeded()).rgb
        return rgb.detach(), list(torch.autograd.grad(rgb.square().sum(), tuple(scene.field.parameters())))

    rgb, gradients = look()
    monkeypatch.setattr(scene, "_drop_hidden", lambda field, march, *rays: (march, None))
    whole, wanted = look()
    assert counts[0] < counts[1] / 4
    torch.testing.assert_close(rgb, whole, rtol=0, atol=3e-3)
    for one, other in zip(gradients, wanted, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()
    with torch.no_grad():
        scene.render(turntable_cameras(2), 16, background=WHITE, generator=seeded())
    assert counts[2] == counts[1]  # pictures for people are made whole


def test_an_empty_scene_shows_the_background() -> None:
    scene = small_scene(**ALL_TERMS)
    with torch.no_grad():
        grid_of(scene).density_levels[0].fill_(-40)
    background = torch.tensor([[0.1, 0.5, 0.9], [1.0, 0.0, 0.3]])
    cameras = sample_orbits(
        2, 3, elevation_deg=(0, 30), fovy_deg=(40, 40), distance_factor=(1.1, 1.1), generator=seeded()
    )
    render = scene.render(cameras, 8, background=background, normals=True)
    assert torch.equal(render.rgb, background[:, None, :, None, None].expand(2, 3, 3, 8, 8))
    assert not render.opacity.any() and not render.depth.any() and not known(render.normal).any()
    (render.rgb.sum() + sum(render.regularisers.values())).backward()
    assert all(not known(p.grad).any() for p in scene.field.parameters())


def test_turning_the_scene_with_the_cameras_changes_nothing() -> None:
    scene, turned = small_scene(), small_scene()
    with torch.no_grad():
        for ours, theirs in zip(scene.field.parameters(), turned.field.parameters(), strict=True):
            theirs.copy_(ours.rot90(1, dims=(1, 2)))  # +x goes to +y
    angle = torch.tensor([[10.0, 77.0]])
    looks = [
        orbit_cameras(angle + more, torch.full((1, 2), 20.0), torch.full((1, 2), 3.0), torch.full((1, 2), 40.0))
        for more in (0, 90)
    ]
    first, second = (
        s.render(look, 16, background=WHITE, normals=True) for s, look in zip((scene, turned), looks, strict=True)
    )
    for name in ("rgb", "opacity", "depth"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=2e-4, msg=name)
    normal = known(first.normal)
    quarter = torch.stack([-normal[:, :, 1], normal[:, :, 0], normal[:, :, 2]], dim=2)
    torch.testing.assert_close(quarter, second.normal, rtol=0, atol=5e-3)


def test_permuting_views_permutes_renders() -> None:
    scene, cameras, order = small_scene(), turntable_cameras(3), [2, 0, 1]
    straight = scene.render(cameras, 12, background=WHITE)
    permuted = scene.render(cameras[:, order], 12, background=WHITE)
    torch.testing.assert_close(permuted.rgb, straight.rgb[:, order], rtol=0, atol=1e-6)


def test_same_generator_same_bits_and_other_seed_other_samples() -> None:
    def step(seed: int) -> tuple[torch.Tensor, ...]:
        scene = small_scene(**ALL_TERMS)
        render = scene.render(turntable_cameras(2), 16, background=WHITE, generator=seeded(seed))
        (render.rgb.square().sum() + sum({**render.regularisers, **scene.regularisers()}.values())).backward()
        return (render.rgb.detach(), *(known(p.grad) for p in scene.field.parameters()))

    first, again, other = step(0), step(0), step(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("field", ["grid", "hash"])
def test_state_restores_the_render_and_keeps_the_parameters(field: str) -> None:
    changes = FIELDS[field]
    scene, other = (
        RadianceScene(preset_of(changes)),
        RadianceScene(preset_of({**changes, "blob_density": 10.0}, seed=9)),
    )
    scene.advance(0.05)
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded()) * 0.3)
    state = scene.state()
    kept = [p.data_ptr() for p in other.field.parameters()]
    other.load_state(state)
    assert kept == [p.data_ptr() for p in other.field.parameters()]
    renders = [s.render(turntable_cameras(2), 10, background=WHITE).rgb for s in (scene, other)]
    assert torch.equal(*renders)
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.add_(1)
    other.load_state(state)
    assert torch.equal(other.render(turntable_cameras(2), 10, background=WHITE).rgb, renders[0])  # a copy, not a view
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state({})


def test_finer_grids_fade_in_with_progress() -> None:
    scene = small_scene()
    pictures = []
    for progress in (0.0, 0.05, 0.2, 0.3, 1.0, 1.5):
        scene.advance(progress)
        pictures.append(scene.render(turntable_cameras(1), 12, background=WHITE).rgb)
    assert all(not torch.equal(a, b) for a, b in zip(pictures[:3], pictures[1:4], strict=True))
    assert torch.equal(pictures[3], pictures[4]) and torch.equal(pictures[4], pictures[5])
    scene.advance(0.0)
    scene.field.zero_grad()
    scene.render(turntable_cameras(1), 12, background=WHITE).rgb.sum().backward()
    coarse, fine = (known(grid_of(scene).density_levels[level].grad) for level in (0, 2))
    assert coarse.any() and not fine.any()


def test_terms_come_only_with_their_weight() -> None:
    off = dict.fromkeys(ALL_TERMS, 0.0) | {"weight_orientation": (0.0, 0.0)}
    for name, on in ALL_TERMS.items():
        scene = small_scene(**{**off, name: on})
        terms = {**scene.render(turntable_cameras(1), 8, background=WHITE).regularisers, **scene.regularisers()}
        assert set(terms) == {name.removeprefix("weight_")}
        (value,) = terms.values()
        assert value.shape == () and value > 0


def test_gradient_of_a_render_is_its_finite_difference() -> None:
    """Without orientation, whose weights are constants to its gradient (`test_mvdream_recipe`)."""
    scene = small_scene(grid_size=8, ray_samples=12, **{**ALL_TERMS, "weight_orientation": (0.0, 0.0)})
    scene.field.double()
    cameras = Cameras(**{name: value.double() for name, value in vars(turntable_cameras(1)).items()})
    pull = torch.randn(1, 1, 3, 6, 6, generator=seeded(), dtype=torch.float64)

    def loss() -> torch.Tensor:
        render = scene.render(cameras, 6, background=WHITE.double(), normals=True)
        terms = {**render.regularisers, **scene.regularisers()}
        images = (render.rgb * pull).sum() + 0.1 * render.depth.sum() + known(render.normal)[:, :, 2].sum()
        return images + sum(terms.values())

    loss().backward()
    for parameter in scene.field.parameters():
        direction = torch.randn(parameter.shape, generator=seeded(5), dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
                values.append(loss().item())
                parameter.sub_(sign * 1e-6 * direction)
        slope = (values[0] - values[1]) / 2e-6
        assert (known(parameter.grad) * direction).sum().item() == pytest.approx(slope, rel=2e-5, abs=1e-6)


def test_density_and_colour_of_points_need_no_cameras() -> None:
    scene = ball(0.6)
    points = torch.tensor([[0.0, 0, 0], [0.9, 0, 0], [0.8, 0.8, 0]])
    density = scene.density(points)
    assert density[0] > 90 and 0 < density[1] < 1e-3 and density[2] == 0
    assert scene.colour(points).shape == (3, 3)


def sphere_views(cameras: Cameras, size: int, radius: float, background: torch.Tensor) -> torch.Tensor:
    """A ball coloured by its own normals, ray by ray."""
    origins, directions = (x.reshape(-1, 3) for x in camera_rays(cameras, size))
    near, far = volume_rendering.intersect_ball(*volume_rendering.closest_approach(origins, directions), radius)
    colour = 0.5 + 0.45 * (origins + near[:, None] * directions) / radius
    rgb = torch.where((far > near)[:, None], colour, background)
    return rgb.view(1, cameras.views, size, size, 3).movedim(-1, 2)


def test_fits_a_coloured_sphere_without_fog() -> None:
    scene_settings = {"weight_tv": 5, "weight_opacity": 10, "weight_entropy": 100}
    preset = preset_of({"grid_size": 24, "ray_samples": 32, **scene_settings})
    weights = preset.scene.regulariser_weights()
    scene, generator, steps = RadianceScene(preset), seeded(), 45
    optimiser = torch.optim.Adam(scene.parameter_groups(preset), betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimiser.param_groups]
    for step in range(steps):
        scene.advance(step / steps)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - (1 - preset.lr_final) * step / steps)
        cameras = sample_orbits(
            1, 4, elevation_deg=(-10, 40), fovy_deg=(40, 40), distance_factor=(1.1, 1.1), generator=generator
        )
        background = torch.rand(1, 3, generator=generator)
        render = scene.render(cameras, 24, background=background, generator=generator)
        target = sphere_views(cameras, 24, 0.6, background)
        terms = {**render.regularisers, **scene.regularisers()}
        loss = (render.rgb - target).square().sum() / 2 + sum(weights[name] * value for name, value in terms.items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    cameras = turntable_cameras(3, start_deg=20)
    with torch.no_grad():
        render = scene.render(cameras, 32, background=WHITE)
    truth = sphere_views(cameras, 32, 0.6, WHITE)
    empty = (truth == 1).all(dim=2, keepdim=True)
    psnr = -10 * (render.rgb - truth).square().mean().log10().item()
    away = F.max_pool2d((~empty)[0].float(), 5, 1, 2)[None] == 0  # pixels on the edge are rightly mixed
    assert psnr > 25
    assert render.opacity[away].mean() < 0.005 and render.opacity[~empty].mean() > 0.95


def test_every_kind_of_scene_has_settings_and_a_class() -> None:
    assert KINDS.keys() == SCENES.keys()
