"""`Mesh`: triangles with colours or a texture, and their statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from psd.geometry.cleanup import face_volumes, is_watertight, label_components

if TYPE_CHECKING:
    from psd.geometry.splat import Gaussians


@dataclass(frozen=True, eq=False)
class Mesh:
    """A coloured triangle mesh in the world frame (+z up), faces counter-clockwise seen from outside.

    With a ``texture`` (row 0 at the top, sRGB) each vertex has one ``uv`` (origin bottom left, v up), and vertices are
    repeated along the seams; ``colours`` hold in any case.
    """

    vertices: Float32[np.ndarray, "n 3"]
    faces: Int32[np.ndarray, "m 3"]
    normals: Float32[np.ndarray, "n 3"]  # unit length
    colours: UInt8[np.ndarray, "n 3"]  # sRGB
    uv: Float32[np.ndarray, "n 2"] | None = None
    texture: UInt8[np.ndarray, "h w 3"] | None = None
    threshold: float | None = None  # density of the iso-surface
    notes: tuple[str, ...] = ()  # what the user should know, a fallback for instance
    splats: Gaussians | None = None  # what it was made of, on the CPU, where that was Gaussians


# --------------------------------------------------------------------------------------------------------- statistics


def mesh_statistics(mesh: Mesh) -> dict[str, Any]:
    """Counts and measures in world units, JSON-able; vertices that only a texture seam separates count as one."""
    welded, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = index.reshape(-1)[mesh.faces]
    a, b, c = mesh.vertices[mesh.faces].astype(np.float64).transpose(1, 0, 2)
    return {
        "vertices": len(welded),
        "faces": len(mesh.faces),
        "components": int(label_components(faces, len(welded)).max()) + 1,
        "watertight": is_watertight(faces),
        "volume": float(face_volumes(mesh.vertices, mesh.faces).sum()),
        "area": float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2),
        "bounds": [mesh.vertices.min(0).tolist(), mesh.vertices.max(0).tolist()],
        "threshold": mesh.threshold,
        "textured": mesh.texture is not None,
    }
