"""The running mean m of the reward gap, by which a gap is large or small: confidence = tanh(gap / (kappa m))."""

from __future__ import annotations

from collections.abc import Mapping

BANDS = 5  # of t, for running means: reward gaps differ threefold between low and high noise


class GapScale:
    """The running mean of the absolute reward gap, per reward and per band of t, which makes gaps comparable.

    A bias-corrected exponential average: m_n = sum_i (1 - d) d^(n - i) |gap_i| / (1 - d^n).
    """

    def __init__(self, decay: float, total: int) -> None:
        self.decay = decay
        self.total = total  # T, diffusion steps of the schedule
        self.sums: dict[str, list[float]] = {}
        self.weights: dict[str, list[float]] = {}

    def mean(self, name: str, t: int) -> float:
        """m for reward ``name`` at ``t``; 0 before the first update of that band."""
        band = self._band_index(t)
        weight = self.weights.get(name, [0.0] * BANDS)[band]
        return self.sums[name][band] / weight if weight else 0.0

    def update(self, gaps: Mapping[str, float], t: int) -> None:
        """Takes in the gaps of one step, after their use."""
        band = self._band_index(t)
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

    def _band_index(self, t: int) -> int:
        return t * BANDS // self.total
