"""LoRA files, merged into a prior's frozen weights when it is loaded: W + weight alpha / r B A (Hu et al. 2021).

Merged, a LoRA costs nothing in a step.  Read are diffusers' and PEFT's names and those of kohya's trainers; a tensor
that fits no layer is refused by name.  PEFT's alpha may stand in the file's metadata, or in the adapter_config.json
that PEFT itself saves beside it, instead of beside each layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from psd.config.errors import PresetError, format_value
from psd.models.checkpoints.read import read_state
from psd.models.checkpoints.refusals import read_json_object

DOWN = (
    "_lora.down.weight", "lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight", "lora_down.weight"
)  # fmt: skip
UP = ("_lora.up.weight", "lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_up.weight")
SAVED_BY_PEFT = "base_model.model."  # before every name in a file that PEFT itself saved
ADAPTER_NAME = re.compile(r"(\.lora_[AB])\.[^.]+\.weight\Z")  # lora_A.default.weight
PREFIXES = {"unet.": "unet", "lora_unet_": "unet", "text_encoder.": "text", "lora_te_": "text"}
PEFT_CONFIG = "adapter_config.json"
PEFT_UNREAD = {  # key of that file -> the values of it that change no layer, and what another one means
    "peft_type": (("LORA", None), "another adapter than LoRA"),
    "use_dora": ((False, None), "DoRA, whose magnitudes are not read"),
    "fan_in_fan_out": ((False, None), "layers that are stored transposed, which is not read"),
    "bias": (("none", None), "trained biases, which are not read"),
}


def read_lora(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors of a file, with the alphas that diffusers keeps in its metadata and PEFT in its configuration.

    Raises `PresetError` for metadata that ask for more than one alpha a network, for tensors of whole numbers and for
    inf or nan, and for a file of PEFT without its configuration, whose strength nobody could know.
    """
    state = dict(read_state(path))
    for name, value in state.items():
        if not (value.is_floating_point() and torch.isfinite(value).all()) and not is_whole_alpha(name, value):
            raise PresetError(f"LoRA {source}: {name!r} holds no finite floating-point numbers: a damaged file")
    if any(name.startswith(SAVED_BY_PEFT) for name in state):
        return add_alphas(state, read_adapter_config(path.parent / PEFT_CONFIG, source), "", source)
    if path.suffix != ".safetensors":
        return state
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    if not isinstance(metadata, dict):
        raise PresetError(f"LoRA {source}: lora_adapter_metadata in its head holds no keys and values: a damaged file")
    if not metadata and (path.parent / PEFT_CONFIG).is_file():
        return add_alphas(state, read_adapter_config(path.parent / PEFT_CONFIG, source), "", source)
    if patterns := [name for name, value in metadata.items() if name.endswith("alpha_pattern") and value]:
        raise PresetError(f"LoRA {source}: its {patterns[0]} gives layers different strengths, which is not read")
    return add_alphas(state, metadata, "{network}.", source)


def is_whole_alpha(name: str, value: Tensor) -> bool:
    """Whether a tensor of whole numbers is a layer's alpha, which some trainers save so."""
    return name.endswith(".alpha") and not value.is_floating_point() and value.numel() == 1


def read_adapter_config(path: Path, source: str) -> dict[str, Any]:
    """What PEFT saved beside its file; `PresetError` where it is absent or asks for what is not read."""
    if not path.is_file():
        raise PresetError(
            f"LoRA {source} was saved by PEFT, which keeps its strength (lora_alpha) in {PEFT_CONFIG}: put that file"
            " beside it"
        )
    config = read_json_object(path, source)
    if config.get("alpha_pattern"):
        raise PresetError(f"LoRA {source}: its alpha_pattern gives layers different strengths, which is not read")
    for key, (harmless, what) in PEFT_UNREAD.items():
        if config.get(key) not in harmless:
            raise PresetError(f"LoRA {source}: {key} = {format_value(config[key])} in {PEFT_CONFIG} asks for {what}")
    if config.get("lora_alpha") is None:
        raise PresetError(f"LoRA {source}: {PEFT_CONFIG} states no lora_alpha, the strength that it was trained with")
    return config


