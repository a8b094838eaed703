"""The embedded reward and judges: small image and text towers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from psd.models.rewards.text_image import ImageTextReward, resize_square, tokenise_prompt


class CriticReward(ImageTextReward):
    """A critic of `psd.models.rewards.critic_networks` with its tokenizer; scores are Bradley-Terry logits."""

    def _encode_text(self, prompt: str) -> Tensor:
        return self.network.encode_text(tokenise_prompt(self.tokenizer, prompt, self.name)[0].to(self.device))

    def _encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n ..."]:
        return self.network.encode_image(resize_square(images, 64))

    def _score_features(self, features: Float[Tensor, "n ..."], text: Tensor) -> Float[Tensor, " n"]:
        return self.network.score(features, text.expand(len(features), *text.shape[1:]))
