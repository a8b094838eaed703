"""Where a step's time goes, and what the engine adds to the calls that it cannot do without.

``python -m psd bench`` runs a preset for some steps.  The breakdown is the engine's own clock (``time/*``), which waits
for a GPU at both ends of every part.  The overhead is a step's time by that clock minus its bare calls: every call of
prior, rewards and scene is recorded, and between the steps each kind is timed alone on the same arguments, with its
backward where gradients flowed, and with the same waits.  Each measured step is weighed as often as its like comes in
the whole run (`psd.evaluation.speed.throughput.weigh_stages`): those of each stage, and updates of the negative.  The
pace, it/s, and the memory are those of further steps that nobody waits for or records
(`psd.evaluation.speed.throughput`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Stepped
from psd.evaluation.speed import throughput
from psd.evaluation.speed.profile import RunProfile, profile_run
from psd.evaluation.speed.throughput import WARM_UP
from psd.runs import engine
from psd.runs.jobs.controls import Controls
from psd.runtime import memory

if TYPE_CHECKING:
    import torch

    from psd.evaluation.speed.recorder import Call
    from psd.models.interfaces import Models
    from psd.scenes.interfaces import MakeScene, Scene

# What tiny weights see a quarter of, and the least of it.
SHRUNK = {"render_size": 16, "preview_size": 16, "ray_samples": 32, "surface_cells": 16}
UPDATE_EVERY = 3  # steps: each warm-up has an update of the negative, and three measured steps have one


@dataclass
class ModelCallTimes:
    """The calls of each step, and the seconds that one call of each key takes alone."""

    synchronise: Callable[[], object]
    calls: dict[str, Call] = field(default_factory=dict)  # the last of each key
    counts: Counter[str] = field(default_factory=Counter)  # of the step that runs
    steps: list[Counter[str]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, call: Call) -> None:
        self.calls[call.key] = call
        self.counts[call.key] += 1

    def finish_step(self, *, measure: bool) -> None:
        """Close the counts of a step and time a call of each of its keys once, under the same load as the step."""
        counts, self.counts = self.counts, Counter()
        if measure:
            self.steps.append(counts)
            for key in counts:
                self.seconds.setdefault(key, []).append(time_alone(self.calls[key], self.synchronise))

    def discard_step(self) -> None:
        """Count the calls since the last step for no step."""
        self.counts = Counter()

    def seconds_per_step(self) -> list[float]:
        medians = {key: statistics.median(times) for key, times in self.seconds.items()}
        return [sum(count * medians[key] for key, count in counts.items()) for counts in self.steps]


def time_alone(call: Call, synchronise: Callable[[], object]) -> float:
    """Seconds of a call on detached copies of its arguments, and of its backward to whatever needs it."""
    import torch

    from psd.evaluation.speed.recorder import output_tensors

    def detach(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Generator):
            return torch.Generator().set_state(value.get_state())  # the run's own draws stay as they are
        return value

    args = [detach(value) for value in call.args]
    keywords = {name: detach(value) for name, value in call.keywords.items()}
    synchronise()
    start = time.perf_counter()
    with torch.set_grad_enabled(call.grad):
        result = call.function(*args, **keywords)
    if call.grad:
        leaves = [
            value for value in [*args, *keywords.values()] if isinstance(value, torch.Tensor) and value.requires_grad
        ]
        leaves = leaves or scene_parameters(call)
        total = torch.stack([tensor.sum() for tensor in output_tensors(result) if tensor.requires_grad]).sum()
        torch.autograd.grad(total, leaves, allow_unused=True)
    synchronise()
    return time.perf_counter() - start


def scene_parameters(call: Call) -> list[Any]:
    """The parameters that a render's gradients reach; the preset only sets learning rates: any of its kind will do."""
    scene = call.function.__self__  # type: ignore[attr-defined]
    groups = scene.parameter_groups(Preset.make({"scene": scene.settings.model_dump()}))
    return [parameter for group in groups for _, parameter in group["params"]]


