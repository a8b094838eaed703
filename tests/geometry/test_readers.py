"""What other programs read in the mesh files: trimesh, MeshLab, assimp, plyfile and numpy-stl.

The mesh differs along every axis in shape and in colour, so that turned or mirrored it is another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import assimp_py
import numpy as np
import plyfile
import pytest
import stl
import trimesh
from PIL import Image

from psd.geometry.cleanup import vertex_normals
from psd.geometry.export import encode_mesh
from psd.geometry.mesh import Mesh
from psd.geometry.srgb import decode_srgb
from psd.geometry.texture import bake_texture

LONG = {"prompt": "ein Pilz \u2028 \u9a6c " * 60, "preset": {"steps": 120, "quoted": 'a "red"\nmüshroom | end_header'}}


@dataclass(frozen=True)
class Reading:
    """A file as a reader has it, its faces in the order of the file; None for what it does not find or does not tell.

    Axes: m faces, their 3 corners.
    """

    corners: np.ndarray  # m 3 3: places
    colours: np.ndarray | None = None  # m 3 3 in [0, 1]
    uv: np.ndarray | None = None  # m 3 2, v up
    picture: np.ndarray | None = None  # h w 3 bytes
    open_edges: int | None = None  # by the vertices that the reader takes for one


# -------------------------------------------------------------------------------------------------------------- readers


def read_with_trimesh(path: Path, scratch: Path) -> Reading:
    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    assert isinstance(mesh, trimesh.Trimesh)
    look: Any = mesh.visual
    corners = mesh.vertices[mesh.faces]
    if look.kind != "texture":
        return Reading(corners, look.vertex_colors[mesh.faces][..., :3] / 255 if look.kind == "vertex" else None)
    material = look.material
    picture = material.baseColorTexture if path.suffix == ".glb" else material.image
    colours = look.vertex_attributes.get("color")
    return Reading(
        corners,
        None if colours is None else colours[mesh.faces],
        None if look.uv is None else look.uv[mesh.faces],
        None if picture is None else np.asarray(picture.convert("RGB")),
    )


def read_with_meshlab(path: Path, scratch: Path) -> Reading:
    try:
        import pymeshlab
    except ImportError as error:  # it brings no OpenGL of its own
        pytest.skip(f"MeshLab's reader cannot be loaded here: {error}")
    documents = pymeshlab.MeshSet()  # type: ignore[attr-defined]
    documents.load_new_mesh(str(path))
    assert documents.mesh_number() == 1
    mesh = documents.current_mesh()
    assert np.array_equal(mesh.transform_matrix(), np.eye(4))
    topology = documents.get_topological_measures()
    assert topology["non_two_manifold_edges"] == 0
    faces = mesh.face_matrix()
    pictures = []
    for number, texture in enumerate(mesh.textures().values()):
        copy = scratch / f"{number}.png"
        texture.save(str(copy))
        pictures.append(np.asarray(Image.open(copy).convert("RGB")))
    assert len(pictures) <= 1
    return Reading(
        mesh.vertex_matrix()[faces],
        mesh.vertex_color_matrix()[faces][..., :3] if mesh.has_vertex_color() else None,
        mesh.wedge_tex_coord_matrix().reshape(-1, 3, 2) if mesh.has_wedge_tex_coord() else None,
        pictures[0] if pictures else None,
        topology["boundary_edges"],
    )


def read_with_assimp(path: Path, scratch: Path) -> Reading:
    """With no step of assimp's own after reading; a picture within a GLB is not handed out."""
    scene = assimp_py.import_file(str(path), 0)
    (mesh,) = scene.meshes
    faces = np.asarray(mesh.indices).reshape(-1, 3)

    def take_corners(values: Any, width: int) -> np.ndarray:
        return np.asarray(values).reshape(mesh.num_vertices, -1)[faces][..., :width]

    names = [name for material in scene.materials for name in material["TEXTURES"].get(1, ())]  # 1: the base colour
    picture = np.asarray(Image.open(path.with_name(names[0]))) if names and not names[0].startswith("*") else None
    return Reading(
        take_corners(mesh.vertices, 3),
        take_corners(mesh.colors[0], 3) if mesh.colors else None,
        take_corners(mesh.texcoords[0], 2) if mesh.texcoords else None,
        picture,
    )


