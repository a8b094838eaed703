"""The sRGB transfer curve of IEC 61966-2-1, both ways; values in [0, 1]."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def decode_srgb(srgb: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """sRGB to linear light."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def encode_srgb(linear: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Linear light to sRGB."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
