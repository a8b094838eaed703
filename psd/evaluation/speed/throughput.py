"""How fast a run goes when nothing waits for it, what it does beside its steps, and the targets for both.

`psd.evaluation.speed.bench` asks where the time of a step goes, with a clock that waits for the GPU at both ends of
every part: such steps are slower than a run's, which launch ahead of the GPU.  Here the clock is plain, and the GPU is
waited for before the first and after the last of many steps only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from psd.config.errors import PresetError, first_line
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Failed, Meshed, Previewed, Stepped, Warned
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.drive import drive_run
from psd.runs.store.folder import RunFolder
from psd.runtime import memory
from psd.runtime.timing import Clock

if TYPE_CHECKING:
    from psd.models.interfaces import Models

Found = TypeVar("Found")
Synchronise = Callable[[], object]

ROOM = "Free memory, raise --memory-gb, or choose a preset or values that need less"
WARM_UP = 3  # steps of each stage that allocate and compile
# The speed targets of the project, for `mvdream` as it is shipped; a run of 10,000 steps in 10 minutes.
TARGET_IT_S = 17.0  # on a card of the H200's class
TARGET_BYTES = 22e9  # so that a card of 24 GB does
TARGET_OVERHEAD = 0.10  # of a step, beyond bare networks and rendering
TARGET_PRESET = "mvdream"
FREE = ("prompt", "negative_prompt", "seed", "device", "threads")  # whatever they are, a step costs the same
FAST_CARDS = ("H100", "H200", "B200", "B300")  # in the name; GH200 and GB200 too


# ---------------------------------------------------------------------------------------------------------- the machine


def device_synchroniser(models: Models) -> Callable[[], object]:
    """A function that waits until the models' device has done all that it was given; on a CPU calls never run ahead."""
    import torch

    return torch.cuda.synchronize if models.prior.device.type == "cuda" else lambda: None


def cap_memory(gigabytes: float | None) -> None:
    """From here on this process gets no more of the GPU than a smaller one has (GiB), and its peak is counted anew.

    The driver's own share of a GPU, some hundred MiB, comes on top.  Raises `PresetError` without a GPU, or with one
    that has less.
    """
    import torch

    memory.release_memory()
    memory.reset_peak()
    if gigabytes is None:
        return
    if not torch.cuda.is_available():
        raise PresetError("--memory-gb caps an NVIDIA GPU, and torch finds none: leave it out")
    share = gigabytes * 2**30 / torch.cuda.get_device_properties(0).total_memory
    if not 0 < share <= 1:
        raise PresetError(f"--memory-gb {gigabytes} must be above 0 and at most what the GPU has")
    torch.cuda.set_per_process_memory_fraction(share)


# -------------------------------------------------------------------------------------------------- a run that is timed


@dataclass(frozen=True)
class StageShare:
    """What a stage weighs in the whole run."""

    name: str
    share: float  # of the run's steps
    updates: float  # of the negative embedding that a step is expected to have
    judged: float = 1.0  # share of its steps below the gate, in which rewards are asked


def list_levels(preset: Preset, models: Models) -> list[int]:
    """T of the prior's schedule, of each stage."""
    return [models.in_stage(stage).prior.levels for stage in preset.list_stages()]


def weigh_stages(preset: Preset, levels: Sequence[int]) -> list[StageShare]:
    """Every stage that has steps; one, where the preset names none.  ``levels``: see `list_levels`."""
    from psd.distillation.negative import update_probability
    from psd.distillation.sampling import open_probability

    steps: dict[int, list[int]] = {}
    for step in range(preset.total_steps):
        steps.setdefault(preset.stage_at(preset.progress(step))[0], []).append(step)
    return [
        StageShare(
            f"stage {index + 1}" if preset.stages else "all steps", len(own) / preset.total_steps,
            sum(update_probability(preset, step, levels[index]) for step in own) / len(own),
            sum(open_probability(preset, step, levels[index]) for step in own) / len(own),
        )
        for index, own in steps.items()
    ]  # fmt: skip


