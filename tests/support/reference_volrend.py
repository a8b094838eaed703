"""Volume rendering and hash encoding in plain loops and float64: slow, and plainly what the papers say."""

import math

import torch
from torch import Tensor


def composite(density: Tensor, t_starts: Tensor, t_ends: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and transmittance, one interval after the other."""
    weights, transmittance = torch.zeros_like(density), torch.zeros_like(density)
    for ray in range(density.shape[0]):
        light = torch.ones((), dtype=density.dtype)
        for i in range(density.shape[1]):
            alpha = 1 - torch.exp(-density[ray, i] * (t_ends[ray, i] - t_starts[ray, i]))
            transmittance[ray, i] = light
            weights[ray, i] = light * alpha
            light = light * (1 - alpha)
    return weights, transmittance


def hash_features(
    params: Tensor, point: list[float], levels: int, log2_rows: int, base: int, scale: float
) -> list[float]:
    """Two features a level of one point in [0, 1]^3 (Instant-NGP, section 3, with tiny-cuda-nn's conventions)."""
    features, offset = [], 0
    for level in range(levels):
        stretch = base * scale**level - 1
        size = math.ceil(stretch) + 1
        rows = min(2**log2_rows, math.ceil(size**3 / 8) * 8)
        place = [x * stretch + 0.5 for x in point]
        sums = [0.0, 0.0]
        for corner in range(8):
            weight, vertex = 1.0, []
            for axis in range(3):
                low = math.floor(place[axis])
                up = corner >> axis & 1
                weight *= place[axis] - low if up else 1 - (place[axis] - low)
                vertex.append(low + up)
            if size**3 <= rows:
                row = vertex[0] + vertex[1] * size + vertex[2] * size**2
            else:
                row = vertex[0] ^ (vertex[1] * 2654435761 % 2**32) ^ (vertex[2] * 805459861 % 2**32)
            for f in range(2):
                sums[f] += weight * float(params[(offset + row % rows) * 2 + f])
        features += sums
        offset += rows
    return features
