"""The events that a run yields: small and immutable, each one JSON line.

`psd.distillation.run.run` yields them; the store, the browser, the command line, replay and the tests all consume the
same stream. Arrays (previews, checkpoints, meshes) ride along as numpy and are left out of the JSON: the store writes
them to files and puts the file name in ``file``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh


def without_arrays(event: Event) -> Event:
    """The event without its arrays, which are in its file."""
    match event:
        case Previewed():
            return replace(event, images={})
        case Checkpointed():
            return replace(event, tensors={}, values={})
        case Meshed():
            return replace(event, mesh=None)
        case _:
            return event


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event at ``step`` (the number of completed optimisation steps), ``time_s`` after the start.

    ``stage`` counts the preset's `stages` from 0 on; the JSON says it from the second on.
    """

    arrays: ClassVar[tuple[str, ...]] = ()  # fields that stay out of the JSON

    step: int
    time_s: float = 0.0
    stage: int = 0


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The models are ready.  ``notes`` say what was chosen and why (backend, device, precision)."""

    preset: dict[str, Any]
    total_steps: int
    views: int
    environment: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """One optimisation step is done.  ``metrics`` are named ``group/name``, all finite floats:

    ``reward/<name>`` mean raw reward of the current render (on steps that measure it), ``judge/<name>`` the same for
    judges, ``pair/gap``, ``pair/confidence``, ``pair/ratio`` (preference over base), ``pair/win_first``,
    ``pair/contrast`` (`psd.distillation.methods.base_term.steering_prediction`), ``pair/half_agrees``
    (`psd.distillation.results.Ranking`), ``loss/<regulariser>``, ``negative/<statistic>``, ``image/<statistic>``,
    ``time/<part>`` seconds, and ``memory/peak_bytes`` (with the previews): the most of the GPU that was reserved since
    the run began, or on a CPU the most that the process has held since it began; 0 where the system does not say.
    """

    t: int  # diffusion step of the score, 0 .. T - 1
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NegativeUpdated(Event):
    """The learned negative embedding moved.  Lists have one entry a token position."""

    tokens: tuple[str, ...]  # of the initial negative prompt
    drift: tuple[float, ...]  # RMS distance of each position from its start
    nearest: tuple[str, ...]  # nearest vocabulary word of each position now (cosine, output space)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Previewed(Event):
    """Renders of the scene from fixed cameras: name (rgb, normal, opacity, depth) -> uint8 ``v h w 3``."""

    arrays: ClassVar[tuple[str, ...]] = ("images",)

    images: Mapping[str, np.ndarray]
    rewards: dict[str, list[float]] = field(default_factory=dict)  # reward or judge -> score of each view
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpointed(Event):
    """Everything that `run(..., resume=...)` needs to go on bit for bit: numpy arrays and JSON values."""

    arrays: ClassVar[tuple[str, ...]] = ("tensors", "values")

    tensors: Mapping[str, np.ndarray]
    values: Mapping[str, Any]
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class Meshed(Event):
    """The scene's surface, cleaned, in the world frame (+z up).

    ``scene_step`` is the step of the scene that was meshed, where that is not the last (``export: best``).
    """

    arrays: ClassVar[tuple[str, ...]] = ("mesh",)

    mesh: Mesh | None
    scene_step: int | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    file: str | None = None
    notes: tuple[str, ...] = ()  # of runs before films came after the end: why one was not made


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """A message that the user should read; the run goes on."""

    message: str


@dataclass(frozen=True, kw_only=True)
class BestKept(Event):
    """The selector judge has never scored a preview higher; every checkpoint from now on also holds this scene.

    The score chose the scene, so it flatters it: report another judge's.
    """

    judge: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Alarmed(Event):
    """A detector of `psd.distillation.detectors` spoke up; ``kind`` is "hacking" or "plateau", ``since`` the step where
    it began.
    """

    kind: str
    since: int
    message: str


@dataclass(frozen=True, kw_only=True)
class LiveChanged(Event):
    """A live slider was moved; ``values`` hold from the next step on."""

    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The loop is over; ``reason`` is "completed", "stopped" (by its user) or "stopped early" (by ``early_stop``)."""

    reason: str
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The run could not go on; what was reached is kept.  ``cure`` says what to change."""

    message: str
    cure: str = ""
    traceback: str = ""


KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Started, Stepped, NegativeUpdated, Previewed, Checkpointed, BestKept, Alarmed, Meshed, Warned, LiveChanged,
        Finished, Failed,
    )
}  # fmt: skip


def to_json(event: Event) -> str:
    """One line of JSON, without the arrays.  Non-finite numbers raise ValueError: no run may report them."""
    record = {f.name: getattr(event, f.name) for f in fields(event) if f.name not in event.arrays}
    if not event.stage:
        del record["stage"]
    return json.dumps({"event": type(event).__name__, **record}, allow_nan=False, ensure_ascii=False)


def from_json(line: str) -> Event:
    """The inverse of `to_json`; array fields come back empty (None for a mesh)."""
    record = json.loads(line)
    kind = KINDS[record.pop("event")]
    for f in fields(kind):
        if f.name in kind.arrays:
            record[f.name] = None if kind is Meshed else {}
        elif isinstance(record.get(f.name), list) and str(f.type).startswith("tuple"):
            record[f.name] = tuple(record[f.name])
    return kind(**record)


def stamp_event(event: Event, time_s: float, stage: int) -> Event:
    return replace(event, time_s=time_s, stage=stage)
