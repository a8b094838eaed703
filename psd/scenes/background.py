"""A learned background: colour by direction alone, so that the object need not paint what lies behind it (MVDream)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTH = 16


def spherical_harmonics(d: Float[Tensor, "n 3"]) -> Float[Tensor, "n 9"]:
    """Real spherical harmonics up to degree 2 of unit directions, orthonormal over the sphere."""
    x, y, z = d.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            0.4886025119029199 * y, 0.4886025119029199 * z, 0.4886025119029199 * x,
            1.0925484305920792 * x * y, 1.0925484305920792 * y * z, 0.31539156525252005 * (3 * z * z - 1),
            1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y),
        ],
        dim=-1,
    )  # fmt: skip


class Backdrop(nn.Module):
    """A small network from harmonics of the viewing direction to sRGB; grey at the start."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [(9, WIDTH), (WIDTH, WIDTH), (WIDTH, 3)]
        layers = [nn.Linear(inputs, outputs, bias=False) for inputs, outputs in sizes]
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)  # nn.Linear's own
        with torch.no_grad():
            layers[-1].weight.mul_(0.1)
        self.network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.Sigmoid())

    def forward(self, directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        return self.network(spherical_harmonics(directions))
