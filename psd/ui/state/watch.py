"""Runs as the pages see them: live ones from the worker, others from their folders, each folded once for everybody."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import gradio as gr

from psd.distillation.events import without_arrays
from psd.runs.jobs.worker import JobSnapshot, Worker
from psd.runs.store.archive import ACTIVE, Run, read_status, replay_events
from psd.runs.store.files import StoreError
from psd.runs.store.media import decode_views
from psd.runtime.memory import resident_bytes
from psd.ui.markup.html import file_version
from psd.ui.state.page import WatchedRun
from psd.ui.state.view import View, fold_event

LIST_S = 2.0
READ_SHARE = 0.1  # of the time goes at most into reading again what another process writes
PIECE = 512  # events that are read at once: a page that comes late to a long run needs little memory
KEPT = 32  # runs whose views stay in memory: those that somebody looked at last


@cache
def serve_folder(public: Path) -> None:
    """Let Gradio serve the files below a folder; once, since Gradio keeps every mention of it."""
    gr.set_static_paths(public)


@dataclass
class _Memory:
    view: View = View()
    index: int = 0  # events of a live run folded so far
    version: tuple[str, str, int] | None = None  # state, time and event file of a stored run when it was read
    due: float = 0.0  # when a stored run that still grows may be read again
    shots: int | None = None  # views in a preview's file
    folding: threading.Lock = field(default_factory=threading.Lock)  # a long run holds up its own watchers only


class Watcher:
    """Folds the events of every run once, however many pages look at it; safe to use from any thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._memories: OrderedDict[str, _Memory] = OrderedDict()
        self._listed: dict[str, tuple[float, tuple[Run, ...]]] = {}
        self._lock = threading.Lock()
        for run in worker.library.list_runs():  # a link to a mesh must work after a restart of the server
            serve_folder(run.folder / "public")

    def view_run(self, run_id: str) -> WatchedRun:
        """The run as it stands now; raises StoreError for an id that is no run."""
        try:
            job = self._worker.snapshot_job(run_id)
        except StoreError:
            job = None
        folder = job.folder if job else self._worker.library.find_folder(run_id)
        with self._lock:
            if run_id not in self._memories:
                self._memories[run_id] = _Memory()
            memory = self._memories[run_id]
            self._memories.move_to_end(run_id)
            while len(self._memories) > KEPT:
                self._memories.popitem(last=False)
        with memory.folding:
            return self._live(job, memory) if job else self._view_stored(run_id, folder, memory)

    def view_runs(self, run_ids: Iterable[str]) -> tuple[WatchedRun, ...]:
        """Those of them that are there."""
        views = []
        for run_id in run_ids:
            try:
                views.append(self.view_run(run_id))
            except StoreError:  # gone: the others still compare
                continue
        return tuple(views)

    def runs(self, owner: str = "") -> tuple[Run, ...]:
        """All runs, or those of ``owner``, newest first; read again at most every LIST_S seconds."""
        now = time.monotonic()
        with self._lock:
            when, listed = self._listed.get(owner, (0.0, ()))
            if now - when >= LIST_S:
                listed = tuple(self._worker.library.list_runs(owner))
                kept = self._listed if len(self._listed) < KEPT else {}
                self._listed = {**kept, owner: (now, listed)}
            return listed

    def forget_list(self) -> None:
        """Read it anew: something was deleted or pinned."""
        with self._lock:
            self._listed = {}

    def _live(self, job: JobSnapshot, memory: _Memory) -> WatchedRun:
        over = job.status.state in ("finished", "stopped", "failed")
        if over and memory.version:
            return self._view_stored(job.id, job.folder, memory)
        if memory.version:  # it was over and goes on: its events come from the start
            memory.view, memory.index, memory.version = View(), 0, None
        while events := self._worker.events_since(job.id, memory.index, PIECE):
            for event in events:
                memory.view = fold_event(memory.view, event)
            memory.index += len(events)
        state, view = job.status.state, memory.view
        if over and view.reason and read_status(job.folder).state == state:
            return self._view_stored(job.id, job.folder, memory)
        if over and not view.reason:
            state = "running"  # the status is written a moment before its event comes: the page must not miss it
        elif state == "queued" and not job.ahead:
            state = "loading"
        elif state == "running" and job.stopping:
            state = "stopping"
        elif state == "running" and view.step >= view.total_steps:
            state = "meshing"
        return WatchedRun(
            job.id, job.folder, state, job.status.message, job.preset.prompt, job.preset.method, job.preset.seed, view,
            self._count_shots(job.folder, memory), resident_bytes(), job.ahead, job.wait_s, job.left_s,
        )  # fmt: skip

    def _view_stored(self, run_id: str, folder: Path, memory: _Memory) -> WatchedRun:
        """From its folder, read again when somebody has written there since; of a run that grows, now and then."""
        status = self._worker.library.read_status(run_id)
        begun = time.monotonic()
        # The time of a status counts seconds: a mesh that is made again within one changes the event file only.
        version = (status.state, status.updated, file_version(folder / "events.jsonl"))
        grows = memory.version is not None and memory.version[0] == status.state in ACTIVE
        if memory.version != version and (begun >= memory.due or not grows):
            memory.view = View()
            for event in replay_events(folder, images=False):
                memory.view = fold_event(memory.view, without_arrays(event))
            memory.version = version
            memory.due = begun + (time.monotonic() - begun) / READ_SHARE
        return WatchedRun(
            run_id, folder, status.state, status.message, status.prompt, status.method, status.seed, memory.view,
            self._count_shots(folder, memory), is_shipped=self._worker.library.is_shipped(run_id),
        )  # fmt: skip

    @staticmethod
    def _count_shots(folder: Path, memory: _Memory) -> int:
        preview = memory.view.previews.last
        if memory.shots is None and preview and preview.file and (folder / preview.file).is_file():
            try:
                memory.shots = len(decode_views(folder / preview.file))
            except StoreError:  # a damaged picture: the next one tells
                return 4
        return memory.shots or 4