def record_models(models: Models, alone: ModelCallTimes) -> tuple[Models, MakeScene]:
    """The same models, and what makes the scene, with every call of a network or of the renderer recorded."""
    from psd.evaluation.speed.recorder import Recorder, record_calls
    from psd.scenes.choose import make_scene

    def make_recorded(preset: Preset, device: torch.device) -> Scene:
        scene: Any = Recorder(make_scene(preset, device), "render", "render", alone.note)
        return scene

    return record_calls(models, alone.note), make_recorded


@dataclass(frozen=True)
class Report:
    """Seconds and bytes throughout; shares are of the mean waiting step."""

    steps: int
    step_s: float  # mean over the run's steps, by the pace
    run_s: float  # all of them; without loading, previews, checkpoints and mesh
    repeated: int  # steps that were computed again, as float16 overflowed; their time is the pace's
    waiting_step_s: float  # mean by the clock that waits, which the parts add up to
    parts: dict[str, dict[str, float]]  # part -> median_s (where it occurs), share, steps (that have it)
    bare: dict[str, dict[str, float]]  # kind of call -> median_s, calls_per_step
    overhead_s: float  # median over waiting steps of: step - bare calls
    overhead_share: float  # median too
    render_over_network: float
    peak: memory.Peak
    card: str | None = None  # torch's name of the GPU
    side_work: throughput.SideWork | None = None
    whole_s: float | None = None  # run_s with previews, checkpoints and mesh
    targets: list[throughput.SpeedTarget] = field(default_factory=list)
    full: RunProfile | None = None

    def format_table(self) -> str:
        speed = f"mean {self.step_s * 1e3:.1f} ms ({1 / self.step_s:.2f} it/s)"
        lines = [f"{self.steps} steps, {speed}: {self.run_s / 60:.1f} min for all steps of the run"]
        if self.side_work is None or self.whole_s is None:
            lines += ["loading, previews, checkpoints and mesh come on top (--full times a whole run)"]
        else:
            each = f"a preview {self.side_work.preview_s:.2f} s, a checkpoint {self.side_work.checkpoint_s:.2f} s"
            end = f"the mesh {self.side_work.mesh_s:.1f} s" if self.side_work.mesh_s is not None else "no mesh here"
            lines += [f"{self.whole_s / 60:.1f} min with previews, checkpoints and mesh ({each}, {end}), after loading"]
        lines += [f"{self.repeated} steps overflowed in float16 and were computed again"] if self.repeated else []
        lines += ["", f"{'part':12} {'median ms':>10} {'share':>7} {'in steps':>9}"]
        for name, part in self.parts.items():
            lines += [f"{name:12} {part['median_s'] * 1e3:10.2f} {part['share']:7.1%} {part['steps']:9.0f}"]
        if self.card is not None:
            lines += [f"by a clock that waits at each part, with which a step takes {self.waiting_step_s * 1e3:.1f} ms"]
        lines += ["", f"{'timed alone, backward included where there is one':60} {'median ms':>10} {'a step':>7}"]
        for name, call in self.bare.items():
            lines += [f"{name:60} {call['median_s'] * 1e3:10.2f} {call['calls_per_step']:7.2f}"]
        lines += ["", f"overhead {self.overhead_s * 1e3:.1f} ms, {self.overhead_share:.1%} of a step"]
        lines += [f"rendering takes {self.render_over_network:.2f} of what the networks take"]
        for name, size in {
            "memory": self.peak.process, "GPU memory": self.peak.reserved, "GPU memory in tensors": self.peak.allocated
        }.items():  # fmt: skip
            lines += [f"peak {name} {size / 2**20:.0f} MiB ({size / 1e9:.2f} GB)"] if size else []
        lines += [f"on {self.card}"] if self.card is not None else []
        lines += ["", *self.full.format_lines()] if self.full is not None else []
        return "\n".join([*lines, *(["", *map(str, self.targets)] if self.targets else [])])


