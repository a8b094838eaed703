"""The camera in the prompt of a single-view prior, against the Janus problem: a face on every side.

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

from psd.config.preset import Preset
from psd.geometry.cameras import Cameras
from psd.models.interfaces import Prior

SIDES = ("front", "side", "back", "overhead")
FRONT_DEG, OVERHEAD_DEG = 45.0, 60.0  # half the width of front and back; elevation above which it is overhead


@dataclass(frozen=True)
class PromptEmbedding:
    """The embedding of the prompt at each camera, and those that push away from it, with weights <= 0."""

    embedding: Float[Tensor, "l d"] | Float[Tensor, "b l d"]
    away: tuple[Float[Tensor, "b l d"], ...] = ()
    weights: tuple[Float[Tensor, " b"], ...] = ()


class ViewPrompts:
    """The embeddings of the prompt for any camera, made once a run."""

    def __init__(self, preset: Preset, prior: Prior) -> None:
        self.kind = preset.janus
        self.plain = prior.embed_prompt(preset.prompt).detach().float()
        self.sides: dict[str, Tensor] = {}
        if self.kind != "none":
            self.sides = {side: prior.embed_prompt(f"{preset.prompt}, {side} view").detach().float() for side in SIDES}

    def at(self, cameras: Cameras) -> PromptEmbedding:
        if self.kind == "none":
            return PromptEmbedding(self.plain)
        azimuth = (cameras.azimuth_deg[:, 0] + 180) % 360 - 180  # 0 is the front
        if self.kind == "views":
            names = [view_name(*angles) for angles in zip(azimuth.tolist(), cameras.elevation_deg[:, 0].tolist())]
            return PromptEmbedding(torch.stack([self.sides[name] for name in names]))
        return self._mix_sides(azimuth.abs().to(self.plain) / 90)

    def _mix_sides(self, turn: Float[Tensor, " b"]) -> PromptEmbedding:
        """``turn`` is 0 at the front, 1 at the side, 2 at the back; embeddings are mixed in between."""
        front, side, back = (self.sides[name][None] for name in ("front", "side", "back"))
        ahead = turn <= 1
        share = torch.where(ahead, 1 - turn, 2 - turn)  # of the nearer the front of the two that are mixed
        mix = share[:, None, None]
        near, far = torch.where(ahead[:, None, None], front, side), torch.where(ahead[:, None, None], side, back)
        # Ahead: do not look like the front's opposite numbers; behind: above all not like the front again.
        first = torch.where(ahead, perp_neg_weight(share, 4.0, 2.426), perp_neg_weight(share, 1.0, 0.606))
        second = torch.where(ahead, perp_neg_weight(1 - share, 4.0, 2.426), perp_neg_weight(share, 1.0, -0.967))
        away = torch.where(ahead[:, None, None], front, side), torch.where(ahead[:, None, None], side, front)
        return PromptEmbedding(mix * near + (1 - mix) * far, away, (-first, -second))


def perp_neg_weight(share: Tensor, height: float, offset: float) -> Tensor:
    """Perp-Neg's weight of a side: height exp(-share / 2) - offset."""
    return height * torch.exp(-0.5 * share) - offset


def view_name(azimuth_deg: float, elevation_deg: float) -> str:
    """The direction that a prompt names: overhead, front, back or side; azimuth 0 is the front, in [-180, 180]."""
    if elevation_deg > OVERHEAD_DEG:
        return "overhead"
    if abs(azimuth_deg) < FRONT_DEG:
        return "front"
    return "back" if abs(azimuth_deg) > 180 - FRONT_DEG else "side"
