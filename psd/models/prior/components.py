"""The networks of a diffusion prior, from diffusers' folders, MVDream's folder and MVDream's own single file.

All come out as the same classes of diffusers and transformers; which layout they were stored in ends here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from transformers import CLIPTextModel
from transformers.utils.logging import disable_progress_bar

from psd.config.errors import PresetError, format_value
from psd.models import hub
from psd.models.checkpoints import digests, read
from psd.models.checkpoints.layouts import tensors_under
from psd.models.checkpoints.refusals import explain_load_errors, read_json_object
from psd.models.folders import count_text_places, load_network, load_tokenizer
from psd.models.prior import recipes

disable_progress_bar()  # of loading weights, which takes no time; downloads keep theirs

AUTOENCODERS = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}
NETWORKS = ("unet", "vae", "text_encoder")
INDEXED: dict[str, Callable[[Any], bool]] = {  # what model_index.json may add, and whether a value of it can be
    "views": lambda value: type(value) is int and 1 <= value <= 64,
    "image_size": lambda value: type(value) is int and 8 <= value <= 4096,
    "latent_clamp": lambda value: type(value) in (int, float) and 0 < value < math.inf,
    "captions": lambda value: isinstance(value, list) and all(isinstance(caption, str) for caption in value),
}
LDM_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of all ldm checkpoints


@dataclass
class Components:
    """The parts of a prior; its networks frozen, in their precision, on the CPU."""

    unet: Any  # the libraries annotate these more narrowly than they behave
    vae: Any
    text_encoder: Any
    tokenizer: Any
    prediction_type: str
    alpha_bar: Float[Tensor, " T"]  # float64
    index: dict[str, Any]  # what model_index.json adds: INDEXED


def load_components(source: str, dtype: torch.dtype, *, say: hub.Say | None = None) -> Components:
    """The components of ``source``.  Raises `MissingError` and `PresetError` with a cure."""
    with explain_load_errors(source):
        found = hub.fetch_model(source, "prior", half=dtype != torch.float32, say=say)
        if found.path.is_file():
            components = load_single_file(found.path, source, dtype, say)
        else:
            components = load_folder(found, source, dtype)
    for part, network in zip(NETWORKS, (components.unet, components.vae, components.text_encoder), strict=True):
        read.require_finite_weights(network, f"{source}: {part}")
        network.eval().requires_grad_(False)
    return components


def load_folder(found: hub.Located, source: str, dtype: torch.dtype) -> Components:
    """The components of a folder in diffusers' format, or in MVDream's.

    Raises `PresetError` for a model of another kind, which says what it is, and `MissingError` for a damaged one.
    """
    digests.refuse_wrong_files(found.path, source)
    index = read_index(found.path / "model_index.json", source)
    configs = {part: read_json_object(found.path / part / "config.json", source) for part in NETWORKS}
    recipes.refuse_other_recipes(configs["unet"], configs["vae"], configs["text_encoder"], source)
    schedule = read_json_object(found.path / "scheduler" / "scheduler_config.json", source)
    prediction_type = recipes.check_schedule(schedule, source)
    scheduler: Any = DDPMScheduler.from_config(schedule)
    text_encoder = load_network(CLIPTextModel, found, source, dtype, "text_encoder")
    return Components(
        unet=load_unet(found, source, configs["unet"], dtype),
        vae=load_network(AUTOENCODERS[configs["vae"]["_class_name"]], found, source, dtype, "vae"),
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(found.path / "tokenizer", source, **count_text_places(text_encoder)),
        prediction_type=prediction_type,
        alpha_bar=compute_alpha_bar(scheduler),
        index=index,
    )


def load_unet(found: hub.Located, source: str, config: Mapping[str, Any], dtype: torch.dtype) -> UNet2DConditionModel:
    if config["_class_name"] != recipes.MVDREAM_UNET:
        return load_network(UNet2DConditionModel, found, source, dtype, "unet")
    files = [name for name in found.files if name.startswith("unet/") and name.endswith(".safetensors")]
    if len(files) != 1:
        raise PresetError(f"{source}: MVDream's own U-Net is read from one file, not from {len(files)}")
    state = read.read_state(found.path / files[0])
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
        raise PresetError(f"{source} has no {empty[0]}: it is no MVDream checkpoint in one file")
    if "camera_embed.0.weight" not in networks["unet"]:
        raise PresetError(
            f"{source} has no camera embedding: in one file only MVDream is read, for a file does not say whether a"
            " Stable Diffusion predicts noise or v, nor at which size; name its folder in the format of diffusers"
        )
    tokenizer = hub.part_source(source, "tokenizer")
    kind = "diffusion tokenizer" if hub.local_path(tokenizer) is None else "tokenizer"
    at = hub.fetch_model(tokenizer, kind, say=say).path
    text_encoder = read.build_ldm_text_encoder(networks["text"], dtype)
    scheduler: Any = DDPMScheduler(**LDM_SCHEDULE)
    return Components(
        unet=read.build_ldm_unet(networks["unet"], dtype),
        vae=read.build_ldm_vae(networks["vae"], dtype),
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(
            at / "tokenizer" if kind == "diffusion tokenizer" else at, tokenizer, **count_text_places(text_encoder)
        ),
        prediction_type="epsilon",
        alpha_bar=compute_alpha_bar(scheduler),
        index={},
    )


def load_small_decoder(source: str, dtype: torch.dtype, say: hub.Say | None = None) -> AutoencoderTiny:
    """An `AutoencoderTiny` (TAESD) for the latents of a larger autoencoder."""
    with explain_load_errors(source):
        found = hub.fetch_model(source, "autoencoder", half=dtype != torch.float32, say=say)
        name = read_json_object(found.path / "config.json", source).get("_class_name")
        if name != AutoencoderTiny.__name__:
            raise PresetError(
                f"{source} is a {format_value(name)}; a reward_decoder is an AutoencoderTiny, as TAESD is"
            )
        decoder: Any = load_network(AutoencoderTiny, found, source, dtype)
    return decoder.eval().requires_grad_(False)


def compute_alpha_bar(scheduler: DDPMScheduler) -> Float[Tensor, " T"]:
    """Multiplies 1 - beta over the levels, in float64; the betas are rounded to float32 first, as diffusers does.

    A schedule that ends in pure noise (zero terminal SNR) keeps `recipes.LEAST_SIGNAL` there, so that clean latents
    follow from a noise prediction at every level; of v they are then alpha z_t - sigma v to a thousandth.
    """
    return torch.cumprod(1 - scheduler.betas.double(), dim=0).clamp_min(recipes.LEAST_SIGNAL)


def read_index(path: Path, source: str) -> dict[str, Any]:
    """Reads the values that model_index.json adds to a prior (`INDEXED`); `PresetError` for a value that cannot be."""
    index = read_json_object(path, source)
    found = {key: index[key] for key in INDEXED if index.get(key) is not None}
    for key, value in found.items():
        if not INDEXED[key](value):
            raise PresetError(f"{source}: model_index.json has {key} = {format_value(value)}, which cannot be")
    return found
