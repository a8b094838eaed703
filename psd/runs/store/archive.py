"""Reading run folders: listing, status, replay and checkpoints, all without models.

`psd.runs.store.folder` writes them and draws their layout; any number of processes may read while one writes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from psd.config.former import LAST_COMMIT, translate_preset
from psd.config.preset import Preset, read_values
from psd.distillation.events import KINDS, Checkpointed, Event, LiveChanged, Previewed, Started, Warned, from_json
from psd.runs.store.files import StoreError, explain_os_errors, is_locked
from psd.runs.store.media import decode_views

SCHEMA = 2  # 1: presets with options that are gone (`psd.config.former`)
RUN_ID = re.compile(r"\d{8}-\d{6}_[a-z0-9-]+_s\d+_[0-9a-f]{8}(-\d+)?")
ACTIVE = ("queued", "running", "paused")  # states that need a living writer


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
    schema: int = SCHEMA


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
    def thumbnail(self) -> Path | None:
        """The preview that the selector judge liked best, else the last one: views side by side."""
        judged = self.status.best_score is not None
        files = [preview_file(self.status.best_step, "rgb") if judged else "", self.status.preview]
        return next((self.folder / file for file in files if file and (self.folder / file).is_file()), None)


def default_root() -> Path:
    """Where runs go: ``PSD_RUNS``, else a writable disk mounted at /data, else ./runs."""
    if chosen := os.environ.get("PSD_RUNS"):
        return Path(chosen)
    disk = Path("/data")
    return disk / "runs" if os.path.ismount(disk) and os.access(disk, os.W_OK) else Path("runs")


def read_status(folder: Path | str) -> Status:
    """The status of a run; an active state whose writer is gone reads as interrupted.

    Raises StoreError when this is no run folder, cannot be read, or comes from a newer version.
    """
    path = Path(folder) / "status.json"
    if not path.is_file():
        raise StoreError(f"{folder} is not a run folder (no status.json)", "name a folder below the runs' root")
    record = _read_json(path)
    check_schema(record, path)
    kinds = {field.name: field.type for field in fields(Status)}
    if not isinstance(record.get("state"), str):
        raise StoreError(f"{path} holds no state", "restore it, or start anew")
    if wrong := [name for name in kinds if name in record and not _is_of_type(record[name], str(kinds[name]))]:
        raise StoreError(f"{path}: {wrong[0]} is no {kinds[wrong[0]]}", "restore it, or start anew")
    status = Status(**{name: record[name] for name in kinds if name in record})
    if status.state in ACTIVE and not is_locked(path.parent / "lock"):
        return replace(status, state="interrupted", message=f"process {status.pid} ended without closing the run")
    return status


def read_preset(folder: Path | str, *, to_resume: bool = False) -> Preset:
    """The resolved preset of a run, in today's keys whatever version wrote it.

    ``to_resume`` raises StoreError where the run used an option that is gone: it could not go on as it was.
    """
    path = Path(folder) / "preset.resolved.yaml"
    if not path.is_file():
        raise StoreError(f"{path} is missing", "the run cannot be resumed without it; restore it or start anew")
    values, lost = translate_preset(read_values(str(path)))
    if lost and to_resume:
        raise StoreError(
            f"{Path(folder).name} was made with {', '.join(lost)}, which this version no longer has",
            f"start anew, or go on with commit {LAST_COMMIT}",
        )
    return Preset.make(values)


def read_provenance(folder: Path | str, step: int) -> dict[str, Any]:
    """What a mesh file says about its origin: prompt, seed, step, run, versions and the whole preset."""
    folder, preset = Path(folder), read_preset(folder)
    environment = folder / "environment.json"
    return {
        "prompt": preset.prompt, "seed": preset.seed, "step": step, "run": folder.name,
        "versions": _read_json(environment) if environment.is_file() else {}, "preset": preset.model_dump(mode="json"),
    }  # fmt: skip


def replay_events(folder: Path | str, *, images: bool = True) -> Iterator[Event]:
    """A run's events again, without models: previews with their images (on demand), the rest by ``file`` only.

    What a resumed run did over is told once, in its last form.  A line cut short by a crash, and previews that are
    gone, end the stream with a Warned each.
    """
    folder = Path(folder)
    read_status(folder)
    missing, last = 0, 0
    for _, event in _effective_events(folder):
        last = event.step
        if isinstance(event, Previewed) and images:
            event = replace(event, images=_read_preview(folder, event.step))
            missing += not event.images
        yield event
    if _is_cut(folder / "events.jsonl"):
        yield Warned(step=last, message="events.jsonl ends in the middle of a line: the last event is lost")
    if missing:
        yield Warned(step=last, message=f"{missing} preview files are missing")


def changes_since(folder: Path | str, step: int) -> list[tuple[int, Mapping[str, Any]]]:
    """Live changes after the checkpoint of ``step``, each with the step that it came after, in order."""
    changes = (event for _, event in _effective_events(folder) if isinstance(event, LiveChanged))
    return [(event.step, event.values) for event in changes if event.step >= step]


def history_offsets(folder: Path | str, checkpoint: Checkpointed | None) -> list[int]:
    """Where in events.jsonl the events before ``checkpoint`` begin, without those that a resumed run tells again."""
    if checkpoint is None:
        return []
    earlier = ((offset, event) for offset, event in _effective_events(folder) if event.step <= checkpoint.step)
    return [offset for offset, event in earlier if event.step < checkpoint.step or not isinstance(event, LiveChanged)]


def latest_checkpoint(folder: Path | str) -> Checkpointed | None:
    """The newest checkpoint that is whole; half-written or damaged ones are passed over."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    for step in reversed(checkpoint_steps(folder)):
        path = folder / "checkpoints" / f"{step:06d}.safetensors"
        try:
            seal = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            tensors = load_file(path)
        except (OSError, ValueError, SafetensorError):
            continue  # not whole: the one before it counts
        check_schema(seal, path)
        file = f"checkpoints/{path.name}"
        return Checkpointed(step=step, time_s=seal["time_s"], tensors=tensors, values=seal["values"], file=file)
    return None


