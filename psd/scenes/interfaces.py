"""What a scene offers to the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd.geometry.cameras import Cameras

if TYPE_CHECKING:
    from psd.config.preset import Preset
    from psd.config.settings import SceneSettings
    from psd.geometry.mesh import Mesh


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


@dataclass(frozen=True)
class MeshSettings:
    """How a scene is meshed."""

    resolution: int  # cells along an edge of [-1, 1]^3, where the scene is cut into cells
    faces: int  # at most
    texture: bool = False  # baked, instead of vertex colours alone
    threshold: float | None = None  # of a `Thresholded` scene; None: the scene picks it


@runtime_checkable
class Thresholded(Protocol):
    """A scene whose surface lies where a density exceeds a threshold, which the user may move."""

    def face_counter(self, resolution: int) -> Callable[[float], int]:
        """Counts the faces of the surface at a threshold, without floaters and before decimation; cheap to ask again.

        The counter raises `psd.geometry.cleanup.MeshError` where there is no surface.
        """
        ...


@runtime_checkable
class StartsFromMesh(Protocol):
    """A scene that can go on from what another scene made."""

    def start_from(self, mesh: Mesh) -> None:
        """Take the shape and the colours of a closed mesh; parameters keep their shapes."""
        ...


class Scene(Protocol):
    """A differentiable 3D representation inside the unit ball's bounding cube [-1, 1]^3.

    What it is made of is its own affair: a density, a surface or points.
    """

    notes: tuple[str, ...]  # what was chosen and why, for the Started event

    def parameter_groups(self, preset: Preset) -> list[dict]:
        """Groups for the optimiser, each with ``name``, initial ``lr`` and ``params``: pairs of a name, by which a
        checkpoint knows the parameter's optimiser state, and the parameter."""
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

    def advance(self, progress: float, settings: SceneSettings | None = None) -> None:
        """Tell the scene how far the run is: coarse to fine, occupancy updates; in [0, 1), beyond in extra steps.

        ``settings`` are those of the stage; None: as they are.
        """
        ...

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Called after each step of the optimiser: where parameters grow or are pruned, their optimiser state with
        them."""
        ...

    def extract_mesh(self, settings: MeshSettings) -> Mesh:
        """The closed surface with its colours; raises `psd.geometry.cleanup.MeshError` where there is none."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of everything that `render` depends on."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; other keys raise RuntimeError."""
        ...


MakeScene = Callable[["Preset", torch.device], Scene]
