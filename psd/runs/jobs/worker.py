"""Jobs: one thread a device takes presets from a queue, drives their events into run folders, and listens to its users.

Knows neither models nor the algorithm (`psd.runs.jobs.drive.MakeEvents`).  What consumers get are the stored events:
arrays are dropped once they are in files, and the rest is read from there (`psd.runs.jobs.event_log`), so a long run
costs little memory. ``owner`` is the secret of the browser or script that asks (`psd.runs.store.retention`): it may
steer its own runs, anybody may watch.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Finished
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents, Screen, drive_run
from psd.runs.jobs.estimate import Pacer, RunEstimate, measure_warm_up, workload_key
from psd.runs.jobs.event_log import EventLog
from psd.runs.store import ownership, retention
from psd.runs.store.archive import (
    Run,
    Status,
    default_root,
    find_run,
    history_offsets,
    latest_checkpoint,
    list_runs,
    read_preset,
)
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder

LOG = logging.getLogger(__name__)
MOST_QUEUED = 50
MOST_ZIPS = 8  # that lie ready on the disk
MOST_OVER = 20  # runs that are over and still have their jobs in memory


@dataclass(frozen=True)
class Limits:
    """What one user may take from the others.

    Above ``runs`` or ``total_bytes`` the oldest runs go; never one that is pinned or goes on.  A run that has been
    paused for ``pause_s`` while others wait for its device is stopped, keeping what it reached.
    """

    runs: int = 500
    total_bytes: float = 20 * 2**30
    pause_s: float = 15 * 60


@dataclass(frozen=True)
class JobSnapshot:
    """A job as a consumer sees it at one moment."""

    id: str
    folder: Path
    preset: Preset
    status: Status
    events: int  # how many there are; `Worker.events_since` takes an index below it
    ahead: int  # jobs that go first; 0 when running or over
    wait_s: float | None  # until it starts, from measured speeds; 0 when started, None where one is not known yet
    left_s: float | None  # from its start, or from now on, to its mesh
    live: Mapping[str, Any]
    stopping: bool = False  # it was asked to end, and has not yet


@dataclass
class _Entry:
    folder: RunFolder
    control: Controls
    resume: Checkpointed | None
    log: EventLog
    until: int | None = None
    over: threading.Event = field(default_factory=threading.Event)
    pacer: Pacer = field(default_factory=Pacer)


class Worker:
    """One daemon thread for one device; jobs run first in, first out.  All methods may be called from any thread.

    ``admit`` refuses a preset by raising `PresetError` (a prompt filter); ``screen`` looks at previews before they are
    stored (`psd.runs.jobs.drive.Screen`).  Methods that steer raise `psd.runs.store.ownership.NotYoursError` for a run
    of another owner.
    """

    def __init__(
        self,
        make_events: MakeEvents,
        root: Path | None = None,
        *,
        limits: Limits | None = None,
        admit: Callable[[Preset], None] | None = None,
        screen: Screen | None = None,
    ) -> None:
        self._make_events, self._root = make_events, (root or default_root()).absolute()
        self._limits, self._admit, self._screen = limits or Limits(), admit, screen
        self._entries: dict[str, _Entry] = {}
        self._queue: deque[str] = deque()
        self._changed = threading.Condition()
        self._device = threading.Lock()  # held by whoever computes: a run, or a warm-up
        self._paces: dict[Hashable, RunEstimate] = {}
        self._zips = TemporaryDirectory(prefix="psd-zip-")
        self._zipping = threading.Lock()  # nobody clears away what another is still writing
        self._closing = False
        self._delete_oldest()
        self._thread = threading.Thread(target=self._work_queue, name="psd-worker", daemon=True)
        self._thread.start()

    # ---- start

    def submit(self, preset: Preset, resume: Path | None = None, owner: str = "", until: int | None = None) -> str:
        """Queue a run, or the rest of an earlier one from its newest checkpoint; returns the run's id at once.

        ``until`` stops it after that step; `extend` by nothing then goes on with the run that was planned, bit for bit.
        Raises PresetError for a prompt that is not admitted, and StoreError when the queue or the disk is full, the
        folder cannot be made, or another process writes it.
        """
        self._require_place()
        if self._admit is not None:
            self._admit(preset)
        retention.require_room(self._root)
        folder = RunFolder.create(preset, self._root) if resume is None else RunFolder.open(resume, preset)
        try:
            checkpoint, log = None, EventLog(folder.path)
            if resume is None:
                ownership.claim_run(folder.path, owner)
            else:
                checkpoint = latest_checkpoint(resume)
                earlier = self._entries.get(folder.id)  # whose consumers go on counting
                if earlier:
                    log = earlier.log
                    log.catch_up()  # a mesh that was made again meanwhile
                else:
                    log = EventLog(folder.path, history_offsets(resume, checkpoint))
                folder.set_state("queued")
            with self._changed:
                self._require_place()  # others have come, or the end, while files were read and written
                self._entries.pop(folder.id, None)
                self._entries[folder.id] = _Entry(folder, Controls(preset), checkpoint, log, until)
                self._queue.append(folder.id)
                self._changed.notify_all()
        except BaseException:
            folder.discard() if resume is None else folder.close()
            raise
        return folder.id

    def extend(self, run_id: str, steps: int = 0, owner: str = "") -> None:
        """Go on with a run that is over or was interrupted, with ``steps`` more past its planned end.

        The schedules of noise levels and learning rates stay at their last values there (``Preset.extra_steps``), so
        on a CPU the result is that of a run which was planned as long.
        """
        folder = self.folder(run_id)
        ownership.require_owner(folder, owner)
        if (entry := self._entries.get(run_id)) and not entry.over.is_set():
            raise PresetError("the run is still going: extend it when it is over")
        preset = read_preset(folder, to_resume=True)
        preset = preset.with_values({"extra_steps": preset.extra_steps + steps})
        checkpoint = latest_checkpoint(folder)
        if checkpoint and checkpoint.step >= preset.total_steps and not steps:
            raise PresetError(f"the run has done all of its {checkpoint.step} steps: say how many more")
        self.submit(preset, resume=folder)

    def estimate(self, preset: Preset) -> RunEstimate | None:
        """The pace of runs like ``preset``: known from an earlier one, else from a warm-up of a few seconds.

        None while the device is busy with something else: call it in a thread, and again later.  Raises PresetError
        for what cannot run or is not admitted.  A warm-up makes way for a run that is submitted.
        """
        if self._admit is not None:
            self._admit(preset)
        if (known := self._paces.get(workload_key(preset))) or not self._device.acquire(blocking=False):
            return known
        try:
            pace = measure_warm_up(self._make_events, preset, unless=self._is_wanted)
            if pace is not None:
                self._paces[workload_key(preset)] = pace
            return pace
        finally:
            self._device.release()

    # ---- steer

    def stop(self, run_id: str, owner: str = "") -> None:
        """End a run after its current step, keeping and exporting what it reached; a queued one leaves the queue."""
        self._owned_entry(run_id, owner)
        with self._changed:
            self._stop(run_id)

    def pause(self, run_id: str, owner: str = "") -> None:
        """Hold a run between two events; it keeps its memory and its place (`Limits.pause_s`)."""
        self._owned_entry(run_id, owner).control.pause()

    def resume(self, run_id: str, owner: str = "") -> None:
        entry = self._owned_entry(run_id, owner)
        entry.pacer = Pacer()  # the pause was no work
        entry.control.resume()

    def change(self, run_id: str, values: Mapping[str, Any], owner: str = "") -> None:
        """Move live sliders of a run (`Controls.change`); they hold from its next step on."""
        self._owned_entry(run_id, owner).control.change(values)

    # ---- watch

    def events_since(self, run_id: str, index: int = 0, most: int | None = None) -> list[Event]:
        """Events from ``index`` on, the first ``most`` of them, without arrays; every consumer keeps its own index."""
        return self._find_entry(run_id).log.read_since(index, most)

    def wait(self, run_id: str, index: int = 0, timeout_s: float | None = None) -> list[Event]:
        """`events_since`, but wait until there is one, the run is over, or the time is up."""
        entry = self._find_entry(run_id)
        with self._changed:
            self._changed.wait_for(lambda: len(entry.log) > index or entry.over.is_set(), timeout_s)
        return entry.log.read_since(index)

    def snapshot_job(self, run_id: str) -> JobSnapshot:
        entry = self._find_entry(run_id)
        with self._changed:
            first = [self._entries[key] for key in self._jobs_before(run_id)]
            waits = [self._left_s(other) for other in first]
            folder = entry.folder
            return JobSnapshot(
                folder.id, folder.path, folder.preset, folder.status, len(entry.log), len(first),
                None if None in waits else sum(filter(None, waits), 0.0), self._left_s(entry), entry.control.live(),
                entry.control.stopping() and not entry.over.is_set(),
            )  # fmt: skip

    def list_jobs(self) -> list[JobSnapshot]:
        """The jobs of this worker that go on or ended lately, in the order of submission."""
        with self._changed:
            return [self.snapshot_job(run_id) for run_id in self._entries]

    # ---- the shelf

    def folder(self, run_id: str) -> Path:
        """The folder of any run under the root; raises StoreError for an id that is none."""
        return find_run(run_id, self._root)

    def runs(self, owner: str = "") -> list[Run]:
        """All runs under the root, newest first; with an ``owner`` only theirs."""
        runs = list_runs(self._root)
        return [run for run in runs if ownership.is_owner(run.folder, owner)] if owner else runs

    def is_steerable_by(self, run_id: str, owner: str) -> bool:
        """Whether ``owner`` may steer the run."""
        try:
            ownership.require_owner(self.folder(run_id), owner)
        except StoreError:
            return False
        return True

    def pin_run(self, run_id: str, pinned: bool, owner: str = "") -> None:
        """Keep a run whatever the limits say, or no longer."""
        folder = self.folder(run_id)
        ownership.require_owner(folder, owner)
        retention.pin_run(folder, pinned)

    def delete(self, run_id: str, owner: str = "") -> None:
        """Remove a run for good; raises StoreError while it goes on."""
        folder = self.folder(run_id)
        ownership.require_owner(folder, owner)
        retention.delete_run(folder)
        with self._zipping:
            self._zip_path(folder).unlink(missing_ok=True)
        with self._changed:
            self._entries.pop(run_id, None)

    def zip_run(self, run_id: str) -> Path:
        """A run as one file (`psd.runs.store.retention.zip_run`), made anew; it goes with the run, or after `MOST_ZIPS`
        newer ones.
        """
        folder = self.folder(run_id)
        with self._zipping:
            made = retention.zip_run(folder, self._zip_path(folder))
            for old in sorted(made.parent.glob("*.zip"), key=lambda path: path.stat().st_mtime)[:-MOST_ZIPS]:
                old.unlink()
        return made

    def shutdown(self, timeout_s: float = 30.0) -> bool:
        """Stop everything, keeping results; False when the current step did not end in time."""
        with self._changed:
            self._closing = True
            for run_id in list(self._queue):
                self._stop(run_id)
            for entry in self._entries.values():
                entry.control.stop()
            self._changed.notify_all()
        self._thread.join(timeout_s)
        self._zips.cleanup()
        return not self._thread.is_alive()

    # ---- inside

    def _zip_path(self, folder: Path) -> Path:
        return Path(self._zips.name) / f"{folder.name}.zip"

    def _require_place(self) -> None:
        if self._closing:
            raise RuntimeError("the worker has been shut down: make a new one")
        if len(self._queue) >= MOST_QUEUED:
            raise StoreError(f"{MOST_QUEUED} runs are waiting already", "try again when some of them are done")

    def _find_entry(self, run_id: str) -> _Entry:
        try:
            return self._entries[run_id]
        except KeyError:
            raise StoreError(f"no job {run_id[:80]!r} here", "choose one of the list of jobs") from None

    def _owned_entry(self, run_id: str, owner: str) -> _Entry:
        entry = self._find_entry(run_id)
        ownership.require_owner(entry.folder.path, owner)
        return entry

    def _jobs_before(self, run_id: str) -> list[str]:
        """The jobs that go first, the running one included."""
        if run_id not in self._queue:
            return []
        running = [key for key, other in self._entries.items() if not other.over.is_set() and key not in self._queue]
        return running + list(self._queue)[: self._queue.index(run_id)]

    def _left_s(self, entry: _Entry) -> float | None:
        """Seconds of work to its mesh: by its own speed, else by that of an earlier run of its shape."""
        if entry.over.is_set():
            return 0.0
        known = self._paces.get(workload_key(entry.folder.preset))
        own = entry.pacer.run_estimate
        pace = RunEstimate(own.step_s, known.end_s if known else 0.0) if own else known
        return pace.left_s(entry.folder.preset, entry.folder.status.step, entry.until) if pace else None

    def _stop(self, run_id: str) -> None:
        entry = self._entries[run_id]
        entry.control.stop()
        if run_id in self._queue:
            self._queue.remove(run_id)
            end = Finished(step=entry.folder.status.step, reason="stopped")
            for event in drive_run(lambda *_: iter([end]), entry.folder, entry.control):
                self._record_event(entry, event)
            self._end(entry)

    def _work_queue(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                entry = self._entries[self._queue.popleft()]
            with self._device:
                events = drive_run(
                    self._make_events, entry.folder, entry.control, entry.resume, self._screen, entry.until,
                    self._give_way,
                )  # fmt: skip
                for event in events:
                    self._record_event(entry, event)
            entry.resume = None  # its tensors are not needed any more
            with self._changed:
                self._end(entry)
            self._delete_oldest([entry.folder.id])

    def _give_way(self, paused_s: float) -> str:
        if paused_s < self._limits.pause_s or not self._queue:
            return ""
        return (
            f"Paused for {paused_s / 60:.0f} minutes while others wait for the device: stopped, with all that it "
            "reached. It can go on from there whenever you like"
        )

    def _is_wanted(self) -> bool:
        """Whether a run waits for the device, or the end."""
        with self._changed:
            return self._closing or not all(entry.over.is_set() for entry in self._entries.values())

    def _delete_oldest(self, spare: Sequence[str] = ()) -> None:
        try:
            retention.delete_oldest(self._root, self._limits.runs, self._limits.total_bytes, spare)
        except (OSError, StoreError) as error:  # the runs that wait do not depend on it
            LOG.warning("no room could be made in %s: %s", self._root, error)

    def _record_event(self, entry: _Entry, event: Event) -> None:
        entry.pacer.add(event)
        with self._changed:
            entry.log.add(event)
            self._changed.notify_all()

    def _end(self, entry: _Entry) -> None:
        entry.folder.close()
        if (pace := entry.pacer.run_estimate) and pace.end_s:
            self._paces[workload_key(entry.folder.preset)] = pace
        entry.over.set()
        over = [run_id for run_id, other in self._entries.items() if other.over.is_set()]
        for run_id in over[:-MOST_OVER]:
            del self._entries[run_id]  # its folder tells the rest
        self._changed.notify_all()
