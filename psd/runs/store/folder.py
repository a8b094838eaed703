"""The run folder: everything a run leaves behind, written so that a crash at any moment keeps what was there.

    <root>/<date-time>_<slug>_s<seed>_<hash of the resolved preset>/
        preset.yaml  preset.resolved.yaml  environment.json  status.json (replaced atomically)
        events.jsonl (everything, in order; what `replay` reads)  metrics.jsonl (one flat row a step)  log.txt  lock
        checkpoints/<step>.safetensors + <step>.json (the seal, `psd.runs.store.checkpoints`; written last)
        public/previews/<step>.jpg + <step>_<other>.png   public/exports/mesh.* + turntable.* + timelapse.*

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
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import BaseFileLock

from psd.config.preset import Preset
from psd.distillation import events
from psd.geometry.export import PRINT_SIZE_MM, STARTS_FROM, encode_mesh, list_formats
from psd.runs.store.archive import (
    SCHEMA,
    Status,
    checkpoint_steps,
    default_root,
    preview_file,
    read_preset,
    read_provenance,
    read_status,
)
from psd.runs.store.checkpoints import checkpoint_file, make_seal
from psd.runs.store.files import (
    StoreError,
    append_line,
    cut_partial_line,
    explain_os_errors,
    overwrite_file,
    replace_file,
    take_lock,
    temporary_sibling,
)
from psd.runs.store.films import FILMS, film_run
from psd.runs.store.media import encode_views
from psd.runs.store.resolved import read_environment
from psd.runs.store.status import OVER

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh

KEPT_CHECKPOINTS = 2
ROW = re.compile(rb'\{"step": (\d+),')  # of metrics.jsonl, as `RunFolder.write` begins it
STATUS_EVERY_S = 1.0  # steps update status.json at most this often
FOLDERS = ("public", "public/previews", "public/exports", "checkpoints")
WRITTEN = ("events.jsonl", "metrics.jsonl", "log.txt", "status.json", "preset.resolved.yaml", "environment.json")


def slugify_prompt(prompt: str) -> str:
    """The prompt as at most 40 of ``a-z 0-9 -``: no prompt can leave the root or be hidden in it."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:40].strip("-") or "run"