def add_alphas(state: dict[str, Tensor], config: Mapping[str, Any], prefix: str, source: str) -> dict[str, Tensor]:
    """``state`` with the alphas of ``config``, whose keys begin with ``prefix``, for layers without one of their own.

    Where it says use_rslora, a layer of rank r is added at alpha / sqrt(r) instead of alpha / r.
    """
    for name, value in list(state.items()):
        layer, part = split_name(name, source)
        key = prefix.format(network=layer.partition(".")[0])
        if part != "down" or (alpha := config.get(f"{key}lora_alpha")) is None:
            continue
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise PresetError(f"LoRA {source}: {key}lora_alpha = {format_value(alpha)} is no finite number")
        stabilised = len(value) ** 0.5 if config.get(f"{key}use_rslora") else 1.0
        state.setdefault(f"{layer}.alpha", torch.tensor(alpha * stabilised))
    return state


def merge_lora(
    state: Mapping[str, Tensor], unet: nn.Module, text_encoder: nn.Module, weight: float, source: str
) -> None:
    """Adds ``weight`` times the LoRA in ``state`` to the layers that it names, each in its own precision.

    An alpha that the file lacks is the rank.  Raises `PresetError`, which names ``source`` and the tensor or layer, for
    a name of no known scheme, a layer that this prior has not or has in another shape, and half of a pair.
    """
    if not state:
        raise PresetError(f"LoRA {source} holds no tensors: it is no LoRA, or in a layout that is not read")
    layers = {"unet": flat_names(unet), "text": flat_names(text_encoder)}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        layer, part = split_name(name, source)
        parts.setdefault(layer, {})[part] = value
    for layer, found in parts.items():
        prefix = next((prefix for prefix in PREFIXES if layer.startswith(prefix)), None)
        path = (layer.removeprefix(prefix) if prefix else layer).replace(".", "_").removeprefix("text_model_")
        networks = [PREFIXES[prefix]] if prefix else ["unet", "text"]  # the two share no name
        module = next((layers[network][path] for network in networks if path in layers[network]), None)
        if module is None:
            raise PresetError(f"LoRA {source}: {layer!r} fits no layer of this prior; it was made for another model")
        if lacking := sorted({"up", "down"}.difference(found)):
            raise PresetError(f"LoRA {source}: {layer!r} has no {' and no '.join(lacking)} projection: a damaged file")
        down, up = found["down"], found["up"]
        if not (down.ndim and up.ndim) or "alpha" in found and found["alpha"].numel() != 1:
            raise PresetError(f"LoRA {source}: {layer!r} has tensors of shapes that no LoRA has: a damaged file")
        wanted = module.weight.flatten(1).shape
        if (len(up), len(down), down[0].numel()) != (wanted[0], up[0].numel(), wanted[1]):
            raise PresetError(
                f"LoRA {source}: {layer!r} has shapes {tuple(up.shape)} and {tuple(down.shape)}, which make no weight"
                f" of {tuple(module.weight.shape)}; it was made for another model"
            )
        alpha = found["alpha"].item() if "alpha" in found else len(down)
        add_low_rank(module, down, up, weight * alpha / len(down))


def split_name(name: str, source: str) -> tuple[str, str]:
    """Layer and part (down, up, alpha) of a tensor's name, without PEFT's prefix and the name of its adapter."""
    name = ADAPTER_NAME.sub(r"\1.weight", name.removeprefix(SAVED_BY_PEFT))
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha"), "alpha"
    for part, endings in (("down", DOWN), ("up", UP)):
        for ending in endings:
            if name.endswith(ending):
                layer = name.removesuffix(ending).rstrip(".")
                layer = layer.replace(".processor.", ".")  # diffusers before 0.22
                layer = re.sub(r"\.self_attn\.to_(q|k|v|out)\Z", r".self_attn.\1_proj", layer)  # before 0.19
                return re.sub(r"\.to_out\Z", ".to_out.0", layer), part
    raise PresetError(f"LoRA {source}: {name!r} is neither a down nor an up projection nor its alpha")


def flat_names(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers with a weight, by their path with underscores: kohya's names cannot be split again."""
    return {
        name.replace(".", "_").removeprefix("text_model_"): module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


@torch.no_grad()
def add_low_rank(module: nn.Linear | nn.Conv2d, down: Tensor, up: Tensor, factor: float) -> None:
    """W + factor B A in single precision, then rounded to the layer's own; a convolution's A is one too, its B 1x1."""
    parameter = module.weight
    change = factor * (up.float().reshape(len(up), -1) @ down.float().reshape(len(down), -1))
    parameter.copy_((parameter.float() + change.view(parameter.shape)).to(parameter.dtype))
