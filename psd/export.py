"""Writes a mesh as GLB, OBJ, PLY or STL; readers see whole files only.

Every format gets the same turn from the world (+z up, front +x) to glTF's frame (+y up, front +z), the bounding box's
centre at the origin and its longest side 1.  No library in between: what viewers show depends on details (linear
8-bit vertex colours, a matt material) that general exporters get wrong.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from psd.files import replace_file

if TYPE_CHECKING:
    from psd.mesh import Mesh

FLOAT, UNSIGNED_BYTE, UNSIGNED_INT = 5126, 5121, 5125  # glTF component types
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963


def export(mesh: Mesh, path: str | Path, *, provenance: Mapping[str, Any]) -> Path:
    """Write ``mesh`` to ``path`` in the format of its suffix (.glb, .obj, .ply, .stl) and return the path.

    ``provenance`` (prompt, preset, seed, versions: JSON-able) goes into the GLB's extras, the comments of OBJ and PLY,
    and, cut to 80 bytes, the STL's header.  A textured OBJ gets a .mtl and a .png beside it.  PLY and STL carry no
    texture; STL no colour.  Raises `ValueError` for another suffix, `psd.files.StoreError` where the disk says no.
    """
    path = Path(path)
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ValueError(f"cannot write {path.name!r}: the suffix must be one of {', '.join(WRITERS)}")
    writer(mesh, path, provenance)
    return path


def upright(vectors: Float[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """World to glTF frame: (x, y, z) -> (y, z, x), so up +z becomes +y and the front +x becomes +z."""
    return np.ascontiguousarray(vectors[:, [1, 2, 0]], dtype=np.float32)


def placed(vertices: Float[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """`upright`, centred, the longest side of the bounding box 1."""
    turned = upright(vertices)
    low, high = turned.min(0), turned.max(0)
    return (turned - (low + high) / 2) / (high - low).max()


def linear(colours: UInt8[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    """sRGB to linear light (IEC 61966-2-1), both 8 bits a channel."""
    value = colours / 255
    return np.round(255 * np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)).astype(np.uint8)


def png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write_glb(mesh: Mesh, path: Path, provenance: Mapping[str, Any]) -> None:
    """glTF 2.0 binary: one mesh, metallic 0, roughness 1; colours in COLOR_0 (linear) or in a texture (sRGB)."""
    blob, views, accessors = bytearray(), [], []

    def view(data: bytes, **keys: int) -> int:
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data), **keys})
        blob.extend(data + bytes(-len(data) % 4))
        return len(views) - 1

    def accessor(array: np.ndarray, kind: str, component: int, target: int = ARRAY_BUFFER, **keys: Any) -> int:
        array = np.ascontiguousarray(array)
        keys |= {"bufferView": view(array.tobytes(), target=target), "componentType": component, "type": kind}
        accessors.append({"count": len(array), **keys})
        return len(accessors) - 1

    positions = placed(mesh.vertices)
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    attributes = {
        "POSITION": accessor(positions, "VEC3", FLOAT, **bounds),
        "NORMAL": accessor(upright(mesh.normals), "VEC3", FLOAT),
    }
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    picture: dict[str, Any] = {}
    if mesh.texture is not None and mesh.uv is not None:
        flipped = np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=1)  # glTF counts v from the top
        attributes["TEXCOORD_0"] = accessor(flipped.astype(np.float32), "VEC2", FLOAT)
        surface["baseColorTexture"] = {"index": 0}
        picture = {
            "textures": [{"source": 0, "sampler": 0}],
            "samplers": [{"magFilter": 9729, "minFilter": 9729, "wrapS": 33071, "wrapT": 33071}],  # linear, clamped
            "images": [{"bufferView": view(png(mesh.texture)), "mimeType": "image/png"}],
        }
    else:
        opaque = np.column_stack([linear(mesh.colours), np.full(len(mesh.colours), 255, np.uint8)])
        attributes["COLOR_0"] = accessor(opaque, "VEC4", UNSIGNED_BYTE, normalized=True)
    indices = accessor(mesh.faces.astype(np.uint32).ravel(), "SCALAR", UNSIGNED_INT, ELEMENT_ARRAY_BUFFER)
    document = {
        "asset": {"version": "2.0", "generator": "PSD Studio", "extras": dict(provenance)},
        "scene": 0,
        "scenes": [{"nodes": [0], "extras": dict(provenance)}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [{"name": "surface", "pbrMetallicRoughness": surface}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
        **picture,
    }
    text = json.dumps(document, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(blob), 0x004E4942) + bytes(blob)
    replace_file(path, struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def write_obj(mesh: Mesh, path: Path, provenance: Mapping[str, Any]) -> None:
    """Wavefront OBJ with sRGB vertex colours behind the coordinates; a texture goes to <stem>.mtl and <stem>.png."""
    lines = [f"# PSD Studio {json.dumps(dict(provenance), allow_nan=False)}"]
    index = (mesh.faces + 1).astype(str)
    corner = np.char.add(np.char.add(index, "//"), index)
    columns, form = np.column_stack([placed(mesh.vertices), mesh.colours / 255]), "v" + " %.6f" * 3 + " %.4f" * 3
    if mesh.texture is not None and mesh.uv is not None:
        material, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
        replace_file(picture, png(mesh.texture))
        replace_file(material, f"newmtl surface\nKd 1 1 1\nKs 0 0 0\nmap_Kd {picture.name}\n".encode())
        lines += [f"mtllib {material.name}", "usemtl surface"]
        lines += [f"vt {u:.6f} {v:.6f}" for u, v in mesh.uv]
        corner = np.char.add(np.char.add(index, np.char.add("/", index)), np.char.add("/", index))
        columns, form = placed(mesh.vertices), "v" + " %.6f" * 3  # colours would tint the texture
    lines += [form % tuple(row) for row in columns]
    lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in upright(mesh.normals)]
    lines += [f"f {a} {b} {c}" for a, b, c in corner]
    replace_file(path, "\n".join([*lines, ""]).encode())


def write_ply(mesh: Mesh, path: Path, provenance: Mapping[str, Any]) -> None:
    """Binary PLY with normals and sRGB vertex colours."""
    header = [
        "ply", "format binary_little_endian 1.0",
        f"comment PSD Studio {json.dumps(dict(provenance), allow_nan=False)}",
        f"element vertex {len(mesh.vertices)}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(mesh.faces)}", "property list uchar int vertex_indices", "end_header",
    ]  # fmt: skip
    vertices = np.zeros(len(mesh.vertices), dtype=[("position", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)])
    vertices["position"], vertices["normal"] = placed(mesh.vertices), upright(mesh.normals)
    vertices["colour"] = mesh.colours
    faces = np.zeros(len(mesh.faces), dtype=[("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    replace_file(path, "\n".join([*header, ""]).encode() + vertices.tobytes() + faces.tobytes())


def write_stl(mesh: Mesh, path: Path, provenance: Mapping[str, Any]) -> None:
    """Binary STL: geometry alone."""
    header = f"PSD Studio {json.dumps(dict(provenance), allow_nan=False)}".encode()[:80].ljust(80)
    corners = placed(mesh.vertices)[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    faces = np.zeros(len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    faces["normal"], faces["corners"] = normals / np.maximum(length, 1e-30), corners
    replace_file(path, header + struct.pack("<I", len(faces)) + faces.tobytes())


WRITERS: dict[str, Callable[[Mesh, Path, Mapping[str, Any]], None]] = {
    ".glb": write_glb, ".obj": write_obj, ".ply": write_ply, ".stl": write_stl,
}  # fmt: skip
