"""Gradients of rewards that have none, from a few mirrored perturbations of what they see.

Axes: k perturbation, b group, v view, c channel, h w latent pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from psd.distillation.step import StepContext

PERTURBATIONS = 8  # mirrored pairs behind an estimate
SIZE = 0.1  # of a perturbation, of x0's RMS
CELL = 4  # latents along an edge that one random number stands for


def estimate_gradient(step: StepContext, x0_pred: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c h w"]:
    """The mixture's gradient at x0 for rewards that have none: mirrored perturbations, scored by all of them.

    mean_i [R(x0 + mu d_i) - R(x0 - mu d_i)] / (2 mu) d_i, d_i smooth Gaussian fields (the reward's slope at single
    latents is noise, and 16 times fewer dimensions are searched).  Each view's scores credit its own perturbation:
    rewards see views alone.
    """
    count, (height, width) = PERTURBATIONS, x0_pred.shape[-2:]
    coarse = torch.randn(
        count * x0_pred.shape[0] * x0_pred.shape[1], x0_pred.shape[2], max(2, height // CELL),
        max(2, width // CELL), generator=step.generator,
    ).to(x0_pred)  # fmt: skip
    smooth = interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    fields = smooth.view(count, *x0_pred.shape)
    mu = SIZE * x0_pred.square().mean((1, 2, 3, 4), keepdim=True).sqrt()
    images = step.decode(torch.cat([x0_pred + mu * fields, x0_pred - mu * fields]))
    ratings = step.combine_ratings(step.rate_images(images, step.weights), step.weights, step.units)
    slopes = (ratings[:count] - ratings[count:])[..., None, None, None] / (2 * mu)
    return (slopes * fields).mean(0)
