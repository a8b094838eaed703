"""What a run shows of its scene: previews, what the judges make of them, and the surface at the end.

None of it moves the scene, so none of it may cost the run: what memory is too short for is left out, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from psd.config.preset import Preset
from psd.distillation import detectors
from psd.distillation.events import Alarmed, BestKept, Event, Meshed, Previewed, Warned
from psd.distillation.preview import Preview, render_preview
from psd.distillation.state import State, restore_scene
from psd.models.interfaces import Models
from psd.runtime import memory
from psd.runtime.deferred import NonFiniteError
from psd.runtime.offload import COMPUTING
from psd.scenes.interfaces import MeshSettings, Scene

Made = TypeVar("Made")


@dataclass(frozen=True)
class PreviewAttempt:
    """A preview, its render if that is not finite, and what memory was too short for; nothing where nobody looked."""

    seen: Preview | None = None
    wrong: NonFiniteError | None = None
    short: str = ""  # in words


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
                seen = try_within_memory(partial(render_preview, state.scene, preset, chosen))
        except NonFiniteError as error:
            return PreviewAttempt(wrong=error)
        if seen is not None:
            return PreviewAttempt(seen, short=short)
        models.fewer()
        memory.release_memory()
    return PreviewAttempt(short=f"{where}: there is none.")


def try_within_memory(make: Callable[[], Made]) -> Made | None:
    """What ``make`` returns, which is never None; None where memory is too short for it.

    The caller releases memory: by then the exception is gone, whose frames hold what was made so far.
    """
    try:
        return make()
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
    return None


def preview_events(look: PreviewAttempt, step: int, said: set[str]) -> Iterator[Previewed | Warned]:
    """The preview, what it lacks, and what memory was too short for, unless it was ``said`` before: that set grows."""
    if look.seen is not None:
        yield Previewed(step=step, images=look.seen.images, rewards=look.seen.scores)
    for name in look.seen.unscored if look.seen is not None else ():
        if name not in said:
            said.add(name)
            message = f"preview of step {step}: {name} is not finite; it is left out there (said once)"
            yield Warned(step=step, message=message)
    if look.short and look.short not in said:
        said.add(look.short)
        yield Warned(step=step, message=look.short)


def judge_events(preset: Preset, models: Models, state: State, seen: Preview) -> Iterator[BestKept | Alarmed]:
    """What the selector judge, the first of the judges, makes of a preview: a new best, alarms.

    Nothing where it has no score: memory was short, or it is not finite.  The detectors compare it with the rewards,
    preview by preview: one in which a reward has none they do not see.
    """
    selector = next(iter(models.judges.values()), None)
    if selector is None or f"judge/{selector.name}" not in seen.scores:
        return
    found = seen.mean_scores[f"judge/{selector.name}"]
    if state.best is None or found > state.best.score:
        state.keep_best(found)
        yield BestKept(step=state.step, judge=selector.name, score=found)
    reward = None
    if preset.optimises_reward:
        optimised = [(weight, models.rewards[name]) for name, weight in preset.rewards.items() if weight > 0]
        if any(f"reward/{it.name}" not in seen.scores for _, it in optimised):
            return
        reward = sum(weight * seen.mean_scores[f"reward/{it.name}"] / it.scale for weight, it in optimised)
    state.monitor, alarms = detectors.fold_preview(state.monitor, state.step, found, reward)
    for alarm in alarms:
        yield Alarmed(step=state.step, kind=alarm.kind, since=alarm.since, message=alarm.message)


def mesh_events(preset: Preset, models: Models, state: State) -> Iterator[Event]:
    """The mesh of the last or of the best scene with a turntable, and what the user should know of it.

    Out of memory it is made once more, at half of ``mesh_resolution``; a turntable that has no room is left out.
    """
    from psd.geometry.cleanup import MeshError
    from psd.geometry.mesh import Mesh, mesh_statistics
    from psd.scenes.turntable import render_turntable

    device, step, full = models.prior.device, state.step, preset.mesh_resolution
    best = state.best if preset.export == "best" else None
    if best is None and preset.export == "best":
        yield Warned(step=step, message="No preview was judged before the end: the mesh is that of the last scene.")

    def make_mesh(resolution: int) -> tuple[Scene, Mesh]:
        scene = state.scene if best is None else restore_scene(preset, models.scene, best.scene, best.step)
        return scene, scene.extract_mesh(MeshSettings(resolution, preset.mesh_faces, texture=preset.texture))

    found, resolution = None, full
    for resolution in (full, full // 2):
        try:
            found = try_within_memory(partial(make_mesh, resolution))
        except MeshError as error:
            yield Warned(step=step, message=f"There is no mesh: {error}")
            return
        if found is not None:
            break
        models.fewer()  # networks give up what they keep for steps, of which none will come
        memory.release_memory()
    if found is None:
        message = f"There is no mesh: out of memory even at mesh_resolution {resolution}"
        yield Warned(step=step, message=f"{message}; `python -m psd export <run>` makes it in main memory")
        return
    scene, mesh = found
    if resolution < full:
        message = f"Out of memory: the mesh was made at mesh_resolution {resolution} in place of {full}."
        yield Warned(step=step, message=message)
    for note in mesh.notes:
        yield Warned(step=step, message=note)
    frames = partial(render_turntable, scene, size=preset.preview_size, device=device)
    film = try_within_memory(frames)
    if film is None:
        memory.release_memory()
        film = try_within_memory(frames)
    if film is None:
        yield Warned(step=step, message="Out of memory: the mesh has no film.")
    scene_step = best.step if best is not None else None
    yield Meshed(step=step, mesh=mesh, turntable=film, scene_step=scene_step, statistics=mesh_statistics(mesh))
