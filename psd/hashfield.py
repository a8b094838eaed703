"""MVDream's radiance field over the cube [-1, 1]^3: a hash grid and two small networks, for the large models.

The same grid is computed by tiny-cuda-nn, by this project's Triton kernels (`psd.hashgrid`) or in plain torch, whatever
the machine has; all share one vector of parameters.  Axes: n points, x y z cells of the occupancy grid.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psd import machine
from psd.cameras import placed
from psd.fields import BLOB_RADIUS, CHUNK, Samples, WeightedRows, inside, variation

if TYPE_CHECKING:
    from psd.preset import Preset

CUDA_CHUNK = 2**21  # points at once on a GPU, in a training step too: about 2 GB
OLDEST_FOR_TRITON = (7, 5)  # compute capability


class HashEncoding(nn.Module):
    """Multi-resolution hash grid (Instant-NGP, section 3), in plain torch, with the memory layout of tiny-cuda-nn.

    Level l has resolution base * scale^l; a level whose vertices fit in the table is stored densely, the others share
    rows by hashing.  ``params`` is one flat vector, so that weights move freely between this and its CUDA twins.
    """

    LEVELS, FEATURES, LOG2_ROWS, BASE, SCALE = 16, 2, 19, 16, 1.4473  # MVDream
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

    def forward(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 32"]:
        """Features of points in [0, 1]^3; differentiable in ``params`` only."""
        return self.fused[0](points) if self.fused else self.gather(points)

    def slopes(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 32 3"]:
        """Derivatives of the features by the point, linear in ``params`` as they are, so differentiable in them too."""
        return torch.stack([self.gather(points, axis) for axis in range(3)], dim=-1)

    def gather(self, points: Float[Tensor, "n 3"], axis: int | None = None) -> Float[Tensor, "n 32"]:
        """The features, or their derivatives along ``axis``: the weights' own, times the level's scale."""
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
                if axis is not None:
                    sides[axis] = torch.full_like(sides[axis], scale if corner[axis] else -scale)
                weights.append(sides[0] * sides[1] * sides[2])
            features.append(WeightedRows.apply(table, torch.stack(index, 1), torch.stack(weights, 1)))
        return torch.cat(features, -1)


def through_tinycudann(encoding: HashEncoding) -> HashEncoding:
    """The same encoding, its features computed by tiny-cuda-nn; its slopes are its own as before."""
    import tinycudann  # pyright: ignore[reportMissingImports]

    settings = {
        "otype": "HashGrid",
        "n_levels": encoding.LEVELS,
        "n_features_per_level": encoding.FEATURES,
        "log2_hashmap_size": encoding.LOG2_ROWS,
        "base_resolution": encoding.BASE,
        "per_level_scale": encoding.SCALE,
    }
    fused = tinycudann.Encoding(3, settings, dtype=torch.float32)
    fused.params = encoding.params
    encoding.fused = (fused,)
    return encoding


def hash_backend(device: torch.device) -> tuple[str, str]:
    """What computes the hash grid on ``device``, and why: tinycudann, triton or plain torch."""
    if device.type != "cuda":
        return "plain", f"plain torch: kernels are for NVIDIA GPUs, this is {device.type}"
    reason, but = no_triton(device), ""
    if importlib.util.find_spec("tinycudann"):
        broken = machine.broken("tinycudann")
        if not broken:
            slopes = f"; slopes in plain torch, slowly: {reason}" if reason else ""
            return "tinycudann", f"tinycudann, which is installed{slopes}"
        but = f"; tinycudann cannot be used here ({broken})"
    if reason:
        return "plain", f"plain torch, which is slow on a GPU: {reason}{but}"
    return "triton", f"Triton kernels, compiled here{but}"


@cache
def no_triton(device: torch.device) -> str:
    """Why this project's kernels cannot run on a GPU, with the cure; "" where one was launched."""
    if importlib.util.find_spec("triton") is None:
        return "Triton comes with torch on Linux"
    if torch.cuda.get_device_capability(device) < OLDEST_FOR_TRITON:
        return "this one is older than Triton's kernels"
    try:
        from psd.hashgrid import try_out

        try_out(device)
    except Exception as error:  # noqa: BLE001 - a C compiler that is not there or fails, a driver, Triton itself
        return f"Triton cannot compile its kernels here ({machine.first_line(error)}): install gcc and python3-dev"
    return ""


def hash_encoding(generator: torch.Generator, device: torch.device) -> HashEncoding:
    """The encoding as `hash_backend` says; the same parameters and values everywhere."""
    name, _ = hash_backend(device)
    kind = HashEncoding
    if name != "plain" and not no_triton(device):
        from psd.hashgrid import TritonHashEncoding

        kind = TritonHashEncoding
    encoding = kind(generator).to(device)
    return through_tinycudann(encoding) if name == "tinycudann" else encoding


