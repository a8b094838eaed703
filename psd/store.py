"""The run folder: everything a run leaves behind, written so that a crash at any moment keeps what was there.

    <root>/<date-time>_<slug>_s<seed>_<hash of the resolved preset>/
        preset.yaml  preset.resolved.yaml  environment.json  status.json (replaced atomically)
        events.jsonl (everything, in order; what `replay` reads)  metrics.jsonl (one flat row a step)  log.txt  lock
        checkpoints/<step>.safetensors + <step>.json (written last: without it the checkpoint does not count)
        public/previews/<step>.jpg + <step>_<other>.png   public/exports/mesh.* + turntable.*

Only ``public/`` is meant to be served.  Event files name their arrays relative to the run folder, with ``/``.
One process writes (the lock says so and dies with its owner); any number read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from psd.events import (
    KINDS,
    Checkpointed,
    Event,
    Failed,
    Finished,
    Meshed,
    Previewed,
    Started,
    Stepped,
    Warned,
    from_json,
    to_json,
)
from psd.files import Lock, StoreError, append_line, cut_partial_line, explaining, locked, replace_file
from psd.pictures import decode_views, encode_views, write_films
from psd.preset import Preset

SCHEMA = 1
KEPT_CHECKPOINTS = 2
STATUS_EVERY_S = 1.0  # steps update status.json at most this often
RUN_ID = re.compile(r"\d{8}-\d{6}_[a-z0-9-]+_s\d+_[0-9a-f]{8}(-\d+)?")
ACTIVE = ("queued", "running", "paused")  # states that need a living writer


@dataclass(frozen=True)
class Status:
    """The state of a run: queued, running, paused, finished, stopped, failed or interrupted (its writer died)."""

    state: str
    step: int = 0
    total: int = 0
    prompt: str = ""
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


def default_root() -> Path:
    """Where runs go: ``PSD_RUNS``, else a writable disk mounted at /data, else ./runs."""
    if chosen := os.environ.get("PSD_RUNS"):
        return Path(chosen)
    disk = Path("/data")
    return disk / "runs" if os.path.ismount(disk) and os.access(disk, os.W_OK) else Path("runs")


def slug(prompt: str) -> str:
    """The prompt as at most 40 of ``a-z 0-9 -``: no prompt can leave the root or be hidden in it."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:40].strip("-") or "run"


