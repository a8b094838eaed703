"""CUDA graphs: a network's forward pass recorded once for each shape, then launched as a whole.

A U-Net of four views is a thousand short kernels, which Python launches more slowly than the GPU runs them.  Only calls
without gradients are recorded; all others, and those on other devices, pass through.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 2  # calls before a recording: libraries choose their kernels and allocate what they keep
MOST = 8  # recordings of one function; each keeps the memory of its inner values

Replay = Callable[..., Tensor]


class Graphed:
    """``function`` of tensors, one tensor out; ``record`` makes a replay for the shapes of its arguments."""

    def __init__(self, function: Callable[..., Tensor], record: Callable[..., Replay] | None = None) -> None:
        self.function, self.record = function, record or Recording
        self.replays: dict[Hashable, Replay] = {}

    def forget(self) -> None:
        """Give up the recordings and their memory; the next calls record anew."""
        self.replays.clear()

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        given = [value for value in inputs if value is not None]
        if torch.is_grad_enabled() or any(value.device.type != "cuda" for value in given):
            return self.function(*inputs)
        key = tuple(None if value is None else (tuple(value.shape), value.dtype) for value in inputs)
        if key not in self.replays:
            if len(self.replays) == MOST:
                return self.function(*inputs)
            try:
                self.replays[key] = self.record(self.function, *inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                warnings.warn(f"no CUDA graph of a network ({reason}): it runs without", stacklevel=2)
                self.replays[key] = self.function
        return self.replays[key](*inputs)


class Recording:
    """A CUDA graph over inputs and an output that stay in place; the output is copied, so the next call is free."""

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        self.inputs = [None if value is None else value.clone() for value in inputs]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function(*self.inputs)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        for place, value in zip(self.inputs, inputs, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        self.graph.replay()
        return self.output.clone()
