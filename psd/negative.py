"""The learned negative embedding n: its objectives, its update and what is worth showing of it.

n starts as the encoded negative prompt n0 and persists over the run.  It changes the guided prediction, hence both the
base and the preference score.  One of three objectives, each plus rho mean (n - n0)^2:

- reward: L = -mean R(decode(x0(n))) / tau on the winner's rows (the shared ones of a steered pair), with
  x0(n) = (z_t - sigma [s_r e_c - (s_r - 1) e(z_t, n)]) / alpha.  Its gradient vanishes at s_r = 1.
- dpo: L = -log sigmoid(u(n)), Diffusion-DPO's margin of winner over loser (`psd.score.implicit_margin`): the rewards
  only rank.
- zeroth_order: the reward objective, estimated from a few mirrored perturbations of n: any black box will do.

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
from torch.nn.functional import cosine_similarity, logsigmoid, normalize

from psd import draws, score
from psd.events import NegativeUpdated
from psd.methods import IMPLICIT_BETA
from psd.preset import Preset
from psd.protocols import Prior
from psd.step import Pair, Sample, Score, Step

CLIP_NORM = 1.0  # of the gradient
PERTURBATIONS = 4  # mirrored pairs of the zeroth-order estimate: 8 more network rows a view
PERTURBATION_RMS = 0.05  # of n0's own RMS


@dataclass
class Negative:
    """The embedding, where it started, and its optimiser."""

    value: Float[Tensor, "l d"]
    start: Float[Tensor, "l d"]
    optimiser: torch.optim.Adam

    @classmethod
    def create(cls, preset: Preset, prior: Prior, learned: Float[Tensor, "l d"] | None) -> Negative:
        """Starts at the encoded negative prompt, or at a start ``learned`` by earlier runs (preset.negative_start)."""
        start = (prior.embed(preset.negative_prompt) if learned is None else learned).detach().float()
        value = start.clone()
        return cls(value, start, torch.optim.Adam([value], lr=preset.negative_lr))

    def due(self, preset: Preset, step: int, t: int, total: int) -> bool:
        """Whether optimisation step ``step`` (from 0) updates n: every K_n steps, at t / T <= t_n."""
        return its_turn(preset, step) and t <= preset.negative_t_max * total

    @contextmanager
    def undone_by_errors(self) -> Iterator[None]:
        """Puts n and its optimiser back as they were when the block raises."""
        value, optimiser = self.value.clone(), deepcopy(self.optimiser.state_dict())
        try:
            yield
        except BaseException:
            self.value.copy_(value)
            self.optimiser.load_state_dict(optimiser)
            raise

    def update(self, step: Step, found: Score) -> dict[str, float]:
        """One Adam step on n, then the projection RMS(n - n0) <= r_n; returns the statistics of the update.

        Nothing moves when the objective needs a pair and the step had none: then the result is empty.  What is not
        finite after Adam's step raises with n moved: `undone_by_errors` takes it back.
        """
        preset, before = step.preset, None
        kind = objective(step)
        if kind == "dpo":
            if found.pair is None:
                return {}
            gradient = pair_gradient(step, found.pair, self.value, self.start)
        elif kind == "reward":
            gradient, climbed = reward_gradient(step, found.shown, self.value)
            before = climbed if step.differentiable == step.weights else None
        else:
            gradient = zeroth_order_gradient(step, found.shown, self.value, self.start)
        gradient = gradient + 2 * preset.negative_pull * (self.value - self.start) / self.value.numel()
        length = score.require_finite("gradient of the negative embedding", gradient).norm()

        with torch.no_grad():
            if before is None:
                before = rewarded(step, found.shown, self.value[None])
            self.value.grad = gradient * (CLIP_NORM / length.clamp_min(CLIP_NORM))
            self.optimiser.param_groups[0]["lr"] = preset.negative_lr
            self.optimiser.step()
            self.value.grad = None
            drift = rms(self.value - self.start)
            if drift > preset.negative_radius:
                self.value.copy_(self.start + (self.value - self.start) * (preset.negative_radius / drift))
            after = rewarded(step, found.shown, self.value[None])
        return {
            "negative/gradient": float(length),
            "negative/reward_before": float(before.mean()),
            "negative/reward_after": float(after.mean()),
        }

    def statistics(self, embedding: Float[Tensor, "l d"]) -> dict[str, float]:
        """Where n stands: drift from its start, cosines to its start and to the prompt, over the whole embedding."""
        n = self.value.flatten()
        return {
            "negative/drift": float(rms(self.value - self.start)),
            "negative/cosine_start": float(cosine_similarity(n, self.start.flatten(), dim=0)),
            "negative/cosine_prompt": float(cosine_similarity(n, embedding.flatten(), dim=0)),
            "negative/norm": float(n.norm()),
        }

    def event(self, prior: Prior, preset: Preset, step: int, metrics: Mapping[str, float]) -> NegativeUpdated:
        """The update as the world sees it; nearest words by cosine in the prior's vocabulary, in its output space."""
        words, vectors = prior.vocabulary()
        nearest = (normalize(self.value, dim=-1) @ normalize(vectors.to(self.value), dim=-1).T).argmax(-1)
        return NegativeUpdated(
            step=step,
            tokens=tuple(prior.tokens(preset.negative_prompt)),
            drift=tuple((self.value - self.start).square().mean(-1).sqrt().tolist()),
            nearest=tuple(words[i] for i in nearest.tolist()),
            metrics=dict(metrics),
        )


