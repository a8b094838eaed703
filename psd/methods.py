"""What each method does with candidates and rewards, side by side: Step -> Score, a gradient with respect to z0.

All share the seams of `psd.step.Step` and the base term of MVDream: `base` is SDS with guidance, as a distance to the
predicted image.  They are called without gradients; the few places that need one switch it on themselves, and no
gradient ever passes through the network to the scene.

Only the abstract of Preference Score Distillation (arXiv 2603.01594) was available: the random pair is our reading of
it, and the steered pair, the default, is our own construction.
# Differs from the paper: the steered pair uses the reward's gradient at x0, and does not see the negative embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from psd import score
from psd.denoise import Denoised, chosen, denoise
from psd.preset import Preset, PresetError
from psd.protocols import Models
from psd.readings import Number, number
from psd.step import REWARD_GUIDANCE, Latents, Pair, Ranking, Score, Step, norm, per_view, pick, unit
from psd.zeroth import estimated_gradient

# DreamDPO's tau: closer pairs get the winner's SDS alone; in Bradley-Terry scales (.001 for HPS, whose scale is .01).
DREAMDPO_THRESHOLD = 0.1
REWARDSDS_SHARES = (0.9, -0.1)  # of the mean over the best two, and over the worst two candidates
REWARDSDS_ACTIVE = 0.7  # of the run; then the candidates are averaged


def base(step: Step, found: Denoised) -> Latents:
    """Each candidate's gradient of the base term (MVDream): (z0 - x0') / B, x0' the rescaled guided prediction."""
    guided = found.guided(step.preset.guidance_scale)
    x0_pred, x0_pred_c = step.clean(found.z_t, guided), step.clean(found.z_t, found.noise_pred_c)
    return (step.z0 - score.rescale(x0_pred, x0_pred_c, step.preset.rescale)) / step.rows


def residual(step: Step, z_t: Tensor, noise_pred: Tensor) -> Tensor:
    """One prediction in the form of the base: (z0 - x0) / B, with x0 clamped as there."""
    return (step.z0 - step.clean(z_t, noise_pred)) / step.rows


def rate(step: Step, found: Denoised) -> dict[str, Float[Tensor, "k b v"]]:
    """What the rewards say of each candidate's prediction."""
    return step.rate(step.decode(image_like(step, found)), step.weights)


def image_like(step: Step, found: Denoised) -> Latents:
    """The prediction of z0, guided by s_r and rescaled: what a reward can read."""
    guided = found.guided(REWARD_GUIDANCE)
    x0_pred, x0_pred_c = step.clean(found.z_t, guided), step.clean(found.z_t, found.noise_pred_c)
    return score.rescale(x0_pred, x0_pred_c, step.preset.rescale)


def plainly_guided(step: Step, found: Denoised) -> Latents:
    """The prediction of z0 under the base's guidance, as it is: where the steered pair asks for the gradient."""
    return step.clean(found.z_t, found.guided(step.preset.guidance_scale))


def first(step: Step) -> Tensor:
    """The index of candidate 0 everywhere, for methods that rank nothing."""
    return torch.zeros(step.z0.shape[:2], dtype=torch.long, device=step.z0.device)


# ------------------------------------------------------------------------------------------------------- the baselines


def sds(step: Step) -> Score:
    """Score distillation with a multi-view prior (DreamFusion, MVDream): one noise, no reward."""
    found = denoise(step)
    return Score(base(step, found).mean(0), found.sample(first(step)))


def csd(step: Step) -> Score:
    """Classifier score distillation (Yu et al. 2023): only the guidance direction, w s (e_c - e_n).

    s is kept so that the regularisers weigh against it as they do against SDS.
    """
    found = denoise(step)
    toward, away = (residual(step, found.z_t, x) for x in (found.toward, found.noise_pred_n))
    return Score(step.preset.guidance_scale * (toward - away).mean(0), found.sample(first(step)))


def best_of_n(step: Step) -> Score:
    """SDS on the noise whose prediction the rewards like best."""
    found = denoise(step)
    ranking = step.rank(rate(step, found), by="group", units=step.scales)
    metrics = {"pair/gap": number(ranking.gap.mean()), **ranking.agreement}
    return Score(pick(base(step, found), ranking.win), found.sample(ranking.win), metrics=metrics)


