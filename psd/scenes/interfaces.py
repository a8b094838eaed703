"""What a scene offers to the algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd.geometry.cameras import Cameras

if TYPE_CHECKING:
    from psd.config.preset import Preset


@dataclass(frozen=True)
class Render:
    """What a scene shows to the cameras; rgb is composited on the background."""

    rgb: Float[Tensor, "b v 3 h w"]
    opacity: Float[Tensor, "b v 1 h w"]
    depth: Float[Tensor, "b v 1 h w"]  # expected distance along the ray, world units; 0 where nothing is hit
    normal: Float[Tensor, "b v 3 h w"] | None = None  # world frame, unit length where opaque
    regularisers: Mapping[str, Tensor] = field(default_factory=dict)  # name -> unweighted scalar


@dataclass(frozen=True)
class Light:
    """A point light for each view and how it falls; where ``ambient`` is 1 there is no shading."""

    position: Float[Tensor, "b v 3"]
    ambient: Float[Tensor, " b"]  # share of the colour that needs no light
    white: Float[Tensor, " b"]  # 1: white instead of the object's colour, so that only shape shows


class Scene(Protocol):
    """A differentiable 3D representation inside the unit ball's bounding cube [-1, 1]^3."""

    def parameter_groups(self, preset: Preset) -> list[dict]:
        """Groups for the optimiser, each with its initial ``lr``."""
        ...

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
        """``generator`` jitters rays and samples (training); without it the render is deterministic.

        ``learned`` groups stand before the scene's own background, if it has one; ``light`` shades the surface.
        """
        ...

    def regularisers(self) -> dict[str, Tensor]:
        """Terms of the field itself (total variation, ...), unweighted."""
        ...

    def set_progress(self, progress: float) -> None:
        """Tell the scene how far the run is: coarse to fine, occupancy updates; in [0, 1), beyond in extra steps."""
        ...

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]: ...

    def colour(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """sRGB in [0, 1]."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...
