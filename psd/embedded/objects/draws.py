"""Random draws of objects, each of which has a middle that stands for "no variation"."""

from __future__ import annotations

import torch


def draw_between(low: float, high: float, generator: torch.Generator | None) -> float:
    """Uniform between the bounds; without a generator their mean."""
    share = 0.5 if generator is None else float(torch.rand((), generator=generator))
    return low + (high - low) * share


def draw_index(count: int, generator: torch.Generator | None) -> int:
    """One of ``count``; without a generator the first."""
    return 0 if generator is None else int(torch.randint(count, (), generator=generator))
