"""What each method does: laws, references in float64, and where gradients may not go."""

import math
from dataclasses import replace
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import pytest
import reference
import torch
from toy import BlackBox, ConstantReward, QuadraticReward, ToyPrior, make_models, make_preset, make_step

from psd import draws, methods, score
from psd.preset import PresetError
from psd.step import Step, norm, pick
from psd.zeroth import estimated_gradient

PAIRS = {"S": 1, "A": 2, "B": 2, "C": 2}  # reading -> noises
EVERYTHING = [
    *(("psd", reading) for reading in PAIRS),
    *((method, "A") for method in methods.METHODS if method != "psd"),
]


def apply(step: Step, method: str = "psd"):
    with torch.no_grad():
        return methods.METHODS[method](step)


def averaged_base(step: Step) -> torch.Tensor:
    with torch.no_grad():
        return methods.base(step, methods.denoise(step)).mean(0)


# ---------------------------------------------------------------------------------------------------------------- base


def test_base_matches_the_reference() -> None:
    step = make_step(candidates=3, reading="A", preference_weight=0.0, rescale=0.3)
    with torch.no_grad():
        found = methods.denoise(step)
    expected = reference.recon_gradient(
        step.z0.numpy(), list(found.noise.numpy()), list(found.noise_pred_c.numpy()), list(found.noise_pred_n.numpy()),
        alpha_bar=float(step.prior.alpha_bar[step.t]), scale=4.0, strength=0.3,
    )  # fmt: skip
    np.testing.assert_allclose(apply(step).gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [50, 400, 900])
def test_recon_and_sds_forms_differ_by_their_weight_only(t: int) -> None:
    """Without rescale and clamp and with s_p = s: recon is the SDS form at w(t) = sigma / alpha."""
    forms = {
        form: apply(make_step(
            candidates=2, reading="A", base_form=form, rescale=0.0, guidance_scale=6.0, preference_scale=6.0, t=t
        )).gradient
        for form in ("recon", "sds")
    }  # fmt: skip
    alpha, sigma = score.alpha_sigma(ToyPrior().alpha_bar, t)
    torch.testing.assert_close(forms["recon"], forms["sds"] / sigma**2 * (sigma / alpha), rtol=1e-9, atol=1e-12)


def test_predictions_are_clamped_where_the_prior_says_so() -> None:
    prior = ToyPrior(torch.float64)
    prior.latent_clamp = 1.0
    step = make_step(candidates=1, t=900, prior=prior, rescale=0.0, guidance_scale=7.5)
    target = step.z0 - step.rows * apply(step, "sds").gradient
    assert target.abs().max() == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------- preference, laws


@pytest.mark.parametrize("reading", PAIRS)
@pytest.mark.parametrize("base_form", ["recon", "sds"])
def test_no_preference_leaves_the_averaged_base_bit_for_bit(reading: str, base_form: str) -> None:
    step = make_step(candidates=PAIRS[reading], reading=reading, base_form=base_form, preference_weight=0.0)
    loud = make_step(candidates=PAIRS[reading], reading=reading, base_form=base_form, preference_weight=1.0)
    assert torch.equal(apply(step).gradient, averaged_base(step))
    assert not torch.equal(apply(loud).gradient, averaged_base(loud))


@pytest.mark.parametrize("reading", PAIRS)
@pytest.mark.parametrize("scaling", ["confidence", "linear", "hard", "dpo"])
def test_equal_rewards_leave_the_averaged_base_bit_for_bit(reading: str, scaling: str) -> None:
    step = make_step(
        candidates=PAIRS[reading], reading=reading, scaling=scaling, rewards={"constant": ConstantReward()}
    )
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

    step = make_step(candidates=1, scaling="hard", prior=Rounding(torch.float64), rewards={"flat": Flat()})
    found = apply(step)
    assert found.gaps["flat"] > 0
    assert torch.equal(found.gradient, averaged_base(step))


@pytest.mark.parametrize("reading", PAIRS)
def test_an_unknown_mean_gap_trusts_nothing_yet(reading: str) -> None:
    step = make_step(candidates=PAIRS[reading], reading=reading, warm=False)
    found = apply(step)
    if reading != "C":  # the implicit reward needs no scale
        assert torch.equal(found.gradient, averaged_base(step))
    assert found.gaps["quadratic"] > 0 and step.gap_scale.mean("quadratic", step.t) == 0  # the caller updates it


