"""Files that survive a crash, a full disk and a second writer.

Everything here answers one question: what does a reader see when the writer dies in the middle?  The old file or the
new one (`replace_file`), all of a line or none of it (`append_line`), a lock that is free (`Lock`).
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


FULL = (errno.ENOSPC, errno.EDQUOT)  # what a full disk says


class StoreError(RuntimeError):
    """The run folder cannot be written or read; ``cure`` says what to change."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(f"{message}: {cure}")
        self.cure = cure


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn what the operating system says about ``path`` into a StoreError with a cure."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            cure = "free space, or point PSD_RUNS at another disk; everything written before is kept"
            raise StoreError(f"the disk is full: cannot write {path}", cure) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"no permission for {path}", "change its owner or point PSD_RUNS elsewhere") from error
        raise StoreError(f"cannot use {path} ({error})", "check the disk, or point PSD_RUNS elsewhere") from error


@contextmanager
def beside(path: Path, data: Iterable[bytes], *, durable: bool = False) -> Iterator[Path]:
    """Pieces of ``data`` in a file next to ``path``, to be renamed over it or to go; ``durable`` waits for the disk."""
    new = path.with_name(f".{path.name}.new")
    with explaining(path):
        try:
            with open(new, "wb") as file:
                file.writelines(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            yield new
        finally:
            new.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write beside, then rename over: readers see the old file or the new one."""
    with beside(path, [data]) as new:
        os.replace(new, path)


def append_line(path: Path, line: str) -> None:
    """Add one line, whole or not at all."""
    with explaining(path), open(path, "ab", buffering=0) as file:
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
    with explaining(path), open(path, "r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        file.truncate(whole)
    return len(data) - whole


class Lock:
    """The right to write a folder: the operating system's lock on an open file, so that it dies with its owner."""

    def __init__(self, path: Path) -> None:
        """Take it; raises StoreError when another writer has it."""
        with explaining(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            for _ in range(5):  # a reader's look at the lock lasts microseconds
                if _try_lock(self._descriptor):
                    return
                time.sleep(0.01)
            os.close(self._descriptor)
        raise StoreError(f"{path.parent} is being written by another process", "wait for that run, or stop it first")

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def release(self) -> None:
        """Give it back; doing so twice is fine."""
        if self.held:
            os.close(self._descriptor)
            self._descriptor = -1


def locked(path: Path) -> bool:
    """Whether a living writer holds the `Lock` on ``path``."""
    if not path.is_file():
        return False
    with explaining(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return not _try_lock(descriptor, shared=True)  # readers do not take each other for a writer
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int, *, shared: bool = False) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