def small_network(outputs: int, generator: torch.Generator) -> nn.Sequential:
    """32 features to ``outputs`` through one hidden layer of 64, drawn from ``generator`` (Kaiming's uniform)."""
    layers = nn.Linear(32, 64, bias=False), nn.Linear(64, outputs, bias=False)
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
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
        self.encoding = hash_encoding(generator, torch.device(device))
        self.density_network = small_network(1, generator)
        self.colour_network = small_network(3, generator)
        self.register_buffer("seen", torch.full((self.CELLS,) * 3, math.inf))  # nothing is skipped before a first look
        self.register_buffer("looks", torch.zeros((), dtype=torch.int64))
        self.looked: int | None = None  # ``looks`` where nobody waits for it; None: not known
        self.filled: tuple[float, Tensor] | None = None  # a density and its `occupied` cells, until the next refresh

    def density(self, points: Float[Tensor, "n 3"], features: Float[Tensor, "n 32"]) -> Float[Tensor, " n"]:
        raw = self.density_network(features)[:, 0] + self.blob_density * (1 - points.norm(dim=-1) / BLOB_RADIUS)
        return F.softplus(raw) * inside(points)

    def normal(self, points: Float[Tensor, "n 3"], features: Float[Tensor, "n 32"]) -> Float[Tensor, "n 3"]:
        """Analytic (MVDream's shading): the density falls where what softplus is taken of does.

        The network's gradient is written out, so that it is differentiable without a second backward pass.
        """
        into, out = (self.density_network.get_parameter(name) for name in ("0.weight", "2.weight"))
        awake = (F.linear(features, into) > 0).to(features)
        pull = (awake * out) @ into  # d raw / d features
        blob_slope = self.blob_density / BLOB_RADIUS * F.normalize(points, dim=-1)
        slope = (pull[..., None] * self.encoding.slopes((points + 1) / 2)).sum(1) / 2 - blob_slope
        return -F.normalize(slope, dim=-1)

    def look(self, points: Float[Tensor, "n 3"], normals: bool) -> tuple[Tensor, ...]:
        features = self.encoding((points + 1) / 2)
        found = self.density(points, features), self.colour_network(features).sigmoid()
        return (*found, self.normal(points, features)) if normals else found

    def sample(self, points: Float[Tensor, "n 3"], *, normals: bool = False) -> Samples:
        """In pieces where there are many points: then gradients make each piece again instead of keeping it."""
        parts = points.split(self.piece // 4 if normals else self.piece)
        if torch.is_grad_enabled() and len(parts) > 1:
            found = [checkpoint(self.look, p, normals, use_reentrant=False, preserve_rng_state=False) for p in parts]
        else:
            found = [self.look(part, normals) for part in parts]
        return Samples(*map(torch.cat, zip(*found, strict=True)))

    @property
    def piece(self) -> int:
        return CUDA_CHUNK if self.seen.device.type == "cuda" else CHUNK

    @torch.no_grad()
    def density_at(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Without the colour and without gradients: what a look ahead needs."""
        return torch.cat([self.density(p, self.encoding((p + 1) / 2)) for p in points.split(self.piece)])

    def looks_at(self, looks: Int[Tensor, ""] | int) -> Float[Tensor, "n 3"]:
        """One point in each cell of the occupancy grid, another after each of the ``looks`` (Roberts' R3 sequence)."""
        axis = torch.arange(self.CELLS, device=self.seen.device)
        cell = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        place = (0.5 + looks * placed(torch.tensor([0.8192, 0.6711, 0.5498]), cell.device)) % 1
        return ((cell + place) / self.CELLS * 2 - 1).to(self.seen.dtype)

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Refreshes the occupancy when that is due; the same progress again, as when a run resumes, changes nothing."""
        due = int(progress * self.REFRESHES) + 1
        if self.looked is None:
            self.looked = int(self.looks)
        if due > self.looked:
            density = self.density_at(self.looks_at(due)).view_as(self.seen)
            self.seen.copy_(torch.where(self.seen.isinf(), density, torch.maximum(self.seen * 0.95, density)))
            self.looks.fill_(due)  # not before: where memory is too short for a look, it is still due
            self.looked, self.filled = due, None

    def load_state_dict(self, *args: Any, **keywords: Any) -> Any:
        self.looked = self.filled = None
        return super().load_state_dict(*args, **keywords)

    def total_variation(self) -> Float[Tensor, ""]:
        """As `GridField.total_variation`, over the points of the occupancy grid."""
        found = self.sample(self.looks_at(self.looks))
        opacity = -torch.expm1(-found.density * 2 / self.CELLS)
        return variation(torch.cat([opacity[:, None], found.colour / 3], dim=1).T.reshape(4, *self.seen.shape))

    def occupied(self, density: float) -> Bool[Tensor, "x y z"]:
        """Cells near which more than ``density`` was seen; all of them before the first look.

        The very same tensor until the next refresh, so that what was read of it need not be read again.
        """
        if self.filled is None or self.filled[0] != density:
            self.filled = density, (F.max_pool3d(self.seen[None], 3, stride=1, padding=1) > density)[0]
        return self.filled[1]

    def parameter_groups(self, preset: Preset) -> list[dict]:
        """The networks move at a tenth of the table's rate, as in MVDream."""
        return [
            {"params": list(self.encoding.parameters()), "lr": preset.density_lr},
            {"params": list(self.density_network.parameters()), "lr": preset.density_lr / 10},
            {"params": list(self.colour_network.parameters()), "lr": preset.colour_lr / 10},
        ]