def measure_steps(
    preset: Preset, models: Models, steps: int, weigh: Sequence[throughput.StageShare] | None = None
) -> Report:
    """Run ``steps`` steps of each stage, after a warm-up.  The schedule is squeezed into them; the scene stays young.

    ``weigh``: what to take them for, where ``preset`` is made to be one stage of another.  Raises `PresetError` for too
    few steps, for a run that fails, and for one that has to go on smaller as memory is short.
    """
    return throughput.require_memory(lambda: _measure_steps(preset, models, steps, weigh))


def refuse_steps(steps: int) -> None:
    """Raises `PresetError` for a number of steps that no median should be taken of."""
    if not UPDATE_EVERY <= steps <= 4000:
        raise PresetError(f"--steps {steps} must lie in [{UPDATE_EVERY}, 4000] for medians that mean something")


def _measure_steps(preset: Preset, models: Models, steps: int, weigh: Sequence[throughput.StageShare] | None) -> Report:
    from psd.distillation.run import run
    from psd.runtime.timing import Clock

    refuse_steps(steps)
    synchronise = throughput.device_synchroniser(models)
    bare, laps = ModelCallTimes(synchronise), []

    class Watch(Clock):
        """Calls between steps (previews), and of a step that is tried again, count for no step."""

        def restart(self) -> None:
            bare.discard_step()
            super().restart()

    found, each = weigh or throughput.weigh_stages(preset, throughput.list_levels(preset, models)), WARM_UP + steps
    watched = throughput.short_schedule(preset, each, {"negative_every": UPDATE_EVERY, "negative_t_max": 1.0})
    recorded, make_scene = record_models(models, bare)
    events = run(watched, recorded, clock=Watch(synchronise), make_scene=make_scene)
    for event in throughput.require_steady(events):
        if isinstance(event, Stepped):
            warm = (event.step - 1) % each >= WARM_UP
            bare.finish_step(measure=warm)
            if warm:
                laps.append({name[5:]: value for name, value in event.metrics.items() if name.startswith("time/")})
            if len(laps) == steps * len(found):
                break
    bare.calls.clear()  # what they hold is not the run's
    seen = throughput.measure_throughput(preset, models, steps, found, synchronise)
    return summarise_steps(laps, bare, step_shares(laps, found), preset.total_steps, seen)


def step_shares(laps: list[dict[str, float]], found: Sequence[throughput.StageShare]) -> list[float]:
    """What share of the run's steps each measured one stands for: those of its stage, with an update or without."""
    each, whole, shares = len(laps) // len(found), sum(stage.share for stage in found), []
    for index, stage in enumerate(found):
        updated = ["negative" in lap for lap in laps[index * each : (index + 1) * each]]
        like = Counter(updated)
        of_kind = {True: stage.updates, False: 1 - stage.updates}
        shares += [stage.share / whole * of_kind[kind] / like[kind] for kind in updated]
    return shares


def summarise_steps(
    laps: list[dict[str, float]],
    bare: ModelCallTimes,
    shares: Sequence[float],
    run_steps: int,
    unwatched: throughput.Throughput | None = None,
) -> Report:
    """The numbers of measured steps: their laps, part by part, and their bare calls; ``shares`` sum to 1.

    Without ``unwatched`` steps the measured ones give the pace.
    """

    def mean(values: Iterable[float]) -> float:
        return sum(weight * value for weight, value in zip(shares, values, strict=True))

    waiting_s, parts = mean(lap["step"] for lap in laps), {}
    for name in sorted({name for lap in laps for name in lap} - {"step"}, key=lambda name: (name == "other", name)):
        times = [lap[name] for lap in laps if name in lap]
        parts[name] = {
            "median_s": statistics.median(times),
            "share": mean(lap.get(name, 0.0) for lap in laps) / waiting_s,
            "steps": len(times),
        }
    alone = {
        key: {"median_s": statistics.median(times), "calls_per_step": mean(step[key] for step in bare.steps)}
        for key, times in sorted(bare.seconds.items())
    }
    over = [lap["step"] - needed for lap, needed in zip(laps, bare.seconds_per_step(), strict=True)]
    spent = {key: call["median_s"] * call["calls_per_step"] for key, call in alone.items()}
    rendering = sum(seconds for key, seconds in spent.items() if key.startswith("render"))
    networks = sum(spent.values()) - rendering
    unwatched = unwatched or throughput.Throughput(waiting_s, memory.Peak.now())
    return Report(
        steps=len(laps),
        step_s=unwatched.step_s,
        run_s=run_steps * unwatched.step_s,
        repeated=unwatched.repeated,
        waiting_step_s=waiting_s,
        parts=parts,
        bare=alone,
        overhead_s=statistics.median(over),
        overhead_share=statistics.median(rest / lap["step"] for rest, lap in zip(over, laps, strict=True)),
        render_over_network=rendering / networks,
        peak=unwatched.peak,
    )


