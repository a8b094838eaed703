"""Training of the embedded reward and the judges: caption match with hard negatives, and graded degradations.

The reward is a convolutional tower beside a GRU, the selector a `CLIPModel` (patches, causal text tower); in the
evidence judge the caption modulates convolutions (FiLM), in the referee words look at patches.  The reward is no
`CLIPModel` because on equal batches convolutions were far ahead: after 200 iterations they chose the right caption of
ten in 55 %, patches in 30 %.  None ever sees diffusion noise.  They differ in architecture, seed and, for the evidence
judges, in their data and in the strengths of their degradations, so that fooling one is no reason to fool another. The
reward never meets a held-out caption; the judges do (`psd.embedded.training.data --held-out`): they are measures, and
one that had to guess what "a pink cylinder" is would measure its own guess.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from psd.embedded import degrade
from psd.embedded.captions import grammar
from psd.embedded.training import data
from psd.embedded.training.autoencoder import save_half
from psd.embedded.training.prior import TOKENS, build_tokenizer
from psd.models.rewards.critic_networks import (
    Critic,
    ModulatedCritic,
    TwoTowerCritic,
    WordCritic,
    load_critic,
    save_critic,
)
from psd.models.rewards.text_image import CLIP_MEAN, CLIP_STD

STRENGTHS = {"reward": (0.1, 1.0), "selector": (0.15, 0.9), "evidence": (0.05, 0.8), "referee": (0.1, 0.7)}
BUILD = {"reward": TwoTowerCritic, "evidence": ModulatedCritic, "referee": WordCritic}
NEAR_MISSES = 12  # captions with one thing wrong, for each image
RANDOM_CAPTIONS = 4


class ClipCritic(nn.Module):
    """A small `CLIPModel` behind the three calls that the critics of `psd.models.rewards.critic_networks` have."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        text = CLIPTextConfig(
            vocab_size=vocabulary_size, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=3,
        )  # fmt: skip
        vision = CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
        )
        self.clip: Any = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
        )
        # Words and places as large as the layers' outputs, else they drown: see
        # psd.embedded.training.prior.build_small_text_encoder.
        words, patches = self.clip.text_model.embeddings, self.clip.vision_model.embeddings
        nn.init.normal_(words.token_embedding.weight, std=1.0)
        nn.init.normal_(words.position_embedding.weight, std=0.5)
        nn.init.normal_(patches.patch_embedding.weight, std=0.05)  # 192 standardised values: features of std 0.7
        nn.init.normal_(patches.position_embedding.weight, std=0.5)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def encode_image(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n d"]:
        pixels = (images - self.mean) / self.std
        return nn.functional.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def encode_text(self, tokens: Int[Tensor, "m l"]) -> Float[Tensor, "m d"]:
        features = self.clip.get_text_features(input_ids=tokens, attention_mask=tokens.ne(0).long()).pooler_output
        return nn.functional.normalize(features, dim=-1)

    def score(self, image: Float[Tensor, "n d"], text: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.clip.logit_scale.exp() * (image * text).sum(-1)


class CriticTask:
    """A batch: clean objects, for each a sibling (same words but for colours or for shapes), and a degraded twin."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.name = arguments.model
        self.batch = arguments.batch
        self.device = torch.device(arguments.device)
        tokenizer = arguments.warm_start and AutoTokenizer.from_pretrained(arguments.warm_start)
        self.tokenizer = tokenizer or build_tokenizer(grammar.vocabulary())
        size = len(self.tokenizer)
        if arguments.model == "selector":
            critic: Any = ClipCritic(size)
            if arguments.warm_start:
                critic.clip = CLIPModel.from_pretrained(arguments.warm_start, dtype=torch.float32)
        elif arguments.warm_start:
            critic = load_critic(Path(arguments.warm_start)).requires_grad_(True).train()
        else:
            critic = BUILD[arguments.model](size)
        self.model: Any = critic
        self.data = data.load_shards(arguments.data)
        self.clean = [i for i, caption in enumerate(self.data.captions) if caption != grammar.LOW_QUALITY]
        self.captions = {i: grammar.parse(self.data.captions[i]) for i in self.clean}
        self.held_out = any(grammar.is_held_out(caption) for caption in self.captions.values())
        self.captions_seen = data.EVERY_CAPTION if self.held_out else data.HELD_OUT
        self.siblings = defaultdict(list)
        for i, caption in self.captions.items():
            for key in sibling_keys(caption):
                self.siblings[key].append(i)

    def loss(self, iteration: int, objects: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The sum of three terms, and the share of answers that is right in each.

        match: an image picks its caption among near misses and others; swap: a caption prefers its own image to its
        sibling's; grade: a caption prefers the less damaged of two twins.
        """
        chooser = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        rows = chooser.sample(self.clean, objects)
        siblings = [self.choose_sibling(row, chooser) for row in rows]
        images = [self.read_image(row, chooser) for row in rows + siblings]
        worse, better = zip(*(self.degrade_pair(row, chooser, generator) for row in rows), strict=True)
        captions = [self.captions[row] for row in rows + siblings]
        misses = [m for c in captions for m in self.near_misses(c, chooser)]
        texts = captions + misses
        feature = self.model.encode_image(torch.stack([*images, *better, *worse]).to(self.device))
        text = self.model.encode_text(self.tokenise_captions([c.text for c in texts]))

        # each image chooses among its own caption, its sibling's, near misses and captions of the batch
        count = 2 * objects
        order = torch.arange(count)
        random_rows = torch.randint(count, (count, RANDOM_CAPTIONS), generator=generator)
        near = count + order[:, None] * NEAR_MISSES + torch.arange(NEAR_MISSES)
        choices = torch.cat([order[:, None], order[:, None].roll(objects, 0), near, random_rows], dim=1)
        same = torch.tensor(
            [[texts[j].meaning == captions[i].meaning for j in row] for i, row in enumerate(choices.tolist())]
        )
        same[:, 0] = False
        logits = self.score_pairs(feature, text, order[:, None].expand_as(choices), choices).masked_fill(
            same.to(self.device), -1e4
        )
        target = torch.zeros(count, dtype=torch.long, device=self.device)
        match = nn.functional.cross_entropy(logits, target)
        # each caption prefers its own image to its sibling's
        own, other = logits[:, 0], self.score_pairs(feature, text, order.roll(objects, 0), order)
        keep = ~same[:, 1].to(self.device)
        swap = -nn.functional.logsigmoid(own - other)[keep].mean()
        # each caption prefers the less degraded twin
        twins = torch.arange(objects)
        gap = self.score_pairs(feature, text, count + twins, twins) - self.score_pairs(
            feature, text, count + objects + twins, twins
        )
        grade = -nn.functional.logsigmoid(gap).mean()
        accuracy = (logits.argmax(1) == 0).float().mean().item()
        metrics = {
            "match": accuracy,
            "swap": (own > other)[keep].float().mean().item(),
            "grade": (gap > 0).float().mean().item(),
        }
        return match + swap + grade, metrics

    def near_misses(self, caption: grammar.Caption, chooser: random.Random) -> list[grammar.Caption]:
        return grammar.near_misses(caption, NEAR_MISSES, chooser.randrange(2**31), held_out=self.held_out)

    def score_pairs(self, feature: Tensor, text: Tensor, images: Tensor, texts: Tensor) -> Tensor:
        """Scores of (image, text) index pairs, in the shape of the indices."""
        return self.model.score(feature[images.flatten()], text[texts.flatten()]).view(images.shape)

    def tokenise_captions(self, captions: list[str]) -> Tensor:
        encoded = self.tokenizer(captions, padding="max_length", max_length=TOKENS, return_tensors="pt")
        return encoded.input_ids.to(self.device)

    def choose_sibling(self, row: int, chooser: random.Random) -> int:
        """An object that differs from ``row`` in colours only, or in shapes only; any other one if there is none."""
        keys = list(sibling_keys(self.captions[row]))
        chooser.shuffle(keys)
        for key in keys:
            group = self.siblings[key]
            for _ in range(8):
                candidate = chooser.choice(group)
                if self.captions[candidate].meaning != self.captions[row].meaning:
                    return candidate
        return chooser.choice(self.clean)

    def read_image(self, row: int, chooser: random.Random) -> Float[Tensor, "3 h w"]:
        return self.data.rgb[row, chooser.randrange(4)].permute(2, 0, 1).float() / 255

    def degrade_pair(
        self, row: int, chooser: random.Random, generator: torch.Generator
    ) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "3 h w"]]:
        """(worse, better): one view degraded at two strengths of one kind; half the time the better one is clean."""
        kind = chooser.choice(degrade.IMAGE_KINDS)
        low, high = STRENGTHS[self.name]
        strong = chooser.uniform(low, high)
        weak = 0.0 if chooser.random() < 0.5 else chooser.uniform(0, 0.6) * strong
        view = chooser.randrange(4)
        clean = self.data.rgb[row, view].permute(2, 0, 1).float()[None] / 255
        mask = self.data.mask[row, view].float()[None] / 255
        seed = int(torch.randint(2**31, (1,), generator=generator))

        def spoil_view(strength: float) -> Tensor:
            """The same fault, from the same draws, at another strength."""
            draws = torch.Generator().manual_seed(seed)
            return degrade.degrade_views(kind, strength, clean, mask, self.data.background[row], draws)[0]

        return spoil_view(strong), spoil_view(weak) if weak > 0 else clean[0]

    def ship(self, ema: nn.Module, folder: Path) -> None:
        if isinstance(ema, ClipCritic):
            save_half(ema.clip, folder)
        else:
            assert isinstance(ema, Critic)
            save_critic(copy.deepcopy(ema), folder)
        self.tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def sheet(self, ema: Any, path: Path) -> None:
        """One object; a row for each degradation, stronger to the right; the bar's length is the score."""
        row = self.clean[0]
        clean = self.data.rgb[row, :1].permute(0, 3, 1, 2).float() / 255
        mask = self.data.mask[row, :1].float() / 255
        text = ema.encode_text(self.tokenise_captions([self.captions[row].text]))
        lines = []
        for kind in degrade.IMAGE_KINDS:
            tiles = [
                degrade.degrade_views(
                    kind, s / 5, clean, mask, self.data.background[row], torch.Generator().manual_seed(0)
                )[0]
                for s in range(6)
            ]
            stack = torch.stack(tiles)
            scores = ema.score(ema.encode_image(stack.to(self.device)), text.expand(6, *text.shape[1:])).cpu()
            bars = torch.sigmoid((scores - scores[0]) / 2 + 2)
            for tile, bar in zip(stack, bars, strict=True):
                tile[:, -3:, : int(bar * 64)] = torch.tensor([0.9, 0.0, 0.5]).view(3, 1, 1)
            lines.append(torch.cat(list(stack), dim=2))
        picture = (torch.cat(lines, dim=1).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(picture).resize((picture.shape[1] * 2, picture.shape[0] * 2), Image.Resampling.NEAREST).save(
            path
        )


def sibling_keys(caption: grammar.Caption) -> tuple[tuple, tuple]:
    """Two keys: equal for captions that differ in colours only, and for those that differ in shapes only."""
    c = caption
    return (
        ("shapes", c.kind, c.relation, c.other_kind),
        ("colours", c.group, c.colour, c.relation, c.other_colour),
    )
