"""Small operations on latents.  Axes: k candidate, b group, v view, c channel, h w latent pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Latents = Float[Tensor, "k b v c h w"]


def clamp_keeping_gradient(value: Tensor, low: float, high: float) -> Tensor:
    """Clamps, but passes gradients as if it had not: a saturated pixel can still be pulled back."""
    return value + (value.clamp(low, high) - value).detach()


def pick_candidate(values: Float[Tensor, "k b v ..."], index: Int[Tensor, "b v"]) -> Float[Tensor, "b v ..."]:
    """The candidate of each view."""
    shape = (1, *index.shape) + (1,) * (values.ndim - 3)
    return values.gather(0, index.view(shape).expand(1, *values.shape[1:])).squeeze(0)


def group_norm(value: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b 1 1 1 1"]:
    """Euclidean norm of each group, over all its views."""
    return value.flatten(1).norm(dim=1)[:, None, None, None, None]


def normalise_groups(value: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c h w"]:
    """Each group scaled to norm 1; 0 stays 0."""
    length = group_norm(value)
    return torch.where(length > 0, value / length.clamp_min(torch.finfo(value.dtype).tiny), torch.zeros_like(value))


def per_view(value: Shaped[Tensor, "b v"]) -> Shaped[Tensor, "b v 1 1 1"]:
    return value[:, :, None, None, None]
