"""Rewards: how well images show a prompt, per view, differentiably.

`ClipReward` loads any `CLIPModel` folder or hub id (the embedded reward, PickScore); `CriticReward` loads the small
critics of `psd.judges`; `BlackBoxReward` wraps any Python callable, which then only ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from psd.judges import load_critic
from psd.preset import PresetError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def fit(images: Float[Tensor, "n 3 h w"], size: int) -> Float[Tensor, "n 3 size size"]:
    """Differentiable resize of square images (bicubic with antialiasing, then clamped, as PIL does on bytes)."""
    if images.shape[-1] == size:
        return images.clamp(0, 1)
    resized = torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def token_ids(tokenizer, prompt: str, source: str) -> Tensor:
    ids = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    if tokenizer.unk_token not in (None, tokenizer.eos_token) and (ids == tokenizer.unk_token_id).any():
        unknown = [
            w for w in prompt.split() if tokenizer.unk_token_id in tokenizer(w, add_special_tokens=False).input_ids
        ]
        raise PresetError(
            f"{source} never learned {', '.join(map(repr, unknown))}: choose words from its tokenizer.json"
        )
    return ids


class ClipReward:
    """scale x cosine of a CLIP model's image and text embeddings (PickScore's definition; logits, so tau = 1)."""

    differentiable = True
    scale = 1.0

    def __init__(self, source: str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.name, self.device, self.dtype = source, device, dtype
        model: Any = CLIPModel.from_pretrained(source, dtype=dtype)
        self.model = model.to(device).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.size: int = self.model.config.vision_config.image_size
        self.mean = torch.tensor(CLIP_MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(CLIP_STD, device=device).view(3, 1, 1)
        self._text = lru_cache(maxsize=4096)(self._encode_text)

    @torch.no_grad()
    def _encode_text(self, prompt: str) -> Float[Tensor, " d"]:
        ids = token_ids(self.tokenizer, prompt, self.name).to(self.device)
        features = self.model.get_text_features(
            input_ids=ids, attention_mask=ids.ne(self.tokenizer.pad_token_id).long()
        )
        return torch.nn.functional.normalize(features.pooler_output[0].float(), dim=-1)

    def encode_image(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v d"]:
        pixels = (fit(rearrange(images, "b v c h w -> (b v) c h w"), self.size) - self.mean) / self.std
        features = self.model.get_image_features(pixel_values=pixels.to(self.dtype)).pooler_output.float()
        return torch.nn.functional.normalize(features, dim=-1).unflatten(0, images.shape[:2])

    def compare(self, features: Float[Tensor, "b v d"], prompt: str) -> Float[Tensor, "b v"]:
        cosine = features.flatten(0, 1) @ self._text(prompt)
        return (cosine * self.model.logit_scale.exp().float()).unflatten(0, features.shape[:2])

    def __call__(self, images: Float[Tensor, "b v 3 h w"], prompt: str) -> Float[Tensor, "b v"]:
        return self.compare(self.encode_image(images), prompt)


class CriticReward:
    """A critic of `psd.judges` with its tokenizer; scores are Bradley-Terry logits."""

    differentiable = True
    scale = 1.0

    def __init__(self, source: str, *, device: torch.device) -> None:
        self.name, self.device = source, device
        self.critic = load_critic(Path(source)).to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self._text = lru_cache(maxsize=4096)(self._encode_text)

    @torch.no_grad()
    def _encode_text(self, prompt: str) -> Tensor:
        return self.critic.encode_text(token_ids(self.tokenizer, prompt, self.name).to(self.device))

    def encode_image(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v *d"]:
        features = self.critic.encode_image(fit(rearrange(images, "b v c h w -> (b v) c h w"), 64))
        return features.unflatten(0, images.shape[:2])

    def compare(self, features: Float[Tensor, "b v *d"], prompt: str) -> Float[Tensor, "b v"]:
        rows, text = features.flatten(0, 1), self._text(prompt)
        return self.critic.score(rows, text.expand(len(rows), *text.shape[1:])).unflatten(0, features.shape[:2])

    def __call__(self, images: Float[Tensor, "b v 3 h w"], prompt: str) -> Float[Tensor, "b v"]:
        return self.compare(self.encode_image(images), prompt)


class BlackBoxReward:
    """Any callable ``(images b v 3 h w in [0, 1], prompt) -> scores b v``; it ranks, no gradient is asked of it."""

    differentiable = False

    def __init__(self, name: str, score: Callable[[Tensor, str], Tensor], *, scale: float = 1.0) -> None:
        self.name, self.score, self.scale = name, score, scale

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b v 3 h w"], prompt: str) -> Float[Tensor, "b v"]:
        scores = self.score(images.detach(), prompt)
        if scores.shape != images.shape[:2]:
            raise ValueError(
                f"reward {self.name!r} returned {tuple(scores.shape)}; expected (b, v) = {tuple(images.shape[:2])}"
            )
        return scores


def scores_among(
    judge: ClipReward | CriticReward, images: Float[Tensor, "b v 3 h w"], prompts: Sequence[str]
) -> Float[Tensor, "b v m"]:
    """The images' scores for each of ``m`` prompts; they are encoded once, and the numbers are those of the calls."""
    features = judge.encode_image(images)
    return torch.stack([judge.compare(features, prompt) for prompt in prompts], dim=-1)


def load_reward(source: str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> ClipReward | CriticReward:
    """The reward in a folder or hub repository, by its configuration."""
    config = Path(source) / "config.json"
    if config.is_file() and "critic" in json.loads(config.read_text()):
        return CriticReward(source, device=device)
    return ClipReward(source, device=device, dtype=dtype)
