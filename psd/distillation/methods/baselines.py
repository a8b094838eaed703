"""The sibling methods to compare with: SDS, CSD, best of N, DreamDPO, RewardSDS, pixel gradient."""

from __future__ import annotations

import torch

from psd.distillation.methods.base_term import base_gradient, first_candidate_index, rate_candidates, residual_gradient
from psd.distillation.methods.denoising import predict_candidates
from psd.distillation.results import Score
from psd.distillation.step import StepContext
from psd.distillation.tensors import group_norm, normalise_groups, per_view, pick_candidate
from psd.runtime.deferred import scalar

# DreamDPO's tau: closer pairs get the winner's SDS alone; in Bradley-Terry scales (.001 for HPS, whose scale is .01).
DREAMDPO_THRESHOLD = 0.1
REWARDSDS_SHARES = (0.9, -0.1)  # of the mean over the best two, and over the worst two candidates
REWARDSDS_ACTIVE = 0.7  # of the run; then the candidates are averaged


# ------------------------------------------------------------------------------------------------------- the baselines


def sds(step: StepContext) -> Score:
    """Score distillation with a multi-view prior (DreamFusion, MVDream): one noise, no reward."""
    found = predict_candidates(step)
    return Score(base_gradient(step, found).mean(0), found.sample(first_candidate_index(step)))


def csd(step: StepContext) -> Score:
    """Classifier score distillation (Yu et al. 2023): only the guidance direction, w s (e_c - e_n).

    s is kept so that the regularisers weigh against it as they do against SDS.
    """
    found = predict_candidates(step)
    toward, away = (residual_gradient(step, found.z_t, x) for x in (found.noise_pred_toward, found.noise_pred_n))
    return Score(step.preset.guidance_scale * (toward - away).mean(0), found.sample(first_candidate_index(step)))


def best_of_n(step: StepContext) -> Score:
    """SDS on the noise whose prediction the rewards like best."""
    found = predict_candidates(step)
    ranking = step.rank_candidates(rate_candidates(step, found), by="group", units=step.scales)
    metrics = {"pair/gap": scalar(ranking.gap.mean()), **ranking.agreement_metrics}
    return Score(pick_candidate(base_gradient(step, found), ranking.win), found.sample(ranking.win), metrics=metrics)


def dreamdpo(step: StepContext) -> Score:
    """DreamDPO (Zhou et al. 2025): winner guided, loser conditional, ranked per view; SDS on the winner if too close.

    gap >= tau: (e~_w - noise_w) - (e_c,l - noise_l); else e~_w - noise_w; in the form of the base.
    """
    found = predict_candidates(step)
    ranking = step.rank_candidates(rate_candidates(step, found), by="view", units=step.scales)
    win, lose = found.sample(ranking.win), found.sample(ranking.lose)
    pushed = per_view(ranking.gap >= DREAMDPO_THRESHOLD)
    attract = pick_candidate(base_gradient(step, found), ranking.win)
    repel = torch.where(pushed, residual_gradient(step, lose.z_t, lose.noise_pred_c), torch.zeros_like(attract))
    metrics = {"pair/gap": scalar(ranking.gap.mean()), "pair/pushed": scalar(pushed.float().mean())}
    return Score(attract - repel, win, metrics=metrics)


def rewardsds(step: StepContext) -> Score:
    """RewardSDS (Chachy et al. 2025) with its cheap one-step ranking: 0.9 of the best two minus 0.1 of the worst two.

    With fewer than four candidates: the best and the worst one.  After 70 % of the run: all candidates alike.
    """
    found = predict_candidates(step)
    gradients = base_gradient(step, found)
    if step.progress >= REWARDSDS_ACTIVE:
        return Score(gradients.mean(0), found.sample(first_candidate_index(step)))
    ratings = step.group_means(rate_candidates(step, found))
    order = step.combine_ratings(ratings, step.weights, step.scales).argsort(dim=0, descending=True, stable=True)
    few = min(2, len(order) // 2)
    best, worst = (
        torch.stack([pick_candidate(gradients, i) for i in ends]).mean(0) for ends in (order[:few], order[-few:])
    )
    return Score(REWARDSDS_SHARES[0] * best + REWARDSDS_SHARES[1] * worst, found.sample(order[0]))


def sds_with_reward_gradient(step: StepContext) -> Score:
    """SDS plus the reward's own pixel gradient on the render: the control that PSD argues against (cf. DreamReward).

    In pixels, before the encoder: images move along -g + w |g| G / |G|, g the base gradient pulled back through it, G
    the mixture's gradient at the render, norms per group over all views, w behind the gate of the pair.
    """
    plain, weight = sds(step), step.preset.reward_gradient_weight * step.gate
    if weight == 0:
        return plain
    gradient = step.reward_gradient(step.images, lambda images: images)
    pixels = -weight * group_norm(step.pull_back(plain.gradient)) * normalise_groups(gradient)
    ratio = weight * scalar((group_norm(gradient) > 0).float().mean())
    return Score(plain.gradient, plain.shown, pixels=pixels, metrics={"pair/ratio": ratio})
