"""The mesh files, read back by trimesh and by other programs' readers: geometry, frame, size, colours, origin."""

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pytest
import stl
import trimesh

from psd.geometry.cleanup import vertex_normals
from psd.geometry.export import (
    FORMATS,
    LONGEST_LINE,
    describe_origin,
    encode_linear,
    encode_mesh,
    fit_unit_box,
    turn_y_up,
    turn_z_up,
    weld_seams,
)
from psd.geometry.mesh import Mesh
from psd.geometry.srgb import encode_srgb

LONG = {"prompt": "an astronaut \u2028 é " * 60, "preset": {"steps": 120, "quoted": 'a "red"\nmüshroom | end_header'}}
FILES = [f"mesh.{suffix}" for suffix in FORMATS]


def pyramid() -> Mesh:
    """A red corner to the front (+x), a green one to the left (+y), a blue one up (+z), a dark one at the origin."""
    vertices = np.array([[0, 0, 0], [0.6, 0, 0], [0, 0.4, 0], [0, 0, 0.8]], np.float32)
    faces = np.array([[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]], np.int32)
    colours = np.array([[30, 30, 30], [200, 80, 40], [40, 200, 80], [80, 40, 200]], np.uint8)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


def cut_open() -> Mesh:
    """The pyramid with a texture, every face a chart of its own: twelve vertices at four places."""
    mesh, origin = pyramid(), pyramid().faces.ravel()
    uv = np.random.default_rng(0).uniform(0.1, 0.9, (12, 2)).astype(np.float32)
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:4], texture[4:] = [200, 80, 40], [40, 80, 200]  # red above
    return replace(
        mesh, vertices=mesh.vertices[origin], normals=mesh.normals[origin], colours=mesh.colours[origin],
        faces=np.arange(12, dtype=np.int32).reshape(4, 3), uv=uv, texture=texture,
    )  # fmt: skip


def write(mesh: Mesh, folder: Path, name: str, provenance: Any = None, **given: Any) -> Path:
    for file, data in encode_mesh(mesh, name, provenance=provenance or {}, **given).items():
        (folder / file).write_bytes(data)
    return folder / name


def reload(path: Path) -> trimesh.Trimesh:
    textured = path.suffix == ".obj" and b"\nvt " in path.read_bytes()  # without processing it drops texture indices
    loaded = trimesh.load(path, force="mesh", process=textured)
    assert isinstance(loaded, trimesh.Trimesh)
    return loaded


def gltf_array(data: bytes, name: str) -> np.ndarray:
    """An attribute, or the indices, of the only primitive."""
    header = gltf_header(data)
    blob = data[28 + struct.unpack_from("<I", data, 12)[0] :]
    (primitive,) = header["meshes"][0]["primitives"]
    entry = header["accessors"][primitive["indices"] if name == "indices" else primitive["attributes"][name]]
    view = header["bufferViews"][entry["bufferView"]]
    assert view["byteOffset"] % 4 == 0 and view["target"] == (34963 if name == "indices" else 34962)
    dtype = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[entry["componentType"]]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[entry["type"]]
    return np.frombuffer(blob, dtype, entry["count"] * width, view["byteOffset"]).reshape(-1, width)


