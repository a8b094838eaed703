"""Reads a mesh of one's own from a file, as an object that a scene can start from; trimesh reads the formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from psd.config.errors import PresetError, first_line
from psd.geometry.cleanup import is_watertight, vertex_normals
from psd.geometry.export import STARTS_FROM
from psd.geometry.mesh import Mesh
from psd.geometry.srgb import encode_srgb

if TYPE_CHECKING:
    from trimesh import Trimesh

# Of a file's axes the world's x, y and z, with their signs: as `psd.geometry.export` writes them.
Y_UP, Z_UP = ((2, 0, 1), (1, 1, 1)), ((1, 0, 2), (-1, 1, 1))
FILE_AXES = {".glb": Y_UP, ".gltf": Y_UP, ".obj": Y_UP, ".ply": Z_UP, ".stl": Z_UP}
LONGEST = 1.6  # side of the object in the world: the objects that runs make have 0.9 to 1.7
MOST_BYTES, MOST_FACES = 200 * 2**20, 500_000
GREY = 180  # of a file without colours


def read_mesh(path: Path) -> Mesh:
    """A closed mesh of a file, centred and `LONGEST` long, in its own colours; raises `PresetError` for any other."""
    import trimesh

    if not path.is_file():
        raise PresetError(f"--from {path}: there is no such file, and no such run")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise PresetError(f"--from {path}: {size / 2**20:.0f} MB, at most {MOST_BYTES / 2**20:.0f}: simplify it")
    try:
        loaded: Any = trimesh.load(path, process=False)
        scene = loaded if isinstance(loaded, trimesh.Scene) else trimesh.Scene(loaded)
        placed = [(scene.geometry[name], place) for place, name in map(scene.graph.get, scene.graph.nodes_geometry)]
        parts = [(part, place) for part, place in placed if isinstance(part, trimesh.Trimesh) and len(part.faces)]
        points = [trimesh.transform_points(part.vertices, place) for part, place in parts]
        colours = [read_colours(part, path) for part, _ in parts]  # of the parts themselves: copies lose them
    except Exception as error:  # noqa: BLE001 - a reader of a foreign format may raise anything
        raise PresetError(f"--from {path} is no mesh that can be read: {first_line(error)}") from None
    faces = sum(len(part.faces) for part, _ in parts)
    if not faces:
        raise PresetError(f"--from {path}: it has no faces: a mesh of triangles is needed")
    if faces > MOST_FACES:
        raise PresetError(f"--from {path}: {faces:,} faces, at most {MOST_FACES:,}: simplify it")
    corners, joined = trimesh.util.append_faces(points, [part.faces for part, _ in parts])
    mesh = _place_mesh(np.asarray(corners), np.asarray(joined), np.concatenate(colours), path)
    return replace(mesh, notes=(f"{STARTS_FROM}{path.name}",))


def _place_mesh(corners: np.ndarray, faces: np.ndarray, colours: np.ndarray, path: Path) -> Mesh:
    axes, signs = FILE_AXES[path.suffix.lower()]
    vertices = corners.astype(np.float64)[:, axes] * signs
    if not np.isfinite(vertices).all():
        raise PresetError(f"--from {path}: a vertex is not finite: repair it")
    # Vertices that a seam or a normal parts are one, or nothing would be closed.
    _, first, group = np.unique(vertices.round(9), axis=0, return_index=True, return_inverse=True)
    vertices, colours, faces = vertices[first], colours[first], group.reshape(-1)[faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
    low, high = vertices.min(0), vertices.max(0)
    if not (high > low).all():
        raise PresetError(f"--from {path}: it is flat: an object with a volume is needed")
    vertices = (vertices - (low + high) / 2) * (LONGEST / (high - low).max())
    if np.linalg.det(vertices[faces]).sum() < 0:  # inside out
        faces = faces[:, ::-1]
    if not is_watertight(faces):
        raise PresetError(f"--from {path}: its surface is not closed: fill its holes, or export it as one solid")
    points, faces = vertices.astype(np.float32), np.ascontiguousarray(faces, np.int32)
    return Mesh(points, faces, vertex_normals(points, faces), colours)


def read_colours(part: Trimesh, path: Path) -> np.ndarray:
    """(n, 3) sRGB of the vertices, of 8 bits: their own, those that the texture has there, or one for all."""
    visual: Any = part.visual
    own = visual.vertex_colors if visual.kind == "vertex" else getattr(visual, "vertex_attributes", {}).get("color")
    if own is not None:
        own = np.asarray(own)[:, :3]
        share = own / 255 if own.dtype == np.uint8 else own.astype(np.float64)
        share = encode_srgb(share) if path.suffix.lower() in (".glb", ".gltf") else share  # glTF's are linear
        return (share.clip(0, 1) * 255).round().astype(np.uint8)
    if visual.kind == "texture" and visual.uv is not None:
        return np.asarray(visual.to_color().vertex_colors)[:, :3].astype(np.uint8)
    plain = visual.material.main_color[:3] if visual.kind == "texture" else (GREY, GREY, GREY)
    return np.tile(np.asarray(plain, np.uint8), (len(part.vertices), 1))
