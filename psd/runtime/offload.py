"""Networks that wait in main memory and visit the device for as long as they are needed.

They are frozen, so nothing is copied back: the device's copy is dropped and the one at home taken up again.
Threads share them, a run's and those that answer a page: who computes with networks that others may use holds
`COMPUTING`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

# Else a visitor would be sent home while another thread computes with it, and a picture from outside would want room on
# top of a step's.  Never taken inside a backward pass: autograd's threads are others, and would wait for the one that
# waits for them.
COMPUTING = threading.RLock()


@contextmanager
def hold_on_device(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Weights and buffers of ``networks`` on ``device`` within the block; where they are there already, nothing moves.

    What is computed inside must not be differentiated after it.  Costs one copy of the weights over the bus.  Holds
    `COMPUTING`.
    """
    there = torch.empty(0, device=device).device  # by its full name: a tensor sent to `cuda` says `cuda:0`
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    with COMPUTING:
        homes = [(tensor, tensor.data) for tensor in tensors if tensor.device != there]
        try:
            for tensor, home in homes:
                tensor.data = home.to(there)
            yield
        finally:
            for tensor, home in homes:
                tensor.data = home
