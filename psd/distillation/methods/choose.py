"""The table of methods: one row says what a method is and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.methods.baselines import best_of_n, csd, dreamdpo, rewardsds, sds, sds_with_reward_gradient
from psd.distillation.methods.preference import random_pair, steered_pair
from psd.distillation.results import Score
from psd.distillation.step import StepContext
from psd.models.interfaces import Models

# -------------------------------------------------------------------------------------------------------- what to call


@dataclass(frozen=True)
class Method:
    """One row of what can be called, and what it asks of a run."""

    function: Callable[[StepContext], Score]
    candidates: int | None = None  # noises drawn a step; None: as many as the preset says
    needs_gradient: bool = False  # of at least one reward
    ranks_views: bool = False  # each view alone, so that rewards must see all


METHODS: dict[str, Method] = {
    "steered": Method(steered_pair, candidates=1, needs_gradient=True),  # psd's, by its kind of pair
    "random": Method(random_pair),
    "sds": Method(sds, candidates=1),
    "best_of_n": Method(best_of_n),
    "csd": Method(csd, candidates=1),
    "dreamdpo": Method(dreamdpo, candidates=2, ranks_views=True),
    "rewardsds": Method(rewardsds),
    "reward_gradient": Method(sds_with_reward_gradient, candidates=1, needs_gradient=True),
}


def choose_method(preset: Preset) -> Method:
    """The row that the preset names; a pair that is steered by scores needs no gradient."""
    method = METHODS[preset.pair if preset.method == "psd" else preset.method]
    if method.function is steered_pair and preset.steer_by == "scores":
        return replace(method, needs_gradient=False)
    return method


def count_candidates(preset: Preset) -> int:
    """How many noises the method draws a step."""
    return choose_method(preset).candidates or preset.candidates


def check_models(preset: Preset, models: Models) -> None:
    """Refuses what cannot work with these models in a stage (`PresetError`): before the run, and for live changes."""
    for index, stage in enumerate(preset.list_stages()):
        try:
            _check_stage(stage, models.in_stage(stage))
        except PresetError as error:
            raise PresetError(f"stages[{index}]: {error}" if preset.stages else str(error)) from None


def _check_stage(preset: Preset, models: Models) -> None:
    if preset.janus != "none" and models.prior.views > 1:
        raise PresetError(
            f"janus={preset.janus} is for priors of one view; this one sees {models.prior.views} and their cameras: "
            "set janus=none"
        )
    method = choose_method(preset)
    if method.ranks_views and 0 < preset.reward_views < models.prior.views:
        raise PresetError(
            f"reward_views={preset.reward_views} leaves views unseen, and {preset.method} ranks each alone: set it to 0"
        )
    weighted = [name for name, weight in preset.rewards.items() if weight > 0]
    if not method.needs_gradient or any(models.rewards[name].differentiable for name in weighted):
        return
    cure = "set method=psd, pair=random, which ranks, or steer_by=scores, which estimates one"
    raise PresetError(f"method={preset.method} follows a gradient, and {', '.join(weighted)} has none: {cure}")
