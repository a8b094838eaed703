"""The live controls of a run, as the algorithm sees them.

With the prior and rewards of `psd.models.interfaces` and the scene of `psd.scenes.interfaces` they are all that the
algorithm needs: embedded and large models, CPU and GPU, thread and command line enter through these few types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

# Azimuth and elevation in degrees and pixels along an edge -> the scene from there; None: memory is too short for it.
RenderView = Callable[[float, float, int], UInt8[np.ndarray, "h w 3"] | None]


class Control(Protocol):
    """Live values and the wish to stop, asked once a step."""

    def live(self) -> Mapping[str, float | dict[str, float]]:
        """Overrides of the preset's live fields, by field name."""
        ...

    def stopping(self) -> bool: ...

    def show_scene(self, render: RenderView, step: int) -> None:
        """Called after ``step`` whole steps and between the parts of the next: may look at the scene as it is."""
        ...


class NoControl:
    """Controls that change nothing and never stop a run."""

    def live(self) -> Mapping[str, float | dict[str, float]]:
        return {}

    def stopping(self) -> bool:
        return False

    def show_scene(self, render: RenderView, step: int) -> None:
        return None