def dreamdpo(step: Step) -> Score:
    """DreamDPO (Zhou et al. 2025): winner guided, loser conditional, ranked per view; SDS on the winner if too close.

    gap >= tau: (e~_w - noise_w) - (e_c,l - noise_l); else e~_w - noise_w; in the form of the base.
    """
    found = denoise(step)
    ranking = step.rank(rate(step, found), by="view", units=step.scales)
    win, lose = found.sample(ranking.win), found.sample(ranking.lose)
    pushed = per_view(ranking.gap >= DREAMDPO_THRESHOLD)
    attract = pick(base(step, found), ranking.win)
    repel = torch.where(pushed, residual(step, lose.z_t, lose.noise_pred_c), torch.zeros_like(attract))
    metrics = {"pair/gap": number(ranking.gap.mean()), "pair/pushed": number(pushed.float().mean())}
    return Score(attract - repel, win, metrics=metrics)


def rewardsds(step: Step) -> Score:
    """RewardSDS (Chachy et al. 2025) with its cheap one-step ranking: 0.9 of the best two minus 0.1 of the worst two.

    With fewer than four candidates: the best and the worst one.  After 70 % of the run: all candidates alike.
    """
    found = denoise(step)
    gradients = base(step, found)
    if step.progress >= REWARDSDS_ACTIVE:
        return Score(gradients.mean(0), found.sample(first(step)))
    ratings = step.of_groups(rate(step, found))
    order = step.combine(ratings, step.weights, step.scales).argsort(dim=0, descending=True, stable=True)
    few = min(2, len(order) // 2)
    best, worst = (torch.stack([pick(gradients, i) for i in ends]).mean(0) for ends in (order[:few], order[-few:]))
    return Score(REWARDSDS_SHARES[0] * best + REWARDSDS_SHARES[1] * worst, found.sample(order[0]))


def reward_gradient(step: Step) -> Score:
    """SDS plus the reward's own pixel gradient on the render: the control that PSD argues against (cf. DreamReward).

    In pixels, before the encoder: images move along -g + w |g| G / |G|, g the base gradient pulled back through it, G
    the mixture's gradient at the render, norms per group over all views, w behind the gate of the pair.
    """
    plain, weight = sds(step), step.preset.reward_gradient_weight * step.open_share
    if weight == 0:
        return plain
    gradient = step.reward_gradient(step.images, lambda images: images)
    pixels = -weight * norm(step.pull_back(plain.gradient)) * unit(gradient)
    ratio = weight * number((norm(gradient) > 0).float().mean())
    return Score(plain.gradient, plain.shown, pixels=pixels, metrics={"pair/ratio": ratio})


# ------------------------------------------------------------------------------------ Preference Score Distillation


def psd(step: Step) -> Score:
    """Preference Score Distillation: the base term plus a preference score, by the preset's kind of pair."""
    return steered_pair(step) if step.preset.pair == "steered" else random_pair(step)


def random_pair(step: Step) -> Score:
    """Two (or N) noises on the same render at the same t, ranked by the rewards: the literal reading of the paper.

    P = d_w - d_l, d = noise_pred - noise the residuals of winner and loser, which stand for the two scores in
    grad log p(win | z_t) = (1 - sigmoid(u)) (grad log p(z_t | win) - grad log p(z_t | lose)).  In the form of the base
    it is the difference of their clean predictions: with a common z0, x0_w - x0_l = -(sigma / alpha) P.
    The base is averaged over all noises; with preference weight 0 nothing else is left, bit for bit.
    """
    preset, weight = step.preset, step.preference_weight
    found = denoise(step)
    gradient = base(step, found).mean(0)
    if weight == 0:
        return Score(gradient, found.sample(first(step)))

    # ---- 4, 5: rank the predictions; best and worst of N stand for win and lose
    ranking = step.rank(rate(step, found), by="group", units=step.units)
    win, lose = found.sample(ranking.win), found.sample(ranking.lose)

    # ---- 6: reward-based scaling
    confidence = score.scaling(ranking.gap, step.gap_mean, preset.scaling, preset.kappa)

    # ---- 7, 8: preference score, in the form of the base
    x0_pred = step.clean(found.z_t, found.guided(preset.preference_scale))
    direction = (pick(x0_pred, ranking.lose) - pick(x0_pred, ranking.win)) / step.rows
    term = weight * per_view(confidence) * direction
    metrics = pair_metrics(ranking, confidence, term, gradient)
    return Score(gradient + term, win, Pair(win, lose, ranking.gap), ranking.raw_gaps, metrics=metrics)


def steered_pair(step: Step) -> Score:
    """A pair that differs on purpose.  One noise; its twin is nudged along the reward's gradient at x0.

    The gradient never enters the scene: only what the frozen denoiser makes of the nudge does, P_x = x0(z_t+) - x0(z_t)
    of the conditional prediction, whose Jacobian keeps what the prior finds plausible (the guided prediction's is not
    positive: the nudge mostly loses).  Its length is rho conf |base|, so its own magnitude and the step of the finite
    difference drop out; with preference_beta no more than what tilting the prior by exp(beta R) asks for (`tilted`), so
    that it ends where little is to be gained.
    """
    preset, weight = step.preset, step.preference_weight
    alpha_sigma = step.alpha_sigma

    # ---- 1: the base, on rows c and n
    found = denoise(step)
    gradient = base(step, found)[0]
    shared = found.sample(first(step))
    if weight == 0:
        return Score(gradient, shared)

    # ---- 2: where the reward wants x0 to go: one reward backward, none of the network; or an estimate
    direction = steering(step, plainly_guided(step, found)[0])

    # ---- 3: the twin, r sqrt(dim) away in noise units: the random pair with noise_w = noise + r G / |G|
    nudge = (preset.steer_radius * direction[0].numel() ** 0.5 * unit(direction))[None]
    z_t, noise = shared.z_t + alpha_sigma[1] * nudge, shared.noise + nudge

    # ---- 4: predictions of both, ranked; the pair is swapped if the steered member lost
    (noise_pred_c,) = step.predict(z_t, step.embedding)
    z_t, noise = torch.cat([z_t, found.z_t]), torch.cat([noise, found.noise])
    noise_pred_c = torch.cat([noise_pred_c, found.noise_pred_c])
    x0_pair = step.clean(z_t, noise_pred_c)
    ranking = step.rank(step.rate(step.decode(x0_pair), step.weights), by="group", units=step.units)

    # ---- 5: target = x0' + rho conf |z0 - x0'| P_x / |P_x|
    confidence = score.scaling(ranking.gap, step.gap_mean, preset.scaling, preset.kappa)
    confidence = confidence * (norm(direction) > 0)[:, :, 0, 0, 0]  # no direction, no pair: no rounding errors either
    ascent = pick(x0_pair, ranking.win) - pick(x0_pair, ranking.lose)
    length = weight * per_view(confidence) * norm(gradient)
    if preset.preference_beta > 0 and preset.steer_by == "gradient":  # an estimate has a direction, but no length
        length = length.minimum(tilted(step, direction, ascent) / step.rows)
    term = -length * unit(ascent)
    win, lose = (chosen(z_t, noise, noise_pred_c, index) for index in (ranking.win, ranking.lose))
    metrics = pair_metrics(ranking, confidence, term, gradient)
    return Score(gradient + term, shared, Pair(win, lose, ranking.gap), ranking.raw_gaps, metrics=metrics)


def tilted(
    step: Step, direction: Float[Tensor, "b v c h w"], ascent: Float[Tensor, "b v c h w"]
) -> Float[Tensor, "b 1 1 1 1"]:
    """How far E[x0 | z_t] moves, to first order, where the prior is tilted by exp(beta R): |beta Cov(x0 | z_t) G|.

    ``direction`` is G, ``ascent`` P_x.  Cov = (sigma^2 / alpha) J (Tweedie's second order), J the prediction's
    Jacobian, and P_x = sigma r sqrt(dim) J G / |G| is what the nudge of length r sqrt(dim) made of it.  It fades at low
    noise, and where the reward is content.
    """
    alpha, sigma = step.alpha_sigma
    nudge = step.preset.steer_radius * direction[0].numel() ** 0.5
    return step.preset.preference_beta * sigma / alpha * norm(direction) / nudge * norm(ascent)


def steering(step: Step, z0: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c h w"]:
    """Where the reward wants z0 to go: its gradient through the decoder, or an estimate for rewards that have none."""
    return step.reward_gradient(z0, step.decode) if step.preset.steer_by == "gradient" else estimated_gradient(step, z0)


def pair_metrics(ranking: Ranking, confidence: Tensor, term: Tensor, gradient: Tensor) -> dict[str, Number]:
    """``pair/gap`` in running means (Bradley-Terry scales until the first is known), ``pair/ratio`` |term| / |base|."""
    ratio = norm(term) / norm(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
    means = {"gap": ranking.gap, "confidence": confidence, "ratio": ratio, "win_first": (ranking.win == 0).float()}
    return {f"pair/{name}": number(value.mean()) for name, value in means.items()} | ranking.agreement


# -------------------------------------------------------------------------------------------------------- what to call

METHODS: dict[str, Callable[[Step], Score]] = {
    "psd": psd,
    "sds": sds,
    "best_of_n": best_of_n,
    "csd": csd,
    "dreamdpo": dreamdpo,
    "rewardsds": rewardsds,
    "reward_gradient": reward_gradient,
}


def candidates(preset: Preset) -> int:
    """How many noises the method draws a step."""
    if preset.method == "dreamdpo":
        return 2
    ranked = preset.method in ("best_of_n", "rewardsds") or (preset.method == "psd" and preset.pair == "random")
    return preset.candidates if ranked else 1


def check(preset: Preset, models: Models) -> None:
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
