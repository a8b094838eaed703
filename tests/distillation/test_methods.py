"""What each method does: laws, references in float64, and where gradients may not go."""

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from psd.config.errors import PresetError
from psd.config.preset import MethodName, PairKind
from psd.distillation import formulas
from psd.distillation.methods import base_term, choose, denoising, gradient_estimate
from psd.distillation.methods.base_term import steering_prediction
from psd.distillation.methods.denoising import predict_candidates
from psd.distillation.methods.gradient_estimate import estimate_gradient
from psd.distillation.step import StepContext
from psd.distillation.tensors import group_norm, pick_candidate
from tests.support import reference
from tests.support.toy import BlackBox, ConstantReward, QuadraticReward, ToyPrior, make_models, make_preset, make_step

PAIRS = {"steered": 1, "random": 2}  # -> noises
EVERYTHING = [("psd", name) if name in PAIRS else (name, "random") for name in choose.METHODS]


def apply(step: StepContext, method: str = "psd"):
    with torch.no_grad():
        return choose.choose_method(step.preset.model_copy(update={"method": method})).function(step)


def averaged_base(step: StepContext) -> torch.Tensor:
    with torch.no_grad():
        return base_term.base_gradient(step, denoising.predict_candidates(step)).mean(0)


# ---------------------------------------------------------------------------------------------------------------- base


def test_base_matches_the_reference() -> None:
    step = make_step(candidates=3, pair="random", preference_weight=0.0, rescale=0.3)
    with torch.no_grad():
        found = denoising.predict_candidates(step)
    expected = reference.recon_gradient(
        step.z0.numpy(), list(found.noise.numpy()), list(found.noise_pred_c.numpy()), list(found.noise_pred_n.numpy()),
        alpha_bar=step.prior.alpha_sigma(step.t)[0] ** 2, scale=4.0, strength=0.3,
    )  # fmt: skip
    np.testing.assert_allclose(apply(step).gradient, expected, rtol=0, atol=1e-12)


def test_predictions_are_clamped_where_the_prior_says_so() -> None:
    prior = ToyPrior(torch.float64)
    prior.latent_clamp = 1.0
    step = make_step(candidates=1, t=900, prior=prior, rescale=0.0, guidance_scale=7.5)
    target = step.z0 - step.rows * apply(step, "sds").gradient
    assert target.abs().max() == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------- preference, laws


@pytest.mark.parametrize("pair", PAIRS)
def test_no_preference_leaves_the_averaged_base_bit_for_bit(pair: str) -> None:
    step = make_step(candidates=PAIRS[pair], pair=pair, preference_weight=0.0)
    loud = make_step(candidates=PAIRS[pair], pair=pair, preference_weight=1.0)
    assert torch.equal(apply(step).gradient, averaged_base(step))
    assert not torch.equal(apply(loud).gradient, averaged_base(loud))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("scaling", ["confidence", "none"])
def test_equal_rewards_leave_the_averaged_base_bit_for_bit(pair: str, scaling: str) -> None:
    step = make_step(candidates=PAIRS[pair], pair=pair, scaling=scaling, rewards={"constant": ConstantReward()})
    found = apply(step)
    assert torch.equal(found.gradient, averaged_base(step))
    assert found.metrics["pair/ratio"] == found.metrics["pair/confidence"] == 0
    assert found.gaps == {"constant": 0.0}


def test_a_reward_without_slope_steers_nowhere_not_even_along_rounding_errors() -> None:
    class Rounding(ToyPrior):
        """As real networks do: the last bits depend on the size of the batch."""

        def predict_noise(self, z_t, t, embedding, cameras):
            return super().predict_noise(z_t, t, embedding, cameras) * (1 + 1e-12 * len(z_t))

    class Flat(QuadraticReward):
        def __call__(self, images, prompt):
            return super().__call__(images.detach(), prompt) + 0 * images.sum((-3, -2, -1))

    step = make_step(candidates=1, scaling="none", prior=Rounding(torch.float64), rewards={"flat": Flat()})
    found = apply(step)
    assert found.gaps["flat"] > 0
    assert torch.equal(found.gradient, averaged_base(step))


