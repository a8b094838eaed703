"""Volume rendering as pure functions: where rays meet the ball, what a stretch of fog absorbs, what a ray sees.

Notation, per ray: intervals [t_start, t_end) in order of distance, the density constant on each,
alpha = 1 - exp(-density * length), transmittance T_i = prod_{j<i} (1 - alpha_j), weight w_i = T_i alpha_i.  Intervals
of length 0 are padding and change nothing.  Axes: n rays, s samples along a ray, c channel.  Lengths in world units.
"""

from __future__ import annotations

import nerfacc
import torch
from jaxtyping import Float
from torch import Tensor


def closest_approach(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Where rays with unit directions pass nearest to the origin: distance along the ray, and from the origin."""
    middle = -(origins * directions).sum(-1)
    return middle, torch.addcmul(origins, middle[:, None], directions).norm(dim=-1)


def intersect_ball(
    middle: Float[Tensor, " n"], closest: Float[Tensor, " n"], radius: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Distances at which rays enter and leave the ball around the origin, from their `closest_approach`.

    A ray that misses, or that leaves the ball behind it, gets near = far; one that starts inside gets near = 0.
    """
    half = (radius**2 - closest.square()).clamp_min(0).sqrt()
    far = (middle + half).clamp_min(0)
    return torch.minimum((middle - half).clamp_min(0), far), far


def ray_intervals(
    middle: Float[Tensor, " n"],
    near: Float[Tensor, " n"],
    far: Float[Tensor, " n"],
    step: float,
    count: int,
    shift: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
    """The ``count`` intervals of length ``step`` around ``middle``, moved by ``shift`` in [0, 1) steps and cut.

    One random shift a ray stratifies its samples at one draw a ray.  They are cut to [near, far]; beyond it they are
    empty.  A stretch of length L around ``middle`` is covered if count >= L / step + 2; more intervals change nothing,
    and as they are anchored in the middle, a smaller ball is cut into the very intervals of a larger one.
    """
    ticks = torch.arange(count + 1, device=near.device, dtype=near.dtype) - (count + 1) // 2
    edges = torch.add(middle[:, None], (ticks + shift[:, None]) * step)
    edges = torch.minimum(torch.maximum(edges, near[:, None]), far[:, None])
    return edges[:, :-1], edges[:, 1:]


def render_weights(
    density: Float[Tensor, "n s"], t_starts: Float[Tensor, "n s"], t_ends: Float[Tensor, "n s"]
) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
    """Weight of each interval and transmittance in front of it (Max 1995; NeRF, eq. 3).

    nerfacc's `render_weight_from_density` takes 1 - exp(-x) for the opacity, which is 1 % off where x is 1e-6.
    """
    depth = density * (t_ends - t_starts)
    transmittance = torch.exp(depth - depth.cumsum(-1))
    return transmittance * -torch.expm1(-depth), transmittance


def composite_values(weights: Float[Tensor, "n s"], values: Float[Tensor, "n s c"]) -> Float[Tensor, "n c"]:
    """What a ray sees: sum_i w_i v_i.  (A batched product of such small matrices takes five times as long.)"""
    return nerfacc.accumulate_along_rays(weights, values)


def expected_depth(
    weights: Float[Tensor, "n s"], t_starts: Float[Tensor, "n s"], t_ends: Float[Tensor, "n s"]
) -> Float[Tensor, " n"]:
    """Mean distance of what the ray hits, 0 where it hits nothing: where less than 1 % of the light is absorbed."""
    total = weights.sum(-1)
    mean = (weights * (t_starts + t_ends)).sum(-1) / (2 * total.clamp_min(1e-2))
    return torch.where(total < 1e-2, 0.0, mean)


def binary_entropy(opacity: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Entropy in nats of hit or miss, 0 for a ray that is certain.  Flat below 1e-3 and above 1 - 1e-3, where its slope
    would otherwise grow without bound."""
    p = opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def orientation_loss(
    weights: Float[Tensor, "n s"], normals: Float[Tensor, "n s 3"], directions: Float[Tensor, "n 3"]
) -> Float[Tensor, " n"]:
    """Weight on normals that face away from the camera, per ray: sum_i w_i max(0, n_i . d)^2 (Ref-NeRF, eq. 11).

    The weights are constants: normals turn, no density fades to please the term (threestudio, MVDream).
    """
    return (weights.detach() * (normals * directions[:, None]).sum(-1).clamp_min(0).square()).sum(-1)
