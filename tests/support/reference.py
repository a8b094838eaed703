"""The formulas once more, in float64 and plain loops, as slowly and obviously as possible."""

from __future__ import annotations

import math

import numpy as np


def guide(noise_pred_n: np.ndarray, noise_pred_c: np.ndarray, scale: float) -> np.ndarray:
    out = np.empty_like(noise_pred_n)
    for i in np.ndindex(noise_pred_n.shape):
        out[i] = (1 - scale) * noise_pred_n[i] + scale * noise_pred_c[i]
    return out


def predict_x0(z_t: np.ndarray, noise_pred: np.ndarray, alpha_bar: float) -> np.ndarray:
    out = np.empty_like(z_t)
    for i in np.ndindex(z_t.shape):
        out[i] = z_t[i] / math.sqrt(alpha_bar) - math.sqrt(1 / alpha_bar - 1) * noise_pred[i]
    return out


def spread(group: np.ndarray) -> float:
    """Standard deviation of all entries, unbiased."""
    values = [float(x) for x in group.ravel()]
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))


def rescale(x0: np.ndarray, x0_c: np.ndarray, strength: float) -> np.ndarray:
    """b v c h w."""
    out = np.empty_like(x0)
    for b in range(len(x0)):
        factor = spread(x0_c[b]) / spread(x0[b])
        out[b] = strength * factor * x0[b] + (1 - strength) * x0[b]
    return out


def recon_gradient(
    z0: np.ndarray, noises: list[np.ndarray], preds_c: list[np.ndarray], preds_n: list[np.ndarray],
    *, alpha_bar: float, scale: float, strength: float,
) -> np.ndarray:  # fmt: skip
    """Gradient of 1/2 |z - T|^2 / B at z0, T the mean over the noises of the rescaled predictions."""
    rows = z0.shape[0] * z0.shape[1]
    target = np.zeros_like(z0)
    for noise, c, n in zip(noises, preds_c, preds_n, strict=True):
        z_t = math.sqrt(alpha_bar) * z0 + math.sqrt(1 - alpha_bar) * noise
        x0, x0_c = predict_x0(z_t, guide(n, c, scale), alpha_bar), predict_x0(z_t, c, alpha_bar)
        target += rescale(x0, x0_c, strength) / len(noises)
    return (z0 - target) / rows


def running_mean(gaps: list[float], decay: float) -> float:
    """Bias-corrected exponential average, newest last."""
    weights = [(1 - decay) * decay ** (len(gaps) - 1 - i) for i in range(len(gaps))]
    return sum(w * abs(g) for w, g in zip(weights, gaps, strict=True)) / sum(weights)
