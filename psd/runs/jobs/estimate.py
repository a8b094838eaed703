"""How long and how large: the pace of runs, measured, for the time before a start and in the queue.

A pace holds for presets of one `workload_key`: everything that changes what a step costs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from psd.config.errors import PresetError
from psd.config.preset import Preset, flatten, list_settings
from psd.config.settings import read_facts
from psd.distillation.events import Event, Failed, Finished, Started, Stepped, Warned
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import MakeEvents, describe_failure

WARM_UP_STEPS = 8
WARM_UP_S = 20.0  # then `LEAST_STEPS` will do
LEAST_STEPS = 3  # of a live run, before its speed counts
ANY_VALUE = ("t_", "scene.weight_", "scene.blob_")
# What a user may change without changing the cost of a step.
FREE = {
    "prompt", "negative_prompt", "seed", "steps", "extra_steps", "early_stop", "export", "checkpoint_s",
    *(name for name in list_settings() if name.endswith("_lr") or name.startswith(ANY_VALUE)),
    *(name for name, field in list_settings().items() if read_facts(field)["live"]),
    "weight_decay",
} - {"rewards"}  # fmt: skip


@dataclass(frozen=True)
class RunEstimate:
    """``step_s`` is the mean, previews and updates included; ``end_s`` is the mesh and what goes with it."""

    step_s: float
    end_s: float
    memory_bytes: float = 0.0  # the most that was held; 0: not measured

    def left_s(self, preset: Preset, done: int = 0, until: int | None = None) -> float:
        """Seconds from step ``done`` to the exported mesh of a run that ends after ``until``, or its last step."""
        last = preset.total_steps if until is None else min(until, preset.total_steps)
        return max(last - done, 0) * self.step_s + self.end_s


def workload_key(preset: Preset) -> Hashable:
    values = {name: value for name, value in flatten(preset).items() if name not in FREE}
    return repr({**values, "rewards": sorted(preset.rewards)})


class Pacer:
    """Folds a run's events into its pace."""

    def __init__(self) -> None:
        self._first: Event | None = None
        self._last: Event | None = None
        self._end_s, self._memory = 0.0, 0.0

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self._first = event
            case Stepped() if self._first is None:  # after a pause
                self._first = event
            case Stepped():
                self._last = event
                self._memory = max(self._memory, event.metrics.get("memory/peak_bytes", 0.0))
            case Finished() if self._last:
                self._end_s = event.time_s - self._last.time_s

    @property
    def has_started(self) -> bool:
        return self._first is not None

    @property
    def run_estimate(self) -> RunEstimate | None:
        """None until `LEAST_STEPS` steps are known."""
        if self._first is None or self._last is None or self._last.step - self._first.step < LEAST_STEPS:
            return None
        seconds = self._last.time_s - self._first.time_s
        return RunEstimate(seconds / (self._last.step - self._first.step), self._end_s, self._memory)


def measure_warm_up(
    make_events: MakeEvents, preset: Preset, unless: Callable[[], bool] = lambda: False
) -> RunEstimate | None:
    """The pace of ``preset`` from a warm-up of its own: `WARM_UP_STEPS` steps and the mesh, nothing written.

    Costs about as many steps; where those are slow, as many as fit into `WARM_UP_S`.  Previews and updates of the
    negative come as often as in the run, as far as so few steps allow: at least once, hence a little too dear.  None
    when ``unless`` says, between two events, that somebody else needs the device.  Whatever stops the run is a
    `PresetError`, in the words of its `Failed`.
    """
    warm_up = preset.with_values(
        {
            "steps": WARM_UP_STEPS, "extra_steps": 0, "early_stop": "off", "negative_t_max": 1.0,
            "preview_every": min(preset.preview_every, WARM_UP_STEPS),
            "negative_every": min(preset.negative_every, WARM_UP_STEPS),
        }
    )  # fmt: skip
    pacer, control = Pacer(), Controls(warm_up)
    try:
        for event in make_events(warm_up, control, None):
            if (
                isinstance(event, Warned) and not pacer.has_started
            ):  # a download is only announced; nobody asked for it yet
                raise PresetError(f"no estimate before the models are here: a run begins by {event.message}")
            pacer.add(event)
            if isinstance(event, Failed):
                raise PresetError(f"{event.message}: {event.cure}")
            if unless():
                return None
            if event.step >= LEAST_STEPS and event.time_s > WARM_UP_S:
                control.stop()
    except PresetError:
        raise
    except Exception as error:  # noqa: BLE001 - as in a run: everything is said in words
        failed = describe_failure(error, 0, 0.0)
        raise PresetError(": ".join(filter(None, (failed.message, failed.cure)))) from error
    pace = pacer.run_estimate
    if pace is None:
        raise PresetError(f"no estimate: a warm-up of {WARM_UP_STEPS} steps ended before its pace was known")
    return pace
