"""The library of runs under one root: listing, pins, deletion, zips and the limits; who may do what to which.

Beside the root lie the runs that ship with the program: everybody may look at them, nobody may change them, and they
count for no limit.

Serves pages and endpoints, whatever the queue is doing (`psd.runs.jobs.worker.Worker.library`).  All methods may be
called from any thread.
"""

from __future__ import annotations

import logging
import secrets
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from psd.config.preset import Preset
from psd.runs.store import ownership, retention
from psd.runs.store.archive import RUN_ID, Run, Status, default_root, find_run, list_runs, read_status
from psd.runs.store.files import StoreError, explain_os_errors, is_plain_file
from psd.runs.store.labels import Labels, read_labels, write_labels
from psd.runs.store.retention import Limits

LOG = logging.getLogger(__name__)
SHOWCASE = Path(__file__).resolve().parents[3] / "assets" / "showcase"  # `psd.evaluation.shipped.showcase` fills it
MOST_ZIPS = 8  # that lie ready on the disk
PACKED = ("preset.yaml", "preset.resolved.yaml", "environment.json", "events.jsonl", "metrics.jsonl")  # and public/


class ShippedError(StoreError):
    """The run ships with the program: it is nobody's to change."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the run {run_id} ships with this program", "make your own of it: the copy is yours to steer")


class Library:
    """The runs under ``root``, and under ``shipped`` those that came with the program.

    ``owner`` is the secret of the browser or script that asks: it may steer its own runs, anybody may watch.  Methods
    that change a run raise `NotYoursError` for one of another owner, and `ShippedError` for one that ships.

    ``forget`` is called with the id of each run that was deleted; ``unsaved`` has the states that a full disk has not
    taken yet, by id: they hold, whatever the folders say.
    """

    def __init__(
        self,
        root: Path | None = None,
        limits: Limits | None = None,
        forget: Callable[[str], None] = lambda run_id: None,
        unsaved: Callable[[], Mapping[str, Status]] = dict,
        shipped: Path = SHOWCASE,
    ) -> None:
        self.root, self._shipped = (root or default_root()).absolute(), shipped.absolute()
        self._limits, self._forget, self._unsaved = limits or Limits(), forget, unsaved
        self._zips = TemporaryDirectory(prefix="psd-zip-")
        self._zipping = threading.Lock()  # nobody clears away what another is still writing

    def find_folder(self, run_id: str) -> Path:
        """The folder of any run, one that ships included; raises StoreError for an id that is none."""
        return find_run(run_id, self._shipped if self.is_shipped(run_id) else self.root)

    def is_shipped(self, run_id: str) -> bool:
        """Whether the run came with the program."""
        return bool(RUN_ID.fullmatch(run_id)) and (self._shipped / run_id).is_dir()

    def list_shipped(self) -> list[Run]:
        """The runs that came with the program, oldest first; none where there is no such folder."""
        return list_runs(self._shipped)[::-1]

    def find_start(self, preset: Preset) -> Path | None:
        """The run whose object ``preset`` starts from, None for none; a path to a file names no run of this server."""
        name = preset.scene_preset(0).scene.start
        return self.find_folder(name) if name else None

    def list_runs(self, owner: str = "") -> list[Run]:
        """All runs under the root, newest first; with an ``owner`` only theirs."""
        unsaved = self._unsaved()
        runs = [replace(run, status=unsaved.get(run.id, run.status)) for run in list_runs(self.root)]
        return [run for run in runs if ownership.is_owner(run.folder, owner)] if owner else runs

    def read_status(self, run_id: str) -> Status:
        """The state of any run; raises StoreError as `find_folder` and the store's `read_status` do."""
        folder = self.find_folder(run_id)
        return self._unsaved().get(run_id) or read_status(folder)

    def is_steerable_by(self, run_id: str, owner: str) -> bool:
        """Whether ``owner`` may steer the run."""
        try:
            self.require_owner(run_id, owner)
        except StoreError:
            return False
        return True

    def require_owner(self, run_id: str, owner: str) -> Path:
        """The folder of a run that ``owner`` may steer; raises StoreError for any other."""
        if self.is_shipped(run_id):
            raise ShippedError(run_id)
        folder = self.find_folder(run_id)
        ownership.require_owner(folder, owner)
        return folder

    def pin_run(self, run_id: str, pinned: bool, owner: str = "") -> None:
        """Keep a run whatever the limits say, or no longer."""
        retention.pin_run(self.require_owner(run_id, owner), pinned)

    def delete_run(self, run_id: str, owner: str = "") -> None:
        """Remove a run for good; raises StoreError while it goes on."""
        retention.delete_run(self.require_owner(run_id, owner), "somebody who may steer it asked for that")
        self._drop_run(run_id)

    def bin_run(self, run_id: str, owner: str = "") -> None:
        """Delete a run so that it can come back for a day (`restore_run`); raises StoreError while it goes on."""
        retention.bin_run(self.require_owner(run_id, owner))
        self._drop_run(run_id)

    def restore_run(self, run_id: str, owner: str = "") -> None:
        """Undo `bin_run`; raises StoreError for a run that is gone for good."""
        if not RUN_ID.fullmatch(run_id):
            raise StoreError(f"no run {run_id[:80]!r}", "choose one of the list of runs")
        ownership.require_owner(self.root / (retention.BINNED + run_id), owner)
        retention.restore_run(self.root / run_id)

    def label_run(self, run_id: str, owner: str = "", *, name: str | None = None, tag: str | None = None) -> None:
        """Call a run by a name of one's own, or give it a tag; raises PresetError for what is too long."""
        folder = self.require_owner(run_id, owner)
        now = read_labels(folder)
        named = now.name if name is None else " ".join(name.split())
        write_labels(folder, Labels(named, now.tag if tag is None else " ".join(tag.split())))

    def make_room(self, spare: Iterable[str] = ()) -> list[str]:
        """Delete what is above the limits (`retention.delete_oldest`); what the disk refuses is logged."""
        try:
            gone = retention.delete_oldest(self.root, self._limits, spare)
        except Exception:  # the runs that wait do not depend on it
            LOG.exception("no room could be made in %s", self.root)
            return []
        for run_id in gone:
            self._drop_run(run_id)
        return gone

    def require_room(self) -> None:
        """Raises StoreError when the disk is about to be full."""
        retention.require_room(self.root)

    def zip_run(self, run_id: str) -> Path:
        """A run as one file (`write_zip`), made anew; it goes with the run, or after `MOST_ZIPS` newer ones."""
        folder = self.find_folder(run_id)
        with self._zipping:
            made = write_zip(folder, self._zip_path(run_id))
            for old in sorted(made.parent.glob("*.zip"), key=lambda path: path.stat().st_mtime)[:-MOST_ZIPS]:
                old.unlink()
        return made

    def find_zip(self, run_id: str) -> Path:
        """The zip that `zip_run` made of a run; raises StoreError where none lies ready."""
        path = self._zip_path(self.find_folder(run_id).name)
        if not path.is_file():
            raise StoreError(f"no zip of the run {run_id[:80]!r} lies ready", "ask for it again")
        return path

    def close(self) -> None:
        """Remove the zips."""
        self._zips.cleanup()

    def _zip_path(self, run_id: str) -> Path:
        return Path(self._zips.name) / f"{run_id}.zip"

    def _drop_run(self, run_id: str) -> None:
        with self._zipping:
            self._zip_path(run_id).unlink(missing_ok=True)
        self._forget(run_id)


def write_zip(folder: Path, path: Path) -> Path:
    """A run as one zip at ``path``: preset, events, pictures and meshes; no checkpoint, no log, no owner.

    Everybody who may watch a run may have it.  Links are left out: what they point to is no part of the run.
    """
    candidates = [folder / name for name in PACKED] + sorted((folder / "public").rglob("*"))
    new = path.with_name(f"{secrets.token_hex(4)}-{path.name}")  # others may be making or sending the same
    try:
        with explain_os_errors(path):
            with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for file in candidates:
                    if is_plain_file(file, folder) and not file.name.startswith("."):
                        archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return path
