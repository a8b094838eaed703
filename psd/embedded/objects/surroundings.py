"""The light and the background of a training picture."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from psd.geometry.cameras import Cameras

BACKGROUNDS = (
    (1.0, 1.0, 1.0),
    (0.85, 0.85, 0.85),
    (0.5, 0.5, 0.5),
    (0.25, 0.25, 0.25),
    (0.75, 0.85, 0.97),
    (0.8, 0.93, 0.8),
)


def sample_light(cameras: Cameras, generator: torch.Generator | None) -> Float[Tensor, "b v 3"]:
    """Unit directions to the light: for half the objects the camera's own, for the others one fixed direction, uniform
    over the sphere, so that on average no side of an object is darker.  Without a generator always the camera's."""
    to_camera = cameras.c2w[..., :3, 2]
    if generator is None:
        return to_camera
    fixed = torch.nn.functional.normalize(torch.randn(cameras.groups, 1, 3, generator=generator), dim=-1)
    from_camera = torch.rand(cameras.groups, 1, 1, generator=generator) < 0.5
    return torch.where(from_camera, to_camera, fixed)


def sample_background(colours: Float[Tensor, "k 3"], generator: torch.Generator | None) -> Float[Tensor, " 3"]:
    """A plain colour that stands out from an object's main colours; without a generator the one that does so most."""
    options = torch.tensor(BACKGROUNDS)
    if generator is not None:
        pale = 0.72 + 0.26 * torch.rand(2, 3, generator=generator)
        options = torch.cat([options, pale])
    contrast = torch.cdist(options, colours).amin(-1)
    if generator is None:
        return options[contrast.argmax()]
    clear = torch.nonzero(contrast > min(0.33, float(contrast.max()) - 1e-6))[:, 0]
    return options[clear[torch.randint(len(clear), (), generator=generator)]]
