"""A run that starts from a mesh begins as it, and goes on alike after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Meshed, Previewed, Started
from psd.runs.store.files import StoreError
from tests.distillation.test_stages import GAUSSIANS, SURFACE, essence, models, preset_of
from tests.geometry.test_read import make_solid
from tests.runs.test_queue import Hire
from tests.runs.test_worker import hire  # noqa: F401, F811  (a fixture)
from tests.support.fake_run import fake_run
from tests.support.toy import run


@pytest.mark.parametrize("scene", [SURFACE, GAUSSIANS], ids=["surface", "gaussians"])
def test_a_run_begins_as_its_mesh_and_goes_on_alike_after_a_kill(scene: dict) -> None:
    made = replace(make_solid(), notes=("starts from a test",))
    preset = preset_of([], scene=scene, steps=2, preview_size=32)
    whole = list(run(preset, models(), start=made))
    (started,) = [event for event in whole if isinstance(event, Started)]
    assert "starts from a test" in started.notes
    first = next(event for event in whole if isinstance(event, Previewed))
    seen = first.images["rgb"].astype(int)
    red, blue = ((seen[..., 0] - seen[..., 2]) > 60).sum(), ((seen[..., 2] - seen[..., 0]) > 60).sum()
    assert red > 50 and blue > 50
    kept = next(event for event in whole if isinstance(event, Checkpointed))
    assert kept.step == 0
    again = list(run(preset, models(), resume=kept))
    assert [essence(event) for event in again if isinstance(event, Meshed)] == [
        essence(event) for event in whole if isinstance(event, Meshed)
    ]


def test_a_field_cannot_start_from_a_mesh() -> None:
    with pytest.raises(PresetError, match="scene.kind=grid cannot start from a mesh: take scene.kind=surface"):
        next(run(preset_of([], steps=2), models(), start=make_solid()))


def test_the_preset_says_what_its_first_scene_starts_from() -> None:
    preset = Preset.load("tiny-gaussians", {"scene.start": "a run"})
    assert preset.scene_preset(0).scene.start == "a run" and not Preset.load("tiny").scene.start
    on = Preset.load("tiny-surface", {"scene.kind": "surface", "scene.start": "a run"})  # one surface
    assert [stage.scene.start for stage in on.list_stages()] == ["a run", "a run"]
    with pytest.raises(PresetError, match="'scene.start'"):
        Preset.load("tiny", {"scene.start": "a run"})
    with pytest.raises(PresetError, match="only the first stage starts from a run"):
        late = {"share": 0.5, "scene": {"kind": "gaussians", "start": "a run"}}
        Preset.load("tiny-gaussians", {"stages": [{"share": 0.5}, late]})


def test_the_queue_finds_the_run_that_a_preset_starts_from(hire: Hire) -> None:  # noqa: F811
    """A path to a file is no run."""
    worker = hire(fake_run)
    first = worker.submit(Preset.load("tiny", {"steps": 2}))
    later = worker.submit(Preset.load("tiny-gaussians", {"steps": 2, "scene.start": first}))
    assert worker._entries[later].control.start == worker.library.find_folder(first)
    assert worker._entries[first].control.start is None
    count = len(worker.library.list_runs())
    for name in ("mesh.glb", "/etc/passwd.glb", "../" + first, "no such run"):
        with pytest.raises(StoreError, match="no run"):
            worker.submit(Preset.load("tiny-gaussians", {"scene.start": name}))
    assert len(worker.library.list_runs()) == count
