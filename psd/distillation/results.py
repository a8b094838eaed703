"""The records that the parts of a step hand to each other: samples, pairs, scores, rankings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from psd.runtime.deferred import Number


@dataclass(frozen=True)
class NoisySample:
    """Noisy latents with the noise in them and the conditional prediction of it; everything ``b v c h w``."""

    z_t: Float[Tensor, "b v c h w"]
    noise: Float[Tensor, "b v c h w"]
    noise_pred_c: Float[Tensor, "b v c h w"]


@dataclass(frozen=True)
class Pair:
    """Winner and loser of one step; ``gap`` >= 0 per view (one value per group where groups are ranked)."""

    win: NoisySample
    lose: NoisySample
    gap: Float[Tensor, "b v"]


@dataclass(frozen=True)
class Score:
    """The result of a method: a gradient, not a loss."""

    gradient: Float[Tensor, "b v c h w"]  # with respect to z0
    shown: NoisySample  # where the negative embedding climbs its reward: the winner's rows, or the shared ones
    pair: Pair | None = None
    gaps: Mapping[str, Number] = field(default_factory=dict)  # raw mean gap per reward, for the running means
    pixels: Float[Tensor, "b v 3 h2 w2"] | None = None  # a further gradient, with respect to the rendered images
    metrics: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """Best and worst candidate of each view, in ``units`` of each reward, weights summing to 1."""

    win: Int[Tensor, "b v"]
    lose: Int[Tensor, "b v"]
    gap: Float[Tensor, "b v"]
    raw_gaps: Mapping[str, Number]
    half_agrees: Number | None = None  # share of groups whose winner every second of the seen views would choose too

    @property
    def agreement_metrics(self) -> dict[str, Number]:
        """``half_agrees`` as a metric, where whole orbits of more than one view were ranked; else nothing."""
        return {} if self.half_agrees is None else {"pair/half_agrees": self.half_agrees}
