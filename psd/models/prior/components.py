"""The networks of a diffusion prior, from diffusers' folders, MVDream's folder and MVDream's own single file.

All come out as the same classes of diffusers and transformers; which layout they were stored in ends here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel
from transformers.utils.logging import disable_progress_bar

from psd.config.errors import MissingError, PresetError
from psd.models import hub
from psd.models.checkpoints import lora, read
from psd.models.checkpoints.layouts import tensors_under

disable_progress_bar()  # of loading weights, which takes no time; downloads keep theirs

AUTOENCODERS = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}
INDEXED = ("views", "image_size", "latent_clamp", "captions")
MVDREAM_UNET = "MultiViewUNetModel"  # a class of its makers, whose tensors `psd.models.checkpoints.layouts` renames
LDM_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of all ldm checkpoints


@dataclass
class Components:
    """What a prior is made of; the networks frozen, in their precision, on the CPU."""

    unet: Any  # the libraries annotate these more narrowly than they behave
    vae: Any
    text_encoder: Any
    tokenizer: Any
    prediction_type: str
    alpha_bar: Float[Tensor, " T"]  # float64
    index: dict[str, Any]  # what model_index.json adds: INDEXED


def load_components(
    source: str, dtype: torch.dtype, *, loras: Mapping[str, float] | None = None, say: hub.Say | None = None
) -> Components:
    """The components of ``source`` with every LoRA merged in.  Raises `MissingError` and `PresetError` with a cure."""
    found = hub.fetch_model(source, "prior", half=dtype != torch.float32, say=say)
    components = load_single_file(found.path, source, dtype, say) if found.path.is_file() else load_folder(found, dtype)
    for name, weight in (loras or {}).items():
        at = hub.fetch_model(name, "lora", say=say)
        file = at.path if at.path.is_file() else at.path / at.files[0]
        lora.merge_lora(lora.read_lora(file, name), components.unet, components.text_encoder, weight, name)
    for network in (components.unet, components.vae, components.text_encoder):
        network.eval().requires_grad_(False)
    return components


def load_folder(found: hub.Located, dtype: torch.dtype) -> Components:
    folder = str(found.path)
    vae_class = AUTOENCODERS[read_json(found.path / "vae" / "config.json")["_class_name"]]
    index = read_json(found.path / "model_index.json")
    try:
        scheduler: Any = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        return Components(
            unet=load_unet(found, dtype),
            vae=vae_class.from_pretrained(
                folder, subfolder="vae", torch_dtype=dtype, variant=found.weight_variant("vae")
            ),
            text_encoder=CLIPTextModel.from_pretrained(
                folder, subfolder="text_encoder", dtype=dtype, variant=found.weight_variant("text_encoder")
            ),
            tokenizer=AutoTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            prediction_type=check_prediction_type(scheduler.config["prediction_type"], folder),
            alpha_bar=compute_alpha_bar(scheduler),
            index={key: index[key] for key in INDEXED if key in index},
        )
    except OSError as error:
        if isinstance(error, MissingError):
            raise
        raise MissingError(
            f"{folder} is incomplete or damaged ({str(error).splitlines()[0]}): fetch it again"
        ) from None


def load_unet(found: hub.Located, dtype: torch.dtype) -> UNet2DConditionModel:
    config = read_json(found.path / "unet" / "config.json")
    if config["_class_name"] != MVDREAM_UNET:
        return UNet2DConditionModel.from_pretrained(
            str(found.path), subfolder="unet", torch_dtype=dtype, variant=found.weight_variant("unet")
        )
    (file,) = [name for name in found.files if name.startswith("unet/") and name.endswith(".safetensors")]
    state = read.read_state(found.path / file)
    return read.build_ldm_unet(state, dtype, config.get("num_head_channels", read.HEAD_CHANNELS))


def load_single_file(path: Path, source: str, dtype: torch.dtype, say: hub.Say | None) -> Components:
    """A whole ldm checkpoint with an open_clip text tower, as MVDream's makers saved it; its tokenizer is elsewhere."""
    state = read.read_state(path)
    networks = {
        name: tensors_under(state, prefix)
        for name, prefix in {
            "unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.model."
        }.items()
    }  # fmt: skip
    if empty := [name for name, tensors in networks.items() if not tensors]:
        raise PresetError(f"{source} has no {empty[0]}: it is no Stable Diffusion 2 or MVDream checkpoint")
    tokenizer = hub.part_source(source, "tokenizer")
    kind = "diffusion tokenizer" if hub.local_path(tokenizer) is None else "tokenizer"
    at = hub.fetch_model(tokenizer, kind, say=say).path
    scheduler: Any = DDPMScheduler(**LDM_SCHEDULE)
    return Components(
        unet=read.build_ldm_unet(networks["unet"], dtype),
        vae=read.build_ldm_vae(networks["vae"], dtype),
        text_encoder=read.build_ldm_text_encoder(networks["text"], dtype),
        tokenizer=AutoTokenizer.from_pretrained(str(at / "tokenizer" if kind == "diffusion tokenizer" else at)),
        prediction_type="epsilon",
        alpha_bar=compute_alpha_bar(scheduler),
        index={},
    )


def load_small_decoder(source: str, dtype: torch.dtype, say: hub.Say | None = None) -> AutoencoderTiny:
    """An `AutoencoderTiny` (TAESD) for the latents of a larger autoencoder."""
    found = hub.fetch_model(source, "autoencoder", half=dtype != torch.float32, say=say)
    decoder: Any = AutoencoderTiny.from_pretrained(str(found.path), torch_dtype=dtype, variant=found.weight_variant())
    return decoder.eval().requires_grad_(False)


def check_prediction_type(prediction_type: str, source: str) -> str:
    if prediction_type not in ("epsilon", "v_prediction"):
        raise PresetError(f"{source} predicts {prediction_type!r}; supported are epsilon and v_prediction")
    return prediction_type


def compute_alpha_bar(scheduler: DDPMScheduler) -> Float[Tensor, " T"]:
    """diffusers rounds betas to float32 first; the product in float64 keeps alpha and sigma exact from there."""
    return torch.cumprod(1 - scheduler.betas.double(), dim=0)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
