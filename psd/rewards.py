"""Rewards: how well images show a prompt, per view, differentiably.

`load_reward` tells the kinds apart by what is in the folder or file: a `CLIPModel` (the embedded reward, PickScore),
HPSv2's and ImageReward's own checkpoints, LAION's aesthetic head, the small critics of `psd.judges`.  `BlackBoxReward`
wraps any Python callable, which then only ranks.  Images are prepared in torch as their makers do with PIL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from psd import checkpoints, hub, vocabulary
from psd.graphs import Graphed
from psd.judges import load_critic
from psd.offload import visiting
from psd.precision import in_chunks, in_precision
from psd.preset import PresetError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_LENGTH, IMAGE_REWARD_LENGTH = 77, 35  # tokens that they were trained with


def fit(images: Float[Tensor, "n 3 h w"], size: int) -> Float[Tensor, "n 3 size size"]:
    """Differentiable resize of square images (bicubic with antialiasing, then clamped, as PIL does on bytes)."""
    if images.shape[-1] == size:
        return images.clamp(0, 1)
    resized = torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def clip_pixels(images: Float[Tensor, "n 3 h w"], size: int) -> Float[Tensor, "n 3 size size"]:
    """Images in [0, 1] as CLIP's towers and BLIP's take them."""
    mean, std = colours(images.device)
    return (fit(images, size) - mean) / std


@lru_cache
def colours(device: torch.device) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """CLIP's mean and deviation, sent to the device once: a copy a call would keep it waiting."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return mean, std


def refuse_unknown(tokenizer: Any, prompt: str, source: str) -> None:
    """Raises `PresetError` for words outside a closed vocabulary, which a reward would score as nothing."""
    if unknown := vocabulary.unknown(tokenizer, prompt):
        raise PresetError(
            f"{source} never learned {', '.join(map(repr, unknown))}: choose words from its tokenizer.json"
        )


