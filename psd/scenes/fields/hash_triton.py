"""The hash grid of `psd.scenes.fields.hash` for NVIDIA GPUs: two Triton kernels, compiled from this source when first
called.

`psd.scenes.fields.hash_encoding.HashEncoding` is the reference: the same table, the same rows, the same weights.  In
plain torch a point costs a kilobyte of indices and weights; here nothing is kept but the point, and rows and weights
are made again on the way back, where the table's gradient is added up atomically (so its last bits depend on the
order).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from psd.scenes.fields.hash_encoding import HashEncoding

BLOCK = 128  # points a program


@triton.jit
def _axis_weight(high, scale, upper: tl.constexpr, sloped: tl.constexpr):
    """One axis' factor of a corner's weight; ``sloped``: its derivative by the point."""
    if sloped:
        factor = high * 0 + (scale if upper else -scale)
    else:
        factor = high if upper else 1 - high
    return factor


@triton.jit
def _corner_weight(
    cell, high, scale, size, rows, dense, corner: tl.constexpr, AXIS: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr
):
    """Row in the level's table and weight of one of the eight corners (x the highest bit); AXIS -1: no derivative."""
    i: tl.constexpr = (corner >> 2) & 1
    j: tl.constexpr = (corner >> 1) & 1
    k: tl.constexpr = corner & 1
    x, y, z = (cell[0] + i).to(tl.uint32), (cell[1] + j).to(tl.uint32), (cell[2] + k).to(tl.uint32)
    # Modulo the number of rows, without a division: a corner lies at most one layer outside a dense level, which has
    # that many rows again; hashed levels have 2^19.
    packed = x + size.to(tl.uint32) * (y + size.to(tl.uint32) * z)
    packed = tl.where(packed >= rows.to(tl.uint32), packed - rows.to(tl.uint32), packed)
    hashed = (x ^ (y * P1) ^ (z * P2)) & (rows.to(tl.uint32) - 1)
    row = tl.where(dense != 0, packed, hashed).to(tl.int32)
    weight = _axis_weight(high[0], scale, i, AXIS == 0) * _axis_weight(high[1], scale, j, AXIS == 1)
    return row, weight * _axis_weight(high[2], scale, k, AXIS == 2)