@pytest.mark.parametrize("pair", PAIRS)
def test_an_unknown_mean_gap_trusts_nothing_yet(pair: str) -> None:
    step = make_step(candidates=PAIRS[pair], pair=pair, warm=False)
    found = apply(step)
    assert torch.equal(found.gradient, averaged_base(step))
    assert found.gaps["quadratic"] > 0 and step.gap_scale.mean("quadratic", step.t) == 0  # the caller updates it


def test_best_of_two_is_the_average_plus_half_the_preference_score() -> None:
    """Method fact d, without rescale and with s_p = s: SDS on the winner = base + P / 2."""
    settings = {"rescale": 0.0, "guidance_scale": 6.0, "preference_scale": 6.0, "scaling": "none"}
    pair = apply(make_step(candidates=2, pair="random", preference_weight=0.5, **settings))
    winner = apply(make_step(candidates=2, method="best_of_n", **settings), "best_of_n")
    torch.testing.assert_close(pair.gradient, winner.gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_order_of_the_noises_does_not_matter(pair: str) -> None:
    step = make_step(candidates=PAIRS[pair], pair=pair)
    turned = replace(step, noise=step.noise.flip(0))
    torch.testing.assert_close(apply(turned).gradient, apply(step).gradient, rtol=1e-12, atol=1e-14)


def test_swapping_win_and_lose_flips_the_preference_term() -> None:
    class Opposite(QuadraticReward):
        def __call__(self, images, prompt):
            return -super().__call__(images, prompt)

    likes = make_step(candidates=2, pair="random")
    hates = make_step(candidates=2, pair="random", rewards={"quadratic": Opposite()})
    base = averaged_base(likes)
    term = apply(likes).gradient - base
    assert group_norm(term).min() > 0
    torch.testing.assert_close(apply(hates).gradient - base, -term, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("method", "pair"), EVERYTHING)
def test_permuting_groups_permutes_gradients(method: str, pair: str) -> None:
    count = choose.count_candidates(make_preset(method=method, pair=pair, candidates=4))
    step = make_step(candidates=count, groups=3, method=method, pair=pair)
    order = torch.tensor([2, 0, 1])
    moved = replace(
        step, images=step.images[order], z0=step.z0[order], noise=step.noise[:, order], cameras=step.cameras[order],
        pull_back=lambda gradient: step.pull_back(gradient[order.argsort()])[order],
    )  # fmt: skip
    torch.testing.assert_close(
        apply(moved, method).gradient, apply(step, method).gradient[order], rtol=1e-9, atol=1e-12
    )


class Label:
    """Prefers the first or the second candidate, whatever it shows."""

    name, scale, differentiable = "label", 1.0, False

    def __init__(self, first: bool) -> None:
        self.first = first

    def __call__(self, images, prompt):
        half = len(images) // 2
        return (
            torch.arange(2)
            .eq(0 if self.first else 1)
            .double()
            .repeat_interleave(half)[:, None]
            .expand(images.shape[:2])
        )


@pytest.mark.parametrize("t", [50, 400, 900])
def test_the_random_pairs_term_is_the_preference_score(t: int) -> None:
    """Method fact a, from the residuals: -(sigma / alpha) P = x0_w - x0_l, P = d_w - d_l, d = e~ - noise; no clamp."""
    step = make_step(candidates=3, pair="random", scaling="none", preference_weight=0.8, t=t)
    with torch.no_grad():
        found = denoising.predict_candidates(step)
        ratings = base_term.rate_candidates(step, found)["quadratic"].mean(2)
    alpha, sigma = step.alpha_sigma
    guided = reference.guide(found.noise_pred_n.numpy(), found.noise_pred_c.numpy(), 7.5)
    residuals = guided - step.noise.numpy()
    win, lose = ratings.argmax(0), ratings.argmin(0)
    score_of_pair = np.stack([residuals[win[b], b] - residuals[lose[b], b] for b in range(2)])
    term = apply(step).gradient - averaged_base(step)
    np.testing.assert_allclose(term, 0.8 * sigma / alpha / 8 * score_of_pair, rtol=1e-8, atol=1e-11)


def test_uninformative_labels_add_no_drift() -> None:
    """Method fact c and experiment E1: over both labels the random pair cancels."""
    steps = [
        make_step(candidates=2, pair="random", scaling="none", rewards={"label": Label(first)})
        for first in (True, False)
    ]
    terms = [apply(step).gradient - averaged_base(step) for step in steps]
    assert group_norm(terms[0]).min() > 0
    torch.testing.assert_close(terms[0] + terms[1], torch.zeros_like(steps[0].z0), rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------------- ranking


def test_views_are_ranked_alone_when_asked() -> None:
    step = make_step(candidates=3, pair="random")
    with torch.no_grad():
        ratings = base_term.rate_candidates(step, denoising.predict_candidates(step))
    ranking, best = step.rank_candidates(ratings, by="view", units=step.units), ratings["quadratic"].argmax(0)
    assert best.unique().numel() > 1 and torch.equal(ranking.win, best)
    assert torch.equal(ranking.lose, ratings["quadratic"].argmin(0))


def test_best_and_worst_of_many_make_the_pair() -> None:
    step = make_step(candidates=5, pair="random")
    with torch.no_grad():
        found = denoising.predict_candidates(step)
        ratings = base_term.rate_candidates(step, found)["quadratic"].mean(2)
    pair = apply(step).pair
    assert pair is not None
    for b in range(2):
        assert torch.equal(pair.win.noise[b], step.noise[ratings[:, b].argmax(), b])
        assert torch.equal(pair.lose.noise[b], step.noise[ratings[:, b].argmin(), b])
    torch.testing.assert_close(pair.gap[:, 0], (ratings.amax(0) - ratings.amin(0)) / 0.05)


def test_a_mixture_measures_each_reward_by_its_own_running_mean() -> None:
    """Multiplying one reward by a thousand, and with it its running mean, changes nothing."""

    class Loud(QuadraticReward):
        def __call__(self, images, prompt):
            return 1000 * super().__call__(images, prompt)

    gradients = []
    for kind, factor in ((QuadraticReward, 1), (Loud, 1000)):
        rewards = {"red": QuadraticReward(), "blue": kind("blue", colour=(0.1, 0.1, 0.9))}
        for pair in ("steered", "random"):
            step = make_step(candidates=PAIRS[pair], pair=pair, rewards=rewards, warm=False)
            step.gap_scale.update({"red": 0.05, "blue": 0.02 * factor}, step.t)
            gradients.append(apply(step).gradient)
    torch.testing.assert_close(gradients[:2], gradients[2:], rtol=1e-9, atol=1e-12)


def test_a_reward_without_weight_is_not_asked() -> None:
    class Refusing(QuadraticReward):
        def __call__(self, images, prompt):
            raise AssertionError("asked")

    rewards = {"quadratic": QuadraticReward(), "mute": Refusing()}
    for pair, count in PAIRS.items():
        step = make_step(candidates=count, pair=pair, rewards=rewards)
        muted = replace(step, preset=step.preset.with_values({"rewards": {"quadratic": 1.0, "mute": 0.0}}))
        assert apply(muted).metrics["pair/ratio"] > 0
        with pytest.raises(AssertionError, match="asked"):
            apply(step)


def test_a_black_box_ranks() -> None:
    step = make_step(candidates=4, pair="random", rewards={"black box": BlackBox()})
    found = apply(step)
    assert found.metrics["pair/ratio"] > 0 and found.gaps["black box"] > 0


def test_a_black_box_ranks_what_another_reward_steers() -> None:
    class Ranking(BlackBox):
        def __call__(self, images, prompt):
            assert not images.requires_grad, "asked for a gradient"
            return super().__call__(images, prompt)

    step = make_step(candidates=1, rewards={"quadratic": QuadraticReward(), "black box": Ranking()})
    found = apply(step)
    assert set(found.gaps) == {"quadratic", "black box"} and found.metrics["pair/ratio"] > 0


def test_how_often_half_of_the_views_choose_the_winner_of_all() -> None:
    """Two candidates for each of three groups; the first wins by its means over views 0 to 3 of 1.0, 1.0 and .1."""
    step = make_step(candidates=2, groups=3, pair="random")
    first = torch.tensor([[2.0, 0.0, 2.0, 0.0], [-1.0, 3.0, -1.0, 3.0], [0.1, 0.0, 0.3, 0.0]], dtype=torch.float64)
    ratings = {"quadratic": torch.stack([first, torch.zeros_like(first)])}
    ranking = step.rank_candidates(ratings, by="group", units=step.units)
    assert ranking.half_agrees == pytest.approx(2 / 3)  # views 0 and 2 prefer the second candidate of the second group
    assert ranking.win.eq(0).all()
    assert step.rank_candidates(ratings, by="view", units=step.units).half_agrees is None
    alone = {"quadratic": ratings["quadratic"][..., :1]}
    assert step.rank_candidates(alone, by="group", units=step.units).half_agrees is None


@pytest.mark.parametrize("pair", PAIRS)
def test_a_step_tells_it(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, plain, seen = make_step(candidates=PAIRS[pair], pair=pair), StepContext.rank_candidates, []

    def rank(*given, **keywords):
        seen.append(replace(plain(*given, **keywords), half_agrees=0.625))
        return seen[-1]

    assert apply(step).metrics["pair/half_agrees"] in (0.0, 0.5, 1.0)  # of two groups
    monkeypatch.setattr(StepContext, "rank_candidates", rank)
    assert apply(step).metrics["pair/half_agrees"] == 0.625 and len(seen) == 1
    if pair == "random":
        assert apply(step, "best_of_n").metrics["pair/half_agrees"] == 0.625


# ------------------------------------------------------------------------------------------------------- steered pair


def test_an_estimated_steer_points_along_the_smooth_part_of_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward's slope is constant over the image, so it lies wholly in the space that is searched."""
    monkeypatch.setattr(gradient_estimate, "PERTURBATIONS", 64)
    step = make_step(candidates=1, steer_by="scores", groups=3)
    with torch.no_grad():
        x0_pred = 0.1 * step.z0
        estimate = estimate_gradient(step, x0_pred)
    exact = step.reward_gradient(x0_pred, step.decode)
    cosine = (estimate * exact).sum((1, 2, 3, 4)) / (group_norm(estimate) * group_norm(exact)).flatten()
    assert (cosine > 0.55).all()  # 64 pairs in 12 dimensions a view, which are correlated fields


def test_a_black_box_is_steered_by_its_scores() -> None:
    class Graded(BlackBox):
        def __call__(self, images, prompt):
            assert not images.requires_grad, "asked for a gradient"
            return QuadraticReward()(images, prompt)

    step = make_step(candidates=1, steer_by="scores", scaling="none", rewards={"black box": Graded()}, t=200)
    found = apply(step)
    assert found.metrics["pair/ratio"] == pytest.approx(1) and found.gaps["black box"] > 0


def test_the_steered_term_has_the_stated_length_and_the_members_differ_by_the_radius() -> None:
    step = make_step(candidates=1, preference_weight=0.7, scaling="none", steer_radius=0.02)
    base, found = averaged_base(step), apply(step)
    torch.testing.assert_close(group_norm(found.gradient - base), 0.7 * group_norm(base), rtol=1e-10, atol=0)
    pair = found.pair
    assert pair is not None
    length = 0.02 * math.sqrt(4 * 3 * 4 * 4)
    torch.testing.assert_close(
        group_norm(pair.win.noise - pair.lose.noise), torch.full((2, 1, 1, 1, 1), length).double()
    )
    sigma = step.alpha_sigma[1]
    torch.testing.assert_close(
        group_norm(pair.win.z_t - pair.lose.z_t), torch.full((2, 1, 1, 1, 1), sigma * length).double()
    )
    assert found.metrics["pair/ratio"] == pytest.approx(0.7)


class Linear(QuadraticReward):
    """Rises along one picture."""

    slope = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def __call__(self, images, prompt):
        return (images * self.slope).sum((-3, -2, -1))


class GaussianPrior(ToyPrior):
    """Data ~ N(mean, C) per image, and the exact linear denoiser; the negative has another mean and a wider C.

    E[noise | z_t] = sigma (alpha^2 C + sigma^2)^-1 (z_t - alpha mean).
    """

    def __init__(self) -> None:
        super().__init__(torch.float64)
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(48, 48, generator=generator, dtype=torch.float64) / 7
        self.covariances = [root @ root.T, torch.eye(48, dtype=torch.float64)]
        self.mean_scores = torch.randn(2, 48, generator=generator, dtype=torch.float64) / 4

    def predict_noise(self, z_t, t, embedding, cameras):
        alpha, sigma = self.alpha_sigma(t)
        rows = []
        for z, text in zip(z_t, embedding, strict=True):
            negative = int(not torch.equal(text, self.embed_prompt("red cube")))
            inverse = torch.linalg.inv(alpha**2 * self.covariances[negative] + sigma**2 * torch.eye(48).double())
            rows.append(((z.flatten(1) - alpha * self.mean_scores[negative]) @ inverse * sigma).view_as(z))
        return torch.stack(rows)


def test_the_steered_member_wins_under_a_gaussian_prior_and_moves_along_the_denoised_gradient() -> None:
    """P_x is J g without sampling noise, J the conditional denoiser's Jacobian, and J is positive: the nudge wins."""
    for t in (200, 500, 800):
        prior = GaussianPrior()
        step = make_step(candidates=1, groups=3, t=t, prior=prior, rewards={"linear": Linear()}, scaling="none")
        step = replace(step, z0=0.1 * step.z0)  # decoded predictions inside [0, 1], where ranking is linear
        found = apply(step)
        assert found.metrics["pair/win_first"] == 1
        alpha, sigma = step.alpha_sigma
        eye = torch.eye(48).double()
        jacobian = (eye - sigma**2 * torch.linalg.inv(alpha**2 * prior.covariances[0] + sigma**2 * eye)) / alpha
        z0 = torch.zeros(1, 1, 3, 4, 4, dtype=torch.float64).requires_grad_()
        (g,) = torch.autograd.grad(prior.decode(z0).mul(Linear.slope).sum(), z0)
        expected = (jacobian @ g.flatten()).view(3, 4, 4)
        term = averaged_base(step) - found.gradient
        for moved in term.flatten(0, 1):
            assert torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 1 - 1e-9


@pytest.mark.parametrize("guidance_scale", [4.0, 50.0])
@pytest.mark.parametrize("t", [200, 500, 800])
def test_with_a_beta_the_target_moves_as_the_tilted_priors_mean(t: int, guidance_scale: float) -> None:
    """p exp(beta R) under a Gaussian prior and a linear reward: E[x0 | z_t] moves by beta Cov(x0 | z_t) grad R.

    Whatever the guidance: nudge and bound belong to the conditional posterior.
    """
    prior, beta, reward = GaussianPrior(), 0.01, Linear("linear", scale=0.25)
    settings = {"scaling": "none", "preference_beta": beta, "guidance_scale": guidance_scale}
    step = make_step(candidates=1, t=t, prior=prior, rewards={"linear": reward}, **settings)
    step = replace(step, z0=0.1 * step.z0)
    alpha, sigma = step.alpha_sigma
    covariance = torch.linalg.inv(torch.linalg.inv(prior.covariances[0]) + alpha**2 / sigma**2 * torch.eye(48).double())
    z0 = torch.zeros(1, 1, 3, 4, 4, dtype=torch.float64).requires_grad_()
    (g,) = torch.autograd.grad(prior.decode(z0).mul(reward.slope).sum(), z0)
    expected = (beta / reward.scale * covariance @ g.flatten()).view(3, 4, 4)
    moved = step.rows * (averaged_base(step) - apply(step).gradient)
    torch.testing.assert_close(moved, expected.expand_as(moved), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("t", [200, 500, 800])
def test_strong_guidance_asks_the_reward_near_the_posterior(t: int) -> None:
    """Guided by 50 it is no picture; the asking point has the deviation of E[x0 | z_t, c], and lies nearer to it."""

    def ask(guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        step = make_step(candidates=1, groups=3, t=t, prior=GaussianPrior(), guidance_scale=guidance_scale)
        found = predict_candidates(step)
        asked, contrast = steering_prediction(step, found)
        posterior = step.clean(found.z_t, found.noise_pred_c)
        return asked, posterior, step.clean(found.z_t, found.guided_noise_pred(guidance_scale)), float(contrast)

    asked, posterior, guided, contrast = ask(50.0)
    axes = (-4, -3, -2, -1)
    torch.testing.assert_close(asked.std(axes), posterior.std(axes))
    assert contrast == pytest.approx(1)
    assert (asked - posterior).norm() < 0.2 * (guided - posterior).norm()
    asked, _, guided, contrast = ask(4.0)
    assert torch.equal(asked, guided) and contrast > 0


def test_a_beta_bounds_the_term_and_never_lengthens_it() -> None:
    settings = {"candidates": 1, "scaling": "none", "preference_weight": 0.7}
    free, wide, tight = (apply(make_step(preference_beta=beta, **settings)) for beta in (0.0, 1000.0, 1e-3))
    torch.testing.assert_close(wide.gradient, free.gradient)
    assert free.metrics["pair/ratio"] == pytest.approx(0.7) and 0 < tight.metrics["pair/ratio"] < 0.7
    loose = apply(make_step(preference_beta=1e-3, steer_by="scores", **settings))  # a direction has no length to go by
    assert loose.metrics["pair/ratio"] == pytest.approx(0.7)


def test_a_lost_pair_is_swapped() -> None:
    """Whatever the prior does to the nudge, the term climbs the reward of the predictions."""

    class Contrary(GaussianPrior):
        def predict_noise(self, z_t, t, embedding, cameras):
            return 2 * z_t / self.alpha_sigma(t)[1] - super().predict_noise(z_t, t, embedding, cameras)

    step = make_step(candidates=1, prior=Contrary(), scaling="none", t=300, steer_radius=0.005)
    step = replace(step, z0=0.1 * step.z0, noise=0.1 * step.noise)
    pair, found = apply(step).pair, apply(step)
    assert found.metrics["pair/win_first"] == 0 and pair is not None
    torch.testing.assert_close(pair.win.noise, step.noise[0])  # the shared member


# ----------------------------------------------------------------------------------------------------- cost, gradients


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({"pair": "steered"}, [8, 4]), ({"pair": "steered", "preference_weight": 0.0}, [8]),
        ({"pair": "random"}, [16]), ({"method": "sds"}, [8]), ({"method": "reward_gradient"}, [8]),
    ],
)  # fmt: skip
def test_network_rows_of_a_step(settings: dict, images: list[int]) -> None:
    prior = ToyPrior(torch.float64)
    count = choose.count_candidates(make_preset(**settings))
    step = make_step(candidates=count, groups=1, prior=prior, **settings)
    apply(step, step.preset.method)
    assert prior.calls == images


@pytest.mark.parametrize(("method", "pair"), EVERYTHING)
def test_no_gradient_path_leaves_a_method(method: str, pair: str) -> None:
    """What comes back is a constant: the scene is reached through the encoder alone, parameters never."""
    prior = ToyPrior(torch.float64)
    count = choose.count_candidates(make_preset(method=method, pair=pair, candidates=4))
    step = make_step(candidates=count, method=method, pair=pair, prior=prior)
    found = apply(step, method)
    assert not found.gradient.requires_grad and (found.pixels is None) == (method != "reward_gradient")
    assert all(weight.grad is None for weight in prior.weights.values())
    assert not any(value.requires_grad for value in vars(found.shown).values())


def test_reward_gradient_matches_its_base_in_pixels() -> None:
    step = make_step(candidates=1, method="reward_gradient", reward_gradient_weight=0.7)
    found = apply(step, "reward_gradient")
    assert torch.equal(found.gradient, apply(step, "sds").gradient)
    pixels = found.pixels
    assert pixels is not None
    torch.testing.assert_close(group_norm(pixels), 0.7 * group_norm(step.pull_back(found.gradient)), rtol=1e-10, atol=0)
    closer = QuadraticReward()(step.images - 1e-3 * pixels, "") - QuadraticReward()(step.images, "")
    assert (closer > 0).all()


@pytest.mark.parametrize("method", ["psd", "reward_gradient"])
def test_the_gate_holds_back_the_pair_and_the_pixel_gradient_alike(method: str) -> None:
    settings = {"method": method, "pair": "steered", "scaling": "none", "candidates": 1}
    whole = make_step(**settings)
    here = whole.t / whole.prior.levels
    shut, ajar, wide, free = (
        apply(make_step(**settings, preference_t_max=limit), method)
        for limit in (here - 0.01, here + 0.05, here + 0.11, 1)
    )
    assert torch.equal(shut.gradient, apply(whole, "sds").gradient) and shut.pixels is None
    half, same, full = (
        found.gradient - shut.gradient if found.pixels is None else found.pixels for found in (ajar, wide, free)
    )
    torch.testing.assert_close(half, 0.5 * full)
    torch.testing.assert_close(same, full)


def test_siblings_follow_their_definitions() -> None:
    step = make_step(candidates=5, rescale=0.0, guidance_scale=6.0)
    with torch.no_grad():
        found = denoising.predict_candidates(step)
        ratings = base_term.rate_candidates(step, found)["quadratic"]
        gradients = base_term.base_gradient(step, found)
    weight = step.alpha_sigma[1] / step.alpha_sigma[0] / 8
    # csd: guidance only
    guidance = (found.noise_pred_c - found.noise_pred_n).mean(0)
    torch.testing.assert_close(apply(step, "csd").gradient, weight * 6 * guidance)
    # rewardsds: 0.9 mean(best two) - 0.1 mean(worst two), per group
    order = ratings.mean(2).argsort(0, descending=True)
    for b in range(2):
        best, worst = (gradients[order[ends, b], b].mean(0) for ends in ([0, 1], [3, 4]))
        torch.testing.assert_close(apply(step, "rewardsds").gradient[b], 0.9 * best - 0.1 * worst)
    late = apply(replace(step, progress=0.7), "rewardsds")
    torch.testing.assert_close(late.gradient, gradients.mean(0))


@pytest.mark.parametrize(("scale", "pushed"), [(1e-4, True), (1e4, False)])
def test_dreamdpo_pushes_off_the_loser_only_where_the_gap_is_wide(scale: float, pushed: bool) -> None:
    settings: dict[str, Any] = {"rescale": 0.0, "guidance_scale": 6.0}
    step = make_step(candidates=2, rewards={"q": QuadraticReward(scale=scale)}, **settings)
    with torch.no_grad():
        found = denoising.predict_candidates(step)
        best = base_term.rate_candidates(step, found)["q"].argmax(0)
    expected = pick_candidate(formulas.apply_guidance(found.noise_pred_n, found.noise_pred_c, 6.0) - found.noise, best)
    if pushed:
        expected = expected - pick_candidate(found.noise_pred_c - found.noise, 1 - best)
    weight = step.alpha_sigma[1] / step.alpha_sigma[0] / 8
    torch.testing.assert_close(apply(step, "dreamdpo").gradient, weight * expected)
    assert best.unique().numel() == 2  # views differ in their winner


class LinearPrior(ToyPrior):
    """x0 = M z_t, whatever the condition; M mixes channels and views, and is small, so that pictures stay grey."""

    def jacobian(self, z_t: torch.Tensor) -> torch.Tensor:
        own, others = (self.weights[name].detach() for name in ("own", "others"))
        mixed = torch.einsum("oc,bvchw->bvohw", own, z_t) + torch.einsum("oc,bchw->bohw", others, z_t.mean(1))[:, None]
        return 0.02 * mixed

    def predict_noise(self, z_t, t, embedding, cameras):
        alpha, sigma = self.alpha_sigma(t)
        return (z_t - alpha * self.jacobian(z_t)) / sigma


class LinearReward(QuadraticReward):
    """<w, image>, w of all pixels."""

    def __call__(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        weights = torch.randn(images.shape[-3:], generator=torch.Generator().manual_seed(5), dtype=images.dtype)
        return (images * weights).sum((-3, -2, -1))


def test_the_pairs_climb_what_the_denoiser_finds_plausible() -> None:
    """Fact b through the methods: E[x0_w - x0_l] of the random pair is (2 / sqrt(pi)) C g / |C^(1/2) g|, C = sigma^2 M
    M^T; the steered pair is M g itself, from one noise."""
    count, prior = 3000, LinearPrior(torch.float64)
    settings = {"scaling": "none", "preference_weight": 1.0, "rescale": 0.0, "negative": False}
    shared = {"prior": prior, "rewards": {"linear": LinearReward()}, "t": 600, **settings}
    step = make_step(candidates=2, groups=1, pair="random", **shared)
    noise = torch.randn(2, count, *step.z0.shape[1:], generator=step.generator, dtype=torch.float64)
    many = torch.zeros(count, dtype=torch.long)
    rows = {name: getattr(step, name)[many] for name in ("z0", "images", "cameras")}
    step = replace(step, noise=noise, **rows)
    base_only = replace(step, preset=step.preset.with_values({"preference_weight": 0.0}))
    moved = (apply(base_only).gradient - apply(step).gradient) * step.rows  # x0_w - x0_l of each group
    sigma, shape = step.alpha_sigma[1], step.z0[:1].shape
    matrix = torch.stack([prior.jacobian(e.view(shape)).flatten() for e in torch.eye(step.z0[0].numel()).double()]).T
    leaf = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(LinearReward()(prior.decode(leaf), "").mean(), leaf)
    climbed = sigma**2 * matrix @ matrix.T @ slope.flatten()
    expected = 2 / math.sqrt(math.pi) * climbed / (slope.flatten() @ climbed).sqrt()
    found = moved.flatten(1)
    error = found.std(0) / math.sqrt(count)
    assert ((found.mean(0) - expected).abs() < 5 * error).all() and (expected.abs() > 10 * error).any()
    assert float(found.mean(0) @ slope.flatten()) == pytest.approx(float(expected @ slope.flatten()), rel=0.03)

    step = make_step(candidates=1, groups=2, pair="steered", kappa=1.0, **shared)
    base_only = replace(step, preset=step.preset.with_values({"preference_weight": 0.0}))
    moved = (apply(base_only).gradient - apply(step).gradient).flatten(1)
    torch.testing.assert_close(
        moved / moved.norm(dim=1, keepdim=True),
        ((matrix @ slope.flatten()) / (matrix @ slope.flatten()).norm())[None].expand(2, -1),
    )


def test_siblings_clamp_predictions_as_the_base_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a prediction at high noise, which is far from any picture, would outweigh all others of csd and dreamdpo."""
    step = make_step(candidates=2, rewards={"q": QuadraticReward(scale=1e-4)}, rescale=0.0, t=90)
    monkeypatch.setattr(step.prior, "latent_clamp", bound := 0.05)
    with torch.no_grad():
        found = denoising.predict_candidates(step)
        best = base_term.rate_candidates(step, found)["q"].argmax(0)
    alpha, sigma = step.alpha_sigma

    def x0(noise_pred: torch.Tensor) -> torch.Tensor:
        return ((found.z_t - sigma * noise_pred) / alpha).clamp(-bound, bound)

    guided = x0(formulas.apply_guidance(found.noise_pred_n, found.noise_pred_c, step.preset.guidance_scale))
    attract, repel = step.z0 - pick_candidate(guided, best), step.z0 - pick_candidate(x0(found.noise_pred_c), 1 - best)
    torch.testing.assert_close(apply(step, "dreamdpo").gradient, (attract - repel) / 8)
    contrast = (x0(found.noise_pred_n) - x0(found.noise_pred_c)).mean(0)
    assert (x0(found.noise_pred_c).abs() == bound).any()
    torch.testing.assert_close(apply(step, "csd").gradient, step.preset.guidance_scale * contrast / 8)


# -------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "pair=random"), ({"method": "reward_gradient"}, "pair=random"), ({}, "steer_by=scores"),
    ],
)  # fmt: skip
def test_rewards_that_cannot_do_it_are_refused(settings: dict, words: str) -> None:
    models = make_models(rewards={"black box": BlackBox()})
    with pytest.raises(PresetError, match=words):
        choose.check_models(make_preset(**{"rewards": {"black box": 1.0}, **settings}), models)


def test_the_rows_are_the_presets_methods() -> None:
    """The preset names methods for itself: it knows nothing of what they do."""
    names = set(choose.METHODS) - set(get_args(PairKind)) | {"psd"}
    assert names == set(get_args(MethodName)) and set(get_args(PairKind)) <= set(choose.METHODS)
    asked = make_preset(candidates=5)
    for name, count in {"psd": 1, "sds": 1, "csd": 1, "reward_gradient": 1, "dreamdpo": 2, "rewardsds": 5}.items():
        assert choose.count_candidates(asked.with_values({"method": name})) == count
    assert choose.count_candidates(asked.with_values({"pair": "random"})) == 5


def test_rewards_that_can_do_it_are_accepted() -> None:
    black = make_models(rewards={"black box": BlackBox()})
    for settings in ({"pair": "random"}, {"steer_by": "scores"}, {"method": "best_of_n"}, {"method": "sds"}):
        choose.check_models(make_preset(rewards={"black box": 1.0}, **settings), black)
    mixed = make_models(rewards={"black box": BlackBox(), "quadratic": QuadraticReward()})
    choose.check_models(make_preset(rewards={"black box": 1.0, "quadratic": 1.0}), mixed)
