"""What a run takes, from its preset alone: memory, pictures through the prior's network, and seconds.

Nothing is loaded and nothing computed, so that a server can refuse before a run begins.  The constants were fitted to
runs of the embedded models on one core, of the preset ``tiny`` and variants of it, and hold there within a factor of
1.5 (`tests/runs/test_preset_cost.py` has the measurements); `machine_speed` makes the seconds those of this machine.
Released models count in memory; their seconds depend on the GPU and are known only once a run has been measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np

from psd.config.errors import PresetError
from psd.config.preset import Preset, list_settings
from psd.config.settings import GaussianSettings, GridScene, RadianceSettings, SurfaceSettings
from psd.models.releases import RELEASES

VIEWS = 4  # of the embedded prior, and of a preview
PERTURBATIONS = 8  # mirrored pairs behind an estimated gradient (`psd.distillation.methods.gradient_estimate`)
BACKWARD = 2.0  # a way back costs about two ways forward
EMBEDDED = "assets/"  # before the names of the models that ship
# Seconds of one core, and bytes, of each thing that is counted: least squares over the measured variants.
STEP_S = 0.023  # whatever the preset
PREDICTED_S, RATED_S = 1.01e-2, 4.5e-3  # a picture through the U-Net; decoded and rated
CELL_S, PREVIEW_S, END_S, TEXEL_S = 3.3e-7, 0.012, 0.4, 6.4e-6
SURFACE_END_S = 0.2  # of a scene that is its mesh
VOXEL_S = {"hash": 8.7e-6}  # of the grid that the mesh is cut from; of other scenes:
PLAIN_VOXEL_S = 3e-7
# A sample of a ray: in a step, with its way back; in a preview, with normals.
SAMPLE_S = {"grid": (4.9e-8, 7e-8), "hash": (3.2e-6, 5e-6)}
NO_SAMPLE_S = (0.0, 0.0)  # of scenes that march no rays
FIELD_BYTES = {"hash": 850e6}
# A vertex of a surface's grid and a pixel of its pictures, in a step; a picture without gradients takes half as long.
VERTEX_S, PIXEL_S, VERTEX_BYTES, PIXEL_BYTES = 4e-7, 4.9e-6, 400.0, 2000.0
# A Gaussian in a picture of 64 px, in a step; larger pictures show more of each, and a picture without gradients takes
# half as long.
SPLAT_S, SPLAT_BYTES = 6.7e-6, 12e3
FILL_S = 2.5e-10  # a Gaussian, for each cell of the grid that the mesh is cut from
PROCESS_BYTES = 770e6  # interpreter, libraries, embedded networks and a run of little
CELL_BYTES, SAMPLE_BYTES, PREVIEW_SAMPLE_BYTES, VOXEL_BYTES, TEXEL_BYTES = 335.0, 48.0, 29.0, 31.0, 60.0
IMAGE_BYTES = 1e6  # of a picture of a step, for each candidate
TRY_S = 0.015  # of `machine_speed` on the core that was measured on
COSTLY = (
    "steps", "extra_steps", "groups", "render_size", "stages", "scene.ray_samples", "scene.grid_size", "scene.kind",
    "scene.gaussians", "candidates", "method", "pair", "steer_by", "janus", "negative_every", "preview_size",
    "preview_every", "mesh_resolution", "texture", "rewards", "judges",
)  # fmt: skip


@dataclass(frozen=True)
class StepWork:
    """What is done in the mean step of a run, in counts."""

    network_images: float  # pictures through the prior's network; a way back counts as `BACKWARD` more
    rated_images: float  # decoded and rated by each reward, counted likewise
    ray_samples: float
    cells: float  # of the scene's finest grid, which the optimiser visits every step
    preview_samples: float  # ray samples of previews, without gradients
    previews: float
    vertices: float  # of a surface's grid
    pixels: float  # of a surface's pictures; those of previews count half
    splats: float  # Gaussians in pictures of 64 px, likewise


@dataclass(frozen=True)
class PresetCost:
    """Of a whole run; ``step_s`` and ``end_s`` are None where the speed of the models is not known."""

    network_images: float  # a step
    step_s: float | None
    end_s: float | None
    memory_bytes: float

    def run_s(self, preset: Preset) -> float | None:
        """Seconds from the first step to the mesh."""
        if self.step_s is None or self.end_s is None:
            return None
        return preset.total_steps * self.step_s + self.end_s


def count_step_work(preset: Preset) -> StepWork:
    """Means over the run, each stage by its share."""
    stages = [(share, _count_stage_work(staged)) for share, staged in _list_stages(preset)]
    return StepWork(
        **{field.name: sum(share * getattr(work, field.name) for share, work in stages) for field in fields(StepWork)}
    )


def _list_stages(preset: Preset) -> list[tuple[float, Preset]]:
    """Share of the run, and the preset as it holds there."""
    shares = [stage.share for stage in preset.stages] or [1.0]
    return list(zip(shares, preset.list_stages(), strict=True))


def _count_stage_work(preset: Preset) -> StepWork:
    images, candidates = preset.groups * VIEWS, _count_candidates(preset)
    conditions = 4 if preset.janus == "perp_neg" else 2
    predicted, rated = float(images * candidates * conditions), 0.0
    if preset.method == "psd" and preset.pair == "steered":
        predicted += images
        rated += images * (2 + (1 + BACKWARD if preset.steer_by == "gradient" else 2 * PERTURBATIONS))
    elif preset.method == "reward_gradient":
        rated += images * (1 + BACKWARD)
    elif preset.optimises_reward:
        rated += images * candidates
    if preset.optimises_reward and preset.negative:
        updates = 1 / preset.negative_every
        predicted += updates * images * (2 + BACKWARD)
        rated += updates * images * (2 + BACKWARD)
    every = 1 / min(preset.preview_every, max(preset.total_steps, 1))
    judges = len({*preset.rewards, *preset.judges})
    samples, surface = _count_samples(preset), isinstance(preset.scene, SurfaceSettings)
    return StepWork(
        network_images=predicted,
        rated_images=rated * max(len(preset.rewards), 1) + every * VIEWS * judges,
        ray_samples=float(images * preset.render_size**2 * samples),
        cells=_count_cells(preset),
        preview_samples=every * VIEWS * preset.preview_size**2 * samples,
        previews=every,
        vertices=_count_vertices(preset),
        splats=images * _count_splats(preset, preset.render_size)
        + every * VIEWS * _count_splats(preset, preset.preview_size) / 2,
        pixels=surface * (images * preset.render_size**2 + every * VIEWS * preset.preview_size**2 / 2),
    )


def _count_candidates(preset: Preset) -> int:
    """How many noises the method draws a step."""
    if preset.method == "dreamdpo":
        return 2
    ranked = preset.method in ("best_of_n", "rewardsds") or (preset.method == "psd" and preset.pair == "random")
    return preset.candidates if ranked else 1


def _count_cells(preset: Preset) -> float:
    return float(preset.scene.grid_size**3) if isinstance(preset.scene, GridScene) else 0.0


def _count_samples(preset: Preset) -> int:
    """Along a ray; only a field has any."""
    return preset.scene.ray_samples if isinstance(preset.scene, RadianceSettings) else 0


def _count_gaussians(preset: Preset) -> float:
    return float(preset.scene.gaussians) if isinstance(preset.scene, GaussianSettings) else 0.0


def _count_splats(preset: Preset, size: int) -> float:
    """Gaussians in a picture, in those of 64 px; about half of what one takes grows with its pixels."""
    return _count_gaussians(preset) * (0.5 + 0.5 * (size / 64) ** 2)


def _count_vertices(preset: Preset) -> float:
    if not isinstance(preset.scene, SurfaceSettings):
        return 0.0
    return float((preset.scene.surface_cells + 1) ** 3 + preset.scene.surface_cells**3)


def _list_meshed(preset: Preset) -> list[Preset]:
    """The stages whose scene is meshed at their end: the last, and those that a scene of another kind follows."""
    stages = preset.list_stages()
    return [one for one, after in zip(stages, stages[1:]) if one.scene.kind != after.scene.kind] + [stages[-1]]


def _estimate_mesh_s(preset: Preset) -> float:
    """Seconds of a mesh of the preset's scene without texture.  A surface is one: it is not cut from a grid."""
    if isinstance(preset.scene, SurfaceSettings):
        return SURFACE_END_S
    of_voxel = VOXEL_S.get(preset.scene.kind, PLAIN_VOXEL_S) + _count_gaussians(preset) * FILL_S
    return END_S + preset.mesh_resolution**3 * of_voxel + _count_cells(preset) * CELL_S


