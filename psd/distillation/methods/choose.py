"""The table of methods: one row says what a method is and what it needs."""

from __future__ import annotations

from collections.abc import Callable

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.methods.baselines import best_of_n, csd, dreamdpo, rewardsds, sds, sds_with_reward_gradient
from psd.distillation.methods.preference import psd
from psd.distillation.results import Score
from psd.distillation.step import StepContext
from psd.models.interfaces import Models

# -------------------------------------------------------------------------------------------------------- what to call

METHODS: dict[str, Callable[[StepContext], Score]] = {
    "psd": psd,
    "sds": sds,
    "best_of_n": best_of_n,
    "csd": csd,
    "dreamdpo": dreamdpo,
    "rewardsds": rewardsds,
    "reward_gradient": sds_with_reward_gradient,
}


def count_candidates(preset: Preset) -> int:
    """How many noises the method draws a step."""
    if preset.method == "dreamdpo":
        return 2
    ranked = preset.method in ("best_of_n", "rewardsds") or (preset.method == "psd" and preset.pair == "random")
    return preset.candidates if ranked else 1


def check_models(preset: Preset, models: Models) -> None:
    """Refuses what cannot work with these models (`PresetError`): before the run, and for live changes."""
    if preset.janus != "none" and models.prior.views > 1:
        raise PresetError(
            f"janus={preset.janus} is for priors of one view; this one sees {models.prior.views} and their cameras: "
            "set janus=none"
        )
    if preset.method in ("sds", "csd"):
        return
    if 0 < preset.reward_views < models.prior.views and preset.method == "dreamdpo":
        raise PresetError(
            f"reward_views={preset.reward_views} leaves views unseen, and dreamdpo ranks views alone: set it to 0"
        )
    weighted = [name for name, weight in preset.rewards.items() if weight > 0]
    if any(models.rewards[name].differentiable for name in weighted):
        return
    names = ", ".join(weighted)
    if preset.method == "psd" and preset.pair == "steered" and preset.steer_by == "gradient":
        raise PresetError(
            f"pair=steered follows a gradient, and {names} has none: set steer_by=scores, or pair=random, which ranks"
        )
    if preset.method == "reward_gradient":
        raise PresetError(
            f"method=reward_gradient needs a gradient, and {names} has none: set method=psd, pair=random, which ranks"
        )
