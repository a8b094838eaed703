"""What the network says of a step's candidates, under every condition: the predictions that methods start from.

Axes: k candidate, b group, v view, c channel, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from psd import score
from psd.janus import perpendicular
from psd.step import Latents, Sample, Step, pick


@dataclass(frozen=True)
class Denoised:
    """All candidates of a step with the predictions of their noise; everything ``k b v c h w``."""

    z_t: Latents
    noise: Latents
    noise_pred_c: Latents
    noise_pred_n: Latents
    away: Latents | None = None  # Perp-Neg's correction of the conditional prediction

    def guided(self, scale: float) -> Latents:
        """Classifier-free guidance: e_n + s (e_c - e_n), with Perp-Neg's correction in the bracket."""
        return score.guide(self.noise_pred_n, self.toward, scale)

    @property
    def toward(self) -> Latents:
        return self.noise_pred_c if self.away is None else self.noise_pred_c + self.away

    def sample(self, index: Tensor) -> Sample:
        return chosen(self.z_t, self.noise, self.noise_pred_c, index)


def denoise(step: Step) -> Denoised:
    """What the network says of a step's candidates under every condition, in one call."""
    z_t, condition = step.noisy(step.noise), step.condition
    noise_pred_c, noise_pred_n, *others = step.predict(z_t, step.embedding, step.negative, *condition.away)
    away = None
    if others:
        main = noise_pred_c - noise_pred_n
        pushes = [
            weight[:, None, None, None, None] * perpendicular(other - noise_pred_n, main)
            for weight, other in zip(condition.weights, others, strict=True)
        ]
        away = torch.stack(pushes).sum(0)
    return Denoised(z_t, step.noise, noise_pred_c, noise_pred_n, away)


def chosen(z_t: Latents, noise: Latents, noise_pred_c: Latents, index: Int[Tensor, "b v"]) -> Sample:
    """Of several members each view's own."""
    return Sample(pick(z_t, index), pick(noise, index), pick(noise_pred_c, index))
