"""`GaussianScene`: coloured 3D Gaussians, splatted.

They start in a soft grey ball, or on the mesh of the scene of the stage before.  Their number stays: now and then those
that have faded, or left the unit ball, are moved onto living ones (`psd.scenes.relocation`).  Axes: b group, v view, h
w image, n Gaussians, m moved ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from psd.config.settings import GaussianSettings
from psd.geometry.cameras import Cameras, camera_rays
from psd.geometry.splat import Gaussians, Splats, find_depth_normals, splat_gaussians
from psd.geometry.splat_backends import splat_backend
from psd.runtime.devices import to_device
from psd.scenes.gaussian_volume import GaussianVolume
from psd.scenes.interfaces import Light, MeshSettings, Render
from psd.scenes.relocation import choose_hosts, share_opacity
from psd.scenes.shading import shade_points
from psd.scenes.tensors import copy_tensors, load_tensors
from psd.scenes.volume_rendering import binary_entropy

if TYPE_CHECKING:
    from psd.config.preset import Preset
    from psd.config.settings import SceneSettings
    from psd.geometry.mesh import Mesh

FAINT, SOLID = 0.1, 0.9  # opacity at the start, in a ball (as DreamGaussian's) and on a mesh
APART = 0.5  # standard deviation at the start, in mean distances of neighbours
THIN = 0.3  # of the same on a mesh: the standard deviation across its surface
BELOW = 2.0  # of that: how far below the surface they lie, for seen from the side several add up beyond it
# Opacity of one that has faded, as GaussianDreamer prunes.  Differs from the paper: 0.005 is reached by none within 100
# steps, as Adam's steps shrink along with a fading one's gradients: what lies outside the object stays at 0.01 to 0.03.
DEAD = 0.05
START_RADIUS = 0.5  # of the ball in which they start: DreamGaussian's, and that of the surface and of Fantasia3D
RADIUS = 1.0  # of the ball that holds the object: outside it a Gaussian is as good as dead
SIZES = 0.002, 0.2  # world units: no standard deviation is smaller or larger
# Differs from the paper: those that share a place are parted at once, by this share of their standard deviations.
# Noise on faint ones, as there, takes thousands of steps to part them.
PARTED = 0.5
PALEST = 0.02  # colours start this far from black and from white, where a sigmoid still learns


class GaussianScene:
    """``scene.gaussians`` Gaussians and how they are rendered."""

    def __init__(self, preset: Preset, device: torch.device | str = "cpu") -> None:
        assert isinstance(preset.scene, GaussianSettings)
        self.settings: GaussianSettings = preset.scene
        self.device, self.seed = torch.device(device), preset.seed
        self.composite, why = splat_backend(self.device)
        self.notes = (f"splatting: {why}",) if self.device.type == "cuda" else ()  # elsewhere nothing is chosen
        self.steps = torch.zeros(1, dtype=torch.int64)  # so far; on the CPU: it is asked in each
        count, radius = preset.scene.gaussians, START_RADIUS
        seeded = torch.Generator().manual_seed(preset.seed)
        ray = normalize(torch.randn(count, 3, generator=seeded), dim=-1)
        position = ray * radius * torch.rand(count, 1, generator=seeded) ** (1 / 3)
        spacing = (4 / 3 * math.pi * radius**3 / count) ** (1 / 3)
        upright = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1)
        values = {
            "position": position, "log_size": torch.full((count, 3), math.log(APART * spacing)), "rotation": upright,
            "logit_opacity": torch.full((count,), FAINT).logit(), "logit_colour": torch.zeros(count, 3),
        }  # fmt: skip
        self.values = {name: value.to(self.device).requires_grad_() for name, value in values.items()}

    def start_from(self, mesh: Mesh) -> None:
        """Discs on the surface of a closed ``mesh``, in its colours."""
        seeded = torch.Generator().manual_seed(self.seed)
        points, normals, colours, area = sample_surface(mesh, self.settings.gaussians, seeded)
        wide = APART * math.sqrt(area / len(points)) * math.sqrt(2)
        size = torch.tensor([wide, wide, THIN * wide]).clamp(*SIZES)
        values = {
            "position": points - BELOW * size[2] * normals, "log_size": size.log().expand(len(points), 3),
            "rotation": turn_up_to(normals), "logit_opacity": torch.full((len(points),), SOLID).logit(),
            "logit_colour": colours.clamp(PALEST, 1 - PALEST).logit(),
        }  # fmt: skip
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(values[name])

    def parameter_groups(self, preset: Preset) -> list[dict]:
        """Groups for Adam with their initial learning rates; shapes never change during a run."""
        settings = preset.scene
        assert isinstance(settings, GaussianSettings)
        rates = {
            "position": settings.position_lr, "log_size": settings.size_lr, "rotation": settings.size_lr,
            "logit_opacity": settings.alpha_lr, "logit_colour": settings.tint_lr,
        }  # fmt: skip
        return [{"name": name, "params": [(name, self.values[name])], "lr": rate} for name, rate in rates.items()]

    def gaussians(self) -> Gaussians:
        """As they are now, with gradients to the parameters."""
        values = self.values
        return Gaussians(
            values["position"], values["log_size"].exp(), normalize(values["rotation"], dim=-1),
            values["logit_opacity"].sigmoid(), values["logit_colour"].sigmoid(),
        )  # fmt: skip

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
        """The views on a plain background per group; Gaussians have no background of their own.

        Nothing is jittered; ``generator`` only says that this is training, where the regularisers count.  Normals are
        those of the surface that the depths make, and light falls on that.
        """
        cameras = cameras.to(self.device)
        gaussians = self.gaussians()
        seen = splat_gaussians(gaussians, cameras, size, self.composite)
        normal = find_depth_normals(cameras, seen.depth) if normals or light is not None else None
        if light is not None and normal is not None:
            seen = shade_splats(seen, normal, cameras, light)
        behind = to_device(background, self.device)[:, None, :, None, None]
        rgb = seen.colour + (1 - seen.opacity) * behind
        facing = normal * seen.opacity if normals and normal is not None else None
        terms = self._measure_terms(gaussians, seen.opacity) if generator is not None else {}
        return Render(rgb, seen.opacity, seen.depth, facing, terms)

    def _measure_terms(self, gaussians: Gaussians, opacity: Float[Tensor, "b v 1 h w"]) -> dict[str, Tensor]:
        """Means over all pixels or all Gaussians, of the terms that have a weight."""
        measured: dict[str, Callable[[], Tensor]] = {
            "cover": lambda: opacity.mean(), "haze": lambda: binary_entropy(opacity.clamp(0, 1)).mean(),
            "alpha": lambda: gaussians.opacity.mean() + gaussians.size.mean(),
        }  # fmt: skip
        weights = self.settings.regulariser_weights()
        return {name: measure() for name, measure in measured.items() if weights[name] > 0}

    def regularisers(self) -> dict[str, Tensor]:
        """None: those of Gaussians come with their render."""
        return {}

    def advance(self, progress: float, settings: SceneSettings | None = None) -> None:
        if settings is not None:
            assert isinstance(settings, GaussianSettings)
            self.settings = settings

    @torch.no_grad()
    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Keep sizes within `SIZES`, and every ``relocate_every`` steps move the dead onto the living."""
        self.steps += 1
        step = int(self.steps)
        self.values["log_size"].clamp_(*(math.log(size) for size in SIZES))
        if step % self.settings.relocate_every == 0:
            # Seeded by the step: what a run that was stopped draws next does not depend on where.
            self.relocate_dead(optimiser, torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + step))

    @torch.no_grad()
    def relocate_dead(self, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> Int[Tensor, " m"]:
        """Move Gaussians that have faded or left the ball onto living ones; which were moved.

        Both begin anew in the optimiser: their gradients so far were those of other Gaussians.
        """
        values, opacity = self.values, self.values["logit_opacity"].sigmoid()
        is_dead = (opacity < DEAD) | (values["position"].norm(dim=-1) > RADIUS)
        dead = is_dead.nonzero()[:, 0]
        if not len(dead) or len(dead) == len(opacity):
            return dead[:0]
        host = choose_hosts(opacity, is_dead, generator)
        hosts, sharers = host.unique(return_counts=True)
        shared, factor = share_opacity(opacity[hosts], sharers + 1)
        values["logit_opacity"][hosts] = shared.clamp(DEAD, 1 - 1e-4).logit()
        values["log_size"][hosts] += factor.log()[:, None]
        for value in values.values():
            value[dead] = value[host]
        both = torch.cat([dead, hosts])
        drawn = to_device(torch.randn(len(both), 3, generator=generator), self.device)
        axes = self.gaussians().at(both).axes()
        values["position"][both] += PARTED * torch.einsum("mij,mj->mi", axes, drawn)
        for value in values.values():
            for kept in optimiser.state.get(value, {}).values():
                if kept.shape == value.shape:
                    kept[both] = 0
        return dead

    def extract_mesh(self, settings: MeshSettings) -> Mesh:
        """The surface of the density that the Gaussians make, which has a threshold; and themselves with it."""
        from psd.scenes.extract import extract_mesh

        mesh = extract_mesh(
            self._fill_volume(settings.resolution), resolution=settings.resolution, faces=settings.faces,
            threshold=settings.threshold, texture=settings.texture, device=self.device,
        )  # fmt: skip
        return replace(mesh, splats=self.gaussians().copy_values())

    def face_counter(self, resolution: int) -> Callable[[float], int]:
        from psd.scenes.extract import face_counter

        return face_counter(self._fill_volume(resolution), resolution, self.device)

    @torch.no_grad()
    def _fill_volume(self, resolution: int) -> GaussianVolume:
        return GaussianVolume(self, self.gaussians(), resolution)

    def state(self) -> dict[str, Tensor]:
        """Copies of everything that `render` and the next step depend on."""
        return copy_tensors(self._values())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copies in place; other keys or shapes raise RuntimeError."""
        load_tensors(self._values(), state, "Gaussians'")

    def _values(self) -> dict[str, Tensor]:
        return {**self.values, "steps": self.steps}


def shade_splats(seen: Splats, normal: Float[Tensor, "b v 3 h w"], cameras: Cameras, light: Light) -> Splats:
    """Light on the surface that the depths make, pixel by pixel; colours stay multiplied by opacity."""
    size = seen.depth.shape[-1]
    origins, directions = camera_rays(cameras, size)
    points = origins + directions * seen.depth.movedim(2, -1)
    solid = seen.opacity.movedim(2, -1)
    own = seen.colour.movedim(2, -1) / solid.clamp_min(1e-6)
    view = torch.arange(cameras.groups * cameras.views, device=solid.device).repeat_interleave(size * size)
    lit = shade_points(own.reshape(-1, 3), normal.movedim(2, -1).reshape(-1, 3), points.reshape(-1, 3), light, view)
    return replace(seen, colour=(lit.view_as(own) * solid).movedim(-1, 2))


def sample_surface(
    mesh: Mesh, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"], Float[Tensor, "n 3"], float]:
    """Points spread evenly over a mesh's faces, with their normals and colours (sRGB in [0, 1]); the surface's area."""
    faces = torch.from_numpy(mesh.faces).long()
    corners = torch.from_numpy(mesh.vertices)[faces]
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = across.norm(dim=-1).double() / 2
    # One in each of as many equal shares of the area: evener than free draws.
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    face = torch.searchsorted(area.cumsum(0) / area.sum(), share.double()).clamp_max(len(faces) - 1)
    root, second = torch.rand(count, generator=generator).sqrt(), torch.rand(count, generator=generator)
    weights = torch.stack([1 - root, root * (1 - second), root * second], dim=-1)[..., None]
    painted = torch.from_numpy(mesh.colours)[faces[face]].float() / 255
    points, colours = (corners[face] * weights).sum(1), (painted * weights).sum(1)
    return points, normalize(across[face], dim=-1), colours, float(area.sum())


def turn_up_to(normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    """Quaternions (w x y z) that turn +z to ``normals``, the shortest way."""
    x, y, z = normals.unbind(-1)
    half = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=-1)
    flipped = torch.tensor([0.0, 1.0, 0.0, 0.0])  # -z has no shortest way: about x
    return torch.where(z[:, None] > -1 + 1e-6, normalize(half, dim=-1), flipped)
