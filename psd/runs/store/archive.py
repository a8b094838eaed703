"""Reading run folders: listing, replay and checkpoints, all without models.

`psd.runs.store.folder` writes them and draws their layout; any number of processes may read while one writes.  Damage
is passed over as far as the rest allows, and reported: in a Warned, a note, or the log.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, LiveChanged, Previewed, Warned
from psd.runs.store.checkpoints import checkpoint_steps, load_checkpoint, read_seal
from psd.runs.store.event_lines import LineProblems, effective_events, read_event_lines
from psd.runs.store.files import StoreError, expand_path
from psd.runs.store.labels import Labels, read_labels
from psd.runs.store.media import decode_views
from psd.runs.store.resolved import find_difference, read_environment, read_preset
from psd.runs.store.schema import RUN_ID, SCHEMA, NewerSchemaError
from psd.runs.store.status import ACTIVE, Status, read_status

__all__ = [
    "ACTIVE", "RUN_ID", "SCHEMA", "CheckpointSearch", "Run", "Status", "changes_since", "checkpoint_steps",
    "default_root", "find_checkpoint", "find_run", "history_offsets", "latest_checkpoint", "list_runs", "preview_file",
    "read_preset", "read_provenance", "read_status", "replay_events",
]  # fmt: skip
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One entry of `list_runs`."""

    folder: Path
    status: Status

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def is_pinned(self) -> bool:
        """Whether it stays when room is made."""
        return (self.folder / "pinned").is_file()

    @property
    def labels(self) -> Labels:
        return read_labels(self.folder)

    @property
    def last_view(self) -> Path | None:
        """The last preview: views side by side."""
        file = self.folder / self.status.preview
        return file if self.status.preview and file.is_file() else None

    @property
    def thumbnail(self) -> Path | None:
        """The preview that the selector judge liked best, else the last one: views side by side."""
        judged = self.status.best_score is not None
        files = [preview_file(self.status.best_step, "rgb") if judged else "", self.status.preview]
        return next((self.folder / file for file in files if file and (self.folder / file).is_file()), None)


@dataclass(frozen=True)
class CheckpointSearch:
    """The newest checkpoint that is whole and of this run, and why newer ones were passed over, newest first."""

    checkpoint: Checkpointed | None
    passed_over: tuple[str, ...] = ()
    is_lost: bool = False  # there were checkpoints once, and none is left

    @property
    def reasons(self) -> str:
        """Why the newest was not taken, in words; empty where it was."""
        return "; ".join(self.passed_over) or ("its checkpoints are gone" if self.is_lost else "")


def default_root() -> Path:
    """Where runs go: ``PSD_RUNS``, else a writable disk mounted at /data, else ./runs."""
    if chosen := os.environ.get("PSD_RUNS"):
        return expand_path(chosen)
    disk = Path("/data")
    return disk / "runs" if os.path.ismount(disk) and os.access(disk, os.W_OK) else Path("runs")


def read_provenance(folder: Path | str, step: int) -> dict[str, Any]:
    """What a mesh file says about its origin: prompt, seed, step, run, versions and the whole preset."""
    folder, preset = Path(folder), read_preset(folder)
    return {
        "prompt": preset.prompt, "seed": preset.seed, "step": step, "run": folder.name,
        "versions": read_environment(folder), "preset": preset.model_dump(mode="json"),
    }  # fmt: skip


def replay_events(folder: Path | str, *, images: bool = True) -> Iterator[Event]:
    """A run's events again, without models: previews with their images (on demand), the rest by ``file`` only.

    What a resumed run did over comes once, in its last form.  Lines that cannot be read, and previews that are gone or
    damaged, end the stream with one Warned.
    """
    folder = Path(folder)
    status = read_status(folder)
    missing, last = 0, 0
    problems = LineProblems()
    for _, event in effective_events(folder / "events.jsonl", problems):
        last = event.step
        if isinstance(event, Previewed) and images:
            event = replace(event, images=_read_preview(folder, event.step))
            missing += not event.images
        yield event
    if not status.step and not (folder / "events.jsonl").exists():
        return  # nothing has happened yet
    lost = [f"events.jsonl: {problems}"] if problems.count else []
    lost += [f"{missing} preview files are missing"] if missing else []
    if lost:
        yield Warned(step=last, message="; ".join(lost))


