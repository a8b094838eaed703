"""The change from one stage of a run to the next: its scene, where that is of another kind, starts from what the
stage before made; its prior has a negative embedding of its own; other rewards have other gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from psd.distillation.detectors import Monitor
from psd.distillation.events import Event, Failed, Warned
from psd.distillation.formulas import GAP_DECAY
from psd.distillation.gap_scale import GapScale
from psd.distillation.negative import Negative
from psd.distillation.recovery import LAST_GOOD, end_failed
from psd.distillation.reporting import try_within_memory
from psd.distillation.session import Session
from psd.runtime import memory
from psd.runtime.offload import COMPUTING
from psd.scenes.interfaces import MeshSettings, Scene, StartsFromMesh

MOST_FACES = 500_000  # of the mesh between two scenes: it is not decimated, so that nothing of it is lost


@dataclass(frozen=True)
class Beginning:
    """The parts that a stage begins with; None for a part that goes on from the stage before."""

    scene: Scene | None
    negative: Negative | None


def enter_stage(session: Session) -> Iterator[Event]:
    """Begins the stage of the next step where that is not the stage of the last.

    It draws no random number and what it makes depends on the scene alone, so a run that was killed on either side goes
    on alike.  A stage that cannot begin ends the run: Checkpointed with the scene so far, then Failed.
    """
    state, preset = session.state, session.preset
    index, _ = preset.stage_at(preset.progress(state.step))
    if index == state.stage:
        return
    from psd.geometry.cleanup import MeshError

    before, after = preset.in_stage(state.stage), preset.in_stage(index)
    changes_scene, changes_prior = before.scene.kind != after.scene.kind, before.prior != after.prior
    where, made = f"stage {index + 1} cannot begin", None
    if changes_scene:
        where = f"stage {index + 1} ({after.scene.kind}) cannot start from the {before.scene.kind}"
    for resolution in (preset.mesh_resolution, preset.mesh_resolution // 2):
        try:
            with COMPUTING:
                made = try_within_memory(partial(begin_stage, session, index, resolution))
        except MeshError as error:
            yield from end_failed(session, Failed(step=state.step, message=f"{where}: {error}", cure=LAST_GOOD))
            return
        if made is not None:
            break
        session.models.fewer()
        memory.release_memory()
    if made is None:
        other = ", or start anew with a lower mesh_resolution" if changes_scene else ""
        cure = f"free memory and resume{other}; {LAST_GOOD}"
        yield from end_failed(session, Failed(step=state.step, message=f"{where}: out of memory", cure=cure))
        return
    if changes_scene and resolution < preset.mesh_resolution:
        message = f"Out of memory: stage {index + 1} starts from a mesh at mesh_resolution {resolution}."
        yield Warned(step=state.step, message=message)
    if made.scene is not None:
        state.change_scene(made.scene, preset, index)
    if made.negative is not None:
        state.negative = made.negative
    forget_rewards(session, index)
    state.stage = index
    session.take_stage_models()
    if changes_prior:
        message = (
            f"Stage {index + 1} has another prior, {after.prior}: the negative embedding begins again, with the "
            "negative prompt as that prior reads it."
        )
        yield Warned(step=state.step, message=message)


def begin_stage(session: Session, stage: int, resolution: int) -> Beginning:
    """Makes what is other in ``stage``, and changes nothing; raises as `continue_scene` does."""
    before, after = (session.preset.in_stage(index) for index in (session.state.stage, stage))
    changes_scene = before.scene.kind != after.scene.kind
    return Beginning(
        scene=continue_scene(session, stage, resolution) if changes_scene else None,
        negative=Negative.create(after, session.loaded.priors[after.prior]) if before.prior != after.prior else None,
    )


def forget_rewards(session: Session, stage: int) -> None:
    """Forgets the running means of the gaps where ``stage`` has other rewards, or another prior."""
    state = session.state
    before, after = (session.live.in_stage(index) for index in (state.stage, stage))
    if before.prior != after.prior or before.rewards.keys() != after.rewards.keys():
        state.gap_scale = GapScale(GAP_DECAY, session.loaded.priors[after.prior].levels)
    if before.rewards != after.rewards:
        state.monitor = Monitor()  # another curve


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
