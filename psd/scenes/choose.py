"""The table of scenes: make the one that a preset names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from psd.scenes.radiance import RadianceScene

if TYPE_CHECKING:
    from psd.config.preset import Preset


def make_scene(preset: Preset, device: torch.device | str = "cpu") -> RadianceScene:
    """The scene that ``preset`` asks for, before the first step."""
    return RadianceScene(preset, device)