def _estimate_step_s(preset: Preset, work: StepWork) -> float:
    sample_s, preview_sample_s = SAMPLE_S.get(preset.scene.kind, NO_SAMPLE_S)
    return (
        STEP_S + work.network_images * PREDICTED_S + work.rated_images * RATED_S + work.cells * CELL_S
        + work.ray_samples * sample_s + work.preview_samples * preview_sample_s + work.previews * PREVIEW_S
        + work.vertices * VERTEX_S + work.pixels * PIXEL_S + work.splats * SPLAT_S
    )  # fmt: skip


def estimate_cost(preset: Preset, speed: float = 1.0) -> PresetCost:
    """``speed``: of this machine, in units of the one that was measured on (`machine_speed`)."""
    work, step_s, end_s = count_step_work(preset), None, None
    if all(name.startswith(EMBEDDED) for name in preset.priors):
        step_s = _estimate_step_s(preset, work) / speed
        texels = (4.0 * preset.mesh_resolution) ** 2 if preset.texture else 0.0
        end_s = (sum(map(_estimate_mesh_s, _list_meshed(preset))) + texels * TEXEL_S) / speed
    return PresetCost(work.network_images, step_s, end_s, estimate_memory(preset))


def estimate_memory(preset: Preset) -> float:
    """The most bytes that a process with this run holds: networks, the scene, and the largest of its three phases."""
    step = max(
        staged.groups * VIEWS
        * (
            staged.render_size**2 * (_count_samples(staged) * SAMPLE_BYTES or PIXEL_BYTES)
            + _count_splats(staged, staged.render_size) * SPLAT_BYTES
            + _count_candidates(staged) * IMAGE_BYTES
        ) + _count_vertices(staged) * VERTEX_BYTES
        for _, staged in _list_stages(preset)
    )  # fmt: skip
    preview = VIEWS * preset.preview_size**2 * _count_samples(preset) * PREVIEW_SAMPLE_BYTES
    mesh = preset.mesh_resolution**3 * VOXEL_BYTES + (4 * preset.mesh_resolution) ** 2 * TEXEL_BYTES * preset.texture
    networks = {*preset.priors, preset.reward_decoder, *preset.reward_names, *preset.judges}
    released = sum(RELEASES[name].gigabytes * 1e9 for name in networks if name in RELEASES)
    field = FIELD_BYTES.get(preset.scene.kind, 0.0) + _count_cells(preset) * CELL_BYTES
    return PROCESS_BYTES + released + field + max(step, preview, mesh)


