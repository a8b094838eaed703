"""Noise predictions for the candidates of a step under every condition, from which the methods start.

Axes: k candidate, b group, v view, c channel, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from psd.distillation import formulas
from psd.distillation.formulas import perpendicular_part
from psd.distillation.results import NoisySample
from psd.distillation.step import StepContext
from psd.distillation.tensors import Latents, pick_candidate


@dataclass(frozen=True)
class Denoised:
    """All candidates of a step with the predictions of their noise; everything ``k b v c h w``."""

    z_t: Latents
    noise: Latents
    noise_pred_c: Latents
    noise_pred_n: Latents
    away: Latents | None = None  # Perp-Neg's correction of the conditional prediction

    def guided_noise_pred(self, scale: float) -> Latents:
        """Classifier-free guidance: e_n + s (e_c - e_n), with Perp-Neg's correction in the bracket."""
        return formulas.apply_guidance(self.noise_pred_n, self.noise_pred_toward, scale)

    @property
    def noise_pred_toward(self) -> Latents:
        return self.noise_pred_c if self.away is None else self.noise_pred_c + self.away

    def sample(self, index: Tensor) -> NoisySample:
        return select_sample(self.z_t, self.noise, self.noise_pred_c, index)


def predict_candidates(step: StepContext) -> Denoised:
    """Predicts the noise of all candidates of a step under every condition, in one call of the network."""
    z_t, condition = step.noisy_latents(step.noise), step.condition
    noise_pred_c, noise_pred_n, *others = step.predict(z_t, step.embedding, step.negative, *condition.away)
    away = None
    if others:
        main = noise_pred_c - noise_pred_n
        pushes = [
            weight[:, None, None, None, None] * perpendicular_part(other - noise_pred_n, main)
            for weight, other in zip(condition.weights, others, strict=True)
        ]
        away = torch.stack(pushes).sum(0)
    return Denoised(z_t, step.noise, noise_pred_c, noise_pred_n, away)


def select_sample(z_t: Latents, noise: Latents, noise_pred_c: Latents, index: Int[Tensor, "b v"]) -> NoisySample:
    """Picks for each view the member that ``index`` names."""
    return NoisySample(pick_candidate(z_t, index), pick_candidate(noise, index), pick_candidate(noise_pred_c, index))
