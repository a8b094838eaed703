"""Jobs: one thread a device takes presets from a queue, drives their events into run folders, and listens to its users.

Knows neither models nor the algorithm (`psd.runs.jobs.drive.MakeEvents`).  What consumers get are the stored events:
arrays are dropped once they are in files, and the rest is read from there (`psd.runs.jobs.event_log`), so a long run
costs little memory. ``owner`` is the secret of the browser or script that asks (`psd.runs.store.ownership`): it may
steer its own runs, anybody may watch.  The runs that are over are the library's (`Worker.library`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Event, Finished
from psd.runs.jobs import drive
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents, Screen, drive_run
from psd.runs.jobs.estimate import Pacer, RunEstimate, measure_warm_up, workload_key
from psd.runs.jobs.event_log import EventLog
from psd.runs.jobs.job import Job, JobSnapshot
from psd.runs.jobs.orbit import Camera, OrbitPicture
from psd.runs.jobs.queue import FairQueue, drop_place, list_saved_places, save_place
from psd.runs.store import ownership
from psd.runs.store.archive import find_checkpoint, history_offsets, read_preset
from psd.runs.store.files import StoreError, is_locked
from psd.runs.store.folder import RunFolder
from psd.runs.store.library import SHOWCASE, Library
from psd.runs.store.retention import Limits

LOG = logging.getLogger(__name__)
MOST_QUEUED = 200  # runs that wait
MOST_OF_ONE = 20  # of these, of one owner
RETRY_S = 20.0  # between two tries to write a state that a full disk refused
MOST_OVER = 20  # runs that are over and still have their jobs in memory


class Worker:
    """One daemon thread for one device; owners take turns (`FairQueue`).  All methods may be called from any thread.

    Whatever a job raises, the job fails and the next one goes on.  Runs that waited when an earlier server of the same
    root was killed wait again.

    ``admit`` refuses a preset by raising `PresetError` (a prompt filter); ``screen`` looks at previews before they are
    stored (`psd.runs.jobs.drive.Screen`).  ``shipped``: see `Library`.  Methods that steer raise
    `psd.runs.store.ownership.NotYoursError` for a run of another owner.
    """

    def __init__(
        self, make_events: MakeEvents, root: Path | None = None, *, limits: Limits | None = None,
        admit: Callable[[Preset], None] | None = None, screen: Screen | None = None, shipped: Path = SHOWCASE,
    ) -> None:  # fmt: skip
        self._make_events, self._admit, self._screen = make_events, admit, screen
        self._limits = limits or Limits()
        self._unsaved: list[RunFolder] = []  # whose last state a full disk refused
        self.library = Library(
            root, self._limits, self._forget_run, lambda: {run.id: run.status for run in self._unsaved}, shipped
        )
        self._entries: dict[str, Job] = {}
        self._queue, self._closing = FairQueue(), False
        self._changed = threading.Condition()
        self._device = threading.Lock()  # held by whoever computes: a run, or a warm-up
        self._paces: dict[Hashable, RunEstimate] = {}
        self.library.make_room()
        self._thread = threading.Thread(target=self._work_queue, name="psd-worker", daemon=True)
        self._restore_queue()
        self._thread.start()

    # ---- start

    def submit(
        self, preset: Preset, resume: Path | None = None, owner: str = "", until: int | None = None,
        from_start: bool = False,
    ) -> str:  # fmt: skip
        """Queue a run, or the rest of an earlier one from its newest checkpoint; returns the run's id at once.

        ``until`` stops it after that step; `extend` by nothing then goes on with the run that was planned, bit for bit.
        ``from_start`` allows to begin anew where every checkpoint of the earlier one is lost.
        Raises PresetError for a prompt that is not admitted, and StoreError when the queue or the disk is full, the
        folder cannot be made, its checkpoints are lost, or another process writes it.
        """
        return self._submit(preset, resume, owner, ownership.hash_owner(owner), until, from_start)

    def _submit(
        self, preset: Preset, resume: Path | None, owner: str, digest: str, until: int | None, from_start: bool
    ) -> str:
        self._require_place(digest)
        if self._admit is not None:
            self._admit(preset)
        self.library.require_room()
        folder = RunFolder.create(preset, self.library.root) if resume is None else RunFolder.open(resume, preset)
        try:
            start, checkpoint, log = self.library.find_start(preset), None, EventLog(folder.path)
            if resume is None:
                ownership.claim_run(folder.path, owner)
            else:
                checkpoint, notes = drive.require_checkpoint(folder.path, from_start=from_start)
                folder.notes += notes
                earlier = self._entries.get(folder.id)  # whose consumers go on counting
                if earlier:
                    log = earlier.log
                    log.catch_up()  # a mesh that was made again meanwhile
                else:
                    log = EventLog(folder.path, history_offsets(resume, checkpoint))
            save_place(folder.path, preset.extra_steps, until, digest)
            if resume is not None:
                folder.set_state("queued")
            with self._changed:
                self._require_place(digest)  # others have come, or the end, while files were read and written
                self._entries.pop(folder.id, None)
                self._unsaved = [earlier for earlier in self._unsaved if earlier.id != folder.id]
                self._entries[folder.id] = Job(folder, Controls(preset, start), checkpoint, log, until, digest)
                self._queue.add_run(folder.id, digest)
                self._changed.notify_all()
        except BaseException:
            if resume is None:
                folder.discard()
            else:
                drop_place(folder.path)
                folder.close()
            raise
        return folder.id

    def extend(self, run_id: str, steps: int = 0, owner: str = "", from_start: bool = False) -> None:
        """Go on with a run that is over or was interrupted, with ``steps`` more past its planned end.

        The schedules of noise levels and learning rates stay at their last values there (``Preset.extra_steps``), so
        on a CPU the result is that of a run which was planned as long.  ``from_start``: as in `submit`.
        """
        folder = self.library.require_owner(run_id, owner)
        if (entry := self._entries.get(run_id)) and not entry.over.is_set():
            raise PresetError("the run is still going: extend it when it is over")
        preset = read_preset(folder, to_resume=True)
        preset = preset.with_values({"extra_steps": preset.extra_steps + steps})
        checkpoint = find_checkpoint(folder).checkpoint
        if checkpoint and checkpoint.step >= preset.total_steps and not steps:
            raise PresetError(f"the run has done all of its {checkpoint.step} steps: say how many more")
        self._submit(preset, folder, "", ownership.hash_owner(owner), None, from_start)

    def estimate(self, preset: Preset) -> RunEstimate | None:
        """The pace of runs like ``preset``: known from an earlier one, else from a warm-up of a few seconds.

        None while the device is busy with something else: call it in a thread, and again later.  Raises PresetError
        for what cannot run or is not admitted.  A warm-up makes way for a run that is submitted.
        """
        if self._admit is not None:
            self._admit(preset)
        if (known := self.known_pace(preset)) or self._closing or not self._device.acquire(blocking=False):
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

    def look_at(self, run_id: str, camera: Camera, wait_s: float = 0.0) -> OrbitPicture | None:
        """The scene of a run that goes on from ``camera``, as it was rendered last (`psd.runs.jobs.orbit`)."""
        entry = self._entries.get(run_id)
        return entry.control.orbit.ask(camera, wait_s) if entry and not entry.over.is_set() else None

    def known_pace(self, preset: Preset) -> RunEstimate | None:
        """The pace of earlier runs like ``preset``, at once; None where there was none."""
        return self._paces.get(workload_key(preset))

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

    # ---- the end

    def shutdown(self, timeout_s: float = 30.0) -> bool:
        """Stop everything, keeping results; False when the current step did not end in time."""
        with self._changed:
            self._closing = True
            for run_id in self._queue:
                self._stop(run_id)
            for entry in self._entries.values():
                entry.control.stop()
            self._changed.notify_all()
        self._thread.join(timeout_s)
        # A warm-up ends between two events.  A thread that is still in torch when Python goes aborts the process.
        if is_over := not self._thread.is_alive() and self._device.acquire(timeout=timeout_s):
            self._device.release()
        self.library.close()
        return is_over

    # ---- inside

    def _restore_queue(self) -> None:
        """Queue the runs again that waited when an earlier server was killed; nothing runs yet."""
        for folder, place in list_saved_places(self.library.root):
            if is_locked(folder / "lock"):
                continue  # it waits in another server
            try:
                preset = read_preset(folder, to_resume=True).with_values({"extra_steps": place.extra_steps})
                self._submit(preset, folder, "", place.owner, place.until, from_start=False)
            except (PresetError, StoreError) as error:
                LOG.warning("the run %s waited and cannot be queued again: %s", folder.name, error)
                drop_place(folder)
            else:
                LOG.warning("the run %s waited when the server died: it waits again", folder.name)

    def _require_place(self, owner: str) -> None:
        if self._closing:
            raise RuntimeError("the worker has been shut down: make a new one")
        if self._thread.ident is not None and not self._thread.is_alive():
            raise RuntimeError("the worker's thread is dead: start the server anew, the queue is kept")
        if len(self._queue) >= MOST_QUEUED:
            raise StoreError(f"{MOST_QUEUED} runs are waiting already", "try again when some of them are done")
        if self._queue.count_of(owner) >= MOST_OF_ONE:
            cure = "try again when some of them are done, or stop some"
            raise StoreError(f"{MOST_OF_ONE} of your runs are waiting already", cure)

    def _find_entry(self, run_id: str) -> Job:
        try:
            return self._entries[run_id]
        except KeyError:
            cure = "ask for its state: it is over, or another process drives it"
            raise StoreError(f"no job {run_id[:80]!r} on this server", cure) from None

    def _owned_entry(self, run_id: str, owner: str) -> Job:
        entry = self._find_entry(run_id)
        ownership.require_owner(entry.folder.path, owner)
        return entry

    def _jobs_before(self, run_id: str) -> list[str]:
        """The jobs that go first, the running one included."""
        if run_id not in self._queue:
            return []
        running = [key for key, other in self._entries.items() if not other.over.is_set() and key not in self._queue]
        return running + self._queue.list_before(run_id)

    def _left_s(self, entry: Job) -> float | None:
        """Seconds of work to its mesh: by its own speed, else by that of an earlier run of its shape."""
        if entry.over.is_set():
            return 0.0
        pace, own = self._paces.get(workload_key(entry.folder.preset)), entry.pacer.run_estimate
        if own:
            pace = pace or RunEstimate({})
            pace = replace(pace, step_s={**pace.step_s, **own.step_s}, begin_s={**pace.begin_s, **own.begin_s})
        return pace.left_s(entry.folder.preset, entry.folder.status.step, entry.until) if pace else None

    def _stop(self, run_id: str) -> None:
        entry = self._entries[run_id]
        entry.control.stop()
        if run_id not in self._queue:
            return
        self._queue.remove_run(run_id)
        end = Finished(step=entry.folder.status.step, time_s=entry.folder.status.time_s, reason="stopped")
        try:
            if entry.folder.was_over:  # it stays what it was
                entry.folder.undo_state()
                self._record_event(entry, end)
            else:
                for event in drive_run(lambda *_: iter([end]), entry.folder, entry.control):
                    self._record_event(entry, event)
        except StoreError as error:
            LOG.warning("the state of the run %s could not be written: %s", run_id, error)
        finally:
            self._end(entry)

    def _work_queue(self) -> None:
        while (entry := self._wait_for_entry()) is not None:
            try:
                with self._device:
                    self._drive_entry(entry)
            except BaseException as error:  # noqa: BLE001 - one failure stays one failure: the thread lives
                self._record_breakdown(entry, error)
            finally:
                entry.resume = None  # its tensors are not needed any more
                entry.control.forget_scene()
                with self._changed:
                    self._end(entry)
            self.library.make_room([entry.folder.id])

    def _wait_for_entry(self) -> Job | None:
        """The run whose turn it is, as soon as there is one; None at the end."""
        while True:
            with self._changed:
                patience_s = RETRY_S if self._unsaved else None
                self._changed.wait_for(lambda: self._queue or self._closing, patience_s)
                if self._queue:
                    return self._entries[self._queue.take_next()]
                if self._closing:
                    return None
            with self._changed:
                self._unsaved = [folder for folder in self._unsaved if not folder.store_status_late()]

    def _drive_entry(self, entry: Job) -> None:
        drop_place(entry.folder.path)
        events = drive_run(
            self._make_events, entry.folder, entry.control, entry.resume, self._screen, entry.until, self._give_way
        )
        for event in events:
            self._record_event(entry, event)

    def _record_breakdown(self, entry: Job, error: BaseException) -> None:
        """A job ended by what `drive_run` lets through, or could not tell: it has failed, and says so if it can."""
        LOG.error("the run %s broke down", entry.folder.id, exc_info=error)
        try:
            status = entry.folder.status
            failure = drive.describe_failure(error, status.step, status.time_s)
            self._record_event(entry, drive.record_failure(entry.folder, failure))
        except Exception:  # the next run does not depend on it
            LOG.exception("the end of the run %s could not be written", entry.folder.id)
            entry.folder.status = replace(entry.folder.status, state="failed", message=str(error))

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

    def _forget_run(self, run_id: str) -> None:
        """Its folder was deleted."""
        with self._changed:
            self._entries.pop(run_id, None)

    def _record_event(self, entry: Job, event: Event) -> None:
        entry.pacer.add(event)
        with self._changed:
            entry.log.add(event)
            self._changed.notify_all()

    def _end(self, entry: Job) -> None:
        entry.over.set()
        if not entry.folder.is_status_stored:
            self._unsaved.append(entry.folder)  # before its lock is gone: nobody may take it for interrupted
        try:
            drop_place(entry.folder.path)
            entry.folder.close()
        except OSError as error:
            LOG.warning("the run %s could not be closed: %s", entry.folder.id, error)
        if (pace := entry.pacer.run_estimate) and pace.end_s:
            self._paces[workload_key(entry.folder.preset)] = pace
        over = [run_id for run_id, other in self._entries.items() if other.over.is_set()]
        for run_id in over[:-MOST_OVER]:
            del self._entries[run_id]  # its folder tells the rest
        self._changed.notify_all()
