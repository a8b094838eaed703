"""Networks built from released checkpoints: the file is read as data, its shapes give the configuration, loading is
strict both ways.

No code of a checkpoint's makers runs: safetensors, or pickles restricted to tensors.  Weights go straight from the file
to their place, so that loading needs one copy of them.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from psd.config.errors import MissingError, PresetError, first_line
from psd.models.checkpoints import layouts
from psd.models.checkpoints.layouts import NamedTensors, StateDict
from psd.runtime.memory import is_out_of_memory

NetworkType = TypeVar("NetworkType", bound=nn.Module)
HEAD_CHANNELS = 64  # of every attention head in the released towers and U-Nets but BLIP's text and ViT-H's images
CAMERA = 16  # values of MVDream's camera condition
HPS_WIDTH = 1280  # of HPSv2's image tower, ViT-H-14
FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")  # as safetensors names them
CONSTANTS = "position_ids"  # whole numbers that files carry and nobody reads


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, of its ``state_dict`` entry if it has one.  Raises `MissingError` for a damaged file."""
    cure = f"delete {path.name} and let it be downloaded again"
    try:
        if path.suffix == ".safetensors":
            return NamedTensors(load_file(path))
        mapped = zipfile.is_zipfile(path)  # pickles of before torch 1.6 cannot be
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except SafetensorError as error:
        raise MissingError(f"{path.name} is damaged or only half there ({error}): {cure}") from None
    except OSError as error:
        raise MissingError(f"{path.name} cannot be read ({first_line(error)}): {cure}") from None
    except (pickle.UnpicklingError, struct.error, EOFError, LookupError, ValueError, RuntimeError, AttributeError,
            TypeError, AssertionError, zipfile.BadZipFile) as error:  # fmt: skip
        if is_out_of_memory(error):
            raise
        raise MissingError(
            f"{path.name} cannot be read as tensors alone ({first_line(error)}): {cure};"
            " a file that holds code is never run"
        ) from None
    if not isinstance(state, dict):
        raise MissingError(f"{path.name} holds a {type(state).__name__} instead of named tensors: name another file")
    state = state.get("state_dict", state)
    if not isinstance(state, dict):
        raise MissingError(f"{path.name} holds no named tensors as its state_dict: name another file")
    return NamedTensors({str(name): value for name, value in state.items() if isinstance(value, Tensor)})


def require_float_tensors(types: Mapping[str, str], where: str) -> None:
    """Raises `PresetError` for the first tensor of whole numbers, which a network would take for its weights."""
    for name, kind in types.items():
        if kind not in FLOATS and not name.endswith(CONSTANTS):
            raise PresetError(
                f"{where} holds {name} as {kind}, which is no type of floating-point numbers: a damaged or a quantised"
                " file, which is not read"
            )


def require_finite_weights(network: nn.Module, where: str) -> None:
    """Raises `PresetError` that names the first weight with inf or nan, also where only its precision is too small."""
    for name, value in network.named_parameters():
        if not torch.isfinite(value).all():
            kind = str(value.dtype).removeprefix("torch.")
            raise PresetError(
                f"{where} holds inf or nan in {name} as {kind}: a damaged file"
                + (", or numbers beyond 65504: try precision=bfloat16" if value.dtype == torch.float16 else "")
            )


