"""The multi-resolution hash grid in plain torch (Instant-NGP, section 3)."""

from __future__ import annotations

import math
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psd.scenes.fields.interpolation import WeightedRows


class HashEncoding(nn.Module):
    """Multi-resolution hash grid (Instant-NGP, section 3), in plain torch, with the memory layout of tiny-cuda-nn.

    Level l has resolution base * scale^l; a level whose vertices fit in the table is stored densely, the others share
    rows by hashing.  ``params`` is one flat vector, so that weights move freely between this and its CUDA twins.
    """

    LEVELS, FEATURES, LOG2_ROWS, BASE, SCALE = 16, 2, 19, 16, 1.447269237440378  # MVDream
    PRIMES = (1, 2_654_435_761, 805_459_861)
    fused: tuple[nn.Module, ...] = ()  # tiny-cuda-nn's; in a tuple it is no submodule: the parameters are here already

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        limit = 2**self.LOG2_ROWS
        self.scales = [self.BASE * self.SCALE**level - 1 for level in range(self.LEVELS)]
        self.sizes = [math.ceil(scale) + 1 for scale in self.scales]
        self.rows = [min(limit, math.ceil(size**3 / 8) * 8) for size in self.sizes]
        start = torch.rand(sum(self.rows) * self.FEATURES, generator=generator)
        self.params = nn.Parameter((start * 2 - 1) * 1e-4)

    def forward(
        self, points: Float[Tensor, "n 3"], known: Float[Tensor, "n 32"] | None = None
    ) -> Float[Tensor, "n 32"]:
        """Features of points in [0, 1]^3; differentiable in ``params`` only.

        ``known``: the features themselves, where an earlier call without gradients found them; with tiny-cuda-nn,
        which makes its gradient from its own call, they are found again.
        """
        return self.fused[0](points) if self.fused else self.gather(points, known=known)

    def feature_slopes(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 32 3"]:
        """Derivatives of the features by the point, linear in ``params`` as they are, so differentiable in them too."""
        return torch.stack([self.gather(points, axis) for axis in range(3)], dim=-1)

    def gather(
        self, points: Float[Tensor, "n 3"], axis: int | None = None, known: Float[Tensor, "n 32"] | None = None
    ) -> Float[Tensor, "n 32"]:
        """The features, or their derivatives along ``axis``: the weights' own, times the level's scale."""
        features = []
        axes = points.T.contiguous()
        found = [None] * self.LEVELS if known is None else known.split(self.FEATURES, dim=-1)
        for table, scale, size, value in zip(
            self.params.view(-1, self.FEATURES).split(self.rows), self.scales, self.sizes, found, strict=True
        ):
            place = axes * scale + 0.5  # the half keeps the levels' vertices from lining up
            cell = place.floor()
            high = (place - cell).unbind()
            index, weights = [], []
            for corner in product((0, 1), repeat=3):
                x, y, z = (c + k for c, k in zip(cell.long(), corner, strict=True))
                if size**3 <= table.shape[0]:
                    row = x + size * (y + size * z)
                else:
                    row = (x * self.PRIMES[0]) ^ (y * self.PRIMES[1]) ^ (z * self.PRIMES[2])
                index.append((row % table.shape[0]).to(torch.int32))
                sides = [h if k else 1 - h for h, k in zip(high, corner, strict=True)]
                if axis is not None:
                    sides[axis] = torch.full_like(sides[axis], scale if corner[axis] else -scale)
                weights.append(sides[0] * sides[1] * sides[2])
            features.append(WeightedRows.apply(table, torch.stack(index, 1), torch.stack(weights, 1), value))
        return torch.cat(features, -1)
