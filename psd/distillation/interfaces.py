"""What the algorithm asks of the world: a diffusion prior, rewards, a scene, and the hand on the controls.

The algorithm (`psd.distillation.run`, `psd.distillation.methods.preference`, `psd.distillation.negative`) sees nothing
else, so embedded and large models, CPU and GPU, thread and command line all enter through these few types. Axes: b
group (one orbit), v view, c channel, h w image, l token, d feature, n points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Control(Protocol):
    """The hand on the controls of a running job; polled once a step."""

    def live(self) -> Mapping[str, float | dict[str, float]]:
        """Overrides of the preset's live fields, by field name."""
        ...

    def stopping(self) -> bool: ...


class NoControl:
    """Nobody at the controls."""

    def live(self) -> Mapping[str, float | dict[str, float]]:
        return {}

    def stopping(self) -> bool:
        return False