class RunFolder:
    """The one writer of a run folder.  ``create`` or ``open`` takes the lock, ``close`` gives it back."""

    def __init__(
        self, path: Path, preset: Preset, status: Status, lock: BaseFileLock, size_mm: float = PRINT_SIZE_MM
    ) -> None:
        self.path, self.preset, self.status = path, preset, status
        self._lock, self._size_mm = lock, size_mm
        self._unfilmed: Mesh | None = None  # a mesh that was written and has no film yet
        self._status_due = 0.0
        self._before = status  # as the folder was opened
        self._preset_is_due = False  # preset.resolved.yaml is written with the first event
        self._has_history = (log := path / "events.jsonl").is_file() and log.stat().st_size > 0
        self.notes: list[str] = []  # what had to be rebuilt when the folder was opened
        self.is_status_stored = True

    @classmethod
    def create(cls, preset: Preset, root: Path | None = None) -> RunFolder:
        """A new folder under ``root``, in state queued."""
        resolved = preset.to_yaml()
        now = datetime.now().astimezone()
        digest = hashlib.sha256(resolved.encode()).hexdigest()[:8]
        name = f"{now:%Y%m%d-%H%M%S}_{slugify_prompt(preset.prompt)}_s{preset.seed}_{digest}"
        root = (root or default_root()).absolute()
        with explain_os_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            path = _new_directory(root, name)
            for part in ("public/previews", "public/exports", "checkpoints"):
                (path / part).mkdir(parents=True)
        lock = take_lock(path / "lock")
        status = Status(
            "queued", total=preset.total_steps, prompt=preset.prompt, seed=preset.seed, method=preset.method,
            created=_format_time(now), run=path.name,
        )  # fmt: skip
        folder = cls(path, preset, status, lock)
        given = preset.model_dump(mode="json", exclude_unset=True)
        try:
            replace_file(path / "preset.yaml", _dump_yaml(given).encode(), durable=True)
            replace_file(path / "preset.resolved.yaml", resolved.encode(), durable=True)
            folder.set_state("queued")
        except BaseException:
            folder.discard()
            raise
        return folder

    @classmethod
    def open(cls, path: Path | str, preset: Preset | None = None, *, size_mm: float = PRINT_SIZE_MM) -> RunFolder:
        """An existing folder, to go on writing, optionally with a changed preset (more steps).

        ``size_mm`` is the longest side of the STL files that it writes.
        All that is needed is read first: what raises StoreError leaves the folder as it was.  A changed preset is
        written with the first event.  What had to be rebuilt is in ``notes``; a line that a crash cut short is taken
        off events.jsonl and metrics.jsonl, and the log says so.
        """
        path = Path(path).absolute()
        _require_plain_layout(path)
        notes: list[str] = []
        status = read_status(path)
        lock = take_lock(path / "lock")
        try:
            known = read_preset(path, notes=notes)
            status = replace(status, schema=SCHEMA, run=path.name)
            folder = cls(path, preset or known, status, lock, size_mm)
            folder._preset_is_due = bool(notes) or preset is not None
            folder.status = replace(status, total=folder.preset.total_steps)
            if status.message.startswith("status.json"):
                notes.append(status.message)
            folder.notes = notes
            for part in FOLDERS:
                (path / part).mkdir(exist_ok=True)
            for name in ("events.jsonl", "metrics.jsonl"):
                if lost := cut_partial_line(path / name):
                    folder.log(f"{name} ended in the middle of a line: {lost} bytes taken off")
        except BaseException:
            lock.release()
            raise
        return folder

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def was_over(self) -> bool:
        """Whether the folder holds an earlier run that had begun, and ended, when it was opened."""
        return self._before.state in OVER and self._has_history

    def write(self, event: events.Event) -> events.Event:
        """Store an event and its arrays; returns it with ``file`` set, what could not be made of a mesh in its
        ``notes``, and a failure's traceback moved to the log."""
        if not self._lock.is_locked:
            raise StoreError(f"{self.id} is closed", "open it again with RunFolder.open")
        if self._preset_is_due and not isinstance(event, events.Warned | events.Failed | events.Finished):
            replace_file(self.path / "preset.resolved.yaml", self.preset.to_yaml().encode(), durable=True)
            self._preset_is_due = False
        match event:
            case events.Started():
                # A run that goes on no longer knows what it started from; its files still say it.
                before = read_environment(self.path).get("notes", [])
                origin = [note for note in before if str(note).startswith(STARTS_FROM) and note not in event.notes]
                notes = [*origin, *event.notes]
                text = json.dumps({**event.environment, "notes": notes}, indent=2, ensure_ascii=False)
                replace_file(self.path / "environment.json", text.encode())
                self._forget_rows(event.step)
            case events.Previewed():
                event = replace(event, file=self._write_preview(event))
            case events.Checkpointed():
                event = replace(event, file=self._write_checkpoint(event))
            case events.Meshed() if event.mesh is not None:
                event = self._write_mesh(event)
            case events.Failed():
                self.log(f"failed at step {event.step}: {event.message}\n{event.traceback}")
                event = replace(event, traceback="")
            case events.Warned():
                self.log(f"step {event.step}: {event.message}")
        append_line(self.path / "events.jsonl", events.to_json(event))
        if isinstance(event, events.Stepped):
            row = {"step": event.step, "time_s": event.time_s, "t": event.t, **event.metrics}
            append_line(self.path / "metrics.jsonl", json.dumps(row, allow_nan=False))
        self._update_status(event)
        return event

    def _update_status(self, event: events.Event) -> None:
        """Keep status.json in step with the events."""
        self.status = replace(self.status, step=event.step, time_s=event.time_s)
        if isinstance(event, events.Previewed):
            self.status = replace(self.status, preview=event.file or "")
        elif isinstance(event, events.BestKept):
            self.status = replace(self.status, best_step=event.step, best_score=event.score)
        match event:
            case events.Started():
                self.status = replace(self.status, total=event.total_steps)
                self.set_state("running")
            case events.Finished():
                self.set_state("stopped" if event.reason == "stopped" else "finished")
            case events.Failed():
                self.set_state("failed", event.message)
            case events.Checkpointed():
                self.set_state(self.status.state, self.status.message)
            case _ if time.monotonic() >= self._status_due:
                self.set_state(self.status.state, self.status.message)

    def set_state(self, state: str, message: str = "") -> None:
        now = _format_time(datetime.now().astimezone())
        durable = state != self.status.state
        self.status = replace(self.status, state=state, message=message, updated=now, pid=os.getpid())
        self._store_status(durable=durable)
        self._status_due = time.monotonic() + STATUS_EVERY_S

    def undo_state(self) -> None:
        """Let the folder say what it said before it was opened: nothing has happened in it."""
        self.status = self._before
        self._store_status(durable=True)

    def store_status_late(self) -> bool:
        """Write the state that a full disk refused, after the folder was closed; whether nothing is left to do."""
        if self.is_status_stored:
            return True
        try:
            lock = take_lock(self.path / "lock")
        except StoreError:  # somebody goes on with it: it is theirs to write now; or it was deleted
            return True
        try:
            self._store_status(durable=True)
        except StoreError:
            return False
        finally:
            lock.release()
        return True

    def _store_status(self, *, durable: bool) -> None:
        """Replace status.json; on a full disk write over it, which takes no room."""
        path = self.path / "status.json"
        data = json.dumps(asdict(self.status), indent=2, ensure_ascii=False).encode()
        self.is_status_stored = False
        try:
            replace_file(path, data, durable=durable)
        except StoreError:
            if not path.is_file():
                raise
            overwrite_file(path, data)
        self.is_status_stored = True

    def log(self, text: str) -> None:
        append_line(self.path / "log.txt", f"{_format_time(datetime.now().astimezone())} {text.rstrip()}")

    def _forget_rows(self, step: int) -> None:
        """Take the rows after ``step`` off metrics.jsonl: a resumed run does those steps over."""
        path = self.path / "metrics.jsonl"

        def remaining_rows() -> Iterator[bytes]:
            with open(path, "rb") as file:
                yield from (line for line in file if not ((row := ROW.match(line)) and int(row[1]) > step))

        if path.is_file():
            with temporary_sibling(path, remaining_rows()) as new:
                os.replace(new, path)

    def _write_preview(self, event: events.Previewed) -> str:
        """The views of one kind side by side in one picture: rgb as JPEG, the rest lossless."""
        if "rgb" not in event.images:
            raise ValueError(f"a preview needs rgb images; it has {', '.join(event.images) or 'none'}")
        for name, images in event.images.items():
            replace_file(self.path / preview_file(event.step, name), encode_views(images, lossless=name != "rgb"))
        return preview_file(event.step, "rgb")

    def _write_checkpoint(self, event: events.Checkpointed) -> str:
        """Tensors first, the JSON as the seal; then all but this one and the newest one before it go.

        One of the same step stays whole until all of the new one is on the disk.
        """
        from safetensors.numpy import save

        file = checkpoint_file(event.step)
        data = save({name: np.asarray(array, order="C") for name, array in event.tensors.items()})
        path = self.path / file
        sealed = path.with_suffix(".json")
        with (
            temporary_sibling(path, [data], durable=True) as new,
            temporary_sibling(sealed, [make_seal(event, self.preset, [data])], durable=True) as new_seal,
        ):
            sealed.unlink(missing_ok=True)  # an old seal must not vouch for new tensors
            os.replace(new, path)
            os.replace(new_seal, sealed)
        steps = checkpoint_steps(self.path)
        kept = [step for step in steps if step <= event.step][-KEPT_CHECKPOINTS:]
        for step in set(steps) - set(kept):  # later ones belong to a future that a resume has left
            for suffix in (".json", ".safetensors"):
                (path.parent / f"{step:06d}{suffix}").unlink(missing_ok=True)
        return file

    def _write_mesh(self, event: events.Meshed) -> events.Meshed:
        """All formats into a directory beside, then each into place: a reader sees old or new, never half a file.

        An OBJ with a texture is there a second time, zipped with the two files that it needs.
        """
        assert event.mesh is not None
        origin = read_provenance(self.path, event.step if event.scene_step is None else event.scene_step)
        exports = self.path / "public" / "exports"
        new = self.path / "exports.new"
        with explain_os_errors(exports):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                for suffix in list_formats(event.mesh):
                    files = encode_mesh(event.mesh, f"mesh.{suffix}", provenance=origin, size_mm=self._size_mm)
                    for name, data in files.items():
                        (new / name).write_bytes(data)
                if event.mesh.texture is not None:
                    with zipfile.ZipFile(new / "mesh.obj.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                        for suffix in ("obj", "mtl", "png"):
                            archive.write(new / f"mesh.{suffix}", f"mesh.{suffix}")
                text = json.dumps(event.statistics, indent=2, allow_nan=False)
                (new / "statistics.json").write_text(text, encoding="utf-8")
                # The texture of an earlier export, and films of an earlier mesh.
                stale = {path.name for name in ("mesh", *FILMS) for path in exports.glob(f"{name}.*")}
                for path in sorted(new.iterdir()):
                    os.replace(path, exports / path.name)
                    stale.discard(path.name)
                for name in stale:
                    (exports / name).unlink()
            finally:
                shutil.rmtree(new, ignore_errors=True)
        self._unfilmed = event.mesh
        return replace(event, file="public/exports/mesh.glb")

    def make_films(self) -> str:
        """The mesh that was written last as it turns, and the object as it grew; what went wrong, or nothing.

        They take seconds, so they are made when the run is over and its mesh is there to look at.
        """
        mesh, self._unfilmed = self._unfilmed, None
        return film_run(mesh, self.path) if mesh is not None else ""

    def discard(self) -> None:
        """Take a folder back in which nothing has happened yet."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Give the lock back; closing twice is fine."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_plain_layout(path: Path) -> None:
    """Raises StoreError where a link, or a folder for a file, stands in a place that is written."""
    checkpoints = [f"checkpoints/{part.name}" for part in (path / "checkpoints").glob("[!.]*")]
    for name in (*FOLDERS, *WRITTEN, *checkpoints, "lock", "exports.new"):
        part, is_folder = path / name, name in (*FOLDERS, "exports.new")
        if part.is_symlink():
            what = "a link, which is not followed"
        elif part.exists() and part.is_dir() != is_folder:
            what = "a file where a folder belongs" if is_folder else "a folder where a file belongs"
        else:
            continue
        raise StoreError(f"{name} of the run {path.name} is {what}", "move it away, or restore the run")


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


def _dump_yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _format_time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
