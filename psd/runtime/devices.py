"""Choose a device and a precision, and place tensors there without waiting."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from psd.config.errors import MissingError
from psd.runtime import diagnosis


def to_device(value: Tensor, device: torch.device | str) -> Tensor:
    """``value`` on ``device``; from the CPU to an NVIDIA GPU out of pinned memory, so that nothing waits.

    The pinned copy may be dropped at once: torch hands its memory to nobody else before the transfer is done.  A
    ``value`` that its maker pinned is sent as it is, and must not be written to afterwards.
    """
    if torch.device(device).type == "cuda" and value.device.type == "cpu":
        # Without gaps: those go through a second buffer, which is not pinned; and an expanded value cannot be pinned.
        return value.contiguous().pin_memory().to(device, non_blocking=True)
    return value.to(device)


def draw_uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Float[Tensor, "*shape"]:
    """Numbers in [0, 1) on ``device``, for jitter; a GPU draws other ones than a CPU, seeded by ``generator`` (CPU).

    A step of one orbit at 256 px takes 0.8 million: 3.3 ms on a CPU thread, during which a GPU would stand idle.
    """
    if device.type != "cuda":
        return to_device(torch.rand(shape, generator=generator), device)
    own = torch.Generator(device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
    return torch.rand(shape, generator=own, device=device)


PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(wish: str) -> tuple[torch.device, str]:
    """The device and the reason; an explicit wish that cannot be met raises."""
    useless = diagnosis.unsupported_gpu() if torch.cuda.is_available() else diagnosis.missing_gpu()
    found = {"cuda": useless is None, "mps": torch.backends.mps.is_available(), "cpu": True}
    if wish != "auto":
        if not found[wish]:
            reason, cure = useless if wish == "cuda" and useless else ("this is no Apple GPU", "")
            raise MissingError(f"device={wish} is not available here: {reason}; {cure or 'use device=auto'}")
        return torch.device(wish), f"device {wish}, as asked"
    name = next(name for name, available in found.items() if available)
    why = f"device {name}: the fastest found"
    if name == "cpu" and useless:
        reason, cure = useless
        why += f"; {reason}: {cure}" if cure else ""  # a driver or a GPU that is there and of no use
    return torch.device(name), why


def choose_precision(wish: str, device: torch.device) -> torch.dtype:
    """Of the networks: half on a GPU, single elsewhere, unless the preset says which."""
    if wish == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return PRECISIONS[wish]


def to_like(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in the type and place of ``like``; nothing waits for a GPU (`psd.runtime.devices.to_device`)."""
    return to_device(value.to(like.dtype), like.device)
