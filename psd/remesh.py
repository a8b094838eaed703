"""The mesh of a run again, from its newest checkpoint: another threshold, size, scene or texture."""

from __future__ import annotations

from pathlib import Path

from psd.archive import latest_checkpoint, read_preset, read_status
from psd.events import Meshed, Warned
from psd.mesh import Mesh, MeshError, extract, statistics
from psd.preset import PresetError
from psd.scene import make_scene
from psd.state import below, revived
from psd.store import RunFolder


def remesh(
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
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise PresetError(f"{folder.name} has no whole checkpoint: nothing to make a mesh of")
    values = {"export": scene, "mesh_faces": faces, "texture": texture}
    preset = read_preset(folder).changed({key: value for key, value in values.items() if value is not None})
    best = checkpoint.values.get("best") if preset.export == "best" else None
    step, prefix = (best["step"], "best/") if best else (checkpoint.step, "scene/")
    shape = revived(preset, make_scene, below(prefix, checkpoint.tensors), step)
    try:
        mesh = extract(
            shape, resolution=preset.mesh_resolution, faces=preset.mesh_faces, threshold=threshold,
            texture=preset.texture,
        )  # fmt: skip
    except MeshError as error:
        raise PresetError(str(error)) from None
    return mesh, step


def remake(folder: Path, scene: str | None = None, threshold: float | None = None) -> None:
    """`remesh` into the run's folder, every format, told as an event of the run; `StoreError` while the run goes on."""
    mesh, step = remesh(folder, scene=scene, threshold=threshold)
    status = read_status(folder)
    with RunFolder.open(folder) as run:
        for note in mesh.notes:
            run.write(Warned(step=status.step, time_s=status.time_s, message=note))
        facts = statistics(mesh)
        run.write(Meshed(step=status.step, time_s=status.time_s, mesh=mesh, scene_step=step, statistics=facts))
