"""What a watcher knows of a run: ``view = fold(view, event)``, a pure function, and nothing of a browser.

The same fold serves a live run, a reload in mid-run and a finished run read back from its folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from psd.events import (
    Event,
    Failed,
    Finished,
    LiveChanged,
    Meshed,
    NegativeUpdated,
    Previewed,
    Started,
    Stepped,
    Warned,
)  # fmt: skip

BUCKETS = 300  # of a curve; each gives at most two points, so a series never exceeds 600
LOG_LINES = 300
SPEED_WINDOW = 20  # steps over which the speed is averaged


@dataclass(frozen=True)
class Bucket:
    """The smallest and the largest value among neighbouring steps: decimation that keeps every spike."""

    low: tuple[int, float]  # step, value
    high: tuple[int, float]
    count: int = 1

    def merged(self, other: Bucket) -> Bucket:
        low = min(self.low, other.low, key=lambda point: point[1])
        high = max(self.high, other.high, key=lambda point: point[1])
        return Bucket(low, high, self.count + other.count)


@dataclass(frozen=True)
class Curve:
    """One series of at most 2 * BUCKETS points, however long the run; ``stride`` values fall into a bucket."""

    buckets: tuple[Bucket, ...] = ()
    stride: int = 1
    last: tuple[int, float] | None = None

    def added(self, step: int, value: float) -> Curve:
        """With one more value; one that is not later than the last is told twice and changes nothing."""
        if self.last and step <= self.last[0]:
            return self
        new = Bucket((step, value), (step, value))
        if self.buckets and self.buckets[-1].count < self.stride:
            return replace(self, buckets=(*self.buckets[:-1], self.buckets[-1].merged(new)), last=(step, value))
        if len(self.buckets) < BUCKETS:
            return replace(self, buckets=(*self.buckets, new), last=(step, value))
        pairs = zip(self.buckets[::2], self.buckets[1::2], strict=True)
        return Curve(tuple(a.merged(b) for a, b in pairs), 2 * self.stride, self.last).added(step, value)

    def points(self) -> Iterator[tuple[int, float]]:
        """The points to draw, by step."""
        for bucket in self.buckets:
            yield from sorted({bucket.low, bucket.high})


@dataclass(frozen=True)
class View:
    """Everything that the events of one run tell; without arrays, so it stays small."""

    reason: str = ""  # why the run ended: completed, stopped or failed; empty while it goes on
    step: int = 0
    total_steps: int = 0
    time_s: float = 0.0
    preset: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    clock: tuple[tuple[int, float], ...] = ()  # (step, time_s) of the last steps
    curves: Mapping[str, Curve] = field(default_factory=dict)  # "reward/<name>", "judge/<name>", "negative/<statistic>"
    negative: NegativeUpdated | None = None
    preview: Previewed | None = None
    mesh: Meshed | None = None
    changes: int = 0  # of live sliders, so far
    scores: Mapping[str, float] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    warning: str = ""  # the last one
    problem: str = ""
    cure: str = ""

    @property
    def steps_per_s(self) -> float | None:
        """Over the last steps; None until there are two."""
        if len(self.clock) < 2 or self.clock[-1][1] <= self.clock[0][1]:
            return None
        return (self.clock[-1][0] - self.clock[0][0]) / (self.clock[-1][1] - self.clock[0][1])

    @property
    def remaining_s(self) -> float | None:
        return (self.total_steps - self.step) / self.steps_per_s if self.steps_per_s else None


def fold(view: View, event: Event) -> View:
    """The view after ``event``; neither argument changes."""
    view = replace(view, step=max(view.step, event.step), time_s=max(view.time_s, event.time_s))
    match event:
        case Started():
            view = replace(
                view, preset=event.preset, total_steps=event.total_steps, notes=event.notes,
                clock=((event.step, event.time_s),),
            )  # fmt: skip
            return _logged(view, event, "models ready: " + "; ".join(event.notes or ("started",)))
        case Stepped():
            clock = (*view.clock, (event.step, event.time_s))[-SPEED_WINDOW:]
            return replace(view, clock=clock, curves=_extended(view.curves, event.step, event.metrics))
        case NegativeUpdated():
            return replace(view, negative=event, curves=_extended(view.curves, event.step, event.metrics))
        case Previewed():
            means = {name: sum(scores) / len(scores) for name, scores in event.rewards.items()}
            curves = _extended(view.curves, event.step, means)
            return replace(view, preview=replace(event, images={}), curves=curves)
        case Meshed():
            faces = event.statistics.get("faces")
            event = replace(event, mesh=None, turntable=None)
            return _logged(replace(view, mesh=event), event, "mesh ready" + (f": {faces:,} faces" if faces else ""))
        case Warned():
            return _logged(replace(view, warning=event.message), event, event.message)
        case LiveChanged():
            values = ", ".join(f"{name} = {value}" for name, value in event.values.items())
            return _logged(replace(view, changes=view.changes + 1), event, f"changed while running: {values}")
        case Finished():
            return _logged(replace(view, reason=event.reason, scores=event.scores), event, event.reason)
        case Failed():
            view = replace(view, reason="failed", problem=event.message, cure=event.cure)
            return _logged(view, event, " ".join(filter(None, ("failed:", event.message, event.cure))))
    return view


WATCHED = ("reward/", "judge/", "negative/")


def _extended(curves: Mapping[str, Curve], step: int, metrics: Mapping[str, float]) -> Mapping[str, Curve]:
    watched = {name: value for name, value in metrics.items() if name.startswith(WATCHED)}
    return {**curves, **{name: curves.get(name, Curve()).added(step, value) for name, value in watched.items()}}


def _logged(view: View, event: Event, text: str) -> View:
    return replace(view, log=(*view.log, f"{event.time_s:7.1f} s  step {event.step:>5}  {text}")[-LOG_LINES:])
