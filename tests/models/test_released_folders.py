"""Stable Diffusion 1.5 and 2.1 base, TAESD and PickScore: tiny, random, in folders with the configurations, names and
oddities of their releases, through the presets' loaders, against arithmetic by hand in float64."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from psd.geometry.cameras import turntable_cameras
from psd.models.load import load_prior
from psd.models.rewards.clip import ClipReward
from psd.models.rewards.load import load_reward
from tests.support import released

CPU = torch.device("cpu")
VERSIONS = list(released.STABLE_DIFFUSION)
ACTIVATIONS = {"quick_gelu": released.quick_gelu, "gelu": torch.nn.functional.gelu}
SCALING = 0.18215  # of the latents, by the paper's makers; neither configuration holds it


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {version: released.stable_diffusion_folder(root / version, version) for version in VERSIONS}


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`madebyollin/taesd`, in its own size."""
    root = tmp_path_factory.mktemp("taesd")
    config = {
        "_class_name": "AutoencoderTiny", "_diffusers_version": "0.20.0.dev0", "act_fn": "relu", "in_channels": 3,
        "decoder_block_out_channels": [64] * 4, "encoder_block_out_channels": [64] * 4, "force_upcast": False,
        "latent_channels": 4, "latent_magnitude": 3, "latent_shift": 0.5, "num_decoder_blocks": [3, 3, 3, 1],
        "num_encoder_blocks": [1, 3, 3, 3], "out_channels": 3, "scaling_factor": 1.0, "upsampling_scaling_factor": 2,
    }  # fmt: skip
    released.write_network(root, config, taesd_state(), "diffusion_pytorch_model")
    return root


def taesd_state() -> dict[str, Tensor]:
    return released.random_state(released.taesd_shapes())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def weights(version: str) -> dict[str, dict[str, Tensor]]:
    """Of each network, in float64."""
    return {part: released.double(state) for part, state in released.stable_diffusion(version).items()}


