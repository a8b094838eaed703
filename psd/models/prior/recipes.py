"""The diffusion models that are read here, known by their configurations alone: others are refused by name.

Read are U-Nets of the Stable Diffusion 1 and 2 family, plain or with MVDream's camera condition, that predict noise or
v on a discrete schedule of betas.  Each other recipe would load in part, and fail in the first step or distil nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from psd.config.errors import PresetError, format_value
from psd.models.checkpoints.read import CAMERA

UNET, MVDREAM_UNET = "UNet2DConditionModel", "MultiViewUNetModel"  # the second: MVDream's own class and tensor names
KL, TINY = "AutoencoderKL", "AutoencoderTiny"
CLIP_TYPES = ("clip_text_model", "clip")  # of a text encoder's configuration; older ones say the second
PREDICTIONS = ("epsilon", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
LEAST_SIGNAL = 1e-8  # alpha_bar; below it float32 no longer tells the clean latents from the noise
OTHER_INPUTS = {  # key of a U-Net's configuration that is null in the family -> what has it
    "addition_embed_type": "an SDXL U-Net or one of its kin",
    "encoder_hid_dim_type": "a U-Net conditioned on images or on another text encoder (Kandinsky, DeepFloyd IF)",
    "time_cond_proj_dim": "a latent consistency model, distilled for few steps",
    "num_class_embeds": "a U-Net with class labels (an upscaler)",
}


def refuse_other_recipes(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoder: Mapping[str, Any], source: str
) -> None:
    """Raises `PresetError`, saying what ``source`` is and what is read, for networks that do not fit together here."""
    name = unet.get("_class_name")
    if name not in (UNET, MVDREAM_UNET):
        raise PresetError(f"{source}: its U-Net is a {format_value(name)}; a {UNET} is read, as Stable Diffusion's is")
    for key, what in OTHER_INPUTS.items():
        if unet.get(key) is not None:
            raise PresetError(f"{source} is {what} ({key} = {format_value(unet[key])}), which is not read")
    label, width = unet.get("class_embed_type"), unet.get("projection_class_embeddings_input_dim")
    if label is not None and (label, width) != ("projection", CAMERA):
        raise PresetError(
            f"{source}: its U-Net has a class embedding {format_value(label)} of {format_value(width)} values; read are"
            f" none, and MVDream's camera condition ('projection', {CAMERA})"
        )
    vae_name = vae.get("_class_name")
    if vae_name not in (KL, TINY):
        raise PresetError(f"{source}: its autoencoder is a {format_value(vae_name)}; {KL} and {TINY} are read")
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise PresetError(f"{source}: its autoencoder scales latents channel by channel ({key}), which is not read")
    if vae.get("shift_factor"):
        raise PresetError(f"{source}: its autoencoder shifts latents (shift_factor), as flow models' do: not read")
    refuse_other_channels(unet, vae, source)
    kind = text_encoder.get("model_type", "clip_text_model")
    if kind not in CLIP_TYPES:
        raise PresetError(f"{source}: its text encoder is of type {format_value(kind)}; CLIP's are read")
    if name == UNET:
        heard, said = unet.get("cross_attention_dim", 1280), text_encoder.get("hidden_size", 512)
        if heard != said:
            raise PresetError(
                f"{source}: its U-Net reads texts of width {format_value(heard)} and its text encoder writes"
                f" {format_value(said)}: they are of different models"
            )
        if not is_count(unet.get("sample_size")):
            raise PresetError(
                f"{source}: its U-Net states no square sample_size: {format_value(unet.get('sample_size'))}"
            )


def refuse_other_channels(unet: Mapping[str, Any], vae: Mapping[str, Any], source: str) -> None:
    """Raises `PresetError` for a U-Net that takes or gives anything but the autoencoder's latents."""
    channels = vae.get("latent_channels", 4)
    for key, default in (("in_channels", 4), ("out_channels", 4)):
        found = unet.get(key, default)
        if found == channels:
            continue
        what = {
            ("in_channels", 9): "an inpainting U-Net",
            ("in_channels", 8): "a U-Net that edits pictures",
            ("in_channels", 5): "a U-Net with depth",
            ("in_channels", 7): "an upscaler",
        }.get((key, found), "a U-Net for other latents")
        raise PresetError(
            f"{source} is {what}: {key} = {format_value(found)}, while its autoencoder has {format_value(channels)}"
            " latent channels; such models are not read"
        )


def is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def check_schedule(config: Mapping[str, Any], source: str) -> str:
    """Returns the prediction type of a scheduler's configuration.

    Raises `PresetError` for flow matching and other schedules that are no product of alphas, for one that does not
    state its betas, and for a prediction that says nothing where all is noise.
    """
    name, kind = str(config.get("_class_name")), config.get("prediction_type", "epsilon")
    if "Flow" in name or config.get("use_flow_sigmas") or kind == "flow_prediction":
        raise PresetError(f"{source} is a flow-matching model ({name}); read are those that predict noise or v")
    if "EDM" in name or "LCM" in name or "KarrasVe" in name:
        raise PresetError(f"{source} has a {name}; read are schedules of betas, as DDPM's and DDIM's are")
    if kind not in PREDICTIONS:
        raise PresetError(f"{source} predicts {format_value(kind)}; supported are {' and '.join(PREDICTIONS)}")
    steps: Any
    steps, betas, schedule = config.get("num_train_timesteps"), config.get("trained_betas"), config.get("beta_schedule")
    if not is_count(steps) or not 10 <= steps <= 100_000:
        raise PresetError(
            f"{source}: num_train_timesteps {format_value(steps)} of its scheduler must lie in [10, 100000]"
        )
    if betas is not None:
        good = isinstance(betas, list) and len(betas) == steps and all(is_between(beta, 0, 1) for beta in betas)
        if not good:
            raise PresetError(f"{source}: trained_betas of its scheduler must be {steps} numbers in [0, 1]")
    elif schedule not in BETA_SCHEDULES:
        raise PresetError(
            f"{source}: beta_schedule {format_value(schedule)} of its scheduler is not read; there are:"
            f" {', '.join(BETA_SCHEDULES)}"
        )
    elif schedule != "squaredcos_cap_v2":
        low: Any
        high: Any
        low, high = config.get("beta_start"), config.get("beta_end")
        if not (is_between(low, 0, 1) and is_between(high, 0, 1) and 0 < low < high < 1):
            raise PresetError(
                f"{source}: beta_start {format_value(low)} and beta_end {format_value(high)} of its scheduler must lie"
                " in (0, 1), the first below the second"
            )
    if config.get("rescale_betas_zero_snr") and kind == "epsilon":
        raise PresetError(f"{source} ends in pure noise (rescale_betas_zero_snr), where predicting it says nothing")
    return kind


def is_between(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high