def tokenised(
    tokenizer: Any, prompt: str, source: str, length: int | None = None
) -> tuple[Int[Tensor, "1 l"], Int[Tensor, "1 l"]]:
    """Ids and mask, padded to ``length`` (the tokenizer's own without one).  Raises as `refuse_unknown` does.

    The mask is the tokenizer's: CLIP's pads with the very token that its text is read at.
    """
    refuse_unknown(tokenizer, prompt, source)
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
        graphs: bool = False,
        parked: bool = False,
    ) -> None:
        """``batch`` > 0 bounds the images that are encoded at once, and what only reads prompts waits in main memory;
        ``graphs`` records the encoding as a CUDA graph; ``parked``: all of the network waits there between calls,
        which are then without gradients."""
        self.name, self.device, self.dtype, self.batch, self.parked = name, device, dtype, batch, parked
        self.network: Any = network.to(device="cpu" if parked else device, dtype=dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._see: Callable[..., Tensor] = Graphed(self._encode_image) if graphs else self._encode_image
        self._text = lru_cache(maxsize=4096)(self._read)
        if batch:
            for part in self.readers():
                part.to("cpu")

    def take(self, batch: int) -> None:
        """At most ``batch`` images at once from now on (0: all)."""
        if batch != self.batch and isinstance(self._see, Graphed):
            self._see.forget()
        self.batch = batch

    def readers(self) -> list[nn.Module]:
        """Parts of the network that only prompts need, once each."""
        return []

    @torch.no_grad()
    def _read(self, prompt: str) -> Any:
        with visiting(self.readers(), self.device):
            return self._encode_text(prompt)

    def _encode_text(self, prompt: str) -> Any:
        raise NotImplementedError

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n ..."]:
        raise NotImplementedError

    def _compare(self, features: Float[Tensor, "n ..."], text: Any) -> Float[Tensor, " n"]:
        raise NotImplementedError

    def encode_image(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v ..."]:
        return in_chunks(self._see, images.flatten(0, 1), self.batch).unflatten(0, images.shape[:2])

    def compare(self, features: Float[Tensor, "b v ..."], prompt: str) -> Float[Tensor, "b v"]:
        return self._compare(features.flatten(0, 1), self._text(prompt)).unflatten(0, features.shape[:2])

    def __call__(self, images: Float[Tensor, "b v 3 h w"], prompt: str) -> Float[Tensor, "b v"]:
        if not self.parked:
            return self.compare(self.encode_image(images), prompt)
        with torch.no_grad(), visiting([self.network], self.device):
            return self.compare(self.encode_image(images), prompt)


class ClipReward(ImageTextReward):
    """scale x cosine of a CLIP model's image and text embeddings (PickScore's definition; logits, so tau = 1)."""

    def readers(self) -> list[nn.Module]:
        return [self.network.text_model, self.network.text_projection]

    def _encode_text(self, prompt: str) -> Float[Tensor, " d"]:
        length = min(self.tokenizer.model_max_length, CLIP_LENGTH)
        ids, mask = (x.to(self.device) for x in tokenised(self.tokenizer, prompt, self.name, length))
        features = self.network.get_text_features(input_ids=ids, attention_mask=mask)
        return normalize(features.pooler_output[0].float(), dim=-1)

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        def features(pixels: Tensor) -> Tensor:
            return self.network.get_image_features(pixel_values=pixels).pooler_output

        pixels = clip_pixels(images, self.network.config.vision_config.image_size)
        return normalize(in_precision(features, pixels, self.dtype), dim=-1)

    def _compare(self, features: Float[Tensor, "n d"], text: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
        return features @ text * self.network.logit_scale.exp().float()


class HpsReward(ClipReward):
    """HPSv2.1: the raw cosine, 0.15 to 0.33; a preference has logit 100 x difference.  Comparable within one prompt."""

    scale = 0.01

    def _compare(self, features: Float[Tensor, "n d"], text: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
        return features @ text


class ImageReward(ImageTextReward):
    """ImageReward: BLIP looks at the image while it reads; about standard normal over its makers' images."""

    def _encode_text(self, prompt: str) -> tuple[Tensor, Tensor]:
        ids, mask = tokenised(self.tokenizer, prompt, self.name, IMAGE_REWARD_LENGTH)
        return ids.to(self.device), mask.to(self.device)

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p d"]:
        pixels = clip_pixels(images, self.network.vision_model.config.image_size)
        return in_precision(self.network.see, pixels, self.dtype)

    def _compare(self, features: Float[Tensor, "n p d"], text: tuple[Tensor, Tensor]) -> Float[Tensor, " n"]:
        return in_precision(lambda seen: self.network.read(seen, *text), features, self.dtype)


class AestheticReward(ImageTextReward):
    """LAION's aesthetic score, 1 to 10, of the image alone: the prompt plays no part."""

    def _encode_text(self, prompt: str) -> None:
        return None

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        def features(pixels: Tensor) -> Tensor:
            return self.network["clip"].get_image_features(pixel_values=pixels).pooler_output

        pixels = clip_pixels(images, self.network["clip"].config.vision_config.image_size)
        return normalize(in_precision(features, pixels, self.dtype), dim=-1)

    def _compare(self, features: Float[Tensor, "n d"], text: None) -> Float[Tensor, " n"]:
        return in_precision(self.network["head"], features, self.dtype)[:, 0]


class CriticReward(ImageTextReward):
    """A critic of `psd.judges` with its tokenizer; scores are Bradley-Terry logits."""

    def _encode_text(self, prompt: str) -> Tensor:
        return self.network.encode_text(tokenised(self.tokenizer, prompt, self.name)[0].to(self.device))

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n ..."]:
        return self.network.encode_image(fit(images, 64))

    def _compare(self, features: Float[Tensor, "n ..."], text: Tensor) -> Float[Tensor, " n"]:
        return self.network.score(features, text.expand(len(features), *text.shape[1:]))


class BlackBoxReward:
    """Any callable ``(images b v 3 h w in [0, 1], prompt) -> scores b v``; it ranks, no gradient is asked of it.

    Scores may be a tensor, an array or nested lists of numbers; ValueError for anything else, and for another shape.
    """

    differentiable = False

    def __init__(self, name: str, score: Callable[[Tensor, str], Any], *, scale: float = 1.0) -> None:
        self.name, self.score, self.scale = name, score, scale

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b v 3 h w"], prompt: str) -> Float[Tensor, "b v"]:
        found = self.score(images.detach(), prompt)
        try:
            scores = torch.as_tensor(found, dtype=torch.float32, device=images.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"reward {self.name!r} returned {type(found).__name__}, which is no array of numbers ({error});"
                f" expected scores of shape (b, v) = {tuple(images.shape[:2])}"
            ) from None
        if scores.shape != images.shape[:2]:
            raise ValueError(
                f"reward {self.name!r} returned {tuple(scores.shape)}; expected (b, v) = {tuple(images.shape[:2])}"
            )
        return scores


def scores_among(
    judge: ImageTextReward, images: Float[Tensor, "b v 3 h w"], prompts: Sequence[str]
) -> Float[Tensor, "b v m"]:
    """The images' scores for each of ``m`` prompts; they are encoded once, and the numbers are those of the calls."""
    features = judge.encode_image(images)
    return torch.stack([judge.compare(features, prompt) for prompt in prompts], dim=-1)


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
    found = hub.fetch(source, "reward", half=half, say=say)

    def tokenizer(at: Path) -> Any:
        return AutoTokenizer.from_pretrained(str(at))

    def clip(at: hub.Located) -> nn.Module:
        return CLIPModel.from_pretrained(str(at.path), dtype=dtype, variant=at.variant())

    kind, network, words = ClipReward, None, None
    if found.path.is_dir():
        words = tokenizer(found.path)
        config = json.loads((found.path / "config.json").read_text(encoding="utf-8"))
        if "critic" in config:  # tiny, and trained in float32
            kind, network, dtype = CriticReward, load_critic(found.path), torch.float32
        else:
            network = clip(found)
    else:
        state = checkpoints.read_state(found.path)
        if "layers.0.weight" in state:
            at = hub.fetch(hub.part(source, "clip"), "reward", half=half, say=say)
            head = checkpoints.score_head_from(state, dtype)
            kind, network = AestheticReward, nn.ModuleDict({"clip": clip(at), "head": head})
        else:
            words = tokenizer(hub.fetch(hub.part(source, "tokenizer"), "tokenizer", say=say).path)
            if "visual.conv1.weight" in state:
                kind, network = HpsReward, checkpoints.clip_from_open_clip(state, dtype)
            elif "mlp.layers.0.weight" in state:
                kind, network = ImageReward, checkpoints.image_reward(state, dtype)
            else:
                raise PresetError(f"{source} is no HPSv2, ImageReward or aesthetic checkpoint: its tensors are others")
    return kind(source, network, words, device=device, dtype=dtype, batch=batch, graphs=graphs, parked=parked)
