"""The random draws of a step beside its cameras.

The run's generator draws two seeds a step, whatever the method: of what all methods share (t, cameras, background,
light, jitter) and of the noises with what a method draws itself.  So methods that draw different numbers of noises see
the same cameras and noise levels throughout, and the first noise of one is the first of the others.  All is drawn on
the CPU, the same for every device, but the jitter (`draw_uniform`).
Axes: k candidate, b group, v view, c channel, h w latent pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from psd.config.preset import Preset
from psd.distillation import formulas
from psd.geometry.cameras import Cameras
from psd.runtime.devices import to_device
from psd.scenes.interfaces import Light

# Near what the embedded prior saw; a random plain colour otherwise (preset.random_background).
BACKGROUNDS = ((1.0, 1.0, 1.0), (0.85, 0.85, 0.85), (0.5, 0.5, 0.5))
LIGHT_DISTANCE, UNSHADED, WHITE = (0.8, 1.5), 0.25, 0.5


def step_generators(run: torch.Generator) -> tuple[torch.Generator, torch.Generator]:
    """Makes the two generators of a step: one for what all methods share, one for noises and methods."""
    shared, noises = torch.randint(2**31, (2,), generator=run).tolist()
    return torch.Generator().manual_seed(shared), torch.Generator().manual_seed(noises)


def timestep_range(preset: Preset, step: int, total: int) -> tuple[int, int]:
    """Smallest and largest diffusion step ``t`` of ``total`` that the optimisation step ``step`` may draw."""
    progress = preset.progress(step)
    preset = preset.at(progress)
    return formulas.timestep_bounds(
        progress, low=(preset.t_min_start, preset.t_min_end),
        high=(preset.t_max_start, preset.t_max_end), anneal_fraction=preset.anneal_fraction, total=total,
    )  # fmt: skip


def open_probability(preset: Preset, step: int, total: int) -> float:
    """The probability that the gate (``preference_t_max``) is open at ``step``, before its t is drawn."""
    low, high = timestep_range(preset, step, total)
    t_on = preset.at(preset.progress(step)).preference_t_max
    return sum(formulas.gate_opening(t, total, t_on) > 0 for t in range(low, high + 1)) / (high - low + 1)


def draw_timestep(preset: Preset, step: int, total: int, generator: torch.Generator) -> int:
    """The diffusion step ``t`` of ``total`` for the optimisation step ``step``: one for the whole batch."""
    return formulas.sample_timestep(timestep_range(preset, step, total), generator)


def draw_noise(count: int, shape: torch.Size, generator: torch.Generator) -> Float[Tensor, "k b v c h w"]:
    """Draws one noise of ``shape`` for each of ``count`` candidates, on the CPU."""
    return torch.randn(count, *shape, generator=generator)


def draw_background(
    preset: Preset, generator: torch.Generator
) -> tuple[Float[Tensor, "b 3"], Bool[Tensor, " b"] | None]:
    """Per group a random plain colour, or one of three plain greys; always the same number of draws.

    Where the background is learned, it takes the place of the greys: the second value says in which groups.
    """
    chance = torch.rand(preset.groups, 1, generator=generator)
    colour = torch.rand(preset.groups, 3, generator=generator)
    plain = torch.tensor(BACKGROUNDS)[torch.randint(len(BACKGROUNDS), (preset.groups,), generator=generator)]
    random = chance < preset.random_background
    learned = ~random[:, 0] if preset.scene.has_backdrop else None
    return torch.where(random, colour, plain), learned


def draw_light(cameras: Cameras, generator: torch.Generator) -> Light:
    """MVDream's: beside the camera by a draw of unit deviation that the views of an orbit share, so that a near camera
    sees more shade; a quarter of the groups unshaded, half of the others white, their ambient share uniform."""
    device = cameras.c2w.device
    aside = torch.randn(cameras.groups, 1, 3, generator=generator)
    near, far = LIGHT_DISTANCE
    distance = near + (far - near) * torch.rand(cameras.groups, 1, 1, generator=generator)
    unshaded, white, share = torch.rand(3, cameras.groups, generator=generator)
    ambient = torch.where(unshaded < UNSHADED, 1.0, share)
    whitened = ((unshaded >= UNSHADED) & (white < WHITE)).float()
    # Fetching the cameras would wait for a GPU, sending the draws there does not.
    away = normalize(cameras.c2w[..., :3, 3] + to_device(aside, device), dim=-1)
    return Light(away * to_device(distance, device), to_device(ambient, device), to_device(whitened, device))
