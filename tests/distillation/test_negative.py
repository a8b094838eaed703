"""The learned negative embedding: its gradients by finite differences, where they may not go, its bounds."""

from dataclasses import replace

import pytest
import torch

from psd.distillation import negative, sampling
from psd.distillation.methods import choose
from psd.distillation.negative import Negative
from psd.distillation.results import Score
from psd.distillation.step import StepContext
from psd.evaluation.speed.throughput import weigh_stages
from tests.support.toy import POSITIONS, WORDS, BlackBox, QuadraticReward, ToyPrior, make_preset, make_step


def found_by(step: StepContext) -> Score:
    with torch.no_grad():
        return choose.choose_method(step.preset).function(step)


def learned(step: StepContext, optimiser_lr: float = 1e-2) -> Negative:
    value = step.negative.clone()
    return Negative(value, step.prior.embed_prompt("low quality"), torch.optim.Adam([value], lr=optimiser_lr))


def finite_difference(loss, value: torch.Tensor, direction: torch.Tensor, size: float = 1e-5) -> float:
    with torch.no_grad():
        return float(loss(value + size * direction) - loss(value - size * direction)) / (2 * size)


def direction_like(value: torch.Tensor) -> torch.Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(8), dtype=value.dtype)


def gentle_step(**settings) -> StepContext:
    """Predictions that decode well inside [0, 1], so that no clamp bends the loss."""
    step = make_step(**{"candidates": 1, "t": 100, **settings})
    return replace(step, z0=0.3 * step.z0, noise=0.3 * step.noise)


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.fixture(autouse=True)
def gentle_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negative, "REWARD_GUIDANCE", 3.0)


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


def test_reward_gradient_vanishes_without_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negative, "REWARD_GUIDANCE", 1.0)
    step = gentle_step()
    assert negative.reward_gradient(step, found_by(step).shown, step.negative)[0].abs().max() == 0


@pytest.mark.parametrize(("method", "pair"), [("psd", "steered"), ("psd", "random"), ("dreamdpo", "random")])
def test_an_update_moves_nothing_but_the_embedding(method: str, pair: str) -> None:
    prior = ToyPrior(torch.float64)
    step = make_step(candidates=1 if pair == "steered" else 2, prior=prior, method=method, pair=pair)
    before = {name: weight.detach().clone() for name, weight in prior.weights.items()}
    table, found, own = prior.format_table.clone(), found_by(step), learned(step)
    own.update(step, found)
    assert not torch.equal(own.value, step.negative) and own.value.grad is None and not own.value.requires_grad
    assert torch.equal(prior.format_table, table)
    for name, weight in prior.weights.items():
        assert weight.grad is None and torch.equal(weight, before[name])
    assert step.negative.grad is None and not found.gradient.requires_grad


# -------------------------------------------------------------------------------------------------------------- update


def test_a_black_box_teaches_nothing_and_of_a_mixture_the_others_teach() -> None:
    step = make_step(candidates=2, pair="random", rewards={"black box": BlackBox()})
    own = learned(step)
    assert own.update(step, found_by(step)) == {} and torch.equal(own.value, step.negative)
    step = make_step(candidates=2, pair="random", rewards={"black box": BlackBox(), "quadratic": QuadraticReward()})
    own, found = learned(step), found_by(step)
    assert own.update(step, found)["negative/gradient"] > 0 and not torch.equal(own.value, step.negative)


def test_updates_climb_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negative, "PULL", 0.0)
    step = gentle_step()
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


def test_the_pull_brings_an_idle_embedding_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negative, "REWARD_GUIDANCE", 1.0)  # no gradient of the reward
    monkeypatch.setattr(negative, "PULL", 10.0)
    step = gentle_step()
    own, found = learned(step), found_by(step)
    start = own.statistics(step.embedding)["negative/drift"]
    for _ in range(5):
        own.update(step, found)
    assert own.statistics(step.embedding)["negative/drift"] < start - 0.01


def test_the_reward_after_an_update_is_read_for_previews_only() -> None:
    """By the last update before each preview, and the last of all."""
    step = gentle_step()
    assert "negative/reward_after" not in learned(step).update(step, found_by(step), compare=False)
    preset = make_preset(steps=23, preview_every=10, negative_every=4)
    updates = [step for step in range(23) if negative.is_update_step(preset, step)]
    assert updates == [3, 7, 11, 15, 19]
    assert [step for step in updates if negative.is_compared(preset, step)] == [7, 19]


def test_due_every_so_often_at_low_noise_where_a_reward_is_asked() -> None:
    preset = make_preset(negative_every=5, negative_t_max=0.4)
    own = Negative.create(preset, ToyPrior())
    assert [step for step in range(20) if own.is_due(preset, step, 100, 1000)] == [4, 9, 14, 19]
    assert own.is_due(preset, 4, 400, 1000) and not own.is_due(preset, 4, 401, 1000)
    assert not own.is_due(preset.with_values({"negative": False}), 4, 100, 1000)
    assert own.is_due(preset.with_values({"method": "dreamdpo"}), 4, 100, 1000)
    for method in ("sds", "csd"):
        assert not own.is_due(preset.with_values({"method": method}), 4, 100, 1000)


HALVES = [{"share": 0.5}, {"share": 0.5, "t_max_end": 0.5}]  # the later half at other noise levels


@pytest.mark.parametrize(
    "changes", [{}, {"stages": HALVES, "extra_steps": 7}, {"negative_t_max": 0.0}, {"method": "sds"}]
)
def test_the_expected_updates_of_each_stage_are_those_of_every_t_that_its_steps_may_draw(changes: dict) -> None:
    preset = make_preset(**{"steps": 60, "negative_every": 3, "negative_t_max": 0.405, "t_min_end": 0.0, **changes})
    own = learned(make_step(candidates=1))

    def share(step: int) -> float:
        low, high = sampling.timestep_range(preset, step, 100)
        return sum(own.is_due(preset, step, t, 100) for t in range(low, high + 1)) / (high - low + 1)

    shares = [share(step) for step in range(preset.total_steps)]
    early = 30 if preset.stages else len(shares)
    expected = [half for half in (shares[:early], shares[early:]) if half]
    found = weigh_stages(preset, [100] * len(preset.list_stages()))
    assert [stage.name for stage in found] == (["stage 1", "stage 2"] if preset.stages else ["all steps"])
    assert [half.updates for half in found] == pytest.approx([sum(half) / len(half) for half in expected])
    assert [half.share for half in found] == [len(half) / len(shares) for half in expected]


def test_statistics_name_what_moved() -> None:
    prior, preset = ToyPrior(), make_preset()
    own = Negative.create(preset, prior)
    own.value[1] = 3 * prior.embed_prompt("shiny")[0]
    event = own.update_event(prior, preset, 7, {"negative/norm": 1.0})
    assert event.tokens == ("low", "quality", "<pad>", "<pad>") and event.step == 7
    assert event.nearest[:2] == ("low", "shiny") and len(event.nearest) == POSITIONS
    assert set(event.nearest) <= set(WORDS)
    assert event.drift[1] > 0 and event.drift[0] == event.drift[2] == 0
    statistics = own.statistics(prior.embed_prompt("low quality"))
    assert statistics["negative/cosine_start"] == pytest.approx(statistics["negative/cosine_prompt"])
    assert statistics["negative/drift"] == pytest.approx((sum(d * d for d in event.drift) / 4) ** 0.5)
