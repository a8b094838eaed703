"""The mesh of a run again, from its newest checkpoint: another threshold, size, scene or texture."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from psd.config.errors import PresetError, first_line
from psd.config.preset import Preset
from psd.distillation.events import Meshed, Warned
from psd.distillation.state import restore_scene, saved_stage, strip_prefix
from psd.geometry.cleanup import MeshError
from psd.geometry.export import PRINT_SIZE_MM
from psd.geometry.mesh import Mesh, mesh_statistics
from psd.runs.store.archive import ACTIVE, checkpoint_steps, find_checkpoint, read_preset, read_status
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.scenes.interfaces import MeshSettings, Scene, Thresholded

LOG = logging.getLogger(__name__)


def load_exported_scene(folder: Path, preset: Preset) -> tuple[Scene, int]:
    """The scene that ``preset.export`` names in the run's newest checkpoint, and its step; `PresetError` if none."""
    search = find_checkpoint(folder)
    if search.checkpoint is None:
        why = f" ({search.reasons})" if search.reasons else ""
        raise PresetError(f"{folder.name} has no whole checkpoint{why}: nothing to make a mesh of")
    if search.reasons:
        LOG.warning("run %s: %s", folder.name, search.reasons)
    checkpoint = search.checkpoint
    best = checkpoint.values.get("best") if preset.export == "best" else None
    try:
        step, prefix = (int(best["step"]), "best/") if best else (checkpoint.step, "scene/")
        stage = int(best.get("stage", 0)) if best else saved_stage(checkpoint, preset)
        return restore_scene(preset, strip_prefix(prefix, checkpoint.tensors), step, stage=stage), step
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # of a version whose seals prove nothing
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise PresetError(f"the checkpoint of {folder.name} does not fit its preset ({reason}): restore it") from None


def remesh_run(
    folder: Path,
    *,
    scene: str | None = None,
    threshold: float | None = None,
    faces: int | None = None,
    texture: bool | None = None,
) -> tuple[Mesh, int]:
    """The mesh and the step of the scene that it shows; what is None is as the run's preset has it.

    ``scene`` is "best" (by the selector judge) or "last"; without a judged preview the best is the last.  Needs neither
    prior nor rewards, and runs on the CPU.  Raises `PresetError` where there is no checkpoint or no surface.
    """
    values = {"export": scene, "mesh_faces": faces, "texture": texture}
    preset = read_preset(folder).with_values({key: value for key, value in values.items() if value is not None})
    shape, step = load_exported_scene(folder, preset)
    if threshold is not None and not isinstance(shape, Thresholded):
        raise PresetError(f"threshold={threshold}: the surface of this scene has none: leave it out")
    try:
        mesh = shape.extract_mesh(MeshSettings(preset.mesh_resolution, preset.mesh_faces, preset.texture, threshold))
    except MeshError as error:
        raise PresetError(str(error)) from None
    return mesh, step


def rewrite_mesh(
    folder: Path,
    scene: str | None = None,
    threshold: float | None = None,
    faces: int | None = None,
    texture: bool | None = None,
    size_mm: float = PRINT_SIZE_MM,
) -> Mesh:
    """`remesh_run` into the run's folder, every format, with an event of the run; `StoreError` while the run goes
    on.

    ``size_mm`` is the longest side of the STL.
    """
    status = read_status(folder)
    if status.state in ACTIVE:
        raise StoreError(f"{folder.name} is still going", "wait for its end, or stop it first")
    mesh, step = remesh_run(folder, scene=scene, threshold=threshold, faces=faces, texture=texture)
    stamp = {"step": status.step, "time_s": status.time_s}
    with RunFolder.open(folder, size_mm=size_mm) as run:
        for note in (*run.notes, *mesh.notes):
            run.write(Warned(message=note, **stamp))
        run.write(Meshed(mesh=mesh, scene_step=step, statistics=mesh_statistics(mesh), **stamp))
        if note := run.make_films():
            run.write(Warned(message=note, **stamp))
    return mesh


class Remesher:
    """What a page does with a run's scene (`psd.ui.tabs.mesh.Remesh`); remembers the scene that was asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[object, Callable[[float], int]] | None = None

    def count(self, folder: Path, threshold: float, kept: str) -> int:
        """Faces of the surface at ``threshold``, without floaters and before decimation."""
        try:
            return self._counter(folder, kept)(threshold)
        except MeshError as error:
            raise PresetError(str(error)) from None

    def export(self, folder: Path, *, threshold: float, faces: int, texture: bool, kept: str) -> None:
        """`rewrite_mesh`, with every choice made; the threshold of a scene that has one."""
        scene, _ = load_exported_scene(folder, read_preset(folder).with_values({"export": kept}))
        rewrite_mesh(folder, kept, threshold if isinstance(scene, Thresholded) else None, faces, texture)

    def _counter(self, folder: Path, kept: str) -> Callable[[float], int]:
        key = (folder, kept, checkpoint_steps(folder))
        with self._lock:
            if self._last is None or self._last[0] != key:
                preset = read_preset(folder).with_values({"export": kept})
                scene, _ = load_exported_scene(folder, preset)
                if not isinstance(scene, Thresholded):
                    raise PresetError("the surface of this scene has no threshold")
                self._last = key, scene.face_counter(preset.mesh_resolution)
            return self._last[1]
