"""What earlier versions wrote: a run folder made by commit 7e1bf54 opens, is meshed again and goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.functional import normalize

from psd.config.errors import PresetError
from psd.config.former import CHANGED, DELETED, DELETED_IN_SCENE, translate_preset
from psd.config.preset import Preset, flatten
from psd.distillation.events import Checkpointed, Finished, Started
from psd.geometry.cameras import Cameras
from psd.runs.remesh import remesh_run
from psd.runs.store.archive import SCHEMA, latest_checkpoint, read_preset, read_provenance, read_status, replay_events
from psd.runs.store.files import StoreError
from psd.runs.store.folder import RunFolder
from psd.scenes.choose import make_scene
from psd.scenes.interfaces import Light
from psd.ui.panels.share import read_text
from tests.support.toy import make_models, run

# Six steps of the toy models, with checkpoints after the fifth and the sixth; without its mesh.
(FORMER,) = (Path(__file__).parent / "data" / "former").iterdir()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMER, tmp_path / FORMER.name))


def change_preset(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "preset.resolved.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def test_its_preset_reads_in_todays_keys(folder: Path) -> None:
    written = yaml.safe_load((folder / "preset.resolved.yaml").read_text())
    assert {"reading", "label_noise", "gap_ema"} <= set(written) and json.loads(
        (folder / "status.json").read_text()
    )["schema"] == 1 < SCHEMA  # fmt: skip
    preset = read_preset(folder, to_resume=True)
    assert (preset.pair, preset.scaling, preset.kappa, preset.seed) == ("random", "none", 2.0, 0)
    assert preset.scene.kind == "grid" and preset.scene.grid_size == 8 and preset.scene.background == "network"
    assert [(preset.at(x).render_size, preset.at(x).groups, preset.at(x).shading) for x in (0.0, 0.5)] == [
        (8, 1, False), (12, 2, True)
    ]  # fmt: skip
    assert [flatten(preset.at(x))["scene.weight_orientation"] for x in (0.0, 0.5)] == [(0.05, 0.5), (0.5, 0.5)]
    assert read_provenance(folder, 6)["preset"]["pair"] == "random"
    assert read_status(folder).state == "finished"
    assert [type(event) for event in replay_events(folder)][:: len(list(replay_events(folder))) - 1] == [
        Started,
        Finished,
    ]


def former_light(cameras: Cameras, generator: torch.Generator) -> Light:
    """The light of 7e1bf54: one draw a view beside a camera at distance 1, and an ambient share of 0.1."""
    shape = (cameras.groups, cameras.views)
    aside = torch.randn(*shape, 3, generator=generator)
    distance = 0.8 + 0.7 * torch.rand(*shape, 1, generator=generator)
    unshaded, white = torch.rand(2, cameras.groups, generator=generator)
    away = normalize(normalize(cameras.c2w[..., :3, 3], dim=-1) + aside, dim=-1)
    ambient = torch.where(unshaded < 0.25, 1.0, 0.1)
    return Light(away * distance, ambient, ((unshaded >= 0.25) & (white < 0.5)).float())


def former_orientation(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    """The term of 7e1bf54, whose weights were no constants."""
    return (weights * (normals * directions[:, None]).sum(-1).clamp_min(0).square()).sum(-1)


def test_it_goes_on_as_it_would_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fifth step to the sixth, whose checkpoint the former program left beside it.

    Light and orientation are MVDream's since; with those of before the step is the same.
    """
    monkeypatch.setattr("psd.distillation.sampling.draw_light", former_light)
    monkeypatch.setattr("psd.scenes.volume_rendering.orientation_loss", former_orientation)
    monkeypatch.setattr("psd.scenes.radiance.SEEN", -1.0)  # a mean over all pixels
    wanted = latest_checkpoint(folder)
    assert wanted is not None
    for path in (folder / "checkpoints").glob("000006.*"):
        path.unlink()
    preset, checkpoint = read_preset(folder, to_resume=True), latest_checkpoint(folder)
    assert checkpoint is not None and (checkpoint.step, wanted.step) == (5, 6)
    models = replace(make_models(), scene=make_scene)
    found = [event for event in run(preset, models, resume=checkpoint) if isinstance(event, Checkpointed)][-1]
    assert found.step == 6
    moved = 0
    for name, array in wanted.tensors.items():
        if name.startswith(("scene/", "negative_value")):
            np.testing.assert_allclose(found.tensors[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
            moved += not np.array_equal(array, checkpoint.tensors[name])
    assert moved >= 3


def test_it_is_meshed_again(folder: Path) -> None:
    mesh, step = remesh_run(folder, scene="last")
    assert step == 6 and len(mesh.faces) > 0


def test_written_on_it_is_of_today(folder: Path) -> None:
    with RunFolder.open(folder, read_preset(folder)) as opened:
        opened.set_state("queued")
        opened.write(Started(step=6, preset={}, total_steps=6, views=4, environment={}))  # it goes on
    assert json.loads((folder / "status.json").read_text())["schema"] == SCHEMA
    assert "reading" not in yaml.safe_load((folder / "preset.resolved.yaml").read_text())
    assert read_preset(folder) == read_preset(FORMER)


def test_an_option_that_is_gone_can_be_looked_at_but_not_gone_on_with(folder: Path) -> None:
    change_preset(folder, lambda values: values.update(steer_both=True, reading="C"))
    assert read_preset(folder).pair == "steered"
    with pytest.raises(StoreError, match=r"steer_both=True, reading=C, which this version no longer has.*7e1bf54"):
        read_preset(folder, to_resume=True)
    with pytest.raises(PresetError, match="steer_both=True"):
        read_text((folder / "preset.resolved.yaml").read_text())


def test_a_sibling_kept_its_negative_prompt_then(folder: Path) -> None:
    change_preset(folder, lambda values: values.update(method="dreamdpo", negative=True))
    assert read_preset(folder).negative is False


def test_presets_of_today_stay_as_they_are() -> None:
    for name, values in {
        "tiny": {},
        "mvdream": {"method": "dreamdpo", "steer_by": "scores", "scaling": "none"},
    }.items():
        preset = Preset.load(name, values)
        assert translate_preset(preset.model_dump()) == (preset.model_dump(), [])
        assert read_text(preset.to_yaml()) == preset


def test_deleted_keys_of_a_scene_are_dropped_in_every_stage() -> None:
    kept = {"kind": "gaussians", "gaussians": 500}
    written = {"scene": {**kept, **DELETED_IN_SCENE}, "stages": [{"share": 1.0, "scene": {**DELETED_IN_SCENE}}]}
    assert translate_preset(written) == ({"scene": kept, "stages": [{"share": 1.0}]}, [])
    written["stages"][0]["scene"]["turn_lr"] = 0.2
    assert translate_preset(written)[1] == ["scene.turn_lr=0.2"]
    assert Preset.make(translate_preset(written)[0]).scene.kind == "gaussians"


def test_every_neutral_value_is_dropped_and_every_other_told() -> None:
    assert translate_preset({**DELETED, "reading": "S"}) == ({"pair": "steered"}, [])
    for name in DELETED:
        assert translate_preset({name: "other"}) == ({}, [f"{name}=other"])
    for name, (key, choices) in CHANGED.items():
        for value, choice in choices.items():
            today, lost = translate_preset({name: value})
            assert (today, lost) == (({}, [f"{name}={value}"]) if choice is None else ({key: choice}, []))
    assert not set(DELETED) & set(Preset.model_fields)
