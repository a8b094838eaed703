"""A run as a job with a folder: engine, store, queue."""

from typing import TYPE_CHECKING

from psd import lazy_names

if TYPE_CHECKING:
    from psd.runs.engine import make_events
    from psd.runs.jobs.worker import Worker
    from psd.runs.store.archive import list_runs, replay_events
    from psd.runs.store.folder import RunFolder
    from psd.runs.store.library import Library

__all__ = ["Library", "RunFolder", "Worker", "list_runs", "make_events", "replay_events"]
__getattr__ = lazy_names(
    __name__,
    {
        "store.library": ["Library"],
        "store.folder": ["RunFolder"],
        "jobs.worker": ["Worker"],
        "store.archive": ["list_runs", "replay_events"],
        "engine": ["make_events"],
    },
)
