"""Files of every format come in as they went out; what is no solid is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from psd.config.errors import PresetError
from psd.geometry import export, read
from psd.geometry.mesh import Mesh
from psd.geometry.read import LONGEST, read_mesh

RED, BLUE = (200, 40, 40), (30, 60, 190)


def make_solid() -> Mesh:
    """A box longer in y than in x and z, off its middle, red above and blue below: no axis stands for another."""
    box = trimesh.creation.box((0.4, 0.9, 0.6)).subdivide().subdivide()
    points = np.asarray(box.vertices, np.float32) + np.array((0.1, 0.0, 0.3), np.float32)
    points[points[:, 0] > 0.2, 1] *= 0.7  # the front is narrower
    colours = np.where(points[:, 2:] > 0.3, RED, BLUE).astype(np.uint8)
    return Mesh(points, np.asarray(box.faces, np.int32), np.asarray(box.vertex_normals, np.float32), colours)


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl"])
def test_a_mesh_comes_in_as_it_went_out(tmp_path: Path, suffix: str) -> None:
    mesh = make_solid()
    for name, data in export.encode_mesh(mesh, f"mesh.{suffix}", provenance={}).items():
        (tmp_path / name).write_bytes(data)
    found = read_mesh(tmp_path / f"mesh.{suffix}")
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    expected = (mesh.vertices - (low + high) / 2) * (LONGEST / (high - low).max())
    distance = np.linalg.norm(expected[:, None] - found.vertices[None], axis=-1)
    assert len(found.vertices) == len(expected) and len(found.faces) == len(mesh.faces)
    assert distance.min(1).max() < 1e-4
    colours = np.full_like(mesh.colours, read.GREY) if suffix == "stl" else mesh.colours
    assert np.abs(found.colours[distance.argmin(1)].astype(int) - colours).max() <= 4  # dark ones of 8 linear bits
    assert (found.normals * found.vertices).sum() > 0 and found.notes == (f"starts from mesh.{suffix}",)


def test_an_inside_out_mesh_is_turned_outside(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(2)
    ball.invert()
    ball.export(tmp_path / "ball.ply")
    found = read_mesh(tmp_path / "ball.ply")
    assert trimesh.Trimesh(found.vertices, found.faces).volume > 0


BOX = trimesh.creation.box()


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("none.glb", lambda path: None, "no such file"),
        ("text.ply", lambda path: path.write_text("hello"), "no mesh that can be read"),
        ("empty.obj", lambda path: path.write_text("v 0 0 0\n"), "no faces|no mesh that can be read"),
        ("open.ply", lambda path: trimesh.Trimesh(BOX.vertices, BOX.faces[1:]).export(path), "not closed: fill"),
        ("flat.ply", lambda path: trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]).export(path), "flat"),
    ],
)
def test_what_is_no_solid_is_refused_in_words(
    tmp_path: Path, name: str, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(PresetError, match=words):
        read_mesh(tmp_path / name)


def test_what_is_too_large_is_refused_with_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BOX.export(tmp_path / "box.ply")
    monkeypatch.setattr(read, "MOST_FACES", 11)
    with pytest.raises(PresetError, match="12 faces, at most 11: simplify it"):
        read_mesh(tmp_path / "box.ply")
    monkeypatch.setattr(read, "MOST_BYTES", 10)
    with pytest.raises(PresetError, match="MB, at most"):
        read_mesh(tmp_path / "box.ply")
