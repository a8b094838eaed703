"""Radiance fields over the cube [-1, 1]^3, and the one for the CPU: a sum of dense grids.

It and `psd.scenes.fields.hash` turn points into density (per world unit) and view-independent sRGB colour, say which
cells of a coarse grid hold anything at all, and start as MVDream's blob, density softplus(b (1 - |x| / 0.5)). Axes: n
points, c channel, x y z vertices of a grid, k the 8 corners around a point, t table rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from psd.config.settings import RadianceSettings
from psd.scenes.fields.interpolation import (
    CHUNK,
    Samples,
    WeightedRows,
    grid_variation,
    initial_blob,
    interpolation_matrix,
    is_inside_ball,
    trilinear_corners,
    upsample_grid,
)

if TYPE_CHECKING:
    from psd.config.preset import Preset


def named_parameters(module: nn.Module, part: str) -> list[tuple[str, nn.Parameter]]:
    """Those of one part of a module under the names that the module's state gives them."""
    return [(name, value) for name, value in module.named_parameters() if name.startswith(f"{part}.")]


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
    notes: tuple[str, ...] = ()  # there was nothing to choose
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
        start = (initial_blob(radius, blob_density) / self.scale).expm1().log().clamp_min(self.FLOOR)
        self.register_buffer("start", start[None], persistent=False)
        self.register_buffer("matrix1", interpolation_matrix(sizes[1], sizes[0]), persistent=False)
        self.register_buffer("matrix2", interpolation_matrix(sizes[2], sizes[1]), persistent=False)
        self.register_buffer("progress", torch.zeros(()))
        self.kept: tuple[tuple[float, ...], Tensor] | None = None  # what `raw_grid` was, and of which values

    def advance(self, progress: float) -> None:
        self.progress.fill_(progress)

    def raw_grid(self) -> Float[Tensor, "4 x y z"]:
        """The sum of the levels on the finest grid: density before softplus, colour before sigmoid.

        Taken once a step, for its occupancy, its samples and its total variation: the same tensor until a parameter
        moves or a gradient has passed.
        """
        state = self.progress.item(), *(value._version for value in self.parameters())
        if self.kept is None or self.kept[0] != state or (torch.is_grad_enabled() and not self.kept[1].requires_grad):
            total = self._sum_levels(state[0])
            if total.requires_grad:
                total.register_hook(self._let_go)
            self.kept = state, total
        return self.kept[1] if torch.is_grad_enabled() else self.kept[1].detach()

    def _let_go(self, _: Tensor) -> None:
        """A graph is walked back once."""
        self.kept = None

    def _sum_levels(self, progress: float) -> Float[Tensor, "4 x y z"]:
        total = torch.cat([self.density_levels[0], self.colour_levels[0]])
        for level, matrix, fade in zip((1, 2), (self.matrix1, self.matrix2), self.FADE, strict=True):
            finer = torch.cat([self.density_levels[level], self.colour_levels[level]])
            total = upsample_grid(total, matrix) + finer * min(1.0, progress / fade)
        return torch.cat([total[:1] + self.start, total[1:]])

    def sample(self, points: Float[Tensor, "n 3"], *, normals: bool = False) -> Samples:
        """What the field is at ``points``."""
        return self.sample_table(self.make_table(normals=normals), points)

    def make_table(self, *, normals: bool) -> Float[Tensor, "t c"]:
        """`raw_grid` as one row a vertex; ``normals`` adds the slopes of the density."""
        raw = self.raw_grid()
        if normals:
            raw = torch.cat([raw, torch.stack(torch.gradient(raw[0]))])
        return raw.flatten(1).T.contiguous()

    def sample_table(self, table: Float[Tensor, "t c"], points: Float[Tensor, "n 3"]) -> Samples:
        """Interpolates before the nonlinearities, so that a surface can be sharper than a cell (DVGO, section 4.2)."""
        size = self.cells + 1
        rows = torch.cat([WeightedRows.apply(table, *trilinear_corners(part, size)) for part in points.split(CHUNK)])
        density = F.softplus(rows[:, 0]) * self.scale * is_inside_ball(points)
        normal = -F.normalize(rows[:, 4:], dim=-1) if table.shape[1] > 4 else None
        return Samples(density, rows[:, 1:4].sigmoid(), normal)

    @torch.no_grad()
    def occupied_cells(self, density: float) -> Bool[Tensor, "x y z"]:
        """Cells in which the density may exceed ``density``: exact, as a trilinear value lies between its corners."""
        raw = self.raw_grid()[0]
        threshold = math.log(math.expm1(density / self.scale))
        for axis in range(3):  # 30 times as fast as max_pool3d
            length = raw.shape[axis] - 1
            raw = torch.maximum(raw.narrow(axis, 0, length), raw.narrow(axis, 1, length))
        return raw > threshold

    def total_variation(self) -> Float[Tensor, ""]:
        """Mean over the cube of |grad a| + mean_c |grad colour_c|, a the opacity of a cell; L1, per world unit.

        The opacity 1 - exp(-softplus(x)) of a cell's width is sigmoid(x), as a colour is.
        """
        raw = self.raw_grid()
        weights = raw.new_tensor([1, 1 / 3, 1 / 3, 1 / 3])[:, None, None, None]
        return grid_variation(raw.sigmoid() * weights)

    def parameter_groups(self, preset: Preset) -> list[dict]:
        assert isinstance(preset.scene, RadianceSettings)
        return [
            {"name": "density", "params": named_parameters(self, "density_levels"), "lr": preset.scene.density_lr},
            {"name": "colour", "params": named_parameters(self, "colour_levels"), "lr": preset.scene.colour_lr},
        ]
