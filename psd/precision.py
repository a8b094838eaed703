"""Half precision without lost gradients.

float16 ends at 6e-8: a reward's gradient at a pixel is often smaller, and would be zero.  `in_precision` runs a
function in a smaller type and carries its gradient through at a scale that suits that type (a power of two, chosen
from the gradient itself on the device, so nothing waits and nothing is rounded).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LARGEST = 1.0  # absolute value of a gradient that enters the function: far from both ends of float16


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
    """To float32; backwards it brings the largest entry of the gradient near `LARGEST`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: list[Tensor]) -> Tensor:
        ctx.scale, ctx.dtype = scale, value.dtype
        return value.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        top = gradient.abs().amax().float()
        power = torch.exp2(torch.floor(torch.log2(LARGEST / top)).clamp(-60, 60))
        ctx.scale[:] = [torch.where(top > 0, power, torch.ones_like(power))]
        return (gradient * ctx.scale[0]).to(ctx.dtype), None


def in_precision(function: Callable[[Tensor], Tensor], value: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 of ``function(value)`` computed in ``dtype``, differentiable once in ``value``.

    ``function`` must have no other input that needs a gradient.  In float32 it is the plain call.
    """
    if dtype == torch.float32:
        return function(value.float()).float()
    scale: list[Tensor] = []
    return _Leave.apply(function(_Enter.apply(value, scale, dtype)), scale)


def in_chunks(function: Callable[[Tensor], Tensor], value: Tensor, size: int) -> Tensor:
    """``function`` over at most ``size`` rows at a time (0: all at once), joined again.

    Where gradients flow, a piece's inner values are made again on the way back instead of being kept.
    """
    if not size or len(value) <= size:
        return function(value)
    recomputed = torch.is_grad_enabled() and value.requires_grad
    parts = value.split(size)
    return torch.cat([checkpoint(function, part, use_reentrant=False) if recomputed else function(part)
                      for part in parts])  # fmt: skip
