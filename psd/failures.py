"""What a run says when it cannot go on: which step and which value, and a cure that can be followed from there."""

from __future__ import annotations

from psd import memory
from psd.events import Failed
from psd.preset import Preset
from psd.score import NonFiniteError

LAST_GOOD = "the checkpoint holds the last good state"


def not_finite(error: NonFiniteError, step: int, t: int) -> Failed:
    """In the step after ``step``, before anything moved."""
    return Failed(
        step=step,
        message=f"step {step + 1}, t = {t}: {error}",
        cure="resume with a lower guidance_scale, preference_weight or negative_lr (`python -m psd resume <run> --set "
        f"guidance_scale=2`), or start anew with lower learning rates; {LAST_GOOD}",
    )


def unseen(error: NonFiniteError, step: int, which: str) -> Failed:
    """In the preview after ``step``: its pictures, from sides that no step had looked from."""
    return Failed(
        step=step,
        message=f"preview {which}: {error}",
        cure="start anew with a lower density_lr or colour_lr; the checkpoint holds the scene that was looked at",
    )


def too_large(preset: Preset, step: int) -> Failed:
    """Out of memory again, after the run had gone on smaller."""
    return Failed(
        step=step,
        message=f"out of memory at step {step + 1}, even with {memory.in_words(preset)}",
        cure="free memory and resume, or start anew with a lower render_size, ray_samples, groups, candidates or "
        f"grid_size; {LAST_GOOD}",
    )
