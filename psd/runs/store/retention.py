"""Which runs are kept, which go when there is too much, and the words for each that goes.

``pinned`` is an empty file in a run's folder: such a run never goes to make room.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from psd.config.errors import PresetError, format_value
from psd.runs.store.archive import ACTIVE, Run, checkpoint_steps, list_runs
from psd.runs.store.files import StoreError, explain_os_errors, take_lock
from psd.runs.store.ownership import read_owner

LOG = logging.getLogger(__name__)
LEAST_FREE_BYTES = 200 * 2**20  # on the disk of the runs, to start another
MOST_EMPTY = 20  # runs that ended before their first step, of all owners together
DELETED = ".deleted-"
BINNED, BINNED_S = ".binned-", 24 * 3600.0  # before the name of a deleted run that can come back; for how long
UNLIMITED = "unlimited"


@dataclass(frozen=True)
class Limits:
    """What one user may take from the others; infinity is no limit.  Raises PresetError for what is no limit.

    Above ``runs`` of one owner, the oldest runs of that owner go.  Above ``total_bytes`` of all, the oldest run of
    whoever takes most goes.  Never one that is pinned or goes on.  A run that has been paused for ``pause_s`` while
    others wait for its device is stopped, keeping what it reached.
    """

    runs: float = 500
    total_bytes: float = 20 * 2**30
    pause_s: float = 15 * 60

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            require_limit(name, getattr(self, name), least=1 if name == "runs" else 0)


def require_limit(name: str, value: object, least: int = 0) -> None:
    """Raises PresetError for what is no limit: text, nan, zero or less, below ``least``."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (number > 0 and number >= least):
        bound = f"at least {least}" if least else "above 0"
        raise PresetError(f"{name}={format_value(value)} is no limit: it must be {bound}; {UNLIMITED} stands for none")


def parse_limit(text: str) -> float:
    """A limit as a person types it: a number above 0, or `UNLIMITED`.  Raises PresetError."""
    if text.strip().lower() == UNLIMITED:
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise PresetError(f"{format_value(text)} is no limit: give a number above 0, or {UNLIMITED}")
    return value


def pin_run(folder: Path, pinned: bool) -> None:
    """A pinned run is never deleted to make room."""
    with explain_os_errors(folder):
        (folder / "pinned").touch() if pinned else (folder / "pinned").unlink(missing_ok=True)


def delete_run(folder: Path, reason: str) -> None:
    """Remove a run for good, an unreadable one too, and log why; StoreError while it is queued, running or paused.

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
        LOG.warning("deleted the run %s: %s", folder.name, reason)
        _remove_tree(gone)  # `delete_oldest` may be clearing it as well, and tries again later
    finally:
        lock.release()


def bin_run(folder: Path) -> None:
    """Take a run off the list and keep it for `BINNED_S`; StoreError while it is queued, running or paused."""
    try:
        lock = take_lock(folder / "lock")
    except StoreError as error:
        raise StoreError(f"{folder.name} is still going", "stop it first") from error
    try:
        with explain_os_errors(folder):
            os.replace(folder, gone := folder.with_name(BINNED + folder.name))
            os.utime(gone)
    finally:
        lock.release()


def restore_run(folder: Path) -> None:
    """Put a run back that `bin_run` took away from ``folder``; StoreError where it is gone for good."""
    binned = folder.with_name(BINNED + folder.name)
    if not binned.is_dir():
        raise StoreError(f"the run {folder.name[:80]} is gone for good", "undo within a day, before room is needed")
    with explain_os_errors(folder):
        os.replace(binned, folder)


def clear_bin(root: Path, now: float) -> None:
    """Remove for good what has lain in the bin for `BINNED_S`."""
    for binned in root.glob(f"{BINNED}*"):
        if now - binned.stat().st_mtime > BINNED_S:
            LOG.warning("deleted the run %s, which was in the bin", binned.name.removeprefix(BINNED))
            _remove_tree(binned)


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


@dataclass(frozen=True)
class _KeptRun:
    """A run that counts, with what the limits ask about it."""

    run: Run
    owner: str
    size: int
    is_empty: bool  # over before its first step

    @property
    def age_key(self) -> tuple[bool, str]:
        """What goes first comes first: runs that hold nothing, then the oldest."""
        return not self.is_empty, self.run.id


def delete_oldest(root: Path, limits: Limits, spare: Iterable[str] = ()) -> list[str]:
    """Delete runs until the limits hold, logging each with its reason; returns their ids.

    Runs that are pinned, that go on, or that ``spare`` names stay, whatever they take.  What an interrupted deletion
    left behind goes first.  What cannot be read neither goes nor counts: it must not push out what can.
    """
    if root.is_dir():
        for left in root.glob(f"{DELETED}*"):
            LOG.warning("cleared away what was left of the run %s, deleted earlier", left.name.removeprefix(DELETED))
            _remove_tree(left)  # in use on Windows, say: next time
        clear_bin(root, time.time())
    spared = set(spare)
    kept = [_describe_run(run) for run in list_runs(root) if run.status.state != "unreadable"]
    kept.sort(key=lambda item: item.age_key)
    gone: list[str] = []
    while (choice := next(_choose_deletions(kept, limits, spared), None)) is not None:
        item, reason = choice
        try:
            delete_run(item.run.folder, reason)
            gone.append(item.run.id)
            kept.remove(item)
        except StoreError as error:  # somebody has just resumed it, or it may not be removed
            LOG.info("the run %s stays: %s", item.run.id, error)
            spared.add(item.run.id)
    return gone


def _choose_deletions(kept: list[_KeptRun], limits: Limits, spared: set[str]) -> Iterator[tuple[_KeptRun, str]]:
    """The run that has to go next and why, in the order in which limits are looked at; nothing when all hold."""
    deletable = [item for item in kept if _is_deletable(item.run, spared)]
    empty = [item for item in deletable if item.is_empty]
    if len(empty) > MOST_EMPTY:
        yield empty[0], f"it ended before its first step, and the newest {MOST_EMPTY} of those are kept"
    counts = Counter(item.owner for item in kept)
    for item in deletable:
        if counts[item.owner] > limits.runs:
            yield item, f"its owner has {counts[item.owner]} runs, and {limits.runs:g} are kept"
    total = sum(item.size for item in kept)
    if total > limits.total_bytes and deletable:
        sizes: Counter[str] = Counter()
        for item in kept:
            sizes[item.owner] += item.size
        largest = max({item.owner for item in deletable}, key=lambda owner: (sizes[owner], owner))
        item = next(item for item in deletable if item.owner == largest)
        yield item, f"all runs take {total / 2**30:.3g} GiB, and {limits.total_bytes / 2**30:.3g} are kept"


def require_room(root: Path) -> None:
    """Raises StoreError when the disk is about to be full: better before a run than in its middle."""
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        raise StoreError(
            f"the disk is full: {free / 2**20:.0f} MiB free at {root}, a run needs {LEAST_FREE_BYTES / 2**20:.0f}",
            "delete runs, or point PSD_RUNS at another disk",
        )


def _describe_run(run: Run) -> _KeptRun:
    is_empty = run.status.state not in ACTIVE and not run.status.step and not checkpoint_steps(run.folder)
    return _KeptRun(run, read_owner(run.folder), size_bytes(run.folder), is_empty)


def _is_deletable(run: Run, spared: set[str]) -> bool:
    return run.id not in spared and run.status.state not in ACTIVE and not run.is_pinned


def _remove_tree(folder: Path) -> None:
    """As much of a folder as can be removed; of a link to one, the link."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
