"""A run in chunks, for machines that lend their GPU for a minute at a time to a process of its own (ZeroGPU).

``chunked(make_events, gpu)`` is again a `MakeEvents`: each chunk goes on from the checkpoint of the one before, in
whatever process the decorator ``gpu`` makes, and its events come back pickled.  Since a chunk ends with a checkpoint
and resuming is bit for bit on a CPU, the events of all chunks are those of the whole run.  No checkpoint says that the
run stopped early, so that its user may go on from there: the next chunk learns of it, and only makes the end.

A generator in another process hears nothing of this one, so the hand on the controls is two files in a directory that
both see: ``live.json``, and ``stop`` or ``leave`` (the chunk's time is up, or the run is paused).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from psd.config.preset import Preset
from psd.distillation.events import Alarmed, Checkpointed, Event, Failed, Finished, Started
from psd.distillation.interfaces import RenderView
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents
from psd.runs.store.files import replace_file

CHUNK_S = 50.0  # of the 60 that ZeroGPU lends by default: the rest is for the checkpoint
Chunk = Callable[..., Iterator[Event]]


class FileControl:
    """The far end of the controls: what the files say, read at most once a step."""

    def __init__(self, directory: str, deadline: float, ending: bool = False) -> None:
        self._directory, self._deadline, self._ending = Path(directory), deadline, ending

    def live(self) -> Mapping[str, Any]:
        path = self._directory / "live.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def is_leaving(self) -> bool:
        return time.monotonic() >= self._deadline or (self._directory / "leave").exists()

    def stopping(self) -> bool:
        return self.is_leaving or self.is_ending

    def show_scene(self, render: RenderView, step: int) -> None:
        """Nobody looks at the scene of another process."""

    @property
    def is_ending(self) -> bool:
        """Whether the run is to end, not only its chunk."""
        return self._ending or (self._directory / "stop").exists()


def split_into_chunks(make_events: MakeEvents, gpu: Callable[[Chunk], Chunk], seconds: float = CHUNK_S) -> MakeEvents:
    """The same events, computed by generators that ``gpu`` has decorated, each for about ``seconds``.

    Raises RuntimeError when a chunk is too short for a single step.
    """

    def run_chunk(preset: Preset, resume: Checkpointed | None, directory: str, early: bool) -> Iterator[Event]:
        """Runs where the GPU is: to the end, or to the checkpoint after its time is up; ``early``: stopped already."""
        control = FileControl(directory, time.monotonic() + seconds, early)
        for event in make_events(preset, control, resume):  # pyright: ignore[reportArgumentType] - any Control will do
            if early and isinstance(event, Finished) and event.reason == "stopped":
                event = replace(event, reason="stopped early")
            yield event
            if isinstance(event, Checkpointed) and control.is_leaving and not control.is_ending:
                return

    lent = gpu(run_chunk)

    def join_chunks(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        started = early = False
        with TemporaryDirectory(prefix="psd-chunk-") as directory:
            while True:
                write_controls(control, Path(directory))
                before, pauses = resume.step if resume else 0, control.pauses
                for event in lent(preset, resume, directory, early):
                    write_controls(control, Path(directory))
                    if isinstance(event, Checkpointed):
                        resume = event
                    early |= isinstance(event, Alarmed) and preset.is_ended_by(event.kind)
                    if not (started and isinstance(event, Started)):
                        yield event
                    started = True
                    if isinstance(event, Finished | Failed):
                        return
                reached = resume.step if resume else 0
                if reached == before and reached < preset.total_steps and control.pauses == pauses:
                    raise RuntimeError(f"a chunk of {seconds:g} s is too short for a step: lend the GPU for longer")

    return join_chunks


def write_controls(control: Controls, directory: Path) -> None:
    """Pass the controls on: what they say now, for the chunk that goes on or the next one."""
    live = json.dumps(dict(control.live())).encode()
    path = directory / "live.json"
    if not path.is_file() or path.read_bytes() != live:
        replace_file(path, live)
    for name, wanted in {"stop": control.stopping(), "leave": control.is_paused}.items():
        if wanted:
            (directory / name).touch()
        else:
            (directory / name).unlink(missing_ok=True)
