"""The interfaces of a prior and a reward to the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from psd.config.preset import Preset
from psd.geometry.cameras import Cameras


class Prior(Protocol):
    """A frozen text-conditioned diffusion model over the views of one object."""

    views: int  # views that the network sees together; 1 for a single-view prior
    image_size: int  # px, of the images that `encode` takes
    device: torch.device
    latent_clamp: float | None  # predictions of z0 are clamped to [-latent_clamp, latent_clamp]; None: no clamp

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        """Amplitudes of signal and noise at level ``t``: z_t = alpha z0 + sigma noise, whatever the schedule."""
        ...

    @property
    def levels(self) -> int:
        """T, the noise levels of the schedule: t runs from 0 to T - 1."""
        ...

    def encode(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v c h2 w2"]:
        """Images in [0, 1] to scaled latents, differentiably."""
        ...

    def decode(self, z0: Float[Tensor, "b v c h2 w2"]) -> Float[Tensor, "b v 3 h w"]:
        """Scaled latents to images (not clamped), differentiably."""
        ...

    def embed_prompt(self, prompt: str) -> Float[Tensor, "l d"]:
        """The text embedding; raises `PresetError` for words that the prior never saw."""
        ...

    def tokens(self, prompt: str) -> list[str]:
        """The token at each of the ``l`` positions of `embed`, for display."""
        ...

    def word_embeddings(self) -> tuple[list[str], Float[Tensor, "w d"]]:
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
class Models:
    """Everything that a run needs beside its preset, of all of its stages."""

    priors: Mapping[str, Prior]  # by their names in the preset, in the order in which stages first ask them
    rewards: Mapping[str, Reward]  # trained on, by their names in the preset, likewise
    judges: Mapping[str, Reward]  # only watched: selector judge and the like
    notes: tuple[str, ...] = ()  # what was chosen and why, for the Started event
    fewer: Callable[[], object] = lambda: None  # networks take one orbit at a time from now on: memory is short

    @property
    def prior(self) -> Prior:
        """The prior of the first stage; `in_stage` gives that of another."""
        return next(iter(self.priors.values()))

    def in_stage(self, preset: Preset) -> Models:
        """The models of one stage, which ``preset`` names: its prior, its rewards and the run's judges."""
        rewards = {name: self.rewards[name] for name in preset.rewards}
        return replace(self, priors={preset.prior: self.priors[preset.prior]}, rewards=rewards)
