"""What half precision keeps of single: the networks' values and gradients, and the steered pair's direction.

That direction is a difference of two predictions that are close by design, where rounding weighs most.  And what
becomes of a step that overflows in it.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Failed, Finished, Stepped, Warned
from psd.distillation.gap_scale import GapScale
from psd.distillation.methods import preference
from psd.distillation.step import StepContext
from psd.geometry.cameras import turntable_cameras
from psd.models.interfaces import Models
from psd.models.load import load_models, unload_all
from psd.models.prior.diffusers_prior import DiffusersPrior
from psd.models.prior.view_prompts import PromptEmbedding
from psd.models.random_weights import random_components, random_models
from psd.models.rewards.critic import CriticReward
from psd.runtime import precision
from psd.runtime.precision import (
    BACKOFF,
    GROWTH_INTERVAL,
    LARGEST,
    LEAST,
    MOST_DRAWS,
    GradientScaler,
    run_in_precision,
    use_scaler,
)
from tests.support.toy import ToyPrior, make_models, make_preset, run


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
            parts = random_components("mvdream", torch.float32, tiny=False)
        for network in (parts.unet, parts.vae, parts.text_encoder):
            network.to(dtype)
        prior = DiffusersPrior("mvdream", parts, device=torch.device("cuda"), dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(1, 4, 3, 256, 256, generator=generator).cuda().requires_grad_()
        latents = prior.encode(images)
        (gradient,) = torch.autograd.grad(1e-7 * latents.square().sum(), images)
        z_t = torch.randn(1, 4, 4, 32, 32, generator=generator).cuda()
        with torch.no_grad():
            noise = prior.predict_noise(z_t, 500, prior.embed_prompt("a corgi")[None], turntable_cameras(4).to("cuda"))
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
    negative = prior.embed_prompt(preset.negative_prompt)
    noise = torch.randn(1, *z0.shape, generator=torch.Generator().manual_seed(0))
    step = StepContext(
        preset=preset, prior=prior, rewards=models.rewards, gap_scale=GapScale(0.99, prior.levels),
        cameras=turntable_cameras(prior.views).to(z0.device), images=images,
        z0=z0, noise=noise.to(z0), t=t, progress=0.5,
        condition=PromptEmbedding(prior.embed_prompt(preset.prompt)), negative=negative,
        pull_back=lambda gradient: gradient, generator=torch.Generator(),
    )  # fmt: skip
    with torch.no_grad():
        pair = preference.steered_pair(step).pair
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
    unload_all()  # what is cast here is nobody else's
    try:
        presets = [preset.with_values({"steer_radius": radius}) for radius in (0.02, 0.1)]
        short, long = kept(load_models(preset), presets, torch.bfloat16)
    finally:
        unload_all()
    # Rounding is about as large whichever way the nudge is, so the angle to the true direction is that over its length.
    angles = [math.acos(cosine) for cosine in (short, long)]
    assert angles[0] > 2 * angles[1] and long > 0.95


@pytest.mark.gpu
def test_the_large_presets_nudge_keeps_its_direction_in_float16(exact_single: None, record_property) -> None:
    """The exact shapes, random weights."""
    preset = Preset.load("mvdream", {"judges": [], "compile": "none"})
    (alike,) = kept(random_models(preset, torch.device("cuda"), torch.float32), [preset], torch.float16)
    record_property("cosine", f"{alike:.4f}")
    assert alike >= 0.9


# ----------------------------------------------------------------------------------------------------------- overflows


class Narrow(torch.autograd.Function):
    """The identity, through which larger gradients than ``most`` do not pass: as inside of a network in float16."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, most: float) -> Tensor:
        ctx.most = most
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.where(gradient.abs() > ctx.most, torch.inf, gradient), None


class HalfPrior(ToyPrior):
    """Encodes in ``half``; gradients above ``most`` overflow on their way back, and predictions at the given t's."""

    def __init__(self, half: torch.dtype = torch.float16, most: float = 2.0) -> None:
        super().__init__()
        self.half, self.most, self.broken_at, self.tries = half, most, set(), 0

    def encode(self, images: Tensor) -> Tensor:
        self.tries += torch.is_grad_enabled()

        def latents(pixels: Tensor) -> Tensor:
            return Narrow.apply(ToyPrior.encode(self, pixels.float()).to(self.half), self.most)

        return run_in_precision(latents, images, self.half)

    def predict_noise(self, z_t: Tensor, t: int, *others: Any) -> Tensor:
        return super().predict_noise(z_t, t, *others) * (torch.inf if t in self.broken_at else 1)


@pytest.fixture
def without_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psd.distillation.reporting.mesh_events", lambda *_: iter(()))


def run_events(prior: ToyPrior, saved: Checkpointed | None = None, **values: object) -> list[Event]:
    return list(run(make_preset(**values), make_models(prior=prior), resume=saved))


def ts(events: list[Event]) -> list[int]:
    return [event.t for event in events if isinstance(event, Stepped)]


