"""`load_models`: the one place that chooses device and backend, loads, caches and explains."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from psd.preset import PRESETS, MissingError, Preset
from psd.prior import DiffusersPrior
from psd.protocols import Models, Reward
from psd.rewards import BlackBoxReward, ClipReward, CriticReward, load_reward
from psd.scene import make_scene

ROOT = PRESETS.parent


def load_models(preset: Preset, *, black_boxes: dict[str, Callable[[Tensor, str], Tensor]] | None = None) -> Models:
    """Everything that ``preset`` names, loaded once a process and shared (all networks are frozen).

    ``black_boxes`` adds rewards that are plain callables; the preset weighs them by name in ``rewards``.
    Raises `PresetError` for words that the prior never learned, `MissingError` for models that are not there.
    """
    if preset.threads:
        torch.set_num_threads(preset.threads)
    device, why = choose_device(preset.device)
    prior = load_prior(preset.prior, device)
    for prompt in (preset.prompt, preset.negative_prompt):
        prior.embed(prompt)  # unknown words are refused here, before anything is made
    callables = black_boxes or {}

    def find(name: str) -> Reward:
        return BlackBoxReward(name, callables[name]) if name in callables else load_judge(name, device)

    return Models(
        prior=prior,
        rewards={name: find(name) for name in preset.rewards},
        judges={name: find(name) for name in preset.judges},
        scene=lambda chosen: make_scene(chosen, device),
        notes=(why, f"{torch.get_num_threads()} CPU threads", f"prior {preset.prior} in {prior.dtype}"),
    )


def choose_device(wish: str) -> tuple[torch.device, str]:
    """The device and the reason; an explicit wish that cannot be met raises."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wish != "auto":
        if not found[wish]:
            raise MissingError(
                f"device={wish} is not available here: use device=auto; `python -m psd doctor` says more"
            )
        return torch.device(wish), f"device {wish}, as asked"
    name = next(name for name, available in found.items() if available)
    return torch.device(name), f"device {name}: the fastest found"


def resolve(source: str) -> str:
    """A path of the repository for what ships in it, any other folder or hub id as it is; a missing folder raises."""
    shipped = ROOT / source
    if shipped.is_dir():
        return str(shipped)
    if source.startswith(("assets/", "/", "./", "../")) and not Path(source).is_dir():
        raise MissingError(f"no model at {source!r}: `python -m psd doctor` lists what is here")
    return source


@lru_cache(maxsize=2)
def load_prior(source: str, device: torch.device) -> DiffusersPrior:
    return DiffusersPrior(
        resolve(source), device=device, dtype=torch.float32 if device.type == "cpu" else torch.float16
    )


@lru_cache(maxsize=8)
def load_judge(source: str, device: torch.device) -> ClipReward | CriticReward:
    reward = load_reward(resolve(source), device=device, dtype=torch.float32 if device.type == "cpu" else torch.float16)
    reward.name = source
    return reward
