"""A frozen diffusion prior in diffusers' folder format, from a folder or a hub id: multi- or single-view.

The embedded prior and the large ones take this road; nothing in the algorithm depends on which.
A folder holds unet, vae, text_encoder, tokenizer, scheduler; ``model_index.json`` may add ``views``, ``image_size`` and
``latent_clamp``.  A U-Net with a projected 16-value class embedding is camera-conditioned in MVDream's way.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from einops import rearrange, repeat
from huggingface_hub import hf_hub_download
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel
from transformers.utils.logging import disable_progress_bar

from psd.cameras import Cameras, mvdream_condition
from psd.multiview import join_views
from psd.preset import PresetError

disable_progress_bar()  # of loading weights, which takes no time; downloads keep theirs

AUTOENCODERS = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}
DISPLAY_WORDS = 1000  # of a large vocabulary, the most frequent whole words are offered for nearest-token displays


class DiffusersPrior:
    """`psd.protocols.Prior` over diffusers components; everything frozen, in ``dtype`` on ``device``."""

    def __init__(self, source: str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        index = read_json(source, "model_index.json")
        vae_class = AUTOENCODERS[read_json(source, "vae/config.json")["_class_name"]]
        # Any: the libraries annotate these calls more narrowly than they behave
        self.unet: Any = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=dtype)
        self.vae: Any = vae_class.from_pretrained(source, subfolder="vae", torch_dtype=dtype)
        self.text_encoder: Any = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(source, subfolder="tokenizer")
        for network in (self.unet, self.vae, self.text_encoder):
            network.to(device).eval().requires_grad_(False)
        scheduler: Any = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
        self.prediction_type: str = scheduler.config["prediction_type"]
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise PresetError(f"{source} predicts {self.prediction_type!r}; supported are epsilon and v_prediction")
        # diffusers rounds betas to float32 first; the product in float64 keeps alpha and sigma exact from there
        self.alpha_bar = torch.cumprod(1 - scheduler.betas.double(), dim=0)
        self.camera_conditioned = self.unet.config["class_embed_type"] == "projection"
        self.views: int = index.get("views", 4 if self.camera_conditioned else 1)
        self.image_size: int = index.get("image_size", self.unet.config["sample_size"] * self.vae_factor)
        self.latent_clamp: float | None = index.get("latent_clamp")
        join_views(self.unet, self.views)

    @property
    def vae_factor(self) -> int:
        """Pixels of an image along an edge for one latent."""
        blocks = self.vae.config.get("block_out_channels") or self.vae.config["encoder_block_out_channels"]
        return 2 ** (len(blocks) - 1)

    def encode(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v c h2 w2"]:
        """Latents of images in [0, 1]: the mean for a variational autoencoder, times its scaling factor."""
        pixels = rearrange(images, "b v c h w -> (b v) c h w").to(self.dtype) * 2 - 1
        encoded = self.vae.encode(pixels)
        latents = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mean
        latents = latents.float() * self.vae.config["scaling_factor"]
        return rearrange(latents, "(b v) c h w -> b v c h w", v=images.shape[1])

    def decode(self, z0: Float[Tensor, "b v c h2 w2"]) -> Float[Tensor, "b v 3 h w"]:
        """Images of latents, nominally in [0, 1] but not clamped."""
        latents = rearrange(z0, "b v c h w -> (b v) c h w").to(self.dtype) / self.vae.config["scaling_factor"]
        images = self.vae.decode(latents).sample.float() / 2 + 0.5
        return rearrange(images, "(b v) c h w -> b v c h w", v=z0.shape[1])

    def _token_ids(self, prompt: str) -> Tensor:
        """Token ids ``1 l``; words outside a closed vocabulary are refused, never silently unknown."""
        limit = self.tokenizer.model_max_length
        length = len(self.tokenizer(prompt).input_ids)
        if length > limit:
            raise PresetError(f"the prompt has {length} tokens; {self.source} takes {limit}: shorten it")
        unknown_id = self.tokenizer.unk_token_id
        unknown = [
            word for word in prompt.split()
            if unknown_id in self.tokenizer(word, add_special_tokens=False).input_ids and self.closed_vocabulary
        ]  # fmt: skip
        if unknown:
            words = sorted(set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens))
            near = {word: get_close_matches(word.lower(), words, 3, cutoff=0.4) for word in unknown}
            hints = "; ".join(f"{word!r}" + (f" (near: {', '.join(n)})" if n else "") for word, n in near.items())
            raise PresetError(f"{self.source} never learned {hints}. It knows: {', '.join(words)}")
        return self.tokenizer(prompt, padding="max_length", max_length=limit, return_tensors="pt").input_ids

    @property
    def closed_vocabulary(self) -> bool:
        """Whether each word is one token, so that an unknown one has no meaning (byte-pair tokenizers spell it)."""
        return self.tokenizer.unk_token not in (None, self.tokenizer.eos_token)

    @torch.no_grad()
    def embed(self, prompt: str) -> Float[Tensor, "l d"]:
        return self.text_encoder(self._token_ids(prompt).to(self.device)).last_hidden_state[0].float()

    def tokens(self, prompt: str) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(self._token_ids(prompt)[0].tolist())

    def vocabulary(self) -> tuple[list[str], Float[Tensor, "w d"]]:
        """Words with the text encoder's *output* for each alone (position after the start token)."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> tuple[list[str], Float[Tensor, "w d"]]:
        by_id = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        words = [word for word, _ in by_id if word not in self.tokenizer.all_special_tokens]
        if not self.closed_vocabulary:
            words = [w.removesuffix("</w>") for w in words if w.endswith("</w>") and w[:-4].isalpha()][:DISPLAY_WORDS]
        return words, torch.stack([self.embed(word)[1] for word in words])

    def predict_noise(
        self, z_t: Float[Tensor, "b v c h2 w2"], t: int, embedding: Float[Tensor, "b l d"], cameras: Cameras
    ) -> Float[Tensor, "b v c h2 w2"]:
        views = z_t.shape[1]
        rows = rearrange(z_t, "b v c h w -> (b v) c h w").to(self.dtype)
        condition = None
        if self.camera_conditioned:
            condition = rearrange(mvdream_condition(cameras), "b v d -> (b v) d").to(self.device, self.dtype)
        text = repeat(embedding, "b l d -> (b v) l d", v=views).to(self.dtype)
        output = self.unet(rows, t, text, class_labels=condition).sample.float()
        output = rearrange(output, "(b v) c h w -> b v c h w", v=views)
        if self.prediction_type == "epsilon":
            return output
        alpha, sigma = self.alpha_bar[t].sqrt().item(), (1 - self.alpha_bar[t]).sqrt().item()
        return alpha * output + sigma * z_t  # v = alpha noise - sigma z0 and z_t = alpha z0 + sigma noise


@lru_cache(maxsize=64)
def read_json(source: str, name: str) -> dict:
    """A JSON file of a local folder or of a hub repository."""
    folder = Path(source)
    path = folder / name if folder.is_dir() else Path(hf_hub_download(source, name))
    return json.loads(path.read_text(encoding="utf-8"))