class RunFolder:
    """The one writer of a run folder.  ``create`` or ``open`` takes the lock, ``close`` gives it back."""

    def __init__(self, path: Path, preset: Preset, status: Status, lock: Lock) -> None:
        self.path, self.preset, self.status = path, preset, status
        self._lock = lock
        self._environment: dict[str, str] = {}
        self._status_due = 0.0

    @classmethod
    def create(cls, preset: Preset, root: Path | None = None) -> RunFolder:
        """A new folder under ``root``, in state queued."""
        resolved = preset.to_yaml()
        now = datetime.now().astimezone()
        digest = hashlib.sha256(resolved.encode()).hexdigest()[:8]
        name = f"{now:%Y%m%d-%H%M%S}_{slug(preset.prompt)}_s{preset.seed}_{digest}"
        root = (root or default_root()).absolute()
        with explaining(root):
            root.mkdir(parents=True, exist_ok=True)
            path = _new_directory(root, name)
            for part in ("public/previews", "public/exports", "checkpoints"):
                (path / part).mkdir(parents=True)
        lock = Lock(path / "lock")
        folder = cls(path, preset, Status("queued", total=preset.steps, prompt=preset.prompt, created=_iso(now)), lock)
        given = preset.model_dump(mode="json", exclude_unset=True)
        replace_file(path / "preset.yaml", _yaml(given).encode())
        replace_file(path / "preset.resolved.yaml", resolved.encode())
        folder.set_state("queued")
        return folder

    @classmethod
    def open(cls, path: Path | str, preset: Preset | None = None) -> RunFolder:
        """An existing folder, to go on writing, optionally with a changed preset (more steps).

        A line that a crash cut short is taken off events.jsonl and metrics.jsonl, and the log says so.
        """
        path = Path(path).absolute()
        status = read_status(path)
        lock = Lock(path / "lock")
        folder = cls(path, preset or read_preset(path), status, lock)
        if preset:
            replace_file(path / "preset.resolved.yaml", preset.to_yaml().encode())
            folder.status = replace(status, total=preset.steps)
        for name in ("events.jsonl", "metrics.jsonl"):
            if lost := cut_partial_line(path / name):
                folder.log(f"{name} ended in the middle of a line: {lost} bytes taken off")
        return folder

    @property
    def id(self) -> str:
        return self.path.name

    def write(self, event: Event) -> Event:
        """Store an event and its arrays; returns it with ``file`` set and a failure's traceback moved to the log."""
        if not self._lock.held:
            raise StoreError(f"{self.path} is closed", "open it again with RunFolder.open")
        match event:
            case Started():
                self._environment = event.environment
                text = json.dumps({**event.environment, "notes": event.notes}, indent=2, ensure_ascii=False)
                replace_file(self.path / "environment.json", text.encode())
            case Previewed():
                event = replace(event, file=self._write_preview(event))
            case Checkpointed():
                event = replace(event, file=self._write_checkpoint(event))
            case Meshed() if event.mesh is not None:
                event = replace(event, file=self._write_mesh(event))
            case Failed():
                self.log(f"failed at step {event.step}: {event.message}\n{event.traceback}")
                event = replace(event, traceback="")
            case Warned():
                self.log(f"step {event.step}: {event.message}")
        append_line(self.path / "events.jsonl", to_json(event))
        if isinstance(event, Stepped):
            row = {"step": event.step, "time_s": event.time_s, "t": event.t, **event.metrics}
            append_line(self.path / "metrics.jsonl", json.dumps(row, allow_nan=False))
        self._follow(event)
        return event

    def _follow(self, event: Event) -> None:
        """Keep status.json in step with the events."""
        self.status = replace(self.status, step=event.step, time_s=event.time_s)
        match event:
            case Started():
                self.status = replace(self.status, total=event.total_steps)
                self.set_state("running")
            case Finished():
                self.set_state("finished" if event.reason == "completed" else "stopped")
            case Failed():
                self.set_state("failed", event.message)
            case Checkpointed():
                self.set_state(self.status.state, self.status.message)
            case _ if time.monotonic() >= self._status_due:
                self.set_state(self.status.state, self.status.message)

    def set_state(self, state: str, message: str = "") -> None:
        now = _iso(datetime.now().astimezone())
        self.status = replace(self.status, state=state, message=message, updated=now, pid=os.getpid())
        replace_file(self.path / "status.json", json.dumps(asdict(self.status), indent=2, ensure_ascii=False).encode())
        self._status_due = time.monotonic() + STATUS_EVERY_S

    def log(self, text: str) -> None:
        append_line(self.path / "log.txt", f"{_iso(datetime.now().astimezone())} {text.rstrip()}")

    def _write_preview(self, event: Previewed) -> str:
        """The views of one kind side by side in one picture: rgb as JPEG, the rest lossless."""
        if "rgb" not in event.images:
            raise ValueError(f"a preview needs rgb images; it has {', '.join(event.images) or 'none'}")
        for name, images in event.images.items():
            replace_file(self.path / _preview_file(event.step, name), encode_views(images, lossless=name != "rgb"))
        return _preview_file(event.step, "rgb")

    def _write_checkpoint(self, event: Checkpointed) -> str:
        """Tensors first, the JSON as the seal; then all but this one and the newest one before it go."""
        from safetensors.numpy import save

        file = f"checkpoints/{event.step:06d}.safetensors"
        tensors = {name: np.asarray(array, order="C") for name, array in event.tensors.items()}
        seal = {"schema": SCHEMA, "step": event.step, "time_s": event.time_s, "values": dict(event.values)}
        text = json.dumps(seal, allow_nan=False, ensure_ascii=False)
        path = self.path / file
        with explaining(path):
            path.with_suffix(".json").unlink(missing_ok=True)  # an old seal must not vouch for new tensors
        replace_file(path, save(tensors), durable=True)
        replace_file(path.with_suffix(".json"), text.encode(), durable=True)
        steps = _checkpoint_steps(self.path)
        kept = [step for step in steps if step <= event.step][-KEPT_CHECKPOINTS:]
        for step in set(steps) - set(kept):  # later ones belong to a future that a resume has left
            for suffix in (".json", ".safetensors"):
                (path.parent / f"{step:06d}{suffix}").unlink(missing_ok=True)
        return file

    def _write_mesh(self, event: Meshed) -> str:
        """All formats into a directory beside, then each into place: a reader sees old or new, never half a file."""
        from psd.mesh import export

        assert event.mesh is not None
        exports = self.path / "public" / "exports"
        new = self.path / "exports.new"
        with explaining(exports):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                for suffix in ("glb", "obj", "ply", "stl"):
                    export(event.mesh, new / f"mesh.{suffix}", provenance=self.provenance(event.step))
                text = json.dumps(event.statistics, indent=2, allow_nan=False)
                (new / "statistics.json").write_text(text, encoding="utf-8")
                if event.turntable is not None:
                    write_films(event.turntable, new)
                for path in sorted(new.iterdir()):
                    os.replace(path, exports / path.name)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return "public/exports/mesh.glb"

    def provenance(self, step: int) -> dict[str, Any]:
        """What a mesh file says about its origin."""
        preset = self.preset.model_dump(mode="json")
        return {
            "prompt": self.preset.prompt, "seed": self.preset.seed, "step": step, "run": self.id,
            "versions": self._environment, "preset": preset,
        }  # fmt: skip

    def close(self) -> None:
        """Give the lock back; closing twice is fine."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# reading ---------------------------------------------------------------------------------------------------------


def read_status(folder: Path | str) -> Status:
    """The status of a run; an active state whose writer is gone reads as interrupted.

    Raises StoreError when this is no run folder, cannot be read, or comes from a newer version.
    """
    path = Path(folder) / "status.json"
    if not path.is_file():
        raise StoreError(f"{folder} is not a run folder (no status.json)", "name a folder below the runs' root")
    record = _read_json(path)
    _check_schema(record, path)
    if "state" not in record:
        raise StoreError(f"{path} holds no state", "restore it, or start anew")
    status = Status(**{f.name: record[f.name] for f in fields(Status) if f.name in record})
    if status.state in ACTIVE and not locked(path.parent / "lock"):
        return replace(status, state="interrupted", message=f"process {status.pid} ended without closing the run")
    return status


def read_preset(folder: Path | str) -> Preset:
    """The resolved preset of a run."""
    path = Path(folder) / "preset.resolved.yaml"
    if not path.is_file():
        raise StoreError(f"{path} is missing", "the run cannot be resumed without it; restore it or start anew")
    return Preset.load(str(path))


def replay(folder: Path | str) -> Iterator[Event]:
    """A run's events again, without models: previews with their images, checkpoints and meshes by ``file`` only.

    What a resumed run did over is told once, in its last form.  A line cut short by a crash, and previews that are
    gone, end the stream with a Warned each.
    """
    folder = Path(folder)
    read_status(folder)
    events, cut = _read_events(folder / "events.jsonl")
    told: list[Event] = []
    for event in events:
        if isinstance(event, Started):
            told = [earlier for earlier in told if earlier.step <= event.step]
        told.append(event)
    missing = 0
    for event in told:
        if isinstance(event, Previewed):
            images = _read_preview(folder, event.step)
            missing += not images
            event = replace(event, images=images)
        yield event
    last = told[-1].step if told else 0
    if cut:
        yield Warned(step=last, message="events.jsonl ends in the middle of a line: the last event is lost")
    if missing:
        yield Warned(step=last, message=f"{missing} preview files are missing")


def latest_checkpoint(folder: Path | str) -> Checkpointed | None:
    """The newest checkpoint that is whole; half-written or damaged ones are passed over."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    for step in reversed(_checkpoint_steps(folder)):
        path = folder / "checkpoints" / f"{step:06d}.safetensors"
        try:
            seal = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            tensors = load_file(path)
        except (OSError, ValueError, SafetensorError):
            continue  # not whole: the one before it counts
        _check_schema(seal, path)
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


