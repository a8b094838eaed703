"""The learned negative embedding: its gradients by finite differences, where they may not go, its bounds."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from toy import POSITIONS, WIDTH, WORDS, BlackBox, QuadraticReward, ToyPrior, make_models, make_preset, make_step

from psd import draws, methods, negative
from psd.halves import halves
from psd.models import load_negative
from psd.negative import Negative
from psd.preset import MissingError, PresetError
from psd.state import State
from psd.step import Score, Step


def found_by(step: Step) -> Score:
    with torch.no_grad():
        return methods.psd(step)


def learned(step: Step, optimiser_lr: float = 1e-2) -> Negative:
    value = step.negative.clone()
    return Negative(value, step.negative_start, torch.optim.Adam([value], lr=optimiser_lr))


def finite_difference(loss, value: torch.Tensor, direction: torch.Tensor, size: float = 1e-5) -> float:
    with torch.no_grad():
        return float(loss(value + size * direction) - loss(value - size * direction)) / (2 * size)


def direction_like(value: torch.Tensor) -> torch.Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(8), dtype=value.dtype)


def gentle_step(**settings) -> Step:
    """Predictions that decode well inside [0, 1], so that no clamp bends the loss."""
    step = make_step(**{"candidates": 1, "t": 100, "reward_guidance_scale": 3.0, **settings})
    return replace(step, z0=0.3 * step.z0, noise=0.3 * step.noise)


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("rewards", [1, 2])
def test_reward_gradient_is_that_of_the_stated_loss(rewards: int) -> None:
    mixture = {"red": QuadraticReward(scale=0.5), "blue": QuadraticReward("blue", colour=(0, 0, 1), scale=2.0)}
    names = list(mixture)[:rewards]
    step = gentle_step(rewards={name: mixture[name] for name in names})
    shown = found_by(step).shown

    def loss(value: torch.Tensor) -> torch.Tensor:
        """- mean R(decode(x0(n))) / tau, x0(n) = (z_t - sigma [s_r e_c - (s_r - 1) e(n)]) / alpha, as in the method."""
        alpha, sigma = step.alpha_sigma
        (pred,) = step.predict(shown.z_t[None], value)
        x0 = (shown.z_t - sigma * (3.0 * shown.noise_pred_c - 2.0 * pred[0])) / alpha
        images = step.prior.decode(x0)
        assert 0 < images.min() and images.max() < 1
        return -sum(mixture[name](images, "").mean() / mixture[name].scale / rewards for name in names)  # type: ignore[return-value]

    gradient, climbed = negative.reward_gradient(step, shown, step.negative)
    assert float(climbed) == pytest.approx(-loss(step.negative).item(), rel=1e-9)
    direction = direction_like(gradient)
    expected = finite_difference(loss, step.negative, direction)
    assert abs(expected) > 1e-4
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6)


def test_reward_gradient_vanishes_without_guidance() -> None:
    step = gentle_step(reward_guidance_scale=1.0)
    assert negative.reward_gradient(step, found_by(step).shown, step.negative)[0].abs().max() == 0


def test_pair_gradient_is_that_of_diffusion_dpo() -> None:
    step = gentle_step(candidates=2, reading="C", preference_scale=2.0)
    pair = found_by(step).pair
    assert pair is not None

    def loss(value: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for b in range(2):
            margin = torch.zeros((), dtype=torch.float64)
            for member, sign in ((pair.win, 1), (pair.lose, -1)):
                (pred,), (start,) = (step.predict(member.z_t[None], n)[0] for n in (value, step.negative_start))
                guided, reference = (n[b] + 2 * (member.noise_pred_c[b] - n[b]) for n in (pred, start))
                margin += sign * ((member.noise[b] - reference) ** 2).mean()
                margin -= sign * ((member.noise[b] - guided) ** 2).mean()
            total -= torch.log(torch.sigmoid(methods.IMPLICIT_BETA * margin)) / 2
        return total

    gradient = negative.pair_gradient(step, pair, step.negative, step.negative_start)
    direction = direction_like(gradient)
    expected = finite_difference(loss, step.negative, direction)
    assert abs(expected) > 1e-4
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5)


def test_equal_pairs_teach_nothing() -> None:
    step = gentle_step(candidates=2, reading="C")
    pair = found_by(step).pair
    assert pair is not None
    equal = replace(pair, gap=torch.zeros_like(pair.gap))
    assert negative.pair_gradient(step, equal, step.negative, step.negative_start).abs().max() == 0


def test_zeroth_order_estimate_points_along_the_gradient() -> None:
    step = gentle_step()
    shown = found_by(step).shown
    exact, _ = negative.reward_gradient(step, shown, step.negative)
    estimates = [negative.zeroth_order_gradient(step, shown, step.negative, step.negative_start) for _ in range(60)]
    mean = torch.stack(estimates).mean(0)
    assert torch.cosine_similarity(mean.flatten(), exact.flatten(), dim=0) > 0.9
    assert mean.norm() == pytest.approx(float(exact.norm()), rel=0.25)  # 240 directions in 24 dimensions


@pytest.mark.parametrize(
    ("reading", "objective"),
    [("S", "reward"), ("A", "reward"), ("S", "dpo"), ("C", "dpo"), ("A", "zeroth_order"), ("B", "auto")],
)
def test_an_update_moves_nothing_but_the_embedding(reading: str, objective: str) -> None:
    prior = ToyPrior(torch.float64)
    step = make_step(candidates=1 if reading == "S" else 2, prior=prior, reading=reading, negative_objective=objective)
    before = {name: weight.detach().clone() for name, weight in prior.weights.items()}
    table, found, own = prior.table.clone(), found_by(step), learned(step)
    own.update(step, found)
    assert not torch.equal(own.value, step.negative) and own.value.grad is None and not own.value.requires_grad
    assert torch.equal(prior.table, table)
    for name, weight in prior.weights.items():
        assert weight.grad is None and torch.equal(weight, before[name])
    assert step.negative.grad is None and not found.gradient.requires_grad


# -------------------------------------------------------------------------------------------------------------- update


@pytest.mark.parametrize(
    ("reading", "black", "objective"), [("S", False, "reward"), ("A", True, "dpo"), ("C", False, "dpo")]
)
def test_auto_chooses_what_the_rewards_allow(reading: str, black: bool, objective: str) -> None:
    rewards = {"black box": BlackBox()} if black else None
    assert negative.objective(make_step(candidates=2, reading=reading, rewards=rewards)) == objective


def test_a_black_box_teaches_both_ways() -> None:
    for objective in ("dpo", "zeroth_order"):
        step = make_step(
            candidates=4, reading="A", rewards={"black box": BlackBox()}, negative_objective=objective, groups=4
        )
        own, found = learned(step), found_by(step)
        assert found.pair is not None and (found.pair.gap > 0).any()
        assert own.update(step, found)["negative/gradient"] > 0


def test_updates_climb_the_reward() -> None:
    step = gentle_step(negative_pull=0.0)
    own, found = learned(step), found_by(step)
    first = own.update(step, found)
    assert first["negative/reward_after"] > first["negative/reward_before"]
    for _ in range(10):
        last = own.update(step, found)
    assert last["negative/reward_after"] > first["negative/reward_after"]


def test_the_embedding_stays_within_its_radius() -> None:
    step = make_step(candidates=1, negative_radius=0.15, negative_lr=1.0)
    own = learned(step)
    own.update(step, found_by(step))
    assert own.statistics(step.embedding)["negative/drift"] == pytest.approx(0.15, rel=1e-9)


def test_the_pull_brings_an_idle_embedding_home() -> None:
    step = gentle_step(reward_guidance_scale=1.0, negative_pull=10.0)  # no reward gradient at s_r = 1
    own, found = learned(step), found_by(step)
    start = own.statistics(step.embedding)["negative/drift"]
    for _ in range(5):
        own.update(step, found)
    assert own.statistics(step.embedding)["negative/drift"] < start - 0.01


def test_no_pair_no_update() -> None:
    step = make_step(candidates=2, reading="A", negative_objective="dpo", preference_weight=0.0)
    own = learned(step)
    assert own.update(step, found_by(step)) == {}
    assert torch.equal(own.value, step.negative)


def test_due_every_so_often_at_low_noise_and_for_psd_only() -> None:
    preset = make_preset(negative_every=5, negative_t_max=0.4)
    own = Negative.create(preset, ToyPrior(), None)
    assert [step for step in range(20) if own.due(preset, step, 100, 1000)] == [4, 9, 14, 19]
    assert own.due(preset, 4, 400, 1000) and not own.due(preset, 4, 401, 1000)
    assert not own.due(preset.changed({"negative": False}), 4, 100, 1000)
    assert not own.due(preset.changed({"method": "sds"}), 4, 100, 1000)


@pytest.mark.parametrize(
    "changes", [{}, {"late_start": 0.5, "extra_steps": 7}, {"negative_t_max": 0.0}, {"method": "sds"}]
)
def test_the_expected_updates_of_each_half_are_those_of_every_t_that_its_steps_may_draw(changes: dict) -> None:
    preset = make_preset(**{"steps": 60, "negative_every": 3, "negative_t_max": 0.405, "t_min_end": 0.0, **changes})
    own = learned(make_step(candidates=1))

    def share(step: int) -> float:
        low, high = draws.bounds(preset, step, 100)
        return sum(own.due(preset, step, t, 100) for t in range(low, high + 1)) / (high - low + 1)

    shares = [share(step) for step in range(preset.total_steps)]
    early = 30 if preset.late_start < 1 else len(shares)
    expected = [half for half in (shares[:early], shares[early:]) if half]
    found = halves(preset, 100)
    assert [half.name for half in found] == ["early", "late"][: len(expected)]
    assert [half.updates for half in found] == pytest.approx([sum(half) / len(half) for half in expected])
    assert [half.share for half in found] == [len(half) / len(shares) for half in expected]


def test_statistics_name_what_moved() -> None:
    prior, preset = ToyPrior(), make_preset()
    own = Negative.create(preset, prior, None)
    own.value[1] = 3 * prior.embed("shiny")[0]
    event = own.event(prior, preset, 7, {"negative/norm": 1.0})
    assert event.tokens == ("low", "quality", "<pad>", "<pad>") and event.step == 7
    assert event.nearest[:2] == ("low", "shiny") and len(event.nearest) == POSITIONS
    assert set(event.nearest) <= set(WORDS)
    assert event.drift[1] > 0 and event.drift[0] == event.drift[2] == 0
    statistics = own.statistics(prior.embed("low quality"))
    assert statistics["negative/cosine_start"] == pytest.approx(statistics["negative/cosine_prompt"])
    assert statistics["negative/drift"] == pytest.approx((sum(d * d for d in event.drift) / 4) ** 0.5)


def test_a_learned_start_stands_in_for_the_negative_prompt() -> None:
    preset, prior = make_preset(negative_start="start.safetensors"), ToyPrior()
    start = prior.embed("shiny")
    state = State.create(preset, replace(make_models(prior=prior), negative_start=start))
    assert torch.equal(state.negative.value, start) and torch.equal(state.negative.start, start)
    with pytest.raises(PresetError, match="start.safetensors"):
        State.create(preset, make_models(prior=prior))


def test_a_learned_start_is_read_from_its_file_and_checked(tmp_path) -> None:
    prior, path = ToyPrior(), tmp_path / "start.safetensors"
    save_file({"negative": torch.ones(POSITIONS, WIDTH)}, path)
    assert torch.equal(load_negative(str(path), prior), torch.ones(POSITIONS, WIDTH))
    save_file({"negative": torch.ones(POSITIONS + 1, WIDTH)}, path)
    with pytest.raises(PresetError, match=r"shape \(5, 6\).*\(4, 6\)"):
        load_negative(str(path), prior)
    save_file({"other": torch.ones(1)}, path)
    with pytest.raises(PresetError, match="no tensor"):
        load_negative(str(path), prior)
    with pytest.raises(MissingError, match="nowhere"):
        load_negative("nowhere", prior)
