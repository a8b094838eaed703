"""A run as its events: order, repetition, stop and resume, live values, and values that are no numbers."""

import json
import math
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from psd.config.errors import PresetError
from psd.config.preset import WITHOUT_REWARD, MethodName, Preset
from psd.distillation import preview, reporting
from psd.distillation.events import (
    Alarmed,
    BestKept,
    Checkpointed,
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
    to_json,
)
from psd.distillation.interfaces import NoControl, RenderView
from psd.distillation.less_memory import describe_sizes, reduced_preset
from psd.distillation.methods.baselines import sds
from psd.distillation.methods.choose import METHODS
from psd.distillation.preview import BINS, image_statistics, nearness_image
from psd.distillation.reporting import contrast_events, mesh_events
from psd.distillation.run import image_score
from psd.distillation.sampling import draw_background
from psd.distillation.session import Session
from psd.distillation.state import State, restore_scene
from psd.evaluation.experiments.suite import SUITES, Suite
from psd.geometry.mesh import Mesh
from psd.models.interfaces import Models
from psd.models.load import load_models, load_prior
from psd.runtime.offload import COMPUTING
from psd.runtime.timing import Clock
from psd.scenes.interfaces import MakeScene, MeshSettings
from psd.scenes.radiance import RadianceScene
from tests.support.toy import (
    SIZE,
    BlackBox,
    ConstantReward,
    QuadraticReward,
    ToyPrior,
    ToyScene,
    make_models,
    make_preset,
    run,
)


class Hand(NoControl):
    """Stops after ``steps`` polls and moves sliders at given polls."""

    def __init__(self, stop_after: int = 10**9, moves: dict[int, dict] | None = None) -> None:
        self.polls, self.stop_after, self.moves, self.values = 0, stop_after, moves or {}, {}

    def live(self):
        self.values = self.moves.get(self.polls, self.values)
        return self.values

    def stopping(self) -> bool:
        self.polls += 1
        return self.polls > self.stop_after


class Onlooker(NoControl):
    """Looks at the scene whenever it can, from another side after each step."""

    def __init__(self) -> None:
        self.pictures: dict[int, list[np.ndarray]] = {}

    def show_scene(self, render: RenderView, step: int) -> None:
        picture = render(40.0 * step, 30.0, 48)
        assert picture is not None and picture.shape == (48, 48, 3) and picture.dtype == np.uint8
        self.pictures.setdefault(step, []).append(picture)


def essence(event: Event) -> tuple:
    """Everything of an event but its times."""
    record = json.loads(to_json(replace(event, time_s=0.0)))
    if isinstance(event, Stepped):
        measured = ("time/", "memory/")
        record["metrics"] = {name: value for name, value in event.metrics.items() if not name.startswith(measured)}
    arrays = []
    for name in event.arrays:
        value = getattr(event, name)
        if name == "mesh" and value is not None:
            value = {"vertices": value.vertices, "faces": value.faces, "colours": value.colours}
        if name == "values":
            record[name] = value
        elif isinstance(value, np.ndarray):
            arrays.append((name, value.tobytes()))
        elif value is not None:
            arrays += [(key, np.asarray(array).tobytes()) for key, array in sorted(value.items())]
    return json.dumps(record, sort_keys=True), arrays


def essences(told: Iterable[Event]) -> list[tuple]:
    """Of all events but checkpoints before the last, which come by the clock."""
    events = list(told)
    last = last_checkpoint(events)
    return [essence(event) for event in events if event is last or not isinstance(event, Checkpointed)]


def unjudged(checkpoint: Checkpointed) -> Checkpointed:
    """Without what previews add to it."""
    tensors = {name: array for name, array in checkpoint.tensors.items() if not name.startswith("best/")}
    values = {name: value for name, value in checkpoint.values.items() if name not in ("best", "monitor")}
    return replace(checkpoint, tensors=tensors, values=values)


def steps_of(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Stepped)]


def last_checkpoint(events: list[Event]) -> Checkpointed:
    return [event for event in events if isinstance(event, Checkpointed)][-1]


@pytest.fixture
def with_mesh() -> None:
    """Asks for the real surface at the end of each run: nine tenths of its time."""


@pytest.fixture(autouse=True)
def without_mesh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_mesh" not in request.fixturenames:
        monkeypatch.setattr("psd.distillation.reporting.mesh_events", lambda *_: iter(()))


# --------------------------------------------------------------------------------------------------------------- order


def test_a_run_tells_its_story_in_order(with_mesh: None) -> None:
    events = list(run(make_preset(), make_models()))
    names = [type(event).__name__ for event in events]
    assert names == [
        "Started", "Previewed", "Stepped", "Stepped", "NegativeUpdated", "Stepped", "Previewed", "BestKept", "Stepped",
        "NegativeUpdated", "Stepped", "Stepped", "NegativeUpdated", "Previewed", "Checkpointed", "Meshed", "Finished",
    ]  # fmt: skip
    assert [event.step for event in steps_of(events)] == [1, 2, 3, 4, 5, 6]
    assert all(a.time_s <= b.time_s for a, b in zip(events, events[1:]))
    started, finished, mesh = events[0], events[-1], events[-2]
    assert isinstance(started, Started) and started.total_steps == 6 and started.preset["prompt"] == "red cube"
    assert isinstance(finished, Finished) and finished.reason == "completed"
    assert isinstance(mesh, Meshed) and mesh.mesh is not None and mesh.statistics["watertight"]
    shown = [event for event in events if isinstance(event, Previewed)]
    assert set(shown[0].images) == {"rgb", "opacity", "depth"} and shown[0].images["rgb"].shape == (4, 16, 16, 3)
    assert set(shown[-1].rewards) == {"reward/quadratic", "judge/judge"}
    assert finished.scores["reward/quadratic"] == pytest.approx(sum(shown[-1].rewards["reward/quadratic"]) / 4)


