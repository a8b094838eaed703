"""Pictures from outside, scored by the judges of a preset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from psd.models import choose_device, choose_precision, load_judge
from psd.preset import Preset, PresetError, shown
from psd.score import require_finite


@torch.no_grad()
def score_images(
    preset: Preset, images: Sequence[UInt8[np.ndarray, "h w 3"]], prompt: str, judge: str = ""
) -> dict[str, Any]:
    """Raw scores of images of any sizes by one of the preset's judges or rewards; "" is its selector judge.

    Raises PresetError for another judge, and for words that it never learned.
    """
    names = [*preset.judges, *preset.rewards]
    name = judge or names[0]
    if name not in names:
        raise PresetError(f"no judge {shown(judge)} here; there are: {', '.join(names)}")
    device, _ = choose_device(preset.device)
    reward = load_judge(name, device, choose_precision(preset.precision, device), batch=preset.network_batch)
    scores = [require_finite(name, reward(square(image).to(device), prompt)).item() for image in images]
    return {"judge": name, "scores": scores}


def square(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 1 3 size size"]:
    """In [0, 1], centred on white where it is not square."""
    height, width = image.shape[:2]
    size = max(height, width)
    whole = torch.ones(3, size, size)
    top, left = (size - height) // 2, (size - width) // 2
    whole[:, top : top + height, left : left + width] = torch.from_numpy(image.copy()).permute(2, 0, 1) / 255
    return whole[None, None]