def build_strict(make: Callable[[], NetworkType], state: StateDict, dtype: torch.dtype) -> NetworkType:
    """The network of ``make`` with exactly the tensors of ``state``; one too many or too few is a `PresetError`."""
    with torch.device("meta"):  # no memory, and no time for random weights that would be thrown away
        network = make()
    for name, buffer in list(network.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        assert leaf == "position_ids", f"{name} would stay without values"
        positions = torch.arange(buffer.shape[-1])[None]
        network.get_submodule(owner).register_buffer(leaf, positions, persistent=False)
    fill_strict(network, {name: value.to(dtype) for name, value in require_floats(state).items()}, assign=True)
    return network.to(dtype)


def require_floats(state: StateDict) -> StateDict:
    """``state`` itself; raises `PresetError` for a tensor of whole numbers."""
    whole = {name: str(value.dtype) for name, value in state.items() if not value.is_floating_point()}
    require_float_tensors(whole, "the checkpoint")
    return state


def fill_strict(network: nn.Module, state: StateDict, *, assign: bool = False) -> None:
    """``network`` with exactly the tensors of ``state``; one too many or too few is a `PresetError`."""
    try:
        network.load_state_dict(dict(state), strict=True, assign=assign)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise PresetError(f"the checkpoint does not fit {type(network).__name__}: {text[:300]}") from None


def count_distinct(state: StateDict, pattern: str) -> int:
    """Counts the different numbers that the pattern's group takes among the names."""
    return len({found[1] for name in state if (found := re.match(pattern, name))})


# ----------------------------------------------------------------------------------------------------------- diffusion


def unet_config(state: StateDict, head_channels: int = HEAD_CHANNELS) -> dict[str, Any]:
    """The configuration of ``UNet2DConditionModel`` that an ldm U-Net's shapes imply; attention in all levels but the
    last, as in every release."""
    levels = count_distinct(state, r"output_blocks\.(\d+)\.0\.") // (layouts.LAYERS + 1)
    per_level = layouts.LAYERS + 1
    widths = [state[f"input_blocks.{1 + per_level * i}.0.out_layers.3.weight"].shape[0] for i in range(levels)]
    camera = {}
    if "camera_embed.0.weight" in state:
        camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA}
    projection = state["input_blocks.1.1.proj_in.weight"]
    return {
        "sample_size": 32,
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": layouts.LAYERS,
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        "attention_head_dim": [width // head_channels for width in widths],  # diffusers means the number of heads
        "cross_attention_dim": state["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "use_linear_projection": projection.ndim == 2,
        **camera,
    }


def build_ldm_unet(state: StateDict, dtype: torch.dtype, head_channels: int = HEAD_CHANNELS) -> UNet2DConditionModel:
    config = unet_config(state, head_channels)
    return build_strict(lambda: UNet2DConditionModel(**config), layouts.unet_from_ldm(state), dtype)


def build_ldm_vae(state: StateDict, dtype: torch.dtype) -> AutoencoderKL:
    """Stable Diffusion's autoencoder; its scaling factor, which no checkpoint holds, is diffusers' default .18215."""
    levels = count_distinct(state, r"encoder\.down\.(\d+)\.")
    config: dict[str, Any] = {
        "block_out_channels": [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": state["post_quant_conv.weight"].shape[0],
        "layers_per_block": count_distinct(state, r"encoder\.down\.0\.block\.(\d+)\."),
    }
    return build_strict(lambda: AutoencoderKL(**config), layouts.vae_from_ldm(state), dtype)


def text_config(state: StateDict) -> dict[str, Any]:
    """The configuration of an open_clip text tower; exact GELU, where quick GELU would load silently and be wrong."""
    vocabulary, width = state["token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "eos_token_id": vocabulary - 1,
        "hidden_size": width,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_attention_heads": width // HEAD_CHANNELS,
        "num_hidden_layers": count_distinct(state, r"transformer\.resblocks\.(\d+)\."),
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "projection_dim": state["text_projection"].shape[1],
        "hidden_act": "gelu",
    }


def build_ldm_text_encoder(state: StateDict, dtype: torch.dtype) -> CLIPTextModel:
    config = text_config(state)
    config["num_hidden_layers"] -= 1
    mapped = layouts.text_encoder_from_open_clip(state)
    return build_strict(lambda: CLIPTextModel(CLIPTextConfig(**config)), mapped, dtype)


# ------------------------------------------------------------------------------------------------------------- rewards


def refuse_other_clip(state: StateDict) -> None:
    """Raises `PresetError` unless an open_clip file has the image tower of HPSv2.

    Such a file does not say which activation its towers were trained with: ViT-H has the exact GELU, while OpenAI's
    smaller ones, HPS v1's among them, have the quick one, and would load here and score wrongly.
    """
    width = state["visual.conv1.weight"].shape[0]
    if width != HPS_WIDTH:
        raise PresetError(
            f"its image tower is {width} wide, where HPSv2's ViT-H-14 is {HPS_WIDTH}: HPS v1 (ViT-L, 1024) and other"
            " CLIP models in one file are not read; name HPSv2, or the model's folder in the format of transformers"
        )


def build_open_clip(state: StateDict, dtype: torch.dtype) -> CLIPModel:
    """HPSv2's checkpoint: ViT-H-14, whose image tower has heads of 80 channels and the text tower of 64."""
    kernel = state["visual.conv1.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    if state["visual.positional_embedding"].shape[1:] != (width,):
        raise layouts.LayoutError("an image tower whose positions have another width than its patches: a changed file")
    side = int((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    text = text_config(state)
    vision = {
        "hidden_size": width,
        "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_attention_heads": 16,
        "num_hidden_layers": count_distinct(state, r"visual\.transformer\.resblocks\.(\d+)\."),
        "image_size": side * patch,
        "patch_size": patch,
        "projection_dim": state["visual.proj"].shape[1],
        "hidden_act": "gelu",
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=vision["projection_dim"])
    return build_strict(lambda: CLIPModel(config), layouts.clip_from_open_clip(state), dtype)
