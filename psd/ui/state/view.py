"""What a watcher knows of a run: ``view = fold(view, event)``, a pure function, and nothing of a browser.

The same fold serves a live run, a reload in mid-run and a finished run read back from its folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from psd.distillation import events

BUCKETS = 300  # of a curve; each gives at most two points, so a series never exceeds 600
MOMENTS = 200  # previews, and states of the negative embedding, that can be looked back at
CHANGES = 200  # of live values, the last ones
LOG_LINES = 300
SPEED_WINDOW = 20  # steps over which speed and winners are averaged
# Of a step's few groups a share says little: the last steps' is drawn.
SHARES = {"pair/win_first": "winner/first", "pair/half_agrees": "winner/half_agrees"}
WATCHED = ("reward/", "judge/", "negative/", "image/", "pair/", "time/", "memory/")  # metrics that are kept

AnyEvent = TypeVar("AnyEvent", bound=events.Event)


@dataclass(frozen=True)
class Bucket:
    """The smallest and the largest value among neighbouring steps: decimation that keeps every spike."""

    low: tuple[int, float]  # step, value
    high: tuple[int, float]
    count: int = 1

    def merge_with(self, other: Bucket) -> Bucket:
        low = min(self.low, other.low, key=lambda point: point[1])
        high = max(self.high, other.high, key=lambda point: point[1])
        return Bucket(low, high, self.count + other.count)


@dataclass(frozen=True)
class Curve:
    """One series of at most 2 * BUCKETS points, however long the run; ``stride`` values fall into a bucket."""

    buckets: tuple[Bucket, ...] = ()
    stride: int = 1
    last: tuple[int, float] | None = None

    def add_newest(self, step: int, value: float) -> Curve:
        """With one more value; one that is not later than the last came before and changes nothing."""
        if self.last and step <= self.last[0]:
            return self
        new = Bucket((step, value), (step, value))
        if self.buckets and self.buckets[-1].count < self.stride:
            return replace(self, buckets=(*self.buckets[:-1], self.buckets[-1].merge_with(new)), last=(step, value))
        if len(self.buckets) < BUCKETS:
            return replace(self, buckets=(*self.buckets, new), last=(step, value))
        pairs = zip(self.buckets[::2], self.buckets[1::2], strict=True)
        return Curve(tuple(a.merge_with(b) for a, b in pairs), 2 * self.stride, self.last).add_newest(step, value)

    def points(self) -> Iterator[tuple[int, float]]:
        """The points to draw, by step."""
        for bucket in self.buckets:
            yield from sorted({bucket.low, bucket.high})

    def scale_between(self, zero: float | None = None, one: float | None = None) -> Curve:
        """The same curve with ``zero`` at 0 and ``one`` at 1: its smallest and its largest value unless given."""
        values = [value for bucket in self.buckets for _, value in (bucket.low, bucket.high)]
        zero = min(values) if zero is None else zero
        span = ((max(values) if one is None else one) - zero) or 1.0

        def move_point(point: tuple[int, float]) -> tuple[int, float]:
            return point[0], (point[1] - zero) / span

        buckets = tuple(
            Bucket(move_point(bucket.low), move_point(bucket.high), bucket.count) for bucket in self.buckets
        )
        return replace(self, buckets=buckets, last=move_point(self.last) if self.last else None)

    def until(self, step: int) -> Curve:
        """Without what came after ``step``."""
        if self.last is None or self.last[0] <= step:
            return self
        buckets = tuple(bucket for bucket in self.buckets if max(bucket.low, bucket.high)[0] <= step)
        return Curve(buckets, self.stride, max(buckets[-1].low, buckets[-1].high) if buckets else None)


@dataclass(frozen=True)
class ThinnedEvents(Generic[AnyEvent]):
    """At most MOMENTS events of a kind, evenly thinned, and always the newest."""

    items: tuple[AnyEvent, ...] = ()
    stride: int = 1
    count: int = 0  # of all events, dropped ones too

    def add_newest(self, event: AnyEvent) -> ThinnedEvents[AnyEvent]:
        """With one more; one that is not later than the last came before, and this takes its place."""
        if self.items and event.step <= self.items[-1].step:
            return replace(self, items=(*self.items[:-1], event))
        newest_is_kept = (self.count - 1) % self.stride == 0
        items, stride = self.items if newest_is_kept else self.items[:-1], self.stride
        if len(items) >= MOMENTS:
            items, stride = items[::2], 2 * stride
        return ThinnedEvents((*items, event), stride, self.count + 1)

    def until(self, step: int) -> ThinnedEvents[AnyEvent]:
        """Without what came after ``step``."""
        items = tuple(event for event in self.items if event.step <= step)
        return self if items == self.items else ThinnedEvents(items, self.stride, (len(items) - 1) * self.stride + 1)

    def at(self, step: int) -> AnyEvent | None:
        """The newest at ``step`` or before it, else the first."""
        earlier = [event for event in self.items if event.step <= step]
        return earlier[-1] if earlier else next(iter(self.items), None)

    @property
    def last(self) -> AnyEvent | None:
        return self.items[-1] if self.items else None


@dataclass(frozen=True)
class View:
    """Everything that the events of one run say; without arrays, so it stays small.

    Curves go by the metric's name; some are made here: ``weighted/reward`` (the sum that the weights in force make of
    the rewards), those of `SHARES` (of steps: that the first candidate won, and that half of the views agree on the
    winner) and ``speed/steps_per_s``, these averaged over about SPEED_WINDOW steps.
    """

    reason: str = ""  # why the run ended: completed, stopped or failed; empty while it goes on
    step: int = 0
    total_steps: int = 0
    time_s: float = 0.0
    preset: Mapping[str, Any] = field(default_factory=dict)
    live: Mapping[str, Any] = field(default_factory=dict)  # values that were changed during the run
    notes: tuple[str, ...] = ()
    clock: tuple[tuple[int, float], ...] = ()  # (step, time_s) of the last steps
    curves: Mapping[str, Curve] = field(default_factory=dict)
    negative_start: events.NegativeUpdated | None = None
    negatives: ThinnedEvents[events.NegativeUpdated] = ThinnedEvents()
    previews: ThinnedEvents[events.Previewed] = ThinnedEvents()
    mesh: events.Meshed | None = None
    own_threshold: float | None = None  # density of the surface that the run chose itself: of its first mesh
    changes: tuple[events.LiveChanged, ...] = ()
    stages: tuple[tuple[int, int], ...] = ()  # (step, stage) of the first event of each stage after the first
    best: events.BestKept | None = None
    alarms: tuple[events.Alarmed, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    warning: str = ""  # the last one
    problem: str = ""
    cure: str = ""

    @property
    def stage(self) -> int:
        """Of the preset's `stages`, from 0 on."""
        return self.stages[-1][1] if self.stages else 0

    @property
    def steps_per_s(self) -> float | None:
        """Over the last steps; None until there are two."""
        if len(self.clock) < 2 or self.clock[-1][1] <= self.clock[0][1]:
            return None
        return (self.clock[-1][0] - self.clock[0][0]) / (self.clock[-1][1] - self.clock[0][1])

    @property
    def remaining_s(self) -> float | None:
        return (self.total_steps - self.step) / self.steps_per_s if self.steps_per_s else None

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the rewards that count, as they are in force now."""
        own = (self.preset.get("stages") or [{}])[self.stage]
        rewards = {**self.preset, **self.live, **own}.get("rewards", {})
        return {name: weight for name, weight in rewards.items() if weight > 0}


def fold_event(view: View, event: events.Event) -> View:
    """The view after ``event``; neither argument changes."""
    if isinstance(event, events.Started):
        return _apply_start(view, event)
    view = replace(view, step=max(view.step, event.step), time_s=max(view.time_s, event.time_s))
    if event.stage > view.stage:
        view = replace(view, stages=(*view.stages, (event.step, event.stage)))
    match event:
        case events.Stepped():
            view = replace(view, clock=(*view.clock, (event.step, event.time_s))[-SPEED_WINDOW:])
            return _add_metrics(view, event.step, event.metrics)
        case events.NegativeUpdated():
            view = replace(
                view, negatives=view.negatives.add_newest(event), negative_start=view.negative_start or event
            )
            return _add_metrics(view, event.step, event.metrics)
        case events.Previewed():
            means = {name: sum(scores) / len(scores) for name, scores in event.rewards.items()}
            view = replace(view, previews=view.previews.add_newest(replace(event, images={})))
            return _add_metrics(view, event.step, means)
        case events.Meshed():
            faces = event.statistics.get("faces")
            event, threshold = replace(event, mesh=None), event.statistics.get("threshold")
            if view.own_threshold is None and isinstance(threshold, int | float):
                view = replace(view, own_threshold=float(threshold))
            return _add_log_line(
                replace(view, mesh=event), event, "mesh ready" + (f": {faces:,} faces" if faces else "")
            )
        case events.Warned():
            return _add_log_line(replace(view, warning=event.message), event, event.message)
        case events.BestKept():
            return replace(view, best=event)
        case events.Alarmed():
            return _add_log_line(replace(view, alarms=(*view.alarms, event)), event, f"{event.kind}: {event.message}")
        case events.LiveChanged():
            values = ", ".join(f"{name} = {value}" for name, value in event.values.items())
            view = replace(view, changes=(*view.changes, event)[-CHANGES:], live={**view.live, **event.values})
            return _add_log_line(view, event, f"changed while running: {values}")
        case events.Finished():
            return _add_log_line(replace(view, reason=event.reason, scores=event.scores), event, event.reason)
        case events.Failed():
            view = replace(view, reason="failed", problem=event.message, cure=event.cure)
            return _add_log_line(view, event, " ".join(filter(None, ("failed:", event.message, event.cure))))
    return view


def _apply_start(view: View, event: events.Started) -> View:
    """From the start, or on from a checkpoint: what came after it is forgotten, since it happens anew."""
    step = event.step
    view = replace(
        view, reason="", problem="", cure="", warning="", own_threshold=None, step=step, time_s=event.time_s,
        total_steps=event.total_steps,
        preset=event.preset, notes=event.notes, clock=((step, event.time_s),),
        curves={name: curve.until(step) for name, curve in view.curves.items()},
        negatives=view.negatives.until(step), previews=view.previews.until(step),
        changes=tuple(change for change in view.changes if change.step <= step),
        stages=tuple((begun, stage) for begun, stage in view.stages if stage <= event.stage),
        alarms=tuple(alarm for alarm in view.alarms if alarm.step <= step),
        best=view.best if view.best and view.best.step <= step else None,
    )  # fmt: skip
    return _add_log_line(view, event, "models ready: " + "; ".join(event.notes or ("started",)))


def _add_metrics(view: View, step: int, metrics: Mapping[str, float]) -> View:
    """With another point on each curve that is watched."""
    points = {name: value for name, value in metrics.items() if name.startswith(WATCHED)}
    rewards = {name: points.get(f"reward/{name}") for name in view.weights}
    if rewards and None not in rewards.values():
        points["weighted/reward"] = sum(view.weights[name] * (value or 0.0) for name, value in rewards.items())
    for measured, name in SHARES.items():
        if (share := points.pop(measured, None)) is not None:
            earlier = view.curves.get(name, Curve()).last
            points[name] = earlier[1] + (share - earlier[1]) / SPEED_WINDOW if earlier else share
    if view.steps_per_s and "time/step" in points:
        points["speed/steps_per_s"] = view.steps_per_s
    added = {name: view.curves.get(name, Curve()).add_newest(step, value) for name, value in points.items()}
    return replace(view, curves={**view.curves, **added})


def _add_log_line(view: View, event: events.Event, text: str) -> View:
    return replace(view, log=(*view.log, f"{event.time_s:7.1f} s  step {event.step:>5}  {text}")[-LOG_LINES:])
