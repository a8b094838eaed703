"""The two pairs of Preference Score Distillation, from a step to its score, a gradient with respect to z0.

Both call the models through `psd.distillation.step.StepContext` and share the base term of MVDream: `base_gradient` is
SDS with guidance, as a distance to the predicted image.  They are called without gradients; the few places that need
one switch it on themselves, and no gradient ever passes through the network to the scene.

Only the abstract of Preference Score Distillation (arXiv 2603.01594) was available: the random pair is our reading of
it, and the steered pair, the default, is our own construction.
# Differs from the paper: the steered pair uses the reward's gradient at x0, and does not see the negative embedding.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from psd.distillation import formulas
from psd.distillation.methods.base_term import (
    base_gradient,
    first_candidate_index,
    rate_candidates,
    steering_prediction,
)
from psd.distillation.methods.denoising import predict_candidates, select_sample
from psd.distillation.methods.gradient_estimate import estimate_gradient
from psd.distillation.results import Pair, Ranking, Score
from psd.distillation.step import StepContext
from psd.distillation.tensors import group_norm, normalise_groups, per_view, pick_candidate
from psd.runtime.deferred import Number, scalar

# ------------------------------------------------------------------------------------ Preference Score Distillation


def random_pair(step: StepContext) -> Score:
    """Two (or N) noises on the same render at the same t, ranked by the rewards: the literal reading of the paper.

    P = d_w - d_l, d = noise_pred - noise the residuals of winner and loser, which stand for the two scores in
    grad log p(win | z_t) = (1 - sigmoid(u)) (grad log p(z_t | win) - grad log p(z_t | lose)).  In the form of the base
    it is the difference of their clean predictions: with a common z0, x0_w - x0_l = -(sigma / alpha) P.
    The base is averaged over all noises; with preference weight 0 nothing else is left, bit for bit.
    """
    preset, weight = step.preset, step.preference_weight
    found = predict_candidates(step)
    gradient = base_gradient(step, found).mean(0)
    if weight == 0:
        return Score(gradient, found.sample(first_candidate_index(step)))

    # ---- rank the predictions; best and worst of N stand for win and lose
    ranking = step.rank_candidates(rate_candidates(step, found), by="group", units=step.units)
    win, lose = found.sample(ranking.win), found.sample(ranking.lose)

    # ---- reward-based scaling
    confidence = formulas.preference_scaling(ranking.gap, step.gap_mean, preset.scaling, preset.kappa)

    # ---- preference score, in the form of the base
    x0_pred = step.clean(found.z_t, found.guided_noise_pred(preset.preference_scale))
    direction = (pick_candidate(x0_pred, ranking.lose) - pick_candidate(x0_pred, ranking.win)) / step.rows
    term = weight * per_view(confidence) * direction
    metrics = pair_metrics(ranking, confidence, term, gradient)
    return Score(gradient + term, win, Pair(win, lose, ranking.gap), ranking.raw_gaps, metrics=metrics)


def steered_pair(step: StepContext) -> Score:
    """A pair that differs on purpose.  One noise; its twin is nudged along the reward's gradient at x0.

    The gradient never enters the scene: only what the frozen denoiser makes of the nudge does, P_x = x0(z_t+) - x0(z_t)
    of the conditional prediction, whose Jacobian keeps what the prior finds plausible (the guided prediction's is not
    positive: the nudge mostly loses).  Its length is rho conf |base|, so its own magnitude and the step of the finite
    difference drop out; with preference_beta no more than what tilting the prior by exp(beta R) asks for
    (`tilted_prior_length`), so that it ends where little is to be gained.
    """
    preset, weight = step.preset, step.preference_weight
    alpha_sigma = step.alpha_sigma

    # ---- the base, on rows c and n
    found = predict_candidates(step)
    gradient = base_gradient(step, found)[0]
    shared = found.sample(first_candidate_index(step))
    if weight == 0:
        return Score(gradient, shared)

    # ---- where the reward wants x0 to go: one reward backward, none of the network; or an estimate
    x0_pred, contrast = steering_prediction(step, found)
    direction = steering_direction(step, x0_pred[0])

    # ---- the twin, r sqrt(dim) away in noise units: the random pair with noise_w = noise + r G / |G|
    nudge = (preset.steer_radius * direction[0].numel() ** 0.5 * normalise_groups(direction))[None]
    z_t, noise = shared.z_t + alpha_sigma[1] * nudge, shared.noise + nudge

    # ---- predictions of both, ranked; the pair is swapped if the steered member lost
    (noise_pred_c,) = step.predict(z_t, step.embedding)
    z_t, noise = torch.cat([z_t, found.z_t]), torch.cat([noise, found.noise])
    noise_pred_c = torch.cat([noise_pred_c, found.noise_pred_c])
    x0_pair = step.clean(z_t, noise_pred_c)
    ranking = step.rank_candidates(step.rate_images(step.decode(x0_pair), step.weights), by="group", units=step.units)

    # ---- target = x0' + rho conf |z0 - x0'| P_x / |P_x|
    confidence = formulas.preference_scaling(ranking.gap, step.gap_mean, preset.scaling, preset.kappa)
    confidence = (
        confidence * (group_norm(direction) > 0)[:, :, 0, 0, 0]
    )  # no direction, no pair: no rounding errors either
    ascent = pick_candidate(x0_pair, ranking.win) - pick_candidate(x0_pair, ranking.lose)
    length = weight * per_view(confidence) * group_norm(gradient)
    if preset.preference_beta > 0 and preset.steer_by == "gradient":  # an estimate has a direction, but no length
        length = length.minimum(tilted_prior_length(step, direction, ascent) / step.rows)
    term = -length * normalise_groups(ascent)
    win, lose = (select_sample(z_t, noise, noise_pred_c, index) for index in (ranking.win, ranking.lose))
    metrics = {**pair_metrics(ranking, confidence, term, gradient), "pair/contrast": contrast}
    return Score(gradient + term, shared, Pair(win, lose, ranking.gap), ranking.raw_gaps, metrics=metrics)


def tilted_prior_length(
    step: StepContext, direction: Float[Tensor, "b v c h w"], ascent: Float[Tensor, "b v c h w"]
) -> Float[Tensor, "b 1 1 1 1"]:
    """The length by which E[x0 | z_t] moves, to first order, if exp(beta R) tilts the prior: |beta Cov(x0 | z_t) G|.

    ``direction`` is G, ``ascent`` P_x.  Cov = (sigma^2 / alpha) J (Tweedie's second order), J the prediction's
    Jacobian, and P_x = sigma r sqrt(dim) J G / |G| is what the nudge of length r sqrt(dim) made of it.  It fades at low
    noise, and where the reward is content.
    """
    alpha, sigma = step.alpha_sigma
    nudge = step.preset.steer_radius * direction[0].numel() ** 0.5
    return step.preset.preference_beta * sigma / alpha * group_norm(direction) / nudge * group_norm(ascent)


def steering_direction(step: StepContext, z0: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c h w"]:
    """The direction in z0 in which the reward rises: its gradient through the decoder, or an estimate of it."""
    return step.reward_gradient(z0, step.decode) if step.preset.steer_by == "gradient" else estimate_gradient(step, z0)


def pair_metrics(ranking: Ranking, confidence: Tensor, term: Tensor, gradient: Tensor) -> dict[str, Number]:
    """``pair/gap`` in running means (Bradley-Terry scales until the first is known), ``pair/ratio`` |term| / |base|."""
    ratio = group_norm(term) / group_norm(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
    means = {"gap": ranking.gap, "confidence": confidence, "ratio": ratio, "win_first": (ranking.win == 0).float()}
    return {f"pair/{name}": scalar(value.mean()) for name, value in means.items()} | ranking.agreement_metrics
