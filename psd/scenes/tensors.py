"""What a scene is made of, as named tensors: copies of them, and others in their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def copy_tensors(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


@torch.no_grad()
def load_tensors(values: Mapping[str, Tensor], state: Mapping[str, Tensor], whose: str) -> None:
    """Copy ``state`` into ``values`` in place, so that an optimiser keeps its parameters.

    Raises RuntimeError for other names or shapes; ``whose`` state it is (``a surface's``) begins the message.
    """
    if state.keys() != values.keys():
        raise RuntimeError(f"{whose} state has {', '.join(values)}, not {', '.join(state)}")
    for name, value in values.items():
        if state[name].shape != value.shape:
            raise RuntimeError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}")
    for name, value in values.items():
        value.copy_(state[name])
