"""Light on a surface, whatever the scene: a point light for each view."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from psd.runtime.devices import to_like
from psd.scenes.interfaces import Light


def shade_points(
    colour: Float[Tensor, "k 3"], normal: Float[Tensor, "k 3"], points: Float[Tensor, "k 3"], light: Light,
    view: Int[Tensor, " k"],
) -> Float[Tensor, "k 3"]:  # fmt: skip
    """Lambert's law: colour (ambient + (1 - ambient) max(0, n . l)), as in DreamFusion (section 3.1).

    ``view`` counts the views of all groups.
    """
    views = light.position.shape[1]
    group = torch.div(view, views, rounding_mode="floor")
    towards = normalize(to_like(light.position, points).flatten(0, 1)[view] - points, dim=-1)
    ambient, white = (to_like(value, points)[group, None] for value in (light.ambient, light.white))
    falls = (normal * towards).sum(-1, keepdim=True).clamp_min(0)
    return (colour + white * (1 - colour)) * (ambient + (1 - ambient) * falls)
