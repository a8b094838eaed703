"""The learned negative embedding n: its objective, its update and its statistics.

n starts as the encoded negative prompt n0 and persists over the run.  It changes the guided prediction, hence both the
base and the preference score.  Its loss is

    L = -mean R(decode(x0(n))) / tau + rho mean (n - n0)^2

on the winner's rows (the shared ones of a steered pair), x0(n) = (z_t - sigma [s_r e_c - (s_r - 1) e(z_t, n)]) / alpha.
The reward's part vanishes at s_r = 1.  Rewards without a gradient move nothing; of a mixture the others do.

Gradients reach n only: they are asked for by `torch.autograd.grad`, never left on a parameter.
Axes: b group, v view, l token, d feature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from psd.config.preset import Preset
from psd.distillation import formulas, sampling
from psd.distillation.events import NegativeUpdated
from psd.distillation.results import NoisySample, Score
from psd.distillation.step import REWARD_GUIDANCE, StepContext
from psd.models.interfaces import Prior
from psd.runtime import deferred

CLIP_NORM = 1.0  # of the gradient
PULL = 1e-2  # rho, back to the start


@dataclass
class Negative:
    """The embedding, where it started, and its optimiser."""

    value: Float[Tensor, "l d"]
    start: Float[Tensor, "l d"]
    optimiser: torch.optim.Adam

    @classmethod
    def create(cls, preset: Preset, prior: Prior) -> Negative:
        """Starts at the encoded negative prompt."""
        start = prior.embed_prompt(preset.negative_prompt).detach().float()
        value = start.clone()
        return cls(value, start, torch.optim.Adam([("value", value)], lr=preset.negative_lr))

    def is_due(self, preset: Preset, step: int, t: int, total: int) -> bool:
        """Whether optimisation step ``step`` (from 0) updates n: every K_n steps, at t / T <= t_n."""
        return is_update_step(preset, step) and t <= preset.negative_t_max * total

    @contextmanager
    def restore_on_error(self) -> Iterator[None]:
        """Puts n and its optimiser back as they were when the block raises."""
        value, optimiser = self.value.clone(), deepcopy(self.optimiser.state_dict())
        try:
            yield
        except BaseException:
            self.value.copy_(value)
            self.optimiser.load_state_dict(optimiser)
            raise

    def update(self, step: StepContext, found: Score, *, compare: bool = True) -> dict[str, float]:
        """One Adam step on n, then the projection RMS(n - n0) <= r_n; returns the statistics of the update.

        ``compare``: with the reward after it, which takes another call of every network.  Nothing moves where no reward
        has a gradient: then the result is empty.  What is not finite after Adam's step raises with n moved:
        `restore_on_error` takes it back.
        """
        if not step.differentiable_weights:
            return {}
        preset = step.preset
        gradient, before = reward_gradient(step, found.shown, self.value)
        gradient = gradient + 2 * PULL * (self.value - self.start) / self.value.numel()
        length = deferred.require_finite("gradient of the negative embedding", gradient).norm()

        with torch.no_grad():
            if step.differentiable_weights != step.weights:  # ``before`` lacks some
                before = mean_reward_under(step, found.shown, self.value)
            self.value.grad = gradient * (CLIP_NORM / length.clamp_min(CLIP_NORM))
            self.optimiser.param_groups[0]["lr"] = preset.negative_lr
            self.optimiser.step()
            self.value.grad = None
            drift = root_mean_square(self.value - self.start)
            if drift > preset.negative_radius:
                self.value.copy_(self.start + (self.value - self.start) * (preset.negative_radius / drift))
            after = (
                {"negative/reward_after": float(mean_reward_under(step, found.shown, self.value))} if compare else {}
            )
        return {"negative/gradient": float(length), "negative/reward_before": float(before), **after}

    def statistics(self, embedding: Float[Tensor, "l d"]) -> dict[str, float]:
        """Measures n as a whole: its drift from its start, and its cosines to its start and to the prompt."""
        n = self.value.flatten()
        return {
            "negative/drift": float(root_mean_square(self.value - self.start)),
            "negative/cosine_start": float(cosine_similarity(n, self.start.flatten(), dim=0)),
            "negative/cosine_prompt": float(cosine_similarity(n, embedding.flatten(), dim=0)),
            "negative/norm": float(n.norm()),
        }

    def update_event(self, prior: Prior, preset: Preset, step: int, metrics: Mapping[str, float]) -> NegativeUpdated:
        """The update as an event; nearest words by cosine in the prior's vocabulary, in its output space."""
        words, vectors = prior.word_embeddings()
        nearest = (normalize(self.value, dim=-1) @ normalize(vectors.to(self.value), dim=-1).T).argmax(-1)
        return NegativeUpdated(
            step=step,
            tokens=tuple(prior.tokens(preset.negative_prompt)),
            drift=tuple((self.value - self.start).square().mean(-1).sqrt().tolist()),
            nearest=tuple(words[i] for i in nearest.tolist()),
            metrics=dict(metrics),
        )


def is_update_step(preset: Preset, step: int) -> bool:
    """Whether ``step`` is a K_n-th one, of a method that asks a reward: without one there is nothing to climb."""
    preset = preset.at(preset.progress(step))
    return preset.optimises_reward and preset.negative and (step + 1) % preset.negative_every == 0


def is_compared(preset: Preset, step: int) -> bool:
    """Whether the update of ``step`` is the last one before a preview, which shows what it did to the reward."""
    preview = step // preset.preview_every * preset.preview_every + preset.preview_every
    return step + 1 + preset.negative_every > min(preview, preset.total_steps)


def update_probability(preset: Preset, step: int, total: int) -> float:
    """The probability that `Negative.is_due` holds at ``step``, before its t is drawn."""
    low, high = sampling.timestep_range(preset, step, total)
    allowed = min(high, math.floor(preset.negative_t_max * total)) - low + 1
    return max(allowed, 0) / (high - low + 1) if is_update_step(preset, step) else 0.0


# ----------------------------------------------------------------------------------------------------------- objective


def mean_reward_under(step: StepContext, shown: NoisySample, value: Float[Tensor, "l d"]) -> Float[Tensor, ""]:
    """The mixture, in Bradley-Terry scales, of x0(n) under a negative: mean over groups and views.

    While gradients are on, only the differentiable rewards take part.
    """
    weights = step.differentiable_weights if torch.is_grad_enabled() else step.weights
    (noise_pred_n,) = step.predict(shown.z_t[None], value)
    guided = formulas.apply_guidance(noise_pred_n, shown.noise_pred_c, REWARD_GUIDANCE)
    ratings = step.rate_images(step.decode(step.clean(shown.z_t, guided)), weights)
    scales = {name: step.rewards[name].scale for name in weights}
    return step.combine_ratings(ratings, weights, scales).mean((1, 2)).squeeze(0)


def reward_gradient(
    step: StepContext, shown: NoisySample, value: Float[Tensor, "l d"]
) -> tuple[Float[Tensor, "l d"], Float[Tensor, ""]]:
    """Gradient of -mean R / tau with respect to n, through the network, decoder and rewards; and mean R / tau."""
    with torch.enable_grad():
        leaf = value.detach().requires_grad_()
        climbed = mean_reward_under(step, shown, leaf)
        (gradient,) = torch.autograd.grad(-climbed, leaf)
    return gradient, climbed.detach()


def root_mean_square(value: Tensor) -> Tensor:
    return value.square().mean().sqrt()
