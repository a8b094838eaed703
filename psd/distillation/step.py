"""One step as the methods see it: the frozen context, the calls to the models, and what a method hands back.

Every call to prior, decoder and rewards goes through `StepContext`, which stacks candidates and conditions into one
batch, times the call and checks its results.  `StepContext` itself never switches gradients on or off: the caller
decides. Axes: k candidate, b group, v view, c channel, h w (latent) pixels, l token, d feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from psd.config.preset import Preset
from psd.distillation import formulas, gap_scale
from psd.distillation.results import Ranking
from psd.distillation.tensors import Latents, clamp_keeping_gradient, pick_candidate
from psd.geometry.cameras import Cameras
from psd.models.interfaces import Prior, Reward
from psd.models.prior.view_prompts import PromptEmbedding
from psd.runtime.deferred import DeferredChecks, scalar
from psd.runtime.timing import Clock

REWARD_GUIDANCE = 7.5  # s_r, guidance of the prediction that a reward sees: what such pictures are usually made with


@dataclass(frozen=True)
class StepContext:
    """The frozen context of one step, and the calls that a method makes to prior, decoder and rewards.

    Gradients are on or off as the caller has them.  Every result is checked with ``readings``, which raise
    `NonFiniteError` when they are settled.
    """

    preset: Preset  # with the live values of this step
    prior: Prior
    rewards: Mapping[str, Reward]
    gap_scale: gap_scale.GapScale
    cameras: Cameras
    images: Float[Tensor, "b v 3 h w"]  # the render, detached
    z0: Float[Tensor, "b v c h2 w2"]  # its latents, detached
    noise: Float[Tensor, "k b v c h2 w2"]
    t: int
    progress: float  # of the run, in [0, 1)
    condition: PromptEmbedding  # c, the prompt's embedding, and what pushes away from it
    negative: Float[Tensor, "l d"]  # n, as it is now
    pull_back: Callable[[Float[Tensor, "b v c h2 w2"]], Float[Tensor, "b v 3 h w"]]  # encoder's vector-Jacobian product
    generator: torch.Generator  # the noises', for what a method draws itself
    clock: Clock = field(default_factory=Clock)
    readings: DeferredChecks = field(default_factory=DeferredChecks)  # what is checked and shown, read once a step

    # ------------------------------------------------------------------------------------------------------ constants

    @cached_property
    def alpha_sigma(self) -> tuple[float, float]:
        return self.prior.alpha_sigma(self.t)

    @property
    def rows(self) -> int:
        """B = groups x views: losses are means over the images of a step."""
        return self.z0.shape[0] * self.z0.shape[1]

    @property
    def gate(self) -> float:
        """The opening of the gate to the reward at this noise level, in [0, 1]."""
        return formulas.gate_opening(self.t, self.prior.levels, self.preset.preference_t_max)

    @property
    def preference_weight(self) -> float:
        """lambda_t: the preset's weight, behind the gate."""
        return self.preset.preference_weight * self.gate

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the rewards that count, summing to 1."""
        active = {name: weight for name, weight in self.preset.rewards.items() if weight > 0}
        return {name: weight / sum(active.values()) for name, weight in active.items()}

    @property
    def differentiable_weights(self) -> dict[str, float]:
        """The weights of the rewards that have a gradient."""
        return {name: weight for name, weight in self.weights.items() if self.rewards[name].differentiable}

    @cached_property
    def units(self) -> dict[str, float]:
        """The unit of each reward, by which it is divided: its running mean gap, until then its Bradley-Terry scale."""
        return {name: self.gap_scale.mean(name, self.t) or reward.scale for name, reward in self.rewards.items()}

    @property
    def scales(self) -> dict[str, float]:
        """The Bradley-Terry scale of each reward."""
        return {name: reward.scale for name, reward in self.rewards.items()}

    @property
    def gap_mean(self) -> float:
        """The mean gap in those units: 1, or 0 while the running mean of some weighted reward is unknown."""
        return float(all(self.gap_scale.mean(name, self.t) > 0 for name in self.weights))

    @property
    def embedding(self) -> Float[Tensor, "l d"] | Float[Tensor, "b l d"]:
        return self.condition.embedding

    @cached_property
    def reward_view_index(self) -> slice | list[int]:
        """The views that rewards see: all, or some at about equal distances.

        A slice where the distances are equal: a GPU would wait for a list of indices to be copied.
        """
        views, few = self.z0.shape[1], self.preset.reward_views
        if not 0 < few < views:
            return slice(None)
        return [i * views // few for i in range(few)] if views % few else slice(None, None, views // few)

    # ---------------------------------------------------------------------------------------------------------- calls

    def noisy_latents(self, noise: Latents) -> Latents:
        return formulas.add_noise(self.z0, noise, *self.alpha_sigma)

    def predict(self, z_t: Latents, *embeddings: Float[Tensor, "l d"] | Float[Tensor, "b l d"]) -> tuple[Latents, ...]:
        """Noise predictions under each embedding, all rows in one network call."""
        candidates, groups = z_t.shape[:2]
        rows = rearrange(z_t, "k b v c h w -> (k b) v c h w").repeat(len(embeddings), 1, 1, 1, 1)
        conditions = torch.cat(
            [e.expand(candidates * groups, -1, -1) if e.ndim == 2 else e.repeat(candidates, 1, 1) for e in embeddings]
        )
        cameras = self.cameras[torch.arange(groups, device=z_t.device).repeat(len(embeddings) * candidates)]
        with self.clock.part("unet"):
            noise_pred = self.prior.predict_noise(rows, self.t, conditions, cameras)
        self.readings.check_finite("noise prediction", noise_pred)
        return tuple(noise_pred.unflatten(0, (len(embeddings), candidates, groups)).unbind(0))

    def clean(self, z_t: Tensor, noise_pred: Tensor) -> Tensor:
        """The clean latents that a prediction implies, clamped where the prior's data are bounded."""
        x0_pred = formulas.predict_x0(z_t, noise_pred, *self.alpha_sigma)
        bound = self.prior.latent_clamp
        return x0_pred if bound is None else x0_pred.clamp(-bound, bound)

    def decode(self, z0: Float[Tensor, "*k v c h2 w2"]) -> Float[Tensor, "*k s 3 h w"]:
        """Images in [0, 1] of the views that the rewards see."""
        z0 = z0[..., self.reward_view_index, :, :, :]
        with self.clock.part("decode"):
            images = clamp_keeping_gradient(self.prior.decode(z0.flatten(0, -5)), 0, 1)
        return self.readings.check_finite("decoded prediction", images).unflatten(0, z0.shape[:-4])

    def rate_images(
        self, images: Float[Tensor, "*k v 3 h w"], names: Mapping[str, float]
    ) -> dict[str, Float[Tensor, "*k v"]]:
        """Raw scores of images by each named reward."""
        ratings = {}
        for name in names:
            with self.clock.part("reward"):
                rating = self.rewards[name](images.flatten(0, -5), self.preset.prompt)
            ratings[name] = self.readings.check_finite(f"reward {name}", rating).unflatten(0, images.shape[:-4])
        return ratings

    def combine_ratings(
        self, ratings: Mapping[str, Tensor], weights: Mapping[str, float], units: Mapping[str, float]
    ) -> Tensor:
        """Sums the ratings, each in its own unit, with their weights."""
        return sum((weight / units[name] * ratings[name] for name, weight in weights.items()), torch.zeros(()))

    def rank_candidates(
        self, ratings: Mapping[str, Float[Tensor, "k b v"]], *, by: str, units: Mapping[str, float]
    ) -> Ranking:
        """Best and worst of the candidates, per group (joint attention couples its views) or per view."""
        half, half_agrees = {}, None
        if by == "group":
            half = {name: rating[..., ::2] for name, rating in ratings.items() if rating.shape[-1] > 1}
            ratings = self.group_means(ratings)
        combined = self.combine_ratings(ratings, self.weights, units)
        if half:  # whether fewer `reward_views` would rank alike, for the few operations of a mean
            winner = self.combine_ratings(self.group_means(half), self.weights, units).argmax(0)
            half_agrees = scalar((winner == combined.argmax(0)).float().mean())
        win, lose = combined.argmax(0), combined.argmin(0)
        raw_gaps = {
            name: scalar((pick_candidate(rating, win) - pick_candidate(rating, lose)).abs().mean())
            for name, rating in ratings.items()
        }
        return Ranking(win, lose, pick_candidate(combined, win) - pick_candidate(combined, lose), raw_gaps, half_agrees)

    def group_means(self, ratings: Mapping[str, Float[Tensor, "k b s"]]) -> dict[str, Float[Tensor, "k b v"]]:
        """Means over the views that the rewards see, repeated for every view of the group."""
        views = self.z0.shape[1]
        return {name: rating.mean(2, keepdim=True).expand(-1, -1, views) for name, rating in ratings.items()}

    def reward_gradient(
        self, inputs: Float[Tensor, "b v c h w"], image: Callable[[Tensor], Float[Tensor, "b v 3 h w"]]
    ) -> Float[Tensor, "b v c h w"]:
        """Gradient of the differentiable mixture at ``inputs``, seen through ``image``; reaches no parameter.

        In the unit of the mixture: `units`, or the rewards' own Bradley-Terry scales where the preset has a beta, which
        would mean nothing in units that a run measures itself.
        """
        names = self.differentiable_weights
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            units = self.scales if self.preset.preference_beta > 0 else self.units
            total = self.combine_ratings(self.rate_images(image(leaf), names), names, units).sum()
            with self.clock.part("backward"):
                (gradient,) = torch.autograd.grad(total, leaf)
        return self.readings.check_finite("reward gradient", gradient)
