"""Encodes a mesh as GLB, OBJ, PLY or STL; trimesh writes the formats, this module says how each shall look.

Where the mesh was made of Gaussians, these are encoded, too (`psd.geometry.splat_file`).

Every format states its frame, unit and size in the file.  GLB and OBJ stand in glTF's frame (+y up, front +z), PLY and
STL in that of modelling and slicing programs (+z up, front -y).  GLB, OBJ and PLY are centred and 1 long at their
longest side; STL is in millimetres and stands on z = 0.  Vertices that only a texture seam parts are written once
wherever the format allows it, so that a closed surface stays closed.  Axes: n vertices, m faces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image

from psd.geometry.splat_file import splat_bytes, splat_ply
from psd.geometry.srgb import decode_srgb

if TYPE_CHECKING:
    from trimesh import Trimesh
    from trimesh.visual import TextureVisuals

    from psd.geometry.mesh import Mesh

LONGEST_LINE = 240  # bytes of a comment; readers refuse PLY header lines from 511 or 1025 on, some text tools from 256
STARTS_FROM = "starts from "  # how the note of a run begins that names what it started from
PRINT_SIZE_MM = 100.0
SMALLEST_MM, LARGEST_MM = 1.0, 10_000.0
Y_UP, Z_UP = "+y up, front +z", "+z up, front -y"
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963  # what a buffer view is for, in glTF
LINEAR_FILTER, CLAMP_TO_EDGE = 9729, 33071  # a texture's sampler, in glTF


def encode_mesh(
    mesh: Mesh, name: str, *, provenance: Mapping[str, Any], size_mm: float = PRINT_SIZE_MM
) -> dict[str, bytes]:
    """The files that ``mesh`` becomes as ``name`` (mesh.glb, .obj, .ply, .stl, .splat.ply or .splat): file name ->
    content, ``name`` last.

    ``provenance`` (prompt, preset, seed, versions: JSON-able) goes into the GLB's extras, the comments of OBJ and PLY,
    and, cut to 80 bytes, the STL's header.  A textured OBJ comes with a .mtl and a .png.  PLY and STL carry no texture;
    STL no colour; ``size_mm`` is the longest side of the STL.  Raises `ValueError` for another suffix or size, and for
    splats where the mesh was made of none.
    """
    known = FORMATS | SPLAT_FORMATS
    suffix = max((key for key in known if name.lower().endswith(f".{key}")), key=len, default=None)
    if suffix is None:
        raise ValueError(f"cannot write {name!r}: the suffix must be one of {', '.join(f'.{key}' for key in known)}")
    if not SMALLEST_MM <= size_mm <= LARGEST_MM:
        raise ValueError(f"size_mm={size_mm} must lie in [{SMALLEST_MM:g}, {LARGEST_MM:g}] millimetres")
    return known[suffix].encode(mesh, PurePath(name), provenance, size_mm)


def list_formats(mesh: Mesh) -> list[str]:
    """The suffixes that ``mesh`` can be written with, without their first dot: those of splats where it has some."""
    return [*FORMATS, *(SPLAT_FORMATS if mesh.splats is not None else ())]


# ----------------------------------------------------------------------------------------------------- frame and colour


def turn_y_up(vectors: Float[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """World to glTF frame: (x, y, z) -> (y, z, x), so up +z becomes +y and the front +x becomes +z."""
    return np.ascontiguousarray(vectors[:, [1, 2, 0]], dtype=np.float32)


def turn_z_up(vectors: Float[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """World to the frame of PLY and STL: (x, y, z) -> (y, -x, z); what a reader that turns glTF to z-up makes of it."""
    return np.ascontiguousarray(vectors[:, [1, 0, 2]] * [1, -1, 1], dtype=np.float32)


def fit_unit_box(vertices: Float32[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """Centred, the longest side of the bounding box 1."""
    low, high = vertices.min(0), vertices.max(0)
    return (vertices - (low + high) / 2) / (high - low).max()


def encode_linear(colours: UInt8[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """8-bit sRGB to linear light in [0, 1], which keeps all 256 levels apart.

    8 bits of linear light would merge the dark levels.  16 bits would not, but MeshLab takes them modulo 256.
    """
    return decode_srgb(colours / 255).astype(np.float32)


def weld_seams(mesh: Mesh) -> tuple[Mesh, Int[np.ndarray, " n"]]:
    """``mesh`` without a texture and with one vertex a position, and for each old vertex the new one.

    Positions, normals and colours are equal along both sides of a seam, so nothing is lost.
    """
    if mesh.uv is None:
        return mesh, np.arange(len(mesh.vertices))
    _, first, group = np.unique(mesh.vertices, axis=0, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # new vertices in the order of the old
    new, kept = rank[group.reshape(-1)], np.sort(first)
    welded = replace(
        mesh, vertices=mesh.vertices[kept], normals=mesh.normals[kept], colours=mesh.colours[kept],
        faces=new[mesh.faces].astype(np.int32), uv=None, texture=None,
    )  # fmt: skip
    return welded, new


def build_trimesh(
    mesh: Mesh, turn: Callable[[np.ndarray], np.ndarray], visual: TextureVisuals | None = None, **given: Any
) -> Trimesh:
    """``mesh`` as trimesh's type, turned and 1 long, its vertices and normals untouched otherwise."""
    from trimesh import Trimesh

    return Trimesh(
        fit_unit_box(turn(mesh.vertices)), mesh.faces, vertex_normals=turn(mesh.normals), process=False, visual=visual,
        **given,
    )  # fmt: skip


