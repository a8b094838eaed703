"""What a run says when it cannot go on: which step and which value, and a cure that can be followed from there."""

from __future__ import annotations

from psd.config.preset import Preset
from psd.distillation.events import Failed
from psd.runtime.deferred import NonFiniteError

LAST_GOOD = "the checkpoint holds the last good state"


def step_not_finite(error: NonFiniteError, step: int, t: int) -> Failed:
    """In the step after ``step``, before anything moved."""
    return Failed(
        step=step,
        message=f"step {step + 1}, t = {t}: {error}",
        cure="resume with a lower guidance_scale, preference_weight or negative_lr (`python -m psd resume <run> --set "
        f"guidance_scale=2`), or start anew with lower learning rates; {LAST_GOOD}",
    )


def preview_not_finite(error: NonFiniteError, step: int, which: str) -> Failed:
    """In the preview after ``step``: its pictures, from sides that no step had looked from."""
    return Failed(
        step=step,
        message=f"preview {which}: {error}",
        cure="start anew with a lower density_lr or colour_lr; the checkpoint holds the scene that was looked at",
    )


def step_out_of_memory(preset: Preset, step: int) -> Failed:
    """Out of memory again, after the run had gone on smaller."""
    return Failed(
        step=step,
        message=f"out of memory at step {step + 1}, even with {describe_sizes(preset)}",
        cure="free memory and resume, or start anew with a lower render_size, ray_samples, groups, candidates or "
        f"grid_size; {LAST_GOOD}",
    )


SMALLER = {
    "render_size": 16,
    "late_render_size": 16,
    "groups": 1,
    "late_groups": 1,
    "candidates": 2,
}  # halved when memory is short, down to this; a scene keeps the ray_samples that it was made with


def reduced_preset(preset: Preset) -> Preset:
    """What a run that is out of memory goes on with: half of what fills it during a step, the scene as it is.

    (And `Models.fewer`: past `late_start` a step has one orbit anyway, and networks fill the memory.)
    """
    halves = {name: max(least, getattr(preset, name) // 2) for name, least in SMALLER.items()}
    return preset.with_values({name: min(half, getattr(preset, name)) for name, half in halves.items()})


def describe_sizes(preset: Preset) -> str:
    """``render_size 32, late_render_size 32, ..., and networks one orbit at a time``"""
    values = ", ".join(f"{name} {getattr(preset, name)}" for name in SMALLER)
    return f"{values}, and networks one orbit at a time"


def is_short(message: str) -> bool:
    """Whether a run's warning says that it goes on smaller, or leaves something out, for want of memory.

    In these words, whatever was too large: a step, a preview, the mesh.
    """
    return "out of memory" in message.lower()
