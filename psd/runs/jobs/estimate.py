"""How long and how large: the pace of runs, measured, for the time before a start and in the queue.

A pace holds for presets of one `workload_key`: everything that changes what a step costs, and nothing else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

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
    *(name for name, info in list_settings().items() if read_facts(info)["live"]),
    "weight_decay",
} - {"rewards"}  # fmt: skip


@dataclass(frozen=True)
class RunEstimate:
    """Seconds by stage: ``step_s`` of a mean step, previews and updates included, of the stages that were seen;
    ``begin_s`` what the beginning of a later one takes, such as a mesh of the scene before; ``end_s`` is the mesh and
    what goes with it."""

    step_s: Mapping[int, float]
    begin_s: Mapping[int, float] = field(default_factory=dict)
    end_s: float = 0.0
    memory_bytes: float = 0.0  # the most that was held; 0: not measured

    def left_s(self, preset: Preset, done: int = 0, until: int | None = None) -> float:
        """Seconds from step ``done`` to the exported mesh of a run that ends after ``until``, or its last step.

        A stage that was never seen is taken for as fast as the one before.
        """
        last = preset.total_steps if until is None else min(until, preset.total_steps)
        left, step_s = self.end_s, next(iter(self.step_s.values()))
        for stage in range(max(1, len(preset.stages))):
            first, following = (_find_first_step(preset, index) for index in (stage, stage + 1))
            step_s = self.step_s.get(stage, step_s)
            left += max(min(following, last) - max(first, done), 0) * step_s
            if done <= first < last:
                left += self.begin_s.get(stage, 0.0)
        return left


def _find_first_step(preset: Preset, stage: int) -> int:
    """Steps that are done when ``stage`` begins; all of them where it never does."""
    return bisect_left(range(preset.total_steps), stage, key=lambda step: preset.stage_at(preset.progress(step))[0])


def workload_key(preset: Preset) -> Hashable:
    values = {name: value for name, value in flatten(preset).items() if name not in FREE}
    return repr({**values, "rewards": sorted(preset.rewards)})


class Pacer:
    """Folds a run's events into its pace."""

    def __init__(self) -> None:
        self._last: Event | None = None  # the start, or the last step
        self._steps: Counter[int] = Counter()  # by stage, of which the time is known
        self._seconds: defaultdict[int, float] = defaultdict(float)
        self._first_s: dict[int, float] = {}  # the first step of a later stage, with its beginning
        self._end_s, self._memory = 0.0, 0.0

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self._last = event
            case Stepped():
                if self._last is not None:  # after a pause there is no start
                    self._count_step(event, self._last)
                self._last = event
                self._memory = max(self._memory, event.metrics.get("memory/peak_bytes", 0.0))
            case Finished() if self._steps and self._last:
                self._end_s = event.time_s - self._last.time_s

    def _count_step(self, event: Stepped, before: Event) -> None:
        spent = event.time_s - before.time_s
        if isinstance(before, Stepped) and event.stage != before.stage:
            self._first_s[event.stage] = spent
        else:
            self._steps[event.stage] += event.step - before.step
            self._seconds[event.stage] += spent

    @property
    def has_started(self) -> bool:
        return self._last is not None

    @property
    def run_estimate(self) -> RunEstimate | None:
        """None until `LEAST_STEPS` steps are known."""
        if self._steps.total() + len(self._first_s) < LEAST_STEPS or not self._steps:
            return None
        step_s = {stage: self._seconds[stage] / steps for stage, steps in sorted(self._steps.items())}
        usual = sum(self._seconds.values()) / self._steps.total()
        begin_s = {stage: max(0.0, spent - step_s.get(stage, usual)) for stage, spent in self._first_s.items()}
        return RunEstimate(step_s, begin_s, self._end_s, self._memory)


def measure_warm_up(
    make_events: MakeEvents, preset: Preset, unless: Callable[[], bool] = lambda: False
) -> RunEstimate | None:
    """The pace of ``preset`` from a warm-up of its own: `WARM_UP_STEPS` steps and the mesh, nothing written.

    Costs about as many steps, in all stages; where those are slow, as many as fit into `WARM_UP_S` or tell the pace of
    the last stage.  Previews and updates of the negative come as often as in the run, as far as so few steps allow: at
    least once, hence a little too dear.  None when ``unless`` says, between two events, that somebody else needs the
    device.  Whatever stops the run is a `PresetError`, in the words of its `Failed`.
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
            known = pacer.run_estimate
            if known and event.time_s > WARM_UP_S and max(known.step_s) >= len(preset.stages) - 1:
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
