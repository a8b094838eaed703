"""Radiance fields over the cube [-1, 1]^3: a sum of dense grids for the CPU, MVDream's hash grid for the large models.

Both turn points into density (per world unit) and view-independent sRGB colour, say which cells of a coarse grid hold
anything at all, and start as MVDream's blob, density softplus(b (1 - |x| / 0.5)).
Axes: n points, c channel, x y z vertices of a grid, k the 8 corners around a point, t table rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array
from torch import Tensor, nn

if TYPE_CHECKING:
    from psd.preset import Preset

CHUNK = 2**18  # points evaluated at once: bounds the memory of a big mesh query, not of a training step
BLOB_RADIUS = 0.5


@dataclass(frozen=True)
class Samples:
    """What a field is at some points."""

    density: Float[Tensor, " n"]
    colour: Float[Tensor, "n 3"]
    normal: Float[Tensor, "n 3"] | None = None  # unit, towards lower density


class WeightedRows(torch.autograd.Function):
    """sum_k weights[n, k] * table[index[n, k]], differentiable in the table only.

    The gradient is a sparse matrix product; scipy's is 6 times as fast as ``index_add`` on one CPU thread (4.4 against
    28 ms for 100k points, 8 corners, 4 channels) and adds in the same order, so it stays deterministic.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Float[Tensor, "t c"], index: Int[Tensor, "n k"], weights: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n c"]:
        ctx.save_for_backward(index, weights)
        ctx.rows = table.shape[0]
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "t c"], None, None]:
        index, weights = ctx.saved_tensors
        n, k = index.shape
        if gradient.device.type == "cpu":
            columns = torch.arange(0, n * k + 1, k, dtype=index.dtype)
            entries = (weights.flatten().numpy(), index.flatten().numpy(), columns.numpy())
            transposed = csc_array(entries, shape=(ctx.rows, n))
            return torch.from_numpy(transposed @ gradient.numpy()), None, None
        terms = (weights[..., None] * gradient[:, None]).flatten(0, 1)
        return terms.new_zeros(ctx.rows, terms.shape[1]).index_add_(0, index.flatten(), terms), None, None


class GridVariation(torch.autograd.Function):
    """Total variation of ``c`` channels on a grid, summed over axes and channels: sum |f(i + 1) - f(i)|.

    The gradient is made on the way forward; autograd's own road over slices costs four times as much.
    """

    @staticmethod
    def forward(ctx: Any, grid: Float[Tensor, "c x y z"]) -> Float[Tensor, ""]:
        gradient = torch.zeros_like(grid)
        total = grid.new_zeros(())
        for axis in (1, 2, 3):
            step = grid.diff(dim=axis)
            total += step.abs().sum()
            sign = step.sign_()
            length = sign.shape[axis]
            gradient.narrow(axis, 1, length).add_(sign)
            gradient.narrow(axis, 0, length).sub_(sign)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Float[Tensor, ""]) -> Float[Tensor, "c x y z"]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale


def variation(grid: Float[Tensor, "c x x x"]) -> Float[Tensor, ""]:
    """Mean over [-1, 1]^3 of sum_c |grad f_c|, L1 over axes, in units per world unit: independent of the resolution."""
    cells = grid.shape[1] - 1
    return GridVariation.apply(grid) * (cells / 2) / grid[0].numel()


def corners(points: Float[Tensor, "n 3"], size: int) -> tuple[Int[Tensor, "n 8"], Float[Tensor, "n 8"]]:
    """Flat indices and trilinear weights of the 8 vertices around points, on ``size`` vertices an axis over [-1, 1].

    Axes are handled as separate vectors: elementwise work on (n, 3) is three times as slow on a CPU.
    """
    place = points.T.contiguous().add(1).mul_((size - 1) / 2).clamp_(0, size - 1)
    cell = place.to(torch.int32).clamp_(max=size - 2)
    high = place.sub_(cell)
    low = 1 - high
    weights = points.new_empty(points.shape[0], 2, 2, 2)
    for i, j in product((0, 1), repeat=2):
        side = (low, high)[i][0] * (low, high)[j][1]
        torch.mul(side, low[2], out=weights[:, i, j, 0])
        torch.mul(side, high[2], out=weights[:, i, j, 1])
    offsets = torch.tensor(
        [(i * size + j) * size + k for i, j, k in product((0, 1), repeat=3)], dtype=torch.int32, device=points.device
    )
    base = (cell[0] * size + cell[1]) * size + cell[2]
    return base[:, None] + offsets, weights.view(-1, 8)


