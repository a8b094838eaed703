"""The large presets' whole step, with random weights: small on a CPU, in the exact shapes on a GPU."""

import pytest
import torch

from psd import bench
from psd.preset import Preset, PresetError
from psd.randomised import components, image_reward, random_models, vit_h

CPU = torch.device("cpu")
SMALL = {
    "render_size": 16, "late_render_size": 16, "ray_samples": 16, "preview_size": 16, "groups": 1, "late_groups": 1,
    "mesh_resolution": 16, "device": "cpu",
}  # fmt: skip
# On a GPU: the shapes that were released, every preset for a few steps.
PRESETS = ["mvdream", "mvdream-shaded", "mvdream-12gb", "sd21", "sd15"]


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


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRESETS)
def test_steps_in_the_exact_shapes(name: str, record_property) -> None:
    """Speed and memory of a few steps; the figures go into the table of `make test-gpu`."""
    preset = Preset.load(name, {"prompt": "a corgi", "negative_prompt": "blurry"})
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    found = bench.measure(preset, random_models(preset, device, torch.float16), 12)
    record_property("it/s", round(1 / found.step_s, 2))
    record_property("GiB", round((found.cuda_memory_bytes or 0) / 2**30, 2))
    record_property("overhead", f"{found.overhead_share:.1%}")
    assert found.cuda_memory_bytes is not None
    if name == "mvdream":
        assert found.cuda_memory_bytes < 22 * 2**30


@pytest.mark.gpu
def test_half_precision_agrees_with_single_on_a_gpu() -> None:
    """Latents and their gradient to the image through the exact encoder, float16 against float32."""
    from psd.prior import DiffusersPrior

    device, results = torch.device("cuda"), []
    for dtype in (torch.float32, torch.float16):
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            parts = components("mvdream", torch.float32, tiny=False)
        for network in (parts.unet, parts.vae, parts.text_encoder):
            network.to(dtype)
        prior = DiffusersPrior("mvdream", parts, device=device, dtype=dtype)
        images = torch.rand(1, 4, 3, 256, 256, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
        latents = prior.encode(images)
        (gradient,) = torch.autograd.grad(1e-7 * latents.square().sum(), images)
        results.append((latents.detach(), gradient))
    for single, half in zip(*results, strict=True):
        assert torch.isfinite(half).all()
        assert torch.nn.functional.cosine_similarity(single.flatten(), half.flatten(), dim=0) > 0.99
