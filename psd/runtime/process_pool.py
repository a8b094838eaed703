"""Jobs shared out among processes.  Unlike ``multiprocessing.Pool`` it doesn't wait forever for one that was killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from psd.config.errors import MissingError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def map_unordered(function: Callable[[Argument], Result], jobs: Sequence[Argument], processes: int) -> Iterator[Result]:
    """``function`` of each job, as they come, from at most ``processes`` fresh interpreters.

    An exception of a job is raised here, and the jobs that have not begun are dropped; `MissingError` if a process was
    killed from outside.
    """
    if not jobs:
        return
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise MissingError(
            f"one of {processes} processes was killed, most likely for want of memory: what is done stays done, and "
            "the same command with fewer --processes goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
