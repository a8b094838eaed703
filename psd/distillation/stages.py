"""Where one stage of a run ends and another kind of scene begins: the next starts from what the one before made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from psd.distillation.events import Event, Failed, Warned
from psd.distillation.recovery import LAST_GOOD, end_failed
from psd.distillation.reporting import try_within_memory
from psd.distillation.session import Session
from psd.runtime import memory
from psd.runtime.offload import COMPUTING
from psd.scenes.interfaces import MeshSettings, Scene, StartsFromMesh

MOST_FACES = 500_000  # of the mesh between two scenes: it is not decimated, so that nothing of it is lost


def enter_stage(session: Session) -> Iterator[Event]:
    """Make the scene of the stage that the next step belongs to, where that is of another kind than the one so far.

    It draws no random number and the mesh between the two depends on the scene alone, so a run that was killed on
    either side goes on alike.  A stage that cannot begin ends the run: Checkpointed with the scene so far, then Failed.
    """
    state, preset = session.state, session.preset
    index, _ = preset.stage_at(preset.progress(state.step))
    if index == state.stage:
        return
    before, after = (preset.scene_preset(stage).scene.kind for stage in (state.stage, index))
    if before == after:
        state.stage = index
        return
    from psd.geometry.cleanup import MeshError

    where, made = f"stage {index + 1} ({after}) cannot start from the {before}", None
    for resolution in (preset.mesh_resolution, preset.mesh_resolution // 2):
        try:
            with COMPUTING:
                made = try_within_memory(partial(continue_scene, session, index, resolution))
        except MeshError as error:
            yield from end_failed(session, Failed(step=state.step, message=f"{where}: {error}", cure=LAST_GOOD))
            return
        if made is not None:
            break
        session.models.fewer()
        memory.release_memory()
    if made is None:
        cure = f"free memory and resume, or start anew with a lower mesh_resolution; {LAST_GOOD}"
        yield from end_failed(session, Failed(step=state.step, message=f"{where}: out of memory", cure=cure))
        return
    if resolution < preset.mesh_resolution:
        message = f"Out of memory: stage {index + 1} starts from a mesh at mesh_resolution {resolution}."
        yield Warned(step=state.step, message=message)
    state.change_scene(made, preset, index)


@torch.no_grad()
def continue_scene(session: Session, stage: int, resolution: int) -> Scene:
    """The scene of ``stage`` with the shape and the colours of the session's scene, meshed at ``resolution``.

    Raises `psd.geometry.cleanup.MeshError` where there is no surface to start from.
    """
    scene = session.make_scene(session.preset.scene_preset(stage), session.models.prior.device)
    mesh = session.state.scene.extract_mesh(MeshSettings(resolution, MOST_FACES))
    assert isinstance(scene, StartsFromMesh)  # the preset has refused other successions
    scene.start_from(mesh)
    return scene