def costly_keys(preset: Preset, measure: Callable[[Preset], float]) -> dict[str, Any]:
    """The keys whose default values would save most of what ``measure`` counts, dearest first, with their values.

    At most three, each at least a tenth of the whole.
    """
    known, whole = list_settings(), measure(preset)
    savings = {}
    for key in COSTLY:
        if key.startswith("scene.") and not hasattr(preset.scene, key.removeprefix("scene.")):
            continue  # of another kind of scene
        try:
            usual = preset.with_values({key: known[key].get_default(call_default_factory=True)})
        except PresetError:  # the preset's other values do not allow it
            continue
        savings[key] = whole - measure(usual)
    dear = [key for key in sorted(savings, key=lambda key: -savings[key]) if savings[key] >= 0.1 * whole][:3]
    return {key: _read_setting(preset, key) for key in dear}


def _read_setting(preset: Preset, key: str) -> Any:
    value: Any = preset
    for name in key.split("."):
        value = getattr(value, name)
    return [stage.model_dump() for stage in value] if key == "stages" else value


@cache
def machine_speed() -> float:
    """How fast this machine computes, in units of one core of the one that was measured on; tried once, in 0.2 s.

    The fastest of some tries by the time that this thread computes, whatever else the machine does.  Cores that the
    matrix product is shared with make it faster, as they do a run.
    """
    matrix = np.random.default_rng(0).standard_normal((768, 768), dtype=np.float32)
    table = np.zeros(1 << 21, np.float32)
    places = np.random.default_rng(1).integers(0, len(table), 1 << 21)

    def time_once() -> float:
        begun = time.thread_time()
        _ = matrix @ matrix
        _ = table[places]
        return time.thread_time() - begun

    return TRY_S / min(time_once() for _ in range(8))
