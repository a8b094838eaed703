"""Rewards that score how well images show a prompt, per view, differentiably.

`load_reward` tells the kinds apart by what is in the folder or file: a `CLIPModel` (the embedded reward, PickScore),
HPSv2's and ImageReward's own checkpoints, LAION's aesthetic head, the small critics of
`psd.models.rewards.critic_networks`.  `BlackBoxReward` wraps any Python callable, which then only ranks.  Images are
prepared in torch as their makers do with PIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psd.config.errors import PresetError
from psd.config.preset import CompileMode
from psd.models import vocabulary
from psd.runtime import lanes
from psd.runtime.cuda_graphs import Graphed, launch_whole
from psd.runtime.offload import hold_on_device
from psd.runtime.precision import run_in_chunks

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_LENGTH, IMAGE_REWARD_LENGTH = 77, 35  # tokens that they were trained with


def resize_square(images: Float[Tensor, "n 3 h w"], size: int) -> Float[Tensor, "n 3 size size"]:
    """Differentiable resize of square images (bicubic with antialiasing, then clamped, as PIL does on bytes)."""
    if images.shape[-1] == size:
        return images.clamp(0, 1)
    resized = torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def to_clip_pixels(images: Float[Tensor, "n 3 h w"], size: int) -> Float[Tensor, "n 3 size size"]:
    """Images in [0, 1] as CLIP's towers and BLIP's take them."""
    mean, std = clip_mean_std(images.device)
    return (resize_square(images, size) - mean) / std


@lru_cache
def clip_mean_std(device: torch.device) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """CLIP's mean and deviation, sent to the device once: a copy a call would keep it waiting."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return mean, std


def refuse_unknown_words(tokenizer: Any, prompt: str, source: str) -> None:
    """Raises `PresetError` for words outside a closed vocabulary, which a reward would score as nothing."""
    if unknown := vocabulary.find_unknown_words(tokenizer, prompt):
        raise PresetError(
            f"{source} never learned {', '.join(map(repr, unknown))}: choose words from its tokenizer.json"
        )


def tokenise_prompt(
    tokenizer: Any, prompt: str, source: str, length: int | None = None
) -> tuple[Int[Tensor, "1 l"], Int[Tensor, "1 l"]]:
    """Ids and mask, padded to ``length`` (the tokenizer's own without one).  Raises as `refuse_unknown_words` does.

    The mask is the tokenizer's: CLIP's pads with the very token that its text is read at.
    """
    refuse_unknown_words(tokenizer, prompt, source)
    found = tokenizer(prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return found.input_ids, found.attention_mask


class ImageTextReward:
    """A reward in two halves, so that images are encoded once however many prompts they are compared with."""

    differentiable = True
    scale = 1.0  # of Bradley-Terry

    def __init__(
        self,
        name: str,
        network: nn.Module,
        tokenizer: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch: int = 0,
        compiled: CompileMode = "none",
        parked: bool = False,
    ) -> None:
        """``batch`` > 0 bounds the images that are encoded at once, and what only reads prompts waits in main memory;
        ``compiled``: how the encoding is launched (`psd.runtime.cuda_graphs.launch_whole`); ``parked``: all of the
        network waits there between calls, which are then without gradients."""
        self.name, self.device, self.dtype, self.batch, self.parked = name, device, dtype, batch, parked
        self.network: Any = network.to(device="cpu" if parked else device, dtype=dtype).eval().requires_grad_(False)
        self.rows_apart = lanes.choose_rows(self.network, device)
        if self.rows_apart:
            self.network.to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer
        self._see = launch_whole(self._encode_image, self.image_modules(), compiled)
        self._text = lru_cache(maxsize=4096)(self._read_prompt)
        if batch:
            for part in self.text_modules():
                part.to("cpu")

    def take(self, batch: int) -> None:
        """Takes at most ``batch`` images at once from now on (0: all)."""
        if batch != self.batch and isinstance(self._see, Graphed):
            self._see.discard_recordings()
        self.batch = batch

    def image_modules(self) -> list[nn.Module]:
        """Parts of the network that see an image and are worth compiling; a small critic has none."""
        return []

    def text_modules(self) -> list[nn.Module]:
        """Parts of the network that only prompts need, once each."""
        return []

    @torch.no_grad()
    def _read_prompt(self, prompt: str) -> Any:
        with hold_on_device(self.text_modules(), self.device):
            return self._encode_text(prompt)

    def _encode_text(self, prompt: str) -> Any:
        raise NotImplementedError

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n ..."]:
        raise NotImplementedError

    def _score_features(self, features: Float[Tensor, "n ..."], text: Any) -> Float[Tensor, " n"]:
        raise NotImplementedError

    def encode_image(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v ..."]:
        rows = images.flatten(0, 1)
        run = partial(run_in_chunks, size=self.batch) if self.batch else partial(lanes.map_rows, size=self.rows_apart)
        return run(self._see, rows).unflatten(0, images.shape[:2])

    def score_features(self, features: Float[Tensor, "b v ..."], prompt: str) -> Float[Tensor, "b v"]:
        return self._score_features(features.flatten(0, 1), self._text(prompt)).unflatten(0, features.shape[:2])

    def __call__(self, images: Float[Tensor, "b v 3 h w"], prompt: str) -> Float[Tensor, "b v"]:
        if not self.parked:
            return self.score_features(self.encode_image(images), prompt)
        with torch.no_grad(), hold_on_device([self.network], self.device):
            return self.score_features(self.encode_image(images), prompt)


def score_prompts(
    judge: ImageTextReward, images: Float[Tensor, "b v 3 h w"], prompts: Sequence[str]
) -> Float[Tensor, "b v m"]:
    """The images' scores for each of ``m`` prompts; they are encoded once, and the numbers are those of the calls."""
    features = judge.encode_image(images)
    return torch.stack([judge.score_features(features, prompt) for prompt in prompts], dim=-1)
