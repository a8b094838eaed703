"""Where the time of a whole run goes, and how many cores are at work: ``python -m psd bench --full``.

A run yields an event whenever something is done, so that the time before an event is the event's: computed by the run,
then stored by whoever drives it.  Seconds of the wall and of the processor are both counted, the latter over all
threads: their quotient says how many cores were busy.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Finished, Meshed, Previewed, Started, Stepped
from psd.evaluation.speed.throughput import require_steady
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents, drive_run
from psd.runs.store.folder import RunFolder

FILES = {Previewed: "previews", Checkpointed: "checkpoints", Meshed: "the mesh"}  # what storing an event writes


@dataclass
class Spent:
    """Seconds of the wall and of the processor."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @classmethod
    def now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)

    def __iadd__(self, other: Spent) -> Spent:
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s
        return self

    @property
    def cores(self) -> float:
        """Cores that were at work on average."""
        return self.cpu_s / self.wall_s if self.wall_s > 0 else 0.0


@dataclass
class RunProfile:
    """What each part of a run took, in the order in which parts first came; parts of a step by the wall alone."""

    parts: dict[str, Spent] = field(default_factory=dict)
    step_parts: dict[str, float] = field(default_factory=dict)  # seconds in all, by the engine's clock
    milestones: dict[str, float] = field(default_factory=dict)  # seconds from the start

    def add_part(self, part: str, spent: Spent) -> None:
        own = self.parts.setdefault(part, Spent())
        own += spent

    def add_event(self, event: Event, spent: Spent) -> None:
        """The time that the run took to come to ``event``."""
        match event:
            case Started():
                self.add_part("models", spent)
            case Stepped():
                step = spent
                if any(name.startswith("image/") for name in event.metrics):  # a preview was made before it was said
                    step_s = min(event.metrics.get("time/step", spent.wall_s), spent.wall_s)
                    cores = self.parts.get("steps", spent).cores  # as the steps without a preview had
                    step = Spent(step_s, min(step_s * cores, spent.cpu_s))
                    self.add_part("previews and judges", spent - step)
                self.add_part("steps", step)
                for name, seconds in event.metrics.items():
                    if name.startswith("time/") and name != "time/step":
                        self.step_parts[name[5:]] = self.step_parts.get(name[5:], 0.0) + seconds
            case Previewed():
                self.add_part("previews and judges", spent)
            case Checkpointed():
                self.add_part("checkpoints", spent)
            case Meshed():
                self.add_part("mesh", spent)
            case _:
                self.add_part("other", spent)

    @property
    def whole(self) -> Spent:
        total = Spent()
        for spent in self.parts.values():
            total += spent
        return total

    def format_lines(self) -> list[str]:
        """A table: seconds, share of the whole, cores at work; then the parts of all steps."""
        whole, machine = self.whole, os.cpu_count() or 1
        lines = [f"{'a whole run':22} {'seconds':>8} {'share':>7} {'cores':>6}"]
        for name, spent in [*self.parts.items(), ("in all", whole)]:
            lines += [f"{name:22} {spent.wall_s:8.2f} {spent.wall_s / whole.wall_s:7.1%} {spent.cores:6.2f}"]
        lines += [f"of {machine} cores {whole.cores / machine:.0%} were at work", ""]
        steps_s = sum(self.step_parts.values())
        for name, seconds in sorted(self.step_parts.items(), key=lambda part: -part[1]):
            lines += [f"steps: {name:15} {seconds:8.2f} {seconds / steps_s:7.1%}"]
        return [*lines, *(f"{name.replace('_', ' ')}: {seconds:.1f} s" for name, seconds in self.milestones.items())]


def seconds_since_launch() -> float:
    """Seconds since this process was launched, libraries and all; where the system tells none, those it computed."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.process_time()


def profile_run(preset: Preset, make_events: MakeEvents) -> RunProfile:
    """A whole run, its files included, in a folder that is deleted.

    Raises `PresetError` where the run fails, or memory is short and it goes on smaller.
    """
    profile = RunProfile()

    def watched(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        events = make_events(preset, control, resume)
        while True:
            begun = Spent.now()
            event = next(events, None)
            if event is None:
                return
            profile.add_event(event, Spent.now() - begun)
            stored = Spent.now()
            yield event
            profile.add_part(
                f"files of {FILES[type(event)]}" if type(event) in FILES else "other", Spent.now() - stored
            )

    with tempfile.TemporaryDirectory() as root, RunFolder.create(preset, Path(root)) as folder:
        launched = Spent(seconds_since_launch(), time.process_time())
        profile.add_part("start-up", launched)
        start, over = time.perf_counter() - launched.wall_s, Spent.now()
        for event in require_steady(drive_run(watched, folder, Controls(preset))):
            now = time.perf_counter() - start
            match event:
                case Started():
                    profile.milestones.setdefault("models_ready", now)
                case Previewed() if event.step > 0:
                    profile.milestones.setdefault("first_preview", now)
                case Meshed():
                    profile.milestones["mesh"] = now
                case Finished():
                    profile.milestones["finished"], over = now, Spent.now()
        profile.add_part("films", Spent.now() - over)  # made when the run is over
    return profile