def test_metrics_are_named_and_finite_and_measured_when_shown() -> None:
    stepped = steps_of(list(run(make_preset(steps=5), make_models())))
    for event in stepped:
        assert isinstance(event, Stepped) and 0 <= event.t < 1000
        assert all(type(value) is float and math.isfinite(value) for value in event.metrics.values())
        assert {"pair/gap", "pair/confidence", "pair/ratio", "loss/tv", "loss/opacity"} <= set(event.metrics)
        parts = {name: value for name, value in event.metrics.items() if name.startswith("time/")}
        assert {"time/render", "time/encode", "time/unet", "time/decode", "time/reward", "time/backward"} <= set(parts)
        total = parts.pop("time/step")
        assert sum(parts.values()) == pytest.approx(total) and all(value >= 0 for value in parts.values())
        assert ("reward/quadratic" in event.metrics) == ("image/coverage" in event.metrics) == (event.step in (3, 5))
        assert ("negative/drift" in event.metrics) == ("time/negative" in event.metrics) == (event.step % 2 == 0)


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_method_runs_and_moves_the_scene(method: str) -> None:
    events = list(run(make_preset(method=method, steps=2, candidates=4), make_models()))
    assert isinstance(events[-1], Finished)
    fresh = ToyScene(make_preset()).grid.detach().numpy()
    assert not np.array_equal(last_checkpoint(events).tensors["scene/grid"], fresh)
    assert any(isinstance(event, NegativeUpdated) for event in events) == (method not in WITHOUT_REWARD)


def test_psd_raises_the_reward_more_than_sds() -> None:
    """On a toy whose reward and prior are both smooth; the seed is one of many that would do."""
    scores = {}
    for method in ("sds", "psd"):
        finished = list(run(make_preset(method=method, steps=25, negative=False, seed=1), make_models()))[-1]
        assert isinstance(finished, Finished)
        scores[method] = finished.scores["reward/quadratic"]
    assert scores["psd"] > scores["sds"]


# ---------------------------------------------------------------------------------------------------------- repetition


@pytest.mark.parametrize("settings", [{}, {"steer_by": "scores"}])
def test_same_seed_same_events_whatever_is_shown(settings: dict) -> None:
    first, second = (list(map(essence, run(make_preset(**settings), make_models()))) for _ in range(2))
    assert first == second
    other = list(map(essence, run(make_preset(seed=1, **settings), make_models())))
    assert first[2] != other[2]
    busy = list(run(make_preset(preview_every=1, checkpoint_s=1e-9, **settings), make_models()))
    quiet = list(run(make_preset(preview_every=100, **settings), make_models()))
    assert essence(unjudged(last_checkpoint(busy))) == essence(unjudged(last_checkpoint(quiet)))
    assert sum(isinstance(event, Checkpointed) for event in busy) == 6


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pair": "random", "candidates": 3},
        {"steer_by": "scores"},
        {"method": "dreamdpo"},
        {"method": "sds"},
    ],
)
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_stop_and_resume_equal_no_stop(settings: dict, stop: int) -> None:
    moves = {1: {"guidance_scale": 6.0}}
    whole = list(run(make_preset(**settings), make_models(), control=Hand(moves=moves)))
    first = list(run(make_preset(**settings), make_models(), control=Hand(stop, moves=moves)))
    assert isinstance(first[-1], Finished) and first[-1].reason == ("stopped" if stop < 6 else "completed")
    saved = last_checkpoint(first)
    kept = {name: array.copy() for name, array in saved.tensors.items()}
    rest = list(run(make_preset(**settings), make_models(), resume=saved))
    assert all(np.array_equal(kept[name], array) for name, array in saved.tensors.items())  # usable once more
    assert isinstance(rest[0], Started) and rest[0].step == stop and rest[1].time_s >= saved.time_s
    expected = [event for event in whole if event.step > stop or isinstance(event, Checkpointed | Finished)]
    if stop == 6:
        expected.insert(1, [event for event in whole if isinstance(event, Previewed)][-1])
    assert list(map(essence, rest[1:])) == list(map(essence, expected))


def test_a_stopped_run_is_meshed_and_a_resumed_one_makes_the_same_mesh(with_mesh: None) -> None:
    first = list(run(make_preset(), make_models(), control=Hand(3)))
    rest = list(run(make_preset(), make_models(), resume=last_checkpoint(first)))
    whole = list(run(make_preset(), make_models()))
    assert isinstance(first[-2], Meshed) and isinstance(first[-1], Finished) and first[-1].reason == "stopped"
    assert essence(rest[-2]) == essence(whole[-2]) != essence(first[-2])


def test_the_shipped_models_repeat_and_resume_bit_for_bit(with_mesh: None) -> None:
    """The default preset with all that ships, on two threads: U-Net, autoencoder, critics, grid, surface.

    The second time somebody turns the scene all the time, which changes no bit.
    """
    each_step = {"negative_every": 1, "negative_t_max": 1.0, "preference_t_max": 1.0, "checkpoint_s": 1e-9}
    preset = Preset.load("tiny", {"steps": 2, "preview_every": 2, "mesh_resolution": 32, "threads": 2, **each_step})
    models = load_models(preset)
    try:
        events = list(run(preset, models))
        again = essences(run(preset, models, control=(onlooker := Onlooker())))
        (saved,) = [event for event in events if isinstance(event, Checkpointed) and event.step == 1]
        rest = list(run(preset, models, resume=saved))
    finally:
        torch.set_num_threads(1)
    whole = essences(events)
    assert all("pair/gap" in event.metrics for event in events if isinstance(event, Stepped))
    assert len([event for event in events if isinstance(event, NegativeUpdated)]) == 2
    assert again == whole
    pictures = [onlooker.pictures[step] for step in range(3)]
    assert not np.array_equal(pictures[0][0], pictures[2][0])
    assert all(len(looks) > 5 for looks in pictures[:2]), "also between the parts of a step"
    steps = [index for index, event in enumerate(rest) if isinstance(event, Stepped)]
    resumed = essences(rest[steps[0] :])
    assert resumed == whole[-len(resumed) :] and len(steps) == 1


def test_a_checkpoint_from_the_middle_does_not_follow_the_run() -> None:
    whole = list(run(make_preset(checkpoint_s=1e-9), make_models()))
    middle = next(event for event in whole if isinstance(event, Checkpointed) and event.step == 3)
    rest = list(run(make_preset(), make_models(), resume=middle))
    assert list(map(essence, steps_of(rest))) == list(map(essence, steps_of(whole)[3:]))


def test_checkpoints_come_when_their_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr("psd.distillation.session.time.monotonic", lambda: seconds[0])
    saved = []
    for event in run(make_preset(steps=10, checkpoint_s=20), make_models()):
        saved += [event.step] * isinstance(event, Checkpointed)
        seconds[0] += 7 * isinstance(event, Stepped)  # the consumer takes its time
    assert saved == [3, 6, 9, 10]  # every 21 s, and at the end