def add_side_work(found: Report, preset: Preset, models: Models, *, exact: bool) -> Report:
    """The report with the time of previews, checkpoints and mesh, and with the speed targets that hold for this card.

    ``exact``: the networks are not shrunk ones.  Raises `PresetError` as `measure_steps` does.
    """
    import torch

    card = torch.cuda.get_device_name() if models.prior.device.type == "cuda" else None
    more = throughput.require_memory(
        lambda: throughput.time_side_work(preset, models, throughput.device_synchroniser(models))
    )
    peak = found.peak | more.peak
    targets = throughput.check_targets(
        preset, exact=exact, card=card, step_s=found.step_s, reserved=peak.reserved, overhead_share=found.overhead_share
    )
    whole_s = more.whole_s(preset, found.step_s)
    return replace(found, card=card, side_work=more, whole_s=whole_s, peak=peak, targets=targets)


def shrink_pictures(preset: Preset) -> Preset:
    """Every picture a quarter as wide, and scenes as much coarser: as the prior's of shrunk weights are.

    A step of `mvdream` at its own sizes takes minutes on a CPU, most of them for rays.
    """

    def shrink_values(values: dict[str, Any]) -> dict[str, Any]:
        """Of a preset or a stage, whose scene is a mapping."""
        shrunk = {name: max(least, values[name] // 4) for name, least in SHRUNK.items() if name in values}
        if "gaussians" in values:
            shrunk["gaussians"] = max(500, values["gaussians"] // 16)
        scene = {"scene": shrink_values(values["scene"])} if "scene" in values else {}
        return {**values, **shrunk, **scene}

    values = shrink_values(preset.model_dump())
    stages = [shrink_values(stage.model_dump()) for stage in preset.stages]
    return preset.with_values({**values, "stages": stages, "mesh_resolution": 32})


def main(
    preset: Preset,
    steps: int,
    *,
    full: bool,
    as_json: bool,
    random_weights: str | None = None,
    memory_gb: float | None = None,
    on_paper: bool = False,
) -> int:
    """Print a `Report` and return the exit code; ``random_weights`` ("exact" or "tiny") needs no model here.

    ``on_paper``: only count operations and memory of a large preset's networks (`psd.evaluation.speed.cost`).
    """
    if on_paper:
        from psd.evaluation.speed import cost

        print(cost.cost_table(preset))
        return 0
    refuse_steps(steps)  # before anything is loaded
    if random_weights == "tiny":
        preset = shrink_pictures(preset)
    from psd.runtime.devices import choose_device, choose_precision

    def load_networks(preset: Preset) -> Models:
        if random_weights is None:
            return engine.load_models(preset)
        from psd.models.random_weights import random_models

        device, _ = choose_device(preset.device)
        return random_models(preset, device, choose_precision(preset.precision, device), tiny=random_weights == "tiny")

    def make_events(preset: Preset, control: Controls, resume: Checkpointed | None) -> Iterator[Event]:
        yield from engine.prepare_events(preset, load_networks)(preset, control, resume)

    profile = profile_run(preset, make_events) if full else None  # first: it also times the loading
    models = throughput.require_memory(lambda: load_networks(preset))
    throughput.cap_memory(memory_gb)
    found = add_side_work(measure_steps(preset, models, steps), preset, models, exact=random_weights != "tiny")
    found = replace(found, full=profile)
    print(json.dumps(asdict(found), indent=2) if as_json else found.format_table())
    return 0
