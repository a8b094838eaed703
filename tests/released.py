"""Checkpoints in the layouts of their makers, small and random, and the arithmetic of those makers in float64.

`*_shapes` say what a release holds (the same functions give the full-size manifests), `random_state` fills them, and
the functions named after a network compute it from the released names alone, without diffusers or transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

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
    width: int = 320, mult: tuple[int, ...] = (1, 2, 4, 4), context: int = 1024, camera: bool = True, channels: int = 4
) -> Shapes:
    """690 tensors, 867,572,164 parameters with the defaults: MVDream's U-Net."""
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
        found = norm(c, f"{name}.norm") | linear(c, c, f"{name}.proj_in") | linear(c, c, f"{name}.proj_out")
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


def unet(s: State, x: Tensor, t: int, context: Tensor, camera: Tensor | None, views: int) -> Tensor:
    """MVDream's U-Net: rows ``(b v) c h w``, self-attention over all tokens of a group."""
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
        return affine(s, f"{name}.to_out.0", attend(q, k, v, x.shape[-1] // HEAD))

    def transformer(name: str, x: Tensor) -> Tensor:
        inner, (n, c, h, w) = f"{name}.transformer_blocks.0", x.shape
        y = affine(s, f"{name}.proj_in", grouped(s, f"{name}.norm", x, 1e-6).flatten(2).mT)
        joint = y.reshape(n // views, views * h * w, c)
        normed = layered(s, f"{inner}.norm1", joint)
        y = (joint + attention(f"{inner}.attn1", normed, normed)).reshape(n, h * w, c)
        y = y + attention(f"{inner}.attn2", layered(s, f"{inner}.norm2", y), context)
        value, gate = affine(s, f"{inner}.ff.net.0.proj", layered(s, f"{inner}.norm3", y)).chunk(2, -1)
        y = y + affine(s, f"{inner}.ff.net.2", value * F.gelu(gate))
        return affine(s, f"{name}.proj_out", y).mT.reshape(n, c, h, w) + x

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
