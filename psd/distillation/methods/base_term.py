"""The base term that every method shares: guided predictions, their average and its residual."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from psd.distillation import formulas
from psd.distillation.methods.denoising import Denoised
from psd.distillation.step import REWARD_GUIDANCE, StepContext
from psd.distillation.tensors import Latents
from psd.runtime.deferred import Number, scalar


def base_gradient(step: StepContext, found: Denoised) -> Latents:
    """Each candidate's gradient of the base term (MVDream): (z0 - x0') / B, x0' the rescaled guided prediction."""
    guided = found.guided_noise_pred(step.preset.guidance_scale)
    x0_pred, x0_pred_c = step.clean(found.z_t, guided), step.clean(found.z_t, found.noise_pred_c)
    return (step.z0 - formulas.rescale_contrast(x0_pred, x0_pred_c, step.preset.rescale)) / step.rows


def residual_gradient(step: StepContext, z_t: Tensor, noise_pred: Tensor) -> Tensor:
    """One prediction in the form of the base: (z0 - x0) / B, with x0 clamped as there."""
    return (step.z0 - step.clean(z_t, noise_pred)) / step.rows


def rate_candidates(step: StepContext, found: Denoised) -> dict[str, Float[Tensor, "k b v"]]:
    """Rates the prediction of each candidate with every reward."""
    return step.rate_images(step.decode(reward_prediction(step, found)), step.weights)


def reward_prediction(step: StepContext, found: Denoised) -> Latents:
    """The prediction of z0, guided by s_r and rescaled: what a reward can read."""
    guided = found.guided_noise_pred(REWARD_GUIDANCE)
    x0_pred, x0_pred_c = step.clean(found.z_t, guided), step.clean(found.z_t, found.noise_pred_c)
    return formulas.rescale_contrast(x0_pred, x0_pred_c, step.preset.rescale)


def steering_prediction(step: StepContext, found: Denoised) -> tuple[Latents, Number]:
    """The prediction of z0 at which the steered pair asks for the reward's gradient, and its contrast.

    It has the base's guidance, or s_r where that is more: guided by 50, and with no clamp, latents lie many deviations
    out, where a decoder saturates and the gradient is that of no picture.  Then it also has the conditional
    prediction's deviation.  The contrast is std(x0) / std(x0_c), each over all views of a group, averaged over groups.
    """
    scale = step.preset.guidance_scale
    x0_pred = step.clean(found.z_t, found.guided_noise_pred(min(scale, REWARD_GUIDANCE)))
    x0_pred_c = step.clean(found.z_t, found.noise_pred_c)
    if scale > REWARD_GUIDANCE:
        x0_pred = formulas.rescale_contrast(x0_pred, x0_pred_c, 1.0)
    axes = (-4, -3, -2, -1)
    return x0_pred, scalar((x0_pred.std(axes) / x0_pred_c.std(axes).clamp_min(1e-12)).mean())


def first_candidate_index(step: StepContext) -> Tensor:
    """The index of candidate 0 everywhere, for methods that rank nothing."""
    return torch.zeros(step.z0.shape[:2], dtype=torch.long, device=step.z0.device)
