"""Released checkpoints under the names of diffusers and transformers: pure renamings of state dictionaries.

Each ``*_from_*`` takes the tensors of one network as its makers released them and returns those that the library's
class loads strictly.  Nothing is dropped in silence: a name that no rule knows raises `LayoutError`.
ldm is the layout of Stable Diffusion's and MVDream's own code, open_clip that of HPSv2, BLIP that of ImageReward.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from psd.config.errors import PresetError

StateDict = Mapping[str, Tensor]
LAYERS = 2  # residual blocks a level, in every released U-Net of this layout


class LayoutError(PresetError):
    """A checkpoint holds a tensor that its layout does not have, or lacks one that it must have."""


class NamedTensors(dict[str, Tensor]):
    """The tensors of a checkpoint; one that is asked for and is not there raises `LayoutError` with its name."""

    def __missing__(self, name: str) -> Tensor:
        raise LayoutError(f"no tensor {name}: another model, or a file that was changed")


def tensors_under(state: StateDict, prefix: str) -> NamedTensors:
    """The tensors under ``prefix``, without it."""
    return NamedTensors({name.removeprefix(prefix): it for name, it in state.items() if name.startswith(prefix)})


def rename_by_rules(name: str, rules: Iterable[tuple[str, str]], layout: str) -> str:
    """Applies the first rule (pattern at the start, replacement) that fits, once."""
    for pattern, replacement in rules:
        found, count = re.subn(rf"\A{pattern}", replacement, name, count=1)
        if count:
            return found
    raise LayoutError(f"{name!r} is no tensor of {layout}: another model, or a file that was changed")


# ---------------------------------------------------------------------------------------------------- Stable Diffusion

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = (
    (r"time_embed\.0\.", "time_embedding.linear_1."),
    (r"time_embed\.2\.", "time_embedding.linear_2."),
    (r"camera_embed\.0\.", "class_embedding.linear_1."),
    (r"camera_embed\.2\.", "class_embedding.linear_2."),
    (r"input_blocks\.0\.0\.", "conv_in."),
    (r"out\.0\.", "conv_norm_out."),
    (r"out\.2\.", "conv_out."),
)


def unet_from_ldm(state: StateDict) -> dict[str, Tensor]:
    """A U-Net of Stable Diffusion, or MVDream's with its camera embedding, for ``UNet2DConditionModel``."""
    return {_unet_name(name): value for name, value in state.items()}


