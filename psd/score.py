"""The formulas of score distillation: pure functions of tensors, one per equation.

Notation: z_t = alpha z0 + sigma noise with alpha = sqrt(alpha_bar[t]), sigma = sqrt(1 - alpha_bar[t]); ``t`` is the
integer diffusion step; noise_pred is what a prior says the noise was, noise_pred_c with the prompt, noise_pred_n with
the negative embedding.  Schedules are float64; alpha and sigma are Python floats, or tensors that broadcast.
Axes: k candidate, b group, v view, c channel, h w latent pixels; functions that reduce say over what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

BANDS = 5  # of t, for running means: reward gaps differ threefold between low and high noise
RAMP = 0.1  # of t / T, below the gate


class NonFiniteError(ArithmeticError):
    """A tensor holds inf or nan; ``tensor`` names it."""

    def __init__(self, tensor: str) -> None:
        super().__init__(f"{tensor} is not finite")
        self.tensor = tensor


def require_finite(name: str, value: Tensor) -> Tensor:
    """``value`` itself; raises `NonFiniteError` when it holds inf or nan.  On CUDA this waits for the device."""
    if not torch.isfinite(value).all():
        raise NonFiniteError(name)
    return value


# ---------------------------------------------------------------------------------------------- forward process, x0, v


def alpha_sigma(alpha_bar: Float[Tensor, " T"], t: int) -> tuple[float, float]:
    """Signal and noise amplitudes at step ``t``, from a float64 schedule."""
    signal = float(alpha_bar[t])
    return math.sqrt(signal), math.sqrt(1 - signal)


def add_noise(z0: Tensor, noise: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """z_t = alpha z0 + sigma noise."""
    return alpha * z0 + sigma * noise


def predict_x0(z_t: Tensor, noise_pred: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The clean latents that a noise prediction implies: (z_t - sigma noise_pred) / alpha."""
    return (z_t - sigma * noise_pred) / alpha


