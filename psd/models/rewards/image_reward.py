"""ImageReward: BLIP with cross attention and a score head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psd.models.checkpoints import layouts
from psd.models.checkpoints.layouts import StateDict
from psd.models.checkpoints.read import HEAD_CHANNELS, build_strict, count_distinct
from psd.models.rewards.aesthetic import make_score_head
from psd.models.rewards.text_image import IMAGE_REWARD_LENGTH, ImageTextReward, to_clip_pixels, tokenise_prompt
from psd.runtime.precision import run_in_precision

if TYPE_CHECKING:
    from transformers import BlipConfig


class ImageRewardNetwork(nn.Module):
    """BLIP reads the prompt while it looks at the image; layers without activations turn its first token into a score.

    The score is normalised by the mean and deviation that its makers measured.
    """

    MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072

    def __init__(self, config: BlipConfig, head: StateDict) -> None:
        super().__init__()
        from transformers import BlipForImageTextRetrieval  # of no use to the embedded models

        blip: Any = BlipForImageTextRetrieval(config)
        self.vision_model, self.text_encoder = blip.vision_model, blip.text_encoder
        self.vision_proj, self.text_proj = blip.vision_proj, blip.text_proj  # of the checkpoint; the score has no use
        self.head = make_score_head(head)

    def count_text_places(self) -> dict[str, int]:
        """``positions`` and ``rows`` of its text tower, for `psd.models.folders.load_tokenizer`."""
        words = self.text_encoder.embeddings
        return {"positions": words.position_embeddings.num_embeddings, "rows": words.word_embeddings.num_embeddings}

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encodes images ``n 3 h w``, normalised as CLIP's, to ``n p d``."""
        return self.vision_model(pixel_values=pixels).last_hidden_state

    def read(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores ``n`` encoded images under one tokenised prompt ``1 l``."""
        states = self.text_encoder(
            input_ids=ids.expand(len(seen), -1),
            attention_mask=mask.expand(len(seen), -1),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            is_decoder=False,
        ).last_hidden_state
        return (self.head(states[:, 0])[:, 0] - self.MEAN) / self.DEVIATION


def build_image_reward(state: StateDict, dtype: torch.dtype) -> ImageRewardNetwork:
    """ImageReward.pt: BLIP with a ViT-L image tower, and the layers of its score."""
    from transformers import BlipConfig

    backbone, head = layouts.image_reward_from_blip(state)
    kernel = backbone["vision_model.embeddings.patch_embedding.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    side = int((backbone["vision_model.embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    words = backbone["text_encoder.embeddings.word_embeddings.weight"]
    config = BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": width // HEAD_CHANNELS,
            "num_hidden_layers": count_distinct(backbone, r"vision_model\.encoder\.layers\.(\d+)\."),
            "image_size": side * patch,
            "patch_size": patch,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": words.shape[0],
            "bos_token_id": None,  # for captions that BLIP writes; here it only reads
            "sep_token_id": None,
            "hidden_size": words.shape[1],
            "encoder_hidden_size": width,
            "intermediate_size": 4 * words.shape[1],
            "num_attention_heads": words.shape[1] // HEAD_CHANNELS,  # the default, 8, loads and scores wrong
            "num_hidden_layers": count_distinct(backbone, r"text_encoder\.encoder\.layer\.(\d+)\."),
            "max_position_embeddings": backbone["text_encoder.embeddings.position_embeddings.weight"].shape[0],
            "layer_norm_eps": 1e-12,
        },
        image_text_hidden_size=backbone["vision_proj.weight"].shape[0],
    )
    state = {**backbone, **{f"head.{name}": value for name, value in head.items()}}
    return build_strict(lambda: ImageRewardNetwork(config, head), state, dtype)


class ImageReward(ImageTextReward):
    """ImageReward: BLIP looks at the image while it reads; about standard normal over its makers' images."""

    def image_modules(self) -> list[nn.Module]:
        return [self.network.vision_model]

    def _encode_text(self, prompt: str) -> tuple[Tensor, Tensor]:
        ids, mask = tokenise_prompt(self.tokenizer, prompt, self.name, IMAGE_REWARD_LENGTH)
        return ids.to(self.device), mask.to(self.device)

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p d"]:
        pixels = to_clip_pixels(images, self.network.vision_model.config.image_size)
        return run_in_precision(self.network.encode_pixels, pixels, self.dtype)

    def _score_features(self, features: Float[Tensor, "n p d"], text: tuple[Tensor, Tensor]) -> Float[Tensor, " n"]:
        return run_in_precision(lambda seen: self.network.read(seen, *text), features, self.dtype)
