"""A job of the worker, and what a consumer sees of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.estimate import Pacer
from psd.runs.jobs.event_log import EventLog
from psd.runs.store import ownership
from psd.runs.store.archive import Status
from psd.runs.store.folder import RunFolder


@dataclass(frozen=True)
class JobSnapshot:
    """A job as a consumer sees it at one moment."""

    id: str
    folder: Path
    preset: Preset
    status: Status
    events: int  # how many there are; `Worker.events_since` takes an index below it
    ahead: int  # jobs that go first; 0 when running or over
    wait_s: float | None  # until it starts, from measured speeds; 0 when started, None where one is not known yet
    left_s: float | None  # from its start, or from now on, to its mesh
    live: Mapping[str, Any]
    stopping: bool = False  # it was asked to end, and has not yet


@dataclass
class Job:
    """A run that waits, goes on or ended lately, as its worker keeps it."""

    folder: RunFolder
    control: Controls
    resume: Checkpointed | None
    log: EventLog
    until: int | None = None
    owner: str = ownership.FREE  # digest of whoever asked
    over: threading.Event = field(default_factory=threading.Event)
    pacer: Pacer = field(default_factory=Pacer)
