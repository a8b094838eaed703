"""The large presets' whole step, with random weights: small on a CPU, in the exact shapes on a GPU."""

import pytest
import torch

from psd import bench
from psd.preset import Preset, PresetError
from psd.randomised import components, image_reward, vit_h

CPU = torch.device("cpu")
SMALL = {
    "render_size": 16, "late_render_size": 16, "ray_samples": 16, "preview_size": 16, "groups": 1, "late_groups": 1,
    "mesh_resolution": 16, "device": "cpu",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvdream", "sd15"])
def test_a_large_preset_runs_its_whole_step_small(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**SMALL, "prompt": "a red mushroom", "negative_prompt": "blurry", "negative_every": 1}
    if name == "mvdream":  # every branch of a step: light, pieces, fewer views for the rewards
        settings |= {"negative_t_max": 1.0, "shading": True, "network_batch": 2, "reward_views": 2}
    assert bench.main(Preset.load(name, settings), 3, full=False, as_json=False, random_weights="tiny") == 0
    assert "it/s" in capsys.readouterr().out


def test_exact_shapes_are_the_released_ones() -> None:
    with torch.device("meta"):
        clip, blip = vit_h(tiny=False), image_reward(tiny=False)
    assert len(clip.state_dict()) == 910 and len(blip.state_dict()) == 624
    assert sum(p.numel() for p in blip.parameters()) == pytest.approx(446.67e6, rel=1e-3)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(PresetError, match="not known here"):
        components("owner/other", torch.float32, tiny=True)


def test_a_cap_needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(PresetError, match="leave it out"):
            bench.cap_memory(22)
    bench.cap_memory(None)
