"""Times the default preset in two checkouts, in turn: ``python -m tests.support.time_checkouts BEFORE AFTER``.

Each run is a process of its own, headless, from start to mesh, on all cores of the machine.  A machine's speed drifts
by half within an hour: what counts is the ratio of the medians of runs in turn.  ``--busy`` keeps one core busy beside
them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """Of one run, from the start of its process."""

    preview_s: float  # until the first preview was written
    mesh_s: float  # until the mesh was
    cpu_s: float
    peak_mib: float


def time_run(checkout: Path, steps: int | None) -> Timing:
    """Raises `subprocess.CalledProcessError` where the run does not end well."""
    command = [sys.executable, "-m", "psd", "run", "--preset", "tiny", "--offline"]
    command += ["--steps", str(steps)] if steps else []
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        process = subprocess.Popen(
            [*command, "--out", folder], cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise subprocess.CalledProcessError(code, command)
        previews, meshes = (
            [path.stat().st_mtime for path in Path(folder).rglob(f"*.{kind}")] for kind in ("jpg", "glb")
        )
    return Timing(min(previews) - start, min(meshes) - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


@contextmanager
def keep_busy(core: int) -> Iterator[None]:
    """A loop that takes all of one core."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"]
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--runs", type=int, default=5, help="of each checkout (default: 5)")
    parser.add_argument("--steps", type=int, help="fewer than the preset's")
    parser.add_argument("--busy", action="store_true", help="with a busy loop on one core")
    arguments = parser.parse_args()
    checkouts = [arguments.before.resolve(), arguments.after.resolve()]
    timings: list[list[Timing]] = [[], []]
    with keep_busy(0) if arguments.busy else nullcontext():
        for number in range(arguments.runs):
            for checkout, kept in zip(checkouts, timings, strict=True):
                kept.append(time_run(checkout, arguments.steps))
                print(number + 1, checkout, kept[-1], flush=True)
    for field in fields(Timing):
        before, after = (statistics.median(getattr(one, field.name) for one in kept) for kept in timings)
        print(f"{field.name:11} {before:8.1f} {after:8.1f}  {before / after:.2f} x")


if __name__ == "__main__":
    main()
