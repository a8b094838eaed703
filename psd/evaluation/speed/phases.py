"""The halves of a run, before and after `late_start`: what a step of each weighs in the whole run."""

from __future__ import annotations

from dataclasses import dataclass

from psd.config.preset import Preset
from psd.distillation import negative


@dataclass(frozen=True)
class Half:
    name: str
    share: float  # of the run's steps
    updates: float  # of the negative embedding that a step is expected to have


def split_into_halves(preset: Preset, total: int) -> list[Half]:
    """One where nothing changes late; ``total`` is T, the diffusion steps of the schedule."""
    found = []
    for name in ("early", "late"):
        steps = [s for s in range(preset.total_steps) if preset.is_late(preset.progress(s)) == (name == "late")]
        if steps:
            updates = sum(negative.update_probability(preset, step, total) for step in steps) / len(steps)
            found.append(Half(name, len(steps) / preset.total_steps, updates))
    return found