def warnings(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


def grid(events: list[Event]) -> Tensor:
    saved = [event for event in events if isinstance(event, Checkpointed)][-1]
    return torch.tensor(saved.tensors["scene/grid"])


def test_a_gradient_that_overflows_passes_at_a_lower_scale() -> None:
    """A power of two: the same numbers."""
    scaler, found = GradientScaler(), []
    for most in (2.0, 0.4, 0.4):
        value = torch.linspace(-1, 1, 9).requires_grad_()
        with use_scaler(scaler):
            result = run_in_precision(lambda part, most=most: Narrow.apply(3 * part, most), value, torch.float16)
            found.append(torch.autograd.grad(1e-9 * result.square().sum(), value)[0])
        if not found[-1].isfinite().all():
            assert scaler.back_off() == "same draws" and scaler.largest == LARGEST * BACKOFF
    wide, narrow, lower = found
    assert not narrow.isfinite().all() and wide.any() and torch.equal(lower, wide)
    assert precision._scaler is not scaler


def test_a_lower_scale_grows_again_in_time() -> None:
    scaler = GradientScaler()
    scaler.in_use = True
    scaler.back_off()
    grown = []
    for _ in range(6 * GROWTH_INTERVAL):
        scaler.record_success()
        grown.append(scaler.largest)
    assert sorted(grown) == grown and grown[0] == LARGEST / 16 and grown[-1] == LARGEST
    assert [grown.count(LARGEST / 2**power) for power in (4, 3, 2, 1)] == [GROWTH_INTERVAL - 1, *[GROWTH_INTERVAL] * 3]


def test_an_overflow_in_float16_costs_no_step_and_no_draw(without_mesh: None) -> None:
    whole, prior = run_events(HalfPrior()), HalfPrior(most=0.4)
    events = run_events(prior)
    assert isinstance(events[-1], Finished) and ts(events) == ts(whole) and len(ts(events)) == 6
    (warning,) = warnings(events)  # said once, and the scale stays low: one step was computed again
    assert "gradient of the scene (grid) is not finite" in warning and "smaller gradients" in warning
    assert prior.tries == 7 and warnings(whole) == []
    torch.testing.assert_close(grid(events), grid(whole), rtol=1e-3, atol=1e-3)


def test_a_resumed_run_knows_of_the_lower_scale(without_mesh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psd.runtime.precision.GROWTH_INTERVAL", 4)
    whole = run_events(HalfPrior(most=0.4), checkpoint_s=1e-9)
    for saved in [event for event in whole if isinstance(event, Checkpointed)]:
        prior = HalfPrior(most=0.4)
        rest = run_events(prior, saved)
        assert ts(rest) == ts(whole)[saved.step :] and torch.equal(grid(rest), grid(whole))
        assert warnings(rest) == [] and prior.tries == 6 - saved.step
        assert [event for event in rest if isinstance(event, Checkpointed)][-1].values == whole_values(whole)


def whole_values(events: list[Event]) -> Any:
    return [event for event in events if isinstance(event, Checkpointed)][-1].values


def test_what_overflows_on_the_way_forward_is_drawn_anew(without_mesh: None) -> None:
    plain, prior = ts(run_events(HalfPrior())), HalfPrior()
    prior.broken_at = {plain[2]}
    events = run_events(prior)
    assert isinstance(events[-1], Finished) and len(ts(events)) == 6
    assert ts(events)[:2] == plain[:2] and ts(events)[2] != plain[2]
    first, second = warnings(events)
    assert "noise prediction" in first and "smaller gradients" in first and "other cameras" in second


def test_a_run_ends_when_no_draw_is_finite_and_keeps_the_last_good_state(without_mesh: None) -> None:
    plain, prior = ts(run_events(HalfPrior())), HalfPrior()
    prior.broken_at = set(range(1000)) - set(plain[:2])
    events = run_events(prior)
    failure, saved = events[-1], events[-2]
    assert isinstance(failure, Failed) and isinstance(saved, Checkpointed) and failure.step == saved.step == 2
    assert "step 3, t = " in failure.message and "noise prediction" in failure.message
    assert failure.cure.startswith("start anew with precision=bfloat16") and "negative_lr" in failure.cure
    scales = 1 + round(torch.tensor(LEAST / LARGEST).log2().item() / torch.tensor(BACKOFF).log2().item())
    assert prior.tries == 2 + MOST_DRAWS * scales
    assert len(warnings(events)) == 2
    assert len(ts(run_events(HalfPrior(), saved))) == 4


@pytest.mark.parametrize("half", [torch.float32, torch.bfloat16])
def test_where_no_scale_would_help_a_step_is_not_repeated(half: torch.dtype, without_mesh: None) -> None:
    prior = HalfPrior(half)
    prior.broken_at = set(range(1000))
    events = run_events(prior)
    assert isinstance(events[-1], Failed) and prior.tries == 1 and warnings(events) == []
    assert "bfloat16" not in events[-1].cure
    assert "gradient_scaler" not in whole_values(events)