def _unet_name(name: str) -> str:
    block = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)", name)
    if block and (block[1], block[2]) != ("input_blocks", "0"):
        number, inner, rest = int(block[2]), block[3], block[4]
        down = block[1] == "input_blocks"
        level, layer = divmod(number - down, LAYERS + 1)
        side = "down_blocks" if down else "up_blocks"
        if rest.startswith("op.") and down:
            return f"{side}.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        if rest.startswith("conv.") and not down:
            return f"{side}.{level}.upsamplers.0.{rest}"
        return _layer_name(f"{side}.{level}", layer, inner == "0", rest, name)
    if middle := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        place = int(middle[1])
        return _layer_name("mid_block", place // 2, place != 1, middle[2], name)
    return rename_by_rules(name, UNET_ENDS, "a U-Net in ldm's layout")


def _layer_name(block: str, layer: int, residual: bool, rest: str, name: str) -> str:
    """Attention layers keep their inner names; those of residual blocks are spelled out."""
    if not residual:
        return f"{block}.attentions.{layer}.{rest}"
    part, _, kind = rest.rpartition(".")
    if part not in RESIDUAL:
        raise LayoutError(f"{name!r} is no tensor of a U-Net in ldm's layout: another model, or a changed file")
    return f"{block}.resnets.{layer}.{RESIDUAL[part]}.{kind}"


def vae_from_ldm(state: StateDict) -> dict[str, Tensor]:
    """Stable Diffusion's autoencoder for ``AutoencoderKL``; its 1x1 convolutions in attention become matrices."""
    ups = 1 + max((int(found[1]) for name in state if (found := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)
    result = {}
    for name, value in state.items():
        target = _vae_name(name, ups)
        result[target] = value[:, :, 0, 0] if ".attentions." in target and value.ndim == 4 else value
    return result


def _vae_name(name: str, ups: int) -> str:
    rules = [
        (r"(quant_conv|post_quant_conv)\.", r"\1."),
        (r"(encoder|decoder)\.(conv_in|conv_out)\.", r"\1.\2."),
        (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
        (r"(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
        (r"(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
        (r"(encoder|decoder)\.mid\.attn_1\.norm\.", r"\1.mid_block.attentions.0.group_norm."),
        (r"(encoder|decoder)\.mid\.attn_1\.([qkv])\.", r"\1.mid_block.attentions.0.to_\2."),
        (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.", r"\1.mid_block.attentions.0.to_out.0."),
        (r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
        (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    ]
    if found := re.match(r"decoder\.up\.(\d+)\.", name):  # counted from the other end
        level = ups - 1 - int(found[1])
        rules += [
            (r"decoder\.up\.\d+\.block\.", f"decoder.up_blocks.{level}.resnets."),
            (r"decoder\.up\.\d+\.upsample\.", f"decoder.up_blocks.{level}.upsamplers.0."),
        ]
    return rename_by_rules(name, rules, "an autoencoder in ldm's layout").replace("nin_shortcut", "conv_shortcut")


# ----------------------------------------------------------------------------------------------------------- open_clip

BLOCK = (
    (r"ln_([12])\.", r"layer_norm\1."),
    (r"attn\.out_proj\.", "self_attn.out_proj."),
    (r"mlp\.c_fc\.", "mlp.fc1."),
    (r"mlp\.c_proj\.", "mlp.fc2."),
)
CLIP_ENDS = (
    (r"visual\.class_embedding\Z", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding\Z", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # transformers' own spelling
    (r"visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"visual\.proj\Z", "visual_projection.weight"),
    (r"text_projection\Z", "text_projection.weight"),
    (r"token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"positional_embedding\Z", "text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.", "text_model.final_layer_norm."),
    (r"logit_scale\Z", "logit_scale"),
)
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")


def clip_from_open_clip(state: StateDict) -> dict[str, Tensor]:
    """Both towers of an open_clip model, or its text tower alone, for ``CLIPModel``: 686 tensors become 910 (ViT-H).

    The fused projections of attention are cut in three, and the two projections to the common space transposed.
    """
    result = {}
    for name, value in state.items():
        if name == "attn_mask":  # the causal mask, a constant that some files carry
            continue
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if block is None:
            target = rename_by_rules(name, CLIP_ENDS, "an open_clip model")
            result[target] = value.T.contiguous() if target in TRANSPOSED else value
            continue
        layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"
        if fused := re.fullmatch(r"attn\.in_proj_(weight|bias)", block[3]):
            for part, third in zip("qkv", value.chunk(3), strict=True):
                result[f"{layer}.self_attn.{part}_proj.{fused[1]}"] = third
        else:
            result[f"{layer}.{rename_by_rules(block[3], BLOCK, 'an open_clip model')}"] = value
    return result


def text_encoder_from_open_clip(state: StateDict) -> dict[str, Tensor]:
    """The text tower up to its last but one layer, for ``CLIPTextModel``: what Stable Diffusion 2 conditions on."""
    towers = clip_from_open_clip({name: value for name, value in state.items() if not name.startswith("visual.")})
    text = tensors_under(towers, "text_model.")
    numbers = [int(found[1]) for name in text if (found := re.match(r"encoder\.layers\.(\d+)\.", name))]
    if not numbers:
        raise LayoutError("a text tower without layers: another model, or a file that was changed")
    last = max(numbers)
    return {name: value for name, value in text.items() if not name.startswith(f"encoder.layers.{last}.")}


# ---------------------------------------------------------------------------------------------------------------- BLIP

BLIP = (
    (r"visual_encoder\.cls_token\Z", "vision_model.embeddings.class_embedding"),
    (r"visual_encoder\.pos_embed\Z", "vision_model.embeddings.position_embedding"),
    (r"visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    (r"text_encoder\.", "text_encoder."),
    (r"(vision|text)_proj\.", r"\1_proj."),
)


def image_reward_from_blip(state: StateDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """ImageReward's BLIP for ``BlipForImageTextRetrieval`` (but for its matching head) and the layers of its score."""
    backbone = NamedTensors(
        {
            rename_by_rules(name, BLIP, "ImageReward's BLIP"): value
            for name, value in tensors_under(state, "blip.").items()
            if not name.endswith("embeddings.position_ids")
        }
    )
    return backbone, linear_head(tensors_under(state, "mlp."))


HEAD_LAYERS = {0, 2, 4, 6, 7}  # linear layers of a score head; the numbers between are dropout


def linear_head(state: StateDict) -> NamedTensors:
    """The score layers of ImageReward and of LAION's aesthetic predictor: ``N.weight`` and ``N.bias``.

    Raises `LayoutError` for a head whose layers have other numbers: between those stand activations or normalisations,
    which have no tensors, so that the head would load and score wrongly.
    """
    head = {rename_by_rules(name, ((r"layers\.", ""),), "a score head"): value for name, value in state.items()}
    numbers = {name.partition(".")[0] for name in head}
    if numbers != {str(number) for number in HEAD_LAYERS}:
        raise LayoutError(
            f"its score head has layers {', '.join(sorted(numbers))}, where the released linear one has"
            f" {', '.join(map(str, sorted(HEAD_LAYERS)))}: what stands between them is not known here"
        )
    return NamedTensors(head)
