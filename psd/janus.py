"""What a single-view prior is told of the camera, against the Janus problem: a face on every side.

``views``: the prompt says front, side, back or overhead view, by the camera (DreamFusion, section 3.2).
``perp_neg``: the prompt's embedding turns with the camera, and the other sides' embeddings push away, but only with the
part of their direction that is perpendicular to the prompt's own (Armandpour et al. 2023).  Axes: b camera (groups of
one view), l token, d feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psd.cameras import Cameras
from psd.preset import Preset
from psd.protocols import Prior

SIDES = ("front", "side", "back", "overhead")
FRONT_DEG, OVERHEAD_DEG = 45.0, 60.0  # half the width of front and back; elevation above which it is overhead


@dataclass(frozen=True)
class Condition:
    """The prompt's embedding at each camera, and what pushes away from it, with weights <= 0."""

    embedding: Float[Tensor, "l d"] | Float[Tensor, "b l d"]
    away: tuple[Float[Tensor, "b l d"], ...] = ()
    weights: tuple[Float[Tensor, " b"], ...] = ()


class Conditions:
    """The prompt as the prior hears it at any camera; embedded once a run."""

    def __init__(self, preset: Preset, prior: Prior) -> None:
        self.kind = preset.janus
        self.plain = prior.embed(preset.prompt).detach().float()
        self.sides: dict[str, Tensor] = {}
        if self.kind != "none":
            self.sides = {side: prior.embed(f"{preset.prompt}, {side} view").detach().float() for side in SIDES}

    def at(self, cameras: Cameras) -> Condition:
        if self.kind == "none":
            return Condition(self.plain)
        azimuth = (cameras.azimuth_deg[:, 0] + 180) % 360 - 180  # 0 is the front
        if self.kind == "views":
            names = [named(*angles) for angles in zip(azimuth.tolist(), cameras.elevation_deg[:, 0].tolist())]
            return Condition(torch.stack([self.sides[name] for name in names]))
        return self._turning(azimuth.abs().to(self.plain) / 90)

    def _turning(self, turn: Float[Tensor, " b"]) -> Condition:
        """``turn`` is 0 at the front, 1 at the side, 2 at the back; embeddings are mixed in between."""
        front, side, back = (self.sides[name][None] for name in ("front", "side", "back"))
        ahead = turn <= 1
        share = torch.where(ahead, 1 - turn, 2 - turn)  # of the nearer the front of the two that are mixed
        mix = share[:, None, None]
        near, far = torch.where(ahead[:, None, None], front, side), torch.where(ahead[:, None, None], side, back)
        # Ahead: do not look like the front's opposite numbers; behind: above all not like the front again.
        first = torch.where(ahead, falling(share, 4.0, 2.426), falling(share, 1.0, 0.606))
        second = torch.where(ahead, falling(1 - share, 4.0, 2.426), falling(share, 1.0, -0.967))
        away = torch.where(ahead[:, None, None], front, side), torch.where(ahead[:, None, None], side, front)
        return Condition(mix * near + (1 - mix) * far, away, (-first, -second))


def falling(share: Tensor, height: float, offset: float) -> Tensor:
    """Perp-Neg's weight of a side: height exp(-share / 2) - offset."""
    return height * torch.exp(-0.5 * share) - offset


def named(azimuth_deg: float, elevation_deg: float) -> str:
    if elevation_deg > OVERHEAD_DEG:
        return "overhead"
    if abs(azimuth_deg) < FRONT_DEG:
        return "front"
    return "back" if abs(azimuth_deg) > 180 - FRONT_DEG else "side"


def perpendicular(direction: Float[Tensor, "k b v c h w"], main: Float[Tensor, "k b v c h w"]) -> Tensor:
    """``direction`` less its part along ``main``, image by image."""
    axes = (-3, -2, -1)
    along = (direction * main).sum(axes, keepdim=True) / main.square().sum(axes, keepdim=True).clamp_min(1e-20)
    return direction - along * main
