"""Numbers of a step that stay on the device until all of them are read, in one transfer.

A GPU runs behind Python; each number that is looked at halts Python until it has caught up, and then the GPU until
Python has.  On a CPU nothing is deferred: a number is there when it is asked for, and a check fails at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Number = float | Tensor


def scalar(value: Tensor) -> Number:
    """A scalar to be shown: read where that costs nothing, left on the device elsewhere."""
    return value.item() if value.device.type == "cpu" else value.detach()


class DeferredChecks:
    """The checks of one step that are still open."""

    def __init__(self) -> None:
        self.open: list[tuple[str, Tensor]] = []

    def check_finite(self, name: str, value: Tensor) -> Tensor:
        """``value`` itself; `NonFiniteError` if it holds inf or nan, at once on a CPU and at `settle` elsewhere."""
        if value.device.type == "cpu":
            return require_finite(name, value)
        self.open.append((name, torch.isfinite(value.detach()).all()))
        return value

    def settle_checks(self, *groups: Mapping[str, Number]) -> list[dict[str, float]]:
        """Read the numbers of all groups and close all checks: the first that failed raises."""
        found = [dict(group) for group in groups]
        waiting = [value for group in found for value in group.values() if isinstance(value, Tensor)]
        flags, self.open = self.open, []
        if waiting or flags:
            scalars = [flag.float() for _, flag in flags] + [value.float() for value in waiting]
            read = iter(torch.stack(scalars).tolist())
            for name, _ in flags:
                if not next(read):
                    raise NonFiniteError(name)
            for group in found:
                group.update({name: next(read) for name, value in group.items() if isinstance(value, Tensor)})
        return [{name: float(value) for name, value in group.items()} for group in found]


class NonFiniteError(ArithmeticError):
    """A tensor holds inf or nan; ``tensor`` names it."""

    def __init__(self, tensor: str) -> None:
        super().__init__(f"{tensor} is not finite")
        self.tensor = tensor


def require_finite(name: str, value: Tensor) -> Tensor:
    """``value`` itself; raises `NonFiniteError` when it holds inf or nan.  On CUDA this waits for the device."""
    # inf and nan stay in a sum, which takes a thirtieth of the time; that of large finite numbers may overflow, too
    if not math.isfinite(value.sum().item()) and not torch.isfinite(value).all():
        raise NonFiniteError(name)
    return value
