"""Laws of the formulas, and their float64 references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psd.distillation import formulas, gap_scale
from psd.runtime import deferred
from tests.support import reference
from tests.support.toy import ToyPrior

SHAPE = (2, 4, 3, 4, 4)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- forward process, x0


@pytest.mark.parametrize("t", [0, 1, 37, 500, 998, 999])
def test_predictions_invert_the_forward_process(t: int) -> None:
    alpha, sigma = ToyPrior().alpha_sigma(t)
    z0, noise = draw(0), draw(1)
    assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-15)
    z_t = formulas.add_noise(z0, noise, alpha, sigma)
    torch.testing.assert_close(formulas.predict_x0(z_t, noise, alpha, sigma), z0, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("t", "alpha", "sigma", "ratio"),
    [
        (100, 0.946, 0.325, 0.344), (300, 0.768, 0.640, 0.83), (500, 0.526, 0.851, 1.62), (700, 0.287, 0.958, 3.33),
        (860, 0.145, 0.989, 6.80), (980, 0.076, 0.997, 13.0),
    ],
)  # fmt: skip
def test_amplitudes_of_stable_diffusion(t: int, alpha: float, sigma: float, ratio: float) -> None:
    found = ToyPrior().alpha_sigma(t)
    assert found == pytest.approx((alpha, sigma), abs=6e-4)
    assert found[1] / found[0] == pytest.approx(ratio, rel=6e-3)


# ------------------------------------------------------------------------------------------------------------ guidance


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_matches_the_reference_and_its_limits(scale: float) -> None:
    n, c = draw(0), draw(1)
    found = formulas.apply_guidance(n, c, scale)
    np.testing.assert_allclose(found, reference.guide(n.numpy(), c.numpy(), scale), rtol=0, atol=1e-13)
    if scale < 2:
        torch.testing.assert_close(found, c if scale else n)


def test_rescale_matches_the_reference() -> None:
    x0, x0_c = 3 * draw(0) + 1, draw(1)
    found = formulas.rescale_contrast(x0, x0_c, 0.3)
    np.testing.assert_allclose(found, reference.rescale(x0.numpy(), x0_c.numpy(), 0.3), rtol=1e-12)
    stacked = formulas.rescale_contrast(torch.stack([x0, x0_c]), torch.stack([x0_c, x0_c]), 0.3)
    torch.testing.assert_close(stacked[0], found, rtol=1e-14, atol=0)


def test_rescale_gives_a_group_the_conditional_contrast_and_keeps_its_views_apart() -> None:
    x0, x0_c = 3 * draw(0), draw(1)
    x0[:, 1] *= 5
    full = formulas.rescale_contrast(x0, x0_c, 1.0)
    torch.testing.assert_close(full.std((1, 2, 3, 4)), x0_c.std((1, 2, 3, 4)))
    torch.testing.assert_close(full[0, 1].std() / full[0, 0].std(), x0[0, 1].std() / x0[0, 0].std())
    assert torch.equal(formulas.rescale_contrast(x0, x0_c, 0.0), x0)


# ---------------------------------------------------------------------------------------------------------- preference


@pytest.mark.parametrize("t", [1, 37, 500, 998, 999])
def test_a_common_render_makes_the_pair_the_preference_score(t: int) -> None:
    """Method fact a: x0_w - x0_l = -(sigma / alpha) P."""
    alpha, sigma = ToyPrior().alpha_sigma(t)
    z0, noise_w, noise_l, pred_w, pred_l = map(draw, range(5))
    x0_w = formulas.predict_x0(formulas.add_noise(z0, noise_w, alpha, sigma), pred_w, alpha, sigma)
    x0_l = formulas.predict_x0(formulas.add_noise(z0, noise_l, alpha, sigma), pred_l, alpha, sigma)
    p = (pred_w - noise_w) - (pred_l - noise_l)
    torch.testing.assert_close(x0_w - x0_l, -(sigma / alpha) * p, rtol=0, atol=1e-10)


def test_ranking_a_gaussian_climbs_the_covariant_gradient() -> None:
    """Method fact b: E[x0_w - x0_l] = (2 / sqrt(pi)) C g / |C^(1/2) g|; fact c: with random labels it is 0."""
    root = draw(0, 3, 3)
    covariance, g = root @ root.T, draw(1, 3)
    members = draw(2, 2, 200_000, 3) @ root.T
    steered = members @ g
    first = (steered[0] > steered[1])[:, None]
    difference = torch.where(first, members[0] - members[1], members[1] - members[0])
    expected = 2 / math.sqrt(math.pi) * covariance @ g / (g @ covariance @ g).sqrt()
    error = difference.std(0) / math.sqrt(len(difference))
    assert ((difference.mean(0) - expected).abs() < 4 * error).all()
    assert (expected.abs() > 20 * error).any()  # the check above has teeth
    random = torch.rand(len(difference), 1, generator=torch.Generator().manual_seed(3)) < 0.5
    drift = torch.where(random, members[0] - members[1], members[1] - members[0])
    assert (drift.mean(0).abs() < 4 * error * 2).all()


KINDS = ("confidence", "none")


@pytest.mark.parametrize("kind", KINDS)
@given(gap=st.floats(0, 1e6), mean=st.floats(1e-6, 1e6), kappa=st.floats(0.1, 20))
def test_scaling_is_a_share_and_nothing_for_no_gap(kind, gap: float, mean: float, kappa: float) -> None:
    found = formulas.preference_scaling(torch.tensor([gap, 0.0], dtype=torch.float64), mean, kind, kappa)
    assert 0 <= found[0] <= 1 and found[1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_knows_only_gaps_relative_to_their_mean(kind) -> None:
    gap = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        formulas.preference_scaling(gap, 0.7, kind, 2.0), formulas.preference_scaling(gap * 30, 21.0, kind, 2.0)
    )


def test_scaling_values() -> None:
    gap = torch.tensor([3.0], dtype=torch.float64)
    assert formulas.preference_scaling(gap, 1.5, "confidence", 2.0).item() == pytest.approx(math.tanh(1))
    assert formulas.preference_scaling(gap, 1.5, "none", 2.0).item() == 1
    assert formulas.preference_scaling(gap, 0.0, "none", 2.0).item() == 1
    assert formulas.preference_scaling(gap, 0.0, "confidence", 2.0).item() == 0


def test_running_means_are_unbiased_and_apart_by_reward_and_band() -> None:
    scale = gap_scale.GapScale(0.9, 1000)
    assert scale.mean("a", 100) == 0
    for gap in (1.0, -2.0, 4.0):
        scale.update({"a": gap, "b": 10 * gap}, 100)
    assert scale.mean("a", 199) == pytest.approx(reference.running_mean([1, -2, 4], 0.9), rel=1e-12)
    assert scale.mean("b", 0) == pytest.approx(10 * scale.mean("a", 0))
    assert scale.mean("a", 200) == 0 and scale.mean("a", 999) == 0
    scale.update({"a": 7.0}, 999)
    assert scale.mean("a", 800) == pytest.approx(7)


def test_running_means_survive_a_checkpoint() -> None:
    scale, copy = gap_scale.GapScale(0.9, 1000), gap_scale.GapScale(0.9, 1000)
    scale.update({"a": 0.1}, 3)
    saved = scale.state()
    scale.update({"a": 0.7}, 3)  # a checkpoint does not follow the run
    copy.load_state(saved)
    assert copy.mean("a", 3) == pytest.approx(0.1)
    copy.update({"a": 0.7}, 3)
    assert copy.mean("a", 3) == scale.mean("a", 3)


# ----------------------------------------------------------------------------------------------------------- timesteps


@pytest.mark.parametrize(
    ("progress", "bounds"), [(0, (980, 980)), (0.2, (740, 860)), (0.4, (500, 740)), (0.8, (20, 500)), (1, (20, 500))]
)
def test_annealing_of_mvdream(progress: float, bounds: tuple[int, int]) -> None:
    found = formulas.timestep_bounds(progress, low=(0.98, 0.02), high=(0.98, 0.5), anneal_fraction=0.8, total=1000)
    assert found == bounds


def test_timesteps_are_uniform_over_inclusive_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [formulas.sample_timestep((3, 6), generator) for _ in range(4000)]
    assert set(drawn) == {3, 4, 5, 6}
    assert all(abs(drawn.count(t) - 1000) < 110 for t in (3, 4, 5, 6))  # 4 standard deviations
    assert formulas.timestep_bounds(0, low=(0.999, 0), high=(0.9999, 1), anneal_fraction=1, total=100) == (99, 99)


def test_gate_opens_below_its_threshold() -> None:
    assert formulas.gate_opening(801, 1000, 0.8) == 0
    assert formulas.gate_opening(750, 1000, 0.8) == pytest.approx(0.5)
    assert formulas.gate_opening(700, 1000, 0.8) == pytest.approx(1)
    assert formulas.gate_opening(0, 1000, 0.8) == 1
    assert formulas.gate_opening(999, 1000, 1.0) == 1  # no gate


def test_non_finite_values_are_named() -> None:
    value = torch.ones(3)
    assert deferred.require_finite("latents", value) is value
    for bad in (math.nan, math.inf):
        with pytest.raises(deferred.NonFiniteError, match="latents is not finite") as caught:
            deferred.require_finite("latents", torch.tensor([1.0, bad]))
        assert caught.value.tensor == "latents"
