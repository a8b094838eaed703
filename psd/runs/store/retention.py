"""The shelf of runs: who may steer one, which are kept, what goes when there is too much, and a run as one file.

An owner is a secret that a browser or a script keeps; a run's folder holds its SHA-256 only (``owner``).  A run without
one, made on the command line, obeys everybody who can open the page.  ``pinned`` is an empty file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from psd.runs.store.archive import ACTIVE, Run, list_runs
from psd.runs.store.files import StoreError, explain_os_errors, take_lock

LEAST_FREE_BYTES = 200 * 2**20  # on the disk of the runs, to start another
PACKED = ("preset.yaml", "preset.resolved.yaml", "environment.json", "events.jsonl", "metrics.jsonl")  # and public/
DELETED = ".deleted-"


def pin_run(folder: Path, pinned: bool) -> None:
    """A pinned run is never deleted to make room."""
    with explain_os_errors(folder):
        (folder / "pinned").touch() if pinned else (folder / "pinned").unlink(missing_ok=True)


def delete_run(folder: Path) -> None:
    """Remove a run for good, an unreadable one too; raises StoreError while it is queued, running or paused.

    The folder leaves the list at once, under another name, and then the disk.
    """
    try:
        lock = take_lock(folder / "lock")  # nobody may resume it now; whoever writes it holds it
    except StoreError as error:
        raise StoreError(f"{folder.name} is still going", "stop it first") from error
    gone = folder.with_name(DELETED + folder.name)
    try:
        with explain_os_errors(folder):
            os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)  # `delete_oldest` may be clearing it as well, and tries again later
    finally:
        lock.release()


def size_bytes(folder: Path) -> int:
    """What a run takes on the disk, as far as it can be read: files may go meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                continue
    return total


def delete_oldest(root: Path, most_runs: int, most_bytes: float, spare: Iterable[str] = ()) -> list[str]:
    """Delete the oldest runs until at most so many and so much are left; returns their ids.

    Runs that are pinned, that go on, or that ``spare`` names stay, whatever they take.  What an interrupted deletion
    left behind goes first.  What cannot be read neither goes nor counts: it must not push out what can.
    """
    if root.is_dir():
        for left in root.glob(f"{DELETED}*"):
            shutil.rmtree(left, ignore_errors=True)  # in use on Windows, say: next time
    spared = set(spare)
    runs = [run for run in list_runs(root) if run.status.state != "unreadable"]
    sizes = {run.id: size_bytes(run.folder) for run in runs}
    count, total = len(runs), sum(sizes.values())
    gone: list[str] = []
    for run in reversed(runs):
        if count <= most_runs and total <= most_bytes:
            break
        if not _is_deletable(run, spared):
            continue
        try:
            delete_run(run.folder)
        except StoreError:
            continue  # somebody has just resumed it
        count, total = count - 1, total - sizes[run.id]
        gone.append(run.id)
    return gone


def require_room(root: Path) -> None:
    """Raises StoreError when the disk is about to be full: better before a run than in its middle."""
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        raise StoreError(
            f"the disk is full: {free / 2**20:.0f} MiB free at {root}, a run needs {LEAST_FREE_BYTES / 2**20:.0f}",
            "delete runs, or point PSD_RUNS at another disk",
        )


def zip_run(folder: Path, path: Path) -> Path:
    """A run as one zip: preset, events, pictures and meshes; no checkpoint, no log, no owner.

    Whoever may watch a run may have it.
    """
    files = [folder / name for name in PACKED] + sorted((folder / "public").rglob("*"))
    beside = path.with_name(f"{secrets.token_hex(4)}-{path.name}")  # others may be making or sending the same
    try:
        with explain_os_errors(path):
            with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for file in files:
                    if file.is_file() and not file.name.startswith("."):
                        archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _is_deletable(run: Run, spared: set[str]) -> bool:
    return run.id not in spared and run.status.state not in ACTIVE and not run.is_pinned
