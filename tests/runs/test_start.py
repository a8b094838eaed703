"""A run that starts from a mesh begins as it, and goes on alike after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psd.config.errors import PresetError
from psd.distillation.events import Checkpointed, Meshed, Previewed, Started
from tests.distillation.test_stages import GAUSSIANS, SURFACE, essence, models, preset_of
from tests.geometry.test_read import make_solid
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
