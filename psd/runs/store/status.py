"""The state of a run: as status.json has it, or derived again from the log where that file is damaged."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from psd.config.preset import Preset
from psd.distillation.events import BestKept, Failed, Finished, Previewed, Started
from psd.runs.store.checkpoints import checkpoint_steps
from psd.runs.store.event_lines import MOST_STEPS, effective_events
from psd.runs.store.files import StoreError, is_locked
from psd.runs.store.resolved import read_preset
from psd.runs.store.schema import SCHEMA, NewerSchemaError, is_run_folder, read_json

LOG = logging.getLogger(__name__)
ACTIVE = ("queued", "running", "paused")  # states that need a living writer
OVER = ("finished", "stopped", "failed", "interrupted")


@dataclass(frozen=True)
class Status:
    """The state of a run: queued, running, paused, finished, stopped, failed or interrupted (its writer died)."""

    state: str
    step: int = 0
    total: int = 0
    prompt: str = ""
    seed: int = 0
    method: str = ""
    best_step: int = 0  # of the preview that the selector judge liked best; 0: none was judged
    best_score: float | None = None
    preview: str = ""  # file of the last preview
    message: str = ""
    time_s: float = 0.0  # of the last event, as the run counts it
    created: str = ""  # ISO 8601 with the offset
    updated: str = ""
    pid: int = 0
    run: str = ""  # its id: a status that was copied from another run is none
    schema: int = SCHEMA


def read_status(folder: Path | str) -> Status:
    """The status of a run, derived from its log where status.json is damaged; an active state whose writer is gone
    reads as interrupted.

    Raises StoreError when this is no run folder, holds nothing that could tell, or comes from a newer version.
    """
    folder = Path(folder)
    if not is_run_folder(folder):
        raise StoreError(f"{folder.name} is not a run folder", "name a folder below the runs' root")
    try:
        status = read_stored_status(folder)
    except NewerSchemaError:
        raise
    except StoreError as error:
        return derive_status(folder, error.message)
    if status.state in ACTIVE and not is_locked(folder / "lock"):
        message = f"process {status.pid} ended, or could not write any more, without closing the run"
        return replace(status, state="interrupted", message=message)
    return status


def read_stored_status(folder: Path) -> Status:
    """What status.json says, whether its writer lives or not; raises StoreError where it is not whole."""
    path = folder / "status.json"
    record = read_json(path)
    kinds = {field.name: str(field.type) for field in fields(Status)}
    cure = "it is derived from the log"
    if wrong := [name for name in kinds if name in record and not _is_of_type(record[name], kinds[name])]:
        raise StoreError(f"{path.name}: {wrong[0]} is no {kinds[wrong[0]]}", cure)
    if record.get("state") not in (*ACTIVE, *OVER):
        raise StoreError(f"{path.name} holds no state", cure)
    status = Status(**{name: record[name] for name in kinds if name in record})
    if status.run not in ("", folder.name):
        raise StoreError(f"{path.name} is the status of another run", cure)
    if not (0 <= status.step <= MOST_STEPS and 0 <= status.total <= MOST_STEPS and 0 <= status.best_step <= MOST_STEPS):
        raise StoreError(f"{path.name}: its steps are out of bounds", cure)
    return status


def derive_status(folder: Path, reason: str) -> Status:
    """The status that the log, the checkpoints and the preset tell; ``reason`` says why it was needed."""
    log = folder / "events.jsonl"
    status = Status("interrupted", run=folder.name, created=_read_time(folder.name))
    is_told = False
    for _, event in effective_events(log):
        is_told = True
        status = replace(status, step=event.step, time_s=event.time_s)
        match event:
            case Started():
                status = replace(status, state="interrupted", total=event.total_steps, best_step=0, best_score=None)
            case Previewed():
                status = replace(status, preview=event.file or "")
            case BestKept():
                status = replace(status, best_step=event.step, best_score=event.score)
            case Finished():
                status = replace(status, state="stopped" if event.reason == "stopped" else "finished")
            case Failed():
                status = replace(status, state="failed")
    try:
        status = _add_preset(status, read_preset(folder, notes=[]))
    except StoreError:
        if not is_told:
            raise StoreError(f"{reason}; neither preset nor log tell more", "restore it, or delete the run") from None
    if not is_told:
        status = replace(status, step=max(checkpoint_steps(folder), default=0))
    if is_locked(folder / "lock"):
        status = replace(status, state="running")
    updated = log if log.exists() else folder
    time = datetime.fromtimestamp(updated.stat().st_mtime).astimezone().isoformat(timespec="seconds")
    return replace(status, updated=time, message=f"{reason}: the state was derived from the log")


def _add_preset(status: Status, preset: Preset) -> Status:
    total = max(status.total, preset.total_steps)
    return replace(status, prompt=preset.prompt, seed=preset.seed, method=preset.method, total=total)


def _read_time(run_id: str) -> str:
    """When a run was made, from its id; empty where that is no time."""
    try:
        moment = datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return ""
    return moment.astimezone().isoformat(timespec="seconds")


def _is_of_type(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of a field's declared type, and finite."""
    kinds = {"str": str, "int": int, "float": (int, float), "None": type(None)}
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return any(isinstance(value, kinds[name]) for name in kind.split(" | "))
