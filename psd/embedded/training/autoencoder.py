"""The embedded autoencoder: diffusers' `AutoencoderTiny`, 64 px images to 8 x 16 x 16 latents.

Trained on crops (it is fully convolutional) with L1 + L2, more of it on the object, and an edge term; latents are
pulled to zero mean and unit variance, and noise is added before decoding, so that the decoder forgives the small errors
of a diffusion prior.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from psd.embedded.training import data

CROP = 32  # px
LATENT_NOISE = 0.05  # standard deviations
OBJECT_WEIGHT = 4.0  # of a pixel of an object: most pixels are background, and the objects' dark colours turned grey
LATENT_CHANNELS = 8  # 4 leave thin parts and the colours of small neighbours blurred


def build_autoencoder() -> AutoencoderTiny:
    """The embedded autoencoder with new weights: images in [-1, 1] to latents of a quarter of their side."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 2, 2),
        num_decoder_blocks=(2, 3, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


def edge_differences(image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 6 h2 w2"]:
    """Forward differences in x and y: blur costs more than a constant offset."""
    return torch.cat([image.diff(dim=-1)[..., :-1, :], image.diff(dim=-2)[..., :-1]], dim=1)


class AutoencoderTask:
    """What the loop trains and ships as ``vae``: a `TrainingTask` on crops of single views."""

    name = "vae"
    captions_seen = data.HELD_OUT

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.batch = arguments.batch
        self.device = torch.device(arguments.device)
        self.model: Any = (
            AutoencoderTiny.from_pretrained(arguments.warm_start, subfolder="vae")
            if arguments.warm_start
            else build_autoencoder()
        )
        if arguments.decoder_only:
            self.model.encoder.requires_grad_(False)
        shards = data.load_shards(arguments.data, fields=("rgb", "mask"))
        self.images = rearrange(shards.rgb, "o v h w c -> (o v) c h w")
        self.masks = rearrange(shards.mask, "o v h w -> (o v) 1 h w")

    def loss(self, iteration: int, objects: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of ``4 * objects`` crops; ``psnr`` (dB, all pixels), ``inside`` (the objects'), ``moments``."""
        rows = torch.randint(len(self.images), (objects * 4,), generator=generator)
        size = self.images.shape[-1]
        y, x = (int(v) * 4 for v in torch.randint((size - CROP) // 4 + 1, (2,), generator=generator))
        images = self.images[rows, :, y : y + CROP, x : x + CROP].to(self.device).float() / 127.5 - 1
        mask = self.masks[rows, :, y : y + CROP, x : x + CROP].to(self.device).float() / 255
        weight = 1 + (OBJECT_WEIGHT - 1) * mask
        latents = self.model.encode(images).latents
        noise = torch.randn(latents.shape, generator=generator).to(self.device) * LATENT_NOISE
        decoded = self.model.decode(latents + noise).sample
        error = decoded - images
        moments = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
        loss = (
            (weight * (error.abs() + error.square())).mean()
            + (edge_differences(decoded) - edge_differences(images)).abs().mean()
            + 0.1 * moments
        )
        inside = (mask * error.detach().square()).sum() / (3 * mask.sum()).clamp(min=1)
        psnr, inside = (-10 * torch.log10(value / 4) for value in (error.detach().square().mean(), inside))
        return loss, {"psnr": psnr.item(), "inside": inside.item(), "moments": moments.item()}

    def ship(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, AutoencoderTiny)
        save_half(ema, folder / "vae")
        forget_keys(folder / "vae" / "config.json", "block_out_channels")  # diffusers warns of it when it reads it

    @torch.no_grad()
    def sheet(self, ema: Any, path: Path) -> None:
        """Images above their reconstructions, 12 columns."""
        images = self.images[:: max(1, len(self.images) // 36)][:36].to(self.device).float() / 127.5 - 1
        decoded = ema.decode(ema.encode(images).latents).sample
        pair = torch.stack([images, decoded.clamp(-1, 1)])
        picture = rearrange(pair, "p (r c) k h w -> (r p h) (c w) k", c=12).cpu()
        Image.fromarray(((picture + 1) * 127.5).round().byte().numpy()).resize(
            (picture.shape[1] * 2, picture.shape[0] * 2), Image.Resampling.NEAREST
        ).save(path)


def save_half(model: nn.Module, folder: Path) -> None:
    """Save a diffusers or transformers model as fp16 safetensors without touching the trained copy.

    Its configuration forgets the folder that the model was once read from: a place on the machine that trained it.
    """
    copy.deepcopy(model).cpu().half().save_pretrained(folder, safe_serialization=True)  # pyright: ignore
    forget_keys(folder / "config.json", "_name_or_path")


def forget_keys(path: Path, *keys: str) -> None:
    """Take keys out of a JSON file."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in keys:
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
