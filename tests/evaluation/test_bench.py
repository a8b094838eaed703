"""The bench's pace, memory and bars: what is timed and what is left out, on a clock and a GPU that are made up."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from psd.config.errors import PresetError
from psd.config.preset import Preset, list_presets
from psd.config.settings import RadianceSettings
from psd.distillation.events import Checkpointed, Event, Failed, Finished, Meshed, Previewed, Started, Stepped, Warned
from psd.distillation.run import run as distil
from psd.evaluation.speed import bench, throughput
from psd.evaluation.speed.profile import RunProfile, Spent, profile_run
from psd.evaluation.speed.recorder import Call
from psd.evaluation.speed.throughput import StageShare
from psd.models.interfaces import Models
from psd.models.random_weights import random_models
from psd.runtime import memory
from psd.runtime.precision import run_in_precision
from psd.runtime.timing import Clock
from psd.scenes.choose import make_scene
from tests.support.toy import ToyPrior, make_models, make_preset, run

GPU, LAUNCH = 20.0, 0.01  # seconds that a made-up GPU computes a step, and its host launches it
H200 = "NVIDIA H200"


# --------------------------------------------------------------------------------------------------- short of memory


class PriorOfRuns(ToyPrior):
    """Goes wrong once, at its eighth prediction after ``runs`` runs began: out of memory, or of float16's range."""

    def __init__(self, runs: int, wrong: str) -> None:
        super().__init__()
        self.runs, self.wrong, self.left = runs, wrong, 8

    def embed_prompt(self, prompt: str) -> torch.Tensor:
        self.runs -= prompt == make_preset().negative_prompt  # once a run
        return super().embed_prompt(prompt)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        if self.wrong == "memory":
            return super().encode(images)
        return run_in_precision(lambda pixels: ToyPrior.encode(self, pixels.float()).half(), images, torch.float16)

    def predict_noise(self, *given: Any) -> torch.Tensor:
        self.left -= self.runs == 0
        if self.left or self.runs:
            return super().predict_noise(*given)
        self.runs = -1
        if self.wrong == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nand more")
        return super().predict_noise(*given) * torch.inf


def going_wrong(runs: int, wrong: str) -> Models:
    return make_models(prior=PriorOfRuns(runs, wrong))


@pytest.mark.parametrize("runs", [1, 2, 3], ids=["watched", "without updates", "with updates"])
def test_a_run_that_goes_on_smaller_is_not_measured(runs: int) -> None:
    """In the pass whose parts are timed, and in those of the pace."""
    with pytest.raises(PresetError, match="did not stay what it was: Out of memory: going on with render_size.*raise"):
        bench.measure_steps(make_preset(steps=100), going_wrong(runs, "memory"), 3)


def test_a_whole_run_that_goes_on_smaller_is_not_timed() -> None:
    models = going_wrong(1, "memory")
    with pytest.raises(PresetError, match="did not stay what it was: Out of memory: going on with render_size.*raise"):
        profile_run(make_preset(), lambda preset, control, resume: run(preset, models, control=control))


def test_memory_that_a_run_does_not_watch_over_is_a_complaint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nand more")

    monkeypatch.setattr(bench, "time_alone", full)
    with pytest.raises(PresetError, match=r"out of memory: CUDA out of memory. Tried to allocate 20 GiB.. Free memory"):
        bench.measure_steps(make_preset(), make_models(), 3)

    def broken(*_: object) -> float:
        raise RuntimeError("something else")

    monkeypatch.setattr(bench, "time_alone", broken)
    with pytest.raises(RuntimeError, match="something else"):
        bench.measure_steps(make_preset(), make_models(), 3)


@pytest.mark.parametrize(("runs", "repeated"), [(1, 0), (2, 1)], ids=["watched", "pace"])
def test_a_step_that_overflows_is_measured_and_its_calls_count_once(runs: int, repeated: int) -> None:
    """It is computed again, from the same draws: the first try is on nobody's account, but its time is the pace's."""
    found = bench.measure_steps(make_preset(steps=100, negative=False), going_wrong(runs, "float16"), 3)
    (render,) = [call for name, call in found.bare.items() if name.startswith("render")]
    assert render["calls_per_step"] == pytest.approx(1) and found.repeated == repeated


# ------------------------------------------------------------------------------------------------- time that is made up


class World:
    """A host, and a GPU that begins a step when the one before is done; who waits, waits for all that was launched."""

    def __init__(self) -> None:
        self.now, self.gpu, self.waits = 0.0, 0.0, 0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def launch(self, seconds: float) -> None:
        self.now = max(self.now + LAUNCH, self.gpu)
        self.gpu = self.now + seconds

    def synchronise(self) -> None:
        self.waits += 1
        self.now = max(self.now, self.gpu)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(throughput, "time", world)
    return world