@triton.jit
def _locate_points(points, n, scales, level, BLOCK: tl.constexpr):
    """Cell and place in the cell of a block of points (n 3), on one level, and the level's scale."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    scale = tl.load(scales + level)
    x = tl.load(points + index * 3, mask=inside, other=0.0) * scale + 0.5
    y = tl.load(points + index * 3 + 1, mask=inside, other=0.0) * scale + 0.5
    z = tl.load(points + index * 3 + 2, mask=inside, other=0.0) * scale + 0.5
    low_x, low_y, low_z = tl.floor(x), tl.floor(y), tl.floor(z)
    cells = low_x.to(tl.int32), low_y.to(tl.int32), low_z.to(tl.int32)
    return index, inside, cells, (x - low_x, y - low_y, z - low_z), scale


@triton.jit
def _gather_kernel(
    points, table, features, n, scales, levels, AXIS: tl.constexpr, WIDTH: tl.constexpr,
    P1: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    index, inside, cell, high, scale = _locate_points(points, n, scales, level, BLOCK)
    start, rows = tl.load(levels + level * 4), tl.load(levels + level * 4 + 1)
    size, dense = tl.load(levels + level * 4 + 2), tl.load(levels + level * 4 + 3)
    pair = tl.arange(0, 2)[None, :]  # both features of a vertex in one transfer
    total = tl.zeros((BLOCK, 2), tl.float32)
    for corner in tl.static_range(8):  # pyright: ignore[reportGeneralTypeIssues]
        row, weight = _corner_weight(cell, high, scale, size, rows, dense, corner, AXIS, P1, P2)
        at = table + (start + row)[:, None] * 2 + pair
        total += weight[:, None] * tl.load(at, mask=inside[:, None], other=0.0)
    out = features + index.to(tl.int64)[:, None] * WIDTH + level * 2 + pair
    tl.store(out, total, mask=inside[:, None])


@triton.jit
def _scatter_kernel(
    points, gradient, into, n, scales, levels, AXIS: tl.constexpr, WIDTH: tl.constexpr,
    P1: tl.constexpr, P2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    index, inside, cell, high, scale = _locate_points(points, n, scales, level, BLOCK)
    start, rows = tl.load(levels + level * 4), tl.load(levels + level * 4 + 1)
    size, dense = tl.load(levels + level * 4 + 2), tl.load(levels + level * 4 + 3)
    pair = tl.arange(0, 2)[None, :]
    given = tl.load(gradient + index.to(tl.int64)[:, None] * WIDTH + level * 2 + pair, mask=inside[:, None], other=0.0)
    for corner in tl.static_range(8):  # pyright: ignore[reportGeneralTypeIssues]
        row, weight = _corner_weight(cell, high, scale, size, rows, dense, corner, AXIS, P1, P2)
        at = into + (start + row)[:, None] * 2 + pair
        tl.atomic_add(at, weight[:, None] * given, mask=inside[:, None], sem="relaxed")


class HashGrid(torch.autograd.Function):
    """Features ``n f`` of points in [0, 1]^3, or their derivatives along ``axis``; differentiable in the table only.

    ``known``: the features, where they were gathered before; only their gradient is made then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Float[Tensor, " p"],
        points: Float[Tensor, "n 3"],
        scales: Float[Tensor, " l"],
        levels: Int[Tensor, "l 4"],
        axis: int | None,
        known: Float[Tensor, "n f"] | None = None,
    ) -> Float[Tensor, "n f"]:
        """Gathers the features of each point, or their derivatives along ``axis``; one program a block and level."""
        points = points.contiguous()
        ctx.save_for_backward(points, scales, levels)
        ctx.axis, ctx.parameters = -1 if axis is None else axis, table.numel()
        if known is not None:
            return known.detach()
        features = points.new_empty(len(points), HashEncoding.FEATURES * len(scales))
        _launch_kernel(_gather_kernel, points, table, features, scales, levels, ctx.axis)
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "n f"]) -> tuple[Float[Tensor, " p"], None, None, None, None, None]:
        points, scales, levels = ctx.saved_tensors
        into = gradient.new_zeros(ctx.parameters)
        _launch_kernel(_scatter_kernel, points, gradient.contiguous(), into, scales, levels, ctx.axis)
        return into, None, None, None, None, None


def _launch_kernel(
    kernel: Any, points: Tensor, given: Tensor, into: Tensor, scales: Tensor, levels: Tensor, axis: int
) -> None:
    if len(points):  # a grid of no programs is an error
        width, (_, p1, p2) = HashEncoding.FEATURES * len(scales), HashEncoding.PRIMES
        grid = triton.cdiv(len(points), BLOCK), len(scales)
        kernel[grid](points, given, into, len(points), scales, levels, axis, width, p1, p2, BLOCK)


def try_kernels(device: torch.device) -> None:
    """Both kernels over a table of eight rows, compiled as runs will take them; raises whatever keeps one from working.

    Triton builds its launcher with a C compiler and Python's headers, which a machine may lack; and it compiles a
    kernel once for lengths that 16 divides and once for the others.
    """
    levels = HashEncoding.LEVELS
    layout = torch.tensor([(0, 8, 2, 1)], dtype=torch.int32, device=device).repeat(levels, 1)
    for count in (BLOCK, BLOCK + 1):
        points, table, scales = (torch.zeros(size, device=device) for size in ((count, 3), (16,), (levels,)))
        table.requires_grad_()
        features = HashGrid.apply(table, points, scales + 1, layout, None)
        torch.autograd.grad(features.sum(), table)


class TritonHashEncoding(HashEncoding):
    """`HashEncoding` through the kernels above."""

    level_scales: Tensor
    levels: Tensor

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(generator)
        starts = [0, *accumulate(self.rows)][:-1]
        levels = [
            (start, rows, size, size**3 <= rows)
            for start, rows, size in zip(starts, self.rows, self.sizes, strict=True)
        ]
        self.register_buffer("level_scales", torch.tensor(self.scales), persistent=False)
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int32), persistent=False)

    def gather(
        self, points: Float[Tensor, "n 3"], axis: int | None = None, known: Float[Tensor, "n 32"] | None = None
    ) -> Float[Tensor, "n 32"]:
        return HashGrid.apply(self.params, points, self.level_scales, self.levels, axis, known)
