"""Where dead Gaussians go: onto living ones, so that their count stays and the picture hardly changes.

3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024), section 4.3: N Gaussians in one's place have
opacities and sizes that together look like the one.  It needs no threshold of a gradient, which scores make hard to
choose.  Axes: n Gaussians, m moved ones.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MOST = 50  # Gaussians that take one's place are counted up to here, as in the paper's code


def choose_hosts(
    opacity: Float[Tensor, " n"], is_dead: Bool[Tensor, " n"], generator: torch.Generator
) -> Int[Tensor, " m"]:
    """A living Gaussian for each dead one, drawn by opacity on the CPU: the same on every device.

    There must be a living one whose opacity is not 0.
    """
    chance = torch.where(is_dead, 0.0, opacity.detach()).double().cpu()
    host = torch.multinomial(chance, int(is_dead.sum()), replacement=True, generator=generator)
    return host.to(opacity.device)


def share_opacity(
    opacity: Float[Tensor, " m"], sharers: Int[Tensor, " m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """The opacity of each of N Gaussians in the place of one, and the factor of their standard deviations.

    Equation 9: o' = 1 - (1 - o)^(1/N), and the factor o / sum_i=1..N sum_k<i C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1), by
    which the integral along a line across them stays.
    """
    count = sharers.clamp_max(MOST)
    each = -torch.expm1(torch.log1p(-opacity.double().clamp_max(1 - 1e-6)) / count)
    # Summed over i first, as sum_i C(i-1, k) = C(N, k+1); in float64, for the terms' signs alternate.
    factors = list_factors().to(opacity.device)[count]
    powers = each[:, None] ** torch.arange(1, MOST + 1, device=opacity.device)
    return each.to(opacity.dtype), (opacity.double() / (factors * powers).sum(-1)).to(opacity.dtype)


@cache
def list_factors() -> Float[Tensor, "N k"]:
    """C(N, k) (-1)^(k-1) / sqrt(k) for N up to `MOST` and k from 1 to `MOST`, in float64."""
    rows = [
        [math.comb(total, k) * (-1) ** (k - 1) / math.sqrt(k) for k in range(1, MOST + 1)] for total in range(MOST + 1)
    ]
    return torch.tensor(rows, dtype=torch.float64)
