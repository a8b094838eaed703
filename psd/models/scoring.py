"""Pictures from outside, scored by the judges of a preset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from psd.config.errors import PresetError, format_value
from psd.config.preset import Preset
from psd.models.load import borrow_judge
from psd.runtime.deferred import require_finite
from psd.runtime.offload import hold_on_device
from psd.runtime.pictures import refuse_large_picture


def score_images(
    preset: Preset, images: Sequence[UInt8[np.ndarray, "h w 3"]], prompt: str, judge: str = ""
) -> dict[str, Any]:
    """Raw scores of images of any sizes by one of the preset's judges or rewards; "" is its selector judge.

    From any thread: a run that computes finishes its step first, and waits in turn.
    Raises PresetError for another judge, for words that it never learned, and for an image of an edge above
    `psd.runtime.pictures.LONGEST_EDGE`, which would be padded to a square of it.
    """
    names = [*preset.judges, *preset.reward_names]
    name = judge or names[0]
    if name not in names:
        raise PresetError(f"no judge {format_value(judge)} here; there are: {', '.join(names)}")
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise PresetError(f"an image of shape {image.shape} and type {image.dtype}: bytes of h x w x 3 are scored")
        refuse_large_picture(image.shape[1], image.shape[0])
    reward = borrow_judge(preset, name)
    # Gradients on, so that no call is recorded as a CUDA graph: pictures come in any size, and the few recordings are
    # the run's.  They cost nothing, for neither networks nor pictures ask for any.
    with hold_on_device([reward.network] if reward.parked else [], reward.device), torch.enable_grad():
        scores = [
            require_finite(name, reward(pad_to_square(image).to(reward.device), prompt)).item() for image in images
        ]
    return {"judge": name, "scores": scores}


def pad_to_square(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 1 3 size size"]:
    """Returns a picture in [0, 1], centred on white where it is not square."""
    height, width = image.shape[:2]
    size = max(height, width)
    whole = torch.ones(3, size, size)
    top, left = (size - height) // 2, (size - width) // 2
    whole[:, top : top + height, left : left + width] = torch.from_numpy(image.copy()).permute(2, 0, 1) / 255
    return whole[None, None]