def describe_origin(provenance: Mapping[str, Any], suffix: str) -> list[str]:
    """The frame, then ``provenance`` as JSON in pieces, each short enough for a line of a header.

    Lines that begin with "PSD Studio |" give the JSON when they are joined; it is ASCII without line ends.
    """
    text = json.dumps(dict(provenance), allow_nan=False)
    pieces = [text[start : start + LONGEST_LINE - 30] for start in range(0, len(text), LONGEST_LINE - 30)]
    frame = (FORMATS | SPLAT_FORMATS)[suffix].frame
    return [f"PSD Studio mesh: {frame}", *(f"PSD Studio |{piece}|" for piece in pieces)]


# -------------------------------------------------------------------------------------------------------------- formats


def encode_glb(mesh: Mesh, name: PurePath, provenance: Mapping[str, Any], size_mm: float) -> dict[str, bytes]:
    """glTF 2.0 binary: one mesh, metallic 0, roughness 1; colours in COLOR_0 (linear) or in a texture (sRGB)."""
    from trimesh.exchange.gltf import export_glb
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    picture = Image.fromarray(mesh.texture) if mesh.texture is not None and mesh.uv is not None else None
    textured = picture is not None
    material = PBRMaterial("surface", metallicFactor=0.0, roughnessFactor=1.0, baseColorTexture=picture)
    # trimesh casts colours to 8 bits but keeps the type of attributes of one's own, so they travel as one.
    attributes = {} if textured else {"_COLOR": encode_linear(mesh.colours)}
    visual = TextureVisuals(uv=mesh.uv if textured else None, material=material)
    extras = {**provenance, "frame": FORMATS["glb"].frame}

    def finish(tree: dict[str, Any]) -> None:
        tree["asset"] |= {"generator": "PSD Studio", "extras": extras}
        tree["scenes"][0]["extras"] = extras
        for named in (*tree["nodes"], *tree["meshes"]):
            named["name"] = "object"
        (surface,) = tree["meshes"][0]["primitives"]
        if "_COLOR" in surface["attributes"]:
            surface["attributes"]["COLOR_0"] = surface["attributes"].pop("_COLOR")
        for accessor in surface["attributes"].values():
            tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = ARRAY_BUFFER
        tree["bufferViews"][tree["accessors"][surface["indices"]]["bufferView"]]["target"] = ELEMENT_ARRAY_BUFFER
        if textured:
            filters = dict.fromkeys(("magFilter", "minFilter"), LINEAR_FILTER)
            tree["samplers"] = [filters | dict.fromkeys(("wrapS", "wrapT"), CLAMP_TO_EDGE)]
            tree["textures"][0]["sampler"] = 0

    built = build_trimesh(mesh, turn_y_up, visual, vertex_attributes=attributes)
    return {name.name: export_glb(built, include_normals=True, unitize_normals=False, tree_postprocessor=finish)}


