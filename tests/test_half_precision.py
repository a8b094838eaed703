"""What half precision keeps of single: the networks' values and gradients, and the steered pair's direction.

That direction is a difference of two predictions that are close by design, where rounding weighs most.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from psd import methods
from psd.cameras import turntable
from psd.janus import Condition
from psd.models import let_go, load_models
from psd.preset import Preset
from psd.prior import DiffusersPrior
from psd.protocols import Models
from psd.randomised import components, random_models
from psd.rewards import CriticReward
from psd.score import GapScale
from psd.step import Step


@pytest.fixture
def exact_single() -> Iterator[None]:
    """float32 that is: by default cuDNN's convolutions round their inputs to TF32's ten bits, as many as float16's."""
    places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


@pytest.mark.gpu
def test_half_precision_agrees_with_single(exact_single: None, record_property) -> None:
    """The exact encoder, U-Net and small decoder: values and gradients in float16 and bfloat16 against float32."""
    results = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with torch.random.fork_rng(), torch.device("cuda"):
            torch.manual_seed(0)
            parts = components("mvdream", torch.float32, tiny=False)
        for network in (parts.unet, parts.vae, parts.text_encoder):
            network.to(dtype)
        prior = DiffusersPrior("mvdream", parts, device=cuda(), dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(1, 4, 3, 256, 256, generator=generator).cuda().requires_grad_()
        latents = prior.encode(images)
        (gradient,) = torch.autograd.grad(1e-7 * latents.square().sum(), images)
        z_t = torch.randn(1, 4, 4, 32, 32, generator=generator).cuda()
        with torch.no_grad():
            noise = prior.predict_noise(z_t, 500, prior.embed("a corgi")[None], turntable(4).to(cuda()))
        results.append((latents.detach(), gradient, noise))
        del prior, parts
    for name, half in zip(("float16", "bfloat16"), results[1:], strict=True):
        for what, one, other in zip(("latents", "gradient", "noise"), results[0], half, strict=True):
            assert torch.isfinite(other).all()
            alike = cosine_similarity(one.flatten(), other.flatten(), dim=0).item()
            record_property(f"{name} {what}", f"{alike:.5f}")
            assert alike > 0.99


def direction(models: Models, preset: Preset, images: Tensor, z0: Tensor, t: int) -> Tensor:
    """P_x, as the winner's clean prediction minus the loser's."""
    prior = models.prior
    negative = prior.embed(preset.negative_prompt)
    noise = torch.randn(1, *z0.shape, generator=torch.Generator().manual_seed(0))
    step = Step(
        preset=preset, prior=prior, rewards=models.rewards, gap_scale=GapScale(0.99, len(prior.alpha_bar)),
        cameras=turntable(prior.views).to(z0.device), images=images, opacity=images[:, :, :1],
        z0=z0, noise=noise.to(z0), t=t, progress=0.5,
        condition=Condition(prior.embed(preset.prompt)), negative=negative, negative_start=negative,
        pull_back=lambda gradient: gradient, generator=torch.Generator(),
    )  # fmt: skip
    with torch.no_grad():
        pair = methods.psd(step).pair
        assert pair is not None
        win, lose = (step.clean(member.z_t, member.noise_pred_c) for member in (pair.win, pair.lose))
    return win - lose


def kept(models: Models, presets: list[Preset], dtype: torch.dtype, t: int = 500) -> list[float]:
    """Cosine of each preset's direction in ``dtype`` to that in float32, at a red square; casts the networks."""
    prior: Any = models.prior
    images = torch.full((1, prior.views, 3, prior.image_size, prior.image_size), 0.85, device=prior.device)
    inner = slice(prior.image_size // 3, 2 * prior.image_size // 3)
    images[..., inner, inner] = torch.tensor([0.8, 0.1, 0.1], device=prior.device)[:, None, None]
    with torch.no_grad():
        z0 = prior.encode(images)
    single = [direction(models, preset, images, z0, t) for preset in presets]
    for network in (prior.unet, prior.vae, prior.decoder, prior.text_encoder):
        network.to(dtype)
    rewards: list[Any] = [r for r in models.rewards.values() if not isinstance(r, CriticReward)]  # these stay single
    for reward in rewards:
        reward.network.to(dtype)
    for adapter in (prior, *rewards):
        adapter.dtype = dtype
    half = [direction(models, preset, images, z0, t) for preset in presets]
    return [cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in zip(single, half, strict=True)]


def test_a_larger_nudge_keeps_the_steered_pairs_direction_in_half_precision() -> None:
    """The embedded prior in bfloat16, whose rounding is eight times float16's: a CPU's stand-in for it."""
    preset = Preset.load("tiny", {"device": "cpu", "judges": []})
    let_go()  # what is cast here is nobody else's
    try:
        presets = [preset.changed({"steer_radius": radius}) for radius in (0.02, 0.1)]
        short, long = kept(load_models(preset), presets, torch.bfloat16)
    finally:
        let_go()
    assert long > 0.9 > short


@pytest.mark.gpu
def test_the_large_presets_nudge_keeps_its_direction_in_float16(exact_single: None, record_property) -> None:
    """The exact shapes, random weights."""
    preset = Preset.load("mvdream", {"prompt": "a corgi", "negative_prompt": "blurry", "judges": [], "compile": False})
    (alike,) = kept(random_models(preset, torch.device("cuda"), torch.float32), [preset], torch.float16)
    record_property("cosine", f"{alike:.4f}")
    assert alike >= 0.9
