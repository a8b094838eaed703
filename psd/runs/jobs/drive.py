"""One run: its events on their way into its folder, and its controls on their way to it.

Knows neither models nor the algorithm: ``make_events(preset, control, resume)`` returns any iterator of events.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.config.settings import SIZES
from psd.distillation.events import Checkpointed, Event, Failed, Previewed, Started, Warned
from psd.runs.jobs.controls import Controls
from psd.runs.store.archive import ACTIVE, changes_since, find_checkpoint
from psd.runs.store.event_lines import read_event_lines
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.runtime.memory import is_out_of_memory

MakeEvents = Callable[[Preset, Controls, Checkpointed | None], Iterator[Event]]
Screen = Callable[[Previewed], str]  # what is wrong with the pictures, in words; empty: nothing
GiveWay = Callable[[float], str]  # why a run paused for so many seconds must end, in words; empty: it may stay
PAUSE_POLL_S = 0.2
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

    Whatever the run or the store raises becomes a Failed with a cure, its traceback in log.txt; what was written before
    stays, and a run that was over and cannot even begin again is left as it was.  Only KeyboardInterrupt passes.  A
    pause holds the run between two events, until ``give_way`` objects: then it stops, as by its user.  A resumed run
    makes the live changes again that came after its checkpoint.  A preview that ``screen`` objects to is not stored,
    and ends the run with a Failed.
    """
    step, time_s = (resume.step, resume.time_s) if resume else (0, 0.0)
    has_started = False
    try:
        notes = [*folder.notes, *control.replay_changes(changes_since(folder.path, step))]
        events = make_events(folder.preset, control, resume)
        while (event := next(events, None)) is not None:
            step, time_s = event.step, event.time_s
            control.reach_step(step)
            if screen is not None and isinstance(event, Previewed) and (reason := screen(event)):
                LOG.warning("run %s, step %d: a preview was refused: %s", folder.id, step, reason)
                raise RefusedError(f"a picture was refused at step {step}: {reason}")
            yield folder.write(event)
            has_started |= isinstance(event, Started)
            if notes and has_started:
                yield folder.write(Warned(step=step, time_s=time_s, message="; ".join(notes)))
                notes = []
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
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the boundary: everything becomes a Failed that the user sees
        yield record_failure(folder, describe_failure(error, step, time_s), has_begun=has_started)
    else:
        if folder.status.state in ACTIVE:
            message = "the run ended without saying why"
            failure = Failed(step=step, time_s=time_s, message=message, cure="report this")
            yield record_failure(folder, failure, has_begun=has_started)
        elif note := folder.make_films():
            yield folder.write(Warned(step=step, time_s=time_s, message=note))


def describe_failure(error: BaseException, step: int, time_s: float) -> Failed:
    """An exception in words."""
    message, cure = str(error) or type(error).__name__, getattr(error, "cure", "")
    if isinstance(error, StoreError):
        message = message.removesuffix(f": {cure}")
    elif is_out_of_memory(error):
        message, cure = (
            f"out of memory: {message}",
            f"lower render_size, candidates or the size of the scene (scene.{', scene.'.join(SIZES)})",
        )
    elif not cure and not isinstance(error, PresetError):
        message, cure = f"{type(error).__name__}: {message}", "log.txt in the run folder has the details"
    text = "".join(traceback.format_exception(error))
    return Failed(step=step, time_s=time_s, message=message, cure=cure, traceback=text)


def record_failure(folder: RunFolder, event: Failed, *, has_begun: bool = True) -> Event:
    """Store a failure; on a full disk the consumers at least hear of it, and the folder's writer knows.

    A run that was over before and has not ``has_begun`` again keeps its state and its log: only log.txt tells.
    """
    try:
        if has_begun or not folder.was_over:
            return folder.write(event)
        folder.log(f"could not go on: {event.message}\n{event.traceback}")
        folder.undo_state()
        return replace(event, traceback="")
    except StoreError as error:
        try:
            folder.set_state("failed", event.message)
        except StoreError as refused:
            LOG.warning("the state of the run %s could not be written: %s", folder.id, refused)
        return replace(event, message=f"{event.message} (and it could not be stored: {error})", traceback="")


def require_checkpoint(folder: Path, *, from_start: bool = False) -> tuple[Checkpointed | None, list[str]]:
    """The checkpoint that a run goes on from, None for its start, and what should be said about the choice.

    Raises StoreError where its checkpoints are lost, unless ``from_start`` allows to begin anew.
    """
    search = find_checkpoint(folder)
    if search.checkpoint is None and search.is_lost and not from_start:
        raise StoreError(
            f"no checkpoint of {folder.name} can be used ({search.reasons}), so it would begin anew",
            "restore one, remix the run, or allow it with `resume --from-start`",
        )
    notes = [search.reasons] if search.reasons else []
    steps = read_event_lines(folder / "events.jsonl", (b'"Stepped"',))
    if search.checkpoint is None and next(steps, None) is not None:
        notes.append("there is no checkpoint: the run begins anew")
    return search.checkpoint, notes
