"""Half precision without lost gradients.

float16 ends at 6e-8: a reward's gradient at a pixel is often smaller, and would be zero.  `run_in_precision` runs a
function in a smaller type and carries its gradient through at a scale that suits that type (a power of two, chosen
from the gradient itself on the device, so nothing waits and nothing is rounded).

It ends at 65504 too, which a gradient may pass on its way through a network: `GradientScaler`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LARGEST = 1.0  # absolute value of a gradient that enters the function: far from both ends of float16
LEAST = 2.0**-12  # of those values after overflows: what is 4096 times smaller than the largest entry is kept
BACKOFF, GROWTH, GROWTH_INTERVAL = 2.0**-4, 2.0, 500  # as `torch.amp.GradScaler` names them; the interval in steps
MOST_DRAWS = 3  # in a row, none of which gave a finite step
Remedy = Literal["same draws", "other draws", "none"]
REMEDIES = {  # in the words of a warning
    "same draws": "in float16 a step is then computed again with smaller gradients (said once)",
    "other draws": "no scale of its gradients helps, so the step is given other cameras and noise (said once)",
}
CURE = f"start anew with precision=bfloat16: {MOST_DRAWS} draws of this step in a row overflowed in float16"


class GradientScaler:
    """How large gradients enter functions in float16, through one run: the rule of `torch.amp.GradScaler`.

    That one scales a loss, and skips the step; here each function has a scale of its own (`_Leave`), all of which this
    lowers, and the step is computed again from the same draws, so that no run loses one.  What overflows at `LEAST`
    too does so on the way forward, where other draws may not.
    """

    def __init__(self) -> None:
        self.largest = LARGEST
        self.in_use = False  # something was computed in float16
        self._settled = LARGEST  # after the last finite step
        self._good = self._given_up = 0  # finite steps at this scale; draws in a row that were not

    def back_off(self) -> Remedy:
        """How to go on after a step that was not finite, before which nothing moved; "none": it ends the run."""
        if not self.in_use:
            return "none"  # no smaller scale would change anything
        self._good = 0
        if self.largest > LEAST:
            self.largest = max(LEAST, self.largest * BACKOFF)
            return "same draws"
        self.largest = self._settled  # which was not at fault
        self._given_up += 1
        return "other draws" if self._given_up < MOST_DRAWS else "none"

    def record_success(self) -> None:
        """After a finite step: a lower scale grows again in time."""
        self._given_up = 0
        self._good += 1
        if self._good >= GROWTH_INTERVAL:
            self.largest, self._good = min(LARGEST, self.largest * GROWTH), 0
        self._settled = self.largest

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"largest": self._settled, "good": self._good}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.in_use = True  # nothing is kept of one that is not
        self.largest = self._settled = state["largest"]
        self._good = int(state["good"])


_scaler = GradientScaler()  # for what is computed outside of a run's steps


@contextmanager
def use_scaler(scaler: GradientScaler) -> Iterator[None]:
    """Gradients enter as ``scaler`` says within the block, which must hold the backward pass too.

    Of the process, not of the thread: a GPU's backward pass has threads of its own.
    """
    global _scaler
    before, _scaler = _scaler, scaler
    try:
        yield
    finally:
        _scaler = before


class _Enter(torch.autograd.Function):
    """The identity; backwards it takes the scale of `_Leave` off again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: list[Tensor], dtype: torch.dtype) -> Tensor:
        ctx.scale, ctx.dtype = scale, value.dtype
        return value.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.to(ctx.dtype) / ctx.scale[0], None, None


class _Leave(torch.autograd.Function):
    """To float32; backwards it brings the largest entry of the gradient near the scaler's ``largest``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: list[Tensor]) -> Tensor:
        ctx.scale, ctx.dtype = scale, value.dtype
        return value.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        top = gradient.abs().amax().float()
        power = torch.exp2(torch.floor(torch.log2(_scaler.largest / top)).clamp(-60, 60))
        ctx.scale[:] = [torch.where(top > 0, power, torch.ones_like(power))]
        return (gradient * ctx.scale[0]).to(ctx.dtype), None


def run_in_precision(function: Callable[[Tensor], Tensor], value: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 of ``function(value)`` computed in ``dtype``, differentiable once in ``value``.

    ``function`` must have no other input that needs a gradient.  In float32 it is the plain call.
    """
    if dtype == torch.float32:
        return function(value.float()).float()
    _scaler.in_use |= dtype == torch.float16  # bfloat16 reaches as far as float32
    scale: list[Tensor] = []
    return _Leave.apply(function(_Enter.apply(value, scale, dtype)), scale)


def run_in_chunks(function: Callable[[Tensor], Tensor], value: Tensor, size: int) -> Tensor:
    """``function`` over at most ``size`` rows at a time (0: all at once), joined again.

    Where gradients flow, a piece's inner values are made again on the way back instead of being kept.
    """
    if not size or len(value) <= size:
        return function(value)
    recomputed = torch.is_grad_enabled() and value.requires_grad
    parts = value.split(size)
    return torch.cat([checkpoint(function, part, use_reentrant=False) if recomputed else function(part)
                      for part in parts])  # fmt: skip
