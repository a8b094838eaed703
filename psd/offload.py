"""Networks that wait in main memory and visit the device for as long as they are needed.

They are frozen, so nothing is copied back: the device's copy is dropped and the one at home taken up again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def visiting(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Weights and buffers of ``networks`` on ``device`` within the block; where they are there already, nothing moves.

    What is computed inside must not be differentiated after it.  Costs one copy of the weights over the bus.
    """
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    homes = [(tensor, tensor.data) for tensor in tensors if tensor.device != device]
    try:
        for tensor, home in homes:
            tensor.data = home.to(device)
        yield
    finally:
        for tensor, home in homes:
            tensor.data = home
