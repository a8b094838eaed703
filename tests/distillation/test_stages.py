"""Stages that change the scene: a field that becomes a surface, whole, stopped and resumed on either side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation import stages
from psd.distillation.events import Checkpointed, Event, Failed, Meshed, Previewed, Stepped, Warned, from_json, to_json
from psd.distillation.interfaces import NoControl, RenderView
from psd.distillation.session import Session
from psd.distillation.state import restore_scene, strip_prefix
from psd.models.interfaces import Models
from psd.scenes.choose import make_scene
from psd.scenes.gaussians import GaussianScene
from psd.scenes.surface import SurfaceScene
from tests.support.toy import make_models, run

FIELD = {"kind": "grid", "grid_size": 12, "ray_samples": 12, "blob_density": 20.0}
SURFACE = {"kind": "surface", "surface_cells": 8}
GAUSSIANS = {"kind": "gaussians", "gaussians": 300, "relocate_every": 1, "alpha_lr": 1.0}
TWO = [{"share": 0.5}, {"share": 0.5, "scene": SURFACE}]
THREE = [
    {"share": 0.5}, {"share": 0.25, "scene": SURFACE},
    {"share": 0.25, "scene": {**SURFACE, "learns": "texture"}, "render_size": 16},
]  # fmt: skip
SPLATTED = [
    {"share": 0.25}, {"share": 0.5, "scene": GAUSSIANS}, {"share": 0.25, "scene": SURFACE},
]  # fmt: skip


def preset_of(stages: list[dict[str, Any]], **values: Any) -> Preset:
    return Preset.make(
        {
            "prompt": "red cube", "steps": 8, "scene": FIELD, "stages": stages, "render_size": 8, "preview_size": 16,
            "preview_every": 2, "mesh_resolution": 24, "checkpoint_s": 1e-9, "rewards": {"quadratic": 1.0},
            "judges": ["judge"], "negative_every": 2, **values,
        }
    )  # fmt: skip


def models() -> Models:
    return replace(make_models(), scene=make_scene)  # type: ignore[call-arg]


def essence(event: Event) -> tuple[str, list[bytes]]:
    """Everything of an event but its times and memory."""
    record = json.loads(to_json(replace(event, time_s=0.0)))
    record["metrics"] = {k: v for k, v in record.get("metrics", {}).items() if not k.startswith(("time/", "memory/"))}
    arrays = (
        {"values": np.frombuffer(json.dumps(event.values, sort_keys=True).encode(), np.uint8), **event.tensors}
        if isinstance(event, Checkpointed)
        else event.images
        if isinstance(event, Previewed)
        else {}
    )
    if isinstance(event, Meshed) and event.mesh is not None:
        arrays = {"vertices": event.mesh.vertices, "faces": event.mesh.faces, "colours": event.mesh.colours}
    return json.dumps(record, sort_keys=True), [np.asarray(arrays[name]).tobytes() for name in sorted(arrays)]


def last_mesh(events: list[Event]) -> Meshed:
    (meshed,) = [event for event in events if isinstance(event, Meshed)]
    return meshed


def test_a_run_goes_from_a_field_to_its_surface_and_says_where_it_is() -> None:
    preset = preset_of(THREE)
    events = list(run(preset, models()))
    steps = {event.step: event.stage for event in events if isinstance(event, Stepped)}
    assert steps == {1: 0, 2: 0, 3: 0, 4: 0, 5: 1, 6: 1, 7: 2, 8: 2}
    assert [event.stage for event in events if isinstance(event, Previewed)] == [0, 0, 0, 1, 2]
    kept = {event.step: event for event in events if isinstance(event, Checkpointed)}
    assert "scene/density_levels.0" in kept[4].tensors and "optimiser/density_levels.0/exp_avg" in kept[4].tensors
    assert {"scene/distance", "optimiser/distance/exp_avg"} <= set(kept[5].tensors)
    assert not np.array_equal(kept[6].tensors["scene/distance"], kept[5].tensors["scene/distance"])
    assert np.array_equal(kept[8].tensors["scene/distance"], kept[6].tensors["scene/distance"])  # texture alone
    assert not np.array_equal(kept[8].tensors["scene/colour"], kept[6].tensors["scene/colour"])
    metrics = {event.step: event.metrics for event in events if isinstance(event, Stepped)}
    assert "loss/consistency" in metrics[5] and "loss/tv" in metrics[4] and "loss/tv" not in metrics[5]
    assert "loss/consistency" not in metrics[7]
    mesh = last_mesh(events)
    assert mesh.statistics["threshold"] is None and mesh.statistics["watertight"]
    scene = restore_scene(preset, strip_prefix("scene/", kept[8].tensors), 8, stage=2)
    assert mesh.mesh is not None and isinstance(scene, SurfaceScene)
    assert np.array_equal(mesh.mesh.vertices, scene.find_shape().vertices.detach())


def require_alike_from_everywhere(preset: Preset, make: Callable[[], Models], steps: set[int]) -> None:
    """A run that goes on from any checkpoint after ``steps`` makes the events of the whole one, bit for bit."""
    whole, resumed = list(run(preset, make())), set()
    for place, event in enumerate(whole):
        if not isinstance(event, Checkpointed) or event.step not in steps:
            continue
        rest = list(run(preset, make(), resume=event))
        begun = next(at for at, it in enumerate(rest) if isinstance(it, Stepped))
        ours = [essence(it) for it in rest[begun:]]
        assert ours == [essence(it) for it in whole[place + 1 :]][-len(ours) :] and len(ours) > 3
        resumed.add(event.step)
    assert resumed == steps


@pytest.mark.parametrize("stages", [TWO, THREE, SPLATTED])
def test_a_run_that_ends_anywhere_goes_on_bit_for_bit(stages: list[dict[str, Any]]) -> None:
    """From every checkpoint, as after a kill: each step, either side of each boundary."""
    require_alike_from_everywhere(preset_of(stages), models, {2, 4, 5, 6, 7})


def test_a_run_of_gaussians_moves_some_and_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a ball, with moves in most steps."""
    real, moved = GaussianScene.relocate_dead, []

    def count(self: GaussianScene, *given: Any) -> Any:
        moved.append(len(dead := real(self, *given)))
        return dead

    monkeypatch.setattr(GaussianScene, "relocate_dead", count)
    # They fill the unit ball, so that some leave it.
    monkeypatch.setattr("psd.scenes.gaussians.START_RADIUS", 1.0)
    preset = preset_of([], scene={**GAUSSIANS, "alpha_lr": 0.01, "position_lr": 0.03})
    whole = list(run(preset, models()))
    assert len(moved) == 8 and sum(count > 0 for count in moved) > 1
    for place, event in enumerate(whole):
        if isinstance(event, Checkpointed) and event.step in (3, 6):
            rest = list(run(preset, models(), resume=event))
            begun = next(at for at, it in enumerate(rest) if isinstance(it, Stepped))
            ours = [essence(it) for it in rest[begun:]]
            assert ours == [essence(it) for it in whole[place + 1 :]][-len(ours) :] and len(ours) > 3


