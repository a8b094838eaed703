"""LoRA files, merged into a prior's frozen weights when it is loaded: W + weight alpha / r B A (Hu et al. 2021).

Merged, a LoRA costs nothing in a step.  Read are diffusers' and PEFT's names and those of kohya's trainers; a tensor
that fits no layer is refused by name.  PEFT's alpha may stand in the file's metadata, or in the adapter_config.json
beside it, instead of beside each layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from psd.config.errors import PresetError
from psd.models.checkpoints.read import read_state

DOWN = (
    "_lora.down.weight", "lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight", "lora_down.weight"
)  # fmt: skip
UP = ("_lora.up.weight", "lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_up.weight")
SAVED_BY_PEFT = "base_model.model."
ADAPTER_NAME = re.compile(r"(\.lora_[AB])\.[^.]+\.weight\Z")  # lora_A.default.weight
PREFIXES = {"unet.": "unet", "lora_unet_": "unet", "text_encoder.": "text", "lora_te_": "text"}


def read_lora(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors of a file, with the alphas that diffusers keeps in its metadata and PEFT in its configuration.

    Raises `PresetError` for metadata or a configuration that give layers of one network different alphas.
    """
    state = read_state(path)
    if path.suffix != ".safetensors":
        return state
    with safe_open(path, "pt") as file:
        told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    beside = path.with_name("adapter_config.json")
    if not told and beside.is_file():
        told = json.loads(beside.read_text(encoding="utf-8"))
    if patterns := [name for name, value in told.items() if name.endswith("alpha_pattern") and value]:
        raise PresetError(f"LoRA {source}: its {patterns[0]} gives layers different strengths, which is not read")
    for name, value in list(state.items()):
        layer, part = split_name(name, source)
        network = layer.partition(".")[0]
        alpha = told.get(f"{network}.lora_alpha", told.get("lora_alpha"))
        if part == "down" and alpha is not None:
            stabilised = told.get(f"{network}.use_rslora", told.get("use_rslora"))
            rank_stabilised = len(value) ** 0.5 if stabilised else 1.0  # alpha / sqrt(r)
            state.setdefault(f"{layer}.alpha", torch.tensor(alpha * rank_stabilised))
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
        module = layers[PREFIXES[prefix]].get(path) if prefix else layers["unet"].get(path) or layers["text"].get(path)
        if module is None:
            raise PresetError(f"LoRA {source}: {layer!r} fits no layer of this prior; it was made for another model")
        if lacking := sorted({"up", "down"}.difference(found)):
            raise PresetError(f"LoRA {source}: {layer!r} has no {' and no '.join(lacking)} projection: a damaged file")
        down, up = found["down"], found["up"]
        wanted = module.weight.flatten(1).shape
        if (len(up), len(down), down[0].numel()) != (wanted[0], up[0].numel(), wanted[1]):
            raise PresetError(
                f"LoRA {source}: {layer!r} has shapes {tuple(up.shape)} and {tuple(down.shape)}, which make no weight"
                f" of {tuple(module.weight.shape)}; it was made for another model"
            )
        alpha = found["alpha"].item() if "alpha" in found else len(down)
        add_low_rank(module, down, up, weight * alpha / len(down))


def split_name(name: str, source: str) -> tuple[str, str]:
    """Layer and part (down, up, alpha) of a tensor's name."""
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
