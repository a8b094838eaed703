"""LAION's aesthetic score: a head on CLIP's image embedding, 1 to 10."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from psd.models.checkpoints import layouts
from psd.models.checkpoints.layouts import StateDict
from psd.models.checkpoints.read import build_strict
from psd.models.rewards.text_image import ImageTextReward, to_clip_pixels
from psd.runtime.precision import run_in_precision


def make_score_head(state: StateDict) -> nn.Sequential:
    """Linear layers at the numbers that ``state`` (``N.weight``, ``N.bias``) gives them, nothing in between.

    Their makers left the activations out; the numbers between are dropout, which a frozen score has no use for.
    """
    shapes = {int(name.split(".")[0]): value.shape for name, value in state.items() if name.endswith(".weight")}
    layers = [nn.Linear(shapes[i][1], shapes[i][0]) if i in shapes else nn.Identity() for i in range(max(shapes) + 1)]
    return nn.Sequential(*layers)


def build_score_head(state: StateDict, dtype: torch.dtype) -> nn.Sequential:
    head = layouts.linear_head(state)
    return build_strict(lambda: make_score_head(head), head, dtype)


class AestheticReward(ImageTextReward):
    """LAION's aesthetic score, 1 to 10, of the image alone: the prompt plays no part."""

    def image_modules(self) -> list[nn.Module]:
        return [self.network["clip"].vision_model]

    def _encode_text(self, prompt: str) -> None:
        return None

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        def encode_pixels(pixels: Tensor) -> Tensor:
            return self.network["clip"].get_image_features(pixel_values=pixels).pooler_output

        pixels = to_clip_pixels(images, self.network["clip"].config.vision_config.image_size)
        return normalize(run_in_precision(encode_pixels, pixels, self.dtype), dim=-1)

    def _score_features(self, features: Float[Tensor, "n d"], text: None) -> Float[Tensor, " n"]:
        return run_in_precision(self.network["head"], features, self.dtype)[:, 0]
