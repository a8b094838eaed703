"""The large models with random weights: exact shapes without a download, for speed and memory, never for pictures.

``tiny`` keeps the structure and shrinks the widths, so that the same road can be walked on a CPU.
"""

from __future__ import annotations

import string
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import BlipConfig, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.models import load
from psd.models.checkpoints.read import CAMERA
from psd.models.interfaces import Models
from psd.models.prior.components import LDM_SCHEDULE, Components, compute_alpha_bar
from psd.models.prior.diffusers_prior import DiffusersPrior
from psd.models.prior.view_prompts import SIDES
from psd.models.rewards.clip import ClipReward, HpsReward
from psd.models.rewards.image_reward import ImageReward, ImageRewardNetwork
from psd.models.rewards.text_image import ImageTextReward

CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
ENDS = ("<|startoftext|>", "<|endoftext|>")
END = ENDS.index("<|endoftext|>")  # its id, by which CLIP finds where a text ends
MOST_TOKENS = 49408  # CLIP's, for which the text towers have rows; a preset's prompts need a few hundred
HEAD = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}  # ImageReward's, by layer number


def random_models(preset: Preset, device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Models:
    """Makes the models that ``preset`` names, where their architecture is known, with weights from the preset's seed.

    Raises `PresetError` for models of other architectures, and for prompts of more words than CLIP has tokens.
    """
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(preset.seed)
        parts = {name: random_components(name, dtype, tiny, collect_texts(preset)) for name in preset.priors}
        decoder: Any = AutoencoderTiny() if preset.reward_decoder else None
        if decoder:
            freeze_network(decoder, dtype)
        priors = {
            name: DiffusersPrior(
                name, found, device=device, dtype=dtype, decoder=decoder, batch=preset.network_batch,
                compiled=preset.compile,
            )
            for name, found in parts.items()
        }  # fmt: skip
        rewards = {
            name: random_reward(name, device, dtype, preset, tiny)
            for name in dict.fromkeys([*preset.reward_names, *preset.judges])
        }
    for name, prior in priors.items():
        with load.naming_stage(preset, lambda stage, name=name: stage.prior == name):
            for prompt in (preset.prompt, preset.negative_prompt):
                prior.embed_prompt(prompt)  # too long ones are refused here, as those that are loaded do

    def reduce_batch() -> None:
        for network in (*priors.values(), *rewards.values()):
            network.take(load.orbit_batch(preset, priors.values()))

    return Models(
        priors=priors,
        rewards={name: rewards[name] for name in preset.reward_names},
        judges={name: rewards[name] for name in preset.judges},
        notes=("random weights: for measuring only",),
        fewer=reduce_batch,
    )


def collect_texts(preset: Preset) -> tuple[str, ...]:
    """The texts that the models of a run encode."""
    return (preset.prompt, preset.negative_prompt, *(f", {side} view" for side in SIDES))


@lru_cache
def make_tokenizer(known: tuple[str, ...] = ()) -> CLIPTokenizer:
    """Makes a tokenizer as CLIP's, for which each word of the ``known`` texts is one token, as for the released one.

    Other words are spelled.  How long a prompt is does not change what a step costs: all are padded to 77 tokens.  But
    longer ones are refused, and the large presets' negative prompt is, spelled.
    """
    empty = CLIPTokenizer(vocab={token: i for i, token in enumerate(ENDS)}, merges=[], model_max_length=77)
    alphabet = " ".join([*string.ascii_lowercase, *string.digits, *string.punctuation])  # as ends of words too
    return empty.train_new_from_iterator([alphabet, *known], vocab_size=MOST_TOKENS, show_progress=False)


def random_components(source: str, dtype: torch.dtype, tiny: bool, known: tuple[str, ...] = ()) -> Components:
    """A prior of the Stable Diffusion family; MVDream's has a camera embedding.

    Each word of the ``known`` texts is one token.  Raises `PresetError` for other families.
    """
    camera, first = "mvdream" in source.lower(), "v1-5" in source
    if not (camera or first or "stable-diffusion-2" in source):
        raise PresetError(f"the architecture of {source} is not known here: choose a preset of mvdream, sd21 or sd15")
    widths = (32, 32, 64, 64) if tiny else (320, 640, 1280, 1280)
    context = 64 if tiny else 768 if first else 1024
    condition = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA} if camera else {}
    unet_config: dict[str, Any] = {
        "sample_size": 8 if tiny else 32 if camera else 64,
        "block_out_channels": widths,
        "attention_head_dim": 2 if tiny else 8 if first else (5, 10, 20, 20),
        "cross_attention_dim": context,
        "use_linear_projection": not first,
        "down_block_types": [*[CROSS.format("Down")] * 3, PLAIN.format("Down")],
        "up_block_types": [PLAIN.format("Up"), *[CROSS.format("Up")] * 3],
        **condition,
    }
    vae_config: dict[str, Any] = {
        "block_out_channels": (32, 32, 32, 32) if tiny else (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "layers_per_block": 2,
    }
    unet: Any = UNet2DConditionModel(**unet_config)
    vae: Any = AutoencoderKL(**vae_config)
    text: Any = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=context, intermediate_size=4 * context, num_attention_heads=context // 64,
            num_hidden_layers=2 if tiny else 12 if first else 23, eos_token_id=END,
        )
    )  # fmt: skip
    for network in (unet, vae, text):
        freeze_network(network, dtype)
    with torch.device("cpu"):
        scheduler: Any = DDPMScheduler(**LDM_SCHEDULE)
        schedule = compute_alpha_bar(scheduler)
    return Components(unet, vae, text, make_tokenizer(known), "epsilon", schedule, {})


