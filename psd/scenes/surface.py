"""`SurfaceScene`: a closed triangle surface, optimised itself.

Signed distances, offsets and colours live on a tetrahedral grid in a box around the object; the surface is marched
anew in every step and rasterised.  What is optimised is what is exported.  It starts as a grey ball, or from the mesh
of the scene of the stage before.  Axes: b group, v view, i image = (b v), h w pixels, n grid vertices, k surface
vertices, m faces, p covered samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from psd.config.settings import SurfaceSettings
from psd.geometry.cameras import Cameras
from psd.geometry.rasterise import Edges, find_edges, rasterise_faces, smooth_silhouettes
from psd.geometry.smoothness import find_normals, laplacian_length, normal_consistency
from psd.geometry.tetrahedra import Crossings, TetrahedralGrid, march_tetrahedra
from psd.runtime.devices import to_device
from psd.scenes.interfaces import Light, MeshSettings, Render
from psd.scenes.shading import shade_points
from psd.scenes.tensors import copy_tensors, load_tensors

if TYPE_CHECKING:
    from psd.config.preset import Preset
    from psd.config.settings import SceneSettings
    from psd.geometry.mesh import Mesh

BALL = 0.5  # radius of a surface that starts from nothing, as in Fantasia3D
ROOM = 0.12  # of the object's size: how far the surface may grow on each side
THINNEST = 0.5  # of the box's longest side: no side is shorter, or its cells would be needles
# Along a side of a pixel: faces are about as large as a pixel of the embedded prior, so that one sample would flicker.
SAMPLES = 2
PALEST = 0.02  # colours start this far from black and from white, where a sigmoid still learns


@dataclass(frozen=True, eq=False)
class Shape:
    """The surface as it is now."""

    crossings: Crossings
    vertices: Float[Tensor, "k 3"]  # world
    edges: Edges

    @property
    def faces(self) -> Int[Tensor, "m 3"]:
        return self.crossings.faces


class SurfaceScene:
    """A surface in a box of ``surface_cells`` cells along an edge, and how it is rendered."""

    notes: tuple[str, ...] = ()  # there was nothing to choose

    def __init__(self, preset: Preset, device: torch.device | str = "cpu") -> None:
        assert isinstance(preset.scene, SurfaceSettings)
        self.settings: SurfaceSettings = preset.scene
        self.device = torch.device(device)
        self.grid = TetrahedralGrid(preset.scene.surface_cells, self.device)
        self.centre, self.half = torch.zeros(3, device=device), torch.ones(3, device=device)
        distance = (self.grid.points.norm(dim=-1) - BALL) * (self.grid.cells / 2)
        self.distance = distance.requires_grad_()  # edges of a cell, negative inside
        self.offset = torch.zeros(self.grid.count, 3, device=device, requires_grad=True)  # before tanh
        self.colour = torch.zeros(self.grid.count, 3, device=device, requires_grad=True)  # before a sigmoid
        self._kept: tuple[tuple[int, ...], Shape] | None = None  # the shape without gradients, and of which values

    def start_from(self, mesh: Mesh) -> None:
        """The surface and colours of a closed ``mesh``, in a box that is tight around it."""
        from psd.geometry.solid import measure_distances

        low, high = (torch.from_numpy(limit).to(self.device) for limit in (mesh.vertices.min(0), mesh.vertices.max(0)))
        # The outermost cells stay empty, which takes a cell on each side; `ROOM` counts from there.
        half = (high - low) / 2 * (1 + 2 * ROOM) / (1 - 2 / self.grid.cells)
        self.centre, self.half = (low + high) / 2, half.clamp_min(float(half.max()) * THINNEST)
        distance, nearest = measure_distances(mesh, self.grid, self.centre, self.half)
        painted = torch.from_numpy(mesh.colours[nearest]).float() / 255
        with torch.no_grad():
            self.distance.copy_(distance)
            self.offset.zero_()
            self.colour.copy_(painted.clamp(PALEST, 1 - PALEST).logit())

    def parameter_groups(self, preset: Preset) -> list[dict]:
        """Groups for Adam with their initial learning rates; shapes never change during a run."""
        settings = preset.scene
        assert isinstance(settings, SurfaceSettings)
        shape = [("distance", self.distance), ("offset", self.offset)]
        return [
            {"name": "shape", "params": shape, "lr": settings.shape_lr},
            {"name": "paint", "params": [("colour", self.colour)], "lr": settings.paint_lr},
        ]

    def find_shape(self) -> Shape:
        """The surface, with gradients where they are asked for and the geometry learns."""
        if torch.is_grad_enabled() and self.settings.learns != "texture":
            return self._march_shape()
        versions = tuple(value._version for value in (self.distance, self.offset))
        if self._kept is None or self._kept[0] != versions:
            with torch.no_grad():
                self._kept = versions, self._march_shape()
        return self._kept[1]

    def _march_shape(self) -> Shape:
        crossings = march_tetrahedra(self.grid, self.distance)
        vertices = crossings.interpolate(self.grid.offset_points(self.offset))
        return Shape(crossings, self.centre + self.half * vertices, find_edges(crossings.faces))

    def paint_vertices(self, shape: Shape) -> Float[Tensor, "k 3"]:
        """sRGB colours of the surface's vertices."""
        colour = self.colour if self.settings.learns != "geometry" else self.colour.detach()
        return shape.crossings.interpolate(colour).sigmoid()

    def render(
        self,
        cameras: Cameras,
        size: int,
        *,
        background: Float[Tensor, "b 3"],
        generator: torch.Generator | None = None,
        normals: bool = False,
        learned: Bool[Tensor, " b"] | None = None,
        light: Light | None = None,
    ) -> Render:
        """The views on a plain background per group; a surface has no background of its own.

        Nothing is jittered; ``generator`` only says that this is training, where ``shows`` and the regularisers count.
        """
        shape, cameras = self.find_shape(), cameras.to(self.device)
        seen = rasterise_faces(shape.vertices, shape.faces, cameras, size * SAMPLES, closed=True)
        facing = find_normals(shape.vertices, shape.faces)
        values = seen.interpolate(torch.cat([self.paint_vertices(shape), facing, shape.vertices], dim=1))
        colour, normal, points = values.split(3, dim=1)
        normal = normalize(normal, dim=-1)
        view = torch.div(seen.pixel, (size * SAMPLES) ** 2, rounding_mode="floor")
        if light is not None:
            colour = shade_points(colour, normal, points, light, view)
        if generator is not None and self.settings.shows == "normals":
            colour = (normal + 1) / 2
        depth = (points - cameras.c2w[..., :3, 3].flatten(0, 1)[view]).norm(dim=-1, keepdim=True)
        solid = torch.ones_like(depth)
        extra = [normal, depth] if normals else [depth]
        image = seen.to_image(torch.cat([colour, solid, *extra], dim=1))  # i h w c
        behind = to_device(background, self.device).repeat_interleave(cameras.views, dim=0)[:, None, None]
        plain = torch.cat([image[..., :3] + (1 - image[..., 3:4]) * behind, image[..., 3:4]], dim=-1)
        smooth = torch.cat([smooth_silhouettes(plain, seen, shape.edges), image[..., 4:]], dim=-1)
        pooled = avg_pool2d(smooth.movedim(-1, 1), SAMPLES)
        laid = rearrange(pooled, "(b v) c h w -> b v c h w", b=cameras.groups)
        covered = rearrange(
            avg_pool2d(image[..., 3:4].movedim(-1, 1), SAMPLES), "(b v) c h w -> b v c h w", v=cameras.views
        )
        depth = laid[:, :, -1:] / covered.clamp_min(1 / SAMPLES**2)
        opacity = laid[:, :, 3:4]
        normal = normalize(laid[:, :, 4:7], dim=2) * opacity if normals else None
        regularisers = self._measure_smoothness(shape, facing) if generator is not None else {}
        return Render(laid[:, :, :3], opacity, depth, normal, regularisers)

    def _measure_smoothness(self, shape: Shape, normals: Float[Tensor, "k 3"]) -> dict[str, Tensor]:
        """Terms of the surface that have a weight; lengths in edges of a cell."""
        terms = {}
        if self.settings.learns == "texture" or not len(shape.faces):
            return terms
        if self.settings.weight_consistency > 0:
            terms["consistency"] = normal_consistency(normals, shape.edges.ends)
        if self.settings.weight_laplacian > 0:
            lengths = shape.vertices * (self.grid.cells / 2) / self.half
            terms["laplacian"] = laplacian_length(lengths, shape.edges.ends)
        return terms

    def regularisers(self) -> dict[str, Tensor]:
        """None: those of a surface come with its render, which has marched it."""
        return {}

    def advance(self, progress: float, settings: SceneSettings | None = None) -> None:
        if settings is not None:
            assert isinstance(settings, SurfaceSettings)
            self.settings = settings

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Nothing: the grid keeps its shape, and the surface is marched anew."""

    def extract_mesh(self, settings: MeshSettings) -> Mesh:
        """The surface as it is, without floaters; decimated, with a note, where it has too many faces.

        There is no threshold; ``settings.resolution`` counts for the size of a texture alone, which holds the colours
        that the vertices' make between them.
        """
        from psd.geometry.cleanup import MeshError, find_solid_parts, vertex_normals
        from psd.geometry.mesh import Mesh

        with torch.no_grad():
            shape = self.find_shape()
            vertices, faces = shape.vertices.cpu().numpy(), shape.faces.cpu().numpy().astype(np.int32)
            colours = (self.paint_vertices(shape) * 255).round().to(torch.uint8).cpu().numpy()
        if not len(faces):
            raise MeshError("the surface is empty: no distance is negative: lower scene.shape_lr or run fewer steps")
        if not np.isfinite(vertices).all():
            raise MeshError("the surface has vertices that are not finite: resume from an earlier checkpoint")
        used, faces = find_solid_parts(vertices, faces)
        vertices, colours = vertices[used], colours[used]
        notes: tuple[str, ...] = ()
        if len(faces) > settings.faces:
            notes = (f"The surface has {len(faces)} faces; mesh_faces {settings.faces} decimated it.",)
            vertices, faces, colours = decimate_painted(vertices, faces, colours, settings.faces)
        mesh = Mesh(vertices, faces, vertex_normals(vertices, faces), colours, notes=notes)
        if not settings.texture:
            return mesh
        from psd.scenes.extract import TEXTURE_S, add_texture, texture_size

        return add_texture(mesh, None, size=texture_size(settings.resolution), timeout_s=TEXTURE_S)

    def state(self) -> dict[str, Tensor]:
        """Copies of everything that `render` depends on."""
        return copy_tensors(self._values())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copies in place; other keys or shapes raise RuntimeError."""
        load_tensors(self._values(), state, "a surface's")

    def _values(self) -> dict[str, Tensor]:
        return {
            "distance": self.distance, "offset": self.offset, "colour": self.colour, "centre": self.centre,
            "half": self.half,
        }  # fmt: skip


def decimate_painted(
    vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A surface of at most ``limit`` faces, each vertex in the colour of the nearest one before."""
    from scipy.spatial import KDTree

    from psd.geometry.cleanup import decimate_surface

    fewer, kept = decimate_surface(vertices, faces, limit)
    return fewer, kept, colours[KDTree(vertices).query(fewer)[1]]
