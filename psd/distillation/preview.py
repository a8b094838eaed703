"""The preview of a run: renders from four fixed cameras, the scores of rewards and judges, and image statistics.

Draws no random number, so that showing more or less changes nothing.
Axes: v view, h w image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from psd.config.preset import Preset
from psd.geometry.cameras import turntable_cameras
from psd.models.interfaces import Models
from psd.runtime.deferred import require_finite
from psd.scenes.interfaces import Scene

VIEWS = 4
BINS = 6  # levels of a channel in the histograms: 216 colours
LUMINANCE = (0.2126, 0.7152, 0.0722)  # Rec. 709


@dataclass(frozen=True)
class Preview:
    """Pictures of the scene from a few sides, with their scores and statistics."""

    images: Mapping[str, UInt8[np.ndarray, "v h w 3"]]
    scores: dict[str, list[float]]  # reward/<name> or judge/<name> -> raw score of each view, where all are finite
    unscored: tuple[str, ...]  # the names of the others
    statistics: dict[str, float]  # image/<name>

    @property
    def metrics(self) -> dict[str, float]:
        return {**self.mean_scores, **self.statistics}

    @property
    def mean_scores(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self.scores.items()}


@torch.no_grad()
def render_preview(scene: Scene, preset: Preset, models: Models) -> Preview:
    """Renders the object before white from four sides, the front first; `NonFiniteError` where one is not finite.

    A score that is not is left out: in float16 a network may overflow on a picture that nothing is wrong with.
    """
    device = models.prior.device
    cameras = turntable_cameras(VIEWS).to(device)
    render = scene.render(cameras, preset.preview_size, background=torch.ones(1, 3, device=device), normals=True)
    require_finite("preview", render.rgb)
    images = {
        "rgb": render.rgb[0],
        "opacity": render.opacity[0].expand_as(render.rgb[0]),
        "depth": nearness_image(render.depth, cameras.distance)[0].expand_as(render.rgb[0]),
    }
    if render.normal is not None:
        images["normal"] = (render.normal[0] + 1) / 2 * render.opacity[0] + (1 - render.opacity[0])
    rated = {f"reward/{reward.name}": reward for reward in models.rewards.values()}
    rated |= {f"judge/{judge.name}": judge for judge in models.judges.values()}
    found = {name: rate(render.rgb, preset.prompt)[0].tolist() for name, rate in rated.items()}
    scores = {name: values for name, values in found.items() if all(map(math.isfinite, values))}
    return Preview(
        images={name: to_uint8(image) for name, image in images.items()},
        scores=scores,
        unscored=tuple(name for name in found if name not in scores),
        statistics=image_statistics(render.rgb[0], render.opacity[0]),
    )


def nearness_image(depth: Float[Tensor, "b v 1 h w"], distance: Float[Tensor, "b v"]) -> Float[Tensor, "b v 1 h w"]:
    """Turns depth into a picture: 1 at the near side of the unit ball, 0 at its far side and where nothing is."""
    near = (distance[..., None, None, None] + 1 - depth) / 2
    return torch.where(depth > 0, near, 0.0)


def image_statistics(rgb: Float[Tensor, "v 3 h w"], opacity: Float[Tensor, "v 1 h w"]) -> dict[str, float]:
    """Signs of collapse and of reward hacking, in [0, 1]; all but edges and coverage weighted by opacity: the object's.

    saturation: mean of max - min over channels; contrast: standard deviation of luminance; edge_density: mean absolute
    luminance step to the right and lower neighbour; colour_entropy: of the histogram over `BINS` levels a channel, 1
    where all colours are as frequent; coverage: mean opacity; view_consistency: overlap of the colour histograms of two
    views, averaged over pairs (1: every side has the same colours, or there is one only).
    """
    weight = opacity / opacity.sum().clamp_min(1e-6)
    luminance = torch.einsum("vchw,c->vhw", rgb, rgb.new_tensor(LUMINANCE))[:, None]
    mean = (weight * luminance).sum()
    histograms = colour_histograms(rgb, opacity)
    colours = colour_histograms(*(rearrange(value, "v c h w -> 1 c (v h) w") for value in (rgb, opacity)))[0]
    first, second = torch.triu_indices(len(rgb), len(rgb), offset=1)
    overlaps = torch.minimum(histograms[first], histograms[second]).sum(1)
    edges = (luminance.diff(dim=-1).abs().mean() + luminance.diff(dim=-2).abs().mean()) / 2
    return {
        "image/saturation": float((weight * (rgb.amax(1, keepdim=True) - rgb.amin(1, keepdim=True))).sum()),
        "image/contrast": float((weight * (luminance - mean).square()).sum().sqrt()),
        "image/edge_density": float(edges),
        "image/colour_entropy": float(-(colours * colours.clamp_min(1e-12).log()).sum() / math.log(BINS**3)),
        "image/coverage": float(opacity.mean()),
        "image/view_consistency": float(overlaps.mean()) if len(overlaps) else 1.0,
    }


def colour_histograms(rgb: Float[Tensor, "v 3 h w"], weight: Float[Tensor, "v 1 h w"]) -> Float[Tensor, "v n"]:
    """Shares of `BINS` ** 3 colours in each view; all 0 where nothing has weight."""
    levels = (rgb * BINS).long().clamp(0, BINS - 1)
    bins = ((levels[:, 0] * BINS + levels[:, 1]) * BINS + levels[:, 2]).flatten(1)
    counts = rgb.new_zeros(len(rgb), BINS**3).scatter_add_(1, bins, weight.flatten(1))
    return counts / counts.sum(1, keepdim=True).clamp_min(1e-6)


def to_uint8(images: Float[Tensor, "v 3 h w"]) -> UInt8[np.ndarray, "v h w 3"]:
    return rearrange((images.clamp(0, 1) * 255).round().byte(), "v c h w -> v h w c").cpu().numpy()
