"""The reports of a run: its start, its steps, its previews with the scores of the judges, and the mesh at the end.

None of it moves the scene, so none of it may cost the run: what memory is too short for is left out, with a warning.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8

from psd import __version__
from psd.config.preset import Preset
from psd.distillation import detectors, events, recovery
from psd.distillation.preview import Preview, render_preview, to_uint8
from psd.distillation.session import PreviewAttempt, Session
from psd.distillation.state import State, restore_scene
from psd.geometry.cameras import turntable_cameras
from psd.models.interfaces import Models
from psd.runtime import memory
from psd.runtime.deferred import NonFiniteError
from psd.runtime.offload import COMPUTING
from psd.scenes.interfaces import MakeScene, MeshSettings

Made = TypeVar("Made")
CONTRASTS = (0.5, 2.0)  # of ``pair/contrast``, in which a reward still sees a picture
FAR_STEPS = 5  # in a row outside of them; where the gate begins to open, one alone is usual


def started_event(session: Session) -> events.Started:
    """Makes the event that a run begins with: preset, environment, and the notes of the models and the scene."""
    preset, models = session.preset, session.models
    environment = {
        "psd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(models.prior.device),
        "threads": str(torch.get_num_threads()),
    }
    return events.Started(
        step=session.state.step, preset=preset.model_dump(mode="json"), total_steps=preset.total_steps,
        views=models.prior.views, environment=environment, notes=(*models.notes, *session.state.scene.notes),
    )  # fmt: skip


def report_start(session: Session) -> Iterator[events.Event]:
    """Yields the start, then a preview of the scene where no step was made yet."""
    yield started_event(session)
    state, preset = session.state, session.preset
    state.scene.advance(max(state.step - 1, 0) / preset.steps)  # as the last step left it
    if state.step == 0:
        session.latest = make_preview(state, preset, session.models)
    yield from preview_events(session)
    if session.latest.not_finite is not None:
        yield from end_at_preview(session, session.latest.not_finite, "before the first step")


def end_at_preview(session: Session, error: NonFiniteError, which: str) -> Iterator[events.Event]:
    """End a run whose scene a preview could not show."""
    state = session.state
    scene = session.preset.in_stage(state.stage).scene
    yield from recovery.end_failed(session, recovery.preview_not_finite(error, state.step, which, scene))


def report_step(
    session: Session, t: int, metrics: dict[str, float], negative: events.NegativeUpdated | None
) -> Iterator[events.Event]:
    """The step's numbers; a preview with its judges and a checkpoint where they are due."""
    state, preset, is_last = session.state, session.preset, session.is_complete
    on_grid = state.step % preset.preview_every == 0
    latest = make_preview(state, preset, session.models) if is_last or on_grid else PreviewAttempt()
    session.latest = latest
    if latest.preview is not None:
        metrics |= latest.preview.metrics | {"memory/peak_bytes": float(memory.peak_bytes())}
    yield events.Stepped(step=state.step, t=t, metrics=metrics)
    if "pair/contrast" in metrics:
        yield from contrast_events(session, t, metrics["pair/contrast"])
    if negative is not None:
        yield negative
    if latest.not_finite is not None and not is_last:
        yield from end_at_preview(session, latest.not_finite, f"of step {state.step}, t = {t}")
        return
    yield from preview_events(session)
    if latest.preview is not None and on_grid:  # an extended run judges what the whole one would
        for event in judge_events(session.live.in_stage(state.stage), session.models, state, latest.preview):
            session.ends_early |= isinstance(event, events.Alarmed) and preset.is_ended_by(event.kind)
            yield event
    if (latest.out_of_memory or session.is_checkpoint_due) and not is_last:
        yield session.checkpoint()  # at once where memory is short: it may be gone altogether next time
        session.saved = time.monotonic()


def contrast_events(session: Session, t: int, contrast: float) -> Iterator[events.Event]:
    """A warning, once, where step after step the reward's gradient is asked at a picture that is far flatter or harsher
    than the prior's own."""
    low, high = CONTRASTS
    session.far_contrasts = 0 if low <= contrast <= high else session.far_contrasts + 1
    if session.far_contrasts < FAR_STEPS or "contrast" in session.warned:
        return
    session.warned.add("contrast")
    message = (
        f"step {session.state.step}, t = {t}: for {FAR_STEPS} steps the reward's gradient was asked at predictions "
        f"of unusual contrast, now {contrast:.2f} times the plain prediction's ({low:g} to {high:g} is usual): lower "
        "guidance_scale"
    )
    yield events.Warned(step=session.state.step, message=message)


def report_end(session: Session) -> Iterator[events.Event]:
    """Yields a checkpoint of everything, then the last preview, the mesh and the end of the run."""
    state, preset = session.state, session.preset
    yield session.checkpoint()
    if session.latest == PreviewAttempt():
        session.latest = make_preview(state, preset, session.models)
        yield from preview_events(session)
    if session.latest.not_finite is not None:
        yield events.Warned(step=state.step, message=f"There is no preview of the end: {session.latest.not_finite}.")
    yield from mesh_events(preset, session.models, state, session.make_scene)
    reason = "completed" if session.is_complete else "stopped early" if session.ends_early else "stopped"
    scores = session.latest.preview.mean_scores if session.latest.preview is not None else {}
    yield events.Finished(step=state.step, reason=reason, scores=scores)


