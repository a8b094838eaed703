"""The table of scenes: make the one that a preset names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from psd.config.settings import SurfaceSettings
from psd.scenes.radiance import RadianceScene
from psd.scenes.surface import SurfaceScene

if TYPE_CHECKING:
    from psd.config.preset import Preset


def make_scene(preset: Preset, device: torch.device | str = "cpu") -> RadianceScene | SurfaceScene:
    """The scene that ``preset`` asks for, before the first step."""
    return SurfaceScene(preset, device) if isinstance(preset.scene, SurfaceSettings) else RadianceScene(preset, device)
