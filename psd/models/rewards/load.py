"""Load the reward that a folder or a release holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, CLIPModel

from psd.config.errors import PresetError
from psd.models import hub
from psd.models.checkpoints import read
from psd.models.rewards import aesthetic, image_reward
from psd.models.rewards.aesthetic import AestheticReward
from psd.models.rewards.clip import ClipReward, HpsReward
from psd.models.rewards.critic import CriticReward
from psd.models.rewards.critic_networks import load_critic
from psd.models.rewards.image_reward import ImageReward
from psd.models.rewards.text_image import ImageTextReward


def load_reward(
    source: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch: int = 0,
    graphs: bool = False,
    parked: bool = False,
    say: hub.Say | None = None,
) -> ImageTextReward:
    """The reward in a folder, a file or a hub repository, by what it holds; `MissingError` says what is not there."""
    half = dtype != torch.float32
    found = hub.fetch_model(source, "reward", half=half, say=say)

    def load_tokenizer(at: Path) -> Any:
        return AutoTokenizer.from_pretrained(str(at))

    def load_clip(at: hub.Located) -> nn.Module:
        return CLIPModel.from_pretrained(str(at.path), dtype=dtype, variant=at.weight_variant())

    kind, network, words = ClipReward, None, None
    if found.path.is_dir():
        words = load_tokenizer(found.path)
        config = json.loads((found.path / "config.json").read_text(encoding="utf-8"))
        if "critic" in config:  # tiny, and trained in float32
            kind, network, dtype = CriticReward, load_critic(found.path), torch.float32
        else:
            network = load_clip(found)
    else:
        state = read.read_state(found.path)
        if "layers.0.weight" in state:
            at = hub.fetch_model(hub.part_source(source, "clip"), "reward", half=half, say=say)
            head = aesthetic.build_score_head(state, dtype)
            kind, network = AestheticReward, nn.ModuleDict({"clip": load_clip(at), "head": head})
        else:
            words = load_tokenizer(hub.fetch_model(hub.part_source(source, "tokenizer"), "tokenizer", say=say).path)
            if "visual.conv1.weight" in state:
                kind, network = HpsReward, read.build_open_clip(state, dtype)
            elif "mlp.layers.0.weight" in state:
                kind, network = ImageReward, image_reward.build_image_reward(state, dtype)
            else:
                raise PresetError(f"{source} is no HPSv2, ImageReward or aesthetic checkpoint: its tensors are others")
    return kind(source, network, words, device=device, dtype=dtype, batch=batch, graphs=graphs, parked=parked)