class Onlooker(NoControl):
    """Looks at the scene whenever it can."""

    looks = 0

    def show_scene(self, render: RenderView, step: int) -> None:
        assert render(40.0 * step, 30.0, 24) is not None
        self.looks += 1


@pytest.mark.parametrize("kind", ["field", "surface", "gaussians", "hash"])
def test_who_looks_on_between_the_parts_of_a_step_changes_no_bit(kind: str) -> None:
    hashed = {"kind": "hash", "ray_samples": 4, "blob_density": 20.0}
    given = {"field": {"stages": []}, "surface": {"stages": TWO}, "gaussians": {"stages": SPLATTED}}
    preset = preset_of(**given[kind], steps=4) if kind in given else preset_of([], scene=hashed, steps=2)
    plain = list(run(preset, models()))
    watched = list(run(preset, models(), control=(onlooker := Onlooker())))
    assert [essence(event) for event in watched] == [essence(event) for event in plain]
    assert onlooker.looks > 5 * preset.steps


def test_gaussians_lie_between_a_field_and_a_surface() -> None:
    events = list(run(preset_of(SPLATTED), models()))
    kept = {event.step: event.tensors for event in events if isinstance(event, Checkpointed)}
    assert {"scene/position", "optimiser/position/exp_avg"} <= set(kept[3]) and "scene/distance" in kept[7]
    assert int(kept[3]["scene/steps"][0]) == 1 and int(kept[6]["scene/steps"][0]) == 4
    assert last_mesh(events).statistics["threshold"] is None


