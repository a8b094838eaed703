"""Runs as the pages see them: live ones from the worker, others from their folders, each folded once for everybody."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from psd.archive import find_run, list_runs, read_status, replay
from psd.events import Event, Started
from psd.files import StoreError
from psd.pictures import decode_views
from psd.ui.page import Watched
from psd.ui.view import View, fold
from psd.worker import Job, Worker, light

KEPT = 32  # runs whose views stay in memory: those that somebody looked at last


@dataclass
class _Memory:
    view: View = View()
    index: int = 0  # events of a live run folded so far
    told: tuple[str, str] | None = None  # state and time of a stored run when it was read
    shots: int | None = None  # views in a preview's file


class Watcher:
    """Folds the events of every run once, however many pages look at it; safe to use from any thread."""

    def __init__(self, worker: Worker, root: Path | None = None) -> None:
        self._worker, self._root = worker, root
        self._memories: OrderedDict[str, _Memory] = OrderedDict()
        self._stopping: set[str] = set()
        self._lock = threading.Lock()

    def folder(self, run_id: str) -> Path:
        """Where the run is; raises StoreError for an id that is no run."""
        try:
            return self._worker.snapshot(run_id).folder
        except StoreError:
            return find_run(run_id, self._root)

    def watched(self, run_id: str) -> Watched:
        """The run as it stands now; raises StoreError for an id that is no run."""
        try:
            job = self._worker.snapshot(run_id)
        except StoreError:
            job = None
        folder = job.folder if job else find_run(run_id, self._root)
        with self._lock:
            if run_id not in self._memories:
                gr.set_static_paths(folder / "public")  # nothing else of a run is served
            memory = self._memories.setdefault(run_id, _Memory())
            self._memories.move_to_end(run_id)
            while len(self._memories) > KEPT:
                self._memories.popitem(last=False)
            return self._live(job, memory) if job else self._stored(run_id, folder, memory)

    def listed(self) -> list[tuple[str, str]]:
        """Id and one line for every run, newest first."""
        found = []
        for run in list_runs(self._root):
            status = run.status
            seed = run.id.split("_s")[-1].split("_")[0]
            found.append((run.id, f"{status.prompt} · seed {seed} · {status.state} · {run.id[4:13]}"))
        return found

    def stop(self, run_id: str) -> None:
        """End a live run after its current step; raises StoreError when it is not one of this worker's."""
        self._worker.stop(run_id)
        self._stopping.add(run_id)

    def _live(self, job: Job, memory: _Memory) -> Watched:
        for event in self._worker.events_since(job.id, memory.index):
            if memory.index == 0 and isinstance(event, Started) and event.step:  # resumed: what was before is stored
                memory.view = folded(before_the_last_start(list(replay(job.folder, images=False))))
            memory.view = fold(memory.view, event)
            memory.index += 1
        state, view = job.status.state, memory.view
        if state in ("finished", "stopped", "failed"):
            if view.reason:
                return self._stored(job.id, job.folder, memory)
            state = "running"  # the status is written a moment before its event is told: the page must not miss it
        if state == "queued" and not job.ahead:
            state = "loading"
        elif state == "running" and job.id in self._stopping:
            state = "stopping"
        elif state == "running" and view.step >= view.total_steps:
            state = "meshing"
        return Watched(
            job.id, job.folder, state, job.status.message, job.preset.prompt, job.preset.method, job.preset.seed, view,
            self._shots(job.folder, memory), resident_bytes(), job.ahead,
        )  # fmt: skip

    def _stored(self, run_id: str, folder: Path, memory: _Memory) -> Watched:
        """From its folder, read again when somebody has written there since."""
        status = read_status(folder)
        if memory.told != (status.state, status.updated):
            memory.view, memory.told = folded(replay(folder, images=False)), (status.state, status.updated)
        preset = memory.view.preset
        return Watched(
            run_id, folder, status.state, status.message, status.prompt, preset.get("method", ""), preset.get("seed"),
            memory.view, self._shots(folder, memory),
        )  # fmt: skip

    @staticmethod
    def _shots(folder: Path, memory: _Memory) -> int:
        preview = memory.view.previews.last
        if memory.shots is None and preview and preview.file and (folder / preview.file).is_file():
            memory.shots = len(decode_views(folder / preview.file))
        return memory.shots or 4


def folded(events: Iterable[Event]) -> View:
    view = View()
    for event in events:
        view = fold(view, light(event))
    return view


def before_the_last_start(events: list[Event]) -> list[Event]:
    starts = [index for index, event in enumerate(events) if isinstance(event, Started)]
    return events[: starts[-1]] if starts else events


def resident_bytes() -> int:
    """Memory of this process; 0 where the system has no /proc to ask."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