def make_preview(state: State, preset: Preset, models: Models) -> PreviewAttempt:
    """A preview.  Out of memory it looks again, with networks that take one orbit at a time from then on, and at last
    without judges; training stays as large as it is, for a preview holds nothing of a step's."""
    where = f"Out of memory in the preview of step {state.step}"
    absent = f"{where}: it goes without its judges ({', '.join(models.judges)})."
    tries = [(models, ""), (models, "Out of memory in a preview: networks take one orbit at a time from now on.")]
    tries += [(replace(models, judges={}), absent)] if models.judges else []
    for chosen, short in tries:
        try:
            with COMPUTING:
                preview = try_within_memory(partial(render_preview, state.scene, preset, chosen))
        except NonFiniteError as error:
            return PreviewAttempt(not_finite=error)
        if preview is not None:
            return PreviewAttempt(preview, out_of_memory=short)
        models.fewer()
        memory.release_memory()
    return PreviewAttempt(out_of_memory=f"{where}: there is none.")


def render_view(
    session: Session, azimuth_deg: float, elevation_deg: float, size: int
) -> UInt8[np.ndarray, "h w 3"] | None:  # fmt: skip
    """The scene as it stands from one side, before white; draws no random number.  None: memory is too short for it."""
    device = session.models.prior.device
    cameras = turntable_cameras(1, start_deg=azimuth_deg, elevation_deg=elevation_deg).to(device)

    @torch.no_grad()
    def make_picture() -> UInt8[np.ndarray, "h w 3"]:
        plain = torch.ones(1, 3, device=device)
        return to_uint8(session.state.scene.render(cameras, size, background=plain).rgb[0])[0]

    with COMPUTING:
        return try_within_memory(make_picture)


def try_within_memory(make: Callable[[], Made]) -> Made | None:
    """Returns what ``make`` makes, which is never None; None where memory is too short for it.

    The caller releases memory: by then the exception is gone, whose frames hold what was made so far.
    """
    try:
        return make()
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
    return None


def preview_events(session: Session) -> Iterator[events.Event]:
    """Yields the latest preview, and a warning of what it lacks or memory was too short for, each of them once."""
    step, preview, short = session.state.step, session.latest.preview, session.latest.out_of_memory
    if preview is not None:
        yield events.Previewed(step=step, images=preview.images, rewards=preview.scores)
    for name in preview.unscored if preview is not None else ():
        if name not in session.warned:
            session.warned.add(name)
            message = f"preview of step {step}: {name} is not finite; it is left out there (said once)"
            yield events.Warned(step=step, message=message)
    if short and short not in session.warned:
        session.warned.add(short)
        yield events.Warned(step=step, message=short)


def judge_events(
    preset: Preset, models: Models, state: State, preview: Preview
) -> Iterator[events.BestKept | events.Alarmed]:
    """Yields the new best and the alarms that a preview brings, by the selector judge, which is the first judge.

    Nothing where it has no score: memory was short, or it is not finite.  The detectors compare it with the rewards,
    preview by preview: one in which a reward has none they do not see.
    """
    selector = next(iter(models.judges.values()), None)
    if selector is None or f"judge/{selector.name}" not in preview.scores:
        return
    found = preview.mean_scores[f"judge/{selector.name}"]
    if state.best is None or found > state.best.score:
        state.keep_best(found)
        yield events.BestKept(step=state.step, judge=selector.name, score=found)
    reward = None
    if preset.optimises_reward:
        optimised = [(weight, models.rewards[name]) for name, weight in preset.rewards.items() if weight > 0]
        if any(f"reward/{it.name}" not in preview.scores for _, it in optimised):
            return
        reward = sum(weight * preview.mean_scores[f"reward/{it.name}"] / it.scale for weight, it in optimised)
    state.monitor, alarms = detectors.fold_preview(state.monitor, state.step, found, reward)
    for alarm in alarms:
        yield events.Alarmed(step=state.step, kind=alarm.kind, since=alarm.since, message=alarm.message)


def mesh_events(preset: Preset, models: Models, state: State, make_scene: MakeScene) -> Iterator[events.Event]:
    """Yields the mesh of the last or of the best scene, and warnings about it.

    Out of memory it is made once more, at half of ``mesh_resolution``.
    """
    from psd.geometry.cleanup import MeshError
    from psd.geometry.mesh import Mesh, mesh_statistics

    device, step, full = models.prior.device, state.step, preset.mesh_resolution
    best = state.best if preset.export == "best" else None
    if best is None and preset.export == "best":
        yield events.Warned(
            step=step, message="No preview was judged before the end: the mesh is that of the last scene."
        )

    def make_mesh(resolution: int) -> Mesh:
        scene = (
            state.scene
            if best is None
            else restore_scene(preset, best.scene, best.step, stage=best.stage, make_scene=make_scene, device=device)
        )
        return scene.extract_mesh(MeshSettings(resolution, preset.mesh_faces, texture=preset.texture))

    mesh, resolution = None, full
    for resolution in (full, full // 2):
        try:
            mesh = try_within_memory(partial(make_mesh, resolution))
        except MeshError as error:
            yield events.Warned(step=step, message=f"There is no mesh: {error}")
            return
        if mesh is not None:
            break
        models.fewer()  # networks give up what they keep for steps, of which none will come
        memory.release_memory()
    if mesh is None:
        message = f"There is no mesh: out of memory even at mesh_resolution {resolution}"
        yield events.Warned(step=step, message=f"{message}; `python -m psd export <run>` makes it in main memory")
        return
    if resolution < full:
        message = f"Out of memory: the mesh was made at mesh_resolution {resolution} in place of {full}."
        yield events.Warned(step=step, message=message)
    for note in mesh.notes:
        yield events.Warned(step=step, message=note)
    scene_step = best.step if best is not None else None
    yield events.Meshed(step=step, mesh=mesh, scene_step=scene_step, statistics=mesh_statistics(mesh))