def gltf_header(data: bytes) -> dict[str, Any]:
    magic, version, length, json_length = struct.unpack_from("<4sIII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data)) and json_length % 4 == 0
    return json.loads(data[20 : 20 + json_length])


# ------------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("mesh", [pyramid(), cut_open()], ids=["plain", "textured"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_stands_upright_in_its_frame_and_stays_closed(name: str, mesh: Mesh, tmp_path: Path) -> None:
    loaded = reload(write(mesh, tmp_path, name))
    if name.endswith((".glb", ".obj")):
        sides, front, left, up = [0.5, 1.0, 0.75], [0, 0, 0.75], [0.5, 0, 0], [0, 1, 0]
    else:
        sides, front, left, up = [0.5, 0.75, 1.0], [0, -0.75, 0], [0.5, 0, 0], [0, 0, 1]
    size = 100 if name.endswith(".stl") else 1
    low, high = loaded.bounds
    assert np.allclose(high - low, np.multiply(sides, size), atol=1e-5 * size)
    centre = [0, 0, 50] if name.endswith(".stl") else [0, 0, 0]  # an STL stands on the plate
    assert np.allclose((low + high) / 2, centre, atol=1e-5 * size)
    dark = low + np.where(np.less(np.add(front, left), 0), np.multiply(sides, size), 0)
    for corner in (front, left, up):
        assert np.linalg.norm(loaded.vertices - dark - np.multiply(corner, size), axis=1).min() < 1e-5 * size
    assert loaded.volume == pytest.approx(0.5 * 1 * 0.75 / 6 * size**3, rel=1e-4)  # a mirror image is negative
    closed = loaded if name.endswith(".glb") else reload_welded(tmp_path / name)
    closed.merge_vertices(merge_tex=True, merge_norm=True)
    assert closed.is_watertight and closed.body_count == 1


def reload_welded(path: Path) -> trimesh.Trimesh:
    """As the file's own position indices have it; an STL has none, so equal corners are one."""
    if path.suffix == ".obj":
        lines = [line.split() for line in path.read_text().splitlines()]
        vertices = [words[1:4] for words in lines if words[:1] == ["v"]]
        faces = [[int(word.split("/")[0]) - 1 for word in words[1:]] for words in lines if words[:1] == ["f"]]
        assert len(vertices) == 4  # written once each, whatever the texture
        return trimesh.Trimesh(np.array(vertices, float), faces, process=False)
    if path.suffix == ".ply":
        vertices, faces = (plyfile.PlyData.read(path)[part].data for part in ("vertex", "face"))
        assert len(vertices) == 4
        places = np.stack([vertices[axis] for axis in "xyz"], axis=1)
        return trimesh.Trimesh(places, np.vstack(faces["vertex_indices"]), process=False)
    corners = stl.Mesh.from_file(str(path)).vectors.reshape(-1, 3)
    return trimesh.Trimesh(corners, np.arange(len(corners)).reshape(-1, 3), process=False)


def test_other_readers_find_the_vertices_and_faces_bit_for_bit(tmp_path: Path) -> None:
    """Not one bit is lost between the mesh and a binary file, whichever library wrote it."""
    mesh = pyramid()
    glb = write(mesh, tmp_path, "mesh.glb").read_bytes()
    upright = turn_y_up(mesh.vertices)
    low, high = upright.min(0), upright.max(0)
    assert np.array_equal(gltf_array(glb, "POSITION"), (upright - (low + high) / 2) / (high - low).max())
    assert np.array_equal(gltf_array(glb, "NORMAL"), mesh.normals[:, [1, 2, 0]])
    assert np.array_equal(gltf_array(glb, "indices").reshape(-1, 3), mesh.faces)
    vertex = plyfile.PlyData.read(write(mesh, tmp_path, "mesh.ply"))["vertex"].data
    assert np.array_equal(np.stack([vertex[a] for a in "xyz"], 1), fit_unit_box(turn_z_up(mesh.vertices)))
    assert np.array_equal(np.stack([vertex[a] for a in ("nx", "ny", "nz")], 1), turn_z_up(mesh.normals))
    assert np.array_equal(np.stack([vertex[a] for a in ("red", "green", "blue")], 1), mesh.colours)
    flat = stl.Mesh.from_file(str(write(mesh, tmp_path, "mesh.stl")), calculate_normals=False)
    assert np.allclose(flat.get_unit_normals(), flat.normals, atol=1e-6)  # those stored are those of the corners


def test_obj_normals_turn_with_the_surface(tmp_path: Path) -> None:
    lines = [line.split() for line in write(pyramid(), tmp_path, "mesh.obj").read_text().splitlines()]
    normals = np.array([words[1:] for words in lines if words[:1] == ["vn"]], float)
    assert np.allclose(normals, pyramid().normals[:, [1, 2, 0]], atol=1e-6)


def test_both_frames_are_rotations_of_the_world() -> None:
    """And the z-up one is what readers make of the y-up one: (x, y, z) -> (x, -z, y)."""
    axes = np.eye(3, dtype=np.float32)
    for turn in (turn_y_up, turn_z_up):
        assert np.linalg.det(turn(axes)) == pytest.approx(1)
    assert np.array_equal(turn_z_up(axes), turn_y_up(axes)[:, [0, 2, 1]] * [1, -1, 1])


@pytest.mark.parametrize("size_mm", [1.0, 37.5, 10_000.0])
def test_the_size_of_an_stl_is_chosen(size_mm: float, tmp_path: Path) -> None:
    path = write(pyramid(), tmp_path, "mesh.stl", size_mm=size_mm)
    low, high = reload(path).bounds
    assert (high - low).max() == pytest.approx(size_mm, rel=1e-5) and abs(low[2]) < 1e-5 * size_mm
    assert path.read_bytes().startswith(f"PSD Studio {size_mm:g} mm, +z up".encode())


@pytest.mark.parametrize("size_mm", [0.0, -1.0, float("nan"), float("inf"), 0.5])
def test_a_size_that_nothing_has_is_refused(size_mm: float) -> None:
    with pytest.raises(ValueError, match=r"size_mm=.* must lie in \[1, 10000\]"):
        encode_mesh(pyramid(), "mesh.stl", provenance={}, size_mm=size_mm)


def test_seams_are_welded_without_loss() -> None:
    welded, vertex = weld_seams(cut_open())
    assert len(welded.vertices) == 4 and welded.uv is None and welded.texture is None
    for name in ("vertices", "normals", "colours"):
        assert np.array_equal(getattr(welded, name)[vertex], getattr(cut_open(), name))
    assert np.array_equal(welded.faces, vertex[cut_open().faces])
    same, vertex = weld_seams(pyramid())
    assert np.array_equal(same.faces, pyramid().faces) and vertex.tolist() == [0, 1, 2, 3]


# -------------------------------------------------------------------------------------------------------------- colours


def test_glb_colours_are_linear_floats_on_a_matt_material(tmp_path: Path) -> None:
    path = write(pyramid(), tmp_path, "mesh.glb")
    data = path.read_bytes()
    stored = gltf_array(data, "COLOR_0")
    assert stored.dtype == np.float32 and stored.shape == (4, 3)
    assert np.allclose(255 * encode_srgb(stored), pyramid().colours, atol=1e-4)
    header = gltf_header(data)
    assert header["materials"][0]["pbrMetallicRoughness"] == {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    colour = header["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
    assert "normalized" not in header["accessors"][colour], "glTF allows it for integers alone"
    assert set(header["meshes"][0]["primitives"][0]["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    (loaded,) = trimesh.load_scene(path, process=False).geometry.values()
    assert np.array_equal(loaded.visual.vertex_attributes["color"], stored)


def test_linear_light_keeps_every_level_of_grey() -> None:
    ramp = encode_linear(np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1))
    assert ramp[[0, 255], 1].tolist() == [0, 1] and abs(ramp[188, 1] - 0.5) < 0.01
    assert np.allclose(255 * encode_srgb(ramp)[:, 0], np.arange(256), atol=1e-4)


@pytest.mark.parametrize("name", ["mesh.obj", "mesh.ply"])
def test_other_formats_keep_srgb(name: str, tmp_path: Path) -> None:
    loaded = reload(write(pyramid(), tmp_path, name))
    assert np.array_equal(loaded.visual.vertex_colors[:, :3], pyramid().colours)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["mesh.glb", "mesh.obj"])
def test_textured_files_reload_with_their_picture(name: str, tmp_path: Path) -> None:
    mesh = cut_open()
    assert mesh.uv is not None
    loaded = reload(write(mesh, tmp_path, name))
    uv = loaded.visual.uv  # type: ignore[union-attr]
    corners = loaded.faces.reshape(-1)  # in the order of the file's faces, whichever vertices a reader makes of it
    assert np.allclose(uv[corners], mesh.uv, atol=1e-6)
    colours = loaded.visual.to_color().vertex_colors[corners, :3]  # type: ignore[union-attr]
    assert np.array_equal(colours, np.where(mesh.uv[:, 1:] > 0.5, [200, 80, 40], [40, 80, 200]))
    assert np.allclose(loaded.vertices[corners], fit_unit_box(turn_y_up(mesh.vertices)), atol=1e-6)


def test_a_texture_is_clamped_and_its_material_is_plain(tmp_path: Path) -> None:
    header = gltf_header(write(cut_open(), tmp_path, "mesh.glb").read_bytes())
    assert header["samplers"] == [{"magFilter": 9729, "minFilter": 9729, "wrapS": 33071, "wrapT": 33071}]
    assert header["textures"] == [{"source": 0, "sampler": 0}]
    assert "COLOR_0" not in header["meshes"][0]["primitives"][0]["attributes"]  # it would tint the texture
    files = encode_mesh(cut_open(), "a.b.obj", provenance={})
    assert list(files) == ["a.b.png", "a.b.mtl", "a.b.obj"]
    material = files["a.b.mtl"].decode().split("\n")
    assert {"Kd 1.00000000 1.00000000 1.00000000", "Ks 0.00000000 0.00000000 0.00000000", "map_Kd a.b.png"} <= set(
        material
    )
    assert "\nmtllib a.b.mtl\n" in files["a.b.obj"].decode()


# --------------------------------------------------------------------------------------------------------------- header


@pytest.mark.parametrize("name", ["mesh.obj", "mesh.ply"])
def test_no_line_of_a_header_is_too_long_for_a_reader(name: str, tmp_path: Path) -> None:
    """MeshLab refuses PLY lines of 511 bytes, Open3D's reader those of 1100."""
    data = write(pyramid(), tmp_path, name, LONG).read_bytes()
    header = data[: data.index(b"end_header\n", data.index(b"element"))] if name.endswith(".ply") else data
    lines = header.split(b"\n")
    assert len(lines) > 20 and max(map(len, lines)) <= 255
    mark = {"mesh.obj": b"# PSD Studio |", "mesh.ply": b"comment PSD Studio |"}[name]
    pieces = [line[len(mark) : -1] for line in lines if line.startswith(mark)]
    assert json.loads(b"".join(pieces)) == LONG
    assert FORMATS[name[5:]].frame.encode() in header and b"trimesh" not in header
    assert len(reload(tmp_path / name).faces) == 4


def test_pieces_of_the_origin_are_short() -> None:
    for suffix in FORMATS:
        assert max(len(line.encode()) for line in describe_origin(LONG, suffix)) < LONGEST_LINE
    assert len(describe_origin({}, "ply")) == 2


def test_the_origin_can_be_read_again_from_glb_and_stl(tmp_path: Path) -> None:
    header = gltf_header(write(pyramid(), tmp_path, "mesh.glb", LONG).read_bytes())
    assert header["asset"]["extras"] == {**LONG, "frame": FORMATS["glb"].frame} == header["scenes"][0]["extras"]
    assert header["asset"]["generator"] == "PSD Studio"
    data = write(pyramid(), tmp_path, "mesh.stl", LONG).read_bytes()
    assert data.startswith(b'PSD Studio 100 mm, +z up {"prompt": "an astronaut') and len(data) == 84 + 50 * 4
    assert stl.Mesh.from_file("mesh.stl", fh=io.BytesIO(data)).vectors.shape == (4, 3, 3)


def test_an_unknown_suffix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mesh.usdz.*\.glb, \.obj, \.ply, \.stl"):
        encode_mesh(pyramid(), "mesh.usdz", provenance={})
