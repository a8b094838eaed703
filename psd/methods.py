"""What each method does with candidates and rewards, side by side: Step -> Score, a gradient with respect to z0.

All share the seams of `psd.step.Step` and the base term of MVDream: `base` is SDS with guidance, as a distance to the
predicted image (recon) or as a noise residual (sds).  They are called without gradients; the few places that need
one switch it on themselves, and no gradient ever passes through the network to the scene.

Only the abstract of Preference Score Distillation (arXiv 2603.01594) was available: A and C are our reading of it, B is
DreamDPO's pair in its place, and S, the default, is our own construction.
# Differs from the paper: S uses the reward's gradient at x0, and its pair does not see the negative embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from psd import score
from psd.denoise import Denoised, chosen, denoise, denoised, unconditional
from psd.preset import Preset, PresetError
from psd.protocols import Models
from psd.readings import Number, number
from psd.step import Latents, Pair, Ranking, Score, Step, norm, per_view, pick, unit
from psd.zeroth import estimated_gradient

# DreamDPO's tau: closer pairs get the winner's SDS alone; in Bradley-Terry scales (.001 for HPS, whose scale is .01).
DREAMDPO_THRESHOLD = 0.1
REWARDSDS_SHARES = (0.9, -0.1)  # of the mean over the best two, and over the worst two candidates
REWARDSDS_ACTIVE = 0.7  # of the run; then the candidates are averaged
# Of reading C's margin on mean squares.  Diffusion-DPO's 5000 / 2 is for unguided predictions; guidance multiplies what
# n changes by s_p - 1 = 6.5, hence squares by 42.  Unverified: nothing was tuned on it.
IMPLICIT_BETA = 60.0


def base(step: Step, found: Denoised) -> Latents:
    """Each candidate's gradient of the base term (MVDream): SDS on the guided prediction.

    recon: (z0 - x0') / B, x0' the rescaled prediction; sds: w(t) (e~ - noise) / B.
    """
    guided = found.guided(step.preset.guidance_scale)
    if step.preset.base_form == "sds":
        return residual(step, found.z_t, found.noise, guided)
    x0_pred, x0_pred_c = step.clean(found.z_t, guided), step.clean(found.z_t, found.noise_pred_c)
    return (step.z0 - score.rescale(x0_pred, x0_pred_c, step.preset.rescale)) / step.rows


def residual(step: Step, z_t: Tensor, noise: Tensor, noise_pred: Tensor) -> Tensor:
    """One prediction in the form of the base: (z0 - x0) / B with x0 clamped as there, or w(t) (e - noise) / B."""
    if step.preset.base_form == "sds":
        return step.noise_weight * (noise_pred - noise)
    return (step.z0 - step.clean(z_t, noise_pred)) / step.rows


def rate(step: Step, found: Denoised) -> dict[str, Float[Tensor, "k b v"]]:
    """What the rewards say of each candidate's prediction."""
    return step.rate(step.decode(cleaned(step, found, image_like)), step.weights)


def cleaned(step: Step, found: Denoised, predict: Callable[[Step, Denoised], Latents]) -> Latents:
    """``predict``'s z0: one step from z_t, or by a few of DDIM (preset.ranking_steps)."""
    steps, asked = step.preset.ranking_steps, step
    x0_pred = predict(step, found)
    for left in range(steps - 1, 0, -1):
        later = replace(step, t=asked.t * left // steps)
        noise = score.noise_from_x0(found.z_t, x0_pred, *step.alpha_sigma)
        z_t = score.add_noise(x0_pred, noise, *later.alpha_sigma)
        found = denoised(later, z_t, noise)
        step, x0_pred = later, predict(later, found)
    return x0_pred


def image_like(step: Step, found: Denoised) -> Latents:
    """The prediction of z0, guided by s_r and rescaled: what a reward can read."""
    guided = found.guided(step.preset.reward_guidance_scale)
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
    toward, away = (residual(step, found.z_t, found.noise, x) for x in (found.toward, found.noise_pred_n))
    return Score(step.preset.guidance_scale * (toward - away).mean(0), found.sample(first(step)))


def best_of_n(step: Step) -> Score:
    """SDS on the noise whose prediction the rewards like best."""
    found = denoise(step)
    ranking = step.rank(rate(step, found), by=step.preset.winner_by, units=step.scales)
    metrics = {"pair/gap": number(ranking.gap.mean()), **ranking.agreement}
    return Score(pick(base(step, found), ranking.win), found.sample(ranking.win), metrics=metrics)


def dreamdpo(step: Step) -> Score:
    """DreamDPO (Zhou et al. 2025): winner guided, loser conditional, ranked per view; SDS on the winner if too close.

    gap >= tau: w [(e~_w - noise_w) - (e_c,l - noise_l)]; else w (e~_w - noise_w); in the form of the base.
    """
    found = denoise(step)
    ranking = step.rank(rate(step, found), by="view", units=step.scales)
    win, lose = found.sample(ranking.win), found.sample(ranking.lose)
    pushed = per_view(ranking.gap >= DREAMDPO_THRESHOLD)
    attract = pick(base(step, found), ranking.win)
    repel = torch.where(pushed, residual(step, lose.z_t, lose.noise, lose.noise_pred_c), torch.zeros_like(attract))
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
    ratings = rate(step, found)
    if step.preset.winner_by == "group":
        ratings = step.of_groups(ratings)
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
    """Preference Score Distillation: the base term plus a preference score, by the preset's reading."""
    return steered_pair(step) if step.preset.reading == "S" else random_pair(step)


def random_pair(step: Step) -> Score:
    """Readings A, B and C: two (or N) noises on the same render at the same t, ranked by the rewards.

    The base is averaged over all noises; with preference weight 0 nothing else is left, bit for bit.
    """
    preset, weight = step.preset, step.preference_weight
    found = denoise(step)
    gradient = base(step, found).mean(0)
    if weight == 0:
        return Score(gradient, found.sample(first(step)))

    # ---- 4, 5: rank the predictions; best and worst of N stand for win and lose
    ranking = step.rank(rate(step, found), by=preset.winner_by, units=step.units)
    win, lose = found.sample(ranking.win), found.sample(ranking.lose)
    pair = Pair(win, lose, ranking.gap)

    # ---- 6: reward-based scaling
    confidence = score.scaling(ranking.gap, step.gap_mean, preset.scaling, preset.kappa)
    if preset.reading == "C":
        confidence = implicit_confidence(step, found, ranking.win, ranking.lose) * (ranking.gap > 0)

    # ---- 7, 8: preference score sum_i a_i d_i, in the form of the base
    credit = credits(step, ranking)[..., None, None, None]
    guided = found.guided(preset.preference_scale)
    if preset.reading == "B":
        guided = torch.where(credit < 0, found.noise_pred_c, guided)
    if preset.base_form == "recon":
        direction = -(credit * step.clean(found.z_t, guided)).sum(0) / step.rows
    else:
        direction = step.noise_weight * score.preference_score(guided, found.noise, credit)
    term = contained(step, gradient, weight * per_view(confidence) * direction)
    metrics = pair_metrics(ranking, confidence, term, gradient)
    return Score(gradient + term, win, pair, ranking.raw_gaps, metrics=metrics)


def credits(step: Step, ranking: Ranking) -> Float[Tensor, "k b v"]:
    """a_i, what each candidate's residual counts in the preference score; they sum to 0.

    extremes: 1 for the winner, -1 for the loser; advantages: 2/N of the standardised advantages, all candidates.
    Of two candidates both are the pair.
    """
    if step.preset.weighting == "advantages":
        return score.advantages(ranking.combined) * (2 / len(ranking.combined))
    places = torch.arange(len(ranking.combined), device=ranking.win.device)[:, None, None]
    return (places == ranking.win).to(ranking.combined) - (places == ranking.lose).to(ranking.combined)


def implicit_confidence(step: Step, found: Denoised, win: Tensor, lose: Tensor) -> Float[Tensor, "b 1"]:
    """Reading C: sigmoid(-u), u the implicit reward margin of the learned negative over its start; 1/2 at the start."""
    scale = step.preset.preference_scale
    noise_pred_start = unconditional(step, found.z_t, step.negative_start)
    guided = score.guide(found.noise_pred_n, found.noise_pred_c, scale)
    reference = score.guide(noise_pred_start, found.noise_pred_c, scale)
    winner, loser = ((pick(found.noise, i), pick(guided, i), pick(reference, i)) for i in (win, lose))
    return torch.sigmoid(-score.implicit_margin(winner, loser, IMPLICIT_BETA))[:, None]


def steered_pair(step: Step) -> Score:
    """Reading S: a pair that differs on purpose.  One noise; its twin is nudged along the reward's gradient at x0.

    The gradient never enters the scene: only what the frozen denoiser makes of the nudge does, P_x = x0(z_t+) - x0(z_t)
    of the conditional prediction, whose Jacobian keeps what the prior finds plausible.  Its length is rho conf |base|,
    so its own magnitude and the step of the finite difference drop out; with preference_beta no more than what tilting
    the prior by exp(beta R) asks for (`tilted`), so that it ends where little is to be gained.
    """
    preset, weight = step.preset, step.preference_weight
    alpha_sigma = step.alpha_sigma

    # ---- 1: the base, on rows c and n
    found = denoise(step)
    gradient = base(step, found)[0]
    shared = found.sample(first(step))
    if weight == 0:
        return Score(gradient, shared)

    # ---- 2: where the reward wants x0 (or the render) to go: one reward backward, none of the network; or an estimate
    at_render = preset.steer_at == "render"
    direction = steering(step, step.z0 if at_render else cleaned(step, found, plainly_guided)[0])

    # ---- 3: the twin, r sqrt(dim) away in noise units: the random pair with noise_w = noise + r G / |G|
    nudge = preset.steer_radius * direction[0].numel() ** 0.5 * unit(direction)
    moves = torch.stack([nudge, -nudge] if preset.steer_both else [nudge])
    z_t, noise = shared.z_t + alpha_sigma[1] * moves, shared.noise + moves

    # ---- 4: predictions of both, ranked; the pair is swapped if the steered member lost
    if preset.steer_conditional:
        (noise_pred_c,) = step.predict(z_t, step.embedding)
        noise_pred, kept = noise_pred_c, found.noise_pred_c
    else:  # for experiments: the guided prediction's Jacobian is not positive, and the nudge mostly loses
        noise_pred_c, noise_pred_n = step.predict(z_t, step.embedding, step.negative)
        noise_pred = score.guide(noise_pred_n, noise_pred_c, preset.guidance_scale)
        kept = found.guided(preset.guidance_scale)
    if not preset.steer_both:
        z_t, noise = torch.cat([z_t, found.z_t]), torch.cat([noise, found.noise])
        noise_pred_c = torch.cat([noise_pred_c, found.noise_pred_c])
        noise_pred = torch.cat([noise_pred, kept])
    x0_pair = step.clean(z_t, noise_pred)
    ranking = step.rank(step.rate(step.decode(x0_pair), step.weights), by=preset.winner_by, units=step.units)

    # ---- 5: target = x0' + rho conf |z0 - x0'| P_x / |P_x|
    confidence = score.scaling(ranking.gap, step.gap_mean, preset.scaling, preset.kappa)
    confidence = confidence * (norm(direction) > 0)[:, :, 0, 0, 0]  # no direction, no pair: no rounding errors either
    ascent = pick(x0_pair, ranking.win) - pick(x0_pair, ranking.lose)
    length = weight * per_view(confidence) * norm(gradient)
    if preset.preference_beta > 0 and preset.steers_by_gradient:  # an estimate has a direction, but no length
        length = length.minimum(tilted(step, direction, ascent) / step.rows)
    term = contained(step, gradient, -length * unit(ascent))
    win, lose = (chosen(z_t, noise, noise_pred_c, index) for index in (ranking.win, ranking.lose))
    metrics = pair_metrics(ranking, confidence, term, gradient)
    return Score(gradient + term, shared, Pair(win, lose, ranking.gap), ranking.raw_gaps, metrics=metrics)


def tilted(
    step: Step, direction: Float[Tensor, "b v c h w"], ascent: Float[Tensor, "b v c h w"]
) -> Float[Tensor, "b 1 1 1 1"]:
    """How far E[x0 | z_t] moves, to first order, where the prior is tilted by exp(beta R): |beta Cov(x0 | z_t) G|.

    ``direction`` is G, ``ascent`` P_x.  Cov = (sigma^2 / alpha) J (Tweedie's second order), J the prediction's
    Jacobian, and P_x = sigma r sqrt(dim) J G / |G| is what the nudge of length r sqrt(dim) made of it (twice that where
    both members are steered).  It fades at low noise, and where the reward is content.
    """
    alpha, sigma = step.alpha_sigma
    nudge = (2 if step.preset.steer_both else 1) * step.preset.steer_radius * direction[0].numel() ** 0.5
    return step.preset.preference_beta * sigma / alpha * norm(direction) / nudge * norm(ascent)


def steering(step: Step, z0: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v c h w"]:
    """Where the reward wants z0 to go: its gradient through the decoder, an estimate, or what the encoder makes of it.

    encoder: E(x + d) - E(x), x the decoded z0, d the gradient with respect to x, its RMS `steer_radius`.
    """
    if step.preset.steer_by != "gradient":
        return estimated_gradient(step, z0)
    if step.preset.steer_through == "decoder":
        return step.reward_gradient(z0, step.decode)
    with step.clock.part("decode"):
        images = step.prior.decode(z0).clamp(0, 1)
    gradient = step.reward_gradient(images, lambda seen: seen[:, step.seen])
    moved = images + step.preset.steer_radius * gradient[0].numel() ** 0.5 * unit(gradient)
    with step.clock.part("encode"):
        return step.prior.encode(moved) - step.prior.encode(images)


def contained(step: Step, gradient: Float[Tensor, "b v c h w"], term: Float[Tensor, "b v c h w"]) -> Tensor:
    """The preference term within the preset's limits: contrast (`contrast_kept`), and the object (preference_inside).

    Outside, all that it could do is colour the background, which costs the scene fog.
    """
    term = contrast_kept(step, gradient, term)
    return term * step.inside if step.preset.preference_inside else term


def contrast_kept(step: Step, gradient: Float[Tensor, "b v c h w"], term: Float[Tensor, "b v c h w"]) -> Tensor:
    """The preference term, less what it adds to the contrast of the base's target z0 - B g (preset.preference_rescale).

    As guidance, it makes pictures harsher, and rewards like that: `score.rescale`, with the base's target in the
    conditional prediction's place.
    """
    if step.preset.preference_rescale == 0:
        return term
    target = step.z0 - step.rows * gradient
    preferred = score.rescale(target - step.rows * term, target, step.preset.preference_rescale)
    return torch.where(norm(term) > 0, (target - preferred) / step.rows, term)  # no term: no rounding errors either


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
    ranked = preset.method in ("best_of_n", "rewardsds") or (preset.method == "psd" and preset.reading != "S")
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
    if 0 < preset.reward_views < models.prior.views and (preset.winner_by == "view" or preset.method == "dreamdpo"):
        raise PresetError(
            f"reward_views={preset.reward_views} leaves views unseen, and views are ranked alone here: set it to 0"
        )
    weighted = [name for name, weight in preset.rewards.items() if weight > 0]
    if any(models.rewards[name].differentiable for name in weighted):
        return
    names = ", ".join(weighted)
    if preset.method == "psd" and preset.reading == "S" and preset.steer_by == "gradient":
        raise PresetError(
            f"reading=S steers by a gradient, and {names} has none: set steer_by=scores, or reading=A, which only ranks"
        )
    if preset.method == "reward_gradient":
        raise PresetError(
            f"method=reward_gradient needs a gradient, and {names} has none: set method=psd, reading=A, which ranks"
        )
    if preset.method == "psd" and preset.negative and preset.negative_objective == "reward":
        raise PresetError(
            f"negative_objective=reward needs a gradient, and {names} has none: set it to dpo, zeroth_order or auto"
        )