def short_schedule(preset: Preset, each: int, values: Mapping[str, Any]) -> Preset:
    """``preset`` with ``each`` steps in each of its stages and one more, as the last step would preview."""
    steps = each * max(1, len(preset.stages)) + 1
    stages = [{**stage.model_dump(), "share": each / steps} for stage in preset.stages]
    if stages:
        stages[-1]["share"] = (each + 1) / steps
    changed = {"steps": steps, "extra_steps": 0, "preview_every": 10_000, "stages": stages}
    return preset.with_values({**changed, **values})


def require_steady(events: Iterator[Event]) -> Iterator[Event]:
    """A run's events as they are; `PresetError` where it fails, or is short of memory and goes on as something else.

    It would only warn and go on smaller: what is measured then is another workload.
    """
    from psd.distillation.less_memory import is_short

    for event in events:
        match event:
            case Failed():
                raise PresetError(f"the benchmark failed: {event.message}; {event.cure}")
            case Warned() if is_short(event.message):
                raise PresetError(
                    f"nothing was measured, as the preset did not stay what it was: {event.message} {ROOM}"
                )
        yield event


def require_memory(work: Callable[[], Found]) -> Found:
    """What ``work`` returns; `PresetError` where memory is short for what a run does not watch over."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
        why = first_line(error)
    memory.release_memory()  # out of the exception, whose frames hold what was made
    raise PresetError(f"nothing was measured, out of memory: {why}. {ROOM}")


# ----------------------------------------------------------------------------------------------------------------- pace


@dataclass(frozen=True)
class Throughput:
    """The pace of steps that nothing waited for."""

    step_s: float  # mean seconds
    peak: memory.Peak
    repeated: int = (
        0  # steps that were computed again, as float16 overflowed (`psd.runtime.precision`); their time counts
    )


def measure_throughput(
    preset: Preset, models: Models, steps: int, found: Sequence[StageShare], synchronise: Synchronise
) -> Throughput:
    """The pace of the whole run, from ``steps`` steps of each stage after a warm-up.

    Steps with an update of the negative and without are timed apart, in runs where all have one or none: in so few
    steps they would not come as often as in the run.  Raises as `require_steady` does.
    """
    each, whole, peak, repeated = WARM_UP + steps, sum(stage.share for stage in found), memory.Peak(0), 0
    kinds: dict[bool, dict[str, Any]] = {False: {"negative": False}}
    if any(stage.updates for stage in found):
        kinds[True] = {"negative_every": 1, "negative_t_max": 1.0}
    seconds = {}
    for updated, values in kinds.items():
        memory.release_memory()  # what the run before left would count as held
        clock, chosen = Clock(), short_schedule(preset, each, values)
        seconds[updated] = time_steps(chosen, models, steps, synchronise, clock)
        peak, repeated = peak | memory.Peak.now(), repeated + clock.begun - each * len(found)
    mean = 0.0
    for index, stage in enumerate(found):
        shares = {False: 1 - stage.updates, True: stage.updates}
        mean += stage.share / whole * sum(shares[updated] * times[index] for updated, times in seconds.items())
    return Throughput(mean, peak, repeated)


def time_steps(preset: Preset, models: Models, steps: int, synchronise: Synchronise, clock: Clock) -> list[float]:
    """Mean seconds of a step in each span of ``WARM_UP + steps`` steps of the run, less warm-up and checkpoints."""
    from psd.distillation.run import run

    each, found, begun, lost = WARM_UP + steps, [], 0.0, 0.0
    saved, free = time.monotonic(), 0.0
    for event in require_steady(run(preset, models, clock=clock)):
        if isinstance(event, Checkpointed):
            lost, saved = lost + time.perf_counter() - free, time.monotonic()
        elif isinstance(event, Stepped):
            done = event.step % each
            if done == WARM_UP or done == 0:
                synchronise()
            if done == WARM_UP:
                begun, lost = time.perf_counter(), 0.0
            elif done == 0:
                found.append((time.perf_counter() - begun - lost) / steps)
                if event.step == preset.total_steps - 1:
                    break
            elif time.monotonic() - saved >= preset.checkpoint_s:
                synchronise()  # a checkpoint may follow, which waits for the GPU: that wait is the steps'
        free = time.perf_counter()
    return found


# --------------------------------------------------------------------------------------------------- beside the steps


@dataclass(frozen=True)
class SideWork:
    """Seconds of a run's work beside its steps, the files that it writes included."""

    preview_s: float
    checkpoint_s: float
    mesh_s: float | None  # with its turntable; None: the scene gave no mesh
    peak: memory.Peak

    def whole_s(self, preset: Preset, step_s: float) -> float:
        """Of a whole run with steps of ``step_s``: all of them, previews, checkpoints and the mesh; not the loading."""
        steps, every = preset.total_steps, preset.preview_every
        previews = 1 + steps // every + (steps % every > 0)  # before the first step, and of the last
        busy = steps * step_s + previews * self.preview_s
        checkpoints = 1 + int(busy // preset.checkpoint_s)
        return busy + checkpoints * self.checkpoint_s + (self.mesh_s or 0.0)


def time_side_work(preset: Preset, models: Models, synchronise: Synchronise) -> SideWork:
    """Times the last preview, the last checkpoint and the mesh of a run of a few steps, which leaves nothing behind.

    The scene is young: its mesh is simpler than a finished object's, but has as many cells to look at, and as many
    faces as the preset allows.  Raises as `require_steady` does.
    """
    from psd.distillation.run import run

    preset = preset.with_values(
        {"steps": WARM_UP + 1, "extra_steps": 0, "preview_every": 1, "early_stop": "off", "export": "last"}
    )
    preview_s, checkpoint_s, mesh_s = 0.0, 0.0, None
    memory.release_memory()

    def events(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        return run(preset, models, control=control, resume=resume, clock=Clock(synchronise))

    with tempfile.TemporaryDirectory() as root, RunFolder.create(preset, Path(root)) as folder:
        free = time.perf_counter()
        for event in require_steady(drive_run(events, folder, Controls(preset))):
            synchronise()
            took = time.perf_counter() - free
            match event:
                case Stepped():  # the preview is computed before the step is yielded
                    preview_s = took - event.metrics["time/step"]
                case Previewed():
                    preview_s += took
                case Checkpointed():
                    checkpoint_s = took
                case Meshed():
                    mesh_s = took
            free = time.perf_counter()
    return SideWork(preview_s, checkpoint_s, mesh_s, memory.Peak.now())


# -------------------------------------------------------------------------------------------------------- speed targets


@dataclass(frozen=True)
class SpeedTarget:
    """A target and the figure that was measured, both in words."""

    asked: str
    found: str
    met: bool

    def __str__(self) -> str:
        return f"{self.asked}: {self.found}, {'met' if self.met else 'MISSED'}"


def is_target_preset(preset: Preset) -> bool:
    """Whether this is `TARGET_PRESET` as it is shipped, whatever its prompts, seed and device."""
    shipped = Preset.load(TARGET_PRESET)
    return preset.with_values({name: getattr(shipped, name) for name in FREE}) == shipped


def check_targets(
    preset: Preset, *, exact: bool, card: str | None, step_s: float, reserved: int | None, overhead_share: float
) -> list[SpeedTarget]:
    """The speed targets that hold for this preset on this card (torch's name of an NVIDIA GPU; None: there is none).

    Empty for another preset, for shrunk networks (not ``exact``) and on a CPU.  The target of speed is for the H200's
    class only.  ``reserved``: bytes of the GPU in all.
    """
    if not (is_target_preset(preset) and exact and card is not None and reserved is not None):
        return []
    found = []
    if any(name in card for name in FAST_CARDS) and "PCIe" not in card:
        found.append(SpeedTarget(f"at least {TARGET_IT_S:g} it/s", f"{1 / step_s:.2f} it/s", 1 / step_s >= TARGET_IT_S))
    found.append(
        SpeedTarget(
            f"at most {TARGET_BYTES / 1e9:g} GB of the GPU", f"{reserved / 1e9:.2f} GB", reserved <= TARGET_BYTES
        )
    )
    found.append(
        SpeedTarget(
            f"overhead at most {TARGET_OVERHEAD:.0%}", f"{overhead_share:.1%}", overhead_share <= TARGET_OVERHEAD
        )
    )
    return found
