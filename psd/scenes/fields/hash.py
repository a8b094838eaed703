"""MVDream's radiance field over the cube [-1, 1]^3: a hash grid and two small networks, for the large models.

The same grid is computed by tiny-cuda-nn, by this project's Triton kernels (`psd.scenes.fields.hash_triton`) or in
plain torch, whatever the machine has; all share one vector of parameters.  Axes: n points, x y z cells of the occupancy
grid.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psd.config.settings import RadianceSettings
from psd.runtime.devices import to_device
from psd.scenes.fields.grid import named_parameters
from psd.scenes.fields.hash_backends import hash_backend, make_hash_encoding
from psd.scenes.fields.interpolation import BLOB_RADIUS, CHUNK, Samples, grid_variation, is_inside_ball

if TYPE_CHECKING:
    from psd.config.preset import Preset

CUDA_CHUNK = 2**21  # points at once on a GPU, in a training step too: about 2 GB


def make_small_network(outputs: int, generator: torch.Generator) -> nn.Sequential:
    """32 features to ``outputs`` through a hidden layer of 64, weights U(+-1 / sqrt(fan_in)) as in MVDream."""
    layers = nn.Linear(32, 64, bias=False), nn.Linear(64, outputs, bias=False)
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)  # nn.Linear's own
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


class HashField(nn.Module):
    """MVDream's field: a hash grid, one small network for density, one for colour (threestudio's implicit volume).

    density = softplus(raw + blob); normals are analytic.  Its occupancy grid of 32 cells an edge remembers
    the largest density seen in each cell and forgets 5 % of it at every refresh (Instant-NGP, appendix C).
    """

    seen: Tensor
    looks: Tensor
    CELLS = 32
    REFRESHES = 256  # of the occupancy in a run; as often in its extra steps

    def __init__(self, blob_density: float, *, seed: int, device: torch.device | str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blob_density = blob_density
        self.encoding = make_hash_encoding(generator, torch.device(device))
        self.notes = (f"hash grid: {hash_backend(torch.device(device))[1]}",)
        self.density_network = make_small_network(1, generator)
        self.colour_network = make_small_network(3, generator)
        self.register_buffer("seen", torch.full((self.CELLS,) * 3, math.inf))  # nothing is skipped before a first look
        self.register_buffer("looks", torch.zeros((), dtype=torch.int64))
        self.looked: int | None = None  # ``looks`` where nobody waits for it; None: not known
        self.filled: tuple[float, Tensor] | None = None  # a density and its `occupied` cells, until the next refresh

    def density(self, points: Float[Tensor, "n 3"], features: Float[Tensor, "n 32"]) -> Float[Tensor, " n"]:
        raw = self.density_network(features)[:, 0] + self.blob_density * (1 - points.norm(dim=-1) / BLOB_RADIUS)
        return F.softplus(raw) * is_inside_ball(points)

    def normal(self, points: Float[Tensor, "n 3"], features: Float[Tensor, "n 32"]) -> Float[Tensor, "n 3"]:
        """Analytic (MVDream's shading): the density falls where what softplus is taken of does.

        The network's gradient is written out, so that it is differentiable without a second backward pass.
        """
        into, out = (self.density_network.get_parameter(name) for name in ("0.weight", "2.weight"))
        awake = (F.linear(features, into) > 0).to(features)
        pull = (awake * out) @ into  # d raw / d features
        blob_slope = self.blob_density / BLOB_RADIUS * F.normalize(points, dim=-1)
        slope = (pull[..., None] * self.encoding.feature_slopes((points + 1) / 2)).sum(1) / 2 - blob_slope
        return -F.normalize(slope, dim=-1)

    def look(
        self, points: Float[Tensor, "n 3"], normals: bool, known: Float[Tensor, "n 32"] | None = None
    ) -> tuple[Tensor, ...]:
        features = self.encoding((points + 1) / 2, known)
        found = self.density(points, features), self.colour_network(features).sigmoid()
        return (*found, self.normal(points, features)) if normals else found

    def sample(
        self, points: Float[Tensor, "n 3"], *, normals: bool = False, known: Float[Tensor, "n 32"] | None = None
    ) -> Samples:
        """In pieces where there are many points: then gradients make each piece again instead of keeping it.

        ``known``: the points' features, of `look_ahead`.
        """
        most = self.piece_size // 4 if normals else self.piece_size
        parts = points.split(most)
        given = [None] * len(parts) if known is None else known.split(most)
        again = torch.is_grad_enabled() and len(parts) > 1
        found = [
            checkpoint(self.look, part, normals, features, use_reentrant=False, preserve_rng_state=False)
            if again
            else self.look(part, normals, features)
            for part, features in zip(parts, given, strict=True)
        ]
        return Samples(*map(torch.cat, zip(*found, strict=True)))

    @property
    def piece_size(self) -> int:
        return CUDA_CHUNK if self.seen.device.type == "cuda" else CHUNK

    @torch.no_grad()
    def look_ahead(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 32"] | None]:
        """The densities alone, without gradients, and the features if they fit in one piece: more are let go at once,
        128 bytes a point that a training step needs for other things.
        """
        parts = points.split(self.piece_size)
        if len(parts) == 1:
            features = self.encoding((points + 1) / 2)
            return self.density(points, features), features
        return torch.cat([self.density(part, self.encoding((part + 1) / 2)) for part in parts]), None

    def probe_points(self, looks: Int[Tensor, ""] | int) -> Float[Tensor, "n 3"]:
        """One point in each cell of the occupancy grid, another after each of the ``looks`` (Roberts' R3 sequence)."""
        axis = torch.arange(self.CELLS, device=self.seen.device)
        cell = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        place = (0.5 + looks * to_device(torch.tensor([0.8192, 0.6711, 0.5498]), cell.device)) % 1
        return ((cell + place) / self.CELLS * 2 - 1).to(self.seen.dtype)

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Refreshes the occupancy when that is due; the same progress again, as when a run resumes, changes nothing."""
        due = int(progress * self.REFRESHES) + 1
        if self.looked is None:
            self.looked = int(self.looks)
        if due > self.looked:
            density = self.look_ahead(self.probe_points(due))[0].view_as(self.seen)
            self.seen.copy_(torch.where(self.seen.isinf(), density, torch.maximum(self.seen * 0.95, density)))
            self.looks.fill_(due)  # not before: where memory is too short for a look, it is still due
            self.looked, self.filled = due, None

    def load_state_dict(self, *args: Any, **keywords: Any) -> Any:
        self.looked = self.filled = None
        return super().load_state_dict(*args, **keywords)

    def total_variation(self) -> Float[Tensor, ""]:
        """As `GridField.total_variation`, over the points of the occupancy grid."""
        found = self.sample(self.probe_points(self.looks))
        opacity = -torch.expm1(-found.density * 2 / self.CELLS)
        return grid_variation(torch.cat([opacity[:, None], found.colour / 3], dim=1).T.reshape(4, *self.seen.shape))

    def occupied_cells(self, density: float) -> Bool[Tensor, "x y z"]:
        """Cells near which more than ``density`` was seen; all of them before the first look.

        The very same tensor until the next refresh, so that what was read of it need not be read again.
        """
        if self.filled is None or self.filled[0] != density:
            self.filled = density, (F.max_pool3d(self.seen[None], 3, stride=1, padding=1) > density)[0]
        return self.filled[1]

    def parameter_groups(self, preset: Preset) -> list[dict]:
        """The networks move at a tenth of the table's rate, as in MVDream."""
        assert isinstance(preset.scene, RadianceSettings)
        density = preset.scene.density_lr
        return [
            {"name": "encoding", "params": named_parameters(self, "encoding"), "lr": density},
            {"name": "density", "params": named_parameters(self, "density_network"), "lr": density / 10},
            {"name": "colour", "params": named_parameters(self, "colour_network"), "lr": preset.scene.colour_lr / 10},
        ]
