"""The table of scenes: make the one that a preset names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from psd.scenes.gaussians import GaussianScene
from psd.scenes.radiance import RadianceScene
from psd.scenes.surface import SurfaceScene

if TYPE_CHECKING:
    from psd.config.preset import Preset

KINDS: dict[str, type[RadianceScene] | type[SurfaceScene] | type[GaussianScene]] = {  # a row for each `scene.kind`
    "grid": RadianceScene,
    "hash": RadianceScene,
    "surface": SurfaceScene,
    "gaussians": GaussianScene,
}


def make_scene(
    preset: Preset, device: torch.device | str = "cpu"
) -> RadianceScene | SurfaceScene | GaussianScene:  # fmt: skip
    """The scene that ``preset`` asks for, before the first step."""
    return KINDS[preset.scene.kind](preset, device)
