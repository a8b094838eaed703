"""Jobs: one thread a device takes presets from a queue, drives their events into run folders, and listens to its users.

Knows neither models nor the algorithm: ``make_events(preset, control, resume)`` returns any iterator of events.  What
consumers get are the stored events: arrays are dropped once they are in files, so a long run costs no memory.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from psd.archive import ACTIVE, Status, latest_checkpoint
from psd.events import Checkpointed, Event, Failed, Finished, Meshed, Previewed
from psd.files import StoreError
from psd.preset import Preset, PresetError
from psd.store import RunFolder


class Controls:
    """The hand on the controls of one run (`psd.protocols.Control`), safe to use from any thread."""

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._live: dict[str, Any] = {}
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._going = threading.Event()
        self._going.set()

    def live(self) -> Mapping[str, Any]:
        return self._live  # replaced as a whole, never changed

    def change(self, values: Mapping[str, Any]) -> None:
        """Move live sliders; raises PresetError for a field that is not live or a value that is out of bounds."""
        for name in values:
            if name not in LIVE_FIELDS:
                raise PresetError(f"{name} cannot change during a run; these can: {', '.join(LIVE_FIELDS)}")
        with self._changing:
            checked = self._preset.changed({**self._live, **values})
            self._live = {name: getattr(checked, name) for name in {**self._live, **values}}

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
            self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def wait_while_paused(self) -> None:
        self._going.wait()


LIVE_FIELDS = tuple(name for name, info in Preset.model_fields.items() if (info.json_schema_extra or {}).get("live"))  # type: ignore[union-attr]

MakeEvents = Callable[[Preset, Controls, Checkpointed | None], Iterator[Event]]


def drive(
    make_events: MakeEvents, folder: RunFolder, control: Controls, resume: Checkpointed | None = None
) -> Iterator[Event]:
    """Run to the end, yielding each event as stored.

    An exception of the run or of the store becomes a Failed with a cure, its traceback in log.txt; whatever was
    written before stays.  A pause holds the run between two events.  Only BaseExceptions such as KeyboardInterrupt
    pass through.
    """
    step, time_s = (resume.step, resume.time_s) if resume else (0, 0.0)
    try:
        events = make_events(folder.preset, control, resume)
        while (event := next(events, None)) is not None:
            step, time_s = event.step, event.time_s
            yield folder.write(event)
            if control.paused:
                folder.set_state("paused")
                control.wait_while_paused()
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
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        message, cure = f"out of memory: {message}", "lower render_size, ray_samples, grid_size or candidates"
    elif not cure and not isinstance(error, PresetError):
        message, cure = f"{type(error).__name__}: {message}", "log.txt in the run folder has the details"
    text = "".join(traceback.format_exception(error))
    return Failed(step=step, time_s=time_s, message=message, cure=cure, traceback=text)


def _record_failure(folder: RunFolder, event: Failed) -> Event:
    """Store a failure; on a full disk the consumers at least hear of it."""
    try:
        return folder.write(event)
    except StoreError as error:
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


@dataclass(frozen=True)
class Job:
    """A job as a consumer sees it at one moment."""

    id: str
    folder: Path
    preset: Preset
    status: Status
    events: int  # how many there are; `Worker.events_since` takes an index below it
    ahead: int  # jobs that go first; 0 when running or over
    live: Mapping[str, Any]


@dataclass
class _Entry:
    folder: RunFolder
    control: Controls
    resume: Checkpointed | None
    events: list[Event] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


class Worker:
    """One daemon thread for one device; jobs run first in, first out.  All methods may be called from any thread."""

    def __init__(self, make_events: MakeEvents, root: Path | None = None) -> None:
        self._make_events, self._root = make_events, root
        self._entries: dict[str, _Entry] = {}
        self._queue: deque[str] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="psd-worker", daemon=True)
        self._thread.start()

    def submit(self, preset: Preset, resume: Path | None = None) -> str:
        """Queue a run, or the rest of an earlier one from its newest checkpoint; returns the run's id at once.

        Raises StoreError when the folder cannot be made or another process writes it.
        """
        folder = RunFolder.open(resume, preset) if resume else RunFolder.create(preset, self._root)
        checkpoint = latest_checkpoint(resume) if resume else None
        with self._changed:
            if self._closing:
                folder.close()
                raise RuntimeError("the worker has been shut down: make a new one")
            folder.set_state("queued")
            self._entries[folder.id] = _Entry(folder, Controls(preset), checkpoint)
            self._queue.append(folder.id)
            self._changed.notify_all()
        return folder.id

    def stop(self, run_id: str) -> None:
        """End a run after its current step, keeping and exporting what it reached; a queued one leaves the queue."""
        entry = self._entry(run_id)
        entry.control.stop()
        with self._changed:
            if run_id in self._queue:
                self._queue.remove(run_id)
                end = Finished(step=entry.folder.status.step, reason="stopped")
                for event in drive(lambda *_: iter([end]), entry.folder, entry.control):
                    self._record(entry, event)
                self._end(entry)

    def pause(self, run_id: str) -> None:
        """Hold a run between two events; it keeps its memory and its place."""
        self._entry(run_id).control.pause()

    def resume(self, run_id: str) -> None:
        self._entry(run_id).control.resume()

    def change(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Move live sliders of a run (`Controls.change`); they hold from its next step on."""
        self._entry(run_id).control.change(values)

    def events_since(self, run_id: str, index: int = 0) -> list[Event]:
        """Events from ``index`` on, without arrays; any number of consumers keep their own index."""
        return self._entry(run_id).events[index:]

    def wait(self, run_id: str, index: int = 0, timeout_s: float | None = None) -> list[Event]:
        """`events_since`, but wait until there is one, the run is over, or the time is up."""
        entry = self._entry(run_id)
        with self._changed:
            self._changed.wait_for(lambda: len(entry.events) > index or entry.over.is_set(), timeout_s)
        return entry.events[index:]

    def snapshot(self, run_id: str) -> Job:
        entry = self._entry(run_id)
        with self._changed:
            running = sum(not other.over.is_set() and key not in self._queue for key, other in self._entries.items())
            ahead = running + self._queue.index(run_id) if run_id in self._queue else 0
            folder = entry.folder
            return Job(
                folder.id, folder.path, folder.preset, folder.status, len(entry.events), ahead, entry.control.live()
            )

    def jobs(self) -> list[Job]:
        """All jobs of this worker, in the order of submission."""
        return [self.snapshot(run_id) for run_id in list(self._entries)]

    def shutdown(self, timeout_s: float = 30.0) -> bool:
        """Stop everything, keeping results; False when the current step did not end in time."""
        with self._changed:
            self._closing = True
            waiting = list(self._queue)
        for run_id in waiting:
            self.stop(run_id)
        for entry in self._entries.values():
            entry.control.stop()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _entry(self, run_id: str) -> _Entry:
        try:
            return self._entries[run_id]
        except KeyError:
            raise StoreError(f"no job {run_id[:80]!r} here", "choose one of the list of jobs") from None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                entry = self._entries[self._queue.popleft()]
            for event in drive(self._make_events, entry.folder, entry.control, entry.resume):
                self._record(entry, event)
            entry.resume = None  # its tensors are not needed any more
            with self._changed:
                self._end(entry)

    def _record(self, entry: _Entry, event: Event) -> None:
        with self._changed:
            entry.events.append(light(event))
            self._changed.notify_all()

    def _end(self, entry: _Entry) -> None:
        entry.folder.close()
        entry.over.set()
        self._changed.notify_all()
