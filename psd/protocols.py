"""What the algorithm asks of the world: a diffusion prior, rewards, a scene, and the hand on the controls.

The algorithm (`psd.run`, `psd.methods`, `psd.negative`) sees nothing else, so embedded and large models, CPU and GPU,
thread and command line all enter through these few types.
Axes: b group (one orbit), v view, c channel, h w image, l token, d feature, n points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd.cameras import Cameras

if TYPE_CHECKING:
    from psd.preset import Preset


class Prior(Protocol):
    """A frozen text-conditioned diffusion model over the views of one object."""

    views: int  # views that the network sees together; 1 for a single-view prior
    image_size: int  # px, of the images that `encode` takes
    alpha_bar: Float[Tensor, " T"]  # float64, cumulative product of alphas; alpha = sqrt, sigma = sqrt(1 - alpha_bar)
    device: torch.device
    latent_clamp: float | None  # predictions of z0 are clamped to [-latent_clamp, latent_clamp]; None: no clamp

    def encode(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v c h2 w2"]:
        """Images in [0, 1] to scaled latents, differentiably."""
        ...

    def decode(self, z0: Float[Tensor, "b v c h2 w2"]) -> Float[Tensor, "b v 3 h w"]:
        """Scaled latents to images (not clamped), differentiably."""
        ...

    def embed(self, prompt: str) -> Float[Tensor, "l d"]:
        """The text embedding; raises `PresetError` for words that the prior never saw."""
        ...

    def tokens(self, prompt: str) -> list[str]:
        """The token at each of the ``l`` positions of `embed`, for display."""
        ...

    def vocabulary(self) -> tuple[list[str], Float[Tensor, "w d"]]:
        """Words and their embeddings in the space of `embed`, for nearest-token displays."""
        ...

    def predict_noise(
        self, z_t: Float[Tensor, "b v c h2 w2"], t: int, embedding: Float[Tensor, "b l d"], cameras: Cameras
    ) -> Float[Tensor, "b v c h2 w2"]:
        """The noise prediction, whatever the network predicts.  Gradients flow to ``embedding`` unless the caller
        disables them; parameters never receive one."""
        ...


class Reward(Protocol):
    """Scores images against a prompt, per view; higher is better."""

    name: str
    scale: float  # Bradley-Terry scale tau: a preference has logit (difference / tau)
    differentiable: bool

    def __call__(self, images: Float[Tensor, "b v 3 h w"], prompt: str) -> Float[Tensor, "b v"]: ...


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

    def advance(self, progress: float) -> None:
        """Tell the scene how far the run is: coarse to fine, occupancy updates; in [0, 1), beyond in extra steps."""
        ...

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]: ...

    def colour(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """sRGB in [0, 1]."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Models:
    """Everything that a run needs beside its preset."""

    prior: Prior
    rewards: Mapping[str, Reward]  # trained on, by the names in preset.rewards
    judges: Mapping[str, Reward]  # only watched: selector judge and the like
    scene: Callable[[Preset], Scene]
    notes: tuple[str, ...] = ()  # what was chosen and why, for the Started event
    fewer: Callable[[], object] = lambda: None  # networks take one orbit at a time from now on: memory is short


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