def list_runs(root: Path | None = None) -> list[Run]:
    """Every run under ``root``, newest first; one that cannot be read is listed as "unreadable" with the reason."""
    root = (root or default_root()).absolute()
    if not root.is_dir():
        return []
    runs = []
    for folder in sorted((path for path in root.iterdir() if RUN_ID.fullmatch(path.name)), reverse=True):
        try:
            runs.append(Run(folder, read_status(folder)))
        except StoreError as error:
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
    rgb = folder / preview_file(step, "rgb")
    if not rgb.is_file():
        return {}
    others = {path.stem.partition("_")[2]: path for path in sorted(rgb.parent.glob(f"{step:06d}_*.png"))}
    return {name: decode_views(path) for name, path in {"rgb": rgb, **others}.items()}


def _effective_events(folder: Path | str) -> Iterator[tuple[int, Event]]:
    """Events without what a resumed run did over, each with its offset: a long run's never stand in memory together."""
    path = Path(folder) / "events.jsonl"
    again = list(_read_events(path, (b'"Started"', b'"LiveChanged"')))
    starts = [(offset, event.step) for offset, event in again if isinstance(event, Started)]
    changes = [(offset, event) for offset, event in again if isinstance(event, LiveChanged)]
    for offset, event in _read_events(path):
        undone = any(offset < later and event.step > step for later, step in starts)
        if isinstance(event, LiveChanged):  # made again after a resume
            undone |= any(offset < later and replace(event, time_s=same.time_s) == same for later, same in changes)
        if not undone:
            yield offset, event


# pieces ----------------------------------------------------------------------------------------------------------


def _read_events(path: Path, words: Sequence[bytes] = ()) -> Iterator[tuple[int, Event]]:
    """The events of a file, each with where its line begins, or only those whose line holds one of ``words``."""
    if not path.is_file():
        return
    with explain_os_errors(path), path.open("rb") as file:
        end = 0
        for number, line in enumerate(file, 1):
            offset, end = end, end + len(line)
            if not line.endswith(b"\n") or (words and not any(word in line for word in words)):
                continue
            try:
                record = json.loads(line)
                if record["event"] not in KINDS:
                    raise StoreError(f"{path}:{number}: unknown event {record['event']!r}", "update this program")
                event = from_json(line.decode())
            except (ValueError, KeyError, TypeError) as error:
                cure = "the file was changed by hand or by the disk; delete that line"
                raise StoreError(f"{path}:{number}: not an event ({error})", cure) from None
            yield offset, event


def _is_cut(path: Path) -> bool:
    """Whether the last line of a file lacks its end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with explain_os_errors(path), path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def checkpoint_steps(folder: Path) -> list[int]:
    found = (folder / "checkpoints").glob("*.safetensors")
    return sorted(int(path.stem) for path in found if path.stem.isdecimal())


def _is_of_type(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of a field's declared type."""
    kinds = {"str": str, "int": int, "float": (int, float), "None": type(None)}
    return any(isinstance(value, kinds[name]) for name in kind.split(" | "))


def _read_json(path: Path) -> dict[str, Any]:
    with explain_os_errors(path):
        data = path.read_bytes()
    try:
        record = json.loads(data)
    except ValueError as error:
        raise StoreError(f"{path} is not JSON ({error})", "restore it, or start anew") from None
    if not isinstance(record, dict):
        raise StoreError(f"{path} holds no mapping", "restore it, or start anew")
    return record


def check_schema(record: Mapping[str, Any], path: Path) -> None:
    if not isinstance(record.get("schema", 0), int):
        raise StoreError(f"{path} has no schema that could be read", "restore it, or start anew")
    if record.get("schema", 0) > SCHEMA:
        message = f"{path} has schema {record['schema']}; this program reads up to {SCHEMA}"
        raise StoreError(message, "update this program")
