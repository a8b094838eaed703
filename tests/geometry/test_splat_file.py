"""Files of splats: what a reader of the published layouts finds in them, and who is refused them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from torch.nn.functional import normalize

from psd.geometry.cleanup import vertex_normals
from psd.geometry.export import SPLAT_FORMATS, encode_mesh, list_formats, turn_y_up
from psd.geometry.mesh import Mesh
from psd.geometry.splat import Gaussians, quaternion_matrices
from psd.geometry.splat_file import CONSTANT, PROPERTIES, turn_y_down

ORIGIN = {"prompt": "a red mushroom", "seed": 3}
LONGEST = 0.8


def splatted() -> Mesh:
    """A box 0.8 high that stands off the middle, with five Gaussians."""
    box = trimesh.creation.box((0.4, 0.2, LONGEST))
    box.apply_translation([0.1, 0.2, 0.3])
    vertices, faces = np.asarray(box.vertices, np.float32), np.asarray(box.faces, np.int32)
    grey = np.full((len(vertices), 3), 128, np.uint8)
    generator = torch.Generator().manual_seed(0)
    position = torch.tensor([0.1, 0.2, 0.3]) + 0.2 * torch.rand(5, 3, generator=generator)
    opacity = torch.tensor([1.0, 0.0, 0.5, 0.3, 0.9])
    rotation = normalize(torch.randn(5, 4, generator=generator), dim=-1)
    splats = Gaussians(
        position, 0.01 + 0.05 * torch.rand(5, 3, generator=generator), rotation, opacity,
        torch.rand(5, 3, generator=generator),
    )  # fmt: skip
    return Mesh(vertices, faces, vertex_normals(vertices, faces), grey, splats=splats)


def read_ply(data: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """By the format's own rules: the header, and the columns by name."""
    header, _, body = data.partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex ")]
    table = np.frombuffer(body, "<f4").reshape(count, len(names))
    return header.decode(), dict(zip(names, table.T, strict=True))


def columns(found: dict[str, np.ndarray], *names: str) -> np.ndarray:
    return np.stack([found[name] for name in names], axis=1)


def test_a_reader_finds_the_gaussians_again() -> None:
    mesh = splatted()
    splats = mesh.splats
    assert splats is not None
    header, found = read_ply(encode_mesh(mesh, "mesh.splat.ply", provenance=ORIGIN)["mesh.splat.ply"])
    assert tuple(found) == PROPERTIES and SPLAT_FORMATS["splat.ply"].frame in header
    text = "".join(line.split("|")[1] for line in header.splitlines() if line.startswith("comment PSD Studio |"))
    assert json.loads(text) == ORIGIN
    middle = np.array([0.1, 0.2, 0.3])
    place = turn_y_down((splats.position.numpy() - middle) / LONGEST)
    assert np.allclose(columns(found, "x", "y", "z"), place, atol=1e-6)
    assert np.allclose(np.exp(columns(found, "scale_0", "scale_1", "scale_2")), splats.size / LONGEST, rtol=1e-5)
    assert np.allclose(1 / (1 + np.exp(-found["opacity"])), splats.opacity, atol=2e-6)
    assert np.isfinite(found["opacity"]).all() and not columns(found, "nx", "ny", "nz").any()
    assert np.allclose(0.5 + CONSTANT * columns(found, "f_dc_0", "f_dc_1", "f_dc_2"), splats.colour, atol=1e-6)
    turned = quaternion_matrices(torch.tensor(columns(found, "rot_0", "rot_1", "rot_2", "rot_3")))
    expected = np.stack([turn_y_down(columns_of.T).T for columns_of in quaternion_matrices(splats.rotation).numpy()])
    assert np.allclose(turned, expected, atol=1e-5)


def test_a_viewer_that_turns_the_file_shows_the_object_as_glb_does() -> None:
    points = np.random.default_rng(0).random((9, 3)).astype(np.float32)
    assert np.allclose(turn_y_down(points) * [-1, -1, 1], turn_y_up(points))


def test_the_short_format_holds_the_same_in_32_bytes_each() -> None:
    mesh = splatted()
    splats = mesh.splats
    assert splats is not None
    data = encode_mesh(mesh, "mesh.splat", provenance=ORIGIN)["mesh.splat"]
    assert len(data) == 5 * 32
    volume = splats.opacity * splats.size.prod(1)
    order = volume.argsort(descending=True)
    sorted_splats = splats.at(order)
    _, long = read_ply(encode_mesh(replace(mesh, splats=sorted_splats), "a.splat.ply", provenance={})["a.splat.ply"])
    rows = [data[start : start + 32] for start in range(0, len(data), 32)]
    floats = np.stack([np.frombuffer(row[:24], "<f4") for row in rows])
    small = np.stack([np.frombuffer(row[24:], np.uint8) for row in rows]).astype(float)
    assert np.allclose(floats[:, :3], columns(long, "x", "y", "z"), atol=1e-6)
    assert np.allclose(floats[:, 3:], np.exp(columns(long, "scale_0", "scale_1", "scale_2")), rtol=1e-5)
    assert np.allclose(small[:, :3] / 255, sorted_splats.colour, atol=0.002)
    assert np.allclose(small[:, 3] / 255, sorted_splats.opacity, atol=0.002)
    assert np.allclose(small[:, 4:] / 128 - 1, columns(long, "rot_0", "rot_1", "rot_2", "rot_3"), atol=0.009)


def test_only_meshes_of_gaussians_offer_splats() -> None:
    mesh = splatted()
    plain = replace(mesh, splats=None)
    assert list_formats(mesh) == [*list_formats(plain), "splat.ply", "splat"]
    for name in ("mesh.splat.ply", "mesh.splat"):
        with pytest.raises(ValueError, match="this mesh is of no Gaussians"):
            encode_mesh(plain, name, provenance={})
    assert set(encode_mesh(mesh, "mesh.ply", provenance={})) == {"mesh.ply"}
    assert encode_mesh(mesh, "mesh.ply", provenance={})["mesh.ply"].count(b"property float rot_0") == 0
