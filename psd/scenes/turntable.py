"""A scene seen from all sides, as the frames of a film; `psd.runs.store.media.write_films` makes the files."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8

from psd.geometry import cameras as geometry_cameras
from psd.scenes.interfaces import Scene

FRAMES, ELEVATION_DEG = 48, 15.0
CHUNK = 4  # frames rendered at a time: memory


def render_turntable(
    scene: Scene,
    *,
    frames: int = FRAMES,
    size: int = 128,
    elevation_deg: float = ELEVATION_DEG,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    device: torch.device | str = "cpu",
) -> UInt8[np.ndarray, "v h w 3"]:
    """``frames`` renders on one turn around ``scene``, the first from the front, ``size`` x ``size`` pixels."""
    cameras = geometry_cameras.turntable_cameras(frames, elevation_deg=elevation_deg).to(device)
    plain = torch.tensor([background], device=device)
    pictures = []
    with torch.no_grad():
        for start in range(0, frames, CHUNK):
            rgb = scene.render(cameras[:, start : start + CHUNK], size, background=plain).rgb[0]
            pictures.append((rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(pictures)
