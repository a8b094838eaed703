"""Small critics of images against a caption, for the embedded world: `TwoTowerCritic`, `ModulatedCritic`, `WordCritic`.

They share no architecture with each other, nor with a `CLIPModel`, so that a run which fools the one that it is trained
on does not fool the others for free.  All score ``n`` images against ``n`` token rows; a folder holds config.json,
fp16 weights and the tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from psd.config.errors import PresetError, format_value
from psd.models.checkpoints.read import fill_strict, read_state, require_floats
from psd.models.checkpoints.refusals import read_json_object


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


class ModulatedCritic(nn.Module):
    """The caption modulates convolutions over the image (FiLM, Perez et al. 2018); a head scores what comes out.

    Words are read by one-dimensional convolutions.  The evidence judge.
    """

    def __init__(self, vocabulary_size: int, width: int = 96) -> None:
        super().__init__()
        self.config = {"critic": "modulated", "vocabulary_size": vocabulary_size, "width": width}
        self.image_tower = nn.Sequential(
            nn.Conv2d(3, 32, 5, 2, 2), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(),
            nn.Conv2d(64, width, 3, 2, 1), Residual(width, width, 1),
        )  # fmt: skip
        self.place = nn.Parameter(torch.zeros(width, 8, 8))
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        self.order = nn.Parameter(torch.randn(32, width) * 0.1)
        self.words = nn.ModuleList([nn.Conv1d(width, width, 3, 1, 1), nn.Conv1d(width, width, 3, 1, 1)])
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList([nn.Conv2d(width, width, 3, 2, 1), nn.Conv2d(width, width, 3, 1, 1)])
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def encode_image(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n d 8 8"]:
        return self.image_tower(images * 2 - 1) + self.place

    def encode_text(self, tokens: Int[Tensor, "m l"]) -> Float[Tensor, "m d6"]:
        keep = (tokens != 0)[:, None]
        states = (self.embedding(tokens) + self.order[: tokens.shape[1]]).mT * keep
        for words in self.words:
            states = nn.functional.gelu(words(states)) * keep  # padding stays zero, as beyond the end
        return self.modulation(states.masked_fill(~keep, float("-inf")).amax(dim=2))

    def score(self, image: Float[Tensor, "n d 8 8"], text: Float[Tensor, "n d6"]) -> Float[Tensor, " n"]:
        features = image
        for block, modulation in zip([*self.blocks, nn.Identity()], text.chunk(3, dim=1), strict=True):
            scale, shift = modulation[..., None, None].chunk(2, dim=1)
            normed = nn.functional.group_norm(features, 8)
            features = block(nn.functional.gelu(normed * (1 + scale) + shift))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return self.head(pooled)[:, 0]


class Attention(nn.Module):
    """Pre-norm multi-head attention of ``x`` over ``context`` (itself without one), then a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_context, self.norm_out = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(
        self, x: Float[Tensor, "n l d"], context: Float[Tensor, "n m d"] | None = None, keep: Tensor | None = None
    ) -> Float[Tensor, "n l d"]:
        """``keep`` (n m) tells which places of the context there are to look at."""
        query = self.norm(x)
        seen = query if context is None else self.norm_context(context)
        query, key, value = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for rows in (self.query(query), *self.key_value(seen).chunk(2, dim=-1))
        )
        mask = None if keep is None else keep[:, None, None]
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norm_out(x))


class WordCritic(nn.Module):
    """Each word looks for itself in the image: words and patches in a transformer, words attending to patches.

    Words speak to each other before they look, twice; a head scores what they found.  The referee, the second
    evidence judge.
    """

    def __init__(self, vocabulary_size: int, width: int = 88, heads: int = 4) -> None:
        super().__init__()
        self.config = {"critic": "words", "vocabulary_size": vocabulary_size, "width": width, "heads": heads}
        self.patches = nn.Sequential(nn.Conv2d(3, 48, 7, 4, 3), nn.GELU(), nn.Conv2d(48, width, 3, 2, 1))
        self.place = nn.Parameter(torch.randn(64, width) * 0.5)
        self.picture = nn.ModuleList([Attention(width, heads) for _ in range(2)])
        # Words of size 1, torch's own choice: at CLIP's 0.02 the layers drown them before they are learnt.
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        self.order = nn.Parameter(torch.randn(32, width) * 0.5)
        self.speak = nn.ModuleList([Attention(width, heads) for _ in range(2)])
        self.look = nn.ModuleList([Attention(width, heads) for _ in range(2)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def encode_image(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n p d"]:
        tokens = self.patches(images * 2 - 1).flatten(2).mT + self.place
        for layer in self.picture:
            tokens = layer(tokens)
        return tokens

    def encode_text(self, tokens: Int[Tensor, "m l"]) -> Float[Tensor, "m l d"]:
        """Words with their order; padding is rows of zeros."""
        return (self.embedding(tokens) + self.order[: tokens.shape[1]]) * (tokens != 0)[..., None]

    def score(self, image: Float[Tensor, "n p d"], text: Float[Tensor, "n l d"]) -> Float[Tensor, " n"]:
        keep = text.ne(0).any(dim=-1)
        for speak, look in zip(self.speak, self.look, strict=True):
            text = look(speak(text, keep=keep), image)
        said = self.head(text)[..., 0] * keep
        return said.sum(1) / keep.sum(1)


Critic = TwoTowerCritic | ModulatedCritic | WordCritic
CRITICS = {"two_tower": TwoTowerCritic, "modulated": ModulatedCritic, "words": WordCritic}


def save_critic(critic: Critic, folder: Path) -> None:
    """Writes the critic's weights in half precision, and its config, where `load_critic` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous().cpu() for name, value in critic.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(critic.config, indent=1) + "\n")


def load_critic(folder: Path) -> Critic:
    """The critic in ``folder``, in float32.

    Raises `PresetError` for an unknown kind and for tensors that are missing, too many, or no floating-point numbers.
    """
    config = read_json_object(folder / "config.json", str(folder))
    if (kind := config.pop("critic", None)) not in CRITICS:
        raise PresetError(f"no critic {format_value(kind)} in {folder}/config.json; there are: {', '.join(CRITICS)}")
    critic: Critic = CRITICS[kind](**config)
    state = read_state(folder / "model.safetensors")
    fill_strict(critic, {name: value.float() for name, value in require_floats(state).items()})
    return critic.eval().requires_grad_(False)