def read_with_plyfile(path: Path, scratch: Path) -> Reading:
    vertex, face = (plyfile.PlyData.read(path)[part].data for part in ("vertex", "face"))
    faces = np.vstack(face["vertex_indices"])
    places, colours = (np.stack([vertex[name] for name in names], 1) for names in ("xyz", ("red", "green", "blue")))
    return Reading(places[faces], colours[faces] / 255)


def read_with_numpy_stl(path: Path, scratch: Path) -> Reading:
    return Reading(stl.Mesh.from_file(str(path)).vectors)


READERS: dict[Callable[[Path, Path], Reading], tuple[str, ...]] = {
    read_with_trimesh: ("glb", "obj", "ply", "stl"),
    read_with_meshlab: ("glb", "obj", "ply", "stl"),
    read_with_assimp: ("glb", "obj", "ply", "stl"),
    read_with_plyfile: ("ply",),
    read_with_numpy_stl: ("stl",),
}
CASES = [(read, suffix) for read, suffixes in READERS.items() for suffix in suffixes]


# ---------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def meshes() -> dict[str, Mesh]:
    """The same surface with vertex colours alone, and cut open for a texture."""
    ball = trimesh.creation.icosphere(subdivisions=3)
    bulge = 1 + np.maximum(ball.vertices, 0) @ [[0.5], [0.3], [0.2]]
    vertices = (ball.vertices * bulge * [0.3, 0.4, 0.5] + [0.1, 0.2, 0.3]).astype(np.float32)
    faces = ball.faces.astype(np.int32)
    low, high = vertices.min(0), vertices.max(0)

    def colour_points(points: np.ndarray, normals: np.ndarray | None = None) -> np.ndarray:
        return np.rint(255 * ((points - low) / (high - low)).clip(0, 1)).astype(np.uint8)

    plain = Mesh(vertices, faces, vertex_normals(vertices, faces), colour_points(vertices))
    return {"plain": plain, "textured": bake_texture(plain, colour_points, size=128, timeout_s=60)}


@pytest.fixture(scope="module")
def folders(meshes: dict[str, Mesh], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format of both meshes, with an origin that is long and full of marks."""
    made = {}
    for kind, mesh in meshes.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        for suffix in ("glb", "obj", "ply", "stl"):
            for name, data in encode_mesh(mesh, f"mesh.{suffix}", provenance=LONG).items():
                (made[kind] / name).write_bytes(data)
    return made


def place_corners(mesh: Mesh, suffix: str) -> np.ndarray:
    """Where each face's corners belong in a file: of the world's +x front, +y left, +z up."""
    x, y, z = mesh.vertices.T.astype(np.float64)
    places = np.stack([y, z, x] if suffix in ("glb", "obj") else [y, -x, z], axis=1)
    low, high = places.min(0), places.max(0)
    places = (places - (low + high) / 2) / (high - low).max()
    if suffix == "stl":
        places = 100 * (places - [0, 0, places[:, 2].min()])
    return places[mesh.faces]


@pytest.mark.parametrize("kind", ["plain", "textured"])
@pytest.mark.parametrize(("read", "suffix"), CASES, ids=[f"{read.__name__[10:]}-{suffix}" for read, suffix in CASES])
def test_a_reader_finds_the_surface_and_its_colours(
    read: Callable[[Path, Path], Reading],
    suffix: str,
    kind: str,
    meshes: dict[str, Mesh],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    mesh, found = meshes[kind], read(folders[kind] / f"mesh.{suffix}", tmp_path)
    assert found.corners.shape == (1280, 3, 3)
    assert np.abs(found.corners - place_corners(mesh, suffix)).max() < (1e-4 if suffix == "stl" else 1e-6)
    textured = kind == "textured" and suffix in ("glb", "obj")
    if suffix == "stl" or textured:
        assert found.colours is None, "they would tint the texture"
    else:
        srgb = mesh.colours[mesh.faces] / 255
        expected = decode_srgb(srgb) if suffix == "glb" else srgb
        assert found.colours is not None
        assert np.abs(found.colours - expected).max() < 1.01 / 255  # MeshLab holds bytes
    if textured:
        assert mesh.uv is not None and mesh.texture is not None and found.uv is not None
        assert np.abs(found.uv - mesh.uv[mesh.faces]).max() < 1e-6
        assert (found.picture is None) == (suffix == "glb" and read is read_with_assimp)
        assert found.picture is None or np.array_equal(found.picture, mesh.texture)
    else:
        assert found.uv is None and found.picture is None
    if found.open_edges is not None:  # a GLB repeats the vertices along a texture's seams
        assert (found.open_edges > 0) == (textured and suffix == "glb")
