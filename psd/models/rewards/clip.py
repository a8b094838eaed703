"""CLIP-shaped rewards: PickScore and HPSv2."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from psd.models.rewards.text_image import CLIP_LENGTH, ImageTextReward, to_clip_pixels, tokenise_prompt
from psd.runtime.precision import run_in_precision


class ClipReward(ImageTextReward):
    """scale x cosine of a CLIP model's image and text embeddings (PickScore's definition; logits, so tau = 1)."""

    def image_modules(self) -> list[nn.Module]:
        return [self.network.vision_model]

    def text_modules(self) -> list[nn.Module]:
        return [self.network.text_model, self.network.text_projection]

    def _encode_text(self, prompt: str) -> Float[Tensor, " d"]:
        length = min(self.tokenizer.model_max_length, CLIP_LENGTH)
        ids, mask = (x.to(self.device) for x in tokenise_prompt(self.tokenizer, prompt, self.name, length))
        features = self.network.get_text_features(input_ids=ids, attention_mask=mask)
        return normalize(features.pooler_output[0].float(), dim=-1)

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        def encode_pixels(pixels: Tensor) -> Tensor:
            return self.network.get_image_features(pixel_values=pixels).pooler_output

        pixels = to_clip_pixels(images, self.network.config.vision_config.image_size)
        return normalize(run_in_precision(encode_pixels, pixels, self.dtype), dim=-1)

    def _score_features(self, features: Float[Tensor, "n d"], text: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
        return features @ text * self.network.logit_scale.exp().float()


class HpsReward(ClipReward):
    """HPSv2.1: the raw cosine, 0.15 to 0.33; a preference has logit 100 x difference.  Comparable within one prompt."""

    scale = 0.01

    def _score_features(self, features: Float[Tensor, "n d"], text: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
        return features @ text