def _preview_file(step: int, name: str) -> str:
    return f"public/previews/{step:06d}.jpg" if name == "rgb" else f"public/previews/{step:06d}_{name}.png"


def _read_preview(folder: Path, step: int) -> dict[str, np.ndarray]:
    rgb = folder / _preview_file(step, "rgb")
    if not rgb.is_file():
        return {}
    others = {path.stem.partition("_")[2]: path for path in sorted(rgb.parent.glob(f"{step:06d}_*.png"))}
    return {name: decode_views(path) for name, path in {"rgb": rgb, **others}.items()}


# pieces ----------------------------------------------------------------------------------------------------------


def _read_events(path: Path) -> tuple[list[Event], bool]:
    """The events of a file and whether its last line was cut short."""
    if not path.is_file():
        return [], False
    with explaining(path):
        *lines, tail = path.read_bytes().split(b"\n")
    events = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record["event"] not in KINDS:
                raise StoreError(f"{path}:{number}: unknown event {record['event']!r}", "update this program")
            events.append(from_json(line.decode()))
        except (ValueError, KeyError, TypeError) as error:
            cure = "the file was changed by hand or by the disk; delete that line"
            raise StoreError(f"{path}:{number}: not an event ({error})", cure) from None
    return events, bool(tail)


def _checkpoint_steps(folder: Path) -> list[int]:
    found = (folder / "checkpoints").glob("*.safetensors")
    return sorted(int(path.stem) for path in found if path.stem.isdecimal())


def _read_json(path: Path) -> dict[str, Any]:
    with explaining(path):
        text = path.read_text(encoding="utf-8")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path} is not JSON ({error})", "restore it, or start anew") from None
    if not isinstance(record, dict):
        raise StoreError(f"{path} holds no mapping", "restore it, or start anew")
    return record


def _check_schema(record: Mapping[str, Any], path: Path) -> None:
    if record.get("schema", 0) > SCHEMA:
        message = f"{path} has schema {record['schema']}; this program reads up to {SCHEMA}"
        raise StoreError(message, "update this program")


def _new_directory(root: Path, name: str) -> Path:
    """Two equal runs in one second get different folders."""
    for number in range(1, 1000):
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise StoreError(f"{root / name} and 998 like it exist", "clear the runs' root")


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