def its_turn(preset: Preset, step: int) -> bool:
    """Whether ``step`` is a K_n-th one, of psd only.

    The sibling methods keep the plain negative prompt, so that they stay what their authors describe.
    """
    return preset.method == "psd" and preset.negative and (step + 1) % preset.negative_every == 0


def chance(preset: Preset, step: int, total: int) -> float:
    """Of `Negative.due` at ``step``, before its t is drawn."""
    low, high = draws.bounds(preset, step, total)
    allowed = min(high, math.floor(preset.negative_t_max * total)) - low + 1
    return max(allowed, 0) / (high - low + 1) if its_turn(preset, step) else 0.0


# ---------------------------------------------------------------------------------------------------------- objectives


def objective(step: Step) -> str:
    """The preset's objective; auto: dpo for reading C and where no reward has a gradient, else reward."""
    if step.preset.negative_objective != "auto":
        return step.preset.negative_objective
    return "dpo" if step.preset.reading == "C" or not step.differentiable else "reward"


def rewarded(step: Step, shown: Sample, values: Float[Tensor, "p l d"]) -> Float[Tensor, " p"]:
    """The mixture, in Bradley-Terry scales, of x0(n) under each of ``p`` negatives: mean over groups and views.

    While gradients are on, only the differentiable rewards take part.
    """
    weights = step.differentiable if torch.is_grad_enabled() else step.weights
    noise_pred_n = torch.cat(step.predict(shown.z_t[None], *values))
    guided = score.guide(noise_pred_n, shown.noise_pred_c, step.preset.reward_guidance_scale)
    ratings = step.rate(step.decode(step.clean(shown.z_t, guided)), weights)
    scales = {name: step.rewards[name].scale for name in weights}
    return step.combine(ratings, weights, scales).mean((1, 2))


def reward_gradient(
    step: Step, shown: Sample, value: Float[Tensor, "l d"]
) -> tuple[Float[Tensor, "l d"], Float[Tensor, " 1"]]:
    """Gradient of -mean R / tau with respect to n, through the network, decoder and rewards; and mean R / tau."""
    with torch.enable_grad():
        leaf = value.detach().requires_grad_()
        climbed = rewarded(step, shown, leaf[None])
        (gradient,) = torch.autograd.grad(-climbed.sum(), leaf)
    return gradient, climbed.detach()


def pair_gradient(
    step: Step, pair: Pair, value: Float[Tensor, "l d"], start: Float[Tensor, "l d"]
) -> Float[Tensor, "l d"]:
    """Gradient of -log sigmoid(u(n)), mean over the groups whose members differ in reward."""
    differs = (pair.gap > 0).any(dim=1)
    z_t = torch.stack([pair.win.z_t, pair.lose.z_t])
    noise_pred_c = torch.stack([pair.win.noise_pred_c, pair.lose.noise_pred_c])
    scale = step.preset.preference_scale
    with torch.no_grad():
        (reference_n,) = step.predict(z_t, start)
        reference = score.guide(reference_n, noise_pred_c, scale)
    with torch.enable_grad():
        leaf = value.detach().requires_grad_()
        (noise_pred_n,) = step.predict(z_t, leaf)
        guided = score.guide(noise_pred_n, noise_pred_c, scale)
        margin = score.implicit_margin(
            (pair.win.noise, guided[0], reference[0]), (pair.lose.noise, guided[1], reference[1]), IMPLICIT_BETA
        )
        loss = (-logsigmoid(margin) * differs).sum() / differs.sum().clamp_min(1)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def zeroth_order_gradient(
    step: Step, shown: Sample, value: Float[Tensor, "l d"], start: Float[Tensor, "l d"]
) -> Float[Tensor, "l d"]:
    """mean_i [L(n + mu x_i) - L(n - mu x_i)] / (2 mu) x_i, L = -mean R / tau, Gaussian x_i: forward calls only."""
    directions = torch.randn(PERTURBATIONS, *value.shape, generator=step.generator).to(value)
    mu = PERTURBATION_RMS * rms(start)
    with torch.no_grad():
        ratings = rewarded(step, shown, torch.cat([value + mu * directions, value - mu * directions]))
    slopes = (ratings[PERTURBATIONS:] - ratings[:PERTURBATIONS]) / (2 * mu)
    return (slopes[:, None, None] * directions).mean(0)


def rms(value: Tensor) -> Tensor:
    return value.square().mean().sqrt()
