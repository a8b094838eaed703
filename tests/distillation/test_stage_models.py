"""Stages with another prior or other rewards: what goes on, what begins again, and resuming anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import Checkpointed, Event, Failed, LiveChanged, Previewed, Stepped, Warned
from psd.distillation.interfaces import NoControl
from psd.distillation.negative import Negative
from psd.distillation.session import hold_live_values
from psd.models.interfaces import Models
from tests.distillation.test_stages import SURFACE, essence, models, preset_of, require_alike_from_everywhere
from tests.support.toy import POSITIONS, BlackBox, QuadraticReward, ToyPrior, run, schedule

OWN, OTHER, LEVELS = "assets/prior", "other", 200
BLUE = {"blue": 1.0}
HALVES = [{"share": 0.5}, {"share": 0.5, "prior": OTHER}]
REWARDED = [{"share": 0.5}, {"share": 0.5, "rewards": BLUE}]
# To a second prior, to its surface by other rewards, and back to the first prior.
THREE = [
    {"share": 0.5}, {"share": 0.25, "prior": OTHER},
    {"share": 0.25, "scene": SURFACE, "rewards": {"blue": 0.5, "quadratic": 1.0}},
]  # fmt: skip


class OtherPrior(ToyPrior):
    """Another network: one view, longer embeddings, fewer noise levels."""

    def __init__(self) -> None:
        super().__init__(views=1)
        self.alpha_bar = schedule(LEVELS)
        self.levels = LEVELS
        self.weights["own"].data.neg_()
        self.format_table = self.format_table + 0.5

    def embed_prompt(self, prompt: str) -> Tensor:
        return torch.cat([super().embed_prompt(prompt), self.format_table[-2:]])

    def tokens(self, prompt: str) -> list[str]:
        return [*super().tokens(prompt), "<pad>", "<pad>"]


def both(**more: object) -> Models:
    """The toy models with a second prior and a second reward."""
    own = models()
    return replace(
        own,
        priors={**own.priors, OTHER: OtherPrior()},  # type: ignore[dict-item]
        rewards={**own.rewards, "blue": QuadraticReward("blue", colour=(0.1, 0.2, 0.9)), **more},  # type: ignore[dict-item]
    )


def of_kind(events: Iterable[Event], kind: type[Any]) -> dict[int, Any]:
    """The last event of a kind after each step."""
    return {event.step: event for event in events if isinstance(event, kind)}


@pytest.mark.parametrize("stages", [HALVES, REWARDED, THREE], ids=["prior", "rewards", "both"])
def test_a_run_that_ends_anywhere_goes_on_bit_for_bit(stages: list[dict[str, Any]]) -> None:
    """From every checkpoint, as after a kill: inside each stage and on either side of each boundary."""
    preset = preset_of(stages, negative_every=1, negative_t_max=1.0)
    require_alike_from_everywhere(preset, both, {3, 4, 5, 6, 7})


def test_each_stage_asks_its_own_prior_at_its_own_noise_levels() -> None:
    loaded = both()
    priors: dict[str, Any] = {**loaded.priors}
    asked: dict[int, set[str]] = {}
    for event in run(preset_of(HALVES, method="sds", t_min_end=0.2), loaded):
        if isinstance(event, Stepped):
            asked[event.step] = {name for name, prior in priors.items() if prior.calls}
            assert (event.t < LEVELS) == (event.stage == 1)
        for prior in priors.values():
            prior.calls.clear()
    assert asked == {step: {OWN if step <= 4 else OTHER} for step in range(1, 9)}


def test_the_negative_begins_again_with_another_prior_and_goes_on_with_the_same() -> None:
    first = {"share": 0.5, "negative": True}
    quiet: dict[str, Any] = {"share": 0.25, "negative": False}
    preset = preset_of(
        [first, {**quiet, "rewards": BLUE}, {**quiet, "prior": OTHER}], negative_every=1, negative_t_max=1.0
    )
    events = list(run(preset, both()))
    saved = of_kind(events, Checkpointed)
    values = {step: event.tensors["negative_value"] for step, event in saved.items()}
    start = ToyPrior().embed_prompt(preset.negative_prompt).numpy()
    assert not np.array_equal(values[4], start) and np.array_equal(values[4], values[6])
    again = OtherPrior().embed_prompt(preset.negative_prompt).numpy()
    assert len(again) == POSITIONS + 2 and np.array_equal(values[7], again)
    assert not [name for name in saved[8].tensors if name.startswith("negative/")]  # its optimiser is new too
    (said,) = [event for event in events if isinstance(event, Warned) and "another prior" in event.message]
    assert said.step == 6 and said.stage == 2
    assert "Stage 3 has another prior, other: the negative embedding begins again" in said.message


def test_gaps_and_alarms_begin_again_where_the_rewards_differ() -> None:
    heavier = {"share": 0.25, "rewards": {"quadratic": 9.0}}
    stages = [{"share": 0.5}, heavier, {"share": 0.25, "rewards": BLUE}]
    saved = of_kind(run(preset_of(stages, preview_every=1), both()), Checkpointed)
    gaps = {step: saved[step].values["gap_scale"]["sums"] for step in (4, 5, 7)}
    assert set(gaps[4]) == set(gaps[5]) == {"quadratic"} and set(gaps[7]) == {"blue"}
    seen = {step: len(saved[step].values["monitor"]["steps"]) for step in (4, 5, 6, 7)}
    assert seen == {4: 4, 5: 1, 6: 2, 7: 1}


def test_gaps_begin_again_with_another_prior() -> None:
    saved = of_kind(run(preset_of(HALVES), both()), Checkpointed)

    def weigh(step: int) -> float:
        return sum(saved[step].values["gap_scale"]["weights"]["quadratic"])

    assert weigh(4) > weigh(3) > weigh(5) > 0


def test_a_stage_scores_the_rewards_that_it_asks_and_the_judges_stay() -> None:
    stages = [{"share": 0.5}, {"share": 0.5, "rewards": {"blue": 1.0, "quadratic": 0.0}}]
    shown = of_kind(run(preset_of(stages), both()), Previewed)
    assert set(shown[4].rewards) == {"reward/quadratic", "judge/judge"}
    assert set(shown[6].rewards) == {"reward/blue", "reward/quadratic", "judge/judge"}


class Lives(NoControl):
    """Values that are wished for from a step on."""

    def __init__(self, step: int, **values: float | dict[str, float]) -> None:
        self.left, self.values = step, values

    def live(self) -> Mapping[str, float | dict[str, float]]:
        self.left -= 1
        return self.values if self.left < 0 else {}


def test_weights_by_hand_hold_in_stages_that_name_none() -> None:
    preset = preset_of([{"share": 0.25}, {"share": 0.5, "rewards": BLUE}, {"share": 0.25}], rewards={"quadratic": 1.0})
    events = list(run(preset, both(), control=Lives(3, rewards={"quadratic": 2.0})))
    (changed,) = of_kind(events, LiveChanged).values()
    said = [event.message for event in events if isinstance(event, Warned)]
    assert changed.step == 3
    assert said == ["Stage 2 names its own rewards: what you changed holds in the stages that do not."]
    refused = list(run(preset, both(), control=Lives(0, rewards={"blue": 1.0})))
    assert not of_kind(refused, LiveChanged)
    assert any("rewards blue are not loaded" in event.message for event in refused if isinstance(event, Warned))


def test_a_stage_has_its_own_guidance_and_preference() -> None:
    own = {"guidance_scale": 9.0, "preference_weight": 0.0}
    preset = preset_of([{"share": 0.5}, {"share": 0.5, **own}], preference_t_max=1.0)
    steps = of_kind(run(preset, both()), Stepped)
    assert ["pair/gap" in steps[step].metrics for step in (3, 4, 5, 8)] == [True, True, False, False]
    plain = of_kind(run(preset_of([]).with_values({"preference_t_max": 1.0}), both()), Stepped)
    assert steps[4].metrics["score/norm"] == plain[4].metrics["score/norm"]
    assert steps[5].metrics["score/norm"] > 1.5 * plain[5].metrics["score/norm"]


@pytest.mark.parametrize("moved", [2, 5])
def test_what_is_moved_holds_in_every_stage_from_then_on(moved: int) -> None:
    """Before a stage with values of its own, or within it: whoever moves one moves what runs."""
    own = {"guidance_scale": 9.0, "preference_weight": 0.0}
    preset = preset_of([{"share": 0.5}, {"share": 0.5, **own}], preference_t_max=1.0)
    wish = {"guidance_scale": 6.0, "preference_weight": 0.5}
    events = list(run(preset, both(), control=Lives(moved, **wish)))
    steps = of_kind(events, Stepped)
    assert ["pair/gap" in steps[step].metrics for step in (4, 5, 6, 8)] == [True, moved < 5, True, True]
    assert not [event for event in events if isinstance(event, Warned)]
    held = hold_live_values(preset, wish)
    assert [(stage.guidance_scale, stage.preference_weight) for stage in held.list_stages()] == [(6.0, 0.5)] * 2


def test_a_stage_that_lacks_the_memory_to_begin_keeps_what_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    real, short = Negative.create, True

    def create(preset: Preset, prior: Any) -> Negative:
        if short and isinstance(prior, OtherPrior):
            raise MemoryError
        return real(preset, prior)

    monkeypatch.setattr(Negative, "create", create)
    preset = preset_of(HALVES)
    events = list(run(preset, both()))
    saved, failed = events[-2:]
    assert isinstance(failed, Failed) and failed.message == "stage 2 cannot begin: out of memory"
    assert "mesh_resolution" not in failed.cure and "free memory and resume" in failed.cure
    assert isinstance(saved, Checkpointed) and saved.step == 4 and saved.values["stage"] == 0
    assert len(saved.tensors["negative_value"]) == POSITIONS
    short = False
    ours, whole = list(run(preset, both(), resume=saved)), list(run(preset, both()))
    assert essence(ours[-1]) == essence(whole[-1]) and essence(ours[-2]) == essence(whole[-2])


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"janus": "views"}, r"^stages\[1\]: janus=views is for priors of one view; this one sees 4"),
        ({"rewards": {"black box": 1.0}}, r"^stages\[1\]: method=psd follows a gradient, and black box has none"),
    ],
)
def test_what_a_later_stage_cannot_do_is_refused_before_the_first_step(stage: dict[str, Any], words: str) -> None:
    preset = preset_of([{"share": 0.5}, {"share": 0.5, **stage}])
    with pytest.raises(PresetError, match=words):
        next(run(preset, both(**{"black box": BlackBox()})))


def test_words_beside_the_prompt_that_a_later_prior_cannot_read_are_refused_before_the_first_step() -> None:
    stages = [{"share": 0.5}, {"share": 0.5, "prior": OTHER, "janus": "views"}]
    with pytest.raises(PresetError, match="unknown words: .*view"):
        next(run(preset_of(stages), both()))