def freeze_network(network: nn.Module, dtype: torch.dtype) -> None:
    """Freezes a network in ``dtype``, by torch's own cast: that of diffusers warns of modules to keep in float32."""
    nn.Module.to(network, dtype).eval().requires_grad_(False)


def random_reward(name: str, device: torch.device, dtype: torch.dtype, preset: Preset, tiny: bool) -> ImageTextReward:
    """Makes the reward that ``name`` stands for, with random weights; `PresetError` for an unknown architecture."""
    network: Any
    if "ImageReward" in name:
        kind, network = ImageReward, random_image_reward(tiny)
    elif "HPS" in name or "PickScore" in name:
        kind, network = HpsReward if "HPS" in name else ClipReward, random_vit_h(tiny)
    else:
        raise PresetError(f"the architecture of {name} is not known here: use HPSv2, PickScore or ImageReward")
    batch, trained = preset.network_batch, name in preset.reward_names
    return kind(
        name, network.to(dtype), make_tokenizer(collect_texts(preset)), device=device, dtype=dtype, batch=batch,
        compiled=preset.compile if trained else "none", parked=batch > 0 and not trained,
    )  # fmt: skip


def random_vit_h(tiny: bool) -> CLIPModel:
    """ViT-H-14: what HPSv2 and PickScore are tuned from."""
    width, text, layers = (64, 64, 2) if tiny else (1280, 1024, 0)
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 16,
        "num_hidden_layers": layers or 32, "image_size": 56 if tiny else 224, "patch_size": 14,
        "projection_dim": text, "hidden_act": "gelu",
    }  # fmt: skip
    words = {
        "hidden_size": text, "intermediate_size": 4 * text, "num_attention_heads": text // 64,
        "num_hidden_layers": layers or 24, "projection_dim": text, "hidden_act": "gelu",
        "eos_token_id": END,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=text))


def random_image_reward(tiny: bool) -> ImageRewardNetwork:
    """Makes ImageReward's network with random weights: BLIP with a ViT-L image tower, ``tiny`` for tests."""
    width, layers = (64, 2) if tiny else (1024, 24)
    config = BlipConfig(
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64,
            "num_hidden_layers": layers, "image_size": 64 if tiny else 224, "patch_size": 16,
            "initializer_range": 0.02,
        },
        text_config={
            "hidden_size": 768, "encoder_hidden_size": width, "intermediate_size": 3072, "num_attention_heads": 12,
            "num_hidden_layers": 2 if tiny else 12,
        },
    )  # fmt: skip
    head = {f"{number}.weight": torch.empty(shape) for number, shape in HEAD.items()}
    return ImageRewardNetwork(config, head)