def upsample(grid: Float[Tensor, "c x x x"], matrix: Float[Tensor, "y x"]) -> Float[Tensor, "c y y y"]:
    """Trilinear interpolation by one matrix product an axis: a fifth of the cost of ``F.interpolate``."""
    c, n = grid.shape[:2]
    size = matrix.shape[0]
    grid = (grid.reshape(-1, n) @ matrix.T).view(c * n, n, size)
    grid = torch.bmm(matrix.expand(c * n, size, n), grid).view(c, n, size * size)
    return torch.bmm(matrix.expand(c, size, n), grid).view(c, size, size, size)


def interpolation(size: int, coarse: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "size coarse"]:
    """Rows of linear weights that take ``coarse`` values over [-1, 1] to ``size`` values, ends aligned."""
    place = torch.linspace(0, coarse - 1, size, dtype=torch.float64)
    return (1 - (place[:, None] - torch.arange(coarse)).abs()).clamp_min(0).to(dtype)


def blob(radius: Tensor, height: float) -> Tensor:
    """MVDream's start: softplus(height * (1 - radius / 0.5)), in density."""
    return F.softplus(height * (1 - radius / BLOB_RADIUS))


def inside(points: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
    return points.square().sum(-1) <= 1


class GridField(nn.Module):
    """Density and colour as sums of three grids, of ``cells`` / 4, / 2 and ``cells`` cells along an edge.

    density = cells / 2 * softplus(raw): raw 4.6 absorbs 99 % within one cell, so surfaces can be sharp.  All grids
    exist from the start (their shapes never change, so neither does the optimiser's state); the finer ones fade in
    with progress.  Under Adam a sum of grids moves broad shapes faster than detail, which is what a noisy score needs.
    The sum is taken once a call on the finest grid (4 ms at 56 cells), so that a point costs one gather, not three.
    """

    start: Tensor
    matrix1: Tensor
    matrix2: Tensor
    progress: Tensor
    FLOOR = -8.0  # of the initial raw density: far cells stay within reach of the optimiser
    FADE = (0.1, 0.3)  # progress at which the second and the third level have faded in

    def __init__(self, cells: int, blob_density: float) -> None:
        super().__init__()
        self.cells = cells
        self.scale = cells / 2
        sizes = [max(2, cells // 4) + 1, max(2, cells // 2) + 1, cells + 1]
        self.density_levels = nn.ParameterList([nn.Parameter(torch.zeros(1, n, n, n)) for n in sizes])
        self.colour_levels = nn.ParameterList([nn.Parameter(torch.zeros(3, n, n, n)) for n in sizes])
        axis = torch.linspace(-1, 1, cells + 1)
        radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        start = (blob(radius, blob_density) / self.scale).expm1().log().clamp_min(self.FLOOR)
        self.register_buffer("start", start[None], persistent=False)
        self.register_buffer("matrix1", interpolation(sizes[1], sizes[0]), persistent=False)
        self.register_buffer("matrix2", interpolation(sizes[2], sizes[1]), persistent=False)
        self.register_buffer("progress", torch.zeros(()))

    def advance(self, progress: float) -> None:
        self.progress.fill_(progress)

    def raw(self) -> Float[Tensor, "4 x y z"]:
        """The sum of the levels on the finest grid: density before softplus, colour before sigmoid."""
        progress = self.progress.item()
        total = torch.cat([self.density_levels[0], self.colour_levels[0]])
        for level, matrix, fade in zip((1, 2), (self.matrix1, self.matrix2), self.FADE, strict=True):
            finer = torch.cat([self.density_levels[level], self.colour_levels[level]])
            total = upsample(total, matrix) + finer * min(1.0, progress / fade)
        return torch.cat([total[:1] + self.start, total[1:]])

    def sample(self, points: Float[Tensor, "n 3"], *, normals: bool = False) -> Samples:
        """Interpolates before the nonlinearities, so that a surface can be sharper than a cell (DVGO, section 4.2)."""
        raw = self.raw()
        if normals:
            raw = torch.cat([raw, torch.stack(torch.gradient(raw[0]))])
        size = self.cells + 1
        table = raw.flatten(1).T.contiguous()
        rows = torch.cat([WeightedRows.apply(table, *corners(part, size)) for part in points.split(CHUNK)])
        density = F.softplus(rows[:, 0]) * self.scale * inside(points)
        normal = -F.normalize(rows[:, 4:], dim=-1) if normals else None
        return Samples(density, rows[:, 1:4].sigmoid(), normal)

    @torch.no_grad()
    def occupied(self, density: float) -> Bool[Tensor, "x y z"]:
        """Cells in which the density may exceed ``density``: exact, as a trilinear value lies between its corners."""
        raw = self.raw()[0]
        threshold = math.log(math.expm1(density / self.scale))
        for axis in range(3):  # 30 times as fast as max_pool3d
            length = raw.shape[axis] - 1
            raw = torch.maximum(raw.narrow(axis, 0, length), raw.narrow(axis, 1, length))
        return raw > threshold

    def total_variation(self) -> Float[Tensor, ""]:
        """Mean over the cube of |grad a| + mean_c |grad colour_c|, a the opacity of a cell; L1, per world unit."""
        raw = self.raw()
        opacity = -torch.expm1(-F.softplus(raw[:1]))
        return variation(torch.cat([opacity, raw[1:].sigmoid() / 3]))

    def parameter_groups(self, preset: Preset) -> list[dict]:
        return [
            {"params": list(self.density_levels), "lr": preset.density_lr},
            {"params": list(self.colour_levels), "lr": preset.colour_lr},
        ]


class HashEncoding(nn.Module):
    """Multi-resolution hash grid (Instant-NGP, section 3), in plain torch, with the memory layout of tiny-cuda-nn.

    Level l has resolution base * scale^l; a level whose vertices fit in the table is stored densely, the others share
    rows by hashing.  ``params`` is one flat vector, so that weights move freely between this and the CUDA twin.
    """

    LEVELS, FEATURES, LOG2_ROWS, BASE, SCALE = 16, 2, 19, 16, 1.4473  # MVDream
    PRIMES = (1, 2_654_435_761, 805_459_861)

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        limit = 2**self.LOG2_ROWS
        self.scales = [self.BASE * self.SCALE**level - 1 for level in range(self.LEVELS)]
        self.sizes = [math.ceil(scale) + 1 for scale in self.scales]
        self.rows = [min(limit, math.ceil(size**3 / 8) * 8) for size in self.sizes]
        start = torch.rand(sum(self.rows) * self.FEATURES, generator=generator)
        self.params = nn.Parameter((start * 2 - 1) * 1e-4)

    def forward(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 32"]:
        """Features of points in [0, 1]^3; differentiable in ``params`` only."""
        features = []
        axes = points.T.contiguous()
        for table, scale, size in zip(
            self.params.view(-1, self.FEATURES).split(self.rows), self.scales, self.sizes, strict=True
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
                weights.append(sides[0] * sides[1] * sides[2])
            features.append(WeightedRows.apply(table, torch.stack(index, 1), torch.stack(weights, 1)))
        return torch.cat(features, -1)


def hash_encoding(generator: torch.Generator, device: torch.device) -> nn.Module:
    """tiny-cuda-nn's encoding on a CUDA device that has it, the plain one otherwise; same parameters, same values."""
    plain = HashEncoding(generator).to(device)
    if device.type != "cuda":
        return plain
    try:
        import tinycudann  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):  # not installed, or built for another driver
        return plain
    settings = {
        "otype": "HashGrid",
        "n_levels": plain.LEVELS,
        "n_features_per_level": plain.FEATURES,
        "log2_hashmap_size": plain.LOG2_ROWS,
        "base_resolution": plain.BASE,
        "per_level_scale": plain.SCALE,
    }
    fast = tinycudann.Encoding(3, settings, dtype=torch.float32)
    fast.params.data.copy_(plain.params.data)
    return fast


def small_network(outputs: int, generator: torch.Generator) -> nn.Sequential:
    """32 features to ``outputs`` through one hidden layer of 64, drawn from ``generator`` (Kaiming's uniform)."""
    layers = nn.Linear(32, 64, bias=False), nn.Linear(64, outputs, bias=False)
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


class HashField(nn.Module):
    """MVDream's field: a hash grid, one small network for density, one for colour (threestudio's implicit volume).

    density = softplus(raw + blob); normals by central differences.  Its occupancy grid of 32 cells an edge remembers
    the largest density seen in each cell and forgets 5 % of it at every refresh (Instant-NGP, appendix C).
    """

    seen: Tensor
    looks: Tensor
    CELLS = 32
    REFRESHES = 256  # of the occupancy in a run
    REACH = 1e-2  # half the stride of a normal's differences, world units

    def __init__(self, blob_density: float, *, seed: int, device: torch.device | str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blob_density = blob_density
        self.encoding = hash_encoding(generator, torch.device(device))
        self.density_network = small_network(1, generator)
        self.colour_network = small_network(3, generator)
        self.register_buffer("seen", torch.full((self.CELLS,) * 3, math.inf))  # nothing is skipped before a first look
        self.register_buffer("looks", torch.zeros((), dtype=torch.int64))

    def density(self, points: Float[Tensor, "n 3"], features: Float[Tensor, "n 32"]) -> Float[Tensor, " n"]:
        raw = self.density_network(features)[:, 0] + self.blob_density * (1 - points.norm(dim=-1) / BLOB_RADIUS)
        return F.softplus(raw) * inside(points)

    def normal(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        offsets = self.REACH * torch.eye(3, dtype=points.dtype, device=points.device)
        around = (points[:, None, None] + torch.stack([offsets, -offsets])).reshape(-1, 3)
        density = self.density(around, self.encoding((around + 1) / 2)).view(-1, 2, 3)
        return F.normalize(density[:, 1] - density[:, 0], dim=-1)

    def sample(self, points: Float[Tensor, "n 3"], *, normals: bool = False) -> Samples:
        parts = []
        for part in points.split(CHUNK):
            features = self.encoding((part + 1) / 2)
            parts.append((self.density(part, features), self.colour_network(features).sigmoid()))
        density, colour = map(torch.cat, zip(*parts, strict=True))
        normal = torch.cat([self.normal(part) for part in points.split(CHUNK)]) if normals else None
        return Samples(density, colour, normal)

    def looks_at(self) -> Float[Tensor, "n 3"]:
        """One point in each cell of the occupancy grid, another one after each refresh (Roberts' R3 sequence)."""
        axis = torch.arange(self.CELLS, device=self.seen.device)
        cell = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        place = (0.5 + self.looks * torch.tensor([0.8192, 0.6711, 0.5498], device=cell.device)) % 1
        return ((cell + place) / self.CELLS * 2 - 1).to(self.seen.dtype)

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Refreshes the occupancy when that is due; the same progress again, as when a run resumes, changes nothing."""
        due = int(progress * self.REFRESHES) + 1
        if due > self.looks:
            self.looks.fill_(due)
            density = self.sample(self.looks_at()).density.view_as(self.seen)
            self.seen.copy_(torch.where(self.seen.isinf(), density, torch.maximum(self.seen * 0.95, density)))

    def total_variation(self) -> Float[Tensor, ""]:
        """As `GridField.total_variation`, over the points of the occupancy grid."""
        found = self.sample(self.looks_at())
        opacity = -torch.expm1(-found.density * 2 / self.CELLS)
        return variation(torch.cat([opacity[:, None], found.colour / 3], dim=1).T.reshape(4, *self.seen.shape))

    def occupied(self, density: float) -> Bool[Tensor, "x y z"]:
        """Cells near which more than ``density`` was seen; all of them before the first look."""
        return (F.max_pool3d(self.seen[None], 3, stride=1, padding=1) > density)[0]

    def parameter_groups(self, preset: Preset) -> list[dict]:
        """The networks move at a tenth of the table's rate, as in MVDream."""
        return [
            {"params": list(self.encoding.parameters()), "lr": preset.density_lr},
            {"params": list(self.density_network.parameters()), "lr": preset.density_lr / 10},
            {"params": list(self.colour_network.parameters()), "lr": preset.colour_lr / 10},
        ]