def test_every_step_draws_its_own_noise_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def noises(seed: int) -> list[torch.Tensor]:
        seen = []
        row = replace(METHODS["sds"], function=lambda step: seen.append(step.noise) or sds(step))
        monkeypatch.setitem(METHODS, "sds", row)
        list(run(make_preset(method="sds", steps=3, seed=seed), make_models()))
        return seen

    first, again, other = noises(0), noises(0), noises(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    different = [*first, *other]
    assert not any(torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    assert abs(torch.cat(different).mean()) < 0.1 and abs(torch.cat(different).std() - 1) < 0.1


def test_all_methods_of_the_suites_see_the_same_cameras_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, to the end: t, cameras, background and jitter, and the first noise; however many a method draws."""

    def drawn(settings: dict) -> list[list]:
        seen: list[list] = []
        render = ToyScene.render

        def rendering(scene, cameras, size, *, background, generator=None, **others):
            if generator is not None:  # a step, no preview
                seen.append([cameras.c2w, background, generator.get_state()])
            return render(scene, cameras, size, background=background, generator=generator, **others)

        with monkeypatch.context() as patch:
            for name, row in METHODS.items():
                watched = lambda step, plain=row.function: seen[-1].append(step.noise[0]) or plain(step)  # noqa: E731
                patch.setitem(METHODS, name, replace(row, function=watched))
            patch.setattr(ToyScene, "render", rendering)
            events = run(make_preset(steps=5, **settings), make_models())
            levels = [event.t for event in events if isinstance(event, Stepped)]
        return [[torch.tensor(t), *those] for t, those in zip(levels, seen, strict=True)]

    rows = {
        name: row
        for suite in ("embedded", "large")
        for name, row in Suite.load(SUITES / f"{suite}.yaml").methods.items()
    }
    first, *others = [drawn(method.set) for method in rows.values()]
    assert len(first) == 5 and len(others) > 10 and len({int(t) for t, *_ in first}) > 1
    for name, other in zip(list(rows)[1:], others, strict=True):
        for step, (ours, theirs) in enumerate(zip(first, other, strict=True)):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), f"{name}, step {step}"


def test_checkpoints_are_arrays_and_json() -> None:
    saved = last_checkpoint(list(run(make_preset(), make_models())))
    assert json.loads(json.dumps(saved.values)) == saved.values
    assert all(type(array) is np.ndarray for array in saved.tensors.values())
    assert {"scene/grid", "optimiser/grid/exp_avg", "negative/value/exp_avg", "negative_value", "generator"} <= set(
        saved.tensors
    )


def test_a_checkpoint_of_another_kind_is_refused() -> None:
    saved = last_checkpoint(list(run(make_preset(steps=1), make_models())))
    other = replace(saved, tensors={**saved.tensors, "scene/grid": np.zeros((4, 9, 9, 9), np.float32)})
    with pytest.raises(PresetError, match=r"scene/grid has shape \(4, 9, 9, 9\)"):
        next(run(make_preset(), make_models(), resume=other))
    with pytest.raises(PresetError, match="version 99"):
        next(run(make_preset(), make_models(), resume=replace(saved, values={**saved.values, "version": 99})))
    strange = replace(saved, tensors={**saved.tensors, "optimiser/points/exp_avg": np.zeros(3, np.float32)})
    with pytest.raises(PresetError, match="knows a parameter points, this preset has grid"):
        next(run(make_preset(), make_models(), resume=strange))
    short = replace(saved, tensors={**saved.tensors, "optimiser/grid/exp_avg": np.zeros((4, 2), np.float32)})
    with pytest.raises(PresetError, match=r"optimiser state of grid has shape \(4, 2\)"):
        next(run(make_preset(), make_models(), resume=short))


def test_rows_that_came_and_went_are_resumed() -> None:
    """A scene whose parameter grows after every step: its rows and their optimiser state come back as they were."""

    class Growing(ToyScene):
        def __init__(self, preset: Preset, device: torch.device | None = None) -> None:
            super().__init__(preset, device)
            self.points = nn.Parameter(torch.ones(2, 3))

        def parameter_groups(self, preset: Preset) -> list[dict]:
            points = {"name": "points", "params": [("points", self.points)], "lr": 0.1}
            return [*super().parameter_groups(preset), points]

        def regularisers(self) -> dict[str, torch.Tensor]:
            return {"tv": self.points.square().mean()}

        def after_step(self, optimiser: torch.optim.Optimizer) -> None:
            with torch.no_grad():
                self.points.data = torch.cat([self.points, self.points[:1]])
            state = optimiser.state[self.points]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.cat([state[name], torch.zeros(1, 3)])

        def state(self) -> dict[str, torch.Tensor]:
            return {**super().state(), "points": self.points}

        def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
            super().load_state(state)
            self.points.data = state["points"].clone()

    models = replace(make_models(), scene=Growing)
    events = list(run(make_preset(checkpoint_s=1e-9), models))
    saved = [event for event in events if isinstance(event, Checkpointed)]
    halfway, whole = saved[2], saved[-1]
    assert halfway.tensors["optimiser/points/exp_avg"].shape == halfway.tensors["scene/points"].shape == (5, 3)
    resumed = last_checkpoint(list(run(make_preset(), models, resume=halfway)))
    assert resumed.tensors["scene/points"].shape == (8, 3)
    for name, array in whole.tensors.items():
        assert np.array_equal(resumed.tensors[name], array), name


# ---------------------------------------------------------------------------------------------------------------- live


def test_live_values_hold_from_the_next_step_on() -> None:
    plain = steps_of(list(run(make_preset(), make_models())))
    events = list(run(make_preset(), make_models(), control=Hand(moves={4: {"preference_weight": 0.0}})))
    changed = [event for event in events if isinstance(event, LiveChanged)]
    assert [(event.step, event.values) for event in changed] == [(3, {"preference_weight": 0.0})]
    moved = steps_of(events)
    assert list(map(essence, moved[:3])) == list(map(essence, plain[:3]))
    assert "pair/ratio" in moved[2].metrics and "pair/ratio" not in moved[3].metrics  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"), ({"scene.grid_size": 64}, "scene.grid_size cannot change"),
        ({"rewards": {"stranger": 1.0}}, "stranger"), ({"rewards": {"quadratic": 0.0}}, "weight 0"),
        ({"guidence_scale": 2.0}, "guidance_scale"),
    ],
)  # fmt: skip
def test_bad_live_values_are_refused_once_and_change_nothing(values: dict, words: str) -> None:
    plain = steps_of(list(run(make_preset(), make_models())))
    events = list(run(make_preset(), make_models(), control=Hand(moves={2: values})))
    warned = [event for event in events if isinstance(event, Warned)]
    assert len(warned) == 1 and words in warned[0].message
    assert list(map(essence, steps_of(events))) == list(map(essence, plain))


# ------------------------------------------------------------------------------------------------------------- failure


class Breaking:
    """Mixin of the toys: from call ``after`` on, results hold nan."""

    after, count = 4, 0

    def broken(self, value: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return value * math.nan if self.count > self.after else value


class BreakingPrior(Breaking, ToyPrior):
    def predict_noise(self, *args):
        return self.broken(super().predict_noise(*args))


class BreakingReward(Breaking, QuadraticReward):
    after = 6

    def __call__(self, images, prompt):
        return self.broken(super().__call__(images, prompt))


class BreakingScene(Breaking, ToyScene):
    def regularisers(self):
        return {"tv": self.broken(super().regularisers()["tv"])}


class SpikingScene(ToyScene):
    """Finite values, infinite slope."""

    def regularisers(self):
        return {"tv": (self.grid - self.grid).abs().sum().sqrt() if self.progress >= 0.5 else self.grid.square().mean()}


LOWER_RATES = "lower scene.density_lr or scene.colour_lr"
CURES = {  # of the first tensor at fault
    "prior": "resume <run> --set negative_lr", "reward": "without that reward", "regulariser": LOWER_RATES,
    "gradient": LOWER_RATES,
}  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "tensor"),
    [
        ("prior", "noise prediction"), ("reward", "reward quadratic"), ("regulariser", "regulariser tv"),
        ("gradient", r"gradient of the scene \(grid\)"),
    ],
)  # fmt: skip
def test_a_value_that_is_no_number_ends_the_run_by_name_and_keeps_the_last_good_state(broken: str, tensor: str) -> None:
    models = make_models(
        prior=BreakingPrior() if broken == "prior" else None,
        rewards={"quadratic": BreakingReward()} if broken == "reward" else None,
    )
    scenes = {"regulariser": BreakingScene, "gradient": SpikingScene}
    events = list(run(make_preset(negative=False), replace(models, scene=scenes.get(broken, ToyScene))))
    failure, saved = events[-1], events[-2]
    good = len(steps_of(events))
    assert isinstance(failure, Failed) and isinstance(saved, Checkpointed) and good > 0
    assert saved.step == failure.step == good and f"step {good + 1}, t = " in failure.message and failure.cure
    assert re.search(tensor, failure.message) and CURES[broken] in failure.cure
    assert all(np.isfinite(array).all() for array in saved.tensors.values())
    # with the fault mended, the run goes on as if it had never been
    whole = steps_of(list(run(make_preset(negative=False), make_models())))
    if broken in ("prior", "reward"):
        rest = steps_of(list(run(make_preset(negative=False), make_models(), resume=saved)))
        assert list(map(essence, rest)) == list(map(essence, whole[good:]))


class UnseenScene(Breaking, ToyScene):
    """Its pictures break where a preview looks: nothing else asks for normals."""

    def render(self, *args, normals=False, **keywords):
        found = super().render(*args, normals=normals, **keywords)
        return replace(found, rgb=self.broken(found.rgb)) if normals else found


def to_break(looks: int) -> Models:
    return replace(make_models(), scene=type("Unseen", (UnseenScene,), {"after": looks}))


@pytest.mark.parametrize(("looks", "step", "words"), [(0, 0, "before the first step"), (1, 3, r"of step 3, t = \d+")])
def test_a_preview_that_is_no_number_ends_the_run_by_name_and_keeps_its_step(looks: int, step: int, words: str) -> None:
    whole = list(run(make_preset(), make_models()))
    events = list(run(make_preset(), to_break(looks)))
    failure, saved = events[-1], events[-2]
    assert isinstance(failure, Failed) and isinstance(saved, Checkpointed) and failure.step == saved.step == step
    assert re.search(f"preview {words}: preview is not finite", failure.message) and failure.cure
    assert [event.step for event in steps_of(events)] == [1, 2, 3][:step]
    rest = steps_of(list(run(make_preset(), make_models(), resume=saved)))
    assert list(map(essence, rest)) == list(map(essence, steps_of(whole)[step:]))


@pytest.mark.parametrize(("looks", "stop", "reason"), [(2, 9, "completed"), (1, 2, "stopped")])
def test_a_last_preview_that_is_no_number_does_not_cost_the_mesh(
    with_mesh: None, looks: int, stop: int, reason: str
) -> None:
    events = list(run(make_preset(), to_break(looks), control=Hand(stop)))
    assert [type(event) for event in events[-4:]] == [Checkpointed, Warned, Meshed, Finished]
    warned, finished = events[-3], events[-1]
    assert isinstance(warned, Warned) and "preview is not finite" in warned.message
    assert isinstance(finished, Finished) and finished.reason == reason and finished.scores == {}
    assert isinstance(steps_of(events)[-1], Stepped) and steps_of(events)[-1].step == min(stop, 6)


class BreakingJudge(Breaking, QuadraticReward):
    def __call__(self, images, prompt):
        return self.broken(super().__call__(images, prompt))


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_a_score_that_is_no_number_is_left_out_of_its_previews_and_costs_nothing_else(looks: int) -> None:
    whole, judge = list(run(make_preset(), make_models())), BreakingJudge("judge")
    judge.after = looks
    events = list(run(make_preset(), replace(make_models(), judges={"judge": judge})))
    shown = [event for event in events if isinstance(event, Previewed)]
    assert ["judge/judge" in event.rewards for event in shown] == [at < looks for at in range(3)]
    assert all("reward/quadratic" in event.rewards for event in shown)
    (warned,) = [event for event in events if isinstance(event, Warned)]
    assert f"preview of step {3 * looks}: judge/judge is not finite" in warned.message
    kept = [event.step for event in events if isinstance(event, BestKept)]
    assert kept == [event.step for event in whole if isinstance(event, BestKept) and event.step < 3 * looks]
    assert essence(unjudged(last_checkpoint(events))) == essence(unjudged(last_checkpoint(whole)))


def test_detectors_do_not_see_previews_in_which_a_reward_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compare it with the judge, preview by preview; a reward that weighs nothing does not matter."""
    plain, looks = preview.render_preview, []

    def holed(*given):
        seen = plain(*given)
        looks.append(1)
        gone = {"reward/idle"} | ({"reward/quadratic"} if 4 <= len(looks) <= 9 else set())  # the first is at step 0
        scores = {name: values for name, values in seen.scores.items() if name not in gone}
        return replace(seen, scores=scores, unscored=tuple(sorted(gone)))

    monkeypatch.setattr(reporting, "render_preview", holed)
    rewards = {"quadratic": QuadraticReward(), "idle": QuadraticReward("idle")}
    preset = make_preset(steps=24, preview_every=1, rewards={"quadratic": 1.0, "idle": 0.0}, negative=False)
    events = list(run(preset, make_models(rewards=rewards)))
    assert isinstance(events[-1], Finished) and events[-1].reason == "completed"
    kept = last_checkpoint(events).values["monitor"]
    assert kept["steps"] == [1, 2, *range(9, 25)] and len(kept["rewards"]) == len(kept["judges"]) == 18
    seen = {event.step: event.rewards["reward/quadratic"] for event in events if isinstance(event, Previewed)
            and "reward/quadratic" in event.rewards}  # fmt: skip
    expected = [sum(seen[step]) / len(seen[step]) / QuadraticReward().scale for step in kept["steps"]]
    assert kept["rewards"] == pytest.approx(expected)


def test_a_negative_update_that_is_no_number_is_taken_back() -> None:
    """The reward of the moved n fails: the first update's, and the second's, when Adam has a memory."""

    class Breaks(QuadraticReward):
        calls, at = 0, 0

        def __call__(self, images, prompt):
            self.calls += 1
            return super().__call__(images, prompt) * (math.nan if self.calls == self.at else 1)

    def told(at: int, saved: Checkpointed | None = None) -> tuple[list[Event], list[tuple[str, int]]]:
        reward, log = Breaks(), []
        reward.at = at
        events = []
        for event in run(make_preset(), make_models(rewards={"quadratic": reward}), resume=saved):
            events.append(event)
            log.append((type(event).__name__, reward.calls))
        return events, log

    whole, log = told(0)
    lasts = [log[i - 1][1] for i, (name, _) in enumerate(log) if name == "NegativeUpdated"]
    for at in lasts[:2]:  # the last call of a step is the rating after the update
        events, _ = told(at)
        failure, saved = events[-1], events[-2]
        assert isinstance(failure, Failed) and isinstance(saved, Checkpointed)
        rest, _ = told(0, saved)
        assert list(map(essence, steps_of(rest))) == list(map(essence, steps_of(whole)[saved.step :]))


def test_an_empty_field_warns_and_keeps_the_rest(with_mesh: None) -> None:
    class Empty(ToyScene):
        def density(self, points):
            return 0 * super().density(points)

    events = list(run(make_preset(steps=2), replace(make_models(), scene=Empty)))
    warned = [event for event in events if isinstance(event, Warned)]
    assert len(warned) == 1 and "no mesh" in warned[0].message and "empty" in warned[0].message
    assert isinstance(events[-1], Finished) and not any(isinstance(event, Meshed) for event in events)


@pytest.mark.parametrize("settings", [{"prompt": "green cube"}, {"rewards": {"black box": 1.0}}])
def test_what_the_user_can_mend_is_said_before_the_start(settings: dict) -> None:
    models = make_models(rewards={"quadratic": QuadraticReward(), "black box": BlackBox()})
    with pytest.raises(PresetError):
        next(run(make_preset(**settings), models))


# --------------------------------------------------------------------------------------------------------------- parts


def test_no_parameter_of_the_prior_ever_gets_a_gradient() -> None:
    models = make_models()
    list(run(make_preset(steps=4), models))
    assert isinstance(models.prior, ToyPrior)
    assert all(weight.grad is None for weight in models.prior.weights.values())


def test_events_do_not_depend_on_the_gradient_mode_of_the_consumer() -> None:
    plain = list(map(essence, run(make_preset(steps=2), make_models())))
    with torch.no_grad():
        assert list(map(essence, run(make_preset(steps=2), make_models()))) == plain


def test_backgrounds_are_plain_and_random_as_often_as_asked() -> None:
    preset = make_preset(groups=16, random_background=0.25)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([draw_background(preset, generator)[0] for _ in range(60)])
    grey = (drawn == drawn[:, :1]).all(-1)
    assert abs(float((~grey).float().mean()) - 0.25) < 4 * (0.25 * 0.75 / len(drawn)) ** 0.5
    assert sorted({round(value, 2) for value in drawn[grey][:, 0].tolist()}) == [0.5, 0.85, 1.0]


def test_image_statistics_at_their_limits() -> None:
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(2, 3, 8, 8)
    full = torch.ones(2, 1, 8, 8)
    found = image_statistics(red, full)
    assert found == pytest.approx(
        {
            "image/saturation": 1,
            "image/contrast": 0,
            "image/edge_density": 0,
            "image/colour_entropy": 0,
            "image/coverage": 1,
            "image/view_consistency": 1,
        },
        abs=1e-6,
    )
    halves = torch.zeros(2, 3, 8, 8)
    halves[..., 4:] = 1
    found = image_statistics(halves, full)
    assert found["image/contrast"] == pytest.approx(0.5) and found["image/edge_density"] == pytest.approx(1 / 14)
    assert found["image/saturation"] == 0 and image_statistics(red, 0 * full)["image/coverage"] == 0
    assert found["image/colour_entropy"] == pytest.approx(math.log(2) / math.log(BINS**3))
    blue = torch.cat([red[:1], red[1:].flip(1)])  # one side red, the other blue
    assert image_statistics(blue, full)["image/view_consistency"] == 0
    half = torch.cat([full[:1], full[1:] * (torch.arange(8) < 4)])  # half of it out of sight
    assert image_statistics(torch.cat([red[:1], halves[1:]]), half)["image/view_consistency"] == 0
    assert image_statistics(red, half)["image/view_consistency"] == pytest.approx(1)
    levels = (torch.cartesian_prod(*[torch.arange(BINS)] * 3) + 0.5) / BINS
    every = levels.T.reshape(1, 3, BINS, BINS**2)
    assert image_statistics(every, torch.ones(1, 1, BINS, BINS**2))["image/colour_entropy"] == pytest.approx(1)


def test_clock_charges_no_part_with_what_is_done_between_them() -> None:
    ticks = iter([0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 10.0])
    clock, answered = Clock(), []
    clock.now = lambda: next(ticks)  # type: ignore[method-assign]
    clock.restart()
    clock.between = lambda: answered.append(clock.inside)
    with clock.part("negative"), clock.part("unet"):
        pass
    assert answered == [True, False]
    assert clock.lap_metrics() == {"time/negative": 2.0, "time/other": 8.0, "time/step": 10.0}


def test_clock_charges_the_outermost_part() -> None:
    ticks = iter([0.0, 1.0, 2.0, 5.0, 9.0, 10.0])
    clock = Clock()
    clock.now = lambda: next(ticks)  # type: ignore[method-assign]
    clock.restart()
    with clock.part("negative"):
        with clock.part("unet"):
            pass
    with clock.part("unet"):
        pass
    assert clock.lap_metrics() == {"time/negative": 1.0, "time/unet": 4.0, "time/other": 5.0, "time/step": 10.0}


# ----------------------------------------------------------------------------------------- best, early stop, extension


def moody_judge(turn: int):
    """Likes the previews better and better until the one numbered ``turn``, then less and less."""

    class Moody:
        name, scale, differentiable, count = "moody", 1.0, False, 0

        def __call__(self, images, prompt):
            self.count += 1
            return images.new_full(images.shape[:2], float(turn - abs(self.count - turn)))

    return Moody()


def judged_by(judge) -> Models:
    return replace(make_models(), judges={"moody": judge})


JUDGED = {"judges": ["moody"], "preview_every": 1}


def test_a_scene_gives_its_own_mesh_and_hears_of_every_step(with_mesh: None) -> None:
    """A surface of its own, at no threshold: nobody asks for a density."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], np.int32)
    made: list = []

    class Surface(ToyScene):
        def extract_mesh(self, settings: MeshSettings) -> Mesh:
            made.append((self, settings))
            return Mesh(corners, faces, corners, np.full((4, 3), 200, np.uint8))

        def after_step(self, optimiser: torch.optim.Optimizer) -> None:
            assert isinstance(optimiser.state[self.grid]["step"], torch.Tensor)  # it has stepped
            super().after_step(optimiser)

    events = list(run(make_preset(steps=3, mesh_faces=123), replace(make_models(), scene=Surface)))
    ((scene, settings),) = made
    assert scene.steps_seen == 3 and settings == MeshSettings(resolution=24, faces=123)
    (meshed,) = [event for event in events if isinstance(event, Meshed)]
    assert meshed.statistics["threshold"] is None and meshed.statistics["watertight"]


def test_the_best_scene_is_kept_and_exported(with_mesh: None) -> None:
    events = list(run(make_preset(export="best", **JUDGED), judged_by(moody_judge(4))))
    kept = [event for event in events if isinstance(event, BestKept)]
    assert [event.step for event in kept] == [1, 2, 3] and kept[-1].judge == "moody"  # the fourth look is at step 3
    meshed = next(event for event in events if isinstance(event, Meshed))
    short = list(run(make_preset(preview_every=1), make_models(), control=Hand(3)))
    until_3 = next(event for event in short if isinstance(event, Meshed))
    assert (
        meshed.scene_step == 3 and until_3.scene_step is None and meshed.mesh is not None and until_3.mesh is not None
    )
    assert np.array_equal(meshed.mesh.vertices, until_3.mesh.vertices)


def test_the_best_survives_stop_and_resume() -> None:
    preset = make_preset(export="best", **JUDGED)
    whole = list(run(preset, judged_by(moody_judge(4))))
    first = list(run(preset, judged_by(moody_judge(4)), control=Hand(5)))
    later = moody_judge(4)
    later.count = 6  # looks at 0 to 5
    rest = list(run(preset, judged_by(later), resume=last_checkpoint(first)))
    assert essence(last_checkpoint(rest)) == essence(last_checkpoint(whole))
    assert not any(isinstance(event, BestKept) for event in rest)


def test_without_a_judged_preview_the_last_scene_is_meshed_and_that_is_said(with_mesh: None) -> None:
    events = list(run(make_preset(steps=2, preview_every=9, export="best", judges=["judge"]), make_models()))
    assert any(isinstance(event, Warned) and "last scene" in event.message for event in events)
    assert next(event for event in events if isinstance(event, Meshed)).scene_step is None


@pytest.mark.parametrize(
    ("early_stop", "reason"), [("plateau", "stopped early"), ("both", "stopped early"), ("off", "completed")]
)
def test_early_stop_ends_what_no_longer_rises(early_stop: str, reason: str) -> None:
    judge = replace(make_models(), judges={"flat": ConstantReward()})
    preset = make_preset(steps=30, preview_every=1, early_stop=early_stop, judges=["flat"], method="sds")
    events = list(run(preset, judge))
    alarms = [event for event in events if isinstance(event, Alarmed)]
    assert [event.kind for event in alarms] == ["plateau"] and isinstance(events[-1], Finished)
    assert events[-1].reason == reason and (events[-1].step == alarms[0].step) == (early_stop != "off")


def test_an_extended_run_is_the_run_that_was_planned_as_long() -> None:
    whole = list(run(make_preset(extra_steps=6), make_models()))
    first = list(run(make_preset(), make_models()))
    rest = list(run(make_preset(extra_steps=6), make_models(), resume=last_checkpoint(first)))
    assert essence(last_checkpoint(rest)) == essence(last_checkpoint(whole))
    assert list(map(essence, steps_of(rest))) == list(map(essence, steps_of(whole)[6:]))
    plain = steps_of(list(run(make_preset(steps=12), make_models())))
    assert list(map(essence, steps_of(whole)[:6])) != list(map(essence, plain[:6])), "12 steps anneal more slowly"


def test_the_scene_hears_of_extra_steps_too() -> None:
    """Its schedules stay at their last values, but an occupancy that is refreshed no more would freeze the shape."""
    heard = []

    class Hears(ToyScene):
        def advance(self, progress: float, settings: Any = None) -> None:
            heard.append(progress)

    models = replace(make_models(), scene=Hears)
    first = list(run(make_preset(steps=4, extra_steps=4), models, control=Hand(6)))
    assert heard == [0, 0, 0.25, 0.5, 0.75, 1, 1.25]
    list(run(make_preset(steps=4, extra_steps=4), models, resume=last_checkpoint(first)))
    assert heard[7:] == [1.25, 1.5, 1.75]
    grid = Hears(make_preset()).grid.detach().numpy()
    make: Any = Hears
    restore_scene(make_preset(steps=4), {"grid": grid}, 7, make_scene=make)
    assert heard[10:] == [1.5]


# ---------------------------------------------------------------------------------------------------- out of memory


class Hungry(ToyPrior):
    """After some calls has memory for ``largest`` rows in a call, and says otherwise what torch says."""

    def __init__(self, largest: int, after: int) -> None:
        super().__init__()
        self.largest, self.left = largest, after

    def predict_noise(self, z_t, *args):
        self.left -= 1
        if self.left < 0 and len(z_t) > self.largest:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return super().predict_noise(z_t, *args)


def test_out_of_memory_goes_on_smaller_from_the_last_step_once() -> None:
    preset, fewer = make_preset(groups=2, negative=False), []
    events = list(run(preset, replace(make_models(prior=Hungry(3, after=4)), fewer=lambda: fewer.append(1))))
    assert fewer == [1]  # networks too
    warned = [event for event in events if isinstance(event, Warned)]
    assert len(warned) == 1 and "Out of memory" in warned[0].message and "groups 1" in warned[0].message
    assert [event.step for event in steps_of(events)] == [1, 2, 3, 4, 5, 6] and 0 < warned[0].step < 6
    assert isinstance(events[-1], Finished) and events[-1].reason == "completed"
    saved = last_checkpoint(list(run(preset, make_models(prior=Hungry(3, after=4)), control=Hand(5))))
    models = replace(make_models(prior=Hungry(3, after=0)), fewer=lambda: fewer.append(2))
    rest = list(run(preset, models, resume=saved))
    assert fewer == [1, 2]
    assert not any(isinstance(event, Warned) for event in rest), "a resumed run remembers that it is smaller"
    assert essence(last_checkpoint(rest)) == essence(last_checkpoint(events))


def test_a_run_that_goes_on_smaller_marches_its_rays_as_before() -> None:
    """A scene's step along a ray is fixed when it is made: the one that went on, a resumed and a revived one agree."""
    preset = Preset.make({"scene.ray_samples": 40, "groups": 2, "render_size": 64})
    made, less = RadianceScene(preset), reduced_preset(preset)
    assert (less.render_size, less.groups) == (32, 1) and RadianceScene(less).step == made.step
    assert "render_size 32" in describe_sizes(less) and "ray_samples" not in describe_sizes(less)


def test_out_of_memory_twice_says_what_was_tried_and_keeps_the_last_good_state() -> None:
    events = list(run(make_preset(groups=2, negative=False), make_models(prior=Hungry(0, after=4))))
    failure, saved = events[-1], events[-2]
    assert isinstance(failure, Failed) and isinstance(saved, Checkpointed) and failure.step == saved.step > 0
    assert "even with render_size" in failure.message and "start anew" in failure.cure and "resume" in failure.cure


def test_other_runtime_errors_are_no_lack_of_memory() -> None:
    class Broken(ToyPrior):
        def predict_noise(self, *args):
            raise RuntimeError("shapes do not match")

    class BrokenJudge(QuadraticReward):
        def __call__(self, images, prompt):
            raise RuntimeError("no such layer")

    class BrokenScene(ToyScene):
        def density(self, points):
            if len(points) == 24**3:
                raise RuntimeError("no such corner")
            return super().density(points)

    with pytest.raises(RuntimeError, match="shapes"):
        list(run(make_preset(), make_models(prior=Broken())))
    with pytest.raises(RuntimeError, match="layer"):
        list(run(make_preset(), replace(make_models(), judges={"judge": BrokenJudge("judge")})))
    with pytest.raises(RuntimeError, match="corner"):
        list(mesh_events(make_preset(), *with_scene(BrokenScene)))


class WideJudge(QuadraticReward):
    """A judge that at its calls numbered ``short`` (from 1) does not fit."""

    def __init__(self, short: set[int]) -> None:
        super().__init__("judge", colour=(0.8, 0.1, 0.1))
        self.short, self.calls = short, 0

    def __call__(self, images, prompt):
        self.calls += 1
        if self.calls in self.short:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.2 GiB")
        return super().__call__(images, prompt)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often memory was given back, which takes a while: all that lives is looked at."""
    found: list[int] = []
    monkeypatch.setattr("psd.runtime.memory.release_memory", lambda: found.append(1))
    return found


def previews_of(events: list[Event]) -> dict[int, Previewed]:
    return {event.step: event for event in events if isinstance(event, Previewed)}


@pytest.mark.parametrize(
    ("short", "step", "judges", "words"),
    [
        ({2}, 3, True, "one orbit at a time"),  # room again, once what nobody uses is given back
        ({2, 3}, 3, False, "step 3: it goes without its judges (judge)"),
        ({1, 2}, 0, False, "step 0: it goes without its judges (judge)"),
        ({3, 4}, 6, False, "step 6: it goes without its judges (judge)"),
    ],
)
def test_out_of_memory_in_a_preview_costs_its_judges_at_most(
    short: set[int], step: int, judges: bool, words: str, released: list[int]
) -> None:
    preset, fewer = make_preset(judges=["judge"]), []
    whole = list(run(preset, make_models()))
    models = replace(make_models(), judges={"judge": WideJudge(short)}, fewer=lambda: fewer.append(1))
    events = list(run(preset, models))
    (warned,) = [event for event in events if isinstance(event, Warned)]
    assert warned.step == step and "Out of memory" in warned.message and words in warned.message
    assert len(fewer) == len(released) == len(short)
    looks = previews_of(events)
    assert list(looks) == [0, 3, 6] and ("judge/judge" in looks[step].rewards) == judges
    assert all("reward/quadratic" in look.rewards for look in looks.values())
    assert all("judge/judge" in look.rewards for at, look in looks.items() if at != step)
    # nothing else is lost: the scene is that of a run which had room, and a checkpoint of that step is kept at once
    assert isinstance(events[-1], Finished) and events[-1].reason == "completed"
    saved = [event for event in events if isinstance(event, Checkpointed)]
    assert [event.step for event in saved] == ([3, 6] if step == 3 else [6])
    assert essence(unjudged(saved[-1])) == essence(unjudged(last_checkpoint(whole)))
    rest = list(run(preset, make_models(), resume=saved[0]))
    assert essence(unjudged(last_checkpoint(rest))) == essence(unjudged(saved[-1]))


def test_memory_that_stays_short_in_previews_ends_no_run(released: list[int]) -> None:
    """What is lost is said each time; that networks take less at once, only the first time."""
    preset = make_preset(judges=["judge"], preview_every=1, negative=False)

    def warned(short: set[int]) -> list[tuple[int, str]]:
        events = list(run(preset, replace(make_models(), judges={"judge": WideJudge(short)})))
        assert isinstance(events[-1], Finished) and len(steps_of(events)) == 6
        return [(event.step, event.message) for event in events if isinstance(event, Warned)]

    assert [step for step, _ in warned(set(range(1, 100)))] == [0, 1, 2, 3, 4, 5, 6]
    assert [step for step, _ in warned(set(range(1, 100, 2)))] == [0]


def test_a_preview_that_has_no_room_at_all_is_left_out(released: list[int]) -> None:
    class Wide(ToyScene):
        def render(self, *args, normals=False, **keywords):
            if normals:  # of previews only
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().render(*args, **keywords)

    events = list(run(make_preset(), replace(make_models(), scene=Wide)))
    assert not previews_of(events) and len(steps_of(events)) == 6
    assert len(released) == 3 * 3  # as it is, with fewer at once, without judges; not once more at the end
    warned = [event for event in events if isinstance(event, Warned)]
    assert [event.step for event in warned] == [0, 3, 6] and all("there is none" in it.message for it in warned)
    assert isinstance(events[-1], Finished) and events[-1].scores == {}
    assert [event.step for event in events if isinstance(event, Checkpointed)] == [3, 6]


def with_scene(scene: type[ToyScene], **values: object) -> tuple[Models, State, MakeScene]:
    """Models, the state of a run before its first step, and what makes its scene."""
    models = make_models()
    return models, State.create(make_preset(**values), models, scene), scene


def test_out_of_memory_the_mesh_is_made_at_half_of_its_resolution(released: list[int]) -> None:
    class Wide(ToyScene):
        no_room = {36**3}  # points at once

        def density(self, points):
            if len(points) in self.no_room:
                raise MemoryError
            return super().density(points)

    def meshed(scene: type[ToyScene], resolution: int) -> tuple[list[Event], list[int]]:
        models, state, make = with_scene(scene)
        fewer = []
        models = replace(models, fewer=lambda: fewer.append(1))
        return list(mesh_events(make_preset(mesh_resolution=resolution), models, state, make)), fewer

    (warned, short), fewer = meshed(Wide, 36)
    assert isinstance(warned, Warned) and "mesh_resolution 18 in place of 36" in warned.message
    assert fewer == released == [1]
    ((plain,), _) = meshed(ToyScene, 18)
    assert essence(short) == essence(plain)
    Wide.no_room |= {18**3}
    ((none,), _) = meshed(Wide, 36)
    assert isinstance(none, Warned) and "no mesh: out of memory even at mesh_resolution 18" in none.message


def test_short_memory_never_makes_networks_take_more() -> None:
    """At `network_batch: 1` one orbit would be four times as much."""
    models = load_models(Preset.load("tiny", {"device": "cpu", "network_batch": 1}))
    networks: list = [models.prior, *models.rewards.values()]
    models.fewer()
    assert [network.batch for network in networks] == [1, 1]


def test_steps_and_previews_compute_alone_and_let_others_in_between() -> None:
    """Others score pictures with the same networks, which may be on their way to the device and back."""

    def free() -> bool:
        found: list[bool] = []

        def ask() -> None:
            found.append(COMPUTING.acquire(blocking=False))
            if found[0]:
                COMPUTING.release()

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return found[0]

    inside = []

    class Asks(QuadraticReward):
        def __call__(self, images, prompt):
            inside.append((self.name, free()))
            return super().__call__(images, prompt)

    models = replace(make_models(rewards={"quadratic": Asks()}), judges={"judge": Asks("judge")})
    assert all(free() for _ in run(make_preset(steps=2, preview_every=1), models))
    assert set(inside) == {("quadratic", False), ("judge", False)}


# ------------------------------------------------------------------------------------------------------- score space


def test_a_score_in_image_space_is_the_distance_to_the_decoded_target() -> None:
    prior = ToyPrior(torch.float64)
    generator = torch.Generator().manual_seed(0)
    images, target = torch.rand(2, 2, 4, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    z0, goal = prior.encode(images), prior.encode(target)
    found = image_score(prior, images, z0, (z0 - goal) / 8)  # a distance over 2 x 4 rows, as the recon form has it
    torch.testing.assert_close(found, (images - prior.decode(goal)) / 8)
    painted = prior.decode(goal)
    torch.testing.assert_close(image_score(prior, painted, goal, torch.zeros_like(goal)), torch.zeros_like(painted))


def test_in_image_space_nothing_passes_through_the_encoder() -> None:
    class Sealed(ToyPrior):
        def encode(self, images):
            return super().encode(images.detach())

    moved = [e for e in run(make_preset(score_space="image"), make_models(prior=Sealed())) if isinstance(e, Stepped)]
    assert all(event.metrics["score/norm"] > 0 for event in moved)
    plain = [e for e in run(make_preset(score_space="image"), make_models()) if isinstance(e, Stepped)]
    assert [event.metrics["score/norm"] for event in moved] == [event.metrics["score/norm"] for event in plain]


def test_a_step_decodes_its_target_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the reward's pixel gradient takes its length from it before the step does: cost is counted by calls."""
    decoded = []
    decode = ToyPrior.decode
    monkeypatch.setattr(ToyPrior, "decode", lambda self, z0: decoded.append(1) or decode(self, z0))
    list(run(make_preset(method="reward_gradient", score_space="image", steps=3, negative=False), make_models()))
    assert len(decoded) == 3


def test_colours_are_found_nearer_in_image_space() -> None:
    """Why the embedded preset compares pictures: from grey, the encoder's gradient leads to green with speckles."""
    prior = load_prior("assets/prior", torch.device("cpu"))
    green = torch.tensor([0.12, 0.62, 0.18]).view(3, 1, 1).expand(1, 1, 3, 16, 16)
    goal = prior.encode(green)
    errors = {}
    for space in ("latent", "image"):
        colours = torch.zeros(1, 1, 3, 16, 16, requires_grad=True)
        optimiser = torch.optim.Adam([colours], lr=0.1)
        for _ in range(80):
            images = colours.sigmoid()
            z0 = prior.encode(images)
            gradient = (z0 - goal).detach()
            root = z0 if space == "latent" else images
            optimiser.zero_grad()
            torch.autograd.backward(
                root, gradient if space == "latent" else image_score(prior, images, z0, gradient).detach()
            )
            optimiser.step()
        errors[space] = (colours.sigmoid() - green).abs().mean().item()
    assert errors["image"] <= 0.02
    assert errors["latent"] >= 5 * errors["image"]


def test_near_is_bright_and_nothing_is_black() -> None:
    depth = torch.tensor([2.0, 3.0, 4.0, 0.0]).view(1, 1, 1, 1, 4)
    assert nearness_image(depth, torch.full((1, 1), 3.0)).flatten().tolist() == [1.0, 0.5, 0.0, 0.0]


def test_a_contrast_that_stays_far_is_warned_of_once() -> None:
    """One step alone is usual where the gate begins to open: the default preset's fourth may have 3."""
    models = make_models()
    session = Session.open(make_preset(), models, None, None, None, models.scene)

    def warn(*contrasts: float) -> list[Event]:
        return [event for value in contrasts for event in contrast_events(session, 600, value)]

    assert not warn(3.0, 1.0, 2.5, 2.5, 2.5, 2.5, 1.9, 0.4, 0.4, 0.4, 0.4)
    (warned,) = warn(0.4, 0.4, 0.4, 3.0, 3.0)
    assert isinstance(warned, Warned) and "0.40 times" in warned.message and "lower guidance_scale" in warned.message
    assert not warn(1.0, *[9.0] * 20)
