"""One run: its hand on the controls, and the road of its events into its folder.

Knows neither models nor the algorithm: ``make_events(preset, control, resume)`` returns any iterator of events.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Failed, Meshed, Previewed, Warned
from psd.runs.jobs.controls import Controls
from psd.runs.store.archive import ACTIVE, changes_since
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.runtime.memory import is_out_of_memory

MakeEvents = Callable[[Preset, Controls, Checkpointed | None], Iterator[Event]]
Screen = Callable[[Previewed], str]  # what is wrong with the pictures, in words; empty: nothing
GiveWay = Callable[[float], str]  # why a run paused for so many seconds must end, in words; empty: it may stay
PAUSE_POLL_S = 1.0
LOG = logging.getLogger(__name__)


class RefusedError(RuntimeError):
    """The image filter said no."""

    cure = "choose another prompt; what was made before is kept"


def drive_run(
    make_events: MakeEvents,
    folder: RunFolder,
    control: Controls,
    resume: Checkpointed | None = None,
    screen: Screen | None = None,
    until: int | None = None,
    give_way: GiveWay = lambda paused_s: "",
) -> Iterator[Event]:
    """Run to the end, or stop after step ``until``, yielding each event as stored.

    An exception of the run or of the store becomes a Failed with a cure, its traceback in log.txt; whatever was
    written before stays.  A pause holds the run between two events, until ``give_way``
    objects: then it stops, as by its user.  Only BaseExceptions such as KeyboardInterrupt
    pass through.  A resumed run makes the live changes again that came after its checkpoint.  A preview that ``screen``
    objects to is not stored, and ends the run with a Failed.
    """
    step, time_s = (resume.step, resume.time_s) if resume else (0, 0.0)
    try:
        control.replay_changes(changes_since(folder.path, step))
        events = make_events(folder.preset, control, resume)
        while (event := next(events, None)) is not None:
            step, time_s = event.step, event.time_s
            control.reach_step(step)
            if screen is not None and isinstance(event, Previewed) and (reason := screen(event)):
                LOG.warning("run %s, step %d: a preview was refused: %s", folder.id, step, reason)
                raise RefusedError(f"a picture was refused at step {step}: {reason}")
            yield (stored := folder.write(event))
            for note in stored.notes if isinstance(stored, Meshed) else ():
                yield folder.write(Warned(step=step, time_s=time_s, message=note))
            if until is not None and step >= until:
                control.stop()
            if control.is_paused:
                folder.set_state("paused")
                since = time.monotonic()
                while not control.wait_while_paused(PAUSE_POLL_S):
                    if reason := give_way(time.monotonic() - since):
                        control.stop()
                        yield folder.write(Warned(step=step, time_s=time_s, message=reason))
                folder.set_state("running")
    except Exception as error:  # noqa: BLE001 - the boundary: everything becomes a Failed that the user sees
        yield _record_failure(folder, describe_failure(error, step, time_s))
    else:
        if folder.status.state in ACTIVE:
            message = "the run ended without saying why"
            yield _record_failure(folder, Failed(step=step, time_s=time_s, message=message, cure="report this"))


def describe_failure(error: Exception, step: int, time_s: float) -> Failed:
    """An exception in words."""
    message, cure = str(error) or type(error).__name__, getattr(error, "cure", "")
    if isinstance(error, StoreError):
        message = message.removesuffix(f": {cure}")
    elif is_out_of_memory(error):
        message, cure = (
            f"out of memory: {message}",
            "lower render_size, scene.ray_samples, scene.grid_size or candidates",
        )
    elif not cure and not isinstance(error, PresetError):
        message, cure = f"{type(error).__name__}: {message}", "log.txt in the run folder has the details"
    text = "".join(traceback.format_exception(error))
    return Failed(step=step, time_s=time_s, message=message, cure=cure, traceback=text)


def _record_failure(folder: RunFolder, event: Failed) -> Event:
    """Store a failure; on a full disk the consumers at least hear of it, and the folder's writer knows."""
    try:
        return folder.write(event)
    except StoreError as error:
        folder.status = replace(folder.status, state="failed", message=event.message)
        return replace(event, message=f"{event.message} (and it could not be stored: {error})", traceback="")
