"""The table of scenes: make the one that a preset names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from psd.config.settings import GaussianSettings, SurfaceSettings
from psd.scenes.gaussians import GaussianScene
from psd.scenes.radiance import RadianceScene
from psd.scenes.surface import SurfaceScene

if TYPE_CHECKING:
    from psd.config.preset import Preset


def make_scene(
    preset: Preset, device: torch.device | str = "cpu"
) -> RadianceScene | SurfaceScene | GaussianScene:  # fmt: skip
    """The scene that ``preset`` asks for, before the first step."""
    match preset.scene:
        case SurfaceSettings():
            return SurfaceScene(preset, device)
        case GaussianSettings():
            return GaussianScene(preset, device)
        case _:
            return RadianceScene(preset, device)