def made_up(monkeypatch: pytest.MonkeyPatch, events: Callable[[Preset, Clock | None], Iterator[Event]]) -> None:
    def instead(preset: Preset, models: object, *, clock: Clock | None = None, **_: object) -> Iterator[Event]:
        return events(preset, clock)

    monkeypatch.setattr(sys.modules["psd.distillation.run"], "run", instead)


def checkpoint(step: int) -> Checkpointed:
    return Checkpointed(step=step, tensors={}, values={})


def test_the_pace_waits_for_the_gpu_at_the_ends_only_and_weighs_halves_and_updates(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm-up is slow, a late step twice as long, an update as long as a step; checkpoints come in between."""
    runs = []

    def events(preset: Preset, clock: Clock | None) -> Iterator[Event]:
        runs.append(preset)
        since = world.now
        for step in range(1, preset.total_steps + 1):
            assert clock is not None and clock.synchronise is None
            clock.begun += 1 + (step == 5)  # one was tried again
            late = preset.stage_at(preset.progress(step - 1))[0] == 1
            warm_up = 500 if (step - 1) % 13 < throughput.WARM_UP else 0
            world.launch(GPU * (1 + late) * (1 + preset.negative) + warm_up)
            yield Stepped(step=step, t=1)
            if world.now - since >= preset.checkpoint_s:
                world.now = max(world.now, world.gpu) + 1000
                yield checkpoint(step)
                since = world.now

    made_up(monkeypatch, events)
    found = [throughput.StageShare("early", 0.25, updates=0.0), throughput.StageShare("late", 0.75, updates=0.2)]
    preset = make_preset(steps=1000, stages=[{"share": 0.25}, {"share": 0.75}], extra_steps=3)
    seen = throughput.measure_throughput(preset, make_models(), 10, found, world.synchronise)
    assert seen.step_s == pytest.approx(0.25 * GPU + 0.75 * (0.8 * 2 * GPU + 0.2 * 4 * GPU), rel=1e-3)
    assert [(one.negative, one.negative_every, one.negative_t_max) for one in runs] == [(False, 2, 1.0), (True, 1, 1.0)]
    assert seen.repeated == 2 and seen.peak.process > 0


def test_without_updates_there_is_one_run_and_the_gpu_is_waited_for_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def events(preset: Preset, clock: Clock | None) -> Iterator[Event]:
        for step in range(1, preset.total_steps + 1):
            assert clock is not None
            clock.begun += 1
            world.launch(1e-6)  # the host is the slower one
            yield Stepped(step=step, t=1)

    made_up(monkeypatch, events)
    seen = throughput.measure_throughput(
        make_preset(), make_models(), 10, [StageShare("early", 1.0, updates=0.0)], world.synchronise
    )
    assert seen.step_s == pytest.approx(LAUNCH, rel=1e-3) and world.waits == 2 and seen.repeated == 0


def test_previews_checkpoints_and_mesh_are_timed_with_their_files(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 2 s, whose preview is computed before it is told; the first preview is slower."""
    pixels = np.zeros((4, 16, 16, 3), np.uint8)

    def events(preset: Preset, clock: Clock | None) -> Iterator[Event]:
        assert clock is not None and clock.synchronise == world.synchronise
        yield Started(step=0, preset={}, total_steps=preset.total_steps, views=4, environment={})
        for step in range(1, preset.total_steps + 1):
            world.launch(2 - LAUNCH + (3 if step > 1 else 300))
            yield Stepped(step=step, t=1, metrics={"time/step": 2.0})
            world.now += 0.25
            yield Previewed(step=step, images={"rgb": pixels})
        world.now += 5
        yield checkpoint(preset.total_steps)
        world.now += 7
        if preset.texture:
            yield Warned(step=preset.total_steps, message="There is no mesh: the field is empty")
        else:
            yield Meshed(step=preset.total_steps, mesh=None)
        yield Finished(step=preset.total_steps, reason="completed")

    made_up(monkeypatch, events)
    preset = make_preset(
        steps=1000, extra_steps=10, preview_every=100, checkpoint_s=10.0, early_stop="both", judges=["judge"]
    )
    found = throughput.time_side_work(preset, make_models(), world.synchronise)
    assert (found.preview_s, found.checkpoint_s, found.mesh_s) == pytest.approx((3.25, 5.0, 7.0))
    busy = 1010 * 0.2 + 12 * 3.25  # previews before the first step, of ten hundreds, and of the last
    assert found.whole_s(preset, 0.2) == pytest.approx(busy + (1 + busy // 10) * 5 + 7)
    none = throughput.time_side_work(preset.with_values({"texture": True}), make_models(), world.synchronise)
    assert none.mesh_s is None and none.whole_s(preset, 0.2) == pytest.approx(busy + (1 + busy // 10) * 5)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Warned(step=9, message="Out of memory: the mesh was made at mesh_resolution 8 in place of 16."), "in place"),
        (Failed(step=9, message="it broke", cure="mend it"), "failed: it broke; mend it"),
    ],
)
def test_what_was_made_smaller_or_not_at_all_is_no_figure(
    event: Event, said: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, lambda preset, clock: iter([event]))
    with pytest.raises(PresetError, match=said):
        throughput.time_side_work(make_preset(), make_models(), world.synchronise)


def test_a_whole_report_claims_no_bar_on_a_cpu() -> None:
    preset, models = make_preset(), make_models()
    found = bench.add_side_work(bench.measure_steps(preset, models, 3), preset, models, exact=True)
    assert found.side_work is not None and found.whole_s is not None
    assert found.side_work.preview_s > 0 and found.side_work.checkpoint_s > 0 and (found.side_work.mesh_s or 0) > 0
    assert found.whole_s > found.run_s and found.card is None and found.targets == []
    table = found.format_table()
    assert "min with previews, checkpoints and mesh" in table and "GPU" not in table and "MISSED" not in table
    written = json.loads(json.dumps(asdict(found)))
    assert written["side_work"]["preview_s"] == found.side_work.preview_s and written["peak"]["reserved"] is None


# --------------------------------------------------------------------------------------------------------- memory, bars


@pytest.mark.parametrize("steps", [0, 2, 5000])
def test_a_wrong_number_of_steps_is_refused_before_anything_is_loaded(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr("psd.evaluation.speed.bench.engine.load_models", loaded.append)
    for full in (False, True):
        with pytest.raises(PresetError, match=rf"--steps {steps} must lie in \[3, 4000\]"):
            bench.main(Preset.load("tiny"), steps, full=full, as_json=False)
    assert not loaded


def test_shrunk_weights_see_shrunk_pictures() -> None:
    preset = Preset.load("mvdream")
    small = bench.shrink_pictures(preset)
    assert [stage.changes["render_size"] for stage in small.stages] == [16, 64]
    assert [stage.share for stage in small.stages] == [stage.share for stage in preset.stages]
    assert isinstance(small.scene, RadianceSettings) and small.scene.ray_samples == 64
    assert small.preview_size == preset.preview_size // 4
    assert bench.shrink_pictures(Preset.load("tiny")).render_size == Preset.load("tiny").render_size // 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvdream-surface", "mvdream-gaussians"])
def test_every_stage_of_a_large_pipeline_runs_with_tiny_random_weights(name: str) -> None:
    """A step of each, at the least size; the reward is asked where the prior sees colours alone."""
    preset = bench.shrink_pictures(Preset.load(name, {"judges": [], "device": "cpu"}))
    stages = [{**stage.model_dump(), "groups": 1, "render_size": 16} for stage in preset.stages]
    least = {"preview_size": 16, "stages": stages, "t_max_start": 0.3, "t_min_start": 0.2}
    if isinstance(preset.scene, RadianceSettings):
        least["scene.ray_samples"] = 16
    preset = throughput.short_schedule(preset.with_values(least), 1, {"negative_every": 1})
    models = random_models(preset, torch.device("cpu"), torch.float32, tiny=True)
    events = list(distil(preset, models))
    assert not [event for event in events if isinstance(event, Failed)] and isinstance(events[-1], Finished)
    steps = [event for event in events if isinstance(event, Stepped)]
    geometry = [preset.at(preset.progress(step)).preference_t_max == 0 for step in range(preset.steps)]
    assert len(steps) == len(geometry) == len(stages) + 1 and sum(geometry) == ("surface" in name)
    for event, is_geometry in zip(steps, geometry, strict=True):
        assert ("time/reward" in event.metrics) != is_geometry
        assert any(metric.startswith("negative/") for metric in event.metrics) != is_geometry
    (made,) = [event for event in events if isinstance(event, Meshed)]
    assert made.mesh is not None and (made.mesh.splats is not None) == ("gaussians" in name)


@pytest.mark.parametrize("kind", ["grid", "hash", "surface", "gaussians"])
def test_a_render_of_any_scene_is_timed_with_its_way_back(kind: str) -> None:
    scene = make_scene(Preset.make({"scene": {"kind": kind}}), torch.device("cpu"))
    call = Call("render", "render", scene.render, (), {}, grad=True)
    assert bench.scene_parameters(call) and all(value.requires_grad for value in bench.scene_parameters(call))


def test_a_step_with_a_preview_is_told_from_its_preview() -> None:
    """A step of 2 s on 1.5 cores, then one of 1 s, after which a preview computed for 3 s on one."""
    profile = RunProfile()
    profile.add_event(Stepped(step=1, t=500, metrics={"time/step": 2.0, "time/unet": 1.5}), Spent(2.0, 3.0))
    profile.add_event(Stepped(step=2, t=400, metrics={"time/step": 1.0, "image/coverage": 0.5}), Spent(4.0, 4.5))
    assert profile.parts["steps"] == Spent(3.0, 4.5) and profile.parts["steps"].cores == 1.5
    assert profile.parts["previews and judges"] == Spent(3.0, 3.0)
    assert profile.step_parts == {"unet": 1.5}
    assert profile.whole == Spent(6.0, 7.5)


def test_the_gpu_is_charged_with_all_that_torch_holds_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    assert memory.Peak.now().reserved is None
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 7)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda: 9)
    now = memory.Peak.now()
    assert (now.allocated, now.reserved) == (7, 9)
    assert memory.Peak(1, 8, 8) | memory.Peak(2, 7, 9) == memory.Peak(2, 8, 9)
    assert memory.Peak(1) | memory.Peak(2) == memory.Peak(2) and (memory.Peak(3) | now).reserved == 9


def judged(preset: Preset, card: str | None = H200, exact: bool = True, **values: float) -> list[str]:
    figures: dict[str, Any] = {"step_s": 0.05, "reserved": 21e9, "overhead_share": 0.07, **values}
    return [str(bar) for bar in throughput.check_targets(preset, exact=exact, card=card, **figures)]


def test_bars_are_asked_where_they_were_set() -> None:
    """Of the preset as it ships, in its exact shapes, on an NVIDIA GPU; that of speed of a fast one."""
    shipped = Preset.load("mvdream")
    speed, held, overhead = judged(shipped)
    assert speed == "at least 17 it/s: 20.00 it/s, met"
    assert held == "at most 22 GB of the GPU: 21.00 GB, met" and overhead == "overhead at most 10%: 7.0%, met"
    missed = judged(shipped, step_s=1 / 16.9, reserved=22 * 2**30, overhead_share=0.101)
    assert len(missed) == 3 and all(line.endswith(", MISSED") for line in missed)
    assert judged(shipped.with_values({"prompt": "a cat", "seed": 3, "device": "cuda"})) == [speed, held, overhead]
    for card in ("NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090", "NVIDIA H100 PCIe"):
        assert judged(shipped, card) == [held, overhead]
    assert judged(shipped, "NVIDIA H100 80GB HBM3") == judged(shipped, "NVIDIA GH200 480GB") == judged(shipped)
    assert judged(shipped, None) == judged(shipped, exact=False) == []
    for name in set(list_presets()) - {"mvdream"}:
        assert judged(Preset.load(name)) == []
    assert judged(shipped.with_values({"render_size": 32})) == judged(shipped.with_values({"judges": []})) == []


def test_the_table_says_what_was_measured_how() -> None:
    laps, half = [{"unet": 0.3, "other": 0.1, "step": 0.4}], StageShare("early", 1.0, updates=0.0)
    bare = bench.ModelCallTimes(lambda: None)
    bare.seconds, bare.steps = {"unet (2,)": [0.2], "render 64": [0.1]}, [bench.Counter({"unet (2,)": 1})]
    unwatched = throughput.Throughput(0.25, memory.Peak(2**30, int(2e9), int(3e9)), repeated=2)
    found = bench.summarise_steps(laps, bare, bench.step_shares(laps, [half]), 1000, unwatched)
    assert found.step_s == 0.25 and found.run_s == 250 and found.waiting_step_s == 0.4
    assert found.parts["unet"]["share"] == pytest.approx(0.75)
    bar = throughput.SpeedTarget("at least 17 it/s", "4.00 it/s", False)
    table = replace(found, card=H200, targets=[bar]).format_table()
    for text in (
        "mean 250.0 ms (4.00 it/s): 4.2 min", "a step takes 400.0 ms", "peak GPU memory 2861 MiB (3.00 GB)",
        "peak GPU memory in tensors 1907 MiB (2.00 GB)", "on NVIDIA H200", "2 steps overflowed",
        "\nat least 17 it/s: 4.00 it/s, MISSED",
    ):  # fmt: skip
        assert text in table
