"""A frozen network's calls on a CPU without Python: its operations, recorded once as a TorchScript graph.

Python takes 7 ms of a call of the embedded U-Net, a thousand operations, and two threads that take Python's lock in
turn a thousand times are no faster than one.  A graph holds no lock: the two halves of guidance go side by side
(`psd.runtime.lanes`).  On two cores the U-Net's calls of a step take 90 ms in place of 150.

torch calls TorchScript deprecated in favour of `torch.compile`, which needs a C++ compiler and minutes, and of
`torch.export`, whose graphs run in Python.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

PATIENCE = 8  # calls of a shape before it is recorded, which takes a second: a short run is over before
MOST_GRAPHS = 4  # graphs of one function


class Traced:
    """``function`` of tensors and of the weights of ``network``, one tensor out; calls with gradients pass through."""

    def __init__(self, function: Callable[..., Tensor], network: nn.Module) -> None:
        self.function, self.network = function, network
        self.counts: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, Callable[..., Tensor]] = {}
        self.recording = threading.Lock()

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        given = [value for value in inputs if value is not None]
        if torch.is_grad_enabled() and any(value.requires_grad for value in given):
            return self.function(*inputs)
        key = tuple(None if value is None else (tuple(value.shape), value.dtype) for value in inputs)
        if (graph := self.graphs.get(key)) is not None:
            with torch.jit.optimized_execution(False):  # optimising takes its first calls longer than it saves
                return graph(*given)
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.counts[key] > PATIENCE and len(self.graphs) < MOST_GRAPHS and self.recording.acquire(blocking=False):
            try:
                self.graphs[key] = trace_calls(self.function, self.network, inputs)
            finally:
                self.recording.release()
        return self.function(*inputs)


@torch.no_grad()
def trace_calls(
    function: Callable[..., Tensor], network: nn.Module, inputs: tuple[Tensor | None, ...]
) -> Callable[..., Tensor]:
    """The operations of ``function(*inputs)`` as a graph of the inputs that are no None; the numbers are the same."""

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network  # whose weights the graph takes for constants

        def forward(self, *given: Tensor) -> Tensor:
            values: Any = iter(given)
            return function(*(None if value is None else next(values) for value in inputs))

    example = tuple(value.detach() for value in inputs if value is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the graph is kept for these shapes alone
        return torch.jit.freeze(torch.jit.trace(Call().eval(), example, check_trace=False))