class StopsAt(NoControl):
    """A control that stops before the step after ``step``."""

    def __init__(self, step: int) -> None:
        self.left = step

    def live(self) -> dict[str, float]:
        return {}

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("step", [4, 5])
def test_a_run_that_is_stopped_at_the_boundary_meshes_what_it_has_and_goes_on(step: int) -> None:
    preset = preset_of(TWO)
    first = list(run(preset, models(), control=StopsAt(step)))
    threshold = last_mesh(first).statistics["threshold"]
    assert (threshold is None) == (step == 5)  # after four steps it is still the field
    (*_, saved) = [event for event in first if isinstance(event, Checkpointed)]
    rest, whole = list(run(preset, models(), resume=saved)), list(run(preset, models()))
    assert essence(last_mesh(rest)) == essence(last_mesh(whole))


def test_the_best_scene_of_an_earlier_stage_is_meshed_as_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = preset_of(TWO, export="best")
    scores = iter([5.0, 1.0, 0.5, 0.2, 0.1, 0.1])
    toys = models()
    (judge,) = toys.judges.values()
    monkeypatch.setattr(
        type(judge), "__call__", lambda self, images, prompt: images.mean((2, 3, 4)) * 0 + (
            next(scores) if self.name == "judge" else 0.0)
    )  # fmt: skip
    events = list(run(preset_of(TWO, export="best", method="sds", rewards={}, negative=False), toys))
    mesh = last_mesh(events)
    assert mesh.scene_step == 2 and mesh.statistics["threshold"] > 0 and preset.stages


def test_an_extended_run_stays_in_its_last_stage() -> None:
    events = list(run(preset_of(TWO, extra_steps=2), models()))
    assert [event.stage for event in events if isinstance(event, Stepped)] == [0] * 4 + [1] * 6


def test_a_stage_that_cannot_begin_says_why_and_keeps_the_scene() -> None:
    preset = preset_of(TWO, scene={**FIELD, "density_lr": 1e-6, "blob_density": 0.0})
    events = list(run(preset, models()))
    failed = events[-1]
    assert isinstance(failed, Failed) and failed.step == 4 and "the field is full" in failed.message
    assert failed.message.startswith("stage 2 (surface) cannot start from the grid")
    saved = events[-2]
    assert isinstance(saved, Checkpointed) and saved.step == 4 and "scene/density_levels.0" in saved.tensors
    again = list(run(preset, models(), resume=saved))
    assert isinstance(again[-1], Failed) and again[-1].message == failed.message


def test_short_memory_at_a_boundary_starts_from_a_coarser_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = stages.continue_scene, []

    def short(session: Session, stage: int, resolution: int) -> Any:
        asked.append(resolution)
        if resolution > limit:
            raise MemoryError
        return real(session, stage, resolution)

    monkeypatch.setattr(stages, "continue_scene", short)
    limit = 16
    events = list(run(preset_of(TWO, mesh_resolution=32), models()))
    assert asked == [32, 16] and isinstance(events[-1], Event) and not isinstance(events[-1], Failed)
    assert "at mesh_resolution 16" in next(event.message for event in events if isinstance(event, Warned))
    limit = 0
    failed = list(run(preset_of(TWO, mesh_resolution=32), models()))[-1]
    assert isinstance(failed, Failed) and "out of memory" in failed.message and "lower mesh_resolution" in failed.cure


def test_events_say_their_stage_from_the_second_on() -> None:
    first, second = (Stepped(step=3, t=1, stage=stage) for stage in (0, 1))
    assert "stage" not in json.loads(to_json(first)) and json.loads(to_json(second))["stage"] == 1
    assert from_json(to_json(first)) == first and from_json(to_json(second)) == second


def test_a_checkpoint_of_a_stage_that_the_preset_lacks_is_refused() -> None:
    saved = [event for event in run(preset_of(THREE), models()) if isinstance(event, Checkpointed)][-1]
    with pytest.raises(PresetError, match="checkpoint is in stage 2, this preset has 2"):
        next(run(preset_of(TWO), models(), resume=saved))
