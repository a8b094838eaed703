"""Files that survive a crash, a full disk and a second writer.

Everything here answers one question: what does a reader see when the writer dies in the middle?  The old file or the
new one (`replace_file`), all of a line or none of it (`append_line`), a lock that is free (`take_lock`).  Links are not
followed: what they point to is no part of a run.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout, lock_descriptor

FULL = (errno.ENOSPC, errno.EDQUOT)  # what a full disk says
MISPLACED = {
    errno.EISDIR: "a folder where a file belongs", errno.ENOTDIR: "a file where a folder belongs",
    errno.ELOOP: "a link, which is not followed", errno.ENAMETOOLONG: "a name that is too long",
}  # fmt: skip
WRITER_WAITS_S = 0.05  # a reader's look at the lock lasts microseconds
READER_TRIES, READER_PAUSE_S = 4, 0.001  # two readers that look at once do not take each other for a writer


class StoreError(RuntimeError):
    """The run folder cannot be written or read; ``cure`` says what to change."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(f"{message}: {cure}")
        self.message, self.cure = message, cure


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about ``path`` into a StoreError with a cure.

    Paths are named by their last two parts: a visitor of a server need not know where it keeps its files.
    """
    try:
        yield
    except OSError as error:
        short = Path(*path.parts[-2:])
        if error.errno in FULL:
            cure = "free space, or point PSD_RUNS at another disk; everything written before is kept"
            raise StoreError(f"the disk is full: cannot write {short}", cure) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"no permission for {short}", "change its owner or point PSD_RUNS elsewhere") from error
        cure = "check the disk, or point PSD_RUNS elsewhere"
        if error.errno in MISPLACED:
            raise StoreError(f"{short} is {MISPLACED[error.errno]}", f"move it away; {cure}") from error
        raise StoreError(f"cannot use {short} ({error.strerror or error})", cure) from error


def expand_path(text: str | Path) -> Path:
    """A path as a person types it, with ``~`` as the home folder."""
    return Path(os.path.expanduser(text))


def open_plain(path: str | Path, flags: int) -> int:
    """An opener for `open` that refuses a link in the file's place."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def is_plain_file(path: Path, folder: Path) -> bool:
    """Whether ``path`` is a file, and neither it nor a folder between it and ``folder`` is a link."""
    between = [part for part in path.parents if part.is_relative_to(folder) and part != folder]
    if any(part.is_symlink() for part in between):
        return False
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def read_plain_file(path: Path) -> bytes:
    """The content of a file; raises StoreError for a link, a folder, a pipe, or what cannot be read."""
    with explain_os_errors(path):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise StoreError(f"{path.name} is no plain file", "move it away, or restore the run")
        with open(path, "rb", opener=open_plain) as file:
            return file.read()


@contextmanager
def temporary_sibling(path: Path, data: Iterable[bytes], *, durable: bool = False) -> Iterator[Path]:
    """Pieces of ``data`` in a file next to ``path``, to be renamed over it or to go; ``durable`` waits for the disk."""
    new = path.with_name(f".{path.name}.new")
    with explain_os_errors(path):
        try:
            with open(new, "wb") as file:
                file.writelines(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            yield new
        finally:
            new.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write beside, then rename over: readers see the old file or the new one, after a power cut too if ``durable``."""
    with temporary_sibling(path, [data], durable=durable) as new:
        os.replace(new, path)


def overwrite_file(path: Path, data: bytes) -> None:
    """Write over a file in its place, which a full disk allows where the file is no longer than before, by much."""
    with explain_os_errors(path), open(path, "r+b", opener=open_plain) as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, line: str) -> None:
    """Add one line, whole or not at all."""
    with explain_os_errors(path), open(path, "ab", buffering=0, opener=open_plain) as file:
        start = file.seek(0, os.SEEK_END)
        data = memoryview(line.encode() + b"\n")
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(start)
            raise


def cut_partial_line(path: Path) -> int:
    """Take an unfinished last line off; returns its length in bytes."""
    if not path.is_file():
        return 0
    with explain_os_errors(path), open(path, "r+b", opener=open_plain) as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        file.truncate(whole)
    return len(data) - whole


def take_lock(path: Path) -> BaseFileLock:
    """The right to write a folder, until it is released (twice is fine) or its owner dies.

    Raises StoreError when another writer has it.
    """
    lock = FileLock(path, thread_local=False)  # one thread makes a run's folder, another closes it
    with explain_os_errors(path):
        try:
            lock.acquire(timeout=WRITER_WAITS_S, poll_interval=WRITER_WAITS_S / 5)
        except Timeout:
            cure = "wait for that run, or stop it first"
            raise StoreError(f"{path.parent.name} is being written by another process", cure) from None
    return lock


def is_locked(path: Path) -> bool:
    """Whether a living writer holds the lock that `take_lock` takes; needs no permission to write."""
    if not path.is_file():
        return False
    with explain_os_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for _ in range(READER_TRIES):
                if lock_descriptor(descriptor, blocking=False):
                    return False
                time.sleep(READER_PAUSE_S)
            return True
        finally:
            os.close(descriptor)
