"""One run: its hand on the controls, and the road of its events into its folder.

Knows neither models nor the algorithm: ``make_events(preset, control, resume)`` returns any iterator of events.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from psd.archive import ACTIVE, changes_since
from psd.events import Checkpointed, Event, Failed, Meshed, Previewed, Warned
from psd.files import StoreError
from psd.memory import is_out_of_memory
from psd.preset import Preset, PresetError
from psd.store import RunFolder


class Controls:
    """The hand on the controls of one run (`psd.protocols.Control`), safe to use from any thread."""

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._live: Mapping[str, Any] = {}  # replaced as a whole, never changed
        self._replayed: Mapping[str, Any] = {}
        self._to_replay: Sequence[tuple[int, Mapping[str, Any]]] = ()
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self.pauses = 0  # how many there were

    def live(self) -> Mapping[str, Any]:
        return {**self._replayed, **self._live}

    def change(self, values: Mapping[str, Any]) -> None:
        """Move live sliders; raises PresetError for a field that is not live or a value that is out of bounds."""
        for name in values:
            if name not in LIVE_FIELDS:
                raise PresetError(f"{name} cannot change during a run; these can: {', '.join(LIVE_FIELDS)}")
        with self._changing:
            checked = self._preset.changed({**self._live, **values})
            self._live = {name: getattr(checked, name) for name in {**self._live, **values}}

    def replay(self, changes: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Make earlier changes again, each (step, values) when the run has `reached` its step.

        What the user changes in the meantime goes over them.
        """
        self._to_replay = changes

    def reached(self, step: int) -> None:
        """The run has completed ``step`` steps."""
        while self._to_replay and self._to_replay[0][0] <= step:
            (_, values), *self._to_replay = self._to_replay
            self._replayed = {**self._replayed, **values}

    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ask for the end: the run still exports what it has."""
        self._stopping.set()
        self._going.set()

    @property
    def paused(self) -> bool:
        return not self._going.is_set()

    def pause(self) -> None:
        if not self.stopping():
            self.pauses += 1
            self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def wait_while_paused(self, timeout_s: float) -> bool:
        """Whether the run goes on, as soon as it does; False when the time is up."""
        return self._going.wait(timeout_s)


LIVE_FIELDS = tuple(name for name, info in Preset.model_fields.items() if (info.json_schema_extra or {}).get("live"))  # type: ignore[union-attr]

MakeEvents = Callable[[Preset, Controls, Checkpointed | None], Iterator[Event]]
Screen = Callable[[Previewed], str]  # what is wrong with the pictures, in words; empty: nothing
GiveWay = Callable[[float], str]  # why a run paused for so many seconds must end, in words; empty: it may stay
PAUSE_POLL_S = 1.0
LOG = logging.getLogger(__name__)


class RefusedError(RuntimeError):
    """The image filter said no."""

    cure = "choose another prompt; what was made before is kept"


def drive(
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
        control.replay(changes_since(folder.path, step))
        events = make_events(folder.preset, control, resume)
        while (event := next(events, None)) is not None:
            step, time_s = event.step, event.time_s
            control.reached(step)
            if screen is not None and isinstance(event, Previewed) and (reason := screen(event)):
                LOG.warning("run %s, step %d: a preview was refused: %s", folder.id, step, reason)
                raise RefusedError(f"a picture was refused at step {step}: {reason}")
            yield (stored := folder.write(event))
            for note in stored.notes if isinstance(stored, Meshed) else ():
                yield folder.write(Warned(step=step, time_s=time_s, message=note))
            if until is not None and step >= until:
                control.stop()
            if control.paused:
                folder.set_state("paused")
                since = time.monotonic()
                while not control.wait_while_paused(PAUSE_POLL_S):
                    if reason := give_way(time.monotonic() - since):
                        control.stop()
                        yield folder.write(Warned(step=step, time_s=time_s, message=reason))
                folder.set_state("running")
    except Exception as error:  # noqa: BLE001 - the boundary: everything becomes a Failed that the user sees
        yield _record_failure(folder, failure(error, step, time_s))
    else:
        if folder.status.state in ACTIVE:
            message = "the run ended without saying why"
            yield _record_failure(folder, Failed(step=step, time_s=time_s, message=message, cure="report this"))


def failure(error: Exception, step: int, time_s: float) -> Failed:
    """An exception in words."""
    message, cure = str(error) or type(error).__name__, getattr(error, "cure", "")
    if isinstance(error, StoreError):
        message = message.removesuffix(f": {cure}")
    elif is_out_of_memory(error):
        message, cure = f"out of memory: {message}", "lower render_size, ray_samples, grid_size or candidates"
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


def light(event: Event) -> Event:
    """The event without its arrays, which are in its file."""
    match event:
        case Previewed():
            return replace(event, images={})
        case Checkpointed():
            return replace(event, tensors={}, values={})
        case Meshed():
            return replace(event, mesh=None, turntable=None)
        case _:
            return event
