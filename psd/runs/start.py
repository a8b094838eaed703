"""What a new run starts from instead of from nothing: the object of another run, or a mesh file of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from psd.geometry.export import STARTS_FROM
from psd.geometry.mesh import Mesh
from psd.geometry.read import FILE_AXES, read_mesh
from psd.runs.remesh import remesh_run
from psd.runs.store.files import expand_path


def read_start(name: str, find_folder: Callable[[str], Path]) -> Mesh:
    """The mesh that ``name`` says, a file or a run; raises `PresetError` where there is none that is closed."""
    if Path(name).suffix.lower() in FILE_AXES:
        return read_mesh(expand_path(name))
    return remesh_start(find_folder(name))


def remesh_start(folder: Path) -> Mesh:
    """The object of the run in ``folder``; raises `PresetError` where it has none."""
    mesh, step = remesh_run(folder, texture=False)
    return replace(mesh, notes=(*mesh.notes, f"{STARTS_FROM}{folder.name} at step {step}"))
