"""Load the reward that a folder or a release holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPModel

from psd.config.errors import PresetError, format_value
from psd.config.preset import CompileMode
from psd.models import hub
from psd.models.checkpoints import digests, read
from psd.models.checkpoints.layouts import StateDict
from psd.models.checkpoints.refusals import explain_load_errors, read_json_object
from psd.models.folders import count_text_places, load_network, load_tokenizer
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
    compiled: CompileMode = "none",
    parked: bool = False,
    say: hub.Say | None = None,
) -> ImageTextReward:
    """The reward in a folder, a file or a hub repository, by what it holds; `MissingError` says what is not there."""
    with explain_load_errors(source):
        kind, network, words, dtype = read_reward(source, dtype, say)
    return kind(source, network, words, device=device, dtype=dtype, batch=batch, compiled=compiled, parked=parked)


Parts = tuple[type[ImageTextReward], nn.Module, Any, torch.dtype]  # kind, network, tokenizer, precision


def read_reward(source: str, dtype: torch.dtype, say: hub.Say | None) -> Parts:
    """What `load_reward` makes a reward of; the precision is another than ``dtype`` for the small critics."""
    found = hub.fetch_model(source, "reward", half=dtype != torch.float32, say=say)
    if found.path.is_dir():
        return read_folder(found, source, dtype)
    state = read.read_state(found.path)
    if "layers.0.weight" in state:
        return read_aesthetic(state, source, dtype, say)
    at = hub.fetch_model(hub.part_source(source, "tokenizer"), "tokenizer", say=say).path
    kind: type[ImageTextReward]
    network: nn.Module
    if "visual.conv1.weight" in state:
        read.refuse_other_clip(state)
        kind, network = HpsReward, read.build_open_clip(state, dtype)
        places = count_text_places(network)
    elif "mlp.layers.0.weight" in state:
        kind, network = ImageReward, image_reward.build_image_reward(state, dtype)
        places = network.count_text_places()
    else:
        raise PresetError(f"{source} is no HPSv2, ImageReward or aesthetic checkpoint: its tensors are others")
    read.require_finite_weights(network, source)
    return kind, network, load_tokenizer(at, source, **places), dtype


def read_folder(found: hub.Located, source: str, dtype: torch.dtype) -> Parts:
    """A small critic, or a model with CLIP's two towers in the format of transformers."""
    digests.refuse_wrong_files(found.path, source)
    config = read_json_object(found.path / "config.json", source)
    if "critic" in config:  # tiny, and trained in float32
        critic = load_critic(found.path)
        read.require_finite_weights(critic, source)
        words = load_tokenizer(found.path, source, rows=critic.config["vocabulary_size"])
        return CriticReward, critic, words, torch.float32
    network = load_clip(found, source, dtype)
    return ClipReward, network, load_tokenizer(found.path, source, **count_text_places(network)), dtype


def read_aesthetic(state: StateDict, source: str, dtype: torch.dtype, say: hub.Say | None) -> Parts:
    """LAION's head with the CLIP model whose image embedding it reads."""
    head = aesthetic.build_score_head(state, dtype)
    read.require_finite_weights(head, source)
    clip_source = hub.part_source(source, "clip")
    at = hub.fetch_model(clip_source, "reward", half=dtype != torch.float32, say=say)
    clip = load_clip(at, clip_source, dtype)
    reads, given = head[0].in_features, clip.config.projection_dim
    if reads != given:
        raise PresetError(f"{source} reads embeddings of {reads} numbers and {clip_source} gives {given}: another CLIP")
    return AestheticReward, nn.ModuleDict({"clip": clip, "head": head}), None, dtype


def load_clip(at: hub.Located, source: str, dtype: torch.dtype) -> Any:
    """A `CLIPModel` in a folder; `PresetError` for a folder that holds another kind of model."""
    kind = read_json_object(at.path / "config.json", source).get("model_type")
    if kind != "clip":
        raise PresetError(f"{source} is a model of type {format_value(kind)}; a reward folder holds a CLIPModel (clip)")
    return load_network(CLIPModel, at, source, dtype)
