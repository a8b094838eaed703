"""Two small critics of images against a caption, for the embedded world: `TwoTowerCritic` and `FusionCritic`.

They share no architecture with each other, nor with a `CLIPModel`, so that a run which fools the one that it is trained
on does not fool the others for free.  Both score ``n`` images against ``n`` token rows; a folder holds config.json, fp16
weights and the tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions with GroupNorm around a skip; strided blocks halve the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, stride, 1),
            nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, 1, 1),
        )  # fmt: skip
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class TwoTowerCritic(nn.Module):
    """Convolutional image tower, bidirectional GRU text tower; score = scale x cosine.  The embedded reward."""

    def __init__(self, vocabulary_size: int, width: int = 128) -> None:
        super().__init__()
        self.config = {"critic": "two_tower", "vocabulary_size": vocabulary_size, "width": width}
        self.image_tower = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), Residual(32, 48, 2), Residual(48, 96, 2), Residual(96, width, 2),
            Residual(width, width, 1), nn.GroupNorm(8, width), nn.SiLU(), nn.Flatten(),
        )  # fmt: skip
        self.image_projection = nn.Linear(width * 16, width)
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.text_projection = nn.Linear(2 * width, width)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def encode_image(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n d"]:
        return nn.functional.normalize(self.image_projection(self.image_tower(images * 2 - 1)), dim=-1)

    def encode_text(self, tokens: Int[Tensor, "m l"]) -> Float[Tensor, "m d"]:
        states, _ = self.gru(self.embedding(tokens))
        keep = (tokens != 0)[..., None]
        pooled = states.masked_fill(~keep, float("-inf")).amax(dim=1)
        return nn.functional.normalize(self.text_projection(pooled), dim=-1)

    def score(self, image: Float[Tensor, "n d"], text: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.log_scale.exp() * (image * text).sum(-1)


class FusionCritic(nn.Module):
    """Words attend to image patches, a small head scores the pair (the shape of ImageReward).  The evidence judge."""

    def __init__(self, vocabulary_size: int, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.config = {"critic": "fusion", "vocabulary_size": vocabulary_size, "width": width, "layers": layers}
        self.stem = nn.Sequential(
            nn.Conv2d(3, 48, 4, 4), nn.GELU(), nn.Conv2d(48, 64, 3, 1, 1), nn.GELU(), nn.Conv2d(64, width, 2, 2),
        )  # fmt: skip
        self.place = nn.Parameter(torch.randn(64, width) * 0.02)
        image_layer = nn.TransformerEncoderLayer(width, 4, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.image_layers = nn.TransformerEncoder(image_layer, 2, enable_nested_tensor=False)
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        self.order = nn.Parameter(torch.randn(32, width) * 0.02)
        fusion_layer = nn.TransformerDecoderLayer(width, 4, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.fusion_layers = nn.TransformerDecoder(fusion_layer, layers)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def encode_image(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n p d"]:
        patches = rearrange(self.stem(images * 2 - 1), "n d h w -> n (h w) d")
        return self.image_layers(patches + self.place)

    def encode_text(self, tokens: Int[Tensor, "m l"]) -> Float[Tensor, "m l d"]:
        # padding rows carry zeros; the mask is rebuilt from them in `score`
        words = self.embedding(tokens) + self.order[: tokens.shape[1]]
        return words * (tokens != 0)[..., None]

    def score(self, image: Float[Tensor, "n p d"], text: Float[Tensor, "n l d"]) -> Float[Tensor, " n"]:
        padding = (text == 0).all(-1)
        fused = self.fusion_layers(text, image, tgt_key_padding_mask=padding)
        return self.head(fused[:, 0])[:, 0]  # the start token has read the sentence and the image


CRITICS = {"two_tower": TwoTowerCritic, "fusion": FusionCritic}


def save_critic(critic: TwoTowerCritic | FusionCritic, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous().cpu() for name, value in critic.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(critic.config, indent=1) + "\n")


def load_critic(folder: Path) -> TwoTowerCritic | FusionCritic:
    config = json.loads((folder / "config.json").read_text())
    critic = CRITICS[config.pop("critic")](**config)
    critic.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    return critic.eval().requires_grad_(False)
