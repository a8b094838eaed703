"""The formulas of score distillation: pure functions of tensors, one per equation.

Notation: z_t = alpha z0 + sigma noise, alpha and sigma those of the prior's schedule at ``t``, the integer diffusion
step (`Prior.alpha_sigma`): Python floats, or tensors that broadcast; noise_pred is what a prior says the noise was,
noise_pred_c with the prompt, noise_pred_n with the negative embedding.
Axes: k candidate, b group, v view, c channel, h w latent pixels; functions that reduce say over what.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def perpendicular_part(direction: Float[Tensor, "k b v c h w"], main: Float[Tensor, "k b v c h w"]) -> Tensor:
    """``direction`` less its part along ``main``, image by image."""
    axes = (-3, -2, -1)
    along = (direction * main).sum(axes, keepdim=True) / main.square().sum(axes, keepdim=True).clamp_min(1e-20)
    return direction - along * main


RAMP = 0.1  # of t / T, below the gate
GAP_DECAY = 0.99  # of a run's mean gap, per step that has one


# ---------------------------------------------------------------------------------------------- forward process, x0, v


def add_noise(z0: Tensor, noise: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """z_t = alpha z0 + sigma noise."""
    return alpha * z0 + sigma * noise


def predict_x0(z_t: Tensor, noise_pred: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The clean latents that a noise prediction implies: (z_t - sigma noise_pred) / alpha."""
    return (z_t - sigma * noise_pred) / alpha


# ------------------------------------------------------------------------------------------------------------ guidance


def apply_guidance(noise_pred_n: Tensor, noise_pred_c: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, the one formula of this project: e_n + s (e_c - e_n)."""
    return noise_pred_n + scale * (noise_pred_c - noise_pred_n)


def rescale_contrast(
    x0_pred: Float[Tensor, "*k v c h w"], x0_pred_c: Float[Tensor, "*k v c h w"], strength: float
) -> Float[Tensor, "*k v c h w"]:
    """Pull the contrast of guided predictions back to the conditional ones' (Lin et al. 2024, MVDream's phi = 0.5).

    phi f x0 + (1 - phi) x0 with f = std(x0_c) / std(x0), each std over all views of a group jointly, so that the
    views keep their relative brightness.
    """
    axes = (-4, -3, -2, -1)
    factor = x0_pred_c.std(axes, keepdim=True) / x0_pred.std(axes, keepdim=True).clamp_min(1e-12)
    return strength * factor * x0_pred + (1 - strength) * x0_pred


# ---------------------------------------------------------------------------------------------------------- preference


def preference_scaling(gap: Tensor, mean: float, kind: Literal["confidence", "none"], kappa: float) -> Tensor:
    """Reward-based scaling of the preference term, in [0, 1]; exactly 0 where the gap is 0.

    ``gap`` >= 0 is the winner's lead, ``mean`` its running mean m (0: not known yet, so nothing is trusted).
    confidence: tanh(gap / (kappa m)); none: 1, whatever m.
    """
    if kind == "none":
        return (gap > 0).to(gap.dtype)
    if mean == 0:
        return torch.zeros_like(gap)
    return torch.where(gap > 0, torch.tanh(gap / (kappa * mean)), torch.zeros_like(gap))


# ----------------------------------------------------------------------------------------------------------- timesteps


def timestep_bounds(
    progress: float, *, low: tuple[float, float], high: tuple[float, float], anneal_fraction: float, total: int
) -> tuple[int, int]:
    """Inclusive bounds of t: ``low`` and ``high`` are (start, end) shares of T, annealed linearly over the run's
    first ``anneal_fraction`` and constant after it; ``progress`` in [0, 1]."""
    share = min(progress / anneal_fraction, 1.0)
    lower, upper = (start + (end - start) * share for start, end in (low, high))
    last = total - 1
    return min(round(lower * total), last), min(round(upper * total), last)


def sample_timestep(bounds: tuple[int, int], generator: torch.Generator) -> int:
    """One integer t for the whole batch, uniform over the inclusive bounds."""
    low, high = bounds
    return int(torch.randint(low, high + 1, (), generator=generator))


def gate_opening(t: int, total: int, t_on: float) -> float:
    """lambda_t / lambda in [0, 1]: 0 for t / T > t_on, ramped up over 0.1 below it; t_on = 1 means no gate.

    At high noise x0 is no image that a reward could judge, and sigma / alpha explodes.
    """
    if t_on >= 1:
        return 1.0
    return min(max((t_on - t / total) / RAMP, 0.0), 1.0)