def text_by_hand(version: str) -> Tensor:
    """States ``77 d`` of "a red cube"."""
    release, state = released.STABLE_DIFFUSION[version], weights(version)["text_encoder"]
    ids = released.clip_ids(released.RED_CUBE, release["pad"])
    return released.text_model(state, ids, release["context"] // released.HEAD, ACTIVATIONS[release["activation"]])[0]


@pytest.mark.parametrize(
    ("shapes", "tensors", "parameters"),
    [
        (released.unet_shapes(context=768, camera=False, matrices=False), 686, 859_520_964),  # 1.5
        (released.unet_shapes(camera=False), 686, 865_910_724),  # 2.1
        (released.vae_shapes(), 248, 83_653_863),  # both
        (released.text_model_shapes(), 196, 123_060_480),  # 1.5
        (released.text_model_shapes(1024, 23), 372, 340_387_840),  # 2.1
        (released.taesd_shapes(), 134, 2_445_063),
        (released.pick_score_shapes(), 910, 986_109_441),
    ],
    ids=["unet 1.5", "unet 2.1", "autoencoder", "text 1.5", "text 2.1", "taesd", "pickscore"],
)
def test_what_is_made_small_here_is_the_release_at_full_size(
    shapes: released.Shapes, tensors: int, parameters: int
) -> None:
    """The makers' counts: a layer that the small checkpoints forget would be missed by no comparison below."""
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (tensors, parameters)


# ---------------------------------------------------------------------------------------------------- Stable Diffusion


@pytest.mark.parametrize("version", VERSIONS)
def test_a_single_view_release_is_what_its_folder_says(version: str, folders: dict[str, Path]) -> None:
    prior = load_prior(str(folders[version]), CPU)
    assert (prior.views, prior.image_size, prior.prediction_type, prior.latent_clamp) == (1, 512, "epsilon", None)
    assert not prior.camera_conditioned
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)  # of the betas
    torch.testing.assert_close(prior.alpha_bar, (1 - roots.square()).cumprod(0), atol=1e-8, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_a_single_view_release_reads_as_its_text_tower_does(version: str, folders: dict[str, Path]) -> None:
    """Both activations, the ``text_model.`` in the names, and what pads: the end of text in 1.5, "!" in 2.1."""
    prior, wanted = load_prior(str(folders[version]), CPU), text_by_hand(version)
    torch.testing.assert_close(prior.embed_prompt("a red cube").double(), wanted, atol=1e-5, rtol=1e-4)
    assert wanted.std() > 0.3


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_a_single_view_release_predicts_what_its_unet_does(version: str, folders: dict[str, Path]) -> None:
    """Eight heads and convolutions as projections in 1.5, heads of 64 channels and matrices in 2.1."""
    prior, text = load_prior(str(folders[version]), CPU), text_by_hand(version)
    z_t = noise(2, 1, 4, 8, 8)
    embeddings = torch.stack([text, -text]).float()
    found = prior.predict_noise(z_t, 500, embeddings, turntable_cameras(1)[torch.tensor([0, 0])])
    heads = released.STABLE_DIFFUSION[version]["heads"]
    wanted = released.unet(weights(version)["unet"], z_t[:, 0].double(), 500, embeddings.double(), heads=heads)
    torch.testing.assert_close(found[:, 0].double(), wanted, atol=1e-4, rtol=1e-3)
    assert wanted.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_a_single_view_release_encodes_and_decodes_as_its_autoencoder_does(
    version: str, folders: dict[str, Path]
) -> None:
    """Its attention is stored under the names of diffusers before 0.15."""
    prior, state = load_prior(str(folders[version]), CPU), weights(version)["vae"]
    images, latents = pictures(2, 1, 3, 32, 32), SCALING * noise(2, 1, 4, 4, 4)
    wanted = released.vae_encode(state, images[:, 0].double() * 2 - 1) * SCALING
    torch.testing.assert_close(prior.encode(images)[:, 0].double(), wanted, atol=1e-4, rtol=1e-3)
    wanted = released.vae_decode(state, latents[:, 0].double() / SCALING) / 2 + 0.5
    torch.testing.assert_close(prior.decode(latents)[:, 0].double(), wanted, atol=1e-4, rtol=1e-3)


# --------------------------------------------------------------------------------------------------------------- TAESD


@torch.no_grad()
def test_taesd_decodes_scaled_latents_beside_the_full_autoencoder(folders: dict[str, Path], taesd: Path) -> None:
    """The presets' `reward_decoder`: what rewards look at; the latents' own encoder stays."""
    state, path = released.double(taesd_state()), str(folders["1.5"])
    prior = load_prior(path, CPU, decoder=str(taesd))
    latents, images = 2 * noise(2, 1, 4, 4, 4), pictures(1, 1, 3, 16, 16)  # some beyond the clamp's straight part
    wanted = released.taesd_decode(state, latents[:, 0].double())
    torch.testing.assert_close(prior.decode(latents)[:, 0].double(), wanted, atol=1e-5, rtol=1e-4)
    assert wanted.std() > 0.1
    assert torch.equal(prior.encode(images), load_prior(path, CPU).encode(images))


@torch.no_grad()
def test_taesd_serves_as_a_priors_autoencoder(folders: dict[str, Path], taesd: Path, tmp_path: Path) -> None:
    shutil.copytree(folders["2.1"], tmp_path, ignore=shutil.ignore_patterns("vae"), dirs_exist_ok=True)
    shutil.copytree(taesd, tmp_path / "vae")
    prior, state = load_prior(str(tmp_path), CPU), released.double(taesd_state())
    images, latents = pictures(2, 1, 3, 32, 32), noise(2, 1, 4, 4, 4)
    wanted = released.taesd_encode(state, images[:, 0].double())
    torch.testing.assert_close(prior.encode(images)[:, 0].double(), wanted, atol=1e-5, rtol=1e-4)
    wanted = released.taesd_decode(state, latents[:, 0].double())
    torch.testing.assert_close(prior.decode(latents)[:, 0].double(), wanted, atol=1e-5, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------- PickScore

PICK_SIDE, PICK_PATCH, PICK_WIDTH, PICK_LAYERS, PICK_JOINT = 4, 8, 64, 2, 48
PICK_MEAN, PICK_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


def pick_state() -> dict[str, Tensor]:
    text = released.text_model_shapes(32, PICK_LAYERS, len(released.CLIP_TOKENS))
    shapes = released.pick_score_shapes(PICK_WIDTH, PICK_LAYERS, PICK_PATCH, PICK_SIDE, PICK_JOINT, text)
    return released.random_state(shapes) | {"logit_scale": torch.tensor(4.6052)}  # the trained one: 100


@pytest.fixture(scope="module")
def pick_score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`yuvalkirstain/PickScore_v1`: both towers with 16 heads and the exact GELU."""
    root = tmp_path_factory.mktemp("pick")
    text = {
        "model_type": "clip_text_model", **released.clip_config(32, PICK_LAYERS, 16, "gelu"), **released.TEXT_CONFIG
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", **released.clip_config(PICK_WIDTH, PICK_LAYERS, 16, "gelu"),
        "image_size": PICK_SIDE * PICK_PATCH, "num_channels": 3, "patch_size": PICK_PATCH,
    }  # fmt: skip
    config: dict[str, Any] = {
        "architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
        "model_type": "clip", "projection_dim": PICK_JOINT, "text_config": text, "vision_config": vision,
    }  # fmt: skip
    constants = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(PICK_SIDE**2 + 1)[None],
    }
    released.write_network(root, config, pick_state() | constants, "model")
    released.clip_tokenizer(root, released.END)
    return root


def test_pickscore_scores_what_its_towers_say(pick_score: Path) -> None:
    reward = load_reward(str(pick_score), device=CPU)
    assert type(reward) is ClipReward and reward.scale == 1.0 and reward.differentiable
    images = pictures(2, 2, 3, PICK_SIDE * PICK_PATCH, PICK_SIDE * PICK_PATCH).requires_grad_()
    scores = reward(images, "a red cube")
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (PICK_MEAN, PICK_STD))
    by_hand = images.detach().double().flatten(0, 1).requires_grad_()
    ids = released.clip_ids(released.RED_CUBE, released.END)
    wanted = released.pick_score(released.double(pick_state()), (by_hand - mean) / std, ids)
    torch.testing.assert_close(
        scores.double().flatten(), wanted, atol=2e-4, rtol=1e-4
    )  # scores are hundreds of cosines
    assert wanted.std() > 0.1 and not torch.allclose(reward(images, "a red cub"), scores, atol=1e-2)
    (found,), (gradient,) = torch.autograd.grad(scores.sum(), images), torch.autograd.grad(wanted.sum(), by_hand)
    torch.testing.assert_close(found.double().flatten(0, 1), gradient, atol=1e-3, rtol=1e-3)
