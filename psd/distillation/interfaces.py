"""What the algorithm asks of the world: a diffusion prior, rewards, a scene, and the hand on the controls.

The algorithm (`psd.distillation.run`, `psd.distillation.methods.preference`, `psd.distillation.negative`) sees nothing
else, so embedded and large models, CPU and GPU, thread and command line all enter through these few types. Axes: b
group (one orbit), v view, c channel, h w image, l token, d feature, n points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class Thresholded(Protocol):
    """A scene whose surface lies where a density exceeds a threshold, which the user may move."""

    def face_counter(self, resolution: int) -> Callable[[float], int]:
        """Counts the faces of the surface at a threshold, without floaters and before decimation; cheap to ask again.

        The counter raises `psd.geometry.cleanup.MeshError` where there is no surface.
        """
        ...


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