def encode_obj(mesh: Mesh, name: PurePath, provenance: Mapping[str, Any], size_mm: float) -> dict[str, bytes]:
    """Wavefront OBJ with sRGB vertex colours behind the coordinates; a texture goes to <stem>.mtl and <stem>.png."""
    from trimesh.exchange.obj import export_obj
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import SimpleMaterial

    welded, vertex = weld_seams(mesh)
    header = "\n# ".join(describe_origin(provenance, "obj"))
    if mesh.texture is None or mesh.uv is None:
        plain = build_trimesh(welded, turn_y_up, vertex_colors=welded.colours)
        return {name.name: export_obj(plain, include_normals=True, digits=6, header=header).encode()}
    black, white = (0, 0, 0, 255), (255, 255, 255, 255)
    material = SimpleMaterial(Image.fromarray(mesh.texture), white, black, black, name=name.stem, glossiness=0.0)
    text, files = export_obj(
        build_trimesh(welded, turn_y_up, TextureVisuals(material=material)), include_normals=True, digits=6,
        header=header, return_texture=True, mtl_name=f"{name.stem}.mtl",
    )  # fmt: skip
    # trimesh knows one index a corner, which would cut the surface open along the seams: the faces are written here.
    text = text[: text.index("\nf ") + 1]
    text += "".join(f"vt {u:.6f} {v:.6f}\n" for u, v in mesh.uv)
    corners = np.stack([vertex[mesh.faces], mesh.faces, vertex[mesh.faces]], axis=2).reshape(len(mesh.faces), 9) + 1
    text += "".join("f {}/{}/{} {}/{}/{} {}/{}/{}\n".format(*row) for row in corners.tolist())
    return {**files, name.name: text.encode()}


def encode_ply(mesh: Mesh, name: PurePath, provenance: Mapping[str, Any], size_mm: float) -> dict[str, bytes]:
    """Binary PLY with normals and sRGB vertex colours."""
    from trimesh.exchange.ply import export_ply

    welded, _ = weld_seams(mesh)
    data = export_ply(build_trimesh(welded, turn_z_up, vertex_colors=welded.colours), vertex_normal=True)
    first, encoding, _, rest = data.split(b"\n", 3)  # the third line advertises trimesh
    comments = [f"comment {line}".encode() for line in describe_origin(provenance, "ply")]
    return {name.name: b"\n".join([first, encoding, *comments, rest])}


def encode_stl(mesh: Mesh, name: PurePath, provenance: Mapping[str, Any], size_mm: float) -> dict[str, bytes]:
    """Binary STL: geometry alone, ``size_mm`` long at its longest side."""
    from trimesh.exchange.stl import export_stl

    welded, _ = weld_seams(mesh)
    built = build_trimesh(welded, turn_z_up)
    built.apply_translation([0, 0, -built.bounds[0, 2]])
    built.apply_scale(size_mm)
    header = f"PSD Studio {size_mm:g} mm, +z up {json.dumps(dict(provenance), allow_nan=False)}".encode()
    return {name.name: header[:80].ljust(80) + export_stl(built)[80:]}


def encode_splat_ply(mesh: Mesh, name: PurePath, provenance: Mapping[str, Any], size_mm: float) -> dict[str, bytes]:
    """The Gaussians that ``mesh`` was made of, as a PLY that splat viewers open."""
    return {name.name: splat_ply(mesh, describe_origin(provenance, "splat.ply"))}


def encode_splat(mesh: Mesh, name: PurePath, provenance: Mapping[str, Any], size_mm: float) -> dict[str, bytes]:
    """The same in 32 bytes each; the format has no place for the frame and the origin."""
    return {name.name: splat_bytes(mesh)}


@dataclass(frozen=True)
class Format:
    """What the page calls a format, how its mesh stands and how large it is, and what encodes it."""

    label: str
    frame: str
    encode: Callable[[Mesh, PurePath, Mapping[str, Any], float], dict[str, bytes]]


STL_FRAME = f"{Z_UP}, longest side {PRINT_SIZE_MM:g} mm unless exported otherwise, standing on z = 0"
SPLAT_FRAME = "Gaussians, +y down, front +z, as large as the GLB"
FORMATS = {  # suffix -> format
    "glb": Format("GLB", f"{Y_UP}, longest side 1 m, centred", encode_glb),
    "obj": Format("OBJ", f"{Y_UP}, longest side 1, centred", encode_obj),
    "ply": Format("PLY", f"{Z_UP}, longest side 1, centred", encode_ply),
    "stl": Format("STL", STL_FRAME, encode_stl),
}
SPLAT_FORMATS = {  # where the mesh was made of Gaussians
    "splat.ply": Format("Splats (PLY)", SPLAT_FRAME, encode_splat_ply),
    "splat": Format("Splats", SPLAT_FRAME, encode_splat),
}
