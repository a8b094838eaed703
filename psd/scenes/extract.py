"""From a radiance field to a clean triangle mesh: threshold, surface, clean-up, decimation, colours.

The threshold is the density whose silhouettes agree best with the scene's rendered opacity: no constant suits both a
soft cloud and a hard shell.  Everything here is in the world frame (+z up); `psd.geometry.export` turns it for glTF.
Axes: n vertices, points or rays, m faces, s samples along a ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, UInt8
from scipy import ndimage

from psd.geometry import cameras as geometry_cameras
from psd.geometry.cleanup import MeshError, decimate_surface, drop_floaters, smooth_surface, vertex_normals
from psd.geometry.mesh import Mesh
from psd.scenes.interfaces import Render

CHUNK = 1 << 18  # points a query, so that memory does not grow with the resolution
RIM = 0.1  # of the unit ball's radius: a field that is solid there is fog, not an object
TEXTURE_S = 120.0  # the longest that a texture may take
COLOUR_DEPTH = 0.15  # world units below the surface that its colour may come from


class DensityScene(Protocol):
    """What is meshed here: a scene with a density."""

    def density(self, points: Float[torch.Tensor, "n 3"]) -> Float[torch.Tensor, " n"]:
        """Per world unit."""
        ...

    def colour(self, points: Float[torch.Tensor, "n 3"]) -> Float[torch.Tensor, "n 3"]:
        """sRGB in [0, 1]."""
        ...

    def render(
        self, cameras: geometry_cameras.Cameras, size: int, *, background: Float[torch.Tensor, "b 3"]
    ) -> Render: ...


def extract_mesh(
    scene: DensityScene,
    *,
    resolution: int,
    faces: int,
    threshold: float | None = None,
    texture: bool = False,
    texture_timeout_s: float = TEXTURE_S,
    device: torch.device | str = "cpu",
) -> Mesh:
    """The closed, outward-facing surface of ``scene``'s density, without floaters and inner cavities.

    ``resolution`` counts the density samples along an edge of [-1, 1]^3, ``faces`` bounds the faces, ``threshold`` None
    picks the density whose silhouettes match the rendered opacity.  A texture that cannot be baked within
    ``texture_timeout_s`` is replaced by vertex colours and a note in the mesh.  Raises `MeshError` for an empty, full
    or non-finite field.
    """
    if not 8 <= resolution <= 512:
        raise MeshError(f"resolution={resolution} must lie in [8, 512]")
    if faces < 20:
        raise MeshError(f"faces={faces} must be at least 20")
    if threshold is not None and not 0 < threshold < float("inf"):
        raise MeshError(f"threshold={threshold} must be a positive density; None picks one")
    with torch.no_grad():
        density = density_grid(scene, resolution, device)
        if threshold is None:
            threshold = best_threshold(scene, density, device)
        vertices, triangles = iso_surface(density, threshold)
        vertices, triangles = drop_floaters(vertices, triangles)
        vertices = smooth_surface(vertices, triangles)
        vertices, triangles = decimate_surface(vertices, triangles, faces)
        normals = vertex_normals(vertices, triangles)

        def colour_at(points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
            return surface_colour(scene, points, normals, 2 / (resolution - 1), device)

        mesh = Mesh(vertices, triangles, normals, colour_at(vertices, normals), threshold=threshold)
        if not texture:
            return mesh
        # About four texels along a voxel's edge: the field holds nothing finer.
        return add_texture(mesh, colour_at, size=texture_size(resolution), timeout_s=texture_timeout_s)


def texture_size(cells: int) -> int:
    """Texels along a side: a power of two, at least four for each of ``cells`` along an edge."""
    return 1 << (4 * cells - 1).bit_length()


def add_texture(
    mesh: Mesh, colour: Callable[[np.ndarray, np.ndarray], np.ndarray] | None, *, size: int, timeout_s: float
) -> Mesh:
    """``mesh`` with a baked texture (``colour`` as in `bake_texture`), or as it was with a note that says why not."""
    from psd.geometry.texture import TextureError, bake_texture

    try:
        return bake_texture(mesh, colour, size=size, timeout_s=timeout_s)
    except TextureError as error:
        return replace(mesh, notes=(*mesh.notes, f"The mesh keeps vertex colours: {error}"))


# ---------------------------------------------------------------------------------------------------------- threshold


def density_grid(
    scene: DensityScene, resolution: int, device: torch.device | str = "cpu"
) -> Float[torch.Tensor, "x y z"]:
    """Densities at ``resolution``^3 points that span [-1, 1]^3, corners included; raises `MeshError` if not finite."""
    axis = torch.linspace(-1, 1, resolution, device=device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    density = torch.cat([scene.density(chunk) for chunk in points.split(CHUNK)]).float()
    if bad := int((~torch.isfinite(density)).sum()):
        raise MeshError(f"{bad} of {len(density)} densities are not finite: resume from an earlier checkpoint")
    return density.reshape(resolution, resolution, resolution)


def face_counter(scene: DensityScene, resolution: int, device: torch.device | str = "cpu") -> Callable[[float], int]:
    """Counts the faces of the surface at a threshold, without floaters and before decimation; asks the scene once."""
    with torch.no_grad():
        density = density_grid(scene, resolution, device)
    return lambda threshold: len(drop_floaters(*iso_surface(density, threshold))[1])


def best_threshold(
    scene: DensityScene, density: Float[torch.Tensor, "x y z"], device: torch.device | str = "cpu", *, size: int = 64
) -> float:
    """The density whose silhouettes have the largest IoU with the rendered opacity, over six fixed views.

    A pixel lies in the silhouette at a threshold where the largest density along its ray exceeds it: one projection
    serves every threshold.  Where many do equally well (a hard field), their geometric middle is taken.
    """
    cameras = geometry_cameras.orbit_cameras(
        torch.tensor([[0.0, 45.0, 90.0, 135.0, 200.0, 290.0]]),
        torch.tensor([[10.0, 10.0, 10.0, 10.0, 40.0, 40.0]]),
        torch.full((1, 6), 3.02),  # the unit ball fills 40 degrees
        torch.full((1, 6), 40.0),
    ).to(device)
    background = torch.ones(1, 3, device=device)
    opaque, peak = [], []
    for view in range(cameras.views):  # one at a time: memory
        camera = cameras[:, [view]]
        opaque.append(scene.render(camera, size, background=background).opacity.flatten() > 0.5)
        origins, directions = geometry_cameras.camera_rays(camera, size)
        peak.append(largest_density(density, origins.reshape(-1, 3), directions.reshape(-1, 3)))
    target, highest = torch.cat(opaque).cpu(), torch.cat(peak).cpu()
    if not target.any() or not highest.max() > 0:
        raise MeshError(
            "the field is empty: no pixel of six views reaches opacity 0.5, and the largest density is"
            f" {float(density.max()):.3g}: run more steps, or lower scene.weight_opacity"
        )
    candidates = torch.logspace(-4, 0, 97)[:-1] * highest.max()
    inside = highest > candidates[:, None]  # candidates x pixels
    agreement = (inside & target).sum(1) / (inside | target).sum(1)
    best = int(agreement.argmax())
    good = agreement >= agreement[best] - 0.005  # differences below are pixel noise
    first = last = best
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(good) and good[last + 1]:
        last += 1
    return float((candidates[first] * candidates[last]).sqrt())


def largest_density(
    density: Float[torch.Tensor, "x y z"], origins: Float[torch.Tensor, "n 3"], directions: Float[torch.Tensor, "n 3"]
) -> Float[torch.Tensor, " n"]:
    """The maximum along each ray of the trilinear interpolation of ``density`` over [-1, 1]^3; 0 for rays that miss."""
    safe = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    slabs = torch.stack([(-1 - origins) / safe, (1 - origins) / safe])
    start, end = slabs.amin(0).amax(-1), slabs.amax(0).amin(-1)
    hit = end > start.clamp_min(0)
    peak = torch.zeros_like(start)
    fraction = torch.linspace(0, 1, density.shape[0] * 3 // 2, device=density.device)
    t = start[hit, None] + (end - start)[hit, None] * fraction  # n s
    points = origins[hit, None] + directions[hit, None] * t[..., None]
    # grid_sample's last coordinate runs along the first axis of the grid.
    values = torch.nn.functional.grid_sample(
        density[None, None], points.flip(-1)[None, None], align_corners=True, padding_mode="border"
    )
    peak[hit] = values[0, 0, 0].amax(-1)
    return peak


# ------------------------------------------------------------------------------------------------------------ surface


def iso_surface(
    density: Float[torch.Tensor, "x y z"], threshold: float
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """Marching cubes (Lewiner) at ``threshold``, closed at the cube's sides, inner cavities filled.

    Raises `MeshError` for an empty field, and for one that fills the unit ball: its surface would be the ball's own.
    """
    from skimage.measure import marching_cubes

    resolution = density.shape[0]
    # A monotone squash with level 0 at the threshold: densities grow steeply inside, and a linear interpolation of the
    # raw values would put every vertex next to the outer sample, in stairs.
    level = np.pad((density / (density + threshold) - 0.5).cpu().numpy(), 1, constant_values=-0.5)
    solid = level > 0
    if not solid.any():
        raise MeshError(
            f"the field is empty: its largest density {float(density.max()):.3g} does not exceed the threshold"
            f" {threshold:.3g}: lower the threshold or run more steps"
        )
    x, y, z = np.ogrid[(slice(-1, 1, resolution * 1j),) * 3]
    radius = np.sqrt(x * x + y * y + z * z)
    # Just below the ball's surface: on the cube's sides, outside it, a scene's density is zero.
    if (share := solid[1:-1, 1:-1, 1:-1][(radius > 1 - RIM) & (radius <= 1)].mean()) > 0.5:
        raise MeshError(
            f"the field is full: {share:.0%} of the outermost tenth of the unit ball lie above the threshold"
            f" {threshold:.3g} (at most 50%): raise scene.weight_opacity or the threshold"
        )
    level[np.asarray(ndimage.binary_fill_holes(solid)) & ~solid] = 0.5
    vertices, faces, _, _ = marching_cubes(level, 0.0, gradient_direction="ascent")
    spacing = 2 / (resolution - 1)
    return ((vertices - 1) * spacing - 1).astype(np.float32), faces.astype(np.int32)


# ------------------------------------------------------------------------------------------------------------- colour


def surface_colour(
    scene: DensityScene,
    points: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    voxel: float,
    device: torch.device | str = "cpu",
    *,
    samples: int = 12,
) -> UInt8[np.ndarray, "n 3"]:
    """The sRGB colour that a camera straight above each point sees: volume rendering down its normal.

    The field's colour at the iso-surface itself was hardly ever looked at in a soft field; what was optimised lies
    where the light is absorbed, a little deeper.
    """
    depth = torch.linspace(-0.5 * voxel, COLOUR_DEPTH, samples, device=device)
    step = float(depth[1] - depth[0])
    colours = []
    for start in range(0, len(points), CHUNK // samples):
        rows = slice(start, start + CHUNK // samples)
        point, normal = (torch.from_numpy(np.ascontiguousarray(a[rows])).to(device) for a in (points, normals))
        below = (point[:, None] - normal[:, None] * depth[:, None]).clamp(-1, 1).reshape(-1, 3).float()
        optical = (scene.density(below).float() * step).reshape(-1, samples)
        reaching = torch.exp(-(optical.cumsum(1) - optical))
        weight = reaching * (1 - torch.exp(-optical))
        weight[:, 1] += 1e-3  # a vertex that smoothing moved into thin air takes the colour nearby
        colour = scene.colour(below).float().reshape(-1, samples, 3)
        colours.append((weight[..., None] * colour).sum(1) / weight.sum(1, keepdim=True))
    return (torch.cat(colours).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