def test_best_of_two_is_the_average_plus_half_the_preference_score() -> None:
    """Method fact d, in the SDS form with s_p = s: SDS on the winner = base + P / 2."""
    settings = {"base_form": "sds", "guidance_scale": 6.0, "preference_scale": 6.0, "scaling": "hard"}
    pair = apply(make_step(candidates=2, reading="A", preference_weight=0.5, **settings))
    winner = apply(make_step(candidates=2, method="best_of_n", **settings), "best_of_n")
    torch.testing.assert_close(pair.gradient, winner.gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reading", PAIRS)
def test_the_order_of_the_noises_does_not_matter(reading: str) -> None:
    step = make_step(candidates=PAIRS[reading], reading=reading)
    turned = replace(step, noise=step.noise.flip(0))
    torch.testing.assert_close(apply(turned).gradient, apply(step).gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reading", ["A", "C"])
def test_swapping_win_and_lose_flips_the_preference_term(reading: str) -> None:
    class Opposite(QuadraticReward):
        def __call__(self, images, prompt):
            return -super().__call__(images, prompt)

    likes = make_step(candidates=2, reading=reading)
    hates = make_step(candidates=2, reading=reading, rewards={"quadratic": Opposite()})
    if reading == "C":  # a neutral margin, or the two would be weighted differently
        likes, hates = (replace(step, negative=step.negative_start) for step in (likes, hates))
    base = averaged_base(likes)
    term = apply(likes).gradient - base
    assert norm(term).min() > 0
    torch.testing.assert_close(apply(hates).gradient - base, -term, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("method", "reading"), EVERYTHING)
def test_permuting_groups_permutes_gradients(method: str, reading: str) -> None:
    count = methods.candidates(make_preset(method=method, reading=reading, candidates=4))
    step = make_step(candidates=count, groups=3, method=method, reading=reading)
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


def test_uninformative_labels_add_no_drift_but_for_reading_b() -> None:
    """Method fact c and experiment E1: over both labels A cancels; B keeps (s_p - 1)(e_c - e_n), a guidance term."""
    drift = {}
    for reading in ("A", "B"):
        steps = [
            make_step(candidates=2, reading=reading, scaling="hard", rewards={"label": Label(first)})
            for first in (True, False)
        ]
        drift[reading] = sum(apply(step).gradient - averaged_base(step) for step in steps) / 2
    with torch.no_grad():
        found = methods.denoise(steps[0])
    guidance = steps[0].noise_weight * 6.5 * (found.noise_pred_c - found.noise_pred_n).mean(0)
    torch.testing.assert_close(drift["A"], torch.zeros_like(guidance), rtol=0, atol=1e-13)
    torch.testing.assert_close(drift["B"], guidance, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- ranking


def test_best_and_worst_of_many_make_the_pair() -> None:
    step = make_step(candidates=5, reading="A")
    with torch.no_grad():
        found = methods.denoise(step)
        ratings = methods.rate(step, found)["quadratic"].mean(2)
    pair = apply(step).pair
    assert pair is not None
    for b in range(2):
        assert torch.equal(pair.win.noise[b], step.noise[ratings[:, b].argmax(), b])
        assert torch.equal(pair.lose.noise[b], step.noise[ratings[:, b].argmin(), b])
    torch.testing.assert_close(pair.gap[:, 0], (ratings.amax(0) - ratings.amin(0)) / 0.05)


def test_views_are_ranked_alone_when_asked() -> None:
    step = make_step(candidates=3, reading="A", winner_by="view")
    with torch.no_grad():
        best = methods.rate(step, methods.denoise(step))["quadratic"].argmax(0)
    pair = apply(step).pair
    assert pair is not None and best.unique().numel() > 1
    assert torch.equal(pair.win.noise, pick(step.noise, best))


def test_a_mixture_measures_each_reward_by_its_own_running_mean() -> None:
    """Multiplying one reward by a thousand, and with it its running mean, changes nothing."""

    class Loud(QuadraticReward):
        def __call__(self, images, prompt):
            return 1000 * super().__call__(images, prompt)

    gradients = []
    for kind, factor in ((QuadraticReward, 1), (Loud, 1000)):
        rewards = {"red": QuadraticReward(), "blue": kind("blue", colour=(0.1, 0.1, 0.9))}
        for reading in ("S", "A"):
            step = make_step(candidates=PAIRS[reading], reading=reading, rewards=rewards, warm=False)
            step.gap_scale.update({"red": 0.05, "blue": 0.02 * factor}, step.t)
            gradients.append(apply(step).gradient)
    torch.testing.assert_close(gradients[:2], gradients[2:], rtol=1e-9, atol=1e-12)


def test_a_reward_without_weight_is_not_asked() -> None:
    class Refusing(QuadraticReward):
        def __call__(self, images, prompt):
            raise AssertionError("asked")

    rewards = {"quadratic": QuadraticReward(), "mute": Refusing()}
    for reading, count in PAIRS.items():
        step = make_step(candidates=count, reading=reading, rewards=rewards)
        muted = replace(step, preset=step.preset.changed({"rewards": {"quadratic": 1.0, "mute": 0.0}}))
        assert apply(muted).metrics["pair/ratio"] > 0
        with pytest.raises(AssertionError, match="asked"):
            apply(step)


def test_a_black_box_ranks() -> None:
    step = make_step(candidates=4, reading="A", rewards={"black box": BlackBox()})
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


@pytest.mark.parametrize("base_form", ["recon", "sds"])
def test_advantages_of_two_are_the_pair_and_of_many_the_weighted_residuals(base_form: str) -> None:
    settings: dict[str, Any] = {"reading": "A", "base_form": base_form, "scaling": "hard"}
    pair = apply(make_step(candidates=2, **settings)).gradient
    two = apply(make_step(candidates=2, weighting="advantages", **settings)).gradient
    torch.testing.assert_close(two, pair, rtol=1e-10, atol=1e-13)

    step = make_step(candidates=5, weighting="advantages", **settings)
    with torch.no_grad():
        found = methods.denoise(step)
        ratings = methods.rate(step, found)["quadratic"].mean(2).numpy()
    alpha, sigma = step.alpha_sigma
    weight = (sigma / alpha if base_form == "recon" else sigma**2) / 8
    expected = np.zeros(step.z0.shape)
    for b in range(2):
        centred = ratings[:, b] - ratings[:, b].mean()
        for k in range(5):
            advantage = centred[k] / math.sqrt((centred**2).mean())
            guided = reference.guide(found.noise_pred_n[k, b].numpy(), found.noise_pred_c[k, b].numpy(), 7.5)
            expected[b] += weight * 2 / 5 * advantage * (guided - step.noise[k, b].numpy())
    term = apply(step).gradient - averaged_base(step)
    if base_form == "recon":  # sum of advantages is 0, so the common render drops out of the predictions
        np.testing.assert_allclose(term, expected, rtol=1e-8, atol=1e-11)
    else:
        np.testing.assert_allclose(term, expected, rtol=1e-9, atol=1e-12)


def test_advantages_with_random_labels_add_no_drift() -> None:
    """Every order of the candidates' labels once: the terms cancel."""

    class Ordered(Label):
        def __init__(self, order: tuple[int, ...]) -> None:
            self.order = order

        def __call__(self, images, prompt):
            count = len(images) // len(self.order)
            labels = torch.tensor(self.order, dtype=torch.float64).repeat_interleave(count)
            return labels[:, None].expand(images.shape[:2])

    steps = [
        make_step(candidates=3, reading="A", weighting="advantages", scaling="hard", rewards={"label": Ordered(order)})
        for order in permutations((0, 1, 5))
    ]
    drift = sum(apply(step).gradient - averaged_base(step) for step in steps)
    torch.testing.assert_close(drift, torch.zeros_like(steps[0].z0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("method", "reading"), [("psd", "S"), ("psd", "A"), ("best_of_n", "A")])
def test_certain_label_noise_inverts_the_preference(method: str, reading: str) -> None:
    class Opposite(QuadraticReward):
        def __call__(self, images, prompt):
            return -super().__call__(images, prompt)

    count = methods.candidates(make_preset(method=method, reading=reading))
    wrong = apply(make_step(candidates=count, reading=reading, scaling="hard", label_noise=1.0), method)
    rewards = {"quadratic": Opposite()} if reading == "A" else None  # S steers by the gradient, which stays
    hates = make_step(candidates=count, reading=reading, scaling="hard", rewards=rewards)
    if reading == "A":
        torch.testing.assert_close(wrong.gradient, apply(hates, method).gradient, rtol=1e-12, atol=1e-14)
    else:
        base = averaged_base(hates)
        torch.testing.assert_close(wrong.gradient - base, base - apply(hates).gradient, rtol=1e-9, atol=1e-13)


def test_how_often_half_of_the_views_choose_the_winner_of_all() -> None:
    """Two candidates for each of three groups; the first wins by its means over views 0 to 3 of 1.0, 1.0 and .1."""
    step = make_step(candidates=2, groups=3, reading="A", label_noise=1.0)  # which inverts labels, not this
    first = torch.tensor([[2.0, 0.0, 2.0, 0.0], [-1.0, 3.0, -1.0, 3.0], [0.1, 0.0, 0.3, 0.0]], dtype=torch.float64)
    ratings = {"quadratic": torch.stack([first, torch.zeros_like(first)])}
    ranking = step.rank(ratings, by="group", units=step.units)
    assert ranking.half_agrees == pytest.approx(2 / 3)  # views 0 and 2 prefer the second candidate of the second group
    assert ranking.win.eq(1).all()  # inverted
    assert step.rank(ratings, by="view", units=step.units).half_agrees is None
    alone = {"quadratic": ratings["quadratic"][..., :1]}
    assert step.rank(alone, by="group", units=step.units).half_agrees is None


@pytest.mark.parametrize("reading", ["A", "S"])
def test_a_step_tells_it(reading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, plain, seen = make_step(candidates=2 if reading == "A" else 1, reading=reading), Step.rank, []

    def rank(*given, **keywords):
        seen.append(replace(plain(*given, **keywords), half_agrees=0.625))
        return seen[-1]

    assert apply(step).metrics["pair/half_agrees"] in (0.0, 0.5, 1.0)  # of two groups
    monkeypatch.setattr(Step, "rank", rank)
    assert apply(step).metrics["pair/half_agrees"] == 0.625 and len(seen) == 1
    if reading == "A":
        assert apply(step, "best_of_n").metrics["pair/half_agrees"] == 0.625


def test_label_noise_of_a_half_inverts_about_half() -> None:
    step = make_step(candidates=2, groups=16, reading="A", label_noise=0.5)
    clean = replace(step, preset=step.preset.changed({"label_noise": 0.0}))
    with torch.no_grad():
        ratings = methods.rate(step, methods.denoise(step))
    right, noisy = clean.rank(ratings, by="group", units=step.units), []
    for _ in range(25):
        found = step.rank(ratings, by="group", units=step.units)
        noisy.append(found.win != right.win)
        assert torch.equal(found.gap, right.gap)
    inverted = torch.stack(noisy)
    assert 0.4 < inverted.float().mean() < 0.6
    assert torch.equal(inverted.any(2), inverted.all(2))  # one label a group
    views = step.rank(ratings, by="view", units=step.units).win != clean.rank(ratings, by="view", units=step.units).win
    assert not torch.equal(views.any(1), views.all(1))  # one label a view


def test_ranking_after_more_denoising_follows_the_schedule_down() -> None:
    """With a denoiser that knows the object, every step of DDIM predicts it: ranking then changes nothing."""

    class Knowing(ToyPrior):
        object = torch.full((3, 4, 4), 0.3, dtype=torch.float64)
        levels: ClassVar[list[int]] = []

        def predict_noise(self, z_t, t, embedding, cameras):
            self.levels.append(t)
            alpha, sigma = score.alpha_sigma(self.alpha_bar, t)
            return (z_t - alpha * self.object) / sigma

    prior = Knowing(torch.float64)
    step = make_step(candidates=2, reading="A", ranking_steps=4, t=800, prior=prior, rescale=0.0)
    with torch.no_grad():
        found = methods.denoise(step)
        seen = methods.rate(step, found)["quadratic"]
        once = methods.rate(replace(step, preset=step.preset.changed({"ranking_steps": 1})), found)["quadratic"]
    assert prior.levels == [800, 600, 400, 200]
    torch.testing.assert_close(seen, once, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("method", "reading"), [("psd", "A"), ("psd", "C"), ("best_of_n", "A")])
def test_a_shared_unconditional_prediction_is_one_picture_for_all_noises(method: str, reading: str) -> None:
    step = make_step(candidates=3, method=method, reading=reading, shared_unconditional=True)
    plain = replace(step, preset=step.preset.changed({"shared_unconditional": False}))
    with torch.no_grad():
        shared, own = methods.denoise(step), methods.denoise(plain)
    pictures = step.clean(shared.z_t, shared.noise_pred_n)
    torch.testing.assert_close(pictures, pictures[:1].expand_as(pictures), rtol=0, atol=1e-12)
    # not to the last bit: a batch of other rows may be summed in another order
    torch.testing.assert_close(shared.noise_pred_n[0], own.noise_pred_n[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared.noise_pred_c, own.noise_pred_c, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(apply(step, method).gradient, apply(plain, method).gradient, rtol=1e-6)


def test_sharing_with_nobody_changes_nothing() -> None:
    for reading in ("S", "C"):
        step = make_step(candidates=1, reading=reading, shared_unconditional=True)
        plain = replace(step, preset=step.preset.changed({"shared_unconditional": False}))
        torch.testing.assert_close(apply(step).gradient, apply(plain).gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reading", PAIRS)
def test_the_preferred_target_keeps_the_contrast_of_the_bases(reading: str) -> None:
    def contrast(gradient: torch.Tensor) -> torch.Tensor:
        return (step.z0 - step.rows * gradient).std((1, 2, 3, 4))

    settings = {"candidates": PAIRS[reading], "reading": reading, "preference_weight": 1.0}
    step = make_step(preference_rescale=1.0, **settings)
    plain, found = apply(make_step(**settings)).gradient, apply(step).gradient
    expected = contrast(averaged_base(step))
    torch.testing.assert_close(contrast(found), expected, rtol=1e-10, atol=0)
    assert ((contrast(plain) - expected).abs() > 1e-5 * expected).all()
    half = apply(make_step(preference_rescale=0.5, **settings)).gradient
    torch.testing.assert_close(half, (plain + found) / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reading", PAIRS)
def test_without_a_preference_there_is_no_contrast_to_take_back(reading: str) -> None:
    step = make_step(
        candidates=PAIRS[reading], reading=reading, preference_rescale=0.7, rewards={"constant": ConstantReward()}
    )
    assert torch.equal(apply(step).gradient, averaged_base(step))


@pytest.mark.parametrize("reading", PAIRS)
def test_the_term_may_stop_where_the_render_is_empty(reading: str) -> None:
    """A quarter of each view holds the object: there, and one latent around it, the whole term; else the base alone."""
    settings = {"candidates": PAIRS[reading], "reading": reading, "preference_weight": 1.0}
    opacity = torch.zeros_like(make_step(**settings).opacity)
    opacity[..., : opacity.shape[-2] // 2, : opacity.shape[-1] // 2] = 1
    free, kept = (replace(make_step(preference_inside=inside, **settings), opacity=opacity) for inside in (False, True))
    base, plain, found = averaged_base(free), apply(free).gradient, apply(kept).gradient
    rows, columns = (size // 2 + 1 for size in kept.z0.shape[-2:])
    inside = torch.zeros_like(kept.z0, dtype=torch.bool)
    inside[..., :rows, :columns] = True
    assert torch.equal(found[inside], plain[inside]) and torch.equal(found[~inside], base[~inside])
    assert (plain != base)[~inside].any()


def test_antithetic_noises_cancel_and_each_is_gaussian() -> None:
    shape, generator = torch.Size((1, 4, 3, 32, 32)), torch.Generator().manual_seed(0)
    noise = draws.noise(5, shape, generator, antithetic=True)
    assert len(noise) == 5 and torch.equal(noise[0], -noise[1]) and torch.equal(noise[2], -noise[3])
    assert not torch.equal(noise[4].abs(), noise[0].abs())
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    plain = draws.noise(5, shape, generator.manual_seed(0), antithetic=False)
    assert torch.equal(plain, torch.randn(5, *shape, generator=generator.manual_seed(0)))


# ------------------------------------------------------------------------------------------------------- reading S


def test_a_tilted_weight_scales_the_steered_term() -> None:
    settings = {"candidates": 1, "preference_weight": 0.7, "scaling": "hard"}
    for t in (200, 800):
        step = make_step(t=t, preference_tilt=0.5, **settings)
        base = averaged_base(step)
        expected = 0.7 * (1 + 0.5 * (2 * t / 1000 - 1)) * norm(base)
        torch.testing.assert_close(norm(apply(step).gradient - base), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("conditional", [True, False])
def test_both_members_are_steered_to_opposite_sides(conditional: bool) -> None:
    step = make_step(candidates=1, steer_both=True, steer_conditional=conditional, scaling="hard", steer_radius=0.02)
    found = apply(step)
    assert found.pair is not None
    torch.testing.assert_close((found.pair.win.noise + found.pair.lose.noise) / 2, step.noise[0])
    length = 2 * 0.02 * math.sqrt(4 * 3 * 4 * 4)
    torch.testing.assert_close(
        norm(found.pair.win.noise - found.pair.lose.noise).flatten(), torch.full((2,), length).double()
    )
    z_t = step.noisy(step.noise)[0]
    torch.testing.assert_close(found.shown.z_t, z_t)  # the base and the negative keep the shared rows


def test_steering_both_agrees_with_steering_one_where_the_denoiser_is_linear() -> None:
    step = make_step(candidates=1, prior=GaussianPrior(), scaling="hard", t=400)
    step = replace(step, z0=0.1 * step.z0)
    both = replace(step, preset=step.preset.changed({"steer_both": True}))
    torch.testing.assert_close(apply(both).gradient, apply(step).gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("by", ["scores", "ranks"])
def test_an_estimated_steer_points_along_the_smooth_part_of_the_gradient(by: str) -> None:
    """The reward's slope is constant over the image, so it lies wholly in the space that is searched."""
    step = make_step(candidates=1, steer_by=by, steer_perturbations=64, groups=3)
    with torch.no_grad():
        x0_pred = 0.1 * step.z0
        estimate = estimated_gradient(step, x0_pred)
    exact = step.reward_gradient(x0_pred, step.decode)
    cosine = (estimate * exact).sum((1, 2, 3, 4)) / (norm(estimate) * norm(exact)).flatten()
    assert (cosine > 0.55).all()  # 64 pairs in 12 dimensions a view, which are correlated fields


def test_steering_through_the_encoder_encodes_the_pictures_gradient() -> None:
    """The encoder is linear: E(x + d) - E(x) = E d up to its offset; the transposed decoder points elsewhere."""
    step = make_step(candidates=1, steer_through="encoder", steer_radius=0.02)
    x0_pred = 0.1 * step.z0
    with torch.no_grad():
        found = methods.steering(step, x0_pred)
        images = step.prior.decode(x0_pred)
    assert images.min() > 0 and images.max() < 1
    gradient = 0.02 * (images - torch.tensor((0.9, 0.2, 0.1)).double()[:, None, None]).neg()
    scale = images[0].numel() ** 0.5 / norm(images - torch.tensor((0.9, 0.2, 0.1)).double()[:, None, None])
    expected = step.prior.encode(gradient * scale) - step.prior.encode(torch.zeros_like(images))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # 0.9, 0.2 and 0.1 are float32 in the reward
    with torch.no_grad():
        transposed = methods.steering(replace(step, preset=step.preset.changed({"steer_through": "decoder"})), x0_pred)
    assert torch.cosine_similarity(transposed.flatten(), found.flatten(), dim=0) < 0.999


@pytest.mark.parametrize("at", ["render", "prediction"])
def test_the_nudge_follows_the_reward_of_the_render_where_asked(at: str) -> None:
    step = make_step(candidates=1, steer_at=at, scaling="hard")
    pair = apply(step).pair
    assert pair is not None
    nudge = pair.win.noise - pair.lose.noise
    of_render = step.reward_gradient(step.z0, step.decode)
    cosine = (nudge * of_render).sum((1, 2, 3, 4)).abs() / (norm(nudge) * norm(of_render)).flatten()
    assert torch.allclose(cosine, torch.ones(2).double()) == (at == "render")


def test_steering_through_the_encoder_leaves_unseen_views_alone() -> None:
    step = make_step(candidates=1, steer_through="encoder", reward_views=2)
    with torch.no_grad():
        moved = norm(methods.steering(step, 0.1 * step.z0).flatten(0, 1)[:, None]).view(2, 4)
    assert (moved[:, [0, 2]] > 0).all() and (moved[:, [1, 3]] == 0).all()


def test_a_steer_by_ranks_sees_the_order_only() -> None:
    class Cubed(QuadraticReward):
        def __call__(self, images, prompt):
            return super().__call__(images, prompt) ** 3

    def nudge(by: str, reward: QuadraticReward) -> torch.Tensor:
        step = make_step(candidates=1, steer_by=by, rewards={"quadratic": reward})
        with torch.no_grad():
            return estimated_gradient(step, step.z0)

    assert torch.equal(nudge("ranks", Cubed()), nudge("ranks", QuadraticReward()))
    assert not torch.equal(nudge("scores", Cubed()), nudge("scores", QuadraticReward()))


def test_a_black_box_is_steered_by_its_scores() -> None:
    class Graded(BlackBox):
        def __call__(self, images, prompt):
            assert not images.requires_grad, "asked for a gradient"
            return QuadraticReward()(images, prompt)

    step = make_step(candidates=1, steer_by="scores", scaling="hard", rewards={"black box": Graded()}, t=200)
    found = apply(step)
    assert found.metrics["pair/ratio"] == pytest.approx(1) and found.gaps["black box"] > 0


def test_the_steered_term_has_the_stated_length_and_the_members_differ_by_the_radius() -> None:
    step = make_step(candidates=1, preference_weight=0.7, scaling="hard", steer_radius=0.02)
    base, found = averaged_base(step), apply(step)
    torch.testing.assert_close(norm(found.gradient - base), 0.7 * norm(base), rtol=1e-10, atol=0)
    pair = found.pair
    assert pair is not None
    length = 0.02 * math.sqrt(4 * 3 * 4 * 4)
    torch.testing.assert_close(norm(pair.win.noise - pair.lose.noise), torch.full((2, 1, 1, 1, 1), length).double())
    sigma = step.alpha_sigma[1]
    torch.testing.assert_close(norm(pair.win.z_t - pair.lose.z_t), torch.full((2, 1, 1, 1, 1), sigma * length).double())
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
        self.means = torch.randn(2, 48, generator=generator, dtype=torch.float64) / 4

    def predict_noise(self, z_t, t, embedding, cameras):
        alpha, sigma = score.alpha_sigma(self.alpha_bar, t)
        rows = []
        for z, text in zip(z_t, embedding, strict=True):
            negative = int(not torch.equal(text, self.embed("red cube")))
            inverse = torch.linalg.inv(alpha**2 * self.covariances[negative] + sigma**2 * torch.eye(48).double())
            rows.append(((z.flatten(1) - alpha * self.means[negative]) @ inverse * sigma).view_as(z))
        return torch.stack(rows)


def test_the_steered_member_wins_under_a_gaussian_prior_and_moves_along_the_denoised_gradient() -> None:
    """P_x is J g without sampling noise, J the conditional denoiser's Jacobian, and J is positive: the nudge wins."""
    for t in (200, 500, 800):
        prior = GaussianPrior()
        step = make_step(candidates=1, groups=3, t=t, prior=prior, rewards={"linear": Linear()}, scaling="hard")
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


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("t", [200, 500, 800])
def test_with_a_beta_the_target_moves_as_the_tilted_priors_mean(t: int, both: bool) -> None:
    """p exp(beta R) under a Gaussian prior and a linear reward: E[x0 | z_t] moves by beta Cov(x0 | z_t) grad R."""
    prior, beta, reward = GaussianPrior(), 0.01, Linear("linear", scale=0.25)
    settings = {"scaling": "hard", "preference_beta": beta, "steer_both": both}
    step = make_step(candidates=1, t=t, prior=prior, rewards={"linear": reward}, **settings)
    step = replace(step, z0=0.1 * step.z0)
    alpha, sigma = step.alpha_sigma
    covariance = torch.linalg.inv(torch.linalg.inv(prior.covariances[0]) + alpha**2 / sigma**2 * torch.eye(48).double())
    z0 = torch.zeros(1, 1, 3, 4, 4, dtype=torch.float64).requires_grad_()
    (g,) = torch.autograd.grad(prior.decode(z0).mul(reward.slope).sum(), z0)
    expected = (beta / reward.scale * covariance @ g.flatten()).view(3, 4, 4)
    moved = step.rows * (averaged_base(step) - apply(step).gradient)
    torch.testing.assert_close(moved, expected.expand_as(moved), rtol=1e-8, atol=1e-10)


def test_a_beta_bounds_the_term_and_never_lengthens_it() -> None:
    settings = {"candidates": 1, "scaling": "hard", "preference_weight": 0.7}
    free, wide, tight = (apply(make_step(preference_beta=beta, **settings)) for beta in (0.0, 1000.0, 1e-3))
    torch.testing.assert_close(wide.gradient, free.gradient)
    assert free.metrics["pair/ratio"] == pytest.approx(0.7) and 0 < tight.metrics["pair/ratio"] < 0.7
    for way in ({"steer_by": "scores"}, {"steer_through": "encoder"}):  # their directions have no length to go by
        loose = apply(make_step(preference_beta=1e-3, **way, **settings))
        assert loose.metrics["pair/ratio"] == pytest.approx(0.7)


def test_averaged_over_copies_the_rewards_gradient_keeps_what_is_smooth() -> None:
    """Of a linear reward the flat part stays to the last digit, and a checkerboard, whose sign shifts turn, shrinks."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1

    class Smooth(Linear):
        slope = torch.ones(3, 8, 8, dtype=torch.float64)

    class Rough(Linear):
        slope = board.double().expand(3, 8, 8)

    def gradient(reward: Linear, copies: int) -> torch.Tensor:
        step = make_step(candidates=1, rewards={"linear": reward}, reward_copies=copies)
        return step.reward_gradient(step.images, lambda images: images)

    torch.testing.assert_close(gradient(Smooth("linear"), 6), gradient(Smooth("linear"), 1), rtol=1e-12, atol=0)
    assert norm(gradient(Rough("linear"), 6)).max() < 0.9 * norm(gradient(Rough("linear"), 1)).min()


def test_a_lost_pair_is_swapped() -> None:
    """Whatever the prior does to the nudge, the term climbs the reward of the predictions."""

    class Contrary(GaussianPrior):
        def predict_noise(self, z_t, t, embedding, cameras):
            return 2 * z_t / score.alpha_sigma(self.alpha_bar, t)[1] - super().predict_noise(z_t, t, embedding, cameras)

    step = make_step(candidates=1, prior=Contrary(), scaling="hard", t=300, steer_radius=0.005)
    step = replace(step, z0=0.1 * step.z0, noise=0.1 * step.noise)
    pair, found = apply(step).pair, apply(step)
    assert found.metrics["pair/win_first"] == 0 and pair is not None
    torch.testing.assert_close(pair.win.noise, step.noise[0])  # the shared member


# ----------------------------------------------------------------------------------------------------- cost, gradients


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({"reading": "S"}, [8, 4]), ({"reading": "S", "preference_weight": 0.0}, [8]),
        ({"reading": "S", "steer_conditional": False}, [8, 8]), ({"reading": "S", "steer_both": True}, [8, 8]),
        ({"reading": "S", "ranking_steps": 3}, [8, 8, 8, 4]), ({"reading": "A", "ranking_steps": 3}, [16, 16, 16]),
        ({"reading": "A"}, [16]), ({"reading": "B"}, [16]),
        ({"reading": "A", "shared_unconditional": True}, [8, 4]),
        ({"reading": "C", "shared_unconditional": True}, [8, 4, 4]),
        ({"reading": "C"}, [16, 8]), ({"method": "sds"}, [8]), ({"method": "reward_gradient"}, [8]),
    ],
)  # fmt: skip
def test_network_rows_of_a_step(settings: dict, images: list[int]) -> None:
    prior = ToyPrior(torch.float64)
    count = methods.candidates(make_preset(**settings))
    step = make_step(candidates=count, groups=1, prior=prior, **settings)
    apply(step, step.preset.method)
    assert prior.calls == images


@pytest.mark.parametrize(("method", "reading"), EVERYTHING)
def test_no_gradient_path_leaves_a_method(method: str, reading: str) -> None:
    """What comes back is a constant: the scene is reached through the encoder alone, parameters never."""
    prior = ToyPrior(torch.float64)
    count = methods.candidates(make_preset(method=method, reading=reading, candidates=4))
    step = make_step(candidates=count, method=method, reading=reading, prior=prior)
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
    torch.testing.assert_close(norm(pixels), 0.7 * norm(step.pull_back(found.gradient)), rtol=1e-10, atol=0)
    closer = QuadraticReward()(step.images - 1e-3 * pixels, "") - QuadraticReward()(step.images, "")
    assert (closer > 0).all()


@pytest.mark.parametrize("method", ["psd", "reward_gradient"])
def test_the_gate_holds_back_the_pair_and_the_pixel_gradient_alike(method: str) -> None:
    settings = {"method": method, "reading": "S", "scaling": "hard", "candidates": 1}
    whole = make_step(**settings)
    here = whole.t / len(whole.prior.alpha_bar)
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
    step = make_step(candidates=5, base_form="sds", guidance_scale=6.0)
    with torch.no_grad():
        found = methods.denoise(step)
        ratings = methods.rate(step, found)["quadratic"]
        gradients = methods.base(step, found)
    weight = step.alpha_sigma[1] ** 2 / 8
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
    settings = {"base_form": "sds", "guidance_scale": 6.0}
    step = make_step(candidates=2, rewards={"q": QuadraticReward(scale=scale)}, **settings)
    with torch.no_grad():
        found = methods.denoise(step)
        best = methods.rate(step, found)["q"].argmax(0)
    expected = pick(score.guide(found.noise_pred_n, found.noise_pred_c, 6.0) - found.noise, best)
    if pushed:
        expected = expected - pick(found.noise_pred_c - found.noise, 1 - best)
    weight = step.alpha_sigma[1] ** 2 / 8
    torch.testing.assert_close(apply(step, "dreamdpo").gradient, weight * expected)
    assert best.unique().numel() == 2  # views differ in their winner


class LinearPrior(ToyPrior):
    """x0 = M z_t, whatever the condition; M mixes channels and views, and is small, so that pictures stay grey."""

    def jacobian(self, z_t: torch.Tensor) -> torch.Tensor:
        own, others = (self.weights[name].detach() for name in ("own", "others"))
        mixed = torch.einsum("oc,bvchw->bvohw", own, z_t) + torch.einsum("oc,bchw->bohw", others, z_t.mean(1))[:, None]
        return 0.02 * mixed

    def predict_noise(self, z_t, t, embedding, cameras):
        alpha, sigma = score.alpha_sigma(self.alpha_bar, t)
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
    settings = {"scaling": "hard", "preference_weight": 1.0, "base_form": "recon", "rescale": 0.0, "negative": False}
    shared = {"prior": prior, "rewards": {"linear": LinearReward()}, "t": 600, **settings}
    step = make_step(candidates=2, groups=1, reading="A", **shared)
    noise = torch.randn(2, count, *step.z0.shape[1:], generator=step.generator, dtype=torch.float64)
    many = torch.zeros(count, dtype=torch.long)
    rows = {name: getattr(step, name)[many] for name in ("z0", "images", "opacity", "cameras")}
    step = replace(step, noise=noise, **rows)
    base_only = replace(step, preset=step.preset.changed({"preference_weight": 0.0}))
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

    step = make_step(candidates=1, groups=2, reading="S", kappa=1.0, **shared)
    base_only = replace(step, preset=step.preset.changed({"preference_weight": 0.0}))
    moved = (apply(base_only).gradient - apply(step).gradient).flatten(1)
    torch.testing.assert_close(
        moved / moved.norm(dim=1, keepdim=True),
        ((matrix @ slope.flatten()) / (matrix @ slope.flatten()).norm())[None].expand(2, -1),
    )


def test_siblings_in_recon_form_clamp_predictions_as_the_base_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a prediction at high noise, which is far from any picture, would outweigh all others of csd and dreamdpo."""
    step = make_step(candidates=2, rewards={"q": QuadraticReward(scale=1e-4)}, base_form="recon", rescale=0.0, t=90)
    monkeypatch.setattr(step.prior, "latent_clamp", bound := 0.05)
    with torch.no_grad():
        found = methods.denoise(step)
        best = methods.rate(step, found)["q"].argmax(0)
    alpha, sigma = step.alpha_sigma

    def x0(noise_pred: torch.Tensor) -> torch.Tensor:
        return ((found.z_t - sigma * noise_pred) / alpha).clamp(-bound, bound)

    guided = x0(score.guide(found.noise_pred_n, found.noise_pred_c, step.preset.guidance_scale))
    attract, repel = step.z0 - pick(guided, best), step.z0 - pick(x0(found.noise_pred_c), 1 - best)
    torch.testing.assert_close(apply(step, "dreamdpo").gradient, (attract - repel) / 8)
    contrast = (x0(found.noise_pred_n) - x0(found.noise_pred_c)).mean(0)
    assert (x0(found.noise_pred_c).abs() == bound).any()
    torch.testing.assert_close(apply(step, "csd").gradient, step.preset.guidance_scale * contrast / 8)


# -------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "reading=A"), ({"method": "reward_gradient"}, "reading=A"),
        ({"reading": "A", "negative_objective": "reward"}, "zeroth_order"), ({}, "steer_by=scores"),
    ],
)  # fmt: skip
def test_rewards_that_cannot_do_it_are_refused(settings: dict, words: str) -> None:
    models = make_models(rewards={"black box": BlackBox()})
    with pytest.raises(PresetError, match=words):
        methods.check(make_preset(**{"rewards": {"black box": 1.0}, **settings}), models)


def test_rewards_that_can_do_it_are_accepted() -> None:
    black = make_models(rewards={"black box": BlackBox()})
    for settings in ({"reading": "A"}, {"steer_by": "ranks"}, {"method": "best_of_n"}, {"method": "sds"}):
        methods.check(make_preset(rewards={"black box": 1.0}, **settings), black)
    mixed = make_models(rewards={"black box": BlackBox(), "quadratic": QuadraticReward()})
    methods.check(make_preset(rewards={"black box": 1.0, "quadratic": 1.0}), mixed)