def changes_since(folder: Path | str, step: int) -> list[tuple[int, Mapping[str, Any]]]:
    """Live changes after the checkpoint of ``step``, each with the step that it came after, in order."""
    events = effective_events(Path(folder) / "events.jsonl")
    changes = (event for _, event in events if isinstance(event, LiveChanged))
    return [(event.step, event.values) for event in changes if event.step >= step]


def history_offsets(folder: Path | str, checkpoint: Checkpointed | None) -> list[int]:
    """Where in events.jsonl the events before ``checkpoint`` begin, without those that a resumed run tells again."""
    if checkpoint is None:
        return []
    events = effective_events(Path(folder) / "events.jsonl")
    earlier = ((offset, event) for offset, event in events if event.step <= checkpoint.step)
    return [offset for offset, event in earlier if event.step < checkpoint.step or not isinstance(event, LiveChanged)]


def find_checkpoint(folder: Path | str) -> CheckpointSearch:
    """The newest checkpoint that is whole, sealed for its step, and made with the run's preset."""
    folder = Path(folder)
    passed_over = []
    preset: Preset | None = None
    for step in reversed(checkpoint_steps(folder)):
        try:
            seal = read_seal(folder, step)
            if seal.preset:
                preset = preset or read_preset(folder)
                if difference := find_difference(preset, seal.preset):
                    raise StoreError(difference, "restore the preset, or the checkpoint")
            return CheckpointSearch(load_checkpoint(folder, seal), tuple(passed_over))
        except NewerSchemaError:
            raise
        except StoreError as error:  # the one before it counts
            passed_over.append(f"the checkpoint of step {step} was passed over: {error.message}")
    events = read_event_lines(folder / "events.jsonl", (b'"Checkpointed"',))
    was_there = any(isinstance(event, Checkpointed) for _, event in events)
    return CheckpointSearch(None, tuple(passed_over), bool(passed_over) or was_there)


def latest_checkpoint(folder: Path | str) -> Checkpointed | None:
    """The checkpoint of `find_checkpoint`; what it passed over is logged."""
    search = find_checkpoint(folder)
    if search.reasons:
        LOG.warning("run %s: %s", Path(folder).name, search.reasons)
    return search.checkpoint


def list_runs(root: Path | None = None) -> list[Run]:
    """Every run under ``root``, newest first; one that cannot be read is listed as "unreadable" with the reason."""
    root = (root or default_root()).absolute()
    if not root.is_dir():
        return []
    runs = []
    for folder in sorted((path for path in root.iterdir() if RUN_ID.fullmatch(path.name)), reverse=True):
        try:
            runs.append(Run(folder, read_status(folder)))
        except (StoreError, OSError) as error:  # OSError: it went while it was read
            runs.append(Run(folder, Status("unreadable", message=str(error))))
    return runs


def find_run(run_id: str, root: Path | None = None) -> Path:
    """The folder of a run id that may come from anywhere (an address bar); only names of run folders are looked at."""
    folder = (root or default_root()).absolute() / run_id
    if not RUN_ID.fullmatch(run_id) or not folder.is_dir():
        raise StoreError(f"no run {run_id[:80]!r}", "choose one of the list of runs")
    return folder


def preview_file(step: int, name: str) -> str:
    return f"public/previews/{step:06d}.jpg" if name == "rgb" else f"public/previews/{step:06d}_{name}.png"


def _read_preview(folder: Path, step: int) -> dict[str, np.ndarray]:
    """The pictures of one step by name; empty where one of them is missing or damaged."""
    rgb = folder / preview_file(step, "rgb")
    others = {path.stem.partition("_")[2]: path for path in sorted(rgb.parent.glob(f"{step:06d}_*.png"))}
    try:
        return {name: decode_views(path) for name, path in {"rgb": rgb, **others}.items()}
    except StoreError:  # counted by the caller
        return {}