def noise_from_x0(z_t: Tensor, x0_pred: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The noise that a prediction of clean latents implies: (z_t - alpha x0) / sigma."""
    return (z_t - alpha * x0_pred) / sigma


def velocity(z0: Tensor, noise: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The target of v-prediction: v = alpha noise - sigma z0 (Salimans & Ho 2022)."""
    return alpha * noise - sigma * z0


def noise_from_velocity(z_t: Tensor, v: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """alpha v + sigma z_t: sound at every t, alpha = 0 included."""
    return alpha * v + sigma * z_t


def x0_from_velocity(z_t: Tensor, v: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """alpha z_t - sigma v: sound at every t, alpha = 0 included."""
    return alpha * z_t - sigma * v


# ------------------------------------------------------------------------------------------------------------ guidance


def guide(noise_pred_n: Tensor, noise_pred_c: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, the one formula of this project: e_n + s (e_c - e_n)."""
    return noise_pred_n + scale * (noise_pred_c - noise_pred_n)


def rescale(
    x0_pred: Float[Tensor, "*k v c h w"], x0_pred_c: Float[Tensor, "*k v c h w"], strength: float
) -> Float[Tensor, "*k v c h w"]:
    """Pull the contrast of guided predictions back to the conditional ones' (Lin et al. 2024, MVDream's phi = 0.5).

    phi f x0 + (1 - phi) x0 with f = std(x0_c) / std(x0), each std over all views of a group jointly, so that the
    views keep their relative brightness.
    """
    axes = (-4, -3, -2, -1)
    factor = x0_pred_c.std(axes, keepdim=True) / x0_pred.std(axes, keepdim=True).clamp_min(1e-12)
    return strength * factor * x0_pred + (1 - strength) * x0_pred


# ---------------------------------------------------------------------------------------------------------- preference


def preference_score(
    noise_pred: Float[Tensor, "k b v c h w"], noise: Float[Tensor, "k b v c h w"], credit: Float[Tensor, "k b v 1 1 1"]
) -> Tensor:
    """P = sum_i a_i d_i, d = noise_pred - noise the candidates' residuals; of a pair (1, -1) it is P = d_w - d_l.

    grad log p(win | z_t) = (1 - sigmoid(u)) (grad log p(z_t | win) - grad log p(z_t | lose)), where the two
    residuals stand for the two scores.  With a common z0: x0_w - x0_l = -(sigma / alpha) P.
    """
    return (credit * (noise_pred - noise)).sum(0)


def advantages(ratings: Float[Tensor, "k b v"]) -> Float[Tensor, "k b v"]:
    """Standardised advantages over the candidates, (r_i - mean) / std with the population's std; 0 where all agree.

    Of two candidates the better has 1 and the worse -1, whatever their gap.
    """
    centred, spread = ratings - ratings.mean(0), ratings.std(0, correction=0)
    tiny = torch.finfo(spread.dtype).tiny
    return torch.where(spread > 0, centred / spread.clamp_min(tiny), torch.zeros_like(centred))


def scaling(gap: Tensor, mean: float, kind: Literal["confidence", "linear", "hard", "dpo"], kappa: float) -> Tensor:
    """Reward-based scaling of the preference term, in [0, 1]; exactly 0 where the gap is 0.

    ``gap`` >= 0 is the winner's lead, ``mean`` its running mean m (0: not known yet, so nothing is trusted).
    confidence tanh(gap / (kappa m)); linear min(gap / (kappa m), 1); dpo sigmoid(-gap / (kappa m)), which trusts
    surprising pairs most; hard 1, whatever m.
    """
    if kind == "hard":
        return (gap > 0).to(gap.dtype)
    if mean == 0:
        return torch.zeros_like(gap)
    ratio = gap / (kappa * mean)
    scaled = {"confidence": torch.tanh, "linear": lambda x: x.clamp(max=1), "dpo": lambda x: torch.sigmoid(-x)}[kind]
    return torch.where(gap > 0, scaled(ratio), torch.zeros_like(gap))


class GapScale:
    """Running mean of the absolute reward gap, per reward and per band of t: what makes gaps comparable.

    A bias-corrected exponential average: m_n = sum_i (1 - d) d^(n - i) |gap_i| / (1 - d^n).
    """

    def __init__(self, decay: float, total: int) -> None:
        self.decay = decay
        self.total = total  # T, diffusion steps of the schedule
        self.sums: dict[str, list[float]] = {}
        self.weights: dict[str, list[float]] = {}

    def mean(self, name: str, t: int) -> float:
        """m for reward ``name`` at ``t``; 0 before the first update of that band."""
        band = self._band(t)
        weight = self.weights.get(name, [0.0] * BANDS)[band]
        return self.sums[name][band] / weight if weight else 0.0

    def update(self, gaps: Mapping[str, float], t: int) -> None:
        """Take in one step's gaps, after their use."""
        band = self._band(t)
        for name, gap in gaps.items():
            sums, weights = (store.setdefault(name, [0.0] * BANDS) for store in (self.sums, self.weights))
            sums[band] = self.decay * sums[band] + (1 - self.decay) * abs(gap)
            weights[band] = self.decay * weights[band] + (1 - self.decay)

    def state(self) -> dict[str, dict[str, list[float]]]:
        return {
            "sums": {name: list(values) for name, values in self.sums.items()},
            "weights": {name: list(values) for name, values in self.weights.items()},
        }

    def load_state(self, state: Mapping[str, Mapping[str, list[float]]]) -> None:
        self.sums = {name: list(values) for name, values in state["sums"].items()}
        self.weights = {name: list(values) for name, values in state["weights"].items()}

    def _band(self, t: int) -> int:
        return t * BANDS // self.total


def implicit_margin(
    win: tuple[Tensor, Tensor, Tensor], lose: tuple[Tensor, Tensor, Tensor], beta: float
) -> Float[Tensor, " b"]:
    """Diffusion-DPO's margin u of the winner over the loser under the learned negative embedding, per group.

    Each member is (noise, noise_pred, reference noise_pred), ``b v c h w``; u = beta {[mean |noise - reference|^2 -
    mean |noise - noise_pred|^2]_win - [the same]_lose} (Wallace et al. 2023), means over all views of the group.
    """

    def gain(noise: Tensor, noise_pred: Tensor, reference: Tensor) -> Tensor:
        return ((noise - reference).square() - (noise - noise_pred).square()).mean((1, 2, 3, 4))

    return beta * (gain(*win) - gain(*lose))


# ----------------------------------------------------------------------------------------------------------- timesteps


def timestep_bounds(
    progress: float, *, low: tuple[float, float], high: tuple[float, float], anneal_fraction: float, total: int
) -> tuple[int, int]:
    """Inclusive bounds of t: ``low`` and ``high`` are (start, end) shares of T, annealed linearly over the run's
    first ``anneal_fraction`` and constant after it; ``progress`` in [0, 1]."""
    share = min(progress / anneal_fraction, 1.0)
    lower, upper = (start + (end - start) * share for start, end in (low, high))
    last = total - 1
    return min(round(lower * total), last), min(round(upper * total), last)


def sample_timestep(bounds: tuple[int, int], generator: torch.Generator) -> int:
    """One integer t for the whole batch, uniform over the inclusive bounds."""
    low, high = bounds
    return int(torch.randint(low, high + 1, (), generator=generator))


def gate(t: int, total: int, t_on: float) -> float:
    """lambda_t / lambda in [0, 1]: 0 for t / T > t_on, ramped up over 0.1 below it; t_on = 1 means no gate.

    At high noise x0 is no image that a reward could judge, and sigma / alpha explodes.
    """
    if t_on >= 1:
        return 1.0
    return min(max((t_on - t / total) / RAMP, 0.0), 1.0)


def tilt(t: int, total: int, slope: float) -> float:
    """1 + slope (2 t / T - 1): a weight over t whose mean over all t is 1; ``slope`` in [-1, 1], 0 is constant."""
    return 1 + slope * (2 * t / total - 1)
