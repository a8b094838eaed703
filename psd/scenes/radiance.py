"""`RadianceScene`: a radiance field in the unit ball, seen by cameras.

A render marches rays through the ball, drops every sample in a cell that holds nothing, asks the field for the rest in
one call and composites.  Axes: b group, v view, h w image, n rays, m rays that meet something, s samples along a ray.

Python waits for a GPU where the size of the next tensors depends on what was found: twice in a render, a third time
where a hash field learns, and once more after each refresh of its occupancy (`occupied_radius`; 256 times a run).  It
learns 1. which rays meet the ball around the object: on paper, to march all rays of a large picture is dearer than the
wait; 2. how many samples, on how many of these rays, are in cells that hold something (`pack_samples`: all sizes in one
transfer); 3. how many of these are in sight (`pack_samples`): the others would cost a training step a kilobyte each.
The second is found by marching the first, the third by the densities of the second: no two can be read together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd.config.settings import FieldSettings, GridScene, RadianceSettings
from psd.geometry.cameras import Cameras, camera_rays
from psd.runtime import devices, lanes
from psd.runtime.devices import to_device
from psd.scenes import volume_rendering
from psd.scenes.background import Backdrop
from psd.scenes.fields.grid import GridField
from psd.scenes.fields.hash import HashField
from psd.scenes.interfaces import Light, MeshSettings, Render
from psd.scenes.shading import shade_points

if TYPE_CHECKING:
    from psd.config.preset import Preset
    from psd.config.settings import SceneSettings
    from psd.geometry.mesh import Mesh

RADIUS = 1.0  # of the ball that holds the object; there is nothing outside
# A cell is skipped if no sample in it could absorb more than this share of the light.  A tenth of it gave the same
# object (a fit with detached parts: PSNR 23.83 against 23.84, IoU .883 against .882) from twice the samples.
NOTHING = 1e-3
# A sample behind this much absorbed light is not looked at again, where looking is dear (`HashField`).
HIDDEN = 1e-3
VIEWS_A_PART = 2  # of a grid's render, of which each part is made on a lane (`psd.runtime.lanes`)
SEEN = 1e-3  # opacity of a pixel that sees something
BEHIND = "backdrop."  # of the background's names in the state


@dataclass(frozen=True)
class Rays:
    """Rays of the pixels of some views, in order."""

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    shift: Float[Tensor, " n"]  # of their samples, in steps
    first: int = 0  # how many rays of the same render come before these

    def __len__(self) -> int:
        return len(self.shift)

    def split_parts(self, size: int) -> list[Rays]:
        """In parts of ``size`` rays."""
        parts = zip(self.origins.split(size), self.directions.split(size), self.shift.split(size), strict=True)
        return [Rays(*part, first=self.first + index * size) for index, part in enumerate(parts)]


@dataclass(frozen=True)
class March:
    """Samples along rays: ``k`` kept ones in a list, and their places among ``m`` rays of ``s`` samples each."""

    points: Float[Tensor, "k 3"]
    slot: Int[Tensor, " k"]  # place of each in the flattened (m, s)
    ray: Int[Tensor, " m"]
    t_starts: Float[Tensor, "m s"]
    t_ends: Float[Tensor, "m s"]  # = t_starts where a ray has fewer samples than s

    @property
    def sample_ray(self) -> Int[Tensor, " k"]:
        """The ray of each kept sample."""
        return self.ray[torch.div(self.slot, max(1, self.t_starts.shape[1]), rounding_mode="floor")]

    def scatter(self, values: Float[Tensor, "k ..."]) -> Float[Tensor, "m s ..."]:
        """Values of the samples in their places, zero elsewhere."""
        full = values.new_zeros(self.t_starts.numel(), *values.shape[1:]).index_copy(0, self.slot, values)
        return full.view(*self.t_starts.shape, *values.shape[1:])


def pack_samples(
    kept: Bool[Tensor, "n s"],
    ray: Int[Tensor, " n"],
    origins: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n 3"],
    t_starts: Float[Tensor, "n s"],
    t_ends: Float[Tensor, "n s"],
) -> March:
    """Drops samples that are not kept and rays without any; the rest of each ray moves up, in order."""
    counts = kept.sum(-1)
    hit = counts > 0
    found = width = total = 0
    if len(counts):  # all sizes below in one transfer: a GPU is waited for once
        found, width, total = torch.stack([hit.sum(), counts.max(), counts.sum()]).tolist()
    some, flat = masked_indices(hit, found), masked_indices(kept.flatten(), total)
    counts = counts[some]
    row = torch.repeat_interleave(counts, output_size=len(flat))
    first = torch.arange(len(counts), device=ray.device) * width - (counts.cumsum(0) - counts)
    slot = torch.arange(len(row), device=ray.device) + first.index_select(0, row)
    starts, ends = t_starts.flatten().index_select(0, flat), t_ends.flatten().index_select(0, flat)
    origin, direction = (x[some].index_select(0, row) for x in (origins, directions))
    points = torch.addcmul(origin, direction, ((starts + ends) / 2)[:, None])
    march = March(points, slot, ray[some], starts.new_empty(len(some), width), starts.new_empty(len(some), width))
    return replace(march, t_starts=march.scatter(starts), t_ends=march.scatter(ends))


def masked_indices(mask: Bool[Tensor, " n"], count: int) -> Int[Tensor, " k"]:
    """Where ``mask`` holds, in order; as that is known to be in ``count`` places, nothing waits for a GPU."""
    if mask.device.type == "cuda":
        return torch.nonzero_static(mask, size=count)[:, 0]
    return mask.nonzero()[:, 0]  # less work, and on a CPU there is no wait


def occupied_radius(occupied: Bool[Tensor, "x y z"]) -> float:
    """Radius of the smallest ball around the origin that holds all occupied cells, at most `RADIUS`."""
    axis = torch.linspace(-1, 1, occupied.shape[0] + 1, device=occupied.device)
    square = torch.maximum(axis[1:].square(), axis[:-1].square())  # of a cell's far side
    distance = square[:, None, None] + square[:, None] + square
    return min(RADIUS, math.sqrt((distance * occupied).max().item()))


class RadianceScene:
    """A field and how it is rendered: ``scene.ray_samples`` samples across the ball's diameter."""

    def __init__(self, preset: Preset, device: torch.device | str = "cpu") -> None:
        assert isinstance(preset.scene, RadianceSettings)
        self.settings: FieldSettings = preset.scene
        settings = self.settings
        if isinstance(settings, GridScene):
            self.field: GridField | HashField = GridField(settings.grid_size, settings.blob_density)
        else:
            self.field = HashField(settings.blob_density, seed=preset.seed, device=device)
        self.field.to(device)
        self.notes = self.field.notes
        seeded = torch.Generator().manual_seed(preset.seed)
        self.backdrop = Backdrop(seeded).to(device) if settings.has_backdrop else None
        self.device = torch.device(device)
        self.step = 2 * RADIUS / (settings.ray_samples - 2)  # two intervals more than fit, for the shift
        self.reach: tuple[Tensor, float] | None = None  # cells of a field, and `occupied_radius` of them

    def parameter_groups(self, preset: Preset) -> list[dict]:
        """Groups for Adam with their initial learning rates; shapes never change during a run."""
        assert isinstance(preset.scene, RadianceSettings)
        groups = self.field.parameter_groups(preset)
        if self.backdrop is not None:
            params = [(BEHIND + name, value) for name, value in self.backdrop.named_parameters()]
            groups.append({"name": "background", "params": params, "lr": preset.scene.colour_lr / 10})
        return groups

    def render(
        self,
        cameras: Cameras,
        size: int,
        *,
        background: Float[Tensor, "b 3"],
        generator: torch.Generator | None = None,
        normals: bool = False,
        learned: Bool[Tensor, " b"] | None = None,
        light: Light | None = None,
    ) -> Render:
        """The views on a plain background per group, or on the learned one.

        ``generator`` (CPU) moves rays inside their pixels and samples along their rays
        (`psd.runtime.devices.draw_uniform`).
        """
        shape = (cameras.groups, cameras.views, size, size)
        device = self.device
        jitter = shift = None
        if generator is not None:
            jitter = devices.draw_uniform((*shape, 2), generator, device)
            shift = devices.draw_uniform(shape, generator, device).flatten()
        origins, directions = (x.flatten(0, -2) for x in camera_rays(cameras.to(device), size, jitter=jitter))
        if shift is None:
            shift = origins.new_full(origins.shape[:1], 0.5)
        rays = Rays(origins, directions, shift.to(origins.dtype))
        facing = self.settings.uses_normals
        look = partial(
            self._look_along, reach=self._find_reach(), normals=normals, facing=facing, light=light, pixels=size**2
        )
        if isinstance(self.field, HashField):
            flat = look(None, rays)
        else:
            table = self.field.make_table(normals=normals or facing or light is not None)
            flat = torch.cat(lanes.share_table(look, table, rays.split_parts(size * size * VIEWS_A_PART)))
        seen = rearrange(flat, "(b v h w) c -> b v c h w", b=shape[0], v=shape[1], h=size)
        opacity = seen[:, :, 3:4]
        behind = to_device(background, device)[:, None, :, None, None]
        if learned is not None and self.backdrop is not None:
            own = rearrange(self.backdrop(directions), "(b v h w) c -> b v c h w", b=shape[0], v=shape[1], h=size)
            behind = torch.where(to_device(learned, device)[:, None, None, None, None], own, behind)
        rgb = seen[:, :, :3] + (1 - opacity) * behind
        regularisers = self._ray_regularisers(opacity)
        if facing:
            regularisers["orientation"] = seen[:, :, -1:].sum() / (opacity > SEEN).sum().clamp_min(1)
        return Render(rgb, opacity, seen[:, :, 4:5], seen[:, :, 5:8] * opacity if normals else None, regularisers)

    def _look_along(
        self, table: Float[Tensor, "t c"] | None, part: Rays, *, reach: tuple[Bool[Tensor, "x y z"], float],
        normals: bool, facing: bool, light: Light | None, pixels: int,
    ) -> Float[Tensor, "n k"]:  # fmt: skip
        """What rays see: colour, opacity, depth; with ``normals`` their mean, with ``facing`` how far they face away.

        ``table``: of a grid, `GridField.make_table`.  ``reach``: `_find_reach`.  ``pixels``: of a view, whose light
        falls on its rays.
        """
        marched, needed = self._march_rays(part, *reach), normals or facing or light is not None
        if table is not None:
            assert isinstance(self.field, GridField)
            found = self.field.sample_table(table, marched.points)
        elif torch.is_grad_enabled():
            assert isinstance(self.field, HashField)
            marched, features = self._drop_hidden(self.field, marched, part)
            found = self.field.sample(marched.points, normals=needed, known=features)
        else:
            found = self.field.sample(marched.points, normals=needed)
        if light is not None:
            view = torch.div(marched.sample_ray + part.first, pixels, rounding_mode="floor")
            assert found.normal is not None
            found = replace(found, colour=shade_points(found.colour, found.normal, marched.points, light, view))
        t_starts, t_ends = marched.t_starts, marched.t_ends
        weights, _ = volume_rendering.render_weights(marched.scatter(found.density), t_starts, t_ends)
        colour = volume_rendering.composite_values(weights, marched.scatter(found.colour))
        depth = volume_rendering.expected_depth(weights, t_starts, t_ends)
        columns = [colour, weights.sum(-1, keepdim=True), depth[:, None]]
        if found.normal is not None:
            laid = marched.scatter(found.normal)
            if normals:
                columns.append(F.normalize(volume_rendering.composite_values(weights, laid), dim=-1))
            if facing:
                away = volume_rendering.orientation_loss(weights, laid, part.directions[marched.ray])
                columns.append(away[:, None])
        values = torch.cat(columns, dim=-1)
        # in the places of the rays that met something, zero elsewhere
        return values.new_zeros(len(part), values.shape[-1]).index_copy(0, marched.ray, values)

    def _ray_regularisers(self, opacity: Float[Tensor, "b v 1 h w"]) -> dict[str, Tensor]:
        """Means over all pixels, of the terms that have a weight."""
        terms = {}
        if self.settings.weight_opacity > 0:
            terms["opacity"] = opacity.mean()
        if self.settings.weight_entropy > 0:
            terms["entropy"] = volume_rendering.binary_entropy(opacity).mean()
        return terms

    def _find_reach(self) -> tuple[Bool[Tensor, "x y z"], float]:
        """The cells that may hold something, and `occupied_radius` of them."""
        occupied = self.field.occupied_cells(NOTHING / self.step)
        if self.reach is None or self.reach[0] is not occupied:  # a hash field's are the same until its next refresh
            self.reach = occupied, occupied_radius(occupied)
        return self.reach

    @torch.no_grad()
    def _march_rays(self, rays: Rays, occupied: Bool[Tensor, "x y z"], reach: float) -> March:
        """Samples in the cells that may hold something."""
        origins, directions, shift = rays.origins, rays.directions, rays.shift
        middle, closest = volume_rendering.closest_approach(origins, directions)
        near, far = volume_rendering.intersect_ball(middle, closest, reach)
        ray = (far > near).nonzero()[:, 0]  # waits for a GPU to say how many
        origins, directions = origins[ray], directions[ray]
        count = math.ceil(2 * reach / self.step) + 2
        t_starts, t_ends = volume_rendering.ray_intervals(
            middle[ray], near[ray], far[ray], self.step, count, shift[ray]
        )

        cells = occupied.shape[0]
        centre = (t_starts + t_ends) / 2
        index = torch.zeros_like(centre, dtype=torch.int32)
        for axis in range(3):  # one axis at a time: elementwise work on (n, s, 3) is three times as slow
            start, slope = (origins[:, axis] + 1) * (cells / 2), directions[:, axis] * (cells / 2)
            place = torch.addcmul(start[:, None], slope[:, None], centre).to(torch.int32).clamp_(0, cells - 1)
            index.mul_(cells).add_(place)
        filled = occupied.flatten().index_select(0, index.flatten()).view_as(centre)
        return pack_samples(filled & (t_ends > t_starts), ray, origins, directions, t_starts, t_ends)

    @torch.no_grad()
    def _drop_hidden(self, field: HashField, march: March, rays: Rays) -> tuple[March, Float[Tensor, "k 32"] | None]:
        """Without what lies behind a surface or holds nothing, found by a look at the density alone.

        A training step keeps about a kilobyte for each sample, and most of them are inside the object.  Beside them the
        features that the look found, if it kept them.
        """
        densities, features = field.look_ahead(march.points)
        density = march.scatter(densities)
        _, transmittance = volume_rendering.render_weights(density, march.t_starts, march.t_ends)
        seen = (transmittance > HIDDEN) & (density > NOTHING / self.step)
        origins, directions = rays.origins[march.ray], rays.directions[march.ray]
        kept = pack_samples(seen, march.ray, origins, directions, march.t_starts, march.t_ends)
        if features is not None:  # of the samples that stay, in the same order
            features = features[masked_indices(seen.flatten()[march.slot], len(kept.points))]
        return kept, features

    def regularisers(self) -> dict[str, Tensor]:
        """Terms of the field itself: ``tv``, its total variation, if that has a weight."""
        return {"tv": self.field.total_variation()} if self.settings.weight_tv > 0 else {}

    def advance(self, progress: float, settings: SceneSettings | None = None) -> None:
        if settings is not None:
            assert isinstance(settings, RadianceSettings)
            self.settings = settings
        self.field.advance(progress)

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Nothing: a field's parameters keep their shapes."""

    def extract_mesh(self, settings: MeshSettings) -> Mesh:
        from psd.scenes.extract import extract_mesh

        return extract_mesh(
            self, resolution=settings.resolution, faces=settings.faces, threshold=settings.threshold,
            texture=settings.texture, device=self.device,
        )  # fmt: skip

    def face_counter(self, resolution: int) -> Callable[[float], int]:
        from psd.scenes.extract import face_counter

        return face_counter(self, resolution, self.device)

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Density per world unit, 0 outside the unit ball."""
        return self.field.sample(points.to(self.device)).density

    def colour(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        return self.field.sample(points.to(self.device)).colour

    def state(self) -> dict[str, Tensor]:
        """Copies of everything that `render` depends on."""
        behind = self.backdrop.state_dict(prefix=BEHIND) if self.backdrop is not None else {}
        return {name: value.detach().clone() for name, value in {**self.field.state_dict(), **behind}.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copies in place, so that an optimiser keeps its parameters; other keys or shapes raise RuntimeError."""
        behind = {name.removeprefix(BEHIND): value for name, value in state.items() if name.startswith(BEHIND)}
        if self.backdrop is not None:
            self.backdrop.load_state_dict(behind)
            state = {name: value for name, value in state.items() if not name.startswith(BEHIND)}
        self.field.load_state_dict(state)
